//! Accepts peers' links: from an unknown datagram to two joined connections, in checked steps.
//!
//! ```text
//!  datagram ─► rate per source ─► (flood: address proved) ─► handshake ─► known site ─► Join ─► link
//! ```

mod gate;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use quinn::{
    Connection, ConnectionError, Endpoint, Incoming, RecvStream, SendStream, TransportErrorCode,
};
use tokio::time::{sleep, timeout};
use towpath_certs::Rejection;
use towpath_daemon::lines::RateLimit;
use towpath_daemon::shutdown::Shutdown;
use towpath_protocol::class::{Leg, PerLeg};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::HostIdentity;
use towpath_protocol::preamble::{Join, Joined, LINK_VERSIONS, LinkId, Preamble};
use towpath_protocol::rate::Rate;
use towpath_protocol::version::Speaker;

use self::gate::{Gate, Verdict};
use crate::core::Core;
use crate::links::link::{Joint, Link, close};
use crate::links::peer::{Peer, tunnel_name};
use crate::places::{Place, Places};
use crate::quic::lingering::Driver;
use crate::quic::wire;
use crate::streams::serve;
use crate::streams::table::Party;
use crate::trust::dropped::DropReason;
use crate::trust::failures::{self, Refused};

/// How long a handshake may take: a few round trips over the slowest link, with a loss.
const HANDSHAKE_WAIT: Duration = Duration::from_secs(5);

/// How long to wait until the peer has received a refusal.
const REFUSAL_WAIT: Duration = Duration::from_secs(1);

/// First connections of one peer that wait for their second: its overlapping attempts.
const PENDING_COUNT_MAX: usize = 8;

/// Connections of one host that are not part of a link yet: two for each of its overlapping
/// attempts. Each may send a whole window before its `Join` is read (T06).
const UNJOINED_COUNT_MAX: usize = 2 * PENDING_COUNT_MAX;

/// A first connection that waits for the second of its link.
struct Pending {
    connection: Connection,
    host: HostIdentity,
    leg: Leg,
    answer: SendStream,
    recv: RecvStream,
    /// Counts the connection among those that are not part of a link yet.
    _place: Place<HostIdentity>,
}

/// Accepts links until the tunnel stops.
pub(crate) async fn accept(core: Arc<Core>, endpoint: Endpoint, mut stop: Shutdown) {
    let listener = Arc::new(Listener {
        core,
        gate: Gate::new(Instant::now()),
        pending: Mutex::default(),
        unjoined: Arc::default(),
        lines: RateLimit::default(),
    });
    loop {
        let incoming = tokio::select! {
            () = stop.requested() => return,
            incoming = endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else { return };
        if let Some((incoming, place)) = listener.admit(incoming) {
            tokio::spawn(Arc::clone(&listener).welcome(incoming, place));
        }
    }
}

struct Listener {
    core: Arc<Core>,
    gate: Gate,
    pending: Mutex<BTreeMap<(HostIdentity, LinkId), Pending>>,
    /// Connections that are not part of a link yet, by host.
    unjoined: Arc<Places<HostIdentity>>,
    /// Limits the log lines about refusals; all refusals are counted.
    lines: RateLimit,
}

impl Listener {
    /// Drops excess handshakes before they cost a signature. An admitted handshake takes its place
    /// here, so that a flood cannot outrun the count.
    fn admit(&self, incoming: Incoming) -> Option<(Incoming, Place<IpAddr>)> {
        let address = incoming.remote_address().ip();
        let missing = || {
            let peers = self.core.peers.all();
            peers
                .values()
                .filter(|peer| peer.state().up().is_none())
                .count()
        };
        let is_proved = !incoming.may_retry();
        match self.gate.admit(address, is_proved, Instant::now(), missing) {
            Verdict::Begin(place) => return Some((incoming, place)),
            Verdict::Prove => {
                self.core.dropped.count(DropReason::Retried);
                // Fails only for a source that has already proved its address.
                let _ = incoming.retry();
            }
            Verdict::Drop(reason) => {
                self.core.dropped.count(reason);
                incoming.ignore();
            }
        }
        None
    }

    async fn welcome(self: Arc<Self>, incoming: Incoming, place: Place<IpAddr>) {
        let source = incoming.remote_address();
        let (accepted, driver) = Driver::spawned_by(|| incoming.accept());
        let shaken = timeout(HANDSHAKE_WAIT, async { accepted?.await }).await;
        // A proven identity no longer takes places that are meant for strangers.
        drop(place);
        let is_closed_by_peer = matches!(
            shaken,
            Ok(Err(
                ConnectionError::ConnectionClosed(_) | ConnectionError::ApplicationClosed(_)
            ))
        );
        if let Some(driver) = driver.filter(|_| is_closed_by_peer) {
            driver.end_drained();
        }
        let connection = match shaken {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) if is_given_up(&error) => {
                tracing::debug!(%source, "handshake given up by the peer");
                return;
            }
            Ok(Err(error)) => {
                self.count(&error);
                let refusal = failures::refusal(&error, || self.core.rejections.last(None));
                if let Some(untold) = self.lines.admit() {
                    let why = failures::words(&error, refusal.as_ref());
                    tracing::warn!(target: "audit", %source, error = why, untold, "handshake refused");
                }
                let told = || {
                    Some(Refused::by_dialler(
                        source,
                        failures::of(&error, None)?.fault,
                    ))
                };
                let refused = refusal.map(|refusal| Refused::by_verifier(source, refusal));
                if let Some(refused) = refused.or_else(told) {
                    self.core.refused.note(refused);
                }
                return;
            }
            Err(_) => {
                self.core.dropped.count(DropReason::Late);
                return;
            }
        };
        if let Err(fault) = self.join(&connection).await {
            // A dialling peer drops the attempts that were slower than another.
            let end = connection.close_reason();
            if end.is_some_and(|reason| is_given_up(&reason)) {
                tracing::debug!(%source, %fault, "link given up by the peer");
                return;
            }
            if let Some(untold) = self.lines.admit() {
                tracing::warn!(target: "audit", %source, %fault, untold, "link refused");
            }
            close(&connection, fault.code, &fault.detail);
        }
    }

    /// Counts the refusals that the verifier has not counted itself.
    fn count(&self, error: &ConnectionError) {
        let alert = failures::alert_we_sent(error);
        match (alert, alert.and_then(Rejection::from_alert)) {
            (_, Some(reason)) => self.core.rejections.count(reason),
            (Some(alert), _) if Rejection::is_by_verifier(alert) => {}
            _ => self.core.dropped.count(DropReason::Failed),
        }
    }

    /// Reads a connection's `Join`, and makes the link once both connections have joined.
    async fn join(self: &Arc<Self>, connection: &Connection) -> Result<(), Fault> {
        let host = serve::identity_of(connection)?;
        let peer = self.core.peers.get(&host.site).ok_or_else(|| {
            let detail = format!("site {} is no peer of this one", host.site);
            let refused = Refused::no_peer(connection.remote_address(), detail.clone());
            self.core.refused.note(refused);
            Fault::new(Code::Denied, detail)
        })?;
        let place = self.unjoined.take_if(&host, |_, theirs| {
            if theirs < UNJOINED_COUNT_MAX {
                return Ok(());
            }
            let detail = format!("{theirs} connections of {host} have come to no link");
            Err(Fault::new(Code::Busy, detail))
        })?;
        let wait = self.core.preamble_wait();
        let first = timeout(wait, first_words(connection, wait)).await;
        let (join, mut answer, recv) =
            first.map_err(|_| Fault::new(Code::Stalled, "no words on a new connection"))??;
        let (ours, theirs) = (tunnel_name(self.core.trust.host()), tunnel_name(&host));
        let ours = Speaker {
            name: &ours,
            versions: LINK_VERSIONS,
        };
        let negotiated = ours.negotiate(&Speaker {
            name: &theirs,
            versions: join.versions,
        });
        let version = match negotiated {
            Ok(version) => version,
            Err(fault) => {
                if peer.note_failure(&fault.clone().into()) {
                    tracing::warn!(site = %peer.site, %fault, "no link");
                }
                refuse(&mut answer, &fault).await;
                return Err(fault);
            }
        };
        let leg = join.leg;
        let this = Pending {
            connection: connection.clone(),
            host,
            leg,
            answer,
            recv,
            _place: place,
        };
        match self.pair(&join, this)? {
            Some((urgent, bulk)) => self.link(&peer, &join, version, (urgent, bulk)).await,
            None => Ok(()),
        }
    }

    /// Returns both connections of the link, urgent first, if this one is the second. Otherwise
    /// keeps it to wait for the second.
    fn pair(
        self: &Arc<Self>,
        join: &Join,
        this: Pending,
    ) -> Result<Option<(Pending, Pending)>, Fault> {
        let key = (this.host.clone(), join.link);
        let mut pending = self.pending();
        if let Some(other) = pending.remove(&key) {
            return match (this.leg, other.leg) {
                (Leg::Urgent, Leg::Bulk) => Ok(Some((this, other))),
                (Leg::Bulk, Leg::Urgent) => Ok(Some((other, this))),
                _ => {
                    close(&other.connection, Code::Unexpected, "one leg joined twice");
                    Err(Fault::new(Code::Unexpected, "one leg joined twice"))
                }
            };
        }
        let waiting = pending.keys().filter(|(host, _)| *host == this.host);
        if waiting.count() >= PENDING_COUNT_MAX {
            return Err(Fault::new(Code::Busy, "too many half links"));
        }
        pending.insert(key.clone(), this);
        drop(pending);
        let (listener, wait) = (Arc::clone(self), self.core.preamble_wait());
        tokio::spawn(async move {
            sleep(wait).await;
            let late = listener.pending().remove(&key);
            if let Some(late) = late {
                close(&late.connection, Code::Stalled, "the other leg never came");
            }
        });
        Ok(None)
    }

    async fn link(
        &self,
        peer: &Arc<Peer>,
        join: &Join,
        version: u16,
        (mut urgent, mut bulk): (Pending, Pending),
    ) -> Result<(), Fault> {
        let told = peer.receive_rate();
        let joint = Joint {
            id: join.link,
            version,
            party: Party {
                host: urgent.host.clone(),
                run: join.run,
            },
            dialler: urgent.host.site.clone(),
            connections: PerLeg {
                urgent: urgent.connection,
                bulk: bulk.connection,
            },
            told,
            theirs: join.receive_rate_max.map(Rate::clamped),
        };
        let link = Arc::new(Link::new(joint, peer, &self.core.window_memory));
        let trusted = self.core.trust.check_link(&link);
        let adopted = trusted.and_then(|()| {
            let adopted = peer.adopt(&link);
            adopted.inspect_err(|fault| self.note_not_taken(&link, fault))
        });
        if let Err(fault) = adopted {
            tokio::join!(
                refuse(&mut urgent.answer, &fault),
                refuse(&mut bulk.answer, &fault),
            );
            link.close(fault.code, &fault.detail);
            return Ok(());
        }
        let answer = Preamble::Joined(Joined {
            version,
            receive_rate_max: told.map(Rate::bytes_per_second),
            run: self.core.run,
        });
        let answering = async {
            for send in [&mut urgent.answer, &mut bulk.answer] {
                // A closed connection ends the link by itself.
                let _ = wire::write(send, &answer).await;
            }
        };
        if timeout(self.core.preamble_wait(), answering).await.is_err() {
            let fault = Fault::new(Code::Stalled, "the peer takes no answer");
            link.close(fault.code, &fault.detail);
            return Err(fault);
        }
        let _ = bulk.answer.finish();
        link.set_control((urgent.answer, urgent.recv));
        serve::accept(&self.core, peer, &link);
        Ok(())
    }

    /// Records a link that was refused because another tunnel of its site has the link.
    fn note_not_taken(&self, link: &Link, fault: &Fault) {
        let (source, host) = (link.remote_address(), &link.peer);
        if fault.remedy.is_none() {
            // Both sites have dialled: a link between the same two tunnels exists.
            tracing::debug!(%source, %host, %fault, "link not taken");
            return;
        }
        if let Some(untold) = self.lines.admit() {
            tracing::warn!(target: "audit", %source, %host, %fault, untold, "link not taken");
        }
        self.core
            .refused
            .note(Refused::not_taken(source, host, fault));
    }

    fn pending(&self) -> MutexGuard<'_, BTreeMap<(HostIdentity, LinkId), Pending>> {
        self.pending.lock()
    }
}

/// Whether the peer has given the connection up: of overlapping attempts it needs only one.
fn is_given_up(error: &ConnectionError) -> bool {
    match error {
        ConnectionError::ConnectionClosed(close) => {
            close.error_code == TransportErrorCode::APPLICATION_ERROR
        }
        ConnectionError::ApplicationClosed(_) => true,
        _ => false,
    }
}

/// Reads a connection's `Join`. Returns it with the stream that it came on.
async fn first_words(
    connection: &Connection,
    wait: Duration,
) -> Result<(Join, SendStream, RecvStream), Fault> {
    let stream = connection.accept_bi().await;
    let (answer, mut recv) =
        stream.map_err(|error| Fault::new(Code::Unreachable, error.to_string()))?;
    match wire::read(&mut recv, wait).await? {
        Preamble::Join(join) => Ok((join, answer, recv)),
        other => {
            let detail = format!("{} on a new connection", other.name());
            Err(Fault::new(Code::Unexpected, detail))
        }
    }
}

/// Tells the peer why its link is refused, and waits until it has received that: closing the
/// connection at once would discard the message.
async fn refuse(answer: &mut SendStream, fault: &Fault) {
    let refusing = async {
        // A closed connection receives nothing, and ends the wait.
        let _ = wire::write(answer, &Preamble::Refused(fault.clone())).await;
        let _ = answer.finish();
        let _ = answer.stopped().await;
    };
    // A peer that does not read the answer goes without it.
    let _ = timeout(REFUSAL_WAIT, refusing).await;
}
