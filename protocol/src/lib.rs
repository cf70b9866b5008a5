//! What Towpath's sides say to each other and how they decide. Pure: no I/O, no clock, no randomness.
//!
//! Every machine here has one shape, taken from quinn-proto's contract: `handle(event, now)` takes
//! what happened, `poll()` gives the next thing to do, `deadline()` says when to come back if nothing
//! happens. Time is an argument, random numbers are arguments, and a machine that is given the same
//! events at the same times does the same things.
//!
//! | module | what it holds |
//! |---|---|
//! | [`identity`] | names, ids and identities, parsed once at the edge |
//! | [`time`] | the monotonic instant every machine is handed |
//! | [`endpoint`] | where a program listens on its own host |
//! | [`fault`] | errors sorted by whose fault they are, with stable codes |
//! | [`size`] | a number of bytes as operators write it |
//! | [`space`] | geometry of a space, block runs, block sets |
//! | [`frame`] | the checked envelope around every message |
//! | [`channel`] | how a local program asks the tunnel for a stream, and the classes |
//! | [`version`] | version ranges and their negotiation |
//! | [`message`] | every message between two migrators, with its bytes |
//! | [`guest_api`] | every message between a migrator and a guest process |
//! | [`admission`] | whom a target lets begin to send a guest |
//! | [`ownership`] | who may run: epochs, attempts, the journal's states |
//! | [`image`] | what both sides hash to be sure of the same image |
//! | [`plan`] | which blocks go in which stage, and when to switch |
//! | [`rate`] | a rate of bytes, as operators write it |
//! | [`source`], [`target`] | the two sides of a move |
#![forbid(unsafe_code)]

pub mod admission;
pub mod channel;
pub mod endpoint;
pub mod fault;
pub mod frame;
pub mod guest_api;
pub mod identity;
pub mod image;
pub mod message;
pub mod ownership;
pub mod plan;
pub mod rate;
pub mod size;
pub mod source;
pub mod space;
pub mod target;
pub mod time;
pub mod version;
