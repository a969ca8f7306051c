//! Linear attention on the device, every supported variant forced, against the f64 reference.

mod common;

use common::linear::Case;
use common::{Layout, context, emulating};
use wgpu_attention::linear::reference::Reference;
use wgpu_attention::{
    Alignment, Carry, Context, DType, FeatureMap, LinearAttention, LinearVariant, Rule, Shape,
};

const RULES: [Rule; 6] = [
    Rule::Decay,
    Rule::Gated { per_key_dim: false },
    Rule::Gated { per_key_dim: true },
    Rule::Delta,
    Rule::GatedDelta { per_key_dim: false },
    Rule::GatedDelta { per_key_dim: true },
];

/// A shape for tests that are not about shapes.
fn small() -> Shape {
    Shape::new(2, 4, 70, 16).with_key_value_heads(2).with_value_dim(32)
}

#[test]
fn every_rule() {
    let Some(context) = context() else { return };
    for (seed, rule) in RULES.into_iter().enumerate() {
        for carry in [Carry::InOut, Carry::None, Carry::Out] {
            let linear =
                LinearAttention::new(small(), DType::F32).with_rule(rule).with_carry(carry);
            Case::new(linear, seed as u64).check(context);
        }
    }
}

#[test]
fn every_feature_map_and_normalizer() {
    let Some(context) = context() else { return };
    for (seed, map) in FeatureMap::ALL.into_iter().enumerate() {
        let rules = [Rule::Decay, Rule::Gated { per_key_dim: true }, Rule::Delta];
        for rule in rules {
            let mut linear = LinearAttention::new(small(), DType::F32)
                .with_rule(rule)
                .with_feature_map(map)
                .with_carry(Carry::InOut)
                .with_scale(0.25);
            if linear.validate().is_err() {
                continue;
            }
            if matches!(map, FeatureMap::Elu1 | FeatureMap::Taylor2) && !rule.is_delta() {
                linear = linear.with_normalizer(1e-6);
            }
            Case::new(linear, seed as u64).check(context);
        }
    }
}

/// Whole chunks, one token more and one less; nothing at all.
#[test]
fn lengths() {
    let Some(context) = context() else { return };
    for (seed, len) in [0, 1, 16, 17, 63, 64, 65, 913, 1213].into_iter().enumerate() {
        for rule in [Rule::Decay, Rule::GatedDelta { per_key_dim: false }] {
            let shape = Shape::new(1, 2, len, 16).with_value_dim(32);
            let linear =
                LinearAttention::new(shape, DType::F32).with_rule(rule).with_carry(Carry::InOut);
            Case::new(linear, seed as u64).check(context);
        }
    }
}

#[test]
fn every_dtype_and_layout() {
    let Some(context) = context() else { return };
    for dtype in DType::ALL {
        let vectors = if dtype == DType::F32 { 4 } else { 8 };
        for (dim, apart, access) in [
            (16, vectors, None),
            (16, 4, Some(Alignment::Vec4)),
            (16, 3, Some(Alignment::Any)),
            (7, 3, None),
        ] {
            let shape = Shape::new(2, 2, 70, dim);
            let mut linear = LinearAttention::new(shape, dtype).with_carry(Carry::InOut);
            if let Some(access) = access {
                linear = linear.with_alignment(access);
            }
            let layouts = [Layout::Dense, Layout::Packed, Layout::Apart(apart), Layout::Shared];
            for (seed, layout) in layouts.into_iter().enumerate() {
                Case::new(linear, seed as u64).with_layout(layout).check(context);
            }
        }
        let gated = LinearAttention::new(small(), DType::F32)
            .with_rule(Rule::GatedDelta { per_key_dim: true });
        Case::new(gated, 5).with_side_dtype(dtype).check(context);
    }
}

#[test]
fn head_dims() {
    let Some(context) = context() else { return };
    let dims = [(1, 1), (40, 96), (128, 128), (256, 256), (255, 130)];
    for (seed, (head_dim, value_dim)) in dims.into_iter().enumerate() {
        let shape = Shape::new(1, 2, 70, head_dim).with_value_dim(value_dim);
        let linear = LinearAttention::new(shape, DType::F32).with_carry(Carry::InOut);
        Case::new(linear, seed as u64).check(context);
    }
    let shape = Shape::new(1, 1, 70, 256);
    for rule in [Rule::Gated { per_key_dim: true }, Rule::Delta] {
        Case::new(LinearAttention::new(shape, DType::F32).with_rule(rule), 9).check(context);
    }
}

#[test]
fn grouped_heads() {
    let Some(context) = context() else { return };
    for (query_heads, key_heads) in [(6, 1), (6, 2), (12, 4), (3, 3)] {
        let shape =
            Shape::new(2, query_heads, 70, 16).with_key_value_heads(key_heads).with_value_dim(32);
        Case::new(LinearAttention::new(shape, DType::F32), 7).check(context);
    }
}

/// Documents of all lengths, none among them, each with a state of its own.
#[test]
fn documents() {
    let Some(context) = context() else { return };
    let starts =
        [vec![0, 70], vec![0, 1, 1, 30, 62, 70], vec![0, 0, 0, 64, 65, 70, 70], vec![0, 33, 70]];
    for (seed, starts) in starts.into_iter().enumerate() {
        for rule in [Rule::Decay, Rule::Gated { per_key_dim: false }, Rule::Delta] {
            for carry in [Carry::None, Carry::InOut] {
                let linear = LinearAttention::new(small(), DType::F32)
                    .with_rule(rule)
                    .with_documents()
                    .with_carry(carry);
                Case::with_starts(linear, seed as u64, Some(starts.clone())).check(context);
            }
        }
    }
    let normalized = LinearAttention::new(small(), DType::F32)
        .with_feature_map(FeatureMap::Elu1)
        .with_normalizer(1e-6)
        .with_documents()
        .with_carry(Carry::InOut);
    Case::with_starts(normalized, 3, Some(vec![0, 33, 70])).check(context);
}

/// A NaN spoils what follows it in its document and nothing of any other.
#[test]
fn non_finite_values_stay_in_their_document() {
    let Some(context) = context() else { return };
    for rule in [Rule::Decay, Rule::Gated { per_key_dim: false }, Rule::Delta] {
        let shape = Shape::new(1, 1, 70, 16).with_value_dim(32);
        let linear = LinearAttention::new(shape, DType::F32).with_rule(rule).with_documents();
        let sound = Case::with_starts(linear, 6, Some(vec![0, 20, 45, 70]));
        let mut spoiled = sound.clone();
        spoiled.key[30 * 16 + 5] = f32::NAN;
        for variant in LinearVariant::ALL {
            let matrices = variant == LinearVariant::Coop;
            let context = emulating(context).filter(|_| matrices).unwrap_or(context);
            let [sound, spoiled] = match matrices {
                true => [sound.in_halves(), spoiled.in_halves()],
                false => [sound.clone(), spoiled.clone()],
            };
            if variant.supports(context.caps(), &sound.linear).is_err() {
                continue;
            }
            let want = sound.run(context, Some(variant)).expect("runs").out;
            let got = spoiled.run(context, Some(variant)).expect("runs").out;
            assert_eq!(want[..20 * 32], got[..20 * 32], "{variant}: before the document");
            assert_eq!(want[45 * 32..], got[45 * 32..], "{variant}: after the document");
            assert!(got[30 * 32..45 * 32].iter().all(|x| x.is_nan()), "{variant}: in it");
        }
    }
}

/// No decay at all, and decay that leaves nothing.
#[test]
fn extreme_decays() {
    let Some(context) = context() else { return };
    for slopes in [[0.0, 1e-7], [5.0, 1e4], [1e-3, 90.0]] {
        let linear = LinearAttention::new(small(), DType::F32).with_carry(Carry::InOut);
        let mut case = Case::new(linear, 1);
        case.decay = Some(slopes.to_vec());
        case.check(context);
    }
    for rule in RULES.into_iter().filter(|rule| rule.is_gated()) {
        let linear = LinearAttention::new(small(), DType::F32).with_rule(rule);
        let case = Case::new(linear, 2);
        let gates = [|_| 0.0, |i| if i % 3 == 0 { -1e6 } else { -0.01 }, |_| f32::NEG_INFINITY];
        for gate in gates {
            let mut case = case.clone();
            let values = case.gate.iter_mut().flatten();
            values.enumerate().for_each(|(i, x)| *x = gate(i));
            case.check(context);
        }
    }
}

/// A sequence cut in two at every position, the second part going on with the first one's state.
#[test]
fn state_is_handed_over_at_every_cut() {
    let Some(context) = context() else { return };
    let len = 70;
    let rules = [Rule::Decay, Rule::Gated { per_key_dim: true }, Rule::Delta];
    for (seed, rule) in rules.into_iter().enumerate() {
        let shape = Shape::new(1, 2, len, 16).with_value_dim(32);
        let whole =
            LinearAttention::new(shape, DType::F32).with_rule(rule).with_carry(Carry::InOut);
        let case = Case::new(whole, seed as u64);
        let host = case.host();
        let reference = Reference::new(&case.linear, &host).expect("a valid case");
        for cut in 0..=len {
            let first = case.part(0, cut).run(context, None).expect("runs");
            let mut rest = case.part(cut, len);
            rest.state = first.state;
            let second = rest.run(context, None).expect("runs");
            let rows = |out: &[f32], len: u32, head: u32| {
                let size = (len * 32) as usize;
                out[head as usize * size..][..size].to_vec()
            };
            let joined: Vec<f32> = (0..2)
                .flat_map(|head| {
                    let mut out = rows(&first.out, cut, head);
                    out.extend(rows(&second.out, len - cut, head));
                    out
                })
                .collect();
            let found = reference.check(&joined, second.state.as_deref(), None);
            assert!(found.ok(), "cut at {cut}: {found:?}");
        }
    }
}

/// Errors do not grow with length.
#[test]
fn a_long_sequence() {
    let Some(context) = context() else { return };
    for rule in [Rule::Decay, Rule::Gated { per_key_dim: false }] {
        let shape = Shape::new(1, 1, 65_536, 16).with_value_dim(32);
        let linear = LinearAttention::new(shape, DType::F32).with_rule(rule);
        let mut case = Case::new(linear, 4);
        case.decay = case.decay.map(|_| vec![1e-3]);
        case.gate = case.gate.map(|gate| gate.into_iter().map(|g| 0.01 * g).collect());
        let host = case.host();
        let reference = Reference::new(&case.linear, &host).expect("a valid case");
        let given = case.run(context, Some(LinearVariant::Chunked)).expect("runs");
        let found = reference.check(&given.out, None, None);
        assert!(found.ok(), "{rule:?}: {found:?}");
    }
}

/// What is left of a state after many tokens that leave nearly all of it. Of these slopes the decay is
/// nearly a number of f32, so that only a device's own errors add up.
#[test]
fn long_memories() {
    let Some(context) = context() else { return };
    let rules =
        [Rule::Decay, Rule::Gated { per_key_dim: false }, Rule::Gated { per_key_dim: true }];
    for rule in rules {
        for bits in [12, 16, 20, 23] {
            let shape = Shape::new(1, 1, 2000, 8).with_value_dim(4);
            let linear =
                LinearAttention::new(shape, DType::F32).with_rule(rule).with_carry(Carry::InOut);
            let mut case = Case::new(linear, 6);
            let slope = 0.5f32.powi(bits);
            case.decay = case.decay.map(|_| vec![slope]);
            case.gate = case.gate.map(|gate| vec![-slope; gate.len()]);
            case.key.fill(0.0);
            case.check_variant(context, LinearVariant::Recurrent);
        }
    }
}

/// A workspace that holds few chunks at a time, and a binding limit that holds few heads.
#[test]
fn segments() {
    let Some(context) = context() else { return };
    let mut caps = context.caps().clone();
    // One head of values, or eight states, or two chunks of the delta rule.
    caps.storage_binding = 17_000;
    let small_device = Context::with_caps(caps, context.device(), context.queue());
    for rule in [Rule::Decay, Rule::Gated { per_key_dim: false }, Rule::Delta] {
        let shape = Shape::new(2, 2, 130, 16).with_value_dim(32);
        let linear = LinearAttention::new(shape, DType::F32)
            .with_rule(rule)
            .with_chunk(16)
            .with_carry(Carry::InOut);
        Case::new(linear, 8).check(&small_device);
    }
}

/// More vectors of states than the scan over chunks has invocations.
#[test]
fn many_states() {
    let Some(context) = context() else { return };
    let linear = LinearAttention::new(Shape::new(2, 33, 40, 128), DType::F32)
        .with_chunk(32)
        .with_carry(Carry::InOut);
    Case::new(linear, 10).check_variant(context, LinearVariant::Chunked);
}

/// The same plan gives the same bits.
#[test]
fn deterministic() {
    let Some(context) = context() else { return };
    let case = Case::new(LinearAttention::new(small(), DType::F32), 9);
    let first = case.run(context, None).expect("runs").out;
    for _ in 0..5 {
        assert_eq!(case.run(context, None).expect("runs").out, first);
    }
}

/// States that are read and written in place come out the same when every workgroup is a submission
/// of its own.
#[test]
fn pieces_give_the_same_bits() {
    let Some(context) = context() else { return };
    let context = emulating(context).unwrap_or(context);
    let pieces = context.with_submission_time(std::time::Duration::ZERO);
    for (seed, rule) in (0..).zip(RULES) {
        let mut linear = LinearAttention::new(small(), DType::F16).with_rule(rule);
        (linear.carry, linear.normalize) = (Carry::InOut, (!rule.is_delta()).then_some(1e-6));
        let case = Case::new(linear, seed);
        for variant in LinearVariant::ALL {
            if variant.supports(context.caps(), &linear).is_err() {
                continue;
            }
            let run = |context| {
                let given = case.run(context, Some(variant)).expect("runs");
                let carried = given.state.into_iter().chain(given.normalizer).flatten();
                given.out.into_iter().chain(carried).map(f32::to_bits).collect::<Vec<_>>()
            };
            assert!(run(context) == run(&pieces), "{variant} {linear:?}");
        }
    }
}
