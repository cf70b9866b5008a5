//! Where local programs reach a channel: a port, or a socket of the file system.

use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::time::Duration;

use tokio::net::{TcpListener, UdpSocket, UnixListener, UnixStream};
use towpath_protocol::endpoint::Endpoint;
use towpath_protocol::fault::{Code, Fault};

/// Where local programs come to.
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
    Udp(UdpSocket),
}

impl Listener {
    /// The next connection; a socket of datagrams has none.
    pub(super) async fn accept(&self) -> std::io::Result<Program> {
        match self {
            Self::Tcp(listener) => Ok(Program::Tcp(listener.accept().await?.0.into_std()?)),
            Self::Unix(listener) => Ok(Program::Unix(listener.accept().await?.0.into_std()?)),
            Self::Udp(_) => std::future::pending().await,
        }
    }
}

/// A connection that no runtime has taken yet.
pub(super) enum Program {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

impl Program {
    /// Ends it at once: a mere end would look like an answer without a byte.
    pub(super) fn reset(self) {
        if let Self::Tcp(socket) = self {
            reset_at_end(&socket);
        }
    }
}

/// Has a connection end with a reset once it is let go of.
pub(super) fn reset_at_end(socket: &impl AsFd) {
    // If that cannot be had, it ends like any other.
    let _ = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

/// Listens, and gives where that really is.
///
/// # Errors
///
/// `E_IO` if that cannot be had.
pub(super) async fn bind(listen: &Endpoint) -> Result<(Listener, Endpoint), Fault> {
    let failed =
        |error: std::io::Error| Fault::new(Code::Io, format!("cannot listen at {listen}: {error}"));
    Ok(match listen {
        Endpoint::Tcp(address) => {
            let listener = TcpListener::bind(address).await.map_err(failed)?;
            let bound = listener.local_addr().map_err(failed)?;
            (Listener::Tcp(listener), Endpoint::Tcp(bound))
        }
        Endpoint::Udp(address) => {
            let socket = UdpSocket::bind(address).await.map_err(failed)?;
            let bound = socket.local_addr().map_err(failed)?;
            (Listener::Udp(socket), Endpoint::Udp(bound))
        }
        Endpoint::Unix(path) => {
            let is_socket =
                std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
            // One that is busy, or not ours to connect to, is somebody's.
            let is_dead = |error: std::io::Error| error.kind() == ErrorKind::ConnectionRefused;
            if is_socket && UnixStream::connect(path).await.is_err_and(is_dead) {
                // Left by a tunnel that was killed; whatever else stands there is not ours to remove.
                std::fs::remove_file(path).map_err(failed)?;
            }
            let listener = UnixListener::bind(path).map_err(failed)?;
            // Applications run as other users; who may come here the folder says.
            let mode = std::fs::Permissions::from_mode(0o666);
            std::fs::set_permissions(path, mode).map_err(failed)?;
            (Listener::Unix(listener), listen.clone())
        }
    })
}
