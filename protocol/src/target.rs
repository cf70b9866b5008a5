//! The target's side of a move: the host that gets the guest.
//!
//! ```text
//!             admitted, built          FinalEnd, verified       Commit, OWNED durable
//!  Admitting ────────────────► Receiving ───────────────► Ready ─────────────────► Running ──► Over
//!     │                           │  ▲   the source thawed  │                  demand, push  Complete,
//!     │ refused                   │  └──────────────────────┘                                Released
//!     └────────────► Over ◄───────┴── Abort, wrong bytes (durable refusal)
//! ```
//!
//! A block is missing until it is installed. A missing block is installed once and never again, so
//! writes of the running guest are never overwritten. The move is complete when nothing is missing,
//! never because a cursor reached an end. Nothing a source says is trusted: every number is checked
//! against the geometry that was admitted.

mod again;
mod incident;
mod receiving;
mod running;

use std::collections::VecDeque;

use crate::fault::{Blame, Code, Fault};
use crate::identity::{AttemptId, Epoch, GuestId, HostIdentity, MigrationId};
use crate::image::{CHAIN_START, Manifest};
use crate::message::{ChunkHeader, FinalEnd, Lane, Message, Prepare, Reason, Received, SpaceInfo};
use crate::ownership::{self, Ownership, Record, State, Word};
use crate::space::{BlockRun, BlockSet, Geometry, SpaceId};
use crate::time::Instant;

pub use again::answer;
pub use incident::Incident;

/// Chunk digests remembered, to tell a repeated chunk from a changed one.
const REMEMBERED_CHUNK_COUNT: usize = 1024;

/// The fixed data of an attempt at its target.
#[derive(Debug, Clone)]
pub struct Setup {
    /// This host.
    pub host: HostIdentity,
    /// The host that offers the guest, proved by the tunnel.
    pub source: HostIdentity,
    /// The move.
    pub migration: MigrationId,
    /// The attempt.
    pub attempt: AttemptId,
    /// The guest.
    pub guest: GuestId,
}

/// An event for the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// All lanes of this attempt are open.
    LinkUp,
    /// A lane broke.
    LinkDown,
    /// A message from the source arrived.
    Heard(Lane, Message),
    /// A chunk arrived, was unpacked and checked against its own digest.
    Chunk {
        /// The lane it came on.
        lane: Lane,
        /// Its header.
        header: ChunkHeader,
        /// The shell's name for the unpacked bytes.
        token: u64,
    },
    /// The empty guest was built.
    GuestBuilt,
    /// The saved state was loaded into the guest.
    StateLoaded,
    /// The vCPUs run.
    GuestRuns {
        /// Since when.
        at: Instant,
    },
    /// A vCPU waits for a missing block.
    Fault {
        /// The space.
        space: SpaceId,
        /// The block.
        block: u64,
    },
    /// The guest process is gone.
    GuestGone,
    /// A lane brought something that ends the attempt, or the lanes if the guest is owned here.
    Judged(Fault),
    /// An action other than [`Action::Persist`] could not be carried out. Whatever its code, the
    /// source did not cause it.
    Failed(Fault),
    /// A record could not be made durable. Whether the old or the new one is on disk is known only
    /// after a restart.
    NotRecorded(Fault),
}

/// A part of a chunk that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// The blocks it goes to.
    pub run: BlockRun,
    /// Where its bytes begin in the unpacked chunk.
    pub offset_bytes: u64,
}

/// An action for the shell, to be done in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Write this record durably. No later action may happen before that.
    Persist(Record),
    /// Send a message. If the lane is gone, drop it.
    Send(Lane, Message),
    /// Build an empty guest. Reported by `GuestBuilt`.
    BuildGuest(Prepare),
    /// Write blocks into the guest, which does not run yet, and mark them present on disk.
    Write {
        /// The bytes; `None` for zeros.
        token: Option<u64>,
        /// The space.
        space: SpaceId,
        /// The parts of the chunk, and where they go.
        pieces: Vec<Piece>,
    },
    /// Install missing blocks atomically under the running guest, wake the vCPUs that wait for
    /// them, and mark them present on disk.
    Install {
        /// The bytes; `None` for zeros.
        token: Option<u64>,
        /// The space.
        space: SpaceId,
        /// The parts of the chunk, and where they go.
        pieces: Vec<Piece>,
    },
    /// The bytes of this chunk are not needed any more.
    Forget {
        /// The shell's name for them.
        token: u64,
    },
    /// Save the position in the stream of chunks, for a restarted daemon.
    SavePosition(Received),
    /// Take these blocks out of the guest's memory, so that touching one waits. Mark all others,
    /// and only those, as present on disk.
    Expect {
        /// The missing blocks of each space.
        missing: Vec<BlockSet>,
    },
    /// Load the vCPU and machine state. Reported by `StateLoaded`.
    LoadState(Vec<u8>),
    /// Report touches of missing blocks as `Fault`.
    ArmMissing,
    /// Start the vCPUs under this epoch. Reported by `GuestRuns`.
    Run(Epoch),
    /// Let every waiting vCPU touch its block again, so that its fault is reported anew.
    WakeFaults,
    /// Nothing is missing: from here on untouched memory reads as zero.
    DisarmMissing,
    /// End the guest process of this attempt and free what was received.
    DiscardImage,
    /// Store what is known of an image that was just refused. Nothing depends on it.
    Report(Box<Incident>),
    /// Close the lanes. The source opens new ones.
    DropLink,
    /// The attempt is over. No action follows.
    Finished(Outcome),
}

/// How an attempt ended at its target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The guest runs here, whole.
    Arrived,
    /// The guest did not come.
    Refused(Fault),
    /// The guest is owned here but cannot go on: missing blocks cannot arrive any more.
    Lost(Fault),
}

/// The stage of an attempt, for operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// The guest is being built.
    Admitting,
    /// Chunks arrive.
    Receiving,
    /// The image is complete and verified; the commit is awaited.
    Ready,
    /// The guest runs here; some blocks are missing.
    Running,
    /// Over.
    Over,
}

impl Stage {
    /// All stages, in order.
    pub const ALL: [Self; 5] = [
        Self::Admitting,
        Self::Receiving,
        Self::Ready,
        Self::Running,
        Self::Over,
    ];

    /// The stage's name in records, metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Admitting => "admitting",
            Self::Receiving => "receiving",
            Self::Ready => "ready",
            Self::Running => "running",
            Self::Over => "over",
        }
    }
}

/// Counters of an attempt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Chunks installed, including demanded ones.
    pub chunk_count: u64,
    /// Chunks dropped because they were from an older round than one already installed.
    pub stale_chunk_count: u64,
    /// Chunks dropped because they were unchanged repetitions.
    pub repeated_chunk_count: u64,
    /// Blocks whose vCPU waited for the source.
    pub demand_count: u64,
    /// Blocks missing while the guest runs.
    pub missing_count: u64,
}

/// The data of an attempt that a restarted daemon finds on disk.
#[derive(Debug, Clone)]
pub struct Remains {
    /// The guest as it was announced.
    pub prepare: Prepare,
    /// The blocks of each space that are present.
    pub present: Vec<BlockSet>,
    /// The saved position in the stream of chunks.
    pub position: Received,
}

#[derive(Debug)]
enum Phase {
    Admitting,
    Receiving,
    /// The paused stage is verified. State is being loaded, or the commit is awaited.
    Ready,
    Running,
    Over,
}

/// The paused stage as it arrives on the switch lane.
#[derive(Debug, Default)]
struct Final {
    has_begun: bool,
    state: Vec<u8>,
    missing: Vec<BlockSet>,
    manifest: Option<Manifest>,
    end: Option<FinalEnd>,
}

/// The target's state machine for one attempt.
#[derive(Debug)]
pub struct Target {
    setup: Setup,
    ownership: Ownership,
    phase: Phase,
    prepare: Option<Prepare>,
    geometries: Vec<Geometry>,
    link_up: bool,
    /// Before the switch, the blocks received. Unused while running.
    present: Vec<BlockSet>,
    /// While running, the blocks not installed yet.
    missing: Vec<BlockSet>,
    /// Missing blocks that a vCPU waits for, demanded on these lanes.
    demanded: Vec<BlockSet>,
    position: Received,
    is_position_due: bool,
    generation: u32,
    remembered: VecDeque<(u64, [u8; 32])>,
    paused: Final,
    commit_heard_at: Instant,
    run_delay_us: u64,
    /// Whether a `Run` is under way. Later actions of the ownership machine wait until the guest
    /// runs; if it never does, they never happen.
    awaits_run: bool,
    is_completed: bool,
    /// Whether the ownership's record may be missing on disk. Then nothing is sent that depends on
    /// it.
    is_unrecorded: bool,
    progress: Progress,
    fault: Option<Fault>,
    /// The incident to report about the image that is being refused.
    incident: Option<Box<Incident>>,
    actions: VecDeque<Action>,
}

impl Target {
    /// Begins an attempt. The offer itself follows as the first message.
    #[must_use]
    pub fn begin(setup: Setup, ownership: Ownership) -> Self {
        Self {
            setup,
            ownership,
            phase: Phase::Admitting,
            prepare: None,
            geometries: Vec::new(),
            link_up: false,
            present: Vec::new(),
            missing: Vec::new(),
            demanded: Vec::new(),
            position: Received {
                through_sequence: 0,
                chain: CHAIN_START,
            },
            is_position_due: false,
            generation: 0,
            remembered: VecDeque::new(),
            paused: Final::default(),
            commit_heard_at: Instant::ZERO,
            run_delay_us: 0,
            awaits_run: false,
            is_completed: false,
            is_unrecorded: false,
            progress: Progress::default(),
            fault: None,
            incident: None,
            actions: VecDeque::new(),
        }
    }

    /// Continues an attempt after a restart with the data on disk. The guest process outlived the
    /// daemon.
    ///
    /// # Errors
    ///
    /// `E_STATE` if the journal has no attempt under way, `E_IMAGE_LOST` if the data on disk does
    /// not fit the guest.
    pub fn recover(setup: Setup, ownership: Ownership, remains: Remains) -> Result<Self, Fault> {
        let is_running = match &ownership.record().state {
            State::Owned { .. } => true,
            State::Prepared { attempt, .. } if *attempt == setup.attempt => false,
            other => {
                let detail = format!("no attempt to go on with in the state {other:?}");
                return Err(Fault::new(Code::State, detail));
            }
        };
        let mut target = Self::begin(setup, ownership);
        target.take_layout(&remains.prepare)?;
        let fits = remains.present.len() == target.geometries.len()
            && remains
                .present
                .iter()
                .zip(&target.geometries)
                .all(|(set, geometry)| set.block_count() == geometry.block_count());
        if !fits {
            let detail = "the record of received blocks does not fit the guest".to_owned();
            return Err(Fault::new(Code::ImageLost, detail));
        }
        target.prepare = Some(remains.prepare);
        target.position = remains.position;
        // The guest process outlived the daemon, so the ownership's order to run it means to take
        // it over.
        target.follow_the_law();
        target.awaits_run = false;
        if is_running {
            target.missing = remains.present.iter().map(BlockSet::complement).collect();
            target.phase = Phase::Running;
            target.actions.push_back(Action::WakeFaults);
            target.complete_if_nothing_is_missing()?;
        } else {
            target.present = remains.present;
            target.phase = Phase::Receiving;
        }
        Ok(target)
    }

    /// The durable record.
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

    /// The guest as it was announced, once it was.
    #[must_use]
    pub const fn prepare(&self) -> Option<&Prepare> {
        self.prepare.as_ref()
    }

    /// The stage of the attempt.
    #[must_use]
    pub const fn stage(&self) -> Stage {
        match self.phase {
            Phase::Admitting => Stage::Admitting,
            Phase::Receiving => Stage::Receiving,
            Phase::Ready => Stage::Ready,
            Phase::Running => Stage::Running,
            Phase::Over => Stage::Over,
        }
    }

    /// Whether the lanes are open.
    #[must_use]
    pub const fn is_link_up(&self) -> bool {
        self.link_up
    }

    /// The counters of the attempt.
    #[must_use]
    pub const fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Number of blocks that are here: received before the switch, or installed after it.
    #[must_use]
    pub fn present_count(&self) -> u64 {
        if matches!(self.phase, Phase::Running) {
            let all: u64 = self
                .geometries
                .iter()
                .map(|geometry| geometry.block_count())
                .sum();
            return all - self.missing_count();
        }
        self.present.iter().map(BlockSet::len).sum()
    }

    /// The next action. Chunks are acknowledged when no other action is left, so that a shell which
    /// takes several events before it polls acknowledges them together.
    pub fn poll(&mut self) -> Option<Action> {
        if let Some(action) = self.poll_unacknowledging() {
            return Some(action);
        }
        if !std::mem::take(&mut self.is_position_due) {
            return None;
        }
        self.send(Lane::Control, Message::Received(self.position));
        Some(Action::SavePosition(self.position))
    }

    /// As [`Target::poll`], but without acknowledging chunks, for a shell that waits a little for
    /// more of them. Every acknowledgement is a packet each way and wakes six threads.
    pub fn poll_unacknowledging(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Takes an event.
    ///
    /// # Errors
    ///
    /// The fault that ended the attempt or the link, for the log; the machine has already decided
    /// what follows from it.
    pub fn handle(&mut self, event: Event, now: Instant) -> Result<(), Fault> {
        let event = match event {
            Event::Failed(fault) => return Err(self.not_carried_out(fault)),
            Event::NotRecorded(fault) => return Err(self.not_recorded(fault)),
            event => event,
        };
        if matches!(self.phase, Phase::Over) {
            if let Event::Chunk { token, .. } = event {
                self.actions.push_back(Action::Forget { token });
            }
            return self.answer_when_over(&event);
        }
        let is_said = matches!(
            event,
            Event::Heard(..) | Event::Chunk { .. } | Event::Judged(_)
        );
        let result = self.dispatch(event, now);
        match &result {
            // Nothing that the previous owner sends ends a guest that is owned here.
            Err(fault) if is_said && self.is_owner() && !is_ours(fault) => {
                self.link_up = false;
                self.actions.push_back(Action::DropLink);
            }
            Err(fault) => self.fail(fault.clone()),
            Ok(()) => {}
        }
        self.progress.missing_count = self.missing_count();
        result
    }

    fn dispatch(&mut self, event: Event, now: Instant) -> Result<(), Fault> {
        match event {
            Event::LinkUp => {
                self.link_up = true;
                self.ask_again();
                Ok(())
            }
            Event::LinkDown => {
                self.link_up = false;
                Ok(())
            }
            Event::Heard(lane, message) => self.heard(lane, message, now),
            Event::Chunk {
                lane,
                header,
                token,
            } => {
                let result = self.chunk(lane, &header, token);
                if result.is_err() {
                    self.actions.push_back(Action::Forget { token });
                }
                result?;
                self.complete_if_nothing_is_missing()?;
                self.verify_if_whole()
            }
            Event::GuestBuilt => self.guest_built(),
            Event::StateLoaded => self.state_loaded(),
            Event::GuestRuns { at } => self.guest_runs(at),
            Event::Fault { space, block } => self.fault(space, block),
            Event::GuestGone => Err(self.guest_gone()),
            Event::Judged(fault) | Event::Failed(fault) | Event::NotRecorded(fault) => Err(fault),
        }
    }

    /// Handles an action that failed. The actions after it are dropped too. The exception is an
    /// attempt that ended without the guest: its last actions do not depend on the failed one. A
    /// guest that was about to be reported as arrived has not arrived: it needs every block.
    fn not_carried_out(&mut self, fault: Fault) -> Fault {
        let is_arrival = |action: &Action| matches!(action, Action::Finished(Outcome::Arrived));
        if matches!(self.phase, Phase::Over) && !self.actions.iter().any(is_arrival) {
            return fault;
        }
        let is_record = |action: &Action| matches!(action, Action::Persist(_));
        if self.actions.iter().any(is_record) {
            return self.not_recorded(fault);
        }
        self.actions.clear();
        self.fail(fault.clone());
        fault
    }

    /// Ends the attempt because the ownership's record may not be on disk. The ownership machine is
    /// not asked any more: a message that a restart takes back would leave the guest to nobody, or
    /// to both.
    fn not_recorded(&mut self, fault: Fault) -> Fault {
        self.actions.clear();
        while self.ownership.poll().is_some() {}
        self.is_unrecorded = true;
        let verdict = self.ownership.record().verdict(self.setup.attempt);
        if !verdict.is_some_and(|verdict| verdict.is_taken) {
            // Not binding: it only spares the source the wait.
            self.send(Lane::Control, Message::Refused(Reason::from(&fault)));
            self.actions.push_back(Action::DiscardImage);
        }
        self.actions.push_back(Action::DropLink);
        self.finish(Outcome::Lost(fault.clone()));
        fault
    }

    fn heard(&mut self, lane: Lane, message: Message, now: Instant) -> Result<(), Fault> {
        match message {
            Message::Ping(nonce) => self.send(Lane::Control, Message::Pong(nonce)),
            Message::Pong(_) => {}
            Message::Prepare(prepare) => self.offered(prepare)?,
            Message::FinalBegin if lane == Lane::Switch => self.final_begins()?,
            Message::StatePart(part) if lane == Lane::Switch => self.state_part(&part)?,
            Message::MissingPart(part) if lane == Lane::Switch => self.missing_part(&part)?,
            Message::Manifest(manifest) if lane == Lane::Switch => self.manifest(manifest)?,
            Message::FinalEnd(end) if lane == Lane::Switch => self.final_ends(end)?,
            Message::Commit(epoch, root) => {
                self.committed(epoch, root, now)?;
            }
            Message::Abort(_) if self.is_taken() => {
                // The source has given the guest to this host, so it cannot end it any more.
                let detail = "the source ends an attempt whose guest is owned here";
                return Err(Fault::new(Code::Unexpected, detail));
            }
            Message::Abort(reason) => {
                self.hear(Word::Abort)?;
                self.finish(Outcome::Refused(reason.to_fault(Code::Cancelled)));
            }
            Message::Released => self.hear(Word::Released)?,
            other => {
                let kind = other.kind();
                let detail = format!("message kind {kind} on the {lane:?} lane from the source");
                return Err(Fault::new(Code::Unexpected, detail));
            }
        }
        Ok(())
    }

    /// Answers a source that missed the last message and asks again.
    fn answer_when_over(&mut self, event: &Event) -> Result<(), Fault> {
        match event {
            Event::LinkUp => self.link_up = true,
            Event::LinkDown => self.link_up = false,
            _ if self.is_unrecorded => {}
            Event::Heard(_, Message::Commit(epoch, root)) => {
                self.hear(Word::Commit {
                    epoch: *epoch,
                    root: *root,
                })?;
            }
            Event::Heard(_, Message::Prepare(prepare)) => {
                let epoch = prepare.epoch;
                let attempt = self.setup.attempt;
                if self.ownership.record().verdict(attempt).is_some() {
                    self.hear(Word::Prepare { epoch })?;
                } else if let Some(fault) = self.fault.clone() {
                    // Refused before anything was prepared. The ownership machine knows nothing of
                    // the attempt and must not prepare it now.
                    self.send(Lane::Control, Message::Refused(Reason::from(&fault)));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The fault for a guest process that is gone. A guest that runs here has crashed; one that
    /// does not run yet is only a lost image, which another attempt sends again.
    fn guest_gone(&self) -> Fault {
        if self.is_taken() {
            return Fault::new(Code::Guest, "the guest process is gone".to_owned());
        }
        let detail = "the process that was receiving the guest is gone".to_owned();
        Fault::new(Code::ImageLost, detail)
    }

    /// Whether the guest is owned here under this attempt.
    fn is_taken(&self) -> bool {
        let verdict = self.ownership.record().verdict(self.setup.attempt);
        verdict.is_some_and(|verdict| verdict.is_taken)
    }

    fn is_owner(&self) -> bool {
        self.is_taken() || matches!(self.phase, Phase::Running)
    }

    fn fail(&mut self, fault: Fault) {
        if matches!(self.phase, Phase::Over) {
            return;
        }
        if self.is_owner() {
            return self.lose(fault);
        }
        // A process that does not answer any more is noticed by requests to it, or by its end.
        let fault = match fault.code {
            Code::Guest => Fault::new(Code::ImageLost, fault.detail),
            _ => fault,
        };
        // First durable, then sent: the source may resume its guest only because this attempt will
        // never take it.
        self.fault = Some(fault.clone());
        if self.own(ownership::Event::GiveUp).is_err() {
            // Nothing was prepared, so nothing has to be remembered.
            if fault.code == Code::StaleEpoch {
                let mark = self.ownership.record().high_water;
                self.send(Lane::Control, Message::Mark(mark));
            }
            self.send(Lane::Control, Message::Refused(Reason::from(&fault)));
        }
        // After the message that the source waits for, because its guest is paused.
        let report = self.incident.take().map(Action::Report);
        self.actions.extend(report);
        self.finish(Outcome::Refused(fault));
    }

    /// Ends the attempt of a guest that is owned here. From that point on nothing hands it back,
    /// whether it runs already or not: it is taken up again from disk. If it never ran, the
    /// messages after its `Run` are not sent, now or later, because on receiving them the source
    /// frees its image.
    fn lose(&mut self, fault: Fault) {
        while self.ownership.poll().is_some() {}
        self.finish(Outcome::Lost(fault));
    }

    fn finish(&mut self, outcome: Outcome) {
        self.phase = Phase::Over;
        self.actions.push_back(Action::Finished(outcome));
    }

    fn send(&mut self, lane: Lane, message: Message) {
        if self.link_up {
            self.actions.push_back(Action::Send(lane, message));
        }
    }

    fn hear(&mut self, word: Word) -> Result<(), Fault> {
        let (from, attempt) = (self.setup.source.clone(), self.setup.attempt);
        self.own(ownership::Event::Heard {
            from,
            attempt,
            word,
        })
    }

    fn own(&mut self, event: ownership::Event) -> Result<(), Fault> {
        let result = self.ownership.handle(event);
        self.follow_the_law();
        result
    }

    fn follow_the_law(&mut self) {
        while !self.awaits_run
            && let Some(action) = self.ownership.poll()
        {
            match action {
                ownership::Action::Persist(record) => {
                    self.actions.push_back(Action::Persist(record));
                }
                ownership::Action::Say { word, .. } => self.say(&word),
                ownership::Action::Run { epoch } => {
                    self.awaits_run = true;
                    self.actions.push_back(Action::Run(epoch));
                }
                ownership::Action::DiscardImage => self.actions.push_back(Action::DiscardImage),
                ownership::Action::Thaw
                | ownership::Action::FreeImage
                | ownership::Action::Swap { .. }
                | ownership::Action::ReadRegister => {
                    unreachable!(
                        "the law orders a target without a witness only a target's actions"
                    )
                }
            }
        }
    }

    fn say(&mut self, word: &Word) {
        let message = match word {
            // Sent once the guest is built.
            Word::Prepared if matches!(self.phase, Phase::Admitting) => return,
            Word::Prepared => Message::Prepared(self.position),
            Word::Ready { root } => Message::Ready(*root),
            Word::Ack => {
                self.send(Lane::Control, Message::Ack(self.run_delay_us));
                self.tell_what_is_missing();
                return;
            }
            Word::Nack => {
                // The reason was lost with a restart. Another attempt may succeed.
                let given_up = Fault::new(Code::ImageLost, "the target has no image".to_owned());
                Message::Nack(Reason::from(self.fault.as_ref().unwrap_or(&given_up)))
            }
            Word::Complete => Message::Complete,
            Word::Prepare { .. }
            | Word::Commit { .. }
            | Word::Abort
            | Word::Released
            | Word::Offer { .. } => {
                unreachable!("the law says only a target's words at a target without a witness")
            }
        };
        self.send(Lane::Control, message);
    }

    fn take_layout(&mut self, prepare: &Prepare) -> Result<(), Fault> {
        self.geometries = prepare
            .spaces
            .iter()
            .map(SpaceInfo::geometry)
            .collect::<Result<_, _>>()?;
        let empty = |geometry: &Geometry| BlockSet::empty(geometry.block_count());
        self.present = self.geometries.iter().map(empty).collect();
        self.demanded = self.geometries.iter().map(empty).collect();
        self.missing = self.geometries.iter().map(empty).collect();
        Ok(())
    }

    fn geometry(&self, space: SpaceId) -> Result<Geometry, Fault> {
        self.geometries
            .get(usize::from(space.0))
            .copied()
            .ok_or_else(|| Fault::new(Code::Range, format!("no space {}", space.0)))
    }

    fn missing_count(&self) -> u64 {
        if !matches!(self.phase, Phase::Running) {
            return 0;
        }
        self.missing.iter().map(BlockSet::len).sum()
    }
}

/// Whether a fault is about this host, whatever revealed it.
const fn is_ours(fault: &Fault) -> bool {
    matches!(fault.blame(), Blame::Local | Blame::Misuse)
}
