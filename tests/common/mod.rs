//! What the device tests share: one context a test binary, tensors in awkward places, and the
//! comparison of every supported variant with the f64 reference.
#![allow(dead_code, reason = "every test binary uses a part of this")]

mod attention;
pub mod draw;
pub mod linear;
pub mod merge;
pub mod rope;
pub mod scatter;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use wgpu_attention::wgpu::util::DeviceExt as _;
use wgpu_attention::{Caps, Context, DType, Error, Source, View, wgpu};

#[allow(unused_imports, reason = "every test binary uses a part of this")]
pub use attention::{
    Call, Case, Results, Sides, each_integer, layouts, random_list, small, variants,
};

/// Turns a missing adapter from a loud skip into a failure.
pub const REQUIRE_ADAPTER: &str = "WGPU_ATTENTION_REQUIRE_ADAPTER";

/// Names the folder of [`records`] on a machine without the sources.
const RECORDS: &str = "WGPU_ATTENTION_TEST_RECORDS";

/// The folder where tests leave what other steps read. A fuzz target is no test and leaves nothing.
fn records() -> PathBuf {
    let built = option_env!("CARGO_TARGET_TMPDIR").unwrap_or_default();
    std::env::var_os(RECORDS).map_or_else(|| built.into(), PathBuf::from)
}

/// The workspace's folder, above or at that of the package that these files are compiled for: the library's
/// tests, the program's, or a fuzz target.
fn root() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.ancestors().find(|folder| folder.join("tests/data").is_dir()).unwrap_or(package)
}

/// A folder of the sources, which lies elsewhere on a machine without them.
fn folder(variable: &str, built: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| root().join(built), PathBuf::from)
}

/// The path of a file of `tests/data`.
pub fn data(name: &str) -> String {
    let path = folder("WGPU_ATTENTION_TEST_DATA", "tests/data").join(name);
    path.into_os_string().into_string().expect("UTF-8")
}

/// The folder of the fuzz corpus.
pub fn corpus() -> PathBuf {
    folder("WGPU_ATTENTION_FUZZ_CORPUS", "fuzz/corpus")
}

/// A buffer of zeros for an f32 tensor.
pub fn scratch(context: &Context, shape: [u32; 4]) -> wgpu::Buffer {
    context.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: shape.iter().map(|&n| u64::from(n)).product::<u64>() * 4,
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
        mapped_at_creation: false,
    })
}

/// The context of this test binary, or `None`, said loudly, where there is no adapter.
pub fn context() -> Option<&'static Context> {
    static CONTEXT: OnceLock<Option<Context>> = OnceLock::new();
    let context = CONTEXT.get_or_init(|| match pollster::block_on(Context::request()) {
        Ok(context) => {
            eprintln!("testing on {}", context.caps().adapter);
            note_device(context.caps());
            Some(as_asked(context))
        }
        Err(error) => {
            assert!(std::env::var_os(REQUIRE_ADAPTER).is_none(), "{error}");
            None
        }
    });
    if context.is_none() {
        eprintln!("SKIPPED: there is no GPU adapter, not even a software one");
    }
    context.as_ref()
}

/// Other ways to run the tests, as `cargo xtask test` asks for them: with all checks of the shader
/// compiler, and every workgroup in a submission of its own.
fn as_asked(mut context: Context) -> Context {
    let asked = |name| std::env::var_os(name).is_some();
    if asked("WGPU_ATTENTION_SMALL_PIECES") {
        context = context.with_submission_time(Duration::ZERO);
    }
    if asked("WGPU_ATTENTION_CHECKED_SHADERS") {
        context = context.with_checked_shaders(true);
    }
    context
}

/// `context` with emulated matrices, for the kernels that no software driver could run otherwise;
/// `None` where it has matrices of its own, lacks f16, or is not the one of this test binary.
pub fn emulating(context: &Context) -> Option<&'static Context> {
    static EMULATING: OnceLock<Option<Context>> = OnceLock::new();
    let whole = self::context()?;
    let emulating = EMULATING.get_or_init(|| {
        let caps = whole.caps();
        (caps.matrices.is_empty() && caps.shader_f16 && caps.subgroup.is_some()).then(|| {
            let caps = caps.clone().with_emulated_matrices();
            as_asked(Context::with_caps(caps, whole.device(), whole.queue()))
        })
    });
    emulating.as_ref().filter(|_| std::ptr::eq(context, whole))
}

/// Gives a mock device the matrix units that `attention.coop` needs.
pub fn add_matrices(caps: &mut Caps) {
    use wgpu::CooperativeScalarType::{F16, F32};
    caps.workgroup_memory = 48 << 10;
    caps.workgroup_invocations = 1024;
    caps.shader_f16 = true;
    caps.matrices = vec![wgpu::CooperativeMatrixProperties {
        m_size: 16,
        n_size: 16,
        k_size: 16,
        ab_type: F16,
        cr_type: F32,
        saturating_accumulation: false,
    }];
}

/// The short name of a driver or GPU in the records.
fn driver(adapter: &str) -> &str {
    let known = [("llvmpipe", "lavapipe"), ("SwiftShader", "SwiftShader")];
    let driver = known.into_iter().find(|(mark, _)| adapter.contains(mark));
    driver.map_or(adapter.split(" (").next().unwrap_or(adapter), |(_, name)| name)
}

/// Notes the device that the tests ran on, for the summary of `run.sh`, which alone names the folder.
fn note_device(caps: &Caps) {
    let Some(folder) = std::env::var_os(RECORDS).map(PathBuf::from) else { return };
    let name = driver(&caps.adapter);
    let matrices = if caps.matrices.is_empty() { "no" } else { "yes" };
    let lines = format!("device\t{name}\nadapter\t{}\nmatrix_units\t{matrices}\n", caps.adapter);
    // Test binaries run side by side and all write the same text.
    std::fs::create_dir_all(&folder).expect("the folder of the records");
    std::fs::write(folder.join("device.tsv"), lines).expect("the file of the device");
}

/// Notes how many cases of a suite passed on this driver, for `cargo xtask conformance`.
pub fn conformance(context: &Context, suite: &str, passed: usize, total: usize) {
    let driver = driver(&context.caps().adapter);
    let line = format!("{suite}\t{driver}\t{passed}\t{total}\n");
    let folder = records().join("conformance");
    let file = folder.join(format!("{suite} on {driver}.tsv"));
    // On a machine that has only the test's binary there is nothing to keep the record for.
    match std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(file, &line)) {
        Ok(()) => eprint!("{line}"),
        Err(error) => eprintln!("{} (not recorded: {error})", line.trim_end()),
    }
}

/// Compares the files below `shaders/<folder>/` that kernels on matrix units consist of with the list by which
/// `cargo xtask ci` finds out whether they have changed since a GPU tested them. The list may not lack a file
/// of another folder either.
pub fn check_matrix_files<'a>(folder: &str, sources: impl Iterator<Item = &'a Source>) {
    let listed: BTreeSet<&str> =
        include_str!("../../xtask/src/matrix_shaders.txt").lines().collect();
    let found: BTreeSet<&str> = sources.flat_map(Source::files).collect();
    let wrong: Vec<&str> = listed
        .symmetric_difference(&found)
        .copied()
        .filter(|file| file.starts_with(folder) || !listed.contains(file))
        .collect();
    assert!(
        !found.is_empty() && wrong.is_empty(),
        "xtask/src/matrix_shaders.txt has or lacks wrongly: {wrong:?}"
    );
}

/// Leaves distinct shaders where the tests of the web package find them: a browser's compiler knows rules that
/// naga does not, uniformity above all.
pub fn write_web_shaders<'a>(family: &str, sources: impl Iterator<Item = &'a Source>) {
    let mut seen = std::collections::HashSet::new();
    let shaders: Vec<_> = sources
        .filter(|source| seen.insert(source.wgsl()))
        .map(|source| serde_json::json!({ "label": source.label(), "wgsl": source.wgsl() }))
        .collect();
    let folder = records().join("web");
    let file = folder.join(format!("{family}.json"));
    std::fs::create_dir_all(&folder).expect("the target folder is ours");
    std::fs::write(&file, serde_json::Value::from(shaders).to_string()).expect("as is the file");
}

/// A reproducible stream of numbers (splitmix64).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`.
    pub fn below(&mut self, n: u32) -> u32 {
        (self.bits() % u64::from(n.max(1))) as u32
    }

    /// In [0, 1).
    pub fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// About normal, rounded to `dtype`.
    pub fn normal(&mut self, dtype: DType, count: usize) -> Vec<f32> {
        let numbers: Vec<f32> =
            (0..count).map(|_| (0..6).map(|_| self.unit() - 0.5).sum::<f32>() * 1.41).collect();
        dtype.decode(&dtype.encode(&numbers))
    }

    /// As `normal`, but −∞ for one in five.
    pub fn bias(&mut self, dtype: DType, count: usize) -> Vec<f32> {
        let mut numbers = self.normal(dtype, count);
        for x in &mut numbers {
            if self.below(5) == 0 {
                *x = f32::NEG_INFINITY;
            }
        }
        numbers
    }
}

/// How a tensor lies in its buffer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Layout {
    /// `[batch, heads, len, dim]`, from the start.
    Dense,
    /// `[batch, len, heads, dim]`.
    Packed,
    /// Rows, heads and batch entries apart by some elements, some elements into the buffer.
    Apart(u64),
    /// All batch entries are one, by stride 0 (inputs only).
    Shared,
}

/// A tensor on the device, among NaNs.
pub struct Placed {
    pub buffer: wgpu::Buffer,
    pub dtype: DType,
    shape: [u32; 4],
    offset: u64,
    strides: [u64; 4],
}

impl Placed {
    /// Places `values` (contiguous `[batch, heads, len, dim]`; NaNs where there are none).
    pub fn new(
        context: &Context,
        dtype: DType,
        shape: [u32; 4],
        layout: Layout,
        values: Option<&[f32]>,
    ) -> Self {
        let [batch, heads, len, dim] = shape.map(u64::from);
        let (offset, strides) = match layout {
            Layout::Dense => (0, [heads * len * dim, len * dim, dim, 1]),
            Layout::Packed => (0, [heads * len * dim, dim, heads * dim, 1]),
            Layout::Shared => (0, [0, len * dim, dim, 1]),
            Layout::Apart(by) => {
                let row = dim + by;
                let head = len * row + by;
                (by, [heads * head + by, head, row, 1])
            }
        };
        let span = offset + (batch * strides[0]).max(heads * strides[1]) + len * strides[2] + dim;
        let mut elements = vec![f32::NAN; span as usize];
        if let Some(values) = values {
            for (index, &x) in values.iter().enumerate() {
                elements[at(index, shape, offset, strides)] = x;
            }
        }
        let mut bytes = dtype.encode(&elements);
        bytes.resize(bytes.len().next_multiple_of(4).max(16), 0xff);
        let buffer = context.device().create_buffer_init(&wgpu::util::BufferInitDescriptor {
            label: None,
            contents: &bytes,
            usage: wgpu::BufferUsages::STORAGE
                | wgpu::BufferUsages::COPY_SRC
                | wgpu::BufferUsages::COPY_DST,
        });
        Self { buffer, dtype, shape, offset, strides }
    }

    pub fn view(&self) -> View<'_> {
        View::new(&self.buffer, self.dtype, self.shape)
            .with_offset(self.offset)
            .with_strides(self.strides)
    }

    /// The values, after a look that nothing around them was written.
    pub fn read(&self, context: &Context) -> Vec<f32> {
        self.read_by(async |whole| context.read(whole).await)
    }

    /// As `read`, of LSEs or scores.
    pub fn read_logits(&self, context: &Context) -> Vec<f32> {
        self.read_by(async |whole| context.read_logits(whole).await)
    }

    fn read_by(&self, read: impl AsyncFnOnce(View<'_>) -> Result<Vec<f32>, Error>) -> Vec<f32> {
        let count = (self.buffer.size() / self.dtype.size()) as u32;
        let whole = View::new(&self.buffer, self.dtype, [1, 1, 1, count]);
        let mut elements = pollster::block_on(read(whole)).expect("readable");
        let total: usize = self.shape.iter().map(|&n| n as usize).product();
        let places = (0..total).map(|index| at(index, self.shape, self.offset, self.strides));
        let values: Vec<f32> = places.clone().map(|place| elements[place]).collect();
        places.for_each(|place| elements[place] = f32::NAN);
        let written = elements.iter().position(|x| !x.is_nan());
        assert_eq!(written, None, "an element outside of the tensor was written");
        values
    }
}

/// Words in a buffer that arrays on the device may be copied from; one at least.
pub fn on_device(context: &Context, words: &[u32]) -> wgpu::Buffer {
    let words = if words.is_empty() { &[0] } else { words };
    context.device().create_buffer_init(&wgpu::util::BufferInitDescriptor {
        label: None,
        contents: bytemuck::cast_slice(words),
        usage: wgpu::BufferUsages::COPY_SRC,
    })
}

/// Where an element lies in a strided buffer, given its contiguous index.
fn at(index: usize, shape: [u32; 4], offset: u64, strides: [u64; 4]) -> usize {
    let mut rest = index as u64;
    let mut place = offset;
    for axis in (0..4).rev() {
        let size = u64::from(shape[axis]);
        place += rest % size * strides[axis];
        rest /= size;
    }
    place as usize
}
