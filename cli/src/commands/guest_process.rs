//! `towpath guest-process`: one guest, started by the migrator.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use towpath_guest::GuestProcessOptions;
use towpath_protocol::fault::{Code, Fault};

use crate::failure::Failure;

/// The arguments of `towpath guest-process`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Folder of the guest
    #[arg(long, value_name = "FOLDER", required_unless_present = "probe")]
    dir: Option<PathBuf>,
    /// Wait for the guest's state from another host before the guest runs
    #[arg(long)]
    incoming: bool,
    /// Print what this host offers to guests, and exit
    #[arg(long, hide = true, conflicts_with_all = ["dir", "incoming"])]
    probe: bool,
}

/// Runs the guest in this process until it ends, or probes the host.
pub(crate) fn run(options: Options) -> Result<(), Failure> {
    // The folder may be missing only with `--probe`.
    let Some(folder) = options.dir else {
        return probe();
    };
    let options = GuestProcessOptions {
        folder,
        is_incoming: options.incoming,
    };
    Ok(towpath_guest::run(&options)?)
}

/// Prints one line for each capability a guest may need: its name, and `ready` or
/// `fault CODE detail`.
fn probe() -> Result<(), Failure> {
    let mut output = std::io::stdout().lock();
    for capability in towpath_guest::probe() {
        let standing = capability.fault.map_or_else(
            || "ready".to_owned(),
            |fault| format!("fault {} {}", fault.code, fault.detail.replace('\n', " ")),
        );
        writeln!(output, "{} {standing}", capability.name)
            .map_err(|error| Fault::new(Code::Io, format!("standard output: {error}")))?;
    }
    Ok(())
}
