//! The uniform structs of src/params.rs against their WGSL twins, and the bindings that the pipeline
//! layouts spell out against those the shaders declare.

mod common;

use std::mem::{offset_of, size_of};

use wgpu_attention::params::{
    AttentionParams, LinearParams, MergeParams, NarrowParams, RopeParams, ScatterParams,
    WidenParams,
};
use wgpu_attention::{
    Alignment, Attention, Binding, Caps, DType, LinearAttention, LinearVariant, Merge, Rope, Rule,
    Scatter, Shape, Source, Stage, Variant,
};
use wgpu_attention::{Target, wgpu};

/// A member of a struct: its name, offset in bytes and type in WGSL's words.
type Member = (String, usize, &'static str);

/// The WGSL type that holds a Rust type's bits.
trait Twin {
    const WGSL: &'static str;
}

impl Twin for u32 {
    const WGSL: &'static str = "u32";
}

impl Twin for i32 {
    const WGSL: &'static str = "i32";
}

impl Twin for f32 {
    const WGSL: &'static str = "f32";
}

impl Twin for [u32; 4] {
    const WGSL: &'static str = "vec4<u32>";
}

impl Twin for [i32; 4] {
    const WGSL: &'static str = "vec4<i32>";
}

fn twin<S, T: Twin>(_: impl Fn(&S) -> T) -> &'static str {
    T::WGSL
}

/// The members of a Rust struct.
macro_rules! members {
    ($params:ty: $($field:ident)*) => {
        vec![$((
            stringify!($field).to_owned(),
            offset_of!($params, $field),
            twin(|params: &$params| params.$field),
        )),*]
    };
}

/// The members of `Params` in a shader, and its size.
fn declared(module: &naga::Module) -> (Vec<Member>, usize) {
    let (_, params) = module
        .types
        .iter()
        .find(|(_, ty)| ty.name.as_deref() == Some("Params"))
        .expect("a struct named Params");
    let naga::TypeInner::Struct { members, span } = &params.inner else {
        panic!("Params is no struct");
    };
    let member = |m: &naga::StructMember| {
        let name = m.name.clone().expect("a name");
        (name, m.offset as usize, wgsl_type(&module.types[m.ty].inner))
    };
    (members.iter().map(member).collect(), *span as usize)
}

fn wgsl_type(inner: &naga::TypeInner) -> &'static str {
    use naga::{ScalarKind, TypeInner, VectorSize};
    let (vector, scalar) = match *inner {
        TypeInner::Scalar(scalar) => (false, scalar),
        TypeInner::Vector { size: VectorSize::Quad, scalar } => (true, scalar),
        _ => panic!("{inner:?} is no type of a parameter"),
    };
    match (scalar.kind, vector) {
        (ScalarKind::Uint, false) => "u32",
        (ScalarKind::Sint, false) => "i32",
        (ScalarKind::Float, false) => "f32",
        (ScalarKind::Uint, true) => "vec4<u32>",
        (ScalarKind::Sint, true) => "vec4<i32>",
        (kind, _) => panic!("{kind:?} is no kind of a parameter"),
    }
}

/// Every kernel in every dtype and alignment.
fn sources() -> Vec<(Source, naga::Module)> {
    let mut caps = Caps::portable();
    caps.subgroup = Some((32, 32));
    common::add_matrices(&mut caps);
    let mut software = caps.clone();
    software.is_cpu = true;
    let mut sources = Vec::new();
    for dtype in DType::ALL {
        for alignment in [Alignment::Vec8, Alignment::Vec4, Alignment::Any] {
            let attention =
                Attention::new(Shape::new(1, 1, 1, 64), dtype).with_alignment(alignment);
            let scores = attention.clone().with_scores(Stage::Masked);
            let sums = attention.clone().with_block_sums(64, 64);
            for variant in Variant::ALL {
                let attention = match variant {
                    Variant::Scores => &scores,
                    Variant::BlockSums => &sums,
                    _ => &attention,
                };
                let caps = if variant == Variant::Rows { &software } else { &caps };
                let composed = attention.compose(caps, variant, Target::Native);
                // Neither takes tensors by the element, and matrix units f16 only.
                if ![Variant::Coop, Variant::Rows].contains(&variant) || composed.is_ok() {
                    sources.extend(composed.expect("a valid configuration"));
                }
            }
            for rule in [Rule::Gated { per_key_dim: false }, Rule::Delta] {
                let linear = LinearAttention::new(Shape::new(1, 1, 1, 64), dtype)
                    .with_rule(rule)
                    .with_alignment(alignment);
                for variant in LinearVariant::ALL {
                    let caps = if variant == LinearVariant::Columns { &software } else { &caps };
                    let composed = linear.compose(caps, variant, Target::Native);
                    if variant != LinearVariant::Coop || composed.is_ok() {
                        sources.extend(composed.expect("a valid configuration"));
                    }
                }
            }
            let merge = Merge::new(2, [1, 1, 1, 64], dtype).with_alignment(alignment);
            sources.extend(merge.compose(Target::Native).expect("a valid configuration"));
            let rope = Rope::new([1, 1, 1, 64], dtype).with_alignment(alignment);
            sources.extend(rope.compose(Target::Native).expect("a valid configuration"));
            sources.push(Scatter::new([1, 1, 1, 64], 8, dtype).compose(Target::Native));
        }
    }
    let parse = |source: Source| {
        let module = naga::front::wgsl::parse_str(source.wgsl()).expect("valid WGSL");
        (source, module)
    };
    sources.into_iter().map(parse).collect()
}

#[test]
fn parameters_are_where_the_shaders_look() {
    let attention = members!(AttentionParams:
        query key value out lse bias term_words term_left term_right term_limit batch heads
        query_len key_len head_dim value_dim workgroups query_blocks batch_base head_base
        key_head_base value_head_base query_heads key_heads value_heads offset_kind offset
        query_scale softcap sigmoid_bias bias_dtype has_lse document_positions nan query_offset_at
        query_starts_at key_starts_at documents key_lengths_at query_roles_at key_roles_at
        role_table_at tree_bits_at dense_mask_at dense_mask_batch dense_mask_head dense_mask_row
        alibi_slopes_at key_bias_at key_bias_batch key_bias_head sinks_at stage terms list_offsets_at
        list_entries_at list_len list_batch list_head list_head_group list_block_q list_shift
        list_trust part_first part_end resumes);
    let merge = members!(MergeParams:
        parts lse weights out out_lse count batch heads len dim has_logits has_log_weights has_lse
        nan padding_0 padding_1 padding_2);
    let linear = members!(LinearParams:
        query key value out state gate token batch heads group len head_dim features value_dim
        workgroups head_base documents starts_at slopes_at gate_dtype token_dtype carries_in
        carries_out scale epsilon slots first_slot segment_slots slot_capacity slices padding);
    let rope = members!(RopeParams:
        input out cos sin batch heads len dim rotary_dim interleaved table_rows table_dtype
        has_positions positions_batch batch_base padding);
    let scatter = members!(ScatterParams:
        rows cache batch heads len words capacity circular batch_base padding);
    let narrow = members!(NarrowParams: sizes strides source offset end workgroups padding);
    let mut narrows = 0;
    for (source, module) in sources() {
        let (expected, size) = match source.label() {
            "common.narrow" => (&narrow, size_of::<NarrowParams>()),
            "rope.rope" => (&rope, size_of::<RopeParams>()),
            "scatter.scatter" => (&scatter, size_of::<ScatterParams>()),
            "merge.merge" => (&merge, size_of::<MergeParams>()),
            label if label.starts_with("linear.") => (&linear, size_of::<LinearParams>()),
            _ => (&attention, size_of::<AttentionParams>()),
        };
        narrows += u32::from(source.label() == "common.narrow");
        let (members, span) = declared(&module);
        assert_eq!(&members, expected, "{}", source.label());
        assert_eq!(span, size, "{}", source.label());
        assert!(size as u64 <= wgpu::Limits::default().max_uniform_buffer_binding_size);
    }
    assert!(narrows > 0, "no configuration asked for common.narrow");
}

/// No configuration names this kernel: it stands alone.
#[test]
fn widening_is_told_where_the_shader_looks() {
    let text = concat!(
        "const THREADS: u32 = 64u;\n",
        "const MATRICES: bool = false;\n",
        include_str!("../shaders/common/workgroup.wgsl"),
        include_str!("../shaders/common/f16.wgsl"),
        include_str!("../shaders/common/widen.wgsl")
    );
    let module = naga::front::wgsl::parse_str(text).expect("valid WGSL");
    let (members, span) = declared(&module);
    assert_eq!(members, members!(WidenParams: count padding_0 padding_1 padding_2));
    assert_eq!(span, size_of::<WidenParams>());
}

#[test]
fn bindings_are_what_the_layout_says() {
    for (source, module) in sources() {
        let group_of = |(_, variable): (_, &naga::GlobalVariable)| Some(variable.binding?.group);
        let numbered =
            module.global_variables.iter().filter_map(group_of).filter(|&group| group == 1);
        assert_eq!(numbered.count(), 1, "{}", source.label());
        // A number by hand would miss where a part of a dispatch begins.
        let numbers = |text: &str| source.wgsl().matches(text).count();
        assert_eq!(
            (numbers("groups.x"), numbers("workgroup_number(")),
            (1, 2),
            "{}",
            source.label()
        );
        let mut declared: Vec<(u32, Binding)> = module
            .global_variables
            .iter()
            .filter_map(|(_, variable)| {
                let binding = variable.binding.filter(|binding| binding.group != 1)?;
                assert_eq!(binding.group, 0, "{}", source.label());
                let kind = match variable.space {
                    naga::AddressSpace::Uniform => Binding::Uniform,
                    naga::AddressSpace::Storage { access }
                        if access.contains(naga::StorageAccess::STORE) =>
                    {
                        Binding::Write
                    }
                    naga::AddressSpace::Storage { .. } => Binding::Read,
                    other => panic!("{other:?} cannot be bound"),
                };
                Some((binding.binding, kind))
            })
            .collect();
        declared.sort_by_key(|(number, _)| *number);
        let layout: Vec<_> = (0..).zip(source.bindings().iter().copied()).collect();
        assert_eq!(declared, layout, "{}", source.label());
        let storage = layout.iter().filter(|(_, kind)| *kind != Binding::Uniform).count() as u32;
        assert!(storage <= wgpu::Limits::default().max_storage_buffers_per_shader_stage);
    }
}
