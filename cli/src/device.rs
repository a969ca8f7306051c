//! Adapters by name, and buffers on the device.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use pollster::block_on;
use wgpu_attention::{Context, DType, Error, View, wgpu};

use crate::bad_input;

/// What works on a machine without an adapter, and what gives it one.
pub const WITHOUT_ADAPTER: &str = "`run --adapter reference` computes on the CPU without a driver, \
                                   and mesa-vulkan-drivers has a driver that needs no GPU";

/// Where compiled kernels and the choices of `--tune` are kept, or `off`.
const CACHE: &str = "WGPU_ATTENTION_CACHE";

/// Where Wayland clients look for their compositor.
const RUNTIME_DIR: &str = "XDG_RUNTIME_DIR";

/// A folder that is not there.
const NO_FOLDER: &str = "/nonexistent";

/// Keeps Mesa's device selection from writing to stderr. It asks a Wayland compositor which GPU it uses,
/// and libwayland complains at every attempt where [`RUNTIME_DIR`] is no absolute path. In a folder that
/// is not there it finds no compositor either, and says nothing.
///
/// # Safety
/// As [`std::env::set_var`]: no other thread may use the environment meanwhile.
pub unsafe fn silence_driver() {
    if cfg!(target_os = "linux") && !is_runtime_dir(std::env::var_os(RUNTIME_DIR)) {
        // SAFETY: the caller's promise.
        unsafe { std::env::set_var(RUNTIME_DIR, NO_FOLDER) };
    }
}

fn is_runtime_dir(value: Option<OsString>) -> bool {
    value.is_some_and(|folder| Path::new(&folder).is_absolute())
}

/// Gives a program that is started from here the environment that the user gave.
pub fn user_environment(command: &mut Command) {
    if std::env::var_os(RUNTIME_DIR).is_some_and(|folder| folder == NO_FOLDER) {
        command.env_remove(RUNTIME_DIR);
    }
}

/// A device on the adapter whose name, driver or backend contains `name`, or on the fastest.
pub fn open(name: Option<&str>) -> Result<Context> {
    let context = find(name)?;
    Ok(match cache(|name| std::env::var_os(name)) {
        Some(folder) => context.with_cache(&folder),
        None => context,
    })
}

/// The folder that [`CACHE`] names, or this program's own where the system keeps such things.
pub fn cache(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let path = |name| variable(name).filter(|path| !path.is_empty()).map(PathBuf::from);
    match path(CACHE) {
        Some(off) if off == Path::new("off") => return None,
        Some(folder) => return Some(folder),
        None => {}
    }
    let folder = if cfg!(windows) {
        path("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        path("HOME").map(|home| home.join("Library/Caches"))
    } else {
        // A relative path is to be ignored, says the specification.
        let named = path("XDG_CACHE_HOME").filter(|folder| folder.is_absolute());
        named.or_else(|| path("HOME").map(|home| home.join(".cache")))
    };
    folder.map(|folder| folder.join("wgpu-attention"))
}

fn find(name: Option<&str>) -> Result<Context> {
    let Some(name) = name else {
        return Ok(block_on(Context::request()).map_err(hint)?);
    };
    let adapters = block_on(Context::adapters());
    let wanted = name.to_lowercase();
    match adapters.iter().find(|adapter| describe(adapter).to_lowercase().contains(&wanted)) {
        Some(adapter) => Ok(block_on(Context::from_adapter(adapter))?),
        None => {
            let names: Vec<String> = adapters.iter().map(describe).collect();
            Err(bad_input(format!(
                "--adapter: expected part of an adapter's name, got `{name}`; there {} (and, for \
                 `run`, `reference`)",
                match &names[..] {
                    [] => "is none".to_owned(),
                    names => format!("are: {}", names.join("; ")),
                }
            )))
        }
    }
}

/// Says what to do where there is no adapter.
fn hint(error: Error) -> Error {
    match error {
        Error::NoAdapter(reason) => Error::NoAdapter(format!("{reason}; {WITHOUT_ADAPTER}")),
        other => other,
    }
}

/// Name, driver and backend.
fn describe(adapter: &wgpu::Adapter) -> String {
    let info = adapter.get_info();
    format!("{} ({} {}, {})", info.name, info.driver, info.driver_info, info.backend)
}

/// A contiguous tensor in a buffer of its own.
pub struct DeviceTensor {
    buffer: wgpu::Buffer,
    dtype: DType,
    shape: [u32; 4],
}

impl DeviceTensor {
    /// Room for a tensor `[batch, heads, len, dim]`, all zeros.
    pub fn new(context: &Context, name: &str, dtype: DType, shape: [u32; 4]) -> Result<Self> {
        let elements = shape.iter().fold(1u64, |n, &size| n.saturating_mul(size.into()));
        let size = elements.saturating_mul(dtype.size());
        let allowed = context.caps().buffer;
        if size > allowed {
            let what = format!("tensor `{name}` {shape:?} in {dtype}");
            let limit = "maxBufferSize";
            return Err(Error::Limit { what, limit, needed: size, allowed }.into());
        }
        let memory = context.device().push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffer = context.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some(name),
            // Whole words, and never empty.
            size: size.next_multiple_of(4).max(4),
            usage: wgpu::BufferUsages::STORAGE
                | wgpu::BufferUsages::COPY_DST
                | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        match block_on(memory.pop()) {
            Some(error) => Err(Error::from(error).into()),
            None => Ok(Self { buffer, dtype, shape }),
        }
    }

    /// Fills the tensor with elements of its dtype.
    pub fn write(self, context: &Context, bytes: &[u8]) -> Self {
        let (words, rest) = bytes.split_at(bytes.len() / 4 * 4);
        context.queue().write_buffer(&self.buffer, 0, words);
        if !rest.is_empty() {
            let mut word = [0; 4];
            word[..rest.len()].copy_from_slice(rest);
            context.queue().write_buffer(&self.buffer, words.len() as u64, &word);
        }
        self
    }

    /// Fills the tensor with the same elements over and over, of a multiple of four bytes.
    pub fn fill(self, context: &Context, bytes: &[u8]) -> Self {
        let size = self.buffer.size();
        for start in (0..size).step_by(bytes.len().max(1)) {
            let rest = (size - start).min(bytes.len() as u64) as usize;
            context.queue().write_buffer(&self.buffer, start, &bytes[..rest]);
            // What is written waits on the host until it is submitted.
            context.queue().submit([]);
        }
        self
    }

    /// Elements of one head, of so many rows from one on.
    pub fn read_rows(
        &self,
        context: &Context,
        head: u32,
        rows: std::ops::Range<u32>,
    ) -> Result<Vec<f32>> {
        let [_, _, len, dim] = self.shape;
        let start = (u64::from(head) * u64::from(len) + u64::from(rows.start)) * u64::from(dim);
        let part = [1, 1, rows.end - rows.start, dim];
        let view = View::new(&self.buffer, self.dtype, part).with_offset(start);
        Ok(block_on(context.read(view))?)
    }

    pub fn view(&self) -> View<'_> {
        View::new(&self.buffer, self.dtype, self.shape)
    }

    pub fn read(&self, context: &Context) -> Result<Vec<f32>> {
        Ok(block_on(context.read(self.view()))?)
    }

    /// As [`read`](Self::read), of LSEs or scores.
    pub fn read_logits(&self, context: &Context) -> Result<Vec<f32>> {
        Ok(block_on(context.read_logits(self.view()))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absolute_runtime_folder_is_the_users() {
        let is_one = |folder: Option<&str>| is_runtime_dir(folder.map(Into::into));
        assert_eq!([None, Some(""), Some("tmp")].map(is_one), [false; 3]);
        if cfg!(target_os = "linux") {
            assert!(is_one(Some("/run/user/1000")));
        }
    }

    #[test]
    fn the_cache_is_where_the_user_says_or_the_system() {
        let with = |variables: &[(&str, &str)]| {
            cache(|name| {
                let named = variables.iter().find(|(known, _)| *known == name);
                named.map(|(_, value)| value.into())
            })
        };
        assert_eq!(with(&[(CACHE, "off"), ("HOME", "/home/a")]), None);
        assert_eq!(with(&[(CACHE, "here"), ("HOME", "/home/a")]), Some("here".into()));
        assert_eq!(with(&[]), None);
        if cfg!(target_os = "linux") {
            let own = |folder: &str| Some(Path::new(folder).join("wgpu-attention"));
            let home = ("HOME", "/home/a");
            assert_eq!(with(&[home, (CACHE, "")]), own("/home/a/.cache"));
            assert_eq!(with(&[home, ("XDG_CACHE_HOME", "/var/c")]), own("/var/c"));
            assert_eq!(with(&[home, ("XDG_CACHE_HOME", "c")]), own("/home/a/.cache"));
        }
    }
}
