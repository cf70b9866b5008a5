//! Links: kept up, cut, replaced.

use std::time::Duration;

use crate::harness::{
    Pair, SOON, Stopwatch, World, accept, metric, name, pattern, soon, start_again, until,
};
use crate::wire::check_wire_rate;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;
use towpath_bench::relay::{Direction, Door, Options, Relay, Side};
use towpath_certs::Validity;
use towpath_certs::authority::LEAF_VALIDITY;
use towpath_daemon::client::Client;
use towpath_protocol::class::Class;
use towpath_protocol::fault::Code;
use towpath_protocol::identity::HostIdentity;
use towpath_tunnel::Tunnel;
use towpath_tunnel::shares::Shaping;
use towpath_tunnel::status::LinkState;

/// A path with this round trip and no bottleneck.
fn far(round_trip: Duration) -> Direction {
    Direction {
        delay: round_trip / 2,
        ..Direction::default()
    }
}

/// A path of 40 ms.
fn forty_milliseconds() -> Direction {
    far(Duration::from_millis(40))
}

/// Waits until the edge's link is in a state.
async fn becomes(edge: &Tunnel, state: LinkState) {
    until("the link is in that state", || {
        edge.status().links[0].state == state
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_is_back_after_the_peer_restarts() {
    let mut pair = Pair::start().await;
    let config = pair.region_config.clone();
    pair.region.stop().await;
    becomes(&pair.edge, LinkState::Down).await;
    pair.region = start_again(&config).await;
    pair.linked().await;
    let listener = pair.echo();
    let (local, _) =
        soon(async { tokio::join!(pair.open("echo", Class::Control), accept(&listener)) }).await;
    local.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_link_begins_with_what_the_last_one_has_learnt() {
    const BITS_PER_SECOND: u64 = 80_000_000;
    let line = Direction {
        bits_per_second: Some(BITS_PER_SECOND),
        ..forty_milliseconds()
    };
    let mut pair = Pair::start_with(|_, _| (), Some(line)).await;
    let learns = |pair: &Pair| pair.edge.status().links[0].path_bits_per_second;
    let listener = pair.echo();
    let opened =
        async |pair: &Pair| tokio::join!(pair.open("echo", Class::Bulk), accept(&listener));
    let (local, (_, mut remote)) = soon(opened(&pair)).await;
    let (mut local, sent) = (local.unwrap(), pattern(7, 24 << 20));
    // Two seconds' worth of the line: the slow start is over long before.
    let mut heard = vec![0; sent.len()];
    let (wrote, read) =
        soon(async { tokio::join!(local.write_all(&sent), remote.read_exact(&mut heard)) }).await;
    wrote.and(read).unwrap();
    assert!(learns(&pair) > BITS_PER_SECOND / 2);
    drop((local, remote));
    let config = pair.region_config.clone();
    pair.region.stop().await;
    becomes(&pair.edge, LinkState::Down).await;
    pair.region = start_again(&config).await;
    pair.linked().await;
    // Opening a stream sends too little to show what the path carries.
    let (_local, _remote) = soon(opened(&pair)).await;
    until("it is known again", || learns(&pair) > BITS_PER_SECOND / 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_an_idle_link_neither_rate_nor_queue_is_told() {
    const LOOKS: usize = 31;
    let pair = Pair::start().await;
    let listener = pair.echo();
    let opened =
        soon(async { tokio::join!(pair.open("echo", Class::Bulk), accept(&listener)) }).await;
    let (mut local, (_, mut remote)) = (opened.0.unwrap(), opened.1);
    let mut queues = Vec::new();
    for _ in 0..LOOKS {
        // A lone small message: its acknowledgement may be delayed until there is another.
        soon(local.write_all(&[7; 9])).await.unwrap();
        soon(remote.read_exact(&mut [0; 9])).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        let link = pair.edge.status().links.remove(0);
        assert_eq!(link.path_bits_per_second, 0, "nothing has filled it");
        queues.push(link.legs.iter().map(|leg| leg.queue_us).max().unwrap());
        queues.push(link.queue_us);
    }
    queues.sort_unstable();
    assert!(queues[LOOKS] < 10_000, "{queues:?} us");
}

/// A link that does not answer is dialled anew within this time, even on a busy machine; QUIC's
/// last probe before a cut was at most half a second earlier.
const DIALLED_WITHIN: Duration = Duration::from_secs(3);

/// How a stream continued after a cut.
#[derive(Debug)]
struct Back {
    /// From the healing to its first byte, less the time that our threads waited for a processor.
    time: Duration,
    /// Whether it continued over another link.
    is_resumed: bool,
}

/// Cuts the path of a stream that is written at one end, then heals it. Unless `is_same`, the
/// healed path carries only new links. Afterwards another stream can be opened.
async fn outage(path: Direction, cut: Duration, writer: Side, is_same: bool) -> Back {
    let pair = Pair::start_with(|_, _| (), Some(path)).await;
    let (local, remote) = pair.stream(Class::Control).await;
    let (mut writes, mut reads) = match writer {
        Side::A => (local, remote),
        Side::B => (remote, local),
    };
    let control = pair.relay.as_ref().unwrap().control();
    let series = "towpath_tunnel_dials_total{cause=\"clock\"";
    let dialled = metric(&pair.edge_config, series).await;
    control.cut_both();
    let began = Instant::now();
    // Right away: data sent while the path comes back would get through by itself.
    writes.write_all(b"x").await.unwrap();
    tokio::time::sleep(cut).await;
    while metric(&pair.edge_config, series).await == dialled {
        assert!(began.elapsed() < DIALLED_WITHIN, "no dial in {cut:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    if !is_same {
        control.change_addresses();
    }
    control.heal();
    let healed = Stopwatch::start();
    soon(reads.read_exact(&mut [0])).await.unwrap();
    let time = healed.elapsed();
    let _another = pair.stream(Class::Control).await;
    let link = pair.edge.status().links.remove(0);
    Back {
        time,
        is_resumed: link.streams_resumed > 0,
    }
}

/// What an outage may cost on top of its duration.
const BACK_WITHIN: Duration = Duration::from_millis(400);

/// Cuts the paths of five links for a while each. All but one must be back at once; one may be
/// late, because this machine may have had to wait for its own host, which cannot be measured.
async fn back_at_once(cuts_ms: [u64; 5], is_same: bool) {
    let [a, b, c, d, e] = cuts_ms.map(|millis| {
        let cut = Duration::from_millis(millis);
        outage(forty_milliseconds(), cut, Side::A, is_same)
    });
    let (a, b, c, d, e) = tokio::join!(a, b, c, d, e);
    let mut backs = [a, b, c, d, e].map(|back| back.time);
    backs.sort_unstable();
    assert!(backs[3] <= BACK_WITHIN, "{backs:?}");
    assert!(backs[4] < Duration::from_millis(1500), "{backs:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_15_a_link_is_back_soon_after_a_short_cut() {
    back_at_once([1000, 1500, 2000, 2500, 3000], true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_16_a_link_is_back_soon_after_a_long_cut() {
    back_at_once([6000, 7000, 8000, 9000, 10_000], false).await;
}

/// It takes one round trip to reach the peer, another for its answer on where a stream continues,
/// and half of one for the data; waiting for the answer that accepts the link would add another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_16_streams_go_on_before_the_peer_has_said_that_it_takes_the_link() {
    const ROUND_TRIP: Duration = Duration::from_millis(800);
    let [a, b, c] = [6000, 6100, 6200].map(|millis| {
        let cut = Duration::from_millis(millis);
        outage(far(ROUND_TRIP), cut, Side::A, false)
    });
    let backs = tokio::join!(a, b, c);
    let soonest = backs.0.time.min(backs.1.time).min(backs.2.time);
    assert!(soonest < ROUND_TRIP * 11 / 4, "{backs:?}");
}

/// A link that was down for long answers a round trip after the path is back, and data written
/// meanwhile follows. That is half a round trip sooner than a new link is up, and two and a half
/// sooner than a stream continues over one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_16_streams_go_on_over_the_link_they_have_where_the_path_is_the_same() {
    const ROUND_TRIP: Duration = Duration::from_millis(800);
    for writer in [Side::A, Side::B] {
        let [a, b, c] = [6000, 7050, 8100].map(|millis| {
            let cut = Duration::from_millis(millis);
            outage(far(ROUND_TRIP), cut, writer, true)
        });
        let (a, b, c) = tokio::join!(a, b, c);
        let mut backs = [a, b, c];
        backs.sort_by_key(|back| back.time);
        // If a thread had to wait for a processor, a new link was sooner.
        assert!(backs.iter().any(|back| !back.is_resumed), "{backs:?}");
        assert!(backs[1].time < ROUND_TRIP * 2, "{backs:?}");
    }
}

/// Data from a peer does not show whether ours arrives, so a side that receives data still probes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_16_words_that_are_lost_one_way_alone_are_missed_and_follow_soon() {
    for lost in [Side::A, Side::B] {
        let pair = Pair::start_with(|_, _| (), Some(forty_milliseconds())).await;
        let (local, remote) = pair.stream(Class::Bulk).await;
        let (tunnel, mut writes, mut reads) = match lost {
            Side::A => (&pair.edge, local, remote),
            Side::B => (&pair.region, remote, local),
        };
        let control = pair.relay.as_ref().unwrap().control();
        control.cut(lost);
        writes.write_all(b"x").await.unwrap();
        becomes(tunnel, LinkState::Down).await;
        control.heal();
        let healed = Stopwatch::start();
        soon(reads.read_exact(&mut [0])).await.unwrap();
        let back = healed.elapsed();
        assert!(back < Duration::from_secs(1), "{lost:?}: {back:?}");
    }
}

/// A link that does not answer for long is reported as down, and is up again without a new link.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_16_a_link_that_does_not_answer_for_long_is_down_until_it_does() {
    let pair = Pair::start_with(|_, _| (), Some(forty_milliseconds())).await;
    let (_local, _remote) = pair.stream(Class::App).await;
    let control = pair.relay.as_ref().unwrap().control();
    control.cut_both();
    for tunnel in [&pair.edge, &pair.region] {
        becomes(tunnel, LinkState::Down).await;
        let link = tunnel.status().links.remove(0);
        assert_eq!((link.host, link.links_lost), (None, 1));
        assert_eq!((link.streams, link.streams_paused), (1, 1));
    }
    let refused = soon(pair.open("echo", Class::App)).await.unwrap_err();
    assert_eq!(refused.code, Code::Unreachable, "{refused}");
    control.heal();
    for tunnel in [&pair.edge, &pair.region] {
        becomes(tunnel, LinkState::Healthy).await;
        until("its stream goes on", || {
            tunnel.status().links[0].streams_paused == 0
        })
        .await;
        let link = tunnel.status().links.remove(0);
        assert_eq!((link.links_lost, link.reason.as_str()), (1, "up"));
    }
}

/// The goodbye must not wait behind a full window: the peer would have to time the link out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_goodbye_goes_out_however_full_the_path_is() {
    let mut pair = Pair::start_with(|_, _| (), Some(forty_milliseconds())).await;
    let mut streams = Vec::new();
    for class in [Class::Control, Class::Bulk] {
        let (mut local, remote) = pair.stream(class).await;
        let writing = async move { while local.write_all(&[7; 65_536]).await.is_ok() {} };
        streams.push((tokio::spawn(writing), remote));
    }
    let control = pair.relay.as_ref().unwrap().control();
    control.cut(Side::B);
    // Once both windows are full nothing goes to the region except packets of new links.
    let (mut heard, mut since) = (0, Instant::now());
    soon(async {
        while since.elapsed() < Duration::from_millis(150) {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let link = pair.region.status().links.remove(0);
            let received = link.classes.iter().map(|class| class.received_bytes).sum();
            if received != heard {
                (heard, since) = (received, Instant::now());
            }
        }
    })
    .await;
    pair.edge.stop().await;
    until("the region has heard it", || {
        pair.region.status().links[0].reason.contains("stops")
    })
    .await;
    for (writing, _) in streams {
        writing.abort();
    }
    pair.edge = start_again(&pair.edge_config).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_survives_a_hiccup_shorter_than_a_replacement_takes() {
    let pair = Pair::start_with(|_, _| (), Some(forty_milliseconds())).await;
    let (mut local, mut remote) = pair.stream(Class::Bulk).await;
    let control = pair.relay.as_ref().unwrap().control();
    let sent = pattern(3, 4 << 20);
    let writing = async {
        local.write_all(&sent).await.unwrap();
        local.shutdown().await.unwrap();
    };
    let hiccup = async {
        control.cut_both();
        tokio::time::sleep(Duration::from_millis(150)).await;
        control.heal();
    };
    let mut heard = Vec::new();
    let ((), (), read) =
        soon(async { tokio::join!(writing, hiccup, remote.read_to_end(&mut heard)) }).await;
    read.unwrap();
    assert!(heard == sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn con_10_a_peer_that_stops_answering_shows_before_quic_gives_up() {
    let pair = Pair::start_with(|_, _| (), Some(forty_milliseconds())).await;
    pair.relay.as_ref().unwrap().control().cut(Side::B);
    let cut = Instant::now();
    becomes(&pair.edge, LinkState::Degraded).await;
    assert!(
        cut.elapsed() < Duration::from_secs(2),
        "{:?}",
        cut.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_sites_that_dial_each_other_one_link_stays() {
    let world = World::new();
    let mut configs = [world.site("edge", "region"), world.site("region", "edge")];
    // Both need the other's port before they start.
    let sockets = [(); 2].map(|()| std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
    let addresses = sockets
        .each_ref()
        .map(|socket| socket.local_addr().unwrap());
    drop(sockets);
    for (position, config) in configs.iter_mut().enumerate() {
        config.listen = Some(addresses[position]);
        config.peers[0].address = Some(addresses[1 - position].to_string());
    }
    let edge = Tunnel::start(&configs[0]).await.unwrap();
    let region = Tunnel::start(&configs[1]).await.unwrap();
    let mut since = None;
    let settled = Instant::now() + Duration::from_secs(3);
    while Instant::now() < settled {
        edge.linked(&name("region"), SOON).await.unwrap();
        region.linked(&name("edge"), SOON).await.unwrap();
        let now = edge.status().links[0].since_unix_seconds;
        since = since.or(Some(now)).max(Some(now));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let began = edge.status().links[0].since_unix_seconds;
    let ended = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    assert!(began < ended, "the link was replaced again and again");
    assert_eq!(since, Some(began));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_says_how_much_it_wants_to_receive() {
    let pair = Pair::start_with(
        |_, region| region.peers[0].receive_rate = Some("16Mbit".parse().unwrap()),
        Some(forty_milliseconds()),
    )
    .await;
    let cap = pair.edge.status().links[0].cap_bits_per_second;
    assert_eq!(cap, Some(16_000_000));
    check_wire_rate(&pair, 2_000_000).await;
    // It changes its limit while the link lives: to a rate, to a timetable, and to none.
    let client = Client::new(&pair.region_config.admin.socket);
    let mut wanted: Shaping = client.get("/v1/shaping/edge").await.unwrap();
    for (rate, week, heard) in [
        (Some("24Mbit"), None, Some(24_000_000)),
        (None, Some("8Mbit otherwise"), Some(8_000_000)),
        (None, None, None),
    ] {
        wanted.receive_rate = rate.map(|rate| rate.parse().unwrap());
        wanted.receive_timetable = week.map(|week| week.parse().unwrap());
        let _: Shaping = client.post("/v1/shaping/edge", &wanted).await.unwrap();
        let asked = pair.region.status().links[0].receive_cap_bits_per_second;
        assert_eq!(asked, heard);
        soon(async {
            while pair.edge.status().links[0].cap_bits_per_second != heard {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }
    assert_eq!(pair.edge.status().links[0].links_lost, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_timetable_sets_the_cap_and_says_when_it_changes() {
    let pair = Pair::start_with(
        |edge, _| {
            // Nearly the same on every day, so that it does not matter when the test runs.
            let week = "40Mbit mon-tue, 40.001Mbit otherwise".parse();
            edge.peers[0].send_timetable = Some(week.unwrap());
        },
        Some(forty_milliseconds()),
    )
    .await;
    let link = &pair.edge.status().links[0];
    let mega = link.cap_bits_per_second.unwrap() / 10_000;
    assert_eq!(mega, 4000);
    let now = std::time::SystemTime::now();
    let now = now.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let change = link.cap_changes_unix_seconds.unwrap();
    assert!(change > now && change <= now + 7 * 86_400 && change % 86_400 == 0);
    check_wire_rate(&pair, 5_000_000).await;
}

/// Two hosts claim to be the region's tunnel: one has the link, the other one is dialled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_is_not_taken_is_no_peer_that_was_reached() {
    let world = World::new();
    let mut first = world.site("region", "edge");
    let mut second = first.clone();
    let host = HostIdentity::from_uri("spiffe://shop.example/site/region/host/box-2").unwrap();
    let validity = Validity::lasting(LEAF_VALIDITY, std::time::SystemTime::now());
    let folder = world.path("box-2-certs");
    let files = world.authority.issue(&host, validity, &folder).unwrap();
    second.host = host.host;
    second.certificates = files.into();
    second.socket = world.path("box-2-run/tunnel.sock");
    second.admin.socket = world.path("box-2-run/admin.sock");
    let second = Tunnel::start(&second).await.unwrap();

    let mut edge_config = world.site("edge", "region");
    // The first one gets the link before the second can be reached.
    let path = Options {
        doors: vec![Door {
            from: Side::A,
            listen: "127.0.0.1:0".parse().unwrap(),
            to: second.listen_address().unwrap(),
        }],
        from_a: Direction::default(),
        from_b: Direction::default(),
        seed: 1,
    };
    let relay = Relay::start(&path).unwrap();
    relay.control().cut_both();
    edge_config.peers[0].address = Some(relay.doors()[0].to_string());
    let edge = Tunnel::start(&edge_config).await.unwrap();
    first.peers[0].address = Some(edge.listen_address().unwrap().to_string());
    let _first = Tunnel::start(&first).await.unwrap();
    edge.linked(&name("region"), SOON).await.unwrap();
    relay.control().heal();

    edge.dial_anew(&name("region")).unwrap();
    let dials = async || metric(&edge_config, "towpath_tunnel_dials_total{cause=\"clock\"").await;
    let before = dials().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let count = dials().await - before;
    assert!((2..=20).contains(&count), "{count} dials");
    assert_eq!(edge.status().links[0].links_lost, 0);
}
