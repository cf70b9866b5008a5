//! Log lines on stderr, as text or JSON.

use std::fmt::{self, Debug, Write};
use std::io::{self, IsTerminal};

use serde::{Deserialize, Serialize};
use towpath_protocol::fault::{Code, Fault};
use tracing::field::Field;
use tracing::{Dispatch, Event, Subscriber};
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::{self, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter, layer};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::InvalidValue;

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people and for the journal.
    #[default]
    Text,
    /// One JSON document a line, [`SCHEMA`].
    Json,
}

/// The schema that each JSON log line names.
pub const SCHEMA: &str = "towpath.v1.log";
/// What to write instead of a filter that does not parse, wherever it was given.
const FILTER_REMEDY: &str =
    "say --log, TOWPATH_LOG or `log.filter` as in `info` or `info,towpath_tunnel=debug`";

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// How a log line looks.
    pub format: Format,
    /// Filter by level and module, as in `info,towpath_tunnel=debug`.
    pub filter: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            format: Format::Text,
            filter: "info".to_owned(),
        }
    }
}

impl Options {
    /// Checks that the filter can be used.
    ///
    /// # Errors
    ///
    /// `log.filter`, with the reason.
    pub fn check(&self) -> Result<(), InvalidValue> {
        let wrong = |why| InvalidValue::new("log.filter", format!("{:?}: {why}", self.filter));
        self.targets().map(drop).map_err(wrong)
    }

    fn targets(&self) -> Result<Targets, String> {
        if self.filter.contains('[') {
            // It would be taken as a module name that matches nothing, so nothing would be logged.
            return Err("lines are chosen by level and module, not by span".to_owned());
        }
        let parsed: Result<Targets, _> = self.filter.parse();
        parsed.map(quietened).map_err(|error| error.to_string())
    }
}

/// The target that warns, for each socket, that a packet could not be sent. In an outage every dial
/// has sockets of its own, and the state of the link is logged elsewhere.
const CHATTY: &str = "quinn_udp";

/// Raises [`CHATTY`] to errors only, unless the filter names it.
fn quietened(filter: Targets) -> Targets {
    let is_named = filter.iter().any(|(target, _)| target == CHATTY);
    if is_named || filter.default_level() <= Some(LevelFilter::ERROR) {
        return filter;
    }
    filter.with_target(CHATTY, LevelFilter::ERROR)
}

/// Sends log lines to stderr from here on. A second call changes nothing.
///
/// # Errors
///
/// `E_CONFIG` if the filter does not parse.
pub fn start(options: &Options) -> Result<(), Fault> {
    let is_plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let colours = !is_plain && io::stderr().is_terminal();
    // An error means that a log is already set up, as in a test that runs two daemons.
    let _ = lines(options, colours, io::stderr)?.try_init();
    Ok(())
}

/// Formats log lines and hands them to a writer.
///
/// # Errors
///
/// `E_CONFIG` if the filter does not parse.
pub fn lines(
    options: &Options,
    colours: bool,
    writer: impl for<'w> MakeWriter<'w> + Send + Sync + 'static,
) -> Result<Dispatch, Fault> {
    let filter = options.targets().map_err(|why| {
        let detail = format!("log filter {:?}: {why}", options.filter);
        Fault::new(Code::Config, detail).remedy(FILTER_REMEDY)
    })?;
    let filtered = tracing_subscriber::registry().with(filter);
    let lines = layer().with_writer(writer);
    Ok(match options.format {
        Format::Json => {
            let lines = lines.fmt_fields(format::JsonFields::new());
            filtered.with(lines.event_format(Document)).into()
        }
        Format::Text => {
            let lines = lines.with_ansi(colours).fmt_fields(plain_fields());
            filtered.with(lines).into()
        }
    })
}

/// Formats a line as a JSON document with a schema.
struct Document;

impl<S, N> FormatEvent<S, N> for Document
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'w> FormatFields<'w> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = String::new();
        let plain = format::format().json().flatten_event(true);
        plain.format_event(context, Writer::new(&mut line), event)?;
        let members = line.strip_prefix('{').ok_or(fmt::Error)?;
        write!(writer, "{{\"schema\":\"{SCHEMA}\",{members}")
    }
}

/// Formats names and values as text. Much of it comes from peers, so control characters are
/// escaped: a reader must be able to tell which lines are the daemon's own.
fn plain_fields() -> impl for<'w> FormatFields<'w> + Send + Sync + 'static {
    let field = |writer: &mut Writer<'_>, field: &Field, value: &dyn Debug| {
        match field.name() {
            "message" => {}
            name if writer.has_ansi_escapes() => {
                write!(writer, "\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m")?;
            }
            name => write!(writer, "{name}=")?,
        }
        write!(Plain(writer), "{value:?}")
    };
    format::debug_fn(field).delimited(" ")
}

/// Whether a character of a foreign text can be shown as it is. Control characters, marks that
/// change the writing direction, and characters without width cannot.
#[must_use]
pub fn is_plain(c: char) -> bool {
    let is_mark = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    !is_mark && !c.is_control()
}

/// Escapes text so that it stays on its line and moves no cursor.
struct Plain<'a, 'w>(&'a mut Writer<'w>);

impl Write for Plain<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            if is_plain(c) {
                self.0.write_char(c)?;
            } else {
                write!(self.0, "{}", c.escape_default())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use tracing::Level;

    /// The log lines written during a call.
    fn logged(colours: bool, within: impl FnOnce()) -> String {
        logged_as(Format::Text, colours, within)
    }

    fn logged_as(format: Format, colours: bool, within: impl FnOnce()) -> String {
        let file = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&file);
        let open = move || Shared(Arc::clone(&kept));
        let options = Options {
            format,
            ..Options::default()
        };
        let lines = lines(&options, colours, open).expect("a log");
        tracing::dispatcher::with_default(&lines, within);
        let bytes = file.lock().expect("nobody panics with it").clone();
        String::from_utf8(bytes).expect("text")
    }

    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("nobody panics with it").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_peers_words_begin_no_line_and_move_no_cursor() {
        let reason = "bye\n2026-01-01 INFO forged: \x1b[2Jall is well\r\u{202e}\u{9b}x";
        let error = io::Error::other(reason);
        let say = || {
            tracing::warn!(%reason, why = reason, fault = ?error, number = 7, "said: {reason}");
        };
        let text = logged(false, say);
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(!text.trim_end().contains(char::is_control), "{text:?}");
        assert!(
            text.contains(r"bye\n2026-01-01 INFO forged: \u{1b}[2J"),
            "{text}"
        );
        assert!(text.contains(" number=7"), "{text}");
        let coloured = logged(true, say);
        assert_eq!(coloured.lines().count(), 1, "{coloured}");
        assert!(!coloured.contains("\x1b[2J"), "{coloured:?}");
        assert!(coloured.contains("\x1b[3mreason\x1b[0m"), "{coloured:?}");
    }

    #[test]
    fn each_line_is_a_document_with_a_schema_where_that_is_wanted() {
        let text = logged_as(Format::Json, false, || {
            tracing::info!(peer = %"edge/box-1", "link \"up\"\nor not");
            tracing::warn!("down");
        });
        let documents: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).expect("a document"))
            .collect();
        assert_eq!(documents.len(), 2, "{text}");
        for document in &documents {
            assert_eq!(document["schema"], SCHEMA);
        }
        assert_eq!(documents[0]["message"], "link \"up\"\nor not");
        assert_eq!(documents[0]["peer"], "edge/box-1");
        assert_eq!(documents[1]["level"], "WARN");
    }

    #[test]
    fn what_is_plain_is_written_as_it_is() {
        let line = logged(false, || {
            tracing::info!(peer = %"edge/box-1", cause = "it's \"so\"", "Gr\u{fc}\u{df}e");
        });
        let end = "Gr\u{fc}\u{df}e peer=edge/box-1 cause=\"it's \\\"so\\\"\"\n";
        assert!(line.ends_with(end), "{line}");
    }

    #[test]
    fn what_every_dial_in_an_outage_would_say_is_left_out_unless_it_is_asked_for() {
        let says = |filter: &str, level| {
            let targets: Targets = filter.parse().expect("a filter");
            quietened(targets).would_enable(CHATTY, &level)
        };
        assert!(!says("info", Level::WARN));
        assert!(!says("info,towpath_tunnel=debug", Level::WARN));
        assert!(says("info", Level::ERROR));
        assert!(says("info,quinn_udp=warn", Level::WARN));
        assert!(!says("off", Level::ERROR));
    }

    #[test]
    fn a_filter_that_does_not_parse_is_a_configuration_error() {
        for filter in ["towpath=loud", "info,[link]=debug"] {
            let options = Options {
                filter: filter.to_owned(),
                ..Options::default()
            };
            assert_eq!(
                start(&options).expect_err("no such filter").code,
                Code::Config,
                "{filter}"
            );
        }
        assert_eq!(start(&Options::default()), Ok(()));
        assert_eq!(start(&Options::default()), Ok(()));
    }
}
