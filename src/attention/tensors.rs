//! The tensors of a call: checked against the configuration and each other, and cut into pieces that
//! a device can bind.

use std::ops::Range;

use super::{Attention, Output};
use crate::plan::{Inputs, Outputs, Plan};
use crate::{Alignment, DType, Error, Shape, View};

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

/// Some batch entries and some query heads of a call.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub batch: Range<u32>,
    pub heads: Range<u32>,
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
        if attention.alignment() == Alignment::Vec4 {
            for (name, view) in read.iter().take(3).chain(&written[..1]) {
                if let Some(view) = view {
                    view.check_vec4(name)?;
                }
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

    /// Cuts `piece` in halves, by batch entries and then by heads, until every view of every part
    /// can be bound.
    pub fn pieces(&self, plan: &Plan, piece: Piece) -> Result<Vec<Piece>, Error> {
        let caps = plan.context.caps();
        let alignment = u64::from(caps.storage_alignment);
        let part = self.part(&plan.attention, &piece);
        let named = [
            ("query", Some(part.query)),
            ("key", Some(part.key)),
            ("value", Some(part.value)),
            ("out", part.out),
            ("lse or scores", part.rows),
            ("bias", part.bias),
        ];
        let bytes = |view: View<'_>| {
            let bytes = view.bytes(alignment);
            bytes.end - bytes.start
        };
        let mut sizes = named
            .into_iter()
            .filter_map(|(name, view)| Some((name, bytes(view?))))
            .chain(plan.workspace_bytes(&piece).map(|size| ("out in f32", size)));
        let Some((name, needed)) = sizes.find(|&(_, size)| size > caps.storage_binding) else {
            return Ok(vec![piece]);
        };
        let halves = |range: &Range<u32>| {
            let middle = range.start + range.len() as u32 / 2;
            (range.start..middle, middle..range.end)
        };
        let (first, second) = if piece.batch.len() > 1 {
            let (a, b) = halves(&piece.batch);
            (Piece { batch: a, ..piece.clone() }, Piece { batch: b, ..piece })
        } else if piece.heads.len() > 1 {
            let (a, b) = halves(&piece.heads);
            (Piece { heads: a, ..piece.clone() }, Piece { heads: b, ..piece })
        } else {
            return Err(Error::Limit {
                what: format!("tensor `{name}`, bytes of one head of one batch entry"),
                limit: "maxStorageBufferBindingSize",
                needed,
                allowed: caps.storage_binding,
            });
        };
        let mut pieces = self.pieces(plan, first)?;
        pieces.extend(self.pieces(plan, second)?);
        Ok(pieces)
    }
}

/// A view that must be there exactly when the configuration asks for it.
fn expected<'a>(
    name: &str,
    view: Option<View<'a>>,
    wanted: Option<([u32; 4], DType)>,
) -> Result<Option<View<'a>>, Error> {
    match (view, wanted) {
        (Some(view), Some((shape, dtype))) => {
            view.check(name, shape, Some(dtype)).map(|()| Some(view))
        }
        (None, Some((shape, dtype))) => {
            Err(Error::tensor(name, format!("a view of {dtype} {shape:?}"), "none"))
        }
        (Some(_), None) => {
            Err(Error::tensor(name, "none: the configuration does not use it", "a view"))
        }
        (None, None) => Ok(None),
    }
}

type Named<'a> = (&'static str, Option<View<'a>>);

/// No output shares a buffer with anything, but for two outputs whose bindings keep apart.
fn check_buffers(read: &[Named<'_>], written: &[Named<'_>]) -> Result<(), Error> {
    let present = |named: &[Named<'_>]| -> Vec<(&'static str, wgpu::Buffer, Range<u64>)> {
        let with_bytes = |(name, view): &Named<'_>| {
            // The strictest offset alignment there is, so that the answer suits every device.
            view.map(|view| (*name, view.buffer.clone(), view.bytes(256)))
        };
        named.iter().filter_map(with_bytes).collect()
    };
    let written = present(written);
    for (index, (output, buffer, bytes)) in written.iter().enumerate() {
        for (other, other_buffer, _) in present(read) {
            if *buffer == other_buffer {
                let (output, other) = (output.to_string(), other.to_string());
                return Err(Error::SharedBuffer { output, other });
            }
        }
        for (other, other_buffer, other_bytes) in &written[..index] {
            if buffer == other_buffer
                && bytes.start < other_bytes.end
                && other_bytes.start < bytes.end
            {
                return Err(Error::tensor(
                    *output,
                    format!("a range at least 256 bytes apart from that of `{other}`"),
                    format!("bytes {bytes:?} of one buffer, where `{other}` has {other_bytes:?}"),
                ));
            }
        }
    }
    Ok(())
}
