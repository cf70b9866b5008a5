//! Whole-system tests: the harness every suite shares.
#![forbid(unsafe_code)]

mod keeper;
pub mod lab;
mod process;
mod program;
pub mod simulation;
pub mod site;
