//! Finds the processes of a previous migrator's guests again, even if they are too busy to answer.
//!
//! A guest's process answers from one thread, and filling or checking a large memory occupies that
//! thread for minutes. Such a process is not dead: a thread waits for it and reports to the worker.

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

/// Wait for a process that is most likely idle. Other guests are recovered meanwhile.
const QUICK_WAIT: Duration = Duration::from_secs(10);

/// Longest wait for a process in the middle of a move, which cannot continue without it: twice the
/// longest operation it is asked for then.
const MOVE_WAIT: Duration = Duration::from_secs(60);

/// Longest wait for a process that fills or checks its guest's memory: as long as that may take.
pub(super) const BUSY_WAIT: Duration = Duration::from_secs(1000);

/// Pause before adopting a process is tried again.
pub(super) const ANEW_PAUSE: Duration = Duration::from_secs(1);

/// How long recovery waits for the process of a guest in this state.
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
    /// Keeps waiting for a process that has not answered. `false` if there is none.
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
                // The process was ended meanwhile. The one that lives there now is another, driven
                // by someone else.
                return;
            }
            let found = GuestProcess::adopt_within(&path, BUSY_WAIT);
            mailbox.send(Input::Found(Box::new(found)));
        });
        if let Err(fault) = begun {
            // Threads become available again; a guest that is given up would not.
            thread::sleep(ANEW_PAUSE);
            self.mailbox.send(Input::Found(Box::new(Err(fault))));
        }
        true
    }
}

impl Ground {
    /// A guest that may run could not be resumed. Its process is gone, or so slow to answer that it
    /// is waited for.
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
    /// Shows a guest whose process lives before asking the process anything, so that its memory
    /// counts from startup on.
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

    /// A process that was waited for has answered or ended.
    pub(super) fn found(&mut self, found: Result<GuestProcess, Fault>) {
        if self.ground.awaited.take().is_none() {
            // The process was ended meanwhile.
            return;
        }
        self.end_if_over();
        let is_committed =
            matches!(&self.role, Some(Role::Source(source)) if source.is_committed());
        if let Err(fault) = found.and_then(|process| self.ground.take_found(process)) {
            warn!(guest = %self.ground.id, %fault, "the guest's process cannot be taken up");
            if self.ground.await_process(&fault) {
                // It still does not answer.
                return;
            }
            self.ground.crash = Some(fault);
            if let Some(Role::Source(source)) = self.role.as_mut().filter(|_| is_committed) {
                drop(source.handle(&mut self.ground, Event::GuestGone));
            }
        } else if is_committed {
            // The guest's memory is available now, and its target may need blocks from it.
            self.serve_anew();
        } else if let Some(Role::Idle(ownership)) = &self.role {
            info!(guest = %self.ground.id, "the guest's process has answered");
            if let State::Owned { epoch, .. } = ownership.record().state {
                self.run(epoch);
            } else if let Err(fault) = self.ground.free_image() {
                warn!(guest = %self.ground.id, %fault, "the guest's process stays");
            }
        } else {
            // The guest that is being received into it is recovered.
            self.recover_at = Some(now());
        }
        if let Some((at, _)) = &mut self.retry {
            *at = now();
        }
    }
}
