//! The admin API, as operators and scrapers see it.

use std::time::{Duration, SystemTime};

use crate::harness::{Pair, World, echo, name, soon, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use towpath_bench::relay::Direction;
use towpath_daemon::client::Client;
use towpath_protocol::class::Class;
use towpath_tunnel::Tunnel;
use towpath_tunnel::channels::ChannelSpec;
use towpath_tunnel::status::{ClassView, LinkState, SCHEMA, StatusView};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_tells_link_classes_services_and_certificate() {
    let pair = Pair::start_with(
        |edge, _| edge.peers[0].send_rate = Some("100Mbit".parse().unwrap()),
        None,
    )
    .await;
    let echo = echo(pair.echo());
    let mut local = pair.open("echo", Class::Demand).await.unwrap();
    local.write_all(&[1; 5000]).await.unwrap();
    local.read_exact(&mut [0; 5000]).await.unwrap();

    let client = Client::new(&pair.edge_config.admin.socket);
    let status: StatusView = client.get("/status").await.unwrap();
    assert_eq!(status.schema, SCHEMA);
    assert_eq!((&*status.site, &*status.host), ("edge", "box-1"));
    let link = &status.links[0];
    assert_eq!(
        (&*link.peer, link.host.as_deref()),
        ("region", Some("box-1"))
    );
    assert_eq!(link.state, LinkState::Healthy);
    assert_eq!(link.key_exchange.as_deref(), Some("X25519MLKEM768"));
    assert_eq!(link.key_exchange_is_hybrid, Some(true));
    assert_eq!(
        link.cipher_suite.as_deref(),
        Some("TLS13_AES_128_GCM_SHA256")
    );
    assert_eq!(link.cap_bits_per_second, Some(100_000_000));
    assert_eq!(link.streams, 1);
    assert!(link.rtt_us > 0 && link.since_unix_seconds > 0);
    let demand = &link.classes[Class::Demand.index()];
    assert_eq!((demand.sent_bytes, demand.received_bytes), (5000, 5000));
    assert_eq!(status.services[0].name, "echo");
    assert_eq!(
        status.certificate.uri,
        "spiffe://shop.example/site/edge/host/box-1"
    );
    echo.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_class_sees_is_told_by_class_and_by_leg() {
    let path = Direction {
        delay: Duration::from_millis(10),
        bits_per_second: Some(40_000_000),
        ..Direction::default()
    };
    let channels = vec![channel("till", Class::App), channel("stock", Class::Bulk)];
    let pair = Pair::start_with(|edge, _| edge.channels = channels, Some(path)).await;
    let filling = pair.fill(Class::Bulk).await;
    let rate = |tunnel: &Tunnel, of: fn(&ClassView) -> u64| {
        of(&tunnel.status().links[0].classes[Class::Bulk.index()])
    };
    until("bulk's rate is seen at both sides", || {
        rate(&pair.edge, |class| class.out_bits_per_second) > 20_000_000
            && rate(&pair.region, |class| class.in_bits_per_second) > 20_000_000
    })
    .await;
    // Outgoing bulk waits for room on the path; no other class does.
    let wait = |class: &ClassView| class.wait_us;
    until("bulk is seen to wait", || rate(&pair.edge, wait) >= 1000).await;
    let link = &pair.edge.status().links[0];
    let scavenger = &link.classes[Class::Scavenger.index()];
    assert_eq!((scavenger.out_bits_per_second, scavenger.wait_us), (0, 0));
    let [urgent, bulk] = link.legs.as_slice() else {
        panic!("{:?}", link.legs);
    };
    assert_eq!((&*urgent.leg, &*bulk.leg), ("urgent", "bulk"));
    assert_eq!(bulk.classes, ["bulk", "scavenger"]);
    for leg in [urgent, bulk] {
        assert!(leg.base_rtt_us >= 20_000, "{leg:?}");
    }
    drop(filling);
    // A channel's round trip is that of the leg that carries it, equal to the microsecond once all
    // is quiet.
    let mut round_trips = [0; 2];
    until("each channel shows its own leg's round trip", || {
        let mut status = pair.edge.status();
        round_trips = [0, 1].map(|leg| status.links[0].legs[leg].rtt_us);
        status
            .channels
            .sort_by_key(|channel| channel.class != "app");
        let shown = [0, 1].map(|leg| status.channels[leg].rtt_us);
        round_trips[0] != round_trips[1] && shown == round_trips
    })
    .await;
    let client = Client::new(&pair.edge_config.admin.socket);
    let text = client.text("/metrics").await.unwrap();
    for (channel, told_us) in ["till", "stock"].into_iter().zip(round_trips) {
        let series =
            format!("towpath_channel_rtt_seconds{{channel=\"{channel}\",peer=\"region\"}} ");
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(&*series));
        let seconds: f64 = lines.next().unwrap().parse().unwrap();
        // A packet or two may have arrived since.
        let told = Duration::from_micros(told_us).as_secs_f64();
        assert!(
            (seconds / told - 1.0).abs() < 0.5,
            "{channel}: {seconds} s, {told} s"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_are_counted_by_leg_over_every_link() {
    let lossy = Direction {
        delay: Duration::from_millis(1),
        bits_per_second: Some(100_000_000),
        loss: 0.05,
        ..Direction::default()
    };
    let pair = Pair::start_with(|_, _| (), Some(lossy)).await;
    let client = Client::new(&pair.edge_config.admin.socket);
    let packets = async || {
        let text = client.text("/metrics").await.unwrap();
        let of = |what: &str, leg: &str| {
            let series =
                format!("towpath_tunnel_packets_{what}_total{{leg=\"{leg}\",peer=\"region\"}} ");
            let mut counts = text.lines().filter_map(|line| line.strip_prefix(&*series));
            counts.next().unwrap().parse::<u64>().unwrap()
        };
        ["sent", "lost"].map(|what| ["urgent", "bulk"].map(|leg| of(what, leg)))
    };
    let filling = pair.fill(Class::Bulk).await;
    let counted = async {
        loop {
            let counted = packets().await;
            if counted[0][1] > 2000 {
                break counted;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let before = soon(counted).await;
    let [sent, lost] = before.map(|[_, bulk]| bulk);
    assert!((sent / 40..sent / 10).contains(&lost), "{lost} of {sent}");
    assert!(before[0][0] < sent / 2, "{before:?}");
    drop(filling);
    // The counters of a new link start at zero, and the totals keep what went before it.
    let began = pair.edge.status().links[0].since_unix_seconds;
    let is_later = || SystemTime::UNIX_EPOCH + Duration::from_secs(began + 1) <= SystemTime::now();
    until("another link begins in another second", is_later).await;
    pair.edge.dial_anew(&name("region")).unwrap();
    until("there is another link", || {
        let link = &pair.edge.status().links[0];
        link.since_unix_seconds > began && link.state != LinkState::Down
    })
    .await;
    let after = packets().await;
    for (before, after) in before.concat().iter().zip(after.concat()) {
        assert!(after >= *before, "{before} and then {after}");
    }
}

/// A channel from the edge to a service of the region.
fn channel(label: &str, class: Class) -> ChannelSpec {
    let leads_to = (name("region"), name("echo"));
    ChannelSpec::new(
        name(label),
        "tcp:127.0.0.1:0".parse().unwrap(),
        leads_to,
        class,
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_follows_the_links_and_liveness_does_not() {
    let pair = Pair::start().await;
    let client = Client::new(&pair.edge_config.admin.socket);
    assert_eq!(client.text("/ready").await.unwrap(), "ready\n");
    pair.region.stop().await;
    let not_ready = async { while client.text("/ready").await.is_ok() {} };
    soon(not_ready).await;
    let problem = client.text("/ready").await.unwrap_err();
    assert!(problem.cause.contains("no link to region"), "{problem:?}");
    assert_eq!(client.text("/live").await.unwrap(), "live\n");
    let document = client.text("/openapi.json").await.unwrap();
    assert_eq!(document, include_str!("../../../docs/tunnel-openapi.json"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_have_the_names_that_dashboards_use() {
    let pair = Pair::start().await;
    let client = Client::new(&pair.edge_config.admin.socket);
    let text = client.text("/metrics").await.unwrap();
    for series in [
        "towpath_build_info{component=\"tunnel\"",
        "towpath_tunnel_up{peer=\"region\"} 1",
        "towpath_tunnel_state{peer=\"region\",state=\"healthy\"} 1",
        "towpath_tunnel_state{peer=\"region\",state=\"down\"} 0",
        "towpath_tunnel_streams_paused{peer=\"region\"} 0",
        "towpath_tunnel_rtt_seconds{peer=\"region\"}",
        "towpath_tunnel_leg_rtt_seconds{leg=\"bulk\",peer=\"region\"}",
        "towpath_tunnel_leg_base_rtt_seconds{leg=\"urgent\",peer=\"region\"}",
        "towpath_tunnel_leg_queue_seconds{leg=\"bulk\",peer=\"region\"}",
        "towpath_tunnel_leg_loss_ratio{leg=\"bulk\",peer=\"region\"}",
        "towpath_tunnel_loss_ratio{peer=\"region\"}",
        "towpath_tunnel_bytes_total{class=\"demand\",dir=\"in\",peer=\"region\"}",
        "towpath_tls_rejected_total{reason=\"expired\"} 0",
        "towpath_quic_incoming_dropped_total{reason=\"too_fast\"} 0",
        "towpath_cert_expiry_timestamp_seconds ",
    ] {
        assert!(text.contains(series), "no {series} in\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l05_over_tcp_only_reading_under_a_loopback_name_is_answered() {
    let pair = Pair::start_with(
        |edge, _| edge.admin.http = Some("127.0.0.1:0".parse().unwrap()),
        None,
    )
    .await;
    let address = pair.edge.http_address().unwrap();
    for (request, code) in [
        ("GET /status HTTP/1.1\r\nHost: localhost\r\n", "200"),
        ("GET /status HTTP/1.1\r\nHost: evil.example\r\n", "403"),
        (
            "POST /status HTTP/1.1\r\nHost: localhost\r\ncontent-length: 0\r\n",
            "405",
        ),
        (
            "GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n",
            "404",
        ),
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("{request}connection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        soon(stream.read_to_string(&mut answer)).await.unwrap();
        let status = answer.split(' ').nth(1).unwrap();
        assert_eq!(status, code, "{request}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_absent_without_a_link_the_page_of_metrics_says() {
    let world = World::new();
    let mut config = world.site("edge", "region");
    config.channels = vec![channel("till", Class::App)];
    let _alone = Tunnel::start(&config).await.unwrap();
    let client = Client::new(&config.admin.socket);
    let text = client.text("/metrics").await.unwrap();
    let down = "towpath_channel_up{channel=\"till\",peer=\"region\"} 0";
    assert!(text.contains(down), "{text}");
    let page = include_str!("../../../docs/metrics.md");
    let rows = page.lines().filter(|row| {
        let ours = ["| `towpath_tunnel_", "| `towpath_channel_"];
        ours.iter().any(|name| row.starts_with(name))
    });
    let mut absent = 0;
    for row in rows {
        let name = row.split('`').nth(1).unwrap();
        let is_there = text.lines().any(|line| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
        });
        let is_said = row.contains("absent without a link");
        absent += usize::from(is_said);
        if is_said {
            assert!(!is_there, "{name} is there");
        } else if !row.contains("absent") {
            assert!(
                is_there,
                "{name} is not there, and the page does not say so"
            );
        }
    }
    assert!(absent > 0);
}
