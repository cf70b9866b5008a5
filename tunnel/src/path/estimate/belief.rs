//! The suspicion that a path carries less than before, and the test of it.
//!
//! A path that became thinner and one that became longer look alike at first: as much as before is
//! in flight, and takes longer. Packets sent with less in flight tell them apart. If the queue was
//! ours, they take less time. If they take as long, the time is the path's, or the queue is
//! somebody else's, and giving way to that would not help.

use std::time::Duration;

use towpath_protocol::amounts::scaled_time;
use towpath_protocol::time::Instant;

use super::finished::Finished;
use super::round::Round;
use super::spans::Base;
use super::told::Shown;
use super::{Estimator, Phase};

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

impl Estimator {
    /// Takes the rate of a round as the path's; earlier packets that are lost exceeded it. The
    /// pacer still uses the queue's round trip for a while, so the next rounds may not fill the
    /// path.
    pub(super) fn believe(&mut self, finished: &Finished) {
        let (rate, base) = (finished.rate, finished.base);
        self.settled_at = self.settled_at.max(finished.now);
        self.phase = Phase::Filling { round_count: 2 };
        let fitting = self.window_for(rate, base);
        let belief = self.suspicion(finished, base + self.allowance_at(rate));
        if fitting < self.window_bytes - self.window_bytes / 8 {
            self.suspect_anew(belief);
        } else {
            self.suspect(belief);
        }
        self.rate_bytes_per_second = rate;
        self.empty_rounds.reset();
        self.window_bytes = self.window_bytes.min(fitting);
    }

    /// The belief that a round suggests: less in flight from now on shortens round trips to
    /// `allowed`.
    pub(super) const fn suspicion(&self, finished: &Finished, allowed: Duration) -> Belief {
        Belief {
            since: finished.now,
            rtt_before: finished.round.rtt_min,
            rtt_allowed: allowed,
            window_before: self.window_bytes,
            rate_before: self.rate_bytes_per_second,
            round_count: 0,
        }
    }

    /// Adopts a belief, unless an earlier one that it agrees with is being tested.
    pub(super) fn suspect(&mut self, belief: Belief) {
        let is_news = |known: Belief| !known.is_alike(belief.rtt_before);
        if self.belief.is_none_or(is_news) {
            self.suspect_anew(belief);
        }
    }

    /// Adopts a belief; the test of an earlier one no longer counts.
    fn suspect_anew(&mut self, belief: Belief) {
        self.belief = Some(self.belief.map_or(belief, |known| belief.after(known)));
    }

    /// Returns the old rate if having less in flight has not shortened the round trips. One such
    /// round is enough if it shows a queue, else it takes two.
    pub(super) fn refuted(&mut self, finished: &Finished) -> Option<u64> {
        let round = &finished.round;
        self.belief = self.belief.filter(|belief| !belief.is_old(finished.now));
        let belief = self.belief.as_mut()?;
        if round.is_app_limited || !belief.is_tested_by(round) {
            return None;
        }
        if !belief.note(round) {
            self.belief = None;
            return None;
        }
        (finished.is_told || belief.round_count > 1).then_some(belief.rate_before)
    }

    /// Takes the path as longer and free of a queue, and fills it again at `rate`.
    pub(super) fn lengthen(&mut self, finished: &Finished, rate: u64) {
        let (now, base) = (finished.now, finished.round.rtt_min);
        self.base = Base::of(base, now);
        self.told = Shown::default();
        self.rate_bytes_per_second = rate;
        self.startup_bytes_max = self.window_for(rate, base);
        self.start_from(now, self.window_bytes.max(self.startup_bytes_max / 4));
    }
}
