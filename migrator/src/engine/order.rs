//! A move as it was ordered: the file that outlives the migrator, and the move's view before its
//! first progress.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::{AttemptId, HostIdentity, MigrationId};
use towpath_protocol::ownership::State;
use towpath_protocol::plan::Policy;
use towpath_protocol::source::Progress;
use tracing::warn;

use super::adopt::BUSY_WAIT;
use super::ground::{Ground, file_name, unix_ms};
use crate::api::{ErrorView, MigrationRequest, MigrationView, Phase, Role};

/// The file that holds an order, so that a restarted migrator resumes the move.
const MOVE_FILE: &str = "move.json";

/// Attempts before a move is given up. Link outages do not use any up: they only pause an attempt.
pub(super) const ATTEMPT_COUNT_MAX: u32 = 5;

/// Restarts in the middle of an attempt before a move is given up. Each restart finds the same
/// state, so whatever ended the migrator during the attempt (a bug, or memory use) is likely to end
/// the next one too, along with every other move of the host.
pub(super) const START_COUNT_MAX: u32 = 8;

/// Restarts further apart than this are unrelated and do not add up: a host may be updated many
/// times while a large guest crosses a thin link.
const STARTS_APART: Duration = Duration::from_hours(1);

/// Wait before another attempt of a move.
const RETRY_DELAY: Duration = Duration::from_millis(300);

/// Wait before another attempt if the target was busy, for example because it has yet to hear that
/// a guest now coming back has arrived here. A few such waits are longer than that takes over the
/// path between them.
const BUSY_TARGET_WAIT: Duration = Duration::from_secs(1);

/// A move as it was ordered, and its progress; stored on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) id: MigrationId,
    pub(super) target: HostIdentity,
    pub(super) request: MigrationRequest,
    pub(super) attempt: AttemptId,
    pub(super) attempts: u32,
    pub(super) started_unix_ms: u64,
    /// Restarts of the migrator in the middle of an attempt since an attempt last ended.
    #[serde(default)]
    pub(super) starts: u32,
    /// When the last of these restarts was.
    #[serde(default)]
    pub(super) last_start_unix_ms: u64,
    /// Totals of the attempts that are over.
    #[serde(default)]
    pub(super) spent: Spent,
    /// Whether the target can have heard of the attempt. Assumed so after a restart.
    #[serde(skip, default = "can_be")]
    pub(super) may_be_heard: bool,
}

/// Totals over attempts of a move, shown with the move whichever attempt ends it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Spent {
    pub(super) raw_bytes: u64,
    pub(super) wire_bytes: u64,
    pub(super) demand_count: u64,
    pub(super) round_count: u32,
}

impl Spent {
    /// The totals with another attempt added.
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
    /// Whether another attempt may end better: the operator did not end the move, and the two sides
    /// can agree.
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

    /// Wait before the attempt that follows `fault`.
    pub(super) fn wait_after(ground: &Ground, fault: &Fault) -> Duration {
        match fault.code {
            _ if ground.awaited.is_some() => BUSY_WAIT,
            Code::Busy => BUSY_TARGET_WAIT,
            _ => RETRY_DELAY,
        }
    }

    /// Notes a restart that found the move in the middle of an attempt.
    pub(super) fn note_start(&mut self, now_unix_ms: u64) {
        let since_ms = now_unix_ms.saturating_sub(self.last_start_unix_ms);
        let is_apart = u128::from(since_ms) > STARTS_APART.as_millis();
        self.starts = if is_apart { 1 } else { self.starts + 1 };
        self.last_start_unix_ms = now_unix_ms;
    }

    /// The fault that ends the move if too many migrators have ended in the middle of it.
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

    /// Whether another attempt follows: one may end better, or the guest's process was only too
    /// slow.
    pub(super) fn is_tried_again(&self, ground: &Ground, fault: &Fault) -> bool {
        let is_slow = fault.code == Code::Guest && ground.awaited.is_some();
        self.is_worth_another(fault) || (is_slow && self.has_attempts_left())
    }

    pub(super) fn policy(&self) -> Policy {
        Policy {
            mode: self.request.mode.stages(),
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

    /// The order of a committed move. The record alone says what is left to do; if the file is
    /// missing or corrupt, only the move's id and its request are lost.
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

    /// The move's view when nothing but the order is known.
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

    /// The view of a move that ended before another attempt began.
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
