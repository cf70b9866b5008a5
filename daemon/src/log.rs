//! Log lines on stderr, as text or JSON.

use std::fmt::Display;
use std::io::{self, IsTerminal};

use serde::{Deserialize, Serialize};
use towpath_protocol::fault::{Code, Fault};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people and for the journal.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// How a log line looks.
    pub format: Format,
    /// Which lines, by level and module, as in `info,towpath_tunnel=debug`.
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

/// Warns for each socket that a packet could not be sent. In an outage every dial has sockets of its own, and
/// what there is to say is said of the link.
const CHATTY: &str = "quinn_udp";

/// The filter without the lines that say nothing more, unless it names them.
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
    let wrong = |why: &dyn Display| {
        let detail = format!("log filter {:?}: {why}", options.filter);
        Fault::new(Code::Config, detail)
    };
    if options.filter.contains('[') {
        // Taken as a module's name it would be obeyed, and nothing would be logged by it.
        return Err(wrong(&"lines are chosen by level and module, not by span"));
    }
    let parsed: Result<Targets, _> = options.filter.parse();
    let filter = quietened(parsed.map_err(|error| wrong(&error))?);
    let filtered = tracing_subscriber::registry().with(filter);
    let lines = fmt::layer().with_writer(io::stderr);
    // An error means that a log is already there, as in a test that runs two daemons.
    let _ = match options.format {
        Format::Json => filtered.with(lines.json().flatten_event(true)).try_init(),
        Format::Text => {
            let is_plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            let colours = !is_plain && io::stderr().is_terminal();
            filtered.with(lines.with_ansi(colours)).try_init()
        }
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

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
