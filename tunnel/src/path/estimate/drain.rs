//! The drain: for one round trip less is in flight than the path holds, so that the queue runs
//! empty and shows the base.

use std::time::Duration;

use towpath_protocol::amounts::bytes_in;

use super::finished::Finished;
use super::{Estimator, Phase};

/// One round trip with less in flight than the path holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Drain {
    /// The window to restore.
    pub(super) window_bytes: u64,
    /// The base when the drain began. If a shorter one shows, the queue was not empty yet.
    pub(super) base: Duration,
    /// How much less is in flight, as a time. Small, because the missing part comes back as a
    /// burst; doubled each time a shorter base shows.
    pub(super) depth: Duration,
}

impl Estimator {
    /// Begins a new span for the base, with a drain, because our own queue may hide the base. A
    /// sender that keeps below the rate has no queue, and a drain would only cause a burst.
    pub(super) fn turn_base(&mut self, finished: &Finished) {
        if !self.base.is_over(finished.now) {
            return;
        }
        self.told.turn();
        if self.phase == Phase::Steady && !finished.round.is_cruising {
            self.drain(Drain {
                window_bytes: self.window_bytes,
                base: finished.base,
                depth: self.allowance.time(),
            });
        }
        self.base.turn(finished.now);
    }

    /// Ends a drain's round. If the queue was not empty yet, a deeper drain follows.
    pub(super) fn end_drain(&mut self, drain: Drain, base: Duration) {
        if base + self.allowance.time() / 2 < drain.base {
            self.drain(Drain {
                base,
                depth: drain.depth * 2,
                ..drain
            });
        } else {
            self.window_bytes = drain.window_bytes;
            self.phase = Phase::Filling { round_count: 1 };
        }
    }

    /// Reduces the window for a round.
    fn drain(&mut self, drain: Drain) {
        self.phase = Phase::Draining(drain);
        let left = drain.base - drain.depth.min(drain.base / 2);
        self.window_bytes = bytes_in(self.rate_bytes_per_second, left);
    }
}
