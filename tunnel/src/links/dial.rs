//! Keeps the link to a peer that we dial.
//!
//! Every attempt is a new link from new sockets, so that nothing left over from an outage delays
//! it: neither probe timers that have doubled nor a NAT mapping that is gone. While the peer does
//! not answer, attempts overlap. The first that connects joins, and the others are dropped. If the
//! current link answers at about the same time, the attempt is dropped too and the streams go on
//! over the current link.
//!
//! When the kernel reports a change of the network, one more attempt starts at once. A link that is
//! up is replaced in that case if the kernel would now send from another address. The peer receives
//! nothing from the old address, and waiting until that shows would take longer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use quinn::{ClientConfig, Connection, Endpoint};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use towpath_certs::Refusal;
use towpath_daemon::shutdown::Shutdown;
use towpath_protocol::class::{Leg, PerLeg};
use towpath_protocol::fault::{Code, Fault};

use crate::config::Limits;
use crate::core::{self, Core};
use crate::links::addresses::PeerAddress;
use crate::links::backoff::{self, Backoff};
use crate::links::join::{self, Connections};
use crate::links::network;
use crate::links::peer::{Peer, State, Unreached};
use crate::quic::threads::Drivers;
use crate::quic::transport;
use crate::trust::failures;

/// Attempts under way at once: as many as start within the time that one may take. With fewer, no
/// attempt would start for seconds once all are under way, and those only retransmit their first
/// packet every second or two.
const ATTEMPT_COUNT_MAX: usize = 16;

const _: () = assert!(
    // The shortest pause is three quarters of the nominal one.
    backoff::BETWEEN.as_micros() * 3 / 4 * ATTEMPT_COUNT_MAX as u128 >= ATTEMPT_TIME.as_micros()
);

/// Additional attempts after a change of the network. Those already under way started before the
/// change and may be lost with the old network.
const NETWORK_ATTEMPT_COUNT_MAX: usize = 2;

/// How long an attempt may take while nothing is known about the path: a handshake of three round
/// trips over a satellite, with one packet lost.
pub(crate) const ATTEMPT_TIME: Duration = Duration::from_secs(3);

/// How long to wait for the current link once an attempt beside it has connected. The link is
/// probed at that moment, so one round trip is enough. Twice the time between two probes is enough
/// as well: the first probe that got through is answered by then. `ANSWER_SLACK` allows for a busy
/// host. On an unchanged path the streams then go on sooner over the current link, and nothing has
/// to be sent again.
const ANSWER_WAIT_MAX: Duration = Duration::from_millis(100);
const ANSWER_SLACK: Duration = Duration::from_millis(20);

/// Minimum life of a link for its end to count as an outage, after which the peer is dialled at
/// once. The end of a younger link counts as a failed attempt. Otherwise a peer that accepts links
/// and closes them would be dialled as fast as it does so.
const LIFE_MIN: Duration = Duration::from_secs(3);

/// The server name of the handshake. It is neither sent nor checked, since identities are URIs.
const SERVER_NAME: &str = "towpath.invalid";

/// Why a peer is dialled now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The next attempt was due.
    Clock,
    /// The network has changed.
    Network,
}

impl Cause {
    pub(crate) const ALL: [Self; 2] = [Self::Clock, Self::Network];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Clock => "clock",
            Self::Network => "network",
        }
    }

    /// Limit of attempts under way when one more starts for this cause.
    const fn room(self) -> usize {
        match self {
            Self::Clock => ATTEMPT_COUNT_MAX,
            Self::Network => ATTEMPT_COUNT_MAX + NETWORK_ATTEMPT_COUNT_MAX,
        }
    }
}

/// Keeps the link to one peer until the tunnel stops, while the peer has an address. Without one,
/// leaves the link in use alone.
pub(crate) async fn keep(core: Arc<Core>, peer: Arc<Peer>, mut stop: Shutdown) {
    let mut addresses = peer.addresses();
    loop {
        let address = addresses.borrow_and_update().clone();
        match address {
            Some(address) => {
                let place = PeerAddress::new(address);
                keep_at(&core, &peer, (&place, &mut addresses), &mut stop).await;
            }
            None => tokio::select! {
                () = stop.requested() => {}
                // Fails only if the sender is dropped, and `peer` owns it.
                _ = addresses.changed() => {}
            },
        }
        if stop.is_requested() {
            return;
        }
        let link = peer.state().link.filter(|link| link.dialler == core.site);
        if let Some(link) = link.filter(|_| peer.is_dialled()) {
            tracing::info!(site = %peer.site, "the peer has another address now");
            peer.replace(&link);
        }
    }
}

/// Keeps the link to a peer at one address, until the tunnel stops or the address changes.
async fn keep_at(
    core: &Arc<Core>,
    peer: &Arc<Peer>,
    (place, addresses): (&Arc<PeerAddress>, &mut watch::Receiver<Option<String>>),
    stop: &mut Shutdown,
) {
    let seed = core::random_link().map_or(1, |link| u64::try_from(link.0 >> 64).unwrap_or(1));
    let mut backoff = Backoff::new(seed);
    let mut changes = peer.subscribe();
    let mut network = core.network.subscribe();
    let mut next = Instant::now();
    let mut linked_since = None;
    let is_needed = |state: &State| !state.is_usable() || state.is_outdated;
    loop {
        let cause = tokio::select! {
            () = stop.requested() => return,
            _ = addresses.changed() => return,
            needed = changes.wait_for(is_needed) => match needed {
                Ok(state) => {
                    if let Some(since) = linked_since.take() {
                        let is_over = state.link.is_none();
                        next = Instant::now() + pause_after(since, is_over, &mut backoff);
                    }
                    Cause::Clock
                }
                Err(_) => return,
            },
            Ok(()) = network.changed() => match peer.state().link {
                Some(link) if link.has_moved() => {
                    tracing::info!(site = %peer.site, "this host's address towards the peer is another now");
                    peer.replace(&link);
                    place.note_network();
                    next = Instant::now();
                    Cause::Network
                }
                _ => continue,
            },
        };
        let reached = tokio::select! {
            () = stop.requested() => return,
            _ = addresses.changed() => return,
            connections = find(core, peer, place, (&mut backoff, next, cause)) => Some(connections),
            // The current link answers again: its streams live on, and nothing is replaced.
            _ = changes.wait_for(|state| !is_needed(state)) => None,
        };
        // From the first byte of `Join` on, the peer may have replaced the current link with this
        // one. Dropping the attempt because the current link answers again, or because the address
        // changes, could then leave the peer with neither.
        let joined = match reached {
            None => Ok(()),
            Some(connections) => tokio::select! {
                () = stop.requested() => return,
                joined = join::join(core, peer, connections) => joined,
            },
        };
        next = Instant::now();
        match joined {
            Ok(()) => {
                backoff.note_reached();
                linked_since = Some(next);
            }
            Err(unreached) => {
                note_failure(peer, &unreached);
                next += backoff.after_failure();
            }
        }
    }
}

/// Dials until an attempt connects, and gives the link in use a last chance to answer.
async fn find(
    core: &Core,
    peer: &Arc<Peer>,
    place: &Arc<PeerAddress>,
    when: (&mut Backoff, Instant, Cause),
) -> Connections {
    let connections = reach(core, peer, place, when).await;
    if let Some(link) = peer.state().waited_for() {
        link.ask();
        let round_trip = connections.both.urgent.rtt();
        sleep(round_trip.min(ANSWER_WAIT_MAX) + ANSWER_SLACK).await;
    }
    connections
}

/// How long to wait before dialling a peer that was linked since `linked_since`.
fn pause_after(linked_since: Instant, is_over: bool, backoff: &mut Backoff) -> Duration {
    if is_over && linked_since.elapsed() < LIFE_MIN {
        return backoff.after_failure();
    }
    backoff.reset();
    Duration::ZERO
}

fn note_failure(peer: &Peer, unreached: &Unreached) {
    let (site, fault) = (&peer.site, &unreached.fault);
    match (peer.note_failure(unreached), &fault.remedy) {
        (false, _) => tracing::debug!(%site, %fault, "not reached"),
        (true, None) => tracing::warn!(%site, %fault, "not reached"),
        (true, Some(remedy)) => tracing::warn!(%site, %fault, remedy, "not reached"),
    }
}

/// Dials until an attempt connects, first at `next`. Only one attempt may join: a second one would
/// make the peer replace the link it has just made.
async fn reach(
    core: &Core,
    peer: &Arc<Peer>,
    place: &Arc<PeerAddress>,
    (backoff, mut next, mut cause): (&mut Backoff, Instant, Cause),
) -> Connections {
    let mut began = Instant::now();
    let mut attempts = JoinSet::new();
    let mut network = core.network.subscribe();
    loop {
        let ended = tokio::select! {
            Ok(()) = network.changed() => {
                // Earlier failures were failures on another network.
                backoff.reset();
                place.note_network();
                began = Instant::now();
                (next, cause) = (began, Cause::Network);
                continue;
            }
            () = sleep_until(next), if attempts.len() < cause.room() => {
                peer.dials[cause as usize].fetch_add(1, Ordering::Relaxed);
                cause = Cause::Clock;
                let (peer, limits) = (Arc::clone(peer), core.limits.clone());
                let (place, drivers) = (Arc::clone(place), core.legs.drivers());
                let is_quiet = began.elapsed() >= backoff::PATIENCE;
                attempts.spawn(async move {
                    connect(&peer, (&limits, &drivers), &place, is_quiet).await
                });
                next = Instant::now() + backoff.beside(began.elapsed());
                continue;
            }
            Some(ended) = attempts.join_next() => ended,
        };
        let unreached = match ended {
            Ok(Ok(connections)) => return connections,
            Ok(Err(unreached)) => unreached,
            Err(error) => Fault::new(Code::Unreachable, error.to_string()).into(),
        };
        note_failure(peer, &unreached);
        if attempts.is_empty() {
            next = next.max(Instant::now() + backoff.after_failure());
        }
    }
}

/// Dials both connections once. With `is_quiet`, dials bulk only after urgent has connected.
async fn connect(
    peer: &Peer,
    how: (&Limits, &Drivers),
    place: &Arc<PeerAddress>,
    is_quiet: bool,
) -> Result<Connections, Unreached> {
    let clients = peer.clients()?;
    let both = async {
        let target = place.next().await?;
        // Taken before anything is sent: if the address changes from then on, the link is replaced
        // once it is up.
        let source = network::source_towards(target);
        let refusals = || peer.last_refusal();
        let dial = |client, leg| connect_leg(client, how, (target, refusals), leg);
        let bulk = dial(clients.legs.bulk.clone(), Leg::Bulk);
        let (urgent, bulk) = if is_quiet {
            (dial(clients.quiet.clone(), Leg::Urgent).await?, bulk.await?)
        } else {
            tokio::try_join!(dial(clients.legs.urgent.clone(), Leg::Urgent), bulk)?
        };
        Ok(Connections {
            both: PerLeg { urgent, bulk },
            shown: Arc::clone(&clients.chain),
            source,
        })
    };
    timeout(ATTEMPT_TIME, both).await.unwrap_or_else(|_| {
        let detail = match place.is_unknown() {
            true => format!("{}: nobody says where that is", place.name),
            false => format!("{} does not answer", place.name),
        };
        Err(Fault::new(Code::Stalled, detail).into())
    })
}

/// Dials one leg.
async fn connect_leg(
    client: ClientConfig,
    (limits, drivers): (&Limits, &Drivers),
    (target, refusals): (SocketAddr, impl Fn() -> Option<Refusal>),
    leg: Leg,
) -> Result<Connection, Unreached> {
    let failed = |error: String| Fault::new(Code::Unreachable, format!("{target}: {error}"));
    let socket = transport::dialling_socket(target, leg)?;
    let endpoint = Endpoint::new(
        transport::endpoint(limits),
        None,
        socket,
        drivers.dialling(leg),
    )
    .map_err(|error| failed(error.to_string()))?;
    endpoint
        .connect_with(client, target, SERVER_NAME)
        .map_err(|error| failed(error.to_string()))?
        .await
        .map_err(|error| {
            let told = failures::of(&error, refusals().as_ref());
            let told = told.map(|mut told| {
                told.fault.detail = format!("{} ({target})", told.fault.detail);
                told
            });
            told.unwrap_or_else(|| failed(error.to_string()).into())
        })
}
