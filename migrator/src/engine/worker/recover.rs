//! Recovers a guest when its worker starts: finds its process and resumes its move.

#[cfg(test)]
mod tests;

use std::time::Duration;

use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::guest_api::GuestState as ProcessState;
use towpath_protocol::identity::{AttemptId, Epoch, HostIdentity, MigrationId};
use towpath_protocol::ownership::{
    Action as LawAction, Event as LawEvent, Ownership, Record, State,
};
use towpath_protocol::target;
use towpath_protocol::time::Instant;
use tracing::{error, info, warn};

use super::{RECOVER_DELAY, RECOVER_DELAY_MAX, Role, Worker};
use crate::api::Phase;
use crate::engine::adopt::{self, BUSY_WAIT};
use crate::engine::ground::{now, unix_ms};
use crate::engine::order::Order;
use crate::engine::source_move::{NotBegun, SourceMove, thaw};
use crate::engine::target_move::TargetMove;
use crate::guest::GuestProcess;

/// How long a move waits when it begins again after this many restarts. The first loses no time.
fn wait_at_start(starts: u32) -> Duration {
    match starts.checked_sub(2) {
        Some(doublings) => RECOVER_DELAY
            .saturating_mul(1 << doublings.min(16))
            .min(RECOVER_DELAY_MAX),
        None => Duration::ZERO,
    }
}

impl Worker {
    pub(super) fn recovered_role(&mut self) -> Role {
        let Some(Role::Idle(ownership)) = self.role.take() else {
            unreachable!("a worker begins idle");
        };
        let state = ownership.record().state.clone();
        let adopted = self.ground.adopt_process(adopt::wait_for(&state));
        if let Err(fault) = adopted {
            info!(guest = %self.ground.id, %fault, "no process of the guest");
            // A process that does not answer may still live.
            let is_awaited = self.ground.await_process(&fault);
            if !is_awaited && matches!(state, State::Relinquished { .. }) {
                self.ground.crash = Some(fault);
            }
        }
        self.take_up(ownership)
    }

    /// Resumes what the record says is under way.
    pub(super) fn take_up(&mut self, ownership: Ownership) -> Role {
        match ownership.record().state.clone() {
            State::Relinquished { .. } => self.recover_source(ownership),
            State::Owned {
                epoch,
                missing_from: Some(origin),
                ..
            } => {
                info!(guest = %self.ground.id, %epoch, "goes on receiving a guest that runs");
                self.recover_target(ownership, origin.source, origin.attempt)
            }
            State::Prepared {
                attempt, source, ..
            } => self.recover_target(ownership, source, attempt),
            _ => self.recover_idle(ownership),
        }
    }

    /// Resumes a committed move from its record, now that the frozen guest's memory is accessible.
    pub(in crate::engine) fn serve_anew(&mut self) {
        if let Some(Role::Source(source)) = self.role.take() {
            info!(guest = %self.ground.id, "the frozen guest's process has answered");
            self.ground.close_link();
            let record = source.ownership().record().clone();
            let host = self.ground.shared.host.clone();
            let role = self.take_up(Ownership::recover(host, record));
            self.role = Some(role);
        }
    }

    /// Tries again to recover a move that could not be recovered.
    pub(super) fn take_up_again(&mut self) {
        if self.ground.check_journal().is_ok()
            && let Some(Role::Broken(ownership, _)) =
                self.role.take_if(|role| matches!(role, Role::Broken(..)))
        {
            self.stuck = None;
            let role = self.take_up(ownership);
            self.role = Some(role);
        }
    }

    /// When recovery is tried next; the delay doubles each time.
    fn next_recovery(&mut self) -> Instant {
        let delay = self.recover_delay;
        self.recover_delay = (delay * 2).min(RECOVER_DELAY_MAX);
        now() + delay
    }

    /// Handles a guest that is owned here but could not continue. While its process lives and its
    /// journal can be trusted, a fault of this host loses nothing: the guest is recovered from
    /// disk, as after a restart.
    pub(super) fn not_gone_on_with(&mut self, ownership: Ownership, fault: Fault) -> Role {
        let process = self.ground.process.as_ref();
        let is_believed = self.ground.check_journal().is_ok();
        let may_pass = is_believed
            && fault.code != Code::ImageLost
            && process.is_some_and(GuestProcess::is_alive);
        let journal = self.ground.journal.as_ref().filter(|_| is_believed);
        let durable = journal.and_then(|journal| Record::decode(journal.record()).ok());
        let is_owned = |record: &Record| matches!(record.state, State::Owned { .. });
        // A record that could not be written binds nobody.
        let host = self.ground.shared.host.clone();
        let ownership = durable.map_or(ownership, |record| Ownership::recover(host, record));
        if may_pass && is_owned(ownership.record()) {
            warn!(guest = %self.ground.id, %fault, "the guest is taken up again");
            // The source opens new lanes, and the missing blocks are requested again.
            self.ground.close_link();
            self.recover_at = Some(self.next_recovery());
            return Role::Broken(ownership, fault);
        }
        error!(guest = %self.ground.id, %fault, "guest is lost, or its journal is");
        self.ground.crash = Some(fault.clone());
        Role::Broken(ownership, fault)
    }

    /// Handles a committed move that cannot be recovered, either for now or because part of it is
    /// lost.
    fn not_taken_up(&mut self, not_begun: NotBegun) -> Role {
        let NotBegun { ownership, fault } = not_begun;
        let is_waited_for = self.ground.awaited.is_some();
        let process = self.ground.process.as_ref();
        let is_slow = fault.code == Code::Guest && process.is_some_and(GuestProcess::is_alive);
        if is_waited_for || is_slow || fault.code == Code::Io {
            warn!(guest = %self.ground.id, %fault, "its move is not taken up yet");
            self.recover_at = (!is_waited_for).then(|| self.next_recovery());
        } else {
            error!(guest = %self.ground.id, %fault, "its move is lost, or its memory is");
            self.ground.crash = Some(fault.clone());
        }
        Role::Broken(ownership, fault)
    }

    fn recover_idle(&mut self, mut ownership: Ownership) -> Role {
        if let Err(fault) = self.follow_the_law(&mut ownership) {
            error!(guest = %self.ground.id, %fault, "guest is left alone");
            return Role::Broken(ownership, fault);
        }
        if matches!(ownership.record().state, State::Owned { .. }) {
            match Order::load(&self.ground) {
                Ok(Some(order)) => self.recover_order(order),
                Ok(None) => {}
                Err(fault) => warn!(guest = %self.ground.id, %fault, "the move is forgotten"),
            }
        } else {
            // The move ended just before the restart. If the guest comes back, the move must not
            // begin again.
            Order::forget(&self.ground);
        }
        let is_owned = matches!(ownership.record().state, State::Owned { .. });
        let ground = &mut self.ground;
        if is_owned && ground.process.is_none() && ground.awaited.is_none() {
            let detail = "the guest has no process here: it ended while no migrator was there";
            ground
                .crash
                .get_or_insert_with(|| Fault::new(Code::Guest, detail));
        }
        Role::Idle(ownership)
    }

    /// Begins a move again that a previous migrator was in the middle of. Each time waits longer,
    /// because the move may be what ended that migrator.
    fn recover_order(&mut self, mut order: Order) {
        let view = order.view(&self.ground, Phase::Preparing);
        self.ground.shared.board().show_known_move(view);
        order.note_start(unix_ms());
        if let Some(fault) = order.has_ended_starts() {
            self.give_up(&order, &fault);
            return;
        }
        if let Err(fault) = order.save(&self.ground) {
            warn!(guest = %self.ground.id, %fault, "how often its move was begun is not written down");
        }
        // If the process is still being waited for, its memory is not accessible before it answers.
        let wait = match self.ground.awaited {
            Some(_) => BUSY_WAIT,
            None => wait_at_start(order.starts),
        };
        self.retry = Some((now() + wait, Box::new(order)));
    }

    fn recover_source(&mut self, ownership: Ownership) -> Role {
        let recovered = match Order::of_commit(&self.ground, &ownership.record().state) {
            Ok(order) => SourceMove::recover(&mut self.ground, ownership, order),
            Err(fault) => Err(Box::new(NotBegun { ownership, fault })),
        };
        match recovered {
            Ok(mut going) => {
                let known = going.order().view(&self.ground, Phase::Committed);
                self.ground.shared.board().show_known_move(known);
                going.carry_out(&mut self.ground);
                Role::Source(Box::new(going))
            }
            Err(not_begun) => self.not_taken_up(*not_begun),
        }
    }

    fn recover_target(
        &mut self,
        ownership: Ownership,
        source: HostIdentity,
        attempt: AttemptId,
    ) -> Role {
        let is_owned = matches!(ownership.record().state, State::Owned { .. });
        if !is_owned && let Some(fault) = self.runs_unowned() {
            error!(guest = %self.ground.id, %fault, "guest is quarantined");
            return Role::Broken(ownership, fault);
        }
        let setup = target::Setup {
            host: self.ground.shared.host.clone(),
            source,
            migration: self.arrival().unwrap_or(MigrationId(attempt.0)),
            attempt,
            guest: self.ground.id,
        };
        match TargetMove::recover(&mut self.ground, ownership, setup) {
            Ok(mut going) => {
                going.carry_out(&mut self.ground);
                Role::Target(Box::new(going))
            }
            Err(not_begun) if is_owned => self.not_taken_up(*not_begun),
            Err(not_begun) => {
                let NotBegun {
                    mut ownership,
                    fault,
                } = *not_begun;
                info!(guest = %self.ground.id, %fault, "what was received is given up");
                drop(ownership.handle(LawEvent::GiveUp));
                self.recover_idle(ownership)
            }
        }
    }

    /// The fault of a guest whose process runs although the record says that it is only being
    /// received: the journal has lost what came after. To refuse the move would end a guest that
    /// has run here, and let its source run it anew.
    ///
    /// A paused process is no sign of that: it may be the frozen one of an earlier stay, and a guest
    /// that waits for blocks is never paused.
    fn runs_unowned(&mut self) -> Option<Fault> {
        let seen = self.ground.process().and_then(GuestProcess::describe);
        let state = seen.ok()?.state;
        let has_run = matches!(
            state,
            ProcessState::Running | ProcessState::Stopped | ProcessState::Crashed { .. }
        );
        has_run.then(|| {
            let detail = format!(
                "the guest is {state}, but the journal says that it has not been handed over"
            );
            Fault::new(Code::Quarantine, detail)
                .remedy("the journal is older than the guest: see docs/handover.md, quarantine")
        })
    }

    /// Carries out the actions of the ownership law while no move is under way.
    pub(super) fn follow_the_law(&mut self, ownership: &mut Ownership) -> Result<(), Fault> {
        while let Some(action) = ownership.poll() {
            match action {
                LawAction::Persist(record) => self.ground.persist(&record)?,
                LawAction::Run { epoch } => self.run(epoch),
                LawAction::Thaw => {
                    if let Err(fault) = thaw(&mut self.ground) {
                        self.ground.not_thawed(fault);
                    }
                }
                LawAction::DiscardImage => self.ground.end_process()?,
                LawAction::FreeImage => self.ground.free_image()?,
                // There are no lanes; the peer will ask again.
                LawAction::Say { .. } | LawAction::Swap { .. } | LawAction::ReadRegister => {}
            }
        }
        Ok(())
    }

    /// Takes over a guest that outlived the previous migrator. A guest whose process is gone stays
    /// down until it is booted.
    pub(in crate::engine) fn run(&mut self, epoch: Epoch) {
        if self.ground.awaited.is_some() {
            return;
        }
        let take_over = |process: &mut GuestProcess| {
            let seen = process.describe()?;
            if seen.is_armed {
                // The journal says that nothing is missing, so nobody would answer a fault.
                process.disarm_missing()?;
            }
            match seen.state {
                ProcessState::Running => Ok(()),
                ProcessState::Paused => process.resume().map(drop),
                ProcessState::Created | ProcessState::Loaded => process.run(epoch).map(drop),
                other => Err(Fault::new(Code::Guest, format!("the guest is {other}"))),
            }
        };
        let result = self.ground.process().and_then(take_over);
        if let Err(fault) = result {
            warn!(guest = %self.ground.id, %fault, "guest does not run");
            self.ground.crash = Some(fault);
        }
    }
}
