//! `towpath config`: check configuration files before a daemon reads them.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use towpath_daemon::config;
use towpath_daemon::problem::Problem;
use towpath_protocol::fault::{Code, Fault};

use crate::args::OutputOption;
use crate::failure::Failure;
use crate::show::{self, Format, escape};

const EXAMPLES: &str = "\
Examples:
  towpath config check /etc/towpath/migrator.toml
  towpath config check --for tunnel ./edge.toml";

/// What is to be done with configuration files.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Check a file as its daemon would: file, line, column and what to write instead.
    #[command(after_help = EXAMPLES)]
    Check(CheckOptions),
}

/// The file to check.
#[derive(Debug, Args)]
pub(crate) struct CheckOptions {
    /// The file
    file: PathBuf,
    /// Whose file it is [default: told from its keys]
    #[arg(long = "for", value_name = "DAEMON")]
    daemon: Option<Daemon>,
    #[command(flatten)]
    output: OutputOption,
}

/// Whose configuration a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Daemon {
    // The tunnel's.
    Tunnel,
    // The migrator's.
    Migrator,
}

/// A file that is right.
#[derive(Debug, Serialize)]
struct Checked<'a> {
    file: &'a Path,
    daemon: Daemon,
    valid: bool,
    /// Files it names that whoever asks may not open: they were not looked at.
    not_opened: Vec<PathBuf>,
}

impl Command {
    pub(crate) const fn format(&self) -> Format {
        match self {
            Self::Check(options) => options.output.format,
        }
    }
}

/// What to do about a file that is the other daemon's: the tunnel's, the migrator's.
const OTHERS: [&str; 2] = [
    "its keys are those of a tunnel's configuration: check it --for tunnel, or name the other file",
    "its keys are those of a migrator's configuration: check it --for migrator, or name the other file",
];

/// Does what was asked for.
pub(crate) fn run(command: Command) -> Result<(), Failure> {
    let Command::Check(options) = command;
    let text = config::read(&options.file)?;
    let daemon = match options.daemon {
        Some(daemon) => daemon,
        None => told_from(&text).ok_or_else(|| undecided(&options.file))?,
    };
    let not_opened = check(daemon, &options.file, &text).map_err(|fault| {
        match told_from(&text).filter(|other| *other != daemon) {
            Some(Daemon::Tunnel) => fault.remedy(OTHERS[0]),
            Some(Daemon::Migrator) => fault.remedy(OTHERS[1]),
            None => fault,
        }
    })?;
    let checked = Checked {
        file: &options.file,
        daemon,
        valid: true,
        not_opened,
    };
    show::show(options.output.format, "config", &checked, || {
        let file = escape(&options.file.display().to_string());
        let daemon = match daemon {
            Daemon::Tunnel => "tunnel",
            Daemon::Migrator => "migrator",
        };
        let mut text = format!("{file}: a right configuration of the {daemon}\n");
        let denied = &checked.not_opened;
        let denied: Vec<_> = denied
            .iter()
            .map(|path| escape(&path.display().to_string()))
            .collect();
        if !denied.is_empty() {
            text.push_str(&format!(
                "its certificates were not looked at, for want of rights to {}: ask as root\n",
                denied.join(", ")
            ));
        }
        text
    })
}

fn check(daemon: Daemon, file: &Path, text: &str) -> Result<Vec<PathBuf>, Fault> {
    match daemon {
        Daemon::Tunnel => super::tunnel::check(file, text),
        Daemon::Migrator => super::migrator::check(file, text).map(|()| Vec::new()),
    }
}

/// Whose file it is, by the keys at the start of its lines that only one of them has. A file that does
/// not parse has such keys too, and its owner's error is the useful one.
fn told_from(text: &str) -> Option<Daemon> {
    let has_key = |keys: &[&str]| {
        text.lines().any(|line| {
            let name = line.trim_start().trim_start_matches('[');
            let end = name.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            keys.contains(&&name[..end.unwrap_or(name.len())])
        })
    };
    let tunnel = has_key(&["peers", "services", "certificates", "admin"]);
    let migrator = has_key(&["quota", "guest_command", "trust_domain", "run_dir"]);
    match (tunnel, migrator) {
        (true, false) => Some(Daemon::Tunnel),
        (false, true) => Some(Daemon::Migrator),
        _ => None,
    }
}

fn undecided(file: &Path) -> Failure {
    let cause = format!(
        "the keys of {} are of no daemon, or of both",
        file.display()
    );
    Problem::new(Code::Usage, cause)
        .message("it is not clear whose configuration this is")
        .remedy("say it with --for tunnel or --for migrator")
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_files_owner_is_told_from_its_keys_even_if_it_does_not_parse() {
        // Both daemons keep state.
        let state = "site = \"a\"\nstate_dir = \"/x\"\n";
        assert_eq!(told_from(state), None);
        let tunnel = format!("{state}[admin]");
        assert_eq!(told_from(&tunnel), Some(Daemon::Tunnel));
        let migrator = format!("{state}trust_domain = \"a\"");
        assert_eq!(told_from(&migrator), Some(Daemon::Migrator));
        assert_eq!(told_from("[[peers]]\nsite = "), Some(Daemon::Tunnel));
        assert_eq!(told_from("  [quota]\n"), Some(Daemon::Migrator));
        assert_eq!(told_from("site = \"a\""), None);
        assert_eq!(told_from("[quota]\n[admin]"), None);
    }
}
