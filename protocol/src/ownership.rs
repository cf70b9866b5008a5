//! Who may run a guest: epochs, attempts, and the journal's states.
//!
//! This is the law of the handover and nothing else: it knows no blocks and no streams. A shell feeds
//! it [`Event`]s and carries out [`Action`]s *in the order they come*: an action that fails stops the
//! ones behind it. A crash forgets everything but the last [`Record`] whose `Persist` was carried out;
//! [`Ownership::recover`] starts again from it.

use serde::{Deserialize, Serialize};

use crate::identity::{AttemptId, Epoch, GuestId, HostIdentity};

/// A hash over everything the target must have before it may run: chunks, manifest, device state.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Root(pub [u8; 32]);

impl std::fmt::Debug for Root {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "root ")?;
        self.0[..6]
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What the journal of one host says of one guest. The only thing that survives a power loss.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Record {
    /// Which guest.
    pub guest: GuestId,
    /// Highest epoch this host has ever seen for the guest; it never falls.
    pub high_water: Epoch,
    /// The durable state.
    pub state: State,
}

/// The durable states of `spec/handover.md`; mode A's, and the witness's where marked.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum State {
    /// The guest does not live here.
    Vacant,
    /// The guest lives here and may run.
    Owned {
        /// The epoch of this ownership.
        epoch: Epoch,
    },
    /// The guest lives here and may run while it is being copied to a target.
    Offering {
        /// The epoch of this ownership; the target would get the next one.
        epoch: Epoch,
        /// The attempt.
        attempt: AttemptId,
        /// Who is to get it.
        target: HostIdentity,
    },
    /// The commit point of mode A: the guest is the target's unless the target refuses.
    Relinquished {
        /// The epoch the target gets.
        epoch: Epoch,
        /// The attempt.
        attempt: AttemptId,
        /// Who gets it.
        target: HostIdentity,
        /// What the target must have to run.
        root: Root,
    },
    /// The guest has left for good.
    Released {
        /// The epoch the target has.
        epoch: Epoch,
        /// The attempt, to answer late messages.
        attempt: AttemptId,
        /// Who has it.
        target: HostIdentity,
    },
    /// The guest is being received; it may not run.
    Prepared {
        /// The epoch this host would get.
        epoch: Epoch,
        /// The attempt.
        attempt: AttemptId,
        /// Who offers it.
        source: HostIdentity,
    },
    /// This attempt is refused for ever.
    Refused {
        /// The refused attempt.
        attempt: AttemptId,
        /// Who offered it.
        source: HostIdentity,
    },
}

/// What two hosts say to each other about a guest's ownership; [`crate::message`] dresses it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Word {
    /// Source: will you take epoch so-and-so?
    Prepare {
        /// The epoch the target would get.
        epoch: Epoch,
    },
    /// Target: yes.
    Prepared,
    /// Target: the image is whole, this is its root.
    Ready {
        /// What the target has.
        root: Root,
    },
    /// Source: it is yours; durable at the source before it is said.
    Commit {
        /// The epoch the target gets.
        epoch: Epoch,
        /// What the target must have.
        root: Root,
    },
    /// Target: I own it, durably, and run it.
    Ack,
    /// Target: I never will under this attempt; durable before it is said.
    Nack,
    /// Source: forget this attempt.
    Abort,
    /// Target: nothing of the image is missing any more.
    Complete,
    /// Source: let go, durably.
    Released,
}

/// What happened at this host, or was heard.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Event {
    /// Source: an operator wants the guest to move; `attempt` is random and was never used.
    Offer {
        /// The new attempt.
        attempt: AttemptId,
        /// Who is to get it.
        target: HostIdentity,
    },
    /// Source: the guest is frozen and all of it was sent: this is its root.
    Sealed {
        /// The root computed here.
        root: Root,
    },
    /// Source: the freeze was given up before the commit; the attempt goes on with a running guest.
    Unsealed,
    /// Source: end this attempt before its commit (cancel, wrong bytes, deadline).
    Withdraw,
    /// Target: the image is whole and verified.
    ImageReady {
        /// The root computed here.
        root: Root,
    },
    /// Target: nothing is missing any more (said after the switch).
    ImageComplete,
    /// Target: the image cannot be had any more, or the attempt is given up before its commit.
    GiveUp,
    /// The lanes are back, or it is time to say again what the other side may have missed.
    Repeat,
    /// The peer said something about `attempt`.
    Heard {
        /// Who said it: proved by the tunnel.
        from: HostIdentity,
        /// The attempt it speaks of.
        attempt: AttemptId,
        /// What was said.
        word: Word,
    },
}

/// What the shell must do, in order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Action {
    /// Write this record durably; nothing behind it may happen before that.
    Persist(Record),
    /// Say this to the peer of the attempt; it may be lost.
    Say {
        /// To whom.
        to: HostIdentity,
        /// About which attempt.
        attempt: AttemptId,
        /// What.
        word: Word,
    },
    /// Target: start the vCPUs under this epoch. Always behind the `Persist` that allows it.
    Run {
        /// The epoch this host now owns the guest with.
        epoch: Epoch,
    },
    /// Source: let the frozen guest run on; harmless if it runs.
    Thaw,
    /// Target: throw the image and the guest process of this attempt away.
    DiscardImage,
    /// Source: the image is no longer needed by anybody: free it.
    FreeImage,
}
