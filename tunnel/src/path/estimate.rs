//! The estimator: what the path carries, and how many bytes in flight keep its queue short.
//!
//! A full queue at the bottleneck decides how long an urgent byte waits; no priority of ours reaches
//! into it. So a connection keeps as many bytes in flight as the path itself holds, plus an
//! *allowance*: a queue of a few milliseconds, short enough for a guest to wait behind and long enough
//! to notice when the path gets faster.
//!
//! ```text
//!   window' = window × (base round trip + allowance) / (least round trip of the last round)
//!
//!   Startup ── queue or much loss, or rate no longer grows ──► Steady ── every 10 s ──► Draining
//!      ▲                                                        │  ▲                        │
//!      └───── everything in flight lost, or long no queue ──────┘  └─ Filling ◄─ base seen ─┘
//! ```
//!
//! A round that was full behind a long queue, with something arriving all the time, says at once what the path
//! carries: its rate is believed as it is, and the next rounds are left to fill the path again. If what is sent
//! with less in flight takes as long, there was no queue: the path is longer, and carries what it did (`belief`).
//!
//! The formula is its own probe: below the path's capacity no queue forms, so the window grows by the
//! allowance's share; at capacity a queue of the allowance's length stands, and the window with it. On a
//! long path that share is small, so a window that has filled the path for some rounds without any queue
//! grows by larger steps, and if there is still none then and more gets through, the startup begins again.
//! If no more does, the next such try waits twice as long.
//! Only the *least* round trip of a round speaks, because only a standing queue delays every packet:
//! radio links and busy processors delay many, and must not look like a full path. The base is the
//! least round trip of the last twenty seconds, and a drain every ten shows it even if we fill the link.
//! A round in which the sender paused teaches nothing, unless the window was in flight all the same.
//! Loss alone does not slow us down below what counts as noise: wireless edges lose packets
//! without being full. Above it the buffer is smaller than the allowance, which then shrinks, and the window
//! keeps close to what gets through. In a startup rounds are of a few packets, so only a large part of one
//! counts: that is lost when the window exceeds what the path holds, and no buffer shows it by a queue.

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
use told::Told;

/// The queue we allow ourselves at the bottleneck.
pub const ALLOWANCE: Duration = Duration::from_millis(4);

/// The same on a path within this host: there the queue is for the processors, which no pacing of ours
/// shortens, and a pipeline of four processes on busy processors runs dry with less.
const ALLOWANCE_LOCAL: Duration = Duration::from_millis(25);

/// What a path within this host looks like; a link emulator on it is slower or longer.
const LOCAL_RTT_MAX: Duration = Duration::from_millis(1);
const LOCAL_BYTES_PER_SECOND_MIN: u64 = 125_000_000;

/// The least allowance, for buffers of a few packets.
const ALLOWANCE_MIN: Duration = Duration::from_micros(500);

/// Round trips for which more is kept while packets are being lost: what has arrived behind one waits until
/// it was repeated, or repeated once more.
const HOLE_ROUNDS: u64 = 2;

/// By which part a window may exceed what gets through a path that loses more than is tolerated. It is then
/// lost, if the path has no buffer; and a path that loses as much by itself would shrink the window for ever
/// with less.
const LOSSY_PART: u64 = 20;

/// Least time of a round: on a short path a round trip is too short to measure a rate in, and a process
/// that was not scheduled would look like a queue. Startup looks more often, for it grows faster.
const ROUND_MIN: Duration = Duration::from_millis(10);
const ROUND_MIN_STARTUP: Duration = Duration::from_millis(1);

/// The part of the window that a round brings at least if the window was the limit: all of it, but rounds of
/// paths within a host may be shorter than their queues.
const FULL_PART: u64 = 16;
const FULL_PART_STARTUP: u64 = 4;

/// Acknowledgements whose least round trip shows a queue to the startup.
const RECENT_COUNT: usize = 8;

/// Time without any acknowledgement, beyond two round trips, that is no interruption: twice what they may be
/// held back for.
const GAP_MIN: Duration = Duration::from_millis(50);

/// How long a base round trip is believed, twice: it is the least of this time and of the one before.
const BASE_TIME: Duration = Duration::from_secs(10);

/// Packets in flight below which nothing is ever learnt.
const WINDOW_PACKETS_MIN: u64 = 4;

/// Packets of queue that the allowance is worth at least, on links so thin that it is none.
const ALLOWANCE_PACKETS_MIN: u64 = 4;

/// Bytes in flight above which nothing is tried: 5 Gbit/s over 200 ms.
const WINDOW_BYTES_MAX: u64 = 128 * 1024 * 1024;

/// Rounds without a quarter more delivered that end the startup.
const PLATEAU_ROUNDS: u32 = 3;

/// Rounds without a queue after which the window is too small, not the queue too short to see; how many more
/// it takes to grow by half; and how long it waits at most after it grew and nothing more got through.
const EMPTY_ROUNDS: u32 = 3;
const GROWTH_ROUNDS: u32 = 4;
const EMPTY_ROUNDS_MAX: u32 = 96;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The window doubles every round trip.
    Startup { best_rate: u64, plateau_rounds: u32 },
    /// The window follows the formula.
    Steady,
    /// The queue is let run empty for one round trip, to see the base; then the window is this again.
    Draining { window_bytes: u64, drain: Drain },
    /// The path fills again after a drain, or after a far smaller window: so many rounds say nothing about it, unless
    /// a long queue is still there.
    Filling { round_count: u32 },
}

/// One round trip with less in flight than the path holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Drain {
    /// The base it was made for. If a shorter one shows, the queue was not empty yet.
    base: Duration,
    /// By how much less, in time. Little, for what is missing comes back as a burst; twice as much each
    /// time that a shorter base shows.
    depth: Duration,
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
    /// Whether the sender keeps below the rate that is believed.
    pub is_cruising: bool,
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
    /// The same two for operators: of rounds too small to know them they are not.
    pub told_base_rtt: Duration,
    /// See [`Self::told_base_rtt`].
    pub told_queue: Duration,
    /// When that round began: all its packets were sent later.
    pub round_began: Instant,
    /// Bytes that may be in flight.
    pub window_bytes: u64,
    /// Bytes delivered so far while the path was the limit and the window had settled.
    pub filled_bytes: u64,
    /// How long that was.
    pub filled_time: Duration,
    /// Whether the path's rate has been found.
    pub is_settled: bool,
    /// Whether it ever was, by this connection or the one before; until then the rate is what was sent.
    pub is_known: bool,
    /// Whether it is being found out if the path has become longer, with less in flight than it holds.
    pub is_doubtful: bool,
    /// Whether packets were lost of late, for whatever reason.
    pub is_losing: bool,
    /// Bytes of a full packet.
    pub packet_bytes: u64,
    /// What packets say that were sent at certain times.
    pub marked: [Marked; 2],
}

impl Estimate {
    /// Round trips for which what arrives behind a lost packet is kept, beside those of a path without loss.
    #[must_use]
    pub const fn hole_rounds(&self) -> u64 {
        if self.is_losing { HOLE_ROUNDS } else { 0 }
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
    round_began: Instant,
    allowance: Duration,
    /// Rounds in a row that filled the window and left no queue, and the rate when they began.
    empty_rounds: u32,
    empty_rate: u64,
    /// How many of them make the window grow.
    empty_rounds_max: u32,
    losses: Losses,
    /// When what the last startup sent was through.
    settled_at: Instant,
    /// What was believed of late that what is sent since has yet to bear out.
    belief: Option<Belief>,
    /// Whether the sender paused in the last round, which sent what this one sees arrive.
    was_app_limited: bool,
    is_local: bool,
    recent: [Duration; RECENT_COUNT],
    ack_count: usize,
    filled_bytes: u64,
    filled_time: Duration,
    /// What was sent before this and is lost, the last interruption took.
    interrupted_until: Instant,
    /// What the startup ends at: what the path is believed to hold, if it was known.
    startup_bytes_max: u64,
    marked: [Marked; 2],
    told: Told,
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
            told: Told::default(),
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

    /// Packets sent between these moments are to be looked at for themselves; those of earlier marks no
    /// longer.
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

    /// Takes over what an earlier connection has learnt about a path to the same peer, if this one is as long:
    /// the startup begins and ends as behind an interruption. To be told once a round trip is known.
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

    /// The other end is an address of this host.
    pub const fn set_local(&mut self) {
        self.is_local = true;
    }

    /// Packets have this size from now on.
    pub const fn set_packet_bytes(&mut self, bytes: u64) {
        self.packet_bytes = bytes;
    }

    /// A packet has arrived.
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
            // What was sent a round trip before the first word that is heard again, or earlier, and is lost,
            // the interruption took. A burst behind an idle time is not: its first packet is this one.
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

    /// Packets were lost, the last of them sent at `sent`; `is_all` if nothing that was in flight for a long
    /// time arrived.
    pub fn on_loss(&mut self, now: Instant, sent: Instant, bytes: u64, is_all: bool) {
        let is_interruption = sent < self.interrupted_until;
        if is_all || is_interruption && bytes >= self.window_bytes / 4 {
            self.begin_again(now);
        } else if !is_interruption {
            self.round.lost_bytes += bytes;
            // It fills more than the path holds, and what that loses says nothing of the time after it.
            let is_overrun = sent < self.settled_at;
            self.round.overrun_bytes += if is_overrun { bytes } else { 0 };
        }
    }

    /// The path was interrupted, and is perhaps another one now. Its rate is believed until another is seen.
    fn begin_again(&mut self, now: Instant) {
        let is_known = !self.is_starting();
        if let Some(base) = self.known_base().filter(|_| is_known) {
            self.startup_bytes_max = self.window_for(self.rate_bytes_per_second, base);
        }
        // What it took is noticed piece by piece, and begins again each time.
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
        // A pause of the sender is none if the window was in flight all the same; and half of it is more
        // than the path holds, if there is a queue.
        let in_flight_min = bytes_in(round_rate, round.rtt_min);
        let in_flight = bytes_in(round_rate, round.rtt_sum / round.packet_count.max(1));
        let has_queue = self.queue_delay > self.allowance / 2;
        let is_full = !round.is_cruising && in_flight_min >= round.window_bytes / 8 * 7
            || has_queue && in_flight >= round.window_bytes / 2;
        // Whether the sender had more to send is known of the time of the acknowledgement, not of the packet:
        // a few bytes that are acknowledged late, when the window is full at last, would be the path's rate.
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
        // What is lost below the path's rate is noise, however much it is.
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
                // The queue and the losses of a sender with nothing to send are somebody else's: one lost
                // packet of three says nothing about what the path carries.
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
            // What it lost is noticed within a round trip, and makes room for a burst that finds its queue.
            self.settled_at = now + 2 * base;
        }
        self.turn_base(now, base, round.is_cruising);
    }

    /// Whether nothing arrived for most of a round; what a path explains that is perhaps longer is no interruption.
    fn is_interrupted(&self, round: &Round, elapsed: Duration, base: Duration) -> bool {
        let longer = self.belief.map_or(base, |belief| belief.rtt_before);
        round.is_interrupted(elapsed, longer.max(base))
    }

    /// Takes note of what a round lost; says whether a path loses so much only if it is full.
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
            // Without a queue, the rate may only look as if it no longer grew.
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

    /// Whether all of a round arrived behind a queue that stood all the time.
    fn is_told(&self, round: &Round, elapsed: Duration, rate: u64) -> bool {
        let is_open = matches!(self.phase, Phase::Steady | Phase::Filling { .. });
        let has_queue = self.queue_delay > 2 * self.allowance_at(rate).max(ALLOWANCE);
        is_open && has_queue && !round.is_app_limited && round.is_steady(elapsed)
    }

    /// So much the path carries, and no more. What was sent before and is lost exceeded it; and the pacer keeps the
    /// queue's round trip in mind for a while, so that the next rounds may not fill the path.
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

    /// Has less in flight from now on, so that round trips take `allowed`; `is_anew` if what was sent before says nothing
    /// of that.
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

    /// The rate that the path has still, if less in flight has not shortened its round trips: at once if a round tells
    /// of a queue, else if two do.
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

    /// The path is longer, and has no queue: it is filled again at the rate it had.
    fn lengthen(&mut self, now: Instant, base: Duration, rate: u64) {
        self.base = Base {
            began: now,
            current: base,
            previous: Duration::MAX,
        };
        self.told = Told::default();
        self.rate_bytes_per_second = rate;
        self.startup_bytes_max = self.window_for(rate, base);
        self.start_from(now, self.window_bytes.max(self.startup_bytes_max / 4));
    }

    /// Moves half way to the formula's window, so that one odd round does little, or all the way if
    /// the queue is long.
    fn follow(
        &mut self,
        round: &Round,
        rate: u64,
        (now, base): (Instant, Duration),
        is_lossy: bool,
    ) {
        // A sender that had nothing to send says nothing about the path, unless it got more through. But a
        // window beyond what the path holds serves nobody while a queue stands there. Nor does it say so that it
        // got more through than the rate that it keeps below: a round of two packets on a thin link may have
        // seen three arrive.
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
            // The path is full, and shows it.
            self.empty_rounds_max = EMPTY_ROUNDS;
        }
        let is_lost = is_lossy && self.empty_rounds > self.empty_rounds_max;
        self.empty_rounds = empty_rounds;
        if is_lost || empty_rounds > self.empty_rounds_max + GROWTH_ROUNDS {
            self.empty_rounds = 0;
            if is_lost || rate < self.empty_rate + self.empty_rate / 4 {
                // It grew and nothing came of that: something else is the limit, or what is beyond it is lost.
                self.empty_rounds_max = (self.empty_rounds_max * 2).min(EMPTY_ROUNDS_MAX);
                self.window_bytes = self.window_bytes.min(self.window_for(rate, base));
                return;
            }
            // Far too small: the startup grows faster, and watches for the queue packet by packet.
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
        // Something else than the window may be the limit; then no queue forms, however large it is.
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

    /// What a window grows by that was too small for so long: every other round, for what it does shows
    /// only a round later, and little the first time, for jitter may hide a queue.
    fn growth_bytes(&self) -> Option<u64> {
        let rounds = self.empty_rounds.checked_sub(self.empty_rounds_max + 1)?;
        match rounds {
            0 => Some(self.window_bytes / 8),
            _ if rounds.is_multiple_of(2) => Some(self.window_bytes / 4),
            _ => None,
        }
    }

    /// The allowance, worth a few packets at least.
    fn allowance_at(&self, rate: u64) -> Duration {
        let packets = ALLOWANCE_PACKETS_MIN * self.packet_bytes;
        let nanos = packets * 1_000_000_000 / rate.max(1);
        self.allowance.max(Duration::from_nanos(nanos))
    }

    /// What the path holds at a rate, with the allowance.
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

    /// Begins a new span for the base, with a drain: our own queue may hide it, whatever we believe. A
    /// sender that keeps below the rate has none, and what a drain holds back would come at once.
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

    /// A drain's round is over: if the queue was not empty yet, a deeper one follows.
    fn end_drain(&mut self, window_bytes: u64, drain: Drain, base: Duration) {
        if base + self.allowance / 2 < drain.base {
            let depth = drain.depth * 2;
            self.drain(window_bytes, Drain { base, depth });
        } else {
            self.window_bytes = window_bytes;
            self.phase = Phase::Filling { round_count: 1 };
        }
    }

    /// Lets the queue run empty for a round; the window is `window_bytes` again afterwards.
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

/// Whether so long without any acknowledgement is more than a path with such a base explains.
fn is_long(gap: Duration, base: Duration) -> bool {
    gap > 2 * base + GAP_MIN
}

#[cfg(test)]
mod tests;
