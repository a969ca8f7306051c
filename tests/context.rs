//! One context: shared by threads, and with the run-time checks of the shader compiler on and off.

mod common;

use common::{Case, Results, context, variants};
use wgpu_attention::{
    Attention, Bound, Broadcast, Caps, Context, DType, Error, Mask, Plan, Positions, Shape, Stage,
    Variant,
};

/// Calls that differ in shape, dtype and kernel.
fn cases() -> Vec<Case> {
    let shape = Shape::new(2, 4, 33, 32).with_key_value_heads(2).with_key_len(65);
    let mask: Mask = "documents & causal | roles & tree | dense & lengths | sink(2)"
        .parse()
        .expect("a valid expression");
    let attentions = [
        Attention::new(shape, DType::F32).with_mask(Mask::causal()).with_lse(),
        Attention::new(Shape::new(1, 3, 100, 24).with_value_dim(9), DType::F16).with_lse(),
        Attention::new(shape, DType::BF16)
            .with_mask(mask)
            .with_positions(Positions::PerBatch)
            .with_softcap(5.0)
            .with_bias(DType::F16, Broadcast::SHARED),
        Attention::new(shape, DType::F32).with_alibi().with_scores(Stage::Probabilities),
    ];
    (0..).zip(attentions).map(|(seed, attention)| Case::new(attention, seed)).collect()
}

fn bits(results: &Results) -> Vec<u32> {
    let lse = results.lse.iter().flatten();
    let numbers = results.out.iter().chain(&results.scores).chain(lse);
    numbers.map(|x| x.to_bits()).collect()
}

#[test]
fn handles_may_go_to_other_threads() {
    fn shared<T: Send + Sync + Clone>() {}
    shared::<Context>();
    shared::<Plan>();
    shared::<Bound>();
    shared::<Attention>();
    shared::<Caps>();
    shared::<Error>();
}

/// Eight threads with different work on one context get the bits they get alone.
#[test]
fn threads_do_not_disturb_each_other() {
    let Some(context) = context() else { return };
    let cases = cases();
    let work = |case: &Case| -> Vec<(Variant, Vec<u32>)> {
        let run = |variant| (variant, bits(&case.run(context, variant).expect("runs")));
        variants(context, &case.attention).into_iter().map(run).collect()
    };
    let alone: Vec<_> = cases.iter().map(work).collect();
    std::thread::scope(|scope| {
        for (case, alone) in cases.iter().zip(&alone).chain(cases.iter().zip(&alone)) {
            scope.spawn(move || {
                for round in 0..5 {
                    assert_eq!(&work(case), alone, "round {round}: {:?}", case.attention);
                }
            });
        }
    });
    // Planning at once, too: a context of its own has nothing compiled yet.
    let fresh = &context.with_checked_shaders(false);
    let case = &cases[0];
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(move || {
                let results = case.run(fresh, Variant::Tiled).expect("runs");
                case.judge(&results, "planned by eight threads");
            });
        }
    });
    assert_eq!(fresh.pipelines(), 1);
}

/// The shaders stay inside their tensors and arrays: checks of every index, loop and byte of
/// workgroup memory change no bit on the software drivers. A GPU's compiler may join products and
/// sums in other places once checks stand between them; there both must be right.
#[test]
fn checked_shaders_give_the_same_bits() {
    let Some(context) = context() else { return };
    let [unchecked, checked] = [false, true].map(|checks| context.with_checked_shaders(checks));
    for case in cases() {
        for variant in variants(context, &case.attention) {
            let [plain, guarded] =
                [&unchecked, &checked].map(|context| case.run(context, variant).expect("runs"));
            if context.caps().is_cpu {
                assert_eq!(bits(&plain), bits(&guarded), "{variant}: {:?}", case.attention);
            }
            case.judge(&plain, "unchecked");
            case.judge(&guarded, "checked");
        }
    }
}
