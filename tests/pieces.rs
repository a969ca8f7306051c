//! Long work in several submissions: the same bits in pieces of any size.

mod common;

use std::time::{Duration, Instant};

use common::{Case, Layout, Placed, Results, context, emulating, variants};
use wgpu_attention::{
    Activation, Attention, Bound, Broadcast, Context, DType, Inputs, KeyList, Keys, Lists, Mask,
    Outputs, Shape, Stage, Variant, wgpu,
};

/// Several blocks of queries of several heads.
fn shape() -> Shape {
    Shape::new(2, 4, 150, 32).with_key_value_heads(2).with_key_len(277)
}

/// Calls that differ in what is dispatched: keys, activation, 16-bit outputs by way of a second
/// kernel, scores and sums.
fn cases() -> Vec<Case> {
    let attention = |dtype| Attention::new(shape(), dtype);
    let listed = |keys: Keys| {
        let mut case = Case::new(attention(DType::F32).with_keys(keys), 7);
        let rows = |_| vec![0, 128];
        let rows: Vec<_> = (0..keys.rows(&shape())).map(rows).collect();
        case.sides.list = Some(KeyList::from_rows(keys, &shape(), &rows).expect("a valid list"));
        case
    };
    let odd = Shape::new(1, 3, 100, 24).with_value_dim(9);
    vec![
        Case::new(attention(DType::F32).with_mask(Mask::causal()).with_lse(), 1),
        Case::new(attention(DType::F16).with_softcap(5.0), 2),
        Case::new(Attention::new(odd, DType::BF16).with_lse(), 3),
        Case::new(attention(DType::F32).with_activation(Activation::Sigmoid { bias: None }), 4),
        Case::new(attention(DType::F32).with_alibi().with_scores(Stage::Probabilities), 5),
        Case::new(attention(DType::F32).with_key_bias(Broadcast::SHARED), 6),
        listed(Keys::Blocks { block_q: 64, block_k: 64, lists: Lists::SHARED }),
        listed(Keys::Indices { block_q: 64, lists: Lists::SHARED }),
    ]
}

fn bits(results: &Results) -> Vec<u32> {
    let lse = results.lse.iter().flatten();
    let numbers = results.out.iter().chain(&results.scores).chain(lse);
    numbers.map(|x| x.to_bits()).collect()
}

#[test]
fn runs_in_pieces_give_the_same_bits() {
    let Some(context) = context() else { return };
    for case in cases() {
        for variant in variants(context, &case.attention) {
            check_pieces(context, &case, variant);
        }
    }
    if let Some(emulating) = emulating(context) {
        let attention = Attention::new(Shape::new(1, 2, 150, 32), DType::F16);
        check_pieces(emulating, &Case::new(attention.with_lse(), 9), Variant::Coop);
    }
}

fn check_pieces(context: &Context, case: &Case, variant: Variant) {
    let whole = context.with_submission_time(Duration::MAX);
    let expected = bits(&case.run(&whole, variant).expect("runs"));
    for time in [0, 100, 1000, 10_000].map(Duration::from_micros) {
        let pieces = context.with_submission_time(time);
        let got = bits(&case.run(&pieces, variant).expect("runs"));
        assert!(got == expected, "{variant} {time:?}: {:?}", case.attention);
    }
}

/// Tensors of a causal call, and the call bound to them.
struct Call {
    tensors: [Placed; 4],
    bound: Bound,
}

impl Call {
    fn new(context: &Context, shape: Shape, variant: Variant) -> Self {
        let case = Case::new(Attention::new(shape, DType::F32).with_mask(Mask::causal()), 8);
        let plan = pollster::block_on(case.attention.plan_with(context, variant)).expect("plans");
        let place = |shape, values| Placed::new(context, DType::F32, shape, Layout::Dense, values);
        let tensors = [
            place(shape.query(), Some(&case.query[..])),
            place(shape.key(), Some(&case.key)),
            place(shape.value(), Some(&case.value)),
            place(shape.out(), None),
        ];
        let [query, key, value, out] = tensors.each_ref().map(Placed::view);
        let bound = plan.bind(&Inputs::new(query, key, value), &Outputs::new(out)).expect("binds");
        Self { tensors, bound }
    }

    fn out(&self, context: &Context) -> Vec<u32> {
        self.tensors[3].read(context).iter().map(|x| x.to_bits()).collect()
    }
}

fn submit(context: &Context, encode: impl FnOnce(&mut wgpu::CommandEncoder)) {
    let mut encoder = context.device().create_command_encoder(&Default::default());
    encode(&mut encoder);
    context.queue().submit([encoder.finish()]);
}

/// Pieces grow with the time they may take, and every workgroup is in one of them.
#[test]
fn callers_submit_the_same_pieces() {
    let Some(context) = context() else { return };
    let whole = Call::new(context, shape(), Variant::Tiled);
    submit(context, |encoder| whole.bound.encode(encoder));
    let expected = whole.out(context);
    let mut counts = Vec::new();
    for time in [0, 300, 3_000, 20_000, 60_000, 1_000_000].map(Duration::from_micros) {
        let context = context.with_submission_time(time);
        let call = Call::new(&context, shape(), Variant::Tiled);
        let pieces = call.bound.pieces().expect("memory for some numbers");
        for piece in &pieces {
            submit(&context, |encoder| piece.encode(encoder));
        }
        assert!(call.out(&context) == expected, "{} pieces", pieces.len());
        counts.push(pieces.len());
    }
    assert!(counts.is_sorted_by(|more, fewer| more >= fewer), "{counts:?}");
    assert!(counts[0] > 8 && counts.last() == Some(&1), "{counts:?}");
    if context.caps().is_cpu {
        assert!(counts.iter().any(|count| (2..counts[0]).contains(count)), "{counts:?}");
    }
}

/// Where one dimension is too short for all workgroups, rows of them are cut too.
#[test]
fn dispatches_in_two_dimensions() {
    let Some(context) = context() else { return };
    let expected = {
        let call = Call::new(context, shape(), Variant::Tiled);
        submit(context, |encoder| call.bound.encode(encoder));
        call.out(context)
    };
    let mut caps = context.caps().clone();
    caps.workgroups_per_dimension = 5;
    let narrow = Context::with_caps(caps, context.device(), context.queue());
    for time in [0, 100, 1000, 3000, 10_000, 1_000_000].map(Duration::from_micros) {
        let narrow = narrow.with_submission_time(time);
        let call = Call::new(&narrow, shape(), Variant::Tiled);
        for piece in call.bound.pieces().expect("memory for some numbers") {
            submit(&narrow, |encoder| piece.encode(encoder));
        }
        assert!(call.out(&narrow) == expected, "{time:?}");
    }
}

/// Half a second of a software driver's time is little: long work is cut by default, by what is safe
/// at first and by what a run has shown then, and comes out the same.
#[test]
fn long_work_is_cut_by_what_runs_have_shown() {
    let Some(context) = context().filter(|context| context.caps().is_cpu) else { return };
    // Speeds of its own.
    let fresh = Context::with_caps(context.caps().clone(), context.device(), context.queue());
    let variant = Variant::Tiled;
    let call = Call::new(&fresh, Shape::new(1, 8, 1024, 64), variant);
    let before = call.bound.pieces().expect("memory").len();
    submit(&fresh, |encoder| call.bound.encode(encoder));
    let expected = call.out(&fresh);
    assert!(before > 1);
    // The machine may have other things to do in any one run, and the last piece is what counts.
    let again = Call::new(&fresh, Shape::new(1, 8, 1024, 64), variant);
    let mut found = Vec::new();
    let close = (0..5).any(|_| {
        let start = Instant::now();
        pollster::block_on(fresh.run(&again.bound)).expect("runs");
        let time = start.elapsed();
        assert!(again.out(&fresh) == expected);
        let after = again.bound.pieces().expect("memory").len();
        found.push((time, after));
        let due = time.as_secs_f64() / 0.5;
        (after as f64) < 4.0 * due + 2.0 && after as f64 > due / 4.0
    });
    assert!(close, "{before} pieces, then {found:?}");
}

/// Nothing to do is one empty piece.
#[test]
fn empty_work() {
    let Some(context) = context() else { return };
    let context = context.with_submission_time(Duration::ZERO);
    let call = Call::new(&context, Shape::new(1, 1, 0, 16), Variant::Tiled);
    assert_eq!(call.bound.pieces().expect("nothing needed").len(), 1);
    pollster::block_on(context.run(&call.bound)).expect("runs");
}
