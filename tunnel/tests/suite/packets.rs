//! Packet sizes: up to a jumbo frame if the path carries it, and down again.

use std::time::Duration;

use crate::harness::{Pair, accept, pattern, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use towpath_bench::relay::{Direction, Side};
use towpath_protocol::class::Class;

/// The payload of a jumbo frame, in bytes.
const JUMBO_BYTES: u16 = 8952;

/// What the path carries after its MTU has shrunk: above QUIC's minimum, below Ethernet's maximum.
const NARROW_BYTES: usize = 1300;

/// Size from which packets count as large, headers included.
const LARGE_BYTES: u64 = 6000;

/// Bytes that have to arrive after that.
const AFTER_BYTES: usize = 8 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_grow_to_jumbo_and_a_path_that_gets_narrower_under_way_is_survived() {
    let path = Direction {
        delay: Duration::from_millis(2),
        ..Direction::default()
    };
    let jumbo = |edge: &mut towpath_tunnel::config::Config,
                 region: &mut towpath_tunnel::config::Config| {
        edge.limits.udp_payload_bytes = JUMBO_BYTES;
        region.limits.udp_payload_bytes = JUMBO_BYTES;
    };
    let pair = Pair::start_with(jumbo, Some(path)).await;
    let listener = pair.echo();
    let (local, (_, mut target)) =
        soon(async { tokio::join!(pair.open("echo", Class::Bulk), accept(&listener)) }).await;
    let mut source = local.unwrap();
    let bytes = pattern(7, 1 << 20);
    let sent = bytes.clone();
    let writing = tokio::spawn(async move { while source.write_all(&sent).await.is_ok() {} });
    let mut chunk = vec![0; bytes.len()];
    let control = pair.relay.as_ref().unwrap().control();
    let wire = || control.counters(Side::A);
    let growing = async {
        loop {
            let before = wire();
            target.read_exact(&mut chunk).await.unwrap();
            assert!(chunk == bytes);
            let (now, count) = (wire(), wire().delivered_count - before.delivered_count);
            if (now.delivered_bytes - before.delivered_bytes) / count.max(1) > LARGE_BYTES {
                break;
            }
        }
    };
    soon(growing).await;
    control.lose_above(NARROW_BYTES);
    let going_on = async {
        for _ in 0..AFTER_BYTES / bytes.len() {
            target.read_exact(&mut chunk).await.unwrap();
            assert!(chunk == bytes);
        }
    };
    soon(going_on).await;
    assert!(wire().cut_count > 0, "the path did get narrower");
    writing.abort();
}
