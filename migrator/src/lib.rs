//! The migrator: the host agent that runs guests and moves them between hosts.
//!
//! | module | what it holds |
//! |---|---|
//! | [`engine`] | one worker per guest; carries out what the machines of a move decide |
//! | [`api`] | the HTTP API on the operators' socket |
//! | [`codec`] | packing and unpacking of chunks, on separate threads |
//! | [`lane`] | frames over a stream |
//! | [`guest`] | the migrator's side of a guest process; the only unsafe code |
//! | [`journal`], [`store`] | state that survives a restart, and where it is kept |
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
