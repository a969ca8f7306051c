//! The tensors of a call: checked against the configuration and each other, and cut into pieces that
//! a device can bind.

use super::plan::{LinearInputs, LinearOutputs};
use super::{Carry, LinearAttention};
use crate::error::Error;
use crate::launch::workspace::{Piece, check_buffers, expected};
use crate::tensor::{Alignment, DType, View};

/// The tensors of a call, or of a piece of it.
#[derive(Clone, Copy)]
pub(super) struct Tensors<'a> {
    pub query: View<'a>,
    pub key: View<'a>,
    pub value: View<'a>,
    pub out: View<'a>,
    pub state: Option<View<'a>>,
    pub normalizer: Option<View<'a>>,
    pub gate: Option<View<'a>>,
    pub beta: Option<View<'a>>,
}

impl<'a> Tensors<'a> {
    /// Checks every view against the configuration and against the others.
    pub fn check(
        linear: &LinearAttention,
        inputs: &LinearInputs<'a>,
        outputs: &LinearOutputs<'a>,
        documents: u32,
    ) -> Result<Self, Error> {
        let (shape, dtype) = (&linear.shape, Some(linear.dtype));
        inputs.query.check("query", shape.query(), dtype)?;
        inputs.key.check("key", shape.key(), dtype)?;
        inputs.value.check("value", shape.value(), dtype)?;
        outputs.out.check("out", shape.out(), dtype)?;
        // Their own dtype is as good as any.
        let any = |view: Option<View<'_>>| view.map_or(DType::F32, |view| view.dtype);
        let gate = linear.rule.is_gated().then(|| (linear.gate(), any(inputs.gate)));
        let gate = expected("gate", inputs.gate, gate)?;
        let beta = linear.rule.is_delta().then(|| (linear.beta(), any(inputs.beta)));
        let beta = expected("beta", inputs.beta, beta)?;
        let carried = linear.carry != Carry::None;
        let state = carried.then(|| (linear.state(documents), DType::F32));
        let state = expected("state", outputs.state, state)?;
        let normalizer = (carried && linear.normalize.is_some())
            .then(|| (linear.normalizer(documents), DType::F32));
        let normalizer = expected("normalizer", outputs.normalizer, normalizer)?;

        let read = [
            ("query", Some(inputs.query)),
            ("key", Some(inputs.key)),
            ("value", Some(inputs.value)),
            ("gate", gate),
            ("beta", beta),
        ];
        let written = [("out", Some(outputs.out)), ("state", state), ("normalizer", normalizer)];
        for (name, view) in written {
            view.map_or(Ok(()), |view| view.check_disjoint(name))?;
        }
        check_buffers(&read, &written)?;
        let alignment = linear.alignment();
        for (name, view) in read.iter().take(3).chain(&written[..1]) {
            view.map_or(Ok(()), |view| view.check_alignment(name, alignment))?;
        }
        // A state is f32, whose vectors are four numbers.
        let of_state = if alignment == Alignment::Vec8 { Alignment::Vec4 } else { alignment };
        state.map_or(Ok(()), |view| view.check_alignment("state", of_state))?;
        let LinearInputs { query, key, value, .. } = *inputs;
        Ok(Self { query, key, value, out: outputs.out, state, normalizer, gate, beta })
    }

    /// The views of one piece, whose heads are key heads.
    pub fn part(&self, linear: &LinearAttention, piece: &Piece, documents: u32) -> Self {
        let group = linear.shape.query_heads / linear.shape.key_heads;
        let (batch, heads) = (piece.batch.clone(), piece.heads.clone());
        let query_heads = heads.start * group..heads.end * group;
        let sequences = batch.start * documents..batch.end * documents;
        let of_query = |view: View<'a>| view.part(batch.clone(), query_heads.clone());
        let of_key = |view: View<'a>| view.part(batch.clone(), heads.clone());
        let of_state = |view: View<'a>| view.part(sequences.clone(), heads.clone());
        Self {
            query: of_query(self.query),
            key: of_key(self.key),
            value: of_key(self.value),
            out: of_query(self.out),
            state: self.state.map(of_state),
            normalizer: self.normalizer.map(of_state),
            gate: self.gate.map(of_key),
            beta: self.beta.map(of_key),
        }
    }
}
