//! Dense attention on the device against itself: what two calls must have in common.
//!
//! Where the arithmetic is the same, so are the bits. Elsewhere the results of the one call are
//! judged by the reference of the other.

mod common;

use common::{Case, Layout, Results, context, variants};
use wgpu_attention::{Attention, Broadcast, Context, DType, Mask, Positions, Shape, Variant};

/// One batch entry and two heads of 100 queries and keys.
fn shape() -> Shape {
    Shape::new(1, 2, 100, 32)
}

fn plain(shape: Shape) -> Attention {
    Attention::new(shape, DType::F32).with_lse()
}

fn run(case: &Case, context: &Context, variant: Variant) -> Results {
    case.run(context, variant).expect("a supported variant runs")
}

/// Rows `[batch, heads, len]` of a tensor in another order or number along `len`.
fn rows(tensor: &[f32], len: usize, dim: usize, order: &[usize]) -> Vec<f32> {
    let head = |head: &[f32]| -> Vec<f32> {
        order.iter().flat_map(|&row| head[row * dim..][..dim].to_vec()).collect()
    };
    tensor.chunks((len * dim).max(1)).flat_map(head).collect()
}

impl Case {
    /// The same case with its keys and values in another order or number.
    fn with_keys(&self, order: &[usize]) -> Case {
        let shape = self.attention.shape;
        let (len, dims) = (shape.key_len as usize, [shape.head_dim, shape.value_dim]);
        let [head_dim, value_dim] = dims.map(|dim| dim as usize);
        let mut attention = self.attention.clone();
        attention.shape.key_len = order.len() as u32;
        Case {
            query: self.query.clone(),
            key: rows(&self.key, len, head_dim, order),
            value: rows(&self.value, len, value_dim, order),
            bias: self.bias.clone(),
            sides: self.sides.clone(),
            layout: Layout::Dense,
            attention,
        }
    }

    /// The same case with some of its queries.
    fn with_queries(&self, order: &[usize]) -> Case {
        let shape = self.attention.shape;
        let mut case = self.with_keys(&(0..shape.key_len as usize).collect::<Vec<_>>());
        case.query = rows(&self.query, shape.query_len as usize, shape.head_dim as usize, order);
        case.attention.shape.query_len = order.len() as u32;
        case
    }
}

#[test]
fn the_order_of_keys_does_not_matter() {
    let Some(context) = context() else { return };
    let case = Case::new(plain(shape()), 1);
    // 37 has no divisor in common with 100.
    let order: Vec<usize> = (0..100).map(|key| key * 37 % 100).collect();
    for variant in variants(context, &case.attention) {
        case.judge(&run(&case.with_keys(&order), context, variant), "permuted");
    }
}

/// Joins two partial results by their LSEs, in f64.
fn merge(a: &Results, b: &Results, dim: usize) -> Results {
    let lses = |results: &Results| -> Vec<f64> {
        results.lse.iter().flatten().map(|&lse| f64::from(lse)).collect()
    };
    let mut merged = Results { out: Vec::new(), lse: Some(Vec::new()), scores: Vec::new() };
    for (row, (a_lse, b_lse)) in lses(a).into_iter().zip(lses(b)).enumerate() {
        // Both may be empty.
        let largest = a_lse.max(b_lse).max(f64::MIN);
        let (a_weight, b_weight) = ((a_lse - largest).exp(), (b_lse - largest).exp());
        let total = a_weight + b_weight;
        let out = (row * dim..(row + 1) * dim).map(|at| {
            let sum = a_weight * f64::from(a.out[at]) + b_weight * f64::from(b.out[at]);
            (sum / total) as f32
        });
        merged.out.extend(out);
        merged.lse.iter_mut().for_each(|lses| lses.push((largest + total.ln()) as f32));
    }
    merged
}

/// Any cut of the keys in two, joined again, is the whole; the second part stands further left.
#[test]
fn parts_merge_to_the_whole() {
    let Some(context) = context() else { return };
    for mask in [Mask::full(), Mask::causal()] {
        let attention = plain(shape()).with_mask(mask).with_positions(Positions::PerBatch);
        let mut case = Case::new(attention, 2);
        case.sides.query_offset = Some(vec![0]);
        for variant in variants(context, &case.attention) {
            for cut in [0, 1, 31, 32, 64, 77, 99, 100] {
                let first = case.with_keys(&(0..cut).collect::<Vec<_>>());
                let mut second = case.with_keys(&(cut..100).collect::<Vec<_>>());
                second.sides.query_offset = Some(vec![-(cut as i32)]);
                let [first, second] = [first, second].map(|part| run(&part, context, variant));
                case.judge(&merge(&first, &second, 32), "merged");
            }
        }
    }
}

/// A key that is there twice weighs as much as one with a bias of ln 2.
#[test]
fn a_key_twice_is_a_bias_of_ln_2() {
    let Some(context) = context() else { return };
    let mut biased = Case::new(plain(shape()).with_key_bias(Broadcast::SHARED), 3);
    let twice = [0, 7, 31, 99];
    let bias = |key| if twice.contains(&key) { std::f32::consts::LN_2 } else { 0.0 };
    biased.sides.key_bias = Some((0..100).map(bias).collect());
    let mut plain = Case::new(plain(shape()), 3);
    plain.query.clone_from(&biased.query);
    plain.key.clone_from(&biased.key);
    plain.value.clone_from(&biased.value);
    let order: Vec<usize> = (0..100).chain(twice).collect();
    let doubled = plain.with_keys(&order);
    for variant in variants(context, &biased.attention) {
        biased.judge(&run(&doubled, context, variant), "doubled");
        doubled.judge(&run(&biased, context, variant), "biased");
    }
}

/// Values times a power of two give outputs times it, to the bit.
#[test]
fn values_scale_exactly() {
    let Some(context) = context() else { return };
    let case = Case::new(plain(shape()).with_mask(Mask::causal()), 4);
    for variant in variants(context, &case.attention) {
        let once = run(&case, context, variant);
        for factor in [-0.125, 1024.0] {
            let mut scaled = case.with_keys(&(0..100).collect::<Vec<_>>());
            scaled.value.iter_mut().for_each(|x| *x *= factor);
            let scaled = run(&scaled, context, variant);
            let expected: Vec<f32> = once.out.iter().map(|x| x * factor).collect();
            assert_eq!(scaled.out, expected, "{variant} times {factor}");
            assert_eq!(scaled.lse, once.lse, "{variant} times {factor}");
        }
    }
}

/// Under a causal mask, what comes later changes nothing.
#[test]
fn causal_rows_do_not_see_the_future() {
    let Some(context) = context() else { return };
    let whole = Case::new(plain(shape()).with_mask(Mask::causal()), 5);
    for variant in variants(context, &whole.attention) {
        let all = run(&whole, context, variant);
        for len in [1, 31, 33, 64, 99] {
            let first: Vec<usize> = (0..len).collect();
            let prefix = whole.with_keys(&first).with_queries(&first);
            let mut expected = Results { out: rows(&all.out, 100, 32, &first), ..all.clone() };
            expected.lse = all.lse.as_deref().map(|lse| rows(lse, 100, 1, &first));
            prefix.judge(&expected, "rows of the whole");
            prefix.judge(&run(&prefix, context, variant), "prefix");
        }
    }
}

/// Shared heads are as good as copies of them, to the bit.
#[test]
fn grouped_heads_are_expanded_heads() {
    let Some(context) = context() else { return };
    let shape = Shape::new(2, 6, 50, 32).with_key_heads(2).with_value_heads(3);
    let grouped = Case::new(plain(shape), 6);
    let expanded_shape = shape.with_key_value_heads(6);
    let expand = |tensor: &[f32], heads: u32| -> Vec<f32> {
        let head_len = 50 * 32;
        let entry = |entry: &[f32]| -> Vec<f32> {
            let source = |head: u32| (head * heads / 6) as usize * head_len;
            (0..6).flat_map(|head| entry[source(head)..][..head_len].to_vec()).collect()
        };
        tensor.chunks(heads as usize * head_len).flat_map(entry).collect()
    };
    let mut expanded = Case::new(plain(expanded_shape), 6);
    expanded.query.clone_from(&grouped.query);
    expanded.key = expand(&grouped.key, 2);
    expanded.value = expand(&grouped.value, 3);
    for variant in variants(context, &grouped.attention) {
        let [grouped, expanded] = [&grouped, &expanded].map(|case| run(case, context, variant));
        assert_eq!(grouped.out, expanded.out, "{variant}");
        assert_eq!(grouped.lse, expanded.lse, "{variant}");
    }
}

/// Different words for the same pairs give the same bits.
#[test]
fn windows_wider_than_the_keys_are_causal() {
    let Some(context) = context() else { return };
    let case = |mask: &str| {
        Case::new(plain(shape()).with_mask(mask.parse().expect("a valid expression")), 7)
    };
    let [causal, full] = ["causal", "full"].map(case);
    for variant in variants(context, &causal.attention) {
        let same = |words: &[&str], as_case: &Case| {
            let expected = run(as_case, context, variant);
            for mask in words {
                let results = run(&case(mask), context, variant);
                assert_eq!(results.out, expected.out, "{variant}: {mask}");
                assert_eq!(results.lse, expected.lse, "{variant}: {mask}");
            }
        };
        same(&["window(99,0)", "window(100)", "window(4294967295,0)", "window(inf,0)"], &causal);
        same(&["causal_top_left", "causal & prefix(100)", "causal & window(inf,50)"], &causal);
        same(&["window(99,99)", "window(inf,inf)", "prefix(100)", "sink(4294967295)"], &full);
    }
}

/// Packed documents are the documents one by one.
#[test]
fn documents_are_calls_of_their_own() {
    let Some(context) = context() else { return };
    let attention = plain(shape()).with_mask(Mask::documents() & Mask::causal());
    let mut packed = Case::new(attention, 8);
    let (query_starts, key_starts) = ([0, 30, 30, 61, 95], [0, 40, 41, 41, 100]);
    packed.sides.query_starts = Some(query_starts.to_vec());
    packed.sides.key_starts = Some(key_starts.to_vec());
    for variant in variants(context, &packed.attention) {
        let all = run(&packed, context, variant);
        for (queries, keys) in query_starts.windows(2).zip(key_starts.windows(2)) {
            let range = |pair: &[u32]| (pair[0] as usize..pair[1] as usize).collect::<Vec<_>>();
            let (queries, keys) = (range(queries), range(keys));
            let mut alone = packed.with_keys(&keys).with_queries(&queries);
            alone.attention.mask = Mask::causal();
            alone.sides = common::Sides::default();
            let lse = all.lse.as_deref().map(|lse| rows(lse, 100, 1, &queries));
            let part = Results { out: rows(&all.out, 100, 32, &queries), lse, scores: Vec::new() };
            alone.judge(&part, "rows of the packed call");
            alone.judge(&run(&alone, context, variant), "alone");
        }
        let outside: Vec<usize> = (95..100).collect();
        assert!(rows(&all.out, 100, 32, &outside).iter().all(|&x| x == 0.0), "{variant}");
    }
}

/// No keys at all: by the mask, by the offset, or because there are none.
#[test]
fn rows_without_any_key_are_empty() {
    let Some(context) = context() else { return };
    let masked = Case::new(plain(shape()).with_mask(Mask::sink(0)), 9);
    let left = plain(shape()).with_mask(Mask::causal()).with_positions(Positions::PerBatch);
    let mut left = Case::new(left, 9);
    left.sides.query_offset = Some(vec![-1000]);
    let none = Case::new(plain(shape().with_key_len(0)), 9);
    for case in [masked, left, none] {
        for variant in variants(context, &case.attention) {
            let results = run(&case, context, variant);
            assert!(results.out.iter().all(|x| x.to_bits() == 0), "{variant}");
            let lse = results.lse.expect("asked for");
            assert!(lse.len() == 200 && lse.iter().all(|&x| x == f32::NEG_INFINITY), "{variant}");
        }
    }
}

/// One query against many keys is the last row of the whole.
#[test]
fn one_query_is_the_last_row() {
    let Some(context) = context() else { return };
    let whole = Case::new(plain(shape()).with_mask(Mask::causal()), 10);
    let last = whole.with_queries(&[99]);
    for variant in variants(context, &whole.attention) {
        let all = run(&whole, context, variant);
        let lse = all.lse.as_deref().map(|lse| rows(lse, 100, 1, &[99]));
        let row = Results { out: rows(&all.out, 100, 32, &[99]), lse, scores: Vec::new() };
        last.judge(&row, "last row");
        last.judge(&run(&last, context, variant), "one query");
    }
}

/// A prime length divides into no tiles.
#[test]
fn prime_lengths() {
    let Some(context) = context() else { return };
    for mask in [Mask::full(), Mask::causal() & Mask::window(Some(100), None)] {
        let shape = Shape::new(1, 1, 913, 32);
        Case::new(plain(shape).with_mask(mask), 11).check(context);
    }
}
