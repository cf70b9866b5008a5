//! Whether guests of kind kvm can be made on this host.

use std::sync::{Mutex, PoisonError};

use towpath_protocol::fault::Fault;
use tracing::warn;

use crate::guest::{GuestCommand, probe_kvm};

/// What is known of KVM here. Its device may open and still make no machine, as in a virtual machine that lacks
/// what it takes: so a machine is made once, by the program that would make the guests.
#[derive(Debug, Default)]
pub(super) struct Kvm {
    /// Why no machine can be made, as the program of guests said when it was asked last.
    fault: Mutex<Option<Fault>>,
}

impl Kvm {
    /// Asks. A program that does not say is taken for one that can: a guest's start says the rest.
    pub(super) fn look(&self, command: Result<GuestCommand, Fault>) {
        let fault = match command.and_then(|command| probe_kvm(&command)) {
            Ok(found) => found,
            Err(fault) => {
                warn!(%fault, "it is not known whether KVM can be used");
                None
            }
        };
        if let Some(fault) = &fault {
            warn!(%fault, "guests of kind kvm cannot be made here");
        }
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }

    /// Why KVM cannot be used, if it cannot.
    pub(super) fn missing_reason(&self) -> Option<String> {
        let known = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        known
            .as_ref()
            .map(|fault| fault.detail.clone())
            .or_else(cannot_be_opened)
    }
}

fn cannot_be_opened() -> Option<String> {
    std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .err()
        .map(|error| format!("/dev/kvm: {error}"))
}
