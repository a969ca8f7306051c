//! Dense attention on the device, every supported variant forced, against the f64 reference.

mod common;

use common::{Case, Layout, context, emulating, layouts, small};
use wgpu_attention::{
    Activation, Attention, Broadcast, DType, Mask, Positions, Shape, Stage, Variant,
};

fn sigmoid() -> Activation {
    Activation::Sigmoid { bias: None }
}

/// The smallest case of all, for a first look: one tile, nothing special.
#[test]
fn one_tile() {
    let Some(context) = context() else { return };
    for dtype in DType::ALL {
        Case::new(Attention::new(Shape::new(1, 1, 32, 32), dtype).with_lse(), 1).check(context);
    }
}

#[test]
fn lengths_odd_and_unequal() {
    let Some(context) = context() else { return };
    let mut seed = 0;
    for (query_len, key_len) in
        [(1, 1), (1, 1000), (63, 65), (65, 63), (200, 1), (0, 5), (5, 0), (129, 257)]
    {
        for activation in [Activation::Softmax, sigmoid()] {
            for mask in [Mask::full(), Mask::causal()] {
                seed += 1;
                let shape = Shape::new(1, 2, query_len, 32).with_key_len(key_len);
                let mut attention =
                    Attention::new(shape, DType::F32).with_activation(activation).with_mask(mask);
                if activation == Activation::Softmax {
                    attention = attention.with_lse();
                }
                Case::new(attention, seed).check(context);
            }
        }
    }
}

/// f16, which the kernel on matrix units takes, through masks, activations and lengths around tiles.
#[test]
fn halves() {
    let Some(context) = context() else { return };
    let masks = ["causal", "documents & causal | sink(2)"];
    for (seed, mask) in masks.into_iter().enumerate() {
        let mask: Mask = mask.parse().expect("a valid expression");
        for (query_len, key_len) in [(1, 33), (129, 65), (5, 0)] {
            for activation in [Activation::Softmax, sigmoid()] {
                let shape = Shape::new(1, 2, query_len, 32).with_key_len(key_len);
                let attention = Attention::new(shape, DType::F16)
                    .with_activation(activation)
                    .with_mask(mask.clone());
                Case::new(attention, seed as u64).check(context);
            }
        }
    }
}

/// Other tensors in f16 products, for which their numbers are chosen: multiples of 1/64. Beyond f16's
/// range an element spoils the rows that keep it, and no others.
#[test]
fn f16_products() {
    let Some(context) = context() else { return };
    for dtype in [DType::F32, DType::BF16] {
        let attention =
            Attention::new(small(), dtype).with_mask(Mask::causal()).with_lse().with_f16_products();
        let mut case = Case::new(attention, 7);
        for numbers in [&mut case.query, &mut case.key, &mut case.value] {
            for x in numbers {
                *x = dtype.decode(&dtype.encode(&[(*x * 64.0).round() / 64.0]))[0];
            }
        }
        case.check(context);

        // The last key, which the last query alone keeps.
        let Some(context) = emulating(context).or(Some(context)) else { continue };
        if Variant::Coop.supports(context.caps(), &case.attention).is_err() {
            continue;
        }
        let sound = case.run(context, Variant::Coop).expect("a supported variant runs").out;
        let (last, width) = (case.key.len() - 1, small().value_dim as usize);
        case.key[last] = 70_000.0;
        let spoilt = case.run(context, Variant::Coop).expect("a supported variant runs").out;
        let last_row = sound.len() - width;
        assert!(spoilt[last_row..].iter().all(|x| x.is_nan()), "{:?}", &spoilt[last_row..]);
        let heads = small().query_heads as usize;
        let others = (small().batch as usize - 1) * heads * small().query_len as usize * width;
        assert_eq!(spoilt[..others], sound[..others]);
    }
}

#[test]
fn every_layout_and_dtype() {
    let Some(context) = context() else { return };
    for dtype in DType::ALL {
        for dim in [32, 7] {
            let shape = Shape::new(2, 4, 33, dim).with_key_value_heads(2).with_key_len(65);
            let attention = Attention::new(shape, dtype).with_lse();
            for (seed, layout) in layouts(&attention).into_iter().enumerate() {
                Case::new(attention.clone(), seed as u64).with_layout(layout).check(context);
            }
        }
    }
}

#[test]
fn head_dims() {
    let Some(context) = context() else { return };
    let dims = [
        (1, 1),
        (2, 3),
        (40, 96),
        (128, 128),
        (80, 192),
        (256, 256),
        (255, 256),
        (576, 512),
        (318, 576),
    ];
    for (seed, (head_dim, value_dim)) in dims.into_iter().enumerate() {
        let shape = Shape::new(1, 2, 37, head_dim).with_value_dim(value_dim).with_key_len(70);
        let dtype = DType::ALL[seed % 3];
        Case::new(Attention::new(shape, dtype).with_lse(), seed as u64).check(context);
    }
}

#[test]
fn grouped_heads_of_keys_and_of_values() {
    let Some(context) = context() else { return };
    for (query_heads, key_heads, value_heads) in [(6, 1, 6), (6, 2, 3), (12, 4, 1), (3, 3, 1)] {
        let shape = Shape::new(2, query_heads, 20, 32)
            .with_key_heads(key_heads)
            .with_value_heads(value_heads)
            .with_key_len(33);
        Case::new(Attention::new(shape, DType::F32), 7).check(context);
    }
}

/// Masks of every word, alone and joined, under every rule for positions.
#[test]
fn masks() {
    let Some(context) = context() else { return };
    let expressions = [
        "causal",
        "causal_top_left",
        "window(7,3)",
        "window(0,inf)",
        "causal & (window(15,0) | sink(4))",
        "causal | prefix(20)",
        "documents",
        "documents & causal",
        "documents & (causal & window(5) | sink(2))",
        "lengths",
        "lengths & causal | sink(1)",
        "roles & causal",
        "tree",
        "documents & tree",
        "dense",
        "dense & window(9,9) | sink(2) & causal | roles & dense | tree & lengths",
        "sink(0)",
    ];
    for (seed, expression) in expressions.into_iter().enumerate() {
        let mask: Mask = expression.parse().expect("a valid expression");
        for positions in [Positions::BottomRight, Positions::TopLeft, Positions::PerBatch] {
            let attention = Attention::new(small(), DType::F32)
                .with_mask(mask.clone())
                .with_positions(positions)
                .with_lse();
            Case::new(attention, seed as u64).check(context);
        }
    }
}

#[test]
fn score_modifiers() {
    let Some(context) = context() else { return };
    let plain = |dtype| Attention::new(small(), dtype).with_lse();
    let shared = Broadcast::SHARED;
    let own = Broadcast { per_batch: true, per_head: true };
    let heads = Broadcast { per_batch: false, per_head: true };
    let cases = [
        plain(DType::F32).with_scale(0.5),
        plain(DType::F32).with_softcap(3.0),
        plain(DType::F32).with_alibi().with_mask(Mask::causal()),
        plain(DType::F32).with_alibi().with_mask(Mask::documents()),
        plain(DType::F32).with_key_bias(shared),
        plain(DType::F32).with_key_bias(own),
        plain(DType::F32).with_bias(DType::F32, heads),
        plain(DType::F16).with_bias(DType::F16, own),
        plain(DType::BF16).with_bias(DType::BF16, shared).with_mask(Mask::causal()),
        plain(DType::F16)
            .with_softcap(2.0)
            .with_alibi()
            .with_key_bias(heads)
            .with_bias(DType::F32, own)
            .with_mask(Mask::causal() & Mask::dense()),
    ];
    for (seed, attention) in cases.into_iter().enumerate() {
        Case::new(attention.clone(), seed as u64).check(context);
        // One dtype is enough: tests/property.rs draws the others.
        if attention.dtype == DType::F32 {
            let mut attention = attention.with_activation(sigmoid());
            attention.output = wgpu_attention::Output::Attention { lse: false };
            Case::new(attention, seed as u64).check(context);
        }
    }
}

/// The least number of a dtype stands for −∞ in many a mask: it overflows nothing, and in f32 and bf16
/// it masks.
#[test]
fn the_least_numbers_as_biases() {
    let Some(context) = context() else { return };
    for (dtype, least) in
        [(DType::F32, f32::MIN), (DType::BF16, -3.3895314e38), (DType::F16, -65504.0)]
    {
        let shared = Broadcast::SHARED;
        let attention =
            Attention::new(small(), dtype).with_bias(dtype, shared).with_key_bias(shared);
        let mut case = Case::new(attention.with_lse(), 21);
        let key_len = case.attention.shape.key_len as usize;
        let bias = case.bias.as_mut().expect("asked for");
        bias.iter_mut().step_by(3).for_each(|x| *x = least);
        bias[key_len..2 * key_len].fill(least);
        let keys = case.sides.key_bias.as_mut().expect("asked for");
        keys.iter_mut().step_by(7).for_each(|x| *x = f32::MIN);
        case.check(context);
        let results = case.run(context, Variant::Tiled).expect("it runs");
        assert!(results.out.iter().all(|x| x.is_finite()), "{dtype}");
    }
}

#[test]
fn scores_at_every_stage() {
    let Some(context) = context() else { return };
    for stage in Stage::ALL {
        for activation in [Activation::Softmax, sigmoid()] {
            for dtype in [DType::F32, DType::F16] {
                let attention = Attention::new(small(), dtype)
                    .with_activation(activation)
                    .with_softcap(4.0)
                    .with_bias(DType::F16, Broadcast { per_batch: true, per_head: false })
                    .with_mask(Mask::causal() & Mask::lengths())
                    .with_scores(stage);
                Case::new(attention, 5).check(context);
            }
        }
    }
}

/// A query of a document without keys still counts its distances from there; one outside of all documents
/// from the whole sequence.
#[test]
fn positions_in_documents_without_keys() {
    let Some(context) = context() else { return };
    let attention = Attention::new(small(), DType::F32)
        .with_mask(Mask::documents() & Mask::causal())
        .with_positions(Positions::PerBatch)
        .with_alibi()
        .with_scores(Stage::Modified);
    let mut case = Case::new(attention, 8);
    case.sides.query_starts = Some(vec![1, 5, 12, 20, 30]);
    case.sides.key_starts = Some(vec![0, 0, 33, 33, 60]);
    case.check(context);
}

/// Sinks far below, among and far above the scores, with and without modified scores, and rows
/// without keys, whose LSE is that of their sink.
#[test]
fn sinks() {
    let Some(context) = context() else { return };
    let mask: Mask = "causal & lengths".parse().expect("a valid expression");
    for (seed, dtype) in (0..).zip(DType::ALL) {
        let plain = Attention::new(small(), dtype).with_sinks().with_mask(mask.clone());
        for attention in [plain.clone(), plain.clone().with_softcap(3.0).with_alibi()] {
            let mut case = Case::new(attention.clone().with_lse(), seed);
            case.sides.sinks = Some(vec![-50.0, 1.5, 30.0, 0.0]);
            case.sides.key_lengths = Some(vec![0, 40]);
            case.check(context);
            let results = case.run(context, Variant::Tiled).expect("it runs");
            let lse = results.lse.expect("asked for");
            assert!((lse[0] + 50.0).abs() < 1e-5 && (lse[33] - 1.5).abs() < 1e-6, "{lse:?}");
            case.attention = attention.with_scores(Stage::Probabilities);
            case.check(context);
        }
    }
}

/// A row without keys has output 0 and LSE −∞, inside a live tile too.
#[test]
fn rows_without_keys() {
    let Some(context) = context() else { return };
    let attention = Attention::new(small(), DType::F32).with_mask(Mask::dense()).with_lse();
    let mut case = Case::new(attention.clone(), 3);
    let shape = attention.shape;
    let keep: Vec<bool> =
        (0..shape.query_len * shape.key_len).map(|pair| pair / shape.key_len % 5 != 2).collect();
    case.sides.dense_mask =
        Some((wgpu_attention::pack_mask(&keep, shape.key_len), Broadcast::SHARED));
    case.check(context);
    let results = case.run(context, Variant::Tiled).expect("it runs");
    let row = 2 * shape.value_dim as usize;
    assert!(results.out[row..row + shape.value_dim as usize].iter().all(|&x| x == 0.0));
    assert_eq!(results.lse.expect("asked for")[2], f32::NEG_INFINITY);
}

/// A score that is no number spoils the weights of its row's kept keys under softmax, its own alone
/// under sigmoid, and never that of a masked key.
#[test]
fn non_finite_scores() {
    let Some(context) = context() else { return };
    for activation in [Activation::Softmax, sigmoid()] {
        let plain = Attention::new(small(), DType::F32)
            .with_activation(activation)
            .with_mask(Mask::causal());
        for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut case = Case::new(plain.clone(), 4);
            let dim = plain.shape.head_dim as usize;
            case.key[40 * dim + 3] = poison;
            for stage in Stage::ALL {
                case.attention = plain.clone().with_scores(stage);
                case.check(context);
            }
            case.attention = plain.clone().with_block_sums(16, 16);
            case.check(context);
        }
    }
}

/// Non-finite keys and values reach exactly the rows that keep them.
#[test]
fn non_finite_keys_and_values() {
    let Some(context) = context() else { return };
    let softmax = DType::ALL.map(|dtype| (dtype, Activation::Softmax));
    for (dtype, activation) in softmax.into_iter().chain([(DType::F32, sigmoid())]) {
        for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let attention = Attention::new(small(), dtype)
                .with_activation(activation)
                .with_mask(Mask::causal() & Mask::window(Some(20), None));
            let dim = attention.shape.head_dim as usize;
            let mut case = Case::new(attention.clone(), 11);
            case.value[40 * dim + 3] = poison;
            case.check(context);
            let mut case = Case::new(attention, 12);
            case.key[40 * dim + 3] = poison;
            case.check(context);
        }
    }
}

/// A value that is no finite number stays out of the rows whose bias masks its key.
#[test]
fn non_finite_values_under_a_bias() {
    let Some(context) = context() else { return };
    let plain = Attention::new(small(), DType::F16).with_mask(Mask::causal());
    let own = Broadcast { per_batch: true, per_head: true };
    let biased = [
        plain.clone().with_bias(DType::F16, own),
        plain.clone().with_key_bias(own).with_softcap(5.0),
        plain.with_activation(sigmoid()).with_bias(DType::F32, Broadcast::SHARED),
    ];
    for (seed, attention) in biased.into_iter().enumerate() {
        let dim = attention.shape.value_dim as usize;
        let mut case = Case::new(attention, seed as u64);
        for (key, poison) in (3..).step_by(11).zip([f32::NAN, f32::INFINITY, f32::NEG_INFINITY]) {
            case.value[key * dim + key] = poison;
        }
        case.check(context);
    }
}

/// Weights of a sigmoid that f16 could not hold by themselves.
#[test]
fn small_sigmoid_weights() {
    let Some(context) = context() else { return };
    for bias in [-9.0, -12.0, -15.0] {
        let shape = Shape::new(1, 2, 33, 32).with_key_len(513);
        let activation = Activation::Sigmoid { bias: Some(bias) };
        Case::new(Attention::new(shape, DType::F16).with_activation(activation), 3).check(context);
    }
}

/// Scores of ±1e4 overflow nothing.
#[test]
fn large_scores() {
    let Some(context) = context() else { return };
    for activation in [Activation::Softmax, sigmoid()] {
        for scale in [1e4f32, -1e4] {
            let attention = Attention::new(small(), DType::F32)
                .with_activation(activation)
                .with_mask(Mask::causal())
                .with_scale(scale);
            let case = Case::new(attention, 2);
            for variant in Variant::ALL {
                if variant.supports(context.caps(), &case.attention).is_ok() {
                    let results = case.run(context, variant).expect("it runs");
                    assert!(results.out.iter().all(|x| x.is_finite()), "{variant}");
                }
            }
            case.check(context);
        }
    }
}

/// The same plan gives the same bits.
#[test]
fn deterministic() {
    let Some(context) = context() else { return };
    let attention = Attention::new(small(), DType::F32).with_mask(Mask::causal());
    let case = Case::new(attention.clone(), 9).with_layout(Layout::Packed);
    let plan = pollster::block_on(attention.plan(context)).expect("plans");
    let first = case.run_plan(context, &plan).expect("runs").out;
    for _ in 0..10 {
        assert_eq!(case.run_plan(context, &plan).expect("runs").out, first);
    }
}
