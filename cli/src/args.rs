//! What can be written on the command line.

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};
use towpath_daemon::units::Span;
use towpath_protocol::channel::Class;
use towpath_protocol::fault::{Code, Fault, shown};
use towpath_protocol::rate::Rate;

use crate::commands::{
    certs, channel, completions, config, demo, forecast, guest, guest_process, man, migrate,
    migration, migrator, relay, status, tunnel,
};
use crate::daemon::DaemonOptions;
use crate::failure::{self, Exit};
use crate::show::Format;

const EXAMPLES: &str = "\
Examples:
  towpath demo                              see a running guest move to another site and back
  towpath guest start till-7 --memory 1GiB  make a guest and run it
  towpath migrate till-7 region             move it to the site `region` while it runs
  towpath migration watch                   follow the newest move
  towpath status                            the host, its links and what is under way

Exit status: 0 done, 1 failed, 2 wrong usage, 3 refused, 4 timed out, 5 blocked handover,
69 already running, 75 try again later, 130 interrupted (a move goes on).";

/// Moves running virtual machines between sites, over QUIC.
#[derive(Debug, Parser)]
#[command(name = "towpath", version, after_help = EXAMPLES)]
#[command(disable_help_subcommand = true, arg_required_else_help = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What is to be done.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show it: two sites on this machine, a guest that moves there and back.
    Demo(demo::Options),
    /// Show the host, its links and what is under way.
    Status(status::Options),
    /// Show what a link will carry, and when so many bytes would be through.
    Forecast(forecast::Options),
    /// Start, list, show and stop guests.
    #[command(subcommand, after_help = guest::EXAMPLES)]
    Guest(guest::Command),
    /// Move a guest to another site while it runs.
    Migrate(migrate::Options),
    /// List, show, watch and cancel moves.
    #[command(subcommand, after_help = migration::EXAMPLES)]
    Migration(migration::Command),
    /// Make the authority and the hosts' certificates.
    #[command(subcommand, after_help = certs::EXAMPLES)]
    Certs(certs::Command),
    /// Open, list, show and close channels between applications.
    #[command(subcommand, after_help = channel::EXAMPLES)]
    Channel(channel::Command),
    /// Run the tunnel daemon, this host's links to other sites; measure and shape them.
    #[command(subcommand, after_help = tunnel::EXAMPLES)]
    Tunnel(tunnel::Command),
    /// Run the migrator daemon: this host's guests and their moves.
    #[command(subcommand, after_help = migrator::EXAMPLES)]
    Migrator(migrator::Command),
    /// Check configuration files, and show what they come to.
    #[command(subcommand, after_help = config::EXAMPLES)]
    Config(config::Command),
    /// Print a completion script for a shell.
    Completions(completions::Options),
    /// Write the manual pages into a folder.
    Man(man::Options),
    /// One guest; the migrator starts it.
    #[command(hide = true)]
    GuestProcess(guest_process::Options),
    /// The emulated link of the demo.
    #[command(hide = true)]
    Relay(relay::Options),
}

impl Command {
    /// How this command's result, or its failure, is to be written.
    pub(crate) fn format(&self) -> Format {
        match self {
            Self::Demo(options) => options.output.format,
            Self::Status(options) => options.output.format,
            Self::Forecast(options) => options.output.format,
            Self::Guest(command) => command.format(),
            Self::Migrate(options) => options.output.format,
            Self::Migration(command) => command.format(),
            Self::Certs(command) => command.format(),
            Self::Channel(command) => command.format(),
            Self::Config(command) => command.format(),
            Self::Tunnel(command) => command.format(),
            Self::Migrator(command) => command.format(),
            Self::Completions(options) => options.output.format,
            Self::Man(options) => options.output.format,
            Self::GuestProcess(_) | Self::Relay(_) => Format::Table,
        }
    }
}

const TUNNEL_EXAMPLES: &str = "\
Example:
  towpath-tunnel --config /etc/towpath/tunnel.toml

SIGHUP has the configuration and the certificates read again; no stream is dropped.";

/// Keeps this host's links to other sites: `towpath tunnel run`, and nothing else of `towpath`.
#[derive(Debug, Parser)]
#[command(name = "towpath-tunnel", version)]
#[command(after_help = TUNNEL_EXAMPLES)]
struct TunnelArguments {
    #[command(flatten)]
    options: DaemonOptions,
}

/// How a result is written.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct OutputOption {
    /// How the result is written; json is one document with a "schema"
    #[arg(
        id = "output",
        short = 'o',
        long = "output",
        value_name = "FORMAT",
        default_value = "table"
    )]
    pub(crate) format: Format,
}

/// How a daemon logs.
#[derive(Debug, Clone, Args)]
pub(crate) struct LogOptions {
    /// Which lines are logged, as in `debug`, or `info,CRATE=debug` of one crate: towpath_tunnel, towpath_migrator
    #[arg(long, value_name = "FILTER", env = "TOWPATH_LOG")]
    pub(crate) log: Option<String>,
    /// How log lines look; json is one document a line, with a "schema" [default: what the configuration says, or
    /// table]
    #[arg(id = "output", short = 'o', long = "output", value_name = "FORMAT")]
    pub(crate) output: Option<Format>,
}

impl LogOptions {
    /// How a failure is to be written, beside the log.
    pub(crate) fn format(&self) -> Format {
        self.output.unwrap_or(Format::Table)
    }

    /// What the configuration says, unless the command line says otherwise.
    pub(crate) fn over(
        &self,
        mut configured: towpath_daemon::log::Options,
    ) -> towpath_daemon::log::Options {
        if let Some(filter) = &self.log {
            configured.filter.clone_from(filter);
        }
        match self.output {
            Some(Format::Table) => configured.format = towpath_daemon::log::Format::Text,
            Some(Format::Json) => configured.format = towpath_daemon::log::Format::Json,
            None => {}
        }
        configured
    }
}

/// A rate, or the word that there is to be none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limit(pub Option<Rate>);

impl FromStr for Limit {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        match text {
            "none" => Ok(Self(None)),
            rate => rate.parse().map(|rate| Self(Some(rate))),
        }
    }
}

/// A time within bounds.
pub(crate) fn span_within(text: &str, range: RangeInclusive<Duration>) -> Result<Span, Fault> {
    let span: Span = text.parse()?;
    if range.contains(&span.duration()) {
        return Ok(span);
    }
    let [least, most] = [range.start(), range.end()].map(|bound| Span::new(*bound));
    Err(Fault::new(
        Code::Usage,
        format!("must be {least} to {most}"),
    ))
}

/// A class by its name.
pub(crate) fn class(text: &str) -> Result<Class, Fault> {
    let found = Class::ALL.into_iter().find(|class| class.as_str() == text);
    found.ok_or_else(|| {
        let shown = shown(text);
        let classes = Class::ALL.map(Class::as_str).join(", ");
        Fault::new(Code::Usage, format!("{shown:?} is none of {classes}"))
    })
}

/// The command that the words begin with, as it is written.
fn command_of(words: impl IntoIterator<Item = OsString>) -> String {
    let mut command = Arguments::command();
    let mut name = command.get_name().to_owned();
    for word in words.into_iter().skip(1) {
        let Some(inner) = command.find_subcommand(word).cloned() else {
            break;
        };
        name = format!("{name} {}", inner.get_name());
        command = inner;
    }
    name
}

/// The command line of `towpath`, or the status to exit with: after help was shown, or a mistake.
pub(crate) fn parse() -> Result<Arguments, ExitCode> {
    Arguments::try_parse().map_err(|error| end(&error, || command_of(std::env::args_os())))
}

/// The same of `towpath-tunnel`.
pub(crate) fn parse_tunnel() -> Result<DaemonOptions, ExitCode> {
    let parsed = TunnelArguments::try_parse().map(|arguments| arguments.options);
    parsed.map_err(|error| end(&error, || "towpath-tunnel".to_owned()))
}

fn end(error: &clap::Error, command: impl Fn() -> String) -> ExitCode {
    let is_wish = matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    );
    if is_wish {
        // A closed pipe behind `towpath --help | head` is nobody's mistake.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let format = failure::format_of_words(std::env::args_os());
    failure::report_usage(error, &command(), format);
    Exit::Usage.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
        TunnelArguments::command().debug_assert();
    }

    #[test]
    fn the_command_is_told_from_words_that_are_wrong_further_on() {
        for (words, command) in [
            ("towpath guest start --mode x", "towpath guest start"),
            ("towpath migrate a b", "towpath migrate"),
            ("towpath guess", "towpath"),
            ("towpath", "towpath"),
        ] {
            let words = words.split(' ').map(OsString::from);
            assert_eq!(command_of(words), command);
        }
    }

    #[test]
    fn every_visible_command_takes_an_output_format() {
        fn check(command: &clap::Command, path: &str) -> usize {
            let path = format!("{path} {}", command.get_name());
            let inner = command.get_subcommands().filter(|one| !one.is_hide_set());
            let count: usize = inner.map(|inner| check(inner, &path)).sum();
            if command.has_subcommands() {
                return count;
            }
            let found = command.get_arguments().find(|one| one.get_id() == "output");
            let output = found.unwrap_or_else(|| panic!("{path} has no --output"));
            assert_eq!(output.get_short(), Some('o'), "{path}");
            assert_eq!(output.get_long(), Some("output"), "{path}");
            let formats = output.get_possible_values();
            let formats: Vec<_> = formats.iter().map(|format| format.get_name()).collect();
            assert_eq!(formats, ["table", "json"], "{path}");
            1
        }
        assert!(check(&Arguments::command(), "") > 30);
    }

    /// The words of a line of examples, without what a shell makes of the rest.
    fn words_of(line: &str) -> Vec<String> {
        let line = line.trim_start();
        let ends = ["  ", " > ", " && "].map(|end| line.find(end).unwrap_or(line.len()));
        let line = &line[..ends.into_iter().min().unwrap_or(line.len())];
        let quoted = line.split('\'').enumerate();
        quoted
            .flat_map(|(index, part)| match index % 2 {
                0 => part.split_whitespace().map(str::to_owned).collect(),
                _ => vec![part.to_owned()],
            })
            .collect()
    }

    #[test]
    fn every_visible_command_has_an_example_and_each_is_right() {
        fn check(command: &clap::Command, path: &str) -> usize {
            let path = format!("{path}{}", command.get_name());
            let help = command.get_after_help().map(ToString::to_string);
            let help = help.unwrap_or_else(|| panic!("{path} has no example"));
            assert!(help.starts_with("Example"), "{path}: {help}");
            let begin = format!("  {path}");
            let lines = help.lines().filter(|line| line.starts_with("  towpath"));
            let mut own = 0;
            for line in lines {
                let parsed = Arguments::try_parse_from(words_of(line));
                assert!(parsed.is_ok(), "{path}: {line}: {}", parsed.unwrap_err());
                own += usize::from(line.starts_with(&begin));
            }
            assert!(own > 0, "{path} has no example of its own");
            let inner = command.get_subcommands().filter(|one| !one.is_hide_set());
            1 + inner
                .map(|inner| check(inner, &format!("{path} ")))
                .sum::<usize>()
        }
        assert!(check(&Arguments::command(), "") > 35);
    }

    #[test]
    fn every_visible_command_stands_in_the_documentation() {
        fn check(command: &clap::Command, path: &str, document: &str) {
            let path = format!("{path}{}", command.get_name());
            let inner = command.get_subcommands().filter(|c| !c.is_hide_set());
            if !command.has_subcommands() {
                assert!(
                    document.contains(&format!("`{path}")),
                    "docs/cli.md lacks {path}"
                );
            }
            inner.for_each(|inner| check(inner, &format!("{path} "), document));
        }
        let document = include_str!("../../docs/cli.md");
        check(&Arguments::command(), "", document);
    }

    #[test]
    fn l07_names_that_begin_with_a_dash_are_refused() {
        for words in [
            ["towpath", "guest", "show", "-rf"].as_slice(),
            &["towpath", "guest", "show", "--", "-rf"],
            &["towpath", "guest", "show", "a\u{1b}[2J"],
            &["towpath", "migrate", "a", "../b"],
        ] {
            assert!(Arguments::try_parse_from(words).is_err(), "{words:?}");
        }
        assert!(Arguments::try_parse_from(["towpath", "guest", "show", "till-7"]).is_ok());
    }
}
