//! Hosts on one machine: network namespaces, joined by one virtual cable, or each by a cable of its
//! own to a shared line.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::program::Process;
use crate::sites::Failure;

/// The name of the cable's interface at every host.
pub const CABLE: &str = "cable";

/// The namespace between the hosts in labs with a line. It has a cable to each host, and that
/// cable's interface in it is named after the host.
const LINE: &str = "line";

/// Milliseconds between ARP requests for an address on the cable.
const ASK_MS: &str = "20";

/// A host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    /// Where programs connect.
    Edge,
    /// Where their service is.
    Region,
    /// A second edge, in labs with a line.
    Other,
}

impl Host {
    /// The two hosts of every lab.
    pub const PAIR: [Self; 2] = [Self::Edge, Self::Region];

    /// All hosts of a lab with a line.
    pub const ALL: [Self; 3] = [Self::Edge, Self::Region, Self::Other];

    /// Its address on the cable.
    #[must_use]
    pub const fn address(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.network(), 1)
    }

    /// The line's address on its cable.
    #[must_use]
    pub const fn line_address(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.network(), 254)
    }

    const fn network(self) -> u8 {
        match self {
            Self::Edge => 0,
            Self::Region => 1,
            Self::Other => 2,
        }
    }

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Edge => "edge",
            Self::Region => "region",
            Self::Other => "other",
        }
    }
}

/// The hosts. They are removed when this is dropped.
#[derive(Debug)]
pub struct Lab {
    /// The prefix of every namespace's name, and the names themselves.
    prefix: String,
    names: Vec<String>,
    /// The ends of the cables: the host, and the interface's name there.
    ends: Vec<(&'static str, &'static str)>,
}

impl Lab {
    /// Makes two hosts and a cable that carries packets of `mtu` bytes.
    ///
    /// # Errors
    ///
    /// If the namespaces cannot be created: that needs root, and `ip`.
    pub fn new(mtu: u16) -> Result<Self, Failure> {
        let mut lab = Self::empty()?;
        for host in Host::PAIR {
            lab.add(host.name())?;
        }
        let [edge, region] = Host::PAIR.map(Host::name);
        lab.join([(edge, CABLE), (region, CABLE)])?;
        for host in Host::PAIR {
            // A prefix length that covers both.
            lab.plug((host.name(), CABLE), &format!("{}/16", host.address()))?;
        }
        lab.set_mtu(mtu)?;
        Ok(lab)
    }

    /// Makes all hosts, with a line between them: packets reach another host only if the line
    /// forwards them.
    ///
    /// # Errors
    ///
    /// As [`Lab::new`].
    pub fn with_line(mtu: u16) -> Result<Self, Failure> {
        let mut lab = Self::empty()?;
        lab.add(LINE)?;
        for host in Host::ALL {
            let (near, far) = ((host.name(), CABLE), (LINE, host.name()));
            lab.add(host.name())?;
            lab.join([near, far])?;
            lab.plug(near, &format!("{}/24", host.address()))?;
            lab.plug(far, &format!("{}/24", host.line_address()))?;
        }
        lab.set_mtu(mtu)?;
        Ok(lab)
    }

    fn empty() -> Result<Self, Failure> {
        if !rustix::process::geteuid().is_root() {
            return Err("network namespaces need root".into());
        }
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let (id, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        Ok(Self {
            prefix: format!("towpath-{id}-{count}"),
            names: Vec::new(),
            ends: Vec::new(),
        })
    }

    fn add(&mut self, place: &str) -> Result<(), Failure> {
        let name = self.name(place);
        run("ip", &["netns", "add", &name])?;
        self.names.push(name);
        self.ip_at(place, &["link", "set", "lo", "up"])
    }

    /// Connects two places by a cable, with an interface name for each end.
    fn join(&mut self, ends: [(&'static str, &'static str); 2]) -> Result<(), Failure> {
        let [(place, name), (peer_place, peer_name)] = ends;
        let peer_place = self.name(peer_place);
        let cable = ["link", "add", name, "type", "veth"];
        let peer = ["peer", "name", peer_name, "netns", &peer_place];
        self.ip_at(place, &[&cable[..], &peer].concat())?;
        self.ends.extend(ends);
        Ok(())
    }

    /// Gives a cable's interface its address, and brings it up.
    fn plug(&self, (place, name): (&str, &str), address: &str) -> Result<(), Failure> {
        self.ip_at(place, &["addr", "add", address, "dev", name])?;
        // After a cable is unplugged, the kernel by default sends ARP requests once a second only,
        // however much is waiting to be sent.
        let table = ["ntable", "change", "name", "arp_cache", "dev", name];
        self.ip_at(place, &[&table[..], &["retrans", ASK_MS]].concat())?;
        self.ip_at(place, &["link", "set", name, "up"])
    }

    /// Sets the MTU of all cables.
    ///
    /// # Errors
    ///
    /// The error output of `ip`.
    pub fn set_mtu(&self, mtu: u16) -> Result<(), Failure> {
        for (place, name) in &self.ends {
            self.ip_at(place, &["link", "set", name, "mtu", &mtu.to_string()])?;
        }
        Ok(())
    }

    /// Runs `ip` in a host's namespace.
    ///
    /// # Errors
    ///
    /// Its error output.
    pub fn ip(&self, host: Host, arguments: &[&str]) -> Result<(), Failure> {
        self.ip_at(host.name(), arguments)
    }

    /// Runs `ip` in the line's namespace, where each cable is named after its host.
    ///
    /// # Errors
    ///
    /// Its error output.
    pub fn ip_of_line(&self, arguments: &[&str]) -> Result<(), Failure> {
        self.ip_at(LINE, arguments)
    }

    fn ip_at(&self, place: &str, arguments: &[&str]) -> Result<(), Failure> {
        run("ip", &[&["-n", &self.name(place)], arguments].concat())
    }

    /// Runs `tc` in a host's namespace.
    ///
    /// # Errors
    ///
    /// Its error output.
    pub fn tc(&self, host: Host, arguments: &[&str]) -> Result<(), Failure> {
        run(
            "tc",
            &[&["-n", &self.name(host.name())], arguments].concat(),
        )
    }

    /// Runs a function in a host's network namespace. Sockets and processes that it opens belong
    /// there.
    ///
    /// # Errors
    ///
    /// Its error, or that the namespace cannot be entered.
    pub fn at<T: Send>(
        &self,
        host: Host,
        what: impl FnOnce() -> Result<T, Failure> + Send,
    ) -> Result<T, Failure> {
        self.at_place(host.name(), what)
    }

    /// Runs a function in the line's network namespace.
    ///
    /// # Errors
    ///
    /// As [`Lab::at`].
    pub fn at_line<T: Send>(
        &self,
        what: impl FnOnce() -> Result<T, Failure> + Send,
    ) -> Result<T, Failure> {
        self.at_place(LINE, what)
    }

    fn at_place<T: Send>(
        &self,
        place: &str,
        what: impl FnOnce() -> Result<T, Failure> + Send,
    ) -> Result<T, Failure> {
        let space = File::open(format!("/run/netns/{}", self.name(place)))?;
        thread::scope(|scope| {
            // On a thread of its own, because a thread that has entered a namespace stays there.
            let inside = scope.spawn(move || {
                move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network))?;
                what()
            });
            inside.join().map_err(|_| "a thread panicked")?
        })
    }

    /// The inodes of the network namespaces.
    ///
    /// # Errors
    ///
    /// If one no longer exists.
    pub fn spaces(&self) -> io::Result<Vec<u64>> {
        let inode = |name: &String| Ok(fs::metadata(format!("/run/netns/{name}"))?.ino());
        self.names.iter().map(inode).collect()
    }

    /// Starts a program on a host.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn start(&self, host: Host, command: &mut Command) -> Result<Process, Failure> {
        command.stdin(Stdio::null());
        self.at(host, || Process::start(command))
    }

    /// Connects from a host.
    ///
    /// # Errors
    ///
    /// The system's error.
    pub fn connect(&self, host: Host, to: SocketAddr) -> Result<TcpStream, Failure> {
        self.at(host, || Ok(TcpStream::connect(to)?))
    }

    /// Listens on a host.
    ///
    /// # Errors
    ///
    /// The system's error.
    pub fn listen(&self, host: Host, at: SocketAddr) -> Result<TcpListener, Failure> {
        self.at(host, || Ok(TcpListener::bind(at)?))
    }

    /// The name of a place's namespace.
    fn name(&self, place: &str) -> String {
        format!("{}-{place}", self.prefix)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in &self.names {
            // Fails if something else has removed it already, which does no harm.
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<(), Failure> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {}: {}", arguments.join(" "), said.trim()).into())
}

/// Reports that a bench cannot run here: on standard error, and as a report with only the reason.
///
/// # Errors
///
/// If the report cannot be written.
pub fn report_skipped(schema: &str, why: &str) -> io::Result<()> {
    eprintln!("skipped: {why}");
    let report = serde_json::json!({ "schema": schema, "skipped": why });
    writeln!(io::stdout().lock(), "{report:#}")
}
