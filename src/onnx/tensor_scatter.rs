//! ONNX TensorScatter, opset 24.

use super::{Tensor, append, unsigned};
use crate::device::Context;
use crate::error::Error;
use crate::launch::Array;
use crate::scatter::{Scatter, ScatterInputs};

/// The attributes of a node.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TensorScatterAttributes {
    /// The axis of positions, counted from the end where it is negative; not the first, which is the
    /// batch.
    pub axis: i64,
    /// Whether positions wrap around: `mode` is `circular` and not `linear`.
    pub circular: bool,
}

impl Default for TensorScatterAttributes {
    fn default() -> Self {
        Self { axis: -2, circular: false }
    }
}

/// The inputs of a node.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct TensorScatterInputs<'a> {
    /// `[batch, ..., capacity, ...]`.
    pub past_cache: &'a Tensor,
    /// Of the same shape but for the axis of positions.
    pub update: &'a Tensor,
    /// `[batch]`, on the host: the position of the first row; 0 without it.
    pub write_indices: Option<&'a [i64]>,
}

impl<'a> TensorScatterInputs<'a> {
    /// An update that starts at position 0.
    pub const fn new(past_cache: &'a Tensor, update: &'a Tensor) -> Self {
        Self { past_cache, update, write_indices: None }
    }
}

/// Records a node's work and gives `present_cache`, the past one with the update in it. Who may
/// write into the cache itself is better served by [`Scatter`].
///
/// # Errors
/// Inputs or attributes that do not fit each other; what
/// [`ScatterPlan::bind`](crate::ScatterPlan::bind) refuses.
pub async fn tensor_scatter(
    context: &Context,
    encoder: &mut wgpu::CommandEncoder,
    attributes: &TensorScatterAttributes,
    inputs: &TensorScatterInputs<'_>,
) -> Result<Tensor, Error> {
    let past = inputs.past_cache;
    let rank = past.shape.len() as i64;
    let axis = if attributes.axis < 0 { attributes.axis + rank } else { attributes.axis };
    if !(1..rank).contains(&axis) {
        let expected = format!("an axis of {:?} that is not the first", past.shape);
        return Err(Error::config("axis", expected, attributes.axis.to_string()));
    }
    let axis = axis as usize;
    let folded = |shape: &[u32]| {
        let product = |sizes: &[u32]| sizes.iter().fold(1u32, |a, &b| a.saturating_mul(b));
        [shape[0], product(&shape[1..axis]), shape[axis], product(&shape[axis + 1..])]
    };
    let mut expected = past.shape.clone();
    expected[axis] = inputs.update.shape.get(axis).copied().unwrap_or(0);
    if inputs.update.shape != expected {
        let expected = format!("shape {:?} but for axis {axis}", past.shape);
        return Err(Error::tensor("update", expected, format!("{:?}", inputs.update.shape)));
    }
    let starts = match inputs.write_indices {
        Some(indices) => unsigned("write_indices", indices)?,
        None => vec![0; past.shape[0] as usize],
    };
    let present = Tensor::empty(context, past.dtype, &past.shape)?;
    let cache = present.view(folded(&past.shape));
    let update = inputs.update.view(folded(&inputs.update.shape));
    let scatter =
        Scatter::new(update.shape, cache.shape[2], past.dtype).with_circular(attributes.circular);
    let copied = append(context, past.view(cache.shape), 0, cache).await?;
    let plan = scatter.plan(context).await?;
    let updated = plan.bind(&ScatterInputs::new(update, Array::u32(&starts)), cache)?;
    copied.encode(encoder);
    updated.encode(encoder);
    Ok(present)
}
