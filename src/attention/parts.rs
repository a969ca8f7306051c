//! Walks in parts, for drivers that end the loops of an invocation after so many rounds together
//! ([`Caps::loop_rounds`]): a long walk over keys is cut into parts, one dispatch each. A part leaves
//! its results where the next part goes on from them.

use super::variant::SCORES_THREADS;
use super::{Activation, Attention, Output, Tiles, Variant};
use crate::attention::keys::Keys;
use crate::caps::Caps;
use crate::error::Unsupported;
use crate::shader::{Source, Target};
use crate::tensor::DType;

/// What a plan compiles for a variant.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    pub source: Source,
    /// Positions of keys that one dispatch walks, where one cannot walk all.
    pub part: Option<u32>,
}

/// One dispatch of a piece: the positions that it walks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub first: u32,
    pub end: u32,
    /// Whether it goes on from the results of parts before it.
    pub resumes: bool,
    /// Whether no part follows.
    pub is_last: bool,
    /// Of sums over blocks: 1 finds the rows' totals, 2 adds up weights, 0 does both.
    pub pass: u32,
}

impl Part {
    /// The only one.
    const WHOLE: Self =
        Self { first: 0, end: i32::MAX as u32, resumes: false, is_last: true, pass: 0 };
}

impl Variant {
    /// The shader for a device, and how the walk over keys is cut on it.
    pub(super) fn planned(
        self,
        attention: &Attention,
        tiles: Option<&Tiles>,
        caps: &Caps,
        target: Target,
    ) -> Result<Planned, Unsupported> {
        let compose = |parts| self.source(attention, tiles, caps, target, parts);
        let source = compose(false);
        let Some(limit) = caps.loop_rounds else { return Ok(Planned { source, part: None }) };
        let step = self.step(attention, tiles);
        let positions = positions(attention);
        let most = |source: &Source| walk_within(source, attention, limit);
        if most(&source).is_some_and(|most| most >= u64::from(positions.div_ceil(step))) {
            return Ok(Planned { source, part: None });
        }
        let refuse = || Unsupported::rounds(self.label(), limit);
        if self == Self::Coop {
            return Err(refuse());
        }
        let source = compose(true);
        // Whole tiles, blocks of sums and entries of lists.
        let unit = step.max(attention.keys.block_k()).max(match attention.output {
            Output::BlockSums { block_k, .. } => block_k,
            _ => 1,
        });
        let most = most(&source).unwrap_or(0).saturating_mul(u64::from(step));
        let most = most.min(u64::from(positions)) as u32 / unit * unit;
        if most == 0 {
            return Err(refuse());
        }
        // Parts of about one length.
        let part = positions.div_ceil(positions.div_ceil(most)).next_multiple_of(unit);
        Ok(Planned { source, part: Some(part.min(most)) })
    }

    /// Positions of one step of the walk, which loops marked `WALK` count.
    fn step(self, attention: &Attention, tiles: Option<&Tiles>) -> u32 {
        match (self, tiles) {
            (_, Some(tiles)) => tiles.block_k,
            (Self::BlockSums, None) if attention.shape.head_dim <= 256 => 8,
            (Self::BlockSums, None) => 4,
            (_, None) => SCORES_THREADS,
        }
    }
}

/// The positions of the longest walk: all keys, as whole entries of a list.
fn positions(attention: &Attention) -> u32 {
    let entry = match attention.keys {
        Keys::Dense => 1,
        _ => attention.keys.block_k(),
    };
    attention.shape.key_len.next_multiple_of(entry)
}

/// The steps that a kernel can walk within the limit.
fn walk_within(source: &Source, attention: &Attention, limit: u32) -> Option<u64> {
    // Ranges begin and end anywhere: each of up to four may need a step more, and sums whole blocks.
    let extra = match attention.output {
        Output::BlockSums { block_k, .. } => 2 * u64::from(block_k / 4),
        _ => 4,
    };
    let shape = &attention.shape;
    let more =
        [("HEAD_DIM", shape.head_dim), ("KEY_ROUNDS", shape.key_len.div_ceil(SCORES_THREADS))];
    source.rounds(&more)?.walk_within(limit)?.checked_sub(extra)
}

impl Attention {
    /// Whether a call in parts rounds its output at the end only: until then it lies in f32.
    pub(super) fn widens(&self, part: Option<u32>) -> bool {
        part.is_some() && self.dtype != DType::F32 && self.gives_output()
    }

    /// Whether a call in parts hands on LSEs.
    pub(super) fn hands_on_lse(&self, part: Option<u32>) -> bool {
        part.is_some() && self.activation == Activation::Softmax && self.gives_output()
    }

    fn gives_output(&self) -> bool {
        matches!(self.output, Output::Attention { .. })
    }

    /// The dispatches of one piece, in order.
    pub(super) fn parts(&self, part: Option<u32>) -> Vec<Part> {
        let Some(part) = part else { return vec![Part::WHOLE] };
        let positions = positions(self);
        let starts = || (0..positions).step_by(part as usize);
        let of = |first: u32, pass: u32| {
            let is_last = positions - first <= part;
            let end = if is_last { Part::WHOLE.end } else { first + part };
            Part { first, end, resumes: first > 0, is_last, pass }
        };
        match self.output {
            Output::BlockSums { .. } => {
                let totals = starts().map(|first| of(first, 1));
                let totals = totals.filter(|_| self.activation == Activation::Softmax);
                totals.chain(starts().map(|first| of(first, 2))).collect()
            }
            Output::Scores(_) | Output::Attention { .. } => {
                starts().map(|first| of(first, 0)).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;
    use crate::shape::Shape;

    #[test]
    fn parts_cover_all_positions_once() {
        let attention = Attention::new(Shape::new(1, 1, 2, 8).with_key_len(1000), DType::F32);
        let parts = attention.parts(Some(256));
        let ranges: Vec<Range<u32>> = parts.iter().map(|part| part.first..part.end).collect();
        assert_eq!(ranges, [0..256, 256..512, 512..768, 768..i32::MAX as u32]);
        assert!(!parts[0].resumes && parts[1..].iter().all(|part| part.resumes));
        assert!(parts[3].is_last && parts[..3].iter().all(|part| !part.is_last));
        let sums = attention.with_block_sums(16, 16).parts(Some(512));
        let passes: Vec<_> = sums.iter().map(|part| (part.pass, part.resumes)).collect();
        assert_eq!(passes, [(1, false), (1, true), (2, false), (2, true)]);
    }
}
