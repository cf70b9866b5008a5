//! Framed messages over a blocking stream. Every number is checked before it is used.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::net::RecvFlags;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::frame::{BODY_BYTES_MAX, HEADER_BYTES, Header};
use towpath_protocol::message::{KIND_CHUNK, Message, body_bytes_max, is_skippable};

/// Bytes a reader reads at once: room for three of the largest frames, so that one read can always
/// bring the whole rest of a frame.
const READ_BUFFER_BYTES: usize = 256 * 1024;

/// Bytes a reader for a greeting reads at once: several times the largest hello, and no more from a
/// peer that sends something else.
const GREETING_BUFFER_BYTES: usize = 4 * 1024;

/// Bytes a writer collects before it flushes by itself.
const WRITE_BUFFER_BYTES: usize = 256 * 1024;

/// Frames larger than this are written from where they are, not copied first.
const COPY_BYTES_MAX: usize = 8 * 1024;

/// Frames written with one system call: as many as the codec packs while the previous write runs.
const FRAMES_PER_WRITE: usize = 4;

/// Longest a frame may take from its first byte to its last, so that nobody can hold a reader with
/// one byte a second. 96 KiB in this time is 3 KiB/s.
pub const FRAME_WAIT_MAX: Duration = Duration::from_secs(30);

/// Longest a write may make no progress at all before the lane counts as stalled.
pub const WRITE_WAIT_MAX: Duration = Duration::from_secs(30);

/// The kind of a hello is 1.
const _: () = assert!(GREETING_BUFFER_BYTES >= 2 * (HEADER_BYTES + body_bytes_max(1) as usize));

const _: () = assert!(READ_BUFFER_BYTES >= 2 * (HEADER_BYTES + BODY_BYTES_MAX as usize));

/// Bytes of a buffer that holds one frame and the next one's header, for [`LaneReader::take_body`].
pub const FRAME_BUFFER_BYTES: usize = 2 * HEADER_BYTES + BODY_BYTES_MAX as usize;

/// The result of reading from a lane.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// A frame with a valid header and checksum.
    Frame(Frame<'a>),
    /// Nothing arrived within the stream's read timeout; the lane is healthy.
    Idle,
    /// The peer closed the lane between frames.
    End,
}

/// A frame with a valid header and checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The kind of the body.
    pub kind: u8,
    /// The body, to be parsed according to its kind.
    pub body: &'a [u8],
}

impl Frame<'_> {
    /// Whether the body is a chunk, for [`crate::codec::Decoder`].
    #[must_use]
    pub const fn is_chunk(&self) -> bool {
        self.kind == KIND_CHUNK
    }

    /// Decodes the body as a message.
    ///
    /// # Errors
    ///
    /// As [`Message::decode`].
    pub fn message(&self) -> Result<Message, Fault> {
        Message::decode(self.kind, self.body)
    }

    /// Bytes of the whole frame on the wire.
    #[must_use]
    pub const fn wire_bytes(&self) -> u64 {
        (HEADER_BYTES + self.body.len()) as u64
    }
}

/// The reading half of a lane.
#[derive(Debug)]
pub struct LaneReader<R> {
    input: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// The range of the last frame's body.
    body: Range<usize>,
    /// Whether a read stops at the header of the next frame.
    is_framewise: bool,
    /// When the reader first had to wait for the rest of the frame at `start`.
    frame_begun: Option<Instant>,
    frame_wait_max: Duration,
    skipped_count: u64,
    /// Counts the skipped frames of all lanes.
    skipped_total: Option<Arc<AtomicU64>>,
}

/// Whether enough bytes are in the buffer.
enum Filled {
    Yes,
    Idle,
    End,
}

impl LaneReader<UnixStream> {
    /// Reads from a socket; [`Incoming::Idle`] comes back after `idle_wait` without a byte.
    ///
    /// # Errors
    ///
    /// `E_UNREACHABLE` if the socket does not take the timeout.
    pub fn for_socket(socket: UnixStream, idle_wait: Duration) -> Result<Self, Fault> {
        socket
            .set_read_timeout(Some(idle_wait))
            .map_err(|error| broken("cannot be read", &error))?;
        Ok(Self::new(socket))
    }

    /// The next frame if it has arrived. Returns [`Incoming::Idle`] at once if it has not arrived
    /// completely.
    ///
    /// # Errors
    ///
    /// As [`LaneReader::next_frame`].
    pub fn next_frame_here(&mut self) -> Result<Incoming<'_>, Fault> {
        let read = |socket: &mut UnixStream, bytes: &mut [u8]| {
            let (count, _) = rustix::net::recv(&*socket, bytes, RecvFlags::DONTWAIT)?;
            Ok(count)
        };
        self.next_frame_by(read, false)
    }

    /// The next frame if it arrives by `deadline`, else [`Incoming::Idle`]. Skipped frames and
    /// bytes that trickle in do not extend the deadline. Changes the socket's read timeout.
    ///
    /// # Errors
    ///
    /// As [`LaneReader::next_frame`].
    pub fn next_frame_until(&mut self, deadline: Instant) -> Result<Incoming<'_>, Fault> {
        let read = |socket: &mut UnixStream, bytes: &mut [u8]| {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ErrorKind::TimedOut.into());
            }
            socket.set_read_timeout(Some(left))?;
            socket.read(bytes)
        };
        self.next_frame_by(read, false)
    }
}

impl<R: Read> LaneReader<R> {
    /// Reads from anything.
    pub fn new(input: R) -> Self {
        Self::with_frame_wait(input, FRAME_WAIT_MAX)
    }

    /// Reads the greeting of a lane with a small buffer. A larger frame is a fault until
    /// [`LaneReader::widen`].
    pub fn for_greeting(input: R) -> Self {
        Self::with_buffer(input, FRAME_WAIT_MAX, GREETING_BUFFER_BYTES)
    }

    /// Enlarges the buffer, so that frames of any size may follow.
    pub fn widen(&mut self) {
        let mut buffer = vec![0; READ_BUFFER_BYTES].into_boxed_slice();
        let ahead = self.end - self.start;
        buffer[..ahead].copy_from_slice(&self.buffer[self.start..self.end]);
        (self.start, self.end, self.body) = (0, ahead, 0..0);
        self.buffer = buffer;
    }

    /// Reads from anything, with `frame_wait_max` in place of [`FRAME_WAIT_MAX`].
    pub fn with_frame_wait(input: R, frame_wait_max: Duration) -> Self {
        Self::with_buffer(input, frame_wait_max, READ_BUFFER_BYTES)
    }

    fn with_buffer(input: R, frame_wait_max: Duration, buffer_bytes: usize) -> Self {
        Self {
            input,
            buffer: vec![0; buffer_bytes].into_boxed_slice(),
            start: 0,
            end: 0,
            body: 0..0,
            is_framewise: false,
            frame_begun: None,
            frame_wait_max,
            skipped_count: 0,
            skipped_total: None,
        }
    }

    /// Also counts skipped frames in `total`, from here on.
    pub fn count_skipped_in(&mut self, total: Arc<AtomicU64>) {
        self.skipped_total = Some(total);
    }

    /// Frames skipped so far: those of an unknown kind that are not critical.
    pub const fn skipped_count(&self) -> u64 {
        self.skipped_count
    }

    /// From here on reads at most one frame and the next frame's header at once, so that
    /// [`LaneReader::take_body`] has almost nothing to copy.
    pub fn read_framewise(&mut self) {
        self.is_framewise = true;
    }

    /// Hands out the buffer that holds the last frame's body, and the body's range in it. `spare`
    /// becomes the reader's buffer.
    ///
    /// # Panics
    ///
    /// If `spare` is smaller than [`FRAME_BUFFER_BYTES`].
    pub fn take_body(&mut self, mut spare: Box<[u8]>) -> (Box<[u8]>, Range<usize>) {
        assert!(spare.len() >= FRAME_BUFFER_BYTES, "room for any frame");
        let body = std::mem::take(&mut self.body);
        let ahead = self.end - self.start;
        if ahead > HEADER_BYTES {
            // More was read before reading became framewise, so the body must be copied.
            spare[..body.len()].copy_from_slice(&self.buffer[body.clone()]);
            return (spare, 0..body.len());
        }
        spare[..ahead].copy_from_slice(&self.buffer[self.start..self.end]);
        (self.start, self.end) = (0, ahead);
        (std::mem::replace(&mut self.buffer, spare), body)
    }

    /// The next frame.
    ///
    /// # Errors
    ///
    /// `E_TRUNCATED` if the stream ends inside a frame, `E_FRAMING` or `E_TOO_LARGE` for a bad one,
    /// `E_UNKNOWN_KIND` for a critical kind this version does not know, `E_STALLED` if a frame that
    /// began does not end in time, `E_UNREACHABLE` if the stream breaks. The lane is unusable after
    /// an error.
    pub fn next_frame(&mut self) -> Result<Incoming<'_>, Fault> {
        self.next_frame_by(R::read, true)
    }

    fn next_frame_by(
        &mut self,
        mut read: impl FnMut(&mut R, &mut [u8]) -> io::Result<usize>,
        may_wait: bool,
    ) -> Result<Incoming<'_>, Fault> {
        let (header, body) = loop {
            match self.fill(HEADER_BYTES, &mut read, may_wait)? {
                Filled::Yes => {}
                Filled::Idle => return Ok(Incoming::Idle),
                Filled::End => return Ok(Incoming::End),
            }
            let head = self.buffer[self.start..]
                .first_chunk()
                .expect("filled just now");
            let header = Header::parse(head, body_bytes_max(head[2]))?;
            let frame_bytes = HEADER_BYTES + header.body_bytes as usize;
            if frame_bytes > self.buffer.len() {
                let detail = format!("a frame of {frame_bytes} bytes before a greeting");
                return Err(Fault::new(Code::TooLarge, detail));
            }
            // The header has been read, so the stream is inside a frame: it cannot have ended
            // cleanly, and it is idle only if the caller does not want to wait.
            match self.fill(frame_bytes, &mut read, may_wait)? {
                Filled::Yes => {}
                Filled::Idle => return Ok(Incoming::Idle),
                Filled::End => return Err(cut_inside()),
            }
            let body = self.start + HEADER_BYTES..self.start + frame_bytes;
            self.start = body.end;
            self.frame_begun = None;
            header.check_body(&self.buffer[body.clone()])?;
            if !is_skippable(&header) {
                break (header, body);
            }
            self.skipped_count += 1;
            if let Some(total) = &self.skipped_total {
                total.fetch_add(1, Ordering::Relaxed);
            }
        };
        self.body = body.clone();
        Ok(Incoming::Frame(Frame {
            kind: header.kind,
            body: &self.buffer[body],
        }))
    }

    /// Reads until at least `count` bytes are in the buffer from `start` on.
    fn fill(
        &mut self,
        count: usize,
        read: &mut impl FnMut(&mut R, &mut [u8]) -> io::Result<usize>,
        may_wait: bool,
    ) -> Result<Filled, Fault> {
        while self.end - self.start < count {
            if self.start == self.end {
                (self.start, self.end) = (0, 0);
            } else if self.start + count > self.buffer.len() {
                self.buffer.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
            }
            let is_inside = self.end > self.start;
            self.check_patience(count)?;
            let room_end = if self.is_framewise {
                (self.start + count + HEADER_BYTES).min(self.buffer.len())
            } else {
                self.buffer.len()
            };
            match read(&mut self.input, &mut self.buffer[self.end..room_end]) {
                Ok(0) if is_inside => return Err(cut_inside()),
                Ok(0) => return Ok(Filled::End),
                Ok(bytes) => self.end += bytes,
                Err(error) if is_timeout(&error) && !(is_inside && may_wait) => {
                    return Ok(Filled::Idle);
                }
                Err(error) if is_timeout(&error) || error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(broken("cannot be read", &error)),
            }
        }
        Ok(Filled::Yes)
    }

    /// Notes when the current frame began, if more of it must be waited for. A fault if that takes
    /// too long.
    fn check_patience(&mut self, count: usize) -> Result<(), Fault> {
        let have = self.end - self.start;
        if have == 0 {
            return Ok(());
        }
        let begun = *self.frame_begun.get_or_insert_with(Instant::now);
        let waited = begun.elapsed();
        if waited > self.frame_wait_max {
            let wait = waited.as_secs();
            return Err(Fault::new(
                Code::Stalled,
                format!("a frame has {have} of {count} bytes after {wait} s"),
            ));
        }
        Ok(())
    }
}

fn cut_inside() -> Fault {
    Fault::new(Code::Truncated, "the stream ends inside a frame")
}

/// The writing half of a lane. Messages are collected until [`LaneWriter::flush`]; a large chunk is
/// written at once, together with the messages before it.
#[derive(Debug)]
pub struct LaneWriter<W> {
    output: W,
    buffer: Vec<u8>,
    is_broken: bool,
    written_bytes: u64,
}

impl LaneWriter<UnixStream> {
    /// Writes to a socket. Fails after `stall_max` without progress.
    ///
    /// # Errors
    ///
    /// `E_UNREACHABLE` if the socket does not take the timeout.
    pub fn for_socket(socket: UnixStream, stall_max: Duration) -> Result<Self, Fault> {
        socket
            .set_write_timeout(Some(stall_max))
            .map_err(|error| broken("cannot be written", &error))?;
        Ok(Self::new(socket))
    }
}

impl<W: Write> LaneWriter<W> {
    /// Writes to anything.
    pub fn new(output: W) -> Self {
        Self {
            output,
            buffer: Vec::with_capacity(WRITE_BUFFER_BYTES),
            is_broken: false,
            written_bytes: 0,
        }
    }

    /// Bytes written so far, without those waiting for a flush.
    pub const fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// Adds a message. It is written with the next flush or large chunk.
    ///
    /// # Errors
    ///
    /// As [`LaneWriter::flush`].
    pub fn write_message(&mut self, message: &Message) -> Result<(), Fault> {
        if self.buffer.len() + HEADER_BYTES + BODY_BYTES_MAX as usize > WRITE_BUFFER_BYTES {
            self.flush()?;
        }
        message.encode(&mut self.buffer);
        Ok(())
    }

    /// Adds a chunk's frame, as returned by [`crate::codec::EncodedChunk::frame`].
    ///
    /// # Errors
    ///
    /// As [`LaneWriter::flush`].
    pub fn write_chunk_frame(&mut self, frame: &[u8]) -> Result<(), Fault> {
        self.write_chunk_frames(&[frame])
    }

    /// Adds the frames of several chunks. If they are large, they are written at once, without
    /// copying.
    ///
    /// # Errors
    ///
    /// As [`LaneWriter::flush`].
    pub fn write_chunk_frames(&mut self, frames: &[&[u8]]) -> Result<(), Fault> {
        let bytes: usize = frames.iter().map(|frame| frame.len()).sum();
        if bytes > COPY_BYTES_MAX {
            return self.write_out(frames);
        }
        if self.buffer.len() + bytes > WRITE_BUFFER_BYTES {
            self.flush()?;
        }
        for frame in frames {
            self.buffer.extend_from_slice(frame);
        }
        Ok(())
    }

    /// Writes everything collected.
    ///
    /// # Errors
    ///
    /// `E_STALLED` without progress for too long, `E_UNREACHABLE` if the stream broke. Part of a
    /// frame may have been written, so every later call fails as well.
    pub fn flush(&mut self) -> Result<(), Fault> {
        self.write_out(&[&[]])
    }

    /// Writes the collected bytes and then `frames`, in as few system calls as possible.
    fn write_out(&mut self, frames: &[&[u8]]) -> Result<(), Fault> {
        if self.is_broken {
            return Err(Fault::new(Code::Unreachable, "the lane broke before"));
        }
        for frames in frames.chunks(FRAMES_PER_WRITE) {
            let mut slices = [IoSlice::new(&[]); FRAMES_PER_WRITE + 1];
            slices[0] = IoSlice::new(&self.buffer);
            for (slice, frame) in slices[1..].iter_mut().zip(frames) {
                *slice = IoSlice::new(frame);
            }
            let count = slices.iter().map(|slice| slice.len() as u64).sum::<u64>();
            if let Err(error) = write_all(&mut self.output, &mut slices) {
                return Err(self.fail(&error));
            }
            self.buffer.clear();
            self.written_bytes += count;
        }
        Ok(())
    }

    fn fail(&mut self, error: &io::Error) -> Fault {
        self.is_broken = true;
        if is_timeout(error) {
            return Fault::new(Code::Stalled, "the lane takes no more bytes");
        }
        broken("cannot be written", error)
    }
}

fn write_all(output: &mut impl Write, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
    // Skips leading empty slices; all of them if there is nothing to write.
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        match output.write_vectored(slices) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(bytes) => IoSlice::advance_slices(&mut slices, bytes),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A socket timeout appears as either kind, depending on the system.
fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

fn broken(what: &str, error: &io::Error) -> Fault {
    Fault::new(Code::Unreachable, format!("the lane {what}: {error}"))
}
