//! The estimator: what the path carries, and how many bytes in flight keep its queue short.
//!
//! A full queue at the bottleneck decides how long an urgent byte waits; no priority of ours reaches
//! into it. So a connection keeps as many bytes in flight as the path itself holds, plus an
//! *allowance*: a queue of a few milliseconds, short enough for a guest to wait behind and long enough
//! to notice when the path gets faster.
//!
//! ```text
//!   window = delivery rate × (base round trip + allowance)
//!
//!   Startup ── queue or loss seen, or rate no longer grows ──► Steady ── every 10 s ──► Draining
//!      ▲                                                        │  ▲                        │
//!      └───────────────── everything in flight lost ────────────┘  └──── one round trip ────┘
//! ```
//!
//! The formula is its own probe: below the path's capacity no queue forms, so each round delivers a
//! full window per base round trip and the next window is larger by the allowance's share; at
//! capacity the rate stops growing and the queue stays at the allowance. The base round trip is the
//! least seen in the last twenty seconds, and a drain every ten shows it even if we fill the link.
//! Loss alone does not slow us down below [`LOSS_TOLERATED_PER_MILLE`]: wireless edges lose packets
//! without being full. Above it the buffer is smaller than the allowance, which then shrinks.

use std::time::Duration;

use towpath_protocol::time::Instant;

/// The queue we allow ourselves at the bottleneck.
pub const ALLOWANCE: Duration = Duration::from_millis(5);

/// The least allowance, for buffers of a few packets.
const ALLOWANCE_MIN: Duration = Duration::from_micros(500);

/// Loss in one round that counts as noise of the path.
pub const LOSS_TOLERATED_PER_MILLE: u64 = 20;

/// Least time of a round: on a fast short path a round trip is too short to measure a rate in.
const ROUND_MIN: Duration = Duration::from_millis(1);

/// How long the highest rate counts. On a path shorter than this, rounds are so short that a process
/// which was not scheduled looks like a slow path; longer ones are not touched by it.
const PEAK_TIME: Duration = Duration::from_millis(20);

/// How long a base round trip is believed, twice: it is the least of this time and of the one before.
const BASE_TIME: Duration = Duration::from_secs(10);

/// Packets in flight below which nothing is ever learnt.
const WINDOW_PACKETS_MIN: u64 = 4;

/// Packets of queue that the allowance is worth at least, on links so thin that it is none.
const ALLOWANCE_PACKETS_MIN: u64 = 4;

/// Bytes in flight above which no memory is spent: 1 Gbit/s over 250 ms.
const WINDOW_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// Rounds without a quarter more delivered that end the startup.
const PLATEAU_ROUNDS: u32 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The window doubles every round trip.
    Startup { best_rate: u64, plateau_rounds: u32 },
    /// The window follows the formula.
    Steady,
    /// The queue is let run empty for one round trip, to see the base; then the window is this again.
    Draining { window_bytes: u64 },
}

/// What an acknowledgement says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// When it came.
    pub now: Instant,
    /// When its packet had been sent.
    pub sent: Instant,
    /// Bytes of the packet.
    pub bytes: u64,
    /// Whether the sender had nothing more to send for a while before.
    pub is_app_limited: bool,
}

/// What the estimator believes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Estimate {
    /// Bytes per second delivered when the path, not the sender, was the limit.
    pub rate_bytes_per_second: u64,
    /// Round trip without a queue.
    pub base_rtt: Duration,
    /// How much longer the last round's shortest round trip was.
    pub queue_delay: Duration,
    /// Bytes that may be in flight.
    pub window_bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct Round {
    began: Instant,
    delivered_bytes: u64,
    lost_bytes: u64,
    rtt_min: Duration,
    is_app_limited: bool,
}

impl Round {
    const fn beginning(now: Instant) -> Self {
        Self {
            began: now,
            delivered_bytes: 0,
            lost_bytes: 0,
            rtt_min: Duration::MAX,
            is_app_limited: false,
        }
    }
}

/// The shortest round trips of two spans of time.
#[derive(Debug, Clone, Copy)]
struct Base {
    began: Instant,
    current: Duration,
    previous: Duration,
    /// Whether the queue ran empty by itself in this span, so that no drain is needed.
    was_empty: bool,
}

/// The highest rate of the last few milliseconds: of two spans, so that it always covers one whole.
#[derive(Debug, Clone, Copy, Default)]
struct Peak {
    began: Instant,
    current: u64,
    previous: u64,
}

impl Peak {
    /// The peak with one more sample.
    fn with(&mut self, rate: u64, now: Instant) -> u64 {
        if now.since(self.began) >= PEAK_TIME {
            self.began = now;
            self.previous = self.current;
            self.current = 0;
        }
        self.current = self.current.max(rate);
        self.current.max(self.previous)
    }
}

/// Follows one connection.
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
    allowance: Duration,
}

impl Estimator {
    /// An estimator that knows nothing yet and sends `window_bytes` to find out.
    #[must_use]
    pub fn new(packet_bytes: u64, window_bytes: u64, now: Instant) -> Self {
        Self {
            phase: Phase::Startup {
                best_rate: 0,
                plateau_rounds: 0,
            },
            round: Round::beginning(now),
            base: Base {
                began: now,
                current: Duration::MAX,
                previous: Duration::MAX,
                was_empty: false,
            },
            packet_bytes,
            window_bytes,
            rate_bytes_per_second: 0,
            peak: Peak::default(),
            queue_delay: Duration::ZERO,
            allowance: ALLOWANCE,
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
            base_rtt: self.known_base().unwrap_or_default(),
            queue_delay: self.queue_delay,
            window_bytes: self.window_bytes(),
        }
    }

    /// Packets have this size from now on.
    pub const fn set_packet_bytes(&mut self, bytes: u64) {
        self.packet_bytes = bytes;
    }

    /// A packet has arrived.
    pub fn on_ack(&mut self, ack: Ack) {
        let rtt = ack.now.since(ack.sent);
        self.round.rtt_min = self.round.rtt_min.min(rtt);
        self.round.delivered_bytes += ack.bytes;
        self.round.is_app_limited |= ack.is_app_limited;
        self.base.current = self.base.current.min(rtt);
        let base = self.base.current.min(self.base.previous);
        if let Phase::Startup { .. } = self.phase {
            let has_queue = self.round.rtt_min.saturating_sub(base) > self.allowance / 2;
            if !ack.is_app_limited && !has_queue {
                self.window_bytes = (self.window_bytes + ack.bytes).min(WINDOW_BYTES_MAX);
            }
        }
        let is_long_enough = ack.now.since(self.round.began) >= ROUND_MIN;
        if ack.sent >= self.round.began && is_long_enough {
            self.finish_round(ack.now, base);
        }
    }

    /// Packets were lost; `is_all` if nothing that was in flight for a long time arrived.
    pub fn on_loss(&mut self, now: Instant, bytes: u64, is_all: bool) {
        self.round.lost_bytes += bytes;
        if is_all {
            self.phase = Phase::Startup {
                best_rate: 0,
                plateau_rounds: 0,
            };
            self.window_bytes /= 4;
            self.round = Round::beginning(now);
        }
    }

    fn finish_round(&mut self, now: Instant, base: Duration) {
        let round = std::mem::replace(&mut self.round, Round::beginning(now));
        let elapsed = now.since(round.began);
        let rate = per_second(round.delivered_bytes, elapsed);
        let rate = self.peak.with(rate, now);
        self.queue_delay = round.rtt_min.saturating_sub(base);
        self.base.was_empty |= self.queue_delay < self.allowance / 4;
        let seen_bytes = (round.delivered_bytes + round.lost_bytes).max(1);
        let is_lossy = round.lost_bytes * 1000 / seen_bytes > LOSS_TOLERATED_PER_MILLE;
        self.adapt_allowance(is_lossy);
        match self.phase {
            Phase::Startup {
                best_rate,
                plateau_rounds,
            } => {
                // A queue that a sender with nothing to send sees is somebody else's.
                let has_queue = self.queue_delay > self.allowance / 2;
                let is_full = is_lossy || (has_queue && !round.is_app_limited);
                self.start(&round, rate, base, is_full, best_rate, plateau_rounds);
            }
            Phase::Draining { window_bytes } => {
                self.window_bytes = window_bytes;
                self.phase = Phase::Steady;
            }
            Phase::Steady => self.follow(&round, rate, base),
        }
        self.turn_base(now, base);
    }

    fn start(
        &mut self,
        round: &Round,
        rate: u64,
        base: Duration,
        is_full: bool,
        best_rate: u64,
        plateau_rounds: u32,
    ) {
        self.rate_bytes_per_second = self.rate_bytes_per_second.max(rate);
        let has_grown = rate > best_rate + best_rate / 4;
        let plateau_rounds = match (has_grown, round.is_app_limited) {
            (true, _) => 0,
            (false, true) => plateau_rounds,
            (false, false) => plateau_rounds + 1,
        };
        if is_full || plateau_rounds >= PLATEAU_ROUNDS {
            self.rate_bytes_per_second = rate.max(best_rate);
            self.window_bytes = self.window_for(self.rate_bytes_per_second, base);
            self.phase = Phase::Steady;
        } else {
            self.phase = Phase::Startup {
                best_rate: best_rate.max(rate),
                plateau_rounds,
            };
        }
    }

    /// Moves half way to the formula's window, so that one noisy round does little.
    fn follow(&mut self, round: &Round, rate: u64, base: Duration) {
        // A sender that had nothing to send says nothing about the path, unless it got more through.
        if round.is_app_limited && rate <= self.rate_bytes_per_second {
            return;
        }
        self.rate_bytes_per_second = self.rate_bytes_per_second.midpoint(rate);
        let wanted = self.window_for(rate, base);
        let grown_most = self.window_bytes + self.window_bytes / 4;
        let is_congested = self.queue_delay > 2 * self.allowance;
        self.window_bytes = if is_congested {
            wanted.clamp(self.window_bytes / 2, self.window_bytes)
        } else {
            self.window_bytes.midpoint(wanted).min(grown_most)
        };
    }

    fn window_for(&self, rate: u64, base: Duration) -> u64 {
        let path = bytes_in(rate, base);
        let allowed = bytes_in(rate, self.allowance).max(ALLOWANCE_PACKETS_MIN * self.packet_bytes);
        path.saturating_add(allowed)
            .clamp(WINDOW_PACKETS_MIN * self.packet_bytes, WINDOW_BYTES_MAX)
    }

    /// Halves the allowance where the buffer does not hold it, and lets it grow back slowly.
    fn adapt_allowance(&mut self, is_lossy: bool) {
        self.allowance = if is_lossy {
            (self.allowance / 2).max(ALLOWANCE_MIN)
        } else {
            (self.allowance + self.allowance / 64).min(ALLOWANCE)
        };
    }

    /// Begins a new span for the base, and a drain if our own queue may have hidden it.
    fn turn_base(&mut self, now: Instant, base: Duration) {
        if now.since(self.base.began) < BASE_TIME {
            return;
        }
        if self.phase == Phase::Steady && !self.base.was_empty {
            self.phase = Phase::Draining {
                window_bytes: self.window_bytes,
            };
            let path = bytes_in(self.rate_bytes_per_second, base);
            self.window_bytes = path - path / 8;
        }
        self.base = Base {
            began: now,
            current: Duration::MAX,
            previous: self.base.current,
            was_empty: false,
        };
    }

    fn known_base(&self) -> Option<Duration> {
        let base = self.base.current.min(self.base.previous);
        (base != Duration::MAX).then_some(base)
    }
}

fn per_second(bytes: u64, elapsed: Duration) -> u64 {
    let nanos = elapsed.as_nanos().max(1);
    u64::try_from(u128::from(bytes) * 1_000_000_000 / nanos).unwrap_or(u64::MAX)
}

fn bytes_in(rate: u64, time: Duration) -> u64 {
    let bytes = u128::from(rate) * time.as_nanos() / 1_000_000_000;
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
