//! `towpath migrator`: the daemon that runs this host's guests and moves them.

use std::path::Path;

use clap::Subcommand;
use towpath_daemon::config;
use towpath_migrator::config::Config;
use towpath_protocol::fault::Fault;

use crate::commands::config::{Daemon, of_started};
use crate::daemon::{self, DaemonOptions};
use crate::failure::Failure;
use crate::show::Format;

pub(crate) const EXAMPLES: &str = "\
Example:
  towpath migrator run --config /etc/towpath/migrator.toml";

const RUN_EXAMPLES: &str = "\
Examples:
  towpath migrator run --config /etc/towpath/migrator.toml
  towpath migrator run --config ./edge.toml --log info,towpath_migrator=debug";

/// The subcommands of `towpath migrator`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the migrator daemon until SIGTERM or SIGINT; its guests keep running.
    #[command(after_help = RUN_EXAMPLES)]
    Run(DaemonOptions),
}

impl Command {
    pub(crate) fn format(&self) -> Format {
        let Self::Run(options) = self;
        options.log.format()
    }
}

/// Runs a subcommand.
pub(crate) fn run(command: Command) -> Result<(), Failure> {
    let Command::Run(options) = command;
    let file = &options.config;
    let config = Config::load(file).map_err(|fault| of_started(fault, Daemon::Migrator, file))?;
    daemon::run(&options, config.log.clone(), || {
        towpath_guest::keep_files_from_children();
        towpath_migrator::run(config)
    })
}

/// Checks the text of a migrator's configuration file.
pub(crate) fn check(file: &Path, text: &str) -> Result<(), Fault> {
    config::check::<Config>(file, text).map(|_| ())
}
