//! Channels between parts of distributed applications.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use crate::datagrams::udp_service;
use crate::harness::{SOON, World, name, pattern, soon, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket, UnixListener, UnixStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use towpath_bench::relay::{Control, Direction, Door, Options, Relay, Side};
use towpath_daemon::client::Client;
use towpath_daemon::problem::Problem;
use towpath_protocol::class::Class;
use towpath_protocol::endpoint::Endpoint;
use towpath_protocol::fault::Code;
use towpath_tunnel::Tunnel;
use towpath_tunnel::channels::ChannelSpec;
use towpath_tunnel::config::{Config, PeerConfig, ServiceConfig};
use towpath_tunnel::status::{ChannelState, ChannelView};

/// A site that dials others, and the sites it dials; the region is not told about channels.
pub(crate) struct Sites {
    pub(crate) world: World,
    pub(crate) edge: Tunnel,
    edge_config: Config,
    pub(crate) others: Vec<Tunnel>,
}

impl Sites {
    /// Starts `edge` and the named sites, each with a service `app` at its target; there is a relay
    /// before the first.
    pub(crate) async fn start(
        others: &[(&str, Endpoint)],
        relay: Option<&mut Option<Relay>>,
    ) -> Self {
        Self::start_with(others, relay, |_| ()).await
    }

    /// The same after a change to the configuration of each dialled site.
    pub(crate) async fn start_with(
        others: &[(&str, Endpoint)],
        relay: Option<&mut Option<Relay>>,
        change: impl Fn(&mut Config),
    ) -> Self {
        let world = World::new();
        let mut edge_config = world.site("edge", "elsewhere");
        edge_config.peers.clear();
        edge_config.services.clear();
        let mut tunnels = Vec::new();
        let mut relay = relay;
        for (site, target) in others {
            let mut config = world.site(site, "edge");
            config.services = vec![ServiceConfig::plain(
                name("app"),
                target.clone(),
                vec![name("edge")],
            )];
            change(&mut config);
            let tunnel = Tunnel::start(&config).await.unwrap();
            let mut address = tunnel.listen_address().unwrap();
            if let Some(relay) = relay.take() {
                let made = relay_to(address);
                address = made.doors()[0];
                *relay = Some(made);
            }
            let mut peer = PeerConfig::new(name(site));
            peer.address = Some(address.to_string());
            edge_config.peers.push(peer);
            tunnels.push(tunnel);
        }
        let edge = Tunnel::start(&edge_config).await.unwrap();
        for (site, _) in others {
            edge.linked(&name(site), SOON).await.unwrap();
        }
        Self {
            world,
            edge,
            edge_config,
            others: tunnels,
        }
    }

    /// The same sites, with the edge's tunnel restarted after a change of its configuration.
    async fn restarted(mut self, change: impl FnOnce(&mut Config)) -> Self {
        self.edge.stop().await;
        change(&mut self.edge_config);
        self.edge = Tunnel::start(&self.edge_config).await.unwrap();
        for peer in &self.edge_config.peers {
            self.edge.linked(&peer.site, SOON).await.unwrap();
        }
        self
    }

    fn client(&self) -> Client {
        Client::new(&self.edge_config.admin.socket)
    }

    pub(crate) async fn open(&self, spec: &ChannelSpec) -> Result<ChannelView, Problem> {
        self.client().post("/v1/channels", spec).await
    }

    /// Opens a channel to a site's service; returns its TCP or UDP address.
    pub(crate) async fn address(&self, spec: &ChannelSpec) -> SocketAddr {
        let view = self.open(spec).await.unwrap();
        match view.listen.parse().unwrap() {
            Endpoint::Tcp(address) | Endpoint::Udp(address) => address,
            Endpoint::Unix(path) => panic!("{}", path.display()),
        }
    }

    /// Waits for a channel's first error, which is recorded a moment after the program sees it.
    async fn counts_an_error(&self, channel: &str) {
        let counted = async {
            while self.view(channel).last_error.is_none() {
                tokio::task::yield_now().await;
            }
        };
        soon(counted).await;
        assert_eq!(self.view(channel).errors, 1);
    }

    pub(crate) fn view(&self, channel: &str) -> ChannelView {
        let channels = self.edge.status().channels;
        let found = channels.into_iter().find(|view| view.name == channel);
        found.unwrap()
    }
}

/// What a relay adds to each round trip.
const RELAY_ROUND_TRIP: Duration = Duration::from_millis(20);

fn relay_to(to: SocketAddr) -> Relay {
    let path = Direction {
        delay: RELAY_ROUND_TRIP / 2,
        ..Direction::default()
    };
    let door = Door {
        from: Side::A,
        listen: "127.0.0.1:0".parse().unwrap(),
        to,
    };
    Relay::start(&Options {
        doors: vec![door],
        from_a: path,
        from_b: path,
        seed: 1,
    })
    .unwrap()
}

pub(crate) fn spec(channel: &str, listen: &str, peer: &str, generation: u64) -> ChannelSpec {
    let (listen, service) = (listen.parse().unwrap(), (name(peer), name("app")));
    ChannelSpec {
        generation,
        ..ChannelSpec::new(name(channel), listen, service, Class::App)
    }
}

fn now_unix() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap().as_secs()
}

/// A TCP service that sends its word, then echoes until the connection ends.
pub(crate) async fn tcp_service(word: &'static [u8]) -> Endpoint {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = socket.write_all(word).await;
                let (mut read, mut write) = socket.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    Endpoint::Tcp(address)
}

/// Connects and reads the service's word.
pub(crate) async fn connect(address: SocketAddr, word: &[u8]) -> TcpStream {
    let mut socket = soon(TcpStream::connect(address)).await.unwrap();
    let mut heard = vec![0; word.len()];
    soon(socket.read_exact(&mut heard)).await.unwrap();
    assert_eq!(heard, word);
    socket
}

/// How a connection ends; a reset may arrive before the connection is established.
async fn end_of(address: SocketAddr) -> std::io::ErrorKind {
    match TcpStream::connect(address).await {
        Ok(mut socket) => ends(&mut socket).await,
        Err(error) => error.kind(),
    }
}

async fn ends(socket: &mut TcpStream) -> std::io::ErrorKind {
    match soon(socket.read(&mut [0])).await {
        Ok(count) => panic!("{count} bytes, where a reset was due"),
        Err(error) => error.kind(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn con_1_a_declared_channel_appears_and_the_application_does_nothing() {
    let sites = Sites::start(&[("east", tcp_service(b"east").await)], None).await;
    let path = sites.world.path("app.sock");
    // The application knows one address and tries it before and after the channel exists.
    let refused = Arc::new(Notify::new());
    let (was_refused, at) = (Arc::clone(&refused), path.clone());
    let application = tokio::spawn(async move {
        let mut socket = loop {
            match UnixStream::connect(&at).await {
                Ok(socket) => break socket,
                Err(_) => was_refused.notify_one(),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let mut word = [0; 4];
        socket.read_exact(&mut word).await.unwrap();
        word
    });
    soon(refused.notified()).await;
    assert!(sites.edge.status().channels.is_empty());
    // The control plane announces where the other part is, and how long that is valid.
    let mut declared = spec("till", &format!("unix:{}", path.display()), "east", 7);
    declared.expires_unix_seconds = Some(now_unix() + 3600);
    let view = sites.open(&declared).await.unwrap();
    assert_eq!((view.peer.as_str(), view.generation), ("east", 7));
    assert_eq!(view.expires_unix_seconds, declared.expires_unix_seconds);
    assert_eq!(view.state, ChannelState::Healthy, "{}", view.reason);
    assert_eq!(&soon(application).await.unwrap(), b"east");
    assert_eq!(sites.view("till").connections_total, 1);
}

/// A relay that records all datagrams: one door, and a socket behind it for each source.
async fn tapped(to: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<Vec<u8>>>>) {
    let door = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let (address, kept) = (door.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
    let captured: Arc<Mutex<Vec<Vec<u8>>>> = Arc::clone(&kept);
    tokio::spawn(async move {
        let mut behind: BTreeMap<SocketAddr, Arc<UdpSocket>> = BTreeMap::new();
        let mut datagram = vec![0; 65_536];
        while let Ok((count, from)) = door.recv_from(&mut datagram).await {
            captured.lock().unwrap().push(datagram[..count].to_vec());
            let Entry::Vacant(place) = behind.entry(from) else {
                let _ = behind[&from].send(&datagram[..count]).await;
                continue;
            };
            let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
            socket.connect(to).await.unwrap();
            let _ = socket.send(&datagram[..count]).await;
            let (back, door) = (Arc::clone(&socket), Arc::clone(&door));
            let captured = Arc::clone(&captured);
            tokio::spawn(async move {
                let mut datagram = vec![0; 65_536];
                while let Ok(count) = back.recv(&mut datagram).await {
                    captured.lock().unwrap().push(datagram[..count].to_vec());
                    let _ = door.send_to(&datagram[..count], from).await;
                }
            });
            place.insert(socket);
        }
    });
    (address, kept)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn con_4_what_a_channel_carries_cannot_be_read_on_its_path() {
    let sites = Sites::start(&[("east", tcp_service(b"").await)], None).await;
    let (address, kept) = tapped(sites.others[0].listen_address().unwrap()).await;
    let sites = sites
        .restarted(|config| config.peers[0].address = Some(address.to_string()))
        .await;
    let tcp = sites
        .address(&spec("till", "tcp:127.0.0.1:0", "east", 1))
        .await;
    let secret = b"nobody reads this on the way, neither there nor back";
    let mut socket = connect(tcp, b"").await;
    for _ in 0..200 {
        socket.write_all(secret).await.unwrap();
        soon(socket.read_exact(&mut vec![0; secret.len()]))
            .await
            .unwrap();
    }
    let kept = kept.lock().unwrap();
    let carried: usize = kept.iter().map(Vec::len).sum();
    assert!(
        carried > 2 * 200 * secret.len(),
        "{carried} bytes on the path"
    );
    // Nor does it show who talks to whom: names are only in certificates, which are encrypted.
    for word in [&secret[..16], b"spiffe://", b"shop.example", b"till"] {
        let shows = kept
            .iter()
            .any(|datagram| datagram.windows(word.len()).any(|w| w == word));
        assert!(!shows, "{}", String::from_utf8_lossy(word));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn con_2_bytes_and_half_closes_pass_over_tcp_and_unix() {
    let sites = Sites::start(&[("east", tcp_service(b"").await)], None).await;
    let path = sites.world.path("app.sock");
    let unix = format!("unix:{}", path.display());
    sites.open(&spec("local", &unix, "east", 1)).await.unwrap();
    let tcp = sites
        .address(&spec("till", "tcp:127.0.0.1:0", "east", 1))
        .await;
    let sent = pattern(3, 3 << 20);
    let exchange =
        async |read: &mut (dyn tokio::io::AsyncRead + Unpin + Send),
               write: &mut (dyn tokio::io::AsyncWrite + Unpin + Send)| {
            let writing = async {
                write.write_all(&sent).await.unwrap();
                write.shutdown().await.unwrap();
            };
            let mut heard = Vec::new();
            let ((), read) =
                soon(async { tokio::join!(writing, read.read_to_end(&mut heard)) }).await;
            read.unwrap();
            assert!(heard == sent, "{} bytes", heard.len());
        };
    let (mut read, mut write) = TcpStream::connect(tcp).await.unwrap().into_split();
    exchange(&mut read, &mut write).await;
    let (mut read, mut write) = UnixStream::connect(&path).await.unwrap().into_split();
    exchange(&mut read, &mut write).await;
    let view = sites.view("till");
    assert_eq!((view.sent_bytes, view.received_bytes), (3 << 20, 3 << 20));
    assert_eq!((view.connections_total, view.errors), (1, 0), "{view:?}");
    assert!(view.open_us > 0);
    let service = &sites.others[0].status().services[0];
    assert_eq!(service.sent_bytes, 6 << 20);
    let metrics = sites.client().text("/metrics").await.unwrap();
    let line = format!(
        "towpath_channel_bytes_total{{channel=\"till\",dir=\"out\"}} {}",
        3 << 20
    );
    assert!(metrics.contains(&line), "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn con_2_a_connection_beyond_the_limit_is_reset() {
    let sites = Sites::start(&[("east", tcp_service(b"").await)], None).await;
    let address = sites
        .address(&spec("till", "tcp:127.0.0.1:0", "east", 1))
        .await;
    let mut held = Vec::new();
    for _ in 0..256 {
        held.push(soon(TcpStream::connect(address)).await.unwrap());
    }
    until("all have their places", || {
        sites.view("till").connections == 256
    })
    .await;
    let end = end_of(address).await;
    assert_eq!(end, std::io::ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_that_is_too_busy_to_answer_is_not_taken_away() {
    let sites = Sites::start(&[("east", tcp_service(b"").await)], None).await;
    let path = sites.world.path("busy.sock");
    let address = socket2::SockAddr::unix(&path).unwrap();
    let new = || socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    let busy = new();
    busy.bind(&address).unwrap();
    busy.listen(1).unwrap();
    let mut waiting = Vec::new();
    let is_full = (0..1000).any(|_| {
        let socket = new();
        socket.set_nonblocking(true).unwrap();
        let connected = socket.connect(&address);
        waiting.push(socket);
        connected.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    });
    if !is_full {
        println!("skipped: this kernel's sockets are never too busy");
        return;
    }
    let there = || std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&path).unwrap());
    let before = there();
    let listen = format!("unix:{}", path.display());
    let refused = sites.open(&spec("till", &listen, "east", 1)).await;
    assert_eq!(refused.unwrap_err().code, Code::Io.as_str());
    assert_eq!(there(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn con_2_resets_pass_and_a_unix_service_gets_the_bytes_alone() {
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("s");
    let service = UnixListener::bind(&path).unwrap();
    let sites = Sites::start(&[("east", Endpoint::Unix(path))], None).await;
    let tcp = sites
        .address(&spec("till", "tcp:127.0.0.1:0", "east", 1))
        .await;
    let mut local = TcpStream::connect(tcp).await.unwrap();
    local.write_all(b"hello").await.unwrap();
    let (mut remote, _) = soon(service.accept()).await.unwrap();
    let mut heard = [0; 5];
    soon(remote.read_exact(&mut heard)).await.unwrap();
    assert_eq!(&heard, b"hello");
    // The socket is closed with a byte unread, which causes a reset.
    local.write_all(b"!!").await.unwrap();
    soon(remote.read_exact(&mut [0])).await.unwrap();
    drop(remote);
    assert_eq!(ends(&mut local).await, std::io::ErrorKind::ConnectionReset);
    sites.counts_an_error("till").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn con_3_edges_talk_directly_and_the_region_carries_nothing() {
    let target = tcp_service(b"").await;
    let unused = tcp_service(b"").await;
    let mut relay = None;
    let others = [("region", unused), ("east", target)];
    let sites = Sites::start(&others, Some(&mut relay)).await;
    let tcp = sites
        .address(&spec("till", "tcp:127.0.0.1:0", "east", 1))
        .await;
    let mut socket = TcpStream::connect(tcp).await.unwrap();
    let control = relay.as_ref().unwrap().control();
    let passed = || [Side::A, Side::B].map(|side| control.counters(side).delivered_bytes);
    let before = passed();
    socket.write_all(&[7; 100_000]).await.unwrap();
    soon(socket.read_exact(&mut vec![0; 100_000]))
        .await
        .unwrap();
    // The path to the region takes longer than that to the other edge and back: 20 ms each time.
    let mut fastest = Duration::MAX;
    for _ in 0..20 {
        let asked = Instant::now();
        socket.write_all(&[7]).await.unwrap();
        soon(socket.read_exact(&mut [0])).await.unwrap();
        fastest = fastest.min(asked.elapsed());
    }
    assert!(fastest < RELAY_ROUND_TRIP, "{fastest:?}: a detour");
    for (after, before) in passed().into_iter().zip(before) {
        let bytes = after - before;
        assert!(bytes < 100_000, "{bytes} bytes went by the region");
    }
    let carried = |tunnel: &Tunnel| {
        let classes = &tunnel.status().links[0].classes;
        classes
            .iter()
            .map(|class| class.sent_bytes + class.received_bytes)
            .sum::<u64>()
    };
    assert_eq!(carried(&sites.others[0]), 0);
    assert_eq!(carried(&sites.others[1]), 200_040);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn con_5_a_service_that_does_not_name_us_is_not_reached() {
    let payroll = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let theirs = ServiceConfig::plain(
        name("payroll"),
        Endpoint::Tcp(payroll.local_addr().unwrap()),
        vec![name("west")],
    );
    let others = [("east", tcp_service(b"").await)];
    let knows = |config: &mut Config| {
        config.peers.push(PeerConfig::new(name("west")));
        config.services.push(theirs.clone());
    };
    let sites = Sites::start_with(&others, None, knows).await;
    let mut other = spec("till", "tcp:127.0.0.1:0", "east", 1);
    other.service = name("payroll");
    let tcp = sites.address(&other).await;
    assert_eq!(end_of(tcp).await, std::io::ErrorKind::ConnectionReset);
    sites.counts_an_error("till").await;
    let view = sites.view("till");
    assert!(view.last_error.unwrap().contains("E_DENIED"));
    let reached = tokio::time::timeout(Duration::from_millis(50), payroll.accept()).await;
    assert!(reached.is_err(), "it was reached");
    // A byte stream to a datagram service does not get through either.
    let sites = Sites::start(&[("east", udp_service().await)], None).await;
    let tcp = sites
        .address(&spec("till", "tcp:127.0.0.1:0", "east", 1))
        .await;
    assert_eq!(end_of(tcp).await, std::io::ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn con_6_removal_tears_a_channel_down_and_leaves_the_other() {
    let sites = Sites::start(&[("east", tcp_service(b"").await)], None).await;
    let one = sites
        .address(&spec("one", "tcp:127.0.0.1:0", "east", 1))
        .await;
    let two = sites
        .address(&spec("two", "tcp:127.0.0.1:0", "east", 1))
        .await;
    let mut first = connect(one, b"").await;
    let mut second = connect(two, b"").await;
    for socket in [&mut first, &mut second] {
        socket.write_all(b"x").await.unwrap();
        soon(socket.read_exact(&mut [0])).await.unwrap();
    }
    let path = "/v1/channels/one?generation=1";
    sites
        .client()
        .delete::<serde_json::Value>(path)
        .await
        .unwrap();
    assert_eq!(ends(&mut first).await, std::io::ErrorKind::ConnectionReset);
    let refused = async { while TcpStream::connect(one).await.is_ok() {} };
    soon(refused).await;
    second.write_all(b"y").await.unwrap();
    soon(second.read_exact(&mut [0])).await.unwrap();
    let again = sites.open(&spec("one", "tcp:127.0.0.1:0", "east", 1)).await;
    assert_eq!(again.unwrap_err().code, Code::State.as_str());
    // The other channel between the same two parts stays, and so does their traffic.
    let names = || {
        let channels = sites.edge.status().channels.into_iter();
        channels.map(|view| view.name).collect::<Vec<_>>()
    };
    assert_eq!(names(), ["two"]);
    let view = sites.view("two");
    assert_eq!((view.connections, view.errors), (1, 0), "{view:?}");
    sites
        .open(&spec("one", "tcp:127.0.0.1:0", "east", 2))
        .await
        .unwrap();
    let path = "/v1/channels/two?generation=1";
    let client = sites.client();
    client.delete::<serde_json::Value>(path).await.unwrap();
    assert_eq!(ends(&mut second).await, std::io::ErrorKind::ConnectionReset);
    assert_eq!(names(), ["one"], "the last of them tears down nothing else");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn con_7_a_channel_carries_on_without_its_pusher_until_it_expires() {
    let mut relay = None;
    let sites = Sites::start(&[("east", tcp_service(b"").await)], Some(&mut relay)).await;
    let control: Control = relay.as_ref().unwrap().control();
    let mut brief = spec("till", "tcp:127.0.0.1:0", "east", 1);
    brief.expires_unix_seconds = Some(now_unix() + 8);
    let tcp = sites.address(&brief).await;
    // The pusher does not renew it from here on. The link is lost and comes back in the meantime.
    let mut socket = connect(tcp, b"").await;
    socket.write_all(b"x").await.unwrap();
    soon(socket.read_exact(&mut [0])).await.unwrap();
    control.cut_both();
    until("the cut shows", || {
        sites.view("till").state != ChannelState::Healthy
    })
    .await;
    socket.write_all(b"y").await.unwrap();
    control.heal();
    soon(socket.read_exact(&mut [0])).await.unwrap();
    assert_eq!(ends(&mut socket).await, std::io::ErrorKind::ConnectionReset);
    assert!(sites.edge.status().channels.is_empty());
}

/// Connects again and again, to the channel's first address or else to the one it is moved to.
/// Records which of the two it was and the service's word. A client must get through at any time.
fn call_on(tcp: SocketAddr, path: PathBuf) -> (Arc<Mutex<Vec<String>>>, JoinHandle<()>) {
    let words = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&words);
    let calling = tokio::spawn(async move {
        loop {
            let mut word = [0; 4];
            let way = match TcpStream::connect(tcp).await {
                Ok(mut socket) => socket.read_exact(&mut word).await.map(|_| "tcp"),
                Err(_) => match UnixStream::connect(&path).await {
                    Ok(mut socket) => socket.read_exact(&mut word).await.map(|_| "unix"),
                    Err(error) => Err(error),
                },
            };
            let word = String::from_utf8_lossy(&word).into_owned();
            heard.lock().unwrap().push(match way {
                Ok(way) => format!("{way} {word}"),
                Err(error) => error.to_string(),
            });
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    (words, calling)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn con_8_a_new_generation_moves_traffic_without_a_gap() {
    let (east, west) = (tcp_service(b"east").await, tcp_service(b"west").await);
    let sites = Sites::start(&[("east", east), ("west", west)], None).await;
    let tcp = sites
        .address(&spec("till", "tcp:127.0.0.1:0", "east", 1))
        .await;
    let mut old = connect(tcp, b"east").await;
    let path = sites.world.path("app.sock");
    let (words, calling) = call_on(tcp, path.clone());
    let hears = |wanted: &'static str| {
        let words = Arc::clone(&words);
        async move {
            let is_heard = || words.lock().unwrap().last() == Some(&wanted.to_owned());
            until(wanted, is_heard).await;
        }
    };
    hears("tcp east").await;
    // The same listener as before: its port stays.
    sites
        .open(&spec("till", "tcp:127.0.0.1:0", "west", 2))
        .await
        .unwrap();
    hears("tcp west").await;
    old.write_all(b"x").await.unwrap();
    soon(old.read_exact(&mut [0])).await.unwrap();
    // Another listener: the new one exists before the old one goes.
    let other = format!("unix:{}", path.display());
    sites.open(&spec("till", &other, "west", 3)).await.unwrap();
    hears("unix west").await;
    assert!(TcpStream::connect(tcp).await.is_err());
    old.write_all(b"x").await.unwrap();
    soon(old.read_exact(&mut [0])).await.unwrap();
    calling.abort();
    let mut heard = words.lock().unwrap().clone();
    heard.dedup();
    assert_eq!(heard, ["tcp east", "tcp west", "unix west"]);
    let stale = sites
        .open(&spec("till", "tcp:127.0.0.1:0", "east", 2))
        .await;
    assert_eq!(stale.unwrap_err().code, Code::State.as_str());
    assert_eq!(sites.view("till").generation, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn con_11_metadata_said_twice_changes_nothing() {
    let sites = Sites::start(&[("east", tcp_service(b"").await)], None).await;
    let five = spec("till", "tcp:127.0.0.1:0", "east", 5);
    let tcp = sites.address(&five).await;
    assert_eq!(sites.address(&five).await, tcp, "the same listener");
    let older = sites
        .open(&spec("till", "tcp:127.0.0.1:0", "east", 4))
        .await;
    assert_eq!(older.unwrap_err().code, Code::State.as_str());
    let mut nowhere = spec("other", "tcp:127.0.0.1:0", "mars", 1);
    let unknown = sites.open(&nowhere).await.unwrap_err();
    assert_eq!(unknown.code, Code::NotFound.as_str());
    nowhere = spec("other", &format!("tcp:{tcp}"), "east", 1);
    let taken = sites.open(&nowhere).await.unwrap_err();
    assert_eq!(taken.code, Code::Io.as_str());
    assert!(taken.cause.contains("channel till"), "{taken}");
    assert_eq!(sites.edge.status().channels.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn con_7_pushed_channels_and_con_11_their_generations_outlive_the_tunnel() {
    let sites = Sites::start(&[("east", tcp_service(b"east").await)], None).await;
    let state = sites.world.path("edge-state");
    let sites = sites
        .restarted(|config| config.state_dir = Some(state.clone()))
        .await;
    let path = sites.world.path("app.sock");
    let listen = format!("unix:{}", path.display());
    let mut till = spec("till", &listen, "east", 5);
    till.expires_unix_seconds = Some(now_unix() + 3600);
    sites.open(&till).await.unwrap();
    let tcp = |name: &str, generation| spec(name, "tcp:127.0.0.1:0", "east", generation);
    sites.open(&tcp("gone", 3)).await.unwrap();
    let path_of_gone = "/v1/channels/gone?generation=4";
    let left: serde_json::Value = sites.client().delete(path_of_gone).await.unwrap();
    assert_eq!(left["channels"].as_array().unwrap().len(), 1);
    let mut brief = tcp("brief", 1);
    brief.expires_unix_seconds = Some(now_unix() + 2);
    sites.open(&brief).await.unwrap();

    // Nothing is written when the tunnel stops: everything has been saved already.
    let kept = std::fs::read(state.join("channels.json")).unwrap();
    let mut fixed = tcp("till", 4);
    fixed.listen = "unix:/nowhere".parse().unwrap();
    let sites = sites
        .restarted(|config| {
            // The configured channel is older than the pushed one with the same name.
            config.channels = vec![fixed, tcp("steady", 0)];
        })
        .await;
    assert_eq!(std::fs::read(state.join("channels.json")).unwrap(), kept);
    let view = sites.view("till");
    assert_eq!(
        (view.generation, view.listen.as_str()),
        (5, listen.as_str())
    );
    assert_eq!(view.expires_unix_seconds, till.expires_unix_seconds);
    let mut socket = soon(UnixStream::connect(&path)).await.unwrap();
    let mut word = [0; 4];
    soon(socket.read_exact(&mut word)).await.unwrap();
    assert_eq!(&word, b"east");
    sites.open(&till).await.unwrap();
    for older in [tcp("till", 4), tcp("gone", 3), tcp("gone", 4)] {
        let refused = sites.open(&older).await.unwrap_err();
        assert_eq!(refused.code, Code::State.as_str(), "{older:?}");
    }
    assert_eq!(sites.view("steady").generation, 0);
    until("expired channels are gone", || {
        sites.edge.status().channels.len() <= 2
    })
    .await;

    // A file that cannot be read is set aside, and channels can be pushed again.
    let sites = sites
        .restarted(|config| {
            config.channels.clear();
            std::fs::write(state.join("channels.json"), &kept[..kept.len() / 2]).unwrap();
        })
        .await;
    assert!(sites.edge.status().channels.is_empty());
    assert!(state.join("channels.damaged").exists());
    sites.open(&tcp("till", 1)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn con_7_a_pushed_channel_keeps_the_port_that_the_system_gave_it() {
    let sites = Sites::start(&[("east", tcp_service(b"east").await)], None).await;
    let state = sites.world.path("edge-state");
    let sites = sites
        .restarted(|config| config.state_dir = Some(state))
        .await;
    let till = |generation| spec("till", "tcp:127.0.0.1:0", "east", generation);
    let address = sites.address(&till(1)).await;
    let sites = sites.restarted(|_| ()).await;
    assert_eq!(sites.view("till").listen, format!("tcp:{address}"));
    // Pushed again, and as the next generation, it stays at that address.
    for generation in [1, 2] {
        assert_eq!(sites.address(&till(generation)).await, address);
    }
    connect(address, b"east").await;
}
