//! Small made-up calls that show whether a plan's kernels compute what they should on a device.

use super::plan::{LinearInputs, LinearOutputs, LinearPlan};
use super::reference::{HostInputs, Reference};
use super::{Carry, LinearAttention, Rule};
use crate::device::readback;
use crate::device::verification::{Outcome, number, outcome};
use crate::error::Error;
use crate::launch::Array;
use crate::launch::scoped;
use crate::launch::workspace::buffer;
use crate::shape::Shape;
use crate::tensor::{DType, View};

/// Tokens of a trial beyond the first chunk and block: neither ends where the sequence does.
const MORE_TOKENS: u32 = 5;

/// Runs the kernels of a plan on one head of keys, a chunk and a block long and two documents where
/// there may be some, and judges all results by the reference.
///
/// # Errors
/// A lost device, or one out of memory.
pub(super) async fn trial(plan: &LinearPlan) -> Result<Outcome, Error> {
    let Some(tiles) = plan.halves.last().map(|half| half.tiles) else { return Ok(Ok(())) };
    let len = tiles.chunk + tiles.block + MORE_TOKENS;
    let Shape { head_dim, value_dim, .. } = plan.linear.shape;
    let shape = Shape::new(1, 2, len, head_dim).with_key_value_heads(1).with_value_dim(value_dim);
    let linear = LinearAttention {
        shape,
        scale: 1.0,
        chunk: Some(tiles.chunk),
        block: Some(tiles.block),
        ..plan.linear
    };
    let small = LinearPlan { linear, ..plan.clone() };
    let call = Call::new(&linear, len);
    let context = &plan.context;
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC;
    let filled = |label, dtype: DType, numbers: &[f32]| {
        let mut bytes = dtype.encode(numbers);
        bytes.resize(bytes.len().next_multiple_of(4).max(16), 0);
        buffer(context, label, bytes.len() as u64, usage, Some(&bytes))
    };
    let (bound, out, state, normalizer) = scoped(context, || {
        let [query, key, value, gate, beta, state, normalizer] = [
            ("query", linear.dtype, &call.query),
            ("key", linear.dtype, &call.key),
            ("value", linear.dtype, &call.value),
            ("gate", DType::F32, &call.gate),
            ("beta", DType::F32, &call.beta),
            ("state", DType::F32, &call.state),
            ("normalizer", DType::F32, &call.normalizer),
        ]
        .map(|(label, dtype, numbers)| filled(label, dtype, numbers));
        let out = filled("out", linear.dtype, &vec![f32::NAN; count(shape.out())]);
        let mut inputs = LinearInputs::new(
            View::new(&query, linear.dtype, shape.query()),
            View::new(&key, linear.dtype, shape.key()),
            View::new(&value, linear.dtype, shape.value()),
        );
        let rule = linear.rule;
        inputs.gate = rule.is_gated().then(|| View::new(&gate, DType::F32, linear.gate()));
        inputs.beta = rule.is_delta().then(|| View::new(&beta, DType::F32, linear.beta()));
        inputs.decay = (rule == Rule::Decay).then(|| Array::f32(&call.decay));
        inputs.starts = linear.documents.then(|| Array::u32(&call.starts));
        let documents = call.documents(&linear);
        let mut outputs = LinearOutputs::new(View::new(&out, linear.dtype, shape.out()));
        if linear.carry != Carry::None {
            let carried = linear.state(documents);
            outputs.state = Some(View::new(&state, DType::F32, carried));
            let carried = linear.normalizer(documents);
            let view = View::new(&normalizer, DType::F32, carried);
            outputs.normalizer = linear.normalize.map(|_| view);
        }
        Ok((small.bind(&inputs, &outputs)?, out, state, normalizer))
    })?;
    context.run(&bound).await?;
    let out = readback::read(context, View::new(&out, linear.dtype, shape.out())).await?;
    let documents = call.documents(&linear);
    let carries = linear.carry != Carry::None;
    let state = match carries {
        true => Some(
            readback::read(context, View::new(&state, DType::F32, linear.state(documents))).await?,
        ),
        false => None,
    };
    let normalizer = match carries && linear.normalize.is_some() {
        true => {
            let view = View::new(&normalizer, DType::F32, linear.normalizer(documents));
            Some(readback::read(context, view).await?)
        }
        false => None,
    };
    let host = call.host(&linear);
    let found =
        Reference::new(&linear, &host)?.check(&out, state.as_deref(), normalizer.as_deref());
    Ok(outcome([
        ("out", Some(found.out)),
        ("state", found.state),
        ("normalizer", found.normalizer),
    ]))
}

/// What a trial reads.
struct Call {
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    decay: Vec<f32>,
    gate: Vec<f32>,
    beta: Vec<f32>,
    starts: Vec<u32>,
    /// Empty space where nothing is read first.
    state: Vec<f32>,
    normalizer: Vec<f32>,
}

impl Call {
    fn new(linear: &LinearAttention, len: u32) -> Self {
        let shape = &linear.shape;
        // From −1 to 1, no two tensors alike.
        let unit = |count: usize, seed: u32| -> Vec<f32> {
            (0..count as u32).map(|index| 0.5 * number(index ^ (seed << 24))).collect()
        };
        let rounded = |numbers: Vec<f32>| linear.dtype.decode(&linear.dtype.encode(&numbers));
        let features = linear.features() as f32;
        // Corrections by more than β|k|² = 2 grow without bound.
        let short = if linear.rule.is_delta() { 1.0 / (shape.head_dim as f32).sqrt() } else { 1.0 };
        let mut call = Self {
            query: rounded(unit(count(shape.query()), 1)),
            key: rounded(unit(count(shape.key()), 2).iter().map(|x| short * x).collect()),
            value: rounded(unit(count(shape.value()), 3)),
            decay: vec![0.02],
            gate: unit(count(linear.gate()), 4).iter().map(|x| -0.1 * x.abs()).collect(),
            beta: unit(count(linear.beta()), 5).iter().map(|x| x.abs() / features).collect(),
            starts: vec![0, len / 3, len],
            state: Vec::new(),
            normalizer: Vec::new(),
        };
        let documents = call.documents(linear);
        call.state = unit(count(linear.state(documents)), 6);
        call.normalizer =
            unit(count(linear.normalizer(documents)), 7).iter().map(|x| 1.0 + x.abs()).collect();
        call
    }

    fn documents(&self, linear: &LinearAttention) -> u32 {
        if linear.documents { self.starts.len() as u32 - 1 } else { 1 }
    }

    fn host(&self, linear: &LinearAttention) -> HostInputs<'_> {
        let mut host = HostInputs::new(&self.query, &self.key, &self.value);
        host.decay = (linear.rule == Rule::Decay).then_some(&self.decay);
        host.gate = linear.rule.is_gated().then_some(&self.gate);
        host.beta = linear.rule.is_delta().then_some(&self.beta);
        host.starts = linear.documents.then_some(&self.starts);
        let carried = linear.carry == Carry::InOut;
        host.state = carried.then_some(&self.state);
        host.normalizer = (carried && linear.normalize.is_some()).then_some(&self.normalizer);
        host
    }
}

fn count(shape: [u32; 4]) -> usize {
    shape.iter().map(|&n| n as usize).product()
}
