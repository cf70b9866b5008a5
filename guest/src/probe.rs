//! What this host offers to guests, and why not.

use towpath_protocol::fault::Fault;

/// One thing a guest may need of its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capability {
    /// What it is: `kvm`, `missing-pages` or `write-tracking`.
    pub name: &'static str,
    /// What it is for.
    pub purpose: &'static str,
    /// Why it cannot be used, if it cannot.
    pub fault: Option<Fault>,
}

impl Capability {
    /// Whether it can be used.
    #[must_use]
    pub const fn is_usable(&self) -> bool {
        self.fault.is_none()
    }
}

/// Tries everything guests may need of this host.
#[must_use]
pub fn probe() -> Vec<Capability> {
    vec![
        Capability {
            name: "kvm",
            purpose: "guests of kind kvm",
            fault: crate::kvm::probe().err(),
        },
        Capability {
            name: "missing-pages",
            purpose: "post-copy of guests of kind kvm",
            fault: crate::userfault::probe_missing().err(),
        },
        Capability {
            name: "write-tracking",
            purpose: "live migration of guests of kind process",
            fault: crate::userfault::probe_writes().err(),
        },
    ]
}
