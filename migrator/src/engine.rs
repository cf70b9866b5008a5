//! The engine: one worker per guest, lanes between migrators, and the host as its API shows it.
//!
//! ```text
//!   API ──► Host ──► mailbox ──► worker (one thread per guest) ──► machine of `protocol`
//!                       ▲            │ carries its actions out
//!   tunnel ─► listener ─┤            ├──► journal, guest process
//!   lanes ──► readers ──┤            └──► lanes, outbox ─► codec threads ─► bulk lane
//!   guest ──► faults ───┘
//! ```
//!
//! A worker blocks on nothing but its mailbox. Anything slow runs on another thread that reports
//! back to it.

mod adopt;
mod boot;
#[cfg(test)]
mod fake;
mod greeting;
mod ground;
mod host;
mod incident;
mod input;
mod judge;
mod kvm;
mod lanes;
mod mailbox;
mod metrics;
mod order;
mod outbox;
mod quarantine;
mod shared;
mod show;
mod source_move;
mod stop;
mod target_move;
#[cfg(test)]
mod tests;
mod worker;

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use tokio::runtime::Handle as RuntimeHandle;
use tokio::signal::unix::{SignalKind, signal};
use towpath_daemon::http;
use towpath_daemon::liveness::{self, Part};
use towpath_daemon::shutdown;
use towpath_daemon::socket::Socket;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::guest_api::GuestConfig;
use towpath_protocol::identity::{GuestId, HostIdentity, Name};
use towpath_protocol::ownership::{Ownership, Record, State};
use tracing::{error, info, warn};

use greeting::accept_lanes;
use ground::{Ground, is_unborn};
use host::Engine;
use input::Input;
use lanes::spawn;
use mailbox::Mailbox;
use shared::{Handle, Shared};
use worker::Worker;

use crate::api::{self, Host, HostView};
use crate::config::Config;
use crate::store::Store;

pub use lanes::SERVICE;

/// Longest wait at startup for the guests of the previous migrator to be recovered before the API
/// is served. Recovery takes milliseconds unless a guest's process hangs.
const RECOVER_WAIT: Duration = Duration::from_secs(5);

/// Most guests unknown to this host for which one peer may hold lanes at once; each costs a thread.
/// A peer never sends, or announces as not coming, this many at once.
const STRANGERS_PER_PEER_MAX: usize = 64;

/// Runs a migrator until SIGTERM or SIGINT. Guests keep running without it. A guest paused for a
/// switch that is not committed is resumed.
///
/// # Errors
///
/// `E_ALREADY_RUNNING` if another migrator has the state folder, `E_PATH`, `E_IO`, `E_CONFIG`.
pub fn run(config: Config) -> Result<(), Fault> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("towpath-http")
        .enable_all()
        .build()
        .map_err(|error| Fault::new(Code::Io, format!("the runtime: {error}")))?;
    runtime.block_on(async { outlive_hangups() })?;
    let store = Store::open(&config.state_dir)?;
    let shared = Arc::new(Shared::new(config, store)?);
    let operators = Socket::bind(&shared.config.socket())?;
    let service = Socket::bind(&shared.config.service_socket())?;
    recover_guests(&shared)?;
    let listening = Arc::clone(&shared);
    spawn("towpath-accept", move || accept_lanes(&listening, &service))?;
    // The workers already run, so no move waits for this probe.
    shared.kvm.look(shared.guest_command());
    let served = runtime.block_on(serve(Arc::clone(&shared), operators));
    stop::stop_workers(&shared);
    // Calls still waiting for a worker get no answer.
    runtime.shutdown_background();
    served
}

async fn serve(shared: Arc<Shared>, operators: Socket) -> Result<(), Fault> {
    let (_trigger, stop) = shutdown::on_signals()?;
    let engine = Arc::new(Engine::new(Arc::clone(&shared)));
    let asked = Arc::clone(&engine);
    let http = Part::new("http", RuntimeHandle::current(), move || {
        Some(line(&asked.status()))
    });
    let _watching = liveness::watch(vec![http])?;
    // Each socket gets a router, and so its own limit on clients that follow moves.
    let router = || api::router(engine.clone());
    if let Some(address) = shared.config.listen {
        let listener = http::bind_loopback(address).await?;
        tokio::spawn(http::serve_loopback(listener, router(), stop.clone()));
    }
    info!(host = %shared.host, socket = %operators.path().display(), "migrator is ready");
    towpath_daemon::notify::ready();
    http::serve_unix(operators, router(), stop).await
}

/// Ignores SIGHUP, so that closing a terminal or asking for a reload does not end the migrator.
fn outlive_hangups() -> Result<(), Fault> {
    let hangups = signal(SignalKind::hangup());
    let mut hangups =
        hangups.map_err(|error| Fault::new(Code::Io, format!("cannot catch signals: {error}")))?;
    tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            warn!(
                "SIGHUP: nothing is read again; restart the migrator, guests and moves outlive that"
            );
        }
    });
    Ok(())
}

/// The host's state in one line, for the service manager.
fn line(host: &HostView) -> String {
    let plural = |count: u64, what: &str| {
        let ending = if count == 1 { "" } else { "s" };
        format!("{count} {what}{ending}")
    };
    let (guests, moves) = (host.guest_count.into(), host.migration_count.into());
    let mut line = format!(
        "{}, {} under way",
        plural(guests, "guest"),
        plural(moves, "move")
    );
    if let Some(why) = &host.not_ready_reason {
        line = format!("{line}; not ready: {why}");
    }
    line
}

/// Starts a worker for every guest that has a folder and waits until all are on the board: once the
/// migrator is ready, its answers must not leave out a guest that runs here.
fn recover_guests(shared: &Arc<Shared>) -> Result<(), Fault> {
    let (shown, all_shown) = channel();
    for name in shared.store.guests()? {
        if let Err(fault) = recover_guest(shared, &name, shown.clone()) {
            // A fault of one guest must not keep the others from being recovered.
            error!(guest = %name, %fault, "guest is quarantined: its folder is left alone");
            shared.quarantine(&name, &claims_of(shared, &name), &fault);
        }
    }
    drop(shown);
    if all_shown.recv_timeout(RECOVER_WAIT) == Err(RecvTimeoutError::Timeout) {
        warn!("some guests are not yet found again");
    }
    Ok(())
}

/// The guest ids named by a folder's files. Each file is read on its own, because one may be
/// corrupt.
fn claims_of(shared: &Shared, name: &Name) -> Vec<GuestId> {
    let Ok(folder) = shared.store.guest(name) else {
        return Vec::new();
    };
    let journal = folder.open_journal().ok();
    let record = journal.and_then(|journal| Record::decode(journal.record()).ok());
    let config = Ground::load_config(&folder).ok();
    let ids = [
        record.map(|record| record.guest),
        config.map(|config| config.id),
    ];
    ids.into_iter().flatten().collect()
}

/// Recovers one guest. Nothing is ever sent on `shown`; it is dropped once the guest is on the
/// board.
fn recover_guest(shared: &Arc<Shared>, name: &Name, shown: Sender<()>) -> Result<(), Fault> {
    let folder = shared.store.guest(name)?;
    if is_unborn(&folder)? {
        info!(guest = %name, "a guest that was never made is forgotten");
        return shared.store.remove_guest(name);
    }
    let journal = folder.open_journal()?;
    let record = Record::decode(journal.record())?;
    let config = Ground::load_config(&folder)?;
    if config.id != record.guest || config.name != *name {
        let detail = format!("folder {name} holds guest {} of another", config.name);
        return Err(Fault::new(Code::Quarantine, detail));
    }
    forget_older(shared, name, &record)?;
    let mailbox = Arc::new(Mailbox::new());
    let mut ground = Ground::new(Arc::clone(shared), Arc::clone(&mailbox), record.guest);
    ground.config = Some(config);
    ground.folder = Some(folder);
    ground.journal = Some(journal);
    // A guest offered before the restart that has not arrived yet.
    let made_for = match &record.state {
        State::Prepared { source, .. } | State::Refused { source, .. } => Some(source.clone()),
        _ => None,
    };
    register(shared, &ground, made_for);
    start_worker(shared, ground, move |ground| {
        let mut worker = Worker::recover(ground, record);
        worker.publish();
        drop(shown);
        worker
    })
}

/// Removes the kept record of a guest's end if the guest's folder still exists: the end did not get
/// as far as removing the folder, and the folder's journal is newer from here on. Call this only
/// for a folder that can be trusted. A folder that cannot may be removed, and then the kept record
/// is all that still answers the guest's source.
///
/// # Errors
///
/// `E_QUARANTINE` if the record is the newer one: the folder is an old copy.
fn forget_older(shared: &Shared, name: &Name, record: &Record) -> Result<(), Fault> {
    let forgotten = shared.store.ended(record.guest).and_then(|kept| {
        let kept = kept.map(|kept| Record::decode(&kept)).transpose()?;
        let Some(kept) = kept else { return Ok(None) };
        if kept.high_water > record.high_water {
            return Ok(Some(kept.high_water));
        }
        shared.store.forget_ended(record.guest).map(|()| None)
    });
    match forgotten {
        Ok(None) => Ok(()),
        Ok(Some(newer)) => {
            let (id, known) = (record.guest, record.high_water);
            let detail = format!(
                "folder {name} knows guest {id} up to epoch {known}, and it was ended or refused here at {newer}"
            );
            Err(Fault::new(Code::Quarantine, detail))
        }
        Err(fault) => {
            warn!(guest = %name, %fault, "an old record stays");
            Ok(())
        }
    }
}

/// Registers the worker of a guest known here. `made_for` is the peer that offers the guest, if the
/// guest is here only because of that offer.
fn register(shared: &Shared, ground: &Ground, made_for: Option<HostIdentity>) {
    let handle = Handle {
        name: ground.config.as_ref().map(|config| config.name.clone()),
        made_for,
        mailbox: Arc::clone(&ground.mailbox),
    };
    shared.workers().insert(ground.id, handle);
}

/// Starts the thread of a worker that is already registered.
fn start_worker(
    shared: &Arc<Shared>,
    ground: Ground,
    make: impl FnOnce(Ground) -> Worker + Send + 'static,
) -> Result<(), Fault> {
    let (id, mailbox) = (ground.id, Arc::clone(&ground.mailbox));
    spawn("towpath-guest", move || make(ground).work())
        .inspect_err(|_| unregister(shared, id, &mailbox))
}

/// Unregisters a worker that could not be started. Inputs already in its mailbox are dropped.
fn unregister(shared: &Shared, id: GuestId, mailbox: &Mailbox<Input>) {
    shared.workers().remove(&id);
    mailbox.close();
}

/// Creates a guest owned by this host and runs it.
fn create_guest(shared: &Arc<Shared>, config: GuestConfig) -> Result<(), Fault> {
    if shared.workers().len() >= crate::store::GUEST_COUNT_MAX as usize {
        return Err(Fault::new(Code::Busy, "too many guests are known here"));
    }
    shared.claim_name(&config.name, config.id)?;
    // The thread starts before the guest exists, so that a running guest always has a worker.
    let (begin, begun) = channel::<(Ground, Ownership)>();
    spawn("towpath-guest", move || {
        if let Ok((ground, ownership)) = begun.recv() {
            Worker::new(ground, ownership).work();
        }
    })?;
    let mailbox = Arc::new(Mailbox::new());
    let mut ground = Ground::new(Arc::clone(shared), mailbox, config.id);
    let name = config.name.clone();
    ground.config = Some(config);
    let (ownership, record) = Ownership::owner(
        shared.host.clone(),
        ground.id,
        towpath_protocol::identity::Epoch(1),
    );
    ground.persist(&record)?;
    let made = ground
        .make_process(false)
        .and_then(|()| ground.process()?.run(record.high_water).map(drop));
    if let Err(fault) = made {
        drop(ground.end_process());
        drop(ground);
        shared.store.remove_guest(&name)?;
        return Err(fault);
    }
    register(shared, &ground, None);
    begin
        .send((ground, ownership))
        .expect("its thread waits for it");
    Ok(())
}

/// The mailbox of a guest's worker. Starts a worker for a guest that this host never had or no
/// longer has.
fn mailbox_of(
    shared: &Arc<Shared>,
    from: &HostIdentity,
    id: GuestId,
) -> Result<Arc<Mailbox<Input>>, Fault> {
    let mut workers = shared.workers();
    if let Some(handle) = workers.get(&id) {
        return Ok(Arc::clone(&handle.mailbox));
    }
    if workers.len() >= crate::store::GUEST_COUNT_MAX as usize {
        return Err(Fault::new(Code::Busy, "too many guests are known here"));
    }
    let strangers = workers
        .values()
        .filter(|handle| handle.is_stranger_of(from));
    if strangers.count() >= STRANGERS_PER_PEER_MAX {
        let detail = format!("{from} has lanes of too many guests that are not here");
        return Err(Fault::new(Code::Busy, detail));
    }
    shared.check_quarantine(id)?;
    let mailbox = Arc::new(Mailbox::new());
    let handle = Handle {
        name: None,
        made_for: Some(from.clone()),
        mailbox: Arc::clone(&mailbox),
    };
    workers.insert(id, handle);
    // Reading the disk may take long, and only this guest's lanes should wait for it. Now that the
    // worker is registered, nobody else changes the guest's kept record.
    drop(workers);
    let ownership = remembered(shared, id).inspect_err(|_| unregister(shared, id, &mailbox))?;
    let ground = Ground::new(Arc::clone(shared), Arc::clone(&mailbox), id);
    start_worker(shared, ground, move |ground| Worker::new(ground, ownership))?;
    Ok(mailbox)
}

/// The ownership state of a guest that has no folder here.
fn remembered(shared: &Shared, id: GuestId) -> Result<Ownership, Fault> {
    let Some(record) = shared.store.ended(id)? else {
        return Ok(Ownership::vacant(shared.host.clone(), id));
    };
    let record = Record::decode(&record)?;
    if record.guest != id {
        let detail = format!("what is kept of guest {id} is of {}", record.guest);
        return Err(Fault::new(Code::Quarantine, detail));
    }
    Ok(Ownership::recover(shared.host.clone(), record))
}
