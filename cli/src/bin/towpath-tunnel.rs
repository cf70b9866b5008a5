//! The program `towpath-tunnel`, which the tunnel's unit starts.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    towpath_cli::towpath_tunnel()
}
