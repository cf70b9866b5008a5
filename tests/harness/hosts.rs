//! Hosts with network namespaces of their own, a tunnel daemon on each, and an emulated line
//! between them.
//!
//! ```text
//!  host "edge"                         line                                     host "region"
//!  programs ─TCP, UDP─► towpath ══ cable ══► relay (rate, delay, loss, cut) ══ cable ══► towpath ─► services
//! ```
//!
//! The line has a network namespace of its own, so that each cable can be unplugged at either end.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use towpath_bench::lab::Lab;
pub use towpath_bench::lab::{CABLE, Host};
use towpath_bench::program::{Process, until_ready, write_config};
pub use towpath_bench::relay::{Control, Direction, Queue, Side};
use towpath_bench::relay::{Door, Options, Relay};
use towpath_bench::sites::{Failure, add_channel, site, sites_that_meet};
use towpath_certs::Authority;
use towpath_daemon::client::Client;
use towpath_daemon::problem::Problem;
use towpath_protocol::class::Class;
use towpath_protocol::endpoint::Endpoint;
use towpath_tunnel::channels::ChannelSpec;
use towpath_tunnel::config::{Config, PeerConfig, ServiceConfig};
use towpath_tunnel::status::{ChannelView, LinkView, StatusView};

use crate::process::show_log;
use crate::program::towpath;
use crate::stolen::Watch;

/// Ports to which programs connect at the edge: to send, to receive, and for datagrams.
const UP_DOOR: u16 = 7001;
const DOWN_DOOR: u16 = 7002;
const DATAGRAM_DOOR: u16 = 7003;

/// The port on which a tunnel listens, and the ports at which the line to the region and to the
/// other edge begins.
const MEETING: u16 = 7010;
const LINE: u16 = 7011;
const OTHER_LINE: u16 = 7012;

/// Ports of the services.
const SINK: u16 = 7021;
const SOURCE: u16 = 7022;
const ECHO: u16 = 7023;

/// MTU of the cable, in bytes.
const MTU: u16 = 1500;

/// The longest that any wait may take; then the test fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a program waits for its datagram to return before it sends another.
const DATAGRAM_WAIT: Duration = Duration::from_secs(3);

/// Bytes of an Ethernet header.
const FRAME_HEADER_BYTES: u64 = 14;

/// Interval between checks, and between checks that measure a time.
const LOOK: Duration = Duration::from_millis(10);
const CLOSE_LOOK: Duration = Duration::from_millis(1);

/// Period of the data. A prime, so that the period never hides lost or repeated bytes.
const PERIOD: usize = 1_000_003;

/// Bytes that must arrive for a flow to count as going on.
pub const SOME_BYTES: u64 = 200_000;

/// More bytes than a flow can have in flight over any line on which pauses are measured: a queue
/// and a round trip at 50 Mbit/s, and the bytes of a stream that are resent over another link.
const ON_ITS_WAY_BYTES: u64 = 2_000_000;

/// The two hosts. Dropping this ends everything that runs on them.
#[derive(Debug)]
pub struct Hosts {
    daemons: Vec<Process>,
    configs: Vec<Config>,
    control: Control,
    _relay: Relay,
    runtime: Runtime,
    folder: TempDir,
    lab: Lab,
}

impl Hosts {
    /// Builds the hosts with a line between them, and waits until bytes pass. Prints the reason and
    /// returns `None` if such hosts cannot be built here.
    ///
    /// # Panics
    ///
    /// If a part of it does not start.
    #[must_use]
    #[allow(clippy::print_stdout, reason = "a test says what it skipped")]
    pub fn start(line: Direction, change: impl FnOnce(&mut [Config; 2])) -> Option<Self> {
        match Lab::with_line(MTU) {
            Ok(lab) => Some(Self::build(lab, line, change).expect("two hosts")),
            Err(why) => {
                println!("skipped: {why}");
                None
            }
        }
    }

    fn build(
        lab: Lab,
        line: Direction,
        change: impl FnOnce(&mut [Config; 2]),
    ) -> Result<Self, Failure> {
        let folder = TempDir::new()?;
        let meeting = SocketAddr::from((Host::Region.address(), MEETING));
        let mut configs = sites_that_meet(folder.path(), meeting)?;
        configs[0].peers[0].address = Some(line_begins(LINE).to_string());
        for (name, door, service) in [("up", UP_DOOR, SINK), ("down", DOWN_DOOR, SOURCE)] {
            let way = [door, service].map(loopback).map(Endpoint::Tcp);
            add_channel(&mut configs, (name, Class::Bulk), way)?;
        }
        let way = [DATAGRAM_DOOR, ECHO].map(loopback).map(Endpoint::Udp);
        add_channel(&mut configs, ("datagrams", Class::Demand), way)?;
        change(&mut configs);
        let door = |listen, to| Door {
            from: Side::A,
            listen,
            to,
        };
        let other = SocketAddr::from((Host::Other.address(), MEETING));
        let options = Options {
            doors: vec![
                door(line_begins(LINE), meeting),
                door(line_begins(OTHER_LINE), other),
            ],
            from_a: line,
            from_b: line,
            seed: 1,
        };
        let relay = lab.at_line(|| Ok(Relay::start(&options)?))?;
        lab.at(Host::Region, || echo(UdpSocket::bind(loopback(ECHO))?))?;
        let daemons = vec![
            daemon(&lab, Host::Edge, folder.path(), &configs[0])?,
            daemon(&lab, Host::Region, folder.path(), &configs[1])?,
        ];
        let hosts = Self {
            daemons,
            configs: configs.into(),
            control: relay.control(),
            _relay: relay,
            runtime: Builder::new_current_thread().enable_all().build()?,
            folder,
            lab,
        };
        until_ready(|| hosts.try_datagram(100))?;
        Ok(hosts)
    }

    /// The handle that controls the line.
    #[must_use]
    pub const fn control(&self) -> &Control {
        &self.control
    }

    /// Changes what the line does to each side's packets.
    ///
    /// # Panics
    ///
    /// If the settings are invalid.
    pub fn set_line(&self, from_edge: Direction, from_region: Direction) {
        for (side, line) in [(Side::A, from_edge), (Side::B, from_region)] {
            self.control.set(side, line).expect("a line that changes");
        }
    }

    /// The folder of the certificates of both sites, and of their authority.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Runs `ip` in a host's namespace.
    ///
    /// # Panics
    ///
    /// With its error output, if it fails.
    pub fn ip(&self, host: Host, words: &str) {
        let words: Vec<&str> = words.split(' ').collect();
        self.lab.ip(host, &words).expect("ip does what it is told");
    }

    /// Runs `ip` in the line's namespace, where each host's cable is named after the host.
    ///
    /// # Panics
    ///
    /// With its error output, if it fails.
    pub fn ip_of_line(&self, words: &str) {
        let words: Vec<&str> = words.split(' ').collect();
        let done = self.lab.ip_of_line(&words);
        done.expect("ip does what it is told");
    }

    /// Sets the MTU of all cables.
    ///
    /// # Panics
    ///
    /// With the error output of `ip`, if it fails.
    pub fn set_mtu(&self, mtu: u16) {
        self.lab.set_mtu(mtu).expect("a size that cables can have");
    }

    /// Starts measuring a time.
    #[must_use]
    pub fn watch(&self) -> Watch {
        let mut processes: Vec<u32> = self.daemons.iter().map(Process::id).collect();
        // Programs and line are threads of this process.
        processes.push(std::process::id());
        let spaces = self.lab.spaces().expect("namespaces that are there");
        Watch::start(processes, spaces)
    }

    /// Does something after which every flow has to go on within a time.
    ///
    /// # Panics
    ///
    /// If a flow does not, or breaks.
    pub fn back_within(&self, most: Duration, flows: &[Flow], what: &str, mend: impl FnOnce()) {
        let before: Vec<u64> = flows.iter().map(Flow::received).collect();
        let mut watch = self.watch();
        mend();
        for (flow, before) in flows.iter().zip(before) {
            flow.wait(what, CLOSE_LOOK, || flow.received() > before);
        }
        watch.at_most(most, &format!("a first byte after {what}"));
    }

    /// Does something that may not stop any flow for longer than a time.
    ///
    /// # Panics
    ///
    /// If it stops one for longer, or a flow breaks.
    pub fn pauses_within(&self, most: Duration, flows: &[Flow], what: &str, change: impl FnOnce()) {
        let mut watch = self.watch();
        for flow in flows {
            flow.pause().restart();
        }
        change();
        for flow in flows {
            // Bytes that were in flight still arrive.
            let wanted = flow.received() + ON_ITS_WAY_BYTES;
            flow.wait(what, LOOK, || {
                watch.look();
                flow.received() >= wanted
            });
        }
        for flow in flows {
            let pause = flow.pause().longest;
            watch.check(pause, most, &format!("the pause at {what}"));
        }
    }

    fn status(&self, host: Host) -> Result<StatusView, Problem> {
        let client = Client::new(&self.configs[index(host)].admin.socket);
        self.runtime.block_on(client.get("/status"))
    }

    /// The link as one host sees it.
    ///
    /// # Panics
    ///
    /// If its tunnel does not answer.
    #[must_use]
    pub fn link(&self, host: Host) -> LinkView {
        let status = self.status(host).expect("a tunnel says how it is");
        let mut links = status.links.into_iter();
        let link = links.find(|link| link.peer != Host::Other.name());
        link.expect("the two are peers")
    }

    /// Starts the tunnel of the other edge. Our edge has to be configured for it with
    /// [`other_is_peer`]. It has a service `up` on the same port as the region.
    ///
    /// # Panics
    ///
    /// If it does not start.
    pub fn start_other(&mut self) {
        let started = || -> Result<_, Failure> {
            let authority = Authority::open(&self.folder().join("ca"))?;
            let (own, peer) = (Host::Other.name(), Host::Edge.name());
            let mut config = site(&authority, self.folder(), own, peer)?;
            config.listen = Some((Host::Other.address(), MEETING).into());
            let service = Endpoint::Tcp(loopback(SINK));
            let allow = vec![peer.parse()?];
            let service = ServiceConfig::plain("up".parse()?, service, allow);
            config.services.push(service);
            let daemon = daemon(&self.lab, Host::Other, self.folder(), &config)?;
            Ok((config, daemon))
        };
        let (config, daemon) = started().expect("another edge");
        self.configs.push(config);
        self.daemons.push(daemon);
        until("the other edge answers", || {
            self.status(Host::Other).is_ok()
        });
    }

    /// Pushes a channel to the edge.
    ///
    /// # Errors
    ///
    /// Its tunnel's answer.
    pub fn open(&self, spec: &ChannelSpec) -> Result<ChannelView, Problem> {
        let client = Client::new(&self.configs[0].admin.socket);
        self.runtime.block_on(client.post("/v1/channels", spec))
    }

    /// Removes a pushed channel from the edge.
    ///
    /// # Errors
    ///
    /// Its tunnel's answer.
    pub fn close(&self, channel: &str, generation: u64) -> Result<(), Problem> {
        let client = Client::new(&self.configs[0].admin.socket);
        let path = format!("/v1/channels/{channel}?generation={generation}");
        let closed = client.delete::<serde_json::Value>(&path);
        self.runtime.block_on(closed).map(|_| ())
    }

    /// Connects at the edge.
    ///
    /// # Errors
    ///
    /// The system's error.
    pub fn connect(&self, door: u16) -> Result<TcpStream, Failure> {
        let socket = self.lab.connect(Host::Edge, loopback(door))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    }

    /// Listens on the address of a host's service `up`.
    ///
    /// # Panics
    ///
    /// If it cannot.
    #[must_use]
    pub fn listen(&self, host: Host) -> TcpListener {
        let listener = self.lab.listen(host, loopback(SINK));
        listener.expect("a port that is free")
    }

    /// Runs the service `up` of a host for as long as the test's process lives. It sends `word` to
    /// every client, and then echoes what it receives.
    ///
    /// # Panics
    ///
    /// If it cannot.
    pub fn serve(&self, host: Host, word: &'static [u8]) {
        let listener = self.listen(host);
        thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                // Errors are ignored: the client may have gone.
                thread::spawn(move || answer(socket, word));
            }
        });
    }

    /// Bytes of IP that a host has sent and received on its cable.
    ///
    /// # Panics
    ///
    /// If the kernel's counters cannot be read.
    #[must_use]
    pub fn wire_bytes(&self, host: Host) -> [u64; 2] {
        let read = || Ok(std::fs::read_to_string("/proc/thread-self/net/dev")?);
        let text = self.lab.at(host, read).expect("counters");
        let mut lines = text.lines().filter_map(|line| line.split_once(':'));
        let cable = lines.find(|(name, _)| name.trim() == CABLE);
        let (_, counts) = cable.expect("a cable");
        let counts = counts.split_ascii_whitespace().map(str::parse);
        let counts: Vec<u64> = counts.collect::<Result<_, _>>().expect("numbers");
        // Received bytes and packets come first, the sent ones eight fields later.
        [8, 0].map(|at| counts[at] - counts[at + 1] * FRAME_HEADER_BYTES)
    }

    /// Makes a host's tunnel reload its files.
    ///
    /// # Panics
    ///
    /// If it no longer runs.
    pub fn reload(&self, host: Host) {
        self.signal(host, Signal::HUP);
    }

    /// Stops a host's tunnel for a time, like a machine that is paused or out of memory.
    ///
    /// # Panics
    ///
    /// If it no longer runs.
    pub fn stop_for(&self, host: Host, time: Duration) {
        self.signal(host, Signal::STOP);
        thread::sleep(time);
        self.signal(host, Signal::CONT);
    }

    fn signal(&self, host: Host, signal: Signal) {
        let id = i32::try_from(self.daemons[index(host)].id()).ok();
        let daemon = id.and_then(Pid::from_raw).expect("a process");
        kill_process(daemon, signal).expect("a tunnel that runs");
    }

    /// Starts a flow of bytes from the edge to the region.
    ///
    /// # Panics
    ///
    /// If there is no connection.
    #[must_use]
    pub fn flow_up(&self) -> Flow {
        self.flow(UP_DOOR, SINK, |near, far| (near, far))
    }

    /// Starts a flow of bytes from the region to the edge.
    ///
    /// # Panics
    ///
    /// If there is no connection.
    #[must_use]
    pub fn flow_down(&self) -> Flow {
        self.flow(DOWN_DOOR, SOURCE, |near, far| (far, near))
    }

    /// Starts a flow from the edge to the service `up`, through a channel that was pushed.
    ///
    /// # Panics
    ///
    /// If there is no connection.
    #[must_use]
    pub fn flow_through(&self, door: u16) -> Flow {
        self.flow(door, SINK, |near, far| (near, far))
    }

    fn flow(
        &self,
        door: u16,
        service: u16,
        roles: impl FnOnce(TcpStream, TcpStream) -> (TcpStream, TcpStream),
    ) -> Flow {
        let ends = || -> Result<_, Failure> {
            let listener: TcpListener = self.lab.listen(Host::Region, loopback(service))?;
            let near = self.lab.connect(Host::Edge, loopback(door))?;
            let (far, _) = listener.accept()?;
            Ok(roles(near, far))
        };
        let (from, to) = ends().expect("a connection through the tunnels");
        // In the host's namespace, like a real program, so that its processor waits are excused
        // too.
        let flow = self.lab.at(Host::Edge, || Ok(Flow::start(from, to)));
        flow.expect("threads")
    }

    /// Sends datagrams of this size until one comes back, as programs do.
    ///
    /// # Panics
    ///
    /// If none ever does.
    pub fn datagram(&self, bytes: usize) {
        until(&format!("a datagram of {bytes} bytes comes back"), || {
            self.try_datagram(bytes).is_ok()
        });
    }

    fn try_datagram(&self, bytes: usize) -> Result<(), Failure> {
        let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let socket = self.lab.at(Host::Edge, || Ok(UdpSocket::bind(anywhere)?))?;
        socket.set_read_timeout(Some(DATAGRAM_WAIT))?;
        let sent = pattern(bytes);
        socket.send_to(&sent, loopback(DATAGRAM_DOOR))?;
        let mut heard = vec![0; bytes + 1];
        let count = socket
            .recv(&mut heard)
            .map_err(|error| format!("{bytes} bytes did not come back: {error}"))?;
        assert!(heard[..count] == sent, "another datagram came back");
        Ok(())
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        if !thread::panicking() {
            return;
        }
        for host in Host::PAIR {
            let log = self.folder().join(format!("{}.log", host.name()));
            show_log(&log);
        }
    }
}

/// Bytes that one program sends to another; each is checked on arrival.
#[derive(Debug)]
pub struct Flow {
    is_over: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    pause: Arc<Mutex<Pause>>,
    /// The errors that the programs got.
    told: Arc<Mutex<Vec<String>>>,
    writing: JoinHandle<std::io::Result<u64>>,
    reading: JoinHandle<std::io::Result<u64>>,
}

/// How long nothing arrived.
#[derive(Debug)]
struct Pause {
    last: Instant,
    longest: (Instant, Instant),
}

impl Pause {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            last: now,
            longest: (now, now),
        }
    }

    fn restart(&mut self) {
        self.longest = (self.last, self.last);
    }

    fn end(&mut self) {
        let now = Instant::now();
        let (from, to) = self.longest;
        if now - self.last > to - from {
            self.longest = (self.last, now);
        }
        self.last = now;
    }
}

/// Records how a program ended.
struct Told(&'static str, Arc<Mutex<Vec<String>>>);

impl Told {
    fn what(&self, result: std::io::Result<u64>) -> std::io::Result<u64> {
        let mut told = self.1.lock().expect("nothing panics there");
        told.push(format!("{}: {result:?}", self.0));
        result
    }
}

impl Flow {
    fn start(mut from: TcpStream, mut to: TcpStream) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let received = Arc::new(AtomicU64::new(0));
        let pause = Arc::new(Mutex::new(Pause::new()));
        let pausing = Arc::clone(&pause);
        let (ending, counted) = (Arc::clone(&is_over), Arc::clone(&received));
        let told = Arc::default();
        let told_writing = Told("the one that writes", Arc::clone(&told));
        let told_reading = Told("the one that reads", Arc::clone(&told));
        let mut write = move || {
            let (bytes, mut total) = (pattern(PERIOD), 0);
            while !ending.load(Ordering::Relaxed) {
                let at = total % PERIOD;
                let until = PERIOD.min(at + 30_000);
                from.write_all(&bytes[at..until])?;
                total += until - at;
            }
            from.shutdown(std::net::Shutdown::Write)?;
            // The other side reads everything before it closes.
            from.read_to_end(&mut Vec::new())?;
            Ok(total as u64)
        };
        let mut read = move || {
            let (bytes, mut chunk, mut total) = (pattern(PERIOD), vec![0; 64 * 1024], 0);
            loop {
                let count = to.read(&mut chunk)?;
                pausing.lock().expect("nothing panics there").end();
                if count == 0 {
                    return Ok(total as u64);
                }
                for byte in &chunk[..count] {
                    assert!(*byte == bytes[total % PERIOD], "byte {total} is wrong");
                    total += 1;
                }
                counted.store(total as u64, Ordering::Relaxed);
            }
        };
        Self {
            is_over,
            received,
            pause,
            told,
            writing: thread::spawn(move || told_writing.what(write())),
            reading: thread::spawn(move || told_reading.what(read())),
        }
    }

    fn pause(&self) -> MutexGuard<'_, Pause> {
        self.pause.lock().expect("nothing panics there")
    }

    /// Bytes that have arrived so far.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Whether one of the two programs has ended.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.writing.is_finished() || self.reading.is_finished()
    }

    /// Waits until more bytes have arrived.
    ///
    /// # Panics
    ///
    /// If none arrive, or the flow broke.
    pub fn goes_on(&self, whatever_happened: &str) {
        let wanted = self.received() + SOME_BYTES;
        self.wait(whatever_happened, LOOK, || self.received() >= wanted);
    }

    /// Waits for a condition, and fails if the flow breaks.
    fn wait(&self, whatever_happened: &str, look: Duration, mut is_so: impl FnMut() -> bool) {
        let what = format!("bytes after {whatever_happened}");
        until_looking(look, &what, || {
            // The lock is released before an assertion below can fail.
            let told = self.told.lock().expect("nothing panics there").clone();
            assert!(!self.is_broken(), "{whatever_happened}: {told:?}");
            is_so()
        });
    }

    /// Ends the flow from the sending side, checks that all of it has arrived, and returns its
    /// length.
    ///
    /// # Panics
    ///
    /// If anything is missing.
    #[must_use]
    pub fn end(self) -> u64 {
        self.is_over.store(true, Ordering::Relaxed);
        let sent = self.writing.join().expect("it only sends");
        let received = self.reading.join().expect("every byte is right");
        let received = received.expect("no error at its end");
        assert_eq!(sent.expect("no error at its end"), received);
        received
    }
}

/// Waits for a condition.
///
/// # Panics
///
/// If it is not met in time.
pub fn until(what: &str, is_so: impl FnMut() -> bool) {
    until_looking(LOOK, what, is_so);
}

fn until_looking(look: Duration, what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "never: {what}");
        thread::sleep(look);
    }
}

/// Configures the other edge as a peer of our edge.
///
/// # Panics
///
/// Never: its name is valid.
pub fn other_is_peer(configs: &mut [Config; 2]) {
    let mut peer = PeerConfig::new(Host::Other.name().parse().expect("a name"));
    peer.address = Some(line_begins(OTHER_LINE).to_string());
    configs[0].peers.push(peer);
}

/// Sends a word, then echoes what it receives, to the end.
fn answer(mut socket: TcpStream, word: &[u8]) -> std::io::Result<()> {
    socket.write_all(word)?;
    std::io::copy(&mut socket.try_clone()?, &mut socket)?;
    socket.shutdown(std::net::Shutdown::Write)
}

/// The address at which the line begins for the edge.
const fn line_begins(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Host::Edge.line_address()), port)
}

const fn index(host: Host) -> usize {
    match host {
        Host::Edge => 0,
        Host::Region => 1,
        Host::Other => 2,
    }
}

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes)
        .map(|at| u8::try_from((at * 131 + at / 251) % 256).expect("below 256"))
        .collect()
}

/// Echoes every datagram, for as long as the test's process lives.
fn echo(socket: UdpSocket) -> Result<(), Failure> {
    thread::Builder::new().spawn(move || {
        let mut bytes = vec![0; 64 * 1024];
        while let Ok((count, from)) = socket.recv_from(&mut bytes) {
            // Errors are ignored: the client may have gone.
            let _ = socket.send_to(&bytes[..count], from);
        }
    })?;
    Ok(())
}

fn daemon(lab: &Lab, host: Host, folder: &Path, config: &Config) -> Result<Process, Failure> {
    let path: PathBuf = write_config(folder, config)?;
    let log = std::fs::File::create(folder.join(format!("{}.log", host.name())))?;
    let mut command = Command::new(towpath());
    command.args(["tunnel", "run", "--config"]).arg(path);
    command.stdout(log.try_clone()?).stderr(log);
    lab.start(host, &mut command)
}
