//! The host reference of linear attention against itself, and what linear attention can and cannot
//! remember.

mod common;

use common::Random;
use wgpu_attention::attention::reference as dense;
use wgpu_attention::linear::reference::{HostInputs, Reference};
use wgpu_attention::wgpu::util::DeviceExt as _;
use wgpu_attention::{
    Attention, Bound, Carry, DType, Error, FeatureMap, Inputs, LinearAttention, LinearInputs,
    LinearOutputs, LinearVariant, Mask, Outputs, Rule, Shape, View, wgpu,
};

fn numbers(random: &mut Random, shape: [u32; 4]) -> Vec<f32> {
    random.normal(DType::F32, shape.iter().map(|&n| n as usize).product())
}

/// The quadratic form and the recurrence are the same function.
#[test]
fn both_forms_agree() {
    let shape = Shape::new(2, 4, 40, 6).with_key_value_heads(2).with_value_dim(5);
    let rules =
        [Rule::Decay, Rule::Gated { per_key_dim: false }, Rule::Gated { per_key_dim: true }];
    for (seed, rule) in rules.into_iter().enumerate() {
        for map in FeatureMap::ALL {
            for documents in [false, true] {
                let mut linear = LinearAttention::new(shape, DType::F32)
                    .with_rule(rule)
                    .with_feature_map(map)
                    .with_scale(0.5)
                    .with_carry(Carry::InOut);
                linear.documents = documents;
                if matches!(map, FeatureMap::Elu1 | FeatureMap::Taylor2) {
                    linear = linear.with_normalizer(1e-6);
                }
                if linear.validate().is_err() {
                    continue;
                }
                let mut random = Random::new(seed as u64);
                let starts = [0, 13, 13, 40];
                let count = if documents { 3 } else { 1 };
                let (query, key) =
                    (numbers(&mut random, shape.query()), numbers(&mut random, shape.key()));
                let value = numbers(&mut random, shape.value());
                let state = numbers(&mut random, linear.state(count));
                let gate: Vec<f32> =
                    numbers(&mut random, linear.gate()).iter().map(|g| -g.abs()).collect();
                let normalizer =
                    vec![1.0; linear.normalizer(count).iter().product::<u32>() as usize];
                let mut inputs = HostInputs::new(&query, &key, &value);
                inputs.starts = documents.then_some(&starts);
                inputs.state = Some(&state);
                inputs.normalizer = linear.normalize.map(|_| normalizer.as_slice());
                inputs.gate = rule.is_gated().then_some(&gate);
                inputs.decay = (rule == Rule::Decay).then_some(&[0.1, 0.7]);
                let reference = Reference::new(&linear, &inputs).expect("a valid case");
                let (one, other) = (reference.recurrence().out, reference.quadratic());
                for (a, b) in one.iter().zip(other.expect("the rule has one")) {
                    assert!((a - b).abs() <= 1e-12 * a.abs().max(1.0), "{linear:?}: {a} and {b}");
                }
            }
        }
    }
}

/// φ(q)·φ(k) of the Taylor map is 1 + u + u²/2 with u = q·k/√d, in 153 features for 16 dimensions.
#[test]
fn taylor_features_multiply_to_the_series() {
    assert_eq!(FeatureMap::Taylor2.features(16), 153);
    let shape = Shape::new(1, 1, 1, 16).with_value_dim(1);
    let linear = LinearAttention::new(shape, DType::F32).with_feature_map(FeatureMap::Taylor2);
    let mut random = Random::new(1);
    let (query, key) = (numbers(&mut random, shape.query()), numbers(&mut random, shape.key()));
    let inputs = HostInputs::new(&query, &key, &[1.0]);
    let out = Reference::new(&linear, &inputs).expect("valid").recurrence().out;
    let dot: f64 = query.iter().zip(&key).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
    let u = dot / 4.0;
    assert!((out[0] - (1.0 + u + u * u / 2.0)).abs() < 1e-12);
}

/// A delta rule whose β is 1 and whose keys are orthonormal overwrites: the state answers with the
/// last value written.
#[test]
fn the_delta_rule_overwrites() {
    let shape = Shape::new(1, 1, 3, 2).with_value_dim(1);
    let linear = LinearAttention::new(shape, DType::F32).with_rule(Rule::Delta);
    let key = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0];
    let mut inputs = HostInputs::new(&key, &key, &[5.0, 6.0, 7.0]);
    inputs.beta = Some(&[1.0, 1.0, 1.0]);
    let results = Reference::new(&linear, &inputs).expect("valid").recurrence();
    assert_eq!(results.out, [5.0, 6.0, 7.0]);
    assert_eq!(results.state, [7.0, 6.0]);
}

/// Multi-query associative recall: `pairs` keys with a value each, then every key is asked for. As
/// keys, random signs; the share of questions whose largest output names the right value.
fn recalled(
    pairs: u32,
    dim: u32,
    attend: impl Fn(&[f32], &[f32], &[f32], Shape) -> Vec<f64>,
) -> f64 {
    let mut random = Random::new(7);
    let mut draw = |n: u32| -> Vec<f32> {
        (0..n).map(|_| if random.below(2) == 0 { -1.0 } else { 1.0 }).collect()
    };
    let len = 2 * pairs;
    let keys = draw(pairs * dim);
    let nothing = vec![0.0; (pairs * dim) as usize];
    // The values are written with the keys; the questions write nothing and have queries only.
    let query = [nothing.clone(), keys.clone()].concat();
    let key = [keys, nothing].concat();
    let mut value = vec![0.0; (len * pairs) as usize];
    (0..pairs).for_each(|pair| value[(pair * pairs + pair) as usize] = 1.0);
    let shape = Shape::new(1, 1, len, dim).with_value_dim(pairs);
    let out = attend(&query, &key, &value, shape);
    let right = (0..pairs).filter(|&pair| {
        let row = &out[((pairs + pair) * pairs) as usize..][..pairs as usize];
        let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        best.is_some_and(|(index, _)| index == pair as usize)
    });
    right.count() as f64 / f64::from(pairs)
}

/// Softmax recalls more pairs than keys have dimensions; linear attention with so few features
/// does not, and does with enough of them.
#[test]
fn associative_recall() {
    let softmax = |query: &[f32], key: &[f32], value: &[f32], shape: Shape| {
        let attention = Attention::new(shape, DType::F32).with_mask(Mask::causal()).with_scale(1.0);
        let inputs = dense::HostInputs::new(query, key, value);
        dense::Reference::new(&attention, &inputs).expect("valid").out()
    };
    let linear = |query: &[f32], key: &[f32], value: &[f32], shape: Shape| {
        let linear = LinearAttention::new(shape, DType::F32);
        let inputs = HostInputs::new(query, key, value);
        Reference::new(&linear, &inputs).expect("valid").recurrence().out
    };
    recalls(softmax, linear);
}

fn recalls(
    softmax: impl Fn(&[f32], &[f32], &[f32], Shape) -> Vec<f64>,
    linear: impl Fn(&[f32], &[f32], &[f32], Shape) -> Vec<f64>,
) {
    assert_eq!(recalled(64, 16, &softmax), 1.0);
    let few = recalled(64, 4, &linear);
    assert!(few < 0.5, "recalled {few} of 64 pairs with 4 features");
    assert_eq!(recalled(16, 256, &linear), 1.0);
}

/// The same from the kernels, by every variant.
#[test]
fn associative_recall_on_the_device() {
    let Some(context) = common::context() else { return };
    let upload = |numbers: &[f32]| {
        context.device().create_buffer_init(&wgpu::util::BufferInitDescriptor {
            label: None,
            contents: &DType::F32.encode(numbers),
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
        })
    };
    fn view(buffer: &wgpu::Buffer, shape: [u32; 4]) -> View<'_> {
        View::new(buffer, DType::F32, shape)
    }
    let finish = |bound: Result<Bound, Error>, out: View<'_>| -> Vec<f64> {
        pollster::block_on(context.run(&bound.expect("bound"))).expect("runs");
        let numbers = pollster::block_on(context.read(out)).expect("read");
        numbers.into_iter().map(f64::from).collect()
    };
    let unset = |shape: [u32; 4]| upload(&vec![f32::NAN; shape.iter().product::<u32>() as usize]);
    let softmax = |query: &[f32], key: &[f32], value: &[f32], shape: Shape| {
        let attention = Attention::new(shape, DType::F32).with_mask(Mask::causal()).with_scale(1.0);
        let plan = pollster::block_on(attention.plan(context)).expect("planned");
        let [q, k, v, out] = [upload(query), upload(key), upload(value), unset(shape.out())];
        let inputs =
            Inputs::new(view(&q, shape.query()), view(&k, shape.key()), view(&v, shape.value()));
        let out = view(&out, shape.out());
        finish(plan.bind(&inputs, &Outputs::new(out)), out)
    };
    // Matrix units take f16 tensors only.
    for variant in [LinearVariant::Chunked, LinearVariant::Recurrent] {
        let linear = |query: &[f32], key: &[f32], value: &[f32], shape: Shape| {
            let linear = LinearAttention::new(shape, DType::F32);
            let plan = pollster::block_on(linear.plan_with(context, variant)).expect("planned");
            let [q, k, v, out] = [upload(query), upload(key), upload(value), unset(shape.out())];
            let inputs = LinearInputs::new(
                view(&q, shape.query()),
                view(&k, shape.key()),
                view(&v, shape.value()),
            );
            let out = view(&out, shape.out());
            finish(plan.bind(&inputs, &LinearOutputs::new(out)), out)
        };
        recalls(softmax, linear);
    }
}
