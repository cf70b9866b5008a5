//! Minimum and maximum over the last two spans of time, so that at least one whole span always
//! counts.

use std::time::Duration;

use towpath_protocol::time::Instant;

/// Length of a span of [`Peak`]; longer than one round. On a path shorter than this, rounds are so
/// short that an unscheduled process looks like a slow path.
pub(super) const PEAK_TIME: Duration = Duration::from_millis(20);

/// The shortest round trips of the current and the previous span.
#[derive(Debug, Clone, Copy)]
pub(super) struct Base {
    pub(super) began: Instant,
    pub(super) current: Duration,
    pub(super) previous: Duration,
}

/// The highest rate of the current and the previous span.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Peak {
    began: Instant,
    current: u64,
    previous: u64,
}

impl Peak {
    /// Adds a sample; returns the highest rate.
    pub(super) fn with(&mut self, rate: u64, now: Instant) -> u64 {
        if now.since(self.began) >= PEAK_TIME {
            self.began = now;
            self.previous = self.current;
            self.current = 0;
        }
        self.current = self.current.max(rate);
        self.current.max(self.previous)
    }
}
