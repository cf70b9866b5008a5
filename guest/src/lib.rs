//! One guest in one process: a small KVM machine or a tracked process, driven over a socket.
//!
//! # The process
//!
//! A migrator creates a folder (mode 0700) with a `config.json` and starts the guest's process on
//! it. The process starts its own session, so that the guest outlives the migrator. It keeps the
//! memory file and the userfaultfd, so that a restarted migrator gets them back.
//!
//! | file | what it is |
//! |---|---|
//! | `config.json` | the guest's description, [`towpath_protocol::guest_api::GuestConfig`] |
//! | `guest.sock` | the control socket, [`towpath_protocol::guest_api`]; one connection at a time, own user and root only |
//! | `guest.pid` | the process id, locked while the process lives |
//! | `guest.log` | the log of the process; at 8 MiB it becomes `guest.log.1` |
//! | `console.log` | the output of the guest: each line begins with nanoseconds of the monotonic clock; at 8 MiB it becomes `console.log.1` |
//!
//! On standard output the process prints one line: `ready`, or `fault CODE detail`. Run as a probe
//! of the host it is no guest: it prints such a line, prefixed with a name, for everything that
//! guests may need, and exits.
//!
//! # What the guest does
//!
//! Both kinds do the same. At each tick (`heartbeat_interval_us`) the guest prints `HB <sequence>
//! <epoch>`. The sequence continues across a move without gap or repeat; the epoch is the one its
//! owner runs it under. Then it rewrites as many pages of its working set as the rate asks for: it
//! checks the page's header, adds one to the version, and rewrites all 4096 bytes as [`pattern`]
//! defines. So every byte can be checked from outside ([`verify`]), and since each write adds one
//! to one version, the sum of all versions is the number of writes: a single stale page breaks it.
//!
//! # The KVM machine's interface to its payload
//!
//! One vCPU in long mode at privilege level 3, no interrupts used. Memory is mapped so that virtual
//! addresses are offsets in the memory file ([`layout`]). The devices are memory-mapped, because
//! level 3 can access such devices on every host. Level 3 is used because hosts that emulate a
//! guest's kernel mode run it at full speed ([`kvm::payload`]).
//!
//! | register | access | what it is |
//! |---|---|---|
//! | 0x000 to 0x007 | bytes | the serial console, a 16550; a wide write to the first prints each byte that is not zero |
//! | 0x100 | read 32 bits | waits for the next tick; returns the number of pages to write, or 0xffffffff: ask again |
//! | 0x108 | read 64 bits | the epoch |
//! | 0x110 | write 32 bits | the payload's report: 0 when it is done, else what it found wrong |
//!
//! Before answering a tick the machine writes the tick's number to the next word of the mailbox
//! page, like a device that writes guest memory without the dirty log seeing it. The payload checks
//! the words of this tick and the one before. Registers that carry the workload: `r13` is the
//! heartbeat sequence; `r14` the position in the working set; `r12` twice the number of writes,
//! plus one while a page is being written; that page then begins at `r15` and becomes version
//! `rbx`.

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

/// Options for starting a guest's process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestProcessOptions {
    /// The guest's folder.
    pub folder: PathBuf,
    /// Whether the guest comes from another host. It then refuses to run before state has been
    /// loaded into it.
    pub is_incoming: bool,
}

/// Runs the guest's process. Returns when the guest was asked to quit.
///
/// Meant for a process that does nothing else: it starts a new session, and takes over the standard
/// streams. Files that the process inherited stay open for as long as the guest lives, so its parent
/// first calls [`keep_files_from_children`].
///
/// # Errors
///
/// `E_CONFIG`, `E_LAYOUT`, `E_ALREADY_RUNNING`, `E_KVM`, `E_GUEST` or `E_IO` if the guest cannot be
/// made, `E_PATH` if something else is in the place of one of its files.
pub fn run(options: &GuestProcessOptions) -> Result<(), Fault> {
    startup::run(options)
}

/// Keeps the files that this process has open from the guests that it starts. A guest outlives its
/// migrator, and would hold on to a lock or a socket that the migrator's own parent left open.
///
/// Files opened by Rust's standard library are never inherited; call this once at the start, for
/// those that this process has inherited itself. The standard streams are not touched.
pub fn keep_files_from_children() {
    startup::keep_files_from_children();
}
