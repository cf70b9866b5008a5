//! `towpath config`: checks configuration files before a daemon reads them, and shows them with all
//! defaults.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use towpath_daemon::config;
use towpath_daemon::problem::Problem;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::Name;

use super::tunnel::is_not_handed_over;
use crate::args::OutputOption;
use crate::failure::Failure;
use crate::show::{self, Format, escape};

pub(crate) const EXAMPLES: &str = "\
Examples:
  towpath config check /etc/towpath/tunnel.toml   find mistakes, with line and column
  towpath config show /etc/towpath/tunnel.toml    show it with all defaults filled in";

const CHECK_EXAMPLES: &str = "\
Examples:
  towpath config check /etc/towpath/migrator.toml
  towpath config check --for tunnel ./edge.toml";

const SHOW_EXAMPLES: &str = "\
Examples:
  towpath config show /etc/towpath/tunnel.toml
  towpath config show /etc/towpath/migrator.toml -o json

The output has the paths of keys, never the keys. The settings of a running daemon may have been
changed since: `towpath tunnel shape` and `towpath channel ls` show what is in force.";

/// The subcommands of `towpath config`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Check a file as its daemon would, and show where a mistake is and how to correct it.
    #[command(after_help = CHECK_EXAMPLES)]
    Check(FileOptions),
    /// Show a file with all defaults filled in, as TOML.
    #[command(after_help = SHOW_EXAMPLES)]
    Show(FileOptions),
}

/// The arguments of the subcommands: a configuration file.
#[derive(Debug, Args)]
pub(crate) struct FileOptions {
    /// Path of the configuration file
    file: PathBuf,
    /// Daemon whose configuration it is [default: found from its keys]
    #[arg(long = "for", value_name = "DAEMON")]
    daemon: Option<Daemon>,
    #[command(flatten)]
    output: OutputOption,
}

/// The daemon that a configuration is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Daemon {
    // The tunnel's.
    Tunnel,
    // The migrator's.
    Migrator,
}

/// The result for a valid file.
#[derive(Debug, Serialize)]
struct Checked<'a> {
    file: &'a Path,
    daemon: Daemon,
    valid: bool,
    /// Files it names that the present user may not open although the daemon may. They were not
    /// checked.
    not_opened: Vec<PathBuf>,
    /// Services that no site may reach.
    closed_services: Vec<Name>,
}

/// A configuration with all defaults filled in.
#[derive(Debug, Serialize)]
struct Effective<'a> {
    file: &'a Path,
    daemon: Daemon,
    config: Filled,
}

/// The configuration of either daemon.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Filled {
    Tunnel(Box<towpath_tunnel::config::Config>),
    Migrator(Box<towpath_migrator::config::Config>),
}

impl Command {
    pub(crate) const fn format(&self) -> Format {
        match self {
            Self::Check(options) => options.output.format,
            Self::Show(options) => options.output.format,
        }
    }
}

/// Remedies for a file of the other daemon: of the tunnel, and of the migrator.
const OTHERS: [&str; 2] = [
    "its keys are those of a tunnel's configuration: use --for tunnel, or name the other file",
    "its keys are those of a migrator's configuration: use --for migrator, or name the other file",
];

/// Runs a subcommand.
pub(crate) fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Check(options) => run_check(&options),
        Command::Show(options) => run_show(&options),
    }
}

fn run_check(options: &FileOptions) -> Result<(), Failure> {
    let text = config::read(&options.file)?;
    let daemon = owner(&options.file, options.daemon, &text)?;
    let not_opened = check(daemon, &options.file, &text)
        .map_err(|fault| of_other(fault, daemon, (&options.file, &text)))?;
    let checked = Checked {
        file: &options.file,
        daemon,
        valid: true,
        not_opened,
        closed_services: match daemon {
            Daemon::Tunnel => closed_services(&options.file, &text)?,
            Daemon::Migrator => Vec::new(),
        },
    };
    show::show(options.output.format, "config", &checked, || {
        let (file, daemon) = (path(&options.file), daemon.as_str());
        let mut text = format!("{file}: a right configuration of the {daemon}\n");
        text.push_str(&not_looked_at(&checked.not_opened));
        for name in &checked.closed_services {
            text.push_str(&format!(
                "no site may reach the service {name}: its `allow` is empty\n"
            ));
        }
        text
    })
}

/// Services of a tunnel's configuration that no site may reach.
fn closed_services(file: &Path, text: &str) -> Result<Vec<Name>, Fault> {
    let config: towpath_tunnel::config::Config = config::parse(file, text)?;
    let closed = config.services.into_iter();
    let closed = closed.filter(|service| service.allow.is_empty());
    Ok(closed.map(|service| service.name).collect())
}

/// The lines that say why certificates were not checked, if they were not.
fn not_looked_at(not_opened: &[PathBuf]) -> String {
    let (absent, denied): (Vec<_>, Vec<_>) =
        not_opened.iter().partition(|file| is_not_handed_over(file));
    let list = |files: Vec<&PathBuf>| {
        let files: Vec<_> = files.into_iter().map(|file| path(file)).collect();
        (!files.is_empty()).then(|| files.join(", "))
    };
    let denied = list(denied).map(|files| format!(", for want of rights to {files}: ask as root"));
    let absent = list(absent).map(|files| format!(": {files} is there only while its unit runs"));
    let whys = [denied, absent].into_iter().flatten();
    whys.map(|why| format!("its certificates were not looked at{why}\n"))
        .collect()
}

fn run_show(options: &FileOptions) -> Result<(), Failure> {
    let file = &options.file;
    let text = config::read(file)?;
    let daemon = owner(file, options.daemon, &text)?;
    let config =
        filled(daemon, file, &text).map_err(|fault| of_other(fault, daemon, (file, &text)))?;
    let toml = toml::to_string(&config)
        .map_err(|error| Fault::new(Code::Config, format!("{}: {error}", file.display())))?;
    let effective = Effective {
        file,
        daemon,
        config,
    };
    show::show(
        options.output.format,
        "effective-config",
        &effective,
        || {
            let (file, daemon) = (path(file), daemon.as_str());
            format!("# {file}, the {daemon}'s, with every default filled in\n{toml}")
        },
    )
}

/// A path as text, with control characters escaped.
fn path(path: &Path) -> String {
    escape(&path.display().to_string())
}

impl Daemon {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Tunnel => "tunnel",
            Self::Migrator => "migrator",
        }
    }
}

/// The daemon whose file it is: as given, or found from the file's keys.
fn owner(file: &Path, said: Option<Daemon>, text: &str) -> Result<Daemon, Failure> {
    match said {
        Some(daemon) => Ok(daemon),
        None => told_from(text).ok_or_else(|| {
            // A file that is not TOML may lack the keys that decide, and its syntax has to be
            // corrected first.
            match config::parse::<toml::Table>(file, text) {
                Err(fault) => of_line(fault, file).into(),
                Ok(_) => undecided(file, text),
            }
        }),
    }
}

/// Adds a remedy to the fault of a file, in particular if the file is the other daemon's.
fn of_other(fault: Fault, daemon: Daemon, (file, text): (&Path, &str)) -> Fault {
    match told_from(text).filter(|other| *other != daemon) {
        Some(Daemon::Tunnel) => fault.remedy(OTHERS[0]),
        Some(Daemon::Migrator) => fault.remedy(OTHERS[1]),
        None => of_line(fault, file),
    }
}

/// Adds the remedy for a mistake in a line, unless the fault has a remedy already.
fn of_line(fault: Fault, file: &Path) -> Fault {
    if fault.code != Code::Config || fault.remedy.is_some() {
        return fault;
    }
    let file = file.display();
    fault.remedy(format!(
        "correct the line, then try `towpath config check {file}`"
    ))
}

/// The configuration with all defaults filled in. Files that it names are not checked.
fn filled(daemon: Daemon, file: &Path, text: &str) -> Result<Filled, Fault> {
    Ok(match daemon {
        Daemon::Tunnel => {
            let config: towpath_tunnel::config::Config = config::check(file, text)?;
            Filled::Tunnel(Box::new(config.effective()))
        }
        Daemon::Migrator => {
            let config: towpath_migrator::config::Config = config::check(file, text)?;
            Filled::Migrator(Box::new(config.effective()?))
        }
    })
}

fn check(daemon: Daemon, file: &Path, text: &str) -> Result<Vec<PathBuf>, Fault> {
    match daemon {
        Daemon::Tunnel => super::tunnel::check(file, text),
        Daemon::Migrator => super::migrator::check(file, text).map(|()| Vec::new()),
    }
}

/// Adds a remedy to the fault of a file that a daemon was started with, in particular if the file
/// is the other daemon's.
pub(crate) fn of_started(fault: Fault, daemon: Daemon, file: &Path) -> Fault {
    // If the file cannot be read, the fault says so, and the keys are unknown.
    let text = config::read(file).unwrap_or_default();
    match told_from(&text).filter(|other| *other != daemon) {
        Some(other) => {
            let (other, daemon) = (other.as_str(), daemon.as_str());
            fault.remedy(format!(
                "its keys are those of a {other}'s configuration: start the {other} with it, or name the {daemon}'s"
            ))
        }
        None => of_line(fault, file),
    }
}

/// The daemon whose file it is, found from keys at the start of lines that only one daemon has.
/// This also works for a file that does not parse, whose daemon reports the useful error.
fn told_from(text: &str) -> Option<Daemon> {
    let has_key = |keys: &[&str]| {
        text.lines().any(|line| {
            let name = line.trim_start().trim_start_matches('[');
            let end = name.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            keys.contains(&&name[..end.unwrap_or(name.len())])
        })
    };
    let tunnel = has_key(&["peers", "services", "channels", "certificates", "admin"]);
    let migrator = has_key(&["quota", "guest_command", "trust_domain", "run_dir"]);
    match (tunnel, migrator) {
        (true, false) => Some(Daemon::Tunnel),
        (false, true) => Some(Daemon::Migrator),
        _ => None,
    }
}

fn undecided(file: &Path, text: &str) -> Failure {
    let is_comment = |line: &str| line.trim().is_empty() || line.trim_start().starts_with('#');
    if text.lines().all(is_comment) {
        let cause = format!("{} says nothing: every line is a comment", file.display());
        return Problem::new(Code::Config, cause)
            .message("nothing is configured yet")
            .remedy("fill in what is commented out there")
            .into();
    }
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
    fn a_file_of_comments_alone_is_to_be_filled_in() {
        let of = |text: &str| match undecided(Path::new("m.toml"), text) {
            Failure::Problem { problem, .. } => problem.remedy,
            other => panic!("{other:?}"),
        };
        assert!(of("# site = \"a\"\n\n  # [quota]\n").contains("fill in"));
        assert!(of("site = \"a\"\n").contains("--for"));
    }

    #[test]
    fn a_file_that_is_no_toml_is_told_so_before_whose_it_is() {
        let told = |text: &str| match owner(Path::new("t.toml"), None, text) {
            Err(Failure::Problem { problem, .. }) => (problem.code, problem.cause),
            other => panic!("{other:?}"),
        };
        let (code, cause) = told("site = \"edge\"\nhost = box\n");
        assert_eq!(code, "E_CONFIG");
        assert!(cause.starts_with("t.toml:2:"), "{cause}");
        assert_eq!(told("site = \"edge\"\n").0, "E_USAGE");
    }

    #[test]
    fn a_files_owner_is_told_from_its_keys_even_if_it_does_not_parse() {
        // Both daemons have `state_dir`.
        let state = "site = \"a\"\nstate_dir = \"/x\"\n";
        assert_eq!(told_from(state), None);
        let tunnel = format!("{state}[admin]");
        assert_eq!(told_from(&tunnel), Some(Daemon::Tunnel));
        let migrator = format!("{state}trust_domain = \"a\"");
        assert_eq!(told_from(&migrator), Some(Daemon::Migrator));
        assert_eq!(told_from("[[peers]]\nsite = "), Some(Daemon::Tunnel));
        assert_eq!(told_from("  [quota]\n"), Some(Daemon::Migrator));
        assert_eq!(told_from("[[channels]]\n"), Some(Daemon::Tunnel));
        assert_eq!(told_from("site = \"a\""), None);
        assert_eq!(told_from("[quota]\n[admin]"), None);
    }
}
