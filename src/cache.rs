//! What outlives the process: files of a folder that the caller names.
//!
//! Several processes may share the folder. A file is replaced as a whole, the last writer wins, and
//! one that cannot be used is as good as none.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::{fs, io, process};

use crate::context::lock;
use crate::plan::ready;

/// Drivers never forget a pipeline: a file of more bytes than this is left behind, to start anew.
const MOST_BYTES: usize = 256 << 20;

/// The folder, and the pipelines that the driver keeps in it.
#[derive(Debug)]
pub(crate) struct Cache {
    folder: PathBuf,
    pipelines: Option<Pipelines>,
}

#[derive(Debug)]
struct Pipelines {
    cache: wgpu::PipelineCache,
    file: PathBuf,
    /// Bytes of what is in the file, as far as the driver has taken it.
    written: Mutex<usize>,
}

impl Cache {
    /// Reads what the folder has for `device`.
    pub fn open(device: &wgpu::Device, folder: &Path) -> Self {
        let has_pipelines = device.features().contains(wgpu::Features::PIPELINE_CACHE);
        let name = wgpu::util::pipeline_cache_key(&device.adapter_info());
        let pipelines = name.filter(|_| has_pipelines).and_then(|name| {
            let file = folder.join(name);
            let known = fs::read(&file).ok().and_then(|file| unsealed(&file).map(<[u8]>::to_vec));
            // Data of another device is refused in spite of the fallback.
            let cache = create(device, known.as_deref()).or_else(|| create(device, None))?;
            // Less than was given where the driver has changed since.
            let taken = known.and_then(|_| cache.get_data()).map_or(0, |data| data.len());
            Some(Pipelines { cache, file, written: Mutex::new(taken) })
        });
        Self { folder: folder.to_owned(), pipelines }
    }

    /// What pipelines are to be compiled with.
    pub fn pipelines(&self) -> Option<&wgpu::PipelineCache> {
        self.pipelines.as_ref().map(|pipelines| &pipelines.cache)
    }

    /// Writes the compiled pipelines, if there are new ones.
    pub fn keep_pipelines(&self) {
        let Some(Pipelines { cache, file, written }) = &self.pipelines else { return };
        let Some(data) = cache.get_data() else { return };
        let mut written = lock(written);
        if data.len() > *written {
            *written = data.len();
            note(replace(file, &sealed(&data)), file);
        }
    }
}

/// A driver's pipelines, from earlier ones if it takes those.
fn create(device: &wgpu::Device, data: Option<&[u8]>) -> Option<wgpu::PipelineCache> {
    let memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let label = Some("wgpu-attention");
    let descriptor = wgpu::PipelineCacheDescriptor { label, data, fallback: true };
    // SAFETY: the data is what `get_data` gave: its checksum says that it is whole, and wgpu looks for
    // the driver, device and version that it came from. The folder is the caller's to protect.
    let cache = unsafe { device.create_pipeline_cache(&descriptor) };
    let errors = (ready(validation.pop()).flatten(), ready(memory.pop()).flatten());
    matches!(errors, (None, None)).then_some(cache)
}

/// The bytes behind a checksum.
fn sealed(data: &[u8]) -> Vec<u8> {
    [&checksum(data).to_le_bytes(), data].concat()
}

/// The bytes of a file that is whole.
fn unsealed(file: &[u8]) -> Option<&[u8]> {
    let (sum, data) = file.split_first_chunk()?;
    (u64::from_le_bytes(*sum) == checksum(data) && data.len() <= MOST_BYTES).then_some(data)
}

/// FNV-1a: against accidents, not against malice.
fn checksum(data: &[u8]) -> u64 {
    let step = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    data.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// Replaces a file as a whole: who reads it sees the old one or the new one.
fn replace(file: &Path, contents: &[u8]) -> io::Result<()> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let temporary = file.with_extension(format!("{}-{count}.tmp", process::id()));
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    let replaced = fs::write(&temporary, contents).and_then(|()| fs::rename(&temporary, file));
    if replaced.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    replaced
}

/// A cache that cannot be written is slow, not wrong.
fn note(written: io::Result<()>, file: &Path) {
    if let Err(error) = written {
        log::warn!("`{}` was not written: {error}", file.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_files_are_used() {
        let file = sealed(b"pipelines");
        assert_eq!(unsealed(&file), Some(&b"pipelines"[..]));
        for len in 0..file.len() {
            assert_eq!(unsealed(&file[..len]), None, "cut off after {len} bytes");
        }
        for place in 0..file.len() {
            let mut file = file.clone();
            file[place] ^= 4;
            assert_eq!(unsealed(&file), None, "byte {place} changed");
        }
        assert_eq!(unsealed(&[&file[..], b"!"].concat()), None);
    }
}
