//! The score axis: what a pair of a query and a key scores before masking.

use crate::error::Error;
use crate::tensor::DType;

/// What a pair scores: `scale · q·k`, then softcap, then ALiBi and the biases added. A kept pair that
/// then scores −5e29 or less counts as
/// [`LEAST_LOGIT`](crate::attention::tolerance::LEAST_LOGIT).
///
/// The arrays behind `alibi`, `key_bias`, `bias` and `sinks` are given when a plan is bound, in
/// [`Inputs`](crate::Inputs).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Score {
    /// Factor of the dot product; `None` is `1/√head_dim`.
    pub scale: Option<f32>,
    /// `c` of `c · tanh(s/c)`, applied after the scale; `None` leaves scores uncapped.
    pub softcap: Option<f32>,
    /// Adds `−slope[h] · |i' − j|` with a slope per query head (Press et al., 2021).
    pub alibi: bool,
    /// Adds a number per key; −∞ masks the key.
    pub key_bias: Option<Broadcast>,
    /// Adds a number per pair, of this element type; −∞ masks the pair, and so does any number up to
    /// −5e29, such as the least of f32.
    pub bias: Option<(DType, Broadcast)>,
    /// Lets a logit per query head join the sum that weights are divided by, as a key would that
    /// has no value: the weights of a row then add up to less than 1 (softmax only). One of −5e29 or
    /// less is none.
    pub sinks: bool,
}

/// Along which leading axes an array has entries of its own; along the others it is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Broadcast {
    /// One per batch entry rather than one for all.
    pub per_batch: bool,
    /// One per query head rather than one for all.
    pub per_head: bool,
}

impl Broadcast {
    /// Shared by all batch entries and heads.
    pub const SHARED: Self = Self { per_batch: false, per_head: false };

    /// `(batch | 1, heads | 1)`.
    pub const fn sizes(self, batch: u32, heads: u32) -> (u32, u32) {
        (if self.per_batch { batch } else { 1 }, if self.per_head { heads } else { 1 })
    }
}

impl Score {
    /// Whether anything but the scale changes a score.
    pub const fn is_modified(&self) -> bool {
        self.softcap.is_some() || self.alibi || self.key_bias.is_some() || self.bias.is_some()
    }

    /// Checks that scale and softcap are usable numbers.
    pub fn validate(&self) -> Result<(), Error> {
        if let Some(scale) = self.scale.filter(|s| !s.is_finite()) {
            return Err(Error::config("score.scale", "a finite number", scale.to_string()));
        }
        if let Some(cap) = self.softcap.filter(|c| !(c.is_finite() && *c > 0.0)) {
            return Err(Error::config("score.softcap", "a finite number above 0", cap.to_string()));
        }
        Ok(())
    }
}
