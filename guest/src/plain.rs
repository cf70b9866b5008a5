//! Opens files in a guest's folder: regular files of ours with one name, and nothing planted in
//! their place.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::io::Errno;
use towpath_protocol::fault::{Code, Fault};

/// The error kind for files that are not regular ones of ours. The system returns it for no file
/// that is opened here.
const PLANTED: io::ErrorKind = io::ErrorKind::InvalidInput;

/// Opens a file. If the options create it, only we may access it. The options must not truncate:
/// that is for the caller to do once the file is open and known to be ours.
pub(crate) fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    // Avoids hanging on a FIFO that nobody else has open; has no effect on a regular file.
    let file = options
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    let metadata = file.metadata()?;
    let is_ours = metadata.uid() == rustix::process::geteuid().as_raw();
    if metadata.is_file() && metadata.nlink() == 1 && is_ours {
        return Ok(file);
    }
    let what = "not a plain file of ours with one name";
    Err(io::Error::new(PLANTED, what))
}

/// Converts an error of opening or using a file to a fault.
pub(crate) fn fault(what: &str, error: &io::Error) -> Fault {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    let is_planted =
        error.kind() == PLANTED || matches!(errno, Some(Errno::LOOP | Errno::NXIO | Errno::ISDIR));
    let code = if is_planted { Code::Path } else { Code::Io };
    Fault::new(code, format!("{what}: {error}"))
}
