//! What every op is bound and run by: dispatches, packed arrays, checks between views, and long work in
//! pieces.

pub(crate) mod array;
pub(crate) mod pieces;
pub(crate) mod workspace;

pub use array::Array;
pub use pieces::Piece;

use crate::device::{Context, ready};
use crate::error::Error;

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
    /// [`Arrays::query_offset`](crate::Arrays::query_offset), in the metadata.
    pub query_offset: Option<u32>,
    /// [`Arrays::query_starts`](crate::Arrays::query_starts), in the metadata.
    pub query_starts: Option<u32>,
    /// [`Arrays::key_starts`](crate::Arrays::key_starts), in the metadata.
    pub key_starts: Option<u32>,
    /// [`Arrays::key_lengths`](crate::Arrays::key_lengths), in the metadata.
    pub key_lengths: Option<u32>,
    /// [`Arrays::query_roles`](crate::Arrays::query_roles), in the metadata.
    pub query_roles: Option<u32>,
    /// [`Arrays::key_roles`](crate::Arrays::key_roles), in the metadata.
    pub key_roles: Option<u32>,
    /// [`Arrays::role_table`](crate::Arrays::role_table), in the metadata.
    pub role_table: Option<u32>,
    /// [`Arrays::tree_bits`](crate::Arrays::tree_bits), in the metadata.
    pub tree_bits: Option<u32>,
    /// [`Arrays::dense_mask`](crate::Arrays::dense_mask), in the metadata.
    pub dense_mask: Option<u32>,
    /// [`Arrays::list_offsets`](crate::Arrays::list_offsets), in the metadata.
    pub list_offsets: Option<u32>,
    /// [`Arrays::list_entries`](crate::Arrays::list_entries), in the metadata.
    pub list_entries: Option<u32>,
    /// [`Arrays::alibi_slopes`](crate::Arrays::alibi_slopes), in the side buffer.
    pub alibi_slopes: Option<u32>,
    /// [`Arrays::key_bias`](crate::Arrays::key_bias), in the side buffer.
    pub key_bias: Option<u32>,
    /// [`Arrays::sinks`](crate::Arrays::sinks), in the side buffer.
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
