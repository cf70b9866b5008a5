//! Cruising: bulk is sent a little slower than the path carries, so that the path's queue stays
//! empty.
//!
//! The estimator finds out what the path carries by filling it. That takes a queue of some
//! milliseconds, and every urgent byte waits behind it. So once the rate is known, bulk keeps below
//! it:
//!
//! ```text
//!              rate known, queue seen
//!   Looking ────────────────────────────► Cruising at 0.952 of it
//!    ▲  ▲  ▲                               │  │  │  ▲        │
//!    │  │  └── every 15 s ─────────────────┘  │  │  │        │ every second
//!    │  └───── a queue stands and stays ──────┘  │  └─ Push ◄┘
//!    └──────── two pushes made no queue ─────────┘
//! ```
//!
//! A *push* tests whether the path has become faster, and costs less than a look. For some
//! milliseconds bulk sends a quarter more than the path carries, enough to make a queue of two
//! milliseconds, and then nothing until that queue has gone. If the last packets were as quick as
//! those before the push, there was no queue, and the path carries more. But an urgent packet
//! between them can hide a queue, so it takes two such pushes in a row. A queue that stands while
//! cruising, for whatever reason, is drained by a pause; if it comes back again and again, the path
//! carries less.
//!
//! Pieces are a few packets, spaced by exact timers, so that little stands before an urgent byte
//! that comes between two of them. Urgent bytes go at once, and bulk leaves room for them. Where
//! they take much of the path, bulk looks seldom, because they would wait behind each look. If more
//! of them go through than the path was believed to carry, that alone ends the cruise.
//!
//! A look lasts two rounds of the estimator, or six to accept a different rate. Where no queue
//! shows, something other than the path is the limit, and nothing is held back.

use std::time::Duration;

use towpath_protocol::amounts::{bytes_in, nanos, scaled};
use towpath_protocol::time::Instant;

use crate::path::estimate::{ALLOWANCE, Estimate};

/// The rate of programs' bytes while cruising, per thousand of the path's rate. QUIC adds 2.7 % to
/// full packets, so the wire is at 98 %; the rest absorbs what stalls leave behind.
const CRUISE_PER_MILLE: u64 = 952;

/// The same in bytes on the wire, as urgent bytes are counted.
const WIRE_PER_MILLE: u64 = 980;

/// The rate of programs' bytes that fills the wire.
const FULL_PER_MILLE: u64 = 972;

/// How long a rate is believed that no push has confirmed: a faster path is found within this time.
const CRUISE_TIME: Duration = Duration::from_millis(2500);

/// The longest time between looks if pushes confirm the rate, since pushes miss a path that is
/// faster by a twentieth. It is the longest of a time, a number of packets and a number of round
/// trips, so that looks take less than a hundredth of the time.
const CONFIRMED_TIME_MIN: Duration = Duration::from_secs(15);
const CONFIRMED_PACKETS: u32 = 30_000;
const CONFIRMED_ROUNDS: u32 = 1000;

/// How often the estimate is examined while looking.
const LOOK_TIME: Duration = Duration::from_millis(5);
/// The same while cruising.
const GLANCE_TIME: Duration = Duration::from_millis(20);
/// The same while a push is sent or judged.
const JUDGE_TIME: Duration = Duration::from_millis(1);

/// Least time, round trips and packets for which the path must have been full before a look
/// confirms the known rate.
const FULL_TIME_MIN: Duration = Duration::from_millis(20);
const FULL_ROUNDS: u32 = 2;
const FULL_PACKETS: u64 = 48;
/// The same before a look accepts a different rate. Rounds on short paths are so short that two say
/// little; on thin paths one packet more or less is much.
const FULL_TIME_MIN_NEW: Duration = Duration::from_millis(150);
const FULL_ROUNDS_NEW: u32 = 6;
const FULL_PACKETS_NEW: u64 = 64;

/// How far a rate may be from the known one to count as the same, per mille.
const SAME_PER_MILLE: u64 = 100;
/// A rate seen again counts for one part in so many: a quarter, or a half (`WEIGHT_MORE`) if it is
/// higher than the known one.
const WEIGHT: u64 = 4;
const WEIGHT_MORE: u64 = 2;

/// The least rise of the rate after a push without a queue, as one part in so many. With less, the
/// push was wrong.
const NEWS_PART: u64 = 100;

/// Least time for which the queue of a look may still be there after it.
const EMPTYING_TIME_MIN: Duration = Duration::from_millis(100);

/// Rounds in a row with a queue that it takes to rule out a busy processor.
const QUEUED_ROUNDS: u32 = 3;

/// The part of the path above which urgent bytes count as many. A queue is then probably theirs,
/// and they would wait behind a look, which fills the path.
const URGENT_PART: u64 = 4;
/// Time over which their part is measured.
const URGENT_TIME: Duration = Duration::from_millis(100);
/// Rounds in a row with a queue that end a cruise beside many urgent bytes.
const QUEUED_ROUNDS_URGENT: u32 = 24;
/// How long a rate is believed beside many urgent bytes, though no push was judged.
const CRUISE_TIME_URGENT: Duration = Duration::from_secs(15);

/// A rate lower by one part in so many is a different rate: one round that shows it ends the
/// cruise.
const THINNER_PARTS: u64 = 4;

/// The shortest queue that is drained by a pause; shorter ones go by themselves.
const PAUSE_TIME_MIN: Duration = Duration::from_millis(1);

/// The most pauses between two pushes. A pause for somebody else's queue is wasted, and pauses may
/// waste at most a hundredth of the time.
const PAUSE_COUNT_MAX: u32 = 8;

/// Pushes in a row without a queue after which the path is believed to carry more.
const UNQUEUED_PUSHES: u32 = 2;

/// Time between two pushes.
const PUSH_INTERVAL: Duration = Duration::from_secs(1);
/// Time to the next push after one that could not be judged or made no queue.
const PUSH_INTERVAL_AGAIN: Duration = Duration::from_millis(100);

/// Least time between pushes in round trips, which counts on long paths: pushes take at most a
/// tenth of the time.
const JUDGE_ROUNDS: u32 = 4;

/// The least packets of a push, so that its last third has two.
const PUSH_PACKETS_MIN: u32 = 6;

/// The shortest and longest queue that a push makes, and the step between them. A path with a token
/// bucket lets a burst through without a queue, so only a longer push shows one there.
const PUSH_QUEUE_MIN: Duration = Duration::from_millis(2);
const PUSH_QUEUE_MAX: Duration = Duration::from_millis(12);
const PUSH_QUEUE_STEP: Duration = Duration::from_millis(2);

/// The queue that the last packets of a push should see; half of it is enough for a verdict.
const PUSH_SEEN: Duration = Duration::from_millis(1);

/// The part of the path's rate that a push sends in excess: a quarter, or less where packets are
/// long.
const PUSH_PART: u32 = 4;
/// The least such part, which must exceed the error of a rate.
const PUSH_PART_MIN: u32 = 24;

/// How long a judgement waits for packets, beyond two round trips: twice the longest time that
/// acknowledgements may be held back.
const JUDGE_TIME_MAX: Duration = Duration::from_millis(50);

/// Duration of one piece on the wire; an urgent packet waits behind one at most.
const PIECE_TIME: Duration = Duration::from_micros(150);

/// The same at or above [`FAST_BYTES_PER_SECOND`], where shorter pieces would cost more than they
/// save.
const PIECE_TIME_FAST: Duration = Duration::from_micros(500);
const FAST_BYTES_PER_SECOND: u64 = 62_500_000;

/// Longest duration of two full packets. A piece has at least two, as every other packet is
/// acknowledged, but only one where two last longer than this.
const PAIR_TIME_MAX: Duration = Duration::from_millis(2);

/// What QUIC adds to each packet of a stream: the packet header, the frame header and the AEAD tag.
const PACKET_HEAD_BYTES: u64 = 44;

/// What a small packet costs beyond its payload: what QUIC adds, and the headers of UDP, IP and
/// Ethernet. For large packets this is part of the rate.
const SMALL_HEAD_BYTES: u64 = 72;
/// Headers of UDP, IP and Ethernet of one packet.
const FRAME_HEAD_BYTES: u64 = 42;

/// Data given to QUIC beyond what is in flight, and the largest piece while looking: this much time
/// at the path's rate, within the limits below.
const AHEAD_TIME: Duration = Duration::from_millis(20);
/// The upper limit: what one write of a program brings.
const AHEAD_BYTES_MAX: u64 = 64 * 1024;
/// The lower limit: what keeps a thin link busy until a program has been woken.
const AHEAD_BYTES_MIN: u64 = 6 * 1024;

/// The lag that a sender may make up for; a longer one would become a queue of its own.
const BEHIND_TIME_MAX: Duration = Duration::from_millis(1);

/// At or above this rate, on a path no longer than [`PATH_RTT_MIN`], processors are the limit, and
/// no pacing shortens their queue.
const PATH_RATE_MAX: u64 = 125_000_000;
const PATH_RTT_MIN: Duration = Duration::from_millis(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing is held back.
    Looking(Looking),
    /// Bulk keeps below the rate.
    Cruising(Cruising),
}

/// The state at the beginning of a look: totals so far of bytes and time with a full path and of
/// urgent bytes, and the queue then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Looking {
    began: Instant,
    filled_bytes: u64,
    filled_time: Duration,
    urgent_bytes: u64,
    queue: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cruising {
    /// Only rounds that began later say whether there is a queue.
    from: Instant,
    /// When to look again: unless a push confirms the rate before; the same beside many urgent
    /// bytes; and in any case.
    until: Instant,
    until_urgent: Instant,
    until_max: Instant,
    queued_rounds: u32,
    pause_count: u32,
    unqueued_pushes: u32,
    push: Push,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Push {
    /// The next push may begin at this time.
    Due(Instant),
    /// More is being sent than the path is believed to carry.
    On(Burst),
    /// The push was sent; its packets are awaited until `by`.
    Judged { burst: Burst, by: Instant },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Burst {
    from: Instant,
    until: Instant,
    /// The queue that it makes.
    queue: Duration,
    /// Bytes to send, and how many of them are left.
    bytes: u64,
    left_bytes: u64,
}

impl Burst {
    fn time(&self) -> Duration {
        self.until.since(self.from)
    }

    /// The two periods that are compared: as much time before the push, and its last third, whose
    /// packets see the queue that the rest made.
    fn marks(&self) -> [(Instant, Instant); 2] {
        let before = self.from.as_nanos() - nanos(self.time());
        let last = self.from + self.time() * 2 / 3;
        [(Instant::from_nanos(before), self.from), (last, self.until)]
    }

    /// Whether the program supplied at least three quarters of the bytes.
    const fn is_whole(&self) -> bool {
        self.left_bytes <= self.bytes / 4
    }
}

/// Decides when bulk may be sent; pure.
#[derive(Debug, Clone)]
pub(crate) struct Cruise {
    phase: Phase,
    /// The path's rate; zero while unknown.
    path_bytes_per_second: u64,
    /// Size of a full packet.
    packet_bytes: u64,
    /// Bytes of a piece while looking. A piece is sent whole, whatever is found out meanwhile.
    looking_bytes: u64,
    /// The round trip without a queue.
    rtt: Duration,
    /// When to examine the estimate next.
    look_at: Instant,
    /// When the next piece may go.
    free_at: Instant,
    /// The queue that a push makes.
    push_queue: Duration,
    /// Whether the current look was caused by pushes without a queue.
    is_pushed: bool,
    /// Bytes sent over the link's other connection, in bytes of bulk: now, and at the last look.
    urgent_bytes: u64,
    urgent_bytes_before: u64,
    /// When the urgent bytes' part of the path was last measured, the total then, and whether it
    /// was large.
    urgent_seen: (Instant, u64),
    is_urgent: bool,
}

impl Cruise {
    /// Starts with a look.
    #[must_use]
    pub(crate) const fn new() -> Self {
        Self {
            phase: Phase::Looking(Looking {
                began: Instant::ZERO,
                filled_bytes: 0,
                filled_time: Duration::ZERO,
                urgent_bytes: 0,
                queue: Duration::ZERO,
            }),
            path_bytes_per_second: 0,
            packet_bytes: 0,
            looking_bytes: AHEAD_BYTES_MAX,
            rtt: Duration::ZERO,
            look_at: Instant::ZERO,
            free_at: Instant::ZERO,
            push_queue: PUSH_QUEUE_MIN,
            is_pushed: false,
            urgent_bytes: 0,
            urgent_bytes_before: 0,
            urgent_seen: (Instant::ZERO, 0),
            is_urgent: false,
        }
    }

    /// Whether [`Self::look`] is due.
    #[must_use]
    pub(crate) fn is_curious(&self, now: Instant) -> bool {
        now >= self.look_at
    }

    /// Whether bulk is held below the path's rate.
    #[must_use]
    pub(crate) const fn is_cruising(&self) -> bool {
        matches!(self.phase, Phase::Cruising(_))
    }

    /// The path's rate, while it is believed.
    #[must_use]
    pub(crate) const fn path_bytes_per_second(&self) -> Option<u64> {
        if self.is_cruising() {
            Some(self.path_bytes_per_second)
        } else {
            None
        }
    }

    /// The periods in which packets must be marked for [`Self::look`].
    #[must_use]
    pub(crate) fn marks(&self) -> Option<[(Instant, Instant); 2]> {
        match self.phase {
            Phase::Cruising(Cruising {
                push: Push::On(burst) | Push::Judged { burst, .. },
                ..
            }) => Some(burst.marks()),
            _ => None,
        }
    }

    /// Examines what is believed about the path, and changes between looking and cruising.
    pub(crate) fn look(&mut self, now: Instant, estimate: &Estimate) {
        self.packet_bytes = estimate.packet_bytes;
        self.looking_bytes = ahead_bytes(estimate).unwrap_or(u64::MAX);
        self.rtt = estimate.base_rtt;
        match self.phase {
            Phase::Looking(looking) => {
                self.look_at = now + LOOK_TIME;
                if queue_of(estimate, estimate.rate_bytes_per_second) < ALLOWANCE / 4 {
                    // The path is not full yet, so its throughput says nothing.
                    self.begin_look(now, estimate);
                } else if !estimate.is_doubtful
                    && let Some(rate) = self.learn(looking, now, estimate)
                {
                    self.begin_cruise(now, rate, estimate);
                }
            }
            Phase::Cruising(cruising) => {
                self.look_at = now + GLANCE_TIME;
                match self.glance(cruising, now, estimate) {
                    Some(cruising) => self.phase = Phase::Cruising(cruising),
                    None => self.begin_look(now, estimate),
                }
            }
        }
    }

    fn begin_look(&mut self, now: Instant, estimate: &Estimate) {
        self.look_at = now + LOOK_TIME;
        self.phase = Phase::Looking(Looking {
            began: now,
            filled_bytes: estimate.filled_bytes,
            filled_time: estimate.filled_time,
            urgent_bytes: self.urgent_bytes,
            queue: estimate.queue_delay,
        });
    }

    fn begin_cruise(&mut self, now: Instant, rate: u64, estimate: &Estimate) {
        let known = self.path_bytes_per_second;
        if std::mem::take(&mut self.is_pushed) && rate <= known + known / NEWS_PART {
            // There was a queue, and the push missed it.
            self.push_queue = (self.push_queue + PUSH_QUEUE_STEP).min(PUSH_QUEUE_MAX);
        }
        self.path_bytes_per_second = rate;
        // First the standing queue, the data that QUIC holds beyond the window and the piece just
        // being written must drain.
        let ahead = buffer_bytes(estimate).map_or(0, |bytes| bytes + self.looking_bytes);
        let ahead = ahead.saturating_sub(estimate.window_bytes);
        let pause = estimate.queue_delay + time_of(ahead, rate);
        self.free_at = now + pause;
        let emptying = pause.max(EMPTYING_TIME_MIN);
        let judging = estimate.base_rtt * JUDGE_ROUNDS;
        self.phase = Phase::Cruising(Cruising {
            from: now + emptying,
            until: now + CRUISE_TIME.max(emptying + judging),
            until_urgent: now + CRUISE_TIME_URGENT.max(emptying + judging),
            until_max: now
                + CONFIRMED_TIME_MIN
                    .max(time_of(estimate.packet_bytes, rate) * CONFIRMED_PACKETS)
                    .max(estimate.base_rtt * CONFIRMED_ROUNDS),
            queued_rounds: 0,
            pause_count: 0,
            unqueued_pushes: 0,
            push: Push::Due(now + PUSH_INTERVAL.max(judging)),
        });
    }

    /// Examines the estimate while cruising; `None` ends the cruise.
    fn glance(&mut self, was: Cruising, now: Instant, estimate: &Estimate) -> Option<Cruising> {
        let mut cruising = was;
        self.watch_urgent(now, estimate)?;
        let until = if self.is_urgent {
            was.until_urgent.max(was.until)
        } else {
            was.until
        };
        let is_over = now >= until.min(was.until_max) || self.is_thinner(estimate);
        if is_over || !estimate.is_settled {
            return None;
        }
        match was.push {
            Push::Due(at) => {
                if estimate.round_began >= was.from {
                    self.watch_queue(&mut cruising, now, estimate)?;
                }
                let queue = queue_of(estimate, self.path_bytes_per_second);
                let is_quiet = estimate.round_began >= was.from && queue < PAUSE_TIME_MIN;
                if now >= at && is_quiet {
                    cruising.push = Push::On(self.burst(now));
                    self.look_at = now + JUDGE_TIME;
                }
            }
            // A push also ends when its program stops sending.
            Push::On(burst) if now >= burst.until + burst.time() => {
                cruising.push = Push::Due(now + PUSH_INTERVAL);
            }
            Push::On(_) => self.look_at = now + JUDGE_TIME,
            Push::Judged { burst, by } => {
                self.look_at = now + JUDGE_TIME;
                self.judge(&mut cruising, (burst, by), now, estimate)?;
            }
        }
        Some(cruising)
    }

    /// Whether a round behind a long queue shows a far lower rate than is believed. Beside many
    /// urgent bytes it is more likely that they took the missing part.
    pub(crate) fn is_thinner(&self, estimate: &Estimate) -> bool {
        let most = self.path_bytes_per_second / THINNER_PARTS * (THINNER_PARTS - 1);
        let has_queue = queue_of(estimate, self.path_bytes_per_second) > 2 * ALLOWANCE;
        has_queue && estimate.rate_bytes_per_second < most && !self.is_urgent
    }

    /// Measures now and then whether urgent bytes take a large part of the path. `None` if more of
    /// them have gone through than the path is believed to carry.
    fn watch_urgent(&mut self, now: Instant, estimate: &Estimate) -> Option<()> {
        let (since, before) = self.urgent_seen;
        let time = now.since(since);
        if time < URGENT_TIME {
            return Some(());
        }
        let bytes = self.urgent_bytes.saturating_sub(before);
        self.urgent_seen = (now, self.urgent_bytes);
        let rate = self.path_bytes_per_second;
        self.is_urgent = bytes * URGENT_PART > bytes_in(rate, time);
        // Bytes that were sent and are not through yet are on the way, or wait.
        let waiting = estimate.base_rtt + estimate.queue_delay;
        let carried = bytes_in(rate, time + waiting);
        (bytes <= carried + carried / URGENT_PART).then_some(())
    }

    /// Drains an unexpected queue by a pause; `None` if it stays.
    fn watch_queue(
        &mut self,
        cruising: &mut Cruising,
        now: Instant,
        estimate: &Estimate,
    ) -> Option<()> {
        // Only a later round is news.
        cruising.from = estimate.round_began + Duration::from_nanos(1);
        let queue = queue_of(estimate, self.path_bytes_per_second);
        if queue <= ALLOWANCE / 2 {
            cruising.queued_rounds = 0;
        } else {
            cruising.queued_rounds += 1;
            let most = if self.is_urgent {
                QUEUED_ROUNDS_URGENT
            } else {
                QUEUED_ROUNDS
            };
            if cruising.queued_rounds >= most {
                return None;
            }
        }
        if queue > PAUSE_TIME_MIN && cruising.pause_count < PAUSE_COUNT_MAX {
            cruising.pause_count += 1;
            // A queue that came back was longer than it looked.
            self.free_at = self.free_at.max(now) + queue * cruising.queued_rounds.max(1);
            cruising.from = self.free_at;
        }
        Some(())
    }

    /// The next push. The packets sent just before it are what it is compared with.
    fn burst(&self, now: Instant) -> Burst {
        let packet = time_of(self.packet_bytes, self.path_bytes_per_second);
        let time = (self.push_queue * PUSH_PART).max(packet * PUSH_PACKETS_MIN);
        let queue = self.push_queue.max(time / PUSH_PART_MIN);
        let from = self.free_at.max(now) + time;
        let mut burst = Burst {
            from,
            until: from + time,
            queue,
            bytes: 0,
            left_bytes: 0,
        };
        burst.bytes = bytes_in(self.pace_of(&burst), time);
        burst.left_bytes = burst.bytes;
        burst
    }

    /// Judges a push once its packets have been acknowledged; `None` if the path carries more.
    fn judge(
        &mut self,
        cruising: &mut Cruising,
        (burst, by): (Burst, Instant),
        now: Instant,
        estimate: &Estimate,
    ) -> Option<()> {
        let [before, after] = estimate.marked;
        let is_meant = [before, after].map(|marked| (marked.from, marked.until)) == burst.marks();
        if !(is_meant && after.is_over) && now < by {
            return Some(());
        }
        // Two of each, because a single packet may have been acknowledged late.
        let is_known = is_meant && before.packet_count.min(after.packet_count) >= 2;
        let seen = after.rtt_min.saturating_sub(before.rtt_min);
        let interval = if !is_known {
            PUSH_INTERVAL_AGAIN
        } else if seen < PUSH_SEEN / 2 {
            cruising.unqueued_pushes += 1;
            if cruising.unqueued_pushes >= UNQUEUED_PUSHES {
                self.is_pushed = true;
                return None;
            }
            PUSH_INTERVAL_AGAIN
        } else {
            cruising.unqueued_pushes = 0;
            self.push_queue = (self.push_queue + PUSH_SEEN)
                .saturating_sub(seen)
                .clamp(PUSH_QUEUE_MIN, PUSH_QUEUE_MAX);
            cruising.until = now + CRUISE_TIME;
            PUSH_INTERVAL
        };
        cruising.pause_count = 0;
        cruising.push = Push::Due(now + interval.max(estimate.base_rtt * JUDGE_ROUNDS));
        cruising.from = now;
        Some(())
    }

    /// The path's rate, if it was full for long enough to tell: what bulk got, plus what went
    /// beside it.
    fn learn(&self, looking: Looking, now: Instant, estimate: &Estimate) -> Option<u64> {
        let bytes = estimate.filled_bytes.saturating_sub(looking.filled_bytes);
        let time = estimate.filled_time.saturating_sub(looking.filled_time);
        let enough = FULL_TIME_MIN.max(estimate.base_rtt * FULL_ROUNDS);
        let beside = self.urgent_bytes.saturating_sub(looking.urgent_bytes);
        let packets = (bytes + beside) / estimate.packet_bytes.max(1);
        if time < enough || packets < FULL_PACKETS || !is_of_the_path(estimate) {
            return None;
        }
        let second = Duration::from_secs(1);
        // Urgent bytes that wait now, but did not when the look began, are not through.
        let beside_time = now.since(looking.began) + estimate.queue_delay;
        let beside_time = beside_time.saturating_sub(looking.queue);
        let seen = scaled(bytes, second, time) + scaled(beside, second, beside_time);
        let known = self.path_bytes_per_second;
        let enough = FULL_TIME_MIN_NEW.max(estimate.base_rtt * FULL_ROUNDS_NEW);
        if is_same(seen, known) {
            // Stalls make a rate look low; nothing makes it look high.
            let weight = if seen > known { WEIGHT_MORE } else { WEIGHT };
            Some((known * (weight - 1) + seen) / weight)
        } else if time >= enough && packets >= FULL_PACKETS_NEW {
            Some(seen)
        } else {
            None
        }
    }

    /// Programs' bytes per second while cruising.
    const fn pace(&self) -> u64 {
        self.path_bytes_per_second / 1000 * CRUISE_PER_MILLE
    }

    /// Programs' bytes per second during a push.
    fn pace_of(&self, burst: &Burst) -> u64 {
        let full = self.path_bytes_per_second / 1000 * FULL_PER_MILLE;
        full + scaled(full, burst.queue, burst.time())
    }

    /// The most bytes that should be taken at once; while cruising a few packets.
    #[must_use]
    pub(crate) fn piece_bytes(&self) -> u64 {
        if !self.is_cruising() {
            return self.looking_bytes;
        }
        let rate = self.path_bytes_per_second;
        let packet_bytes = self.packet_bytes.max(2 * PACKET_HEAD_BYTES);
        let piece_time = if rate < FAST_BYTES_PER_SECOND {
            PIECE_TIME
        } else {
            PIECE_TIME_FAST
        };
        let is_slow = time_of(2 * packet_bytes, rate) > PAIR_TIME_MAX;
        let least = if is_slow { 1 } else { 2 };
        let packets = (bytes_in(rate, piece_time) / packet_bytes).max(least);
        packets * (packet_bytes - PACKET_HEAD_BYTES)
    }

    /// Records urgent bytes, which are sent at once; bulk leaves room for them.
    pub(crate) fn pass(&mut self, now: Instant, bytes: u64) {
        self.leave_room(now, bytes + SMALL_HEAD_BYTES);
    }

    /// Records the totals that have left over the link's other connection, whoever sent them.
    /// Beside small messages, QUIC's acknowledgements and the link's own messages are as much
    /// again.
    pub(crate) fn note_urgent(&mut self, now: Instant, packet_count: u64, packet_bytes: u64) {
        let left_bytes = packet_bytes + packet_count * FRAME_HEAD_BYTES;
        // Bytes passed since the last look may not have left yet.
        let coming_bytes = self.urgent_bytes.saturating_sub(self.urgent_bytes_before);
        self.urgent_bytes = self.urgent_bytes.min(left_bytes + coming_bytes);
        if left_bytes > self.urgent_bytes {
            self.leave_room(now, left_bytes - self.urgent_bytes);
        }
        self.urgent_bytes_before = self.urgent_bytes;
    }

    fn leave_room(&mut self, now: Instant, bytes: u64) {
        self.urgent_bytes += bytes;
        self.take(now, bytes * CRUISE_PER_MILLE / WIRE_PER_MILLE);
    }

    /// When the next piece may go. This may be in the past, by at most [`BEHIND_TIME_MAX`].
    fn behind(&self, now: Instant) -> Instant {
        let earliest = now.as_nanos().saturating_sub(nanos(BEHIND_TIME_MAX));
        self.free_at.max(Instant::from_nanos(earliest))
    }

    /// Reserves room for `bytes`; returns when they may be sent.
    pub(crate) fn take(&mut self, now: Instant, bytes: u64) -> Instant {
        let Phase::Cruising(mut cruising) = self.phase else {
            return now;
        };
        let mut at = self.behind(now);
        let mut pace = self.pace();
        if let Push::On(mut burst) = cruising.push
            && at >= burst.from
        {
            if at < burst.until {
                pace = self.pace_of(&burst);
                burst.left_bytes = burst.left_bytes.saturating_sub(bytes);
                cruising.push = Push::On(burst);
            } else {
                cruising.push = if burst.is_whole() {
                    at = at + burst.queue;
                    let by = at + self.rtt * 2 + JUDGE_TIME_MAX;
                    Push::Judged { burst, by }
                } else {
                    Push::Due(now + PUSH_INTERVAL)
                };
            }
            self.phase = Phase::Cruising(cruising);
        }
        self.free_at = at + time_of(bytes, pace);
        at.max(now)
    }
}

impl Default for Cruise {
    fn default() -> Self {
        Self::new()
    }
}

/// Bytes that QUIC should hold until they are acknowledged, if the path is the limit: what is in
/// flight and little more, because what QUIC holds goes out first however bulk is paced. While the
/// rate is unknown, the window may double before the next look.
pub(crate) fn buffer_bytes(estimate: &Estimate) -> Option<u64> {
    let window = estimate.window_bytes;
    let more = if estimate.is_settled {
        window / 4
    } else {
        window
    };
    let kept = estimate.hole_rounds() * window;
    ahead_bytes(estimate).map(|ahead| window + more + ahead + kept)
}

/// The part of [`buffer_bytes`] beyond the window: as much as a program writes at once.
fn ahead_bytes(estimate: &Estimate) -> Option<u64> {
    if !estimate.is_settled {
        return Some(AHEAD_BYTES_MAX);
    }
    let ahead = bytes_in(estimate.rate_bytes_per_second, AHEAD_TIME);
    is_of_the_path(estimate).then(|| ahead.clamp(AHEAD_BYTES_MIN, AHEAD_BYTES_MAX))
}

/// The queue at a bottleneck of this rate. The shortest round trip may be that of a short packet,
/// and a full packet takes longer even without a queue.
fn queue_of(estimate: &Estimate, rate: u64) -> Duration {
    let packet = time_of(estimate.packet_bytes, rate);
    estimate.queue_delay.saturating_sub(packet)
}

fn time_of(bytes: u64, rate: u64) -> Duration {
    Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / rate.max(1))
}

const fn is_same(seen: u64, known: u64) -> bool {
    seen.abs_diff(known) <= known * SAME_PER_MILLE / 1000
}

/// Whether the rate is the path's and not that of the processors.
fn is_of_the_path(estimate: &Estimate) -> bool {
    estimate.is_settled
        && (estimate.rate_bytes_per_second < PATH_RATE_MAX || estimate.base_rtt > PATH_RTT_MIN)
}

#[cfg(test)]
mod tests;
