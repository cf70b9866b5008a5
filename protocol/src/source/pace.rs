//! The cap on a move's own rate: paces its frames, and converts the cap to raw bytes.

use std::time::Duration;

use super::window::Settled;
use crate::message::CHUNK_RAW_BYTES_MAX;
use crate::plan;
use crate::rate::Rate;
use crate::time::Instant;

/// Time of the cap for which blocks may be ordered before they are packed. Only packing shows their
/// size on the link. Two chunks at 20 Mbit/s: enough to keep the codec busy while a frame waits for
/// its time.
const AHEAD: Duration = Duration::from_millis(50);

/// The pacing of frames under the cap.
#[derive(Debug)]
pub(super) struct Pace {
    /// Bytes of frames per second; `None` if only the link limits.
    cap: Option<u64>,
    /// When the frames sent so far are paid for. Nothing more is ordered before.
    paid_at: Instant,
    /// Blocks that were packed, and their frames. Zeros do not count: they take nothing and say
    /// nothing about other blocks.
    packed: Settled,
}

impl Pace {
    pub(super) const fn new(cap: Option<u64>, now: Instant) -> Self {
        Self {
            cap,
            paid_at: now,
            packed: Settled {
                raw_bytes: 0,
                wire_bytes: 0,
            },
        }
    }

    /// When the next blocks may be ordered.
    pub(super) const fn next_at(&self) -> Instant {
        self.paid_at
    }

    /// Counts a frame that is about to be sent, on any lane.
    pub(super) fn spend(&mut self, wire_bytes: u64, now: Instant) {
        if let Some(cap) = self.cap {
            self.paid_at = self.paid_at.max(now) + plan::seconds_for(wire_bytes, cap.max(1));
        }
    }

    /// Counts packed blocks that are not zeros.
    pub(super) const fn packed(&mut self, bytes: Settled) {
        self.packed.raw_bytes += bytes.raw_bytes;
        self.packed.wire_bytes += bytes.wire_bytes;
    }

    /// Most raw bytes that may be ordered and not packed yet. If they do not compress at all, this
    /// is the amount that exceeds the cap at once.
    pub(super) fn unpacked_bytes_max(&self) -> u64 {
        let ahead = |cap| Rate::clamped(cap).bytes_in(AHEAD);
        self.cap.map_or(u64::MAX, |cap| {
            ahead(cap).max(u64::from(CHUNK_RAW_BYTES_MAX))
        })
    }

    /// Raw bytes per second that the cap has room for, at the compression seen so far.
    pub(super) fn raw_bytes_per_second_max(&self) -> Option<u64> {
        let Settled {
            raw_bytes,
            wire_bytes,
        } = self.packed;
        self.cap.map(|cap| {
            let worth = u128::from(cap) * u128::from(raw_bytes) / u128::from(wire_bytes.max(1));
            match raw_bytes {
                0 => cap,
                _ => u64::try_from(worth).unwrap_or(u64::MAX),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAP: u64 = 1_000_000;

    #[test]
    fn what_was_sent_is_paid_for_and_what_was_not_is_not_saved_up() {
        let at = |ms| Instant::ZERO + Duration::from_millis(ms);
        let mut pace = Pace::new(Some(CAP), at(0));
        assert_eq!(pace.next_at(), at(0));
        pace.spend(CAP / 10, at(0));
        pace.spend(CAP / 10, at(50));
        assert_eq!(pace.next_at(), at(200));
        pace.spend(CAP / 10, at(1000));
        assert_eq!(pace.next_at(), at(1100));
        let mut free = Pace::new(None, at(0));
        free.spend(CAP, at(0));
        assert_eq!(free.next_at(), at(0));
        assert_eq!(free.raw_bytes_per_second_max(), None);
    }

    #[test]
    fn the_cap_is_worth_as_many_bytes_of_blocks_as_were_packed_into_it() {
        let mut pace = Pace::new(Some(CAP), Instant::ZERO);
        assert_eq!(pace.raw_bytes_per_second_max(), Some(CAP));
        for (wire_bytes, worth) in [(1000, 4 * CAP), (3000, 2 * CAP)] {
            pace.packed(Settled {
                raw_bytes: 4000,
                wire_bytes,
            });
            assert_eq!(pace.raw_bytes_per_second_max(), Some(worth));
        }
    }
}
