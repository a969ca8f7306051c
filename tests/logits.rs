//! Logits at the ends of their range: softcaps of any size, kept pairs that score next to −∞, and what
//! stands for −∞ in buffers.

mod common;

use common::{Case, Results, context, emulating, small, variants};
use wgpu_attention::attention::reference::Reference;
use wgpu_attention::attention::tolerance::LEAST_LOGIT;
use wgpu_attention::wgpu::util::DeviceExt as _;
use wgpu_attention::{
    Activation, Attention, Broadcast, Context, DType, Mask, Output, Shape, Stage, Variant, View,
    wgpu,
};

/// Runs a case by every kernel that supports it, on emulated matrix units too.
fn each_kernel(context: &Context, case: &Case, mut look: impl FnMut(&Results, &str)) {
    for variant in variants(context, &case.attention) {
        look(&case.run(context, variant).expect("a supported variant runs"), variant.label());
    }
    let emulated = emulating(context)
        .filter(|context| Variant::Coop.supports(context.caps(), &case.attention).is_ok());
    if let Some(context) = emulated {
        let results = case.run(context, Variant::Coop).expect("a supported variant runs");
        look(&results, "attention.coop, emulated");
    }
}

/// The largest error of finite numbers; infinite where one is not what it should be.
fn largest_error(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let error = |(&got, &want): (&f32, &f64)| match f64::from(got) - want {
        difference if difference.is_finite() => difference.abs(),
        _ if f64::from(got) == want || (got.is_nan() && want.is_nan()) => 0.0,
        _ => f64::INFINITY,
    };
    got.iter().zip(want).map(error).fold(0.0, f64::max)
}

/// A softcap costs a score nothing that a score without one does not lose, however large it is.
#[test]
fn softcaps_of_any_size() {
    let Some(context) = context() else { return };
    for cap in [1.0, 50.0, 1e4, 1e8] {
        let attention = Attention::new(small(), DType::F32).with_softcap(cap);
        let mut case = Case::new(attention.clone().with_lse(), 5);
        // Scores up to about 6, on both sides of where the series ends for the smaller caps.
        case.query.iter_mut().for_each(|q| *q *= 2.0);
        let host = case.host();
        let reference = Reference::new(&case.attention, &host).expect("valid");
        let (out, lse) = (reference.out(), reference.lse());
        each_kernel(context, &case, |results, label| {
            let found = largest_error(&results.out, &out);
            assert!(found < 3e-6, "{label}, cap {cap}: out off by {found}");
            let found = largest_error(results.lse.as_ref().expect("asked for"), &lse);
            assert!(found < 3e-6, "{label}, cap {cap}: lse off by {found}");
            case.judge(results, label);
        });
        let scores: Vec<f64> = reference
            .sample(usize::MAX)
            .into_iter()
            .flat_map(|[b, h, i]| reference.scores(Stage::Modified, b, h, i))
            .collect();
        case.attention = attention.clone().with_scores(Stage::Modified);
        each_kernel(context, &case, |results, label| {
            let found = largest_error(&results.scores, &scores);
            assert!(found < 3e-6, "{label}, cap {cap}: scores off by {found}");
            case.judge(results, label);
        });
        case.attention = attention.with_block_sums(16, 16);
        case.check(context);
    }
    // On matrix units.
    for cap in [1.0, 1e4, 1e8] {
        let attention = Attention::new(small(), DType::F16).with_lse().with_softcap(cap);
        Case::new(attention, 5).check(context);
    }
}

/// 130 keys, for full tiles and partial ones.
fn long() -> Shape {
    Shape::new(1, 2, 33, 8).with_key_len(130)
}

/// A case whose scores are `scale · low(key)` for every query, and whose values are small whole numbers.
fn scored(attention: Attention, low: impl Fn(usize) -> f32) -> Case {
    let mut case = Case::new(attention, 3);
    case.query.iter_mut().enumerate().for_each(|(i, q)| *q = f32::from(u8::from(i % 8 == 0)));
    let keys = case.attention.shape.key_len as usize;
    let key = |(i, k): (usize, &mut f32)| *k = if i % 8 == 0 { low(i / 8 % keys) } else { 0.0 };
    case.key.iter_mut().enumerate().for_each(key);
    case.value.iter_mut().enumerate().for_each(|(i, v)| *v = ((i * 5) % 7) as f32);
    case
}

/// Every kernel against the reference. The rule for tolerances leaves such rows unjudged: f32 cannot tell
/// their logits apart. But these logits are equal, or as far apart as can be.
fn compare_all(context: &Context, case: &Case, what: &str) {
    let host = case.host();
    let reference = Reference::new(&case.attention, &host).expect("valid");
    let tolerance = if case.attention.dtype == DType::F16 { 4e-3 } else { 1e-5 };
    if let Output::Scores(stage) = case.attention.output {
        let rows = reference.sample(usize::MAX).into_iter();
        let want: Vec<f64> = rows.flat_map(|[b, h, i]| reference.scores(stage, b, h, i)).collect();
        let size =
            want.iter().filter(|s| s.is_finite()).fold(1.0, |most: f64, s| most.max(s.abs()));
        each_kernel(context, case, |results, label| {
            let found = largest_error(&results.scores, &want);
            assert!(found <= 1e-6 * size, "{label}, {what}: {stage:?} off by {found}");
        });
        return;
    }
    let (out, lse) = (reference.out(), reference.lse());
    each_kernel(context, case, |results, label| {
        let found = largest_error(&results.out, &out);
        assert!(found < tolerance, "{label}, {what}: out off by {found}: {:?}", &results.out[..16]);
        for (&got, &want) in results.lse.iter().flatten().zip(&lse) {
            let close = (f64::from(got) - want).abs() <= 1e-6 * (1.0 + want.abs());
            assert!(close || f64::from(got) == want, "{label}, {what}: lse {got}, right {want}");
        }
    });
}

/// Keys that are kept count, however low they score: below −5e29 as that much.
#[test]
fn kept_logits_next_to_minus_infinity() {
    let Some(context) = context() else { return };
    // −5.5e29, −1e30 (which stands for −∞ in kernels), −2e32 and 0.
    let lows = [0.55f32, 1.0, 200.0];
    let all = |key: usize| lows[key % 3];
    let two_of_three = |key: usize| [0.0, 1.0, 200.0][key % 3];
    let plain = Attention::new(long(), DType::F32).with_scale(-1e30);
    for mask in [Mask::full(), Mask::causal()] {
        let masked = plain.clone().with_mask(mask);
        let case = scored(masked.clone().with_lse(), all);
        compare_all(context, &case, "all keys low");
        each_kernel(context, &case, |results, label| {
            let lse = results.lse.as_ref().expect("asked for");
            assert!(lse.iter().all(|&x| f64::from(x) == LEAST_LOGIT), "{label}: {:?}", &lse[..4]);
        });
        compare_all(context, &scored(masked.clone().with_lse(), two_of_three), "two of three low");
        for stage in Stage::ALL {
            let case = scored(masked.clone().with_scores(stage), two_of_three);
            compare_all(context, &case, "scores of some low");
            compare_all(
                context,
                &scored(masked.clone().with_scores(stage), all),
                "scores of all low",
            );
        }
        let sigmoid = Activation::Sigmoid { bias: Some(0.0) };
        compare_all(context, &scored(masked.with_activation(sigmoid), two_of_three), "sigmoid");
        for low in [&all as &dyn Fn(usize) -> f32, &two_of_three] {
            let mut sums = scored(plain.clone().with_lse(), low);
            sums.attention = plain.clone().with_block_sums(16, 16);
            sums.check(context);
        }
    }
}

/// The same after modifiers, on matrix units too.
#[test]
fn kept_logits_that_modifiers_lower() {
    let Some(context) = context() else { return };
    let shared = Broadcast::SHARED;
    for mask in [Mask::full(), Mask::causal()] {
        let plain = Attention::new(long(), DType::F16).with_lse().with_mask(mask);
        // All but the key where the query stands.
        let mut case = scored(plain.clone().with_alibi(), |_| 1.0);
        case.sides.alibi_slopes = Some(vec![1e30, 2e29]);
        compare_all(context, &case, "ALiBi");
        // Biases that do not mean −∞, the same for all keys, alone and lowered further.
        for bias in [-3.6e29, -4.9e29] {
            let mut case = scored(plain.clone().with_key_bias(shared).with_alibi(), |_| 1.0);
            case.sides.key_bias = Some(vec![bias; 130]);
            for slopes in [[0.0, 0.0], [3e29, 0.0]] {
                case.sides.alibi_slopes = Some(slopes.to_vec());
                compare_all(context, &case, "a bias");
            }
            case.attention = case.attention.with_sinks();
            for sink in [bias, -4.95e29, -5.1e29] {
                case.sides.sinks = Some(vec![sink; 2]);
                compare_all(context, &case, "a bias and a sink");
            }
        }
        // One key of each four is masked by its bias, and the others are low.
        let mut case = scored(plain.with_key_bias(shared), |_| 1.0);
        let bias = |key: u32| if key % 4 == 1 { -5e29 } else { -4.9e29 };
        case.sides.key_bias = Some((0..130).map(bias).collect());
        case.value.iter_mut().skip(8).step_by(32).for_each(|v| *v = f32::NAN);
        compare_all(context, &case, "some masked");
    }
}

/// Matrix kernels look for low logits where they look at single pairs: not in full tiles of plain
/// scores, where none may be.
#[test]
fn matrix_units_are_not_asked_for_low_logits() {
    let Some(context) = context() else { return };
    let caps = emulating(context).unwrap_or(context).caps();
    let plain = Attention::new(small(), DType::F16);
    let supports = |attention: Attention| Variant::Coop.supports(caps, &attention);
    if supports(plain.clone()).is_err() {
        return;
    }
    let refused = supports(plain.clone().with_scale(1e19)).expect_err("logits down to −1e30");
    assert!(refused.reason.contains("5e29"), "{refused}");
    assert!(supports(plain.clone().with_scale(-1e18)).is_ok());
    assert!(supports(plain.with_scale(1e19).with_softcap(5.0)).is_ok());
}

/// Only LSEs and scores have numbers that stand for −∞.
#[test]
fn numbers_come_back_as_they_are() {
    let Some(context) = context() else { return };
    let numbers = [-1e30, -5e29, f32::MIN, f32::NEG_INFINITY, -4e29, 1e30, 0.0, f32::MAX];
    let buffer = context.device().create_buffer_init(&wgpu::util::BufferInitDescriptor {
        label: None,
        contents: bytemuck::cast_slice(&numbers),
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
    });
    let view = View::new(&buffer, DType::F32, [1, 1, 2, 4]);
    assert_eq!(pollster::block_on(context.read(view)).expect("readable"), numbers);
    let low = f32::NEG_INFINITY;
    let logits = pollster::block_on(context.read_logits(view)).expect("readable");
    assert_eq!(logits, [low, low, low, low, -4e29, 1e30, 0.0, f32::MAX]);

    // An output that is −1e30 because its values are, and the LSE of a row without keys.
    let attention = Attention::new(small(), DType::F32).with_lse();
    let mut case =
        Case::new(attention.with_mask("causal & window(64,0)".parse().expect("valid")), 2);
    case.value.fill(-1e30);
    each_kernel(context, &case, |results, label| {
        let near = |x: &f32| (x / -1e30 - 1.0).abs() < 1e-5;
        assert!(results.out.iter().all(near), "{label}: {:?}", &results.out[..4]);
        assert!(results.lse.iter().flatten().all(|x| x.is_finite()), "{label}");
    });
}
