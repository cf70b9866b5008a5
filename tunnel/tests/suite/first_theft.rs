//! The first host is stolen where no revocation list has been configured: it is shut out without a
//! restart.

use std::fs;

use crate::harness::trust::{
    Load, carry_list, check_refused, client_of, end_all, lasting, quic, revoke, says, shake, sign,
};
use crate::harness::{Pair, echo, soon, until};
use tokio::io::AsyncReadExt;
use towpath_certs::authority::LEAF_VALIDITY;
use towpath_certs::renewal::{LIST_VALIDITY, RevocationTarget};
use towpath_protocol::class::Class;
use towpath_protocol::identity::HostIdentity;
use towpath_tunnel::config::Config;

/// Makes the region reload a configuration with these certificates.
async fn reload_with(pair: &Pair, config: &Config) {
    let file = config.socket.with_file_name("tunnel.toml");
    fs::write(&file, toml::to_string(config).unwrap()).unwrap();
    pair.region.reload().await;
}

fn lists(pair: &Pair) -> Vec<u64> {
    let lists = pair.region.status().certificate.revocation_lists;
    lists.iter().map(|list| list.number).collect()
}

fn problem(pair: &Pair) -> String {
    let problem = pair.region.status().certificate.problem;
    problem.unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t11_a_list_that_is_named_while_the_tunnel_runs_is_in_use_at_once() {
    let pair = Pair::start_with(
        |_, region| region.read_from(region.socket.with_file_name("tunnel.toml")),
        None,
    )
    .await;
    let (echo, ca) = (echo(pair.echo()), pair.world.path("ca"));
    let mut loads = Vec::new();
    for class in [Class::Control, Class::Bulk] {
        loads.push(Load::start(pair.open("echo", class).await.unwrap()));
    }
    let thief = HostIdentity::from_uri("spiffe://shop.example/site/edge/host/box-9").unwrap();
    let folder = pair.world.path("thief");
    let authority = &pair.world.authority;
    authority
        .issue(&thief, lasting(LEAF_VALIDITY), &folder)
        .unwrap();
    let client = quic(client_of(&folder, false));
    shake(&pair, &client).await.unwrap();
    sign(authority, LIST_VALIDITY);
    let first = fs::read(ca.join("crl.pem")).unwrap();
    revoke(authority, &RevocationTarget::Host(thief));

    // A list that does not exist yet changes nothing, and is used as soon as it exists.
    let without = pair.region_config.clone();
    let mut with = without.clone();
    with.certificates.crl = Some(with.certificates.ca.with_file_name("crl.pem"));
    reload_with(&pair, &with).await;
    assert!(
        problem(&pair).contains("No such file"),
        "{}",
        problem(&pair)
    );
    assert!(lists(&pair).is_empty());
    carry_list(&ca, &with);
    says(&pair.region, |view| view.problem.is_none()).await;
    assert_eq!(lists(&pair), [2]);
    check_refused(&pair, &client, "revoked").await;
    for load in &loads {
        load.flows().await;
    }

    // A list that is no longer configured is no longer used; if it is configured again, an older
    // one is still recognised as older.
    reload_with(&pair, &without).await;
    assert!(lists(&pair).is_empty());
    shake(&pair, &client).await.unwrap();
    let crl = with.certificates.crl.clone().unwrap();
    fs::write(&crl, first).unwrap();
    reload_with(&pair, &with).await;
    assert!(
        problem(&pair).contains("holds list 1"),
        "{}",
        problem(&pair)
    );
    // The newest list so far is used instead, as after a start.
    assert_eq!(lists(&pair), [2]);
    check_refused(&pair, &client, "revoked").await;
    carry_list(&ca, &with);
    says(&pair.region, |view| view.problem.is_none()).await;
    for load in &loads {
        load.flows().await;
    }
    end_all(loads).await;
    echo.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t10_a_peer_that_the_first_list_revokes_is_out_as_its_list_is_named() {
    let pair = Pair::start_with(
        |_, region| region.read_from(region.socket.with_file_name("tunnel.toml")),
        None,
    )
    .await;
    let (mut near, _far) = pair.stream(Class::App).await;
    let edge = HostIdentity::from_uri("spiffe://shop.example/site/edge/host/box-1").unwrap();
    revoke(&pair.world.authority, &RevocationTarget::Host(edge));
    let mut with = pair.region_config.clone();
    with.certificates.crl = Some(with.certificates.ca.with_file_name("crl.pem"));
    carry_list(&pair.world.path("ca"), &with);
    reload_with(&pair, &with).await;
    until("the link is closed", || {
        pair.region.status().links[0].host.is_none()
    })
    .await;
    let link = pair.region.status().links.remove(0);
    assert!(link.reason.contains("revoked"), "{}", link.reason);
    let mut rest = Vec::new();
    // A Unix socket has no reset: its program sees the end.
    soon(near.read_to_end(&mut rest)).await.unwrap();
    assert!(pair.open("echo", Class::App).await.is_err());
}
