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

fn devices() -> [Caps; 3] {
    let device = |memory, invocations, is_cpu| {
        let mut caps = Caps::portable();
        caps.workgroup_memory = memory;
        caps.workgroup_invocations = invocations;
        caps.is_cpu = is_cpu;
        caps
    };
    [device(16 << 10, 256, false), device(32 << 10, 1024, true), device(48 << 10, 1024, false)]
}

/// The shaders of every configuration with its device; dtypes in turn.
fn sources() -> Vec<(Caps, Source, Source)> {
    let dims = [(1, 1), (7, 40), (16, 64), (64, 64), (128, 128), (256, 256), (64, 192)];
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
                            let compose = |target| {
                                linear.compose(&caps, variant, target).expect("every device can")
                            };
                            let both =
                                compose(Target::Native).into_iter().zip(compose(Target::Web));
                            sources.extend(both.map(|(a, b)| (caps.clone(), a, b)));
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

fn translate(module: &naga::Module, info: &naga::valid::ModuleInfo, name: &str) {
    use naga::back::{hlsl, msl, spv};
    let spirv = spv::Options { lang_version: (1, 3), ..Default::default() };
    spv::write_vec(module, info, &spirv, None).unwrap_or_else(|e| panic!("{name}: SPIR-V: {e}"));
    let metal = msl::Options { lang_version: (2, 1), ..Default::default() };
    msl::write_string(module, info, &metal, &msl::PipelineOptions::default())
        .unwrap_or_else(|e| panic!("{name}: MSL: {e}"));
    let direct = hlsl::Options { shader_model: hlsl::ShaderModel::V6_0, ..Default::default() };
    hlsl::Writer::new(&mut String::new(), &direct, &hlsl::PipelineOptions::default())
        .write(module, info, None)
        .unwrap_or_else(|e| panic!("{name}: HLSL: {e}"));
}

#[test]
fn every_shader_compiles_for_every_platform_and_fits_its_device() {
    let mut seen = HashSet::new();
    for (caps, native, web) in sources() {
        // No kernel uses an optional feature, so browsers get the same text.
        assert_eq!(native, web);
        if !seen.insert(native.wgsl().to_owned()) {
            continue;
        }
        let name = native.label();
        let text = native.wgsl();
        let module = naga::front::wgsl::parse_str(text)
            .unwrap_or_else(|error| panic!("{name}: {}", error.emit_to_string(text)));
        // naga's name for unpack2x16float, which WebGPU has at its floor.
        let capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
        let info = Validator::new(ValidationFlags::all(), capabilities)
            .validate(&module)
            .unwrap_or_else(|error| panic!("{name}: {}", error.emit_to_string(text)));
        translate(&module, &info, name);
        let used = workgroup_bytes(&module);
        assert!(used <= caps.workgroup_memory, "{name}: {used} of {}", caps.workgroup_memory);
        let threads: u32 = module.entry_points[0].workgroup_size.iter().product();
        assert!(threads <= caps.workgroup_invocations, "{name}: {threads}");
    }
    assert!(seen.len() > 200, "only {} distinct shaders", seen.len());
}

#[test]
fn web_shaders_are_left_for_the_browser() {
    let sources = sources();
    common::write_web_shaders("linear", sources.iter().map(|(_, _, web)| web));
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
