//! Forecasts of a running link: learnt while it is full, kept over a restart, read over HTTP.

use std::time::Duration;

use crate::harness::{Pair, name, soon};
use towpath_bench::relay::Direction;
use towpath_daemon::client::Client;
use towpath_protocol::class::Class;
use towpath_tunnel::Tunnel;
use towpath_tunnel::config::{Config, PeerConfig};
use towpath_tunnel::status::{ForecastDocument, QuantilesView, StatusView};

const LINK_BITS_PER_SECOND: u64 = 80_000_000;

/// The forecast, or `None` while the history is being read.
async fn forecast(client: &Client, rest: &str) -> Option<ForecastDocument> {
    let path = format!("/v1/forecast?peer=region{rest}");
    match client.get(&path).await {
        Err(problem) if problem.code == "E_STATE" => None,
        answer => Some(answer.unwrap()),
    }
}

/// Asks until the answer meets a condition.
async fn until(
    client: &Client,
    rest: &str,
    is_so: fn(&ForecastDocument) -> bool,
) -> ForecastDocument {
    let asking = async {
        loop {
            match forecast(client, rest).await {
                Some(document) if is_so(&document) => return document,
                _ => {}
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), asking)
        .await
        .expect("the forecast does not come")
}

fn is_known(document: &ForecastDocument) -> bool {
    document.forecasts[1].quantiles.is_some()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_link_is_forecast_and_its_history_outlives_the_tunnel() {
    let pair = Pair::start_with(
        |edge, _| edge.state_dir = Some(edge.socket.with_file_name("state")),
        Some(Direction {
            delay: Duration::from_millis(5),
            bits_per_second: Some(LINK_BITS_PER_SECOND),
            ..Direction::default()
        }),
    )
    .await;
    let client = Client::new(&pair.edge_config.admin.socket);
    let nothing = until(&client, "", |document| {
        document.at_least_bits_per_second.is_none()
    })
    .await;
    assert!(
        nothing
            .forecasts
            .iter()
            .all(|view| view.quantiles.is_none())
    );

    let filling = pair.fill(Class::Bulk).await;
    let known = until(&client, "&bytes=100000000", is_known).await;
    let soon = known.forecasts[1].quantiles.as_ref().unwrap();
    let share = soon.p50_bits_per_second * 100 / LINK_BITS_PER_SECOND;
    assert!(
        (70..=110).contains(&share),
        "{share} % of what the link carries"
    );
    // 100 MB at 80 Mbit/s take ten seconds.
    let took = known.through_p50_unix_seconds.unwrap() - known.now_unix_seconds;
    assert!((8..=15).contains(&took), "{took} s");
    let status: StatusView = client.get("/status").await.unwrap();
    assert!(
        status.links[0]
            .forecasts
            .iter()
            .all(|view| view.direction == "send")
    );
    assert!(!status.links[0].forecasts.is_empty());
    // The receiving side knows it too: it was told when the path was the limit.
    let other = Client::new(&pair.region_config.admin.socket);
    let heard = async {
        loop {
            let asked = other.get("/v1/forecast?peer=edge&direction=receive").await;
            match asked {
                Ok(document) if is_known(&document) => return document,
                _ => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    };
    let heard: ForecastDocument = tokio::time::timeout(Duration::from_secs(60), heard)
        .await
        .expect("the other side does not forecast");
    let soon = heard.forecasts[1].quantiles.as_ref().unwrap();
    let share = soon.p50_bits_per_second * 100 / LINK_BITS_PER_SECOND;
    assert!((70..=110).contains(&share), "{share} % as it is received");
    let metrics = client.text("/metrics").await.unwrap();
    let series = "towpath_tunnel_predicted_bytes_per_second{direction=\"send\",\
        horizon=\"10s\",peer=\"region\",percentile=\"p10\"}";
    assert!(metrics.contains(series), "{metrics}");
    drop(filling);

    let config = pair.edge_config.clone();
    pair.edge.stop().await;
    let folder = config.state_dir.as_ref().unwrap().join("forecast");
    assert!(folder.join("region.send.history").is_file());
    let again = Tunnel::start(&config).await.unwrap();
    let kept = |document: &ForecastDocument| document.known_hours > 0 || !is_known(document);
    let document = until(&client, "", kept).await;
    assert!(
        !is_known(&document),
        "seconds are not kept, and no hour is over"
    );
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_histories_are_kept_though_the_disk_takes_longer_than_the_farewell() {
    let change = |edge: &mut Config, _: &mut Config| {
        edge.state_dir = Some(edge.socket.with_file_name("state"));
        edge.peers.push(PeerConfig::new(name("away")));
    };
    let pair = Pair::start_with(change, None).await;
    let client = Client::new(&pair.edge_config.admin.socket);
    // By now the histories have been read, including the last.
    until(&client, "", |_| true).await;
    let folder = pair.edge_config.state_dir.clone().unwrap();
    let folder = folder.join("forecast");
    std::fs::create_dir_all(&folder).unwrap();
    // A file to which writes block until somebody reads it.
    let slow = folder.join("away.send.new");
    let made = std::process::Command::new("mkfifo").arg(&slow).status();
    assert!(made.unwrap().success());
    let mut stopping = tokio::spawn(pair.edge.stop());
    let farewell = tokio::time::timeout(Duration::from_secs(2), &mut stopping).await;
    // From here on the disk is no longer slow.
    let reading = tokio::task::spawn_blocking(move || std::fs::read(slow).unwrap());
    assert!(
        farewell.is_err(),
        "the tunnel has stopped, and kept nothing"
    );
    soon(stopping).await.unwrap();
    assert!(!soon(reading).await.unwrap().is_empty());
    for direction in ["send", "receive"] {
        let kept = folder.join(format!("region.{direction}.history"));
        assert!(kept.is_file(), "{}", kept.display());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_whose_cap_is_below_its_line_is_forecast_to_carry_the_cap() {
    const CAP: u64 = LINK_BITS_PER_SECOND / 10 * 9;
    let line = Direction {
        delay: Duration::from_millis(5),
        bits_per_second: Some(LINK_BITS_PER_SECOND),
        ..Direction::default()
    };
    let capped = |edge: &mut Config, _: &mut Config| {
        edge.peers[0].send_rate = Some(format!("{CAP}bit").parse().unwrap());
    };
    let pair = Pair::start_with(capped, Some(line)).await;
    let client = Client::new(&pair.edge_config.admin.socket);
    let _filling = pair.fill(Class::Bulk).await;
    let known = until(&client, "&bytes=90000000", is_known).await;
    for view in &known.forecasts {
        let told = view.quantiles.as_ref();
        let told = told.unwrap_or_else(|| panic!("in {}", view.horizon));
        // A busy machine may stay below the cap for some seconds.
        let share = told.p50_bits_per_second * 100 / CAP;
        assert!((70..=100).contains(&share), "in {}: {told:?}", view.horizon);
        assert!(told.p90_bits_per_second <= CAP, "{told:?}");
    }
    assert_eq!(
        known.forecasts.last().unwrap().quantiles.as_ref().unwrap(),
        &QuantilesView {
            p10_bits_per_second: CAP,
            p50_bits_per_second: CAP,
            p90_bits_per_second: CAP,
            confidence: "low".to_owned(),
            age_seconds: 0,
        }
    );
    // 90 MB of a program at 72 Mbit/s take ten seconds, and packet overhead half a second more.
    let took = known.through_p50_unix_seconds.unwrap() - known.now_unix_seconds;
    assert!((11..=15).contains(&took), "{took} s");
    assert!(!client.text("/").await.unwrap().contains("no forecast"));
    let metrics = client.text("/metrics").await.unwrap();
    assert!(metrics.contains("towpath_tunnel_predicted_bytes_per_second{"));
    // For the receiving side, the cap is what arrives.
    let other = Client::new(&pair.region_config.admin.socket);
    let heard = async {
        loop {
            let asked = other.get("/v1/forecast?peer=edge&direction=receive").await;
            match asked {
                Ok(document) if is_known(&document) => return document,
                _ => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    };
    let heard: ForecastDocument = tokio::time::timeout(Duration::from_secs(60), heard)
        .await
        .expect("the other side does not forecast");
    let soon = heard.forecasts[1].quantiles.as_ref().unwrap();
    let share = soon.p50_bits_per_second * 100 / CAP;
    assert!((90..=110).contains(&share), "{share} % as it is received");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_questions_are_refused_with_their_code() {
    let pair = Pair::start().await;
    let client = Client::new(&pair.edge_config.admin.socket);
    until(&client, "", |_| true).await;
    for (query, code) in [
        ("peer=mars", "E_NOT_FOUND"),
        ("", "E_USAGE"),
        ("peer=region&at=5", "E_USAGE"),
        ("peer=region&at=99999999999", "E_USAGE"),
        ("peer=region&at=soon", "E_USAGE"),
        ("peer=region&bytes=-1", "E_USAGE"),
        ("peer=region&direction=up", "E_USAGE"),
        ("peer=region&colour=red", "E_USAGE"),
    ] {
        let path = format!("/v1/forecast?{query}");
        let problem = client.get::<ForecastDocument>(&path).await.unwrap_err();
        assert_eq!(problem.code, code, "{query}: {problem:?}");
    }
}
