//! `towpath migration`: list, show, watch and cancel moves.

use clap::{Args, Subcommand};
use towpath_daemon::client::Client;
use towpath_daemon::problem::Problem;
use towpath_daemon::units::Span;
use towpath_migrator::api::{MigrationList, MigrationView, Phase};
use towpath_protocol::fault::Code;
use towpath_protocol::identity::MigrationId;

use super::guest::word;
use crate::args::OutputOption;
use crate::connection::{MigratorSocket, block_on};
use crate::failure::Failure;
use crate::follow::{BLOCK_BYTES, LiveLine, Observer, describe, follow, outcome};
use crate::show::{
    self, Format, Table, bits_per_second, bytes, escape, fields, milliseconds, or_dash, time_of_day,
};

/// What is to be done with moves.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the moves this host takes or took part in, newest first.
    Ls(ListOptions),
    /// Show one move, with what the plan decided and why.
    Show(OneOptions),
    /// Follow a move to its end; Ctrl-C lets go of it and does not stop it.
    Watch(WatchOptions),
    /// End a move before its guest is handed over; the guest stays where it is.
    Cancel(OneOptions),
}

/// How the list is to be written.
#[derive(Debug, Args)]
pub(crate) struct ListOptions {
    #[command(flatten)]
    socket: MigratorSocket,
    #[command(flatten)]
    output: OutputOption,
}

/// One move.
#[derive(Debug, Args)]
pub(crate) struct OneOptions {
    /// Its id [default: the newest]
    id: Option<MigrationId>,
    #[command(flatten)]
    socket: MigratorSocket,
    #[command(flatten)]
    output: OutputOption,
}

/// The move to follow.
#[derive(Debug, Args)]
pub(crate) struct WatchOptions {
    #[command(flatten)]
    one: OneOptions,
    /// Stop waiting after this time
    #[arg(long, value_name = "TIME")]
    timeout: Option<Span>,
}

impl Command {
    pub(crate) const fn format(&self) -> Format {
        match self {
            Self::Ls(options) => options.output.format,
            Self::Show(options) | Self::Cancel(options) => options.output.format,
            Self::Watch(options) => options.one.output.format,
        }
    }
}

/// Does what was asked for.
pub(crate) fn run(command: Command) -> Result<(), Failure> {
    block_on(async {
        match command {
            Command::Ls(options) => list(&options).await,
            Command::Show(options) => {
                let client = options.socket.client();
                let id = id_or_newest(&client, options.id).await?;
                let view = client.get(&format!("/v1/migrations/{id}")).await?;
                let format = options.output.format;
                show::show(format, "migration", &view, || details(&view))
            }
            Command::Watch(options) => watch(&options).await,
            Command::Cancel(options) => cancel(&options).await,
        }
    })?
}

async fn list(options: &ListOptions) -> Result<(), Failure> {
    let list: MigrationList = options.socket.client().get("/v1/migrations").await?;
    show::show(options.output.format, "migrations", &list, || {
        let mut table = Table::new([
            "ID", "GUEST", "FROM", "TO", "ROLE", "PHASE", ">TOTAL", ">PAUSE", "BEGUN",
        ]);
        for view in &list.migrations {
            table.row([
                view.id.to_string(),
                view.guest.to_string(),
                view.from.to_string(),
                view.to.to_string(),
                word(&view.role),
                view.phase.as_str().to_owned(),
                milliseconds(view.total_ms),
                or_dash(view.pause_reported_ms.map(milliseconds)),
                time_of_day(view.started_unix_ms),
            ]);
        }
        table.render("no moves yet; begin one with `towpath migrate GUEST SITE`")
    })
}

async fn watch(options: &WatchOptions) -> Result<(), Failure> {
    let one = &options.one;
    let client = one.socket.client();
    let id = id_or_newest(&client, one.id).await?;
    let view = match one.output.format {
        Format::Json => follow(&client, (id, None), options.timeout, &mut Lines).await?,
        Format::Table => {
            let mut line = LiveLine::new();
            let view = follow(&client, (id, None), options.timeout, &mut line).await?;
            line.clear();
            show::write(&report(&view))?;
            view
        }
    };
    outcome(&view)
}

/// Writes every change as a line of JSON.
struct Lines;

impl Observer for Lines {
    fn changed(&mut self, view: &MigrationView) -> Result<(), Failure> {
        show::show_line("migration", view)
    }
}

async fn cancel(options: &OneOptions) -> Result<(), Failure> {
    let client = options.socket.client();
    let id = id_or_newest(&client, options.id).await?;
    let path = format!("/v1/migrations/{id}/cancel");
    let view: MigrationView = client.post(&path, &()).await.map_err(|problem| {
        Failure::from(problem).while_trying(format!("move {id} cannot be cancelled"))
    })?;
    show::show(options.output.format, "migration", &view, || {
        let (guest, from) = (&view.guest, &view.from);
        format!("cancelling move {id}; guest {guest} stays at {from}\n")
    })
}

async fn id_or_newest(client: &Client, id: Option<MigrationId>) -> Result<MigrationId, Failure> {
    if let Some(id) = id {
        return Ok(id);
    }
    let list: MigrationList = client.get("/v1/migrations").await?;
    let newest = list.migrations.first().map(|view| view.id);
    newest.ok_or_else(|| {
        Problem::new(Code::NotFound, "this host has taken part in no move yet")
            .remedy("begin one with `towpath migrate GUEST SITE`")
            .into()
    })
}

/// What came of a move.
pub(crate) fn report(view: &MigrationView) -> String {
    fields(&report_fields(view))
}

fn report_fields(view: &MigrationView) -> Vec<(&'static str, Option<String>)> {
    let fetches = view.demand_fetches;
    let waits = match (view.demand_p50_ms, view.demand_p99_ms) {
        (Some(p50), Some(p99)) if fetches > 0 => format!(", p50 {p50} ms, p99 {p99} ms"),
        _ => String::new(),
    };
    let error = view.error.as_ref();
    vec![
        ("move", Some(view.id.to_string())),
        ("guest", Some(view.guest.to_string())),
        ("from", Some(view.from.to_string())),
        ("to", Some(view.to.to_string())),
        ("phase", Some(view.phase.as_str().to_owned())),
        ("total time", Some(milliseconds(view.total_ms))),
        ("pause", view.pause_reported_ms.map(milliseconds)),
        ("rounds", view.rounds.map(|rounds| rounds.to_string())),
        ("guest bytes", Some(bytes(view.raw_bytes))),
        ("bytes on the link", view.wire_bytes.map(bytes)),
        ("demand fetches", Some(format!("{fetches}{waits}"))),
        (
            "switched because",
            view.switch_reason.as_deref().map(escape),
        ),
        (
            "error",
            error.map(|error| {
                let by = error.host.as_ref().map(|host| format!("{host} says: "));
                let by = by.unwrap_or_default();
                escape(&format!("{}: {by}{}", error.code, error.message))
            }),
        ),
    ]
}

fn details(view: &MigrationView) -> String {
    let is_under_way = !view.phase.is_finished();
    let left = view.blocks_left.saturating_mul(BLOCK_BYTES);
    let is_undone = matches!(view.phase, Phase::Failed | Phase::Cancelled);
    let mut rows = report_fields(view);
    rows.extend([
        ("role", Some(word(&view.role))),
        ("left to go", is_undone.then(|| bytes(left))),
        ("mode", view.mode.as_ref().map(word)),
        (
            "longest pause",
            view.max_pause_ms
                .map(|longest| milliseconds(longest.into())),
        ),
        (
            "attempts",
            view.attempts.map(|attempts| attempts.to_string()),
        ),
        ("begun", Some(time_of_day(view.started_unix_ms))),
        ("ended", view.finished_unix_ms.map(time_of_day)),
        ("now", is_under_way.then(|| describe(view))),
    ]);
    let mut text = fields(&rows);
    if view.decisions.is_empty() {
        return text;
    }
    let mut table = Table::new([
        ">AT", "DECISION", "REASON", ">LEFT", ">GOODPUT", ">DIRTY", ">PAUSE",
    ]);
    for decision in &view.decisions {
        let inputs = &decision.inputs;
        table.row([
            milliseconds(decision.at_ms),
            escape(&decision.decision),
            escape(&decision.reason),
            bytes(inputs.residual_bytes),
            bits_per_second(inputs.goodput_bytes_per_second),
            format!("{}/s", bytes(inputs.dirty_bytes_per_second)),
            milliseconds(decision.predicted_pause_ms),
        ]);
    }
    text.push('\n');
    text.push_str(&table.render(""));
    text
}
