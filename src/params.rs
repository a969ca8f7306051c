//! The uniform structs of the kernels; `tests/layout.rs` holds each against its WGSL twin.

use bytemuck::{Pod, Zeroable};

/// Where an array would start that is not there.
pub const ABSENT: u32 = u32::MAX;

/// No bound on one side of a window. Lengths stay below 2^28 and offsets below 2^29, so that
/// position + bound never leaves an i32.
pub const UNBOUNDED: i32 = 1 << 30;

/// Twin of `Params` in `shaders/attention/params.wgsl`: one piece of one attention call.
///
/// Offsets and strides count elements. A piece covers some batch entries and some query heads;
/// `*_base` say where it starts in the whole, for what is indexed by the whole's numbers.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct AttentionParams {
    /// Batch, head and row stride, then the offset, of each tensor.
    pub query: [u32; 4],
    /// As `query`.
    pub key: [u32; 4],
    /// As `query`.
    pub value: [u32; 4],
    /// As `query`; of the scores when those are the output.
    pub out: [u32; 4],
    /// As `query`.
    pub lse: [u32; 4],
    /// As `query`; stride 0 where the bias is shared.
    pub bias: [u32; 4],
    /// The words of each AND-term of the mask, as bits.
    pub term_words: [u32; 4],
    /// Each term's window to the left.
    pub term_left: [i32; 4],
    /// Each term's window to the right; 0 when causal.
    pub term_right: [i32; 4],
    /// Each term's first key that is too late for sink and prefix.
    pub term_limit: [i32; 4],
    /// Batch entries of the piece.
    pub batch: u32,
    /// Query heads of the piece.
    pub heads: u32,
    /// Queries per sequence.
    pub query_len: u32,
    /// Keys per sequence.
    pub key_len: u32,
    /// True dimension of queries and keys.
    pub head_dim: u32,
    /// True dimension of values.
    pub value_dim: u32,
    /// Workgroups of the piece.
    pub workgroups: u32,
    /// Workgroups per head: blocks of queries.
    pub query_blocks: u32,
    /// First batch entry of the piece.
    pub batch_base: u32,
    /// First query head of the piece.
    pub head_base: u32,
    /// Key head of `head_base`.
    pub key_head_base: u32,
    /// Value head of `head_base`.
    pub value_head_base: u32,
    /// Query heads of the whole.
    pub query_heads: u32,
    /// Key heads of the whole.
    pub key_heads: u32,
    /// Value heads of the whole.
    pub value_heads: u32,
    /// The kind of offset: 0 is `offset`, 1 follows the key lengths, 2 is an array.
    pub offset_kind: u32,
    /// The offset of queries among keys.
    pub offset: i32,
    /// Factor on the queries: the scale, times log2 e when nothing else touches the scores.
    pub query_scale: f32,
    /// `c` of the softcap, 0 for none.
    pub softcap: f32,
    /// The sigmoid's bias, in units of log2.
    pub sigmoid_bias: f32,
    /// Element type of the bias: 0 none, 1 f32, 2 f16, 3 bf16.
    pub bias_dtype: u32,
    /// Whether the LSE is written.
    pub has_lse: u32,
    /// Whether ALiBi counts positions within documents.
    pub document_positions: u32,
    /// The bits of a NaN, which WGSL has no literal for.
    pub nan: u32,
    /// Start of the per-batch offsets in the metadata; [`ABSENT`] when there are none, as for all
    /// that follow.
    pub query_offset_at: u32,
    /// Start of the documents' first queries.
    pub query_starts_at: u32,
    /// Start of the documents' first keys.
    pub key_starts_at: u32,
    /// Number of documents.
    pub documents: u32,
    /// Start of the key lengths.
    pub key_lengths_at: u32,
    /// Start of the queries' roles.
    pub query_roles_at: u32,
    /// Start of the keys' roles.
    pub key_roles_at: u32,
    /// Start of the role table.
    pub role_table_at: u32,
    /// Start of the tree bits.
    pub tree_bits_at: u32,
    /// Start of the dense mask's words.
    pub dense_mask_at: u32,
    /// Words between the dense mask's batch entries.
    pub dense_mask_batch: u32,
    /// Words between the dense mask's heads.
    pub dense_mask_head: u32,
    /// Words of one row of the dense mask.
    pub dense_mask_row: u32,
    /// Start of ALiBi's slopes in the side buffer.
    pub alibi_slopes_at: u32,
    /// Start of the key bias in the side buffer.
    pub key_bias_at: u32,
    /// Numbers between the key bias's batch entries.
    pub key_bias_batch: u32,
    /// Numbers between the key bias's heads.
    pub key_bias_head: u32,
    /// Start of the sinks in the side buffer.
    pub sinks_at: u32,
    /// Which stage of the scores is asked for.
    pub stage: u32,
    /// AND-terms of the mask.
    pub terms: u32,
    /// Start of the list's offsets in the metadata.
    pub list_offsets_at: u32,
    /// Start of the list's entries in the metadata.
    pub list_entries_at: u32,
    /// Number of the list's entries.
    pub list_len: u32,
    /// Rows of the list between batch entries.
    pub list_batch: u32,
    /// Rows between the list's heads.
    pub list_head: u32,
    /// Query heads that share a head of the list.
    pub list_head_group: u32,
    /// Queries that share a row of the list.
    pub list_block_q: u32,
    /// log2 of the keys of an entry.
    pub list_shift: u32,
    /// What is known of the list: 0 nothing, 1 it ascends without overlaps, 2 full entries are.
    pub list_trust: u32,
    /// The first position of keys that the dispatch walks, where walks are cut into parts.
    pub part_first: u32,
    /// The end of its positions.
    pub part_end: u32,
    /// Whether rows go on from what the parts before left.
    pub resumes: u32,
}

/// Twin of `Params` in `shaders/merge/merge.wgsl`.
///
/// Strides and offsets are as in [`AttentionParams`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct MergeParams {
    /// Of the parts' outputs, part after part along the batch axis.
    pub parts: [u32; 4],
    /// Of the parts' LSEs.
    pub lse: [u32; 4],
    /// Of the logits or weights.
    pub weights: [u32; 4],
    /// Of the output.
    pub out: [u32; 4],
    /// Of the merged LSE.
    pub out_lse: [u32; 4],
    /// Number of parts.
    pub count: u32,
    /// Batch entries of the output.
    pub batch: u32,
    /// Heads.
    pub heads: u32,
    /// Rows of a head.
    pub len: u32,
    /// Elements of a row.
    pub dim: u32,
    /// Whether there are logits in place of LSEs.
    pub has_logits: u32,
    /// Whether there are log-weights.
    pub has_log_weights: u32,
    /// Whether the merged LSE is written.
    pub has_lse: u32,
    /// The bits of a NaN, which WGSL has no literal for.
    pub nan: u32,
    /// Keeps the size a multiple of 16 bytes.
    pub padding_0: u32,
    /// As `padding_0`.
    pub padding_1: u32,
    /// As `padding_0`.
    pub padding_2: u32,
}

/// Twin of `Params` in `shaders/linear/params.wgsl`: one piece of one call of linear attention, or one
/// segment of its chunks.
///
/// Offsets and strides count elements: batch, heads and tokens (rows, for the state), then the offset
/// from the start of the binding. Heads are key heads of the piece.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct LinearParams {
    /// Strides and offset of the queries.
    pub query: [u32; 4],
    /// Strides and offset of the keys.
    pub key: [u32; 4],
    /// Strides and offset of the values.
    pub value: [u32; 4],
    /// Strides and offset of the output.
    pub out: [u32; 4],
    /// Strides and offset of the caller's state; its batch counts batch entries and documents.
    pub state: [u32; 4],
    /// Strides and offset of the gates.
    pub gate: [u32; 4],
    /// Strides and offset of β, or of the denominators (with query heads).
    pub token: [u32; 4],
    /// Batch entries.
    pub batch: u32,
    /// Key heads.
    pub heads: u32,
    /// Query heads that share a key head.
    pub group: u32,
    /// Tokens of a sequence.
    pub len: u32,
    /// Elements of a query or key.
    pub head_dim: u32,
    /// Features of a query or key.
    pub features: u32,
    /// Elements of a value.
    pub value_dim: u32,
    /// Workgroups of the dispatch that have work.
    pub workgroups: u32,
    /// The piece's first key head in the whole.
    pub head_base: u32,
    /// Documents of a sequence, 1 where there are none.
    pub documents: u32,
    /// Where the starts of documents lie in the metadata.
    pub starts_at: u32,
    /// Where the slopes lie in the metadata, or [`ABSENT`].
    pub slopes_at: u32,
    /// The gates' dtype: 0 f32, 1 f16, 2 bf16.
    pub gate_dtype: u32,
    /// The dtype of β or the denominators.
    pub token_dtype: u32,
    /// Whether sequences begin with the caller's state.
    pub carries_in: u32,
    /// Whether the caller's state is written.
    pub carries_out: u32,
    /// The factor of the outputs.
    pub scale: f32,
    /// Added to the denominators.
    pub epsilon: f32,
    /// Chunks of a whole sequence, empty ones among them; tokens, for `linear.recurrent`.
    pub slots: u32,
    /// The segment's first chunk or token.
    pub first_slot: u32,
    /// Chunks or tokens of the segment.
    pub segment_slots: u32,
    /// Entries of the workspace for each key head: the largest segment's chunks and one more.
    pub slot_capacity: u32,
    /// Slices that the columns of the state are cut into.
    pub slices: u32,
    /// Keeps the size a multiple of 16 bytes.
    pub padding: u32,
}

/// Twin of `Params` in `shaders/common/widen.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct WidenParams {
    /// Elements of the tensor.
    pub count: u32,
    /// Keeps the size a multiple of 16 bytes.
    pub padding_0: u32,
    /// As `padding_0`.
    pub padding_1: u32,
    /// As `padding_0`.
    pub padding_2: u32,
}

/// Twin of `Params` in `shaders/common/narrow.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct NarrowParams {
    /// Sizes of the output's axes, longest stride first.
    pub sizes: [u32; 4],
    /// The output's strides, in elements, in that order.
    pub strides: [u32; 4],
    /// The contiguous source's strides, in that order.
    pub source: [u32; 4],
    /// Elements before the output's first one in the binding.
    pub offset: u32,
    /// One past the last element of the output in the binding.
    pub end: u32,
    /// Workgroups of the dispatch that have work.
    pub workgroups: u32,
    /// Keeps the size a multiple of 16 bytes.
    pub padding: u32,
}

/// Twin of `Params` in `shaders/scatter/scatter.wgsl`: one piece of one scatter.
///
/// Offsets and strides are those of batch, heads and rows, then the offset, in words of 32 bits.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct ScatterParams {
    /// Of the rows.
    pub rows: [u32; 4],
    /// Of the cache.
    pub cache: [u32; 4],
    /// Batch entries of the piece.
    pub batch: u32,
    /// Heads of the piece.
    pub heads: u32,
    /// Rows of a head.
    pub len: u32,
    /// Words of a row.
    pub words: u32,
    /// Positions of the cache.
    pub capacity: u32,
    /// Whether positions wrap around.
    pub circular: u32,
    /// First batch entry of the piece.
    pub batch_base: u32,
    /// Keeps the size a multiple of 16 bytes.
    pub padding: u32,
}

/// Twin of `Params` in `shaders/rope/rope.wgsl`: one piece of one rotation.
///
/// Offsets and strides are as in [`AttentionParams`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct RopeParams {
    /// Of the input.
    pub input: [u32; 4],
    /// Of the output.
    pub out: [u32; 4],
    /// Of the cosines; a table has no heads.
    pub cos: [u32; 4],
    /// Of the sines.
    pub sin: [u32; 4],
    /// Batch entries of the piece.
    pub batch: u32,
    /// Heads of the piece.
    pub heads: u32,
    /// Rows of a head.
    pub len: u32,
    /// Elements of a row.
    pub dim: u32,
    /// Elements of a row that are rotated, from the first.
    pub rotary_dim: u32,
    /// Whether the halves of a pair are neighbours.
    pub interleaved: u32,
    /// Rows of the table.
    pub table_rows: u32,
    /// Element type of the tables: 0 f32, 1 f16, 2 bf16.
    pub table_dtype: u32,
    /// Whether there are positions.
    pub has_positions: u32,
    /// Positions between batch entries, 0 where they share them.
    pub positions_batch: u32,
    /// First batch entry of the piece.
    pub batch_base: u32,
    /// Keeps the size a multiple of 16 bytes.
    pub padding: u32,
}
