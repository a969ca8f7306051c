//! The LinearAttention cases of the ONNX operator tests, through the public API.

mod common;

use std::collections::HashMap;

use common::{Layout, Placed, context};
use safetensors::{Dtype, SafeTensors};
use wgpu_attention::{
    Carry, Context, DType, LinearAttention, LinearInputs, LinearOutputs, LinearVariant, Rule, Shape,
};

/// A tensor of a case: its shape and numbers.
#[derive(Clone, Debug)]
struct Tensor {
    shape: Vec<u32>,
    dtype: DType,
    values: Vec<f32>,
}

impl Tensor {
    /// `[batch, len, heads · dim]` on the device, as a view of `[batch, heads, len, dim]`.
    fn place(&self, context: &Context, heads: u32) -> Placed {
        let [batch, len, width] = self.shape[..] else { panic!("not of rank 3: {self:?}") };
        let dim = width / heads;
        let mut values = vec![0.0; self.values.len()];
        for (index, &x) in self.values.iter().enumerate() {
            let index = index as u32;
            let (b, t, h, d) =
                (index / width / len, index / width % len, index % width / dim, index % dim);
            values[(((b * heads + h) * len + t) * dim + d) as usize] = x;
        }
        Placed::new(context, self.dtype, [batch, heads, len, dim], Layout::Packed, Some(&values))
    }
}

fn tensors(case: &str, file: &SafeTensors<'_>) -> HashMap<String, Tensor> {
    let prefix = format!("{case}/");
    let names =
        file.names().into_iter().filter_map(|name| Some((name, name.strip_prefix(&prefix)?)));
    let read = |(name, short): (&str, &str)| {
        let view = file.tensor(name).expect("listed");
        let dtype = if view.dtype() == Dtype::F16 { DType::F16 } else { DType::F32 };
        let shape = view.shape().iter().map(|&n| n as u32).collect();
        (short.to_owned(), Tensor { shape, dtype, values: dtype.decode(view.data()) })
    };
    names.map(read).collect()
}

/// The configuration of a case, with ONNX's own defaults.
fn configure(attrs: &serde_json::Value, tensors: &HashMap<String, Tensor>) -> LinearAttention {
    let number = |name: &str| attrs[name].as_u64().expect("required") as u32;
    let (heads, key_heads) = (number("q_num_heads"), number("kv_num_heads"));
    let query = &tensors["in.query"];
    let head_dim = query.shape[2] / heads;
    let shape = Shape::new(query.shape[0], heads, query.shape[1], head_dim)
        .with_key_value_heads(key_heads)
        .with_value_dim(tensors["in.value"].shape[2] / key_heads);
    let per_key_dim = tensors.get("in.decay").is_some_and(|gate| gate.shape[2] != key_heads);
    let rule = match attrs["update_rule"].as_str().unwrap_or("gated_delta") {
        "linear" => Rule::Decay,
        "gated" => Rule::Gated { per_key_dim },
        "delta" => Rule::Delta,
        "gated_delta" => Rule::GatedDelta { per_key_dim },
        other => panic!("no rule {other}"),
    };
    let scale = attrs["scale"].as_f64().filter(|&scale| scale != 0.0);
    LinearAttention::new(shape, query.dtype)
        .with_rule(rule)
        .with_scale(scale.unwrap_or(1.0 / f64::from(head_dim).sqrt()) as f32)
        .with_carry(Carry::InOut)
}

#[test]
fn onnx_cases() {
    let Some(context) = context() else { return };
    let cases: Vec<serde_json::Value> =
        serde_json::from_str(include_str!("onnx/linear_attention.json")).expect("valid JSON");
    let bytes = include_bytes!("onnx/linear_attention.safetensors");
    let file = SafeTensors::deserialize(bytes).expect("valid safetensors");
    assert_eq!(cases.len(), 14);
    for case in &cases {
        let name = case["name"].as_str().expect("named");
        let tensors = tensors(name, &file);
        let linear = configure(&case["attrs"], &tensors);
        for variant in LinearVariant::ALL {
            let context = match variant {
                LinearVariant::Coop => common::emulating(context).unwrap_or(context),
                _ => context,
            };
            // Matrix units take f16 tensors of few configurations, and one kernel is for CPUs alone.
            if variant.supports(context.caps(), &linear).is_err() {
                let of_cpus = variant == LinearVariant::Columns && !context.caps().is_cpu;
                assert!(of_cpus || variant == LinearVariant::Coop, "{variant}");
                continue;
            }
            let (out, state) = run(context, &linear, variant, &tensors);
            let tolerance = |name: &str| case[name].as_f64().expect("given");
            for (got, want) in [(out, "out.output"), (state, "out.present_state")] {
                let want = &tensors[want];
                // The state is f32 here, and in ONNX of the dtype of the rest.
                let got = want.dtype.decode(&want.dtype.encode(&got));
                assert_eq!(got.len(), want.values.len());
                for (&got, &want) in got.iter().zip(&want.values) {
                    let bound = tolerance("atol") + tolerance("rtol") * f64::from(want.abs());
                    let error = f64::from((got - want).abs());
                    assert!(error <= bound, "{name} {variant}: {got} for {want}");
                }
            }
        }
    }
}

/// The output as `[batch, len, heads · dim]`, and the state.
fn run(
    context: &Context,
    linear: &LinearAttention,
    variant: LinearVariant,
    tensors: &HashMap<String, Tensor>,
) -> (Vec<f32>, Vec<f32>) {
    let shape = &linear.shape;
    let place = |name: &str, heads| tensors[name].place(context, heads);
    let query = place("in.query", shape.query_heads);
    let key = place("in.key", shape.key_heads);
    let value = place("in.value", shape.key_heads);
    let gate = linear.rule.is_gated().then(|| place("in.decay", shape.key_heads));
    let beta = tensors.get("in.beta").map(|beta| {
        let heads = beta.shape[2];
        (beta.place(context, heads), heads)
    });
    let mut inputs = LinearInputs::new(query.view(), key.view(), value.view());
    inputs.gate = gate.as_ref().map(Placed::view);
    inputs.beta = beta.as_ref().map(|(beta, heads)| {
        let mut view = beta.view();
        if *heads != shape.key_heads {
            view.shape[1] = shape.key_heads;
            view.strides[1] = 0;
        }
        view
    });
    let zeros = vec![0.0; linear.state(1).iter().map(|&n| n as usize).product()];
    let past = tensors.get("in.past_state").map_or(&zeros, |past| &past.values);
    let state = Placed::new(context, DType::F32, linear.state(1), Layout::Dense, Some(past));
    let out = Placed::new(context, linear.dtype, shape.out(), Layout::Packed, None);
    let outputs = LinearOutputs::new(out.view()).with_state(state.view());
    let plan = pollster::block_on(linear.plan_with(context, variant)).expect("plans");
    let bound = plan.bind(&inputs, &outputs).expect("binds");
    pollster::block_on(context.run(&bound)).expect("runs");
    let out = out.read(context);
    let [batch, heads, len, dim] = shape.out();
    let place = |index: u32| {
        let (b, t, h, d) = (
            index / (len * heads * dim),
            index / (heads * dim) % len,
            index / dim % heads,
            index % dim,
        );
        out[(((b * heads + h) * len + t) * dim + d) as usize]
    };
    ((0..batch * len * heads * dim).map(place).collect(), state.read(context))
}
