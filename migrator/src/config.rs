//! The migrator's configuration file.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use towpath_daemon::config::{self, Check, InvalidValue, absolute, loopback, within};
use towpath_daemon::log;
use towpath_daemon::units::Span;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::{HostIdentity, Name};
use towpath_protocol::size::Size;

/// The packaged migrator's folder for state that survives a restart.
pub const STATE_DIR_DEFAULT: &str = "/var/lib/towpath/migrator";

/// The packaged migrator's folder for sockets.
pub const RUN_DIR_DEFAULT: &str = "/run/towpath";

/// Shortest `offer_wait`: a few round trips, and time for the source to look for the guest's pages.
const OFFER_WAIT_MIN: Duration = Duration::from_secs(1);

/// Longest `offer_wait`: after this time a guest that does not run yet is given up in any case.
const OFFER_WAIT_MAX: Duration = Duration::from_mins(10);

/// The running program's file, which stays reachable here even if its path now names another file.
const RUNNING_PROGRAM: &str = "/proc/self/exe";

/// Most guests of a host. Each has a process, a worker thread, a journal file and a folder.
const GUESTS_MAX: u32 = crate::store::GUEST_COUNT_MAX;

/// Smallest memory quota: with less, no guest fits.
const MEMORY_MIN: Size = Size::from_bytes(1 << 20);

/// Largest memory quota: 1 PiB is more than any host has, so a larger value is a mistake in the
/// unit.
const MEMORY_MAX: Size = Size::from_bytes(1 << 50);

/// Most moves at once, outgoing to all peers or incoming from one. More would divide one link into
/// useless shares, and each move has its own threads.
pub(crate) const MOVES_MAX: u32 = 64;

/// Most packing threads per move: more than any link needs.
const CODEC_THREADS_MAX: u32 = 64;

/// Most guests with their own metrics series, to protect the scraper's memory.
const METRICS_GUESTS_MAX: u32 = 1000;

/// The configuration of one host's migrator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The authority's domain, as in this host's certificate.
    pub trust_domain: Name,
    /// The site this host is at.
    pub site: Name,
    /// This host's name within the site.
    pub host: Name,
    /// The folder for state that survives a restart: journals, consoles, lists of received blocks.
    #[serde(default = "state_dir_default")]
    pub state_dir: PathBuf,
    /// The folder of all sockets whose paths are not set below.
    #[serde(default = "run_dir_default")]
    pub run_dir: PathBuf,
    /// The operators' socket; `<run_dir>/migrator.sock` if absent.
    pub socket: Option<PathBuf>,
    /// The tunnel's socket for new streams; `<run_dir>/tunnel.sock` if absent.
    pub tunnel_socket: Option<PathBuf>,
    /// The socket to which the tunnel hands incoming streams; `<run_dir>/migrator-service.sock` if
    /// absent.
    pub service_socket: Option<PathBuf>,
    /// A loopback address for reading status and metrics over TCP; none if absent.
    pub listen: Option<SocketAddr>,
    /// The command that starts a guest; this program's `guest-process` if absent.
    pub guest_command: Option<Vec<String>>,
    /// Limits on what guests may use of this host.
    #[serde(default)]
    pub quota: Quota,
    /// Limits on what moves may use of this host.
    #[serde(default)]
    pub limits: Limits,
    /// Options of the metrics.
    #[serde(default)]
    pub metrics: MetricsOptions,
    /// Options of the log.
    #[serde(default)]
    pub log: log::Options,
}

/// Limits on what guests may use of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quota {
    /// Memory of all guests together, including those being received.
    pub memory: Size,
    /// Number of guests.
    pub guests: u32,
}

impl Default for Quota {
    fn default() -> Self {
        Self {
            memory: Size::from_bytes(16 << 30),
            guests: 64,
        }
    }
}

/// Limits on what moves may use of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Guests that may leave at the same time; more would only share one link.
    pub outgoing: u32,
    /// Guests that one peer may send at the same time.
    pub incoming_per_peer: u32,
    /// How long an offer without data keeps its place, and so how long a peer can hold resources
    /// here by messages alone.
    pub offer_wait: Span,
    /// Packing threads per move. Each has a bounded queue of blocks before and after it.
    pub codec_threads: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            outgoing: 4,
            incoming_per_peer: 4,
            offer_wait: Span::new(Duration::from_mins(1)),
            codec_threads: 2,
        }
    }
}

/// Options of the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsOptions {
    /// Whether each guest has its own series.
    pub per_guest: bool,
    /// Most guests that have their own series.
    pub guests_max: u32,
}

impl Default for MetricsOptions {
    fn default() -> Self {
        Self {
            per_guest: false,
            guests_max: 100,
        }
    }
}

fn state_dir_default() -> PathBuf {
    STATE_DIR_DEFAULT.into()
}

fn run_dir_default() -> PathBuf {
    RUN_DIR_DEFAULT.into()
}

impl Config {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    ///
    /// `E_CONFIG` with file, line, column and the fix.
    pub fn load(path: &Path) -> Result<Self, Fault> {
        config::load_checked(path)
    }

    /// This host's identity, as in its certificate.
    #[must_use]
    pub fn identity(&self) -> HostIdentity {
        HostIdentity {
            trust_domain: self.trust_domain.clone(),
            site: self.site.clone(),
            host: self.host.clone(),
        }
    }

    /// The operators' socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.in_run_dir(self.socket.as_ref(), "migrator.sock")
    }

    /// The tunnel's socket for new streams.
    #[must_use]
    pub fn tunnel_socket(&self) -> PathBuf {
        self.in_run_dir(self.tunnel_socket.as_ref(), "tunnel.sock")
    }

    /// The socket to which the tunnel hands incoming streams.
    #[must_use]
    pub fn service_socket(&self) -> PathBuf {
        self.in_run_dir(self.service_socket.as_ref(), "migrator-service.sock")
    }

    /// The command that starts a guest.
    ///
    /// # Errors
    ///
    /// `E_IO` if this program's own path cannot be determined.
    pub fn guest_command(&self) -> Result<Vec<String>, Fault> {
        if let Some(command) = &self.guest_command {
            return Ok(command.clone());
        }
        let own = std::env::current_exe()
            .map_err(|error| Fault::new(Code::Io, format!("own program's path: {error}")))?;
        // If the program was replaced since, for example by an upgrade, its old file is still
        // reachable through `/proc`.
        let own = if own.exists() {
            own
        } else {
            PathBuf::from(RUNNING_PROGRAM)
        };
        let own = own.into_os_string().into_string().map_err(|path| {
            Fault::new(
                Code::Path,
                format!("own program's path {path:?} is not UTF-8"),
            )
        })?;
        Ok(vec![own, "guest-process".to_owned()])
    }

    /// Fills in all defaults, as `config show` prints them.
    ///
    /// # Errors
    ///
    /// As [`Config::guest_command`].
    pub fn effective(self) -> Result<Self, Fault> {
        Ok(Self {
            socket: Some(self.socket()),
            tunnel_socket: Some(self.tunnel_socket()),
            service_socket: Some(self.service_socket()),
            guest_command: Some(self.guest_command()?),
            ..self
        })
    }

    fn in_run_dir(&self, path: Option<&PathBuf>, name: &str) -> PathBuf {
        path.map_or_else(|| self.run_dir.join(name), Clone::clone)
    }
}

impl Check for Config {
    fn check(&self) -> Result<(), InvalidValue> {
        self.check_paths()?;
        self.check_sockets()?;
        if let Some(address) = self.listen {
            loopback("listen", address)?;
        }
        if self.guest_command.as_ref().is_some_and(Vec::is_empty) {
            let why = "must name a program, or be left out";
            return Err(InvalidValue::new("guest_command", why));
        }
        self.quota.check()?;
        self.limits.check()?;
        let guests = self.metrics.guests_max;
        within("metrics.guests_max", guests, &(1..=METRICS_GUESTS_MAX))?;
        self.log.check()
    }
}

impl Config {
    fn check_paths(&self) -> Result<(), InvalidValue> {
        let paths = [
            ("state_dir", Some(&self.state_dir)),
            ("run_dir", Some(&self.run_dir)),
            ("socket", self.socket.as_ref()),
            ("tunnel_socket", self.tunnel_socket.as_ref()),
            ("service_socket", self.service_socket.as_ref()),
        ];
        for (key, path) in paths {
            path.map_or(Ok(()), |path| absolute(key, path))?;
        }
        Ok(())
    }

    /// Checks that no two sockets have the same path.
    fn check_sockets(&self) -> Result<(), InvalidValue> {
        let (own, tunnels, service) = (self.socket(), self.tunnel_socket(), self.service_socket());
        let others = [("tunnel_socket", &tunnels), ("service_socket", &service)];
        if let Some((key, _)) = others.into_iter().find(|(_, path)| **path == own) {
            let why = "is the operators' socket too; each needs its own";
            return Err(InvalidValue::new(key, why));
        }
        if tunnels == service {
            let why = "is the socket for new streams too; each needs its own";
            return Err(InvalidValue::new("service_socket", why));
        }
        Ok(())
    }
}

impl Quota {
    fn check(&self) -> Result<(), InvalidValue> {
        within("quota.guests", self.guests, &(1..=GUESTS_MAX))?;
        within("quota.memory", self.memory, &(MEMORY_MIN..=MEMORY_MAX))
    }
}

impl Limits {
    fn check(&self) -> Result<(), InvalidValue> {
        within("limits.outgoing", self.outgoing, &(1..=MOVES_MAX))?;
        let incoming = self.incoming_per_peer;
        within("limits.incoming_per_peer", incoming, &(1..=MOVES_MAX))?;
        let threads = self.codec_threads;
        within("limits.codec_threads", threads, &(1..=CODEC_THREADS_MAX))?;
        let wait = Span::new(OFFER_WAIT_MIN)..=Span::new(OFFER_WAIT_MAX);
        within("limits.offer_wait", self.offer_wait, &wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = "trust_domain = \"d\"\nsite = \"edge\"\nhost = \"box\"\n";

    fn parse(more: &str) -> Result<Config, Fault> {
        config::check(Path::new("m.toml"), &format!("{LEAST}{more}"))
    }

    #[test]
    fn the_least_configuration_has_defaults_for_the_rest() {
        let config = parse("").unwrap();
        assert_eq!(config.socket(), Path::new("/run/towpath/migrator.sock"));
        assert_eq!(config.identity().uri(), "spiffe://d/site/edge/host/box");
        assert_eq!(config.quota, Quota::default());
        assert!(
            config
                .guest_command()
                .unwrap()
                .ends_with(&["guest-process".to_owned()])
        );
        let moved = parse("run_dir = \"/x\"\nsocket = \"/y.sock\"\n[quota]\nmemory = \"1GiB\"");
        let moved = moved.unwrap();
        assert_eq!(moved.socket(), Path::new("/y.sock"));
        assert_eq!(moved.tunnel_socket(), Path::new("/x/tunnel.sock"));
        assert_eq!(moved.quota.memory.bytes(), 1 << 30);
        let text = toml::to_string(&moved).unwrap();
        assert_eq!(
            config::check::<Config>(Path::new("x"), &text).unwrap(),
            moved
        );
    }

    #[test]
    fn l06_values_that_cannot_be_meant_are_refused_at_their_place() {
        for (more, parts) in [
            ("socket = \"x.sock\"", ["m.toml:4:1: socket: ", "absolute"]),
            ("listen = \"0.0.0.0:1\"", [":4:1: listen: ", "loopback"]),
            ("guest_command = []", [":4:1: guest_command: ", "program"]),
            (
                "[quota]\nguests = 0",
                [":5:1: quota.guests: ", "1 to 4096, not 0"],
            ),
            (
                "[quota]\nmemory = \"1KiB\"",
                [":5:1: quota.memory: ", "1MiB to 1024TiB"],
            ),
            (
                "socket = \"/x/s\"\nservice_socket = \"/x/s\"",
                [":5:1: service_socket: ", "the operators' socket too"],
            ),
            (
                "socket = \"/run/towpath/tunnel.sock\"",
                ["tunnel_socket: ", "the operators' socket too"],
            ),
            (
                "[log]\nfilter = \"bogus=bogus\"",
                [":5:1: log.filter: ", "bogus"],
            ),
            (
                "[limits]\noffer_wait = \"1h\"",
                [":5:1: limits.offer_wait: ", "1s to 10m"],
            ),
            ("[quota]\nmemory = \"lots\"", [":5:10: ", "not a size"]),
            ("[qouta]\nguests = 1", [":4:2: ", "did you mean `quota`?"]),
        ] {
            let fault = parse(more).expect_err(more);
            assert_eq!(fault.code, Code::Config);
            for part in parts {
                assert!(
                    fault.detail.contains(part),
                    "{} lacks {part:?}",
                    fault.detail
                );
            }
        }
        let fault = config::check::<Config>(Path::new("m"), "site = \"../x\"").unwrap_err();
        assert!(fault.detail.contains("is not a name"), "{fault}");
    }
}
