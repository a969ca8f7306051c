//! Trials of kernels that depend on experimental features: a plan hands none out before it has computed
//! a small problem right on the device at hand.
//!
//! Drivers are not always right about cooperative matrices (docs/platform.md has the cases), and what
//! they do wrong depends on a kernel's text. So the first plan of a text runs it on made-up tensors and
//! compares with the f64 reference. The outcome is kept with the context and, natively, in its folder.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::device::Context;
use crate::device::cache::checksum;
use crate::device::lock;
use crate::error::{Error, Unsupported};
use crate::reference::tolerance::{Comparison, Verdict};
use crate::shader::Source;

/// `Ok` for right results; otherwise what was wrong, as a part of a sentence.
pub(crate) type Outcome = Result<(), String>;

/// What trials have shown, by [`key`].
pub(crate) type Outcomes = Arc<Mutex<HashMap<String, Outcome>>>;

/// What a trial shows by the comparisons of its tensors: the first that fails is named. Rows that f32 cannot
/// tell show nothing.
pub(crate) fn outcome<const N: usize>(found: [(&str, Option<Comparison>); N]) -> Outcome {
    for (tensor, found) in found {
        if let Some(found) = found.filter(|found| found.verdict() == Verdict::Failed) {
            return Err(format!(
                "`{tensor}` is off by {:.2e} where {:.2e} is allowed (relative error {:.2e})",
                found.max_abs, found.bound, found.relative
            ));
        }
    }
    Ok(())
}

impl Context {
    /// Whether a kernel of these texts is to be tried before it is handed out.
    pub(crate) fn verifies(&self, sources: &[&Source]) -> bool {
        self.has_verification() && sources.iter().any(|source| source.uses_matrices())
    }

    /// Asks what a trial of `sources` has shown, and runs the `trial` where none has been run.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the kernel of this `label` computes wrong results; a lost device, or
    /// one out of memory.
    pub(crate) async fn verify(
        &self,
        label: &'static str,
        sources: &[&Source],
        trial: impl Future<Output = Result<Outcome, Error>>,
    ) -> Result<(), Error> {
        let key = key(self, label, sources);
        let outcome = match self.outcome(&key) {
            Some(outcome) => outcome,
            None => {
                let start = Instant::now();
                let outcome = trial.await?;
                log::info!("tried {label} in {:?}", start.elapsed());
                if let Err(fault) = &outcome {
                    log::warn!(
                        "{label} computes wrong results on {}: {fault}",
                        self.caps().adapter
                    );
                }
                self.keep_outcome(&key, outcome.clone());
                outcome
            }
        };
        let adapter = &self.caps().adapter;
        outcome.map_err(|fault| {
            let reason = format!("it computes wrong results on {adapter}: in a trial {fault}");
            Unsupported::new(label, reason).into()
        })
    }

    fn outcome(&self, key: &str) -> Option<Outcome> {
        let here = lock(self.outcomes()).get(key).cloned();
        here.or_else(|| self.cache()?.outcome(key))
    }

    fn keep_outcome(&self, key: &str, outcome: Outcome) {
        if let Some(cache) = self.cache() {
            cache.keep_outcome(key, &outcome);
        }
        lock(self.outcomes()).insert(key.to_owned(), outcome);
    }
}

/// Adapter with driver, kernel, and a checksum of the texts that run.
fn key(context: &Context, label: &str, sources: &[&Source]) -> String {
    let text: Vec<&str> = sources.iter().map(|source| source.wgsl()).collect();
    let adapter = context.caps().adapter.replace(['\t', '\n'], " ");
    let checked = if context.has_checked_shaders() { " checked" } else { "" };
    format!("{adapter}\t{label}{checked} {:016x}", checksum(text.join("\n").as_bytes()))
}

/// Bits without any order.
pub(crate) fn mixed(index: u32) -> u32 {
    let once = (index ^ index >> 16).wrapping_mul(0x7feb_352d);
    let twice = (once ^ once >> 15).wrapping_mul(0x846c_a68b);
    twice ^ twice >> 16
}

/// Numbers from −2 to 2 without any order.
pub(crate) fn number(index: u32) -> f32 {
    (mixed(index) >> 16) as f32 / 16_384.0 - 2.0
}
