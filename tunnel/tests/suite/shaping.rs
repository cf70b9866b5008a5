//! The effect of caps, shares and quotas on real streams and datagrams. The shaper's own tests and
//! the bench `rate` measure how exactly they are kept; here a busy machine makes tests slow, not
//! wrong.

use std::time::{Duration, SystemTime};

use crate::harness::{Pair, SOON, Stopwatch, name, soon, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::Instant;
use towpath_daemon::client::Client;
use towpath_protocol::class::Class;
use towpath_protocol::endpoint::Endpoint;
use towpath_protocol::rate::Rate;
use towpath_tunnel::channels::ChannelSpec;
use towpath_tunnel::config::{Config, ServiceConfig};
use towpath_tunnel::shares::Share;
use towpath_tunnel::status::{ChannelView, LinkView};

/// A cap that any machine can use up.
const CAP: &str = "20Mbit";

fn rate(text: &str) -> Rate {
    text.parse().unwrap()
}

fn weight(weight: u32) -> Share {
    Share {
        weight: Some(weight),
        ..Share::default()
    }
}

fn link(pair: &Pair) -> LinkView {
    pair.edge.status().links.remove(0)
}

fn sent(pair: &Pair, class: Class) -> u64 {
    link(pair).classes[class.index()].sent_bytes
}

/// The most that a cap allows in a time, including its burst and QUIC's buffers.
fn most(cap: &str, elapsed: Duration) -> u64 {
    let time = elapsed + Duration::from_millis(20);
    rate(cap).bytes_in(time) * 102 / 100
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn classes_share_a_capped_link_by_their_weights() {
    let pair = Pair::start_with(
        |edge, _| {
            edge.peers[0].send_rate = Some(rate(CAP));
            let shares = [
                (Class::App, weight(1)),
                (Class::Bulk, weight(3)),
                (Class::Scavenger, weight(0)),
            ];
            edge.peers[0].shares.0.extend(shares);
        },
        None,
    )
    .await;
    let began = Instant::now();
    let mut filling = Vec::new();
    for class in [Class::App, Class::Bulk, Class::Scavenger] {
        filling.push(pair.fill(class).await);
    }
    let of = || [Class::App, Class::Bulk, Class::Scavenger].map(|class| sent(&pair, class));
    until("both are served", || of()[0] > 0 && of()[1] > 0).await;
    let before = of();
    until("5 MB are sent", || {
        of().iter().sum::<u64>() > before.iter().sum::<u64>() + 5_000_000
    })
    .await;
    let after = of();
    let total: u64 = after.iter().sum();
    assert!(total <= most(CAP, began.elapsed()), "{total} bytes");
    let [app, bulk, scavenger] = [0, 1, 2].map(|class| after[class] - before[class]);
    let per_thousand = bulk * 1000 / (app + bulk);
    assert!((700..=800).contains(&per_thousand), "{app} {bulk}");
    assert!(scavenger * 10 <= total, "{scavenger} of {total}");
    let shown = &link(&pair).classes[Class::Bulk.index()];
    assert_eq!(shown.weight, Some(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_timetable_changes_the_cap_of_a_running_link_at_its_minute() {
    const MINUTE: u64 = 60;
    let now = || SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    // The next minute, unless too little of this one is left.
    let change = (now() + 10).div_ceil(MINUTE) * MINUTE;
    let time_of_day = |unix: u64| format!("{:02}:{:02}", unix / 3600 % 24, unix / 60 % 60);
    let (from, to) = (time_of_day(change), time_of_day(change + 30 * MINUTE));
    let week = format!("8Mbit {from}-{to} daily, {CAP} otherwise");
    let timed = |edge: &mut Config, _: &mut Config| {
        edge.peers[0].send_timetable = Some(week.parse().unwrap());
    };
    let pair = Pair::start_with(timed, None).await;
    let cap = |pair: &Pair| link(pair).cap_bits_per_second;
    assert_eq!(cap(&pair), Some(rate(CAP).bits_per_second()));
    assert_eq!(link(&pair).cap_changes_unix_seconds, Some(change));
    let _filling = pair.fill(Class::Bulk).await;
    let changing = async {
        while cap(&pair) != Some(8_000_000) {
            assert!(now() < change + 10, "the cap is still {:?}", cap(&pair));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    changing.await;
    assert!(now() >= change, "before its time");
    // Data that left before is counted a little later.
    until("bulk has gone on", || {
        link(&pair).goodput_out_bits_per_second < 9_000_000
    })
    .await;
    let (began, before) = (Instant::now(), sent(&pair, Class::Bulk));
    until("2 MB are sent", || {
        sent(&pair, Class::Bulk) > before + 2_000_000
    })
    .await;
    let (elapsed, sent) = (began.elapsed(), sent(&pair, Class::Bulk) - before);
    assert!(sent <= most("8Mbit", elapsed), "{sent} in {elapsed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_datagrams_neither_breaks_the_cap_nor_starves_others() {
    let service = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let target = Endpoint::Udp(service.local_addr().unwrap());
    let pair = Pair::start_with(
        |edge, region| {
            edge.peers[0].send_rate = Some(rate(CAP));
            let shares = [(Class::App, weight(1)), (Class::Bulk, weight(1))];
            edge.peers[0].shares.0.extend(shares);
            let allow = vec![name("edge")];
            let sink = ServiceConfig::plain(name("sink"), target, allow);
            region.services.push(sink);
        },
        None,
    )
    .await;
    let began = Instant::now();
    let view = open(&pair, &channel("udp:127.0.0.1:0", None)).await;
    let Endpoint::Udp(address) = view.listen.parse().unwrap() else {
        panic!("{}", view.listen);
    };
    let _filling = pair.fill(Class::Bulk).await;
    let flood = tokio::spawn(async move {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        loop {
            for _ in 0..100 {
                let _ = socket.send_to(&[7; 1000], address).await;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let before = [Class::App, Class::Bulk].map(|class| sent(&pair, class));
    until("2 MB are sent", || {
        sent(&pair, Class::Bulk) > before[1] + 2_000_000
    })
    .await;
    let [app, bulk] = [Class::App, Class::Bulk].map(|class| sent(&pair, class));
    let elapsed = began.elapsed();
    assert!(app + bulk <= most(CAP, elapsed), "{app} + {bulk} bytes");
    until("datagrams are dropped", || {
        pair.edge.status().channels[0].datagrams_dropped > 0
    })
    .await;
    assert!(link(&pair).classes[Class::App.index()].datagrams_dropped > 0);
    let mut datagram = [0; 2000];
    let come = soon(service.recv(&mut datagram)).await.unwrap();
    assert_eq!((come, datagram[0]), (1000, 7));
    flood.abort();
}

fn channel(listen: &str, cap: Option<&str>) -> ChannelSpec {
    let (listen, service) = (listen.parse().unwrap(), (name("region"), name("sink")));
    ChannelSpec {
        generation: 1,
        cap: cap.map(rate),
        ..ChannelSpec::new(name("pipe"), listen, service, Class::App)
    }
}

async fn open(pair: &Pair, spec: &ChannelSpec) -> ChannelView {
    let client = Client::new(&pair.edge_config.admin.socket);
    client.post("/v1/channels", spec).await.unwrap()
}

/// Sends bytes through a channel and reads them back; returns the time.
async fn echo(address: std::net::SocketAddr, bytes: usize) -> Duration {
    let began = Instant::now();
    let socket = TcpStream::connect(address).await.unwrap();
    let (mut read, mut write) = socket.into_split();
    let sending = async {
        write.write_all(&vec![3; bytes]).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let mut back = Vec::new();
    let reading = async { read.read_to_end(&mut back).await.unwrap() };
    let both = async { tokio::join!(sending, reading) };
    let ((), count) = tokio::time::timeout(2 * SOON, both).await.unwrap();
    assert_eq!(count, bytes);
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn channels_and_services_keep_to_caps_of_their_own() {
    let service = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Endpoint::Tcp(service.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = service.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = socket.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    let pair = Pair::start_with(
        |_, region| {
            let allow = vec![name("edge")];
            let mut echo = ServiceConfig::plain(name("sink"), target, allow);
            echo.cap = Some(rate("80Mbit"));
            region.services.push(echo);
        },
        None,
    )
    .await;
    let mut spec = channel("tcp:127.0.0.1:0", Some("8Mbit"));
    let view = open(&pair, &spec).await;
    assert_eq!(view.cap_bits_per_second, Some(8_000_000));
    let Endpoint::Tcp(address) = view.listen.parse().unwrap() else {
        panic!("{}", view.listen);
    };
    // A megabyte takes at least a second, because two connections of the channel share one cap; and
    // they get at least half of the cap.
    let (began, watch) = (Instant::now(), Stopwatch::start());
    tokio::join!(echo(address, 600_000), echo(address, 400_000));
    assert!(most("8Mbit", began.elapsed()) >= 1_000_000);
    watch.at_most(Duration::from_secs(2), "a megabyte at 8 Mbit/s");
    // Without the channel's cap the service's applies: ten times as much.
    spec.generation = 2;
    spec.cap = None;
    assert_eq!(open(&pair, &spec).await.cap_bits_per_second, None);
    let watch = Stopwatch::start();
    let elapsed = echo(address, 10_000_000).await;
    assert!(most("80Mbit", elapsed) >= 10_000_000, "{elapsed:?}");
    watch.at_most(Duration::from_secs(2), "ten megabytes at 80 Mbit/s");
    let service = &pair.region.status().services[1];
    assert_eq!(service.cap_bits_per_second, Some(80_000_000));
}
