//! What a bad peer can take of a tunnel with default limits.

use std::time::Duration;

use crate::harness::peer::{Joined, answer, joined};
use crate::harness::{Door, accept, echo, name, soon};
use quinn::{Connection, RecvStream, SendStream};
use tokio::net::UnixListener;
use tokio::time::timeout;
use towpath_protocol::class::Class;
use towpath_protocol::preamble::{Begin, LinkId, Open, Preamble, StreamId};
use towpath_tunnel::config::Limits;

/// Most unread bytes that are kept of a peer's connection, and additional bytes that sockets and
/// carriers have taken of each stream.
const UNREAD_BYTES: u64 = 24 << 20;
const TAKEN_BYTES_MAX: u64 = 256 << 10;

/// Streams that a peer may have open on a connection. QUIC announces new ones only once more than
/// an eighth have ended, so it has to allow that many more.
const STREAM_COUNT: usize = 64;

/// If nothing happens for this long, nothing more will.
const STILL: Duration = Duration::from_millis(500);

/// Opens a stream to the region's service, which has accepted it then.
async fn begin(connection: &Connection, number: u128, class: Class) -> (SendStream, RecvStream) {
    let (mut send, mut recv) = soon(connection.open_bi()).await.unwrap();
    let begin = Preamble::Begin(Begin {
        stream: StreamId(number << 64 | 7),
        open: Open {
            peer: name("region"),
            service: name("echo"),
            class,
        },
        is_datagrams: false,
    });
    send.write_all(&begin.encode()).await.unwrap();
    assert!(matches!(answer(&mut recv).await, Preamble::Opened(_)));
    (send, recv)
}

/// A link to a tunnel with default limits.
async fn link(door: &Door) -> Joined {
    assert_eq!(door.config.limits, Limits::default());
    joined(door, LinkId(7)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t06_streams_that_nobody_reads_take_twenty_four_mebibytes_of_a_tunnel() {
    const STREAMS: u64 = 4;
    let door = Door::open().await;
    let service = UnixListener::bind(&door.config.services[0].socket).unwrap();
    let link = link(&door).await;
    let (mut kept, mut taken) = (Vec::new(), 0);
    for number in 1..=STREAMS {
        let opening = begin(&link.bulk, number.into(), Class::Bulk);
        let (stream, (_, unread)) = tokio::join!(opening, accept(&service));
        kept.push((stream, unread));
    }
    // One stream after the other: the first must not be able to take all of it.
    let chunk = vec![1; 64 * 1024];
    for ((send, _), _) in &mut kept {
        while let Ok(wrote) = timeout(STILL, send.write(&chunk)).await {
            taken += wrote.unwrap() as u64;
            assert!(taken <= 2 * UNREAD_BYTES, "{taken} bytes");
        }
    }
    // The preambles of the streams count too.
    let least = UNREAD_BYTES - 1000;
    let most = UNREAD_BYTES + STREAMS * TAKEN_BYTES_MAX;
    assert!((least..=most).contains(&taken), "{taken} bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t16_sixty_four_streams_are_served_and_an_eighth_more_can_be_opened() {
    let door = Door::open().await;
    let echo = echo(UnixListener::bind(&door.config.services[0].socket).unwrap());
    let link = link(&door).await;
    // All streams are kept open: one that ends before its preamble would end the link.
    let mut legs = Vec::new();
    for (connection, class) in [(&link.urgent, Class::Demand), (&link.bulk, Class::Bulk)] {
        let mut kept = Vec::new();
        for number in 0..STREAM_COUNT {
            let number = u128::from(class as u8) << 32 | number as u128;
            kept.push(begin(connection, number, class).await);
        }
        while let Ok(opened) = timeout(STILL, connection.open_bi()).await {
            kept.push(opened.unwrap());
            let count = kept.len();
            assert!(count <= STREAM_COUNT + STREAM_COUNT / 7, "{count} streams");
        }
        let uni = timeout(STILL, connection.open_uni()).await;
        assert!(uni.is_err(), "a stream in one direction has no use");
        legs.push(kept);
    }
    echo.abort();
}
