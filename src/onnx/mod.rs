//! The ONNX operators that this library computes, by their own names, layouts and conventions:
//! [`attention`] (opsets 23 to 25), [`linear_attention`], [`rotary_embedding`] and
//! [`tensor_scatter`].
//!
//! Each takes a node's attributes and its input tensors, which lie on the device, and records its
//! work into the caller's encoder; outputs are new tensors. What decides the work itself, lengths,
//! positions and boolean masks, is taken on the host. Kernels are compiled once for each
//! configuration, see [`Context`].
//!
//! ```
//! use wgpu_attention::onnx::{self, AttentionAttributes, AttentionInputs, Tensor};
//! use wgpu_attention::{Context, DType, Error};
//!
//! # fn main() -> Result<(), Error> {
//! # pollster::block_on(async {
//! # let context = match Context::request().await {
//! #     Err(Error::NoAdapter(_)) => return Ok(()), // nothing to show it on
//! #     context => context?,
//! # };
//! // [batch, len, heads · dim], as the operator's 3-D inputs are: two heads of four elements.
//! let tensor = |numbers: &[f32]| Tensor::upload(&context, DType::F32, &[1, 2, 8], numbers);
//! let (query, key) = (tensor(&[0.0; 16])?, tensor(&[1.0; 16])?);
//! let value = tensor(&[[2.0f32; 8], [4.0; 8]].concat())?;
//! let mut attributes = AttentionAttributes::default();
//! (attributes.q_num_heads, attributes.kv_num_heads) = (Some(2), Some(2));
//! attributes.is_causal = true;
//!
//! let mut encoder = context.device().create_command_encoder(&Default::default());
//! let inputs = AttentionInputs::new(&query, &key, &value);
//! let outputs = onnx::attention(&context, &mut encoder, &attributes, &inputs).await?;
//! context.queue().submit([encoder.finish()]);
//! // The first token sees the first value, the second the mean of both.
//! assert_eq!(outputs.y.read(&context).await?, [[2.0; 8], [3.0; 8]].concat());
//! # Ok(())
//! # })
//! # }
//! ```

mod attention;
mod linear_attention;
mod mask;
mod rotary_embedding;
mod tensor_scatter;

pub use attention::{AttentionAttributes, AttentionInputs, AttentionOutputs, attention};
pub use linear_attention::{
    LinearAttentionAttributes, LinearAttentionInputs, LinearAttentionOutputs, linear_attention,
};
pub use mask::AttentionMask;
pub use rotary_embedding::{RotaryEmbeddingAttributes, RotaryEmbeddingInputs, rotary_embedding};
pub use tensor_scatter::{TensorScatterAttributes, TensorScatterInputs, tensor_scatter};

use crate::device::Context;
use crate::error::Error;
use crate::launch::Array;
use crate::launch::workspace::{
    Packer, buffer, narrow_source, narrow_step, widen_source, widen_step,
};
use crate::launch::{Bound, PackedLayout, Step, scoped};
use crate::scatter::{Scatter, ScatterInputs};
use crate::shader::Target;
use crate::tensor::{DType, View};

/// A tensor of a graph, on the device: contiguous, from the start of its buffer.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Tensor {
    /// The buffer, with usage `STORAGE`; its size is a multiple of 4 bytes.
    pub buffer: wgpu::Buffer,
    /// The element type.
    pub dtype: DType,
    /// The sizes of its axes.
    pub shape: Vec<u32>,
}

impl Tensor {
    /// A tensor in a buffer of the caller's.
    pub fn new(buffer: &wgpu::Buffer, dtype: DType, shape: &[u32]) -> Self {
        Self { buffer: buffer.clone(), dtype, shape: shape.to_vec() }
    }

    /// A new tensor that holds `numbers`, rounded to `dtype`.
    ///
    /// # Errors
    /// As many numbers as the shape does not have; a device out of memory.
    pub fn upload(
        context: &Context,
        dtype: DType,
        shape: &[u32],
        numbers: &[f32],
    ) -> Result<Self, Error> {
        let count = shape.iter().fold(1u64, |count, &size| count.saturating_mul(size.into()));
        if numbers.len() as u64 != count {
            let expected = format!("{count} numbers of shape {shape:?}");
            return Err(Error::tensor("upload", expected, format!("{} numbers", numbers.len())));
        }
        let tensor = Self::empty(context, dtype, shape)?;
        let mut bytes = dtype.encode(numbers);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        context.queue().write_buffer(&tensor.buffer, 0, &bytes);
        Ok(tensor)
    }

    /// A new tensor of zeros.
    fn empty(context: &Context, dtype: DType, shape: &[u32]) -> Result<Self, Error> {
        let count = shape.iter().fold(1u64, |count, &size| count.saturating_mul(size.into()));
        let needed = count.saturating_mul(dtype.size()).max(16);
        let allowed = context.caps().buffer;
        if needed > allowed {
            let what = format!("a tensor of {dtype} {shape:?}, in bytes");
            return Err(Error::Limit { what, limit: "maxBufferSize", needed, allowed });
        }
        let usage = wgpu::BufferUsages::STORAGE
            | wgpu::BufferUsages::COPY_SRC
            | wgpu::BufferUsages::COPY_DST;
        let size = needed.next_multiple_of(4);
        let buffer = scoped(context, || Ok(buffer(context, "tensor", size, usage, None)))?;
        Ok(Self { buffer, dtype, shape: shape.to_vec() })
    }

    /// The numbers, on the host; the buffer needs the usage `COPY_SRC`.
    ///
    /// # Errors
    /// As [`Context::read`].
    pub async fn read(&self, context: &Context) -> Result<Vec<f32>, Error> {
        let count = self.shape.iter().fold(1u32, |count, &size| count.saturating_mul(size));
        context.read(self.view([1, 1, 1, count])).await
    }

    /// As [`read`](Self::read), of scores (`qk_matmul_output`): see [`Context::read_logits`].
    ///
    /// # Errors
    /// As [`Context::read_logits`].
    pub async fn read_logits(&self, context: &Context) -> Result<Vec<f32>, Error> {
        let count = self.shape.iter().fold(1u32, |count, &size| count.saturating_mul(size));
        context.read_logits(self.view([1, 1, 1, count])).await
    }

    /// The tensor with other axes over the same elements.
    fn view(&self, shape: [u32; 4]) -> View<'_> {
        View::new(&self.buffer, self.dtype, shape)
    }

    /// A tensor of four axes as it is.
    fn rank_4(&self) -> View<'_> {
        self.view(std::array::from_fn(|axis| self.shape.get(axis).copied().unwrap_or(1)))
    }

    /// The tensor as `[batch, heads, len, dim]`: of rank 4 as it is, of rank 3 `[batch, len,
    /// heads · dim]`, whose heads an attribute gives.
    fn heads(&self, name: &str, heads: Option<(&str, u32)>) -> Result<View<'_>, Error> {
        match (&self.shape[..], heads) {
            (&[batch, heads, len, dim], _) => Ok(self.view([batch, heads, len, dim])),
            (&[batch, len, width], Some((_, heads)))
                if heads > 0 && width.is_multiple_of(heads) =>
            {
                let shape = [batch, heads, len, width / heads];
                Ok(View::packed(&self.buffer, self.dtype, shape))
            }
            (_, Some((attribute, heads))) => {
                let expected = format!(
                    "rank 4, or rank 3 with a last axis that {attribute} = {heads} divides"
                );
                Err(Error::tensor(name, expected, format!("shape {:?}", self.shape)))
            }
            (_, None) => {
                let expected = "rank 4, or rank 3 with its number of heads as an attribute";
                Err(Error::tensor(name, expected, format!("shape {:?}", self.shape)))
            }
        }
    }
}

/// Whole numbers of a node that count or place something, none of them negative.
fn unsigned(name: &str, numbers: &[i64]) -> Result<Vec<u32>, Error> {
    let convert = |(index, &number): (usize, &i64)| {
        u32::try_from(number).map_err(|_| {
            Error::tensor(name, "numbers from 0 to 2^32 - 1", format!("{number} at index {index}"))
        })
    };
    numbers.iter().enumerate().map(convert).collect()
}

/// Writes `rows` into `cache`, from position `start` of every batch entry on.
async fn append(
    context: &Context,
    rows: View<'_>,
    start: u32,
    cache: View<'_>,
) -> Result<Bound, Error> {
    let plan = Scatter::new(rows.shape, cache.shape[2], cache.dtype).plan(context).await?;
    let starts = vec![start; rows.shape[0] as usize];
    plan.bind(&ScatterInputs::new(rows, Array::u32(&starts)), cache)
}

/// A tensor of f32 rounded to `dtype`, and the work that rounds it.
async fn rounded(
    context: &Context,
    wide: Tensor,
    dtype: DType,
) -> Result<(Tensor, Option<Bound>), Error> {
    let count = wide.shape.iter().product();
    if dtype == DType::F32 || count == 0 {
        return Ok((Tensor { dtype, ..wide }, None));
    }
    let pipeline = context.pipeline(&narrow_source(dtype, Target::current())).await?;
    let narrow = Tensor::empty(context, dtype, &wide.shape)?;
    let flat = [1, 1, 1, count];
    let bound = scoped(context, || {
        let step = narrow_step(context, &pipeline, &wide.view(flat), &narrow.view(flat))?;
        single(context, "common.narrow", step)
    })?;
    Ok((narrow, Some(bound)))
}

/// The work that writes the numbers of a tensor into an f32 one of its shape.
async fn widened(context: &Context, narrow: &Tensor, wide: &Tensor) -> Result<Bound, Error> {
    let pipeline = context.pipeline(&widen_source(narrow.dtype, Target::current())).await?;
    scoped(context, || {
        narrow.rank_4().check("past_state", wide.rank_4().shape, None)?;
        let count = wide.shape.iter().product();
        let step = widen_step(context, &pipeline, count, (&narrow.buffer, &wide.buffer))?;
        single(context, "common.widen", step)
    })
}

/// Work of a single dispatch without side arrays.
fn single(context: &Context, label: &'static str, step: Step) -> Result<Bound, Error> {
    let empty = |label| Packer::new(context).finish(context, label, &mut Vec::new());
    let (metadata, side) = (empty("metadata")?, empty("side")?);
    let (copies, layout) = (Vec::new(), PackedLayout::default());
    let (context, steps) = (context.clone(), vec![step]);
    Ok(Bound { context, label, copies, steps, metadata, side, layout })
}
