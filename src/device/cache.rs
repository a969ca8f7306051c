//! What outlives the process: files of a folder that the caller names.
//!
//! Several processes may share the folder. A file is replaced as a whole, the last writer wins, and
//! one that cannot be used is as good as none.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use std::{fs, io, process};

use crate::device::lock;
use crate::device::ready;
use crate::device::verification::Outcome;

/// Drivers never forget a pipeline: a file of more bytes than this is left behind, to start anew.
const MOST_BYTES: usize = 256 << 20;

/// What the tuner has found out about one configuration so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Choice {
    /// The fastest kernel and tiles.
    pub best: String,
    /// Slower ones.
    pub slower: Vec<String>,
    /// The longest that a kernel took to compile.
    pub compiling: Duration,
}

/// The file of choices, and its first line.
const CHOICES: &str = "tuned.tsv";
const HEAD: &str = concat!(
    "# wgpu-attention ",
    env!("CARGO_PKG_VERSION"),
    ": by device and configuration the fastest kernel, slower ones, and the longest compilation in ms"
);

/// The file of outcomes, and its first line.
const OUTCOMES: &str = "verified.tsv";
const OUTCOMES_HEAD: &str = concat!(
    "# wgpu-attention ",
    env!("CARGO_PKG_VERSION"),
    ": by device, kernel and checksum of its text what a trial has shown: ok, or a fault"
);

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

impl Cache {
    /// What is known of a device and a configuration.
    pub fn choice(&self, key: &str) -> Option<Choice> {
        let file = self.folder.join(CHOICES);
        lines(&file, HEAD).iter().find_map(|line| Choice::parse(line, key))
    }

    /// Writes what is known now.
    pub fn keep_choice(&self, key: &str, choice: &Choice) {
        let file = self.folder.join(CHOICES);
        let mut lines = lines(&file, HEAD);
        lines.retain(|line| Choice::parse(line, key).is_none());
        lines.push(choice.line(key));
        write(&file, HEAD, &lines);
    }

    /// What a trial of a kernel has shown.
    pub fn outcome(&self, key: &str) -> Option<Outcome> {
        let file = self.folder.join(OUTCOMES);
        lines(&file, OUTCOMES_HEAD).iter().find_map(|line| parse_outcome(line, key))
    }

    /// Writes what a trial of a kernel has shown.
    pub fn keep_outcome(&self, key: &str, outcome: &Outcome) {
        let file = self.folder.join(OUTCOMES);
        let mut lines = lines(&file, OUTCOMES_HEAD);
        lines.retain(|line| parse_outcome(line, key).is_none());
        let fault = outcome.as_ref().err().map_or("ok", String::as_str);
        lines.push(format!("{key}\t{}", fault.replace(['\t', '\n'], " ")));
        write(&file, OUTCOMES_HEAD, &lines);
    }
}

/// What a line says of a key.
fn parse_outcome(line: &str, key: &str) -> Option<Outcome> {
    match line.strip_prefix(key)?.strip_prefix('\t')? {
        "ok" => Some(Ok(())),
        // What was cut off says nothing.
        "" => None,
        fault => Some(Err(fault.to_owned())),
    }
}

fn write(file: &Path, head: &str, lines: &[String]) {
    let contents = format!("{head}\n{}\n", lines.join("\n"));
    note(replace(file, contents.as_bytes()), file);
}

/// The lines below the head of a file, if it is one of this version.
fn lines(file: &Path, head: &str) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let mut lines = text.lines();
    match lines.next() {
        Some(first) if first == head => lines.map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

impl Choice {
    /// What a line says of a key.
    fn parse(line: &str, key: &str) -> Option<Self> {
        let mut fields = line.strip_prefix(key)?.strip_prefix('\t')?.split('\t');
        let (best, slower, compiling) = (fields.next()?, fields.next()?, fields.next()?);
        let slower = slower.split("; ").filter(|name| !name.is_empty()).map(str::to_owned);
        let compiling = Duration::from_millis(compiling.parse().ok()?);
        Some(Self { best: best.into(), slower: slower.collect(), compiling })
    }

    fn line(&self, key: &str) -> String {
        let Self { best, slower, compiling } = self;
        format!("{key}\t{best}\t{}\t{}", slower.join("; "), compiling.as_millis())
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
pub(crate) fn checksum(data: &[u8]) -> u64 {
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

    #[test]
    fn outcomes_are_lines() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let cache = Cache { folder: folder.path().to_owned(), pipelines: None };
        let outcomes = [Ok(()), Err("`out` is off by 1.00e0".to_owned())];
        for (key, outcome) in ["device\tkernel 1", "device\tkernel 12"].into_iter().zip(&outcomes) {
            assert_eq!(cache.outcome(key), None);
            cache.keep_outcome(key, outcome);
        }
        assert_eq!(cache.outcome("device\tkernel 1"), Some(outcomes[0].clone()));
        assert_eq!(cache.outcome("device\tkernel 12"), Some(outcomes[1].clone()));
        cache.keep_outcome("device\tkernel 12", &Ok(()));
        assert_eq!(cache.outcome("device\tkernel 12"), Some(Ok(())));
        assert_eq!(cache.outcome("device\tkernel"), None);
    }

    #[test]
    fn choices_are_lines() {
        let choice = Choice {
            best: "tiled 64x32/8x8".into(),
            slower: vec!["coop 1".into(), "tiled 2".into()],
            compiling: Duration::from_millis(812),
        };
        for choice in [choice.clone(), Choice { slower: Vec::new(), ..choice }] {
            let line = choice.line("device\tf16 d64");
            assert_eq!(Choice::parse(&line, "device\tf16 d64"), Some(choice));
            for other in ["device", "device\tf16 d6", "another\tf16 d64", ""] {
                assert_eq!(Choice::parse(&line, other), None, "{other}");
            }
            for len in 0..line.rfind('\t').unwrap_or(0) {
                assert_eq!(Choice::parse(&line[..len], "device\tf16 d64"), None);
            }
        }
    }
}
