//! Bulk over a simulated bottleneck in virtual time.

use std::collections::BTreeMap;

use super::*;
use crate::path::estimate::{Ack, Estimator};

/// A path with one bottleneck, and a program that always has something to send.
#[derive(Clone, Copy)]
struct Path {
    mbit: u64,
    rtt_micros: u64,
    /// Bytes that pass at once after a pause, as with a token bucket.
    burst_bytes: u64,
    /// By how many microseconds the program's thread is late at most, and in one of how many
    /// pieces.
    late: (u64, u64),
    /// The longest queue; packets beyond it are lost.
    buffer_micros: u64,
    /// Urgent messages per second, bytes of each, and bytes sent beside each without `pass`.
    urgent: (u64, u64, u64),
}

const SHORT: Path = Path {
    mbit: 200,
    rtt_micros: 300,
    burst_bytes: 16_384,
    late: (200, 3),
    buffer_micros: u64::MAX / MICRO,
    urgent: (0, 0, 0),
};

enum Event {
    Arrival { sent: u64 },
    Loss { sent: u64 },
    Held { number: u64 },
    Acks { sent: Vec<u64> },
}

/// The most that the program's thread reads at once.
const READ: u64 = 256 * 1024;

/// The longest time that an acknowledgement is held back.
const HELD: u64 = 25 * MILLI;

struct Simulation {
    path: Path,
    estimator: Estimator,
    cruise: Cruise,
    now: u64,
    /// When the last packet will be through, less the unused credit of a token bucket.
    link_free: u64,
    unsent: u64,
    in_flight: u64,
    /// The part of a due piece for which QUIC has no room yet.
    unwritten: u64,
    /// When QUIC's own pacer lets the next packet go: 1.25 windows per round trip, after ten
    /// packets.
    paced: u64,
    /// When the next piece goes, and its size.
    piece: Option<(u64, u64)>,
    events: BTreeMap<(u64, u64), Event>,
    number: u64,
    held: Option<(u64, u64)>,
    delivered: u64,
    /// Packets and bytes that have left over the link's other connection.
    urgent: (u64, u64),
    random: u64,
    waits: Vec<u64>,
}

impl Simulation {
    fn new(path: Path) -> Self {
        Self {
            path,
            estimator: Estimator::new(PACKET, 10 * PACKET, at(1000)),
            cruise: Cruise::new(),
            now: SECOND,
            link_free: 0,
            unsent: 0,
            in_flight: 0,
            unwritten: 0,
            paced: 0,
            piece: None,
            events: BTreeMap::new(),
            number: 0,
            held: None,
            delivered: 0,
            urgent: (0, 0),
            random: 1,
            waits: Vec::new(),
        }
    }

    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random >> 11
    }

    fn truth(&self) -> u64 {
        self.path.mbit * 125_000 * PACKET / FRAME
    }

    /// The rate that the link shows.
    fn shown(&self) -> u64 {
        let cruising = self.cruise.path_bytes_per_second();
        cruising.unwrap_or_else(|| self.estimator.estimate().rate_bytes_per_second)
    }

    fn serialised(&self, bytes: u64) -> u64 {
        bytes * 8 * 1000 / self.path.mbit
    }

    /// How long a byte that comes now waits behind earlier ones.
    fn wait(&self) -> u64 {
        let credit = self.serialised(self.path.burst_bytes);
        let free = self.link_free.max(self.now.saturating_sub(credit));
        free.saturating_sub(self.now)
    }

    fn run_until(&mut self, end: u64) {
        let (mut ping, mut tick) = (self.now, self.now);
        let (per_second, message_bytes, beside_bytes) = self.path.urgent;
        let interval = SECOND.checked_div(per_second).unwrap_or(u64::MAX);
        let mut message = self.now.saturating_add(interval);
        while self.now < end {
            self.offer();
            self.send();
            let piece = self.piece.map_or(u64::MAX, |(at, _)| at);
            let event = self.events.keys().next().map_or(u64::MAX, |key| key.0);
            let paced = if self.may_send() {
                self.paced
            } else {
                u64::MAX
            };
            let next = piece.min(event).min(ping).min(paced).min(tick);
            let next = next.min(message);
            self.now = self.now.max(next);
            if next == paced {
                // It is sent at the start of the next iteration.
            } else if next == tick {
                // The tick of the link, which looks even while the program waits.
                let seen = self.estimator.estimate();
                if !self.cruise.is_cruising() || self.cruise.is_thinner(&seen) {
                    self.look();
                }
                tick += 50 * MILLI;
            } else if next == message {
                message += interval;
                self.urge(message_bytes, beside_bytes);
            } else if next == ping {
                self.waits.push(self.wait());
                ping = self.now + 500 * MICRO + self.random() % MILLI;
            } else if next == piece {
                let (_, bytes) = self.piece.take().expect("it was there");
                self.unwritten = bytes;
            } else {
                let ((_, _), event) = self.events.pop_first().expect("it was there");
                self.handle(event);
            }
        }
    }

    /// Sends an urgent message at once, and bytes beside it that the cruise is not told of.
    fn urge(&mut self, message_bytes: u64, beside_bytes: u64) {
        self.cruise
            .pass(Instant::from_nanos(self.now), message_bytes);
        let head = SMALL_HEAD_BYTES - FRAME_HEAD_BYTES;
        let packets = [message_bytes + head, beside_bytes];
        for bytes in packets {
            self.link_free =
                self.link_free.max(self.now) + self.serialised(bytes + FRAME_HEAD_BYTES);
            self.urgent = (self.urgent.0 + 1, self.urgent.1 + bytes);
        }
    }

    /// Writes the due piece as far as there is room, and then asks for the next one.
    fn offer(&mut self) {
        let now = Instant::from_nanos(self.now);
        while self.piece.is_none() {
            let estimate = self.estimator.estimate();
            let room = buffer_bytes(&estimate).unwrap_or(1 << 20);
            let room = room.saturating_sub(self.unsent + self.in_flight);
            let written = self.unwritten.min(room);
            self.unsent += written;
            self.unwritten -= written;
            if room == written {
                return;
            }
            self.look();
            let bytes = self.cruise.piece_bytes().min(READ);
            let then = self.cruise.take(now, bytes).as_nanos();
            if then <= self.now {
                self.unwritten = bytes;
                continue;
            }
            let (late, one_of) = self.path.late;
            let random = self.random();
            let late = if random.is_multiple_of(one_of) {
                (random >> 8) % (late * MICRO + 1)
            } else {
                20 * MICRO
            };
            self.piece = Some((then + late, bytes));
        }
    }

    fn look(&mut self) {
        let now = Instant::from_nanos(self.now);
        if self.cruise.is_curious(now) {
            self.cruise.note_urgent(now, self.urgent.0, self.urgent.1);
            self.cruise.look(now, &self.estimator.estimate());
            if let Some(marks) = self.cruise.marks() {
                self.estimator.mark(marks);
            }
        }
    }

    fn may_send(&self) -> bool {
        self.unsent > 0 && self.in_flight + PACKET <= self.estimator.window_bytes()
    }

    fn send(&mut self) {
        while self.may_send() && self.paced <= self.now {
            self.unsent = self.unsent.saturating_sub(PACKET - PACKET_HEAD_BYTES);
            self.in_flight += PACKET;
            let estimate = self.estimator.estimate();
            let rtt = nanos(estimate.base_rtt + estimate.queue_delay).max(MICRO);
            let gap = rtt * PACKET * 4 / (estimate.window_bytes * 5);
            self.paced = self.paced.max(self.now.saturating_sub(10 * gap)) + gap;
            if self.wait() > self.path.buffer_micros * MICRO {
                // The loss is noticed once later packets have arrived; then it is retransmitted.
                let noticed = self.link_free + self.path.rtt_micros * MICRO;
                let sent = self.now;
                self.push(noticed, Event::Loss { sent });
                continue;
            }
            let credit = self.serialised(self.path.burst_bytes);
            let free = self.link_free.max(self.now.saturating_sub(credit));
            self.link_free = free + self.serialised(FRAME);
            let arrival = self.link_free.max(self.now) + self.path.rtt_micros * MICRO / 2;
            let sent = self.now;
            self.push(arrival, Event::Arrival { sent });
        }
    }

    fn push(&mut self, at: u64, event: Event) {
        self.number += 1;
        self.events.insert((at, self.number), event);
    }

    fn handle(&mut self, event: Event) {
        let back = self.now + self.path.rtt_micros * MICRO / 2;
        match event {
            Event::Arrival { sent } => match self.held.take() {
                Some((_, first)) => {
                    let sent = vec![first, sent];
                    self.push(back, Event::Acks { sent });
                }
                None => {
                    let number = self.number + 1;
                    self.held = Some((number, sent));
                    self.push(self.now + HELD, Event::Held { number });
                }
            },
            Event::Held { number } => {
                if let Some((_, sent)) = self.held.filter(|(held, _)| *held == number) {
                    self.held = None;
                    self.push(back, Event::Acks { sent: vec![sent] });
                }
            }
            Event::Loss { sent } => {
                self.in_flight -= PACKET;
                self.unsent += PACKET - PACKET_HEAD_BYTES;
                let [now, sent] = [self.now, sent].map(Instant::from_nanos);
                self.estimator.on_loss(now, sent, PACKET, false);
            }
            Event::Acks { sent } => {
                for sent in sent {
                    self.acknowledge(sent);
                }
            }
        }
    }

    fn acknowledge(&mut self, sent: u64) {
        let has_room = self.in_flight + PACKET <= self.estimator.window_bytes();
        self.in_flight -= PACKET;
        self.delivered += PACKET - PACKET_HEAD_BYTES;
        self.estimator.on_ack(Ack {
            now: Instant::from_nanos(self.now),
            sent: Instant::from_nanos(sent),
            bytes: PACKET,
            is_app_limited: self.unsent == 0 && has_room,
            is_cruising: self.cruise.is_cruising(),
        });
    }

    /// Runs for a time. Returns the median, the 99th percentile and the maximum of the waits in
    /// microseconds, and the programs' share of the path per mille.
    fn measure(&mut self, nanos: u64) -> ([u64; 3], u64) {
        let (began, delivered) = (self.now, self.delivered);
        self.waits.clear();
        self.run_until(began + nanos);
        self.waits.sort_unstable();
        let part = |per_mille: usize| {
            let last = self.waits.len() - 1;
            self.waits[last * per_mille / 1000] / MICRO
        };
        let capacity = self.path.mbit * 125_000 * (self.now - began) / SECOND;
        let share = (self.delivered - delivered) * 1000 / capacity;
        ([part(500), part(990), part(1000)], share)
    }

    /// Time from now until the right rate is shown and stays; `None` if that takes longer than
    /// `most`.
    fn found_within(&mut self, most: u64) -> Option<u64> {
        let began = self.now;
        let mut right_since = None;
        while self.now < began + most {
            self.run_until(self.now + 10 * MILLI);
            let is_right = self.shown().abs_diff(self.truth()) * 10 < self.truth();
            right_since = is_right.then(|| right_since.unwrap_or(self.now - began));
            let stays = |since: &u64| self.now - began - since >= SECOND / 2;
            if right_since.is_some_and(|since| stays(&since)) {
                return right_since;
            }
        }
        None
    }
}

/// Runs until bulk cruises and the base is known, then measures.
fn settled(path: Path) -> ([u64; 3], u64) {
    let mut simulation = Simulation::new(path);
    simulation.run_until(20 * SECOND);
    simulation.measure(130 * SECOND)
}

#[test]
fn a_first_byte_waits_for_a_packet_and_two_milliseconds_at_any_rate() {
    for mbit in [1, 3, 10, 30, 100, 200, 400] {
        for rtt_micros in [300, 10_000, 40_000] {
            let ([half, most, _], share) = settled(Path {
                mbit,
                rtt_micros,
                burst_bytes: 0,
                ..SHORT
            });
            let packet = FRAME * 8 / mbit;
            let what = format!("{mbit} Mbit/s, {rtt_micros} us: {half} and {most} us");
            assert!(most <= packet + 2_000, "{what}");
            assert!(half <= packet + 250, "{what}");
            assert!(share >= 890, "{what}, {share} per mille");
        }
    }
}

#[test]
fn a_path_that_became_thin_is_cruised_on_soon() {
    for (mbit, rtt_micros) in [(200, 300), (10, 300), (10, 10_000)] {
        let mut simulation = Simulation::new(Path {
            mbit,
            rtt_micros,
            burst_bytes: 0,
            ..SHORT
        });
        simulation.run_until(8 * SECOND);
        simulation.path.mbit = 1;
        simulation.run_until(simulation.now + 5 * SECOND);
        let ([half, _, _], share) = simulation.measure(5 * SECOND);
        let what = format!("from {mbit} Mbit/s, {rtt_micros} us");
        assert!(half <= FRAME * 8 + 250, "{what}: {half} us");
        let rate = simulation.estimator.estimate().rate_bytes_per_second;
        assert!(
            rate <= simulation.truth() * 3 / 2,
            "{what}: {rate} a second"
        );
        assert!(share >= 850, "{what}: {share} per mille");
    }
}

#[test]
fn what_goes_beside_urgent_messages_makes_no_queue() {
    for (mbit, per_second) in [(1, 100), (3, 200), (10, 400)] {
        let ([half, most, _], share) = settled(Path {
            mbit,
            burst_bytes: 0,
            urgent: (per_second, 64, 70),
            ..SHORT
        });
        let (packet, urgent) = (FRAME * 8 / mbit, 248 * 8 / mbit);
        let what = format!("{mbit} Mbit/s: {half} and {most} us, {share} per mille");
        assert!(most <= packet + urgent + 2_000, "{what}");
        assert!(half <= packet + urgent, "{what}");
        let left = 1000 - per_second * 248 * 1000 / (mbit * 125_000);
        assert!(share >= left * 860 / 1000, "{what} of {left}");
    }
}

#[test]
fn urgent_messages_that_take_most_of_a_path_wait_for_a_packet_all_the_same() {
    for (mbit, per_second) in [(1, 250), (1, 350), (10, 2500)] {
        let ([half, _, _], share) = settled(Path {
            mbit,
            burst_bytes: 0,
            urgent: (per_second, 64, 70),
            ..SHORT
        });
        let (packet, urgent) = (FRAME * 8 / mbit, 248 * 8 / mbit);
        let left = 1000 - per_second * 248 * 1000 / (mbit * 125_000);
        let what = format!("{mbit} Mbit/s: {half} us, {share} of {left} per mille");
        assert!(half <= packet + urgent, "{what}");
        assert!(share >= left / 2, "{what}");
    }
}

#[test]
fn a_rate_that_urgent_bytes_exceed_is_not_believed() {
    let mut cruise = cruising();
    cruise.path_bytes_per_second = 10_000;
    for millis in 1000..1110 {
        cruise.pass(at(millis), 1000);
    }
    // A second's worth of them may be waiting; then their number says nothing.
    let mut waiting = cruise.clone();
    waiting.look(at(1110), &seen(1100, 12_000_000));
    assert!(waiting.is_cruising());
    cruise.look(at(1110), &seen(1100, 0));
    assert!(!cruise.is_cruising());
}

#[test]
fn beside_a_token_bucket_nobody_waits_and_bulk_gets_its_part() {
    let ([half, most, _], share) = settled(SHORT);
    assert!(half == 0 && most <= 500, "{half} and {most} us");
    assert!(share >= 905, "{share} per mille");
}

#[test]
fn steps_of_the_path_are_found_from_any_moment_of_a_cruise() {
    const ENDLESS: u64 = SHORT.buffer_micros;
    for (rtt_micros, buffer_micros, down, up) in [
        (300, ENDLESS, SECOND / 2, 2 * SECOND),
        (300, 100_000, SECOND / 2, 2 * SECOND),
        (10_000, ENDLESS, SECOND / 2, 2 * SECOND),
        (40_000, ENDLESS, 3 * SECOND / 4, 3 * SECOND),
        (40_000, 100_000, SECOND / 2, 3 * SECOND),
        (100_000, ENDLESS, 3 * SECOND / 2, 4 * SECOND),
        (100_000, 100_000, 3 * SECOND, 4 * SECOND),
    ] {
        for phase in 0..9 {
            let path = Path {
                rtt_micros,
                buffer_micros,
                ..SHORT
            };
            check_steps(path, phase, (down, up));
        }
    }
}

fn check_steps(path: Path, phase: u64, (down, up): (u64, u64)) {
    let mut simulation = Simulation::new(path);
    simulation.run_until(8 * SECOND + phase * 310 * MILLI);
    for (mbit, most) in [(50, down), (200, up), (50, down), (200, up)] {
        simulation.path.mbit = mbit;
        let (rtt, buffer) = (path.rtt_micros, path.buffer_micros);
        let what = format!("{rtt} us, {buffer} us, {phase}: to {mbit} Mbit/s");
        let found = simulation.found_within(most + SECOND / 2);
        assert!(
            found.is_some_and(|after| after <= most),
            "{what}: {found:?}"
        );
        simulation.run_until(simulation.now + SECOND);
        let ([_, _, all], _) = simulation.measure(SECOND + phase * 310 * MILLI);
        assert!(all <= 25_000, "{what}: {all} us");
    }
}

#[test]
fn a_rate_that_was_seen_too_low_is_made_up_for() {
    for low_per_mille in [850, 900, 920] {
        let mut simulation = Simulation::new(SHORT);
        simulation.run_until(8 * SECOND);
        simulation.cruise.path_bytes_per_second = simulation.truth() * low_per_mille / 1000;
        simulation.run_until(simulation.now + 32 * SECOND);
        let (_, share) = simulation.measure(10 * SECOND);
        assert!(share >= 890, "{low_per_mille}: {share} per mille");
    }
}

#[test]
fn a_path_that_becomes_longer_is_cruised_on_soon() {
    // Mbit/s, milliseconds before and after.
    let paths = [
        (200, 10, 40),
        (200, 40, 120),
        (10, 20, 100),
        (100, 20, 300),
        (50, 20, 200),
        // Longer by less than a queue that is noticed by itself.
        (200, 20, 23),
        (200, 20, 25),
        (1000, 10, 16),
        (100, 40, 46),
    ];
    for (mbit, before, after) in paths {
        for phase in 0..3 {
            let mut simulation = Simulation::new(Path {
                mbit,
                rtt_micros: before * 1000,
                ..SHORT
            });
            simulation.run_until(8 * SECOND + phase * 310 * MILLI);
            simulation.path.rtt_micros = after * 1000;
            let found = simulation.found_within(4 * SECOND);
            simulation.run_until(simulation.now + 12 * after * MILLI);
            let ([_, most, _], share) = simulation.measure(4 * SECOND);
            let what = format!("{mbit} Mbit/s, {before} to {after} ms, {phase}");
            assert!(found.is_some(), "{what}: not soon");
            assert!(share >= 880, "{what}: {share} per mille");
            assert!(most <= 25_000, "{what}: {most} us");
        }
    }
}
