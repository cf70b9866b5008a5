//! Minimum and maximum over the last two spans of time, so that at least one whole span always
//! counts.

use std::time::Duration;

use towpath_protocol::time::Instant;

/// Length of a span of [`Peak`]; longer than one round. On a path shorter than this, rounds are so
/// short that an unscheduled process looks like a slow path.
pub(super) const PEAK_TIME: Duration = Duration::from_millis(20);

/// Length of a span of [`Base`].
const BASE_TIME: Duration = Duration::from_secs(10);

/// The shortest round trips of the current and the previous span.
#[derive(Debug, Clone, Copy)]
pub(super) struct Base {
    began: Instant,
    /// [`Duration::MAX`] until the span has a round trip; likewise `previous`.
    current: Duration,
    previous: Duration,
}

impl Base {
    /// The base of a path of which nothing is known yet.
    pub(super) const fn unknown(now: Instant) -> Self {
        Self::of(Duration::MAX, now)
    }

    /// The base of a path with this round trip.
    pub(super) const fn of(rtt: Duration, now: Instant) -> Self {
        Self {
            began: now,
            current: rtt,
            previous: Duration::MAX,
        }
    }

    /// Records a round trip; returns the shortest.
    pub(super) fn with(&mut self, rtt: Duration) -> Duration {
        self.current = self.current.min(rtt);
        self.current.min(self.previous)
    }

    /// Returns the shortest round trip, if one is known.
    pub(super) fn known(&self) -> Option<Duration> {
        let base = self.current.min(self.previous);
        (base != Duration::MAX).then_some(base)
    }

    /// Whether the current span is over.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        now.since(self.began) >= BASE_TIME
    }

    /// Begins a new span.
    pub(super) const fn turn(&mut self, now: Instant) {
        *self = Self {
            began: now,
            current: Duration::MAX,
            previous: self.current,
        };
    }
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
