//! Opens files that a guest process and its migrator share: regular files of ours with one name.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;
use towpath_protocol::fault::{Code, Fault};

/// Opens a file. If the options create it, only we may access it. The options must not truncate:
/// that is for the caller to do once the file is open and known to be ours.
///
/// `E_NOT_FOUND` if it does not exist, `E_PATH` if something else has its name, else `E_IO`.
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
    // Avoids hanging on a FIFO that nobody else has open; has no effect on a regular file.
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
