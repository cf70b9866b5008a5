//! Back-off for useless carriers: carriers that the peer gives up at once although their link is
//! well. Each further one makes the pause longer, and a row of them may last no longer than an
//! outage. Pure.

use std::time::{Duration, Instant};

/// Pause after the first useless carrier; each further one doubles it.
const PAUSE_MIN: Duration = Duration::from_millis(200);

/// Longest pause. A peer that asks us waits twice as long for an answer.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Bytes that make a carrier useful: one piece. Every resumption may resend a whole tail.
const CARRIED_BYTES_MIN: u64 = 64 * 1024;

/// A carrier that lasted this long is not useless, even if it had nothing to carry.
const LASTED_MIN: Duration = Duration::from_secs(10);

/// Tracks the latest useless carriers of a stream.
#[derive(Debug)]
pub(super) struct Vain {
    count: u32,
    since: Option<Instant>,
    /// When the current carrier began, and the bytes carried before it.
    began: Instant,
    before_bytes: u64,
}

impl Vain {
    /// Starts with the first carrier.
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            count: 0,
            since: None,
            began: now,
            before_bytes: 0,
        }
    }

    /// Notes a new carrier, and the bytes carried before it.
    pub(super) const fn begin(&mut self, now: Instant, carried_bytes: u64) {
        (self.began, self.before_bytes) = (now, carried_bytes);
    }

    /// Notes the end of the carrier. If it ended with its link, that is not the peer's fault and
    /// resets the count.
    pub(super) fn end(&mut self, now: Instant, carried_bytes: u64, is_link_well: bool) {
        let is_little = carried_bytes.saturating_sub(self.before_bytes) < CARRIED_BYTES_MIN;
        let is_soon = now.saturating_duration_since(self.began) < LASTED_MIN;
        if is_link_well && is_little && is_soon {
            self.count = self.count.saturating_add(1);
            self.since.get_or_insert(now);
        } else {
            (self.count, self.since) = (0, None);
        }
    }

    /// How long to wait before resuming, if the last carrier was useless.
    pub(super) fn pause(&self) -> Option<Duration> {
        let doublings = self.count.checked_sub(1)?.min(16);
        Some((PAUSE_MIN * 2_u32.pow(doublings)).min(PAUSE_MAX))
    }

    /// How long there have been nothing but useless carriers.
    pub(super) fn lasts(&self, now: Instant) -> Duration {
        let since = self.since.unwrap_or(now);
        now.saturating_duration_since(since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A carrier given up at once, after `more_bytes` more bytes.
    fn pass(vain: &mut Vain, now: Instant, carried_bytes: u64, more_bytes: u64) {
        vain.begin(now, carried_bytes);
        vain.end(now, carried_bytes + more_bytes, true);
    }

    #[test]
    fn pauses_double_until_a_carrier_carries_or_lasts_or_goes_with_its_link() {
        let began = Instant::now();
        let second = |number| began + Duration::from_secs(number);
        let mut vain = Vain::new(began);
        assert_eq!(vain.pause(), None);
        let mut pauses = Vec::new();
        for number in 0..40 {
            pass(&mut vain, second(number), 7, CARRIED_BYTES_MIN - 1);
            pauses.push(vain.pause().unwrap());
        }
        assert_eq!(pauses[..3], [1, 2, 4].map(|times| PAUSE_MIN * times));
        assert_eq!(pauses[39], PAUSE_MAX);
        assert_eq!(vain.lasts(second(40)), Duration::from_secs(40));
        let good: [fn(&mut Vain, Instant); 3] = [
            |vain, now| pass(vain, now, 7, CARRIED_BYTES_MIN),
            |vain, now| vain.end(now + LASTED_MIN, 7, true),
            |vain, now| vain.end(now, 7, false),
        ];
        for end in good {
            pass(&mut vain, second(41), 7, 0);
            assert!(vain.pause().is_some());
            vain.begin(second(42), 7);
            end(&mut vain, second(42));
            assert_eq!(vain.pause(), None);
            assert_eq!(vain.lasts(second(50)), Duration::ZERO);
        }
    }
}
