//! The side of a move that gets the guest.
//!
//! ```text
//!             admitted, built          FinalEnd, verified       Commit, OWNED durable
//!  Admitting ────────────────► Receiving ───────────────► Ready ─────────────────► Running ──► Over
//!     │                           │  ▲   the source thawed  │                  demand, push  Complete,
//!     │ refused                   │  └──────────────────────┘                                Released
//!     └────────────► Over ◄───────┴── Abort, wrong bytes (durable refusal)
//! ```
//!
//! A block is missing until it was installed; a missing block is installed once and never again, so
//! what the running guest wrote is never overwritten. The move is complete when nothing is missing,
//! never because a cursor reached an end. Nothing a source says is believed: every number is checked
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

/// Everything that is fixed for an attempt at its target.
#[derive(Debug, Clone)]
pub struct Setup {
    /// This host.
    pub host: HostIdentity,
    /// Who offers the guest: proved by the tunnel.
    pub source: HostIdentity,
    /// The move.
    pub migration: MigrationId,
    /// The attempt.
    pub attempt: AttemptId,
    /// The guest.
    pub guest: GuestId,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// All lanes of this attempt are open.
    LinkUp,
    /// A lane broke.
    LinkDown,
    /// A message came from the source.
    Heard(Lane, Message),
    /// A chunk came, unpacked and checked against its own digest; `token` names its bytes.
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
    /// A vCPU waits for a block that is not there.
    Fault {
        /// The space.
        space: SpaceId,
        /// The block.
        block: u64,
    },
    /// The guest process is gone.
    GuestGone,
    /// What came on a lane ends the attempt, or the lanes where the guest is owned here.
    Judged(Fault),
    /// An action other than [`Action::Persist`] could not be carried out: whatever its code, no word of the source's
    /// caused it.
    Failed(Fault),
    /// A record could not be made durable: which of the two is on disk shows only the next start.
    NotRecorded(Fault),
}

/// Part of a chunk that is wanted: where its bytes stand in the chunk, and where they go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Where it goes.
    pub run: BlockRun,
    /// Where its bytes begin in the unpacked chunk.
    pub offset_bytes: u64,
}

/// What the shell must do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Write this record durably; nothing behind it may happen before that.
    Persist(Record),
    /// Send a message; if the lane is gone, drop it.
    Send(Lane, Message),
    /// Build an empty guest; reported by `GuestBuilt`.
    BuildGuest(Prepare),
    /// Write blocks into the guest that does not run yet, and mark them present on disk.
    Write {
        /// The bytes; `None` for zeros.
        token: Option<u64>,
        /// The space.
        space: SpaceId,
        /// What goes where.
        pieces: Vec<Piece>,
    },
    /// Install missing blocks atomically under the running guest, wake who waits for them, and mark
    /// them present on disk.
    Install {
        /// The bytes; `None` for zeros.
        token: Option<u64>,
        /// The space.
        space: SpaceId,
        /// What goes where.
        pieces: Vec<Piece>,
    },
    /// The bytes of this chunk are not needed (any more).
    Forget {
        /// The shell's name for them.
        token: u64,
    },
    /// Note where the stream of chunks stands, so that a restarted daemon knows.
    SavePosition(Received),
    /// Take these blocks out of the guest's memory, so that touching them waits, and mark exactly the
    /// others as present on disk.
    Expect {
        /// The missing blocks, space by space.
        missing: Vec<BlockSet>,
    },
    /// Load vCPU and machine state; reported by `StateLoaded`.
    LoadState(Vec<u8>),
    /// Have touches of missing blocks reported as `Fault`.
    ArmMissing,
    /// Start the vCPUs under this epoch; reported by `GuestRuns`.
    Run(Epoch),
    /// Let every waiting vCPU touch its block again, so that its fault is reported anew.
    WakeFaults,
    /// Nothing is missing: untouched memory reads as zero from here on.
    DisarmMissing,
    /// End the guest process of this attempt and free what was received.
    DiscardImage,
    /// Keep what is known of an image that was just refused; nothing depends on it.
    Report(Box<Incident>),
    /// Close the lanes; the source opens new ones.
    DropLink,
    /// The attempt is over; nothing follows.
    Finished(Outcome),
}

/// How an attempt ended at its target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The guest runs here, whole.
    Arrived,
    /// The guest did not come.
    Refused(Fault),
    /// The guest is owned here and cannot go on: what is missing cannot come any more.
    Lost(Fault),
}

/// Where an attempt stands, as an operator sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// The guest is being built.
    Admitting,
    /// Chunks arrive.
    Receiving,
    /// Whole and verified; waiting for the commit.
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

    /// The stage as records, metrics and logs write it.
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

/// What has been counted so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Chunks installed, demanded ones included.
    pub chunk_count: u64,
    /// Chunks of an older round than one already installed: dropped.
    pub stale_chunk_count: u64,
    /// Chunks that came again unchanged: dropped.
    pub repeated_chunk_count: u64,
    /// Blocks whose vCPU waited for the source.
    pub demand_count: u64,
    /// Blocks missing while the guest runs.
    pub missing_count: u64,
}

/// What a restarted daemon finds on disk of an attempt.
#[derive(Debug, Clone)]
pub struct Remains {
    /// The guest as it was announced.
    pub prepare: Prepare,
    /// Blocks that are present, space by space.
    pub present: Vec<BlockSet>,
    /// Where the stream of chunks stood.
    pub position: Received,
}

#[derive(Debug)]
enum Phase {
    Admitting,
    Receiving,
    /// The paused stage is verified; state is being loaded or the commit is awaited.
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

/// The machine.
#[derive(Debug)]
pub struct Target {
    setup: Setup,
    ownership: Ownership,
    phase: Phase,
    prepare: Option<Prepare>,
    geometries: Vec<Geometry>,
    link_up: bool,
    /// Before the switch: what was received. While running: unused.
    present: Vec<BlockSet>,
    /// While running: what was not installed yet.
    missing: Vec<BlockSet>,
    /// Missing blocks a vCPU waits for, asked for on these lanes.
    demanded: Vec<BlockSet>,
    position: Received,
    is_position_due: bool,
    generation: u32,
    remembered: VecDeque<(u64, [u8; 32])>,
    paused: Final,
    commit_heard_at: Instant,
    run_delay_us: u64,
    /// The law's actions behind a `Run` wait until the guest runs; where it does not, for ever.
    awaits_run: bool,
    is_completed: bool,
    /// The law's record may not be on disk: nothing is said any more that stands on it.
    is_unrecorded: bool,
    progress: Progress,
    fault: Option<Fault>,
    /// What is to be reported of the image that is being refused.
    incident: Option<Box<Incident>>,
    actions: VecDeque<Action>,
}

impl Target {
    /// Begins an attempt; the offer itself follows as the first message heard.
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

    /// Goes on after a restart with what is on disk; the guest process outlived the daemon.
    ///
    /// # Errors
    ///
    /// `E_STATE` if the journal speaks of no attempt under way, `E_IMAGE_LOST` if what is on disk does
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
        // The guest process outlived the daemon: the law's order to run it is one to take it over.
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

    /// The guest as it was announced, once it was.
    #[must_use]
    pub const fn prepare(&self) -> Option<&Prepare> {
        self.prepare.as_ref()
    }

    /// Where the attempt stands.
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

    /// What has been counted.
    #[must_use]
    pub const fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Blocks that are there: received before the switch, or installed after it.
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

    /// The next thing to do. Acknowledgements of chunks are given when nothing else is to be done, so
    /// that a shell that takes in several events before it polls acknowledges them together.
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

    /// As [`Target::poll`], but chunks stay unacknowledged: for a shell that waits a little for more of
    /// them. Every acknowledgement is a packet each way and wakes six threads.
    pub fn poll_unacknowledging(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Takes in what happened.
    ///
    /// # Errors
    ///
    /// The fault that ended the attempt or the link, for the log; the machine has already decided what
    /// follows from it.
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
            // Nothing that its old owner says ends what is owned here.
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

    /// An action was not carried out. Those behind it are not either, unless the guest does not come: the last
    /// ones of such an attempt need nothing of what failed before them. One that is here whole needs every block.
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

    /// What the law believes may not be on disk. So it is not asked any more: a word of ours that a restart
    /// takes back would leave the guest to nobody, or to two.
    fn not_recorded(&mut self, fault: Fault) -> Fault {
        self.actions.clear();
        while self.ownership.poll().is_some() {}
        self.is_unrecorded = true;
        let verdict = self.ownership.record().verdict(self.setup.attempt);
        if !verdict.is_some_and(|verdict| verdict.is_taken) {
            // Binds nobody: it only spares the source the wait.
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
                // Its source gave it up to us: it ends nothing of it any more.
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

    /// A source that missed our last word asks again.
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
                    // Refused before anything was prepared: the law knows nothing of it, and must not
                    // begin to prepare now.
                    self.send(Lane::Control, Message::Refused(Reason::from(&fault)));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// A guest that runs here has crashed; one that does not yet is only an image that is lost, which
    /// another attempt brings again.
    fn guest_gone(&self) -> Fault {
        if self.is_taken() {
            return Fault::new(Code::Guest, "the guest process is gone".to_owned());
        }
        let detail = "the process that was receiving the guest is gone".to_owned();
        Fault::new(Code::ImageLost, detail)
    }

    /// Whether the guest is owned here by this attempt.
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
        // A process that does not answer any more is noticed by what is asked of it, or by its end.
        let fault = match fault.code {
            Code::Guest => Fault::new(Code::ImageLost, fault.detail),
            _ => fault,
        };
        // Durable first, then said: the source may run on only because this attempt never will.
        self.fault = Some(fault.clone());
        if self.own(ownership::Event::GiveUp).is_err() {
            // Nothing was prepared, so nothing has to be remembered.
            if fault.code == Code::StaleEpoch {
                let mark = self.ownership.record().high_water;
                self.send(Lane::Control, Message::Mark(mark));
            }
            self.send(Lane::Control, Message::Refused(Reason::from(&fault)));
        }
        // Behind the word that the source waits for: its guest stands.
        let report = self.incident.take().map(Action::Report);
        self.actions.extend(report);
        self.finish(Outcome::Refused(fault));
    }

    /// From the moment it is owned here nothing hands the guest back, whether it runs already or not: it is taken
    /// up again from what is on disk. Where no instruction of it ran, what stands behind its run is not said, nor
    /// said again: at that word its source lets go of its image.
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
            // Said once the guest is built.
            Word::Prepared if matches!(self.phase, Phase::Admitting) => return,
            Word::Prepared => Message::Prepared(self.position),
            Word::Ready { root } => Message::Ready(*root),
            Word::Ack => {
                self.send(Lane::Control, Message::Ack(self.run_delay_us));
                self.tell_what_is_missing();
                return;
            }
            Word::Nack => {
                // Why was forgotten with a restart: another attempt may end better.
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

/// Whether a fault speaks of this host, whatever it was that made it show.
const fn is_ours(fault: &Fault) -> bool {
    matches!(fault.blame(), Blame::Local | Blame::Misuse)
}
