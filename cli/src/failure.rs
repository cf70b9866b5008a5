//! How a command fails: a problem on stderr and an exit status that scripts can tell apart.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::error::ErrorKind;
use serde::Serialize;
use towpath_daemon::problem::Problem;
use towpath_protocol::fault::{Blame, Code, Fault};

use crate::args::is_hidden;
use crate::show::{Format, escape, schema};

/// The exit statuses; scripts rely on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// The command failed.
    Failed,
    /// The command line, or a file that the operator wrote, is wrong.
    Usage,
    /// A check refused the request before anything was changed.
    Refused,
    /// The command took longer than allowed.
    Timeout,
    /// A guest is held between two hosts that cannot talk.
    Blocked,
    /// A link or a channel that was checked is not well.
    NotWell,
    /// The daemon is already running.
    AlreadyRunning,
    /// The command may succeed later.
    Retry,
    /// The operator interrupted the command; a move that has begun goes on.
    Interrupted,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.number())
    }
}

impl Exit {
    /// The exit status of the process.
    const fn number(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Refused => 3,
            Self::Timeout => 4,
            Self::Blocked => 5,
            Self::NotWell => 6,
            Self::AlreadyRunning => 69,
            Self::Retry => 75,
            Self::Interrupted => 130,
        }
    }

    /// The status for a failure with this code.
    pub(crate) const fn of(code: Code) -> Self {
        match code {
            Code::AlreadyRunning => Self::AlreadyRunning,
            Code::Busy | Code::Unreachable => Self::Retry,
            Code::Stalled => Self::Timeout,
            Code::Usage | Code::Name | Code::Config | Code::Meta => Self::Usage,
            code => match code.blame() {
                Blame::Incompatible => Self::Refused,
                Blame::Peer | Blame::Local | Blame::Misuse => Self::Failed,
            },
        }
    }

    /// The status for a move that was not begun because of this code. Where a check at either host
    /// found the reason, the move was refused; neither host has failed.
    pub(crate) const fn of_move(code: Code) -> Self {
        match code {
            Code::StaleEpoch
            | Code::DoubleOffer
            | Code::Denied
            | Code::Quarantine
            | Code::Kvm
            | Code::CrlStale
            | Code::NotFound
            | Code::State => Self::Refused,
            code => Self::of(code),
        }
    }

    /// The status for a move that has ended with this code. Never `Timeout` or `Usage`: the move
    /// does not go on, and its command line was accepted.
    pub(crate) const fn of_ended_move(code: Code) -> Self {
        match Self::of_move(code) {
            Self::Timeout | Self::Usage => Self::Failed,
            exit => exit,
        }
    }
}

/// Part of the text of every [`std::io::Error`] from the operating system.
const OS_ERROR: &str = "(os error ";

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Something went wrong.
    Problem { problem: Problem, exit: Exit },
    /// The operator interrupted the command. The message has been printed already.
    Interrupted,
    /// The reader of a stream of lines has closed the pipe. This is no error: the exit status is 0.
    Unheard,
}

impl Failure {
    /// A problem with an explicit exit status.
    pub(crate) const fn with(problem: Problem, exit: Exit) -> Self {
        Self::Problem { problem, exit }
    }

    /// The same failure, with the status that `exit_of` gives for its code if the code is known.
    pub(crate) fn exit_of(self, exit_of: impl Fn(Code) -> Exit) -> Self {
        match self {
            Self::Problem { problem, exit } => {
                let exit = problem.known_code().map_or(exit, exit_of);
                Self::with(problem, exit)
            }
            other => other,
        }
    }

    /// The error code, if this release knows it.
    pub(crate) fn code(&self) -> Option<Code> {
        match self {
            Self::Problem { problem, .. } => problem.known_code(),
            Self::Interrupted | Self::Unheard => None,
        }
    }

    /// The same failure, with a message that says what was tried.
    pub(crate) fn while_trying(self, what: impl Into<String>) -> Self {
        match self {
            Self::Problem { problem, exit } => Self::with(problem.message(what), exit),
            other => other,
        }
    }

    /// The same failure, with this remedy if it has this code. Errors from the operating system
    /// keep the remedy they have.
    pub(crate) fn remedy_of(self, code: Code, remedy: impl Into<String>) -> Self {
        match self {
            Self::Problem { problem, exit }
                if problem.known_code() == Some(code) && !problem.cause.contains(OS_ERROR) =>
            {
                Self::with(problem.remedy(remedy), exit)
            }
            other => other,
        }
    }

    /// The same failure, with `why` appended to its cause.
    pub(crate) fn because(self, why: &str) -> Self {
        match self {
            Self::Problem { problem, exit } => {
                let cause = format!("{}: {why}", problem.cause);
                Self::with(Problem { cause, ..problem }, exit)
            }
            other => other,
        }
    }

    /// Writes the failure to stderr, and returns the exit status.
    pub(crate) fn report(&self, format: Format) -> ExitCode {
        let (problem, exit) = match self {
            Self::Interrupted => return Exit::Interrupted.into(),
            Self::Unheard => return ExitCode::SUCCESS,
            Self::Problem { problem, exit } => (problem, *exit),
        };
        let mut stderr = std::io::stderr().lock();
        // If stderr is closed, there is nowhere left to report that.
        let _ = match format {
            Format::Json => writeln!(stderr, "{}", as_json(problem)),
            Format::Table => stderr.write_all(as_text(problem, is_coloured()).as_bytes()),
        };
        exit.into()
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        let exit = problem.known_code().map_or(Exit::Failed, Exit::of);
        Self::Problem { problem, exit }
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Problem::from(fault).into()
    }
}

/// Whether to use colours: stderr is a terminal, and `NO_COLOR` is unset or empty.
pub(crate) fn is_coloured() -> bool {
    shows_colours(&std::io::stderr())
}

/// Whether colours show there and the operator wants them.
pub(crate) fn shows_colours(out: &impl IsTerminal) -> bool {
    let is_unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !is_unwanted && out.is_terminal()
}

/// Writes a mistake on the command line to stderr, in the form of any other failure. As text it
/// is followed by the command's usage.
pub(crate) fn report_usage(error: &clap::Error, command: &str, format: Format) {
    let rendered = error.render().to_string();
    let text = match (error.kind(), format) {
        // If a subcommand is missing, clap renders the help.
        (ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand, Format::Table) => rendered,
        (_, Format::Json) => as_json(&usage_problem(&rendered, command)) + "\n",
        // What clap shows of the usage names only the words that were there: the command's help has all of it.
        (_, Format::Table) => as_text(&usage_problem(&rendered, command), is_coloured()),
    };
    // If stderr is closed, there is nowhere left to report that.
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

fn paragraphs(rendered: &str) -> impl Iterator<Item = &str> {
    rendered.split("\n\n").map(str::trim)
}

/// Turns clap's message into a problem. The first paragraph becomes the cause; the tips and a
/// pointer to the command's help become the remedy.
fn usage_problem(rendered: &str, command: &str) -> Problem {
    let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let cause = paragraphs(rendered).next().unwrap_or_default();
    let cause = one_line(cause.trim_start_matches("error:"));
    let help = format!("see `{command} --help`");
    let hints = rendered
        .lines()
        .filter_map(|line| line.trim().strip_prefix("tip: "));
    let hints = hints.filter(|hint| is_helpful(hint)).map(one_line);
    let remedy: Vec<_> = hints.chain([help]).collect();
    Problem::new(Code::Usage, without_inner_code(&cause)).remedy(remedy.join("; "))
}

/// Whether a hint of clap's leads on: few mean an unknown option as a value, and a hidden command is no operator's.
fn is_helpful(hint: &str) -> bool {
    let named = hint.split('\'').nth(1);
    !hint.starts_with("to pass '") && !named.is_some_and(is_hidden)
}

/// The output format for a command line that could not be parsed: the value of its `-o` or
/// `--output`.
pub(crate) fn format_of_words(words: impl IntoIterator<Item = OsString>) -> Format {
    let words: Vec<_> = words.into_iter().take_while(|word| word != "--").collect();
    let is_option = |word: &OsString| word == "-o" || word == "--output";
    let apart = words
        .windows(2)
        .any(|pair| is_option(&pair[0]) && pair[1] == "json");
    let joined = ["-ojson", "-o=json", "--output=json"];
    let is_json = apart
        || words
            .iter()
            .any(|word| joined.iter().any(|json| word == json));
    if is_json { Format::Json } else { Format::Table }
}

/// Removes the error code that a value's own parser put into the text: all mistakes on the
/// command line have the code `E_USAGE`.
fn without_inner_code(text: &str) -> String {
    let mut parts = text.splitn(2, ": E_");
    let (before, rest) = (parts.next().unwrap_or_default(), parts.next());
    match rest.and_then(|rest| rest.split_once(": ")) {
        Some((code, detail)) if code.chars().all(|c| c.is_ascii_uppercase() || c == '_') => {
            format!("{before}: {detail}")
        }
        _ => text.to_owned(),
    }
}

fn as_text(problem: &Problem, is_coloured: bool) -> String {
    let (strong, plain) = if is_coloured {
        ("\u{1b}[1;31m", "\u{1b}[0m")
    } else {
        ("", "")
    };
    let code = escape(&problem.code);
    let message = escape(&problem.message);
    let mut text = format!("{strong}error {code}:{plain} {message}\n");
    for (title, line) in [("cause", &problem.cause), ("remedy", &problem.remedy)] {
        if !line.is_empty() {
            text.push_str(&format!("  {title}: {}\n", escape(line)));
        }
    }
    text
}

fn as_json(problem: &Problem) -> String {
    #[derive(Serialize)]
    struct Document<'a> {
        schema: String,
        #[serde(flatten)]
        problem: &'a Problem,
    }
    let document = Document {
        schema: schema("error"),
        problem,
    };
    serde_json::to_string(&document).expect("a problem is made of texts")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expected status of a command, of a move that was not begun, and of one that has ended.
    /// The match is exhaustive, so that a new code needs a decision.
    const fn decided(code: Code) -> [u8; 3] {
        match code {
            Code::Truncated
            | Code::Framing
            | Code::TooLarge
            | Code::UnknownKind
            | Code::Range
            | Code::Conflict
            | Code::Codec
            | Code::Unexpected
            | Code::RootMismatch
            | Code::Gone
            | Code::Io
            | Code::Journal
            | Code::Guest
            | Code::TrackingLost
            | Code::ImageLost
            | Code::Certificate
            | Code::CrlRollback
            | Code::Path
            | Code::Cancelled => [1, 1, 1],
            Code::StaleEpoch
            | Code::DoubleOffer
            | Code::Denied
            | Code::Quarantine
            | Code::Kvm
            | Code::CrlStale
            | Code::NotFound
            | Code::State => [1, 3, 3],
            Code::Version
            | Code::Layout
            | Code::Quota
            | Code::CpuState
            | Code::GuestExists
            | Code::Refused
            | Code::NotConverging => [3, 3, 3],
            Code::Meta | Code::Config | Code::Name | Code::Usage => [2, 2, 1],
            Code::Stalled => [4, 4, 1],
            Code::AlreadyRunning => [69, 69, 69],
            Code::Busy | Code::Unreachable => [75, 75, 75],
        }
    }

    #[test]
    fn statuses_follow_the_code() {
        for &code in Code::ALL {
            let exits = [
                Exit::of(code),
                Exit::of_move(code),
                Exit::of_ended_move(code),
            ];
            assert_eq!(exits.map(Exit::number), decided(code), "{code}");
        }
    }

    #[test]
    fn the_table_of_codes_is_checked_in() {
        let mut text = "# Error codes\n\n\
            A code is never renamed and never used for something else. With each stands the status that a command\n\
            exits with, and in brackets that of a move, where it is another one: one that was refused has changed\n\
            nothing, and one that has ended does not go on.\n\n\
            <!-- `TOWPATH_UPDATE_DOCS=1 cargo test --workspace --lib table_of_codes` writes this file. -->\n\n\
            | code | meaning | exit status | what to do |\n|---|---|---|---|\n"
            .to_owned();
        for &code in Code::ALL {
            let Problem {
                message, remedy, ..
            } = Problem::new(code, "");
            let exit = match decided(code) {
                [any, refused, ended] if any == refused && any == ended => any.to_string(),
                [any, refused, ended] if any == refused => format!("{any} (ended: {ended})"),
                [any, refused, _] => format!("{any} (refused: {refused})"),
            };
            text += &format!("| `{code}` | {message} | {exit} | {remedy} |\n");
        }
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/errors.md");
        if std::env::var_os("TOWPATH_UPDATE_DOCS").is_some() {
            std::fs::write(file, &text).unwrap();
        }
        let checked_in = std::fs::read_to_string(file).unwrap_or_default();
        assert!(
            checked_in == text,
            "docs/errors.md is stale: TOWPATH_UPDATE_DOCS=1"
        );
    }

    #[test]
    fn a_mistake_on_the_command_line_has_one_code() {
        let text = "error: invalid value 'x' for '--cap': E_CONFIG: \"x\" is no rate\n\nmore";
        let expected = "error: invalid value 'x' for '--cap': \"x\" is no rate\n\nmore";
        assert_eq!(without_inner_code(text), expected);
        for other in ["error: no such thing", "a: E_ 5: b", ""] {
            assert_eq!(without_inner_code(other), other);
        }
    }

    #[test]
    fn a_mistake_on_the_command_line_is_a_problem_with_a_remedy() {
        for (rendered, cause, remedy) in [
            (
                "error: unexpected argument '--mode' found\n\n  tip: a similar argument exists: '--model'\n\n\
                 Usage: towpath guest start [OPTIONS] <NAME>\n\nFor more information, try '--help'.\n",
                "unexpected argument '--mode' found",
                "a similar argument exists: '--model'; see `towpath guest start --help`",
            ),
            (
                "error: unexpected argument '--duration' found\n\n  tip: to pass '--duration' as a value, use \
                 '-- --duration'\n\nUsage: towpath guest start <NAME>\n",
                "unexpected argument '--duration' found",
                "see `towpath guest start --help`",
            ),
            (
                "error: unrecognized subcommand 'reload'\n\n  tip: a similar subcommand exists: 'relay'\n",
                "unrecognized subcommand 'reload'",
                "see `towpath guest start --help`",
            ),
            (
                "error: the following required arguments were not provided:\n  --peer <SITE>\n  <NAME>\n\n\
                 Usage: towpath channel open --peer <SITE> <NAME>\n",
                "the following required arguments were not provided: --peer <SITE> <NAME>",
                "see `towpath guest start --help`",
            ),
        ] {
            let problem = usage_problem(rendered, "towpath guest start");
            assert_eq!((&*problem.cause, &*problem.remedy), (cause, remedy));
        }
    }

    #[test]
    fn words_that_cannot_be_read_still_say_how_a_failure_is_written() {
        let format = |words: &str| format_of_words(words.split(' ').map(OsString::from));
        for words in [
            "a -o json",
            "-ojson a",
            "-o=json",
            "--output json b",
            "--output=json",
        ] {
            assert_eq!(format(words), Format::Json, "{words}");
        }
        for words in ["a", "-o table", "-o", "json", "a -- -o json"] {
            assert_eq!(format(words), Format::Table, "{words}");
        }
    }

    #[test]
    fn l07_a_problem_cannot_play_with_the_terminal() {
        let problem = Problem::new(Code::NotFound, "guest \"a\u{1b}[2J\nE_OK: fine\"");
        let text = as_text(&problem, false);
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(!text.contains('\u{1b}'));
        assert!(text.starts_with("error E_NOT_FOUND: "));
        assert!(as_json(&problem).contains("\"schema\":\"towpath.v1.error\""));
    }
}
