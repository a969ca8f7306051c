//! The judge: attention on the host in f64, by plain loops and without tricks.
//!
//! Beside it stands its *eager* twin, the same loops in f32: what the plain untiled form can do in
//! the precision the kernels have. The distance between the two is the yardstick of
//! [`tolerance`](super::tolerance).

use super::{Activation, Attention, Stage};
use crate::attention::arrays::Arrays;
use crate::attention::keys::KeyRows;
use crate::attention::mask::MaskRows;
use crate::attention::score::Broadcast;
use crate::error::Error;
use crate::launch::Array;
use crate::reference::real::{Real, at_least_logit, check_len, vector};
use crate::tensor::EMPTY;

/// The tensors of one call on the host, contiguous `[batch, heads, len, dim]`.
///
/// The numbers are held as f32 and already rounded to the dtype of the configuration.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct HostInputs<'a> {
    /// `[batch, query_heads, query_len, head_dim]`.
    pub query: &'a [f32],
    /// `[batch, key_heads, key_len, head_dim]`.
    pub key: &'a [f32],
    /// `[batch, value_heads, key_len, value_dim]`.
    pub value: &'a [f32],
    /// `[batch | 1, query_heads | 1, query_len, key_len]`, where the configuration has a bias.
    pub bias: Option<&'a [f32]>,
    /// The side arrays that the configuration refers to, all of them on the host.
    pub arrays: Arrays<'a>,
}

impl<'a> HostInputs<'a> {
    /// Queries, keys and values; no bias and no side arrays.
    pub fn new(query: &'a [f32], key: &'a [f32], value: &'a [f32]) -> Self {
        Self { query, key, value, bias: None, arrays: Arrays::default() }
    }

    /// Sets the bias per pair.
    #[must_use]
    pub const fn with_bias(mut self, bias: &'a [f32]) -> Self {
        self.bias = Some(bias);
        self
    }

    /// Sets the side arrays.
    #[must_use]
    pub const fn with_arrays(mut self, arrays: Arrays<'a>) -> Self {
        self.arrays = arrays;
        self
    }
}

/// Attention computed row by row on the host.
///
/// Scores follow [`Score`](crate::Score), masks [`MaskRows`], lists of keys [`KeyRows`]; a bias of −∞ (any number
/// up to [`EMPTY`]), per key or per pair, masks its pair too. Masked pairs contribute exactly nothing, whatever keys and values hold
/// there. Non-finite numbers reach exactly the rows that keep the key they come from: where a
/// kept pair's score is not finite, the whole row of `out` is NaN and so is its LSE; where a kept
/// value is not finite, its column of the row is NaN.
///
/// ```
/// use wgpu_attention::attention::reference::{HostInputs, Reference};
/// use wgpu_attention::{Attention, DType, Shape};
/// let attention = Attention::new(Shape::new(1, 1, 2, 1), DType::F32);
/// // Queries of 0 weigh all keys alike.
/// let inputs = HostInputs::new(&[0.0, 0.0], &[5.0, 7.0], &[1.0, 2.0]);
/// let row = Reference::new(&attention, &inputs)?.row(0, 0, 0);
/// assert_eq!(row.out, [1.5]);
/// assert_eq!(row.lse, 2f64.ln());
/// # Ok::<(), wgpu_attention::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Reference<'a> {
    pub(super) attention: &'a Attention,
    inputs: &'a HostInputs<'a>,
    mask: MaskRows<'a>,
    keys: KeyRows<'a>,
    /// `[query_heads]`; empty without ALiBi.
    slopes: &'a [f32],
    /// `[batch | 1, query_heads | 1, key_len]`, where the configuration has one.
    key_bias: Option<(&'a [f32], Broadcast)>,
    /// `[batch | 1, query_heads | 1, query_len, key_len]`, where the configuration has one.
    bias: Option<(&'a [f32], Broadcast)>,
    /// `[query_heads]`; empty without sinks.
    sinks: &'a [f32],
}

/// One row of results.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Row {
    /// `[value_dim]`.
    pub out: Vec<f64>,
    /// The natural logarithm of the sum of the scores' exponentials, the sink's among them; −∞ for
    /// a row without keys and sink and, without meaning there, for sigmoid.
    pub lse: f64,
    /// The largest `Σ weight · |value|` of a column, the number that rounding errors of `out`
    /// scale with; at most the largest absolute value for softmax. Weights below 2⁻⁸⁰ count as
    /// that much.
    pub magnitude: f64,
    /// What no weights make an element of `out` exceed in size: for softmax the largest absolute value
    /// that the row keeps, for sigmoid the largest sum of a column's. Values that are not finite count
    /// for nothing.
    pub reach: f64,
}

impl<'a> Reference<'a> {
    /// Checks the configuration, the lengths of all tensors and the side arrays.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for a configuration without meaning; [`Error::Tensor`] for a tensor
    /// (`query`, `key`, `value`, `bias`) of the wrong length, and for side arrays as
    /// [`MaskRows::new`] says.
    pub fn new(attention: &'a Attention, inputs: &'a HostInputs<'a>) -> Result<Self, Error> {
        let mask = MaskRows::new(attention, &inputs.arrays)?;
        let keys = KeyRows::new(attention, &inputs.arrays)?;
        let (shape, score) = (&attention.shape, &attention.score);
        check_len("query", inputs.query, &shape.query())?;
        check_len("key", inputs.key, &shape.key())?;
        check_len("value", inputs.value, &shape.value())?;
        match (score.bias, inputs.bias) {
            (Some((_, broadcast)), bias) => {
                let (batch, heads) = broadcast.sizes(shape.batch, shape.query_heads);
                let sizes = [batch, heads, shape.query_len, shape.key_len];
                check_len("bias", bias.unwrap_or_default(), &sizes)?;
            }
            (None, Some(_)) => {
                return Err(Error::tensor(
                    "bias",
                    "nothing: the configuration does not use it",
                    "a tensor",
                ));
            }
            (None, None) => {}
        }
        // `MaskRows` has checked the side arrays, those of the score too.
        let floats = |array: Option<Array<'a>>| {
            bytemuck::cast_slice(array.and_then(|array| array.host()).unwrap_or_default())
        };
        Ok(Self {
            attention,
            inputs,
            mask,
            keys,
            slopes: floats(inputs.arrays.alibi_slopes),
            key_bias: score.key_bias.map(|broadcast| (floats(inputs.arrays.key_bias), broadcast)),
            bias: inputs.bias.zip(score.bias.map(|(_, broadcast)| broadcast)),
            sinks: floats(inputs.arrays.sinks),
        })
    }

    /// One row of attention in f64.
    ///
    /// # Panics
    ///
    /// When an index lies outside of the shape.
    pub fn row(&self, batch: u32, head: u32, query: u32) -> Row {
        self.attend::<f64>(self.place(batch, head, query))
    }

    /// One row of the plain untiled form computed in f32, `out` rounded to the dtype.
    ///
    /// # Panics
    ///
    /// When an index lies outside of the shape.
    pub fn row_eager(&self, batch: u32, head: u32, query: u32) -> Row {
        let mut row = self.attend::<f32>(self.place(batch, head, query));
        let dtype = self.attention.precision();
        let out: Vec<f32> = row.out.iter().map(|&x| x as f32).collect();
        row.out = dtype.decode(&dtype.encode(&out)).into_iter().map(f64::from).collect();
        row
    }

    /// One row of scores, `[key_len]`, in f64: −∞ where a pair is masked from
    /// [`Stage::Masked`] on, NaN where a score is not finite.
    ///
    /// # Panics
    ///
    /// When an index lies outside of the shape.
    pub fn scores(&self, stage: Stage, batch: u32, head: u32, query: u32) -> Vec<f64> {
        self.staged(stage, self.place(batch, head, query))
    }

    /// [`Reference::scores`] computed in f32.
    ///
    /// # Panics
    ///
    /// When an index lies outside of the shape.
    pub fn scores_eager(&self, stage: Stage, batch: u32, head: u32, query: u32) -> Vec<f64> {
        let scores = self.staged::<f32>(stage, self.place(batch, head, query));
        scores.into_iter().map(f64::from).collect()
    }

    /// All rows of the output, `[batch, query_heads, query_len, value_dim]`, in f64.
    pub fn out(&self) -> Vec<f64> {
        self.places().flat_map(|place| self.attend::<f64>(place).out).collect()
    }

    /// All LSEs, `[batch, query_heads, query_len]`, in f64.
    pub fn lse(&self) -> Vec<f64> {
        self.places().map(|place| self.attend::<f64>(place).lse).collect()
    }

    /// The row of these indices, which must lie inside the shape.
    fn place(&self, batch: u32, head: u32, query: u32) -> Place {
        let shape = &self.attention.shape;
        assert!(
            batch < shape.batch && head < shape.query_heads && query < shape.query_len,
            "no row at batch {batch}, head {head}, query {query} of {shape:?}"
        );
        Place { batch, head, query }
    }

    fn places(&self) -> impl Iterator<Item = Place> {
        let shape = self.attention.shape;
        (0..shape.batch).flat_map(move |batch| {
            (0..shape.query_heads).flat_map(move |head| {
                (0..shape.query_len).map(move |query| Place { batch, head, query })
            })
        })
    }

    /// The weighted sum of the values.
    fn attend<R: Real>(&self, place: Place) -> Row {
        let shape = &self.attention.shape;
        let scores = self.staged::<R>(Stage::Masked, place);
        let (weights, lse) = self.weights(place, &scores);
        let mut out = vec![R::ZERO; shape.value_dim as usize];
        let mut size = vec![0.0; shape.value_dim as usize];
        let mut reach = vec![0.0f64; shape.value_dim as usize];
        let value_head = shape.value_head(place.head);
        for (key, &weight) in weights.iter().enumerate() {
            if is_masked(scores[key]) {
                continue;
            }
            let value =
                vector(self.inputs.value, shape.value(), [place.batch, value_head, key as u32]);
            for (((out, size), reach), &v) in
                out.iter_mut().zip(&mut size).zip(&mut reach).zip(value)
            {
                *out += weight * R::real(v.into());
                let v = f64::from(v.abs());
                *size += weight.into().max(LEAST_WEIGHT) * v;
                match self.attention.activation {
                    _ if !v.is_finite() => {}
                    Activation::Softmax => *reach = reach.max(v),
                    Activation::Sigmoid { .. } => *reach += v,
                }
            }
        }
        // One NaN stands for every way of not being finite.
        let out = out.into_iter().map(|x| finite_or_nan(x).into()).collect();
        let magnitude = size.into_iter().filter(|x| x.is_finite()).fold(0.0, f64::max);
        let reach = reach.into_iter().fold(0.0, f64::max);
        Row { out, lse: lse.into(), magnitude, reach }
    }

    /// The largest absolute score after the softcap, of the keys that a row keeps or of all; 0 without
    /// a softcap.
    pub(super) fn largest_capped(&self, [batch, head, query]: [u32; 3], kept: bool) -> f64 {
        let Some(cap) = self.attention.score.softcap else { return 0.0 };
        let place = self.place(batch, head, query);
        let mask = self.mask.row(batch, query);
        let visited = self.keys.row(batch, head, query);
        (0..self.attention.shape.key_len)
            .filter(|&key| !kept || (visited.contains(key) && mask.keeps(head, key)))
            .map(|key| capped(self.scaled::<f64>(place, key), cap).abs())
            .filter(|score| score.is_finite())
            .fold(0.0, f64::max)
    }

    /// Scores at any of the four stages.
    fn staged<R: Real>(&self, stage: Stage, place: Place) -> Vec<R> {
        let keys = 0..self.attention.shape.key_len;
        match stage {
            Stage::Scaled => keys.map(|key| self.scaled(place, key)).collect(),
            Stage::Modified => keys.map(|key| self.modified(place, key)).collect(),
            Stage::Masked => {
                let mask = self.mask.row(place.batch, place.query);
                let visited = self.keys.row(place.batch, place.head, place.query);
                let masked = |key| {
                    if visited.contains(key) && mask.keeps(place.head, key) {
                        self.modified(place, key)
                    } else {
                        R::NEG_INFINITY
                    }
                };
                keys.map(masked).collect()
            }
            Stage::Probabilities => self.weights(place, &self.staged::<R>(Stage::Masked, place)).0,
        }
    }

    /// `scale · q·k`.
    fn scaled<R: Real>(&self, place: Place, key: u32) -> R {
        let shape = &self.attention.shape;
        let Place { batch, head, query } = place;
        let q = vector(self.inputs.query, shape.query(), [batch, head, query]);
        let k = vector(self.inputs.key, shape.key(), [batch, shape.key_head(head), key]);
        let mut dot = R::ZERO;
        for (&q, &k) in q.iter().zip(k) {
            dot += R::real(q.into()) * R::real(k.into());
        }
        finite_or_nan(R::real(self.attention.scale().into()) * dot)
    }

    /// The scaled score after softcap, ALiBi and biases: −∞ where a bias masks the pair, NaN
    /// where the score is not finite, and [`LEAST_LOGIT`] at least.
    fn modified<R: Real>(&self, place: Place, key: u32) -> R {
        let shape = &self.attention.shape;
        let Place { batch, head, query } = place;
        let mut score = self.scaled::<R>(place, key);
        if let Some(cap) = self.attention.score.softcap {
            score = capped(score, cap);
        }
        if self.attention.score.alibi {
            let slope = R::real(self.slopes[head as usize].into());
            let distance = (self.mask.position(batch, query) - i64::from(key)).unsigned_abs();
            score = score - slope * R::real(distance as f64);
        }
        if let Some((key_bias, broadcast)) = self.key_bias {
            let row = leading(broadcast, batch, head, shape.query_heads);
            let bias = key_bias[row * shape.key_len as usize + key as usize];
            if f64::from(bias) <= EMPTY {
                return R::NEG_INFINITY;
            }
            score += R::real(bias.into());
        }
        if let Some((bias, broadcast)) = self.bias {
            let row = leading(broadcast, batch, head, shape.query_heads) * shape.query_len as usize
                + query as usize;
            let bias = bias[row * shape.key_len as usize + key as usize];
            if f64::from(bias) <= EMPTY {
                return R::NEG_INFINITY;
            }
            score += R::real(bias.into());
        }
        let score = finite_or_nan(score);
        at_least_logit(score)
    }

    /// Weights of a row from its masked scores, and its LSE.
    fn weights<R: Real>(&self, place: Place, scores: &[R]) -> (Vec<R>, R) {
        match self.attention.activation {
            Activation::Softmax => {
                let sink = self.sinks.get(place.head as usize);
                let sink =
                    sink.map(|&sink| f64::from(sink)).filter(|&sink| sink.is_nan() || sink > EMPTY);
                softmax(scores, sink.map_or(R::NEG_INFINITY, R::real))
            }
            Activation::Sigmoid { .. } => {
                let bias = R::real(self.attention.sigmoid_bias().into());
                let weight = |&score: &R| {
                    if is_masked(score) {
                        R::ZERO
                    } else {
                        R::ONE / (R::ONE + (-(score + bias)).exp())
                    }
                };
                (scores.iter().map(weight).collect(), R::NEG_INFINITY)
            }
        }
    }
}

/// `exp(s) / Σ exp(s)` and `ln Σ exp(s)`, about the largest score so that no exponential exceeds
/// 1; the sink, −∞ for none, is one more term of the sum. Without kept keys: zeros, and the sink.
/// With a NaN among the scores: NaN at every kept key.
fn softmax<R: Real>(scores: &[R], sink: R) -> (Vec<R>, R) {
    let mut largest = sink;
    for &score in scores {
        if score > largest {
            largest = score;
        }
    }
    if scores.iter().any(|score| score.is_nan()) {
        largest = R::NAN;
    }
    if is_masked(largest) {
        return (vec![R::ZERO; scores.len()], R::NEG_INFINITY);
    }
    let mut weights = vec![R::ZERO; scores.len()];
    let mut sum = if is_masked(sink) { R::ZERO } else { (sink - largest).exp() };
    for (weight, &score) in weights.iter_mut().zip(scores) {
        if !is_masked(score) {
            *weight = (score - largest).exp();
            sum += *weight;
        }
    }
    for (weight, &score) in weights.iter_mut().zip(scores) {
        if !is_masked(score) {
            *weight = *weight / sum;
        }
    }
    (weights, at_least_logit(largest + sum.ln()))
}

/// 2⁻⁸⁰. A sigmoid in f32 that keeps its exponential finite cannot tell smaller weights apart.
const LEAST_WEIGHT: f64 = 1.0 / (1u128 << 80) as f64;

/// A row of the output.
#[derive(Clone, Copy)]
struct Place {
    batch: u32,
    head: u32,
    query: u32,
}

/// A masked score is −∞, and nothing else is: see [`finite_or_nan`].
fn is_masked<R: Real>(score: R) -> bool {
    score == R::NEG_INFINITY
}

/// `cap · tanh(score / cap)`.
fn capped<R: Real>(score: R, cap: f32) -> R {
    let cap = R::real(cap.into());
    cap * (score / cap).tanh()
}

fn finite_or_nan<R: Real>(x: R) -> R {
    if x.is_finite() { x } else { R::NAN }
}

/// The index over the first two axes of an array that may be shared along them.
fn leading(broadcast: Broadcast, batch: u32, head: u32, heads: u32) -> usize {
    let (_, heads) = broadcast.sizes(1, heads);
    let batch = if broadcast.per_batch { batch } else { 0 };
    let head = if broadcast.per_head { head } else { 0 };
    batch as usize * heads as usize + head as usize
}
