//! What programs on two hosts notice of trouble on the line between them: at most a pause.
//!
//! Real daemons in network namespaces of their own, with the link emulator between them.
#![allow(clippy::print_stdout, reason = "a test says what it does")]
#![forbid(unsafe_code)]

#[path = "hosts/caps.rs"]
mod caps;
#[path = "hosts/channels.rs"]
mod channels;

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime};

use towpath_certs::authority::LEAF_VALIDITY;
use towpath_certs::register::Reason;
use towpath_certs::renewal::{KeyChoice, LIST_VALIDITY, RevocationTarget};
use towpath_certs::{Authority, Validity};
use towpath_protocol::identity::HostIdentity;
use towpath_tests::hosts::{CABLE, Direction, Flow, Host, Hosts, Queue, SOME_BYTES, Side, until};
use towpath_tests::random::Random;
use towpath_tunnel::config::Config;
use towpath_tunnel::status::LinkState;

/// A line of 50 Mbit/s and 40 ms that loses one packet in a hundred.
const BAD: Direction = Direction {
    bits_per_second: Some(50_000_000),
    delay: Duration::from_millis(20),
    queue: Queue::Time(Duration::from_millis(50)),
    loss: 0.01,
};

/// A line of 50 Mbit/s and 20 ms without loss, on which times are measured.
const PLAIN: Direction = Direction {
    bits_per_second: Some(50_000_000),
    delay: Duration::from_millis(10),
    queue: Queue::Time(Duration::from_millis(50)),
    loss: 0.0,
};

/// A line without a rate limit.
const GOOD: Direction = Direction {
    bits_per_second: None,
    delay: Duration::from_millis(5),
    queue: Queue::Time(Duration::from_millis(50)),
    loss: 0.0,
};

/// Number of troubles in one run of the tests.
const TROUBLE_STEPS: u64 = 8;

/// How soon bytes flow again once they can.
const BACK: Duration = Duration::from_millis(400);

/// The longest pause when the kernel announces a changed address; detection by silence would take
/// longer.
const MOVED: Duration = Duration::from_millis(300);

/// After a new list: how soon a revoked host that dials is refused, and how soon one that is linked
/// is cut off.
const REFUSED: Duration = Duration::from_secs(1);
const CLOSED: Duration = Duration::from_secs(5);

/// Most bytes of a stream that are sent again when its connection is lost.
const TAIL_BYTES: u64 = 1 << 20;

/// Checks that flows in both directions, and datagrams of both kinds, go on.
fn all_goes_on(hosts: &Hosts, flows: &[Flow], whatever_happened: &str) {
    for flow in flows {
        flow.goes_on(whatever_happened);
    }
    // One that fits into a packet, and one that does not.
    for bytes in [1000, 20_000] {
        hosts.datagram(bytes);
    }
}

/// Waits until both sides have noticed that nothing passes.
fn until_paused(hosts: &Hosts) {
    for host in Host::PAIR {
        until("no link", || hosts.link(host).state == LinkState::Down);
        until("streams wait", || hosts.link(host).streams_paused >= 2);
    }
}

/// Checks that no stream was lost, and that little was sent again.
fn check_links(hosts: &Hosts) {
    for host in Host::PAIR {
        let link = hosts.link(host);
        assert_eq!(link.streams_lost, 0, "{host:?}");
        // A link that is replaced before it is lost costs its streams a tail each too.
        let most = (link.links_lost + 1) * 2 * TAIL_BYTES;
        assert!(link.resent_bytes <= most, "{host:?}: {link:?}");
    }
}

#[test]
fn bytes_flow_again_as_soon_as_a_line_or_a_cable_is_back() {
    let Some(hosts) = Hosts::start(PLAIN, |_| ()) else {
        return;
    };
    let control = hosts.control();
    let flows = [hosts.flow_up(), hosts.flow_down()];
    all_goes_on(&hosts, &flows, "the start");

    control.cut_both();
    until_paused(&hosts);
    // The addresses change with the first cut, so that only a new link gets through.
    hosts.back_within(BACK, &flows, "a cut", || {
        control.change_addresses();
        control.heal();
    });
    for host in Host::PAIR {
        let link = hosts.link(host);
        assert!(
            link.resent_bytes > 0,
            "bytes were on their way: {host:?}: {link:?}"
        );
    }

    control.cut(Side::B);
    until_paused(&hosts);
    let what = "a cut of one direction";
    hosts.back_within(BACK, &flows, what, || control.heal());

    for host in Host::PAIR {
        hosts.ip(host, &format!("link set {CABLE} down"));
        until_paused(&hosts);
        let what = format!("a cable that was pulled at the {}", host.name());
        hosts.back_within(BACK, &flows, &what, || {
            hosts.ip(host, &format!("link set {CABLE} up"));
        });
    }

    let far_end = Host::Edge.name();
    hosts.ip_of_line(&format!("link set {far_end} down"));
    until_paused(&hosts);
    let what = "a cable that was pulled at its other end";
    hosts.back_within(BACK, &flows, what, || {
        hosts.ip_of_line(&format!("link set {far_end} up"));
    });

    // Let everything settle before the pauses are measured.
    all_goes_on(&hosts, &flows, what);
    hosts.pauses_within(MOVED, &flows, "another address", || {
        hosts.ip(Host::Edge, &format!("addr del 10.77.0.1/24 dev {CABLE}"));
        hosts.ip(Host::Edge, &format!("addr add 10.77.0.3/24 dev {CABLE}"));
    });
    all_goes_on(&hosts, &flows, "another address");
    for flow in flows {
        assert!(flow.end() > 9 * SOME_BYTES);
    }
    check_links(&hosts);
}

#[test]
fn a_line_that_is_bad_rewired_and_shrunk_is_a_pause_to_programs() {
    let Some(hosts) = Hosts::start(BAD, |_| ()) else {
        return;
    };
    let control = hosts.control();
    let flows = [hosts.flow_up(), hosts.flow_down()];
    all_goes_on(&hosts, &flows, "loss");

    control.change_addresses();
    all_goes_on(&hosts, &flows, "a router that forgot");

    control.lose_above(1210);
    all_goes_on(&hosts, &flows, "a line that swallows large packets");
    control.lose_above(usize::MAX);

    // Here the host itself refuses what is too large for its cable.
    for (mtu, what) in [(1280, "a cable of small packets"), (1500, "large packets")] {
        hosts.set_mtu(mtu);
        all_goes_on(&hosts, &flows, what);
    }

    let slow = Direction {
        bits_per_second: Some(5_000_000),
        delay: Duration::from_millis(100),
        ..BAD
    };
    for (line, what) in [(slow, "a slower and longer line"), (GOOD, "a good line")] {
        hosts.set_line(line, line);
        all_goes_on(&hosts, &flows, what);
    }

    for flow in flows {
        assert!(flow.end() > 6 * SOME_BYTES);
    }
    check_links(&hosts);
}

/// Revokes certificates, if any are given, signs the next list, and copies it to both sites.
fn carry_list(folder: &Path, target: Option<&RevocationTarget>) {
    let ca = folder.join("ca");
    let authority = Authority::open(&ca).expect("the authority");
    let (reason, now) = (Reason::KeyCompromise, SystemTime::now());
    let signed = match target {
        Some(target) => authority.revoke(target, reason, LIST_VALIDITY, now),
        None => authority.sign_next_list(LIST_VALIDITY, now),
    };
    signed.expect("a list");
    for site in ["edge", "region"] {
        let list = folder.join(site).join("crl.pem");
        let new = list.with_extension("new");
        fs::copy(ca.join("crl.pem"), &new).expect("a list to carry");
        fs::rename(&new, &list).expect("whole or not at all");
    }
}

/// Gives both sites an empty list.
fn listed(configs: &mut [Config; 2]) {
    let ca = configs[0].certificates.ca.clone();
    let folder = ca.ancestors().nth(2).expect("the sites' folder");
    carry_list(folder, None);
    for config in configs {
        config.certificates.crl = Some(config.certificates.ca.with_file_name("crl.pem"));
    }
}

/// Revokes the edge and copies the list to both sites.
fn revoke_edge(hosts: &Hosts) {
    let edge = "spiffe://bench.example/site/edge/host/box-1";
    let edge = RevocationTarget::Host(HostIdentity::from_uri(edge).expect("a host"));
    carry_list(hosts.folder(), Some(&edge));
}

/// Waits until the edge has received the reason.
fn until_told(hosts: &Hosts) {
    until("the edge hears why", || {
        let link = hosts.link(Host::Edge);
        link.state == LinkState::Down && link.reason.contains("revoked")
    });
}

#[test]
fn a_revoked_host_that_dials_is_refused() {
    let Some(hosts) = Hosts::start(PLAIN, listed) else {
        return;
    };
    let flows = [hosts.flow_up(), hosts.flow_down()];
    all_goes_on(&hosts, &flows, "the start");
    hosts.control().cut_both();
    until_paused(&hosts);
    revoke_edge(&hosts);
    let mut watch = hosts.watch();
    hosts.control().heal();
    until_told(&hosts);
    watch.at_most(REFUSED, "a revoked host is refused");
    assert_eq!(hosts.link(Host::Region).state, LinkState::Down);
    until("programs hear of it", || flows.iter().all(Flow::is_broken));
}

#[test]
fn certificates_are_renewed_under_load_and_a_revoked_host_is_out() {
    let Some(hosts) = Hosts::start(PLAIN, listed) else {
        return;
    };
    let flows = [hosts.flow_up(), hosts.flow_down()];
    all_goes_on(&hosts, &flows, "the start");
    let authority = Authority::open(&hosts.folder().join("ca")).expect("the authority");
    let until_before = hosts
        .link(Host::Edge)
        .peer_certificate_not_after_unix_seconds;
    for (host, site) in [(Host::Region, "region"), (Host::Edge, "edge")] {
        let validity =
            Validity::lasting(LEAF_VALIDITY - Duration::from_secs(3600), SystemTime::now());
        authority
            .renew(&hosts.folder().join(site), KeyChoice::New, validity, None)
            .expect("a new certificate");
        hosts.reload(host);
        all_goes_on(&hosts, &flows, "a new certificate");
    }
    for host in Host::PAIR {
        let link = hosts.link(host);
        assert_eq!((link.links_lost, link.resent_bytes), (0, 0), "{host:?}");
    }
    // Only a new handshake sees the new certificate.
    let control = hosts.control();
    control.cut_both();
    until_paused(&hosts);
    control.change_addresses();
    control.heal();
    all_goes_on(&hosts, &flows, "a cut");
    let until_now = hosts
        .link(Host::Edge)
        .peer_certificate_not_after_unix_seconds;
    assert!(until_now < until_before, "{until_now:?} {until_before:?}");

    revoke_edge(&hosts);
    let mut watch = hosts.watch();
    until("the region sends the edge away", || {
        hosts.link(Host::Region).state == LinkState::Down
    });
    watch.at_most(CLOSED, "the link of a revoked host is closed");
    until_told(&hosts);
    let streams = || hosts.link(Host::Region).streams;
    until("its streams are cut", || streams() == 0);
    until("programs hear of it", || flows.iter().all(Flow::is_broken));
}

/// A random line, within what a tunnel is made for.
fn any_line(random: &mut Random) -> Direction {
    Direction {
        bits_per_second: Some(random.pick(&[2_000_000, 10_000_000, 50_000_000, 300_000_000])),
        delay: Duration::from_millis(random.pick(&[1, 10, 40, 100])),
        queue: Queue::Time(Duration::from_millis(random.pick(&[50, 100, 300]))),
        loss: random.pick(&[0.0, 0.0, 0.01, 0.03]),
    }
}

/// Does something to the line, waits until it has had its effect, and returns a description.
fn trouble(hosts: &Hosts, random: &mut Random) -> String {
    let control = hosts.control();
    match random.below(8) {
        0 => {
            let pause = Duration::from_millis(random.between(50, 4000));
            control.cut_both();
            thread::sleep(pause);
            control.heal();
            format!("a cut of {pause:?}")
        }
        1 => {
            let side = random.pick(&[Side::A, Side::B]);
            let pause = Duration::from_millis(random.between(50, 4000));
            control.cut(side);
            thread::sleep(pause);
            control.heal();
            format!("a cut of {side:?} for {pause:?}")
        }
        2 => {
            control.change_addresses();
            "a router that forgot".to_owned()
        }
        3 => {
            let most = random.pick(&[1210, 1300, 1400, usize::MAX]);
            control.lose_above(most);
            format!("packets of {most} bytes at most")
        }
        4 => {
            let host = random.pick(&Host::PAIR);
            let pause = Duration::from_millis(random.between(50, 4000));
            hosts.stop_for(host, pause);
            format!("a daemon of the {host:?} that stood still for {pause:?}")
        }
        5 => {
            hosts.ip(Host::Edge, &format!("link set {CABLE} down"));
            hosts.ip(Host::Edge, &format!("link set {CABLE} up"));
            "a cable that was pulled".to_owned()
        }
        _ => {
            let (out, back) = (any_line(random), any_line(random));
            hosts.set_line(out, back);
            format!("lines {out:?} and {back:?}")
        }
    }
}

/// Programs go on whatever happens to the line, in whatever order. `TOWPATH_HOSTS_SEED` and
/// `TOWPATH_HOSTS_STEPS` select another run, or a longer one.
#[test]
fn flows_go_on_after_any_trouble() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seed = number("TOWPATH_HOSTS_SEED").unwrap_or(1);
    let steps = number("TOWPATH_HOSTS_STEPS").unwrap_or(TROUBLE_STEPS);
    let Some(hosts) = Hosts::start(GOOD, |_| ()) else {
        return;
    };
    let flows = [hosts.flow_up(), hosts.flow_down()];
    all_goes_on(&hosts, &flows, "the start");
    let mut random = Random::new(seed);
    for step in 0..steps {
        let what = trouble(&hosts, &mut random);
        println!("{step}: {what}");
        all_goes_on(
            &hosts,
            &flows,
            &format!("{what}, step {step} of seed {seed}"),
        );
    }
    hosts.control().lose_above(usize::MAX);
    hosts.set_line(GOOD, GOOD);
    for flow in flows {
        assert!(flow.end() > steps * SOME_BYTES);
    }
    for host in Host::PAIR {
        assert_eq!(hosts.link(host).streams_lost, 0, "{host:?}");
    }
}
