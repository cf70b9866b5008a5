//! Files in a guest's folder: plain ones of ours with one name, and nothing that was put in their place.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::io::Errno;
use towpath_protocol::fault::{Code, Fault};

/// What is not one is told by its kind: the system gives this one for nothing that is opened here.
const PLANTED: io::ErrorKind = io::ErrorKind::InvalidInput;

/// Opens a file, which is made for us alone where the options say so. They never cut it off: that is for whoever
/// has it open, and knows by then what it is.
pub(crate) fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    // Not to hang on a FIFO that nobody else has open; on a regular file it means nothing.
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

/// The fault it is that a file cannot be opened or used.
pub(crate) fn fault(what: &str, error: &io::Error) -> Fault {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    let is_planted =
        error.kind() == PLANTED || matches!(errno, Some(Errno::LOOP | Errno::NXIO | Errno::ISDIR));
    let code = if is_planted { Code::Path } else { Code::Io };
    Fault::new(code, format!("{what}: {error}"))
}
