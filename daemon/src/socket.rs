//! Unix sockets for this user and root, and for one group if the service manager says so.
//!
//! Two checks keep other local users away from a daemon (L01): the folder has mode 0700, and the
//! kernel is asked for every connection's user. Either would be enough, but a folder's mode can be
//! changed by mistake, and the check alone would let others fill the backlog.
//!
//! A socket that the service manager opened (see [`crate::activation`]) is in an open folder, and
//! its own mode is the first check. If its mode lets in the socket's group, so does the second
//! check. Daemons that run as different users meet this way.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use towpath_protocol::fault::{Code, Fault};

use crate::activation;
use crate::lock::Lock;

/// Longest path of a Unix socket, in bytes: `sun_path` without its terminating zero.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// A listening socket that no other daemon can take over. Dropping it removes the file, unless the
/// service manager owns it.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    door: Door,
}

/// Who controls access to a socket.
#[derive(Debug)]
enum Door {
    /// This daemon, with a private folder. The lock keeps other daemons from the path.
    Ours { _lock: Lock },
    /// The service manager, which may also let in this group.
    Managers { group: Option<u32> },
}

impl Socket {
    /// Listens at `path`: with the service manager's socket if it passed one for the path, else
    /// with a new socket in a folder that only this user may enter (made if it is missing).
    ///
    /// A socket left behind by a dead daemon is removed. Holding the lock beside it proves that the
    /// daemon is dead.
    ///
    /// # Errors
    ///
    /// `E_ALREADY_RUNNING` if a running daemon has it, `E_PATH` if the path is too long, the folder
    /// is open to others, or something that is not a socket is in the way, else `E_IO`.
    pub fn bind(path: &Path) -> Result<Self, Fault> {
        if let Some(listener) = activation::take_unix(path) {
            return Self::of_manager(listener, path);
        }
        let shown = path.display();
        let bytes = path.as_os_str().len();
        if bytes > SOCKET_PATH_BYTES_MAX {
            let detail = format!(
                "{shown} has {bytes} bytes and a socket's path at most {SOCKET_PATH_BYTES_MAX}"
            );
            let remedy = "choose a shorter path for it in the configuration";
            return Err(Fault::new(Code::Path, detail).remedy(remedy));
        }
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        private_folder(folder.unwrap_or_else(|| Path::new(".")))?;
        let mut lock_path = path.as_os_str().to_owned();
        lock_path.push(".lock");
        let lock = Lock::take(Path::new(&lock_path))?;
        remove_stale(path)?;
        let io = |error: io::Error| Fault::new(Code::Io, format!("socket {shown}: {error}"));
        let listener = UnixListener::bind(path).map_err(io)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(io)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            door: Door::Ours { _lock: lock },
        })
    }

    /// A socket that the service manager passed. The mode of its file says who may connect.
    fn of_manager(listener: UnixListener, path: &Path) -> Result<Self, Fault> {
        let shown = path.display();
        let io = |error: io::Error| Fault::new(Code::Io, format!("socket {shown}: {error}"));
        // The manager's listeners do not block, but this one is for blocking use.
        listener.set_nonblocking(false).map_err(io)?;
        let meta = fs::symlink_metadata(path).map_err(io)?;
        let mode = meta.mode() & 0o777;
        if mode & 0o006 != 0 {
            let detail = format!("everybody may use {shown} (mode {mode:04o})");
            let remedy = "set SocketMode=0660 in its unit, and start that again";
            return Err(Fault::new(Code::Path, detail).remedy(remedy));
        }
        let group = (mode & 0o020 != 0).then_some(meta.gid());
        Ok(Self {
            listener,
            path: path.to_owned(),
            door: Door::Managers { group },
        })
    }

    /// Lets in this user, root and the socket's group, and nobody else. A refusal is written to the
    /// audit log.
    ///
    /// # Errors
    ///
    /// `E_DENIED` for others, `E_IO` if the kernel does not report the peer's credentials.
    pub fn check_peer(&self, stream: impl AsFd) -> Result<Peer, Fault> {
        let group = match self.door {
            Door::Ours { .. } => None,
            Door::Managers { group } => group,
        };
        check_peer(stream, &self.path, group)
    }

    /// The listener, for blocking use. Check each accepted stream with [`Socket::check_peer`].
    #[must_use]
    pub const fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// The same listener for tokio. `self` must outlive it, because dropping `self` removes the
    /// file.
    ///
    /// # Errors
    ///
    /// `E_IO` outside a tokio runtime or without free descriptors.
    pub fn for_tokio(&self) -> Result<tokio::net::UnixListener, Fault> {
        let convert = || {
            let listener = self.listener.try_clone()?;
            listener.set_nonblocking(true)?;
            tokio::net::UnixListener::from_std(listener)
        };
        convert().map_err(|error| {
            Fault::new(Code::Io, format!("socket {}: {error}", self.path.display()))
        })
    }

    /// The path of the socket.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if matches!(self.door, Door::Ours { .. }) {
            // The next daemon removes a leftover file, so a failure does not matter.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes sure that a folder exists and that only this user may enter it.
///
/// # Errors
///
/// `E_PATH` if it is not a folder, belongs to another user or is open to others; `E_IO` if it
/// cannot be made.
pub fn private_folder(path: &Path) -> Result<(), Fault> {
    let shown = path.display();
    match DirBuilder::new().recursive(true).mode(0o700).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => {
            return Err(Fault::new(
                Code::Io,
                format!("cannot make {shown}: {error}"),
            ));
        }
    }
    let wrong = |why: String| Err(Fault::new(Code::Path, why));
    let meta = fs::metadata(path)
        .map_err(|error| Fault::new(Code::Io, format!("cannot look at {shown}: {error}")))?;
    let own = rustix::process::geteuid().as_raw();
    let mode = meta.mode() & 0o7777;
    if !meta.is_dir() {
        return wrong(format!("{shown} is not a folder"));
    }
    if meta.uid() != own {
        let owner = meta.uid();
        let detail = format!("{shown} belongs to user {owner}, and we are user {own}");
        let remedy = format!(
            "run it as that user, or give the folder to this one with `chown {own} {shown}`"
        );
        return Err(Fault::new(Code::Path, detail).remedy(remedy));
    }
    if mode & 0o077 != 0 {
        let detail = format!("others may enter {shown} (mode {mode:04o})");
        let remedy = format!("run `chmod 0700 {shown}`");
        return Err(Fault::new(Code::Path, detail).remedy(remedy));
    }
    Ok(())
}

/// The process at the other end of a Unix socket, as the kernel knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its effective user when it connected.
    pub uid: u32,
    /// Its effective group when it connected.
    pub gid: u32,
    /// Its process id. The process may be gone by now.
    pub pid: i32,
}

fn check_peer(stream: impl AsFd, socket: &Path, group: Option<u32>) -> Result<Peer, Fault> {
    let shown = socket.display();
    let credentials = rustix::net::sockopt::socket_peercred(stream)
        .map_err(|error| Fault::new(Code::Io, format!("socket {shown}: {error}")))?;
    let peer = Peer {
        uid: credentials.uid.as_raw(),
        gid: credentials.gid.as_raw(),
        pid: credentials.pid.as_raw_pid(),
    };
    let own = rustix::process::geteuid().as_raw();
    if is_allowed(peer.uid, own) || group == Some(peer.gid) {
        return Ok(peer);
    }
    let Peer { uid, gid, pid } = peer;
    tracing::warn!(target: "audit", uid, gid, pid, socket = %shown, "local user refused");
    Err(Fault::new(
        Code::Denied,
        format!("user {uid} (process {pid}) may not use {shown}"),
    ))
}

const fn is_allowed(uid: u32, own: u32) -> bool {
    uid == own || uid == 0
}

/// Removes a dead daemon's socket. The caller must hold its lock.
fn remove_stale(path: &Path) -> Result<(), Fault> {
    let shown = path.display();
    let io = |error: io::Error| Fault::new(Code::Io, format!("socket {shown}: {error}"));
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io(error)),
        Ok(meta) if meta.file_type().is_socket() => fs::remove_file(path).map_err(io),
        Ok(_) => Err(Fault::new(
            Code::Path,
            format!("{shown} is in the way and is not a socket"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn l01_the_folder_is_private_and_an_open_one_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("run");
        let socket = Socket::bind(&folder.join("a.sock")).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(&folder), 0o700);
        assert_eq!(mode(socket.path()), 0o600);
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o750)).unwrap();
        let fault = Socket::bind(&folder.join("b.sock")).expect_err("open to the group");
        assert_eq!(fault.code, Code::Path);
        let remedy = fault.remedy.unwrap();
        assert!(remedy.contains("chmod 0700"), "{remedy}");
    }

    #[test]
    fn a_dead_daemons_socket_is_replaced_and_a_living_ones_is_not() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("run/a.sock");
        let first = Socket::bind(&path).unwrap();
        let fault = Socket::bind(&path).expect_err("the first lives");
        assert_eq!(fault.code, Code::AlreadyRunning);
        drop(first);
        assert!(!path.exists());
        // What a killed daemon leaves: the file without a held lock.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let second = Socket::bind(&path).unwrap();
        drop(second);
        fs::write(&path, "precious").unwrap();
        assert_eq!(Socket::bind(&path).expect_err("a file").code, Code::Path);
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_refused() {
        let fault = Socket::bind(Path::new(&"x/".repeat(60))).expect_err("120 bytes");
        assert_eq!(fault.code, Code::Path);
    }

    #[test]
    fn l01_only_this_user_and_root_are_allowed() {
        assert!(is_allowed(7, 7) && is_allowed(0, 7));
        assert!(!is_allowed(8, 7) && !is_allowed(7, 0));
        let (ours, theirs) = UnixStream::pair().unwrap();
        let peer = check_peer(&ours, Path::new("pair"), None).unwrap();
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
        drop(theirs);
    }

    #[test]
    fn l01_a_managers_socket_is_left_alone_and_is_never_for_everybody() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a.sock");
        let bind = |mode| {
            let _ = fs::remove_file(&path);
            let listener = UnixListener::bind(&path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            Socket::of_manager(listener, &path)
        };
        let group_of = |socket: &Socket| match socket.door {
            Door::Managers { group } => group,
            Door::Ours { .. } => panic!("the manager's"),
        };
        let private = bind(0o600).unwrap();
        assert_eq!(group_of(&private), None);
        let shared = bind(0o660).unwrap();
        let gid = fs::metadata(&path).unwrap().gid();
        assert_eq!(group_of(&shared), Some(gid));
        drop((private, shared));
        assert!(path.exists());
        for open in [0o666, 0o602] {
            let fault = bind(open).expect_err("open to everybody");
            let remedy = fault.remedy.unwrap();
            assert!(remedy.contains("SocketMode=0660"), "{remedy}");
        }
    }

    #[test]
    fn l01_a_connection_of_another_user_is_refused() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root can become another user");
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("run/a.sock");
        let socket = Socket::bind(&path).unwrap();
        // The folder and the socket are opened by mistake. The check of the kernel's credentials
        // remains.
        for open in [root.path(), path.parent().unwrap(), path.as_path()] {
            fs::set_permissions(open, fs::Permissions::from_mode(0o777)).unwrap();
        }
        let at = path.clone();
        let stranger = std::thread::spawn(move || {
            let nobody = rustix::process::Uid::from_raw(65_534);
            rustix::thread::set_thread_uid(nobody).unwrap();
            UnixStream::connect(at).unwrap()
        });
        let (stream, _) = socket.listener().accept().unwrap();
        let fault = socket.check_peer(&stream).expect_err("nobody");
        assert_eq!(fault.code, Code::Denied);
        assert!(fault.detail.contains("user 65534"), "{fault}");
        // The stranger's group is still root's. Only the group that is let in may connect.
        assert!(check_peer(&stream, &path, Some(0)).is_ok());
        assert!(check_peer(&stream, &path, Some(65_534)).is_err());
        drop(stranger.join().unwrap());
    }
}
