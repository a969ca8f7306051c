//! What the tests of the program share: what the library's tests share, and the program itself.

#[path = "../../../tests/common/mod.rs"]
mod library;

use std::process::Command;

#[allow(unused_imports, reason = "every test binary uses a part of this")]
pub use library::{context, data};

/// A command that starts the program, which lies elsewhere on a machine without the sources.
pub fn program() -> Command {
    let mut program = Command::new(
        std::env::var_os("WGPU_ATTENTION_PROGRAM")
            .unwrap_or_else(|| env!("CARGO_BIN_EXE_wgpu-attention").into()),
    );
    // The user's own is none of the tests' business.
    program.env("WGPU_ATTENTION_CACHE", "off");
    program
}
