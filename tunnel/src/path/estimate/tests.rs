//! Tests of the estimator over a simulated bottleneck in virtual time.

use std::collections::BTreeMap;

use towpath_protocol::amounts::per_second;

use super::*;

const PACKET: u64 = 1400;
const MICRO: u64 = 1_000;
const MILLI: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;

/// A path with one bottleneck.
#[derive(Clone, Copy)]
struct Path {
    rate_bytes_per_second: u64,
    rtt_nanos: u64,
    buffer_nanos: u64,
    loss_per_mille: u64,
    /// Longest stall of a radio or a busy processor on the way back; some twenty stalls per second.
    jitter_nanos: u64,
    /// Every how many packets the sender had briefly run out of data; 0 if never.
    pause_packets: u64,
    /// Most bytes in flight that the sender's own buffer allows, whatever the window.
    buffered_bytes: u64,
}

impl Path {
    const fn new(mbit: u64, rtt_millis: u64, buffer_millis: u64) -> Self {
        Self {
            rate_bytes_per_second: mbit * 125_000,
            rtt_nanos: rtt_millis * MILLI,
            buffer_nanos: buffer_millis * MILLI,
            loss_per_mille: 0,
            jitter_nanos: 0,
            pause_packets: 0,
            buffered_bytes: u64::MAX,
        }
    }
}

enum Event {
    Ack { sent: u64, is_app_limited: bool },
    Loss { sent: u64 },
}

/// One bulk sender over a path that may change.
struct Simulation {
    path: Path,
    estimator: Estimator,
    now: u64,
    link_free: u64,
    stall: (u64, u64),
    in_flight: u64,
    events: BTreeMap<(u64, u64), Event>,
    sequence: u64,
    delivered: u64,
    queues: Vec<u64>,
    random: u64,
    is_cruising: bool,
}

impl Simulation {
    fn new(path: Path) -> Self {
        Self {
            path,
            estimator: Estimator::new(PACKET, 10 * PACKET, Instant::ZERO),
            now: 0,
            link_free: 0,
            stall: (0, 0),
            in_flight: 0,
            events: BTreeMap::new(),
            sequence: 0,
            delivered: 0,
            queues: Vec::new(),
            random: 1,
            is_cruising: false,
        }
    }

    /// Sends as far as the window and a pacer like quinn's, of 1.25 windows per round trip, allow.
    fn run_until(&mut self, end: u64) {
        let mut send_at = self.now;
        while self.now < end {
            let window = self.estimator.window_bytes().min(self.path.buffered_bytes);
            let may_send = self.in_flight + PACKET <= window;
            let next_event = self.events.keys().next().map_or(u64::MAX, |key| key.0);
            if may_send && send_at <= next_event {
                self.now = self.now.max(send_at);
                self.send();
                let gap = self.path.rtt_nanos * PACKET * 4 / (self.estimator.window_bytes() * 5);
                send_at = self.now + gap;
            } else {
                let ((at, _), event) = self.events.pop_first().expect("something is in flight");
                self.now = at;
                self.in_flight -= PACKET;
                self.arrive(&event);
            }
        }
    }

    fn send(&mut self) {
        self.in_flight += PACKET;
        self.sequence += 1;
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let queue = self.link_free.saturating_sub(self.now);
        self.queues.push(queue);
        let is_lost =
            queue > self.path.buffer_nanos || self.random % 1000 < self.path.loss_per_mille;
        if is_lost {
            let noticed = self.now + self.path.rtt_nanos + queue + MILLI;
            let loss = Event::Loss { sent: self.now };
            self.events.insert((noticed, self.sequence), loss);
            return;
        }
        let serialised = PACKET * SECOND / self.path.rate_bytes_per_second;
        self.link_free = self.now.max(self.link_free) + serialised;
        let acked = self.stalled(self.link_free + self.path.rtt_nanos);
        let pauses = self.path.pause_packets;
        let is_paused = pauses > 0 && self.sequence.is_multiple_of(pauses);
        let ack = Event::Ack {
            sent: self.now,
            is_app_limited: is_paused || self.path.buffered_bytes < self.estimator.window_bytes(),
        };
        self.events.insert((acked, self.sequence), ack);
    }

    /// When an acknowledgement arrives that would arrive at `at` without stalls.
    fn stalled(&mut self, at: u64) -> u64 {
        let (begins, ends) = self.stall;
        if at >= ends {
            let pause = (self.random >> 16) % (50 * MILLI);
            let length = (self.random >> 32) % (self.path.jitter_nanos + 1);
            self.stall = (at + pause, at + pause + length);
        }
        if at >= begins && at < ends { ends } else { at }
    }

    fn arrive(&mut self, event: &Event) {
        let now = Instant::from_nanos(self.now);
        match event {
            Event::Loss { sent } => {
                let sent = Instant::from_nanos(*sent);
                self.estimator.on_loss(now, sent, PACKET, false);
            }
            Event::Ack {
                sent,
                is_app_limited,
            } => {
                self.delivered += PACKET;
                self.estimator.on_ack(Ack {
                    now,
                    sent: Instant::from_nanos(*sent),
                    bytes: PACKET,
                    is_app_limited: *is_app_limited,
                    is_cruising: self.is_cruising,
                });
            }
        }
    }

    /// Runs for a time. Returns the used share of the path per mille, and the p99 of the queue in
    /// µs.
    fn measure(&mut self, nanos: u64) -> (u64, u64) {
        let (began, delivered) = (self.now, self.delivered);
        self.queues.clear();
        self.run_until(began + nanos);
        let capacity = self.path.rate_bytes_per_second * (self.now - began) / SECOND;
        self.queues.sort_unstable();
        let p99 = self.queues[self.queues.len() * 99 / 100];
        ((self.delivered - delivered) * 1000 / capacity, p99 / MICRO)
    }
}

/// Checks that after `settle` the path is used to `share_min` per mille at least, with a queue of
/// `queue_max` µs at most.
fn check(path: Path, settle: u64, share_min: u64, queue_max: u64) {
    let mut simulation = Simulation::new(path);
    simulation.run_until(settle);
    let (share, queue) = simulation.measure(30 * SECOND);
    let mbit = path.rate_bytes_per_second / 125_000;
    let rtt = path.rtt_nanos / MICRO;
    assert!(
        share >= share_min,
        "{mbit} Mbit/s, {rtt} us: used {share} per mille"
    );
    assert!(
        queue <= queue_max,
        "{mbit} Mbit/s, {rtt} us: queue p99 {queue} us"
    );
}

#[test]
fn paths_are_filled_and_their_queues_stay_short() {
    for mbit in [20, 100, 500] {
        for rtt in [1, 10, 40, 175] {
            check(Path::new(mbit, rtt, 100), 5 * SECOND, 930, 10_000);
        }
    }
}

#[test]
fn a_thin_link_is_used_with_a_few_packets_of_queue() {
    check(Path::new(2, 40, 400), 10 * SECOND, 900, 40_000);
}

#[test]
fn a_buffer_smaller_than_the_allowance_is_used_without_much_loss() {
    let mut simulation = Simulation::new(Path::new(100, 40, 2));
    simulation.run_until(5 * SECOND);
    let sent = simulation.sequence;
    let (share, _) = simulation.measure(20 * SECOND);
    let sent = (simulation.sequence - sent) * PACKET;
    let delivered = share * 12_500_000 * 20 / 1000;
    assert!(share >= 850, "used {share} per mille");
    assert!(
        delivered * 1000 / sent >= 960,
        "{delivered} of {sent} delivered"
    );
}

#[test]
fn loss_without_a_queue_costs_no_more_than_itself() {
    for loss in [1, 10, 20, 30] {
        let mut path = Path::new(100, 40, 100);
        path.loss_per_mille = loss;
        check(path, 10 * SECOND, 990, 8_000);
    }
}

#[test]
fn a_few_packets_that_are_lost_do_not_end_the_startup() {
    for (mbit, rtt, share_min) in [(10, 200, 780), (100, 100, 840), (500, 100, 790)] {
        for (loss, seed) in [1, 10, 20]
            .into_iter()
            .flat_map(|loss| (1..5).map(move |seed| (loss, seed)))
        {
            let mut path = Path::new(mbit, rtt, 100);
            path.loss_per_mille = loss;
            let mut simulation = Simulation::new(path);
            simulation.random = seed * 7919;
            let (share, _) = simulation.measure(5 * SECOND);
            assert!(simulation.estimator.estimate().is_losing);
            assert!(
                share >= share_min,
                "{mbit} Mbit/s, {rtt} ms, {loss} per mille lost, seed {seed}: used {share} per mille"
            );
        }
    }
}

#[test]
fn what_is_lost_below_the_rate_of_the_path_does_not_make_the_window_smaller() {
    let mut simulation = Simulation::new(Path::new(100, 40, 100));
    simulation.run_until(5 * SECOND);
    let window_bytes = simulation.estimator.window_bytes();
    simulation.is_cruising = true;
    simulation.path.buffered_bytes = window_bytes / 10 * 9;
    simulation.path.loss_per_mille = 50;
    simulation.path.jitter_nanos = MILLI;
    simulation.run_until(9 * SECOND);
    assert!(simulation.estimator.estimate().is_losing);
    assert_eq!(simulation.estimator.allowance.time(), ALLOWANCE);
    assert!(simulation.estimator.window_bytes() >= window_bytes / 10 * 9);
}

#[test]
fn what_a_startup_lost_is_no_noise_of_the_path() {
    let mut path = Path::new(100, 40, 0);
    path.buffer_nanos = 6 * MILLI;
    let mut simulation = Simulation::new(path);
    while !simulation.estimator.estimate().is_settled {
        simulation.run_until(simulation.now + MILLI);
    }
    let mut lost_bytes = 0;
    // All losses of the startup are noticed in that time.
    let until = simulation.now + 90 * MILLI;
    while simulation.now < until {
        simulation.run_until(simulation.now + MILLI);
        lost_bytes = lost_bytes.max(simulation.estimator.round.lost_bytes);
        assert!(
            !simulation.estimator.estimate().is_losing,
            "{}",
            simulation.now
        );
    }
    assert!(
        lost_bytes > 20 * PACKET,
        "the startup went beyond the buffer"
    );
}

#[test]
fn a_path_whose_buffer_shows_no_queue_is_not_flooded() {
    for buffer_micros in [300, 1000] {
        let mut path = Path::new(100, 40, 0);
        path.buffer_nanos = buffer_micros * MICRO;
        let mut simulation = Simulation::new(path);
        simulation.run_until(10 * SECOND);
        let (sent, delivered) = (simulation.sequence * PACKET, simulation.delivered);
        let (share, _) = simulation.measure(15 * SECOND);
        let sent = simulation.sequence * PACKET - sent;
        let lost = sent - (simulation.delivered - delivered);
        assert!(share >= 950, "used {share} per mille");
        assert!(lost * 1000 <= sent * 70, "{lost} of {sent} lost");
    }
}

#[test]
fn a_window_that_grew_in_vain_is_tried_again_soon_once_a_queue_was_seen() {
    let mut simulation = Simulation::new(Path::new(50, 200, 100));
    simulation.run_until(5 * SECOND);
    simulation.estimator.empty_rounds.set_patience_max();
    simulation.run_until(15 * SECOND);
    simulation.path.rate_bytes_per_second *= 4;
    simulation.run_until(20 * SECOND);
    let (share, _) = simulation.measure(5 * SECOND);
    assert!(share >= 900, "used {share} per mille");
}

#[test]
fn jitter_far_above_the_allowance_does_not_look_like_a_full_path() {
    for jitter in [10, 20, 40] {
        let mut path = Path::new(100, 40, 200);
        path.jitter_nanos = jitter * MILLI;
        check(path, 10 * SECOND, 800, 40_000);
    }
}

#[test]
fn bulk_that_pauses_now_and_then_fills_the_path_and_no_queue() {
    for pause_packets in [10, 100, 1000] {
        for (mbit, rtt) in [(20, 10), (100, 40), (200, 100)] {
            let mut path = Path::new(mbit, rtt, 100);
            path.pause_packets = pause_packets;
            check(path, 5 * SECOND, 900, 10_000);
        }
    }
}

#[test]
fn a_buffer_of_the_senders_own_makes_no_queue_that_stands() {
    for buffered_bytes in [600_000, 700_000, 900_000] {
        let mut path = Path::new(100, 40, 100);
        path.buffered_bytes = buffered_bytes;
        check(path, 5 * SECOND, 930, 10_000);
    }
}

#[test]
fn a_base_that_was_lost_behind_a_queue_is_found_by_one_drain() {
    let mut simulation = Simulation::new(Path::new(100, 40, 200));
    simulation.run_until(5 * SECOND);
    // A stranger's packets stand in the queue for so long that it looks like the path.
    simulation.path.rtt_nanos = 90 * MILLI;
    simulation.run_until(45 * SECOND);
    simulation.path.rtt_nanos = 40 * MILLI;
    simulation.link_free = simulation.now + 45 * MILLI;
    simulation.estimator.window_bytes *= 2;
    simulation.run_until(57 * SECOND);
    let (share, queue) = simulation.measure(5 * SECOND);
    assert!(
        share >= 930 && queue <= 10_000,
        "{share} per mille, {queue} us"
    );
}

#[test]
fn a_startup_that_ended_too_early_is_made_up_for_on_a_long_path() {
    let mut simulation = Simulation::new(Path::new(60, 200, 100));
    simulation.estimator.phase = Phase::Steady;
    simulation.estimator.window_bytes = 10 * PACKET;
    simulation.run_until(6 * SECOND);
    let (share, queue) = simulation.measure(5 * SECOND);
    assert!(share >= 900, "used {share} per mille");
    assert!(queue <= 30_000, "queue p99 {queue} us");
}

#[test]
fn capacity_steps_are_followed_down_within_a_second_and_up_within_three() {
    let mut simulation = Simulation::new(Path::new(200, 40, 100));
    simulation.run_until(5 * SECOND);
    simulation.path.rate_bytes_per_second = 50 * 125_000;
    simulation.run_until(6 * SECOND);
    let (share, queue) = simulation.measure(5 * SECOND);
    assert!(
        share >= 930 && queue <= 10_000,
        "down: {share} per mille, {queue} us"
    );
    simulation.path.rate_bytes_per_second = 200 * 125_000;
    simulation.run_until(14 * SECOND);
    let (share, queue) = simulation.measure(5 * SECOND);
    assert!(
        share >= 930 && queue <= 10_000,
        "up: {share} per mille, {queue} us"
    );
}

#[test]
fn a_longer_path_is_believed_after_the_old_base_is_forgotten() {
    let mut simulation = Simulation::new(Path::new(100, 20, 200));
    simulation.run_until(15 * SECOND);
    simulation.path.rtt_nanos = 60 * MILLI;
    simulation.run_until(45 * SECOND);
    let (share, queue) = simulation.measure(5 * SECOND);
    assert!(
        share >= 930 && queue <= 10_000,
        "{share} per mille, {queue} us"
    );
}

#[test]
fn a_path_that_becomes_longer_is_filled_again_soon() {
    // Mbit/s, milliseconds before and after.
    let paths = [
        (100, 20, 120),
        (100, 40, 60),
        (100, 20, 300),
        (10, 20, 100),
        (2, 20, 200),
        (500, 5, 40),
        (1000, 1, 10),
        (20, 100, 300),
        // Longer by less than a queue that is noticed by itself.
        (200, 20, 25),
        (100, 20, 26),
        (1000, 10, 15),
    ];
    for (mbit, before, after) in paths {
        let mut simulation = Simulation::new(Path::new(mbit, before, 200));
        simulation.run_until(15 * SECOND);
        simulation.path.rtt_nanos = after * MILLI;
        simulation.run_until(simulation.now + 20 * after * MILLI);
        let (share, queue) = simulation.measure(4 * SECOND);
        let base = simulation.estimator.estimate().base_rtt;
        let what = format!("{mbit} Mbit/s, {before} to {after} ms");
        assert!(share >= 930, "{what}: {share} per mille");
        // A queue of about 15 packets, where that is longer.
        let queue_max = 30_000.max(15 * PACKET * 8 / mbit);
        assert!(queue <= queue_max, "{what}: {queue} us");
        let exact = Duration::from_millis(after);
        assert!(
            (exact..exact + exact / 8).contains(&base),
            "{what}: {base:?}"
        );
    }
}

#[test]
fn an_interruption_that_is_noticed_piece_by_piece_leaves_a_quarter_of_what_the_path_holds() {
    let mut simulation = Simulation::new(Path::new(100, 40, 100));
    simulation.run_until(10 * SECOND);
    let before = simulation.estimator.window_bytes();
    for _ in 0..4 {
        let now = Instant::from_nanos(simulation.now);
        simulation.estimator.on_loss(now, now, before / 4, true);
    }
    let after = simulation.estimator.window_bytes();
    assert!(after >= before / 5, "{after} of {before}");
    assert!(after <= before / 3, "{after} of {before}");
}

#[test]
fn a_source_with_nothing_to_send_teaches_nothing() {
    let mut simulation = Simulation::new(Path::new(100, 40, 100));
    simulation.run_until(5 * SECOND);
    let before = simulation.estimator.estimate();
    for round in 0..100 {
        let now = 6 * SECOND + round * 50 * MILLI;
        simulation.estimator.on_ack(Ack {
            now: Instant::from_nanos(now),
            sent: Instant::from_nanos(now - 40 * MILLI),
            bytes: PACKET,
            is_app_limited: true,
            is_cruising: false,
        });
    }
    let after = simulation.estimator.estimate();
    assert_eq!(after.rate_bytes_per_second, before.rate_bytes_per_second);
    assert_eq!(after.window_bytes, before.window_bytes);
}

#[test]
fn a_word_now_and_then_is_told_to_be_neither_a_queue_nor_a_longer_path() {
    let at = Instant::from_nanos;
    let mut estimator = Estimator::new(PACKET, 10 * PACKET, at(0));
    let mut ack = |sent: u64, rtt_millis: u64| {
        estimator.on_ack(Ack {
            now: at(sent + rtt_millis * MILLI),
            sent: at(sent),
            bytes: 90,
            is_app_limited: true,
            is_cruising: false,
        });
        estimator.estimate()
    };
    ack(10 * MILLI, 1);
    for second in 1..60 {
        // Acknowledged late, for want of a second packet; now and then there are two.
        let after = ack(second * SECOND, 26);
        let after = if second % 7 == 0 {
            ack(second * SECOND + 30 * MILLI, 27)
        } else {
            after
        };
        let told = (after.told_base_rtt, after.told_queue);
        let expected = (Duration::from_millis(1), Duration::ZERO);
        assert_eq!(told, expected, "after {second} s");
        assert!(!after.is_known, "nothing has filled it");
    }
}

#[test]
fn losing_everything_begins_again_with_less() {
    let mut simulation = Simulation::new(Path::new(100, 40, 100));
    simulation.run_until(5 * SECOND);
    let before = simulation.estimator.window_bytes();
    let now = Instant::from_nanos(6 * SECOND);
    simulation.estimator.on_loss(now, now, before, true);
    assert!(simulation.estimator.window_bytes() <= before / 4 + PACKET);
    simulation.run_until(12 * SECOND);
    let (share, _) = simulation.measure(5 * SECOND);
    assert!(share >= 930, "used {share} per mille");
}

#[test]
fn a_loss_while_there_is_nothing_to_send_does_not_end_the_startup() {
    let at = Instant::from_nanos;
    let mut estimator = Estimator::new(PACKET, 10 * PACKET, at(0));
    let ack = |estimator: &mut Estimator, millis: u64, later_nanos, is_app_limited| {
        estimator.on_ack(Ack {
            now: at((millis + 200) * MILLI + later_nanos),
            sent: at(millis * MILLI),
            bytes: PACKET,
            is_app_limited,
            is_cruising: false,
        });
    };
    // The first packets were lost and retransmitted, as on a link that was cut just then.
    ack(&mut estimator, 10, 0, true);
    estimator.on_loss(at(400 * MILLI), at(100 * MILLI), 400, false);
    ack(&mut estimator, 410, 0, true);
    assert!(matches!(estimator.phase, Phase::Startup { .. }));
    // Then there is data: each round sends a window, and the window doubles, despite jitter.
    for round in 1..=6_u64 {
        let begins = 1000 + round * 250;
        for packet in 0..estimator.window_bytes() / PACKET {
            ack(&mut estimator, begins + packet / 100, 1200 * MICRO, false);
        }
    }
    let window_bytes = estimator.window_bytes();
    assert!(window_bytes >= 300 * PACKET, "{window_bytes} bytes");
}

#[test]
fn a_few_bytes_that_are_acknowledged_late_do_not_end_the_startup() {
    let at = Instant::from_nanos;
    let mut estimator = Estimator::new(PACKET, 10 * PACKET, at(0));
    let ack = |estimator: &mut Estimator, sent: u64, waited: u64, bytes, is_app_limited| {
        estimator.on_ack(Ack {
            now: at((sent + 200 + waited) * MILLI),
            sent: at(sent * MILLI),
            bytes,
            is_app_limited,
            is_cruising: false,
        });
    };
    ack(&mut estimator, 10, 0, PACKET, true);
    ack(&mut estimator, 300, 0, 100, true);
    // A message whose acknowledgement waited for the answer; by then there is more data than the
    // window.
    ack(&mut estimator, 510, 26, 90, false);
    assert!(matches!(estimator.phase, Phase::Startup { .. }));
    // On a path whose rate is known, such a round does not change the rate either.
    let mut simulation = Simulation::new(Path::new(100, 200, 100));
    simulation.run_until(5 * SECOND);
    ack(&mut simulation.estimator, 5600, 0, 90, true);
    let before = simulation.estimator.estimate();
    for round in 0..20 {
        ack(&mut simulation.estimator, 6000 + round * 300, 26, 90, false);
    }
    let after = simulation.estimator.estimate();
    assert_eq!(after.rate_bytes_per_second, before.rate_bytes_per_second);
    assert!(after.window_bytes >= before.window_bytes / 10 * 9);
}

#[test]
fn what_arrives_of_a_round_with_a_pause_in_it_is_not_the_path() {
    let mut simulation = Simulation::new(Path::new(100, 200, 100));
    simulation.run_until(5 * SECOND);
    let before = simulation.estimator.estimate();
    let mut ack = |sent: u64, is_app_limited| {
        simulation.estimator.on_ack(Ack {
            now: Instant::from_nanos((sent + 200) * MILLI),
            sent: Instant::from_nanos(sent * MILLI),
            bytes: 2 * PACKET,
            is_app_limited,
            is_cruising: false,
        });
    };
    // The sender runs dry for most of a round trip; when those packets arrive it has data again.
    for sent in 5_000..=5_200 {
        ack(sent, true);
    }
    for sent in 5_201..=5_400 {
        ack(sent, false);
    }
    let after = simulation.estimator.estimate();
    assert_eq!(after.rate_bytes_per_second, before.rate_bytes_per_second);
    assert!(after.window_bytes >= before.window_bytes / 10 * 9);
}

#[test]
fn an_interruption_is_not_a_slow_path() {
    let mut simulation = Simulation::new(Path::new(60, 40, 100));
    simulation.run_until(5 * SECOND);
    let before = simulation.estimator.estimate();
    // Nothing comes back for a second, and then everything at once.
    simulation.stall = (5 * SECOND, 6 * SECOND);
    simulation.run_until(6 * SECOND + 300 * MILLI);
    let after = simulation.estimator.estimate();
    let filled = per_second(
        after.filled_bytes - before.filled_bytes,
        after.filled_time - before.filled_time,
    );
    let path = simulation.path.rate_bytes_per_second;
    assert!(filled >= path / 10 * 9, "{filled} of {path} bytes a second");
    assert!(after.rate_bytes_per_second >= path / 10 * 9, "{after:?}");
}

#[test]
fn what_an_interruption_took_says_nothing_of_the_path() {
    let mut simulation = Simulation::new(Path::new(100, 200, 50));
    simulation.run_until(5 * SECOND);
    let before = simulation.estimator.estimate();
    // Everything in flight is lost.
    simulation.events.clear();
    simulation.in_flight = 0;
    simulation.now = 8 * SECOND;
    let at = |millis: u64| Instant::from_nanos(millis * MILLI);
    // An earlier packet had arrived, but its acknowledgement was lost. The probe's own
    // acknowledgement is not simulated.
    simulation.estimator.on_ack(Ack {
        now: at(8_000),
        sent: at(4_900),
        bytes: PACKET,
        is_app_limited: false,
        is_cruising: false,
    });
    let lost_bytes = before.window_bytes;
    let estimator = &mut simulation.estimator;
    estimator.on_loss(at(8_000), at(7_700), lost_bytes, false);
    assert_eq!(
        estimator.estimate().rate_bytes_per_second,
        before.rate_bytes_per_second
    );
    simulation.run_until(9_300 * MILLI);
    let (share, queue) = simulation.measure(SECOND);
    assert!(share >= 900, "used {share} per mille");
    assert!(queue <= 20_000, "queue p99 {queue} us");
}

#[test]
fn a_new_connection_over_a_known_path_begins_where_another_was() {
    let path = Path::new(100, 200, 50);
    let begin = |rtt_millis: u64| {
        let mut simulation = Simulation::new(path);
        simulation.run_until(210 * MILLI);
        let rtt = Duration::from_millis(rtt_millis);
        simulation.estimator.resume(path.rate_bytes_per_second, rtt);
        simulation.run_until(1_300 * MILLI);
        simulation.measure(SECOND)
    };
    let (share, queue) = begin(200);
    assert!(share >= 900, "used {share} per mille");
    assert!(queue <= 20_000, "queue p99 {queue} us");
    // A rate learnt over another path is ignored.
    let (share, _) = begin(60);
    assert!(share < 700, "used {share} per mille");
}
