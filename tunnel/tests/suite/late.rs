//! Channels whose addresses are in use by others when the tunnel starts.

use std::net::TcpListener;

use crate::harness::kept::Kept;
use crate::harness::{Pair, check_answers, metric, name, until};
use towpath_daemon::client::Client;
use towpath_protocol::class::Class;
use towpath_tunnel::Tunnel;
use towpath_tunnel::channels::ChannelSpec;
use towpath_tunnel::config::Config;
use towpath_tunnel::status::{ChannelList, ChannelOrigin, ChannelState, ChannelView};

fn channel_at(label: &str, address: &str) -> ChannelSpec {
    let (listen, way) = (format!("tcp:{address}"), (name("region"), name("echo")));
    ChannelSpec::new(name(label), listen.parse().unwrap(), way, Class::App)
}

/// Takes an address, and returns it with the listener that holds it. The address can be freed and
/// taken again, because nothing else here listens at this host address.
fn take_address() -> (TcpListener, String) {
    let taken = TcpListener::bind("127.9.2.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    (taken, address)
}

fn keeps_state(config: &mut Config) {
    config.state_dir = Some(config.socket.with_file_name("state"));
}

/// A tunnel's channel with this name.
fn find(tunnel: &Tunnel, label: &str) -> Option<ChannelView> {
    let mut channels = tunnel.status().channels.into_iter();
    channels.find(|channel| channel.name == label)
}

/// Checks that a channel is down, and says why.
fn check_is_late(view: &ChannelView, address: &str) {
    assert_eq!(view.state, ChannelState::Down, "{view:?}");
    assert_eq!(view.listen, format!("tcp:{address}"));
    let says = |word| view.reason.contains(word);
    assert!(says("cannot listen at") && says(address), "{view:?}");
    assert_eq!(
        view.last_error
            .as_ref()
            .map(|last| view.reason.contains(last)),
        Some(true)
    );
}

async fn check_opens(tunnel: &Tunnel, label: &str, address: &str) -> ChannelView {
    let listens = || find(tunnel, label).filter(|channel| channel.state == ChannelState::Healthy);
    until("the channel listens", || listens().is_some()).await;
    let view = listens().unwrap();
    // There is no service behind it, so connections fail.
    check_answers(address).await;
    view
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn con_1_a_configured_channel_without_its_address_keeps_no_tunnel_from_starting() {
    let (taken, address) = take_address();
    let address = &*address;
    let channels = vec![
        channel_at("late", address),
        channel_at("there", "127.0.0.1:0"),
    ];
    let pair = Pair::start_with(|edge, _| edge.channels = channels, None).await;
    check_is_late(&find(&pair.edge, "late").unwrap(), address);
    let there = find(&pair.edge, "there").unwrap();
    assert_eq!(there.state, ChannelState::Healthy, "{there:?}");
    let figure = async |metric_name: &str, labels: &str| {
        metric(&pair.edge_config, &format!("{metric_name}{{{labels}}}")).await
    };
    let generation = figure("towpath_channel_generation", "channel=\"late\"");
    assert_eq!(generation.await, 0);
    for (channel, is_up) in [("late", 0), ("there", 1)] {
        let labels = format!("channel=\"{channel}\",peer=\"region\"");
        assert_eq!(
            figure("towpath_channel_up", &labels).await,
            is_up,
            "{channel}"
        );
    }
    drop(taken);
    let view = check_opens(&pair.edge, "late", address).await;
    assert_eq!(view.origin, ChannelOrigin::Configured);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn con_7_a_pushed_channel_without_its_address_after_a_restart_is_tried_again() {
    let (free, address) = take_address();
    let address = &*address;
    let log = Kept::log();
    let change = |edge: &mut Config, _: &mut Config| {
        edge.read_from(edge.socket.with_file_name("tunnel.toml"));
        keeps_state(edge);
    };
    let pair = Pair::start_with(change, None).await;
    let config = pair.edge_config.clone();
    let client = Client::new(&config.admin.socket);
    let mut pushed = channel_at("pushed", address);
    drop(free);
    (pushed.generation, pushed.cap) = (3, Some("7Mbit".parse().unwrap()));
    let view: ChannelView = client.post("/v1/channels", &pushed).await.unwrap();
    pair.edge.stop().await;
    let taken = TcpListener::bind(address).unwrap();
    let edge = Tunnel::start(&config).await.unwrap();
    check_is_late(&find(&edge, "pushed").unwrap(), address);
    // It is not in the configuration, and stays when that is reloaded.
    std::fs::write(
        config.socket.with_file_name("tunnel.toml"),
        toml::to_string(&config).unwrap(),
    )
    .unwrap();
    edge.reload().await;
    check_is_late(&find(&edge, "pushed").unwrap(), address);
    // By now it has been tried twice, and reported once.
    let text = log.text();
    let lines = text.lines().filter(|line| line.contains("not opened"));
    assert_eq!(lines.filter(|line| line.contains(address)).count(), 1);
    drop(taken);
    edge.linked(&name("region"), crate::harness::SOON)
        .await
        .unwrap();
    let again = check_opens(&edge, "pushed", address).await;
    assert_eq!((again.origin, again.generation), (ChannelOrigin::Pushed, 3));
    assert_eq!(again.cap_bits_per_second, view.cap_bits_per_second);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn con_7_a_cap_that_was_pushed_holds_after_a_restart() {
    let pair = Pair::start_with(|edge, _| keeps_state(edge), None).await;
    let config = pair.edge_config.clone();
    let client = Client::new(&config.admin.socket);
    let mut pushed = channel_at("pushed", "127.0.0.1:0");
    pushed.cap = Some("7Mbit".parse().unwrap());
    let view: ChannelView = client.post("/v1/channels", &pushed).await.unwrap();
    assert_eq!(view.cap_bits_per_second, Some(7_000_000));
    pair.edge.stop().await;
    let edge = Tunnel::start(&config).await.unwrap();
    let again = find(&edge, "pushed").unwrap();
    assert_eq!(again.cap_bits_per_second, view.cap_bits_per_second);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn con_6_a_channel_that_is_closed_before_it_listens_never_does() {
    let [(first, one), (second, two)] = [(); 2].map(|()| take_address());
    let channels = vec![channel_at("closed", &one), channel_at("wanted", &two)];
    let pair = Pair::start_with(|edge, _| edge.channels = channels, None).await;
    let client = Client::new(&pair.edge_config.admin.socket);
    let left: ChannelList = client.delete("/v1/channels/closed").await.unwrap();
    assert_eq!(left.closed_by_hand, ["closed"]);
    drop((first, second));
    // Both are tried at once.
    check_opens(&pair.edge, "wanted", &two).await;
    assert_eq!(find(&pair.edge, "closed"), None);
}

/// A configuration that moves a channel to an address in use is retried again and again. A channel
/// pushed at the old address in the meantime keeps it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn con_8_a_channel_that_was_pushed_is_not_taken_away_by_what_could_not_be_had() {
    let (free, address) = take_address();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let change = |edge: &mut Config, _: &mut Config| {
        edge.read_from(edge.socket.with_file_name("tunnel.toml"));
        edge.channels = vec![channel_at("till", &address)];
    };
    let pair = Pair::start_with(change, None).await;
    let mut config = pair.edge_config.clone();
    check_opens(&pair.edge, "till", &address).await;
    let _taken = TcpListener::bind(("127.9.2.2", port)).unwrap();
    config.channels = vec![channel_at("till", &format!("0.0.0.0:{port}"))];
    let text = toml::to_string(&config).unwrap();
    std::fs::write(config.socket.with_file_name("tunnel.toml"), text).unwrap();
    pair.edge.reload().await;
    let client = Client::new(&config.admin.socket);
    let mut pushed = channel_at("till", &address);
    pushed.generation = 1;
    let _: ChannelView = client.post("/v1/channels", &pushed).await.unwrap();
    // Longer than the first pauses between two retries.
    for _ in 0..30 {
        let view = find(&pair.edge, "till").unwrap();
        assert_eq!(
            (&*view.listen, view.generation),
            (&*format!("tcp:{address}"), 1)
        );
        check_answers(&address).await;
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}
