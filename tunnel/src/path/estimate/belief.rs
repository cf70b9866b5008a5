//! The suspicion that a path carries less than before, and the test of it.
//!
//! A path that became thinner and one that became longer look alike at first: as much as before is
//! in flight, and takes longer. Packets sent with less in flight tell them apart. If the queue was
//! ours, they take less time. If they take as long, the time is the path's, or the queue is
//! somebody else's, and giving way to that would not help.

use std::time::Duration;

use towpath_protocol::time::Instant;

use super::Round;
use super::amounts::scaled_time;

/// Round trips after which a belief is dropped, neither confirmed nor refuted. Behind a short queue
/// it takes that many until much less is in flight.
const ROUND_COUNT_MAX: u32 = 32;

/// The belief that a path carries less than it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Belief {
    /// When less began to be in flight.
    pub(super) since: Instant,
    /// The least round trip before, and the one expected now.
    pub(super) rtt_before: Duration,
    pub(super) rtt_allowed: Duration,
    /// The window before.
    pub(super) window_before: u64,
    /// The path's rate before, in bytes per second.
    pub(super) rate_before: u64,
    /// Rounds in a row that have refuted the belief.
    pub(super) round_count: u32,
}

impl Belief {
    /// This belief, made while `known` was not confirmed yet. The older one is kept if the round
    /// trips are alike, and its rate in any case.
    pub(super) fn after(self, known: Self) -> Self {
        let is_alike = known.is_alike(self.rtt_before);
        Self {
            since: self.since,
            rate_before: known.rate_before,
            ..if is_alike { known } else { self }
        }
    }

    /// Whether `window_bytes` is so much less than before that the next rounds test the belief.
    pub(super) const fn is_much_more_than(&self, window_bytes: u64) -> bool {
        window_bytes <= self.window_before / 4 * 3
    }

    /// Whether all packets of a round were sent since, with much less in flight.
    pub(super) fn is_tested_by(&self, round: &Round) -> bool {
        self.is_much_more_than(round.window_bytes) && round.began >= self.since + self.rtt_before
    }

    /// Records a round that tests the belief. Returns whether its packets took about as long as
    /// those before. If they took even longer, a queue is growing.
    pub(super) fn note(&mut self, round: &Round) -> bool {
        self.round_count += 1;
        let expected = scaled_time(self.rtt_before, round.window_bytes, self.window_before);
        let expected = expected.max(self.rtt_allowed);
        round.rtt_min > (expected + self.rtt_before) / 2 && self.is_alike(round.rtt_min)
    }

    /// Whether it has been open for too long to say anything.
    pub(super) fn is_old(&self, now: Instant) -> bool {
        now.since(self.since) > self.rtt_before * ROUND_COUNT_MAX
    }

    /// Whether a round trip is no longer than before, within an eighth.
    pub(super) fn is_alike(&self, rtt: Duration) -> bool {
        rtt < self.rtt_before + self.rtt_before / 8
    }
}
