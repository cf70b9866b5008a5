//! The source's side of a move: the host that has the guest.
//!
//! ```text
//!              Prepared            round done, rest fits          Ready == own root
//!  Offering ─────────────► Copying ───────────────────► Switching ─────────────────► Committed
//!     │                     │   ▲ ▲  cut, deadline: thaw    │                           │ Ack
//!     │ Refused             │   └─┴─────────────────────────┘                           ▼
//!     └──────► Over ◄───────┴── cancel, fault: the guest runs on          Over ◄────── Serving
//!                                                                     Complete  (demand and push)
//! ```
//!
//! The machine decides. Its shell owns lanes, guest, codec and journal, and carries out [`Action`]s
//! in order. One machine serves one attempt. Before the commit, every failure leaves the guest
//! running here; after it, only the target's refusal does.

mod copying;
mod ending;
mod meter;
mod pace;
mod patience;
mod progress;
mod serving;
mod switching;
mod window;

use std::collections::VecDeque;
use std::time::Duration;

use crate::fault::{Blame, Code, Fault};
use crate::identity::{AttemptId, Epoch, GuestId, HostIdentity, MigrationId, Name};
use crate::message::{ChunkHeader, Lane, Message, Prepare, Reason, SpaceInfo};
use crate::ownership::{self, Ownership, Record, Root, State, Word};
use crate::plan::{self, Policy};
use crate::space::{BlockRun, BlockSet, SpaceId};
use crate::time::Instant;

pub use patience::{ARREARS_MAX, PING_INTERVAL, SILENCE_MAX};
pub use progress::{DecisionRecord, Progress, Stage};

use copying::Round;
use meter::Meter;
use pace::Pace;
use serving::Push;
use switching::Pause;
use window::Window;

/// How long the guest may stay frozen before the commit. Then it is thawed and the move goes on.
pub const FREEZE_DEADLINE: Duration = Duration::from_secs(2);

/// Freezes that may take too long or fail before the attempt ends. A target that is alive but was
/// late so often will be late again, and each time the guest stands still for [`FREEZE_DEADLINE`].
const OVERDUE_FREEZE_COUNT_MAX: u32 = 5;

/// Roots of undone freezes that are kept. More than the late freezes of an attempt; freezes that
/// ended with their lanes get no more answers.
const VOID_ROOT_COUNT_MAX: usize = 8;

/// First wait before lanes are opened again. Doubles up to [`RECONNECT_DELAY_MAX`].
pub const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(50);

/// Longest wait before lanes are opened again: recovery takes at most this much longer than the
/// outage. While the link is down, each attempt is only one message to the tunnel on this host.
pub const RECONNECT_DELAY_MAX: Duration = Duration::from_millis(100);

/// First wait, after the commit, before lanes that a fault closed are opened again. Doubles up to
/// [`FAULT_DELAY_MAX`] as long as nothing arrives at the target.
const FAULT_DELAY_MIN: Duration = Duration::from_millis(100);

/// Longest of these waits. A fault that stays costs both processes next to nothing, and one that
/// passes is noticed soon.
const FAULT_DELAY_MAX: Duration = Duration::from_secs(5);

/// The same limit while the target is busy, which passes by itself, and a guest may be paused
/// meanwhile.
const BUSY_DELAY_MAX: Duration = Duration::from_secs(1);

/// Decisions kept in the move's record. A move makes at most one per round.
const DECISION_COUNT_MAX: usize = 64;

/// The fixed data of an attempt.
#[derive(Debug, Clone)]
pub struct Setup {
    /// This host.
    pub host: HostIdentity,
    /// The target.
    pub target: HostIdentity,
    /// The move.
    pub migration: MigrationId,
    /// This attempt. Random, never used before.
    pub attempt: AttemptId,
    /// The guest.
    pub guest: GuestId,
    /// Its name.
    pub name: Name,
    /// Its spaces.
    pub spaces: Vec<SpaceInfo>,
    /// Its description for the target.
    pub config: Vec<u8>,
    /// The operator's request.
    pub policy: Policy,
}

/// An event for the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// All lanes are open and greeted.
    LinkUp,
    /// A lane broke or could not be opened.
    LinkDown,
    /// A message from the target arrived.
    Heard(Lane, Message),
    /// Dirty tracking is on. Blocks that were never touched are not in these sets.
    Tracking {
        /// The touched blocks of each space.
        allocated: Vec<BlockSet>,
    },
    /// The blocks of each space that were dirtied since tracking began or since the last harvest.
    Harvested(Vec<BlockSet>),
    /// The vCPUs have stopped.
    Frozen {
        /// The time they stopped.
        at: Instant,
    },
    /// The guest continues: its vCPUs did not stop in time.
    NotFrozen(Fault),
    /// The vCPU and machine state, saved while frozen.
    StateSaved(Vec<u8>),
    /// A numbered chunk was read and packed. Reported in the order of the numbers, before it is
    /// sent.
    Packed {
        /// Its header, with its blocks and their digest.
        header: ChunkHeader,
        /// Bytes of its frame.
        wire_bytes: u64,
    },
    /// Blocks that were ordered for the bulk lane could not be read; no chunk has them.
    Unread {
        /// Their space.
        space: SpaceId,
        /// The blocks.
        runs: Vec<BlockRun>,
        /// Why.
        fault: Fault,
    },
    /// An urgent order was packed and is about to be sent.
    Answered {
        /// Bytes of its frame.
        wire_bytes: u64,
    },
    /// The operator cancels the move.
    Cancel,
    /// The guest process is gone.
    GuestGone,
    /// An action other than [`Action::Persist`] could not be carried out.
    Failed(Fault),
    /// A record could not be made durable. Whether the old or the new one is on disk is known only
    /// after a restart.
    NotRecorded(Fault),
    /// A deadline has passed.
    Tick,
}

/// Blocks to read, pack and send. The codec may split and join orders into chunks, and numbers the
/// chunks of the bulk lane in the order of their orders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkOrder {
    /// Whether a vCPU waits: sent on the demand lane, ahead of everything else, without a number.
    pub is_urgent: bool,
    /// The round.
    pub generation: u32,
    /// The space.
    pub space: SpaceId,
    /// The blocks, at most 64 KiB of them unless they are known to be zero.
    pub runs: Vec<BlockRun>,
    /// Whether the blocks were never touched: nothing is read.
    pub is_zero: bool,
}

/// An action for the shell, to be done in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Write this record durably. No later action may happen before that.
    Persist(Record),
    /// Open the lanes. Reported by `LinkUp` or `LinkDown`.
    Connect,
    /// Close the lanes. No report is needed.
    DropLink,
    /// Send a message. If the lane is gone, drop it.
    Send(Lane, Message),
    /// Begin dirty tracking. Reported by `Tracking`.
    StartTracking,
    /// Read and reset the dirty log. Reported by `Harvested`.
    Harvest,
    /// Stop the vCPUs. Reported by `Frozen`, or by `NotFrozen` if they did not stop.
    Freeze,
    /// Save the state. Reported by `StateSaved`.
    SaveState,
    /// Let the vCPUs continue. Harmless if they run.
    Thaw,
    /// Number chunks from here on. None is under way now.
    NumberFrom(u64),
    /// Read, pack and send blocks. Numbered chunks are reported by `Packed`, urgent ones by
    /// `Answered`.
    SendChunk(ChunkOrder),
    /// Forget every block that was ordered and not sent yet. Chunks packed before this is carried
    /// out are reported before anything else; none is reported afterwards.
    CancelChunks,
    /// End dirty tracking.
    StopTracking,
    /// End the guest's process and free its memory: the guest lives elsewhere.
    FreeImage,
    /// The attempt is over. No action follows.
    Finished(Outcome),
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The guest runs at the target, and every block is there.
    Moved,
    /// The guest stays here.
    Stayed(Fault),
    /// This side cannot go on. Only a restart shows what its journal holds.
    Stuck(Fault),
}

#[derive(Debug)]
enum Phase {
    Offering,
    Copying(Round),
    Switching(Pause),
    Committed {
        frozen_at: Option<Instant>,
        said_at: Instant,
    },
    Serving(Push),
    Over,
}

/// The source's state machine for one attempt.
#[derive(Debug)]
pub struct Source {
    setup: Setup,
    ownership: Ownership,
    phase: Phase,
    /// Whether the lanes are open. `resumed` says in addition that the target has reported its
    /// position in the stream of chunks.
    link_up: bool,
    resumed: bool,
    reconnect_at: Option<Instant>,
    reconnect_delay: Duration,
    fault_delay: Duration,
    heard_at: Instant,
    ping_at: Instant,
    /// The number of the ping whose answer has not come yet.
    awaited_pong: Option<u64>,
    /// Since when the target owes something and has delivered none of it.
    owes_since: Option<Instant>,
    window: Window,
    meter: Meter,
    generation: u32,
    pace: Pace,
    progress: Progress,
    decisions: Vec<DecisionRecord>,
    switch_reason: Option<plan::Reason>,
    left_before: Option<u64>,
    epoch_offered: Option<Epoch>,
    /// The highest epoch that the target has seen, if it said so.
    mark: Option<Epoch>,
    /// Touched blocks that a move in mode `post` leaves for after the switch.
    held_back: Vec<BlockSet>,
    /// Blocks sent on the demand lane since these lanes were opened.
    answered: Vec<BlockSet>,
    /// Roots of paused stages that were undone, the newest last. What the target still says about
    /// them is about an image that is void.
    void_roots: VecDeque<Root>,
    /// Earliest time of the next freeze. Between freezes the guest runs at least as long as it was
    /// frozen.
    freeze_from: Instant,
    overdue_freeze_count: u32,
    fault: Option<Fault>,
    /// Whether the target ended the attempt, so that the fault is about that host.
    is_refused: bool,
    /// After the commit: whether the frozen guest is gone, so that none of its blocks can be read
    /// any more.
    is_image_lost: bool,
    /// Whether the guest was relinquished under this attempt, even if it was taken back.
    was_committed: bool,
    actions: VecDeque<Action>,
}

impl Source {
    /// Begins an attempt for a guest that is owned here according to `ownership`.
    ///
    /// # Errors
    ///
    /// `E_STATE` if the guest cannot be offered now, `E_LAYOUT` for an impossible geometry.
    pub fn begin(setup: Setup, ownership: Ownership, now: Instant) -> Result<Self, Fault> {
        let mut source = Self::new(setup, ownership, now)?;
        let (attempt, target) = (source.setup.attempt, source.setup.target.clone());
        source.own(ownership::Event::Offer { attempt, target }, now)?;
        source.actions.push_back(Action::Connect);
        Ok(source)
    }

    /// Continues an attempt after a restart, if the journal says that the guest was relinquished.
    /// The commit is repeated until the target answers. If the frozen guest did not survive, the
    /// shell reports `GuestGone`.
    ///
    /// # Errors
    ///
    /// `E_STATE` if the journal says anything else.
    pub fn recover(setup: Setup, ownership: Ownership, now: Instant) -> Result<Self, Fault> {
        if !matches!(ownership.record().state, State::Relinquished { .. }) {
            let detail = "only a relinquished guest's move is taken up again".to_owned();
            return Err(Fault::new(Code::State, detail));
        }
        let mut source = Self::new(setup, ownership, now)?;
        source.phase = Phase::Committed {
            frozen_at: None,
            said_at: now,
        };
        source.was_committed = true;
        source.actions.push_back(Action::Connect);
        Ok(source)
    }

    fn new(setup: Setup, ownership: Ownership, now: Instant) -> Result<Self, Fault> {
        let mut block_count = 0;
        for space in &setup.spaces {
            block_count += space.geometry()?.block_count();
        }
        let pace = Pace::new(setup.policy.bytes_per_second_max, now);
        Ok(Self {
            answered: serving::empty_sets(&setup.spaces),
            meter: Meter::new(now),
            window: Window::new(&setup.spaces),
            progress: Progress {
                block_count,
                blocks_left: block_count,
                ..Progress::default()
            },
            setup,
            ownership,
            phase: Phase::Offering,
            link_up: false,
            resumed: false,
            reconnect_at: None,
            reconnect_delay: RECONNECT_DELAY_MIN,
            fault_delay: FAULT_DELAY_MIN,
            heard_at: now,
            ping_at: now,
            awaited_pong: None,
            owes_since: None,
            generation: 0,
            pace,
            decisions: Vec::new(),
            switch_reason: None,
            left_before: None,
            epoch_offered: None,
            mark: None,
            held_back: Vec::new(),
            void_roots: VecDeque::new(),
            freeze_from: now,
            overdue_freeze_count: 0,
            fault: None,
            is_refused: false,
            is_image_lost: false,
            was_committed: false,
            actions: VecDeque::new(),
        })
    }

    /// The ownership's durable record, for the shell's bookkeeping.
    #[must_use]
    pub const fn ownership(&self) -> &Ownership {
        &self.ownership
    }

    /// Returns the ownership, when the attempt is over.
    #[must_use]
    pub fn into_ownership(self) -> Ownership {
        self.ownership
    }

    /// The fixed data of this attempt.
    #[must_use]
    pub const fn setup(&self) -> &Setup {
        &self.setup
    }

    /// The stage of the attempt.
    #[must_use]
    pub const fn stage(&self) -> Stage {
        match self.phase {
            Phase::Offering => Stage::Preparing,
            Phase::Copying(_) => Stage::Copying,
            Phase::Switching(_) => Stage::Switching,
            Phase::Committed { .. } => Stage::Committed,
            Phase::Serving(_) => Stage::Serving,
            Phase::Over => Stage::Over,
        }
    }

    /// Whether the lanes are open.
    #[must_use]
    pub const fn is_link_up(&self) -> bool {
        self.link_up
    }

    /// How long nothing has arrived over open lanes, if that is longer than the path explains.
    #[must_use]
    pub fn silence(&self, now: Instant) -> Option<Duration> {
        let silence = now.since(self.heard_at);
        let explained = 2 * PING_INTERVAL + 2 * self.meter.round_trip_or_guess();
        (self.link_up && silence > explained).then_some(silence)
    }

    /// Whether the guest was handed over and its image is gone from here. If the target misses
    /// blocks, the guest must be booted there.
    #[must_use]
    pub const fn is_image_lost(&self) -> bool {
        self.is_image_lost
    }

    /// Whether the target refused the guest, so that the fault is about its host.
    #[must_use]
    pub const fn is_refused(&self) -> bool {
        self.is_refused
    }

    /// The counters of the attempt.
    #[must_use]
    pub const fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Every decision, oldest first.
    #[must_use]
    pub fn decisions(&self) -> &[DecisionRecord] {
        &self.decisions
    }

    /// The reason for the switch, once there was one.
    #[must_use]
    pub const fn switch_reason(&self) -> Option<plan::Reason> {
        self.switch_reason
    }

    /// When to call again with `Tick` if nothing happens.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        if matches!(self.phase, Phase::Over) {
            return None;
        }
        let own = match &self.phase {
            Phase::Switching(pause) => Some(pause.deadline()),
            Phase::Serving(push) => push.deadline(),
            _ => self.is_round_through().then_some(self.freeze_from),
        };
        let paced = self.wants_to_send().then_some(self.pace.next_at());
        let link = if self.link_up {
            Some(self.ping_at)
        } else {
            self.reconnect_at
        };
        [own, paced, link].into_iter().flatten().min()
    }

    /// The next action.
    pub fn poll(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Takes an event.
    ///
    /// # Errors
    ///
    /// The fault that ended the attempt or the link, for the log; the machine has already decided
    /// what follows from it. `E_STATE` for a cancel that comes too late, which changes nothing.
    pub fn handle(&mut self, event: Event, now: Instant) -> Result<(), Fault> {
        if let Event::NotRecorded(fault) = event {
            return Err(self.not_recorded(fault, now));
        }
        if matches!(self.phase, Phase::Over) {
            // The last actions of an attempt do not depend on the ones that failed before them.
            return self.answer_when_over(&event);
        }
        let is_record = |action: &Action| matches!(action, Action::Persist(_));
        if let Event::Failed(fault) = &event
            && self.actions.iter().any(is_record)
        {
            return Err(self.not_recorded(fault.clone(), now));
        }
        // A misuse by the caller changes nothing. An action that could not be carried out does,
        // whoever is to blame.
        let is_failed = matches!(event, Event::Failed(_) | Event::Unread { .. });
        let result = self.dispatch(event, now).and_then(|()| self.advance(now));
        if let Err(fault) = &result
            && (is_failed || fault.blame() != Blame::Misuse)
        {
            self.fail(fault.clone(), now);
        }
        self.note_arrears(now);
        self.progress.goodput_bytes_per_second = self.meter.bytes_per_second();
        self.progress.round_trip = self.meter.round_trip();
        self.estimate();
        result
    }

    /// Answers after the end: a demand for a block of a guest that was let go is answered by
    /// closing the lanes.
    fn answer_when_over(&mut self, event: &Event) -> Result<(), Fault> {
        let Event::Heard(Lane::Demand, Message::Demand(space, block)) = event else {
            return Ok(());
        };
        self.actions.push_back(Action::DropLink);
        let detail = format!("block {block} of space {} was let go", space.0);
        Err(Fault::new(Code::Gone, detail))
    }

    fn dispatch(&mut self, event: Event, now: Instant) -> Result<(), Fault> {
        match event {
            Event::LinkUp => self.link_came_up(now),
            Event::LinkDown => {
                self.link_went_down(now);
                Ok(())
            }
            Event::Heard(lane, message) => self.heard(lane, message, now),
            Event::Tracking { allocated } => self.tracking(&allocated, now),
            Event::Harvested(dirty) => self.harvested(dirty, now),
            Event::Frozen { at } => self.frozen(at),
            Event::NotFrozen(fault) => self.not_frozen(&fault, now),
            Event::StateSaved(state) => self.state_saved(state),
            Event::Packed { header, wire_bytes } => self.packed(&header, wire_bytes, now),
            Event::Unread { space, runs, fault } => self.unread(space, &runs, fault, now),
            Event::Answered { wire_bytes } => {
                self.spend(wire_bytes, now);
                Ok(())
            }
            Event::Cancel => self.cancel(now),
            Event::GuestGone => Err(Fault::new(
                Code::Guest,
                "the guest process is gone".to_owned(),
            )),
            Event::Failed(fault) => {
                self.actions.clear();
                Err(fault)
            }
            Event::NotRecorded(fault) => Err(fault),
            Event::Tick => self.tick(now),
        }
    }

    /// Does everything that is possible now without another event.
    fn advance(&mut self, now: Instant) -> Result<(), Fault> {
        self.answer_waiting(now);
        self.order_unread(now);
        self.order_chunks(now);
        match self.phase {
            Phase::Copying(_) => {
                self.end_round_if_through(now);
                Ok(())
            }
            Phase::Switching(_) => self.seal_if_through(now),
            _ => Ok(()),
        }
    }

    fn tick(&mut self, now: Instant) -> Result<(), Fault> {
        if self.reconnect_at.is_some_and(|at| at <= now) {
            self.reconnect_at = None;
            self.actions.push_back(Action::Connect);
        }
        if self.is_of_no_use(now) {
            self.drop_link(now);
            return Ok(());
        }
        if self.link_up && self.ping_at <= now {
            self.ping(now);
        }
        self.thaw_if_overdue(now)
    }

    fn link_came_up(&mut self, now: Instant) -> Result<(), Fault> {
        self.link_up = true;
        self.resumed = false;
        self.reconnect_at = None;
        self.heard_at = now;
        self.awaited_pong = None;
        self.ping(now);
        if let Phase::Committed { said_at, .. } = &mut self.phase {
            *said_at = now;
        }
        self.own(ownership::Event::Repeat, now)
    }

    /// Closes the lanes from this side.
    fn drop_link(&mut self, now: Instant) {
        self.actions.push_back(Action::DropLink);
        self.link_went_down(now);
    }

    fn link_went_down(&mut self, now: Instant) {
        if self.link_up {
            self.progress.reconnect_count += 1;
        }
        self.link_up = false;
        self.resumed = false;
        self.owes_since = None;
        self.actions.push_back(Action::CancelChunks);
        self.meter.interrupt(now);
        self.reconnect_at = Some(now + self.reconnect_delay);
        self.reconnect_delay = (self.reconnect_delay * 2).min(RECONNECT_DELAY_MAX);
        self.forget_what_is_missing();
        self.thaw(now);
    }

    fn heard(&mut self, lane: Lane, message: Message, now: Instant) -> Result<(), Fault> {
        self.heard_at = now;
        if !matches!(message, Message::Refused(_)) {
            // Lanes that are opened and refused at once do not show that the outage is over.
            self.reconnect_delay = RECONNECT_DELAY_MIN;
        }
        match message {
            Message::Ping(nonce) => self.send(Lane::Control, Message::Pong(nonce)),
            Message::Pong(nonce) => self.ping_came_back(nonce, now),
            Message::Prepared(received) => {
                self.owes_since = None;
                self.hear(Word::Prepared, now)?;
                self.resume(&received)?;
            }
            Message::Received(received) => self.acknowledged(&received, now)?,
            Message::Ready(root) if self.void_roots.contains(&root) => {}
            Message::Ready(root) => {
                self.hear(Word::Ready { root }, now)?;
                self.commit_if_relinquished(now);
            }
            Message::Ack(run_delay_us) => {
                self.owes_since = None;
                self.hear(Word::Ack, now)?;
                self.acked(run_delay_us, now);
            }
            Message::Mark(epoch) => self.mark = Some(epoch),
            Message::Refused(reason) if !self.is_committed() => {
                // Sent before anything was prepared, so it is valid only for an attempt that is
                // still open.
                self.is_refused = true;
                self.stay(reason.to_fault(Code::Refused), now);
            }
            Message::Refused(reason) => {
                // The target cannot take these lanes now. That does not change who owns the guest,
                // and the cause mostly lasts.
                self.talk_anew(reason.to_fault(Code::Refused).code, now);
            }
            Message::Nack(reason) => self.refused(&reason, now)?,
            Message::MissingPart(part) => self.missing_part(&part)?,
            Message::MissingEnd(received) => self.missing_end(&received)?,
            Message::Demand(space, block) if lane == Lane::Demand => self.demanded(space, block)?,
            Message::Complete => {
                self.hear(Word::Complete, now)?;
                self.complete()?;
            }
            other => {
                let kind = other.kind();
                let detail = format!("message kind {kind} on the {lane:?} lane from the target");
                return Err(Fault::new(Code::Unexpected, detail));
            }
        }
        Ok(())
    }

    fn refused(&mut self, reason: &Reason, now: Instant) -> Result<(), Fault> {
        self.hear(Word::Nack, now)?;
        let fault = reason.to_fault(Code::Refused);
        self.is_refused = true;
        self.finish(Outcome::Stayed(fault));
        Ok(())
    }

    fn cancel(&mut self, now: Instant) -> Result<(), Fault> {
        if self.is_committed() {
            let detail = "the guest was already handed over; move it back instead".to_owned();
            return Err(Fault::new(Code::State, detail));
        }
        self.stay(
            Fault::new(Code::Cancelled, "cancelled by the operator".to_owned()),
            now,
        );
        Ok(())
    }

    /// Whether the commit point has been passed.
    #[must_use]
    pub const fn is_committed(&self) -> bool {
        matches!(self.phase, Phase::Committed { .. } | Phase::Serving(_))
    }

    fn send(&mut self, lane: Lane, message: Message) {
        if self.link_up {
            self.actions.push_back(Action::Send(lane, message));
        }
    }

    fn hear(&mut self, word: Word, now: Instant) -> Result<(), Fault> {
        let (from, attempt) = (self.setup.target.clone(), self.setup.attempt);
        self.own(
            ownership::Event::Heard {
                from,
                attempt,
                word,
            },
            now,
        )
    }

    /// Passes an event to the ownership machine, and translates its actions into this machine's.
    fn own(&mut self, event: ownership::Event, now: Instant) -> Result<(), Fault> {
        let result = self.ownership.handle(event);
        while let Some(action) = self.ownership.poll() {
            match action {
                ownership::Action::Persist(record) => {
                    self.actions.push_back(Action::Persist(record));
                }
                ownership::Action::Say { word, .. } => self.say(&word, now),
                ownership::Action::Thaw => self.actions.push_back(Action::Thaw),
                ownership::Action::FreeImage => self.actions.push_back(Action::FreeImage),
                ownership::Action::Run { .. }
                | ownership::Action::DiscardImage
                | ownership::Action::Swap { .. }
                | ownership::Action::ReadRegister => {
                    unreachable!(
                        "the law orders a source without a witness only a source's actions"
                    )
                }
            }
        }
        result
    }

    fn say(&mut self, word: &Word, now: Instant) {
        let message = match word {
            Word::Prepare { epoch } => {
                self.epoch_offered = Some(*epoch);
                Message::Prepare(Prepare {
                    name: self.setup.name.clone(),
                    epoch: *epoch,
                    spaces: self.setup.spaces.clone(),
                    config: self.setup.config.clone(),
                })
            }
            Word::Commit { epoch, root } => {
                if let Phase::Committed { said_at, .. } = &mut self.phase {
                    *said_at = now;
                }
                Message::Commit(*epoch, *root)
            }
            Word::Abort => {
                let ended = Fault::new(Code::Cancelled, "the source ended the attempt".to_owned());
                Message::Abort(Reason::from(self.fault.as_ref().unwrap_or(&ended)))
            }
            Word::Released => Message::Released,
            Word::Prepared
            | Word::Ready { .. }
            | Word::Ack
            | Word::Nack
            | Word::Complete
            | Word::Offer { .. } => {
                unreachable!("the law says only a source's words at a source without a witness")
            }
        };
        self.send(Lane::Control, message);
    }

    fn geometry(&self, space: SpaceId) -> Result<crate::space::Geometry, Fault> {
        self.setup
            .spaces
            .get(usize::from(space.0))
            .ok_or_else(|| Fault::new(Code::Range, format!("no space {}", space.0)))?
            .geometry()
    }

    fn raw_bytes(&self, sets: &[BlockSet]) -> u64 {
        let spaces = self.setup.spaces.iter();
        spaces
            .zip(sets)
            .map(|(space, set)| u64::from(space.block_bytes) * set.len())
            .sum()
    }

    fn note(&mut self, record: DecisionRecord) {
        if self.decisions.len() == DECISION_COUNT_MAX {
            self.decisions.remove(0);
        }
        self.decisions.push(record);
    }
}
