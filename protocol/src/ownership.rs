//! Who may run a guest: epochs, attempts, and the journal's states.
//!
//! This module holds the rules of the handover and nothing else: it knows no blocks and no streams.
//! A shell passes it [`Event`]s and carries out [`Action`]s *in the order they come*: if an action
//! fails, the ones after it must not happen. A crash loses everything except the last [`Record`]
//! whose `Persist` was carried out; [`Ownership::recover`] starts again from it.
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
//! In mode B ([`Decider::Witness`]) the source's journal holds `Offered` instead of `Relinquished`,
//! and a register at a witness decides. The target swaps the owner in the register before it takes
//! the guest; the source swaps it back before it resumes the guest. One of the two swaps fails, see
//! `witness.rs`.
//!
//! The shell's duties:
//! - It carries actions out in order, and drops the machine if one fails.
//! - An image belongs to one attempt. An image that survived a restart under another attempt does
//!   not count.
//! - After a restart in `Prepared` it sends `ImageReady` if the image survived whole, else
//!   `GiveUp`.
//! - Attempts are random numbers, drawn afresh for every `Offer`.

mod record;
mod source_side;
mod target_side;
mod witness;

use std::collections::VecDeque;

use crate::fault::{Code, Fault};
use crate::identity::{AttemptId, Epoch, GuestId, HostIdentity};

pub use record::{
    Decider, Delivery, EPOCH_FIRST_MAX, EPOCH_FOLLOW_MAX, EPOCH_MAX, EPOCH_STEP_MAX, Holder,
    Origin, RECORD_BYTES_MAX, Record, Root, State, VERDICT_COUNT_MAX, Verdict,
};

/// Most actions that wait for [`Ownership::poll`]. An event makes at most five, so a shell that
/// polls after each event never reaches the limit. With a shell that does not poll, the limit keeps
/// a peer from filling memory.
pub const ACTION_COUNT_MAX: usize = 64;

const EVENT_ACTION_COUNT_MAX: usize = 5;

/// A message between two hosts about a guest's ownership. [`crate::message`] encodes it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Word {
    /// Source: offers the guest under this epoch.
    Prepare {
        /// The epoch the target would get.
        epoch: Epoch,
    },
    /// Target: accepts the offer.
    Prepared,
    /// Target: the image is complete.
    Ready {
        /// The root of the target's image.
        root: Root,
    },
    /// Source: hands the guest over. Durable at the source before it is sent.
    Commit {
        /// The epoch the target gets.
        epoch: Epoch,
        /// The root that the target's image must have.
        root: Root,
    },
    /// Source, mode B: lets the target take the guest at the witness. Durable at the source before
    /// it is sent.
    Offer {
        /// The epoch that the register shows for the source.
        owned: Epoch,
        /// The epoch the target gets.
        epoch: Epoch,
        /// The root that the target's image must have.
        root: Root,
    },
    /// Target: owns the guest, durably, and runs it.
    Ack,
    /// Target: will never take the guest under this attempt. Durable before it is sent.
    Nack,
    /// Source: ends this attempt.
    Abort,
    /// Target: nothing of the image is missing any more.
    Complete,
    /// Source: has let go of the guest, durably.
    Released,
}

/// An event at this host, or a message that was received.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Event {
    /// Source: an operator wants the guest to move. `attempt` is random and was never used.
    Offer {
        /// The new attempt.
        attempt: AttemptId,
        /// The target.
        target: HostIdentity,
    },
    /// Source: the guest is frozen, and everything the target needs to run it was sent.
    Sealed {
        /// The root computed here.
        root: Root,
        /// Whether all blocks were sent. If not, the target fetches the rest while it runs, and the
        /// guest is released only after `Complete`.
        is_whole: bool,
    },
    /// Source: the freeze was ended before the commit. The attempt goes on while the guest runs.
    Unsealed,
    /// Source: end this attempt before its commit (cancel, wrong bytes, deadline).
    Withdraw,
    /// Source: a target has seen this epoch, so the next attempt needs one above it.
    Outrun {
        /// The highest epoch that the target has seen.
        mark: Epoch,
    },
    /// Target: the image is whole and verified.
    ImageReady {
        /// The root computed here.
        root: Root,
    },
    /// Target: nothing is missing any more. Before the switch it comes after the `ImageReady` it
    /// belongs to. Also sent after a cold boot, when nothing is left to fetch.
    ImageComplete,
    /// Target: the image cannot be completed, or the attempt is given up before its commit.
    GiveUp,
    /// The lanes are back, or it is time to repeat what the other side may have missed.
    Repeat,
    /// Source, mode B: the target has been silent for too long; take the guest back at the witness.
    Reclaim,
    /// Mode B: the register's content, as the answer to a swap or a read.
    Register {
        /// The holder of the guest.
        holder: Holder,
    },
    /// The peer sent a message about `attempt`.
    Heard {
        /// The sender, proved by the tunnel.
        from: HostIdentity,
        /// The attempt that the message is about.
        attempt: AttemptId,
        /// The message.
        word: Word,
    },
}

/// An action for the shell, to be done in order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Action {
    /// Write this record durably. No later action may happen before that.
    Persist(Record),
    /// Send this to the peer of the attempt. It may be lost.
    Say {
        /// The receiver.
        to: HostIdentity,
        /// The attempt.
        attempt: AttemptId,
        /// The message.
        word: Word,
    },
    /// Start the vCPUs under this epoch. Comes after the `Persist` that allows it. After a restart
    /// of an owner it means: take over the running guest, or thaw it, or boot it. Never a second
    /// start of a guest that runs.
    Run {
        /// The epoch this host now owns the guest with.
        epoch: Epoch,
    },
    /// Mode B: if the register shows `expected`, set it to `new`. Either way report its content
    /// afterwards as [`Event::Register`].
    Swap {
        /// The holder that the register must show.
        expected: Holder,
        /// The holder to set.
        new: Holder,
    },
    /// Mode B: report the register's content as [`Event::Register`].
    ReadRegister,
    /// Source: let the frozen guest continue, or boot it if its memory is lost. Harmless if it
    /// runs.
    Thaw,
    /// Target: discard the image and the guest process of any earlier attempt. Harmless if there is
    /// none.
    DiscardImage,
    /// Source: free the image, which nobody needs any more. Harmless if it is gone.
    FreeImage,
}

/// State that is not in the record. A restart forgets it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Progress {
    /// Nothing.
    None,
    /// Source, offering: the guest is frozen and the image with this root was sent.
    Sealed { root: Root, is_whole: bool },
    /// Target, prepared, after a restart: only the shell knows whether the image survived.
    ImageUnknown,
    /// Target, prepared: the image is being received.
    Receiving,
    /// Target, prepared: the image is complete.
    ImageReady { root: Root, is_whole: bool },
    /// Target, mode B: the image is complete, and the witness has been asked for the guest.
    Taking { root: Root, is_whole: bool },
}

/// The ownership of one guest, as one host sees it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ownership {
    host: HostIdentity,
    record: Record,
    progress: Progress,
    actions: VecDeque<Action>,
}

impl Ownership {
    /// A guest that is created here, with the record to persist before it is started.
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

    /// A guest that this host has never seen.
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

    /// Sets another decider for a new machine. Hosts that do not agree on the decider refuse each
    /// other.
    #[must_use]
    pub const fn decided_by(mut self, decider: Decider) -> Self {
        self.record.decider = decider;
        self
    }

    /// The machine after a restart of this host. It decides from the durable record alone, and its
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

    /// The host that this machine runs on.
    #[must_use]
    pub const fn host(&self) -> &HostIdentity {
        &self.host
    }

    /// The current record. It is durable once every action has been polled and carried out.
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

    /// Whether this host owns the guest, or has given it away without hearing yet that it was
    /// taken. An offer of the guest to this host cannot be right then.
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

    /// Whether the guest was taken in an attempt of a source; `None` if no decision is remembered.
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

    /// The record to keep for a guest that is ended here for good, so that this host goes on
    /// answering as before: a source that missed our last message must neither resume its guest nor
    /// wait for ever. `None` for a guest that was never handed over.
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
            // Refuses its own attempt, which may have no verdict.
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

    /// Whether no handover is under way here and no action waits.
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

    /// Takes an event.
    ///
    /// # Errors
    ///
    /// A fault to report. Nothing was changed, and nothing has to be done about it here. `E_STATE`
    /// for a request that does not fit; `E_UNEXPECTED`, `E_DENIED`, `E_ROOT`, `E_CONFLICT`,
    /// `E_META` and `E_STALE_EPOCH` for a peer's message that is ignored; `E_GUEST_EXISTS` and
    /// `E_DOUBLE_OFFER` for an offer that is refused; `E_BUSY` while too many actions wait.
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

    /// The next action, in order.
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

    /// Repeats what the other side may have missed. What a source repeats makes the target answer
    /// again, so neither needs to remember what arrived.
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

    /// Changes the durable state. No action queued after this happens before it is on disk.
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
