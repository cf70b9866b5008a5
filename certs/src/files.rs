//! Reads and writes key files. A key is written once, for its owner only, and is read only if
//! nobody else can read it. The public files beside it are readable by everybody: a tunnel runs as
//! a different user than the one that installs its certificate.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, FlockOperation, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use towpath_protocol::fault::{Code, Fault};

use crate::revocation::LIST_BYTES_MAX;

/// Most bytes read from any certificate or key file; a chain of a few certificates is below 8 KiB.
pub const FILE_BYTES_MAX: u64 = 64 * 1024;

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readers {
    /// Its owner alone: a key, or a file that only the authority needs.
    Owner,
    /// Everybody: a certificate, or a list.
    All,
}

impl Readers {
    fn mode(self) -> Mode {
        match self {
            Self::Owner => Mode::RUSR | Mode::WUSR,
            Self::All => Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH,
        }
    }
}

/// A folder of keys. It is held open, so that every file is created in this folder and no other.
#[derive(Debug)]
pub struct KeyFolder {
    handle: OwnedFd,
    path: PathBuf,
}

impl KeyFolder {
    /// Opens a folder, creating it with mode 0700 if it does not exist.
    ///
    /// # Errors
    ///
    /// `E_PATH` if it is a symbolic link, not a folder, not owned by us, or open to others.
    pub fn open_or_create(path: &Path) -> Result<Self, Fault> {
        match rustix::fs::mkdir(path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(unusable(path, &error)),
        }
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
        let handle =
            rustix::fs::open(path, flags, Mode::empty()).map_err(|error| unusable(path, &error))?;
        let stat = rustix::fs::fstat(&handle).map_err(|error| unusable(path, &error))?;
        let shown = path.display();
        if stat.st_uid != rustix::process::geteuid().as_raw() {
            let detail = format!("{shown} belongs to user {}, not to us", stat.st_uid);
            let remedy = "run it as that user, or choose another folder";
            return Err(Fault::new(Code::Path, detail).remedy(remedy));
        }
        if stat.st_mode & 0o022 != 0 {
            let detail = format!("others may write to {shown}");
            let remedy = format!("run `chmod 700 {shown}`");
            return Err(Fault::new(Code::Path, detail).remedy(remedy));
        }
        Ok(Self {
            handle,
            path: path.to_owned(),
        })
    }

    /// Writes a new file and makes it durable.
    ///
    /// # Errors
    ///
    /// `E_STATE` if the name already exists, `E_IO` if it cannot be written.
    pub fn write_new(&self, name: &str, content: &str, readers: Readers) -> Result<PathBuf, Fault> {
        let path = self.path.join(name);
        self.write(name, content, |file| {
            rustix::fs::fchmod(file, readers.mode())
        })?;
        Ok(path)
    }

    /// Writes a new file that is readable by its owner alone until `share` sets its final owner and
    /// mode.
    fn write(
        &self,
        name: &str,
        content: &str,
        share: impl FnOnce(&File) -> Result<(), Errno>,
    ) -> Result<(), Fault> {
        let path = self.path.join(name);
        let shown = path.display();
        let flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.handle, name, flags, Readers::Owner.mode()).map_err(
            |error| match error {
                Errno::EXIST | Errno::LOOP => Fault::new(
                    Code::State,
                    format!("{shown} is already there; move it away or name another folder"),
                ),
                _ => unusable(&path, &error),
            },
        )?;
        let mut file = File::from(file);
        share(&file)
            .map_err(std::io::Error::from)
            .and_then(|()| file.write_all(content.as_bytes()))
            .and_then(|()| file.sync_all())
            .map_err(|error| Fault::new(Code::Io, format!("writing {shown}: {error}")))?;
        self.sync()
    }

    /// Creates or replaces a file in one step: a reader sees the whole old file or the whole new
    /// one. The new file keeps the owner and readers of the old one, except that a key stays its
    /// owner's alone.
    ///
    /// # Errors
    ///
    /// `E_IO` or `E_PATH` if it cannot be written; the old file is then still there.
    pub fn replace(&self, name: &str, content: &str, readers: Readers) -> Result<PathBuf, Fault> {
        self.replace_all(&[(name, content, readers)])?;
        Ok(self.path.join(name))
    }

    /// Creates or replaces several files, each in one step and in this order, after all of them
    /// have been written.
    ///
    /// # Errors
    ///
    /// `E_IO` or `E_PATH` if one cannot be written; all the old files are then still there.
    pub(crate) fn replace_all(&self, files: &[(&str, &str, Readers)]) -> Result<(), Fault> {
        let new = |name: &str| format!(".{name}.new");
        let remove = |name: &str| {
            let _ = rustix::fs::unlinkat(&self.handle, new(name), AtFlags::empty());
        };
        for (at, (name, content, readers)) in files.iter().enumerate() {
            // A leftover of a process that was killed; it is of no use.
            remove(name);
            let share = |file: &File| self.share_as_before(name, file, *readers);
            self.write(&new(name), content, share).inspect_err(|_| {
                files[..=at].iter().for_each(|(name, ..)| remove(name));
            })?;
        }
        for (name, ..) in files {
            let path = self.path.join(name);
            rustix::fs::renameat(&self.handle, new(name), &self.handle, *name)
                .map_err(|error| unusable(&path, &error))?;
        }
        self.sync()
    }

    /// Gives a file the owner and group of the file it replaces, and its mode too unless it is for
    /// `Readers::Owner`.
    fn share_as_before(&self, name: &str, file: &File, readers: Readers) -> Result<(), Errno> {
        let before = rustix::fs::statat(&self.handle, name, AtFlags::SYMLINK_NOFOLLOW).ok();
        let before = before.filter(|stat| FileType::from_raw_mode(stat.st_mode).is_file());
        let mut mode = readers.mode();
        if let Some(before) = before {
            let (owner, group) = (Uid::from_raw(before.st_uid), Gid::from_raw(before.st_gid));
            let is_given = rustix::fs::fchown(file, Some(owner), Some(group)).is_ok();
            // If the group could not be kept, the old mode would let the wrong group in.
            if readers == Readers::All && is_given {
                mode = Mode::from_raw_mode(before.st_mode);
            }
        }
        rustix::fs::fchmod(file, mode)
    }

    /// Waits for an exclusive lock on this folder, and holds it until the returned handle is
    /// dropped.
    pub(crate) fn lock(&self) -> Result<OwnedFd, Fault> {
        let unusable = |error| unusable(&self.path, &error);
        // A separate open file description: closing it releases the lock.
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
        let handle =
            rustix::fs::openat(&self.handle, ".", flags, Mode::empty()).map_err(unusable)?;
        rustix::fs::flock(&handle, FlockOperation::LockExclusive).map_err(unusable)?;
        Ok(handle)
    }

    /// The folder's path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a file of ours for appending, creating it if necessary, and locks it: any other caller
    /// waits until this one has closed it.
    pub(crate) fn open_locked(&self, name: &str) -> Result<File, Fault> {
        let path = self.path.join(name);
        let flags = OFlags::CREATE
            | OFlags::NOFOLLOW
            | OFlags::RDWR
            | OFlags::APPEND
            | OFlags::NONBLOCK
            | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.handle, name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|error| unusable(&path, &error))?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive)
            .map_err(|error| unusable(&path, &error))?;
        let stat = rustix::fs::fstat(&file).map_err(|error| unusable(&path, &error))?;
        if !FileType::from_raw_mode(stat.st_mode).is_file() {
            let shown = path.display();
            return Err(Fault::new(
                Code::Path,
                format!("{shown} is not a plain file"),
            ));
        }
        self.sync()?;
        Ok(File::from(file))
    }

    fn sync(&self) -> Result<(), Fault> {
        let shown = self.path.display();
        rustix::fs::fsync(&self.handle)
            .map_err(|error| Fault::new(Code::Io, format!("writing {shown}: {error}")))
    }

    /// Whether the folder has an entry of that name.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        rustix::fs::statat(&self.handle, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }
}

/// Reads a public file, such as a certificate.
///
/// # Errors
///
/// `E_CERTIFICATE` if it cannot be read or is larger than [`FILE_BYTES_MAX`].
pub fn read_public(path: &Path) -> Result<Vec<u8>, Fault> {
    let (content, _mode) = read(path, FILE_BYTES_MAX)?;
    Ok(content)
}

/// Reads a file of revocation lists.
pub(crate) fn read_list(path: &Path) -> Result<Vec<u8>, Fault> {
    let (content, _mode) = read(path, LIST_BYTES_MAX)?;
    Ok(content)
}

/// Reads a private key. Only its owner may be able to read it.
///
/// # Errors
///
/// `E_CERTIFICATE` if it cannot be read, is not a plain file, or if its group or others may read
/// it.
pub fn read_private(path: &Path) -> Result<Vec<u8>, Fault> {
    let (content, mode) = read(path, FILE_BYTES_MAX)?;
    if mode & 0o077 != 0 && !is_credential(path, mode) {
        let (shown, mode) = (path.display(), mode & 0o777);
        let detail = format!("key {shown} has mode {mode:04o}, others may use it");
        let remedy = format!("run `chmod 600 {shown}`");
        return Err(Fault::new(Code::Certificate, detail).remedy(remedy));
    }
    Ok(content)
}

/// Whether a service manager passed the file to this process alone. It grants our user access by an
/// ACL, and the group bits of the mode then only show the ACL's mask.
fn is_credential(path: &Path, mode: u32) -> bool {
    let folder = std::env::var_os("CREDENTIALS_DIRECTORY");
    mode & 0o037 == 0 && folder.is_some_and(|folder| path.parent() == Some(Path::new(&folder)))
}

fn read(path: &Path, bytes_max: u64) -> Result<(Vec<u8>, u32), Fault> {
    let shown = path.display();
    let unreadable = |why: String| Fault::new(Code::Certificate, format!("{shown}: {why}"));
    // Opened before it is inspected, so that the file that is checked is the file that is read. A
    // FIFO does not block.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let handle = rustix::fs::open(path, flags, Mode::empty())
        .map_err(|error| unreadable(error.to_string()))?;
    let stat = rustix::fs::fstat(&handle).map_err(|error| unreadable(error.to_string()))?;
    if !FileType::from_raw_mode(stat.st_mode).is_file() {
        return Err(unreadable("is not a plain file".to_owned()));
    }
    let mut content = Vec::new();
    let read = File::from(handle)
        .take(bytes_max + 1)
        .read_to_end(&mut content)
        .map_err(|error| unreadable(error.to_string()))?;
    if read as u64 > bytes_max {
        return Err(unreadable(format!("is larger than {bytes_max} bytes")));
    }
    Ok((content, stat.st_mode))
}

fn unusable(path: &Path, error: &Errno) -> Fault {
    Fault::new(Code::Path, format!("{}: {error}", path.display()))
}
