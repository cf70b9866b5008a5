//! Tests of flows and of the room for waiting datagrams.

use super::*;

fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

#[test]
fn the_source_that_is_silent_longest_makes_room() {
    let mut sources = Sources::new();
    let mut flows: Vec<_> = (1..=3)
        .map(|port| sources.add(address(port), Bytes::new()))
        .collect();
    assert!(!sources.make_room());
    assert_eq!(sources.mailboxes.len(), 3, "none is silent for long");
    for (port, seconds) in [(1, 30), (2, 20), (3, 10)] {
        let mailbox = sources.mailboxes.get_mut(&address(port)).unwrap();
        mailbox.seen.began -= Duration::from_secs(seconds);
    }
    // The third source sends again.
    assert_eq!(sources.hand(address(3), &Bytes::new()), Some(true));
    // The second's flow has ended by itself.
    flows.remove(1);
    assert!(sources.make_room());
    let left: Vec<_> = sources.mailboxes.keys().copied().collect();
    assert_eq!(left, [address(3)]);
    assert!(!sources.make_room());
    assert_eq!(sources.mailboxes.len(), 1);
}

/// Drains these flows' queues and counts the bytes.
fn taken(flows: &mut [mpsc::Receiver<Waiting>]) -> usize {
    let mut bytes = 0;
    for flow in flows {
        while let Ok(waiting) = flow.try_recv() {
            bytes += waiting.bytes.len();
        }
    }
    bytes
}

#[test]
fn l08_what_waits_in_a_flow_and_in_all_of_a_listener_is_bounded_by_its_bytes() {
    let mut sources = Sources::new();
    let large = Bytes::from(vec![0; 60_000]);
    let (mut flows, mut lost) = (Vec::new(), 0);
    for port in 1..=256 {
        match sources.add(address(port), large.clone()) {
            Some((heard, _)) => flows.push(heard),
            None => lost += 1,
        }
        for _ in 1..WAITING_MAX {
            lost += usize::from(sources.hand(address(port), &large) != Some(true));
        }
    }
    let all = 256 * WAITING_MAX * large.len();
    assert!(
        flows.len() >= 8,
        "one source fills no listener: {}",
        flows.len()
    );
    let first = taken(&mut flows[..1]);
    assert!(
        (WAITING_BYTES_MAX - 60_000..=WAITING_BYTES_MAX).contains(&first),
        "{first}"
    );
    let rest = taken(&mut flows[1..]);
    let most = LISTENER_BYTES_MAX + 256 * OWN_BYTES_MAX;
    assert!(first + rest <= most, "{first} + {rest}");
    assert_eq!(first + rest, all - lost * large.len(), "the rest is lost");
    // Draining makes room for as many small datagrams as before.
    let small = Bytes::from(vec![0; 1400]);
    for _ in 0..WAITING_MAX {
        assert_eq!(sources.hand(address(1), &small), Some(true));
    }
}

#[test]
fn l08_a_few_full_flows_leave_the_others_room_for_what_is_small() {
    let mut sources = Sources::new();
    let [large, small] = [60_000, 1000].map(|bytes| Bytes::from(vec![0; bytes]));
    let mut flows = Vec::new();
    flows.extend(sources.add(address(1), small.clone()));
    for port in 2..=20 {
        flows.extend(sources.add(address(port), large.clone()));
        while sources.hand(address(port), &large) == Some(true) {}
    }
    assert!(!sources.has_room(&large));
    let rest = sources.room.0.available_permits();
    let _rest = sources.room.take(rest).expect("nobody else takes of it");
    assert!(sources.add(address(21), large.clone()).is_none());
    // One existing source and one new one.
    assert!(sources.has_room(&small));
    flows.extend(sources.add(address(22), small.clone()));
    for port in [1, 22] {
        for _ in 1..OWN_BYTES_MAX / small.len() {
            assert_eq!(sources.hand(address(port), &small), Some(true), "{port}");
        }
        assert_eq!(sources.hand(address(port), &small), Some(false), "{port}");
    }
}

#[test]
fn a_flow_of_a_question_or_two_ends_soon_where_streams_are_few() {
    for (out, back, idle_max) in [
        (1, 0, BRIEF_IDLE_MAX),
        (2, 0, BRIEF_IDLE_MAX),
        (1, 1, BRIEF_IDLE_MAX),
        (2, 2, BRIEF_IDLE_MAX),
        (1, 2, IDLE_MAX),
        (3, 0, IDLE_MAX),
        (3, 3, IDLE_MAX),
    ] {
        let passed = Passed { out, back };
        assert_eq!(passed.idle_max(true), idle_max, "{out} {back}");
        assert_eq!(passed.idle_max(false), IDLE_MAX, "{out} {back}");
    }
}

#[test]
fn con_5_a_datagram_reaches_its_flow_and_no_other() {
    let flows = DatagramFlows::default();
    let flow = |number: u128| flows.register(StreamId(number << 64));
    let (mut one, mut two) = (flow(1), flow(2));
    let datagram = |number: u64| Bytes::from([&number.to_le_bytes()[..], b"hello"].concat());
    flows.deliver(datagram(2));
    flows.deliver(datagram(3));
    flows.deliver(Bytes::from_static(b"short"));
    assert!(one.heard.try_recv().is_err());
    assert_eq!(two.heard.try_recv().unwrap(), "hello");
    assert!(two.heard.try_recv().is_err());
    for _ in 0..2 * WAITING_MAX {
        flows.deliver(datagram(1));
    }
    assert_eq!(one.heard.len(), WAITING_MAX, "the rest is lost");
    drop(one);
    assert_eq!(flows.flows().len(), 1);
}

#[tokio::test]
async fn a_flow_may_end_within_a_datagram() {
    let (ours, mut theirs) = tokio::io::duplex(PIPE_BYTES);
    let (read, _write) = tokio::io::split(ours);
    theirs.write_all(&[3, 0, 1, 2, 3, 100, 0, 1]).await.unwrap();
    drop(theirs);
    let (whole, mut heard) = mpsc::channel(WAITING_MAX);
    read_framed(read, whole).await;
    assert_eq!(heard.recv().await.unwrap(), &[1, 2, 3][..]);
    assert_eq!(heard.recv().await, None);
}

#[tokio::test]
async fn the_largest_datagram_of_ipv6_is_heard_whole() {
    // Skipped on a host without IPv6.
    let Ok(service) = UdpSocket::bind("[::1]:0").await else {
        return;
    };
    let address = service.local_addr().unwrap();
    let mut side = Connected::to(address).await.unwrap();
    side.hand(b"question");
    let mut question = [0; 8];
    let (_, from) = service.recv_from(&mut question).await.unwrap();
    let answer: Vec<u8> = (0..=250).cycle().take(65_527).collect();
    assert_eq!(
        service.send_to(&answer, from).await.unwrap(),
        answer.len(),
        "IPv6 carries it"
    );
    let heard = side.next().await.unwrap().unwrap().bytes;
    assert!(heard == answer, "{} of {}", heard.len(), answer.len());
}
