//! Packets to and from a guest process: one request, one response, a deadline.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags,
    SocketAddrUnix, SocketFlags, SocketType, sockopt,
};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions};
use towpath_protocol::fault::{Blame, Code, Fault};
use towpath_protocol::guest_api::{PACKET_BYTES_MAX, Request, Response, VERSIONS, decode_response};

/// Most late answers to abandoned requests that may precede the awaited one.
const LATE_COUNT_MAX: u32 = 64;

/// Longest wait to send a request: the socket buffer is empty unless the process hangs.
const SEND_WAIT: Duration = Duration::from_secs(5);

/// Longest wait for the first answer on a connection, unless specified otherwise.
pub(super) const HELLO_WAIT: Duration = Duration::from_secs(10);

/// A connection to a guest process.
#[derive(Debug)]
pub(super) struct Transport {
    connection: OwnedFd,
    process: OwnedFd,
    process_id: Pid,
    number: u32,
    packet: Vec<u8>,
    heard_count: u64,
}

impl Transport {
    /// Connects to the guest process of a folder and greets it.
    pub(super) fn connect(folder: &Path, wait: Duration) -> Result<Self, Fault> {
        let connection = connect(folder)?;
        let (process_id, process) = owner_of(&connection, folder)?;
        let mut transport = Self {
            connection,
            process,
            process_id,
            number: 0,
            packet: vec![0; PACKET_BYTES_MAX],
            heard_count: 0,
        };
        transport.greet(wait)?;
        Ok(transport)
    }

    /// The id of the guest process.
    pub(super) const fn process_id(&self) -> Pid {
        self.process_id
    }

    /// A pidfd, which becomes readable when the guest process ends.
    pub(super) const fn process(&self) -> &OwnedFd {
        &self.process
    }

    /// How many packets the process has sent, including answers that came too late.
    pub(super) const fn heard_count(&self) -> u64 {
        self.heard_count
    }

    /// Whether the guest process lives. Reaps it if it has ended and was our child.
    pub(super) fn is_alive(&self) -> bool {
        !self.wait_for_end(Duration::ZERO)
    }

    /// Waits for the guest process to end.
    pub(super) fn wait_for_end(&self, wait: Duration) -> bool {
        wait_for_end(&self.process, wait)
    }

    /// Sends a request and waits for its response.
    pub(super) fn call(
        &mut self,
        request: &Request,
        wait: Duration,
    ) -> Result<(Response, Option<OwnedFd>), Fault> {
        self.ask(request, wait).map_err(own)
    }

    fn ask(
        &mut self,
        request: &Request,
        wait: Duration,
    ) -> Result<(Response, Option<OwnedFd>), Fault> {
        let deadline = Instant::now() + wait;
        self.number = self.number.wrapping_add(1);
        let mut packet = Vec::new();
        request.encode(self.number, &mut packet);
        rustix::net::send(&self.connection, &packet, SendFlags::NOSIGNAL)
            .map_err(|error| self.gone(&format!("cannot be asked: {error}")))?;
        for _ in 0..=LATE_COUNT_MAX {
            self.wait_for_packet(deadline, request, wait)?;
            let (length, file) = self.receive()?;
            let (number, response) = decode_response(&self.packet[..length])?;
            if let Response::Failed(reason) = &response
                && (number == self.number || number == 0)
            {
                return Err(reason.to_fault(Code::Guest));
            }
            if number == self.number {
                return Ok((response, file));
            }
        }
        Err(Fault::new(
            Code::Guest,
            "the guest process answers other questions than were asked",
        ))
    }

    fn greet(&mut self, wait: Duration) -> Result<(), Fault> {
        let hello = Request::Hello { versions: VERSIONS };
        let (response, _) = self.call(&hello, wait)?;
        let Response::Welcome {
            version,
            process_id,
        } = response
        else {
            return Err(unexpected(&response));
        };
        let is_ours = (VERSIONS.min..=VERSIONS.max).contains(&version);
        let expected = self.process_id.as_raw_nonzero().get();
        if !is_ours || i32::try_from(process_id) != Ok(expected) {
            return Err(Fault::new(
                Code::Guest,
                format!("process {process_id} answers in version {version} for {expected}"),
            ));
        }
        Ok(())
    }

    fn wait_for_packet(
        &self,
        deadline: Instant,
        request: &Request,
        wait: Duration,
    ) -> Result<(), Fault> {
        let mut polled = [
            PollFd::new(&self.connection, PollFlags::IN),
            PollFd::new(&self.process, PollFlags::IN),
        ];
        match poll_until(&mut polled, deadline) {
            // An answer sent before the process ended still counts.
            Ok(true) if polled[0].revents().contains(PollFlags::IN) => Ok(()),
            Ok(true) => Err(self.gone("ended")),
            Ok(false) => Err(Fault::new(
                Code::Guest,
                format!("the guest process did not answer {request:.40?} within {wait:?}"),
            )),
            Err(error) => Err(self.gone(&format!("cannot be waited for: {error}"))),
        }
    }

    fn receive(&mut self) -> Result<(usize, Option<OwnedFd>), Fault> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut self.packet)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = rustix::net::recvmsg(&self.connection, &mut parts, &mut ancillary, flags)
            .map_err(|error| Fault::new(Code::Guest, format!("the guest process: {error}")))?;
        let mut file = None;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(files) = message {
                for received in files {
                    file = Some(received);
                }
            }
        }
        if received.bytes == 0 {
            return Err(self.gone("closed the connection"));
        }
        if received.flags.contains(ReturnFlags::TRUNC) {
            return Err(Fault::new(
                Code::TooLarge,
                format!("an answer above {PACKET_BYTES_MAX} bytes"),
            ));
        }
        self.heard_count += 1;
        Ok((received.bytes, file))
    }

    fn gone(&self, what: &str) -> Fault {
        let process = self.process_id.as_raw_nonzero();
        Fault::new(Code::Guest, format!("guest process {process} {what}"))
    }
}

/// Converts a bad answer of a guest process to a fault of this host. If the peer were blamed, only
/// its lanes would be dropped, and a guest that is owned here would stay stopped.
pub(super) fn own(fault: Fault) -> Fault {
    match fault.blame() {
        Blame::Peer => Fault::new(Code::Guest, format!("the guest process: {fault}")),
        _ => fault,
    }
}

/// The fault for a response that does not fit its request.
pub(super) fn unexpected(response: &Response) -> Fault {
    Fault::new(
        Code::Guest,
        format!("the guest process answers {response:.60?}"),
    )
}

/// Waits for a process to end, and reaps it if it was our child.
pub(super) fn wait_for_end(process: &OwnedFd, wait: Duration) -> bool {
    let mut polled = [PollFd::new(process, PollFlags::IN)];
    let has_ended = poll_until(&mut polled, Instant::now() + wait) == Ok(true);
    if has_ended {
        // Fails if it is no child of ours or was reaped before, which does not matter.
        let which = WaitId::PidFd(std::os::fd::AsFd::as_fd(process));
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let _ = rustix::process::waitid(which, options);
    }
    has_ended
}

/// The process that listens in a guest's folder. It need not answer.
pub(super) fn owner(folder: &Path) -> Result<OwnedFd, Fault> {
    let connection = connect(folder)?;
    owner_of(&connection, folder).map(|(_, process)| process)
}

fn owner_of(connection: &OwnedFd, folder: &Path) -> Result<(Pid, OwnedFd), Fault> {
    let failed = |what: &str, error: Errno| Fault::new(Code::Guest, format!("{what}: {error}"));
    let peer =
        sockopt::socket_peercred(connection).map_err(|error| failed("peer credentials", error))?;
    let ours = rustix::process::geteuid();
    if peer.uid != ours && !peer.uid.is_root() {
        let user = peer.uid.as_raw();
        return Err(Fault::new(
            Code::Denied,
            format!("the socket of {} belongs to user {user}", folder.display()),
        ));
    }
    let process = rustix::process::pidfd_open(peer.pid, PidfdFlags::empty())
        .map_err(|error| failed("guest process", error))?;
    Ok((peer.pid, process))
}

fn connect(folder: &Path) -> Result<OwnedFd, Fault> {
    let failed = |what: &str, error: Errno| {
        let shown = folder.display();
        Fault::new(
            Code::Guest,
            format!("guest process of {shown}: {what}: {error}"),
        )
    };
    // A socket address holds 107 bytes; going through the folder's descriptor makes any path short.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open_folder =
        rustix::fs::open(folder, flags, Mode::empty()).map_err(|error| failed("folder", error))?;
    let number = open_folder.as_raw_fd();
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{number}/guest.sock"))
        .map_err(|error| failed("address", error))?;
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|error| failed("socket", error))?;
    // This also bounds connecting, which waits while too many other connections wait to be
    // accepted.
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(SEND_WAIT))
        .map_err(|error| failed("send timeout", error))?;
    rustix::net::connect(&socket, &address).map_err(|error| failed("connect", error))?;
    Ok(socket)
}

fn poll_until(polled: &mut [PollFd<'_>], deadline: Instant) -> Result<bool, Errno> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(|_| Errno::INVAL)?;
        match poll(polled, Some(&timeout)) {
            Ok(count) => return Ok(count > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}
