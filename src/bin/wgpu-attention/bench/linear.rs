//! Linear attention's part of the benchmark.

use anyhow::Result;
use pollster::block_on;
use wgpu_attention::linear::reference::{HostInputs, Reference};
use wgpu_attention::linear::slopes;
use wgpu_attention::{
    Array, Caps, Carry, Context, DType, FeatureMap, LinearAttention, LinearInputs, LinearOutputs,
    LinearVariant, Rule, Shape,
};

use super::attention::{elements, random_tensor};
use super::record::Row;
use super::sweep::{self, Family, Point};
use super::{Case, Entry};
use crate::device::DeviceTensor;
use crate::linear::{FeatureMapName, RuleName};
use crate::problem;

/// The options of linear attention.
#[derive(clap::Args)]
#[group(id = "linear")]
#[command(next_help_heading = "Options of linear attention")]
pub struct Options {
    /// How a token changes the state
    #[arg(long, value_enum, default_value_t = RuleName::Decay)]
    rule: RuleName,
    /// What is made of queries and keys
    #[arg(long, value_enum, default_value_t = FeatureMapName::Identity)]
    feature_map: FeatureMapName,
    /// Tokens of a chunk
    #[arg(long, value_name = "N")]
    chunk: Option<u32>,
}

/// Tokens whose results are checked: the reference walks them one by one.
const CHECKED_TOKENS: u32 = 4096;

/// Every case at one point of the sweep.
pub fn entries(options: &sweep::Options, caps: &Caps, point: &Point) -> Result<Vec<Entry>> {
    let mut linear = LinearAttention::new(point.shape, point.dtype)
        .with_rule(options.linear.rule.rule(false))
        .with_feature_map(options.linear.feature_map.into())
        .with_carry(Carry::InOut);
    linear.chunk = options.linear.chunk;
    linear.validate()?;
    let variants = variants(&options.variant, caps, &linear)?;
    Ok(variants.into_iter().map(|variant| entry(linear, variant)).collect())
}

fn variants(asked: &[String], caps: &Caps, linear: &LinearAttention) -> Result<Vec<LinearVariant>> {
    let able = |v: &LinearVariant| v.supports(caps, linear).is_ok();
    let able: Vec<_> = LinearVariant::ALL.into_iter().filter(able).collect();
    let usual = || Ok(LinearVariant::choose(caps, linear)?);
    sweep::variants(asked, usual, &able, |name| {
        let variant: LinearVariant = problem::variant(name)?;
        variant.supports(caps, linear).map_err(wgpu_attention::Error::from)?;
        Ok(variant)
    })
}

fn entry(linear: LinearAttention, variant: LinearVariant) -> Entry {
    let Shape { batch, query_heads, key_heads, query_len, head_dim, .. } = linear.shape;
    let map = match linear.feature_map {
        FeatureMap::Identity => String::new(),
        map => format!("/{}", map.name()),
    };
    let label = format!(
        "linear/{variant}/{}/{}{map}/b{batch}h{query_heads}{}n{query_len}d{head_dim}",
        linear.dtype,
        linear.rule.name(),
        if key_heads == query_heads { String::new() } else { format!("kv{key_heads}") },
    );
    let row = Row {
        label,
        family: Family::Linear.name().into(),
        variant: variant.name().into(),
        detail: format!("{}{map}", linear.rule.name()),
        causal: true,
        ..Row::at(&linear.shape, linear.dtype)
    };
    let prepare = Box::new(move |context: &Context| prepare(context, linear, variant));
    Entry { row, prepare }
}

/// Makes the tensors on host and device, and the plan.
fn prepare(context: &Context, linear: LinearAttention, variant: LinearVariant) -> Result<Case> {
    let (shape, dtype) = (&linear.shape, linear.dtype);
    let plan = block_on(linear.plan_with(context, variant))?;
    let [(query, host_query), (key, host_key), (value, host_value)] = [
        random_tensor(context, "q", dtype, shape.query())?,
        random_tensor(context, "k", dtype, shape.key())?,
        random_tensor(context, "v", dtype, shape.value())?,
    ];
    // Gates and corrections that keep the state bounded, whatever the keys.
    let gates = vec![-0.1; elements(linear.gate()) as usize];
    let betas = vec![0.1 / linear.features() as f32; elements(linear.beta()) as usize];
    let (gate, beta) = (
        constant(context, "gate", linear.gate(), &gates)?,
        constant(context, "beta", linear.beta(), &betas)?,
    );
    let decay = slopes::released(shape.key_heads, 0, 24)?;
    let out = DeviceTensor::new(context, "out", dtype, shape.out())?;
    let state = DeviceTensor::new(context, "state", DType::F32, linear.state(1))?;
    let mut inputs = LinearInputs::new(query.view(), key.view(), value.view());
    inputs.decay = (linear.rule == Rule::Decay).then(|| Array::f32(&decay));
    inputs.gate = linear.rule.is_gated().then(|| gate.view());
    inputs.beta = linear.rule.is_delta().then(|| beta.view());
    let outputs = LinearOutputs::new(out.view()).with_state(state.view());
    let bound = plan.bind(&inputs, &outputs)?;

    let tensors = [shape.query(), shape.key(), shape.value(), shape.out()];
    let states = 2.0 * 4.0 * elements(linear.state(1));
    let bytes =
        states + tensors.map(|shape| elements(shape) * dtype.size() as f64).iter().sum::<f64>();
    let check = Box::new(move |context: &Context| {
        // The first tokens of the first head: no later one and no other touches them.
        let tokens = shape_of_check(&linear);
        let mut checked = linear.with_carry(Carry::None);
        checked.shape = tokens;
        let rows = |tensor: &[f32], dim: u32| tensor[..(tokens.key_len * dim) as usize].to_vec();
        let (query, key) = (rows(&host_query, tokens.head_dim), rows(&host_key, tokens.head_dim));
        let value = rows(&host_value, tokens.value_dim);
        let (gate, beta) = (rows(&gates, 1), rows(&betas, 1));
        let mut inputs = HostInputs::new(&query, &key, &value);
        inputs.decay = (linear.rule == Rule::Decay).then(|| &decay[..1]);
        inputs.gate = linear.rule.is_gated().then_some(&gate);
        inputs.beta = linear.rule.is_delta().then_some(&beta);
        let given = rows(&out.read(context)?, tokens.value_dim);
        Ok(Reference::new(&checked, &inputs)?.check(&given, None, None).out)
    });
    Ok(Case { flops: flops(&linear), bytes, density: None, bound, check })
}

/// The part of a shape that is checked.
fn shape_of_check(linear: &LinearAttention) -> Shape {
    let shape = &linear.shape;
    Shape::new(1, 1, shape.key_len.min(CHECKED_TOKENS), shape.head_dim)
}

fn constant(
    context: &Context,
    name: &str,
    shape: [u32; 4],
    values: &[f32],
) -> Result<DeviceTensor> {
    let tensor = DeviceTensor::new(context, name, DType::F32, shape)?;
    Ok(tensor.write(context, &DType::F32.encode(values)))
}

/// Of the recurrence: one outer product a key head and token, one product with the state a query
/// head and token, a multiply and an add each; the delta rules ask the state once more.
fn flops(linear: &LinearAttention) -> f64 {
    let shape = &linear.shape;
    let state = 2.0 * f64::from(linear.features()) * f64::from(shape.value_dim);
    let per_key_head = if linear.rule.is_delta() { 2.0 } else { 1.0 };
    let products = f64::from(shape.query_heads) + per_key_head * f64::from(shape.key_heads);
    f64::from(shape.batch) * f64::from(shape.key_len) * products * state
}
