//! One daemon per folder: an exclusive lock that the kernel releases when its holder dies.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use towpath_protocol::fault::{Code, Fault};

/// Most bytes read from a lock file, which holds a process id.
const HOLDER_BYTES_MAX: u64 = 20;

/// An exclusive lock on a file, held until this value is dropped or the process ends.
///
/// The lock belongs to the open file (`flock`), so a second attempt is refused within the same
/// process too. The file stays behind on purpose: if it were deleted, two holders could lock two
/// files of the same name.
#[derive(Debug)]
pub struct Lock {
    _file: File,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock, or reports its holder.
    ///
    /// # Errors
    ///
    /// `E_ALREADY_RUNNING` if it is taken, `E_PATH` if the file is a symbolic link or not plain,
    /// else `E_IO`.
    pub fn take(path: &Path) -> Result<Self, Fault> {
        let shown = path.display();
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(i32::try_from(flags.bits()).expect("flags are small positive numbers"))
            .open(path)
            .map_err(|error| {
                let is_link = error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error());
                let code = if is_link { Code::Path } else { Code::Io };
                Fault::new(code, format!("lock file {shown}: {error}"))
            })?;
        let io =
            |error: std::io::Error| Fault::new(Code::Io, format!("lock file {shown}: {error}"));
        if !file.metadata().map_err(io)?.is_file() {
            return Err(Fault::new(
                Code::Path,
                format!("lock file {shown} is not a plain file"),
            ));
        }
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(error)) => return Err(io(error)),
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // The holder's id is only informative: an unreadable or half-written one is left
                // out.
                let _ = file.take(HOLDER_BYTES_MAX).read_to_string(&mut holder);
                let holder = holder
                    .trim()
                    .parse::<u32>()
                    .map(|id| format!(" by process {id}"));
                return Err(Fault::new(
                    Code::AlreadyRunning,
                    format!("{shown} is held{}", holder.unwrap_or_default()),
                ));
            }
        }
        // Writing the id is best effort: the disk may be full, and the lock is held all the same.
        let told = file.set_len(0).and_then(|()| file.rewind());
        let _ = told.and_then(|()| writeln!(file, "{}", std::process::id()));
        Ok(Self {
            _file: file,
            path: path.to_owned(),
        })
    }

    /// The locked file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_46_a_second_holder_is_refused_and_told_who_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let first = Lock::take(&path).unwrap();
        let fault = Lock::take(&path).expect_err("held");
        assert_eq!(fault.code, Code::AlreadyRunning);
        let id = std::process::id();
        assert!(
            fault.detail.contains(&format!("by process {id}")),
            "{fault}"
        );
        drop(first);
        assert_eq!(Lock::take(&path).unwrap().path(), path);
    }

    #[test]
    fn a_link_in_the_locks_place_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        std::os::unix::fs::symlink("/tmp/elsewhere", &path).unwrap();
        assert_eq!(Lock::take(&path).expect_err("a link").code, Code::Path);
    }
}
