//! Links whose place another one has taken: how long they stay, and how many of them.

use std::time::Duration;

use crate::handshake::{Joined, answer, begin, joined};
use crate::harness::{Door, echo, soon};
use quinn::{RecvStream, SendStream};
use tokio::net::UnixListener;
use tokio::time::sleep;
use towpath_protocol::channel::{Class, LinkId, Preamble, StreamId};

/// A stream of this number over a link; the region's service echoes.
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
        let closed = tokio::time::timeout(Duration::from_secs(3), link.urgent.closed()).await;
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

/// Its dialler may not have heard yet that the next one is taken.
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
