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
//! A replaced link keeps working until its streams have moved to the new link. If the new link ends
//! first, the replaced link becomes the link in use again.

mod clients;
mod removal;
pub(crate) mod rivals;
mod shaped;
mod state;

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Instant, SystemTime};

use governor::{DefaultDirectRateLimiter, Quota};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;
use towpath_certs::{Identity, Refusal, Rejections};
use towpath_forecast::moment::Moment;
use towpath_forecast::zone::Zone;
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
use crate::shaping::pace::Pacer;
use crate::shaping::shares::Shaping;
use crate::shaping::timetable;
use crate::streams::datagrams::DatagramFlows;
use crate::streams::serve::StreamLog;
use crate::streams::table::Streams;
use crate::trust::failures::Failures;
use crate::trust::standing;
pub(crate) use clients::Clients;
use clients::clients;
use rivals::Rivals;
pub(crate) use shaped::Shaped;
pub(crate) use state::{Barred, State, Unreached};

/// New streams per second that a peer may open. A move opens four, an application a few per
/// request.
const STREAMS_PER_SECOND: NonZeroU32 = NonZeroU32::new(200).expect("not zero");

/// Losses of a link that are remembered; above this number the oldest is forgotten.
const LOSS_COUNT_MAX: usize = 32;

/// Replaced links that are kept for streams that have not moved yet (T06). The number is limited
/// because each has windows of its own, and a peer may dial as often as it likes.
const RETIRED_COUNT_MAX: usize = 2;

/// The remedy shown when a second host of a site asks for a link.
pub(crate) const ONE_TUNNEL_REMEDY: &str =
    "one tunnel of a site is linked at a time: stop that one, or give this host a site of its own";

/// The name of a host's tunnel in messages about versions; both sides use the same one.
pub(crate) fn tunnel_name(host: &HostIdentity) -> String {
    format!("the tunnel of {host}")
}

/// A site we keep a link to.
#[derive(Debug)]
pub(crate) struct Peer {
    pub site: Name,
    /// Where to dial the peer, as `host:port`. `None` if the peer has to dial.
    address: watch::Sender<Option<String>>,
    shaping: Mutex<Arc<Shaped>>,
    zone: Mutex<Zone>,
    pub pacer: Arc<Pacer>,
    pub counters: Arc<Counters>,
    pub streams: Arc<Streams>,
    /// Limits how fast the peer may open streams, over all its links.
    pub begins: DefaultDirectRateLimiter,
    pub datagrams: DatagramFlows,
    pub recent: Recent,
    /// Attempts to dial the peer so far, by cause.
    pub dials: [AtomicU64; Cause::ALL.len()],
    /// Rate limits of log lines about this peer's links and streams.
    pub told: StreamLog,
    pub probes: probe::Tally,
    /// How often to measure the path to the peer, and how much that may cost.
    probe: watch::Sender<Option<ProbeConfig>>,
    /// `None` while this host has no key that fits its certificate.
    clients: Mutex<Option<Clients>>,
    /// The site whose link stays if both sites dial at once: the one whose name sorts first.
    preferred: Name,
    state: watch::Sender<State>,
    /// Links that another link has replaced.
    retired: Mutex<Vec<Weak<Link>>>,
    /// Links that are over while streams they carried wait for the next link.
    lost: Mutex<Vec<Weak<Link>>>,
    /// The record of refused certificates.
    rejections: Arc<Rejections>,
    /// The last link's estimate of the path.
    known: Mutex<Option<PathMemory>>,
    /// The host and the terms of the last link, if an outage ended that link.
    presumed: Mutex<Option<(HostIdentity, Terms)>>,
    /// When the link was lost, newest last.
    losses: Mutex<VecDeque<Instant>>,
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
            is_removed: false,
            reason: "not reached yet".to_owned(),
            remedy: None,
            barred: None,
            since: SystemTime::now(),
        });
        let shaped = Shaped::new(config.shaping(), zone);
        let rate = shaped.rate_at(timetable::now());
        Ok(Self {
            site: config.site.clone(),
            address: watch::channel(config.address.clone()).0,
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
            probe: watch::channel(config.probe).0,
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

    /// Whether we dial the peer.
    pub(crate) fn is_dialled(&self) -> bool {
        self.address.borrow().is_some()
    }

    /// Where to dial the peer, now and after each change.
    pub(crate) fn addresses(&self) -> watch::Receiver<Option<String>> {
        self.address.subscribe()
    }

    /// Sets where to dial the peer; `None` if the peer has to dial.
    pub(crate) fn set_address(&self, address: Option<&String>) {
        self.address.send_if_modified(|ours| {
            let is_other = ours.as_ref() != address;
            *ours = address.cloned();
            is_other
        });
    }

    /// How often to measure the path, now and after each change.
    pub(crate) fn probe_configs(&self) -> watch::Receiver<Option<ProbeConfig>> {
        self.probe.subscribe()
    }

    /// Sets how often to measure the path, from the next due probe on.
    pub(crate) fn set_probe(&self, probe: Option<ProbeConfig>) {
        self.probe
            .send_if_modified(|ours| std::mem::replace(ours, probe) != probe);
    }

    /// The settings to dial with now.
    ///
    /// # Errors
    ///
    /// `E_CERTIFICATE` while this host has no key that fits its certificate.
    pub(crate) fn clients(&self) -> Result<Clients, Fault> {
        let clients = self.clients.lock();
        clients.clone().ok_or_else(Identity::no_key)
    }

    /// The settings to dial this peer with the given identity.
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

    /// Uses these settings from the next attempt to dial.
    pub(crate) fn set_clients(&self, clients: Option<Clients>) {
        *self.clients.lock() = clients;
    }

    /// The shaping in force.
    pub(crate) fn shaped(&self) -> Arc<Shaped> {
        Arc::clone(&self.shaping.lock())
    }

    /// Interprets timetables in this time zone from the next change of the shaping on.
    pub(crate) fn set_zone(&self, zone: &Zone) {
        let mut ours = self.zone.lock();
        ours.clone_from(zone);
    }

    /// Replaces the shaping rules, at once for the link that is up.
    pub(crate) fn set_shaping(&self, shaping: Shaping) {
        let zone = self.zone.lock();
        let shaped = Arc::new(Shaped::new(shaping, &zone));
        *self.shaping.lock() = shaped;
        self.shape();
    }

    /// Applies the rates of this moment to the link that is up. Returns whether the cap of that
    /// link changed.
    pub(crate) fn shape(&self) -> bool {
        self.link().is_ok_and(|link| self.shape_link(&link))
    }

    fn shape_link(&self, link: &Link) -> bool {
        let (shaped, now) = (self.shaped(), timetable::now());
        link.set_shares(&shaped.rules.shares);
        link.news.wish(shaped.receive_rate_at(now));
        link.set_send_rate(shaped.rate_at(now))
    }

    /// The cap on what we send now.
    pub(crate) fn send_rate(&self) -> Option<Rate> {
        self.shaped().rate_at(timetable::now())
    }

    /// The cap on what we send at the given moment.
    pub(crate) fn send_rate_at(&self, at: Moment) -> Option<Rate> {
        self.shaped().rate_at(at)
    }

    /// The cap on what we want to receive now.
    pub(crate) fn receive_rate(&self) -> Option<Rate> {
        self.receive_rate_at(timetable::now())
    }

    /// The cap on what we want to receive at the given moment.
    pub(crate) fn receive_rate_at(&self, at: Moment) -> Option<Rate> {
        self.shaped().receive_rate_at(at)
    }

    /// Notifies of every change of the state.
    pub(crate) fn subscribe(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// The current state.
    pub(crate) fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// The link, if it is up.
    ///
    /// # Errors
    ///
    /// `E_UNREACHABLE` with the reason and a remedy. Where waiting does not help: `E_DENIED` if we
    /// refuse the peer because its certificate is revoked, `E_VERSION` if it has no version in
    /// common with us.
    pub(crate) fn link(&self) -> Result<Arc<Link>, Fault> {
        let link = self.state.borrow().up().cloned();
        link.ok_or_else(|| self.unlinked())
    }

    /// The link for new streams. If the peer is only presumed to have taken the link, waits for its
    /// answer: otherwise another run of its tunnel could serve a stream under an id that this side
    /// does not know.
    ///
    /// # Errors
    ///
    /// As [`Self::link`].
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
        if self.state.borrow().is_removed {
            return self.removal();
        }
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

    /// The last certificate that was refused when this peer was dialled.
    pub(crate) fn last_refusal(&self) -> Option<Refusal> {
        self.rejections.last(Some(&self.site))
    }

    /// Records that we refuse the peer because its certificate is revoked.
    pub(crate) fn note_revoked(&self) {
        let revoked = Some(Barred::Revoked(Whose::Peers));
        self.state.send_if_modified(|state| state.bar(revoked));
    }

    /// Waits until another link has replaced this one.
    pub(crate) async fn replaced(&self, link: &Arc<Link>) {
        self.link_beside(Some(link)).await;
    }

    /// Waits for a link other than `known`.
    pub(crate) async fn link_beside(&self, known: Option<&Arc<Link>>) -> Arc<Link> {
        let is_known = |link: &Arc<Link>| known.is_some_and(|known| Arc::ptr_eq(known, link));
        let other = |state: &State| state.link.clone().filter(|link| !is_known(link));
        let mut changes = self.subscribe();
        let state = changes.wait_for(|state| other(state).is_some()).await;
        let state = state.expect("the sender of changes is ours");
        other(&state).expect("it was waited for")
    }

    /// Waits until nothing new should begin over this link: the peer has not answered on it for a
    /// long time, or another link has replaced it. Does not return because the link is over;
    /// callers see that on the link itself.
    pub(crate) async fn left(&self, link: &Arc<Link>) {
        let mut changes = self.subscribe();
        let is_left =
            |state: &State| state.link.is_some() && (!state.uses(link) || state.up().is_none());
        // Fails only if the sender is dropped, and `self` owns it.
        let _ = changes.wait_for(is_left).await;
    }

    /// Waits until this link is not the link in use.
    pub(crate) async fn without(&self, link: &Arc<Link>) {
        let mut changes = self.subscribe();
        // Fails only if the sender is dropped, and `self` owns it.
        let _ = changes.wait_for(|state| !state.uses(link)).await;
    }

    /// The terms that a host which has just been reached is presumed to accept: those of the link
    /// before the outage. They are presumed once; a link must be joined before they can be presumed
    /// again.
    pub(crate) fn presume(&self, host: &HostIdentity) -> Option<Terms> {
        let state = self.state.borrow();
        let link = state.link.as_ref();
        // A link that works is only given up for one that the peer has confirmed.
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
        self.presumed.lock()
    }

    /// Streams that wait for the peer: those without a carrier, and those on a link on which it is
    /// silent.
    pub(crate) fn paused_count(&self) -> u64 {
        let state = self.state.borrow();
        // On a presumed link, streams that have asked to go on still have no carrier.
        let is_silent = state.up().is_none() && !state.is_presumed();
        let silent = state.link.as_ref().filter(|_| is_silent);
        let waiting = silent.map_or(0, |link| link.carried_count());
        waiting + self.streams.tally.paused.load(Ordering::Relaxed)
    }

    /// How often the link was lost within [`health::RECENT`].
    pub(crate) fn recent_loss_count(&self) -> usize {
        let losses = self.losses.lock();
        let is_recent = |at: &&Instant| at.elapsed() < health::RECENT;
        losses.iter().filter(is_recent).count()
    }

    fn note_loss(&self) {
        let count = &self.streams.tally.links_lost;
        count.fetch_add(1, Ordering::Relaxed);
        let mut losses = self.losses.lock();
        if losses.len() == LOSS_COUNT_MAX {
            losses.pop_front();
        }
        losses.push_back(Instant::now());
    }

    /// Asks for a new link; the current link works until the new one is up.
    pub(crate) fn renew(&self) {
        self.state.send_modify(|state| state.is_outdated = true);
    }

    /// Asks for a new link in place of this one, unless another link has already replaced it.
    pub(crate) fn replace(&self, link: &Arc<Link>) {
        self.state.send_if_modified(|state| {
            state.uses(link) && !std::mem::replace(&mut state.is_outdated, true)
        });
    }

    /// All links: the link in use, and replaced links that still exist.
    pub(crate) fn links(&self) -> Vec<Arc<Link>> {
        // Both locks are held at once, in the order used when links change places. So a link that
        // is just changing places is not missed.
        let state = self.state.borrow();
        let retired = self.retired.lock();
        let older = retired.iter().filter_map(Weak::upgrade);
        state.link.iter().cloned().chain(older).collect()
    }

    /// Links that are over and whose streams wait for another link. There are no more of them than
    /// streams.
    pub(crate) fn lost_links(&self) -> Vec<Arc<Link>> {
        self.lost().iter().filter_map(Weak::upgrade).collect()
    }

    /// Removes a link from the lost ones: its streams no longer wait.
    pub(crate) fn forget(&self, link: &Arc<Link>) {
        self.lost()
            .retain(|other| !std::ptr::eq(other.as_ptr(), Arc::as_ptr(link)));
    }

    fn note_lost(&self, link: &Arc<Link>) {
        self.forget(link);
        self.lost().push(Arc::downgrade(link));
    }

    /// The lost links that somebody still holds.
    fn lost(&self) -> MutexGuard<'_, Vec<Weak<Link>>> {
        let mut lost = self.lost.lock();
        lost.retain(|link| link.strong_count() > 0);
        lost
    }

    /// Records why the last attempt failed, unless the link is up. Returns whether to log the
    /// failure: only if it is of a kind that was not logged recently.
    pub(crate) fn note_failure(&self, Unreached { fault, barred }: &Unreached) -> bool {
        let mut is_told = false;
        self.state.send_if_modified(|state| {
            if state.up().is_some() {
                return false;
            }
            is_told = self.failures().is_news(fault, Instant::now());
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
        self.failures.lock()
    }

    /// Makes a new link the link in use, retires the link it replaces, and starts to watch the new
    /// one.
    ///
    /// Two healthy links are never both in use. If one site dialled both, the newer stays, since
    /// that site had a reason to dial again. If each site dialled one, the link of the site whose
    /// name sorts first stays.
    ///
    /// # Errors
    ///
    /// `E_STATE` if the current link stays, `E_GONE` if the peer has been removed.
    pub(crate) fn adopt(self: &Arc<Self>, link: &Arc<Link>) -> Result<(), Fault> {
        let mut refused = None;
        self.state.send_if_modified(|state| {
            if state.is_removed {
                refused = Some(self.removal());
                return false;
            }
            if let Some(current) = &state.link {
                if let Err(fault) = self.check_replaced(current, link) {
                    refused = Some(fault);
                    return false;
                }
                self.learn_from(current);
                self.retire(current);
                if current.has_connections_of(link) {
                    // The same connections, under the terms that the peer has named since.
                    current.let_go();
                } else if current.peer == link.peer && current.party() != link.party() {
                    // The run that the current link leads to is over.
                    current.close(Code::State, "the peer's tunnel was started anew");
                }
            }
            // The link already holds the peer's cap; this sets ours.
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
                // Nothing has been received over it yet.
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
        if let Some(untold) = self.told.links.admit() {
            let (peer, dialler) = (&link.peer, &link.dialler);
            let link = format_args!("{:032x}", link.id.0);
            tracing::info!(%peer, %dialler, %link, untold, "link up");
        }
        tokio::spawn(Arc::clone(self).attend(Arc::clone(link)));
        Ok(())
    }

    /// Records that the peer has taken a presumed link: streams may begin over it.
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

    /// Retires the link that a new one replaces. If too many are retired, closes the oldest, so
    /// that their streams move.
    fn retire(&self, current: &Arc<Link>) {
        current.retire();
        let mut retired = self.retired.lock();
        let is_kept = |link: &Arc<Link>| !link.is_over() && !Arc::ptr_eq(link, current);
        retired.retain(|link| link.upgrade().is_some_and(|link| is_kept(&link)));
        retired.push(Arc::downgrade(current));
        let surplus = retired.len().saturating_sub(RETIRED_COUNT_MAX);
        for link in retired.drain(..surplus).filter_map(|link| link.upgrade()) {
            link.close(Code::State, "other links have taken its place");
        }
    }

    /// Keeps a link's estimate of the path for the next link.
    fn learn_from(&self, link: &Link) {
        if let Some(known) = link.learnt() {
            *self.known() = Some(known);
        }
    }

    fn known(&self) -> MutexGuard<'_, Option<PathMemory>> {
        self.known.lock()
    }

    /// Checks whether a new link may replace the current one.
    fn check_replaced(&self, current: &Link, new: &Link) -> Result<(), Fault> {
        if current.is_ill() || current.has_connections_of(new) {
            return Ok(());
        }
        let linked = || Fault::new(Code::State, format!("already linked with {}", current.peer));
        if current.peer.host != new.peer.host {
            // Two hosts that both claim to be the site's tunnel would replace each other's link for
            // ever.
            return Err(linked().remedy(ONE_TUNNEL_REMEDY));
        }
        let mut rivals = self.rivals();
        if current.party() != new.party() && rivals.is_past(&new.party()) {
            // If the current link's tunnel is gone, this probe shows the link as stalled before the
            // other tunnel has dialled a few more times.
            current.ask_anyway();
            return Err(rivals.refuse(current, new));
        }
        match current.dialler == new.dialler || new.dialler == self.preferred {
            true => Ok(()),
            false => Err(linked()),
        }
    }

    fn rivals(&self) -> MutexGuard<'_, Rivals> {
        self.rivals.lock()
    }

    /// The message to show while two tunnels use the peer's identity.
    pub(crate) fn rivals_shown(&self) -> Option<String> {
        self.rivals().shown(Instant::now())
    }

    /// Watches a link to its end.
    async fn attend(self: Arc<Self>, link: Arc<Link>) {
        let reason = link
            .watch(|hearing| {
                let peer = &link.peer;
                tracing::info!(%peer, ?hearing, "link changed");
                self.state.send_if_modified(|state| {
                    // For a presumed link the peer's answer to `Join` decides instead.
                    let is_ours = state.uses(&link) && link.is_joined();
                    if is_ours {
                        self.note_hearing(state, &link, hearing);
                    }
                    is_ours
                });
            })
            .await;
        link.hear_out().await;
        // Read before closing: the peer's close reason is lost as soon as we close the connection.
        let is_denied = link.is_denied();
        let is_outage = link.is_joined() && !is_denied && !link.is_farewell();
        // If one connection is over, the other must not live on with half of the streams.
        link.close(Code::Unreachable, "the link's other connection is over");
        link.settle();
        self.learn_from(&link);
        // A link that the peer has never taken carried no stream that could wait for the next.
        if link.is_joined() {
            self.note_lost(&link);
        }
        let peer = &link.peer;
        if let Some(untold) = self.told.links.admit() {
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
                    // The newer link's purpose still stands, so if we dialled it we dial again. If
                    // the peer dialled it we must not: it would refuse our link every time.
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

    /// Records a change of the hearing of the link in use.
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

    /// Puts the link that `lost` has replaced back in use, if it still works. This happens if the
    /// dialling side gave `lost` up because the older link answered again, or if `lost` ended
    /// before its streams had moved to it.
    fn reinstated(&self, lost: &Link) -> Option<Arc<Link>> {
        if lost.is_farewell() {
            return None;
        }
        let mut retired = self.retired.lock();
        let link = retired
            .iter()
            .rev()
            .filter_map(Weak::upgrade)
            .find(|link| link.party() == lost.party() && link.reinstate())?;
        // It is the link in use again, and no longer a retired one.
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
