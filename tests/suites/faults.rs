//! Fault cases with real processes and real guests: a process dies or the link is cut.
//!
//! The numbers are those of the fault catalogue. Each case ends with the same checks:
//! [`towpath_tests::verdict`].
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test says how long each case took, and ends at what does not hold"
)]
#![forbid(unsafe_code)]

#[path = "faults/answers.rs"]
mod answers;
#[path = "faults/chunks.rs"]
mod chunks;
#[path = "faults/daemons.rs"]
mod daemons;
#[path = "faults/demands.rs"]
mod demands;
#[path = "faults/guests.rs"]
mod guests;
#[path = "faults/links.rs"]
mod links;
#[path = "faults/lost.rs"]
mod lost;
#[path = "faults/offers.rs"]
mod offers;
#[path = "faults/pairs.rs"]
mod pairs;
#[path = "faults/peers.rs"]
mod peers;
#[path = "faults/sparse.rs"]
mod sparse;
#[path = "faults/steps.rs"]
mod steps;
#[path = "faults/strays.rs"]
mod strays;
#[path = "faults/trials.rs"]
mod trials;
#[path = "faults/trust.rs"]
mod trust;
#[path = "faults/versions.rs"]
mod versions;
#[path = "faults/wishes.rs"]
mod wishes;
