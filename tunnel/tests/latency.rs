//! How long an urgent byte waits while bulk fills the link. A separate suite, so that no other test
//! competes for the processors.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a helper that fails fails its test, and says how long waits were"
)]

mod harness;

use std::time::Duration;

use harness::{Filling, Pair, accept, name, soon, waited};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::Mutex;
use tokio::time::Instant;
use towpath_bench::relay::{Direction, Queue};
use towpath_bench::waits::Waits;
use towpath_protocol::class::Class;
use towpath_protocol::endpoint::Endpoint;
use towpath_tunnel::channels::ChannelSpec;
use towpath_tunnel::config::ServiceConfig;

/// Most that bulk may add to the median demand fetch: the queue that probing for the rate builds. A
/// byte that waits behind bulk waits for the bottleneck's queue, 100 ms; other load on the machine
/// delays some fetches, but not half of them.
const WAIT_ADDED_MAX_MS: f64 = 5.0;

/// Most that the p99 and the longest fetch may be, as multiples of the median without bulk (CON-9);
/// behind bulk it would be six times.
const TAIL_FACTOR_MAX: f64 = 2.0;
const MOST_FACTOR_MAX: f64 = 4.0;

/// Fetches per round, and the interval at which they are requested, however long the previous one
/// took.
const FETCHES: u32 = 150;
const PAUSE: Duration = Duration::from_millis(25);

/// Most that one fetch is excused for processor waits of this process: less than the bottleneck's
/// queue, so that a fetch that waits behind bulk is detected however busy the machine is.
const EXCUSED_MAX: Duration = Duration::from_millis(40);

/// Least throughput of bulk meanwhile, of 100 Mbit/s; with less there would be nothing to wait
/// behind.
const BULK_MBIT_MIN: u64 = 50;

/// Runs one test at a time: each needs the processors for itself.
static ALONE: Mutex<()> = Mutex::const_new(());

/// The path: its queue is many round trips deep, so that waiting in it is visible.
const BOTTLENECK: Direction = Direction {
    bits_per_second: Some(100_000_000),
    delay: Duration::from_millis(10),
    queue: Queue::Time(Duration::from_millis(100)),
    loss: 0.0,
};

/// Rounds, and how many of them must be good. The time that this machine waits for its own host
/// cannot be measured, and it only ever adds to a wait.
const ROUNDS: usize = 3;
const GOOD_ROUNDS_MIN: usize = 2;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_demand_fetch_does_not_wait_behind_bulk_in_the_bottleneck() {
    let _alone = ALONE.lock().await;
    let pair = Pair::start_with(|_, _| (), Some(BOTTLENECK)).await;
    let listener = pair.echo();
    let mut streams = Vec::new();
    for class in [Class::Bulk, Class::Demand] {
        let (local, (_, remote)) =
            soon(async { tokio::join!(pair.open("echo", class), accept(&listener)) }).await;
        streams.push((local.unwrap(), remote));
    }
    let (mut pages, mut asker) = streams.pop().unwrap();
    let (bulk, sink) = streams.pop().unwrap();
    // The region asks for a page, and the loaded direction carries it.
    let serving = tokio::spawn(async move {
        let mut wish = [0; 16];
        while pages.read_exact(&mut wish).await.is_ok() {
            pages.write_all(&[9; 4096]).await.unwrap();
        }
    });
    let idle = fetches(&mut asker).await[0];
    let load = Filling::start(bulk, sink);
    check_beside_bulk(&pair, "demand fetch", &mut asker, idle).await;
    serving.abort();
    drop(load);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn con_9_small_messages_of_an_application_do_not_wait_for_a_move() {
    let _alone = ALONE.lock().await;
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let till = Endpoint::Tcp(target.local_addr().unwrap());
    let pair = Pair::start_with(
        |edge, region| {
            let service = ServiceConfig::plain(name("till"), till, vec![name("edge")]);
            region.services.push(service);
            let listen = edge.socket.with_file_name("till.sock");
            edge.channels.push(ChannelSpec::new(
                name("till"),
                Endpoint::Unix(listen),
                (name("region"), name("till")),
                Class::App,
            ));
        },
        Some(BOTTLENECK),
    )
    .await;
    let mut app = UnixStream::connect(pair.edge_config.socket.with_file_name("till.sock"))
        .await
        .unwrap();
    let (mut remote, _) = soon(target.accept()).await.unwrap();
    remote.set_nodelay(true).unwrap();
    let serving = tokio::spawn(async move {
        let mut wish = [0; 16];
        while remote.read_exact(&mut wish).await.is_ok() {
            remote.write_all(&[9; 4096]).await.unwrap();
        }
    });
    let idle = fetches(&mut app).await[0];
    let load = pair.fill(Class::Bulk).await;
    check_beside_bulk(&pair, "app message", &mut app, idle).await;
    serving.abort();
    drop(load);
}

/// Checks that in most rounds fetches beside bulk take hardly longer than the median without it,
/// while bulk continues.
async fn check_beside_bulk(pair: &Pair, what: &str, asker: &mut UnixStream, idle: f64) {
    tokio::time::sleep(Duration::from_secs(2)).await;
    let received = || pair.region.status().links[0].classes[Class::Bulk.index()].received_bytes;
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let (began, before) = (Instant::now(), received());
        let loaded = fetches(asker).await;
        let micros = u64::try_from(began.elapsed().as_micros()).unwrap();
        let mbit = (received() - before) * 8 / micros;
        println!("{what}: idle {idle:.1} ms, p50, p99, most beside {mbit} Mbit/s {loaded:.1?} ms");
        rounds.push((loaded, mbit));
        let good = rounds.iter().filter(|round| is_good(**round, idle));
        if good.count() == GOOD_ROUNDS_MIN {
            return;
        }
    }
    panic!("idle {idle:?}, loaded {rounds:?}");
}

fn is_good(([half, tail, most], mbit): ([f64; 3], u64), idle: f64) -> bool {
    half <= idle + WAIT_ADDED_MAX_MS
        && tail <= idle * TAIL_FACTOR_MAX
        && most <= idle * MOST_FACTOR_MAX
        && mbit >= BULK_MBIT_MIN
}

/// The p50, p99 and maximum of fetches requested on a schedule, in milliseconds, including those
/// that a slow fetch kept from being requested. The last two are reduced by this process's
/// processor waits.
async fn fetches(asker: &mut UnixStream) -> [f64; 3] {
    let (began, mut all, mut excused) = (Instant::now(), Waits::default(), Waits::default());
    let mut due = Duration::ZERO;
    while due < PAUSE * FETCHES {
        tokio::time::sleep_until(began + due).await;
        let (asked, before) = (Instant::now(), waited());
        asker.write_all(&[1; 16]).await.unwrap();
        asker.read_exact(&mut [0; 4096]).await.unwrap();
        let took = asked.elapsed();
        let excuse = waited().saturating_sub(before).min(EXCUSED_MAX);
        for (waits, wait) in [
            (&mut all, took),
            (&mut excused, took.saturating_sub(excuse)),
        ] {
            waits.add(due, wait.as_secs_f64() * 1e3, PAUSE);
        }
        while due <= began.elapsed() {
            due += PAUSE;
        }
    }
    [all.part(0.5), excused.part(0.99), excused.part(1.0)]
}
