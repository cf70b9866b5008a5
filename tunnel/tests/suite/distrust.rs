//! Hosts that do not trust each other: each side reports the reason and a remedy in plain words.

use std::fs;
use std::path::PathBuf;

use crate::harness::kept::Kept;
use crate::harness::{World, metric, name, until};
use towpath_tunnel::Tunnel;
use towpath_tunnel::config::Config;
use towpath_tunnel::status::{LinkState, LinkView};

/// An edge that dials what it believes to be the region, and the tunnel it reaches.
struct Strangers {
    edge: Tunnel,
    edge_config: Config,
    there: Tunnel,
}

impl Strangers {
    async fn start(mut edge_config: Config, there_config: &Config) -> Self {
        let there = Tunnel::start(there_config).await.unwrap();
        let address = there.listen_address().unwrap();
        edge_config.peers[0].address = Some(address.to_string());
        edge_config.listen = None;
        let edge = Tunnel::start(&edge_config).await.unwrap();
        Self {
            edge,
            edge_config,
            there,
        }
    }

    /// Waits until the edge's link is down with a reason that contains this.
    async fn told(&self, reason: &str) -> LinkView {
        let link = || self.edge.status().links.remove(0);
        until(reason, || link().reason.contains(reason)).await;
        assert_eq!(link().state, LinkState::Down);
        link()
    }

    /// Waits until the other side refuses handshakes for this reason.
    async fn refused(&self, reason: &str) -> String {
        let refused = || self.there.status().refused;
        until(reason, || {
            refused().is_some_and(|refused| refused.reason == reason)
        })
        .await;
        // The stranger has proved nothing, so the peer's link does not report it.
        let link = self.there.status().links.remove(0);
        assert!(link.reason.contains("waiting for the peer"), "{link:?}");
        let remedy = link.remedy.unwrap();
        assert!(remedy.contains(reason), "{remedy}");
        refused().unwrap().remedy
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_with_another_sites_certificate_is_told_by_its_name() {
    let world = World::new();
    let log = Kept::log();
    let edge = world.site("edge", "region");
    let sites = Strangers::start(edge, &world.site("branch", "edge")).await;
    let said = "its certificate is another's: branch answered where region was dialled";
    let link = sites.told(said).await;
    assert!(!link.reason.contains("Fault"), "{link:?}");
    let remedy = link.remedy.unwrap();
    assert!(remedy.contains("towpath certs"), "{remedy}");
    let remedy = sites.refused("refused_by_peer").await;
    assert!(remedy.contains("this host's certificate"), "{remedy}");
    // However often it retries, the log has one line about it.
    let dials = "towpath_tunnel_dials_total{cause=\"clock\"";
    let dialled = async {
        while metric(&sites.edge_config, dials).await < 4 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    crate::harness::soon(dialled).await;
    let text = log.text();
    let lines = text.lines().filter(|line| line.contains(said));
    let lines: Vec<_> = lines.collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("WARN") && lines[0].contains("towpath certs"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_of_an_unknown_authority_is_told_from_one_that_does_not_answer() {
    let (world, other) = (World::new(), World::new());
    let edge = world.site("edge", "region");
    let sites = Strangers::start(edge, &other.site("region", "edge")).await;
    let link = sites
        .told("an authority that this host does not trust")
        .await;
    let remedy = link.remedy.unwrap();
    assert!(remedy.contains("compare `ca.pem` of both"), "{remedy}");
    sites.refused("refused_by_peer").await;
    // Programs that want a stream over the link get the same reason.
    let asked = crate::harness::open(
        &sites.edge_config.socket,
        "region",
        "echo",
        towpath_protocol::class::Class::App,
    );
    let refused = asked.await.unwrap_err();
    assert!(refused.detail.contains("does not trust"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_refuses_our_certificate_is_told_as_such_at_both_sides() {
    let (world, other) = (World::new(), World::new());
    let mut edge = other.site("edge", "region");
    // The edge trusts both authorities, the region only its own.
    let both: PathBuf = other.path("both.pem");
    let own = fs::read(&edge.certificates.ca).unwrap();
    let known = fs::read(world.path("ca/ca.pem")).unwrap();
    fs::write(&both, [own, known].concat()).unwrap();
    edge.certificates.ca = both;
    let sites = Strangers::start(edge, &world.site("region", "edge")).await;
    let said = "the peer refuses this host's certificate: it does not trust its authority";
    let link = sites.told(said).await;
    let remedy = link.remedy.unwrap();
    assert!(remedy.contains("compare `ca.pem` of both"), "{remedy}");
    let remedy = sites.refused("unknown_authority").await;
    assert!(remedy.contains("compare `ca.pem` of both"), "{remedy}");
    assert_eq!(sites.edge.status().links[0].peer, name("region").as_str());
}
