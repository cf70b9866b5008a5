//! Tests of single decisions, and of bulk over a simulated bottleneck in virtual time.

mod simulated;

use super::*;
use crate::path::estimate::Marked;

const MICRO: u64 = 1_000;
const MILLI: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;

/// Bytes of a full packet, and of its frame on the wire.
const PACKET: u64 = 1452;
const FRAME: u64 = 1514;

fn at(millis: u64) -> Instant {
    Instant::from_nanos(millis * MILLI)
}

/// 200 Mbit/s over a millisecond, full for `filled_millis`, with a queue of `queue_micros`.
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

/// Sends pieces for `millis`, with sleeps up to `late_micros` too long; returns the bytes.
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

/// A round that began at `began_millis` and saw a queue of `queue_micros`.
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
    // The time of one full packet does not count as a queue.
    assert!(pause.abs_diff(Duration::from_micros(1500 - 58)) < Duration::from_micros(1));
}

#[test]
fn bulk_leaves_room_for_what_is_urgent() {
    let mut cruise = cruising();
    let mut looking = Cruise::new();
    looking.look(at(1000), &estimate(0, 0));
    let mut sent = 0;
    // Urgent packets of a kilobyte take half of the path; while looking, bulk got the other half.
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
    // The path carries 25 MB/s, and the wire is kept at 98 % of that.
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

/// Pushes whose last packets took longer by these times than the packets before them.
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
    // After the pause it sends no more than without the push.
    let after = more + send(&mut pushing, 2017, 4, 0);
    let without = plain + send(&mut cruise, 2017, 4, 0);
    assert!(after <= without + 6 * 2_816, "{after} {without}");
}
