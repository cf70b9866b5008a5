//! Files of the state folder: one tunnel's alone, replaced whole, read up to a limit, set aside when damaged.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use towpath_daemon::lock::Lock;
use towpath_protocol::fault::{Code, Fault};

/// Makes the state folder this tunnel's own: a second one would replace what this one has written down.
///
/// # Errors
///
/// `E_ALREADY_RUNNING` if another tunnel has it, `E_PATH` if something else is in the lock's place. A disk that takes
/// nothing gives no lock and stops no tunnel: nothing can be replaced there.
pub(crate) fn lock(folder: &Path) -> Result<Option<Lock>, Fault> {
    let made = create(folder).map_err(|error| failed(folder, &error));
    match made.and_then(|()| Lock::take(&folder.join("lock"))) {
        Ok(lock) => Ok(Some(lock)),
        Err(fault) if fault.code == Code::Io => {
            tracing::warn!(%fault, "state_dir cannot be written: nothing of this run is kept");
            Ok(None)
        }
        Err(fault) => {
            let detail = format!("state_dir {}: {}", folder.display(), fault.detail);
            Err(Fault { detail, ..fault })
        }
    }
}

fn create(folder: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(folder)
}

/// What a file holds, if there is one: at most `bytes_max` of it and one more, which says that it is too
/// long.
///
/// # Errors
///
/// `E_IO` if it is there and cannot be read.
pub(crate) fn read(path: &Path, bytes_max: usize) -> Result<Option<Vec<u8>>, Fault> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| {
        file.take(bytes_max as u64 + 1)
            .read_to_end(&mut bytes)
            .map(drop)
    });
    match read {
        Ok(()) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(path, &error)),
    }
}

/// Held while a file is replaced: two who replace one would share what becomes it.
static REPLACING: Mutex<()> = Mutex::new(());

/// Puts a file in the place of another, or of none: after a crash the old one or the new one is there,
/// and whole.
///
/// # Errors
///
/// `E_IO`; the old file is then still there.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), Fault> {
    let _alone = REPLACING.lock().unwrap_or_else(PoisonError::into_inner);
    let write = || -> io::Result<()> {
        let folder = path.parent().unwrap_or_else(|| Path::new("/"));
        create(folder)?;
        let new = path.with_extension("new");
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(|error| failed(path, &error))
}

/// Keeps a damaged file for whoever wants to look at it, out of the way of the next one.
pub(crate) fn set_aside(path: &Path, why: &Fault) {
    let aside: PathBuf = path.with_extension("damaged");
    let moved = fs::rename(path, &aside);
    tracing::warn!(path = %aside.display(), fault = %why, ?moved, "a damaged file is set aside");
}

fn failed(path: &Path, error: &io::Error) -> Fault {
    let shown = path.display();
    Fault::new(Code::Io, format!("{shown}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_takes_nothing_gives_no_lock_and_stops_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let first = lock(&state).unwrap();
        assert!(first.is_some());
        assert_eq!(lock(&state).unwrap_err().code, Code::AlreadyRunning);
        // Below a plain file nothing can be made.
        let below = state.join("lock/state");
        assert!(lock(&below).unwrap().is_none());
    }
}
