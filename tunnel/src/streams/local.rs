//! The Unix socket where local programs ask for streams: one connection is one stream.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};
use towpath_daemon::lines::Lines;
use towpath_daemon::shutdown::Shutdown;
use towpath_daemon::socket::Socket;
use towpath_daemon::stream::told_here;
use towpath_protocol::channel::{Begin, Class, Leg, Open, Preamble, TRUST_SERVICE};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::Name;

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

/// Programs that are told at once that too many streams are open; more are only closed.
const REFUSAL_COUNT_MAX: usize = 32;

/// How long the peer may take to answer: its service's wait and a few round trips.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// How long a stream waits for a seat, and for the peer to take it.
const OPEN_WAIT: Duration = Duration::from_secs(5);

/// How long a stream that is being opened waits for the link that takes a lost one's place.
const REPLACED_WAIT: Duration = Duration::from_millis(100);

/// The part of the places for local streams that is kept for moves.
const KEPT_PART: usize = 4;

/// The part of the other places in which applications may wait for one peer.
const WAITING_PART: usize = 2;

/// The places of local streams. Which program is a move's shows only once it has said for which class it asks, so one
/// that finds only a place that is kept has that until then.
#[derive(Debug)]
struct LocalPlaces {
    /// Those that are for everybody.
    open: Arc<Semaphore>,
    /// Those that are for moves.
    kept: Arc<Semaphore>,
    open_count: usize,
    /// Applications that wait for an answer, by the peer that they ask.
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

    /// A place, if one is free.
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

/// A local stream's place, until it is dropped.
#[derive(Debug)]
struct LocalPlace {
    places: Arc<LocalPlaces>,
    /// The place is one of those for moves.
    is_kept: bool,
    _permit: OwnedSemaphorePermit,
}

impl LocalPlace {
    /// Lets a program wait for the peer that it asks, for as long as the answer is kept; a move's may always.
    ///
    /// # Errors
    ///
    /// `E_BUSY` for an application if the place is kept for moves, or if too many wait for that peer.
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
    let failures = Lines::default();
    loop {
        let accepted = tokio::select! {
            () = stop.requested() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        let local = match accepted {
            Ok((local, _)) => local,
            Err(error) => {
                if let Some(untold) = failures.next() {
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
        // Held for as long as the program is told, or not at all.
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

/// Says that too many streams are open, once the program has said what it wants: closing a socket with
/// unread bytes would take the answer away with it.
async fn turn_away(core: &Core, local: &mut UnixStream) {
    if read_open(core, local).await.is_ok() {
        let detail = format!("{} local streams are open", core.limits.local_streams);
        answer(local, &refused(&Fault::new(Code::Busy, detail))).await;
    }
}

/// Hears what a program wants and answers; gives the stream if it has one.
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

/// Carries a stream on the thread of its leg.
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

/// For whom a stream is begun.
#[derive(Debug, Default)]
pub(crate) struct StreamOrigin {
    /// It stands beside datagrams.
    pub is_datagrams: bool,
    /// The channel whose connection it is, and so an application's, whatever its class.
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

/// Whether a program asks this tunnel itself if new work may begin.
fn is_about_trust(core: &Core, open: &Open) -> bool {
    open.peer == core.site && open.service.as_str() == TRUST_SERVICE
}

/// A stream that a peer's service has.
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
    /// Why it was cut off.
    pub(crate) fn live(
        self,
        core: &Core,
        local: (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
    ) -> impl Future<Output = Result<(), Fault>> {
        life::live(core, self, local)
    }
}

/// Begins a stream to a peer's service; once more if the link is replaced before the answer.
///
/// # Errors
///
/// As the peer refuses; `E_NOT_FOUND` if it is none, `E_UNREACHABLE` without a link, `E_BUSY` if it takes
/// no more streams, `E_STALLED` if it does not answer.
pub(crate) async fn begin(core: &Core, open: &Open, kind: StreamOrigin) -> Result<Begun, Fault> {
    let site = &open.peer;
    let peer = core.peer(site)?;
    let until = Instant::now() + ANSWER_WAIT;
    let unanswered = || Fault::new(Code::Stalled, format!("{site} does not answer"));
    loop {
        let link = timeout_at(until, peer.link_to_begin()).await;
        let link = link.unwrap_or_else(|_| Err(unanswered()))?;
        let asked = tokio::select! {
            asked = timeout_at(until, begin_over((core, peer), &link, open, &kind)) => Some(asked),
            () = peer.left(&link) => None,
        };
        match asked {
            Some(Ok(Err(fault))) if fault.code == Code::Unreachable && link.is_over() => {
                // Its end shows here a moment before a link that replaces it.
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
        // Who it is the certificate says, not the answer.
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
    Preamble::Refused(told_here(fault))
}

async fn answer(local: &mut UnixStream, preamble: &Preamble) {
    // A program that has gone misses nothing, and the next read or write notices it.
    let _ = local.write_all(&preamble.encode()).await;
}
