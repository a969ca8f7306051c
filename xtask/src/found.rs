//! A look at the machine: which drivers and devices its file system shows.

use std::fs;
use std::path::{Path, PathBuf};

/// A way for wgpu to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Driver {
    /// Whatever wgpu picks by itself: a GPU's driver where there is one.
    System,
    /// Mesa's Vulkan driver for the CPU.
    Lavapipe,
    /// The Vulkan driver for the CPU that Chromium and Chrome ship.
    #[value(name = "swiftshader")]
    SwiftShader,
}

impl Driver {
    /// The name on the command line and in the reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Lavapipe => "lavapipe",
            Self::SwiftShader => "swiftshader",
        }
    }
}

/// What the machine offers.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The Vulkan loader, or a system that needs none.
    pub loader: bool,
    /// A driver for a GPU together with the device node that it opens.
    pub gpu: bool,
    /// The user names a Vulkan driver in the environment.
    pub named: bool,
    /// Lavapipe's driver manifest.
    pub lavapipe: Option<PathBuf>,
    /// SwiftShader's driver manifest.
    pub swiftshader: Option<PathBuf>,
}

/// Folders of driver manifests that the Vulkan loader searches.
const MANIFEST_FOLDERS: [&str; 5] = [
    "/usr/local/etc/vulkan/icd.d",
    "/usr/local/share/vulkan/icd.d",
    "/etc/vulkan/icd.d",
    "/usr/share/vulkan/icd.d",
    "/run/opengl-driver/share/vulkan/icd.d",
];

/// Folders of browsers that bring SwiftShader: Debian's and Arch's Chromium, Fedora's, Google Chrome.
const BROWSER_FOLDERS: [&str; 3] =
    ["/usr/lib/chromium", "/usr/lib64/chromium-browser", "/opt/google/chrome"];

impl Found {
    /// Looks at the machine whose file system stands under `root`.
    pub fn under(root: &Path) -> Self {
        if !cfg!(target_os = "linux") {
            return Self { loader: true, gpu: true, ..Self::default() };
        }
        let named = ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"];
        let libraries = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
        let libraries: Vec<PathBuf> = std::env::split_paths(&libraries).collect();
        Self {
            named: named.iter().any(|name| std::env::var_os(name).is_some_and(|v| !v.is_empty())),
            ..Self::on_linux(root, &libraries)
        }
    }

    /// The part of the look that depends on files alone. `libraries` are further folders of libraries.
    fn on_linux(root: &Path, libraries: &[PathBuf]) -> Self {
        let mut found = Self { loader: has_loader(root, libraries), ..Self::default() };
        let mut gpu_manifests = Vec::new();
        for path in MANIFEST_FOLDERS.iter().flat_map(|folder| files(&below(root, folder))) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if !name.ends_with(".json") {
                continue;
            }
            if name.starts_with("lvp_icd") {
                found.lavapipe.get_or_insert(path);
            } else if name.contains("swiftshader") {
                found.swiftshader.get_or_insert(path);
            } else {
                gpu_manifests.push(name);
            }
        }
        let browsers = BROWSER_FOLDERS.iter().flat_map(|folder| files(&below(root, folder)));
        found.swiftshader = found.swiftshader.or_else(|| {
            browsers.into_iter().find(|path| path.ends_with("vk_swiftshader_icd.json"))
        });
        found.gpu = gpu_manifests.iter().any(|name| has_device(root, name));
        found
    }

    /// Whether the tests or the benchmark can run on `driver`.
    pub fn has(&self, driver: Driver) -> bool {
        self.loader
            && match driver {
                Driver::System => self.gpu || self.named || self.lavapipe.is_some(),
                Driver::Lavapipe => self.lavapipe.is_some(),
                Driver::SwiftShader => self.swiftshader.is_some(),
            }
    }

    /// The manifest that pins the Vulkan loader to `driver`; none for the system's own choice.
    pub fn manifest(&self, driver: Driver) -> Option<PathBuf> {
        match driver {
            Driver::System => None,
            Driver::Lavapipe => self.lavapipe.clone(),
            Driver::SwiftShader => self.swiftshader.clone(),
        }
    }
}

/// The absolute `path` of a machine whose file system stands under `root`.
pub fn below(root: &Path, path: impl AsRef<Path>) -> PathBuf {
    let path = path.as_ref();
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// The entries of a folder in the order of their names; none if it cannot be read.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// Whether a program would find the Vulkan loader: in the dynamic linker's cache (it lists every library
/// of its folders by name) or, where there is no such cache, in the folders themselves.
fn has_loader(root: &Path, libraries: &[PathBuf]) -> bool {
    const LOADER: &str = "libvulkan.so.1";
    let cache = fs::read(below(root, "/etc/ld.so.cache")).unwrap_or_default();
    let usual = ["/lib", "/usr/lib", "/usr/lib64", "/usr/local/lib"].map(PathBuf::from);
    // The leading slash keeps `libvulkan.so.1` of another name's tail out; the cache stores full paths.
    cache.windows(LOADER.len() + 2).any(|part| part == format!("/{LOADER}\0").as_bytes())
        || usual.iter().chain(libraries).any(|folder| below(root, folder).join(LOADER).exists())
}

/// Whether the device behind a GPU driver's manifest is there. Mesa installs the manifests of all its
/// drivers at once, so a manifest alone says nothing.
fn has_device(root: &Path, manifest: &str) -> bool {
    let render_node = files(&below(root, "/dev/dri"))
        .iter()
        .any(|node| node.file_name().is_some_and(|n| n.to_string_lossy().starts_with("renderD")));
    let special = if manifest.contains("nvidia") {
        Some("/dev/nvidia0")
    } else if manifest.contains("dzn") {
        Some("/dev/dxg")
    } else {
        None
    };
    render_node || special.is_some_and(|node| below(root, node).exists())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// A file system with these (empty) files, and what the look at it finds.
    fn look(paths: &[&str]) -> (tempfile::TempDir, Found) {
        let root = tempfile::tempdir().expect("a temporary folder can be made");
        for path in paths {
            let path = below(root.path(), path);
            fs::create_dir_all(path.parent().expect("the path has a folder")).expect("writable");
            fs::write(path, "").expect("writable");
        }
        let found = Found::on_linux(root.path(), &[PathBuf::from("/opt/libraries")]);
        (root, found)
    }

    #[test]
    fn the_look_finds_each_part_where_distributions_put_it() {
        let (_root, found) = look(&[
            "/usr/share/vulkan/icd.d/lvp_icd.aarch64.json",
            "/usr/share/vulkan/icd.d/lvp_icd.readme",
            "/usr/lib/chromium/vk_swiftshader_icd.json",
            "/opt/libraries/libvulkan.so.1",
        ]);
        assert!(found.loader && !found.gpu);
        assert!(found.lavapipe.is_some_and(|path| path.ends_with("lvp_icd.aarch64.json")));
        assert!(found.swiftshader.is_some_and(|path| path.ends_with("vk_swiftshader_icd.json")));
        let (_root, found) = look(&["/opt/google/chrome/vk_swiftshader_icd.json"]);
        assert!(found.swiftshader.is_some() && !found.loader);
    }

    #[test]
    fn the_loader_is_found_in_the_linkers_cache() {
        let (root, found) = look(&["/etc/ld.so.cache"]);
        assert!(!found.loader);
        let cache = |text: &str| fs::write(below(root.path(), "/etc/ld.so.cache"), text);
        cache("\0libvulkan.so.1\0/lib/x86_64-linux-gnu/libvulkan.so.1\0").expect("writable");
        assert!(has_loader(root.path(), &[]));
        cache("\0/lib/x86_64-linux-gnu/libvulkan.so.12\0").expect("writable");
        assert!(!has_loader(root.path(), &[]));
    }

    #[test]
    fn a_gpu_is_a_manifest_and_its_device() {
        let nvidia = "/etc/vulkan/icd.d/nvidia_icd.json";
        let intel = "/usr/share/vulkan/icd.d/intel_icd.x86_64.json";
        assert!(!look(&[nvidia, intel]).1.gpu);
        assert!(look(&[nvidia, "/dev/nvidia0"]).1.gpu);
        assert!(!look(&[intel, "/dev/nvidia0"]).1.gpu);
        assert!(look(&[intel, "/dev/dri/renderD128"]).1.gpu);
        assert!(!look(&["/dev/nvidia0", "/dev/dri/renderD128"]).1.gpu);
    }
}
