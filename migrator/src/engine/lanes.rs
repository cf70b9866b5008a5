//! Opens the lanes of a move and runs the threads that read them.

use std::net::Shutdown;
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

use towpath_daemon::stream::{self, open_stream};
use towpath_protocol::class::Class;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::{HostIdentity, Name};
use towpath_protocol::message::{ChunkHeader, Codec, Hello, Lane, Message};
use towpath_protocol::preamble::Open;
use towpath_protocol::source::FREEZE_DEADLINE;
use towpath_protocol::space::Geometry;
use towpath_protocol::version::Speaker;

use super::greeting::migrator_name;
use super::input::Input;
use super::mailbox::Mailbox;
use crate::codec::Decoder;
use crate::lane::{FRAME_BUFFER_BYTES, Incoming, LaneReader, LaneWriter, WRITE_WAIT_MAX};

/// The service name under which migrators reach each other.
pub const SERVICE: &str = "migrator";

/// Longest wait for a lane to open. The tunnel answers at once if the peer is away, else within a
/// few round trips.
const OPEN_WAIT_MAX: Duration = Duration::from_secs(5);

/// Interval at which an idle reader checks whether its lane was closed.
pub(super) const IDLE_WAIT: Duration = Duration::from_secs(60);

/// How long closed lanes are still read while the peer keeps sending. The last message takes a few
/// round trips to arrive, and a peer that received it closes the lanes too.
const CLOSED_WAIT: Duration = Duration::from_secs(5);

/// Chunks that may collect before the worker is woken for all of them. Half of
/// [`UNPACKED_CHUNKS_MAX`], so that the worker can install some while others are read.
const CHUNKS_TOGETHER_MAX: usize = UNPACKED_CHUNKS_MAX / 2;

/// Chunks per lane that are unpacked and not yet installed: 3 MiB of buffers, each large enough for
/// a frame.
const UNPACKED_CHUNKS_MAX: usize = 32;

/// Free buffers needed before a reader waiting for one is woken; woken for every buffer, it would
/// go back to sleep as often. A sleeping reader holds fewer than [`CHUNKS_TOGETHER_MAX`] chunks
/// itself, so the worker holds at least this many buffers and will free them.
const FREE_BUFFERS_MIN: usize = UNPACKED_CHUNKS_MAX / 4;

const _: () = assert!(FREE_BUFFERS_MIN <= UNPACKED_CHUNKS_MAX - CHUNKS_TOGETHER_MAX);

/// The writing ends of one set of lanes, and the sockets to close them all.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) number: u64,
    pub(super) control: LaneWriter<UnixStream>,
    pub(super) switch: LaneWriter<UnixStream>,
    pub(super) demand: LaneWriter<UnixStream>,
    /// At the source, the outbox takes this lane.
    pub(super) bulk: Option<LaneWriter<UnixStream>>,
    sockets: Vec<(Lane, UnixStream)>,
    /// When the lanes were closed, if they were.
    closed_at: Arc<OnceLock<Instant>>,
}

impl Link {
    /// Sends one message at once.
    pub(super) fn send(&mut self, lane: Lane, message: &Message) -> Result<(), Fault> {
        let writer = match lane {
            Lane::Control => &mut self.control,
            Lane::Switch => &mut self.switch,
            Lane::Demand => &mut self.demand,
            Lane::Bulk => {
                return Err(Fault::new(
                    Code::State,
                    "messages do not go on the bulk lane",
                ));
            }
        };
        writer.write_message(message)?;
        writer.flush()
    }

    /// As [`Link::send`], but waits at most `wait`: for a peer that nothing here depends on.
    pub(super) fn send_within(
        &mut self,
        lane: Lane,
        message: &Message,
        wait: Duration,
    ) -> Result<(), Fault> {
        self.bound(lane, wait)?;
        let sent = self.send(lane, message);
        self.bound(lane, FREEZE_DEADLINE)?;
        sent
    }

    /// Sets the longest time that writes to a lane may take.
    fn bound(&self, lane: Lane, wait: Duration) -> Result<(), Fault> {
        let socket = self.sockets.iter().find(|(one, _)| *one == lane);
        let bound = socket.map_or(Ok(()), |(_, socket)| socket.set_write_timeout(Some(wait)));
        bound.map_err(|error| Fault::new(Code::Io, format!("a lane's socket: {error}")))
    }

    /// Closes all lanes. Every thread that writes to them returns at once, and every thread that
    /// reads them returns soon.
    ///
    /// The last message on the control lane must still arrive, so only its writing side is shut
    /// down; what comes in is read and dropped until the peer closes as well. If both sides were
    /// shut down, the tunnel would find nobody to take the peer's bytes and would reset the stream,
    /// losing that message.
    pub(super) fn close(&self) {
        self.closed_at.get_or_init(Instant::now);
        for (lane, socket) in &self.sockets {
            let how = match lane {
                Lane::Control => Shutdown::Write,
                Lane::Bulk | Lane::Switch | Lane::Demand => Shutdown::Both,
            };
            // A socket that is already closed needs nothing more.
            drop(socket.shutdown(how));
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.close();
    }
}

/// Longest wait for this host's tunnel to say whether new work may begin.
const TRUST_WAIT_MAX: Duration = Duration::from_secs(1);

/// Refuses a new move while the tunnel's revocation lists are stale (T12). Moves under way are not
/// checked: they finish.
///
/// A tunnel that does not answer is no reason to refuse: without it nothing reaches a peer anyway.
///
/// # Errors
///
/// `E_CRL_STALE`.
pub(super) fn check_trust(tunnel: &Path, site: &Name) -> Result<(), Fault> {
    match stream::check_trust(tunnel, site, TRUST_WAIT_MAX) {
        Err(fault) if fault.code == Code::CrlStale => Err(fault),
        _ => Ok(()),
    }
}

/// Asks the tunnel which host answers for a site's migrator.
///
/// # Errors
///
/// The tunnel's refusal: `E_UNREACHABLE`, `E_DENIED`, `E_NOT_FOUND`.
pub(super) fn introduce(tunnel: &Path, site: &Name) -> Result<HostIdentity, Fault> {
    let open = open_of(site, Lane::Control);
    open_stream(tunnel, &open, OPEN_WAIT_MAX).map(|(_, peer)| peer)
}

fn open_of(site: &Name, lane: Lane) -> Open {
    Open {
        peer: site.clone(),
        service: SERVICE.parse().expect("the service's name is a name"),
        class: class_of(lane),
    }
}

/// A lane whose greeting is complete.
#[derive(Debug)]
pub(super) struct OpenLane {
    pub(super) lane: Lane,
    pub(super) socket: UnixStream,
    pub(super) reader: LaneReader<UnixStream>,
}

impl OpenLane {
    fn writer(&self) -> Result<LaneWriter<UnixStream>, Fault> {
        // The worker writes all lanes but bulk, and must not be delayed while a guest is frozen.
        let wait = match self.lane {
            Lane::Bulk => WRITE_WAIT_MAX,
            Lane::Control | Lane::Switch | Lane::Demand => FREEZE_DEADLINE,
        };
        LaneWriter::for_socket(duplicate(&self.socket)?, wait)
    }
}

/// The reading end of a lane.
pub(super) type ReadingEnd = (Lane, LaneReader<UnixStream>);

/// Joins four lanes into a link. Returns the readers in the order of [`Lane::ALL`].
pub(super) fn join(
    number: u64,
    mut lanes: Vec<OpenLane>,
) -> Result<(Link, Vec<ReadingEnd>), Fault> {
    lanes.sort_by_key(|lane| lane.lane);
    let [control, bulk, switch, demand] = lanes.as_slice() else {
        return Err(Fault::new(Code::State, "a link has four lanes"));
    };
    let link = Link {
        number,
        control: control.writer()?,
        switch: switch.writer()?,
        demand: demand.writer()?,
        bulk: Some(bulk.writer()?),
        sockets: lanes
            .iter()
            .map(|lane| Ok((lane.lane, duplicate(&lane.socket)?)))
            .collect::<Result<_, Fault>>()?,
        closed_at: Arc::default(),
    };
    let readers = lanes.into_iter().map(|lane| (lane.lane, lane.reader));
    Ok((link, readers.collect()))
}

/// Link numbers whose lanes are gathered at the same time: one that the source opens now, and one
/// it gave up with a lane still arriving. Numbers do not tell which is newer, because they restart
/// when the source reboots.
const GATHERED_COUNT_MAX: usize = 2;

/// Lanes still incomplete after this time are dropped: their source has given them up.
const GATHERED_WAIT: Duration = OPEN_WAIT_MAX.saturating_mul(2);

/// Incomplete sets of lanes by link number, oldest first.
#[derive(Debug, Default)]
pub(super) struct Gathering(Vec<Gathered>);

/// The lanes of one link number.
#[derive(Debug)]
struct Gathered {
    number: u64,
    begun_at: Instant,
    lanes: Vec<OpenLane>,
}

impl Gathering {
    /// Whether no lane of this number is here yet.
    pub(super) fn is_new(&self, number: u64) -> bool {
        self.0.iter().all(|gathered| gathered.number != number)
    }

    /// Whether no incomplete set is here.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Drops sets that were not completed in time.
    pub(super) fn forget_late(&mut self, now: Instant) {
        self.0
            .retain(|gathered| now < gathered.begun_at + GATHERED_WAIT);
    }

    /// Adds a lane, dropping the oldest set beyond the limit. Returns all lanes of `number` once
    /// the set is complete; sets begun earlier are dropped then, because the source gave them up
    /// for this one.
    pub(super) fn add(&mut self, number: u64, lane: OpenLane) -> Option<Vec<OpenLane>> {
        let now = Instant::now();
        self.forget_late(now);
        let known = self.0.iter().position(|gathered| gathered.number == number);
        let index = known.unwrap_or_else(|| {
            if self.0.len() >= GATHERED_COUNT_MAX {
                self.0.remove(0);
            }
            self.0.push(Gathered {
                number,
                begun_at: now,
                lanes: Vec::with_capacity(Lane::ALL.len()),
            });
            self.0.len() - 1
        });
        let lanes = &mut self.0[index].lanes;
        if lanes.iter().all(|open| open.lane != lane.lane) {
            lanes.push(lane);
        }
        if lanes.len() < Lane::ALL.len() {
            return None;
        }
        self.0
            .drain(..=index)
            .next_back()
            .map(|gathered| gathered.lanes)
    }
}

/// Joins the lanes that a source opened. Starts reading their messages; chunks are read only once
/// their address spaces are known, from the readers that are returned.
pub(super) fn receive_on(
    number: u64,
    lanes: Vec<OpenLane>,
    mailbox: &Arc<Mailbox<Input>>,
) -> Result<(Link, Vec<ReadingEnd>), Fault> {
    let (link, readers) = join(number, lanes)?;
    let (chunks, messages): (Vec<_>, Vec<_>) = readers
        .into_iter()
        .partition(|(lane, _)| matches!(lane, Lane::Bulk | Lane::Demand));
    for (lane, reader) in messages {
        read_messages(&link, lane, reader, Arc::clone(mailbox))?;
    }
    Ok((link, chunks))
}

fn duplicate(socket: &UnixStream) -> Result<UnixStream, Fault> {
    socket
        .try_clone()
        .map_err(|error| Fault::new(Code::Io, format!("a lane's socket: {error}")))
}

const fn class_of(lane: Lane) -> Class {
    match lane {
        Lane::Control => Class::Control,
        Lane::Bulk => Class::Bulk,
        Lane::Switch => Class::Switch,
        Lane::Demand => Class::Demand,
    }
}

/// Opens all lanes of a link in parallel.
///
/// # Errors
///
/// The refusal of the tunnel, the peer or the greeting.
pub(super) fn open_all(
    tunnel: &Path,
    (own, target): (&HostIdentity, &HostIdentity),
    hello: &Hello,
) -> Result<Vec<OpenLane>, Fault> {
    std::thread::scope(|scope| {
        let openers = Lane::ALL.map(|lane| {
            let hello = Hello {
                lane,
                ..hello.clone()
            };
            std::thread::Builder::new()
                .spawn_scoped(scope, move || open_lane(tunnel, (own, target), hello))
                .map_err(|error| Fault::new(Code::Io, format!("no thread for a lane: {error}")))
        });
        openers
            .into_iter()
            .map(|opener| opener?.join().expect("opening a lane does not panic"))
            .collect()
    })
}

fn open_lane(
    tunnel: &Path,
    (own, target): (&HostIdentity, &HostIdentity),
    hello: Hello,
) -> Result<OpenLane, Fault> {
    let lane = hello.lane;
    let (socket, peer) = open_stream(tunnel, &open_of(&target.site, lane), OPEN_WAIT_MAX)?;
    if peer != *target {
        // Another host may answer for the site for a while; the intended target may come back.
        let detail = format!("{peer} answers in place of {target}");
        return Err(Fault::new(Code::Unreachable, detail));
    }
    let (ours, theirs) = (migrator_name(own), migrator_name(target));
    let ours = Speaker {
        name: &ours,
        versions: hello.versions,
    };
    let mut writer = LaneWriter::for_socket(duplicate(&socket)?, WRITE_WAIT_MAX)?;
    writer.write_message(&Message::Hello(hello))?;
    writer.flush()?;
    let deadline = Instant::now() + OPEN_WAIT_MAX;
    let mut reader = LaneReader::new(duplicate(&socket)?);
    let answer = match reader.next_frame_until(deadline)? {
        Incoming::Frame(frame) => frame.message()?,
        Incoming::Idle => {
            return Err(Fault::new(Code::Stalled, "the target does not greet back"));
        }
        Incoming::End => {
            return Err(Fault::new(Code::Unreachable, "the target closed the lane"));
        }
    };
    match answer {
        Message::Welcome(welcome) => ours.accept(welcome.version, &theirs)?,
        Message::Refused(reason) => {
            return Err(ours.refused_by(&theirs, &reason.to_fault(Code::Refused)));
        }
        other => {
            let kind = other.kind();
            let detail = format!("message kind {kind} in place of a greeting");
            return Err(Fault::new(Code::Unexpected, detail));
        }
    }
    let timeouts = socket.set_read_timeout(Some(IDLE_WAIT));
    timeouts.map_err(|error| Fault::new(Code::Io, format!("a lane's socket: {error}")))?;
    Ok(OpenLane {
        lane,
        socket,
        reader,
    })
}

/// Starts the thread that reads a lane's messages into the mailbox until the lane ends.
pub(super) fn read_messages(
    link: &Link,
    lane: Lane,
    mut reader: LaneReader<UnixStream>,
    mailbox: Arc<Mailbox<Input>>,
) -> Result<(), Fault> {
    let closed_at = Arc::clone(&link.closed_at);
    let link = link.number;
    let read = move || {
        let fault = loop {
            let input = match reader.next_frame_until(Instant::now() + IDLE_WAIT) {
                Ok(Incoming::Frame(frame)) => match frame.message() {
                    Ok(message) => Input::Heard {
                        link,
                        lane,
                        message,
                    },
                    Err(fault) => break fault,
                },
                Ok(Incoming::Idle) if closed_at.get().is_some() => return,
                Ok(Incoming::Idle) => continue,
                Ok(Incoming::End) => break ended(lane),
                Err(fault) => break fault,
            };
            match closed_at.get() {
                Some(at) if at.elapsed() > CLOSED_WAIT => return,
                Some(_) => continue,
                None => {}
            }
            if !mailbox.send_bounded([input]) {
                return;
            }
        };
        mailbox.send(Input::LaneLost { link, lane, fault });
    };
    spawn(&format!("towpath-{}", name_of(lane)), read)
}

/// The unpacked bytes of a chunk, in a buffer that returns to its pool on drop.
#[derive(Debug)]
pub(super) struct Unpacked {
    /// `None` for a chunk of zeros.
    buffer: Option<Box<[u8]>>,
    range: Range<usize>,
    pool: Arc<BufferPool>,
}

impl Unpacked {
    /// The blocks of all runs, concatenated; empty for a chunk of zeros.
    pub(super) fn bytes(&self) -> &[u8] {
        let buffer = self.buffer.as_deref().unwrap_or_default();
        &buffer[self.range.clone()]
    }
}

impl Drop for Unpacked {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.pool.give(buffer);
        }
    }
}

/// A pool of buffers for unpacked chunks. A reader that finds none free waits until chunks are
/// installed.
#[derive(Debug, Default)]
struct BufferPool {
    state: Mutex<Buffers>,
    given: Condvar,
}

#[derive(Debug, Default)]
struct Buffers {
    free: Vec<Box<[u8]>>,
    count: usize,
    is_awaited: bool,
}

impl BufferPool {
    fn take(&self) -> Box<[u8]> {
        let mut state = self.state.lock().expect("nothing panics in the pool");
        loop {
            if let Some(buffer) = state.free.pop() {
                return buffer;
            }
            if state.count < UNPACKED_CHUNKS_MAX {
                state.count += 1;
                return vec![0; FRAME_BUFFER_BYTES].into_boxed_slice();
            }
            state.is_awaited = true;
            state = self.given.wait(state).expect("nothing panics in the pool");
        }
    }

    fn give(&self, buffer: Box<[u8]>) {
        let mut state = self.state.lock().expect("nothing panics in the pool");
        state.free.push(buffer);
        let is_worth_waking = state.is_awaited && state.free.len() >= FREE_BUFFERS_MIN;
        state.is_awaited &= !is_worth_waking;
        drop(state);
        if is_worth_waking {
            self.given.notify_one();
        }
    }
}

/// Starts the thread that reads, checks and unpacks a lane's chunks into the mailbox.
pub(super) fn read_chunks(
    link: u64,
    lane: Lane,
    mut reader: LaneReader<UnixStream>,
    spaces: Vec<Geometry>,
    mailbox: Arc<Mailbox<Input>>,
) -> Result<(), Fault> {
    let mut decoder = Decoder::new()?;
    let pool = Arc::new(BufferPool::default());
    reader.read_framewise();
    let read = move || {
        let mut together = Vec::with_capacity(CHUNKS_TOGETHER_MAX);
        let fault = loop {
            let may_wait = together.is_empty();
            let is_enough = match next_chunk(&mut reader, &mut decoder, &spaces, &pool, may_wait) {
                Ok(Next::Chunk(header, unpacked)) => {
                    together.push(Input::Chunk {
                        link,
                        lane,
                        header,
                        unpacked,
                    });
                    together.len() >= CHUNKS_TOGETHER_MAX
                }
                // Nothing more to read right now: deliver what has arrived.
                Ok(Next::Later) => !together.is_empty(),
                Ok(Next::End) => break ended(lane),
                Err(fault) => break fault,
            };
            if is_enough && !mailbox.send_bounded(together.drain(..)) {
                return;
            }
        };
        mailbox.send_all(together);
        mailbox.send(Input::LaneLost { link, lane, fault });
    };
    spawn(&format!("towpath-{}", name_of(lane)), read)
}

/// The next item on a lane of chunks.
enum Next {
    Chunk(ChunkHeader, Unpacked),
    /// Nothing available yet.
    Later,
    End,
}

fn next_chunk(
    reader: &mut LaneReader<UnixStream>,
    decoder: &mut Decoder,
    spaces: &[Geometry],
    pool: &Arc<BufferPool>,
    may_wait: bool,
) -> Result<Next, Fault> {
    let incoming = if may_wait {
        reader.next_frame()?
    } else {
        reader.next_frame_here()?
    };
    let frame = match incoming {
        Incoming::Frame(frame) => frame,
        Incoming::Idle => return Ok(Next::Later),
        Incoming::End => return Ok(Next::End),
    };
    if !frame.is_chunk() {
        let kind = frame.kind;
        let detail = format!("message kind {kind} on a lane of chunks");
        return Err(Fault::new(Code::Unexpected, detail));
    }
    let chunk = decoder.decode(frame.body, spaces)?;
    let (header, length) = (chunk.header.clone(), chunk.raw.len());
    let (buffer, range) = match header.codec {
        Codec::Zero => (None, 0..0),
        Codec::Raw => {
            // Raw: the blocks are the end of the frame's body, so the body's buffer is used as it
            // is.
            let (buffer, body) = reader.take_body(pool.take());
            (Some(buffer), body.end - length..body.end)
        }
        Codec::Lz4 | Codec::Zstd => {
            let mut buffer = pool.take();
            buffer[..length].copy_from_slice(chunk.raw);
            (Some(buffer), 0..length)
        }
    };
    let unpacked = Unpacked {
        buffer,
        range,
        pool: Arc::clone(pool),
    };
    Ok(Next::Chunk(header, unpacked))
}

fn ended(lane: Lane) -> Fault {
    Fault::new(
        Code::Unreachable,
        format!("the {} lane ended", name_of(lane)),
    )
}

const fn name_of(lane: Lane) -> &'static str {
    match lane {
        Lane::Control => "control",
        Lane::Bulk => "bulk",
        Lane::Switch => "switch",
        Lane::Demand => "demand",
    }
}

/// Starts a named thread.
pub(super) fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), Fault> {
    let started = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work);
    started
        .map(drop)
        .map_err(|error| Fault::new(Code::Io, format!("no thread {name}: {error}")))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    use towpath_protocol::frame::{FLAG_CRITICAL, HEADER_BYTES, write_frame};
    use towpath_protocol::preamble::Preamble;

    use super::*;
    use crate::engine::tests::{PATIENCE, ground, host};
    use crate::engine::worker::tests::{all_greeted, greeted};

    /// Writes a frame again and again until the other end is closed.
    fn trickle(socket: &mut UnixStream, frame: &[u8]) {
        let begun = Instant::now();
        while socket.write_all(frame).is_ok() {
            assert!(begun.elapsed() < PATIENCE, "the lane is read for ever");
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    #[test]
    fn lanes_whose_others_do_not_come_are_not_kept_for_one_that_comes_late() {
        let (_folder, shared) = host("");
        let ground = ground(&shared);
        let mut gathering = Gathering::default();
        let add = |gathering: &mut Gathering, lane| {
            let (_, lane, _theirs) = greeted(&ground, lane);
            gathering.add(1, lane)
        };
        let [late, others @ ..] = Lane::ALL;
        for lane in others {
            assert!(add(&mut gathering, lane).is_none());
        }
        gathering.0[0].begun_at -= GATHERED_WAIT;
        assert!(add(&mut gathering, late).is_none());
        // Their sockets are also closed if no other lane ever comes.
        gathering.forget_late(Instant::now() + GATHERED_WAIT);
        assert!(gathering.is_new(1));
    }

    #[test]
    fn a_target_whose_words_may_be_skipped_does_not_lengthen_the_wait_for_its_welcome() {
        let (folder, shared) = host("");
        let (hello, ..) = greeted(&ground(&shared), Lane::Control);
        let path = folder.path().join("tunnel.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let target = shared.host.clone();
        let answering = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let opened = Preamble::Opened(target).encode();
            socket.write_all(&opened).unwrap();
            let mut skipped = Vec::new();
            write_frame(200, 0, b"", &mut skipped);
            trickle(&mut socket, &skipped);
        });
        let fault = open_lane(&path, (&shared.host, &shared.host), hello).unwrap_err();
        assert_eq!(fault.code, Code::Stalled);
        answering.join().unwrap();
    }

    #[test]
    fn nobody_reads_for_long_what_a_peer_says_on_lanes_that_are_closed() {
        let (_folder, shared) = host("");
        let ground = ground(&shared);
        let (lanes, mut theirs) = all_greeted(&ground);
        let (link, readers) = join(1, lanes).unwrap();
        for (lane, reader) in readers {
            read_messages(&link, lane, reader, Arc::clone(&ground.mailbox)).unwrap();
        }
        drop(link);
        let mut control = theirs.swap_remove(0);
        assert_eq!(control.read(&mut [0]).unwrap(), 0, "its end is said");
        let mut ping = Vec::new();
        Message::Ping(1).encode(&mut ping);
        trickle(&mut control, &ping);
    }

    #[test]
    fn f03_what_is_glued_to_a_message_ends_its_lane() {
        let (_folder, shared) = host("");
        let ping = |nonce| {
            let mut frame = Vec::new();
            Message::Ping(nonce).encode(&mut frame);
            frame
        };
        let mut glued = Vec::new();
        let body_and_more = [&ping(3)[HEADER_BYTES..], b"more"].concat();
        write_frame(ping(3)[2], FLAG_CRITICAL, &body_and_more, &mut glued);
        let garbage = [b"more of it than a header has bytes".as_slice(), &ping(3)].concat();
        for wrong in [glued, garbage] {
            let ground = ground(&shared);
            let (lanes, mut theirs) = all_greeted(&ground);
            let (link, readers) = join(1, lanes).unwrap();
            for (lane, reader) in readers {
                read_messages(&link, lane, reader, Arc::clone(&ground.mailbox)).unwrap();
            }
            let said = [ping(1), ping(2), wrong].concat();
            theirs[0].write_all(&said).unwrap();
            let until = Instant::now() + PATIENCE;
            for nonce in [1, 2] {
                // Two whole messages received together are both delivered.
                let heard = ground.mailbox.receive(Some(until));
                let is_ping = matches!(heard, Some(Input::Heard { message: Message::Ping(said), .. }) if said == nonce);
                assert!(is_ping, "{heard:?}");
            }
            let lost = ground.mailbox.receive(Some(until));
            let is_framing = matches!(&lost, Some(Input::LaneLost { lane: Lane::Control, fault, .. }) if fault.code == Code::Framing);
            assert!(is_framing, "{lost:?}");
        }
    }
}
