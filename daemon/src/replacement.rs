//! Replaces a small file as a whole: after a crash or a power loss either the old file is there or
//! the new one, complete.
//!
//! ```text
//!  new file under another name ─► its bytes durable ─► renamed ─► the name durable
//! ```

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

/// The name of a file in its folder until it is complete.
pub const UNFINISHED: &str = ".unfinished";

/// Replaces the file `name` in a folder, or creates it, for its owner alone, and makes it durable.
/// The name is one entry of the folder, not a path.
///
/// The new file is called [`UNFINISHED`] at first. If that name is taken, by a leftover of a crash
/// or by a link that somebody planted, the entry is removed and not followed. Only one caller at a
/// time may replace files of a folder.
///
/// # Errors
///
/// The system's error; the old file is then unchanged, unless only the last step failed: then the
/// new one is there, and may be gone again after a power loss.
pub fn replace(folder: impl AsFd, name: &str, content: &[u8]) -> io::Result<()> {
    let folder = folder.as_fd();
    match rustix::fs::unlinkat(folder, UNFINISHED, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(folder, UNFINISHED, flags, Mode::RUSR | Mode::WUSR)?;
    let mut file = File::from(file);
    file.write_all(content)?;
    file.sync_all()?;
    rustix::fs::renameat(folder, UNFINISHED, folder, name)?;
    Ok(rustix::fs::fsync(folder)?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_reader_of_the_old_file_reads_all_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let (handle, path) = (File::open(folder.path()).unwrap(), folder.path().join("a"));
        replace(&handle, "a", b"the old one").unwrap();
        let mut open = File::open(&path).unwrap();
        replace(&handle, "a", b"new").unwrap();
        let mut read = String::new();
        open.read_to_string(&mut read).unwrap();
        assert_eq!(read, "the old one");
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }

    #[test]
    fn a_failure_leaves_the_old_file_and_a_leftover_does_not_stop_the_next_try() {
        let folder = tempfile::tempdir().unwrap();
        let handle = File::open(folder.path()).unwrap();
        // Only the last name is taken by something that no file replaces.
        fs::create_dir(folder.path().join("a")).unwrap();
        replace(&handle, "a", b"new").expect_err("a folder is in the way");
        assert!(folder.path().join("a").is_dir());
        assert!(folder.path().join(UNFINISHED).exists());
        fs::remove_dir(folder.path().join("a")).unwrap();
        replace(&handle, "a", b"newer").unwrap();
        assert_eq!(fs::read(folder.path().join("a")).unwrap(), b"newer");
        assert!(!folder.path().join(UNFINISHED).exists());
    }

    #[test]
    fn nothing_is_written_through_a_planted_link() {
        let folder = tempfile::tempdir().unwrap();
        let handle = File::open(folder.path()).unwrap();
        let outside = tempfile::NamedTempFile::new().unwrap();
        symlink(outside.path(), folder.path().join(UNFINISHED)).unwrap();
        symlink(outside.path(), folder.path().join("a")).unwrap();
        replace(&handle, "a", b"new").unwrap();
        assert_eq!(fs::read(outside.path()).unwrap(), b"");
        assert!(
            folder
                .path()
                .join("a")
                .symlink_metadata()
                .unwrap()
                .is_file()
        );
    }
}
