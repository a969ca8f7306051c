//! The host's twin of the kernels' mask: ranges of keys, and tests of single pairs.

use std::ops::Range;

use crate::{Arrays, Attention, Error};

/// A mask with everything its words refer to, ready to be asked row by row.
#[derive(Clone, Copy, Debug)]
pub struct MaskRows<'a> {
    attention: &'a Attention,
    arrays: &'a Arrays<'a>,
}

impl<'a> MaskRows<'a> {
    /// Checks that every array that mask, positions (and ALiBi's position rule) refer to is on the host, of the right length and
    /// with values in range.
    pub fn new(attention: &'a Attention, arrays: &'a Arrays<'a>) -> Result<Self, Error> {
        let _ = (attention, arrays);
        unimplemented!()
    }

    /// The keys of AND-term `term` that query `query` of batch entry `batch` may see as far as ranges tell
    /// (empty: `start >= end` normalised to 0..0), clipped to `0..key_len`.
    pub fn range(&self, term: usize, batch: u32, query: u32) -> Range<u32> {
        let _ = (self.attention, self.arrays, term, batch, query);
        unimplemented!()
    }

    /// Whether the pair counts.
    pub fn keeps(&self, batch: u32, head: u32, query: u32, key: u32) -> bool {
        let _ = (batch, head, query, key);
        unimplemented!()
    }

    /// The merged, disjoint, ascending ranges of keys that a block of queries walks.
    pub fn block_ranges(&self, batch: u32, queries: Range<u32>) -> Vec<Range<u32>> {
        let _ = (batch, queries);
        unimplemented!()
    }

    /// `i'` as an index of `0..key_len`-space (may lie outside): ALiBi's distance is `|position − j|`.
    /// Document-relative offsets when every term has `documents`.
    pub fn position(&self, batch: u32, query: u32) -> i64 {
        let _ = (batch, query);
        unimplemented!()
    }
}

/// Packs a boolean mask `[.., query_len, key_len]`, row by row, into the bits that
/// [`Arrays::dense_mask`] takes: `⌈key_len / 32⌉` words a row, lowest bit first.
pub fn pack_mask(keep: &[bool], key_len: u32) -> Vec<u32> {
    let _ = (keep, key_len);
    unimplemented!()
}
