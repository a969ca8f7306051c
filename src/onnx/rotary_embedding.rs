//! ONNX RotaryEmbedding, opset 23.

use super::{Tensor, unsigned};
use crate::device::Context;
use crate::error::Error;
use crate::launch::Array;
use crate::rope::{Rope, RopeInputs, RopePairs};

/// The attributes of a node.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct RotaryEmbeddingAttributes {
    /// Whether pairs are neighbours, instead of half the rotated elements apart.
    pub interleaved: bool,
    /// Heads, for inputs of rank 3.
    pub num_heads: Option<u32>,
    /// Elements of a head that are rotated; 0 for all.
    pub rotary_embedding_dim: u32,
}

/// The inputs of a node.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RotaryEmbeddingInputs<'a> {
    /// `[batch, num_heads, len, dim]` or `[batch, len, num_heads · dim]`.
    pub input: &'a Tensor,
    /// `[positions, rotary / 2]`; without `position_ids` `[batch, len, rotary / 2]`.
    pub cos_cache: &'a Tensor,
    /// As `cos_cache`.
    pub sin_cache: &'a Tensor,
    /// `[batch, len]`, on the host.
    pub position_ids: Option<&'a [i64]>,
}

impl<'a> RotaryEmbeddingInputs<'a> {
    /// A row of the caches for each token.
    pub const fn new(input: &'a Tensor, cos_cache: &'a Tensor, sin_cache: &'a Tensor) -> Self {
        Self { input, cos_cache, sin_cache, position_ids: None }
    }
}

/// Records a node's work and gives its output, of the shape of the input.
///
/// # Errors
/// Inputs or attributes that do not fit each other; what [`RopePlan::bind`](crate::RopePlan::bind)
/// refuses.
pub async fn rotary_embedding(
    context: &Context,
    encoder: &mut wgpu::CommandEncoder,
    attributes: &RotaryEmbeddingAttributes,
    inputs: &RotaryEmbeddingInputs<'_>,
) -> Result<Tensor, Error> {
    let heads = attributes.num_heads.map(|heads| ("num_heads", heads));
    let input = inputs.input.heads("X", heads)?;
    let table = |name, tensor: &'_ Tensor| match (&tensor.shape[..], inputs.position_ids) {
        (&[rows, half], Some(_)) => Ok([1, 1, rows, half]),
        (&[batch, len, half], None) => Ok([batch, 1, len, half]),
        (shape, ids) => {
            let expected = format!("rank {}", if ids.is_some() { 2 } else { 3 });
            Err(Error::tensor(name, expected, format!("shape {shape:?}")))
        }
    };
    let cos = inputs.cos_cache.view(table("cos_cache", inputs.cos_cache)?);
    let sin = inputs.sin_cache.view(table("sin_cache", inputs.sin_cache)?);
    let [_, heads, _, dim] = input.shape;
    let rotary_dim = match attributes.rotary_embedding_dim {
        0 => dim,
        rotary_dim => rotary_dim,
    };
    let pairs = if attributes.interleaved { RopePairs::Interleaved } else { RopePairs::Halves };
    let rope = Rope::new(input.shape, input.dtype)
        .with_rotary_dim(rotary_dim)
        .with_pairs(pairs)
        .with_table(cos.dtype);
    let positions = inputs.position_ids.map(|ids| unsigned("position_ids", ids)).transpose()?;
    let mut rope_inputs = RopeInputs::new(input, cos, sin);
    rope_inputs.positions = positions.as_deref().map(Array::u32);

    let output = Tensor::empty(context, input.dtype, &inputs.input.shape)?;
    let out = output.heads("Y", Some(("num_heads", heads)))?;
    rope.plan(context).await?.bind(&rope_inputs, out)?.encode(encoder);
    Ok(output)
}
