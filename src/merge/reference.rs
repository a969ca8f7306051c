//! Merge on the host in f64, the judge of the kernel, and in f32, its yardstick.

use super::{Merge, MergeRule};
use crate::error::Error;
use crate::reference::real::{Real, at_least_logit, check_len};
use crate::reference::tolerance::EMPTY;
use crate::tensor::DType;

/// The tensors of one merge on the host, contiguous, as in
/// [`MergeInputs`](crate::MergeInputs).
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct HostParts<'a> {
    /// `[parts · batch, heads, len, dim]`.
    pub out: &'a [f32],
    /// `[parts · batch, heads, len]`, to merge by LSE.
    pub lse: &'a [f32],
    /// `[parts · batch, heads, len]` or empty: numbers in place of LSEs, NaN for none.
    pub logits: &'a [f32],
    /// `[parts · batch, heads, len]`, to merge by weights.
    pub weights: &'a [f32],
    /// `[parts]` or empty.
    pub log_weights: &'a [f32],
}

/// What a merge gives.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Merged {
    /// `[batch, heads, len, dim]`.
    pub out: Vec<f64>,
    /// `[batch, heads, len]`; −∞ for a row whose parts are all empty. Without meaning but for
    /// [`MergeRule::Lse`].
    pub lse: Vec<f64>,
}

/// Merges in f64.
///
/// # Errors
/// A configuration without meaning; a tensor of the wrong length.
pub fn merge(merge: &Merge, parts: &HostParts<'_>) -> Result<Merged, Error> {
    merge_in::<f64>(merge, parts)
}

/// Merges in f32, the output rounded to `dtype`.
///
/// # Errors
/// As [`merge`].
pub fn merge_eager(merge: &Merge, parts: &HostParts<'_>, dtype: DType) -> Result<Merged, Error> {
    let mut merged = merge_in::<f32>(merge, parts)?;
    let out: Vec<f32> = merged.out.iter().map(|&x| x as f32).collect();
    merged.out = dtype.decode(&dtype.encode(&out)).into_iter().map(f64::from).collect();
    Ok(merged)
}

fn merge_in<R: Real>(merge: &Merge, parts: &HostParts<'_>) -> Result<Merged, Error> {
    merge.validate()?;
    let dim = merge.shape[3] as usize;
    check_len("out (parts)", parts.out, &merge.stacked(merge.shape[3]))?;
    let rows = &merge.stacked(1);
    match merge.rule {
        MergeRule::Lse => check_len("lse (parts)", parts.lse, rows)?,
        MergeRule::Weights => check_len("weights", parts.weights, rows)?,
        MergeRule::Sum => {}
    }
    if !parts.logits.is_empty() {
        check_len("logits", parts.logits, rows)?;
    }
    if !parts.log_weights.is_empty() {
        check_len("log_weights", parts.log_weights, &[merge.parts])?;
    }
    let rows = merge.shape[..3].iter().map(|&size| size as usize).product::<usize>();
    let mut merged = Merged::default();
    for row in 0..rows {
        let places = (0..merge.parts as usize).map(|part| part * rows + row);
        let (weights, lse) = weights::<R>(merge, parts, places.clone());
        let mut out = vec![R::ZERO; dim];
        for (place, weight) in places.zip(weights) {
            // A part without weight counts for nothing, whatever it holds.
            let Some(weight) = weight else { continue };
            for (out, &x) in out.iter_mut().zip(&parts.out[place * dim..][..dim]) {
                *out += weight * R::real(x.into());
            }
        }
        merged.out.extend(out.into_iter().map(Into::<f64>::into));
        merged.lse.push(lse.into());
    }
    Ok(merged)
}

/// The weights of a row's parts, `None` for none, and the merged LSE.
fn weights<R: Real>(
    merge: &Merge,
    parts: &HostParts<'_>,
    places: impl Iterator<Item = usize>,
) -> (Vec<Option<R>>, R) {
    let real = |x: f32| R::real(x.into());
    match merge.rule {
        MergeRule::Sum => (places.map(|_| Some(R::ONE)).collect(), R::NEG_INFINITY),
        MergeRule::Weights => {
            let weight = |place: usize| Some(parts.weights[place]).filter(|w| *w != 0.0).map(real);
            (places.map(weight).collect(), R::NEG_INFINITY)
        }
        MergeRule::Lse => {
            let logs: Vec<_> = places.enumerate().map(|at| log_weight::<R>(parts, at)).collect();
            let present = logs.iter().flatten();
            let largest = present.fold(R::NEG_INFINITY, |a, &b| if b > a { b } else { a });
            let factors = logs.iter().map(|log| log.map(|log| (log - largest).exp()));
            let mut total = R::ZERO;
            factors.clone().flatten().for_each(|factor| total += factor);
            let lse = if logs.iter().all(Option::is_none) {
                R::NEG_INFINITY
            } else {
                at_least_logit(largest + total.ln())
            };
            (factors.map(|factor| factor.map(|factor| factor / total)).collect(), lse)
        }
    }
}

/// The logarithm of the weight of part `part`, at `place`; `None` for an empty one.
fn log_weight<R: Real>(parts: &HostParts<'_>, (part, place): (usize, usize)) -> Option<R> {
    let filled = |x: f32| Some(x).filter(|&x| x.is_nan() || f64::from(x) > EMPTY);
    let own = filled(parts.lse[place])?;
    let logit = parts.logits.get(place).copied().filter(|logit| !logit.is_nan());
    let log = logit.map_or(Some(own), filled)?;
    let added = parts.log_weights.get(part).copied().map_or(Some(0.0), filled)?;
    Some(R::real(log.into()) + R::real(added.into()))
}
