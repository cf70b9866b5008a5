//! Peers that are added, changed and removed by a reload while streams of other peers run.

use std::time::Duration;

use crate::harness::{Pair, SOON, metric, name, open, until};
use crate::reload::write;
use crate::reload_services::{Hub, check_ends, check_lives};
use towpath_bench::relay::{Direction, Door, Options, Relay, Side};
use towpath_daemon::client::Client;
use towpath_protocol::class::Class;
use towpath_protocol::fault::Code;
use towpath_tunnel::channels::ChannelSpec;
use towpath_tunnel::config::{Config, ProbeConfig};
use towpath_tunnel::status::{ChannelState, ChannelView};

/// Attempts of a tunnel to dial the region so far.
async fn dials(config: &Config) -> u64 {
    let series = "towpath_tunnel_dials_total{cause=\"clock\",peer=\"region\"}";
    metric(config, series).await
}

/// The hub's configuration without its peer `branch`.
fn without_branch(hub: &Hub) -> Config {
    let mut config = hub.region_config();
    config.peers.retain(|peer| peer.site != name("branch"));
    config.services[0].allow = vec![name("edge")];
    config
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_is_removed_and_added_while_the_streams_of_others_go_on() {
    let hub = Hub::start_with(|_, region| {
        region.state_dir = Some(region.socket.with_file_name("state"));
    })
    .await;
    let echo = hub.pair.echo();
    let [edge, branch] = [&hub.pair.edge_config, &hub.branch_config].map(|config| &config.socket);
    let mut kept = hub.stream(edge, "echo", &echo).await;
    let mut cut = hub.stream(branch, "echo", &echo).await;
    check_lives(&mut cut).await;
    // A channel that was pushed stays, and says why it leads nowhere.
    let listen = "tcp:127.0.0.1:0".parse().unwrap();
    let target = (name("branch"), name("echo"));
    let mut pushed = ChannelSpec::new(name("back"), listen, target, Class::App);
    pushed.generation = 1;
    let client = Client::new(&hub.pair.region_config.admin.socket);
    let _: ChannelView = client.post("/v1/channels", &pushed).await.unwrap();

    hub.reload(&without_branch(&hub)).await;
    check_ends(cut).await;
    check_lives(&mut kept).await;
    let status = hub.pair.region.status();
    let peers: Vec<_> = status.links.iter().map(|link| &*link.peer).collect();
    assert_eq!(peers, ["edge"]);
    assert_eq!(status.channels[0].state, ChannelState::Down);
    assert!(status.channels[0].reason.contains("branch is no peer"));
    let text = client.text("/metrics").await.unwrap();
    let of_branch = |line: &&str| line.contains("peer=\"branch\"") && !line.contains("channel=");
    assert_eq!(text.lines().find(of_branch), None, "its series are gone");
    let refused = open(&hub.pair.region_config.socket, "branch", "echo", Class::App).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code, Code::NotFound);
    let history = hub.pair.region_config.state_dir.as_ref().unwrap();
    let names = std::fs::read_dir(history.join("forecast")).unwrap();
    let names: Vec<_> = names.map(|file| file.unwrap().file_name()).collect();
    assert!(
        names
            .iter()
            .any(|file| file.to_str().unwrap().contains("branch")),
        "its history is kept: {names:?}"
    );

    // The removed side says why, and asks about once a second.
    let reason = || hub.branch.status().links.remove(0).reason;
    until("the reason is told", || reason().contains("no peer")).await;
    let before = dials(&hub.branch_config).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let made = dials(&hub.branch_config).await - before;
    assert!(made <= 8, "{made} attempts in two seconds");

    hub.reload(&hub.region_config()).await;
    hub.branch.linked(&name("region"), SOON).await.unwrap();
    hub.pair.region.linked(&name("branch"), SOON).await.unwrap();
    let mut again = hub.stream(branch, "echo", &echo).await;
    check_lives(&mut again).await;
    check_lives(&mut kept).await;
    assert_eq!(hub.pair.edge.status().links[0].links_lost, 0);
    let state = || hub.pair.region.status().channels[0].state;
    assert_eq!(state(), ChannelState::Healthy);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reloads_in_quick_succession_end_with_the_last_file() {
    let hub = Hub::start_with(|_, _| ()).await;
    let echo = hub.pair.echo();
    let mut kept = hub
        .stream(&hub.pair.edge_config.socket, "echo", &echo)
        .await;
    let (with, without) = (hub.region_config(), without_branch(&hub));
    let region = &hub.pair.region;
    for _ in 0..10 {
        write(&without, &without.socket.with_file_name("tunnel.toml"));
        tokio::join!(region.reload(), region.reload());
        write(&with, &with.socket.with_file_name("tunnel.toml"));
        tokio::join!(region.reload(), region.reload());
    }
    hub.branch.linked(&name("region"), SOON).await.unwrap();
    region.linked(&name("branch"), SOON).await.unwrap();
    check_lives(&mut kept).await;
    // A file with a mistake changes nothing, though it removes a peer too.
    let mut wrong = without.clone();
    wrong.peers[0].address = Some("nowhere".to_owned());
    write(&wrong, &wrong.socket.with_file_name("tunnel.toml"));
    region.reload().await;
    assert!(region.status().configuration.problem.is_some());
    assert_eq!(region.status().links.len(), 2);
    check_lives(&mut kept).await;
}

/// A relay to the region at an address of its own.
fn relay(pair: &Pair) -> Relay {
    let door = Door {
        from: Side::A,
        listen: "127.0.0.1:0".parse().unwrap(),
        to: pair.region.listen_address().unwrap(),
    };
    Relay::start(&Options {
        doors: vec![door],
        from_a: Direction::default(),
        from_b: Direction::default(),
        seed: 1,
    })
    .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_lives_through_a_change_of_its_peers_address() {
    let change = |edge: &mut Config, _: &mut Config| {
        edge.read_from(edge.socket.with_file_name("tunnel.toml"));
    };
    let mut pair = Pair::start_with(change, Some(Direction::default())).await;
    let mut stream = pair.stream(Class::App).await;
    let link = |pair: &Pair| pair.region.status().links.remove(0);
    let mut config = pair.edge_config.clone();
    let file = config.socket.with_file_name("tunnel.toml");
    let second = relay(&pair);
    config.peers[0].address = Some(second.doors()[0].to_string());
    config.peers[0].probe = Some(ProbeConfig {
        interval: "10s".parse().unwrap(),
        bytes: "4MiB".parse().unwrap(),
    });
    let before = dials(&config).await;
    write(&config, &file);
    pair.edge.reload().await;
    assert_eq!(
        pair.edge.status().configuration.waiting_keys,
        Vec::<String>::new()
    );
    let dialling = async {
        while dials(&config).await == before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, dialling).await.unwrap();
    check_lives(&mut stream).await;
    pair.linked().await;
    // The old way is gone; the stream is on the new one.
    tokio::time::sleep(Duration::from_millis(300)).await;
    drop(pair.relay.take());
    for _ in 0..20 {
        check_lives(&mut stream).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(link(&pair).links_lost, 0);

    // Without an address the link in use stays.
    config.peers[0].address = None;
    write(&config, &file);
    pair.edge.reload().await;
    check_lives(&mut stream).await;
    assert_eq!(link(&pair).links_lost, 0);

    // Once the link is gone nobody dials, until there is an address again.
    let before = dials(&config).await;
    drop(second);
    until("the link is lost", || {
        pair.edge.status().links[0].links_lost > 0
    })
    .await;
    assert_eq!(dials(&config).await, before);
    config.peers[0].address = pair.region.listen_address().map(|at| at.to_string());
    write(&config, &file);
    pair.edge.reload().await;
    pair.linked().await;
    check_lives(&mut stream).await;
}
