//! Which package of which Linux distribution holds what.

use std::fs;
use std::path::Path;

/// A thing that may have to be installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// `libvulkan.so.1`, which finds and opens the drivers.
    Loader,
    /// Mesa's software driver.
    Lavapipe,
    /// Chromium's software driver.
    SwiftShader,
    /// Node and its package manager.
    Node,
    /// A browser of Chromium's family.
    Browser,
}

impl Part {
    /// What it is called in a sentence.
    pub fn name(self) -> &'static str {
        match self {
            Self::Loader => "the Vulkan loader (libvulkan.so.1)",
            Self::Lavapipe => "a Vulkan driver such as lavapipe",
            Self::SwiftShader => "SwiftShader",
            Self::Node => "Node and npm",
            Self::Browser => "Chromium or Chrome",
        }
    }
}

/// Distributions that share package names.
#[derive(Debug)]
pub struct Family {
    /// The name in a sentence.
    pub name: &'static str,
    /// Whether xtask installs by itself here (with apt-get) rather than print the command.
    pub unattended: bool,
    id: &'static str,
    install: &'static str,
    loader: &'static str,
    lavapipe: &'static str,
    swiftshader: Option<&'static str>,
    node: &'static str,
    browser: Option<&'static str>,
}

const APT: &str = "sudo apt-get update && sudo apt-get install --no-install-recommends";

/// The distributions whose packages are known.
const FAMILIES: [Family; 4] = [
    Family {
        name: "Debian",
        unattended: true,
        id: "debian",
        install: APT,
        loader: "libvulkan1",
        lavapipe: "mesa-vulkan-drivers",
        // The browser itself is in `chromium`, which is four times the size and not needed.
        swiftshader: Some("chromium-common"),
        node: "npm",
        browser: Some("chromium"),
    },
    Family {
        name: "Ubuntu",
        unattended: true,
        id: "ubuntu",
        install: APT,
        loader: "libvulkan1",
        lavapipe: "mesa-vulkan-drivers",
        // Chromium is a snap there, which keeps its files to itself.
        swiftshader: None,
        node: "npm",
        browser: None,
    },
    Family {
        name: "Fedora",
        unattended: false,
        id: "fedora",
        install: "sudo dnf install",
        loader: "vulkan-loader",
        lavapipe: "mesa-vulkan-drivers",
        swiftshader: None,
        node: "nodejs-npm",
        browser: Some("chromium"),
    },
    Family {
        name: "Arch",
        unattended: false,
        id: "arch",
        install: "sudo pacman -S",
        loader: "vulkan-icd-loader",
        lavapipe: "vulkan-swrast",
        swiftshader: Some("chromium"),
        node: "npm",
        browser: Some("chromium"),
    },
];

impl Family {
    /// The family of the system that an `os-release` file describes, if it is a known one.
    pub fn of(os_release: &Path) -> Option<&'static Self> {
        Self::parse(&fs::read_to_string(os_release).ok()?)
    }

    /// `ID` counts before `ID_LIKE`, and the words of the latter in their order (nearest relative first).
    fn parse(os_release: &str) -> Option<&'static Self> {
        let field = |key: &str| {
            let value =
                os_release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            value.unwrap_or_default().trim_matches(['"', '\''])
        };
        let mut ids = field("ID").split_whitespace().chain(field("ID_LIKE").split_whitespace());
        ids.find_map(|id| FAMILIES.iter().find(|family| family.id == id))
    }

    /// The packages that hold `parts`, leaving out what the distribution does not have.
    pub fn packages(&self, parts: &[Part]) -> Vec<&'static str> {
        let package = |part: &Part| match part {
            Part::Loader => Some(self.loader),
            Part::Lavapipe => Some(self.lavapipe),
            Part::SwiftShader => self.swiftshader,
            Part::Node => Some(self.node),
            Part::Browser => self.browser,
        };
        parts.iter().filter_map(package).collect()
    }

    /// The command line by which a user installs `packages`.
    pub fn command(&self, packages: &[&str]) -> String {
        format!("{} {}", self.install, packages.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(os_release: &str) -> Option<&'static str> {
        Family::parse(os_release).map(|family| family.name)
    }

    #[test]
    fn the_nearest_known_relative_decides() {
        assert_eq!(name("PRETTY_NAME=\"Debian GNU/Linux 12\"\nID=debian\n"), Some("Debian"));
        assert_eq!(name("ID=ubuntu\nID_LIKE=debian\n"), Some("Ubuntu"));
        assert_eq!(name("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n"), Some("Ubuntu"));
        assert_eq!(name("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n"), Some("Fedora"));
        assert_eq!(name("ID=nixos\n"), None);
        assert_eq!(name(""), None);
    }

    #[test]
    fn a_part_without_a_package_is_left_out() {
        let parts = [Part::Loader, Part::Lavapipe, Part::SwiftShader];
        let [debian, ubuntu, ..] = &FAMILIES;
        assert_eq!(
            debian.packages(&parts),
            ["libvulkan1", "mesa-vulkan-drivers", "chromium-common"]
        );
        assert_eq!(ubuntu.packages(&parts), ["libvulkan1", "mesa-vulkan-drivers"]);
        assert_eq!(
            debian.command(&["libvulkan1"]),
            "sudo apt-get update && sudo apt-get install --no-install-recommends libvulkan1"
        );
    }
}
