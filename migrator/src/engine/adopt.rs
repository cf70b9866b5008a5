//! Finding the processes of an earlier migrator's guests again, also those that are too busy to answer.
//!
//! A guest's process has one thread that answers, and a large guest's first start or check keeps it from
//! that for minutes. It is no dead process: it is waited for, by a thread that reports to the worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::ownership::State;
use towpath_protocol::source::Event;
use tracing::{info, warn};

use super::ground::{Ground, now};
use super::input::Input;
use super::lanes::spawn;
use super::worker::{Role, Worker};
use crate::guest::GuestProcess;

/// Wait for a process that most likely does nothing: others have their guests shown meanwhile.
const QUICK_WAIT: Duration = Duration::from_secs(10);

/// Longest wait for one in the middle of a move, without which the move cannot go on: twice of what is the
/// longest work it is asked for then.
const MOVE_WAIT: Duration = Duration::from_secs(60);

/// Longest wait for one that fills or checks its guest's memory: as long as that may take.
pub(super) const BUSY_WAIT: Duration = Duration::from_secs(1000);

/// Pause before a process that could not be taken up is tried again.
pub(super) const ANEW_PAUSE: Duration = Duration::from_secs(1);

/// How long whoever takes a guest up again waits for its process.
pub(super) const fn wait_for(state: &State) -> Duration {
    match state {
        State::Relinquished { .. }
        | State::Prepared { .. }
        | State::Owned {
            missing_from: Some(_),
            ..
        } => MOVE_WAIT,
        _ => QUICK_WAIT,
    }
}

impl Ground {
    /// Goes on waiting for a process that has not answered; false if there is none.
    pub(super) fn await_process(&mut self, fault: &Fault) -> bool {
        let path = self.path().ok();
        let Some(path) = path.filter(|path| GuestProcess::lives(path)) else {
            return false;
        };
        info!(guest = %self.id, "the guest's process lives: it is waited for");
        self.awaited = Some(fault.clone());
        let mailbox = Arc::clone(&self.mailbox);
        let is_wanted = Arc::new(AtomicBool::new(true));
        self.adopting = Some(Arc::clone(&is_wanted));
        let begun = spawn("towpath-adopt", move || {
            thread::sleep(ANEW_PAUSE);
            if !is_wanted.load(Ordering::Acquire) {
                // It was ended meanwhile: what lives there now is another, and somebody drives it.
                return;
            }
            let found = GuestProcess::adopt_within(&path, BUSY_WAIT);
            mailbox.send(Input::Found(Box::new(found)));
        });
        if let Err(fault) = begun {
            // Threads come back; the guest would not if it were given up.
            thread::sleep(ANEW_PAUSE);
            self.mailbox.send(Input::Found(Box::new(Err(fault))));
        }
        true
    }
}

impl Ground {
    /// A guest that may run was not let go on: its process is gone, or so slow to answer that it is waited for.
    pub(super) fn not_thawed(&mut self, fault: Fault) {
        if self.process.as_ref().is_some_and(GuestProcess::is_alive) {
            self.process = None;
            self.memory = None;
            if self.await_process(&fault) {
                return;
            }
        }
        self.crash = Some(fault);
    }
}

impl Worker {
    /// Shows a guest whose process lives before that is asked anything: its memory counts from the start on.
    pub(super) fn show_unfound(&mut self) {
        if self
            .ground
            .path()
            .is_ok_and(|path| GuestProcess::lives(&path))
        {
            let fault = Fault::new(Code::Guest, "the guest's process has not answered yet");
            self.ground.awaited = Some(fault);
            self.publish();
            self.ground.awaited = None;
        }
    }

    /// A process that was waited for has answered, or has ended.
    pub(super) fn found(&mut self, found: Result<GuestProcess, Fault>) {
        if self.ground.awaited.take().is_none() {
            // It was ended meanwhile.
            return;
        }
        self.end_if_over();
        let is_committed =
            matches!(&self.role, Some(Role::Source(source)) if source.is_committed());
        if let Err(fault) = found.and_then(|process| self.ground.take_found(process)) {
            warn!(guest = %self.ground.id, %fault, "the guest's process cannot be taken up");
            if self.ground.await_process(&fault) {
                // It still says nothing.
                return;
            }
            self.ground.crash = Some(fault);
            if let Some(Role::Source(source)) = self.role.as_mut().filter(|_| is_committed) {
                drop(source.handle(&mut self.ground, Event::GuestGone));
            }
        } else if is_committed {
            // Its memory is there now, and its target may miss some of it.
            self.serve_anew();
        } else if let Some(Role::Idle(ownership)) = &self.role {
            info!(guest = %self.ground.id, "the guest's process has answered");
            if let State::Owned { epoch, .. } = ownership.record().state {
                self.run(epoch);
            } else if let Err(fault) = self.ground.free_image() {
                warn!(guest = %self.ground.id, %fault, "the guest's process stays");
            }
        } else {
            // What was received into it goes on.
            self.recover_at = Some(now());
        }
        if let Some((at, _)) = &mut self.retry {
            *at = now();
        }
    }
}
