//! Drivers that end loops after so many rounds together: walks in parts, and sizes about the limit.

mod common;

use common::linear::Case as LinearCase;
use common::merge::Parts;
use common::{Case, Random, context, random_list, variants};
use wgpu_attention::{
    Activation, Attention, Broadcast, Carry, Context, DType, FeatureMap, Keys, LinearAttention,
    LinearVariant, Lists, Mask, Merge, Rule, Shape, Stage, Variant,
};

/// A context whose driver is said to end loops after so many rounds.
fn limited(context: &Context, rounds: u32) -> Context {
    let mut caps = context.caps().clone();
    caps.loop_rounds = Some(rounds);
    Context::with_caps(caps, context.device(), context.queue())
}

/// lavapipe is known to end loops; whether a context knows it is what the tests ask.
fn is_lavapipe(context: &Context) -> bool {
    let is_lavapipe = context.caps().adapter.contains("llvmpipe");
    if !is_lavapipe {
        eprintln!("SKIPPED: this driver ends no loops");
    }
    is_lavapipe
}

/// Runs variants that support a case, and gives how many keys each takes a dispatch.
fn check(context: &Context, case: &Case, variants: &[Variant]) -> Vec<Option<u32>> {
    // One kernel is for CPUs alone.
    let here = |variant: &&Variant| context.caps().is_cpu || **variant != Variant::Rows;
    let part = |&variant: &Variant| {
        let plan = pollster::block_on(case.attention.plan_with(context, variant)).expect("plans");
        let results = case.run_plan(context, &plan).expect("runs");
        case.judge(&results, variant.label());
        plan.part()
    };
    variants.iter().filter(here).map(part).collect()
}

fn listed(attention: Attention, keys: Keys, seed: u64) -> Case {
    let mut case = Case::new(attention.with_keys(keys), seed);
    let shape = case.attention.shape;
    case.sides.list = Some(random_list(keys, &shape, &mut Random::new(seed)));
    case
}

/// The parts of a walk, on a driver with as small a limit as the kernels bear: whatever is handed on
/// from one to the next, and wherever the mask and the lists cut it.
#[test]
fn parts_of_a_walk_join() {
    let Some(context) = context() else { return };
    let shape = Shape::new(1, 2, 40, 32).with_key_value_heads(1).with_key_len(1100);
    let attention = |dtype| Attention::new(shape, dtype);
    let sigmoid = Activation::Sigmoid { bias: None };
    let blocks = Keys::Blocks { block_q: 64, block_k: 64, lists: Lists::SHARED };
    let indices = Keys::Indices { block_q: 64, lists: Lists::SHARED };
    let window = Mask::causal() & Mask::window(Some(700), None);
    let long = Shape::new(1, 1, 2, 20).with_key_len(12_000);
    let scores = |stage| Attention::new(long, DType::F32).with_alibi().with_scores(stage);
    let all = [Variant::Rows, Variant::Subgroup, Variant::Tiled];
    let [rows, subgroup, tiled] = all.map(|variant| vec![variant]);
    let (plain, sums) = (vec![Variant::Scores], vec![Variant::BlockSums]);
    let mut cases = vec![
        (Case::new(attention(DType::F32).with_lse(), 1), all[..1].to_vec()),
        (listed(attention(DType::F32).with_lse(), indices, 2), tiled.clone()),
        (Case::new(attention(DType::F32).with_block_sums(16, 16), 3), sums.clone()),
        (Case::new(scores(Stage::Probabilities), 4), plain.clone()),
    ];
    // Another driver compiles each in seconds.
    if is_lavapipe(context) {
        let of_sums = attention(DType::F32).with_activation(sigmoid).with_block_sums(16, 64);
        cases.extend([
            (Case::new(attention(DType::F16).with_alibi().with_sinks(), 5), all.to_vec()),
            (Case::new(attention(DType::F32).with_mask(window).with_lse(), 6), all.to_vec()),
            (Case::new(attention(DType::F32).with_activation(sigmoid), 7), rows.clone()),
            (Case::new(attention(DType::F32).with_activation(sigmoid), 7), subgroup),
            (listed(attention(DType::F32), indices, 8), rows),
            (listed(attention(DType::F32), blocks, 9), tiled),
            (Case::new(of_sums, 10), sums),
            (Case::new(scores(Stage::Scaled), 11), plain),
        ]);
    }
    for (case, variants) in cases {
        // Scores need few rounds.
        let rounds = if variants == [Variant::Scores] { 2_000 } else { 16_000 };
        let parts = check(&limited(context, rounds), &case, &variants);
        let cut = |part: &Option<u32>| part.is_some_and(|p| p < case.attention.shape.key_len);
        // A GPU's tiles are larger, and so few keys may need no cut.
        assert!(!context.caps().is_cpu || parts.iter().all(cut), "{variants:?} {parts:?}");
    }
}

/// A plan that no splitting saves is refused, and the refusal says why.
#[test]
fn a_limit_that_no_part_keeps_is_an_error() {
    let Some(context) = context() else { return };
    let limited = limited(context, 50);
    let attention = Attention::new(Shape::new(1, 1, 2, 32), DType::F32);
    let error = pollster::block_on(attention.plan(&limited)).expect_err("no rounds");
    assert!(error.to_string().contains("more rounds than the 50 after which"), "{error}");
    let merge = Parts::draw(Merge::new(300, [1, 1, 1, 4], DType::F32), 1);
    let error = merge.run(&limited).expect_err("no rounds");
    assert!(error.to_string().contains("more rounds than the 50 after which"), "{error}");
    let linear = LinearAttention::new(Shape::new(1, 1, 2, 128), DType::F32);
    let error = pollster::block_on(linear.plan(&limited)).expect_err("no rounds");
    assert!(error.to_string().contains("more rounds than the 50 after which"), "{error}");
}

fn check_linear(context: &Context, case: &LinearCase) {
    for variant in [LinearVariant::Columns, LinearVariant::Chunked, LinearVariant::Recurrent] {
        if variant == LinearVariant::Columns && !context.caps().is_cpu {
            // It is for CPUs alone.
            continue;
        }
        variant.supports(context.caps(), &case.linear).expect("splits");
        case.check_variant(context, variant);
    }
}

/// Segments of chunks, and of tokens, on a driver with a small limit: states between dispatches, of
/// documents that begin and end anywhere, empty ones among them.
#[test]
fn segments_of_tokens_join() {
    let Some(context) = context() else { return };
    let shape = Shape::new(2, 2, 300, 16).with_key_value_heads(1);
    let linear = |rule| LinearAttention::new(shape, DType::F32).with_rule(rule);
    let starts = Some(vec![0, 0, 7, 120, 120, 299, 300, 300]);
    let cases = [
        LinearCase::with_starts(
            linear(Rule::Decay).with_documents().with_carry(Carry::InOut),
            1,
            starts.clone(),
        ),
        LinearCase::with_starts(
            linear(Rule::Decay).with_documents().with_carry(Carry::Out),
            2,
            starts.clone(),
        ),
        LinearCase::with_starts(linear(Rule::Decay).with_documents(), 3, starts),
        LinearCase::new(linear(Rule::Delta), 4),
        LinearCase::new(
            linear(Rule::Decay).with_feature_map(FeatureMap::Elu1).with_normalizer(1e-6),
            5,
        ),
    ];
    for case in cases {
        check_linear(&limited(context, 3_000), &case);
    }
}

/// The driver's own limit: sizes that one dispatch just takes, and sizes that it does not.
#[test]
fn sizes_about_the_limit() {
    let Some(context) = context() else { return };
    if !is_lavapipe(context) {
        return;
    }
    let attention = |keys, dim| {
        Attention::new(Shape::new(1, 1, 1, dim).with_key_len(keys), DType::F32).with_lse()
    };
    let sums = |keys| attention(keys, 64).with_block_sums(16, 16);
    for (seed, attention) in (1..).zip([
        // Of `rows`: what one dispatch takes, and what it does not.
        attention(2_700, 64).with_key_bias(Broadcast::SHARED),
        attention(9_000, 64).with_key_bias(Broadcast::SHARED),
        attention(66_000, 64),
        attention(30_000, 128),
        attention(200_000, 64).with_scores(Stage::Probabilities),
        sums(1_100),
        sums(9_000),
    ]) {
        let variants = variants(context, &attention);
        let parts = check(context, &Case::new(attention.clone(), seed), &variants);
        eprintln!("{variants:?} {parts:?} of {}", attention.shape.key_len);
    }
}

#[test]
fn tokens_about_the_limit() {
    let Some(context) = context() else { return };
    if !is_lavapipe(context) {
        return;
    }
    let linear = |len, dim, rule| {
        LinearAttention::new(Shape::new(1, 1, len, dim), DType::F32).with_rule(rule)
    };
    check_linear(
        context,
        &LinearCase::new(linear(40_000, 64, Rule::Delta).with_carry(Carry::Out), 1),
    );
    check_linear(
        context,
        &LinearCase::new(linear(8_192, 128, Rule::Decay).with_carry(Carry::Out), 2),
    );
    let single = Some((0..=8_192).collect());
    check_linear(
        context,
        &LinearCase::with_starts(linear(8_192, 16, Rule::Decay).with_documents(), 3, single),
    );
}
