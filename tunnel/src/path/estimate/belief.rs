//! What is believed of a round behind a queue that should not be there, and what shows that there was none.
//!
//! A path that became thinner and one that became longer look alike at first: as much as before is in flight, and takes
//! longer. What is sent once less is in flight tells them apart: behind a queue of ours it takes less time. If it takes as long, the
//! time is the path's, or the queue somebody else's, whom giving way serves nothing.

use std::time::Duration;

use towpath_protocol::time::Instant;

use super::Round;
use super::amounts::scaled_time;

/// Round trips in which a belief is borne out, refuted, or forgotten: behind a short queue so many pass before much less
/// is in flight.
const ROUND_COUNT_MAX: u32 = 32;

/// That a path carries less than it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Belief {
    /// When less was in flight from then on.
    pub(super) since: Instant,
    /// The least round trip before, and what it may be.
    pub(super) rtt_before: Duration,
    pub(super) rtt_allowed: Duration,
    /// Bytes in flight before.
    pub(super) window_before: u64,
    /// The path's rate before, in bytes a second.
    pub(super) rate_before: u64,
    /// Rounds in a row that have refuted it.
    pub(super) round_count: u32,
}

impl Belief {
    /// The same, where another was believed before that is not borne out yet.
    pub(super) fn after(self, known: Self) -> Self {
        let is_alike = known.is_alike(self.rtt_before);
        Self {
            since: self.since,
            rate_before: known.rate_before,
            ..if is_alike { known } else { self }
        }
    }

    /// Whether so much less is in flight that the next rounds test it.
    pub(super) const fn is_much_more_than(&self, window_bytes: u64) -> bool {
        window_bytes <= self.window_before / 4 * 3
    }

    /// Whether all packets of a round were sent since, and much less was in flight.
    pub(super) fn is_tested_by(&self, round: &Round) -> bool {
        self.is_much_more_than(round.window_bytes) && round.began >= self.since + self.rtt_before
    }

    /// Takes note of a round of such packets; says whether they took about as long as those before. More is a queue that
    /// grows.
    pub(super) fn note(&mut self, round: &Round) -> bool {
        self.round_count += 1;
        let expected = scaled_time(self.rtt_before, round.window_bytes, self.window_before);
        let expected = expected.max(self.rtt_allowed);
        round.rtt_min > (expected + self.rtt_before) / 2 && self.is_alike(round.rtt_min)
    }

    /// Whether it was neither borne out nor refuted for so long that it says nothing any more.
    pub(super) fn is_old(&self, now: Instant) -> bool {
        now.since(self.since) > self.rtt_before * ROUND_COUNT_MAX
    }

    /// Whether a round trip is no longer than before.
    pub(super) fn is_alike(&self, rtt: Duration) -> bool {
        rtt < self.rtt_before + self.rtt_before / 8
    }
}
