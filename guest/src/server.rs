//! The socket of a guest process: one controlling connection at a time, only for our own user and
//! root.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, sockopt,
};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::guest_api::{PACKET_BYTES_MAX, Request, Response, decode_request};
use towpath_protocol::message::Reason;

use crate::service::{Answer, Service};

/// Connections that may wait to be accepted: one migrator and its replacement.
const BACKLOG: i32 = 4;

/// Pause after a failed accept. Usually descriptors have run out; the connection stays queued, so
/// another accept would fail again at once. The present connection is served meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Longest wait for a peer to take an answer. It asked for the answer, and the socket buffer holds
/// several.
const SEND_WAIT: Duration = Duration::from_secs(5);

/// Listens at a path of any length.
pub(crate) fn listen(folder: &Path, name: &str) -> Result<OwnedFd, Fault> {
    let failed = |what: &str, error: Errno| {
        let folder = folder.display();
        Fault::new(Code::Io, format!("{folder}/{name}: {what}: {error}"))
    };
    // A socket address holds 107 bytes; going through the folder's descriptor makes any path short.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open_folder =
        rustix::fs::open(folder, flags, Mode::empty()).map_err(|error| failed("open", error))?;
    match rustix::fs::unlinkat(&open_folder, name, rustix::fs::AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(failed("remove the old socket", error)),
    }
    let number = std::os::fd::AsRawFd::as_raw_fd(&open_folder);
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{number}/{name}"))
        .map_err(|error| failed("address", error))?;
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|error| failed("socket", error))?;
    rustix::net::bind(&socket, &address).map_err(|error| failed("bind", error))?;
    let mode = Mode::RUSR | Mode::WUSR;
    rustix::fs::chmodat(&open_folder, name, mode, rustix::fs::AtFlags::empty())
        .map_err(|error| failed("chmod", error))?;
    rustix::net::listen(&socket, BACKLOG).map_err(|error| failed("listen", error))?;
    Ok(socket)
}

/// Answers requests until one of them ends the guest.
pub(crate) fn serve(listener: &OwnedFd, service: &mut Service) -> Result<(), Fault> {
    let mut connection: Option<OwnedFd> = None;
    let mut packet = vec![0; PACKET_BYTES_MAX];
    let mut deaf_until: Option<Instant> = None;
    // An endless loop is right: the process lives as long as its guest.
    loop {
        let pause = deaf_until.map(|until| until.saturating_duration_since(Instant::now()));
        deaf_until = deaf_until.filter(|_| pause.is_some_and(|pause| !pause.is_zero()));
        let pause = pause.filter(|_| deaf_until.is_some());
        let (has_newcomer, has_request) = wait(listener, connection.as_ref(), pause)?;
        if has_newcomer {
            match accept(listener) {
                Ok(Some(newcomer)) => {
                    // The migrator was restarted or gave up the old connection, which is closed.
                    service.begin_session();
                    connection = Some(newcomer);
                    continue;
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, "accept");
                    deaf_until = Some(Instant::now() + ACCEPT_PAUSE);
                }
            }
        }
        let Some(peer) = connection.as_ref().filter(|_| has_request) else {
            continue;
        };
        match serve_one(peer, service, &mut packet) {
            Served::Answered => {}
            Served::Quit => return Ok(()),
            Served::Gone => {
                connection = None;
                service.begin_session();
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Served {
    Answered,
    Quit,
    Gone,
}

/// Waits for a new connection or a request. During a pause new connections are ignored, and the
/// wait returns at the pause's end.
fn wait(
    listener: &OwnedFd,
    connection: Option<&OwnedFd>,
    pause: Option<Duration>,
) -> Result<(bool, bool), Fault> {
    let awaited = match pause {
        None => PollFlags::IN,
        Some(_) => PollFlags::empty(),
    };
    let mut polled = vec![PollFd::new(listener, awaited)];
    if let Some(connection) = connection {
        polled.push(PollFd::new(connection, PollFlags::IN));
    }
    let pause = pause.and_then(|pause| Timespec::try_from(pause).ok());
    match poll(&mut polled, pause.as_ref()) {
        Ok(_) => {}
        Err(Errno::INTR) => return Ok((false, false)),
        Err(error) => return Err(Fault::new(Code::Io, format!("poll: {error}"))),
    }
    let is_ready = |polled: Option<&PollFd<'_>>| polled.is_some_and(|p| !p.revents().is_empty());
    Ok((is_ready(polled.first()), is_ready(polled.get(1))))
}

/// Accepts the next connection. `None` if its user may not drive the guest.
fn accept(listener: &OwnedFd) -> Result<Option<OwnedFd>, Errno> {
    let connection = rustix::net::accept_with(listener, SocketFlags::CLOEXEC)?;
    let peer = sockopt::socket_peercred(&connection)?;
    let ours = rustix::process::geteuid();
    if !may_control(peer.uid.as_raw(), ours.as_raw()) {
        let (user, process) = (peer.uid.as_raw(), peer.pid.as_raw_nonzero());
        tracing::warn!(user, process, "connection of another user refused");
        return Ok(None);
    }
    sockopt::set_socket_timeout(&connection, sockopt::Timeout::Send, Some(SEND_WAIT))?;
    Ok(Some(connection))
}

/// Whether a user may drive the guest: its own user and root may.
const fn may_control(peer_user: u32, our_user: u32) -> bool {
    peer_user == our_user || peer_user == 0
}

fn serve_one(peer: &OwnedFd, service: &mut Service, packet: &mut [u8]) -> Served {
    let length = match rustix::net::recv(peer, &mut packet[..], RecvFlags::TRUNC) {
        Ok((_, 0)) => return Served::Gone,
        Ok((_, length)) => length,
        Err(Errno::INTR) => return Served::Answered,
        Err(error) => {
            tracing::info!(%error, "connection ended");
            return Served::Gone;
        }
    };
    let decoded = match packet.get(..length) {
        Some(packet) => decode_request(packet),
        None => Err(Fault::new(
            Code::TooLarge,
            format!("a packet of {length} bytes"),
        )),
    };
    let (number, request) = match decoded {
        Ok(decoded) => decoded,
        Err(fault) => {
            tracing::warn!(%fault, "connection closed for a packet that does not parse");
            let response = Response::Failed(Reason::from(&fault));
            // The connection is closed anyway, so it does not matter whether the answer arrives.
            let _ = send(peer, 0, &response, None);
            return Served::Gone;
        }
    };
    let is_last = matches!(request, Request::Quit);
    let Answer {
        response,
        attachment,
    } = service.answer(request);
    let is_done = is_last && response == Response::Done;
    let file = attachment.and_then(|attachment| service.attached(&attachment));
    match send(peer, number, &response, file) {
        _ if is_done => Served::Quit,
        Ok(()) => Served::Answered,
        Err(error) => {
            tracing::info!(%error, "connection ended before an answer was taken");
            Served::Gone
        }
    }
}

fn send(
    peer: &OwnedFd,
    number: u32,
    response: &Response,
    file: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let mut packet = Vec::new();
    response.encode(number, &mut packet);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let files: Vec<BorrowedFd<'_>> = file.into_iter().collect();
    if !files.is_empty() {
        let is_pushed = ancillary.push(SendAncillaryMessage::ScmRights(&files));
        assert!(is_pushed, "the buffer was made for one file");
    }
    let parts = [IoSlice::new(&packet)];
    rustix::net::sendmsg(peer.as_fd(), &parts, &mut ancillary, SendFlags::NOSIGNAL).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn l01_another_user_may_not_drive_a_guest() {
        assert!(may_control(1000, 1000));
        assert!(may_control(0, 1000));
        assert!(!may_control(1000, 0));
        assert!(!may_control(1001, 1000));
    }
}
