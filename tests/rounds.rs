//! Drivers that end loops after so many rounds together: walks in parts, and sizes about the limit.

mod common;

use common::{Case, Random, context, random_list, variants};
use wgpu_attention::{
    Activation, Attention, Broadcast, Context, DType, Keys, Lists, Mask, Shape, Stage,
};

/// A context whose driver is said to end loops after so many rounds.
fn limited(context: &Context, rounds: u32) -> Context {
    let mut caps = context.caps().clone();
    caps.loop_rounds = Some(rounds);
    Context::with_caps(caps, context.device(), context.queue())
}

/// Checks every variant, and that each takes a call in parts.
fn check_parts(context: &Context, case: &Case) {
    for variant in variants(context, &case.attention) {
        let plan = pollster::block_on(case.attention.plan_with(context, variant)).expect("plans");
        let results = case.run_plan(context, &plan).expect("runs");
        case.judge(&results, variant.label());
        let part = plan.part();
        eprintln!("{variant} {part:?} of {}", case.attention.shape.key_len);
        assert!(part.is_some_and(|part| part < case.attention.shape.key_len), "{variant} {part:?}");
    }
}

fn listed(attention: Attention, keys: Keys, seed: u64) -> Case {
    let mut case = Case::new(attention.with_keys(keys), seed);
    let shape = case.attention.shape;
    case.sides.list = Some(random_list(keys, &shape, &mut Random::new(seed)));
    case
}

#[test]
fn parts_of_a_walk_join() {
    let Some(context) = context() else { return };
    let context = limited(context, 20_000);
    let shape = Shape::new(1, 2, 40, 32).with_key_value_heads(1).with_key_len(2100);
    let attention = |dtype| Attention::new(shape, dtype);
    let sigmoid = Activation::Sigmoid { bias: None };
    for (seed, attention) in (1..).zip([
        attention(DType::F32).with_lse(),
        attention(DType::F32).with_mask(Mask::causal() & Mask::window(Some(700), None)),
        attention(DType::F16).with_alibi().with_sinks().with_lse(),
        attention(DType::F32).with_activation(sigmoid),
        attention(DType::F32).with_key_bias(Broadcast::SHARED).with_scores(Stage::Probabilities),
        attention(DType::F32).with_scores(Stage::Scaled),
        attention(DType::F16).with_block_sums(16, 16),
        attention(DType::F32).with_activation(sigmoid).with_block_sums(16, 64),
    ]) {
        check_parts(&context, &Case::new(attention, seed));
    }
    let blocks = Keys::Blocks { block_q: 64, block_k: 64, lists: Lists::SHARED };
    let indices = Keys::Indices { block_q: 64, lists: Lists::SHARED };
    check_parts(&context, &listed(attention(DType::F32), blocks, 20));
    check_parts(&context, &listed(attention(DType::F32).with_lse(), indices, 21));
}

#[test]
fn sizes_about_the_limit() {
    let Some(context) = context() else { return };
    let Some(_) = context.caps().loop_rounds else {
        eprintln!("SKIPPED: loops of this driver end by themselves");
        return;
    };
    let shape = |keys, dim| Shape::new(1, 1, 2, dim).with_key_len(keys);
    for (keys, dim) in [(8_000, 64), (11_000, 64), (70_000, 64), (32_000, 128), (5_000, 200)] {
        let plain = Attention::new(shape(keys, dim), DType::F32).with_lse();
        check(context, &plain);
    }
    for keys in [3_000, 9_000, 30_000] {
        check(
            context,
            &Attention::new(shape(keys, 64), DType::F32)
                .with_key_bias(Broadcast::SHARED)
                .with_lse(),
        );
    }
    for stage in [Stage::Scaled, Stage::Probabilities] {
        check(context, &Attention::new(shape(300_000, 64), DType::F32).with_scores(stage));
    }
    for keys in [1_000, 4_000, 20_000] {
        check(context, &Attention::new(shape(keys, 64), DType::F32).with_block_sums(16, 16));
    }
}

fn check(context: &Context, attention: &Attention) {
    let case = Case::new(attention.clone(), 5);
    for variant in variants(context, attention) {
        let plan = pollster::block_on(attention.plan_with(context, variant)).expect("plans");
        let results = case.run_plan(context, &plan).expect("runs");
        eprintln!(
            "{variant} {:?} of {} D={}",
            plan.part(),
            attention.shape.key_len,
            attention.shape.head_dim
        );
        case.judge(&results, variant.label());
    }
}
