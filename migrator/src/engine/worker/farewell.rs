//! The last word about a move that its source has ended: whoever has not heard it keeps what it received for a guest
//! that does not come.

use std::sync::Arc;
use std::time::Duration;

use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::AttemptId;
use towpath_protocol::message::{Hello, Lane, Message, Reason};
use towpath_protocol::time::Instant;
use towpath_protocol::version;
use tracing::info;

use super::Worker;
use crate::engine::ground::{Ground, now};
use crate::engine::input::Input;
use crate::engine::lanes::{OpenLane, join, open_all, spawn};
use crate::engine::order::Order;
use crate::lane::Incoming;

/// Wait before it is said again to a target that could not be reached: it costs one message to the tunnel here, and
/// the target does nothing for this guest meanwhile.
const AGAIN_AFTER: Duration = Duration::from_secs(2);

/// Times it is said: for as long as a target without lanes waits for them before it gives up by itself.
const SAID_COUNT_MAX: u32 = 300;

/// A move whose target has not heard yet that it is over.
pub(super) struct Farewell {
    order: Box<Order>,
    said_count: u32,
    /// When it is said again; none while it is being said.
    again_at: Option<Instant>,
}

impl Worker {
    /// Tells the target of a move that it is over, now and until it has heard it. Whatever begins meanwhile comes
    /// first: the target of a newer attempt lets go of an older one by itself.
    pub(super) fn bid_farewell(&mut self, order: Box<Order>) {
        self.farewell = Some(Farewell {
            order,
            said_count: 0,
            again_at: Some(now()),
        });
        self.say_farewell();
    }

    /// When it has to be said again.
    pub(super) fn farewell_due(&self) -> Option<Instant> {
        self.farewell.as_ref()?.again_at
    }

    pub(super) fn say_farewell(&mut self) {
        let Some(farewell) = &mut self.farewell else {
            return;
        };
        if farewell.again_at.is_none_or(|at| at > now()) {
            return;
        }
        farewell.said_count += 1;
        farewell.again_at = None;
        if let Err(fault) = say(&self.ground, &farewell.order) {
            farewell.again_at = Some(now() + AGAIN_AFTER);
            info!(migration = %farewell.order.id, %fault, "the target is not told that it is over");
        }
    }

    /// The target has heard it, or has not.
    pub(super) fn farewell_said(&mut self, attempt: AttemptId, result: Result<(), Fault>) {
        let Some(farewell) = &mut self.farewell else {
            return;
        };
        if farewell.order.attempt != attempt {
            return;
        }
        let id = farewell.order.id;
        match result {
            Err(fault) if may_pass(&fault) && farewell.said_count < SAID_COUNT_MAX => {
                farewell.again_at = Some(now() + AGAIN_AFTER);
                return;
            }
            Err(fault) => info!(migration = %id, %fault, "the target is not told that it is over"),
            Ok(()) => info!(migration = %id, "the target has heard that it is over"),
        }
        self.farewell = None;
        Order::forget(&self.ground);
    }
}

/// Whether the target may be there later.
const fn may_pass(fault: &Fault) -> bool {
    matches!(
        fault.code,
        Code::Unreachable | Code::Stalled | Code::Io | Code::Busy
    )
}

/// Opens lanes of the attempt, says that it is over, and waits until the target closes them.
fn say(ground: &Ground, order: &Order) -> Result<(), Fault> {
    let number = ground.new_link_number();
    let attempt = order.attempt;
    let hello = Hello {
        versions: version::OURS,
        migration: order.id,
        attempt,
        guest: ground.id,
        lane: Lane::Control,
        link: number,
    };
    let tunnel = ground.shared.config.tunnel_socket();
    let (own, target) = (ground.shared.host.clone(), order.target.clone());
    let mailbox = Arc::clone(&ground.mailbox);
    spawn("towpath-farewell", move || {
        let opened = open_all(&tunnel, (&own, &target), &hello);
        let result = opened.and_then(|lanes| say_on(number, lanes));
        mailbox.send(Input::FarewellSaid { attempt, result });
    })
}

fn say_on(number: u64, lanes: Vec<OpenLane>) -> Result<(), Fault> {
    let (mut link, readers) = join(number, lanes)?;
    let over = Fault::new(Code::Cancelled, "the source ended the attempt");
    link.send(Lane::Control, &Message::Abort(Reason::from(&over)))?;
    let mut readers = readers.into_iter();
    let Some((_, mut control)) = readers.find(|(lane, _)| *lane == Lane::Control) else {
        return Ok(());
    };
    loop {
        match control.next_frame()? {
            Incoming::End => return Ok(()),
            Incoming::Frame(_) => {}
            Incoming::Idle => {
                let detail = "the target does not close the lanes of what is over";
                return Err(Fault::new(Code::Stalled, detail));
            }
        }
    }
}
