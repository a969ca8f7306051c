//! The fuzz targets of `fuzz/`: run here for as long as somebody likes, replayed from their corpus by tests.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::Stop;
use crate::found::Driver;
use crate::setup::{self, Options, Want};
use crate::steps::{Steps, cargo};

const TARGETS: [&str; 2] = ["texts", "calls"];

/// Runs both targets, each for so many seconds, from the corpus and what earlier runs have found.
pub fn run(steps: &mut Steps, options: &Options, driver: Driver, seconds: u64) -> Result<(), Stop> {
    let run = setup::ready(options, &[Want { driver, required: true }])?;
    let mut version = cargo("fuzz --version");
    let there = version.stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !there.is_ok_and(|status| status.success()) {
        if options.no_install() {
            let message = "`cargo install cargo-fuzz --locked` would install what is missing";
            return Err(Stop { status: 2, message: message.into() });
        }
        steps.run("cargo-fuzz", &mut cargo("install cargo-fuzz --locked"))?;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for target in TARGETS {
        let found = root.join("target/fuzz/corpus").join(target);
        std::fs::create_dir_all(&found).map_err(|error| Stop {
            status: 1,
            message: format!("the folder `{}` cannot be made: {error}", found.display()),
        })?;
        // Rust without `unsafe` has nothing for a sanitizer to find, and drivers no code that it sees into.
        let mut command: Command =
            cargo("fuzz run --sanitizer none --debug-assertions --target-dir target/fuzz");
        command.arg(target).arg(&found).arg(Path::new("fuzz/corpus").join(target));
        command.args(["--", "-timeout=60", "-rss_limit_mb=6000", "-max_len=1024"]);
        // The program prints its reports.
        command.args([format!("-max_total_time={seconds}"), "-close_fd_mask=1".into()]);
        command.current_dir(&root);
        run.iter().for_each(|run| run.pin(&mut command));
        steps.run(&format!("{target} for {seconds} s"), &mut command)?;
    }
    Ok(())
}
