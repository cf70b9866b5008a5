//! Files that only grow at their end, and make way for a new one.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::plain;

/// Where a file makes way: with the old one kept, both take at most twice as much.
pub(crate) const BYTES_MAX: u64 = 8 << 20;

/// Opens a file for what is appended, behind what is already in it.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    plain::open(OpenOptions::new().create(true).append(true), path)
}

/// Makes the file that is there the old one, in place of the one before, and opens a new one.
pub(crate) fn begin_anew(path: &Path) -> io::Result<File> {
    match std::fs::rename(path, old(path)) {
        // Somebody moved it, or it could not be opened anew the last time.
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        renamed => renamed?,
    }
    open(path)
}

/// What the file before is called.
fn old(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}
