//! Several tunnels that claim one place: second hosts of a site.

use crate::harness::{Pair, until};
use towpath_certs::Validity;
use towpath_certs::authority::LEAF_VALIDITY;
use towpath_protocol::identity::HostIdentity;
use towpath_tunnel::Tunnel;
use towpath_tunnel::config::Config;
use towpath_tunnel::status::LinkView;

fn link(tunnel: &Tunnel) -> LinkView {
    tunnel.status().links.remove(0)
}

/// The edge's configuration for another tunnel beside it.
fn beside(pair: &Pair) -> Config {
    let mut config = pair.edge_config.clone();
    config.listen = None;
    config.socket = pair.world.path("other-run/tunnel.sock");
    config.admin.socket = pair.world.path("other-run/admin.sock");
    config
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_host_of_a_site_is_told_what_to_do_and_shown_by_who_refuses_it() {
    let pair = Pair::start().await;
    let mut config = beside(&pair);
    let host = HostIdentity::from_uri("spiffe://shop.example/site/edge/host/box-2").unwrap();
    let validity = Validity::lasting(LEAF_VALIDITY, std::time::SystemTime::now());
    let folder = pair.world.path("box-2-certs");
    let files = pair.world.authority.issue(&host, validity, &folder);
    config.host = host.host;
    config.certificates = files.unwrap().into();
    let second = Tunnel::start(&config).await.unwrap();
    until("it is told", || {
        let told = link(&second);
        told.reason.contains("already linked with edge/box-1")
            && told
                .remedy
                .is_some_and(|remedy| remedy.contains("a site of its own"))
    })
    .await;
    let refused = pair.region.status().refused.unwrap();
    assert_eq!(refused.reason, "not_taken");
    assert!(
        refused.detail.contains("edge/box-2: already linked"),
        "{}",
        refused.detail
    );
    assert!(
        refused.remedy.contains("a site of its own"),
        "{}",
        refused.remedy
    );
    assert_eq!(link(&pair.region).links_lost, 0);
}
