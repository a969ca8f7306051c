//! What the device tests share: one context a test binary, tensors in awkward places, and the
//! comparison of every supported variant with the f64 reference.
#![allow(dead_code, reason = "every test binary uses a part of this")]

pub mod linear;

use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use wgpu_attention::attention::reference::{HostInputs, Reference};
use wgpu_attention::wgpu::util::DeviceExt as _;
use wgpu_attention::{
    Alignment, Array, Arrays, Attention, Broadcast, Caps, Context, DType, Error, Inputs, KeyList,
    Output, Outputs, Plan, Shape, Source, Variant, View, pack_mask, wgpu,
};

/// Turns a missing adapter from a loud skip into a failure.
pub const REQUIRE_ADAPTER: &str = "WGPU_ATTENTION_REQUIRE_ADAPTER";

/// The path of a file of `tests/data`, which lies elsewhere on a machine without the sources.
pub fn data(name: &str) -> String {
    let folder = std::env::var("WGPU_ATTENTION_TEST_DATA")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data").into());
    format!("{folder}/{name}")
}

/// A command that starts the program, which lies elsewhere on a machine without the sources. Cargo
/// tells its place only to tests that are built with the program.
#[allow(unused_macros, reason = "every test binary uses a part of this")]
macro_rules! program {
    () => {{
        let mut program = std::process::Command::new(
            std::env::var_os("WGPU_ATTENTION_PROGRAM")
                .unwrap_or_else(|| env!("CARGO_BIN_EXE_wgpu-attention").into()),
        );
        // The user's own is none of the tests' business.
        program.env("WGPU_ATTENTION_CACHE", "off");
        program
    }};
}
#[allow(unused_imports, reason = "every test binary uses a part of this")]
pub(crate) use program;

/// The context of this test binary, or `None`, said loudly, where there is no adapter.
pub fn context() -> Option<&'static Context> {
    static CONTEXT: OnceLock<Option<Context>> = OnceLock::new();
    let context = CONTEXT.get_or_init(|| match pollster::block_on(Context::request()) {
        Ok(context) => {
            eprintln!("testing on {}", context.caps().adapter);
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

/// Notes how many cases of a suite passed on this driver, for `cargo xtask conformance`.
pub fn conformance(context: &Context, suite: &str, passed: usize, total: usize) {
    let adapter = &context.caps().adapter;
    let known = [("llvmpipe", "lavapipe"), ("SwiftShader", "SwiftShader")];
    let driver = known.into_iter().find(|(mark, _)| adapter.contains(mark));
    let driver = driver.map_or(adapter.split(" (").next().unwrap_or(adapter), |(_, name)| name);
    let line = format!("{suite}\t{driver}\t{passed}\t{total}\n");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("conformance");
    let file = folder.join(format!("{suite} on {driver}.tsv"));
    // On a machine that has only the test's binary there is nothing to keep the record for.
    match std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(file, &line)) {
        Ok(()) => eprint!("{line}"),
        Err(error) => eprintln!("{} (not recorded: {error})", line.trim_end()),
    }
}

/// Leaves distinct shaders where the tests of the web package find them: a browser's compiler knows rules that
/// naga does not, uniformity above all.
pub fn write_web_shaders<'a>(family: &str, sources: impl Iterator<Item = &'a Source>) {
    let mut seen = std::collections::HashSet::new();
    let shaders: Vec<_> = sources
        .filter(|source| seen.insert(source.wgsl()))
        .map(|source| serde_json::json!({ "label": source.label(), "wgsl": source.wgsl() }))
        .collect();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("web");
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
        let count = (self.buffer.size() / self.dtype.size()) as u32;
        let whole = View::new(&self.buffer, self.dtype, [1, 1, 1, count]);
        let mut elements = pollster::block_on(context.read(whole)).expect("readable");
        let total: usize = self.shape.iter().map(|&n| n as usize).product();
        let places = (0..total).map(|index| at(index, self.shape, self.offset, self.strides));
        let values: Vec<f32> = places.clone().map(|place| elements[place]).collect();
        places.for_each(|place| elements[place] = f32::NAN);
        let written = elements.iter().position(|x| !x.is_nan());
        assert_eq!(written, None, "an element outside of the tensor was written");
        values
    }
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

/// The side arrays of a case, owned.
#[derive(Clone, Debug, Default)]
pub struct Sides {
    pub query_offset: Option<Vec<i32>>,
    pub query_starts: Option<Vec<u32>>,
    pub key_starts: Option<Vec<u32>>,
    pub key_lengths: Option<Vec<u32>>,
    pub query_roles: Option<Vec<u32>>,
    pub key_roles: Option<Vec<u32>>,
    pub role_table: Option<Vec<u32>>,
    pub tree_bits: Option<Vec<u32>>,
    pub dense_mask: Option<(Vec<u32>, Broadcast)>,
    pub alibi_slopes: Option<Vec<f32>>,
    pub key_bias: Option<Vec<f32>>,
    pub sinks: Option<Vec<f32>>,
    pub list: Option<KeyList>,
}

impl Sides {
    /// Draws every array that the configuration refers to.
    pub fn draw(attention: &Attention, random: &mut Random) -> Self {
        let shape = &attention.shape;
        let (mask, score) = (&attention.mask, &attention.score);
        let mut sides = Self::default();
        if attention.positions == wgpu_attention::Positions::PerBatch {
            let span = shape.query_len + shape.key_len + 1;
            let offset = |_| random.below(span) as i32 - shape.query_len as i32;
            sides.query_offset = Some((0..shape.batch).map(offset).collect());
        }
        if mask.any(|t| t.documents) {
            let documents = 1 + random.below(4);
            sides.query_starts = Some(starts(random, documents, shape.query_len));
            sides.key_starts = Some(starts(random, documents, shape.key_len));
        }
        if mask.any(|t| t.lengths) {
            let lengths = (0..shape.batch).map(|_| random.below(shape.key_len + 1)).collect();
            sides.key_lengths = Some(lengths);
        }
        if mask.any(|t| t.roles) {
            sides.query_roles = Some((0..shape.query_len).map(|_| random.below(8)).collect());
            sides.key_roles = Some((0..shape.key_len).map(|_| random.below(8)).collect());
            sides.role_table = Some((0..8).map(|_| random.below(256)).collect());
        }
        if mask.any(|t| t.tree) {
            let bits = (0..2 * shape.query_len).map(|_| random.bits() as u32).collect();
            sides.tree_bits = Some(bits);
        }
        if mask.any(|t| t.dense) {
            let broadcast = random.broadcast();
            let (batch, heads) = broadcast.sizes(shape.batch, shape.query_heads);
            let pairs = batch * heads * shape.query_len * shape.key_len;
            let keep: Vec<bool> = (0..pairs).map(|_| random.below(3) > 0).collect();
            sides.dense_mask = Some((pack_mask(&keep, shape.key_len), broadcast));
        }
        if score.alibi {
            sides.alibi_slopes = Some((0..shape.query_heads).map(|_| random.unit()).collect());
        }
        if let Some(broadcast) = score.key_bias {
            let (batch, heads) = broadcast.sizes(shape.batch, shape.query_heads);
            let count = (batch * heads * shape.key_len) as usize;
            sides.key_bias = Some(random.bias(DType::F32, count));
        }
        if score.sinks {
            let sinks = (0..shape.query_heads).map(|_| 6.0 * random.unit() - 1.0);
            sides.sinks = Some(sinks.collect());
        }
        sides
    }

    pub fn arrays(&self) -> Arrays<'_> {
        let mut arrays = Arrays::default();
        arrays.query_offset = self.query_offset.as_deref().map(Array::i32);
        arrays.query_starts = self.query_starts.as_deref().map(Array::u32);
        arrays.key_starts = self.key_starts.as_deref().map(Array::u32);
        arrays.key_lengths = self.key_lengths.as_deref().map(Array::u32);
        arrays.query_roles = self.query_roles.as_deref().map(Array::u32);
        arrays.key_roles = self.key_roles.as_deref().map(Array::u32);
        arrays.role_table = self.role_table.as_deref().map(Array::u32);
        arrays.tree_bits = self.tree_bits.as_deref().map(Array::u32);
        arrays.dense_mask = self.dense_mask.as_ref().map(|(bits, b)| (Array::u32(bits), *b));
        arrays.alibi_slopes = self.alibi_slopes.as_deref().map(Array::f32);
        arrays.key_bias = self.key_bias.as_deref().map(Array::f32);
        arrays.sinks = self.sinks.as_deref().map(Array::f32);
        match &self.list {
            Some(list) => list.arrays(arrays),
            None => arrays,
        }
    }
}

impl Random {
    pub fn broadcast(&mut self) -> Broadcast {
        Broadcast { per_batch: self.below(2) == 0, per_head: self.below(2) == 0 }
    }
}

/// Cumulative lengths of `documents` documents, some of them empty, within `len`.
fn starts(random: &mut Random, documents: u32, len: u32) -> Vec<u32> {
    let mut starts: Vec<u32> = (0..=documents).map(|_| random.below(len + 1)).collect();
    starts.sort_unstable();
    starts
}

/// One attention call with everything it reads.
pub struct Case {
    pub attention: Attention,
    pub query: Vec<f32>,
    pub key: Vec<f32>,
    pub value: Vec<f32>,
    pub bias: Option<Vec<f32>>,
    pub sides: Sides,
    pub layout: Layout,
}

/// What a case gave.
#[derive(Clone, Debug)]
pub struct Results {
    pub out: Vec<f32>,
    pub lse: Option<Vec<f32>>,
    pub scores: Vec<f32>,
}

impl Case {
    /// Draws all tensors and arrays of a configuration.
    pub fn new(attention: Attention, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let sides = Sides::draw(&attention, &mut random);
        let (shape, dtype) = (attention.shape, attention.dtype);
        let count = |shape: [u32; 4]| shape.iter().map(|&n| n as usize).product::<usize>();
        let bias = attention.score.bias.map(|(dtype, broadcast)| {
            let (batch, heads) = broadcast.sizes(shape.batch, shape.query_heads);
            random.bias(dtype, count([batch, heads, shape.query_len, shape.key_len]))
        });
        Self {
            query: random.normal(dtype, count(shape.query())),
            key: random.normal(dtype, count(shape.key())),
            value: random.normal(dtype, count(shape.value())),
            bias,
            sides,
            layout: Layout::Dense,
            attention,
        }
    }

    /// Sets how all tensors lie in their buffers.
    pub fn with_layout(mut self, layout: Layout) -> Self {
        if layout == Layout::Shared && self.attention.shape.batch > 1 {
            for values in [&mut self.query, &mut self.key, &mut self.value] {
                let entry = values.len() / self.attention.shape.batch as usize;
                let first = values[..entry].to_vec();
                values.chunks_mut(entry.max(1)).for_each(|chunk| chunk.copy_from_slice(&first));
            }
        }
        self.layout = layout;
        self
    }

    pub fn host(&self) -> HostInputs<'_> {
        let mut host = HostInputs::new(&self.query, &self.key, &self.value);
        host.bias = self.bias.as_deref();
        host.with_arrays(self.sides.arrays())
    }

    /// Runs one variant.
    pub fn run(&self, context: &Context, variant: Variant) -> Result<Results, Error> {
        let plan = pollster::block_on(self.attention.plan_with(context, variant))?;
        self.run_plan(context, &plan)
    }

    /// Runs a plan of this case's configuration.
    pub fn run_plan(&self, context: &Context, plan: &Plan) -> Result<Results, Error> {
        let (shape, dtype) = (&self.attention.shape, self.attention.dtype);
        let place = |shape, values| Placed::new(context, dtype, shape, self.layout, Some(values));
        let query = place(shape.query(), &self.query);
        let key = place(shape.key(), &self.key);
        let value = place(shape.value(), &self.value);
        let bias =
            self.attention.score.bias.zip(self.bias.as_deref()).map(|((dtype, b), values)| {
                let (batch, heads) = b.sizes(shape.batch, shape.query_heads);
                let shape = [batch, heads, shape.query_len, shape.key_len];
                Placed::new(context, dtype, shape, Layout::Dense, Some(values))
            });
        let mut inputs =
            Inputs::new(query.view(), key.view(), value.view()).with_arrays(self.sides.arrays());
        inputs.bias = bias.as_ref().map(Placed::view);

        let layout = if self.layout == Layout::Shared { Layout::Dense } else { self.layout };
        let empty = |dtype, shape, layout| Placed::new(context, dtype, shape, layout, None);
        let out = empty(dtype, shape.out(), layout);
        let lse = empty(DType::F32, shape.lse(), Layout::Dense);
        let scores = empty(DType::F32, shape.scores(), Layout::Dense);
        let outputs = match self.attention.output {
            Output::Attention { lse: true } => Outputs::new(out.view()).with_lse(lse.view()),
            Output::Scores(_) => Outputs::scores(scores.view()),
            _ => Outputs::new(out.view()),
        };
        let bound = plan.bind(&inputs, &outputs)?;
        pollster::block_on(context.run(&bound))?;
        let wants_lse = self.attention.output == (Output::Attention { lse: true });
        Ok(Results {
            out: if outputs.out.is_some() { out.read(context) } else { Vec::new() },
            lse: wants_lse.then(|| lse.read(context)),
            scores: if outputs.scores.is_some() { scores.read(context) } else { Vec::new() },
        })
    }

    /// Runs every variant that supports the case and compares it with the reference; says which
    /// ran.
    pub fn check(&self, context: &Context) -> Vec<Variant> {
        let variants = variants(context, &self.attention);
        for &variant in &variants {
            let results = self.run(context, variant).expect("a supported variant runs");
            self.judge(&results, variant.label());
        }
        let emulating = emulating(context);
        let supports =
            |context: &&Context| Variant::Coop.supports(context.caps(), &self.attention).is_ok();
        if let Some(context) = emulating.filter(supports) {
            let results = self.run(context, Variant::Coop).expect("a supported variant runs");
            self.judge(&results, "attention.coop, emulated");
        }
        variants
    }

    /// Compares results with the reference.
    pub fn judge(&self, results: &Results, label: &str) {
        let host = self.host();
        let reference = Reference::new(&self.attention, &host).expect("a valid case");
        let rows = reference.sample(usize::MAX);
        let name =
            || format!("{label}/{} {:?} {:?}", self.attention.dtype, self.layout, self.attention);
        if let Output::Scores(stage) = self.attention.output {
            let found = reference.check_scores(stage, &rows, &results.scores);
            assert!(found.ok, "{}: {found:?}", name());
            return;
        }
        let (out, lse) = reference.check_out(&rows, &results.out, results.lse.as_deref());
        assert!(out.ok, "{}: out {out:?}", name());
        if let Some(lse) = lse {
            assert!(lse.ok, "{}: lse {lse:?}", name());
        }
    }
}

/// The variants that support a configuration; at least one.
pub fn variants(context: &Context, attention: &Attention) -> Vec<Variant> {
    let supports = |v: &Variant| v.supports(context.caps(), attention).is_ok();
    let variants: Vec<_> = Variant::ALL.into_iter().filter(supports).collect();
    assert!(!variants.is_empty(), "no variant supports {attention:?}");
    variants
}

/// The layouts that a configuration's alignment can reach.
pub fn layouts(attention: &Attention) -> Vec<Layout> {
    let apart = match attention.alignment() {
        Alignment::Vec4 => Layout::Apart(4),
        Alignment::Any => Layout::Apart(3),
    };
    vec![Layout::Dense, Layout::Packed, apart, Layout::Shared]
}

/// A small shape for tests that are not about shapes.
pub fn small() -> Shape {
    Shape::new(2, 4, 33, 32).with_key_value_heads(2).with_key_len(65)
}
