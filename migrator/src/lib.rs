//! The host agent: guests in motion.

pub mod api;
pub mod codec;
pub mod config;
pub mod guest;
pub mod journal;
pub mod lane;
pub mod store;
