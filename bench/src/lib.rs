//! The link emulator, the scenarios and their reports.
#![forbid(unsafe_code)]

pub mod relay;
pub mod weeks;
