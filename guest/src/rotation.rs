//! Append-only files that are replaced by a new one when they are full.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::plain;

/// The size at which a file is replaced. One old file is kept, so both take at most twice this
/// much.
pub(crate) const BYTES_MAX: u64 = 8 << 20;

/// Opens a file for appending.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    plain::open(OpenOptions::new().create(true).append(true), path)
}

/// Renames the present file to the old one, replacing the one before, and opens a new file.
pub(crate) fn begin_anew(path: &Path) -> io::Result<File> {
    match std::fs::rename(path, old(path)) {
        // The file was moved by someone, or could not be reopened the last time.
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        renamed => renamed?,
    }
    open(path)
}

/// The name of the old file.
fn old(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}
