//! `towpath migration`: list, show, watch and cancel moves.

use clap::{Args, Subcommand};
use towpath_daemon::client::Client;
use towpath_daemon::problem::Problem;
use towpath_daemon::units::Span;
use towpath_migrator::api::{MigrationList, MigrationView, Phase, Role};
use towpath_protocol::fault::Code;
use towpath_protocol::identity::{MigrationId, Name};

use crate::args::OutputOption;
use crate::connection::{MigratorSocket, block_on};
use crate::failure::Failure;
use crate::follow::{BLOCK_BYTES, LiveLine, Observer, a_second, describe, follow, outcome};
use crate::show::{
    self, Format, Table, bytes, escape, fields, milliseconds, or_dash, telling_digits, time_of_day,
};

pub(crate) const EXAMPLES: &str = "\
Examples:
  towpath migration ls                              list moves under way and the last that ended
  towpath migration watch                           follow the move under way
  towpath migration show till-7                     show what the plan decided for a guest

`towpath migrate` begins a move.";

const LS_EXAMPLES: &str = "\
Examples:
  towpath migration ls                              list moves under way and the last that ended
  towpath migration ls -o json                      list them as JSON, with every field";

const SHOW_EXAMPLES: &str = "\
Examples:
  towpath migration show                            show the move under way, or the last one
  towpath migration show till-7                     show the move of a guest
  towpath migration show 3f9a                       show the move with an id that begins so";

const WATCH_EXAMPLES: &str = "\
Examples:
  towpath migration watch                           follow the move under way
  towpath migration watch till-7 --timeout 10m      follow a guest's move for 10 minutes at most
  towpath migration watch -o json                   print every change as a line of JSON";

const CANCEL_EXAMPLES: &str = "\
Examples:
  towpath migration cancel                          cancel the only move under way
  towpath migration cancel till-7                   cancel the move of a guest";

/// The subcommands of `towpath migration`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the moves this host takes or took part in, newest first.
    #[command(after_help = LS_EXAMPLES)]
    Ls(ListOptions),
    /// Show one move, with the decisions of its plan and their reasons.
    #[command(after_help = SHOW_EXAMPLES)]
    Show(OneOptions),
    /// Follow a move to its end; Ctrl-C ends the command but not the move.
    #[command(after_help = WATCH_EXAMPLES)]
    Watch(WatchOptions),
    /// Cancel a move before its guest is handed over; the guest stays where it is.
    #[command(after_help = CANCEL_EXAMPLES)]
    Cancel(OneOptions),
}

/// The arguments of `towpath migration ls`.
#[derive(Debug, Args)]
pub(crate) struct ListOptions {
    #[command(flatten)]
    socket: MigratorSocket,
    #[command(flatten)]
    output: OutputOption,
}

/// The arguments of commands for one move.
#[derive(Debug, Args)]
pub(crate) struct OneOptions {
    /// Id of the move, a unique prefix of it, or the name of its guest [default: the move under
    /// way; for show and watch, else the last one]
    #[arg(value_name = "ID|GUEST")]
    id: Option<Name>,
    #[command(flatten)]
    socket: MigratorSocket,
    #[command(flatten)]
    output: OutputOption,
}

/// The arguments of `towpath migration watch`.
#[derive(Debug, Args)]
pub(crate) struct WatchOptions {
    #[command(flatten)]
    one: OneOptions,
    /// Stop waiting after this time; the move goes on
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

/// Runs a subcommand.
pub(crate) fn run(command: Command) -> Result<(), Failure> {
    block_on(async {
        match command {
            Command::Ls(options) => list(&options).await,
            Command::Show(options) => {
                let client = options.socket.client();
                let id = find(&client, options.id.as_ref(), Wish::Look).await?;
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
        ])
        .least(["BEGUN", "ROLE", "TOTAL", "PAUSE"]);
        let ids: Vec<_> = list
            .migrations
            .iter()
            .map(|view| view.id.to_string())
            .collect();
        let digits = telling_digits(ids.iter().map(String::as_str));
        for (view, id) in list.migrations.iter().zip(ids) {
            table.row([
                id.chars().take(digits).collect(),
                view.guest.to_string(),
                view.from.to_string(),
                view.to.to_string(),
                view.role.as_str().to_owned(),
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
    let id = find(&client, one.id.as_ref(), Wish::Look).await?;
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

/// Prints every change as a line of JSON.
struct Lines;

impl Observer for Lines {
    fn changed(&mut self, view: &MigrationView) -> Result<(), Failure> {
        show::show_line("migration", view)
    }
}

async fn cancel(options: &OneOptions) -> Result<(), Failure> {
    let client = options.socket.client();
    let id = find(&client, options.id.as_ref(), Wish::End).await?;
    let path = format!("/v1/migrations/{id}/cancel");
    let view: MigrationView = client.post(&path, &()).await.map_err(|problem| {
        Failure::from(problem).while_trying(format!("move {id} cannot be cancelled"))
    })?;
    show::show(options.output.format, "migration", &view, || {
        let (guest, from) = (&view.guest, &view.from);
        format!("cancelling move {id}; guest {guest} stays at {from}\n")
    })
}

/// What the operator wants of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    /// To look at it: a finished move will do.
    Look,
    /// To end it: an ambiguous request is refused.
    End,
}

async fn find(client: &Client, asked: Option<&Name>, wish: Wish) -> Result<MigrationId, Failure> {
    if let Some(id) = asked.and_then(|word| word.as_str().parse().ok()) {
        return Ok(id);
    }
    let list: MigrationList = client.get("/v1/migrations").await?;
    Ok(pick(&list.migrations, asked, wish)?.id)
}

/// Picks the move that is meant: the one under way, or the last one. `moves` are those of this
/// host, newest first.
fn pick<'a>(
    moves: &'a [MigrationView],
    asked: Option<&Name>,
    wish: Wish,
) -> Result<&'a MigrationView, Problem> {
    let meant = meant(moves, asked)?;
    let is_open = |view: &&&MigrationView| !view.phase.is_finished();
    let is_ours = |view: &&&MigrationView| view.role == Role::Source;
    let open: Vec<_> = meant.iter().filter(is_open).copied().collect();
    // A move towards this host is cancelled at its source. It is picked only if there is no other,
    // and the migrator's refusal says so.
    let ours: Vec<_> = open.iter().filter(is_ours).copied().collect();
    let open = match (wish, ours.is_empty()) {
        (Wish::End, false) => ours,
        _ => open,
    };
    match (wish, &*open) {
        (Wish::End, [_, _, ..]) => Err(several(&open)),
        (_, [view, ..]) => Ok(view),
        (Wish::End, []) if asked.is_none() => {
            let none = Problem::new(Code::NotFound, "no move is under way on this host");
            Err(none.remedy("see what became of the last ones with `towpath migration ls`"))
        }
        (_, []) => meant.first().copied().ok_or_else(|| {
            Problem::new(Code::NotFound, "this host has taken part in no move yet")
                .remedy("begin one with `towpath migrate GUEST SITE`")
        }),
    }
}

/// The moves that `asked` may mean: all those of a guest, or the one with an id that begins so.
/// Without it, all moves.
fn meant<'a>(
    moves: &'a [MigrationView],
    asked: Option<&Name>,
) -> Result<Vec<&'a MigrationView>, Problem> {
    let Some(word) = asked else {
        return Ok(moves.iter().collect());
    };
    let of_guest: Vec<_> = moves.iter().filter(|view| view.guest == *word).collect();
    if !of_guest.is_empty() {
        return Ok(of_guest);
    }
    let begins_so = |view: &&MigrationView| view.id.to_string().starts_with(word.as_str());
    let found: Vec<_> = moves.iter().filter(begins_so).collect();
    match &*found {
        [_] => Ok(found),
        [] => {
            let cause =
                format!("no move's id begins with {word}, and no guest of a move is called so");
            Err(Problem::new(Code::NotFound, cause).remedy("see them with `towpath migration ls`"))
        }
        _ => Err(several(&found)),
    }
}

fn several(moves: &[&MigrationView]) -> Problem {
    let list: Vec<_> = moves
        .iter()
        .map(|view| format!("{} of {} to {}", view.id, view.guest, view.to))
        .collect();
    let cause = format!("{} moves may be meant: {}", moves.len(), list.join(", "));
    Problem::new(Code::Usage, cause).remedy("name the id or the guest of one")
}

/// The result of a move, for people.
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
        ("role", Some(view.role.as_str().to_owned())),
        ("left to go", is_undone.then(|| bytes(left))),
        ("mode", view.mode.map(|mode| mode.as_str().to_owned())),
        (
            "pause allowed",
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
        ">AT", "DECISION", ">LEFT", ">COPIES", ">DIRTIES", ">PAUSE", "REASON",
    ]);
    for decision in &view.decisions {
        let inputs = &decision.inputs;
        table.row([
            milliseconds(decision.at_ms),
            escape(&decision.decision),
            bytes(inputs.residual_bytes),
            a_second(inputs.goodput_bytes_per_second),
            a_second(inputs.dirty_bytes_per_second),
            milliseconds(decision.predicted_pause_ms),
            escape(&decision.reason),
        ]);
    }
    text.push('\n');
    text.push_str(&table.render(""));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(id: u128, guest: &str, role: Role, phase: Phase) -> MigrationView {
        let sites = ("edge".parse().unwrap(), "region".parse().unwrap());
        let guest = guest.parse().unwrap();
        MigrationView::begun((MigrationId(id << 96), guest), role, sites, phase)
    }

    /// The leading digits of the id of the move that is picked, or the code of the refusal.
    fn picked(moves: &[MigrationView], asked: Option<&str>, wish: Wish) -> Result<u128, Code> {
        let asked = asked.map(|word| word.parse().unwrap());
        let picked = pick(moves, asked.as_ref(), wish);
        picked
            .map(|view| view.id.0 >> 96)
            .map_err(|problem| problem.known_code().unwrap())
    }

    #[test]
    fn the_move_under_way_is_meant_and_none_is_ended_that_is_not() {
        use Wish::{End, Look};
        let (ours, theirs) = (Role::Source, Role::Target);
        let moves = [
            view(0xab1, "c", ours, Phase::Done),
            view(0xab2, "b", ours, Phase::Copying),
            view(0xcd3, "d", theirs, Phase::Receiving),
            view(0xef4, "a", ours, Phase::Failed),
        ];
        for wish in [Look, End] {
            assert_eq!(picked(&moves, None, wish), Ok(0xab2));
            assert_eq!(picked(&moves, Some("b"), wish), Ok(0xab2));
            assert_eq!(picked(&moves, Some("00000ef"), wish), Ok(0xef4));
            assert_eq!(picked(&moves, Some("00000ab"), wish), Err(Code::Usage));
            assert_eq!(picked(&moves, Some("x"), wish), Err(Code::NotFound));
            assert_eq!(picked(&[], None, wish), Err(Code::NotFound));
            // The migrator says why it cannot be cancelled here.
            assert_eq!(picked(&moves[2..], None, wish), Ok(0xcd3));
            assert_eq!(picked(&moves, Some("a"), wish), Ok(0xef4));
        }
        assert_eq!(picked(&moves[3..], None, Look), Ok(0xef4));
        assert_eq!(picked(&moves[3..], None, End), Err(Code::NotFound));
        let mut two = moves.clone();
        two[0].phase = Phase::Switching;
        assert_eq!(picked(&two, None, Look), Ok(0xab1));
        assert_eq!(picked(&two, None, End), Err(Code::Usage));
        let said = pick(&two, None, End).unwrap_err().cause;
        assert!(
            said.contains("of c to region") && said.contains("of b"),
            "{said}"
        );
    }
}
