//! Other programs on the same shapes in the same run: each is a script or a program in a folder that
//! takes the cases as JSON on stdin and answers with a line of JSON a time.

use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use super::record::Row;
use crate::bad_input;

/// What the scripts share is no peer.
const SHARED: &str = "common";

/// What programs that are peers are called, before their names.
const PROGRAM: &str = "peer-";

/// One peer: `NAME.py`, the program `peer-NAME`, or the crate `NAME` that makes that program.
pub struct Peer {
    pub name: String,
    path: PathBuf,
}

#[derive(Serialize)]
struct Request<'a> {
    seconds: f64,
    cases: &'a [Row],
}

/// A line that a peer says.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Skipped { skipped: String },
    Time(Time),
}

#[derive(Deserialize)]
struct Time {
    /// That of the case.
    label: String,
    /// The peer's name and version, and what of it ran.
    program: String,
    median_ms: f64,
    min_ms: f64,
    max_ms: f64,
    repetitions: usize,
    steady: bool,
    clock: String,
    /// The largest difference from f64 in what was looked at.
    max_error: f64,
}

/// The peers in a folder, by name.
///
/// # Errors
/// A folder that cannot be read or has none.
pub fn find(folder: &Path) -> Result<Vec<Peer>> {
    let refused = |what: String| {
        bad_input(format!(
            "--peers: expected a folder of peers, got `{}`, {what}",
            folder.display()
        ))
    };
    let mut peers = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|error| refused(error.to_string()))? {
        let path = entry?.path();
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let extension = path.extension().unwrap_or_default();
        if path.join("Cargo.toml").is_file() {
            let program = format!("target/release/{PROGRAM}{stem}{}", std::env::consts::EXE_SUFFIX);
            peers.push(Peer { path: path.join(program), name: stem });
        } else if let Some(name) = stem.strip_prefix(PROGRAM) {
            peers.push(Peer { name: name.to_owned(), path });
        } else if extension == "py" && stem != SHARED {
            peers.push(Peer { name: stem, path });
        }
    }
    peers.sort_by(|a, b| a.name.cmp(&b.name));
    if peers.is_empty() {
        return Err(refused("which has none".into()));
    }
    Ok(peers)
}

impl Peer {
    /// The rows of a peer on the cases of `rows`; what it could not do is said on stderr.
    pub fn measure(&self, rows: &[Row], seconds: Duration) -> Vec<Row> {
        match self.ask(rows, seconds) {
            Ok(times) => times,
            Err(error) => {
                eprintln!("{}: skipped: {error:#}", self.name);
                Vec::new()
            }
        }
    }

    fn command(&self) -> Command {
        if self.path.extension().is_none_or(|extension| extension != "py") {
            return Command::new(&self.path);
        }
        let python = std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
        let mut command = Command::new(python);
        command.arg(&self.path);
        command
    }

    fn ask(&self, cases: &[Row], seconds: Duration) -> Result<Vec<Row>> {
        if !self.path.is_file() {
            bail!("`{}` is not built yet", self.path.display());
        }
        let mut command = self.command();
        crate::device::user_environment(&mut command);
        let started = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = match started {
            Ok(child) => child,
            Err(error) => bail!("{:?} does not start: {error}", command.get_program()),
        };
        let request = Request { seconds: seconds.as_secs_f64(), cases };
        if let Some(mut stdin) = child.stdin.take() {
            match stdin.write_all(&serde_json::to_vec(&request)?) {
                // A peer that is absent ends before it reads.
                Err(error) if error.kind() != ErrorKind::BrokenPipe => return Err(error.into()),
                _ => {}
            }
        }
        let output = child.wait_with_output().context("waiting for the peer")?;
        let mut rows = Vec::new();
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            match serde_json::from_str(line).with_context(|| format!("it said `{line}`"))? {
                Line::Skipped { skipped } => eprintln!("{}: skipped: {skipped}", self.name),
                Line::Time(time) => rows.extend(row(cases, time).map(Row::rounded)),
            }
        }
        if !output.status.success() {
            eprintln!("{}: ended early ({})", self.name, output.status);
        }
        Ok(rows)
    }
}

/// A peer's time as a row: what it computed is what our row of that label says.
fn row(cases: &[Row], time: Time) -> Option<Row> {
    let case = cases.iter().find(|case| case.label == time.label)?;
    let times_faster = case.median_ms / time.median_ms;
    Some(Row {
        program: time.program,
        variant: String::new(),
        median_ms: time.median_ms,
        min_ms: time.min_ms,
        max_ms: time.max_ms,
        repetitions: time.repetitions,
        steady: time.steady,
        clock: time.clock,
        tflops: times_faster * case.tflops,
        gigabytes_per_second: times_faster * case.gigabytes_per_second,
        percent_of_ceiling: times_faster * case.percent_of_ceiling,
        max_error: time.max_error,
        bound: 0.0,
        ..case.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peers_time_is_told_in_our_units() {
        let ours = Row { label: "a".into(), median_ms: 2.0, tflops: 3.0, ..Row::default() };
        let line = r#"{"label":"a","program":"other 1","median_ms":1.0,"min_ms":0.9,"max_ms":1.1,
                       "repetitions":10,"steady":true,"clock":"events","max_error":0.001}"#;
        let Line::Time(time) = serde_json::from_str(line).expect("a line") else {
            panic!("it is a time")
        };
        let theirs = row(&[ours], time).expect("of a case");
        assert_eq!((theirs.program.as_str(), theirs.tflops), ("other 1", 6.0));
        let skipped: Line = serde_json::from_str(r#"{"skipped":"no GPU"}"#).expect("a line");
        assert!(matches!(skipped, Line::Skipped { .. }));
    }
}
