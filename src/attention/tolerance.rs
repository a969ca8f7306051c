//! How far a result may lie from the f64 reference: one rule, for tests, the program and the page.

use super::reference::Reference;
use super::{Activation, Stage};
use crate::DType;

/// Numbers in buffers up to this one stand for −∞: kernels write −1e30, since WGSL may assume
/// that there are no infinities.
pub const EMPTY: f64 = -5e29;

/// The least f32 that does not stand for −∞, the next one above [`EMPTY`]: lower logits of kept pairs,
/// and lower LSEs of rows that keep some, count as this number.
pub const LEAST_LOGIT: f64 = f32::from_bits(0xf0c9_f2c9) as f64;

/// Half an ulp of f32 at 1.
const HALF_ULP: f64 = 1.0 / (1u64 << 24) as f64;

/// Half units of the last place of f32, relative to a tensor's magnitude, that a kernel may err
/// by when the eager form happens to be exact; see [`bound`].
const ALLOWANCE: f64 = 32.0;

/// What [`compare`] found.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Comparison {
    /// Largest absolute error of an element; infinite where one is finite and should not be, or
    /// is not and should.
    pub max_abs: f64,
    /// `‖got − reference‖ / ‖reference‖` over the finite elements of the reference.
    pub relative: f64,
    /// What `max_abs` may reach.
    pub bound: f64,
    /// Where `max_abs` lies, as an index into the tensor.
    pub worst_index: usize,
    /// Elements left unjudged, because the eager form overflows there and the reference does not.
    pub overflowed: usize,
    /// Whether every element is within the bound.
    pub ok: bool,
}

/// Largest allowed absolute error of a tensor: FlashAttention's rule, twice the largest error of
/// the plain untiled form in the kernel's own precision, and a rounding term.
///
/// The eager form may come out exact by luck, on one key for example, where a kernel that adds in
/// another order cannot. The rounding term is what a kernel may then still err by:
/// - half an ulp of `dtype` at the largest reference, for the final rounding: with `p` significant
///   bits at most `2^-p` of the number, so 2⁻²⁴ (f32), 2⁻¹¹ (f16), 2⁻⁸ (bf16, 7 stored bits and
///   the hidden one); below the normal numbers, half the spacing of f16's subnormals (2⁻²⁵), and
///   for f32 and bf16, which a device may flush to zero, the smallest normal number;
/// - `32 · 2⁻²⁴ · magnitude`, for arithmetic in f32. WGSL lets `exp2(x)` err by `3 + 2·|x|` ulp,
///   of weights that are at most 1. The mean of `|x|` under the weights, which is what reaches the
///   output, is at most `log2` of the number of keys; 16 ulp cover the extreme of that for 90 keys
///   and the usual, errors of either sign on weights of like size, for any number.
///
/// `magnitude` is what errors of the tensor's f32 arithmetic scale with: the largest absolute
/// value for `out` (or, tighter, [`Row::magnitude`](super::reference::Row::magnitude)), 1 for
/// probabilities, the largest absolute score for scores. Elements where either tensor is not
/// finite do not count.
pub fn bound(reference: &[f64], eager: &[f64], dtype: DType, magnitude: f64) -> f64 {
    let mut eager_error = 0.0f64;
    let mut largest = 0.0f64;
    for (&want, &eager) in reference.iter().zip(eager) {
        if want.is_finite() && eager.is_finite() {
            eager_error = eager_error.max((eager - want).abs());
            largest = largest.max(want.abs());
        }
    }
    let (half_ulp, least) = match dtype {
        DType::F32 => (HALF_ULP, f64::from(f32::MIN_POSITIVE)),
        DType::F16 => (1.0 / f64::from(1 << 11), 1.0 / f64::from(1 << 25)),
        DType::BF16 => (1.0 / f64::from(1 << 8), f64::from(f32::MIN_POSITIVE)),
    };
    let rounding = (half_ulp * largest).max(least) + ALLOWANCE * HALF_ULP * magnitude;
    2.0 * eager_error + rounding
}

/// Judges a tensor by the reference, element by element within [`bound`].
///
/// - A reference of −∞ (an empty row's LSE, a masked score) asks for −∞ or a number up to
///   [`EMPTY`].
/// - A reference that is NaN or +∞ (a row that keeps a non-finite number) asks for any number
///   that is not finite.
/// - Anywhere else NaN and infinities fail, except where the eager form overflows: such elements
///   are counted and left unjudged.
///
/// Tensors of different lengths fail, with the shorter one's length as `worst_index`.
pub fn compare(
    got: &[f32],
    reference: &[f64],
    eager: &[f64],
    dtype: DType,
    magnitude: f64,
) -> Comparison {
    let mut comparison = Comparison {
        max_abs: 0.0,
        relative: 0.0,
        bound: bound(reference, eager, dtype, magnitude),
        worst_index: 0,
        overflowed: 0,
        ok: false,
    };
    let (mut error_squares, mut reference_squares) = (0.0, 0.0);
    for (index, ((&got, &want), &eager)) in got.iter().zip(reference).zip(eager).enumerate() {
        let got = f64::from(got);
        let error = if want.is_finite() && !eager.is_finite() {
            comparison.overflowed += 1;
            continue;
        } else if want.is_finite() {
            reference_squares += want * want;
            if got.is_finite() { (got - want).abs() } else { f64::INFINITY }
        } else {
            let as_it_should =
                if want == f64::NEG_INFINITY { got <= EMPTY } else { !got.is_finite() };
            if as_it_should { 0.0 } else { f64::INFINITY }
        };
        error_squares += error * error;
        if error > comparison.max_abs {
            comparison.max_abs = error;
            comparison.worst_index = index;
        }
    }
    if error_squares > 0.0 {
        comparison.relative = (error_squares / reference_squares).sqrt();
    }
    comparison.ok = comparison.max_abs <= comparison.bound;
    if got.len() != reference.len() || eager.len() != reference.len() {
        comparison.max_abs = f64::INFINITY;
        comparison.worst_index = got.len().min(reference.len()).min(eager.len());
        comparison.ok = false;
    }
    comparison
}

impl Reference<'_> {
    /// At most `limit` rows `[batch, head, query]`, all of them where they are no more, otherwise
    /// spread evenly with the first and the last among them.
    pub fn sample(&self, limit: usize) -> Vec<[u32; 3]> {
        let shape = &self.attention.shape;
        let [heads, len] = [shape.query_heads, shape.query_len].map(u64::from);
        let rows = u64::from(shape.batch) * heads * len;
        let count = rows.min(limit as u64);
        // One row of each of `count` equal parts, its place within the part stepping by the golden
        // ratio, which has no period in common with heads or lengths.
        let index = |part: u64| {
            let within = (part as f64 * 0.618_033_988_749_895).fract();
            let index = (part as f64 + within) * rows as f64 / count as f64;
            if part + 1 == count { rows - 1 } else { index as u64 }
        };
        let place = |i: u64| [i / (heads * len), i / len % heads, i % len].map(|x| x as u32);
        (0..count).map(|part| place(index(part))).collect()
    }

    /// Judges rows `[batch, head, query]` of a whole `out [batch, query_heads, query_len,
    /// value_dim]` and, where given, `lse [batch, query_heads, query_len]`.
    ///
    /// # Panics
    ///
    /// When a row lies outside of the shape.
    pub fn check_out(
        &self,
        rows: &[[u32; 3]],
        out: &[f32],
        lse: Option<&[f32]>,
    ) -> (Comparison, Option<Comparison>) {
        let mut outs = Rows::new(rows, self.attention.shape.out());
        let mut lses = Rows::new(rows, self.attention.shape.lse());
        for &[batch, head, query] in rows {
            let row = self.row(batch, head, query);
            let eager = self.row_eager(batch, head, query);
            let sensitivity = self.sensitivity(row.lse);
            outs.push(row.out, eager.out, sensitivity * row.magnitude);
            lses.push(vec![row.lse], vec![eager.lse], sensitivity);
        }
        let lse = lse.map(|lse| lses.compare(lse, DType::F32));
        (outs.compare(out, self.attention.precision()), lse)
    }

    /// Judges rows `[batch, head, query]` of the whole `scores [batch, query_heads, query_len,
    /// key_len]` of a stage.
    ///
    /// # Panics
    ///
    /// When a row lies outside of the shape.
    pub fn check_scores(&self, stage: Stage, rows: &[[u32; 3]], scores: &[f32]) -> Comparison {
        let mut judged = Rows::new(rows, self.attention.shape.scores());
        for &[batch, head, query] in rows {
            let row = self.scores(stage, batch, head, query);
            let magnitude = if stage == Stage::Probabilities {
                self.sensitivity(self.row(batch, head, query).lse)
            } else {
                let cap = self.attention.score.softcap.unwrap_or(0.0);
                let finite = row.iter().filter(|s| s.is_finite());
                f64::from(cap) + finite.fold(0.0f64, |most, s| most.max(s.abs()))
            };
            judged.push(row, self.scores_eager(stage, batch, head, query), magnitude);
        }
        judged.compare(scores, DType::F32)
    }

    /// By how much the errors of a row's scores add to those of its weights: the factor on the
    /// magnitude of whatever is made from the weights.
    ///
    /// A score `s` in f32 is off by half an ulp at least, 2⁻²⁴·|s|, and under softmax the scores
    /// that count are about the LSE. WGSL's `tanh` inherits the errors of `exp`, so a score capped
    /// by `c` is off by up to 6·2⁻²⁴·c. An error of `δ` in the scores is one of `2δ` in the output;
    /// in units of [`ALLOWANCE`] that is `(|s| + 6c) / 16`.
    fn sensitivity(&self, lse: f64) -> f64 {
        let size = match self.attention.activation {
            Activation::Softmax if lse.is_finite() => lse.abs(),
            // Where a large score errs, the sigmoid is flat.
            _ => 0.0,
        };
        let cap = f64::from(self.attention.score.softcap.unwrap_or(0.0));
        1.0 + 2.0 * (size + 6.0 * cap) / ALLOWANCE
    }
}

/// Chosen rows of a tensor, as the reference and the eager form have them.
struct Rows<'a> {
    places: &'a [[u32; 3]],
    shape: [u32; 4],
    reference: Vec<f64>,
    eager: Vec<f64>,
    magnitude: f64,
}

impl<'a> Rows<'a> {
    fn new(places: &'a [[u32; 3]], shape: [u32; 4]) -> Self {
        Self { places, shape, reference: Vec::new(), eager: Vec::new(), magnitude: 0.0 }
    }

    fn push(&mut self, reference: Vec<f64>, eager: Vec<f64>, magnitude: f64) {
        self.reference.extend(reference);
        self.eager.extend(eager);
        self.magnitude = self.magnitude.max(magnitude);
    }

    /// Compares the rows with those of a whole tensor; one that is too short fails.
    fn compare(&self, tensor: &[f32], dtype: DType) -> Comparison {
        let [_, heads, len, dim] = self.shape.map(|size| size as usize);
        let start = |place: &[u32; 3]| {
            let [batch, head, row] = place.map(|index| index as usize);
            ((batch * heads + head) * len + row) * dim
        };
        let mut got = Vec::with_capacity(self.reference.len());
        for place in self.places {
            let start = start(place);
            got.extend(tensor.get(start..start + dim).unwrap_or_default());
        }
        let mut found = compare(&got, &self.reference, &self.eager, dtype, self.magnitude);
        if let Some(place) = self.places.get(found.worst_index.checked_div(dim).unwrap_or(0)) {
            found.worst_index = start(place) + found.worst_index % dim.max(1);
        }
        found
    }
}
