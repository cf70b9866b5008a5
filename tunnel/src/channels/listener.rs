//! Where local programs reach a channel: a port, or a socket of the file system.

use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use tokio::net::{TcpListener, UdpSocket, UnixListener, UnixStream};
use towpath_protocol::endpoint::Endpoint;
use towpath_protocol::fault::{Code, Fault};

/// Where local programs come to.
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, Place),
    Udp(UdpSocket),
}

/// A socket's file: device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place(u64, u64);

impl Place {
    fn of(path: &Path) -> std::io::Result<Self> {
        let seen = std::fs::symlink_metadata(path)?;
        Ok(Self(seen.dev(), seen.ino()))
    }
}

impl Listener {
    /// The next connection; a socket of datagrams has none.
    pub(super) async fn accept(&self) -> std::io::Result<Program> {
        match self {
            Self::Tcp(listener) => Ok(Program::Tcp(listener.accept().await?.0.into_std()?)),
            Self::Unix(listener, _) => Ok(Program::Unix(listener.accept().await?.0.into_std()?)),
            Self::Udp(_) => std::future::pending().await,
        }
    }

    /// Lets go of its address. Gives the connections that have come and were not accepted yet; those that nobody takes
    /// are reset.
    pub(super) fn close(self) -> Waiting {
        match self {
            Self::Tcp(listener) => listener.into_std().map_or(Waiting::None, Waiting::Tcp),
            Self::Unix(listener, place) => {
                if let Ok(address) = listener.local_addr()
                    && let Some(path) = address.as_pathname()
                    && Place::of(path).is_ok_and(|found| found == place)
                {
                    // Whatever else stands there by now is somebody's.
                    let _ = std::fs::remove_file(path);
                }
                listener.into_std().map_or(Waiting::None, Waiting::Unix)
            }
            Self::Udp(_) => Waiting::None,
        }
    }
}

/// Connections that came to a listener which is over, and were not accepted yet.
pub(super) enum Waiting {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
    None,
}

impl Iterator for Waiting {
    type Item = Program;

    fn next(&mut self) -> Option<Program> {
        // The listener does not block.
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
            // A runtime takes them.
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
