//! Data sent before a handshake completes (T13). Anyone can record and replay it, so none of it may
//! have an effect.

use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use rustls::server::ServerSessionMemoryCache;
use towpath_certs::{Rejections, tls};
use towpath_protocol::class::{Class, Leg};
use towpath_protocol::preamble::{LinkId, Preamble};
use towpath_protocol::version::VersionRange;

use crate::handshake::begin;
use crate::harness::peer::{answer, join, joined};
use crate::harness::{Door, metric, soon, until};

/// How long to wait for an answer to a replay before the next one.
const REPLAY_WAIT: Duration = Duration::from_millis(200);

/// Sessions that the helper keeps, and tickets that it issues.
const SESSION_COUNT: usize = 8;

/// A server with the region's certificate that accepts early data: its clients can send some later.
fn helper(door: &Door) -> Endpoint {
    let files = &door.config.certificates;
    let region = files.identity().unwrap();
    let mut crypto = tls::server_config(&region, &Arc::new(Rejections::default())).unwrap();
    crypto.max_early_data_size = u32::MAX;
    crypto.send_tls13_tickets = SESSION_COUNT;
    crypto.session_storage = ServerSessionMemoryCache::new(SESSION_COUNT);
    let crypto = QuicServerConfig::try_from(crypto).unwrap();
    let server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    Endpoint::server(server, "127.0.0.1:0".parse().unwrap()).unwrap()
}

/// Takes the helper's tickets: they have arrived once later data has.
async fn take_tickets(client: &quinn::ClientConfig, endpoint: &Endpoint, helper: &Endpoint) {
    let address = helper.local_addr().unwrap();
    let connecting = endpoint
        .connect_with(client.clone(), address, "towpath.invalid")
        .unwrap();
    let serving = async {
        let served = helper.accept().await.unwrap().await.unwrap();
        let (mut send, mut recv) = served.accept_bi().await.unwrap();
        recv.read_exact(&mut [0; 1]).await.unwrap();
        send.write_all(b"x").await.unwrap();
        served
    };
    let asking = async {
        let connection = connecting.await.unwrap();
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        send.write_all(b"x").await.unwrap();
        recv.read_exact(&mut [0; 1]).await.unwrap();
        connection
    };
    drop(soon(async { tokio::join!(serving, asking) }).await);
}

/// Forwards datagrams, and records those sent towards the tunnel.
fn recorder(to: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<Vec<u8>>>>) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let kept = Arc::new(Mutex::new(Vec::new()));
    let recorded = Arc::clone(&kept);
    std::thread::spawn(move || {
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let (mut buffer, mut client) = ([0; 65536], to);
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let datagram = &buffer[..length];
            if from == to {
                let _ = socket.send_to(datagram, client);
            } else {
                client = from;
                recorded.lock().unwrap().push(datagram.to_vec());
                let _ = socket.send_to(datagram, to);
            }
        }
    });
    (address, kept)
}

/// Sends everything that makes a link and opens a stream, before the handshake completes.
async fn say_early(connection: &Connection) -> Vec<(SendStream, RecvStream)> {
    let mut joining = join(connection, |join| {
        (join.link, join.leg) = (LinkId(9), Leg::Urgent);
    })
    .await;
    let (mut send, recv) = connection.open_bi().await.unwrap();
    send.write_all(&begin(Class::Demand).encode())
        .await
        .unwrap();
    let _ = joining.0.write_all(&[0xff; 64]).await;
    vec![joining, (send, recv)]
}

/// Checks that the tunnel answers after the handshake. Tickets would have arrived before its
/// answer.
async fn is_answered(connection: &Connection) {
    let unheard = VersionRange { min: 98, max: 99 };
    let (_send, mut recv) = join(connection, |join| join.versions = unheard).await;
    match answer(&mut recv).await {
        Preamble::Refused(fault) => assert!(fault.detail.contains("98..=99"), "{fault}"),
        other => panic!("{}", other.name()),
    }
}

/// The state that would have changed if any of the early data had been heard.
async fn heard(door: &Door) -> (Vec<u64>, usize, Option<String>) {
    let mut counts = Vec::new();
    for series in [
        "towpath_quic_incoming_dropped_total{reason=\"malformed\"}",
        "towpath_tls_rejected_total{reason=\"no_certificate\"}",
    ] {
        counts.push(metric(&door.config, series).await);
    }
    let status = door.region.status();
    let link = &status.links[0];
    (counts, status.channels.len(), link.host.clone())
}

/// Whether a datagram contains a packet of early data; packets after an Initial are found by its
/// length.
fn has_early_data(datagram: &[u8]) -> bool {
    let mut rest = datagram;
    while rest.len() > 7 && rest[0] & 0x80 != 0 {
        let kind = rest[0] >> 4 & 3;
        if kind == 1 {
            return true;
        }
        // Version, two connection IDs, and an Initial's token; then the length of the packet.
        let mut at = 5;
        for _ in 0..2 {
            at += 1 + usize::from(rest[at]);
        }
        if kind == 0 {
            let (token, bytes) = integer(&rest[at..]);
            at += bytes + token;
        }
        let (length, bytes) = integer(&rest[at..]);
        rest = rest.get(at + bytes + length..).unwrap_or_default();
    }
    false
}

/// A variable-length integer, and its length in bytes (RFC 9000 16).
fn integer(bytes: &[u8]) -> (usize, usize) {
    let length = 1 << (bytes[0] >> 6);
    let first = usize::from(bytes[0] & 0x3f);
    let value = bytes[1..length]
        .iter()
        .fold(first, |value, byte| value << 8 | usize::from(*byte));
    (value, length)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t13_recorded_early_data_is_refused_and_no_frame_of_it_is_parsed() {
    let door = Door::open().await;
    let mut client = door.client();
    client.enable_early_data = true;
    client.resumption = rustls::client::Resumption::in_memory_sessions(SESSION_COUNT);
    let client = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(client).unwrap()));
    let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let helper = helper(&door);
    take_tickets(&client, &endpoint, &helper).await;

    // If the tunnel issued tickets, its own would be used before the helper's.
    let connecting = endpoint
        .connect_with(client.clone(), door.address(), "towpath.invalid")
        .unwrap();
    let (connection, accepted) = connecting.into_0rtt().expect("a ticket");
    assert!(!soon(accepted).await, "another server's ticket was taken");
    is_answered(&connection).await;
    connection.close(0_u32.into(), b"");

    // With a ticket the client sends early data, and is told that it was rejected.
    let (address, recorded) = recorder(door.address());
    let before = heard(&door).await;
    let connecting = endpoint
        .connect_with(client.clone(), address, "towpath.invalid")
        .unwrap();
    let Ok((connection, accepted)) = connecting.into_0rtt() else {
        panic!("the client has no ticket");
    };
    let early = soon(say_early(&connection)).await;
    assert!(!soon(accepted).await, "early data was taken");
    drop(early);
    // The early data used the first stream; the answer is to what is sent on the first one now.
    is_answered(&connection).await;
    connection.close(0_u32.into(), b"");
    assert_eq!(heard(&door).await, before);

    // An attacker replays it.
    let flight: Vec<Vec<u8>> = recorded.lock().unwrap().clone();
    let early = flight.iter().position(|datagram| has_early_data(datagram));
    let flight = &flight[..=early.expect("early data was sent")];
    until(
        "a replay is answered as a handshake of which nothing follows",
        || {
            // While the tunnel remembers the first connection, the replay counts as a part of that
            // and is dropped.
            let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
            stranger.set_read_timeout(Some(REPLAY_WAIT)).unwrap();
            for datagram in flight {
                stranger.send_to(datagram, door.address()).unwrap();
            }
            stranger.recv(&mut [0; 2000]).is_ok()
        },
    )
    .await;
    assert_eq!(heard(&door).await, before);
    assert!(door.region.status().links[0].host.is_none());

    // The tunnel still works.
    let link = joined(&door, LinkId(7)).await;
    until("it is up", || door.region.status().links[0].host.is_some()).await;
    drop(link);
}
