//! How far a dispatch of linear attention walks on a driver that ends the loops of an invocation after
//! so many rounds together ([`Caps::loop_rounds`]): the scans take a segment of chunks, and
//! `linear.recurrent` takes some tokens, one dispatch after the other.

use super::LinearAttention;
use super::tiles::MOST_STAGED;
use super::variant::Kernel;
use crate::caps::Caps;
use crate::error::Unsupported;
use crate::shader::Source;

impl LinearAttention {
    /// The chunks, or tokens of `linear.recurrent`, that a dispatch of each kernel can walk; `None`
    /// without a limit, an error where not even one is.
    pub(super) fn walk<'a>(
        &self,
        caps: &Caps,
        kernels: impl IntoIterator<Item = &'a (Kernel, Source)>,
    ) -> Result<Option<u32>, Unsupported> {
        let Some(limit) = caps.loop_rounds else { return Ok(None) };
        let mut least = u32::MAX;
        for (kernel, source) in kernels {
            let Some(steps) = self.walk_within(*kernel, source, limit) else {
                return Err(Unsupported::rounds(kernel.label(), limit));
            };
            least = least.min(steps);
        }
        Ok(Some(least))
    }

    /// The same of one kernel.
    pub(super) fn walk_within(&self, kernel: Kernel, source: &Source, limit: u32) -> Option<u32> {
        let group = self.shape.query_heads / self.shape.key_heads;
        // Where rounds are limited, an invocation of `linear.state_scan` takes one vector.
        let rounds = source.rounds(&[("GROUP", group), ("VECTORS", 1)])?;
        let steps = rounds.walk_within(limit)?.min(u64::from(u32::MAX)) as u32;
        // Tokens that are staged together may be fewer at the end.
        let staged = if kernel == Kernel::Columns { MOST_STAGED } else { 0 };
        let steps = steps.saturating_sub(staged);
        (steps > 0).then_some(steps)
    }
}
