//! Every kernel of linear attention, composed without a GPU: validated by naga, translated to what
//! Vulkan, Metal and DX12 take, and within the workgroup memory of the device it is for.

mod common;

use std::collections::HashSet;

use naga::valid::{Capabilities, ValidationFlags, Validator};
use wgpu_attention::{
    Alignment, Caps, DType, FeatureMap, LinearAttention, LinearVariant, Rule, Shape, Source, Target,
};

const RULES: [Rule; 6] = [
    Rule::Decay,
    Rule::Gated { per_key_dim: false },
    Rule::Gated { per_key_dim: true },
    Rule::Delta,
    Rule::GatedDelta { per_key_dim: false },
    Rule::GatedDelta { per_key_dim: true },
];

fn devices() -> [Caps; 4] {
    let device = |memory, invocations, is_cpu| {
        let mut caps = Caps::portable();
        caps.workgroup_memory = memory;
        caps.workgroup_invocations = invocations;
        caps.is_cpu = is_cpu;
        // Has the rounds of every loop counted: one without a bound would be refused.
        caps.loop_rounds = is_cpu.then_some(65_535);
        caps
    };
    let large = device(48 << 10, 1024, false);
    let mut matrices = large.clone();
    matrices.subgroup = Some((32, 32));
    common::add_matrices(&mut matrices);
    [device(16 << 10, 256, false), device(32 << 10, 1024, true), large, matrices]
}

/// The shaders of every configuration with its device, and those that browsers get; dtypes in turn.
fn sources() -> Vec<(Caps, Source, Option<Source>)> {
    let dims = [(1, 1), (7, 40), (16, 64), (64, 64), (128, 128), (256, 256), (64, 192), (40, 96)];
    let mut sources = Vec::new();
    let mut turn = 0;
    for caps in devices() {
        for (head_dim, value_dim) in dims {
            for rule in RULES {
                for map in FeatureMap::ALL {
                    for access in [Alignment::Vec4, Alignment::Any] {
                        turn += 1;
                        let shape = Shape::new(1, 2, 100, head_dim).with_value_dim(value_dim);
                        let mut linear = LinearAttention::new(shape, DType::ALL[turn % 3])
                            .with_rule(rule)
                            .with_feature_map(map)
                            .with_alignment(access);
                        if linear.with_normalizer(0.0).validate().is_ok() && turn % 2 == 0 {
                            linear = linear.with_normalizer(0.0);
                        }
                        if linear.validate().is_err() {
                            continue;
                        }
                        for variant in LinearVariant::ALL {
                            let coop = variant == LinearVariant::Coop;
                            // The matrices' own dtype.
                            let mut linear = linear;
                            if coop {
                                linear.dtype = DType::F16;
                            }
                            let some = [LinearVariant::Coop, LinearVariant::Columns];
                            if some.contains(&variant) && variant.supports(&caps, &linear).is_err()
                            {
                                continue;
                            }
                            let compose = |target| linear.compose(&caps, variant, target);
                            let native = compose(Target::Native).expect("every device can");
                            // Browsers have no matrix units.
                            let web = (!coop).then(|| compose(Target::Web).expect("as natively"));
                            let mut web = web.into_iter().flatten();
                            sources
                                .extend(native.into_iter().map(|a| (caps.clone(), a, web.next())));
                        }
                    }
                }
            }
        }
    }
    sources
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

/// `matrices` keeps HLSL out, whose writer has none.
fn translate(module: &naga::Module, info: &naga::valid::ModuleInfo, matrices: bool, name: &str) {
    use naga::back::{hlsl, msl, spv};
    let lang_version = (1, if matrices { 4 } else { 3 });
    let spirv = spv::Options { lang_version, ..Default::default() };
    spv::write_vec(module, info, &spirv, None).unwrap_or_else(|e| panic!("{name}: SPIR-V: {e}"));
    let lang_version = if matrices { (2, 3) } else { (2, 1) };
    let metal = msl::Options { lang_version, ..Default::default() };
    msl::write_string(module, info, &metal, &msl::PipelineOptions::default())
        .unwrap_or_else(|e| panic!("{name}: MSL: {e}"));
    if matrices {
        return;
    }
    let direct = hlsl::Options { shader_model: hlsl::ShaderModel::V6_0, ..Default::default() };
    hlsl::Writer::new(&mut String::new(), &direct, &hlsl::PipelineOptions::default())
        .write(module, info, None)
        .unwrap_or_else(|e| panic!("{name}: HLSL: {e}"));
}

#[test]
fn every_shader_compiles_for_every_platform_and_fits_its_device() {
    let mut seen = HashSet::new();
    for (caps, native, web) in sources() {
        // What browsers get uses no optional feature, so it is the same text.
        assert!(web.is_none_or(|web| web == native));
        if !seen.insert(native.wgsl().to_owned()) {
            continue;
        }
        let name = native.label();
        let text = native.wgsl();
        let module = naga::front::wgsl::parse_str(text)
            .unwrap_or_else(|error| panic!("{name}: {}", error.emit_to_string(text)));
        // naga's name for unpack2x16float, which WebGPU has at its floor.
        let mut capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
        let matrices = native.label().starts_with("linear.coop");
        if matrices {
            assert!(!native.wgsl().contains("// unroll"), "{name}: a marked loop is left");
            capabilities |= Capabilities::SUBGROUP
                | Capabilities::SUBGROUP_BARRIER
                | Capabilities::SHADER_FLOAT16
                | Capabilities::COOPERATIVE_MATRIX;
        }
        let info = Validator::new(ValidationFlags::all(), capabilities)
            .validate(&module)
            .unwrap_or_else(|error| panic!("{name}: {}", error.emit_to_string(text)));
        translate(&module, &info, matrices, name);
        let used = workgroup_bytes(&module);
        assert!(used <= caps.workgroup_memory, "{name}: {used} of {}", caps.workgroup_memory);
        let threads: u32 = module.entry_points[0].workgroup_size.iter().product();
        assert!(threads <= caps.workgroup_invocations, "{name}: {threads}");
    }
    assert!(seen.len() > 200, "only {} distinct shaders", seen.len());
}

#[test]
fn files_of_kernels_on_matrix_units_are_listed() {
    let sources = sources();
    let natives = sources.iter().map(|(_, native, _)| native);
    let of_matrices = natives.filter(|source| source.label().starts_with("linear.coop"));
    common::check_matrix_files("linear/", of_matrices);
}

#[test]
fn web_shaders_are_left_for_the_browser() {
    let sources = sources();
    common::write_web_shaders("linear", sources.iter().filter_map(|(_, _, web)| web.as_ref()));
}

/// Lengths, heads, numbers and documents share pipelines.
#[test]
fn dynamic_facts_do_not_reach_the_text() {
    let texts = |linear: &LinearAttention| -> Vec<String> {
        let variant = LinearVariant::Chunked;
        let composed = linear.compose(&devices()[0], variant, Target::Native).expect("supported");
        composed.iter().map(|source| source.wgsl().to_owned()).collect()
    };
    let plain = LinearAttention::new(Shape::new(1, 1, 1, 64), DType::F16);
    let shape = Shape::new(3, 8, 1000, 64).with_key_value_heads(2);
    let other = LinearAttention::new(shape, DType::F16)
        .with_scale(3.0)
        .with_documents()
        .with_carry(wgpu_attention::Carry::InOut);
    assert_eq!(texts(&plain), texts(&other));
}
