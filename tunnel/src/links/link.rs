//! A link: the two connections to one peer, for as long as both live.

mod end;
mod looks;
mod measured;
mod wishes;

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant as StdInstant};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use quinn::crypto::rustls::HandshakeData;
use quinn::{Connection, ConnectionStats, RecvStream, SendStream, VarInt};
use rustls::NamedGroup;
use tokio::sync::watch;
use towpath_protocol::amounts::micros;
use towpath_protocol::class::{Class, Leg, PerLeg};
use towpath_protocol::fault::Code;
use towpath_protocol::identity::{HostIdentity, Name};
use towpath_protocol::preamble::{LinkId, RunId};
use towpath_protocol::rate::Rate;
use towpath_protocol::time::Instant;

use crate::links::backoff::PATIENCE;
use crate::links::control::{News, Reports};
use crate::links::counters::Counters;
use crate::links::join::Terms;
use crate::links::network;
use crate::links::peer::Peer;
use crate::links::watchdog::Hearing;
use crate::path::cruise::Cruise;
use crate::path::estimate::Estimate;
use crate::path::windows::{self, Memory, Windows};
use crate::quic::alarm::Alarms;
use crate::quic::congestion::{DelayController, PathMemory};
use crate::shaping::pace::Pace;
use crate::shaping::shares::{Shares, cap_text};
use crate::shaping::turns::Turns;
use crate::streams::table::Party;
use crate::trust::standing::Papers;
pub(crate) use end::close;
use looks::{Rounds, seen, wire_bytes};
pub(crate) use measured::{LegStanding, Measured, Trouble, per_million};
use wishes::Wishes;
pub(crate) use wishes::least;

/// Interval at which a link reads its connections' counters.
const TICK: Duration = Duration::from_millis(50);

/// Interval at which a capped link reads what has left on the wire while it sends. Headers and
/// retransmissions are charged before they can add up to a burst.
const LOOK: Duration = Duration::from_millis(10);

/// Ticks between two probes of a silent peer. One tick (50 ms) is the most that probing adds to the
/// end of an outage, on top of 1.5 round trips. After [`PATIENCE`] of silence the interval is
/// [`PATIENT_ASK_TICKS`]: probes are then as rare as attempts to dial.
const ASK_TICKS: u32 = 1;
const PATIENT_ASK_TICKS: u32 = 5;

/// Ticks over which the goodput shown to operators is measured.
const GOODPUT_TICKS: u32 = 20;

/// Part of the path's rate, in thousandths, that programs must use for the rate to count as
/// confirmed while bulk keeps below it. A lower use shows only that programs wanted less.
const KEPT_BELOW_PER_MILLE_MIN: u64 = 800;

/// Largest window that urgent gets on the strength of bulk's estimate: four page batches of 64 KiB.
const URGENT_FLOOR_BYTES_MAX: u64 = 256 * 1024;

/// Minimum time that a replaced link is kept although it carries nothing. The peer may not yet know
/// that the next link was accepted, and would be left without a link.
const RETIREMENT_MIN: Duration = Duration::from_secs(1);

/// Maximum time that a replaced link is kept for streams that have not moved: many round trips.
const RETIREMENT_MAX: Duration = Duration::from_secs(10);

/// The two connections to one peer.
#[derive(Debug)]
pub(crate) struct Link {
    pub id: LinkId,
    pub peer: HostIdentity,
    /// The site that dialled.
    pub dialler: Name,
    /// The protocol version of the link.
    pub version: u16,
    pub pace: Arc<Pace>,
    wishes: Wishes,
    pub counters: Arc<Counters>,
    pub reports: Reports,
    pub news: News,
    pub turns: Turns,
    /// The certificates it was made with.
    pub papers: Papers,
    /// The local address that we dialled from; `None` if the peer dialled or if it is unknown.
    source: Option<IpAddr>,
    connections: PerLeg<Connection>,
    /// The run of the peer's tunnel.
    run: RunId,
    /// The control stream, until the control task takes it.
    control: Mutex<Option<(SendStream, RecvStream)>>,
    /// Streams carried, by leg.
    carried: PerLeg<Arc<AtomicU64>>,
    /// Streams that wait until their program takes what has arrived, by leg.
    waiting: PerLeg<Arc<AtomicU64>>,
    retired: Mutex<Option<StdInstant>>,
    /// Whether we have ended the link and its streams with it.
    is_given_up: AtomicBool,
    /// Whether the peer has confirmed the link.
    is_joined: AtomicBool,
    /// Whether another link has taken over its connections.
    let_go: watch::Sender<bool>,
    /// Why we have closed the link, once we have.
    last_word: OnceLock<(Code, String)>,
    windows: Mutex<Windows>,
    /// Bytes of streams received over bulk.
    received_bulk: AtomicU64,
    /// Limit for the bytes kept of all streams of a leg until the peer has handed them on.
    tail_bytes: AtomicU64,
    /// Bytes kept of all bulk streams until the peer has handed them on.
    held_bulk: Arc<AtomicU64>,
    base_rtt_us: AtomicU64,
    /// See [`Self::learnt`]. Kept, because an interruption makes bulk start its estimate again.
    learnt: Mutex<Option<PathMemory>>,
    /// When the peer stopped answering; `None` while it answers.
    silent_since: Mutex<Option<StdInstant>>,
    measured: Mutex<Measured>,
    trouble: Mutex<Trouble>,
    cruise: Mutex<Cruise>,
    alarms: Alarms,
    /// Zero of the time of bulk's controller and of the cruise.
    began: StdInstant,
}

/// Two connections that were joined to a link, and the terms that were exchanged.
#[derive(Debug)]
pub(crate) struct Joint {
    pub id: LinkId,
    /// The protocol version of the link.
    pub version: u16,
    /// The host and run at the other end.
    pub party: Party,
    /// The site that dialled.
    pub dialler: Name,
    pub connections: PerLeg<Connection>,
    /// The cap on what we want to receive, as told to the peer.
    pub told: Option<Rate>,
    /// The cap on what the peer wants to receive, as told to us.
    pub theirs: Option<Rate>,
}

/// Counts one stream as carried, or as waiting for its program, until it is dropped.
#[derive(Debug)]
pub(crate) struct Carrying(Arc<AtomicU64>);

impl Carrying {
    fn one_of(count: &Arc<AtomicU64>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Carrying {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Link {
    /// Makes a link to a site.
    pub(crate) fn new(joint: Joint, site: &Peer, memory: &Arc<Memory>) -> Self {
        let Party { host: peer, run } = joint.party;
        let connections = joint.connections;
        for connection in connections.iter() {
            if connection
                .remote_address()
                .ip()
                .to_canonical()
                .is_loopback()
                && let Some(delay) = DelayController::of(connection)
            {
                delay.set_local();
            }
        }
        let began = DelayController::of(&connections.bulk)
            .map_or_else(StdInstant::now, |delay| delay.began());
        Self {
            id: joint.id,
            peer,
            dialler: joint.dialler,
            pace: Arc::new(Pace::new(Arc::clone(&site.pacer))),
            version: joint.version,
            wishes: Wishes::of(joint.theirs),
            counters: Arc::clone(&site.counters),
            reports: Reports::default(),
            news: News::having_told(joint.told),
            turns: Turns::default(),
            papers: Papers::default(),
            source: None,
            connections,
            run,
            control: Mutex::default(),
            carried: PerLeg::default(),
            waiting: PerLeg::default(),
            retired: Mutex::default(),
            is_given_up: AtomicBool::new(false),
            is_joined: AtomicBool::new(true),
            let_go: watch::Sender::new(false),
            last_word: OnceLock::new(),
            windows: Mutex::new(Windows::new(memory)),
            received_bulk: AtomicU64::new(0),
            tail_bytes: AtomicU64::new(0),
            held_bulk: Arc::clone(site.streams.held_bytes(Leg::Bulk)),
            base_rtt_us: AtomicU64::new(0),
            learnt: Mutex::default(),
            silent_since: Mutex::default(),
            measured: Mutex::default(),
            trouble: Mutex::default(),
            cruise: Mutex::default(),
            alarms: Alarms::default(),
            began,
        }
    }

    /// Sets the certificates that the link was made with.
    pub(crate) fn with_papers(mut self, papers: Papers) -> Self {
        self.papers = papers;
        self
    }

    /// Sets the local address that the link was dialled from.
    pub(crate) const fn with_source(mut self, source: Option<IpAddr>) -> Self {
        self.source = source;
        self
    }

    /// Marks the link as not yet confirmed by the peer.
    pub(crate) fn presumed(self) -> Self {
        self.is_joined.store(false, Ordering::Relaxed);
        self
    }

    /// Records that the peer has confirmed the link.
    pub(crate) fn note_joined(&self) {
        self.is_joined.store(true, Ordering::Relaxed);
    }

    /// Whether the peer has confirmed the link.
    pub(crate) fn is_joined(&self) -> bool {
        self.is_joined.load(Ordering::Relaxed)
    }

    /// The terms that were agreed with the peer.
    pub(crate) fn terms(&self) -> Terms {
        Terms {
            version: self.version,
            run: self.run,
            receive_rate_max: self.wanted_rate(),
        }
    }

    /// Whether the kernel now sends to the peer from another address than when we dialled. The peer
    /// only answers to the old address.
    pub(crate) fn has_moved(&self) -> bool {
        let peer = self.connections.urgent.remote_address();
        self.source
            .is_some_and(|source| network::has_moved(source, peer))
    }

    /// Changes the shares of the classes.
    pub(crate) fn set_shares(&self, shares: &Shares) {
        self.pace.set_shares(shares);
    }

    /// The connection of the given leg.
    pub(crate) fn connection(&self, leg: Leg) -> &Connection {
        &self.connections[leg]
    }

    /// The key exchange groups that the connections negotiated.
    pub(crate) fn key_exchanges(&self) -> Option<PerLeg<NamedGroup>> {
        let negotiated = |connection: &Connection| {
            let said = connection.handshake_data()?;
            let said = said.downcast::<HandshakeData>().ok()?;
            Some(said.negotiated_key_exchange_group)
        };
        Some(PerLeg {
            urgent: negotiated(&self.connections.urgent)?,
            bulk: negotiated(&self.connections.bulk)?,
        })
    }

    /// Whether the peer has stopped answering on one of the connections.
    pub(crate) fn is_stalled(&self) -> bool {
        self.silent_since().is_some()
    }

    /// How long the peer has not answered. On a link that is over, the time since its last silence
    /// began.
    pub(crate) fn silence(&self) -> Option<Duration> {
        self.silent_since().map(|since| since.elapsed())
    }

    fn silent_since(&self) -> MutexGuard<'_, Option<StdInstant>> {
        self.silent_since.lock()
    }

    /// The smoothed round trip of the urgent connection.
    pub(crate) fn rtt(&self) -> Duration {
        self.rtt_of(Leg::Urgent)
    }

    /// The smoothed round trip of a leg's connection.
    pub(crate) fn rtt_of(&self, leg: Leg) -> Duration {
        self.connection(leg).rtt()
    }

    /// Whether the link is stalled or over, so that nothing can be expected of the path now.
    pub(crate) fn is_ill(&self) -> bool {
        self.is_stalled() || self.is_over()
    }

    /// The host and run at the other end.
    pub(crate) fn party(&self) -> Party {
        Party {
            host: self.peer.clone(),
            run: self.run,
        }
    }

    /// Keeps the control stream until the control task takes it.
    pub(crate) fn set_control(&self, control: (SendStream, RecvStream)) {
        *self.control.lock() = Some(control);
    }

    /// Takes the control stream; it is there once.
    pub(crate) fn take_control(&self) -> Option<(SendStream, RecvStream)> {
        self.control.lock().take()
    }

    /// Counts a stream as carried by the given leg until the result is dropped.
    pub(crate) fn carry(&self, leg: Leg) -> Carrying {
        Carrying::one_of(&self.carried[leg])
    }

    /// Number of streams that the link carries.
    pub(crate) fn carried_count(&self) -> u64 {
        let carried = self.carried.iter();
        carried.map(|leg| leg.load(Ordering::Relaxed)).sum()
    }

    /// Counts bytes received on a stream.
    pub(crate) fn count_received(&self, class: Class, bytes: u64) {
        self.counters.add_received(class, bytes);
        if class.leg() == Leg::Bulk {
            self.received_bulk.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Counts a stream of the given leg as waiting for its program until the result is dropped.
    pub(crate) fn wait_for_program(&self, leg: Leg) -> Carrying {
        Carrying::one_of(&self.waiting[leg])
    }

    /// Limit for the bytes kept of all streams of a leg until the peer has handed them on.
    pub(crate) fn tail_bytes(&self) -> u64 {
        self.tail_bytes.load(Ordering::Relaxed)
    }

    /// The round trip time without a queue.
    pub(crate) fn base_rtt(&self) -> Duration {
        Duration::from_micros(self.base_rtt_us.load(Ordering::Relaxed))
    }

    /// Records that another link has replaced this one, which ends once its streams have moved.
    pub(crate) fn retire(&self) {
        *self.retired.lock() = Some(StdInstant::now());
    }

    /// Whether another link has replaced this one.
    pub(crate) fn is_retired(&self) -> bool {
        let retired = self.retired.lock();
        retired.is_some()
    }

    /// Makes a replaced link the link in use again, if it still works. Returns whether it does.
    pub(crate) fn reinstate(&self) -> bool {
        let mut retired = self.retired.lock();
        let is_well = !self.is_ill();
        if is_well {
            *retired = None;
        }
        is_well
    }

    fn close_if_retired(&self) {
        // The lock is held until the link is closed, so that it is not reinstated meanwhile.
        let retired = self.retired.lock();
        let time = if self.carried_count() == 0 {
            RETIREMENT_MIN
        } else {
            RETIREMENT_MAX
        };
        if retired.is_some_and(|since| since.elapsed() > time) {
            self.close(Code::State, "another link has taken its place");
        }
    }

    /// The most bytes of a leg that should be sent at once.
    pub(crate) fn piece_bytes(&self, leg: Leg) -> u64 {
        match leg {
            Leg::Urgent => u64::MAX,
            Leg::Bulk => self.cruise().piece_bytes(),
        }
    }

    /// Waits until `bytes` of a leg may be sent without causing a queue. Callers are served in
    /// order, so that streams take turns.
    pub(crate) async fn until_free(&self, leg: Leg, bytes: u64) {
        let now = self.now();
        if leg == Leg::Urgent {
            self.cruise().pass(now, bytes);
            return;
        }
        let at = {
            let mut cruise = self.cruise();
            self.look(&mut cruise, now);
            cruise.take(now, bytes)
        };
        if at > now {
            let at = self.began + at.since(Instant::ZERO);
            self.alarms.until(at).await;
        }
    }

    /// Passes the estimate of the path to the cruise, and the cruise's result to the controller.
    fn look(&self, cruise: &mut Cruise, now: Instant) {
        if cruise.is_curious(now)
            && let Some(delay) = DelayController::of(&self.connections.bulk)
        {
            let estimate = delay.estimate();
            let left = self.connections.urgent.stats().udp_tx;
            cruise.note_urgent(now, left.datagrams, left.bytes);
            cruise.look(now, &estimate);
            if !cruise.is_cruising() {
                // Data that QUIC already holds when the rate becomes known is not paced, so QUIC's
                // buffer follows the estimate until then.
                let send_bytes = windows::send_bytes(&estimate, self.tail_bytes());
                self.connections.bulk.set_send_window(send_bytes);
            }
            delay.set_cruising(cruise.is_cruising());
            if let Some(marks) = cruise.marks() {
                delay.mark(marks);
            }
        }
    }

    /// Time since the link began, as an [`Instant`].
    pub(crate) fn now(&self) -> Instant {
        Instant::ZERO + self.began.elapsed()
    }

    /// Time since the link began.
    pub(crate) fn age(&self) -> Duration {
        self.began.elapsed()
    }

    fn cruise(&self) -> MutexGuard<'_, Cruise> {
        self.cruise.lock()
    }

    fn windows(&self) -> MutexGuard<'_, Windows> {
        self.windows.lock()
    }

    /// Reads the counters for the last time, and gives back the link's shares and windows.
    pub(crate) fn settle(&self) {
        self.observe();
        self.pace.end();
        self.windows().end();
    }

    /// Bulk's estimate of the path, for the link that follows this one.
    pub(crate) fn learnt(&self) -> Option<PathMemory> {
        *self.learnt.lock()
    }

    /// Starts with the estimate of the link before this one.
    pub(crate) fn resume(&self, known: PathMemory) {
        if let Some(delay) = DelayController::of(&self.connections.bulk) {
            delay.resume(known);
        }
    }

    /// The estimate of the path for operators: bulk's, or urgent's while bulk has none. Unknown
    /// values are zero. The rate is the first known one of bulk's and urgent's.
    pub(crate) fn estimate(&self) -> Estimate {
        let of = |connection| DelayController::of(connection).map(|delay| delay.estimate());
        let (bulk, urgent) = (of(&self.connections.bulk), of(&self.connections.urgent));
        let mut both = [bulk, urgent].into_iter().flatten();
        let known = both.find(|estimate| estimate.is_known);
        let rate = known.map(|estimate| estimate.rate_bytes_per_second);
        let mut estimate = bulk
            .filter(|estimate| estimate.rate_bytes_per_second > 0)
            .or(urgent)
            .unwrap_or_default();
        estimate.base_rtt = estimate.told_base_rtt;
        estimate.queue_delay = estimate.told_queue;
        estimate.rate_bytes_per_second = rate.unwrap_or(0);
        // The cruise's rate is a mean over its whole look; the estimator's is over a round of a few
        // milliseconds.
        if let Some(rate) = self.path_bytes_per_second() {
            estimate.rate_bytes_per_second = rate;
        }
        estimate
    }

    /// The rate of the path, while bulk keeps below it.
    fn path_bytes_per_second(&self) -> Option<u64> {
        self.cruise().path_bytes_per_second()
    }

    /// The rate of the path, if the given goodput confirms it. Bulk that keeps below the path's
    /// rate confirms it as well as bulk that fills the path, unless programs wanted less.
    pub(crate) fn capacity_shown_by(&self, goodput_per_second: u64) -> Option<u64> {
        let rate = self.path_bytes_per_second()?;
        (goodput_per_second >= rate / 1000 * KEPT_BELOW_PER_MILLE_MIN).then_some(rate)
    }

    /// Watches both connections until one is over; returns the reason. Calls `on_change` whenever
    /// the hearing of the peer changes.
    pub(crate) async fn watch(&self, on_change: impl Fn(Hearing)) -> String {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut rounds = Rounds::default();
        let reason = loop {
            tokio::select! {
                () = self.until_let_go() => break "it goes on under other terms".to_owned(),
                reason = self.connections.urgent.closed() => break reason.to_string(),
                reason = self.connections.bulk.closed() => break reason.to_string(),
                _ = ticks.tick() => self.listen(&mut rounds, &on_change),
                () = self.answered(), if self.is_stalled() => self.listen(&mut rounds, &on_change),
                _ = looks.tick(), if self.pace.is_unobserved() => drop(self.observe()),
            }
        };
        // The counters of a closed connection can still be read.
        self.count_packets(&mut rounds.packets, &self.observe());
        reason
    }

    /// Reads the counters, and probes a peer that they show as silent.
    fn listen(&self, rounds: &mut Rounds, on_change: impl Fn(Hearing)) {
        let is_stalled = self.tick(rounds);
        let hearing = {
            let mut since = self.silent_since();
            *since = is_stalled.then(|| since.unwrap_or_else(StdInstant::now));
            Hearing::after(since.map(|since| since.elapsed()))
        };
        let is_news = std::mem::replace(&mut rounds.hearing, hearing) != hearing;
        if is_news {
            on_change(hearing);
        }
        if !is_stalled {
            rounds.silent_ticks = 0;
            if is_news {
                // Finds out which packets the interruption took from the other connection, and from
                // the peer.
                self.ask();
            }
            return;
        }
        let is_long = TICK * rounds.silent_ticks > PATIENCE;
        let between = if is_long {
            PATIENT_ASK_TICKS
        } else {
            ASK_TICKS
        };
        if rounds.silent_ticks.is_multiple_of(between) {
            self.ask();
        }
        rounds.silent_ticks = rounds.silent_ticks.saturating_add(1);
    }

    /// Makes the peer acknowledge a packet at once. Packets lost in an interruption are then
    /// retransmitted as soon as the acknowledgement shows the loss. QUIC's own probe would come
    /// later, since its interval has doubled several times meanwhile.
    pub(crate) fn ask(&self) {
        let is_dialled = self.dialler != self.peer.site;
        for leg in Leg::ALL {
            // A region whose edges are all away does not probe legs that carry no stream.
            let is_used = self.carried[leg].load(Ordering::Relaxed) > 0;
            if !self.is_retired() && (is_dialled || is_used) {
                self.ask_on(leg);
            }
        }
    }

    /// Makes the peer acknowledge a packet on both connections, whatever they carry. If the peer is
    /// gone, the link then shows as stalled.
    pub(crate) fn ask_anyway(&self) {
        Leg::ALL.into_iter().for_each(|leg| self.ask_on(leg));
    }

    fn ask_on(&self, leg: Leg) {
        let connection = self.connection(leg);
        if let Some(delay) = DelayController::of(connection) {
            delay.ask();
        }
        // No flow sends an empty datagram, so the peer ignores it. A connection that is over needs
        // no probe.
        let _ = connection.send_datagram(Bytes::new());
    }

    /// The address of the peer's end of the urgent connection.
    pub(crate) fn remote_address(&self) -> SocketAddr {
        let address = self.connections.urgent.remote_address();
        SocketAddr::new(address.ip().to_canonical(), address.port())
    }

    /// Waits until the peer has acknowledged a packet sent after a probe.
    async fn answered(&self) {
        let delays = self.connections.each_ref().map(DelayController::of);
        let (Some(urgent), Some(bulk)) = (delays.urgent, delays.bulk) else {
            return std::future::pending().await;
        };
        tokio::select! {
            () = urgent.answered() => {}
            () = bulk.answered() => {}
        }
    }

    /// Reads the counters once; returns whether the link is stalled.
    fn tick(&self, rounds: &mut Rounds) -> bool {
        let stats = self.observe();
        self.count_packets(&mut rounds.packets, &stats);
        let now = Instant::ZERO + rounds.began.elapsed();
        // Each `of` copies the controller's whole state, so it is called once per tick.
        let delays = self.connections.each_ref().map(DelayController::of);
        let mut is_stalled = false;
        for leg in Leg::ALL {
            let seen = seen(delays[leg].as_ref(), &stats[leg]);
            is_stalled |= rounds.watches[leg].look(seen, now);
        }
        // The last wish heard on a replaced link may be old, and all links to a peer share one
        // pacer.
        rounds.is_cap_news |= !self.is_retired() && self.heed();
        if let (Some(urgent), Some(bulk)) = (&delays.urgent, &delays.bulk) {
            let bulk = bulk.estimate();
            self.share_estimate(urgent, &bulk);
            self.look_on(&bulk);
        }
        self.close_if_retired();
        rounds.ticks += 1;
        if rounds.ticks.is_multiple_of(GOODPUT_TICKS) {
            self.measure(&mut rounds.totals, &stats);
            if std::mem::take(&mut rounds.is_cap_news) {
                let (peer, cap) = (&self.peer, cap_text(self.pace.rate()));
                tracing::info!(%peer, cap, "the peer changes what it wants to receive");
            }
        }
        is_stalled
    }

    /// Updates the cruise although no stream sends. Otherwise the update could be late: after a
    /// long piece on a slow path the next one is long in coming, and on a path that has become
    /// slower the next piece finds no room while that shows.
    fn look_on(&self, bulk: &Estimate) {
        let mut cruise = self.cruise();
        if !cruise.is_cruising() || cruise.is_thinner(bulk) {
            self.look(&mut cruise, self.now());
        }
    }

    /// Bytes received on the wire.
    pub(crate) fn came_bytes(&self) -> u64 {
        let of = |connection: &Connection| {
            wire_bytes(&connection.stats().udp_rx, connection.remote_address().ip())
        };
        self.connections.iter().map(of).sum()
    }

    /// Passes to the shaper what has left on the wire, and returns the counters.
    fn observe(&self) -> PerLeg<ConnectionStats> {
        let stats = self.connections.each_ref().map(Connection::stats);
        // Both connections use the same path.
        let peer = self.connections.urgent.remote_address().ip();
        let left = stats.each_ref();
        self.pace
            .observe(left.map(|of_leg| wire_bytes(&of_leg.udp_tx, peer)));
        stats
    }

    /// Gives urgent what bulk has learnt about the path, and sets the buffer sizes of both.
    fn share_estimate(&self, urgent: &DelayController, bulk: &Estimate) {
        if bulk.is_settled {
            let mut learnt = self.learnt.lock();
            *learnt = Some(PathMemory {
                bytes_per_second: bulk.rate_bytes_per_second,
                rtt: bulk.base_rtt,
            });
        }
        let in_flight = windows::in_flight_bytes(bulk);
        if bulk.rate_bytes_per_second > 0 {
            urgent.set_floor((in_flight / 2).min(URGENT_FLOOR_BYTES_MAX));
        }
        let rtt = if bulk.base_rtt.is_zero() {
            self.connections.bulk.rtt()
        } else {
            bulk.base_rtt
        };
        let (kept_bytes, receive_bytes) = {
            let mut windows = self.windows();
            let held = self.held_bulk.load(Ordering::Relaxed);
            let received = self.received_bulk.load(Ordering::Relaxed);
            let is_waiting = self.waiting.bulk.load(Ordering::Relaxed) > 0;
            let now = self.now();
            (
                windows.kept_bytes(now, held, bulk),
                windows.receive(now, (received, is_waiting), rtt),
            )
        };
        self.tail_bytes.store(kept_bytes, Ordering::Relaxed);
        let rtt_us = micros(rtt);
        self.base_rtt_us.store(rtt_us, Ordering::Relaxed);
        let send_bytes = windows::send_bytes(bulk, kept_bytes);
        self.connections.bulk.set_send_window(send_bytes);
        if let Some(bytes) = receive_bytes.and_then(|bytes| VarInt::from_u64(bytes).ok()) {
            self.connections.bulk.set_receive_window(bytes);
        }
    }
}
