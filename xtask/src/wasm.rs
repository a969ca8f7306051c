//! A compiler for wasm32-unknown-unknown: the toolchain's own where it has that target or rustup can add it,
//! otherwise Debian's `rustc-web`, taken out of its packages into the target folder. The latter brings no
//! compiled standard library, so cargo builds it from its sources.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Stop;

const TARGET: &str = "wasm32-unknown-unknown";

/// The workspace's target folder.
pub fn target() -> PathBuf {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let folder = std::env::var_os("CARGO_TARGET_DIR").map_or_else(default, PathBuf::from);
    std::path::absolute(&folder).unwrap_or(folder)
}

/// Where a program is.
pub fn program(name: &str) -> Option<PathBuf> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths).map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// Has a cargo command compile for [`TARGET`].
pub fn use_compiler(command: &mut Command) -> Result<(), Stop> {
    if has_target() || added_by_rustup() {
        return Ok(());
    }
    let folder = target().join("rustc-web");
    if !folder.join("rustc").exists() {
        eprintln!("xtask: taking rustc-web out of Debian's packages");
        unpack(&folder).map_err(|reason| Stop {
            status: 2,
            message: format!(
                "there is no compiler for {TARGET}: {reason}; with rustup, \
                 `rustup target add {TARGET}` installs one"
            ),
        })?;
    }
    command
        .env("RUSTC", folder.join("rustc"))
        .env("RUSTDOC", folder.join("rustdoc"))
        .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", folder.join("wasm-ld"))
        // Building the standard library is not stable in cargo.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_UNSTABLE_BUILD_STD", "std,panic_abort");
    Ok(())
}

/// What a program prints; `None` if it fails.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether the toolchain has the target's standard library.
pub fn has_target() -> bool {
    let Some(libraries) = output("rustc", &["--print", "target-libdir", "--target", TARGET]) else {
        return false;
    };
    let files = fs::read_dir(libraries.trim()).into_iter().flatten().flatten();
    files.into_iter().any(|file| file.file_name().to_string_lossy().starts_with("libstd-"))
}

fn added_by_rustup() -> bool {
    let added =
        Command::new("rustup").args(["target", "add", TARGET]).stdout(Stdio::null()).status();
    added.is_ok_and(|status| status.success()) && has_target()
}

/// The dependency of a Debian package whose name starts so.
fn dependency(package: &str, prefix: &str) -> Option<String> {
    let listed = output("apt-cache", &["depends", package])?;
    let mut names = listed.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    names.find(|name| name.starts_with(prefix)).map(str::to_owned)
}

/// Downloads the packages and takes out of them what a compiler needs.
fn unpack(folder: &Path) -> Result<(), String> {
    let parts = || {
        let std = dependency("libstd-rust-web-dev", "libstd-rust-web-")?;
        let llvm = dependency(&std, "libllvm")?;
        let linker = format!("lld-{}", llvm.strip_prefix("libllvm")?);
        Some([std, llvm, linker])
    };
    let parts = match parts() {
        Some(parts) => parts,
        None => {
            let _ = run(Command::new("apt-get").arg("update"));
            parts().ok_or("this system has no package rustc-web")?
        }
    };
    let fresh = folder.with_extension("new");
    let packages = fresh.join("packages");
    let failed = |error: io::Error| format!("{}: {error}", fresh.display());
    let _ = fs::remove_dir_all(&fresh);
    fs::create_dir_all(&packages).map_err(failed)?;
    run(Command::new("apt-get")
        .args(["-o", "APT::Sandbox::User=root", "download"])
        .args(["rustc-web", "rust-web-src", "libstd-rust-web-dev"])
        .args(&parts)
        .current_dir(&packages))?;
    for package in fs::read_dir(&packages).map_err(failed)?.flatten() {
        run(Command::new("dpkg-deb").arg("--extract").arg(package.path()).arg(&fresh))?;
    }
    fs::remove_dir_all(&packages).map_err(failed)?;
    let linker = format!("wasm-ld{}", parts[2].trim_start_matches("lld"));
    // The programs find their libraries by name, and those are not where the system looks.
    for (name, program) in [("rustc", "rustc"), ("rustdoc", "rustdoc"), ("wasm-ld", &linker)] {
        wrap(&fresh, folder, name, program).map_err(failed)?;
    }
    let _ = fs::remove_dir_all(folder);
    fs::rename(&fresh, folder).map_err(failed)
}

/// Writes a script that starts `program` of the unpacked packages, which will lie in `folder`.
fn wrap(fresh: &Path, folder: &Path, name: &str, program: &str) -> io::Result<()> {
    let root = std::path::absolute(folder)?;
    let root = root.display();
    let libraries = format!("{root}/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    let script = format!(
        "#!/bin/sh\nexport LD_LIBRARY_PATH='{libraries}'\nexec '{root}/usr/bin/{program}' \"$@\"\n"
    );
    let path = fresh.join(name);
    fs::write(&path, script)?;
    make_executable(&path)
}

#[cfg(unix)]
fn make_executable(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

#[cfg(not(unix))]
fn make_executable(_: &Path) -> io::Result<()> {
    Ok(())
}

fn run(command: &mut Command) -> Result<(), String> {
    match command.stdout(io::stderr()).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{command:?} failed: {status}")),
        Err(error) => Err(format!("{command:?} could not run: {error}")),
    }
}
