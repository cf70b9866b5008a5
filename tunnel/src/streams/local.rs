//! The Unix socket where local programs ask for streams: one connection is one stream.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};
use towpath_daemon::lines::RateLimit;
use towpath_daemon::shutdown::Shutdown;
use towpath_daemon::socket::Socket;
use towpath_daemon::stream::with_remedy_inline;
use towpath_protocol::class::{Class, Leg};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::Name;
use towpath_protocol::preamble::{Begin, Open, Preamble, TRUST_SERVICE};

use crate::core::{self, Core};
use crate::links::link::Link;
use crate::links::peer::Peer;
use crate::places::{Place, Places};
use crate::quic::wire;
use crate::streams::carrier::Carrier;
use crate::streams::life;
use crate::streams::seats::SeatUse;
use crate::streams::table::{Beginner, Entry, Meter, Purpose};

/// Pause after a failed accept, which mostly means that descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Programs that can be told at the same time that too many streams are open; further connections
/// are closed without an answer.
const REFUSAL_COUNT_MAX: usize = 32;

/// How long the peer may take to answer: its wait for the service and a few round trips.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// How long a stream waits for a seat and then for the peer's stream limit to allow it.
const OPEN_WAIT: Duration = Duration::from_secs(5);

/// How long a stream that is being opened waits for a link that replaces a lost one.
const REPLACED_WAIT: Duration = Duration::from_millis(100);

/// Divisor: one of so many places for local streams is reserved for moves.
const KEPT_PART: usize = 4;

/// Divisor: applications that wait for the same peer may take one of so many of the other places.
const WAITING_PART: usize = 2;

/// Limits the number of local streams and reserves some places for moves. The tunnel learns whether
/// a program belongs to a move only from its `Open` message, so until then an application may
/// occupy a reserved place.
#[derive(Debug)]
struct LocalPlaces {
    /// Places for any program.
    open: Arc<Semaphore>,
    /// Places reserved for moves.
    kept: Arc<Semaphore>,
    open_count: usize,
    /// Counts applications that wait for an answer, by the peer they ask.
    waiting: Arc<Places<Name>>,
    waiting_max: usize,
}

impl LocalPlaces {
    fn new(count: usize) -> Self {
        let kept = count / KEPT_PART;
        let open = count - kept;
        Self {
            open: Arc::new(Semaphore::new(open)),
            kept: Arc::new(Semaphore::new(kept)),
            open_count: open,
            waiting: Arc::default(),
            waiting_max: open.div_ceil(WAITING_PART),
        }
    }

    /// Takes a place, if one is free; a reserved one only if there is no other.
    fn take(self: &Arc<Self>) -> Option<LocalPlace> {
        let take = |row: &Arc<Semaphore>| Arc::clone(row).try_acquire_owned().ok();
        let open = take(&self.open).map(|permit| (permit, false));
        let (permit, is_kept) = open.or_else(|| Some((take(&self.kept)?, true)))?;
        Some(LocalPlace {
            places: Arc::clone(self),
            is_kept,
            _permit: permit,
        })
    }
}

/// A local stream's place; dropping it frees the place.
#[derive(Debug)]
struct LocalPlace {
    places: Arc<LocalPlaces>,
    /// Whether the place is reserved for moves.
    is_kept: bool,
    _permit: OwnedSemaphorePermit,
}

impl LocalPlace {
    /// Admits a program to wait for its peer's answer, until the returned place is dropped.
    /// Programs of a move may always wait.
    ///
    /// # Errors
    ///
    /// `E_BUSY` for an application if its place is reserved for moves, or if too many already wait
    /// for that peer.
    fn wait_for(&self, open: &Open) -> Result<Option<Place<Name>>, Fault> {
        if SeatUse::of(open.class) == SeatUse::Move {
            return Ok(None);
        }
        if self.is_kept {
            let open = self.places.open_count;
            let detail =
                format!("{open} local streams are open, and the other places are for moves");
            return Err(Fault::new(Code::Busy, detail));
        }
        let taken = self.places.waiting.take_if(&open.peer, |_, theirs| {
            if theirs < self.places.waiting_max {
                return Ok(());
            }
            let detail = format!("{theirs} local streams wait for {}", open.peer);
            Err(Fault::new(Code::Busy, detail))
        });
        taken.map(Some)
    }
}

/// Serves local programs until the tunnel stops.
///
/// # Errors
///
/// `E_IO` if the socket cannot be polled.
pub(crate) async fn serve(
    core: Arc<Core>,
    socket: Socket,
    mut stop: Shutdown,
) -> Result<(), Fault> {
    let listener = socket.for_tokio()?;
    let places = Arc::new(LocalPlaces::new(core.limits.local_streams));
    let refusals = Arc::new(Semaphore::new(REFUSAL_COUNT_MAX));
    let failures = RateLimit::default();
    loop {
        let accepted = tokio::select! {
            () = stop.requested() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        let local = match accepted {
            Ok((local, _)) => local,
            Err(error) => {
                if let Some(untold) = failures.admit() {
                    tracing::warn!(%error, untold, "cannot accept a local stream");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if socket.check_peer(&local).is_err() {
            continue;
        }
        let place = places.take();
        // Held while the refusal is sent; without a free permit nothing is sent.
        let refusal = match &place {
            Some(_) => None,
            None => match Arc::clone(&refusals).try_acquire_owned() {
                Ok(permit) => Some(permit),
                Err(_) => continue,
            },
        };
        let core = Arc::clone(&core);
        let thread = core.legs.handle(Leg::Urgent).clone();
        // A socket belongs to the thread that first touches it.
        let Ok(local) = local.into_std() else {
            continue;
        };
        thread.spawn(async move {
            let Ok(mut local) = UnixStream::from_std(local) else {
                return;
            };
            let _refusal = refusal;
            let Some(place) = place else {
                turn_away(&core, &mut local).await;
                return;
            };
            if let Some(begun) = converse(&core, &mut local, &place).await {
                carry_on(core, local, begun, place);
            }
        });
    }
}

/// Tells a program that too many streams are open. The program's request is read first, because
/// closing a socket with unread bytes would discard the answer.
async fn turn_away(core: &Core, local: &mut UnixStream) {
    if read_open(core, local).await.is_ok() {
        let detail = format!("{} local streams are open", core.limits.local_streams);
        answer(local, &refused(&Fault::new(Code::Busy, detail))).await;
    }
}

/// Reads a program's request and answers it; returns the stream if one was begun.
async fn converse(core: &Core, local: &mut UnixStream, place: &LocalPlace) -> Option<Begun> {
    let opened = match read_open(core, local).await {
        Ok(open) if is_about_trust(core, &open) => {
            let told = core.trust.check_fresh();
            let host = core.trust.host().clone();
            let told = told.map_or_else(|fault| refused(&fault), |()| Preamble::Opened(host));
            answer(local, &told).await;
            return None;
        }
        Ok(open) => match place.wait_for(&open) {
            Ok(_waiting) => begin(core, &open, StreamOrigin::default()).await,
            Err(fault) => Err(fault),
        },
        Err(fault) => Err(fault),
    };
    let answered = match &opened {
        Ok(begun) => Preamble::Opened(begun.carrier.link.peer.clone()),
        Err(fault) => refused(fault),
    };
    answer(local, &answered).await;
    opened.ok()
}

/// Moves a stream to the thread of its leg and carries it there.
fn carry_on(core: Arc<Core>, local: UnixStream, begun: Begun, place: LocalPlace) {
    let thread = core.legs.handle(begun.entry.stream.class.leg()).clone();
    let Ok(local) = local.into_std() else { return };
    thread.spawn(async move {
        let _place = place;
        let Ok(mut local) = UnixStream::from_std(local) else {
            return;
        };
        let (peer, stream) = (Arc::clone(&begun.peer), Arc::clone(&begun.entry.stream));
        if let Err(fault) = begun.live(&core, local.split()).await {
            peer.told.cut(&stream, &fault);
        }
    });
}

async fn read_open(core: &Core, local: &mut UnixStream) -> Result<Open, Fault> {
    match wire::read_local(local, core.preamble_wait()).await? {
        Preamble::Open(open) => Ok(open),
        other => {
            let detail = format!("{} from a local program", other.name());
            Err(Fault::new(Code::Unexpected, detail))
        }
    }
}

/// What a stream is begun for.
#[derive(Debug, Default)]
pub(crate) struct StreamOrigin {
    /// Whether the stream accompanies a flow of datagrams.
    pub is_datagrams: bool,
    /// The channel that the stream belongs to. Such a stream counts as an application's, whatever
    /// its class.
    pub channel: Option<Name>,
    /// Where its bytes are counted.
    pub meter: Arc<Meter>,
}

impl StreamOrigin {
    const fn seat_use(&self, class: Class) -> SeatUse {
        match self.channel {
            Some(_) => SeatUse::Application,
            None => SeatUse::of(class),
        }
    }
}

/// Whether a program asks this tunnel itself whether its trust is fresh enough for new work to
/// begin.
fn is_about_trust(core: &Core, open: &Open) -> bool {
    open.peer == core.site && open.service.as_str() == TRUST_SERVICE
}

/// A stream that has been accepted at the service's side and is ready to be carried.
#[derive(Debug)]
pub(crate) struct Begun {
    pub peer: Arc<Peer>,
    pub entry: Entry,
    pub carrier: Carrier,
}

impl Begun {
    /// Carries the stream to its end.
    ///
    /// # Errors
    ///
    /// Why the stream was cut off.
    pub(crate) fn live(
        self,
        core: &Core,
        local: (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
    ) -> impl Future<Output = Result<(), Fault>> {
        life::live(core, self, local)
    }
}

/// Begins a stream to a peer's service; starts over if the link is replaced before the answer.
///
/// # Errors
///
/// The peer's refusal; `E_NOT_FOUND` if the site is no peer, `E_UNREACHABLE` without a link,
/// `E_BUSY` if the peer takes no more streams, `E_STALLED` if it does not answer.
pub(crate) async fn begin(core: &Core, open: &Open, kind: StreamOrigin) -> Result<Begun, Fault> {
    let site = &open.peer;
    let peer = core.peer(site)?;
    let until = Instant::now() + ANSWER_WAIT;
    let unanswered = || Fault::new(Code::Stalled, format!("{site} does not answer"));
    loop {
        let link = timeout_at(until, peer.link_to_begin()).await;
        let link = link.unwrap_or_else(|_| Err(unanswered()))?;
        let asked = tokio::select! {
            asked = timeout_at(until, begin_over((core, &peer), &link, open, &kind)) => Some(asked),
            () = peer.left(&link) => None,
        };
        match asked {
            Some(Ok(Err(fault))) if fault.code == Code::Unreachable && link.is_over() => {
                // The end of a link can show here a moment before the link that replaces it.
                let Ok(()) = timeout_at(
                    until.min(Instant::now() + REPLACED_WAIT),
                    peer.replaced(&link),
                )
                .await
                else {
                    return Err(fault);
                };
            }
            Some(Ok(asked)) => return asked,
            Some(Err(_)) => return Err(unanswered()),
            None => {}
        }
    }
}

async fn begin_over(
    (core, peer): (&Core, &Arc<Peer>),
    link: &Arc<Link>,
    open: &Open,
    kind: &StreamOrigin,
) -> Result<Begun, Fault> {
    let site = &open.peer;
    let leg = open.class.leg();
    let gone = |why: String| Fault::new(Code::Unreachable, format!("link to {site}: {why}"));
    let seat_use = kind.seat_use(open.class);
    let is_application = seat_use == SeatUse::Application;
    let share = is_application.then(|| core.channels.share(kind.channel.clone(), (site, leg)));
    let opening = async {
        let seat = peer.streams.seats.take(leg, share).await;
        (seat, link.connection(leg).open_bi().await)
    };
    let (seat, stream) = timeout(OPEN_WAIT, opening)
        .await
        .map_err(|_| Fault::new(Code::Busy, format!("{site} takes no more streams for now")))?;
    let stream = stream.map_err(|error| gone(error.to_string()))?;
    let mut carrier = Carrier::untaken(link, leg, stream);
    carrier
        .send
        .set_priority(open.class.priority())
        .map_err(|error| gone(error.to_string()))?;
    let number = (core::random_stream()?, link.party());
    let purpose = Purpose {
        class: open.class,
        seat_use,
        service: open.service.clone(),
        meter: Arc::clone(&kind.meter),
    };
    let entry = peer.streams.add(number, purpose, Beginner::Us(seat))?;
    let begin = Preamble::Begin(Begin {
        stream: entry.stream.id,
        open: open.clone(),
        is_datagrams: kind.is_datagrams,
    });
    wire::write(&mut carrier.send, &begin).await?;
    match wire::read(&mut carrier.recv, ANSWER_WAIT).await? {
        // The peer's identity comes from its certificate, not from this answer.
        Preamble::Opened(_) => {
            carrier.note_taken();
            Ok(Begun {
                peer: Arc::clone(peer),
                entry,
                carrier,
            })
        }
        Preamble::Refused(fault) => Err(fault),
        other => {
            let detail = format!("{} in answer to Begin", other.name());
            Err(Fault::new(Code::Unexpected, detail))
        }
    }
}

fn refused(fault: &Fault) -> Preamble {
    Preamble::Refused(with_remedy_inline(fault))
}

async fn answer(local: &mut UnixStream, preamble: &Preamble) {
    // Fails only if the program has gone, which the next read or write notices.
    let _ = local.write_all(&preamble.encode()).await;
}
