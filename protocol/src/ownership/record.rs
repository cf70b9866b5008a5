//! The journal record of a guest at one host, and its encoding.

use serde::{Deserialize, Serialize};

use crate::fault::{Code, Fault};
use crate::identity::{AttemptId, Epoch, GuestId, HostIdentity};

/// Most bytes of an encoded record. It must fit a slot of the journal, with room to grow.
pub const RECORD_BYTES_MAX: usize = 1024;

/// Most sources whose last verdict a record remembers. More would not fit the record, with three
/// names of 63 bytes each. A host asked about an attempt that it has forgotten stays silent, which
/// is safe: see [`Record::verdicts`].
pub const VERDICT_COUNT_MAX: usize = 3;

/// Highest epoch that a peer may name. Half of all numbers stay free for resolutions forced by an
/// operator.
pub const EPOCH_MAX: Epoch = Epoch(1 << 63);

/// How far an epoch may be above the mark of a host that has not seen the ones between. Far more
/// than the handovers in a guest's life, some of them forced, which take 2^32 numbers each. Yet
/// small enough that nobody who offers a guest can use up all its numbers.
pub const EPOCH_STEP_MAX: u64 = 1 << 40;

/// How far a source follows its target's mark at once. A target may lie about its mark, and each
/// lie brings the guest closer to epochs that hosts which remember it refuse: 256 lies reach
/// [`EPOCH_STEP_MAX`].
pub const EPOCH_FOLLOW_MAX: u64 = 1 << 32;

/// Highest epoch accepted by a host that has never heard of the guest. Its source may have had to
/// go above the marks of other hosts, again and again.
pub const EPOCH_FIRST_MAX: Epoch = Epoch(1 << 62);

const _: () = assert!(EPOCH_STEP_MAX > 1 << 32, "a forced handover is taken");

const MAGIC: [u8; 4] = *b"TPow";
const VERSION: u8 = 1;

/// A hash of everything the target must have before it may run the guest: chunks, manifest, device
/// state.
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

/// The journal record of one guest at one host. The only state that survives a power loss.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Record {
    /// The guest.
    pub guest: GuestId,
    /// Highest epoch that this host has ever seen for the guest. It never falls. Every attempt has
    /// an epoch of its own, one above the source's mark, so that anything older than a mark is dead
    /// for ever.
    pub high_water: Epoch,
    /// Whose durable write is the commit point of this guest's handovers. Never changes on its own.
    pub decider: Decider,
    /// The durable state.
    pub state: State,
    /// The last verdict on each source's attempts that were prepared here, oldest first. A repeated
    /// `Commit` gets the same answer again, however far the guest has gone since. An attempt that
    /// is neither here nor above `high_water` is not answered at all: an `Ack` could lose the
    /// guest, a `Nack` could duplicate it.
    pub verdicts: Vec<Verdict>,
}

/// Where the commit point of a handover is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Decider {
    /// Mode A: the source's journal.
    SourceJournal,
    /// Mode B: a register at a witness, changed only by compare-and-swap.
    Witness,
}

/// The owner of a guest, as in the witness's register.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Holder {
    /// The owner.
    pub host: HostIdentity,
    /// The epoch of its ownership.
    pub epoch: Epoch,
}

/// The decision of this host as the target of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Verdict {
    /// The attempt and its source.
    pub origin: Origin,
    /// The epoch it was offered with.
    pub epoch: Epoch,
    /// Whether the guest was taken. If not, it never will be under this attempt.
    pub is_taken: bool,
}

/// The origin of a guest: an attempt and the host that offers it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Origin {
    /// The attempt.
    pub attempt: AttemptId,
    /// The host that offers the guest.
    pub source: HostIdentity,
}

/// How much of a guest its target has once the guest was given away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Delivery {
    /// Blocks were missing at the switch: only `Complete` releases the guest.
    Partial,
    /// The target had every block at the switch: its `Ack` releases the guest.
    Whole,
    /// As [`Self::Partial`], and the target has acknowledged that the guest runs there. No later
    /// refusal counts, also after a restart of this host: the guest would run twice, or anew from
    /// a state that it has left.
    Acknowledged,
}

/// The durable states of `docs/handover.md`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum State {
    /// The guest does not live here.
    Vacant,
    /// The guest lives here and may run.
    Owned {
        /// The epoch of this ownership.
        epoch: Epoch,
        /// The source that still holds blocks of it; `None` once nothing is missing.
        missing_from: Option<Origin>,
    },
    /// The guest lives here and may run, while it is copied to a target, which would get
    /// `high_water` as its epoch.
    Offering {
        /// The epoch of this ownership.
        epoch: Epoch,
        /// The attempt.
        attempt: AttemptId,
        /// The target.
        target: HostIdentity,
    },
    /// The commit point of mode A: the guest is the target's, unless the target refuses it.
    Relinquished {
        /// The epoch of the ownership that ends, or continues if the target refuses.
        owned: Epoch,
        /// The epoch that the target gets.
        epoch: Epoch,
        /// The attempt.
        attempt: AttemptId,
        /// The target.
        target: HostIdentity,
        /// The root that the target's image must have.
        root: Root,
        /// How much of the guest the target has, and whether it is known to run there.
        delivery: Delivery,
    },
    /// Mode B: the register decides whether the guest is the target's. It may not run here until
    /// the register says that it is not.
    Offered {
        /// The epoch of this ownership, which the register shows until one side wins.
        owned: Epoch,
        /// The epoch that the winner gets.
        epoch: Epoch,
        /// The attempt.
        attempt: AttemptId,
        /// The target.
        target: HostIdentity,
        /// The root that the target's image must have.
        root: Root,
        /// How much of the guest the target has, and whether it is known to run there.
        delivery: Delivery,
    },
    /// The guest has left for good.
    Released {
        /// The epoch of the target.
        epoch: Epoch,
        /// The attempt, for answering late messages.
        attempt: AttemptId,
        /// The target.
        target: HostIdentity,
    },
    /// The guest is being received and may not run. In mode B this is also the state while the
    /// register already names this host. A guest won there and not yet owned here has never run, so
    /// it can be handed back.
    Prepared {
        /// The epoch this host would get.
        epoch: Epoch,
        /// The attempt.
        attempt: AttemptId,
        /// The source.
        source: HostIdentity,
    },
    /// This attempt is refused for ever.
    Refused {
        /// The epoch this host would have got.
        epoch: Epoch,
        /// The refused attempt.
        attempt: AttemptId,
        /// The source.
        source: HostIdentity,
    },
}

impl State {
    /// The state's name, for logs and tables.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Vacant => "vacant",
            Self::Owned { .. } => "owned",
            Self::Offering { .. } => "offering",
            Self::Relinquished { .. } => "relinquished",
            Self::Offered { .. } => "offered",
            Self::Released { .. } => "released",
            Self::Prepared { .. } => "prepared",
            Self::Refused { .. } => "refused",
        }
    }

    /// The epoch in the state.
    const fn epoch(&self) -> Epoch {
        match self {
            Self::Vacant => Epoch(0),
            Self::Owned { epoch, .. }
            | Self::Offering { epoch, .. }
            | Self::Relinquished { epoch, .. }
            | Self::Offered { epoch, .. }
            | Self::Released { epoch, .. }
            | Self::Prepared { epoch, .. }
            | Self::Refused { epoch, .. } => *epoch,
        }
    }
}

impl Record {
    /// Encodes the record.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.push(VERSION);
        let body = postcard::to_allocvec(self).expect("plain structs always serialise");
        bytes.extend_from_slice(&body);
        assert!(
            bytes.len() <= RECORD_BYTES_MAX,
            "names and verdicts are bounded, so a record is"
        );
        bytes
    }

    /// Decodes a record.
    ///
    /// # Errors
    ///
    /// `E_QUARANTINE` unless the bytes are exactly what [`Record::encode`] makes of a possible
    /// record.
    pub fn decode(bytes: &[u8]) -> Result<Self, Fault> {
        let wrong = |why: String| Fault::new(Code::Quarantine, format!("journal record: {why}"));
        if bytes.len() > RECORD_BYTES_MAX {
            return Err(wrong(format!("{} bytes", bytes.len())));
        }
        let Some(body) = bytes.strip_prefix(&MAGIC) else {
            return Err(wrong("wrong magic".to_owned()));
        };
        let body = match body.split_first() {
            Some((&VERSION, body)) => body,
            Some((version, _)) => return Err(wrong(format!("version {version} is not known"))),
            None => return Err(wrong("no version".to_owned())),
        };
        let (record, rest) =
            postcard::take_from_bytes::<Self>(body).map_err(|error| wrong(error.to_string()))?;
        if !rest.is_empty() {
            return Err(wrong(format!("{} bytes left", rest.len())));
        }
        record.check().map_err(wrong)?;
        // A record has exactly one encoding. Padded numbers, for example, are a forgery.
        if record.encode() != bytes {
            return Err(wrong("not in its shortest form".to_owned()));
        }
        Ok(record)
    }

    /// Refuses records that no host ever writes.
    fn check(&self) -> Result<(), String> {
        let (high_water, state_epoch) = (self.high_water, self.state.epoch());
        if state_epoch > high_water {
            return Err(format!("epoch {state_epoch} above mark {high_water}"));
        }
        if let State::Relinquished { owned, epoch, .. } | State::Offered { owned, epoch, .. } =
            self.state
            && owned >= epoch
        {
            return Err(format!("epoch {epoch} given away under epoch {owned}"));
        }
        if self.verdicts.len() > VERDICT_COUNT_MAX {
            return Err(format!("{} verdicts", self.verdicts.len()));
        }
        Ok(())
    }

    /// The verdict on an attempt that was prepared here, if it is still remembered.
    #[must_use]
    pub fn verdict(&self, attempt: AttemptId) -> Option<&Verdict> {
        self.verdicts
            .iter()
            .find(|verdict| verdict.origin.attempt == attempt)
    }

    /// Remembers a verdict, and forgets the oldest if there is no room. A source has only one open
    /// attempt: if it offers the guest anew, it knows how its previous attempt ended.
    pub(super) fn decide(&mut self, origin: Origin, epoch: Epoch, is_taken: bool) {
        self.verdicts
            .retain(|verdict| verdict.origin.source != origin.source);
        if self.verdicts.len() == VERDICT_COUNT_MAX {
            self.verdicts.remove(0);
        }
        self.verdicts.push(Verdict {
            origin,
            epoch,
            is_taken,
        });
    }
}
