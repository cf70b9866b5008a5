//! The migrator's side of a guest process: starts it, finds it again, drives it, reads its memory.
//!
//! | type | what it is |
//! |---|---|
//! | [`GuestProcess`] | the controlling connection: typed calls, each with a deadline |
//! | [`GuestMemory`] | the memory file, read and written by offset and never mapped, so the migrator stays small whatever the guest's size |
//! | [`MissingMemory`] | the userfaultfd: reports which page a vCPU waits for and installs it |

mod memory;
mod missing;
mod plain;
mod probe;
mod process;
mod transport;

pub use memory::GuestMemory;
pub use missing::{Installed, MissingMemory};
pub use probe::probe_kvm;
pub(crate) use process::{END_WAIT, READY_WAIT, RUN_WAIT, VERIFY_WAIT, WORK_WAIT};
pub use process::{GuestCommand, GuestProcess};
