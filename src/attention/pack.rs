//! The side arrays of a call, packed into the two buffers that the kernels bind.

use super::cost::keys_per_query;
use crate::attention::Attention;
use crate::attention::arrays::Arrays;
use crate::attention::score::Broadcast;
use crate::device::Context;
use crate::error::Error;
use crate::launch::workspace::Packer;
use crate::launch::{Copy, PackedLayout};
use crate::shape::Shape;

/// The side arrays in two buffers, and the copies that fill what lies on the device.
pub(super) struct Packed {
    pub metadata: wgpu::Buffer,
    pub side: wgpu::Buffer,
    pub layout: PackedLayout,
    pub copies: Vec<Copy>,
    pub documents: u32,
    /// Along which axes the dense mask has bits of its own.
    pub dense_mask: Option<Broadcast>,
    /// Entries of the list of keys.
    pub list_len: u32,
    /// What the kernels may believe of it.
    pub list_trust: u32,
    /// The keys that a query visits on average, by estimate.
    pub keys_per_query: f64,
}

impl Packed {
    /// Packs arrays that have been checked against the configuration.
    pub fn new(
        context: &Context,
        attention: &Attention,
        arrays: &Arrays<'_>,
    ) -> Result<Self, Error> {
        let (mut metadata, mut side) = (Packer::new(context), Packer::new(context));
        let layout = PackedLayout {
            query_offset: metadata.push(arrays.query_offset),
            query_starts: metadata.push(arrays.query_starts),
            key_starts: metadata.push(arrays.key_starts),
            key_lengths: metadata.push(arrays.key_lengths),
            query_roles: metadata.push(arrays.query_roles),
            key_roles: metadata.push(arrays.key_roles),
            role_table: metadata.push(arrays.role_table),
            tree_bits: metadata.push(arrays.tree_bits),
            dense_mask: metadata.push(arrays.dense_mask.map(|(array, _)| array)),
            list_offsets: metadata.push(arrays.list_offsets),
            list_entries: metadata.push(arrays.list_entries),
            alibi_slopes: side.push(arrays.alibi_slopes),
            key_bias: side.push(arrays.key_bias),
            sinks: side.push(arrays.sinks),
            ..PackedLayout::default()
        };
        let mut copies = Vec::new();
        let documents = arrays.query_starts.map_or(0, |starts| starts.len() - 1) as u32;
        Ok(Self {
            metadata: metadata.finish(context, "metadata", &mut copies)?,
            side: side.finish(context, "side", &mut copies)?,
            layout,
            copies,
            documents,
            dense_mask: arrays.dense_mask.map(|(_, broadcast)| broadcast),
            list_len: arrays.list_entries.map_or(0, |entries| entries.len()) as u32,
            list_trust: crate::attention::keys::trust(attention, arrays)?,
            keys_per_query: keys_per_query(attention, arrays),
        })
    }
}

/// Numbers between batch entries and between heads of an array that has `rows` of some numbers for
/// each. An array that is there has been found to fit a binding, which one that is not need not.
pub(super) fn broadcast_strides(
    broadcast: Option<Broadcast>,
    shape: &Shape,
    rows: [u32; 2],
) -> (u32, u32) {
    let Some(broadcast) = broadcast else { return (0, 0) };
    let (_, own_heads) = broadcast.sizes(1, shape.query_heads);
    let head = rows[0] * rows[1];
    (
        if broadcast.per_batch { own_heads * head } else { 0 },
        if broadcast.per_head { head } else { 0 },
    )
}
