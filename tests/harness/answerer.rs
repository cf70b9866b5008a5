//! A host that answers a real migrator in place of another host, with any messages a test wants. It
//! is reached through both tunnels, which do not notice.

use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use towpath_daemon::stream::accept_stream;
use towpath_migrator::lane::{Incoming, LaneReader, LaneWriter};
use towpath_protocol::message::{Hello, Lane, Message};

use crate::site::Site;

/// How long a source may take to connect, and to send an expected message.
const WORD_WAIT: Duration = Duration::from_secs(20);

/// Takes the place of a site's migrator, which must not be running.
#[derive(Debug)]
pub struct Answerer {
    service: UnixListener,
}

/// The lanes of one attempt, on the target's side.
#[derive(Debug)]
pub struct Asked {
    /// The source's first message.
    pub hello: Hello,
    control: (LaneReader<UnixStream>, LaneWriter<UnixStream>),
    _others: Vec<UnixStream>,
}

impl Answerer {
    /// Takes the place of a site's migrator.
    ///
    /// # Panics
    ///
    /// If its socket cannot be bound.
    #[must_use]
    pub fn at(site: &Site) -> Self {
        let path = site.service_socket();
        // The killed migrator has left it behind.
        drop(std::fs::remove_file(&path));
        let service = UnixListener::bind(path).expect("the migrator's service socket");
        service.set_nonblocking(true).expect("a socket");
        Self { service }
    }

    /// Answers the Hello messages on the four lanes of one attempt.
    ///
    /// # Panics
    ///
    /// If no source connects, or its Hello is not a migrator's.
    #[must_use]
    pub fn greet(&self, answer: &Message) -> Asked {
        let mut lanes = Vec::new();
        loop {
            let Some((hello, reader, mut writer, socket)) = self.greeted() else {
                continue;
            };
            writer.write_message(answer).expect("a greeting");
            writer.flush().expect("a greeting");
            lanes.push((hello, reader, writer, socket));
            if lanes.len() == Lane::ALL.len() {
                break;
            }
        }
        let is_control = |lane: &(Hello, _, _, _)| lane.0.lane == Lane::Control;
        let control = lanes.iter().position(is_control).expect("a control lane");
        let (hello, reader, writer, _) = lanes.swap_remove(control);
        Asked {
            hello,
            control: (reader, writer),
            _others: lanes.into_iter().map(|(.., socket)| socket).collect(),
        }
    }

    /// The next lane; `None` for a connection that only probes whether the service is there.
    fn greeted(
        &self,
    ) -> Option<(
        Hello,
        LaneReader<UnixStream>,
        LaneWriter<UnixStream>,
        UnixStream,
    )> {
        let until = Instant::now() + WORD_WAIT;
        let stream = loop {
            match self.service.accept() {
                Ok((stream, _)) => break stream,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    let left = until.saturating_duration_since(Instant::now());
                    assert!(!left.is_zero(), "nobody comes for {WORD_WAIT:?}");
                    let mut ready = [PollFd::new(&self.service, PollFlags::IN)];
                    let wait = left.try_into().expect("a short time");
                    poll(&mut ready, Some(&wait)).expect("a socket can be waited for");
                }
                Err(error) => panic!("the migrator's service socket: {error}"),
            }
        };
        stream.set_nonblocking(false).expect("a socket");
        accept_stream(&stream).expect("a stream of the tunnel's");
        let copy = || stream.try_clone().expect("a socket");
        let mut reader = LaneReader::for_socket(copy(), WORD_WAIT).expect("a lane");
        let writer = LaneWriter::for_socket(copy(), WORD_WAIT).expect("a lane");
        match reader.next_frame().expect("a greeting") {
            Incoming::Frame(frame) => match frame.message().expect("a greeting") {
                Message::Hello(hello) => Some((hello, reader, writer, stream)),
                other => panic!("{other:?} in place of a hello"),
            },
            Incoming::End => None,
            Incoming::Idle => panic!("no hello for {WORD_WAIT:?}"),
        }
    }
}

impl Asked {
    /// Sends a message on the control lane, which may already be closed.
    pub fn say(&mut self, message: &Message) {
        let writer = &mut self.control.1;
        drop(writer.write_message(message).and_then(|()| writer.flush()));
    }

    /// The next message on the control lane, ignoring pings; `None` once the lane has ended.
    ///
    /// # Panics
    ///
    /// If nothing arrives for a long time.
    pub fn hear(&mut self) -> Option<Message> {
        loop {
            match self.control.0.next_frame() {
                Ok(Incoming::Frame(frame)) => match frame.message().ok()? {
                    Message::Ping(_) => {}
                    message => return Some(message),
                },
                Ok(Incoming::End) | Err(_) => return None,
                Ok(Incoming::Idle) => panic!("the source says nothing for {WORD_WAIT:?}"),
            }
        }
    }
}
