//! Farewells: telling a target that its source has ended the move. A target that was not told keeps
//! what it received for a guest that will not come.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::{AttemptId, GuestId, HostIdentity, MigrationId};
use towpath_protocol::message::{Hello, Lane, Message, Reason};
use towpath_protocol::time::Instant;
use towpath_protocol::version;
use tracing::{info, warn};

use super::Worker;
use crate::engine::ground::{Ground, file_name, new_link_number, now};
use crate::engine::input::Input;
use crate::engine::lanes::{OpenLane, join, open_all, spawn};
use crate::engine::order::Order;
use crate::engine::shared::Shared;
use crate::lane::Incoming;

/// The file that stores pending farewells. Not the move's own file, because a move found there
/// begins again after a restart.
const FAREWELLS_FILE: &str = "farewells.json";

/// Wait before another try if the target could not be reached. A try costs one message to the local
/// tunnel, and the target does nothing for this guest meanwhile.
const AGAIN_AFTER: Duration = Duration::from_secs(2);

/// For how long a farewell is tried; a target without lanes gives up by itself after that time.
const SAID_FOR: Duration = Duration::from_secs(600);

/// How long the target may take to close the lanes on which the farewell was sent.
const CLOSED_WAIT: Duration = Duration::from_secs(10);

/// Most farewells pending. The oldest beyond that is dropped; its target gives up by itself.
const FAREWELL_COUNT_MAX: usize = 8;

/// An attempt that is over, as stored on disk.
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

/// An ended attempt whose target may not know that yet.
struct Farewell {
    over: Over,
    until: Instant,
    due: Due,
}

impl Farewell {
    /// Whether a farewell is being sent to this target.
    fn is_told(&self, target: &HostIdentity) -> bool {
        self.due == Due::Saying && self.over.target == *target
    }

    /// Whether it is sent again after a try with this result.
    fn is_tried_again(&self, result: &Result<(), Fault>) -> bool {
        let may_pass = result.as_ref().is_err_and(may_pass);
        may_pass && now() < self.until
    }
}

/// Sends farewells of one guest, whether the guest's worker still runs or not.
struct Teller {
    shared: Arc<Shared>,
    guest: GuestId,
}

impl Teller {
    fn of(ground: &Ground) -> Self {
        Self {
            shared: Arc::clone(&ground.shared),
            guest: ground.id,
        }
    }

    /// Opens lanes of the attempt, sends an `Abort` and waits until the target closes the lanes.
    fn say(&self, over: &Over) -> Result<(), Fault> {
        let link = new_link_number();
        let hello = Hello {
            versions: version::OURS,
            migration: over.migration,
            attempt: over.attempt,
            guest: self.guest,
            lane: Lane::Control,
            link,
        };
        let tunnel = self.shared.config.tunnel_socket();
        let lanes = open_all(&tunnel, (&self.shared.host, &over.target), &hello)?;
        say_on(link, lanes)
    }

    /// Sends each of these farewells, the newest first, until its target has heard it or its time
    /// is over.
    fn say_until_heard(&self, mut left: Vec<Farewell>) {
        left.reverse();
        while !left.is_empty() {
            std::thread::sleep(AGAIN_AFTER);
            left.retain(|one| {
                let result = self.say(&one.over);
                let is_left = one.is_tried_again(&result);
                if !is_left {
                    log_end(&one.over, result);
                }
                is_left
            });
        }
    }
}

/// When a farewell is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    At(Instant),
    /// Being sent by a thread, which reports the result.
    Saying,
    /// Not yet: the attempt may still say it itself, or a newer attempt may make it unnecessary.
    Held,
}

/// All pending farewells of a guest, oldest first.
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

    /// Writes the farewells to disk. If that fails, they are lost with the next restart.
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

    /// Writes down that a move is over while its attempt can still say so itself. A restart in
    /// between then tells the target instead of beginning the move again.
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

    /// Makes held farewells due.
    fn release(&mut self, at: Instant) {
        let held = self.0.iter_mut().filter(|one| one.due == Due::Held);
        held.for_each(|one| one.due = Due::At(at));
    }

    /// Whether `farewell` must wait for another to the same target. A target accepts the lanes of
    /// few attempts at a time and would close those of one farewell to take those of the next.
    fn waits(&self, farewell: &Farewell) -> bool {
        let target = &farewell.over.target;
        self.0.iter().any(|other| other.is_told(target))
    }

    /// When the next farewell is due.
    fn next_due(&self) -> Option<Instant> {
        let times = self.0.iter().filter_map(|one| match one.due {
            Due::At(at) if !self.waits(one) => Some(at),
            _ => None,
        });
        times.min()
    }

    /// Takes the due farewells and marks them as being sent: one per target, newest first.
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
    /// Loads the farewells that a previous migrator did not get to send. An order whose attempt is
    /// among them is dropped: an order that continues was saved with its newer attempt before the
    /// farewell was.
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

    /// Tells the target that the move is over, until it has heard. Starts now, or a little later if
    /// the attempt itself has sent it, because that message is not acknowledged.
    pub(super) fn bid_farewell(&mut self, order: &Order, is_said: bool) {
        let due = if is_said { now() + AGAIN_AFTER } else { now() };
        self.farewells.note_order(&self.ground, order, Due::At(due));
        self.say_farewells();
    }

    /// The former attempt of a move that continues is over. Its target usually drops it when it is
    /// offered the guest under the newer attempt; if that never happens, it must be told.
    pub(super) fn hold_farewell(&mut self, former: &Order) {
        self.farewells.note(Over::of(former), Due::Held);
        self.farewells.save(&self.ground);
    }

    /// The newer attempt is over too, and the targets of earlier attempts may not have heard of it,
    /// so tell them.
    pub(super) fn say_held_farewells(&mut self) {
        self.farewells.release(now());
        self.say_farewells();
    }

    /// The attempt itself told its target, or was not over after all.
    pub(super) fn end_farewell(&mut self, attempt: AttemptId) {
        self.end_farewells(|over| over.attempt == attempt);
    }

    /// The target has answered this attempt, so it has dropped all older ones.
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

    /// When the next farewell is due.
    pub(super) fn farewell_due(&self) -> Option<Instant> {
        self.farewells.next_due()
    }

    /// Sends the due farewells.
    pub(super) fn say_farewells(&mut self) {
        for over in self.farewells.take_due(now()) {
            if let Err(fault) = say(&self.ground, &over) {
                self.farewell_said(over.attempt, Err(fault));
            }
        }
    }

    /// The target has heard a farewell, or has not.
    pub(super) fn farewell_said(&mut self, attempt: AttemptId, result: Result<(), Fault>) {
        let mut all = self.farewells.0.iter_mut();
        let Some(farewell) = all.find(|one| one.over.attempt == attempt) else {
            return;
        };
        if farewell.is_tried_again(&result) {
            farewell.due = Due::At(now() + AGAIN_AFTER);
            return;
        }
        log_end(&farewell.over, result);
        self.end_farewell(attempt);
    }

    /// Leaves the pending farewells to a thread of their own, because the guest is stopped and its
    /// worker ends. If the migrator stops too, the targets give up by themselves.
    pub(super) fn leave_farewells(&mut self) {
        let left = std::mem::take(&mut self.farewells.0);
        if left.is_empty() {
            return;
        }
        let teller = Teller::of(&self.ground);
        if let Err(fault) = spawn("towpath-farewell", move || teller.say_until_heard(left)) {
            warn!(guest = %self.ground.id, %fault, "a target may not hear that a move is over");
        }
    }
}

fn log_end(over: &Over, result: Result<(), Fault>) {
    let id = over.migration;
    match result {
        Err(fault) => info!(migration = %id, %fault, "the target is not told that it is over"),
        Ok(()) => info!(migration = %id, "the target has heard that it is over"),
    }
}

/// Whether the target may be reachable later.
const fn may_pass(fault: &Fault) -> bool {
    matches!(
        fault.code,
        Code::Unreachable | Code::Stalled | Code::Io | Code::Busy
    )
}

/// Sends a farewell on a thread of its own, which reports the result.
fn say(ground: &Ground, over: &Over) -> Result<(), Fault> {
    let (teller, over) = (Teller::of(ground), over.clone());
    let mailbox = Arc::clone(&ground.mailbox);
    spawn("towpath-farewell", move || {
        let (attempt, result) = (over.attempt, teller.say(&over));
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
                // A target that refuses the lanes closes them too, without having read the `Abort`.
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
