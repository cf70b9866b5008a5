//! The first words on a connection or a stream: how a local program asks the tunnel for a stream,
//! and how tunnels make links and resume streams.
//!
//! ```text
//!  program        tunnel                        peer's tunnel      service
//!     │── Open ─────►│── (QUIC stream) Open ────────►│── Accepted ───►│
//!     │◄─ Opened ────│◄────────────────── Opened ────│                │
//!     │◄═══════════════════ bytes, both ways ════════════════════════►│
//! ```
//!
//! `Refused` replaces `Opened` if the stream cannot be opened. A tunnel that refuses a program of
//! its own host puts the remedy on a second line of the text. The two connections of a link (one
//! for urgent traffic, one for bulk) begin with `Join` and `Joined`, which pair them. Every
//! preamble is one frame of [`crate::frame`] with a body of at most [`PREAMBLE_BODY_BYTES_MAX`]
//! bytes, so that its reader never reads beyond it.
//!
//! # Streams that resume
//!
//! A stream between tunnels begins with `Begin`, which holds the request and the stream's number.
//! After it come the program's own bytes, without framing. Each side counts the bytes and reports
//! in `Reports` how many it has delivered to its program. The reports travel on the QUIC stream
//! that joined the urgent connection, which stays open for them. Each side keeps the sent bytes
//! that are not reported yet. When the connection is lost both sides keep the stream, and on the
//! next link the side that began it resumes it:
//!
//! ```text
//!  tunnel                                   peer's tunnel
//!     │── Resume { stream, received: 700 } ───►│
//!     │◄──────── Resumed { received: 1200 } ───│
//!     │═ bytes from 1200 ═►   ◄═ bytes from 700 │
//! ```
//!
//! `Cut` tells the peer that a stream ended for good while there was no connection. `Join` and
//! `Joined` carry the number of each tunnel's run, because a tunnel that was restarted knows none
//! of its streams.

use serde::{Deserialize, Serialize};

use crate::class::{Class, Leg};
use crate::fault::{Code, Fault};
use crate::frame::{self, FLAG_CRITICAL, HEADER_BYTES, Header};
use crate::identity::{HostIdentity, Name};
use crate::version::VersionRange;

/// Most bytes of a preamble's body, which is 1 KiB with the header. It bounds what an
/// unauthenticated local program can make the tunnel hold before it has named its peer.
pub const PREAMBLE_BODY_BYTES_MAX: u32 = 1008;

/// Most bytes of a refusal's text.
pub const DETAIL_BYTES_MAX: usize = 512;

/// The service at its own site by which a tunnel tells whether new work may begin: `Opened` if it
/// may, `Refused` with `E_CRL_STALE` while the revocation lists are out of date.
pub const TRUST_SERVICE: &str = "trust";

/// The name under which a tunnel offers its built-in service for benches and probes, if its
/// configuration has such a service.
pub const BENCH_SERVICE: &str = "bench";

/// The versions of the link protocol that this release speaks.
pub const LINK_VERSIONS: VersionRange = VersionRange { min: 1, max: 1 };

/// Most reports in one preamble. Each is at most 30 bytes long.
pub const REPORT_COUNT_MAX: usize = 32;

// Kinds begin at 64, so that a preamble is never taken for a migrator's message or the other way
// round.
const KIND_OPEN: u8 = 64;
const KIND_OPENED: u8 = 65;
const KIND_REFUSED: u8 = 66;
const KIND_ACCEPTED: u8 = 67;
const KIND_JOIN: u8 = 68;
const KIND_JOINED: u8 = 69;
const KIND_BEGIN: u8 = 70;
const KIND_RESUME: u8 = 71;
const KIND_RESUMED: u8 = 72;
const KIND_REPORTS: u8 = 73;
const KIND_CUT: u8 = 74;
const KIND_PATH: u8 = 75;

/// A link's number, drawn at random by the dialling side. Pairs the two connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LinkId(pub u128);

/// The number of one run of a tunnel, drawn at random when it starts. Streams do not outlive the
/// run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RunId(pub u128);

/// The number of a stream between two tunnels, drawn at random by the side that begins it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StreamId(pub u128);

impl std::fmt::Display for StreamId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// How much of one direction of a stream a side has received.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Received {
    /// Bytes since the stream began.
    pub bytes: u64,
    /// Whether these are all bytes and the end has been received.
    pub is_ended: bool,
}

/// Begins a stream between two tunnels.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Begin {
    /// The stream's number.
    pub stream: StreamId,
    /// The request of the program.
    pub open: Open,
    /// Whether the stream accompanies datagrams. Its bytes are then the datagrams that were too
    /// large for QUIC, each preceded by its length in two bytes, little-endian.
    pub is_datagrams: bool,
}

/// Continues a stream whose connection is lost or about to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Resume {
    /// The stream.
    pub stream: StreamId,
    /// How much the resuming side has received.
    pub received: Received,
}

/// Reports how much of a stream was delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Report {
    /// The stream.
    pub stream: StreamId,
    /// How much the local program was given.
    pub received: Received,
}

/// Says that a stream ended before its regular end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// The stream.
    pub stream: StreamId,
    /// The reason.
    pub fault: Fault,
}

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

/// Tells a service who opened the stream it was handed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Accepted {
    /// The host at the other end, proved by its certificate.
    pub peer: HostIdentity,
    /// The service that was asked for.
    pub service: Name,
    /// The stream's class.
    pub class: Class,
}

/// The first preamble of the dialling side, on each of a link's connections.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Join {
    /// Versions of the link protocol that the dialling side speaks.
    pub versions: VersionRange,
    /// The link this connection belongs to.
    pub link: LinkId,
    /// Which of the link's connections this is.
    pub leg: Leg,
    /// Most bytes per second, counted on the wire, that the dialling side wants to receive.
    pub receive_rate_max: Option<u64>,
    /// The dialling tunnel's run.
    pub run: RunId,
}

/// The answer to [`Join`], once both connections are there.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Joined {
    /// The version both use from here on.
    pub version: u16,
    /// Most bytes per second, counted on the wire, that the accepting side wants to receive.
    pub receive_rate_max: Option<u64>,
    /// The accepting tunnel's run.
    pub run: RunId,
}

/// What one side of a live link tells the other about the path between them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PathReport {
    /// Most bytes per second, counted on the wire, that this side wants to receive from now on.
    pub receive_rate_max: Option<u64>,
    /// Program bytes per second that the path to the other side carried lately, if the path was the
    /// limit. Only the sending side knows this.
    pub filled_bytes_per_second: Option<u64>,
}

/// Any preamble.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Preamble {
    /// Asks for a stream.
    Open(Open),
    /// The stream is open; this is the host at its other end, proved by its certificate.
    Opened(HostIdentity),
    /// The stream or the link is refused, with the reason.
    Refused(Fault),
    /// A stream is handed to a service.
    Accepted(Accepted),
    /// A connection joins a link.
    Join(Join),
    /// The link is there.
    Joined(Joined),
    /// Begins a stream between two tunnels.
    Begin(Begin),
    /// Continues a stream.
    Resume(Resume),
    /// The answer to `Resume`: how much the other side has received. Bytes follow from there.
    Resumed(Received),
    /// How much of some streams was delivered, for at most [`REPORT_COUNT_MAX`] of them.
    Reports(Vec<Report>),
    /// A stream ended before its regular end.
    Cut(Cut),
    /// News of the path.
    Path(PathReport),
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
            Self::Refused(fault) => put(&reason(fault)),
            Self::Accepted(body) => put(body),
            Self::Join(body) => put(body),
            Self::Joined(body) => put(body),
            Self::Begin(body) => put(body),
            Self::Resume(body) => put(body),
            Self::Resumed(body) => put(body),
            Self::Reports(body) => put(body),
            Self::Cut(body) => put(&(body.stream, reason(&body.fault))),
            Self::Path(body) => put(body),
        };
        let mut out = Vec::with_capacity(HEADER_BYTES + body.len());
        frame::write_frame(self.kind(), FLAG_CRITICAL, &body, &mut out);
        out
    }

    /// Parses the header of a preamble, which says how many bytes follow.
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
    /// `E_FRAMING` or `E_TRUNCATED` if it does not fit the header, `E_UNKNOWN_KIND` if it is not a
    /// preamble, `E_META` if the body does not parse.
    pub fn decode_body(header: &Header, body: &[u8]) -> Result<Self, Fault> {
        header.check_body(body)?;
        match header.kind {
            KIND_OPEN => get(body).map(Self::Open),
            KIND_OPENED => get(body).map(Self::Opened),
            KIND_REFUSED => get(body).and_then(refusal).map(Self::Refused),
            KIND_ACCEPTED => get(body).map(Self::Accepted),
            KIND_JOIN => get(body).map(Self::Join),
            KIND_JOINED => get(body).map(Self::Joined),
            KIND_BEGIN => get(body).map(Self::Begin),
            KIND_RESUME => get(body).map(Self::Resume),
            KIND_RESUMED => get(body).map(Self::Resumed),
            KIND_REPORTS => get(body).and_then(reports).map(Self::Reports),
            KIND_CUT => {
                let (stream, reason) = get(body)?;
                let fault = refusal(reason)?;
                Ok(Self::Cut(Cut { stream, fault }))
            }
            KIND_PATH => get(body).map(Self::Path),
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

    /// The preamble's name, for messages about an unexpected one.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Open(_) => "Open",
            Self::Opened(_) => "Opened",
            Self::Refused(_) => "Refused",
            Self::Accepted(_) => "Accepted",
            Self::Join(_) => "Join",
            Self::Joined(_) => "Joined",
            Self::Begin(_) => "Begin",
            Self::Resume(_) => "Resume",
            Self::Resumed(_) => "Resumed",
            Self::Reports(_) => "Reports",
            Self::Cut(_) => "Cut",
            Self::Path(_) => "Path",
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
            Self::Begin(_) => KIND_BEGIN,
            Self::Resume(_) => KIND_RESUME,
            Self::Resumed(_) => KIND_RESUMED,
            Self::Reports(_) => KIND_REPORTS,
            Self::Cut(_) => KIND_CUT,
            Self::Path(_) => KIND_PATH,
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

fn reports(reports: Vec<Report>) -> Result<Vec<Report>, Fault> {
    let count = reports.len();
    if (1..=REPORT_COUNT_MAX).contains(&count) {
        return Ok(reports);
    }
    let detail = format!("{count} reports, where 1 to {REPORT_COUNT_MAX} may stand");
    Err(Fault::new(Code::Meta, detail))
}

fn reason(fault: &Fault) -> Reason {
    Reason {
        code: fault.code.as_str().to_owned(),
        detail: cut(&fault.detail, DETAIL_BYTES_MAX).to_owned(),
    }
}

/// The fault that a peer named. An unknown code, from a newer release, is kept in the text.
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

    const MOST: Received = Received {
        bytes: u64::MAX,
        is_ended: true,
    };

    const REPORT: Report = Report {
        stream: StreamId(u128::MAX),
        received: MOST,
    };

    #[test]
    fn f01_reports_beyond_their_limit_are_refused() {
        for count in [0, REPORT_COUNT_MAX + 1] {
            let bytes = Preamble::Reports(vec![REPORT; count]).encode();
            assert!(Preamble::decode(&bytes).is_err(), "{count}");
        }
        // A count that the bytes cannot hold allocates no memory.
        let mut bytes = Vec::new();
        let body = [0xff, 0xff, 0xff, 0xff, 0x0f];
        frame::write_frame(KIND_REPORTS, FLAG_CRITICAL, &body, &mut bytes);
        assert_eq!(Preamble::decode(&bytes).unwrap_err().code, Code::Meta);
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
                run: RunId(u128::MAX),
            }),
            Preamble::Joined(Joined {
                version: u16::MAX,
                receive_rate_max: None,
                run: RunId(0),
            }),
            Preamble::Begin(Begin {
                stream: StreamId(u128::MAX),
                open: Open {
                    peer: name(&"a".repeat(63)),
                    service: name(&"b".repeat(63)),
                    class: Class::Bulk,
                },
                is_datagrams: true,
            }),
            Preamble::Resume(Resume {
                stream: StreamId(1),
                received: MOST,
            }),
            Preamble::Resumed(Received::default()),
            Preamble::Reports(vec![REPORT; REPORT_COUNT_MAX]),
            Preamble::Cut(Cut {
                stream: StreamId(u128::MAX),
                fault: Fault::new(Code::Stalled, "the local program reads nothing"),
            }),
            Preamble::Path(PathReport {
                receive_rate_max: Some(u64::MAX),
                filled_bytes_per_second: None,
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
            frame::write_frame(bytes.first().copied().unwrap_or(64) % 13 + 63, 1, &bytes, &mut framed);
            let _ = Preamble::decode(&framed);
        }
    }
}
