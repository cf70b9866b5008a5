//! The estimator: what the path carries, and how many bytes in flight keep its queue short.
//!
//! A full queue at the bottleneck decides how long an urgent byte waits; no priority reaches into
//! it. So a connection keeps as many bytes in flight as the path holds, plus an *allowance*: a
//! queue of some milliseconds, short enough to wait behind and long enough to notice a faster path.
//!
//! ```text
//!   window' = window × (base round trip + allowance) / (least round trip of the last round)
//!
//!   Startup ── queue or much loss, or rate no longer grows ──► Steady ── every 10 s ──► Draining
//!      ▲                                                        │  ▲                        │
//!      └───── everything in flight lost, or long no queue ──────┘  └─ Filling ◄─ base seen ─┘
//! ```
//!
//! A round that is full, stands behind a long queue and has no gaps shows the path's rate at once.
//! That rate is taken as it is, and the next rounds only refill the path. If packets sent later,
//! with less in flight, take as long, there was no queue: the path became longer and still carries
//! its old rate (`belief`).
//!
//! The formula is its own probe. Below the path's capacity no queue forms, so the window grows by
//! the allowance's share; at capacity a queue as long as the allowance stands, and the window
//! stays. On a long path that share is small, so after some full rounds without a queue the window
//! grows by larger steps. If there is still no queue and the rate has grown, the startup begins
//! again; if it has not, the next such attempt waits twice as long.
//!
//! Only the *least* round trip of a round counts, because only a standing queue delays every
//! packet: radio links and busy processors delay many. The base is the least round trip of the last
//! twenty seconds; a drain every ten seconds reveals it even while we fill the link. A round in
//! which the sender paused teaches nothing, unless the whole window was in flight.
//!
//! Loss does not slow us down while it is low enough to be noise. More loss means that the buffer
//! is smaller than the allowance; the allowance then shrinks, and the window keeps close to what is
//! delivered. A startup's rounds have few packets, so only a large share of losses counts there:
//! the window exceeds what the path holds, and the buffer is too small for a queue.
//!
//! | module | what it holds |
//! |---|---|
//! | `round`, `finished` | what arrives in a round, and what a round that is over says |
//! | `startup`, `steady`, `drain` | what the window does in each phase |
//! | `growth` | rounds without a queue, after which the window grows by larger steps |
//! | `belief` | a lower rate that was adopted, and the test whether the path only became longer |
//! | `allowance`, `losses`, `spans` | the allowed queue, the recent losses, base and highest rate |
//! | `view`, `told`, `marked` | what others are shown |

mod allowance;
mod belief;
mod drain;
mod finished;
mod growth;
mod losses;
mod marked;
mod round;
mod spans;
mod startup;
mod steady;
mod told;
mod view;

use std::time::Duration;

use towpath_protocol::amounts::bytes_in;
use towpath_protocol::time::Instant;

pub use allowance::ALLOWANCE;
use allowance::Allowance;
use belief::Belief;
use drain::Drain;
use finished::Finished;
use growth::EmptyRounds;
use losses::Losses;
pub use marked::Marked;
use round::{Round, is_long};
use spans::{Base, Peak};
use startup::{RecentRtts, Startup};
use told::Shown;
pub use view::Estimate;

/// Least duration of a round. On a short path a round trip is too short to measure a rate in, and a
/// process that was not scheduled would look like a queue.
const ROUND_MIN: Duration = Duration::from_millis(10);
/// The same in a startup, which grows faster.
const ROUND_MIN_STARTUP: Duration = Duration::from_millis(1);

/// The least window, in packets: with fewer in flight nothing is ever learnt.
const WINDOW_PACKETS_MIN: u64 = 4;

/// The largest window: 5 Gbit/s over 200 ms.
const WINDOW_BYTES_MAX: u64 = 128 * 1024 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The window doubles every round trip.
    Startup(Startup),
    /// The window follows the formula.
    Steady,
    /// The window is reduced for one round trip.
    Draining(Drain),
    /// The path fills again after a drain, or after the window was much smaller. The next
    /// `round_count` rounds say nothing about it, unless a long queue is still there.
    Filling { round_count: u32 },
}

/// One acknowledged packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// When the acknowledgement arrived.
    pub now: Instant,
    /// When the packet had been sent.
    pub sent: Instant,
    /// Size of the packet.
    pub bytes: u64,
    /// Whether the sender had run out of data before it.
    pub is_app_limited: bool,
    /// Whether the sender was keeping below the estimated rate.
    pub is_cruising: bool,
}

impl Ack {
    /// How long the packet and its acknowledgement took.
    fn rtt(&self) -> Duration {
        self.now.since(self.sent)
    }
}

/// Estimates the path of one connection.
#[derive(Debug, Clone)]
pub struct Estimator {
    phase: Phase,
    round: Round,
    base: Base,
    packet_bytes: u64,
    window_bytes: u64,
    rate_bytes_per_second: u64,
    peak: Peak,
    queue_delay: Duration,
    round_began: Instant,
    allowance: Allowance,
    empty_rounds: EmptyRounds,
    losses: Losses,
    /// End of the time in which packets of the last startup may still be lost or leave a queue.
    settled_at: Instant,
    /// A lower rate that was adopted recently and is not confirmed yet.
    belief: Option<Belief>,
    /// Whether the sender paused in the round before. What it sent then arrives in this one.
    was_app_limited: bool,
    recent: RecentRtts,
    filled_bytes: u64,
    filled_time: Duration,
    /// Lost packets sent before this were lost to the last interruption.
    interrupted_until: Instant,
    /// The window at which a startup ends: what the path holds, if that is known.
    startup_bytes_max: u64,
    marked: [Marked; 2],
    told: Shown,
    /// See [`Estimate::is_known`].
    is_known: bool,
}

impl Estimator {
    /// An estimator that knows nothing yet and sends `window_bytes` to find out.
    #[must_use]
    pub fn new(packet_bytes: u64, window_bytes: u64, now: Instant) -> Self {
        Self {
            phase: Phase::Startup(Startup::default()),
            round: Round::beginning(now, window_bytes),
            base: Base::unknown(now),
            packet_bytes,
            window_bytes,
            rate_bytes_per_second: 0,
            peak: Peak::default(),
            queue_delay: Duration::ZERO,
            round_began: now,
            allowance: Allowance::default(),
            empty_rounds: EmptyRounds::default(),
            losses: Losses::default(),
            settled_at: Instant::ZERO,
            belief: None,
            was_app_limited: false,
            recent: RecentRtts::default(),
            filled_bytes: 0,
            filled_time: Duration::ZERO,
            interrupted_until: Instant::ZERO,
            startup_bytes_max: WINDOW_BYTES_MAX,
            marked: Default::default(),
            told: Shown::default(),
            is_known: false,
        }
    }

    /// Bytes that may be in flight.
    #[must_use]
    pub fn window_bytes(&self) -> u64 {
        self.window_bytes
            .max(WINDOW_PACKETS_MIN * self.packet_bytes)
    }

    /// What is believed now.
    #[must_use]
    pub fn estimate(&self) -> Estimate {
        Estimate {
            rate_bytes_per_second: self.rate_bytes_per_second,
            base_rtt: self.base.known().unwrap_or_default(),
            queue_delay: self.queue_delay,
            told_base_rtt: self.told.base(),
            told_queue: self.told.queue(),
            round_began: self.round_began,
            window_bytes: self.window_bytes(),
            filled_bytes: self.filled_bytes,
            filled_time: self.filled_time,
            is_settled: !self.is_starting(),
            is_known: self.is_known,
            is_doubtful: self
                .belief
                .is_some_and(|belief| belief.is_much_more_than(self.window_bytes())),
            is_losing: self.losses.go_on(self.packet_bytes),
            packet_bytes: self.packet_bytes,
            marked: self.marked,
        }
    }

    /// Marks two periods: packets sent in them are observed separately. Replaces the earlier marks.
    pub fn mark(&mut self, marks: [(Instant, Instant); 2]) {
        for (marked, (from, until)) in self.marked.iter_mut().zip(marks) {
            if (marked.from, marked.until) != (from, until) {
                *marked = Marked {
                    from,
                    until,
                    ..Marked::default()
                };
            }
        }
    }

    /// Takes over the rate learnt by an earlier connection, if this path is as long: the startup
    /// begins and ends as after an interruption. Call it once a round trip is known.
    pub fn resume(&mut self, rate_bytes_per_second: u64, rtt: Duration) {
        let base = self.base.known().unwrap_or_default();
        let is_alike = base * 3 / 4 <= rtt && rtt * 3 / 4 <= base;
        let is_new = self.is_starting();
        let fitting = self.window_for(rate_bytes_per_second, base);
        if is_alike && is_new && fitting > self.window_bytes {
            self.rate_bytes_per_second = rate_bytes_per_second;
            self.is_known = true;
            self.startup_bytes_max = fitting;
            self.window_bytes = self.window_bytes.max(fitting / 4);
        }
    }

    /// States that the other end is an address of this host.
    pub const fn set_local(&mut self) {
        self.allowance.set_local();
    }

    /// Sets the size of packets from now on.
    pub const fn set_packet_bytes(&mut self, bytes: u64) {
        self.packet_bytes = bytes;
    }

    /// Records that a packet was acknowledged.
    pub fn on_ack(&mut self, ack: Ack) {
        let rtt = ack.rtt();
        let gap = self.round.note(&ack);
        let base = self.base.with(rtt);
        for marked in &mut self.marked {
            marked.note(ack.sent, rtt);
        }
        if is_long(gap, base) {
            // Packets sent up to one round trip before the peer is heard again, and lost, were lost
            // to the interruption. A burst after an idle time is not: its first packet is this one.
            let heard = ack.now.since(Instant::ZERO);
            let before = Instant::ZERO + heard.saturating_sub(base + ROUND_MIN);
            self.interrupted_until = before.max(ack.sent);
        }
        self.recent.note(rtt);
        let is_starting = self.is_starting();
        if is_starting && !ack.is_app_limited && !ack.is_cruising {
            self.grow_in_startup(ack.bytes, base);
        }
        let round_min = if is_starting {
            ROUND_MIN_STARTUP
        } else {
            ROUND_MIN
        };
        let is_long_enough = ack.now.since(self.round.began) >= round_min;
        if ack.sent >= self.round.began && is_long_enough {
            let finished = self.finish_round(ack.now, base);
            self.learn(&finished);
        }
    }

    /// Records that packets were lost, the last of them sent at `sent`. `is_all` means that nothing
    /// in flight arrived for a long time.
    pub fn on_loss(&mut self, now: Instant, sent: Instant, bytes: u64, is_all: bool) {
        let is_interruption = sent < self.interrupted_until;
        if is_all || is_interruption && bytes >= self.window_bytes / 4 {
            self.begin_again(now);
        } else if !is_interruption {
            self.round.lost_bytes += bytes;
            // The startup overruns the path; those losses say nothing about the time after it.
            let is_overrun = sent < self.settled_at;
            self.round.overrun_bytes += if is_overrun { bytes } else { 0 };
        }
    }

    /// Updates rate, window and phase after a round.
    fn learn(&mut self, finished: &Finished) {
        let is_limit = !finished.round.is_app_limited;
        if finished.is_told || self.phase == Phase::Steady && is_limit {
            self.filled_bytes += finished.round.delivered_bytes;
            self.filled_time += finished.elapsed;
        }
        let was_starting = self.is_starting();
        let refuted = self.refuted(finished);
        match (self.phase, refuted) {
            (Phase::Startup(startup), _) => self.step_startup(startup, finished),
            (Phase::Draining(drain), _) => self.end_drain(drain, finished.base),
            (_, Some(rate_before)) => self.lengthen(finished, rate_before),
            (_, None) if finished.is_told => self.believe(finished),
            (Phase::Filling { round_count: 2.. }, None) => {
                self.phase = Phase::Filling { round_count: 1 };
            }
            (Phase::Filling { .. }, None) => self.phase = Phase::Steady,
            (Phase::Steady, None) => self.follow(finished),
        }
        if was_starting && self.phase == Phase::Steady {
            self.is_known = true;
            // Its losses are noticed within a round trip; the burst after that finds its queue.
            self.settled_at = finished.now + 2 * finished.base;
        }
        self.turn_base(finished);
    }

    /// The allowance at this rate, in bytes per second.
    fn allowance_at(&self, rate: u64) -> Duration {
        self.allowance.at(rate, self.packet_bytes)
    }

    /// The bytes that a path of this rate and base holds, with the allowance.
    fn window_for(&self, rate: u64, base: Duration) -> u64 {
        bytes_in(rate, base + self.allowance_at(rate))
            .clamp(WINDOW_PACKETS_MIN * self.packet_bytes, WINDOW_BYTES_MAX)
    }
}

#[cfg(test)]
mod tests;
