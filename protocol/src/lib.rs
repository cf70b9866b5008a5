//! The protocol and the decisions of Towpath's two sides. Pure: no I/O, no clock, no randomness.
//!
//! Every state machine here has the shape of quinn-proto's: `handle(event, now)` takes an event,
//! `poll()` returns the next action, `deadline()` says when to call again if nothing happens. Time
//! and random numbers are arguments, so a machine that gets the same events at the same times does
//! the same things.
//!
//! | module | what it holds |
//! |---|---|
//! | [`identity`] | names, ids and identities, parsed once at the edge |
//! | [`amounts`] | conversions between bytes, rates and times |
//! | [`time`] | the monotonic instant that every machine is passed |
//! | [`endpoint`] | the address where a program listens on its own host |
//! | [`fault`] | errors with stable codes, grouped by who is to blame |
//! | [`size`] | a number of bytes as operators write it |
//! | [`space`] | geometry of a space, block runs, block sets |
//! | [`frame`] | the checked envelope around every message |
//! | [`class`] | classes of traffic, and the connections that carry them |
//! | [`preamble`] | the first words on a connection or a stream of the tunnel |
//! | [`version`] | version ranges and their negotiation |
//! | [`message`] | the messages between two migrators |
//! | [`guest_api`] | the messages between a migrator and a guest process |
//! | [`admission`] | quota and places for guests that come to a host |
//! | [`ownership`] | who may run a guest: epochs, attempts, the journal's states |
//! | [`image`] | what both sides hash to be sure that they have the same image |
//! | [`plan`] | which blocks go in which stage, and when to switch |
//! | [`rate`] | a rate of bytes, as operators write it |
//! | [`source`], [`target`] | the two sides of a move |
#![forbid(unsafe_code)]

pub mod admission;
pub mod amounts;
pub mod class;
pub mod endpoint;
pub mod fault;
pub mod frame;
pub mod guest_api;
pub mod identity;
pub mod image;
pub mod message;
pub mod ownership;
pub mod plan;
pub mod preamble;
pub mod rate;
pub mod size;
pub mod source;
pub mod space;
pub mod target;
pub mod time;
pub mod version;
