//! A move as it was ordered, as a file that outlives the migrator, and as the API shows it before anything is
//! known of it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::{AttemptId, HostIdentity, MigrationId};
use towpath_protocol::ownership::State;
use towpath_protocol::plan::{Mode, Policy};
use towpath_protocol::source::Progress;
use tracing::warn;

use super::adopt::BUSY_WAIT;
use super::ground::{Ground, file_name, unix_ms};
use crate::api::{ErrorView, MigrationMode, MigrationRequest, MigrationView, Phase, Role};

/// The file that remembers a move, so that a restarted migrator goes on with it.
const MOVE_FILE: &str = "move.json";

/// Attempts before a move is given up: each fails for another reason than the link, which only pauses
/// one.
pub(super) const ATTEMPT_COUNT_MAX: u32 = 5;

/// Starts in the middle of an attempt before a move is given up: each finds it as it was, and what ends a migrator in
/// it once, as a bug does or the memory that it takes, mostly ends the next one too, and every other move with it.
pub(super) const START_COUNT_MAX: u32 = 8;

/// How far apart such starts are of which one has nothing to do with the next: a host may be updated many times while a
/// large guest crosses a thin link.
const STARTS_APART: Duration = Duration::from_hours(1);

/// Wait before another attempt of a move.
const RETRY_DELAY: Duration = Duration::from_millis(300);

/// The same where its target had something else to do, as to hear that the guest which comes back has arrived
/// here: a few times that is over the path between them.
const BUSY_TARGET_WAIT: Duration = Duration::from_secs(1);

/// A move as it was ordered, and how far it got: what is on disk of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) id: MigrationId,
    pub(super) target: HostIdentity,
    pub(super) request: MigrationRequest,
    pub(super) attempt: AttemptId,
    pub(super) attempts: u32,
    pub(super) started_unix_ms: u64,
    /// Starts of the migrator in the middle of an attempt, since one last came to its end.
    #[serde(default)]
    pub(super) starts: u32,
    /// When the last of them was.
    #[serde(default)]
    pub(super) last_start_unix_ms: u64,
    /// What its attempts that are over came to.
    #[serde(default)]
    pub(super) spent: Spent,
    /// Whether the target can have heard of the attempt. Of one of before a restart nobody knows.
    #[serde(skip, default = "can_be")]
    pub(super) may_be_heard: bool,
}

/// What attempts of a move came to: it is shown of the move, whichever attempt ends it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Spent {
    pub(super) raw_bytes: u64,
    pub(super) wire_bytes: u64,
    pub(super) demand_count: u64,
    pub(super) round_count: u32,
}

impl Spent {
    /// The same with another attempt.
    pub(super) const fn with(self, attempt: &Progress) -> Self {
        Self {
            raw_bytes: self.raw_bytes.saturating_add(attempt.raw_bytes),
            wire_bytes: self.wire_bytes.saturating_add(attempt.wire_bytes),
            demand_count: self.demand_count.saturating_add(attempt.demand_count),
            round_count: self
                .round_count
                .saturating_add(attempt.finished_round_count),
        }
    }
}

const fn can_be() -> bool {
    true
}

impl Order {
    /// Whether another attempt may end better: the operator did not end it, and the two sides can
    /// agree.
    pub(super) const fn is_worth_another(&self, fault: &Fault) -> bool {
        let may_pass = matches!(
            fault.code,
            Code::ImageLost
                | Code::TrackingLost
                | Code::Unreachable
                | Code::Stalled
                | Code::Conflict
                | Code::RootMismatch
                | Code::StaleEpoch
                | Code::Busy
        );
        may_pass && self.has_attempts_left()
    }

    /// Wait before the attempt that follows this fault.
    pub(super) fn wait_after(ground: &Ground, fault: &Fault) -> Duration {
        match fault.code {
            _ if ground.awaited.is_some() => BUSY_WAIT,
            Code::Busy => BUSY_TARGET_WAIT,
            _ => RETRY_DELAY,
        }
    }

    /// Notes a start that found the move in the middle of an attempt.
    pub(super) fn note_start(&mut self, now_unix_ms: u64) {
        let since_ms = now_unix_ms.saturating_sub(self.last_start_unix_ms);
        let is_apart = u128::from(since_ms) > STARTS_APART.as_millis();
        self.starts = if is_apart { 1 } else { self.starts + 1 };
        self.last_start_unix_ms = now_unix_ms;
    }

    /// Why a move that was found in the middle of an attempt is not begun again, if so many have ended there.
    pub(super) fn has_ended_starts(&self) -> Option<Fault> {
        (self.starts > START_COUNT_MAX).then(|| {
            let detail = format!(
                "{} migrators ended in the middle of this move, one after the other: their log says why; the guest \
                 stays, and can be moved again",
                self.starts
            );
            Fault::new(Code::State, detail)
        })
    }

    const fn has_attempts_left(&self) -> bool {
        self.attempts < ATTEMPT_COUNT_MAX
    }

    /// Whether another attempt follows: one may end better, or only the guest's process was too slow.
    pub(super) fn is_tried_again(&self, ground: &Ground, fault: &Fault) -> bool {
        let is_slow = fault.code == Code::Guest && ground.awaited.is_some();
        self.is_worth_another(fault) || (is_slow && self.has_attempts_left())
    }

    pub(super) fn policy(&self) -> Policy {
        Policy {
            mode: match self.request.mode {
                MigrationMode::Auto => Mode::Auto,
                MigrationMode::Pre => Mode::Pre,
                MigrationMode::Post => Mode::Post,
            },
            pause_max: Duration::from_millis(u64::from(self.request.max_pause_ms)),
            bytes_per_second_max: self.request.rate_bits_per_second.map(|bits| bits / 8),
        }
    }

    pub(super) fn save(&self, ground: &Ground) -> Result<(), Fault> {
        let Some(folder) = &ground.folder else {
            return Err(Fault::new(Code::State, "the guest has no folder yet"));
        };
        folder.write_document(&file_name(MOVE_FILE), self)
    }

    pub(super) fn load(ground: &Ground) -> Result<Option<Self>, Fault> {
        match &ground.folder {
            Some(folder) => folder.read_document(&file_name(MOVE_FILE)),
            None => Ok(None),
        }
    }

    /// The order of a move behind its commit. The record alone says what is left of it to do: a file that is
    /// gone or spoilt costs it its number and what was asked for.
    pub(super) fn of_commit(ground: &Ground, state: &State) -> Result<Self, Fault> {
        let State::Relinquished {
            attempt, target, ..
        } = state
        else {
            let detail = format!("no commit is said while {}", state.name());
            return Err(Fault::new(Code::State, detail));
        };
        let known = match Self::load(ground) {
            Err(fault) if fault.code == Code::Io => return Err(fault),
            Err(fault) => {
                warn!(guest = %ground.id, %fault, "only the journal speaks of the move");
                None
            }
            Ok(known) => known,
        };
        let guest = ground.name()?.clone();
        let order = known.unwrap_or_else(|| Self {
            id: MigrationId(attempt.0),
            target: target.clone(),
            request: MigrationRequest::plain(guest, target.site.clone()),
            attempt: *attempt,
            attempts: 1,
            started_unix_ms: unix_ms(),
            starts: 0,
            last_start_unix_ms: 0,
            spent: Spent::default(),
            may_be_heard: true,
        });
        Ok(Self {
            attempt: *attempt,
            target: target.clone(),
            ..order
        })
    }

    /// The move before anything is known of it but the order.
    pub(super) fn view(&self, ground: &Ground, phase: Phase) -> MigrationView {
        let sites = (ground.shared.host.site.clone(), self.target.site.clone());
        let guest = self.request.guest.clone();
        MigrationView {
            mode: Some(self.request.mode),
            max_pause_ms: Some(self.request.max_pause_ms),
            rate_bits_per_second: self.request.rate_bits_per_second,
            attempts: Some(self.attempts),
            round: Some(self.spent.round_count),
            rounds: Some(self.spent.round_count),
            raw_bytes: self.spent.raw_bytes,
            wire_bytes: Some(self.spent.wire_bytes),
            demand_fetches: self.spent.demand_count,
            total_ms: unix_ms().saturating_sub(self.started_unix_ms),
            started_unix_ms: self.started_unix_ms,
            finished_unix_ms: phase.is_finished().then(unix_ms),
            ..MigrationView::begun((self.id, guest), Role::Source, sites, phase)
        }
    }

    /// The same when it is over before it came to another attempt.
    pub(super) fn ended_view(&self, ground: &Ground, fault: &Fault) -> MigrationView {
        let phase = if fault.code == Code::Cancelled {
            Phase::Cancelled
        } else {
            Phase::Failed
        };
        MigrationView {
            error: Some(ErrorView::from(fault)),
            ..self.view(ground, phase)
        }
    }

    pub(super) fn forget(ground: &Ground) {
        if let Some(folder) = &ground.folder
            && let Err(fault) = folder.remove(&file_name(MOVE_FILE))
        {
            warn!(%fault, "the finished move's file stays");
        }
    }
}
