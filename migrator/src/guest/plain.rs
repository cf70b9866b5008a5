//! Files that a guest process and its migrator share: plain ones of ours with one name.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;
use towpath_protocol::fault::{Code, Fault};

/// Opens a file, which is made for us alone where the options say so. They never cut it off: that is for whoever
/// has it open, and knows by then what it is.
///
/// `E_NOT_FOUND` if it is not there, `E_PATH` if something else is, else `E_IO`.
pub(super) fn open(options: &mut OpenOptions, path: &Path) -> Result<File, Fault> {
    let shown = path.display();
    let failed = |error: io::Error| {
        let code = match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::LOOP | Errno::NXIO | Errno::ISDIR) => Code::Path,
            Some(Errno::NOENT) => Code::NotFound,
            _ => Code::Io,
        };
        Fault::new(code, format!("{shown}: {error}"))
    };
    // Not to hang on a FIFO that nobody else has open; on a regular file it means nothing.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = options
        .mode(0o600)
        .custom_flags(i32::try_from(flags.bits()).expect("flags are small positive numbers"))
        .open(path)
        .map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let is_ours = metadata.uid() == rustix::process::geteuid().as_raw();
    if metadata.is_file() && metadata.nlink() == 1 && is_ours {
        return Ok(file);
    }
    let detail = format!("{shown} is not a plain file of ours with one name");
    Err(Fault::new(Code::Path, detail))
}
