//! Datagrams of channels: each source address is a flow, which is a stream accompanied by QUIC
//! datagrams.
//!
//! A datagram that fits is sent as a QUIC datagram behind the flow's number; if it is lost, it is
//! not repeated. Datagrams take turns with all other bytes under the link's cap. One that gets no
//! turn within [`TURN_WAIT`] is dropped and counted, so a flood harms only itself. A datagram that
//! does not fit is sent over the stream behind its length, and arrives reliably. The stream resumes
//! like any other, so a flow outlives its link; datagrams sent while there is no link are lost, as
//! on a wire.

mod connected;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::{Mutex, MutexGuard};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::net::UdpSocket;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, timeout};
use towpath_daemon::shutdown::Shutdown;
use towpath_protocol::amounts::millis;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::preamble::StreamId;

use crate::channels::{ChannelSpec, Place, Serving};
use crate::core::Core;
use crate::links::link::Link;
use crate::links::peer::Peer;
use crate::streams::local::Begun;
use crate::streams::table::{Call, Stream};

pub(crate) use connected::Connected;

/// Largest datagram in bytes: the maximum of UDP over IPv6, 20 bytes more than over IPv4.
const DATAGRAM_BYTES_MAX: usize = 65_527;

/// Bytes of the flow's number before each datagram.
const NUMBER_BYTES: usize = 8;

/// Datagrams that may wait per flow and direction; more are dropped, as by a full socket.
const WAITING_MAX: usize = 256;

/// Bytes of a program's datagrams that may wait in one flow. This is more than twice a socket's
/// default buffer, and room for [`WAITING_MAX`] datagrams of one packet each.
const WAITING_BYTES_MAX: usize = 512 * 1024;

/// Bytes that may wait in all flows of a listener together: as much as eight full flows. A local
/// program may use as many source addresses as a channel has places, and without this limit could
/// make gigabytes wait.
const LISTENER_BYTES_MAX: usize = 8 * WAITING_BYTES_MAX;

/// Bytes that may wait in each flow in addition, so that a few full flows leave room for the
/// others: ten packets, or a few spoken words of a call. 4 MiB for 256 sources.
const OWN_BYTES_MAX: usize = 16 * 1024;

/// Idle time after which a flow ends: what home routers allow UDP.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// Idle time for a flow that has carried only a question or two, answered or not, while few streams
/// are left. Programs that look up names send each question from another port, and devices that log
/// send a line a minute; each such flow holds a stream. The source's next datagram begins a new
/// flow.
const BRIEF_IDLE_MAX: Duration = Duration::from_secs(5);

/// Datagrams sent up to which a flow counts as brief: a resolver asks for both kinds of addresses
/// at once.
const QUESTION_COUNT_MAX: u64 = 2;

/// Silence after which the longest silent flow may be ended to make room for another source.
const SILENCE_MIN: Duration = Duration::from_secs(1);

/// How long a datagram waits for its turn under a cap; it is dropped after that, since it would be
/// late.
const TURN_WAIT: Duration = Duration::from_millis(50);

/// How long to wait for a flow's stream to end properly.
const CLOSE_WAIT: Duration = Duration::from_secs(5);

/// How long answers are still accepted from the service that a channel led to before.
const LEAVE_WAIT: Duration = Duration::from_secs(5);

/// Bytes of large datagrams buffered for the stream.
const PIPE_BYTES: usize = 256 * 1024;

/// The flows with one peer, by flow number.
#[derive(Debug, Clone, Default)]
pub(crate) struct DatagramFlows(Arc<Mutex<BTreeMap<u64, mpsc::Sender<Bytes>>>>);

/// A registered flow: receives its datagrams. Dropping it removes the flow.
#[derive(Debug)]
pub(crate) struct Registered {
    flows: DatagramFlows,
    number: u64,
    heard: mpsc::Receiver<Bytes>,
}

impl DatagramFlows {
    /// Registers a stream's flow. Done before the flow is used, because the peer's first datagram
    /// may arrive right behind the message that opened the stream.
    pub(crate) fn register(&self, stream: StreamId) -> Registered {
        let (mailbox, heard) = mpsc::channel(WAITING_MAX);
        let number = number_of(stream);
        self.flows().insert(number, mailbox);
        Registered {
            flows: self.clone(),
            number,
            heard,
        }
    }

    /// Delivers a peer's datagram to its flow; a datagram of an unknown flow is dropped.
    pub(crate) fn deliver(&self, mut datagram: Bytes) {
        let Some((number, _)) = datagram.split_first_chunk::<NUMBER_BYTES>() else {
            return;
        };
        let number = u64::from_le_bytes(*number);
        let _ = datagram.split_to(NUMBER_BYTES);
        if let Some(flow) = self.flows().get(&number) {
            // Dropped if the queue is full.
            let _ = flow.try_send(datagram);
        }
    }

    fn flows(&self) -> MutexGuard<'_, BTreeMap<u64, mpsc::Sender<Bytes>>> {
        self.0.lock()
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.flows.flows().remove(&self.number);
    }
}

/// The flow number: the upper half of the stream's random number.
fn number_of(stream: StreamId) -> u64 {
    u64::try_from(stream.0 >> 64).unwrap_or(u64::MAX)
}

/// Limits the bytes of waiting datagrams.
#[derive(Debug, Clone)]
struct Room(Arc<Semaphore>);

impl Room {
    fn new(bytes_max: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes_max)))
    }

    /// Whether so many bytes are free.
    fn has(&self, bytes: usize) -> bool {
        self.0.available_permits() >= bytes
    }

    /// Takes so many bytes, if they are free, until the permit is dropped.
    fn take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let bytes = u32::try_from(bytes).ok()?;
        Arc::clone(&self.0).try_acquire_many_owned(bytes).ok()
    }
}

/// A program's datagram, with the permits for the room it takes while it waits.
#[derive(Debug)]
pub(crate) struct Waiting {
    bytes: Bytes,
    rooms: [Option<OwnedSemaphorePermit>; 2],
}

impl Waiting {
    /// Creates a datagram that takes no room yet.
    const fn new(bytes: Bytes) -> Self {
        Self {
            bytes,
            rooms: [None, None],
        }
    }

    /// Takes room for a datagram in its flow, and in the flow's own part or else the part shared by
    /// all. `None` if there is no room; the datagram is then dropped.
    fn within(bytes: Bytes, flow: &Room, [own, all]: [&Room; 2]) -> Option<Self> {
        let count = bytes.len();
        let part = own.take(count).or_else(|| all.take(count));
        let rooms = [Some(flow.take(count)?), Some(part?)];
        Some(Self { bytes, rooms })
    }

    /// Takes room here, unless the datagram already holds some.
    fn or_within(mut self, room: &Room) -> Option<Self> {
        if self.rooms[0].is_none() {
            self.rooms[0] = Some(room.take(self.bytes.len())?);
        }
        Some(self)
    }
}

/// The local end of a flow: where its datagrams come from and go to on this host.
pub(crate) trait Side {
    /// Returns the program's next datagram; `None` if no more will come.
    ///
    /// # Errors
    ///
    /// Why the flow cannot be used.
    fn next(&mut self) -> impl Future<Output = Result<Option<Waiting>, Fault>> + Send;
    /// Passes a datagram to the program, without waiting; it is dropped if the socket is full.
    fn hand(&mut self, datagram: &[u8]);
    /// Whether streams are few, so that others may soon need the flow's stream.
    fn has_few(&self) -> bool;
}

/// Carries a flow until it is idle or its stream ends.
///
/// # Errors
///
/// Why the flow's stream was cut off.
pub(crate) async fn carry(
    core: &Core,
    begun: Begun,
    registered: Registered,
    side: &mut impl Side,
) -> Result<(), Fault> {
    let (peer, stream) = (Arc::clone(&begun.peer), Arc::clone(&begun.entry.stream));
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    let (pipe_read, pipe_write) = tokio::io::split(ours);
    let flow = DatagramFlow {
        peer: &peer,
        stream: &stream,
        number: registered.number,
    };
    let mut living = pin!(begun.live(core, tokio::io::split(theirs)));
    let ran = tokio::select! {
        ended = &mut living => return ended,
        ran = flow.run(registered, pipe_read, pipe_write, side) => ran,
    };
    if let Err(fault) = ran {
        // The peer is told, as with any stream that is cut off. The call fails only if others are
        // queued, and they end the stream as well.
        let _ = stream.call(Call::Cut(fault));
    }
    // The pipe is closed now, which ends the stream properly.
    timeout(CLOSE_WAIT, living).await.unwrap_or(Ok(()))
}

struct DatagramFlow<'a> {
    peer: &'a Peer,
    stream: &'a Stream,
    number: u64,
}

impl DatagramFlow<'_> {
    async fn run(
        &self,
        registered: Registered,
        pipe_read: ReadHalf<DuplexStream>,
        pipe_write: WriteHalf<DuplexStream>,
        side: &mut impl Side,
    ) -> Result<(), Fault> {
        let (large, large_waiting) = mpsc::channel(WAITING_MAX);
        let (whole, whole_heard) = mpsc::channel(WAITING_MAX);
        let unwritable =
            |error: std::io::Error| Fault::new(Code::Framing, format!("datagrams: {error}"));
        tokio::select! {
            ended = self.pump((registered, whole_heard), &large, side) => ended,
            ended = write_framed(pipe_write, large_waiting) => ended.map_err(unwritable),
            () = read_framed(pipe_read, whole) => Ok(()),
        }
    }

    /// Carries datagrams both ways until the flow is idle for too long, or no more will come.
    async fn pump(
        &self,
        (mut registered, mut whole): (Registered, mpsc::Receiver<Bytes>),
        large: &mpsc::Sender<Waiting>,
        side: &mut impl Side,
    ) -> Result<(), Fault> {
        let room = Room::new(WAITING_BYTES_MAX);
        let mut turn = pin!(None);
        let (mut passed, mut carried) = (Passed::default(), Instant::now());
        loop {
            let is_free = turn.is_none();
            let next = tokio::select! {
                () = taken(turn.as_mut()) => {
                    turn.set(None);
                    None
                }
                next = timeout(BRIEF_IDLE_MAX, side.next()), if is_free => match next {
                    Ok(Ok(Some(waiting))) => {
                        passed.out += 1;
                        Some(waiting)
                    }
                    Ok(Err(fault)) => return Err(fault),
                    // The flow is checked again later: streams may have become few by then.
                    Err(_) if carried.elapsed() < passed.idle_max(side.has_few()) => continue,
                    _ => return Ok(()),
                },
                Some(datagram) = registered.heard.recv() => {
                    passed.back += 1;
                    self.hand(side, &datagram);
                    None
                }
                Some(datagram) = whole.recv() => {
                    passed.back += 1;
                    // The stream has counted its bytes already.
                    side.hand(&datagram);
                    None
                }
            };
            carried = Instant::now();
            // Without a link the datagram is dropped.
            let Some((waiting, link)) = next.zip(self.peer.link().ok()) else {
                continue;
            };
            if self.fits(&link, &waiting.bytes) {
                turn.set(Some(self.send(link, waiting.bytes)));
                continue;
            }
            let kept = waiting.or_within(&room);
            if kept.is_none_or(|kept| large.try_send(kept).is_err()) {
                self.count_dropped();
            }
        }
    }

    fn hand(&self, side: &mut impl Side, datagram: &[u8]) {
        let bytes = datagram.len() as u64;
        self.peer.counters.add_received(self.stream.class, bytes);
        self.stream.count_received(bytes);
        side.hand(datagram);
    }

    /// Whether a datagram fits a QUIC datagram.
    fn fits(&self, link: &Link, datagram: &Bytes) -> bool {
        let connection = link.connection(self.stream.class.leg());
        let most = connection.max_datagram_size().unwrap_or(0);
        datagram.len() + NUMBER_BYTES <= most
    }

    /// Sends a datagram when its turn comes, or drops it if that takes too long.
    async fn send(&self, link: Arc<Link>, datagram: Bytes) {
        let class = self.stream.class;
        let mut whole = BytesMut::with_capacity(NUMBER_BYTES + datagram.len());
        whole.put_u64_le(self.number);
        whole.extend_from_slice(&datagram);
        let wanted = whole.len() as u64;
        let since = Instant::now();
        let mut backlog = self.stream.backlog(&link.pace);
        let mut granted = 0;
        let turn = async {
            while granted < wanted {
                granted += backlog.grant(wanted - granted).await;
            }
        };
        let is_in_time = timeout(TURN_WAIT, turn).await.is_ok();
        let connection = link.connection(class.leg());
        // Without room, quinn would silently drop older datagrams of any flow.
        let is_room = connection.datagram_send_buffer_space() >= whole.len();
        if is_in_time && is_room && connection.send_datagram(whole.freeze()).is_ok() {
            let bytes = datagram.len() as u64;
            self.peer.counters.add_sent(class, bytes);
            self.peer.counters.add_wait(class, since.elapsed());
            self.stream.count_sent(bytes);
        } else {
            backlog.give_back(granted);
            self.count_dropped();
        }
    }

    fn count_dropped(&self) {
        self.peer.counters.add_dropped(self.stream.class);
        self.stream.meter.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

/// Counts the datagrams of a flow: `out` from the local side, `back` to it.
#[derive(Debug, Default)]
struct Passed {
    out: u64,
    back: u64,
}

impl Passed {
    /// How long the flow may be idle, by whether streams are few. If more datagrams came back than
    /// went out, the exchange is more than a question and its answer.
    fn idle_max(&self, has_few: bool) -> Duration {
        let is_brief = self.out <= QUESTION_COUNT_MAX && self.back <= self.out;
        if is_brief && has_few {
            BRIEF_IDLE_MAX
        } else {
            IDLE_MAX
        }
    }
}

/// Waits until the pending datagram has been sent or dropped; for ever if there is none.
async fn taken(turn: Pin<&mut Option<impl Future<Output = ()>>>) {
    match turn.as_pin_mut() {
        Some(turn) => turn.await,
        None => std::future::pending().await,
    }
}

async fn write_framed(
    mut pipe: WriteHalf<DuplexStream>,
    mut waiting: mpsc::Receiver<Waiting>,
) -> std::io::Result<()> {
    while let Some(Waiting { bytes, rooms }) = waiting.recv().await {
        // A length above two bytes cannot occur: no datagram is that long.
        let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
        pipe.write_all(&length.to_le_bytes()).await?;
        pipe.write_all(&bytes[..length.into()]).await?;
        drop(rooms);
    }
    Ok(())
}

/// Reads datagrams until the peer's side of the flow ends, which may be in the middle of a
/// datagram.
async fn read_framed(mut pipe: ReadHalf<DuplexStream>, whole: mpsc::Sender<Bytes>) {
    loop {
        let mut length = [0; 2];
        if pipe.read_exact(&mut length).await.is_err() {
            return;
        }
        let mut datagram = vec![0; u16::from_le_bytes(length).into()];
        if pipe.read_exact(&mut datagram).await.is_err() {
            return;
        }
        // Dropped if the queue is full.
        let _ = whole.try_send(datagram.into());
    }
}

/// The channel's end of a flow: one source address of a listening socket.
struct Source {
    serving: Serving,
    /// Weak, so that the socket goes with its listener: the address may belong to another channel
    /// by then.
    socket: Weak<UdpSocket>,
    address: SocketAddr,
    heard: mpsc::Receiver<Waiting>,
    seen: LastHeard,
    is_answered: bool,
}

impl Side for Source {
    async fn next(&mut self) -> Result<Option<Waiting>, Fault> {
        Ok(self.heard.recv().await)
    }

    fn hand(&mut self, datagram: &[u8]) {
        self.seen.note();
        if !self.is_answered {
            self.is_answered = true;
            self.serving.note_served();
        }
        if let Some(socket) = self.socket.upgrade() {
            // Dropped if the socket is full.
            let _ = socket.try_send_to(datagram, self.address);
        }
    }

    fn has_few(&self) -> bool {
        self.serving.has_few()
    }
}

/// When a source last sent or received a datagram.
#[derive(Debug, Clone)]
struct LastHeard {
    began: Instant,
    /// Milliseconds since `began`.
    at: Arc<AtomicU64>,
}

impl LastHeard {
    fn now() -> Self {
        let (began, at) = (Instant::now(), Arc::default());
        Self { began, at }
    }

    fn note(&self) {
        self.at
            .store(millis(self.began.elapsed()), Ordering::Relaxed);
    }

    fn silence(&self) -> Duration {
        let at = Duration::from_millis(self.at.load(Ordering::Relaxed));
        self.began.elapsed().saturating_sub(at)
    }
}

/// Queue of one source's datagrams for its flow.
#[derive(Debug)]
struct Mailbox {
    inbox: mpsc::Sender<Waiting>,
    room: Room,
    /// The source's own part, on top of the room shared by the listener's sources.
    own: Room,
    seen: LastHeard,
}

impl Mailbox {
    /// Queues a datagram; returns whether there was room, in the flow and at the listener.
    fn put(&self, datagram: Bytes, listener: &Room) -> bool {
        let waiting = Waiting::within(datagram, &self.room, [&self.own, listener]);
        waiting.is_some_and(|waiting| self.inbox.try_send(waiting).is_ok())
    }
}

/// Flows to the service that the channel led to before: nothing more is sent over them, but answers
/// are still accepted.
#[derive(Debug)]
struct Leaving {
    flows: HashMap<SocketAddr, Mailbox>,
    until: Instant,
}

/// The sources of a listening socket, at most as many as the channel has places.
#[derive(Debug)]
struct Sources {
    mailboxes: HashMap<SocketAddr, Mailbox>,
    leaving: Option<Leaving>,
    /// Room shared by all sources, on top of each source's own part.
    room: Room,
}

impl Sources {
    fn new() -> Self {
        Self {
            mailboxes: HashMap::new(),
            leaving: None,
            room: Room::new(LISTENER_BYTES_MAX),
        }
    }

    /// Queues a datagram for its source's flow. Returns whether there was room, or `None` if there
    /// is no such flow any more.
    fn hand(&self, address: SocketAddr, datagram: &Bytes) -> Option<bool> {
        let mailbox = self.mailboxes.get(&address)?;
        mailbox.seen.note();
        let is_there = !mailbox.inbox.is_closed();
        is_there.then(|| mailbox.put(datagram.clone(), &self.room))
    }

    /// Whether there is room for the first datagram of another source.
    fn has_room(&self, first: &Bytes) -> bool {
        first.len() <= OWN_BYTES_MAX || self.room.has(first.len())
    }

    /// Adds a source with its first datagram, if there is room for that.
    fn add(
        &mut self,
        address: SocketAddr,
        first: Bytes,
    ) -> Option<(mpsc::Receiver<Waiting>, LastHeard)> {
        let ((inbox, heard), seen) = (mpsc::channel(WAITING_MAX), LastHeard::now());
        let mailbox = Mailbox {
            inbox,
            room: Room::new(WAITING_BYTES_MAX),
            own: Room::new(OWN_BYTES_MAX),
            seen: seen.clone(),
        };
        let is_in = mailbox.put(first, &self.room);
        is_in.then(|| {
            self.mailboxes.insert(address, mailbox);
            (heard, seen)
        })
    }

    /// Makes every source begin a new flow, to the channel's new service, with its next datagram.
    /// Flows that were already leaving end.
    fn take_leave(&mut self) {
        self.leaving = Some(Leaving {
            flows: std::mem::take(&mut self.mailboxes),
            until: Instant::now() + LEAVE_WAIT,
        });
    }

    /// Makes all flows leave, for a listener that reads no more; returns whether some may still be
    /// answered.
    fn take_leave_for_good(&mut self) -> bool {
        self.sweep();
        // Flows that began to leave a moment ago may still be answered too, so they are kept if
        // there is nothing newer.
        if !self.mailboxes.is_empty() {
            self.take_leave();
        }
        self.leaving.is_some()
    }

    /// Waits until the time of the leaving flows is up, and ends them.
    async fn have_left(&mut self) {
        match &self.leaving {
            Some(leaving) => tokio::time::sleep_until(leaving.until).await,
            None => std::future::pending().await,
        }
        self.leaving = None;
    }

    /// Forgets sources whose flows have ended.
    fn sweep(&mut self) {
        self.mailboxes
            .retain(|_, mailbox| !mailbox.inbox.is_closed());
    }

    /// Ends the leaving flows, or else the flow that is silent longest if its silence is at least
    /// [`SILENCE_MIN`]. Returns whether a flow was ended.
    fn make_room(&mut self) -> bool {
        self.sweep();
        let leaving = self.leaving.take();
        if leaving.is_some_and(|leaving| leaving.flows.values().any(|one| !one.inbox.is_closed())) {
            return true;
        }
        let mailboxes = self.mailboxes.iter();
        let silent = mailboxes.map(|(address, mailbox)| (mailbox.seen.silence(), *address));
        match silent.max() {
            Some((silence, address)) if silence >= SILENCE_MIN => {
                self.mailboxes.remove(&address).is_some()
            }
            _ => false,
        }
    }
}

/// Listens for a channel's datagrams: each source is a flow. If the channel is changed to lead
/// elsewhere, sources begin new flows with their next datagrams, and answers to earlier questions
/// are still accepted. If the channel only moves to another address, answers still go out from this
/// socket for [`LEAVE_WAIT`], or until `leave`, the second of the two shutdown signals.
pub(crate) async fn listen(
    serving: Serving,
    socket: UdpSocket,
    (mut stop, mut leave): (Shutdown, Shutdown),
) {
    let (mut all, mut spec) = (serving.stop.clone(), serving.spec());
    let way = |spec: &ChannelSpec| (spec.peer.clone(), spec.service.clone(), spec.class);
    let mut then = way(&spec.borrow_and_update());
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX].into_boxed_slice();
    let mut listening = Listening::new(serving, socket);
    loop {
        let received = tokio::select! {
            () = stop.requested() => break,
            () = all.requested() => return,
            _ = spec.changed() => {
                let now = way(&spec.borrow_and_update());
                if now != then {
                    listening.sources.take_leave();
                    then = now;
                }
                continue;
            }
            () = listening.sources.have_left() => continue,
            received = listening.socket.recv_from(&mut buffer) => received,
        };
        if let Ok((count, address)) = received {
            listening.hear(address, Bytes::copy_from_slice(&buffer[..count]));
        }
    }
    let sources = &mut listening.sources;
    if sources.take_leave_for_good() {
        tokio::select! {
            () = leave.requested() => {}
            () = all.requested() => {}
            () = sources.have_left() => {}
        }
    }
}

/// A channel's socket and its sources.
struct Listening {
    serving: Serving,
    socket: Arc<UdpSocket>,
    sources: Sources,
    swept: Instant,
    /// When a flow was ended to make room, until its place is taken.
    made_room: Option<Instant>,
}

impl Listening {
    fn new(serving: Serving, socket: UdpSocket) -> Self {
        Self {
            serving,
            socket: Arc::new(socket),
            sources: Sources::new(),
            swept: Instant::now(),
            made_room: None,
        }
    }

    /// Queues a datagram for its source's flow, or begins a flow with it.
    fn hear(&mut self, address: SocketAddr, datagram: Bytes) {
        if self.swept.elapsed() > IDLE_MAX {
            self.sources.sweep();
            self.swept = Instant::now();
        }
        match self.sources.hand(address, &datagram) {
            Some(true) => {}
            Some(false) => self.serving.count_dropped(),
            // No flow is ended for a datagram that would be dropped anyway.
            None if !self.sources.has_room(&datagram) => self.serving.count_dropped(),
            None => match self.admit() {
                Some(place) => self.begin_flow(place, address, datagram),
                None => {
                    let fault = Fault::new(Code::Busy, "too many sources of datagrams");
                    self.serving.note(&fault);
                }
            },
        }
    }

    /// Takes a place for another source, if one is free. If not, the longest silent source may be
    /// removed to make room for the next datagram.
    fn admit(&mut self) -> Option<Place> {
        let place = self.serving.place();
        // A flow takes a moment to end; until then no further flow is ended for the same place.
        let is_awaited = |at: &Instant| place.is_none() && at.elapsed() < CLOSE_WAIT;
        self.made_room = self.made_room.filter(is_awaited);
        let is_full = place.is_none() || self.serving.is_short();
        let has_made =
            is_full && self.made_room.is_none() && self.sources.make_room() && place.is_none();
        if has_made {
            self.made_room = Some(Instant::now());
        }
        place
    }

    /// Begins a source's flow with its first datagram, if there is room for that.
    fn begin_flow(&mut self, place: Place, address: SocketAddr, first: Bytes) {
        let Some((heard, seen)) = self.sources.add(address, first) else {
            self.serving.count_dropped();
            return;
        };
        let source = Source {
            serving: self.serving.clone(),
            socket: Arc::downgrade(&self.socket),
            address,
            heard,
            seen,
            is_answered: false,
        };
        tokio::spawn(carry_source(source, place));
    }
}

/// Carries a source's flow to its end, or until the channel is closed.
async fn carry_source(mut source: Source, _place: Place) {
    let serving = source.serving.clone();
    let mut stop = serving.stop.clone();
    let carrying = async {
        let begun = serving.begin().await?;
        // Registering now is early enough: nobody answers before something is sent.
        let registered = begun.peer.datagrams.register(begun.entry.stream.id);
        let ended = carry(&serving.core, begun, registered, &mut source).await;
        match &ended {
            // No datagram was refused, whether or not any was answered.
            Ok(()) => serving.note_served(),
            Err(fault) => serving.note_refusal(fault),
        }
        ended
    };
    let ended = tokio::select! {
        () = stop.requested() => Ok(()),
        ended = carrying => ended,
    };
    if let Err(fault) = ended {
        serving.note(&fault);
    }
}

#[cfg(test)]
mod tests;
