//! The side arrays of a call: read from a file's tensors, held as 32-bit words.

use anyhow::Result;
use wgpu_attention::mask::{MAX_ROLES, pack_mask};
use wgpu_attention::{Array, Arrays, Broadcast, Mask, Shape};

use crate::input::{Size, Tensor, Tensors};

const U32: std::ops::RangeInclusive<i128> = 0..=u32::MAX as i128;
const I32: std::ops::RangeInclusive<i128> = i32::MIN as i128..=i32::MAX as i128;

/// The arrays that a configuration refers to, as words.
#[derive(Default)]
pub struct Side {
    pub query_offset: Option<Vec<u32>>,
    pub alibi_slopes: Option<Vec<u32>>,
    pub key_bias: Option<(Vec<u32>, Broadcast)>,
    pub sinks: Option<Vec<u32>>,
    documents: Option<[Vec<u32>; 2]>,
    key_lengths: Option<Vec<u32>>,
    roles: Option<Roles>,
    tree_bits: Option<Vec<u32>>,
    dense_mask: Option<(Vec<u32>, Broadcast)>,
}

struct Roles {
    query: Vec<u32>,
    key: Vec<u32>,
    table: Vec<u32>,
}

impl Side {
    /// Reads what `mask` refers to, and what changes scores and positions by being there.
    pub fn load(tensors: &Tensors<'_>, shape: &Shape, mask: &Mask) -> Result<Self> {
        let mut side = Self::default();
        let [batch, query_len, key_len] =
            [shape.batch, shape.query_len, shape.key_len].map(Size::Is);
        let [own_batch, own_head] = [shape.batch, shape.query_heads].map(Size::OrOne);
        if let Some(tensor) = tensors.get("query_offset") {
            tensor.shape("[B]", [batch])?;
            side.query_offset = Some(tensor.words(I32)?);
        }
        if let Some(tensor) = tensors.get("alibi_slopes") {
            tensor.shape("[Hq]", [Size::Is(shape.query_heads)])?;
            side.alibi_slopes = Some(float_words(&tensor)?);
        }
        if let Some(tensor) = tensors.get("key_bias") {
            let [b, h, _] = tensor.shape("[B|1, Hq|1, Nk]", [own_batch, own_head, key_len])?;
            side.key_bias = Some((float_words(&tensor)?, broadcast(b, h)));
        }
        if let Some(tensor) = tensors.get("sinks") {
            tensor.shape("[Hq]", [Size::Is(shape.query_heads)])?;
            side.sinks = Some(float_words(&tensor)?);
        }
        let named = |name: &'static str, word: &str| {
            tensors.require(name, &format!("since the mask `{mask}` has `{word}`"))
        };
        if mask.any(|term| term.documents) {
            let starts = |name| -> Result<_> {
                let tensor = named(name, "documents")?;
                tensor.shape("[docs + 1]", [Size::Any])?;
                tensor.words(U32)
            };
            side.documents = Some([starts("cu_seqlens_q")?, starts("cu_seqlens_k")?]);
        }
        if mask.any(|term| term.lengths) {
            let tensor = named("key_lengths", "lengths")?;
            tensor.shape("[B]", [batch])?;
            side.key_lengths = Some(tensor.words(U32)?);
        }
        if mask.any(|term| term.roles) {
            let (table, roles) = role_table(&named("role_table", "roles")?)?;
            let list = |name, axes, len| -> Result<_> {
                let tensor = named(name, "roles")?;
                tensor.shape(axes, [len])?;
                tensor.words(0..=i128::from(roles) - 1)
            };
            let query = list("roles_q", "[Nq]", query_len)?;
            let key = list("roles_k", "[Nk]", key_len)?;
            side.roles = Some(Roles { query, key, table });
        }
        if mask.any(|term| term.tree) {
            side.tree_bits = Some(tree_bits(&named("tree_bits", "tree")?, query_len)?);
        }
        if mask.any(|term| term.dense) {
            let tensor = named("mask", "dense")?;
            let sizes = [own_batch, own_head, query_len, key_len];
            let [b, h, ..] = tensor.shape("[B|1, Hq|1, Nq, Nk]", sizes)?;
            let bits = pack_mask(&tensor.bools()?, shape.key_len);
            side.dense_mask = Some((bits, broadcast(b, h)));
        }
        Ok(side)
    }

    /// The arrays, borrowed.
    pub fn arrays(&self) -> Arrays<'_> {
        fn array(words: &Option<Vec<u32>>) -> Option<Array<'_>> {
            words.as_deref().map(Array::u32)
        }
        let mut arrays = Arrays::default();
        arrays.query_offset = array(&self.query_offset);
        arrays.alibi_slopes = array(&self.alibi_slopes);
        arrays.key_bias = self.key_bias.as_ref().map(|(words, _)| Array::u32(words));
        arrays.sinks = array(&self.sinks);
        if let Some([query, key]) = &self.documents {
            arrays.query_starts = Some(Array::u32(query));
            arrays.key_starts = Some(Array::u32(key));
        }
        arrays.key_lengths = array(&self.key_lengths);
        if let Some(Roles { query, key, table }) = &self.roles {
            arrays.query_roles = Some(Array::u32(query));
            arrays.key_roles = Some(Array::u32(key));
            arrays.role_table = Some(Array::u32(table));
        }
        arrays.tree_bits = array(&self.tree_bits);
        arrays.dense_mask =
            self.dense_mask.as_ref().map(|(words, broadcast)| (Array::u32(words), *broadcast));
        arrays
    }
}

/// How an array whose leading axes have these sizes is shared.
pub fn broadcast(batch: u32, heads: u32) -> Broadcast {
    Broadcast { per_batch: batch != 1, per_head: heads != 1 }
}

fn float_words(tensor: &Tensor<'_>) -> Result<Vec<u32>> {
    Ok(tensor.floats()?.into_iter().map(f32::to_bits).collect())
}

/// A table `[R, R]` as the library's eight words, and R.
fn role_table(tensor: &Tensor<'_>) -> Result<(Vec<u32>, u32)> {
    let [rows, columns] = tensor.shape("[R, R]", [Size::Any; 2])?;
    if rows != columns || !(1..=MAX_ROLES).contains(&rows) {
        let expected = format!("shape [R, R] with 1 to {MAX_ROLES} roles R");
        return Err(tensor.error(expected, format!("shape [{rows}, {columns}]")).into());
    }
    let sees = tensor.integers()?;
    let mut words = vec![0; MAX_ROLES as usize];
    for (word, row) in words.iter_mut().zip(sees.chunks(rows as usize)) {
        for (role, &sees) in row.iter().enumerate() {
            *word |= u32::from(sees != 0) << role;
        }
    }
    Ok((words, rows))
}

/// `[Nq]` integers of up to 64 bits, or `[Nq, 2]` of 32 with the low word first, as pairs of words.
fn tree_bits(tensor: &Tensor<'_>, query_len: Size) -> Result<Vec<u32>> {
    if tensor.rank() == 2 {
        tensor.shape("[Nq, 2]", [query_len, Size::Is(2)])?;
        return tensor.words(*I32.start()..=*U32.end());
    }
    tensor.shape("[Nq] or [Nq, 2]", [query_len])?;
    // A negative number of 32 bits is 32 bits; one of 64 is 64.
    let mask = if tensor.bits() == 64 { u64::MAX } else { u32::MAX.into() };
    let words = |bits: i128| {
        let bits = bits as u64 & mask;
        [bits as u32, (bits >> 32) as u32]
    };
    Ok(tensor.integers()?.into_iter().flat_map(words).collect())
}
