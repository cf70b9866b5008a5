//! Certificates, authorities and revocation lists that are replaced while streams run.

use std::fs;
use std::time::{Duration, SystemTime};

use crate::harness::kept::Kept;
use crate::harness::trust::{
    Load, all_flow, carry_list, check_refused, client_of, cut_apart, end_all, lasting, loaded_pair,
    quic, revoke, says, serial, shake, shown, sign, uses,
};
use crate::harness::{Pair, SOON, Stopwatch, World, echo, metric, name, soon, start_again, until};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, SanType};
use towpath_bench::relay::Direction;
use towpath_certs::authority::LEAF_VALIDITY;
use towpath_certs::renewal::{KeyChoice, LIST_VALIDITY, OtherAuthority, RevocationTarget};
use towpath_certs::{Authority, Validity};
use towpath_daemon::stream;
use towpath_protocol::class::Class;
use towpath_protocol::fault::Code;
use towpath_protocol::identity::HostIdentity;
use towpath_tunnel::Tunnel;
use towpath_tunnel::config::Config;
use towpath_tunnel::status::CertificateStatusView;

/// How soon a revoked peer is refused, and how soon its links are closed (T10).
const REFUSED_WITHIN: Duration = Duration::from_secs(1);
const CLOSED_WITHIN: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_and_keys_are_rotated_under_load_and_no_stream_is_dropped() {
    let (pair, loads, echo) = loaded_pair(None).await;
    let (first, link) = (
        serial(&pair.region_config),
        pair.edge.status().links[0].since_unix_seconds,
    );
    for key in [KeyChoice::Same, KeyChoice::New] {
        for (site, tunnel, config) in [
            ("edge", &pair.edge, &pair.edge_config),
            ("region", &pair.region, &pair.region_config),
        ] {
            let folder = pair.world.path(&format!("{site}-certs"));
            let renewed = pair
                .world
                .authority
                .renew(&folder, key, lasting(LEAF_VALIDITY), None);
            renewed.unwrap();
            uses(tunnel, config).await;
            all_flow(&loads).await;
        }
    }
    // New handshakes see the new certificate, on both sides.
    let client = client_of(&pair.world.path("edge-certs"), false);
    let client = quic(client);
    let connection = shake(&pair, &client).await.unwrap();
    assert_eq!(shown(&connection), serial(&pair.region_config));
    assert_ne!(shown(&connection), first);
    assert_eq!(pair.edge.status().links[0].since_unix_seconds, link);
    assert_eq!(
        metric(
            &pair.edge_config,
            "towpath_cert_reloads_total{result=\"taken\"}"
        )
        .await,
        2
    );
    end_all(loads).await;
    echo.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_authority_is_exchanged_under_load_through_an_overlap_of_two() {
    let (pair, loads, echo) = loaded_pair(None).await;
    let next = Authority::init(&pair.world.path("next"), &name("shop.example")).unwrap();
    sign(&next, LIST_VALIDITY);
    let [old_half, new_half] =
        ["ca", "next"].map(|folder| OtherAuthority::open(&pair.world.path(folder)).unwrap());
    let old = &pair.world.authority;
    let sites = [
        ("edge", &pair.edge, &pair.edge_config),
        ("region", &pair.region, &pair.region_config),
    ];
    let shake_as_edge = async || {
        let client = client_of(&pair.world.path("edge-certs"), false);
        let client = quic(client);
        shake(&pair, &client).await.unwrap()
    };
    for (authority, overlap) in [
        (old, Some(&new_half)),
        (&next, Some(&old_half)),
        (&next, None),
    ] {
        for (site, tunnel, config) in sites {
            let folder = pair.world.path(&format!("{site}-certs"));
            let validity = lasting(LEAF_VALIDITY);
            authority
                .renew(&folder, KeyChoice::Same, validity, overlap)
                .unwrap();
            uses(tunnel, config).await;
            // Hosts already moved to the next authority and hosts not yet moved can still connect.
            let connection = shake_as_edge().await;
            assert_eq!(shown(&connection), serial(&pair.region_config));
            all_flow(&loads).await;
        }
        let trusted = 1 + usize::from(overlap.is_some());
        for (_, tunnel, _) in sites {
            let view = tunnel.status().certificate;
            assert_eq!(view.authorities.len(), trusted);
            assert_eq!(view.revocation_lists.len(), trusted);
        }
    }
    // The old authority's hosts are strangers now.
    let left = pair
        .world
        .issue_for("edge", lasting(LEAF_VALIDITY), "left-behind");
    let mut client = client_of(&pair.world.path("edge-certs"), false);
    let stranger = client_of(left.cert.parent().unwrap(), false);
    client.client_auth_cert_resolver = stranger.client_auth_cert_resolver;
    let client = quic(client);
    check_refused(&pair, &client, "unknown_authority").await;
    end_all(loads).await;
    echo.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t10_a_revoked_peer_is_out_and_the_streams_of_others_run_on() {
    let (pair, loads, echo) = loaded_pair(None).await;
    // A stolen second host of the edge's site; it keeps whatever a session could be resumed with.
    let thief = HostIdentity::from_uri("spiffe://shop.example/site/edge/host/box-9").unwrap();
    let folder = pair.world.path("thief");
    let issued = pair
        .world
        .authority
        .issue(&thief, lasting(LEAF_VALIDITY), &folder);
    issued.unwrap();
    let client = client_of(&folder, true);
    let client = quic(client);
    for _ in 0..2 {
        let connection = shake(&pair, &client).await.unwrap();
        // A complete exchange leaves time for tickets to arrive, if there were any.
        let _ = tokio::time::timeout(Duration::from_millis(100), connection.accept_uni()).await;
        assert!(connection.close_reason().is_none());
    }
    revoke(&pair.world.authority, &RevocationTarget::Host(thief));
    carry_list(&pair.world.path("ca"), &pair.region_config);
    let changed = Stopwatch::start();
    says(&pair.region, |view| view.revocation_lists[0].number == 2).await;
    check_refused(&pair, &client, "revoked").await;
    changed.at_most(REFUSED_WITHIN, "refused");
    for load in loads {
        load.flows().await;
        load.end().await;
    }
    echo.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t10_live_links_of_a_revoked_peer_are_closed_whoever_dialled() {
    for by_dialler in [false, true] {
        let (pair, loads, echo) = loaded_pair(None).await;
        let (revoked, tunnel, config) = if by_dialler {
            ("region", &pair.edge, &pair.edge_config)
        } else {
            ("edge", &pair.region, &pair.region_config)
        };
        let uri = format!("spiffe://shop.example/site/{revoked}/host/box-1");
        let host = HostIdentity::from_uri(&uri).unwrap();
        revoke(&pair.world.authority, &RevocationTarget::Host(host));
        carry_list(&pair.world.path("ca"), config);
        let changed = Stopwatch::start();
        until("closed", || tunnel.status().links[0].host.is_none()).await;
        until("its streams are cut", || {
            tunnel.status().links[0].streams == 0
        })
        .await;
        changed.at_most(CLOSED_WITHIN, "closed, and its streams cut");
        // It stays out, whether it keeps dialling or is dialled again and again.
        let again = tunnel
            .linked(&name(revoked), Duration::from_millis(1500))
            .await;
        assert_eq!(again.unwrap_err().code, Code::Denied);
        // Both sides get the reason and the remedy, so nobody needs to look at the network.
        for (side, said) in [(&pair.edge, "edge"), (&pair.region, "region")] {
            let whose = match said == revoked {
                true => "this host's certificate is revoked",
                false => "its certificate is revoked",
            };
            // On a busy machine the other side's goodbye may be lost; the loss of the link is
            // noticed later.
            until(whose, || side.status().links[0].reason.starts_with(whose)).await;
            let link = side.status().links.remove(0);
            let remedy = link.remedy.unwrap_or_default();
            assert!(remedy.contains("towpath certs issue"), "{said}: {remedy}");
        }
        // It learns the reason when the link ends, or else at its next dial.
        let theirs = if by_dialler { &pair.region } else { &pair.edge };
        until("none waits at the revoked host", || {
            theirs.status().links[0].streams == 0
        })
        .await;
        assert!(metric(config, "towpath_tls_rejected_total{reason=\"revoked\"}").await > 0);
        for load in loads {
            load.task.abort();
        }
        echo.abort();
    }
}

/// Such a link does not come back, so the streams must not wait for as long as an outage may last.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t10_streams_that_wait_for_a_link_are_cut_when_their_host_is_revoked() {
    for by_dialler in [false, true] {
        let (pair, loads, echo) = loaded_pair(Some(Direction::default())).await;
        let (revoked, tunnel, config) = if by_dialler {
            ("region", &pair.edge, &pair.edge_config)
        } else {
            ("edge", &pair.region, &pair.region_config)
        };
        cut_apart(&pair, tunnel, &loads).await;
        let link = || tunnel.status().links.remove(0);
        let uri = format!("spiffe://shop.example/site/{revoked}/host/box-1");
        let host = HostIdentity::from_uri(&uri).unwrap();
        revoke(&pair.world.authority, &RevocationTarget::Host(host));
        carry_list(&pair.world.path("ca"), config);
        until("they are cut", || link().streams == 0).await;
        assert_eq!(link().streams_lost, 0, "no outage was too long");
        let whose = "its certificate is revoked";
        assert!(link().reason.starts_with(whose), "{}", link().reason);
        for load in loads {
            load.task.abort();
        }
        echo.abort();
    }
}

/// An outage hides why the link ended; the peer gives the reason at the next dial.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t10_a_host_that_is_refused_as_revoked_lets_no_stream_wait() {
    let log = Kept::log();
    let (pair, loads, echo) = loaded_pair(Some(Direction::default())).await;
    cut_apart(&pair, &pair.edge, &loads).await;
    let (count, link) = (loads.len() as u64, || pair.edge.status().links.remove(0));
    let host = HostIdentity::from_uri("spiffe://shop.example/site/edge/host/box-1").unwrap();
    revoke(&pair.world.authority, &RevocationTarget::Host(host));
    carry_list(&pair.world.path("ca"), &pair.region_config);
    let theirs = || pair.region.status().links[0].streams;
    until("the peer has cut its ends", || theirs() == 0).await;
    assert_eq!(link().streams, count, "nobody has told this side");
    pair.relay.as_ref().unwrap().control().heal();
    until("they are cut", || link().streams == 0).await;
    assert_eq!(link().streams_lost, 0, "no outage was too long");
    let whose = "this host's certificate is revoked";
    assert!(link().reason.starts_with(whose), "{}", link().reason);
    let is_told = |line: &str| line.contains(whose) && line.contains("streams cut");
    until("the log has it", || log.text().lines().any(is_told)).await;
    for load in loads {
        load.task.abort();
    }
    echo.abort();
}

/// Streams belong to the certificate they were opened under, and that one is not revoked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t10_a_revoked_certificate_costs_no_stream_that_was_carried_under_another() {
    let (pair, loads, echo) = loaded_pair(Some(Direction::default())).await;
    cut_apart(&pair, &pair.edge, &loads).await;
    let (count, link) = (loads.len() as u64, || pair.edge.status().links.remove(0));
    let files = &pair.edge_config.certificates;
    let take_another = async |folder| {
        let issued = pair.world.issue_for("edge", lasting(LEAF_VALIDITY), folder);
        fs::copy(&issued.key, &files.key).unwrap();
        fs::copy(&issued.cert, &files.cert).unwrap();
        uses(&pair.edge, &pair.edge_config).await;
    };
    take_another("second").await;
    let second = RevocationTarget::Serial(serial(&pair.edge_config));
    revoke(&pair.world.authority, &second);
    carry_list(&pair.world.path("ca"), &pair.region_config);
    says(&pair.region, |view| view.revocation_lists[0].number == 2).await;
    // No dial attempt that began with the first certificate is still pending: at most sixteen
    // overlap.
    let dials = async || {
        metric(
            &pair.edge_config,
            "towpath_tunnel_dials_total{cause=\"clock\"",
        )
        .await
    };
    let before = dials().await;
    soon(async { while dials().await <= before + 16 {} }).await;
    let control = pair.relay.as_ref().unwrap().control();
    // The link that was made with the first certificate would answer again.
    control.change_addresses();
    control.heal();
    let whose = "this host's certificate is revoked";
    until(whose, || link().reason.starts_with(whose)).await;
    let refused = dials().await;
    soon(async { while dials().await <= refused + 4 {} }).await;
    assert_eq!((link().streams, link().streams_paused), (count, count));
    take_another("third").await;
    pair.linked().await;
    all_flow(&loads).await;
    assert_eq!(link().streams_lost, 0);
    end_all(loads).await;
    echo.abort();
}

/// An authority's certificate that ends in a moment.
fn brief_authority(ends: SystemTime) -> String {
    let mut params = CertificateParams::default();
    let uri = "spiffe://shop.example".try_into().unwrap();
    params.subject_alt_names = vec![SanType::URI(uri)];
    params
        .distinguished_name
        .push(DnType::CommonName, "an authority that ends");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.not_after = ends.into();
    params
        .self_signed(&KeyPair::generate().unwrap())
        .unwrap()
        .pem()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authority_whose_time_ends_while_the_tunnel_runs_is_trusted_no_longer() {
    let world = World::new();
    let config = world.site("region", "edge");
    let ca = &config.certificates.ca;
    let ours = fs::read_to_string(ca).unwrap();
    // Certificates have times in whole seconds.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let ends = SystemTime::UNIX_EPOCH + Duration::from_secs(now.unwrap().as_secs() + 6);
    fs::write(ca, ours + &brief_authority(ends)).unwrap();
    let region = Tunnel::start(&config).await.unwrap();
    let is_over = || SystemTime::now() >= ends;
    let trusted = || region.status().certificate.authorities.len();
    assert!(trusted() == 2 || is_over());
    until("it is trusted no longer", || trusted() == 1).await;
    assert!(is_over());
    assert_eq!(region.status().certificate.problem, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_begins_after_an_authority_has_ended_is_in_use_soon() {
    let world = World::new();
    let config = world.site("region", "edge");
    let files = &config.certificates;
    let ours = fs::read_to_string(&files.ca).unwrap();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let ends = SystemTime::UNIX_EPOCH + Duration::from_secs(now.unwrap().as_secs() + 4);
    fs::write(&files.ca, ours + &brief_authority(ends)).unwrap();
    let region = Tunnel::start(&config).await.unwrap();
    // Files that changed recently are read at every check; the authority ends in that time.
    let second = Duration::from_secs(1);
    until("the end is near", || SystemTime::now() >= ends - second).await;
    let not_before = ends + 3 * second;
    let validity = Validity {
        not_before,
        not_after: not_before + LEAF_VALIDITY,
    };
    let next = world.issue_for("region", validity, "next");
    fs::copy(&next.key, &files.key).unwrap();
    fs::copy(&next.cert, &files.cert).unwrap();
    uses(&region, &config).await;
    assert!(SystemTime::now() >= not_before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t11_an_unusable_list_changes_nothing_and_shows() {
    let (pair, loads, echo) = loaded_pair(None).await;
    let crl = pair.region_config.certificates.crl.clone().unwrap();
    let first = fs::read(&crl).unwrap();
    let thief = HostIdentity::from_uri("spiffe://shop.example/site/edge/host/box-9").unwrap();
    let folder = pair.world.path("thief");
    let issued = pair
        .world
        .authority
        .issue(&thief, lasting(LEAF_VALIDITY), &folder);
    issued.unwrap();
    revoke(&pair.world.authority, &RevocationTarget::Host(thief));
    carry_list(&pair.world.path("ca"), &pair.region_config);
    says(&pair.region, |view| view.revocation_lists[0].number == 2).await;

    let stranger = Authority::init(&pair.world.path("stranger"), &name("shop.example")).unwrap();
    sign(&stranger, LIST_VALIDITY);
    let foreign = fs::read(pair.world.path("stranger/crl.pem")).unwrap();
    let client = quic(client_of(&folder, false));
    for (content, word) in [
        (b"no list at all".to_vec(), "revocation lists"),
        (foreign, "not signed by"),
        (first, "holds list 1"),
    ] {
        fs::write(&crl, content).unwrap();
        says(&pair.region, |view| {
            view.problem
                .as_ref()
                .is_some_and(|problem| problem.contains(word))
        })
        .await;
        assert_eq!(
            pair.region.status().certificate.revocation_lists[0].number,
            2
        );
        check_refused(&pair, &client, "revoked").await;
    }
    fs::remove_file(&crl).unwrap();
    says(&pair.region, |view| {
        view.problem
            .as_ref()
            .is_some_and(|problem| problem.contains("No such file"))
    })
    .await;
    check_refused(&pair, &client, "revoked").await;
    assert_eq!(
        metric(
            &pair.region_config,
            "towpath_cert_reloads_total{result=\"refused\"}"
        )
        .await,
        4
    );
    carry_list(&pair.world.path("ca"), &pair.region_config);
    says(&pair.region, |view| view.problem.is_none()).await;
    end_all(loads).await;
    echo.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t11_an_older_list_is_known_as_such_after_a_restart_too() {
    let (mut pair, loads, echo) = loaded_pair(None).await;
    end_all(loads).await;
    echo.abort();
    pair.region.stop().await;
    let config = &mut pair.region_config;
    let state = pair.world.path("region-state");
    config.state_dir = Some(state.clone());
    let crl = config.certificates.crl.clone().unwrap();
    let first = fs::read(&crl).unwrap();
    let region = start_again(config).await;
    let thief = HostIdentity::from_uri("spiffe://shop.example/site/edge/host/box-9").unwrap();
    let folder = pair.world.path("thief");
    let issued = pair
        .world
        .authority
        .issue(&thief, lasting(LEAF_VALIDITY), &folder);
    issued.unwrap();
    revoke(&pair.world.authority, &RevocationTarget::Host(thief));
    carry_list(&pair.world.path("ca"), config);
    says(&region, |view| view.revocation_lists[0].number == 2).await;
    region.stop().await;

    // Last month's list is put back, and the tunnel is restarted.
    fs::write(&crl, &first).unwrap();
    pair.region = start_again(config).await;
    let view = pair.region.status().certificate;
    let problem = view.problem.unwrap();
    assert!(problem.starts_with("E_CRL_ROLLBACK: "), "{problem}");
    assert!(problem.contains("holds list 1"), "{problem}");
    assert_eq!(view.revocation_lists[0].number, 2);
    assert_eq!(metric(config, "towpath_crl_rollbacks_total").await, 1);
    for gauge in ["towpath_crl_rollback ", "towpath_cert_problem "] {
        assert_eq!(metric(config, gauge).await, 1, "{gauge}");
    }
    let client = quic(client_of(&folder, false));
    check_refused(&pair, &client, "revoked").await;
    // Putting no list there does not get around it either.
    pair.region.stop().await;
    fs::write(&crl, b"nothing").unwrap();
    pair.region = start_again(&pair.region_config).await;
    assert_eq!(
        pair.region.status().certificate.revocation_lists[0].number,
        2
    );
    check_refused(&pair, &client, "revoked").await;
    // The newest list resolves it.
    carry_list(&pair.world.path("ca"), &pair.region_config);
    says(&pair.region, |view| view.problem.is_none()).await;
    for gauge in ["towpath_crl_rollback ", "towpath_cert_problem "] {
        assert_eq!(metric(&pair.region_config, gauge).await, 0, "{gauge}");
    }
    // A saved copy that cannot be read is set aside; then only the file counts.
    pair.region.stop().await;
    fs::write(state.join("revocations.pem"), b"nothing").unwrap();
    pair.region = start_again(&pair.region_config).await;
    assert!(state.join("revocations.damaged").exists());
    check_refused(&pair, &client, "revoked").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t11_a_start_without_lists_forgets_none() {
    let world = World::new();
    let ca = world.path("ca");
    let mut config = world.site("region", "edge");
    let crl = world.path("region-crl.pem");
    config.state_dir = Some(world.path("region-state"));
    config.certificates.crl = Some(crl.clone());
    sign(&world.authority, LIST_VALIDITY);
    let first = fs::read(ca.join("crl.pem")).unwrap();
    sign(&world.authority, LIST_VALIDITY);
    carry_list(&ca, &config);
    Tunnel::start(&config).await.unwrap().stop().await;

    config.certificates.crl = None;
    let without = start_again(&config).await;
    assert!(without.status().certificate.revocation_lists.is_empty());
    without.stop().await;

    fs::write(&crl, &first).unwrap();
    config.certificates.crl = Some(crl);
    let region = start_again(&config).await;
    let view = region.status().certificate;
    let problem = view.problem.unwrap();
    assert!(problem.starts_with("E_CRL_ROLLBACK: "), "{problem}");
    assert_eq!(view.revocation_lists[0].number, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t10_a_host_whose_own_list_revokes_it_says_so_as_it_hears_of_it_and_as_it_starts() {
    let world = World::new();
    let log = Kept::log();
    let mut config = world.site("region", "edge");
    config.certificates.crl = Some(world.path("region-crl.pem"));
    sign(&world.authority, LIST_VALIDITY);
    carry_list(&world.path("ca"), &config);
    let region = Tunnel::start(&config).await.unwrap();
    assert_eq!(region.status().certificate.problem, None);
    assert!(!log.text().contains("own certificate"), "{}", log.text());

    let uri = "spiffe://shop.example/site/region/host/box-1";
    let host = HostIdentity::from_uri(uri).unwrap();
    revoke(&world.authority, &RevocationTarget::Host(host));
    carry_list(&world.path("ca"), &config);
    let is_told = |view: &CertificateStatusView| {
        let problem = view.problem.as_deref().unwrap_or_default();
        problem.contains("own certificate is revoked") && problem.contains("towpath certs issue")
    };
    says(&region, is_told).await;
    let told_count = || log.text().matches("own certificate is revoked").count();
    assert_eq!(told_count(), 1, "{}", log.text());
    region.stop().await;
    let region = start_again(&config).await;
    assert!(is_told(&region.status().certificate));
    assert_eq!(told_count(), 2, "{}", log.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t12_a_list_that_has_ended_stops_new_moves_and_nothing_that_is_under_way() {
    let log = Kept::log();
    let (pair, loads, echo) = loaded_pair(None).await;
    let tunnel = pair.region_config.socket.clone();
    let asked = async || {
        let tunnel = tunnel.clone();
        let asking = move || stream::check_trust(&tunnel, &name("region"), SOON);
        tokio::task::spawn_blocking(asking).await.unwrap()
    };
    asked().await.unwrap();
    sign(&pair.world.authority, Duration::from_secs(1));
    carry_list(&pair.world.path("ca"), &pair.region_config);
    let stale = async {
        loop {
            match asked().await {
                Ok(()) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(fault) => break fault,
            }
        }
    };
    let fault = soon(stale).await;
    assert_eq!(fault.code, Code::CrlStale);
    assert!(fault.detail.contains("list 2"), "{fault}");
    says(&pair.region, |view| {
        view.revocation_lists[0].state == "stale"
    })
    .await;
    // Streams continue, and streams for a move in progress can still be opened.
    all_flow(&loads).await;
    let again = Load::start(pair.open("echo", Class::Demand).await.unwrap());
    again.flows().await;
    again.end().await;

    sign(&pair.world.authority, LIST_VALIDITY);
    carry_list(&pair.world.path("ca"), &pair.region_config);
    says(&pair.region, |view| view.revocation_lists[0].number == 3).await;
    asked().await.unwrap();
    // A week before its end a list is reported: in the log once, in the status all the time.
    for (number, hours, state) in [(4, 7 * 24 + 1, "fresh"), (5, 7 * 24 - 1, "aging")] {
        let validity = Duration::from_hours(hours);
        sign(&pair.world.authority, validity);
        carry_list(&pair.world.path("ca"), &pair.region_config);
        says(&pair.region, |view| {
            view.revocation_lists[0].number == number
        })
        .await;
        says(&pair.region, |view| view.revocation_lists[0].state == state).await;
    }
    let is_warned = |line: &str| {
        let words = ["WARN", "the list of revoked certificates is old", "aging"];
        words.into_iter().all(|word| line.contains(word))
    };
    until("the log has it", || log.text().lines().any(is_warned)).await;
    asked().await.unwrap();
    end_all(loads).await;
    echo.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_do_not_fit_are_not_used_until_they_do() {
    let pair = Pair::start().await;
    let files = &pair.edge_config.certificates;
    let first = serial(&pair.edge_config);
    let good = fs::read(&files.cert).unwrap();
    let other = pair.world.issue_for("edge", lasting(LEAF_VALIDITY), "twin");
    let foreign = pair
        .world
        .issue_for("region", lasting(LEAF_VALIDITY), "foreign");
    let problem = |word: &'static str| {
        move |view: &CertificateStatusView| {
            view.problem
                .as_ref()
                .is_some_and(|problem| problem.contains(word))
        }
    };
    fs::copy(&other.cert, &files.cert).unwrap();
    says(&pair.edge, problem("is not the key of")).await;
    assert_eq!(pair.edge.status().certificate.serial, first);
    // The missing half arrives, and both are used.
    fs::copy(&other.key, &files.key).unwrap();
    uses(&pair.edge, &pair.edge_config).await;
    // Another host's pair matches, but is not for this host.
    fs::copy(&foreign.key, &files.key).unwrap();
    fs::copy(&foreign.cert, &files.cert).unwrap();
    says(&pair.edge, problem("and this host is")).await;
    fs::write(&files.cert, good).unwrap();
    fs::copy(&other.cert, &files.cert).unwrap();
    fs::copy(&other.key, &files.key).unwrap();
    uses(&pair.edge, &pair.edge_config).await;
    pair.linked().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_whose_own_certificate_ended_still_hears_who_was_revoked() {
    let (pair, loads, echo) = loaded_pair(None).await;
    let files = &pair.region_config.certificates;
    fs::write(&files.cert, "gone").unwrap();
    says(&pair.region, |view| view.problem.is_some()).await;
    let host = HostIdentity::from_uri("spiffe://shop.example/site/edge/host/box-1").unwrap();
    revoke(&pair.world.authority, &RevocationTarget::Host(host));
    carry_list(&pair.world.path("ca"), &pair.region_config);
    says(&pair.region, |view| {
        view.revocation_lists[0].number == 2 && view.problem.is_some()
    })
    .await;
    until("closed", || pair.region.status().links[0].host.is_none()).await;
    for load in loads {
        load.task.abort();
    }
    echo.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_32_a_link_outlives_its_certificates_and_the_next_uses_the_renewed_ones() {
    let path = Direction {
        delay: Duration::from_millis(5),
        ..Direction::default()
    };
    let brief = Duration::from_secs(4);
    let world_validity = lasting(brief);
    let pair = Pair::start_with(
        |edge, _| {
            // The edge starts with a certificate of a few seconds.
            let ca = edge
                .certificates
                .ca
                .parent()
                .unwrap()
                .parent()
                .unwrap()
                .join("ca");
            let authority = Authority::open(&ca).unwrap();
            let host =
                HostIdentity::from_uri("spiffe://shop.example/site/edge/host/box-1").unwrap();
            let folder = ca.with_file_name("brief");
            let files = authority.issue(&host, world_validity, &folder).unwrap();
            edge.certificates.cert = files.cert;
            edge.certificates.key = files.key;
        },
        Some(path),
    )
    .await;
    let echo = echo(pair.echo());
    let load = Load::start(pair.open("echo", Class::Bulk).await.unwrap());
    let ends = pair.edge.status().certificate.not_after_unix_seconds;
    let link = pair.region.status().links[0].clone();
    assert_eq!(link.peer_certificate_not_after_unix_seconds, Some(ends));
    let ended = async {
        while SystemTime::UNIX_EPOCH + Duration::from_secs(ends + 1) > SystemTime::now() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    soon(ended).await;
    load.flows().await;
    assert_eq!(
        pair.region.status().links[0].since_unix_seconds,
        link.since_unix_seconds
    );
    let folder = pair.world.path("brief");
    let authority = &pair.world.authority;
    authority
        .renew(&folder, KeyChoice::Same, lasting(LEAF_VALIDITY), None)
        .unwrap();
    uses(&pair.edge, &pair.edge_config).await;
    load.flows().await;
    load.end().await;

    let control = pair.relay.as_ref().unwrap().control();
    control.cut_both();
    until("the link is down", || {
        pair.region.status().links[0].host.is_none()
    })
    .await;
    control.heal();
    pair.linked().await;
    let renewed = pair.region.status().links[0].peer_certificate_not_after_unix_seconds;
    assert_eq!(
        renewed,
        Some(pair.edge.status().certificate.not_after_unix_seconds)
    );
    assert!(renewed.unwrap() > ends);
    echo.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_that_is_to_refuse_revoked_peers_does_not_start_without_the_list() {
    let world = World::new();
    let mut config = world.site("edge", "region");
    config.certificates.crl = Some(world.path("none.pem"));
    let fault = Tunnel::start(&config).await.unwrap_err();
    assert_eq!(fault.code, Code::Certificate);
    assert!(fault.detail.contains("none.pem"), "{fault}");
}

/// A credential from the service manager keeps its value until the daemon exits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_key_beside_one_that_cannot_be_exchanged_is_taken_up_with_its_certificate() {
    let place = |config: &Config, name| config.certificates.ca.with_file_name(name);
    let pair = Pair::start_with(
        |edge, _| {
            let names = ["handed.pem", "shown.pem", "next.pem"];
            let [key, cert, next] = names.map(|name| place(edge, name));
            let files = &mut edge.certificates;
            fs::copy(&files.key, &key).unwrap();
            fs::copy(&files.cert, &cert).unwrap();
            (files.key, files.cert) = (key, cert);
            files.next_key = Some(next);
        },
        None,
    )
    .await;
    let (echo, config) = (echo(pair.echo()), &pair.edge_config);
    let load = Load::start(pair.open("echo", Class::Bulk).await.unwrap());
    let folder = pair.world.path("edge-certs");
    for is_first in [true, false] {
        let authority = &pair.world.authority;
        let renewed = authority.renew(&folder, KeyChoice::New, lasting(LEAF_VALIDITY), None);
        renewed.unwrap();
        for (from, to) in [("key.pem", "next.pem"), ("cert.pem", "shown.pem")] {
            let (new, to) = (place(config, "new.pem"), place(config, to));
            fs::copy(folder.join(from), &new).unwrap();
            fs::rename(&new, &to).unwrap();
            pair.edge.reload().await;
            // The first key still matches its certificate, and there is nothing to report.
            let problem = pair.edge.status().certificate.problem;
            assert_eq!(
                problem.is_some(),
                !is_first && from == "key.pem",
                "{problem:?}"
            );
        }
        let renewed = towpath_certs::show(&folder.join("cert.pem")).unwrap();
        assert_eq!(pair.edge.status().certificate.serial, renewed.serial);
        load.flows().await;
    }
    // A stranger's key beside a credential that is no longer of use: both are named.
    fs::copy(
        &pair.region_config.certificates.key,
        place(config, "next.pem"),
    )
    .unwrap();
    says(&pair.edge, |view| {
        let problem = view.problem.as_deref().unwrap_or_default();
        problem.contains("handed.pem: ") && problem.contains("next.pem: ")
    })
    .await;
    load.flows().await;
    load.end().await;
    echo.abort();
}
