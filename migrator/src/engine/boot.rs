//! Decides when a guest may be booted.

use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::guest_api::GuestState as ProcessState;

use super::ground::Ground;
use crate::guest::GuestProcess;

impl Ground {
    /// Refuses to boot a guest that may still run in a process. A process whose guest has ended is
    /// allowed: it is ended when a new one is made.
    ///
    /// # Errors
    ///
    /// `E_ALREADY_RUNNING` if a process lives but does not answer, `E_STATE` if the guest has not
    /// ended.
    pub(super) fn expect_ended(&mut self) -> Result<(), Fault> {
        if let Some(fault) = &self.awaited {
            let path = self.path();
            if path.is_ok_and(|path| GuestProcess::lives(&path)) {
                return Err(Fault::new(Code::AlreadyRunning, fault.detail.clone()));
            }
            // The process has ended since it was looked for.
            self.wait_no_more();
        }
        let Some(process) = self.process.as_mut().filter(|process| process.is_alive()) else {
            return Ok(());
        };
        match process.describe()?.state {
            // A guest that is only created was never told to run, or could not.
            ProcessState::Created | ProcessState::Stopped | ProcessState::Crashed { .. } => Ok(()),
            other => {
                let detail = format!("the guest has a process already, in which it is {other}");
                Err(Fault::new(Code::State, detail))
            }
        }
    }
}
