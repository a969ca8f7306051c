//! The table of `CONFORMANCE.md`: what each suite of cases that others have written gave on each driver.
//!
//! The tests leave one record a suite and driver in cargo's folder for temporary files, a line `suite,
//! driver, passed, total` with tabs between ([`records`]). `cargo xtask conformance` puts them into the
//! table ([`merged`]); rows of drivers and suites that did not run stay as they are. `cargo xtask ci` compares
//! the records of its own test runs with the table ([`differences`]).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::Stop;
use crate::steps::{cannot_run, cargo};

/// The committed file, from the repository's root.
pub const FILE: &str = "CONFORMANCE.md";

/// What stands above the table.
const PREAMBLE: &str = "# Conformance

Cases that others have written, run through this library. `cargo xtask conformance` writes this table from
what the tests counted, `cargo xtask ci` checks it. A case passes or fails; none is skipped.

- **ONNX**: every case of the operator tests of `onnx` 1.23.2 for four operators, through `wgpu_attention::onnx`
  (`tests/onnx.rs`), at ONNX's own tolerances. Those of the five bfloat16 cases of Attention are finer than bfloat16
  itself: there a result passes that lies no further from f64 than the expected output does.
- **llama.cpp flash attention**: the list of its `test_flash_attn_ext` but for quantised types, with data of our own
  (`tests/llama.rs`): a normalised mean square error of at most 5e-4, and this library's own rule as well. On a CPU the
  whole list takes up to half an hour; the tests then run one case in 13, which has every value of every parameter
  beside every head dim. `cargo xtask conformance --all` runs all of it.

| suite | driver | passed | of |
|---|---|---|---|
";

/// A row of the table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    suite: String,
    driver: String,
    passed: String,
    total: String,
}

impl Row {
    fn new<'a>(mut cells: impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut cell = || cells.next().map(|cell| cell.trim().to_owned());
        let row = Self { suite: cell()?, driver: cell()?, passed: cell()?, total: cell()? };
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        (is_number(&row.passed) && is_number(&row.total)).then_some(row)
    }

    fn is_about_the_same(&self, other: &Self) -> bool {
        self.suite == other.suite && self.driver == other.driver
    }
}

/// The rows of a table.
fn rows(table: &str) -> Vec<Row> {
    let cells = |line: &str| Row::new(line.strip_prefix('|')?.split('|'));
    table.lines().filter_map(cells).collect()
}

/// The file, given what it holds and what the tests have recorded.
fn merged(committed: &str, records: &[Row]) -> String {
    let kept = rows(committed).into_iter();
    let kept = kept.filter(|old| !records.iter().any(|new| new.is_about_the_same(old)));
    let mut all: Vec<Row> = kept.chain(records.iter().cloned()).collect();
    all.sort();
    let lines = all.iter().map(|Row { suite, driver, passed, total }| {
        format!("| {suite} | {driver} | {passed} | {total} |\n")
    });
    PREAMBLE.chars().chain(lines.collect::<String>().chars()).collect()
}

/// What the tests have recorded and the file says otherwise, as sentences. It may know nothing of a
/// driver: of a GPU that only this machine has.
fn differences(committed: &str, records: &[Row]) -> Vec<String> {
    let known = rows(committed);
    let differs =
        |new: &&Row| !known.contains(new) && known.iter().any(|row| row.driver == new.driver);
    let sentence = |Row { suite, driver, passed, total }: &Row| {
        format!("the tests gave {passed} of {total} for {suite} on {driver}")
    };
    records.iter().filter(differs).map(sentence).collect()
}

/// The folder of the records.
fn folder() -> Result<PathBuf, Stop> {
    let mut command = cargo("metadata --format-version 1 --no-deps");
    let output = command.output().map_err(|error| cannot_run(&command, &error))?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    match metadata["target_directory"].as_str() {
        Some(target) => Ok(Path::new(target).join("tmp/conformance")),
        None => Err(Stop { status: 1, message: "`cargo metadata` names no target folder".into() }),
    }
}

fn records() -> Result<Vec<Row>, Stop> {
    let folder = folder()?;
    let read = || -> io::Result<Vec<Row>> {
        let mut rows = Vec::new();
        for entry in fs::read_dir(&folder)? {
            let text = fs::read_to_string(entry?.path())?;
            rows.extend(text.lines().filter_map(|line| Row::new(line.split('\t'))));
        }
        rows.sort();
        Ok(rows)
    };
    read().map_err(|error| Stop {
        status: 1,
        message: format!("no records of the tests in {}: {error}", folder.display()),
    })
}

/// Forgets the records of earlier runs.
pub fn forget() -> Result<(), Stop> {
    let folder = folder()?;
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Stop {
            status: 1,
            message: format!("{} cannot be removed: {error}", folder.display()),
        }),
        _ => Ok(()),
    }
}

/// Puts the records into the file.
pub fn write() -> Result<(), Stop> {
    let committed = fs::read_to_string(FILE).unwrap_or_default();
    let text = merged(&committed, &records()?);
    fs::write(FILE, text)
        .map_err(|error| Stop { status: 1, message: format!("{FILE} cannot be written: {error}") })
}

/// Compares the records with the file.
pub fn check() -> Result<(), Stop> {
    let committed = fs::read_to_string(FILE)
        .map_err(|error| Stop { status: 1, message: format!("{FILE} cannot be read: {error}") })?;
    let found = differences(&committed, &records()?);
    if found.is_empty() {
        return Ok(());
    }
    let message = format!(
        "{FILE} says otherwise (`cargo xtask conformance` writes it anew): {}",
        found.join("; ")
    );
    Err(Stop { status: 1, message })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(suite: &str, driver: &str, passed: u32) -> Row {
        let [passed, total] = [passed, 9].map(|number| number.to_string());
        Row { suite: suite.into(), driver: driver.into(), passed, total }
    }

    #[test]
    fn new_rows_replace_old_ones_and_others_stay() {
        let first = merged("", &[row("b", "x", 9), row("a", "x", 8)]);
        assert_eq!(rows(&first), [row("a", "x", 8), row("b", "x", 9)]);
        let second = merged(&first, &[row("a", "x", 9), row("a", "y", 9)]);
        assert_eq!(rows(&second), [row("a", "x", 9), row("a", "y", 9), row("b", "x", 9)]);
        assert_eq!(merged(&second, &[]), second);
    }

    #[test]
    fn every_difference_is_named() {
        let committed = merged("", &[row("a", "x", 9), row("b", "x", 9)]);
        assert_eq!(differences(&committed, &[row("a", "x", 9)]), [""; 0]);
        let records = [row("a", "x", 8), row("c", "x", 9), row("a", "y", 9)];
        let found = differences(&committed, &records);
        let expected = ["the tests gave 8 of 9 for a on x", "the tests gave 9 of 9 for c on x"];
        assert_eq!(found, expected);
    }
}
