//! Pre-copy: rounds of chunks while the guest runs.

use std::time::Duration;

use super::serving::empty_sets;
use super::{Action, ChunkOrder, DecisionRecord, FAULT_DELAY_MIN, Phase, Source};
use crate::fault::{Code, Fault};
use crate::image::CHAIN_START;
use crate::message::{
    CHUNK_RAW_BYTES_MAX, CHUNK_RUN_COUNT_MAX, ChunkHeader, Codec, Received, ZERO_RUN_BLOCKS_MAX,
};
use crate::plan::{self, Decision, Facts, Mode};
use crate::rate::Rate;
use crate::space::{BlockRun, BlockSet, SpaceId, block_count_of};
use crate::time::Instant;

/// Least window of frames under way, in bytes: more than a new connection sends in its first round
/// trip, and a fifth of a second at 10 Mbit/s.
const WINDOW_BYTES_MIN: u64 = 256 << 10;

/// Largest window of frames under way, in bytes: 10 Gbit/s over 50 ms.
const WINDOW_BYTES_MAX: u64 = 64 << 20;

/// Least limit on raw bytes ordered and not packed yet: enough to keep the codec's threads busy. A
/// cap on the move's rate may lower it.
const UNPACKED_BYTES_MIN: u64 = 2 << 20;

/// Most raw bytes ordered and not acknowledged yet: 4096 chunks to remember, and to read again if
/// the link breaks.
const RAW_BYTES_MAX: u64 = 256 << 20;

/// Time beyond the round trip that frames under way may cover: sockets, the tunnel's own queue, the
/// target's work. The window covers twice the sum of this and the round trip. A starting connection
/// doubles its rate every round trip, so it has up to 1.5 round trips of the rate that arrives now
/// under way.
const WINDOW_SLACK: Duration = Duration::from_millis(50);

/// One pass over the blocks that must be sent.
#[derive(Debug)]
pub(super) struct Round {
    /// The blocks of each space that are still to be ordered.
    pending: Vec<BlockSet>,
    /// The blocks that were never touched at the start: sent as names, without bytes.
    zeros: Vec<BlockSet>,
    cursor: Cursor,
    started_at: Instant,
    raw_bytes: u64,
    awaits_harvest: bool,
}

/// Where the search for the next chunk starts.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cursor {
    pub(super) space: usize,
    pub(super) block: u64,
}

impl Round {
    pub(super) fn new(pending: Vec<BlockSet>, zeros: Vec<BlockSet>, started_at: Instant) -> Self {
        Self {
            pending,
            zeros,
            cursor: Cursor::default(),
            started_at,
            raw_bytes: 0,
            awaits_harvest: false,
        }
    }

    pub(super) fn pending(&self) -> &[BlockSet] {
        &self.pending
    }

    /// Puts back blocks that were not acknowledged.
    pub(super) fn put_back(&mut self, blocks: &[BlockSet]) {
        for (set, blocks) in self.pending.iter_mut().zip(blocks) {
            set.union_with(blocks);
        }
    }

    fn is_ordered(&self) -> bool {
        self.pending
            .iter()
            .chain(&self.zeros)
            .all(BlockSet::is_empty)
    }
}

/// Takes the next chunk's runs out of the sets. Begins at the cursor and goes round once.
pub(super) fn take_chunk(
    sets: &mut [BlockSet],
    cursor: &mut Cursor,
    blocks_max: impl Fn(usize) -> u32,
) -> Option<(SpaceId, Vec<BlockRun>)> {
    let space_count = sets.len();
    for step in 0..=space_count {
        let space = (cursor.space + step) % space_count;
        let from = if step == 0 { cursor.block } else { 0 };
        let set = &mut sets[space];
        if set.is_empty() {
            // Searching an empty set would scan all of it.
            continue;
        }
        let mut room = blocks_max(space);
        let mut runs: Vec<BlockRun> = Vec::new();
        let mut next = from;
        while room > 0
            && runs.len() < CHUNK_RUN_COUNT_MAX
            && let Some(run) = set.run_from(next, room)
        {
            set.remove_run(run);
            room -= run.count;
            next = run.end();
            runs.push(run);
        }
        if !runs.is_empty() {
            *cursor = Cursor { space, block: next };
            let id = u16::try_from(space).expect("at most SPACE_COUNT_MAX spaces");
            return Some((SpaceId(id), runs));
        }
    }
    None
}

impl Source {
    /// Takes the target's position in the stream of chunks: everything after it is sent again.
    pub(super) fn resume(&mut self, received: &Received) -> Result<(), Fault> {
        self.resumed = true;
        if matches!(self.phase, Phase::Offering) {
            self.actions.push_back(Action::StartTracking);
            return Ok(());
        }
        let has_nothing = received.through_sequence == 0 && received.chain == CHAIN_START;
        let is_fresh = has_nothing && self.window.acked().through_sequence > 0;
        if !is_fresh {
            self.window.acknowledge(received)?;
        }
        let unacked = self.window.take_back();
        let Phase::Copying(round) = &mut self.phase else {
            return Ok(());
        };
        round.put_back(&unacked);
        let mut next = self.window.packed().through_sequence + 1;
        if is_fresh {
            next = 1;
            // The target lost everything it had: start over. No harvested block is lost.
            self.window.restart_from(received);
            round
                .pending
                .iter_mut()
                .for_each(|set| *set = BlockSet::full(set.block_count()));
            round.zeros.iter_mut().for_each(BlockSet::clear);
            // Blocks held back for after the switch stay held back.
            for (set, held_back) in round.pending.iter_mut().zip(&self.held_back) {
                set.difference_with(held_back);
            }
        }
        self.actions.push_back(Action::NumberFrom(next));
        Ok(())
    }

    /// Dirty tracking is on: the first round has all blocks.
    pub(super) fn tracking(&mut self, allocated: &[BlockSet], now: Instant) -> Result<(), Fault> {
        if !matches!(self.phase, Phase::Offering) {
            return Err(Fault::new(Code::State, "tracking began twice".to_owned()));
        }
        let zeros: Vec<BlockSet> = allocated.iter().map(BlockSet::complement).collect();
        let pending = allocated.to_vec();
        self.meter.interrupt(now);
        self.generation = 1;
        if self.setup.policy.mode == Mode::Post {
            // Before the switch only names are sent. Touched blocks stay for afterwards.
            let nothing = empty_sets(&self.setup.spaces);
            self.held_back = pending;
            self.phase = Phase::Copying(Round::new(nothing, zeros, now));
        } else {
            self.progress.round_count = 1;
            self.phase = Phase::Copying(Round::new(pending, zeros, now));
        }
        Ok(())
    }

    /// Whether chunks wait only for the move's own rate limit.
    pub(super) fn wants_to_send(&self) -> bool {
        let has_more = match &self.phase {
            Phase::Copying(round) => self.resumed && !round.is_ordered(),
            Phase::Switching(pause) => !pause.is_ordered(),
            Phase::Serving(push) => push.is_ready() && !push.is_ordered() && !self.is_image_lost,
            _ => false,
        };
        has_more && self.link_up && self.has_room()
    }

    /// Whether more may be ordered. The window counts packed bytes: noise may follow text, and a
    /// window of raw bytes would be a long queue of the one or leave the link idle with the other.
    fn has_room(&self) -> bool {
        let span = self.meter.round_trip_or_guess() + WINDOW_SLACK;
        let carried = Rate::clamped(self.meter.peak_wire_bytes_per_second()).bytes_in(2 * span);
        let window = carried.clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX);
        let unpacked = UNPACKED_BYTES_MIN.max(window / 4);
        self.window.wire_bytes() < window
            && self.window.unpacked_bytes() < unpacked.min(self.pace.unpacked_bytes_max())
            && self.window.raw_bytes() < RAW_BYTES_MAX
    }

    pub(super) fn order_chunks(&mut self, now: Instant) {
        self.order_zeros();
        while self.wants_to_send() && self.pace.next_at() <= now {
            let spaces = &self.setup.spaces;
            let blocks_max = |space: usize| CHUNK_RAW_BYTES_MAX / spaces[space].block_bytes;
            let taken = match &mut self.phase {
                Phase::Copying(round) => {
                    take_chunk(&mut round.pending, &mut round.cursor, blocks_max)
                }
                Phase::Switching(pause) => pause.take(blocks_max),
                Phase::Serving(push) => push.take(blocks_max),
                _ => return,
            };
            let Some((space, runs)) = taken else {
                return;
            };
            self.order(space, runs);
        }
    }

    pub(super) fn order(&mut self, space: SpaceId, runs: Vec<BlockRun>) {
        let block_bytes = u64::from(self.setup.spaces[usize::from(space.0)].block_bytes);
        let raw_bytes = block_count_of(&runs) * block_bytes;
        self.window.push(space, &runs);
        self.progress.raw_bytes += raw_bytes;
        if let Phase::Copying(round) = &mut self.phase {
            round.raw_bytes += raw_bytes;
        }
        self.actions.push_back(Action::SendChunk(ChunkOrder {
            is_urgent: false,
            generation: self.generation,
            space,
            runs,
            is_zero: false,
        }));
    }

    /// Orders blocks that were never touched: as names, before everything else.
    fn order_zeros(&mut self) {
        let Phase::Copying(round) = &mut self.phase else {
            return;
        };
        if !self.resumed || !self.link_up {
            return;
        }
        let mut cursor = Cursor::default();
        while let Some((space, runs)) =
            take_chunk(&mut round.zeros, &mut cursor, |_| ZERO_RUN_BLOCKS_MAX)
        {
            self.window.push(space, &runs);
            self.actions.push_back(Action::SendChunk(ChunkOrder {
                is_urgent: false,
                generation: self.generation,
                space,
                runs,
                is_zero: true,
            }));
        }
    }

    /// Takes a packed chunk. Only now its size on the link is known.
    pub(super) fn packed(
        &mut self,
        header: &ChunkHeader,
        wire_bytes: u64,
        now: Instant,
    ) -> Result<(), Fault> {
        self.spend(wire_bytes, now);
        let bytes = self.window.packed_chunk(header, wire_bytes)?;
        if header.codec != Codec::Zero {
            self.pace.packed(bytes);
        }
        Ok(())
    }

    /// Counts a frame of blocks that is about to be sent.
    pub(super) fn spend(&mut self, wire_bytes: u64, now: Instant) {
        self.progress.wire_bytes += wire_bytes;
        self.pace.spend(wire_bytes, now);
    }

    pub(super) fn acknowledged(&mut self, received: &Received, now: Instant) -> Result<(), Fault> {
        if !self.resumed {
            return Ok(());
        }
        if let Phase::Serving(push) = &mut self.phase {
            for (space, runs) in self.window.up_to(received.through_sequence) {
                push.arrived(space, runs);
            }
        }
        let settled = self.window.acknowledge(received)?;
        self.meter.acknowledged(settled, now);
        if settled.wire_bytes > 0 {
            self.owes_since = None;
            self.fault_delay = FAULT_DELAY_MIN;
        }
        if let Phase::Serving(push) = &mut self.phase {
            push.earn(settled.raw_bytes);
        }
        Ok(())
    }

    /// Whether all blocks of the round were acknowledged. Then none of them is in a queue that a
    /// pause would have to wait for.
    pub(super) fn is_round_through(&self) -> bool {
        let Phase::Copying(round) = &self.phase else {
            return false;
        };
        let is_through = round.is_ordered() && self.window.is_empty();
        is_through && !round.awaits_harvest && self.resumed && self.link_up
    }

    pub(super) fn end_round_if_through(&mut self, now: Instant) {
        if !self.is_round_through() || now < self.freeze_from {
            return;
        }
        if let Phase::Copying(round) = &mut self.phase {
            round.awaits_harvest = true;
            self.actions.push_back(Action::Harvest);
        }
    }

    pub(super) fn harvested(&mut self, dirty: Vec<BlockSet>, now: Instant) -> Result<(), Fault> {
        if matches!(self.phase, Phase::Switching(_)) {
            return self.harvested_frozen(&dirty);
        }
        let residual_bytes = self.raw_bytes(&dirty);
        let Phase::Copying(round) = &mut self.phase else {
            return Err(Fault::new(
                Code::State,
                "a harvest outside of a copy".to_owned(),
            ));
        };
        let was_awaited = std::mem::replace(&mut round.awaits_harvest, false);
        if !self.link_up || !was_awaited {
            // Kept for when the lanes are back: a harvested block must be sent.
            round
                .pending
                .iter_mut()
                .zip(&dirty)
                .for_each(|(set, new)| set.union_with(new));
            return Ok(());
        }
        let span = now.since(round.started_at).max(Duration::from_millis(1));
        let dirty_bytes_per_second = per_second(residual_bytes, span);
        let facts = Facts {
            rounds_done: self.progress.round_count,
            residual_bytes,
            round_bytes: round.raw_bytes,
            goodput_bytes_per_second: self.goodput(),
            dirty_bytes_per_second,
            round_trip: self.meter.round_trip_or_guess(),
        };
        self.progress.dirty_bytes_per_second = dirty_bytes_per_second;
        self.decide(facts, dirty, now);
        Ok(())
    }

    fn decide(&mut self, facts: Facts, mut dirty: Vec<BlockSet>, now: Instant) {
        for (set, held_back) in dirty.iter_mut().zip(std::mem::take(&mut self.held_back)) {
            set.union_with(&held_back);
        }
        let judgement = plan::judge(&self.setup.policy, &facts, self.left_before);
        self.note(DecisionRecord {
            at: now,
            facts,
            judgement,
        });
        self.progress.pause_predicted = Some(judgement.pause_predicted);
        self.progress.finished_round_count = self.progress.round_count;
        self.left_before = Some(facts.residual_bytes);
        match judgement.decision {
            Decision::AnotherRound(_) => self.begin_round(dirty, now),
            Decision::SwitchWhole(reason) => self.freeze(dirty, u64::MAX, reason, now),
            Decision::SwitchAndFetch {
                reason,
                carry_bytes_max,
            } => {
                self.freeze(dirty, carry_bytes_max, reason, now);
            }
            Decision::GiveUp(reason) => {
                let needed = spelt(judgement.pause_predicted);
                let detail = format!(
                    "the guest cannot be moved by pre-copy alone: {reason}; a pause of {needed} would do"
                );
                self.stay(Fault::new(Code::NotConverging, detail), now);
            }
        }
    }

    /// Ends a copy in mode `pre` as soon as no pause on this path can be as short as allowed. No
    /// round shortens the path, and the first may take hours.
    pub(super) fn give_up_on_a_long_path(&mut self, now: Instant) {
        let (Phase::Copying(round), Some(round_trip)) =
            (&self.phase, self.meter.round_trip_at_least())
        else {
            return;
        };
        let facts = Facts {
            rounds_done: self.progress.finished_round_count,
            residual_bytes: self.raw_bytes(round.pending()),
            round_bytes: round.raw_bytes,
            goodput_bytes_per_second: self.goodput(),
            dirty_bytes_per_second: self.progress.dirty_bytes_per_second,
            round_trip,
        };
        let Some(judgement) = plan::judge_path(&self.setup.policy, &facts) else {
            return;
        };
        self.note(DecisionRecord {
            at: now,
            facts,
            judgement,
        });
        self.progress.pause_predicted = Some(judgement.pause_predicted);
        let detail = format!(
            "the guest cannot be moved by pre-copy alone within {}: {}; none on it is shorter than {}",
            spelt(self.setup.policy.pause_max),
            plan::Reason::LongPath,
            spelt(judgement.pause_predicted)
        );
        self.stay(Fault::new(Code::NotConverging, detail), now);
    }

    /// Returns to copying, with every block that the target lacks, after a freeze was undone.
    pub(super) fn copy_again(&mut self, pending: Vec<BlockSet>, now: Instant) {
        self.left_before = None;
        self.begin_round(pending, now);
    }

    /// Begins a round other than the first.
    fn begin_round(&mut self, pending: Vec<BlockSet>, now: Instant) {
        self.generation += 1;
        self.progress.round_count += 1;
        self.meter.interrupt(now);
        let zeros = empty_sets(&self.setup.spaces);
        self.phase = Phase::Copying(Round::new(pending, zeros, now));
    }
}

/// A pause as operators read it: milliseconds below ten seconds, whole seconds above, always
/// rounded up.
fn spelt(pause: Duration) -> String {
    let ms = pause.as_micros().div_ceil(1000);
    if ms < 10_000 {
        format!("{ms} ms")
    } else {
        format!("{} s", ms.div_ceil(1000))
    }
}

#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an estimate of non-negative bytes below 2^53"
)]
fn per_second(bytes: u64, span: Duration) -> u64 {
    (bytes as f64 / span.as_secs_f64()) as u64
}
