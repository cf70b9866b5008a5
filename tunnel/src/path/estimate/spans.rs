//! The least and the most of two spans of time, so that one whole span always counts.

use std::time::Duration;

use towpath_protocol::time::Instant;

/// How long the highest rate counts, and longer than one round. On a path shorter than this, rounds are so short
/// that a process which was not scheduled looks like a slow path.
pub(super) const PEAK_TIME: Duration = Duration::from_millis(20);

/// The shortest round trips of two spans of time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Base {
    pub(super) began: Instant,
    pub(super) current: Duration,
    pub(super) previous: Duration,
}

/// The highest rate of the last few milliseconds: of two spans, so that it always covers one whole.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Peak {
    began: Instant,
    current: u64,
    previous: u64,
}

impl Peak {
    /// The peak with one more sample.
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
