//! Whole-system tests: the harness every suite shares.
#![forbid(unsafe_code)]

pub mod simulation;
