//! Channels: listeners of local programs, each joined to a service at a peer.

mod configured;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::net::{TcpListener, TcpStream, UdpSocket, UnixListener, UnixStream, tcp};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use towpath_daemon::shutdown::{self, Shutdown, Trigger};
use towpath_protocol::channel::Open;
use towpath_protocol::endpoint::Endpoint;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::Name;

use crate::channels::register::TEXT_BYTES_MAX;
use crate::channels::{Book, Change, ChannelSpec, Origin, not_found};
use crate::core::Core;
use crate::figures::Figures;
use crate::local::{self, Begun, Kind};
use crate::{datagrams, kept};
use configured::Late;

/// Connections, or sources of datagrams, of one channel at once.
const CONNECTION_COUNT_MAX: usize = 256;

/// How long a program that has connected waits for a link: it sees a pause, not a refusal.
const LINK_WAIT: Duration = Duration::from_secs(10);

/// Interval at which channels are looked at: what has expired ends, and the rates are measured.
const TICK: Duration = Duration::from_secs(1);

/// Pause after a failed accept, which mostly means that descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// All channels of a tunnel.
#[derive(Debug, Default)]
pub(crate) struct Channels {
    /// Held while a channel is opened or closed, so that these happen one after the other.
    book: tokio::sync::Mutex<Book>,
    running: Mutex<BTreeMap<Name, Arc<Channel>>>,
    /// Held while the configuration's channels are opened again.
    late: tokio::sync::Mutex<Late>,
    /// What the configuration names, as it was read last.
    configured: Mutex<BTreeMap<Name, ChannelSpec>>,
    /// What was pushed, as the book has it; and whether that is to be, or is not to be any more.
    pushed: Mutex<BTreeMap<Name, bool>>,
    /// Where what was pushed is kept over a restart; nowhere without a state folder.
    kept_at: Option<PathBuf>,
}

/// A channel that is ready, and takes the place of the old one once it is kept.
struct Started<'a> {
    channels: &'a Channels,
    spec: Arc<ChannelSpec>,
    old: Option<Arc<Channel>>,
    /// None if the old one's listener stays.
    new: Option<Channel>,
}

impl Started<'_> {
    /// From here on new connections take the new way.
    fn keep(mut self) {
        let old = self.old.take();
        if let Some(figures) = self.new.as_ref().or(old.as_deref()).map(|one| &one.figures) {
            figures.meter.quota.set(self.spec.cap);
        }
        if let Some(new) = self.new.take() {
            let name = self.spec.name.clone();
            self.channels.running().insert(name, Arc::new(new));
            if let Some(old) = old {
                old.accepting.stop();
            }
        } else if let Some(old) = old {
            old.spec.send_replace(Arc::clone(&self.spec));
        }
    }
}

impl Drop for Started<'_> {
    fn drop(&mut self) {
        if let Some(new) = &self.new {
            new.accepting.stop();
        }
    }
}

/// A running channel.
#[derive(Debug)]
pub(crate) struct Channel {
    spec: watch::Sender<Arc<ChannelSpec>>,
    /// Where it really listens: a port may have been left to the system.
    pub listen: Endpoint,
    pub figures: Arc<Figures>,
    places: Arc<Semaphore>,
    /// Stops the listener.
    accepting: Trigger,
    /// Hears that the listener has let go of its address.
    gone: Shutdown,
    /// Stops all connections too.
    all: (Trigger, Shutdown),
    /// Why it has never listened, if it only stands in for one that will.
    absent: Option<Fault>,
}

impl Channel {
    /// What it is to be.
    pub(crate) fn spec(&self) -> Arc<ChannelSpec> {
        Arc::clone(&self.spec.borrow())
    }

    /// One that is to be and cannot listen yet, and why.
    fn absent(spec: &Arc<ChannelSpec>, fault: &Fault) -> Self {
        // Nobody will hear that it is to stop, and it is gone before it came.
        let ((accepting, _), (_, gone)) = (shutdown::channel(), shutdown::channel());
        let (teller, _) = watch::channel(Arc::clone(spec));
        let channel = Self {
            spec: teller,
            listen: spec.listen.clone(),
            figures: Arc::default(),
            places: Arc::new(Semaphore::new(CONNECTION_COUNT_MAX)),
            accepting,
            gone,
            all: shutdown::channel(),
            absent: Some(fault.clone()),
        };
        channel.figures.meter.quota.set(spec.cap);
        channel.figures.set_error(fault);
        channel
    }

    /// Why programs do not reach it, if they do not: it could not have its address, or somebody else took that while it
    /// was to move.
    pub(crate) fn why_silent(&self) -> Option<String> {
        match &self.absent {
            Some(fault) => Some(format!("does not listen: {fault}")),
            None if self.is_listening() => None,
            None => Some(format!("does not listen at {} any more", self.listen)),
        }
    }

    /// Whether programs reach it: one whose address somebody else took while it was to move has none.
    fn is_listening(&self) -> bool {
        !self.gone.is_requested()
    }

    /// Whether it listens where it is to.
    fn is_at(&self, listen: &Endpoint) -> bool {
        let is_there = [&self.spec().listen, &self.listen].contains(&listen);
        is_there && self.is_listening()
    }

    /// Whether its own listener may stand in the way of one at another address: on the same port, of which one
    /// address is all of them.
    fn is_in_the_way_of(&self, listen: &Endpoint) -> bool {
        match (&self.listen, listen) {
            (Endpoint::Tcp(here), Endpoint::Tcp(there))
            | (Endpoint::Udp(here), Endpoint::Udp(there)) => {
                here != there && here.port() == there.port()
            }
            _ => false,
        }
    }

    /// Stops the listener and waits until its address is free; what is connected lives on.
    async fn vacate(&self) {
        self.accepting.stop();
        self.gone.clone().requested().await;
    }
}

impl Channels {
    /// No channels yet; what will be pushed is kept in this folder.
    pub(crate) fn new(state_dir: Option<&Path>) -> Self {
        Self {
            kept_at: state_dir.map(|folder| folder.join("channels.json")),
            ..Self::default()
        }
    }

    /// Has this for what is known from now on.
    fn turn(&self, book: &mut Book, next: Book) {
        *locked(&self.pushed) = next.pushed();
        *book = next;
    }

    fn recall(&self) -> Result<Book, Fault> {
        let Some(path) = &self.kept_at else {
            return Ok(Book::default());
        };
        let Some(text) = kept::read(path, TEXT_BYTES_MAX)? else {
            return Ok(Book::default());
        };
        Ok(Book::decode(&text).unwrap_or_else(|fault| {
            // What was pushed is pushed again; a site without any channel would be worse.
            kept::set_aside(path, &fault);
            Book::default()
        }))
    }

    /// Makes what is known now durable, before anybody is told of it.
    async fn keep(&self, book: &Book) -> Result<(), Fault> {
        let Some(path) = self.kept_at.clone() else {
            return Ok(());
        };
        let text = book.encode()?;
        let write = move || kept::replace(&path, &text);
        let written = tokio::task::spawn_blocking(write).await;
        written.map_err(|error| Fault::new(Code::State, error.to_string()))?
    }

    /// Opens a channel that somebody pushes, or changes it: new connections take the new way at once,
    /// those that are there go on over the old one until they end.
    ///
    /// # Errors
    ///
    /// `E_STATE` and `E_BUSY` as the book says, `E_NOT_FOUND` for a peer that is none, `E_IO`
    /// if the listener cannot be had or the channel cannot be kept; then everything is as before.
    pub(crate) async fn open(&self, core: &Arc<Core>, spec: ChannelSpec) -> Result<(), Fault> {
        self.open_as(core, &Arc::new(spec), Origin::Pushed).await
    }

    async fn open_as(
        &self,
        core: &Arc<Core>,
        spec: &Arc<ChannelSpec>,
        origin: Origin,
    ) -> Result<(), Fault> {
        let mut book = self.book.lock().await;
        let change = book.weigh(spec, origin, now_unix())?;
        let known = self.find(&spec.name);
        if change == Change::Same && known.is_some_and(|known| known.is_at(&spec.listen)) {
            return Ok(());
        }
        let started = self.run(core, spec).await?;
        if change == Change::Open {
            let mut next = book.clone();
            next.open(spec, origin);
            if origin == Origin::Pushed {
                self.keep(&next).await?;
            }
            self.turn(&mut book, next);
        }
        started.keep();
        let (name, generation) = (&spec.name, spec.generation);
        tracing::info!(channel = %name, generation, peer = %spec.peer, service = %spec.service, "channel open");
        Ok(())
    }

    /// Has a channel ready in place of the one that is there, if one is.
    async fn run<'a>(
        &'a self,
        core: &Arc<Core>,
        spec: &Arc<ChannelSpec>,
    ) -> Result<Started<'a>, Fault> {
        core.peer(&spec.peer)?;
        let old = self.find(&spec.name);
        let new = match &old {
            Some(old) if old.is_at(&spec.listen) => None,
            // Unless it was stopped before, the old listener goes once the new one is there.
            old => {
                let live = old.as_deref().filter(|old| old.absent.is_none());
                Some(start(core, (spec, &spec.listen), live).await?)
            }
        };
        Ok(Started {
            channels: self,
            spec: Arc::clone(spec),
            old,
            new,
        })
    }

    /// Closes a channel and its connections.
    ///
    /// # Errors
    ///
    /// `E_STATE` if a newer generation is known, `E_NOT_FOUND` if nothing is, `E_IO` if that it is closed
    /// cannot be kept; then it is not.
    pub(crate) async fn close(&self, name: &Name, generation: Option<u64>) -> Result<(), Fault> {
        let mut book = self.book.lock().await;
        let mut next = book.clone();
        let was_open = next.close(name, generation)?;
        if next != *book {
            self.keep(&next).await?;
            self.turn(&mut book, next);
        }
        if was_open {
            self.stop(name, "removed").await;
        }
        Ok(())
    }

    /// Ends what has expired, opens what could not be opened and measures the rest, until the tunnel stops.
    pub(crate) async fn attend(&self, core: &Arc<Core>, mut stop: Shutdown) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut before, mut measured) = (BTreeMap::new(), Instant::now());
        loop {
            tokio::select! {
                () = stop.requested() => break,
                _ = ticks.tick() => {}
            }
            self.end_expired().await;
            self.open_late(core).await;
            // The ticks are apart what the rest of this takes, and more on a busy machine.
            let elapsed = measured.elapsed();
            measured = Instant::now();
            let now = self.list().into_iter().map(|channel| {
                let name = channel.spec().name.clone();
                let counted = channel.figures.measure(before.get(&name), elapsed);
                (name, counted)
            });
            before = now.collect();
        }
        for channel in self.list() {
            channel.all.0.stop();
        }
    }

    /// Ends what has expired.
    async fn end_expired(&self) {
        // Held until they are closed: one that is pushed again meanwhile would be closed with them.
        let mut book = self.book.lock().await;
        for name in book.expire(now_unix()) {
            self.stop(&name, "expired").await;
        }
    }

    /// Every channel, by name.
    pub(crate) fn list(&self) -> Vec<Arc<Channel>> {
        self.running().values().cloned().collect()
    }

    /// One channel.
    pub(crate) fn find(&self, name: &Name) -> Option<Arc<Channel>> {
        self.running().get(name).cloned()
    }

    /// One channel.
    ///
    /// # Errors
    ///
    /// `E_NOT_FOUND` if there is none of this name.
    pub(crate) fn channel(&self, name: &Name) -> Result<Arc<Channel>, Fault> {
        self.find(name).ok_or_else(|| not_found(name))
    }

    /// Ends a channel with its connections, and waits until its address is free.
    async fn stop(&self, name: &Name, why: &str) {
        let removed = self.running().remove(name);
        if let Some(channel) = removed {
            tracing::info!(channel = %name, why, "channel closed");
            channel.all.0.stop();
            channel.vacate().await;
        }
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<Name, Arc<Channel>>> {
        locked(&self.running)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while one of them is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now_unix() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
    Udp(UdpSocket),
}

async fn bind(listen: &Endpoint) -> Result<(Listener, Endpoint), Fault> {
    let failed =
        |error: std::io::Error| Fault::new(Code::Io, format!("cannot listen at {listen}: {error}"));
    Ok(match listen {
        Endpoint::Tcp(address) => {
            let listener = TcpListener::bind(address).await.map_err(failed)?;
            let bound = listener.local_addr().map_err(failed)?;
            (Listener::Tcp(listener), Endpoint::Tcp(bound))
        }
        Endpoint::Udp(address) => {
            let socket = UdpSocket::bind(address).await.map_err(failed)?;
            let bound = socket.local_addr().map_err(failed)?;
            (Listener::Udp(socket), Endpoint::Udp(bound))
        }
        Endpoint::Unix(path) => {
            let is_socket =
                std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
            // One that is busy, or not ours to connect to, is somebody's.
            let is_dead = |error: std::io::Error| error.kind() == ErrorKind::ConnectionRefused;
            if is_socket && UnixStream::connect(path).await.is_err_and(is_dead) {
                // Left by a tunnel that was killed; whatever else stands there is not ours to remove.
                std::fs::remove_file(path).map_err(failed)?;
            }
            let listener = UnixListener::bind(path).map_err(failed)?;
            // Applications run as other users; who may come here the folder says.
            let mode = std::fs::Permissions::from_mode(0o666);
            std::fs::set_permissions(path, mode).map_err(failed)?;
            (Listener::Unix(listener), listen.clone())
        }
    })
}

async fn start(
    core: &Arc<Core>,
    (spec, listen): (&Arc<ChannelSpec>, &Endpoint),
    old: Option<&Channel>,
) -> Result<Channel, Fault> {
    let (listener, listen) = bind(listen).await?;
    let (accepting, accept_stop) = shutdown::channel();
    // Lost with the listener.
    let (bound, gone) = shutdown::channel();
    // Connections of the old listener belong to the channel still.
    let all = old.map_or_else(shutdown::channel, |old| old.all.clone());
    let (teller, heard) = watch::channel(Arc::clone(spec));
    let channel = Channel {
        spec: teller,
        listen,
        figures: old.map_or_else(Arc::default, |old| Arc::clone(&old.figures)),
        places: old.map_or_else(
            || Arc::new(Semaphore::new(CONNECTION_COUNT_MAX)),
            |old| Arc::clone(&old.places),
        ),
        accepting,
        gone,
        all,
        absent: None,
    };
    let serving = Serving {
        core: Arc::clone(core),
        spec: heard,
        figures: Arc::clone(&channel.figures),
        places: Arc::clone(&channel.places),
        stop: channel.all.1.clone(),
    };
    match listener {
        Listener::Udp(socket) => {
            tokio::spawn(async move {
                datagrams::listen(serving, socket, accept_stop).await;
                drop(bound);
            });
        }
        listener => {
            tokio::spawn(async move {
                serving.accept(listener, accept_stop).await;
                drop(bound);
            });
        }
    }
    Ok(channel)
}

/// What the connections of a channel share.
#[derive(Debug, Clone)]
pub(crate) struct Serving {
    pub core: Arc<Core>,
    spec: watch::Receiver<Arc<ChannelSpec>>,
    figures: Arc<Figures>,
    places: Arc<Semaphore>,
    pub stop: Shutdown,
}

/// A connection's place, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    _permit: OwnedSemaphorePermit,
    figures: Arc<Figures>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.figures.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection that no runtime has taken yet.
enum Program {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

impl Program {
    /// Ends it at once: a mere end would look like an answer without a byte.
    fn reset(self) {
        if let Self::Tcp(socket) = self {
            // If that cannot be had, it ends like any other.
            let _ = socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO));
        }
    }
}

async fn accept_one(listener: &Listener) -> std::io::Result<Program> {
    match listener {
        Listener::Tcp(listener) => Ok(Program::Tcp(listener.accept().await?.0.into_std()?)),
        Listener::Unix(listener) => Ok(Program::Unix(listener.accept().await?.0.into_std()?)),
        Listener::Udp(_) => std::future::pending().await,
    }
}

impl Serving {
    /// A place for one more connection, if there is one.
    pub(crate) fn place(&self) -> Option<Place> {
        let permit = Arc::clone(&self.places).try_acquire_owned().ok()?;
        self.figures.connections.fetch_add(1, Ordering::Relaxed);
        self.figures
            .connections_total
            .fetch_add(1, Ordering::Relaxed);
        Some(Place {
            _permit: permit,
            figures: Arc::clone(&self.figures),
        })
    }

    /// Whether a connection that begins now would have to wait for others to end.
    pub(crate) fn is_short(&self) -> bool {
        let spec = self.spec.borrow();
        let peer = self.core.peers.get(&spec.peer);
        peer.is_some_and(|peer| peer.streams.seats.are_short(spec.class.leg()))
    }

    /// What the channel is now, and every change of it.
    pub(crate) fn spec(&self) -> watch::Receiver<Arc<ChannelSpec>> {
        self.spec.clone()
    }

    /// Counts a datagram that came while too many waited.
    pub(crate) fn count_dropped(&self) {
        self.figures.meter.dropped.fetch_add(1, Ordering::Relaxed);
        let spec = self.spec.borrow();
        if let Some(peer) = self.core.peers.get(&spec.peer) {
            peer.counters.add_dropped(spec.class);
        }
    }

    async fn accept(self, listener: Listener, mut stop: Shutdown) {
        let mut all = self.stop.clone();
        loop {
            let accepted = tokio::select! {
                () = stop.requested() => break,
                () = all.requested() => break,
                accepted = accept_one(&listener) => accepted,
            };
            let program = match accepted {
                Ok(program) => program,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept for a channel");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Some(place) = self.place() else {
                self.note(&Fault::new(Code::Busy, "too many connections"));
                program.reset();
                continue;
            };
            let leg = self.spec.borrow().class.leg();
            let thread = self.core.legs.handle(leg).clone();
            thread.spawn(self.clone().connection(program, place));
        }
        if let Listener::Unix(listener) = &listener
            && let Ok(address) = listener.local_addr()
            && let Some(path) = address.as_pathname()
        {
            // A newer listener cannot stand there: it would have found this one alive.
            let _ = std::fs::remove_file(path);
        }
    }

    async fn connection(self, program: Program, _place: Place) {
        let mut stop = self.stop.clone();
        let ended = tokio::select! {
            () = stop.requested() => Err(Fault::new(Code::Gone, "the channel was closed")),
            ended = self.carry(program) => ended,
        };
        if let Err(fault) = ended {
            self.note(&fault);
        }
    }

    /// Carries one connection to its end; a fault reaches the program as a reset.
    async fn carry(&self, program: Program) -> Result<(), Fault> {
        let gone =
            |error: std::io::Error| Fault::new(Code::Gone, format!("the local program: {error}"));
        // A socket belongs to the thread that first touches it, and this is that of its leg.
        match program {
            Program::Unix(socket) => {
                let mut socket = UnixStream::from_std(socket).map_err(gone)?;
                let begun = self.begin().await?;
                begun.live(&self.core, socket.split()).await
            }
            Program::Tcp(socket) => {
                let socket = TcpStream::from_std(socket).map_err(gone)?;
                let mut socket = Resetting::new(socket);
                let begun = self.begin().await?;
                begun.live(&self.core, socket.split()).await?;
                socket.keep();
                Ok(())
            }
        }
    }

    /// Begins a stream to the channel's service as it is now, once there is a link.
    pub(crate) async fn begin(&self) -> Result<Begun, Fault> {
        let spec = Arc::clone(&self.spec.borrow());
        let open = Open {
            peer: spec.peer.clone(),
            service: spec.service.clone(),
            class: spec.class,
        };
        let mut changes = self.core.peer(&spec.peer)?.subscribe();
        // Without a link in time the answer below says why.
        let linked = changes.wait_for(crate::peer::State::is_usable);
        let _ = tokio::time::timeout(LINK_WAIT, async { linked.await.is_ok() }).await;
        let began = Instant::now();
        let kind = Kind {
            is_datagrams: spec.listen.is_datagrams(),
            is_channel: true,
            meter: Arc::clone(&self.figures.meter),
        };
        let begun = local::begin(&self.core, &open, kind).await;
        // That there is no link is the link's to tell.
        if begun.is_ok() || self.core.peer(&spec.peer)?.link().is_ok() {
            self.figures.note_opening(begun.as_ref().err());
        }
        let begun = begun?;
        let waited = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.figures.open_us.store(waited, Ordering::Relaxed);
        Ok(begun)
    }

    /// Notes why a connection failed.
    pub(crate) fn note(&self, fault: &Fault) {
        let channel = &self.spec.borrow().name;
        tracing::debug!(%channel, %fault, "connection of a channel ended");
        self.figures.errors.fetch_add(1, Ordering::Relaxed);
        self.figures.set_error(fault);
    }
}

/// A TCP connection that ends with a reset unless it is kept: an end in the middle must not look like
/// the end.
#[derive(Debug)]
pub(crate) struct Resetting {
    socket: TcpStream,
    is_kept: bool,
}

impl Resetting {
    pub(crate) fn new(socket: TcpStream) -> Self {
        // A message of an application must not wait for the next one; if that cannot be had, it waits.
        let _ = socket.set_nodelay(true);
        Self {
            socket,
            is_kept: false,
        }
    }

    pub(crate) fn split(&mut self) -> (tcp::ReadHalf<'_>, tcp::WriteHalf<'_>) {
        self.socket.split()
    }

    /// It ended as it should.
    pub(crate) const fn keep(&mut self) {
        self.is_kept = true;
    }
}

impl Drop for Resetting {
    fn drop(&mut self) {
        if !self.is_kept {
            // If that cannot be had, it ends like any other.
            let _ = socket2::SockRef::from(&self.socket).set_linger(Some(Duration::ZERO));
        }
    }
}
