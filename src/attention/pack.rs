//! The side arrays of a call, packed into the two buffers that the kernels bind.

use super::bind::buffer;
use crate::plan::{Copy, PackedLayout};
use crate::{Array, Arrays, Broadcast, Context, Error, Shape};

/// The side arrays in two buffers, and the copies that fill what lies on the device.
pub(super) struct Packed {
    pub metadata: wgpu::Buffer,
    pub side: wgpu::Buffer,
    pub layout: PackedLayout,
    pub copies: Vec<Copy>,
    pub documents: u32,
    /// Along which axes the dense mask has bits of its own.
    pub dense_mask: Option<Broadcast>,
}

/// Words so far, and the arrays that are to be copied in by the device.
struct Packer<'a> {
    words: Vec<u32>,
    devices: Vec<(&'a wgpu::Buffer, u64, u64, u64)>,
    /// Bytes so far, and of a binding.
    size: u64,
    allowed: u64,
}

impl<'a> Packer<'a> {
    fn new(context: &Context) -> Self {
        let allowed = context.caps().storage_binding;
        Self { words: Vec::new(), devices: Vec::new(), size: 0, allowed }
    }

    /// Adds an array and says where it starts. One that is too large is left to `finish` to refuse,
    /// before any memory is asked for.
    fn push(&mut self, array: Option<Array<'a>>) -> Option<u32> {
        let array = array?;
        let at = self.words.len();
        self.size = self.size.saturating_add((array.len() as u64).saturating_mul(4));
        if self.size > self.allowed {
            return None;
        }
        match array {
            Array::Host(values) => self.words.extend_from_slice(values),
            Array::Device { buffer, offset, len } => {
                self.devices.push((buffer, 4 * offset, 4 * at as u64, 4 * len as u64));
                self.words.resize(at + len, 0);
            }
            Array::Reserved { len } => self.words.resize(at + len, 0),
        }
        Some(at as u32)
    }

    fn finish(
        mut self,
        context: &Context,
        label: &str,
        copies: &mut Vec<Copy>,
    ) -> Result<wgpu::Buffer, Error> {
        if self.size > self.allowed {
            return Err(Error::Limit {
                what: format!("the {label} buffer of side arrays, in bytes"),
                limit: "maxStorageBufferBindingSize",
                needed: self.size,
                allowed: self.allowed,
            });
        }
        self.words.resize(self.words.len().max(4), 0);
        let size = 4 * self.words.len() as u64;
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
        let words = bytemuck::cast_slice(&self.words);
        let target = buffer(context, label, size, usage, Some(words));
        copies.extend(self.devices.into_iter().map(
            |(source, source_offset, target_offset, size)| Copy {
                source: source.clone(),
                source_offset,
                target: target.clone(),
                target_offset,
                size,
            },
        ));
        Ok(target)
    }
}

impl Packed {
    pub fn new(context: &Context, arrays: &Arrays<'_>) -> Result<Self, Error> {
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
            alibi_slopes: side.push(arrays.alibi_slopes),
            key_bias: side.push(arrays.key_bias),
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
