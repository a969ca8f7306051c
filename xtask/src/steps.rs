//! Named steps with their times.

use std::io::{self, Read as _, Write as _};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::Stop;

/// A cargo command from its words, for the workspace of the current folder.
pub fn cargo(words: &str) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(words.split_whitespace());
    command
}

/// The steps of a command so far.
#[derive(Default)]
pub struct Steps {
    done: Vec<(String, Duration, bool)>,
    warnings: Vec<String>,
}

impl Steps {
    /// Announces a step, does it and notes its time. A failure carries the step's name.
    pub fn time<T>(
        &mut self,
        name: &str,
        step: impl FnOnce() -> Result<T, Stop>,
    ) -> Result<T, Stop> {
        eprintln!("==> {name}");
        let start = Instant::now();
        let result = step();
        self.note(name, start.elapsed(), result)
    }

    fn note<T>(&mut self, name: &str, time: Duration, result: Result<T, Stop>) -> Result<T, Stop> {
        self.done.push((name.to_owned(), time, result.is_ok()));
        result.map_err(|stop| Stop { message: format!("{name}: {}", stop.message), ..stop })
    }

    /// Does the step that is a command, with its output left as it is.
    pub fn run(&mut self, name: &str, command: &mut Command) -> Result<(), Stop> {
        self.time(name, || {
            let status = command.status();
            judge(command, status)
        })
    }

    /// Does the steps that are commands side by side, each to its end. The output of the first is left as
    /// it is, that of the others is shown after it.
    pub fn run_together(&mut self, commands: Vec<(String, Command)>) -> Result<(), Stop> {
        let mut commands = commands.into_iter();
        let Some((name, mut first)) = commands.next() else { return Ok(()) };
        thread::scope(|scope| {
            let others: Vec<_> = commands
                .map(|(name, mut command)| {
                    let run = move || {
                        let (start, mut output) = (Instant::now(), Vec::new());
                        let status = capture(&mut command, &mut output);
                        (output, start.elapsed(), judge(&command, status))
                    };
                    (name, scope.spawn(run))
                })
                .collect();
            let mut outcome = self.run(&name, &mut first);
            for (name, other) in others {
                eprintln!("==> {name}");
                let (output, time, result) = other.join().expect("a command that ended");
                // Who does not read it has no use for the error.
                let _ = io::stderr().write_all(&output);
                outcome = outcome.and(self.note(&name, time, result));
            }
            outcome
        })
    }

    /// Notes what is no failure, for the end, where it is seen.
    pub fn warn(&mut self, warning: String) {
        self.warnings.push(warning);
    }

    /// Prints each step's seconds, and then the warnings.
    pub fn summarise(&self) {
        eprint!("{}", self.summary());
    }

    fn summary(&self) -> String {
        let width = self.done.iter().map(|(name, ..)| name.len()).max().unwrap_or_default();
        let mut text = "==> summary\n".to_owned();
        for (name, time, passed) in &self.done {
            let verdict = if *passed { "ok" } else { "FAILED" };
            let seconds = time.as_secs_f64();
            text.push_str(&format!("{name:width$}  {seconds:7.1} s  {verdict}\n"));
        }
        for warning in &self.warnings {
            text.push_str(&format!("WARNING: {}\n", warning.replace('\n', "\n         ")));
        }
        text
    }
}

/// What a command's end means for its step.
fn judge(command: &Command, status: io::Result<ExitStatus>) -> Result<(), Stop> {
    let status = status.map_err(|error| cannot_run(command, &error))?;
    if status.success() {
        return Ok(());
    }
    Err(Stop { status: 1, message: format!("the step failed ({status}): {command:?}") })
}

/// Runs a command and adds what it prints, to either stream, to `output`.
fn capture(command: &mut Command, output: &mut Vec<u8>) -> io::Result<ExitStatus> {
    let (mut reader, writer) = io::pipe()?;
    let mut child = command.stdout(writer.try_clone()?).stderr(writer).spawn()?;
    // The pipe ends with its last writer, and the command is one.
    command.stdout(Stdio::inherit()).stderr(Stdio::inherit());
    reader.read_to_end(output)?;
    child.wait()
}

/// The failure of a program that does not start.
pub fn cannot_run(command: &Command, error: &io::Error) -> Stop {
    Stop { status: 1, message: format!("{command:?} could not run: {error}") }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn commands_side_by_side_end_each() {
        let folder = tempfile::tempdir().expect("a folder");
        // Each waits for another, in a ring, so that none ends unless all run at once.
        let meet = |own: &str, other: &str, status: u8| {
            let root = folder.path().display();
            let script = format!(
                "touch '{root}/{own}'; for i in $(seq 500); do [ -e '{root}/{other}' ] && exit {status}; sleep 0.01; done; exit 9"
            );
            (own.to_owned(), shell(&script))
        };
        let mut steps = Steps::default();
        let commands = vec![meet("a", "b", 0), meet("b", "c", 3), meet("c", "a", 0)];
        let stop = steps.run_together(commands).expect_err("one fails");
        assert!(
            stop.message.starts_with("b: the step failed (exit status: 3)"),
            "{}",
            stop.message
        );
        let done: Vec<_> =
            steps.done.iter().map(|(name, _, passed)| (&name[..], *passed)).collect();
        assert_eq!(done, [("a", true), ("b", false), ("c", true)]);
        steps.run_together(Vec::new()).expect("nothing to do");
    }

    #[test]
    fn warnings_come_last_and_fail_nothing() {
        let mut steps = Steps::default();
        steps.warn("first line\nsecond".into());
        steps.time("one", || Ok(())).expect("well");
        let summary = steps.summary();
        let [head, one, rest @ ..] = &summary.lines().collect::<Vec<_>>()[..] else { panic!() };
        assert_eq!(*head, "==> summary");
        assert!(one.starts_with("one ") && one.ends_with(" s  ok"), "{one}");
        assert_eq!(rest, ["WARNING: first line", "         second"]);
    }

    #[test]
    fn what_a_command_prints_is_kept() {
        let mut output = Vec::new();
        let status = capture(&mut shell("echo one; echo two >&2; exit 4"), &mut output);
        assert_eq!(status.expect("runs").code(), Some(4));
        assert_eq!(output, b"one\ntwo\n");
        capture(&mut Command::new("no such program"), &mut output).expect_err("cannot run");
    }
}
