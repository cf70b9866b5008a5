//! Carries out the actions that the source's machine decides on.

#[cfg(test)]
mod tests;
mod unread;
mod view;

use std::sync::Arc;
use std::time::Duration;

use towpath_protocol::amounts::millis;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::guest_api::GuestState;
use towpath_protocol::identity::MigrationId;
use towpath_protocol::message::{Hello, Lane, Message};
use towpath_protocol::ownership::{Ownership, State};
use towpath_protocol::source::{Action, ChunkOrder, Event, Outcome, Setup, Source, Stage};
use towpath_protocol::space::{BlockRun, BlockSet, SpaceId};
use towpath_protocol::time::Instant;
use towpath_protocol::version;
use tracing::{info, warn};

use self::unread::Unread;
use super::ground::{Ground, new_link_number, now, unix_ms};
use super::input::Input;
use super::judge::Judge;
use super::lanes::{OpenLane, join, open_all, read_messages, spawn};
use super::order::Order;
use super::outbox::Outbox;
use super::target_move::spaces_of;
use crate::api::{LinkState, MigrationView};
use crate::codec::{BlockReader, EncodedChunk, Encoder, Job, Level};
use crate::guest::{GuestMemory, GuestProcess};
use crate::lane::LaneWriter;

/// Interval at which the codec is told the link's rate.
const LINK_SAMPLE_INTERVAL: Duration = Duration::from_millis(250);

/// Guest memory as the codec reads it, or the reason why it cannot be read: it was lost after the
/// commit, or its process has not handed it over yet.
#[derive(Debug)]
struct MemoryReader(Result<GuestMemory, Fault>);

impl MemoryReader {
    fn of(ground: &Ground) -> Self {
        let memory = ground.memory.clone();
        Self(memory.ok_or_else(|| match &ground.awaited {
            Some(fault) => Fault::new(Code::Io, fault.detail.clone()),
            None => Fault::new(Code::ImageLost, "the frozen guest is gone"),
        }))
    }

    fn memory(&self) -> Result<&GuestMemory, Fault> {
        self.0.as_ref().map_err(Clone::clone)
    }
}

impl BlockReader for MemoryReader {
    fn read_runs(&self, space: SpaceId, runs: &[BlockRun], out: &mut [u8]) -> Result<(), Fault> {
        if space != towpath_protocol::space::MEMORY {
            return Err(Fault::new(Code::Range, format!("no space {}", space.0)));
        }
        self.memory()?.read_runs(runs, out)
    }
}

/// A move that could not begin. Hands the ownership back.
#[derive(Debug)]
pub(super) struct NotBegun {
    pub(super) ownership: Ownership,
    pub(super) fault: Fault,
}

/// How an attempt ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The guest has moved to the target.
    Moved(Ownership),
    /// The guest stays here. `Rest` says what is left to do for the order.
    Stayed(Ownership, Rest),
    /// The move can continue only after a restart.
    Stuck(Ownership, Fault),
}

/// A committed move that can continue only after a restart.
#[derive(Debug)]
pub(super) struct Stuck {
    view: MigrationView,
    /// Since when the guest is frozen.
    since: Instant,
}

impl Stuck {
    pub(super) const fn id(&self) -> MigrationId {
        self.view.id
    }

    pub(super) fn view(&self) -> MigrationView {
        MigrationView {
            blocked_ms: Some(millis(now().since(self.since))),
            total_ms: unix_ms().saturating_sub(self.view.started_unix_ms),
            ..self.view.clone()
        }
    }
}

/// What is left to do for a move whose guest stays for now.
#[derive(Debug)]
pub(super) enum Rest {
    Nothing,
    /// Another attempt, after this wait.
    Again(Box<Order>, Duration),
    /// The target must be told that the move is over. With `is_said` the attempt has already sent
    /// that, but the link may have died before it arrived.
    Farewell {
        order: Box<Order>,
        is_said: bool,
    },
}

/// One attempt and the resources that carry it out.
#[derive(Debug)]
pub(super) struct SourceMove {
    order: Order,
    machine: Source,
    outbox: Outbox,
    reader: Arc<MemoryReader>,
    urgent: Encoder,
    urgent_chunk: EncodedChunk,
    urgent_frame: Vec<u8>,
    unread: Unread,
    /// Number of the link requested last.
    link: u64,
    /// Why there are no lanes, as last logged. Kept so that an outage, with ten tries a second, is
    /// logged once.
    no_lanes: Option<Fault>,
    judge: Judge,
    outcome: Option<Outcome>,
    /// Whether the commit was sent, or may have been by a previous migrator: the guest is the
    /// target's.
    is_commit_said: bool,
    begun_at: Instant,
    /// When this attempt began, as milliseconds since the move began.
    begun_after_ms: u64,
    sampled_at: Instant,
    sampled_bytes: u64,
    /// Since when the guest is frozen, or was when a previous migrator relinquished it.
    switched_at: Option<Instant>,
}

impl SourceMove {
    /// Begins an attempt.
    pub(super) fn begin(
        ground: &mut Ground,
        ownership: Ownership,
        order: Order,
    ) -> Result<Self, Box<NotBegun>> {
        if let Err(fault) = ground.memory() {
            return Err(Box::new(NotBegun { ownership, fault }));
        }
        Self::make(ground, ownership, order, Source::begin)
    }

    /// Resumes an attempt whose guest was already relinquished. Even if the frozen guest is gone,
    /// the target must still be sent the commit: it may have every block.
    pub(super) fn recover(
        ground: &mut Ground,
        ownership: Ownership,
        order: Order,
    ) -> Result<Self, Box<NotBegun>> {
        let mut going = Self::make(ground, ownership, order, Source::recover)?;
        going.is_commit_said = true;
        // The guest's process knows since when it is paused. Without a process, or an answer, count
        // from now.
        let stands = ground.process.as_mut().map(GuestProcess::pause);
        going.switched_at = stands.and_then(Result::ok).or_else(|| Some(now()));
        if ground.process.is_none() && ground.awaited.is_none() {
            drop(going.handle(ground, Event::GuestGone));
        }
        Ok(going)
    }

    fn make(
        ground: &mut Ground,
        ownership: Ownership,
        order: Order,
        build: impl FnOnce(Setup, Ownership, Instant) -> Result<Source, Fault>,
    ) -> Result<Self, Box<NotBegun>> {
        let parts = Self::parts(ground, &order);
        let (setup, outbox, reader, urgent) = match parts {
            Ok(parts) => parts,
            Err(fault) => return Err(Box::new(NotBegun { ownership, fault })),
        };
        let spare = ownership.clone();
        let machine = match build(setup, ownership, now()) {
            Ok(machine) => machine,
            Err(fault) => {
                let ownership = spare;
                return Err(Box::new(NotBegun { ownership, fault }));
            }
        };
        info!(migration = %order.id, attempt = %order.attempt, target = %order.target, "move begins");
        let begun_after_ms = unix_ms().saturating_sub(order.started_unix_ms);
        Ok(Self {
            order,
            machine,
            outbox,
            reader,
            urgent,
            urgent_chunk: EncodedChunk::new(),
            urgent_frame: Vec::new(),
            unread: Unread::default(),
            link: 0,
            no_lanes: None,
            judge: Judge::default(),
            outcome: None,
            is_commit_said: false,
            begun_at: now(),
            begun_after_ms,
            sampled_at: now(),
            sampled_bytes: 0,
            switched_at: None,
        })
    }

    fn parts(
        ground: &Ground,
        order: &Order,
    ) -> Result<(Setup, Outbox, Arc<MemoryReader>, Encoder), Fault> {
        let config = ground
            .config
            .clone()
            .ok_or_else(|| Fault::new(Code::State, "the guest is not described"))?;
        let reader = Arc::new(MemoryReader::of(ground));
        let threads = ground.shared.config.limits.codec_threads as usize;
        let setup = Setup {
            host: ground.shared.host.clone(),
            target: order.target.clone(),
            migration: order.id,
            attempt: order.attempt,
            guest: ground.id,
            name: config.name.clone(),
            spaces: spaces_of(&config),
            config: config.to_bytes(),
            policy: order.policy(),
        };
        let outbox = Outbox::new(
            Arc::clone(&reader) as Arc<dyn BlockReader>,
            threads,
            Arc::clone(&ground.mailbox),
        )?;
        Ok((setup, outbox, reader, Encoder::new()?))
    }

    #[cfg(test)]
    pub(super) fn has_memory(&self) -> bool {
        self.reader.memory().is_ok()
    }

    #[cfg(test)]
    pub(super) fn codec_buffer_count(ground: &Ground, order: &Order) -> usize {
        let (_, outbox, ..) = Self::parts(ground, order).unwrap();
        outbox.buffer_count()
    }

    pub(super) const fn order(&self) -> &Order {
        &self.order
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let own = [self.machine.deadline(), self.unread.deadline()];
        own.into_iter().flatten().min()
    }

    pub(super) const fn ownership(&self) -> &Ownership {
        self.machine.ownership()
    }

    pub(super) const fn stage(&self) -> Stage {
        self.machine.stage()
    }

    pub(super) const fn is_committed(&self) -> bool {
        self.machine.is_committed()
    }

    /// Takes in an event and carries out the resulting actions.
    pub(super) fn handle(&mut self, ground: &mut Ground, event: Event) -> Result<(), Fault> {
        let before = self.machine.stage();
        let is_said = matches!(event, Event::Heard(..));
        let result = self.machine.handle(event, now());
        if let Err(fault) = &result {
            warn!(migration = %self.order.id, %fault, "move disturbed");
            if is_said {
                ground.shared.refused(&self.order.target, fault);
            }
        }
        self.read_again(ground, now());
        self.carry_out(ground);
        let after = self.machine.stage();
        if after != before {
            if after == Stage::Switching {
                self.switched_at = Some(now());
            }
            // Bytes sent during a pause or a wait for an answer say nothing about the link's rate.
            self.sampled_at = now();
            self.sampled_bytes = self.machine.progress().wire_bytes;
            info!(
                migration = %self.order.id, from = before.as_str(), to = after.as_str(),
                "move goes on"
            );
        }
        self.sample_link();
        result
    }

    /// Carries out all due actions in order. If one fails, those behind it are dropped.
    pub(super) fn carry_out(&mut self, ground: &mut Ground) {
        while let Some(action) = self.machine.poll() {
            let step = action_name(&action);
            // Nothing depends on cleaning up, nor on resuming the guest of a move that is over.
            let is_thaw = matches!(action, Action::Thaw) && self.stage() == Stage::Over;
            let is_needed = !is_thaw && !matches!(action, Action::StopTracking | Action::FreeImage);
            let is_record = matches!(action, Action::Persist(_));
            let is_connect = matches!(action, Action::Connect);
            if let Err(fault) = self.act(ground, action) {
                warn!(migration = %self.order.id, %fault, step, "an action failed");
                if is_record {
                    self.tell(Event::NotRecorded(fault));
                } else if is_connect {
                    self.tell(Event::LinkDown);
                } else if is_needed {
                    self.tell(Event::Failed(fault));
                } else if is_thaw {
                    ground.not_thawed(fault);
                }
            }
            ground.shared.failpoint("source", step);
        }
    }

    fn tell(&mut self, event: Event) {
        if let Err(fault) = self.machine.handle(event, now()) {
            warn!(migration = %self.order.id, %fault, "move disturbed");
        }
    }

    fn act(&mut self, ground: &mut Ground, action: Action) -> Result<(), Fault> {
        match action {
            Action::Persist(record) => {
                ground.persist(&record)?;
                if matches!(record.state, State::Relinquished { .. }) {
                    // Before the target learns of it, so that the guest is never shown as running
                    // on both hosts.
                    ground.shared.board().show_relinquished(ground.id);
                }
            }
            Action::Connect => self.connect(ground)?,
            Action::DropLink => ground.close_link(),
            Action::Send(lane, message) => {
                self.is_commit_said |= matches!(message, Message::Commit(..));
                ground.send(lane, &message);
            }
            Action::StartTracking => {
                ground.process()?.start_tracking()?;
                let allocated = allocated(ground.memory()?)?;
                self.tell(Event::Tracking {
                    allocated: vec![allocated],
                });
            }
            Action::Harvest => {
                let mut dirty = BlockSet::empty(ground.memory()?.geometry().block_count());
                ground.process()?.harvest(&mut dirty)?;
                self.tell(Event::Harvested(vec![dirty]));
            }
            Action::Freeze => self.freeze(ground)?,
            Action::SaveState => {
                let state = ground.process()?.save_state()?;
                self.tell(Event::StateSaved(state));
            }
            Action::Thaw => thaw(ground)?,
            Action::NumberFrom(sequence) => self.outbox.number_from(sequence)?,
            Action::SendChunk(order) => self.send_chunk(ground, &order)?,
            Action::CancelChunks => {
                ground.close_link();
                self.outbox.cancel();
                // The target asks again for blocks it still misses.
                self.unread.clear();
            }
            Action::StopTracking => {
                if let Some(process) = &mut ground.process {
                    process.stop_tracking()?;
                }
            }
            Action::FreeImage => ground.free_image()?,
            Action::Finished(outcome) => self.outcome = Some(outcome),
        }
        Ok(())
    }

    /// Pauses the guest. If it did not pause in time but its process answers that it runs or is
    /// paused, that is not the process's fault: the guest is thawed.
    fn freeze(&mut self, ground: &mut Ground) -> Result<(), Fault> {
        let process = ground.process()?;
        match process.pause() {
            Ok(at) => self.tell(Event::Frozen { at }),
            Err(fault) => {
                let state = process.describe().map(|seen| seen.state);
                if !matches!(state, Ok(GuestState::Running | GuestState::Paused)) {
                    return Err(fault);
                }
                warn!(migration = %self.order.id, %fault, "the guest is not frozen");
                self.tell(Event::NotFrozen(fault));
            }
        }
        Ok(())
    }

    fn connect(&mut self, ground: &mut Ground) -> Result<(), Fault> {
        let link = new_link_number();
        self.link = link;
        let hello = Hello {
            versions: version::OURS,
            migration: self.order.id,
            attempt: self.order.attempt,
            guest: ground.id,
            lane: Lane::Control,
            link,
        };
        let tunnel = ground.shared.config.tunnel_socket();
        let (own, target) = (ground.shared.host.clone(), self.order.target.clone());
        let mailbox = Arc::clone(&ground.mailbox);
        spawn("towpath-connect", move || {
            let result = open_all(&tunnel, (&own, &target), &hello);
            mailbox.send(Input::Opened { link, result });
        })
    }

    /// A lane ended. The other lanes are useless without it.
    pub(super) fn lane_ended(&mut self, ground: &mut Ground, fault: &Fault) {
        // Targets send little, so nothing they send counts as progress here.
        let event = match self.judge.lane_ended(fault, 0) {
            Some(fault) => Event::Failed(fault),
            None => Event::LinkDown,
        };
        ground.close_link();
        drop(self.handle(ground, event));
    }

    /// The requested lanes are open, or could not be opened.
    pub(super) fn opened(
        &mut self,
        ground: &mut Ground,
        number: u64,
        result: Result<Vec<OpenLane>, Fault>,
    ) {
        if number != self.link {
            return;
        }
        let attached = result.and_then(|lanes| self.attach(ground, number, lanes));
        let event = match attached {
            Ok(()) => {
                self.no_lanes = None;
                self.order.may_be_heard = true;
                Event::LinkUp
            }
            Err(fault) => {
                let is_final = matches!(fault.code, Code::Denied | Code::Version);
                if self.no_lanes.as_ref() != Some(&fault) {
                    info!(migration = %self.order.id, %fault, "no lanes to the target");
                    self.no_lanes = Some(fault.clone());
                }
                if is_final {
                    // The target is revoked, refuses us (T10), or shares no version with us.
                    // Waiting helps with none of these; after the commit the target is retried at
                    // growing intervals.
                    Event::Failed(fault)
                } else {
                    Event::LinkDown
                }
            }
        };
        drop(self.handle(ground, event));
    }

    fn attach(&self, ground: &mut Ground, number: u64, lanes: Vec<OpenLane>) -> Result<(), Fault> {
        let (mut link, readers) = join(number, lanes)?;
        let bulk: Option<LaneWriter<_>> = link.bulk.take();
        for (lane, mut reader) in readers {
            reader.count_skipped_in(ground.shared.metrics.skipped_messages());
            read_messages(&link, lane, reader, Arc::clone(&ground.mailbox))?;
        }
        if let Some(bulk) = bulk {
            self.outbox.attach(number, bulk);
        }
        ground.link = Some(link);
        Ok(())
    }

    fn send_chunk(&mut self, ground: &mut Ground, order: &ChunkOrder) -> Result<(), Fault> {
        let space = order.space;
        let block_bytes = self.reader.memory()?.geometry().block_bytes();
        if order.is_zero {
            self.outbox.push(Job::zeros(
                space,
                block_bytes,
                order.generation,
                &order.runs,
            )?);
            return Ok(());
        }
        let job = Job::new(space, block_bytes, order.generation, &order.runs)?;
        if !order.is_urgent {
            self.outbox.push(job);
            return Ok(());
        }
        self.urgent_frame.clear();
        let packed = self.urgent.encode_urgent(
            self.reader.as_ref(),
            &job,
            Level::Lz4,
            &mut self.urgent_chunk,
            |chunk| {
                self.urgent_frame.extend_from_slice(chunk.frame());
                Ok(())
            },
        );
        if let Err(fault) = packed {
            return self.hold_back(order, fault);
        }
        let wire_bytes = self.urgent_frame.len() as u64;
        self.tell(Event::Answered { wire_bytes });
        let Some(link) = &mut ground.link else {
            return Ok(());
        };
        let sent = link
            .demand
            .write_chunk_frame(&self.urgent_frame)
            .and_then(|()| link.demand.flush());
        if let Err(fault) = sent {
            let (link, lane) = (link.number, Lane::Demand);
            ground.mailbox.send(Input::LaneLost { link, lane, fault });
        }
        Ok(())
    }

    /// A block that cannot be read blocks only those who touch it, so the lanes stay open.
    fn hold_back(&mut self, order: &ChunkOrder, fault: Fault) -> Result<(), Fault> {
        if fault.code != Code::Io {
            return Err(fault);
        }
        if self.unread.fault().is_none() {
            warn!(migration = %self.order.id, %fault, "a block that is waited for is read again each second");
        }
        self.unread.hold(order.clone(), fault, now());
        Ok(())
    }

    /// Blocks for the bulk lane could not be read.
    pub(super) fn not_read(
        &mut self,
        ground: &mut Ground,
        (space, runs): (SpaceId, Vec<BlockRun>),
        fault: &Fault,
    ) {
        if self.reader.memory().is_err() {
            // No block can be read until the guest's process answers.
            self.lane_ended(ground, fault);
            return;
        }
        if self.is_committed() && self.unread.fault().is_none() {
            warn!(migration = %self.order.id, %fault, "blocks that cannot be read are read again each second");
        }
        let remedy = "look for errors of this host's memory or swap in the kernel's log";
        let fault = fault.clone().remedy(remedy);
        self.unread.note_pushed(fault.clone());
        drop(self.handle(ground, Event::Unread { space, runs, fault }));
    }

    fn read_again(&mut self, ground: &mut Ground, now: Instant) {
        let due = self.unread.take_due(now);
        if due.is_empty() {
            return;
        }
        for order in due {
            if let Err(fault) = self.send_chunk(ground, &order) {
                self.tell(Event::Failed(fault));
                return;
            }
        }
        if self.unread.is_empty() {
            self.unread.note_read();
        }
    }

    fn sample_link(&mut self) {
        let elapsed = now().since(self.sampled_at);
        if elapsed < LINK_SAMPLE_INTERVAL {
            return;
        }
        let bytes = self.machine.progress().wire_bytes;
        let sent = bytes.saturating_sub(self.sampled_bytes);
        let is_sending = match self.machine.stage() {
            Stage::Copying => true,
            Stage::Serving => self.machine.progress().blocks_left > 0,
            _ => false,
        };
        // If there was little to send, a small total says nothing about the link.
        if is_sending && sent > 64 * 1024 {
            let per_second = u128::from(sent) * 1_000_000_000 / elapsed.as_nanos().max(1);
            self.outbox
                .link_carries(u64::try_from(per_second).unwrap_or(u64::MAX));
        }
        self.sampled_at = now();
        self.sampled_bytes = bytes;
    }

    /// The move's view from here on, if the move is not over but this host cannot continue it.
    pub(super) fn stuck(&self, ground: &Ground) -> Option<Stuck> {
        let is_stuck = self.is_commit_said && matches!(self.outcome, Some(Outcome::Stuck(_)));
        is_stuck.then(|| Stuck {
            view: MigrationView {
                link: LinkState::Down,
                silent_ms: None,
                goodput_bytes_per_second: None,
                eta_ms: None,
                ..self.view(ground)
            },
            since: self.switched_at.unwrap_or(self.begun_at),
        })
    }

    /// Whether the attempt is over.
    pub(super) const fn is_over(&self) -> bool {
        self.outcome.is_some()
    }

    /// Consumes a finished attempt.
    pub(super) fn end(mut self, ground: &mut Ground) -> Ended {
        self.order.spent = self.order.spent.with(self.machine.progress());
        self.order.starts = 0;
        let outcome = self
            .outcome
            .unwrap_or_else(|| Outcome::Stuck(Fault::new(Code::State, "the attempt was not over")));
        match outcome {
            Outcome::Moved => {
                Order::forget(ground);
                Ended::Moved(self.machine.into_ownership())
            }
            Outcome::Stuck(fault) => Ended::Stuck(self.machine.into_ownership(), fault),
            Outcome::Stayed(fault) => {
                ground.close_link();
                let rest = if self.order.is_tried_again(ground, &fault) {
                    Rest::Again(Box::new(self.order), Order::wait_after(ground, &fault))
                } else if self.order.may_be_heard && !self.machine.is_refused() {
                    Rest::Farewell {
                        is_said: self.machine.is_link_up(),
                        order: Box::new(self.order),
                    }
                } else {
                    // The target has ended the attempt itself, or never heard of it.
                    Order::forget(ground);
                    Rest::Nothing
                };
                Ended::Stayed(self.machine.into_ownership(), rest)
            }
        }
    }
}

/// Resumes a paused guest. Does nothing if its process is gone.
pub(super) fn thaw(ground: &mut Ground) -> Result<(), Fault> {
    match &mut ground.process {
        Some(process) if process.is_alive() => process.resume().map(drop),
        _ => Ok(()),
    }
}

/// The blocks of memory that were ever touched.
fn allocated(memory: &GuestMemory) -> Result<BlockSet, Fault> {
    let mut set = BlockSet::empty(memory.geometry().block_count());
    let mut from = 0;
    while let Some(run) = memory.data_run_from(from, u32::MAX)? {
        set.insert_run(run);
        from = run.end();
    }
    Ok(set)
}

const fn action_name(action: &Action) -> &'static str {
    match action {
        Action::Persist(record) => record.state.name(),
        Action::Connect => "connect",
        Action::DropLink => "drop-link",
        Action::Send(_, Message::Prepare(_)) => "say-prepare",
        Action::Send(_, Message::FinalBegin) => "say-final-begin",
        Action::Send(_, Message::FinalEnd(_)) => "say-final-end",
        Action::Send(_, Message::Commit(..)) => "say-commit",
        Action::Send(_, Message::Abort(_)) => "say-abort",
        Action::Send(_, Message::Released) => "say-released",
        Action::Send(..) => "send",
        Action::StartTracking => "start-tracking",
        Action::Harvest => "harvest",
        Action::Freeze => "freeze",
        Action::SaveState => "save-state",
        Action::Thaw => "thaw",
        Action::NumberFrom(_) => "number-from",
        Action::SendChunk(_) => "send-chunk",
        Action::CancelChunks => "cancel-chunks",
        Action::StopTracking => "stop-tracking",
        Action::FreeImage => "free-image",
        Action::Finished(_) => "finished",
    }
}
