//! `wgpu-attention run --op linear`: linear attention over the tensors of a file.

use anyhow::Result;
use clap::ValueEnum;
use pollster::block_on;
use wgpu_attention::linear::reference::{HostInputs, Reference, Results};
use wgpu_attention::linear::{check_gates, slopes};
use wgpu_attention::{
    Array, Carry, Context, DType, FeatureMap, LinearAttention, LinearInputs, LinearOutputs,
    LinearPlan, LinearVariant, Rule,
};

use crate::bad_input;
use crate::check::{Check, Finding};
use crate::device::DeviceTensor;
use crate::input::{Size, Tensor, Tensors};
use crate::output::Named;
use crate::problem::{dtype_of, shape_of};

/// The options of linear attention.
#[derive(clap::Args)]
#[command(next_help_heading = "Options of --op linear")]
pub struct LinearOptions {
    /// How a token changes the state [default: decay]
    #[arg(long, value_enum)]
    rule: Option<RuleName>,
    /// What is made of queries and keys [default: identity]
    #[arg(long, value_enum)]
    feature_map: Option<FeatureMapName>,
    /// Divides each output by the sum of its weights
    #[arg(long)]
    normalize: bool,
    /// Added to that sum [default: 1e-6]
    #[arg(long, value_name = "X", requires = "normalize")]
    epsilon: Option<f32>,
    /// The heads' decay slopes, instead of the file's `decay`: released:LAYER/LAYERS as models were
    /// released with, or paper:LAYER/LAYERS; layers count from 0
    #[arg(long, value_name = "KIND:LAYER/LAYERS", value_parser = parse_slopes)]
    slopes: Option<Slopes>,
    /// Tokens of a chunk
    #[arg(long, value_name = "N")]
    chunk: Option<u32>,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum RuleName {
    Decay,
    Gated,
    Delta,
    GatedDelta,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum FeatureMapName {
    Identity,
    Silu,
    Elu1,
    Taylor2,
}

impl RuleName {
    /// The rule, with a gate for each key dimension or for each token.
    pub const fn rule(self, per_key_dim: bool) -> Rule {
        match self {
            Self::Decay => Rule::Decay,
            Self::Gated => Rule::Gated { per_key_dim },
            Self::Delta => Rule::Delta,
            Self::GatedDelta => Rule::GatedDelta { per_key_dim },
        }
    }
}

impl From<FeatureMapName> for FeatureMap {
    fn from(name: FeatureMapName) -> Self {
        match name {
            FeatureMapName::Identity => Self::Identity,
            FeatureMapName::Silu => Self::Silu,
            FeatureMapName::Elu1 => Self::Elu1,
            FeatureMapName::Taylor2 => Self::Taylor2,
        }
    }
}

/// Which slopes, and for which of how many layers.
#[derive(Clone, Copy)]
struct Slopes {
    released: bool,
    layer: u32,
    layers: u32,
}

impl LinearOptions {
    /// The first option that was given, for those who expected none.
    pub fn given(&self) -> Option<&'static str> {
        let given = [
            ("--rule", self.rule.is_some()),
            ("--feature-map", self.feature_map.is_some()),
            ("--normalize", self.normalize),
            ("--slopes", self.slopes.is_some()),
            ("--chunk", self.chunk.is_some()),
        ];
        given.into_iter().find_map(|(name, given)| given.then_some(name))
    }
}

fn parse_slopes(text: &str) -> Result<Slopes, String> {
    let parts = text.split_once(':').and_then(|(kind, layers)| {
        let (layer, layers) = layers.split_once('/')?;
        let released = match kind {
            "released" => true,
            "paper" => false,
            _ => return None,
        };
        Some(Slopes { released, layer: layer.parse().ok()?, layers: layers.parse().ok()? })
    });
    parts.ok_or_else(|| "expected released:LAYER/LAYERS or paper:LAYER/LAYERS".to_owned())
}

/// A configuration and its tensors.
pub struct Problem<'a> {
    pub linear: LinearAttention,
    query: Tensor<'a>,
    key: Tensor<'a>,
    value: Tensor<'a>,
    /// The numbers of the three, then of everything else.
    floats: [Vec<f32>; 3],
    decay: Option<Vec<f32>>,
    gate: Option<Vec<f32>>,
    /// `[B, Hkv, N]`, written out where the file shares it between heads.
    beta: Option<Vec<f32>>,
    starts: Option<Vec<u32>>,
    state: Option<Vec<f32>>,
    normalizer: Option<Vec<f32>>,
    /// The file's own `out`, to compare with.
    out: Option<Tensor<'a>>,
}

impl<'a> Problem<'a> {
    /// Reads and checks everything that the configuration refers to.
    pub fn load(
        tensors: &Tensors<'a>,
        options: &LinearOptions,
        scale: Option<f32>,
    ) -> Result<Self> {
        let query = tensors.require("q", "as [B, Hq, N, dk]")?;
        let key = tensors.require("k", "as [B, Hkv, N, dk]")?;
        let value = tensors.require("v", "as [B, Hkv, N, dv]")?;
        let shape = shape_of(&query, &key, &value)?;
        let mut linear = LinearAttention::new(shape, dtype_of(&query, [&key, &value])?)
            .with_scale(scale.unwrap_or(1.0))
            .with_feature_map(options.feature_map.map_or(FeatureMap::Identity, Into::into));
        linear.chunk = options.chunk;
        linear.normalize = options.normalize.then_some(options.epsilon.unwrap_or(1e-6));
        let is_gated = matches!(options.rule, Some(RuleName::Gated | RuleName::GatedDelta));
        let gate = if is_gated { tensors.get("gate") } else { None };
        let per_key_dim = gate.as_ref().is_some_and(|gate| gate.rank() == 4);
        linear.rule = options.rule.unwrap_or(RuleName::Decay).rule(per_key_dim);
        let starts = match tensors.get("cu_seqlens") {
            Some(starts) => {
                starts.shape("[docs + 1]", [Size::Any])?;
                linear = linear.with_documents();
                Some(starts.words(0..=i128::from(u32::MAX))?)
            }
            None => None,
        };
        let state = tensors.get("state");
        linear = linear.with_carry(if state.is_some() { Carry::InOut } else { Carry::Out });
        linear.validate()?;
        let documents = starts.as_ref().map_or(1, |starts| starts.len().max(2) as u32 - 1);
        let state = match state {
            Some(state) => {
                state.shape("[B · docs, Hkv, f, dv]", linear.state(documents).map(Size::Is))?;
                Some(state.floats()?)
            }
            None => None,
        };
        let [sequences, heads, features, _] = linear.normalizer(documents).map(Size::Is);
        let normalizer = match linear.normalize.and_then(|_| tensors.get("normalizer")) {
            Some(normalizer) => {
                normalizer.shape("[B · docs, Hkv, f]", [sequences, heads, features])?;
                Some(normalizer.floats()?)
            }
            None => None,
        };
        if state.is_some() && linear.normalize.is_some() && normalizer.is_none() {
            tensors.require("normalizer", "beside `state`, since --normalize is given")?;
        }
        let out = tensors.get("out");
        if let Some(out) = &out {
            out.shape("[B, Hq, N, dv]", shape.out().map(Size::Is))?;
        }
        let problem = Self {
            decay: decay(tensors, &linear, options)?,
            gate: gate_values(tensors, &linear)?,
            beta: beta_values(tensors, &linear)?,
            floats: [query.floats()?, key.floats()?, value.floats()?],
            linear,
            query,
            key,
            value,
            starts,
            state,
            normalizer,
            out,
        };
        Reference::new(&problem.linear, &problem.host_inputs())?;
        Ok(problem)
    }

    /// The tensors as the reference takes them.
    fn host_inputs(&self) -> HostInputs<'_> {
        let [query, key, value] = &self.floats;
        let mut inputs = HostInputs::new(query, key, value);
        inputs.decay = self.decay.as_deref();
        inputs.gate = self.gate.as_deref();
        inputs.beta = self.beta.as_deref();
        inputs.starts = self.starts.as_deref();
        inputs.state = self.state.as_deref();
        inputs.normalizer = self.normalizer.as_deref();
        inputs
    }

    fn documents(&self) -> u32 {
        self.starts.as_ref().map_or(1, |starts| starts.len() as u32 - 1)
    }
}

fn decay(
    tensors: &Tensors<'_>,
    linear: &LinearAttention,
    options: &LinearOptions,
) -> Result<Option<Vec<f32>>> {
    let heads = linear.shape.key_heads;
    if linear.rule != Rule::Decay {
        return match options.slopes {
            None => Ok(None),
            Some(_) => Err(bad_input(format!(
                "--slopes: expected with --rule decay only, got the rule {}",
                linear.rule.name()
            ))),
        };
    }
    match (tensors.get("decay"), options.slopes) {
        (Some(_), Some(_)) => Err(bad_input(
            "--slopes: expected either slopes or the file's tensor `decay`, got both",
        )),
        (Some(decay), None) => {
            decay.shape("[Hkv]", [Size::Is(heads)])?;
            Ok(Some(decay.floats()?))
        }
        (None, Some(Slopes { released, layer, layers })) => {
            let make = if released { slopes::released } else { slopes::paper };
            Ok(Some(make(heads, layer, layers)?))
        }
        (None, None) => Ok(None),
    }
}

fn gate_values(tensors: &Tensors<'_>, linear: &LinearAttention) -> Result<Option<Vec<f32>>> {
    if !linear.rule.is_gated() {
        return Ok(None);
    }
    let because = format!("as [B, Hkv, N] or [B, Hkv, N, dk] for the rule {}", linear.rule.name());
    let gate = tensors.require("gate", &because)?;
    let [batch, heads, len, dim] = linear.gate().map(Size::Is);
    if linear.rule.is_per_key_dim() {
        gate.shape("[B, Hkv, N, dk]", [batch, heads, len, dim])?;
    } else {
        gate.shape("[B, Hkv, N]", [batch, heads, len])?;
    }
    let values = gate.floats()?;
    check_gates(&values)?;
    Ok(Some(values))
}

fn beta_values(tensors: &Tensors<'_>, linear: &LinearAttention) -> Result<Option<Vec<f32>>> {
    if !linear.rule.is_delta() {
        return Ok(None);
    }
    let because = format!("as [B, Hkv|1, N] for the rule {}", linear.rule.name());
    let beta = tensors.require("beta", &because)?;
    let [batch, heads, len, _] = linear.beta();
    let sizes = [Size::Is(batch), Size::OrOne(heads), Size::Is(len)];
    let [_, own_heads, _] = beta.shape("[B, Hkv|1, N]", sizes)?;
    let values = beta.floats()?;
    if own_heads == heads || len == 0 {
        return Ok(Some(values));
    }
    let rows = values.chunks(len as usize);
    Ok(Some(rows.flat_map(|row| row.repeat(heads as usize)).collect()))
}

/// What a run gave.
pub struct Given {
    out: Vec<f32>,
    state: Vec<f32>,
    normalizer: Option<Vec<f32>>,
}

impl From<Results> for Given {
    fn from(results: Results) -> Self {
        let narrow = |values: Vec<f64>| values.into_iter().map(|x| x as f32).collect::<Vec<_>>();
        let normalizer = Some(results.normalizer).filter(|z| !z.is_empty());
        Self {
            out: narrow(results.out),
            state: narrow(results.state),
            normalizer: normalizer.map(narrow),
        }
    }
}

impl Given {
    /// The results as tensors of the output file.
    pub fn tensors(&self, problem: &Problem<'_>) -> Vec<Named<'_>> {
        let linear = &problem.linear;
        let sizes = |shape: &[u32]| shape.iter().map(|&size| size as usize).collect();
        let shape = sizes(&linear.shape.out());
        let mut tensors =
            vec![Named { name: "out", dtype: linear.dtype, shape, values: &self.out }];
        let dtype = DType::F32;
        let shape = sizes(&linear.state(problem.documents()));
        tensors.push(Named { name: "state", dtype, shape, values: &self.state });
        if let Some(values) = &self.normalizer {
            let shape = sizes(&linear.normalizer(problem.documents())[..3]);
            tensors.push(Named { name: "normalizer", dtype, shape, values });
        }
        tensors
    }
}

/// Computes on the CPU in f64.
pub fn on_host(problem: &Problem<'_>) -> Result<Given> {
    let inputs = problem.host_inputs();
    Ok(Reference::new(&problem.linear, &inputs)?.recurrence().into())
}

/// Plans for a device, with the variant that is asked for.
pub fn plan(
    context: &Context,
    linear: &LinearAttention,
    variant: Option<LinearVariant>,
) -> Result<LinearPlan> {
    Ok(match variant {
        Some(variant) => block_on(linear.plan_with(context, variant))?,
        None => block_on(linear.plan(context))?,
    })
}

/// Computes on a device.
pub fn on_device(context: &Context, problem: &Problem<'_>, plan: &LinearPlan) -> Result<Given> {
    let linear = &problem.linear;
    let (shape, dtype) = (&linear.shape, linear.dtype);
    let input = |tensor: &Tensor<'_>, shape| -> Result<_> {
        Ok(DeviceTensor::new(context, &tensor.name, dtype, shape)?.write(context, tensor.bytes))
    };
    let floats = |name: &str, shape, values: Option<&Vec<f32>>| -> Result<_> {
        let tensor = DeviceTensor::new(context, name, DType::F32, shape)?;
        let bytes = values.map(|values| DType::F32.encode(values)).unwrap_or_default();
        Ok(tensor.write(context, &bytes))
    };
    let query = input(&problem.query, shape.query())?;
    let key = input(&problem.key, shape.key())?;
    let value = input(&problem.value, shape.value())?;
    let mut inputs = LinearInputs::new(query.view(), key.view(), value.view());
    let gate = floats("gate", linear.gate(), problem.gate.as_ref())?;
    let beta = floats("beta", linear.beta(), problem.beta.as_ref())?;
    inputs.gate = problem.gate.as_ref().map(|_| gate.view());
    inputs.beta = problem.beta.as_ref().map(|_| beta.view());
    inputs.decay = problem.decay.as_deref().map(Array::f32);
    inputs.starts = problem.starts.as_deref().map(Array::u32);
    let documents = problem.documents();
    let out = DeviceTensor::new(context, "out", dtype, shape.out())?;
    let state = floats("state", linear.state(documents), problem.state.as_ref())?;
    let normalizer =
        floats("normalizer", linear.normalizer(documents), problem.normalizer.as_ref())?;
    let mut outputs = LinearOutputs::new(out.view()).with_state(state.view());
    outputs.normalizer = linear.normalize.map(|_| normalizer.view());
    let bound = plan.bind(&inputs, &outputs)?;
    block_on(context.run(&bound))?;
    Ok(Given {
        out: out.read(context)?,
        state: state.read(context)?,
        normalizer: linear.normalize.map(|_| normalizer.read(context)).transpose()?,
    })
}

/// Compares everything with the reference, and the output with the file's own.
pub fn check(problem: &Problem<'_>, given: &Given) -> Result<Check> {
    let inputs = problem.host_inputs();
    let reference = Reference::new(&problem.linear, &inputs)?;
    let found = reference.check(&given.out, Some(&given.state), given.normalizer.as_deref());
    let mut tensors = vec![Finding::new("out", "reference", found.out)];
    tensors.extend(found.state.map(|found| Finding::new("state", "reference", found)));
    tensors.extend(found.normalizer.map(|found| Finding::new("normalizer", "reference", found)));
    if let Some(file) = &problem.out {
        let numbers = (&given.out[..], &file.floats()?[..]);
        tensors.push(Finding::against_file(file, numbers, problem.linear.dtype, found.out));
    }
    let rows: u64 = problem.linear.shape.lse().into_iter().map(u64::from).product();
    Ok(Check::new(rows as usize, rows, tensors))
}
