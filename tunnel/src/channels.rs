//! Channels: listeners for local programs, each joined to a service at a peer.
//!
//! | module | what it holds |
//! |---|---|
//! | `book` | the channels that are wanted, and the part that outlives a restart; pure |
//! | `configured` | configured channels, and those that cannot listen yet |
//! | `listener` | the sockets where programs reach them |
//! | `serving` | their connections |
//! | `trial` | trials: whether programs would reach their services |

mod book;
mod configured;
pub(crate) mod figures;
mod listener;
mod serving;
mod trial;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use towpath_daemon::shutdown::{self, Shutdown, Trigger};
use towpath_protocol::class::Leg;
use towpath_protocol::endpoint::Endpoint;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::Name;

use crate::channels::figures::Figures;
use crate::core::Core;
use crate::state_files::{Aside, Folder};
use crate::streams::datagrams;
use crate::streams::seats::Share;
use book::register::TEXT_BYTES_MAX;
use book::{Book, Change, Origin, closed_by_hand, not_found};
use configured::Late;
use listener::{Listener, bind};

pub use book::{CHANNEL_COUNT_MAX, ChannelSpec};
pub(crate) use serving::{Place, Resetting, Serving};

/// Connections, or sources of datagrams, of one channel at once.
const CONNECTION_COUNT_MAX: usize = 256;

/// File of the pushed channels in the state folder.
const BOOK_FILE: &str = "channels.json";

/// Interval at which expired channels are closed and rates are measured.
const TICK: Duration = Duration::from_secs(1);

/// All channels of a tunnel.
#[derive(Debug, Default)]
pub(crate) struct Channels {
    /// Locked while a channel is opened or closed, so that these steps happen one after another.
    book: tokio::sync::Mutex<Book>,
    running: Mutex<BTreeMap<Name, Arc<Channel>>>,
    /// Earlier listeners of channels that listen elsewhere now; answers under way may still go out
    /// from them.
    leaving: Mutex<Vec<Arc<Channel>>>,
    /// Locked while channels that could not be opened are tried again. Taken before `book`.
    late: tokio::sync::Mutex<Late>,
    /// The channels of the configuration, as last read.
    configured: Mutex<BTreeMap<Name, ChannelSpec>>,
    /// Pushed channels, as in the book: `true` for a channel, `false` for a removed one.
    pushed: Mutex<BTreeMap<Name, bool>>,
    /// Where pushed channels are kept over a restart; `None` without a state folder.
    folder: Option<Arc<Folder>>,
}

/// Decodes the register of channels and encodes it again.
///
/// # Errors
///
/// `E_META` if no tunnel would have written it.
pub(crate) fn reread_register(text: &[u8]) -> Result<Vec<u8>, Fault> {
    Book::decode(text)?.encode()
}

/// A channel whose listener is bound; it replaces the old one in `keep`. Dropped without that, its
/// listener stops.
struct Started<'a> {
    channels: &'a Channels,
    spec: Arc<ChannelSpec>,
    old: Option<Arc<Channel>>,
    /// `None` if the old listener stays.
    new: Option<Channel>,
}

impl Started<'_> {
    /// Makes a port chosen by the system part of the spec, so that programs that were told the port
    /// find the channel there after a restart too.
    fn keep_port(&mut self) {
        let there = self.new.as_ref().or(self.old.as_deref());
        let Some(there) = there.filter(|_| self.spec.listen.is_any_port()) else {
            return;
        };
        let mut spec = ChannelSpec::clone(&self.spec);
        spec.listen = there.listen.clone();
        self.spec = Arc::new(spec);
        if let Some(new) = &self.new {
            new.spec.send_replace(Arc::clone(&self.spec));
        }
    }

    /// Replaces the old channel: new connections lead to the new service from here on.
    fn keep(mut self) {
        let old = self.old.take();
        if let Some(figures) = self.new.as_ref().or(old.as_deref()).map(|one| &one.figures) {
            figures.meter.quota.set(self.spec.cap);
        }
        if let Some(old) = &old
            && old.spec().listen.is_datagrams() == self.spec.listen.is_datagrams()
        {
            // Connections still waiting at a closing listener lead to the new service too.
            old.spec.send_replace(Arc::clone(&self.spec));
        }
        if let Some(new) = self.new.take() {
            let name = self.spec.name.clone();
            self.channels.running().insert(name, Arc::new(new));
            if let Some(old) = old {
                old.accepting.stop();
                self.channels.leaving.lock().push(old);
            }
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

/// Ends a channel with all its connections, whichever of its listeners they came through.
#[derive(Debug, Clone)]
struct End {
    trigger: Trigger,
    heard: Shutdown,
}

impl End {
    fn new() -> Self {
        let (trigger, heard) = shutdown::channel();
        Self { trigger, heard }
    }
}

/// A running channel.
#[derive(Debug)]
pub(crate) struct Channel {
    spec: watch::Sender<Arc<ChannelSpec>>,
    /// The address in use; the spec may leave the port to the system.
    pub listen: Endpoint,
    pub figures: Arc<Figures>,
    places: Arc<Semaphore>,
    /// Stops the listener.
    accepting: Trigger,
    /// Stops the listener's wait for answers under way.
    answering: Trigger,
    /// Requested once the listener has released its address.
    gone: Shutdown,
    /// Stops all connections too.
    end: End,
    /// Why it does not listen, if this is a stand-in for a channel that cannot listen yet.
    absent: Option<Fault>,
}

impl Channel {
    /// The channel's spec.
    pub(crate) fn spec(&self) -> Arc<ChannelSpec> {
        Arc::clone(&self.spec.borrow())
    }

    /// Creates a stand-in for a channel that cannot listen yet, with the reason.
    fn absent(spec: &Arc<ChannelSpec>, fault: &Fault) -> Self {
        // Nothing listens: no task sees the first two triggers, and `gone` counts as requested
        // because its trigger is dropped here.
        let ((accepting, _), (_, gone)) = (shutdown::channel(), shutdown::channel());
        let (answering, _) = shutdown::channel();
        let (teller, _) = watch::channel(Arc::clone(spec));
        let channel = Self {
            spec: teller,
            listen: spec.listen.clone(),
            figures: Arc::default(),
            places: Arc::new(Semaphore::new(CONNECTION_COUNT_MAX)),
            accepting,
            answering,
            gone,
            end: End::new(),
            absent: Some(fault.clone()),
        };
        channel.figures.meter.quota.set(spec.cap);
        channel.figures.set_error(fault);
        channel
    }

    /// Why programs do not reach the channel, if so: its address could not be bound, or was taken
    /// by somebody else while the channel was being moved.
    pub(crate) fn why_silent(&self) -> Option<String> {
        match &self.absent {
            Some(fault) => Some(format!("does not listen: {fault}")),
            None if self.is_listening() => None,
            None => Some(format!("does not listen at {} any more", self.listen)),
        }
    }

    /// Whether the listener holds its address. It does not if the channel could not move and
    /// somebody else took its address meanwhile.
    fn is_listening(&self) -> bool {
        !self.gone.is_requested()
    }

    /// Whether it listens at this address.
    fn is_at(&self, listen: &Endpoint) -> bool {
        let is_there = self.spec().listen == *listen || listen.is_met_by(&self.listen);
        is_there && self.is_listening()
    }

    /// Stops the listener and waits until its address is free; connections live on.
    async fn vacate(&self) {
        self.accepting.stop();
        self.answering.stop();
        self.gone.clone().requested().await;
    }
}

impl Channels {
    /// Creates an empty set of channels; pushed ones will be kept in this folder.
    pub(crate) fn new(folder: Option<Arc<Folder>>) -> Self {
        Self {
            folder,
            ..Self::default()
        }
    }

    /// Replaces the book.
    fn turn(&self, book: &mut Book, next: Book) {
        *self.pushed.lock() = next.pushed();
        *book = next;
    }

    fn recall(&self) -> Book {
        let Some(folder) = &self.folder else {
            return Book::default();
        };
        let Some(text) = folder.read(Path::new(BOOK_FILE), TEXT_BYTES_MAX) else {
            return Book::default();
        };
        Book::decode(&text).unwrap_or_else(|fault| {
            // The pushers push their channels again; a site without any channels would be worse.
            folder.set_aside(Path::new(BOOK_FILE), Aside::Damaged, &fault);
            Book::default()
        })
    }

    /// Writes the book to disk, before anybody is told of the change.
    async fn keep(&self, book: &Book) -> Result<(), Fault> {
        let Some(folder) = self.folder.clone() else {
            return Ok(());
        };
        let text = book.encode()?;
        let write = move || folder.replace(Path::new(BOOK_FILE), &text);
        let written = tokio::task::spawn_blocking(write).await;
        written.map_err(|error| Fault::new(Code::State, error.to_string()))?
    }

    /// Opens a pushed channel, or changes it: new connections lead to the new service at once,
    /// existing ones keep the old one until they end.
    ///
    /// # Errors
    ///
    /// `E_STATE` and `E_BUSY` from the book, `E_NOT_FOUND` for an unknown peer, `E_IO` if the
    /// address cannot be bound or the channel cannot be saved; then nothing has changed.
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
        let mut started = self.run(core, spec).await?;
        if origin == Origin::Pushed {
            started.keep_port();
        }
        let spec = Arc::clone(&started.spec);
        if change == Change::Open {
            let mut next = book.clone();
            next.open(&spec, origin);
            if origin == Origin::Pushed {
                self.keep(&next).await?;
            }
            self.turn(&mut book, next);
        }
        started.keep();
        let (name, generation) = (&spec.name, spec.generation);
        let (peer, service, cap) = (
            &spec.peer,
            &spec.service,
            spec.cap.map(tracing::field::display),
        );
        tracing::info!(channel = %name, generation, %peer, %service, cap, "channel open");
        if spec.listen.is_everywhere() {
            let listen = &spec.listen;
            tracing::warn!(channel = %name, %listen, "it listens on every interface: whoever reaches this host reaches it");
        }
        Ok(())
    }

    /// Binds a channel's listener, in place of the existing one if there is one.
    async fn run<'a>(
        &'a self,
        core: &Arc<Core>,
        spec: &Arc<ChannelSpec>,
    ) -> Result<Started<'a>, Fault> {
        core.peer(&spec.peer)?;
        let old = self.find(&spec.name);
        let new = match &old {
            Some(old) if old.is_at(&spec.listen) => None,
            // The old listener goes only once the new one is there, unless it was stopped before.
            old => {
                let live = old.as_deref().filter(|old| old.absent.is_none());
                self.clear(&spec.listen).await;
                let started = start(core, (spec, &spec.listen), live).await;
                Some(started.map_err(|fault| self.with_owner(fault, spec))?)
            }
        };
        Ok(Started {
            channels: self,
            spec: Arc::clone(spec),
            old,
            new,
        })
    }

    /// Adds to a bind fault the channel that has the address, if it is one of this tunnel.
    fn with_owner(&self, fault: Fault, spec: &ChannelSpec) -> Fault {
        let listen = &spec.listen;
        let has_it = |other: &Channel| {
            let is_there = other.listen == *listen || is_in_the_way(&other.listen, listen);
            is_there && other.is_listening()
        };
        let mut others = self.list().into_iter().map(|other| (other.spec(), other));
        let owner = others.find(|(other, channel)| other.name != spec.name && has_it(channel));
        let Some((owner, _)) = owner else {
            return fault;
        };
        let name = &owner.name;
        let detail = format!("{}: channel {name} listens there", fault.detail);
        let remedy = format!("take another port, or close it with `towpath channel close {name}`");
        Fault::new(fault.code, detail).remedy(remedy)
    }

    /// Makes former listeners release an address that is wanted now.
    async fn clear(&self, listen: &Endpoint) {
        let leaving = std::mem::take(&mut *self.leaving.lock());
        for channel in leaving {
            if channel.listen == *listen || is_in_the_way(&channel.listen, listen) {
                channel.vacate().await;
            } else if channel.is_listening() {
                self.leaving.lock().push(channel);
            }
        }
    }

    /// Closes a channel and its connections.
    ///
    /// # Errors
    ///
    /// `E_STATE` if a newer generation is known, `E_NOT_FOUND` if the name is unknown, `E_IO` if
    /// the change cannot be saved; then the channel stays open.
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

    /// Once a second until the tunnel stops: closes expired channels, reopens those that expired
    /// only by a wrong clock, retries those that could not be opened, and measures rates.
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
            self.have_back(core).await;
            self.open_late(core).await;
            self.leaving.lock().retain(|channel| channel.is_listening());
            // The rest of the loop takes time too, and more on a busy machine, so ticks are not
            // exactly a second apart.
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
            channel.end.trigger.stop();
        }
    }

    /// Closes expired channels.
    async fn end_expired(&self) {
        // Locked until they are closed: one pushed again meanwhile would be closed with them.
        let mut book = self.book.lock().await;
        for name in book.expire(now_unix()) {
            self.stop(&name, "expired").await;
        }
    }

    /// Every channel, by name.
    pub(crate) fn list(&self) -> Vec<Arc<Channel>> {
        self.running().values().cloned().collect()
    }

    /// The channel of this name, if there is one.
    pub(crate) fn find(&self, name: &Name) -> Option<Arc<Channel>> {
        self.running().get(name).cloned()
    }

    /// The channel of this name.
    ///
    /// # Errors
    ///
    /// `E_NOT_FOUND` if there is none of this name.
    pub(crate) fn channel(&self, name: &Name) -> Result<Arc<Channel>, Fault> {
        self.find(name).ok_or_else(|| {
            if self.closed_by_hand().contains(name) {
                closed_by_hand(name)
            } else {
                not_found(name)
            }
        })
    }

    /// A channel's share of the seats with a peer. It leaves seats to others only if other channels
    /// use the same leg to that peer. `None` stands for programs without a channel.
    pub(crate) fn share(&self, channel: Option<Name>, (peer, leg): (&Name, Leg)) -> Share {
        let has_others = self.running().iter().any(|(name, other)| {
            let spec = other.spec.borrow();
            Some(name) != channel.as_ref() && spec.peer == *peer && spec.class.leg() == leg
        });
        Share {
            channel,
            has_others,
        }
    }

    /// Closes a channel and its connections, and waits until its address is free.
    async fn stop(&self, name: &Name, why: &str) {
        let removed = self.running().remove(name);
        if let Some(channel) = removed {
            tracing::info!(channel = %name, why, "channel closed");
            channel.end.trigger.stop();
            channel.vacate().await;
        }
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<Name, Arc<Channel>>> {
        self.running.lock()
    }
}

fn now_unix() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// Whether a listener prevents binding another address: same port, and one of the two is the
/// unspecified address.
fn is_in_the_way(here: &Endpoint, there: &Endpoint) -> bool {
    // `[::]` covers IPv4 too.
    let covers = |all: &SocketAddr, one: &SocketAddr| {
        all.ip().is_unspecified() && (all.is_ipv6() || one.is_ipv4())
    };
    match (here, there) {
        (Endpoint::Tcp(here), Endpoint::Tcp(there))
        | (Endpoint::Udp(here), Endpoint::Udp(there)) => {
            let is_one_port = here != there && here.port() == there.port();
            is_one_port && (covers(here, there) || covers(there, here))
        }
        _ => false,
    }
}

async fn start(
    core: &Arc<Core>,
    (spec, listen): (&Arc<ChannelSpec>, &Endpoint),
    old: Option<&Channel>,
) -> Result<Channel, Fault> {
    let (listener, listen) = bind(listen).await?;
    let (accepting, accept_stop) = shutdown::channel();
    let (answering, answer_stop) = shutdown::channel();
    // `gone` is requested when `bound` is dropped, which is when the listener ends.
    let (bound, gone) = shutdown::channel();
    // Connections of the old listener still belong to the channel.
    let end = old.map_or_else(End::new, |old| old.end.clone());
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
        answering,
        gone,
        end,
        absent: None,
    };
    let serving = Serving {
        core: Arc::clone(core),
        spec: heard,
        figures: Arc::clone(&channel.figures),
        places: Arc::clone(&channel.places),
        stop: channel.end.heard.clone(),
    };
    match listener {
        Listener::Udp(socket) => {
            tokio::spawn(async move {
                datagrams::listen(serving, socket, (accept_stop, answer_stop)).await;
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

#[cfg(test)]
mod tests {
    use super::*;
    use towpath_protocol::class::Class;

    /// A channel that leads to `service`, and the spec that its connections watch.
    fn led_to(service: &str, listen: &str) -> (Channel, watch::Receiver<Arc<ChannelSpec>>) {
        let name = |text: &str| text.parse::<Name>().unwrap();
        let (listen, way) = (listen.parse().unwrap(), (name("region"), name(service)));
        let spec = ChannelSpec::new(name("till"), listen, way, Class::App);
        let channel = Channel::absent(&Arc::new(spec), &Fault::new(Code::Io, "a test"));
        let heard = channel.spec.subscribe();
        (channel, heard)
    }

    #[test]
    fn what_waits_at_a_listener_that_moves_takes_the_new_way() {
        let channels = Channels::default();
        let move_to = |(old, heard): (Channel, watch::Receiver<Arc<ChannelSpec>>), listen| {
            let (new, _) = led_to("new", listen);
            let started = Started {
                channels: &channels,
                spec: new.spec(),
                old: Some(Arc::new(old)),
                new: Some(new),
            };
            started.keep();
            heard.borrow().service.clone()
        };
        let old = || led_to("old", "tcp:127.0.0.1:7001");
        let moved = move_to(old(), "tcp:127.0.0.1:7002");
        assert_eq!(moved.as_str(), "new");
        // A connection is never carried as datagrams.
        let changed = move_to(old(), "udp:127.0.0.1:7002");
        assert_eq!(changed.as_str(), "old");
    }

    #[test]
    fn listeners_collide_where_one_has_all_addresses_of_the_port() {
        let at = |text: &str| text.parse::<Endpoint>().unwrap();
        for (here, there, expected) in [
            ("tcp:0.0.0.0:7001", "tcp:127.0.0.1:7001", true),
            ("tcp:127.0.0.1:7001", "tcp:0.0.0.0:7001", true),
            ("tcp:[::]:7001", "tcp:127.0.0.1:7001", true),
            ("tcp:0.0.0.0:7001", "tcp:[::1]:7001", false),
            ("tcp:127.0.0.1:7001", "tcp:127.0.0.2:7001", false),
            ("tcp:127.0.0.1:7001", "tcp:127.0.0.1:7001", false),
            ("tcp:0.0.0.0:7001", "tcp:127.0.0.1:7002", false),
            ("tcp:0.0.0.0:7001", "udp:127.0.0.1:7001", false),
        ] {
            let found = is_in_the_way(&at(here), &at(there));
            assert_eq!(found, expected, "{here} and {there}");
        }
    }
}
