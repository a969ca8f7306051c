//! The command-line program: attention over tensors in files, what this machine can run, and how
//! fast.
//!
//! Exit status: 0 when all is well, 1 for a failed check or a run-time failure, 2 for bad input, 3 for a
//! check that found nothing wrong but could not judge every row.
//! With `--json`, stdout holds JSON alone; messages go to stderr.
//! `WGPU_ATTENTION_CACHE` names the folder for compiled kernels, or says `off`.
#![cfg_attr(fuzzing, no_main, allow(dead_code, reason = "the fuzz target stands in for `main`"))]

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use wgpu_attention::Error;

mod bench;
mod check;
mod compute;
mod device;
#[cfg(any(test, fuzzing))]
mod fuzz;
mod info;
mod input;
mod keys;
mod linear;
mod names;
mod output;
mod plot;
mod problem;
mod quality;
mod run;
mod side;

/// The program's name, which its package and the fuzz target do not have.
const NAME: &str = "wgpu-attention";

/// Attention on any GPU that Vulkan, Metal or DX12 reaches.
///
/// Compiled kernels and tuned choices are kept in the system's folder for caches, in the one that the
/// environment's WGPU_ATTENTION_CACHE names, or with WGPU_ATTENTION_CACHE=off nowhere.
#[derive(Parser)]
#[command(name = NAME, version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Info(info::Args),
    Run(run::Args),
    Bench(bench::Args),
    Quality(quality::Args),
}

/// Input that the program cannot use, as a sentence.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct BadInput(String);

/// A check that saw nothing wrong, and could not judge all that it looked at.
#[derive(Debug, thiserror::Error)]
#[error(
    "the check could not judge {rows} of {of} rows: rounding in f32 may err there by more than the \
     result is large"
)]
struct Unjudged {
    rows: usize,
    of: usize,
}

fn bad_input(sentence: impl Into<String>) -> anyhow::Error {
    BadInput(sentence.into()).into()
}

fn main() -> ExitCode {
    // SAFETY: the process has no other thread yet.
    unsafe { device::silence_driver() };
    let default = env_logger::Env::default().default_filter_or("error,wgpu_attention=warn");
    env_logger::Builder::from_env(default).init();
    let done = match Cli::parse().command {
        Command::Info(args) => info::info(&args),
        Command::Run(args) => run::run(&args),
        Command::Bench(args) => bench::bench(&args),
        Command::Quality(args) => quality::quality(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            let unjudged = error.is::<Unjudged>();
            ExitCode::from(if unjudged {
                3
            } else if is_bad_input(&error) {
                2
            } else {
                1
            })
        }
    }
}

/// Whether the user can mend it by asking for something else.
fn is_bad_input(error: &anyhow::Error) -> bool {
    let by_library = |error: &Error| {
        matches!(
            error,
            Error::Tensor { .. }
                | Error::Config { .. }
                | Error::MaskSyntax { .. }
                | Error::SharedBuffer { .. }
                | Error::Limit { .. }
                | Error::Unsupported(_)
        )
    };
    error.chain().any(|cause| {
        cause.is::<BadInput>() || cause.downcast_ref::<Error>().is_some_and(by_library)
    })
}

/// Tells the user on stderr what does not stop the work.
fn warn(sentence: &str) {
    eprintln!("warning: {sentence}");
}

/// Prints to stdout; a reader that has gone away (`| head`) is no failure.
fn print(text: impl std::fmt::Display) -> anyhow::Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::Cli;

    #[test]
    fn the_options_of_all_commands_are_consistent() {
        Cli::command().debug_assert();
    }

    /// What records keep and `--version` says is the program, not the package.
    #[test]
    fn the_program_goes_by_its_own_name() {
        let version = Cli::command().render_version();
        assert_eq!(version, format!("wgpu-attention {}\n", env!("CARGO_PKG_VERSION")));
    }
}
