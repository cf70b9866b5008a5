//! A source and a target joined by queues: whole moves in virtual time, without a shell.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::VecDeque;
use std::time::Duration;

use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::{AttemptId, Epoch, GuestId, HostIdentity, MigrationId};
use towpath_protocol::message::{ChunkHeader, Codec, Lane, Message, SpaceInfo, digest_of};
use towpath_protocol::ownership::{Ownership, Root, State};
use towpath_protocol::plan::{Mode, Policy, Reason};
use towpath_protocol::source::{self, Source};
use towpath_protocol::space::{BlockSet, MEMORY, SpaceId, block_count_of};
use towpath_protocol::target::{self, Target};
use towpath_protocol::time::Instant;

const BLOCK_COUNT: u64 = 1000;
const ONE_WAY: Duration = Duration::from_millis(20);
/// Bytes of a frame without its blocks. Each block is packed to a quarter.
const FRAME_BYTES: u64 = 100;
const PACKED_BLOCK_BYTES: u64 = 4096 / 4;
/// Turns of the driver after which an unfinished move counts as hanging.
const TURN_COUNT_MAX: usize = 20_000;

fn host(site: &str) -> HostIdentity {
    HostIdentity {
        trust_domain: "test".parse().unwrap(),
        site: site.parse().unwrap(),
        host: "box".parse().unwrap(),
    }
}

enum Packet {
    Message(Lane, Message),
    Chunk(Lane, ChunkHeader, Vec<u64>),
}

/// Memory is one version number per block. A chunk's bytes are the versions of its blocks.
struct Pair {
    now: Instant,
    source: Source,
    target: Target,
    source_memory: Vec<u64>,
    target_memory: Vec<Option<u64>>,
    dirty: BlockSet,
    is_frozen: bool,
    /// Number of freezes for which the guest does not stop in time.
    late_count: u32,
    target_runs: bool,
    /// Blocks that the guest writes during each harvest, while it runs here.
    writes: Vec<u64>,
    to_target: VecDeque<(Instant, Packet)>,
    to_source: VecDeque<(Instant, Message, Lane)>,
    tokens: Vec<Vec<u64>>,
    next_sequence: u64,
    source_outcome: Option<source::Outcome>,
    target_outcome: Option<target::Outcome>,
    faults: Vec<Fault>,
    /// Drops the lanes once, when the source reaches this stage.
    cut_in: Option<source::Stage>,
    /// No packet arrives before this time.
    silent_until: Instant,
    touched_at_target: Vec<u64>,
    incidents: Vec<target::Incident>,
}

impl Pair {
    fn new(policy: Policy) -> Self {
        let spaces = vec![SpaceInfo {
            id: MEMORY,
            block_bytes: 4096,
            block_count: BLOCK_COUNT,
        }];
        let (guest, attempt, migration) = (GuestId(7), AttemptId(8), MigrationId(9));
        let (owner, _) = Ownership::owner(host("edge"), guest, Epoch(1));
        let setup = source::Setup {
            host: host("edge"),
            target: host("region"),
            migration,
            attempt,
            guest,
            name: "till".parse().unwrap(),
            spaces,
            config: vec![1, 2, 3],
            policy,
        };
        let other = target::Setup {
            host: host("region"),
            source: host("edge"),
            migration,
            attempt,
            guest,
        };
        let mut source_memory: Vec<u64> = (1..=BLOCK_COUNT).collect();
        source_memory[500..].fill(0);
        Self {
            now: Instant::ZERO,
            source: Source::begin(setup, owner, Instant::ZERO).unwrap(),
            target: Target::begin(other, Ownership::vacant(host("region"), guest)),
            source_memory,
            target_memory: vec![None; usize::try_from(BLOCK_COUNT).unwrap()],
            dirty: BlockSet::empty(BLOCK_COUNT),
            is_frozen: false,
            late_count: 0,
            target_runs: false,
            writes: Vec::new(),
            to_target: VecDeque::new(),
            to_source: VecDeque::new(),
            tokens: Vec::new(),
            next_sequence: 1,
            source_outcome: None,
            target_outcome: None,
            faults: Vec::new(),
            cut_in: None,
            silent_until: Instant::ZERO,
            touched_at_target: Vec::new(),
            incidents: Vec::new(),
        }
    }

    fn tell_source(&mut self, event: source::Event) {
        if let Err(fault) = self.source.handle(event, self.now) {
            self.faults.push(fault);
        }
        while let Some(action) = self.source.poll() {
            self.act_at_source(action);
        }
    }

    fn tell_target(&mut self, event: target::Event) {
        if let Err(fault) = self.target.handle(event, self.now) {
            self.faults.push(fault);
        }
        while let Some(action) = self.target.poll() {
            self.act_at_target(action);
        }
    }

    fn act_at_source(&mut self, action: source::Action) {
        use source::Action;
        match action {
            Action::Connect => {
                self.tell_target(target::Event::LinkUp);
                self.tell_source(source::Event::LinkUp);
            }
            Action::DropLink => self.cut(),
            Action::Send(lane, message) => {
                self.to_target
                    .push_back((self.arrives_at(), Packet::Message(lane, message)));
            }
            Action::StartTracking => {
                let mut allocated = BlockSet::empty(BLOCK_COUNT);
                (0..500).for_each(|block| {
                    allocated.insert(block);
                });
                self.tell_source(source::Event::Tracking {
                    allocated: vec![allocated],
                });
            }
            Action::Harvest => {
                if !self.is_frozen {
                    for block in self.writes.clone() {
                        self.source_memory[usize::try_from(block).unwrap()] += 1;
                        self.dirty.insert(block);
                    }
                }
                let dirty = std::mem::replace(&mut self.dirty, BlockSet::empty(BLOCK_COUNT));
                self.tell_source(source::Event::Harvested(vec![dirty]));
            }
            Action::Freeze if self.late_count > 0 => {
                self.late_count -= 1;
                self.now = self.now + source::FREEZE_DEADLINE;
                let late = Fault::new(Code::Guest, "the vcpu did not stop");
                self.tell_source(source::Event::NotFrozen(late));
            }
            Action::Freeze => {
                self.is_frozen = true;
                self.tell_source(source::Event::Frozen { at: self.now });
            }
            Action::Thaw => self.is_frozen = false,
            Action::SaveState => self.tell_source(source::Event::StateSaved(vec![5; 100])),
            Action::SendChunk(order) => self.send_chunk(order),
            Action::NumberFrom(sequence) => self.next_sequence = sequence,
            Action::Finished(outcome) => self.source_outcome = Some(outcome),
            Action::Persist(_)
            | Action::CancelChunks
            | Action::StopTracking
            | Action::FreeImage => {}
        }
    }

    fn send_chunk(&mut self, order: source::ChunkOrder) {
        let versions: Vec<u64> = order
            .runs
            .iter()
            .flat_map(|run| run.start..run.end())
            .map(|block| self.source_memory[usize::try_from(block).unwrap()])
            .collect();
        let bytes: Vec<u8> = versions
            .iter()
            .flat_map(|version| version.to_le_bytes())
            .collect();
        let digest = digest_of(&bytes);
        let sequence = if order.is_urgent {
            0
        } else {
            self.next_sequence
        };
        let header = ChunkHeader {
            sequence,
            generation: order.generation,
            space: order.space,
            codec: if order.is_zero {
                Codec::Zero
            } else {
                Codec::Raw
            },
            runs: order.runs,
            digest: if order.is_zero { [0; 16] } else { digest },
        };
        let at = self.arrives_at();
        if order.is_urgent {
            let packet = Packet::Chunk(Lane::Demand, header, versions);
            self.to_target.push_back((at, packet));
            let wire_bytes = FRAME_BYTES + PACKED_BLOCK_BYTES;
            return self.tell_source(source::Event::Answered { wire_bytes });
        }
        self.next_sequence += 1;
        // On the wire first: the report may lead to the next chunk before it returns.
        let packet = Packet::Chunk(Lane::Bulk, header.clone(), versions);
        self.to_target.push_back((at, packet));
        let wire_bytes = match header.codec {
            Codec::Zero => FRAME_BYTES,
            _ => FRAME_BYTES + block_count_of(&header.runs) * PACKED_BLOCK_BYTES,
        };
        self.tell_source(source::Event::Packed { header, wire_bytes });
    }

    fn act_at_target(&mut self, action: target::Action) {
        use target::Action;
        match action {
            Action::Send(lane, message) => {
                self.to_source.push_back((self.arrives_at(), message, lane));
            }
            Action::BuildGuest(_) => self.tell_target(target::Event::GuestBuilt),
            Action::Write { token, pieces, .. } => {
                assert!(!self.target_runs, "a plain write under a running guest");
                self.place(token, &pieces, false);
            }
            Action::Install { token, pieces, .. } => self.place(token, &pieces, true),
            Action::Expect { missing } => {
                for block in missing[0].iter() {
                    self.target_memory[usize::try_from(block).unwrap()] = None;
                }
            }
            Action::LoadState(state) => {
                assert_eq!(state, vec![5; 100]);
                self.tell_target(target::Event::StateLoaded);
            }
            Action::Run(epoch) => {
                assert_eq!(epoch, Epoch(2));
                assert!(self.is_frozen, "two run");
                self.target_runs = true;
                self.tell_target(target::Event::GuestRuns { at: self.now });
                for block in self.touched_at_target.clone() {
                    self.tell_target(target::Event::Fault {
                        space: SpaceId(0),
                        block,
                    });
                }
            }
            Action::Report(incident) => self.incidents.push(*incident),
            Action::DropLink => self.cut(),
            Action::Finished(outcome) => self.target_outcome = Some(outcome),
            Action::Persist(_)
            | Action::Forget { .. }
            | Action::SavePosition(_)
            | Action::ArmMissing
            | Action::WakeFaults
            | Action::DisarmMissing
            | Action::DiscardImage => {}
        }
    }

    fn place(&mut self, token: Option<u64>, pieces: &[target::Piece], only_missing: bool) {
        let versions = token.map(|token| self.tokens[usize::try_from(token).unwrap()].clone());
        for piece in pieces {
            let first = usize::try_from(piece.offset_bytes / 4096).unwrap();
            for (at, block) in (first..).zip(piece.run.start..piece.run.end()) {
                let slot = &mut self.target_memory[usize::try_from(block).unwrap()];
                if only_missing && slot.is_some() {
                    continue;
                }
                *slot = Some(versions.as_ref().map_or(0, |versions| versions[at]));
            }
        }
    }

    fn arrives_at(&self) -> Instant {
        (self.now + ONE_WAY).max(self.silent_until)
    }

    fn cut(&mut self) {
        self.to_target.clear();
        self.to_source.clear();
        self.tell_target(target::Event::LinkDown);
        self.tell_source(source::Event::LinkDown);
    }

    fn step(&mut self) {
        if self.cut_in == Some(self.source.stage()) {
            self.cut_in = None;
            self.cut();
        }
        let heads = [
            self.to_target.front().map(|(at, _)| *at),
            self.to_source.front().map(|(at, ..)| *at),
            self.source.deadline(),
        ];
        let Some(next) = heads.into_iter().flatten().min() else {
            return;
        };
        self.now = self.now.max(next);
        if self
            .to_target
            .front()
            .is_some_and(|(at, _)| *at <= self.now)
        {
            match self.to_target.pop_front().unwrap().1 {
                Packet::Message(lane, message) => {
                    self.tell_target(target::Event::Heard(lane, message));
                }
                Packet::Chunk(lane, header, versions) => {
                    let token = self.tokens.len() as u64;
                    self.tokens.push(versions);
                    self.tell_target(target::Event::Chunk {
                        lane,
                        header,
                        token,
                    });
                }
            }
        } else if self
            .to_source
            .front()
            .is_some_and(|(at, ..)| *at <= self.now)
        {
            let (_, message, lane) = self.to_source.pop_front().unwrap();
            self.tell_source(source::Event::Heard(lane, message));
        } else {
            self.tell_source(source::Event::Tick);
        }
    }

    fn run(&mut self) {
        self.run_until(|pair| pair.source_outcome.is_some() && pair.to_target.is_empty());
    }

    fn run_until(&mut self, mut is_done: impl FnMut(&Self) -> bool) {
        while let Some(action) = self.source.poll() {
            self.act_at_source(action);
        }
        for _ in 0..TURN_COUNT_MAX {
            if is_done(self) {
                return;
            }
            self.step();
        }
        panic!(
            "the move hangs: {:?} {:?}",
            self.source.stage(),
            self.target.stage()
        );
    }

    fn assert_moved(&self) {
        assert_eq!(
            self.source_outcome,
            Some(source::Outcome::Moved),
            "{:?}",
            self.faults
        );
        assert_eq!(self.target_outcome, Some(target::Outcome::Arrived));
        assert!(self.target_runs && self.is_frozen);
        for (block, version) in self.target_memory.iter().enumerate() {
            assert_eq!(*version, Some(self.source_memory[block]), "block {block}");
        }
        assert!(matches!(
            self.source.ownership().record().state,
            State::Released { .. }
        ));
    }
}

fn policy(mode: Mode) -> Policy {
    Policy {
        mode,
        ..Policy::default()
    }
}

#[test]
fn pc7_an_idle_guest_moves_whole_and_fetches_nothing() {
    let mut pair = Pair::new(policy(Mode::Auto));
    pair.run();
    pair.assert_moved();
    assert_eq!(pair.source.switch_reason(), Some(Reason::Converged));
    assert_eq!(pair.source.progress().demand_count, 0);
    let pause = pair.source.progress().pause_reported.unwrap();
    assert!(pause <= ONE_WAY * 4, "{pause:?}");
    assert_eq!(pair.faults, []);
}

#[test]
fn a_guest_that_writes_a_little_moves_with_its_last_writes() {
    let mut pair = Pair::new(policy(Mode::Auto));
    pair.writes = vec![3, 4, 5, 499, 700, 999];
    pair.run();
    pair.assert_moved();
    assert_eq!(pair.faults, []);
}

#[test]
fn post_copy_fetches_every_block_once_and_demanded_ones_first() {
    let mut pair = Pair::new(policy(Mode::Post));
    pair.touched_at_target = vec![42, 7, 900];
    pair.run();
    pair.assert_moved();
    assert_eq!(pair.source.switch_reason(), Some(Reason::PostCopyAsked));
    assert_eq!(
        pair.source.progress().demand_count,
        2,
        "block 900 was known to be zero"
    );
    assert_eq!(pair.faults, []);
}

#[test]
fn post_copy_stays_one_whatever_happens_before_the_switch() {
    // One with lanes that break before the target has anything, one with a freeze that is undone.
    let mut cut = Pair::new(policy(Mode::Post));
    cut.cut_in = Some(source::Stage::Copying);
    let mut late = Pair::new(policy(Mode::Post));
    late.run_until(|pair| pair.source.stage() == source::Stage::Switching);
    late.to_target.clear();
    late.run_until(|pair| pair.source.stage() == source::Stage::Copying);
    late.cut();
    for mut pair in [cut, late] {
        pair.run_until(|pair| pair.source.stage() == source::Stage::Committed);
        let raw_bytes = pair.source.progress().raw_bytes;
        // Names that the target has not taken are sent again as blocks, which are zeros.
        assert!(
            raw_bytes <= 500 * 4096,
            "touched blocks went before: {raw_bytes}"
        );
        pair.run();
        pair.assert_moved();
    }
}

#[test]
fn what_a_move_may_use_bounds_what_is_expected_of_it() {
    const CAP: u64 = 1 << 20;
    /// Blocks are packed to a quarter, and each frame has a head.
    const WORTH: u64 = 4 * CAP;
    let mut pair = Pair::new(Policy {
        bytes_per_second_max: Some(CAP),
        ..policy(Mode::Auto)
    });
    pair.writes = vec![3, 4];
    let mut expected_count = 0;
    pair.run_until(|pair| {
        let progress = pair.source.progress();
        if let (Some(left), source::Stage::Copying) = (progress.eta, pair.source.stage()) {
            expected_count += 1;
            let least = towpath_protocol::plan::seconds_for(4096 * progress.blocks_left, WORTH);
            // Names of blocks that were never touched take next to no bytes.
            assert!(left >= least.mul_f64(0.99), "{left:?} for {least:?}");
        }
        let spent = pair.now.since(Instant::ZERO).as_millis();
        let allowed = u128::from(CAP) * spent / 1000 + (64 << 10);
        let sent = progress.wire_bytes;
        assert!(u128::from(sent) <= allowed, "{sent} bytes in {spent} ms");
        pair.source.stage() == source::Stage::Switching
    });
    assert!(expected_count > 10, "{expected_count}");
    assert!(pair.source.progress().finished_round_count > 0);
    for record in pair.source.decisions() {
        let goodput = record.facts.goodput_bytes_per_second;
        assert!(goodput <= WORTH, "{record:?}");
    }
    // The cap is on packed bytes, not on raw ones.
    let spent = pair.now.since(Instant::ZERO);
    let least = towpath_protocol::plan::seconds_for(500 * PACKED_BLOCK_BYTES, CAP);
    assert!(spent > least && spent < least.mul_f64(1.5), "{spent:?}");
    pair.run();
    pair.assert_moved();
}

#[test]
fn what_is_asked_for_counts_against_what_a_move_may_use() {
    const CAP: u64 = 1 << 17;
    let mut pair = Pair::new(Policy {
        bytes_per_second_max: Some(CAP),
        ..policy(Mode::Post)
    });
    pair.touched_at_target = (100..200).collect();
    pair.run_until(|pair| pair.source.stage() == source::Stage::Serving);
    let (begun_at, before) = (pair.now, pair.source.progress().wire_bytes);
    pair.run();
    pair.assert_moved();
    let progress = pair.source.progress();
    assert_eq!(progress.demand_count, 100);
    let sent = progress.wire_bytes - before;
    assert!(sent > 500 * PACKED_BLOCK_BYTES, "{sent}");
    let spent = pair.now.since(begun_at);
    let least = towpath_protocol::plan::seconds_for(sent - (64 << 10), CAP);
    assert!(spent >= least, "{sent} bytes in {spent:?}");
}

#[test]
fn pc8_a_cut_in_any_stage_costs_nothing_but_time() {
    for mode in [Mode::Auto, Mode::Post] {
        for stage in source::Stage::ALL {
            let mut pair = Pair::new(policy(mode));
            pair.writes = vec![1, 2, 600];
            pair.touched_at_target = vec![1, 480];
            pair.cut_in = Some(stage);
            pair.run();
            pair.assert_moved();
            assert_eq!(pair.faults, [], "{mode:?} {stage:?}");
        }
    }
}

#[test]
fn an_outage_does_not_make_the_path_longer() {
    let mut pair = Pair::new(policy(Mode::Auto));
    pair.run_until(|pair| pair.source.stage() == source::Stage::Copying);
    // Shorter than what drops the lanes. Everything under way waits, and so do the pings of each
    // second.
    let began = pair.now;
    pair.silent_until = began + Duration::from_secs(8);
    assert_eq!(pair.source.silence(pair.now), None);
    pair.run_until(|pair| pair.now >= began + Duration::from_secs(5));
    let silence = pair.source.silence(pair.now).unwrap();
    assert!((4..=5).contains(&silence.as_secs()), "{silence:?}");
    pair.run();
    assert_eq!(pair.source.silence(pair.now), None);
    pair.assert_moved();
    assert_eq!(pair.source.switch_reason(), Some(Reason::Converged));
    assert_eq!(pair.source.progress().round_trip, Some(ONE_WAY * 2));
    assert_eq!(pair.faults, []);
}

#[test]
fn a_cancelled_move_leaves_the_guest_running_at_the_source() {
    let mut pair = Pair::new(policy(Mode::Auto));
    while let Some(action) = pair.source.poll() {
        pair.act_at_source(action);
    }
    (0..6).for_each(|_| pair.step());
    pair.tell_source(source::Event::Cancel);
    pair.run();
    let Some(source::Outcome::Stayed(fault)) = &pair.source_outcome else {
        panic!()
    };
    assert_eq!(fault.code, Code::Cancelled);
    assert!(!pair.is_frozen && !pair.target_runs);
    assert!(pair.source.ownership().may_run());
    assert!(matches!(
        pair.target.ownership().record().state,
        State::Refused { .. }
    ));
}

#[test]
fn f22_a_demand_outside_the_guest_drops_the_lanes_and_nothing_else() {
    for (space, block) in [
        (MEMORY, BLOCK_COUNT),
        (MEMORY, u64::MAX),
        // A space of another guest.
        (SpaceId(1), 0),
    ] {
        let mut pair = Pair::new(policy(Mode::Post));
        pair.run_until(|pair| pair.source.stage() == source::Stage::Serving);
        let demand = Message::Demand(space, block);
        pair.tell_source(source::Event::Heard(Lane::Demand, demand));
        assert_eq!(
            pair.faults.last().map(|fault| fault.code),
            Some(Code::Range)
        );
        // No block is read or sent for it.
        let is_answer = |packet: &Packet| matches!(packet, Packet::Chunk(Lane::Demand, ..));
        assert!(!pair.to_target.iter().any(|(_, packet)| is_answer(packet)));
        assert_eq!(pair.source.progress().reconnect_count, 1);
        pair.run();
        pair.assert_moved();
    }
}

#[test]
fn f23_a_block_asked_for_a_million_times_is_sent_once() {
    let mut pair = Pair::new(policy(Mode::Post));
    pair.run_until(|pair| pair.source.stage() == source::Stage::Serving);
    let before = pair.to_target.len();
    for _ in 0..1_000_000 {
        pair.tell_source(source::Event::Heard(
            Lane::Demand,
            Message::Demand(MEMORY, 9),
        ));
    }
    assert!(pair.to_target.len() <= before + 1);
    pair.run();
    pair.assert_moved();
}

#[test]
fn f26_a_target_believes_only_its_own_count_of_missing_blocks() {
    let mut pair = Pair::new(policy(Mode::Post));
    pair.touched_at_target = vec![480];
    pair.run_until(|pair| pair.target_runs);
    pair.tell_target(target::Event::Heard(Lane::Control, Message::Complete));
    let told = pair.faults.last().map(|fault| fault.code);
    assert_eq!(told, Some(Code::Unexpected));
    assert_eq!(pair.target.stage(), target::Stage::Running);
    // The target asks again over new lanes, and is complete in the end.
    pair.run();
    pair.assert_moved();
    assert_eq!(pair.source.progress().reconnect_count, 1);
}

/// Moves a guest while its source's messages are altered on the way. Returns the target's incident.
fn spoilt(spoil: impl Fn(&mut Message)) -> target::Incident {
    let mut pair = Pair::new(policy(Mode::Auto));
    for _ in 0..TURN_COUNT_MAX {
        while let Some(action) = pair.source.poll() {
            pair.act_at_source(action);
        }
        for (_, packet) in &mut pair.to_target {
            if let Packet::Message(_, message) = packet {
                spoil(message);
            }
        }
        if pair.source_outcome.is_some() {
            break;
        }
        pair.step();
    }
    let Some(source::Outcome::Stayed(fault)) = &pair.source_outcome else {
        panic!("{:?}", pair.source_outcome)
    };
    assert_eq!(fault.code, Code::RootMismatch);
    assert!(!pair.is_frozen && !pair.target_runs);
    assert!(matches!(
        pair.target.ownership().record().state,
        State::Refused { .. }
    ));
    let [incident] = pair.incidents.as_slice() else {
        panic!("{:?}", pair.incidents)
    };
    assert_eq!(incident.fault, *fault, "the source hears what is written");
    incident.clone()
}

#[test]
fn f27_a_target_whose_image_differs_refuses_and_reports_and_the_source_runs_on() {
    let incident = spoilt(|message| {
        if let Message::FinalEnd(end) = message {
            end.root = Root([0; 32]);
        }
    });
    assert_eq!(incident.theirs, Some(incident.ours));
    assert_eq!(incident.differs, [""; 0]);
    assert_eq!(incident.end.root, Root([0; 32]));
    assert_ne!(incident.root, incident.end.root);
}

#[test]
fn f27_what_differs_is_named() {
    let incident = spoilt(|message| {
        if let Message::StatePart(state) = message {
            state[7] = 6;
        }
    });
    assert_eq!(incident.differs, ["state"]);
    let detail = &incident.fault.detail;
    assert!(detail.ends_with("; what differs: state"), "{detail}");
    // If the source sends no manifest, the figures in its last message tell what they can.
    let incident = spoilt(|message| match message {
        Message::Manifest(_) => *message = Message::Pong(0),
        Message::FinalEnd(end) => end.missing_count = 1,
        _ => {}
    });
    assert_eq!(incident.theirs, None);
    assert_eq!(incident.differs, ["missing blocks"]);
}

#[test]
fn f24_a_demand_after_the_guest_was_let_go_is_answered_by_the_end_of_the_lanes() {
    let mut pair = Pair::new(policy(Mode::Post));
    pair.run();
    pair.assert_moved();
    let demand = source::Event::Heard(Lane::Demand, Message::Demand(MEMORY, 3));
    let fault = pair.source.handle(demand, pair.now).unwrap_err();
    assert_eq!(fault.code, Code::Gone);
    assert_eq!(pair.source.poll(), Some(source::Action::DropLink));
    assert_eq!(pair.source.poll(), None);
}

#[test]
fn a_freeze_that_lasts_too_long_is_thawed_and_the_move_goes_on() {
    let mut pair = Pair::new(policy(Mode::Auto));
    pair.writes = vec![5];
    pair.run_until(|pair| pair.source.stage() == source::Stage::Switching);
    // The messages that the target needs to become ready never arrive.
    pair.to_target.clear();
    pair.run_until(|pair| pair.source.stage() == source::Stage::Copying);
    assert!(!pair.is_frozen);
    assert!(pair.now.since(Instant::ZERO) >= source::FREEZE_DEADLINE);
    // Messages were lost, which does not happen on real lanes, so the lanes are opened again.
    pair.cut();
    pair.run();
    pair.assert_moved();
}

#[test]
fn a_target_that_is_ready_for_a_freeze_that_was_given_up_disturbs_nothing() {
    let mut pair = Pair::new(policy(Mode::Auto));
    pair.writes = vec![5];
    let is_ready =
        |(_, message, _): &(Instant, Message, Lane)| matches!(message, Message::Ready(_));
    pair.run_until(|pair| pair.to_source.iter().any(is_ready));
    let at = pair.to_source.iter().position(is_ready).unwrap();
    let (_, late, lane) = pair.to_source.remove(at).unwrap();
    // The guest is thawed and frozen again.
    let is_sealed = |(_, packet): &(Instant, Packet)| {
        matches!(packet, Packet::Message(_, Message::FinalEnd(_)))
    };
    pair.run_until(|pair| pair.to_target.iter().any(is_sealed));
    pair.tell_source(source::Event::Heard(lane, late));
    assert_eq!(pair.source.stage(), source::Stage::Switching);
    pair.run();
    pair.assert_moved();
    assert!(pair.faults.is_empty(), "{:?}", pair.faults);
}

#[test]
fn a_guest_runs_as_long_as_it_stood_and_a_target_that_is_never_ready_does_not_get_it() {
    let mut pair = Pair::new(policy(Mode::Auto));
    let (mut stood, mut froze_count) = (Duration::ZERO, 0);
    for _ in 0..TURN_COUNT_MAX {
        while let Some(action) = pair.source.poll() {
            pair.act_at_source(action);
        }
        if pair.source_outcome.is_some() {
            break;
        }
        let is_ready = |message: &Message| matches!(message, Message::Ready(_));
        pair.to_source.retain(|(_, message, _)| !is_ready(message));
        let (was_frozen, before) = (pair.is_frozen, pair.now);
        pair.step();
        if was_frozen {
            stood += pair.now.since(before);
        }
        froze_count += u32::from(pair.is_frozen && !was_frozen);
        let ran = pair.now.since(Instant::ZERO).saturating_sub(stood);
        assert!(ran + source::FREEZE_DEADLINE >= stood, "{stood:?} {ran:?}");
    }
    let Some(source::Outcome::Stayed(fault)) = &pair.source_outcome else {
        panic!("{:?}", pair.source_outcome)
    };
    assert_eq!(fault.code, Code::Stalled);
    assert_eq!(froze_count, 5);
    assert!(!pair.is_frozen && !pair.target_runs);
    assert!(pair.source.ownership().may_run());
}

#[test]
fn a_guest_that_does_not_stop_in_time_runs_on_and_is_frozen_again() {
    for late_count in [4, 5] {
        let mut pair = Pair::new(policy(Mode::Auto));
        pair.writes = vec![5];
        pair.late_count = late_count;
        pair.run();
        if late_count == 4 {
            pair.assert_moved();
            continue;
        }
        assert!(!pair.is_frozen);
        let Some(source::Outcome::Stayed(fault)) = &pair.source_outcome else {
            panic!("{:?}", pair.source_outcome)
        };
        assert_eq!(fault.code, Code::Guest);
        assert!(fault.detail.ends_with(", 5 times"), "{fault}");
        assert!(pair.source.ownership().may_run());
    }
}
