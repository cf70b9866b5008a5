//! State that all workers of a host share: its store, its quota, and its view of guests and moves.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use towpath_daemon::lines::RateLimit;
use towpath_protocol::admission::{Admission, Living, Quota};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::{AttemptId, Epoch, GuestId, HostIdentity, MigrationId, Name};
use towpath_protocol::time::Instant;
use tracing::{info, warn};

use super::ground::{now, unix_ms};
use super::input::Input;
use super::kvm::Kvm;
use super::mailbox::Mailbox;
use super::metrics::{Metrics, Moves};
use super::quarantine::Quarantine;
use crate::api::{
    ErrorView, GuestKind, GuestState, GuestView, MigrationView, Ownership, Phase, Role,
};
use crate::config::Config;
use crate::guest::GuestCommand;
use crate::store::Store;

/// Finished moves that stay visible.
const FINISHED_COUNT_MAX: usize = 256;

/// The environment variable that names a step at which this process kills itself. Tests use it to
/// check that nothing is lost if a daemon dies there.
/// Builds without debug assertions, as users install them, do not read it.
const FAILPOINT_VARIABLE: &str = "TOWPATH_FAILPOINT";

/// The guests and moves that the API shows.
#[derive(Debug)]
pub(super) struct Board {
    pub(super) guests: BTreeMap<GuestId, GuestView>,
    /// Guests without memory on this host: no process, no memory file, and no process waited for.
    without_memory: BTreeSet<GuestId>,
    /// Quarantined folders. Keyed by folder, because several may claim the same guest, and that
    /// guest may also be healthy here.
    quarantined: BTreeMap<Name, GuestView>,
    pub(super) moves: BTreeMap<MigrationId, MigrationView>,
    finished: VecDeque<MigrationId>,
    /// Per open move: guest bytes carried so far, and when that number last changed.
    carried: BTreeMap<MigrationId, (u64, Instant)>,
    counted: Moves,
}

impl Board {
    pub(super) const fn new(counted: Moves) -> Self {
        Self {
            guests: BTreeMap::new(),
            without_memory: BTreeSet::new(),
            quarantined: BTreeMap::new(),
            moves: BTreeMap::new(),
            finished: VecDeque::new(),
            carried: BTreeMap::new(),
            counted,
        }
    }

    /// All visible guests, quarantined ones last.
    pub(super) fn all_guests(&self) -> impl Iterator<Item = &GuestView> {
        self.guests.values().chain(self.quarantined.values())
    }

    /// Shows a guest and whether it holds memory here.
    pub(super) fn show_guest(&mut self, view: GuestView, has_memory: bool) {
        if has_memory {
            self.without_memory.remove(&view.id);
        } else {
            self.without_memory.insert(view.id);
        }
        self.guests.insert(view.id, view);
    }

    /// Stops showing a guest.
    pub(super) fn forget_guest(&mut self, id: GuestId) {
        self.guests.remove(&id);
        self.without_memory.remove(&id);
    }

    /// Whether a guest takes memory here. True for an arriving guest, whose process exists even
    /// while it is too busy to be driven; for a guest with a process; and for a frozen guest whose
    /// memory is held for its target.
    fn has_memory(&self, guest: &GuestView) -> bool {
        let is_held = guest.state == GuestState::Frozen && !self.without_memory.contains(&guest.id);
        is_held || guest.state == GuestState::Incoming || guest.process_id.is_some()
    }

    /// Shows a guest as frozen and its target's, without waiting for its worker to publish.
    pub(super) fn show_relinquished(&mut self, guest: GuestId) {
        if let Some(view) = self.guests.get_mut(&guest) {
            view.state = GuestState::Frozen;
            view.ownership = Ownership::Relinquished;
        }
    }

    /// Shows a move that began before the restart. Its progress up to then is already counted.
    pub(super) fn show_known_move(&mut self, view: MigrationView) {
        self.note_carried(&view, now());
        self.moves.insert(view.id, view);
    }

    pub(super) fn show_move(&mut self, mut view: MigrationView) {
        self.note_carried(&view, now());
        let known = self.moves.get(&view.id);
        let is_undone = matches!(view.phase, Phase::Failed | Phase::Cancelled);
        if let Some(known) = known.filter(|_| is_undone && view.role == Role::Source) {
            // Keep the last known blocks left: they say how far the move came, and its attempt no
            // longer knows them.
            view.blocks_left = known.blocks_left;
            view.blocks_total = known.blocks_total;
        }
        self.counted.count(known, &view);
        if view.phase.is_finished() && known.is_none_or(|known| !known.phase.is_finished()) {
            self.counted.count_end(&view);
            log_end(&view);
        }
        if !view.phase.is_finished() {
            // The move began another attempt, so it no longer counts among the finished ones.
            self.finished.retain(|id| *id != view.id);
        } else if !self.finished.contains(&view.id) {
            self.finished.push_back(view.id);
        }
        self.moves.insert(view.id, view);
        if self.finished.len() > FINISHED_COUNT_MAX
            && let Some(oldest) = self.finished.pop_front()
        {
            self.moves.remove(&oldest);
        }
    }

    /// Notes the time if a move has carried bytes since it was last shown.
    pub(super) fn note_carried(&mut self, view: &MigrationView, at: Instant) {
        if view.phase.is_finished() {
            self.carried.remove(&view.id);
            return;
        }
        let known = self.carried.get(&view.id);
        if known.is_none_or(|(bytes, _)| *bytes != view.raw_bytes) {
            self.carried.insert(view.id, (view.raw_bytes, at));
        }
    }

    /// The longest time for which any open move has carried nothing.
    pub(super) fn stalled(&self, now: Instant) -> Duration {
        let times = self.carried.values().map(|(_, at)| now.since(*at));
        times.max().unwrap_or_default()
    }
}

/// Logs how a move ended, and why if it failed.
fn log_end(view: &MigrationView) {
    let (migration, guest, role) = (&view.id, &view.guest, view.role.as_str());
    let (from, to, phase) = (&view.from, &view.to, view.phase.as_str());
    match &view.error {
        Some(ErrorView {
            code,
            message,
            host,
        }) => {
            let by = host.as_deref().unwrap_or("this host");
            if view.phase == Phase::Cancelled {
                info!(%migration, %guest, role, %from, %to, cause = %message, by, "move {phase}");
            } else {
                warn!(%migration, %guest, role, %from, %to, %code, cause = %message, by, "move {phase}");
            }
        }
        None => info!(%migration, %guest, role, %from, %to, "move {phase}"),
    }
}

/// How other threads reach a worker.
#[derive(Debug, Clone)]
pub(super) struct Handle {
    pub(super) name: Option<Name>,
    /// The peer whose lanes or offer the worker was started for. `None` once the guest is here.
    pub(super) made_for: Option<HostIdentity>,
    pub(super) mailbox: Arc<Mailbox<Input>>,
}

impl Handle {
    /// Whether the worker exists only because `peer` opened lanes; no guest has been offered on
    /// them yet.
    pub(super) fn is_stranger_of(&self, peer: &HostIdentity) -> bool {
        self.name.is_none() && self.made_for.as_ref() == Some(peer)
    }

    /// Whether the worker exists for a guest that `peer` offered and that has not arrived yet.
    fn is_offered_by(&self, peer: &HostIdentity) -> bool {
        self.name.is_some() && self.made_for.as_ref() == Some(peer)
    }
}

/// State that all workers share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) host: HostIdentity,
    pub(super) store: Store,
    pub(super) metrics: Metrics,
    pub(super) kvm: Kvm,
    pub(super) started_unix_ms: u64,
    board: Mutex<Board>,
    workers: Mutex<BTreeMap<GuestId, Handle>>,
    /// Admission control. All decisions about who may arrive or start here are made under this one
    /// lock.
    room: Mutex<Admission>,
    quarantine: Mutex<Quarantine>,
    /// Requested moves of this host's guests that are not on the board yet.
    leaving: Mutex<BTreeSet<MigrationId>>,
    /// Limits audit lines, so that a misbehaving peer cannot fill the disk with them.
    refusals: RateLimit,
    failpoint: Option<String>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .expect("nothing panics while it holds what is shared")
}

impl Shared {
    pub(super) fn new(config: Config, store: Store) -> Result<Self, Fault> {
        let quota = Quota {
            memory_bytes_max: config.quota.memory.bytes(),
            guest_count_max: config.quota.guests as usize,
            per_peer_count_max: config.limits.incoming_per_peer as usize,
            offer_wait: config.limits.offer_wait.duration(),
        };
        let metrics = Metrics::new(config.metrics)?;
        Ok(Self {
            host: config.identity(),
            store,
            board: Mutex::new(Board::new(metrics.moves())),
            metrics,
            kvm: Kvm::default(),
            started_unix_ms: unix_ms(),
            workers: Mutex::default(),
            room: Mutex::new(Admission::new(quota)),
            quarantine: Mutex::default(),
            leaving: Mutex::default(),
            refusals: RateLimit::default(),
            failpoint: cfg!(debug_assertions)
                .then(|| std::env::var(FAILPOINT_VARIABLE).ok())
                .flatten(),
            config,
        })
    }

    /// The command line that starts a guest's process.
    pub(super) fn guest_command(&self) -> Result<GuestCommand, Fault> {
        let mut words = self.config.guest_command()?.into_iter();
        let program = words
            .next()
            .ok_or_else(|| Fault::new(Code::Config, "guest_command is empty"))?;
        Ok(GuestCommand {
            program: program.into(),
            arguments: words.map(Into::into).collect(),
        })
    }

    pub(super) fn board(&self) -> MutexGuard<'_, Board> {
        lock(&self.board)
    }

    pub(super) fn workers(&self) -> MutexGuard<'_, BTreeMap<GuestId, Handle>> {
        lock(&self.workers)
    }

    /// Finds the worker of a guest by name.
    pub(super) fn worker(&self, name: &Name) -> Result<Handle, Fault> {
        let workers = self.workers();
        let found = workers
            .values()
            .find(|handle| handle.name.as_ref() == Some(name));
        found
            .cloned()
            .ok_or_else(|| Fault::new(Code::NotFound, format!("no guest {name} on this host")))
    }

    /// Gives a name to a guest, unless another guest has it.
    pub(super) fn claim_name(&self, name: &Name, id: GuestId) -> Result<(), Fault> {
        if lock(&self.quarantine).has(name) {
            let detail = format!("a guest called {name} is quarantined on this host");
            return Err(Fault::new(Code::GuestExists, detail));
        }
        let mut workers = self.workers();
        let taken = workers
            .iter()
            .any(|(other, handle)| *other != id && handle.name.as_ref() == Some(name));
        if taken {
            let detail = format!("another guest on this host is called {name}");
            return Err(Fault::new(Code::GuestExists, detail));
        }
        if let Some(handle) = workers.get_mut(&id) {
            handle.name = Some(name.clone());
        }
        Ok(())
    }

    /// Checks that `source` may offer a guest that is not here. Each such guest needs a record that
    /// outlives the attempt, in case it does not arrive.
    ///
    /// # Errors
    ///
    /// `E_BUSY` if this peer has too many of them on offer or on record. No record is made in that
    /// case.
    pub(super) fn check_share(&self, source: &HostIdentity, guest: GuestId) -> Result<(), Fault> {
        let workers = self.workers();
        let offered = workers
            .iter()
            .filter(|(other, handle)| **other != guest && handle.is_offered_by(source));
        let offered_count = offered.count();
        drop(workers);
        self.store.check_share(guest, source, offered_count)
    }

    /// Sets the peer on whose offer a guest's worker depends; `None` if it depends on no offer.
    pub(super) fn made_for(&self, guest: GuestId, source: Option<&HostIdentity>) {
        if let Some(handle) = self.workers().get_mut(&guest) {
            handle.made_for = source.cloned();
        }
    }

    /// The guests that count as taking memory here.
    fn living(&self) -> Vec<Living> {
        let board = self.board();
        let guests = board.guests.values();
        guests
            .filter(|guest| board.has_memory(guest))
            .map(|guest| Living {
                guest: guest.id,
                memory_bytes: guest.memory_bytes,
            })
            .collect()
    }

    /// Memory of those guests, in bytes.
    pub(super) fn memory_used_bytes(&self) -> u64 {
        self.living().iter().map(|guest| guest.memory_bytes).sum()
    }

    /// Reserves room for a guest that a peer sends.
    pub(super) fn admit(
        &self,
        source: &HostIdentity,
        guest: GuestId,
        attempt: AttemptId,
        memory_bytes: u64,
    ) -> Result<(), Fault> {
        let mut room = lock(&self.room);
        let living = self.living();
        room.admit(source, guest, attempt, memory_bytes, &living, now())
    }

    /// Reserves room again for an attempt that began before a restart.
    pub(super) fn readmit(
        &self,
        source: &HostIdentity,
        attempt: (GuestId, AttemptId),
        memory_bytes: u64,
        has_data: bool,
    ) {
        lock(&self.room).readmit(source, attempt, memory_bytes, has_data, now());
    }

    /// Reserves room for a guest that starts here. The room is reserved while the returned value is
    /// held, which must be until the guest is on the board or has failed to start.
    pub(super) fn begin(self: &Arc<Self>, guest: GuestId, memory: u64) -> Result<Beginning, Fault> {
        let mut room = lock(&self.room);
        let living = self.living();
        room.begin(guest, memory, &living, now())?;
        Ok(Beginning {
            shared: Arc::clone(self),
            guest,
        })
    }

    /// Shows a guest whose folder cannot be trusted. Nothing is done with the folder, and no answer
    /// is given about the guests that its files name (`claims`).
    pub(super) fn quarantine(&self, name: &Name, claims: &[GuestId], fault: &Fault) {
        lock(&self.quarantine).add(name, claims);
        let mut board = self.board();
        let unknown = GuestId(u128::from(u64::MAX) + board.quarantined.len() as u128);
        let id = claims.first().copied().unwrap_or(unknown);
        board
            .quarantined
            .insert(name.clone(), quarantined(name, id, fault));
    }

    /// Reserves a place for another outgoing move. It is reserved while the returned value is held,
    /// which must be until the move is on the board or has failed to begin.
    ///
    /// # Errors
    ///
    /// `E_BUSY` if `limits.outgoing` moves are already open.
    pub(super) fn begin_to_leave(self: &Arc<Self>, id: MigrationId) -> Result<Leaving, Fault> {
        let mut beginning = lock(&self.leaving);
        let board = self.board();
        let is_open =
            |view: &&MigrationView| view.role == Role::Source && !view.phase.is_finished();
        let open = board.moves.values().filter(is_open).count();
        let unseen = beginning.iter().filter(|id| !board.moves.contains_key(id));
        let count = open + unseen.count();
        if count >= self.config.limits.outgoing as usize {
            let detail =
                format!("{count} guests are leaving already: wait, or raise limits.outgoing");
            return Err(Fault::new(Code::Busy, detail));
        }
        beginning.insert(id);
        let shared = Arc::clone(self);
        Ok(Leaving { shared, id })
    }

    /// Fails if a guest that has no worker is claimed by a quarantined folder.
    pub(super) fn check_quarantine(&self, id: GuestId) -> Result<(), Fault> {
        lock(&self.quarantine).check(id)
    }

    /// Counts a refused message of a peer. Codes that no honest peer causes (claims about guests
    /// that are not its own, or no longer) also go to the audit log and raise an alert: either two
    /// hosts claim the same guest, or one lies.
    pub(super) fn refused(&self, peer: &HostIdentity, fault: &Fault) {
        if self.metrics.rejected(fault.code)
            && let Some(untold) = self.refusals.admit()
        {
            warn!(target: "audit", %peer, %fault, untold, "what a peer says of a guest is refused");
        }
    }

    /// Keeps the place of an attempt for which data came.
    pub(super) fn touched(&self, guest: GuestId, attempt: AttemptId) {
        lock(&self.room).touch(guest, attempt, now());
    }

    /// Frees the place of an attempt that is over.
    pub(super) fn released(&self, guest: GuestId, attempt: AttemptId) {
        lock(&self.room).release(guest, attempt);
    }

    /// Kills this process if a test asks for that at this step: as by `kill -9`, so nothing more is
    /// written or sent.
    pub(super) fn failpoint(&self, side: &str, step: &str) {
        let Some(wanted) = &self.failpoint else {
            return;
        };
        if wanted.split_once(':') == Some((side, step)) {
            let own = rustix::process::getpid();
            // Does not return. If the signal could not be sent, the test that asked for it fails.
            let _ = rustix::process::kill_process(own, rustix::process::Signal::KILL);
        }
    }
}

/// Room reserved for a guest that is about to start here.
#[derive(Debug)]
pub(super) struct Beginning {
    shared: Arc<Shared>,
    guest: GuestId,
}

impl Drop for Beginning {
    fn drop(&mut self) {
        lock(&self.shared.room).end(self.guest);
    }
}

/// A reserved place among the outgoing moves.
#[derive(Debug)]
pub(super) struct Leaving {
    shared: Arc<Shared>,
    id: MigrationId,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        lock(&self.shared.leaving).remove(&self.id);
    }
}

/// Says where a guest lives that is known here but lives on another host.
pub(super) fn elsewhere(guest: &GuestView) -> Option<String> {
    let name = &guest.name;
    match (guest.state, &guest.moved_to) {
        (GuestState::Moved, Some(host)) => Some(format!("guest {name} has moved to {host}")),
        (GuestState::Absent, _) => Some(format!(
            "guest {name} lives on another host: it was on its way here and did not come"
        )),
        _ => None,
    }
}

pub(super) fn quarantined(name: &Name, id: GuestId, fault: &Fault) -> GuestView {
    GuestView {
        name: name.clone(),
        id,
        kind: GuestKind::Auto,
        state: GuestState::Quarantined,
        ownership: Ownership::Vacant,
        epoch: Epoch(0),
        memory_bytes: 0,
        dirty_pages_per_second: 0,
        working_set_bytes: 0,
        incompressible_percent: 0,
        heartbeat_interval_us: 0,
        heartbeat_sequence: None,
        process_id: None,
        moved_to: None,
        migration: None,
        console: None,
        error: Some(ErrorView::from(fault)),
    }
}

/// A random 128-bit number for use as an id.
pub(super) fn random_id() -> Result<u128, Fault> {
    let mut bytes = [0; 16];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    match filled {
        Ok(16) => Ok(u128::from_le_bytes(bytes)),
        Ok(count) => Err(Fault::new(Code::Io, format!("{count} of 16 random bytes"))),
        Err(error) => Err(Fault::new(Code::Io, format!("random bytes: {error}"))),
    }
}
