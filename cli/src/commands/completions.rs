//! `towpath completions`: a completion script for a shell.

use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;
use serde::Serialize;

use crate::args::{Arguments, OutputOption};
use crate::failure::Failure;
use crate::show;

const EXAMPLES: &str = "\
Examples:
  towpath completions bash > /etc/bash_completion.d/towpath
  towpath completions zsh > /usr/share/zsh/site-functions/_towpath
  towpath completions fish > ~/.config/fish/completions/towpath.fish";

/// The arguments of `towpath completions`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// Shell to print the script for
    shell: Shell,
    #[command(flatten)]
    pub(crate) output: OutputOption,
}

/// The document `towpath.v1.completions`.
#[derive(Debug, Serialize)]
struct View {
    shell: String,
    script: String,
}

/// Prints the script.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let script = script(options.shell);
    let view = View {
        shell: options.shell.to_string(),
        script: script.clone(),
    };
    show::show(options.output.format, "completions", &view, || script)
}

fn script(shell: Shell) -> String {
    let mut script = Vec::new();
    let mut command = visible(&Arguments::command());
    clap_complete::generate(shell, &mut command, "towpath", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// A copy of a command without hidden subcommands and arguments, which a script would offer like
/// all others.
fn visible(command: &Command) -> Command {
    let inner = command.get_subcommands().filter(|one| !one.is_hide_set());
    let mut shown = Command::new(command.get_name().to_owned())
        .disable_help_subcommand(command.is_disable_help_subcommand_set())
        .args(command.get_arguments().filter(|one| !one.is_hide_set()))
        .subcommands(inner.map(visible));
    if let Some(about) = command.get_about() {
        shown = shown.about(about.clone());
    }
    if let Some(version) = command.get_version() {
        shown = shown.version(version.to_owned());
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    /// Collects every command, and whether it or a command above it is hidden.
    fn names(command: &Command, is_hidden: bool, found: &mut Vec<(String, bool)>) {
        for inner in command.get_subcommands() {
            let is_hidden = is_hidden || inner.is_hide_set();
            found.push((inner.get_name().to_owned(), is_hidden));
            names(inner, is_hidden, found);
        }
    }

    #[test]
    fn scripts_offer_every_command_but_those_that_are_hidden() {
        let mut all = Vec::new();
        names(&Arguments::command(), false, &mut all);
        assert!(all.iter().any(|(_, is_hidden)| *is_hidden));
        for shell in Shell::value_variants() {
            let script = script(*shell);
            let is_word = |c: char| c.is_ascii_alphanumeric() || c == '-';
            let words: Vec<_> = script.split(|c| !is_word(c)).collect();
            for (name, is_hidden) in &all {
                // This looks at words of descriptions, too: no description contains a hidden name.
                assert_eq!(
                    words.contains(&name.as_str()),
                    !is_hidden,
                    "{shell}: {name}"
                );
            }
            assert!(!script.contains("until-stdin-closes"), "{shell}");
        }
    }
}
