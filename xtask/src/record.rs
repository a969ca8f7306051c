//! Records of the tests on GPUs: the summaries that `run.sh` of a bundle writes, kept as
//! `benches/records/GPU/DATE-tests.txt`.
//!
//! A record is lines of fields parted by tabs; the first field says what the line is. [`Record::parse`] takes
//! records of whole runs alone. [`newest`] gives one a device, for `CONFORMANCE.md` and the table of
//! `README.md`; [`crate::changed`] holds the newest of matrix units against the tree.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::Stop;

/// Where the records lie, from the repository's root.
pub const FOLDER: &str = "benches/records";

/// What a test binary did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Test {
    /// The binary's name.
    pub name: String,
    /// Whether the binary ended well, which all counts below do not say: it may have crashed.
    pub ok: bool,
    pub passed: u32,
    pub failed: u32,
    pub ignored: u32,
    pub seconds: u32,
}

/// How many cases of a suite passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suite {
    pub name: String,
    pub device: String,
    pub passed: u32,
    pub total: u32,
}

/// The record of a run of all tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The file, from the repository's root, with `/` between its parts.
    pub path: String,
    /// The commit that was built, as 40 hexadecimal digits, or `unknown`.
    pub commit: String,
    /// Whether the tree had changes that were not committed.
    pub changed: bool,
    /// Date and time in UTC, `2026-12-01T13:46Z`.
    pub date: String,
    /// The device's short name, as suites name it.
    pub device: String,
    /// The device's name, driver and backend.
    pub adapter: String,
    /// Whether the device has matrix units.
    pub matrix_units: bool,
    pub tests: Vec<Test>,
    pub suites: Vec<Suite>,
    /// Whether the benchmark found every result right; `None` if it did not run.
    pub bench: Option<bool>,
}

impl Record {
    /// Reads a record.
    ///
    /// # Errors
    /// A sentence about what is wrong or missing: a line or field, tests that were left out, the end.
    pub fn parse(path: &str, text: &str) -> Result<Self, String> {
        let lines: Vec<Vec<&str>> = text
            .lines()
            .filter(|line| !line.starts_with('#') && !line.trim().is_empty())
            .map(|line| line.split('\t').map(str::trim).collect())
            .collect();
        let value = |key: &str| {
            let line = lines.iter().find(|line| line[0] == key);
            let field = line.and_then(|line| line.get(1)).filter(|field| !field.is_empty());
            field.map(|field| (*field).to_owned()).ok_or_else(|| format!("it has no `{key}`"))
        };
        let all = |key: &'static str| lines.iter().filter(move |line| line[0] == key);
        let scope = value("scope")?;
        if scope != "all" {
            return Err(format!("it is of some tests only: {scope}"));
        }
        value("result").map_err(|_| "its run has not ended".to_owned())?;
        let date = value("date")?;
        if !is_date(&date) {
            return Err(format!("expected a date like 2026-12-01T13:46Z, got `{date}`"));
        }
        let commit = value("commit")?;
        let is_hash = commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_hash && commit != "unknown" {
            return Err(format!("expected a commit of 40 hexadecimal digits, got `{commit}`"));
        }
        let record = Self {
            path: path.to_owned(),
            commit,
            changed: value("changes")? != "none",
            date,
            device: value("device")?,
            adapter: value("adapter")?,
            matrix_units: value("matrix_units")? == "yes",
            tests: all("test").map(|line| test(line)).collect::<Result<_, _>>()?,
            suites: all("conformance").map(|line| suite(line)).collect::<Result<_, _>>()?,
            bench: all("bench").next().map(|line| line.get(1) == Some(&"ok")),
        };
        if record.tests.is_empty() {
            return Err("it has no `test`".to_owned());
        }
        Ok(record)
    }

    /// The day, `2026-12-01`.
    pub fn day(&self) -> &str {
        self.date.split('T').next().unwrap_or(&self.date)
    }

    /// The commit's first digits, and whether there was more than it holds.
    pub fn commit_text(&self) -> String {
        let short = self.commit.get(..7).unwrap_or(&self.commit);
        let more = if self.changed { " with uncommitted changes" } else { "" };
        format!("{short}{more}")
    }

    /// Driver and backend: what the last parentheses of the adapter hold.
    pub fn driver(&self) -> &str {
        let mut depth = 0;
        for (place, letter) in self.adapter.char_indices().rev() {
            match letter {
                ')' => depth += 1,
                '(' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                let inner = self.adapter.get(place + 1..).and_then(|rest| rest.strip_suffix(')'));
                return inner.unwrap_or(&self.adapter);
            }
        }
        &self.adapter
    }

    /// What ran and how it went, in words.
    pub fn outcome(&self) -> String {
        let sum = |count: fn(&Test) -> u32| self.tests.iter().map(count).sum::<u32>();
        let (passed, failed, ignored) =
            (sum(|test| test.passed), sum(|test| test.failed), sum(|test| test.ignored));
        let mut text = format!(
            "{passed} of {} tests passed in {} binaries",
            passed + failed,
            self.tests.len()
        );
        if ignored > 0 {
            text.push_str(&format!(", {ignored} ignored"));
        }
        let broken: Vec<&str> =
            self.tests.iter().filter(|test| !test.ok).map(|test| test.name.as_str()).collect();
        if !broken.is_empty() {
            text.push_str(&format!(", **failed: {}**", broken.join(", ")));
        }
        match self.bench {
            Some(true) => text.push_str("; benchmark"),
            Some(false) => text.push_str("; **benchmark failed**"),
            None => {}
        }
        text
    }
}

/// Whether a text has the form `2026-12-01T13:46Z`.
fn is_date(text: &str) -> bool {
    let form = "dddd-dd-ddTdd:ddZ";
    text.len() == form.len()
        && text.bytes().zip(form.bytes()).all(|(byte, form)| match form {
            b'd' => byte.is_ascii_digit(),
            other => byte == other,
        })
}

/// The number in a field of a line.
fn number(line: &[&str], place: usize) -> Result<u32, String> {
    let field = line.get(place).copied().unwrap_or_default();
    let wrong = |_| format!("expected a number in field {} of `{}`", place + 1, line.join(" "));
    field.parse().map_err(wrong)
}

/// The text in a field of a line.
fn field(line: &[&str], place: usize) -> Result<String, String> {
    match line.get(place) {
        Some(text) if !text.is_empty() => Ok((*text).to_owned()),
        _ => Err(format!("expected a name in field {} of `{}`", place + 1, line.join(" "))),
    }
}

fn test(line: &[&str]) -> Result<Test, String> {
    Ok(Test {
        name: field(line, 1)?,
        ok: field(line, 2)? == "ok",
        passed: number(line, 3)?,
        failed: number(line, 4)?,
        ignored: number(line, 5)?,
        seconds: number(line, 6)?,
    })
}

fn suite(line: &[&str]) -> Result<Suite, String> {
    Ok(Suite {
        name: field(line, 1)?,
        device: field(line, 2)?,
        passed: number(line, 3)?,
        total: number(line, 4)?,
    })
}

/// The newest record of each device, sorted by device.
pub fn newest(root: &Path) -> Result<Vec<Record>, Stop> {
    let mut records: Vec<Record> = Vec::new();
    for record in all(root)? {
        match records.iter_mut().find(|other| other.device == record.device) {
            Some(other) if (&record.date, &record.path) > (&other.date, &other.path) => {
                *other = record;
            }
            Some(_) => {}
            None => records.push(record),
        }
    }
    records.sort_by(|a, b| a.device.cmp(&b.device));
    Ok(records)
}

/// Every record of tests.
fn all(root: &Path) -> Result<Vec<Record>, Stop> {
    let stop = |message| Stop { status: 1, message };
    let files = files(root)
        .map_err(|error| stop(format!("the folder `{FOLDER}` cannot be read: {error}")))?;
    let mut records = Vec::new();
    for (path, text) in files {
        let record = Record::parse(&path, &text);
        records.push(record.map_err(|reason| stop(format!("`{path}`: {reason}")))?);
    }
    Ok(records)
}

/// The files `benches/records/*/*-tests*.txt` with their texts.
fn files(root: &Path) -> io::Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for folder in fs::read_dir(root.join(FOLDER))? {
        let folder: PathBuf = folder?.path();
        if !folder.is_dir() {
            continue;
        }
        for file in fs::read_dir(&folder)? {
            let file = file?.path();
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.contains("-tests") && name.ends_with(".txt") {
                let gpu = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
                found.push((format!("{FOLDER}/{gpu}/{name}"), fs::read_to_string(&file)?));
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A record as `run.sh` writes it.
    pub const SAMPLE: &str = "# wgpu-attention: tests on a GPU
commit\t1f1bfc52871e5ee0756fa4d9873fcf526e46cd95
changes\tnone
date\t2026-12-01T13:46Z
scope\tall
ways\tplain
device\tNVIDIA H200
adapter\tNVIDIA H200 (NVIDIA 580.159.04, vulkan)
matrix_units\tyes
test\tattention\tok\t20\t0\t0\t12
test\tllama\tok\t1\t0\t1\t31
conformance\tONNX Attention\tNVIDIA H200\t86\t88
conformance\tONNX TensorScatter\tNVIDIA H200\t3\t3
bench\tok\t14
result\tok\t70
";

    /// The sample.
    pub fn sample() -> Record {
        Record::parse("benches/records/h200/2026-12-01-tests.txt", SAMPLE).expect("a record")
    }

    #[test]
    fn a_record_is_read() {
        let record = sample();
        assert_eq!((record.day(), &record.commit_text()[..]), ("2026-12-01", "1f1bfc5"));
        assert_eq!(record.driver(), "NVIDIA 580.159.04, vulkan");
        assert!(record.matrix_units && !record.changed && record.bench == Some(true));
        let [attention, llama] = &record.tests[..] else { panic!("{:?}", record.tests) };
        assert_eq!(
            (&attention.name[..], attention.passed, attention.seconds),
            ("attention", 20, 12)
        );
        assert_eq!((llama.ok, llama.ignored), (true, 1));
        let suites: Vec<_> =
            record.suites.iter().map(|s| (&s.name[..], s.passed, s.total)).collect();
        assert_eq!(suites, [("ONNX Attention", 86, 88), ("ONNX TensorScatter", 3, 3)]);
        assert_eq!(record.outcome(), "21 of 21 tests passed in 2 binaries, 1 ignored; benchmark");
    }

    #[test]
    fn failures_and_changes_are_said() {
        let text = SAMPLE
            .replace("attention\tok\t20\t0", "attention\tFAILED\t19\t1")
            .replace("changes\tnone", "changes\tuncommitted")
            .replace("bench\tok", "bench\tFAILED");
        let record = Record::parse("x", &text).expect("a record");
        assert_eq!(record.commit_text(), "1f1bfc5 with uncommitted changes");
        assert_eq!(
            record.outcome(),
            "20 of 21 tests passed in 2 binaries, 1 ignored, **failed: attention**; \
             **benchmark failed**"
        );
    }

    #[test]
    fn what_is_no_record_of_a_whole_run_is_refused_with_a_sentence() {
        for (old, new, words) in [
            ("scope\tall", "scope\tattention", "some tests only: attention"),
            ("result\tok\t70\n", "", "has not ended"),
            ("2026-12-01T13:46Z", "yesterday", "expected a date"),
            ("1f1bfc52871e5ee0756fa4d9873fcf526e46cd95", "1f1bfc5", "40 hexadecimal digits"),
            ("ok\t20\t0", "ok\tmany\t0", "a number in field 4 of `test attention ok many"),
            ("device\tNVIDIA H200\n", "", "no `device`"),
            ("\t86\t88", "\t86", "field 5"),
            ("test\t", "rest\t", "no `test`"),
        ] {
            let text = SAMPLE.replace(old, new);
            assert_ne!(text, SAMPLE, "{old}");
            let reason = Record::parse("x", &text).expect_err(words);
            assert!(reason.contains(words), "{reason}");
        }
        Record::parse("x", "").expect_err("an empty file is no record");
    }

    #[test]
    fn the_newest_record_of_each_device_is_found() {
        let root = tempfile::tempdir().expect("a folder");
        let write = |path: &str, text: &str| {
            let path = root.path().join(FOLDER).join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, text).expect("written");
        };
        write("h200/2026-12-01-tests.txt", SAMPLE);
        write("h200/2026-12-02-tests.txt", &SAMPLE.replace("2026-12-01", "2026-12-02"));
        write("m4/2026-11-01-tests.txt", &SAMPLE.replace("NVIDIA H200", "Apple M4"));
        write("h200/2026-12-03.csv", "label,detail");
        let paths: Vec<String> =
            newest(root.path()).expect("read").into_iter().map(|record| record.path).collect();
        let expected = [
            "benches/records/m4/2026-11-01-tests.txt",
            "benches/records/h200/2026-12-02-tests.txt",
        ];
        assert_eq!(paths, expected);
        write("m4/2026-12-05-tests.txt", "nothing");
        let stop = newest(root.path()).expect_err("no record");
        assert!(stop.message.contains("m4/2026-12-05-tests.txt`: it has no"), "{}", stop.message);
    }

    #[test]
    fn the_driver_is_what_the_last_parentheses_hold() {
        let driver = |adapter: &str| {
            let record = Record { adapter: adapter.into(), ..sample() };
            record.driver().to_owned()
        };
        assert_eq!(
            driver("llvmpipe (LLVM 19, 256 bits) (llvmpipe Mesa (git), vulkan)"),
            "llvmpipe Mesa (git), vulkan"
        );
        assert_eq!(driver("no parentheses"), "no parentheses");
        assert_eq!(driver("a) b"), "a) b");
    }

    #[test]
    fn the_records_of_this_repository_can_be_read() {
        newest(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).expect("all can be read");
    }
}
