//! House rules that the compiler does not check: which crate may use which, what a source file may
//! contain, and that the documents match the code.
#![allow(
    clippy::print_stdout,
    reason = "a test says what it skipped and measured"
)]
#![forbid(unsafe_code)]

#[path = "tidy/dependencies.rs"]
mod dependencies;
#[path = "tidy/documents.rs"]
mod documents;
#[path = "tidy/house.rs"]
mod house;
#[path = "tidy/scan.rs"]
mod scan;
#[path = "tidy/sources.rs"]
mod sources;
#[path = "tidy/units.rs"]
mod units;
