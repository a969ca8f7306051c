//! The table of `CONFORMANCE.md`: what each suite of cases that others have written gave on each driver.
//!
//! The tests leave one record a suite and driver in cargo's folder for temporary files, a line `suite,
//! driver, passed, total` with tabs between ([`records`]). Rows of GPUs come from the newest record of each
//! ([`crate::record`]). `cargo xtask conformance` puts both into the table ([`merged`]); rows of drivers and
//! suites that did not run stay as they are. `cargo xtask ci` compares the records of its own test runs with the
//! table ([`differences`]), and the records of GPUs with the whole file ([`check_gpus`]).
//!
//! The table of `README.md` that says what ran where is made of the same records ([`crate::platforms`]).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::Stop;
use crate::platforms;
use crate::record::{self, Record};
use crate::steps::{cannot_run, cargo};

/// The committed file, from the repository's root.
pub const FILE: &str = "CONFORMANCE.md";

/// What stands above the table.
const PREAMBLE: &str = "# Conformance

Cases that others have written, run through this library. `cargo xtask conformance` writes this table from
what the tests counted, `cargo xtask ci` checks it. A case passes or fails; none is skipped. Rows of a GPU come from
its newest record, which is named below the table.

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

/// What stands between the table and the list of records.
const RECORDS: &str = "
Records of GPUs, written by `run.sh` of `cargo xtask gpu-bundle`:

";

/// What the records of GPUs say of suites.
fn gpu_rows(gpus: &[Record]) -> Vec<Row> {
    let rows = gpus.iter().flat_map(|record| &record.suites).map(|suite| Row {
        suite: suite.name.clone(),
        driver: suite.device.clone(),
        passed: suite.passed.to_string(),
        total: suite.total.to_string(),
    });
    rows.collect()
}

/// The lines that name the records of GPUs.
fn gpu_list(gpus: &[Record]) -> String {
    if gpus.is_empty() {
        return "- none is kept.\n".into();
    }
    let line = |record: &Record| {
        format!(
            "- {} ({}), {}, commit {}: [{path}]({path})\n",
            record.device,
            record.driver(),
            record.day(),
            record.commit_text(),
            path = record.path
        )
    };
    gpus.iter().map(line).collect()
}

/// The file, given what it holds, what the tests have recorded, and the records of GPUs. Only the last give
/// rows of their GPUs.
fn merged(committed: &str, records: &[Row], gpus: &[Record]) -> String {
    let of_gpus = gpu_rows(gpus);
    let is_of_gpu = |row: &Row| gpus.iter().any(|record| record.device == row.driver);
    let records = records.iter().filter(|row| !is_of_gpu(row));
    let kept = rows(committed).into_iter();
    let kept = kept
        .filter(|old| !is_of_gpu(old) && !records.clone().any(|new| new.is_about_the_same(old)));
    let mut all: Vec<Row> = kept.chain(records.clone().cloned()).chain(of_gpus).collect();
    all.sort();
    let lines = all.iter().map(|Row { suite, driver, passed, total }| {
        format!("| {suite} | {driver} | {passed} | {total} |\n")
    });
    format!("{PREAMBLE}{}{RECORDS}{}", lines.collect::<String>(), gpu_list(gpus))
}

/// What the tests have recorded and the file says otherwise, as sentences. It may know nothing of a
/// driver: of a GPU that only this machine has. What it says of GPUs with records is of their commits.
fn differences(committed: &str, records: &[Row], gpus: &[Record]) -> Vec<String> {
    let known = rows(committed);
    let is_of_gpu = |row: &Row| gpus.iter().any(|record| record.device == row.driver);
    let differs = |new: &&Row| {
        !is_of_gpu(new) && !known.contains(new) && known.iter().any(|row| row.driver == new.driver)
    };
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

/// The text of a committed file.
fn read(file: &str) -> Result<String, Stop> {
    fs::read_to_string(file)
        .map_err(|error| Stop { status: 1, message: format!("{file} cannot be read: {error}") })
}

/// Puts what the tests have just recorded, if they ran, and the records of GPUs into both files.
pub fn write(tests_ran: bool) -> Result<(), Stop> {
    let gpus = record::newest(Path::new("."))?;
    let records = if tests_ran { records()? } else { Vec::new() };
    let conformance = merged(&fs::read_to_string(FILE).unwrap_or_default(), &records, &gpus);
    let readme = platforms::updated(&read(platforms::FILE)?, &gpus)?;
    for (file, text) in [(FILE, conformance), (platforms::FILE, readme)] {
        fs::write(file, text).map_err(|error| Stop {
            status: 1,
            message: format!("{file} cannot be written: {error}"),
        })?;
    }
    Ok(())
}

/// Compares the records of GPUs with both files.
pub fn check_gpus() -> Result<(), Stop> {
    let gpus = record::newest(Path::new("."))?;
    let committed = read(FILE)?;
    let readme = read(platforms::FILE)?;
    let stale = [
        (FILE, merged(&committed, &[], &gpus) == committed),
        (platforms::FILE, platforms::updated(&readme, &gpus)? == readme),
    ];
    match stale.into_iter().find(|(_, same)| !same) {
        None => Ok(()),
        Some((file, _)) => Err(Stop {
            status: 1,
            message: format!(
                "{file} does not say what the newest records in {} say; \
                 `cargo xtask conformance --gpus` writes it anew",
                record::FOLDER
            ),
        }),
    }
}

/// Compares what the tests have recorded with the file.
pub fn check() -> Result<(), Stop> {
    let gpus = record::newest(Path::new("."))?;
    let found = differences(&read(FILE)?, &records()?, &gpus);
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
        let first = merged("", &[row("b", "x", 9), row("a", "x", 8)], &[]);
        assert_eq!(rows(&first), [row("a", "x", 8), row("b", "x", 9)]);
        let second = merged(&first, &[row("a", "x", 9), row("a", "y", 9)], &[]);
        assert_eq!(rows(&second), [row("a", "x", 9), row("a", "y", 9), row("b", "x", 9)]);
        assert_eq!(merged(&second, &[], &[]), second);
    }

    #[test]
    fn every_difference_is_named() {
        let committed = merged("", &[row("a", "x", 9), row("b", "x", 9)], &[]);
        assert_eq!(differences(&committed, &[row("a", "x", 9)], &[]), [""; 0]);
        let records = [row("a", "x", 8), row("c", "x", 9), row("a", "y", 9)];
        let found = differences(&committed, &records, &[]);
        let expected = ["the tests gave 8 of 9 for a on x", "the tests gave 9 of 9 for c on x"];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_gpu_has_the_rows_of_its_record() {
        let gpu = record::tests::sample();
        let before = merged("", &[row("a", "x", 9), row("old", "NVIDIA H200", 1)], &[]);
        assert!(before.ends_with("`:\n\n- none is kept.\n"), "{before}");
        // A machine with the GPU may test it too, at another commit than the record's.
        let here = [row("ONNX Attention", "NVIDIA H200", 1)];
        let gpus = [gpu];
        let after = merged(&before, &here, &gpus);
        assert_eq!(differences(&after, &here, &gpus), [""; 0]);
        let of_gpu: Vec<_> = rows(&after).into_iter().filter(|row| row.driver != "x").collect();
        let cells: Vec<_> =
            of_gpu.iter().map(|row| (&row.suite[..], &row.passed[..], &row.total[..])).collect();
        assert_eq!(cells, [("ONNX Attention", "86", "88"), ("ONNX TensorScatter", "3", "3")]);
        assert!(rows(&after).contains(&row("a", "x", 9)));
        let line = "- NVIDIA H200 (NVIDIA 580.159.04, vulkan), 2026-12-01, commit 1f1bfc5: \
            [benches/records/h200/2026-12-01-tests.txt](benches/records/h200/2026-12-01-tests.txt)\n";
        assert!(after.ends_with(line), "{after}");
        assert_eq!(merged(&after, &[], &gpus), after);
    }
}
