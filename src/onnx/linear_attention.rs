//! ONNX LinearAttention, opset 27.

use super::{Tensor, rounded, widened};
use crate::device::Context;
use crate::error::Error;
use crate::linear::{Carry, LinearAttention, LinearInputs, LinearOutputs, Rule};
use crate::shape::Shape;
use crate::tensor::{DType, View};

/// The attributes of a node.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct LinearAttentionAttributes {
    /// Heads of the queries.
    pub q_num_heads: u32,
    /// Heads of keys, values and the state.
    pub kv_num_heads: u32,
    /// Factor of the outputs; 0 is `1/√head_dim`.
    pub scale: f32,
    /// `linear`, `gated`, `delta` or `gated_delta`; empty is `gated_delta`.
    pub update_rule: String,
}

/// The inputs of a node.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct LinearAttentionInputs<'a> {
    /// `[batch, len, q_num_heads · head_dim]`.
    pub query: &'a Tensor,
    /// `[batch, len, kv_num_heads · head_dim]`.
    pub key: &'a Tensor,
    /// `[batch, len, kv_num_heads · value_dim]`.
    pub value: &'a Tensor,
    /// `[batch, kv_num_heads, head_dim, value_dim]`, f32 or in the type of the others: zeros without
    /// it.
    pub past_state: Option<&'a Tensor>,
    /// `[batch, len, kv_num_heads]` or `[batch, len, kv_num_heads · head_dim]`, for the gated rules:
    /// logarithms.
    pub decay: Option<&'a Tensor>,
    /// `[batch, len, kv_num_heads]` or `[batch, len, 1]`, for the delta rules.
    pub beta: Option<&'a Tensor>,
}

impl<'a> LinearAttentionInputs<'a> {
    /// Queries, keys and values alone.
    pub const fn new(query: &'a Tensor, key: &'a Tensor, value: &'a Tensor) -> Self {
        Self { query, key, value, past_state: None, decay: None, beta: None }
    }
}

/// The outputs of a node.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LinearAttentionOutputs {
    /// `[batch, len, q_num_heads · value_dim]`.
    pub output: Tensor,
    /// `[batch, kv_num_heads, head_dim, value_dim]`, in the type of the inputs.
    pub present_state: Tensor,
    /// The same before it was rounded: the better `past_state` of the next call.
    pub state: Tensor,
}

/// Records a node's work and gives its outputs.
///
/// The state is f32 throughout. ONNX gives it the type of the inputs, and so there is a rounded copy.
///
/// # Errors
/// Inputs or attributes that do not fit each other; what
/// [`LinearPlan::bind`](crate::LinearPlan::bind) refuses.
pub async fn linear_attention(
    context: &Context,
    encoder: &mut wgpu::CommandEncoder,
    attributes: &LinearAttentionAttributes,
    inputs: &LinearAttentionInputs<'_>,
) -> Result<LinearAttentionOutputs, Error> {
    let (heads, kv_heads) = (attributes.q_num_heads, attributes.kv_num_heads);
    let (own, shared) = (Some(("q_num_heads", heads)), Some(("kv_num_heads", kv_heads)));
    let query = inputs.query.heads("query", own)?;
    let value = inputs.value.heads("value", shared)?;
    let mut linear_inputs = LinearInputs::new(query, inputs.key.heads("key", shared)?, value);
    if let Some(decay) = inputs.decay {
        linear_inputs.gate = Some(decay.heads("decay", shared)?);
    }
    if let Some(beta) = inputs.beta {
        linear_inputs.beta = Some(beta_view(beta, kv_heads)?);
    }

    let [batch, _, len, head_dim] = query.shape;
    let per_key_dim = linear_inputs.gate.is_some_and(|gate| gate.shape[3] != 1);
    let shape = Shape::new(batch, heads, len, head_dim)
        .with_key_value_heads(kv_heads)
        .with_value_dim(value.shape[3]);
    let scale = match attributes.scale {
        0.0 => (1.0 / f64::from(head_dim).sqrt()) as f32,
        scale => scale,
    };
    let linear = LinearAttention::new(shape, query.dtype)
        .with_rule(rule(&attributes.update_rule, per_key_dim)?)
        .with_scale(scale)
        .with_carry(Carry::InOut);
    let plan = linear.plan(context).await?;

    let state = Tensor::empty(context, DType::F32, &linear.state(1))?;
    let mut work = Vec::new();
    if let Some(past) = inputs.past_state {
        if past.shape != state.shape {
            let expected = format!("shape {:?}", state.shape);
            return Err(Error::tensor("past_state", expected, format!("{:?}", past.shape)));
        }
        work.push(widened(context, past, &state).await?);
    }
    let width = heads.saturating_mul(value.shape[3]);
    let output = Tensor::empty(context, linear.dtype, &[batch, len, width])?;
    let outputs =
        LinearOutputs::new(output.heads("output", own)?).with_state(state.view(linear.state(1)));
    work.push(plan.bind(&linear_inputs, &outputs)?);
    let (present_state, rounding) = rounded(context, state.clone(), linear.dtype).await?;
    work.extend(rounding);
    work.iter().for_each(|bound| bound.encode(encoder));
    Ok(LinearAttentionOutputs { output, present_state, state })
}

fn rule(name: &str, per_key_dim: bool) -> Result<Rule, Error> {
    match name {
        "linear" => Ok(Rule::Decay),
        "gated" => Ok(Rule::Gated { per_key_dim }),
        "delta" => Ok(Rule::Delta),
        "gated_delta" | "" => Ok(Rule::GatedDelta { per_key_dim }),
        other => {
            let expected = "linear, gated, delta or gated_delta";
            Err(Error::config("update_rule", expected, format!("`{other}`")))
        }
    }
}

/// `[batch, kv_num_heads, len, 1]`, where all heads may share one factor.
fn beta_view(beta: &Tensor, kv_heads: u32) -> Result<View<'_>, Error> {
    if beta.shape.last() != Some(&1) {
        return beta.heads("beta", Some(("kv_num_heads", kv_heads)));
    }
    let mut view = beta.heads("beta", Some(("one shared head", 1)))?;
    view.shape[1] = kv_heads;
    view.strides[1] = 0;
    Ok(view)
}
