//! Whether side arrays and gates are what a configuration refers to.

use super::{LinearAttention, Rule};
use crate::error::Error;
use crate::launch::Array;
use crate::launch::array::check_device;

/// Checks that gates on the host are in range: logarithms of what is left, so at most 0.
///
/// # Errors
/// [`Error::Tensor`] with the first gate that is NaN or above 0.
pub fn check_gates(gates: &[f32]) -> Result<(), Error> {
    // Not `gate > 0`: a NaN is out of range too.
    match gates.iter().position(|&gate| gate.is_nan() || gate > 0.0) {
        None => Ok(()),
        Some(index) => Err(Error::tensor(
            "gate",
            "logarithms of decay, at most 0",
            format!("{} at index {index}", gates[index]),
        )),
    }
}

/// Checks the side arrays and gives the number of documents, 1 where there are none.
pub(crate) fn check_arrays(
    linear: &LinearAttention,
    decay: Option<Array<'_>>,
    starts: Option<Array<'_>>,
) -> Result<u32, Error> {
    if let Some(decay) = decay {
        check_decay(linear, decay)?;
    }
    if let Some(starts) = starts {
        check_device("starts", starts)?;
    }
    let Some(starts) = starts.filter(|_| linear.documents) else {
        return match (starts, linear.documents) {
            (None, true) => Err(Error::tensor(
                "starts",
                "where each document starts, and the last one's end",
                "none",
            )),
            (Some(_), false) => {
                Err(Error::tensor("starts", "none: the configuration has no documents", "an array"))
            }
            _ => Ok(1),
        };
    };
    let len = linear.shape.key_len;
    if starts.len() < 2 {
        let got = format!("{} numbers", starts.len());
        return Err(Error::tensor("starts", "a start and an end at least", got));
    }
    if let Some(starts) = starts.host() {
        let descends = starts.windows(2).position(|pair| pair[0] > pair[1]);
        let got = match (starts, descends) {
            (&[first, ..], _) if first != 0 => Some(format!("{first} as the first")),
            (_, Some(index)) => Some(format!(
                "{} after {} at index {}",
                starts[index + 1],
                starts[index],
                index + 1
            )),
            (&[.., last], _) if last != len => Some(format!("{last} as the last")),
            _ => None,
        };
        if let Some(got) = got {
            let expected = format!("numbers that ascend from 0 to the length, {len}");
            return Err(Error::tensor("starts", expected, got));
        }
    }
    Ok((starts.len() - 1) as u32)
}

fn check_decay(linear: &LinearAttention, decay: Array<'_>) -> Result<(), Error> {
    let expected = |what: String, got: String| Err(Error::tensor("decay", what, got));
    if linear.rule != Rule::Decay {
        let what = format!("none with the rule {}", linear.rule.name());
        return expected(what, "an array".into());
    }
    let heads = linear.shape.key_heads;
    if decay.len() as u64 != u64::from(heads) {
        return expected(format!("{heads} slopes, one a key head"), decay.len().to_string());
    }
    check_device("decay", decay)?;
    let slopes = decay.host().unwrap_or_default();
    match slopes.iter().map(|&bits| f32::from_bits(bits)).find(|s| !(s.is_finite() && *s >= 0.0)) {
        Some(slope) => expected("finite slopes that are not negative".into(), slope.to_string()),
        None => Ok(()),
    }
}
