//! `towpath completions`: a completion script for a shell.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::args::Arguments;
use crate::failure::Failure;
use crate::show;

const EXAMPLES: &str = "\
Examples:
  towpath completions bash > /etc/bash_completion.d/towpath
  towpath completions zsh > /usr/share/zsh/site-functions/_towpath
  towpath completions fish > ~/.config/fish/completions/towpath.fish";

/// The shell.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// The shell
    shell: Shell,
}

/// Prints the script.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let mut script = Vec::new();
    let mut command = Arguments::command();
    clap_complete::generate(options.shell, &mut command, "towpath", &mut script);
    show::write(&String::from_utf8_lossy(&script))
}
