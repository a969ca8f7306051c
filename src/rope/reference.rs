//! Rotary embedding on the host in f64, the judge of the kernel, and in f32, its yardstick.

use super::{Rope, RopePairs};
use crate::error::Error;
use crate::reference::real::{Real, check_len};
use crate::tensor::DType;

/// The tensors of one rotation on the host, contiguous, as in [`RopeInputs`](crate::RopeInputs).
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct HostRope<'a> {
    /// `[batch, heads, len, dim]`.
    pub input: &'a [f32],
    /// `[rows, rotary_dim / 2]`, or without positions `[batch | 1, len, rotary_dim / 2]`.
    pub cos: &'a [f32],
    /// As `cos`.
    pub sin: &'a [f32],
    /// `[batch, len]`, `[len]`, or empty for none.
    pub positions: &'a [u32],
}

/// Rotates in f64: `[batch, heads, len, dim]`.
///
/// # Errors
/// A configuration without meaning; a tensor of the wrong length; a position outside of the
/// tables.
pub fn rotate(rope: &Rope, host: &HostRope<'_>) -> Result<Vec<f64>, Error> {
    rotate_in::<f64>(rope, host)
}

/// Rotates in f32, the output rounded to the dtype.
///
/// # Errors
/// As [`rotate`].
pub fn rotate_eager(rope: &Rope, host: &HostRope<'_>) -> Result<Vec<f64>, Error> {
    let out: Vec<f32> = rotate_in::<f32>(rope, host)?.into_iter().map(|x| x as f32).collect();
    let dtype: DType = rope.dtype;
    Ok(dtype.decode(&dtype.encode(&out)).into_iter().map(f64::from).collect())
}

fn rotate_in<R: Real>(rope: &Rope, host: &HostRope<'_>) -> Result<Vec<f64>, Error> {
    rope.validate()?;
    let [_, heads, len, dim] = rope.shape.map(|size| size as usize);
    check_len("input", host.input, &rope.shape)?;
    check_len("sin", host.sin, &[host.cos.len() as u32])?;
    let half = rope.rotary_dim as usize / 2;
    let mut out = Vec::with_capacity(host.input.len());
    for (row, numbers) in host.input.chunks(dim.max(1)).enumerate() {
        let token = row / (heads * len) * len + row % len;
        // A table or positions for one batch entry serve all.
        let table_row = match host.positions {
            [] => token % (host.cos.len() / half).max(1),
            positions => positions[token % positions.len()] as usize,
        };
        let table = table_row * half..(table_row + 1) * half;
        let (Some(cos), Some(sin)) = (host.cos.get(table.clone()), host.sin.get(table)) else {
            let got = format!("position {table_row} of {}", host.cos.len() / half);
            return Err(Error::tensor("positions", "rows of the tables", got));
        };
        let number = |element: usize| R::real(numbers[element].into());
        for element in 0..dim {
            let rotated = if element < 2 * half {
                let (pair, second, other) = match rope.pairs {
                    RopePairs::Halves => {
                        (element % half, element >= half, (element + half) % (2 * half))
                    }
                    RopePairs::Interleaved => (element / 2, element % 2 == 1, element ^ 1),
                };
                let turned = R::real(sin[pair].into()) * number(other);
                let kept = R::real(cos[pair].into()) * number(element);
                if second { kept + turned } else { kept - turned }
            } else {
                number(element)
            };
            out.push(rotated.into());
        }
    }
    Ok(out)
}
