//! What a tunnel holds for peers that are silent, and for links and connections that are over.

use std::net::UdpSocket;
use std::time::Duration;

use quinn::{Connection, ConnectionError};
use towpath_protocol::class::Class;
use towpath_protocol::preamble::{Begin, LinkId, Open, Preamble, StreamId};
use towpath_tunnel::Tunnel;
use towpath_tunnel::config::PeerConfig;

use crate::harness::peer::{answer, join, joined};
use crate::harness::raw::{self, frame};
use crate::harness::{Door, World, name, soon, until};
use crate::{MEMORY, resident_bytes};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_that_do_not_answer_cost_little_memory() {
    /// So long that attempts have ended, and others have begun in their place.
    const DIALLING: Duration = Duration::from_secs(8);
    let _alone = MEMORY.write().await;
    let world = World::new();
    let mut config = world.site("edge", "site-0");
    let silent = [(); 10].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
    let peers = silent.iter().enumerate().map(|(number, socket)| {
        let mut peer = PeerConfig::new(name(&format!("site-{number}")));
        peer.address = Some(socket.local_addr().unwrap().to_string());
        peer
    });
    config.peers = peers.collect();
    let before = resident_bytes();
    let _tunnel = Tunnel::start(&config).await.unwrap();
    tokio::time::sleep(DIALLING).await;
    let grown = resident_bytes().saturating_sub(before);
    println!("{} KiB more memory", grown / 1024);
    assert!(grown <= 64 << 20, "{grown} bytes more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t06_links_that_are_over_hold_no_windows() {
    const FIRST_LINKS: u16 = 6;
    const LINKS: u16 = 18;
    /// A link that is over takes memory for some 200 ms more, while its connections drain: with this
    /// pause, three at once, however fast the machine is. The first links fill what all later ones
    /// use again.
    const PAUSE: Duration = Duration::from_millis(100);
    /// Bytes that each link brings for a program that does not read.
    const WINDOW_BYTES: usize = 6 << 20;
    /// A third of what the links after the first ones bring.
    const MOST_BYTES: u64 = (WINDOW_BYTES as u64) * (LINKS - FIRST_LINKS) as u64 / 3;
    let _alone = MEMORY.write().await;
    let door = Door::open().await;
    let service = tokio::net::UnixListener::bind(&door.config.services[0].socket).unwrap();
    let mut programs = Vec::new();
    let chunk = vec![7; WINDOW_BYTES];
    let mut before = 0;
    for number in 1..=LINKS {
        let link = joined(&door, LinkId(number.into())).await;
        let (mut send, mut recv) = link.bulk.open_bi().await.unwrap();
        let begin = Preamble::Begin(Begin {
            stream: StreamId(number.into()),
            open: Open {
                peer: name("region"),
                service: name("echo"),
                class: Class::Bulk,
            },
            is_datagrams: false,
        });
        send.write_all(&begin.encode()).await.unwrap();
        let (program, _) = service.accept().await.unwrap();
        programs.push(program);
        assert!(matches!(answer(&mut recv).await, Preamble::Opened(_)));
        // The last of it is in once all is acknowledged.
        send.write_all(&chunk).await.unwrap();
        send.finish().unwrap();
        send.stopped().await.unwrap();
        let one = u64::from(number);
        until("the stream is there", || {
            door.region.status().links[0].streams >= one
        })
        .await;
        link.urgent.close(6_u32.into(), b"a test");
        link.bulk.close(6_u32.into(), b"a test");
        until("the link is over", || {
            door.region.status().links[0].host.is_none()
        })
        .await;
        tokio::time::sleep(PAUSE).await;
        if number == FIRST_LINKS {
            before = resident_bytes();
        }
    }
    let grown = resident_bytes().saturating_sub(before);
    println!("{} KiB more memory", grown / 1024);
    assert!(grown <= MOST_BYTES, "{grown} bytes more");
    // Each stream lives, and waits for a link.
    assert_eq!(door.region.status().links[0].streams, u64::from(LINKS));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t03_a_connection_that_its_first_packet_closes_is_over_soon() {
    /// As long as packets may be on their way, and a little more.
    const DRAINED: Duration = Duration::from_secs(5);
    let _beside_others = MEMORY.read().await;
    let door = Door::open().await;
    let (address, socket) = (door.address(), UdpSocket::bind("127.0.0.1:0").unwrap());
    for number in 0..8_u8 {
        let close = match number % 2 {
            0 => frame::close(),
            _ => frame::close_as_application(),
        };
        let datagram = raw::initial(&[number; 8], &[9; 8], close);
        socket.send_to(&datagram, address).unwrap();
    }
    tokio::time::sleep(DRAINED).await;
    door.region.stop().await;
    // The endpoint has its port for as long as it has a connection.
    until("the port is free", || UdpSocket::bind(address).is_ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t03_connections_of_one_host_that_say_nothing_are_few() {
    /// Connections of one host that may have come to no link yet.
    const FEW: usize = 16;
    let _beside_others = MEMORY.read().await;
    let door = Door::patient().await;
    let mut connections = Vec::new();
    for _ in 0..40 {
        connections.push(door.connect(door.client()).await.unwrap());
    }
    let closed = || {
        let reasons = connections.iter().map(Connection::close_reason);
        reasons.flatten().collect::<Vec<_>>()
    };
    until("most are closed", || {
        closed().len() >= connections.len() - FEW
    })
    .await;
    let reasons = closed();
    assert_eq!(reasons.len(), connections.len() - FEW, "{reasons:?}");
    let is_told = |reason: &ConnectionError| reason.to_string().contains("have come to no link");
    assert!(reasons.iter().all(is_told), "{reasons:?}");
    // Those that end give their places back.
    for connection in &connections {
        connection.close(0_u32.into(), b"a test");
    }
    let link = async {
        loop {
            let connection = door.connect(door.client()).await.unwrap();
            let (_send, mut recv) = join(&connection, |_| ()).await;
            let brief = Duration::from_millis(200);
            let refused = tokio::time::timeout(brief, connection.closed()).await;
            if refused.is_err() {
                drop(recv.stop(0_u32.into()));
                return;
            }
        }
    };
    soon(link).await;
}
