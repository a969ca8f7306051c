//! What linear attention refuses, and what it says then.

mod common;

use common::{Layout, Placed, context};
use wgpu_attention::linear::reference::{HostInputs, Reference};
use wgpu_attention::{
    Array, Carry, Context, DType, Error, FeatureMap, LinearAttention, LinearInputs, LinearOutputs,
    LinearVariant, Rule, Shape,
};

fn shape() -> Shape {
    Shape::new(1, 4, 8, 4).with_key_value_heads(2)
}

fn linear() -> LinearAttention {
    LinearAttention::new(shape(), DType::F32)
}

#[track_caller]
fn assert_says(result: Result<impl Sized, Error>, words: &[&str]) {
    let Err(error) = result else { panic!("no error; expected one with {words:?}") };
    let sentence = error.to_string();
    for word in words {
        assert!(sentence.contains(word), "`{word}` is not in `{sentence}`");
    }
}

#[test]
fn configurations_without_meaning() {
    let cases: [(LinearAttention, &[&str]); 10] = [
        (LinearAttention::new(shape().with_value_heads(4), DType::F32), &["value_heads", "2", "4"]),
        (LinearAttention::new(shape().with_key_len(9), DType::F32), &["query_len", "9", "8"]),
        (
            LinearAttention::new(Shape::new(1, 1, 8, 32), DType::F32)
                .with_feature_map(FeatureMap::Taylor2),
            &["feature_map", "256", "561"],
        ),
        (
            linear()
                .with_rule(Rule::Gated { per_key_dim: true })
                .with_feature_map(FeatureMap::Taylor2),
            &["rule", "taylor2"],
        ),
        (linear().with_rule(Rule::Delta).with_normalizer(1e-6), &["normalize", "delta"]),
        (linear().with_normalizer(-1.0), &["normalize", "-1"]),
        (linear().with_scale(f32::NAN), &["scale", "NaN"]),
        (linear().with_chunk(24), &["chunk", "multiple of 16", "24"]),
        (LinearAttention::new(Shape::new(1, 3, 8, 300), DType::F32), &["value_dim", "300"]),
        (
            LinearAttention::new(Shape::new(1, 3, 8, 300).with_value_dim(16), DType::F32),
            &["at most 256 features", "300 features"],
        ),
    ];
    for (linear, words) in cases {
        assert_says(linear.validate(), words);
        for variant in LinearVariant::ALL {
            assert!(variant.supports(&wgpu_attention::Caps::portable(), &linear).is_err());
        }
    }
}

/// Binds with everything as it should be but for what `change` does.
fn bind(
    context: &Context,
    linear: LinearAttention,
    change: impl for<'a> Fn(&mut LinearInputs<'a>, &mut LinearOutputs<'a>),
) -> Result<(), Error> {
    let shape = &linear.shape;
    let place = |shape| Placed::new(context, DType::F32, shape, Layout::Dense, None);
    let (query, key, value) = (place(shape.query()), place(shape.key()), place(shape.value()));
    let (gate, beta) = (place(linear.gate()), place(linear.beta()));
    let (out, state) = (place(shape.out()), place(linear.state(1)));
    let mut inputs = LinearInputs::new(query.view(), key.view(), value.view());
    inputs.gate = linear.rule.is_gated().then(|| gate.view());
    inputs.beta = linear.rule.is_delta().then(|| beta.view());
    let mut outputs = LinearOutputs::new(out.view());
    outputs.state = (linear.carry != Carry::None).then(|| state.view());
    change(&mut inputs, &mut outputs);
    let plan = pollster::block_on(linear.plan_with(context, LinearVariant::Recurrent))?;
    plan.bind(&inputs, &outputs).map(|_| ())
}

#[test]
fn tensors_that_do_not_fit() {
    let Some(context) = context() else { return };
    let carried = linear().with_carry(Carry::InOut);
    let gated = linear().with_rule(Rule::Gated { per_key_dim: false });
    let delta = linear().with_rule(Rule::Delta);
    assert!(bind(context, carried, |_, _| ()).is_ok());
    assert_says(bind(context, carried, |_, o| o.state = None), &["state", "[1, 2, 4, 4]", "none"]);
    let wrong = |_: &mut LinearInputs<'_>, o: &mut LinearOutputs<'_>| {
        if let Some(state) = &mut o.state {
            state.shape[2] = 3;
        }
    };
    assert_says(bind(context, carried, wrong), &["state", "[1, 2, 4, 4]", "[1, 2, 3, 4]"]);
    assert_says(bind(context, gated, |i, _| i.gate = None), &["gate", "[1, 2, 8, 1]", "none"]);
    assert_says(bind(context, delta, |i, _| i.beta = None), &["beta", "[1, 2, 8, 1]", "none"]);
    fn unasked<'a>(inputs: &mut LinearInputs<'a>, _: &mut LinearOutputs<'a>) {
        inputs.gate = Some(inputs.key);
    }
    assert_says(bind(context, linear(), unasked), &["gate", "none"]);
    fn shared<'a>(inputs: &mut LinearInputs<'a>, outputs: &mut LinearOutputs<'a>) {
        outputs.out = inputs.query;
    }
    assert_says(bind(context, linear(), shared), &["out", "query", "buffer"]);
}

#[test]
fn arrays_that_do_not_fit() {
    let Some(context) = context() else { return };
    let documents = linear().with_documents();
    assert_says(bind(context, documents, |_, _| ()), &["starts", "none"]);
    let given = |i: &mut LinearInputs<'_>, _: &mut LinearOutputs<'_>| {
        i.starts = Some(Array::u32(&[0, 5, 3, 8]));
    };
    assert_says(bind(context, documents, given), &["starts", "ascend", "8"]);
    for (starts, got) in [
        (&[0u32, 4][..], "got 4 as the last"),
        (&[1, 8], "got 1 as the first"),
        (&[0, 5, 3, 8], "got 3 after 5 at index 2"),
        (&[0], "got 1 numbers"),
    ] {
        let (query, key) = ([0.0; 128], [0.0; 64]);
        let mut inputs = HostInputs::new(&query, &key, &key);
        inputs.starts = Some(starts);
        assert_says(Reference::new(&documents, &inputs), &["starts", got]);
    }
    let slopes = |i: &mut LinearInputs<'_>, _: &mut LinearOutputs<'_>| {
        i.decay = Some(Array::f32(&[0.5, -0.5]));
    };
    assert_says(bind(context, linear(), slopes), &["decay", "not negative", "-0.5"]);
    let few = |i: &mut LinearInputs<'_>, _: &mut LinearOutputs<'_>| {
        i.decay = Some(Array::f32(&[f32::NAN]));
    };
    assert_says(bind(context, linear(), few), &["decay", "2 slopes", "1"]);
    let delta = linear().with_rule(Rule::Delta);
    assert_says(bind(context, delta, slopes), &["decay", "delta"]);
}

#[test]
fn gates_out_of_range() {
    let gated = linear().with_rule(Rule::Gated { per_key_dim: false });
    let (query, key) = ([0.0; 128], [0.0; 64]);
    for bad in [0.25, f32::NAN] {
        let mut gate = [-1.0; 16];
        gate[5] = bad;
        let mut inputs = HostInputs::new(&query, &key, &key);
        inputs.gate = Some(&gate);
        assert_says(Reference::new(&gated, &inputs), &["gate", "at most 0", "index 5"]);
    }
}

#[test]
fn chunks_that_no_device_of_the_floor_can_hold() {
    let floor = wgpu_attention::Caps::portable();
    let large = linear().with_chunk(128);
    let Err(refusal) = LinearVariant::Chunked.supports(&floor, &large.with_rule(Rule::Delta))
    else {
        panic!("chunks of 128 tokens for a delta rule");
    };
    assert!(refusal.to_string().contains("at most 32"), "{refusal}");
}
