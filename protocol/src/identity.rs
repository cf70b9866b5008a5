//! Names, ids and identities. They are parsed once, at the edge.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::fault::{Code, Fault, shown};

/// Longest name in bytes: both a file name with a suffix and a DNS label allow it.
pub const NAME_BYTES_MAX: usize = 63;

/// A name of a guest, a site, a host or a service: `[a-z0-9][a-z0-9._-]{0,62}`.
///
/// The alphabet has no path separators, no upper case and no look-alikes, so a name can be used in
/// a file name, a URI and a table without escaping.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let bytes = text.as_bytes();
        let first_is_alphanumeric = bytes
            .first()
            .is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let rest_is_plain = bytes.iter().all(|b| {
            b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-')
        });
        if bytes.len() > NAME_BYTES_MAX || !first_is_alphanumeric || !rest_is_plain {
            let shown: String = text.chars().take(80).collect();
            return Err(Fault::new(
                Code::Name,
                format!(
                    "{shown:?} is not a name: 1 to {NAME_BYTES_MAX} of a-z 0-9 . _ - and a letter or digit first"
                ),
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Name {
    type Error = Fault;

    fn try_from(text: String) -> Result<Self, Fault> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

macro_rules! id128 {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u128);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($what, " {:032x}"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = Fault;

            fn from_str(text: &str) -> Result<Self, Fault> {
                let plain = text.len() == 32
                    && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
                u128::from_str_radix(text, 16).ok().filter(|_| plain).map(Self).ok_or_else(|| {
                    let shown = shown(text);
                    Fault::new(
                        Code::Usage,
                        format!(concat!("{:?} is not a ", $what, " id: 32 of 0-9 a-f"), shown),
                    )
                })
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    self.0.to_le_bytes().serialize(serializer)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    let text = String::deserialize(deserializer)?;
                    text.parse().map_err(serde::de::Error::custom)
                } else {
                    <[u8; 16]>::deserialize(deserializer).map(|bytes| Self(u128::from_le_bytes(bytes)))
                }
            }
        }
    };
}

id128!(
    /// A guest's identity, the same wherever it runs. A clone gets a new one.
    GuestId,
    "guest"
);
id128!(
    /// One attempt to hand a guest over. Random, durable before it is used, never reused.
    AttemptId,
    "attempt"
);
id128!(
    /// One move as the operator sees it. It may take several attempts.
    MigrationId,
    "migration"
);

/// Number of an ownership of a guest. Grows by one with every handover.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch of the next owner.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The identity of a host, proved by its certificate's URI
/// `spiffe://<trust domain>/site/<site>/host/<host>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HostIdentity {
    /// The authority's domain.
    pub trust_domain: Name,
    /// The site of the host.
    pub site: Name,
    /// The host within its site.
    pub host: Name,
}

impl HostIdentity {
    /// The identity as it stands in the certificate's subject alternative name.
    #[must_use]
    pub fn uri(&self) -> String {
        format!(
            "spiffe://{}/site/{}/host/{}",
            self.trust_domain, self.site, self.host
        )
    }

    /// Parses the identity from a URI.
    ///
    /// # Errors
    ///
    /// `E_CERTIFICATE` if the URI does not have exactly the form [`HostIdentity::uri`] makes.
    pub fn from_uri(uri: &str) -> Result<Self, Fault> {
        let wrong = || {
            let shown: String = uri.chars().take(200).collect();
            Fault::new(
                Code::Certificate,
                format!("{shown:?} is not spiffe://<trust domain>/site/<site>/host/<host>"),
            )
        };
        let rest = uri.strip_prefix("spiffe://").ok_or_else(wrong)?;
        let parts: Vec<&str> = rest.split('/').collect();
        let [trust_domain, "site", site, "host", host] = parts.as_slice() else {
            return Err(wrong());
        };
        Ok(Self {
            trust_domain: trust_domain.parse().map_err(|_| wrong())?,
            site: site.parse().map_err(|_| wrong())?,
            host: host.parse().map_err(|_| wrong())?,
        })
    }
}

impl fmt::Display for HostIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.site, self.host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d01_names_that_could_be_paths_or_look_alikes_are_refused() {
        for bad in [
            "",
            ".",
            "..",
            "../../etc/x",
            "/abs",
            "a/b",
            "-x",
            "_x",
            ".x",
            "a\0b",
            "A",
            "caf\u{e9}",
            "p\u{430}yload",
            "a b",
            "a\nb",
        ] {
            let fault = bad.parse::<Name>().expect_err(bad);
            assert_eq!(fault.code, Code::Name, "{bad:?}");
        }
        assert!("a".repeat(64).parse::<Name>().is_err());
        assert!("a".repeat(300).parse::<Name>().is_err());
        for good in ["a", "0", "till-7", "a.b_c-d", &"a".repeat(63)] {
            assert_eq!(good.parse::<Name>().expect(good).as_str(), good);
        }
    }

    #[test]
    fn host_identity_round_trips_and_refuses_other_shapes() {
        let identity = HostIdentity {
            trust_domain: "shop.example".parse().unwrap(),
            site: "edge".parse().unwrap(),
            host: "box-1".parse().unwrap(),
        };
        assert_eq!(HostIdentity::from_uri(&identity.uri()), Ok(identity));
        for bad in [
            "https://a/site/b/host/c",
            "spiffe://a/site/b/host/c/d",
            "spiffe://a/b/c",
            "spiffe:///site/b/host/c",
            "spiffe://a/site/b/host/",
            "spiffe://a/site/../host/c",
        ] {
            assert!(HostIdentity::from_uri(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_round_trip_as_text() {
        let id = GuestId(0x0123_4567_89ab_cdef);
        assert_eq!(id.to_string().parse::<GuestId>(), Ok(id));
        assert!(
            "+123456789012345678901234567890a"
                .parse::<GuestId>()
                .is_err()
        );
        assert!("0123".parse::<GuestId>().is_err());
    }
}
