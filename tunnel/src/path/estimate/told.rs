//! The base and the queue as shown to operators: only from rounds that can tell.
//!
//! A peer may hold an acknowledgement back for 25 ms while no second packet arrives. A sender with
//! little to send then sees a round trip that is neither the path's nor a queue's. The estimator
//! may use it meanwhile, because the first packets of a load correct it; operators must not see it.

use std::time::Duration;

/// Packets in a round of which at least one was acknowledged at once: every second packet is, and
/// the first may have been the second of the round before.
const PACKETS_MIN: u32 = 4;

/// The path as shown to operators.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Shown {
    /// The least round trips of two spans of time; a span without a telling round keeps the older
    /// value.
    current: Option<Duration>,
    previous: Option<Duration>,
    queue: Duration,
}

impl Shown {
    /// Round trip without a queue; zero while unknown.
    pub(super) fn base(&self) -> Duration {
        let known = [self.current, self.previous].into_iter().flatten();
        known.min().unwrap_or_default()
    }

    /// By how much the last round's shortest round trip exceeded the base; zero if the round cannot
    /// tell.
    pub(super) const fn queue(&self) -> Duration {
        self.queue
    }

    /// Records the least round trip of a round of `packet_count` packets. `is_full` means that the
    /// path was its limit.
    pub(super) fn note(&mut self, rtt_min: Duration, packet_count: u32, is_full: bool) {
        let is_telling = is_full || packet_count >= PACKETS_MIN;
        let is_news = self.current.or(self.previous).is_none() || rtt_min < self.base();
        if is_telling || is_news {
            self.current = Some(self.current.map_or(rtt_min, |least| least.min(rtt_min)));
        }
        self.queue = if is_telling {
            rtt_min.saturating_sub(self.base())
        } else {
            Duration::ZERO
        };
    }

    /// Begins a new span of time.
    pub(super) const fn turn(&mut self) {
        if let Some(least) = self.current.take() {
            self.previous = Some(least);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn millis(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn rounds_of_a_packet_or_two_say_nothing_but_that_a_path_is_shorter() {
        let mut told = Shown::default();
        told.note(millis(40), 2, false);
        assert_eq!(told.base(), millis(40), "better than nothing");
        for _ in 0..5 {
            told.note(millis(66), 1, false);
            assert_eq!((told.base(), told.queue()), (millis(40), Duration::ZERO));
            told.turn();
        }
        told.note(millis(39), 1, false);
        assert_eq!((told.base(), told.queue()), (millis(39), Duration::ZERO));
    }

    #[test]
    fn a_round_of_more_or_one_that_fills_the_path_tells_queue_and_length() {
        let mut told = Shown::default();
        told.note(millis(40), 9, false);
        told.note(millis(90), 4, false);
        assert_eq!(told.queue(), millis(50));
        told.note(millis(70), 2, true);
        assert_eq!(told.queue(), millis(30));
        // A longer path; it is believed after two spans.
        for _ in 0..2 {
            told.turn();
            told.note(millis(90), 8, false);
        }
        assert_eq!((told.base(), told.queue()), (millis(90), Duration::ZERO));
    }
}
