//! Streams through the tunnel for programs with plain blocking sockets: open one, or accept one.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use towpath_protocol::class::{Class, Leg};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::frame::HEADER_BYTES;
use towpath_protocol::identity::{HostIdentity, Name};
use towpath_protocol::preamble::{Accepted, DETAIL_BYTES_MAX, Open, Preamble, TRUST_SERVICE};

/// How long the preamble of a freshly accepted connection may take. The tunnel sends it with its
/// first write, so a longer wait means that the peer is not the tunnel.
pub const PREAMBLE_WAIT: Duration = Duration::from_secs(5);

/// Send buffer of a local socket, in bytes, for classes that fill the link: a writer then sleeps
/// once per mebibyte and not for each chunk. The system may grant less.
const BULK_BUFFER_BYTES: usize = 1 << 20;

/// Gives a local socket the send buffer that its class needs.
pub fn make_room(socket: impl AsFd, class: Class) {
    if class.leg() == Leg::Bulk {
        // With a smaller buffer the stream is slower, and nothing else.
        let _ = sockopt::set_socket_send_buffer_size(socket, BULK_BUFFER_BYTES);
    }
}

/// Connects to a daemon's socket, within `wait`. Connecting takes time only while the backlog is
/// full, as with a daemon that hangs. `wait` must not be zero. It also stays the socket's write
/// timeout until that is set anew.
///
/// # Errors
///
/// [`io::ErrorKind::WouldBlock`] if it took too long; any other error of the system.
pub fn connect_within(path: &Path, wait: Duration) -> io::Result<UnixStream> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(wait))?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(UnixStream::from(socket))
}

/// Opens a stream to a service at a peer. Returns once the service has accepted it.
///
/// The returned socket has no timeouts set, and none of the stream's bytes have been read.
///
/// # Errors
///
/// `E_UNREACHABLE` if the tunnel's socket cannot be used, `E_STALLED` if there is no answer within
/// `wait`, and the refusals of the tunnel and its peer: `E_DENIED`, `E_NOT_FOUND`, `E_UNREACHABLE`,
/// `E_BUSY`.
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

/// Separates a refusal's text from its remedy. A refusal on the wire is one text; programs that do
/// not know the mark show both parts.
const REMEDY_MARK: char = '\n';

/// A refusal as the tunnel sends it to programs of its own host: the remedy follows the text, if
/// all of it fits. The mark is removed from the text itself, so a peer cannot forge a remedy.
#[must_use]
pub fn with_remedy_inline(fault: &Fault) -> Fault {
    let mut detail = fault.detail.replace(REMEDY_MARK, " ");
    if let Some(remedy) = &fault.remedy
        && detail.len() + 1 + remedy.len() <= DETAIL_BYTES_MAX
    {
        detail.push(REMEDY_MARK);
        detail.push_str(remedy);
    }
    Fault::new(fault.code, detail)
}

/// Splits the remedy off a refusal made by [`with_remedy_inline`].
fn with_own_remedy(fault: Fault) -> Fault {
    match fault.detail.split_once(REMEDY_MARK) {
        Some((detail, remedy)) => Fault::new(fault.code, detail).remedy(remedy),
        None => fault,
    }
}

/// Asks this host's tunnel whether new work may begin.
///
/// # Errors
///
/// `E_CRL_STALE` while the tunnel's revocation lists are out of date, `E_UNREACHABLE` if its socket
/// cannot be used, `E_STALLED` if there is no answer within `wait`.
pub fn check_trust(tunnel: &Path, site: &Name, wait: Duration) -> Result<(), Fault> {
    let open = Open {
        peer: site.clone(),
        service: TRUST_SERVICE.parse().expect("the service's name is a name"),
        class: Class::Control,
    };
    open_stream(tunnel, &open, wait).map(|_| ())
}

/// Reads who opened a stream that the tunnel has just handed over.
///
/// Afterwards the socket has no timeouts set, and none of the stream's bytes have been read.
///
/// # Errors
///
/// `E_STALLED` if the preamble does not arrive within [`PREAMBLE_WAIT`], a framing fault if it is
/// not a preamble.
pub fn accept_stream(stream: &UnixStream) -> Result<Accepted, Fault> {
    let mut reader = stream;
    let preamble = read_preamble(&mut reader, Instant::now() + PREAMBLE_WAIT)?;
    clear_timeouts(stream)?;
    match preamble {
        Preamble::Accepted(accepted) => Ok(accepted),
        other => Err(unexpected(&other)),
    }
}

/// The operations on a socket that [`read_preamble`] needs.
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

/// Fills `bytes` by `until`, however slowly the other side sends. A socket's own timeout starts
/// anew with every byte.
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
    use towpath_protocol::class::Class;

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

    /// A socket path of this test's own. The test removes its folder.
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
            let answer = Preamble::Refused(with_remedy_inline(fault)).encode();
            answer_with(test, answer, PREAMBLE_WAIT).unwrap_err()
        };
        let fault = Fault::new(Code::Unreachable, "no link to region");
        let told = fault.clone().remedy("look at the cable");
        assert_eq!(heard("mended", &told), told);
        // A remedy that does not fit is left out, and a peer's text never becomes a remedy.
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
