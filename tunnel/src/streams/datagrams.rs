//! Datagrams of channels: each source of them is a flow, a stream with QUIC datagrams beside it.
//!
//! A datagram that fits goes as a QUIC datagram behind the flow's number: late ones are lost, never
//! repeated. They take their turns with all other bytes under the link's cap, and what cannot go within
//! [`TURN_WAIT`] is lost and counted: a flood harms itself only. One that does not fit goes over the stream behind its length, and arrives. The stream
//! resumes like any other, so a flow outlives its link, and what is sent meanwhile is lost as it would be
//! on a wire.

mod connected;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::net::UdpSocket;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, timeout};
use towpath_daemon::shutdown::Shutdown;
use towpath_protocol::channel::StreamId;
use towpath_protocol::fault::{Code, Fault};

use crate::channels::{ChannelSpec, Place, Serving};
use crate::core::Core;
use crate::links::link::Link;
use crate::links::peer::Peer;
use crate::streams::local::Begun;
use crate::streams::table::{Call, Stream};

pub(crate) use connected::Connected;

/// Largest datagram: what UDP over IPv6 carries, and 20 bytes more than over IPv4.
const DATAGRAM_BYTES_MAX: usize = 65_527;

/// Bytes of a flow's number before each datagram.
const NUMBER_BYTES: usize = 8;

/// Datagrams that wait in one flow and direction; more are lost, as in a full socket.
const WAITING_MAX: usize = 256;

/// Bytes of the datagrams of a program that wait in one flow: more than twice what the system gives a socket, and all of
/// [`WAITING_MAX`] datagrams of a packet.
const WAITING_BYTES_MAX: usize = 512 * 1024;

/// The same in all flows of a listener: any local program may be as many sources as a channel has places, and could
/// otherwise have gigabytes wait. As much as eight full flows.
const LISTENER_BYTES_MAX: usize = 8 * WAITING_BYTES_MAX;

/// What may wait in a flow beside that, so that a few full ones leave the others theirs: ten packets, or some words of
/// a meeting. 4 MiB of 256 sources.
const OWN_BYTES_MAX: usize = 16 * 1024;

/// A flow that has carried nothing for so long is over: what home routers give UDP.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// The same for one that has carried a question or two, answered or not, while few streams are left: programs that look
/// up names ask the next one from another port, devices that log say a line a minute, and each flow holds a stream. The
/// source's next datagram begins another flow.
const BRIEF_IDLE_MAX: Duration = Duration::from_secs(5);

/// Questions after which a flow is taken to go on: a resolver asks for addresses of both kinds at once.
const QUESTION_COUNT_MAX: u64 = 2;

/// How long the flow that is silent longest must have been so before it makes room for another source.
const SILENCE_MIN: Duration = Duration::from_secs(1);

/// How long a datagram waits for its turn under a cap: what is older is late.
const TURN_WAIT: Duration = Duration::from_millis(50);

/// How long the end of a flow may take to be heard.
const CLOSE_WAIT: Duration = Duration::from_secs(5);

/// How long answers may come the way that a channel led before.
const LEAVE_WAIT: Duration = Duration::from_secs(5);

/// Bytes of large datagrams that wait for the stream.
const PIPE_BYTES: usize = 256 * 1024;

/// The flows with one peer, by number.
#[derive(Debug, Clone, Default)]
pub(crate) struct DatagramFlows(Arc<Mutex<BTreeMap<u64, mpsc::Sender<Bytes>>>>);

/// A flow that is there until it is dropped: what comes for it waits here.
#[derive(Debug)]
pub(crate) struct Registered {
    flows: DatagramFlows,
    number: u64,
    heard: mpsc::Receiver<Bytes>,
}

impl DatagramFlows {
    /// Has the datagrams of a stream's flow heard from now on: its first may come right behind the word that it is open.
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

    /// Hands a datagram of the peer's to its flow; what belongs to none is dropped.
    pub(crate) fn deliver(&self, mut datagram: Bytes) {
        let Some((number, _)) = datagram.split_first_chunk::<NUMBER_BYTES>() else {
            return;
        };
        let number = u64::from_le_bytes(*number);
        let _ = datagram.split_to(NUMBER_BYTES);
        if let Some(flow) = self.flows().get(&number) {
            // A full queue loses it.
            let _ = flow.try_send(datagram);
        }
    }

    fn flows(&self) -> MutexGuard<'_, BTreeMap<u64, mpsc::Sender<Bytes>>> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.flows.flows().remove(&self.number);
    }
}

/// The part of a stream's number that goes before its datagrams: as good as random.
fn number_of(stream: StreamId) -> u64 {
    u64::try_from(stream.0 >> 64).unwrap_or(u64::MAX)
}

/// Room for the bytes of datagrams that wait.
#[derive(Debug, Clone)]
struct Room(Arc<Semaphore>);

impl Room {
    fn new(bytes_max: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes_max)))
    }

    /// Whether so much is there.
    fn has(&self, bytes: usize) -> bool {
        self.0.available_permits() >= bytes
    }

    /// Takes so much, if it is there, until the answer is dropped.
    fn take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let bytes = u32::try_from(bytes).ok()?;
        Arc::clone(&self.0).try_acquire_many_owned(bytes).ok()
    }
}

/// A program's datagram, and the room it takes while it waits.
#[derive(Debug)]
pub(crate) struct Waiting {
    bytes: Bytes,
    rooms: [Option<OwnedSemaphorePermit>; 2],
}

impl Waiting {
    /// One that takes no room yet.
    const fn new(bytes: Bytes) -> Self {
        Self {
            bytes,
            rooms: [None, None],
        }
    }

    /// Nothing if its flow's room is full, or both its flow's own part and what is for all: then it is lost.
    fn within(bytes: Bytes, flow: &Room, [own, all]: [&Room; 2]) -> Option<Self> {
        let count = bytes.len();
        let part = own.take(count).or_else(|| all.take(count));
        let rooms = [Some(flow.take(count)?), Some(part?)];
        Some(Self { bytes, rooms })
    }

    /// The same in one room, unless it has come with its own.
    fn or_within(mut self, room: &Room) -> Option<Self> {
        if self.rooms[0].is_none() {
            self.rooms[0] = Some(room.take(self.bytes.len())?);
        }
        Some(self)
    }
}

/// Where a flow's datagrams come from and go to on this host.
pub(crate) trait Side {
    /// The next one; none if no more will come.
    ///
    /// # Errors
    ///
    /// Why the flow is of no use.
    fn next(&mut self) -> impl Future<Output = Result<Option<Waiting>, Fault>> + Send;
    /// Hands one on; lost if that would mean to wait.
    fn hand(&mut self, datagram: &[u8]);
    /// Whether others may soon want the flow's stream.
    fn has_few(&self) -> bool;
}

/// Carries a flow until it is idle or its stream ends.
///
/// # Errors
///
/// Why its stream was cut off.
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
        // The peer hears of it as of any stream that is cut off. Fails only beside other calls, which end it as well.
        let _ = stream.call(Call::Cut(fault));
    }
    // Otherwise the pipe is closed now, and with it the stream ends as it should.
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

    /// Carries datagrams both ways until none has come for long enough, or no more will.
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
                    // Streams may have become few, or not yet.
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
                    // It came over the stream, which has counted it.
                    side.hand(&datagram);
                    None
                }
            };
            carried = Instant::now();
            // Without a link it is lost.
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

    /// Whether a datagram can go as one.
    fn fits(&self, link: &Link, datagram: &Bytes) -> bool {
        let connection = link.connection(self.stream.class.leg());
        let most = connection.max_datagram_size().unwrap_or(0);
        datagram.len() + NUMBER_BYTES <= most
    }

    /// Sends a datagram when it is its turn, unless that comes too late.
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
        // Where there is no room QUIC would drop older ones of any flow, and tell nobody.
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

/// How many datagrams have passed through a flow, seen from either side of it.
#[derive(Debug, Default)]
struct Passed {
    out: u64,
    back: u64,
}

impl Passed {
    /// How long the flow may carry nothing, by whether streams are few. Where more comes back than was asked the source
    /// has asked for more than an answer.
    fn idle_max(&self, has_few: bool) -> Duration {
        let is_brief = self.out <= QUESTION_COUNT_MAX && self.back <= self.out;
        if is_brief && has_few {
            BRIEF_IDLE_MAX
        } else {
            IDLE_MAX
        }
    }
}

/// Waits until a datagram that waits for its turn is done with, if there is one.
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
        // What is longer than two bytes tell was never a datagram.
        let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
        pipe.write_all(&length.to_le_bytes()).await?;
        pipe.write_all(&bytes[..length.into()]).await?;
        drop(rooms);
    }
    Ok(())
}

/// Reads datagrams until the other side's flow has ended, which may be within one.
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
        // A full queue loses it.
        let _ = whole.try_send(datagram.into());
    }
}

/// A channel's side: one source among those of a listening socket.
struct Source {
    serving: Serving,
    /// Gone with the listener: the address may be another channel's by then.
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
            // A full socket loses it.
            let _ = socket.try_send_to(datagram, self.address);
        }
    }

    fn has_few(&self) -> bool {
        self.serving.has_few()
    }
}

/// When a source was last heard or answered.
#[derive(Debug, Clone)]
struct LastHeard {
    began: Instant,
    /// Milliseconds after that.
    at: Arc<AtomicU64>,
}

impl LastHeard {
    fn now() -> Self {
        let (began, at) = (Instant::now(), Arc::default());
        Self { began, at }
    }

    fn note(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.at.store(now, Ordering::Relaxed);
    }

    fn silence(&self) -> Duration {
        let at = Duration::from_millis(self.at.load(Ordering::Relaxed));
        self.began.elapsed().saturating_sub(at)
    }
}

/// Where the datagrams of one source wait for its flow.
#[derive(Debug)]
struct Mailbox {
    inbox: mpsc::Sender<Waiting>,
    room: Room,
    /// The part of it that it need not ask the listener for.
    own: Room,
    seen: LastHeard,
}

impl Mailbox {
    /// Takes a datagram in; says whether there was room for it, here and at the listener.
    fn put(&self, datagram: Bytes, listener: &Room) -> bool {
        let waiting = Waiting::within(datagram, &self.room, [&self.own, listener]);
        waiting.is_some_and(|waiting| self.inbox.try_send(waiting).is_ok())
    }
}

/// Flows of the way that a channel led before: nothing is sent over them any more, and answers still come.
#[derive(Debug)]
struct Leaving {
    flows: HashMap<SocketAddr, Mailbox>,
    until: Instant,
}

/// The sources of a listening socket, as many as the channel has places.
#[derive(Debug)]
struct Sources {
    mailboxes: HashMap<SocketAddr, Mailbox>,
    leaving: Option<Leaving>,
    /// For all of them, beside what each has of its own.
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

    /// Hands a source's datagram to its flow, if that is still there; says whether there was room for it.
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

    /// Takes a source in whose first datagram this is, if there is room for that.
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

    /// From here on every source takes the new way. Those of the way before that are still leaving end.
    fn take_leave(&mut self) {
        self.leaving = Some(Leaving {
            flows: std::mem::take(&mut self.mailboxes),
            until: Instant::now() + LEAVE_WAIT,
        });
    }

    /// The same where no source is heard any more; says whether some may still be answered.
    fn take_leave_for_good(&mut self) -> bool {
        self.sweep();
        // Those that took leave a moment ago have not been answered either.
        if !self.mailboxes.is_empty() {
            self.take_leave();
        }
        self.leaving.is_some()
    }

    /// Waits until what is leaving is to be gone, and has it end.
    async fn have_left(&mut self) {
        match &self.leaving {
            Some(leaving) => tokio::time::sleep_until(leaving.until).await,
            None => std::future::pending().await,
        }
        self.leaving = None;
    }

    /// Forgets those whose flows have ended.
    fn sweep(&mut self) {
        self.mailboxes
            .retain(|_, mailbox| !mailbox.inbox.is_closed());
    }

    /// Lets go of what is leaving, or of the one that is silent longest, if that is long enough; its flow ends. Says
    /// whether it did.
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

/// Listens for a channel: each source of datagrams is a flow. When the channel leads elsewhere, sources
/// take the new way with their next datagram, and what was asked before is answered still: from here, if it only
/// listens elsewhere, until the second of the wishes to stop.
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

/// A channel's socket, and its sources.
struct Listening {
    serving: Serving,
    socket: Arc<UdpSocket>,
    sources: Sources,
    swept: Instant,
    /// When one was let go of whose place nobody has yet.
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

    /// Hands a datagram to its source's flow, or begins one with it.
    fn hear(&mut self, address: SocketAddr, datagram: Bytes) {
        if self.swept.elapsed() > IDLE_MAX {
            self.sources.sweep();
            self.swept = Instant::now();
        }
        match self.sources.hand(address, &datagram) {
            Some(true) => {}
            Some(false) => self.serving.count_dropped(),
            // Nobody makes room for one whose datagram is lost even so.
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

    /// A place for another source, if there is one; else the one that is silent longest may make room for the next.
    fn admit(&mut self) -> Option<Place> {
        let place = self.serving.place();
        // A flow takes a moment to end: until then others would be let go of for the same place.
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

    /// Begins the flow of a source with its first datagram, if there is room for that.
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

/// Carries the flow of a source to its end, or until the channel is closed.
async fn carry_source(mut source: Source, _place: Place) {
    let serving = source.serving.clone();
    let mut stop = serving.stop.clone();
    let carrying = async {
        let begun = serving.begin().await?;
        // Nobody answers before something is sent.
        let registered = begun.peer.datagrams.register(begun.entry.stream.id);
        let ended = carry(&serving.core, begun, registered, &mut source).await;
        match &ended {
            // No datagram was refused, answered or not.
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
