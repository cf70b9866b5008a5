//! The tunnels that are compared, each with the settings its manual recommends for this use.
//!
//! Where a cipher can be chosen it is AES-128-GCM, the one we use.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use towpath_bench::lab::{Host, Lab};
use towpath_bench::program::{Process, write_config};
use towpath_bench::sites::{Failure, add_channel, site, sites_that_meet};
use towpath_certs::Authority;
use towpath_protocol::class::Class;
use towpath_protocol::endpoint::Endpoint;
use towpath_tunnel::config::UDP_PAYLOAD_BYTES;

/// The name of an earlier build of ours, to compare with this one.
const EARLIER: &str = "earlier";

/// Ports: where programs connect at the edge, where the tunnels meet, and where the service is.
const DOOR: u16 = 7001;
const MEETING: u16 = 7002;
const SERVICE: u16 = 7003;

/// Bytes of the IPv4 and UDP headers before the QUIC packet.
const HEADER_BYTES: u16 = 28;

/// Timeout for a new interface to get its addresses.
const INTERFACE_WAIT: Duration = Duration::from_secs(5);

/// A tunnel to compare.
pub(crate) struct Contender {
    pub(crate) name: &'static str,
    /// The address that the program connects to at the edge.
    pub(crate) door: SocketAddr,
    /// The address on which the service listens at the region.
    pub(crate) service: SocketAddr,
    /// Writes keys and configurations, once; an error is the reason it cannot be measured here.
    pub(crate) prepare: fn(&Place<'_>) -> Result<(), Failure>,
    /// Starts its processes.
    pub(crate) start: fn(&Place<'_>, &File, &mut Vec<Process>) -> Result<(), Failure>,
}

/// The environment in which a tunnel is measured.
pub(crate) struct Place<'a> {
    pub(crate) lab: &'a Lab,
    /// Its own folder.
    pub(crate) folder: PathBuf,
    mtu: u16,
}

impl<'a> Place<'a> {
    pub(crate) fn new(
        lab: &'a Lab,
        folder: &Path,
        contender: &Contender,
        mtu: u16,
    ) -> Result<Self, Failure> {
        let folder = folder.join(contender.name);
        fs::create_dir_all(&folder)?;
        Ok(Self { lab, folder, mtu })
    }

    fn path(&self, file: &str) -> String {
        self.folder.join(file).display().to_string()
    }

    fn write(&self, file: &str, text: &str) -> Result<(), Failure> {
        let path = self.folder.join(file);
        fs::write(&path, text)?;
        // Some of these are keys, which programs refuse if others can read them.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        Ok(())
    }

    /// Runs a program to its end; returns its output.
    fn run(&self, program: &str, arguments: &[&str]) -> Result<String, Failure> {
        let mut command = Command::new(find(program)?);
        let output = command.args(arguments).current_dir(&self.folder).output()?;
        if output.status.success() {
            return Ok(String::from_utf8(output.stdout)?);
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("{program}: {}", said.trim()).into())
    }

    /// Starts a program on a host.
    fn start(
        &self,
        host: Host,
        (program, arguments): (&str, &[&str]),
        said: &File,
        processes: &mut Vec<Process>,
    ) -> Result<(), Failure> {
        let mut command = Command::new(find(program)?);
        command.args(arguments).current_dir(&self.folder);
        keep_words(&mut command, said)?;
        processes.push(self.lab.start(host, &mut command)?);
        Ok(())
    }
}

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// The name of our tunnel, which the others are compared with.
pub(crate) const OURS: &str = "towpath";

/// All tunnels, ours first.
pub(crate) const ALL: [Contender; 7] = [
    Contender {
        name: OURS,
        door: loopback(DOOR),
        service: loopback(SERVICE),
        prepare: prepare_towpath,
        start: start_towpath,
    },
    Contender {
        name: EARLIER,
        door: loopback(DOOR),
        service: loopback(SERVICE),
        prepare: |place| find_earlier().and_then(|_| prepare_towpath(place)),
        start: |place, said, processes| start_tunnels(&find_earlier()?, place, said, processes),
    },
    Contender {
        name: "stunnel",
        door: loopback(DOOR),
        service: loopback(SERVICE),
        prepare: prepare_stunnel,
        start: start_stunnel,
    },
    Contender {
        name: "ssh",
        door: loopback(DOOR),
        service: loopback(SERVICE),
        prepare: prepare_ssh,
        start: start_ssh,
    },
    Contender {
        name: "rathole",
        door: loopback(DOOR),
        service: loopback(SERVICE),
        prepare: prepare_rathole,
        start: start_rathole,
    },
    Contender {
        name: "nebula",
        door: SocketAddr::new(std::net::IpAddr::V4(NEBULA[1]), SERVICE),
        service: SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), SERVICE),
        prepare: prepare_nebula,
        start: start_nebula,
    },
    Contender {
        name: "boringtun",
        door: SocketAddr::new(std::net::IpAddr::V4(WIREGUARD[1]), SERVICE),
        service: SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), SERVICE),
        prepare: prepare_boringtun,
        start: start_boringtun,
    },
];

/// Addresses inside the tunnels that are networks: edge and region.
const NEBULA: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 78, 0, 1), Ipv4Addr::new(10, 78, 0, 2)];
const WIREGUARD: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 79, 0, 1), Ipv4Addr::new(10, 79, 0, 2)];

/// Redirects a process's output into a file.
fn keep_words(command: &mut Command, said: &File) -> Result<(), Failure> {
    command.stdout(said.try_clone()?).stderr(said.try_clone()?);
    Ok(())
}

/// Finds a program, also in the folders of an administrator's path.
fn find(program: &str) -> Result<PathBuf, Failure> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
        .ok_or_else(|| format!("{program} is not installed").into())
}

fn prepare_towpath(place: &Place<'_>) -> Result<(), Failure> {
    let meeting = SocketAddr::from((Host::Region.address(), MEETING));
    let mut configs = sites_that_meet(&place.folder, meeting)?;
    let way = [DOOR, SERVICE].map(loopback).map(Endpoint::Tcp);
    add_channel(&mut configs, ("forward", Class::Bulk), way)?;
    for config in &mut configs {
        config.limits.udp_payload_bytes = (place.mtu - HEADER_BYTES).min(*UDP_PAYLOAD_BYTES.end());
        write_config(&place.folder, config)?;
    }
    Ok(())
}

fn start_towpath(
    place: &Place<'_>,
    said: &File,
    processes: &mut Vec<Process>,
) -> Result<(), Failure> {
    start_tunnels(&std::env::current_exe()?, place, said, processes)
}

/// Finds an earlier build of this bench, to measure the effect of a change.
fn find_earlier() -> Result<PathBuf, Failure> {
    let path = std::env::var_os("TOWPATH_EARLIER").ok_or("TOWPATH_EARLIER names no build")?;
    Ok(path.into())
}

fn start_tunnels(
    program: &Path,
    place: &Place<'_>,
    said: &File,
    processes: &mut Vec<Process>,
) -> Result<(), Failure> {
    for host in [Host::Region, Host::Edge] {
        let config = place.path(&format!("{}.toml", host.name()));
        let mut command = Command::new(program);
        keep_words(command.args(["tunnel", &config]), said)?;
        processes.push(place.lab.start(host, &mut command)?);
    }
    Ok(())
}

fn prepare_stunnel(place: &Place<'_>) -> Result<(), Failure> {
    find("stunnel")?;
    let authority = Authority::init(&place.folder.join("ca"), &"bench.example".parse()?)?;
    let meeting = SocketAddr::from((Host::Region.address(), MEETING));
    for (own, peer, words) in [
        (
            "edge",
            "region",
            format!(
                "client = yes\naccept = {}\nconnect = {meeting}",
                loopback(DOOR)
            ),
        ),
        (
            "region",
            "edge",
            format!("accept = {meeting}\nconnect = {}", loopback(SERVICE)),
        ),
    ] {
        let files = site(&authority, &place.folder, own, peer)?.certificates;
        let (cert, key, ca) = (
            files.cert.display(),
            files.key.display(),
            files.ca.display(),
        );
        place.write(
            &format!("{own}.conf"),
            &format!(
                "foreground = yes\npid =\nsyslog = no\n[forward]\n{words}\ncert = {cert}\nkey = {key}\n\
                 CAfile = {ca}\nverifyChain = yes\nsslVersion = TLSv1.3\n\
                 ciphersuites = TLS_AES_128_GCM_SHA256\n"
            ),
        )?;
    }
    Ok(())
}

fn start_stunnel(
    place: &Place<'_>,
    said: &File,
    processes: &mut Vec<Process>,
) -> Result<(), Failure> {
    for host in [Host::Region, Host::Edge] {
        let config = place.path(&format!("{}.conf", host.name()));
        place.start(host, ("stunnel", &[&config]), said, processes)?;
    }
    Ok(())
}

fn prepare_ssh(place: &Place<'_>) -> Result<(), Failure> {
    let sshd = find("sshd")?;
    find("ssh")?;
    for key in ["host", "user"] {
        let path = place.path(key);
        place.run(
            "ssh-keygen",
            &["-q", "-t", "ed25519", "-N", "", "-f", &path],
        )?;
    }
    let (host, allowed) = (place.path("host"), place.path("user.pub"));
    place.write(
        "sshd.conf",
        &format!(
            "ListenAddress {}:{MEETING}\nHostKey {host}\nAuthorizedKeysFile {allowed}\n\
             PermitRootLogin yes\nStrictModes no\nUsePAM no\nPidFile none\n",
            Host::Region.address()
        ),
    )?;
    // The folder of its unprivileged process; a service manager would have created it.
    fs::create_dir_all("/run/sshd")?;
    place.run(
        &sshd.display().to_string(),
        &["-t", "-f", &place.path("sshd.conf")],
    )?;
    Ok(())
}

fn start_ssh(place: &Place<'_>, said: &File, processes: &mut Vec<Process>) -> Result<(), Failure> {
    let config = place.path("sshd.conf");
    place.start(
        Host::Region,
        ("sshd", &["-D", "-e", "-f", &config]),
        said,
        processes,
    )?;
    wait_for_port(place, SocketAddr::from((Host::Region.address(), MEETING)))?;
    let (key, forward) = (
        place.path("user"),
        format!("{}:{}", loopback(DOOR), loopback(SERVICE)),
    );
    let (port, target) = (
        MEETING.to_string(),
        format!("root@{}", Host::Region.address()),
    );
    let arguments = [
        "-N",
        "-F",
        "none",
        "-i",
        &key,
        "-p",
        &port,
        "-c",
        "aes128-gcm@openssh.com",
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "UserKnownHostsFile=/dev/null",
        "-o",
        "BatchMode=yes",
        "-L",
        &forward,
        &target,
    ];
    place.start(Host::Edge, ("ssh", &arguments), said, processes)
}

/// Waits until something listens at the region.
fn wait_for_port(place: &Place<'_>, at: SocketAddr) -> Result<(), Failure> {
    wait_until(
        || place.lab.connect(Host::Edge, at).is_ok(),
        "nobody listens",
    )
}

fn wait_until(mut is_so: impl FnMut() -> bool, otherwise: &str) -> Result<(), Failure> {
    let began = std::time::Instant::now();
    while !is_so() {
        if began.elapsed() > INTERFACE_WAIT {
            return Err(otherwise.into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn prepare_rathole(place: &Place<'_>) -> Result<(), Failure> {
    let keys = place.run("rathole", &["--genkey"])?;
    let key = |title: &str| {
        let mut lines = keys
            .lines()
            .skip_while(|line| !line.starts_with(title))
            .skip(1);
        lines.next().ok_or("rathole gives no keys")
    };
    let (private, public) = (key("Private Key")?, key("Public Key")?);
    // Programs connect to its server; the side with the service dials.
    let meeting = SocketAddr::from((Host::Edge.address(), MEETING));
    let (door, service) = (loopback(DOOR), loopback(SERVICE));
    let noise = |role: &str, key: &str| {
        format!("[{role}.transport]\ntype = \"noise\"\n[{role}.transport.noise]\n{key}\n")
    };
    place.write(
        "edge.toml",
        &format!(
            "[server]\nbind_addr = \"{meeting}\"\ndefault_token = \"bench\"\n{}\
             [server.services.forward]\nbind_addr = \"{door}\"\n",
            noise("server", &format!("local_private_key = \"{private}\""))
        ),
    )?;
    place.write(
        "region.toml",
        &format!(
            "[client]\nremote_addr = \"{meeting}\"\ndefault_token = \"bench\"\n{}\
             [client.services.forward]\nlocal_addr = \"{service}\"\n",
            noise("client", &format!("remote_public_key = \"{public}\""))
        ),
    )
}

fn start_rathole(
    place: &Place<'_>,
    said: &File,
    processes: &mut Vec<Process>,
) -> Result<(), Failure> {
    for (host, role) in [(Host::Edge, "--server"), (Host::Region, "--client")] {
        let config = place.path(&format!("{}.toml", host.name()));
        place.start(host, ("rathole", &[role, &config]), said, processes)?;
    }
    Ok(())
}

fn prepare_nebula(place: &Place<'_>) -> Result<(), Failure> {
    find("nebula")?;
    let certs = |arguments: &[&str]| place.run("nebula-cert", arguments).map(drop);
    certs(&["ca", "-name", "bench"])?;
    for (host, address) in Host::PAIR.into_iter().zip(NEBULA) {
        let name = host.name();
        certs(&["sign", "-name", name, "-ip", &format!("{address}/24")])?;
        let (ca, cert, key) = (
            place.path("ca.crt"),
            place.path(&format!("{name}.crt")),
            place.path(&format!("{name}.key")),
        );
        let map = Host::PAIR.into_iter().zip(NEBULA).map(|(host, address)| {
            format!("  \"{address}\": [\"{}:{MEETING}\"]\n", host.address())
        });
        place.write(
            &format!("{name}.yml"),
            &format!(
                "pki: {{ca: {ca}, cert: {cert}, key: {key}}}\nstatic_host_map:\n{}\
                 lighthouse: {{am_lighthouse: false}}\nlisten: {{host: 0.0.0.0, port: {MEETING}}}\n\
                 cipher: aes\ntun: {{dev: nebula}}\n\
                 firewall:\n  outbound: [{{port: any, proto: any, host: any}}]\n  \
                 inbound: [{{port: any, proto: any, host: any}}]\n",
                map.collect::<String>()
            ),
        )?;
    }
    Ok(())
}

fn start_nebula(
    place: &Place<'_>,
    said: &File,
    processes: &mut Vec<Process>,
) -> Result<(), Failure> {
    for host in Host::PAIR {
        let config = place.path(&format!("{}.yml", host.name()));
        place.start(host, ("nebula", &["-config", &config]), said, processes)?;
    }
    Ok(())
}

fn prepare_boringtun(place: &Place<'_>) -> Result<(), Failure> {
    find("boringtun-cli")?;
    for host in Host::PAIR {
        let name = host.name();
        let key = place.run("wg", &["genkey"])?;
        place.write(&format!("{name}.key"), &key)?;
        let public = format!("wg pubkey < {}", place.path(&format!("{name}.key")));
        place.write(&format!("{name}.pub"), &place.run("sh", &["-c", &public])?)?;
    }
    Ok(())
}

fn start_boringtun(
    place: &Place<'_>,
    said: &File,
    processes: &mut Vec<Process>,
) -> Result<(), Failure> {
    let id = std::process::id() % 100_000;
    for (index, host) in Host::PAIR.into_iter().enumerate() {
        // Its socket is in a folder that both hosts share.
        let interface = format!("tow{id}-{index}");
        let arguments = ["--foreground", "--disable-drop-privileges", &interface];
        place.start(host, ("boringtun-cli", &arguments), said, processes)?;
        let socket = PathBuf::from(format!("/var/run/wireguard/{interface}.sock"));
        // `wg` removes a socket that exists but does not listen yet.
        wait_until(
            || UnixStream::connect(&socket).is_ok(),
            "boringtun-cli makes no interface",
        )?;
        let peer = Host::PAIR[1 - index];
        let public = fs::read_to_string(place.path(&format!("{}.pub", peer.name())))?;
        let (key, port) = (
            place.path(&format!("{}.key", host.name())),
            MEETING.to_string(),
        );
        let (inside, outside) = (
            format!("{}/32", WIREGUARD[1 - index]),
            format!("{}:{MEETING}", peer.address()),
        );
        place.run(
            "wg",
            &[
                "set",
                &interface,
                "private-key",
                &key,
                "listen-port",
                &port,
                "peer",
                public.trim(),
                "allowed-ips",
                &inside,
                "endpoint",
                &outside,
            ],
        )?;
        let own = format!("{}/24", WIREGUARD[index]);
        place
            .lab
            .ip(host, &["addr", "add", &own, "dev", &interface])?;
        place
            .lab
            .ip(host, &["link", "set", &interface, "mtu", "1420", "up"])?;
    }
    Ok(())
}
