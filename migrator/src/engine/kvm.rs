//! Finds out whether guests of kind `kvm` can be created on this host.

use parking_lot::Mutex;
use towpath_protocol::fault::Fault;
use tracing::warn;

use crate::guest::{GuestCommand, probe_kvm};

/// The state of KVM here. `/dev/kvm` may open and still make no machine, for example inside a
/// virtual machine without the needed features. So the guest program, which would make the guests,
/// is asked to make a machine once.
#[derive(Debug, Default)]
pub(super) struct Kvm {
    /// Why no machine can be made, by the guest program's last answer.
    fault: Mutex<Option<Fault>>,
}

impl Kvm {
    /// Asks the guest program. If it gives no answer, KVM counts as usable: starting a guest will
    /// show.
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
        *self.fault.lock() = fault;
    }

    /// Why KVM cannot be used, if it cannot.
    pub(super) fn missing_reason(&self) -> Option<String> {
        let known = self.fault.lock();
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
