//! Links and the certificates they were made with: which stay, which are remade, which are closed.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use crate::harness::trust::{
    Load, carry_list, check_refused, client_of, end_all, lasting, loaded_pair, quic, revoke, says,
    shake, sign, uses,
};
use crate::harness::{Pair, Stopwatch, echo, name, soon};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, RecvStream, SendStream};
use towpath_certs::Authority;
use towpath_certs::authority::LEAF_VALIDITY;
use towpath_certs::renewal::{KeyChoice, LIST_VALIDITY, OtherAuthority, RevocationTarget};
use towpath_protocol::class::{Class, Leg};
use towpath_protocol::identity::HostIdentity;
use towpath_protocol::preamble::{Join, LINK_VERSIONS, LinkId, Preamble, RunId};
use towpath_tunnel::Tunnel;
use towpath_tunnel::status::LinkView;

/// How soon the links of a revoked peer are closed (T10).
const CLOSED_WITHIN: Duration = Duration::from_secs(5);

/// A link that a thief's program keeps up: it never makes another one.
struct Kept {
    legs: [Connection; 2],
    _control: Vec<(SendStream, RecvStream)>,
}

impl Kept {
    /// Dials the region with this client's certificate.
    async fn dial(pair: &Pair, client: &Arc<QuicClientConfig>) -> Self {
        let legs = [
            shake(pair, client).await.unwrap(),
            shake(pair, client).await.unwrap(),
        ];
        let mut control = Vec::new();
        for (connection, leg) in legs.iter().zip([Leg::Urgent, Leg::Bulk]) {
            let (mut send, recv) = connection.open_bi().await.unwrap();
            let join = Preamble::Join(Join {
                versions: LINK_VERSIONS,
                link: LinkId(77),
                leg,
                receive_rate_max: None,
                run: RunId(78),
            });
            send.write_all(&join.encode()).await.unwrap();
            control.push((send, recv));
        }
        for (_, recv) in &mut control {
            // The first byte of an answer: the link is up.
            soon(recv.read_exact(&mut [0])).await.unwrap();
        }
        Self {
            legs,
            _control: control,
        }
    }

    fn is_open(&self) -> bool {
        self.legs.iter().all(|leg| leg.close_reason().is_none())
    }

    async fn closed(&self) {
        for leg in &self.legs {
            soon(leg.closed()).await;
        }
    }
}

/// The link to the only peer.
fn link(tunnel: &Tunnel) -> LinkView {
    tunnel.status().links.remove(0)
}

/// Waits until the only link meets a condition.
async fn is_linked(tunnel: &Tunnel, is_wanted: impl Fn(&LinkView) -> bool) {
    let waiting = async {
        while !is_wanted(&link(tunnel)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(crate::harness::SOON, waiting).await;
    assert!(waited.is_ok(), "{:?}", link(tunnel));
}

/// Makes the edge's own tunnel stop dialling, so that an impostor can take its place.
async fn leave_alone(pair: &mut Pair) {
    let mut config = pair.edge_config.clone();
    config.peers[0].address = None;
    config.socket = pair.world.path("quiet-run/tunnel.sock");
    config.admin.socket = pair.world.path("quiet-run/admin.sock");
    let quiet = Tunnel::start(&config).await.unwrap();
    std::mem::replace(&mut pair.edge, quiet).stop().await;
    is_linked(&pair.region, |link| link.host.is_none()).await;
}

/// The next authority with its own list, and the public halves of both authorities for an overlap.
fn next_authority(pair: &Pair) -> (Authority, OtherAuthority, OtherAuthority) {
    let next = Authority::init(&pair.world.path("next"), &name("shop.example")).unwrap();
    sign(&next, LIST_VALIDITY);
    let [old_half, new_half] =
        ["ca", "next"].map(|folder| OtherAuthority::open(&pair.world.path(folder)).unwrap());
    (next, old_half, new_half)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t10_a_host_that_the_next_authority_revokes_is_out_though_its_link_is_of_the_old_one() {
    let (mut pair, loads, echo) = loaded_pair(None).await;
    end_all(loads).await;
    let (next, old_half, new_half) = next_authority(&pair);
    let region = pair.world.path("region-certs");
    let renew = |authority: &Authority, overlap| {
        let validity = lasting(LEAF_VALIDITY);
        authority.renew(&region, KeyChoice::Same, validity, overlap)
    };
    renew(&pair.world.authority, Some(&new_half)).unwrap();
    uses(&pair.region, &pair.region_config).await;
    // The edge's host makes a link, is stolen, and keeps that link. Its owner had renewed the
    // certificate with the next authority, and revokes the renewed one.
    leave_alone(&mut pair).await;
    let client = client_of(&pair.world.path("edge-certs"), false);
    let client = quic(client);
    let kept = Kept::dial(&pair, &client).await;
    is_linked(&pair.region, |link| link.host.is_some()).await;
    let edge = HostIdentity::from_uri("spiffe://shop.example/site/edge/host/box-1").unwrap();
    let renewed = pair.world.path("edge-renewed");
    next.issue(&edge, lasting(LEAF_VALIDITY), &renewed).unwrap();

    renew(&next, Some(&old_half)).unwrap();
    uses(&pair.region, &pair.region_config).await;
    assert!(kept.is_open(), "both authorities are trusted");
    revoke(&next, &RevocationTarget::Host(edge));
    renew(&next, None).unwrap();
    let changed = Stopwatch::start();
    uses(&pair.region, &pair.region_config).await;
    kept.closed().await;
    changed.at_most(CLOSED_WITHIN, "closed");
    is_linked(&pair.region, |link| link.host.is_none()).await;

    // Neither of its certificates gets it back in.
    for (folder, reason) in [
        ("edge-certs", "unknown_authority"),
        ("edge-renewed", "revoked"),
    ] {
        // The region's own folder has the authorities that now verify the region.
        let mut client = client_of(&region, false);
        let shown = client_of(&pair.world.path(folder), false);
        client.client_auth_cert_resolver = shown.client_auth_cert_resolver;
        let client = quic(client);
        check_refused(&pair, &client, reason).await;
    }
    echo.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t10_a_link_that_another_has_replaced_is_closed_too() {
    let (mut pair, loads, echo) = loaded_pair(None).await;
    end_all(loads).await;
    leave_alone(&mut pair).await;
    let client = client_of(&pair.world.path("edge-certs"), false);
    let client = quic(client);
    let mut kept = Vec::new();
    for _ in 0..2 {
        kept.push(Kept::dial(&pair, &client).await);
    }
    let edge = HostIdentity::from_uri("spiffe://shop.example/site/edge/host/box-1").unwrap();
    revoke(&pair.world.authority, &RevocationTarget::Host(edge));
    carry_list(&pair.world.path("ca"), &pair.region_config);
    let changed = Stopwatch::start();
    for kept in &kept {
        kept.closed().await;
    }
    changed.at_most(CLOSED_WITHIN, "closed");
    echo.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_authority_reaches_links_that_are_up_and_no_stream_notices() {
    let (pair, loads, echo) = loaded_pair(None).await;
    let (next, old_half, new_half) = next_authority(&pair);
    let sites = [
        ("edge", &pair.edge, &pair.edge_config),
        ("region", &pair.region, &pair.region_config),
    ];
    // Each certificate ends at a different time, which identifies the certificate that a link was
    // made with.
    let mut days = 10;
    let mut ends = Vec::new();
    for (authority, overlap) in [
        (&pair.world.authority, Some(&new_half)),
        (&next, Some(&old_half)),
        (&next, None),
    ] {
        for (site, tunnel, config) in sites {
            days += 1;
            let validity = lasting(Duration::from_hours(24 * days));
            let folder = pair.world.path(&format!("{site}-certs"));
            authority
                .renew(&folder, KeyChoice::Same, validity, overlap)
                .unwrap();
            uses(tunnel, config).await;
            ends.push(tunnel.status().certificate.not_after_unix_seconds);
            for load in &loads {
                load.flows().await;
            }
        }
        if overlap.is_none() {
            break;
        }
    }
    // The edge used the certificate of the next authority as soon as it had it. The region's new
    // certificate came into use on the link when the edge no longer trusted the old authority.
    is_linked(&pair.region, |link| {
        link.peer_certificate_not_after_unix_seconds >= Some(ends[2])
    })
    .await;
    is_linked(&pair.edge, |link| {
        link.peer_certificate_not_after_unix_seconds >= Some(ends[3])
    })
    .await;
    for load in &loads {
        load.flows().await;
    }
    for (_, tunnel, _) in sites {
        let link = link(tunnel);
        assert_eq!(
            link.links_lost, 0,
            "another link was there before the old one went"
        );
        assert_eq!(link.streams_lost, 0);
        assert!(link.streams_resumed > 0);
    }
    end_all(loads).await;
    echo.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_is_made_anew_before_the_certificate_ends_that_it_shows() {
    let pair = Pair::start_with(
        |edge, _| {
            let certs = &mut edge.certificates;
            let ca = certs.ca.parent().unwrap().with_file_name("ca");
            let authority = Authority::open(&ca).unwrap();
            let host =
                HostIdentity::from_uri("spiffe://shop.example/site/edge/host/box-1").unwrap();
            let folder = ca.with_file_name("brief");
            let ten_days = lasting(Duration::from_hours(10 * 24));
            *certs = authority.issue(&host, ten_days, &folder).unwrap().into();
        },
        None,
    )
    .await;
    let echo = echo(pair.echo());
    let load = Load::start(pair.open("echo", Class::App).await.unwrap());
    load.flows().await;
    let first = link(&pair.region).peer_certificate_not_after_unix_seconds;
    let folder = pair.world.path("brief");
    let authority = &pair.world.authority;
    authority
        .renew(&folder, KeyChoice::Same, lasting(LEAF_VALIDITY), None)
        .unwrap();
    is_linked(&pair.region, |link| {
        link.peer_certificate_not_after_unix_seconds > first
    })
    .await;
    load.flows().await;
    assert_eq!(link(&pair.region).links_lost, 0);
    load.end().await;
    echo.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t10_a_certificate_that_has_ended_can_be_revoked_for_the_link_that_was_made_with_it() {
    let (mut pair, loads, echo) = loaded_pair(None).await;
    end_all(loads).await;
    leave_alone(&mut pair).await;
    let edge = HostIdentity::from_uri("spiffe://shop.example/site/edge/host/box-1").unwrap();
    let brief = pair.world.path("brief");
    let authority = &pair.world.authority;
    let files = authority
        .issue(&edge, lasting(Duration::from_secs(3)), &brief)
        .unwrap();
    let client = client_of(&brief, false);
    let client = quic(client);
    let kept = Kept::dial(&pair, &client).await;
    let ends = towpath_certs::show(&files.cert)
        .unwrap()
        .not_after_unix_seconds;
    let ended = async {
        while std::time::UNIX_EPOCH + Duration::from_secs(ends + 1) > std::time::SystemTime::now() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    soon(ended).await;
    assert!(kept.is_open(), "a link outlives its certificate");
    fs::remove_dir_all(&brief).unwrap();
    revoke(authority, &RevocationTarget::Host(edge));
    carry_list(&pair.world.path("ca"), &pair.region_config);
    let changed = Stopwatch::start();
    says(&pair.region, |view| view.revocation_lists[0].number == 2).await;
    kept.closed().await;
    changed.at_most(CLOSED_WITHIN, "closed");
    echo.abort();
}
