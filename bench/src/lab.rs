//! Hosts on one machine: network namespaces joined by a virtual cable, or by one each to a line between them.

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

/// The cable's name at every host.
pub const CABLE: &str = "cable";

/// What is between the hosts of some labs, and has a cable to each: it is called there as the host is.
const LINE: &str = "line";

/// Milliseconds after which a host asks again who has an address on its cable.
const ASK_MS: &str = "20";

/// One of the hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    /// Where programs connect.
    Edge,
    /// Where their service is.
    Region,
    /// A second edge, where there is a line between the hosts.
    Other,
}

impl Host {
    /// The two that every lab has.
    pub const PAIR: [Self; 2] = [Self::Edge, Self::Region];

    /// All that there are around a line.
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

/// The hosts, until they are dropped.
#[derive(Debug)]
pub struct Lab {
    /// What the names of all namespaces begin with, and each of them.
    prefix: String,
    names: Vec<String>,
    /// The ends of the cables: where, and what they are called there.
    ends: Vec<(&'static str, &'static str)>,
}

impl Lab {
    /// Makes two hosts and a cable that carries packets of `mtu` bytes.
    ///
    /// # Errors
    ///
    /// Why they cannot be had: that needs root, and `ip`.
    pub fn new(mtu: u16) -> Result<Self, Failure> {
        let mut lab = Self::empty()?;
        for host in Host::PAIR {
            lab.add(host.name())?;
        }
        let [edge, region] = Host::PAIR.map(Host::name);
        lab.join([(edge, CABLE), (region, CABLE)])?;
        for host in Host::PAIR {
            // Wide enough for both.
            lab.plug((host.name(), CABLE), &format!("{}/16", host.address()))?;
        }
        lab.set_mtu(mtu)?;
        Ok(lab)
    }

    /// Makes all hosts, with a line between them: nothing comes from one to another but what it carries.
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

    /// Lays a cable between two places, each with a name for its end.
    fn join(&mut self, ends: [(&'static str, &'static str); 2]) -> Result<(), Failure> {
        let [(place, name), (peer_place, peer_name)] = ends;
        let peer_place = self.name(peer_place);
        let cable = ["link", "add", name, "type", "veth"];
        let peer = ["peer", "name", peer_name, "netns", &peer_place];
        self.ip_at(place, &[&cable[..], &peer].concat())?;
        self.ends.extend(ends);
        Ok(())
    }

    /// Gives the end of a cable its address, and uses it.
    fn plug(&self, (place, name): (&str, &str), address: &str) -> Result<(), Failure> {
        self.ip_at(place, &["addr", "add", address, "dev", name])?;
        // Behind a cable that was pulled the kernel asks for its neighbour once a second, whatever is to be sent.
        let table = ["ntable", "change", "name", "arp_cache", "dev", name];
        self.ip_at(place, &[&table[..], &["retrans", ASK_MS]].concat())?;
        self.ip_at(place, &["link", "set", name, "up"])
    }

    /// Changes the size of the packets that cables carry.
    ///
    /// # Errors
    ///
    /// What `ip` says.
    pub fn set_mtu(&self, mtu: u16) -> Result<(), Failure> {
        for (place, name) in &self.ends {
            self.ip_at(place, &["link", "set", name, "mtu", &mtu.to_string()])?;
        }
        Ok(())
    }

    /// Runs `ip` about one host.
    ///
    /// # Errors
    ///
    /// What it says.
    pub fn ip(&self, host: Host, arguments: &[&str]) -> Result<(), Failure> {
        self.ip_at(host.name(), arguments)
    }

    /// Runs `ip` about the line, where a host's cable is called as the host is.
    ///
    /// # Errors
    ///
    /// What it says.
    pub fn ip_of_line(&self, arguments: &[&str]) -> Result<(), Failure> {
        self.ip_at(LINE, arguments)
    }

    fn ip_at(&self, place: &str, arguments: &[&str]) -> Result<(), Failure> {
        run("ip", &[&["-n", &self.name(place)], arguments].concat())
    }

    /// Runs `tc` about one host.
    ///
    /// # Errors
    ///
    /// What it says.
    pub fn tc(&self, host: Host, arguments: &[&str]) -> Result<(), Failure> {
        run(
            "tc",
            &[&["-n", &self.name(host.name())], arguments].concat(),
        )
    }

    /// Runs something with one host's network: what it opens and starts belongs there.
    ///
    /// # Errors
    ///
    /// What it says, or that the host cannot be entered.
    pub fn at<T: Send>(
        &self,
        host: Host,
        what: impl FnOnce() -> Result<T, Failure> + Send,
    ) -> Result<T, Failure> {
        self.at_place(host.name(), what)
    }

    /// Runs something with the line's network.
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
            // A thread of its own, for it stays there.
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
    /// If one is not there any more.
    pub fn spaces(&self) -> io::Result<Vec<u64>> {
        let inode = |name: &String| Ok(fs::metadata(format!("/run/netns/{name}"))?.ino());
        self.names.iter().map(inode).collect()
    }

    /// Starts a program at one host.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn start(&self, host: Host, command: &mut Command) -> Result<Process, Failure> {
        command.stdin(Stdio::null());
        self.at(host, || Process::start(command))
    }

    /// Connects at one host.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn connect(&self, host: Host, to: SocketAddr) -> Result<TcpStream, Failure> {
        self.at(host, || Ok(TcpStream::connect(to)?))
    }

    /// Listens at one host.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn listen(&self, host: Host, at: SocketAddr) -> Result<TcpListener, Failure> {
        self.at(host, || Ok(TcpListener::bind(at)?))
    }

    /// The namespace of a place.
    fn name(&self, place: &str) -> String {
        format!("{}-{place}", self.prefix)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in &self.names {
            // One that somebody else has removed cannot be, and that is as well.
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

/// Says that a bench cannot run here: as a report with the reason alone, and to people.
///
/// # Errors
///
/// If nobody reads it.
pub fn report_skipped(schema: &str, why: &str) -> io::Result<()> {
    eprintln!("skipped: {why}");
    let report = serde_json::json!({ "schema": schema, "skipped": why });
    writeln!(io::stdout().lock(), "{report:#}")
}
