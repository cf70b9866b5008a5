//! Caps, shares and channels that change while streams run: by hand, and by reloading the
//! configuration.

use std::fs;
use std::path::Path;

use crate::harness::{Pair, check_answers, metric, name, until};
use tokio::net::UdpSocket;
use towpath_daemon::client::Client;
use towpath_protocol::class::Class;
use towpath_protocol::fault::Code;
use towpath_protocol::rate::Rate;
use towpath_tunnel::channels::ChannelSpec;
use towpath_tunnel::config::Config;
use towpath_tunnel::shares::{ServiceCap, Shaping, Share};
use towpath_tunnel::status::{ChannelState, ChannelView, ConfigurationView, LinkView, ServiceView};

const CAP: &str = "20Mbit";

fn rate(text: &str) -> Rate {
    text.parse().unwrap()
}

fn weights(pairs: &[(Class, u32)]) -> Shaping {
    let share = |weight| Share {
        weight: Some(weight),
        ..Share::default()
    };
    let mut shaping = Shaping {
        send_rate: Some(rate(CAP)),
        ..Shaping::default()
    };
    let pairs = pairs.iter().map(|(class, weight)| (*class, share(*weight)));
    shaping.shares.0.extend(pairs);
    shaping
}

fn link(pair: &Pair) -> LinkView {
    pair.edge.status().links.remove(0)
}

fn sent(pair: &Pair) -> [u64; 2] {
    let link = link(pair);
    [Class::App, Class::Bulk].map(|class| link.classes[class.index()].sent_bytes)
}

/// Of the next `bytes` that the two classes send, the second one's share in thousandths.
async fn part_of_bulk(pair: &Pair, bytes: u64) -> u64 {
    let before = sent(pair);
    let news = || {
        let now = sent(pair);
        [now[0] - before[0], now[1] - before[1]]
    };
    until("so much is sent", || news().iter().sum::<u64>() >= bytes).await;
    let [app, bulk] = news();
    bulk * 1000 / (app + bulk)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caps_and_shares_change_by_hand_while_streams_run() {
    let pair = Pair::start_with(|edge, _| edge.peers[0].send_rate = Some(rate(CAP)), None).await;
    let _filling = [pair.fill(Class::App).await, pair.fill(Class::Bulk).await];
    let client = Client::new(&pair.edge_config.admin.socket);
    for (app, bulk, expected) in [(1, 3, 700..=800), (3, 1, 200..=300)] {
        let wanted = weights(&[(Class::App, app), (Class::Bulk, bulk)]);
        let now: Shaping = client.post("/v1/shaping/region", &wanted).await.unwrap();
        assert_eq!(now, wanted);
        // Data already buffered was scheduled by the old weights.
        part_of_bulk(&pair, 500_000).await;
        let part = part_of_bulk(&pair, 4_000_000).await;
        assert!(expected.contains(&part), "{app} to {bulk}: {part}");
    }
    // A cap on the class works too, and can be removed again.
    let mut wanted = weights(&[(Class::App, 3), (Class::Bulk, 3)]);
    let bulk = wanted.shares.0.get_mut(&Class::Bulk).unwrap();
    bulk.cap = Some(rate("2Mbit"));
    let _: Shaping = client.post("/v1/shaping/region", &wanted).await.unwrap();
    part_of_bulk(&pair, 500_000).await;
    let part = part_of_bulk(&pair, 4_000_000).await;
    assert!((50..=150).contains(&part), "{part}");
    assert_eq!(
        link(&pair).classes[Class::Bulk.index()].cap_bits_per_second,
        Some(2_000_000)
    );
    // Another cap on the link, and none: the streams survive all of it.
    for cap in [Some("40Mbit"), None] {
        wanted.send_rate = cap.map(rate);
        let _: Shaping = client.post("/v1/shaping/region", &wanted).await.unwrap();
        let shown = link(&pair).cap_bits_per_second;
        assert_eq!(shown, cap.map(|cap| rate(cap).bits_per_second()));
        part_of_bulk(&pair, 4_000_000).await;
    }
    assert_eq!(link(&pair).links_lost, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l06_rules_that_cannot_be_meant_change_nothing() {
    let pair = Pair::start_with(|edge, _| edge.peers[0].send_rate = Some(rate(CAP)), None).await;
    let client = Client::new(&pair.edge_config.admin.socket);
    let mut both = weights(&[]);
    both.send_timetable = Some("5Mbit otherwise".parse().unwrap());
    let mut asked = weights(&[]);
    asked.receive_rate = Some(rate("1Mbit"));
    asked.receive_timetable = Some("5Mbit otherwise".parse().unwrap());
    let mut above = weights(&[(Class::Bulk, 1001)]);
    let mut floor = weights(&[]);
    floor.shares.0.insert(
        Class::App,
        Share {
            floor: Some(rate("19Mbit")),
            ..Share::default()
        },
    );
    for (wrong, word) in [
        (&both, "otherwise"),
        (&asked, "receive_rate"),
        (&above, "1000"),
        (&floor, "nine tenths"),
    ] {
        let answer: Result<Shaping, _> = client.post("/v1/shaping/region", wrong).await;
        let problem = answer.unwrap_err();
        assert_eq!(problem.code, Code::Usage.as_str());
        assert!(problem.cause.contains(word), "{problem:?}");
    }
    above.shares.0.clear();
    let answer: Result<Shaping, _> = client.post("/v1/shaping/nowhere", &above).await;
    assert_eq!(answer.unwrap_err().code, Code::NotFound.as_str());
    let answer: Result<ServiceView, _> = client
        .post("/v1/services/nothing", &ServiceCap { cap: None })
        .await;
    assert_eq!(answer.unwrap_err().code, Code::NotFound.as_str());
    let now: Shaping = client.get("/v1/shaping/region").await.unwrap();
    assert_eq!(now, weights(&[]));
}

/// Writes the configuration as its operator would.
pub(crate) fn write(config: &Config, path: &Path) {
    fs::write(path, toml::to_string(config).unwrap()).unwrap();
}

fn channel(label: &str, cap: Option<&str>) -> ChannelSpec {
    let listen = "tcp:127.0.0.1:0".parse().unwrap();
    let service = (name("region"), name("echo"));
    ChannelSpec {
        cap: cap.map(rate),
        ..ChannelSpec::new(name(label), listen, service, Class::App)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l06_the_configuration_is_read_again_and_one_with_a_mistake_changes_nothing() {
    let pair = Pair::start_with(
        |edge, _| {
            edge.read_from(edge.socket.with_file_name("tunnel.toml"));
            edge.channels = vec![channel("kept", None), channel("gone", None)];
        },
        None,
    )
    .await;
    let file = pair.edge_config.socket.with_file_name("tunnel.toml");
    let client = Client::new(&pair.edge_config.admin.socket);
    let mut pushed = channel("pushed", None);
    pushed.generation = 7;
    let _: ChannelView = client.post("/v1/channels", &pushed).await.unwrap();
    let kept = |pair: &Pair| pair.edge.status().channels;
    let listen = kept(&pair)[1].listen.clone();

    let mut next = pair.edge_config.clone();
    next.peers[0].send_rate = Some(rate(CAP));
    next.peers[0].shares = weights(&[(Class::Bulk, 5)]).shares;
    next.services[0].cap = Some(rate("3Mbit"));
    next.channels = vec![channel("kept", Some("4Mbit")), channel("new", None)];
    // It cannot change while the tunnel runs, and does not prevent the other changes.
    next.limits.peer_streams = 65;
    write(&next, &file);
    pair.edge.reload().await;
    let changed = |pair: &Pair| {
        let status = pair.edge.status();
        let names: Vec<_> = status.channels.iter().map(|one| one.name.clone()).collect();
        assert_eq!(names, ["kept", "new", "pushed"]);
        assert_eq!(status.channels[0].cap_bits_per_second, Some(4_000_000));
        assert_eq!(status.channels[0].listen, listen, "programs stay connected");
        assert_eq!(status.services[0].cap_bits_per_second, Some(3_000_000));
        let link = &status.links[0];
        assert_eq!(link.cap_bits_per_second, Some(20_000_000));
        assert_eq!(link.classes[Class::Bulk.index()].weight, Some(5));
    };
    changed(&pair);
    let view = pair.edge.status().configuration;
    assert_eq!(view.problem, None);
    assert_eq!(view.waiting_keys, ["limits"]);

    let text = fs::read_to_string(&file).unwrap();
    for wrong in [
        text.replace("20Mbit", "fast"),
        text.replace("weight = 5", "weight = 5000"),
        String::new(),
    ] {
        assert_ne!(wrong, text);
        fs::write(&file, wrong).unwrap();
        pair.edge.reload().await;
        changed(&pair);
        let view = pair.edge.status().configuration;
        assert!(view.problem.unwrap().starts_with("E_CONFIG: "));
        assert_eq!(view.waiting_keys, ["limits"], "as before");
    }
    fs::remove_file(&file).unwrap();
    pair.edge.reload().await;
    changed(&pair);
    for (result, count) in [("taken", 0), ("partly", 1), ("refused", 4)] {
        let series = format!("towpath_config_reloads_total{{result=\"{result}\"}}");
        assert_eq!(metric(&pair.edge_config, &series).await, count, "{result}");
    }
    let problem = "towpath_config_problem ";
    assert_eq!(metric(&pair.edge_config, problem).await, 1);

    // A change by hand is replaced by the file's value.
    let by_hand = weights(&[(Class::Bulk, 9)]);
    let _: Shaping = client.post("/v1/shaping/region", &by_hand).await.unwrap();
    let cap = ServiceCap { cap: None };
    let view: ServiceView = client.post("/v1/services/echo", &cap).await.unwrap();
    assert_eq!(view.cap_bits_per_second, None);
    next.limits = pair.edge_config.limits.clone();
    write(&next, &file);
    pair.edge.reload().await;
    assert_eq!(metric(&pair.edge_config, problem).await, 0);
    changed(&pair);
    assert_eq!(
        pair.edge.status().configuration,
        ConfigurationView::default()
    );
    pair.linked().await;
}

/// A channel at an address of this host that no other test uses.
fn channel_at(label: &str, listen: &str) -> ChannelSpec {
    ChannelSpec {
        listen: listen.parse().unwrap(),
        ..channel(label, None)
    }
}

/// The edge's channels by name, each with its address.
fn listening(pair: &Pair) -> Vec<(String, String)> {
    let channels = pair.edge.status().channels.into_iter();
    channels.map(|one| (one.name, one.listen)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l06_channels_that_trade_addresses_or_names_are_all_there_after_a_reload() {
    let [one, two, three] = [1, 2, 3].map(|port| format!("tcp:127.9.1.1:700{port}"));
    let [four, five] = [4, 5].map(|port| format!("udp:127.9.1.1:700{port}"));
    let first = [("a", &one), ("b", &two), ("c", &four), ("d", &five)];
    let specs = |channels: &[(&str, &String)]| {
        let all = channels
            .iter()
            .map(|(label, listen)| channel_at(label, listen));
        all.collect::<Vec<_>>()
    };
    let began = specs(&first);
    let pair = Pair::start_with(
        |edge, region| {
            edge.read_from(edge.socket.with_file_name("tunnel.toml"));
            edge.channels = began;
            region.services[0].target = Some("tcp:127.0.0.1:1".parse().unwrap());
            region.services[0].socket = std::path::PathBuf::new();
        },
        None,
    )
    .await;
    let file = pair.edge_config.socket.with_file_name("tunnel.toml");
    // A live flow does not keep its address from other channels.
    let source = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    source.send_to(b"hello", "127.9.1.1:7004").await.unwrap();
    until("a flow", || {
        pair.edge.status().channels[2].connections_total > 0
    })
    .await;
    for next in [
        // The addresses swapped.
        &[("a", &two), ("b", &one), ("c", &five), ("d", &four)][..],
        // Each at the address of the one before.
        &[("a", &three), ("b", &two), ("c", &four), ("d", &five)],
        &[("a", &two), ("b", &one), ("c", &five), ("d", &four)],
        // Other names.
        &[("b", &two), ("e", &one), ("f", &four), ("g", &five)],
    ] {
        let mut config = pair.edge_config.clone();
        config.channels = specs(next);
        write(&config, &file);
        pair.edge.reload().await;
        let wanted: Vec<_> = next
            .iter()
            .map(|(label, listen)| ((*label).to_owned(), (*listen).clone()))
            .collect();
        assert_eq!(listening(&pair), wanted);
        for (_, listen) in next {
            if let Some(address) = listen.strip_prefix("tcp:") {
                check_answers(address).await;
            }
        }
    }
}

/// Two sites; the edge can reload its configuration and starts with these channels.
async fn pair_with(channels: Vec<ChannelSpec>) -> Pair {
    let change = |edge: &mut Config, _: &mut Config| {
        edge.read_from(edge.socket.with_file_name("tunnel.toml"));
        edge.channels = channels;
    };
    Pair::start_with(change, None).await
}

/// Makes the edge reload a configuration with these channels.
async fn reload_with(pair: &Pair, channels: Vec<ChannelSpec>) {
    let mut config = pair.edge_config.clone();
    config.channels = channels;
    write(&config, &config.socket.with_file_name("tunnel.toml"));
    pair.edge.reload().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l06_a_channel_whose_address_is_taken_is_opened_once_it_is_free() {
    let pair = pair_with(Vec::new()).await;
    let taken = std::net::TcpListener::bind("127.9.1.2:7001").unwrap();
    reload_with(&pair, vec![channel_at("late", "tcp:127.9.1.2:7001")]).await;
    let state = || pair.edge.status().channels[0].state;
    assert_eq!(state(), ChannelState::Down);
    drop(taken);
    until("the channel is open", || state() == ChannelState::Healthy).await;
    check_answers("127.9.1.2:7001").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l06_a_channel_that_cannot_move_stays_where_it_was_until_it_can() {
    let [one, two] = [1, 2].map(|port| format!("127.9.1.3:700{port}"));
    check_moves_late(&one, &two, &two).await;
    // The same port, in use by another program at one of its addresses.
    check_moves_late("127.9.1.5:7019", "0.0.0.0:7019", "127.9.1.6:7019").await;
}

/// Moves a channel to an address that is in use for a while.
async fn check_moves_late(one: &str, two: &str, taken: &str) {
    let at = |address: &str| vec![channel_at("moving", &format!("tcp:{address}"))];
    let pair = pair_with(at(one)).await;
    let taken = std::net::TcpListener::bind(taken).unwrap();
    reload_with(&pair, at(two)).await;
    let shown = || pair.edge.status().channels.remove(0);
    assert_eq!(shown().listen, format!("tcp:{one}"));
    assert!(shown().last_error.unwrap().contains(two));
    check_answers(one).await;
    drop(taken);
    until("the channel has moved", || {
        shown().listen == format!("tcp:{two}")
    })
    .await;
    check_answers(two).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l06_a_channel_that_has_no_address_left_is_shown_as_down() {
    let [one, two] = [1, 2].map(|port| format!("tcp:127.9.1.4:700{port}"));
    let pair = pair_with(vec![channel_at("a", &one)]).await;
    let _taken = std::net::TcpListener::bind("127.9.1.4:7002").unwrap();
    // Another channel takes the address that the first one frees.
    reload_with(&pair, vec![channel_at("a", &two), channel_at("b", &one)]).await;
    let [a, b] = [0, 1].map(|place| pair.edge.status().channels.remove(place));
    assert_eq!(
        (a.state, b.state),
        (ChannelState::Down, ChannelState::Healthy)
    );
    assert!(a.reason.contains("does not listen"), "{}", a.reason);
    assert_eq!(b.listen, one);
}
