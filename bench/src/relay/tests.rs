//! The relay with real sockets. Rates and delays are measured, so other load on the machine may
//! lengthen a delay but never shorten it.

use super::*;
use std::net::UdpSocket;
use std::time::Instant;

const LOOPBACK: &str = "127.0.0.1:0";

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind(LOOPBACK).unwrap();
    let patience = Some(Duration::from_secs(5));
    socket.set_read_timeout(patience).unwrap();
    rustix::net::sockopt::set_socket_recv_buffer_size(&socket, 4 << 20).unwrap();
    socket
}

/// A client on side A, a server on side B, and the relay between them.
fn link(bits_per_second: u64, round_trip: Duration) -> (UdpSocket, UdpSocket, Relay) {
    let server = socket();
    let door = Door {
        from: Side::A,
        listen: LOOPBACK.parse().unwrap(),
        to: server.local_addr().unwrap(),
    };
    let options = Options::symmetric(vec![door], bits_per_second, round_trip);
    let relay = Relay::start(&options).unwrap();
    let client = socket();
    client.connect(relay.doors()[0]).unwrap();
    (client, server, relay)
}

/// Waits until the counters of a direction meet a condition.
fn wait_for(control: &Control, side: Side, what: impl Fn(Counters) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !what(control.counters(side)) {
        assert!(Instant::now() < deadline, "{:?}", control.counters(side));
        std::thread::yield_now();
    }
}

#[test]
fn a_datagram_takes_the_delay_each_way_and_answers_come_back() {
    let (client, server, relay) = link(1_000_000_000, Duration::from_millis(40));
    let mut buffer = [0; 64];
    let mut fastest = Duration::MAX;
    for number in 0..10u8 {
        let start = Instant::now();
        client.send(&[number]).unwrap();
        let (count, from) = server.recv_from(&mut buffer).unwrap();
        let one_way = start.elapsed();
        server.send_to(&buffer[..count], from).unwrap();
        client.recv(&mut buffer).unwrap();
        assert_eq!(buffer[0], number);
        assert!(one_way >= Duration::from_millis(20), "{one_way:?}");
        assert!(start.elapsed() >= Duration::from_millis(40));
        fastest = fastest.min(start.elapsed());
    }
    assert!(fastest < Duration::from_millis(45), "{fastest:?}");
    drop(relay);
}

#[test]
fn the_rate_is_kept_within_two_percent_and_order_is_kept() {
    const RATE: u64 = 20_000_000;
    let (client, server, relay) = link(RATE, Duration::from_millis(2));
    let mut direction = Direction {
        bits_per_second: Some(RATE),
        delay: Duration::from_millis(1),
        queue: Queue::Bytes(4 << 20),
        loss: 0.0,
    };
    relay.control().set(Side::A, direction).unwrap();
    // Other load on the machine may delay this thread's last datagram, so the best of several runs
    // counts. No run can be too fast.
    let ratios: Vec<f64> = (0..5)
        .map(|_| burst_time_ratio(&client, &server, RATE))
        .collect();
    assert!(ratios.iter().all(|ratio| *ratio >= 1.0), "{ratios:?}");
    assert!(ratios.iter().any(|ratio| *ratio < 1.02), "{ratios:?}");
    direction.bits_per_second = Some(0);
    assert!(relay.control().set(Side::A, direction).is_err());
}

/// Sends a burst, checks its order, and returns its time as a multiple of what rate and delay
/// require.
fn burst_time_ratio(client: &UdpSocket, server: &UdpSocket, rate: u64) -> f64 {
    const COUNT: u32 = 300;
    let start = Instant::now();
    let mut datagram = [0; 1222];
    for number in 0..COUNT {
        datagram[..4].copy_from_slice(&number.to_le_bytes());
        client.send(&datagram).unwrap();
    }
    for number in 0..COUNT {
        server.recv(&mut datagram).unwrap();
        assert_eq!(datagram[..4], number.to_le_bytes());
    }
    let wire_bytes = (datagram.len() as u64 + HEADER_BYTES) * u64::from(COUNT);
    let expected = Duration::from_nanos(wire_bytes * 8_000_000_000 / rate);
    (start.elapsed() - Duration::from_millis(1)).as_secs_f64() / expected.as_secs_f64()
}

#[test]
fn flows_share_the_bottleneck_and_get_their_own_answers() {
    let (first, server, relay) = link(8_000_000, Duration::ZERO);
    let second = socket();
    second.connect(relay.doors()[0]).unwrap();
    let start = Instant::now();
    let payload = [7; 972];
    for _ in 0..20 {
        first.send(&payload).unwrap();
        second.send(&payload).unwrap();
    }
    let mut buffer = [0; 2000];
    let mut sources = Vec::new();
    for _ in 0..40 {
        sources.push(server.recv_from(&mut buffer).unwrap().1);
    }
    // 40 datagrams of 1000 bytes, at 1 byte per microsecond.
    assert!(
        start.elapsed() >= Duration::from_millis(39),
        "{:?}",
        start.elapsed()
    );
    sources.sort_unstable();
    sources.dedup();
    assert_eq!(sources.len(), 2, "each client has an address of its own");
    for source in &sources {
        server
            .send_to(source.to_string().as_bytes(), source)
            .unwrap();
    }
    let heard: Vec<_> = [&first, &second]
        .map(|client| {
            let count = client.recv(&mut buffer).unwrap();
            String::from_utf8_lossy(&buffer[..count]).into_owned()
        })
        .into();
    assert_ne!(heard[0], heard[1]);
}

#[test]
fn a_cut_in_one_direction_leaves_the_other_and_heals() {
    let (client, server, relay) = link(1_000_000_000, Duration::ZERO);
    let control = relay.control();
    let mut buffer = [0; 64];
    client.send(b"before").unwrap();
    let (_, from) = server.recv_from(&mut buffer).unwrap();
    control.cut(Side::A);
    wait_for(&control, Side::A, |_| {
        client.send(b"lost").unwrap();
        control.counters(Side::A).cut_count > 0
    });
    server.send_to(b"back", from).unwrap();
    assert_eq!(client.recv(&mut buffer).unwrap(), 4);
    control.heal();
    wait_for(&control, Side::A, |counters| {
        client.send(b"after").unwrap();
        counters.delivered_count > 1
    });
    let count = server.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..count], b"after");
}

#[test]
fn both_sides_may_dial_through_doors_of_their_own() {
    let (a, b) = (socket(), socket());
    let listen = LOOPBACK.parse().unwrap();
    let doors = vec![
        Door {
            from: Side::A,
            listen,
            to: b.local_addr().unwrap(),
        },
        Door {
            from: Side::B,
            listen,
            to: a.local_addr().unwrap(),
        },
    ];
    let relay = Relay::start(&Options::symmetric(doors, 1 << 30, Duration::ZERO)).unwrap();
    let mut buffer = [0; 64];
    a.send_to(b"to b", relay.doors()[0]).unwrap();
    b.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..4], b"to b");
    b.send_to(b"to a", relay.doors()[1]).unwrap();
    a.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..4], b"to a");
    wait_for(&relay.control(), Side::B, |counters| {
        counters.delivered_count == 1 && counters.delivered_bytes == 4 + HEADER_BYTES
    });
}

#[test]
fn a_relay_ends_with_its_handle_and_frees_its_doors() {
    let (_client, _server, relay) = link(1_000_000, Duration::ZERO);
    let door = relay.doors()[0];
    drop(relay);
    UdpSocket::bind(door).unwrap();
}
