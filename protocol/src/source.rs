//! The side of a move that has the guest.
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
//! The machine decides; its shell owns lanes, guest, codec and journal, and carries out [`Action`]s in
//! order. One machine serves one attempt. Before the commit every failure leaves the guest running
//! here; after it nothing but the target's refusal does.

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

/// How long the guest may stay frozen before the commit: then it runs on here and the move goes on.
pub const FREEZE_DEADLINE: Duration = Duration::from_secs(2);

/// Freezes that may last too long before the attempt ends, or do not come about: a target that lives and was not
/// ready so often will not be the next time, and the guest stands still for [`FREEZE_DEADLINE`] with each.
const OVERDUE_FREEZE_COUNT_MAX: u32 = 5;

/// Roots of given up freezes that are kept: more than an attempt may have that lasted too long; those that
/// ended with their lanes are not answered any more.
const VOID_ROOT_COUNT_MAX: usize = 8;

/// First wait before lanes are opened again; doubles up to [`RECONNECT_DELAY_MAX`].
pub const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(50);

/// Longest wait before lanes are opened again: an outage costs its length and at most this much. While
/// the link is down an attempt is one message to the tunnel on this host.
pub const RECONNECT_DELAY_MAX: Duration = Duration::from_millis(100);

/// First wait behind the commit before lanes are opened again that something else than an outage ended; doubles up
/// to [`FAULT_DELAY_MAX`] as long as nothing arrives at the target.
const FAULT_DELAY_MIN: Duration = Duration::from_millis(100);

/// Longest of these waits: what does not get better by itself costs two processes next to nothing, and what does
/// is found out in time.
const FAULT_DELAY_MAX: Duration = Duration::from_secs(5);

/// The same where the target is busy: that passes by itself, and a guest may stand meanwhile.
const BUSY_DELAY_MAX: Duration = Duration::from_secs(1);

/// Decisions kept in the move's record; a move has at most one a round.
const DECISION_COUNT_MAX: usize = 64;

/// Everything that is fixed for an attempt.
#[derive(Debug, Clone)]
pub struct Setup {
    /// This host.
    pub host: HostIdentity,
    /// Who is to get the guest.
    pub target: HostIdentity,
    /// The move.
    pub migration: MigrationId,
    /// This attempt: random, never used before.
    pub attempt: AttemptId,
    /// The guest.
    pub guest: GuestId,
    /// Its name.
    pub name: Name,
    /// Its spaces.
    pub spaces: Vec<SpaceInfo>,
    /// Its description for the target.
    pub config: Vec<u8>,
    /// What the operator asked for.
    pub policy: Policy,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// All lanes are open and greeted.
    LinkUp,
    /// A lane broke, or could not be opened.
    LinkDown,
    /// A message came from the target.
    Heard(Lane, Message),
    /// Dirty tracking is on; blocks that were never touched are not in these sets.
    Tracking {
        /// Touched blocks, space by space.
        allocated: Vec<BlockSet>,
    },
    /// The blocks dirtied since tracking began or the last harvest, space by space.
    Harvested(Vec<BlockSet>),
    /// The vCPUs are stopped.
    Frozen {
        /// Since when.
        at: Instant,
    },
    /// The guest runs on: its vCPUs did not stop in time.
    NotFrozen(Fault),
    /// vCPU and machine state, saved while frozen.
    StateSaved(Vec<u8>),
    /// A numbered chunk was read and packed; reported in the order of the numbers, before it is sent.
    Packed {
        /// Its header: which blocks, and their digest.
        header: ChunkHeader,
        /// Bytes of its frame.
        wire_bytes: u64,
    },
    /// An urgent order was packed, and is about to be sent.
    Answered {
        /// Bytes of its frame.
        wire_bytes: u64,
    },
    /// The operator does not want the move any more.
    Cancel,
    /// The guest process is gone.
    GuestGone,
    /// An action other than [`Action::Persist`] could not be carried out.
    Failed(Fault),
    /// A record could not be made durable: which of the two is on disk shows only the next start.
    NotRecorded(Fault),
    /// A deadline has passed.
    Tick,
}

/// Blocks to read, pack and send. The codec may split and join them into chunks as it sees fit, and
/// numbers the chunks of the bulk lane in the order it is given them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkOrder {
    /// A vCPU waits: on the demand lane, ahead of everything, without a number.
    pub is_urgent: bool,
    /// The round.
    pub generation: u32,
    /// The space.
    pub space: SpaceId,
    /// Which blocks, at most 64 KiB of them unless they are known to be zero.
    pub runs: Vec<BlockRun>,
    /// The blocks were never touched: nothing is read.
    pub is_zero: bool,
}

/// What the shell must do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Write this record durably; nothing behind it may happen before that.
    Persist(Record),
    /// Open the lanes; reported by `LinkUp` or `LinkDown`.
    Connect,
    /// Close the lanes; no report is needed.
    DropLink,
    /// Send a message; if the lane is gone, drop it.
    Send(Lane, Message),
    /// Begin dirty tracking; reported by `Tracking`.
    StartTracking,
    /// Read and reset the dirty log; reported by `Harvested`.
    Harvest,
    /// Stop the vCPUs; reported by `Frozen`, or by `NotFrozen` where they did not stop.
    Freeze,
    /// Save state; reported by `StateSaved`.
    SaveState,
    /// Let the vCPUs run on; harmless if they do.
    Thaw,
    /// Number chunks from here on, now that none is on its way.
    NumberFrom(u64),
    /// Read, pack and send blocks; numbered chunks are reported by `Packed`, urgent ones by `Answered`.
    SendChunk(ChunkOrder),
    /// Forget every block ordered and not yet sent. What was packed before this is carried out is
    /// reported before anything else is; nothing is reported of it afterwards.
    CancelChunks,
    /// End dirty tracking.
    StopTracking,
    /// The guest lives elsewhere: end its process and free its memory.
    FreeImage,
    /// The attempt is over; nothing follows.
    Finished(Outcome),
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The guest runs at the target and everything is there.
    Moved,
    /// The guest stays here.
    Stayed(Fault),
    /// This side cannot go on: what its journal says shows only the next start.
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

/// The machine.
#[derive(Debug)]
pub struct Source {
    setup: Setup,
    ownership: Ownership,
    phase: Phase,
    /// Lanes are open; in `Copying` also: the target said where the stream of chunks stands.
    link_up: bool,
    resumed: bool,
    reconnect_at: Option<Instant>,
    reconnect_delay: Duration,
    fault_delay: Duration,
    heard_at: Instant,
    ping_at: Instant,
    /// The number of the ping whose answer is to come.
    awaited_pong: Option<u64>,
    /// Since when the target owes something and has given nothing of it.
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
    /// The highest epoch that the target has seen, where it said so.
    mark: Option<Epoch>,
    /// Touched blocks that a move by post-copy alone leaves for after the switch.
    held_back: Vec<BlockSet>,
    /// Blocks sent on the demand lane of these lanes.
    answered: Vec<BlockSet>,
    /// Roots of paused stages that were given up, the newest last: what the target still says of them is
    /// about an image that is void.
    void_roots: VecDeque<Root>,
    /// The guest is not frozen before: it runs at least as long as it stood.
    freeze_from: Instant,
    overdue_freeze_count: u32,
    fault: Option<Fault>,
    /// The end is the target's word, and its fault one of that host.
    is_refused: bool,
    /// After the commit: the frozen guest is gone, no block of it can be read any more.
    is_image_lost: bool,
    /// Whether the guest was relinquished under this attempt, taken back or not.
    was_committed: bool,
    actions: VecDeque<Action>,
}

impl Source {
    /// Begins an attempt for a guest that `ownership` says is owned here.
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

    /// Goes on after a restart with an attempt whose journal says that the guest was relinquished: the
    /// commit is repeated until the target answers. If the frozen guest did not survive, `GuestGone`
    /// says so.
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

    /// Gives the ownership back when the attempt is over.
    #[must_use]
    pub fn into_ownership(self) -> Ownership {
        self.ownership
    }

    /// What is fixed for this attempt.
    #[must_use]
    pub const fn setup(&self) -> &Setup {
        &self.setup
    }

    /// Where the attempt stands.
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

    /// How long nothing was heard over lanes that are open, if that is longer than the path explains.
    #[must_use]
    pub fn silence(&self, now: Instant) -> Option<Duration> {
        let silence = now.since(self.heard_at);
        let explained = 2 * PING_INTERVAL + 2 * self.meter.round_trip_or_guess();
        (self.link_up && silence > explained).then_some(silence)
    }

    /// Whether the guest was handed over and its image is gone from here: if the target misses blocks,
    /// only booting it there helps.
    #[must_use]
    pub const fn is_image_lost(&self) -> bool {
        self.is_image_lost
    }

    /// Whether the target refused the guest: what is said of the end is said of its host.
    #[must_use]
    pub const fn is_refused(&self) -> bool {
        self.is_refused
    }

    /// What has been counted.
    #[must_use]
    pub const fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Every decision, oldest first.
    #[must_use]
    pub fn decisions(&self) -> &[DecisionRecord] {
        &self.decisions
    }

    /// Why the guest was switched, once it was.
    #[must_use]
    pub const fn switch_reason(&self) -> Option<plan::Reason> {
        self.switch_reason
    }

    /// When to come back with `Tick` if nothing happens.
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

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Takes in what happened.
    ///
    /// # Errors
    ///
    /// The fault that ended the attempt or the link, for the log; the machine has already decided what
    /// follows from it. `E_STATE` for a cancel that comes too late changes nothing.
    pub fn handle(&mut self, event: Event, now: Instant) -> Result<(), Fault> {
        if let Event::NotRecorded(fault) = event {
            return Err(self.not_recorded(fault, now));
        }
        if matches!(self.phase, Phase::Over) {
            // Its last actions need nothing of what failed before them.
            return self.answer_when_over(&event);
        }
        let is_record = |action: &Action| matches!(action, Action::Persist(_));
        if let Event::Failed(fault) = &event
            && self.actions.iter().any(is_record)
        {
            return Err(self.not_recorded(fault.clone(), now));
        }
        // What was asked wrongly changes nothing; what we failed to carry out does, whoever is to blame.
        let is_failed = matches!(event, Event::Failed(_));
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

    /// Blocks of a guest that was let go are gone: whoever still asks for them is told so by the end
    /// of the lanes.
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

    /// Whatever can be done now without another event.
    fn advance(&mut self, now: Instant) -> Result<(), Fault> {
        self.answer_waiting(now);
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

    /// Ends the lanes from here.
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
            // Lanes that are opened and refused at once are no sign that the outage is over.
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
                // Said before anything was prepared: good only for an attempt that is still open.
                self.is_refused = true;
                self.stay(reason.to_fault(Code::Refused), now);
            }
            Message::Refused(reason) => {
                // It cannot take these lanes now. Whose the guest is does not change with that, and what keeps
                // it from them mostly lasts.
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

    /// Whether the commit point was passed.
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

    /// Feeds the law and dresses what it says.
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
