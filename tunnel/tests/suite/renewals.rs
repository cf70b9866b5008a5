//! Channels that are pushed again just as they expire.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::harness::{Pair, name, soon, until};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use towpath_daemon::client::Client;
use towpath_daemon::problem::Problem;
use towpath_protocol::class::Class;
use towpath_tunnel::channels::ChannelSpec;
use towpath_tunnel::status::ChannelView;

/// Channels that expire within one second; closing so many takes a while.
const CHANNELS: usize = 1000;

fn in_seconds(seconds: u64) -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap().as_secs() + seconds
}

fn spec(number: usize, generation: u64, expires: u64) -> ChannelSpec {
    let way = (name("region"), name("echo"));
    let listen = "tcp:127.0.0.1:0".parse().unwrap();
    ChannelSpec {
        generation,
        expires_unix_seconds: Some(expires),
        ..ChannelSpec::new(name(&format!("c{number:03}")), listen, way, Class::App)
    }
}

async fn push(client: &Client, spec: ChannelSpec) -> Result<ChannelView, Problem> {
    client.post("/v1/channels", &spec).await
}

/// Keeps the tunnels busy, so that it takes a while to close many channels.
fn load() -> JoinSet<()> {
    let mut busy = JoinSet::new();
    for _ in 0..4 {
        busy.spawn(async {
            loop {
                let began = Instant::now();
                while began.elapsed() < Duration::from_micros(100) {
                    std::hint::spin_loop();
                }
                tokio::task::yield_now().await;
            }
        });
    }
    busy
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_that_is_pushed_again_while_others_expire_stays_open() {
    let pair = Pair::start().await;
    let client = Arc::new(Client::new(&pair.edge_config.admin.socket));
    let brief = in_seconds(7);
    for first in (0..CHANNELS).step_by(20) {
        let mut pushing = JoinSet::new();
        for number in first..first + 20 {
            let client = Arc::clone(&client);
            pushing.spawn(async move { push(&client, spec(number, 1, brief)).await });
        }
        while let Some(pushed) = soon(pushing.join_next()).await {
            pushed.unwrap().unwrap();
        }
    }
    let count = || pair.edge.status().channels.len();
    assert_eq!(count(), CHANNELS, "the machine is too slow for this test");
    until("they are about to expire", || in_seconds(0) + 1 >= brief).await;
    let busy = load();
    until("they expire", || count() < CHANNELS).await;
    let mut pushing = JoinSet::new();
    for number in (CHANNELS - 16..CHANNELS).rev() {
        let client = Arc::clone(&client);
        let pushed = spec(number, 2, brief + 60);
        pushing.spawn(async move { push(&client, pushed).await });
    }
    while let Some(pushed) = soon(pushing.join_next()).await {
        pushed.unwrap().unwrap();
    }
    drop(busy);
    until("the others are gone", || count() <= 16).await;
    assert_eq!(count(), 16, "what was pushed stays");
    for channel in pair.edge.status().channels {
        let address = channel.listen.strip_prefix("tcp:").unwrap().to_owned();
        // There is no service behind it, so the connection may end at once.
        if let Err(error) = soon(TcpStream::connect(address)).await {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
        }
    }
}
