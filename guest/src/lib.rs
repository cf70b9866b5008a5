//! One guest, one process: a small KVM machine or a tracked process, driven over a socket.
//!
//! # The process
//!
//! A migrator makes a folder (mode 0700) with a `config.json` in it and starts the guest's process on
//! it. The process is a session of its own, so that the guest outlives the migrator; it keeps the
//! memory file and the userfaultfd, so that a restarted migrator gets them back.
//!
//! | file | what it is |
//! |---|---|
//! | `config.json` | the guest's description, [`towpath_protocol::guest_api::GuestConfig`] |
//! | `guest.sock` | where it is driven, [`towpath_protocol::guest_api`]; one connection at a time, own user and root only |
//! | `guest.pid` | its process, locked as long as it lives |
//! | `guest.log` | what the process says; at 8 MiB it becomes `guest.log.1` |
//! | `console.log` | what the guest says: each line begins with nanoseconds of the monotonic clock; at 8 MiB it becomes `console.log.1` |
//!
//! On its standard output the process says one line: `ready`, or `fault CODE detail`. Asked to probe the host
//! it is no guest: it says such a line for everything that guests may need, behind its name, and ends.
//!
//! # What the guest does
//!
//! Both kinds do the same. At each tick (`heartbeat_interval_us`) the guest prints `HB <sequence>
//! <epoch>`; the sequence goes on across a move without gap or repeat, the epoch is the one its owner
//! ran it under. Then it rewrites as many pages of its working set as the rate asks for: it checks the
//! page's header, adds one to the version, and writes all 4096 bytes anew as [`pattern`] says. So
//! anybody can check every byte from outside ([`verify`]), and since each write adds one to one
//! version, the sum of all versions is the number of writes: a single stale page breaks it.
//!
//! # The KVM machine's interface to its payload
//!
//! One vCPU in long mode at privilege level 3, no interrupts used; memory is mapped so that virtual
//! addresses are offsets in the memory file ([`layout`]). The devices are memory-mapped, because level
//! 3 can reach them so on every host, and level 3 is what hosts that emulate a guest's kernel mode run
//! at full speed ([`kvm::payload`]).
//!
//! | register | access | what it is |
//! |---|---|---|
//! | 0x000 to 0x007 | bytes | the serial console, a 16550; a wide write to the first prints each byte that is not zero |
//! | 0x100 | read 32 bits | waits for the next tick; the number of pages to write, or 0xffffffff: ask again |
//! | 0x108 | read 64 bits | the epoch |
//! | 0x110 | write 32 bits | the payload reports: 0 it is done, else what it found wrong |
//!
//! Before a tick is answered the machine writes its number to the next word of the mailbox page, as a
//! device does that writes guest memory behind the dirty log's back; the payload checks that the word
//! of this tick and that of the tick before are there. The registers that carry the workload: `r13` the
//! heartbeat sequence, `r14` the position in the working set, `r12` twice the number of writes, plus
//! one while a page is being written, which then begins at `r15` and becomes version `rbx`.

use std::path::PathBuf;

use towpath_protocol::fault::Fault;

mod clock;
mod console;
mod engine;
pub mod kvm;
pub mod layout;
mod log;
mod memory;
mod pacer;
pub mod pattern;
mod plain;
mod probe;
mod process;
mod rotation;
mod runner;
mod sections;
mod server;
mod service;
mod startup;
mod userfault;
pub mod verify;
mod workload;

pub use probe::{Capability, probe};
pub use sections::reread_state;

/// How a guest's process is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestProcessOptions {
    /// The guest's folder.
    pub folder: PathBuf,
    /// Whether the guest comes from elsewhere: it refuses to run before state was loaded into it.
    pub is_incoming: bool,
}

/// Is the guest's process: returns when the guest was asked to quit.
///
/// To be called first thing in a process that does nothing else: it closes every file it finds open,
/// begins a session of its own, and takes over the standard streams.
///
/// # Errors
///
/// `E_CONFIG`, `E_LAYOUT`, `E_ALREADY_RUNNING`, `E_KVM`, `E_GUEST` or `E_IO` if the guest cannot be made, `E_PATH` if
/// something else stands in the place of one of its files.
pub fn run(options: &GuestProcessOptions) -> Result<(), Fault> {
    startup::run(options)
}
