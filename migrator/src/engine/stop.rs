//! Stops the migrator: its guests run on, and none that may run stays paused.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use towpath_protocol::source::{Event, Stage};
use tracing::{info, warn};

use super::input::Input;
use super::shared::Shared;
use super::worker::{Role, Worker};

/// Longest wait for the workers. Each makes one record durable and resumes one guest, which takes
/// milliseconds. Longer work is abandoned where it is, as by `kill -9`.
const STOP_WAIT: Duration = Duration::from_secs(5);

/// Makes every worker leave its guest, and waits until all have.
pub(super) fn stop_workers(shared: &Shared) {
    let (done, all_done) = channel();
    for handle in shared.workers().values() {
        handle.mailbox.send(Input::Stop(done.clone()));
    }
    drop(done);
    // Nothing is ever sent on it: each worker drops its sender when it has left.
    if all_done.recv_timeout(STOP_WAIT) == Err(RecvTimeoutError::Timeout) {
        warn!("some workers are busy and end in the middle of it");
    }
}

impl Worker {
    /// Leaves the guest running until the next migrator. A switch that is not committed is given up
    /// as if the lanes were lost, so the guest is resumed; the move restarts with the next
    /// migrator.
    ///
    /// Does not return, so the worker stays registered: if it did not, a source that asks now would
    /// be told that the guest was never here.
    pub(super) fn leave(&mut self, done: Sender<()>) -> ! {
        if let Some(Role::Source(source)) = &mut self.role
            && source.stage() == Stage::Switching
        {
            info!(guest = %self.ground.id, "the switch is given up: the migrator ends");
            // The handler logs any fault itself.
            drop(source.handle(&mut self.ground, Event::LinkDown));
        }
        drop(done);
        loop {
            std::thread::park();
        }
    }
}
