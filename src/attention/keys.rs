//! The keys axis: which keys a block of queries visits.
//!
//! Dense attention visits whatever the mask leaves. A *list* says it outright: the queries are cut
//! into blocks, every block has a row of ascending entries, and only what its row names is loaded.
//! The mask holds within what is visited, so a pair counts when list and mask both keep it.
//!
//! Lists are in compressed sparse row form: [`Arrays::list_offsets`] says where each row starts in
//! [`Arrays::list_entries`]. Rows are numbered `[batch | 1, heads | 1, ⌈query_len / block_q⌉]`, as
//! [`Lists`] says. An entry is the first key that it stands for, a *token*, not the number of a
//! block: entries need not be aligned, only ascend without overlap, and the last may reach beyond
//! the last key. [`KeyList`] builds lists.
//!
//! # Full entries
//!
//! Bit 31 of an entry claims that the mask keeps every pair of the block, so that no pair needs a
//! test. Kernels find this out by themselves where the mask is made of ranges of keys, and ignore
//! the bit there. Where it tests single pairs (`roles`, `tree`, `dense`) the claims of a list on
//! the host are proven when a plan is bound, and a false one is an error; the claims of a list on
//! the device are ignored.

use crate::attention::Attention;
use crate::attention::arrays::Arrays;
use crate::attention::arrays::check_host;
use crate::attention::mask::MaskRows;
use crate::error::Error;
use crate::launch::Array;
use crate::launch::array::{check_device, within};
use crate::shape::Shape;

mod list;
mod patterns;
mod text;

pub use list::{KeyList, KeyRow, KeyRows};
pub use patterns::{Pattern, Source, moa_span, streaming_heads};

/// Bit 31 of an entry: the mask keeps every pair.
pub const FULL: u32 = 1 << 31;

/// The numbers of keys that an entry of a block list may stand for.
pub const BLOCK_KEYS: [u32; 4] = [16, 32, 64, 128];

/// Which keys a block of queries visits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Keys {
    /// All that the mask leaves.
    #[default]
    Dense,
    /// Blocks of keys, from a list.
    Blocks {
        /// Queries that share a row of the list, a multiple of 16.
        block_q: u32,
        /// Keys of an entry, one of [`BLOCK_KEYS`].
        block_k: u32,
        /// Who has lists of their own.
        lists: Lists,
    },
    /// Single keys, from a list.
    Indices {
        /// Queries that share a row of the list, a multiple of 16.
        block_q: u32,
        /// Who has lists of their own.
        lists: Lists,
    },
}

/// Along which axes there are lists of their own; along the others they are shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lists {
    /// One per batch entry rather than one for all.
    pub per_batch: bool,
    /// Which heads have one.
    pub heads: ListHeads,
}

/// Which heads have a list of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ListHeads {
    /// None: all share one.
    Shared,
    /// Each key head; the query heads that read it share one.
    KeyHead,
    /// Each query head.
    QueryHead,
}

impl Lists {
    /// Shared by all batch entries and heads.
    pub const SHARED: Self = Self { per_batch: false, heads: ListHeads::Shared };

    /// `(batch | 1, query_heads | key_heads | 1)`.
    pub const fn sizes(self, shape: &Shape) -> (u32, u32) {
        let batch = if self.per_batch { shape.batch } else { 1 };
        (batch, shape.query_heads / self.group(shape))
    }

    /// Query heads that share a list.
    pub(crate) const fn group(self, shape: &Shape) -> u32 {
        match self.heads {
            ListHeads::Shared => shape.query_heads,
            ListHeads::KeyHead => shape.query_heads / shape.key_heads,
            ListHeads::QueryHead => 1,
        }
    }
}

impl Keys {
    /// Queries that share a row of the list; `None` without a list.
    pub const fn block_q(&self) -> Option<u32> {
        match *self {
            Self::Dense => None,
            Self::Blocks { block_q, .. } | Self::Indices { block_q, .. } => Some(block_q),
        }
    }

    /// Keys that an entry stands for: 1 in a list of single keys.
    pub const fn block_k(&self) -> u32 {
        match *self {
            Self::Blocks { block_k, .. } => block_k,
            Self::Dense | Self::Indices { .. } => 1,
        }
    }

    /// Who has lists of their own.
    pub const fn lists(&self) -> Lists {
        match *self {
            Self::Dense => Lists::SHARED,
            Self::Blocks { lists, .. } | Self::Indices { lists, .. } => lists,
        }
    }

    /// The kind of keys, in words.
    pub(crate) const fn describe(&self) -> &'static str {
        match self {
            Self::Dense => "no list (dense)",
            Self::Blocks { .. } => "a list of blocks",
            Self::Indices { .. } => "a list of single keys",
        }
    }

    /// Rows per list: blocks of queries; 0 without a list.
    pub fn query_blocks(&self, shape: &Shape) -> u32 {
        // Blocks of no queries are `validate`'s to refuse, which may be asked later.
        self.block_q().map_or(0, |block_q| shape.query_len.div_ceil(block_q.max(1)))
    }

    /// Rows of all lists.
    pub fn rows(&self, shape: &Shape) -> u64 {
        let (batch, heads) = self.lists().sizes(shape);
        u64::from(batch) * u64::from(heads) * u64::from(self.query_blocks(shape))
    }

    /// The row of a query.
    pub(crate) fn row(&self, shape: &Shape, [batch, head, query]: [u32; 3]) -> usize {
        let lists = self.lists();
        let (_, heads) = lists.sizes(shape);
        let batch = if lists.per_batch { batch as usize } else { 0 };
        let list = batch * heads as usize + (head / lists.group(shape)) as usize;
        let block = query / self.block_q().unwrap_or(1);
        list * self.query_blocks(shape) as usize + block as usize
    }

    /// Checks the block sizes.
    pub fn validate(&self) -> Result<(), Error> {
        if let Some(block_q) = self.block_q().filter(|q| *q == 0 || !q.is_multiple_of(16)) {
            let expected = "queries per row of the list that are a multiple of 16";
            return Err(Error::config("keys.block_q", expected, block_q.to_string()));
        }
        match *self {
            Self::Blocks { block_k, .. } if !BLOCK_KEYS.contains(&block_k) => {
                let expected = format!("keys per entry, one of {BLOCK_KEYS:?}");
                Err(Error::config("keys.block_k", expected, block_k.to_string()))
            }
            _ => Ok(()),
        }
    }
}

/// Checks that the list is there exactly when the configuration has one, and what the host has of
/// it: lengths, ascending offsets, entries in range that ascend without overlap.
pub(crate) fn check_lists(attention: &Attention, arrays: &Arrays) -> Result<(), Error> {
    let (keys, shape) = (&attention.keys, &attention.shape);
    let (offsets, entries) = match (keys, arrays.list_offsets, arrays.list_entries) {
        (Keys::Dense, None, None) => return Ok(()),
        (Keys::Dense, ..) => {
            return Err(Error::tensor(
                "list_offsets",
                "nothing: the configuration has no list of keys",
                "a list",
            ));
        }
        (_, Some(offsets), Some(entries)) => (offsets, entries),
        (_, None, _) => return Err(missing("list_offsets")),
        (_, _, None) => return Err(missing("list_entries")),
    };
    let rows = keys.rows(shape);
    if offsets.len() as u64 != rows + 1 {
        let (batch, heads) = keys.lists().sizes(shape);
        let blocks = keys.query_blocks(shape);
        return Err(Error::tensor(
            "list_offsets",
            format!("{} values: {batch} x {heads} x {blocks} rows and the end", rows + 1),
            format!("{} values", offsets.len()),
        ));
    }
    check_device("list_offsets", offsets)?;
    check_device("list_entries", entries)?;
    if let Some(offsets) = offsets.host() {
        check_offsets(offsets, entries)?;
        if let Some(entries) = entries.host() {
            for (row, ends) in offsets.windows(2).enumerate() {
                check_row(attention, row, &entries[ends[0] as usize..ends[1] as usize])?;
            }
        }
    }
    Ok(())
}

fn missing(name: &str) -> Error {
    Error::tensor(name, "the list that the configuration's keys refer to", "nothing")
}

fn check_offsets(offsets: &[u32], entries: Array<'_>) -> Result<(), Error> {
    let refuse = |expected: String, got: String| Err(Error::tensor("list_offsets", expected, got));
    if let Some(&first) = offsets.first().filter(|&&first| first != 0) {
        return refuse("a first value of 0".into(), first.to_string());
    }
    if let Some(row) = offsets.windows(2).position(|pair| pair[0] > pair[1]) {
        let (start, end) = (offsets[row], offsets[row + 1]);
        return refuse("ascending values".into(), format!("{end} after {start} at {}", row + 1));
    }
    // Room on the device may be larger than the list in it.
    let len = entries.len() as u64;
    match (offsets.last(), entries.host()) {
        (Some(&last), Some(_)) if u64::from(last) != len => {
            refuse(format!("a last value of {len}, the number of entries"), last.to_string())
        }
        (Some(&last), None) if u64::from(last) > len => refuse(
            format!("a last value of at most {len}, the entries there is room for"),
            last.to_string(),
        ),
        _ => Ok(()),
    }
}

fn check_row(attention: &Attention, row: usize, entries: &[u32]) -> Result<(), Error> {
    let (key_len, block_k) = (attention.shape.key_len, attention.keys.block_k());
    let mut free = 0;
    for (index, entry) in entries.iter().enumerate() {
        let token = entry & !FULL;
        let place = || format!("{token} at place {index} of row {row}");
        if token >= key_len {
            let expected = within("keys", key_len.into());
            return Err(Error::tensor("list_entries", expected, place()));
        }
        if token < free {
            let expected = format!("ascending keys, each at least {block_k} after the one before");
            return Err(Error::tensor("list_entries", expected, place()));
        }
        // No overflow: keys number at most 2^28.
        free = token + block_k;
    }
    Ok(())
}

/// What kernels may believe of a list, see [`AttentionParams`](crate::params::AttentionParams):
/// 0 nothing, 1 its order, 2 its claims too.
///
/// # Errors
/// A claim of a full entry that the mask does not bear out.
pub(crate) fn trust(attention: &Attention, arrays: &Arrays) -> Result<u32, Error> {
    let host = |array: Option<Array<'_>>| array.is_some_and(|array| array.host().is_some());
    if !host(arrays.list_offsets) || !host(arrays.list_entries) {
        return Ok(0);
    }
    let claims = |entries: &[u32]| entries.iter().any(|entry| entry & FULL != 0);
    let claimed = arrays.list_entries.and_then(|array| array.host()).is_some_and(claims);
    let provable = check_host(arrays).is_ok();
    if !claimed || !provable || !attention.mask.any(crate::attention::mask::Term::tests_pairs) {
        return Ok(1);
    }
    let masks = MaskRows::new(attention, arrays)?;
    let list = KeyRows::new(attention, arrays)?;
    let shape = &attention.shape;
    for batch in 0..shape.batch {
        for head in 0..shape.query_heads {
            for query in 0..shape.query_len {
                let row = masks.row(batch, query);
                for &entry in list.row(batch, head, query).entries() {
                    let keys = entry & !FULL..(entry & !FULL) + attention.keys.block_k();
                    if entry & FULL != 0 && !keys.clone().all(|key| row.keeps(head, key)) {
                        return Err(Error::tensor(
                            "list_entries",
                            "full entries only where the mask keeps every pair",
                            format!(
                                "keys {keys:?} of query {query}, head {head}, batch entry {batch}"
                            ),
                        ));
                    }
                }
            }
        }
    }
    Ok(2)
}
