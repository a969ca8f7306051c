//! Plans and their bindings: what is decided and compiled once, and what may be recorded any number
//! of times.

use crate::attention::{Attention, Tiles, Variant};
use crate::shader::Source;
use crate::{Arrays, Context, Error, View};

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
    /// Rounds the f32 workspace to a 16-bit output, where that cannot be written directly.
    pub(crate) narrow: Option<wgpu::ComputePipeline>,
}

impl Plan {
    /// The configuration that was planned.
    pub const fn attention(&self) -> &Attention {
        &self.attention
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

/// Binds within error scopes, which catch what the checks cannot foresee: memory that has run out.
pub(crate) fn scoped<T>(
    context: &Context,
    bind: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    let device = context.device();
    let memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let bound = bind();
    let errors = (ready(validation.pop()).flatten(), ready(memory.pop()).flatten());
    match errors {
        (Some(error), _) | (_, Some(error)) => bound.and(Err(context.failure(error))),
        (None, None) => bound.and_then(|bound| context.alive().map(|()| bound)),
    }
}

/// The value of a future that needs no waiting, as those of error scopes on native.
pub(crate) fn ready<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut cx) {
        std::task::Poll::Ready(value) => Some(value),
        std::task::Poll::Pending => None,
    }
}

/// A plan bound to buffers: encoding it allocates and compiles nothing.
#[derive(Clone, Debug)]
pub struct Bound {
    pub(crate) context: Context,
    pub(crate) label: &'static str,
    pub(crate) copies: Vec<Copy>,
    pub(crate) steps: Vec<Step>,
    pub(crate) metadata: wgpu::Buffer,
    pub(crate) side: wgpu::Buffer,
    pub(crate) layout: PackedLayout,
}

/// A side array of the caller's on its way into the workspace.
#[derive(Clone, Debug)]
pub(crate) struct Copy {
    pub source: wgpu::Buffer,
    pub source_offset: u64,
    pub target: wgpu::Buffer,
    pub target_offset: u64,
    pub size: u64,
}

impl Copy {
    pub fn record(&self, encoder: &mut wgpu::CommandEncoder) {
        let (source, target) = (&self.source, &self.target);
        let (from, to) = (self.source_offset, self.target_offset);
        encoder.copy_buffer_to_buffer(source, from, target, to, self.size);
    }
}

/// One dispatch.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub pipeline: wgpu::ComputePipeline,
    pub group: wgpu::BindGroup,
    pub workgroups: (u32, u32),
    /// An estimate of its work, in operations.
    pub cost: f64,
}

impl Step {
    /// Records the dispatch of its workgroups, from the one that `first` names.
    pub fn record(&self, pass: &mut wgpu::ComputePass<'_>, first: &wgpu::BindGroup) {
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.group, &[]);
        pass.set_bind_group(1, first, &[]);
        pass.dispatch_workgroups(self.workgroups.0, self.workgroups.1, 1);
    }
}

/// Where the side arrays lie in the workspace, in words: in [`Bound::metadata`] those of integers,
/// in [`Bound::side`] those of numbers. `None` for an array that was not given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PackedLayout {
    /// [`Arrays::query_offset`], in the metadata.
    pub query_offset: Option<u32>,
    /// [`Arrays::query_starts`], in the metadata.
    pub query_starts: Option<u32>,
    /// [`Arrays::key_starts`], in the metadata.
    pub key_starts: Option<u32>,
    /// [`Arrays::key_lengths`], in the metadata.
    pub key_lengths: Option<u32>,
    /// [`Arrays::query_roles`], in the metadata.
    pub query_roles: Option<u32>,
    /// [`Arrays::key_roles`], in the metadata.
    pub key_roles: Option<u32>,
    /// [`Arrays::role_table`], in the metadata.
    pub role_table: Option<u32>,
    /// [`Arrays::tree_bits`], in the metadata.
    pub tree_bits: Option<u32>,
    /// [`Arrays::dense_mask`], in the metadata.
    pub dense_mask: Option<u32>,
    /// [`Arrays::list_offsets`], in the metadata.
    pub list_offsets: Option<u32>,
    /// [`Arrays::list_entries`], in the metadata.
    pub list_entries: Option<u32>,
    /// [`Arrays::alibi_slopes`], in the side buffer.
    pub alibi_slopes: Option<u32>,
    /// [`Arrays::key_bias`], in the side buffer.
    pub key_bias: Option<u32>,
    /// [`Arrays::sinks`], in the side buffer.
    pub sinks: Option<u32>,
    /// [`MergeInputs::log_weights`](crate::MergeInputs::log_weights), in the side buffer.
    pub log_weights: Option<u32>,
    /// [`RopeInputs::positions`](crate::RopeInputs::positions), in the metadata.
    pub positions: Option<u32>,
    /// [`LinearInputs::starts`](crate::LinearInputs::starts) or
    /// [`ScatterInputs::starts`](crate::ScatterInputs::starts), in the metadata.
    pub starts: Option<u32>,
    /// [`LinearInputs::decay`](crate::LinearInputs::decay), in the metadata, as bits.
    pub decay: Option<u32>,
}

impl Bound {
    /// Records the work into the caller's encoder, as often as one likes.
    pub fn encode(&self, encoder: &mut wgpu::CommandEncoder) {
        self.record(encoder, None);
    }

    /// As [`encode`](Self::encode), with timestamps at both ends of the pass.
    pub fn encode_timed(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        timestamps: wgpu::ComputePassTimestampWrites<'_>,
    ) {
        self.record(encoder, Some(timestamps));
    }

    fn record(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        timestamp_writes: Option<wgpu::ComputePassTimestampWrites<'_>>,
    ) {
        for copy in &self.copies {
            copy.record(encoder);
        }
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some(self.label),
            timestamp_writes,
        });
        for step in &self.steps {
            step.record(&mut pass, self.context.whole_dispatch());
        }
    }

    /// The packed integer arrays, for a producer on the device that fills an
    /// [`Array::Reserved`](crate::Array::Reserved) itself; usages `STORAGE | COPY_DST`.
    pub const fn metadata(&self) -> &wgpu::Buffer {
        &self.metadata
    }

    /// The packed arrays of numbers; usages `STORAGE | COPY_DST`.
    pub const fn side(&self) -> &wgpu::Buffer {
        &self.side
    }

    /// Where each array lies in the two.
    pub const fn layout(&self) -> PackedLayout {
        self.layout
    }
}
