//! Decisions one by one, and bulk over a simulated bottleneck in virtual time.

use std::collections::BTreeMap;

use super::*;
use crate::estimate::{Ack, Estimator, Marked};

const MICRO: u64 = 1_000;
const MILLI: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;

/// Bytes of a full packet, and of what it is on the wire.
const PACKET: u64 = 1452;
const FRAME: u64 = 1514;

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
        packet_bytes: PACKET,
        ..Estimate::default()
    }
}

fn cruising() -> Cruise {
    let mut cruise = Cruise::new();
    cruise.look(at(1000), &estimate(150, 4000));
    assert!(cruise.is_cruising());
    cruise
}

/// Sends pieces for so long, a sleep taking up to so many microseconds more; gives the bytes.
fn send(cruise: &mut Cruise, from_millis: u64, millis: u64, late_micros: u64) -> u64 {
    let (mut now, mut sent) = (from_millis * MILLI, 0);
    while now < (from_millis + millis) * MILLI {
        let piece = cruise.piece_bytes();
        let then = cruise.take(Instant::from_nanos(now), piece).as_nanos();
        if then > now {
            now = then + (sent * 7919 % (late_micros * MICRO + 1));
        }
        sent += piece;
    }
    sent
}

#[test]
fn bulk_keeps_below_the_rate_though_timers_fire_late() {
    for late in [0, 100, 800] {
        let sent = send(&mut cruising(), 1000, 1000, late);
        assert!((23_400_000..=24_000_000).contains(&sent), "{late}: {sent}");
    }
}

#[test]
fn bulk_that_paused_does_not_make_up_for_it() {
    let mut cruise = cruising();
    let sent = send(&mut cruise, 3000, 10, 0);
    assert!(sent <= 239_500 + 24_000 + 2 * 3_000, "{sent}");
}

#[test]
fn pieces_are_whole_packets_and_no_longer_than_a_demand_may_wait() {
    for mbit in [1, 3, 10, 50, 100, 200, 499] {
        let mut cruise = cruising();
        cruise.path_bytes_per_second = mbit * 125_000;
        let packets = cruise.piece_bytes() / (PACKET - PACKET_HEAD_BYTES);
        assert_eq!(cruise.piece_bytes() % (PACKET - PACKET_HEAD_BYTES), 0);
        let packet = time_of(PACKET, cruise.path_bytes_per_second);
        let piece = packet * u32::try_from(packets).unwrap();
        assert!(packets >= 1, "{mbit}");
        assert!(piece <= packet + Duration::from_millis(2), "{mbit}");
    }
}

#[test]
fn nothing_is_held_back_before_a_queue_was_seen() {
    let mut cruise = Cruise::new();
    for (filled, queue) in [(0, 9000), (149, 9000), (500, 0), (800, 900)] {
        cruise.look(at(1000), &estimate(filled, queue));
        assert!(!cruise.is_cruising());
        assert_eq!(cruise.take(at(1000), 1 << 30), at(1000));
        assert_eq!(cruise.piece_bytes(), AHEAD_BYTES_MAX);
    }
}

#[test]
fn what_went_through_a_path_that_was_not_full_says_nothing() {
    let mut cruise = Cruise::new();
    cruise.look(at(1000), &estimate(100, 500));
    cruise.look(at(1049), &estimate(249, 4000));
    assert!(!cruise.is_cruising(), "only 149 ms with a queue");
    cruise.look(at(1050), &estimate(250, 4000));
    assert!(cruise.is_cruising());
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
    assert!((46_800_000..=48_000_000).contains(&sent), "{sent}");
}

/// A round that began then saw so much of a queue.
fn seen(began_millis: u64, queue_micros: u64) -> Estimate {
    Estimate {
        round_began: at(began_millis),
        ..estimate(150, queue_micros)
    }
}

#[test]
fn a_queue_that_does_not_go_or_a_new_start_ends_it() {
    let mut cruise = cruising();
    for millis in [1020, 1060, 1120] {
        cruise.look(at(millis), &seen(millis - 40, 2100));
        assert!(cruise.is_cruising(), "it may be that of the look before");
    }
    for millis in [1140, 1160, 1180] {
        cruise.look(at(millis), &seen(1110, 2100));
        assert!(cruise.is_cruising(), "it is one round's, and let run empty");
    }
    cruise.look(at(1200), &seen(1190, 2100));
    assert!(cruise.is_cruising(), "it is let run empty once more");
    cruise.look(at(1220), &seen(1210, 2100));
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
fn a_short_queue_is_let_run_empty() {
    let mut cruise = cruising();
    send(&mut cruise, 1000, 500, 0);
    let free_at = cruise.free_at;
    cruise.look(at(1500), &seen(1480, 1500));
    let pause = cruise.free_at.since(free_at.max(at(1500)));
    // The queue of a packet alone is none.
    assert!(pause.abs_diff(Duration::from_micros(1500 - 58)) < Duration::from_micros(1));
}

#[test]
fn bulk_leaves_room_for_what_is_urgent() {
    let mut cruise = cruising();
    let mut looking = Cruise::new();
    looking.look(at(1000), &estimate(0, 0));
    let mut sent = 0;
    // Half of the path in packets of a kilobyte; for the one that looks, bulk got the other half.
    for millis in 0..1000 {
        for who in [&mut cruise, &mut looking] {
            for _ in 0..12 {
                who.pass(at(1000 + millis), 1000);
            }
        }
        sent += send(&mut cruise, 1000 + millis, 1, 0);
    }
    assert!((9_500_000..=12_000_000).contains(&sent), "{sent}");
    let half = Estimate {
        filled_bytes: 12_500_000,
        ..estimate(1000, 4000)
    };
    looking.look(at(2000), &half);
    let path = looking.path_bytes_per_second().unwrap();
    assert!((24_500_000..=26_000_000).contains(&path), "{path}");
}

#[test]
fn a_path_that_urgent_bytes_fill_is_known_by_them_too() {
    let mut cruise = Cruise::new();
    cruise.look(at(1000), &estimate(0, 0));
    let look = Estimate {
        filled_bytes: 20 * PACKET,
        ..estimate(200, 4000)
    };
    let mut too_little = cruise.clone();
    too_little.look(at(1200), &look);
    assert!(!too_little.is_cruising(), "twenty packets say little");
    cruise.pass(at(1100), 100 * PACKET);
    cruise.look(at(1200), &look);
    assert!(cruise.is_cruising());
}

#[test]
fn an_urgent_byte_takes_the_room_of_one_of_the_wire() {
    let mut cruise = cruising();
    let from = cruise.behind(at(1500));
    cruise.pass(at(1500), 100_000);
    let taken = cruise.free_at.since(from);
    // The path carries 25 MB/s, of which the wire is kept at 98 %.
    let wire = time_of(100_000 + SMALL_HEAD_BYTES, 24_500_000);
    assert!(taken.abs_diff(wire) < Duration::from_micros(1), "{taken:?}");
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

/// Pushes whose last packets took so long more than those before them.
fn pushed(rises_micros: &[u64]) -> Cruise {
    let mut cruise = cruising();
    send(&mut cruise, 1000, 1000, 0);
    for (rise_micros, began) in rises_micros.iter().zip((2001..).step_by(200)) {
        cruise.look(at(began), &seen(began - 20, 0));
        let marks = cruise.marks().expect("a push is to come");
        send(&mut cruise, began + 1, 30, 0);
        let mut marked = marks.map(|(from, until)| Marked {
            from,
            until,
            packet_count: 20,
            rtt_min: Duration::from_millis(1),
            is_over: true,
        });
        marked[1].rtt_min += Duration::from_micros(*rise_micros);
        let told = Estimate {
            marked,
            ..estimate(150, 0)
        };
        cruise.look(at(began + 32), &told);
        if cruise.is_cruising() {
            send(&mut cruise, began + 32, 168, 0);
        }
    }
    cruise
}

#[test]
fn a_push_that_made_a_queue_confirms_the_rate_and_two_others_end_it() {
    assert!(
        !pushed(&[100, 100]).is_cruising(),
        "no queue, so the path is faster"
    );
    assert!(pushed(&[100]).is_cruising(), "an urgent packet may hide it");
    let mut cruise = pushed(&[100, 1200]);
    assert!(cruise.is_cruising());
    cruise.look(at(4000), &estimate(150, 0));
    assert!(
        cruise.is_cruising(),
        "beyond the time of a rate unconfirmed"
    );
}

#[test]
fn a_push_sends_what_makes_its_queue_and_pauses_for_it() {
    let mut cruise = cruising();
    send(&mut cruise, 1000, 1000, 0);
    let mut pushing = cruise.clone();
    pushing.look(at(2001), &seen(1980, 0));
    assert!(pushing.marks().is_some());
    assert_eq!(
        send(&mut cruise, 2001, 8, 0),
        send(&mut pushing, 2001, 8, 0)
    );
    let plain = send(&mut cruise, 2009, 8, 0);
    let more = send(&mut pushing, 2009, 8, 0);
    let extra = time_of(more - plain, 25_000_000 * 964 / 1000);
    let expected = Duration::from_micros(2000)..Duration::from_micros(2600);
    assert!(expected.contains(&extra), "{extra:?}");
    // And no more than without, once the pause is over.
    let after = more + send(&mut pushing, 2017, 4, 0);
    let without = plain + send(&mut cruise, 2017, 4, 0);
    assert!(after <= without + 6 * 2_816, "{after} {without}");
}

/// A path with one bottleneck, and a program that has always something to send.
#[derive(Clone, Copy)]
struct Path {
    mbit: u64,
    rtt_micros: u64,
    /// Bytes that go through at once after a pause, as a token bucket's.
    burst_bytes: u64,
    /// Most that the program's thread is late, once in so many pieces.
    late: (u64, u64),
    /// The longest queue; what comes beyond it is lost.
    buffer_micros: u64,
    /// An urgent message of so many bytes so many times a second, and what goes beside that nobody passed.
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

/// Most that the program's thread takes from it at once.
const READ: u64 = 256 * 1024;

/// Longest that an acknowledgement is held back.
const HELD: u64 = 25 * MILLI;

struct Simulation {
    path: Path,
    estimator: Estimator,
    cruise: Cruise,
    now: u64,
    /// When the last packet will be through, with the credit of a token bucket before now.
    link_free: u64,
    unsent: u64,
    in_flight: u64,
    /// What is left of a piece that may go and for which QUIC has no room yet.
    unwritten: u64,
    /// When QUIC's own pacer, at 1.25 windows a round trip after ten packets, lets the next packet go.
    paced: u64,
    /// When the next piece goes, and its bytes.
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

    /// What the link shows.
    fn shown(&self) -> u64 {
        let cruising = self.cruise.path_bytes_per_second();
        cruising.unwrap_or_else(|| self.estimator.estimate().rate_bytes_per_second)
    }

    fn serialised(&self, bytes: u64) -> u64 {
        bytes * 8 * 1000 / self.path.mbit
    }

    /// How long a byte that comes now waits for those before it.
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
                // It is sent at the begin of the next turn.
            } else if next == tick {
                // The link's, which looks although the program waits.
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

    /// Sends an urgent message at once, and so much more that the cruise is not told of.
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

    /// Writes what may go as far as there is room for it, and asks for the next piece then.
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
                // It is missed once those behind it have arrived, and sent again.
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

    /// Runs for a time; gives the longest waits of 50, of 99 of 100, and of all, in microseconds, and the
    /// programs' part of what the path carries per mille.
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

    /// How long it takes after now until the right rate is shown and stays, if that is within a time.
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

/// Runs until bulk cruises and the base is known, and measures.
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
    // A second of them may be waiting, and then says nothing.
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
