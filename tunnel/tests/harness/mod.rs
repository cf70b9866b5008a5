//! Sites with their own certificates, tunnels between them, and services behind them.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each suite uses its part, and a helper that fails fails its test"
)]

pub mod kept;
pub mod peer;
pub mod raw;
pub mod trust;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use towpath_bench::relay::{self, Direction, Options, Relay, Side};
use towpath_certs::authority::{IdentityFiles, LEAF_VALIDITY};
use towpath_certs::{Authority, Identity, Rejections, Validity, tls};
use towpath_daemon::client::Client;
use towpath_daemon::stream;
use towpath_protocol::class::Class;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::frame::HEADER_BYTES;
use towpath_protocol::identity::{HostIdentity, Name};
use towpath_protocol::preamble::{Accepted, Open, Preamble};
use towpath_tunnel::Tunnel;
use towpath_tunnel::config::{Config, PeerConfig, ServiceConfig};

/// Timeout for operations that should take milliseconds, on a busy machine.
pub const SOON: Duration = Duration::from_secs(20);

/// A folder with an authority.
pub struct World {
    pub folder: TempDir,
    pub authority: Authority,
}

pub fn name(text: &str) -> Name {
    text.parse().unwrap()
}

impl World {
    pub fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let domain = name("shop.example");
        let authority = Authority::init(&folder.path().join("ca"), &domain).unwrap();
        Self { folder, authority }
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    /// Issues a certificate for `box-1` at a site.
    pub fn issue(&self, site: &str) -> IdentityFiles {
        let validity = Validity::lasting(LEAF_VALIDITY, SystemTime::now());
        self.issue_for(site, validity, &format!("{site}-certs"))
    }

    pub fn issue_for(&self, site: &str, validity: Validity, folder: &str) -> IdentityFiles {
        let host = HostIdentity {
            trust_domain: self.authority.trust_domain().clone(),
            site: name(site),
            host: name("box-1"),
        };
        self.authority
            .issue(&host, validity, &self.path(folder))
            .unwrap()
    }

    /// A configuration of a site that listens on loopback, knows `peer`, and lets it use its
    /// service `echo`.
    pub fn site(&self, site: &str, peer: &str) -> Config {
        let mut config = Config::new(
            (name(site), name("box-1")),
            self.path(&format!("{site}-run/tunnel.sock")),
            self.path(&format!("{site}-run/admin.sock")),
            self.issue(site).into(),
        );
        config.listen = Some("127.0.0.1:0".parse().unwrap());
        config.peers = vec![PeerConfig::new(name(peer))];
        let echo = self.path(&format!("{site}-echo.sock"));
        config.services = vec![ServiceConfig::told(name("echo"), echo, vec![name(peer)])];
        config
    }
}

/// A region that waits for an edge, and an identity with which tests can pose as that edge.
pub struct Door {
    pub world: World,
    pub region: Tunnel,
    pub config: Config,
    edge: Identity,
}

impl Door {
    pub async fn open() -> Self {
        Self::open_with(|_| ()).await
    }

    pub async fn open_with(change: impl FnOnce(&mut Config)) -> Self {
        let world = World::new();
        let mut config = world.site("region", "edge");
        change(&mut config);
        let region = Tunnel::start(&config).await.unwrap();
        let files = world.issue("edge");
        Self {
            edge: Identity::load(&files.paths()).unwrap(),
            world,
            region,
            config,
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.region.listen_address().unwrap()
    }

    /// The TLS settings that the edge's own tunnel would use.
    pub fn client(&self) -> rustls::ClientConfig {
        client(&self.edge)
    }
}

/// The TLS settings with which a host's tunnel would dial the region.
pub fn client(identity: &Identity) -> rustls::ClientConfig {
    tls::client_config(identity, &name("region"), &Arc::new(Rejections::default())).unwrap()
}

/// Two linked sites: `edge` dials `region`.
pub struct Pair {
    pub world: World,
    pub edge: Tunnel,
    pub region: Tunnel,
    pub edge_config: Config,
    pub region_config: Config,
    pub relay: Option<Relay>,
}

impl Pair {
    pub async fn start() -> Self {
        Self::start_with(|_, _| {}, None).await
    }

    /// Starts both after changes to the configurations; with `path`, the link emulator is in
    /// between.
    pub async fn start_with(
        change: impl FnOnce(&mut Config, &mut Config),
        path: Option<Direction>,
    ) -> Self {
        let world = World::new();
        let mut edge_config = world.site("edge", "region");
        let mut region_config = world.site("region", "edge");
        change(&mut edge_config, &mut region_config);
        let region = Tunnel::start(&region_config).await.unwrap();
        let target = region.listen_address().unwrap();
        region_config.listen = Some(target);
        let relay = path.map(|direction| {
            let door = relay::Door {
                from: Side::A,
                listen: "127.0.0.1:0".parse().unwrap(),
                to: target,
            };
            Relay::start(&Options {
                doors: vec![door],
                from_a: direction,
                from_b: direction,
                seed: 1,
            })
            .unwrap()
        });
        let address = relay.as_ref().map_or(target, |relay| relay.doors()[0]);
        edge_config.peers[0].address = Some(address.to_string());
        let edge = Tunnel::start(&edge_config).await.unwrap();
        let pair = Self {
            world,
            edge,
            region,
            edge_config,
            region_config,
            relay,
        };
        pair.linked().await;
        pair
    }

    pub async fn linked(&self) {
        self.edge.linked(&name("region"), SOON).await.unwrap();
        self.region.linked(&name("edge"), SOON).await.unwrap();
    }

    /// Opens a stream from the edge to a service of the region.
    pub async fn open(&self, service: &str, class: Class) -> Result<UnixStream, Fault> {
        open(&self.edge_config.socket, "region", service, class).await
    }

    /// A stream from the edge to the region; returns both ends.
    pub async fn stream(&self, class: Class) -> (UnixStream, UnixStream) {
        let listener = self.echo();
        let (local, (_, remote)) =
            soon(async { tokio::join!(self.open("echo", class), accept(&listener)) }).await;
        std::fs::remove_file(&self.region_config.services[0].socket).unwrap();
        (local.unwrap(), remote)
    }

    /// Keeps a stream of a class from the edge full, until the result is dropped.
    pub async fn fill(&self, class: Class) -> Filling {
        let (local, remote) = self.stream(class).await;
        Filling::start(local, remote)
    }

    /// The region's service `echo`.
    pub fn echo(&self) -> UnixListener {
        UnixListener::bind(&self.region_config.services[0].socket).unwrap()
    }
}

/// Restarts a tunnel on its old port. Retries, because another test may briefly have been given the
/// port.
pub async fn start_again(config: &Config) -> Tunnel {
    let starting = async {
        loop {
            match Tunnel::start(config).await {
                Ok(tunnel) => break tunnel,
                Err(fault) => assert_eq!(fault.code, Code::Io, "{fault}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    soon(starting).await
}

/// Writes to a stream without end and drains its other end, until dropped.
pub struct Filling([JoinHandle<()>; 2]);

impl Filling {
    pub fn start(mut local: UnixStream, mut remote: UnixStream) -> Self {
        let writing = tokio::spawn(async move {
            let chunk = vec![5; 64 * 1024];
            while local.write_all(&chunk).await.is_ok() {}
        });
        let reading = tokio::spawn(async move {
            let mut chunk = vec![0; 64 * 1024];
            while remote.read(&mut chunk).await.is_ok_and(|count| count > 0) {}
        });
        Self([writing, reading])
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// Opens a stream like a local program.
pub async fn open(
    tunnel: &Path,
    peer: &str,
    service: &str,
    class: Class,
) -> Result<UnixStream, Fault> {
    let open = Open {
        peer: name(peer),
        service: name(service),
        class,
    };
    let tunnel = tunnel.to_owned();
    let opening = move || stream::open_stream(&tunnel, &open, SOON);
    let (local, _) = tokio::task::spawn_blocking(opening).await.unwrap()?;
    local.set_nonblocking(true).unwrap();
    Ok(UnixStream::from_std(local).unwrap())
}

/// Accepts one stream like a service.
pub async fn accept(listener: &UnixListener) -> (Accepted, UnixStream) {
    let accepting = async {
        let (mut local, _) = listener.accept().await.unwrap();
        let mut header = [0; HEADER_BYTES];
        local.read_exact(&mut header).await.unwrap();
        let header = Preamble::parse_header(&header).unwrap();
        let mut body = vec![0; header.body_bytes as usize];
        local.read_exact(&mut body).await.unwrap();
        match Preamble::decode_body(&header, &body).unwrap() {
            Preamble::Accepted(accepted) => (accepted, local),
            other => panic!("{} instead of Accepted", other.name()),
        }
    };
    soon(accepting).await
}

/// Echoes every stream until the listener is dropped.
pub fn echo(listener: UnixListener) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            let (_, mut local) = accept_any(&listener).await;
            tokio::spawn(async move {
                let (mut read, mut write) = local.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    })
}

async fn accept_any(listener: &UnixListener) -> (HostIdentity, UnixStream) {
    let (mut local, _) = listener.accept().await.unwrap();
    let mut header = [0; HEADER_BYTES];
    local.read_exact(&mut header).await.unwrap();
    let header = Preamble::parse_header(&header).unwrap();
    let mut body = vec![0; header.body_bytes as usize];
    local.read_exact(&mut body).await.unwrap();
    let Ok(Preamble::Accepted(accepted)) = Preamble::decode_body(&header, &body) else {
        panic!("no Accepted");
    };
    (accepted.peer, local)
}

/// Fails the test if the future does not complete in time.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future)
        .await
        .expect("did not end in time")
}

/// Waits for a condition.
pub async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(SOON, waiting).await;
    assert!(waited.is_ok(), "never: {what}");
}

/// The value of a tunnel's metric, by its name and labels.
pub async fn metric(config: &Config, series: &str) -> u64 {
    let client = Client::new(&config.admin.socket);
    let text = client.text("/metrics").await.unwrap();
    let line = text.lines().find(|line| line.starts_with(series));
    let value = line.unwrap_or_else(|| panic!("no {series} in {text}"));
    value.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Checks that something listens at an address. If there is no service behind it, the reset may
/// arrive before the connection is established.
pub async fn check_answers(address: &str) {
    let connected = TcpStream::connect(address).await;
    let end = connected.err().map(|error| error.kind());
    assert!(
        matches!(end, None | Some(std::io::ErrorKind::ConnectionReset)),
        "{end:?}"
    );
}

/// How many handshakes a tunnel has refused for this reason.
pub async fn rejected(config: &Config, reason: &str) -> u64 {
    let series = format!("towpath_tls_rejected_total{{reason=\"{reason}\"}}");
    metric(config, &series).await
}

/// Waits until a tunnel has counted one more refusal: the refused side may know of it first.
pub async fn counts_refusal(config: &Config, reason: &str, before: u64) {
    let counting = async {
        while rejected(config, reason).await == before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(counting).await;
    assert_eq!(rejected(config, reason).await, before + 1, "{reason}");
}

/// The most that is excused: over a long time, the summed waits of many threads can be arbitrarily
/// large.
const EXCUSED_MAX: Duration = Duration::from_secs(2);

/// Measures wall-clock time, less the time that this process waited for a processor.
#[derive(Clone, Copy)]
pub struct Stopwatch {
    began: Instant,
    waited: Duration,
}

impl Stopwatch {
    pub fn start() -> Self {
        Self {
            began: Instant::now(),
            waited: waited(),
        }
    }

    /// The time that is excused so far.
    fn excused(&self) -> Duration {
        waited().saturating_sub(self.waited).min(EXCUSED_MAX)
    }

    pub fn elapsed(&self) -> Duration {
        self.began.elapsed().saturating_sub(self.excused())
    }

    /// Fails the test if more time has passed.
    pub fn at_most(&self, most: Duration, what: &str) {
        let (took, excused) = (self.began.elapsed(), self.excused());
        let told = format!("{what}: {took:.3?} of {most:?}, {excused:.3?} without a processor");
        eprintln!("{told}");
        assert!(took <= most + excused, "{told}");
    }
}

/// How long all threads of this process have waited for a processor; zero if the kernel does not
/// report it.
pub fn waited() -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let told = tasks.filter_map(|task| {
        let path = task.ok()?.path().join("schedstat");
        let text = std::fs::read_to_string(path).ok()?;
        text.split(' ').nth(1)?.parse::<u64>().ok()
    });
    Duration::from_nanos(told.sum())
}

/// Bytes with a very long period, different for each seed.
pub fn pattern(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut all: Vec<u8> = std::iter::repeat_with(&mut next)
        .take(bytes.div_ceil(8))
        .flatten()
        .collect();
    all.truncate(bytes);
    all
}
