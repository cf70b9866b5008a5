//! Bytes that were granted and that the wire's counters have not shown yet.
//!
//! Not everything granted leaves: QUIC drops surplus datagrams, and the unsent bytes of a reset
//! stream. So grants are remembered for one to two seconds only; bytes that leave later count as
//! unforeseen.

use std::time::Duration;

use towpath_protocol::time::Instant;

/// How long a grant is remembered, at least; twice that at most.
const REMEMBERED_TIME: Duration = Duration::from_secs(1);

/// Granted bytes of the current and the previous span of time.
#[derive(Debug, Default)]
pub(crate) struct Unseen {
    began: Instant,
    current_bytes: u64,
    previous_bytes: u64,
}

impl Unseen {
    /// Records bytes that were granted.
    pub(crate) fn add(&mut self, now: Instant, bytes: u64) {
        self.look(now);
        self.current_bytes += bytes;
    }

    /// Records bytes that have left; returns how many of them had been granted.
    pub(crate) fn take(&mut self, now: Instant, bytes: u64) -> u64 {
        self.look(now);
        let of_previous = bytes.min(self.previous_bytes);
        self.previous_bytes -= of_previous;
        let of_current = (bytes - of_previous).min(self.current_bytes);
        self.current_bytes -= of_current;
        of_previous + of_current
    }

    /// Granted bytes still remembered.
    pub(crate) fn bytes(&mut self, now: Instant) -> u64 {
        self.look(now);
        self.previous_bytes + self.current_bytes
    }

    fn look(&mut self, now: Instant) {
        let elapsed = now.since(self.began);
        if elapsed >= REMEMBERED_TIME {
            self.previous_bytes = std::mem::take(&mut self.current_bytes);
            if elapsed >= 2 * REMEMBERED_TIME {
                self.previous_bytes = 0;
            }
            self.began = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(millis)
    }

    #[test]
    fn a_grant_is_remembered_for_a_second_and_for_less_than_two() {
        let mut unseen = Unseen::default();
        unseen.add(at(900), 1000);
        unseen.add(at(1100), 500);
        assert_eq!(unseen.bytes(at(1900)), 1500);
        assert_eq!(unseen.take(at(2000), 300), 300, "the older ones first");
        assert_eq!(unseen.bytes(at(2099)), 1200);
        assert_eq!(unseen.bytes(at(2100)), 500);
        assert_eq!(unseen.take(at(2200), 700), 500);
        unseen.add(at(2300), 100);
        assert_eq!(unseen.bytes(at(9000)), 0);
    }
}
