//! What the kernels of linear attention on matrix units do differently, emulated where there are none:
//! chunks in blocks, factors rounded to f16, and weights of 0 that meet every value. Everything else
//! they share with the other variants, beside which `linear.rs` runs them.

mod common;

use common::linear::Case;
use common::{context, emulating};
use wgpu_attention::{Carry, Context, DType, LinearAttention, LinearVariant, Rule, Shape};

const RULES: [Rule; 2] = [Rule::Decay, Rule::Gated { per_key_dim: false }];

/// The context of this test binary, if it has matrices of any kind.
fn matrices() -> Option<&'static Context> {
    let context = context()?;
    let context = emulating(context).unwrap_or(context);
    let linear = LinearAttention::new(Shape::new(1, 1, 64, 16), DType::F16);
    LinearVariant::Coop.supports(context.caps(), &linear).is_ok().then_some(context)
}

fn check(context: &Context, case: &Case) {
    case.check_variant(context, LinearVariant::Coop);
}

/// Multiplies every number, rounding to f16.
fn scaled(values: &[f32], by: f32, and: f32) -> Vec<f32> {
    let scaled: Vec<f32> = values.iter().map(|x| x * by + and).collect();
    DType::F16.decode(&DType::F16.encode(&scaled))
}

#[test]
fn blocks_and_chunks() {
    let Some(context) = matrices() else { return };
    // Dims of whole matrices, others by eights and by fours, and values of more than four matrices, of
    // which two workgroups share an even number; a state that is kept, and one that need not be exact.
    let cases = [
        (16, 16, (24, 40), Carry::InOut),
        (16, 64, (20, 68), Carry::None),
        (32, 64, (32, 48), Carry::None),
        (48, 96, (32, 96), Carry::InOut),
    ];
    for (seed, (block, chunk, (head_dim, value_dim), carry)) in cases.into_iter().enumerate() {
        for rule in RULES {
            let shape = Shape::new(1, 2, 197, head_dim).with_value_dim(value_dim);
            let linear = LinearAttention::new(shape, DType::F16)
                .with_rule(rule)
                .with_block(block)
                .with_chunk(chunk)
                .with_carry(carry);
            check(context, &Case::new(linear, seed as u64));
        }
    }
}

/// Gates of a chunk that is long: sums of hundreds, whose differences decide.
#[test]
fn gates_of_a_long_chunk() {
    let Some(context) = matrices() else { return };
    let linear = LinearAttention::new(Shape::new(1, 1, 1100, 16), DType::F16)
        .with_rule(Rule::Gated { per_key_dim: false })
        .with_block(16)
        .with_chunk(1024)
        .with_carry(Carry::InOut);
    check(context, &Case::new(linear, 13));
}

/// The largest dims, which take most registers, in the blocks that the device has by default.
#[test]
fn largest_dims() {
    let Some(context) = matrices() else { return };
    for rule in RULES {
        let linear = LinearAttention::new(Shape::new(1, 1, 197, 128), DType::F16)
            .with_rule(rule)
            .with_chunk(64)
            .with_carry(Carry::InOut);
        check(context, &Case::new(linear, 11));
    }
}

/// One chunk of outputs beside several of denominators, in the same workspace.
#[test]
fn denominators_have_chunks_of_their_own() {
    let Some(context) = matrices() else { return };
    for rule in RULES {
        let linear = LinearAttention::new(Shape::new(1, 2, 200, 16), DType::F16)
            .with_rule(rule)
            .with_normalizer(1e-6)
            .with_block(16)
            .with_chunk(256);
        let mut case = Case::new(linear, 12);
        // Sums of positive weights are no small differences.
        for factor in [&mut case.query, &mut case.key] {
            *factor = scaled(factor, 0.1, 1.0);
        }
        check(context, &case);
    }
}

#[test]
fn chunks_are_whole_blocks() {
    let Some(context) = matrices() else { return };
    let linear =
        LinearAttention::new(Shape::new(1, 1, 64, 16), DType::F16).with_chunk(80).with_block(32);
    let refusal = LinearVariant::Coop.supports(context.caps(), &linear).expect_err("80 = 2.5 · 32");
    assert!(refusal.reason.contains("multiples of the 32 tokens"), "{refusal:?}");
}

/// Numbers that f16 could not hold as scores, states or decayed values, were those not scaled.
#[test]
fn large_and_small_numbers() {
    let Some(context) = matrices() else { return };
    let shape = Shape::new(1, 2, 150, 32).with_value_dim(16);
    // Factors of queries, keys, values and of the whole.
    let factors = [
        [200.0, 200.0, 1.0, 1e-4],
        [1.0, 300.0, 300.0, 1e-5],
        [1e-2, 1e-4, 100.0, 100.0],
        [100.0, 1e-3, 1e-3, 1.0],
        [1.0, 1.0, 1e-4, 1.0],
    ];
    for rule in RULES {
        let linear = LinearAttention::new(shape, DType::F16)
            .with_rule(rule)
            .with_block(16)
            .with_chunk(64)
            .with_carry(Carry::Out);
        for [of_query, of_key, of_value, scale] in factors {
            let mut case = Case::new(linear.with_scale(scale), 3);
            case.query = scaled(&case.query, of_query, 0.0);
            case.key = scaled(&case.key, of_key, 0.0);
            case.value = scaled(&case.value, of_value, 0.0);
            check(context, &case);
        }
    }
}

/// Sums that only grow: no decay, and inputs whose means are not 0. The last state is beyond f16.
#[test]
fn long_sums() {
    let Some(context) = matrices() else { return };
    let linear = LinearAttention::new(Shape::new(1, 1, 65_536, 16), DType::F16)
        .with_scale(1e-3)
        .with_chunk(512)
        .with_carry(Carry::Out);
    let mut case = Case::new(linear, 5);
    case.decay = Some(vec![1e-7]);
    case.key = scaled(&case.key, 1.0, 1.0);
    case.value = scaled(&case.value, 1.0, 1.0);
    check(context, &case);
}

/// What is no finite number reaches its own token and those after it, of its document and columns.
#[test]
fn non_finite_numbers() {
    let Some(context) = matrices() else { return };
    let (dim, value_dim) = (16, 32);
    let shape = Shape::new(1, 1, 150, dim).with_value_dim(value_dim);
    for rule in RULES {
        let linear = LinearAttention::new(shape, DType::F16)
            .with_rule(rule)
            .with_documents()
            .with_block(16)
            .with_chunk(32);
        let starts = Some(vec![0, 20, 130, 150]);
        let case = Case::with_starts(linear, 6, starts.clone());
        let carried = Case::with_starts(linear.with_carry(Carry::InOut), 7, starts);
        for number in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for token in [5, 37, 52, 129] {
                let spoil = |values: &[f32], dim: u32| {
                    let mut values = values.to_vec();
                    values[token * dim as usize + 9] = number;
                    values
                };
                check(context, &Case { query: spoil(&case.query, dim), ..case.clone() });
                check(context, &Case { key: spoil(&case.key, dim), ..case.clone() });
                check(context, &Case { value: spoil(&case.value, value_dim), ..case.clone() });
            }
            // Of the state that the second document begins with.
            let mut carried = carried.clone();
            if let Some(state) = &mut carried.state {
                state[((dim + 3) * value_dim) as usize + 9] = number;
            }
            check(context, &carried);
        }
    }
}
