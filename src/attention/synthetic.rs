//! Calls made up to be timed: a configuration at a size that takes little, with everything it reads.

use super::{Attention, Output, Positions};
use crate::keys::KeyList;
use crate::mask::MAX_ROLES;
use crate::plan::{Inputs, Outputs, Plan, scoped};
use crate::workspace::buffer;
use crate::{Array, Arrays, Bound, Broadcast, Context, DType, Error, Keys, Shape, View};

/// Sequences are halved to this length before heads are left out.
const LONG: u32 = 1024;

/// No tensor has more elements: making them up takes time too.
const MOST: u64 = 1 << 22;

/// Of so many blocks, or keys, a list visits one.
const SPARSE: u32 = 4;

/// A call with its tensors on the device and its arrays on the host.
pub(super) struct Synthetic {
    pub attention: Attention,
    tensors: [wgpu::Buffer; 3],
    bias: Option<wgpu::Buffer>,
    outputs: [wgpu::Buffer; 2],
    sides: Sides,
}

/// Side arrays that leave all pairs: what a mask takes away is data, which only the caller has.
struct Sides {
    zeros: Vec<u32>,
    ones: Vec<u32>,
    starts: [[u32; 2]; 2],
    key_lengths: Vec<u32>,
    list: Option<KeyList>,
}

impl Synthetic {
    /// A call like those of `attention`, of about `work` operations or fewer.
    ///
    /// # Errors
    /// A device that has no room for it.
    pub fn new(context: &Context, attention: &Attention, work: f64) -> Result<Self, Error> {
        let mut attention = attention.clone();
        attention.shape = scaled(attention.shape, work);
        let (shape, dtype) = (attention.shape, attention.dtype);
        let sides = Sides::new(&attention)?;
        let usage = wgpu::BufferUsages::STORAGE;
        scoped(context, || {
            let filled = |label, shape: [u32; 4], dtype: DType, number: fn(u32) -> f32| {
                let numbers: Vec<f32> = (0..elements(shape) as u32).map(number).collect();
                let mut bytes = dtype.encode(&numbers);
                bytes.resize(bytes.len().next_multiple_of(4).max(16), 0);
                buffer(context, label, bytes.len() as u64, usage, Some(&bytes))
            };
            let empty = |label, shape, dtype: DType| {
                let size = (elements(shape) * dtype.size()).next_multiple_of(4).max(16);
                buffer(context, label, size, usage, None)
            };
            let bias = attention
                .score
                .bias
                .map(|(dtype, broadcast)| filled("bias", bias(&shape, broadcast), dtype, |_| 0.0));
            Ok(Self {
                tensors: [
                    filled("query", shape.query(), dtype, number),
                    filled("key", shape.key(), dtype, number),
                    filled("value", shape.value(), dtype, number),
                ],
                bias,
                outputs: [empty("out", shape.out(), dtype), empty("lse", shape.lse(), DType::F32)],
                sides,
                attention: attention.clone(),
            })
        })
    }

    /// Binds a plan of [`attention`](Self::attention).
    pub fn bind(&self, plan: &Plan) -> Result<Bound, Error> {
        let (shape, dtype) = (&self.attention.shape, self.attention.dtype);
        let [query, key, value] = &self.tensors;
        let mut inputs = Inputs::new(
            View::new(query, dtype, shape.query()),
            View::new(key, dtype, shape.key()),
            View::new(value, dtype, shape.value()),
        );
        inputs.arrays = self.sides.arrays(&self.attention);
        inputs.bias =
            self.attention.score.bias.zip(self.bias.as_ref()).map(
                |((dtype, broadcast), buffer)| View::new(buffer, dtype, bias(shape, broadcast)),
            );
        let [out, lse] = &self.outputs;
        let mut outputs = Outputs::new(View::new(out, dtype, shape.out()));
        if self.attention.output == (Output::Attention { lse: true }) {
            outputs = outputs.with_lse(View::new(lse, DType::F32, shape.lse()));
        }
        plan.bind(&inputs, &outputs)
    }
}

impl Sides {
    fn new(attention: &Attention) -> Result<Self, Error> {
        let shape = &attention.shape;
        let mask_bits = u64::from(shape.query_len) * u64::from(shape.key_len.div_ceil(32));
        let (batch, heads) = (u64::from(shape.batch), u64::from(shape.query_heads));
        // No array is longer than these: a number a key, bits of a tree, or bits of a mask.
        let numbers = batch * heads * u64::from(shape.key_len.max(shape.query_len).max(8));
        let bits = (2 * u64::from(shape.query_len)).max(MAX_ROLES.into());
        let dense = attention.mask.any(|term| term.dense);
        Ok(Self {
            zeros: vec![0; numbers as usize],
            ones: vec![u32::MAX; bits.max(if dense { mask_bits } else { 0 }) as usize],
            starts: [[0, shape.query_len], [0, shape.key_len]],
            key_lengths: vec![shape.key_len; shape.batch as usize],
            list: match attention.keys {
                Keys::Dense => None,
                keys => Some(list(keys, shape)?),
            },
        })
    }

    fn arrays(&self, attention: &Attention) -> Arrays<'_> {
        let (shape, mask, score) = (&attention.shape, &attention.mask, &attention.score);
        let zeros = |wanted: bool, len: u32| {
            wanted.then(|| Array::u32(self.zeros.get(..len as usize).unwrap_or_default()))
        };
        let ones = |wanted: bool, len: u32| {
            wanted.then(|| Array::u32(self.ones.get(..len as usize).unwrap_or_default()))
        };
        let documents = mask.any(|term| term.documents);
        let [query_starts, key_starts] = &self.starts;
        let roles = mask.any(|term| term.roles);
        let (dense, words) = (mask.any(|t| t.dense), shape.query_len * shape.key_len.div_ceil(32));
        let key_bias = score.key_bias.map_or(0, |broadcast| {
            let (batch, heads) = broadcast.sizes(shape.batch, shape.query_heads);
            batch * heads * shape.key_len
        });
        let arrays = Arrays {
            query_offset: zeros(attention.positions == Positions::PerBatch, shape.batch),
            query_starts: documents.then(|| Array::u32(query_starts)),
            key_starts: documents.then(|| Array::u32(key_starts)),
            key_lengths: mask.any(|t| t.lengths).then(|| Array::u32(&self.key_lengths)),
            query_roles: zeros(roles, shape.query_len),
            key_roles: zeros(roles, shape.key_len),
            role_table: ones(roles, MAX_ROLES),
            tree_bits: ones(mask.any(|t| t.tree), 2 * shape.query_len),
            dense_mask: ones(dense, words).map(|bits| (bits, Broadcast::SHARED)),
            alibi_slopes: zeros(score.alibi, shape.query_heads),
            key_bias: zeros(score.key_bias.is_some(), key_bias),
            sinks: zeros(score.sinks, shape.query_heads),
            ..Arrays::default()
        };
        match &self.list {
            Some(list) => list.arrays(arrays),
            None => arrays,
        }
    }
}

/// A list that visits every fourth block, or key.
fn list(keys: Keys, shape: &Shape) -> Result<KeyList, Error> {
    let step = (SPARSE * keys.block_k()) as usize;
    let row: Vec<u32> = (0..shape.key_len).step_by(step).collect();
    KeyList::from_rows(keys, shape, &vec![row; keys.rows(shape) as usize])
}

fn bias(shape: &Shape, broadcast: Broadcast) -> [u32; 4] {
    let (batch, heads) = broadcast.sizes(shape.batch, shape.query_heads);
    [batch, heads, shape.query_len, shape.key_len]
}

fn elements(shape: [u32; 4]) -> u64 {
    shape.into_iter().map(u64::from).product()
}

/// Numbers from −2 to 2 without any order.
fn number(index: u32) -> f32 {
    let mixed = (index ^ index >> 15).wrapping_mul(0x2c1b_3c6d);
    (mixed >> 16) as f32 / 16_384.0 - 2.0
}

/// A shape of at most so many operations: fewer batch entries first, shorter sequences then, fewer
/// heads after that.
fn scaled(mut shape: Shape, work: f64) -> Shape {
    let half = |n: u32| n.div_ceil(2);
    loop {
        let sizes = [shape.batch, shape.query_heads, shape.query_len, shape.key_len];
        let pairs: f64 = sizes.into_iter().map(f64::from).product();
        let work_here = 2.0 * pairs * f64::from(shape.head_dim + shape.value_dim);
        let tensors = [shape.query(), shape.key(), shape.value(), shape.out()];
        if work_here <= work && tensors.into_iter().all(|tensor| elements(tensor) <= MOST) {
            return shape;
        }
        let longest = shape.query_len.max(shape.key_len);
        let heads = [shape.query_heads, shape.key_heads, shape.value_heads];
        let halves = heads.iter().all(|heads| heads % 2 == 0);
        if shape.batch > 1 {
            shape.batch = half(shape.batch);
        } else if longest > LONG || (!halves && longest > 1) {
            (shape.query_len, shape.key_len) = (half(shape.query_len), half(shape.key_len));
        } else if halves {
            let [query, key, value] = heads.map(|heads| heads / 2);
            (shape.query_heads, shape.key_heads, shape.value_heads) = (query, key, value);
        } else {
            return shape;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_shrink_until_they_take_little() {
        let shape = Shape::new(4, 16, 4096, 64);
        assert_eq!(scaled(shape, 1e15), Shape::new(1, 16, 4096, 64));
        assert_eq!(scaled(shape, 2e10), Shape::new(1, 16, 2048, 64));
        assert_eq!(scaled(shape, 2e8), Shape::new(1, 1, 512, 64));
        let decoding = Shape::new(1, 32, 1, 128).with_key_len(1 << 20).with_key_value_heads(8);
        let less = scaled(decoding, 2e10);
        assert_eq!(less, Shape { key_len: 4096, ..decoding });
        for shape in [Shape::new(0, 1, 8, 8), Shape::new(1, 3, 1, 576), Shape::new(1, 1, 0, 8)] {
            assert_eq!(scaled(shape, 0.5).query_heads, shape.query_heads);
        }
    }
}
