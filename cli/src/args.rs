//! The command line: subcommands, options that several of them share, and value parsers.

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};
use towpath_daemon::units::Span;
use towpath_protocol::class::Class;
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
  towpath demo                              watch a running guest move to another site and back
  towpath guest start till-7 --memory 1GiB  create and run a guest
  towpath migrate till-7 region             move it to the site `region` while it runs
  towpath migration watch                   follow the newest move
  towpath status                            show this host, its links and the moves under way

Exit status: 0 done, 1 failed, 2 wrong usage, 3 refused, 4 timed out, 5 blocked handover, 6 not well (status --check),
69 already running, 75 try again later, 130 interrupted (a move goes on).";

/// Moves running virtual machines between sites, over QUIC.
#[derive(Debug, Parser)]
#[command(name = "towpath", version, after_help = EXAMPLES)]
#[command(disable_help_subcommand = true, arg_required_else_help = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The subcommands of `towpath`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a demo on this machine: two sites, and a guest that moves there and back.
    Demo(demo::Options),
    /// Show this host, its links and the moves under way.
    Status(status::Options),
    /// Forecast what a link will carry, and when a transfer of a given size would finish.
    Forecast(forecast::Options),
    /// Start, list, show and stop guests.
    #[command(subcommand, after_help = guest::EXAMPLES)]
    Guest(guest::Command),
    /// Move a guest to another site while it runs.
    Migrate(migrate::Options),
    /// List, show, watch and cancel moves.
    #[command(subcommand, after_help = migration::EXAMPLES)]
    Migration(migration::Command),
    /// Manage the certificate authority and the certificates of hosts.
    #[command(subcommand, after_help = certs::EXAMPLES)]
    Certs(certs::Command),
    /// Open, list, show and close channels between applications.
    #[command(subcommand, after_help = channel::EXAMPLES)]
    Channel(channel::Command),
    /// Run the tunnel daemon; measure and shape this host's links to other sites.
    #[command(subcommand, after_help = tunnel::EXAMPLES)]
    Tunnel(tunnel::Command),
    /// Run the migrator daemon, which runs and moves this host's guests.
    #[command(subcommand, after_help = migrator::EXAMPLES)]
    Migrator(migrator::Command),
    /// Check configuration files, and show them with every default filled in.
    #[command(subcommand, after_help = config::EXAMPLES)]
    Config(config::Command),
    /// Print a completion script for a shell.
    Completions(completions::Options),
    /// Write the manual pages into a folder.
    Man(man::Options),
    /// Run one guest; started by the migrator.
    #[command(hide = true)]
    GuestProcess(guest_process::Options),
    /// Run the emulated link of the demo.
    #[command(hide = true)]
    Relay(relay::Options),
}

impl Command {
    /// The format of this command's result, or of its failure.
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

SIGHUP reloads the configuration and the certificates; only streams of removed peers and
services are dropped.";

/// The tunnel daemon, which keeps this host's links to other sites; same as `towpath tunnel run`.
#[derive(Debug, Parser)]
#[command(name = "towpath-tunnel", version)]
#[command(after_help = TUNNEL_EXAMPLES)]
struct TunnelArguments {
    #[command(flatten)]
    options: DaemonOptions,
}

/// The `--output` option of commands that print a result.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct OutputOption {
    /// Output format; json is one document with a "schema" field
    #[arg(
        id = "output",
        short = 'o',
        long = "output",
        value_name = "FORMAT",
        default_value = "table"
    )]
    pub(crate) format: Format,
}

/// The logging options of a daemon.
#[derive(Debug, Clone, Args)]
pub(crate) struct LogOptions {
    /// Filter of log lines: `debug`, or `info,CRATE=debug` for one crate (towpath_tunnel,
    /// towpath_migrator)
    #[arg(long, value_name = "FILTER", env = "TOWPATH_LOG")]
    pub(crate) log: Option<String>,
    /// Format of log lines; json is one document per line, with a "schema" field [default: from the
    /// configuration file, or table]
    #[arg(id = "output", short = 'o', long = "output", value_name = "FORMAT")]
    pub(crate) output: Option<Format>,
}

impl LogOptions {
    /// The format of a failure that is printed beside the log.
    pub(crate) fn format(&self) -> Format {
        self.output.unwrap_or(Format::Table)
    }

    /// The configured log options, with those of the command line taking precedence.
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

/// A limit on the command line: a rate, or `none`.
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

/// Parses a time span and checks that it is in `range`.
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

/// Parses the name of a class.
pub(crate) fn class(text: &str) -> Result<Class, Fault> {
    let found = Class::ALL.into_iter().find(|class| class.as_str() == text);
    found.ok_or_else(|| {
        let shown = shown(text);
        let classes = Class::ALL.map(Class::as_str).join(", ");
        Fault::new(Code::Usage, format!("{shown:?} is none of {classes}"))
    })
}

/// Whether a command is there for our own programs alone.
pub(crate) fn is_hidden(command: &str) -> bool {
    let all = Arguments::command();
    let found = all.find_subcommand(command);
    found.is_some_and(clap::Command::is_hide_set)
}

/// The full name of the subcommand that `words` select, such as `towpath guest start`. Stops at
/// the first word that is no subcommand.
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

/// Parses the command line of `towpath`. After help or a usage error was printed it returns the
/// exit status.
pub(crate) fn parse() -> Result<Arguments, ExitCode> {
    Arguments::try_parse().map_err(|error| end(&error, || command_of(std::env::args_os())))
}

/// Parses the command line of `towpath-tunnel`, like [`parse`].
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
        // A closed pipe is no error, as in `towpath --help | head`.
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

    /// Splits a line of examples into words, without its description and any shell syntax after it.
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
