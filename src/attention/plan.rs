//! Plans of attention: what is decided and compiled once, and what they are bound to.

use super::arrays::Arrays;
use super::{Attention, Tiles, Variant};
use crate::device::Context;
use crate::error::Error;
use crate::launch::{Bound, scoped};
use crate::shader::Source;
use crate::tensor::View;

/// The tensors an attention call reads.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Inputs<'a> {
    /// `[batch, query_heads, query_len, head_dim]`.
    pub query: View<'a>,
    /// `[batch, key_heads, key_len, head_dim]`.
    pub key: View<'a>,
    /// `[batch, value_heads, key_len, value_dim]`.
    pub value: View<'a>,
    /// `[batch | 1, query_heads | 1, query_len, key_len]` for
    /// [`Score::bias`](crate::Score::bias).
    pub bias: Option<View<'a>>,
    /// The small arrays that mask and score modifiers refer to.
    pub arrays: Arrays<'a>,
}

impl<'a> Inputs<'a> {
    /// Queries, keys and values.
    pub fn new(query: View<'a>, key: View<'a>, value: View<'a>) -> Self {
        Self { query, key, value, bias: None, arrays: Arrays::default() }
    }

    /// Adds the bias per pair.
    #[must_use]
    pub const fn with_bias(mut self, bias: View<'a>) -> Self {
        self.bias = Some(bias);
        self
    }

    /// Adds the small arrays.
    #[must_use]
    pub const fn with_arrays(mut self, arrays: Arrays<'a>) -> Self {
        self.arrays = arrays;
        self
    }
}

/// The tensors an attention call writes; each in a buffer that holds no input.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Outputs<'a> {
    /// `[batch, query_heads, query_len, value_dim]`, in the dtype of the inputs.
    pub out: Option<View<'a>>,
    /// f32 `[batch, query_heads, query_len, 1]`.
    pub lse: Option<View<'a>>,
    /// f32 `[batch, query_heads, query_len, key_len]`, or the sums over blocks.
    pub scores: Option<View<'a>>,
}

impl<'a> Outputs<'a> {
    /// The output of [`Output::Attention`](crate::Output::Attention).
    pub const fn new(out: View<'a>) -> Self {
        Self { out: Some(out), lse: None, scores: None }
    }

    /// Adds the LSE.
    #[must_use]
    pub const fn with_lse(mut self, lse: View<'a>) -> Self {
        self.lse = Some(lse);
        self
    }

    /// The output of [`Output::Scores`](crate::Output::Scores) and of
    /// [`Output::BlockSums`](crate::Output::BlockSums).
    pub const fn scores(scores: View<'a>) -> Self {
        Self { out: None, lse: None, scores: Some(scores) }
    }
}

/// A configuration with its kernel chosen and compiled; see [`Attention::plan`].
#[derive(Clone, Debug)]
pub struct Plan {
    pub(crate) context: Context,
    pub(crate) attention: Attention,
    pub(crate) variant: Variant,
    pub(crate) tiles: Option<Tiles>,
    pub(crate) source: Source,
    pub(crate) pipeline: wgpu::ComputePipeline,
    /// Positions of keys that one dispatch walks, where one cannot walk all.
    pub(crate) part: Option<u32>,
    /// Rounds the f32 workspace to a 16-bit output, where that cannot be written directly.
    pub(crate) narrow: Option<wgpu::ComputePipeline>,
}

impl Plan {
    /// The configuration that was planned.
    pub const fn attention(&self) -> &Attention {
        &self.attention
    }

    /// How many keys one dispatch walks, where the driver limits the rounds of loops
    /// ([`Caps::loop_rounds`](crate::Caps::loop_rounds)) and a call takes several; `None` for one.
    pub const fn part(&self) -> Option<u32> {
        self.part
    }

    /// The kernel that was chosen.
    pub const fn variant(&self) -> Variant {
        self.variant
    }

    /// The tiles that were chosen; `None` for a kernel without.
    pub const fn tiles(&self) -> Option<&Tiles> {
        self.tiles.as_ref()
    }

    /// The composed shader, as the compiler saw it.
    pub fn wgsl(&self) -> &str {
        self.source.wgsl()
    }

    /// Checks the views against the plan and makes everything that encoding needs.
    ///
    /// A tensor beyond the device's binding limit is processed by batch entries and heads.
    ///
    /// # Errors
    /// A tensor or array of the wrong shape, dtype, strides or values; one that leaves its buffer;
    /// an output in the buffer of an input; a limit that no splitting satisfies; a device out of
    /// memory.
    pub fn bind(&self, inputs: &Inputs<'_>, outputs: &Outputs<'_>) -> Result<Bound, Error> {
        scoped(&self.context, || self.bind_checked(inputs, outputs))
    }
}
