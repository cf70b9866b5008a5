//! The host agent: guests in motion.

pub mod codec;
pub mod journal;
pub mod lane;
pub mod store;
