//! Checks what this host supports for guests, and why not.

use towpath_protocol::fault::Fault;

/// One feature of the host that a guest may need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capability {
    /// Its name: `kvm`, `missing-pages` or `write-tracking`.
    pub name: &'static str,
    /// What guests need it for.
    pub purpose: &'static str,
    /// Why it cannot be used; `None` if it can.
    pub fault: Option<Fault>,
}

impl Capability {
    /// Whether it can be used.
    #[must_use]
    pub const fn is_usable(&self) -> bool {
        self.fault.is_none()
    }
}

/// Tries every feature that guests may need.
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
