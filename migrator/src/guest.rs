//! A guest process, seen from the migrator: start it, find it again, drive it, and reach its memory.
//!
//! | type | what it is |
//! |---|---|
//! | [`GuestProcess`] | the controlling connection: typed calls, each with a deadline |
//! | [`GuestMemory`] | the memory file, read and written by position and never mapped: the migrator stays small whatever the guest's size |
//! | [`MissingMemory`] | the userfaultfd: which page a vCPU waits for, and its answer |

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
