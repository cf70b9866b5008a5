//! The host agent: guests in motion.

pub mod api;
pub mod codec;
pub mod config;
