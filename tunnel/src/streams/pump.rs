//! Copies between a local program's socket and the carrier of a stream.
//!
//! Bytes that were read on one side and not yet passed on are in a [`CopyState`], never in a future. So
//! a copy can be stopped at any await, and another one continues it.
//!
//! A program may go away before it has read everything: a service that refuses an upload answers
//! and closes. Then bytes for it are dropped, and the stream is cut off once the peer has all that
//! the program sent.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use quinn::{ReadError, StoppedError, VarInt, WriteError};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::error::Elapsed;
use tokio::time::timeout;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::preamble::Received;

use crate::links::control::REPORT_DELAY;
use crate::links::link::Link;
use crate::path::windows::Inflow;
use crate::quic::wire;
use crate::shaping::turns;
use crate::streams::carrier::{Carrier, MOVED};
use crate::streams::pool::{BUFFER_BYTES, Pool};
use crate::streams::resume::Incoming;
use crate::streams::table::{Stream, Streams};
use crate::streams::tails::{LEAST_BYTES, Tail};

/// Most pieces taken from a stream at once: each is a packet's payload; about what a Unix socket
/// takes.
const PIECES_PER_READ: usize = 256;

/// Pieces asked of the library in one call, and the capacity kept from one read to the next: most
/// reads bring fewer, or none.
const PIECES_PER_CALL: usize = 32;

/// Least room in the tail for which the program is read; less would only cause many small reads.
const ROOM_BYTES_MIN: u64 = 32 * 1024;

/// How long, or a round trip if longer, a program may block a write before the link is told of the
/// wait.
const BRIEF_WAIT: Duration = Duration::from_millis(100);

/// Why copying stopped.
#[derive(Debug)]
pub(crate) enum Break {
    /// The stream is over.
    Cut(Fault),
    /// The carrier is gone; the stream is not.
    Lost,
}

impl From<Fault> for Break {
    fn from(fault: Fault) -> Self {
        Self::Cut(fault)
    }
}

/// Settings of a copy.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub pool: Arc<Pool>,
    /// How long a side may read nothing.
    pub stall: Duration,
    /// Whether programs may pause reading for as long as they like, while other streams have their
    /// room.
    pub is_patient: bool,
    /// Bytes that every stream may keep, whatever the path holds.
    pub tail_bytes: u64,
}

/// The state of both directions; it outlives the carrier.
#[derive(Debug, Default)]
pub(crate) struct CopyState {
    outward: Outward,
    inward: Inward,
    /// The program takes no more: bytes for it are dropped.
    is_deaf: AtomicBool,
}

#[derive(Debug, Default)]
struct Outward {
    /// Read from the program and not sent yet.
    read: Bytes,
    /// To be sent before anything else: bytes sent before, or read while there was no carrier.
    again: VecDeque<Bytes>,
    /// Stream offset of the first byte of `again`.
    again_at: u64,
    /// Stream offset up to which some carrier was given the bytes.
    given: u64,
    /// What the reader of the stream takes.
    taken: Inflow,
    /// Why the program can no longer be read, though it did not end; the stream then ends with
    /// this.
    failed: Option<Fault>,
}

#[derive(Debug, Default)]
struct Inward {
    offsets: Incoming,
    /// Pieces that the program has not taken yet. Most streams are idle most of the time; then this
    /// takes at most a kilobyte.
    left: VecDeque<Bytes>,
    is_shut: bool,
}

impl CopyState {
    /// What we have received of the peer's direction.
    pub(crate) const fn received(&self) -> Received {
        self.inward.offsets.received()
    }

    /// Goes back to the offset that the peer has. Returns how many bytes at most are sent a second
    /// time: those that an earlier carrier was given.
    ///
    /// # Errors
    ///
    /// `E_RANGE` if the peer cannot have that much.
    pub(crate) fn rewind(&mut self, stream: &Stream, received: Received) -> Result<u64, Fault> {
        let side = &mut self.outward;
        side.again = stream.out().rewind(received)?;
        side.again_at = received.bytes;
        // The earlier measurement used the clock of the earlier carrier.
        side.taken = Inflow::default();
        Ok(side.given.saturating_sub(received.bytes))
    }
}

/// Copies both ways until both ends were reached and the peer has confirmed it.
///
/// # Errors
///
/// [`Break::Lost`] if the carrier's link is lost. Else the stream's own end: `E_STALLED` if a side
/// did not read for too long, `E_GONE` if the local program went away, or the fault that the peer
/// sends.
pub(crate) async fn run(
    local: (
        &mut (impl AsyncRead + Unpin),
        &mut (impl AsyncWrite + Unpin),
    ),
    flow: &mut CopyState,
    carrier: &mut Carrier,
    stream: &Stream,
    settings: &Settings,
) -> Result<(), Break> {
    let Carrier {
        link, send, recv, ..
    } = carrier;
    let both = Copy {
        link,
        stream,
        settings,
    };
    let is_deaf = &flow.is_deaf;
    tokio::try_join!(
        both.outward(local.0, (&mut flow.outward, is_deaf), send),
        both.inward(recv, local.1, (&mut flow.inward, is_deaf)),
    )?;
    Ok(())
}

/// Continues without a carrier: hands received bytes to the program, and reads the program into the
/// tail.
///
/// Returns `Ok` if both directions were complete and only the confirmation of that was lost.
///
/// # Errors
///
/// If the local program went away or does not read.
pub(crate) async fn run_apart(
    local: (
        &mut (impl AsyncRead + Unpin),
        &mut (impl AsyncWrite + Unpin),
    ),
    flow: &mut CopyState,
    (stream, streams, link): (&Stream, &Streams, &Link),
    settings: &Settings,
) -> Result<(), Fault> {
    streams.tally.paused.fetch_add(1, Ordering::Relaxed);
    let _paused = Paused(streams);
    let both = Copy {
        link,
        stream,
        settings,
    };
    let is_deaf = &flow.is_deaf;
    tokio::try_join!(
        both.gather(local.0, &mut flow.outward, is_deaf),
        both.finish_inward(local.1, &mut flow.inward, is_deaf),
    )?;
    Ok(())
}

struct Paused<'a>(&'a Streams);

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        self.0.tally.paused.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Clone, Copy)]
struct Copy<'a> {
    link: &'a Link,
    stream: &'a Stream,
    settings: &'a Settings,
}

impl Copy<'_> {
    async fn outward(
        self,
        local: &mut (impl AsyncRead + Unpin),
        (side, is_deaf): (&mut Outward, &AtomicBool),
        send: &mut quinn::SendStream,
    ) -> Result<(), Break> {
        // The peer wants no more, or the link is gone: nothing else would notice while the local
        // program is silent.
        let mut stopped = pin!(send.stopped());
        if !side.again.is_empty() {
            // Boxed, because it is rare and large, and idle streams should be small.
            Box::pin(self.put_again(side, send)).await?;
        }
        while !side.is_over(self.stream) {
            if side.read.is_empty() {
                tokio::select! {
                    read = self.read(local, side) => read?,
                    code = &mut stopped => return Err(stop_of(&code)),
                }
            }
            let mut backlog = self.stream.backlog(&self.link.pace);
            let since = Instant::now();
            while !side.read.is_empty() {
                let leg = self.stream.class.leg();
                let wish = self.link.piece_bytes(leg).min(side.read.len() as u64);
                let granted = backlog.grant(wish).await;
                self.link.until_free(leg, granted).await;
                let piece = self.count(side, granted);
                side.given = self.stream.out().sent();
                self.write(send, piece).await?;
                let class = self.stream.class;
                self.link.counters.add_wait(class, since.elapsed());
            }
        }
        if side.failed.is_none() {
            // Fails only if the peer has stopped the stream; then there is nothing to finish.
            let _ = send.finish();
        }
        self.until_heard(side, is_deaf, stopped).await?;
        Ok(side.verdict(is_deaf)?)
    }

    /// Waits until the peer has reported all bytes, and the end if there was one.
    async fn until_heard(
        self,
        side: &mut Outward,
        is_deaf: &AtomicBool,
        mut stopped: Pin<&mut impl Future<Output = Result<Option<VarInt>, StoppedError>>>,
    ) -> Result<(), Break> {
        let mut is_acknowledged = false;
        while !side.is_heard(self.stream, is_deaf) {
            let heard = timeout(self.settings.stall, self.stream.acknowledged.notified());
            tokio::select! {
                heard = heard => {
                    // A program that half-closed may wait as long as it likes; one that is gone
                    // waits for nothing.
                    let is_gone = side.failed.is_some() || is_deaf.load(Ordering::Relaxed);
                    match heard {
                        Err(_) if is_gone && !self.link.is_ill() => {
                            return Err(stalled("the peer", self.settings.stall).into());
                        }
                        Err(_) if self.is_long() => self.check_room(side)?,
                        _ => {}
                    }
                }
                ended = &mut stopped, if !is_acknowledged => match ended {
                    // QUIC has delivered everything, but the peer's program does not have it yet.
                    Ok(None) => is_acknowledged = true,
                    other => return Err(stop_of(&other)),
                },
                _ = self.link.over() => return Err(Break::Lost),
            }
        }
        Ok(())
    }

    /// Takes the next piece of what was read; from now on it is in the tail.
    fn count(self, side: &mut Outward, granted: u64) -> Bytes {
        let length = side.read.len();
        let piece = side
            .read
            .split_to(usize::try_from(granted).unwrap_or(length).min(length));
        self.stream.out().push(&piece);
        let bytes = piece.len() as u64;
        self.link.counters.add_sent(self.stream.class, bytes);
        self.stream.count_sent(bytes);
        piece
    }

    /// Reads from the program once the tail has room. At its end nothing is read, and the end is
    /// recorded.
    async fn read(
        self,
        local: &mut (impl AsyncRead + Unpin),
        side: &mut Outward,
    ) -> Result<(), Fault> {
        loop {
            // While a stream waits for its program it holds no buffer and no room: others may have
            // taken the room by the time the program sends something.
            let reading = poll_fn(|context| {
                let Some(room) = self.room(&mut side.taken) else {
                    return Poll::Ready(Ok(None));
                };
                let mut buffer = self.settings.pool.take(room);
                let mut unread = ReadBuf::new(buffer.as_mut());
                ready!(Pin::new(&mut *local).poll_read(context, &mut unread))?;
                let count = unread.filled().len();
                Poll::Ready(Ok(Some(buffer.fill(count))))
            });
            let read: io::Result<Option<Bytes>> = if self.is_long() {
                // Its program may be silent for ever, and the tail may be in the way of others
                // meanwhile.
                let heard_bytes = self.stream.out().acknowledged();
                match timeout(self.settings.stall, reading).await {
                    Ok(read) => read,
                    Err(_) if self.stream.out().acknowledged() > heard_bytes => continue,
                    Err(_) => {
                        self.check_room(side)?;
                        continue;
                    }
                }
            } else {
                reading.await
            };
            match read {
                Ok(None) => {}
                Ok(Some(read)) => {
                    side.read = read;
                    break;
                }
                Err(error) => {
                    // What it sent before is still on its way; a second read would look like a
                    // clean end.
                    side.failed = Some(local_gone(&error));
                    return Ok(());
                }
            }
            let heard = self.stream.acknowledged.notified();
            let is_late = timeout(self.settings.stall, heard).await.is_err();
            // A stream within its guaranteed tail waits for the tails of others, not for its peer.
            let is_much = self.stream.out().held_bytes() >= LEAST_BYTES;
            if is_late && is_much {
                self.check_room(side)?;
            }
        }
        let mut out = self.stream.out();
        if side.read.is_empty() {
            out.end();
        } else {
            out.hold(side.read.len() as u64);
        }
        Ok(())
    }

    /// Ends the stream if the peer's program may not pause any longer.
    fn check_room(self, side: &mut Outward) -> Result<(), Fault> {
        let most = self.settings.tail_bytes;
        let may_wait = self.settings.is_patient && !self.tail(&mut side.taken).is_in_the_way(most);
        if may_wait || self.link.is_ill() {
            return Ok(());
        }
        Err(stalled("the peer", self.settings.stall))
    }

    /// Whether its tail, kept for a program that may pause, is so large that it may get in the way.
    fn is_long(self) -> bool {
        self.settings.is_patient && self.stream.out().held_bytes() > self.settings.tail_bytes
    }

    /// How many bytes the tail has room for, at most a buffer; `None` if they are too few.
    fn room(self, taken: &mut Inflow) -> Option<usize> {
        let room = self.tail(taken).room(self.settings.tail_bytes);
        let bytes = usize::try_from(room)
            .unwrap_or(usize::MAX)
            .min(BUFFER_BYTES);
        (room >= ROOM_BYTES_MIN).then_some(bytes)
    }

    /// The state of the tail.
    fn tail(self, taken: &mut Inflow) -> Tail {
        let leg = self.stream.class.leg();
        let out = self.stream.out();
        // All bytes that the reader took are reported within this time.
        let round = self.link.base_rtt() + REPORT_DELAY;
        taken.note(self.link.now(), out.acknowledged(), round);
        Tail {
            leg,
            path_bytes: self.link.tail_bytes(),
            leg_held_bytes: out.all_held_bytes(),
            held_bytes: out.held_bytes(),
            taken_bytes: taken.bytes_per_round(),
        }
    }

    /// Sends again what had been sent before.
    async fn put_again(
        self,
        side: &mut Outward,
        send: &mut quinn::SendStream,
    ) -> Result<(), Break> {
        while let Some(mut bytes) = side.again.front().cloned() {
            let end = side.again_at + bytes.len() as u64;
            side.given = side.given.max(end);
            let mut backlog = self.stream.backlog(&self.link.pace);
            while !bytes.is_empty() {
                let granted = backlog.grant(bytes.len() as u64).await;
                let length = bytes.len();
                let count = usize::try_from(granted).unwrap_or(length).min(length);
                self.write(send, bytes.split_to(count)).await?;
            }
            side.again.pop_front();
            side.again_at = end;
        }
        Ok(())
    }

    async fn write(self, send: &mut quinn::SendStream, mut bytes: Bytes) -> Result<(), Break> {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(turns::PIECE_BYTES));
            // Waiting for the turn does not count as a stall; the stream that has it may be
            // stalled.
            let _turn = self.link.turns.wait(self.stream.class).await;
            self.write_piece(send, piece).await?;
        }
        Ok(())
    }

    async fn write_piece(self, send: &mut quinn::SendStream, piece: Bytes) -> Result<(), Break> {
        let mut writing = pin!(send.write_chunk(piece));
        let mut heard_bytes = self.stream.out().acknowledged();
        loop {
            match timeout(self.settings.stall, &mut writing).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(WriteError::Stopped(code))) => return Err(stop_of(&Ok(Some(code)))),
                Ok(Err(_)) => return Err(Break::Lost),
                // A path that is down or very slow is not a peer that does not read.
                Err(_) => {
                    let before = heard_bytes;
                    heard_bytes = self.stream.out().acknowledged();
                    if heard_bytes == before && !self.link.is_ill() {
                        return Err(stalled("the peer", self.settings.stall).into());
                    }
                }
            }
        }
    }

    async fn inward(
        self,
        recv: &mut quinn::RecvStream,
        local: &mut (impl AsyncWrite + Unpin),
        (side, is_deaf): (&mut Inward, &AtomicBool),
    ) -> Result<(), Break> {
        let handed = side.offsets.handed();
        if handed.bytes > 0 || handed.is_ended {
            // The last report may have been lost with an earlier carrier's link.
            self.link.reports.note(self.stream.id, handed, false);
        }
        loop {
            // A program may pause reading for as long as it likes, and the other direction may have
            // ended; then nothing else notices that the link is over. What the program took by then
            // is released; the rest is kept.
            tokio::select! {
                biased;
                handed = self.hand_over(local, side, is_deaf) => handed?,
                () = self.link.over() => return Err(Break::Lost),
            }
            if side.offsets.is_ended() {
                return Ok(());
            }
            let taken = poll_fn(|context| take_pieces(recv, context, &mut side.left)).await;
            if taken.bytes > 0 {
                side.offsets.take(taken.bytes);
                self.link.count_received(self.stream.class, taken.bytes);
                self.stream.count_received(taken.bytes);
            }
            match taken.then {
                Then::More => {}
                Then::End => side.offsets.end(),
                Then::Failed(ReadError::Reset(code)) if code != MOVED => {
                    return Err(ended_by(code).into());
                }
                Then::Failed(_) => return Err(Break::Lost),
            }
        }
    }

    /// Hands everything received to the program, and reports it.
    async fn hand_over(
        self,
        local: &mut (impl AsyncWrite + Unpin),
        side: &mut Inward,
        is_deaf: &AtomicBool,
    ) -> Result<(), Fault> {
        let mut is_news = false;
        while !side.left.is_empty() {
            let written = if is_deaf.load(Ordering::Relaxed) {
                side.left.iter().map(Bytes::len).sum()
            } else {
                match self.write_local(local, &side.left).await {
                    Ok(written) => written,
                    // What the program has sent is still on its way.
                    Err(fault) if fault.code == Code::Gone && !self.stream.out().is_done() => {
                        is_deaf.store(true, Ordering::Relaxed);
                        continue;
                    }
                    Err(fault) => {
                        if fault.code == Code::Gone {
                            self.until_handed().await;
                        }
                        return Err(fault);
                    }
                }
            };
            side.let_go(written);
            is_news = true;
        }
        side.left.shrink_to(PIECES_PER_CALL);
        if side.offsets.is_ended() && !side.is_shut {
            // A program that closed its side wants no more; that is not an error of the stream.
            let _ = local.shutdown().await;
            side.is_shut = true;
            is_news = true;
        }
        if is_news {
            let (received, is_urgent) = side.offsets.report();
            self.link.reports.note(self.stream.id, received, is_urgent);
        }
        Ok(())
    }

    /// Waits until the peer's program has everything that the program here sent, for as long as
    /// the peer goes on reporting.
    async fn until_handed(self) {
        while !self.stream.out().is_handed() {
            let heard = timeout(self.settings.stall, self.stream.acknowledged.notified()).await;
            if heard.is_err() && !self.link.is_ill() {
                return;
            }
        }
    }

    async fn write_local(
        self,
        local: &mut (impl AsyncWrite + Unpin),
        pieces: &VecDeque<Bytes>,
    ) -> Result<usize, Fault> {
        let mut write = |context: &mut Context<'_>| {
            let mut slices = [IoSlice::new(&[]); PIECES_PER_READ];
            for (slice, piece) in slices.iter_mut().zip(pieces) {
                *slice = IoSlice::new(piece);
            }
            let count = pieces.len().min(PIECES_PER_READ);
            Pin::new(&mut *local).poll_write_vectored(context, &slices[..count])
        };
        let written = match poll_fn(|context| Poll::Ready(write(context))).await {
            Poll::Ready(written) => Ok(written),
            // Boxed, so that only streams that wait pay for the timer.
            Poll::Pending => Box::pin(self.wait_local(poll_fn(write))).await,
        };
        match written {
            Ok(Ok(0)) => Err(local_gone(&io::ErrorKind::WriteZero.into())),
            Ok(written) => written.map_err(|error| local_gone(&error)),
            Err(_) => Err(stalled("the local program", self.settings.stall)),
        }
    }

    /// Waits for a program that does not take a write at once.
    async fn wait_local<T>(self, writing: impl Future<Output = T>) -> Result<T, Elapsed> {
        let mut writing = pin!(writing);
        // A program that is only slower than the path soon takes everything; the link need not
        // know.
        let brief = self.link.base_rtt().max(BRIEF_WAIT);
        match timeout(brief, &mut writing).await {
            Ok(written) => Ok(written),
            Err(_) => {
                let waiting = self.link.wait_for_program(self.stream.class.leg());
                wait_long(writing, self.settings, waiting).await
            }
        }
    }

    /// Reads into the tail until it is full; the rest waits in the program.
    async fn gather(
        self,
        local: &mut (impl AsyncRead + Unpin),
        side: &mut Outward,
        is_deaf: &AtomicBool,
    ) -> Result<(), Fault> {
        loop {
            if !side.read.is_empty() {
                self.count(side, u64::MAX);
            }
            if side.is_heard(self.stream, is_deaf) {
                return side.verdict(is_deaf);
            }
            let is_full =
                self.stream.out().held_bytes() + ROOM_BYTES_MIN > self.settings.tail_bytes;
            if is_full || side.is_over(self.stream) {
                // On the next link the peer may report that it has everything.
                self.stream.acknowledged.notified().await;
            } else {
                self.read(local, side).await?;
            }
        }
    }

    async fn finish_inward(
        self,
        local: &mut (impl AsyncWrite + Unpin),
        side: &mut Inward,
        is_deaf: &AtomicBool,
    ) -> Result<(), Fault> {
        self.hand_over(local, side, is_deaf).await?;
        if side.offsets.is_ended() {
            return Ok(());
        }
        std::future::pending().await
    }
}

impl Outward {
    /// Whether the program is not read any more.
    fn is_over(&self, stream: &Stream) -> bool {
        self.failed.is_some() || stream.out().is_ended()
    }

    /// Whether the peer has everything that will ever be sent. If the stream is then cut off, the
    /// peer's program must have it: the cut discards everything that is still on its way to it.
    fn is_heard(&self, stream: &Stream, is_deaf: &AtomicBool) -> bool {
        let out = stream.out();
        let has_failed = self.failed.is_some();
        if has_failed || is_deaf.load(Ordering::Relaxed) {
            (has_failed || out.is_ended()) && out.is_handed()
        } else {
            out.is_done()
        }
    }

    /// How the stream ends, once the peer has everything.
    fn verdict(&self, is_deaf: &AtomicBool) -> Result<(), Fault> {
        match &self.failed {
            Some(fault) => Err(fault.clone()),
            None if is_deaf.load(Ordering::Relaxed) => {
                Err(local_gone(&io::ErrorKind::BrokenPipe.into()))
            }
            None => Ok(()),
        }
    }
}

impl Inward {
    /// Releases bytes that the program has taken.
    fn let_go(&mut self, bytes: usize) {
        self.offsets.hand(bytes as u64);
        let mut left = bytes;
        while left > 0 {
            let first = self
                .left
                .front_mut()
                .expect("what was written stands there");
            if first.len() > left {
                first.advance(left);
                return;
            }
            left -= first.len();
            self.left.pop_front();
        }
    }
}

/// What was taken of a stream, and what follows.
struct Taken {
    bytes: u64,
    then: Then,
}

enum Then {
    More,
    End,
    Failed(ReadError),
}

/// Takes what has arrived. The library reports an end or an error only once, so that is returned at
/// once.
fn take_pieces(
    recv: &mut quinn::RecvStream,
    context: &mut Context<'_>,
    taken: &mut VecDeque<Bytes>,
) -> Poll<Taken> {
    let mut bytes = 0;
    for _ in 0..PIECES_PER_READ / PIECES_PER_CALL {
        let mut pieces: [Bytes; PIECES_PER_CALL] = std::array::from_fn(|_| Bytes::new());
        // The library registers the waker before it returns `Pending`, so the future can be
        // dropped.
        let count = match pin!(recv.read_chunks(&mut pieces)).poll(context) {
            Poll::Ready(Ok(Some(count))) => count,
            Poll::Ready(ended) => {
                let then = ended.map_or_else(Then::Failed, |_| Then::End);
                return Poll::Ready(Taken { bytes, then });
            }
            Poll::Pending if bytes > 0 => break,
            Poll::Pending => return Poll::Pending,
        };
        bytes += pieces[..count]
            .iter()
            .map(|piece| piece.len() as u64)
            .sum::<u64>();
        taken.extend(pieces.into_iter().take(count));
        if count < PIECES_PER_CALL {
            break;
        }
    }
    let then = Then::More;
    Poll::Ready(Taken { bytes, then })
}

/// Waits for a program that takes nothing. A patient stream waits as long as it likes, because the
/// sending side knows whether others have room meanwhile. `waiting` announces the wait only for as
/// long as an impatient stream may stall; after that the window's memory is available to all again.
async fn wait_long<T>(
    mut writing: Pin<&mut impl Future<Output = T>>,
    settings: &Settings,
    waiting: impl Sized,
) -> Result<T, Elapsed> {
    let written = timeout(settings.stall, &mut writing).await;
    drop(waiting);
    match written {
        Err(_) if settings.is_patient => Ok(writing.await),
        written => written,
    }
}

fn stalled(who: &str, stall: Duration) -> Fault {
    Fault::new(
        Code::Stalled,
        format!("{who} has read nothing for {stall:?}"),
    )
}

fn local_gone(error: &io::Error) -> Fault {
    Fault::new(Code::Gone, format!("the local program: {error}"))
}

fn ended_by(code: VarInt) -> Fault {
    let told = wire::code_of(code);
    Fault::new(told.unwrap_or(Code::Gone), "the peer ended the stream")
}

fn stop_of(stopped: &Result<Option<VarInt>, StoppedError>) -> Break {
    match stopped {
        // 0 is the library's own code, for a stream dropped without one.
        Ok(Some(code)) if *code != MOVED && code.into_inner() != 0 => Break::Cut(ended_by(*code)),
        _ => Break::Lost,
    }
}
