//! The address where a program listens on its own host: `tcp:127.0.0.1:80`, `udp:[::1]:53`,
//! `unix:/run/till.sock`.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::fault::{Code, Fault};

/// Longest path of a Unix socket that the kernel accepts, in bytes without the final zero.
const PATH_BYTES_MAX: usize = 107;

/// The address where a program listens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Endpoint {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A UDP address.
    Udp(SocketAddr),
    /// A Unix stream socket.
    Unix(PathBuf),
}

impl Endpoint {
    /// Whether it receives datagrams instead of a byte stream.
    #[must_use]
    pub const fn is_datagrams(&self) -> bool {
        matches!(self, Self::Udp(_))
    }

    /// Whether the system chooses the port of what listens there.
    #[must_use]
    pub const fn is_any_port(&self) -> bool {
        match self {
            Self::Tcp(address) | Self::Udp(address) => address.port() == 0,
            Self::Unix(_) => false,
        }
    }

    /// Whether a listener at another endpoint is what this one asks for: it is the same, or the port is left to the
    /// system.
    #[must_use]
    pub fn is_met_by(&self, there: &Self) -> bool {
        match (self, there) {
            (Self::Tcp(asked), Self::Tcp(there)) | (Self::Udp(asked), Self::Udp(there)) => {
                let is_port = asked.port() == 0 || asked.port() == there.port();
                asked.ip() == there.ip() && is_port
            }
            _ => self == there,
        }
    }

    /// Whether a program that listens there can be reached at every address of its host.
    #[must_use]
    pub const fn is_everywhere(&self) -> bool {
        match self {
            Self::Tcp(address) | Self::Udp(address) => address.ip().is_unspecified(),
            Self::Unix(_) => false,
        }
    }
}

impl FromStr for Endpoint {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let wrong = || {
            let shown: String = text.chars().take(120).collect();
            if let Some(port) = port_above_most(text) {
                let detail = format!("port {port} of {shown:?} is above {}", u16::MAX);
                return Fault::new(Code::Config, detail);
            }
            if text.starts_with("builtin:") {
                let detail = format!("{shown:?} is no address; write `socket = {shown:?}`");
                return Fault::new(Code::Config, detail);
            }
            let detail = format!(
                "{shown:?} is not tcp:ADDRESS:PORT, udp:ADDRESS:PORT or unix:/PATH; ADDRESS is an IP address, for \
                 names are not looked up here"
            );
            Fault::new(Code::Config, detail)
        };
        let (kind, rest) = text.split_once(':').ok_or_else(wrong)?;
        match kind {
            "tcp" => rest.parse().map(Self::Tcp).map_err(|_| wrong()),
            "udp" => rest.parse().map(Self::Udp).map_err(|_| wrong()),
            "unix" => {
                let is_good = Path::new(rest).is_absolute()
                    && rest.len() <= PATH_BYTES_MAX
                    && !rest.contains(char::is_control);
                is_good.then(|| Self::Unix(rest.into())).ok_or_else(wrong)
            }
            _ => Err(wrong()),
        }
    }
}

/// The port of an address whose only mistake may be that no port has so large a number.
fn port_above_most(text: &str) -> Option<u64> {
    let (_, port) = text.rsplit_once(':')?;
    let is_number = (1..10).contains(&port.len()) && port.bytes().all(|byte| byte.is_ascii_digit());
    let port = is_number.then(|| port.parse().ok())??;
    (port > u64::from(u16::MAX)).then_some(port)
}

impl TryFrom<String> for Endpoint {
    type Error = Fault;

    fn try_from(text: String) -> Result<Self, Fault> {
        text.parse()
    }
}

impl From<Endpoint> for String {
    fn from(endpoint: Endpoint) -> Self {
        endpoint.to_string()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp:{address}"),
            Self::Udp(address) => write!(f, "udp:{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_round_trip_as_text() {
        for text in ["tcp:127.0.0.1:80", "udp:[::1]:53", "unix:/run/till.sock"] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        assert!("udp:[::1]:53".parse::<Endpoint>().unwrap().is_datagrams());
    }

    #[test]
    fn an_address_of_every_interface_is_known_as_such() {
        for (text, is_everywhere) in [
            ("tcp:0.0.0.0:80", true),
            ("udp:[::]:53", true),
            ("tcp:127.0.0.1:80", false),
            ("unix:/run/till.sock", false),
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint.is_everywhere(), is_everywhere, "{text}");
        }
    }

    #[test]
    fn any_port_of_an_address_is_met_by_every_listener_there() {
        for (asked, there, is_met) in [
            ("tcp:127.0.0.1:0", "tcp:127.0.0.1:7001", true),
            ("tcp:127.0.0.1:7001", "tcp:127.0.0.1:7001", true),
            ("tcp:127.0.0.1:7002", "tcp:127.0.0.1:7001", false),
            ("tcp:127.0.0.2:0", "tcp:127.0.0.1:7001", false),
            ("udp:127.0.0.1:0", "tcp:127.0.0.1:7001", false),
            ("unix:/a", "unix:/a", true),
        ] {
            let [asked, there] = [asked, there].map(|text| text.parse::<Endpoint>().unwrap());
            assert_eq!(asked.is_met_by(&there), is_met, "{asked} {there}");
        }
    }

    #[test]
    fn a_mistake_that_is_known_is_named() {
        for (text, said) in [
            ("tcp:127.0.0.1:99999", "port 99999"),
            ("builtin:bench", "`socket = \"builtin:bench\"`"),
            ("tcp:localhost:80", "names are not looked up"),
        ] {
            let detail = text.parse::<Endpoint>().unwrap_err().detail;
            assert!(detail.contains(said), "{text}: {detail}");
        }
    }

    #[test]
    fn l06_other_texts_are_refused() {
        let long = format!("unix:/{}", "a".repeat(PATH_BYTES_MAX));
        for bad in [
            "",
            "tcp:",
            "tcp:localhost:80",
            "tcp:127.0.0.1",
            "tcp:127.0.0.1:99999",
            "sctp:127.0.0.1:80",
            "unix:run/till.sock",
            "unix:",
            "unix:/a\nb",
            "unix:/a\0b",
            &long,
        ] {
            assert_eq!(
                bad.parse::<Endpoint>().unwrap_err().code,
                Code::Config,
                "{bad}"
            );
        }
    }
}
