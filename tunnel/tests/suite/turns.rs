//! Streams of one class beside each other: each gets its share, and none starves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::harness::Pair;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::sleep;
use towpath_bench::relay::Direction;
use towpath_protocol::class::Class;

/// Concurrent full streams: with three or more, some are neither first nor last.
const STREAMS: usize = 4;

/// A stream that is kept full, and a count of the bytes that have come out of it.
fn filled(
    tasks: &mut JoinSet<()>,
    (mut local, mut remote): (UnixStream, UnixStream),
) -> Arc<AtomicU64> {
    let heard = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&heard);
    tasks.spawn(async move {
        let chunk = vec![5; 64 * 1024];
        while local.write_all(&chunk).await.is_ok() {}
    });
    tasks.spawn(async move {
        let mut chunk = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = remote.read(&mut chunk).await {
            counted.fetch_add(count as u64, Ordering::Relaxed);
        }
    });
    heard
}

/// Fills streams of a class; returns the bytes that each carries after the shares have settled.
async fn shares(pair: &Pair, class: Class, settling: Duration, measured: Duration) -> Vec<u64> {
    let mut tasks = JoinSet::new();
    let mut heard = Vec::new();
    for _ in 0..STREAMS {
        heard.push(filled(&mut tasks, pair.stream(class).await));
    }
    let all = || -> Vec<u64> {
        heard
            .iter()
            .map(|one| one.load(Ordering::Relaxed))
            .collect()
    };
    sleep(settling).await;
    let before = all();
    sleep(measured).await;
    let brought = all().into_iter().zip(before);
    brought.map(|(now, then)| now - then).collect()
}

fn check_even(brought: &[u64]) {
    let mean = brought.iter().sum::<u64>() / STREAMS as u64;
    for one in brought {
        assert!((mean / 2..2 * mean).contains(one), "{brought:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_streams_of_a_fast_path_have_even_shares() {
    let pair = Pair::start().await;
    let (settling, measured) = (Duration::from_secs(1), Duration::from_secs(4));
    check_even(&shares(&pair, Class::Bulk, settling, measured).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn urgent_streams_of_a_long_path_have_even_shares() {
    let long = Direction {
        bits_per_second: Some(100_000_000),
        delay: Duration::from_millis(150),
        ..Direction::default()
    };
    let pair = Pair::start_with(|_, _| {}, Some(long)).await;
    // Bulk finds out how much the path holds, which also decides how much urgent streams may keep.
    let filling = pair.fill(Class::Bulk).await;
    sleep(Duration::from_secs(6)).await;
    drop(filling);
    let (settling, measured) = (Duration::from_secs(4), Duration::from_secs(8));
    check_even(&shares(&pair, Class::App, settling, measured).await);
}
