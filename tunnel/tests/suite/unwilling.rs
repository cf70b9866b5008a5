//! Peers that have a link but do not cooperate: they refuse messages, end carriers, or read
//! nothing.

use std::sync::Arc;
use std::time::Duration;

use crate::handshake::begin;
use crate::harness::peer::{Joined, answer, answer_if_any, closed_with, joined, joined_with};
use crate::harness::{Door, World, accept, metric, open, soon, waited};
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Connection, ReadError, RecvStream, SendStream, TransportConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Instant, sleep, timeout_at};
use towpath_certs::{Identity, Rejections, tls};
use towpath_daemon::units::Span;
use towpath_protocol::class::Class;
use towpath_protocol::fault::Code;
use towpath_protocol::identity::HostIdentity;
use towpath_protocol::preamble::{
    LINK_VERSIONS, LinkId, Preamble, Received, Resume, RunId, StreamId,
};
use towpath_tunnel::Tunnel;

/// The answer of a peer that accepts a stream.
fn opened() -> Preamble {
    Preamble::Opened(HostIdentity {
        trust_domain: "shop.example".parse().unwrap(),
        site: "edge".parse().unwrap(),
        host: "box-1".parse().unwrap(),
    })
}

/// The next stream that the region begins, with its preamble.
async fn begun(connection: &Connection) -> (SendStream, RecvStream, Preamble) {
    let (send, mut recv) = soon(connection.accept_bi()).await.unwrap();
    let said = answer(&mut recv).await;
    (send, recv, said)
}

/// A stream from a program of the region to a service of the peer, which the test plays.
async fn asked(
    door: &Door,
    connection: &Connection,
    class: Class,
) -> (UnixStream, (SendStream, RecvStream)) {
    let taking = async {
        let (mut send, recv, said) = begun(connection).await;
        assert!(matches!(said, Preamble::Begin(_)), "{}", said.name());
        send.write_all(&opened().encode()).await.unwrap();
        (send, recv)
    };
    let opening = open(&door.config.socket, "edge", "till", class);
    let (local, taken) = tokio::join!(opening, taking);
    (local.unwrap(), taken)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t16_a_peer_that_refuses_the_links_own_words_loses_it() {
    let door = Door::open().await;
    let mut link = joined(&door, LinkId(7)).await;
    link.control[0].1.stop(0_u32.into()).unwrap();
    closed_with(&link.urgent, "own words").await;
    soon(link.bulk.closed()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t16_a_peer_that_ends_its_own_words_loses_the_link() {
    let door = Door::open().await;
    let ways: [fn(&mut SendStream); 2] = [
        |send| send.finish().unwrap(),
        |send| send.reset(0_u32.into()).unwrap(),
    ];
    for (number, end) in (7..).zip(ways) {
        let mut link = joined(&door, LinkId(number)).await;
        end(&mut link.control[0].0);
        closed_with(&link.urgent, "own words").await;
        soon(link.bulk.closed()).await;
    }
}

/// How often within two seconds the region tries to resume a stream when it is told each time to
/// stop.
async fn resumes(link: &Joined) -> u32 {
    let until = Instant::now() + Duration::from_secs(2);
    let mut count = 0;
    while let Ok(asking) = timeout_at(until, link.urgent.accept_bi()).await {
        let (mut send, mut recv) = asking.unwrap();
        // A stream that has ended withdraws its request.
        let Some(said) = answer_if_any(&mut recv).await else {
            continue;
        };
        assert!(matches!(said, Preamble::Resume(_)), "{}", said.name());
        let goes_on = Preamble::Resumed(Received::default());
        let _ = send.write_all(&goes_on.encode()).await;
        let _ = recv.stop(0_u32.into());
        // Resets with the code for a stream that continues elsewhere.
        let _ = send.reset(64_u32.into());
        count += 1;
    }
    count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t16_a_peer_that_ends_each_carrier_of_a_stream_is_asked_less_and_less_often() {
    let door = Door::open().await;
    let link = joined(&door, LinkId(7)).await;
    let (mut local, (_send, mut recv)) = asked(&door, &link.urgent, Class::App).await;
    local.write_all(&[7; 100_000]).await.unwrap();
    recv.stop(0_u32.into()).unwrap();
    let count = resumes(&link).await;
    assert!((1..=10).contains(&count), "{count} times");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t16_a_stream_whose_carriers_carry_nothing_ends_with_the_outage() {
    let brief = Span::new(Duration::from_secs(1));
    let door = Door::open_with(|config| config.limits.outage_wait = brief).await;
    let link = joined(&door, LinkId(7)).await;
    let (mut local, (_send, mut recv)) = asked(&door, &link.urgent, Class::App).await;
    local.write_all(&[7; 100_000]).await.unwrap();
    recv.stop(0_u32.into()).unwrap();
    let ended = async { while local.read(&mut [0; 100]).await.is_ok_and(|count| count > 0) {} };
    let asking = async { while resumes(&link).await > 0 {} };
    soon(async { tokio::join!(ended, asking) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t16_a_peer_that_goes_on_again_and_again_is_answered_less_and_less_often() {
    let door = Door::open().await;
    let service = UnixListener::bind(&door.config.services[0].socket).unwrap();
    let link = joined(&door, LinkId(7)).await;
    let (mut send, mut recv) = link.urgent.open_bi().await.unwrap();
    let words = begin(Class::App).encode();
    send.write_all(&words).await.unwrap();
    let opening = async { tokio::join!(answer(&mut recv), accept(&service)) };
    let (said, (_, mut remote)) = soon(opening).await;
    assert!(matches!(said, Preamble::Opened(_)), "{}", said.name());
    remote.write_all(&[7; 100_000]).await.unwrap();
    let until = Instant::now() + Duration::from_secs(2);
    let mut count = 0;
    let asking = async {
        loop {
            let resume = Resume {
                stream: StreamId(7),
                received: Received::default(),
            };
            (send, recv) = link.urgent.open_bi().await.unwrap();
            let words = Preamble::Resume(resume).encode();
            send.write_all(&words).await.unwrap();
            let said = answer(&mut recv).await;
            assert!(matches!(said, Preamble::Resumed(_)), "{}", said.name());
            count += 1;
        }
    };
    timeout_at(until, asking).await.unwrap_err();
    assert!((1..=10).contains(&count), "{count} times");
}

/// The reset of a stream may arrive before its preamble, because they take different paths.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_was_never_opened_is_given_up_for_good() {
    let door = Door::open().await;
    let first = joined(&door, LinkId(7)).await;
    let socket = door.config.socket.clone();
    let asking = tokio::spawn(async move { open(&socket, "edge", "till", Class::Bulk).await });
    let (_send, mut recv, said) = begun(&first.bulk).await;
    assert!(matches!(said, Preamble::Begin(_)), "{}", said.name());
    // It is requested over the next link, and the earlier request is withdrawn.
    let second = joined(&door, LinkId(8)).await;
    let (mut taking, _recv, _) = begun(&second.bulk).await;
    let Err(ReadError::Reset(code)) = soon(recv.read(&mut [0; 8])).await else {
        panic!("it is not given up");
    };
    // 1 is `E_GONE`; with 64 the stream would continue elsewhere.
    assert_eq!(code.into_inner(), 1);
    taking.write_all(&opened().encode()).await.unwrap();
    soon(asking).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t05_first_words_that_drip_end_the_link_before_they_are_whole() {
    const WAIT: Duration = Duration::from_millis(600);
    let door = Door::open_with(|config| config.limits.preamble_wait = Span::new(WAIT)).await;
    let link = joined(&door, LinkId(7)).await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(link.urgent.open_bi().await.unwrap());
    }
    // They never complete: at this pace the preamble takes half a minute.
    let dripping = async {
        for byte in begin(Class::App).encode() {
            for (send, _) in &mut streams {
                // Streams already refused are checked below.
                let _ = send.write_all(&[byte]).await;
            }
            sleep(WAIT / 3).await;
        }
    };
    tokio::select! {
        () = dripping => panic!("the words may take for ever"),
        () = closed_with(&link.urgent, "first words") => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t05_a_program_that_drips_its_first_words_is_refused_before_they_are_whole() {
    const WAIT: Duration = Duration::from_millis(600);
    let door = Door::open_with(|config| config.limits.preamble_wait = Span::new(WAIT)).await;
    let local = UnixStream::connect(&door.config.socket).await.unwrap();
    let (mut read, mut write) = local.into_split();
    let Preamble::Begin(words) = begin(Class::App) else {
        panic!("no Begin");
    };
    let dripping = async {
        for byte in Preamble::Open(words.open).encode() {
            let _ = write.write_all(&[byte]).await;
            sleep(WAIT / 3).await;
        }
    };
    let mut answer = Vec::new();
    tokio::select! {
        () = dripping => panic!("the words may take for ever"),
        read = soon(read.read_to_end(&mut answer)) => drop(read.unwrap()),
    }
    let Ok(Preamble::Refused(fault)) = Preamble::decode(&answer) else {
        panic!("{answer:?}");
    };
    assert_eq!(fault.code, Code::Stalled);
}

/// Here the peer has no timeout at all: the sending side's ends the stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t17_a_stream_that_a_peer_never_reads_ends_at_the_side_that_sends() {
    const STALL: Duration = Duration::from_secs(1);
    let door = Door::open_with(|config| config.limits.stall_wait = Span::new(STALL)).await;
    let how = || {
        let mut transport = TransportConfig::default();
        // Room for the preamble.
        transport.stream_receive_window(400_u32.into());
        transport
    };
    let link = joined_with(&door, LinkId(7), how).await;
    let (mut local, (_send, mut recv)) = asked(&door, &link.bulk, Class::Bulk).await;
    let (began, waited_before) = (Instant::now(), waited());
    let mut taken = 0;
    let writing = async {
        let chunk = [7; 64 * 1024];
        while local.write_all(&chunk).await.is_ok() {
            taken += chunk.len();
        }
    };
    soon(writing).await;
    let took = began.elapsed();
    // It never reads, except to learn how the stream ended.
    let ended = async {
        loop {
            match recv.read(&mut [0; 1000]).await {
                Ok(Some(_)) => {}
                ended => break ended,
            }
        }
    };
    let Err(ReadError::Reset(code)) = soon(ended).await else {
        panic!("it looks whole");
    };
    // 3 is `E_STALLED`.
    assert_eq!(code.into_inner(), 3);
    assert!(taken <= 48 << 20, "{taken} bytes were taken");
    let busy = waited().saturating_sub(waited_before);
    assert!(took >= STALL && took <= 3 * STALL + busy, "{took:?}");
    // The link itself survives.
    assert_eq!(link.urgent.close_reason(), None);
}

/// Answers both connections of every link that is joined, and closes them at once.
async fn takes_and_closes(endpoint: quinn::Endpoint) {
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else {
                return;
            };
            let Ok((mut send, mut recv)) = connection.accept_bi().await else {
                return;
            };
            answer_if_any(&mut recv).await;
            let joined = Preamble::Joined(towpath_protocol::preamble::Joined {
                version: LINK_VERSIONS.max,
                receive_rate_max: None,
                run: RunId(5),
            });
            let _ = send.write_all(&joined.encode()).await;
            sleep(Duration::from_millis(30)).await;
            connection.close(0_u32.into(), b"");
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_takes_links_and_closes_them_is_dialled_ever_less_often() {
    let world = World::new();
    let files = world.issue("region");
    let region = Identity::load(&files.paths()).unwrap();
    let crypto = tls::server_config(&region, &Arc::new(Rejections::default())).unwrap();
    let crypto = QuicServerConfig::try_from(crypto).unwrap();
    let server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    let endpoint = quinn::Endpoint::server(server, "127.0.0.1:0".parse().unwrap()).unwrap();
    let mut config = world.site("edge", "region");
    config.peers[0].address = Some(endpoint.local_addr().unwrap().to_string());
    let closing = tokio::spawn(takes_and_closes(endpoint));
    let edge = Tunnel::start(&config).await.unwrap();
    sleep(Duration::from_secs(5)).await;
    let dials = metric(&config, "towpath_tunnel_dials_total{cause=\"clock\"").await;
    assert!((4..=15).contains(&dials), "{dials} dials");
    assert!(edge.status().links[0].links_lost > 0, "it took none");
    closing.abort();
}
