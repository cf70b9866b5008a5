//! Listeners where local programs reach channels: a port, or a socket in the file system.

use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use tokio::net::{TcpListener, UdpSocket, UnixListener, UnixStream};
use towpath_protocol::endpoint::Endpoint;
use towpath_protocol::fault::{Code, Fault};

/// A channel's listener.
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, Place),
    Udp(UdpSocket),
}

/// Identifies a socket's file: device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place(u64, u64);

impl Place {
    fn of(path: &Path) -> std::io::Result<Self> {
        let seen = std::fs::symlink_metadata(path)?;
        Ok(Self(seen.dev(), seen.ino()))
    }
}

impl Listener {
    /// Returns the next connection; a UDP socket never has one.
    pub(super) async fn accept(&self) -> std::io::Result<Program> {
        match self {
            Self::Tcp(listener) => Ok(Program::Tcp(listener.accept().await?.0.into_std()?)),
            Self::Unix(listener, _) => Ok(Program::Unix(listener.accept().await?.0.into_std()?)),
            Self::Udp(_) => std::future::pending().await,
        }
    }

    /// Releases the address. Returns the connections that have arrived but were not accepted; those
    /// left in it are reset when it is dropped.
    pub(super) fn close(self) -> Waiting {
        match self {
            Self::Tcp(listener) => listener.into_std().map_or(Waiting::None, Waiting::Tcp),
            Self::Unix(listener, place) => {
                if let Ok(address) = listener.local_addr()
                    && let Some(path) = address.as_pathname()
                    && Place::of(path).is_ok_and(|found| found == place)
                {
                    // Removed only if it is still ours: another file there belongs to somebody
                    // else.
                    let _ = std::fs::remove_file(path);
                }
                listener.into_std().map_or(Waiting::None, Waiting::Unix)
            }
            Self::Udp(_) => Waiting::None,
        }
    }
}

/// Connections that arrived at a closed listener and were not accepted yet.
pub(super) enum Waiting {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
    None,
}

impl Iterator for Waiting {
    type Item = Program;

    fn next(&mut self) -> Option<Program> {
        // Does not block: the listener is non-blocking.
        match self {
            Self::Tcp(listener) => {
                let (socket, _) = listener.accept().ok()?;
                socket.set_nonblocking(true).ok()?;
                Some(Program::Tcp(socket))
            }
            Self::Unix(listener) => {
                let (socket, _) = listener.accept().ok()?;
                socket.set_nonblocking(true).ok()?;
                Some(Program::Unix(socket))
            }
            Self::None => None,
        }
    }
}

/// A connection not yet registered with a runtime.
pub(super) enum Program {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

impl Program {
    /// Resets the connection: a plain close would look like an empty answer.
    pub(super) fn reset(self) {
        if let Self::Tcp(socket) = self {
            reset_at_end(&socket);
        }
    }
}

/// Makes a connection end with a reset when it is dropped.
pub(super) fn reset_at_end(socket: &impl AsFd) {
    // If this fails, it ends like any other.
    let _ = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

/// Binds a listener; returns it with its actual address.
///
/// # Errors
///
/// `E_IO` if the address cannot be bound.
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
            // A socket that is busy, or that we may not connect to, is in use.
            let is_dead = |error: std::io::Error| error.kind() == ErrorKind::ConnectionRefused;
            if is_socket && UnixStream::connect(path).await.is_err_and(is_dead) {
                // Left by a tunnel that was killed. Anything else there is not ours to remove.
                std::fs::remove_file(path).map_err(failed)?;
            }
            let listener = UnixListener::bind(path).map_err(failed)?;
            // Applications run as other users; the folder's permissions say who may connect.
            let mode = std::fs::Permissions::from_mode(0o666);
            std::fs::set_permissions(path, mode).map_err(failed)?;
            let place = Place::of(path).map_err(failed)?;
            (Listener::Unix(listener, place), listen.clone())
        }
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[tokio::test]
    async fn a_listener_that_ends_leaves_what_somebody_else_put_in_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.sock");
        let (listener, _) = bind(&Endpoint::Unix(path.clone())).await.unwrap();
        std::fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        listener.close();
        assert!(path.exists());
    }

    #[tokio::test]
    async fn who_has_come_to_a_listener_that_ends_is_not_reset() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.sock");
        let (tcp, bound) = bind(&"tcp:127.0.0.1:0".parse().unwrap()).await.unwrap();
        let Endpoint::Tcp(address) = bound else {
            panic!("{bound:?}")
        };
        let (unix, _) = bind(&Endpoint::Unix(path.clone())).await.unwrap();
        let mut programs: Vec<Box<dyn Write>> = Vec::new();
        for _ in 0..3 {
            programs.push(Box::new(std::net::TcpStream::connect(address).unwrap()));
            let socket = std::os::unix::net::UnixStream::connect(&path).unwrap();
            programs.push(Box::new(socket));
        }
        let (tcp, unix) = (tcp.close(), unix.close());
        let taken: Vec<Program> = tcp.chain(unix).collect();
        assert_eq!(taken.len(), programs.len());
        for program in &mut programs {
            program.write_all(b"word").unwrap();
        }
        assert!(!path.exists());
        for program in taken {
            // A runtime accepts these sockets.
            match program {
                Program::Tcp(socket) => {
                    let socket = tokio::net::TcpStream::from_std(socket).unwrap();
                    socket.readable().await.unwrap();
                }
                Program::Unix(socket) => {
                    let socket = UnixStream::from_std(socket).unwrap();
                    socket.readable().await.unwrap();
                }
            }
        }
    }
}
