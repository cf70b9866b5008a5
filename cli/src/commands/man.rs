//! `towpath man`: the manual pages, one for each command.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Arg, Args, Command, CommandFactory};
use clap_mangen::Man;
use serde::Serialize;
use towpath_protocol::fault::{Code, Fault};

use crate::args::{Arguments, OutputOption};
use crate::failure::Failure;
use crate::show;

const EXAMPLES: &str = "\
Examples:
  towpath man /usr/local/share/man/man1
  towpath man . && man ./towpath-migrate.1";

/// What the exit statuses mean, as in docs/cli.md.
const EXIT_STATUSES: [(u8, &str); 10] = [
    (0, "done"),
    (
        1,
        "failed; also a certificate that cannot be used, which may be good later",
    ),
    (2, "wrong usage, or a wrong configuration"),
    (3, "refused before anything was changed"),
    (4, "not finished in time; it goes on"),
    (
        5,
        "a blocked handover: a guest is held between two hosts that cannot talk",
    ),
    (
        6,
        "a link or a channel that `towpath status --check` looks at is not well",
    ),
    (69, "the daemon is already running"),
    (75, "try again later"),
    (130, "interrupted; a move goes on"),
];

/// The arguments of `towpath man`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// Folder to write to, created if it is missing; pages of the same names are replaced
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    #[command(flatten)]
    pub(crate) output: OutputOption,
}

/// The document `towpath.v1.man`.
#[derive(Debug, Serialize)]
struct View {
    /// The files written.
    pages: Vec<PathBuf>,
}

/// Writes the pages of all visible commands.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let folder = &options.folder;
    let mut command = Arguments::command();
    command.build();
    let mut pages = Vec::new();
    let written =
        fs::create_dir_all(folder).and_then(|()| write_pages(&command, None, (folder, &mut pages)));
    written.map_err(|error| {
        let detail = format!("manual pages in {}: {error}", folder.display());
        Failure::from(Fault::new(Code::Io, detail))
    })?;
    // As text, the command prints nothing: the pages are where they were asked for.
    show::show(options.output.format, "man", &View { pages }, String::new)
}

fn write_pages(
    command: &Command,
    parent: Option<&str>,
    (folder, pages): (&Path, &mut Vec<PathBuf>),
) -> io::Result<()> {
    let name = name(command);
    for inner in command.get_subcommands().filter(|one| !one.is_hide_set()) {
        write_pages(inner, Some(name), (folder, pages))?;
    }
    let path = folder.join(format!("{name}.1"));
    fs::write(&path, page(command, parent)?)?;
    pages.push(path);
    Ok(())
}

/// A page's name, as in `towpath-guest-start`.
fn name(command: &Command) -> &str {
    command
        .get_display_name()
        .unwrap_or_else(|| command.get_name())
}

/// The page of a command. `parent` names the page of the command of which it is a subcommand.
fn page(command: &Command, parent: Option<&str>) -> io::Result<Vec<u8>> {
    let man = Man::new(command.clone())
        .source(concat!("towpath ", env!("CARGO_PKG_VERSION")))
        .manual("Towpath");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    page.extend(synopsis(command).as_bytes());
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.get_subcommands().any(|one| !one.is_hide_set()) {
        man.render_subcommands_section(&mut page)?;
    }
    let help = command.get_after_help().map(ToString::to_string);
    page.extend(after_help(&help.unwrap_or_default()).as_bytes());
    page.extend(exit_statuses().as_bytes());
    page.extend(environment(command).as_bytes());
    page.extend(files(command).as_bytes());
    if let Some(parent) = parent {
        page.extend(see_also(parent).as_bytes());
    }
    Ok(page)
}

/// A command's words, with the values of its options; what may be left out stands in brackets.
fn synopsis(command: &Command) -> String {
    let bold = |text: &str| format!("\\fB{}\\fR", escaped(text));
    let mut words = vec![bold(
        command.get_bin_name().unwrap_or_else(|| name(command)),
    )];
    let is_shown =
        |one: &&Arg| !one.is_hide_set() && !["help", "version"].contains(&one.get_id().as_str());
    let (positionals, options): (Vec<_>, Vec<_>) = command
        .get_arguments()
        .filter(is_shown)
        .partition(|one| one.is_positional());
    let bracketed = |one: &Arg, text: String| match one.is_required_set() {
        true => text,
        false => format!("[{text}]"),
    };
    for option in options {
        let name = match (option.get_long(), option.get_short()) {
            (Some(long), _) => format!("--{long}"),
            (None, Some(short)) => format!("-{short}"),
            (None, None) => continue,
        };
        let value = option.get_action().takes_values().then(|| values(option));
        let text = value.map_or_else(|| bold(&name), |value| format!("{} {value}", bold(&name)));
        words.push(bracketed(option, text));
    }
    words.extend(
        positionals
            .into_iter()
            .map(|one| bracketed(one, values(one))),
    );
    if command.get_subcommands().any(|one| !one.is_hide_set()) {
        words.push("\\fICOMMAND\\fR".to_owned());
    }
    format!(".SH SYNOPSIS\n{}\n", words.join(" "))
}

/// The values that an argument takes.
fn values(argument: &Arg) -> String {
    let names = argument.get_value_names().unwrap_or_default().iter();
    let names: Vec<_> = names
        .map(|name| format!("\\fI{}\\fR", escaped(name)))
        .collect();
    names.join(" ")
}

/// Converts the text below a command's help. Indented lines are commands and keep their layout.
fn after_help(help: &str) -> String {
    let mut text = String::new();
    let mut has_notes = false;
    // The exit statuses have a section of their own.
    let paragraphs = help
        .split("\n\n")
        .filter(|part| !part.is_empty() && !part.starts_with("Exit status"));
    for paragraph in paragraphs {
        let (title, lines) = match paragraph.split_once('\n') {
            Some((first, rest)) if first.starts_with("Example") => (".SH EXAMPLES\n", rest),
            _ if has_notes => (".PP\n", paragraph),
            _ => {
                has_notes = true;
                (".SH NOTES\n", paragraph)
            }
        };
        text.push_str(title);
        let mut is_set_in = false;
        for line in lines.lines() {
            if is_set_in != line.starts_with("  ") {
                is_set_in = !is_set_in;
                text.push_str(if is_set_in {
                    ".PP\n.nf\n"
                } else {
                    ".fi\n.PP\n"
                });
            }
            text.push_str(&escaped(line));
            text.push('\n');
        }
        if is_set_in {
            text.push_str(".fi\n");
        }
    }
    text
}

fn exit_statuses() -> String {
    let mut text = ".SH EXIT STATUS\n".to_owned();
    for (status, meaning) in EXIT_STATUSES {
        text.push_str(&item(&status.to_string(), meaning));
    }
    text
}

/// The section on the environment variables that a command reads.
fn environment(command: &Command) -> String {
    let mut text = ".SH ENVIRONMENT\n".to_owned();
    for option in command.get_arguments().filter(|one| !one.is_hide_set()) {
        if let (Some(variable), Some(long)) = (option.get_env(), option.get_long()) {
            let meaning = format!("stands in for --{long}");
            text.push_str(&item(&variable.to_string_lossy(), &meaning));
        }
    }
    text.push_str(&item("NO_COLOR", "no colours, if it is set to anything"));
    text
}

/// The section on the files that a command uses by default; empty if there are none.
fn files(command: &Command) -> String {
    let mut text = String::new();
    for option in command.get_arguments().filter(|one| !one.is_hide_set()) {
        let named = option.get_default_values().iter();
        let named = named.map(|value| value.to_string_lossy());
        for file in named.filter(|value| value.starts_with('/')) {
            let long = option.get_long().unwrap_or_default();
            text.push_str(&item(&file, &format!("unless --{long} names another")));
        }
    }
    if text.is_empty() {
        text
    } else {
        format!(".SH FILES\n{text}")
    }
}

fn see_also(parent: &str) -> String {
    let mut text = ".SH SEE ALSO\n".to_owned();
    // Writing to a String cannot fail.
    let _ = write!(text, "\\fB{}\\fR(1)", escaped(parent));
    if parent != "towpath" {
        text.push_str(", \\fBtowpath\\fR(1)");
    }
    text.push('\n');
    text
}

fn item(term: &str, meaning: &str) -> String {
    format!(".TP\n\\fB{}\\fR\n{}\n", escaped(term), escaped(meaning))
}

/// Escapes a line so that roff shows it as it is.
fn escaped(line: &str) -> String {
    let plain = line
        .replace('\\', "\\e")
        .replace('-', "\\-")
        .replace('\'', "\\(aq");
    if plain.starts_with('.') {
        return format!("\\&{plain}");
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::show::Format;

    fn pages() -> Vec<(String, String)> {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("man1");
        run(&Options {
            folder: folder.clone(),
            output: OutputOption {
                format: Format::Table,
            },
        })
        .unwrap();
        let files = fs::read_dir(&folder).unwrap().map(Result::unwrap);
        files
            .map(|file| {
                let name = file.file_name().into_string().unwrap();
                (name, fs::read_to_string(file.path()).unwrap())
            })
            .collect()
    }

    #[test]
    fn pages_keep_their_examples_and_say_what_scripts_need() {
        let pages = pages();
        assert!(pages.len() > 30, "{}", pages.len());
        for (name, page) in &pages {
            assert!(
                page.contains(concat!("\"towpath ", env!("CARGO_PKG_VERSION"), "\"")),
                "{name}"
            );
            for section in ["EXIT STATUS", "ENVIRONMENT"] {
                assert!(
                    page.contains(&format!(".SH {section}\n")),
                    "{name}: {section}"
                );
            }
            assert!(!page.contains(".SH EXTRA"), "{name}");
            if name == "towpath-channel-ls.1" {
                let files = page.split(".SH FILES\n").nth(1).unwrap();
                assert!(files.contains("fB/run/towpath/"), "{files}");
            }
            let is_first = name == "towpath.1";
            assert_eq!(page.contains(".SH SEE ALSO"), !is_first, "{name}");
        }
        let page = |wanted: &str| {
            let mut found = pages.iter().filter(|(name, _)| name == wanted);
            found.next().unwrap().1.clone()
        };
        let migrate = page("towpath-migrate.1");
        let example = ".nf\n  towpath migrate till\\-7 region                      rounds";
        assert!(
            migrate.contains(".SH EXAMPLES\n") && migrate.contains(example),
            "{migrate}"
        );
        assert!(migrate.contains("\\fBTOWPATH_SOCKET\\fR\n"), "{migrate}");
        let open = page("towpath-channel-open.1");
        let synopsis = open.split(".SH SYNOPSIS\n").nth(1).unwrap();
        let synopsis = synopsis.lines().next().unwrap();
        for words in [
            "\\fBtowpath channel open\\fR ",
            " \\fB\\-\\-listen\\fR \\fIENDPOINT\\fR ",
            " [\\fB\\-\\-expires\\fR \\fITIME\\fR] ",
            " \\fINAME\\fR",
        ] {
            assert!(synopsis.contains(words), "{words}: {synopsis}");
        }
        assert!(migrate.contains(".SH NOTES\nCtrl\\-C ends"), "{migrate}");
        assert!(page("towpath-guest-start.1").contains("\\fBtowpath\\-guest\\fR(1)"));
    }

    #[test]
    fn the_statuses_are_those_of_the_documentation() {
        let document = include_str!("../../../docs/cli.md");
        for (status, meaning) in EXIT_STATUSES {
            let row = format!("| {status} | {meaning} |\n");
            assert!(document.contains(&row), "docs/cli.md lacks {row}");
        }
    }
}
