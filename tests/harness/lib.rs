//! Whole-system tests: the harness every suite shares.

pub mod simulation;
