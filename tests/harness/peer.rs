//! A peer that sends any messages a test wants: it opens lanes to a real migrator without a tunnel
//! or a migrator behind them. The migrator takes the peer's identity from its tunnel, and here the
//! test plays the tunnel.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use towpath_migrator::lane::{Incoming, LaneReader, LaneWriter};
use towpath_protocol::class::Class;
use towpath_protocol::fault::Fault;
use towpath_protocol::identity::{AttemptId, GuestId, HostIdentity, MigrationId};
use towpath_protocol::message::{Hello, Lane, Message};
use towpath_protocol::preamble::{Accepted, Preamble};
use towpath_protocol::version::{self, VersionRange};

/// How long the migrator may take to send an expected message.
const WORD_WAIT: Duration = Duration::from_secs(20);

/// The four lanes of one attempt.
#[derive(Debug)]
pub struct Peer {
    lanes: Vec<(LaneReader<UnixStream>, LaneWriter<UnixStream>)>,
}

impl Peer {
    /// Opens the lanes as a host that offers a guest.
    ///
    /// # Errors
    ///
    /// The migrator's refusal of a lane.
    ///
    /// # Panics
    ///
    /// If the socket cannot be used.
    pub fn open(
        service: &Path,
        host: &HostIdentity,
        guest: GuestId,
        attempt: AttemptId,
    ) -> Result<Self, Fault> {
        let link = crate::console::monotonic_ns();
        let lanes = Lane::ALL.iter().map(|lane| {
            let hello = Hello {
                versions: version::OURS,
                migration: MigrationId(attempt.0),
                attempt,
                guest,
                lane: *lane,
                link,
            };
            let (mut reader, writer) = greet(service, host, hello)?;
            match heard(&mut reader)? {
                Some(Message::Welcome(_)) => Ok((reader, writer)),
                other => panic!("{other:?} in answer to a hello"),
            }
        });
        let lanes = lanes.collect::<Result<_, _>>()?;
        Ok(Self { lanes })
    }

    /// Sends Hello on one lane, offering these versions; returns the answer.
    ///
    /// # Errors
    ///
    /// The error that ends the lane instead of an answer.
    ///
    /// # Panics
    ///
    /// If the socket cannot be used.
    pub fn greeting(
        service: &Path,
        host: &HostIdentity,
        versions: VersionRange,
    ) -> Result<Option<Message>, Fault> {
        let hello = Hello {
            versions,
            migration: MigrationId(1),
            attempt: AttemptId(1),
            guest: GuestId(1),
            lane: Lane::Control,
            link: 1,
        };
        let (mut reader, _writer) = greet(service, host, hello)?;
        heard(&mut reader)
    }

    /// Sends a message on a lane.
    ///
    /// # Errors
    ///
    /// If the migrator has closed it.
    pub fn say(&mut self, lane: Lane, message: &Message) -> Result<(), Fault> {
        let writer = &mut self.lanes[lane as usize].1;
        writer.write_message(message)?;
        writer.flush()
    }

    /// Sends a raw frame on a lane, valid or not.
    ///
    /// # Errors
    ///
    /// If the migrator has closed it.
    pub fn put(&mut self, lane: Lane, frame: &[u8]) -> Result<(), Fault> {
        let writer = &mut self.lanes[lane as usize].1;
        writer.write_chunk_frame(frame)?;
        writer.flush()
    }

    /// Counts the frames that arrive on a lane before it ends.
    ///
    /// # Panics
    ///
    /// If nothing arrives for a long time.
    pub fn count_frames(&mut self, lane: Lane) -> usize {
        let reader = &mut self.lanes[lane as usize].0;
        let frames = std::iter::from_fn(|| match reader.next_frame() {
            Ok(Incoming::Frame(_)) => Some(()),
            Ok(Incoming::End) | Err(_) => None,
            Ok(Incoming::Idle) => panic!("the lane is still open after {WORD_WAIT:?}"),
        });
        frames.count()
    }

    /// The next message on the control lane, ignoring pings; `None` once the lane has ended.
    ///
    /// # Panics
    ///
    /// If nothing arrives for a long time.
    pub fn hear(&mut self) -> Option<Message> {
        loop {
            match heard(&mut self.lanes[Lane::Control as usize].0) {
                Ok(Some(Message::Ping(_))) => {}
                Ok(message) => return message,
                Err(_) => return None,
            }
        }
    }
}

/// Opens a lane and sends Hello on it.
fn greet(
    service: &Path,
    host: &HostIdentity,
    hello: Hello,
) -> Result<(LaneReader<UnixStream>, LaneWriter<UnixStream>), Fault> {
    let mut socket = UnixStream::connect(service).expect("the migrator's service socket");
    let accepted = Preamble::Accepted(Accepted {
        peer: host.clone(),
        service: "migrator".parse().expect("a name"),
        class: Class::Control,
    });
    socket.write_all(&accepted.encode()).expect("the preamble");
    let copy = || socket.try_clone().expect("a socket");
    let mut writer = LaneWriter::for_socket(copy(), WORD_WAIT)?;
    writer.write_message(&Message::Hello(hello))?;
    writer.flush()?;
    Ok((LaneReader::for_socket(copy(), WORD_WAIT)?, writer))
}

fn heard(reader: &mut LaneReader<UnixStream>) -> Result<Option<Message>, Fault> {
    match reader.next_frame()? {
        Incoming::Frame(frame) => frame.message().map(Some),
        Incoming::End => Ok(None),
        Incoming::Idle => panic!("the migrator says nothing for {WORD_WAIT:?}"),
    }
}
