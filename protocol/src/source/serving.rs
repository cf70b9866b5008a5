//! Post-copy: the guest runs at the target. Blocks that it waits for are sent first, then the rest.

use std::time::Duration;

use super::copying::{Cursor, take_chunk};
use super::{Action, ChunkOrder, Outcome, Phase, Source};
use crate::fault::{Code, Fault};
use crate::message::{Lane, Message, MissingPart, Received, SpaceInfo};
use crate::ownership::State;
use crate::space::{BlockRun, BlockSet, SpaceId};
use crate::time::Instant;

/// Highest chunk number that a target may claim to have. Far above what any move sends, and the
/// numbers after it never run out.
const SEQUENCE_MAX: u64 = 1 << 48;

/// Bytes of demanded blocks that may be sent before the push has earned them: far more than the
/// vCPUs of a guest wait for at once. Only a target whose demands take more than three quarters of
/// the link for long reaches this.
const DEMAND_AHEAD_BYTES: u64 = 1 << 20;

/// Bytes of demanded blocks that the push earns with each byte that arrived, which keeps a quarter
/// of the link for the push. Arrived bytes count and not ordered ones, because the tunnel sends
/// demanded blocks ahead of all others.
const DEMAND_BYTES_PER_PUSHED: u64 = 3;

/// Demanded blocks sent per round whatever the push has earned: as many as the vCPUs of a guest
/// wait for. So the guest does not stand still when other traffic leaves the push nothing.
const DEMANDS_PER_ROUND: usize = 4;

/// Shortest such round; otherwise a round is a round trip. This limits a flood of demands to 6.6
/// Mbit/s.
const ROUND_MIN: Duration = Duration::from_millis(20);

/// Wait before blocks of the push that could not be read are read again.
const READ_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Most of these blocks that are read again at a time: a broken memory must not keep the codec from
/// the rest.
const READ_AGAIN_COUNT_MAX: usize = 64;

/// The blocks that the target still misses, and the state of the push.
#[derive(Debug)]
pub(super) struct Push {
    missing: Vec<BlockSet>,
    cursor: Cursor,
    /// Demanded blocks that wait until the push has earned them.
    waiting: Vec<BlockSet>,
    waiting_cursor: Cursor,
    /// Demanded blocks that are under way with the push, which may be slow.
    under_way: Vec<BlockSet>,
    under_way_cursor: Cursor,
    /// Blocks of the push that could not be read, and when they are read again.
    unread: Vec<BlockSet>,
    unread_cursor: Cursor,
    read_again_at: Option<Instant>,
    /// Bytes of demanded blocks that were sent, and the bytes that may have been sent.
    demanded_bytes: u64,
    earned_bytes: u64,
    /// When the next round of demanded blocks begins.
    round_at: Instant,
    /// Whether the target's list of missing blocks is complete.
    is_known: bool,
}

impl Push {
    pub(super) fn new(spaces: &[SpaceInfo]) -> Self {
        Self {
            missing: empty_sets(spaces),
            cursor: Cursor::default(),
            waiting: empty_sets(spaces),
            waiting_cursor: Cursor::default(),
            under_way: empty_sets(spaces),
            under_way_cursor: Cursor::default(),
            unread: empty_sets(spaces),
            unread_cursor: Cursor::default(),
            read_again_at: None,
            demanded_bytes: 0,
            earned_bytes: DEMAND_AHEAD_BYTES,
            round_at: Instant::ZERO,
            is_known: false,
        }
    }

    pub(super) fn missing(&self) -> &[BlockSet] {
        &self.missing
    }

    pub(super) const fn is_ready(&self) -> bool {
        self.is_known
    }

    pub(super) fn is_ordered(&self) -> bool {
        self.missing.iter().all(BlockSet::is_empty)
    }

    pub(super) fn take(
        &mut self,
        blocks_max: impl Fn(usize) -> u32,
    ) -> Option<(SpaceId, Vec<BlockRun>)> {
        let (space, runs) = take_chunk(&mut self.missing, &mut self.cursor, blocks_max)?;
        let position = usize::from(space.0);
        for block in runs.iter().flat_map(|run| run.start..run.end()) {
            if self.waiting[position].remove(block) {
                self.under_way[position].insert(block);
            }
        }
        Some((space, runs))
    }

    /// Notes blocks of the push that arrived.
    pub(super) fn arrived(&mut self, space: SpaceId, runs: &[BlockRun]) {
        let under_way = &mut self.under_way[usize::from(space.0)];
        runs.iter().for_each(|run| under_way.remove_run(*run));
    }

    /// Lets the push earn demanded bytes with chunks that arrived.
    pub(super) fn earn(&mut self, bytes: u64) {
        let earned_bytes = self.earned_bytes + DEMAND_BYTES_PER_PUSHED * bytes;
        self.earned_bytes = earned_bytes.min(self.demanded_bytes + DEMAND_AHEAD_BYTES);
    }

    /// Number of blocks of the push that could not be read and wait to be read again.
    pub(super) fn unread_count(&self) -> u64 {
        self.unread.iter().map(BlockSet::len).sum()
    }

    /// The latest time at which a waiting demanded block is sent, or an unread one read again.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let mut sets = self.waiting.iter().chain(&self.under_way);
        let round = sets.any(|set| !set.is_empty()).then_some(self.round_at);
        round.into_iter().chain(self.read_again_at).min()
    }

    /// Whether a demanded block may be sent now. Always, if no push competes for the link.
    fn may_answer(&self, is_under_way: bool) -> bool {
        let is_waiting = self.is_known && (is_under_way || !self.is_ordered());
        !is_waiting || self.demanded_bytes < self.earned_bytes
    }
}

pub(super) fn empty_sets(spaces: &[SpaceInfo]) -> Vec<BlockSet> {
    spaces
        .iter()
        .map(|space| BlockSet::empty(space.block_count))
        .collect()
}

impl Source {
    /// Takes a part of the target's list of missing blocks. Only this list decides what is pushed.
    pub(super) fn missing_part(&mut self, part: &MissingPart) -> Result<(), Fault> {
        self.geometry(part.space)?;
        let Phase::Serving(push) = &mut self.phase else {
            return Err(unexpected("a missing set before the switch"));
        };
        if push.is_known {
            return Err(unexpected("a second missing set on the same lanes"));
        }
        let set = &mut push.missing[usize::from(part.space.0)];
        for (word, bits) in (part.first_word..).zip(&part.words) {
            set.insert_word(word, *bits)?;
        }
        Ok(())
    }

    pub(super) fn missing_end(&mut self, received: &Received) -> Result<(), Fault> {
        let Phase::Serving(push) = &mut self.phase else {
            return Err(unexpected("the end of a missing set before the switch"));
        };
        if received.through_sequence > SEQUENCE_MAX {
            let sequence = received.through_sequence;
            let detail = format!("the target says that it has chunk {sequence}");
            return Err(Fault::new(Code::Range, detail));
        }
        push.is_known = true;
        // Blocks answered on these lanes are under way.
        for (missing, answered) in push.missing.iter_mut().zip(&self.answered) {
            missing.difference_with(answered);
        }
        let is_missing = !push.is_ordered();
        self.resumed = true;
        self.window.restart_from(received);
        if is_missing && self.is_image_lost {
            self.send(Lane::Control, Message::Released);
        }
        let next = received.through_sequence.saturating_add(1);
        self.actions.push_back(Action::NumberFrom(next));
        Ok(())
    }

    /// Takes a demand: a vCPU waits for a block, which is sent first. A block demanded again on the
    /// same lanes is already under way or waits for its turn. A target that demands everything at
    /// once gets no more than three quarters of the link for that.
    pub(super) fn demanded(&mut self, space: SpaceId, block: u64) -> Result<(), Fault> {
        let run = BlockRun {
            start: block,
            count: 1,
        };
        self.geometry(space)?.check(run)?;
        if !self.is_committed() {
            return Err(unexpected("a demand before the switch"));
        }
        if self.is_image_lost {
            return Ok(());
        }
        let position = usize::from(space.0);
        if !self.answered[position].insert(block) {
            return Ok(());
        }
        self.progress.demand_count += 1;
        let is_under_way = !self.window.is_empty();
        if let Phase::Serving(push) = &mut self.phase
            && !push.may_answer(is_under_way)
        {
            let is_to_come = push.missing[position].contains(block);
            let sets = if is_to_come {
                &mut push.waiting
            } else {
                &mut push.under_way
            };
            sets[position].insert(block);
            return Ok(());
        }
        self.answer(space, run);
        Ok(())
    }

    /// Sends waiting demanded blocks, as far as the push has earned them. In each round it also
    /// sends a few more, including ones that are under way with the push.
    pub(super) fn answer_waiting(&mut self, now: Instant) {
        let is_under_way = !self.window.is_empty();
        let round = self.meter.round_trip_or_guess().max(ROUND_MIN);
        let mut left = DEMANDS_PER_ROUND;
        while let Phase::Serving(push) = &mut self.phase
            && !self.is_image_lost
        {
            let is_earned = push.may_answer(is_under_way);
            let is_in_turn = left > 0 && (left < DEMANDS_PER_ROUND || push.round_at <= now);
            if !is_earned && !is_in_turn {
                return;
            }
            let next = take_chunk(&mut push.waiting, &mut push.waiting_cursor, |_| 1);
            let next = next.or_else(|| {
                let late = (&mut push.under_way, &mut push.under_way_cursor);
                is_in_turn.then(|| take_chunk(late.0, late.1, |_| 1))?
            });
            let Some((space, runs)) = next else {
                return;
            };
            if is_in_turn {
                left -= 1;
                push.round_at = now + round;
            }
            runs.into_iter().for_each(|run| self.answer(space, run));
        }
    }

    /// Takes ordered blocks that could not be read. Before the commit that ends the attempt: no
    /// lanes would help, and the guest runs on here. After it the rest of the image goes on, and
    /// these are read again later, each by itself.
    pub(super) fn unread(
        &mut self,
        space: SpaceId,
        runs: &[BlockRun],
        fault: Fault,
        now: Instant,
    ) -> Result<(), Fault> {
        let Phase::Serving(push) = &mut self.phase else {
            return Err(fault);
        };
        if fault.code != Code::Io {
            return Err(fault);
        }
        let bytes = self.window.drop_ordered(space, runs);
        self.progress.raw_bytes = self.progress.raw_bytes.saturating_sub(bytes);
        // Without lanes nothing is kept: the target's next list has them.
        if self.resumed {
            let set = &mut push.unread[usize::from(space.0)];
            runs.iter().for_each(|run| set.insert_run(*run));
            push.read_again_at.get_or_insert(now + READ_AGAIN_AFTER);
        }
        Ok(())
    }

    /// Orders blocks that could not be read once more, if that is due.
    pub(super) fn order_unread(&mut self, now: Instant) {
        let Phase::Serving(push) = &mut self.phase else {
            return;
        };
        if push.read_again_at.take_if(|at| *at <= now).is_none() {
            return;
        }
        let mut due = Vec::new();
        while due.len() < READ_AGAIN_COUNT_MAX
            && let Some(one) = take_chunk(&mut push.unread, &mut push.unread_cursor, |_| 1)
        {
            due.push(one);
        }
        if push.unread_count() > 0 {
            push.read_again_at = Some(now + READ_AGAIN_AFTER);
        }
        for (space, runs) in due {
            self.order(space, runs);
        }
    }

    /// Sends a demanded block ahead of everything, and lets the push continue after it.
    fn answer(&mut self, space: SpaceId, run: BlockRun) {
        let position = usize::from(space.0);
        let bytes = u64::from(self.setup.spaces[position].block_bytes);
        self.progress.raw_bytes += bytes;
        if let Phase::Serving(push) = &mut self.phase {
            push.demanded_bytes += bytes;
            push.missing[position].remove_run(run);
            push.unread[position].remove_run(run);
            push.cursor = Cursor {
                space: position,
                block: run.end(),
            };
        }
        self.actions.push_back(Action::SendChunk(ChunkOrder {
            is_urgent: true,
            generation: self.generation,
            space,
            runs: vec![run],
            is_zero: false,
        }));
    }

    /// Handles lanes that broke: the target will report anew what it misses, and may demand it
    /// anew.
    pub(super) fn forget_what_is_missing(&mut self) {
        self.answered = empty_sets(&self.setup.spaces);
        if let Phase::Serving(push) = &mut self.phase {
            *push = Push {
                cursor: push.cursor,
                // Cutting the lanes must not earn the target anything.
                demanded_bytes: push.demanded_bytes,
                earned_bytes: push.earned_bytes,
                round_at: push.round_at,
                ..Push::new(&self.setup.spaces)
            };
        }
    }

    pub(super) fn complete(&mut self) -> Result<(), Fault> {
        if !matches!(self.ownership.record().state, State::Released { .. }) {
            return Err(unexpected("a complete image before the switch"));
        }
        self.finish(Outcome::Moved);
        Ok(())
    }
}

fn unexpected(what: &str) -> Fault {
    Fault::new(Code::Unexpected, what.to_owned())
}
