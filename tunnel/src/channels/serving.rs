//! The connections of a channel: accepted while there are places, and carried to the service.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::{TcpStream, UnixStream, tcp};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use towpath_daemon::lines::RateLimit;
use towpath_daemon::shutdown::Shutdown;
use towpath_protocol::amounts::micros;
use towpath_protocol::class::Leg;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::preamble::Open;

use super::ChannelSpec;
use super::listener::{Listener, Program, reset_at_end};
use crate::channels::figures::Figures;
use crate::core::Core;
use crate::links::peer::State;
use crate::streams::local::{self, Begun, StreamOrigin};
use crate::streams::seats::{Seats, Share};

/// How long a program that has connected waits for a link. It sees a pause, not a refusal.
const LINK_WAIT: Duration = Duration::from_secs(10);

/// Pause after a failed accept, which mostly means that descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the connections of a channel share.
#[derive(Debug, Clone)]
pub(crate) struct Serving {
    pub core: Arc<Core>,
    pub(super) spec: watch::Receiver<Arc<ChannelSpec>>,
    pub(super) figures: Arc<Figures>,
    pub(super) places: Arc<Semaphore>,
    pub stop: Shutdown,
}

/// A connection's place; dropping it gives it back.
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

impl Serving {
    /// Takes a place for one more connection, if one is free.
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

    /// Whether a new connection would have to wait for another to end.
    pub(crate) fn is_short(&self) -> bool {
        self.asks_seats(Seats::are_short)
    }

    /// Whether new connections may soon have to wait for others to end.
    pub(crate) fn has_few(&self) -> bool {
        self.asks_seats(Seats::are_few)
    }

    /// Asks a question about the channel's share of the seats with its peer.
    fn asks_seats(&self, question: impl Fn(&Seats, Leg, &Share) -> bool) -> bool {
        let spec = Arc::clone(&self.spec.borrow());
        let leg = spec.class.leg();
        let (name, channels) = (spec.name.clone(), &self.core.channels);
        self.core.peers.get(&spec.peer).is_some_and(|peer| {
            let share = channels.share(Some(name), (&spec.peer, leg));
            question(&peer.streams.seats, leg, &share)
        })
    }

    /// Watches the channel's spec.
    pub(crate) fn spec(&self) -> watch::Receiver<Arc<ChannelSpec>> {
        self.spec.clone()
    }

    /// Counts a datagram dropped because too many waited.
    pub(crate) fn count_dropped(&self) {
        self.figures.meter.dropped.fetch_add(1, Ordering::Relaxed);
        let spec = self.spec.borrow();
        if let Some(peer) = self.core.peers.get(&spec.peer) {
            peer.counters.add_dropped(spec.class);
        }
    }

    /// Accepts connections until the listener must stop.
    pub(super) async fn accept(self, listener: Listener, mut stop: Shutdown) {
        let (mut all, failures) = (self.stop.clone(), RateLimit::default());
        loop {
            let accepted = tokio::select! {
                () = stop.requested() => break,
                () = all.requested() => break,
                accepted = listener.accept() => accepted,
            };
            let program = match accepted {
                Ok(program) => program,
                Err(error) => {
                    if let Some(untold) = failures.admit() {
                        tracing::warn!(%error, untold, "cannot accept for a channel");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            self.admit(program);
        }
        let waiting = listener.close();
        // If another listener takes over, waiting connections are carried; if the channel is
        // closed, they are reset.
        if !all.is_requested() {
            waiting.for_each(|program| self.admit(program));
        }
    }

    /// Begins to carry a connection, or resets it if there is no place.
    fn admit(&self, program: Program) {
        let Some(place) = self.place() else {
            self.note(&Fault::new(Code::Busy, "too many connections"));
            program.reset();
            return;
        };
        let leg = self.spec.borrow().class.leg();
        let thread = self.core.legs.handle(leg).clone();
        thread.spawn(self.clone().connection(program, place));
    }

    /// Carries one connection to its end, or until the channel is closed.
    fn connection(self, program: Program, place: Place) -> impl Future<Output = ()> {
        let mut stop = self.stop.clone();
        // Not an `async fn`: its future would store the arguments twice, as passed and as bound.
        async move {
            let _place = place;
            let ended = tokio::select! {
                () = stop.requested() => Err(Fault::new(Code::Gone, "the channel was closed")),
                ended = self.carry(program) => ended,
            };
            if let Err(fault) = ended {
                self.note(&fault);
            }
        }
    }

    /// Carries one connection to its end. The program sees a fault as a reset.
    async fn carry(&self, program: Program) -> Result<(), Fault> {
        let gone =
            |error: std::io::Error| Fault::new(Code::Gone, format!("the local program: {error}"));
        // A socket is registered with the thread that first uses it; this one is its leg's.
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

    /// Begins a stream to the service that the channel leads to now, after waiting for a link.
    pub(crate) async fn begin(&self) -> Result<Begun, Fault> {
        let spec = Arc::clone(&self.spec.borrow());
        let open = Open {
            peer: spec.peer.clone(),
            service: spec.service.clone(),
            class: spec.class,
        };
        let mut changes = self.core.peer(&spec.peer)?.subscribe();
        // Without a link in time, `begin` below returns the reason.
        let linked = changes.wait_for(State::is_usable);
        let _ = tokio::time::timeout(LINK_WAIT, async { linked.await.is_ok() }).await;
        let began = Instant::now();
        let kind = StreamOrigin {
            is_datagrams: spec.listen.is_datagrams(),
            channel: Some(spec.name.clone()),
            meter: Arc::clone(&self.figures.meter),
        };
        let begun = local::begin(&self.core, &open, kind).await;
        // A missing link is reported for the link, not for the channel.
        if begun.is_ok() || self.core.peer(&spec.peer)?.link().is_ok() {
            self.figures.note_opening(begun.as_ref().err());
        }
        let begun = begun?;
        let waited = micros(began.elapsed());
        self.figures.open_us.store(waited, Ordering::Relaxed);
        Ok(begun)
    }

    /// Notes that the service accepts datagrams.
    pub(crate) fn note_served(&self) {
        self.figures.note_served();
    }

    /// Notes that a flow was cut off because the service refused its datagrams, if that is the
    /// reason: without a link, the link's own state tells more.
    pub(crate) fn note_refusal(&self, fault: &Fault) {
        let spec = Arc::clone(&self.spec.borrow());
        let peer = self.core.peers.get(&spec.peer);
        let is_linked = peer.is_some_and(|peer| peer.link().is_ok());
        if fault.code == Code::Unreachable && is_linked {
            // The stream's end says only that the peer cut it off.
            let detail = format!(
                "service {} at {} takes no datagrams now; its tunnel's log says why",
                spec.service, spec.peer
            );
            self.figures.note_refusal(&Fault::new(fault.code, detail));
        }
    }

    /// Notes why a connection failed.
    pub(crate) fn note(&self, fault: &Fault) {
        let spec = Arc::clone(&self.spec.borrow());
        let (channel, peer) = (&spec.name, self.core.peers.get(&spec.peer));
        if fault.code != Code::Unreachable {
            tracing::debug!(%channel, %fault, "connection of a channel ended");
        } else if let Some(untold) = peer.and_then(|peer| peer.told.outages.admit()) {
            tracing::warn!(%channel, %fault, untold, "connection of a channel ended");
        }
        self.figures.errors.fetch_add(1, Ordering::Relaxed);
        self.figures.set_error(fault);
    }
}

/// Idle time before TCP keepalive probes begin: far less than it takes to fill a channel's places.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);

/// Interval between keepalive probes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// Unanswered keepalive probes after which a connection is over.
const KEEPALIVE_COUNT: u32 = 6;

/// A TCP connection that is reset when dropped unless it is kept: a stream cut off must not look
/// like one that ended.
#[derive(Debug)]
pub(crate) struct Resetting {
    socket: TcpStream,
    is_kept: bool,
}

impl Resetting {
    pub(crate) fn new(socket: TcpStream) -> Self {
        // An application's message must not wait for the next one. If this fails, it does.
        let _ = socket.set_nodelay(true);
        keep_alive(&socket);
        Self {
            socket,
            is_kept: false,
        }
    }

    pub(crate) fn split(&mut self) -> (tcp::ReadHalf<'_>, tcp::WriteHalf<'_>) {
        self.socket.split()
    }

    /// Marks the connection as ended properly: no reset.
    pub(crate) const fn keep(&mut self) {
        self.is_kept = true;
    }
}

/// Enables TCP keepalive: a host that lost its power sends nothing, and would hold its connection's
/// place for ever. If this fails, it does.
fn keep_alive(socket: &TcpStream) {
    let _ = sockopt::set_socket_keepalive(socket, true)
        .and_then(|()| sockopt::set_tcp_keepidle(socket, KEEPALIVE_IDLE))
        .and_then(|()| sockopt::set_tcp_keepintvl(socket, KEEPALIVE_INTERVAL))
        .and_then(|()| sockopt::set_tcp_keepcnt(socket, KEEPALIVE_COUNT));
}

impl Drop for Resetting {
    fn drop(&mut self) {
        if !self.is_kept {
            reset_at_end(&self.socket);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::streams::serve;

    /// Most bytes of a connection's task, which exists as long as the connection: 3.75 KiB. With
    /// what quinn keeps per stream and the runtime per socket, a connection should take at most 8
    /// KiB.
    const CONNECTION_BYTES_MAX: usize = 15 << 8;

    fn bytes_of<T, F: Future>(_: impl FnOnce(T) -> F) -> usize {
        size_of::<F>()
    }

    #[tokio::test]
    async fn the_system_asks_whether_a_silent_programs_host_is_there() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connecting = TcpStream::connect(listener.local_addr().unwrap());
        let program = Resetting::new(connecting.await.unwrap());
        assert_eq!(sockopt::socket_keepalive(&program.socket), Ok(true));
        assert_eq!(sockopt::tcp_keepidle(&program.socket), Ok(KEEPALIVE_IDLE));
        assert_eq!(
            sockopt::tcp_keepintvl(&program.socket),
            Ok(KEEPALIVE_INTERVAL)
        );
        assert_eq!(sockopt::tcp_keepcnt(&program.socket), Ok(KEEPALIVE_COUNT));
    }

    #[test]
    fn an_idle_connection_takes_little_at_either_side() {
        let (serving, begun) = (
            bytes_of(|(serving, program, place)| Serving::connection(serving, program, place)),
            bytes_of(|(core, begun, program)| serve::live(core, begun, program)),
        );
        let most = serving.max(begun);
        assert!(most <= CONNECTION_BYTES_MAX, "{serving} and {begun} bytes");
    }
}
