//! Tunnels of other releases: peers that have no protocol version in common.

use std::sync::Arc;

use quinn::Endpoint;
use quinn::crypto::rustls::QuicServerConfig;
use towpath_certs::{Identity, Rejections, tls};
use towpath_daemon::client::Client;
use towpath_protocol::class::Class;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::preamble::{Joined, LINK_VERSIONS, Preamble, RunId};
use towpath_protocol::version::VersionRange;
use towpath_tunnel::Tunnel;
use towpath_tunnel::config::Config;
use towpath_tunnel::status::{LinkState, StatusView};

use crate::harness::peer::{answer, closed_with, join};
use crate::harness::{Door, World, open, soon, until};

/// The versions of a release that is two ahead of this one.
const THEIRS: VersionRange = VersionRange {
    min: LINK_VERSIONS.max + 2,
    max: LINK_VERSIONS.max + 3,
};

/// Waits until the reason is shown to the operator everywhere, and to a program that wants a
/// stream.
async fn told(tunnel: &Tunnel, config: &Config, peer: &str, parts: &[&str]) {
    until("what is shown says why", || {
        let link = &tunnel.status().links[0];
        parts.iter().all(|part| link.reason.contains(part))
    })
    .await;
    let status: StatusView = Client::new(&config.admin.socket)
        .get("/status")
        .await
        .unwrap();
    let link = &status.links[0];
    assert_eq!(link.state, LinkState::Down);
    assert!(
        link.reason.starts_with("no version in common: "),
        "{link:?}"
    );
    assert!(
        link.remedy.as_ref().unwrap().contains("upgrade"),
        "{link:?}"
    );
    let fault = open(&config.socket, peer, "echo", Class::App)
        .await
        .unwrap_err();
    assert_eq!(fault.code, Code::Version);
    for part in parts {
        assert!(fault.detail.contains(part), "{part}: {fault}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f29_a_peer_that_dials_and_speaks_no_version_of_ours_is_told_both_ranges() {
    let door = Door::open().await;
    let older = VersionRange { min: 0, max: 0 };
    for (theirs, upgrade) in [(THEIRS, "region"), (older, "edge")] {
        let connection = door.connect(door.client()).await.unwrap();
        let (_send, mut recv) = join(&connection, |join| join.versions = theirs).await;
        let Preamble::Refused(fault) = answer(&mut recv).await else {
            panic!("not refused");
        };
        let words = format!(
            "the tunnel of region/box-1 speaks versions {LINK_VERSIONS} and the tunnel of edge/box-1 \
             {theirs}: upgrade the tunnel of {upgrade}/box-1"
        );
        assert_eq!((fault.code, &fault.detail), (Code::Version, &words));
        drop(recv);
        closed_with(&connection, &theirs.to_string()).await;
        told(&door.region, &door.config, "edge", &[&words]).await;
        assert_eq!(door.region.status().links[0].host, None);
    }
    // With a version in common there is a link, and the reason is no longer shown.
    let link = crate::harness::peer::joined(&door, towpath_protocol::preamble::LinkId(8)).await;
    until("it is up", || door.region.status().links[0].reason == "up").await;
    drop(link);
}

/// Answers the preamble of every connection with `said`. Both connections of a link exist before
/// either answers.
async fn answers(endpoint: Endpoint, said: Preamble) {
    while let Some(incoming) = endpoint.accept().await {
        let said = said.encode();
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else {
                return;
            };
            if let Ok((mut send, mut recv)) = connection.accept_bi().await {
                assert!(matches!(answer(&mut recv).await, Preamble::Join(_)));
                let _ = send.write_all(&said).await;
                let _ = send.finish();
            }
            connection.closed().await;
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f29_a_peer_that_we_dial_and_that_speaks_no_version_of_ours_is_shown_with_both_ranges() {
    let in_words =
        format!("we speak versions {THEIRS} and the peer {LINK_VERSIONS}; upgrade the older side");
    let refused = |detail: &str| Preamble::Refused(Fault::new(Code::Version, detail));
    let chosen = Preamble::Joined(Joined {
        version: THEIRS.max,
        receive_rate_max: None,
        run: RunId(7),
    });
    let ours = LINK_VERSIONS.to_string();
    for (said, parts) in [
        (refused(&in_words), ["region/box-1 refuses", &in_words]),
        (
            refused("no"),
            ["region/box-1 refuses: no", "edge/box-1 speaks versions"],
        ),
        (
            chosen,
            ["region/box-1 chose", "upgrade the tunnel of edge/box-1"],
        ),
    ] {
        let world = World::new();
        let files = world.issue("region");
        let region = Identity::load(&files.paths()).unwrap();
        let crypto = tls::server_config(&region, &Arc::new(Rejections::default())).unwrap();
        let crypto = QuicServerConfig::try_from(crypto).unwrap();
        let server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        let endpoint = Endpoint::server(server, "127.0.0.1:0".parse().unwrap()).unwrap();
        let mut config = world.site("edge", "region");
        config.peers[0].address = Some(endpoint.local_addr().unwrap().to_string());
        let answering = tokio::spawn(answers(endpoint, said));
        let edge = Tunnel::start(&config).await.unwrap();
        let parts = [parts[0], parts[1], &ours];
        soon(told(&edge, &config, "region", &parts)).await;
        answering.abort();
    }
}
