//! The tunnel's configuration file, in TOML.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use towpath_certs::authority::IdentityFiles;
use towpath_daemon::config::{
    self, Check, InvalidValue, MUST_BE_ABSOLUTE, absolute, loopback, nearest, within,
};
use towpath_daemon::units::Span;
use towpath_forecast::timetable::Week;
use towpath_forecast::zone::Zone;
use towpath_protocol::endpoint::Endpoint;
use towpath_protocol::fault::Fault;
use towpath_protocol::identity::Name;
use towpath_protocol::rate::Rate;
use towpath_protocol::size::Size;

use crate::channels::{CHANNEL_COUNT_MAX, ChannelSpec};
use crate::measuring::bench_service::SOCKET;
use crate::measuring::probe::{BYTES_MAX, BYTES_MIN};
use crate::shaping::shares::{Shaping, Shares};

/// Most peers of one tunnel; each costs two connections and their windows.
pub const PEER_COUNT_MAX: usize = 256;

/// Most services of one tunnel.
pub const SERVICE_COUNT_MAX: usize = 1024;

/// Most peers named in one error message, so that it stays readable.
const PEERS_NAMED_MAX: usize = 8;

/// The configuration of a tunnel daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// This host's site, as in its certificate.
    pub site: Name,
    /// This host's name within the site, as in its certificate.
    pub host: Name,
    /// UDP address at which links from peers are accepted. If absent, this side only dials.
    #[serde(default)]
    pub listen: Option<SocketAddr>,
    /// Unix socket at which local programs ask for streams.
    pub socket: PathBuf,
    /// Folder for state that survives a restart: the history of the forecasts, pushed channels, the
    /// newest revocation lists and the last good certificate. If absent, none of it is kept.
    #[serde(default)]
    pub state_dir: Option<PathBuf>,
    /// Time zone of timetables and of the days and nights in forecasts, such as `"Europe/Berlin"`.
    #[serde(default)]
    pub time_zone: Zone,
    /// Sites to keep a link to.
    #[serde(default)]
    pub peers: Vec<PeerConfig>,
    /// Local services that peers may reach.
    #[serde(default)]
    pub services: Vec<ServiceConfig>,
    /// Local listeners joined to services at peers.
    #[serde(default)]
    pub channels: Vec<ChannelSpec>,
    /// Addresses of the HTTP API for operators and scrapers.
    pub admin: AdminConfig,
    /// Files of this host's identity.
    pub certificates: CertificatesConfig,
    /// Limits. The defaults fit most sites.
    #[serde(default)]
    pub limits: Limits,
    /// The file this was read from, if any. SIGHUP reads it again.
    #[serde(skip)]
    pub(crate) file: Option<PathBuf>,
}

/// A site to keep a link to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerConfig {
    /// The peer's site.
    pub site: Name,
    /// UDP address of the peer's tunnel, `host:port`. If absent, the peer has to dial.
    #[serde(default)]
    pub address: Option<String>,
    /// Cap on the rate sent to the peer, counted on the wire, such as `"100Mbit"`; none if absent.
    #[serde(default)]
    pub send_rate: Option<Rate>,
    /// Caps on the rate sent by the time of the week, in place of `send_rate`, such as
    /// `"50Mbit 09:00-17:00 mon-fri, 200Mbit otherwise"`.
    #[serde(default)]
    pub send_timetable: Option<Week>,
    /// Cap on the rate received, which the peer is asked to keep to, counted on the wire; none if
    /// absent.
    #[serde(default)]
    pub receive_rate: Option<Rate>,
    /// Caps on the rate received by the time of the week, in place of `receive_rate`.
    #[serde(default)]
    pub receive_timetable: Option<Week>,
    /// Repeated measurements of the path to the peer; none if absent.
    #[serde(default)]
    pub probe: Option<ProbeConfig>,
    /// Shares of the classes in the rate sent, such as
    /// `bulk = { weight = 3, floor = "5Mbit", cap = "80Mbit" }`.
    #[serde(default, skip_serializing_if = "Shares::is_empty")]
    pub shares: Shares,
}

/// Interval and budget of repeated measurements of the path to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeConfig {
    /// Time between two measurements.
    pub interval: Span,
    /// Most bytes sent by each measurement.
    pub bytes: Size,
}

/// Least time between two measurements: more of them would be a load of their own.
const PROBE_INTERVAL_MIN: Duration = Duration::from_secs(10);

/// A local service that peers may reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceConfig {
    /// The name peers ask for.
    pub name: Name,
    /// Unix socket of a service that expects each stream to begin with who opened it, such as the
    /// migrator. Exclusive with `target`.
    #[serde(default, skip_serializing_if = "is_unset")]
    pub socket: PathBuf,
    /// Address of a service that expects only the bytes of each stream, such as
    /// `"tcp:127.0.0.1:80"`.
    #[serde(default)]
    pub target: Option<Endpoint>,
    /// Sites whose hosts may reach the service; all others are denied.
    pub allow: Vec<Name>,
    /// Cap on the rate the service sends to all peers together, counted on the wire; none if
    /// absent.
    #[serde(default)]
    pub cap: Option<Rate>,
}

/// Addresses of the HTTP API for operators and scrapers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminConfig {
    /// Unix socket of the HTTP API.
    pub socket: PathBuf,
    /// Loopback address of the same API, for scrapers and browsers.
    #[serde(default)]
    pub http: Option<SocketAddr>,
}

/// Files of this host's identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificatesConfig {
    /// This host's certificate.
    pub cert: PathBuf,
    /// The certificate's private key. Other users must not be able to read it.
    pub key: PathBuf,
    /// A second place for the private key: used if this key, and not `key`, belongs to the
    /// certificate. The file need not exist.
    #[serde(default)]
    pub next_key: Option<PathBuf>,
    /// The certificate of the authority, or of two while one replaces the other.
    pub ca: PathBuf,
    /// The revocation list of the authority, or of both while there are two. If absent, no
    /// certificate counts as revoked.
    #[serde(default)]
    pub crl: Option<PathBuf>,
}

/// Limits of one tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Most streams of local programs open at once: a few per moving guest and application.
    pub local_streams: usize,
    /// Most streams that a peer may have open at once on each of a link's two connections.
    pub peer_streams: u32,
    /// Longest time for a preamble to arrive in full.
    pub preamble_wait: Span,
    /// Longest time that a stream may be stuck because the other side does not read. For channels
    /// and the classes app and scavenger the limit holds only while they take too much room.
    pub stall_wait: Span,
    /// How long a stream outlives the loss of its link. After this time the stream ends.
    pub outage_wait: Span,
    /// Bytes kept of each stream and direction, to be sent again after a cut, however short the
    /// path. Fewer are kept if many streams are not read, more if the path holds more.
    pub resume_tail: Size,
    /// Memory of all links together for data in flight over long and fast paths, beyond the 16 MiB
    /// of sent data and the 24 MiB of unread data that each link may hold.
    pub window_memory: Size,
    /// Largest UDP payload to try, in bytes. 1452 fits a plain 1500-byte path over IPv6. With 8952,
    /// private links with jumbo frames carry more than twice as much per processor second.
    pub udp_payload_bytes: u16,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            local_streams: 256,
            peer_streams: 64,
            preamble_wait: Span::new(Duration::from_secs(5)),
            stall_wait: Span::new(Duration::from_secs(30)),
            outage_wait: Span::new(Duration::from_mins(10)),
            resume_tail: Size::from_bytes(1 << 20),
            window_memory: Size::from_bytes(256 << 20),
            udp_payload_bytes: 1452,
        }
    }
}

/// Valid values of `udp_payload_bytes`: QUIC requires 1200, and a jumbo frame of 9000 bytes holds
/// 8972 over IPv4.
pub const UDP_PAYLOAD_BYTES: RangeInclusive<u16> = 1200..=8972;

impl Check for Config {
    fn check(&self) -> Result<(), InvalidValue> {
        self.check_paths()?;
        self.check_peers()?;
        self.check_services()?;
        self.check_channels()?;
        if let Some(address) = self.admin.http {
            loopback("admin.http", address)?;
        }
        self.limits.check()
    }
}

impl Config {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    ///
    /// `E_CONFIG` with file, line, column and the fix.
    pub fn load(path: &Path) -> Result<Self, Fault> {
        let mut config: Self = config::load_checked(path)?;
        config.read_from(path.to_owned());
        Ok(config)
    }

    /// Records the file that this was read from, so that it can be read again.
    pub fn read_from(&mut self, file: PathBuf) {
        self.file = Some(file);
    }

    /// A configuration without peers, services and channels, with default limits.
    #[must_use]
    pub fn new(
        (site, host): (Name, Name),
        socket: PathBuf,
        admin_socket: PathBuf,
        certificates: CertificatesConfig,
    ) -> Self {
        Self {
            site,
            host,
            listen: None,
            socket,
            state_dir: None,
            time_zone: Zone::default(),
            peers: Vec::new(),
            services: Vec::new(),
            channels: Vec::new(),
            admin: AdminConfig {
                socket: admin_socket,
                http: None,
            },
            certificates,
            limits: Limits::default(),
            file: None,
        }
    }

    /// Fills in all defaults, as `config show` prints them.
    #[must_use]
    pub fn effective(mut self) -> Self {
        for peer in &mut self.peers {
            peer.shares = peer.shares.effective();
        }
        self
    }

    fn check_paths(&self) -> Result<(), InvalidValue> {
        let certificates = &self.certificates;
        let paths = [
            ("socket", Some(&self.socket)),
            ("state_dir", self.state_dir.as_ref()),
            ("admin.socket", Some(&self.admin.socket)),
            ("certificates.cert", Some(&certificates.cert)),
            ("certificates.key", Some(&certificates.key)),
            ("certificates.next_key", certificates.next_key.as_ref()),
            ("certificates.ca", Some(&certificates.ca)),
            ("certificates.crl", certificates.crl.as_ref()),
        ];
        for (key, path) in paths {
            path.map_or(Ok(()), |path| absolute(key, path))?;
        }
        if self.admin.socket == self.socket {
            let why = "is the programs' socket too; each needs its own";
            return Err(InvalidValue::new("admin.socket", why));
        }
        Ok(())
    }

    fn check_peers(&self) -> Result<(), InvalidValue> {
        if self.peers.len() > PEER_COUNT_MAX {
            let why = format!("at most {PEER_COUNT_MAX}");
            return Err(InvalidValue::new("peers", why));
        }
        let mut sites = BTreeSet::new();
        for (entry, peer) in self.peers.iter().enumerate() {
            let is_twice = !sites.insert(&peer.site);
            self.check_peer(peer, is_twice)
                .map_err(|wrong| wrong.in_entry(entry))?;
        }
        Ok(())
    }

    fn check_peer(&self, peer: &PeerConfig, is_twice: bool) -> Result<(), InvalidValue> {
        if peer.site == self.site {
            return Err(InvalidValue::new("peers.site", "is this site itself"));
        }
        if is_twice {
            let why = format!("{} stands there twice", peer.site);
            return Err(InvalidValue::new("peers.site", why));
        }
        peer.shaping().check()?;
        peer.check_probe()?;
        match &peer.address {
            None if self.listen.is_none() => {
                let why = format!("{} has none, and nothing is listened at either", peer.site);
                Err(InvalidValue::new("peers.address", why))
            }
            Some(text) if !is_host_and_port(text) => {
                let why = format!("{text:?} is no host with a port; write it as in \"host:4790\"");
                Err(InvalidValue::new("peers.address", why))
            }
            _ => Ok(()),
        }
    }

    fn check_services(&self) -> Result<(), InvalidValue> {
        if self.services.len() > SERVICE_COUNT_MAX {
            let why = format!("at most {SERVICE_COUNT_MAX}");
            return Err(InvalidValue::new("services", why));
        }
        let mut names = BTreeSet::new();
        for (entry, service) in self.services.iter().enumerate() {
            let wrong = |key: &str, why: String| {
                Err(InvalidValue::new(format!("services.{key}"), why).in_entry(entry))
            };
            if !names.insert(&service.name) {
                return wrong("name", format!("{} stands there twice", service.name));
            }
            if let Some(stranger) = service.allow.iter().find(|site| !self.is_peer(site)) {
                return wrong("allow", self.no_peer(stranger));
            }
            let socket = &service.socket;
            match (is_unset(socket), &service.target) {
                (true, None) => {
                    return wrong(
                        "name",
                        format!("{} needs a socket or a target", service.name),
                    );
                }
                (false, Some(_)) => {
                    let why = format!("{} has a socket too; leave one out", service.name);
                    return wrong("target", why);
                }
                (true, Some(_)) => {}
                (false, None) if socket.is_absolute() || socket.as_os_str() == SOCKET => {}
                (false, None) => {
                    return wrong("socket", format!("{MUST_BE_ABSOLUTE}, or be {SOCKET:?}"));
                }
            }
        }
        Ok(())
    }

    fn check_channels(&self) -> Result<(), InvalidValue> {
        if self.channels.len() > CHANNEL_COUNT_MAX {
            let why = format!("at most {CHANNEL_COUNT_MAX}");
            return Err(InvalidValue::new("channels", why));
        }
        let (mut names, mut listeners) = (BTreeSet::new(), BTreeSet::new());
        for (entry, channel) in self.channels.iter().enumerate() {
            let wrong = |key: &str, why: String| {
                Err(InvalidValue::new(format!("channels.{key}"), why).in_entry(entry))
            };
            if !names.insert(&channel.name) {
                return wrong("name", format!("{} stands there twice", channel.name));
            }
            if !channel.listen.is_any_port() && !listeners.insert(&channel.listen) {
                let why = format!("{} is another channel's too", channel.listen);
                return wrong("listen", why);
            }
            if !self.is_peer(&channel.peer) {
                return wrong("peer", self.no_peer(&channel.peer));
            }
        }
        Ok(())
    }

    fn is_peer(&self, site: &Name) -> bool {
        self.peers.iter().any(|peer| peer.site == *site)
    }

    /// The error text for a site that is no peer.
    fn no_peer(&self, site: &Name) -> String {
        let peers: Vec<_> = self.peers.iter().map(|peer| peer.site.as_str()).collect();
        match (nearest(site.as_str(), &peers), peers.is_empty()) {
            (Some(peer), _) => format!("{site} is no peer; did you mean \"{peer}\"?"),
            (None, true) => format!("{site} is no peer, and there is none; add it to [[peers]]"),
            (None, false) => {
                let named = peers.iter().take(PEERS_NAMED_MAX);
                let named: Vec<_> = named.map(|peer| format!("\"{peer}\"")).collect();
                let more = if peers.len() > named.len() {
                    " and others"
                } else {
                    ""
                };
                let named = named.join(", ");
                format!(
                    "{site} is no peer; those are {named}{more}: add it to [[peers]], or write one of them"
                )
            }
        }
    }
}

/// Whether a path was left out, and so is empty.
fn is_unset(path: &Path) -> bool {
    path.as_os_str().is_empty()
}

/// Whether a peer's address is a host and a port.
fn is_host_and_port(address: &str) -> bool {
    let is_host = |host: &str| !host.is_empty() && !host.contains(char::is_whitespace);
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    let parts = address.rsplit_once(':');
    parts.is_some_and(|(host, port)| is_host(host) && is_port(port))
}

impl PeerConfig {
    fn check_probe(&self) -> Result<(), InvalidValue> {
        let Some(probe) = &self.probe else {
            return Ok(());
        };
        if probe.interval.duration() < PROBE_INTERVAL_MIN {
            let why = "must be at least 10s";
            return Err(InvalidValue::new("peers.probe.interval", why));
        }
        let [least, most] = [BYTES_MIN, BYTES_MAX].map(Size::from_bytes);
        within("peers.probe.bytes", probe.bytes, &(least..=most))
    }

    /// A peer that dials this side, without a cap.
    #[must_use]
    pub fn new(site: Name) -> Self {
        Self {
            site,
            address: None,
            send_rate: None,
            send_timetable: None,
            receive_rate: None,
            receive_timetable: None,
            probe: None,
            shares: Shares::default(),
        }
    }

    /// The caps and shares for the peer.
    #[must_use]
    pub fn shaping(&self) -> Shaping {
        Shaping {
            send_rate: self.send_rate,
            send_timetable: self.send_timetable.clone(),
            receive_rate: self.receive_rate,
            receive_timetable: self.receive_timetable.clone(),
            shares: self.shares.clone(),
        }
    }
}

impl ServiceConfig {
    /// A service that expects each stream to begin with who opened it.
    #[must_use]
    pub const fn told(name: Name, socket: PathBuf, allow: Vec<Name>) -> Self {
        Self {
            name,
            socket,
            target: None,
            allow,
            cap: None,
        }
    }

    /// A service that expects only the bytes of each stream.
    #[must_use]
    pub const fn plain(name: Name, target: Endpoint, allow: Vec<Name>) -> Self {
        Self {
            name,
            socket: PathBuf::new(),
            target: Some(target),
            allow,
            cap: None,
        }
    }
}

impl From<IdentityFiles> for CertificatesConfig {
    /// The files as issued, without a revocation list.
    fn from(files: IdentityFiles) -> Self {
        Self {
            cert: files.cert,
            key: files.key,
            next_key: None,
            ca: files.ca,
            crl: None,
        }
    }
}

impl Limits {
    fn check(&self) -> Result<(), InvalidValue> {
        within("limits.local_streams", self.local_streams, &(1..=4096))?;
        within("limits.peer_streams", self.peer_streams, &(1..=1024))?;
        let payload = self.udp_payload_bytes;
        within("limits.udp_payload_bytes", payload, &UDP_PAYLOAD_BYTES)?;
        let (least, most) = (Duration::from_millis(100), Duration::from_mins(10));
        let wait = Span::new(least)..=Span::new(most);
        within("limits.preamble_wait", self.preamble_wait, &wait)?;
        within("limits.stall_wait", self.stall_wait, &wait)?;
        let outage = Span::new(least)..=Span::new(Duration::from_hours(24));
        within("limits.outage_wait", self.outage_wait, &outage)?;
        let size = Size::from_bytes;
        let tail = size(64 << 10)..=size(64 << 20);
        within("limits.resume_tail", self.resume_tail, &tail)?;
        let memory = size(0)..=size(16 << 30);
        within("limits.window_memory", self.window_memory, &memory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use towpath_protocol::class::Class;

    const GOOD: &str = r#"
        site = "edge"
        host = "box-1"
        listen = "0.0.0.0:7411"
        socket = "/run/towpath/tunnel.sock"

        [[peers]]
        site = "region"
        address = "region.example:7411"
        send_rate = "100Mbit"

        [[services]]
        name = "migrator"
        socket = "/run/towpath/moves.sock"
        allow = ["region"]

        [admin]
        socket = "/run/towpath/tunnel-admin.sock"
        http = "127.0.0.1:9411"

        [certificates]
        cert = "/etc/towpath/cert.pem"
        key = "/etc/towpath/key.pem"
        ca = "/etc/towpath/ca.pem"

        [limits]
        stall_wait = "10s"
    "#;

    fn check(text: &str) -> Result<Config, String> {
        config::check(Path::new("tunnel.toml"), text).map_err(|fault| fault.to_string())
    }

    #[test]
    fn a_plain_configuration_is_read_and_defaults_fill_the_rest() {
        let config = check(GOOD).unwrap();
        assert_eq!(config.peers[0].send_rate.unwrap().to_string(), "100Mbit");
        assert_eq!(config.limits.stall_wait.milliseconds(), 10_000);
        assert_eq!(config.limits.peer_streams, 64);
    }

    #[test]
    fn l06_wrong_configurations_are_refused_with_their_place() {
        for (from, to, word) in [
            ("site = \"edge\"", "sight = \"edge\"", "sight"),
            ("\"100Mbit\"", "\"fast\"", "fast"),
            ("\"100Mbit\"", "100", "tunnel.toml:10"),
            (
                "\"region\"\n        address",
                "\"edge\"\n        address",
                "itself",
            ),
            (
                "\"region\"\n        address",
                "\"../x\"\n        address",
                "not a name",
            ),
            ("127.0.0.1:9411", "0.0.0.0:9411", "loopback"),
            ("\"10s\"", "\"1h\"", "100ms to 10m, not 1h"),
            ("stall_wait = \"10s\"", "udp_payload_bytes = 9001", "8972"),
            (
                "[[services]]",
                "[[peers]]\nsite = \"region\"\n[[services]]",
                "twice",
            ),
        ] {
            assert!(GOOD.contains(from), "{from}");
            let error = check(&GOOD.replacen(from, to, 1)).unwrap_err();
            assert!(
                error.contains("E_CONFIG") && error.contains(word),
                "{error}"
            );
        }
    }

    #[test]
    fn l06_what_a_start_could_not_use_is_refused_at_its_own_entry() {
        let channel = |name, listen, peer| {
            format!(
                "\n[[channels]]\nname = \"{name}\"\nlisten = \"{listen}\"\npeer = \"{peer}\"\nservice = \"s\""
            )
        };
        let service = |more: &str| format!("\n[[services]]\nname = \"web\"\nallow = []\n{more}");
        let (socket, target) = ("socket = \"/s\"", "target = \"tcp:127.0.0.1:80\"");
        let add = |more: String| format!("{GOOD}{more}");
        let one = channel("one", "tcp:127.0.0.1:7001", "region");
        let change = |from: &str, to: &str| GOOD.replacen(from, to, 1);
        for (text, place) in [
            (
                change("/run/towpath/tunnel.sock", "run/tunnel.sock"),
                ":5:9: socket: must be an absolute",
            ),
            (
                format!("state_dir = \"rel/x\"{GOOD}"),
                ":1:1: state_dir: must be an absolute",
            ),
            (
                change("/etc/towpath/ca.pem", "ca.pem"),
                ":24:9: certificates.ca: must be an absolute",
            ),
            (
                change("-admin", ""),
                ":18:9: admin.socket: is the programs' socket too",
            ),
            (
                change("region.example:7411", "region.example"),
                ":9:9: peers.address: \"region.example\" is no host with a port",
            ),
            (
                change("region.example:7411", "region .example:7411"),
                ":9:9: peers.address: \"region .example:7411\" is no host",
            ),
            (
                change("/run/towpath/moves.sock", "builtin:bnch"),
                ":14:9: services.socket: must be an absolute",
            ),
            (
                add(service("")),
                ":30:1: services.name: web needs a socket or a target",
            ),
            (
                add(service(&format!("{socket}\n{target}"))),
                ":33:1: services.target: web has a socket too",
            ),
            (
                add(service("").replace("web", "migrator") + socket),
                ":30:1: services.name: migrator stands there twice",
            ),
            (
                add(one.clone() + &channel("two", "tcp:127.0.0.1:7001", "region")),
                ":36:1: channels.listen: tcp:127.0.0.1:7001 is another",
            ),
            (
                add(one.clone() + &channel("two", "udp:127.0.0.1:7001", "branch")),
                ":37:1: channels.peer: branch is no peer; those are \"region\"",
            ),
            (
                change("allow = [\"region\"]", "allow = [\"region\", \"regoin\"]"),
                ":15:9: services.allow: regoin is no peer; did you mean \"region\"?",
            ),
            (
                change(
                    "send_rate = \"100Mbit\"",
                    "shares = { app = { floor = \"1Mbit\" } }",
                ),
                ":10:28: peers.shares.app.floor: is a part of a cap, and there is none",
            ),
        ] {
            let error = check(&text).expect_err(place);
            assert!(error.contains(&format!("tunnel.toml{place}")), "{error}");
        }
        let any = channel("one", "tcp:127.0.0.1:0", "region")
            + &channel("two", "tcp:127.0.0.1:0", "region");
        for good in [any, service(target), service("socket = \"builtin:bench\"")] {
            check(&add(good)).unwrap();
        }
    }

    #[test]
    fn l06_a_wrong_timetable_is_refused_with_line_and_column() {
        let with = |timetable: &str| {
            let lines = format!("address = \"r:1\"\n        send_timetable = \"{timetable}\"");
            let text = GOOD.replacen("address = \"region.example:7411\"", &lines, 1);
            check(&text.replacen("send_rate = \"100Mbit\"", "", 1))
        };
        let good = with("50Mbit 09:00-17:00 mon-fri, 200Mbit otherwise").unwrap();
        assert!(good.peers[0].send_timetable.is_some());
        let error = with("50Mbit 09:00-17:00 mon-fry, 200Mbit otherwise").unwrap_err();
        assert!(error.contains("tunnel.toml:10"), "{error}");
        assert!(error.contains("column 20"), "{error}");
        let both = GOOD.replacen(
            "send_rate",
            "send_timetable = \"1Mbit otherwise\"\n        send_rate",
            1,
        );
        assert!(check(&both).unwrap_err().contains("send_timetable"));
        let zone = format!("time_zone = \"Europe/Berlim\"\n{GOOD}");
        assert!(check(&zone).unwrap_err().contains("tunnel.toml:1:13"));
    }

    #[test]
    fn l06_a_probe_says_how_often_and_how_much_or_is_refused() {
        let with = |probe: &str| {
            let table = format!("[peers.probe]\n{probe}\n\n        [[services]]");
            check(&GOOD.replacen("[[services]]", &table, 1))
        };
        let good = with("interval = \"1h\"\nbytes = \"4MiB\"").unwrap();
        assert_eq!(good.peers[0].probe.unwrap().bytes.bytes(), 4 << 20);
        assert!(
            check(GOOD).unwrap().peers[0].probe.is_none(),
            "off by default"
        );
        for (probe, word) in [
            ("interval = \"1s\"\nbytes = \"4MiB\"", "interval"),
            ("interval = \"1h\"\nbytes = \"4KiB\"", "bytes"),
            ("interval = \"1h\"", "bytes"),
            (
                "interval = \"1h\"\nbytes = \"4MiB\"\nclass = \"bulk\"",
                "class",
            ),
        ] {
            assert!(with(probe).unwrap_err().contains(word), "{probe}");
        }
    }

    #[test]
    fn l06_shares_are_read_and_wrong_ones_refused_with_their_place() {
        let with = |shares: &str| {
            let lines = format!("send_rate = \"100Mbit\"\n[peers.shares]\n{shares}");
            check(&GOOD.replacen("send_rate = \"100Mbit\"", &lines, 1))
        };
        let good = "bulk = { weight = 3, floor = \"5Mbit\", cap = \"80Mbit\" }\n[peers.shares.app]\nweight = 9";
        let shares = &with(good).unwrap().peers[0].shares;
        assert_eq!(shares.weight(Class::Bulk), Some(3));
        assert_eq!(shares.weight(Class::App), Some(9));
        assert_eq!(shares.weight(Class::Scavenger), Some(0));
        assert_eq!(shares.of(Class::Bulk).cap.unwrap().to_string(), "80Mbit");
        for (wrong, word) in [
            ("bulk = { wait = 3 }", "wait"),
            ("bolk = { weight = 3 }", "bolk"),
            ("bulk = { weight = 1001 }", "1000"),
            ("bulk = { weight = -1 }", "tunnel.toml:12"),
            ("demand = { weight = 2 }", "goes ahead"),
            ("control = { floor = \"1Mbit\" }", "goes ahead"),
            (
                "app = { floor = \"9Mbit\", cap = \"8Mbit\" }",
                "above the cap",
            ),
            (
                "app = { floor = \"60Mbit\" }\nbulk = { floor = \"50Mbit\" }",
                "send_rate",
            ),
        ] {
            let error = with(wrong).unwrap_err();
            let is_meant = error.contains("E_CONFIG") && error.contains(word);
            assert!(is_meant && error.contains("tunnel.toml:"), "{error}");
        }
    }

    #[test]
    fn a_peer_that_can_neither_be_dialled_nor_dial_is_refused() {
        let text = GOOD
            .replace("listen = \"0.0.0.0:7411\"", "")
            .replace("address = \"region.example:7411\"", "");
        assert!(check(&text).unwrap_err().contains("peers.address"));
    }
}
