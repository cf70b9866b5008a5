//! Attacks by strangers and bad peers, below TLS and above it, and what they cost.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "../harness/mod.rs"]
mod harness;
mod log;
mod malformed;
mod memory;

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use harness::kept::Kept;
use harness::raw::{self, Close, Level, Raw, frame};
use harness::{Door, Pair, accept, echo, metric, pattern, soon, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::RwLock;
use towpath_bench::flood::flood;
use towpath_bench::relay::Direction;
use towpath_daemon::units::Span;
use towpath_protocol::class::{Class, Leg};
use towpath_protocol::preamble::{Join, LINK_VERSIONS, LinkId, Preamble, RunId};
use towpath_protocol::version::VersionRange;
use towpath_tunnel::Tunnel;

// RFC 9000, 20.1.
const INTERNAL_ERROR: Close = Close::Transport(0x01);
const FLOW_CONTROL_ERROR: Close = Close::Transport(0x03);
const FRAME_ENCODING_ERROR: Close = Close::Transport(0x07);
const TRANSPORT_PARAMETER_ERROR: Close = Close::Transport(0x08);
const CONNECTION_ID_LIMIT_ERROR: Close = Close::Transport(0x09);
const PROTOCOL_VIOLATION: Close = Close::Transport(0x0a);
const CRYPTO_BUFFER_EXCEEDED: Close = Close::Transport(0x0d);

/// How long a connection may take to be closed.
const CLOSED_WAIT: Duration = Duration::from_secs(10);

impl Door {
    /// A door that lets a connection stay open throughout a test although it never sends a
    /// preamble.
    async fn patient() -> Self {
        let patience = Span::new(Duration::from_mins(1));
        Self::open_with(|config| config.limits.preamble_wait = patience).await
    }

    /// A raw client at its own address.
    fn raw(&self, from: IpAddr, change: &[(u64, Vec<u8>)]) -> Raw {
        Raw::new(from, self.address(), self.client(), change)
    }

    /// A raw client that has completed its handshake.
    async fn shaken(&self) -> Raw {
        let mut raw = self.raw(Ipv4Addr::LOCALHOST.into(), &[]);
        blocking(move || {
            assert!(raw.shake(CLOSED_WAIT), "no handshake");
            raw
        })
        .await
    }

    /// Checks that the tunnel still admits an honest edge.
    async fn lets_in(&self) {
        let mut config = self.world.site("edge-2", "region");
        config.peers[0].address = Some(self.address().to_string());
        // Any other site's handshake will do; it ends with the answer that the site is no peer.
        let edge = Tunnel::start(&config).await.unwrap();
        until("answered", || {
            edge.status().links[0].reason.contains("no peer")
        })
        .await;
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    soon(tokio::task::spawn_blocking(work)).await.unwrap()
}

/// An address of this host that nothing else uses.
fn address(number: u16) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(127, 7, high, low).into()
}

/// The datagrams that arrive within `wait`.
fn answers(socket: &UdpSocket, wait: Duration) -> Vec<Vec<u8>> {
    socket.set_read_timeout(Some(wait)).unwrap();
    let mut all = Vec::new();
    let mut datagram = [0; 2048];
    while let Ok(count) = socket.recv(&mut datagram) {
        all.push(datagram[..count].to_vec());
    }
    all
}

/// Checks that a connection is open and its other side responds.
fn is_answered(raw: &mut Raw) {
    // Earlier datagrams do not count as a response.
    while raw.hear(Duration::from_millis(50)) {}
    raw.send(Level::Data, vec![frame::PING; 20]);
    assert!(raw.hear(Duration::from_secs(2)), "the connection is gone");
    assert_eq!(raw.closed(Duration::ZERO), None);
}

/// Sends the first datagram of an honest handshake from each of many addresses; each occupies a
/// place.
fn begin_handshakes(door: &Door, count: u16) -> Vec<Raw> {
    let client = door.client();
    let begun = (1..=count).map(|number| {
        let mut raw = Raw::new(address(number), door.address(), client.clone(), &[]);
        raw.speak();
        raw
    });
    begun.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t01_short_initials_and_other_versions_are_answered_with_little_or_nothing() {
    let _beside_others = MEMORY.read().await;
    let door = Door::open().await;
    let hello = frame::crypto(0, &[1; 300]);
    let whole = raw::initial(&[1; 8], &[2; 8], hello);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(door.address()).unwrap();
    for length in [1, 7, 21, 600, 1199] {
        socket.send(&whole[..length]).unwrap();
    }
    let mut damaged = whole.clone();
    damaged[700] ^= 1;
    socket.send(&damaged).unwrap();
    let answered = answers(&socket, Duration::from_millis(300));
    assert!(answered.is_empty(), "{answered:?}");
    // All that are too short; those with damage inside still parse.
    let series = "towpath_quic_incoming_dropped_total{reason=\"malformed\"}";
    assert_eq!(metric(&door.config, series).await, 5);

    for version in [
        [0xba, 0xba, 0xba, 0xba],
        [0, 0, 0, 2],
        [0x6b, 0x33, 0x43, 0xcf],
    ] {
        let mut other = whole.clone();
        other[1..5].copy_from_slice(&version);
        socket.send(&other).unwrap();
        let answered = answers(&socket, Duration::from_millis(300));
        let bytes: usize = answered.iter().map(Vec::len).sum();
        assert!(bytes <= 3 * other.len(), "{bytes} bytes");
        assert!(
            answered.iter().all(|one| one[1..5] == [0; 4]),
            "no negotiation"
        );
    }
    // A ClientHello that could begin a handshake, from an unproved address: the answer is at most
    // three times as long, plus the datagram that was begun before the limit.
    let mut raw = door.raw(address(950), &[]);
    let bytes = blocking(move || {
        raw.speak();
        let answered = answers(&raw.socket, Duration::from_secs(1));
        answered.iter().map(Vec::len).sum::<usize>()
    })
    .await;
    assert!((1..=3 * 2 * 1206 + 1200).contains(&bytes), "{bytes} bytes");
    door.lets_in().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t02_above_half_of_the_places_everybody_has_to_prove_an_address() {
    let _beside_others = MEMORY.read().await;
    let door = Door::open().await;
    let begun = begin_handshakes(&door, 200);
    let retried = blocking(move || {
        let is_retried = |raw: &&Raw| {
            let answered = answers(&raw.socket, Duration::from_millis(20));
            answered.iter().any(|one| raw::is_retry(one))
        };
        begun.iter().filter(is_retried).count()
    })
    .await;
    assert!(
        retried >= 200 - 40,
        "{retried} were asked to prove their address"
    );
    let counted = metric(
        &door.config,
        "towpath_quic_incoming_dropped_total{reason=\"retried\"}",
    )
    .await;
    assert!(counted >= 200 - 40, "{counted}");
    // A client that proves its address still gets in.
    door.lets_in().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t02_strangers_who_fail_without_end_are_counted_and_fill_no_log() {
    const KNOCKS: u16 = 400;
    let _beside_others = MEMORY.read().await;
    let log = Kept::log();
    let door = Door::open().await;
    let series = "towpath_quic_incoming_dropped_total{reason=\"failed\"}";
    for knock in 0..KNOCKS {
        let socket = UdpSocket::bind((address(0xf000 + knock), 0)).unwrap();
        let hello = frame::crypto(0, &[1; 300]);
        let datagram = raw::initial(&u64::from(knock).to_be_bytes(), &[2; 8], hello);
        socket.send_to(&datagram, door.address()).unwrap();
        // A few at a time; with more of them they would have to prove their addresses.
        if knock % 16 == 15 {
            soon(async { while metric(&door.config, series).await <= knock.into() {} }).await;
        }
    }
    let text = log.text();
    let told = text
        .lines()
        .filter(|line| line.contains("handshake refused") && line.contains("127.7.24"));
    let told = told.count();
    assert!((1..=64).contains(&told), "{told} lines of {KNOCKS}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t02_a_flood_leaves_a_running_stream_and_the_memory_alone() {
    /// The timeout of a handshake, so that all that are admitted still exist at the end.
    const LASTING: Duration = Duration::from_secs(5);
    /// So many that they would exceed the memory limit at a few KiB each.
    const PER_SECOND: u64 = 4000;
    let _alone = MEMORY.write().await;
    let pair = Pair::start().await;
    let echo = echo(pair.echo());
    let mut local = pair.open("echo", Class::Bulk).await.unwrap();
    let target = pair.region.listen_address().unwrap();
    // Both buffers are fully resident.
    let (sent, mut heard) = (pattern(5, 1 << 20), pattern(7, 1 << 20));
    let before = resident_bytes();
    let flooding = tokio::task::spawn_blocking(move || flood(target, PER_SECOND, LASTING, 64));
    let (mut read, mut write) = local.split();
    let (mut grown, mut rounds) = (0, 0);
    while !flooding.is_finished() || rounds < 8 {
        let both = async { tokio::join!(write.write_all(&sent), read.read_exact(&mut heard)) };
        let (wrote, took) = soon(both).await;
        wrote.unwrap();
        took.unwrap();
        assert!(heard == sent);
        heard.fill(0);
        grown = grown.max(resident_bytes().saturating_sub(before));
        rounds += 1;
    }
    let flooded = flooding.await.unwrap().unwrap();
    println!(
        "{flooded:?}, {rounds} MiB, {} KiB more memory",
        grown / 1024
    );
    // Four fifths of the intended flood, whatever else the machine does.
    let least = PER_SECOND * LASTING.as_secs() * 4 / 5;
    assert!(flooded.count >= least, "{flooded:?} was no flood");
    assert!(grown <= 32 << 20, "{grown} bytes more");
    assert!(pair.edge.status().links[0].host.is_some());
    echo.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t02_a_running_transfer_keeps_nine_tenths_of_its_rate_under_a_flood() {
    /// Long enough to measure a rate, and short enough that two consecutive windows are comparable.
    const WINDOW: Duration = Duration::from_millis(1500);
    /// Ten times the rate at which the busiest link is dialled, and far below what a processor can
    /// handle.
    const PER_SECOND: u64 = 2000;
    /// Pairs of windows; the median is judged.
    const PAIRS: usize = 5;
    let _alone = MEMORY.write().await;
    // The line is the limit, so that the flood's own cost on a small machine does not count.
    let line = Direction {
        delay: Duration::from_millis(5),
        bits_per_second: Some(20_000_000),
        ..Direction::default()
    };
    let pair = Pair::start_with(|_, _| (), Some(line)).await;
    let _filling = pair.fill(Class::Bulk).await;
    let target = pair.region.listen_address().unwrap();
    let came = || {
        let link = pair.region.status().links.remove(0);
        link.classes[Class::Bulk.index()].received_bytes
    };
    let window = async || {
        let (before, began) = (came(), Instant::now());
        tokio::time::sleep(WINDOW).await;
        (came() - before) as f64 / began.elapsed().as_secs_f64()
    };
    until("it flows", || came() > 4 << 20).await;
    let mut kept = Vec::new();
    // Load from elsewhere may disturb one window, but not most of them.
    for _ in 0..PAIRS {
        let calm = window().await;
        let flooding = tokio::task::spawn_blocking(move || flood(target, PER_SECOND, WINDOW, 16));
        let flooded = window().await;
        let done = flooding.await.unwrap().unwrap();
        assert!(done.count > PER_SECOND / 2, "{done:?}");
        kept.push(flooded / calm);
    }
    kept.sort_by(f64::total_cmp);
    println!("{kept:?} of the rate");
    assert!(
        kept[PAIRS / 2] >= 0.9,
        "a flood costs more than a tenth: {kept:?}"
    );
}

/// Guards the memory of this process, which all tests share: a test that measures it runs alone.
static MEMORY: RwLock<()> = RwLock::const_new(());

/// Resident memory of this process, in bytes.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.unwrap().trim().trim_end_matches(" kB");
    kib.parse::<u64>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t03_one_address_that_shakes_hands_without_end_is_held_back_and_others_are_not() {
    let _beside_others = MEMORY.read().await;
    let door = Door::open().await;
    let (is_over, began) = (Arc::new(AtomicBool::new(false)), Instant::now());
    let shaking = || {
        let (client, target) = (door.client(), door.address());
        let is_over = Arc::clone(&is_over);
        let shake_on = move || {
            let mut count = 0;
            while !is_over.load(Ordering::Relaxed) {
                let mut raw = Raw::new(address(500), target, client.clone(), &[]);
                if raw.shake(Duration::from_millis(100)) {
                    // Its place is free again: the next one is held back by the rate limit only.
                    raw.send(Level::Data, frame::close());
                    count += 1;
                }
            }
            count
        };
        tokio::task::spawn_blocking(shake_on)
    };
    // Several at once, because a single client is limited by its own part of the handshake.
    let floods = [(); 4].map(|()| shaking());
    let series = "towpath_quic_incoming_dropped_total{reason=\"too_fast\"}";
    let held_back = async {
        while metric(&door.config, series).await == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(held_back).await;
    let mut other = door.raw(address(501), &[]);
    let is_let_in = blocking(move || other.shake(CLOSED_WAIT)).await;
    assert!(is_let_in, "another address was held back");
    is_over.store(true, Ordering::Relaxed);
    let mut flood = 0;
    for shaken in floods {
        flood += soon(shaken).await.unwrap();
    }
    // The burst, plus the rate times the seconds.
    let most = 64 + 16 * (began.elapsed().as_secs() + 1);
    println!("{flood} of at most {most} shook hands");
    assert!(flood <= most, "{flood} of at most {most}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t03_one_address_that_ends_no_handshake_leaves_places_to_others() {
    let _beside_others = MEMORY.read().await;
    let door = Door::open().await;
    let (client, target) = (door.client(), door.address());
    let is_let_in = blocking(move || {
        let new = |from| Raw::new(from, target, client.clone(), &[]);
        let mut stranger: Vec<_> = (0..80).map(|_| new(address(510))).collect();
        for raw in &mut stranger {
            // It proves its address when asked to, and sends nothing more than its ClientHello.
            raw.speak();
            raw.hear(Duration::from_millis(20));
        }
        let mut other = new(address(511));
        other.speak();
        let answered = answers(&other.socket, Duration::from_secs(1));
        !answered.is_empty() && !answered.iter().any(|one| raw::is_retry(one))
    })
    .await;
    assert!(is_let_in, "the other address has to wait");
    let series = "towpath_quic_incoming_dropped_total{reason=\"too_many\"}";
    assert!(metric(&door.config, series).await > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t03_who_has_shaken_hands_takes_no_place_any_more() {
    let _beside_others = MEMORY.read().await;
    let door = Door::patient().await;
    let new = |number| door.raw(address(530 + number % 4), &[]);
    let mut all: Vec<_> = (0_u16..80).map(new).collect();
    let shaken = blocking(move || {
        let shaken = all.iter_mut().map(|raw| raw.shake(CLOSED_WAIT));
        shaken.filter(|is_done| *is_done).count()
    })
    .await;
    assert_eq!(shaken, 80, "silent connections keep others out");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t03_a_peer_that_gives_no_room_for_an_answer_is_let_go() {
    let _beside_others = MEMORY.read().await;
    let brief = Span::new(Duration::from_millis(500));
    let door = Door::open_with(|config| config.limits.preamble_wait = brief).await;
    let words = |leg, versions| {
        let join = Join {
            versions,
            link: LinkId(7),
            leg,
            receive_rate_max: None,
            run: RunId(7),
        };
        frame::stream(0, 0, &Preamble::Join(join).encode())
    };
    // No flow control credit on streams that the client opens.
    let mute = [(0x05, frame::integer(0))];
    let unheard = VersionRange { min: 98, max: 99 };
    let mut raw = door.raw(address(520), &mute);
    let said = words(Leg::Urgent, unheard);
    let refused = blocking(move || {
        assert!(raw.shake(CLOSED_WAIT), "no handshake");
        raw.send(Level::Data, said);
        raw.closed(CLOSED_WAIT)
    })
    .await;
    // 9 is `E_VERSION`.
    assert_eq!(refused, Some(Close::Tunnel(9)));

    let [mut urgent, mut bulk] = [521, 522].map(|from| door.raw(address(from), &mute));
    let said = [Leg::Urgent, Leg::Bulk].map(|leg| words(leg, LINK_VERSIONS));
    let closed = blocking(move || {
        for (raw, said) in [&mut urgent, &mut bulk].into_iter().zip(said) {
            assert!(raw.shake(CLOSED_WAIT), "no handshake");
            raw.send(Level::Data, said);
        }
        [urgent.closed(CLOSED_WAIT), bulk.closed(CLOSED_WAIT)]
    })
    .await;
    // 3 is `E_STALLED`.
    assert_eq!(closed, [Some(Close::Tunnel(3)); 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t04_an_initial_repeated_after_a_retry_or_a_refusal_changes_nothing() {
    let _beside_others = MEMORY.read().await;
    let door = Door::open().await;
    let begun = begin_handshakes(&door, 60);
    let last = begun.last().unwrap().socket.try_clone().unwrap();
    blocking(move || {
        let datagram = raw::initial(&[8; 8], &[9; 8], frame::crypto(0, &[1; 300]));
        for _ in 0..20 {
            last.send(&datagram).unwrap();
        }
        let answered = answers(&last, Duration::from_millis(200));
        assert!(answered.iter().any(|one| raw::is_retry(one)));
    })
    .await;
    drop(begun);
    door.lets_in().await;

    // Clients refused by TLS, which need not prove an address first: the same datagrams again, from
    // the same address and from another.
    let door = Door::open().await;
    let mut standing = door.shaken().await;
    let target = door.address();
    blocking(move || {
        for (from, is_new) in [(600, true), (600, false), (601, false)] {
            let socket = UdpSocket::bind((address(from), 0)).unwrap();
            socket.connect(target).unwrap();
            let datagram = raw::initial(&[4; 8], &[5; 8], frame::crypto(0, b"no hello at all"));
            for _ in 0..20 {
                socket.send(&datagram).unwrap();
            }
            let answered = answers(&socket, Duration::from_millis(100));
            assert!(!answered.iter().any(|one| raw::is_retry(one)));
            assert!(!is_new || !answered.is_empty(), "no refusal");
            let bytes: usize = answered.iter().map(Vec::len).sum();
            assert!(bytes <= 3 * 20 * datagram.len(), "{bytes} bytes");
        }
        // Clients already connected do not notice.
        is_answered(&mut standing);
    })
    .await;
    door.lets_in().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t06_a_stream_without_its_first_byte_is_held_in_the_window_alone() {
    /// The default limit of unread bytes (`docs/configuration.md`, `limits.window_memory`).
    const WINDOW_BYTES: u64 = 24 << 20;
    let _alone = MEMORY.write().await;
    // No timeout for the preamble, so that the window is what ends this.
    let door = Door::patient().await;
    let before = resident_bytes();
    let mut raw = door.shaken().await;
    let (offset, closed, most) = blocking(move || {
        // Every byte except the first, up to the last that the connection's window allows.
        let chunk = vec![7; 1300];
        let (mut offset, mut most) = (1, 0);
        while offset + 1300 <= WINDOW_BYTES && raw.closed(Duration::ZERO).is_none() {
            raw.send(Level::Data, frame::stream(0, offset, &chunk));
            offset += chunk.len() as u64;
            if offset % 65_000 < 1300 {
                while raw.hear(Duration::from_millis(1)) {}
                // Measured while the connection lives: its memory is freed with it.
                most = resident_bytes().max(most);
            }
        }
        if let Some(early) = raw.closed(Duration::from_millis(50)) {
            return (offset, Some(early), most);
        }
        most = resident_bytes().max(most);
        // A full socket buffer drops some of it, so the last bytes, beyond the window, are
        // repeated.
        let said = (0..50).find_map(|_| {
            raw.send(Level::Data, frame::stream(0, WINDOW_BYTES, &[7]));
            raw.closed(Duration::from_millis(100))
        });
        (offset, said.or_else(|| raw.closed(CLOSED_WAIT)), most)
    })
    .await;
    assert_eq!(closed, Some(FLOW_CONTROL_ERROR));
    assert!(offset + 1300 > WINDOW_BYTES, "closed at {offset}");
    let grown = most.saturating_sub(before);
    println!("{} KiB more memory", grown / 1024);
    assert!(grown <= 32 << 20, "{grown} bytes more");
    door.lets_in().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t06_single_bytes_with_gaps_between_them_are_not_kept_without_end() {
    /// So many that they would exceed the memory limit at a hundred bytes of bookkeeping each.
    const PIECES: u64 = 400_000;
    const PIECES_PER_PACKET: u64 = 100;
    let _alone = MEMORY.write().await;
    let door = Door::patient().await;
    let before = resident_bytes();
    let mut raw = door.shaken().await;
    let (closed, arrived) = blocking(move || {
        let packets = (0..PIECES / PIECES_PER_PACKET).map(|packet| {
            let pieces = (0..PIECES_PER_PACKET).map(|piece| packet * PIECES_PER_PACKET + piece);
            pieces
                .flat_map(|at| frame::stream(0, 1 + 2 * at, &[7]))
                .collect()
        });
        let arrived = raw.pour(packets);
        check_memory(before);
        (raw.closed(CLOSED_WAIT), arrived)
    })
    .await;
    // The library keeps a thousand pieces of a stream, and closes a connection that exceeds this.
    assert_eq!(closed, Some(INTERNAL_ERROR), "{arrived} packets arrived");
    door.lets_in().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t06_a_stream_whose_first_byte_never_comes_ends_in_time() {
    let _beside_others = MEMORY.read().await;
    let brief = Span::new(Duration::from_millis(300));
    let door = Door::open_with(|config| config.limits.preamble_wait = brief).await;
    let mut raw = door.shaken().await;
    let closed = blocking(move || {
        raw.send(Level::Data, frame::stream(0, 1, &[7; 1000]));
        raw.closed(CLOSED_WAIT)
    })
    .await;
    // 3 is `E_STALLED`.
    assert_eq!(closed, Some(Close::Tunnel(3)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t06_a_stream_that_nobody_reads_takes_no_more_than_its_window() {
    let _alone = MEMORY.write().await;
    let pair = Pair::start().await;
    let listener = pair.echo();
    let opening = async { tokio::join!(pair.open("echo", Class::Bulk), accept(&listener)) };
    let (local, (_, _unread)) = soon(opening).await;
    let mut local = local.unwrap();
    let chunk = vec![1; 64 * 1024];
    let mut taken = 0_u64;
    // Until no more is accepted.
    let brief = Duration::from_millis(500);
    while let Ok(wrote) = tokio::time::timeout(brief, local.write_all(&chunk)).await {
        wrote.expect("the stream does not end");
        taken += chunk.len() as u64;
        assert!(taken <= 48 << 20, "{taken} bytes were taken");
    }
    assert!(taken >= 1 << 20, "{taken} bytes fill no window");
}

/// The kernel delivers many packets at once; one of them that is kept must not keep the buffer of
/// the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t06_a_packet_that_waits_keeps_none_of_those_that_came_with_it() {
    /// Batches, each with one packet of a stream whose first byte is missing: fewer than the
    /// library defragments.
    const BATCHES: u64 = 1500;
    const PACKETS: usize = 40;
    let _alone = MEMORY.write().await;
    let door = Door::patient().await;
    let mut raw = door.shaken().await;
    let chunk = [7; 1300];
    let send = move |raw: &mut Raw, batches: std::ops::Range<u64>| {
        for batch in batches {
            let offset = 1 + batch * chunk.len() as u64;
            let mut packets = vec![frame::stream(0, offset, &chunk)];
            // Two packets that elicit an acknowledgement get it at once, which shows that the batch
            // has arrived.
            packets.push(vec![frame::PING]);
            packets.resize(PACKETS, vec![frame::PADDING]);
            raw.send_at_once(packets);
            raw.hear(Duration::from_millis(20));
        }
    };
    let grown = blocking(move || {
        // By then the buffers are in use.
        send(&mut raw, 0..50);
        let before = resident_bytes();
        send(&mut raw, 50..BATCHES);
        is_answered(&mut raw);
        resident_bytes().saturating_sub(before)
    })
    .await;
    println!("{} KiB more memory", grown / 1024);
    assert!(grown <= 16 << 20, "{grown} bytes more");
    door.lets_in().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t07_floods_of_connection_ids_and_path_challenges_are_bounded() {
    /// As many as fit into packets of 1200 bytes; if each left a few words, they would exceed the
    /// limit.
    const IDS_PER_PACKET: u64 = 30;
    const ID_PACKETS: u64 = 40_000;
    const CHALLENGES_PER_PACKET: u64 = 120;
    const CHALLENGE_PACKETS: u64 = 20_000;
    let _alone = MEMORY.write().await;
    let door = Door::patient().await;
    let mut raw = door.shaken().await;
    let closed = blocking(move || {
        for sequence in 1..2000 {
            raw.send(Level::Data, frame::new_connection_id(sequence, 0));
        }
        raw.closed(CLOSED_WAIT)
    })
    .await;
    assert_eq!(closed, Some(CONNECTION_ID_LIMIT_ERROR));

    // One ID retires all before it, the following IDs are among those, and nothing is acknowledged,
    // so that the retirements pile up.
    let before = resident_bytes();
    let mut raw = door.shaken().await;
    let (mut raw, arrived) = blocking(move || {
        let retire = frame::new_connection_id(1 << 24, 1 << 24);
        let ids = (0..ID_PACKETS).map(|packet| {
            let first = 10 + packet * IDS_PER_PACKET;
            let ids = first..first + IDS_PER_PACKET;
            ids.flat_map(|id| frame::new_connection_id(id, 0)).collect()
        });
        let arrived = raw.pour(std::iter::once(retire).chain(ids));
        (raw, arrived)
    })
    .await;
    check_memory(before);
    match raw.closed(Duration::ZERO) {
        None => {
            assert_eq!(arrived, 1 + ID_PACKETS, "some got lost on the way");
            blocking(move || is_answered(&mut raw)).await;
        }
        closed => assert_eq!(closed, Some(CONNECTION_ID_LIMIT_ERROR), "after {arrived}"),
    }

    // Any number of challenges is legal; most of them go unanswered.
    let before = resident_bytes();
    let mut raw = door.shaken().await;
    let arrived = blocking(move || {
        let arrived = raw.pour((0..CHALLENGE_PACKETS).map(|packet| {
            let challenges = (0..CHALLENGES_PER_PACKET).map(|count| packet << 8 | count);
            challenges.flat_map(frame::path_challenge).collect()
        }));
        // While the connection lives.
        check_memory(before);
        is_answered(&mut raw);
        arrived
    })
    .await;
    assert_eq!(arrived, CHALLENGE_PACKETS, "some got lost on the way");
    door.lets_in().await;
}

/// Checks that a flood has cost little memory, compared with `before`.
fn check_memory(before: u64) {
    let grown = resident_bytes().saturating_sub(before);
    eprintln!("{} KiB more memory", grown / 1024);
    assert!(grown <= 16 << 20, "{grown} bytes more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t08_words_of_a_handshake_far_ahead_are_not_kept() {
    let _beside_others = MEMORY.read().await;
    let door = Door::open().await;
    for (number, offset) in [17_000, 1 << 20, (1 << 62) - 300].into_iter().enumerate() {
        let from = address(800 + u16::try_from(number).unwrap());
        let mut raw = door.raw(from, &[]);
        let closed = blocking(move || {
            raw.send(Level::Initial, frame::crypto(offset, &[1; 200]));
            raw.closed(CLOSED_WAIT)
        })
        .await;
        assert_eq!(closed, Some(CRYPTO_BUFFER_EXCEEDED), "offset {offset}");
    }
    door.lets_in().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t18_packets_from_another_address_move_nothing() {
    let _beside_others = MEMORY.read().await;
    let door = Door::open().await;
    let mut raw = door.shaken().await;
    let target = door.address();
    blocking(move || {
        let home = raw.socket.try_clone().unwrap();
        let away = UdpSocket::bind((address(900), 0)).unwrap();
        away.connect(target).unwrap();
        raw.socket = away.try_clone().unwrap();
        for _ in 0..20 {
            raw.send(Level::Data, vec![frame::PING; 20]);
        }
        let answered = answers(&away, Duration::from_millis(300));
        assert!(
            answered.is_empty(),
            "{} datagrams went astray",
            answered.len()
        );
        raw.socket = home;
        is_answered(&mut raw);
    })
    .await;
}
