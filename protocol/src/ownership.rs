//! Who may run a guest: epochs, attempts, and the journal's states.
//!
//! This is the law of the handover and nothing else: it knows no blocks and no streams. A shell feeds
//! it [`Event`]s and carries out [`Action`]s *in the order they come*: an action that fails stops the
//! ones behind it. A crash forgets everything but the last [`Record`] whose `Persist` was carried out;
//! [`Ownership::recover`] starts again from it.
//!
//! ```text
//!   source                                        target
//!   Owned(e) ◄──────────────┐                     Vacant, Released, Refused ◄──────┐
//!      │ Offer              │ Withdraw, Nack         │ Prepare(e' > high water)     │ GiveUp, Abort,
//!   Offering(e) ────────────┤                     Prepared(e') ────────────────────┤ Commit without
//!      │ Sealed(R), Ready(R)│                        │ Commit(e', R), image is R    │ an image: Nack
//!   Relinquished(e → e') ───┘ Nack                Owned(e') ── runs, says Ack
//!      │ Ack, or Complete if blocks were missing     │ ImageComplete
//!   Released(e')                                  Owned(e'), nothing missing: may be offered again
//! ```
//!
//! In mode B ([`Decider::Witness`]) the source's journal says `Offered` in place of `Relinquished`, and
//! a register at a witness decides: the target swaps the owner in it before it takes the guest, the
//! source swaps it back before it runs on. One of the two swaps fails, see `witness.rs`.
//!
//! What the shell owes the machine:
//! - it carries actions out in order, and drops the machine if one fails;
//! - an image belongs to one attempt: what survives a restart under another attempt is not this one's;
//! - after a restart in `Prepared` it says `ImageReady` if the image survived whole, else `GiveUp`;
//! - attempts are random numbers, drawn afresh for every `Offer`.

mod record;
mod source_side;
mod target_side;
mod witness;

use std::collections::VecDeque;

use crate::fault::{Code, Fault};
use crate::identity::{AttemptId, Epoch, GuestId, HostIdentity};

pub use record::{
    Decider, EPOCH_FIRST_MAX, EPOCH_FOLLOW_MAX, EPOCH_MAX, EPOCH_STEP_MAX, Holder, Origin,
    RECORD_BYTES_MAX, Record, Root, State, VERDICT_COUNT_MAX, Verdict,
};

/// Most actions that wait for [`Ownership::poll`]: an event makes at most five, so a shell that polls
/// after each event never sees the limit, and one that does not cannot be filled by a peer.
pub const ACTION_COUNT_MAX: usize = 64;

const EVENT_ACTION_COUNT_MAX: usize = 5;

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
    /// Source, mode B: take it at the witness; durable at the source before it is said.
    Offer {
        /// The epoch the register shows for the source.
        owned: Epoch,
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
    /// Source: the guest is frozen and all the target needs to run it was sent.
    Sealed {
        /// The root computed here.
        root: Root,
        /// Whether all blocks went with it; if not, the target fetches the rest while it runs and the
        /// guest is released only when it says `Complete`.
        is_whole: bool,
    },
    /// Source: the freeze was given up before the commit; the attempt goes on with a running guest.
    Unsealed,
    /// Source: end this attempt before its commit (cancel, wrong bytes, deadline).
    Withdraw,
    /// Source: a target has seen this epoch; the next attempt is to get one above it.
    Outrun {
        /// The target's mark.
        mark: Epoch,
    },
    /// Target: the image is whole and verified.
    ImageReady {
        /// The root computed here.
        root: Root,
    },
    /// Target: nothing is missing any more. Before the switch: behind the `ImageReady` it belongs to.
    /// Also after a cold boot, when there is nothing left to wait for.
    ImageComplete,
    /// Target: the image cannot be had any more, or the attempt is given up before its commit.
    GiveUp,
    /// The lanes are back, or it is time to say again what the other side may have missed.
    Repeat,
    /// Source, mode B: the target is silent for too long, take the guest back at the witness.
    Reclaim,
    /// Mode B: the register, as the answer to a swap or a read says.
    Register {
        /// Who holds the guest.
        holder: Holder,
    },
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
    /// Start the vCPUs under this epoch: behind the `Persist` that allows it, and after a restart of
    /// an owner, where it means: take the running guest over, or thaw it, or boot it. Never a second
    /// start of a guest that runs.
    Run {
        /// The epoch this host now owns the guest with.
        epoch: Epoch,
    },
    /// Mode B: if the register shows `expected`, make it show `new`; either way report what it shows
    /// then as [`Event::Register`].
    Swap {
        /// What it must show.
        expected: Holder,
        /// What it is to show.
        new: Holder,
    },
    /// Mode B: report the register as [`Event::Register`].
    ReadRegister,
    /// Source: let the frozen guest run on, or boot it if its memory is lost; harmless if it runs.
    Thaw,
    /// Target: throw the image and the guest process of any earlier attempt away; harmless if none.
    DiscardImage,
    /// Source: the image is no longer needed by anybody: free it; harmless if it is gone.
    FreeImage,
}

/// What is known beyond the record; a restart forgets it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Progress {
    /// Nothing.
    None,
    /// Source, offering: frozen, and this was sent.
    Sealed { root: Root, is_whole: bool },
    /// Source, relinquished: the target said that it runs.
    Acknowledged,
    /// Target, prepared, after a restart: only the shell can tell whether the image survived.
    ImageUnknown,
    /// Target, prepared: the image is coming.
    Receiving,
    /// Target, prepared: the image is here.
    ImageReady { root: Root, is_whole: bool },
    /// Target, mode B: the image is here and the witness is asked for the guest.
    Taking { root: Root, is_whole: bool },
}

/// Who may run one guest, as one host sees it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ownership {
    host: HostIdentity,
    record: Record,
    progress: Progress,
    actions: VecDeque<Action>,
}

impl Ownership {
    /// A guest that is created here, and the record to persist before it is started.
    #[must_use]
    pub fn owner(host: HostIdentity, guest: GuestId, epoch: Epoch) -> (Self, Record) {
        let record = Record {
            guest,
            high_water: epoch,
            decider: Decider::SourceJournal,
            state: State::Owned {
                epoch,
                missing_from: None,
            },
            verdicts: Vec::new(),
        };
        (Self::new(host, record.clone()), record)
    }

    /// A guest this host has never seen.
    #[must_use]
    pub fn vacant(host: HostIdentity, guest: GuestId) -> Self {
        let record = Record {
            guest,
            high_water: Epoch(0),
            decider: Decider::SourceJournal,
            state: State::Vacant,
            verdicts: Vec::new(),
        };
        Self::new(host, record)
    }

    /// The same new machine with another decider; hosts that do not agree on it refuse each other.
    #[must_use]
    pub const fn decided_by(mut self, decider: Decider) -> Self {
        self.record.decider = decider;
        self
    }

    /// The machine after a restart of this host: it decides from the durable record alone, and its
    /// first actions carry the decision out.
    #[must_use]
    pub fn recover(host: HostIdentity, record: Record) -> Self {
        let mut machine = Self::new(host, record);
        match machine.record.state.clone() {
            State::Vacant | State::Relinquished { .. } => {}
            State::Owned { epoch, .. } => machine.act(Action::Run { epoch }),
            State::Offering { .. } => machine.return_to_owned(true),
            State::Offered { .. } => machine.act(Action::ReadRegister),
            State::Released { .. } => machine.act(Action::FreeImage),
            State::Prepared { .. } => machine.progress = Progress::ImageUnknown,
            State::Refused { .. } => machine.act(Action::DiscardImage),
        }
        machine
    }

    fn new(host: HostIdentity, record: Record) -> Self {
        Self {
            host,
            record,
            progress: Progress::None,
            actions: VecDeque::new(),
        }
    }

    /// Which host this is.
    #[must_use]
    pub const fn host(&self) -> &HostIdentity {
        &self.host
    }

    /// The record as decided: durable once every action polled so far has been carried out and none waits.
    #[must_use]
    pub const fn record(&self) -> &Record {
        &self.record
    }

    /// Whether the record lets this host run the guest.
    #[must_use]
    pub const fn may_run(&self) -> bool {
        matches!(
            self.record.state,
            State::Owned { .. } | State::Offering { .. }
        )
    }

    /// Whether this host owns the guest, or has given it away and was not told that it is taken: then no offer of
    /// it can be right.
    #[must_use]
    pub const fn lives_here(&self) -> bool {
        match self.record.state {
            State::Owned { .. }
            | State::Offering { .. }
            | State::Relinquished { .. }
            | State::Offered { .. } => true,
            State::Vacant
            | State::Released { .. }
            | State::Prepared { .. }
            | State::Refused { .. } => false,
        }
    }

    /// What was decided here about an attempt of a source, if that is remembered: whether the guest was taken.
    #[must_use]
    pub fn decision(&self, source: &HostIdentity, attempt: AttemptId) -> Option<bool> {
        match (self.record.verdict(attempt), &self.record.state) {
            (Some(verdict), _) => (verdict.origin.source == *source).then_some(verdict.is_taken),
            (
                None,
                State::Refused {
                    attempt: refused,
                    source: from,
                    ..
                },
            ) => (*refused == attempt && from == source).then_some(false),
            _ => None,
        }
    }

    /// What has to be kept of a guest that is ended here for good, so that this host goes on answering as it has
    /// answered: a source that missed our last word must neither let its guest run on nor wait for ever. Nothing
    /// for a guest that was never handed over.
    ///
    /// # Errors
    ///
    /// `E_STATE` while the guest is between two hosts.
    pub fn remainder(&self) -> Result<Option<Record>, Fault> {
        let state = match &self.record.state {
            State::Owned { epoch, .. } => {
                let is_native = self.record.verdicts.is_empty();
                if is_native && *epoch == self.record.high_water {
                    return Ok(None);
                }
                State::Vacant
            }
            State::Vacant | State::Released { .. } => State::Vacant,
            // Says no to its attempt, which no verdict does.
            refused @ State::Refused { .. } => refused.clone(),
            State::Offering { .. }
            | State::Relinquished { .. }
            | State::Offered { .. }
            | State::Prepared { .. } => return Err(self.unfit("it cannot be ended")),
        };
        Ok(Some(Record {
            state,
            ..self.record.clone()
        }))
    }

    /// Whether no handover is under way here and nothing waits to be done.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let is_open = match &self.record.state {
            State::Vacant | State::Released { .. } | State::Refused { .. } => false,
            State::Owned { missing_from, .. } => missing_from.is_some(),
            State::Offering { .. }
            | State::Relinquished { .. }
            | State::Offered { .. }
            | State::Prepared { .. } => true,
        };
        !is_open && self.actions.is_empty()
    }

    /// Takes in what happened.
    ///
    /// # Errors
    ///
    /// A fault to report; nothing was changed then, and nothing has to be done about it here. The
    /// codes: `E_STATE` for a request that does not fit, `E_UNEXPECTED`, `E_DENIED`, `E_ROOT`,
    /// `E_CONFLICT`, `E_META` and `E_STALE_EPOCH` for a peer's words that are ignored, `E_GUEST_EXISTS` and
    /// `E_DOUBLE_OFFER` for an offer that is refused, `E_BUSY` while too many actions wait.
    pub fn handle(&mut self, event: Event) -> Result<(), Fault> {
        if self.actions.len() + EVENT_ACTION_COUNT_MAX > ACTION_COUNT_MAX {
            let waiting = self.actions.len();
            return Err(Fault::new(Code::Busy, format!("{waiting} actions wait")));
        }
        match event {
            Event::Offer { attempt, target } => self.offer(attempt, target),
            Event::Sealed { root, is_whole } => self.seal(root, is_whole),
            Event::Unsealed => self.unseal(),
            Event::Withdraw => self.withdraw(),
            Event::Outrun { mark } => self.outrun(mark),
            Event::ImageReady { root } => self.image_ready(root),
            Event::ImageComplete => self.image_complete(),
            Event::GiveUp => self.give_up(),
            Event::Reclaim => self.reclaim(),
            Event::Register { holder } => self.read_register(&holder),
            Event::Repeat => {
                self.repeat();
                Ok(())
            }
            Event::Heard {
                from,
                attempt,
                word,
            } => self.heard(from, attempt, &word),
        }
    }

    /// The next thing to do, in order.
    pub fn poll(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    fn heard(&mut self, from: HostIdentity, attempt: AttemptId, word: &Word) -> Result<(), Fault> {
        let origin = |source| Origin { attempt, source };
        match word {
            Word::Prepare { epoch } => self.heard_prepare(origin(from), *epoch),
            Word::Commit { epoch, root } => self.heard_commit(origin(from), *epoch, *root, None),
            Word::Offer { owned, epoch, root } => {
                self.heard_commit(origin(from), *epoch, *root, Some(*owned))
            }
            Word::Abort => self.heard_abort(&origin(from)),
            Word::Released => self.heard_released(&origin(from)),
            Word::Prepared | Word::Ready { .. } | Word::Ack | Word::Nack | Word::Complete => {
                self.heard_from_target(&from, attempt, word)
            }
        }
    }

    /// Says again what the other side may have missed. What a source repeats draws the target's answer,
    /// so the two need no memory of what arrived.
    fn repeat(&mut self) {
        match self.record.state.clone() {
            State::Vacant | State::Refused { .. } => {}
            State::Owned { missing_from, .. } => {
                if let Some(origin) = missing_from {
                    self.say(origin.source, origin.attempt, Word::Ack);
                }
            }
            State::Offering {
                attempt, target, ..
            } => {
                let epoch = self.record.high_water;
                self.say(target, attempt, Word::Prepare { epoch });
            }
            State::Relinquished {
                epoch,
                attempt,
                target,
                root,
                ..
            } => self.say(target, attempt, Word::Commit { epoch, root }),
            State::Offered {
                owned,
                epoch,
                attempt,
                target,
                root,
                ..
            } => self.say(target, attempt, Word::Offer { owned, epoch, root }),
            State::Released {
                attempt, target, ..
            } => self.say(target, attempt, Word::Released),
            State::Prepared {
                attempt, source, ..
            } => {
                let word = match self.progress {
                    Progress::ImageReady { root, .. } | Progress::Taking { root, .. } => {
                        Word::Ready { root }
                    }
                    _ => Word::Prepared,
                };
                self.say(source, attempt, word);
            }
        }
    }

    fn act(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    fn say(&mut self, to: HostIdentity, attempt: AttemptId, word: Word) {
        self.act(Action::Say { to, attempt, word });
    }

    /// Changes the durable state: nothing queued behind this happens before it is on disk.
    fn persist(&mut self, state: State, progress: Progress) {
        self.record.state = state;
        self.progress = progress;
        self.act(Action::Persist(self.record.clone()));
    }

    fn unfit(&self, what: &str) -> Fault {
        let state = self.record.state.name();
        Fault::new(Code::State, format!("{what}: the guest is {state} here"))
    }
}
