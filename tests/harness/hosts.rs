//! Hosts with networks of their own, a tunnel daemon on each, and a line between them that can be bad.
//!
//! ```text
//!  host "edge"                         line                                     host "region"
//!  programs ─TCP, UDP─► towpath ══ cable ══► relay (rate, delay, loss, cut) ══ cable ══► towpath ─► services
//! ```
//!
//! The line has a network of its own, so that a cable can be pulled at either end of either one.

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
use towpath_protocol::channel::Class;
use towpath_protocol::endpoint::Endpoint;
use towpath_tunnel::channels::ChannelSpec;
use towpath_tunnel::config::{Config, PeerConfig, ServiceConfig};
use towpath_tunnel::status::{ChannelView, LinkView, StatusView};

use crate::process::show_log;
use crate::program::towpath;
use crate::stolen::Watch;

/// Where programs connect at the edge: to send, to be sent to, and for datagrams.
const UP_DOOR: u16 = 7001;
const DOWN_DOOR: u16 = 7002;
const DATAGRAM_DOOR: u16 = 7003;

/// Where a tunnel listens, and where the line to it begins, at the region and at the other edge.
const MEETING: u16 = 7010;
const LINE: u16 = 7011;
const OTHER_LINE: u16 = 7012;

/// Where the services are.
const SINK: u16 = 7021;
const SOURCE: u16 = 7022;
const ECHO: u16 = 7023;

/// Packets of the cable.
const MTU: u16 = 1500;

/// Longest any wait may take: a test that needs it fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a program waits for its datagram to come back before it sends another.
const DATAGRAM_WAIT: Duration = Duration::from_secs(3);

/// Bytes of an Ethernet header.
const FRAME_HEADER_BYTES: u64 = 14;

/// Time between two looks, and between those that measure a time.
const LOOK: Duration = Duration::from_millis(10);
const CLOSE_LOOK: Duration = Duration::from_millis(1);

/// A prime, so that bytes that were lost or said twice are never hidden by the pattern's period.
const PERIOD: usize = 1_000_003;

/// Bytes that must have come for a flow to go on.
pub const SOME_BYTES: u64 = 200_000;

/// More than is on its way of a flow over any line whose pauses are measured: a queue and a round trip of
/// 50 Mbit/s, and what of a stream goes again over another link.
const ON_ITS_WAY_BYTES: u64 = 2_000_000;

/// The two hosts. Dropping them ends all that runs there.
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
    /// Builds the hosts with a line between them, and waits until bytes pass. Gives nothing, and says so,
    /// where no such hosts can be had.
    ///
    /// # Panics
    ///
    /// If what can be had does not start.
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

    /// What rules the line.
    #[must_use]
    pub const fn control(&self) -> &Control {
        &self.control
    }

    /// Changes what the line does to what each side sends.
    ///
    /// # Panics
    ///
    /// If that is no line.
    pub fn set_line(&self, from_edge: Direction, from_region: Direction) {
        for (side, line) in [(Side::A, from_edge), (Side::B, from_region)] {
            self.control.set(side, line).expect("a line that changes");
        }
    }

    /// Where the certificates of both sites, and their authority, are.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Runs `ip` about a host.
    ///
    /// # Panics
    ///
    /// With what it says, if it fails.
    pub fn ip(&self, host: Host, words: &str) {
        let words: Vec<&str> = words.split(' ').collect();
        self.lab.ip(host, &words).expect("ip does what it is told");
    }

    /// Runs `ip` about the line, where a host's cable is called as the host is.
    ///
    /// # Panics
    ///
    /// With what it says, if it fails.
    pub fn ip_of_line(&self, words: &str) {
        let words: Vec<&str> = words.split(' ').collect();
        let done = self.lab.ip_of_line(&words);
        done.expect("ip does what it is told");
    }

    /// Changes the size of the packets that the cables carry.
    ///
    /// # Panics
    ///
    /// With what `ip` says, if it fails.
    pub fn set_mtu(&self, mtu: u16) {
        self.lab.set_mtu(mtu).expect("a size that cables can have");
    }

    /// Begins to measure a time.
    #[must_use]
    pub fn watch(&self) -> Watch {
        let mut processes: Vec<u32> = self.daemons.iter().map(Process::id).collect();
        // Programs and line are threads of this one.
        processes.push(std::process::id());
        let spaces = self.lab.spaces().expect("namespaces that are there");
        Watch::start(processes, spaces)
    }

    /// Has something done, after which each flow goes on within a time.
    ///
    /// # Panics
    ///
    /// If one does not, or breaks.
    pub fn back_within(&self, most: Duration, flows: &[Flow], what: &str, mend: impl FnOnce()) {
        let before: Vec<u64> = flows.iter().map(Flow::received).collect();
        let mut watch = self.watch();
        mend();
        for (flow, before) in flows.iter().zip(before) {
            flow.wait(what, CLOSE_LOOK, || flow.received() > before);
        }
        watch.at_most(most, &format!("a first byte after {what}"));
    }

    /// Has something done in spite of which no flow stands still for longer than a time.
    ///
    /// # Panics
    ///
    /// If one does, or breaks.
    pub fn pauses_within(&self, most: Duration, flows: &[Flow], what: &str, change: impl FnOnce()) {
        let mut watch = self.watch();
        for flow in flows {
            flow.pause().restart();
        }
        change();
        for flow in flows {
            // What was on its way comes still.
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

    /// Starts the tunnel of the other edge, which ours has to be told of: [`other_is_peer`]. It has a service `up`
    /// where the region has one.
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
    /// What its tunnel says.
    pub fn open(&self, spec: &ChannelSpec) -> Result<ChannelView, Problem> {
        let client = Client::new(&self.configs[0].admin.socket);
        self.runtime.block_on(client.post("/v1/channels", spec))
    }

    /// Takes a channel back from the edge.
    ///
    /// # Errors
    ///
    /// What its tunnel says.
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
    /// What the system says.
    pub fn connect(&self, door: u16) -> Result<TcpStream, Failure> {
        let socket = self.lab.connect(Host::Edge, loopback(door))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    }

    /// Listens where the service `up` of a host is.
    ///
    /// # Panics
    ///
    /// If it cannot.
    #[must_use]
    pub fn listen(&self, host: Host) -> TcpListener {
        let listener = self.lab.listen(host, loopback(SINK));
        listener.expect("a port that is free")
    }

    /// Is the service `up` of a host, for as long as the test's process lives: it says its word to whoever connects,
    /// and then what it hears.
    ///
    /// # Panics
    ///
    /// If it cannot.
    pub fn serve(&self, host: Host, word: &'static [u8]) {
        let listener = self.listen(host);
        thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                // Whoever has gone does not hear it.
                thread::spawn(move || answer(socket, word));
            }
        });
    }

    /// Bytes of IP that a host has sent and received on its cable.
    ///
    /// # Panics
    ///
    /// If the kernel does not tell.
    #[must_use]
    pub fn wire_bytes(&self, host: Host) -> [u64; 2] {
        let read = || Ok(std::fs::read_to_string("/proc/thread-self/net/dev")?);
        let text = self.lab.at(host, read).expect("counters");
        let mut lines = text.lines().filter_map(|line| line.split_once(':'));
        let cable = lines.find(|(name, _)| name.trim() == CABLE);
        let (_, counts) = cable.expect("a cable");
        let counts = counts.split_ascii_whitespace().map(str::parse);
        let counts: Vec<u64> = counts.collect::<Result<_, _>>().expect("numbers");
        // Received bytes and packets first, and eight fields later those that were sent.
        [8, 0].map(|at| counts[at] - counts[at + 1] * FRAME_HEADER_BYTES)
    }

    /// Has a host's tunnel read its files again.
    ///
    /// # Panics
    ///
    /// If it is not there any more.
    pub fn reload(&self, host: Host) {
        self.signal(host, Signal::HUP);
    }

    /// Has a host's tunnel stand still for a time, as a machine does that is paused or out of memory.
    ///
    /// # Panics
    ///
    /// If it is not there any more.
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

    /// Begins a flow of bytes from the edge to the region.
    ///
    /// # Panics
    ///
    /// If there is no connection.
    #[must_use]
    pub fn flow_up(&self) -> Flow {
        self.flow(UP_DOOR, SINK, |near, far| (near, far))
    }

    /// Begins a flow of bytes from the region to the edge.
    ///
    /// # Panics
    ///
    /// If there is no connection.
    #[must_use]
    pub fn flow_down(&self) -> Flow {
        self.flow(DOWN_DOOR, SOURCE, |near, far| (far, near))
    }

    /// Begins a flow from the edge to the service `up`, through a channel that was pushed.
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
        // As programs at the host are, so that a time counts what they wait for a processor.
        let flow = self.lab.at(Host::Edge, || Ok(Flow::start(from, to)));
        flow.expect("threads")
    }

    /// Sends a datagram of so many bytes until one comes back, as programs do.
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

/// Bytes that one program sends to another, each of which is checked when it comes.
#[derive(Debug)]
pub struct Flow {
    is_over: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    pause: Arc<Mutex<Pause>>,
    /// What the programs were told at their ends.
    told: Arc<Mutex<Vec<String>>>,
    writing: JoinHandle<std::io::Result<u64>>,
    reading: JoinHandle<std::io::Result<u64>>,
}

/// How long nothing came.
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

/// Remembers how a program ended.
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
            // The other side has read all before it closes.
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

    /// Bytes that have come so far.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Whether one of the two programs was told that it is over.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.writing.is_finished() || self.reading.is_finished()
    }

    /// Waits until some more have come.
    ///
    /// # Panics
    ///
    /// If none do, or the flow broke.
    pub fn goes_on(&self, whatever_happened: &str) {
        let wanted = self.received() + SOME_BYTES;
        self.wait(whatever_happened, LOOK, || self.received() >= wanted);
    }

    /// Waits until something is so of a flow that does not break.
    fn wait(&self, whatever_happened: &str, look: Duration, mut is_so: impl FnMut() -> bool) {
        let what = format!("bytes after {whatever_happened}");
        until_looking(look, &what, || {
            // What fails below fails without the lock.
            let told = self.told.lock().expect("nothing panics there").clone();
            assert!(!self.is_broken(), "{whatever_happened}: {told:?}");
            is_so()
        });
    }

    /// Ends it from the side that sends, and checks that all has come; gives how much that was.
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

/// Waits until something is so.
///
/// # Panics
///
/// If it never is.
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

/// The other edge is a peer of ours.
///
/// # Panics
///
/// Never: its name is one.
pub fn other_is_peer(configs: &mut [Config; 2]) {
    let mut peer = PeerConfig::new(Host::Other.name().parse().expect("a name"));
    peer.address = Some(line_begins(OTHER_LINE).to_string());
    configs[0].peers.push(peer);
}

/// Says a word and then what it hears, to the end.
fn answer(mut socket: TcpStream, word: &[u8]) -> std::io::Result<()> {
    socket.write_all(word)?;
    std::io::copy(&mut socket.try_clone()?, &mut socket)?;
    socket.shutdown(std::net::Shutdown::Write)
}

/// Where the line begins for the edge.
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

/// Answers every datagram with itself, for as long as the test's process lives.
fn echo(socket: UdpSocket) -> Result<(), Failure> {
    thread::Builder::new().spawn(move || {
        let mut bytes = vec![0; 64 * 1024];
        while let Ok((count, from)) = socket.recv_from(&mut bytes) {
            // Whoever has gone does not hear it.
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
