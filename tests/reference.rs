//! The f64 reference against closed forms, and against itself by identities of attention.

use wgpu_attention::attention::reference::{HostInputs, Reference, Row};
use wgpu_attention::{
    Activation, Array, Arrays, Attention, Broadcast, DType, Error, Mask, Shape, Stage,
};

/// Numbers in `[-2, 2)` that are multiples of 1/64, so that simple products of them are exact.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((state >> 56) as f32 - 128.0) / 64.0
        })
        .collect()
}

/// Queries, keys and values of a shape.
struct Tensors {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Tensors {
    fn new(shape: &Shape) -> Self {
        let count = |sizes: [u32; 4]| sizes.map(|size| size as usize).iter().product();
        Self {
            q: numbers(count(shape.query()), 1),
            k: numbers(count(shape.key()), 2),
            v: numbers(count(shape.value()), 3),
        }
    }

    fn inputs(&self) -> HostInputs<'_> {
        HostInputs::new(&self.q, &self.k, &self.v)
    }
}

fn attention(shape: Shape) -> Attention {
    Attention::new(shape, DType::F32)
}

/// All rows of the first batch entry and head.
fn rows(attention: &Attention, inputs: &HostInputs<'_>) -> Vec<Row> {
    let reference = Reference::new(attention, inputs).unwrap();
    (0..attention.shape.query_len).map(|query| reference.row(0, 0, query)).collect()
}

fn results(attention: &Attention, inputs: &HostInputs<'_>) -> (Vec<f64>, Vec<f64>) {
    let reference = Reference::new(attention, inputs).unwrap();
    (reference.out(), reference.lse())
}

#[track_caller]
fn assert_close(got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        let close = got == want || (got - want).abs() <= 1e-12 * want.abs().max(1.0);
        assert!(close, "at {index}: got {got}, want {want}");
    }
}

#[track_caller]
fn assert_same_rows(got: &[Row], want: &[Row]) {
    for (got, want) in got.iter().zip(want) {
        assert_close(&got.out, &want.out);
        assert_close(&[got.lse], &[want.lse]);
    }
    assert_eq!(got.len(), want.len());
}

/// Joins two results over disjoint sets of keys.
fn merge(a: &Row, b: &Row) -> (Vec<f64>, f64) {
    let largest = a.lse.max(b.lse);
    let lse = largest + ((a.lse - largest).exp() + (b.lse - largest).exp()).ln();
    let (wa, wb) = ((a.lse - lse).exp(), (b.lse - lse).exp());
    (a.out.iter().zip(&b.out).map(|(a, b)| wa * a + wb * b).collect(), lse)
}

/// A per-key bias that masks the keys for which `keep` is false.
fn keep_keys(count: usize, keep: impl Fn(usize) -> bool) -> Vec<f32> {
    (0..count).map(|key| if keep(key) { 0.0 } else { f32::NEG_INFINITY }).collect()
}

fn with_key_bias<'a>(inputs: HostInputs<'a>, key_bias: &'a [f32]) -> HostInputs<'a> {
    let mut arrays = inputs.arrays;
    arrays.key_bias = Some(Array::f32(key_bias));
    inputs.with_arrays(arrays)
}

/// A head of 37 positions and 8 dimensions.
const SMALL: Shape = Shape::new(1, 1, 37, 8);

#[test]
fn uniform_scores_give_the_mean_of_the_values() {
    let mut tensors = Tensors::new(&SMALL);
    tensors.q.fill(0.0);
    let mean: Vec<f64> = (0..8)
        .map(|c| tensors.v.iter().skip(c).step_by(8).map(|&v| f64::from(v)).sum::<f64>() / 37.0)
        .collect();
    for row in rows(&attention(SMALL), &tensors.inputs()) {
        assert_close(&row.out, &mean);
        assert_close(&[row.lse], &[37f64.ln()]);
        let sizes = (0..8).map(|c| tensors.v.iter().skip(c).step_by(8).map(|v| v.abs()).sum());
        let largest = sizes.fold(0.0f32, f32::max);
        assert_close(&[row.magnitude], &[f64::from(largest) / 37.0]);
    }

    // The weights of 37 scores of 0 under sigmoid with its default bias are 1 / (1 + 37) each.
    let sigmoid = attention(SMALL).with_activation(Activation::Sigmoid { bias: None });
    for row in rows(&sigmoid, &tensors.inputs()) {
        for (out, mean) in row.out.iter().zip(&mean) {
            // The bias −ln 37 is an f32.
            assert!((out - mean * 37.0 / 38.0).abs() < 1e-6);
        }
        assert_eq!(row.lse, f64::NEG_INFINITY);
    }
}

#[test]
fn small_scores_make_sigmoid_almost_the_mean() {
    let shape = Shape::new(1, 1, 1000, 4);
    let tensors = Tensors::new(&shape);
    let sigmoid = attention(shape)
        .with_scale(1e-4)
        .with_activation(Activation::Sigmoid { bias: Some(-(1000f32.ln())) });
    let row = Reference::new(&sigmoid, &tensors.inputs()).unwrap().row(0, 0, 500);
    for (c, out) in row.out.iter().enumerate() {
        let mean = tensors.v.iter().skip(c).step_by(4).sum::<f32>() / 1000.0;
        assert!((out - f64::from(mean)).abs() < 2e-3, "{out} {mean}");
    }
}

#[test]
fn one_key_is_returned_as_it_is() {
    let shape = Shape::new(1, 1, 3, 8).with_key_len(1).with_value_dim(5);
    let tensors = Tensors::new(&shape);
    for (i, row) in rows(&attention(shape), &tensors.inputs()).iter().enumerate() {
        let v: Vec<f64> = tensors.v.iter().map(|&v| v.into()).collect();
        assert_eq!(row.out, v);
        let dot: f32 = tensors.q[8 * i..][..8].iter().zip(&tensors.k).map(|(q, k)| q * k).sum();
        assert_close(&[row.lse], &[f64::from(dot) * f64::from(0.125f32.sqrt())]);
    }
}

#[test]
fn stages_follow_their_formulas() {
    let shape = Shape::new(2, 2, 3, 2).with_key_len(4);
    let tensors = Tensors::new(&shape);
    let slopes = [0.5, 0.25];
    let key_bias = numbers(2 * 4, 5);
    let mut bias = numbers(2 * 3 * 4, 6);
    // Head 1, query 2, key 0.
    bias[(3 + 2) * 4] = f32::NEG_INFINITY;
    let mut arrays = Arrays::default();
    arrays.alibi_slopes = Some(Array::f32(&slopes));
    arrays.key_bias = Some(Array::f32(&key_bias));
    let inputs = tensors.inputs().with_bias(&bias).with_arrays(arrays);
    let attention = attention(shape)
        .with_mask(Mask::causal())
        .with_scale(0.5)
        .with_softcap(2.0)
        .with_alibi()
        .with_key_bias(Broadcast { per_batch: true, per_head: false })
        .with_bias(DType::F32, Broadcast { per_batch: false, per_head: true });
    let reference = Reference::new(&attention, &inputs).unwrap();

    let (b, h, i) = (1, 1, 2);
    let q = &tensors.q[((b * 2 + h) * 3 + i) * 2..][..2];
    let scaled: Vec<f64> = (0..4)
        .map(|j| {
            let k = &tensors.k[((b * 2 + h) * 4 + j) * 2..][..2];
            0.5 * f64::from(q[0] * k[0] + q[1] * k[1])
        })
        .collect();
    let modified: Vec<f64> = (0..4)
        .map(|j| {
            // Bottom right: query 2 of 3 stands at key 3 of 4.
            2.0 * (scaled[j] / 2.0).tanh() - 0.25 * (3 - j) as f64
                + f64::from(key_bias[b * 4 + j])
                + f64::from(bias[(h * 3 + i) * 4 + j])
        })
        .collect();
    let stage = |stage| reference.scores(stage, 1, 1, 2);
    assert_close(&stage(Stage::Scaled), &scaled);
    assert_close(&stage(Stage::Modified), &modified);
    assert_eq!(stage(Stage::Masked)[0], f64::NEG_INFINITY);
    assert_close(&stage(Stage::Masked)[1..], &modified[1..]);
    let sum: f64 = modified[1..].iter().map(|s| s.exp()).sum();
    let probabilities: Vec<f64> = modified
        .iter()
        .map(|&s| if s == f64::NEG_INFINITY { 0.0 } else { s.exp() / sum })
        .collect();
    assert_close(&stage(Stage::Probabilities), &probabilities);
    assert_close(&[reference.row(1, 1, 2).lse], &[sum.ln()]);

    // Query 0 stands at key 1; the stages before the mask show what it hides.
    let masked = reference.scores(Stage::Masked, 0, 0, 0);
    assert_eq!(masked[2..], [f64::NEG_INFINITY; 2]);
    assert!(reference.scores(Stage::Modified, 0, 0, 0).iter().all(|s| s.is_finite()));
    for stage in Stage::ALL {
        let eager = reference.scores_eager(stage, 0, 0, 0);
        for (eager, want) in eager.into_iter().zip(reference.scores(stage, 0, 0, 0)) {
            assert!(eager == want || (eager - want).abs() < 1e-6);
        }
    }
}

/// A sink is one more key, of any score and with value 0; in one part of several, it merges.
#[test]
fn a_sink_is_a_key_without_a_value() {
    let tensors = Tensors::new(&SMALL);
    let sinks: Vec<f32> = (0..SMALL.query_heads).map(|head| head as f32 - 1.0).collect();
    let mut arrays = Arrays::default();
    arrays.sinks = Some(Array::f32(&sinks));
    let plain = rows(&attention(SMALL), &tensors.inputs());
    let sunk = attention(SMALL).with_sinks();
    let sunk = rows(&sunk, &tensors.inputs().with_arrays(arrays));
    let rows_per_head = SMALL.query_len as usize;
    for (index, (plain, sunk)) in plain.iter().zip(&sunk).enumerate() {
        let sink = f64::from(sinks[index / rows_per_head % sinks.len()]);
        let lse = (plain.lse.exp() + sink.exp()).ln();
        assert_close(&[sunk.lse], &[lse]);
        let out: Vec<f64> = plain.out.iter().map(|x| x * (plain.lse - lse).exp()).collect();
        assert_close(&sunk.out, &out);
    }
    let empty = attention(SMALL).with_sinks().with_mask(Mask::sink(0));
    let empty = rows(&empty, &tensors.inputs().with_arrays(arrays));
    assert_eq!(empty[0].lse, -1.0);
    assert!(empty[0].out.iter().all(|&x| x == 0.0));
}

#[test]
fn the_eager_form_is_near_and_rounded_to_the_dtype() {
    let shape = Shape::new(1, 2, 65, 24).with_value_dim(7);
    let tensors = Tensors::new(&shape);
    for (dtype, half_ulp) in [(DType::F32, 1e-6), (DType::F16, 1e-3), (DType::BF16, 8e-3)] {
        let attention = Attention::new(shape, dtype).with_mask(Mask::causal());
        let inputs = tensors.inputs();
        let reference = Reference::new(&attention, &inputs).unwrap();
        for query in [0, 1, 64] {
            let (row, eager) = (reference.row(0, 1, query), reference.row_eager(0, 1, query));
            let out: Vec<f32> = eager.out.iter().map(|&x| x as f32).collect();
            assert_eq!(dtype.decode(&dtype.encode(&out)), out);
            for (eager, want) in eager.out.iter().zip(&row.out) {
                assert!((eager - want).abs() <= half_ulp, "{dtype}: {eager} {want}");
            }
            assert!((eager.lse - row.lse).abs() < 1e-5);
        }
    }
}

#[test]
fn parts_merge_at_every_cut() {
    let tensors = Tensors::new(&SMALL);
    let whole = rows(&attention(SMALL), &tensors.inputs());
    for cut in 0..=37usize {
        let part = |keys: std::ops::Range<usize>| {
            let shape = SMALL.with_key_len(keys.len() as u32);
            let keys = keys.start * 8..keys.end * 8;
            let inputs = HostInputs::new(&tensors.q, &tensors.k[keys.clone()], &tensors.v[keys]);
            rows(&attention(shape), &inputs)
        };
        for ((a, b), want) in part(0..cut).iter().zip(&part(cut..37)).zip(&whole) {
            let (out, lse) = merge(a, b);
            assert_close(&out, &want.out);
            assert_close(&[lse], &[want.lse]);
        }
    }
}

#[test]
fn disjoint_sets_of_keys_merge_under_a_mask() {
    let tensors = Tensors::new(&SMALL);
    let causal = attention(SMALL).with_mask(Mask::causal());
    let whole = rows(&causal, &tensors.inputs());
    let biased = causal.with_key_bias(Broadcast::SHARED);
    let odd = keep_keys(37, |key| key % 3 == 1);
    let rest = keep_keys(37, |key| key % 3 != 1);
    let odd = rows(&biased, &with_key_bias(tensors.inputs(), &odd));
    let rest = rows(&biased, &with_key_bias(tensors.inputs(), &rest));
    // Row 0 sees key 0 alone: its part over the odd set is empty.
    assert_eq!(odd[0].lse, f64::NEG_INFINITY);
    for ((a, b), want) in odd.iter().zip(&rest).zip(&whole) {
        let (out, lse) = merge(a, b);
        assert_close(&out, &want.out);
        assert_close(&[lse], &[want.lse]);
    }
}

#[test]
fn sigmoid_parts_add_up() {
    let tensors = Tensors::new(&SMALL);
    let sigmoid = attention(SMALL)
        .with_mask(Mask::causal())
        .with_activation(Activation::Sigmoid { bias: Some(-1.5) });
    let whole = rows(&sigmoid, &tensors.inputs());
    let biased = sigmoid.clone().with_key_bias(Broadcast::SHARED);
    let first = keep_keys(37, |key| key < 13);
    let rest = keep_keys(37, |key| key >= 13);
    let first = rows(&biased, &with_key_bias(tensors.inputs(), &first));
    let rest = rows(&biased, &with_key_bias(tensors.inputs(), &rest));
    for ((a, b), want) in first.iter().zip(&rest).zip(&whole) {
        let sum: Vec<f64> = a.out.iter().zip(&b.out).map(|(a, b)| a + b).collect();
        assert_close(&sum, &want.out);
    }

    // σ(x) = (1 + tanh(x/2)) / 2.
    let inputs = tensors.inputs();
    let reference = Reference::new(&sigmoid, &inputs).unwrap();
    let scores = reference.scores(Stage::Modified, 0, 0, 36);
    let halves: Vec<f64> = scores.iter().map(|s| 0.5 + 0.5 * ((s - 1.5) / 2.0).tanh()).collect();
    assert_close(&reference.scores(Stage::Probabilities, 0, 0, 36), &halves);
}

#[test]
fn one_pass_over_the_keys_gives_the_same_row() {
    let tensors = Tensors::new(&SMALL);
    let inputs = tensors.inputs();
    let attention = attention(SMALL).with_scale(3.0);
    let reference = Reference::new(&attention, &inputs).unwrap();
    let scores = reference.scores(Stage::Masked, 0, 0, 20);
    let (mut m, mut l, mut a) = (f64::NEG_INFINITY, 0.0, [0.0; 8]);
    for (tile, scores) in scores.chunks(5).enumerate() {
        let next = scores.iter().copied().fold(m, f64::max);
        let rescale = (m - next).exp();
        l *= rescale;
        a = a.map(|a| a * rescale);
        for (j, s) in scores.iter().enumerate() {
            let weight = (s - next).exp();
            l += weight;
            for (a, &v) in a.iter_mut().zip(&tensors.v[(tile * 5 + j) * 8..]) {
                *a += weight * f64::from(v);
            }
        }
        m = next;
    }
    let row = reference.row(0, 0, 20);
    assert_close(&a.map(|a| a / l), &row.out);
    assert_close(&[m + l.ln()], &[row.lse]);
}

#[test]
fn scaling_a_weight_is_a_key_bias() {
    let tensors = Tensors::new(&SMALL);
    let causal = attention(SMALL).with_mask(Mask::causal());
    let mut key_bias = vec![0.0; 37];
    key_bias[0] = 1.7f32.ln();
    let factor = f64::from(key_bias[0]).exp();
    let inputs = tensors.inputs();
    let plain = Reference::new(&causal, &inputs).unwrap();
    let biased = causal.clone().with_key_bias(Broadcast::SHARED);
    let inputs = with_key_bias(tensors.inputs(), &key_bias);
    let biased = Reference::new(&biased, &inputs).unwrap();
    for query in 0..37 {
        let mut weights = plain.scores(Stage::Probabilities, 0, 0, query);
        weights[0] *= factor;
        let sum: f64 = weights.iter().sum();
        let weights: Vec<f64> = weights.iter().map(|w| w / sum).collect();
        assert_close(&biased.scores(Stage::Probabilities, 0, 0, query), &weights);
    }
}

#[test]
fn a_compensation_token_stands_for_many_keys() {
    // Keys 4..20 are replaced by their mean, which counts sixteen times.
    let tensors = Tensors::new(&SMALL);
    let compensate = |tensor: &[f32]| {
        let mean = (0..8).map(|c| (4..20).map(|key| tensor[key * 8 + c]).sum::<f32>() / 16.0);
        [&tensor[..32], &tensor[160..], &mean.collect::<Vec<_>>()].concat()
    };
    let (k, v) = (compensate(&tensors.k), compensate(&tensors.v));
    let mut key_bias = vec![0.0; 22];
    key_bias[21] = 16f32.ln();
    let shape = SMALL.with_key_len(22);
    let inputs = HostInputs::new(&tensors.q, &k, &v);
    let plain = Reference::new(&Attention::new(shape, DType::F32), &inputs).map(|r| {
        let scores = r.scores(Stage::Modified, 0, 0, 36);
        let mut weights: Vec<f64> = scores.iter().map(|s| s.exp()).collect();
        weights[21] *= f64::from(key_bias[21]).exp();
        weights
    });
    let weights = plain.unwrap();
    let sum: f64 = weights.iter().sum();
    let want: Vec<f64> = (0..8)
        .map(|c| (0..22).map(|key| weights[key] * f64::from(v[key * 8 + c])).sum::<f64>() / sum)
        .collect();
    let biased = attention(shape).with_key_bias(Broadcast::SHARED);
    let row = &rows(&biased, &with_key_bias(inputs, &key_bias))[36];
    assert_close(&row.out, &want);
}

#[test]
fn a_key_twice_weighs_ln_2_more() {
    let tensors = Tensors::new(&SMALL);
    let twice = |tensor: &[f32]| [tensor, &tensor[5 * 8..6 * 8]].concat();
    let (k, v) = (twice(&tensors.k), twice(&tensors.v));
    let doubled = rows(&attention(SMALL.with_key_len(38)), &HostInputs::new(&tensors.q, &k, &v));
    let mut key_bias = vec![0.0; 37];
    key_bias[5] = std::f32::consts::LN_2;
    let biased = attention(SMALL).with_key_bias(Broadcast::SHARED);
    let biased = rows(&biased, &with_key_bias(tensors.inputs(), &key_bias));
    for (doubled, biased) in doubled.iter().zip(&biased) {
        // ln 2 is an f32 in the bias.
        for (a, b) in doubled.out.iter().zip(&biased.out) {
            assert!((a - b).abs() < 1e-7);
        }
        assert!((doubled.lse - biased.lse).abs() < 1e-7);
    }
}

#[test]
fn weakened_sinks_are_a_merge_with_other_weights() {
    // Weights of two keys are scaled by β and what that frees goes to the others in proportion.
    let tensors = Tensors::new(&SMALL);
    let (sinks, beta, query) = ([6, 11], 0.4, 20);
    let causal = attention(SMALL).with_mask(Mask::causal());
    let inputs = tensors.inputs();
    let weights =
        Reference::new(&causal, &inputs).unwrap().scores(Stage::Probabilities, 0, 0, query);
    let of_sinks: f64 = sinks.iter().map(|&key| weights[key]).sum();
    let moved = weights.iter().enumerate().map(|(key, &weight)| {
        if sinks.contains(&key) {
            beta * weight
        } else {
            weight * (1.0 - beta * of_sinks) / (1.0 - of_sinks)
        }
    });
    let mut want = [0.0; 8];
    for (key, weight) in moved.enumerate() {
        for (want, &v) in want.iter_mut().zip(&tensors.v[key * 8..]) {
            *want += weight * f64::from(v);
        }
    }
    let biased = causal.clone().with_key_bias(Broadcast::SHARED);
    let only_sinks = keep_keys(37, |key| sinks.contains(&key));
    let others = keep_keys(37, |key| !sinks.contains(&key));
    let only_sinks = &rows(&biased, &with_key_bias(inputs, &only_sinks))[query as usize];
    let others = &rows(&biased, &with_key_bias(inputs, &others))[query as usize];
    let merged = only_sinks
        .out
        .iter()
        .zip(&others.out)
        .map(|(sinks, others)| beta * of_sinks * sinks + (1.0 - beta * of_sinks) * others);
    assert_close(&merged.collect::<Vec<_>>(), &want);
}

#[test]
fn factors_of_values_and_temperatures_fold_into_the_tensors() {
    let tensors = Tensors::new(&SMALL);
    let causal = attention(SMALL).with_mask(Mask::causal());
    let plain = rows(&causal, &tensors.inputs());
    let v: Vec<f32> = tensors.v.iter().map(|v| v * -2.5).collect();
    let scaled = rows(&causal, &HostInputs::new(&tensors.q, &tensors.k, &v));
    for (plain, scaled) in plain.iter().zip(&scaled) {
        let want: Vec<f64> = plain.out.iter().map(|x| x * -2.5).collect();
        assert_close(&scaled.out, &want);
        assert_eq!(scaled.lse, plain.lse);
    }

    // A temperature per query is a factor of its vector.
    let inputs = tensors.inputs();
    let reference = Reference::new(&causal, &inputs).unwrap();
    for query in [0, 7, 36] {
        let temperature = 1.0 + query as f32 / 8.0;
        let q: Vec<f32> = tensors.q.iter().map(|q| q * temperature).collect();
        let heated = HostInputs::new(&q, &tensors.k, &tensors.v);
        let heated = Reference::new(&causal, &heated).unwrap().scores(Stage::Masked, 0, 0, query);
        let scores = reference.scores(Stage::Masked, 0, 0, query);
        let want: Vec<f64> = scores.iter().map(|s| s * f64::from(temperature)).collect();
        assert_close(&heated, &want);
    }
}

#[test]
fn causal_rows_do_not_depend_on_what_follows() {
    let tensors = Tensors::new(&SMALL);
    let short = Shape::new(1, 1, 20, 8);
    let prefix = HostInputs::new(&tensors.q[..160], &tensors.k[..160], &tensors.v[..160]);
    for activation in [Activation::Softmax, Activation::Sigmoid { bias: Some(-3.0) }] {
        let long = attention(SMALL).with_mask(Mask::causal()).with_activation(activation);
        let short = attention(short).with_mask(Mask::causal()).with_activation(activation);
        assert_same_rows(&rows(&short, &prefix), &rows(&long, &tensors.inputs())[..20]);
    }
}

#[test]
fn grouped_heads_are_expanded_heads() {
    let grouped = Shape::new(2, 6, 9, 4).with_key_heads(3).with_value_heads(2).with_key_len(11);
    let expanded = grouped.with_key_value_heads(6);
    let tensors = Tensors::new(&grouped);
    let expand = |tensor: &[f32], heads: usize| {
        let head = 11 * 4;
        (0..2 * 6)
            .flat_map(|i| {
                let source = i / 6 * heads + i % 6 * heads / 6;
                tensor[source * head..][..head].to_vec()
            })
            .collect::<Vec<f32>>()
    };
    let (k, v) = (expand(&tensors.k, 3), expand(&tensors.v, 2));
    let got = results(&attention(grouped), &tensors.inputs());
    let want = results(&attention(expanded), &HostInputs::new(&tensors.q, &k, &v));
    assert_eq!(got, want);
}

#[test]
fn a_window_over_everything_is_causal() {
    let shape = Shape::new(1, 1, 19, 8).with_key_len(37);
    let tensors = Tensors::new(&shape);
    let causal = rows(&attention(shape).with_mask(Mask::causal()), &tensors.inputs());
    for left in [None, Some(37), Some(1000)] {
        let window = attention(shape).with_mask(Mask::window(left, Some(0)));
        assert_eq!(rows(&window, &tensors.inputs()), causal);
    }
    let narrower = attention(shape).with_mask(Mask::window(Some(3), Some(0)));
    assert_ne!(rows(&narrower, &tensors.inputs()), causal);
}

#[test]
fn packed_documents_are_a_loop_over_documents() {
    // Document 1 has no queries, document 2 no keys, document 4 more queries than keys.
    let query_starts = [0, 5, 5, 8, 12, 19];
    let key_starts = [0, 6, 10, 10, 17, 20];
    let shape = Shape::new(1, 1, 19, 8).with_key_len(20);
    let tensors = Tensors::new(&shape);
    let mut arrays = Arrays::default();
    arrays.query_starts = Some(Array::u32(&query_starts));
    arrays.key_starts = Some(Array::u32(&key_starts));
    for mask in [Mask::full(), Mask::causal(), Mask::window(Some(1), Some(1))] {
        let packed = attention(shape).with_mask(Mask::documents() & mask.clone());
        let packed = rows(&packed, &tensors.inputs().with_arrays(arrays));
        let mut looped = Vec::new();
        for (queries, keys) in query_starts.windows(2).zip(key_starts.windows(2)) {
            let [queries, keys] = [queries, keys].map(|at| at[0] as usize..at[1] as usize);
            let shape = Shape::new(1, 1, queries.len() as u32, 8).with_key_len(keys.len() as u32);
            let keys = keys.start * 8..keys.end * 8;
            let inputs = HostInputs::new(
                &tensors.q[queries.start * 8..queries.end * 8],
                &tensors.k[keys.clone()],
                &tensors.v[keys],
            );
            looped.extend(rows(&attention(shape).with_mask(mask.clone()), &inputs));
        }
        assert_same_rows(&packed, &looped);
    }
}

#[test]
fn the_order_of_keys_does_not_matter() {
    let tensors = Tensors::new(&SMALL);
    let key_bias = numbers(37, 9);
    let order: Vec<usize> = (0..37).map(|key| key * 10 % 37).collect();
    let gather = |tensor: &[f32], dim: usize| {
        order.iter().flat_map(|&key| tensor[key * dim..][..dim].to_vec()).collect::<Vec<f32>>()
    };
    let (k, v) = (gather(&tensors.k, 8), gather(&tensors.v, 8));
    let shuffled_bias = gather(&key_bias, 1);
    let biased = attention(SMALL).with_key_bias(Broadcast::SHARED);
    assert_same_rows(
        &rows(&biased, &with_key_bias(HostInputs::new(&tensors.q, &k, &v), &shuffled_bias)),
        &rows(&biased, &with_key_bias(tensors.inputs(), &key_bias)),
    );
}

#[test]
fn rows_without_keys_are_zero() {
    // Query 3 of 7 stands at key 0 of 4; those before it see nothing.
    let shape = Shape::new(1, 1, 7, 8).with_key_len(4);
    let tensors = Tensors::new(&shape);
    for activation in [Activation::Softmax, Activation::Sigmoid { bias: None }] {
        let causal = attention(shape).with_mask(Mask::causal()).with_activation(activation);
        let inputs = tensors.inputs();
        let reference = Reference::new(&causal, &inputs).unwrap();
        for query in 0..3 {
            for row in [reference.row(0, 0, query), reference.row_eager(0, 0, query)] {
                assert_eq!((row.out, row.lse), (vec![0.0; 8], f64::NEG_INFINITY));
            }
            assert_eq!(reference.scores(Stage::Probabilities, 0, 0, query), [0.0; 4]);
        }
        assert!(reference.row(0, 0, 3).out.iter().any(|&x| x != 0.0));
    }
    let no_keys = Shape::new(1, 1, 2, 8).with_key_len(0);
    let tensors = Tensors::new(&no_keys);
    let (out, lse) = results(&attention(no_keys), &tensors.inputs());
    assert_eq!((out, lse), (vec![0.0; 16], vec![f64::NEG_INFINITY; 2]));
    let no_queries = Shape::new(1, 1, 0, 8).with_key_len(37);
    let tensors = Tensors::new(&no_queries);
    assert_eq!(results(&attention(no_queries), &tensors.inputs()), (vec![], vec![]));
}

#[test]
fn non_finite_numbers_reach_exactly_the_rows_that_keep_them() {
    let clean = Tensors::new(&SMALL);
    for activation in [Activation::Softmax, Activation::Sigmoid { bias: None }] {
        let causal = attention(SMALL)
            .with_mask(Mask::causal())
            .with_softcap(5.0)
            .with_activation(activation);
        let want = rows(&causal, &clean.inputs());
        for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut keys = Tensors::new(&SMALL);
            keys.k[30 * 8 + 1] = poison;
            keys.v[30 * 8..31 * 8].fill(poison);
            let inputs = keys.inputs();
            let reference = Reference::new(&causal, &inputs).unwrap();
            for query in 0..37 {
                let (row, eager) = (reference.row(0, 0, query), reference.row_eager(0, 0, query));
                if query < 30 {
                    assert_eq!(row, want[query as usize]);
                    assert!(eager.out.iter().all(|x| x.is_finite()));
                } else {
                    assert!(row.out.iter().chain(&eager.out).all(|x| x.is_nan()));
                    assert!(row.lse.is_nan() || activation != Activation::Softmax);
                }
                assert!(row.magnitude.is_finite());
            }

            let mut values = Tensors::new(&SMALL);
            values.v[30 * 8 + 2] = poison;
            for (query, row) in rows(&causal, &values.inputs()).iter().enumerate() {
                let is_nan = |c| query >= 30 && c == 2;
                for (c, (got, want)) in row.out.iter().zip(&want[query].out).enumerate() {
                    assert!(if is_nan(c) { got.is_nan() } else { got == want });
                }
                assert_eq!(row.lse, want[query].lse);
            }
        }
    }
}

#[test]
fn a_bias_of_minus_infinity_masks_its_pair() {
    let shape = Shape::new(1, 1, 3, 8);
    let mut tensors = Tensors::new(&shape);
    tensors.k[8..16].fill(f32::NAN);
    tensors.v[8..16].fill(f32::INFINITY);
    let mut bias = vec![0.0; 9];
    for query in 0..2 {
        bias[query * 3 + 1] = f32::NEG_INFINITY;
    }
    let biased = attention(shape).with_bias(DType::F16, Broadcast::SHARED);
    let inputs = tensors.inputs().with_bias(&bias);
    let got = rows(&biased, &inputs);
    assert!(got[..2].iter().all(|row| row.out.iter().all(|x| x.is_finite())));
    assert!(got[2].lse.is_nan());
    // Any other number that is not finite poisons the row.
    for poison in [f32::NAN, f32::INFINITY] {
        bias[0] = poison;
        let got = rows(&biased, &tensors.inputs().with_bias(&bias));
        assert!(got[0].lse.is_nan() && got[1].lse.is_finite());
    }
}

#[test]
fn huge_scores_stay_finite() {
    let shape = Shape::new(1, 1, 5, 1);
    let (q, v) = ([1e4; 5], [1.0, 2.0, 3.0, 4.0, 5.0]);
    let k = [1.0, -1.0, 1.0, -1.0, 0.5];
    let inputs = HostInputs::new(&q, &k, &v);
    let softmax = attention(shape);
    let reference = Reference::new(&softmax, &inputs).unwrap();
    for row in [reference.row(0, 0, 0), reference.row_eager(0, 0, 0)] {
        assert_eq!(row.out, [2.0]);
        assert!((row.lse - 1e4 - 2f64.ln()).abs() < 1e-3);
    }
    let sigmoid = attention(shape).with_activation(Activation::Sigmoid { bias: None });
    let reference = Reference::new(&sigmoid, &inputs).unwrap();
    for row in [reference.row(0, 0, 0), reference.row_eager(0, 0, 0)] {
        assert_eq!(row.out, [9.0]);
    }
}

#[test]
fn wrong_inputs_are_refused_by_name() {
    let shape = Shape::new(1, 2, 3, 8).with_key_len(5);
    let tensors = Tensors::new(&shape);
    let refused =
        |attention: &Attention, inputs: &HostInputs<'_>| match Reference::new(attention, inputs) {
            Err(Error::Tensor { tensor, .. }) => tensor,
            other => panic!("expected an error about a tensor, got {other:?}"),
        };
    let plain = attention(shape);
    let short = &tensors.q[1..];
    assert_eq!(refused(&plain, &HostInputs::new(short, &tensors.k, &tensors.v)), "query");
    assert_eq!(refused(&plain, &HostInputs::new(&tensors.q, short, &tensors.v)), "key");
    assert_eq!(refused(&plain, &HostInputs::new(&tensors.q, &tensors.k, short)), "value");

    let biased = plain.clone().with_bias(DType::F32, Broadcast::SHARED);
    assert_eq!(refused(&biased, &tensors.inputs()), "bias");
    assert_eq!(refused(&biased, &tensors.inputs().with_bias(&[0.0; 14])), "bias");
    assert_eq!(refused(&plain, &tensors.inputs().with_bias(&[0.0; 15])), "bias");
    let alibi = plain.clone().with_alibi();
    assert_eq!(refused(&alibi, &tensors.inputs()), "alibi_slopes");
    let key_bias = plain.clone().with_key_bias(Broadcast::SHARED);
    assert_eq!(refused(&key_bias, &with_key_bias(tensors.inputs(), &[0.0; 4])), "key_bias");
    let mut arrays = Arrays::default();
    arrays.key_bias = Some(Array::Reserved { len: 5 });
    assert_eq!(refused(&key_bias, &tensors.inputs().with_arrays(arrays)), "key_bias");

    let nonsense = plain.with_scale(f32::NAN);
    assert!(matches!(Reference::new(&nonsense, &tensors.inputs()), Err(Error::Config { .. })));
}
