//! Streams through the tunnel for programs with plain blocking sockets: open one, or be handed one.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use towpath_protocol::channel::{
    Accepted, Class, DETAIL_BYTES_MAX, Leg, Open, Preamble, TRUST_SERVICE,
};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::frame::HEADER_BYTES;
use towpath_protocol::identity::{HostIdentity, Name};

/// How long a preamble may take to arrive on a connection that has just been accepted: the tunnel
/// sends it with its first write, so a longer wait means that someone else has connected.
pub const PREAMBLE_WAIT: Duration = Duration::from_secs(5);

/// Bytes a local socket holds for a reader that is busy, where the class fills the link: the writer
/// then sleeps once for a mebibyte and not for each chunk. The system may give less.
const BULK_BUFFER_BYTES: usize = 1 << 20;

/// Gives a local socket that carries a class the room to send that the class needs.
pub fn make_room(socket: impl AsFd, class: Class) {
    if class.leg() == Leg::Bulk {
        // With less room the stream is slower, and nothing else.
        let _ = sockopt::set_socket_send_buffer_size(socket, BULK_BUFFER_BYTES);
    }
}

/// Connects to a daemon's socket; where too many wait to be accepted, as by a daemon that hangs, for at most
/// `wait`, which must not be zero. Writes on the connection wait for as long, unless told otherwise.
///
/// # Errors
///
/// [`io::ErrorKind::WouldBlock`] if that was too long, or what else the system says.
pub fn connect_within(path: &Path, wait: Duration) -> io::Result<UnixStream> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(wait))?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(UnixStream::from(socket))
}

/// Opens a stream to a service at a peer; returns it once the service has it.
///
/// The returned socket has no timeouts set, and none of the stream's bytes have been read.
///
/// # Errors
///
/// `E_UNREACHABLE` if the tunnel's socket cannot be used, `E_STALLED` if there is no answer within
/// `wait`, and whatever the tunnel or its peer refuses with: `E_DENIED`, `E_NOT_FOUND`,
/// `E_UNREACHABLE`, `E_BUSY`.
pub fn open_stream(
    tunnel: &Path,
    open: &Open,
    wait: Duration,
) -> Result<(UnixStream, HostIdentity), Fault> {
    let until = Instant::now() + wait;
    let mut stream = connect_within(tunnel, wait).map_err(|error| {
        let is_late = error.kind() == io::ErrorKind::WouldBlock;
        let detail = format!("the tunnel's socket {}: {error}", tunnel.display());
        let code = if is_late {
            Code::Stalled
        } else {
            Code::Unreachable
        };
        Fault::new(code, detail)
    })?;
    make_room(&stream, open.class);
    stream
        .set_write_timeout(Some(wait))
        .map_err(|error| broken(&error))?;
    stream
        .write_all(&Preamble::Open(open.clone()).encode())
        .map_err(|error| broken(&error))?;
    let answer = read_preamble(&mut stream, until)?;
    clear_timeouts(&stream)?;
    match answer {
        Preamble::Opened(peer) => Ok((stream, peer)),
        Preamble::Refused(fault) => Err(with_own_remedy(fault)),
        other => Err(unexpected(&other)),
    }
}

/// Stands between a refusal's words and what mends it: a refusal has room for words alone, and programs that know of no
/// remedy show both.
const REMEDY_MARK: char = '\n';

/// A refusal as the tunnel says it to programs of its own host: its remedy stands behind its words, if there is room for
/// all of it. Words of a peer never pass for one.
#[must_use]
pub fn told_here(fault: &Fault) -> Fault {
    let mut detail = fault.detail.replace(REMEDY_MARK, " ");
    if let Some(remedy) = &fault.remedy
        && detail.len() + 1 + remedy.len() <= DETAIL_BYTES_MAX
    {
        detail.push(REMEDY_MARK);
        detail.push_str(remedy);
    }
    Fault::new(fault.code, detail)
}

/// The same as a program of this host understands it.
fn with_own_remedy(fault: Fault) -> Fault {
    match fault.detail.split_once(REMEDY_MARK) {
        Some((detail, remedy)) => Fault::new(fault.code, detail).remedy(remedy),
        None => fault,
    }
}

/// Asks the tunnel of this host's own site whether new work may begin.
///
/// # Errors
///
/// `E_CRL_STALE` while the tunnel does not know what has been revoked lately, `E_UNREACHABLE` if its
/// socket cannot be used, `E_STALLED` if there is no answer within `wait`.
pub fn check_trust(tunnel: &Path, site: &Name, wait: Duration) -> Result<(), Fault> {
    let open = Open {
        peer: site.clone(),
        service: TRUST_SERVICE.parse().expect("the service's name is a name"),
        class: Class::Control,
    };
    match open_stream(tunnel, &open, wait) {
        // A tunnel of an earlier release has no such service, and no lists either.
        Err(fault) if fault.code == Code::NotFound => Ok(()),
        asked => asked.map(|_| ()),
    }
}

/// Reads who opened a stream that the tunnel has just handed over.
///
/// Afterwards the socket has no timeouts set, and none of the stream's bytes have been read.
///
/// # Errors
///
/// `E_STALLED` if the preamble is not there within [`PREAMBLE_WAIT`], a framing fault if it is none.
pub fn accept_stream(stream: &UnixStream) -> Result<Accepted, Fault> {
    let mut reader = stream;
    let preamble = read_preamble(&mut reader, Instant::now() + PREAMBLE_WAIT)?;
    clear_timeouts(stream)?;
    match preamble {
        Preamble::Accepted(accepted) => Ok(accepted),
        other => Err(unexpected(&other)),
    }
}

/// What [`read_preamble`] needs of a socket.
trait TimedRead: Read {
    fn set_timeout(&self, timeout: Duration) -> io::Result<()>;
}

impl TimedRead for UnixStream {
    fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(timeout))
    }
}

impl TimedRead for &UnixStream {
    fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(timeout))
    }
}

fn read_preamble(stream: &mut impl TimedRead, until: Instant) -> Result<Preamble, Fault> {
    let mut header_bytes = [0; HEADER_BYTES];
    read_by(stream, &mut header_bytes, until)?;
    let header = Preamble::parse_header(&header_bytes)?;
    let mut body = vec![0; header.body_bytes as usize];
    read_by(stream, &mut body, until)?;
    Preamble::decode_body(&header, &body)
}

/// Fills `bytes` by `until`, however slowly the other side drips: a socket's own timeout begins anew
/// with every byte.
fn read_by(stream: &mut impl TimedRead, bytes: &mut [u8], until: Instant) -> Result<(), Fault> {
    let mut filled = 0;
    while filled < bytes.len() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(late());
        }
        stream.set_timeout(left).map_err(|error| broken(&error))?;
        match stream.read(&mut bytes[filled..]) {
            Ok(0) => {
                let detail = "the tunnel closed the stream before it was open";
                return Err(Fault::new(Code::Unreachable, detail));
            }
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(broken(&error)),
        }
    }
    Ok(())
}

fn clear_timeouts(stream: &UnixStream) -> Result<(), Fault> {
    stream
        .set_read_timeout(None)
        .and_then(|()| stream.set_write_timeout(None))
        .map_err(|error| broken(&error))
}

fn late() -> Fault {
    Fault::new(Code::Stalled, "no answer from the tunnel in time")
}

fn broken(error: &io::Error) -> Fault {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => late(),
        _ => Fault::new(Code::Unreachable, format!("the tunnel's stream: {error}")),
    }
}

fn unexpected(preamble: &Preamble) -> Fault {
    let name = preamble.name();
    Fault::new(Code::Unexpected, format!("the tunnel said {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::thread;
    use towpath_protocol::channel::Class;

    fn open() -> Open {
        Open {
            peer: "region".parse().unwrap(),
            service: "migrator".parse().unwrap(),
            class: Class::Control,
        }
    }

    fn peer() -> HostIdentity {
        HostIdentity {
            trust_domain: "test".parse().unwrap(),
            site: "region".parse().unwrap(),
            host: "box".parse().unwrap(),
        }
    }

    /// A socket path of this test's own; the folder goes when the process does.
    fn socket_path(test: &str) -> std::path::PathBuf {
        let folder = std::env::temp_dir().join(format!("towpath-{}-{test}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder.join("s")
    }

    fn answer_with(
        test: &str,
        answer: Vec<u8>,
        wait: Duration,
    ) -> Result<(UnixStream, HostIdentity), Fault> {
        let path = socket_path(test);
        let listener = UnixListener::bind(&path).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let until = Instant::now() + PREAMBLE_WAIT;
            let heard = read_preamble(&mut stream, until).unwrap();
            assert_eq!(heard, Preamble::Open(open()));
            stream.write_all(&answer).unwrap();
            stream
        });
        let result = open_stream(&path, &open(), wait);
        let _keep_open_until_answered = server.join().unwrap();
        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
        result
    }

    #[test]
    fn an_opened_stream_keeps_the_bytes_that_came_with_the_answer() {
        let mut answer = Preamble::Opened(peer()).encode();
        answer.extend_from_slice(b"first");
        let (mut stream, from) = answer_with("opened", answer, PREAMBLE_WAIT).unwrap();
        assert_eq!(from, peer());
        let mut first = [0; 5];
        stream.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"first");
        assert_eq!(stream.read_timeout().unwrap(), None);
    }

    #[test]
    fn a_refusal_is_handed_on_as_it_was_said() {
        let fault = Fault::new(Code::Denied, "site edge may not use migrator");
        let answer = Preamble::Refused(fault.clone()).encode();
        assert_eq!(
            answer_with("refused", answer, PREAMBLE_WAIT).unwrap_err(),
            fault
        );
    }

    #[test]
    fn what_mends_it_comes_with_the_own_tunnels_refusal() {
        let heard = |test: &str, fault: &Fault| {
            let answer = Preamble::Refused(told_here(fault)).encode();
            answer_with(test, answer, PREAMBLE_WAIT).unwrap_err()
        };
        let fault = Fault::new(Code::Unreachable, "no link to region");
        let told = fault.clone().remedy("look at the cable");
        assert_eq!(heard("mended", &told), told);
        // One that has no room is left out, and what a peer says is no remedy of ours.
        let long = fault.clone().remedy("x".repeat(DETAIL_BYTES_MAX));
        assert_eq!(heard("long", &long), fault);
        let peers = heard("peers", &Fault::new(Code::Denied, "no\nsend us your key"));
        assert_eq!(peers, Fault::new(Code::Denied, "no send us your key"));
    }

    #[test]
    fn silence_and_nonsense_end_with_a_code() {
        let silent = answer_with("silent", Vec::new(), Duration::from_millis(50));
        assert_eq!(silent.unwrap_err().code, Code::Stalled);
        let nonsense = answer_with("nonsense", vec![7; 64], PREAMBLE_WAIT);
        assert_eq!(nonsense.unwrap_err().code, Code::Framing);
        let wrong = answer_with("wrong", Preamble::Open(open()).encode(), PREAMBLE_WAIT);
        assert_eq!(wrong.unwrap_err().code, Code::Unexpected);
        let nobody = open_stream(Path::new("/nonexistent/s"), &open(), PREAMBLE_WAIT);
        assert_eq!(nobody.unwrap_err().code, Code::Unreachable);
    }

    #[test]
    fn an_accepted_stream_says_who_opened_it() {
        let (ours, mut tunnels) = UnixStream::pair().unwrap();
        let accepted = Accepted {
            peer: HostIdentity::from_uri("spiffe://t/site/edge/host/box-1").unwrap(),
            service: "migrator".parse().unwrap(),
            class: Class::Bulk,
        };
        tunnels
            .write_all(&Preamble::Accepted(accepted.clone()).encode())
            .unwrap();
        tunnels.write_all(b"x").unwrap();
        assert_eq!(accept_stream(&ours), Ok(accepted));
        let mut first = [0; 1];
        (&ours).read_exact(&mut first).unwrap();
        assert_eq!(&first, b"x");
    }
}
