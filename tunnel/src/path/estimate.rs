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

mod amounts;
mod belief;
mod losses;
mod marked;
mod round;
mod spans;
mod told;

use std::time::Duration;

use towpath_protocol::time::Instant;

pub(crate) use amounts::scaled;
use amounts::{bytes_in, per_second};
use belief::Belief;
use losses::Losses;
pub use marked::Marked;
use round::Round;
use spans::{Base, Peak};
use told::Shown;

/// The queue we allow ourselves at the bottleneck.
pub const ALLOWANCE: Duration = Duration::from_millis(4);

/// The allowance on a path within this host. There the queue is for the processors, which no pacing
/// of ours shortens, and a pipeline of four processes on busy processors runs dry with less.
const ALLOWANCE_LOCAL: Duration = Duration::from_millis(25);

/// Limits of a path within this host; a link emulator on the host is slower or longer.
const LOCAL_RTT_MAX: Duration = Duration::from_millis(1);
const LOCAL_BYTES_PER_SECOND_MIN: u64 = 125_000_000;

/// The least allowance, for buffers of a few packets.
const ALLOWANCE_MIN: Duration = Duration::from_micros(500);

/// Extra round trips of data to keep under loss, because a packet may be lost twice.
const HOLE_ROUNDS: u64 = 2;

/// The part by which a window may exceed what is delivered on a lossy path. A path without buffer
/// loses it; with less, a path that always loses as much would shrink the window for ever.
const LOSSY_PART: u64 = 20;

/// Least duration of a round. On a short path a round trip is too short to measure a rate in, and a
/// process that was not scheduled would look like a queue.
const ROUND_MIN: Duration = Duration::from_millis(10);
/// The same in a startup, which grows faster.
const ROUND_MIN_STARTUP: Duration = Duration::from_millis(1);

/// The least part of the window (a sixteenth) that a full round brings. It would be all of it, but
/// rounds on paths within a host may be shorter than their queues.
const FULL_PART: u64 = 16;
const FULL_PART_STARTUP: u64 = 4;

/// Number of recent acknowledgements whose least round trip shows the startup a queue.
const RECENT_COUNT: usize = 8;

/// The longest time without any acknowledgement, beyond two round trips, that is not an
/// interruption. Twice the longest time a peer may hold an acknowledgement back.
const GAP_MIN: Duration = Duration::from_millis(50);

/// One span of the base, which is the least round trip of the current span and the one before.
const BASE_TIME: Duration = Duration::from_secs(10);

/// The least window, in packets: with fewer in flight nothing is ever learnt.
const WINDOW_PACKETS_MIN: u64 = 4;

/// The least allowance in packets. On a thin link 4 ms are less than one packet.
const ALLOWANCE_PACKETS_MIN: u64 = 4;

/// The largest window: 5 Gbit/s over 200 ms.
const WINDOW_BYTES_MAX: u64 = 128 * 1024 * 1024;

/// Rounds in a row whose rate grew by no more than a quarter that end the startup.
const PLATEAU_ROUNDS: u32 = 3;

/// Rounds without a queue after which the window counts as too small, not the queue as too short.
const EMPTY_ROUNDS: u32 = 3;
/// Rounds after [`EMPTY_ROUNDS`] in which the window grows by half.
const GROWTH_ROUNDS: u32 = 4;
/// The most empty rounds to wait before the next attempt, when growing brought no higher rate.
const EMPTY_ROUNDS_MAX: u32 = 96;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The window doubles every round trip.
    Startup { best_rate: u64, plateau_rounds: u32 },
    /// The window follows the formula.
    Steady,
    /// The window is reduced for one round trip, so that the queue runs empty and shows the base;
    /// `window_bytes` is the window to restore.
    Draining { window_bytes: u64, drain: Drain },
    /// The path fills again after a drain, or after the window was much smaller. The next
    /// `round_count` rounds say nothing about it, unless a long queue is still there.
    Filling { round_count: u32 },
}

/// One round trip with less in flight than the path holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Drain {
    /// The base when the drain began. If a shorter one shows, the queue was not empty yet.
    base: Duration,
    /// How much less is in flight, as a time. Small, because the missing part comes back as a
    /// burst; doubled each time a shorter base shows.
    depth: Duration,
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

/// The estimator's current view of the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Estimate {
    /// Bytes per second delivered while the path, not the sender, was the limit.
    pub rate_bytes_per_second: u64,
    /// Round trip without a queue.
    pub base_rtt: Duration,
    /// By how much the last round's shortest round trip exceeded the base.
    pub queue_delay: Duration,
    /// `base_rtt` as shown to operators: it skips rounds with too few packets to know.
    pub told_base_rtt: Duration,
    /// `queue_delay` as shown to operators; see [`Self::told_base_rtt`].
    pub told_queue: Duration,
    /// When the last round began; all its packets were sent later.
    pub round_began: Instant,
    /// Bytes that may be in flight.
    pub window_bytes: u64,
    /// Total bytes delivered while the path was the limit and the window had settled.
    pub filled_bytes: u64,
    /// Total time in which [`Self::filled_bytes`] were delivered.
    pub filled_time: Duration,
    /// Whether the path's rate has been found.
    pub is_settled: bool,
    /// Whether the rate was ever found, here or by an earlier connection; else it is what was sent.
    pub is_known: bool,
    /// Whether it is open if the path has become longer; less is in flight meanwhile.
    pub is_doubtful: bool,
    /// Whether packets were lost recently, for whatever reason.
    pub is_losing: bool,
    /// Bytes of a full packet.
    pub packet_bytes: u64,
    /// What the packets of each marked period showed; see [`Estimator::mark`].
    pub marked: [Marked; 2],
}

impl Estimate {
    /// Extra round trips of data to keep while packets are being lost; 0 on a path without loss.
    #[must_use]
    pub const fn hole_rounds(&self) -> u64 {
        if self.is_losing { HOLE_ROUNDS } else { 0 }
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
    allowance: Duration,
    /// Rounds in a row that filled the window and left no queue, and the rate in the first of them.
    empty_rounds: u32,
    empty_rate: u64,
    /// Number of such rounds after which the window grows.
    empty_rounds_max: u32,
    losses: Losses,
    /// End of the time in which packets of the last startup may still be lost or leave a queue.
    settled_at: Instant,
    /// A lower rate that was adopted recently and is not confirmed yet.
    belief: Option<Belief>,
    /// Whether the sender paused in the round before. What it sent then arrives in this one.
    was_app_limited: bool,
    is_local: bool,
    recent: [Duration; RECENT_COUNT],
    ack_count: usize,
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
            phase: Phase::Startup {
                best_rate: 0,
                plateau_rounds: 0,
            },
            round: Round::beginning(now, window_bytes),
            base: Base {
                began: now,
                current: Duration::MAX,
                previous: Duration::MAX,
            },
            packet_bytes,
            window_bytes,
            rate_bytes_per_second: 0,
            peak: Peak::default(),
            queue_delay: Duration::ZERO,
            round_began: now,
            allowance: ALLOWANCE,
            empty_rounds: 0,
            empty_rate: 0,
            empty_rounds_max: EMPTY_ROUNDS,
            losses: Losses::default(),
            settled_at: Instant::ZERO,
            belief: None,
            was_app_limited: false,
            is_local: false,
            recent: [Duration::ZERO; RECENT_COUNT],
            ack_count: 0,
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
            base_rtt: self.known_base().unwrap_or_default(),
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
        let base = self.known_base().unwrap_or_default();
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
        self.is_local = true;
    }

    /// Sets the size of packets from now on.
    pub const fn set_packet_bytes(&mut self, bytes: u64) {
        self.packet_bytes = bytes;
    }

    /// Records that a packet was acknowledged.
    pub fn on_ack(&mut self, ack: Ack) {
        let rtt = ack.now.since(ack.sent);
        self.round.rtt_min = self.round.rtt_min.min(rtt);
        self.round.rtt_sum += rtt;
        self.round.packet_count = self.round.packet_count.saturating_add(1);
        let gap = ack.now.since(self.round.arrived);
        self.round.gap_max = self.round.gap_max.max(gap);
        self.round.arrived = ack.now;
        self.round.delivered_bytes += ack.bytes;
        self.round.is_app_limited |= ack.is_app_limited || ack.is_cruising;
        self.round.is_cruising |= ack.is_cruising;
        self.base.current = self.base.current.min(rtt);
        for marked in &mut self.marked {
            marked.note(ack.sent, rtt);
        }
        let base = self.base.current.min(self.base.previous);
        if is_long(gap, base) {
            // Packets sent up to one round trip before the peer is heard again, and lost, were lost
            // to the interruption. A burst after an idle time is not: its first packet is this one.
            let heard = ack.now.since(Instant::ZERO);
            let before = Instant::ZERO + heard.saturating_sub(base + ROUND_MIN);
            self.interrupted_until = before.max(ack.sent);
        }
        self.recent[self.ack_count % RECENT_COUNT] = rtt;
        self.ack_count = self.ack_count.wrapping_add(1);
        let is_starting = self.is_starting();
        if is_starting {
            let least = self.recent.iter().min().copied().unwrap_or_default();
            let has_queue = least.saturating_sub(base) > self.allowance / 2;
            if !ack.is_app_limited && !ack.is_cruising && !has_queue {
                self.window_bytes = (self.window_bytes + ack.bytes).min(self.startup_bytes_max);
            }
        }
        let round_min = if is_starting {
            ROUND_MIN_STARTUP
        } else {
            ROUND_MIN
        };
        let is_long_enough = ack.now.since(self.round.began) >= round_min;
        if ack.sent >= self.round.began && is_long_enough {
            self.finish_round(ack.now, base);
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

    /// Starts again after an interruption. The old rate is believed until another is seen.
    fn begin_again(&mut self, now: Instant) {
        let is_known = !self.is_starting();
        if let Some(base) = self.known_base().filter(|_| is_known) {
            self.startup_bytes_max = self.window_for(self.rate_bytes_per_second, base);
        }
        // The losses of an interruption are noticed piece by piece, and each piece comes here.
        let known = Some(self.startup_bytes_max).filter(|bytes| *bytes < WINDOW_BYTES_MAX);
        let window_bytes = self.window_bytes.max(known.unwrap_or(0)) / 4;
        self.start_from(now, window_bytes.min(self.startup_bytes_max));
        self.allowance = ALLOWANCE;
    }

    fn start_from(&mut self, now: Instant, window_bytes: u64) {
        self.phase = Phase::Startup {
            best_rate: 0,
            plateau_rounds: 0,
        };
        self.belief = None;
        self.window_bytes = window_bytes;
        self.round = Round::beginning(now, window_bytes);
    }

    fn finish_round(&mut self, now: Instant, base: Duration) {
        let next = Round::beginning(now, self.window_bytes);
        let mut round = std::mem::replace(&mut self.round, next);
        let elapsed = now.since(round.began);
        let round_rate = per_second(round.delivered_bytes, elapsed);
        self.queue_delay = round.rtt_min.saturating_sub(base);
        self.round_began = round.began;
        // A sender's pause does not count if the whole window was in flight all the same. If there
        // is a queue, half of the window is already more than the path holds.
        let in_flight_min = bytes_in(round_rate, round.rtt_min);
        let in_flight = bytes_in(round_rate, round.rtt_sum / round.packet_count.max(1));
        let has_queue = self.queue_delay > self.allowance / 2;
        let is_full = !round.is_cruising && in_flight_min >= round.window_bytes / 8 * 7
            || has_queue && in_flight >= round.window_bytes / 2;
        // Whether the sender had data is known for the time of the acknowledgement, not of the
        // packet: a few bytes acknowledged late, with the window full at last, would set the rate.
        let seen_bytes = round.delivered_bytes + round.lost_bytes;
        let is_starting = self.is_starting();
        let least_part = if is_starting {
            FULL_PART_STARTUP
        } else {
            FULL_PART
        };
        let is_telling = seen_bytes >= round.window_bytes / least_part;
        let was_app_limited = std::mem::replace(&mut self.was_app_limited, round.is_app_limited);
        round.is_app_limited |= !is_telling || was_app_limited && self.phase == Phase::Steady;
        round.is_app_limited &= !is_full;
        round.is_app_limited |= self.is_interrupted(&round, elapsed, base);
        self.told
            .note(round.rtt_min, round.packet_count, !round.is_app_limited);
        let rate = self.peak.with(round_rate, now);
        // Losses below the path's rate are noise, however many they are.
        let is_lossy = self.note_losses(&round) && !round.is_cruising;
        let is_short = is_lossy && is_telling && self.phase == Phase::Steady;
        self.adapt_allowance(is_short, base, rate);
        let is_told = self.is_told(&round, elapsed, round_rate);
        if is_told || self.phase == Phase::Steady && !round.is_app_limited {
            self.filled_bytes += round.delivered_bytes;
            self.filled_time += elapsed;
        }
        let refuted = self.refuted(&round, is_told, now);
        match self.phase {
            Phase::Startup {
                best_rate,
                plateau_rounds,
            } => {
                // The queue and the losses seen by a sender with nothing to send are not its own:
                // one lost packet of three says nothing about what the path carries.
                let is_full = (is_lossy || has_queue) && !round.is_app_limited;
                self.start(&round, rate, base, is_full, best_rate, plateau_rounds);
            }
            Phase::Draining {
                window_bytes,
                drain,
            } => self.end_drain(window_bytes, drain, base),
            Phase::Steady | Phase::Filling { .. } if refuted.is_some() => {
                self.lengthen(now, round.rtt_min, refuted.unwrap_or(rate));
            }
            Phase::Steady | Phase::Filling { .. } if is_told => {
                self.believe(&round, round_rate, now, base);
            }
            Phase::Filling { round_count: 2.. } => self.phase = Phase::Filling { round_count: 1 },
            Phase::Filling { .. } => self.phase = Phase::Steady,
            Phase::Steady => self.follow(&round, rate, (now, base), is_lossy),
        }
        if is_starting && self.phase == Phase::Steady {
            self.is_known = true;
            // Its losses are noticed within a round trip; the burst after that finds its queue.
            self.settled_at = now + 2 * base;
        }
        self.turn_base(now, base, round.is_cruising);
    }

    /// Whether the path was interrupted for most of a round. A path that may have become longer
    /// explains a longer gap.
    fn is_interrupted(&self, round: &Round, elapsed: Duration, base: Duration) -> bool {
        let longer = self.belief.map_or(base, |belief| belief.rtt_before);
        round.is_interrupted(elapsed, longer.max(base))
    }

    /// Records the losses of a round. Returns whether a path loses that much only when it is full.
    fn note_losses(&mut self, round: &Round) -> bool {
        let lost_bytes = round.lost_bytes - round.overrun_bytes;
        let seen_bytes = round.delivered_bytes + lost_bytes;
        if self.is_starting() {
            self.losses = Losses::default();
            losses::is_overrun(seen_bytes, lost_bytes, self.packet_bytes)
        } else {
            self.losses.note(seen_bytes, lost_bytes);
            self.losses.are_beyond_noise(self.packet_bytes)
        }
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
            let fitting = self.window_for(self.rate_bytes_per_second, base);
            // Without a queue, the rate may only seem to have stopped growing.
            let most = if is_full { fitting } else { 2 * fitting };
            self.window_bytes = self.window_bytes.min(most);
            self.phase = Phase::Steady;
        } else if self.window_bytes >= self.startup_bytes_max {
            self.phase = Phase::Steady;
        } else {
            self.phase = Phase::Startup {
                best_rate: best_rate.max(rate),
                plateau_rounds,
            };
        }
    }

    /// Whether a round shows the path's rate directly: all of it arrived behind a long queue.
    fn is_told(&self, round: &Round, elapsed: Duration, rate: u64) -> bool {
        let is_open = matches!(self.phase, Phase::Steady | Phase::Filling { .. });
        let has_queue = self.queue_delay > 2 * self.allowance_at(rate).max(ALLOWANCE);
        is_open && has_queue && !round.is_app_limited && round.is_steady(elapsed)
    }

    /// Takes the rate of a round as the path's; earlier packets that are lost exceeded it. The
    /// pacer still uses the queue's round trip for a while, so the next rounds may not fill the
    /// path.
    fn believe(&mut self, round: &Round, rate: u64, now: Instant, base: Duration) {
        self.settled_at = self.settled_at.max(now);
        self.phase = Phase::Filling { round_count: 2 };
        let fitting = self.window_for(rate, base);
        let is_less = fitting < self.window_bytes - self.window_bytes / 8;
        self.suspect(round, now, base + self.allowance_at(rate), is_less);
        self.rate_bytes_per_second = rate;
        self.empty_rounds = 0;
        self.empty_rounds_max = EMPTY_ROUNDS;
        self.window_bytes = self.window_bytes.min(fitting);
    }

    /// Has less in flight from now on, which should shorten round trips to `allowed`. `is_anew`
    /// means that the test of an earlier belief no longer counts.
    fn suspect(&mut self, round: &Round, now: Instant, allowed: Duration, is_anew: bool) {
        let belief = Belief {
            since: now,
            rtt_before: round.rtt_min,
            rtt_allowed: allowed,
            window_before: self.window_bytes,
            rate_before: self.rate_bytes_per_second,
            round_count: 0,
        };
        self.belief = match self.belief {
            Some(known) if is_anew || !known.is_alike(round.rtt_min) => Some(belief.after(known)),
            None => Some(belief),
            known => known,
        };
    }

    /// Returns the old rate if having less in flight has not shortened the round trips. One such
    /// round is enough if it shows a queue, else it takes two.
    fn refuted(&mut self, round: &Round, is_told: bool, now: Instant) -> Option<u64> {
        self.belief = self.belief.filter(|belief| !belief.is_old(now));
        let belief = self.belief.as_mut()?;
        if round.is_app_limited || !belief.is_tested_by(round) {
            return None;
        }
        if !belief.note(round) {
            self.belief = None;
            return None;
        }
        (is_told || belief.round_count > 1).then_some(belief.rate_before)
    }

    /// Takes the path as longer and free of a queue, and fills it again at `rate`.
    fn lengthen(&mut self, now: Instant, base: Duration, rate: u64) {
        self.base = Base {
            began: now,
            current: base,
            previous: Duration::MAX,
        };
        self.told = Shown::default();
        self.rate_bytes_per_second = rate;
        self.startup_bytes_max = self.window_for(rate, base);
        self.start_from(now, self.window_bytes.max(self.startup_bytes_max / 4));
    }

    /// Moves half way to the formula's window, against odd rounds; all the way if the queue is
    /// long.
    fn follow(
        &mut self,
        round: &Round,
        rate: u64,
        (now, base): (Instant, Duration),
        is_lossy: bool,
    ) {
        // A sender without data says nothing about the path, unless it delivered more than the
        // rate; but while a queue stands, too large a window is cut. While cruising even more
        // delivered says nothing: a round of two packets on a thin link may have seen three arrive.
        let is_more = rate > self.rate_bytes_per_second && !round.is_cruising;
        if round.is_app_limited && !is_more {
            if self.queue_delay > 2 * self.allowance {
                let fitting = self.window_for(self.rate_bytes_per_second, base);
                self.window_bytes = self.window_bytes.min(fitting);
            }
            return;
        }
        let allowed = base + self.allowance_at(rate);
        if round.rtt_min > allowed {
            self.suspect(round, now, allowed, false);
        }
        self.rate_bytes_per_second = self.rate_bytes_per_second.midpoint(rate);
        let is_empty = self.queue_delay < self.allowance / 4 && !is_lossy;
        let empty_rounds = if !is_empty || round.is_app_limited {
            0
        } else {
            self.empty_rounds + 1
        };
        if empty_rounds == 1 {
            self.empty_rate = rate;
        }
        if self.queue_delay >= self.allowance / 2 {
            // The path is full and shows a queue.
            self.empty_rounds_max = EMPTY_ROUNDS;
        }
        let is_lost = is_lossy && self.empty_rounds > self.empty_rounds_max;
        self.empty_rounds = empty_rounds;
        if is_lost || empty_rounds > self.empty_rounds_max + GROWTH_ROUNDS {
            self.empty_rounds = 0;
            if is_lost || rate < self.empty_rate + self.empty_rate / 4 {
                // It grew in vain: something else is the limit, or the excess is lost.
                self.empty_rounds_max = (self.empty_rounds_max * 2).min(EMPTY_ROUNDS_MAX);
                self.window_bytes = self.window_bytes.min(self.window_for(rate, base));
                return;
            }
            // Far too small. The startup grows faster, and looks for a queue at every packet.
            self.empty_rounds_max = EMPTY_ROUNDS;
            self.startup_bytes_max = WINDOW_BYTES_MAX;
            self.phase = Phase::Startup {
                best_rate: rate,
                plateau_rounds: 0,
            };
            return;
        }
        let wanted = match self.growth_bytes() {
            Some(growth) => self.window_bytes + 2 * growth,
            None => scaled(self.window_bytes, allowed, round.rtt_min),
        };
        // If something other than the window is the limit, no queue forms however large it is.
        let fitting = self.window_for(rate, base);
        let more = if is_lossy {
            fitting / LOSSY_PART
        } else {
            fitting
        };
        let most = fitting.saturating_add(more);
        let is_congested = self.queue_delay > 2 * self.allowance;
        self.window_bytes = if is_congested {
            wanted.clamp(self.window_bytes / 2, self.window_bytes)
        } else {
            let grown_most = self.window_bytes + self.window_bytes / 4;
            self.window_bytes.midpoint(wanted).min(grown_most)
        }
        .clamp(WINDOW_PACKETS_MIN * self.packet_bytes, most);
    }

    /// How much the window grows after too many empty rounds: every other round, because the effect
    /// shows one round later, and little the first time, because jitter may hide a queue.
    fn growth_bytes(&self) -> Option<u64> {
        let rounds = self.empty_rounds.checked_sub(self.empty_rounds_max + 1)?;
        match rounds {
            0 => Some(self.window_bytes / 8),
            _ if rounds.is_multiple_of(2) => Some(self.window_bytes / 4),
            _ => None,
        }
    }

    /// The allowance, but not less than a few packets.
    fn allowance_at(&self, rate: u64) -> Duration {
        let packets = ALLOWANCE_PACKETS_MIN * self.packet_bytes;
        let nanos = packets * 1_000_000_000 / rate.max(1);
        self.allowance.max(Duration::from_nanos(nanos))
    }

    /// The bytes that a path of this rate and base holds, with the allowance.
    fn window_for(&self, rate: u64, base: Duration) -> u64 {
        bytes_in(rate, base + self.allowance_at(rate))
            .clamp(WINDOW_PACKETS_MIN * self.packet_bytes, WINDOW_BYTES_MAX)
    }

    /// Halves the allowance where the buffer is too short for it, and lets it grow back slowly.
    fn adapt_allowance(&mut self, is_short: bool, base: Duration, rate: u64) {
        let is_within = base <= LOCAL_RTT_MAX && rate >= LOCAL_BYTES_PER_SECOND_MIN;
        let most = if self.is_local && is_within {
            ALLOWANCE_LOCAL
        } else {
            ALLOWANCE
        };
        self.allowance = if is_short {
            (self.allowance / 2).max(ALLOWANCE_MIN)
        } else {
            (self.allowance + self.allowance / 64).min(most)
        };
    }

    /// Begins a new span for the base, with a drain, because our own queue may hide the base. A
    /// sender that keeps below the rate has no queue, and a drain would only cause a burst.
    fn turn_base(&mut self, now: Instant, base: Duration, is_cruising: bool) {
        if now.since(self.base.began) < BASE_TIME {
            return;
        }
        self.told.turn();
        if self.phase == Phase::Steady && !is_cruising {
            let depth = self.allowance;
            self.drain(self.window_bytes, Drain { base, depth });
        }
        self.base = Base {
            began: now,
            current: Duration::MAX,
            previous: self.base.current,
        };
    }

    /// Ends a drain's round. If the queue was not empty yet, a deeper drain follows.
    fn end_drain(&mut self, window_bytes: u64, drain: Drain, base: Duration) {
        if base + self.allowance / 2 < drain.base {
            let depth = drain.depth * 2;
            self.drain(window_bytes, Drain { base, depth });
        } else {
            self.window_bytes = window_bytes;
            self.phase = Phase::Filling { round_count: 1 };
        }
    }

    /// Reduces the window for a round, so that the queue runs empty; then it is `window_bytes`.
    fn drain(&mut self, window_bytes: u64, drain: Drain) {
        self.phase = Phase::Draining {
            window_bytes,
            drain,
        };
        let left = drain.base - drain.depth.min(drain.base / 2);
        self.window_bytes = bytes_in(self.rate_bytes_per_second, left);
    }

    const fn is_starting(&self) -> bool {
        matches!(self.phase, Phase::Startup { .. })
    }

    fn known_base(&self) -> Option<Duration> {
        let base = self.base.current.min(self.base.previous);
        (base != Duration::MAX).then_some(base)
    }
}

/// Whether a gap between acknowledgements is longer than a path with this base explains.
fn is_long(gap: Duration, base: Duration) -> bool {
    gap > 2 * base + GAP_MIN
}

#[cfg(test)]
mod tests;
