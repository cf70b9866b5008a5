//! The switch: freeze, carry what fits, name what is missing, commit.

use std::time::Duration;

use super::copying::{Cursor, take_chunk};
use super::serving::empty_sets;
use super::{
    Action, FREEZE_DEADLINE, OVERDUE_FREEZE_COUNT_MAX, Outcome, Phase, Push, Source,
    VOID_ROOT_COUNT_MAX,
};
use crate::fault::{Code, Fault};
use crate::image::{Image, missing_parts};
use crate::message::{FinalEnd, Lane, Message, STATE_BYTES_MAX, STATE_PART_BYTES_MAX};
use crate::ownership::{self, Root, State};
use crate::plan::{self, Mode};
use crate::space::{BlockRun, BlockSet, SpaceId};
use crate::time::Instant;

/// The state of a freeze.
#[derive(Debug)]
pub(super) struct Pause {
    /// Blocks harvested before the freeze and not sent since.
    residual: Vec<BlockSet>,
    carry_bytes_max: u64,
    ordered_at: Instant,
    frozen_at: Option<Instant>,
    span_max: Duration,
    /// Blocks to be sent while frozen.
    carry: Vec<BlockSet>,
    cursor: Cursor,
    /// Blocks to be fetched after the switch.
    missing: Vec<BlockSet>,
    is_harvested: bool,
    state: Option<Vec<u8>>,
    /// The image's root, once all of the image was sent.
    sealed: Option<Root>,
}

impl Pause {
    fn frozen_since(&self) -> Instant {
        self.frozen_at.unwrap_or(self.ordered_at)
    }

    pub(super) fn deadline(&self) -> Instant {
        self.frozen_since() + self.span_max
    }

    pub(super) fn carry(&self) -> &[BlockSet] {
        &self.carry
    }

    pub(super) fn is_ordered(&self) -> bool {
        self.carry.iter().all(BlockSet::is_empty)
    }

    pub(super) fn take(
        &mut self,
        blocks_max: impl Fn(usize) -> u32,
    ) -> Option<(SpaceId, Vec<BlockRun>)> {
        take_chunk(&mut self.carry, &mut self.cursor, blocks_max)
    }

    /// Every block that the target does not have and no chunk in flight carries.
    fn left_behind(self) -> Vec<BlockSet> {
        let mut left = self.residual;
        for (set, (carry, missing)) in left.iter_mut().zip(self.carry.iter().zip(&self.missing)) {
            set.union_with(carry);
            set.union_with(missing);
        }
        left
    }
}

impl Source {
    pub(super) fn freeze(
        &mut self,
        residual: Vec<BlockSet>,
        carry_bytes_max: u64,
        reason: plan::Reason,
        now: Instant,
    ) {
        self.switch_reason = Some(reason);
        let nothing = empty_sets(&self.setup.spaces);
        self.phase = Phase::Switching(Pause {
            residual,
            carry_bytes_max,
            ordered_at: now,
            frozen_at: None,
            span_max: FREEZE_DEADLINE.max(self.setup.policy.pause_max * 2),
            carry: nothing.clone(),
            cursor: Cursor::default(),
            missing: nothing,
            is_harvested: false,
            state: None,
            sealed: None,
        });
        self.actions.push_back(Action::Freeze);
    }

    pub(super) fn frozen(&mut self, at: Instant) -> Result<(), Fault> {
        // A freeze that was undone in the meantime is already being thawed.
        if let Phase::Switching(pause) = &mut self.phase {
            pause.frozen_at = Some(at);
            self.actions.push_back(Action::Harvest);
            self.actions.push_back(Action::SaveState);
        }
        Ok(())
    }

    pub(super) fn harvested_frozen(&mut self, fresh: &[BlockSet]) -> Result<(), Fault> {
        let goodput = self.goodput();
        let round_trip = self.meter.round_trip_or_guess();
        let policy = self.setup.policy;
        let block_bytes: Vec<u64> = self
            .setup
            .spaces
            .iter()
            .map(|space| u64::from(space.block_bytes))
            .collect();
        let fresh_bytes = self.raw_bytes(fresh);
        let Phase::Switching(pause) = &mut self.phase else {
            return Err(Fault::new(
                Code::State,
                "a frozen harvest outside of a freeze".to_owned(),
            ));
        };
        if pause.is_harvested {
            return Err(Fault::new(
                Code::State,
                "two harvests of one freeze".to_owned(),
            ));
        }
        pause.is_harvested = true;
        let mut everything = fresh.to_vec();
        for (set, residual) in everything.iter_mut().zip(&mut pause.residual) {
            set.union_with(residual);
            residual.clear();
        }
        if pause.carry_bytes_max == u64::MAX {
            // Between the decision and the freeze the guest may have written more than predicted.
            let predicted = plan::predicted_pause(fresh_bytes, goodput, round_trip);
            if policy.mode != Mode::Pre && predicted > policy.pause_max * 2 {
                pause.carry_bytes_max = plan::carry_budget(&policy, goodput, round_trip);
            }
        }
        pause.carry = freshest(fresh, &everything, pause.carry_bytes_max, &block_bytes);
        pause.missing = everything;
        for (missing, carry) in pause.missing.iter_mut().zip(&pause.carry) {
            missing.difference_with(carry);
        }
        let parts: Vec<Message> = pause
            .missing
            .iter()
            .zip(0_u16..)
            .flat_map(|(set, space)| missing_parts(SpaceId(space), set))
            .map(Message::MissingPart)
            .collect();
        self.generation += 1;
        self.send(Lane::Switch, Message::FinalBegin);
        parts
            .into_iter()
            .for_each(|part| self.send(Lane::Switch, part));
        Ok(())
    }

    pub(super) fn state_saved(&mut self, state: Vec<u8>) -> Result<(), Fault> {
        if state.len() > STATE_BYTES_MAX {
            let bytes = state.len();
            let detail = format!("the guest's state of {bytes} bytes is above {STATE_BYTES_MAX}");
            return Err(Fault::new(Code::Guest, detail));
        }
        let Phase::Switching(pause) = &mut self.phase else {
            return Ok(());
        };
        if !pause.is_harvested {
            return Err(Fault::new(
                Code::State,
                "state saved before the harvest".to_owned(),
            ));
        }
        let parts: Vec<Message> = state
            .chunks(STATE_PART_BYTES_MAX)
            .map(|part| Message::StatePart(part.to_vec()))
            .collect();
        pause.state = Some(state);
        parts
            .into_iter()
            .for_each(|part| self.send(Lane::Switch, part));
        Ok(())
    }

    /// Once everything was sent, says so, and lets the ownership machine wait for the target's
    /// root.
    pub(super) fn seal_if_through(&mut self, now: Instant) -> Result<(), Fault> {
        let is_packed = self.window.is_packed();
        let packed = *self.window.packed();
        let Some(epoch) = self.epoch_offered else {
            return Ok(());
        };
        let Phase::Switching(pause) = &mut self.phase else {
            return Ok(());
        };
        let is_sent =
            pause.is_harvested && pause.is_ordered() && is_packed && pause.sealed.is_none();
        let (Some(state), true) = (&pause.state, is_sent) else {
            return Ok(());
        };
        let image = Image {
            guest: self.setup.guest,
            attempt: self.setup.attempt,
            epoch,
            spaces: &self.setup.spaces,
            config: &self.setup.config,
            position: packed,
            missing: &pause.missing,
            state,
        };
        let (root, manifest) = (image.root(), image.manifest());
        pause.sealed = Some(root);
        // An image that has not changed since is not void any more.
        self.void_roots.retain(|void| *void != root);
        let end = FinalEnd {
            through_sequence: packed.through_sequence,
            state_bytes: u32::try_from(state.len()).expect("below STATE_BYTES_MAX"),
            missing_count: pause.missing.iter().map(BlockSet::len).sum(),
            root,
        };
        let is_whole = end.missing_count == 0;
        self.own(ownership::Event::Sealed { root, is_whole }, now)?;
        self.send(Lane::Switch, Message::Manifest(manifest));
        self.send(Lane::Switch, Message::FinalEnd(end));
        Ok(())
    }

    /// Enters the committed phase, once the ownership's record says that the guest is the target's.
    pub(super) fn commit_if_relinquished(&mut self, now: Instant) {
        let is_relinquished = matches!(self.ownership.record().state, State::Relinquished { .. });
        if let Phase::Switching(pause) = &self.phase
            && is_relinquished
        {
            self.phase = Phase::Committed {
                frozen_at: pause.frozen_at,
                said_at: now,
            };
            self.was_committed = true;
        }
    }

    /// Takes the target's message that it runs the guest.
    pub(super) fn acked(&mut self, run_delay_us: u64, now: Instant) {
        let Phase::Committed { frozen_at, said_at } = self.phase else {
            return;
        };
        if let Some(frozen_at) = frozen_at {
            // Of the exchange's time beyond the target's own delay, half was the way back.
            let run_delay = Duration::from_micros(run_delay_us);
            let way_back = now.since(said_at).saturating_sub(run_delay) / 2;
            self.progress.pause_reported = Some(now.since(frozen_at).saturating_sub(way_back));
        }
        if matches!(self.ownership.record().state, State::Released { .. }) {
            self.finish(Outcome::Moved);
            return;
        }
        self.phase = Phase::Serving(Push::new(&self.setup.spaces));
    }

    pub(super) fn thaw_if_overdue(&mut self, now: Instant) -> Result<(), Fault> {
        let Phase::Switching(pause) = &self.phase else {
            return Ok(());
        };
        if pause.deadline() > now {
            return Ok(());
        }
        let why = format!(
            "the target was not ready within {:?} of the guest's freeze",
            pause.span_max
        );
        self.thaw_for(&Fault::new(Code::Stalled, why), now)
    }

    /// Handles vCPUs that did not stop in time: a busy host gets another try, as a late target
    /// does.
    pub(super) fn not_frozen(&mut self, fault: &Fault, now: Instant) -> Result<(), Fault> {
        match self.phase {
            Phase::Switching(_) => self.thaw_for(fault, now),
            _ => Ok(()),
        }
    }

    fn thaw_for(&mut self, fault: &Fault, now: Instant) -> Result<(), Fault> {
        self.thaw(now);
        self.overdue_freeze_count += 1;
        if self.overdue_freeze_count == OVERDUE_FREEZE_COUNT_MAX {
            let why = &fault.detail;
            let detail = format!("{why}, {OVERDUE_FREEZE_COUNT_MAX} times");
            return Err(Fault::new(fault.code, detail));
        }
        Ok(())
    }

    /// Undoes a freeze before the commit: the guest continues here, and the blocks taken out of its
    /// dirty log go back into the round. It then runs at least as long as it was frozen. So neither
    /// a late target nor one that cuts the lanes in every freeze stops the guest for more than half
    /// of the time.
    pub(super) fn thaw(&mut self, now: Instant) {
        let before = std::mem::replace(&mut self.phase, Phase::Over);
        let Phase::Switching(pause) = before else {
            self.phase = before;
            return;
        };
        self.freeze_from = now + now.since(pause.frozen_since());
        if let Some(root) = pause.sealed {
            if self.void_roots.len() == VOID_ROOT_COUNT_MAX {
                self.void_roots.pop_front();
            }
            self.void_roots.push_back(root);
            if let Err(fault) = self.own(ownership::Event::Unsealed, now) {
                self.fault = Some(fault);
            }
        }
        self.actions.push_back(Action::Thaw);
        let mut left = pause.left_behind();
        if self.setup.policy.mode == Mode::Post {
            self.held_back = std::mem::take(&mut left);
            left = empty_sets(&self.setup.spaces);
        }
        self.copy_again(left, now);
    }
}

/// The freshest blocks, up to a budget. The guest is working on the blocks it wrote last.
fn freshest(
    fresh: &[BlockSet],
    everything: &[BlockSet],
    bytes_max: u64,
    block_bytes: &[u64],
) -> Vec<BlockSet> {
    if bytes_max == u64::MAX {
        return everything.to_vec();
    }
    let mut room = bytes_max;
    let spaces = fresh.iter().zip(block_bytes);
    spaces
        .map(|(set, &block_bytes)| {
            let mut taken = BlockSet::empty(set.block_count());
            let fits = room / block_bytes;
            set.iter()
                .take(usize::try_from(fits).unwrap_or(usize::MAX))
                .for_each(|block| {
                    taken.insert(block);
                });
            room -= taken.len() * block_bytes;
            taken
        })
        .collect()
}
