//! The mask of ONNX Attention, of any rank, as a dense mask or a bias of this library.

use super::Tensor;
use crate::attention::mask::pack_mask;
use crate::attention::score::Broadcast;
use crate::error::Error;
use crate::shape::Shape;
use crate::tensor::View;

/// The input `attn_mask`: it broadcasts to `[batch, q_num_heads, q_len, total_len]`. Its last axis
/// may be shorter than the keys; those beyond it are masked.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum AttentionMask<'a> {
    /// Added to the scores; −∞ masks a pair.
    Float(&'a Tensor),
    /// Which pairs are kept, on the host.
    Bool {
        /// The sizes of its axes, one to four.
        shape: &'a [u32],
        /// Contiguous in that shape.
        keep: &'a [bool],
    },
}

/// A mask's axes against those of a call.
pub(super) struct Axes {
    /// `[batch | 1, heads | 1, len | 1, keys]`.
    own: [u32; 4],
    pub broadcast: Broadcast,
    /// Keys that the mask covers.
    pub keys: u32,
}

impl AttentionMask<'_> {
    /// The mask's axes, once they are found to fit.
    pub(super) fn axes(&self, shape: &Shape) -> Result<Axes, Error> {
        let sizes = match self {
            Self::Float(tensor) => &tensor.shape[..],
            Self::Bool { shape, .. } => shape,
        };
        let whole = [shape.batch, shape.query_heads, shape.query_len, shape.key_len];
        let refused = || {
            let expected = format!("a shape that broadcasts to {whole:?}");
            Error::tensor("attn_mask", expected, format!("{sizes:?}"))
        };
        if sizes.is_empty() || sizes.len() > 4 {
            return Err(refused());
        }
        let mut own = [1; 4];
        own[4 - sizes.len()..].copy_from_slice(sizes);
        let fits = own.iter().zip(whole).take(3).all(|(&own, size)| own == 1 || own == size);
        if !fits || own[3] > whole[3] {
            return Err(refused());
        }
        if let Self::Bool { keep, .. } = self {
            let count = own.iter().map(|&size| u64::from(size)).product::<u64>();
            if keep.len() as u64 != count {
                let expected = format!("{count} values of shape {sizes:?}");
                return Err(Error::tensor("attn_mask", expected, format!("{} values", keep.len())));
            }
        }
        let broadcast = Broadcast {
            per_batch: own[0] == whole[0] && own[0] > 1,
            per_head: own[1] == whole[1] && own[1] > 1,
        };
        Ok(Axes { own, broadcast, keys: own[3] })
    }
}

impl Axes {
    /// The bits of a boolean mask, as [`Arrays::dense_mask`](crate::Arrays::dense_mask) has them.
    pub fn bits(&self, keep: &[bool], query_len: u32) -> Vec<u32> {
        if self.own[2] == query_len || self.keys == 0 {
            return pack_mask(keep, self.keys);
        }
        // One row serves all queries.
        let rows = keep.chunks(self.keys as usize);
        let repeated: Vec<bool> = rows.flat_map(|row| row.repeat(query_len as usize)).collect();
        pack_mask(&repeated, self.keys)
    }

    /// A float mask as a bias `[batch | 1, heads | 1, query_len, keys]`.
    pub fn view<'a>(&self, tensor: &'a Tensor, query_len: u32) -> View<'a> {
        let [batch, heads, len, keys] = self.own;
        let mut view = tensor.view([batch, heads, len, keys]);
        if len != query_len {
            view.strides[2] = 0;
        }
        view.shape[2] = query_len;
        view
    }
}
