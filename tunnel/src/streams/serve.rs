//! Serves streams that peers begin: checks them, connects them to the local service, and has them
//! copied.

mod strikes;

use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::{Connection, SendStream};
use rustls_pki_types::CertificateDer;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use towpath_certs::view;
use towpath_daemon::lines::RateLimit;
use towpath_daemon::stream::make_room;
use towpath_protocol::class::Leg;
use towpath_protocol::endpoint::Endpoint;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::HostIdentity;
use towpath_protocol::preamble::{Accepted, Begin, Open, Preamble, Resume};

use crate::channels::Resetting;
use crate::core::Core;
use crate::links::control;
use crate::links::link::Link;
use crate::links::peer::Peer;
use crate::measuring::bench_service;
use crate::quic::wire;
use crate::streams::carrier::Carrier;
use crate::streams::datagrams::{self, Connected, Registered};
use crate::streams::local::Begun;
use crate::streams::seats::SeatUse;
use crate::streams::services::{Reach, Service};
use crate::streams::table::{Beginner, Call, End, Entry, Found, Purpose, Stream};
use strikes::Strikes;

/// How long to wait for the peer to acknowledge a refusal.
const REFUSAL_WAIT: Duration = Duration::from_secs(5);

/// How long a local service may take to accept; short because it runs on this host.
const SERVICE_WAIT: Duration = Duration::from_secs(2);

/// Rate-limited log lines about one peer: streams it opens that are refused, streams cut off by an
/// outage, and its links. A peer may open 200 streams a second and make link after link. Each peer
/// has its own limits, so that none can crowd another's requests out of the log.
#[derive(Debug, Default)]
pub(crate) struct StreamLog {
    denied: RateLimit,
    unreached: RateLimit,
    pub outages: RateLimit,
    /// Protocol violations.
    pub wrong: RateLimit,
    /// Links made and lost.
    pub links: RateLimit,
}

impl StreamLog {
    /// Logs that a service's host refuses the datagrams of a flow.
    fn refused(&self, stream: &Stream, reach: &Endpoint) {
        let (peer, service) = (&stream.party.host, &stream.service);
        if let Some(untold) = self.unreached.admit() {
            let why = "connection refused";
            tracing::warn!(%peer, %service, %reach, why, untold, "service not reached");
        }
    }

    /// Logs that a stream was cut off. Streams lost to an outage get a warning, because their
    /// programs see only that the stream ended; how programs end their own streams is logged at
    /// debug level.
    pub(crate) fn cut(&self, stream: &Stream, fault: &Fault) {
        let (peer, service, class) = (&stream.party.host, &stream.service, stream.class);
        if fault.code != Code::Unreachable {
            tracing::debug!(%peer, %service, %class, %fault, "stream cut off");
        } else if let Some(untold) = self.outages.admit() {
            tracing::warn!(%peer, %service, %class, %fault, untold, "stream cut off");
        }
    }
}

/// Returns the identity that the other end of a connection has proved.
///
/// # Errors
///
/// `E_CERTIFICATE` if there is no certificate or it names no host; the verifier lets no such
/// connection pass.
pub(crate) fn identity_of(connection: &Connection) -> Result<HostIdentity, Fault> {
    let chain = connection
        .peer_identity()
        .and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
    let leaf = chain.as_deref().and_then(|chain| chain.first());
    let leaf = leaf.ok_or_else(|| Fault::new(Code::Certificate, "the peer shows none"))?;
    view::identity_of(leaf)
}

/// Accepts a link's streams and datagrams until the link is over.
pub(crate) fn accept(core: &Arc<Core>, peer: &Arc<Peer>, link: &Arc<Link>) {
    let strikes = Arc::new(Strikes::default());
    if let Some(control) = link.take_control() {
        let thread = core.legs.driving(Leg::Urgent, link.dialler == core.site);
        control::attend(thread, peer, link, control, core.stall());
    }
    for leg in [Leg::Urgent, Leg::Bulk] {
        let (receiving, carrying) = (Arc::clone(peer), Arc::clone(link));
        tokio::spawn(async move {
            while let Ok(datagram) = carrying.connection(leg).read_datagram().await {
                receiving.datagrams.deliver(datagram);
            }
        });
        let (core, peer, link) = (Arc::clone(core), Arc::clone(peer), Arc::clone(link));
        let strikes = Arc::clone(&strikes);
        tokio::spawn(async move {
            while let Ok((send, recv)) = link.connection(leg).accept_bi().await {
                let (core, peer, link) = (Arc::clone(&core), Arc::clone(&peer), Arc::clone(&link));
                let strikes = Arc::clone(&strikes);
                let is_dialled = link.dialler == core.site;
                let thread = core.legs.driving(leg, is_dialled).clone();
                thread.spawn(async move {
                    let carrier = Carrier::new(&link, leg, (send, recv));
                    drop(link);
                    serve(&core, &peer, carrier, (leg, &strikes)).await;
                });
            }
        });
    }
}

/// Serves one QUIC stream. The stream may outlive its link, so nothing here but the carrier holds a
/// reference to the link.
async fn serve(
    core: &Arc<Core>,
    peer: &Arc<Peer>,
    mut carrier: Carrier,
    (leg, strikes): (Leg, &Strikes),
) {
    match read_first(core, leg, &mut carrier).await {
        Ok(First::Begin(begin)) => begin_stream(core, peer, carrier, begin).await,
        Ok(First::Resume(resume)) => {
            let link = Arc::clone(&carrier.link);
            if let Err(fault) = resume_stream(peer, leg, carrier, resume).await {
                strike(peer, &link, &fault, strikes);
            }
        }
        Err(fault) => {
            carrier.cut(wire::code(fault.code));
            strike(peer, &carrier.link, &fault, strikes);
        }
    }
}

/// Counts a QUIC stream without a valid preamble; a peer with several of these within a minute
/// loses its link.
fn strike(peer: &Peer, link: &Link, fault: &Fault, strikes: &Strikes) {
    // No strike: a program that gives up at once, or a lost link, ends a stream before its
    // preamble. Streams of a link that is over do not count either: an earlier strike may have
    // closed it.
    if fault.code == Code::Unreachable || link.is_over() {
        tracing::debug!(peer = %link.peer, %fault, "stream taken back");
        return;
    }
    let is_last = strikes.add(Instant::now());
    if let Some(untold) = peer.told.wrong.admit() {
        let peer = &link.peer;
        tracing::warn!(target: "audit", %peer, %fault, is_last, untold, "stream refused");
    }
    if is_last {
        link.close(fault.code, "too many streams without whole first words");
    }
}

/// A peer's preamble on a QUIC stream.
enum First {
    Begin(Begin),
    Resume(Resume),
}

async fn read_first(core: &Core, leg: Leg, carrier: &mut Carrier) -> Result<First, Fault> {
    match wire::read(&mut carrier.recv, core.preamble_wait()).await? {
        Preamble::Begin(begin) if begin.open.class.leg() == leg => Ok(First::Begin(begin)),
        Preamble::Resume(resume) => Ok(First::Resume(resume)),
        other => {
            let detail = format!("{} on a {} stream", other.name(), leg.as_str());
            Err(Fault::new(Code::Unexpected, detail))
        }
    }
}

/// Serves a stream that a peer begins.
async fn begin_stream(core: &Arc<Core>, peer: &Arc<Peer>, mut carrier: Carrier, begin: Begin) {
    // The stream keeps its place while it waits, which holds back the peer's next streams. Resumed
    // streams do not wait.
    peer.begins.until_ready().await;
    let (entry, program) = match admit(core, peer, &carrier.link, &begin).await {
        Ok(admitted) => admitted,
        Err(fault) => {
            refuse(&mut carrier.send, fault).await;
            return;
        }
    };
    let opened = Preamble::Opened(core.trust.host().clone());
    if wire::write(&mut carrier.send, &opened).await.is_err() {
        // The peer has not heard of the stream and will ask again.
        return;
    }
    // Fails only on a stream that is already over.
    let _ = carrier.send.set_priority(begin.open.class.priority());
    let begun = Begun {
        peer: Arc::clone(peer),
        entry,
        carrier,
    };
    // A new task, so that the state of the admission is freed: streams are many and live long.
    tokio::spawn(live(Arc::clone(core), begun, program));
}

/// A connection to a local service.
pub(crate) enum Program {
    Unix(UnixStream),
    Tcp(Resetting),
    Udp(Box<Connected>, Registered),
}

/// Carries a stream that a peer began until it ends.
pub(crate) async fn live(core: Arc<Core>, begun: Begun, program: Program) {
    let (peer, stream) = (Arc::clone(&begun.peer), Arc::clone(&begun.entry.stream));
    let ended = match program {
        Program::Unix(mut socket) => begun.live(&core, socket.split()).await,
        Program::Tcp(mut socket) => {
            let ended = begun.live(&core, socket.split()).await;
            if ended.is_ok() {
                socket.keep();
            }
            ended
        }
        // Boxed: this future is rare and by far the largest, and would make every stream's task as
        // large.
        Program::Udp(mut socket, registered) => {
            let carrying = datagrams::carry(&core, begun, registered, &mut *socket);
            let ended = Box::pin(carrying).await;
            if let Some(reach) = socket.refused_at() {
                peer.told.refused(&stream, &reach);
                return;
            }
            ended
        }
    };
    if let Err(fault) = ended {
        peer.told.cut(&stream, &fault);
    }
}

/// Registers a stream and connects it to its service, if the peer may reach it (T15).
async fn admit(
    core: &Core,
    peer: &Peer,
    link: &Link,
    begin: &Begin,
) -> Result<(Entry, Program), Fault> {
    let service = allowed(core, (peer, link), &begin.open)?;
    let class = begin.open.class;
    let purpose = Purpose {
        class,
        seat_use: match service.reach {
            // Only services that are told who connects take part in moves.
            Reach::Plain(_) => SeatUse::Application,
            Reach::Told(_) => SeatUse::of(class),
        },
        service: begin.open.service.clone(),
        meter: Arc::clone(&service.meter),
    };
    // As many as both connections of a link carry; some of them may be without a carrier now.
    let most = 2 * core.limits.peer_streams as usize;
    let number = (begin.stream, link.party());
    let theirs = Beginner::Them { most };
    let entry = peer.streams.add(number, purpose, theirs)?;
    // Asked again, because a reload cuts only the streams in the table.
    allowed(core, (peer, link), &begin.open)?;
    let program = reach(&service, (peer, link), begin).await?;
    Ok((entry, program))
}

/// Hands the new carrier of a resumed stream to that stream's task.
///
/// # Errors
///
/// `E_UNEXPECTED` for a violation by the peer: the wrong leg, or a stream that this side began.
async fn resume_stream(
    peer: &Peer,
    leg: Leg,
    mut carrier: Carrier,
    resume: Resume,
) -> Result<(), Fault> {
    let refused = match peer.streams.find(resume.stream, &carrier.link.party()) {
        Some(Found::Live(stream)) if stream.is_ours => {
            carrier.cut(wire::code(Code::Unexpected));
            let detail = "Resume of a stream that this side began";
            return Err(Fault::new(Code::Unexpected, detail));
        }
        Some(Found::Live(stream)) if stream.class.leg() != leg => {
            carrier.cut(wire::code(Code::Unexpected));
            let (class, leg) = (stream.class, leg.as_str());
            let detail = format!("Resume of a stream of class {class} on a {leg} stream");
            return Err(Fault::new(Code::Unexpected, detail));
        }
        Some(Found::Live(stream)) => {
            // Fails only on a stream that is already over.
            let _ = carrier.send.set_priority(stream.class.priority());
            // If the stream's call queue is full, the carrier is dropped with the call, and the
            // peer asks again.
            let _ = stream.call(Call::Resume(Box::new(carrier), resume.received));
            return Ok(());
        }
        Some(Found::Ended(End::Whole(received, _))) => {
            // We received everything; only the peer's notice of that was lost.
            if wire::write(&mut carrier.send, &Preamble::Resumed(received))
                .await
                .is_ok()
            {
                let _ = timeout(REFUSAL_WAIT, carrier.send.stopped()).await;
            }
            return Ok(());
        }
        Some(Found::Ended(End::Cut(fault))) => fault,
        // Same answer for another peer's stream, so as not to reveal that it exists.
        None => Fault::new(Code::NotFound, "no such stream"),
    };
    refuse(&mut carrier.send, refused).await;
    Ok(())
}

/// Returns the service a peer asks for, if the peer may reach it.
fn allowed(core: &Core, (site, link): (&Peer, &Link), open: &Open) -> Result<Arc<Service>, Fault> {
    let told = &site.told;
    let (peer, service, site) = (&link.peer, &open.service, &open.peer);
    let denied = |why: &str| {
        if let Some(untold) = told.denied.admit() {
            tracing::warn!(target: "audit", %peer, %service, why, untold, "service denied");
        }
        // The peer is not told whether the service exists.
        Fault::new(
            Code::Denied,
            format!(
                "{site} offers {peer} no service {service}: check the name, and `allow` in its [[services]]; its log \
                 says which"
            ),
        )
    };
    if *site != core.site {
        return Err(denied("asked for another site"));
    }
    let found = core.services.get(service);
    let found = found.ok_or_else(|| denied("no such service"))?;
    if !found.allow.contains(&peer.site) {
        return Err(denied("its site is not allowed"));
    }
    Ok(found)
}

/// Connects to a service.
async fn reach(
    service: &Service,
    (peer, link): (&Peer, &Link),
    begin: &Begin,
) -> Result<Program, Fault> {
    let (reach, open) = (&service.reach, &begin.open);
    let takes_datagrams = matches!(reach, Reach::Plain(target) if target.is_datagrams());
    if takes_datagrams != begin.is_datagrams {
        let detail = match takes_datagrams {
            true => format!("service {} takes datagrams only", open.service),
            false => format!("service {} takes no datagrams", open.service),
        };
        return Err(Fault::new(Code::Refused, detail));
    }
    let accepted = Preamble::Accepted(Accepted {
        peer: link.peer.clone(),
        service: open.service.clone(),
        class: open.class,
    });
    let connecting = async {
        Ok::<_, std::io::Error>(match reach {
            Reach::Told(socket) => {
                let mut local = bench_service::connect(socket, (peer, link)).await?;
                make_room(&local, open.class);
                local.write_all(&accepted.encode()).await?;
                Program::Unix(local)
            }
            Reach::Plain(Endpoint::Unix(path)) => Program::Unix(UnixStream::connect(path).await?),
            Reach::Plain(Endpoint::Tcp(address)) => {
                Program::Tcp(Resetting::new(TcpStream::connect(address).await?))
            }
            Reach::Plain(Endpoint::Udp(address)) => {
                let socket = Connected::to(*address).await?;
                Program::Udp(Box::new(socket), peer.datagrams.register(begin.stream))
            }
        })
    };
    let failed = |why: String| {
        let (service, site, asked) = (&open.service, &open.peer, &link.peer);
        if let Some(untold) = peer.told.unreached.admit() {
            tracing::warn!(peer = %asked, %service, %reach, why, untold, "service not reached");
        }
        Fault::new(
            Code::Unreachable,
            format!("service {service} at {site}: {why}"),
        )
    };
    timeout(SERVICE_WAIT, connecting)
        .await
        .map_err(|_| failed("does not accept".to_owned()))?
        .map_err(|error| failed(error.to_string()))
}

/// Tells the peer why a stream is refused, and waits until it has acknowledged that: dropping the
/// stream at once would lose the message.
async fn refuse(send: &mut SendStream, fault: Fault) {
    // Fails only if the peer has gone, and then nobody wants the answer.
    let _ = wire::write(send, &Preamble::Refused(fault)).await;
    let _ = send.finish();
    let _ = timeout(REFUSAL_WAIT, send.stopped()).await;
}
