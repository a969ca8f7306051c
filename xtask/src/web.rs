//! `cargo xtask web`: the npm package and the demo page, built, tested and served.
//!
//! The module is compiled for wasm32-unknown-unknown ([`wasm`](crate::wasm) finds a compiler), given its
//! JavaScript by the program `bindgen` and made smaller by npm's binaryen (Debian's own breaks it).

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::packages::Part;
use crate::setup::{self, Options};
use crate::steps::{Steps, cannot_run, cargo};
use crate::{Stop, wasm};

/// Node's package manager.
const NPM: &str = if cfg!(windows) { "npm.cmd" } else { "npm" };

/// What is asked of a run.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Mode {
    /// Build small, and fail if the result is larger than it may be.
    #[arg(long)]
    release: bool,
    /// Run the tests in a browser instead of serving the page; implies --release.
    #[arg(long)]
    check: bool,
}

impl Mode {
    /// What CI runs.
    pub const CHECK: Self = Self { release: true, check: true };
}

/// The builds that tests need not wait for, with what they need installed: of the module that is released, and
/// of the program that makes its glue. Each has a target folder of its own, so that it blocks no other cargo.
pub fn builds(options: &Options) -> Result<Vec<(String, Command)>, Stop> {
    ready(options, true)?;
    Ok(vec![
        ("build of the web module".into(), module_build(true)?),
        ("build of the web glue's program".into(), bindgen("build")),
    ])
}

/// Builds, then tests or serves.
pub fn run(steps: &mut Steps, options: &Options, mode: Mode) -> Result<(), Stop> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../web");
    let release = mode.release || mode.check;
    let browser = steps.time("web set-up", || ready(options, mode.check))?;
    let module = steps.time("web module", || compile(release))?;
    if mode.check && wasm::has_target() {
        let clippy =
            "clippy --package wgpu-attention-web --target wasm32-unknown-unknown -- -D warnings";
        steps.run("web clippy", &mut cargo(clippy))?;
    }
    let mut glue = bindgen("run");
    glue.arg("--").arg(&module).arg(folder.join("pkg"));
    steps.run("web types and glue", &mut glue)?;
    if release {
        steps.run(
            "web tools",
            npm("ci --no-audit --no-fund --loglevel=error").current_dir(&folder),
        )?;
        // Fails if the module is larger than it may be.
        steps.run("web size", npm("run --silent optimise").current_dir(&folder))?;
    }
    if !mode.check {
        let mut server = Command::new("node");
        server.arg("serve.mjs").current_dir(&folder);
        return server.status().map(drop).map_err(|error| cannot_run(&server, &error));
    }
    // The library's own tests leave every shader of the web target in the target folder. The packages are those
    // of all tests: for fewer, cargo might build the dependencies anew, with fewer features.
    let shaders = "test --quiet --workspace --exclude xtask --test shaders --test linear_shaders \
                   web_shaders";
    steps.run("web shaders", &mut cargo(shaders))?;
    let mut tests = npm("test --silent");
    tests.current_dir(&folder).env("WEB_SHADERS", wasm::target().join("tmp/web"));
    if let Some(browser) = browser {
        tests.env("BROWSER", browser);
    }
    steps.run("web tests", &mut tests)
}

/// A command of Node's package manager from its words.
fn npm(words: &str) -> Command {
    let mut command = Command::new(NPM);
    command.args(words.split_whitespace());
    command
}

/// Installs what is missing of Node and, for tests, of a browser, whose path is returned.
fn ready(options: &Options, check: bool) -> Result<Option<PathBuf>, Stop> {
    let missing = || -> Vec<Part> {
        let node = ["node", NPM].iter().all(|name| wasm::program(name).is_some());
        let parts = [(Part::Node, !node), (Part::Browser, check && browser().is_none())];
        parts.into_iter().filter_map(|(part, missing)| missing.then_some(part)).collect()
    };
    setup::install_tools(options, &missing());
    match missing()[..] {
        [] => Ok(browser()),
        ref parts => Err(Stop { status: 2, message: setup::tools_advice(parts) }),
    }
}

/// A browser of Chromium's family.
fn browser() -> Option<PathBuf> {
    ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
        .into_iter()
        .find_map(wasm::program)
}

/// Where cargo puts what is built for the web: another compiler may build the module, which would have the
/// first start anew.
fn target() -> PathBuf {
    wasm::target().join("web")
}

/// The command that compiles the module.
fn module_build(release: bool) -> Result<Command, Stop> {
    let profile = if release { "wasm" } else { "dev" };
    let mut command =
        cargo("build --package wgpu-attention-web --lib --target wasm32-unknown-unknown");
    command.args(["--profile", profile]).env("CARGO_TARGET_DIR", target());
    wasm::use_compiler(&mut command)?;
    Ok(command)
}

/// Compiles the module and returns its path.
fn compile(release: bool) -> Result<PathBuf, Stop> {
    let mut command = module_build(release)?;
    let status = command.status().map_err(|error| cannot_run(&command, &error))?;
    if !status.success() {
        return Err(Stop {
            status: 1,
            message: format!("the build failed ({status}): {command:?}"),
        });
    }
    let folder = if release { "wasm" } else { "debug" };
    Ok(target().join("wasm32-unknown-unknown").join(folder).join("wgpu_attention_web.wasm"))
}

/// Cargo's command `verb` for the program that makes the glue. It runs for a second and takes three times as
/// long to build with the optimisations of the tests.
fn bindgen(verb: &str) -> Command {
    let mut command = cargo(verb);
    command.args(["--quiet", "--package", "xtask", "--features", "bindgen", "--bin", "bindgen"]);
    command.env("CARGO_PROFILE_DEV_OPT_LEVEL", "0").env("CARGO_TARGET_DIR", target().join("glue"));
    command
}
