//! Files that become unreadable between two starts, and a state folder whose disk fails while the
//! tunnel runs.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::harness::trust::{carry_list, lasting, loaded_pair, says, sign, uses};
use crate::harness::{Pair, World, check_answers, metric, name, start_again, until};
use tokio::time::timeout;
use towpath_certs::authority::LEAF_VALIDITY;
use towpath_certs::register::Reason;
use towpath_certs::renewal::{LIST_VALIDITY, RevocationTarget};
use towpath_protocol::class::Class;
use towpath_protocol::fault::Code;
use towpath_protocol::identity::HostIdentity;
use towpath_tunnel::Tunnel;
use towpath_tunnel::channels::ChannelSpec;
use towpath_tunnel::config::Config;

fn keeps_state(config: &mut Config) -> PathBuf {
    let run = config.socket.parent().unwrap();
    let folder = run.with_extension("state");
    config.state_dir = Some(folder.clone());
    folder
}

fn channel() -> ChannelSpec {
    let (listen, way) = ("tcp:127.0.0.1:0", (name("region"), name("echo")));
    ChannelSpec::new(name("till"), listen.parse().unwrap(), way, Class::App)
}

async fn check_channel_answers(tunnel: &Tunnel) {
    let channel = tunnel.status().channels.remove(0);
    check_answers(channel.listen.strip_prefix("tcp:").unwrap()).await;
}

fn problem(tunnel: &Tunnel) -> String {
    tunnel.status().certificate.problem.unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emptied_certificate_stops_no_start_after_a_good_one() {
    let mut pair = Pair::start_with(|edge, _| drop(keeps_state(edge)), None).await;
    let config = &pair.edge_config;
    let kept = config.state_dir.as_ref().unwrap().join("identity.json");
    let cert = config.certificates.cert.clone();
    pair.edge.stop().await;
    let good = fs::read(&cert).unwrap();
    fs::write(&cert, b"").unwrap();
    pair.edge = start_again(config).await;
    assert!(problem(&pair.edge).contains("cert.pem"));
    assert_eq!(metric(config, "towpath_cert_problem ").await, 1);
    // Peers are shown the last good certificate, as they would be if the file failed while the
    // tunnel runs.
    pair.linked().await;
    let text = fs::read_to_string(kept).unwrap();
    assert!(!text.contains("PRIVATE"), "{text}");
    fs::write(&cert, good).unwrap();
    uses(&pair.edge, &pair.edge_config).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_fits_no_certificate_leaves_a_tunnel_that_waits_for_one() {
    let change = |edge: &mut Config, region: &mut Config| {
        for config in [&mut *edge, region] {
            keeps_state(config);
        }
        edge.channels = vec![channel()];
    };
    let mut pair = Pair::start_with(change, None).await;
    for place in ["edge", "region"] {
        let lasting = lasting(LEAF_VALIDITY);
        let new = pair
            .world
            .issue_for(place, lasting, &format!("{place}-new"));
        let (tunnel, config) = match place {
            "edge" => (&mut pair.edge, &pair.edge_config),
            _ => (&mut pair.region, &pair.region_config),
        };
        let certificates = &config.certificates;
        // Half of a renewal, as after a power cut: the key is new, the certificate is not.
        fs::copy(&new.key, &certificates.key).unwrap();
        let again = tunnel_again(tunnel, config).await;
        assert!(problem(&again).contains("is not the key of"));
        let link = again.status().links.remove(0);
        assert_eq!(link.host, None, "{link:?}");
        if place == "edge" {
            check_channel_answers(&again).await;
            let told = || again.status().links[0].reason.clone();
            until("the reason is told", || told().contains("certificate")).await;
        }
        *tunnel = again;
        fs::copy(&new.cert, &certificates.cert).unwrap();
        let (tunnel, config) = match place {
            "edge" => (&pair.edge, &pair.edge_config),
            _ => (&pair.region, &pair.region_config),
        };
        uses(tunnel, config).await;
        pair.linked().await;
    }
}

/// Stops a tunnel and starts it again.
async fn tunnel_again(tunnel: &mut Tunnel, config: &Config) -> Tunnel {
    let other = World::new();
    let spare = Tunnel::start(&other.site("spare", "other")).await.unwrap();
    std::mem::replace(tunnel, spare).stop().await;
    start_again(config).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_hosts_certificate_stops_no_start_after_a_good_one_and_a_first_one() {
    let world = World::new();
    let mut config = world.site("edge", "region");
    let foreign = world.issue_for("region", lasting(LEAF_VALIDITY), "foreign");
    let files = config.certificates.clone();
    let good = [&files.cert, &files.key].map(|path| fs::read(path).unwrap());
    let put_foreign = || {
        fs::copy(&foreign.cert, &files.cert).unwrap();
        fs::copy(&foreign.key, &files.key).unwrap();
    };
    keeps_state(&mut config);
    put_foreign();
    let refused = Tunnel::start(&config).await.unwrap_err();
    assert_eq!(refused.code, Code::Certificate, "{refused}");
    fs::write(&files.cert, &good[0]).unwrap();
    fs::write(&files.key, &good[1]).unwrap();
    Tunnel::start(&config).await.unwrap().stop().await;
    put_foreign();
    let tunnel = start_again(&config).await;
    assert!(problem(&tunnel).contains("the certificate names"));
    let uri = tunnel.status().certificate.uri;
    assert!(uri.contains("/site/edge/"), "{uri}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_the_state_folder_that_cannot_be_read_stop_no_start() {
    let world = World::new();
    let mut config = world.site("edge", "region");
    let folder = keeps_state(&mut config);
    config.channels = vec![channel()];
    let crl = world.path("edge-crl.pem");
    config.certificates.crl = Some(crl.clone());
    sign(&world.authority, LIST_VALIDITY);
    carry_list(&world.path("ca"), &config);
    // Reading a folder fails, as reading a bad sector does.
    let unreadable = ["channels.json", "revocations.pem", "identity.json"];
    for file in unreadable {
        fs::create_dir_all(folder.join(file)).unwrap();
    }
    let tunnel = Tunnel::start(&config).await.unwrap();
    check_channel_answers(&tunnel).await;
    assert_eq!(tunnel.status().certificate.revocation_lists[0].number, 1);
    assert!(folder.join("channels.damaged").exists());
    assert!(folder.join("revocations.damaged").exists());
    tunnel.stop().await;
    // Without any revocation list the tunnel would admit hosts that it must refuse.
    fs::remove_file(folder.join("revocations.pem")).unwrap();
    fs::create_dir(folder.join("revocations.pem")).unwrap();
    fs::write(&crl, b"nothing").unwrap();
    assert!(Tunnel::start(&config).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t10_a_revocation_does_not_wait_for_the_state_folders_disk() {
    let (mut pair, loads, echo) = loaded_pair(None).await;
    for load in loads {
        load.end().await;
    }
    echo.abort();
    pair.region.stop().await;
    let folder = keeps_state(&mut pair.region_config);
    pair.region = start_again(&pair.region_config).await;
    pair.linked().await;
    let (kept, new) = (
        folder.join("revocations.pem"),
        folder.join("revocations.new"),
    );
    until("the first list is kept", || kept.exists()).await;
    let first = fs::read(&kept).unwrap();
    // Opening a FIFO blocks until somebody reads, as writing to a hung disk does.
    let made = Command::new("mkfifo").arg(&new).status().unwrap();
    assert!(made.success());
    let uri = "spiffe://shop.example/site/edge/host/box-1";
    let host = HostIdentity::from_uri(uri).unwrap();
    let now = std::time::SystemTime::now();
    let authority = &pair.world.authority;
    let reason = Reason::KeyCompromise;
    let revoked = authority.revoke(&RevocationTarget::Host(host), reason, LIST_VALIDITY, now);
    revoked.unwrap();
    carry_list(&pair.world.path("ca"), &pair.region_config);
    let closed = until("the link is closed", || {
        pair.region.status().links[0].host.is_none()
    });
    timeout(Duration::from_secs(5), closed).await.unwrap();
    assert_eq!(fs::read(&kept).unwrap(), first);
    // Now the disk answers, first with an error.
    let reading = new.clone();
    let read = tokio::task::spawn_blocking(move || drop(File::open(reading)));
    read.await.unwrap();
    fs::remove_file(&new).unwrap();
    until("the newest list is kept", || {
        fs::read(&kept).is_ok_and(|text| text != first)
    })
    .await;
    says(&pair.region, |view| view.problem.is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_folder_that_takes_nothing_is_told_of_until_it_does() {
    let world = World::new();
    let mut config = world.site("edge", "region");
    let folder = keeps_state(&mut config);
    fs::write(&folder, b"no folder").unwrap();
    let tunnel = Tunnel::start(&config).await.unwrap();
    let gauge = async || metric(&config, "towpath_state_problem ").await;
    assert_eq!(gauge().await, 1);
    let status = serde_json::to_value(tunnel.status()).unwrap();
    let told = status["state_problem"].as_str().unwrap();
    assert!(told.contains("state"), "{told}");
    fs::remove_file(&folder).unwrap();
    let cleared = async {
        while gauge().await != 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    crate::harness::soon(cleared).await;
    let status = serde_json::to_value(tunnel.status()).unwrap();
    assert!(status["state_problem"].is_null(), "{status}");
}
