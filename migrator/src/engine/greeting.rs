//! Takes the lanes that peers open here, and hands each to the worker of its guest.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use towpath_daemon::socket::Socket;
use towpath_daemon::stream::accept_stream;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::HostIdentity;
use towpath_protocol::message::{Hello, Message, Welcome};
use towpath_protocol::version::{self, Speaker};
use tracing::{info, warn};

use super::input::Input;
use super::lanes::{IDLE_WAIT, OpenLane, spawn};
use super::mailbox_of;
use super::shared::Shared;
use crate::lane::{Incoming, LaneReader, LaneWriter, WRITE_WAIT_MAX};

/// A lane that does not say hello within this time is closed.
const HELLO_WAIT: Duration = Duration::from_secs(5);

/// Pause after a stream that could not be accepted: mostly there are no descriptors left, and it would wait
/// there and fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Lanes that may be saying hello at once.
const GREETING_COUNT_MAX: usize = 64;

/// Takes the streams the tunnel hands over, for ever.
pub(super) fn accept_lanes(shared: &Arc<Shared>, service: &Socket) {
    let greeting = Arc::new(());
    for stream in service.listener().incoming() {
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                warn!(%error, "a stream could not be accepted");
                std::thread::sleep(ACCEPT_PAUSE);
                continue;
            }
        };
        if Arc::strong_count(&greeting) > GREETING_COUNT_MAX {
            warn!("too many lanes greet at once: one is refused");
            continue;
        }
        if service.check_peer(&stream).is_err() {
            continue;
        }
        let (shared, greeting) = (Arc::clone(shared), Arc::clone(&greeting));
        let greeted = spawn("towpath-greet", move || {
            if let Err(fault) = greet(&shared, stream) {
                info!(%fault, "a lane was not taken");
            }
            drop(greeting);
        });
        if let Err(fault) = greeted {
            warn!(%fault, "a lane was not taken");
        }
    }
}

/// Reads a lane's hello, answers it, and hands the lane to the guest's worker.
pub(super) fn greet(shared: &Arc<Shared>, stream: UnixStream) -> Result<(), Fault> {
    let accepted = accept_stream(&stream)?;
    let io = |error: std::io::Error| Fault::new(Code::Io, format!("a lane's socket: {error}"));
    let mut reader = LaneReader::for_socket(stream.try_clone().map_err(io)?, HELLO_WAIT)?;
    reader.count_skipped_in(shared.metrics.skipped_messages());
    let mut writer = LaneWriter::for_socket(stream.try_clone().map_err(io)?, WRITE_WAIT_MAX)?;
    let hello = match reader.next_frame()? {
        Incoming::Frame(frame) => match frame.message()? {
            Message::Hello(hello) => hello,
            other => {
                let kind = other.kind();
                let detail = format!("message kind {kind} in place of a hello");
                return Err(Fault::new(Code::Unexpected, detail));
            }
        },
        // A look whether we are there.
        Incoming::End => return Ok(()),
        Incoming::Idle => return Err(Fault::new(Code::Stalled, "a lane said nothing")),
    };
    let (ours, theirs) = (speaks(&shared.host), speaks(&accepted.peer));
    let ours = Speaker {
        name: &ours,
        versions: version::OURS,
    };
    let negotiated = ours.negotiate(&Speaker {
        name: &theirs,
        versions: hello.versions,
    });
    let answer = match &negotiated {
        Ok(version) => Message::Welcome(Welcome { version: *version }),
        Err(fault) => Message::Refused(fault.into()),
    };
    writer.write_message(&answer)?;
    writer.flush()?;
    negotiated?;
    stream.set_read_timeout(Some(IDLE_WAIT)).map_err(io)?;
    let lane = OpenLane {
        lane: hello.lane,
        socket: stream,
        reader,
    };
    route(shared, accepted.peer, hello, lane).inspect_err(|fault| {
        // Binds nobody, and says why: without it the source would open lanes again and again.
        let refused = writer.write_message(&Message::Refused(fault.into()));
        drop(refused.and_then(|()| writer.flush()));
    })
}

/// The name under which both sides know whose migrator speaks so many versions.
pub(super) fn speaks(host: &HostIdentity) -> String {
    format!("the migrator of {host}")
}

fn route(
    shared: &Arc<Shared>,
    from: HostIdentity,
    hello: Hello,
    lane: OpenLane,
) -> Result<(), Fault> {
    let mailbox = mailbox_of(shared, hello.guest)?;
    mailbox.send_bounded([Input::Lane { from, hello, lane }]);
    Ok(())
}
