//! Links that have been replaced by newer ones: how long they are kept, and how many.

use std::time::Duration;

use crate::handshake::begin;
use crate::harness::peer::{Joined, answer, answer_if_any, joined};
use crate::harness::{Door, echo, open, soon};
use quinn::{Connection, RecvStream, SendStream};
use tokio::net::{UdpSocket, UnixListener};
use tokio::time::{sleep, timeout};
use towpath_protocol::class::Class;
use towpath_protocol::identity::HostIdentity;
use towpath_protocol::preamble::{LinkId, Preamble, Received, Resume, StreamId};

/// Longer than a tunnel takes to dial once it has a reason to.
const QUIET: Duration = Duration::from_millis(1500);

/// A stream with this number over a link; the region's service echoes.
async fn stream(link: &Joined, number: u128) -> (SendStream, RecvStream) {
    let (mut send, mut recv) = soon(link.urgent.open_bi()).await.unwrap();
    let Preamble::Begin(mut words) = begin(Class::Demand) else {
        panic!("no Begin");
    };
    words.stream = StreamId(number);
    let words = Preamble::Begin(words).encode();
    send.write_all(&words).await.unwrap();
    let opened = answer(&mut recv).await;
    assert!(matches!(opened, Preamble::Opened(_)), "{}", opened.name());
    (send, recv)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t06_a_peer_that_dials_again_and_again_has_two_links_beside_the_newest() {
    let door = Door::open().await;
    let echo = echo(UnixListener::bind(&door.config.services[0].socket).unwrap());
    let mut links = Vec::new();
    for number in 1..=5 {
        let link = joined(&door, LinkId(number)).await;
        let stream = stream(&link, number).await;
        links.push((link, stream));
    }
    for (link, _) in &links[..2] {
        let closed = timeout(Duration::from_secs(3), link.urgent.closed()).await;
        let closed = closed.expect("the oldest go").to_string();
        assert!(closed.contains("taken its place"), "{closed}");
    }
    for (link, (send, recv)) in &mut links[2..] {
        send.write_all(b"ping").await.unwrap();
        let mut heard = [0; 4];
        soon(recv.read_exact(&mut heard)).await.unwrap();
        assert!(link.bulk.close_reason().is_none());
    }
    echo.abort();
}

/// The dialler may not have heard yet that the newer link is accepted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_without_streams_is_there_for_a_while_after_the_next_one() {
    let door = Door::open().await;
    let first = joined(&door, LinkId(7)).await;
    let second = joined(&door, LinkId(8)).await;
    sleep(Duration::from_millis(500)).await;
    assert!(first.urgent.close_reason().is_none());
    soon(first.urgent.closed()).await;
    assert!(second.urgent.close_reason().is_none());
}

/// Accepts a connection's stream on which the region asks to resume, and returns it.
async fn resumed(connection: &Connection) -> (SendStream, RecvStream) {
    let (send, mut recv) = soon(connection.accept_bi()).await.unwrap();
    let asked = answer(&mut recv).await;
    assert!(matches!(asked, Preamble::Resume(_)), "{}", asked.name());
    (send, recv)
}

/// It is random which of two events the region notices first: the end of the link it asks over, or
/// the older link back in its place. So the test repeats, with and without a reset instead of an
/// answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_asks_over_a_link_whose_dialler_lets_go_of_it_goes_on_over_the_one_before() {
    let door = Door::open().await;
    let first = joined(&door, LinkId(1)).await;
    let socket = door.config.socket.clone();
    let opening = tokio::spawn(async move { open(&socket, "edge", "echo", Class::Demand).await });
    let (mut send, mut recv) = soon(first.urgent.accept_bi()).await.unwrap();
    let begun = answer(&mut recv).await;
    assert!(matches!(begun, Preamble::Begin(_)), "{}", begun.name());
    let edge = "spiffe://shop.example/site/edge/host/box-1";
    let opened = Preamble::Opened(HostIdentity::from_uri(edge).unwrap());
    send.write_all(&opened.encode()).await.unwrap();
    let _local = soon(opening).await.unwrap().unwrap();
    let mut carriers = vec![(send, recv)];
    for number in 2..14 {
        let second = joined(&door, LinkId(number)).await;
        let (mut asked, _words) = resumed(&second.urgent).await;
        if number % 2 == 0 {
            // The link survives for a moment, but has carried no answer.
            asked.reset(0_u32.into()).unwrap();
        }
        second.bulk.close(0_u32.into(), b"");
        let (mut send, recv) = resumed(&first.urgent).await;
        let resumed = Preamble::Resumed(Received::default());
        send.write_all(&resumed.encode()).await.unwrap();
        carriers.push((send, recv));
    }
    let link = &door.region.status().links[0];
    assert_eq!((link.streams_lost, link.links_lost), (0, 0));
}

/// Resumes a stream over a link, as the side that began it.
async fn ask(link: &Joined, number: u128, received: Received) -> (SendStream, RecvStream) {
    let (mut send, recv) = soon(link.urgent.open_bi()).await.unwrap();
    let resume = Preamble::Resume(Resume {
        stream: StreamId(number),
        received,
    });
    send.write_all(&resume.encode()).await.unwrap();
    (send, recv)
}

/// A message sent over a slow path arrives long after the stream has moved to a faster one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_has_gone_on_over_a_newer_link_is_not_taken_back_by_a_late_word_on_an_older_one()
 {
    let door = Door::open().await;
    let echo = echo(UnixListener::bind(&door.config.services[0].socket).unwrap());
    let first = joined(&door, LinkId(1)).await;
    let _older = stream(&first, 1).await;
    let second = joined(&door, LinkId(2)).await;
    let (mut send, mut recv) = ask(&second, 1, Received::default()).await;
    let went_on = answer(&mut recv).await;
    assert!(
        matches!(went_on, Preamble::Resumed(_)),
        "{}",
        went_on.name()
    );
    let mut heard = [0; 4];
    for turn in 0..2 {
        send.write_all(b"ping").await.unwrap();
        soon(recv.read_exact(&mut heard)).await.unwrap();
        assert_eq!(&heard, b"ping");
        if turn == 0 {
            let (_late, mut answered) = ask(&first, 1, Received::default()).await;
            let reset = soon(answered.read_to_end(1000)).await;
            assert!(reset.is_err(), "it is answered: {reset:?}");
        }
    }
    // When the newer link is lost, the older one is back in its place and carries the stream.
    for connection in [&second.urgent, &second.bulk] {
        connection.close(0_u32.into(), b"");
    }
    let heard = Received {
        bytes: 8,
        is_ended: false,
    };
    let (mut send, mut recv) = loop {
        let (send, mut recv) = ask(&first, 1, heard).await;
        if let Some(Preamble::Resumed(theirs)) = answer_if_any(&mut recv).await {
            assert_eq!(theirs, heard);
            break (send, recv);
        }
        sleep(Duration::from_millis(20)).await;
    };
    send.write_all(b"ping").await.unwrap();
    soon(recv.read_exact(&mut [0; 4])).await.unwrap();
    echo.abort();
}

/// Only the dialler may replace the lost newer link: a link from this side would be refused for
/// ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_back_in_its_place_is_not_dialled_anew_by_the_side_that_did_not_dial() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let door = Door::open_with(|config| config.peers[0].address = Some(address)).await;
    let echo = echo(UnixListener::bind(&door.config.services[0].socket).unwrap());
    let first = joined(&door, LinkId(1)).await;
    // It is kept while it carries a stream.
    let _carried = stream(&first, 1).await;
    let second = joined(&door, LinkId(2)).await;
    // Dial attempts from before the first link end with it.
    while timeout(QUIET, silent.recv(&mut [0; 2000])).await.is_ok() {}
    for connection in [&second.urgent, &second.bulk] {
        connection.close(0_u32.into(), b"");
    }
    let dialled = timeout(QUIET, silent.recv(&mut [0; 2000])).await;
    assert!(dialled.is_err(), "it dials beside a link that is well");
    assert!(first.urgent.close_reason().is_none());
    assert_eq!(door.region.status().links[0].links_lost, 0);
    echo.abort();
}
