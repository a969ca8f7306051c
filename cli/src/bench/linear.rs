//! Linear attention's part of the benchmark.

use std::ops::Range;

use anyhow::{Context as _, Result};
use pollster::block_on;
use wgpu_attention::attention::tolerance::{Comparison, compare};
use wgpu_attention::linear::reference::{HostInputs, Reference};
use wgpu_attention::linear::slopes;
use wgpu_attention::{
    Array, Caps, Carry, Context, DType, FeatureMap, LinearAttention, LinearInputs, LinearOutputs,
    LinearVariant, Rule, Shape,
};

use super::attention::{elements, random_numbers};
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
    /// Tokens of a chunk, several to compare them
    #[arg(long, value_name = "N", value_delimiter = ',')]
    chunk: Vec<u32>,
    /// Tokens of a chunk that matrix units take at a time, several to compare them
    #[arg(long, value_name = "N", value_delimiter = ',')]
    chunk_block: Vec<u32>,
    /// Take the state over and hand it on, in f32, as calls do that continue each other
    #[arg(long)]
    carry: bool,
}

/// Tokens of a head whose results are checked: the reference walks them one by one.
const CHECKED_TOKENS: u32 = 2048;

/// What is left of a state once this much has been lost, in units of its logarithm, is nothing.
const FORGOTTEN: f32 = 30.0;

/// Every case at one point of the sweep.
pub fn entries(options: &sweep::Options, caps: &Caps, point: &Point) -> Result<Vec<Entry>> {
    let linear = LinearAttention::new(point.shape, point.dtype)
        .with_rule(options.linear.rule.rule(false))
        .with_feature_map(options.linear.feature_map.into())
        .with_carry(if options.linear.carry { Carry::InOut } else { Carry::None });
    let mut entries = Vec::new();
    for chunk in each(&options.linear.chunk) {
        for block in each(&options.linear.chunk_block) {
            let mut linear = linear;
            (linear.chunk, linear.block) = (chunk, block);
            linear.validate()?;
            let variants = variants(&options.variant, caps, &linear)?;
            entries.extend(variants.into_iter().map(|variant| entry(linear, variant)));
        }
    }
    Ok(entries)
}

/// What was asked for, one after the other, or what the library chooses.
fn each(asked: &[u32]) -> Vec<Option<u32>> {
    if asked.is_empty() { vec![None] } else { asked.iter().copied().map(Some).collect() }
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
    let asked = |name: &str, tokens: Option<u32>| {
        tokens.map_or_else(String::new, |tokens| format!("{name}{tokens}"))
    };
    let label = format!(
        "linear/{variant}/{}/{}{map}/b{batch}h{query_heads}{}n{query_len}d{head_dim}{}{}{}",
        linear.dtype,
        linear.rule.name(),
        if key_heads == query_heads { String::new() } else { format!("kv{key_heads}") },
        if linear.carry == Carry::None { "" } else { "/carry" },
        asked("/chunk", linear.chunk),
        asked("/block", linear.block),
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

/// Makes the tensors and the plan.
fn prepare(context: &Context, linear: LinearAttention, variant: LinearVariant) -> Result<Case> {
    let (shape, dtype) = (&linear.shape, linear.dtype);
    let plan = block_on(linear.plan_with(context, variant))?;
    let query = Drawn::new(context, "q", dtype, shape.query())?;
    let key = Drawn::new(context, "k", dtype, shape.key())?;
    let value = Drawn::new(context, "v", dtype, shape.value())?;
    // Gates and corrections that keep the state bounded, whatever the keys.
    let beta = 0.1 / linear.features() as f32;
    let gates = constant(context, "gate", linear.gate(), GATE)?;
    let betas = constant(context, "beta", linear.beta(), beta)?;
    let decay = slopes::released(shape.key_heads, 0, 24)?;
    let out = DeviceTensor::new(context, "out", dtype, shape.out())?;
    let carries = linear.carry != Carry::None;
    let state = carries
        .then(|| DeviceTensor::new(context, "state", DType::F32, linear.state(1)))
        .transpose()?;
    let mut inputs = LinearInputs::new(query.tensor.view(), key.tensor.view(), value.tensor.view());
    inputs.decay = (linear.rule == Rule::Decay).then(|| Array::f32(&decay));
    inputs.gate = linear.rule.is_gated().then(|| gates.view());
    inputs.beta = linear.rule.is_delta().then(|| betas.view());
    let mut outputs = LinearOutputs::new(out.view());
    outputs.state = state.as_ref().map(DeviceTensor::view);
    let bound = plan.bind(&inputs, &outputs)?;

    let tensors = [shape.query(), shape.key(), shape.value(), shape.out()];
    let states = if carries { 2.0 * 4.0 * elements(linear.state(1)) } else { 0.0 };
    let bytes =
        states + tensors.map(|shape| elements(shape) * dtype.size() as f64).iter().sum::<f64>();
    let check = Box::new(move |context: &Context| {
        let judge = |stretch: &Stretch| -> Result<Comparison> {
            let tokens = stretch.warm_up..stretch.end;
            let len = tokens.end - tokens.start;
            let mut checked = linear.with_carry(Carry::None);
            checked.shape = Shape::new(1, 1, len, linear.shape.head_dim);
            let query = query.rows(stretch.query_head, tokens.clone());
            let key = key.rows(stretch.key_head, tokens.clone());
            let value = value.rows(stretch.key_head, tokens);
            let (gates, betas) = (vec![GATE; len as usize], vec![beta; len as usize]);
            let mut inputs = HostInputs::new(&query, &key, &value);
            let slope = [decay[stretch.key_head as usize % decay.len()]];
            inputs.decay = (linear.rule == Rule::Decay).then_some(&slope);
            inputs.gate = linear.rule.is_gated().then_some(&gates);
            inputs.beta = linear.rule.is_delta().then_some(&betas);
            let reference = Reference::new(&checked, &inputs)?;
            let (want, eager) = (reference.recurrence(), reference.recurrence_eager());
            let given = out.read_rows(context, stretch.query_head, stretch.begin..stretch.end)?;
            let skip = (stretch.begin - stretch.warm_up) as usize * linear.shape.value_dim as usize;
            let (wanted, eager) = (&want.out[skip..], &eager.out[skip..]);
            Ok(compare(&given, wanted, eager, linear.dtype, want.magnitude))
        };
        let found = stretches(&linear, &decay).iter().map(judge).collect::<Result<Vec<_>>>()?;
        let share = |found: &Comparison| found.max_abs / found.bound;
        let worst = found.into_iter().max_by(|a, b| share(a).total_cmp(&share(b)));
        worst.context("nothing was checked")
    });
    Ok(Case { flops: flops(&linear), bytes, density: None, bound, check })
}

/// Tokens of one head whose results are checked, `begin..end`, and where the reference starts with an
/// empty state, because all that came before is forgotten.
struct Stretch {
    /// Heads are counted over all sequences.
    query_head: u32,
    key_head: u32,
    warm_up: u32,
    begin: u32,
    end: u32,
}

/// The first tokens of the first head, and where states forget the last ones of the last head.
fn stretches(linear: &LinearAttention, decay: &[f32]) -> Vec<Stretch> {
    let shape = &linear.shape;
    let (len, checked) = (shape.key_len, shape.key_len.min(CHECKED_TOKENS));
    let first = Stretch { query_head: 0, key_head: 0, warm_up: 0, begin: 0, end: checked };
    let loss = match linear.rule {
        Rule::Decay => decay.last().copied().unwrap_or(0.0),
        Rule::Gated { .. } => -GATE,
        _ => 0.0,
    };
    let reach = (FORGOTTEN / loss).min(len as f32) as u32;
    let begin = len - checked;
    let last = (loss > 0.0).then(|| Stretch {
        query_head: shape.batch * shape.query_heads - 1,
        key_head: shape.batch * shape.key_heads - 1,
        warm_up: begin.saturating_sub(reach),
        begin,
        end: len,
    });
    std::iter::once(first).chain(last).collect()
}

/// What is lost of the state at each token, as a logarithm.
const GATE: f32 = -0.1;

/// Numbers of which a tensor consists, over and over, so that long ones are made quickly; no multiple
/// of a row.
const PERIOD: u64 = (1 << 20) + 36;

/// A tensor of random numbers, which the host has as well.
struct Drawn {
    tensor: DeviceTensor,
    shape: [u32; 4],
    numbers: Vec<f32>,
}

impl Drawn {
    fn new(context: &Context, name: &str, dtype: DType, shape: [u32; 4]) -> Result<Self> {
        let count = (elements(shape) as u64).clamp(1, PERIOD).next_multiple_of(4);
        let numbers: Vec<f32> = random_numbers(name, count).collect();
        let tensor = DeviceTensor::new(context, name, dtype, shape)?;
        Ok(Self { tensor: tensor.fill(context, &dtype.encode(&numbers)), shape, numbers })
    }

    /// Rows of one head, those of all sequences counted.
    fn rows(&self, head: u32, rows: Range<u32>) -> Vec<f32> {
        let [_, _, len, dim] = self.shape.map(u64::from);
        let start = (u64::from(head) * len + u64::from(rows.start)) * dim;
        let count = rows.len() * dim as usize;
        let period = self.numbers.len();
        let skip = (start % period as u64) as usize;
        self.numbers.iter().copied().cycle().skip(skip).take(count).collect()
    }
}

fn constant(context: &Context, name: &str, shape: [u32; 4], number: f32) -> Result<DeviceTensor> {
    let tensor = DeviceTensor::new(context, name, DType::F32, shape)?;
    let count = elements(shape).clamp(1.0, PERIOD as f64) as usize;
    Ok(tensor.fill(context, &DType::F32.encode(&vec![number; count])))
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
