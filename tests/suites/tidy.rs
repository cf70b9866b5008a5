//! The house rules that a compiler does not check: which crate may know which, what stands in a file,
//! and that the documents say what is there.
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
