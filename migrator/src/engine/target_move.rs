//! Carries out the actions that the target's machine decides on.

mod admit;
#[cfg(test)]
pub(super) mod tests;
mod view;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::guest_api::GuestConfig;
use towpath_protocol::message::{ChunkHeader, Hello, Lane, Message, Prepare, SpaceInfo};
use towpath_protocol::ownership::{Ownership, State};
use towpath_protocol::space::{BlockRun, BlockSet, Geometry, MEMORY, SpaceId};
use towpath_protocol::target::{Action, Event, Outcome, Piece, Remains, Setup, Stage, Target};
use towpath_protocol::time::Instant;
use tracing::{info, warn};

use super::ground::{Ground, new_link_number, now, unix_ms};
use super::incident;
use super::input::Input;
use super::judge::Judge;
use super::lanes::{
    Gathering, Link, OpenLane, ReadingEnd, Unpacked, read_chunks, receive_on, spawn,
};
use super::mailbox::Mailbox;
use super::shared::Shared;
use super::source_move::NotBegun;
use crate::guest::MissingMemory;
use crate::store::{Position, ReceivedFile};

/// How long the fault thread waits before it checks whether it is still needed.
const FAULT_WAIT: Duration = Duration::from_millis(100);

/// Most demand latencies kept for the quantiles.
const LATENCY_COUNT_MAX: usize = 65_536;

/// A guest that does not run yet is given up after this time without lanes, which frees its memory.
const ABANDONED_AFTER: Duration = Duration::from_secs(600);

/// Chunks acknowledged together: 4 MiB, a small part of any window that fills faster than
/// [`ACKNOWLEDGE_WAIT`] passes.
const ACKNOWLEDGED_COUNT_MAX: usize = 64;

/// Longest a chunk waits to be acknowledged with others: a twentieth of the time that the source
/// allows chunks to be in flight on top of the round trip.
const ACKNOWLEDGE_WAIT: Duration = Duration::from_millis(5);

/// How an attempt ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The guest is here and complete.
    Arrived(Ownership),
    /// The guest did not arrive.
    Refused(Ownership),
    /// The guest is owned here, but its memory is lost.
    Lost(Ownership, Fault),
}

/// One attempt and the resources that carry it out.
#[derive(Debug)]
pub(super) struct TargetMove {
    machine: Target,
    /// Unpacked chunks on which the machine has not decided yet.
    chunks: BTreeMap<u64, Unpacked>,
    next_token: u64,
    unacknowledged_count: usize,
    acknowledge_at: Option<Instant>,
    received: Option<ReceivedFile>,
    /// Blocks that are installed but not yet marked in `received`. While the guest does not run,
    /// consecutive chunks are marked together: at the latest when no action is left, and before any
    /// action that relies on the marks.
    unmarked: Option<(SpaceId, BlockRun)>,
    missing: Option<Arc<MissingMemory>>,
    lanes: Gathering,
    /// Readers of chunks, started once the geometry is known.
    chunk_readers: Vec<ReadingEnd>,
    judge: Judge,
    waits: BTreeMap<u64, Instant>,
    latencies_us: Vec<u32>,
    /// Up to when the exposure time (the guest runs here with memory missing) has been counted.
    exposed_until: Option<Instant>,
    raw_bytes: u64,
    shared: Arc<Shared>,
    outcome: Option<Outcome>,
    begun_at: Instant,
    begun_unix_ms: u64,
    link_lost_at: Instant,
}

impl TargetMove {
    /// Begins an attempt whose lanes are open and whose source has sent something.
    pub(super) fn begin(ground: &Ground, ownership: Ownership, setup: Setup) -> Self {
        Self::with(Target::begin(setup, ownership), ground)
    }

    fn with(machine: Target, ground: &Ground) -> Self {
        Self {
            machine,
            chunks: BTreeMap::new(),
            next_token: 0,
            unacknowledged_count: 0,
            acknowledge_at: None,
            received: None,
            unmarked: None,
            missing: None,
            lanes: Gathering::default(),
            chunk_readers: Vec::new(),
            judge: Judge::default(),
            waits: BTreeMap::new(),
            latencies_us: Vec::new(),
            exposed_until: None,
            raw_bytes: 0,
            shared: Arc::clone(&ground.shared),
            outcome: None,
            begun_at: now(),
            begun_unix_ms: unix_ms(),
            link_lost_at: now(),
        }
    }

    /// A guest that runs here and misses its first `missing_count` blocks.
    #[cfg(test)]
    pub(super) fn running(ground: &Ground, ownership: Ownership, missing_count: u64) -> Self {
        tests::running(ground, ownership, missing_count)
    }

    #[cfg(test)]
    pub(super) fn lose(&mut self, fault: Fault) {
        self.outcome = Some(Outcome::Lost(fault));
    }

    /// Resumes an attempt of a previous migrator. The guest's process must already be adopted.
    pub(super) fn recover(
        ground: &mut Ground,
        ownership: Ownership,
        setup: Setup,
    ) -> Result<Self, Box<NotBegun>> {
        let spare = ownership.clone();
        Self::recover_parts(ground, ownership, setup).map_err(|fault| {
            let ownership = spare;
            Box::new(NotBegun { ownership, fault })
        })
    }

    fn recover_parts(
        ground: &mut Ground,
        ownership: Ownership,
        setup: Setup,
    ) -> Result<Self, Fault> {
        let folder = ground.folder.as_ref();
        let folder = folder.ok_or_else(|| Fault::new(Code::ImageLost, "no folder"))?;
        let received = folder.open_received()?;
        if received.attempt() != setup.attempt {
            let detail = "the marks of what arrived are of another attempt";
            return Err(Fault::new(Code::ImageLost, detail));
        }
        let config = ground.config.clone();
        let config = config.ok_or_else(|| Fault::new(Code::ImageLost, "no description"))?;
        let state = &ownership.record().state;
        let epoch = match state {
            State::Prepared { epoch, .. } | State::Owned { epoch, .. } => *epoch,
            other => {
                let detail = format!("no attempt goes on while {}", other.name());
                return Err(Fault::new(Code::State, detail));
            }
        };
        let is_owned = matches!(state, State::Owned { .. });
        let Position { sequence, chain } = received.position();
        let remains = Remains {
            prepare: Prepare {
                name: config.name.clone(),
                epoch,
                spaces: spaces_of(&config),
                config: config.to_bytes(),
            },
            present: vec![received.received(MEMORY)?.clone()],
            position: towpath_protocol::message::Received {
                through_sequence: sequence,
                chain,
            },
        };
        let is_whole = remains
            .present
            .iter()
            .all(|set| set.len() == set.block_count());
        let is_armed = ground.process()?.describe()?.is_armed;
        if is_owned && !is_whole && !is_armed {
            let detail = "the guest's process does not wait for what is missing";
            return Err(Fault::new(Code::ImageLost, detail));
        }
        let (source, attempt) = (setup.source.clone(), setup.attempt);
        let machine = Target::recover(setup, ownership, remains)?;
        let mut target = Self::with(machine, ground);
        target.received = Some(received);
        if is_owned && is_armed {
            target.arm(ground)?;
        }
        // Done last: an attempt that does not continue keeps no place, and a guest owned here needs
        // none.
        if !is_owned {
            ground.shared.readmit(
                &source,
                (ground.id, attempt),
                config.memory_bytes,
                target.has_data(),
            );
        }
        Ok(target)
    }

    pub(super) fn setup(&self) -> &Setup {
        self.machine.setup()
    }

    pub(super) const fn ownership(&self) -> &Ownership {
        self.machine.ownership()
    }

    pub(super) fn stage(&self) -> Stage {
        self.machine.stage()
    }

    /// Whether any chunk has arrived since this value was made.
    pub(super) const fn has_received(&self) -> bool {
        self.machine.progress().chunk_count > 0
    }

    /// Whether any block of the guest is here, including those that a previous migrator received.
    pub(super) fn has_data(&self) -> bool {
        self.machine.present_count() > 0
    }

    fn offer_wait(&self) -> Duration {
        self.shared.config.limits.offer_wait.duration()
    }

    /// Whether the source has offered nothing in this attempt; it may only be missing a final
    /// message.
    pub(super) const fn is_blank(&self) -> bool {
        self.machine.prepare().is_none()
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        [self.patience(), self.acknowledge_at]
            .into_iter()
            .flatten()
            .min()
    }

    /// For how long the source has had no lanes here; `None` if it has some.
    pub(super) fn source_away_for(&self, ground: &Ground) -> Option<Duration> {
        ground
            .link
            .is_none()
            .then(|| now().since(self.link_lost_at))
    }

    /// When the source counts as silent for too long.
    fn patience(&self) -> Option<Instant> {
        match self.machine.stage() {
            Stage::Running | Stage::Over => None,
            // The same limit as in admission: neither messages nor new lanes extend an offer's
            // stay.
            _ if !self.has_data() => Some(self.begun_at + self.offer_wait()),
            _ if !self.machine.is_link_up() => Some(self.link_lost_at + ABANDONED_AFTER),
            _ => None,
        }
    }

    pub(super) fn tick(&mut self, ground: &mut Ground) {
        self.count_exposure();
        self.lanes.forget_late(std::time::Instant::now());
        if self.patience().is_none_or(|deadline| deadline > now()) {
            self.carry_out(ground);
            return;
        }
        let fault = Fault::new(Code::Stalled, "the source offers a guest and sends nothing");
        self.handle(ground, Event::Failed(fault));
    }

    /// A lane of this attempt was greeted.
    pub(super) fn lane(&mut self, ground: &mut Ground, hello: &Hello, lane: OpenLane) {
        let Some(lanes) = self.lanes.add(hello.link, lane) else {
            return;
        };
        // Only now that the set is complete: a late lane of an abandoned set must not end a working
        // link.
        self.link_down(ground);
        match receive_on(new_link_number(), lanes, &ground.mailbox) {
            Ok((link, chunk_readers)) => self.link_up(ground, link, chunk_readers),
            Err(fault) => warn!(%fault, "lanes could not be used"),
        }
    }

    /// All lanes of this attempt are open.
    pub(super) fn link_up(&mut self, ground: &mut Ground, link: Link, readers: Vec<ReadingEnd>) {
        ground.link = Some(link);
        self.chunk_readers = readers;
        match self.read_chunks(ground) {
            Ok(()) => {
                self.handle(ground, Event::LinkUp);
            }
            Err(fault) => {
                warn!(%fault, "lanes could not be used");
                self.lose_link(ground);
            }
        }
    }

    /// Starts the chunk readers once the address spaces are known.
    fn read_chunks(&mut self, ground: &Ground) -> Result<(), Fault> {
        let (Some(prepare), Some(link)) = (self.machine.prepare(), &ground.link) else {
            return Ok(());
        };
        let spaces: Vec<Geometry> = prepare
            .spaces
            .iter()
            .map(SpaceInfo::geometry)
            .collect::<Result<_, _>>()?;
        for (lane, reader) in self.chunk_readers.drain(..) {
            let mailbox = Arc::clone(&ground.mailbox);
            read_chunks(link.number, lane, reader, spaces.clone(), mailbox)?;
        }
        Ok(())
    }

    /// A lane ended. The other lanes are useless without it.
    pub(super) fn lane_ended(&mut self, ground: &mut Ground, fault: &Fault) {
        // Chunks that arrived before the lane ended still count.
        self.carry_out(ground);
        let arrived_count = self.machine.progress().chunk_count;
        if let Some(fault) = self.judge.lane_ended(fault, arrived_count) {
            self.shared.refused(&self.setup().source, &fault);
            // While there are still lanes on which to say why.
            self.handle(ground, Event::Judged(fault));
        }
        self.link_down(ground);
    }

    /// The lanes are gone.
    pub(super) fn link_down(&mut self, ground: &mut Ground) {
        if self.lose_link(ground) {
            self.handle(ground, Event::LinkDown);
        }
    }

    /// Drops the lanes and notes the time. Returns whether there were any.
    fn lose_link(&mut self, ground: &mut Ground) -> bool {
        let had_link = ground.link.take().is_some();
        if had_link {
            self.link_lost_at = now();
        }
        had_link
    }

    /// A message arrived on a current lane.
    pub(super) fn heard(&mut self, ground: &mut Ground, lane: Lane, message: Message) {
        if let Message::Prepare(prepare) = &message
            && self.is_blank()
            && let Err(fault) = self.admit(ground, prepare)
        {
            info!(%fault, "guest refused");
            self.shared.refused(&self.setup().source, &fault);
            ground.send(Lane::Control, &Message::Refused((&fault).into()));
            self.outcome = Some(Outcome::Refused(fault));
            return;
        }
        self.take_in(Event::Heard(lane, message));
        self.carry_out(ground);
        if let Err(fault) = self.read_chunks(ground) {
            self.handle(ground, Event::Failed(fault));
        }
    }

    /// A chunk arrived on a current lane.
    pub(super) fn chunk(&mut self, lane: Lane, header: ChunkHeader, unpacked: Unpacked) {
        let token = self.next_token;
        self.next_token += 1;
        self.raw_bytes += unpacked.bytes().len() as u64;
        self.chunks.insert(token, unpacked);
        self.unacknowledged_count += 1;
        self.acknowledge_at
            .get_or_insert_with(|| now() + ACKNOWLEDGE_WAIT);
        self.take_in(Event::Chunk {
            lane,
            header,
            token,
        });
    }

    /// A vCPU waits for a block.
    pub(super) fn fault(&mut self, ground: &mut Ground, block: u64) {
        self.waits.entry(block).or_insert_with(now);
        let space = MEMORY;
        self.handle(ground, Event::Fault { space, block });
    }

    /// Page faults on missing blocks are no longer reported. That matters only while the guest
    /// runs.
    pub(super) fn faults_lost(&mut self, ground: &mut Ground, fault: Fault) {
        if self.stage() == Stage::Running {
            warn!(%fault, "touches of missing blocks are not reported any more");
            self.handle(ground, Event::Failed(fault));
        }
    }

    /// Takes in an event and carries out the resulting actions.
    pub(super) fn handle(&mut self, ground: &mut Ground, event: Event) {
        self.take_in(event);
        self.carry_out(ground);
    }

    fn take_in(&mut self, event: Event) {
        let is_chunk = matches!(event, Event::Chunk { .. });
        let before = self.machine.stage();
        let stale_before = self.machine.progress().stale_chunk_count;
        let migration = self.machine.setup().migration;
        // Other faults here are not about a message of the source, whatever their code.
        let is_said = matches!(event, Event::Heard(..) | Event::Chunk { .. });
        if let Err(fault) = self.machine.handle(event, now()) {
            warn!(%migration, %fault, "move disturbed");
            if is_said {
                self.shared.refused(&self.machine.setup().source, &fault);
            }
            if is_chunk {
                self.shared.metrics.lane_fault(fault.code);
            }
        }
        self.count_exposure();
        let stale = self.machine.progress().stale_chunk_count - stale_before;
        self.shared.metrics.stale_chunks(stale);
        let after = self.machine.stage();
        if before != after {
            let (from, to) = (before.as_str(), after.as_str());
            info!(%migration, from, to, "move goes on");
        }
    }

    /// Counts the time in which the guest runs here with memory missing.
    fn count_exposure(&mut self) {
        let now = now();
        let is_exposed = self.machine.stage() == Stage::Running;
        if let Some(until) = self.exposed_until {
            self.shared.metrics.exposed(now.since(until));
        }
        self.exposed_until = is_exposed.then_some(now);
    }

    /// Carries out all due actions in order. If one fails, those behind it are dropped.
    pub(super) fn carry_out(&mut self, ground: &mut Ground) {
        while let Some(action) = self.next_action() {
            let step = action_name(&action);
            // Nothing depends on cleaning up.
            let is_disarm = matches!(action, Action::DisarmMissing);
            let is_needed = !is_disarm && !matches!(action, Action::DiscardImage);
            let is_record = matches!(action, Action::Persist(_));
            if let Err(fault) = self.act(ground, action) {
                warn!(%fault, step, "an action failed");
                if is_record {
                    self.take_in(Event::NotRecorded(fault));
                } else if is_needed {
                    self.take_in(Event::Failed(fault));
                } else if is_disarm {
                    // The guest would wait for ever at a block that was never touched, so disarming
                    // is repeated once its process answers.
                    ground.not_thawed(fault);
                }
            }
            ground.shared.failpoint("target", step);
        }
        if let Err(fault) = self.write_marks() {
            warn!(%fault, "what arrived could not be marked");
            self.take_in(Event::Failed(fault));
            self.carry_out(ground);
        }
    }

    fn next_action(&mut self) -> Option<Action> {
        let is_due = self.unacknowledged_count >= ACKNOWLEDGED_COUNT_MAX
            || self.acknowledge_at.is_none_or(|at| at <= now());
        if !is_due {
            return self.machine.poll_unacknowledging();
        }
        let action = self.machine.poll();
        if action.is_none() {
            self.unacknowledged_count = 0;
            self.acknowledge_at = None;
        }
        action
    }

    fn act(&mut self, ground: &mut Ground, action: Action) -> Result<(), Fault> {
        if matches!(
            action,
            Action::SavePosition(_) | Action::Expect { .. } | Action::Run(_)
        ) {
            self.write_marks()?;
        }
        match action {
            Action::Persist(record) => ground.persist(&record)?,
            Action::Send(lane, message) => ground.send(lane, &message),
            Action::BuildGuest(prepare) => {
                self.build(ground, &prepare)?;
                self.take_in(Event::GuestBuilt);
            }
            Action::Write {
                token,
                space,
                pieces,
            } => self.write(ground, token, space, &pieces)?,
            Action::Install {
                token,
                space,
                pieces,
            } => self.install(token, space, &pieces)?,
            Action::Forget { token } => drop(self.chunks.remove(&token)),
            Action::SavePosition(received) => {
                if let Some(file) = &mut self.received {
                    file.set_position(Position {
                        sequence: received.through_sequence,
                        chain: received.chain,
                    })?;
                }
            }
            Action::Expect { missing } => self.expect(ground, &missing)?,
            Action::LoadState(state) => {
                ground.process()?.load_state(&state)?;
                self.take_in(Event::StateLoaded);
            }
            Action::ArmMissing => self.arm(ground)?,
            Action::Run(epoch) => {
                let at = ground.process()?.run_loaded(epoch)?;
                // From now on the guest counts as one that lives here, not as an arriving one.
                ground
                    .shared
                    .released(ground.id, self.machine.setup().attempt);
                self.take_in(Event::GuestRuns { at });
            }
            Action::WakeFaults => {
                if let Some(missing) = &self.missing {
                    missing.wake_all()?;
                }
            }
            Action::DisarmMissing => {
                self.missing = None;
                let process = ground.process()?;
                if process.describe()?.is_armed {
                    process.disarm_missing()?;
                }
            }
            Action::DiscardImage => self.discard(ground)?,
            Action::Report(incident) => incident::keep(ground, self.setup(), &incident),
            Action::DropLink => {
                self.lose_link(ground);
            }
            Action::Finished(outcome) => self.outcome = Some(outcome),
        }
        Ok(())
    }

    fn build(&mut self, ground: &mut Ground, prepare: &Prepare) -> Result<(), Fault> {
        let spaces: Vec<Geometry> = prepare
            .spaces
            .iter()
            .map(SpaceInfo::geometry)
            .collect::<Result<_, _>>()?;
        ground.save_config()?;
        let folder = ground.folder.as_ref();
        let folder = folder.ok_or_else(|| Fault::new(Code::State, "no folder"))?;
        folder.remove_received()?;
        self.received = Some(folder.create_received(self.machine.setup().attempt, &spaces)?);
        ground.make_process(true)
    }

    fn write(
        &mut self,
        ground: &Ground,
        token: Option<u64>,
        space: SpaceId,
        pieces: &[Piece],
    ) -> Result<(), Fault> {
        let memory = ground.memory()?;
        let unpacked = self.taken(token)?;
        for piece in pieces {
            match &unpacked {
                Some(unpacked) => memory.write_runs(&[piece.run], part(unpacked, piece)?)?,
                // A hole reads as zeros.
                None => memory.punch(piece.run)?,
            }
        }
        self.mark(space, pieces)
    }

    fn install(
        &mut self,
        token: Option<u64>,
        space: SpaceId,
        pieces: &[Piece],
    ) -> Result<(), Fault> {
        let missing = self.missing.clone();
        let missing = missing.ok_or_else(|| Fault::new(Code::State, "no fault is expected"))?;
        let unpacked = self.taken(token)?;
        for piece in pieces {
            match &unpacked {
                Some(unpacked) => drop(missing.install(piece.run, part(unpacked, piece)?)?),
                None => drop(missing.install_zero(piece.run)?),
            }
            self.answered(piece);
        }
        self.mark(space, pieces)
    }

    /// Records how long vCPUs waited for the blocks just installed.
    fn answered(&mut self, piece: &Piece) {
        if self.waits.is_empty() {
            return;
        }
        for block in piece.run.start..piece.run.end() {
            let Some(since) = self.waits.remove(&block) else {
                continue;
            };
            let waited = now().since(since);
            self.shared.metrics.page_waited(waited);
            if self.latencies_us.len() < LATENCY_COUNT_MAX {
                let waited = u32::try_from(waited.as_micros());
                self.latencies_us.push(waited.unwrap_or(u32::MAX));
            }
        }
    }

    fn taken(&mut self, token: Option<u64>) -> Result<Option<Unpacked>, Fault> {
        let Some(token) = token else { return Ok(None) };
        let unpacked = self.chunks.remove(&token);
        unpacked
            .map(Some)
            .ok_or_else(|| Fault::new(Code::State, "a chunk was used twice"))
    }

    fn mark(&mut self, space: SpaceId, pieces: &[Piece]) -> Result<(), Fault> {
        for Piece { run, .. } in pieces {
            match &mut self.unmarked {
                Some((before, joined)) if *before == space && joined.end() == run.start => {
                    joined.count = joined.count.saturating_add(run.count);
                }
                _ => {
                    self.write_marks()?;
                    self.unmarked = Some((space, *run));
                }
            }
        }
        match self.missing {
            // A running guest changes its blocks, so they must never be fetched again.
            Some(_) => self.write_marks(),
            None => Ok(()),
        }
    }

    fn write_marks(&mut self) -> Result<(), Fault> {
        let Some((space, run)) = self.unmarked.take() else {
            return Ok(());
        };
        self.received
            .as_mut()
            .map_or(Ok(()), |file| file.insert_run(space, run))
    }

    fn expect(&mut self, ground: &Ground, missing: &[BlockSet]) -> Result<(), Fault> {
        let memory = ground.memory()?;
        let file = self.received.as_mut();
        let file = file.ok_or_else(|| Fault::new(Code::State, "no marks of what arrived"))?;
        for (set, space) in missing.iter().zip(0_u16..) {
            for run in set.runs() {
                memory.punch(run)?;
                file.remove_run(SpaceId(space), run)?;
            }
        }
        Ok(())
    }

    /// Turns on reporting of page faults on missing blocks, until nothing is missing.
    fn arm(&mut self, ground: &mut Ground) -> Result<(), Fault> {
        let missing = Arc::new(ground.process()?.arm_missing()?);
        let watched = Arc::downgrade(&missing);
        self.missing = Some(missing);
        let mailbox = Arc::clone(&ground.mailbox);
        let next_fault = move || {
            let missing = watched.upgrade()?;
            Some(missing.next_fault(FAULT_WAIT))
        };
        spawn("towpath-faults", move || {
            report_faults(next_fault, &mailbox);
        })
    }

    fn discard(&mut self, ground: &mut Ground) -> Result<(), Fault> {
        self.missing = None;
        self.received = None;
        self.unmarked = None;
        ground.end_process()?;
        if let Some(folder) = &ground.folder {
            folder.remove_received()?;
        }
        Ok(())
    }

    /// Whether the attempt is over.
    pub(super) const fn is_over(&self) -> bool {
        self.outcome.is_some()
    }

    /// Consumes a finished attempt. The lanes stay open, so that final messages arrive.
    pub(super) fn end(self, ground: &mut Ground) -> Ended {
        let setup = self.machine.setup();
        ground.shared.released(ground.id, setup.attempt);
        if let Some(folder) = &ground.folder
            && !matches!(self.outcome, Some(Outcome::Lost(_)))
            && let Err(fault) = folder.remove_received()
        {
            warn!(%fault, "the marks of what arrived stay");
        }
        match self.outcome {
            Some(Outcome::Arrived) => Ended::Arrived(self.machine.into_ownership()),
            Some(Outcome::Lost(fault)) => Ended::Lost(self.machine.into_ownership(), fault),
            Some(Outcome::Refused(_)) | None => Ended::Refused(self.machine.into_ownership()),
        }
    }
}

/// Reports page faults on missing blocks until nobody needs them any more. If reporting ends
/// earlier, reports that instead: a guest that touched a missing block would then wait for ever.
fn report_faults(
    mut next_fault: impl FnMut() -> Option<Result<Option<u64>, Fault>>,
    mailbox: &Mailbox<Input>,
) {
    while let Some(next) = next_fault() {
        match next {
            Ok(Some(block)) => mailbox.send(Input::Fault { block }),
            Ok(None) => {}
            Err(fault) => {
                mailbox.send(Input::FaultsLost(fault));
                return;
            }
        };
    }
}

/// The address spaces of a guest with this configuration.
pub(super) fn spaces_of(config: &GuestConfig) -> Vec<SpaceInfo> {
    vec![SpaceInfo {
        id: MEMORY,
        block_bytes: towpath_protocol::space::MEMORY_BLOCK_BYTES,
        block_count: config.block_count(),
    }]
}

fn part<'a>(unpacked: &'a Unpacked, piece: &Piece) -> Result<&'a [u8], Fault> {
    let block_bytes = u64::from(towpath_protocol::space::MEMORY_BLOCK_BYTES);
    let begin = usize::try_from(piece.offset_bytes).ok();
    let length = usize::try_from(u64::from(piece.run.count) * block_bytes).ok();
    begin
        .zip(length)
        .and_then(|(begin, length)| unpacked.bytes().get(begin..begin.checked_add(length)?))
        .ok_or_else(|| Fault::new(Code::State, "a piece lies outside of its chunk"))
}

const fn action_name(action: &Action) -> &'static str {
    match action {
        Action::Persist(record) => record.state.name(),
        Action::Send(_, Message::Prepared(_)) => "say-prepared",
        Action::Send(_, Message::Ready(_)) => "say-ready",
        Action::Send(_, Message::Ack(_)) => "say-ack",
        Action::Send(_, Message::Nack(_)) => "say-nack",
        Action::Send(_, Message::Complete) => "say-complete",
        Action::Send(..) => "send",
        Action::BuildGuest(_) => "build-guest",
        Action::Write { .. } => "write",
        Action::Install { .. } => "install",
        Action::Forget { .. } => "forget",
        Action::SavePosition(_) => "save-position",
        Action::Expect { .. } => "expect",
        Action::LoadState(_) => "load-state",
        Action::ArmMissing => "arm-missing",
        Action::Run(_) => "run",
        Action::WakeFaults => "wake-faults",
        Action::DisarmMissing => "disarm-missing",
        Action::DiscardImage => "discard-image",
        Action::Report(_) => "report",
        Action::DropLink => "drop-link",
        Action::Finished(_) => "finished",
    }
}
