//! How many bytes may be under way: several times what the path holds, within the memory that all
//! links share. Pure, except for the shared count of that memory.
//!
//! Every link has windows that fill an ordinary path. A long and fast path holds more, and every
//! byte may have to be kept in memory: by the sender until the peer has handed it on, by the
//! receiver while an earlier byte is missing or its program does not read. So windows beyond the
//! guaranteed size are backed by [`Memory`], and give it back when the path no longer needs it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use towpath_protocol::amounts::scaled;
use towpath_protocol::rate::Rate;
use towpath_protocol::time::Instant;

use crate::path::cruise;
use crate::path::estimate::{ALLOWANCE, Estimate};

/// The least send window of QUIC, in bytes: a full window of a fast local network.
pub(crate) const SEND_BYTES_MIN: u64 = 4 << 20;

/// Sent bytes that a link may keep without taking shared memory (T17): what a peer that stops
/// reading can make us hold. Nearly three times what 500 Mbit/s over 100 ms hold.
pub(crate) const KEPT_BYTES: u64 = 16 << 20;

/// Unread bytes of bulk that a link may hold without taking shared memory (T06): one and a half
/// times what a peer keeps of one stream, so that a stream whose reader is stuck does not stop the
/// others at once.
pub(crate) const RECEIVE_BYTES: u64 = 24 << 20;

/// Round trips of data that the peer may have under way to us: it keeps three, and five while
/// packets are being lost.
const RECEIVE_ROUND_TRIPS: u64 = 5;

/// Least time over which arriving bytes are measured.
const MEASURE_TIME_MIN: Duration = Duration::from_millis(100);

/// Step by which a receive window grows and shrinks; each step is announced to the peer.
const STEP_BYTES: u64 = 4 << 20;

/// The part (a sixteenth) by which the measured inflow decreases per measurement, if less arrives.
const FADE_PART: u64 = 16;

/// How long unused memory is kept, at least; twice that at most. A move that follows another one,
/// or waits for its guest, still finds it.
const USED_TIME: Duration = Duration::from_secs(30);

/// Bytes asked for per byte held recently. A start doubles each round trip, and a round trip may
/// lie between two looks. An idle link regains its memory in the time that filling [`KEPT_BYTES`]
/// takes.
const AHEAD_FACTOR: u64 = 4;

/// The most that one window may take of the shared memory: one part in so many.
const SHARE_PART: u64 = 2;

/// Memory for windows beyond the guaranteed sizes, shared by all links of a daemon.
#[derive(Debug)]
pub(crate) struct Memory {
    bytes: u64,
    taken_bytes: AtomicU64,
}

impl Memory {
    pub(crate) fn new(bytes: u64) -> Arc<Self> {
        let taken_bytes = AtomicU64::new(0);
        Arc::new(Self { bytes, taken_bytes })
    }

    /// Bytes taken by all windows.
    pub(crate) fn taken_bytes(&self) -> u64 {
        self.taken_bytes.load(Ordering::Relaxed)
    }
}

/// The most bytes that a peer can have under way to us on one connection, if all links together may
/// take `memory_bytes`. Streams get a window of this size, because the connection's window limits
/// them.
pub(crate) const fn receive_bytes_max(memory_bytes: u64) -> u64 {
    RECEIVE_BYTES + memory_bytes / SHARE_PART
}

/// The memory that one window has taken; given back when dropped.
#[derive(Debug)]
struct Share {
    memory: Arc<Memory>,
    bytes: u64,
}

impl Share {
    fn of(memory: &Arc<Memory>) -> Self {
        let memory = Arc::clone(memory);
        Self { memory, bytes: 0 }
    }

    /// Asks for `wanted_bytes` in total, in place of what it had. Returns what it has now.
    fn ask(&mut self, wanted_bytes: u64) -> u64 {
        let most = wanted_bytes.min(self.memory.bytes / SHARE_PART);
        let ours = self.bytes;
        let mut granted = ours;
        let counted = &self.memory.taken_bytes;
        // Never fails: the closure always returns a value.
        let _ = counted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
            let others = taken - ours;
            granted = most.min(self.memory.bytes - others);
            Some(others + granted)
        });
        self.bytes = granted;
        granted
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.ask(0);
    }
}

/// The windows of one link's bulk connection.
#[derive(Debug)]
pub(crate) struct Windows {
    sending: Share,
    used: Used,
    receiving: Share,
    inflow: Inflow,
    credit: Credit,
}

impl Windows {
    pub(crate) fn new(memory: &Arc<Memory>) -> Self {
        Self {
            sending: Share::of(memory),
            used: Used::default(),
            receiving: Share::of(memory),
            inflow: Inflow::default(),
            credit: Credit::new(),
        }
    }

    /// The limit for the bytes kept of what was sent, of which `held_bytes` are kept now.
    pub(crate) fn kept_bytes(&mut self, now: Instant, held_bytes: u64, estimate: &Estimate) -> u64 {
        let used = self.used.with(now, held_bytes);
        let wanted = tail_bytes(estimate).min(KEPT_BYTES + AHEAD_FACTOR * used);
        let granted = self.sending.ask(wanted.saturating_sub(KEPT_BYTES));
        wanted.min(KEPT_BYTES + granted)
    }

    /// Returns the new size of QUIC's receive window if it changes. `received_bytes` is the total
    /// taken from the connection so far, `is_waiting` whether some of it waits for a program, and
    /// `rtt` the path's round trip.
    pub(crate) fn receive(
        &mut self,
        now: Instant,
        (received_bytes, is_waiting): (u64, bool),
        rtt: Duration,
    ) -> Option<u64> {
        self.credit.note(received_bytes);
        let measured = self.inflow.note(now, received_bytes, rtt);
        let before = self.credit.window_bytes;
        if let Some(needed) = measured.map(|bytes| bytes * RECEIVE_ROUND_TRIPS) {
            let wanted = needed.div_ceil(STEP_BYTES).max(RECEIVE_BYTES / STEP_BYTES) * STEP_BYTES;
            // A stalled program's unread bytes may fill the window, which other streams need as
            // well.
            let wanted = if is_waiting {
                wanted.max(before)
            } else {
                wanted
            };
            // Credit that the peer already has is included: its memory is already taken, so it is
            // granted.
            let most = wanted.max(self.credit.bytes());
            let granted = self.receiving.ask(most - RECEIVE_BYTES);
            self.credit.aim_at(wanted.min(RECEIVE_BYTES + granted));
        }
        self.receiving.ask(self.credit.bytes() - RECEIVE_BYTES);
        let window = self.credit.window_bytes;
        (window != before).then_some(window)
    }

    /// Gives all memory back when the connection is closed.
    pub(crate) fn end(&mut self) {
        self.sending.ask(0);
        self.receiving.ask(0);
    }
}

/// The most that was held in the current and the previous span of time.
#[derive(Debug, Default)]
struct Used {
    began: Instant,
    current_bytes: u64,
    previous_bytes: u64,
}

impl Used {
    /// Records what is held now; returns the most.
    fn with(&mut self, now: Instant, held_bytes: u64) -> u64 {
        if now.since(self.began) >= USED_TIME {
            self.began = now;
            self.previous_bytes = std::mem::take(&mut self.current_bytes);
        }
        self.current_bytes = self.current_bytes.max(held_bytes);
        self.current_bytes.max(self.previous_bytes)
    }
}

/// The peer's credit, as QUIC counts it. Credit once given cannot be withdrawn: when a window
/// shrinks, the difference becomes a debt, and bytes taken from the connection pay it off before
/// they give new credit. QUIC does not set the debt off against a window that grows again, so that
/// is done here.
#[derive(Debug)]
struct Credit {
    window_bytes: u64,
    debt_bytes: u64,
    received_bytes: u64,
}

impl Credit {
    const fn new() -> Self {
        Self {
            window_bytes: RECEIVE_BYTES,
            debt_bytes: 0,
            received_bytes: 0,
        }
    }

    const fn bytes(&self) -> u64 {
        self.window_bytes + self.debt_bytes
    }

    /// Records the total taken from the connection so far.
    fn note(&mut self, received_bytes: u64) {
        let taken = received_bytes.saturating_sub(self.received_bytes);
        self.received_bytes = received_bytes;
        self.debt_bytes = self.debt_bytes.saturating_sub(taken);
    }

    /// Sets the window so that the credit becomes `bytes`: at once if it grows, else as it is used
    /// up.
    fn aim_at(&mut self, bytes: u64) {
        if bytes < self.window_bytes {
            let steps = (self.window_bytes - bytes) / STEP_BYTES * STEP_BYTES;
            self.window_bytes -= steps;
            self.debt_bytes += steps;
        } else {
            self.window_bytes += bytes.saturating_sub(self.bytes()) / STEP_BYTES * STEP_BYTES;
        }
    }
}

/// The highest recent inflow per round, which is a round trip or another period.
#[derive(Debug, Default)]
pub(crate) struct Inflow {
    measured: Option<(Instant, u64)>,
    bytes_per_round: u64,
}

impl Inflow {
    /// Records the total that has arrived so far. Returns the bytes per round when a new
    /// measurement is due.
    pub(crate) fn note(
        &mut self,
        now: Instant,
        received_bytes: u64,
        round: Duration,
    ) -> Option<u64> {
        let (before, before_bytes) = *self.measured.get_or_insert((now, received_bytes));
        let elapsed = now.since(before);
        if elapsed < round.max(MEASURE_TIME_MIN) {
            return None;
        }
        self.measured = Some((now, received_bytes));
        let arrived = received_bytes.saturating_sub(before_bytes);
        let bytes = scaled(arrived, round, elapsed);
        let faded = self.bytes_per_round - self.bytes_per_round / FADE_PART;
        self.bytes_per_round = faded.max(bytes);
        Some(self.bytes_per_round)
    }

    /// The last measurement.
    pub(crate) const fn bytes_per_round(&self) -> u64 {
        self.bytes_per_round
    }
}

/// What a path holds, with the queue that we allow ourselves.
pub(crate) fn in_flight_bytes(estimate: &Estimate) -> u64 {
    let path = Rate::clamped(estimate.rate_bytes_per_second);
    path.bytes_in(estimate.base_rtt + ALLOWANCE)
}

/// What the path holds or may turn out to hold. Until its rate is found, the known rate is that of
/// the last round trip, which is half of what may be in flight now.
fn path_bytes(estimate: &Estimate) -> u64 {
    let known = in_flight_bytes(estimate);
    if estimate.is_settled {
        known
    } else {
        known.max(estimate.window_bytes)
    }
}

/// Bytes kept of all streams of a leg until the peer has handed them on: three times the path. A
/// lost packet is retransmitted after one round trip and arrives within the second, and the peer
/// can hand nothing on for that long. More while losses go on, because some packets are then lost
/// twice.
fn tail_bytes(estimate: &Estimate) -> u64 {
    let round_trips = 3 + estimate.hole_rounds();
    round_trips * path_bytes(estimate)
}

/// The send window of bulk in QUIC, when `kept_bytes` may be kept: twice the path, so that a lost
/// packet does not stop the flow until it is retransmitted, and a startup can double before the
/// next estimate.
pub(crate) fn send_bytes(estimate: &Estimate, kept_bytes: u64) -> u64 {
    let round_trips = 2 + estimate.hole_rounds();
    let window = round_trips * path_bytes(estimate);
    let window = window.min(kept_bytes).max(SEND_BYTES_MIN);
    cruise::buffer_bytes(estimate).map_or(window, |bytes| bytes.min(window))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A path with this rate in bytes per second and this round trip in milliseconds.
    fn path(rate_bytes_per_second: u64, rtt_ms: u64) -> Estimate {
        Estimate {
            rate_bytes_per_second,
            base_rtt: Duration::from_millis(rtt_ms),
            is_settled: true,
            packet_bytes: 1400,
            window_bytes: rate_bytes_per_second / 1000 * (rtt_ms + 4),
            ..Estimate::default()
        }
    }

    fn at(millis: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(millis)
    }

    #[test]
    fn a_connection_that_starts_may_buffer_twice_what_it_may_send() {
        let mut estimate = Estimate {
            window_bytes: 6_000_000,
            is_settled: false,
            ..path(15_000_000, 200)
        };
        assert_eq!(send_bytes(&estimate, u64::MAX), 12_000_000);
        // Once the rate is known it decides, not a window that is still to shrink.
        estimate.is_settled = true;
        assert_eq!(path_bytes(&estimate), 15_000_000 / 1000 * 204);
    }

    #[test]
    fn a_path_that_loses_packets_is_not_held_up_by_what_arrived_behind_them() {
        let mut estimate = path(12_500_000, 40);
        let path_bytes = path_bytes(&estimate);
        let before = (send_bytes(&estimate, u64::MAX), tail_bytes(&estimate));
        assert!(before.0 < 3 * path_bytes / 2);
        assert_eq!(before.1, 3 * path_bytes);
        estimate.is_losing = true;
        // What is in flight, and what arrives while a packet is retransmitted twice.
        assert!(send_bytes(&estimate, u64::MAX) >= 3 * path_bytes);
        assert_eq!(tail_bytes(&estimate), 5 * path_bytes);
    }

    #[test]
    fn a_long_and_fast_path_takes_memory_and_gives_it_back() {
        let memory = Memory::new(256 * MIB);
        let mut windows = Windows::new(&memory);
        // 1 Gbit/s over 200 ms holds 25 MB.
        let long = path(125_000_000, 200);
        let mut kept = |path: &Estimate| windows.kept_bytes(at(0), KEPT_BYTES, path);
        assert_eq!(kept(&long), 3 * 25_500_000);
        assert_eq!(memory.taken_bytes(), 3 * 25_500_000 - KEPT_BYTES);
        assert!(send_bytes(&long, kept(&long)) >= 25_500_000);
        assert_eq!(kept(&path(12_500_000, 40)), 3 * 550_000);
        assert_eq!(memory.taken_bytes(), 0);
        kept(&long);
        drop(windows);
        assert_eq!(memory.taken_bytes(), 0);
    }

    #[test]
    fn a_connection_that_is_over_takes_nothing() {
        let memory = Memory::new(256 * MIB);
        let mut windows = Windows::new(&memory);
        windows.kept_bytes(at(0), KEPT_BYTES, &path(125_000_000, 200));
        let rtt = Duration::from_millis(200);
        windows.receive(at(0), (0, false), rtt);
        windows.receive(at(200), (25_000_000, false), rtt);
        assert!(memory.taken_bytes() > 150_000_000);
        windows.end();
        assert_eq!(memory.taken_bytes(), 0);
    }

    #[test]
    fn all_links_together_take_no_more_than_there_is() {
        let memory = Memory::new(100 * MIB);
        let mut links: Vec<Windows> = (0..4).map(|_| Windows::new(&memory)).collect();
        let endless = path(u64::MAX / 4096, 1000);
        let keep = |windows: &mut Windows| windows.kept_bytes(at(0), 1 << 30, &endless);
        let kept: Vec<u64> = links.iter_mut().map(keep).collect();
        assert_eq!(kept[..2], [KEPT_BYTES + 50 * MIB; 2]);
        assert_eq!(kept[2..], [KEPT_BYTES; 2], "the least is always there");
        assert_eq!(memory.taken_bytes(), 100 * MIB);
        links.remove(0);
        assert_eq!(keep(&mut links[2]), KEPT_BYTES + 50 * MIB);
        let none = Memory::new(0);
        assert_eq!(keep(&mut Windows::new(&none)), KEPT_BYTES);
    }

    #[test]
    fn a_link_that_sends_nothing_leaves_its_memory_to_others_and_has_it_back_at_once() {
        let memory = Memory::new(128 * MIB);
        let [mut first, mut second] = [(); 2].map(|()| Windows::new(&memory));
        let long = path(125_000_000, 200);
        let most = 3 * 25_500_000;
        // The most that two links keep, if each looks every 50 ms and a busy one holds all it may.
        let mut kept = [0; 2];
        let mut now = 0;
        let mut look = |millis: u64, is_busy: [bool; 2]| {
            for _ in 0..millis / 50 {
                now += 50;
                for (one, windows) in [&mut first, &mut second].into_iter().enumerate() {
                    let held = if is_busy[one] { kept[one] } else { 0 };
                    kept[one] = windows.kept_bytes(at(now), held, &long);
                }
            }
            kept
        };
        assert_eq!(look(1000, [true, false]), [most, KEPT_BYTES]);
        assert_eq!(look(10_000, [false, false])[0], most, "a pause");
        assert_eq!(look(60_000, [false, false]), [KEPT_BYTES; 2]);
        assert_eq!(look(200, [false, true]), [KEPT_BYTES, most]);
        look(60_000, [false, false]);
        assert_eq!(look(200, [true, false]), [most, KEPT_BYTES]);
    }

    #[test]
    fn a_receive_window_runs_ahead_of_what_arrives_and_follows_it_down_slowly() {
        let memory = Memory::new(256 * MIB);
        let mut windows = Windows::new(&memory);
        let rtt = Duration::from_millis(200);
        let (mut window, mut received, mut now) = (RECEIVE_BYTES, 0, 0);
        windows.receive(at(now), (received, false), rtt);
        // A startup: the inflow doubles each round trip, until the path is full with 25 MB.
        for round in 0..12 {
            let arrived = (100_000 << round).min(25_000_000_u64);
            assert!(2 * arrived <= window || arrived == 25_000_000, "{window}");
            for _ in 0..4 {
                now += 50;
                received += arrived / 4;
                window = windows
                    .receive(at(now), (received, false), rtt)
                    .unwrap_or(window);
            }
        }
        assert!((5 * 25_000_000..6 * 25_000_000).contains(&window));
        assert_eq!(memory.taken_bytes(), window - RECEIVE_BYTES);
        // Most of the window survives a pause of a second, nothing beyond the minimum a pause of a
        // minute. The peer's credit stays counted until it is used.
        let grown = window;
        for _ in 0..20 {
            now += 50;
            window = windows
                .receive(at(now), (received, false), rtt)
                .unwrap_or(window);
        }
        assert!(window > 3 * 25_000_000);
        for _ in 0..1200 {
            now += 50;
            window = windows
                .receive(at(now), (received, false), rtt)
                .unwrap_or(window);
        }
        assert_eq!(window, RECEIVE_BYTES);
        assert_eq!(memory.taken_bytes(), grown - RECEIVE_BYTES);
        for _ in 0..1200 {
            now += 50;
            received += 100_000;
            window = windows
                .receive(at(now), (received, false), rtt)
                .unwrap_or(window);
        }
        assert_eq!((window, memory.taken_bytes()), (RECEIVE_BYTES, 0));
    }

    /// QUIC's own flow control of what a peer may send.
    struct Quic {
        window: u64,
        allowed: u64,
        debt: u64,
        received: u64,
    }

    impl Quic {
        const fn new() -> Self {
            Self {
                window: RECEIVE_BYTES,
                allowed: RECEIVE_BYTES,
                debt: 0,
                received: 0,
            }
        }

        fn set_window(&mut self, window: u64) {
            self.allowed += window.saturating_sub(self.window);
            self.debt += self.window.saturating_sub(window);
            self.window = window;
        }

        fn receive(&mut self, bytes: u64) {
            let repaid = self.debt.min(bytes);
            self.debt -= repaid;
            self.allowed += bytes - repaid;
            self.received += bytes;
        }

        fn credit(&self) -> u64 {
            self.allowed - self.received
        }
    }

    #[test]
    fn a_peer_that_bursts_and_pauses_is_allowed_no_more_each_time() {
        let memory = Memory::new(256 * MIB);
        let mut windows = Windows::new(&memory);
        let rtt = Duration::from_millis(200);
        let mut quic = Quic::new();
        let mut now = 0;
        let mut highest = 0;
        for cycle in 0..100 {
            // A burst of a second or two, at 60 to 180 MB a second, then a pause in which the
            // window shrinks.
            let (ticks, bytes) = (20 + cycle % 20, 3_000_000 * (1 + cycle % 3));
            for tick in 0..1200 {
                now += 50;
                if tick < ticks {
                    quic.receive(bytes.min(quic.credit()));
                }
                if let Some(window) = windows.receive(at(now), (quic.received, false), rtt) {
                    quic.set_window(window);
                }
                highest = highest.max(quic.credit());
                assert!(quic.credit() <= receive_bytes_max(256 * MIB), "{cycle}");
                let taken = memory.taken_bytes();
                assert!(taken + RECEIVE_BYTES >= quic.credit(), "{cycle}: {taken}");
            }
        }
        assert!(highest > 100 * MIB, "a burst still has what it needs");
    }

    #[test]
    fn what_waits_for_a_program_takes_nothing_of_the_window_from_others() {
        let memory = Memory::new(256 * MIB);
        let mut windows = Windows::new(&memory);
        let rtt = Duration::from_millis(200);
        let mut quic = Quic::new();
        let (mut now, mut unread) = (0, 0);
        // A fast stream whose program stops with two round trips of data unread, on a link that is
        // then idle for a minute; after that other streams send twice as much as any window.
        for tick in 0..1600 {
            now += 50;
            let (is_fast, is_other) = (tick < 60, tick >= 1300);
            if is_fast {
                quic.receive(6_250_000.min(quic.credit()));
            } else if unread == 0 {
                unread = 50_000_000.min(quic.credit());
            }
            if is_other {
                let room = quic.credit() - unread;
                assert!(room >= MIB, "{tick}: the others have {room} bytes");
                quic.receive(room.min(1_000_000));
            }
            let received = (quic.received, !is_fast);
            if let Some(window) = windows.receive(at(now), received, rtt) {
                quic.set_window(window);
            }
        }
    }

    #[test]
    fn a_short_path_needs_no_memory_however_fast() {
        let memory = Memory::new(256 * MIB);
        let mut windows = Windows::new(&memory);
        for step in 0..100 {
            let received = step * 600_000_000 / 20;
            let now = at(50 * step);
            assert_eq!(
                windows.receive(now, (received, false), Duration::from_millis(1)),
                None
            );
        }
        windows.kept_bytes(at(5000), 1 << 30, &path(600_000_000, 1));
        assert_eq!(memory.taken_bytes(), 0);
    }
}
