//! Merge on the device against its f64 reference, and attention cut into parts and merged against
//! the whole.

mod common;

use common::merge::Parts;
use common::{Case, Layout, Placed, Random, context};
use wgpu_attention::attention::reference::Reference;
use wgpu_attention::attention::tolerance::LEAST_LOGIT;
use wgpu_attention::{
    Activation, Alignment, Array, Attention, Context, DType, Inputs, KeyList, Keys, Lists, Mask,
    Merge, MergeInputs, MergeOutputs, MergeRule, Outputs, Shape, View,
};

const RULES: [MergeRule; 3] = [MergeRule::Lse, MergeRule::Weights, MergeRule::Sum];

#[test]
fn rules_dtypes_and_layouts() {
    let Some(context) = context() else { return };
    for rule in RULES {
        for dtype in DType::ALL {
            for (dim, layouts) in [
                (32, [Layout::Dense, Layout::Packed, Layout::Apart(4)]),
                (7, [Layout::Dense, Layout::Packed, Layout::Apart(3)]),
            ] {
                for (seed, layout) in layouts.into_iter().enumerate() {
                    let mut merge = Merge::new(3, [2, 3, 37, dim], dtype).with_rule(rule);
                    merge.lse = rule == MergeRule::Lse;
                    let mut parts = Parts::draw(merge, seed as u64);
                    parts.layout = layout;
                    parts.check(context);
                }
            }
        }
    }
}

#[test]
fn any_number_of_parts() {
    let Some(context) = context() else { return };
    for parts in [1, 2, 16] {
        for rule in RULES {
            let merge = Merge::new(parts, [1, 2, 65, 32], DType::F32).with_rule(rule);
            Parts::draw(merge, parts.into()).check(context);
        }
    }
    let none = Merge::new(2, [1, 0, 65, 32], DType::F32);
    Parts { out: Vec::new(), ..Parts::draw(none, 0) }.check(context);
}

#[test]
fn log_weights_and_logits() {
    let Some(context) = context() else { return };
    let merge = Merge::new(4, [2, 2, 33, 32], DType::F32).with_lse();
    let mut parts = Parts::draw(merge, 8);
    parts.log_weights = Some(vec![0.0, 2f32.ln(), -3.0, -1e30]);
    parts.check(context);
    let mut random = Random::new(1);
    let logits = random.normal(DType::F32, parts.lse.len());
    let own = |x: f32| if random.below(3) == 0 { f32::NAN } else { x };
    parts.logits = Some(logits.into_iter().map(own).collect());
    parts.check(context);
}

/// Parts that score next to −∞ are no empty ones, alone or with a log-weight that takes them below −5e29.
#[test]
fn parts_next_to_minus_infinity() {
    let Some(context) = context() else { return };
    let merge = Merge::new(4, [2, 2, 33, 32], DType::F32).with_lse();
    let mut parts = Parts::draw(merge, 8);
    for (row, lse) in parts.lse.iter_mut().enumerate().filter(|(_, lse)| **lse > -5e29) {
        *lse = [-4e29, -4.9e29][row % 2];
    }
    parts.check(context);
    parts.log_weights = Some(vec![-4e29; 4]);
    parts.check(context);
    let (_, lse) = parts.run(context).expect("runs");
    let least = |x: &&f32| f64::from(**x) == LEAST_LOGIT;
    assert!(lse.iter().filter(least).count() > lse.len() / 2, "{:?}", &lse[..8]);
}

/// A NaN among a row's LSEs reaches that row alone.
#[test]
fn poisoned_rows() {
    let Some(context) = context() else { return };
    let mut parts = Parts::draw(Merge::new(3, [1, 2, 33, 32], DType::F16).with_lse(), 8);
    parts.lse[70] = f32::NAN;
    parts.check(context);
}

/// Attention over each of several lists of keys, merged, against attention over all of them.
fn check_parts(context: &Context, case: &Case, lists: &[KeyList]) {
    let (shape, dtype) = (case.attention.shape, case.attention.dtype);
    let softmax = case.attention.activation == Activation::Softmax;
    let place = |shape, values| Placed::new(context, dtype, shape, Layout::Dense, Some(values));
    let query = place(shape.query(), &case.query);
    let key = place(shape.key(), &case.key);
    let value = place(shape.value(), &case.value);
    let mut merge = Merge::new(lists.len() as u32, shape.out(), dtype);
    if softmax {
        merge = merge.with_lse();
    } else {
        merge = merge.with_rule(MergeRule::Sum);
    }
    let parts = Placed::new(context, dtype, merge.stacked(shape.value_dim), Layout::Dense, None);
    let part_lses = Placed::new(context, DType::F32, merge.stacked(1), Layout::Dense, None);
    let [rows, elements] =
        [shape.lse(), shape.out()].map(|shape| shape.into_iter().map(u64::from).product::<u64>());
    for (part, list) in lists.iter().enumerate() {
        let attention = case.attention.clone().with_keys(list.keys);
        let plan = pollster::block_on(attention.plan(context)).expect("plans");
        let inputs = Inputs::new(query.view(), key.view(), value.view())
            .with_arrays(list.arrays(case.sides.arrays()));
        let part = part as u64;
        let out = View::new(&parts.buffer, dtype, shape.out()).with_offset(part * elements);
        let lse = View::new(&part_lses.buffer, DType::F32, shape.lse()).with_offset(part * rows);
        let mut outputs = Outputs::new(out);
        if softmax {
            outputs = outputs.with_lse(lse);
        }
        let bound = plan.bind(&inputs, &outputs).expect("binds");
        pollster::block_on(context.run(&bound)).expect("runs");
    }
    let out = Placed::new(context, dtype, shape.out(), Layout::Dense, None);
    let lse = Placed::new(context, DType::F32, shape.lse(), Layout::Dense, None);
    let mut inputs = MergeInputs::new(parts.view());
    let mut outputs = MergeOutputs::new(out.view());
    if softmax {
        inputs = inputs.with_lse(part_lses.view());
        outputs = outputs.with_lse(lse.view());
    }
    let plan = pollster::block_on(merge.plan(context)).expect("plans");
    let bound = plan.bind(&inputs, &outputs).expect("binds");
    pollster::block_on(context.run(&bound)).expect("runs");

    let host = case.host();
    let reference = Reference::new(&case.attention, &host).expect("valid");
    let rows = reference.sample(usize::MAX);
    let lse = softmax.then(|| lse.read_logits(context));
    let (found, found_lse) = reference.check_out(&rows, &out.read(context), lse.as_deref());
    assert!(found.ok, "{:?}: {found:?}", case.attention);
    assert!(found_lse.is_none_or(|found| found.ok), "{:?}: {found_lse:?}", case.attention);
}

fn whole(activation: Activation) -> Case {
    let shape = Shape::new(1, 2, 40, 32).with_key_value_heads(1).with_key_len(70);
    let attention =
        Attention::new(shape, DType::F32).with_activation(activation).with_mask(Mask::causal());
    let mut case = Case::new(attention, 31);
    if activation == Activation::Softmax {
        case.attention = case.attention.with_lse();
    }
    case
}

/// One list of single keys for all, of the keys for which `takes`.
fn keys_where(shape: &Shape, takes: impl Fn(u32) -> bool) -> KeyList {
    let keys = Keys::Indices { block_q: 64, lists: Lists::SHARED };
    let row = (0..shape.key_len).filter(|&key| takes(key)).collect();
    KeyList::from_rows(keys, shape, &[row]).expect("valid")
}

#[test]
fn every_cut() {
    let Some(context) = context() else { return };
    for activation in [Activation::Softmax, Activation::Sigmoid { bias: None }] {
        let case = whole(activation);
        let shape = &case.attention.shape;
        for cut in 0..=shape.key_len {
            let parts = [keys_where(shape, |key| key < cut), keys_where(shape, |key| key >= cut)];
            check_parts(context, &case, &parts);
        }
    }
}

/// Which part a key lies in changes nothing.
#[test]
fn any_partition() {
    let Some(context) = context() else { return };
    for activation in [Activation::Softmax, Activation::Sigmoid { bias: None }] {
        let case = whole(activation);
        let shape = &case.attention.shape;
        for seed in 0..5 {
            let part: Vec<u32> = {
                let mut random = Random::new(seed);
                (0..shape.key_len).map(|_| random.below(3)).collect()
            };
            let list = |n: u32| keys_where(shape, |key| part[key as usize] == n);
            check_parts(context, &case, &[list(0), list(1), list(2)]);
        }
    }
}

/// Vertical-slash attention: blocks along the diagonal and single columns outside of them.
#[test]
fn blocks_and_columns() {
    let Some(context) = context() else { return };
    let shape = Shape::new(1, 2, 192, 32);
    let attention = Attention::new(shape, DType::F32).with_mask(Mask::causal()).with_lse();
    let blocks = Keys::Blocks { block_q: 64, block_k: 64, lists: Lists::SHARED };
    let slashes = KeyList::from_rows(blocks, &shape, &[vec![0], vec![30, 94], vec![128]]);
    let columns = Keys::Indices { block_q: 64, lists: Lists::SHARED };
    let verticals =
        KeyList::from_rows(columns, &shape, &[vec![], vec![3, 9], vec![3, 9, 64, 100, 127]]);
    let (slashes, verticals) = (slashes.expect("valid"), verticals.expect("valid"));

    // The whole as one list of single keys, for the reference.
    let keys = |block: usize| {
        let row = |list: &KeyList| {
            let [start, end] = [block, block + 1].map(|row| list.offsets[row] as usize);
            list.entries[start..end].to_vec()
        };
        let from_blocks = row(&slashes).into_iter().flat_map(|token| token..token + 64);
        let mut keys: Vec<u32> = from_blocks.chain(row(&verticals)).collect();
        keys.sort_unstable();
        keys
    };
    let union = KeyList::from_rows(columns, &shape, &[keys(0), keys(1), keys(2)]).expect("valid");
    let mut case = Case::new(attention.clone(), 4);
    case.attention = attention.with_keys(union.keys);
    case.sides.list = Some(union);
    check_parts(context, &case, &[slashes, verticals]);
}

#[test]
fn bad_merges_are_refused() {
    let Some(context) = context() else { return };
    let shape = [1, 2, 33, 6];
    let refusals = [
        (
            Merge::new(0, shape, DType::F32),
            "`parts`: expected at least 1, and parts · batch below 2^32, got 0",
        ),
        (Merge::new(2, shape, DType::F32).with_alignment(Alignment::Vec4), "got Vec4 with 6"),
        (Merge::new(2, shape, DType::F32).with_rule(MergeRule::Sum).with_lse(), "got lse with Sum"),
    ];
    for (merge, sentence) in refusals {
        let said = merge.validate().expect_err("refused").to_string();
        assert!(said.ends_with(sentence), "{said}");
    }
    let merge = Merge::new(2, shape, DType::F32);
    let parts = Placed::new(context, DType::F32, merge.stacked(6), Layout::Dense, None);
    let rows = Placed::new(context, DType::F32, merge.stacked(1), Layout::Dense, None);
    let out = Placed::new(context, DType::F32, shape, Layout::Dense, None);
    let plan = pollster::block_on(merge.plan(context)).expect("plans");
    let refusal = |inputs: &MergeInputs<'_>| {
        plan.bind(inputs, &MergeOutputs::new(out.view())).expect_err("refused").to_string()
    };
    let without = refusal(&MergeInputs::new(parts.view()));
    assert!(
        without.starts_with("tensor `lse (parts)`: expected a view of f32 [2, 2, 33, 1], got"),
        "{without}"
    );
    let inputs = MergeInputs::new(parts.view()).with_lse(rows.view());
    let weighted = refusal(&inputs.with_weights(rows.view()));
    assert!(weighted.starts_with("tensor `weights`: expected none"), "{weighted}");
    let short = refusal(&inputs.with_log_weights(Array::f32(&[0.0])));
    assert!(short.ends_with("expected 2 values, one a part, got 1 values"), "{short}");
}

#[test]
fn pieces_merge_the_same() {
    let Some(context) = context() else { return };
    let pieces = context.with_submission_time(std::time::Duration::ZERO);
    for dim in [32, 7] {
        let mut parts = Parts::draw(Merge::new(3, [2, 3, 37, dim], DType::F16), 5);
        parts.merge.lse = true;
        let bits = |(out, lse): (Vec<f32>, Vec<f32>)| -> Vec<u32> {
            out.into_iter().chain(lse).map(f32::to_bits).collect()
        };
        let run = |context| bits(parts.run(context).expect("runs"));
        assert!(run(context) == run(&pieces), "rows of {dim}");
    }
}
