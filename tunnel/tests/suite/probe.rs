//! Measuring the path to a peer by sending: it stays within its budget, and its results are used.

use std::time::Duration;

use crate::harness::{Pair, accept, metric, name, soon, until};
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::UnixListener;
use towpath_bench::relay::Direction;
use towpath_daemon::client::Client;
use towpath_daemon::problem::Problem;
use towpath_daemon::units::Span;
use towpath_protocol::class::Class;
use towpath_protocol::fault::Code;
use towpath_tunnel::bench_service::SOCKET;
use towpath_tunnel::config::{Config, ProbeConfig, ServiceConfig};
use towpath_tunnel::probe::{ProbeRequest, ProbeView};
use towpath_tunnel::status::ForecastDocument;

const LINK_BITS_PER_SECOND: u64 = 40_000_000;

fn allow(config: &mut Config) {
    let bench = ServiceConfig::told(name("bench"), SOCKET.into(), vec![name("edge")]);
    config.services.push(bench);
}

async fn probe(pair: &Pair, site: &str, budget: ProbeRequest) -> Result<ProbeView, Problem> {
    let client = Client::new(&pair.edge_config.admin.socket).timeout(crate::harness::SOON);
    client.post(&format!("/v1/probe/{site}"), &budget).await
}

fn line() -> Option<Direction> {
    Some(Direction {
        delay: Duration::from_millis(10),
        bits_per_second: Some(LINK_BITS_PER_SECOND),
        ..Direction::default()
    })
}

fn budget(bytes: u64) -> ProbeRequest {
    ProbeRequest {
        bytes,
        time_ms: 10_000,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_keeps_to_its_budget_and_what_it_finds_is_forecast() {
    let pair = Pair::start_with(|_, region| allow(region), line()).await;
    let sent = || pair.edge.status().links[0].classes[Class::Scavenger.index()].sent_bytes;
    let small = soon(probe(&pair, "region", budget(64 << 10)))
        .await
        .unwrap();
    assert_eq!(small.bytes, 64 << 10);
    assert!(!small.is_capacity, "{small:?}");
    let before = sent();
    let view = soon(probe(&pair, "region", budget(8 << 20))).await.unwrap();
    assert_eq!((view.bytes, view.budget_bytes), (8 << 20, 8 << 20));
    // The request itself is one byte.
    assert_eq!(sent() - before, (8 << 20) + 1);
    assert!(view.is_capacity && !view.samples.is_empty(), "{view:?}");
    let share = view.bits_per_second * 100 / LINK_BITS_PER_SECOND;
    assert!(
        (60..=115).contains(&share),
        "{share} % of what the path carries"
    );
    assert!(view.base_rtt_us >= 19_000, "{view:?}");
    // One measurement is too little for a forecast; a few are enough.
    let client = Client::new(&pair.edge_config.admin.socket);
    let mut probed = 2;
    let forecast = async {
        loop {
            let asked = client
                .get::<ForecastDocument>("/v1/forecast?peer=region")
                .await;
            if let Ok(known) = asked
                && known.forecasts.iter().any(|view| view.quantiles.is_some())
            {
                return;
            }
            probe(&pair, "region", budget(8 << 20)).await.unwrap();
            probed += 1;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), forecast)
        .await
        .expect("what probes found is not forecast");
    let metrics = client.text("/metrics").await.unwrap();
    let bytes = (probed - 1) * (8 << 20) + (64 << 10);
    for series in [
        format!("towpath_tunnel_probes_total{{peer=\"region\",result=\"done\"}} {probed}"),
        format!("towpath_tunnel_probe_bytes_total{{peer=\"region\"}} {bytes}"),
    ] {
        assert!(metrics.contains(&series), "{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_that_cannot_be_is_refused_with_its_code() {
    let pair = Pair::start().await;
    for (site, bytes, code) in [
        ("region", 1, Code::Usage),
        ("mars", 1 << 20, Code::NotFound),
        ("region", 1 << 20, Code::Denied),
    ] {
        let refused = soon(probe(&pair, site, budget(bytes))).await.unwrap_err();
        assert_eq!(refused.code, code.as_str(), "{refused:?}");
    }
    let client = Client::new(&pair.edge_config.admin.socket);
    let unknown = json!({ "rate": 5 });
    let refused = client
        .post::<_, ProbeView>("/v1/probe/region", &unknown)
        .await;
    assert_eq!(refused.unwrap_err().code, Code::Meta.as_str());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_that_fails_has_cost_what_it_sent() {
    let pair = Pair::start_with(
        |_, region| {
            let socket = region.socket.with_file_name("bench.sock");
            let bench = ServiceConfig::told(name("bench"), socket, vec![name("edge")]);
            region.services.push(bench);
        },
        None,
    )
    .await;
    let bench = UnixListener::bind(&pair.region_config.services[1].socket).unwrap();
    let gives_up = async {
        let (_, mut stream) = accept(&bench).await;
        stream.read_exact(&mut vec![0; 256 << 10]).await.unwrap();
    };
    let (probed, ()) =
        soon(async { tokio::join!(probe(&pair, "region", budget(64 << 20)), gives_up) }).await;
    probed.unwrap_err();
    let series = "towpath_tunnel_probe_bytes_total{peer=\"region\"}";
    let sent = metric(&pair.edge_config, series).await;
    assert!((128 << 10..64 << 20).contains(&sent), "{sent}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_that_nobody_waits_for_any_more_has_cost_what_it_sent() {
    let pair = Pair::start_with(|_, region| allow(region), line()).await;
    let sent = || pair.edge.status().links[0].classes[Class::Scavenger.index()].sent_bytes;
    let asked = tokio::select! {
        asked = probe(&pair, "region", budget(64 << 20)) => Some(asked),
        () = until("it sends", || sent() > 256 << 10) => None,
    };
    assert!(asked.is_none(), "{asked:?}");
    let failed = "towpath_tunnel_probes_total{peer=\"region\",result=\"failed\"}";
    let counted = async { while metric(&pair.edge_config, failed).await == 0 {} };
    soon(counted).await;
    let series = "towpath_tunnel_probe_bytes_total{peer=\"region\"}";
    let cost = metric(&pair.edge_config, series).await;
    assert!((128 << 10..64 << 20).contains(&cost), "{cost}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_one_probe_at_a_time_measures_a_peer() {
    let pair = Pair::start_with(|_, region| allow(region), line()).await;
    let (one, other) = soon(async {
        tokio::join!(
            probe(&pair, "region", budget(4 << 20)),
            probe(&pair, "region", budget(4 << 20)),
        )
    })
    .await;
    let refused: Vec<_> = [one, other].into_iter().filter_map(Result::err).collect();
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].code, Code::Busy.as_str());
    soon(probe(&pair, "region", budget(64 << 10)))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_in_the_background_comes_at_its_interval() {
    let pair = Pair::start_with(
        |edge, region| {
            allow(region);
            edge.peers[0].probe = Some(ProbeConfig {
                interval: Span::new(Duration::from_secs(10)),
                bytes: "64KiB".parse().unwrap(),
            });
        },
        None,
    )
    .await;
    let sent = || pair.edge.status().links[0].classes[Class::Scavenger.index()].sent_bytes;
    let done = "towpath_tunnel_probes_total{peer=\"region\",result=\"done\"}";
    let probed = async {
        while metric(&pair.edge_config, done).await == 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), probed)
        .await
        .expect("no probe");
    let cost = "towpath_tunnel_probe_bytes_total{peer=\"region\"}";
    let cost = metric(&pair.edge_config, cost).await;
    let probes = metric(&pair.edge_config, done).await;
    assert!(cost <= probes * (64 << 10), "{cost} bytes, {probes} probes");
    // The request itself is one byte.
    assert_eq!(sent() % ((64 << 10) + 1), 0, "{}", sent());
}
