//! What reaches a guest's worker over lanes: greetings, messages, and their ends.

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
use crate::engine::target_move::TargetMove;
use crate::lane::{LaneWriter, WRITE_WAIT_MAX};

/// Wait for the control lane's last word once another lane has ended: they left together.
const LAST_WORD_WAIT: Duration = Duration::from_millis(100);

/// Lanes of which one has ended.
pub(super) struct Ending {
    link: u64,
    lane: Lane,
    fault: Fault,
    /// When they are given up.
    pub(super) due: Instant,
}

impl Worker {
    pub(super) fn heard(&mut self, link: u64, lane: Lane, message: Message) {
        if !self.ground.is_current(link) {
            return;
        }
        match &mut self.role {
            Some(Role::Source(source)) => {
                let event = source::Event::Heard(lane, message);
                drop(source.handle(&mut self.ground, event));
            }
            Some(Role::Target(target)) => {
                let (guest, attempt) = (self.ground.id, target.setup().attempt);
                self.ground.shared.touched(guest, attempt);
                target.heard(&mut self.ground, lane, message);
                self.remember_arrival();
            }
            Some(Role::Idle(_)) => self.asked_again(lane, message),
            _ => {}
        }
    }

    /// A move is over here, and its source has missed our last word.
    fn asked_again(&mut self, lane: Lane, message: Message) {
        match message {
            Message::Ping(nonce) => self.ground.send(Lane::Control, &Message::Pong(nonce)),
            Message::Prepare(_) | Message::Commit(..) => {
                let Some(setup) = self.ended_target.clone() else {
                    return;
                };
                let Some(Role::Idle(ownership)) = self.role.take() else {
                    unreachable!("the caller looked");
                };
                let mut target = TargetMove::begin(&self.ground, ownership, setup);
                target.handle(&mut self.ground, target::Event::LinkUp);
                target.heard(&mut self.ground, lane, message);
                self.role = Some(Role::Target(Box::new(target)));
            }
            _ => {}
        }
    }

    fn remember_arrival(&self) {
        let (Some(Role::Target(target)), Some(folder)) = (&self.role, &self.ground.folder) else {
            return;
        };
        if self.arrival() == Some(target.setup().migration) {
            return;
        }
        let text = serde_json::to_vec(&target.setup().migration).expect("an id always serialises");
        if let Err(fault) = folder.write(&file_name(ARRIVAL_FILE), &text) {
            warn!(%fault, "the move's id is not remembered");
        }
    }

    /// A lane ended. The lanes are closed together, and the peer's last word on the control lane may
    /// still be on its way when another one ends.
    pub(super) fn lane_lost(&mut self, link: u64, lane: Lane, fault: &Fault) {
        if !self.ground.is_current(link) {
            return;
        }
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

    /// Gives lanes up whose control lane has nothing more to say.
    pub(super) fn end_lanes_if_due(&mut self) {
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
            Some(Role::Target(target)) => {
                target.lane_ended(&mut self.ground, fault);
                if target.is_blank() {
                    self.end_target();
                }
            }
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
            if known.source != setup.source && !target.is_blank() {
                let (other, known) = (&setup.source, &known.source);
                let detail = format!("{other} offers a guest that {known} is sending");
                let fault = Fault::new(Code::DoubleOffer, detail);
                self.ground.shared.refused(other, &fault);
                refuse(&lane, &fault);
                return;
            }
            let is_replaced =
                known.source == setup.source && target.stage() != target::Stage::Running;
            if is_replaced {
                let detail = "a newer attempt took the place of this one";
                let replaced = target::Event::Failed(Fault::new(Code::ImageLost, detail));
                target.handle(&mut self.ground, replaced);
                self.end_target();
            }
        }
        match self.role.take() {
            Some(Role::Idle(ownership)) => {
                let mut target = TargetMove::begin(&self.ground, ownership, setup);
                target.lane(&mut self.ground, hello, lane);
                self.role = Some(Role::Target(Box::new(target)));
            }
            other => {
                self.role = other;
                let detail = "the guest is busy with another move here";
                refuse(&lane, &Fault::new(Code::Busy, detail));
            }
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
