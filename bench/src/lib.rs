//! The link emulator, the scenarios and their reports.
#![forbid(unsafe_code)]

pub mod lab;
pub mod processor;
pub mod relay;
pub mod seconds;
pub mod sites;
pub mod weeks;
