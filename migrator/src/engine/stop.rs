//! The end of the migrator: its guests run on, and none is left standing that may run.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use towpath_protocol::source::{Event, Stage};
use tracing::{info, warn};

use super::input::Input;
use super::shared::Shared;
use super::worker::{Role, Worker};

/// Longest wait for the workers: each makes one record durable and has one guest go on, which takes
/// milliseconds. What is in the middle of a longer piece of work ends as it is, as by `kill -9`.
const STOP_WAIT: Duration = Duration::from_secs(5);

/// Has every worker leave its guest to itself, and waits until they have.
pub(super) fn stop_workers(shared: &Shared) {
    let (done, all_done) = channel();
    for handle in shared.workers().values() {
        handle.mailbox.send(Input::Stop(done.clone()));
    }
    drop(done);
    // Nothing is ever put in: each worker lets go of its end when it has.
    if all_done.recv_timeout(STOP_WAIT) == Err(RecvTimeoutError::Timeout) {
        warn!("some workers are busy and end in the middle of it");
    }
}

impl Worker {
    /// Leaves the guest to itself until the next migrator. A switch that is not committed is given up as if
    /// the lanes were lost, so the guest goes on; the move begins anew with the next start.
    ///
    /// It does not return, and the worker stays known: to a source that asks now, a guest without one would
    /// look as if it had never been here.
    pub(super) fn leave(&mut self, done: Sender<()>) -> ! {
        if let Some(Role::Source(source)) = &mut self.role
            && source.stage() == Stage::Switching
        {
            info!(guest = %self.ground.id, "the switch is given up: the migrator ends");
            // What disturbs it is logged there.
            drop(source.handle(&mut self.ground, Event::LinkDown));
        }
        drop(done);
        loop {
            std::thread::park();
        }
    }
}
