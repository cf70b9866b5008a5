//! Connections of a channel that end by a reset: a reset at one side is a reset at the other,
//! whichever side caused it, and also if the channel is closed.

use std::io::ErrorKind;
use std::time::Duration;

use crate::harness::{Pair, soon};
use crate::places::{address, joined};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use towpath_daemon::client::Client;
use towpath_protocol::endpoint::Endpoint;
use towpath_tunnel::config::Config;

/// Two sites, and the service that their channel leads to.
async fn start() -> (Pair, TcpListener) {
    let service = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Endpoint::Tcp(service.local_addr().unwrap());
    let change = |edge: &mut Config, region: &mut Config| {
        joined(edge, region, &target, "tcp:127.0.0.1:0");
    };
    let pair = Pair::start_with(change, None).await;
    (pair, service)
}

/// A program's connection and the service's end of it, after data has gone each way.
async fn carried(pair: &Pair, service: &TcpListener) -> (TcpStream, TcpStream) {
    let mut program = TcpStream::connect(address(pair)).await.unwrap();
    program.write_all(b"ask").await.unwrap();
    let (mut served, _) = soon(service.accept()).await.unwrap();
    soon(served.read_exact(&mut [0; 3])).await.unwrap();
    served.write_all(b"answer").await.unwrap();
    soon(program.read_exact(&mut [0; 6])).await.unwrap();
    (program, served)
}

/// Closes a socket like a process that is killed with bytes unread.
fn reset(socket: TcpStream) {
    SockRef::from(&socket)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(socket);
}

async fn is_reset(mut socket: TcpStream) {
    let ended = soon(socket.read(&mut [0])).await;
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn con_2_a_reset_passes_whichever_side_it_comes_from() {
    let (pair, service) = start().await;
    let (program, served) = carried(&pair, &service).await;
    reset(program);
    is_reset(served).await;
    let (program, served) = carried(&pair, &service).await;
    reset(served);
    is_reset(program).await;
    // A normal end is no reset, and leaves the other direction open.
    let (mut program, mut served) = carried(&pair, &service).await;
    program.shutdown().await.unwrap();
    assert_eq!(soon(served.read(&mut [0])).await.unwrap(), 0);
    served.write_all(b"late").await.unwrap();
    soon(program.read_exact(&mut [0; 4])).await.unwrap();
    drop(served);
    assert_eq!(soon(program.read(&mut [0])).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn con_6_a_channel_that_is_removed_resets_both_sides() {
    let (pair, service) = start().await;
    let (program, served) = carried(&pair, &service).await;
    let client = Client::new(&pair.edge_config.admin.socket);
    let left: serde_json::Value = client.delete("/v1/channels/till").await.unwrap();
    assert_eq!(left["channels"].as_array().unwrap().len(), 0, "{left}");
    is_reset(program).await;
    is_reset(served).await;
}
