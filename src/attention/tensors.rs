//! The tensors of a call: checked against the configuration and each other, and cut into pieces that
//! a device can bind.

use super::{Attention, Output};
use crate::attention::{Inputs, Outputs, Plan};
use crate::error::Error;
use crate::launch::workspace::{Piece, bound_bytes, check_buffers, expected};
use crate::shape::Shape;
use crate::tensor::{DType, View};

/// The tensors of a call by name; the order is that of the bindings.
pub(super) struct Tensors<'a> {
    pub query: View<'a>,
    pub key: View<'a>,
    pub value: View<'a>,
    pub out: Option<View<'a>>,
    /// The LSE, or the scores.
    pub rows: Option<View<'a>>,
    pub bias: Option<View<'a>>,
}

impl<'a> Tensors<'a> {
    /// Checks every view against the configuration and against the others.
    pub fn check(
        attention: &Attention,
        inputs: &Inputs<'a>,
        outputs: &Outputs<'a>,
    ) -> Result<Self, Error> {
        let (shape, dtype) = (&attention.shape, Some(attention.dtype));
        inputs.query.check("query", shape.query(), dtype)?;
        inputs.key.check("key", shape.key(), dtype)?;
        inputs.value.check("value", shape.value(), dtype)?;
        let bias = attention.score.bias.map(|(dtype, broadcast)| {
            let (batch, heads) = broadcast.sizes(shape.batch, shape.query_heads);
            ([batch, heads, shape.query_len, shape.key_len], dtype)
        });
        let bias = expected("bias", inputs.bias, bias)?;
        let (out, lse, scores) = match attention.output {
            Output::Attention { lse } => {
                (Some((shape.out(), attention.dtype)), lse.then(|| (shape.lse(), DType::F32)), None)
            }
            Output::Scores(_) => (None, None, Some((shape.scores(), DType::F32))),
            Output::BlockSums { block_q, block_k } => {
                let blocks = [shape.query_len.div_ceil(block_q), shape.key_len.div_ceil(block_k)];
                let sums = [shape.batch, shape.query_heads, blocks[0], blocks[1]];
                (None, None, Some((sums, DType::F32)))
            }
        };
        let out = expected("out", outputs.out, out)?;
        let lse = expected("lse", outputs.lse, lse)?;
        let scores = expected("scores", outputs.scores, scores)?;

        let read = [
            ("query", Some(inputs.query)),
            ("key", Some(inputs.key)),
            ("value", Some(inputs.value)),
            ("bias", bias),
        ];
        let written = [("out", out), ("lse", lse), ("scores", scores)];
        for (name, view) in written {
            view.map_or(Ok(()), |view| view.check_disjoint(name))?;
        }
        check_buffers(&read, &written)?;
        for (name, view) in read.iter().take(3).chain(&written[..1]) {
            if let Some(view) = view {
                view.check_alignment(name, attention.alignment())?;
            }
        }
        let Inputs { query, key, value, .. } = *inputs;
        Ok(Self { query, key, value, out, rows: lse.or(scores), bias })
    }

    /// The views of one piece.
    pub fn part(&self, attention: &Attention, piece: &Piece) -> Self {
        let shape = &attention.shape;
        let heads_of = |head: fn(&Shape, u32) -> u32| {
            head(shape, piece.heads.start)..head(shape, piece.heads.end - 1) + 1
        };
        let whole = |view: View<'a>| view.part(piece.batch.clone(), piece.heads.clone());
        let bias = attention.score.bias.map(|(_, broadcast)| broadcast);
        Self {
            query: whole(self.query),
            key: self.key.part(piece.batch.clone(), heads_of(Shape::key_head)),
            value: self.value.part(piece.batch.clone(), heads_of(Shape::value_head)),
            out: self.out.map(whole),
            rows: self.rows.map(whole),
            bias: self.bias.zip(bias).map(|(view, broadcast)| {
                let batch = if broadcast.per_batch { piece.batch.clone() } else { 0..1 };
                let heads = if broadcast.per_head { piece.heads.clone() } else { 0..1 };
                view.part(batch, heads)
            }),
        }
    }

    /// The bytes that a piece binds of each tensor.
    pub fn sizes(&self, plan: &Plan, piece: &Piece) -> Vec<(&'static str, u64)> {
        let part = self.part(&plan.attention, piece);
        let named = [
            ("query", Some(part.query)),
            ("key", Some(part.key)),
            ("value", Some(part.value)),
            ("out", part.out),
            ("lse or scores", part.rows),
            ("bias", part.bias),
        ];
        let size =
            |(name, view): (_, Option<View<'_>>)| Some((name, bound_bytes(&plan.context, &view?)));
        named.into_iter().filter_map(size).chain(plan.workspace_sizes(piece)).collect()
    }
}
