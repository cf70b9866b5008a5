//! The host agent: guests in motion.
//!
//! | module | what it holds |
//! |---|---|
//! | [`engine`] | one worker per guest: carries out what the machines of a move decide |
//! | [`api`] | the HTTP API on the operators' socket |
//! | [`codec`] | packing and unpacking of chunks, on threads of their own |
//! | [`lane`] | frames over a stream |
//! | [`guest`] | a guest process seen from here; the only unsafe code |
//! | [`journal`], [`store`] | what survives a restart, and where it lies |
//! | [`config`] | the configuration file |

pub mod api;
pub mod codec;
pub mod config;
pub mod engine;
pub mod guest;
pub mod journal;
pub mod lane;
pub mod store;

pub use engine::run;
