//! The mask axis: which pairs of a query and a key count.
//!
//! A [`Mask`] is data. It is held in its normal form, an OR of at most four AND-[`Term`]s, and
//! every term is, for one query, a range of keys and up to three tests of single pairs (roles,
//! tree, dense bits). The kernels merge the ranges of a block of queries first and never load a
//! tile outside of them; the tests run on the tiles that need them. [`MaskRows`] is the host's
//! twin of what the kernels do, and the one the reference uses.
//!
//! # Where the queries stand
//!
//! Query `i` stands at position `i' = i + offset` among the keys, and [`Positions`] says what the
//! offset is. By default the last query stands at the last key: `offset = key_len − query_len`.
//! `causal` on 2 queries (rows) and 5 keys (columns), and on 5 queries and 2 keys, where the first
//! three queries see nothing (1 = kept):
//!
//! ```text
//! 1 1 1 1 0      0 0
//! 1 1 1 1 1      0 0
//!                0 0
//!                1 0
//!                1 1
//! ```
//!
//! The same sizes with [`Positions::TopLeft`], or with the word `causal_top_left`:
//!
//! ```text
//! 1 0 0 0 0      1 0
//! 1 1 0 0 0      1 1
//!                1 1
//!                1 1
//!                1 1
//! ```
//!
//! [`Positions`]: crate::Positions
//! [`Positions::TopLeft`]: crate::Positions::TopLeft
//!
//! # Words together
//!
//! `window(1,0) | sink(2)`, a streaming head, on 7 queries and 7 keys; and `causal & documents`
//! on as many, packed from a document of 3 and one of 4. In a term with `documents`, every word
//! counts from the start of the document:
//!
//! ```text
//! 1 1 0 0 0 0 0      1 0 0 0 0 0 0
//! 1 1 0 0 0 0 0      1 1 0 0 0 0 0
//! 1 1 1 0 0 0 0      1 1 1 0 0 0 0
//! 1 1 1 1 0 0 0      0 0 0 1 0 0 0
//! 1 1 0 1 1 0 0      0 0 0 1 1 0 0
//! 1 1 0 0 1 1 0      0 0 0 1 1 1 0
//! 1 1 0 0 0 1 1      0 0 0 1 1 1 1
//! ```
//!
//! The last two queries of the first, as a block, walk keys 0 to 1 and 4 to 6, the ranges of its
//! two terms; keys 2 and 3 are never loaded.
//!
//! # Trees
//!
//! For speculative decoding, `tree`: keys below the offset are committed, and every query sees
//! them; key `offset + n` is node `n` of a tree of up to 64 nodes, and a query sees it when its
//! bit `n` of [`Arrays::tree_bits`](crate::Arrays::tree_bits) is set. Keys past the nodes are not
//! seen. There are at most 64 queries then, or as many in each document.

use std::collections::HashSet;
use std::ops::{BitAnd, BitOr};

use crate::error::Error;

mod rows;
mod text;

pub use rows::{MaskRow, MaskRows, pack_mask};

/// The most AND-terms a mask may have.
pub const MAX_TERMS: usize = 4;

/// The most roles a role table may have.
pub const MAX_ROLES: u32 = 8;

/// Which pairs count: an OR of at most [`MAX_TERMS`] AND-terms.
///
/// ```
/// use wgpu_attention::Mask;
/// let mask: Mask = "causal & (window(255,0) | sink(4))".parse()?;
/// assert_eq!(mask, Mask::causal() & (Mask::window(Some(255), Some(0)) | Mask::sink(4)));
/// # Ok::<(), wgpu_attention::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Mask {
    /// The terms; a pair counts when one of them keeps it.
    terms: Vec<Term>,
}

/// One AND-term: a pair counts when every word that is set keeps it.
///
/// With `i' = i + offset` (see [`Positions`](crate::Positions)); in a term with `documents`,
/// `i'`, `j`, `sink`, `prefix` and `lengths` count from the start of the document.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Term {
    /// `j ≤ i'`.
    pub causal: bool,
    /// `j ≤ i`: causal with offset 0.
    pub causal_top_left: bool,
    /// `i' − left ≤ j ≤ i' + right`; `None` is no bound on that side.
    pub window: Option<(Option<u32>, Option<u32>)>,
    /// `j < n`: the first keys.
    pub sink: Option<u32>,
    /// `j < n`: a prefix that everyone sees.
    pub prefix: Option<u32>,
    /// Query and key lie in the same document.
    pub documents: bool,
    /// `j < key_lengths[b]`.
    pub lengths: bool,
    /// The role table lets the query's role see the key's.
    pub roles: bool,
    /// The key is committed (`j < offset`) or the query's tree bit for node `j − offset` is set.
    pub tree: bool,
    /// The dense mask has the pair's bit set.
    pub dense: bool,
}

impl Mask {
    fn word(set: impl FnOnce(&mut Term)) -> Self {
        let mut term = Term::default();
        set(&mut term);
        Self { terms: vec![term] }
    }

    /// The OR of terms, each once and in the order of their first appearance.
    fn distinct(terms: impl Iterator<Item = Term>) -> Self {
        let mut seen = HashSet::new();
        Self { terms: terms.filter(|term| seen.insert(term.clone())).collect() }
    }

    /// Every pair counts.
    pub fn full() -> Self {
        Self::word(|_| {})
    }

    /// `j ≤ i'`.
    pub fn causal() -> Self {
        Self::word(|t| t.causal = true)
    }

    /// `j ≤ i`, whatever the offset.
    pub fn causal_top_left() -> Self {
        Self::word(|t| t.causal_top_left = true)
    }

    /// `i' − left ≤ j ≤ i' + right`: `left` earlier and `right` later keys besides the query's
    /// own position; `None` for no bound.
    pub fn window(left: Option<u32>, right: Option<u32>) -> Self {
        Self::word(|t| t.window = Some((left, right)))
    }

    /// The first `n` keys.
    pub fn sink(n: u32) -> Self {
        Self::word(|t| t.sink = Some(n))
    }

    /// Keys `j < n`.
    pub fn prefix(n: u32) -> Self {
        Self::word(|t| t.prefix = Some(n))
    }

    /// Pairs within one document.
    pub fn documents() -> Self {
        Self::word(|t| t.documents = true)
    }

    /// Keys below the batch entry's key length.
    pub fn lengths() -> Self {
        Self::word(|t| t.lengths = true)
    }

    /// Pairs that the role table allows.
    pub fn roles() -> Self {
        Self::word(|t| t.roles = true)
    }

    /// Committed keys, and nodes whose tree bit is set.
    pub fn tree() -> Self {
        Self::word(|t| t.tree = true)
    }

    /// Pairs whose bit in the dense mask is set.
    pub fn dense() -> Self {
        Self::word(|t| t.dense = true)
    }

    /// The AND-terms.
    pub fn terms(&self) -> &[Term] {
        &self.terms
    }

    /// Whether some term satisfies `test`; for asking which arrays a mask refers to.
    pub fn any(&self, test: impl Fn(&Term) -> bool) -> bool {
        self.terms.iter().any(test)
    }

    /// Checks that there are not more than [`MAX_TERMS`] terms.
    pub fn validate(&self) -> Result<(), Error> {
        if self.terms.len() > MAX_TERMS {
            return Err(Error::config(
                "mask",
                format!("at most {MAX_TERMS} AND-terms once brackets are multiplied out"),
                format!("{} terms: {self}", self.terms.len()),
            ));
        }
        Ok(())
    }
}

impl Default for Mask {
    fn default() -> Self {
        Self::full()
    }
}

impl Term {
    /// Both terms' words at once. Numbers of one word join to the narrower of the two.
    fn and(&self, other: &Self) -> Self {
        // A bound that is absent is the wider one.
        fn narrower(a: Option<u32>, b: Option<u32>) -> Option<u32> {
            match (a, b) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            }
        }
        Self {
            causal: self.causal || other.causal,
            causal_top_left: self.causal_top_left || other.causal_top_left,
            window: match (self.window, other.window) {
                (Some(a), Some(b)) => Some((narrower(a.0, b.0), narrower(a.1, b.1))),
                (a, b) => a.or(b),
            },
            sink: narrower(self.sink, other.sink),
            prefix: narrower(self.prefix, other.prefix),
            documents: self.documents || other.documents,
            lengths: self.lengths || other.lengths,
            roles: self.roles || other.roles,
            tree: self.tree || other.tree,
            dense: self.dense || other.dense,
        }
    }

    /// Whether single pairs must be tested beyond the range of keys.
    pub const fn tests_pairs(&self) -> bool {
        self.roles || self.tree || self.dense
    }
}

impl BitOr for Mask {
    type Output = Self;

    /// Pairs that either mask keeps.
    fn bitor(self, other: Self) -> Self {
        Self::distinct(self.terms.into_iter().chain(other.terms))
    }
}

impl BitAnd for Mask {
    type Output = Self;

    /// Pairs that both masks keep; brackets are multiplied out.
    fn bitand(self, other: Self) -> Self {
        Self::distinct(self.terms.iter().flat_map(|a| other.terms.iter().map(|b| a.and(b))))
    }
}
