//! Handles what arrives over lanes: greetings, messages, and the end of a lane.

use std::time::Duration;

use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::HostIdentity;
use towpath_protocol::message::{Hello, Lane, Message};
use towpath_protocol::source;
use towpath_protocol::target;
use towpath_protocol::time::Instant;
use tracing::{info, warn};

use super::{ARRIVAL_FILE, Role, Worker};
use crate::engine::ground::{file_name, now};
use crate::engine::lanes::OpenLane;
use crate::lane::{LaneWriter, WRITE_WAIT_MAX};

/// Wait for the control lane's last message once another lane has ended: both were sent at the same
/// time.
const LAST_WORD_WAIT: Duration = Duration::from_millis(100);

/// A link of which one lane has ended.
pub(super) struct Ending {
    link: u64,
    lane: Lane,
    fault: Fault,
    /// When the link is given up.
    pub(super) due: Instant,
}

impl Worker {
    pub(super) fn heard(&mut self, link: u64, lane: Lane, message: Message) {
        if !self.ground.is_current(link) {
            self.visitor_heard(link, lane, message);
            return;
        }
        match &mut self.role {
            Some(Role::Source(source)) => {
                let is_decided = matches!(message, Message::Prepared(_) | Message::Nack(_));
                let event = source::Event::Heard(lane, message);
                let is_heard = source.handle(&mut self.ground, event).is_ok();
                if is_heard && is_decided {
                    let order = source.order();
                    let (target, attempt) = (order.target.clone(), order.attempt);
                    self.end_older_farewells(&target, attempt);
                }
            }
            Some(Role::Target(target)) => {
                target.heard(&mut self.ground, lane, message);
                self.remember_arrival();
            }
            _ => {}
        }
    }

    /// Writes down which move the guest arrives with. Called after every message of the source, but
    /// writes once.
    pub(super) fn remember_arrival(&mut self) {
        let (Some(Role::Target(target)), Some(folder)) = (&self.role, &self.ground.folder) else {
            return;
        };
        let id = target.setup().migration;
        if self.noted_arrival.replace(id) == Some(id) {
            return;
        }
        if let Err(fault) = folder.write_document(&file_name(ARRIVAL_FILE), &id) {
            warn!(%fault, "the move's id is not remembered");
        }
    }

    /// A lane ended. All lanes are closed together, so the peer's last message on the control lane
    /// may still be on its way when another lane ends.
    pub(super) fn lane_lost(&mut self, link: u64, lane: Lane, fault: &Fault) {
        if !self.ground.is_current(link) {
            self.visitor_lost(link, lane);
            return;
        }
        self.ground.shared.metrics.lane_fault(fault.code);
        if lane == Lane::Control {
            self.link_lost(lane, fault);
        } else if self
            .ending
            .as_ref()
            .is_none_or(|ending| ending.link != link)
        {
            self.ending = Some(Ending {
                link,
                lane,
                fault: fault.clone(),
                due: now() + LAST_WORD_WAIT,
            });
        }
    }

    /// When the next idle or ending link must be closed.
    pub(super) fn lanes_due(&self) -> Option<Instant> {
        let ending = self.ending.as_ref().map(|ending| ending.due);
        let visitors = self.visitors.iter().map(|visitor| visitor.due);
        visitors.chain(ending).min()
    }

    /// Drops links whose control lane stayed silent for long enough.
    pub(super) fn end_lanes_if_due(&mut self) {
        self.visitors.retain(|visitor| visitor.due > now());
        let ended = self.ending.take_if(|ending| ending.due <= now());
        if let Some(Ending {
            link, lane, fault, ..
        }) = ended
            && self.ground.is_current(link)
        {
            self.link_lost(lane, &fault);
        }
    }

    fn link_lost(&mut self, lane: Lane, fault: &Fault) {
        self.ending = None;
        info!(guest = %self.ground.id, ?lane, %fault, "lanes are down");
        match &mut self.role {
            Some(Role::Source(source)) => source.lane_ended(&mut self.ground, fault),
            Some(Role::Target(target)) => target.lane_ended(&mut self.ground, fault),
            _ => self.ground.close_link(),
        }
    }

    /// A source opened a lane for this guest.
    pub(super) fn lane(&mut self, from: HostIdentity, hello: &Hello, lane: OpenLane) {
        let setup = target::Setup {
            host: self.ground.shared.host.clone(),
            source: from,
            migration: hello.migration,
            attempt: hello.attempt,
            guest: self.ground.id,
        };
        if let Some(Role::Target(target)) = &mut self.role {
            let known = target.setup();
            if known.attempt == setup.attempt && known.source == setup.source {
                target.lane(&mut self.ground, hello, lane);
                return;
            }
        }
        self.end_if_over();
        match self.bars(&setup.source) {
            // If the guest is only busy, the message decides: an offer is refused, a forged answer
            // raises an alarm.
            Some(fault) if fault.code != Code::Busy && !self.is_decided(&setup) => {
                self.ground.shared.refused(&setup.source, &fault);
                refuse(&lane, &fault);
            }
            _ => self.visit(setup, hello.link, lane),
        }
    }
}

fn refuse(lane: &OpenLane, fault: &Fault) {
    let refused = lane
        .socket
        .try_clone()
        .map_err(|error| Fault::new(Code::Io, error.to_string()))
        .and_then(|socket| LaneWriter::for_socket(socket, WRITE_WAIT_MAX))
        .and_then(|mut writer| {
            writer.write_message(&Message::Refused(fault.into()))?;
            writer.flush()
        });
    if let Err(fault) = refused {
        info!(%fault, "a lane could not be refused politely");
    }
}
