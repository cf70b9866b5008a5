//! One thread per guest: everything that happens to a guest on this host passes through here, one
//! thing after the other.

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

/// Chunks taken in before what follows from them is carried out and acknowledged together.
const BATCH_COUNT_MAX: usize = 32;

/// How long a process that receives a guest may say nothing: as long as any work on all of its memory may take.
/// Nothing runs in it, so one that is only slow costs its attempt, and none that lives is left waiting for ever.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// First wait before a move that could not be taken up is tried again, where nothing of it is lost: mostly there
/// were no threads, descriptors or memory left. Doubles up to [`RECOVER_DELAY_MAX`].
const RECOVER_DELAY: Duration = Duration::from_secs(2);

/// Longest of these waits: by then somebody looks at the host, and finds what is mended at work again soon.
const RECOVER_DELAY_MAX: Duration = Duration::from_secs(60);

/// Wait before what is left of a refused guest is put away: its source's next attempt mostly follows at once.
const PUT_AWAY_DELAY: Duration = Duration::from_secs(2);

/// Wait before that is tried again where it failed: mostly the disk is full.
const PUT_AWAY_AGAIN: Duration = Duration::from_secs(60);

/// How long a source has been away before what it has of a guest can be given up: longer than its tunnel or its
/// migrator takes to be started again, or an upgrade of both.
const GIVE_UP_AFTER: Duration = Duration::from_secs(10);

/// The file that remembers which move an arriving guest belongs to.
const ARRIVAL_FILE: &str = "arrival.json";

/// What a worker is at.
pub(super) enum Role {
    Idle(Ownership),
    Source(Box<SourceMove>),
    Target(Box<TargetMove>),
    /// Nothing is done with the guest any more before an operator looks.
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
    /// Always there between two inputs.
    pub(super) role: Option<Role>,
    /// A move behind its commit that is gone on with only after the next start.
    pub(super) stuck: Option<source_move::Stuck>,
    /// A move that waits for another attempt.
    pub(super) retry: Option<(Instant, Box<Order>)>,
    /// When a move of before the start is to be taken up, which could not be yet.
    pub(super) recover_at: Option<Instant>,
    recover_delay: Duration,
    farewells: farewell::Farewells,
    ending: Option<link::Ending>,
    /// The move that was written down as the one the guest comes with, or was tried to be.
    noted_arrival: Option<MigrationId>,
    /// Sources that have lanes here beside what the guest is at.
    visitors: Vec<visitors::Visitor>,
    pub(super) shown: Shown,
    /// Room for a guest that was booted and is not shown yet.
    pub(super) room: Option<Beginning>,
    pub(super) is_done: bool,
    /// Who has asked for the guest's end, which has come.
    stopped: Option<Sender<Result<(), Fault>>>,
    /// When what is left of a guest that was refused is put away.
    put_away_at: Option<Instant>,
}

impl Worker {
    /// A worker for a guest this host has never seen, or has just made.
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

    /// A worker for a guest whose folder was found at the start.
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

    /// Which move an earlier migrator received the guest with.
    fn arrival(&self) -> Option<MigrationId> {
        let folder = self.ground.folder.as_ref()?;
        folder.read_document(&file_name(ARRIVAL_FILE)).ok()?
    }

    /// Works until the guest is forgotten here.
    pub(super) fn work(mut self) {
        self.publish();
        while !self.is_done {
            let until = self.deadline();
            match self.ground.mailbox.receive(Some(to_wait_until(until))) {
                Some(input) => {
                    self.take_in(input);
                    self.publish();
                    for _ in 0..BATCH_COUNT_MAX {
                        // Of a guest that was stopped nothing may come to life again.
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
                    // A peer that never stops talking does not stop the clock.
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
        // While it is registered nobody else shows the guest.
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

    /// When there is something to do although nothing happens.
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
        if !self.is_waited_for() {
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

    /// An attempt of which anything has come keeps its place among those that arrive, however long it lasts.
    fn keep_place(&self) {
        if let Some(Role::Target(target)) = &self.role
            && target.has_data()
        {
            let (guest, attempt) = (self.ground.id, target.setup().attempt);
            self.ground.shared.touched(guest, attempt);
        }
    }

    /// Whether a guest stands, or may, until this worker does its next.
    fn is_waited_for(&self) -> bool {
        match &self.role {
            Some(Role::Source(source)) => source.stage() == source::Stage::Switching,
            Some(Role::Target(target)) => target.stage() == target::Stage::Running,
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
            // Looked at once more, it is reaped: no guest that crashes leaves a process without life behind.
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
            // It is the target's. Its frozen memory is held here too, and its target may still fetch from it.
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
        // Whoever asked may have gone away; that changes nothing.
        match command {
            Command::Migrate(order, reply) => drop(reply.send(self.begin_move(*order))),
            Command::Cancel(id, reply) => drop(reply.send(self.cancel(id))),
            Command::Boot { room, how, reply } => {
                let booted = match how {
                    Booting::Ended => self.boot(),
                    Booting::GivenUp => self.give_up_missing(),
                };
                // Kept until it is shown that the guest lives: also if whoever asked has gone away.
                self.room = booted.is_ok().then_some(room);
                drop(reply.send(booted));
            }
            // Once it is gone its name is free: that is said when it is.
            Command::Stop(reply) => match self.stop() {
                Ok(()) => self.stopped = Some(reply),
                Err(fault) => drop(reply.send(Err(fault))),
            },
            Command::Verify(reply) => drop(reply.send(self.verify())),
        }
    }

    /// Ends a move that waited for another attempt.
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

    /// Why no move of the guest can begin, if one is under way.
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
                // It was refused, and must not begin with the next start.
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
                    // First of all: a restart in the middle of this must not begin it anew.
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

    /// Boots a guest that has ended: its memory begins anew. One that was lost on its way stops
    /// waiting for what is missing, and its source may let go of it.
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
        // What is left of a guest whose missing blocks are lost stands at one of them for ever.
        let is_lost = missing_from.is_some()
            && matches!(&self.role, Some(Role::Broken(_, fault)) if fault.code == Code::ImageLost);
        if !is_lost || self.ground.awaited.is_some() {
            self.ground.expect_ended()?;
        }
        // Nothing calls its memory whole while there is a process that could still run on what is missing.
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

    /// Takes what is missing of a guest for lost, as if its source had said so, and boots it: an operator knows
    /// that the source does not come back.
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
            // Nothing was given up, and what is wrong with it is what was.
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

    /// Ends an attempt whose receiving process does not answer any more.
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

    /// Draws the line under an attempt that is over.
    pub(super) fn end_if_over(&mut self) {
        match &self.role {
            Some(Role::Source(source)) if source.is_over() => self.end_source(),
            Some(Role::Target(target)) if target.is_over() => self.end_target(),
            _ => {}
        }
    }

    /// The same, and the end of a worker that has nothing to work for.
    fn settle(&mut self) {
        self.end_if_over();
        match &self.role {
            Some(Role::Idle(ownership)) if self.visitors.is_empty() => {
                let is_refused = matches!(ownership.record().state, State::Refused { .. });
                if self.ground.journal.is_none() {
                    // A guest that never came: nothing is kept of it.
                    self.is_done = true;
                } else if is_refused {
                    let remainder = ownership.remainder();
                    self.put_away(remainder);
                }
            }
            _ => self.put_away_at = None,
        }
    }

    /// Puts away what is left of a guest that was refused, once no other attempt follows.
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
            // It went on for a while: what is wrong now is not what was.
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
                // Not even that it was offered could be written down: nothing is left of it.
                info!(migration = %id, %fault, "guest did not come");
                self.ground.close_link();
                // What may be remembered of it from before is not known to this worker any more.
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
