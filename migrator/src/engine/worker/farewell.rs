//! The last word about a move that its source has ended: whoever has not heard it keeps what it received for a guest
//! that does not come.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::{AttemptId, HostIdentity, MigrationId};
use towpath_protocol::message::{Hello, Lane, Message, Reason};
use towpath_protocol::time::Instant;
use towpath_protocol::version;
use tracing::{info, warn};

use super::Worker;
use crate::engine::ground::{Ground, file_name, now};
use crate::engine::input::Input;
use crate::engine::lanes::{OpenLane, join, open_all, spawn};
use crate::engine::order::Order;
use crate::lane::Incoming;

/// The file that remembers them. Not the one of the move: that begins anew with the next start.
const FAREWELLS_FILE: &str = "farewells.json";

/// Wait before it is said again to a target that could not be reached: it costs one message to the tunnel here, and
/// the target does nothing for this guest meanwhile.
const AGAIN_AFTER: Duration = Duration::from_secs(2);

/// For how long it is said: a target without lanes gives up by itself then.
const SAID_FOR: Duration = Duration::from_secs(600);

/// How long the target may take to close the lanes on which it was said.
const CLOSED_WAIT: Duration = Duration::from_secs(10);

/// Targets that are told at a time; the oldest is left to give up by itself.
const FAREWELL_COUNT_MAX: usize = 8;

/// An attempt that is over: what is on disk of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Over {
    migration: MigrationId,
    attempt: AttemptId,
    target: HostIdentity,
}

impl Over {
    fn of(order: &Order) -> Self {
        Self {
            migration: order.id,
            attempt: order.attempt,
            target: order.target.clone(),
        }
    }
}

/// One whose target may not have heard that yet.
struct Farewell {
    over: Over,
    until: Instant,
    due: Due,
}

impl Farewell {
    /// Whether it is being said to this target.
    fn is_told(&self, target: &HostIdentity) -> bool {
        self.due == Due::Saying && self.over.target == *target
    }
}

/// When a farewell is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    At(Instant),
    /// It is being said, by a thread that reports what came of it.
    Saying,
    /// Not yet: the attempt still says it itself, or a newer one may say as much.
    Held,
}

/// All of a guest's, the oldest first.
#[derive(Default)]
pub(super) struct Farewells(Vec<Farewell>);

impl Farewells {
    fn load(ground: &Ground) -> Result<Vec<Over>, Fault> {
        let Some(folder) = &ground.folder else {
            return Ok(Vec::new());
        };
        let known = folder.read_document(&file_name(FAREWELLS_FILE))?;
        Ok(known.unwrap_or_default())
    }

    /// Writes them down; where that cannot be, a start from here on knows nothing of them.
    fn save(&self, ground: &Ground) {
        let Some(folder) = &ground.folder else { return };
        let name = file_name(FAREWELLS_FILE);
        let all: Vec<&Over> = self.0.iter().map(|farewell| &farewell.over).collect();
        let saved = if all.is_empty() {
            folder.remove(&name)
        } else {
            folder.write_document(&name, &all)
        };
        if let Err(fault) = saved {
            warn!(guest = %ground.id, %fault, "a target may not hear that a move is over");
        }
    }

    /// Writes down that a move is over, while its attempt is still there to say it: a start in between must not
    /// begin it anew, and tells its target.
    pub(super) fn end_order(&mut self, ground: &Ground, order: &Order) {
        self.note_order(ground, order, Due::Held);
    }

    fn note_order(&mut self, ground: &Ground, order: &Order, due: Due) {
        self.note(Over::of(order), due);
        self.save(ground);
        Order::forget(ground);
    }

    fn note(&mut self, over: Over, due: Due) {
        self.0.retain(|known| known.over.attempt != over.attempt);
        if self.0.len() >= FAREWELL_COUNT_MAX {
            self.0.remove(0);
        }
        let until = now() + SAID_FOR;
        self.0.push(Farewell { over, until, due });
    }

    /// Those that were held are due.
    fn release(&mut self, at: Instant) {
        let held = self.0.iter_mut().filter(|one| one.due == Due::Held);
        held.for_each(|one| one.due = Due::At(at));
    }

    /// Whether one waits until another is said: a target takes the lanes of few attempts at a time, and would close
    /// those of one while it is said on them.
    fn waits(&self, farewell: &Farewell) -> bool {
        let target = &farewell.over.target;
        self.0.iter().any(|other| other.is_told(target))
    }

    /// When the next of them has to be said.
    fn next_due(&self) -> Option<Instant> {
        let times = self.0.iter().filter_map(|one| match one.due {
            Due::At(at) if !self.waits(one) => Some(at),
            _ => None,
        });
        times.min()
    }

    /// Those to say now, which count as being said from here on: one to each target, the newest first.
    fn take_due(&mut self, now: Instant) -> Vec<Over> {
        let mut taken = Vec::new();
        for index in (0..self.0.len()).rev() {
            let one = &self.0[index];
            let is_due = matches!(one.due, Due::At(at) if at <= now);
            if is_due && !self.waits(one) {
                taken.push(one.over.clone());
                self.0[index].due = Due::Saying;
            }
        }
        taken
    }
}

impl Worker {
    /// Takes up what an earlier migrator did not come to say. An order whose attempt is over by one of them is no
    /// order: where a newer attempt follows, the order says so first.
    pub(super) fn recover_farewells(&mut self) {
        let all = match Farewells::load(&self.ground) {
            Ok(all) => all,
            Err(fault) => {
                warn!(guest = %self.ground.id, %fault, "a target may not hear that a move is over");
                return;
            }
        };
        let order = Order::load(&self.ground).ok().flatten();
        if order.is_some_and(|order| all.iter().any(|over| over.attempt == order.attempt)) {
            Order::forget(&self.ground);
        }
        for over in all {
            self.farewells.note(over, Due::At(now()));
        }
        self.say_farewells();
    }

    /// Tells the target of a move that it is over, until it has heard it: now, or where the attempt itself has said
    /// so, a little later, for nobody answers that.
    pub(super) fn bid_farewell(&mut self, order: &Order, is_said: bool) {
        let due = if is_said { now() + AGAIN_AFTER } else { now() };
        self.farewells.note_order(&self.ground, order, Due::At(due));
        self.say_farewells();
    }

    /// An attempt of a move that goes on is over. Its target mostly lets go of it by itself, as soon as it is offered
    /// the guest under the newer one; if it never is, it has to be told.
    pub(super) fn hold_farewell(&mut self, former: &Order) {
        self.farewells.note(Over::of(former), Due::Held);
        self.farewells.save(&self.ground);
    }

    /// The newer attempt is over as well, and the targets of those before it may not have heard of it.
    pub(super) fn say_held_farewells(&mut self) {
        self.farewells.release(now());
        self.say_farewells();
    }

    /// An attempt has said itself that it is over, or was not over after all.
    pub(super) fn end_farewell(&mut self, attempt: AttemptId) {
        self.end_farewells(|over| over.attempt == attempt);
    }

    /// A target has decided on this attempt: it has let go of all older ones.
    pub(super) fn end_older_farewells(&mut self, target: &HostIdentity, attempt: AttemptId) {
        self.end_farewells(|over| over.target == *target && over.attempt != attempt);
    }

    fn end_farewells(&mut self, is_over: impl Fn(&Over) -> bool) {
        let before = self.farewells.0.len();
        self.farewells.0.retain(|farewell| !is_over(&farewell.over));
        if self.farewells.0.len() < before {
            self.farewells.save(&self.ground);
        }
    }

    /// When the next of them has to be said.
    pub(super) fn farewell_due(&self) -> Option<Instant> {
        self.farewells.next_due()
    }

    /// Says those that are due.
    pub(super) fn say_farewells(&mut self) {
        for over in self.farewells.take_due(now()) {
            if let Err(fault) = say(&self.ground, &over) {
                self.farewell_said(over.attempt, Err(fault));
            }
        }
    }

    /// A target has heard it, or has not.
    pub(super) fn farewell_said(&mut self, attempt: AttemptId, result: Result<(), Fault>) {
        let mut all = self.farewells.0.iter_mut();
        let Some(farewell) = all.find(|one| one.over.attempt == attempt) else {
            return;
        };
        let id = farewell.over.migration;
        match result {
            Err(fault) if may_pass(&fault) && now() < farewell.until => {
                farewell.due = Due::At(now() + AGAIN_AFTER);
                return;
            }
            Err(fault) => info!(migration = %id, %fault, "the target is not told that it is over"),
            Ok(()) => info!(migration = %id, "the target has heard that it is over"),
        }
        self.end_farewell(attempt);
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
fn say(ground: &Ground, over: &Over) -> Result<(), Fault> {
    let number = ground.new_link_number();
    let attempt = over.attempt;
    let hello = Hello {
        versions: version::OURS,
        migration: over.migration,
        attempt,
        guest: ground.id,
        lane: Lane::Control,
        link: number,
    };
    let tunnel = ground.shared.config.tunnel_socket();
    let (own, target) = (ground.shared.host.clone(), over.target.clone());
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
    let deadline = std::time::Instant::now() + CLOSED_WAIT;
    let mut readers = readers.into_iter();
    let Some((_, mut control)) = readers.find(|(lane, _)| *lane == Lane::Control) else {
        return Ok(());
    };
    loop {
        match control.next_frame_until(deadline)? {
            Incoming::End => return Ok(()),
            Incoming::Frame(frame) => {
                // Whoever refuses the lanes closes them too, and has not heard what was said on them.
                if let Message::Refused(reason) = frame.message()? {
                    return Err(reason.to_fault(Code::Refused));
                }
            }
            Incoming::Idle => {
                let detail = "the target does not close the lanes of what is over";
                return Err(Fault::new(Code::Stalled, detail));
            }
        }
    }
}
