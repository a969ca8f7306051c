//! The keys axis on the command line: lists from tensors and from patterns.

use clap::ValueEnum;
use wgpu_attention::{Attention, Keys, ListHeads, Lists};

/// The kinds of lists.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ListKind {
    /// Blocks of keys.
    Blocks,
    /// Single keys.
    Indices,
}

impl ListKind {
    /// Lists for each query head; those of single keys are shared by all queries.
    pub fn keys(self, (block_q, block_k): (u32, u32), attention: &Attention) -> Keys {
        let lists = Lists { per_batch: false, heads: ListHeads::QueryHead };
        match self {
            Self::Blocks => Keys::Blocks { block_q, block_k, lists },
            Self::Indices => {
                let block_q = attention.shape.query_len.next_multiple_of(128).max(128);
                Keys::Indices { block_q, lists }
            }
        }
    }
}

/// Block sizes as one number or two.
pub fn parse_block(text: &str) -> Result<(u32, u32), String> {
    let number = |text: &str| text.trim().parse::<u32>().ok();
    let (q, k) = text.split_once(',').unwrap_or((text, text));
    match (number(q), number(k)) {
        (Some(q), Some(k)) => Ok((q, k)),
        _ => Err("expected a number of tokens, or two: queries,keys".into()),
    }
}
