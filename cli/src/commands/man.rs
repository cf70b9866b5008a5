//! `towpath man`: the manual pages, one for each command.

use std::fs;
use std::path::PathBuf;

use clap::{Args, CommandFactory};
use towpath_protocol::fault::{Code, Fault};

use crate::args::Arguments;
use crate::failure::Failure;

const EXAMPLES: &str = "\
Examples:
  towpath man /usr/local/share/man/man1
  towpath man . && man ./towpath-migrate.1";

/// Where to.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// The folder, made if it is missing; pages of the same names are replaced
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Writes the pages.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let folder = &options.folder;
    let written = fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(Arguments::command(), folder));
    written.map_err(|error| {
        let detail = format!("manual pages in {}: {error}", folder.display());
        Failure::from(Fault::new(Code::Io, detail))
    })
}
