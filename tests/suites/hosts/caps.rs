//! What caps, weights and timetables let onto the cable, by the kernel's counters.

use std::ops::RangeInclusive;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use towpath_protocol::class::Class;
use towpath_protocol::rate::Rate;
use towpath_tests::hosts::{CABLE, Flow, Host, Hosts, until};
use towpath_tunnel::config::Config;
use towpath_tunnel::shares::Share;

use super::GOOD;
use super::channels::spec;

/// A cap that any machine can use up, and a lower one.
const CAP: &str = "20Mbit";
const LOW_CAP: &str = "8Mbit";

/// The window over which a cap is checked: long enough that a packet more or less does not matter.
const WINDOW: Duration = Duration::from_secs(4);

/// The divisor for the allowed deviation on the wire, and for the most that is excused by a busy
/// machine.
const OFF_PART: u64 = 50;
const SHORT_PART: u64 = 5;

/// Bytes after which the start of a flow is over.
const START_BYTES: u64 = 1_000_000;

/// Bulk's share of the cap, in thousandths: three quarters, give or take a fiftieth.
const BULK_PER_THOUSAND: RangeInclusive<u64> = 735..=765;

/// Interval between readings of the clock.
const LOOK: Duration = Duration::from_millis(50);

/// How soon after its minute a cap changes.
const CHANGED: Duration = Duration::from_secs(2);

/// The port of a channel of class app.
const APP_DOOR: u16 = 7103;

fn rate(text: &str) -> Rate {
    text.parse().expect("a rate")
}

/// Turns segmentation offload off, so that packets are counted one by one as on a real wire.
fn count_packets(hosts: &Hosts) {
    hosts.ip(
        Host::Edge,
        &format!("link set dev {CABLE} gso_max_segs 1 gso_max_size 1500"),
    );
}

/// Checks that the bytes that leave the edge in the window match the cap.
fn check_cap(hosts: &Hosts, cap: &str) {
    let watch = hosts.watch();
    let [before, _] = hosts.wire_bytes(Host::Edge);
    let began = Instant::now();
    thread::sleep(WINDOW);
    let [after, _] = hosts.wire_bytes(Host::Edge);
    let expected = rate(cap).bytes_in(began.elapsed());
    let stolen = rate(cap).bytes_in(watch.stolen_so_far());
    let short = stolen.min(expected / SHORT_PART);
    let (bytes, off) = (after - before, expected / OFF_PART);
    println!("{cap}: {bytes} of {expected} bytes, {short} excused");
    let range = expected - off - short..=expected + off;
    assert!(range.contains(&bytes), "{bytes} bytes of {range:?}");
}

const MINUTE: u64 = 60;

/// Seconds needed for the checks before the caps change, including the setup.
const BEFORE_SECONDS: u64 = 20;

fn now() -> u64 {
    let now = SystemTime::UNIX_EPOCH.elapsed();
    now.expect("after 1970").as_secs()
}

/// A weekly timetable with another cap for half an hour from this time on.
fn week(change: u64) -> String {
    let time_of_day = |unix: u64| format!("{:02}:{:02}", unix / 3600 % 24, unix / 60 % 60);
    let (from, to) = (time_of_day(change), time_of_day(change + 30 * MINUTE));
    format!("{LOW_CAP} {from}-{to} daily, {CAP} otherwise")
}

/// Checks that bulk gets three quarters of the cap.
fn check_shares(flows: &[Flow; 2], check: impl FnOnce()) {
    let received = || [0, 1].map(|flow: usize| flows[flow].received());
    let before = received();
    check();
    let after = received();
    let [app, bulk] = [0, 1].map(|flow| after[flow] - before[flow]);
    let per_thousand = bulk * 1000 / (app + bulk);
    println!("bulk has {per_thousand} of a thousand");
    assert!(BULK_PER_THOUSAND.contains(&per_thousand), "{app} {bulk}");
}

#[test]
fn caps_and_weights_hold_on_the_cable_and_a_cap_is_another_at_its_minute() {
    // The next minute, unless too little of this one is left.
    let change = (now() + BEFORE_SECONDS).div_ceil(MINUTE) * MINUTE;
    let weight = |weight| Share {
        weight: Some(weight),
        ..Share::default()
    };
    let capped = |configs: &mut [Config; 2]| {
        let peer = &mut configs[0].peers[0];
        peer.send_timetable = Some(week(change).parse().expect("a timetable"));
        let shares = [(Class::App, weight(1)), (Class::Bulk, weight(3))];
        peer.shares.0.extend(shares);
    };
    let Some(hosts) = Hosts::start(GOOD, capped) else {
        return;
    };
    count_packets(&hosts);
    let app = spec("app", APP_DOOR, Host::Region, 1);
    hosts.open(&app).expect("a channel");
    let flows = [hosts.flow_through(APP_DOOR), hosts.flow_up()];
    until("the start is over", || {
        flows.iter().all(|flow| flow.received() > START_BYTES)
    });
    check_shares(&flows, || check_cap(&hosts, CAP));
    assert!(now() < change, "the machine was too slow for this minute");
    while now() < change {
        thread::sleep(LOOK);
    }
    let low = Some(rate(LOW_CAP).bits_per_second());
    let mut watch = hosts.watch();
    until("the cap is the other", || {
        hosts.link(Host::Edge).cap_bits_per_second == low
    });
    watch.at_most(CHANGED, "the cap is another");
    check_shares(&flows, || check_cap(&hosts, LOW_CAP));
}
