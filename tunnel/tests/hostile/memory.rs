//! What a tunnel holds for peers that are silent, and for links and connections that are over.

use std::net::UdpSocket;
use std::time::Duration;

use towpath_tunnel::Tunnel;
use towpath_tunnel::config::PeerConfig;

use crate::harness::{World, name};
use crate::{MEMORY, resident_bytes};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_that_do_not_answer_cost_little_memory() {
    /// So long that attempts have ended, and others have begun in their place.
    const DIALLING: Duration = Duration::from_secs(20);
    let _alone = MEMORY.write().await;
    let world = World::new();
    let mut config = world.site("edge", "site-0");
    let silent = [(); 10].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
    let peers = silent.iter().enumerate().map(|(number, socket)| {
        let mut peer = PeerConfig::new(name(&format!("site-{number}")));
        peer.address = Some(socket.local_addr().unwrap().to_string());
        peer
    });
    config.peers = peers.collect();
    let before = resident_bytes();
    let _tunnel = Tunnel::start(&config).await.unwrap();
    tokio::time::sleep(DIALLING).await;
    let grown = resident_bytes().saturating_sub(before);
    println!("{} KiB more memory", grown / 1024);
    assert!(grown <= 64 << 20, "{grown} bytes more");
}
