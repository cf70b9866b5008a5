//! Services that are added, changed and removed by a reload while streams run.

use std::path::{Path, PathBuf};

use crate::datagrams::udp_service;
use crate::harness::{Pair, accept, name, open, soon, until};
use crate::reload::write;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UdpSocket, UnixListener, UnixStream};
use towpath_protocol::class::Class;
use towpath_protocol::fault::Code;
use towpath_tunnel::Tunnel;
use towpath_tunnel::channels::ChannelSpec;
use towpath_tunnel::config::{Config, PeerConfig, ServiceConfig};

/// A region with two sites, `edge` and `branch`, that may both use its service `echo`.
pub(crate) struct Hub {
    pub pair: Pair,
    pub branch: Tunnel,
    pub branch_config: Config,
}

impl Hub {
    pub(crate) async fn start_with(change: impl FnOnce(&mut Config, &mut Config)) -> Self {
        let pair = Pair::start_with(
            |edge, region| {
                region.read_from(region.socket.with_file_name("tunnel.toml"));
                region.peers.push(PeerConfig::new(name("branch")));
                region.services[0].allow.push(name("branch"));
                change(edge, region);
            },
            None,
        )
        .await;
        let mut branch_config = pair.world.site("branch", "region");
        branch_config.peers[0].address = pair.region_config.listen.map(|at| at.to_string());
        let branch = Tunnel::start(&branch_config).await.unwrap();
        branch
            .linked(&name("region"), crate::harness::SOON)
            .await
            .unwrap();
        Self {
            pair,
            branch,
            branch_config,
        }
    }

    /// The region's configuration as at its start, for changes.
    pub(crate) fn region_config(&self) -> Config {
        let mut config = self.pair.region_config.clone();
        config.listen = Some("127.0.0.1:0".parse().unwrap());
        config
    }

    /// Makes the region reload a configuration; checks that it is used.
    pub(crate) async fn reload(&self, config: &Config) {
        write(config, &config.socket.with_file_name("tunnel.toml"));
        self.pair.region.reload().await;
        let view = self.pair.region.status().configuration;
        assert_eq!(view.problem, None);
        assert_eq!(view.waiting_keys, Vec::<String>::new());
    }

    /// A stream from a site to a service of the region; returns both ends.
    pub(crate) async fn stream(
        &self,
        from: &Path,
        service: &str,
        listener: &UnixListener,
    ) -> (UnixStream, UnixStream) {
        let opening = open(from, "region", service, Class::App);
        let (local, (_, remote)) = soon(async { tokio::join!(opening, accept(listener)) }).await;
        (local.unwrap(), remote)
    }
}

/// Checks that a stream carries bytes both ways.
pub(crate) async fn check_lives((local, remote): &mut (UnixStream, UnixStream)) {
    check_carries(local, remote).await;
    check_carries(remote, local).await;
}

async fn check_carries(from: &mut UnixStream, to: &mut UnixStream) {
    from.write_all(b"alive").await.unwrap();
    let mut came = [0; 5];
    soon(to.read_exact(&mut came)).await.unwrap();
    assert_eq!(&came, b"alive");
}

/// Waits until a stream has ended at both ends.
pub(crate) async fn check_ends((mut local, mut remote): (UnixStream, UnixStream)) {
    for end in [&mut local, &mut remote] {
        let read = soon(end.read(&mut [0; 16])).await;
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    }
}

fn told(label: &str, socket: &Path, allow: &[&str]) -> ServiceConfig {
    let allow = allow.iter().map(|site| name(site)).collect();
    ServiceConfig::told(name(label), socket.to_owned(), allow)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_that_is_taken_off_a_services_list_loses_its_streams_and_others_keep_theirs() {
    let hub = Hub::start_with(|_, _| ()).await;
    let echo = hub.pair.echo();
    let edge = &hub.pair.edge_config.socket;
    let branch = &hub.branch_config.socket;
    let mut kept = hub.stream(edge, "echo", &echo).await;
    let cut = hub.stream(branch, "echo", &echo).await;
    let sent = || hub.pair.region.status().services[0].received_bytes;
    check_lives(&mut kept).await;
    let before = sent();
    assert!(before > 0);

    let mut next = hub.region_config();
    next.services[0].allow = vec![name("edge")];
    hub.reload(&next).await;
    check_ends(cut).await;
    check_lives(&mut kept).await;
    assert!(sent() >= before, "the counts go on");
    let refused = open(branch, "region", "echo", Class::App).await;
    assert_eq!(refused.unwrap_err().code, Code::Denied);

    // A file with a mistake changes nothing.
    let mut wrong = hub.region_config();
    wrong.services[0].allow = vec![name("nobody")];
    write(&wrong, &wrong.socket.with_file_name("tunnel.toml"));
    hub.pair.region.reload().await;
    assert!(hub.pair.region.status().configuration.problem.is_some());
    check_lives(&mut kept).await;
    assert!(open(branch, "region", "echo", Class::App).await.is_err());

    hub.reload(&hub.region_config()).await;
    let mut again = hub.stream(branch, "echo", &echo).await;
    check_lives(&mut again).await;
    check_lives(&mut kept).await;
    let link = hub.branch.status().links.remove(0);
    assert_eq!((link.links_lost, link.streams), (0, 1), "the link stays");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_are_added_moved_and_removed_while_streams_run() {
    let hub = Hub::start_with(|_, _| ()).await;
    let echo = hub.pair.echo();
    let edge = &hub.pair.edge_config.socket;
    let mut kept = hub.stream(edge, "echo", &echo).await;
    let [one, two] = ["one", "two"].map(|label| hub.pair.world.path(label));
    let listen = |path: &PathBuf| UnixListener::bind(path).unwrap();
    let (at_one, at_two) = (listen(&one), listen(&two));

    let mut next = hub.region_config();
    next.services.push(told("extra", &one, &["edge"]));
    hub.reload(&next).await;
    let mut before = hub.stream(edge, "extra", &at_one).await;
    check_lives(&mut before).await;

    // Another socket and a cap: streams that run stay where they are and obey the cap.
    next.services[1].socket.clone_from(&two);
    next.services[1].cap = Some("50Mbit".parse().unwrap());
    hub.reload(&next).await;
    let mut after = hub.stream(edge, "extra", &at_two).await;
    check_lives(&mut before).await;
    check_lives(&mut after).await;
    let shown = hub.pair.region.status().services.remove(1);
    assert_eq!((shown.name.as_str(), shown.streams), ("extra", 2));
    assert_eq!(shown.cap_bits_per_second, Some(50_000_000));
    assert_eq!(shown.received_bytes, 15, "the meter is the same");

    hub.reload(&hub.region_config()).await;
    check_ends(before).await;
    check_ends(after).await;
    check_lives(&mut kept).await;
    let refused = open(edge, "region", "extra", Class::App).await;
    assert_eq!(refused.unwrap_err().code, Code::Denied);
    assert_eq!(hub.pair.region.status().services.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flows_of_a_datagram_service_end_with_it() {
    let listen = "udp:127.0.0.1:0".parse().unwrap();
    let target = (name("region"), name("dns"));
    let channel = ChannelSpec::new(name("dns"), listen, target, Class::App);
    let hub = Hub::start_with(|edge, _| edge.channels = vec![channel]).await;
    let mut next = hub.region_config();
    let mut dns = told("dns", Path::new(""), &["edge"]);
    dns.target = Some(udp_service().await);
    next.services.push(dns);
    hub.reload(&next).await;
    let channel = || hub.pair.edge.status().channels.remove(0);
    let address = channel().listen.replace("udp:", "");
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(address).await.unwrap();
    let comes_back = async || {
        let mut heard = [0; 16];
        loop {
            socket.send(b"who is it").await.unwrap();
            let waiting = socket.recv(&mut heard);
            let waited = tokio::time::timeout(std::time::Duration::from_millis(100), waiting);
            if waited.await.is_ok() {
                return;
            }
        }
    };
    soon(comes_back()).await;
    let flows = || {
        hub.pair
            .region
            .status()
            .links
            .iter()
            .map(|link| link.streams)
            .sum::<u64>()
    };
    assert_eq!(flows(), 1);
    hub.reload(&hub.region_config()).await;
    until("the flow has ended", || flows() == 0).await;
    hub.reload(&next).await;
    soon(comes_back()).await;
}
