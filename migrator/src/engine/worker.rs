//! One thread per guest. Everything that happens to a guest on this host passes through its worker,
//! one event at a time.

mod farewell;
mod link;
mod recover;
#[cfg(test)]
pub(super) mod tests;
mod visitors;

use std::sync::mpsc::Sender;
use std::time::Duration;

use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::{AttemptId, MigrationId};
use towpath_protocol::ownership::{Event as LawEvent, Ownership, Record, State};
use towpath_protocol::source;
use towpath_protocol::target;
use towpath_protocol::time::Instant;
use tracing::{error, info, warn};

use super::ground::{Ground, file_name, now, to_wait_until};
use super::input::{Booting, Command, Input};
use super::order::Order;
use super::shared::{Beginning, random_id};
use super::show::{LOOK_INTERVAL, Shown};
use super::source_move::{self, SourceMove};
use super::target_move::{self, TargetMove};
use crate::api::VerifyView;

/// Most inputs taken in before the resulting actions are carried out and acknowledged together.
const BATCH_COUNT_MAX: usize = 32;

/// How long a process that receives a guest may stay silent: the longest that any operation on all
/// of its memory may take. No guest runs in it yet, so a process that is merely slow costs one
/// attempt, and one that hangs is not waited for for ever.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// First wait before recovery of a move is tried again when nothing of the move is lost; usually
/// threads, descriptors or memory had run out. Doubles up to [`RECOVER_DELAY_MAX`].
const RECOVER_DELAY: Duration = Duration::from_secs(2);

/// Longest of these waits. By then an operator is likely to look at the host, and the move should
/// resume soon after the cause is fixed.
const RECOVER_DELAY_MAX: Duration = Duration::from_secs(60);

/// Wait before the remainder of a refused guest is put away: usually the source's next attempt
/// follows at once.
const PUT_AWAY_DELAY: Duration = Duration::from_secs(2);

/// Wait before putting away is tried again after it failed, usually because the disk is full.
const PUT_AWAY_AGAIN: Duration = Duration::from_secs(60);

/// How long a source must have been away before its missing blocks can be given up: longer than a
/// restart or an upgrade of its tunnel and its migrator takes.
const GIVE_UP_AFTER: Duration = Duration::from_secs(10);

/// The file that names the move an arriving guest belongs to.
const ARRIVAL_FILE: &str = "arrival.json";

/// What a worker is currently doing.
pub(super) enum Role {
    Idle(Ownership),
    Source(Box<SourceMove>),
    Target(Box<TargetMove>),
    /// An operator has to look at the guest before anything more is done with it.
    Broken(Ownership, Fault),
}

impl Role {
    pub(super) const fn ownership(&self) -> &Ownership {
        match self {
            Self::Idle(ownership) | Self::Broken(ownership, _) => ownership,
            Self::Source(source) => source.ownership(),
            Self::Target(target) => target.ownership(),
        }
    }
}

/// The thread's state.
pub(super) struct Worker {
    pub(super) ground: Ground,
    /// `Some` whenever no input is being handled.
    pub(super) role: Option<Role>,
    /// A committed move that can continue only after a restart.
    pub(super) stuck: Option<source_move::Stuck>,
    /// A move that waits for its next attempt, and when that is due.
    pub(super) retry: Option<(Instant, Box<Order>)>,
    /// When recovery of a move from before the restart is tried again.
    pub(super) recover_at: Option<Instant>,
    recover_delay: Duration,
    farewells: farewell::Farewells,
    ending: Option<link::Ending>,
    /// The move last written to [`ARRIVAL_FILE`], even if the write failed.
    noted_arrival: Option<MigrationId>,
    /// Sources that have lanes here for something other than this worker's current role.
    visitors: Vec<visitors::Visitor>,
    pub(super) shown: Shown,
    /// Room for a guest that was booted and is not on the board yet.
    pub(super) room: Option<Beginning>,
    pub(super) is_done: bool,
    /// Who asked for the guest to be stopped. Set once it has stopped; they get their answer when
    /// the worker ends.
    stopped: Option<Sender<Result<(), Fault>>>,
    /// When the remainder of a refused guest is put away.
    put_away_at: Option<Instant>,
}

impl Worker {
    /// A worker for a guest that has no folder here or was just created.
    pub(super) fn new(ground: Ground, ownership: Ownership) -> Self {
        Self {
            ground,
            role: Some(Role::Idle(ownership)),
            stuck: None,
            retry: None,
            recover_at: None,
            recover_delay: RECOVER_DELAY,
            farewells: farewell::Farewells::default(),
            ending: None,
            noted_arrival: None,
            visitors: Vec::new(),
            shown: Shown::default(),
            room: None,
            is_done: false,
            stopped: None,
            put_away_at: None,
        }
    }

    /// A worker for a guest whose folder was found at startup.
    pub(super) fn recover(ground: Ground, record: Record) -> Self {
        let host = ground.shared.host.clone();
        let ownership = Ownership::recover(host, record);
        let mut worker = Self::new(ground, ownership);
        worker.show_unfound();
        worker.recover_farewells();
        let role = worker.recovered_role();
        worker.role = Some(role);
        worker
    }

    /// The move with which a previous migrator received the guest.
    fn arrival(&self) -> Option<MigrationId> {
        let folder = self.ground.folder.as_ref()?;
        folder.read_document(&file_name(ARRIVAL_FILE)).ok()?
    }

    /// Handles inputs until the guest is gone from this host.
    pub(super) fn work(mut self) {
        self.publish();
        while !self.is_done {
            let until = self.deadline();
            match self.ground.mailbox.receive(Some(to_wait_until(until))) {
                Some(input) => {
                    self.take_in(input);
                    self.publish();
                    for _ in 0..BATCH_COUNT_MAX {
                        // A stopped guest must not be brought back by later inputs.
                        let next = (!self.is_done).then(|| self.ground.mailbox.try_receive());
                        let Some(input) = next.flatten() else {
                            break;
                        };
                        self.take_in(input);
                        self.publish();
                    }
                    if let Some(Role::Target(target)) = &mut self.role {
                        target.carry_out(&mut self.ground);
                    }
                    self.keep_place();
                    // Timers must fire even if a peer never stops sending.
                    if self.is_overdue() {
                        self.tick();
                    }
                }
                None => self.tick(),
            }
            self.end_lanes_if_due();
            self.give_up_silent_process();
            self.settle();
            self.publish();
        }
        self.ground.mailbox.close();
        // While the worker is registered nobody else shows the guest, so remove it from the board
        // first.
        self.ground.shared.board().forget_guest(self.ground.id);
        self.ground.shared.workers().remove(&self.ground.id);
        if let Some(reply) = self.stopped {
            drop(reply.send(Ok(())));
        }
    }

    fn deadline(&self) -> Instant {
        let look = now() + LOOK_INTERVAL;
        [self.timer(), self.lanes_due()]
            .into_iter()
            .flatten()
            .fold(look, Instant::min)
    }

    /// When a timer is due.
    fn timer(&self) -> Option<Instant> {
        let role = match &self.role {
            Some(Role::Source(source)) => source.deadline(),
            Some(Role::Target(target)) => target.deadline(),
            _ => None,
        };
        let retry = self.retry.as_ref().map(|(at, _)| *at);
        let others = retry.into_iter().chain(self.farewell_due());
        role.into_iter().chain(others).chain(self.recover_at).min()
    }

    fn is_overdue(&self) -> bool {
        self.timer().is_some_and(|at| at <= now())
    }

    fn tick(&mut self) {
        if !self.is_paused() {
            self.ground.settle_journal();
        }
        match &mut self.role {
            Some(Role::Source(source)) => {
                drop(source.handle(&mut self.ground, source::Event::Tick));
            }
            Some(Role::Target(target)) => target.tick(&mut self.ground),
            _ => {}
        }
        self.keep_place();
        if self.recover_at.take_if(|at| *at <= now()).is_some() {
            self.take_up_again();
        }
        self.say_farewells();
        if self.retry.as_ref().is_some_and(|(at, _)| *at <= now())
            && let Some((_, order)) = self.retry.take()
            && let Err(fault) = self.begin_move((*order).clone())
        {
            self.give_up(&order, &fault);
        }
    }

    /// Keeps the place of an arriving attempt for which anything has come, however long it takes.
    fn keep_place(&self) {
        if let Some(Role::Target(target)) = &self.role
            && target.has_data()
        {
            let (guest, attempt) = (self.ground.id, target.setup().attempt);
            self.ground.shared.touched(guest, attempt);
        }
    }

    /// Whether the guest is paused, so that housekeeping must wait.
    ///
    /// A guest that runs here and waits for blocks is no reason: until its ownership is in both
    /// slots of the journal, one bad slot would bring back the record before it.
    fn is_paused(&self) -> bool {
        match &self.role {
            Some(Role::Source(source)) => source.stage() == source::Stage::Switching,
            _ => false,
        }
    }

    fn take_in(&mut self, input: Input) {
        match input {
            Input::Command(command, claim) if claim.take() => self.command(command),
            Input::Command(..) => {
                info!(guest = %self.ground.id, "whoever asked for something was told that it is not done");
            }
            Input::Lane { from, hello, lane } => self.lane(from, &hello, lane),
            Input::Opened { link, result } => {
                if let Some(Role::Source(source)) = &mut self.role {
                    source.opened(&mut self.ground, link, result);
                }
            }
            Input::Heard {
                link,
                lane,
                message,
            } => self.heard(link, lane, message),
            Input::LaneLost { link, lane, fault } => self.lane_lost(link, lane, &fault),
            Input::Packed { header, wire_bytes } => {
                if let Some(Role::Source(source)) = &mut self.role {
                    let event = source::Event::Packed { header, wire_bytes };
                    drop(source.handle(&mut self.ground, event));
                }
            }
            Input::Unread { space, runs, fault } => {
                if let Some(Role::Source(source)) = &mut self.role {
                    source.not_read(&mut self.ground, (space, runs), &fault);
                }
            }
            Input::Chunk {
                link,
                lane,
                header,
                unpacked,
            } => {
                if let Some(Role::Target(target)) = &mut self.role
                    && self.ground.is_current(link)
                {
                    target.chunk(lane, header, unpacked);
                }
            }
            Input::Fault { block } => {
                if let Some(Role::Target(target)) = &mut self.role {
                    target.fault(&mut self.ground, block);
                }
            }
            Input::FaultsLost(fault) => {
                if let Some(Role::Target(target)) = &mut self.role {
                    target.faults_lost(&mut self.ground, fault);
                }
            }
            Input::GuestGone { process_id } => self.guest_gone(process_id),
            Input::Found(found) => self.found(*found),
            Input::FarewellSaid { attempt, result } => self.farewell_said(attempt, result),
            Input::Stop(done) => self.leave(done),
        }
    }

    fn guest_gone(&mut self, process_id: i32) {
        self.ground.let_go_of_ended();
        let is_ours = self
            .ground
            .process
            .as_ref()
            .is_some_and(|process| process.process_id() == process_id);
        if !is_ours {
            return;
        }
        let fault = Fault::new(Code::Guest, format!("guest process {process_id} ended"));
        error!(guest = %self.ground.id, %fault, "guest is gone");
        if let Some(process) = self.ground.process.take() {
            // Checking once more reaps it, so that a guest that crashes leaves no zombie.
            let _ = process.is_alive();
        }
        self.ground.crash = Some(fault);
        let is_relinquished = match &self.role {
            Some(Role::Source(source)) => source.is_committed(),
            Some(Role::Idle(ownership) | Role::Broken(ownership, _)) => {
                matches!(ownership.record().state, State::Relinquished { .. })
            }
            _ => false,
        };
        if is_relinquished {
            // The guest is its target's. Its frozen memory is held here too, and the target may
            // still fetch from it.
            return;
        }
        self.ground.memory = None;
        match &mut self.role {
            Some(Role::Source(source)) => {
                drop(source.handle(&mut self.ground, source::Event::GuestGone));
            }
            Some(Role::Target(target)) => {
                target.handle(&mut self.ground, target::Event::GuestGone);
            }
            _ => {}
        }
    }

    fn command(&mut self, command: Command) {
        self.end_if_over();
        // A reply is dropped if the asker has gone away.
        match command {
            Command::Migrate(order, reply) => drop(reply.send(self.begin_move(*order))),
            Command::Cancel(id, reply) => drop(reply.send(self.cancel(id))),
            Command::Boot { room, how, reply } => {
                let booted = match how {
                    Booting::Ended => self.boot(),
                    Booting::GivenUp => self.give_up_missing(),
                };
                // Held until the guest is on the board, even if the asker has gone away.
                self.room = booted.is_ok().then_some(room);
                drop(reply.send(booted));
            }
            // Answered when the worker ends: only then is the guest's name free.
            Command::Stop(reply) => match self.stop() {
                Ok(()) => self.stopped = Some(reply),
                Err(fault) => drop(reply.send(Err(fault))),
            },
            Command::Verify(reply) => drop(reply.send(self.verify())),
        }
    }

    /// Ends a move that waited for its next attempt.
    fn give_up(&mut self, order: &Order, fault: &Fault) {
        info!(migration = %order.id, %fault, "no further attempt");
        if order.may_be_heard {
            self.bid_farewell(order, false);
        } else {
            Order::forget(&self.ground);
        }
        self.say_held_farewells();
        let view = order.ended_view(&self.ground, fault);
        self.ground.shared.board().show_move(view);
    }

    /// The fault for a request that needs no move under way, if there is one.
    fn other_move(&self) -> Option<Fault> {
        let id = self.migration()?;
        let detail = format!("the guest is part of move {id}");
        let remedy = format!(
            "follow that with `towpath migration watch {id}`, or end it with `towpath migration cancel {id}`"
        );
        Some(Fault::new(Code::State, detail).remedy(remedy))
    }

    fn begin_move(&mut self, mut order: Order) -> Result<(), Fault> {
        if let Some(fault) = self.other_move() {
            return Err(fault);
        }
        if let Some(fault) = &self.ground.crash {
            let detail = format!("the guest does not run: {}", fault.detail);
            return Err(Fault::new(Code::State, detail));
        }
        let Some(Role::Idle(ownership)) = self.role.take_if(|role| matches!(role, Role::Idle(_)))
        else {
            let detail = "the guest waits for what is mended: look at it with `towpath guest show`";
            return Err(Fault::new(Code::State, detail));
        };
        if !ownership.may_run() {
            let detail = format!("the guest is {} here", ownership.record().state.name());
            self.role = Some(Role::Idle(ownership));
            return Err(Fault::new(Code::State, detail));
        }
        let former = (order.attempts > 0 && order.may_be_heard).then(|| order.clone());
        let saved = random_id().and_then(|id| {
            order.attempt = AttemptId(id);
            order.attempts += 1;
            order.may_be_heard = false;
            order.save(&self.ground)
        });
        if let Err(fault) = saved {
            self.role = Some(Role::Idle(ownership));
            return Err(fault);
        }
        self.ground.close_link();
        if let Some(former) = former {
            self.hold_farewell(&former);
        }
        match SourceMove::begin(&mut self.ground, ownership, order) {
            Ok(mut going) => {
                going.carry_out(&mut self.ground);
                self.role = Some(Role::Source(Box::new(going)));
                Ok(())
            }
            Err(not_begun) => {
                // It was refused, so a restart must not begin it again.
                Order::forget(&self.ground);
                self.role = Some(Role::Idle(not_begun.ownership));
                Err(not_begun.fault)
            }
        }
    }

    fn cancel(&mut self, id: MigrationId) -> Result<(), Fault> {
        match &mut self.role {
            Some(Role::Source(source)) if source.order().id == id => {
                if !source.is_committed() {
                    // Done first, so that a restart in the middle of the cancellation does not
                    // begin the move again.
                    self.farewells.end_order(&self.ground, source.order());
                }
                source.handle(&mut self.ground, source::Event::Cancel)
            }
            _ => {
                if let Some((_, order)) = self.retry.take_if(|(_, order)| order.id == id) {
                    let fault = Fault::new(Code::Cancelled, "cancelled by the operator");
                    self.give_up(&order, &fault);
                    return Ok(());
                }
                if self.stuck.as_ref().is_some_and(|stuck| stuck.id() == id) {
                    let detail = format!("the guest was handed over in move {id} already");
                    let remedy = "move it back instead, once it is seen at its target";
                    return Err(Fault::new(Code::State, detail).remedy(remedy));
                }
                let detail = format!("move {id} is not under way here any more");
                Err(Fault::new(Code::State, detail))
            }
        }
    }

    /// Boots a guest that has ended, with fresh memory. A guest with missing blocks that are lost
    /// stops waiting for them, and its source may release what it holds.
    fn boot(&mut self) -> Result<(), Fault> {
        self.ground.check_journal()?;
        let Some(Role::Idle(ownership) | Role::Broken(ownership, _)) = &self.role else {
            return Err(Fault::new(Code::State, "the guest is part of a move"));
        };
        let State::Owned {
            epoch,
            missing_from,
        } = &ownership.record().state
        else {
            let detail = format!("the guest is {} here", ownership.record().state.name());
            return Err(Fault::new(Code::State, detail));
        };
        let epoch = *epoch;
        // A guest whose missing blocks are lost stays blocked on one of them, so its process need
        // not have ended.
        let is_lost = missing_from.is_some()
            && matches!(&self.role, Some(Role::Broken(_, fault)) if fault.code == Code::ImageLost);
        if !is_lost || self.ground.awaited.is_some() {
            self.ground.expect_ended()?;
        }
        // The record must not call the memory complete while a process could still run on missing
        // blocks.
        self.ground.end_process()?;
        if let Some(Role::Broken(mut ownership, fault)) =
            self.role.take_if(|role| matches!(role, Role::Broken(..)))
        {
            self.ground.close_link();
            let settled = ownership
                .handle(LawEvent::ImageComplete)
                .and_then(|()| self.follow_the_law(&mut ownership));
            if let Err(fault) = settled {
                self.role = Some(Role::Broken(ownership, fault.clone()));
                return Err(fault);
            }
            self.recover_at = None;
            info!(guest = %self.ground.id, %fault, "a lost guest is booted anew");
            self.role = Some(Role::Idle(ownership));
        }
        self.ground.make_process(false)?;
        self.ground.process()?.run(epoch).map(drop)
    }

    /// Treats the missing blocks of a guest as lost, as if the source had said so, and boots the
    /// guest. For an operator who knows that the source will not come back.
    fn give_up_missing(&mut self) -> Result<(), Fault> {
        self.ground.check_journal()?;
        let role = self.role.as_ref();
        let Some(State::Owned {
            missing_from: Some(origin),
            ..
        }) = role.map(|role| &role.ownership().record().state)
        else {
            let detail = "nothing of the guest is missing here";
            return Err(Fault::new(Code::State, detail));
        };
        let source = origin.source.clone();
        let lost = Fault::new(
            Code::ImageLost,
            format!("what {source} has of the guest was given up"),
        );
        if self.recover_at.is_some() {
            let detail = "the guest is about to be taken up again here, with all that has come";
            return Err(
                Fault::new(Code::State, detail).remedy("try again if it is not, in a minute")
            );
        }
        let former = match &mut self.role {
            Some(Role::Target(target)) => {
                let away = target.source_away_for(&self.ground);
                if away.is_none_or(|span| span < GIVE_UP_AFTER) {
                    let detail = format!("{source} is connected, or was {GIVE_UP_AFTER:?} ago");
                    let remedy = "wait: the guest goes on by itself where its source comes back";
                    return Err(Fault::new(Code::State, detail).remedy(remedy));
                }
                target.handle(&mut self.ground, target::Event::Failed(lost.clone()));
                self.end_if_over();
                None
            }
            Some(Role::Broken(_, fault)) => Some(std::mem::replace(fault, lost.clone())),
            _ => {
                let detail = "the guest is part of a move";
                return Err(Fault::new(Code::State, detail));
            }
        };
        let booted = self.boot();
        if booted.is_err()
            && let (Some(former), Some(Role::Broken(_, fault))) = (former, &mut self.role)
            && *fault == lost
        {
            // Nothing was given up, so the former fault still stands.
            *fault = former;
        }
        booted
    }

    fn stop(&mut self) -> Result<(), Fault> {
        self.ground.check_journal()?;
        let Some(Role::Idle(ownership) | Role::Broken(ownership, _)) = &self.role else {
            return Err(Fault::new(Code::State, "the guest is part of a move"));
        };
        let remainder = ownership.remainder()?;
        if let Some((_, order)) = self.retry.take() {
            let fault = Fault::new(Code::Cancelled, "the guest was stopped");
            self.give_up(&order, &fault);
        }
        self.ground.put_away(remainder.as_ref(), true)?;
        self.leave_farewells();
        self.is_done = true;
        Ok(())
    }

    fn verify(&mut self) -> Result<VerifyView, Fault> {
        let Some(Role::Idle(_)) = &self.role else {
            let detail = "the guest is part of a move: its memory is in two places";
            return Err(Fault::new(Code::State, detail));
        };
        let verified = self.ground.process()?.verify();
        Ok(match verified? {
            Ok(pages) => VerifyView {
                pages,
                verified: true,
                detail: "every byte of every page is right".to_owned(),
            },
            Err(mismatch) => VerifyView {
                pages: 0,
                verified: false,
                detail: mismatch,
            },
        })
    }

    /// Ends an attempt whose receiving process no longer answers.
    fn give_up_silent_process(&mut self) {
        let is_silent = self.silent_for().is_some_and(|span| span >= SILENCE_MAX);
        if is_silent
            && let Some(Role::Target(target)) = &mut self.role
            && matches!(
                target.stage(),
                target::Stage::Receiving | target::Stage::Ready
            )
        {
            let detail =
                format!("the process that receives the guest says nothing for {SILENCE_MAX:?}");
            let fault = Fault::new(Code::Guest, detail);
            target.handle(&mut self.ground, target::Event::Failed(fault));
        }
    }

    /// Leaves the source or target role if its move is over.
    pub(super) fn end_if_over(&mut self) {
        match &self.role {
            Some(Role::Source(source)) if source.is_over() => self.end_source(),
            Some(Role::Target(target)) if target.is_over() => self.end_target(),
            _ => {}
        }
    }

    /// As [`Self::end_if_over`]; also ends the worker if it has nothing left to do.
    fn settle(&mut self) {
        self.end_if_over();
        match &self.role {
            Some(Role::Idle(ownership)) if self.visitors.is_empty() => {
                let is_refused = matches!(ownership.record().state, State::Refused { .. });
                if self.ground.journal.is_none() {
                    // The guest never came, so nothing of it is kept.
                    self.is_done = true;
                } else if is_refused {
                    let remainder = ownership.remainder();
                    self.put_away(remainder);
                }
            }
            _ => self.put_away_at = None,
        }
    }

    /// Puts away the remainder of a refused guest once [`PUT_AWAY_DELAY`] has passed without
    /// another attempt.
    fn put_away(&mut self, remainder: Result<Option<Record>, Fault>) {
        let due = *self
            .put_away_at
            .get_or_insert_with(|| now() + PUT_AWAY_DELAY);
        if due > now() {
            return;
        }
        match remainder.and_then(|record| self.ground.put_away(record.as_ref(), false)) {
            Ok(()) => self.is_done = true,
            Err(fault) => {
                warn!(guest = %self.ground.id, %fault, "a refused guest's folder stays for now");
                self.put_away_at = Some(now() + PUT_AWAY_AGAIN);
            }
        }
    }

    fn end_source(&mut self) {
        let Some(Role::Source(source)) = self.role.take() else {
            return;
        };
        self.ground
            .shared
            .board()
            .show_move(source.view(&self.ground));
        self.stuck = source.stuck(&self.ground);
        let (id, attempt) = (source.order().id, source.order().attempt);
        self.role = Some(match source.end(&mut self.ground) {
            source_move::Ended::Moved(ownership) => {
                info!(migration = %id, "guest moved");
                self.end_farewell(attempt);
                self.ground.close_link();
                Role::Idle(ownership)
            }
            source_move::Ended::Stayed(ownership, rest) => {
                let again = matches!(rest, source_move::Rest::Again(..));
                info!(migration = %id, again, "guest stays");
                match rest {
                    source_move::Rest::Nothing => self.end_farewell(attempt),
                    source_move::Rest::Again(order, wait) => {
                        self.retry = Some((now() + wait, order));
                    }
                    source_move::Rest::Farewell { order, is_said } => {
                        self.bid_farewell(&order, is_said);
                    }
                }
                if !again {
                    self.say_held_farewells();
                }
                Role::Idle(ownership)
            }
            source_move::Ended::Stuck(ownership, fault) => {
                error!(migration = %id, %fault, "move is stuck after its commit");
                Role::Broken(ownership, fault)
            }
        });
    }

    fn end_target(&mut self) {
        let Some(Role::Target(target)) = self.role.take() else {
            return;
        };
        if let Some(view) = target.view(&self.ground) {
            self.ground.shared.board().show_move(view);
        }
        let id = target.setup().migration;
        let setup = target.setup().clone();
        if target.has_received() {
            // The move made progress, so the next fault is a new one.
            self.recover_delay = RECOVER_DELAY;
        }
        self.role = Some(match target.end(&mut self.ground) {
            target_move::Ended::Arrived(ownership) => {
                info!(migration = %id, "guest arrived");
                self.ground.shared.made_for(self.ground.id, None);
                self.see_off(setup);
                Role::Idle(ownership)
            }
            target_move::Ended::Refused(ownership) => {
                self.ground.close_link();
                Role::Idle(ownership)
            }
            target_move::Ended::Lost(_, fault) if self.ground.journal.is_none() => {
                // Not even the offer could be written down, so nothing of the guest is left here.
                info!(migration = %id, %fault, "guest did not come");
                self.ground.close_link();
                // This worker does not know what the store may still hold about the guest from
                // earlier.
                self.is_done = true;
                Role::Idle(Ownership::vacant(
                    self.ground.shared.host.clone(),
                    self.ground.id,
                ))
            }
            target_move::Ended::Lost(ownership, fault) => self.not_gone_on_with(ownership, fault),
        });
    }
}
