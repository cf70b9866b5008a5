//! The host as its API shows it and commands it.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use towpath_daemon::stream::connect_within;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::guest_api::{self, GuestConfig, GuestQuota, VCPU_COUNT_MAX, Workload};
use towpath_protocol::identity::{AttemptId, GuestId, MigrationId, Name};

use super::ground::unix_ms;
use super::input::{Booting, Claim, Command, Input};
use super::lanes::{check_trust, introduce};
use super::order::{Order, Spent};
use super::shared::{Handle, Shared, elsewhere, random_id};
use crate::api::waits;
use crate::api::{
    GuestKind, GuestRequest, GuestView, Host, HostView, LinkState, MigrationRequest, MigrationView,
    Phase, Role, VerifyView,
};

/// Longest wait for the result of a command to appear on the board.
const SHOWN_WAIT_MAX: Duration = Duration::from_secs(5);

/// Longest wait for the tunnel to accept a connection when its health is checked. A status request
/// must not wait for a hung tunnel, and the watchdog uses it too.
const TUNNEL_WAIT: Duration = Duration::from_millis(100);

/// The guests and moves of one host.
#[derive(Debug)]
pub(super) struct Engine {
    shared: Arc<Shared>,
}

impl Engine {
    pub(super) const fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Sends a command to a guest's worker. Once begun, the command takes at most `work_wait`.
    fn ask<T>(
        handle: &Handle,
        work_wait: Duration,
        command: impl FnOnce(Sender<Result<T, Fault>>) -> Command,
    ) -> Result<T, Fault> {
        let (reply, answer) = channel();
        let claim = Claim::default();
        let told = Input::Command(command(reply), claim.clone());
        handle.mailbox.send(told);
        answered(&answer, &claim, [waits::TAKEN, work_wait])
    }

    /// Waits until `look` finds the result on the board.
    fn wait_for<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T, Fault> {
        let begun = std::time::Instant::now();
        loop {
            if let Some(found) = look() {
                return Ok(found);
            }
            if begun.elapsed() > SHOWN_WAIT_MAX {
                return Err(Fault::new(Code::Busy, format!("{what} is not shown yet")));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn find_guest(&self, name: &Name) -> Option<GuestView> {
        let board = self.shared.board();
        board
            .all_guests()
            .find(|guest| guest.name == *name)
            .cloned()
    }

    /// The guest kind to create for the kind that was requested.
    fn kind_of(&self, wanted: GuestKind) -> Result<guest_api::GuestKind, Fault> {
        if wanted == GuestKind::Process {
            return Ok(guest_api::GuestKind::Process);
        }
        let kvm = &self.shared.kvm;
        if kvm.missing_reason().is_some() {
            // KVM may have become usable since: its module loaded, or its device opened to us.
            kvm.look(self.shared.guest_command());
        }
        match kvm.missing_reason() {
            None => Ok(guest_api::GuestKind::Kvm),
            Some(_) if wanted == GuestKind::Auto => Ok(guest_api::GuestKind::Process),
            Some(reason) => Err(Fault::new(Code::Kvm, reason)),
        }
    }

    fn config_of(&self, request: &GuestRequest) -> Result<GuestConfig, Fault> {
        let memory_bytes = request.memory_bytes;
        let usable = memory_bytes.saturating_sub(guest_api::WORKING_SET_START_BYTES);
        let kind = self.kind_of(request.kind)?;
        let id = random_id()?;
        let config = GuestConfig {
            id: GuestId(id),
            name: request.name.clone(),
            kind,
            memory_bytes,
            vcpu_count: 1,
            workload: Workload {
                dirty_pages_per_second: u32::try_from(request.dirty_pages_per_second)
                    .unwrap_or(u32::MAX),
                working_set_bytes: request.working_set_bytes.unwrap_or(usable),
                incompressible_percent: request.incompressible_percent,
                key: u64::try_from(id >> 64).unwrap_or(0),
                heartbeat_interval_us: request.heartbeat_interval_us,
            },
        };
        config.check(&GuestQuota {
            memory_bytes_max: self.shared.config.quota.memory.bytes(),
            vcpu_count_max: VCPU_COUNT_MAX,
        })?;
        Ok(config)
    }

    /// Boots a guest and waits until the board shows it.
    fn boot(&self, name: &Name, how: Booting) -> Result<GuestView, Fault> {
        let handle = self.shared.worker(name)?;
        let known = self.guest(name)?;
        if let Some(where_it_is) = elsewhere(&known) {
            return Err(Fault::new(Code::State, where_it_is));
        }
        let room = self.shared.begin(known.id, known.memory_bytes)?;
        let command = |reply| Command::Boot { room, how, reply };
        Self::ask(&handle, waits::BOOT, command)?;
        let booted =
            |guest: &GuestView| guest.process_id.is_some() && guest.process_id != known.process_id;
        self.wait_for("the guest", || self.find_guest(name).filter(booted))
            // A guest that ended again at once is shown as ended.
            .or_else(|_| self.guest(name))
    }
}

impl Host for Engine {
    fn status(&self) -> HostView {
        let shared = &self.shared;
        let tunnel = shared.config.tunnel_socket();
        let answers = connect_within(&tunnel, TUNNEL_WAIT);
        let not_ready_reason = answers
            .as_ref()
            .err()
            .map(|error| format!("the tunnel's socket {}: {error}", tunnel.display()));
        let memory_used_bytes = shared.memory_used_bytes();
        let board = shared.board();
        let living = board
            .guests
            .values()
            .filter(|guest| guest.process_id.is_some());
        let open = board
            .moves
            .values()
            .filter(|view| !view.phase.is_finished());
        HostView {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            site: shared.host.site.clone(),
            host: shared.host.host.clone(),
            ready: not_ready_reason.is_none(),
            tunnel: if answers.is_ok() {
                LinkState::Up
            } else {
                LinkState::Down
            },
            not_ready_reason,
            kvm_missing_reason: shared.kvm.missing_reason(),
            guest_count: u32::try_from(living.count()).unwrap_or(u32::MAX),
            guest_count_max: shared.config.quota.guests,
            memory_used_bytes,
            memory_quota_bytes: shared.config.quota.memory.bytes(),
            migration_count: u32::try_from(open.count()).unwrap_or(u32::MAX),
            started_unix_ms: shared.started_unix_ms,
        }
    }

    fn guests(&self) -> Vec<GuestView> {
        let mut guests: Vec<GuestView> = self.shared.board().all_guests().cloned().collect();
        guests.sort_by(|one, other| one.name.cmp(&other.name));
        guests
    }

    fn guest(&self, name: &Name) -> Result<GuestView, Fault> {
        let found = self.find_guest(name);
        found.ok_or_else(|| Fault::new(Code::NotFound, format!("no guest {name} on this host")))
    }

    fn start_guest(&self, request: GuestRequest) -> Result<GuestView, Fault> {
        request.check()?;
        if let Some(where_it_is) = self.find_guest(&request.name).as_ref().and_then(elsewhere) {
            return Err(Fault::new(Code::GuestExists, where_it_is));
        }
        let config = self.config_of(&request)?;
        let _room = self.shared.begin(config.id, config.memory_bytes)?;
        super::create_guest(&self.shared, config)?;
        self.wait_for("the guest", || self.find_guest(&request.name))
    }

    fn boot_guest(&self, name: &Name) -> Result<GuestView, Fault> {
        self.boot(name, Booting::Ended)
    }

    fn give_up_missing(&self, name: &Name) -> Result<GuestView, Fault> {
        self.boot(name, Booting::GivenUp)
    }

    fn stop_guest(&self, name: &Name) -> Result<(), Fault> {
        Self::ask(&self.shared.worker(name)?, waits::STOP, Command::Stop)
    }

    fn verify_guest(&self, name: &Name) -> Result<VerifyView, Fault> {
        Self::ask(&self.shared.worker(name)?, waits::VERIFY, Command::Verify)
    }

    fn migrate(&self, request: MigrationRequest) -> Result<MigrationView, Fault> {
        request.check()?;
        let handle = self.shared.worker(&request.guest)?;
        if let Some(where_it_is) = self.find_guest(&request.guest).as_ref().and_then(elsewhere) {
            return Err(Fault::new(Code::State, where_it_is));
        }
        if request.site == self.shared.host.site {
            let detail = format!(
                "guest {} is at site {} already",
                request.guest, request.site
            );
            let remedy = "name another site; `towpath status` lists the peers";
            return Err(Fault::new(Code::Usage, detail).remedy(remedy));
        }
        let id = MigrationId(random_id()?);
        let _leaving = self.shared.begin_to_leave(id)?;
        let tunnel = self.shared.config.tunnel_socket();
        check_trust(&tunnel, &self.shared.host.site)?;
        let target = introduce(&tunnel, &request.site)?;
        let order = Box::new(Order {
            id,
            target,
            request,
            attempt: AttemptId(0),
            attempts: 0,
            started_unix_ms: unix_ms(),
            starts: 0,
            last_start_unix_ms: 0,
            spent: Spent::default(),
            may_be_heard: false,
        });
        let command = |reply| Command::Migrate(order, reply);
        Self::ask(&handle, waits::MOVE, command)?;
        self.wait_for("the move", || self.migration(id).ok())
    }

    fn cancel(&self, id: MigrationId) -> Result<MigrationView, Fault> {
        let view = self.migration(id)?;
        if let Some(why) = not_cancelled(&view) {
            return Err(Fault::new(Code::State, why));
        }
        let handle = self.shared.worker(&view.guest)?;
        Self::ask(&handle, waits::MOVE, |reply| Command::Cancel(id, reply))?;
        self.wait_for("the end of the move", || {
            self.migration(id)
                .ok()
                .filter(|view| view.phase.is_finished())
        })
    }

    fn migrations(&self) -> Vec<MigrationView> {
        let mut moves: Vec<MigrationView> = self.shared.board().moves.values().cloned().collect();
        moves.sort_by_key(|view| std::cmp::Reverse(view.started_unix_ms));
        moves
    }

    fn migration(&self, id: MigrationId) -> Result<MigrationView, Fault> {
        let found = self.shared.board().moves.get(&id).cloned();
        found.ok_or_else(|| Fault::new(Code::NotFound, format!("no move {id} on this host")))
    }

    fn metrics(&self) -> String {
        self.shared.metrics.text(&self.shared.board())
    }
}

/// Waits for a worker's answer: `taken_wait` for it to take the command up, then `work_wait` for it
/// to finish. A command that is not taken up in time is never carried out, so the asker can rely on
/// the error.
fn answered<T>(
    answer: &Receiver<Result<T, Fault>>,
    claim: &Claim,
    [taken_wait, work_wait]: [Duration; 2],
) -> Result<T, Fault> {
    let answered = match answer.recv_timeout(taken_wait) {
        Err(RecvTimeoutError::Timeout) if claim.give_up() => {
            let detail = format!(
                "the guest's worker is at something else for {taken_wait:?}: nothing was done"
            );
            let remedy = "try again in a moment; `towpath guest show` says how the guest stands";
            return Err(Fault::new(Code::Busy, detail).remedy(remedy));
        }
        Err(RecvTimeoutError::Timeout) => answer.recv_timeout(work_wait),
        answered => answered,
    };
    answered.unwrap_or_else(|error| {
        Err(match error {
            RecvTimeoutError::Timeout => {
                let detail = format!("the guest's worker is still at it after {work_wait:?}");
                let remedy = "it goes on: look at the guest with `towpath guest show`";
                Fault::new(Code::Busy, detail).remedy(remedy)
            }
            RecvTimeoutError::Disconnected => {
                Fault::new(Code::NotFound, "the guest was stopped meanwhile")
            }
        })
    })
}

/// Why a move cannot be cancelled from here, as far as known: it is over, or its source is another
/// host.
fn not_cancelled(view: &MigrationView) -> Option<String> {
    let (id, guest, from, to) = (view.id, &view.guest, &view.from, &view.to);
    Some(match (view.phase, view.role) {
        (Phase::Done, _) => format!("move {id} is done: {guest} runs at {to}"),
        (Phase::Failed, _) => format!(
            "move {id} has failed: `towpath guest show {guest}` at {from} says how the guest stands"
        ),
        (Phase::Cancelled, _) => format!("move {id} was cancelled already: {guest} is at {from}"),
        (_, Role::Target) => format!("only its source cancels move {id}: do so at {from}"),
        (_, Role::Source) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_told_that_nothing_was_done_is_told_the_truth() {
        let longest = Duration::from_secs(20);
        // The worker has begun, so its answer is waited for.
        let (reply, answer) = channel();
        let claim = Claim::default();
        assert!(claim.take());
        let working = std::thread::spawn(move || reply.send(Ok(7)).unwrap());
        let done = answered(&answer, &claim, [Duration::ZERO, longest]);
        assert_eq!(done, Ok(7));
        working.join().unwrap();
        // The worker has not begun, and now never will.
        let (reply, answer) = channel::<Result<(), Fault>>();
        let claim = Claim::default();
        let busy = answered(&answer, &claim, [Duration::ZERO, longest]).unwrap_err();
        assert_eq!(busy.code, Code::Busy, "{busy}");
        assert!(!claim.take());
        drop(reply);
        // The worker is gone.
        let (_, answer) = channel::<Result<(), Fault>>();
        let gone = answered(&answer, &Claim::default(), [longest; 2]).unwrap_err();
        assert_eq!(gone.code, Code::NotFound, "{gone}");
    }

    #[test]
    fn a_move_that_is_not_cancelled_says_what_became_of_it() {
        let view = |role, phase| {
            let sites = ("edge".parse().unwrap(), "region".parse().unwrap());
            let ids = (MigrationId(1), "till".parse().unwrap());
            not_cancelled(&MigrationView::begun(ids, role, sites, phase))
        };
        for (role, phase, said) in [
            (Role::Source, Phase::Done, "is done: till runs at region"),
            (Role::Target, Phase::Done, "is done: till runs at region"),
            (Role::Source, Phase::Failed, "at edge"),
            (Role::Source, Phase::Cancelled, "was cancelled already"),
            (Role::Target, Phase::Receiving, "do so at edge"),
        ] {
            let why = view(role, phase).unwrap();
            assert!(why.contains(said), "{why}");
        }
        assert_eq!(view(Role::Source, Phase::Copying), None);
    }
}
