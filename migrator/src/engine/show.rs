//! Publishes the state of a guest and its move to the board.

use std::sync::Arc;
use std::time::Duration;

use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::guest_api::{self, GuestState as ProcessState};
use towpath_protocol::identity::MigrationId;
use towpath_protocol::ownership::{Ownership, State};
use towpath_protocol::time::Instant;

use super::ground::now;
use super::source_move::Stuck;
use super::worker::{Role, Worker};
use crate::api::{self, ErrorView, GuestKind, GuestState, GuestView};
use crate::guest::GuestProcess;

/// Interval at which an otherwise idle guest is checked.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Longest wait for a process to describe itself: all other work for its guest waits meanwhile.
const LOOK_WAIT: Duration = Duration::from_millis(250);

/// Interval at which a process that does not answer is asked again. Every question is answered
/// late, and only so many answers may be outstanding.
const SILENT_LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Shortest interval between two publications of the same standing.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(100);

/// The part of a guest's state whose changes are shown at once: nobody may be told that it runs
/// here while it already runs elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Standing {
    role: &'static str,
    stage: &'static str,
    ownership: &'static str,
    process_id: Option<i32>,
    is_crashed: bool,
    is_awaited: bool,
    migration: Option<MigrationId>,
}

/// What was last shown and what it was based on.
#[derive(Debug, Default)]
pub(super) struct Shown {
    description: Option<guest_api::Description>,
    described_at: Option<Instant>,
    /// The id of a process that does not answer, and since when.
    silent: Option<(i32, Instant)>,
    /// The process's answer count when it was last asked.
    heard_count: u64,
    published: Option<(Instant, Standing)>,
}

impl Worker {
    fn standing(&self) -> Option<Standing> {
        let known = self.role.as_ref()?;
        let (role, stage) = match known {
            Role::Idle(_) => ("idle", ""),
            Role::Broken(..) => ("broken", ""),
            Role::Source(source) => ("source", source.stage().as_str()),
            Role::Target(target) => ("target", target.stage().as_str()),
        };
        let process = self.ground.process.as_ref();
        Some(Standing {
            role,
            stage,
            ownership: known.ownership().record().state.name(),
            process_id: process.map(GuestProcess::process_id),
            is_crashed: self.ground.crash.is_some(),
            is_awaited: self.ground.awaited.is_some(),
            migration: self.migration(),
        })
    }

    /// The move the guest is part of, including one that waits for its next attempt or a restart.
    pub(super) fn migration(&self) -> Option<MigrationId> {
        match &self.role {
            Some(Role::Source(source)) => Some(source.order().id),
            Some(Role::Target(target)) => Some(target.setup().migration),
            _ => {
                let retry = self.retry.as_ref().map(|(_, order)| order.id);
                retry.or_else(|| self.stuck.as_ref().map(Stuck::id))
            }
        }
    }

    /// Publishes the guest's state: at once if its standing changed, else at intervals.
    pub(super) fn publish(&mut self) {
        let Some(standing) = self.standing().filter(|_| !self.is_done) else {
            return;
        };
        let has_changed = self
            .shown
            .published
            .is_none_or(|(_, shown)| shown != standing);
        let is_due = self
            .shown
            .published
            .is_none_or(|(at, _)| now().since(at) >= PUBLISH_INTERVAL);
        if !has_changed && !is_due {
            return;
        }
        self.shown.published = Some((now(), standing));
        if has_changed && standing.role == "idle" {
            // The description from the middle of the move is out of date.
            self.shown.described_at = None;
        }
        self.look();
        let shared = Arc::clone(&self.ground.shared);
        let view = match &self.role {
            Some(Role::Source(source)) => Some(source.view(&self.ground)),
            Some(Role::Target(target)) => target.view(&self.ground),
            _ => self.stuck.as_ref().map(Stuck::view),
        };
        let guest = self.guest_view(self.migration());
        let ground = &self.ground;
        let has_memory =
            ground.process.is_some() || ground.memory.is_some() || ground.awaited.is_some();
        let mut board = shared.board();
        if let Some(view) = view {
            board.show_move(view);
        }
        if let Some(guest) = guest {
            board.show_guest(guest, has_memory);
        }
        drop(board);
        self.room = None;
    }

    /// Asks the guest's process for its state at intervals. While it is too busy to answer, its
    /// last answer is shown.
    fn look(&mut self) {
        let interval = match self.silent_for() {
            Some(_) => SILENT_LOOK_INTERVAL,
            None => LOOK_INTERVAL,
        };
        let shown = &mut self.shown;
        if shown
            .described_at
            .is_some_and(|at| now().since(at) < interval)
        {
            return;
        }
        let asked_at = now();
        shown.described_at = Some(asked_at);
        let Some(process) = &mut self.ground.process else {
            shown.description = None;
            shown.silent = None;
            return;
        };
        let process_id = process.process_id();
        let described = process.describe_within(LOOK_WAIT);
        // It answered an earlier question meanwhile, so it is slow but not silent.
        let has_spoken = process.heard_count() != shown.heard_count;
        shown.heard_count = process.heard_count();
        match described {
            Ok(description) => {
                shown.description = Some(description);
                shown.silent = None;
            }
            Err(_) if !has_spoken && shown.silent.is_some_and(|(id, _)| id == process_id) => {}
            Err(_) => shown.silent = Some((process_id, asked_at)),
        }
    }

    /// For how long the guest's process has not answered, if it is silent.
    pub(super) fn silent_for(&self) -> Option<Duration> {
        let process = self.ground.process.as_ref()?;
        let (process_id, since) = self.shown.silent?;
        (process.process_id() == process_id).then(|| now().since(since))
    }

    fn guest_view(&self, migration: Option<MigrationId>) -> Option<GuestView> {
        let config = self.ground.config.as_ref()?;
        let ownership = self.role.as_ref()?.ownership();
        let record = ownership.record();
        let moved_to = match &record.state {
            State::Relinquished { target, .. } | State::Released { target, .. } => {
                Some(target.to_string())
            }
            _ => None,
        };
        let (state, error) = self.guest_state(ownership);
        Some(GuestView {
            name: config.name.clone(),
            id: self.ground.id,
            kind: match config.kind {
                guest_api::GuestKind::Kvm => GuestKind::Kvm,
                guest_api::GuestKind::Process => GuestKind::Process,
            },
            state,
            ownership: ownership_view(&record.state),
            epoch: match record.state {
                State::Owned { epoch, .. } | State::Offering { epoch, .. } => epoch,
                _ => record.high_water,
            },
            memory_bytes: config.memory_bytes,
            dirty_pages_per_second: config.workload.dirty_pages_per_second.into(),
            working_set_bytes: config.workload.working_set_bytes,
            incompressible_percent: config.workload.incompressible_percent,
            heartbeat_interval_us: config.workload.heartbeat_interval_us,
            heartbeat_sequence: self
                .shown
                .description
                .as_ref()
                .map(|seen| seen.heartbeat_sequence),
            process_id: self
                .ground
                .process
                .as_ref()
                .and_then(|process| u32::try_from(process.process_id()).ok()),
            moved_to,
            migration,
            console: self.console(),
            error: error.map(|fault| ErrorView::from(&fault)),
        })
    }

    /// The path of the guest's console, also for a crashed guest, whose last output is there.
    fn console(&self) -> Option<String> {
        let path = GuestProcess::console_in(&self.ground.path().ok()?);
        path.exists().then(|| path.display().to_string())
    }

    fn guest_state(&self, ownership: &Ownership) -> (GuestState, Option<Fault>) {
        if let Some(Role::Broken(_, fault)) = &self.role {
            let state = if fault.code == Code::Quarantine {
                GuestState::Quarantined
            } else {
                GuestState::Crashed
            };
            return (state, Some(fault.clone()));
        }
        let crash = self.ground.crash.clone();
        let mut ended = None;
        let state = match &ownership.record().state {
            State::Relinquished { .. } => GuestState::Frozen,
            State::Released { .. } => GuestState::Moved,
            State::Prepared { .. } => GuestState::Incoming,
            State::Vacant | State::Refused { .. } => GuestState::Absent,
            State::Owned { .. } | State::Offering { .. } | State::Offered { .. } => {
                match self.shown.description.as_ref().map(|seen| &seen.state) {
                    _ if crash.is_some() => GuestState::Crashed,
                    // Anything that keeps its process this busy is done while the guest is paused.
                    _ if self.ground.awaited.is_some() => GuestState::Frozen,
                    _ if self.ground.process.is_none() => GuestState::Stopped,
                    Some(ProcessState::Crashed { reason }) => {
                        ended = Some(Fault::new(Code::Guest, reason.clone()));
                        GuestState::Crashed
                    }
                    Some(ProcessState::Paused) => GuestState::Frozen,
                    Some(ProcessState::Stopped) => GuestState::Stopped,
                    Some(ProcessState::Created) => GuestState::Created,
                    _ => GuestState::Running,
                }
            }
        };
        (
            state,
            crash.or_else(|| self.ground.awaited.clone()).or(ended),
        )
    }
}

const fn ownership_view(state: &State) -> api::Ownership {
    match state {
        State::Vacant => api::Ownership::Vacant,
        State::Owned { .. } => api::Ownership::Owned,
        State::Offering { .. } => api::Ownership::Offering,
        State::Relinquished { .. } | State::Offered { .. } => api::Ownership::Relinquished,
        State::Released { .. } => api::Ownership::Released,
        State::Prepared { .. } => api::Ownership::Prepared,
        State::Refused { .. } => api::Ownership::Refused,
    }
}
