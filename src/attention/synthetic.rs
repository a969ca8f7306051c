//! Calls made up to be timed or tried: a configuration at a size that takes little, with everything it
//! reads.

use super::reference::{HostInputs, Reference};
use super::{Activation, Attention, Output, Positions, Tiles};
use crate::attention::arrays::Arrays;
use crate::attention::keys::KeyList;
use crate::attention::keys::Keys;
use crate::attention::mask::MAX_ROLES;
use crate::attention::score::Broadcast;
use crate::attention::{Inputs, Outputs, Plan};
use crate::device::verification::{Outcome, mixed, number, outcome};
use crate::device::{Context, readback};
use crate::error::Error;
use crate::launch::scoped;
use crate::launch::workspace::buffer;
use crate::launch::{Array, Bound};
use crate::shape::Shape;
use crate::tensor::{DType, View};

/// Sequences are halved to this length before heads are left out.
const LONG: u32 = 1024;

/// No tensor has more elements: making them up takes time too.
const MOST: u64 = 1 << 22;

/// Of so many blocks, or keys, a list visits one.
const SPARSE: u32 = 4;

/// Queries of a mask with `tree` at most.
const TREE_QUERIES: u32 = 64;

/// Rows of a trial that are compared with the reference.
const TRIAL_ROWS: usize = 96;

/// What the side arrays of a mask take away.
#[derive(Clone, Copy, PartialEq)]
enum Masked {
    /// Nothing, so that times compare: what a mask takes away is data, which only the caller has.
    Nothing,
    /// Some pairs, so that a mask that does not work shows.
    Some,
}

/// A call with its tensors on the device and on the host.
pub(super) struct Synthetic {
    pub attention: Attention,
    /// Queries, keys, values and the bias.
    numbers: [Vec<f32>; 4],
    tensors: [wgpu::Buffer; 3],
    bias: Option<wgpu::Buffer>,
    outputs: [wgpu::Buffer; 2],
    sides: Sides,
}

/// Every side array that a configuration may read.
struct Sides {
    query_offset: Vec<u32>,
    starts: [Vec<u32>; 2],
    key_lengths: Vec<u32>,
    roles: [Vec<u32>; 3],
    tree_bits: Vec<u32>,
    dense_mask: Vec<u32>,
    alibi_slopes: Vec<f32>,
    key_bias: Vec<f32>,
    sinks: Vec<f32>,
    list: Option<KeyList>,
}

impl Synthetic {
    /// A call like those of `attention`, of about `work` operations or fewer, to be timed.
    ///
    /// # Errors
    /// A device that has no room for it.
    pub fn new(context: &Context, attention: &Attention, work: f64) -> Result<Self, Error> {
        let shape = scaled(attention.shape, work);
        Self::of(context, Attention { shape, ..attention.clone() }, Masked::Nothing)
    }

    /// A call of the same kernel as those of `attention` with `tiles`, to be tried: of several tiles, the
    /// last ones ragged, with an LSE where there may be one.
    ///
    /// # Errors
    /// A device that has no room for it.
    pub fn trial(context: &Context, attention: &Attention, tiles: &Tiles) -> Result<Self, Error> {
        let mut attention = attention.clone();
        let entry = match attention.keys {
            Keys::Dense => 1,
            keys => keys.block_k(),
        };
        let mut shape =
            Shape { batch: 1, query_heads: 2, key_heads: 1, value_heads: 2, ..attention.shape };
        shape.query_len = tiles.block_q + 17;
        shape.key_len = (5 * tiles.block_k).max(2 * SPARSE * entry) + 3;
        if attention.mask.any(|term| term.tree) {
            shape.query_len = shape.query_len.min(TREE_QUERIES);
        }
        attention.shape = shape;
        attention.output = Output::Attention { lse: attention.activation == Activation::Softmax };
        // Numbers that are no part of a text, and with which f32 tells every row.
        attention.score.scale = None;
        attention.score.softcap = attention.score.softcap.map(|_| 5.0);
        if let Activation::Sigmoid { bias } = &mut attention.activation {
            *bias = None;
        }
        Self::of(context, attention, Masked::Some)
    }

    fn of(context: &Context, attention: Attention, masked: Masked) -> Result<Self, Error> {
        let (shape, dtype) = (attention.shape, attention.dtype);
        let sides = Sides::new(&attention, masked)?;
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC;
        scoped(context, || {
            // As the tensor's dtype has them; no two tensors alike.
            let made = |shape: [u32; 4], dtype: DType, seed: u32| {
                let numbers: Vec<f32> =
                    (0..elements(shape) as u32).map(|index| number(index ^ (seed << 24))).collect();
                dtype.decode(&dtype.encode(&numbers))
            };
            let filled = |label, dtype: DType, numbers: &[f32]| {
                let mut bytes = dtype.encode(numbers);
                bytes.resize(bytes.len().next_multiple_of(4).max(16), 0);
                buffer(context, label, bytes.len() as u64, usage, Some(&bytes))
            };
            // What a kernel leaves as it was is NaN in every dtype.
            let unwritten = |label, shape, dtype: DType| {
                let size = (elements(shape) * dtype.size()).next_multiple_of(4).max(16);
                buffer(context, label, size, usage, Some(&vec![0xff; size as usize]))
            };
            let biased = attention
                .score
                .bias
                .map(|(dtype, broadcast)| (dtype, made(bias(&shape, broadcast), dtype, 4)));
            let precision = attention.precision();
            let numbers = [
                made(shape.query(), precision, 1),
                made(shape.key(), precision, 2),
                made(shape.value(), precision, 3),
                biased.as_ref().map(|(_, numbers)| numbers.clone()).unwrap_or_default(),
            ];
            let [query, key, value, _] = &numbers;
            Ok(Self {
                tensors: [
                    filled("query", dtype, query),
                    filled("key", dtype, key),
                    filled("value", dtype, value),
                ],
                bias: biased.map(|(dtype, numbers)| filled("bias", dtype, &numbers)),
                outputs: [
                    unwritten("out", shape.out(), dtype),
                    unwritten("lse", shape.lse(), DType::F32),
                ],
                numbers,
                sides,
                attention: attention.clone(),
            })
        })
    }

    /// Runs a plan of [`attention`](Self::attention) and judges some of its rows by the reference.
    ///
    /// # Errors
    /// A lost device, or one out of memory.
    pub async fn judge(&self, plan: &Plan) -> Result<Outcome, Error> {
        let (context, shape) = (&plan.context, &self.attention.shape);
        context.run(&self.bind(plan)?).await?;
        let [out, lse] = &self.outputs;
        let out =
            readback::read(context, View::new(out, self.attention.dtype, shape.out())).await?;
        let lse = match self.attention.output {
            Output::Attention { lse: true } => {
                Some(readback::read(context, View::new(lse, DType::F32, shape.lse())).await?)
            }
            _ => None,
        };
        let [query, key, value, bias] = &self.numbers;
        let mut host = HostInputs::new(query, key, value);
        host.bias = self.bias.as_ref().map(|_| &bias[..]);
        let host = host.with_arrays(self.sides.arrays(&self.attention));
        let reference = Reference::new(&self.attention, &host)?;
        let rows = reference.sample(TRIAL_ROWS);
        let (out, lse) = reference.check_out(&rows, &out, lse.as_deref());
        Ok(outcome([("out", Some(out)), ("lse", lse)]))
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
    fn new(attention: &Attention, masked: Masked) -> Result<Self, Error> {
        let (shape, mask, score) = (&attention.shape, &attention.mask, &attention.score);
        let some = masked == Masked::Some;
        let words = |wanted: bool, len: u32, all: u32, part: fn(u32) -> u32| -> Vec<u32> {
            let len = if wanted { len } else { 0 };
            (0..len).map(|index| if some { part(index) } else { all }).collect()
        };
        let numbers = |wanted: bool, len: u32, seed: u32| -> Vec<f32> {
            let len = if wanted { len } else { 0 };
            (0..len).map(|index| number(index ^ (seed << 24))).collect()
        };
        let roles = mask.any(|term| term.roles);
        let starts = |len: u32| if some { vec![0, len / 3, len] } else { vec![0, len] };
        let key_lengths = if some { shape.key_len - shape.key_len / 5 } else { shape.key_len };
        let key_bias = score.key_bias.map_or(0, |broadcast| {
            let (batch, heads) = broadcast.sizes(shape.batch, shape.query_heads);
            batch * heads * shape.key_len
        });
        let mask_words = shape.query_len * shape.key_len.div_ceil(32);
        Ok(Self {
            query_offset: vec![0; shape.batch as usize],
            starts: [starts(shape.query_len), starts(shape.key_len)],
            key_lengths: vec![key_lengths; shape.batch as usize],
            roles: [
                words(roles, shape.query_len, 0, |query| query % 2),
                words(roles, shape.key_len, 0, |key| key % 3 % 2),
                // Role 0 sees role 0, role 1 sees both.
                words(roles, MAX_ROLES, u32::MAX, |role| 1 | ((role % 2) << 1)),
            ],
            tree_bits: words(mask.any(|t| t.tree), 2 * shape.query_len, u32::MAX, mixed),
            dense_mask: words(mask.any(|t| t.dense), mask_words, u32::MAX, mixed),
            alibi_slopes: numbers(score.alibi, shape.query_heads, 5)
                .iter()
                .map(|x| x.abs())
                .collect(),
            key_bias: numbers(true, key_bias, 6),
            sinks: numbers(score.sinks, shape.query_heads, 7),
            list: match attention.keys {
                Keys::Dense => None,
                keys => Some(list(keys, shape)?),
            },
        })
    }

    fn arrays(&self, attention: &Attention) -> Arrays<'_> {
        let (mask, score) = (&attention.mask, &attention.score);
        let documents = mask.any(|term| term.documents);
        let [query_starts, key_starts] = &self.starts;
        let roles = mask.any(|term| term.roles);
        let [query_roles, key_roles, role_table] =
            self.roles.each_ref().map(|numbers| roles.then(|| Array::u32(numbers)));
        let words = |wanted: bool, numbers| wanted.then(|| Array::u32(numbers));
        let dense = words(mask.any(|t| t.dense), &self.dense_mask);
        let arrays = Arrays {
            query_offset: words(attention.positions == Positions::PerBatch, &self.query_offset),
            query_starts: words(documents, query_starts),
            key_starts: words(documents, key_starts),
            key_lengths: words(mask.any(|t| t.lengths), &self.key_lengths),
            query_roles,
            key_roles,
            role_table,
            tree_bits: words(mask.any(|t| t.tree), &self.tree_bits),
            dense_mask: dense.map(|bits| (bits, Broadcast::SHARED)),
            alibi_slopes: score.alibi.then(|| Array::f32(&self.alibi_slopes)),
            key_bias: score.key_bias.map(|_| Array::f32(&self.key_bias)),
            sinks: score.sinks.then(|| Array::f32(&self.sinks)),
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
