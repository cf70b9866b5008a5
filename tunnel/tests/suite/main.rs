//! The tunnel between two sites, by what it does: one program, for each of these would take half a minute to
//! compile. What needs a process, the processors or a network to itself is a suite of its own beside it.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "../harness/mod.rs"]
mod harness;

mod admin;
mod answers;
mod behind;
mod bench;
mod channels;
mod datagrams;
mod defaults;
mod distrust;
mod early_data;
mod first_theft;
mod forecast;
mod forged;
mod handshake;
mod incoming;
mod late;
mod links;
mod lists;
mod origins;
mod packets;
mod page;
mod pauses;
mod places;
mod probe;
mod reload;
mod renewals;
mod resets;
mod resume;
mod rotation;
mod shaping;
mod strangers;
mod streams;
mod succession;
mod superseded;
mod turns;
mod unwilling;
mod versions;
mod wire;
