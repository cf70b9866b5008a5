//! Visitors: sources that have opened lanes but not sent anything yet, or that ask again about an
//! attempt that is over. They stand beside the worker's current role and change nothing until they
//! offer a guest that may come.

use std::time::Duration;

use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::HostIdentity;
use towpath_protocol::message::{Lane, Message};
use towpath_protocol::target::{self, Event, Setup, Stage};
use towpath_protocol::time::Instant;
use tracing::{info, warn};

use super::{Role, Worker};
use crate::engine::ground::{new_link_number, now};
use crate::engine::lanes::{Gathering, Link, OpenLane, ReadingEnd, receive_on};
use crate::engine::target_move::TargetMove;

#[cfg(test)]
mod tests;

/// Lanes on which nothing begins are closed after this time; the first message follows the greeting
/// within a few round trips.
const VISIT_WAIT: Duration = Duration::from_secs(10);

/// How long a write to a visitor may block. An answer fits into an empty socket buffer at once, and
/// nothing else is sent to visitors.
const VISIT_WRITE_WAIT: Duration = Duration::from_millis(5);

/// Most attempts of one source that visit at once: its open one, and an older one whose lanes
/// arrive late.
const VISITS_PER_SOURCE_MAX: usize = 2;

/// Most visitors in all. Each has four sockets and two threads. The oldest is dropped for a new
/// one, so that no stranger can keep out a source whose guest is paused.
const VISIT_COUNT_MAX: usize = 8;

/// An attempt that has lanes here but is not the worker's current role.
pub(super) struct Visitor {
    setup: Setup,
    lanes: Gathering,
    link: Option<Link>,
    chunk_readers: Vec<ReadingEnd>,
    pub(super) due: Instant,
}

impl Visitor {
    pub(super) fn new(setup: Setup, link: Option<Link>) -> Self {
        Self {
            setup,
            lanes: Gathering::default(),
            link,
            chunk_readers: Vec::new(),
            due: now() + VISIT_WAIT,
        }
    }

    fn has_link(&self, number: u64) -> bool {
        self.link.as_ref().is_some_and(|link| link.number == number)
    }

    /// Sends a message and returns whether it was taken. A visitor that does not read its answer is
    /// dropped: the worker and its log must not be held up by anyone able to open lanes.
    fn hears(&mut self, message: &Message) -> bool {
        let Some(link) = &mut self.link else {
            return false;
        };
        let said = link.send_within(Lane::Control, message, VISIT_WRITE_WAIT);
        said.inspect_err(|fault| info!(%fault, "a source did not hear its answer"))
            .is_ok()
    }
}

impl Worker {
    /// A lane of an attempt that is not the worker's current role.
    pub(super) fn visit(&mut self, setup: Setup, number: u64, lane: OpenLane) {
        let is_same = |visitor: &Visitor| {
            visitor.setup.attempt == setup.attempt && visitor.setup.source == setup.source
        };
        let index = self.visitors.iter().position(is_same).unwrap_or_else(|| {
            self.make_room_for(&setup.source);
            self.visitors.push(Visitor::new(setup, None));
            self.visitors.len() - 1
        });
        let visitor = &mut self.visitors[index];
        if visitor.lanes.is_new(number) {
            visitor.due = now() + VISIT_WAIT;
        }
        let Some(lanes) = visitor.lanes.add(number, lane) else {
            return;
        };
        visitor.link = None;
        let link_number = new_link_number();
        match receive_on(link_number, lanes, &self.ground.mailbox) {
            Ok((link, chunk_readers)) => {
                visitor.link = Some(link);
                visitor.chunk_readers = chunk_readers;
            }
            Err(fault) => warn!(%fault, "lanes could not be used"),
        }
    }

    fn make_room_for(&mut self, source: &HostIdentity) {
        let of_source = |visitor: &Visitor| visitor.setup.source == *source;
        let known = self.visitors.iter().filter(|visitor| of_source(visitor));
        let oldest = if known.count() >= VISITS_PER_SOURCE_MAX {
            self.visitors.iter().position(of_source)
        } else {
            (self.visitors.len() >= VISIT_COUNT_MAX).then_some(0)
        };
        if let Some(oldest) = oldest {
            self.visitors.remove(oldest);
        }
    }

    /// Keeps the lanes of an ended attempt for a while, because its source may have missed the last
    /// message.
    pub(super) fn see_off(&mut self, setup: Setup) {
        if let Some(link) = self.ground.link.take() {
            self.make_room_for(&setup.source);
            self.visitors.push(Visitor::new(setup, Some(link)));
        }
    }

    /// A lane ended that is not part of the guest's move.
    pub(super) fn visitor_lost(&mut self, link: u64, lane: Lane) {
        if lane != Lane::Control {
            return;
        }
        self.visitors.retain_mut(|visitor| {
            if visitor.has_link(link) {
                visitor.link = None;
            }
            // The source may already be opening new lanes.
            visitor.link.is_some() || !visitor.lanes.is_empty()
        });
    }

    /// A message arrived on a lane that is not part of the guest's move.
    pub(super) fn visitor_heard(&mut self, link: u64, lane: Lane, message: Message) {
        self.end_if_over();
        let known = self.visitors.iter().position(|it| it.has_link(link));
        let Some(index) = known else { return };
        match message {
            Message::Ping(nonce) => {
                if !self.visitors[index].hears(&Message::Pong(nonce)) {
                    self.visitors.remove(index);
                }
            }
            // Closing its lanes tells the source that the `Abort` arrived.
            Message::Abort(_) => drop(self.visitors.remove(index)),
            Message::Prepare(_) | Message::Commit(..) => {
                let mut visitor = self.visitors.remove(index);
                if let Some(answers) = self.answers(&visitor.setup, &message) {
                    if answers.iter().all(|answer| visitor.hears(answer)) {
                        self.visitors.push(visitor);
                    }
                } else if let Err(fault) = self.make_way(&visitor.setup, &message) {
                    self.ground.shared.refused(&visitor.setup.source, &fault);
                    visitor.hears(&Message::Refused((&fault).into()));
                } else {
                    self.receive_from(visitor, lane, message);
                }
            }
            word => {
                if let Some(word) = answer_in(&word) {
                    let visitor = self.visitors.remove(index);
                    self.forged(visitor, word);
                }
            }
        }
    }

    /// Handles an answer that came on lanes which its sender opened (H05). Valid answers arrive on
    /// lanes that we opened to the target of their attempt, and a late one for an older attempt of
    /// ours is dropped with those lanes. So no honest host gets here, whatever was lost, duplicated
    /// or repeated. The guest's state does not change.
    fn forged(&self, mut visitor: Visitor, word: &str) {
        let Setup {
            source, attempt, ..
        } = &visitor.setup;
        let state = self
            .role
            .as_ref()
            .map(|role| role.ownership().record().state.name());
        let detail = format!(
            "{source} answers {word} in attempt {attempt} on lanes that it opened; the guest is {} here",
            state.unwrap_or("busy")
        );
        let fault = Fault::new(Code::Denied, detail);
        self.ground.shared.refused(source, &fault);
        visitor.hears(&Message::Refused((&fault).into()));
    }

    /// The answer to a source about an attempt that was decided, whatever the guest has done since.
    fn answers(&self, setup: &Setup, message: &Message) -> Option<Vec<Message>> {
        self.ground.check_journal().ok()?;
        target::answer(setup, self.role.as_ref()?.ownership(), message)
    }

    /// Whether a record here says how an attempt ended.
    pub(super) fn is_decided(&self, setup: &Setup) -> bool {
        let role = self.role.as_ref();
        role.is_some_and(|role| {
            let ownership = role.ownership();
            ownership.decision(&setup.source, setup.attempt).is_some()
        })
    }

    /// Why this source's other attempts cannot be heard now, if they cannot.
    pub(super) fn bars(&self, source: &HostIdentity) -> Option<Fault> {
        match &self.role {
            Some(Role::Idle(_)) => None,
            Some(Role::Target(target)) if target.setup().source != *source => {
                let known = &target.setup().source;
                let detail = format!("{source} offers a guest that {known} is sending");
                Some(Fault::new(Code::DoubleOffer, detail))
            }
            Some(Role::Target(target)) if target.stage() != Stage::Running => None,
            _ => {
                let detail = "the guest is busy with another move here";
                Some(Fault::new(Code::Busy, detail))
            }
        }
    }

    /// Ends a source's open attempt because it offers the guest under a newer one.
    fn make_way(&mut self, setup: &Setup, message: &Message) -> Result<(), Fault> {
        if let Some(fault) = self.bars(&setup.source) {
            return Err(fault);
        }
        let Some(Role::Target(open)) = &mut self.role else {
            return Ok(());
        };
        let high_water = open.ownership().record().high_water;
        if !matches!(message, Message::Prepare(prepare) if prepare.epoch > high_water) {
            let detail = format!("{} is not newer than what is open", setup.attempt);
            return Err(Fault::new(Code::StaleEpoch, detail));
        }
        let detail = "a newer attempt took the place of this one";
        let replaced = Event::Failed(Fault::new(Code::StaleEpoch, detail));
        open.handle(&mut self.ground, replaced);
        self.end_target();
        self.bars(&setup.source).map_or(Ok(()), Err)
    }

    /// Turns a visitor into the worker's role. The worker must be idle.
    fn receive_from(&mut self, visitor: Visitor, lane: Lane, message: Message) {
        let Some(link) = visitor.link else { return };
        let Some(Role::Idle(ownership)) = self.role.take_if(|role| matches!(role, Role::Idle(_)))
        else {
            return;
        };
        let mut target = TargetMove::begin(&self.ground, ownership, visitor.setup);
        target.link_up(&mut self.ground, link, visitor.chunk_readers);
        target.heard(&mut self.ground, lane, message);
        let (is_refused, is_blank) = (target.is_over(), target.is_blank());
        self.role = Some(Role::Target(Box::new(target)));
        // A refused offer writes nothing to the folder of a guest that may live here.
        if !is_refused {
            self.remember_arrival();
        }
        if is_refused || is_blank {
            self.end_target();
        }
    }
}

/// The name of a message that only the target of an attempt sends, about who has the guest.
const fn answer_in(message: &Message) -> Option<&'static str> {
    match message {
        Message::Prepared(_) => Some("Prepared"),
        Message::Ready(_) => Some("Ready"),
        Message::Ack(_) => Some("Ack"),
        Message::Nack(_) => Some("Nack"),
        Message::Complete => Some("Complete"),
        _ => None,
    }
}
