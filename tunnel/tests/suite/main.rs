//! Tests of the tunnel between two sites. They are one program, because each would take half a
//! minute to compile. Tests that need a process, the processors or a network to themselves are
//! suites beside this one.
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
mod disks;
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
mod reload_peers;
mod reload_services;
mod renewals;
mod resets;
mod resume;
mod rivals;
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
