//! One archive with everything that tests and times the kernels on a machine without Rust.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::Stop;
use crate::steps::{Steps, cannot_run, cargo};

/// What the archive unpacks to.
const NAME: &str = "wgpu-attention-bundle";

/// What a test's source says when it uses a device; the others prove nothing more on a GPU.
const USES_DEVICE: &str = "context()";

/// Builds in release mode and packs: the program, the test binaries that use a device, their data,
/// the scripts that time peers, and `run.sh`.
pub fn gpu_bundle(steps: &mut Steps, output: Option<PathBuf>) -> Result<PathBuf, Stop> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let built = steps.time("build", build)?;
    steps.time("pack", || {
        let target = built.program.parent().and_then(Path::parent).unwrap_or(Path::new("target"));
        let output = output.unwrap_or_else(|| target.join("gpu-bundle.tar.gz"));
        let folder = target.join(NAME);
        fill(&folder, &root, &built).map_err(|error| Stop {
            status: 1,
            message: format!("the folder `{}` cannot be filled: {error}", folder.display()),
        })?;
        let mut tar = Command::new("tar");
        tar.arg("-czf").arg(&output).arg("-C").arg(target).arg(NAME);
        match tar.status().map_err(|error| cannot_run(&tar, &error))? {
            status if status.success() => Ok(output),
            status => Err(Stop { status: 1, message: format!("{tar:?} failed ({status})") }),
        }
    })
}

/// What cargo has built.
struct Built {
    program: PathBuf,
    tests: Vec<(String, PathBuf)>,
}

fn build() -> Result<Built, Stop> {
    let mut command = cargo(
        "test --release --package wgpu-attention --features cli --bins --tests --no-run \
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
                let text = fs::read_to_string(&source)
                    .map_err(|error| fail(format!("`{source}` cannot be read: {error}")))?;
                if text.contains(USES_DEVICE) {
                    built.tests.push((name, executable));
                }
            }
            _ => {}
        }
    }
    if built.program.as_os_str().is_empty() || built.tests.is_empty() {
        return Err(fail("cargo built no program or no tests".into()));
    }
    Ok(built)
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

fn fill(folder: &Path, root: &Path, built: &Built) -> io::Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    let [tests, data, peers] = ["tests", "data", "peers"].map(|name| folder.join(name));
    for folder in [&tests, &data, &peers] {
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

    #[test]
    fn executables_are_found_among_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"a","src_path":"/a.rs"},"executable":null}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"sparse","src_path":"/t.rs"},"executable":"/deps/sparse-1"}
{"reason":"build-finished","success":true}"#;
        let found = artifacts(messages);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].name.as_str(), found[0].kind.as_str()), ("sparse", "test"));
    }

    #[test]
    fn the_tests_of_attention_use_a_device_and_those_of_text_do_not() {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests");
        for (name, expected) in [("attention", true), ("sparse", true), ("tolerance", false)] {
            let text = fs::read_to_string(tests.join(format!("{name}.rs"))).expect("a test");
            assert_eq!(text.contains(USES_DEVICE), expected, "{name}");
        }
    }
}
