//! What a host's journal says of a guest, and its bytes.

use serde::{Deserialize, Serialize};

use crate::fault::{Code, Fault};
use crate::identity::{AttemptId, Epoch, GuestId, HostIdentity};

/// Most bytes of an encoded record: it has to fit a slot of the journal with room to grow.
pub const RECORD_BYTES_MAX: usize = 1024;

/// Most sources whose last verdict a record remembers; with three names of 63 bytes each, more would not fit the record.
/// A host asked about an attempt it has forgotten stays silent, which is safe: see [`Record::verdicts`].
pub const VERDICT_COUNT_MAX: usize = 3;

/// Highest epoch a peer may name: half of all numbers stay free for an operator's forced resolution.
pub const EPOCH_MAX: Epoch = Epoch(1 << 63);

/// How far an epoch may be above the mark of a host that has not seen the ones between: far more handovers than a guest has in its life, some of them forced, which
/// takes 2^32 numbers each, and few enough that nobody who offers a guest takes all numbers from it.
pub const EPOCH_STEP_MAX: u64 = 1 << 40;

/// How far a source follows its target's mark at once. A target may say what it likes, and each lie brings the
/// guest closer to what hosts that remember it refuse: this many times 256.
pub const EPOCH_FOLLOW_MAX: u64 = 1 << 32;

/// Highest epoch a host takes that has never heard of the guest: where that comes from, it may have had to go
/// above what others said of it, again and again.
pub const EPOCH_FIRST_MAX: Epoch = Epoch(1 << 62);

const _: () = assert!(EPOCH_STEP_MAX > 1 << 32, "a forced handover is taken");

const MAGIC: [u8; 4] = *b"TPow";
const VERSION: u8 = 1;

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
    /// Highest epoch this host has ever seen for the guest; it never falls. Every attempt has an epoch
    /// of its own, one above the source's mark, so that whatever is older than a mark is dead for ever.
    pub high_water: Epoch,
    /// Whose durable write is the commit point of this guest's handovers; it never changes on its own.
    pub decider: Decider,
    /// The durable state.
    pub state: State,
    /// The last verdict on each source's attempts that were prepared here, oldest first: a `Commit` said again
    /// gets the same answer again, however far the guest has gone since. An attempt that is neither here
    /// nor above `high_water` is not answered at all: an `Ack` could lose the guest, a `Nack` double it.
    pub verdicts: Vec<Verdict>,
}

/// Where the commit point lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Decider {
    /// Mode A: the source's journal.
    SourceJournal,
    /// Mode B: a register at a witness, changed by compare-and-swap only.
    Witness,
}

/// Who owns a guest, as the witness's register says it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Holder {
    /// The owner.
    pub host: HostIdentity,
    /// The epoch of its ownership.
    pub epoch: Epoch,
}

/// What this host decided as the target of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Verdict {
    /// The attempt and who offered it.
    pub origin: Origin,
    /// The epoch it was offered with.
    pub epoch: Epoch,
    /// Whether the guest was taken; if not, it never will be under this attempt.
    pub is_taken: bool,
}

/// Where a guest comes from: an attempt and the host that offers it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Origin {
    /// The attempt.
    pub attempt: AttemptId,
    /// The host that offers the guest.
    pub source: HostIdentity,
}

/// The durable states of `spec/handover.md`.
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
    /// The guest lives here and may run while it is being copied to a target, which would get
    /// `high_water` as its epoch.
    Offering {
        /// The epoch of this ownership.
        epoch: Epoch,
        /// The attempt.
        attempt: AttemptId,
        /// Who is to get it.
        target: HostIdentity,
    },
    /// The commit point of mode A: the guest is the target's unless the target refuses.
    Relinquished {
        /// The epoch of the ownership that ends, or goes on if the target refuses.
        owned: Epoch,
        /// The epoch the target gets.
        epoch: Epoch,
        /// The attempt.
        attempt: AttemptId,
        /// Who gets it.
        target: HostIdentity,
        /// What the target must have to run.
        root: Root,
        /// Whether the target had every block at the switch; if not, only `Complete` releases.
        is_whole: bool,
    },
    /// Mode B: whether the guest is the target's says the register; it may not run here until the
    /// register says that it is not.
    Offered {
        /// The epoch of this ownership, which the register shows until somebody wins.
        owned: Epoch,
        /// The epoch the winner gets.
        epoch: Epoch,
        /// The attempt.
        attempt: AttemptId,
        /// Who may take it.
        target: HostIdentity,
        /// What the target must have to run.
        root: Root,
        /// Whether the target had every block at the switch; if not, only `Complete` releases.
        is_whole: bool,
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
    /// The guest is being received; it may not run. In mode B also while the register names this host:
    /// won there and not yet owned here means that it never ran, so it can be handed back.
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
        /// The epoch this host would have got.
        epoch: Epoch,
        /// The refused attempt.
        attempt: AttemptId,
        /// Who offered it.
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

    /// The highest epoch the state speaks of.
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
    /// The record's bytes.
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

    /// The record some bytes hold.
    ///
    /// # Errors
    ///
    /// `E_QUARANTINE` unless the bytes are exactly what [`Record::encode`] makes of a possible record.
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
        // One record has one encoding: padded numbers, for example, are somebody's forgery.
        if record.encode() != bytes {
            return Err(wrong("not in its shortest form".to_owned()));
        }
        Ok(record)
    }

    /// What no host ever writes.
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

    /// What was decided about an attempt that was prepared here, if that is still remembered.
    #[must_use]
    pub fn verdict(&self, attempt: AttemptId) -> Option<&Verdict> {
        self.verdicts
            .iter()
            .find(|verdict| verdict.origin.attempt == attempt)
    }

    /// Remembers a verdict and forgets the oldest where there is no room. A source has one open attempt: whoever
    /// offers the guest anew has heard what became of the one before.
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
