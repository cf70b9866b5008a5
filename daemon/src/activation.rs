//! Sockets that the service manager opened for the daemon (systemd's `LISTEN_FDS` protocol).
//!
//! The manager's units decide who may connect, and connections made while a daemon restarts wait in
//! the socket's queue. The configuration alone says where a daemon listens: a passed socket is
//! taken by its address, and a passed socket that the configuration does not name is logged.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::net::UnixListener;
use std::path::Path;

use listenfd::ListenFd;
use parking_lot::{Mutex, MutexGuard};
use towpath_protocol::fault::{Code, Fault};

/// Most sockets a manager may pass. Each daemon uses at most four.
pub const SOCKET_COUNT_MAX: usize = 16;

static RECEIVED: Mutex<Vec<Passed>> = Mutex::new(Vec::new());

/// A socket that the service manager passed.
#[derive(Debug)]
enum Passed {
    Unix(UnixListener),
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Passed {
    /// The address it listens at, written as in a configuration.
    fn address(&self) -> String {
        let shown = |address: std::io::Result<SocketAddr>| {
            address.map_or_else(|error| error.to_string(), |address| address.to_string())
        };
        match self {
            Self::Unix(listener) => path_of(listener).unwrap_or_else(|| "no path".to_owned()),
            Self::Tcp(listener) => shown(listener.local_addr()),
            Self::Udp(socket) => shown(socket.local_addr()),
        }
    }
}

fn path_of(listener: &UnixListener) -> Option<String> {
    let address = listener.local_addr().ok()?;
    Some(address.as_pathname()?.display().to_string())
}

/// Receives the sockets that the service manager passed to this process, if any. Call it once,
/// before any thread is started, because it removes the variables from the environment.
///
/// # Errors
///
/// `E_CONFIG` if a socket is of a kind that no daemon listens at, or if there are too many.
pub fn receive() -> Result<(), Fault> {
    let mut passed = ListenFd::from_env();
    let count = passed.len();
    if count > SOCKET_COUNT_MAX {
        let detail = format!("{count} sockets were passed and {SOCKET_COUNT_MAX} are the most");
        return Err(Fault::new(Code::Config, detail));
    }
    let mut sockets = Vec::with_capacity(count);
    for index in 0..count {
        sockets.push(take(&mut passed, index).ok_or_else(|| {
            let detail = format!(
                "socket {index} of those the service manager passed is neither a Unix or TCP \
                 listener nor a UDP socket"
            );
            Fault::new(Code::Config, detail)
        })?);
    }
    received().extend(sockets);
    Ok(())
}

/// Takes one socket. Each kind is tried in turn; a descriptor of another kind is left in place.
fn take(passed: &mut ListenFd, index: usize) -> Option<Passed> {
    if let Ok(Some(listener)) = passed.take_unix_listener(index) {
        return Some(Passed::Unix(listener));
    }
    if let Ok(Some(listener)) = passed.take_tcp_listener(index) {
        return Some(Passed::Tcp(listener));
    }
    let socket = passed.take_udp_socket(index).ok().flatten();
    socket.map(Passed::Udp)
}

/// Takes the Unix listener that was passed for a path.
#[must_use]
pub fn take_unix(path: &Path) -> Option<UnixListener> {
    let is_it = |passed: &Passed| match passed {
        Passed::Unix(listener) => {
            let address = listener.local_addr();
            address.is_ok_and(|address| address.as_pathname() == Some(path))
        }
        _ => false,
    };
    match take_where(is_it)? {
        Passed::Unix(listener) => Some(listener),
        _ => None,
    }
}

/// Takes the TCP listener that was passed for an address.
#[must_use]
pub fn take_tcp(address: SocketAddr) -> Option<TcpListener> {
    let is_it = |passed: &Passed| match passed {
        Passed::Tcp(listener) => listener.local_addr().is_ok_and(|at| at == address),
        _ => false,
    };
    match take_where(is_it)? {
        Passed::Tcp(listener) => Some(listener),
        _ => None,
    }
}

/// Takes the UDP socket that was passed for an address.
#[must_use]
pub fn take_udp(address: SocketAddr) -> Option<UdpSocket> {
    let is_it = |passed: &Passed| match passed {
        Passed::Udp(socket) => socket.local_addr().is_ok_and(|at| at == address),
        _ => false,
    };
    match take_where(is_it)? {
        Passed::Udp(socket) => Some(socket),
        _ => None,
    }
}

/// Logs a warning for each passed socket that the configuration does not use: a client that
/// connects to one would wait for ever.
pub fn warn_of_unused() {
    for passed in received().iter() {
        let address = passed.address();
        tracing::warn!(
            address,
            "the service manager listens here for this daemon, and the configuration does not name it"
        );
    }
}

fn take_where(is_it: impl Fn(&Passed) -> bool) -> Option<Passed> {
    let mut received = received();
    let index = received.iter().position(is_it)?;
    Some(received.swap_remove(index))
}

fn received() -> MutexGuard<'static, Vec<Passed>> {
    RECEIVED.lock()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_taken_once_and_by_its_own_address_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let at = (tcp.local_addr().unwrap(), udp.local_addr().unwrap());
        received().extend([
            Passed::Unix(UnixListener::bind(&path).unwrap()),
            Passed::Tcp(tcp),
            Passed::Udp(udp),
        ]);
        assert!(take_unix(&folder.path().join("b.sock")).is_none());
        assert!(take_unix(&path).is_some());
        assert!(take_unix(&path).is_none());
        // A TCP port is not a UDP port.
        assert!(take_udp(at.0).is_none() || at.0 == at.1);
        assert!(take_tcp(at.0).is_some());
        assert!(take_udp(at.1).is_some());
    }
}
