//! Lists on the host: built from block masks, masks and rows, and asked about pairs.

use std::ops::Range;

use super::{FULL, Keys, ListHeads, Lists, check_lists};
use crate::attention::Attention;
use crate::attention::arrays::Arrays;
use crate::attention::mask::MaskRows;
use crate::error::Error;
use crate::launch::Array;
use crate::shape::Shape;
use crate::tensor::DType;

/// A list of keys on the host, with the choice of [`Keys`] that it is for.
///
/// ```
/// use wgpu_attention::{Attention, DType, KeyList, Keys, Lists, Shape};
/// let shape = Shape::new(1, 8, 256, 64);
/// let keys = Keys::Blocks { block_q: 128, block_k: 64, lists: Lists::SHARED };
/// // Both blocks of queries see the first keys, the second block its own too.
/// let list = KeyList::from_rows(keys, &shape, &[vec![0], vec![0, 128, 192]])?;
/// let attention = Attention::new(shape, DType::F32).with_keys(list.keys);
/// assert_eq!(list.offsets, [0, 1, 4]);
/// # Ok::<(), wgpu_attention::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyList {
    /// Blocks or single keys, and who shares them.
    pub keys: Keys,
    /// `[rows + 1]`, for [`Arrays::list_offsets`].
    pub offsets: Vec<u32>,
    /// All rows' entries, for [`Arrays::list_entries`].
    pub entries: Vec<u32>,
}

impl KeyList {
    /// A list in the form in which plans take it.
    ///
    /// # Errors
    /// As those of binding such a list; [`Keys::Dense`].
    pub fn new(
        keys: Keys,
        shape: &Shape,
        offsets: Vec<u32>,
        entries: Vec<u32>,
    ) -> Result<Self, Error> {
        Self { keys, offsets, entries }.checked(shape)
    }

    /// A list of the given rows, in the order `[batch | 1, heads | 1, ⌈query_len / block_q⌉]`.
    ///
    /// # Errors
    /// As those of binding such a list: a wrong number of rows, entries that are out of range or
    /// do not ascend, [`Keys::Dense`].
    pub fn from_rows(keys: Keys, shape: &Shape, rows: &[Vec<u32>]) -> Result<Self, Error> {
        let mut list = Self { keys, offsets: vec![0], entries: Vec::new() };
        for row in rows {
            list.push_row(row.iter().copied());
        }
        list.checked(shape)
    }

    /// A block list from a boolean per block, `[batch | 1, heads | 1, ⌈query_len / block_q⌉,
    /// ⌈key_len / block_k⌉]`, true where the block is visited.
    ///
    /// # Errors
    /// A mask of the wrong length; `keys` that are no [`Keys::Blocks`].
    pub fn from_block_mask(keys: Keys, shape: &Shape, mask: &[bool]) -> Result<Self, Error> {
        let Keys::Blocks { block_k, .. } = keys else {
            return Err(Error::config(
                "keys",
                "a list of blocks, for a block mask",
                keys.describe(),
            ));
        };
        keys.validate()?;
        let columns = shape.key_len.div_ceil(block_k);
        let expected = keys.rows(shape) * u64::from(columns);
        if mask.len() as u64 != expected {
            let (batch, heads) = keys.lists().sizes(shape);
            let axes = [batch, heads, keys.query_blocks(shape), columns];
            return Err(Error::tensor(
                "block_mask",
                format!("{expected} values of shape {axes:?}"),
                format!("{} values", mask.len()),
            ));
        }
        let mut list = Self { keys, offsets: vec![0], entries: Vec::new() };
        for row in 0..keys.rows(shape) as usize {
            let blocks = &mask[row * columns as usize..][..columns as usize];
            let kept = (0..columns).filter(|&block| blocks[block as usize]);
            list.push_row(kept.map(|block| block * block_k));
        }
        list.checked(shape)
    }

    /// The block list of a configuration's mask: aligned blocks in which some pair counts, marked
    /// full where all do. It leaves the results as they are.
    ///
    /// Lists are shared along the axes that the mask does not tell apart. The time it takes grows
    /// with `query_len` times the number of blocks per row, and where the mask tests single pairs
    /// with the number of pairs.
    ///
    /// # Errors
    /// As those of [`MaskRows::new`]; block sizes that [`Keys`] does not allow.
    pub fn from_mask(
        attention: &Attention,
        arrays: &Arrays<'_>,
        (block_q, block_k): (u32, u32),
    ) -> Result<Self, Error> {
        let attention = &attention.clone().with_keys(Keys::Dense);
        let arrays = &Arrays { list_offsets: None, list_entries: None, ..*arrays };
        let masks = MaskRows::new(attention, arrays)?;
        let dense = arrays.dense_mask.map(|(_, broadcast)| broadcast);
        let per_head = dense.is_some_and(|broadcast| broadcast.per_head);
        let lists = Lists {
            per_batch: attention.positions == crate::attention::Positions::PerBatch
                || attention.mask.any(|term| term.lengths)
                || dense.is_some_and(|broadcast| broadcast.per_batch),
            heads: if per_head { ListHeads::QueryHead } else { ListHeads::Shared },
        };
        let keys = Keys::Blocks { block_q, block_k, lists };
        keys.validate()?;
        let shape = &attention.shape;
        let (batches, heads) = lists.sizes(shape);
        let mut list = Self { keys, offsets: vec![0], entries: Vec::new() };
        for batch in 0..batches {
            for head in 0..heads {
                for block in 0..keys.query_blocks(shape) {
                    let start = block * block_q;
                    let queries = start..(start + block_q).min(shape.query_len);
                    list.push_row(classify(attention, &masks, (batch, head, queries), block_k));
                }
            }
        }
        list.checked(shape)
    }

    /// The entries of a row.
    pub(super) fn row(&self, row: usize) -> &[u32] {
        match self.offsets.get(row..row + 2) {
            Some(&[start, end]) => &self.entries[start as usize..end as usize],
            _ => &[],
        }
    }

    /// Adds a row of entries.
    pub(super) fn push_row(&mut self, entries: impl IntoIterator<Item = u32>) {
        self.entries.extend(entries);
        self.offsets.push(self.entries.len() as u32);
    }

    /// The list, if a plan would take it.
    pub(super) fn checked(self, shape: &Shape) -> Result<Self, Error> {
        self.keys.validate()?;
        let attention = Attention::new(*shape, DType::F32).with_keys(self.keys);
        check_lists(&attention, &self.arrays(Arrays::default()))?;
        Ok(self)
    }

    /// `arrays` with this list in them.
    pub fn arrays<'a>(&'a self, mut arrays: Arrays<'a>) -> Arrays<'a> {
        arrays.list_offsets = Some(Array::u32(&self.offsets));
        arrays.list_entries = Some(Array::u32(&self.entries));
        arrays
    }

    /// The keys that are visited, as a share of those there are, on average over rows.
    pub fn density(&self, shape: &Shape) -> f64 {
        let block_k = self.keys.block_k();
        let visited = |&entry: &u32| f64::from(block_k.min(shape.key_len - (entry & !FULL)));
        let rows = self.offsets.len() as f64 - 1.0;
        self.entries.iter().map(visited).sum::<f64>() / (rows * f64::from(shape.key_len)).max(1.0)
    }
}

/// The entries of the blocks in which the mask keeps a pair.
fn classify(
    attention: &Attention,
    masks: &MaskRows<'_>,
    (batch, head, queries): (u32, u32, Range<u32>),
    block_k: u32,
) -> Vec<u32> {
    let terms = attention.mask.terms();
    let rows: Vec<_> = queries.clone().map(|query| masks.row(batch, query)).collect();
    let mut entries = Vec::new();
    let mut next = 0;
    for range in masks.block_ranges(batch, queries) {
        for block in (range.start / block_k).max(next)..range.end.div_ceil(block_k) {
            next = block + 1;
            let keys = block * block_k..((block + 1) * block_k).min(attention.shape.key_len);
            let live = rows.iter().any(|row| {
                row.ranges().iter().zip(terms).any(|(range, term)| {
                    let mut common = range.start.max(keys.start)..range.end.min(keys.end);
                    if term.tests_pairs() {
                        common.any(|key| row.keeps(head, key))
                    } else {
                        !common.is_empty()
                    }
                })
            });
            let keeps_all = || {
                rows.iter().all(|row| {
                    let covers = |(range, term): (&Range<u32>, &crate::attention::mask::Term)| {
                        !term.tests_pairs() && range.start <= keys.start && keys.end <= range.end
                    };
                    row.ranges().iter().zip(terms).any(covers)
                        || keys.clone().all(|key| row.keeps(head, key))
                })
            };
            if live {
                let full = keys.len() as u32 == block_k && keeps_all();
                entries.push(keys.start | if full { FULL } else { 0 });
            }
        }
    }
    entries
}

/// A configuration's list on the host, to be asked row by row which keys are visited; the host's
/// twin of the kernels'.
#[derive(Clone, Copy, Debug)]
pub struct KeyRows<'a> {
    shape: Shape,
    keys: Keys,
    offsets: &'a [u32],
    entries: &'a [u32],
}

/// The keys that one query visits.
#[derive(Clone, Copy, Debug)]
pub struct KeyRow<'a> {
    /// `None` for all.
    entries: Option<&'a [u32]>,
    block_k: u32,
}

impl<'a> KeyRows<'a> {
    /// Takes the list that `attention` refers to.
    ///
    /// # Errors
    /// [`Error::Tensor`] for a list that is missing, not on the host or not as [`Keys`] says.
    pub fn new(attention: &Attention, arrays: &Arrays<'a>) -> Result<Self, Error> {
        check_lists(attention, arrays)?;
        crate::attention::arrays::check_host(arrays)?;
        let host = |array: Option<Array<'a>>| array.and_then(|a| a.host()).unwrap_or_default();
        Ok(Self {
            shape: attention.shape,
            keys: attention.keys,
            offsets: host(arrays.list_offsets),
            entries: host(arrays.list_entries),
        })
    }

    /// The keys that a query visits; none outside of the shape.
    pub fn row(&self, batch: u32, head: u32, query: u32) -> KeyRow<'a> {
        let block_k = self.keys.block_k();
        if self.keys == Keys::Dense {
            return KeyRow { entries: None, block_k };
        }
        let row = self.keys.row(&self.shape, [batch, head, query]);
        let entries = match self.offsets.get(row..row + 2) {
            Some(&[start, end]) => &self.entries[start as usize..end as usize],
            _ => &[],
        };
        KeyRow { entries: Some(entries), block_k }
    }
}

impl<'a> KeyRow<'a> {
    /// Whether the key is visited.
    pub fn contains(&self, key: u32) -> bool {
        let Some(entries) = self.entries else { return true };
        let after = entries.partition_point(|entry| entry & !FULL <= key);
        after > 0 && key - (entries[after - 1] & !FULL) < self.block_k
    }

    /// The row's entries; none where all keys are visited.
    pub fn entries(&self) -> &'a [u32] {
        self.entries.unwrap_or_default()
    }
}
