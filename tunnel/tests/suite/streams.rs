//! Streams between two sites: opened, copied, half closed, denied, starved.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::kept::Kept;
use crate::harness::{Pair, SOON, World, accept, echo, metric, name, open, pattern, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};
use towpath_bench::relay::{Direction, Side};
use towpath_daemon::stream;
use towpath_daemon::units::Span;
use towpath_protocol::class::Class;
use towpath_protocol::fault::Code;
use towpath_protocol::preamble::{Open, Preamble};
use towpath_tunnel::Tunnel;
use towpath_tunnel::config::{Config, PeerConfig};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_class_carries_bytes_both_ways() {
    let pair = Pair::start().await;
    let echo = echo(pair.echo());
    for class in Class::ALL {
        let mut local = pair.open("echo", class).await.unwrap();
        let sent = pattern(class.index() as u64, 300_000);
        let (mut read, mut write) = local.split();
        let writing = async {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let mut heard = Vec::new();
        let reading = read.read_to_end(&mut heard);
        let ((), read) = soon(async { tokio::join!(writing, reading) }).await;
        read.unwrap();
        assert!(
            heard == sent,
            "{class}: {} of {} bytes",
            heard.len(),
            sent.len()
        );
    }
    let status = pair.edge.status();
    for class in &status.links[0].classes {
        assert_eq!((class.sent_bytes, class.received_bytes), (300_000, 300_000));
    }
    echo.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_hears_who_opened_the_stream() {
    let pair = Pair::start().await;
    let listener = pair.echo();
    let (_local, (accepted, _remote)) =
        soon(async { tokio::join!(pair.open("echo", Class::Demand), accept(&listener)) }).await;
    assert_eq!(accepted.peer.to_string(), "edge/box-1");
    assert_eq!(accepted.service, name("echo"));
    assert_eq!(accepted.class, Class::Demand);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_direction_may_end_while_the_other_goes_on() {
    let pair = Pair::start().await;
    let (mut local, mut remote) = pair.stream(Class::App).await;
    local.write_all(b"question").await.unwrap();
    local.shutdown().await.unwrap();
    let mut heard = Vec::new();
    soon(remote.read_to_end(&mut heard)).await.unwrap();
    assert_eq!(heard, b"question");
    let answer = pattern(5, 2_000_000);
    let writing = async {
        remote.write_all(&answer).await.unwrap();
        remote.shutdown().await.unwrap();
    };
    let mut heard = Vec::new();
    let ((), read) = soon(async { tokio::join!(writing, local.read_to_end(&mut heard)) }).await;
    read.unwrap();
    assert!(heard == answer);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_goes_away_ends_the_other_end() {
    let pair = Pair::start().await;
    let (mut local, remote) = pair.stream(Class::Bulk).await;
    drop(remote);
    let ended = async { while local.write_all(&[0; 4096]).await.is_ok() {} };
    soon(ended).await;
    let status = pair.edge.status();
    assert_eq!(status.links[0].peer, "region");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_link_ends_its_streams_even_if_they_are_silent() {
    let pair = Pair::start().await;
    let (mut local, _remote) = pair.stream(Class::Control).await;
    pair.region.stop().await;
    let mut byte = [0];
    let ended = soon(local.read(&mut byte)).await;
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_reached_is_refused_with_a_code() {
    let pair = Pair::start().await;
    let refused = |service: &'static str, peer: &'static str| {
        let socket = pair.edge_config.socket.clone();
        async move { open(&socket, peer, service, Class::App).await.unwrap_err() }
    };
    assert_eq!(refused("echo", "mars").await.code, Code::NotFound);
    // The service's program does not listen.
    assert_eq!(refused("echo", "region").await.code, Code::Unreachable);
    pair.region.stop().await;
    // Once the goodbye has arrived, there is no link.
    let wait = async {
        while pair
            .edge
            .linked(&name("region"), Duration::ZERO)
            .await
            .is_ok()
        {
            tokio::task::yield_now().await;
        }
    };
    soon(wait).await;
    let fault = refused("echo", "region").await;
    assert_eq!(fault.code, Code::Unreachable);
    assert!(fault.detail.contains("no link to region"), "{fault}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t15_services_are_denied_to_sites_that_are_not_allowed() {
    let pair = Pair::start_with(
        |_, region| {
            region.peers.push(PeerConfig::new(name("elsewhere")));
            region.services[0].allow = vec![name("elsewhere")];
        },
        None,
    )
    .await;
    let log = Kept::log();
    let listener = pair.echo();
    let known = pair.open("echo", Class::App).await.unwrap_err();
    let unknown = pair.open("nothing", Class::App).await.unwrap_err();
    assert_eq!((known.code, unknown.code), (Code::Denied, Code::Denied));
    assert_eq!(
        known.detail.replace("echo", "nothing"),
        unknown.detail,
        "a refusal does not tell whether the service exists"
    );
    let touched = timeout(Duration::from_millis(50), listener.accept()).await;
    assert!(touched.is_err(), "the service saw a connection");
    let text = log.text();
    for (service, why) in [
        ("echo", "its site is not allowed"),
        ("nothing", "no such service"),
    ] {
        let is_said = |line: &str| {
            let words = ["audit", "service denied", "edge/box-1", service, why];
            words.into_iter().all(|word| line.contains(word))
        };
        assert!(text.lines().any(is_said), "{service}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t17_a_peer_that_stops_reading_ends_with_bounded_memory() {
    let brief = Span::new(Duration::from_secs(1));
    let pair = Pair::start_with(
        |edge, region| {
            edge.limits.stall_wait = brief;
            region.limits.stall_wait = brief;
        },
        None,
    )
    .await;
    let (mut local, remote) = pair.stream(Class::Bulk).await;
    let chunk = vec![7; 64 * 1024];
    let mut taken: u64 = 0;
    let began = Instant::now();
    let ended = async {
        while local.write_all(&chunk).await.is_ok() {
            taken += chunk.len() as u64;
        }
    };
    soon(ended).await;
    // The windows of both sides, socket buffers, and one buffer in use on each.
    assert!(taken <= 48 * 1024 * 1024, "{taken} bytes were taken");
    assert!(began.elapsed() >= brief.duration());
    drop(remote);
    // The link itself survives.
    let listener = pair.echo();
    let (again, _) =
        soon(async { tokio::join!(pair.open("echo", Class::Bulk), accept(&listener)) }).await;
    again.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_local_program_that_drips_its_first_words_is_let_go() {
    let brief = Span::new(Duration::from_millis(300));
    let pair = Pair::start_with(|edge, _| edge.limits.preamble_wait = brief, None).await;
    let mut local = UnixStream::connect(&pair.edge_config.socket).await.unwrap();
    local.write_all(b"TP").await.unwrap();
    let mut answer = Vec::new();
    soon(local.read_to_end(&mut answer)).await.unwrap();
    let Ok(Preamble::Refused(fault)) = Preamble::decode(&answer) else {
        panic!("{answer:?}");
    };
    assert_eq!(fault.code, Code::Stalled);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_local_program_hears_what_mends_a_link_that_is_down() {
    let world = World::new();
    let config = world.site("edge", "region");
    let edge = Tunnel::start(&config).await.unwrap();
    let open = Open {
        peer: name("region"),
        service: name("echo"),
        class: Class::App,
    };
    let asking = move || stream::open_stream(&config.socket, &open, SOON);
    let fault = soon(tokio::task::spawn_blocking(asking)).await.unwrap();
    let fault = fault.unwrap_err();
    let link = edge.status().links.remove(0);
    assert_eq!(fault.code, Code::Unreachable);
    assert_eq!(fault.detail, format!("no link to region: {}", link.reason));
    assert!(
        fault.remedy.is_some() && fault.remedy == link.remedy,
        "{fault:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_streams_beyond_the_limit_are_refused() {
    let pair = Pair::start_with(|edge, _| edge.limits.local_streams = 1, None).await;
    let (_local, _remote) = pair.stream(Class::App).await;
    let fault = pair.open("echo", Class::App).await.unwrap_err();
    assert_eq!(fault.code, Code::Busy);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_many_megabytes_arrives_whole() {
    let pair = Pair::start().await;
    let (mut local, mut remote) = pair.stream(Class::Bulk).await;
    let sent = pattern(11, 64 << 20);
    let writing = async {
        local.write_all(&sent).await.unwrap();
        local.shutdown().await.unwrap();
    };
    let mut heard = Vec::with_capacity(sent.len());
    let began = Instant::now();
    let ((), read) = soon(async { tokio::join!(writing, remote.read_to_end(&mut heard)) }).await;
    read.unwrap();
    assert!(heard == sent);
    assert!(began.elapsed() < SOON);
}

/// The window of an ordinary path, in bytes.
const ORDINARY_BYTES: u64 = 24 << 20;

/// Two sites with a path between them that holds more than that.
async fn long_pair() -> Pair {
    let long = Direction {
        bits_per_second: Some(240_000_000),
        delay: Duration::from_millis(250),
        ..Direction::default()
    };
    Pair::start_with(|_, _| {}, Some(long)).await
}

/// The window memory of the edge and of the region, beyond the ordinary window.
async fn window_memory(pair: &Pair) -> [u64; 2] {
    let series = "towpath_tunnel_window_memory_bytes";
    [
        metric(&pair.edge_config, series).await,
        metric(&pair.region_config, series).await,
    ]
}

/// Whether either side's windows have not yet taken as much again.
async fn has_less(pair: &Pair) -> bool {
    let taken = window_memory(pair).await;
    taken.into_iter().any(|bytes| bytes < ORDINARY_BYTES)
}

/// QUIC's window for data from a peer is really enlarged for the path, and not only accounted for:
/// that shows in how much arrives while the reader pauses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_and_fast_path_may_have_more_under_way_than_an_ordinary_one() {
    let pair = long_pair().await;
    let (mut local, mut remote) = pair.stream(Class::Bulk).await;
    let writing = tokio::spawn(async move {
        let chunk = vec![7; 64 * 1024];
        while local.write_all(&chunk).await.is_ok() {}
    });
    let pauses = Arc::new(AtomicBool::new(false));
    let reading = tokio::spawn({
        let pauses = Arc::clone(&pauses);
        async move {
            let mut chunk = vec![0; 64 * 1024];
            while !pauses.load(Ordering::Relaxed) {
                let count = remote.read(&mut chunk).await.unwrap();
                assert!(count > 0);
            }
            remote
        }
    });
    // Both sides have taken memory for the path, and twice the ordinary window is allowed.
    let grown = async {
        while has_less(&pair).await {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(3 * SOON, grown).await.expect("windows do not grow");
    pauses.store(true, Ordering::Relaxed);
    let _remote = soon(reading).await.unwrap();
    let arrived = || {
        pair.relay
            .as_ref()
            .unwrap()
            .control()
            .counters(Side::A)
            .delivered_bytes
    };
    let (before, mut last) = (arrived(), 0);
    let stopped = async {
        while last < before + ORDINARY_BYTES + ORDINARY_BYTES / 4 {
            sleep(Duration::from_millis(50)).await;
            last = arrived();
        }
    };
    timeout(SOON, stopped)
        .await
        .unwrap_or_else(|_| panic!("{before} to {last}"));
    writing.abort();
}

/// A program that does not read occupies only its own stream's window, and none of the room that
/// control messages or other streams of the same leg need.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_reads_nothing_leaves_the_others_of_its_leg_their_room() {
    let pair = long_pair().await;
    // Bulk finds out how much the path holds.
    let filling = pair.fill(Class::Bulk).await;
    let grown = async {
        while window_memory(&pair).await[0] < ORDINARY_BYTES {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(3 * SOON, grown).await.expect("windows do not grow");
    drop(filling);
    let (mut local, _unread) = pair.stream(Class::App).await;
    let chunk = vec![7; 64 * 1024];
    let mut taken: u64 = 0;
    while let Ok(written) = timeout(Duration::from_secs(3), local.write_all(&chunk)).await {
        written.unwrap();
        taken += chunk.len() as u64;
    }
    assert!(taken > 12 << 20, "{taken} bytes were taken");
    let listener = pair.echo();
    let (asked, (_, mut answering)) =
        soon(async { tokio::join!(pair.open("echo", Class::Demand), accept(&listener)) }).await;
    let mut asking = asked.unwrap();
    for _ in 0..4 {
        let page = pattern(3, 4096);
        let began = Instant::now();
        let (mut heard, mut back) = (vec![0; page.len()], vec![0; page.len()]);
        let both = async {
            asking.write_all(&page).await.unwrap();
            answering.read_exact(&mut heard).await.unwrap();
            answering.write_all(&heard).await.unwrap();
            asking.read_exact(&mut back).await.unwrap();
        };
        soon(both).await;
        assert!(back == page);
        let took = began.elapsed();
        assert!(took < Duration::from_secs(2), "a page took {took:?}");
    }
}

/// A stream that continues over another link occupies nothing on the link it began on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_is_over_takes_no_memory_for_the_streams_that_began_on_it() {
    let pair = long_pair().await;
    let (mut local, mut remote) = pair.stream(Class::Bulk).await;
    let reading = tokio::spawn(async move {
        let mut chunk = vec![0; 64 * 1024];
        while remote.read(&mut chunk).await.unwrap() > 0 {}
    });
    let chunk = vec![7; 1 << 20];
    let grown = async {
        while has_less(&pair).await {
            local.write_all(&chunk).await.unwrap();
        }
    };
    timeout(3 * SOON, grown).await.expect("windows do not grow");
    let control = pair.relay.as_ref().unwrap().control();
    let links_lost = "towpath_tunnel_links_lost_total";
    control.cut_both();
    let lost = async {
        while metric(&pair.region_config, links_lost).await == 0 {
            sleep(Duration::from_millis(50)).await;
        }
    };
    soon(lost).await;
    control.change_addresses();
    control.heal();
    pair.linked().await;
    let returned = async {
        while window_memory(&pair).await != [0, 0]
            || pair.region.status().links[0].streams_paused > 0
        {
            sleep(Duration::from_millis(50)).await;
        }
    };
    soon(returned).await;
    // The stream itself still exists.
    local.shutdown().await.unwrap();
    soon(reading).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t02_streams_that_a_peer_opens_in_vain_fill_no_log() {
    const COUNT: u32 = 100;
    let log = Kept::log();
    let allow = |_: &mut Config, region: &mut Config| {
        region.peers.push(PeerConfig::new(name("branch")));
        region.services[0].allow.push(name("branch"));
    };
    let pair = Pair::start_with(allow, None).await;
    let nobody = pair.region_config.services[0].socket.display().to_string();
    let began = Instant::now();
    for _ in 0..COUNT {
        for (service, code) in [("in-vain", Code::Denied), ("echo", Code::Unreachable)] {
            let refused = pair.open(service, Class::App).await.unwrap_err();
            assert_eq!(refused.code, code, "{refused}");
        }
    }
    // Another peer gets its own lines in the log.
    let mut branch_config = pair.world.site("branch", "region");
    branch_config.peers[0].address = Some(pair.region.listen_address().unwrap().to_string());
    let branch = Tunnel::start(&branch_config).await.unwrap();
    branch.linked(&name("region"), SOON).await.unwrap();
    for service in ["in-vain", "echo"] {
        let asked = open(&branch_config.socket, "region", service, Class::App).await;
        asked.unwrap_err();
    }
    for (said, of) in [
        ("service denied", "in-vain"),
        ("service not reached", &*nobody),
    ] {
        // The log is written before the peer hears of it.
        let text = log.text();
        let told = |peer| {
            let words = [said, of, peer];
            let lines = text.lines();
            lines
                .filter(|line| words.iter().all(|word| line.contains(word)))
                .count()
        };
        let told_of_first = u32::try_from(told("edge/box-1")).unwrap();
        let most = 33.0 + began.elapsed().as_secs_f64();
        assert!(
            told_of_first >= 32 && f64::from(told_of_first) <= most,
            "{said}: {told_of_first} of {most}"
        );
        assert_eq!(told("branch/box-1"), 1, "{said}");
    }
}
