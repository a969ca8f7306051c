//! Buffers and bindings: views in awkward places, one plan bound often, arrays on the device, and
//! tensors larger than a device binds.

mod common;

use common::{Call, Case, Layout, Random, context, each_integer, variants};
use wgpu_attention::wgpu::util::DeviceExt as _;
use wgpu_attention::{
    Alignment, Array, Arrays, Attention, Bound, Broadcast, Caps, Context, DType, Error, Inputs,
    Mask, Outputs, Plan, Positions, Shape, Stage, Variant, View, wgpu,
};

fn shape() -> Shape {
    Shape::new(2, 4, 33, 32).with_key_value_heads(2).with_key_len(65)
}

fn plan(context: &Context, attention: &Attention, variant: Variant) -> Plan {
    pollster::block_on(attention.plan_with(context, variant)).expect("a supported variant plans")
}

/// Records some work and waits for it.
fn submit(context: &Context, record: impl FnOnce(&mut wgpu::CommandEncoder)) {
    let mut encoder = context.device().create_command_encoder(&Default::default());
    record(&mut encoder);
    context.queue().submit([encoder.finish()]);
}

fn storage(context: &Context, contents: &[u8]) -> wgpu::Buffer {
    let usage =
        wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
    let descriptor = wgpu::util::BufferInitDescriptor { label: None, contents, usage };
    context.device().create_buffer_init(&descriptor)
}

/// Queries, keys and values side by side in one buffer, as one projection writes them; its offsets
/// are no multiples of 256 bytes.
#[test]
fn inputs_in_one_buffer() {
    let Some(context) = context() else { return };
    let shape = Shape::new(2, 3, 33, 32);
    let (heads, len, dim) = (3, 33, 32);
    let fours = Attention::new(shape, DType::F16).with_alignment(Alignment::Vec4);
    for attention in [Attention::new(shape, DType::F32), Attention::new(shape, DType::F16), fours] {
        let (dtype, first) = (attention.dtype, attention.alignment().elements() as usize);
        let case = Case::new(attention.with_lse(), 1);
        let row = 3 * heads * dim;
        let mut fused = vec![f32::NAN; first + 2 * len * row];
        for (part, tensor) in [&case.query, &case.key, &case.value].into_iter().enumerate() {
            for (index, &x) in tensor.iter().enumerate() {
                let (d, i) = (index % dim, index / dim % len);
                let (h, b) = (index / (dim * len) % heads, index / (dim * len * heads));
                fused[first + (b * len + i) * row + (part * heads + h) * dim + d] = x;
            }
        }
        let buffer = storage(context, &dtype.encode(&fused));
        let strides = [(len * row) as u64, dim as u64, row as u64, 1];
        let view = |part: usize| {
            View::new(&buffer, dtype, shape.query())
                .with_offset((first + part * heads * dim) as u64)
                .with_strides(strides)
        };
        let call = Call::new(context, &case);
        for variant in variants(context, &case.attention) {
            let inputs = Inputs::new(view(0), view(1), view(2));
            let plan = plan(context, &case.attention, variant);
            let bound = plan.bind(&inputs, &call.outputs()).expect("views that fit");
            submit(context, |encoder| bound.encode(encoder));
            case.judge(&call.results(context), "fused projections");
        }
    }
}

/// Keys and values may be one tensor, or overlap.
#[test]
fn keys_and_values_in_one_range() {
    let Some(context) = context() else { return };
    let dim = 32;
    let mut case = Case::new(Attention::new(shape(), DType::F32).with_lse(), 2);
    let keys = case.key.clone();
    let rows = keys.len() / dim;
    // The last rows of the values are beyond the keys.
    let all: Vec<f32> = keys.iter().chain(&keys[..8 * dim]).copied().collect();
    let buffer = storage(context, bytemuck::cast_slice(&all));
    for shift in [0, 1, 8] {
        case.value = all[shift * dim..][..rows * dim].to_vec();
        let call = Call::new(context, &case);
        let key = View::new(&buffer, DType::F32, shape().key());
        let value = key.with_offset((shift * dim) as u64);
        let inputs = Inputs::new(call.query.view(), key, value);
        for variant in variants(context, &case.attention) {
            let plan = plan(context, &case.attention, variant);
            let bound = plan.bind(&inputs, &call.outputs()).expect("views that fit");
            submit(context, |encoder| bound.encode(encoder));
            case.judge(&call.results(context), "shared range");
        }
    }
}

/// Output and LSE may lie in one buffer, and outputs of two calls may lie in each other's gaps,
/// in the other half of a word too.
#[test]
fn outputs_leave_their_neighbours_alone() {
    let Some(context) = context() else { return };
    for (dtype, dim) in [(DType::F32, 32), (DType::F16, 7), (DType::BF16, 7)] {
        let attention = Attention::new(Shape::new(1, 2, 33, dim), dtype).with_lse();
        let cases = [3, 4].map(|seed| Case::new(attention.clone(), seed));
        let calls = cases.each_ref().map(|case| Call::new(context, case));
        let dims = u64::from(dim);
        let (row, rows) = (2 * dims, 2 * 33);
        let lse_at = (row * rows * dtype.size()).next_multiple_of(256) / 4;
        let buffer = storage(context, &vec![0xff; 4 * (lse_at as usize + 2 * rows as usize)]);
        let view = |call: u64| {
            View::new(&buffer, dtype, attention.shape.out())
                .with_offset(call * dims)
                .with_strides([row * rows, row * 33, row, 1])
        };
        let lse = View::new(&buffer, DType::F32, attention.shape.lse()).with_offset(lse_at);
        for variant in variants(context, &attention) {
            let plan = plan(context, &attention, variant);
            let outputs = [
                Outputs::new(view(0)).with_lse(lse),
                Outputs::new(view(1)).with_lse(calls[1].lse.view()),
            ];
            let bind = |index: usize| plan.bind(&calls[index].inputs(), &outputs[index]);
            let bound = [bind(0), bind(1)].map(|bound| bound.expect("views that fit"));
            submit(context, |encoder| bound.iter().for_each(|bound| bound.encode(encoder)));
            let read = |view| pollster::block_on(context.read(view)).expect("readable");
            for (index, case) in cases.iter().enumerate() {
                let lse = read(outputs[index].lse.expect("asked for"));
                let out = read(view(index as u64));
                let results = common::Results { out, lse: Some(lse), scores: Vec::new() };
                case.judge(&results, "interleaved");
            }
        }
    }
}

/// Two bindings of one plan in one encoder, each recorded several times, between the caller's own
/// commands.
#[test]
fn one_plan_bound_twice_and_encoded_often() {
    let Some(context) = context() else { return };
    let attention = Attention::new(shape(), DType::F32)
        .with_mask("lengths & causal".parse().expect("a valid expression"))
        .with_lse();
    let cases = [5, 6].map(|seed| Case::new(attention.clone(), seed).with_layout(Layout::Packed));
    for variant in variants(context, &attention) {
        let plan = plan(context, &attention, variant);
        let alone = cases.each_ref().map(|case| case.run_plan(context, &plan).expect("runs"));
        let calls = cases.each_ref().map(|case| Call::new(context, case));
        let bind = |index: usize| {
            let inputs = calls[index].inputs().with_arrays(cases[index].sides.arrays());
            plan.bind(&inputs, &calls[index].outputs()).expect("views that fit")
        };
        let bound = [bind(0), bind(1)];
        for _ in 0..3 {
            submit(context, |encoder| {
                for turn in [0, 1, 1, 0] {
                    encoder.clear_buffer(&calls[turn].out.buffer, 0, None);
                    bound[turn].encode(encoder);
                }
            });
        }
        for (call, alone) in calls.iter().zip(&alone) {
            let out = pollster::block_on(context.read(call.out.view())).expect("readable");
            assert_eq!(out, alone.out, "{variant}");
            assert_eq!(Some(call.lse.read_logits(context)), alone.lse, "{variant}");
        }
    }
}

/// Arrays on the device are copied at every encode: what a kernel before it wrote counts.
#[test]
fn arrays_on_the_device_are_read_when_encoded() {
    let Some(context) = context() else { return };
    let attention = Attention::new(shape(), DType::F32).with_mask(Mask::lengths()).with_lse();
    let mut case = Case::new(attention.clone(), 7);
    let lengths = storage(context, bytemuck::cast_slice(&[0u32, 0, 0, 5, 65]));
    let others = storage(context, bytemuck::cast_slice(&[64u32, 1]));
    for variant in variants(context, &attention) {
        let plan = plan(context, &attention, variant);
        let [first, second] = [(); 2].map(|()| Call::new(context, &case));
        let mut arrays = Arrays::default();
        arrays.key_lengths = Some(Array::device(&lengths, 3, 2));
        let bind = |call: &Call| {
            let inputs = call.inputs().with_arrays(arrays);
            plan.bind(&inputs, &call.outputs()).expect("views that fit")
        };
        let bound = [bind(&first), bind(&second)];
        context.queue().write_buffer(&lengths, 12, bytemuck::cast_slice(&[5u32, 65]));
        submit(context, |encoder| {
            bound[0].encode(encoder);
            encoder.copy_buffer_to_buffer(&others, 0, &lengths, 12, 8);
            bound[1].encode(encoder);
        });
        for (call, lengths) in [(&first, [5, 65]), (&second, [64, 1])] {
            case.sides.key_lengths = Some(lengths.to_vec());
            case.judge(&call.results(context), "device lengths");
        }
    }
}

/// Reserved arrays are written by the caller where the layout says.
#[test]
fn reserved_arrays_are_the_callers_to_write() {
    let Some(context) = context() else { return };
    let attention = Attention::new(shape(), DType::F32)
        .with_mask(Mask::lengths())
        .with_positions(Positions::PerBatch)
        .with_alibi()
        .with_key_bias(Broadcast { per_batch: false, per_head: true })
        .with_lse();
    let case = Case::new(attention.clone(), 8);
    for variant in variants(context, &attention) {
        let plan = plan(context, &attention, variant);
        let call = Call::new(context, &case);
        let mut arrays = case.sides.arrays();
        arrays.key_lengths = Some(Array::Reserved { len: 2 });
        arrays.key_bias = Some(Array::Reserved { len: 4 * 65 });
        let inputs = call.inputs().with_arrays(arrays);
        let bound = plan.bind(&inputs, &call.outputs()).expect("views that fit");
        let write = |buffer, at: Option<u32>, values: &[u32]| {
            let offset = 4 * u64::from(at.expect("an array that was given"));
            context.queue().write_buffer(buffer, offset, bytemuck::cast_slice(values));
        };
        let given = case.sides.arrays();
        let values = |array: Option<Array<'_>>| -> Vec<u32> {
            array.and_then(|array| array.host().map(<[u32]>::to_vec)).expect("drawn")
        };
        write(bound.metadata(), bound.layout().key_lengths, &values(given.key_lengths));
        write(bound.side(), bound.layout().key_bias, &values(given.key_bias));
        submit(context, |encoder| bound.encode(encoder));
        case.judge(&call.results(context), "reserved arrays");
    }
}

/// Whatever lies in arrays on the device, the work ends and reads nothing but the tensors: finite
/// inputs among NaNs give finite outputs.
#[test]
fn garbage_in_device_arrays_leads_nowhere() {
    let Some(context) = context() else { return };
    let mask: Mask = "documents & causal & lengths | roles & tree & documents \
                      | lengths & window(5,5) & roles | dense & documents & tree"
        .parse()
        .expect("a valid expression");
    let mut random = Random::new(9);
    for positions in [Positions::PerBatch, Positions::BottomRight] {
        let attention = Attention::new(shape(), DType::F32)
            .with_mask(mask.clone())
            .with_positions(positions)
            .with_lse();
        let case = Case::new(attention.clone(), 9).with_layout(Layout::Apart(4));
        for variant in variants(context, &attention) {
            let plan = plan(context, &attention, variant);
            for round in 0..12 {
                let garbage = garbage(&mut random, round);
                let buffer = storage(context, bytemuck::cast_slice(&garbage));
                let call = Call::new(context, &case);
                let mut arrays = case.sides.arrays();
                let mut offset = 0;
                each_integer(&mut arrays, |array| {
                    let len = array.len();
                    *array = Array::device(&buffer, offset, len);
                    offset += len as u64;
                });
                let inputs = call.inputs().with_arrays(arrays);
                let bound = plan.bind(&inputs, &call.outputs()).expect("views that fit");
                submit(context, |encoder| bound.encode(encoder));
                let results = call.results(context);
                let lse = results.lse.as_deref().unwrap_or_default();
                let finite = results.out.iter().all(|x| x.is_finite());
                // −∞ is the LSE of a row without keys.
                let below_infinity = lse.iter().all(|x| *x < f32::INFINITY);
                assert!(finite && below_infinity, "{variant}, {positions:?}, round {round}");
            }
        }
    }
}

/// 4096 words: of one extreme each, then random ones.
fn garbage(random: &mut Random, round: usize) -> Vec<u32> {
    let extremes = [u32::MAX, 1 << 31, i32::MAX as u32, 0, 1 << 29, i32::MAX as u32 - 32];
    let word = |_| match extremes.get(round) {
        Some(&extreme) => extreme,
        // Large ones and, every other time, some that are nearly right.
        None if round.is_multiple_of(2) => random.bits() as u32,
        None => random.below(200).wrapping_sub(60),
    };
    (0..4096).map(word).collect()
}

/// Everything that is indexed by the whole call's batch entries and heads.
fn split_cases() -> Vec<Case> {
    let own = Broadcast { per_batch: true, per_head: true };
    let mask: Mask = "lengths & causal | dense".parse().expect("a valid expression");
    let modified = |shape, dtype| {
        Attention::new(shape, dtype)
            .with_mask(mask.clone())
            .with_positions(Positions::PerBatch)
            .with_alibi()
            .with_key_bias(own)
            .with_bias(dtype, own)
    };
    let shape = Shape::new(3, 6, 40, 32).with_key_heads(2).with_value_heads(3).with_key_len(65);
    let layouts = [Layout::Dense, Layout::Packed, Layout::Apart(3), Layout::Shared];
    let attentions = [
        modified(shape, DType::F32).with_lse(),
        Attention::new(shape, DType::F16).with_alignment(Alignment::Any).with_lse(),
        modified(shape, DType::F16).with_alignment(Alignment::Any).with_lse(),
        modified(shape, DType::BF16).with_scores(Stage::Probabilities),
    ];
    let case = |(index, attention): (usize, Attention)| {
        let mut case = Case::new(attention, index as u64);
        // Every row keeps a key, or bits would be compared that nothing decides.
        if let Some(lengths) = &mut case.sides.key_lengths {
            *lengths = vec![65, 17, 0];
        }
        case.with_layout(layouts[index])
    };
    attentions.into_iter().enumerate().map(case).collect()
}

/// Cut by batch entries and heads, a call gives the bits of the whole.
#[test]
fn tensors_beyond_the_binding_limit_are_cut() {
    let Some(context) = context() else { return };
    let mut caps = context.caps().clone();
    caps.storage_alignment = caps.storage_alignment.max(256);
    caps.workgroups_per_dimension = 32;
    caps.storage_binding = 1 << 16;
    let mock = Context::with_caps(caps, context.device(), context.queue());
    let splits = [limited_device(context), mock];
    for case in split_cases() {
        for variant in variants(context, &case.attention) {
            let whole = case.run(context, variant).expect("runs");
            case.judge(&whole, variant.label());
            for split in &splits {
                let results = case.run(split, variant).expect("runs in pieces");
                let name = || format!("{variant} at {} bytes", split.caps().storage_binding);
                assert_eq!(results.out, whole.out, "{}: {:?}", name(), case.attention);
                assert_eq!(results.lse, whole.lse, "{}: {:?}", name(), case.attention);
                assert_eq!(results.scores, whole.scores, "{}: {:?}", name(), case.attention);
            }
        }
    }
}

/// A device that itself refuses bindings beyond 24 KiB, at offsets of 256 bytes, and long
/// dispatches.
fn limited_device(shared: &Context) -> Context {
    let adapters = pollster::block_on(Context::adapters());
    let same =
        |adapter: &&wgpu::Adapter| shared.caps().adapter.starts_with(&adapter.get_info().name);
    let adapter = adapters.iter().find(same).expect("the adapter of the shared context");
    let required_limits = wgpu::Limits {
        max_storage_buffer_binding_size: 24 << 10,
        min_storage_buffer_offset_alignment: 256,
        max_storage_buffers_per_shader_stage: 8,
        max_compute_workgroups_per_dimension: 32,
        ..adapter.limits()
    };
    let descriptor = wgpu::DeviceDescriptor {
        required_features: adapter.features() & wgpu::Features::SUBGROUP,
        required_limits,
        ..Default::default()
    };
    let (device, queue) =
        pollster::block_on(adapter.request_device(&descriptor)).expect("a device");
    Context::new(adapter, &device, &queue)
}

/// More heads than one dimension of a dispatch has, and than a product of two heads fits in 32 bits.
#[test]
fn very_many_heads() {
    let Some(context) = context() else { return };
    let shape = Shape::new(1, 70_000, 1, 4).with_key_heads(70_000).with_value_heads(35_000);
    let attention = Attention::new(shape, DType::F32).with_scores(Stage::Scaled);
    Case::new(attention, 10).check(context);
}

/// `supports` is Ok exactly when planning succeeds.
#[test]
fn supports_is_planning() {
    let Some(context) = context() else { return };
    let mock = |change: fn(&mut Caps)| {
        let mut caps = context.caps().clone();
        change(&mut caps);
        Context::with_caps(caps, context.device(), context.queue())
    };
    let mocks = [
        mock(|caps| (caps.workgroup_invocations, caps.workgroup_memory) = (128, 16 << 10)),
        mock(|caps| (caps.subgroup, caps.workgroup_memory) = (None, 16 << 10)),
        mock(|caps| caps.workgroup_memory = 2 << 10),
        mock(|caps| caps.workgroup_invocations = 31),
        mock(|caps| caps.storage_buffers = 4),
        mock(|caps| caps.storage_binding = 1 << 20),
        mock(|caps| caps.subgroup = Some((2, 64))),
        mock(|caps| caps.subgroup = Some((8, 32))),
        mock(|caps| caps.workgroup_invocations = 48),
    ];
    let attention = |dim| Attention::new(Shape::new(1, 1, 1, dim), DType::F32);
    let halves = Attention::new(Shape::new(1, 1, 1, 33), DType::F16);
    let attentions =
        [attention(32), attention(300), attention(32).with_scores(Stage::Scaled), halves.clone()];
    // A second kernel writes what this one cannot, and needs its own invocations.
    let small = mocks.last().expect("one of them").caps();
    assert!(Variant::Tiled.supports(small, &attention(33)).is_ok());
    assert!(Variant::Tiled.supports(small, &halves).is_err());
    // Where subgroups vary in size, the smallest counts.
    let varied = mocks[mocks.len() - 2].caps();
    for dim in [32, 64, 128, 300] {
        let tiles = Variant::Subgroup.tiles(varied, &attention(dim)).expect("supported");
        assert!(tiles.expect("it has some").lanes <= 8, "{dim}");
    }
    let mut planned = 0;
    for mock in &mocks {
        for attention in &attentions {
            for variant in Variant::ALL {
                let supports = variant.supports(mock.caps(), attention);
                let plan = pollster::block_on(attention.plan_with(mock, variant));
                let name = || format!("{variant} on {:?}: {attention:?}", mock.caps());
                assert_eq!(supports.is_ok(), plan.is_ok(), "{}", name());
                planned += u32::from(plan.is_ok());
                if let Err(Error::Shader { .. }) = plan {
                    panic!("{}: a shader does not compile", name());
                }
            }
            let any = Variant::ALL.iter().any(|v| v.supports(mock.caps(), attention).is_ok());
            assert_eq!(pollster::block_on(attention.plan(mock)).is_ok(), any);
        }
    }
    assert!(planned > 8, "only {planned} plans");
}

/// A plan outlives whatever it was made from, and a binding outlives the plan.
#[test]
fn bindings_own_what_they_need() {
    let Some(context) = context() else { return };
    let case = Case::new(Attention::new(shape(), DType::F32).with_lse(), 11);
    let call = Call::new(context, &case);
    let bound: Bound = {
        let plan = pollster::block_on(case.attention.plan(context)).expect("plans");
        plan.bind(&call.inputs(), &call.outputs()).expect("views that fit")
    };
    let Call { query, key, value, out, lse, .. } = call;
    drop((query, key, value));
    submit(context, |encoder| bound.encode(encoder));
    let lse = Some(lse.read_logits(context));
    case.judge(&common::Results { out: out.read(context), lse, scores: Vec::new() }, "kept");
}
