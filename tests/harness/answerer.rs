//! A host that answers a real migrator in place of another one, with whatever a test wants: it is met over both
//! tunnels, which know no better.

use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use towpath_daemon::stream::accept_stream;
use towpath_migrator::lane::{Incoming, LaneReader, LaneWriter};
use towpath_protocol::message::{Hello, Lane, Message};

use crate::site::Site;

/// How long a source may take to come, and to say something that is waited for.
const WORD_WAIT: Duration = Duration::from_secs(20);

/// Stands where a site's migrator stood; that one must be gone.
#[derive(Debug)]
pub struct Answerer {
    service: UnixListener,
}

/// The lanes of one attempt, at the side that is asked.
#[derive(Debug)]
pub struct Asked {
    /// What the source said first.
    pub hello: Hello,
    control: (LaneReader<UnixStream>, LaneWriter<UnixStream>),
    _others: Vec<UnixStream>,
}

impl Answerer {
    /// Takes the place of a site's migrator.
    ///
    /// # Panics
    ///
    /// If its socket cannot be had.
    #[must_use]
    pub fn at(site: &Site) -> Self {
        let path = site.service_socket();
        // The one that was killed has left it behind.
        drop(std::fs::remove_file(&path));
        let service = UnixListener::bind(path).expect("the migrator's service socket");
        service.set_nonblocking(true).expect("a socket");
        Self { service }
    }

    /// Answers the greetings of the four lanes of one attempt.
    ///
    /// # Panics
    ///
    /// If nobody comes, or greets as no migrator does.
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

    /// The next lane; none for a look whether somebody is there.
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
    /// Says something on the control lane; it may be closed by then.
    pub fn say(&mut self, message: &Message) {
        let writer = &mut self.control.1;
        drop(writer.write_message(message).and_then(|()| writer.flush()));
    }

    /// The next word on the control lane; pings are left out. None once it has ended.
    ///
    /// # Panics
    ///
    /// If nothing comes for a long time.
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
