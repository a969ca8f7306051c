//! Bad input gives a sentence that names the tensor or field, what was expected and what came.

mod common;

use common::context;
use wgpu_attention::wgpu::BufferUsages;
use wgpu_attention::{
    Activation, Alignment, Array, Arrays, Attention, Broadcast, Caps, Context, DType, Error,
    Inputs, KeyList, Keys, LinearVariant, Lists, Mask, Outputs, Plan, Positions, Shape, Stage,
    Tiles, Variant, View, wgpu,
};

/// One batch entry, 4 query heads over 2 key-value heads, 5 queries, 7 keys.
fn shape() -> Shape {
    Shape::new(1, 4, 5, 32).with_key_value_heads(2).with_key_len(7)
}

fn plain() -> Attention {
    Attention::new(shape(), DType::F32)
}

/// Checks that an error is a sentence with all of these words.
#[track_caller]
fn assert_says<T>(result: Result<T, Error>, words: &[&str]) {
    let Err(error) = result else { panic!("accepted, but should say {words:?}") };
    let sentence = error.to_string();
    for word in words {
        assert!(sentence.contains(word), "`{sentence}` lacks `{word}`");
    }
}

#[test]
fn configurations() {
    let sigmoid = |bias| plain().with_activation(Activation::Sigmoid { bias });
    let with = |change: fn(&mut Shape)| {
        let mut attention = plain();
        change(&mut attention.shape);
        attention
    };
    let five = (1..=5).map(Mask::sink).reduce(|a, b| a | b).expect("five terms");
    let cases: [(Attention, &[&str]); 18] = [
        (with(|s| s.key_heads = 3), &["shape.key_heads", "divisor of the 4 query heads", "got 3"]),
        (with(|s| s.value_heads = 8), &["shape.value_heads", "divisor", "got 8"]),
        (with(|s| s.key_heads = 0), &["shape.key_heads", "at least 1", "got 0"]),
        (with(|s| s.query_heads = 0), &["shape.key_heads", "0 query heads", "got 2"]),
        (with(|s| s.head_dim = 0), &["shape.head_dim", "1 to 576", "got 0"]),
        (with(|s| s.head_dim = 577), &["shape.head_dim", "1 to 576", "got 577"]),
        (with(|s| s.value_dim = 600), &["shape.value_dim", "1 to 576", "got 600"]),
        (with(|s| s.query_len = u32::MAX), &["shape.query_len", "at most", "4294967295"]),
        (with(|s| s.key_len = 1 << 29), &["shape.key_len", "at most", "536870912"]),
        (plain().with_scale(f32::NAN), &["score.scale", "finite", "NaN"]),
        (plain().with_softcap(0.0), &["score.softcap", "above 0", "got 0"]),
        (plain().with_softcap(f32::INFINITY), &["score.softcap", "finite", "inf"]),
        (sigmoid(Some(f32::NEG_INFINITY)), &["sigmoid bias", "finite", "-inf"]),
        (sigmoid(None).with_sinks(), &["score.sinks", "none with the sigmoid", "sinks"]),
        (sigmoid(None).with_lse(), &["output", "no LSE with the sigmoid", "lse"]),
        (plain().with_mask(five), &["mask", "at most 4", "5 terms"]),
        (
            Attention::new(shape().with_value_dim(7), DType::F16).with_alignment(Alignment::Vec4),
            &["alignment", "multiples of 4", "value_dim 7"],
        ),
        (
            Attention::new(Shape::new(1, 1, 1, 2), DType::F32).with_alignment(Alignment::Vec4),
            &["alignment", "multiples of 4", "head_dim 2"],
        ),
    ];
    for (attention, words) in cases {
        assert_says(attention.validate(), words);
        let composed =
            attention.compose(&Caps::portable(), Variant::Tiled, wgpu_attention::Target::Native);
        assert_says(composed, words);
        assert!(Variant::Tiled.supports(&Caps::portable(), &attention).is_err(), "{attention:?}");
        if let Some(context) = context() {
            assert_says(pollster::block_on(attention.plan(context)), words);
        }
    }
}

#[test]
fn mask_expressions() {
    for (expression, column, got) in [
        ("", 1, ""),
        ("causal &", 9, ""),
        ("casual", 1, "casual"),
        ("causal & (window(3) | sink(2)", 30, ""),
        ("window(x)", 8, "x"),
        ("causal causal", 8, "causal"),
        ("window(99999999999)", 8, "99999999999"),
    ] {
        let column = format!("column {column}:");
        assert_says(expression.parse::<Mask>(), &["expression", expression, &column, got]);
    }
}

#[test]
fn variants() {
    assert_says("fast".parse::<Variant>(), &["variant", "tiled", "subgroup", "`fast`"]);
    let Some(context) = context() else { return };
    let forced = |context: &Context, attention: &Attention, variant| {
        pollster::block_on(attention.plan_with(context, variant))
    };
    let scores = plain().with_scores(Stage::Masked);
    assert_says(forced(context, &scores, Variant::Tiled), &["attention.tiled", "not scores"]);
    assert_says(forced(context, &plain(), Variant::Scores), &["attention.scores", "not an output"]);

    let mock = |change: fn(&mut Caps)| {
        let mut caps = context.caps().clone();
        change(&mut caps);
        Context::with_caps(caps, context.device(), context.queue())
    };
    let without = mock(|caps| caps.subgroup = None);
    assert_says(
        forced(&without, &plain(), Variant::Subgroup),
        &["attention.subgroup", "no subgroup"],
    );
    let few = mock(|caps| caps.storage_buffers = 4);
    let words = ["8 storage buffers", "maxStorageBuffersPerShaderStage is 4"];
    for variant in Variant::ALL {
        assert_says(forced(&few, &plain(), variant), &words);
    }
    assert_says(pollster::block_on(plain().plan(&few)), &words);
    let small = mock(|caps| caps.workgroup_memory = 1024);
    let words = ["1024 bytes", "maxComputeWorkgroupStorageSize"];
    assert_says(forced(&small, &plain(), Variant::Tiled), &words);
    let narrow = mock(|caps| caps.workgroup_invocations = 4);
    let words = ["4 invocations", "maxComputeInvocationsPerWorkgroup"];
    assert_says(pollster::block_on(plain().plan(&narrow)), &words);
    assert_says(forced(&narrow, &scores, Variant::Scores), &words);

    for tiles in [
        Tiles::block((0, 0), (0, 0), 0),
        Tiles::block((u32::MAX, u32::MAX), (u32::MAX, u32::MAX), 1),
        Tiles::block((64, 32), (8, 7), 1),
        Tiles::block((64, 24), (8, 8), 1),
    ] {
        for variant in Variant::ALL {
            let attention = if variant == Variant::Scores { &scores } else { &plain() };
            let Ok(()) = variant.supports(context.caps(), attention) else { continue };
            let planned = pollster::block_on(attention.plan_tiles(context, variant, tiles));
            assert_says(planned, &["tiles", "fit the device", "block_q"]);
        }
    }
}

const STORAGE: BufferUsages =
    BufferUsages::STORAGE.union(BufferUsages::COPY_SRC).union(BufferUsages::COPY_DST);

/// Buffers for one call, each exactly as large as its tensor.
struct Tensors {
    query: wgpu::Buffer,
    key: wgpu::Buffer,
    value: wgpu::Buffer,
    out: wgpu::Buffer,
    lse: wgpu::Buffer,
}

fn buffer(context: &Context, elements: u64, usage: BufferUsages) -> wgpu::Buffer {
    let size = 4 * elements;
    let descriptor = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
    context.device().create_buffer(&descriptor)
}

fn count(shape: [u32; 4]) -> u64 {
    shape.into_iter().map(u64::from).product()
}

impl Tensors {
    fn new(context: &Context, shape: Shape) -> Self {
        let tensor = |shape| buffer(context, count(shape), STORAGE);
        Self {
            query: tensor(shape.query()),
            key: tensor(shape.key()),
            value: tensor(shape.value()),
            out: tensor(shape.out()),
            lse: tensor(shape.lse()),
        }
    }

    /// The five views of a correct call with LSE.
    fn views(&self, shape: Shape) -> [View<'_>; 5] {
        let view = |buffer, shape| View::new(buffer, DType::F32, shape);
        [
            view(&self.query, shape.query()),
            view(&self.key, shape.key()),
            view(&self.value, shape.value()),
            view(&self.out, shape.out()),
            view(&self.lse, shape.lse()),
        ]
    }
}

fn plan(attention: &Attention, context: &Context) -> Plan {
    pollster::block_on(attention.plan(context)).expect("a plan")
}

fn bind_lse(plan: &Plan, views: &[View<'_>; 5]) -> Result<(), Error> {
    let [query, key, value, out, lse] = *views;
    plan.bind(&Inputs::new(query, key, value), &Outputs::new(out).with_lse(lse)).map(|_| ())
}

const NAMES: [&str; 5] = ["`query`", "`key`", "`value`", "`out`", "`lse`"];

#[test]
fn shapes_dtypes_and_strides() {
    let Some(context) = context() else { return };
    let tensors = Tensors::new(context, shape());
    let views = tensors.views(shape());
    let plan = plan(&plain().with_lse(), context);
    assert_eq!(bind_lse(&plan, &views), Ok(()));
    for (index, name) in NAMES.into_iter().enumerate() {
        let with = |change: &dyn Fn(&mut View<'_>)| {
            let mut views = views;
            change(&mut views[index]);
            bind_lse(&plan, &views)
        };
        for axis in 0..4 {
            let expected = format!("shape {:?}", views[index].shape);
            let wrong = with(&|view| view.shape[axis] += 1);
            assert_says(wrong, &[name, &expected, "[batch, heads, len, dim]", "got ["]);
        }
        let wrong = with(&|view| view.dtype = DType::F16);
        assert_says(wrong, &[name, "dtype f32", "got f16"]);

        let size = views[index].buffer.size();
        let inside = format!("inside its buffer of {size} bytes");
        for offset in [4, size, 1 << 40, u64::MAX / 2, u64::MAX] {
            let got = format!("offset {offset}");
            assert_says(with(&|view| view.offset = offset), &[name, &inside, &got]);
        }
        for axis in 1..3 {
            for stride in [1 << 20, u64::MAX / 2, u64::MAX] {
                let wrong = with(&|view| view.strides[axis] = stride);
                assert_says(wrong, &[name, &inside, &stride.to_string()]);
            }
        }
        if views[index].shape[3] > 1 {
            let wrong = with(&|view| view.strides[3] = 2);
            assert_says(wrong, &[name, "stride 1 on the last axis", "2]"]);
        }
        let unusable = buffer(context, size / 4, BufferUsages::COPY_SRC);
        let mut wrong = views;
        wrong[index].buffer = &unusable;
        let wrong = bind_lse(&plan, &wrong);
        assert_says(wrong, &[name, "usage STORAGE", "COPY_SRC"]);
    }
}

/// Outputs have a place of their own for each element; offsets and strides suit the plan's
/// alignment.
#[test]
fn overlapping_and_misaligned_views() {
    let Some(context) = context() else { return };
    let mut large = shape();
    large.batch = 64;
    let tensors = Tensors::new(context, large);
    let views = tensors.views(shape());
    let plan = plan(&plain().with_lse(), context);
    for (index, name) in NAMES.into_iter().enumerate() {
        let with = |change: &dyn Fn(&mut View<'_>)| {
            let mut views = views;
            change(&mut views[index]);
            bind_lse(&plan, &views)
        };
        for axis in 1..3 {
            let repeated = with(&|view| view.strides[axis] = 0);
            if index < 3 {
                assert_eq!(repeated, Ok(()), "{name} may repeat its elements");
            } else {
                assert_says(repeated, &[name, "a place of its own", "strides"]);
            }
        }
        let odd = [with(&|view| view.offset = 2), with(&|view| view.strides = [0, 200, 33, 1])];
        for misaligned in odd {
            if index < 4 {
                let words = [name, "multiples of 4 elements", "Alignment::Any", "offset"];
                assert_says(misaligned, &words);
            } else {
                assert_eq!(misaligned, Ok(()), "{name} is written by the element");
            }
        }
    }

    let half = |index: usize, attention: Attention| {
        let mut views = views;
        views.iter_mut().for_each(|view| view.dtype = DType::F16);
        views[index].offset = 4;
        let [query, key, value, out, _] = views;
        let plan = crate::plan(&attention, context);
        plan.bind(&Inputs::new(query, key, value), &Outputs::new(out)).map(|_| ())
    };
    let eights = Attention::new(shape(), DType::F16);
    for (index, name) in NAMES.into_iter().enumerate().take(4) {
        let words = [name, "multiples of 8 elements", "Alignment::Vec4", "offset 4"];
        assert_says(half(index, eights.clone()), &words);
        assert_eq!(half(index, eights.clone().with_alignment(Alignment::Vec4)), Ok(()), "{name}");
    }
}

#[test]
fn outputs_share_no_buffer() {
    let Some(context) = context() else { return };
    let tensors = Tensors::new(context, shape());
    let large = buffer(context, 1 << 16, STORAGE);
    let attention = plain().with_lse().with_bias(DType::F32, Broadcast::SHARED);
    let biased = plan(&attention, context);
    let bias = buffer(context, 5 * 7, STORAGE);
    let bind = |views: &[View<'_>; 5], bias: View<'_>| {
        let [query, key, value, out, lse] = *views;
        let inputs = Inputs::new(query, key, value).with_bias(bias);
        biased.bind(&inputs, &Outputs::new(out).with_lse(lse)).map(|_| ())
    };
    let views = tensors.views(shape());
    let bias = View::new(&bias, DType::F32, [1, 1, 5, 7]);
    assert_eq!(bind(&views, bias), Ok(()));
    for output in [3, 4] {
        for input in 0..3 {
            let mut shared = views;
            shared[input].buffer = &large;
            shared[output].buffer = &large;
            shared[output].offset = 32768;
            let words = [NAMES[output], NAMES[input], "share one wgpu::Buffer"];
            assert_says(bind(&shared, bias), &words);
        }
        let mut shared = views;
        shared[output].buffer = &large;
        let shared_bias = View::new(&large, DType::F32, [1, 1, 5, 7]).with_offset(4096);
        assert_says(bind(&shared, shared_bias), &[NAMES[output], "`bias`", "share"]);
    }
    // Two outputs may share one, apart.
    let at = |offset| {
        let mut shared = views;
        shared[3].buffer = &large;
        shared[4].buffer = &large;
        shared[4].offset = offset;
        bind(&shared, bias)
    };
    assert_eq!(at(4096), Ok(()));
    for offset in [0, 100, 639] {
        assert_says(at(offset), &["`lse`", "`out`", "256 bytes apart", "bytes"]);
    }
}

#[test]
fn tensors_and_arrays_are_there_exactly_when_used() {
    let Some(context) = context() else { return };
    let tensors = Tensors::new(context, shape());
    let [query, key, value, out, lse] = tensors.views(shape());
    let inputs = Inputs::new(query, key, value);
    let plain_plan = plan(&plain(), context);
    let bind = |plan: &Plan, inputs: &Inputs<'_>, outputs: &Outputs<'_>| {
        plan.bind(inputs, outputs).map(|_| ())
    };
    assert_says(
        bind(&plain_plan, &inputs, &Outputs::new(out).with_lse(lse)),
        &["`lse`", "expected none", "a view"],
    );
    assert_says(
        bind(&plain_plan, &inputs.with_bias(query), &Outputs::new(out)),
        &["`bias`", "expected none", "a view"],
    );
    assert_says(
        bind(&plain_plan, &inputs, &Outputs::scores(out)),
        &["`out`", "f32 [1, 4, 5, 32]", "got none"],
    );
    let with_lse = plan(&plain().with_lse(), context);
    assert_says(
        bind(&with_lse, &inputs, &Outputs::new(out)),
        &["`lse`", "f32 [1, 4, 5, 1]", "got none"],
    );
    let scores = plan(&plain().with_scores(Stage::Scaled), context);
    assert_says(bind(&scores, &inputs, &Outputs::new(out)), &["`out`", "expected none"]);

    let masked = plain().with_mask(Mask::documents() & Mask::lengths());
    let masked = plan(&masked.with_positions(Positions::PerBatch), context);
    let refuse = |arrays: Arrays<'_>, words: &[&str]| {
        assert_says(bind(&masked, &inputs.with_arrays(arrays), &Outputs::new(out)), words);
    };
    let mut arrays = Arrays::default();
    refuse(arrays, &["`query_offset`", "1 values", "got nothing"]);
    arrays.query_offset = Some(Array::i32(&[3]));
    refuse(arrays, &["`key_lengths`", "1 values", "got nothing"]);
    arrays.key_lengths = Some(Array::u32(&[8]));
    refuse(arrays, &["`key_lengths`", "from 0 to 7", "8 at index 0"]);
    arrays.key_lengths = Some(Array::u32(&[7]));
    refuse(arrays, &["`cu_seqlens_q`", "2 values", "got nothing"]);
    arrays.query_starts = Some(Array::u32(&[0, 4, 3]));
    arrays.key_starts = Some(Array::u32(&[0, 4, 7]));
    refuse(arrays, &["`cu_seqlens_q`", "ascending", "3 after 4 at index 2"]);
    arrays.query_starts = Some(Array::u32(&[0, 4, 5]));
    arrays.key_starts = Some(Array::u32(&[0, 4, 8]));
    refuse(arrays, &["`cu_seqlens_k`", "at most 7", "got 8"]);
    arrays.key_starts = Some(Array::u32(&[0, 7]));
    refuse(arrays, &["`cu_seqlens_k`", "3 values", "got 2 values"]);
    arrays.key_starts = Some(Array::u32(&[0, 4, 7]));
    arrays.alibi_slopes = Some(Array::f32(&[1.0; 4]));
    refuse(arrays, &["`alibi_slopes`", "does not use it", "4 values"]);
    arrays.alibi_slopes = None;
    arrays.sinks = Some(Array::f32(&[1.0; 4]));
    refuse(arrays, &["`sinks`", "does not use it", "4 values"]);
    arrays.sinks = None;

    let source = buffer(context, 8, BufferUsages::COPY_SRC);
    let unusable = buffer(context, 8, STORAGE.difference(BufferUsages::COPY_SRC));
    for offset in [8, 1 << 62, u64::MAX] {
        arrays.key_lengths = Some(Array::device(&source, offset, 1));
        let got = format!("1 words from word {offset} on");
        refuse(arrays, &["`key_lengths`", "inside its buffer of 32 bytes", &got]);
    }
    arrays.key_lengths = Some(Array::device(&source, 0, 2));
    refuse(arrays, &["`key_lengths`", "1 values", "2 values"]);
    arrays.key_lengths = Some(Array::device(&unusable, 0, 1));
    refuse(arrays, &["`key_lengths`", "usage COPY_SRC", "STORAGE"]);
    arrays.key_lengths = Some(Array::device(&source, 7, 1));
    assert_eq!(bind(&masked, &inputs.with_arrays(arrays), &Outputs::new(out)), Ok(()));
}

/// What no splitting can help names the tensor and the limit.
#[test]
fn limits() {
    let Some(context) = context() else { return };
    let mut caps = context.caps().clone();
    caps.storage_binding = 512;
    caps.storage_alignment = 256;
    let mock = Context::with_caps(caps.clone(), context.device(), context.queue());
    let bind = |context: &Context, attention: &Attention, arrays: Arrays<'_>| {
        let tensors = Tensors::new(context, attention.shape);
        let [query, key, value, out, _] = tensors.views(attention.shape);
        let inputs = Inputs::new(query, key, value).with_arrays(arrays);
        plan(attention, context).bind(&inputs, &Outputs::new(out)).map(|_| ())
    };
    let limit = ["maxStorageBufferBindingSize is 512"];
    let none = Arrays::default;
    for (shape, name) in [
        (Shape::new(1, 2, 5, 32).with_key_len(3).with_value_dim(4), "`query`"),
        (Shape::new(1, 2, 2, 32).with_key_len(5).with_value_dim(4), "`key`"),
        (Shape::new(2, 1, 2, 4).with_key_len(5).with_value_dim(32), "`value`"),
        (Shape::new(2, 2, 5, 4).with_key_len(3).with_value_dim(32), "`out`"),
    ] {
        let words = [name, "one head", "needs 640", limit[0]];
        assert_says(bind(&mock, &Attention::new(shape, DType::F32), none()), &words);
    }
    let dense = Attention::new(Shape::new(1, 1, 16, 4).with_key_len(32), DType::F32)
        .with_mask(Mask::dense());
    let mut arrays = none();
    let per_head = Broadcast { per_batch: false, per_head: true };
    arrays.dense_mask = Some((Array::Reserved { len: 16 }, per_head));
    assert_eq!(bind(&mock, &dense, arrays), Ok(()));
    let mut many = dense.clone();
    many.shape = Shape::new(1, 16, 16, 4).with_key_len(32);
    arrays.dense_mask = Some((Array::Reserved { len: 256 }, per_head));
    assert_says(bind(&mock, &many, arrays), &["metadata", "needs 1024", limit[0]]);

    caps.storage_binding = context.caps().storage_binding;
    caps.workgroups_per_dimension = 2;
    let mock = Context::with_caps(caps, context.device(), context.queue());
    let heads = Attention::new(Shape::new(1, 5, 1, 4), DType::F32);
    let words = ["dispatch", "maxComputeWorkgroupsPerDimension is 2", "needs 3"];
    assert_says(bind(&mock, &heads, none()), &words);
}

/// Numbers that no memory could hold are refused, not multiplied.
#[test]
fn sizes_that_overflow() {
    let Some(context) = context() else { return };
    let one = buffer(context, 1 << 20, STORAGE);
    let other = buffer(context, 1 << 20, STORAGE);
    // A million keys that are all one.
    let shape = Shape::new(1, 1, 1 << 17, 4).with_key_len(1 << 28);
    let all_one = |shape| View::new(&one, DType::F32, shape).with_strides([0, 0, 0, 1]);
    let inputs = Inputs::new(all_one(shape.query()), all_one(shape.key()), all_one(shape.value()));
    let out = Outputs::new(View::new(&other, DType::F32, shape.out()));
    assert!(plan(&Attention::new(shape, DType::F32), context).bind(&inputs, &out).is_ok());

    let masked = Attention::new(shape, DType::F32).with_mask(Mask::dense());
    let masked = plan(&masked, context);
    let mut arrays = Arrays::default();
    arrays.dense_mask = Some((Array::Reserved { len: 1 << 40 }, Broadcast::SHARED));
    let bound = masked.bind(&inputs.with_arrays(arrays), &out);
    assert_says(bound, &["metadata", "maxStorageBufferBindingSize"]);

    let many = all_one([u32::MAX, u32::MAX, u32::MAX, 1]);
    let read = pollster::block_on(context.read(many));
    assert_says(read, &["`read`", "host can hold", "4294967295"]);
}

#[test]
fn reading_back() {
    let Some(context) = context() else { return };
    let closed = buffer(context, 8, BufferUsages::STORAGE);
    let view = View::new(&closed, DType::F32, [1, 1, 2, 4]);
    let read = pollster::block_on(context.read(view));
    assert_says(read, &["`read`", "usage COPY_SRC", "STORAGE"]);
    let open = buffer(context, 8, STORAGE);
    let view = View::new(&open, DType::F32, [1, 1, 3, 4]);
    let read = pollster::block_on(context.read(view));
    assert_says(read, &["`read`", "inside its buffer of 32 bytes", "byte 48"]);
}

/// Kernels are taken by the name on the command line and by the label that reports print.
#[test]
fn kernels_by_name_and_label() {
    for variant in Variant::ALL {
        assert_eq!(variant.name().parse(), Ok(variant));
        assert_eq!(variant.label().parse(), Ok(variant));
    }
    for variant in LinearVariant::ALL {
        assert_eq!(variant.name().parse(), Ok(variant));
        assert_eq!(variant.label().parse(), Ok(variant));
    }
    for name in ["", "attention.", "attention.chunked", "linear.tiled", "Tiled"] {
        assert_says(name.parse::<Variant>(), &["variant", "one of coop", "`"]);
        assert_says(name.parse::<LinearVariant>(), &["variant", "one of coop", "`"]);
    }
}

/// Lists of another kind are named in words.
#[test]
fn lists_of_another_kind() {
    let indices = Keys::Indices { block_q: 16, lists: Lists::SHARED };
    for (keys, got) in
        [(indices, "got a list of single keys"), (Keys::Dense, "got no list (dense)")]
    {
        let list = KeyList::from_block_mask(keys, &shape(), &[true]);
        assert_says(list, &["`keys`", "expected a list of blocks, for a block mask", got]);
    }
    let list = KeyList::from_rows(indices, &shape(), &[vec![0, 3]]).expect("valid");
    let top = list.top_blocks(&shape(), &[1.0], 0.5);
    assert_says(top, &["`keys`", "expected a list of blocks", "got a list of single keys"]);
    // No keys are no range that a key could be in.
    let block = Keys::Blocks { block_q: 16, block_k: 16, lists: Lists::SHARED };
    let empty = shape().with_key_len(0);
    let list = KeyList::from_rows(block, &empty, &[vec![0]]);
    assert_says(list, &["list_entries", "expected no keys, since there are none", "got 0"]);
}
