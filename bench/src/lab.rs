//! Two hosts on one machine: network namespaces joined by a virtual cable.

use std::fs::File;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::program::Process;
use crate::sites::Failure;

/// The cable's name at both hosts.
pub const CABLE: &str = "cable";

/// One of the two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    /// Where programs connect.
    Edge,
    /// Where their service is.
    Region,
}

impl Host {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Edge, Self::Region];

    /// Its address on the cable.
    #[must_use]
    pub const fn address(self) -> Ipv4Addr {
        match self {
            Self::Edge => Ipv4Addr::new(10, 77, 0, 1),
            Self::Region => Ipv4Addr::new(10, 77, 0, 2),
        }
    }

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Edge => "edge",
            Self::Region => "region",
        }
    }
}

/// The two hosts, until they are dropped.
#[derive(Debug)]
pub struct Lab {
    /// Names of the namespaces.
    names: [String; 2],
}

impl Lab {
    /// Makes the hosts and a cable that carries packets of `mtu` bytes.
    ///
    /// # Errors
    ///
    /// Why they cannot be had: that needs root, and `ip`.
    pub fn new(mtu: u16) -> Result<Self, Failure> {
        if !rustix::process::geteuid().is_root() {
            return Err("network namespaces need root".into());
        }
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let (id, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let names = Host::ALL.map(|host| format!("towpath-{id}-{count}-{}", host.name()));
        let lab = Self { names };
        for name in &lab.names {
            run("ip", &["netns", "add", name])?;
        }
        let [edge, region] = &lab.names;
        let cable = ["-n", edge, "link", "add", CABLE, "type", "veth"];
        run(
            "ip",
            &[&cable[..], &["peer", "name", CABLE, "netns", region]].concat(),
        )?;
        for (host, name) in Host::ALL.into_iter().zip(&lab.names) {
            let address = format!("{}/24", host.address());
            run("ip", &["-n", name, "addr", "add", &address, "dev", CABLE])?;
            run("ip", &["-n", name, "link", "set", "lo", "up"])?;
            run("ip", &["-n", name, "link", "set", CABLE, "up"])?;
        }
        lab.set_mtu(mtu)?;
        Ok(lab)
    }

    /// Changes the size of the packets that the cable carries.
    ///
    /// # Errors
    ///
    /// What `ip` says.
    pub fn set_mtu(&self, mtu: u16) -> Result<(), Failure> {
        for host in Host::ALL {
            self.ip(host, &["link", "set", CABLE, "mtu", &mtu.to_string()])?;
        }
        Ok(())
    }

    /// Runs `ip` about one host.
    ///
    /// # Errors
    ///
    /// What it says.
    pub fn ip(&self, host: Host, arguments: &[&str]) -> Result<(), Failure> {
        run("ip", &[&["-n", self.name(host)], arguments].concat())
    }

    /// Runs `tc` about one host.
    ///
    /// # Errors
    ///
    /// What it says.
    pub fn tc(&self, host: Host, arguments: &[&str]) -> Result<(), Failure> {
        run("tc", &[&["-n", self.name(host)], arguments].concat())
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
        let space = File::open(format!("/run/netns/{}", self.name(host)))?;
        thread::scope(|scope| {
            // A thread of its own, for it stays there.
            let inside = scope.spawn(move || {
                move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network))?;
                what()
            });
            inside.join().map_err(|_| "a thread panicked")?
        })
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

    fn name(&self, host: Host) -> &str {
        match host {
            Host::Edge => &self.names[0],
            Host::Region => &self.names[1],
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in &self.names {
            // One that was never made cannot be removed, and that is as well.
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
