//! A network that disappears and returns, in a network namespace of the test's own.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a helper that fails fails its test, and one that cannot run says so"
)]

mod harness;

use std::process::Command;
use std::time::{Duration, Instant};

use harness::{Pair, accept, metric, name, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use towpath_protocol::class::Class;
use towpath_tunnel::config::Config;

/// Marks the process that runs inside the namespace.
const INSIDE: &str = "TOWPATH_TEST_INSIDE";

/// How long the network is away: long enough for dial attempts that nobody will answer.
const OUTAGE: Duration = Duration::from_secs(3);

/// Most outages until a dial prompted by the kernel's announcement has come first once. The link asks
/// its peer every 50 ms meanwhile, and in about half of the outages its answer comes first.
const OUTAGE_COUNT_MAX: usize = 24;

/// Runs a test of this file again in its own network namespace, where it can do what it likes.
/// Returns whether this is that run.
fn is_inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let has_namespaces = Command::new("unshare")
        .args([
            "--user",
            "--map-root-user",
            "--net",
            "ip",
            "link",
            "set",
            "lo",
            "up",
        ])
        .output()
        .is_ok_and(|tried| tried.status.success());
    if !has_namespaces {
        println!("skipped: no network namespace can be made here");
        return false;
    }
    let run = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    print!("{}", String::from_utf8_lossy(&run.stdout));
    assert!(
        run.status.success(),
        "{}",
        String::from_utf8_lossy(&run.stderr)
    );
    false
}

fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split(' ')).status();
    assert!(done.unwrap().success(), "ip {arguments}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_comes_back_is_dialled_into_at_once_and_streams_live_on() {
    if !is_inside("a_network_that_comes_back_is_dialled_into_at_once_and_streams_live_on") {
        return;
    }
    ip("link set lo up");
    let pair = Pair::start().await;
    let listener = pair.echo();
    let (local, (_, mut remote)) =
        soon(async { tokio::join!(pair.open("echo", Class::Demand), accept(&listener)) }).await;
    let mut local = local.unwrap();
    let by_network = "towpath_tunnel_dials_total{cause=\"network\",peer=\"region\"}";
    let by_clock = "towpath_tunnel_dials_total{cause=\"clock\",peer=\"region\"}";
    let before = metric(&pair.edge_config, by_network).await;
    // A timed dial that is in progress when the network returns may occasionally come first.
    for _ in 0..OUTAGE_COUNT_MAX {
        let by_clock_before = metric(&pair.edge_config, by_clock).await;
        ip("link set lo down");
        // Written while nobody can answer, so that the loss is noticed.
        local.write_all(b"before").await.unwrap();
        tokio::time::sleep(OUTAGE).await;
        assert!(metric(&pair.edge_config, by_clock).await > by_clock_before);
        ip("link set lo up");
        let up = Instant::now();
        let mut heard = [0; 6];
        soon(remote.read_exact(&mut heard)).await.unwrap();
        let back = up.elapsed();
        assert_eq!(&heard, b"before");
        remote.write_all(b"after").await.unwrap();
        soon(local.read_exact(&mut [0; 5])).await.unwrap();
        println!("first byte {} ms after the network", back.as_millis());
        if metric(&pair.edge_config, by_network).await > before {
            break;
        }
    }
    assert!(
        metric(&pair.edge_config, by_network).await > before,
        "dialled by the clock alone"
    );
    assert!(metric(&pair.edge_config, "towpath_network_changes_total").await > 0);
    assert_eq!(pair.edge.status().links[0].streams_lost, 0);
}

/// Waits until a metric of the edge exceeds a value; returns the new value.
async fn above(pair: &Pair, series: &str, value: u64) -> u64 {
    let counting = async {
        loop {
            let now = metric(&pair.edge_config, series).await;
            if now > value {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(counting).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_is_replaced_when_the_host_sends_from_another_address_and_not_before() {
    if !is_inside("a_link_is_replaced_when_the_host_sends_from_another_address_and_not_before") {
        return;
    }
    ip("link set lo up");
    ip("address add 10.9.0.1/32 dev lo");
    ip("address add 10.9.0.2/32 dev lo");
    let listen = |_: &mut Config, region: &mut Config| {
        region.listen = Some("10.9.0.1:0".parse().unwrap());
    };
    let pair = Pair::start_with(listen, None).await;
    let (mut local, mut remote) = pair.stream(Class::App).await;
    let by_network = "towpath_tunnel_dials_total{cause=\"network\",peer=\"region\"}";
    let changes = "towpath_network_changes_total";
    let dialled = metric(&pair.edge_config, by_network).await;
    let mut changed = metric(&pair.edge_config, changes).await;
    // None of these changes the address from which the region is reached.
    for change in [
        "address add 10.9.0.3/32 dev lo",
        "address del 10.9.0.3/32 dev lo",
        "route add 10.10.0.0/16 dev lo",
    ] {
        ip(change);
        changed = above(&pair, changes, changed).await;
    }
    ip("route change local 10.9.0.1 dev lo table local proto kernel scope host src 10.9.0.2");
    above(&pair, by_network, dialled).await;
    // Streams in progress continue, and the link was not lost in between.
    local.write_all(b"on").await.unwrap();
    soon(remote.read_exact(&mut [0; 2])).await.unwrap();
    pair.edge
        .linked(&name("region"), harness::SOON)
        .await
        .unwrap();
    assert_eq!(metric(&pair.edge_config, by_network).await, dialled + 1);
    let link = &pair.edge.status().links[0];
    assert_eq!((link.links_lost, link.streams_lost), (0, 0));
}
