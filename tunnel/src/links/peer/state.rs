//! The state of a peer: the link in use, whether the peer answers on it, and what prevents a link.

use std::sync::Arc;
use std::time::SystemTime;

use towpath_protocol::fault::{Code, Fault};

use crate::links::link::Link;
use crate::links::watchdog::Hearing;
use crate::operators::health::Whose;

/// The state of the connection to a peer.
#[derive(Debug, Clone)]
pub(crate) struct State {
    pub link: Option<Arc<Link>>,
    /// Whether the peer answers on the link.
    pub hearing: Hearing,
    /// Whether a new link is wanted although this one works.
    pub is_outdated: bool,
    /// Whether the configuration no longer names the peer.
    pub is_removed: bool,
    /// Why there is no link, or why the last one ended.
    pub reason: String,
    /// The remedy for `reason`, if one is known.
    pub remedy: Option<String>,
    /// An obstacle that waiting does not remove; cleared once there is a link again.
    pub barred: Option<Barred>,
    pub since: SystemTime,
}

impl State {
    /// Whether a request over the link is likely to succeed now.
    pub(crate) const fn is_usable(&self) -> bool {
        self.link.is_some() && matches!(self.hearing, Hearing::Heard)
    }

    /// The link in use, if the peer does not answer on it and no new link is wanted in its place.
    pub(crate) fn waited_for(&self) -> Option<&Arc<Link>> {
        let is_waited_for = !self.is_usable() && !self.is_outdated;
        self.link.as_ref().filter(|_| is_waited_for)
    }

    /// The link, unless the peer counts as lost on it.
    pub(crate) fn up(&self) -> Option<&Arc<Link>> {
        self.link.as_ref().filter(|_| self.hearing != Hearing::Lost)
    }

    /// Whether the peer is only presumed to have taken the link in use.
    pub(super) fn is_presumed(&self) -> bool {
        self.link.as_ref().is_some_and(|link| !link.is_joined())
    }

    /// Whether this is the link in use.
    pub(super) fn uses(&self, link: &Arc<Link>) -> bool {
        let current = self.link.as_ref();
        current.is_some_and(|current| Arc::ptr_eq(current, link))
    }

    /// Records what prevents a link now; returns whether that changed. `None` does not clear our
    /// own refusal of the peer's certificate, which still holds. It clears the others, which may be
    /// over: the peer may be down for an upgrade, for example.
    pub(super) fn bar(&mut self, barred: Option<Barred>) -> bool {
        let (before, refused) = (self.barred, Some(Barred::Revoked(Whose::Peers)));
        self.barred = match barred {
            None if before == refused => refused,
            other => other,
        };
        self.barred != before
    }
}

/// An obstacle that waiting does not remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Barred {
    /// A certificate is revoked: the peer's, which we refuse, or ours, according to the peer.
    Revoked(Whose),
    /// The peer has no version in common with us.
    NoVersion,
}

impl Barred {
    /// The code local programs see. If our own certificate is revoked they learn only that there is
    /// no link.
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
    /// The obstacle, if waiting does not remove it.
    pub barred: Option<Barred>,
}

impl From<Fault> for Unreached {
    fn from(fault: Fault) -> Self {
        let barred = (fault.code == Code::Version).then_some(Barred::NoVersion);
        Self { fault, barred }
    }
}
