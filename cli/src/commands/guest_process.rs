//! `towpath guest-process`: one guest. The migrator starts it; nothing may be opened before it runs.

use std::path::PathBuf;

use clap::Args;
use towpath_guest::GuestProcessOptions;

use crate::failure::Failure;

/// The guest.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The guest's folder
    #[arg(long, value_name = "FOLDER")]
    dir: PathBuf,
    /// The guest comes from elsewhere: it does not run before its state was loaded
    #[arg(long)]
    incoming: bool,
}

/// Is the guest's process.
pub(crate) fn run(options: Options) -> Result<(), Failure> {
    let Options { dir, incoming } = options;
    let options = GuestProcessOptions {
        folder: dir,
        is_incoming: incoming,
    };
    Ok(towpath_guest::run(&options)?)
}
