//! What is known about the way to a peer: the link in use, whether the peer is heard over it, and what is in the way.

use std::sync::Arc;
use std::time::SystemTime;

use towpath_protocol::fault::{Code, Fault};

use crate::links::link::Link;
use crate::links::watchdog::Hearing;
use crate::operators::health::Whose;

/// What is known about the way to a peer.
#[derive(Debug, Clone)]
pub(crate) struct State {
    pub link: Option<Arc<Link>>,
    /// Whether the peer is heard over it.
    pub hearing: Hearing,
    /// A new link is wanted although this one works.
    pub is_outdated: bool,
    /// Why there is no link, or why the one before ended.
    pub reason: String,
    /// What to do about that, where whoever met it knows.
    pub remedy: Option<String>,
    /// What no waiting mends, until there is a link again.
    pub barred: Option<Barred>,
    pub since: SystemTime,
}

impl State {
    /// Whether what is asked of the link now is likely to succeed.
    pub(crate) const fn is_usable(&self) -> bool {
        self.link.is_some() && matches!(self.hearing, Hearing::Heard)
    }

    /// The link in use, if it does not answer, and is to be used on once it does.
    pub(crate) fn waited_for(&self) -> Option<&Arc<Link>> {
        let is_waited_for = !self.is_usable() && !self.is_outdated;
        self.link.as_ref().filter(|_| is_waited_for)
    }

    /// The link, unless it is down.
    pub(crate) fn up(&self) -> Option<&Arc<Link>> {
        self.link.as_ref().filter(|_| self.hearing != Hearing::Lost)
    }

    /// Whether the link in use is one that the peer is only presumed to have taken.
    pub(super) fn is_presumed(&self) -> bool {
        self.link.as_ref().is_some_and(|link| !link.is_joined())
    }

    /// Whether this is the link in use.
    pub(super) fn uses(&self, link: &Arc<Link>) -> bool {
        let current = self.link.as_ref();
        current.is_some_and(|current| Arc::ptr_eq(current, link))
    }

    /// Takes note of what keeps the peer away now. That we refuse it holds while nothing else is known; the others may
    /// be over, as when it is down to be upgraded.
    pub(super) fn bar(&mut self, barred: Option<Barred>) -> bool {
        let (before, refused) = (self.barred, Some(Barred::Revoked(Whose::Peers)));
        self.barred = match barred {
            None if before == refused => refused,
            other => other,
        };
        self.barred != before
    }
}

/// What no waiting mends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Barred {
    /// A certificate is revoked: the peer's, which we refuse, or ours, as the peer says.
    Revoked(Whose),
    /// The peer has no version in common with us.
    NoVersion,
}

impl Barred {
    /// As what it is told to programs: those who are refused themselves are told no more than that there is no link.
    pub(super) const fn code(self) -> Code {
        match self {
            Self::Revoked(Whose::Peers) => Code::Denied,
            Self::Revoked(Whose::Ours) => Code::Unreachable,
            Self::NoVersion => Code::Version,
        }
    }
}

/// Why a peer was not reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unreached {
    pub fault: Fault,
    /// If no waiting mends it: what it is.
    pub barred: Option<Barred>,
}

impl From<Fault> for Unreached {
    fn from(fault: Fault) -> Self {
        let barred = (fault.code == Code::Version).then_some(Barred::NoVersion);
        Self { fault, barred }
    }
}
