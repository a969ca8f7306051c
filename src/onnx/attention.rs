//! ONNX Attention, opsets 23 to 25.

use super::mask::Axes;
use super::{AttentionMask, Tensor, append, rounded, unsigned};
use crate::attention::arrays::Arrays;
use crate::attention::mask::Mask;
use crate::attention::{Attention, Inputs, Outputs, Positions, Stage};
use crate::device::Context;
use crate::error::Error;
use crate::launch::{Array, Bound};
use crate::shape::Shape;
use crate::tensor::{DType, View};

/// The attributes of a node; an output that it does not have is not computed.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct AttentionAttributes {
    /// Heads of the queries, for inputs of rank 3.
    pub q_num_heads: Option<u32>,
    /// Heads of keys and values, for inputs of rank 3.
    pub kv_num_heads: Option<u32>,
    /// Factor of the dot products; `None` is `1/√head_dim`.
    pub scale: Option<f32>,
    /// Cap of the scores; 0 for none.
    pub softcap: f32,
    /// Whether a query sees no later keys. The first query stands at the first key, unless there
    /// are past keys, which it follows, or lengths, where the last query stands at the last key.
    pub is_causal: bool,
    /// Earlier keys that a query sees besides that of its own position; `None` for all (−1).
    pub left_window_size: Option<u32>,
    /// Later keys that a query sees; `None` for all (−1).
    pub right_window_size: Option<u32>,
    /// The stage of the output `qk_matmul_output`, for a node that has it: 0 after scaling, 1 after
    /// the softcap too, 2 after mask and bias too, 3 the weights.
    pub qk_matmul_output_mode: Option<u32>,
    /// Whether the node has the outputs `present_key` and `present_value`; those with past keys
    /// always have them.
    pub has_present: bool,
    /// Not an attribute of ONNX: whether weights may be rounded to f16, as matrix units want them. That is
    /// much faster for f16 tensors and may exceed the tolerance of ONNX's own tests (1e-3) a little, where
    /// values cancel. See [`Attention::with_f32_weights`].
    pub f16_weights: bool,
}

/// The inputs of a node.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct AttentionInputs<'a> {
    /// `Q`: `[batch, q_num_heads, q_len, head_dim]` or `[batch, q_len, q_num_heads · head_dim]`.
    pub query: &'a Tensor,
    /// `K`: `[batch, kv_num_heads, kv_len, head_dim]` or `[batch, kv_len, kv_num_heads · head_dim]`.
    pub key: &'a Tensor,
    /// `V`: as `K`, of `value_dim`.
    pub value: &'a Tensor,
    /// `attn_mask`.
    pub mask: Option<AttentionMask<'a>>,
    /// `past_key` and `past_value`: `[batch, kv_num_heads, past_len, head_dim]` and of `value_dim`.
    pub past: Option<(&'a Tensor, &'a Tensor)>,
    /// `nonpad_kv_seqlen`: `[batch]`, keys that count from the first; not with past keys.
    pub nonpad_kv_seqlen: Option<&'a [i64]>,
}

impl<'a> AttentionInputs<'a> {
    /// Queries, keys and values alone.
    pub const fn new(query: &'a Tensor, key: &'a Tensor, value: &'a Tensor) -> Self {
        Self { query, key, value, mask: None, past: None, nonpad_kv_seqlen: None }
    }
}

/// The outputs of a node.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AttentionOutputs {
    /// `Y`, in the layout of `Q` and of `value_dim`.
    pub y: Tensor,
    /// `present_key`: `[batch, kv_num_heads, past_len + kv_len, head_dim]`.
    pub present_key: Option<Tensor>,
    /// `present_value`: as `present_key`, of `value_dim`.
    pub present_value: Option<Tensor>,
    /// `qk_matmul_output`: `[batch, q_num_heads, q_len, total_len]`. Where a score is −∞, an f32
    /// tensor holds −1e30, as everywhere in this library ([`Tensor::read_logits`] gives −∞).
    pub qk_matmul_output: Option<Tensor>,
}

/// Records a node's work and gives its outputs.
///
/// Sums are f32 whatever the types: the attribute `softmax_precision` asks for less or, as f64, for
/// what devices do not have, and has no counterpart here. A row without keys is 0.
///
/// # Errors
/// Inputs or attributes that do not fit each other; what [`Plan::bind`](crate::Plan::bind) refuses.
pub async fn attention(
    context: &Context,
    encoder: &mut wgpu::CommandEncoder,
    attributes: &AttentionAttributes,
    inputs: &AttentionInputs<'_>,
) -> Result<AttentionOutputs, Error> {
    let mut work = Vec::new();
    let query =
        inputs.query.heads("Q", attributes.q_num_heads.map(|heads| ("q_num_heads", heads)))?;
    let kv_heads = attributes.kv_num_heads.map(|heads| ("kv_num_heads", heads));
    let new_key = inputs.key.heads("K", kv_heads)?;
    let new_value = inputs.value.heads("V", kv_heads)?;
    if inputs.past.is_some() && inputs.nonpad_kv_seqlen.is_some() {
        let expected = "none with past keys, which a cache of padded keys replaces";
        return Err(Error::tensor("nonpad_kv_seqlen", expected, "lengths and past keys"));
    }
    let [past_key, past_value] =
        [inputs.past.map(|(key, _)| key), inputs.past.map(|(_, value)| value)];
    let wanted = attributes.has_present || inputs.past.is_some();
    let present_key = present(context, &mut work, "past_key", past_key, new_key, wanted).await?;
    let present_value =
        present(context, &mut work, "past_value", past_value, new_value, wanted).await?;
    let call = Call {
        context,
        attributes,
        query,
        key: present_key.as_ref().map_or(new_key, Tensor::rank_4),
        value: present_value.as_ref().map_or(new_value, Tensor::rank_4),
        past_len: inputs.past.map_or(0, |(key, _)| key.shape[2]),
        axes: None,
        mask: inputs.mask,
        lengths: inputs.nonpad_kv_seqlen,
    };
    let call = call.checked()?;
    let [batch, heads, len, _] = call.query.shape;
    let value_dim = call.value.shape[3];
    let y_shape = match inputs.query.shape.len() {
        3 => vec![batch, len, heads * value_dim],
        _ => vec![batch, heads, len, value_dim],
    };
    let y = Tensor::empty(context, call.query.dtype, &y_shape)?;
    let out = y.heads("Y", Some(("q_num_heads", heads)))?;
    work.push(call.bind(call.configuration(), &Outputs::new(out)).await?);
    let qk_matmul_output = match attributes.qk_matmul_output_mode {
        Some(mode) => Some(call.scores(&mut work, mode).await?),
        None => None,
    };
    work.iter().for_each(|bound| bound.encode(encoder));
    Ok(AttentionOutputs { y, present_key, present_value, qk_matmul_output })
}

/// The keys or values so far with the new ones behind them, where they are wanted.
async fn present(
    context: &Context,
    work: &mut Vec<Bound>,
    name: &str,
    past: Option<&Tensor>,
    new: View<'_>,
    wanted: bool,
) -> Result<Option<Tensor>, Error> {
    if !wanted {
        return Ok(None);
    }
    let [batch, heads, len, dim] = new.shape;
    let past_len = match past.map(|past| &past.shape[..]) {
        None => 0,
        Some(&[b, h, past_len, d]) if [b, h, d] == [batch, heads, dim] => past_len,
        Some(shape) => {
            let expected = format!("shape [{batch}, {heads}, any, {dim}]");
            return Err(Error::tensor(name, expected, format!("{shape:?}")));
        }
    };
    let total = past_len.saturating_add(len);
    let present = Tensor::empty(context, new.dtype, &[batch, heads, total, dim])?;
    let cache = present.rank_4();
    if let Some(past) = past {
        work.push(append(context, past.rank_4(), 0, cache).await?);
    }
    work.push(append(context, new, past_len, cache).await?);
    Ok(Some(present))
}

/// One node as a call of this library's attention.
struct Call<'a> {
    context: &'a Context,
    attributes: &'a AttentionAttributes,
    query: View<'a>,
    key: View<'a>,
    value: View<'a>,
    past_len: u32,
    mask: Option<AttentionMask<'a>>,
    axes: Option<Axes>,
    lengths: Option<&'a [i64]>,
}

impl Call<'_> {
    /// Checks what has no meaning for this library's own attention.
    fn checked(mut self) -> Result<Self, Error> {
        let shape = self.shape();
        for (name, view, heads) in
            [("K", &self.key, shape.key_heads), ("V", &self.value, shape.value_heads)]
        {
            let expected = [shape.batch, heads, shape.key_len, view.shape[3]];
            if view.shape != expected {
                let expected = format!("shape {expected:?} with past keys and heads apart");
                return Err(Error::tensor(name, expected, format!("{:?}", view.shape)));
            }
        }
        if let Some(lengths) = self.lengths {
            let fits = |&length: &i64| (0..=i64::from(shape.key_len)).contains(&length);
            if lengths.len() != shape.batch as usize || !lengths.iter().all(fits) {
                let expected = format!("{} lengths from 0 to {}", shape.batch, shape.key_len);
                return Err(Error::tensor("nonpad_kv_seqlen", expected, format!("{lengths:?}")));
            }
        }
        self.axes = self.mask.map(|mask| mask.axes(&shape)).transpose()?;
        Ok(self)
    }

    /// The sizes, over all keys.
    fn shape(&self) -> Shape {
        let [batch, heads, len, head_dim] = self.query.shape;
        Shape::new(batch, heads, len, head_dim)
            .with_key_heads(self.key.shape[1])
            .with_value_heads(self.value.shape[1])
            .with_key_len(self.key.shape[2])
            .with_value_dim(self.value.shape[3])
    }

    /// Attention before mask and bias, over all keys.
    fn plain(&self) -> Attention {
        let mut attention = Attention::new(self.shape(), self.query.dtype);
        attention.f32_weights = !self.attributes.f16_weights;
        attention.score.scale = self.attributes.scale;
        attention.score.softcap = Some(self.attributes.softcap).filter(|&cap| cap != 0.0);
        attention
    }

    /// The whole of it, over the keys that the mask covers.
    fn configuration(&self) -> Attention {
        let attributes = self.attributes;
        let mut attention = self.plain().with_positions(Positions::PerBatch);
        let mut mask = Mask::full();
        if attributes.is_causal {
            mask = mask & Mask::causal();
        }
        if attributes.left_window_size.is_some() || attributes.right_window_size.is_some() {
            mask = mask & Mask::window(attributes.left_window_size, attributes.right_window_size);
        }
        if self.lengths.is_some() {
            mask = mask & Mask::lengths();
        }
        if let Some(axes) = &self.axes {
            attention.shape.key_len = axes.keys;
            match self.mask {
                Some(AttentionMask::Float(tensor)) => {
                    attention = attention.with_bias(tensor.dtype, axes.broadcast);
                }
                _ => mask = mask & Mask::dense(),
            }
        }
        attention.with_mask(mask)
    }

    /// Binds a configuration over the first keys, as many as it has.
    async fn bind(&self, attention: Attention, outputs: &Outputs<'_>) -> Result<Bound, Error> {
        let shape = attention.shape;
        let lengths = unsigned("nonpad_kv_seqlen", self.lengths.unwrap_or_default())?;
        let offsets: Vec<i32> = match self.lengths {
            Some(lengths) => lengths.iter().map(|&l| l as i32 - shape.query_len as i32).collect(),
            None => vec![self.past_len as i32; shape.batch as usize],
        };
        let lengths: Vec<u32> = lengths.into_iter().map(|l| l.min(shape.key_len)).collect();
        let (mut key, mut value) = (self.key, self.value);
        (key.shape[2], value.shape[2]) = (shape.key_len, shape.key_len);
        let mut inputs = Inputs::new(self.query, key, value);
        let mut arrays = Arrays::default();
        if attention.positions == Positions::PerBatch {
            arrays.query_offset = Some(Array::i32(&offsets));
        }
        if attention.mask.any(|term| term.lengths) {
            arrays.key_lengths = Some(Array::u32(&lengths));
        }
        let bits;
        if let (Some(axes), Some(mask)) = (&self.axes, self.mask) {
            match mask {
                AttentionMask::Bool { keep, .. } if attention.mask.any(|term| term.dense) => {
                    bits = axes.bits(keep, shape.query_len);
                    arrays.dense_mask = Some((Array::u32(&bits), axes.broadcast));
                }
                AttentionMask::Float(tensor) if attention.score.bias.is_some() => {
                    inputs.bias = Some(axes.view(tensor, shape.query_len));
                }
                _ => {}
            }
        }
        let plan = attention.plan(self.context).await?;
        plan.bind(&inputs.with_arrays(arrays), outputs)
    }

    /// The output `qk_matmul_output`.
    async fn scores(&self, work: &mut Vec<Bound>, mode: u32) -> Result<Tensor, Error> {
        let attention = match mode {
            0 => self.plain().with_scores(Stage::Scaled),
            1 => self.plain().with_scores(Stage::Modified),
            2 => self.configuration().with_scores(Stage::Masked),
            3 => self.configuration().with_scores(Stage::Probabilities),
            other => {
                let got = other.to_string();
                return Err(Error::config("qk_matmul_output_mode", "0 to 3", got));
            }
        };
        let whole = self.shape().scores();
        let wide = if attention.shape.key_len < whole[3] && mode == 2 {
            // Keys beyond the mask have no score.
            let count = whole.iter().map(|&size| size as usize).product();
            Tensor::upload(self.context, DType::F32, &whole, &vec![-1e30; count])?
        } else {
            Tensor::empty(self.context, DType::F32, &whole)?
        };
        let mut scores = wide.view(whole);
        scores.shape[3] = attention.shape.key_len;
        work.push(self.bind(attention, &Outputs::scores(scores)).await?);
        let (tensor, rounding) = rounded(self.context, wide, self.query.dtype).await?;
        work.extend(rounding);
        Ok(tensor)
    }
}
