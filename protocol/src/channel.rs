//! How a local program asks the tunnel for a stream, and the classes of traffic.
//!
//! ```text
//!  program        tunnel                        peer's tunnel      service
//!     │── Open ─────►│── (QUIC stream) Open ────────►│── Accepted ───►│
//!     │◄─ Opened ────│◄────────────────── Opened ────│                │
//!     │◄═══════════════════ bytes, both ways ════════════════════════►│
//! ```
//!
//! `Refused` stands in for `Opened` wherever a stream cannot be had. The two connections of a link
//! (one for urgent traffic, one for bulk) begin with `Join` and `Joined`, which pair them. Every
//! preamble is one frame of [`crate::frame`] with at most [`PREAMBLE_BODY_BYTES_MAX`] bytes of body,
//! so that its reader never takes a byte of what follows.

use serde::{Deserialize, Serialize};

use crate::fault::{Code, Fault};
use crate::frame::{self, FLAG_CRITICAL, HEADER_BYTES, Header};
use crate::identity::{HostIdentity, Name};
use crate::version::VersionRange;

/// Most bytes of a preamble's body: with its header 1 KiB, and what an unauthenticated local program
/// can make the tunnel hold before it has said whom it wants.
pub const PREAMBLE_BODY_BYTES_MAX: u32 = 1008;

/// Most bytes of a refusal's words.
pub const DETAIL_BYTES_MAX: usize = 512;

/// The service at its own site by which a tunnel answers whether new work may begin: `Opened` if it
/// may, `Refused` with `E_CRL_STALE` while what has been revoked lately is not known.
pub const TRUST_SERVICE: &str = "trust";

/// What this release speaks between tunnels.
pub const LINK_VERSIONS: VersionRange = VersionRange { min: 1, max: 1 };

// Kinds begin at 64, so that a preamble and a migrator's message are never taken for one another.
const KIND_OPEN: u8 = 64;
const KIND_OPENED: u8 = 65;
const KIND_REFUSED: u8 = 66;
const KIND_ACCEPTED: u8 = 67;
const KIND_JOIN: u8 = 68;
const KIND_JOINED: u8 = 69;

/// What a stream's bytes are worth when the link is short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// The handover's words; a few bytes that decide everything.
    Control,
    /// A guest's processor is stopped until these blocks arrive.
    Demand,
    /// Messages between portions of a distributed application.
    App,
    /// State that is sent while a guest is paused.
    Switch,
    /// Pre-copy, push, synchronisation: fills what is left.
    Bulk,
    /// Snapshots with slack, preload: what bulk leaves.
    Scavenger,
}

impl Class {
    /// Every class, most urgent first.
    pub const ALL: [Self; 6] = [
        Self::Control,
        Self::Demand,
        Self::App,
        Self::Switch,
        Self::Bulk,
        Self::Scavenger,
    ];

    /// The class's name in logs, metrics and configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Demand => "demand",
            Self::App => "app",
            Self::Switch => "switch",
            Self::Bulk => "bulk",
            Self::Scavenger => "scavenger",
        }
    }

    /// The class's place in [`Class::ALL`], for tables with one entry a class.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Which of the link's two connections carries the class.
    #[must_use]
    pub const fn leg(self) -> Leg {
        match self {
            Self::Control | Self::Demand | Self::App | Self::Switch => Leg::Urgent,
            Self::Bulk | Self::Scavenger => Leg::Bulk,
        }
    }

    /// Priority inside its connection; higher goes first, and strictly so.
    #[must_use]
    pub const fn priority(self) -> i32 {
        match self {
            Self::Control => 100,
            Self::Demand => 90,
            // A paused guest waits for all of `switch`, an application for each message of its own:
            // both wait, but a message is short.
            Self::App => 10,
            Self::Switch => 5,
            Self::Bulk => 0,
            Self::Scavenger => -10,
        }
    }
}

impl std::fmt::Display for Class {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// One of the two connections of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Leg {
    /// Carries what someone waits for.
    Urgent,
    /// Carries what fills the link.
    Bulk,
}

impl Leg {
    /// The leg's name in logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Urgent => "urgent",
            Self::Bulk => "bulk",
        }
    }
}

/// A link's number, drawn at random by the side that dials; pairs its two connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LinkId(pub u128);

/// Asks for a stream to a service at a peer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Open {
    /// The site where the service is.
    pub peer: Name,
    /// The service's name there.
    pub service: Name,
    /// The class of every byte of the stream, in both directions.
    pub class: Class,
}

/// Tells a service who opened the stream it has just been handed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Accepted {
    /// The host at the other end, proved by its certificate.
    pub peer: HostIdentity,
    /// The service that was asked for.
    pub service: Name,
    /// The stream's class.
    pub class: Class,
}

/// First words of the side that dials, on each of a link's connections.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Join {
    /// Versions of the link's words the dialling side speaks.
    pub versions: VersionRange,
    /// The link this connection belongs to.
    pub link: LinkId,
    /// Which of the link's connections this is.
    pub leg: Leg,
    /// Most bytes per second, counted on the wire, the dialling side wants to receive.
    pub receive_rate_max: Option<u64>,
}

/// The answer to [`Join`], once both connections are there.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Joined {
    /// The version both use from here on.
    pub version: u16,
    /// Most bytes per second, counted on the wire, the accepting side wants to receive.
    pub receive_rate_max: Option<u64>,
}

/// Any preamble.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Preamble {
    /// Asks for a stream.
    Open(Open),
    /// The stream is there, and this is the host at its other end, proved by its certificate.
    Opened(HostIdentity),
    /// The stream or the link cannot be had, and why.
    Refused(Fault),
    /// A stream handed to a service.
    Accepted(Accepted),
    /// A connection joins a link.
    Join(Join),
    /// The link is there.
    Joined(Joined),
}

#[derive(Serialize, Deserialize)]
struct Reason {
    code: String,
    detail: String,
}

impl Preamble {
    /// The preamble as one frame.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let body = match self {
            Self::Open(body) => put(body),
            Self::Opened(peer) => put(peer),
            Self::Refused(fault) => put(&Reason {
                code: fault.code.as_str().to_owned(),
                detail: cut(&fault.detail, DETAIL_BYTES_MAX).to_owned(),
            }),
            Self::Accepted(body) => put(body),
            Self::Join(body) => put(body),
            Self::Joined(body) => put(body),
        };
        let mut out = Vec::with_capacity(HEADER_BYTES + body.len());
        frame::write_frame(self.kind(), FLAG_CRITICAL, &body, &mut out);
        out
    }

    /// Parses a header of a preamble, so that its reader knows how many bytes follow.
    ///
    /// # Errors
    ///
    /// `E_FRAMING` or `E_TOO_LARGE` as [`Header::parse`], with this module's smaller cap.
    pub fn parse_header(bytes: &[u8; HEADER_BYTES]) -> Result<Header, Fault> {
        Header::parse(bytes, PREAMBLE_BODY_BYTES_MAX)
    }

    /// Parses the body that belongs to a header.
    ///
    /// # Errors
    ///
    /// `E_FRAMING` or `E_TRUNCATED` if it does not fit the header, `E_UNKNOWN_KIND` for what is not a
    /// preamble, `E_META` for a body that does not parse.
    pub fn decode_body(header: &Header, body: &[u8]) -> Result<Self, Fault> {
        header.check_body(body)?;
        match header.kind {
            KIND_OPEN => get(body).map(Self::Open),
            KIND_OPENED => get(body).map(Self::Opened),
            KIND_REFUSED => get(body).and_then(refusal).map(Self::Refused),
            KIND_ACCEPTED => get(body).map(Self::Accepted),
            KIND_JOIN => get(body).map(Self::Join),
            KIND_JOINED => get(body).map(Self::Joined),
            kind => Err(Fault::new(
                Code::UnknownKind,
                format!("frame kind {kind} is not a preamble"),
            )),
        }
    }

    /// Parses a whole frame; nothing may follow it.
    ///
    /// # Errors
    ///
    /// As [`Preamble::parse_header`] and [`Preamble::decode_body`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Fault> {
        let Some((header, body)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
            let have = bytes.len();
            return Err(Fault::new(
                Code::Truncated,
                format!("a preamble of {have} bytes is shorter than its header"),
            ));
        };
        Self::decode_body(&Self::parse_header(header)?, body)
    }

    /// What the preamble is, for messages about one that was not expected.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Open(_) => "Open",
            Self::Opened(_) => "Opened",
            Self::Refused(_) => "Refused",
            Self::Accepted(_) => "Accepted",
            Self::Join(_) => "Join",
            Self::Joined(_) => "Joined",
        }
    }

    const fn kind(&self) -> u8 {
        match self {
            Self::Open(_) => KIND_OPEN,
            Self::Opened(_) => KIND_OPENED,
            Self::Refused(_) => KIND_REFUSED,
            Self::Accepted(_) => KIND_ACCEPTED,
            Self::Join(_) => KIND_JOIN,
            Self::Joined(_) => KIND_JOINED,
        }
    }
}

fn put<T: Serialize>(body: &T) -> Vec<u8> {
    postcard::to_allocvec(body).expect("plain structs always serialise")
}

fn get<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Fault> {
    let (value, rest) = postcard::take_from_bytes(body)
        .map_err(|error| Fault::new(Code::Meta, format!("a preamble's body: {error}")))?;
    if !rest.is_empty() {
        let left = rest.len();
        return Err(Fault::new(
            Code::Framing,
            format!("a preamble has {left} bytes left"),
        ));
    }
    Ok(value)
}

/// The fault a peer names. A code we do not know comes from a newer release: it is kept in words.
fn refusal(reason: Reason) -> Result<Fault, Fault> {
    if reason.detail.len() > DETAIL_BYTES_MAX || reason.code.len() > 64 {
        return Err(Fault::new(Code::Meta, "a refusal above its cap"));
    }
    Ok(match Code::parse(&reason.code) {
        Some(code) => Fault::new(code, reason.detail),
        None => {
            let detail = format!("{:?}: {}", reason.code, reason.detail);
            Fault::new(Code::Refused, cut(&detail, DETAIL_BYTES_MAX))
        }
    })
}

/// The longest prefix of whole characters within `bytes_max`.
fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn samples() -> Vec<Preamble> {
        let longest = name(&"a".repeat(63));
        let peer = HostIdentity {
            trust_domain: longest.clone(),
            site: longest.clone(),
            host: longest.clone(),
        };
        vec![
            Preamble::Open(Open {
                peer: longest.clone(),
                service: name("migrator"),
                class: Class::Demand,
            }),
            Preamble::Opened(peer.clone()),
            Preamble::Refused(Fault::new(Code::Denied, "\u{e9}".repeat(400))),
            Preamble::Accepted(Accepted {
                peer,
                service: longest,
                class: Class::Scavenger,
            }),
            Preamble::Join(Join {
                versions: LINK_VERSIONS,
                link: LinkId(u128::MAX),
                leg: Leg::Bulk,
                receive_rate_max: Some(u64::MAX),
            }),
            Preamble::Joined(Joined {
                version: u16::MAX,
                receive_rate_max: None,
            }),
        ]
    }

    #[test]
    fn every_preamble_fits_its_cap_and_parses_back() {
        for preamble in samples() {
            let bytes = preamble.encode();
            assert!(bytes.len() <= 1024, "{}", preamble.name());
            let back = Preamble::decode(&bytes).unwrap();
            match (&preamble, &back) {
                (Preamble::Refused(said), Preamble::Refused(heard)) => {
                    assert_eq!(said.code, heard.code);
                    assert_eq!(heard.detail.len(), DETAIL_BYTES_MAX);
                    assert!(said.detail.starts_with(&heard.detail));
                }
                _ => assert_eq!(back, preamble),
            }
        }
    }

    #[test]
    fn f02_a_preamble_cut_at_any_byte_is_refused() {
        for preamble in samples() {
            let bytes = preamble.encode();
            for length in 0..bytes.len() {
                let fault = Preamble::decode(&bytes[..length]).unwrap_err();
                assert_eq!(
                    fault.code,
                    Code::Truncated,
                    "{} at {length}",
                    preamble.name()
                );
            }
        }
    }

    #[test]
    fn f03_bytes_after_a_preamble_are_refused() {
        for preamble in samples() {
            let mut bytes = preamble.encode();
            bytes.push(0);
            assert_eq!(Preamble::decode(&bytes).unwrap_err().code, Code::Framing);
        }
    }

    #[test]
    fn f04_any_flipped_bit_in_a_preamble_is_refused() {
        for preamble in samples() {
            let bytes = preamble.encode();
            for bit in 0..bytes.len() * 8 {
                let mut flipped = bytes.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert!(
                    Preamble::decode(&flipped).is_err(),
                    "{} bit {bit}",
                    preamble.name()
                );
            }
        }
    }

    #[test]
    fn f01_a_preamble_above_its_cap_is_refused_from_its_header() {
        let mut bytes = Vec::new();
        frame::write_frame(KIND_OPEN, FLAG_CRITICAL, &[0; 1009], &mut bytes);
        let header = bytes.first_chunk::<HEADER_BYTES>().unwrap();
        let fault = Preamble::parse_header(header).unwrap_err();
        assert_eq!(fault.code, Code::TooLarge);
    }

    #[test]
    fn a_refusal_with_a_code_from_a_newer_release_keeps_its_words() {
        let body = put(&Reason {
            code: "E_TOMORROW".to_owned(),
            detail: "not yet".to_owned(),
        });
        let mut bytes = Vec::new();
        frame::write_frame(KIND_REFUSED, FLAG_CRITICAL, &body, &mut bytes);
        let Ok(Preamble::Refused(fault)) = Preamble::decode(&bytes) else {
            panic!("not a refusal");
        };
        assert_eq!(fault.code, Code::Refused);
        assert!(fault.detail.contains("E_TOMORROW") && fault.detail.contains("not yet"));
    }

    #[test]
    fn d01_names_in_a_preamble_are_checked() {
        for bad in ["../../etc/x", "", "A", "-x"] {
            let body = put(&(bad, "migrator", Class::Bulk));
            let mut bytes = Vec::new();
            frame::write_frame(KIND_OPEN, FLAG_CRITICAL, &body, &mut bytes);
            assert_eq!(Preamble::decode(&bytes).unwrap_err().code, Code::Meta);
        }
    }

    #[test]
    fn urgent_classes_share_a_leg_and_are_ordered() {
        for pair in Class::ALL.windows(2) {
            assert!(pair[0].priority() > pair[1].priority());
        }
        let urgent: Vec<_> = Class::ALL
            .iter()
            .filter(|c| c.leg() == Leg::Urgent)
            .collect();
        assert_eq!(urgent.len(), 4);
        for (position, class) in Class::ALL.iter().enumerate() {
            assert_eq!(class.index(), position);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..1100)) {
            let _ = Preamble::decode(&bytes);
            let mut framed = Vec::new();
            frame::write_frame(bytes.first().copied().unwrap_or(64) % 8 + 63, 1, &bytes, &mut framed);
            let _ = Preamble::decode(&framed);
        }
    }
}
