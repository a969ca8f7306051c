//! The project's own commands: `cargo xtask test`, `cargo xtask bench`, `cargo xtask web`,
//! `cargo xtask gpu-bundle`, `cargo xtask conformance`, `cargo xtask fuzz` and `cargo xtask ci`.
//!
//! The first three are all that a new machine needs besides Rust: each finds out what the machine lacks and
//! installs it where it may ([`setup`]). Exit status: 0 if all is well, 1 for a failed step, 2 if
//! something is missing that could not be installed; `bench` otherwise ends with the program's own status.
//! xtask itself writes to stderr alone, so that `bench -- --json` can be piped.

mod bundle;
mod changed;
mod conformance;
mod dependencies;
mod found;
mod fuzz;
mod packages;
mod platforms;
mod record;
mod setup;
mod steps;
mod wasm;
mod web;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Parser;

use found::Driver;
use setup::{Options, Run, Want};
use steps::{Steps, cargo};

/// The project's own commands.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Task {
    /// Install what is missing, then run all tests on every driver that the machine has.
    Test {
        #[command(flatten)]
        options: Options,
        /// Run on this driver alone.
        #[arg(long)]
        driver: Option<Driver>,
        #[command(flatten)]
        ways: Ways,
        /// Arguments for `cargo test`.
        #[arg(last = true)]
        args: Vec<OsString>,
    },
    /// Install what is missing, then run the benchmark, on the GPU if there is one.
    Bench {
        #[command(flatten)]
        options: Options,
        /// Arguments for `wgpu-attention bench`.
        #[arg(last = true)]
        args: Vec<OsString>,
    },
    /// Make one archive with the program, the tests that use a device, and a script that runs them on
    /// a machine without Rust.
    GpuBundle {
        /// Where the archive goes [default: gpu-bundle.tar.xz in cargo's target folder].
        #[arg(long, value_name = "FILE.tar.xz")]
        output: Option<PathBuf>,
    },
    /// Install what is missing, then run the suites that others have written and write
    /// CONFORMANCE.md and the table of README.md.
    Conformance {
        #[command(flatten)]
        options: Options,
        /// Run on this driver alone.
        #[arg(long)]
        driver: Option<Driver>,
        /// Run on CPUs, too, what takes half an hour there.
        #[arg(long)]
        all: bool,
        /// Run nothing: write what the newest records of GPUs say.
        #[arg(long, conflicts_with_all = ["driver", "all"])]
        gpus: bool,
    },
    /// Install what is missing, then draw texts, files and calls from bytes and see that nothing breaks.
    Fuzz {
        #[command(flatten)]
        options: Options,
        /// Run on this driver.
        #[arg(long, default_value = "lavapipe")]
        driver: Driver,
        /// How long each of the two targets runs.
        #[arg(long, value_name = "N", default_value_t = 600)]
        seconds: u64,
    },
    /// Install what is missing, build the package for browsers, and serve the demo page.
    Web {
        #[command(flatten)]
        options: Options,
        #[command(flatten)]
        mode: web::Mode,
    },
    /// Run every check that a change must pass, and stop at the first that fails.
    Ci {
        #[command(flatten)]
        options: Options,
    },
}

/// Why a command ended early.
#[derive(Debug)]
pub struct Stop {
    /// The exit status.
    pub status: u8,
    /// A sentence for the user.
    pub message: String,
}

fn main() -> ExitCode {
    let outcome = match Task::parse() {
        Task::Test { options, driver, ways, args } => test(&options, driver, &ways, &args),
        Task::Bench { options, args } => bench(&options, &args),
        Task::GpuBundle { output } => gpu_bundle(output),
        Task::Conformance { gpus: true, .. } => {
            conformance::write(false).map(|()| ExitCode::SUCCESS)
        }
        Task::Conformance { options, driver, all, .. } => write_conformance(&options, driver, all),
        Task::Fuzz { options, driver, seconds } => {
            timed(|steps| fuzz::run(steps, &options, driver, seconds))
        }
        Task::Web { options, mode } => timed(|steps| web::run(steps, &options, mode)),
        Task::Ci { options } => timed(|steps| ci_steps(steps, &options)),
    };
    match outcome {
        Ok(code) => code,
        Err(stop) => {
            eprintln!("xtask: {}", stop.message);
            ExitCode::from(stop.status)
        }
    }
}

/// Whether this run decides over a change: then what cannot be tested is a failure, not a skip.
fn in_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| !["", "0", "false"].contains(&value.as_str()))
}

/// Other ways to run the same tests, which `tests/common` reads from the environment.
#[derive(clap::Args, Default)]
struct Ways {
    /// Compile shaders with all run-time checks: every index, loop and byte of workgroup memory.
    #[arg(long)]
    checked: bool,
    /// Submit every workgroup by itself.
    #[arg(long)]
    pieces: bool,
}

fn test(
    options: &Options,
    driver: Option<Driver>,
    ways: &Ways,
    args: &[OsString],
) -> Result<ExitCode, Stop> {
    let strict = in_ci();
    let runs = setup::ready(options, &setup::wanted(&options.found(), driver, strict))?;
    timed(|steps| test_runs(steps, &runs, args, strict, ways, Vec::new()))
}

/// Runs the tests once per driver, from the same binaries and side by side: most of their time goes into
/// the drivers' compilers, which use one core each.
///
/// The first run is of everything. The others are of the tests that use a device: a driver cannot change what the
/// rest says. A choice of tests by the user holds for all runs. The commands in `beside` run at the same time,
/// where one driver's run leaves a core idle.
///
/// xtask is left out: it could not be replaced while it runs (on Windows), and `ci` tests it separately.
fn test_runs(
    steps: &mut Steps,
    runs: &[Run],
    args: &[OsString],
    strict: bool,
    ways: &Ways,
    beside: Vec<(String, Command)>,
) -> Result<(), Stop> {
    let tests = "test --workspace --exclude xtask";
    steps.run("build of the tests", cargo(tests).arg("--no-run").args(args))?;
    let mut commands = Vec::new();
    for (index, run) in runs.iter().enumerate() {
        let mut command = cargo(tests);
        if args.is_empty() && index > 0 {
            for name in bundle::device_tests()? {
                command.args(["--test", &name]);
            }
        }
        command.args(args);
        run.pin(&mut command);
        for (wanted, variable) in [
            (strict, "WGPU_ATTENTION_REQUIRE_ADAPTER"),
            (ways.checked, "WGPU_ATTENTION_CHECKED_SHADERS"),
            (ways.pieces, "WGPU_ATTENTION_SMALL_PIECES"),
        ] {
            if wanted {
                command.env(variable, "1");
            }
        }
        commands.push((format!("test on {}", run.driver.name()), command));
    }
    commands.extend(beside);
    steps.run_together(commands)
}

fn write_conformance(
    options: &Options,
    driver: Option<Driver>,
    all: bool,
) -> Result<ExitCode, Stop> {
    let runs = setup::ready(options, &setup::wanted(&options.found(), driver, true))?;
    conformance::forget()?;
    let mut steps = Steps::default();
    for run in &runs {
        let mut command =
            cargo("test --package wgpu-attention --test onnx --test llama --no-fail-fast");
        run.pin(&mut command);
        command.env("WGPU_ATTENTION_REQUIRE_ADAPTER", "1");
        if all {
            command.env("WGPU_ATTENTION_ALL_CASES", "1");
        }
        // A suite that fails is a row of the table like any other.
        let _ = steps.run(&format!("suites on {}", run.driver.name()), &mut command);
    }
    steps.summarise();
    conformance::write(true)?;
    Ok(ExitCode::SUCCESS)
}

fn bench(options: &Options, args: &[OsString]) -> Result<ExitCode, Stop> {
    // The environment stays as it is: the program chooses among the adapters, or the user by `--adapter`.
    setup::ready(options, &[Want { driver: Driver::System, required: true }])?;
    let mut command = cargo("run --release --package wgpu-attention-cli -- bench");
    let status =
        command.args(args).status().map_err(|error| steps::cannot_run(&command, &error))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(1)))
}

fn gpu_bundle(output: Option<PathBuf>) -> Result<ExitCode, Stop> {
    let mut steps = Steps::default();
    let archive = bundle::gpu_bundle(&mut steps, output);
    steps.summarise();
    let archive = archive?;
    let size = std::fs::metadata(&archive).map_or(0, |metadata| metadata.len());
    eprintln!("{} ({:.1} MiB)", archive.display(), size as f64 / f64::from(1 << 20));
    Ok(ExitCode::SUCCESS)
}

/// Does steps and prints their times.
fn timed(task: impl FnOnce(&mut Steps) -> Result<(), Stop>) -> Result<ExitCode, Stop> {
    let mut steps = Steps::default();
    let outcome = task(&mut steps);
    steps.summarise();
    outcome.map(|()| ExitCode::SUCCESS)
}

/// The cheap steps come first. Documentation follows the check of the library alone, whose dependencies are
/// compiled alike.
fn ci_steps(steps: &mut Steps, options: &Options) -> Result<(), Stop> {
    steps.run("format", &mut cargo("fmt --all --check"))?;
    steps.time("package contents", || check_package(Path::new(env!("CARGO_MANIFEST_DIR"))))?;
    steps.run("tests of xtask", &mut cargo("test --package xtask"))?;
    steps.time("records of GPUs", conformance::check_gpus)?;
    if let Some(warning) = changed::warning(Path::new("."))? {
        steps.warn(warning);
    }
    steps.time("dependencies", dependencies::check)?;
    let runs = steps
        .time("set-up", || setup::ready(options, &setup::wanted(&options.found(), None, true)))?;
    steps.run("clippy", &mut cargo("clippy --workspace --all-targets -- -D warnings"))?;
    steps.run(
        "clippy of the library alone",
        &mut cargo("clippy --package wgpu-attention --lib -- -D warnings"),
    )?;
    steps.run(
        "documentation",
        cargo("doc --package wgpu-attention --lib --no-deps").env("RUSTDOCFLAGS", "-D warnings"),
    )?;
    conformance::forget()?;
    let beside = steps.time("web set-up", || web::builds(options))?;
    test_runs(steps, &runs, &[], true, &Ways::default(), beside)?;
    steps.time("conformance", conformance::check)?;
    web::run(steps, options, web::Mode::CHECK)
}

/// The published package is useless without the shaders that the library includes.
fn check_package(xtask: &Path) -> Result<(), Stop> {
    let mut command = cargo("package --package wgpu-attention --list --allow-dirty");
    let output = command.output().map_err(|error| steps::cannot_run(&command, &error))?;
    let fail = |message| Stop { status: 1, message };
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        return Err(fail(format!("`cargo package --list` failed:\n{reason}")));
    }
    let mut shaders = Vec::new();
    collect_shaders(&xtask.join("../shaders"), "shaders", &mut shaders)
        .map_err(|error| fail(format!("the folder `shaders` cannot be read: {error}")))?;
    let listed = String::from_utf8_lossy(&output.stdout);
    match unlisted(&shaders, &listed)[..] {
        [] => Ok(()),
        ref absent => Err(fail(format!("`cargo package` leaves out {}", absent.join(", ")))),
    }
}

/// Adds every `.wgsl` file below `folder` to `shaders`, as a path that starts with `prefix`.
fn collect_shaders(folder: &Path, prefix: &str, shaders: &mut Vec<String>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let path = format!("{prefix}/{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            collect_shaders(&entry.path(), &path, shaders)?;
        } else if path.ends_with(".wgsl") {
            shaders.push(path);
        }
    }
    Ok(())
}

/// Those of `shaders` that are not a line of `listed`. Cargo lists with the system's own separator.
fn unlisted<'a>(shaders: &'a [String], listed: &str) -> Vec<&'a str> {
    let listed: Vec<String> = listed.lines().map(|line| line.replace('\\', "/")).collect();
    shaders.iter().filter(|shader| !listed.contains(shader)).map(String::as_str).collect()
}
