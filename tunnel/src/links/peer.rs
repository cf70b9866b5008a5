//! One peer: the link to it, if there is one, and the choice between two.
//!
//! ```text
//!            link joined
//!   Down ─────────────────► Up ──── no answer ────► Stalled
//!    ▲ ▲                    │ ◄──── an answer ──────  │ │
//!    │ └────── link over ───┘                         │ └─ new link joined ─► Up
//!    └───────────────────────── link over ────────────┘
//! ```
//!
//! A link whose place another one took works on until its streams have moved. If the newer one is over
//! before, the older is back in its place.

pub(crate) mod rivals;
mod state;

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Instant as StdInstant, SystemTime};

use governor::{DefaultDirectRateLimiter, Quota};
use tokio::sync::watch;
use towpath_certs::{Identity, Refusal, Rejections, tls};
use towpath_forecast::moment::Moment;
use towpath_forecast::timetable::{Timetable, Week};
use towpath_forecast::zone::Zone;
use towpath_protocol::channel::Leg;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::{HostIdentity, Name};
use towpath_protocol::rate::Rate;

use crate::config::{Limits, PeerConfig, ProbeConfig};
use crate::links::counters::Counters;
use crate::links::dial::Cause;
use crate::links::join::Terms;
use crate::links::link::Link;
use crate::links::watchdog::Hearing;
use crate::measuring::probe;
use crate::operators::health::{self, Whose};
use crate::operators::last_hour::Recent;
use crate::operators::status;
use crate::quic::congestion::PathMemory;
use crate::quic::transport;
use crate::shaping::pace::Pacer;
use crate::shaping::shares::Shaping;
use crate::shaping::timetable;
use crate::streams::datagrams::DatagramFlows;
use crate::streams::serve::StreamLog;
use crate::streams::table::Streams;
use crate::trust::failures::Failures;
use crate::trust::standing::{self, Chain};
use rivals::Rivals;
pub(crate) use state::{Barred, State, Unreached};

/// New streams per second a peer may begin; a move begins four, an application a few per request.
const STREAMS_PER_SECOND: NonZeroU32 = NonZeroU32::new(200).expect("not zero");

/// Losses of a link that are remembered: more of them are not counted apart.
const LOSS_COUNT_MAX: usize = 32;

/// Links that are kept beside the newest for streams that have not moved (T06): each holds windows of its own, and
/// a peer may dial as often as it likes.
const RETIRED_COUNT_MAX: usize = 2;

/// The remedy for a second host of a site.
pub(crate) const ONE_TUNNEL_REMEDY: &str =
    "one tunnel of a site is linked at a time: stop that one, or give this host a site of its own";

/// The name under which both sides know whose tunnel speaks so many versions.
pub(crate) fn speaks(host: &HostIdentity) -> String {
    format!("the tunnel of {host}")
}

/// Settings to dial a link with.
#[derive(Debug, Clone)]
pub(crate) struct Clients {
    urgent: quinn::ClientConfig,
    bulk: quinn::ClientConfig,
    /// For the urgent connection to a peer that has been silent for long.
    pub quiet: quinn::ClientConfig,
    /// The certificate that is shown, with what leads to its authority.
    pub chain: Chain,
}

impl Clients {
    /// Settings of one of the link's connections.
    pub(crate) fn of(&self, leg: Leg) -> quinn::ClientConfig {
        match leg {
            Leg::Urgent => self.urgent.clone(),
            Leg::Bulk => self.bulk.clone(),
        }
    }
}

/// How what goes to and comes from a peer is held back, and what that comes to.
#[derive(Debug)]
pub(crate) struct Shaped {
    pub rules: Shaping,
    /// The cap on what we send by the time of the week, if it goes by that.
    pub timetable: Option<Timetable>,
    /// The same of what we want to receive.
    receive_timetable: Option<Timetable>,
}

impl Shaped {
    fn new(rules: Shaping, zone: &Zone) -> Self {
        let timed = |week: &Option<Week>| {
            let week = week.clone();
            week.map(|week| Timetable::new(week, zone.clone()))
        };
        Self {
            timetable: timed(&rules.send_timetable),
            receive_timetable: timed(&rules.receive_timetable),
            rules,
        }
    }

    /// The cap on what we send at a moment.
    fn rate_at(&self, at: Moment) -> Option<Rate> {
        let timed = self.timetable.as_ref().map(|table| table.rate_at(at));
        timed.unwrap_or(self.rules.send_rate)
    }

    /// Most that we want to be sent at a moment.
    fn receive_rate_at(&self, at: Moment) -> Option<Rate> {
        let timed = self.receive_timetable.as_ref();
        let timed = timed.map(|table| table.rate_at(at));
        timed.unwrap_or(self.rules.receive_rate)
    }
}

/// A site we keep a link to.
#[derive(Debug)]
pub(crate) struct Peer {
    pub site: Name,
    pub address: Option<String>,
    shaping: Mutex<Arc<Shaped>>,
    zone: Mutex<Zone>,
    pub pacer: Arc<Pacer>,
    pub counters: Arc<Counters>,
    pub streams: Arc<Streams>,
    /// How soon the peer's next stream may begin, whatever link it comes over.
    pub begins: DefaultDirectRateLimiter,
    pub datagrams: DatagramFlows,
    pub recent: Recent,
    /// Attempts to reach it so far, by cause.
    pub dials: [AtomicU64; Cause::ALL.len()],
    /// Which streams that it opens in vain are told of.
    pub told: StreamLog,
    pub probes: probe::Tally,
    /// How often to measure the way to it, and at what price.
    pub probe: Option<ProbeConfig>,
    /// None while this host has no key that fits its certificate.
    clients: Mutex<Option<Clients>>,
    /// The site whose link stays if both dial at once: the one whose name sorts first.
    preferred: Name,
    state: watch::Sender<State>,
    /// Links whose place another one has taken.
    retired: Mutex<Vec<Weak<Link>>>,
    /// Links that are over, while streams that they carried wait for the next.
    lost: Mutex<Vec<Weak<Link>>>,
    /// Where it is noted whose certificates were refused.
    rejections: Arc<Rejections>,
    /// What the last link has learnt about the path.
    known: Mutex<Option<PathMemory>>,
    /// What was agreed on with it when an outage took the last link.
    presumed: Mutex<Option<(HostIdentity, Terms)>>,
    /// When the link was lost, newest last.
    losses: Mutex<VecDeque<StdInstant>>,
    failures: Mutex<Failures>,
    rivals: Mutex<Rivals>,
}

impl Peer {
    pub(crate) fn new(
        config: &PeerConfig,
        ours: &Name,
        identity: &Identity,
        rejections: &Arc<Rejections>,
        limits: &Limits,
        zone: &Zone,
    ) -> Result<Self, Fault> {
        let clients = identity
            .has_key()
            .then(|| clients(&config.site, identity, rejections, limits));
        let clients = clients.transpose()?;
        let (state, _) = watch::channel(State {
            link: None,
            hearing: Hearing::Heard,
            is_outdated: false,
            reason: "not reached yet".to_owned(),
            remedy: None,
            barred: None,
            since: SystemTime::now(),
        });
        let shaped = Shaped::new(config.shaping(), zone);
        let rate = shaped.rate_at(timetable::now());
        Ok(Self {
            site: config.site.clone(),
            address: config.address.clone(),
            pacer: Arc::new(Pacer::new(rate, shaped.rules.shares.clone())),
            shaping: Mutex::new(Arc::new(shaped)),
            zone: Mutex::new(zone.clone()),
            counters: Arc::default(),
            streams: Arc::new(Streams::new(limits.peer_streams as usize)),
            begins: DefaultDirectRateLimiter::direct(Quota::per_second(STREAMS_PER_SECOND)),
            datagrams: DatagramFlows::default(),
            recent: Recent::default(),
            dials: Default::default(),
            told: StreamLog::default(),
            probes: probe::Tally::default(),
            probe: config.probe,
            clients: Mutex::new(clients),
            preferred: ours.min(&config.site).clone(),
            state,
            retired: Mutex::default(),
            lost: Mutex::default(),
            rejections: Arc::clone(rejections),
            known: Mutex::default(),
            presumed: Mutex::default(),
            losses: Mutex::default(),
            failures: Mutex::default(),
            rivals: Mutex::default(),
        })
    }

    /// Settings to dial with now.
    ///
    /// # Errors
    ///
    /// `E_CERTIFICATE` while this host has no key that fits its certificate.
    pub(crate) fn clients(&self) -> Result<Clients, Fault> {
        let clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients.clone().ok_or_else(Identity::no_key)
    }

    /// Settings to dial this peer as somebody.
    ///
    /// # Errors
    ///
    /// `E_CERTIFICATE` if the identity cannot be used.
    pub(crate) fn clients_of(
        &self,
        identity: &Identity,
        rejections: &Arc<Rejections>,
        limits: &Limits,
    ) -> Result<Clients, Fault> {
        clients(&self.site, identity, rejections, limits)
    }

    /// Dials with these settings from now on.
    pub(crate) fn set_clients(&self, clients: Option<Clients>) {
        *self.clients.lock().unwrap_or_else(PoisonError::into_inner) = clients;
    }

    /// How what we send to it is held back now.
    pub(crate) fn shaped(&self) -> Arc<Shaped> {
        Arc::clone(&self.shaping.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads timetables by these rules from the next change of the shaping on.
    pub(crate) fn set_zone(&self, zone: &Zone) {
        let mut ours = self.zone.lock().unwrap_or_else(PoisonError::into_inner);
        ours.clone_from(zone);
    }

    /// Holds what we send to it back otherwise from now on.
    pub(crate) fn set_shaping(&self, shaping: Shaping) {
        let zone = self.zone.lock().unwrap_or_else(PoisonError::into_inner);
        let shaped = Arc::new(Shaped::new(shaping, &zone));
        *self.shaping.lock().unwrap_or_else(PoisonError::into_inner) = shaped;
        self.shape();
    }

    /// Brings what holds now to the link that is up; says whether it carries another cap than before.
    pub(crate) fn shape(&self) -> bool {
        self.link().is_ok_and(|link| self.shape_link(&link))
    }

    fn shape_link(&self, link: &Link) -> bool {
        let (shaped, now) = (self.shaped(), timetable::now());
        link.set_shares(&shaped.rules.shares);
        link.news.wish(shaped.receive_rate_at(now));
        link.set_send_rate(shaped.rate_at(now))
    }

    /// Most we send to it now.
    pub(crate) fn send_rate(&self) -> Option<Rate> {
        self.shaped().rate_at(timetable::now())
    }

    /// Most we send to it at a moment.
    pub(crate) fn send_rate_at(&self, at: Moment) -> Option<Rate> {
        self.shaped().rate_at(at)
    }

    /// Most that we want it to send to us now.
    pub(crate) fn receive_rate(&self) -> Option<Rate> {
        self.receive_rate_at(timetable::now())
    }

    /// Most that we want it to send to us at a moment.
    pub(crate) fn receive_rate_at(&self, at: Moment) -> Option<Rate> {
        self.shaped().receive_rate_at(at)
    }

    /// Hears of every change.
    pub(crate) fn subscribe(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// What is known now.
    pub(crate) fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// The link, if it is up.
    ///
    /// # Errors
    ///
    /// `E_UNREACHABLE`, with why and what to do; what no waiting mends: `E_DENIED` if the peer was refused because
    /// its certificate is revoked, `E_VERSION` if it has no version in common with us.
    pub(crate) fn link(&self) -> Result<Arc<Link>, Fault> {
        let link = self.state.borrow().up().cloned();
        link.ok_or_else(|| self.unlinked())
    }

    /// The link over which streams begin: the peer's answer is waited for where it is only presumed to have taken the
    /// link, because another run of its tunnel would serve a stream under a name that this side does not know.
    ///
    /// # Errors
    ///
    /// As of [`Self::link`].
    pub(crate) async fn link_to_begin(&self) -> Result<Arc<Link>, Fault> {
        let mut changes = self.subscribe();
        let link = {
            let state = changes.wait_for(|state| !state.is_presumed()).await;
            let state = state.expect("the sender of changes is ours");
            state.up().cloned()
        };
        link.ok_or_else(|| self.unlinked())
    }

    fn unlinked(&self) -> Fault {
        let barred = self.state.borrow().barred.map(Barred::code);
        let verdict = status::verdict(self);
        let fault = Fault::new(
            barred.unwrap_or(Code::Unreachable),
            format!("no link to {}: {}", self.site, verdict.reason),
        );
        match verdict.remedy {
            Some(remedy) => fault.remedy(remedy),
            None => fault,
        }
    }

    /// The certificate that was refused last where this peer was dialled.
    pub(crate) fn last_refusal(&self) -> Option<Refusal> {
        self.rejections.last(Some(&self.site))
    }

    /// Notes that the peer is refused because its certificate is revoked.
    pub(crate) fn note_revoked(&self) {
        let revoked = Some(Barred::Revoked(Whose::Peers));
        self.state.send_if_modified(|state| state.bar(revoked));
    }

    /// Waits until another link has taken this one's place.
    pub(crate) async fn replaced(&self, link: &Arc<Link>) {
        self.link_beside(Some(link)).await;
    }

    /// Waits for a link, other than this one if it is named.
    pub(crate) async fn link_beside(&self, known: Option<&Arc<Link>>) -> Arc<Link> {
        let is_known = |link: &Arc<Link>| known.is_some_and(|known| Arc::ptr_eq(known, link));
        let other = |state: &State| state.link.clone().filter(|link| !is_known(link));
        let mut changes = self.subscribe();
        let state = changes.wait_for(|state| other(state).is_some()).await;
        let state = state.expect("the sender of changes is ours");
        other(&state).expect("it was waited for")
    }

    /// Waits until nothing is to be begun over a link any more: the peer has not answered on it for long, or another
    /// one has its place. One that is over says so itself.
    pub(crate) async fn left(&self, link: &Arc<Link>) {
        let mut changes = self.subscribe();
        let is_left =
            |state: &State| state.link.is_some() && (!state.uses(link) || state.up().is_none());
        // The sender of changes is ours.
        let _ = changes.wait_for(is_left).await;
    }

    /// Waits until a link is not the one in use.
    pub(crate) async fn without(&self, link: &Arc<Link>) {
        let mut changes = self.subscribe();
        // The sender of changes is ours.
        let _ = changes.wait_for(|state| !state.uses(link)).await;
    }

    /// What a host is presumed to agree on that has just been reached: what it did before an outage, once for each
    /// link that was joined since.
    pub(crate) fn presume(&self, host: &HostIdentity) -> Option<Terms> {
        let state = self.state.borrow();
        let link = state.link.as_ref();
        // One that works is let go of only for one that is sure.
        if state.is_usable() {
            return None;
        }
        let stalled = link.filter(|link| link.is_joined());
        let last = self.presumed().take();
        let stalled = stalled.map(|link| (link.peer.clone(), link.terms()));
        let (before, terms) = stalled.or(last)?;
        (before == *host).then_some(terms)
    }

    fn presumed(&self) -> MutexGuard<'_, Option<(HostIdentity, Terms)>> {
        self.presumed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Streams that wait for the peer: without a carrier, or on a link over which it is not heard.
    pub(crate) fn paused_count(&self) -> u64 {
        let state = self.state.borrow();
        // Streams that have asked over a presumed link are without a carrier still.
        let is_silent = state.up().is_none() && !state.is_presumed();
        let silent = state.link.as_ref().filter(|_| is_silent);
        let waiting = silent.map_or(0, |link| link.carried_count());
        waiting + self.streams.tally.paused.load(Ordering::Relaxed)
    }

    /// Times the link was lost of late.
    pub(crate) fn recent_loss_count(&self) -> usize {
        let losses = self.losses.lock().unwrap_or_else(PoisonError::into_inner);
        let is_recent = |at: &&StdInstant| at.elapsed() < health::RECENT;
        losses.iter().filter(is_recent).count()
    }

    fn note_loss(&self) {
        let count = &self.streams.tally.links_lost;
        count.fetch_add(1, Ordering::Relaxed);
        let mut losses = self.losses.lock().unwrap_or_else(PoisonError::into_inner);
        if losses.len() == LOSS_COUNT_MAX {
            losses.pop_front();
        }
        losses.push_back(StdInstant::now());
    }

    /// Asks for a new link in place of the one we have, which works until then.
    pub(crate) fn renew(&self) {
        self.state.send_modify(|state| state.is_outdated = true);
    }

    /// Asks for a new link in place of this one, if another has not taken that already.
    pub(crate) fn replace(&self, link: &Arc<Link>) {
        self.state.send_if_modified(|state| {
            state.uses(link) && !std::mem::replace(&mut state.is_outdated, true)
        });
    }

    /// Every link there is: the one in use, and those it has replaced that still carry something.
    pub(crate) fn links(&self) -> Vec<Arc<Link>> {
        // Both at once, and in the order in which links change places: none is left out that does just now.
        let state = self.state.borrow();
        let retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        let older = retired.iter().filter_map(Weak::upgrade);
        state.link.iter().cloned().chain(older).collect()
    }

    /// Links that are over whose streams wait for another one: no more than there are streams.
    pub(crate) fn lost_links(&self) -> Vec<Arc<Link>> {
        self.lost().iter().filter_map(Weak::upgrade).collect()
    }

    /// Lets go of a link that is over: its streams wait no longer.
    pub(crate) fn forget(&self, link: &Arc<Link>) {
        self.lost()
            .retain(|other| !std::ptr::eq(other.as_ptr(), Arc::as_ptr(link)));
    }

    fn note_lost(&self, link: &Arc<Link>) {
        self.forget(link);
        self.lost().push(Arc::downgrade(link));
    }

    /// Those that somebody still holds.
    fn lost(&self) -> MutexGuard<'_, Vec<Weak<Link>>> {
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        lost.retain(|link| link.strong_count() > 0);
        lost
    }

    /// Notes why the last attempt failed, while there is no link; says whether that is to be told because of late
    /// it was another reason.
    pub(crate) fn note_failure(&self, Unreached { fault, barred }: &Unreached) -> bool {
        let mut is_told = false;
        self.state.send_if_modified(|state| {
            if state.up().is_some() {
                return false;
            }
            is_told = self.failures().is_news(fault, StdInstant::now());
            let is_news = state.reason != fault.detail || state.remedy != fault.remedy;
            if is_news {
                state.reason.clone_from(&fault.detail);
                state.remedy.clone_from(&fault.remedy);
            }
            state.bar(*barred) || is_news
        });
        is_told
    }

    fn failures(&self) -> MutexGuard<'_, Failures> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a new link, and ends the one it replaces; from then on the link is watched.
    ///
    /// Two healthy links are never kept: of two that one site dialled the newer stays, for whoever
    /// dials knows why; of two that both dialled, the one of the site whose name sorts first.
    ///
    /// # Errors
    ///
    /// `E_STATE` if the link we have is to stay.
    pub(crate) fn adopt(self: &Arc<Self>, link: &Arc<Link>) -> Result<(), Fault> {
        let mut refused = None;
        self.state.send_if_modified(|state| {
            if let Some(current) = &state.link {
                if let Err(fault) = self.check_replaced(current, link) {
                    refused = Some(fault);
                    return false;
                }
                self.learn_from(current);
                self.retire(current);
                if current.has_connections_of(link) {
                    // The same connections under the terms that the peer has given since.
                    current.let_go();
                } else if current.peer == link.peer && current.party() != link.party() {
                    // Whoever it was a link with is no more.
                    current.close(Code::State, "the peer's tunnel was started anew");
                }
            }
            // The peer's wish came with the link.
            self.shape_link(link);
            if let Some(known) = *self.known() {
                link.resume(known);
            }
            let was_up = state.up().is_some();
            state.link = Some(Arc::clone(link));
            state.is_outdated = false;
            if link.is_joined() {
                self.rivals().note_taken(&link.party());
                self.note_up(state);
            } else {
                // Nothing has been heard over it yet.
                state.hearing = match was_up {
                    true => Hearing::Stalled,
                    false => Hearing::Lost,
                };
            }
            true
        });
        if let Some(fault) = refused {
            return Err(fault);
        }
        if let Some(untold) = self.told.links.next() {
            let (peer, dialler) = (&link.peer, &link.dialler);
            let link = format_args!("{:032x}", link.id.0);
            tracing::info!(%peer, %dialler, %link, untold, "link up");
        }
        tokio::spawn(Arc::clone(self).attend(Arc::clone(link)));
        Ok(())
    }

    /// Takes note that the peer has taken a link which was presumed to be: streams may begin over it.
    pub(crate) fn note_joined(&self, link: &Arc<Link>) {
        self.state.send_if_modified(|state| {
            link.note_joined();
            let is_ours = state.uses(link);
            if is_ours {
                self.note_up(state);
            }
            is_ours
        });
    }

    /// Lets a link live on beside the one that takes its place; the streams of the oldest move if there are many.
    fn retire(&self, current: &Arc<Link>) {
        current.retire();
        let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        let is_kept = |link: &Arc<Link>| !link.is_over() && !Arc::ptr_eq(link, current);
        retired.retain(|link| link.upgrade().is_some_and(|link| is_kept(&link)));
        retired.push(Arc::downgrade(current));
        let surplus = retired.len().saturating_sub(RETIRED_COUNT_MAX);
        for link in retired.drain(..surplus).filter_map(|link| link.upgrade()) {
            link.close(Code::State, "other links have taken its place");
        }
    }

    /// Keeps what a link has learnt about the path, for the next one.
    fn learn_from(&self, link: &Link) {
        if let Some(known) = link.learnt() {
            *self.known() = Some(known);
        }
    }

    fn known(&self) -> MutexGuard<'_, Option<PathMemory>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks that a new link is to take the current one's place.
    fn check_replaced(&self, current: &Link, new: &Link) -> Result<(), Fault> {
        if current.is_ill() || current.has_connections_of(new) {
            return Ok(());
        }
        let linked = || Fault::new(Code::State, format!("already linked with {}", current.peer));
        if current.peer.host != new.peer.host {
            // Two hosts that both claim to be the site's tunnel would push each other out for ever.
            return Err(linked().remedy(ONE_TUNNEL_REMEDY));
        }
        let mut rivals = self.rivals();
        if current.party() != new.party() && rivals.is_past(&new.party()) {
            // A link whose tunnel is gone shows as stalled before the other one has dialled a few times more.
            current.ask_anyway();
            return Err(rivals.refuse(current, new));
        }
        match current.dialler == new.dialler || new.dialler == self.preferred {
            true => Ok(()),
            false => Err(linked()),
        }
    }

    fn rivals(&self) -> MutexGuard<'_, Rivals> {
        self.rivals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The words to show while two tunnels with the peer's identity are there.
    pub(crate) fn rivals_shown(&self) -> Option<String> {
        self.rivals().shown(StdInstant::now())
    }

    /// Watches a link to its end.
    async fn attend(self: Arc<Self>, link: Arc<Link>) {
        let reason = link
            .watch(|hearing| {
                let peer = &link.peer;
                tracing::info!(%peer, ?hearing, "link changed");
                self.state.send_if_modified(|state| {
                    // Of one that is presumed the peer's answer decides.
                    let is_ours = state.uses(&link) && link.is_joined();
                    if is_ours {
                        self.note_hearing(state, &link, hearing);
                    }
                    is_ours
                });
            })
            .await;
        link.hear_out().await;
        // What the peer said is forgotten as soon as we close what it said it on.
        let is_denied = link.is_denied();
        let is_outage = link.is_joined() && !is_denied && !link.is_farewell();
        // One connection is over: the other one must not live on with half of the streams.
        link.close(Code::Unreachable, "the link's other connection is over");
        link.settle();
        self.learn_from(&link);
        // One that the peer has never taken carried nothing that could wait for the next.
        if link.is_joined() {
            self.note_lost(&link);
        }
        let peer = &link.peer;
        if let Some(untold) = self.told.links.next() {
            tracing::info!(%peer, reason, untold, "link down");
        }
        if is_denied {
            standing::note_denied(&self, peer);
        }
        self.state.send_if_modified(|state| {
            let is_ours = state.uses(&link);
            if is_ours {
                let was_up = std::mem::take(&mut state.hearing) != Hearing::Lost;
                state.link = self.reinstated(&link);
                *self.presumed() = is_outage.then(|| (link.peer.clone(), link.terms()));
                if state.link.is_some() {
                    // What the newer one was made for is still to be had by whoever dialled it; from the other side
                    // it would be refused without end.
                    state.is_outdated = link.dialler != self.site;
                    state.since = SystemTime::now();
                } else {
                    if was_up {
                        if link.is_joined() {
                            self.note_loss();
                        }
                        note_down(state, reason.clone());
                    }
                    if is_denied {
                        state.bar(Some(Barred::Revoked(Whose::Ours)));
                    }
                }
            }
            is_ours
        });
    }

    fn note_up(&self, state: &mut State) {
        state.hearing = Hearing::Heard;
        state.reason = "up".to_owned();
        state.remedy = None;
        state.barred = None;
        *self.failures() = Failures::default();
        state.since = SystemTime::now();
    }

    /// Notes whether the peer is heard over the link in use.
    fn note_hearing(&self, state: &mut State, link: &Arc<Link>, hearing: Hearing) {
        let before = std::mem::replace(&mut state.hearing, hearing);
        if hearing == Hearing::Lost {
            self.note_loss();
            self.note_lost(link);
            note_down(state, "the peer has stopped answering".to_owned());
        } else if before == Hearing::Lost {
            self.forget(link);
            self.note_up(state);
        }
    }

    /// The link that this one has replaced, if it still works: whoever dialled this one may have let go of it
    /// because the older one answered again, or it was lost before its streams had moved.
    fn reinstated(&self, lost: &Link) -> Option<Arc<Link>> {
        if lost.is_farewell() {
            return None;
        }
        let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        let link = retired
            .iter()
            .rev()
            .filter_map(Weak::upgrade)
            .find(|link| link.party() == lost.party() && link.reinstate())?;
        // From here on it is no longer beside the newest.
        retired.retain(|other| {
            other
                .upgrade()
                .is_some_and(|other| !Arc::ptr_eq(&other, &link))
        });
        drop(retired);
        self.shape_link(&link);
        let peer = &link.peer;
        tracing::info!(%peer, link = %format_args!("{:032x}", link.id.0), "link back in its place");
        Some(link)
    }
}

fn note_down(state: &mut State, reason: String) {
    state.reason = reason;
    state.remedy = None;
    state.since = SystemTime::now();
}

fn clients(
    site: &Name,
    identity: &Identity,
    rejections: &Arc<Rejections>,
    limits: &Limits,
) -> Result<Clients, Fault> {
    let client = |leg| {
        let tls = tls::client_config(identity, site, rejections)?;
        transport::client(tls, limits, leg)
    };
    let quiet = tls::client_config(identity, site, rejections)?;
    Ok(Clients {
        urgent: client(Leg::Urgent)?,
        bulk: client(Leg::Bulk)?,
        quiet: transport::quiet_client(quiet, limits)?,
        chain: identity.chain().into(),
    })
}
