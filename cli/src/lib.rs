//! The programs: `towpath`, in which every daemon and every operator command is a subcommand, and
//! `towpath-tunnel`, which is only the tunnel daemon.
#![forbid(unsafe_code)]

mod args;
mod commands;
mod connection;
mod daemon;
mod failure;
mod follow;
mod show;

use std::process::ExitCode;

/// Runs `towpath` with the command line of this process, and returns its exit status.
#[must_use]
pub fn towpath() -> ExitCode {
    let arguments = match args::parse() {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    let format = arguments.command.format();
    match commands::run(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(format),
    }
}

/// Runs the tunnel daemon with the command line of `towpath-tunnel`, and returns its exit status.
///
/// The program has no code for guests and moves, so that less code faces the network and the
/// daemon takes less memory.
#[must_use]
pub fn towpath_tunnel() -> ExitCode {
    let options = match args::parse_tunnel() {
        Ok(options) => options,
        Err(code) => return code,
    };
    match commands::tunnel::run_daemon(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(options.log.format()),
    }
}
