//! The decay slopes of Lightning attention and TransNormerLLM: `λ = exp(−slope)` per head.

use crate::error::Error;

/// The slopes as released with TransNormerLLM and Lightning attention, and as in MiniMax-01:
/// `alibi(h) · (1 − layer/(layers − 1) + 1e-5)` for each of `heads` heads, where `alibi(h)` is
/// `2^(−8(h+1)/heads)`, or ALiBi's interleave where `heads` is no power of two. A model of one
/// layer counts as its own first.
///
/// # Errors
/// [`Error::Config`] without heads, or for a layer outside of the model.
pub fn released(heads: u32, layer: u32, layers: u32) -> Result<Vec<f32>, Error> {
    check(heads, layer, layers)?;
    let depth = f64::from(layer) / f64::from((layers - 1).max(1));
    Ok(alibi(heads).into_iter().map(|slope| (slope * (1.0 - depth + 1e-5)) as f32).collect())
}

/// The slopes as the TransNormerLLM paper gives them: `(8h/heads) · (1 − layer/layers)`, with no
/// decay at all in head 0.
///
/// # Errors
/// [`Error::Config`] without heads, or for a layer outside of the model.
pub fn paper(heads: u32, layer: u32, layers: u32) -> Result<Vec<f32>, Error> {
    check(heads, layer, layers)?;
    let depth = 1.0 - f64::from(layer) / f64::from(layers);
    let slope = |head: u32| (8.0 * f64::from(head) / f64::from(heads) * depth) as f32;
    Ok((0..heads).map(slope).collect())
}

/// ALiBi's slopes: a geometric sequence for a power of two; otherwise that of the next lower power
/// of two, then every second one of the next higher.
fn alibi(heads: u32) -> Vec<f64> {
    let sequence =
        |count: u32| (1..=count).map(move |h| (-8.0 * f64::from(h) / f64::from(count)).exp2());
    let lower = 1 << heads.ilog2();
    let rest = (heads - lower) as usize;
    sequence(lower).chain(sequence(2 * lower).step_by(2).take(rest)).collect()
}

fn check(heads: u32, layer: u32, layers: u32) -> Result<(), Error> {
    // The higher power of two must exist, and nobody has more heads.
    if heads == 0 || heads > 1 << 16 {
        return Err(Error::config("slopes", "1 to 65536 heads", heads.to_string()));
    }
    if layer >= layers {
        return Err(Error::config(
            "slopes",
            format!("a layer below the number of layers, {layers}"),
            layer.to_string(),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_slopes_are_those_of_alibi_times_the_depth() {
        let slopes = released(8, 0, 24).expect("valid");
        assert_eq!(slopes[0], (0.5 * 1.00001f64) as f32);
        assert_eq!(slopes[7], (1.00001f64 / 256.0) as f32);
        let last = released(8, 23, 24).expect("valid");
        assert!((last[0] - 0.5e-5).abs() < 1e-9);
    }

    #[test]
    fn heads_that_are_no_power_of_two_interleave() {
        let slopes = released(6, 0, 2).expect("valid");
        let expected = [-2.0, -4.0, -6.0, -8.0, -1.0, -3.0f64];
        for (slope, power) in slopes.into_iter().zip(expected) {
            assert!((f64::from(slope) / (power.exp2() * 1.00001) - 1.0).abs() < 1e-6);
        }
    }

    #[test]
    fn one_layer_divides_by_no_zero() {
        assert!(released(4, 0, 1).expect("valid").iter().all(|s| s.is_finite()));
    }

    #[test]
    fn the_paper_s_first_head_does_not_decay() {
        assert_eq!(paper(8, 0, 2).expect("valid"), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        assert_eq!(paper(4, 1, 2).expect("valid"), [0.0, 1.0, 2.0, 3.0]);
    }

    #[test]
    fn bad_numbers_are_errors() {
        for (heads, layer, layers) in [(0, 0, 1), (1, 1, 1), (1, 0, 0)] {
            assert!(released(heads, layer, layers).is_err());
            assert!(paper(heads, layer, layers).is_err());
        }
    }
}
