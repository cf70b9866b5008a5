//! Cruising: bulk is sent a little slower than the path carries, so that its queue is empty.
//!
//! The estimator fills the path and finds out what it carries; that takes a queue of some milliseconds,
//! which every urgent byte then waits behind. So once the rate is known, bulk keeps below it, and looks
//! again from time to time:
//!
//! ```text
//!              rate known, queue seen
//!   Looking ────────────────────────────► Cruising at 0.935 of it
//!      ▲                                      │
//!      └── every 2.5 s, or a queue stands ────┘
//! ```
//!
//! Looking lasts two rounds of the estimator, a hundredth of the time on short paths and a twentieth at
//! 40 ms. Where no queue shows, something else than the path is the limit, and nothing is held back.

use std::time::Duration;

use towpath_protocol::time::Instant;

use crate::estimate::{ALLOWANCE, Estimate};

/// The part of the path's rate that programs get while cruising, per thousand. QUIC adds 2.4 % to
/// full packets and a rate may be seen 1.5 % too high, so the wire is at 97 %; what a stall leaves
/// behind is made up for by the rest.
const CRUISE_PER_MILLE: u64 = 935;

/// How long a rate is believed: a path that became faster is found within this.
const CRUISE_TIME: Duration = Duration::from_millis(2500);

/// How often the estimate is looked at, while looking and while cruising.
const LOOK_TIME: Duration = Duration::from_millis(5);
const GLANCE_TIME: Duration = Duration::from_millis(20);

/// Least time for which the path must have been full, and how many round trips: to see the known rate
/// again, and to believe another one. Rounds are so short on short paths that two say little.
const FULL_TIME_MIN: Duration = Duration::from_millis(20);
const FULL_ROUNDS: u32 = 2;
const FULL_TIME_MIN_NEW: Duration = Duration::from_millis(150);
const FULL_ROUNDS_NEW: u32 = 6;

/// How far a rate may be from the known one to be the same, per mille, and how much it then counts.
const SAME_PER_MILLE: u64 = 100;
const WEIGHT: u64 = 4;

/// How long the queue of the look before may be seen: at least so long, or so many round trips.
const EMPTYING_TIME_MIN: Duration = Duration::from_millis(100);
const EMPTYING_ROUNDS: u32 = 4;

/// Glances in a row that see a queue before it is more than a busy processor's.
const QUEUED_GLANCES: u32 = 2;

/// What one piece lasts on the wire: an urgent packet waits behind one at most.
const PIECE_TIME: Duration = Duration::from_micros(500);

/// Least bytes in a piece: two full packets, below which headers eat the link.
const PIECE_BYTES_MIN: u64 = 2 * 1200;

/// What QUIC is given beside, at least: what a program's write brings at once.
const AHEAD_BYTES_MIN: u64 = 64 * 1024;

/// How far behind the rate a sender may be and still catch up: timers fire to the millisecond.
const BEHIND_TIME_MAX: Duration = Duration::from_millis(2);

/// Above this, on a path this short, processors are the limit and no pacing shortens their queue.
const PATH_RATE_MAX: u64 = 125_000_000;
const PATH_RTT_MIN: Duration = Duration::from_millis(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing is held back. So many bytes had gone through the full path when it began, in such a time.
    Looking {
        filled_bytes: u64,
        filled_time: Duration,
    },
    /// Bulk keeps below the rate. Whether there is a queue counts `from` a time.
    Cruising {
        from: Instant,
        until: Instant,
        queued_glances: u32,
    },
}

/// Decides when bulk may go; pure.
#[derive(Debug, Clone)]
pub(crate) struct Cruise {
    phase: Phase,
    /// What the path carries; zero while not known.
    path_bytes_per_second: u64,
    /// When the estimate is worth another look.
    look_at: Instant,
    /// When the next piece may go.
    free_at: Instant,
}

impl Cruise {
    /// Begins by looking.
    #[must_use]
    pub(crate) const fn new() -> Self {
        Self {
            phase: Phase::Looking {
                filled_bytes: 0,
                filled_time: Duration::ZERO,
            },
            path_bytes_per_second: 0,
            look_at: Instant::ZERO,
            free_at: Instant::ZERO,
        }
    }

    /// Whether [`Self::look`] should be told what is believed now.
    #[must_use]
    pub(crate) fn is_curious(&self, now: Instant) -> bool {
        now >= self.look_at
    }

    /// Whether bulk is held below the path's rate.
    #[must_use]
    pub(crate) const fn is_cruising(&self) -> bool {
        matches!(self.phase, Phase::Cruising { .. })
    }

    /// What the path carries, while that is believed.
    #[must_use]
    pub(crate) const fn path_bytes_per_second(&self) -> Option<u64> {
        if self.is_cruising() {
            Some(self.path_bytes_per_second)
        } else {
            None
        }
    }

    /// Takes note of what is believed about the path.
    pub(crate) fn look(&mut self, now: Instant, estimate: &Estimate) {
        match self.phase {
            Phase::Looking {
                filled_bytes,
                filled_time,
            } => {
                self.look_at = now + LOOK_TIME;
                let bytes = estimate.filled_bytes.saturating_sub(filled_bytes);
                let time = estimate.filled_time.saturating_sub(filled_time);
                if estimate.queue_delay >= ALLOWANCE / 4
                    && let Some(rate) = self.learn(bytes, time, estimate)
                {
                    self.path_bytes_per_second = rate;
                    let emptying = EMPTYING_TIME_MIN.max(estimate.base_rtt * EMPTYING_ROUNDS);
                    self.phase = Phase::Cruising {
                        from: now + emptying,
                        until: now + CRUISE_TIME.max(emptying * 2),
                        queued_glances: 0,
                    };
                    // The queue that stands, and what QUIC holds beside, is let run empty first.
                    let ahead = buffer_bytes(estimate).unwrap_or(0);
                    let ahead = ahead.saturating_sub(estimate.window_bytes);
                    self.free_at = now + estimate.queue_delay + time_of(ahead, rate);
                }
            }
            Phase::Cruising {
                from,
                until,
                mut queued_glances,
            } => {
                self.look_at = now + GLANCE_TIME;
                let has_queue = now >= from && estimate.queue_delay > ALLOWANCE / 2;
                queued_glances = if has_queue { queued_glances + 1 } else { 0 };
                let is_over = now >= until || queued_glances >= QUEUED_GLANCES;
                self.phase = if is_over || !estimate.is_settled {
                    self.look_at = now + LOOK_TIME;
                    Phase::Looking {
                        filled_bytes: estimate.filled_bytes,
                        filled_time: estimate.filled_time,
                    }
                } else {
                    Phase::Cruising {
                        from,
                        until,
                        queued_glances,
                    }
                };
            }
        }
    }

    /// The path's rate, if it was full for long enough to tell.
    fn learn(&self, bytes: u64, time: Duration, estimate: &Estimate) -> Option<u64> {
        let enough = FULL_TIME_MIN.max(estimate.base_rtt * FULL_ROUNDS);
        if time < enough || !is_of_the_path(estimate) {
            return None;
        }
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let seen = bytes.saturating_mul(1_000_000) / micros.max(1);
        let known = self.path_bytes_per_second;
        let is_same = seen.abs_diff(known) <= known * SAME_PER_MILLE / 1000;
        let enough = FULL_TIME_MIN_NEW.max(estimate.base_rtt * FULL_ROUNDS_NEW);
        if is_same {
            Some((known * (WEIGHT - 1) + seen) / WEIGHT)
        } else if time >= enough {
            Some(seen)
        } else {
            None
        }
    }

    /// Bytes of programs per second while cruising.
    const fn pace(&self) -> u64 {
        self.path_bytes_per_second / 1000 * CRUISE_PER_MILLE
    }

    /// Most bytes that should be asked for at once.
    #[must_use]
    pub(crate) fn piece_bytes(&self) -> u64 {
        if !self.is_cruising() {
            return u64::MAX;
        }
        let pieces_per_second = 1_000_000_000 / u64::from(PIECE_TIME.subsec_nanos());
        (self.pace() / pieces_per_second).max(PIECE_BYTES_MIN)
    }

    /// Takes the place of `bytes` in the row; gives when they may go.
    pub(crate) fn take(&mut self, now: Instant, bytes: u64) -> Instant {
        if !self.is_cruising() {
            return now;
        }
        let behind_max = u64::try_from(BEHIND_TIME_MAX.as_nanos()).unwrap_or(u64::MAX);
        let earliest = Instant::from_nanos(now.as_nanos().saturating_sub(behind_max));
        let at = self.free_at.max(earliest);
        self.free_at = at + time_of(bytes, self.pace());
        at.max(now)
    }
}

impl Default for Cruise {
    fn default() -> Self {
        Self::new()
    }
}

/// Bytes that QUIC should be given before they are acknowledged, if the path is the limit: all that is
/// in flight and little more, for what it holds beside goes first, however bulk is paced.
pub(crate) fn buffer_bytes(estimate: &Estimate) -> Option<u64> {
    let window = estimate.window_bytes;
    is_of_the_path(estimate).then(|| window + window / 4 + AHEAD_BYTES_MIN)
}

fn time_of(bytes: u64, rate: u64) -> Duration {
    Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / rate.max(1))
}

/// Whether the rate is the path's, and not the processors'.
fn is_of_the_path(estimate: &Estimate) -> bool {
    estimate.is_settled
        && (estimate.rate_bytes_per_second < PATH_RATE_MAX || estimate.base_rtt > PATH_RTT_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: u64 = 1_000_000;

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * MILLI)
    }

    /// 200 Mbit/s over a millisecond, full for so long, with so much of a queue.
    fn estimate(filled_millis: u64, queue_micros: u64) -> Estimate {
        Estimate {
            rate_bytes_per_second: 25_000_000,
            base_rtt: Duration::from_millis(1),
            queue_delay: Duration::from_micros(queue_micros),
            filled_bytes: filled_millis * 25_000,
            filled_time: Duration::from_millis(filled_millis),
            is_settled: true,
            ..Estimate::default()
        }
    }

    fn cruising() -> Cruise {
        let mut cruise = Cruise::new();
        cruise.look(at(1000), &estimate(150, 4000));
        assert!(cruise.is_cruising());
        cruise
    }

    /// Sends pieces for so long, a sleep taking as many milliseconds more as it pleases; gives the bytes.
    fn send(cruise: &mut Cruise, from_millis: u64, millis: u64, late: u64) -> u64 {
        let (mut now, mut sent) = (from_millis * MILLI, 0);
        while now < (from_millis + millis) * MILLI {
            let piece = cruise.piece_bytes();
            let then = cruise.take(Instant::from_nanos(now), piece).as_nanos();
            if then > now {
                now = then + (sent * 7919 % (late * MILLI + 1));
            }
            sent += piece;
        }
        sent
    }

    #[test]
    fn bulk_keeps_below_the_rate_though_timers_fire_late() {
        for late in [0, 1, 2] {
            let sent = send(&mut cruising(), 1000, 1000, late);
            assert!((22_800_000..=23_500_000).contains(&sent), "{late}: {sent}");
        }
    }

    #[test]
    fn bulk_that_paused_does_not_make_up_for_it() {
        let mut cruise = cruising();
        let sent = send(&mut cruise, 3000, 10, 0);
        assert!(sent <= 234_000 + 47_000 + 2 * 11_700, "{sent}");
    }

    #[test]
    fn nothing_is_held_back_before_a_queue_was_seen() {
        let mut cruise = Cruise::new();
        for (filled, queue) in [(0, 9000), (149, 9000), (500, 0), (500, 900)] {
            cruise.look(at(1000), &estimate(filled, queue));
            assert!(!cruise.is_cruising());
            assert_eq!(cruise.take(at(1000), 1 << 30), at(1000));
            assert_eq!(cruise.piece_bytes(), u64::MAX);
        }
    }

    #[test]
    fn the_path_is_looked_at_again_after_a_time_and_for_as_long_as_it_takes() {
        let mut cruise = cruising();
        cruise.look(at(3499), &estimate(150, 0));
        assert!(cruise.is_cruising());
        cruise.look(at(3500), &estimate(150, 0));
        assert!(!cruise.is_cruising());
        cruise.look(at(3510), &estimate(169, 4000));
        assert!(!cruise.is_cruising(), "the time before does not count");
        cruise.look(at(3521), &estimate(170, 4000));
        assert!(cruise.is_cruising());
    }

    #[test]
    fn another_rate_is_believed_after_a_longer_look() {
        let mut cruise = cruising();
        cruise.look(at(3500), &estimate(150, 0));
        let faster = |millis: u64| Estimate {
            filled_bytes: 150 * 25_000 + millis * 50_000,
            ..estimate(150 + millis, 4000)
        };
        for millis in [20, 100, 149] {
            cruise.look(at(3500 + millis), &faster(millis));
            assert!(!cruise.is_cruising());
        }
        cruise.look(at(3650), &faster(150));
        assert!(cruise.is_cruising());
        let sent = send(&mut cruise, 3650, 1000, 0);
        assert!((45_700_000..=47_000_000).contains(&sent), "{sent}");
    }

    #[test]
    fn a_queue_that_stands_or_a_new_start_ends_it() {
        let mut cruise = cruising();
        for millis in [1020, 1050, 1099, 1110] {
            cruise.look(at(millis), &estimate(150, 2100));
            assert!(cruise.is_cruising(), "it may be that of the look before");
        }
        cruise.look(at(1130), &estimate(150, 2100));
        assert!(!cruise.is_cruising());
        let mut cruise = cruising();
        let lost = Estimate {
            is_settled: false,
            ..estimate(150, 0)
        };
        cruise.look(at(1020), &lost);
        assert!(!cruise.is_cruising());
    }

    #[test]
    fn processors_are_not_a_path() {
        let mut cruise = Cruise::new();
        let fast = Estimate {
            rate_bytes_per_second: 400_000_000,
            ..estimate(500, 4000)
        };
        cruise.look(at(1000), &fast);
        assert!(!cruise.is_cruising());
    }
}
