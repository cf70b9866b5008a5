//! The host agent: guests in motion.

pub mod guest;
