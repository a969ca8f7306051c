//! The small side arrays that masks and score modifiers refer to.

use crate::attention::score::Broadcast;
use crate::launch::Array;

mod check;

pub(crate) use check::{TREE_NODES, check_arrays, check_host};

/// The side arrays that a configuration refers to; what it does not refer to stays `None`.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Arrays<'a> {
    /// `i32 [batch]`: the offsets of [`Positions::PerBatch`](crate::Positions::PerBatch).
    pub query_offset: Option<Array<'a>>,
    /// `u32 [docs + 1]`, ascending: where each document's queries start, and the last one's end.
    pub query_starts: Option<Array<'a>>,
    /// `u32 [docs + 1]`, ascending: where each document's keys start, and the last one's end.
    pub key_starts: Option<Array<'a>>,
    /// `u32 [batch]`: keys that count, from the first.
    pub key_lengths: Option<Array<'a>>,
    /// `u32 [query_len]`, each below 8: the role of each query.
    pub query_roles: Option<Array<'a>>,
    /// `u32 [key_len]`, each below 8: the role of each key.
    pub key_roles: Option<Array<'a>>,
    /// `u32 [8]`: bit `r` of word `q` is set when queries of role `q` see keys of role `r`.
    pub role_table: Option<Array<'a>>,
    /// `u32 [query_len, 2]`: 64 bits a query, low word first; bit `n` is set when the query sees
    /// node `n` of its tree.
    pub tree_bits: Option<Array<'a>>,
    /// `u32 [batch | 1, query_heads | 1, query_len, ⌈key_len / 32⌉]`: a bit a pair, see
    /// [`pack_mask`](crate::mask::pack_mask).
    pub dense_mask: Option<(Array<'a>, Broadcast)>,
    /// `u32 [rows + 1]`, ascending from 0: where each row of the lists of [`Keys`](crate::Keys)
    /// starts among the entries, and the last one's end.
    pub list_offsets: Option<Array<'a>>,
    /// `u32 [entries]`: the entries of all rows, see [`Keys`](crate::Keys).
    pub list_entries: Option<Array<'a>>,
    /// `f32 [query_heads]`: ALiBi's slopes.
    pub alibi_slopes: Option<Array<'a>>,
    /// `f32 [batch | 1, query_heads | 1, key_len]`: a bias per key.
    pub key_bias: Option<Array<'a>>,
    /// `f32 [query_heads]`: the logits of [`Score::sinks`](crate::Score::sinks).
    pub sinks: Option<Array<'a>>,
}
