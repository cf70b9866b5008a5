//! A guest process without the rest of the command line. Started by tests and benchmarks.

use std::ffi::OsStr;
use std::process::ExitCode;

use towpath_guest::GuestProcessOptions;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let (folder, is_incoming) = match arguments.as_slice() {
        [folder_flag, folder] if folder_flag == "--dir" => (folder, false),
        [folder_flag, folder, incoming] if folder_flag == "--dir" && is_flag(incoming) => {
            (folder, true)
        }
        _ => {
            eprintln!("usage: towpath-guest-process --dir DIR [--incoming]");
            return ExitCode::from(64);
        }
    };
    let options = GuestProcessOptions {
        folder: folder.into(),
        is_incoming,
    };
    match towpath_guest::run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("{fault}");
            ExitCode::FAILURE
        }
    }
}

fn is_flag(argument: &OsStr) -> bool {
    argument == "--incoming"
}
