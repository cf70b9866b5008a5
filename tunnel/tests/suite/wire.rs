//! What a cap lets onto the wire, as counted by the emulated link, with headers of IP and UDP.

use std::time::Duration;

use crate::harness::{Pair, soon, waited};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep};
use towpath_bench::relay::{Direction, Side};
use towpath_protocol::class::Class;

/// A cap that any machine can use up, as text and in bytes per second.
const CAP: (&str, u64) = ("20Mbit", 2_500_000);

/// Duration over which the rate is compared with its cap.
const WINDOW: Duration = Duration::from_secs(10);

/// Divisor for the allowed deviation.
const OFF_PART: u64 = 100;

/// Divisor for the most that a busy machine may fall short.
const SHORT_PART: u64 = 5;

/// Interval between readings of the wire.
const LOOK: Duration = Duration::from_millis(100);

/// How long windows are tried: load from elsewhere does not affect all of them.
const PATIENCE: Duration = Duration::from_secs(25);

/// The most that may be sent ahead of the cap.
const BURST_MAX: Duration = Duration::from_millis(20);

/// Bursts to try, of which one must be good: an emulated link whose thread slept delivers
/// everything from that time at once.
const BURST_COUNT_MAX: usize = 10;

/// A reading of the wire.
#[derive(Clone, Copy)]
struct Look {
    at: Instant,
    bytes: u64,
    /// How long threads have waited for a processor so far.
    waited: Duration,
}

fn look(pair: &Pair) -> Look {
    let control = pair.relay.as_ref().unwrap().control();
    Look {
        at: Instant::now(),
        bytes: control.counters(Side::A).delivered_bytes,
        waited: Duration::ZERO,
    }
}

/// Bytes that a rate allows in a time.
fn given(bytes_per_second: u64, time: Duration) -> u64 {
    bytes_per_second * u64::try_from(time.as_micros()).unwrap() / 1_000_000
}

/// Saturates the link from the edge and checks that over ten seconds the rate on the wire is within
/// a hundredth. It may be less by the time that our threads waited for a processor, never more.
pub(crate) async fn check_wire_rate(pair: &Pair, bytes_per_second: u64) {
    let _filling = pair.fill(Class::Bulk).await;
    // The slow start of the connection is over after a second.
    sleep(Duration::from_secs(1)).await;
    let (began, mut looks) = (Instant::now(), Vec::<Look>::new());
    let mut seen = None;
    loop {
        let mut now = look(pair);
        now.waited = waited();
        if let Some(from) = looks.iter().rfind(|look| now.at - look.at >= WINDOW) {
            let expected = given(bytes_per_second, now.at - from.at);
            let waited = now.waited.saturating_sub(from.waited);
            let short = given(bytes_per_second, waited).min(expected / SHORT_PART);
            let off = expected / OFF_PART;
            let (bytes, range) = (
                now.bytes - from.bytes,
                expected - off - short..=expected + off,
            );
            assert!(bytes <= *range.end(), "{bytes} bytes of {range:?}");
            if range.contains(&bytes) {
                return;
            }
            seen = Some((bytes, range));
        }
        assert!(began.elapsed() < PATIENCE, "{seen:?} bytes");
        looks.push(now);
        sleep(LOOK).await;
    }
}

/// How far the data after a pause runs ahead of the rate.
async fn burst(pair: &Pair, bytes_per_second: u64) -> Duration {
    let (mut local, mut remote) = pair.stream(Class::Bulk).await;
    // The credit left from a busy time is gone, and the most that a pause gives is there.
    sleep(Duration::from_millis(500)).await;
    let sent = vec![5; usize::try_from(bytes_per_second / 3).unwrap()];
    let mut heard = vec![0; sent.len()];
    let is_through = std::cell::Cell::new(false);
    let sending = async {
        let (wrote, read) = tokio::join!(local.write_all(&sent), remote.read_exact(&mut heard));
        is_through.set(true);
        wrote.unwrap();
        read.unwrap();
    };
    let looking = async {
        let (mut before, mut ahead, mut most) = (look(pair), 0, 0);
        while !is_through.get() {
            sleep(Duration::from_millis(1)).await;
            let now = look(pair);
            ahead += now.bytes - before.bytes;
            ahead = ahead.saturating_sub(given(bytes_per_second, now.at - before.at));
            most = most.max(ahead);
            before = now;
        }
        most
    };
    let ((), most) = soon(async { tokio::join!(sending, looking) }).await;
    Duration::from_micros(most * 1_000_000 / bytes_per_second)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cap_holds_on_the_wire() {
    let pair = Pair::start_with(
        |edge, _| edge.peers[0].send_rate = Some(CAP.0.parse().unwrap()),
        Some(Direction {
            delay: Duration::from_millis(5),
            bits_per_second: Some(200_000_000),
            ..Direction::default()
        }),
    )
    .await;
    let mut bursts = Vec::new();
    while bursts.last().is_none_or(|burst| *burst > BURST_MAX) {
        assert!(
            bursts.len() < BURST_COUNT_MAX,
            "{bursts:?} ahead of the cap"
        );
        bursts.push(burst(&pair, CAP.1).await);
    }
    println!("{bursts:?} ahead of the cap");
    check_wire_rate(&pair, CAP.1).await;
}
