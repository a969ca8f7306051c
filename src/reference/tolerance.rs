//! How far a result may lie from the f64 reference: one rule, for tests, the program and the page.

use crate::tensor::DType;

pub use crate::tensor::{EMPTY, LEAST_LOGIT};

/// Half an ulp of f32 at 1.
const HALF_ULP: f64 = 1.0 / (1u64 << 24) as f64;

/// Half units of the last place of f32, relative to a tensor's magnitude, that a kernel may err
/// by when the eager form happens to be exact; see [`bound`].
pub(crate) const ALLOWANCE: f64 = 32.0;

/// What a comparison says about a tensor, from the best to the worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Every row was judged and is within the bound.
    Ok,
    /// Nothing is beyond its bound, but for some rows no result could be: see
    /// [`Comparison::unjudged`].
    Unjudged,
    /// An element is beyond its bound.
    Failed,
}

impl Verdict {
    /// `ok`, `unjudged` or `failed`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unjudged => "unjudged",
            Self::Failed => "failed",
        }
    }
}

/// What [`compare`] found.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Comparison {
    /// Largest absolute error of a judged element; infinite where one is finite and should not be, or
    /// is not and should.
    pub max_abs: f64,
    /// `‖got − reference‖ / ‖reference‖` over the judged elements whose reference is finite.
    pub relative: f64,
    /// What `max_abs` may reach.
    pub bound: f64,
    /// Where `max_abs` lies, as an index into the tensor.
    pub worst_index: usize,
    /// Elements left unjudged, because the eager form overflows there and the reference does not.
    pub overflowed: usize,
    /// Rows left unjudged, because f32 cannot tell there what is right: the errors that arithmetic in
    /// f32 may make exceed the size of the result, so that even zeros would be within the bound. They
    /// fail where a result is impossible (an output of softmax cannot err by more than twice the
    /// largest value that its row keeps) or not finite when it should be; [`ok`](Self::ok) is false
    /// with them in any case.
    pub unjudged: usize,
    /// Whether every row was judged and every element is within the bound.
    pub ok: bool,
}

impl Comparison {
    /// The verdict: [`ok`](Self::ok), and what it is instead.
    pub const fn verdict(&self) -> Verdict {
        if self.ok {
            Verdict::Ok
        } else if self.unjudged > 0 && self.max_abs <= self.bound {
            Verdict::Unjudged
        } else {
            Verdict::Failed
        }
    }
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
/// value for `out` (or, tighter, [`Row::magnitude`](crate::attention::reference::Row::magnitude)), 1 for
/// probabilities, the largest absolute score for scores. Elements where either tensor is not
/// finite do not count.
pub fn bound(reference: &[f64], eager: &[f64], dtype: DType, magnitude: f64) -> f64 {
    Errors::of(reference, eager, magnitude).bound(dtype)
}

/// What a bound is made of.
#[derive(Clone, Copy, Default)]
struct Errors {
    /// The largest error of the eager form.
    eager: f64,
    /// The largest absolute number of the reference.
    largest: f64,
    magnitude: f64,
    /// Elements of which both forms are finite.
    finite: usize,
}

impl Errors {
    fn of(reference: &[f64], eager: &[f64], magnitude: f64) -> Self {
        let mut errors = Self { magnitude, ..Self::default() };
        for (&want, &eager) in reference.iter().zip(eager) {
            if want.is_finite() && eager.is_finite() {
                errors.eager = errors.eager.max((eager - want).abs());
                errors.largest = errors.largest.max(want.abs());
                errors.finite += 1;
            }
        }
        errors
    }

    fn join(&mut self, other: Self) {
        self.eager = self.eager.max(other.eager);
        self.largest = self.largest.max(other.largest);
        self.magnitude = self.magnitude.max(other.magnitude);
        self.finite += other.finite;
    }

    /// What the final rounding may err by.
    fn rounding(&self, dtype: DType) -> f64 {
        let (half_ulp, least) = match dtype {
            DType::F32 => (HALF_ULP, f64::from(f32::MIN_POSITIVE)),
            DType::F16 => (1.0 / f64::from(1 << 11), 1.0 / f64::from(1 << 25)),
            DType::BF16 => (1.0 / f64::from(1 << 8), f64::from(f32::MIN_POSITIVE)),
        };
        (half_ulp * self.largest).max(least)
    }

    fn bound(&self, dtype: DType) -> f64 {
        2.0 * self.eager + self.rounding(dtype) + ALLOWANCE * HALF_ULP * self.magnitude
    }

    /// The part of the bound that is for arithmetic in f32, not for roundings to the dtype.
    fn arithmetic(&self, dtype: DType) -> f64 {
        let eager = (self.eager - self.rounding(dtype)).max(0.0);
        2.0 * eager + ALLOWANCE * HALF_ULP * self.magnitude
    }
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
/// Every element is judged, whatever the magnitude: which rows cannot be, [`Reference::check_out`](crate::attention::reference::Reference::check_out),
/// [`Reference::check_scores`](crate::attention::reference::Reference::check_scores) and those of the other families know.
///
/// Tensors of different lengths fail, with the shorter one's length as `worst_index`.
pub fn compare(
    got: &[f32],
    reference: &[f64],
    eager: &[f64],
    dtype: DType,
    magnitude: f64,
) -> Comparison {
    let (size, most) = (f64::INFINITY, f64::INFINITY);
    let whole = Part { len: reference.len(), magnitude, size, most };
    compare_parts(got, (reference, eager), dtype, &[whole])
}

/// Some neighbouring elements of a tensor that f32 can tell or cannot: a row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    /// Number of elements.
    pub len: usize,
    /// What errors of the part's f32 arithmetic scale with: see [`bound`].
    pub magnitude: f64,
    /// The error that zeros would have at most. The part is judged if f32 arithmetic errs by no more.
    pub size: f64,
    /// The largest error that a result of the right form could have; infinite if there is no such.
    pub most: f64,
}

/// As [`compare`], of a tensor made of `parts`; the bound is that of the parts which can be judged.
pub(crate) fn compare_parts(
    got: &[f32],
    (reference, eager): (&[f64], &[f64]),
    dtype: DType,
    parts: &[Part],
) -> Comparison {
    let mut judged = Errors::default();
    let mut limits = Vec::with_capacity(parts.len());
    let mut start = 0;
    for part in parts {
        let end = (start + part.len).min(reference.len()).min(eager.len());
        let elements = start.min(end)..end;
        let (want, eager) = (&reference[elements.clone()], &eager[elements]);
        let errors = Errors::of(want, eager, part.magnitude);
        let can_be_judged = errors.arithmetic(dtype) <= part.size;
        // What is not finite can be judged in any case, and has no share in a bound.
        if errors.finite == 0 {
            limits.push(None);
        } else if can_be_judged {
            judged.join(errors);
            limits.push(None);
        } else {
            limits.push(Some(errors.bound(dtype).min(part.most + errors.rounding(dtype))));
        }
        start = end;
    }
    let bound = judged.bound(dtype);
    let mut impossible = None;
    let mut comparison = Comparison {
        max_abs: 0.0,
        relative: 0.0,
        bound,
        worst_index: 0,
        overflowed: 0,
        unjudged: limits.iter().flatten().count(),
        ok: false,
    };
    let limit =
        parts.iter().zip(limits).flat_map(|(part, limit)| (0..part.len).map(move |_| limit));
    let (mut error_squares, mut reference_squares) = (0.0, 0.0);
    let elements = got.iter().zip(reference).zip(eager).zip(limit);
    for (index, (((&got, &want), &eager), limit)) in elements.enumerate() {
        let got = f64::from(got);
        let error = if want.is_finite() && !eager.is_finite() {
            comparison.overflowed += 1;
            continue;
        } else if want.is_finite() {
            if got.is_finite() { (got - want).abs() } else { f64::INFINITY }
        } else {
            let as_it_should =
                if want == f64::NEG_INFINITY { got <= EMPTY } else { !got.is_finite() };
            if as_it_should { 0.0 } else { f64::INFINITY }
        };
        if let Some(limit) = limit {
            if error > limit {
                impossible.get_or_insert((error, limit, index));
            }
            continue;
        }
        error_squares += error * error;
        if want.is_finite() {
            reference_squares += want * want;
        }
        if error > comparison.max_abs {
            comparison.max_abs = error;
            comparison.worst_index = index;
        }
    }
    // A result that is impossible is told by the limit of its own row, unless a judged row fails.
    if let Some((error, limit, index)) = impossible.filter(|_| comparison.max_abs <= bound) {
        (comparison.max_abs, comparison.bound, comparison.worst_index) = (error, limit, index);
    }
    if error_squares > 0.0 {
        comparison.relative = (error_squares / reference_squares).sqrt();
    }
    comparison.ok = comparison.max_abs <= comparison.bound && comparison.unjudged == 0;
    if got.len() != reference.len() || eager.len() != reference.len() {
        comparison.max_abs = f64::INFINITY;
        comparison.worst_index = got.len().min(reference.len()).min(eager.len());
        comparison.ok = false;
    }
    comparison
}
