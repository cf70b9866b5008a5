//! The link emulator, the scenarios and their reports.
#![forbid(unsafe_code)]

pub mod flood;
pub mod goals;
pub mod lab;
pub mod load;
pub mod processor;
pub mod program;
pub mod random;
pub mod relay;
pub mod seconds;
pub mod sites;
pub mod waits;
pub mod weeks;
