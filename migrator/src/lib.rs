//! The host agent: guests in motion.

pub mod codec;
pub mod api;
pub mod config;
