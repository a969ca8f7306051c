//! Named steps with their times.

use std::io;
use std::process::Command;
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
        self.done.push((name.to_owned(), start.elapsed(), result.is_ok()));
        result.map_err(|stop| Stop { message: format!("{name}: {}", stop.message), ..stop })
    }

    /// Does the step that is a command, with its output left as it is.
    pub fn run(&mut self, name: &str, command: &mut Command) -> Result<(), Stop> {
        self.time(name, || {
            let status = command.status().map_err(|error| cannot_run(command, &error))?;
            if status.success() {
                return Ok(());
            }
            Err(Stop { status: 1, message: format!("the step failed ({status}): {command:?}") })
        })
    }

    /// Prints each step's seconds.
    pub fn summarise(&self) {
        let width = self.done.iter().map(|(name, ..)| name.len()).max().unwrap_or_default();
        eprintln!("==> summary");
        for (name, time, passed) in &self.done {
            let verdict = if *passed { "ok" } else { "FAILED" };
            eprintln!("{name:width$}  {:7.1} s  {verdict}", time.as_secs_f64());
        }
    }
}

/// The failure of a program that does not start.
pub fn cannot_run(command: &Command, error: &io::Error) -> Stop {
    Stop { status: 1, message: format!("{command:?} could not run: {error}") }
}
