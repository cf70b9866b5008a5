//! Channels between hosts: the path of their bytes, how they end, and how their metadata affects
//! them.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use towpath_protocol::class::Class;
use towpath_protocol::endpoint::Endpoint;
use towpath_protocol::fault::Code;
use towpath_tests::hosts::{Host, Hosts, other_is_peer, until};
use towpath_tunnel::channels::ChannelSpec;
use towpath_tunnel::status::LinkState;

use super::{PLAIN, until_paused};

/// Ports on which the channels listen.
const DOORS: [u16; 2] = [7101, 7102];

/// A channel to the service `up` of a site.
pub(super) fn spec(name: &str, door: u16, peer: Host, generation: u64) -> ChannelSpec {
    let listen = Endpoint::Tcp(([127, 0, 0, 1], door).into());
    let [name, peer, service] = [name, peer.name(), "up"].map(|name| name.parse().expect("a name"));
    let mut spec = ChannelSpec::new(name, listen, (peer, service), Class::App);
    spec.generation = generation;
    spec
}

/// Hosts with two edges that are linked to each other and to the region.
fn linked_edges() -> Option<Hosts> {
    let mut hosts = Hosts::start(PLAIN, other_is_peer)?;
    hosts.start_other();
    until("the edges are linked", || {
        hosts.link(Host::Other).state == LinkState::Healthy
    });
    Some(hosts)
}

/// Sends bytes and waits until they have come back.
fn echo(socket: &mut TcpStream, bytes: usize) {
    socket.write_all(&vec![7; bytes]).expect("it is heard");
    let mut heard = vec![0; bytes];
    socket.read_exact(&mut heard).expect("it comes back");
    assert!(heard.iter().all(|byte| *byte == 7));
}

fn ends(socket: &mut TcpStream) -> ErrorKind {
    match socket.read(&mut [0]) {
        Ok(count) => panic!("{count} bytes, where a reset was due"),
        Err(error) => error.kind(),
    }
}

/// Bytes echoed between the edges, in parts; and the most that the region may see meanwhile, which
/// only keeps its link alive.
const ECHOED_BYTES: usize = 2_000_000;
const PART_BYTES: usize = 100_000;
const KEPT_BYTES: u64 = 100_000;

#[test]
fn con_3_edges_talk_directly_and_the_region_carries_nothing() {
    let Some(hosts) = linked_edges() else {
        return;
    };
    hosts.serve(Host::Other, b"");
    let till = spec("till", DOORS[0], Host::Other, 1);
    hosts.open(&till).expect("a channel");
    let mut socket = hosts.connect(DOORS[0]).expect("a connection");
    echo(&mut socket, 1);
    let before = hosts.wire_bytes(Host::Region);
    for _ in 0..ECHOED_BYTES / PART_BYTES {
        echo(&mut socket, PART_BYTES);
    }
    let mut fastest = Duration::MAX;
    for _ in 0..20 {
        let asked = Instant::now();
        echo(&mut socket, 1);
        fastest = fastest.min(asked.elapsed());
    }
    // Through the region it would be two round trips.
    let round_trip = PLAIN.delay * 2;
    assert!(fastest < round_trip * 3 / 2, "{fastest:?}: a detour");
    let after = hosts.wire_bytes(Host::Region);
    for (after, before) in after.into_iter().zip(before) {
        let bytes = after - before;
        assert!(bytes < KEPT_BYTES, "{bytes} bytes went by the region");
    }
}

#[test]
fn half_closes_and_resets_pass() {
    let Some(hosts) = Hosts::start(PLAIN, |_| ()) else {
        return;
    };
    let till = spec("till", DOORS[0], Host::Region, 1);
    hosts.open(&till).expect("a channel");
    let service = hosts.listen(Host::Region);
    let mut near = hosts.connect(DOORS[0]).expect("a connection");
    let (mut far, _) = service.accept().expect("it comes through");
    near.write_all(b"asked").expect("it is heard");
    near.shutdown(Shutdown::Write).expect("half a connection");
    let mut heard = String::new();
    far.read_to_string(&mut heard)
        .expect("bytes and their end come");
    assert_eq!(heard, "asked");
    // The other direction goes on.
    far.write_all(b"answered").expect("it is heard");
    drop(far);
    heard.clear();
    near.read_to_string(&mut heard)
        .expect("bytes and their end come");
    assert_eq!(heard, "answered");
    for is_near in [true, false] {
        let near = hosts.connect(DOORS[0]).expect("a connection");
        let (far, _) = service.accept().expect("it comes through");
        let [mut left, mut leaving] = if is_near { [near, far] } else { [far, near] };
        leaving.write_all(b"!").expect("it is heard");
        left.read_exact(&mut [0]).expect("it comes through");
        left.write_all(b"?").expect("it is heard");
        leaving.peek(&mut [0]).expect("it comes through");
        // It is closed with a byte unread, which causes a reset.
        drop(leaving);
        assert_eq!(ends(&mut left), ErrorKind::ConnectionReset, "{is_near}");
    }
}

#[test]
fn con_6_removal_tears_a_channel_down_and_leaves_the_other() {
    let Some(hosts) = Hosts::start(PLAIN, |_| ()) else {
        return;
    };
    hosts.serve(Host::Region, b"");
    let mut sockets = Vec::new();
    for (name, door) in ["one", "two"].into_iter().zip(DOORS) {
        let spec = spec(name, door, Host::Region, 1);
        hosts.open(&spec).expect("a channel");
        let mut socket = hosts.connect(door).expect("a connection");
        echo(&mut socket, 1000);
        sockets.push(socket);
    }
    hosts.close("one", 1).expect("it is removed");
    assert_eq!(ends(&mut sockets[0]), ErrorKind::ConnectionReset);
    until("nobody listens", || hosts.connect(DOORS[0]).is_err());
    echo(&mut sockets[1], 1000);
    let again = |generation| hosts.open(&spec("one", DOORS[0], Host::Region, generation));
    assert_eq!(again(1).expect_err("it is old").code, Code::State.as_str());
    again(2).expect("a channel");
    echo(&mut hosts.connect(DOORS[0]).expect("a connection"), 1000);
}

/// Lifetime of a channel without its pusher, and how late it may end.
const LIFE_SECONDS: u64 = 12;
const LATE_SECONDS: u64 = 3;

#[test]
fn con_7_a_channel_carries_on_without_its_pusher_until_it_expires() {
    let Some(hosts) = Hosts::start(PLAIN, |_| ()) else {
        return;
    };
    hosts.serve(Host::Region, b"");
    let now = || SystemTime::UNIX_EPOCH.elapsed().expect("after 1970");
    let end = now().as_secs() + LIFE_SECONDS;
    let mut brief = spec("till", DOORS[0], Host::Region, 1);
    brief.expires_unix_seconds = Some(end);
    hosts.open(&brief).expect("a channel");
    // The pusher does not renew it from here on.
    let mut socket = hosts.connect(DOORS[0]).expect("a connection");
    let _second = hosts.connect(DOORS[0]).expect("a connection");
    echo(&mut socket, 1000);
    hosts.control().cut_both();
    until_paused(&hosts);
    hosts.control().heal();
    echo(&mut socket, 1000);
    assert!(now().as_secs() < end, "the cut outlasted the channel");
    assert_eq!(ends(&mut socket), ErrorKind::ConnectionReset);
    let ended = now().as_secs();
    assert!(
        (end..=end + LATE_SECONDS).contains(&ended),
        "{ended}, not {end}"
    );
    until("nobody listens", || hosts.connect(DOORS[0]).is_err());
}

/// The word that a service sends to a client.
fn call(hosts: &Hosts) -> String {
    let mut word = [0; 5];
    let called = hosts.connect(DOORS[0]).and_then(|mut socket| {
        socket.read_exact(&mut word)?;
        Ok(String::from_utf8_lossy(&word).into_owned())
    });
    called.unwrap_or_else(|error| error.to_string())
}

#[test]
fn con_8_a_new_generation_moves_traffic_to_another_host_without_a_gap() {
    let Some(hosts) = linked_edges() else {
        return;
    };
    hosts.serve(Host::Region, b"first");
    hosts.serve(Host::Other, b"other");
    let at = |peer, generation| hosts.open(&spec("till", DOORS[0], peer, generation));
    at(Host::Region, 1).expect("a channel");
    assert_eq!(call(&hosts), "first");
    let mut old = hosts.connect(DOORS[0]).expect("a connection");
    old.read_exact(&mut [0; 5]).expect("its word");
    let is_over = AtomicBool::new(false);
    let heard = thread::scope(|scope| {
        let calling = scope.spawn(|| {
            let mut heard = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                heard.push(call(&hosts));
            }
            heard
        });
        let moved = at(Host::Other, 2);
        until("the new one is heard", || call(&hosts) == "other");
        is_over.store(true, Ordering::Relaxed);
        moved.expect("a channel that moves");
        calling.join().expect("it only calls")
    });
    // No client was refused, and none reached the old service after the new one.
    let moved = heard.iter().position(|word| word == "other");
    let (first, other) = heard.split_at(moved.unwrap_or(heard.len()));
    let all_say = |calls: &[String], word: &str| calls.iter().all(|said| said == word);
    assert!(
        all_say(first, "first") && all_say(other, "other"),
        "{heard:?}"
    );
    echo(&mut old, 1000);
    let stale = at(Host::Region, 1).expect_err("it is old");
    assert_eq!(stale.code, Code::State.as_str());
    assert_eq!(call(&hosts), "other");
}
