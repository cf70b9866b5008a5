//! A man in the middle between two real migrators: it forwards their messages, and alters the
//! source's messages or the target's page requests. Both tunnels and both migrators believe that
//! they talk to each other directly.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use towpath_daemon::stream::accept_stream;
use towpath_migrator::lane::{Incoming, LaneReader, LaneWriter};
use towpath_protocol::frame::{HEADER_BYTES, Header};
use towpath_protocol::message::{Lane, Message, body_bytes_max};
use towpath_protocol::preamble::Preamble;

/// How long a lane may block before it counts as broken.
const STALL_MAX: Duration = Duration::from_secs(20);

/// Alters a message.
pub type Alter = fn(Message) -> Message;

/// Whose messages are altered.
#[derive(Debug, Clone, Copy)]
pub enum Altered {
    /// The source's, on the control lane.
    Said(Alter),
    /// The target's, on the demand lane.
    Asked(Alter),
}

/// Takes the place of a site's migrator until it is dropped.
#[derive(Debug)]
pub struct Meddler {
    /// The path at which the tunnel looks for the migrator.
    front: PathBuf,
    /// The path of the migrator's socket in the meantime.
    behind: PathBuf,
    is_over: Arc<AtomicBool>,
}

impl Meddler {
    /// Takes the place of the migrator behind a socket. It sees new lanes, not those already open.
    ///
    /// # Panics
    ///
    /// If its socket cannot be bound.
    #[must_use]
    pub fn before(service_socket: PathBuf, altered: Altered) -> Self {
        let front = service_socket;
        let behind = front.with_extension("behind");
        std::fs::rename(&front, &behind).expect("the migrator's service socket");
        let service = UnixListener::bind(&front).expect("the migrator's service socket");
        let is_over = Arc::new(AtomicBool::new(false));
        let (real, ends) = (behind.clone(), Arc::clone(&is_over));
        thread::spawn(move || {
            for stream in service.incoming() {
                if ends.load(Ordering::SeqCst) {
                    return;
                }
                let (real, ends) = (real.clone(), Arc::clone(&ends));
                thread::spawn(move || {
                    // A lane that breaks is something migrators must handle.
                    drop(stream.and_then(|source| pass_on(&source, &real, altered, &ends)));
                });
            }
        });
        Self {
            front,
            behind,
            is_over,
        }
    }
}

impl Drop for Meddler {
    /// Puts the migrator back in its place. Lanes that are open continue to forward, unaltered.
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        // Wakes the thread that waits for lanes.
        drop(UnixStream::connect(&self.front));
        drop(std::fs::rename(&self.behind, &self.front));
    }
}

/// Forwards one lane in both directions until it ends.
fn pass_on(
    source: &UnixStream,
    real: &Path,
    altered: Altered,
    is_over: &Arc<AtomicBool>,
) -> io::Result<()> {
    let accepted = accept_stream(source).map_err(io::Error::other)?;
    let mut target = UnixStream::connect(real)?;
    target.write_all(&Preamble::Accepted(accepted).encode())?;
    let (answers, asker) = (target.try_clone()?, source.try_clone()?);
    // Nothing is answered before the greeting.
    let lane = pass_on_greeting(source, &target)?;
    let (said, asked) = match (altered, lane) {
        (Altered::Said(alter), Lane::Control) => (Some(alter), None),
        (Altered::Asked(alter), Lane::Demand) => (None, Some(alter)),
        _ => (None, None),
    };
    let ends = Arc::clone(is_over);
    let back = thread::spawn(move || carry(&answers, &asker, asked, &ends));
    carry(source, &target, said, is_over)?;
    back.join().expect("a thread of ours")
}

/// Forwards one direction of a lane, including its end.
fn carry(
    from: &UnixStream,
    to: &UnixStream,
    alter: Option<Alter>,
    is_over: &AtomicBool,
) -> io::Result<()> {
    let Some(alter) = alter else {
        return copy(from, to);
    };
    alter_words(from, to, |word| {
        if is_over.load(Ordering::SeqCst) {
            word
        } else {
            alter(word)
        }
    })?;
    to.shutdown(Shutdown::Write)
}

/// Forwards the first message on a lane, which says which lane it is.
fn pass_on_greeting(mut source: &UnixStream, mut target: &UnixStream) -> io::Result<Lane> {
    let mut frame = vec![0; HEADER_BYTES];
    source.read_exact(&mut frame)?;
    let head = frame.first_chunk().expect("read just now");
    let header = Header::parse(head, body_bytes_max(head[2])).map_err(io::Error::other)?;
    frame.resize(HEADER_BYTES + header.body_bytes as usize, 0);
    source.read_exact(&mut frame[HEADER_BYTES..])?;
    target.write_all(&frame)?;
    match Message::decode(header.kind, &frame[HEADER_BYTES..]) {
        Ok(Message::Hello(hello)) => Ok(hello.lane),
        other => Err(io::Error::other(format!("{other:?} in place of a hello"))),
    }
}

fn alter_words(
    from: &UnixStream,
    to: &UnixStream,
    alter: impl Fn(Message) -> Message,
) -> io::Result<()> {
    let words = from.try_clone()?;
    let mut reader = LaneReader::for_socket(words, STALL_MAX).map_err(io::Error::other)?;
    let altered = to.try_clone()?;
    let mut writer = LaneWriter::for_socket(altered, STALL_MAX).map_err(io::Error::other)?;
    loop {
        match reader.next_frame().map_err(io::Error::other)? {
            Incoming::Frame(frame) => {
                let word = alter(frame.message().map_err(io::Error::other)?);
                let written = writer.write_message(&word).and_then(|()| writer.flush());
                written.map_err(io::Error::other)?;
            }
            Incoming::Idle => {}
            Incoming::End => return Ok(()),
        }
    }
}

/// Forwards all bytes, and the end of the stream.
fn copy(mut from: &UnixStream, mut to: &UnixStream) -> io::Result<()> {
    io::copy(&mut from, &mut to)?;
    to.shutdown(Shutdown::Write)
}
