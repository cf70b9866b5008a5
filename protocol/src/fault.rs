//! Errors with stable codes, grouped by who is to blame.
//!
//! The blame decides the reaction: a peer's fault closes the connection and leaves the source guest
//! running, an incompatibility refuses before data moves, a local fault is retried or reported to
//! the operator, and misuse is a bug of ours or of the caller.

use std::fmt;

/// Who is to blame for a fault, which decides the reaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Blame {
    /// The peer broke the protocol: the attempt ends, the source guest keeps running.
    Peer,
    /// The peer is honest, but the two sides cannot do this together: refused before data moves.
    Incompatible,
    /// Our disk, our KVM or our memory failed: retried where that is safe, else reported to the
    /// operator.
    Local,
    /// The caller asked for something impossible: nothing was changed.
    Misuse,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal, $blame:ident;)*) => {
        /// A stable code: scripts and runbooks rely on it, so a code is never renamed or reused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code { $($(#[$doc])* $variant,)* }

        impl Code {
            /// Every code, for the table in the documentation and its test.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The code as operators and peers see it, `E_...`.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// Who is to blame for this code.
            #[must_use]
            pub const fn blame(self) -> Blame {
                match self { $(Self::$variant => Blame::$blame,)* }
            }

            /// Parses a code that a peer or a file named, if it is one of ours.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|code| code.as_str() == text)
            }
        }
    };
}

codes! {
    /// A frame ended before its announced length.
    Truncated = "E_TRUNCATED", Peer;
    /// Wrong magic, a bad checksum, or bytes after the end of a message.
    Framing = "E_FRAMING", Peer;
    /// An announced length is above the cap for its kind.
    TooLarge = "E_TOO_LARGE", Peer;
    /// A critical message kind that this version does not know.
    UnknownKind = "E_UNKNOWN_KIND", Peer;
    /// A block or a range lies outside its space, is empty, unsorted, or overlaps.
    Range = "E_RANGE", Peer;
    /// The same chunk number came twice with different content.
    Conflict = "E_CONFLICT", Peer;
    /// A chunk does not decode to the announced bytes.
    Codec = "E_CODEC", Peer;
    /// Metadata that does not parse or holds impossible values.
    Meta = "E_META", Peer;
    /// A message that the state of the move does not allow.
    Unexpected = "E_UNEXPECTED", Peer;
    /// The two sides disagree about the image.
    RootMismatch = "E_ROOT", Peer;
    /// The message carries an epoch that is not newer than what this host has seen.
    StaleEpoch = "E_STALE_EPOCH", Peer;
    /// A second source offers a guest that is already being received.
    DoubleOffer = "E_DOUBLE_OFFER", Peer;
    /// Blocks were requested after the source had let go of the guest.
    Gone = "E_GONE", Peer;
    /// The peer's identity does not allow this.
    Denied = "E_DENIED", Peer;
    /// The peer did not act in time.
    Stalled = "E_STALLED", Peer;

    /// No version in common.
    Version = "E_VERSION", Incompatible;
    /// This host cannot provide the guest's layout.
    Layout = "E_LAYOUT", Incompatible;
    /// The guest is larger than this host's quota allows.
    Quota = "E_QUOTA", Incompatible;
    /// This host's processor or KVM refuses the guest's state.
    CpuState = "E_CPU_STATE", Incompatible;
    /// The guest already lives here.
    GuestExists = "E_GUEST_EXISTS", Incompatible;
    /// Too many moves at once; try again later.
    Busy = "E_BUSY", Incompatible;
    /// The target refused the guest.
    Refused = "E_REFUSED", Incompatible;
    /// The guest writes faster than pre-copy alone can follow within the allowed pause.
    NotConverging = "E_NOT_CONVERGING", Incompatible;

    /// A file or folder could not be used.
    Io = "E_IO", Local;
    /// The journal could not be written. Nothing about this guest changes until an operator has
    /// looked.
    Journal = "E_JOURNAL", Local;
    /// The journal is unreadable or outdated: the guest is quarantined.
    Quarantine = "E_QUARANTINE", Local;
    /// The guest process failed or is gone.
    Guest = "E_GUEST", Local;
    /// Not every write of the guest was tracked, so the copied blocks cannot be trusted.
    TrackingLost = "E_TRACKING_LOST", Local;
    /// KVM cannot be used.
    Kvm = "E_KVM", Local;
    /// The tunnel, the peer or the network cannot be reached.
    Unreachable = "E_UNREACHABLE", Local;
    /// The image that should be here is lost.
    ImageLost = "E_IMAGE_LOST", Local;
    /// Another daemon already runs with the same state folder.
    AlreadyRunning = "E_ALREADY_RUNNING", Local;
    /// A certificate or key cannot be used.
    Certificate = "E_CERTIFICATE", Local;
    /// The list of revoked certificates has expired. No new work begins until the next one is here.
    CrlStale = "E_CRL_STALE", Local;
    /// A list of revoked certificates is older than the one that was in use.
    CrlRollback = "E_CRL_ROLLBACK", Local;
    /// A path that must be a plain file or folder of ours is something else.
    Path = "E_PATH", Local;

    /// The configuration is wrong.
    Config = "E_CONFIG", Misuse;
    /// A name that is not allowed.
    Name = "E_NAME", Misuse;
    /// No such guest, move, peer or service.
    NotFound = "E_NOT_FOUND", Misuse;
    /// The request does not fit the current state.
    State = "E_STATE", Misuse;
    /// The request is malformed.
    Usage = "E_USAGE", Misuse;
    /// The move was cancelled by an operator.
    Cancelled = "E_CANCELLED", Misuse;
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A fault: a stable code, and one sentence with the relevant values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The stable code.
    pub code: Code,
    /// What failed, with its values. Lower case, no full stop.
    pub detail: String,
    /// What an operator of this host can do, if the place that found the fault knows better than
    /// the code's general advice. Never sent to a peer.
    pub remedy: Option<String>,
}

impl Fault {
    /// A fault with its code and detail.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
            remedy: None,
        }
    }

    /// Sets a remedy that replaces the general advice for the code.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// Who is to blame.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        self.code.blame()
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.detail)
    }
}

impl std::error::Error for Fault {}

/// Most characters of a foreign text that a fault shows. They are enough to recognise the text
/// without burying the message.
const SHOWN_CHARS_MAX: usize = 40;

/// The beginning of a text that did not parse, for showing it to its author.
#[must_use]
pub fn shown(text: &str) -> String {
    text.chars().take(SHOWN_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_text_the_beginning_is_shown() {
        assert_eq!(shown("fast"), "fast");
        let long = "\u{e9}".repeat(SHOWN_CHARS_MAX + 1);
        assert_eq!(shown(&long).chars().count(), SHOWN_CHARS_MAX);
    }

    #[test]
    fn codes_are_unique_and_parse_back() {
        for code in Code::ALL {
            assert_eq!(Code::parse(code.as_str()), Some(*code));
            assert!(code.as_str().starts_with("E_"));
        }
        assert_eq!(Code::parse("E_NONSENSE"), None);
    }
}
