//! When a guest may be booted.

use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::guest_api::GuestState as ProcessState;

use super::ground::Ground;
use crate::guest::GuestProcess;

impl Ground {
    /// Refuses to boot a guest beside a process in which it may run. One whose guest has ended in it is
    /// ended first, by whoever makes another.
    ///
    /// # Errors
    ///
    /// `E_ALREADY_RUNNING` for a process that does not answer, `E_STATE` for a guest that has not ended.
    pub(super) fn expect_ended(&mut self) -> Result<(), Fault> {
        if let Some(fault) = &self.awaited {
            let path = self.path();
            if path.is_ok_and(|path| GuestProcess::lives(&path)) {
                return Err(Fault::new(Code::AlreadyRunning, fault.detail.clone()));
            }
            // It was on its way out when it was looked for, and has ended since.
            self.wait_no_more();
        }
        let Some(process) = self.process.as_mut().filter(|process| process.is_alive()) else {
            return Ok(());
        };
        match process.describe()?.state {
            // One that is only made was never told to run, or could not.
            ProcessState::Created | ProcessState::Stopped | ProcessState::Crashed { .. } => Ok(()),
            other => {
                let detail = format!("the guest has a process already, in which it is {other}");
                Err(Fault::new(Code::State, detail))
            }
        }
    }
}
