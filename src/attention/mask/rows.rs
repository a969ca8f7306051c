//! The host's twin of the kernels' mask: ranges of keys, and tests of single pairs.

use std::array;
use std::ops::Range;

use super::{MAX_TERMS, Mask, Term};
use crate::attention::arrays::Arrays;
use crate::attention::arrays::{TREE_NODES, check_arrays, check_host};
use crate::attention::score::Broadcast;
use crate::attention::{Attention, Positions};
use crate::error::Error;
use crate::launch::Array;
use crate::shape::Shape;

/// A mask with everything its words refer to, ready to be asked row by row.
///
/// A batch entry, head, query or key outside of the shape has no keys and is never kept.
#[derive(Clone, Copy, Debug)]
pub struct MaskRows<'a> {
    shape: Shape,
    mask: &'a Mask,
    positions: Positions,
    // What the configuration does not refer to is empty.
    query_offset: &'a [u32],
    query_starts: &'a [u32],
    key_starts: &'a [u32],
    key_lengths: &'a [u32],
    query_roles: &'a [u32],
    key_roles: &'a [u32],
    role_table: &'a [u32],
    tree_bits: &'a [u32],
    dense: &'a [u32],
    dense_broadcast: Broadcast,
}

/// One query's row of a mask: the key ranges of its AND-terms, found once for many pairs.
#[derive(Clone, Debug)]
pub struct MaskRow<'a> {
    rows: &'a MaskRows<'a>,
    batch: u32,
    query: u32,
    ranges: [Range<u32>; MAX_TERMS],
    /// The key of each term's tree node 0.
    tree_starts: [i64; MAX_TERMS],
    /// Bit `n`: the query sees node `n`.
    tree_bits: u64,
    /// Bit `r`: the query sees keys of role `r`.
    seen_roles: u32,
}

/// What a term counts its queries and keys from, for one query: the whole sequence or a document.
#[derive(Clone, Copy)]
struct Frame {
    /// Its first key.
    key_start: i64,
    /// Its number of keys.
    key_len: i64,
    /// The query, counted from its first one.
    query: i64,
    /// What takes the query to its position among the keys.
    offset: i64,
}

impl<'a> MaskRows<'a> {
    /// Gathers what the mask and the positions of `attention` refer to.
    ///
    /// Fails if the configuration is not valid, or with [`Error::Tensor`] if an array that it
    /// refers to is missing, not on the host, of the wrong length or with a value out of range,
    /// or if an array is given that it does not refer to.
    pub fn new(attention: &'a Attention, arrays: &'a Arrays<'a>) -> Result<Self, Error> {
        attention.validate()?;
        check_arrays(attention, arrays)?;
        check_host(arrays)?;
        let host = |array: Option<Array<'a>>| array.and_then(|a| a.host()).unwrap_or_default();
        let (dense, dense_broadcast) = arrays.dense_mask.unzip();
        Ok(Self {
            shape: attention.shape,
            mask: &attention.mask,
            positions: attention.positions,
            query_offset: host(arrays.query_offset),
            query_starts: host(arrays.query_starts),
            key_starts: host(arrays.key_starts),
            key_lengths: host(arrays.key_lengths),
            query_roles: host(arrays.query_roles),
            key_roles: host(arrays.key_roles),
            role_table: host(arrays.role_table),
            tree_bits: host(arrays.tree_bits),
            dense: host(dense),
            dense_broadcast: dense_broadcast.unwrap_or(Broadcast::SHARED),
        })
    }

    /// The row of query `query` of batch entry `batch`, for asking about many of its pairs.
    pub fn row(&self, batch: u32, query: u32) -> MaskRow<'_> {
        let frames: [_; MAX_TERMS] = array::from_fn(|term| {
            let term = self.mask.terms().get(term)?;
            Some((term, self.frame(term, batch, query)?))
        });
        let role = value(self.query_roles, query.into());
        let low = value(self.tree_bits, 2 * u64::from(query));
        let high = value(self.tree_bits, 2 * u64::from(query) + 1);
        MaskRow {
            rows: self,
            batch,
            query,
            ranges: frames.map(|frame| frame.map_or(0..0, |(term, f)| self.keys(term, f, batch))),
            tree_starts: frames.map(|frame| frame.map_or(0, |(_, f)| f.key_start + f.offset)),
            tree_bits: u64::from(high) << 32 | u64::from(low),
            seen_roles: value(self.role_table, role.into()),
        }
    }

    /// The keys of AND-term `term` that query `query` of batch entry `batch` may see as far as
    /// ranges tell, within `0..key_len`; `0..0` if there are none.
    pub fn range(&self, term: usize, batch: u32, query: u32) -> Range<u32> {
        let Some(term) = self.mask.terms().get(term) else { return 0..0 };
        self.frame(term, batch, query).map_or(0..0, |frame| self.keys(term, frame, batch))
    }

    /// Whether the pair counts. For many pairs of one row, ask its [`MaskRows::row`].
    pub fn keeps(&self, batch: u32, head: u32, query: u32, key: u32) -> bool {
        self.row(batch, query).keeps(head, key)
    }

    /// The merged, disjoint, ascending ranges of keys that a block of queries walks: of each
    /// AND-term the smallest range that covers its rows' ranges, joined where they touch.
    pub fn block_ranges(&self, batch: u32, queries: Range<u32>) -> Vec<Range<u32>> {
        let queries = queries.start..queries.end.min(self.shape.query_len);
        let covers = (0..self.mask.terms().len()).filter_map(|term| {
            let rows = queries.clone().map(|query| self.range(term, batch, query));
            let rows = rows.filter(|range| !range.is_empty());
            rows.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end))
        });
        let mut covers: Vec<_> = covers.collect();
        covers.sort_by_key(|range| range.start);
        covers.dedup_by(|next, last| {
            let joins = next.start <= last.end;
            if joins {
                last.end = last.end.max(next.end);
            }
            joins
        });
        covers
    }

    /// Where the query stands among the keys, `i'`, as an index of a key; it may lie outside of
    /// `0..key_len`. ALiBi's distance is `|position − j|`.
    ///
    /// Within a query's document when every AND-term has `documents`, else (and for a query
    /// outside of all documents) within the whole sequence.
    pub fn position(&self, batch: u32, query: u32) -> i64 {
        let in_documents = self.mask.terms().iter().all(|term| term.documents);
        let document = if in_documents { self.document(batch, query) } else { None };
        let frame = document.unwrap_or_else(|| self.sequence(batch, query));
        frame.key_start + frame.query + frame.offset
    }

    /// What `term` counts from; `None` for a query outside of the shape or of all documents.
    fn frame(&self, term: &Term, batch: u32, query: u32) -> Option<Frame> {
        if batch >= self.shape.batch || query >= self.shape.query_len {
            return None;
        }
        if term.documents { self.document(batch, query) } else { Some(self.sequence(batch, query)) }
    }

    fn sequence(&self, batch: u32, query: u32) -> Frame {
        let key_len = i64::from(self.shape.key_len);
        let counted = if self.mask.any(|term| term.lengths) {
            i64::from(value(self.key_lengths, batch.into()))
        } else {
            key_len
        };
        let query_len = i64::from(self.shape.query_len);
        let offset = self.offset(batch, counted - query_len);
        Frame { key_start: 0, key_len, query: query.into(), offset }
    }

    fn document(&self, batch: u32, query: u32) -> Option<Frame> {
        // The last document that starts at or before the query: those before it that start there
        // too are empty. It ends after the query, since its end is the next one's start.
        let document = self.query_starts.partition_point(|&start| start <= query).checked_sub(1)?;
        let bounds = |starts: &[u32]| match starts.get(document..document + 2)? {
            &[start, end] => Some((i64::from(start), i64::from(end) - i64::from(start))),
            _ => None,
        };
        let (query_start, query_len) = bounds(self.query_starts)?;
        let (key_start, key_len) = bounds(self.key_starts)?;
        let offset = self.offset(batch, key_len - query_len);
        Some(Frame { key_start, key_len, query: i64::from(query) - query_start, offset })
    }

    fn offset(&self, batch: u32, bottom_right: i64) -> i64 {
        match self.positions {
            Positions::BottomRight => bottom_right,
            Positions::TopLeft => 0,
            Positions::PerBatch => value(self.query_offset, batch.into()).cast_signed().into(),
        }
    }

    /// The range of keys that the words of `term` leave of a frame.
    fn keys(&self, term: &Term, frame: Frame, batch: u32) -> Range<u32> {
        let position = frame.query + frame.offset;
        let (left, right) = term.window.unwrap_or((None, None));
        let start = left.map_or(0, |left| position - i64::from(left)).max(0);
        let ends = [
            term.causal.then_some(position + 1),
            term.causal_top_left.then_some(frame.query + 1),
            right.map(|right| position + i64::from(right) + 1),
            term.sink.map(i64::from),
            term.prefix.map(i64::from),
            term.lengths.then(|| value(self.key_lengths, batch.into()).into()),
            term.tree.then_some(frame.offset + i64::from(TREE_NODES)),
        ];
        let end = ends.into_iter().flatten().fold(frame.key_len, i64::min);
        if start >= end {
            return 0..0;
        }
        // Both lie in the frame, and the frame in 0..key_len: `new` has checked the starts.
        (frame.key_start + start) as u32..(frame.key_start + end) as u32
    }
}

impl MaskRow<'_> {
    /// The range of keys of each AND-term, as [`MaskRows::range`] gives it.
    pub fn ranges(&self) -> &[Range<u32>] {
        &self.ranges[..self.rows.mask.terms().len()]
    }

    /// Whether the pair with `key` counts for query head `head`.
    pub fn keeps(&self, head: u32, key: u32) -> bool {
        let terms = self.rows.mask.terms().iter().zip(&self.ranges).zip(&self.tree_starts);
        head < self.rows.shape.query_heads
            && terms.into_iter().any(|((term, range), &tree_start)| {
                range.contains(&key)
                    && (!term.roles || self.sees_role(key))
                    && (!term.tree || self.sees_node(i64::from(key) - tree_start))
                    && (!term.dense || self.dense_bit(head, key))
            })
    }

    fn sees_role(&self, key: u32) -> bool {
        self.seen_roles >> value(self.rows.key_roles, key.into()) & 1 == 1
    }

    /// Keys before the tree are committed: everyone sees them.
    fn sees_node(&self, node: i64) -> bool {
        node < 0 || self.tree_bits >> node & 1 == 1
    }

    fn dense_bit(&self, head: u32, key: u32) -> bool {
        let MaskRows { shape, dense, dense_broadcast: own, .. } = *self.rows;
        let (_, heads) = own.sizes(shape.batch, shape.query_heads);
        let batch = if own.per_batch { u64::from(self.batch) } else { 0 };
        let head = if own.per_head { u64::from(head) } else { 0 };
        let row =
            (batch * u64::from(heads) + head) * u64::from(shape.query_len) + u64::from(self.query);
        let words = u64::from(shape.key_len.div_ceil(32));
        value(dense, row * words + u64::from(key / 32)) >> (key % 32) & 1 == 1
    }
}

/// A value of an array whose length was checked; 0 for an index outside of the shape.
fn value(values: &[u32], index: u64) -> u32 {
    values.get(index as usize).copied().unwrap_or(0)
}

/// Packs a boolean mask `[.., query_len, key_len]`, row by row, into the bits that
/// [`Arrays::dense_mask`] takes: `⌈key_len / 32⌉` words a row, lowest bit first.
///
/// Pairs that are missing from a last, incomplete row are masked.
///
/// ```
/// use wgpu_attention::mask::pack_mask;
/// assert_eq!(pack_mask(&[true, false, true, false, true, true], 3), [0b101, 0b110]);
/// ```
pub fn pack_mask(keep: &[bool], key_len: u32) -> Vec<u32> {
    if key_len == 0 {
        return Vec::new();
    }
    let words = key_len.div_ceil(32) as usize;
    let key_len = key_len as usize;
    let mut packed = vec![0; keep.len().div_ceil(key_len) * words];
    for (row, bits) in keep.chunks(key_len).zip(packed.chunks_mut(words)) {
        for (key, &keep) in row.iter().enumerate() {
            bits[key / 32] |= u32::from(keep) << (key % 32);
        }
    }
    packed
}
