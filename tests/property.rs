//! Random configurations on the device against the f64 reference.
//!
//! What is compiled in comes from a small set, see `common/draw.rs`.

mod common;

use common::context;
use common::draw::{DENSE, Drawn, Static};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use wgpu_attention::Context;

/// Cases of each of what is compiled in.
const CASES: u32 = 12;

fn drawn() -> impl Strategy<Value = Drawn> {
    let sizes = (
        1..4u32,
        (1..7u32, any::<u32>(), any::<u32>()),
        (0..90u32, prop_oneof![4 => 0..150u32, 1 => 150..400u32]),
        (any::<u32>(), any::<u32>()),
    );
    let axes = (
        prop::collection::vec(any::<u32>(), 4),
        any::<u32>(),
        prop::option::of(-2.0..2.0f32),
        any::<u32>(),
        any::<u32>(),
        any::<u32>(),
        any::<u64>(),
    );
    (sizes, axes).prop_map(|((batch, heads, lens, dims), axes)| {
        let (words, positions, scale, modifiers, output, layout, seed) = axes;
        Drawn {
            batch,
            heads,
            lens,
            dims,
            words,
            positions,
            scale,
            modifiers,
            output,
            layout,
            lists: 0,
            seed,
        }
    })
}

/// Draws cases of one static configuration, the same ones every time.
fn check(context: &Context, index: u8, fixed: &Static) {
    let config = Config {
        cases: CASES,
        failure_persistence: None,
        max_shrink_iters: 100,
        ..Config::default()
    };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[index; 32]);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let result = runner.run(&drawn(), |drawn| {
        fixed.case(&drawn).check(context);
        Ok(())
    });
    match result {
        Ok(()) => {}
        // The reason names variant, layout and configuration of the smallest case that fails.
        Err(TestError::Fail(reason, drawn)) => panic!("{reason}\ndrawn as {drawn:?}"),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn random_configurations_agree_with_the_reference() {
    let Some(context) = context() else { return };
    for (index, fixed) in (0..).zip(&DENSE) {
        check(context, index, fixed);
    }
    eprintln!("{} pipelines", context.pipelines());
    if context.caps().is_cpu {
        // Three variants of each of four and two of the other three, one kernel of scores, and two that
        // round to 16 bits.
        assert!(context.pipelines() <= 21, "{} pipelines", context.pipelines());
    }
}
