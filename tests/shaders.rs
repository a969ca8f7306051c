//! Every kernel in every static configuration, composed without a GPU: validated by naga and
//! translated to what Vulkan, Metal and DX12 take.

mod common;

use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;

use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use wgpu_attention::{
    Activation, Alignment, Attention, Broadcast, Caps, DType, Keys, Lists, Mask, Merge, MergeRule,
    Positions, Rope, Scatter, Shape, Source, Stage, Target, Tiles, Variant,
};

const DIMS: [u32; 12] = [1, 7, 16, 32, 40, 64, 96, 128, 192, 256, 320, 576];

/// Devices that differ in what the tile table asks about.
fn devices() -> [(&'static str, Caps); 4] {
    let device = |name, memory, invocations, subgroup, is_cpu| {
        let mut caps = Caps::portable();
        caps.workgroup_memory = memory;
        caps.workgroup_invocations = invocations;
        caps.subgroup = subgroup;
        caps.is_cpu = is_cpu;
        // Has the rounds of every loop counted: one without a bound would be refused.
        caps.loop_rounds = is_cpu.then_some(65_535);
        (name, caps)
    };
    [
        device("floor", 16 << 10, 256, None, false),
        device("floor with subgroups", 16 << 10, 256, Some((4, 128)), false),
        device("software", 32 << 10, 1024, Some((8, 8)), true),
        matrix_units(device("large", 48 << 10, 1024, Some((32, 32)), false)),
    ]
}

fn matrix_units((name, mut caps): (&'static str, Caps)) -> (&'static str, Caps) {
    common::add_matrices(&mut caps);
    (name, caps)
}

/// The facts about a configuration that its shader depends on beside dtype, alignment and dims.
#[derive(Clone, Copy, Debug)]
struct Switches {
    sigmoid: bool,
    modified: bool,
    pair_tests: bool,
    four_terms: bool,
}

impl Switches {
    fn all() -> impl Iterator<Item = Self> {
        (0..16).map(|bits| Self {
            sigmoid: bits & 1 != 0,
            modified: bits & 2 != 0,
            pair_tests: bits & 4 != 0,
            four_terms: bits & 8 != 0,
        })
    }

    fn apply(self, mut attention: Attention) -> Attention {
        let first = if self.pair_tests { Mask::dense() } else { Mask::causal() };
        attention.mask = if self.four_terms {
            first | Mask::sink(4) | Mask::prefix(2) | Mask::window(Some(3), None)
        } else {
            first
        };
        if self.sigmoid {
            attention.activation = Activation::Sigmoid { bias: None };
        }
        if self.modified {
            attention = attention.with_softcap(30.0).with_bias(DType::F16, Broadcast::SHARED);
        }
        attention
    }
}

/// A kernel of one configuration on one device.
struct Composed {
    name: String,
    variant: Variant,
    caps: Caps,
    tiles: Option<Tiles>,
    native: Vec<Source>,
    web: Vec<Source>,
}

impl Composed {
    /// `None` where the device cannot.
    fn new(device: &(&str, Caps), variant: Variant, attention: &Attention) -> Option<Self> {
        let (name, caps) = device;
        let attention = match variant {
            Variant::Scores => attention.clone().with_scores(Stage::Probabilities),
            Variant::BlockSums => attention.clone().with_block_sums(128, 64),
            _ => attention.clone(),
        };
        let tiles = variant.tiles(caps, &attention).ok()?;
        let compose = |target| attention.compose(caps, variant, target).expect("supported");
        Some(Self {
            name: format!("{variant} on {name}: {attention:?}"),
            variant,
            caps: caps.clone(),
            tiles,
            native: compose(Target::Native),
            // Browsers have no matrix units.
            web: if variant == Variant::Coop { Vec::new() } else { compose(Target::Web) },
        })
    }
}

/// Every variant
/// - on the software device, whose texts are short: all switches, dtypes and alignments at one dim,
///   and all dims, as head dims and as value dims, with all switches off and with all switches on;
/// - on the others, whose loops are written out: all dims on each and all switches on the large one,
///   with the other facts in turn;
/// - lists of keys, in all block sizes: with all switches on the software device, with few on others.
///
/// Dims enter the text as constants of the header, dtypes and alignments as fragments with one
/// interface, so that their pairs with switches matter and their triples do not.
fn composed() -> &'static [Composed] {
    static COMPOSED: OnceLock<Vec<Composed>> = OnceLock::new();
    COMPOSED.get_or_init(|| {
        let [floor, with_subgroups, software, large] = devices();
        let mut composed = Vec::new();
        let alignments = [Alignment::Vec8, Alignment::Vec4, Alignment::Any];
        for (turn, switches) in Switches::all().enumerate() {
            let attention =
                |dtype| switches.apply(Attention::new(Shape::new(1, 1, 100, 64), dtype));
            for (dtype, alignment) in
                DType::ALL.into_iter().flat_map(|d| alignments.map(|a| (d, a)))
            {
                add(&mut composed, &software, attention(dtype).with_alignment(alignment));
            }
            let alignment = alignments[(turn + turn / 3) % 3];
            let attention = attention(DType::ALL[turn % 3]).with_alignment(alignment);
            add(&mut composed, &large, attention.clone().with_f16_products());
            for keys in lists() {
                let attention = attention.clone().with_keys(keys);
                add(&mut composed, &software, attention.clone());
                if turn % 15 == 0 {
                    add(&mut composed, &floor, attention);
                    // f16, which all variants take.
                    let narrow = Attention::new(Shape::new(1, 1, 100, 64), DType::F16);
                    add(&mut composed, &large, switches.apply(narrow).with_keys(keys));
                }
            }
        }
        for (turn, shape) in shapes().enumerate() {
            let [off, on] = [0, 15].map(|index| Switches::all().nth(index).expect("16"));
            let dtype = DType::ALL[turn % 3];
            for switches in [off, on] {
                for alignment in alignments {
                    let attention = switches.apply(Attention::new(shape, dtype));
                    add(&mut composed, &software, attention.with_alignment(alignment));
                }
            }
            for (index, device) in [&floor, &with_subgroups, &large].into_iter().enumerate() {
                let switches = [off, on][(turn / 2 + index) % 2];
                let dtype = DType::ALL[(turn + index) % 3];
                let attention = switches.apply(Attention::new(shape, dtype)).with_f16_products();
                add(&mut composed, device, attention);
            }
        }
        composed
    })
}

/// Lists whose entries are longer and shorter than tiles, for blocks of queries of all sizes.
fn lists() -> impl Iterator<Item = Keys> {
    [16, 32, 64, 128].into_iter().flat_map(|block_q| {
        let blocks = |block_k| Keys::Blocks { block_q, block_k, lists: Lists::SHARED };
        [blocks(128), blocks(16), Keys::Indices { block_q, lists: Lists::SHARED }]
    })
}

/// Every dim as head dim and as value dim, beside itself and beside another.
fn shapes() -> impl Iterator<Item = Shape> {
    let shape = |(index, dim): (usize, u32)| {
        [dim, DIMS[(index + 5) % DIMS.len()]]
            .map(|value_dim| Shape::new(1, 1, 100, dim).with_value_dim(value_dim))
    };
    DIMS.into_iter().enumerate().flat_map(shape)
}

fn add(composed: &mut Vec<Composed>, device: &(&'static str, Caps), attention: Attention) {
    // Vec4 does not suit every dim.
    if attention.validate().is_ok() {
        let kernel = |variant| Composed::new(device, variant, &attention);
        composed.extend(Variant::ALL.into_iter().filter_map(kernel));
    }
}

fn validate(wgsl: &str, capabilities: Capabilities, name: &str) -> (naga::Module, ModuleInfo) {
    let module = naga::front::wgsl::parse_str(wgsl)
        .unwrap_or_else(|error| panic!("{name}: {}", error.emit_to_string(wgsl)));
    let info = Validator::new(ValidationFlags::all(), capabilities)
        .validate(&module)
        .unwrap_or_else(|error| panic!("{name}: {}", error.emit_to_string(wgsl)));
    (module, info)
}

/// `matrices` keeps HLSL out, whose writer has none.
fn translate(module: &naga::Module, info: &ModuleInfo, matrices: bool, name: &str) {
    use naga::back::{hlsl, msl, spv};
    let spirv = spv::Options {
        lang_version: (1, if matrices { 4 } else { 3 }),
        capabilities: None,
        ..Default::default()
    };
    spv::write_vec(module, info, &spirv, None).unwrap_or_else(|e| panic!("{name}: SPIR-V: {e}"));
    let metal =
        msl::Options { lang_version: if matrices { (2, 3) } else { (2, 1) }, ..Default::default() };
    msl::write_string(module, info, &metal, &msl::PipelineOptions::default())
        .unwrap_or_else(|e| panic!("{name}: MSL: {e}"));
    if matrices {
        return;
    }
    let direct = hlsl::Options { shader_model: hlsl::ShaderModel::V6_0, ..Default::default() };
    let mut text = String::new();
    hlsl::Writer::new(&mut text, &direct, &hlsl::PipelineOptions::default())
        .write(module, info, None)
        .unwrap_or_else(|e| panic!("{name}: HLSL: {e}"));
}

/// Workgroup memory as WGSL counts it: each variable rounded up to 16 bytes.
fn workgroup_bytes(module: &naga::Module) -> u32 {
    let mut layouter = naga::proc::Layouter::default();
    layouter.update(module.to_ctx()).expect("types have layouts");
    module
        .global_variables
        .iter()
        .filter(|(_, variable)| variable.space == naga::AddressSpace::WorkGroup)
        .map(|(_, variable)| layouter[variable.ty].size.next_multiple_of(16))
        .sum()
}

#[test]
fn every_shader_compiles_for_every_platform() {
    let mut seen = HashSet::new();
    for kernel in composed() {
        for source in &kernel.native {
            if !seen.insert(source.wgsl().to_owned()) {
                continue;
            }
            // naga's name for unpack2x16float, which WebGPU has at its floor.
            let mut capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
            capabilities.set(Capabilities::SUBGROUP, kernel.variant == Variant::Subgroup);
            let matrices = kernel.variant == Variant::Coop;
            if matrices {
                capabilities |= Capabilities::SUBGROUP
                    | Capabilities::SUBGROUP_BARRIER
                    | Capabilities::SHADER_FLOAT16
                    | Capabilities::COOPERATIVE_MATRIX;
            }
            let (module, info) = validate(source.wgsl(), capabilities, &kernel.name);
            translate(&module, &info, matrices, &kernel.name);
        }
    }
    eprintln!("{} distinct shaders", seen.len());
    assert!(seen.len() > 400, "only {} distinct shaders", seen.len());
}

/// Tiles claim what the largest of their kernels uses: of one mask term or four.
#[test]
fn tiles_fit_the_device() {
    let mut used = HashMap::new();
    let mut seen = HashSet::new();
    for kernel in composed() {
        let Some(tiles) = kernel.tiles else { continue };
        assert!(tiles.threads() <= kernel.caps.workgroup_invocations, "{}", kernel.name);
        let claimed = tiles.workgroup_bytes(kernel.variant);
        assert!(claimed <= kernel.caps.workgroup_memory, "{}: {claimed} bytes", kernel.name);
        let wgsl = kernel.native[0].wgsl();
        if seen.insert((tiles, kernel.variant, wgsl.contains("const TERMS: u32 = 4u;"))) {
            let module = naga::front::wgsl::parse_str(wgsl).expect("valid");
            let bytes = workgroup_bytes(&module);
            let most = used.entry((tiles, kernel.variant)).or_insert((0, &kernel.name));
            if bytes > most.0 {
                *most = (bytes, &kernel.name);
            }
        }
    }
    for ((tiles, variant), (used, name)) in &used {
        let claimed = tiles.workgroup_bytes(*variant);
        // Each subgroup has the ranges of up to four terms, and some tiles were met with one alone.
        let terms = if *variant == Variant::Coop { 64 * tiles.threads_y } else { 0 };
        assert!(
            (*used..used + 256 + terms).contains(&claimed),
            "{name}: uses {used} bytes and claims {claimed}"
        );
    }
    assert!(used.len() > 20, "only {} tile shapes", used.len());
}

/// A loop that is marked and cannot be written out costs speed without a word. Software has those of
/// one kernel written out, which marks short ones only.
#[test]
fn marked_loops_are_written_out_but_for_software() {
    for kernel in composed() {
        let marks = |line: &str| line.trim() == "// unroll";
        let left = kernel.native[0].wgsl().lines().any(marks);
        let stays = kernel.tiles.is_some() && kernel.variant != Variant::Rows;
        assert_eq!(left, stays && kernel.caps.is_cpu, "{}", kernel.name);
    }
}

/// Browsers want `enable subgroups;` before anything else, exactly where subgroups are used; naga
/// refuses it. Nothing else differs.
#[test]
fn files_of_kernels_on_matrix_units_are_listed() {
    let sources = composed().iter().flat_map(|kernel| &kernel.native);
    let coop = sources.filter(|source| source.label() == Variant::Coop.label());
    common::check_matrix_files("attention/", coop);
}

#[test]
fn only_headers_differ_between_native_and_web() {
    for kernel in composed().iter().filter(|kernel| kernel.variant != Variant::Coop) {
        assert_eq!(kernel.native.len(), kernel.web.len());
        for (native, web) in kernel.native.iter().zip(&kernel.web) {
            let expected = match native.label() == Variant::Subgroup.label() {
                true => format!(
                    "enable subgroups;\ndiagnostic(off, subgroup_uniformity);\n{}",
                    native.wgsl()
                ),
                false => native.wgsl().to_owned(),
            };
            assert_eq!(web.wgsl(), expected, "{}", kernel.name);
        }
    }
}

#[test]
fn web_shaders_are_left_for_the_browser() {
    let small = small_ops(Target::Web);
    let kernels = composed().iter().flat_map(|kernel| &kernel.web);
    common::write_web_shaders("attention", kernels.chain(&small));
}

/// The words of a shader's code, without its comments.
fn words(wgsl: &str) -> HashSet<&str> {
    wgsl.lines()
        .flat_map(|line| {
            let code = line.split("//").next().unwrap_or_default();
            code.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        })
        .collect()
}

/// 16-bit tensors are words of 32 bits: no dtype asks the device for anything.
#[test]
fn no_dtype_needs_a_feature() {
    for kernel in composed().iter().filter(|kernel| kernel.variant != Variant::Coop) {
        for source in &kernel.native {
            let words = words(source.wgsl());
            for feature in ["enable", "requires", "f16", "i16", "u16"] {
                assert!(!words.contains(feature), "{}: `{feature}`", kernel.name);
            }
            if source.label() != Variant::Subgroup.label() {
                let subgroup = words.iter().find(|word| word.contains("subgroup"));
                assert_eq!(subgroup, None, "{}", kernel.name);
            }
        }
    }
}

/// What is no constant of the header shares a pipeline: lengths, heads, numbers, positions, the
/// words of a term, the LSE.
#[test]
fn dynamic_facts_do_not_reach_the_text() {
    let text = |attention: &Attention, variant| {
        let caps = &devices()[3].1;
        let composed = attention.compose(caps, variant, Target::Native).expect("supported");
        composed[0].wgsl().to_owned()
    };
    let plain = Attention::new(Shape::new(1, 1, 1, 64), DType::F16);
    let shape = Shape::new(3, 8, 1000, 64).with_key_value_heads(2).with_key_len(77);
    let other = Attention::new(shape, DType::F16)
        .with_mask(Mask::documents() & Mask::window(Some(9), Some(1)) & Mask::lengths())
        .with_positions(Positions::PerBatch)
        .with_scale(3.0)
        .with_lse();
    for variant in [Variant::Tiled, Variant::Subgroup] {
        assert_eq!(text(&plain, variant), text(&other, variant));
        let capped = plain.clone().with_softcap(5.0);
        let biased = other.clone().with_alibi().with_bias(DType::BF16, Broadcast::SHARED);
        assert_eq!(text(&capped, variant), text(&biased, variant));
        assert_ne!(text(&plain, variant), text(&capped, variant));
    }
}

/// The first variant of the table that a device can run is there on every device.
#[test]
fn every_device_runs_every_configuration() {
    for device in devices() {
        for dim in DIMS {
            for value_dim in DIMS {
                let shape = Shape::new(1, 1, 100, dim).with_value_dim(value_dim);
                let attention = Attention::new(shape, DType::F32);
                assert_eq!(Variant::Tiled.supports(&device.1, &attention), Ok(()), "{shape:?}");
            }
        }
    }
}

/// What stands before and behind attention: merge in every rule, rope and scatter, in every dtype
/// and alignment.
fn small_ops(target: Target) -> Vec<Source> {
    let mut sources = Vec::new();
    for dtype in DType::ALL {
        sources.push(Scatter::new([1, 1, 1, 64], 8, dtype).compose(target));
        for alignment in [Alignment::Vec4, Alignment::Any] {
            let rope = Rope::new([1, 1, 1, 64], dtype).with_alignment(alignment);
            sources.extend(rope.compose(target).expect("valid"));
        }
        for rule in [MergeRule::Lse, MergeRule::Weights, MergeRule::Sum] {
            for dim in DIMS {
                let merge = Merge::new(2, [1, 1, 1, dim], dtype).with_rule(rule);
                sources.extend(merge.compose(target).expect("valid"));
            }
        }
    }
    sources
}

#[test]
fn small_ops_compile_for_every_platform() {
    for source in small_ops(Target::Native) {
        let capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
        let (module, info) = validate(source.wgsl(), capabilities, source.label());
        translate(&module, &info, false, source.label());
    }
}

/// NVIDIA's driver 580.159.04 returns garbage from reductions of integers over a subgroup, see
/// docs/platform.md; emulated matrices run on other drivers.
#[test]
fn no_kernel_reduces_integers_over_a_subgroup() {
    const REDUCTIONS: [&str; 7] = [
        "subgroupMax(",
        "subgroupMin(",
        "subgroupAdd(",
        "subgroupMul(",
        "subgroupAnd(",
        "subgroupOr(",
        "subgroupXor(",
    ];
    let mut folders = vec![std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("shaders")];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder of shaders") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            files += 1;
            let text = std::fs::read_to_string(&path).expect("a shader");
            let mut before = "";
            for (index, line) in text.lines().enumerate() {
                let reduces = REDUCTIONS.iter().any(|name| line.contains(name));
                let allowed = before.trim() == "if (EMULATED) {";
                assert!(!reduces || allowed, "{}:{}", path.display(), index + 1);
                before = line;
            }
        }
    }
    assert!(files > 40, "{files} shaders");
}

#[test]
fn weights_in_f32_leave_out_matrix_units() {
    let [.., (_, large)] = devices();
    let attention = Attention::new(Shape::new(1, 1, 100, 64), DType::F16);
    assert_eq!(Variant::Coop.supports(&large, &attention), Ok(()));
    let refusal = Variant::Coop.supports(&large, &attention.with_f32_weights());
    let reason = refusal.expect_err("it rounds weights").reason;
    assert_eq!(reason, "it rounds weights to f16, and they must keep the precision of f32");
}
