//! Writing results: as a table for people, as JSON for programs.

mod human;
mod table;

use std::io::{self, Write};

use serde::Serialize;
use towpath_daemon::problem::Problem;
use towpath_protocol::fault::Code;

use crate::failure::{Failure, shows_colours};

pub(crate) use human::{escape, milliseconds, or_dash, telling_digits, time_of_day};
pub(crate) use table::{Table, fields};
pub(crate) use towpath_daemon::units::{bits_per_second, bytes};

/// Format of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    // For people.
    Table,
    // For programs: one document with a "schema".
    Json,
}

/// The schema of a kind of document.
pub(crate) fn schema(kind: &str) -> String {
    format!("towpath.v1.{kind}")
}

#[derive(Serialize)]
struct Document<'a, T> {
    schema: String,
    #[serde(flatten)]
    content: &'a T,
}

/// Writes a result to stdout: `content` under its schema, or the table.
pub(crate) fn show<T: Serialize>(
    format: Format,
    kind: &str,
    content: &T,
    table: impl FnOnce() -> String,
) -> Result<(), Failure> {
    let text = match format {
        Format::Table => table(),
        Format::Json => {
            let schema = schema(kind);
            let document = Document { schema, content };
            let mut text =
                serde_json::to_string_pretty(&document).map_err(|error| unwritable(&error))?;
            text.push('\n');
            text
        }
    };
    write(&text)
}

/// Writes one line of a stream of documents to stdout.
///
/// # Errors
///
/// [`Failure::Unheard`] if the reader has closed the pipe, so that the caller ends the stream.
pub(crate) fn show_line<T: Serialize>(kind: &str, content: &T) -> Result<(), Failure> {
    let schema = schema(kind);
    let document = Document { schema, content };
    let mut text = serde_json::to_string(&document).map_err(|error| unwritable(&error))?;
    text.push('\n');
    write_to(&mut io::stdout().lock(), &text)
}

/// Writes text to stdout. A closed pipe is no error.
pub(crate) fn write(text: &str) -> Result<(), Failure> {
    match write_to(&mut io::stdout().lock(), text) {
        Err(Failure::Unheard) => Ok(()),
        written => written,
    }
}

fn write_to(out: &mut impl Write, text: &str) -> Result<(), Failure> {
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::Unheard,
        _ => unwritable(&error),
    })
}

/// A line of the result that matters less than the others, paler on a terminal.
pub(crate) fn dim(line: &str) -> String {
    if shows_colours(&io::stdout()) {
        format!("\u{1b}[2m{line}\u{1b}[0m")
    } else {
        line.to_owned()
    }
}

/// Prints a note to stderr, beside the result.
pub(crate) fn note(text: &str) {
    // If stderr is closed, there is nowhere left to report that.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

fn unwritable(error: &dyn std::fmt::Display) -> Failure {
    Problem::new(Code::Io, format!("the result cannot be written: {error}")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_pipe_is_a_quiet_end_and_a_full_disk_is_none() {
        let (read, mut write) = io::pipe().unwrap();
        assert!(write_to(&mut write, "one\n").is_ok());
        drop(read);
        let closed = write_to(&mut write, "two\n").unwrap_err();
        assert!(matches!(closed, Failure::Unheard), "{closed:?}");
        let mut full: &mut [u8] = &mut [0; 2];
        let failed = write_to(&mut full, "three\n").unwrap_err();
        assert!(matches!(failed, Failure::Problem { .. }), "{failed:?}");
    }
}
