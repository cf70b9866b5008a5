//! Many sites behind one address reconnect at the same time after the region restarts.

use std::time::Duration;

use towpath_tunnel::Tunnel;
use towpath_tunnel::config::PeerConfig;

use crate::harness::{SOON, Stopwatch, World, name, start_again};

const COUNT: usize = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_sites_behind_one_address_come_back_together() {
    let world = World::new();
    let sites: Vec<_> = (0..COUNT).map(|nth| name(&format!("edge-{nth}"))).collect();
    let mut region_config = world.site("region", "edge-0");
    region_config.services.clear();
    region_config.peers = sites.iter().cloned().map(PeerConfig::new).collect();
    let region = Tunnel::start(&region_config).await.unwrap();
    region_config.listen = region.listen_address();
    let address = region_config.listen.unwrap().to_string();
    let mut edges = Vec::new();
    for site in &sites {
        let mut config = world.site(site.as_str(), "region");
        config.listen = None;
        config.peers[0].address = Some(address.clone());
        edges.push(Tunnel::start(&config).await.unwrap());
    }
    let all = async |region: &Tunnel| {
        for site in &sites {
            region.linked(site, 2 * SOON).await.unwrap();
        }
    };
    all(&region).await;
    region.stop().await;
    // Long enough for attempts to overlap; each repeats its first datagrams once the region is
    // back.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let back = Stopwatch::start();
    let region = start_again(&region_config).await;
    all(&region).await;
    // With the rate limit that handshakes of one address once had, it would take minutes.
    back.at_most(SOON, "all sites are back");
    for edge in edges {
        edge.stop().await;
    }
    region.stop().await;
}
