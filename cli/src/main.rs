//! The `towpath` command: every daemon and every operator command is a subcommand of this one binary.
#![forbid(unsafe_code)]

mod args;
mod commands;
mod connection;
mod daemon;
mod failure;
mod follow;
mod show;

use std::process::ExitCode;

fn main() -> ExitCode {
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
