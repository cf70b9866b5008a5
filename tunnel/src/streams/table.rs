//! The streams with one peer: live ones, with or without a connection, and recently ended ones.
//!
//! The message that a stream has ended can be lost with the link, and the other side would then
//! wait for a stream that is over. So ends are remembered for a while and repeated on every new
//! link.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc, watch};
use towpath_protocol::class::{Class, Leg, PerLeg};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::{HostIdentity, Name};
use towpath_protocol::preamble::{LinkId, Received, RunId, StreamId};
use towpath_protocol::rate::Rate;

use crate::links::link::Link;
use crate::shaping::pace::{Backlog, Pace};
use crate::shaping::quota::Quota;
use crate::streams::carrier::Carrier;
use crate::streams::resume::Outgoing;
use crate::streams::seats::{Seat, SeatUse, Seats};

/// Ends remembered per peer: many times what ends within a round trip of a busy peer.
const ENDED_COUNT_MAX: usize = 1024;

/// Calls that may wait for one stream; a peer that resumes faster than we answer is refused.
const CALL_COUNT_MAX: usize = 4;

/// The other end of a link: a host, and one run of its tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Party {
    pub host: HostIdentity,
    pub run: RunId,
}

/// A message to the task of a stream.
#[derive(Debug)]
pub(crate) enum Call {
    /// The peer continues over another connection, and has received this much.
    Resume(Box<Carrier>, Received),
    /// The stream is over.
    Cut(Fault),
}

impl Call {
    /// Whether the peer sent this before it resumed over the `current` link. That is no error:
    /// messages on a replaced link may arrive after everything sent later.
    pub(crate) fn is_late_beside(&self, current: &Link) -> bool {
        match self {
            Self::Resume(carrier, _) => {
                let is_retired = carrier.link.is_retired();
                is_retired && !current.is_retired() && !current.is_ill()
            }
            Self::Cut(_) => false,
        }
    }
}

/// Counts the bytes of programs through a channel or a service.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    pub sent: AtomicU64,
    pub received: AtomicU64,
    /// Datagrams dropped instead of sent, because there were too many.
    pub dropped: AtomicU64,
    pub quota: Quota,
}

impl Meter {
    /// A meter whose streams together send at most at this rate.
    pub(crate) fn capped(cap: Option<Rate>) -> Self {
        Self {
            quota: Quota::new(cap),
            ..Self::default()
        }
    }
}

/// What a stream is for.
#[derive(Debug, Clone)]
pub(crate) struct Purpose {
    pub class: Class,
    pub seat_use: SeatUse,
    pub service: Name,
    /// Counts its bytes in addition to the link.
    pub meter: Arc<Meter>,
}

/// Which side begins a stream.
#[derive(Debug)]
pub(crate) enum Beginner {
    /// This side; the stream has one of our seats at the peer until it ends.
    Us(Seat),
    /// The peer, which may have at most `most` streams with us.
    Them { most: usize },
}

/// The shared state of one stream.
#[derive(Debug)]
pub(crate) struct Stream {
    pub id: StreamId,
    pub class: Class,
    pub seat_use: SeatUse,
    pub service: Name,
    pub meter: Arc<Meter>,
    pub party: Party,
    /// Whether this side began it, and therefore resumes it.
    pub is_ours: bool,
    out: Mutex<Outgoing>,
    /// Notifies that the tail got shorter.
    pub acknowledged: Notify,
    /// Boxed, because a queue allocates room for many entries at its start.
    calls: mpsc::Sender<Box<Call>>,
}

impl Stream {
    pub(crate) fn out(&self) -> MutexGuard<'_, Outgoing> {
        self.out.lock()
    }

    /// Registers that it has bytes to send over a link, until the result is dropped.
    pub(crate) fn backlog<'a>(&'a self, pace: &'a Arc<Pace>) -> Backlog<'a> {
        pace.backlog(self.class, &self.meter.quota)
    }

    /// Counts bytes read from the program.
    pub(crate) fn count_sent(&self, bytes: u64) {
        self.meter.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes received for the program.
    pub(crate) fn count_received(&self, bytes: u64) {
        self.meter.received.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Records what the peer reports.
    ///
    /// # Errors
    ///
    /// `E_RANGE` if the peer reports bytes that were never sent.
    pub(crate) fn acknowledge(&self, received: Received) -> Result<(), Fault> {
        if self.out().acknowledge(received)? {
            self.acknowledged.notify_one();
        }
        Ok(())
    }

    /// Sends a message to the stream's task.
    ///
    /// # Errors
    ///
    /// `E_BUSY` if earlier calls are still waiting.
    pub(crate) fn call(&self, call: Call) -> Result<(), Fault> {
        self.calls
            .try_send(Box::new(call))
            .map_err(|_| Fault::new(Code::Busy, "the stream resumes already"))
    }

    /// Tells the stream's task that the stream is over, however many calls wait before this one: a
    /// peer must not be able to keep a stream by resuming it.
    fn cut(&self, fault: &Fault) {
        let call = Box::new(Call::Cut(fault.clone()));
        if let Err(TrySendError::Full(call)) = self.calls.try_send(call) {
            let calls = self.calls.clone();
            tokio::spawn(async move {
                // Fails only if the stream is over.
                let _ = calls.send(call).await;
            });
        }
    }
}

/// How a stream ended.
#[derive(Debug, Clone)]
pub(crate) enum End {
    /// Both directions reached their ends, and the peer's had this many bytes. The link is the one
    /// over which the peer has learnt of it, if one carried it.
    Whole(Received, Option<LinkId>),
    /// It was cut off.
    Cut(Fault),
}

impl End {
    /// The link over which the peer has learnt of it. `None` for a cut, which is sent over every
    /// link.
    const fn heard_over(&self) -> Option<LinkId> {
        match self {
            Self::Whole(_, heard_over) => *heard_over,
            Self::Cut(_) => None,
        }
    }
}

/// A stream that is over.
#[derive(Debug, Clone)]
pub(crate) struct Ended {
    number: u64,
    pub id: StreamId,
    pub party: Party,
    pub end: End,
}

impl Ended {
    /// Whether the peer must be told over this link: not over the one that carried the end.
    pub(crate) fn is_news_over(&self, link: LinkId) -> bool {
        self.end.heard_over() != Some(link)
    }
}

#[derive(Debug, Default)]
struct Inner {
    /// Why no stream can begin any more.
    closed: Option<Fault>,
    live: BTreeMap<StreamId, Arc<Stream>>,
    ended: VecDeque<Ended>,
    ended_count: u64,
    /// Index of `ended` by stream, run and number, since a peer may ask for any number of them.
    ended_by_id: BTreeSet<(StreamId, RunId, u64)>,
}

impl Inner {
    /// The newest end of a stream with this id and party.
    fn end_of(&self, id: StreamId, party: &Party) -> Option<&Ended> {
        let first = self.ended.front()?.number;
        let same = (id, party.run, 0)..=(id, party.run, u64::MAX);
        let numbers = self.ended_by_id.range(same).rev();
        let ended = numbers.filter_map(|(_, _, number)| {
            let place = usize::try_from(number - first).ok()?;
            self.ended.get(place)
        });
        ended.into_iter().find(|ended| ended.party == *party)
    }
}

/// Counts of what happened to the streams of a peer, since the tunnel started.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Streams without a connection now.
    pub paused: AtomicU64,
    /// Times a stream continued over another connection.
    pub resumed: AtomicU64,
    /// Bytes sent again for that.
    pub resent_bytes: AtomicU64,
    /// Streams cut off because no connection came in time, or because the peer had forgotten them.
    pub lost: AtomicU64,
    /// Times the link ended without another one in its place.
    pub links_lost: AtomicU64,
}

/// The result of looking up a stream.
#[derive(Debug)]
pub(crate) enum Found {
    Live(Arc<Stream>),
    Ended(End),
}

/// The streams with one peer.
#[derive(Debug)]
pub(crate) struct Streams {
    inner: Mutex<Inner>,
    unheard: watch::Sender<u64>,
    /// Bytes kept of all streams of a leg until the peer has handed them on.
    held_bytes: PerLeg<Arc<AtomicU64>>,
    /// Seats of the streams that we begin, with or without a connection.
    pub seats: Seats,
    pub tally: Tally,
}

/// A stream's place in the table; when dropped, its end is remembered.
#[derive(Debug)]
pub(crate) struct Entry {
    pub stream: Arc<Stream>,
    pub calls: mpsc::Receiver<Box<Call>>,
    streams: Arc<Streams>,
    end: End,
    _seat: Option<Seat>,
}

impl Entry {
    /// Records how the stream ended; without this it counts as cut off.
    pub(crate) fn end(mut self, end: End) {
        self.end = end;
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let end = self.end.clone();
        self.streams.end(&self.stream, end);
    }
}

impl Streams {
    /// A table without streams; we may begin `ours_max` on each leg.
    pub(crate) fn new(ours_max: usize) -> Self {
        Self {
            inner: Mutex::default(),
            unheard: watch::channel(0).0,
            held_bytes: PerLeg::default(),
            seats: Seats::new(ours_max),
            tally: Tally::default(),
        }
    }

    /// Adds a stream.
    ///
    /// # Errors
    ///
    /// `E_BUSY` if the peer has as many as it may, `E_STATE` if the id is in use, the reason given
    /// to [`Self::close`] after that.
    pub(crate) fn add(
        self: &Arc<Self>,
        (id, party): (StreamId, Party),
        purpose: Purpose,
        beginner: Beginner,
    ) -> Result<Entry, Fault> {
        let mut inner = self.inner();
        if let Some(fault) = &inner.closed {
            return Err(fault.clone());
        }
        if let Beginner::Them { most } = beginner {
            let theirs = inner.live.values().filter(|stream| !stream.is_ours);
            if theirs.count() >= most {
                let detail = format!("{most} streams are open, with or without a connection");
                return Err(Fault::new(Code::Busy, detail));
            }
        }
        if inner.live.contains_key(&id) {
            return Err(Fault::new(Code::State, "the stream's number is in use"));
        }
        let seat = match beginner {
            Beginner::Us(seat) => Some(seat),
            Beginner::Them { .. } => None,
        };
        let (calls, heard) = mpsc::channel(CALL_COUNT_MAX);
        let stream = Arc::new(Stream {
            id,
            class: purpose.class,
            seat_use: purpose.seat_use,
            service: purpose.service,
            meter: purpose.meter,
            party,
            is_ours: seat.is_some(),
            out: Mutex::new(Outgoing::beside(self.held_bytes(purpose.class.leg()))),
            acknowledged: Notify::new(),
            calls,
        });
        inner.live.insert(id, Arc::clone(&stream));
        Ok(Entry {
            stream,
            calls: heard,
            streams: Arc::clone(self),
            end: End::Cut(Fault::new(Code::Gone, "the stream was given up")),
            _seat: seat,
        })
    }

    fn end(&self, stream: &Stream, end: End) {
        // The peer knows of the others, which are repeated on the next link only.
        let is_unheard = end.heard_over().is_none();
        let mut inner = self.inner();
        inner.live.remove(&stream.id);
        if inner.ended.len() == ENDED_COUNT_MAX
            && let Some(oldest) = inner.ended.pop_front()
        {
            let key = (oldest.id, oldest.party.run, oldest.number);
            inner.ended_by_id.remove(&key);
        }
        inner.ended_count += 1;
        let ended = Ended {
            number: inner.ended_count,
            id: stream.id,
            party: stream.party.clone(),
            end,
        };
        let key = (ended.id, ended.party.run, ended.number);
        inner.ended_by_id.insert(key);
        inner.ended.push_back(ended);
        let count = inner.ended_count;
        drop(inner);
        if is_unheard {
            self.unheard.send_replace(count);
        }
    }

    /// Finds a stream by its id, if it is with this party.
    pub(crate) fn find(&self, id: StreamId, party: &Party) -> Option<Found> {
        let inner = self.inner();
        if let Some(stream) = inner.live.get(&id) {
            return (stream.party == *party).then(|| Found::Live(Arc::clone(stream)));
        }
        let ended = inner.end_of(id, party);
        ended.map(|ended| Found::Ended(ended.end.clone()))
    }

    /// The ends with this party after number `after`, and the number of the newest end.
    pub(crate) fn ended_after(&self, after: u64, party: &Party) -> (Vec<Ended>, u64) {
        let inner = self.inner();
        let news = inner.ended.iter().filter(|ended| ended.number > after);
        let theirs = news.filter(|ended| ended.party == *party);
        (theirs.cloned().collect(), inner.ended_count)
    }

    /// Notifies of every end that the peer has to be told of.
    pub(crate) fn unheard(&self) -> watch::Receiver<u64> {
        self.unheard.subscribe()
    }

    /// Bytes kept of all streams of a leg until the peer has handed them on.
    pub(crate) fn held_bytes(&self, leg: Leg) -> &Arc<AtomicU64> {
        &self.held_bytes[leg]
    }

    /// Number of live streams.
    pub(crate) fn count(&self) -> u64 {
        self.inner().live.len() as u64
    }

    /// Number of live streams to a service that the peer began.
    pub(crate) fn count_to(&self, service: &Name) -> u64 {
        let inner = self.inner();
        let theirs = inner.live.values().filter(|stream| !stream.is_ours);
        theirs.filter(|stream| stream.service == *service).count() as u64
    }

    /// Cuts all streams, and refuses new ones from now on.
    pub(crate) fn close(&self, fault: &Fault) {
        self.inner().closed = Some(fault.clone());
        self.cut_all(fault);
    }

    /// Cuts all streams.
    pub(crate) fn cut_all(&self, fault: &Fault) {
        self.cut_where(fault, |_| true);
    }

    /// Cuts all streams with a host, so that none waits for a link that must not come.
    pub(crate) fn cut_host(&self, host: &HostIdentity, fault: &Fault) {
        self.cut_where(fault, |stream| stream.party.host == *host);
    }

    /// Cuts the streams that the peer has begun to services that it may not have. Returns how many
    /// of which service.
    pub(crate) fn cut_denied(
        &self,
        ours: &Name,
        may_have: impl Fn(&Name) -> bool,
    ) -> BTreeMap<Name, usize> {
        let mut counts = BTreeMap::new();
        let inner = self.inner();
        let theirs = inner.live.values().filter(|stream| !stream.is_ours);
        for stream in theirs.filter(|stream| !may_have(&stream.service)) {
            let (site, service) = (&stream.party.host.site, &stream.service);
            let detail = format!("{ours} offers {site} no service {service} any more");
            stream.cut(&Fault::new(Code::Denied, detail));
            *counts.entry(service.clone()).or_default() += 1;
        }
        counts
    }

    fn cut_where(&self, fault: &Fault, is_meant: impl Fn(&Stream) -> bool) {
        let inner = self.inner();
        for stream in inner.live.values().filter(|stream| is_meant(stream)) {
            stream.cut(fault);
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn party(host: &str, run: u128) -> Party {
        let uri = format!("spiffe://shop.example/site/edge/host/{host}");
        Party {
            host: HostIdentity::from_uri(&uri).unwrap(),
            run: RunId(run),
        }
    }

    async fn ours(streams: &Arc<Streams>) -> Beginner {
        Beginner::Us(streams.seats.take(Leg::Urgent, None).await)
    }

    fn add(streams: &Arc<Streams>, id: u128, beginner: Beginner) -> Result<Entry, Fault> {
        let purpose = Purpose {
            class: Class::App,
            seat_use: SeatUse::Application,
            service: "till".parse().unwrap(),
            meter: Arc::default(),
        };
        streams.add((StreamId(id), party("box-1", 1)), purpose, beginner)
    }

    #[tokio::test]
    async fn a_stranger_who_knows_a_number_finds_nothing() {
        let streams = Arc::new(Streams::new(64));
        let one = add(&streams, 7, ours(&streams).await).unwrap();
        let find = |party: &Party| streams.find(StreamId(7), party);
        assert!(matches!(find(&party("box-1", 1)), Some(Found::Live(_))));
        assert!(find(&party("box-2", 1)).is_none(), "another host");
        assert!(find(&party("box-1", 2)).is_none(), "another run");
        one.end(End::Whole(Received::default(), None));
        assert!(matches!(find(&party("box-1", 1)), Some(Found::Ended(_))));
        assert!(find(&party("box-2", 1)).is_none());
        assert!(find(&party("box-1", 2)).is_none());
    }

    #[tokio::test]
    async fn a_peers_streams_are_bounded_and_ours_have_their_own_limit() {
        let streams = Arc::new(Streams::new(64));
        let theirs = || Beginner::Them { most: 3 };
        let kept: Vec<_> = (0..3)
            .map(|id| add(&streams, id, theirs()).unwrap())
            .collect();
        assert_eq!(add(&streams, 9, theirs()).unwrap_err().code, Code::Busy);
        assert!(add(&streams, 9, ours(&streams).await).is_ok());
        let again = add(&streams, 1, ours(&streams).await);
        assert_eq!(again.unwrap_err().code, Code::State);
        drop(kept);
        assert!(add(&streams, 9, theirs()).is_ok());
    }

    #[tokio::test]
    async fn ends_are_told_to_whom_they_concern_and_are_bounded() {
        let streams = Arc::new(Streams::new(1));
        for id in 0..2000 {
            drop(add(&streams, id, ours(&streams).await).unwrap());
        }
        let (ends, newest) = streams.ended_after(0, &party("box-1", 1));
        assert_eq!((ends.len(), newest), (ENDED_COUNT_MAX, 2000));
        let is_known = |id| streams.find(StreamId(id), &party("box-1", 1)).is_some();
        assert_eq!((0..2000).filter(|id| is_known(*id)).count(), ends.len());
        assert!(is_known(1999) && !is_known(0));
        assert_eq!(streams.inner().ended_by_id.len(), ENDED_COUNT_MAX);
        assert_eq!(ends[0].id, StreamId(2000 - ENDED_COUNT_MAX as u128));
        assert!(streams.ended_after(newest, &party("box-1", 1)).0.is_empty());
        assert!(streams.ended_after(0, &party("box-1", 2)).0.is_empty());
    }

    #[tokio::test]
    async fn an_end_that_no_link_carried_is_told_over_every_link_and_others_over_all_but_theirs() {
        let streams = Arc::new(Streams::new(64));
        let mut unheard = streams.unheard();
        let end = async |id, end| {
            let entry = add(&streams, id, ours(&streams).await).unwrap();
            entry.end(end);
        };
        let whole = |heard_over| End::Whole(Received::default(), heard_over);
        end(1, whole(Some(LinkId(7)))).await;
        assert!(!unheard.has_changed().unwrap(), "it is known");
        end(2, whole(None)).await;
        assert!(unheard.has_changed().unwrap(), "it waits for the next link");
        unheard.mark_unchanged();
        let fault = Fault::new(Code::Gone, "a test");
        end(3, End::Cut(fault)).await;
        assert!(unheard.has_changed().unwrap());
        let (ends, _) = streams.ended_after(0, &party("box-1", 1));
        let told = |link| {
            let news = ends.iter().filter(|ended| ended.is_news_over(link));
            news.map(|ended| ended.id.0).collect::<Vec<_>>()
        };
        assert_eq!(told(LinkId(7)), [2, 3]);
        assert_eq!(told(LinkId(8)), [1, 2, 3]);
    }
}
