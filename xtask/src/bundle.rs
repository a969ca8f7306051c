//! One archive with everything that tests and times the kernels on a machine without Rust.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::Stop;
use crate::changed;
use crate::steps::{Steps, cannot_run, cargo};

/// What the archive unpacks to.
const NAME: &str = "wgpu-attention-bundle";

/// What the source of a test says if the test uses a device; the others prove nothing more on a GPU.
const USES_DEVICE: [&str; 3] = ["context()", "Context::request", "Context::from_adapter"];

/// What xz is told. The test binaries hold nearly the same code: a dictionary that holds all of them makes the
/// archive a third as large as one of the usual size does. More effort (preset 9e) gains nothing, and a filter for
/// machine code (`--x86`) loses a seventh.
const XZ: [&str; 3] = ["--threads=1", "--lzma2=preset=6,dict=256MiB", "--stdout"];

/// How large the archive may be, in bytes: what can be handed to a machine with a GPU.
const LARGEST: u64 = 30 << 20;

/// Builds in release mode and packs: the program, the test binaries that use a device, their data,
/// the fuzz corpus, the scripts that time peers, the commit, and `run.sh`.
pub fn gpu_bundle(steps: &mut Steps, output: Option<PathBuf>) -> Result<PathBuf, Stop> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let commit = changed::commit(&root);
    let built = steps.time("build", build)?;
    let target = built.program.parent().and_then(Path::parent).unwrap_or(Path::new("target"));
    let output = output.unwrap_or_else(|| target.join("gpu-bundle.tar.xz"));
    let folder = target.join(NAME);
    steps.time("pack", || {
        fill(&folder, &root, &built, &commit).map_err(|error| Stop {
            status: 1,
            message: format!("the folder `{}` cannot be filled: {error}", folder.display()),
        })?;
        pack(target, NAME, &output)?;
        let size = fs::metadata(&output).map_or(u64::MAX, |metadata| metadata.len());
        check_size(size)
    })?;
    if commit.1 {
        eprintln!(
            "xtask: the bundle holds changes that no commit holds, and its record will say so"
        );
    }
    Ok(output)
}

/// Writes a folder of `parent` into an archive.
fn pack(parent: &Path, name: &str, output: &Path) -> Result<(), Stop> {
    let file = fs::File::create(output).map_err(|error| Stop {
        status: 1,
        message: format!("`{}` cannot be written: {error}", output.display()),
    })?;
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(parent).args(["-cf", "-", name]).stdout(Stdio::piped());
    let mut packing = tar.spawn().map_err(|error| cannot_run(&tar, &error))?;
    let mut xz = Command::new("xz");
    xz.args(XZ).stdout(file);
    xz.stdin(packing.stdout.take().map_or_else(Stdio::null, Stdio::from));
    let compressed = xz.status();
    let packed = packing.wait();
    for (command, status) in [(&xz, compressed), (&tar, packed)] {
        let status = status.map_err(|error| cannot_run(command, &error))?;
        if !status.success() {
            return Err(Stop { status: 1, message: format!("{command:?} failed ({status})") });
        }
    }
    Ok(())
}

fn check_size(size: u64) -> Result<(), Stop> {
    if size <= LARGEST {
        return Ok(());
    }
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    Err(Stop {
        status: 1,
        message: format!(
            "expected an archive of at most {:.0} MiB, got {:.1} MiB",
            mebibytes(LARGEST),
            mebibytes(size)
        ),
    })
}

/// What cargo has built.
struct Built {
    program: PathBuf,
    tests: Vec<(String, PathBuf)>,
}

fn build() -> Result<Built, Stop> {
    let mut command = cargo(
        "test --release --package wgpu-attention --package wgpu-attention-cli --bins --tests --no-run \
         --message-format json-render-diagnostics",
    );
    let output =
        command.stderr(Stdio::inherit()).output().map_err(|error| cannot_run(&command, &error))?;
    let fail = |message: String| Stop { status: 1, message };
    if !output.status.success() {
        return Err(fail(format!("{command:?} failed ({})", output.status)));
    }
    let artifacts = artifacts(&String::from_utf8_lossy(&output.stdout));
    let mut built = Built { program: PathBuf::new(), tests: Vec::new() };
    for Artifact { name, kind, source, executable } in artifacts {
        match kind.as_str() {
            "bin" if !executable.components().any(|part| part.as_os_str() == "deps") => {
                built.program = executable;
            }
            "test" => {
                let uses = uses_device(Path::new(&source))
                    .map_err(|error| fail(format!("`{source}` cannot be read: {error}")))?;
                if uses {
                    built.tests.push((name, executable));
                }
            }
            _ => {}
        }
    }
    if built.program.as_os_str().is_empty() || built.tests.is_empty() {
        return Err(fail("cargo built no program or no tests".into()));
    }
    match twice(&built.tests) {
        Some(name) => {
            Err(fail(format!("two tests are named `{name}`, and the bundle has one folder")))
        }
        None => Ok(built),
    }
}

/// A name that tests of two packages share: one would take the other's place in the bundle.
fn twice(tests: &[(String, PathBuf)]) -> Option<&str> {
    let mut seen = BTreeSet::new();
    tests.iter().map(|(name, _)| name.as_str()).find(|name| !seen.insert(*name))
}

/// Whether the test of a source file uses a device; a test in a folder of its own is all files there.
fn uses_device(source: &Path) -> io::Result<bool> {
    let says = |path: &Path| -> io::Result<bool> {
        let text = fs::read_to_string(path)?;
        Ok(USES_DEVICE.iter().any(|words| text.contains(words)))
    };
    if says(source)? {
        return Ok(true);
    }
    if source.file_name().is_some_and(|name| name == "main.rs") {
        for entry in fs::read_dir(source.parent().unwrap_or(Path::new(".")))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "rs") && says(&path)? {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// The names of the tests of library and program that use a device, in their order.
pub fn device_tests() -> Result<Vec<String>, Stop> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let read = || -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        let library = fs::read_dir(root.join("tests"))?;
        for entry in library.chain(fs::read_dir(root.join("cli/tests"))?) {
            let path = entry?.path();
            // A file is a test, and so is a folder with a `main.rs`.
            let inner = path.join("main.rs");
            let source = if inner.is_file() { &inner } else { &path };
            let is_rust = source.extension().is_some_and(|extension| extension == "rs");
            if is_rust && uses_device(source)? {
                names.push(path.file_stem().unwrap_or_default().to_string_lossy().into_owned());
            }
        }
        names.sort();
        Ok(names)
    };
    read()
        .map_err(|error| Stop { status: 1, message: format!("the tests cannot be read: {error}") })
}

#[derive(Debug, PartialEq)]
struct Artifact {
    name: String,
    /// `bin` or `test`.
    kind: String,
    source: String,
    executable: PathBuf,
}

/// The executables among cargo's messages, which are JSON, one a line.
fn artifacts(messages: &str) -> Vec<Artifact> {
    let artifact = |line: &str| {
        let message: Value = serde_json::from_str(line).ok()?;
        let target = &message["target"];
        Some(Artifact {
            name: target["name"].as_str()?.into(),
            kind: target["kind"][0].as_str()?.into(),
            source: target["src_path"].as_str()?.into(),
            executable: message["executable"].as_str()?.into(),
        })
    };
    messages.lines().filter_map(artifact).collect()
}

fn fill(
    folder: &Path,
    root: &Path,
    built: &Built,
    (commit, changed): &(String, bool),
) -> io::Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    let [tests, data, peers, corpus] =
        ["tests", "data", "peers", "corpus/calls"].map(|name| folder.join(name));
    for folder in [&tests, &data, &peers, &corpus] {
        fs::create_dir_all(folder)?;
    }
    fs::copy(&built.program, folder.join("wgpu-attention"))?;
    for (name, executable) in &built.tests {
        fs::copy(executable, tests.join(name))?;
    }
    let is = |extension: &'static str| {
        move |path: &Path| path.extension().is_some_and(|found| found == extension)
    };
    copy_files(&root.join("tests/data"), &data, is("safetensors"))?;
    copy_files(&root.join("fuzz/corpus/calls"), &corpus, Path::is_file)?;
    let changes = if *changed { "uncommitted" } else { "none" };
    fs::write(folder.join("commit.tsv"), format!("commit\t{commit}\nchanges\t{changes}\n"))?;
    copy_files(&root.join("benches/peers"), &peers, is("py"))?;
    // A peer that is a crate comes along where somebody has built it.
    for entry in fs::read_dir(root.join("benches/peers"))? {
        let release = entry?.path().join("target/release");
        if release.is_dir() {
            let is_program = |path: &Path| {
                path.is_file()
                    && path.extension().is_none()
                    && path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("peer-"))
            };
            copy_files(&release, &peers, is_program)?;
        }
    }
    let script = folder.join("run.sh");
    fs::write(&script, include_str!("run.sh"))?;
    let executable = fs::metadata(&built.program)?.permissions();
    fs::set_permissions(script, executable)
}

/// Copies those files of a folder that are wanted.
fn copy_files(from: &Path, to: &Path, wanted: impl Fn(&Path) -> bool) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        if wanted(&path) {
            fs::copy(&path, to.join(path.file_name().unwrap_or_default()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Record;

    #[test]
    fn executables_are_found_among_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"a","src_path":"/a.rs"},"executable":null}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"sparse","src_path":"/t.rs"},"executable":"/deps/sparse-1"}
{"reason":"build-finished","success":true}"#;
        let found = artifacts(messages);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].name.as_str(), found[0].kind.as_str()), ("sparse", "test"));
    }

    /// By the functions of `tests/common` that give a device, and by those of the library.
    #[test]
    fn tests_that_use_a_device_are_known_by_their_sources() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for (name, expected) in [
            ("tests/attention.rs", true),
            ("tests/sparse.rs", true),
            ("tests/fuzz/main.rs", true),
            ("tests/tolerance.rs", false),
            ("tests/shaders.rs", false),
            ("cli/tests/cli.rs", true),
            ("cli/tests/cli_bench.rs", true),
            ("cli/tests/cli_linear.rs", true),
        ] {
            assert_eq!(uses_device(&root.join(name)).expect("a test"), expected, "{name}");
        }
        let names = device_tests().expect("readable");
        for (name, expected) in
            [("attention", true), ("fuzz", true), ("cli", true), ("mask", false), ("common", false)]
        {
            assert_eq!(names.iter().any(|found| found == name), expected, "{name}");
        }
        let folder = tempfile::tempdir().expect("a folder");
        let main = folder.path().join("main.rs");
        fs::write(&main, "mod draw;").expect("written");
        assert!(!uses_device(&main).expect("readable"));
        fs::write(folder.path().join("draw.rs"), "let c = context();").expect("written");
        assert!(uses_device(&main).expect("readable"));
    }

    #[test]
    fn tests_of_two_packages_have_names_of_their_own() {
        let built = |names: &[&str]| -> Vec<(String, PathBuf)> {
            names.iter().map(|name| ((*name).to_owned(), format!("/deps/{name}").into())).collect()
        };
        assert_eq!(twice(&built(&["attention", "linear", "cli_linear"])), None);
        assert_eq!(twice(&built(&["attention", "linear", "cli", "linear"])), Some("linear"));
    }

    #[test]
    fn archives_beyond_the_limit_are_refused() {
        check_size(LARGEST).expect("as large as it may be");
        let stop = check_size(LARGEST + (1 << 20)).expect_err("larger");
        assert_eq!(stop.message, "expected an archive of at most 30 MiB, got 31.0 MiB");
    }

    /// A bundle whose programs are scripts, packed, unpacked and run: the summary is a record.
    #[cfg(unix)]
    #[test]
    fn a_bundle_runs_and_its_summary_is_a_record() {
        use std::os::unix::fs::PermissionsExt as _;
        let place = tempfile::tempdir().expect("a folder");
        let built_folder = place.path().join("built");
        fs::create_dir(&built_folder).expect("a folder");
        let script = |name: &str, text: &str| {
            let path = built_folder.join(name);
            fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("set");
            path
        };
        let result = "test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out";
        let records = "\"$WGPU_ATTENTION_TEST_RECORDS\"";
        let good = script(
            "good",
            &format!(
                "printf 'device\tThe GPU\nadapter\tThe GPU (its driver 1, vulkan)\nmatrix_units\tyes\n' \
                 >{records}/device.tsv
                 mkdir -p {records}/conformance
                 printf 'A suite\tThe GPU\t7\t8\n' >{records}/conformance/a.tsv
                 ls \"$WGPU_ATTENTION_FUZZ_CORPUS/calls\" | grep -q . || exit 1
                 ls \"$WGPU_ATTENTION_TEST_DATA\" | grep -q safetensors || exit 1
                 echo '{result}'"
            ),
        );
        let crash =
            script("crash", "echo 'test one ... ok'; echo 'test two ... FAILED'; kill -9 $$");
        let program = script("wgpu-attention", "[ \"$1\" != bench ] || echo \"times of $*\"");
        let tests = vec![("good".into(), good), ("pieces".into(), crash.clone())];
        let built = Built { program, tests };
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let commit = ("ab".repeat(20), false);
        fill(&place.path().join(NAME), &root, &built, &commit).expect("filled");
        let archive = place.path().join("b.tar.xz");
        pack(place.path(), NAME, &archive).expect("packed");
        let elsewhere = place.path().join("else where");
        fs::create_dir(&elsewhere).expect("a folder");
        let unpacked =
            Command::new("tar").arg("-xJf").arg(&archive).current_dir(&elsewhere).status();
        assert!(unpacked.expect("tar runs").success());

        let run = |tests: Option<&str>, limit: &str, results: &str| {
            let mut command = Command::new(elsewhere.join(NAME).join("run.sh"));
            command.arg(results).current_dir(&elsewhere).env("LIMIT", limit).env_remove("TESTS");
            if let Some(tests) = tests {
                command.env("TESTS", tests);
            }
            let output = command.output().expect("runs");
            let files = fs::read_dir(elsewhere.join(results)).expect("results");
            let mut paths = files.map(|file| file.expect("a file").path());
            let summary = paths.find(|path| path.to_string_lossy().ends_with("-tests.txt"));
            let text = fs::read_to_string(summary.expect("a summary")).expect("readable");
            (output.status.code(), text, String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let (status, text, said) = run(None, "100", "all results");
        let record =
            Record::parse("x", &text).unwrap_or_else(|reason| panic!("{reason}: {text}\n{said}"));
        assert_eq!((status, &record.commit), (Some(1), &commit.0), "{text}");
        assert_eq!((&record.device[..], record.driver()), ("The GPU", "its driver 1, vulkan"));
        let [good, pieces] = &record.tests[..] else { panic!("{text}") };
        assert_eq!((good.ok, good.passed, good.failed, good.ignored), (true, 2, 0, 1), "{text}");
        assert_eq!((pieces.ok, pieces.passed, pieces.failed), (false, 1, 1), "{text}");
        assert!(said.contains("test two ... FAILED") && said.contains("times of bench"), "{said}");
        assert_eq!(record.suites.len(), 1, "{text}");
        assert_eq!((record.suites[0].passed, record.suites[0].total), (7, 8));
        assert_eq!(record.bench, Some(true));
        assert!(text.contains("\nresult\tFAILED\t"), "{text}");

        let (status, text, said) = run(Some("good"), "100", "some");
        assert_eq!(status, Some(0), "{text}{said}");
        let reason = Record::parse("x", &text).expect_err("of one test only");
        assert!(reason.contains("some tests only: good"), "{reason}");
        let (status, text, said) = run(Some("good"), "0", "late");
        assert_eq!(status, Some(1), "{text}");
        assert!(text.contains("test\tgood\tFAILED\t0\t0\t0\t0"), "{text}");
        assert!(said.contains("out of time"), "{said}");
    }
}
