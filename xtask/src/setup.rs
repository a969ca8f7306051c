//! What the tests and the benchmark need beyond Rust, and how to get it.
//!
//! macOS and Windows bring their graphics driver along. Linux needs the Vulkan loader and a driver: a GPU's
//! own, or one that computes on the CPU. The two of those that the tests use differ on purpose: lavapipe
//! has subgroups of 8 and native f16, SwiftShader has subgroups of 4, no f16 and 256 invocations to a
//! workgroup.
//!
//! [`Found`] is what a look at the file system says, [`wanted`] which drivers a command uses, and
//! [`missing`] the difference between the two. Only [`ready`] acts: it installs what it may, then reports.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Stop;
use crate::found::{Driver, Found, below};
use crate::packages::{Family, Part};

/// A driver that a command uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// Which one.
    pub driver: Driver,
    /// Whether the command fails without it; otherwise it skips the driver and says so.
    pub required: bool,
}

/// The drivers that the tests run on, the first of them with everything there is to run.
///
/// `chosen` is the user's own choice. `strict` is CI, where both software drivers are required. Elsewhere a
/// machine with a GPU tests that GPU and those software drivers that happen to be installed.
pub fn wanted(found: &Found, chosen: Option<Driver>, strict: bool) -> Vec<Want> {
    let required = |driver| Want { driver, required: true };
    if let Some(driver) = chosen {
        return vec![required(driver)];
    }
    let software = [Driver::Lavapipe, Driver::SwiftShader];
    let system = found.gpu.then_some(required(Driver::System));
    let others: Vec<Want> = if !cfg!(target_os = "linux") {
        Vec::new()
    } else if strict {
        software.map(required).into()
    } else if found.gpu {
        software.into_iter().filter(|&driver| found.has(driver)).map(required).collect()
    } else {
        vec![required(Driver::Lavapipe), Want { driver: Driver::SwiftShader, required: false }]
    };
    system.into_iter().chain(others).collect()
}

/// What must be installed before everything in `wants` works.
pub fn missing(found: &Found, wants: &[Want]) -> Vec<Part> {
    let mut parts = Vec::new();
    if !found.loader && !wants.is_empty() {
        parts.push(Part::Loader);
    }
    for want in wants {
        let there = Found { loader: true, ..found.clone() }.has(want.driver);
        let part = match want.driver {
            Driver::System | Driver::Lavapipe => Part::Lavapipe,
            Driver::SwiftShader => Part::SwiftShader,
        };
        if !there && !parts.contains(&part) {
            parts.push(part);
        }
    }
    parts
}

/// A driver that is there, and how to pin wgpu to it.
#[derive(Clone, Debug)]
pub struct Run {
    /// Which one.
    pub driver: Driver,
    manifest: Option<PathBuf>,
}

impl Run {
    /// Makes `command` see this driver and no other.
    pub fn pin(&self, command: &mut Command) {
        if let Some(manifest) = &self.manifest {
            // Vulkan loaders before 1.3.207 know only the second name; the first one wins in later ones.
            command.env("VK_DRIVER_FILES", manifest).env("VK_ICD_FILENAMES", manifest);
            command.env_remove("VK_ADD_DRIVER_FILES");
        }
    }
}

/// How set-up may proceed.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Install nothing: print the command that would, and stop with exit status 2.
    #[arg(long)]
    no_install: bool,
    /// Look for drivers below this folder (to try the set-up out; implies --no-install).
    #[arg(long, hide = true, default_value = "/")]
    root: PathBuf,
}

impl Options {
    /// Whether nothing may be installed.
    pub fn no_install(&self) -> bool {
        self.no_install
    }

    /// Looks at the machine.
    pub fn found(&self) -> Found {
        Found::under(&self.root)
    }
}

/// Installs what `wants` lacks, as far as it may, and returns the drivers that are there.
///
/// Absent drivers that are not required are named on stderr and left out. If a required one is absent, the
/// error has exit status 2 and holds the command that installs all that is missing.
pub fn ready(options: &Options, wants: &[Want]) -> Result<Vec<Run>, Stop> {
    let mut found = options.found();
    let family = Family::of(&below(&options.root, "/etc/os-release"));
    let may_install = !options.no_install && options.root == Path::new("/");
    if may_install && install(family, &missing(&found, wants)) {
        found = options.found();
    }
    let (there, absent): (Vec<Want>, Vec<Want>) =
        wants.iter().partition(|want| found.has(want.driver));
    if !absent.is_empty() {
        let message = advice(family, &absent, &missing(&found, &absent));
        if absent.iter().any(|want| want.required) {
            return Err(Stop { status: 2, message });
        }
        eprintln!("xtask: SKIPPED: {message}");
    }
    let run = |want: Want| Run { driver: want.driver, manifest: found.manifest(want.driver) };
    Ok(there.into_iter().map(run).collect())
}

/// Installs programs, as far as it may.
pub fn install_tools(options: &Options, parts: &[Part]) {
    if !options.no_install && !parts.is_empty() {
        install(Family::of(&below(&options.root, "/etc/os-release")), parts);
    }
}

/// What to tell the user about programs that are not there.
pub fn tools_advice(parts: &[Part]) -> String {
    let names: Vec<&str> = parts.iter().map(|part| part.name()).collect();
    let lead = format!("the page cannot be built or tested without {}", names.join(" and "));
    match Family::of(Path::new("/etc/os-release")) {
        Some(family) if family.packages(parts).len() == parts.len() => {
            format!("{lead}; this installs it:\n    {}", family.command(&family.packages(parts)))
        }
        _ => format!("{lead}; install it from its own site"),
    }
}

/// Runs the package manager for what it has of `parts`; false if there was nothing that it could do.
fn install(family: Option<&Family>, parts: &[Part]) -> bool {
    let Some(family) = family.filter(|family| family.unattended) else { return false };
    let packages = family.packages(parts);
    let Some(prefix) = as_root().filter(|_| !packages.is_empty()) else { return false };
    eprintln!("xtask: installing {}", packages.join(", "));
    // A stale or empty package list makes the installation fail; a failing update need not (one unreachable
    // source among several is enough), so the installation is tried in any case.
    for arguments in
        [vec!["update"], [&["install", "--yes", "--no-install-recommends"], &packages[..]].concat()]
    {
        let words = prefix.iter().chain(&["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]);
        let words: Vec<&str> = words.copied().chain(arguments).collect();
        let status = Command::new(words[0])
            .args(&words[1..])
            .stdin(Stdio::null())
            .stdout(io::stderr())
            .status();
        match status {
            Ok(status) if status.success() => {}
            Ok(status) => eprintln!("xtask: `{}` failed: {status}", words.join(" ")),
            Err(error) => eprintln!("xtask: `{}` could not run: {error}", words.join(" ")),
        }
    }
    true
}

/// What to put before a command that needs root: nothing for root, `sudo` where it asks no password.
fn as_root() -> Option<&'static [&'static str]> {
    let quiet = |program: &str, arguments: &[&str]| {
        Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .ok()
    };
    if quiet("id", &["-u"]).is_some_and(|id| id.stdout.trim_ascii() == b"0") {
        return Some(&[]);
    }
    quiet("sudo", &["-n", "true"]).filter(|sudo| sudo.status.success()).map(|_| &["sudo", "-n"][..])
}

/// What to tell the user about drivers that are not there, for lack of `parts`.
fn advice(family: Option<&Family>, absent: &[Want], parts: &[Part]) -> String {
    let drivers: Vec<&str> = absent.iter().map(|want| want.driver.name()).collect();
    let names: Vec<&str> = parts.iter().map(|part| part.name()).collect();
    let lead = format!("cannot run on {}, for lack of {}", drivers.join(" and "), names.join(", "));
    let Some(family) = family else {
        return format!("{lead}; install what is lacking with this system's package manager");
    };
    let mut sentences = vec![lead];
    let packages = family.packages(parts);
    if packages.len() < parts.len() {
        sentences.push(format!(
            "{} has no package with SwiftShader, but Google Chrome's own package brings it",
            family.name
        ));
    }
    if !packages.is_empty() {
        sentences.push(format!("this installs it:\n    {}", family.command(&packages)));
    }
    sentences.join("; ")
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// A machine without a GPU, with the loader and the named manifests.
    fn with(lavapipe: bool, swiftshader: bool) -> Found {
        let manifest = |there: bool| there.then(|| PathBuf::from("/driver.json"));
        Found {
            loader: true,
            lavapipe: manifest(lavapipe),
            swiftshader: manifest(swiftshader),
            ..Found::default()
        }
    }

    fn drivers(wants: &[Want]) -> Vec<(Driver, bool)> {
        wants.iter().map(|want| (want.driver, want.required)).collect()
    }

    #[test]
    fn an_empty_machine_lacks_everything() {
        let found = Found::default();
        let wants = wanted(&found, None, false);
        assert_eq!(drivers(&wants), [(Driver::Lavapipe, true), (Driver::SwiftShader, false)]);
        assert_eq!(missing(&found, &wants), [Part::Loader, Part::Lavapipe, Part::SwiftShader]);
    }

    #[test]
    fn ci_requires_both_software_drivers_even_beside_a_gpu() {
        let software = [(Driver::Lavapipe, true), (Driver::SwiftShader, true)];
        assert_eq!(drivers(&wanted(&Found::default(), None, true)), software);
        let wants = wanted(&Found { gpu: true, ..with(true, false) }, None, true);
        assert_eq!(drivers(&wants), [&[(Driver::System, true)], &software[..]].concat());
    }

    #[test]
    fn a_gpu_is_tested_first_and_needs_no_software_driver() {
        let gpu = Found { gpu: true, ..with(false, false) };
        assert_eq!(drivers(&wanted(&gpu, None, false)), [(Driver::System, true)]);
        assert_eq!(missing(&gpu, &wanted(&gpu, None, false)), []);
        let both = Found { gpu: true, ..with(true, false) };
        let wants = wanted(&both, None, false);
        assert_eq!(drivers(&wants), [(Driver::System, true), (Driver::Lavapipe, true)]);
    }

    #[test]
    fn a_chosen_driver_is_the_only_one() {
        let gpu = Found { gpu: true, ..with(true, true) };
        let wants = wanted(&gpu, Some(Driver::SwiftShader), true);
        assert_eq!(drivers(&wants), [(Driver::SwiftShader, true)]);
    }

    #[test]
    fn only_what_is_absent_is_missing() {
        let wants = wanted(&Found::default(), None, true);
        assert_eq!(missing(&with(true, true), &wants), []);
        assert_eq!(missing(&with(true, false), &wants), [Part::SwiftShader]);
        assert_eq!(missing(&with(false, true), &wants), [Part::Lavapipe]);
        let no_loader = Found { loader: false, ..with(true, true) };
        assert_eq!(missing(&no_loader, &wants), [Part::Loader]);
    }

    #[test]
    fn the_benchmark_is_content_with_any_driver() {
        let wants = [Want { driver: Driver::System, required: true }];
        assert_eq!(missing(&with(false, true), &wants), [Part::Lavapipe]);
        assert_eq!(missing(&with(true, false), &wants), []);
        assert_eq!(missing(&Found { gpu: true, ..with(false, false) }, &wants), []);
        assert_eq!(missing(&Found { named: true, ..with(false, false) }, &wants), []);
    }

    #[test]
    fn the_advice_is_a_command_where_there_is_one() {
        let parts = [Part::Loader, Part::Lavapipe, Part::SwiftShader];
        let family = |id: &str| {
            let root = tempfile::tempdir().expect("a temporary folder can be made");
            let path = root.path().join("os-release");
            std::fs::write(&path, format!("ID={id}\n")).expect("writable");
            Family::of(&path)
        };
        let wants = wanted(&Found::default(), None, false);
        let debian = advice(family("debian"), &wants, &parts);
        assert!(debian.starts_with("cannot run on lavapipe and swiftshader, for lack of the Vul"));
        assert!(debian.ends_with(" libvulkan1 mesa-vulkan-drivers chromium-common"), "{debian}");
        let ubuntu = advice(family("ubuntu"), &wants[1..], &parts[2..]);
        assert!(ubuntu.contains("Ubuntu has no package with SwiftShader"), "{ubuntu}");
        assert!(!ubuntu.contains("sudo"), "{ubuntu}");
        let other = advice(family("plan9"), &wants[..1], &parts[..2]);
        assert!(other.contains("this system's package manager"), "{other}");
    }
}
