//! The host agent: guests in motion.

pub mod api;
pub mod config;
