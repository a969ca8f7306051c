//! What the references on the host share: arithmetic that is f64 or f32, and contiguous tensors.

use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

use crate::error::Error;
use crate::tensor::LEAST_LOGIT;

/// The arithmetic that the loops need, so that f64 and f32 share them.
pub(crate) trait Real:
    Copy
    + PartialOrd
    + Into<f64>
    + Add<Output = Self>
    + AddAssign
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
{
    const ZERO: Self;
    const ONE: Self;
    const NAN: Self;
    const NEG_INFINITY: Self;
    fn real(x: f64) -> Self;
    fn exp(self) -> Self;
    fn ln(self) -> Self;
    fn tanh(self) -> Self;
    fn is_nan(self) -> bool;
    fn is_finite(self) -> bool;
}

macro_rules! real {
    ($float:ty) => {
        impl Real for $float {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const NAN: Self = Self::NAN;
            const NEG_INFINITY: Self = Self::NEG_INFINITY;
            fn real(x: f64) -> Self {
                x as Self
            }
            fn exp(self) -> Self {
                self.exp()
            }
            fn ln(self) -> Self {
                self.ln()
            }
            fn tanh(self) -> Self {
                self.tanh()
            }
            fn is_nan(self) -> bool {
                self.is_nan()
            }
            fn is_finite(self) -> bool {
                self.is_finite()
            }
        }
    };
}
real!(f32);
real!(f64);

/// The vector along the last axis of a contiguous tensor.
pub(crate) fn vector(tensor: &[f32], shape: [u32; 4], at: [u32; 3]) -> &[f32] {
    let [_, heads, len, dim] = shape.map(|size| size as usize);
    let [batch, head, row] = at.map(|index| index as usize);
    let start = ((batch * heads + head) * len + row) * dim;
    &tensor[start..start + dim]
}

/// Checks a contiguous tensor's number of values.
pub(crate) fn check_len(name: &str, values: &[f32], sizes: &[u32]) -> Result<(), Error> {
    // No overflow: three sizes of 32 bits and a last one below 2^31.
    let expected: u128 = sizes.iter().map(|&size| u128::from(size)).product();
    if values.len() as u128 == expected {
        return Ok(());
    }
    Err(Error::tensor(name, format!("{expected} values, {sizes:?}"), values.len().to_string()))
}

/// A number that does not stand for −∞: [`LEAST_LOGIT`] in place of lower ones.
pub(crate) fn at_least_logit<R: Real>(x: R) -> R {
    if x.into() < LEAST_LOGIT { R::real(LEAST_LOGIT) } else { x }
}
