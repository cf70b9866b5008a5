//! Several tunnels that claim the same place: copies of a host, and second hosts of a site.

use std::time::Duration;

use crate::harness::trust::Load;
use crate::harness::{Pair, SOON, Stopwatch, echo, name, open, until};
use tokio::time::sleep;
use towpath_bench::relay::{Direction, Door, Options, Relay, Side};
use towpath_certs::Validity;
use towpath_certs::authority::LEAF_VALIDITY;
use towpath_protocol::class::Class;
use towpath_protocol::identity::HostIdentity;
use towpath_tunnel::Tunnel;
use towpath_tunnel::config::Config;
use towpath_tunnel::status::{LinkState, LinkView};

fn link(tunnel: &Tunnel) -> LinkView {
    tunnel.status().links.remove(0)
}

/// The configuration of another tunnel beside the edge's, with the same identity.
fn beside(pair: &Pair) -> Config {
    let mut config = pair.edge_config.clone();
    config.listen = None;
    config.socket = pair.world.path("other-run/tunnel.sock");
    config.admin.socket = pair.world.path("other-run/admin.sock");
    config
}

/// A host was copied completely: one of the two tunnels keeps the link, and the region names both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_tunnels_with_one_certificate_one_keeps_the_link_and_the_peer_names_both() {
    let pair = Pair::start().await;
    let config = beside(&pair);
    let copy = Tunnel::start(&config).await.unwrap();
    copy.linked(&name("region"), SOON).await.unwrap();
    let echo = echo(pair.echo());
    let opened = open(&config.socket, "region", "echo", Class::App).await;
    let load = Load::start(opened.unwrap());
    let lost = || link(&pair.edge).links_lost + link(&copy).links_lost;
    let before = lost();
    for _ in 0..10 {
        load.flows().await;
        sleep(Duration::from_millis(500)).await;
    }
    let count = lost() - before;
    assert!(count < 10, "{count} links were lost");
    let told = link(&pair.region);
    let both = "two tunnels show the identity edge/box-1, from 127.0.0.1:";
    assert_eq!(told.state, LinkState::Degraded);
    assert!(told.reason.contains(both), "{}", told.reason);
    assert!(told.remedy.unwrap().contains("a certificate of its own"));
    assert_eq!(link(&pair.edge).state, LinkState::Down);
    load.end().await;
    // The copy's stop frees the place.
    copy.stop().await;
    pair.linked().await;
    echo.abort();
}

/// The tunnel that has the link vanishes without a farewell; its dead link must not keep the other
/// tunnel out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_gets_its_place_back_soon_after_its_copy_has_vanished() {
    let pair = Pair::start().await;
    let door = Door {
        from: Side::A,
        listen: "127.0.0.1:0".parse().unwrap(),
        to: pair.region.listen_address().unwrap(),
    };
    let path = Options {
        doors: vec![door],
        from_a: Direction::default(),
        from_b: Direction::default(),
        seed: 1,
    };
    let relay = Relay::start(&path).unwrap();
    let mut config = beside(&pair);
    config.peers[0].address = Some(relay.doors()[0].to_string());
    let copy = Tunnel::start(&config).await.unwrap();
    copy.linked(&name("region"), SOON).await.unwrap();
    until("the edge is refused", || {
        link(&pair.edge).state == LinkState::Down
    })
    .await;
    relay.control().cut_both();
    let vanished = Stopwatch::start();
    pair.edge.linked(&name("region"), SOON).await.unwrap();
    vanished.at_most(Duration::from_secs(5), "back");
    let echo = echo(pair.echo());
    let load = Load::start(pair.open("echo", Class::App).await.unwrap());
    load.flows().await;
    load.end().await;
    echo.abort();
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
