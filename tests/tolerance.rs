//! The tolerance rule: it passes what it should and, above all, fails what it should.

use wgpu_attention::attention::reference::{HostInputs, Reference};
use wgpu_attention::attention::tolerance::{LEAST_LOGIT, Verdict, bound, compare};
use wgpu_attention::linear::reference as linear;
use wgpu_attention::{
    Activation, Array, Arrays, Attention, Broadcast, DType, LinearAttention, Mask, Shape, Stage,
};

const INF: f64 = f64::INFINITY;

/// The verdict on one element, judged as f32 with magnitude 1.
fn accepts(got: f32, reference: f64, eager: f64) -> bool {
    compare(&[got], &[reference], &[eager], DType::F32, 1.0).ok
}

fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((state >> 56) as f32 - 128.0) / 64.0
        })
        .collect()
}

#[test]
fn the_bound_is_twice_the_eager_error_and_rounding() {
    let half_ulp = |bits: i32| 2f64.powi(-bits);
    let arithmetic = 32.0 * half_ulp(24) * 3.0;
    let reference = [1.0, -4.0, 0.0];
    let exact = |dtype| bound(&reference, &reference, dtype, 3.0);
    assert_eq!(exact(DType::F32), 4.0 * half_ulp(24) + arithmetic);
    assert_eq!(exact(DType::F16), 4.0 * half_ulp(11) + arithmetic);
    assert_eq!(exact(DType::BF16), 4.0 * half_ulp(8) + arithmetic);
    let eager = [1.5, -4.0, 0.25];
    assert_eq!(bound(&reference, &eager, DType::F32, 3.0), 1.0 + exact(DType::F32));
    // The spacing of f16 below 2^-14 does not shrink any more.
    assert_eq!(bound(&[1e-7], &[1e-7], DType::F16, 0.0), half_ulp(25));
    // What is not finite does not widen the bound.
    let poisoned = bound(&[1.0, f64::NAN, -INF, 7.0], &[1.0, 2.0, 3.0, INF], DType::F32, 0.0);
    assert_eq!(poisoned, half_ulp(24));
    assert_eq!(bound(&[], &[], DType::BF16, 0.0), f64::from(f32::MIN_POSITIVE));
}

#[test]
fn finite_elements_must_be_near() {
    assert!(accepts(1.0, 1.0, 1.0));
    assert!(accepts(1.0 + 1e-6, 1.0, 1.0));
    assert!(!accepts(1.0 + 1e-5, 1.0, 1.0));
    assert!(accepts(1.0 + 1e-5, 1.0, 1.0 + 1e-5));
    assert!(!accepts(0.0, 1.0, 1.0));
    assert!(!accepts(-1.0, 1.0, 1.0));
    for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1e30] {
        assert!(!accepts(wrong, 1.0, 1.0), "{wrong}");
        assert!(!accepts(wrong, 0.0, 0.0), "{wrong}");
    }
}

#[test]
fn empty_and_poisoned_elements_must_be_so() {
    for empty in [-1e30, -5e29, f32::NEG_INFINITY] {
        assert!(accepts(empty, -INF, -INF), "{empty}");
    }
    for wrong in [f32::NAN, f32::INFINITY, 0.0, -4e29, 1e30] {
        assert!(!accepts(wrong, -INF, -INF), "{wrong}");
    }
    for poisoned in [f32::NAN, f32::INFINITY] {
        assert!(accepts(poisoned, f64::NAN, f64::NAN), "{poisoned}");
    }
    for wrong in [0.0, 1.0, f32::MAX, -1e30] {
        assert!(!accepts(wrong, f64::NAN, f64::NAN), "{wrong}");
    }
}

#[test]
fn elements_that_overflow_are_counted_and_not_judged() {
    let got = [f32::INFINITY, 1.0];
    let found = compare(&got, &[70000.0, 1.0], &[INF, 1.0], DType::F16, 1.0);
    assert_eq!((found.ok, found.overflowed, found.max_abs), (true, 1, 0.0));
    let found = compare(&got, &[70000.0, 2.0], &[INF, 2.0], DType::F16, 1.0);
    assert_eq!((found.ok, found.worst_index), (false, 1));
}

#[test]
fn the_numbers_of_a_comparison() {
    let found = compare(&[3.0, 4.5, 0.0], &[3.0, 4.0, 0.0], &[3.0, 4.0, 0.0], DType::F32, 4.0);
    assert_eq!((found.max_abs, found.relative, found.worst_index), (0.5, 0.1, 1));
    assert!(!found.ok && found.bound < 1e-5);
    let found = compare(&[0.0, f32::NAN], &[0.0, 0.0], &[0.0, 0.0], DType::F32, 1.0);
    assert_eq!((found.max_abs, found.relative, found.worst_index), (INF, INF, 1));
    let exact = compare(&[0.0], &[0.0], &[0.0], DType::F32, 0.0);
    assert_eq!((exact.max_abs, exact.relative, exact.ok), (0.0, 0.0, true));
    assert!(compare(&[], &[], &[], DType::F32, 0.0).ok);
    for (got, reference, eager) in [(1, 2, 2), (2, 1, 2), (2, 2, 1)] {
        let [got, reference, eager] = [got, reference, eager].map(|len| vec![1.0; len]);
        let got: Vec<f32> = got.iter().map(|&x| x as f32).collect();
        let found = compare(&got, &reference, &eager, DType::F32, 1.0);
        assert_eq!((found.ok, found.max_abs, found.worst_index), (false, INF, 1));
    }
}

/// A case whose every row is judged, with the results of the eager form as what came.
struct Case {
    attention: Attention,
    tensors: [Vec<f32>; 3],
}

impl Case {
    fn new(dtype: DType) -> Self {
        let shape = Shape::new(2, 2, 9, 16).with_key_len(8).with_value_dim(5);
        let count = |sizes: [u32; 4]| sizes.map(|size| size as usize).iter().product();
        let tensors = [shape.query(), shape.key(), shape.value()];
        Self {
            attention: Attention::new(shape, dtype).with_mask(Mask::causal()),
            tensors: [0, 1, 2].map(|i| numbers(count(tensors[i]), i as u64)),
        }
    }

    fn inputs(&self) -> HostInputs<'_> {
        let [q, k, v] = &self.tensors;
        HostInputs::new(q, k, v)
    }
}

#[test]
fn whole_results_are_judged_row_by_row() {
    for dtype in DType::ALL {
        let case = Case::new(dtype);
        let inputs = case.inputs();
        let reference = Reference::new(&case.attention, &inputs).unwrap();
        let rows = reference.sample(usize::MAX);
        assert_eq!(rows.len(), 36);
        let f32s = |values: Vec<f64>| values.into_iter().map(|x| x as f32).collect::<Vec<_>>();
        let eager = rows.iter().map(|&[b, h, i]| reference.row_eager(b, h, i));
        let out: Vec<f32> = eager.flat_map(|row| f32s(row.out)).collect();
        let lse = f32s(reference.lse());
        let (of_out, of_lse) = reference.check_out(&rows, &out, Some(&lse));
        assert!(of_out.ok && of_lse.is_some_and(|lse| lse.ok), "{of_out:?} {of_lse:?}");
        assert!(of_out.bound < 0.04, "{dtype}: {of_out:?}");

        // One element off, one row unwritten, two rows swapped, one LSE in powers of two.
        let mut wrong = out.clone();
        wrong[101] += 2.0 * of_out.bound as f32 + 1e-6;
        let found = reference.check_out(&rows, &wrong, None).0;
        assert_eq!((found.ok, found.worst_index), (false, 101));
        wrong[100..105].fill(f32::NAN);
        assert!(!reference.check_out(&rows, &wrong, None).0.ok);
        let mut wrong = out.clone();
        wrong[90..100].rotate_left(5);
        assert!(!reference.check_out(&rows, &wrong, None).0.ok);
        let mut wrong = lse.clone();
        wrong[4] *= std::f32::consts::LOG2_E;
        let found = reference.check_out(&rows, &out, Some(&wrong)).1.unwrap();
        assert_eq!((found.ok, found.worst_index), (false, 4));
        assert!(!reference.check_out(&rows, &out[..179], None).0.ok);

        // The same through a sample of rows that holds the wrong one.
        let mut wrong = out.clone();
        wrong[179] = -wrong[179] - 1.0;
        let found = reference.check_out(&reference.sample(3), &wrong, None).0;
        assert_eq!((found.ok, found.worst_index), (false, 179));
    }
}

#[test]
fn scores_are_judged_at_every_stage() {
    let case = Case::new(DType::F16);
    let inputs = case.inputs();
    let reference = Reference::new(&case.attention, &inputs).unwrap();
    let rows = reference.sample(usize::MAX);
    for stage in Stage::ALL {
        let eager = rows.iter().flat_map(|&[b, h, i]| reference.scores_eager(stage, b, h, i));
        let scores: Vec<f32> = eager.map(|s| s.max(-1e30) as f32).collect();
        let found = reference.check_scores(stage, &rows, &scores);
        assert!(found.ok && found.bound < 2e-5, "{stage:?}: {found:?}");
        let mut wrong = scores.clone();
        wrong[35 * 8 + 3] += 1e-3;
        let found = reference.check_scores(stage, &rows, &wrong);
        assert_eq!((found.ok, found.worst_index), (false, 35 * 8 + 3));
        assert!(!reference.check_scores(stage, &rows, &scores[..100]).ok);
    }
}

/// Numbers as WGSL may give them: `exp2` up to `3 + 2·|x|` ulp off, to either side.
struct Device {
    state: u64,
}

impl Device {
    /// In [−1, 1).
    fn side(&mut self) -> f32 {
        self.state = self.state.wrapping_mul(6364136223846793005).wrapping_add(1);
        (self.state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn exp2(&mut self, x: f32) -> f32 {
        let side = self.side();
        x.exp2() * (1.0 + side * (3.0 + 2.0 * x.abs()) * f32::EPSILON)
    }

    /// A quotient as WGSL may give it, up to 2.5 ulp off.
    fn divide(&mut self, a: f32, b: f32) -> f32 {
        a / b * (1.0 + self.side() * 2.5 * f32::EPSILON)
    }

    /// A softcap as the kernels compute it: see shaders/attention/score.wgsl.
    fn capped(&mut self, score: f32, cap: f32) -> f32 {
        let x = self.divide(score, cap).abs().min(16.0);
        let square = x * x;
        let series = [-0.00610495, 0.02100364, -0.0538525, 0.13332782, -0.33333329]
            .into_iter()
            .fold(0.0f32, |sum, factor| square * sum + factor);
        if x > 0.625 {
            let power = self.exp2(2.0 * std::f32::consts::LOG2_E * x);
            (cap * (1.0 - self.divide(2.0, power + 1.0))).copysign(score)
        } else {
            score * square * series + score
        }
    }

    /// One row over tiles of keys in powers of two, as a kernel computes it: `out` and `lse`.
    fn row(&mut self, q: &[f32], k: &[f32], v: &[f32], cap: Option<f32>) -> (Vec<f32>, f32) {
        let (dim, value_dim) = (q.len(), v.len() * q.len() / k.len());
        let scale = (1.0 / (dim as f64).sqrt()) as f32;
        let (mut largest, mut sum, mut acc) = (-1e30f32, 0.0, vec![0.0; value_dim]);
        for (k, v) in k.chunks(16 * dim).zip(v.chunks(16 * value_dim)) {
            let mut scores: Vec<f32> = k
                .chunks(dim)
                // Four partial sums, so not the order of the eager form.
                .map(|k| (0..4).map(|lane| dot_from(q, k, lane)).sum::<f32>())
                .map(|dot| match cap {
                    Some(cap) => self.capped(scale * dot, cap) * std::f32::consts::LOG2_E,
                    None => dot * (scale * std::f32::consts::LOG2_E),
                })
                .collect();
            let next = scores.iter().copied().fold(largest, f32::max);
            let rescale = self.exp2(largest - next);
            largest = next;
            scores.iter_mut().for_each(|s| *s = self.exp2(*s - next));
            sum = sum * rescale + scores.iter().sum::<f32>();
            for (c, acc) in acc.iter_mut().enumerate() {
                let column = scores.iter().zip(v[c..].iter().step_by(value_dim));
                *acc = *acc * rescale + column.map(|(weight, v)| weight * v).sum::<f32>();
            }
        }
        let lse = (largest + sum.log2()) * std::f32::consts::LN_2;
        (acc.into_iter().map(|x| x / sum).collect(), lse)
    }
}

/// The part of a dot product that every fourth element makes.
fn dot_from(q: &[f32], k: &[f32], lane: usize) -> f32 {
    q.iter().zip(k).skip(lane).step_by(4).map(|(q, k)| q * k).sum()
}

#[test]
fn a_kernel_on_the_least_accurate_device_passes() {
    let mut device = Device { state: 7 };
    for (keys, dim) in [(1, 4), (2, 8), (3, 64), (17, 1), (65, 32), (300, 128), (2000, 16)] {
        for (factor, cap) in [
            (0.01, None),
            (1.0, None),
            (1.0, Some(1.0)),
            (1.0, Some(5.0)),
            (8.0, Some(50.0)),
            (8.0, Some(1e4)),
            (8.0, Some(1e8)),
            (50.0, None),
        ] {
            let shape = Shape::new(1, 1, 4, dim).with_key_len(keys).with_value_dim(3);
            let mut attention = Attention::new(shape, DType::F32);
            attention.score.softcap = cap;
            let q: Vec<f32> = numbers(4 * dim as usize, 3).iter().map(|q| q * factor).collect();
            let k = numbers((keys * dim) as usize, 4);
            let v = numbers((keys * 3) as usize, 5);
            let inputs = HostInputs::new(&q, &k, &v);
            let reference = Reference::new(&attention, &inputs).unwrap();
            let rows = q.chunks(dim as usize).map(|q| device.row(q, &k, &v, cap));
            let (out, lse): (Vec<_>, Vec<f32>) = rows.unzip();
            let (out_found, lse_found) =
                reference.check_out(&reference.sample(4), &out.concat(), Some(&lse));
            let lse_found = lse_found.unwrap();
            let case = format!("{keys} keys of {dim}, factor {factor}, cap {cap:?}");
            assert!(out_found.ok, "{case}: {out_found:?}");
            assert!(lse_found.ok, "{case}: {lse_found:?}");
        }
    }
}

#[test]
fn a_sigmoid_that_stops_at_a_least_weight_passes() {
    let mut case = Case::new(DType::F32);
    case.attention.activation = Activation::Sigmoid { bias: Some(-300.0) };
    let inputs = case.inputs();
    let reference = Reference::new(&case.attention, &inputs).unwrap();
    let rows = reference.sample(usize::MAX);
    for (got, ok) in [(0.0, true), (2f32.powi(-100), true), (2f32.powi(-90), false)] {
        assert_eq!(reference.check_out(&rows, &[got; 180], None).0.ok, ok, "{got}");
    }
}

/// f32 numbers of the reference's rows.
fn rounded(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&x| x as f32).collect()
}

/// Rows whose logits are so large that rounding them makes any output: unjudged, whatever came, and without
/// a share in the bound of the others.
#[test]
fn rows_that_f32_cannot_tell_are_never_ok() {
    let mut case = Case::new(DType::F32);
    let shared = Broadcast::SHARED;
    case.attention =
        Attention::new(Shape::new(1, 1, 3, 16).with_key_len(8).with_value_dim(5), DType::F32)
            .with_bias(DType::F32, shared);
    let [q, k, v] = &case.tensors;
    let (q, k, v) = (&q[..48], &k[..128], &v[..40]);
    let mut bias = vec![0.0; 24];
    bias[8..16].fill(-1e9);
    let inputs = HostInputs::new(q, k, v).with_bias(&bias);
    let reference = Reference::new(&case.attention, &inputs).unwrap();
    let rows = reference.sample(usize::MAX);
    let (right, lse) = (rounded(&reference.out()), rounded(&reference.lse()));
    let judge = |out: &[f32]| reference.check_out(&rows, out, Some(&lse));

    let (found, of_lse) = judge(&right);
    assert_eq!((found.verdict(), found.ok, found.unjudged), (Verdict::Unjudged, false, 1));
    assert!(found.bound < 1e-4, "{found:?}");
    // An LSE of −1e9 is judged: what f32 holds of it.
    let of_lse = of_lse.unwrap();
    assert!(of_lse.ok && of_lse.unjudged == 0, "{of_lse:?}");
    // The other rows, judged alone, have the same bound.
    let others = reference.check_out(&[rows[0], rows[2]], &right, None).0;
    assert_eq!((others.verdict(), others.bound), (Verdict::Ok, found.bound));

    // Off by 1.11 in the row that nobody can tell, by 2e-4 in another, and by more than can be.
    let changed = |index: usize, by: f32| {
        let mut wrong = right.clone();
        wrong[index] += by;
        judge(&wrong).0
    };
    assert_eq!(changed(7, 1.11).verdict(), Verdict::Unjudged);
    let found = changed(2, 2e-4);
    assert_eq!((found.verdict(), found.worst_index, found.unjudged), (Verdict::Failed, 2, 1));
    let largest = v.iter().fold(0.0f32, |most, v| most.max(v.abs()));
    let found = changed(7, 2.0 * largest + 0.01);
    assert_eq!((found.verdict(), found.worst_index), (Verdict::Failed, 7));
    assert!(found.bound < 2.01 * f64::from(largest), "{found:?}");
    assert_eq!(changed(7, f32::NAN).verdict(), Verdict::Failed);
    assert!(Verdict::Ok < Verdict::Unjudged && Verdict::Unjudged < Verdict::Failed);
    assert_eq!([Verdict::Ok, Verdict::Failed].map(Verdict::name), ["ok", "failed"]);

    let probabilities = rows
        .iter()
        .flat_map(|&[b, h, i]| rounded(&reference.scores(Stage::Probabilities, b, h, i)));
    let mut probabilities: Vec<f32> = probabilities.collect();
    let judge = |weights: &[f32]| reference.check_scores(Stage::Probabilities, &rows, weights);
    assert_eq!(
        (judge(&probabilities).verdict(), judge(&probabilities).unjudged),
        (Verdict::Unjudged, 1)
    );
    probabilities[9] += 1.1;
    assert_eq!(judge(&probabilities).verdict(), Verdict::Failed);
    probabilities[9] -= 1.1;
    probabilities[1] += 1e-3;
    assert_eq!(judge(&probabilities).verdict(), Verdict::Failed);
}

/// A softcap widens the bound by what the capped scores lose, not by what the cap would; where they
/// are large themselves, a sigmoid's rows are not judged either.
#[test]
fn large_softcaps_are_judged_by_their_scores() {
    for (factor, verdict) in [(1.0, Verdict::Ok), (1e4, Verdict::Unjudged)] {
        for sigmoid in [false, true] {
            let mut case = Case::new(DType::F32);
            case.attention.score.softcap = Some(1e8);
            if sigmoid {
                case.attention.activation = Activation::Sigmoid { bias: Some(0.0) };
            }
            case.tensors[..2].iter_mut().flatten().for_each(|x| *x *= factor);
            let inputs = case.inputs();
            let reference = Reference::new(&case.attention, &inputs).unwrap();
            let rows = reference.sample(usize::MAX);
            let mut out = rounded(&reference.out());
            let found = reference.check_out(&rows, &out, None).0;
            assert_eq!(found.verdict(), verdict, "{found:?}");
            if verdict == Verdict::Ok {
                assert!(found.bound < 5e-5, "{found:?}");
                out[100] += 1e-3;
                assert_eq!(reference.check_out(&rows, &out, None).0.verdict(), Verdict::Failed);
            } else {
                // The first query of each head keeps no key.
                assert_eq!(found.unjudged, rows.len() - 4);
            }
        }
    }
    // Scores before the cap know nothing of it.
    let mut case = Case::new(DType::F32);
    case.attention.score.softcap = Some(1e8);
    let inputs = case.inputs();
    let reference = Reference::new(&case.attention, &inputs).unwrap();
    let rows = reference.sample(usize::MAX);
    for stage in [Stage::Scaled, Stage::Modified] {
        let scores: Vec<f32> =
            rows.iter().flat_map(|&[b, h, i]| rounded(&reference.scores(stage, b, h, i))).collect();
        let found = reference.check_scores(stage, &rows, &scores);
        assert!(found.ok && found.bound < 5e-5, "{stage:?}: {found:?}");
    }
}

/// Rows of zeros, and outputs below the resolution of their dtype, have little to judge and are judged.
#[test]
fn small_results_are_judged() {
    for dtype in DType::ALL {
        for value in [0.0, 1e-8, 3e-5] {
            let mut case = Case::new(dtype);
            case.tensors[2].fill(dtype.decode(&dtype.encode(&[value]))[0]);
            let inputs = case.inputs();
            let reference = Reference::new(&case.attention, &inputs).unwrap();
            let rows = reference.sample(usize::MAX);
            let mut out = rounded(&reference.out());
            assert!(reference.check_out(&rows, &out, None).0.ok, "{dtype} {value}");
            out[7] += 1e-4;
            assert!(!reference.check_out(&rows, &out, None).0.ok, "{dtype} {value}");
        }
    }
}

/// A denominator that all but vanishes makes an output of linear attention that f32 cannot tell.
#[test]
fn denominators_that_vanish_leave_rows_unjudged() {
    let mut attention = LinearAttention::new(Shape::new(1, 1, 3, 2).with_value_dim(4), DType::F32);
    attention.normalize = Some(0.0);
    let value = numbers(12, 3);
    // The weights of the last query add up to 1e-6; one of them is −0.75.
    let query = [1.0, 1.0, 1.0, 1.0, 1.0, -1.0];
    let key = [1.0, 0.5, 0.5, 0.25, 0.75, 1.5 - 1e-6];
    let inputs = linear::HostInputs::new(&query, &key, &value);
    let reference = linear::Reference::new(&attention, &inputs).unwrap();
    let results = reference.recurrence();
    let mut out = rounded(&results.out);
    let state = rounded(&results.state);
    let found = reference.check(&out, Some(&state), None);
    assert_eq!(
        (found.out.verdict(), found.out.unjudged),
        (Verdict::Unjudged, 1),
        "{:?}",
        found.out
    );
    assert_eq!((found.verdict(), found.ok()), (Verdict::Unjudged, false));
    assert!(found.state.is_some_and(|state| state.ok));
    assert!(found.out.bound < 1e-4, "{:?}", found.out);
    out[9] *= 2.0;
    assert_eq!(reference.check(&out, None, None).verdict(), Verdict::Unjudged);
    out[3] += 1e-2;
    assert_eq!(reference.check(&out, None, None).verdict(), Verdict::Failed);
}

/// The reference counts low logits of kept pairs as the least that does not mean −∞.
#[test]
fn low_logits_are_no_masks() {
    let shape = Shape::new(1, 1, 1, 1).with_key_len(3);
    let key_bias = [-4.9e29, -4.9e29, -5e29];
    let mut arrays = Arrays::default();
    arrays.key_bias = Some(Array::f32(&key_bias));
    let inputs = HostInputs::new(&[1.0], &[-1e28, -2e28, 0.0], &[1.0, 3.0, f32::NAN]);
    let inputs = inputs.with_arrays(arrays);
    let attention = Attention::new(shape, DType::F32).with_key_bias(Broadcast::SHARED);
    let reference = Reference::new(&attention, &inputs).unwrap();
    assert_eq!(reference.scores(Stage::Masked, 0, 0, 0), [LEAST_LOGIT, LEAST_LOGIT, -INF]);
    let row = reference.row(0, 0, 0);
    assert_eq!((row.out[0], row.lse), (2.0, LEAST_LOGIT + 2f64.ln()));
    assert_eq!(reference.row_eager(0, 0, 0).out, [2.0]);
}

#[test]
fn samples_hold_the_first_and_last_row_and_vary_the_rest() {
    let shape = Shape::new(2, 8, 64, 4);
    let attention = Attention::new(shape, DType::F32);
    let [q, k, v] = [0, 1, 2].map(|seed| numbers(2 * 8 * 64 * 4, seed));
    let inputs = HostInputs::new(&q, &k, &v);
    let reference = Reference::new(&attention, &inputs).unwrap();
    let rows = reference.sample(32);
    assert_eq!((rows.len(), rows[0], rows[31]), (32, [0, 0, 0], [1, 7, 63]));
    let mut queries: Vec<u32> = rows.iter().map(|row| row[2]).collect();
    queries.sort_unstable();
    queries.dedup();
    assert!(queries.len() > 16, "{queries:?}");
    assert!(reference.sample(0).is_empty());
    assert_eq!(reference.sample(1024).len(), 1024);
}
