//! The program `towpath`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    towpath_cli::towpath()
}
