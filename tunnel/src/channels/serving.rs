//! The connections of a channel: taken in while there are places, and carried to its service.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::{TcpStream, UnixStream, tcp};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use towpath_daemon::lines::Lines;
use towpath_daemon::shutdown::Shutdown;
use towpath_protocol::channel::{Leg, Open};
use towpath_protocol::fault::{Code, Fault};

use super::ChannelSpec;
use super::listener::{Listener, Program, reset_at_end};
use crate::channels::figures::Figures;
use crate::core::Core;
use crate::streams::local::{self, Begun, StreamOrigin};
use crate::streams::seats::{Seats, Share};

/// How long a program that has connected waits for a link: it sees a pause, not a refusal.
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
        self.asks_seats(Seats::are_short)
    }

    /// Whether connections that begin may soon have to wait for others to end.
    pub(crate) fn has_few(&self) -> bool {
        self.asks_seats(Seats::are_few)
    }

    /// Asks the seats with the channel's peer about the channel's share of them.
    fn asks_seats(&self, question: impl Fn(&Seats, Leg, &Share) -> bool) -> bool {
        let spec = Arc::clone(&self.spec.borrow());
        let leg = spec.class.leg();
        let (name, channels) = (spec.name.clone(), &self.core.channels);
        self.core.peers.get(&spec.peer).is_some_and(|peer| {
            let share = channels.share(Some(name), (&spec.peer, leg));
            question(&peer.streams.seats, leg, &share)
        })
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

    /// Takes connections in until the listener is to stop.
    pub(super) async fn accept(self, listener: Listener, mut stop: Shutdown) {
        let (mut all, failures) = (self.stop.clone(), Lines::default());
        loop {
            let accepted = tokio::select! {
                () = stop.requested() => break,
                () = all.requested() => break,
                accepted = listener.accept() => accepted,
            };
            let program = match accepted {
                Ok(program) => program,
                Err(error) => {
                    if let Some(untold) = failures.next() {
                        tracing::warn!(%error, untold, "cannot accept for a channel");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            self.admit(program);
        }
        let waiting = listener.close();
        // Where another listener takes over nobody is let go of; a channel that is closed has none.
        if !all.is_requested() {
            waiting.for_each(|program| self.admit(program));
        }
    }

    /// Begins to carry a connection, if there is a place for it.
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

    /// Carries one connection, or until the channel is closed.
    fn connection(self, program: Program, place: Place) -> impl Future<Output = ()> {
        let mut stop = self.stop.clone();
        // What is given to an async function it has twice: as it came, and as its own.
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
        let linked = changes.wait_for(crate::links::peer::State::is_usable);
        let _ = tokio::time::timeout(LINK_WAIT, async { linked.await.is_ok() }).await;
        let began = Instant::now();
        let kind = StreamOrigin {
            is_datagrams: spec.listen.is_datagrams(),
            channel: Some(spec.name.clone()),
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

    /// Notes that the service takes datagrams.
    pub(crate) fn note_served(&self) {
        self.figures.note_served();
    }

    /// Notes that a flow was cut off because the service refused its datagrams, if that is why: without a link the link
    /// tells more.
    pub(crate) fn note_refusal(&self, fault: &Fault) {
        let spec = Arc::clone(&self.spec.borrow());
        let peer = self.core.peers.get(&spec.peer);
        let is_linked = peer.is_some_and(|peer| peer.link().is_ok());
        if fault.code == Code::Unreachable && is_linked {
            // The end of the stream says only that the peer cut it off.
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
        } else if let Some(untold) = peer.and_then(|peer| peer.told.outages.next()) {
            tracing::warn!(%channel, %fault, untold, "connection of a channel ended");
        }
        self.figures.errors.fetch_add(1, Ordering::Relaxed);
        self.figures.set_error(fault);
    }
}

/// Silence after which a program's host is asked whether it is there: far below what a channel's places take to fill.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);

/// Pause between questions that are not answered.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// Questions without an answer after which its connection is over.
const KEEPALIVE_COUNT: u32 = 6;

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
        keep_alive(&socket);
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

/// Has the system ask a program's host whether it is still there: one that lost its power says nothing, and would keep
/// its connection's place for ever. Without it, it does.
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

    /// Most that the task of a connection may take, 3.5 KiB, which is there for as long as the connection is: beside it stand
    /// what the library keeps of a stream and the runtime of a socket, and together they are to be 8 KiB at most.
    const CONNECTION_BYTES_MAX: usize = 7 << 9;

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
            bytes_of(|(core, begun, program)| crate::streams::serve::live(core, begun, program)),
        );
        let most = serving.max(begun);
        assert!(most <= CONNECTION_BYTES_MAX, "{serving} and {begun} bytes");
    }
}
