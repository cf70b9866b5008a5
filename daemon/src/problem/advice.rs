//! What to tell an operator for each code.

use towpath_protocol::fault::Code;

/// A sentence for people who do not know the code, and what they can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Advice {
    pub(super) sentence: &'static str,
    pub(super) remedy: &'static str,
}

/// The advice for a code that the table lacks. A test makes sure that there is none.
pub(super) const UNKNOWN: Advice = Advice {
    sentence: "something went wrong",
    remedy: "look at the daemon's log",
};

const PEER_SPOKE_NONSENSE: &str = "the source guest keeps running; compare both sides' versions with `towpath status` and report it";

/// The advice for a code.
pub(super) const fn of(code: Code) -> Advice {
    let (sentence, remedy) = match peers(code) {
        Some(pair) => pair,
        None => match ours(code) {
            Some(pair) => pair,
            None => return UNKNOWN,
        },
    };
    Advice { sentence, remedy }
}

/// System errors about files and addresses, with the remedy for each whatever the code.
const OF_SYSTEM: [(&str, &str); 6] = [
    (
        DENIED,
        "run it as root, or as the user who may use that file",
    ),
    (
        "No such file or directory (os error 2)",
        "check that the path is right, and that the folder above it is there",
    ),
    (
        "Address already in use (os error 98)",
        "find out what else listens there, or choose another address",
    ),
    (
        "Cannot assign requested address (os error 99)",
        "no interface of this host has that address: take one of those that `ip addr` lists",
    ),
    (
        "No space left on device (os error 28)",
        "make room on that disk",
    ),
    (
        "Read-only file system (os error 30)",
        "choose a place that can be written to, or mount it so",
    ),
];

const DENIED: &str = "Permission denied (os error 13)";

/// How a daemon's fault begins when it cannot listen at an address.
const LISTENS: &str = "cannot listen at";

/// The remedy for a system error that the cause quotes, if it is about this host's own resources.
pub(super) fn of_system(code: Code, cause: &str) -> Option<&'static str> {
    let is_ours = matches!(
        code,
        Code::Io | Code::Path | Code::Config | Code::Certificate
    );
    if is_ours && cause.contains(LISTENS) && cause.contains(DENIED) {
        return Some(
            "take a port of 1024 or above, or a folder that the daemon's user may write to",
        );
    }
    let mut known = OF_SYSTEM.iter().filter(|_| is_ours);
    let found = known.find(|(said, _)| cause.contains(said));
    found.map(|(_, remedy)| *remedy)
}

/// Codes for faults of the other side.
const fn peers(code: Code) -> Option<(&'static str, &'static str)> {
    Some(match code {
        Code::Truncated => ("the peer's message ended too early", PEER_SPOKE_NONSENSE),
        Code::Framing => ("the peer's message is damaged", PEER_SPOKE_NONSENSE),
        Code::TooLarge => (
            "a message is larger than allowed",
            "send less at once; the limit stands in the cause",
        ),
        Code::UnknownKind => (
            "the peer sent a kind of message this release does not know",
            "upgrade the older side",
        ),
        Code::Range => (
            "the peer named blocks that do not exist",
            PEER_SPOKE_NONSENSE,
        ),
        Code::Conflict => ("the peer contradicted itself", PEER_SPOKE_NONSENSE),
        Code::Codec => ("the peer's data does not unpack", PEER_SPOKE_NONSENSE),
        Code::Meta => (
            "the description does not parse",
            "correct the request or the document; the place stands in the cause",
        ),
        Code::Unexpected => (
            "the peer said something that does not fit now",
            PEER_SPOKE_NONSENSE,
        ),
        Code::RootMismatch => (
            "what arrived is not what was sent",
            "the source guest runs on and another attempt begins by itself; if it repeats, check both hosts' memory, and look at what differs: the target keeps it in `incidents/` of its `state_dir`",
        ),
        Code::StaleEpoch => (
            "the peer speaks for an ownership that is over",
            "find out why with `towpath guest show` on both hosts before moving this guest again",
        ),
        Code::DoubleOffer => (
            "two hosts offer the same guest",
            "stop and look: one of them holds a copy that should not exist",
        ),
        Code::Gone => (
            "the source has already let go of the guest",
            "nothing to do if the guest runs at its target; look with `towpath guest show` there",
        ),
        Code::Denied => (
            "this identity may not do that",
            "use a user or a certificate that is allowed to; the refusal is in the audit log",
        ),
        Code::Stalled => (
            "the other side did not answer in time",
            "look at the link with `towpath status`; the move resumes by itself when it is back",
        ),
        Code::Version => (
            "the two sides have no version in common",
            "upgrade the older side",
        ),
        Code::Layout => (
            "the guest's layout cannot be had at the target",
            "choose another target, or start the guest with a layout that both allow",
        ),
        Code::Quota => (
            "the guest does not fit into the host's quota",
            "raise `quota` in the target's migrator configuration, or choose another target",
        ),
        Code::CpuState => (
            "the host's processor refuses the guest's state",
            "choose a target with the same or a newer processor",
        ),
        Code::GuestExists => (
            "the guest already lives there",
            "choose another name, or look with `towpath guest ls`",
        ),
        Code::Busy => (
            "as much is under way as may be at once",
            "try again when some of it has finished: moves are in `towpath migration ls`, connections in `towpath channel ls`",
        ),
        Code::Refused => (
            "the target refused the guest",
            "the source guest runs on; the reason stands in the target's log",
        ),
        Code::NotConverging => (
            "the guest writes faster than pre-copy alone can follow",
            "allow a longer `--max-pause` or a higher `--rate`, move it when it writes less, or leave `--mode pre` out",
        ),
        _ => return None,
    })
}

/// Codes for faults of this host or of the caller.
const fn ours(code: Code) -> Option<(&'static str, &'static str)> {
    Some(match code {
        Code::Io => (
            "a file, folder or address cannot be used",
            "check that it exists, that it is ours and not in use, and that the disk is not full",
        ),
        Code::Journal => (
            "the journal cannot be written",
            "do not restart the guest elsewhere; check the disk, then restart the migrator",
        ),
        Code::Quarantine => (
            "the guest is quarantined: its journal cannot be trusted",
            "find out which host has the newest copy before anything runs it",
        ),
        Code::Guest => (
            "the guest process failed",
            "look at its console with `towpath guest show`, then `towpath guest start` it again",
        ),
        Code::TrackingLost => (
            "what the guest wrote was not all noted",
            "nothing: the move begins anew by itself, at most five times; do not change swap during moves",
        ),
        Code::Kvm => (
            "KVM cannot be used",
            "check the rights on /dev/kvm and the processor's virtualization setting, or use `--guest process`",
        ),
        Code::Unreachable => (
            "nobody answers",
            "check that the daemon or the peer runs and that the address is right; `towpath status` says why a link is down, and what mends it",
        ),
        Code::ImageLost => (
            "the guest's image is lost",
            "boot the guest again with `towpath guest start` where it is owned",
        ),
        Code::AlreadyRunning => (
            "another daemon already runs there",
            "stop it first, or give this one a folder and a socket of its own",
        ),
        Code::Certificate => (
            "a certificate or key cannot be used",
            "look at it with `towpath certs show`, and issue a new one with `towpath certs issue`",
        ),
        Code::CrlStale => (
            "the list of revoked certificates has ended",
            "sign the next one with `towpath certs revoke --refresh` and carry it to the hosts; moves under way go on",
        ),
        Code::CrlRollback => (
            "the list of revoked certificates is older than the one before",
            "carry the authority's newest `crl.pem` to this host, and find out who put the older one there; the newer one stays in use",
        ),
        Code::Path => (
            "a path is not what it must be",
            "move what is there out of the way; it is never replaced by force",
        ),
        Code::Config => (
            "the configuration is wrong",
            "correct the line, then try `towpath config check FILE`",
        ),
        Code::Name => (
            "that is not a name",
            "use 1 to 63 of a-z 0-9 . _ - with a letter or a digit first",
        ),
        Code::NotFound => (
            "there is no such thing here",
            "see what there is with `towpath status`, `towpath guest ls`, `towpath migration ls` and `towpath channel ls`",
        ),
        Code::State => (
            "that does not fit the state of things",
            "look with `towpath guest show`, `towpath migration show` or `towpath channel show`, and try again when it fits",
        ),
        Code::Usage => (
            "the request is malformed",
            "see `--help` of the command; over HTTP, `/openapi.json` on the same socket says what is taken",
        ),
        Code::Cancelled => (
            "the move was cancelled",
            "nothing to do: the guest runs where it was",
        ),
        _ => return None,
    })
}
