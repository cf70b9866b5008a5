//! Streams that outlive their connections: cuts, replaced links, restarts, resets, strangers.

use std::io::ErrorKind;
use std::time::Duration;

use crate::harness::{Pair, accept, name, pattern, soon, start_again, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use towpath_bench::relay::{Control, Direction, Queue, Side};
use towpath_daemon::client::Client;
use towpath_daemon::units::Span;
use towpath_protocol::class::Class;
use towpath_protocol::endpoint::Endpoint;
use towpath_tunnel::Tunnel;
use towpath_tunnel::channels::ChannelSpec;
use towpath_tunnel::config::{Config, ServiceConfig};
use towpath_tunnel::status::{ChannelView, LinkState};

/// Most bytes that may be sent again after a cut: the tail.
const TAIL_BYTES: u64 = 1 << 20;

/// Bytes that both streams of [`check_cut`] carry in each direction.
const SENT_BYTES: u64 = 2 * (8 << 20);

/// A path of 40 ms and 50 Mbit/s.
fn thin() -> Direction {
    Direction {
        bits_per_second: Some(50_000_000),
        delay: Duration::from_millis(20),
        ..Direction::default()
    }
}

async fn start(change: impl FnOnce(&mut Config, &mut Config)) -> (Pair, Control) {
    let pair = Pair::start_with(change, Some(thin())).await;
    let control = pair.relay.as_ref().unwrap().control();
    (pair, control)
}

/// Sends and receives at the same time; returns what was received.
async fn exchange(socket: UnixStream, sent: &[u8]) -> Vec<u8> {
    let (mut read, mut write) = socket.into_split();
    let writing = async {
        for chunk in sent.chunks(50_000) {
            write.write_all(chunk).await.unwrap();
        }
        write.shutdown().await.unwrap();
    };
    let mut heard = Vec::new();
    let ((), read) = tokio::join!(writing, read.read_to_end(&mut heard));
    read.unwrap();
    heard
}

fn streams(tunnel: &Tunnel) -> (u64, u64) {
    let link = &tunnel.status().links[0];
    (link.streams, link.streams_paused)
}

/// The path after a cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Behind {
    /// The same path: the existing link answers again.
    Same,
    /// A router has lost its table: only a new link gets through.
    Another,
}

/// Sends data both ways over each class while the link is cut in one or both directions. Checks
/// that everything arrives in order, and that no more than the tails is sent again. Data in flight
/// at the cut is sent again.
async fn check_cut(outage: Duration, lost_from: &[Side], behind: Behind) {
    let (pair, control) = start(|_, _| ()).await;
    let classes = [Class::Demand, Class::Bulk];
    let mut ends = Vec::new();
    for class in classes {
        ends.push(pair.stream(class).await);
    }
    let up = pattern(5, 8 << 20);
    let down = pattern(9, 8 << 20);
    let cutting = async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        for side in lost_from {
            control.cut(*side);
        }
        tokio::time::sleep(outage).await;
        if behind == Behind::Another {
            control.change_addresses();
        }
        control.heal();
    };
    let (two, one) = (ends.pop().unwrap(), ends.pop().unwrap());
    let all = async {
        tokio::join!(
            exchange(one.0, &up),
            exchange(one.1, &down),
            exchange(two.0, &up),
            exchange(two.1, &down),
            cutting,
        )
    };
    let heard = tokio::time::timeout(Duration::from_secs(60), all)
        .await
        .unwrap();
    assert!(heard.0 == down && heard.1 == up, "demand");
    assert!(heard.2 == down && heard.3 == up, "bulk");
    for (tunnel, side) in [(&pair.edge, Side::A), (&pair.region, Side::B)] {
        let link = &tunnel.status().links[0];
        let (again, most) = (link.resent_bytes, 2 * TAIL_BYTES);
        assert!(again <= most, "{again} bytes again");
        let counters = control.counters(side);
        eprintln!("{side:?}: {again} bytes again, {counters:?}");
        // Bytes delivered beyond the streams' own: at most those sent again, and a tenth for
        // overhead.
        let carried = SENT_BYTES..=SENT_BYTES * 11 / 10 + again;
        assert!(carried.contains(&counters.delivered_bytes), "{counters:?}");
        if lost_from.contains(&side) {
            // In the middle of a flow each lost datagram carried stream bytes, which arrived in
            // another one.
            assert!(counters.cut_count > 0, "{counters:?}");
            assert!(again > 0 || behind == Behind::Same, "{counters:?}");
        }
        assert_eq!(link.streams_lost, 0);
        for class in classes {
            let counted = &link.classes[class.index()];
            let bytes = (counted.sent_bytes, counted.received_bytes);
            assert_eq!(bytes, (8 << 20, 8 << 20), "{class}");
        }
        until("all streams end", || streams(tunnel) == (0, 0)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_outlives_a_cut_of_three_seconds() {
    check_cut(Duration::from_secs(3), &[Side::A, Side::B], Behind::Another).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_outlives_a_cut_of_ten_seconds() {
    let both = &[Side::A, Side::B];
    let (same, another) = (Behind::Same, Behind::Another);
    let outage = Duration::from_secs(10);
    tokio::join!(
        check_cut(outage, both, same),
        check_cut(outage, both, another)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_outlives_the_loss_of_one_direction() {
    check_cut(Duration::from_secs(3), &[Side::B], Behind::Another).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_is_slow_is_not_a_program_that_reads_nothing() {
    let slow = Direction {
        bits_per_second: Some(100_000),
        delay: Duration::from_millis(5),
        queue: Queue::Time(Duration::from_millis(500)),
        ..Direction::default()
    };
    let impatient = |edge: &mut Config, region: &mut Config| {
        for config in [edge, region] {
            config.limits.stall_wait = Span::new(Duration::from_secs(1));
        }
    };
    let pair = Pair::start_with(impatient, Some(slow)).await;
    let (local, mut remote) = pair.stream(Class::Bulk).await;
    // It takes eight seconds, and five seconds' worth is in the tunnel at once.
    let sent = pattern(5, 100_000);
    let heard = async {
        let mut heard = Vec::new();
        remote.read_to_end(&mut heard).await.unwrap();
        remote.shutdown().await.unwrap();
        heard
    };
    let both = async { tokio::join!(exchange(local, &sent), heard) };
    let (_, heard) = tokio::time::timeout(Duration::from_secs(60), both)
        .await
        .unwrap();
    assert!(heard == sent);
}

/// Cuts the link, changes something, and heals the path for new links only.
async fn while_cut(pair: &Pair, control: &Control, change: impl AsyncFnOnce()) {
    control.cut_both();
    for tunnel in [&pair.edge, &pair.region] {
        until("no link", || tunnel.status().links[0].host.is_none()).await;
        until("the stream waits", || streams(tunnel) == (1, 1)).await;
    }
    change().await;
    control.change_addresses();
    control.heal();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_goes_away_during_an_outage_ends_the_other_end_after_it() {
    for edge_goes in [true, false] {
        let (pair, control) = start(|_, _| ()).await;
        let (local, remote) = pair.stream(Class::App).await;
        let (goes, mut stays) = if edge_goes {
            (local, remote)
        } else {
            (remote, local)
        };
        // A socket closed with unread data is reset.
        stays.write_all(b"never read").await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        while_cut(&pair, &control, async || drop(goes)).await;
        // A Unix socket has no reset, and everything it wrote was read.
        assert_eq!(soon(stays.read(&mut [0])).await.unwrap(), 0);
        for tunnel in [&pair.edge, &pair.region] {
            until("the stream is gone", || streams(tunnel) == (0, 0)).await;
            // Its program ended it, not an outage.
            assert_eq!(tunnel.status().links[0].streams_lost, 0);
        }
    }
}

/// Writes until the other end's tunnel has bytes that its program's socket has no room for. Returns
/// all that was written.
async fn overfill(pair: &Pair, writes: &mut UnixStream, reads: &UnixStream) -> Vec<u8> {
    // Fits in one packet, so that the tunnel takes the whole of the piece that has no room.
    let piece = pattern(7, 1000);
    let class = Class::App.index();
    let mut sent = Vec::new();
    loop {
        writes.write_all(&piece).await.unwrap();
        sent.extend_from_slice(&piece);
        let bytes = sent.len() as u64;
        let taken = || pair.region.status().links[0].classes[class].received_bytes;
        until("the tunnel has it", || taken() == bytes).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
        if rustix::io::ioctl_fionread(reads).unwrap() < bytes {
            return sent;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_after_an_outage_leaves_the_other_program_what_was_sent_before() {
    for is_read_in_outage in [false, true] {
        let (pair, control) = start(|_, _| ()).await;
        let (mut local, mut remote) = pair.stream(Class::App).await;
        // A socket closed with unread data is reset.
        remote.write_all(b"never read").await.unwrap();
        let sent = overfill(&pair, &mut local, &remote).await;
        let mut heard = Vec::new();
        while_cut(&pair, &control, async || {
            // The peer is not told of what is read now until there is a link.
            while is_read_in_outage && heard.len() < sent.len() {
                soon(remote.read_buf(&mut heard)).await.unwrap();
            }
        })
        .await;
        for tunnel in [&pair.edge, &pair.region] {
            until("the stream goes on", || streams(tunnel) == (1, 0)).await;
        }
        drop(local);
        // Longer than the word of the reset takes.
        tokio::time::sleep(Duration::from_millis(300)).await;
        soon(remote.read_to_end(&mut heard)).await.unwrap();
        assert_eq!(heard.len(), sent.len());
        assert!(heard == sent);
        for tunnel in [&pair.edge, &pair.region] {
            until("the stream is gone", || streams(tunnel) == (0, 0)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_and_ended_during_an_outage_arrives_after_it() {
    for edge_writes in [true, false] {
        let (pair, control) = start(|_, _| ()).await;
        let (local, remote) = pair.stream(Class::Control).await;
        let (mut writes, mut reads) = if edge_writes {
            (local, remote)
        } else {
            (remote, local)
        };
        let sent = pattern(3, 100_000);
        while_cut(&pair, &control, async || {
            writes.write_all(&sent).await.unwrap();
            writes.shutdown().await.unwrap();
        })
        .await;
        let mut heard = Vec::new();
        soon(reads.read_to_end(&mut heard)).await.unwrap();
        assert!(heard == sent);
        reads.write_all(b"thanks").await.unwrap();
        drop(reads);
        heard.clear();
        soon(writes.read_to_end(&mut heard)).await.unwrap();
        assert_eq!(heard, b"thanks", "the other direction lives on");
        for tunnel in [&pair.edge, &pair.region] {
            let again = tunnel.status().links[0].resent_bytes;
            assert!(again <= sent.len() as u64, "{again} bytes again");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_whose_outage_lasts_too_long_is_lost_and_forgotten() {
    let brief = Span::new(Duration::from_secs(1));
    let (pair, control) = start(|edge, region| {
        edge.limits.outage_wait = brief;
        region.limits.outage_wait = brief;
    })
    .await;
    let (mut local, mut remote) = pair.stream(Class::App).await;
    control.cut_both();
    for end in [&mut local, &mut remote] {
        // A Unix socket has no reset: its end looks like any other, but the log gives the reason.
        assert_eq!(soon(end.read(&mut [0])).await.unwrap(), 0);
    }
    for tunnel in [&pair.edge, &pair.region] {
        until("it is forgotten", || streams(tunnel) == (0, 0)).await;
        assert_eq!(tunnel.status().links[0].streams_lost, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_of_a_channel_whose_outage_lasts_too_long_is_reset_and_the_channel_says_why() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Endpoint::Tcp(listener.local_addr().unwrap());
    let (pair, control) = start(|edge, region| {
        region.services = vec![ServiceConfig::plain(
            name("till"),
            target,
            vec![name("edge")],
        )];
        for config in [edge, region] {
            config.limits.outage_wait = Span::new(Duration::from_secs(1));
        }
    })
    .await;
    let way = (name("region"), name("till"));
    let listen = "tcp:127.0.0.1:0".parse().unwrap();
    let spec = ChannelSpec::new(name("till"), listen, way, Class::App);
    let client = Client::new(&pair.edge_config.admin.socket);
    let view: ChannelView = client.post("/v1/channels", &spec).await.unwrap();
    let address = view.listen.strip_prefix("tcp:").unwrap().to_owned();
    let connecting = async { tokio::join!(TcpStream::connect(address), listener.accept()) };
    let (program, service) = soon(connecting).await;
    let (mut program, mut service) = (program.unwrap(), service.unwrap().0);
    // The service has its connection before the program's side is told.
    service.write_all(b"!").await.unwrap();
    soon(program.read_exact(&mut [0])).await.unwrap();
    control.cut_both();
    for end in [&mut program, &mut service] {
        let ended = soon(end.read(&mut [0])).await.unwrap_err();
        assert_eq!(ended.kind(), ErrorKind::ConnectionReset);
    }
    let why = || pair.edge.status().channels[0].last_error.clone();
    until("it says why", || why().is_some()).await;
    let why = why().unwrap();
    assert!(
        why.contains("E_UNREACHABLE") && why.contains("no link to region for 1s"),
        "{why}"
    );
}

/// Stops the region's tunnel without the peer hearing of it, and starts it again.
async fn restart_region(mut pair: Pair, control: &Control) -> Pair {
    control.cut_both();
    until("no link", || pair.edge.status().links[0].host.is_none()).await;
    let config = pair.region_config.clone();
    pair.region.stop().await;
    pair.region = start_again(&config).await;
    control.heal();
    pair.linked().await;
    pair
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_that_was_started_anew_ends_its_old_streams_at_once() {
    let (pair, control) = start(|_, _| ()).await;
    let (mut local, _remote) = pair.stream(Class::Bulk).await;
    let pair = restart_region(pair, &control).await;
    // A Unix socket has no reset, and it had read everything.
    assert_eq!(soon(local.read(&mut [0])).await.unwrap(), 0);
    until("it is gone", || streams(&pair.edge) == (0, 0)).await;
    assert_eq!(pair.edge.status().links[0].streams_lost, 1);
    // The next stream works.
    let (_local, _remote) = pair.stream(Class::Bulk).await;
}

/// Programs that wait for a link while the peer's tunnel is started anew, unheard, get their streams from the new run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_that_waited_while_the_peer_was_started_anew_are_served_by_the_new_run() {
    const PROGRAMS: usize = 10;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Endpoint::Tcp(listener.local_addr().unwrap());
    let (pair, control) = start(|_, region| {
        let service = ServiceConfig::plain(name("till"), target, vec![name("edge")]);
        region.services.push(service);
    })
    .await;
    let serving = tokio::spawn(async move {
        while let Ok((mut program, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = program.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    let way = (name("region"), name("till"));
    let listen = "tcp:127.0.0.1:0".parse().unwrap();
    let spec = ChannelSpec::new(name("till"), listen, way, Class::App);
    let client = Client::new(&pair.edge_config.admin.socket);
    let view: ChannelView = client.post("/v1/channels", &spec).await.unwrap();
    let address = view.listen.strip_prefix("tcp:").unwrap().to_owned();
    let (_before, _remote) = pair.stream(Class::App).await;
    control.cut_both();
    until("no link", || pair.edge.status().links[0].host.is_none()).await;
    let mut programs = Vec::new();
    for _ in 0..PROGRAMS {
        let mut program = TcpStream::connect(&address).await.unwrap();
        program.write_all(b"x").await.unwrap();
        programs.push(program);
    }
    let pair = restart_region(pair, &control).await;
    for program in &mut programs {
        soon(program.read_exact(&mut [0])).await.unwrap();
    }
    let running = PROGRAMS as u64;
    for tunnel in [&pair.edge, &pair.region] {
        until("only they are left", || streams(tunnel) == (running, 0)).await;
    }
    serving.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_the_region_began_resumes_although_the_edge_dials() {
    let (pair, control) = start(|_, _| ()).await;
    let listener = tokio::net::UnixListener::bind(&pair.edge_config.services[0].socket).unwrap();
    let socket = &pair.region_config.socket;
    let opening = crate::harness::open(socket, "edge", "echo", Class::Bulk);
    let (local, (_, remote)) = soon(async { tokio::join!(opening, accept(&listener)) }).await;
    let sent = pattern(21, 6 << 20);
    let cutting = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        control.cut_both();
        tokio::time::sleep(Duration::from_secs(1)).await;
        control.heal();
    };
    let local = local.unwrap();
    let all = async { tokio::join!(exchange(local, &sent), exchange(remote, &sent), cutting) };
    let (one, two, ()) = soon(all).await;
    assert!(one == sent && two == sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_are_bounded_while_they_have_no_connection() {
    let (pair, control) = start(|edge, region| {
        edge.limits.peer_streams = 1;
        region.limits.peer_streams = 1;
    })
    .await;
    let _first = pair.stream(Class::App).await;
    let _second = pair.stream(Class::Bulk).await;
    control.cut_both();
    until("no link", || pair.region.status().links[0].host.is_none()).await;
    control.change_addresses();
    control.heal();
    until("both go on", || streams(&pair.region) == (2, 0)).await;
    let listener = pair.echo();
    let third = async { tokio::join!(pair.open("echo", Class::App), listener.accept()) };
    let third = tokio::time::timeout(Duration::from_millis(500), third).await;
    assert!(third.is_err(), "QUIC's own limit holds a third one back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_is_replaced_while_it_works_moves_its_streams_without_a_cut() {
    let (pair, _control) = start(|_, _| ()).await;
    let (local, remote) = pair.stream(Class::Bulk).await;
    let sent = pattern(13, 12 << 20);
    let replacing = async {
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(400)).await;
            pair.edge.dial_anew(&name("region")).unwrap();
        }
    };
    let all = async { tokio::join!(exchange(local, &sent), exchange(remote, &sent), replacing) };
    let (one, two, ()) = soon(all).await;
    assert!(one == sent && two == sent);
    let link = &pair.edge.status().links[0];
    assert!(link.streams_resumed >= 2, "{} times", link.streams_resumed);
    assert_eq!((link.streams_lost, link.links_lost), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_address_of_the_edge_loses_nothing() {
    let (pair, control) = start(|_, _| ()).await;
    let (local, remote) = pair.stream(Class::Bulk).await;
    let sent = pattern(17, 8 << 20);
    let is = |state| pair.edge.status().links[0].state == state;
    let changing = async {
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            control.change_addresses();
            until("it shows", || is(LinkState::Degraded)).await;
            until("it is mended", || is(LinkState::Healthy)).await;
        }
    };
    let all = async { tokio::join!(exchange(local, &sent), exchange(remote, &sent), changing) };
    let (one, two, ()) = soon(all).await;
    assert!(one == sent && two == sent);
    assert_eq!(pair.edge.status().links[0].streams_lost, 0);
}
