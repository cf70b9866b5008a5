//! Follows a move to its end. A command that stops following never stops the move.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::{Instant, sleep, timeout};
use towpath_daemon::client::Client;
use towpath_daemon::problem::Problem;
use towpath_daemon::units::Span;
use towpath_migrator::api::{LinkState, MigrationView, PAUSE_MS_MAX, Phase};
use towpath_protocol::fault::{Blame, Code};
use towpath_protocol::identity::MigrationId;

use crate::failure::{Exit, Failure};
use crate::show::{bytes, escape, milliseconds, note};

/// Bytes of a block of guest memory.
pub(crate) const BLOCK_BYTES: u64 = 4096;

/// How long to wait for a migrator that does not answer, for example during an upgrade.
const RETURN_WAIT_MAX: Duration = Duration::from_secs(120);

/// Pause between two attempts to reach a migrator that does not answer.
const RETURN_PAUSE: Duration = Duration::from_millis(500);

/// Template for a move: a bar and a message of two lines, the state and the numbers.
const MOVE_STYLE: &str = "{prefix} [{bar:24}] {msg}";

/// Template for everything else that takes a while.
const OTHER_STYLE: &str = "{prefix}: {msg}";

/// Receives the changes of a move that is being followed.
pub(crate) trait Observer {
    /// Called with every new view of the move.
    fn changed(&mut self, view: &MigrationView) -> Result<(), Failure>;

    /// Called when the migrator does not answer, so that the last view is out of date.
    fn away(&self) {}

    /// Called when following is interrupted, before a message about that is printed.
    fn ended(&self) {}
}

/// Follows a move until it is finished, and returns its last view.
///
/// A caller that has just begun the move passes its first view as `begun`. The move is then known
/// to exist, and a migrator that does not answer is waited for from the start.
///
/// Following also ends with Ctrl-C and after `longest`. Neither stops the move, and both say how
/// to follow it again.
pub(crate) async fn follow(
    client: &Client,
    (id, begun): (MigrationId, Option<MigrationView>),
    longest: Option<Span>,
    observer: &mut impl Observer,
) -> Result<MigrationView, Failure> {
    let mut last = begun;
    let watching = watch(client, id, &mut last, observer);
    let longest = longest.map_or(Duration::MAX, Span::duration);
    let ended = tokio::select! {
        ended = timeout(longest, watching) => ended,
        _ = tokio::signal::ctrl_c() => {
            // The terminal has echoed the key on the last row of the progress line.
            observer.ended();
            note(&format!("let go: the move goes on. Follow it with: towpath migration watch {id}"));
            return Err(Failure::Interrupted);
        }
    };
    match ended {
        Ok(ended) => ended,
        Err(_) => Err(timed_out(id, last.as_ref())),
    }
}

/// Watches a move until it is finished, across restarts of the migrator. Keeps the latest view in
/// `last`, for a caller that gives up waiting. While the migrator accepts no more watchers
/// (`E_BUSY`), it polls the move instead.
pub(crate) async fn watch(
    client: &Client,
    id: MigrationId,
    last: &mut Option<MigrationView>,
    observer: &mut impl Observer,
) -> Result<MigrationView, Failure> {
    let mut gone_since = None;
    loop {
        let ended = watch_once(client, id, last, observer).await;
        let problem = match ended {
            Ok(Some(view)) => return Ok(view),
            // The stream ended with the move still under way: the migrator is being stopped.
            Ok(None) => Problem::new(Code::Unreachable, "the migrator ended the stream"),
            Err(Failure::Problem { problem, .. }) if last.is_some() && is_passing(&problem) => {
                problem
            }
            Err(failure) => return Err(failure),
        };
        if problem.known_code() != Some(Code::Busy) {
            observer.away();
        }
        let since = *gone_since.get_or_insert_with(Instant::now);
        if since.elapsed() > RETURN_WAIT_MAX {
            return Err(problem.into());
        }
        sleep(RETURN_PAUSE).await;
        if problem.known_code() != Some(Code::Busy) {
            if client.text("/live").await.is_ok() {
                gone_since = None;
            }
            continue;
        }
        let path = format!("/v1/migrations/{id}");
        let Ok(view) = client.get::<MigrationView>(&path).await else {
            continue;
        };
        gone_since = None;
        if last.as_ref() != Some(&view) {
            observer.changed(&view)?;
        }
        if view.phase.is_finished() {
            return Ok(view);
        }
        *last = Some(view);
    }
}

/// Whether a later attempt may succeed, given that the migrator knows the move.
fn is_passing(problem: &Problem) -> bool {
    let code = problem.known_code();
    matches!(code, Some(Code::Unreachable | Code::Stalled | Code::Busy))
}

async fn watch_once(
    client: &Client,
    id: MigrationId,
    last: &mut Option<MigrationView>,
    observer: &mut impl Observer,
) -> Result<Option<MigrationView>, Failure> {
    let path = format!("/v1/migrations/{id}/watch");
    let mut stream = client.follow::<MigrationView>(&path).await?;
    while let Some(view) = stream.next().await? {
        observer.changed(&view)?;
        if view.phase.is_finished() {
            return Ok(Some(view));
        }
        *last = Some(view);
    }
    Ok(None)
}

fn timed_out(id: MigrationId, last: Option<&MigrationView>) -> Failure {
    let again = format!("follow it with `towpath migration watch {id}`");
    if let Some((view, blocked_ms)) = last.and_then(|view| Some((view, view.blocked_ms?))) {
        if let Some(failure) = held_by_journal(view) {
            return failure;
        }
        let cause = format!(
            "move {id} has waited {} for the target's answer; the guest is held",
            milliseconds(blocked_ms)
        );
        let problem = Problem::new(Code::Stalled, cause)
            .message("the handover is blocked: the two hosts cannot talk")
            .remedy(format!(
                "mend the link, and the move goes on by itself; {again}"
            ));
        return Failure::with(problem, Exit::Blocked);
    }
    let phase = last.map_or("unknown", |view| view.phase.as_str());
    let problem = Problem::new(Code::Stalled, format!("move {id} is still {phase}"))
        .message("the move takes longer than --timeout allows")
        .remedy(format!("it goes on; {again}"));
    Failure::with(problem, Exit::Timeout)
}

/// The failure of a blocked move whose source cannot write its journal; `None` if the move is
/// blocked for another reason. The target may have answered long ago.
fn held_by_journal(view: &MigrationView) -> Option<Failure> {
    let error = view.error.as_ref()?;
    let code = Code::parse(&error.code).filter(|code| *code == Code::Journal)?;
    let (id, from) = (view.id, &view.from);
    let problem = Problem::new(code, error.message.as_str())
        .message(format!("move {id} is blocked: the journal at {from} cannot be written"))
        .remedy(format!(
            "mend the disk of {from}'s `state_dir`, then restart the migrator there, and the move goes on by itself"
        ));
    Some(Failure::with(problem, Exit::Blocked))
}

/// The result of a finished move: an error unless the guest has arrived.
pub(crate) fn outcome(view: &MigrationView) -> Result<(), Failure> {
    if view.phase == Phase::Done {
        return Ok(());
    }
    let (guest, from, to) = (&view.guest, &view.from, &view.to);
    let (what, no_cause) = if view.phase == Phase::Cancelled {
        let what = format!("the move of {guest} to {to} was cancelled; it runs at {from}");
        (what, "an operator cancelled it")
    } else {
        let what = format!("guest {guest} did not move from {from} to {to}");
        (what, "the migrator gave no reason")
    };
    let known = view
        .error
        .as_ref()
        .and_then(|error| Code::parse(&error.code));
    let host = view.error.as_ref().and_then(|error| error.host.as_deref());
    let cause = view.error.as_ref().map(|error| match host {
        Some(host) => format!("{host} says: {}", error.message),
        None => error.message.clone(),
    });
    let code = match view.phase {
        Phase::Cancelled => Code::Cancelled,
        _ => known.unwrap_or(Code::Refused),
    };
    let mut problem =
        Problem::new(code, cause.unwrap_or_else(|| no_cause.to_owned())).message(what);
    if let (Some(error), None) = (&view.error, known) {
        problem.code.clone_from(&error.code);
    }
    let of_other = host.and_then(|host| remedy_at(code, host));
    if let Some(remedy) = of_other.or_else(|| remedy_of_end(code, view).map(str::to_owned)) {
        problem = problem.remedy(remedy);
    }
    Err(Failure::from(problem).exit_of(Exit::of_ended_move))
}

/// The remedy for a move that has ended with `code`, where the usual remedy of the code is for a
/// move that goes on by itself.
fn remedy_of_end(code: Code, view: &MigrationView) -> Option<&'static str> {
    let pause_ms = view.predicted_pause_ms.unwrap_or_default();
    Some(match code {
        // The predicted pause is longer than any that can be allowed.
        Code::NotConverging if pause_ms > PAUSE_MS_MAX.into() => {
            "leave `--mode pre` out, allow a higher `--rate`, or move it when it writes less"
        }
        Code::Stalled | Code::Unreachable => {
            "look at the link with `towpath status` and at the target's log, then move the guest again"
        }
        Code::RootMismatch => {
            "check both hosts' memory, and look at what differs: the target keeps it in `incidents/` of its `state_dir`"
        }
        Code::TrackingLost => "move the guest again; do not change swap meanwhile",
        _ => return None,
    })
}

/// The remedy for a problem that `host` reports about itself, where the usual remedy of the code
/// would seem to be about this host.
fn remedy_at(code: Code, host: &str) -> Option<String> {
    let is_its_own = |code: Code| code.blame() == Blame::Local;
    Some(match code {
        Code::GuestExists => format!(
            "see with `towpath guest ls` at {host} what is called so there; stop that one, or choose another target"
        ),
        Code::Kvm => format!(
            "check the rights on /dev/kvm and the processor's virtualization setting at {host}, or choose another target"
        ),
        Code::Busy => format!("try again when one of the moves at {host} has finished"),
        Code::ImageLost | Code::TrackingLost => return None,
        Code::State | Code::NotFound | Code::Refused => look_at(host),
        code if is_its_own(code) => look_at(host),
        _ => return None,
    })
}

fn look_at(host: &str) -> String {
    format!("look at {host}: `towpath status` there, and its migrator's log")
}

/// A progress line on stderr. Hidden if stderr is no terminal or `TERM` is `dumb`.
#[derive(Debug)]
pub(crate) struct LiveLine(ProgressBar);

impl LiveLine {
    pub(crate) fn new() -> Self {
        let is_watched = std::io::stderr().is_terminal()
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let target = if is_watched {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        Self(ProgressBar::with_draw_target(Some(1), target))
    }

    /// Whether the line is visible.
    pub(crate) fn is_watched(&self) -> bool {
        !self.0.is_hidden()
    }

    /// Shows the progress of something other than a move.
    pub(crate) fn say(&self, prefix: &str, text: &str) {
        self.0.set_style(style(OTHER_STYLE));
        self.0.set_prefix(prefix.to_owned());
        self.0.set_message(text.to_owned());
        self.0.tick();
    }

    /// Prints a note above the line, where it stays.
    pub(crate) fn note(&self, text: &str) {
        self.0.suspend(|| note(text));
    }

    /// Removes the line.
    pub(crate) fn clear(&self) {
        self.0.finish_and_clear();
    }
}

impl Observer for LiveLine {
    fn changed(&mut self, view: &MigrationView) -> Result<(), Failure> {
        let (guest, from, to) = (&view.guest, &view.from, &view.to);
        self.0.set_style(style(MOVE_STYLE));
        self.0.set_prefix(format!("{guest} {from} -> {to}"));
        self.0.set_length(view.blocks_total.max(1));
        self.0
            .set_position(view.blocks_total.saturating_sub(view.blocks_left));
        let (state, numbers) = (state(view), numbers(view));
        self.0.set_message(format!("{state}\n  {numbers}"));
        Ok(())
    }

    fn away(&self) {
        self.0.set_message("the migrator does not answer, waiting");
    }

    fn ended(&self) {
        self.clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).expect("the templates are constants");
    style.progress_chars("=> ")
}

impl Drop for LiveLine {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// The state and the numbers of a move, in one line.
pub(crate) fn describe(view: &MigrationView) -> String {
    let parts = [state(view), numbers(view)];
    parts.join("  ").trim_end().to_owned()
}

/// The state of a move: its phase, what is left, trouble with the link, and the error code.
fn state(view: &MigrationView) -> String {
    let mut parts = vec![view.phase.as_str().to_owned()];
    if let (Phase::Copying, Some(round)) = (view.phase, view.round) {
        parts.push(format!("round {round}"));
    }
    // Once a target has every block, it is not told how many of them have changed since.
    let is_known = view.blocks_left > 0 || view.phase != Phase::Receiving;
    if is_known {
        let left = bytes(view.blocks_left.saturating_mul(BLOCK_BYTES));
        parts.push(format!("{left} left ({} blocks)", view.blocks_left));
    }
    if let Some(blocked_ms) = view.blocked_ms {
        parts.push(format!("BLOCKED for {}", milliseconds(blocked_ms)));
    } else if view.link == LinkState::Down {
        let is_new = view.phase == Phase::Preparing;
        parts.push(if is_new { "connecting" } else { "LINK DOWN" }.to_owned());
    } else if let Some(silent_ms) = view.silent_ms {
        parts.push(format!("LINK SILENT for {}", milliseconds(silent_ms)));
    }
    if let Some(error) = &view.error {
        parts.push(escape(&error.code));
    }
    parts.join("  ")
}

/// Formats a rate of guest memory, in bytes per second.
pub(crate) fn a_second(bytes_per_second: u64) -> String {
    format!("{}/s", bytes(bytes_per_second))
}

/// The speed of a move and its predictions. Both rates are in bytes of guest memory, so that they
/// can be compared.
fn numbers(view: &MigrationView) -> String {
    let mut parts = Vec::new();
    if let Some(goodput) = view.goodput_bytes_per_second {
        parts.push(format!("copies {}", a_second(goodput)));
    }
    if let Some(dirty) = view.dirty_bytes_per_second {
        parts.push(format!("dirties {}", a_second(dirty)));
    }
    if let Some(eta) = view.eta_ms {
        parts.push(format!("eta {}", milliseconds(eta)));
    }
    if let Some(pause) = view.predicted_pause_ms {
        parts.push(format!("pause ~{}", milliseconds(pause)));
    }
    parts.join("  ")
}

#[cfg(test)]
mod tests {
    use towpath_migrator::api::{ErrorView, Role};
    use towpath_protocol::fault::Fault;

    use super::*;

    #[test]
    fn no_longer_pause_is_advised_than_can_be_asked_for() {
        let name = |name: &str| name.parse().unwrap();
        let (from, to) = (name("edge"), name("region"));
        let guest = (MigrationId(1), name("till"));
        let mut view = MigrationView::begun(guest, Role::Source, (from, to), Phase::Failed);
        let gone_on = "the path is longer than the pause";
        view.error = Some(ErrorView::from(&Fault::new(Code::NotConverging, gone_on)));
        let remedy = |view: &MigrationView| {
            let Err(Failure::Problem { problem, .. }) = outcome(view) else {
                panic!("it has failed");
            };
            problem.remedy
        };
        for (pause_ms, is_longer) in [(68, true), (60_000, true), (139_686, false)] {
            view.predicted_pause_ms = Some(pause_ms);
            let remedy = remedy(&view);
            assert_eq!(remedy.contains("--max-pause"), is_longer, "{remedy}");
            assert!(remedy.contains("`--mode pre` out"), "{remedy}");
        }
    }

    #[test]
    fn a_move_that_is_blocked_says_what_keeps_it() {
        let name = |name: &str| name.parse().unwrap();
        let (from, to) = (name("edge"), name("region"));
        let guest = (MigrationId(1), name("till"));
        let mut view = MigrationView::begun(guest, Role::Source, (from, to), Phase::Committed);
        view.blocked_ms = Some(9000);
        let journal = ErrorView::from(&Fault::new(Code::Journal, "fsync failed"));
        let lanes = ErrorView::from(&Fault::new(Code::Unreachable, "no lanes"));
        for (error, said) in [
            (None, "mend the link"),
            (Some(lanes), "mend the link"),
            (Some(journal), "restart the migrator"),
        ] {
            view.error = error;
            let Failure::Problem { problem, exit } = timed_out(view.id, Some(&view)) else {
                panic!("it is blocked");
            };
            assert_eq!(exit, Exit::Blocked);
            assert!(problem.remedy.contains(said), "{}", problem.remedy);
        }
    }

    #[test]
    fn a_live_line_says_how_much_is_left_in_bytes_and_in_blocks() {
        let name = |name: &str| name.parse().unwrap();
        let (from, to) = (name("edge"), name("region"));
        let id = MigrationId(1);
        let (guest, role) = ((id, name("till")), Role::Source);
        let mut view = MigrationView::begun(guest, role, (from, to), Phase::Copying);
        view.link = LinkState::Up;
        view.round = Some(2);
        view.blocks_total = 4096;
        view.blocks_left = 512;
        view.goodput_bytes_per_second = Some(1 << 20);
        let line = describe(&view);
        let expected = "copying  round 2  2.0 MiB left (512 blocks)  copies 1.0 MiB/s";
        assert_eq!(line, expected);
    }

    #[test]
    fn a_target_that_does_not_know_what_is_left_says_nothing_of_it() {
        let name = |name: &str| name.parse().unwrap();
        let (from, to) = (name("edge"), name("region"));
        let (guest, role) = ((MigrationId(1), name("till")), Role::Target);
        let mut view = MigrationView::begun(guest, role, (from, to), Phase::Receiving);
        view.link = LinkState::Up;
        view.blocks_left = 512;
        assert_eq!(describe(&view), "receiving  2.0 MiB left (512 blocks)");
        view.blocks_left = 0;
        assert_eq!(describe(&view), "receiving");
    }
}
