//! Limits on streams: moves beside applications, old streams beside new ones, successive sources of
//! datagrams.

use std::net::SocketAddr;
use std::time::Duration;

use crate::harness::{Pair, SOON, accept, echo, name, open, soon, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::{Instant, sleep, timeout};
use towpath_bench::relay::Direction;
use towpath_daemon::client::Client;
use towpath_protocol::class::Class;
use towpath_protocol::endpoint::Endpoint;
use towpath_protocol::fault::Code;
use towpath_tunnel::channels::ChannelSpec;
use towpath_tunnel::config::{Config, ServiceConfig};
use towpath_tunnel::status::ChannelView;

/// Streams of one connection in these tests; a quarter of them is reserved for moves.
const STREAMS: u32 = 8;

fn few(edge: &mut Config, region: &mut Config) {
    edge.limits.peer_streams = STREAMS;
    region.limits.peer_streams = STREAMS;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applications_leave_a_move_its_streams() {
    let pair = Pair::start_with(few, None).await;
    let _echo = echo(pair.echo());
    let mut held = Vec::new();
    for _ in 0..STREAMS - STREAMS / 4 {
        held.push(pair.open("echo", Class::App).await.unwrap());
    }
    let began = Instant::now();
    let (more, lanes) = tokio::join!(pair.open("echo", Class::App), async {
        sleep(Duration::from_millis(100)).await;
        let lanes = [Class::Control, Class::Demand].map(|class| pair.open("echo", class));
        let [control, demand] = lanes;
        let both = (control.await.unwrap(), demand.await.unwrap());
        (both, began.elapsed())
    });
    assert_eq!(more.unwrap_err().code, Code::Busy);
    assert!(lanes.1 < Duration::from_secs(2), "lanes took {:?}", lanes.1);
    // When one ends, there is room again.
    held.pop();
    soon(pair.open("echo", Class::App)).await.unwrap();
}

/// Applications that wait for the peer may occupy neither a move's places at the local socket nor
/// all of the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_that_wait_leave_places_to_a_move_and_to_others() {
    const PLACES: usize = 16;
    /// Places not reserved for moves, and how many of them programs may occupy while they wait for
    /// the same peer.
    const OPEN: usize = PLACES - PLACES / 4;
    const WAITING: usize = OPEN / 2;
    let change = |edge: &mut Config, region: &mut Config| {
        few(edge, region);
        edge.limits.local_streams = PLACES;
    };
    let pair = Pair::start_with(change, None).await;
    let _echo = echo(pair.echo());
    let mut held = Vec::new();
    for _ in 0..STREAMS - STREAMS / 4 {
        held.push(pair.open("echo", Class::App).await.unwrap());
    }
    // The peer takes no more application streams, so these wait until they time out.
    let began = Instant::now();
    let asking = (0..PLACES).map(|_| {
        let socket = pair.edge_config.socket.clone();
        tokio::spawn(async move {
            let fault = open(&socket, "region", "echo", Class::App)
                .await
                .unwrap_err();
            (fault, began.elapsed())
        })
    });
    let asking: Vec<_> = asking.collect();
    sleep(Duration::from_millis(500)).await;
    for class in [Class::Control, Class::Demand] {
        held.push(pair.open("echo", class).await.unwrap());
    }
    let took = began.elapsed();
    assert!(took < Duration::from_secs(2), "lanes took {took:?}");
    let mut waited = 0;
    for program in asking {
        let (fault, took) = soon(program).await.unwrap();
        assert_eq!(fault.code, Code::Busy, "{fault}");
        waited += usize::from(took > Duration::from_secs(2));
    }
    assert_eq!(waited, WAITING);
}

/// A channel from the edge to a service of the region.
pub(crate) fn joined(edge: &mut Config, region: &mut Config, target: &Endpoint, listen: &str) {
    let service = ServiceConfig::plain(name("app"), target.clone(), vec![name("edge")]);
    region.services.push(service);
    let way = (name("region"), name("app"));
    let listen = listen.parse().unwrap();
    edge.channels = vec![ChannelSpec::new(name("till"), listen, way, Class::App)];
}

pub(crate) fn address(pair: &Pair) -> SocketAddr {
    let status = pair.edge.status();
    match status.channels[0].listen.parse().unwrap() {
        Endpoint::Tcp(address) | Endpoint::Udp(address) => address,
        Endpoint::Unix(path) => panic!("{path:?}"),
    }
}

async fn tcp_echo() -> Endpoint {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = socket.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    Endpoint::Tcp(address)
}

async fn answers(socket: &mut TcpStream) {
    socket.write_all(b"word").await.unwrap();
    let mut heard = [0; 4];
    socket.read_exact(&mut heard).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_live_go_on_before_new_ones_begin() {
    let target = tcp_echo().await;
    let near = Direction {
        delay: Duration::from_millis(10),
        ..Direction::default()
    };
    let change = |edge: &mut Config, region: &mut Config| {
        few(edge, region);
        joined(edge, region, &target, "tcp:127.0.0.1:0");
    };
    let pair = Pair::start_with(change, Some(near)).await;
    let address = address(&pair);
    let mut old = Vec::new();
    for _ in 0..STREAMS - STREAMS / 4 {
        let mut socket = TcpStream::connect(address).await.unwrap();
        soon(answers(&mut socket)).await;
        old.push(socket);
    }
    let control = pair.relay.as_ref().unwrap().control();
    control.cut_both();
    until("no link", || pair.edge.status().links[0].host.is_none()).await;
    // Many more new clients than there are streams connect and wait for the link.
    let mut new = Vec::new();
    for _ in 0..10 * STREAMS {
        new.push(TcpStream::connect(address).await.unwrap());
    }
    sleep(Duration::from_millis(200)).await;
    control.heal();
    pair.linked().await;
    let began = Instant::now();
    for socket in &mut old {
        timeout(SOON, answers(socket)).await.expect("goes on");
    }
    let took = began.elapsed();
    assert!(took < Duration::from_secs(2), "took {took:?}");
}

/// New streams wait for their turn, 200 a second; existing ones do not, however many there are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_live_go_on_at_once_however_many_they_are() {
    const MANY: u32 = 700;
    let change = |edge: &mut Config, region: &mut Config| {
        for site in [edge, region] {
            site.limits.peer_streams = 1024;
            site.limits.local_streams = 2 * MANY as usize;
        }
    };
    let pair = Pair::start_with(change, Some(Direction::default())).await;
    let _echo = echo(pair.echo());
    let began = Instant::now();
    let mut streams = Vec::new();
    for _ in 0..MANY {
        streams.push(pair.open("echo", Class::App).await.unwrap());
    }
    let took = began.elapsed();
    assert!(took > Duration::from_secs(2), "begun in {took:?}");
    let control = pair.relay.as_ref().unwrap().control();
    control.cut_both();
    until("no link", || pair.edge.status().links[0].host.is_none()).await;
    control.heal();
    pair.linked().await;
    let linked = Instant::now();
    for stream in &mut streams {
        stream.write_all(b"word").await.unwrap();
    }
    for stream in &mut streams {
        soon(stream.read_exact(&mut [0; 4])).await.unwrap();
    }
    // If they waited for a turn, it would take as long as when they began.
    let took = linked.elapsed();
    assert!(took < Duration::from_secs(2), "went on in {took:?}");
}

async fn udp_echo() -> Endpoint {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = vec![0; 2048];
        while let Ok((count, from)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(&buffer[..count], from).await;
        }
    });
    Endpoint::Udp(address)
}

/// A flow stays with its service for as long as the channel leads there, whatever else changes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn con_8_a_cap_of_a_channel_ends_none_of_its_flows() {
    let service = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let target = Endpoint::Udp(service.local_addr().unwrap());
    let change = |edge: &mut Config, region: &mut Config| {
        joined(edge, region, &target, "udp:127.0.0.1:0");
    };
    let pair = Pair::start_with(change, None).await;
    let asking = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    asking.connect(address(&pair)).await.unwrap();
    let mut buffer = [0; 16];
    let mut from = Vec::new();
    let client = Client::new(&pair.edge_config.admin.socket);
    for cap in [None, Some("7Mbit")] {
        if let Some(cap) = cap {
            let mut capped = pair.edge_config.channels[0].clone();
            (capped.generation, capped.cap) = (capped.generation + 1, Some(cap.parse().unwrap()));
            let _: ChannelView = client.post("/v1/channels", &capped).await.unwrap();
        }
        asking.send(b"question").await.unwrap();
        let (_, source) = soon(service.recv_from(&mut buffer)).await.unwrap();
        from.push(source);
    }
    assert_eq!(from[0], from[1], "another flow");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn con_8_what_was_asked_before_a_new_generation_is_answered() {
    let sockets = [(); 2].map(|()| std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
    let [old, new] = sockets.map(|socket| {
        socket.set_nonblocking(true).unwrap();
        UdpSocket::from_std(socket).unwrap()
    });
    let target = Endpoint::Udp(old.local_addr().unwrap());
    let other = Endpoint::Udp(new.local_addr().unwrap());
    let change = |edge: &mut Config, region: &mut Config| {
        joined(edge, region, &target, "udp:127.0.0.1:0");
        let service = ServiceConfig::plain(name("next"), other.clone(), vec![name("edge")]);
        region.services.push(service);
    };
    let pair = Pair::start_with(change, None).await;
    let asking = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    asking.connect(address(&pair)).await.unwrap();
    let mut buffer = [0; 16];
    asking.send(b"first").await.unwrap();
    let (_, first) = soon(old.recv_from(&mut buffer)).await.unwrap();
    let mut moved = pair.edge_config.channels[0].clone();
    (moved.generation, moved.service) = (moved.generation + 1, name("next"));
    let client = Client::new(&pair.edge_config.admin.socket);
    let _: ChannelView = client.post("/v1/channels", &moved).await.unwrap();
    asking.send(b"second").await.unwrap();
    let (_, second) = soon(new.recv_from(&mut buffer)).await.unwrap();
    // The late answer of the old service, and the answer of the new one.
    for (service, to, answer) in [(&old, first, b"old"), (&new, second, b"new")] {
        service.send_to(answer, to).await.unwrap();
        let count = soon(asking.recv(&mut buffer)).await.unwrap();
        assert_eq!(&buffer[..count], answer);
    }
    // The old flow ends, and its stream is free.
    let is_one = || pair.edge.status().links[0].streams == 1;
    until("one flow is left", is_one).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn con_8_what_was_asked_where_a_channel_listened_before_is_answered_from_there() {
    let service = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let target = Endpoint::Udp(service.local_addr().unwrap());
    let change = |edge: &mut Config, region: &mut Config| {
        joined(edge, region, &target, "udp:127.0.0.1:0");
    };
    let pair = Pair::start_with(change, None).await;
    let (before, mut buffer) = (address(&pair), [0; 16]);
    let asking = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    asking.connect(before).await.unwrap();
    asking.send(b"question").await.unwrap();
    let (_, from) = soon(service.recv_from(&mut buffer)).await.unwrap();
    let mut moved = pair.edge_config.channels[0].clone();
    moved.generation += 1;
    moved.listen = "udp:127.0.0.2:0".parse().unwrap();
    let client = Client::new(&pair.edge_config.admin.socket);
    let _: ChannelView = client.post("/v1/channels", &moved).await.unwrap();
    assert_ne!(address(&pair), before);
    service.send_to(b"late", from).await.unwrap();
    let count = soon(asking.recv(&mut buffer)).await.unwrap();
    assert_eq!(&buffer[..count], b"late");
    // The client uses the new listening address.
    asking.connect(address(&pair)).await.unwrap();
    asking.send(b"again").await.unwrap();
    let (count, _) = soon(service.recv_from(&mut buffer)).await.unwrap();
    assert_eq!(&buffer[..count], b"again");
    // The earlier flow ends, and its stream is free.
    let is_one = || pair.edge.status().links[0].streams == 1;
    until("one flow is left", is_one).await;
}

/// Asks once from a new port; returns whether an answer came.
async fn asks(address: SocketAddr) -> bool {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(address).await.unwrap();
    socket.send(b"question").await.unwrap();
    let mut heard = [0; 16];
    let answer = timeout(Duration::from_secs(3), socket.recv(&mut heard)).await;
    answer.is_ok_and(|answer| answer.is_ok_and(|count| count == 8))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sources_of_datagrams_that_ask_once_leave_room_for_the_next() {
    let target = udp_echo().await;
    let change = |edge: &mut Config, region: &mut Config| {
        few(edge, region);
        joined(edge, region, &target, "udp:127.0.0.1:0");
    };
    let pair = Pair::start_with(change, None).await;
    let address = address(&pair);
    // A resolver uses a new port for each question.
    for question in 0..3 * STREAMS {
        assert!(asks(address).await, "question {question} has no answer");
        sleep(Duration::from_millis(300)).await;
    }
    // The flows end soon enough to leave streams to others.
    until("their flows end", || {
        pair.edge.status().links[0].streams <= u64::from(STREAMS / 2)
    })
    .await;
    let listener = pair.echo();
    let (opened, _) =
        soon(async { tokio::join!(pair.open("echo", Class::App), accept(&listener)) }).await;
    opened.unwrap();
}
