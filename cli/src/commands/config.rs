//! `towpath config`: check configuration files before a daemon reads them, and show what they come to.

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
  towpath config check /etc/towpath/tunnel.toml   what is wrong with it, and where
  towpath config show /etc/towpath/tunnel.toml    what it comes to, defaults included";

const CHECK_EXAMPLES: &str = "\
Examples:
  towpath config check /etc/towpath/migrator.toml
  towpath config check --for tunnel ./edge.toml";

const SHOW_EXAMPLES: &str = "\
Examples:
  towpath config show /etc/towpath/tunnel.toml
  towpath config show /etc/towpath/migrator.toml -o json

It holds paths of keys, never keys. A daemon that runs may have been told otherwise since:
`towpath tunnel shape` and `towpath channel ls` show what holds there.";

/// What is to be done with configuration files.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Check a file as its daemon would: file, line, column and what to write instead.
    #[command(after_help = CHECK_EXAMPLES)]
    Check(FileOptions),
    /// Show a file with every default filled in, as TOML.
    #[command(after_help = SHOW_EXAMPLES)]
    Show(FileOptions),
}

/// A configuration file.
#[derive(Debug, Args)]
pub(crate) struct FileOptions {
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
    /// Files it names that the daemon may open and whoever asks cannot: they were not looked at.
    not_opened: Vec<PathBuf>,
    /// Services that no site may reach.
    closed_services: Vec<Name>,
}

/// A file with every default filled in.
#[derive(Debug, Serialize)]
struct Effective<'a> {
    file: &'a Path,
    daemon: Daemon,
    config: Filled,
}

/// What a daemon is told.
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

/// What to do about a file that is the other daemon's: the tunnel's, the migrator's.
const OTHERS: [&str; 2] = [
    "its keys are those of a tunnel's configuration: use --for tunnel, or name the other file",
    "its keys are those of a migrator's configuration: use --for migrator, or name the other file",
];

/// Does what was asked for.
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

/// Why certificates were not looked at, if they were not.
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

/// A path as people read it.
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

/// Whose file it is: as is said, or as its keys tell.
fn owner(file: &Path, said: Option<Daemon>, text: &str) -> Result<Daemon, Failure> {
    match said {
        Some(daemon) => Ok(daemon),
        None => told_from(text).ok_or_else(|| {
            // A file that is no TOML may lack the keys that would tell, and its mistake is what has to be mended first.
            match config::parse::<toml::Table>(file, text) {
                Err(fault) => of_line(fault, file).into(),
                Ok(_) => undecided(file, text),
            }
        }),
    }
}

/// A fault of a file, with what to do about one that is the other daemon's.
fn of_other(fault: Fault, daemon: Daemon, (file, text): (&Path, &str)) -> Fault {
    match told_from(text).filter(|other| *other != daemon) {
        Some(Daemon::Tunnel) => fault.remedy(OTHERS[0]),
        Some(Daemon::Migrator) => fault.remedy(OTHERS[1]),
        None => of_line(fault, file),
    }
}

/// A fault of a line, with what to do about it.
fn of_line(fault: Fault, file: &Path) -> Fault {
    if fault.code != Code::Config || fault.remedy.is_some() {
        return fault;
    }
    let file = file.display();
    fault.remedy(format!(
        "correct the line, then try `towpath config check {file}`"
    ))
}

/// What the file comes to. The files that it names are not looked at.
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

/// A fault of the file that a daemon is started with, with what to do about one that is the other daemon's.
pub(crate) fn of_started(fault: Fault, daemon: Daemon, file: &Path) -> Fault {
    // Whoever may not read it is told that.
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
        // Both daemons keep state.
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
