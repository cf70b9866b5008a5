//! Accepts the lanes that peers open and hands each to the worker of its guest.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use towpath_daemon::lines::RateLimit;
use towpath_daemon::socket::Socket;
use towpath_daemon::stream::accept_stream;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::HostIdentity;
use towpath_protocol::message::{Hello, Lane, Message, Welcome};
use towpath_protocol::version::{self, Speaker};
use tracing::{info, warn};

use super::input::Input;
use super::lanes::{IDLE_WAIT, OpenLane, spawn};
use super::mailbox_of;
use super::shared::Shared;
use crate::config::MOVES_MAX;
use crate::lane::{Incoming, LaneReader, LaneWriter, WRITE_WAIT_MAX};

/// A lane that has not sent its hello by then is closed, whatever else it sends.
const HELLO_WAIT: Duration = Duration::from_secs(5);

/// Pause after a failed accept. Usually descriptors have run out; the stream stays queued, so
/// another accept would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Lanes of one peer that may greet at the same time: the lanes of as many moves as a host may
/// have. They all come at once after an outage or a restart of the peer. A move needs all its
/// lanes, so if one were refused, all would be reopened, in step with those of the other moves.
const GREETINGS_PER_PEER_MAX: usize = Lane::ALL.len() * MOVES_MAX as usize;

/// Lanes of all peers that may greet at the same time. Each takes a thread, two descriptors and up
/// to 4 KiB of received bytes; together 4096 of the 65536 descriptors that the unit allows. One
/// peer, or a few, cannot take the places of the others.
const GREETING_COUNT_MAX: usize = 8 * GREETINGS_PER_PEER_MAX;

/// Lanes of one peer refused for the same reason share one log line per this interval.
const REFUSAL_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Accepts the streams that the tunnel hands over, for ever.
pub(super) fn accept_lanes(shared: &Arc<Shared>, service: &Socket) {
    accept_lanes_at(&Arc::default(), shared, service);
}

fn accept_lanes_at(porch: &Arc<Porch>, shared: &Arc<Shared>, service: &Socket) {
    let failures = RateLimit::default();
    for stream in service.listener().incoming() {
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                if let Some(untold) = failures.admit() {
                    warn!(%error, untold, "a stream could not be accepted");
                }
                std::thread::sleep(ACCEPT_PAUSE);
                continue;
            }
        };
        if service.check_peer(&stream).is_err() {
            continue;
        }
        let mut place = match Place::take(porch) {
            Ok(place) => place,
            Err(fault) => {
                porch.not_taken(None, &fault);
                continue;
            }
        };
        let shared = Arc::clone(shared);
        let greeted = spawn("towpath-greet", move || {
            let greeted = accept_stream(&stream).and_then(|accepted| {
                place.name(&accepted.peer)?;
                greet(&shared, accepted.peer, stream)
            });
            if let Err(fault) = greeted {
                place.porch.not_taken(place.peer.as_ref(), &fault);
            }
        });
        if let Err(fault) = greeted {
            porch.not_taken(None, &fault);
        }
    }
}

/// Counts lanes that are greeting, and lanes that were refused.
#[derive(Debug, Default)]
struct Porch(Mutex<Crowd>);

#[derive(Debug, Default)]
struct Crowd {
    count: usize,
    of_peers: BTreeMap<HostIdentity, usize>,
    refusals: BTreeMap<(Option<HostIdentity>, &'static str), Refusals>,
}

/// Lanes refused since the last log line about them.
#[derive(Debug)]
struct Refusals {
    logged_at: Instant,
    unlogged_count: u64,
}

impl Porch {
    fn crowd(&self) -> MutexGuard<'_, Crowd> {
        self.0.lock().expect("nothing panics on the porch")
    }

    /// Reports a refused lane. A peer that opens lanes again and again does not fill the log.
    fn not_taken(&self, peer: Option<&HostIdentity>, fault: &Fault) {
        if let Some(unlogged_count) = self.is_worth_a_line(peer, fault.code, Instant::now()) {
            let peer = peer.map_or_else(|| "unknown".to_owned(), HostIdentity::to_string);
            info!(%peer, %fault, unlogged_count, "a lane was not taken");
        }
    }

    /// Refused lanes that went unlogged since the last line, if another line is due.
    fn is_worth_a_line(
        &self,
        peer: Option<&HostIdentity>,
        code: Code,
        now: Instant,
    ) -> Option<u64> {
        let mut crowd = self.crowd();
        let is_recent = |refusals: &Refusals| now < refusals.logged_at + REFUSAL_LOG_INTERVAL;
        let key = (peer.cloned(), code.as_str());
        if let Some(known) = crowd.refusals.get_mut(&key)
            && is_recent(known)
        {
            known.unlogged_count += 1;
            return None;
        }
        let known = crowd.refusals.remove(&key);
        // Each peer has at most one entry per code; entries older than the interval are dropped.
        crowd.refusals.retain(|_, refusals| is_recent(refusals));
        let begun = Refusals {
            logged_at: now,
            unlogged_count: 0,
        };
        crowd.refusals.insert(key, begun);
        Some(known.map_or(0, |known| known.unlogged_count))
    }
}

/// The place of one greeting lane; freed on drop.
#[derive(Debug)]
struct Place {
    porch: Arc<Porch>,
    peer: Option<HostIdentity>,
}

impl Place {
    /// Takes a place for a lane whose peer is not known yet.
    fn take(porch: &Arc<Porch>) -> Result<Self, Fault> {
        let mut crowd = porch.crowd();
        if crowd.count >= GREETING_COUNT_MAX {
            return Err(Fault::new(Code::Busy, "too many lanes greet at once"));
        }
        crowd.count += 1;
        drop(crowd);
        Ok(Self {
            porch: Arc::clone(porch),
            peer: None,
        })
    }

    /// Counts the place against the share of its peer, now known.
    fn name(&mut self, peer: &HostIdentity) -> Result<(), Fault> {
        let mut crowd = self.porch.crowd();
        let count = crowd.of_peers.entry(peer.clone()).or_default();
        self.peer = Some(peer.clone());
        *count += 1;
        if *count > GREETINGS_PER_PEER_MAX {
            let detail = "too many lanes of one peer greet at once";
            return Err(Fault::new(Code::Busy, detail));
        }
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut crowd = self.porch.crowd();
        crowd.count -= 1;
        if let Some(peer) = &self.peer
            && let Some(count) = crowd.of_peers.get_mut(peer)
        {
            *count -= 1;
            if *count == 0 {
                crowd.of_peers.remove(peer);
            }
        }
    }
}

/// Reads a lane's hello, answers it and hands the lane to the guest's worker.
pub(super) fn greet(
    shared: &Arc<Shared>,
    peer: HostIdentity,
    stream: UnixStream,
) -> Result<(), Fault> {
    let io = |error: std::io::Error| Fault::new(Code::Io, format!("a lane's socket: {error}"));
    let deadline = Instant::now() + HELLO_WAIT;
    let mut reader = LaneReader::for_greeting(stream.try_clone().map_err(io)?);
    reader.count_skipped_in(shared.metrics.skipped_messages());
    let hello = match reader.next_frame_until(deadline)? {
        Incoming::Frame(frame) => match frame.message()? {
            Message::Hello(hello) => hello,
            other => {
                let kind = other.kind();
                let detail = format!("message kind {kind} in place of a hello");
                return Err(Fault::new(Code::Unexpected, detail));
            }
        },
        // A probe for whether a migrator is here.
        Incoming::End => return Ok(()),
        Incoming::Idle => return Err(Fault::new(Code::Stalled, "a lane said no hello")),
    };
    let (ours, theirs) = (migrator_name(&shared.host), migrator_name(&peer));
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
    // Buffers are only allocated now, so that a lane that never says hello costs little.
    let mut writer = LaneWriter::for_socket(stream.try_clone().map_err(io)?, WRITE_WAIT_MAX)?;
    writer.write_message(&answer)?;
    writer.flush()?;
    negotiated?;
    reader.widen();
    stream.set_read_timeout(Some(IDLE_WAIT)).map_err(io)?;
    let lane = OpenLane {
        lane: hello.lane,
        socket: stream,
        reader,
    };
    route(shared, peer, hello, lane).inspect_err(|fault| {
        // Commits nobody to anything, but gives the reason: without it the source would keep
        // reopening lanes.
        let refused = writer.write_message(&Message::Refused(fault.into()));
        drop(refused.and_then(|()| writer.flush()));
    })
}

/// How error messages about versions name the migrator of a host.
pub(super) fn migrator_name(host: &HostIdentity) -> String {
    format!("the migrator of {host}")
}

fn route(
    shared: &Arc<Shared>,
    from: HostIdentity,
    hello: Hello,
    lane: OpenLane,
) -> Result<(), Fault> {
    let mailbox = mailbox_of(shared, &from, hello.guest)?;
    mailbox.send_bounded([Input::Lane { from, hello, lane }]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use towpath_protocol::class::Class;
    use towpath_protocol::frame::{FLAG_CRITICAL, write_frame};
    use towpath_protocol::identity::{AttemptId, GuestId, MigrationId};
    use towpath_protocol::message::KIND_CHUNK;
    use towpath_protocol::preamble::{Accepted, Preamble};

    use super::*;
    use crate::engine::tests::{PATIENCE, host};

    fn peer(name: &str) -> HostIdentity {
        let uri = format!("spiffe://d/site/region/host/{name}");
        HostIdentity::from_uri(&uri).unwrap()
    }

    fn hello() -> Message {
        Message::Hello(Hello {
            versions: version::OURS,
            migration: MigrationId(9),
            attempt: AttemptId(9),
            guest: GuestId(7),
            lane: Lane::Control,
            link: 1,
        })
    }

    /// A frame that every version may skip.
    fn skipped() -> Vec<u8> {
        let mut frame = Vec::new();
        write_frame(200, 0, b"", &mut frame);
        frame
    }

    #[test]
    fn t16_what_is_skipped_does_not_lengthen_the_wait_for_a_hello() {
        let (_folder, shared) = host("");
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let begun = Instant::now();
        let trickling = std::thread::spawn(move || {
            // One frame a second until the other end is closed.
            while theirs.write_all(&skipped()).is_ok() {
                assert!(begun.elapsed() < PATIENCE, "the lane is read for ever");
                std::thread::sleep(Duration::from_secs(1));
            }
        });
        let (answer, answered) = std::sync::mpsc::channel();
        std::thread::spawn(move || drop(answer.send(greet(&shared, peer("box"), ours))));
        let greeted = answered.recv_timeout(PATIENCE);
        let fault = greeted.expect("it ends").unwrap_err();
        assert_eq!(fault.code, Code::Stalled);
        trickling.join().unwrap();
    }

    #[test]
    fn a_place_takes_little_memory_whatever_is_said() {
        let (_folder, shared) = host("");
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut large = Vec::new();
        write_frame(KIND_CHUNK, FLAG_CRITICAL, &[0; 8 << 10], &mut large);
        // The other end may close in the middle of the write.
        let saying = std::thread::spawn(move || drop(theirs.write_all(&large)));
        let fault = greet(&shared, peer("box"), ours).unwrap_err();
        assert_eq!(fault.code, Code::TooLarge);
        saying.join().unwrap();
    }

    #[test]
    fn a_peer_that_says_no_hello_keeps_no_other_peer_out() {
        let (folder, shared) = host("");
        let path = folder.path().join("run/service.sock");
        let service = Socket::bind(&path).unwrap();
        let porch = Arc::new(Porch::default());
        let taken = take_all(&porch, "bad");
        assert_eq!(taken.len(), GREETINGS_PER_PEER_MAX);
        // This thread never returns; it ends with the test program.
        std::thread::spawn(move || accept_lanes_at(&porch, &shared, &service));
        let open = |name: &str| {
            let mut stream = UnixStream::connect(&path).unwrap();
            let accepted = Accepted {
                peer: peer(name),
                service: super::super::SERVICE.parse().unwrap(),
                class: Class::Control,
            };
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let said = Preamble::Accepted(accepted).encode();
            stream.write_all(&said).unwrap();
            stream
        };
        // A lane beyond the peer's share is closed.
        assert_eq!(open("bad").read(&mut [0]).unwrap(), 0);
        let mut honest = open("good");
        let mut said = Vec::new();
        hello().encode(&mut said);
        honest.write_all(&said).unwrap();
        let mut answer = LaneReader::for_socket(honest, PATIENCE).unwrap();
        let Incoming::Frame(frame) = answer.next_frame().unwrap() else {
            panic!("an honest peer is kept out");
        };
        assert!(matches!(frame.message(), Ok(Message::Welcome(_))));
    }

    fn take(porch: &Arc<Porch>, name: &str) -> Result<Place, Fault> {
        let mut place = Place::take(porch)?;
        place.name(&peer(name)).map(|()| place)
    }

    /// Takes all places of one peer.
    fn take_all(porch: &Arc<Porch>, name: &str) -> Vec<Place> {
        std::iter::from_fn(|| take(porch, name).ok()).collect()
    }

    #[test]
    fn each_peer_has_a_share_of_the_places_and_gives_them_back() {
        let porch = Arc::new(Porch::default());
        for _ in 0..2 {
            let taken = take_all(&porch, "bad");
            assert_eq!(taken.len(), GREETINGS_PER_PEER_MAX);
            // All lanes of 64 guests whose link comes back.
            let honest = (0..4 * 64).map(|_| take(&porch, "good"));
            assert!(honest.collect::<Result<Vec<Place>, Fault>>().is_ok());
        }
        let crowd = porch.crowd();
        assert_eq!((crowd.count, crowd.of_peers.len()), (0, 0));
    }

    #[test]
    fn lanes_that_are_not_taken_again_and_again_have_one_line_of_the_log() {
        let porch = Porch::default();
        let begun = Instant::now();
        let (bad, good) = (peer("bad"), peer("good"));
        let line = |peer, code, after| porch.is_worth_a_line(Some(peer), code, begun + after);
        let soon = Duration::from_millis(1);
        assert_eq!(line(&bad, Code::Quarantine, Duration::ZERO), Some(0));
        for _ in 0..1000 {
            assert_eq!(line(&bad, Code::Quarantine, soon), None);
        }
        assert_eq!(line(&bad, Code::Busy, soon), Some(0), "another reason");
        assert_eq!(line(&good, Code::Quarantine, soon), Some(0), "another peer");
        assert_eq!(
            line(&bad, Code::Quarantine, REFUSAL_LOG_INTERVAL),
            Some(1000)
        );
        let long_after = 3 * REFUSAL_LOG_INTERVAL;
        line(&good, Code::Busy, long_after);
        assert_eq!(
            porch.crowd().refusals.len(),
            1,
            "nothing is kept of the others"
        );
    }
}
