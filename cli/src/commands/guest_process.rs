//! `towpath guest-process`: one guest. The migrator starts it; nothing may be opened before it runs.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use towpath_guest::GuestProcessOptions;
use towpath_protocol::fault::{Code, Fault};

use crate::failure::Failure;

/// The guest.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The guest's folder
    #[arg(long, value_name = "FOLDER", required_unless_present = "probe")]
    dir: Option<PathBuf>,
    /// The guest comes from elsewhere: it does not run before its state was loaded
    #[arg(long)]
    incoming: bool,
    /// Say what this host offers to guests, and be none
    #[arg(long, hide = true, conflicts_with_all = ["dir", "incoming"])]
    probe: bool,
}

/// Is the guest's process.
pub(crate) fn run(options: Options) -> Result<(), Failure> {
    // Without a folder it was asked to look at the host: the arguments allow nothing else.
    let Some(folder) = options.dir else {
        return probe();
    };
    let options = GuestProcessOptions {
        folder,
        is_incoming: options.incoming,
    };
    Ok(towpath_guest::run(&options)?)
}

/// Says one line for each thing a guest may need: its name, and `ready` or `fault CODE detail`.
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
