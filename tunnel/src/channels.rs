//! Channels: listeners of local programs, each joined to a service at a peer.
//!
//! | module | what it holds |
//! |---|---|
//! | `book` | which channels there are to be, and what of that outlives a restart; pure |
//! | `configured` | what the configuration says of them, and those that cannot listen yet |
//! | `listener` | where programs reach them |
//! | `serving` | their connections |
//! | `trial` | whether programs would reach their services |

mod book;
mod configured;
pub(crate) mod figures;
mod listener;
mod serving;
mod trial;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use towpath_daemon::shutdown::{self, Shutdown, Trigger};
use towpath_protocol::channel::Leg;
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

/// Where what was pushed is kept, in the state folder.
const BOOK_FILE: &str = "channels.json";

/// Interval at which channels are looked at: what has expired ends, and the rates are measured.
const TICK: Duration = Duration::from_secs(1);

/// All channels of a tunnel.
#[derive(Debug, Default)]
pub(crate) struct Channels {
    /// Held while a channel is opened or closed, so that these happen one after the other.
    book: tokio::sync::Mutex<Book>,
    running: Mutex<BTreeMap<Name, Arc<Channel>>>,
    /// Those that listen elsewhere now, and whose answers under way may still go out from where they did.
    leaving: Mutex<Vec<Arc<Channel>>>,
    /// Held while the configuration's channels are opened again.
    late: tokio::sync::Mutex<Late>,
    /// What the configuration names, as it was read last.
    configured: Mutex<BTreeMap<Name, ChannelSpec>>,
    /// What was pushed, as the book has it; and whether that is to be, or is not to be any more.
    pushed: Mutex<BTreeMap<Name, bool>>,
    /// Where what was pushed is kept over a restart; nowhere without a state folder.
    folder: Option<Arc<Folder>>,
}

/// Reads the text that channels are remembered by, and writes it again.
///
/// # Errors
///
/// `E_META` if no tunnel would have written it.
pub(crate) fn reread_register(text: &[u8]) -> Result<Vec<u8>, Fault> {
    Book::decode(text)?.encode()
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
    /// Has the port that the system gave, if it was to choose one, for the channel's own: who was told of it finds the
    /// channel there after a restart too.
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

    /// From here on new connections take the new way.
    fn keep(mut self) {
        let old = self.old.take();
        if let Some(figures) = self.new.as_ref().or(old.as_deref()).map(|one| &one.figures) {
            figures.meter.quota.set(self.spec.cap);
        }
        if let Some(old) = &old
            && old.spec().listen.is_datagrams() == self.spec.listen.is_datagrams()
        {
            // Those that still wait at a listener that goes take the new way too.
            old.spec.send_replace(Arc::clone(&self.spec));
        }
        if let Some(new) = self.new.take() {
            let name = self.spec.name.clone();
            self.channels.running().insert(name, Arc::new(new));
            if let Some(old) = old {
                old.accepting.stop();
                locked(&self.channels.leaving).push(old);
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

/// The end of a channel with all its connections, whichever of its listeners they came through.
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
    /// Where it really listens: a port may have been left to the system.
    pub listen: Endpoint,
    pub figures: Arc<Figures>,
    places: Arc<Semaphore>,
    /// Stops the listener.
    accepting: Trigger,
    /// Has it wait for no answers either.
    answering: Trigger,
    /// Hears that the listener has let go of its address.
    gone: Shutdown,
    /// Stops all connections too.
    end: End,
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
        let is_there = self.spec().listen == *listen || listen.is_met_by(&self.listen);
        is_there && self.is_listening()
    }

    /// Stops the listener and waits until its address is free; what is connected lives on.
    async fn vacate(&self) {
        self.accepting.stop();
        self.answering.stop();
        self.gone.clone().requested().await;
    }
}

impl Channels {
    /// No channels yet; what will be pushed is kept in this folder.
    pub(crate) fn new(folder: Option<Arc<Folder>>) -> Self {
        Self {
            folder,
            ..Self::default()
        }
    }

    /// Has this for what is known from now on.
    fn turn(&self, book: &mut Book, next: Book) {
        *locked(&self.pushed) = next.pushed();
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
            // What was pushed is pushed again; a site without any channel would be worse.
            folder.set_aside(Path::new(BOOK_FILE), Aside::Damaged, &fault);
            Book::default()
        })
    }

    /// Makes what is known now durable, before anybody is told of it.
    async fn keep(&self, book: &Book) -> Result<(), Fault> {
        let Some(folder) = self.folder.clone() else {
            return Ok(());
        };
        let text = book.encode()?;
        let write = move || folder.replace(Path::new(BOOK_FILE), &text);
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

    /// A fault of listening with the channel that has the address, if one of this tunnel has.
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

    /// Has an address free that channels have left.
    async fn clear(&self, listen: &Endpoint) {
        let leaving = std::mem::take(&mut *locked(&self.leaving));
        for channel in leaving {
            if channel.listen == *listen || is_in_the_way(&channel.listen, listen) {
                channel.vacate().await;
            } else if channel.is_listening() {
                locked(&self.leaving).push(channel);
            }
        }
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

    /// Ends what has expired, opens what could not be opened or has not expired after all, and measures the rest, until
    /// the tunnel stops.
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
            locked(&self.leaving).retain(|channel| channel.is_listening());
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
            channel.end.trigger.stop();
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
        self.find(name).ok_or_else(|| {
            if self.closed_by_hand().contains(name) {
                closed_by_hand(name)
            } else {
                not_found(name)
            }
        })
    }

    /// A channel's share of the seats with a peer: whether it leaves some of a leg to others depends on whether there are
    /// others. Without a channel it is that of programs that need none.
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

    /// Ends a channel with its connections, and waits until its address is free.
    async fn stop(&self, name: &Name, why: &str) {
        let removed = self.running().remove(name);
        if let Some(channel) = removed {
            tracing::info!(channel = %name, why, "channel closed");
            channel.end.trigger.stop();
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

/// Whether a listener stands in the way of one at another address: on the same port, where one of the addresses is
/// all of them.
fn is_in_the_way(here: &Endpoint, there: &Endpoint) -> bool {
    // All addresses of IPv6 are those of IPv4 too.
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
    // Lost with the listener.
    let (bound, gone) = shutdown::channel();
    // Connections of the old listener belong to the channel still.
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
    use towpath_protocol::channel::Class;

    /// A channel that has listened there and led to this service, and what its connections know of it.
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
        // What was a connection is never carried as datagrams.
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
