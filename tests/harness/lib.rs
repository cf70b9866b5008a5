//! Whole-system tests: the harness every suite shares.
#![forbid(unsafe_code)]

pub mod answerer;
pub mod away;
pub mod console;
pub mod contention;
pub mod crash;
pub mod cut;
pub mod hosts;
pub mod journals;
mod keeper;
pub mod killed;
pub mod lab;
pub mod meddler;
pub mod peer;
mod process;
mod program;
pub mod random;
pub mod scene;
pub mod simulation;
pub mod site;
pub mod steps;
pub mod stolen;
pub mod trial;
pub mod verdict;
pub mod watch;
