//! The `towpath` command as its users run it: a process with arguments, standard streams and an
//! exit status.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test says what it skips, and ends at what does not hold"
)]

#[path = "suite/commands.rs"]
mod commands;
#[path = "suite/daemons.rs"]
mod daemons;
#[path = "suite/demo.rs"]
mod demo;
#[path = "suite/guests.rs"]
mod guests;
#[path = "suite/linked.rs"]
mod linked;
#[path = "suite/measures.rs"]
mod measures;
#[path = "suite/service_manager.rs"]
mod service_manager;
#[path = "suite/support.rs"]
mod support;
#[path = "suite/tunnels.rs"]
mod tunnels;
