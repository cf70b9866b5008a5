//! `towpath migrate`: move a guest to another site while it runs.

use std::time::Duration;

use clap::{Args, ValueEnum};
use towpath_daemon::units::Span;
use towpath_migrator::api::{MigrationMode, MigrationRequest, MigrationView, PAUSE_MS_MAX};
use towpath_protocol::fault::Fault;
use towpath_protocol::identity::Name;
use towpath_protocol::rate::Rate;

use super::migration::report;
use crate::args::{OutputOption, span_within};
use crate::connection::{MigratorSocket, block_on};
use crate::failure::{Exit, Failure};
use crate::follow::{LiveLine, follow, outcome};
use crate::show;

const EXAMPLES: &str = "\
Examples:
  towpath migrate till-7 region                      rounds of pre-copy, post-copy if needed
  towpath migrate till-7 region --max-pause 50ms     allow only a shorter pause
  towpath migrate till-7 region --mode pre           stay here if rounds do not suffice
  towpath migrate till-7 region --rate 20Mbit        leave room on the link
  towpath migrate till-7 region --detach             return at once

Ctrl-C ends the command but not the move; `towpath migration cancel` ends the move.";

/// The arguments of `towpath migrate`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// Name of the guest
    guest: Name,
    /// Site to move the guest to
    site: Name,
    /// Stages the move may use: rounds of pre-copy while they help, then post-copy (auto); rounds
    /// only (pre); post-copy at once (post)
    #[arg(long, value_name = "MODE", default_value = "auto")]
    mode: Mode,
    /// Longest pause of the guest to accept, 1ms to 1m
    #[arg(long, value_name = "TIME", default_value = "200ms", value_parser = pause)]
    max_pause: Span,
    /// Cap on the rate of the move, such as 20Mbit [default: what the link carries]
    #[arg(long, value_name = "RATE")]
    rate: Option<Rate>,
    /// Return at once; the move goes on
    #[arg(long, conflicts_with = "timeout")]
    detach: bool,
    /// Stop waiting after this time; the move goes on
    #[arg(long, value_name = "TIME")]
    timeout: Option<Span>,
    #[command(flatten)]
    socket: MigratorSocket,
    #[command(flatten)]
    pub(crate) output: OutputOption,
}

/// Parses the longest pause to accept, 1 ms to [`PAUSE_MS_MAX`].
pub(crate) fn pause(text: &str) -> Result<Span, Fault> {
    let most = Duration::from_millis(PAUSE_MS_MAX.into());
    span_within(text, Duration::from_millis(1)..=most)
}

/// Which stages a move may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    // Rounds while they help, then post-copy if the rest does not fit the pause.
    Auto,
    // Rounds only; a guest that does not converge stays.
    Pre,
    // Switch at once, fetch the memory afterwards.
    Post,
}

impl From<Mode> for MigrationMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Auto => Self::Auto,
            Mode::Pre => Self::Pre,
            Mode::Post => Self::Post,
        }
    }
}

/// Moves a guest, and follows the move unless told to detach.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    block_on(migrate(options))?
}

async fn migrate(options: &Options) -> Result<(), Failure> {
    let client = options.socket.client();
    let request = MigrationRequest {
        guest: options.guest.clone(),
        site: options.site.clone(),
        mode: options.mode.into(),
        max_pause_ms: u32::try_from(options.max_pause.milliseconds()).unwrap_or(u32::MAX),
        rate_bits_per_second: options.rate.map(Rate::bits_per_second),
    };
    request.check()?;
    let begun: MigrationView =
        client
            .post("/v1/migrations", &request)
            .await
            .map_err(|problem| {
                let (guest, site) = (&options.guest, &options.site);
                Failure::from(problem)
                    .exit_of(Exit::of_move)
                    .while_trying(format!("guest {guest} cannot be moved to {site}"))
            })?;
    let format = options.output.format;
    if options.detach {
        let id = begun.id;
        return show::show(format, "migration", &begun, || {
            format!("move {id} has begun; follow it with: towpath migration watch {id}\n")
        });
    }
    let mut line = LiveLine::new();
    let view = follow(&client, (begun.id, Some(begun)), options.timeout, &mut line).await?;
    line.clear();
    show::show(format, "migration", &view, || report(&view))?;
    outcome(&view)
}
