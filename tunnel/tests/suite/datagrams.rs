//! Datagrams of channels: which ones come back, and how many a move of their channel or an outage
//! loses.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use crate::channels::{Sites, connect, spec, tcp_service};
use crate::harness::{Stopwatch, name, pattern, soon, until};
use tokio::net::UdpSocket;
use tokio::time::Instant;
use towpath_bench::relay::{Control, Direction, Queue, Relay, Side};
use towpath_protocol::endpoint::Endpoint;
use towpath_tunnel::config::ServiceConfig;
use towpath_tunnel::status::ChannelState;

/// The path on which datagrams are counted: 20 ms round trip.
const PATH_BITS: u64 = 100_000_000;
const PATH: Direction = Direction {
    bits_per_second: Some(PATH_BITS),
    delay: Duration::from_millis(10),
    queue: Queue::Time(Duration::from_millis(100)),
    loss: 0.0,
};

/// A UDP service that echoes.
pub(crate) async fn udp_service() -> Endpoint {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = vec![0; 65_536];
        while let Ok((count, from)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(&buffer[..count], from).await;
        }
    });
    Endpoint::Udp(address)
}

/// Sends a datagram until it comes back: any single one may be lost. Losses are counted elsewhere.
async fn comes_back(socket: &UdpSocket, sent: &[u8]) {
    let mut heard = vec![0; 65_536];
    let trying = async {
        loop {
            socket.send(sent).await.unwrap();
            let waiting = tokio::time::timeout(Duration::from_millis(500), socket.recv(&mut heard));
            if let Ok(Ok(count)) = waiting.await
                && heard[..count] == *sent
            {
                return;
            }
        }
    };
    soon(trying).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn con_2_datagrams_of_every_size_come_back_to_whom_they_belong() {
    let sites = Sites::start(&[("east", udp_service().await)], None).await;
    let listen = sites
        .address(&spec("dns", "udp:127.0.0.1:0", "east", 1))
        .await;
    let mut sockets = Vec::new();
    for _ in 0..3 {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(listen).await.unwrap();
        sockets.push(socket);
    }
    for bytes in [0, 1, 500, 1100, 1400, 9000, 60_000] {
        for (number, socket) in sockets.iter().enumerate() {
            comes_back(socket, &pattern(number as u64 + 2, bytes)).await;
        }
    }
    let view = sites.view("dns");
    assert_eq!((view.connections, view.errors), (3, 0), "{view:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn con_5_the_first_datagram_of_a_flow_finds_it() {
    let sites = Sites::start(&[("east", udp_service().await)], None).await;
    let listen = sites
        .address(&spec("dns", "udp:127.0.0.1:0", "east", 1))
        .await;
    // Few enough that each can have a stream at once.
    let mut sockets = Vec::new();
    for _ in 0..40 {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(listen).await.unwrap();
        sockets.push(socket);
    }
    for socket in &sockets {
        socket.send(b"first").await.unwrap();
    }
    for socket in &sockets {
        let mut heard = [0; 8];
        let count = soon(socket.recv(&mut heard)).await.unwrap();
        assert_eq!(&heard[..count], b"first");
    }
}

/// A UDP service that answers nothing, as one that takes logs.
async fn silent_service() -> (UdpSocket, Endpoint) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    (socket, Endpoint::Udp(address))
}

/// More devices than a peer takes streams of.
const DEVICE_COUNT: usize = 60;

/// How soon a connection through another channel must get its seat.
const OTHER_WITHIN: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_that_log_leave_other_channels_their_streams() {
    let (_logs, target) = silent_service().await;
    let till = tcp_service(b"till").await;
    let sites = Sites::start_with(&[("east", target)], None, |config| {
        let service = ServiceConfig::plain(name("till"), till.clone(), vec![name("edge")]);
        config.services.push(service);
    })
    .await;
    let logs = sites
        .address(&spec("logs", "udp:127.0.0.1:0", "east", 1))
        .await;
    let mut tcp = spec("till", "tcp:127.0.0.1:0", "east", 1);
    tcp.service = name("till");
    let tcp = sites.address(&tcp).await;
    let mut devices = Vec::new();
    for _ in 0..DEVICE_COUNT {
        let device = connected(logs).await;
        device.send(b"<14>all is well").await.unwrap();
        devices.push(device);
    }
    until("the devices have their streams", || {
        sites.edge.status().links[0].streams >= 36
    })
    .await;
    let began = Stopwatch::start();
    let _one = connect(tcp, b"till").await;
    began.at_most(OTHER_WITHIN, "a connection through another channel");
    // Flows that have said a word give their streams back, answered or not.
    let are_few = || sites.edge.status().links[0].streams <= 25;
    until("the devices' flows end", are_few).await;
}

/// Datagrams in a series, and how many of them may be lost when nothing is in their way.
const SERIES: usize = 500;
const LOST_MAX: usize = SERIES / 100;

/// Most additional losses while their channel moves: the datagrams of a tenth of a second.
const LOST_MOVING_MAX: usize = 10;

/// Least interval between two datagrams of a series.
const PACE_MIN: Duration = Duration::from_millis(2);

/// How long to wait for an answer; a datagram without one by then is lost.
const ANSWER_WAIT: Duration = Duration::from_secs(2);

/// Unanswered bytes beyond which the next datagram waits. Otherwise a machine that stalls for a
/// moment would lose datagrams in its own sockets, which are not to be counted.
const UNANSWERED_BYTES: usize = 64 * 1024;

/// The datagram with this number in a series.
fn numbered(number: usize, bytes: usize) -> Vec<u8> {
    let mut datagram = pattern(number as u64 + 2, bytes);
    datagram[..4].copy_from_slice(&u32::try_from(number).unwrap().to_be_bytes());
    datagram
}

/// Sends a series at a tenth of the path's rate, each datagram once, and does something in the
/// middle. Returns how many did not come back.
async fn lost_of_series(
    socket: &UdpSocket,
    (bytes, pace_min): (usize, Duration),
    in_the_middle: impl AsyncFnOnce(),
) -> usize {
    let pace = Duration::from_nanos(bytes as u64 * 8 * 10 * 1_000_000_000 / PATH_BITS);
    let (pace, at_once) = (pace.max(pace_min), UNANSWERED_BYTES / bytes);
    let (mut sent, mut given_up) = (0, 0);
    let mut answered = BTreeSet::new();
    let mut heard = vec![0; 65_536];
    let mut next = Instant::now();
    let mut in_the_middle = Some(in_the_middle);
    while answered.len() < sent || sent < SERIES {
        let unanswered = sent - answered.len();
        let may_send = sent < SERIES && unanswered < given_up + at_once;
        tokio::select! {
            count = socket.recv(&mut heard) => {
                let datagram = &heard[..count.unwrap()];
                let number = u32::from_be_bytes(datagram[..4].try_into().unwrap()) as usize;
                assert!(datagram == numbered(number, bytes), "datagram {number} is another one");
                assert!(answered.insert(number), "datagram {number} came twice");
            }
            () = tokio::time::sleep_until(next), if may_send => {
                if sent == SERIES / 2 && let Some(change) = in_the_middle.take() {
                    change().await;
                }
                socket.send(&numbered(sent, bytes)).await.unwrap();
                sent += 1;
                next = Instant::now() + pace;
            }
            () = tokio::time::sleep(ANSWER_WAIT), if !may_send => {
                given_up = unanswered;
                if sent == SERIES {
                    break;
                }
            }
        }
    }
    SERIES - answered.len()
}

/// Sites with such a path to the first of them, and the path's control.
async fn on_a_path(others: &[(&str, Endpoint)], relay: &mut Option<Relay>) -> (Sites, Control) {
    let sites = Sites::start(others, Some(relay)).await;
    let control = relay.as_ref().unwrap().control();
    for side in [Side::A, Side::B] {
        control.set(side, PATH).unwrap();
    }
    (sites, control)
}

async fn connected(listen: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(listen).await.unwrap();
    socket
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn con_2_of_a_path_that_is_not_full_nearly_every_datagram_comes_back() {
    let mut relay = None;
    let others = [("east", udp_service().await)];
    let (sites, _control) = on_a_path(&others, &mut relay).await;
    let listen = sites
        .address(&spec("dns", "udp:127.0.0.1:0", "east", 1))
        .await;
    let socket = connected(listen).await;
    comes_back(&socket, b"the way is there").await;
    // Small datagrams, the largest that fit into a packet, and those that go over the stream beside
    // them.
    for bytes in [100, 1150, 9000] {
        let lost = lost_of_series(&socket, (bytes, PACE_MIN), async || {}).await;
        assert!(
            lost <= LOST_MAX,
            "{lost} of {SERIES} with {bytes} bytes are lost"
        );
    }
    let view = sites.view("dns");
    assert_eq!((view.connections_total, view.errors), (1, 0), "{view:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn con_8_a_new_generation_costs_few_datagrams() {
    let mut relay = None;
    let others = [("east", udp_service().await), ("west", udp_service().await)];
    let (sites, _control) = on_a_path(&others, &mut relay).await;
    let dns = |peer, generation| spec("dns", "udp:127.0.0.1:0", peer, generation);
    let socket = connected(sites.address(&dns("east", 1)).await).await;
    comes_back(&socket, b"the way is there").await;
    let pace = Duration::from_millis(10);
    let lost = lost_of_series(&socket, (1000, pace), async || {
        sites.open(&dns("west", 2)).await.unwrap();
    })
    .await;
    let most = LOST_MAX + LOST_MOVING_MAX;
    assert!(lost <= most, "{lost} of {SERIES} are lost, {most} may be");
    for other in &sites.others {
        let carried = other.status().services[0].received_bytes;
        let least = (SERIES / 2 - most) as u64 * 1000;
        assert!(carried >= least, "{carried} bytes through one of the two");
    }
}

/// How soon an outage of the path is visible, and how soon datagrams flow after it.
const SHOWN_WITHIN: Duration = Duration::from_secs(2);
const BACK_WITHIN: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn con_10_a_lost_path_shows_in_time_and_datagrams_flow_soon_after_it() {
    let mut relay = None;
    let others = [("east", udp_service().await)];
    let (sites, control) = on_a_path(&others, &mut relay).await;
    let listen = sites
        .address(&spec("dns", "udp:127.0.0.1:0", "east", 1))
        .await;
    let socket = connected(listen).await;
    comes_back(&socket, b"one").await;
    let cut = Stopwatch::start();
    control.cut_both();
    until("the cut shows", || {
        sites.view("dns").state != ChannelState::Healthy
    })
    .await;
    cut.at_most(SHOWN_WITHIN, "the cut shows");
    let healed = Stopwatch::start();
    control.heal();
    let asking = async {
        loop {
            socket.send(b"two").await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let hearing = async { socket.recv(&mut [0; 3]).await.unwrap() };
    let back = async {
        tokio::select! {
            () = asking => {}
            count = hearing => assert_eq!(count, 3),
        }
    };
    soon(back).await;
    healed.at_most(BACK_WITHIN, "a datagram after it");
    let is_healthy = || sites.view("dns").state == ChannelState::Healthy;
    until("the channel is well again", is_healthy).await;
    let flows = sites.view("dns").connections_total;
    assert_eq!(flows, 1, "it is the same flow");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_whose_service_refuses_datagrams_is_failing_until_one_comes_back() {
    let (dead, target) = silent_service().await;
    let address = dead.local_addr().unwrap();
    drop(dead);
    let sites = Sites::start(&[("east", target)], None).await;
    let listen = sites
        .address(&spec("dns", "udp:127.0.0.1:0", "east", 1))
        .await;
    let socket = connected(listen).await;
    let is_failing = || sites.view("dns").state == ChannelState::Failing;
    socket.send(b"one").await.unwrap();
    until("the refusal shows", is_failing).await;
    let view = sites.view("dns");
    assert!(view.reason.contains("service app at east"), "{view:?}");
    // Another flow begins, and is refused like the one before.
    for flow in 2..5 {
        socket.send(b"another").await.unwrap();
        let has_begun = || sites.view("dns").connections_total >= flow;
        until("another flow", has_begun).await;
        assert!(is_failing(), "{:?}", sites.view("dns"));
        until("it ends", || sites.view("dns").connections == 0).await;
    }
    let service = UdpSocket::bind(address).await.unwrap();
    let echo = tokio::spawn(async move {
        let mut buffer = [0; 64];
        while let Ok((count, from)) = service.recv_from(&mut buffer).await {
            let _ = service.send_to(&buffer[..count], from).await;
        }
    });
    comes_back(&socket, b"well again").await;
    let is_healthy = || sites.view("dns").state == ChannelState::Healthy;
    until("the channel is well again", is_healthy).await;
    echo.abort();
}
