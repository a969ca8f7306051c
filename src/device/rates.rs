//! How fast a device was seen to be, which tells how much work a submission may hold.

use std::collections::HashMap;
use std::time::Duration;

use crate::caps::Caps;

/// What to let a submission take, unless the context says otherwise.
pub(crate) const SUBMISSION_TIME: Duration = Duration::from_millis(500);

/// Operations a second that any device of the class reaches, in the slowest kernel.
const CPU_RATE: f64 = 3e8;
const GPU_RATE: f64 = 1e11;

/// A shorter submission measures waiting as well as work ...
const RESOLUTION: Duration = Duration::from_millis(2);

/// ... and one shorter than this does not show that a device is slow.
const TELLING: Duration = Duration::from_millis(20);

/// Operations a second that each kind of work, by its label, was last seen to reach.
#[derive(Debug, Default)]
pub(crate) struct Rates(HashMap<&'static str, f64>);

impl Rates {
    /// As measured, or what is safe.
    pub fn of(&self, caps: &Caps, label: &str) -> f64 {
        let safe = if caps.is_cpu { CPU_RATE } else { GPU_RATE };
        self.0.get(label).copied().unwrap_or(safe)
    }

    pub fn learn(&mut self, caps: &Caps, (label, cost): (&'static str, f64), time: Duration) {
        let reached = cost / time.max(RESOLUTION).as_secs_f64();
        if time >= TELLING || reached > self.of(caps, label) {
            self.0.insert(label, reached);
        }
    }
}
