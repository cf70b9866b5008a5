//! How many bytes may be under way: what the path holds several times over, within the memory that all
//! links share. Pure, but for the count of that memory.
//!
//! Every link has windows that fill an ordinary path. A long and fast one holds more, and every byte of it
//! may have to be kept: by the side that sends until the peer has handed it on, by the side that receives
//! while the first is missing or its program reads nothing. So what exceeds the least is asked for, from
//! [`Memory`], and given back when the path no longer needs it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use towpath_protocol::rate::Rate;
use towpath_protocol::time::Instant;

use crate::cruise;
use crate::estimate::{ALLOWANCE, Estimate, scaled};

/// Least bytes sent and not yet acknowledged: a full window of a fast local network.
pub(crate) const SEND_BYTES_MIN: u64 = 4 << 20;

/// Most bytes that a link keeps of what it sent, without asking for memory (T17): what a peer that stops
/// reading can make us hold. 500 Mbit/s over 100 ms, nearly three times.
pub(crate) const KEPT_BYTES: u64 = 16 << 20;

/// Most bytes of bulk that wait here unread, without asking for memory (T06): what a peer keeps of one stream
/// and half as much, so that a stream whose reader is stuck does not stop the others at once.
pub(crate) const RECEIVE_BYTES: u64 = 24 << 20;

/// Round trips that the peer may have under way to us: it keeps three of them, and five while packets are
/// being lost.
const RECEIVE_ROUND_TRIPS: u64 = 5;

/// Least time over which it is measured what arrives in a round trip.
const MEASURE_TIME_MIN: Duration = Duration::from_millis(100);

/// A receive window grows and shrinks in such steps: each is a word to the peer.
const STEP_BYTES: u64 = 4 << 20;

/// By which part a receive window comes closer to what is needed with each measurement, if that is less.
const FADE_PART: u64 = 16;

/// How long memory is kept that nothing is held in, and twice that at most: a move that follows another, or waits
/// for its guest, finds it there.
const USED_TIME: Duration = Duration::from_secs(30);

/// What is asked for runs ahead of what is held by this factor: a start doubles each round trip, of which there
/// may be one between two looks, and finds its way back to what it had in the time that the least takes to fill.
const AHEAD_FACTOR: u64 = 4;

/// The part of the shared memory that one window may take.
const SHARE_PART: u64 = 2;

/// Memory for windows beyond the least of each, shared by all links of a daemon.
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

    /// What is taken of it.
    pub(crate) fn taken_bytes(&self) -> u64 {
        self.taken_bytes.load(Ordering::Relaxed)
    }
}

/// The most that a peer can have under way to us on one connection, if all links together may take
/// `memory_bytes`: what a stream's window is, since the connection's is what bounds it.
pub(crate) const fn receive_bytes_max(memory_bytes: u64) -> u64 {
    RECEIVE_BYTES + memory_bytes / SHARE_PART
}

/// What one window has taken; given back when it is dropped.
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

    /// Asks for as much, whatever was had before; gives what is had now.
    fn ask(&mut self, wanted_bytes: u64) -> u64 {
        let most = wanted_bytes.min(self.memory.bytes / SHARE_PART);
        let ours = self.bytes;
        let mut granted = ours;
        let counted = &self.memory.taken_bytes;
        // Always succeeds: there is always a next number.
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

    /// How much is kept of what goes along a path. Now `held_bytes` are.
    pub(crate) fn kept_bytes(&mut self, now: Instant, held_bytes: u64, estimate: &Estimate) -> u64 {
        let used = self.used.with(now, held_bytes);
        let wanted = tail_bytes(estimate).min(KEPT_BYTES + AHEAD_FACTOR * used);
        let granted = self.sending.ask(wanted.saturating_sub(KEPT_BYTES));
        wanted.min(KEPT_BYTES + granted)
    }

    /// What QUIC's receive window is to be, if that is another number now. `received_bytes` is what was taken
    /// from the connection so far, and whether some of it waits for a program; `rtt` the round trip of the path.
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
            // What stands unread behind that program may be all of the window, and is the others' as well.
            let wanted = if is_waiting {
                wanted.max(before)
            } else {
                wanted
            };
            // What the peer has been allowed already is never asked for in vain.
            let most = wanted.max(self.credit.bytes());
            let granted = self.receiving.ask(most - RECEIVE_BYTES);
            self.credit.aim_at(wanted.min(RECEIVE_BYTES + granted));
        }
        self.receiving.ask(self.credit.bytes() - RECEIVE_BYTES);
        let window = self.credit.window_bytes;
        (window != before).then_some(window)
    }

    /// The connection is over: nothing comes and nothing goes that takes memory.
    pub(crate) fn end(&mut self) {
        self.sending.ask(0);
        self.receiving.ask(0);
    }
}

/// The most that was held of late: of two spans of time, so that it always covers one whole.
#[derive(Debug, Default)]
struct Used {
    began: Instant,
    current_bytes: u64,
    previous_bytes: u64,
}

impl Used {
    /// The most, with what is held now.
    fn with(&mut self, now: Instant, held_bytes: u64) -> u64 {
        if now.since(self.began) >= USED_TIME {
            self.began = now;
            self.previous_bytes = std::mem::take(&mut self.current_bytes);
        }
        self.current_bytes = self.current_bytes.max(held_bytes);
        self.current_bytes.max(self.previous_bytes)
    }
}

/// What the peer may have under way to us, as QUIC counts it. What it has been allowed it cannot be denied:
/// when a window shrinks, what is taken from the connection is a debt of the difference before it is new
/// credit. QUIC does not set the debt off against a window that grows again, so that is done here.
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

    /// Takes note of how much was taken from the connection so far.
    fn note(&mut self, received_bytes: u64) {
        let taken = received_bytes.saturating_sub(self.received_bytes);
        self.received_bytes = received_bytes;
        self.debt_bytes = self.debt_bytes.saturating_sub(taken);
    }

    /// Has the window such that the credit comes to this: at once if it is to grow, else once it is used up.
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

/// What arrives in a round, which is a round trip or what else is due again and again: at most, of late.
#[derive(Debug, Default)]
pub(crate) struct Inflow {
    measured: Option<(Instant, u64)>,
    bytes_per_round: u64,
}

impl Inflow {
    /// Takes note of how much has arrived so far; gives what a round brings, whenever that was measured.
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

    /// What was measured last.
    pub(crate) const fn bytes_per_round(&self) -> u64 {
        self.bytes_per_round
    }
}

/// What a path holds with the queue that we allow ourselves.
pub(crate) fn in_flight_bytes(estimate: &Estimate) -> u64 {
    let path = Rate::clamped(estimate.rate_bytes_per_second);
    path.bytes_in(estimate.base_rtt + ALLOWANCE)
}

/// What the path holds, or may turn out to hold: until its rate is found, the rate known is that of the last
/// round trip, half of what may be in flight now.
fn path_bytes(estimate: &Estimate) -> u64 {
    let known = in_flight_bytes(estimate);
    if estimate.is_settled {
        known
    } else {
        known.max(estimate.window_bytes)
    }
}

/// Bytes that are kept of all streams of a leg until the peer has handed them on. Three times the path: a lost
/// packet is repeated after one round trip, arrives within the second, and holds up for so long what the
/// peer may hand on. More where that happens all the time, for then some are lost twice.
fn tail_bytes(estimate: &Estimate) -> u64 {
    let round_trips = 3 + estimate.hole_rounds();
    round_trips * path_bytes(estimate)
}

/// Bytes of bulk that QUIC takes before they are acknowledged, of `kept_bytes` that are kept: twice the path,
/// so that a lost packet does not stop the flow while it is repeated, and a startup may double before its
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

    /// A path of so many bytes a second and so many milliseconds.
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
        // Once the rate is known, it counts, not a window that is still to shrink.
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
        // What is in flight, and what arrives while a packet is repeated and repeated once more.
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
        // What two links have under way between two looks, 50 ms apart, at most: what each may keep.
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
        // A startup: twice as much in each round trip, until the path is full with 25 MB.
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
        // A pause of a second keeps most of it, a minute's none; but what the peer has been allowed counts
        // until it has come.
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

    /// QUIC's own count of what a peer may send.
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
            // A burst of a second or two, at 60 to 180 MB a second, then a pause in which the window fades.
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
        // A fast stream whose program then stops with two round trips of it unread, in a link that is idle for a
        // minute; then other streams send twice as much as any window.
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
