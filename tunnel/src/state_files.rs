//! The state folder: owned by one tunnel; its files are replaced atomically, read up to a limit,
//! and set aside when damaged.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use towpath_daemon::lock::Lock;
use towpath_protocol::fault::{Code, Fault};

/// Most files set aside under one name. The first ones show how a problem began, and repeated
/// failures do not fill the disk.
const ASIDE_COUNT_MAX: u32 = 8;

/// Why a file is set aside; the word becomes its extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Aside {
    /// Its content is invalid, or cannot be read.
    Damaged,
    /// Written by a newer release, which can still read it.
    Newer,
}

impl Aside {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Damaged => "damaged",
            Self::Newer => "newer",
        }
    }
}

/// A tunnel's state folder.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    /// Held while a file is replaced: two writers of one file would share its temporary copy.
    replacing: Mutex<()>,
    /// Why the last write failed, if it did.
    problem: Mutex<Option<Fault>>,
}

impl Folder {
    /// Opens the state folder, creates it if needed, and locks it: a second tunnel would overwrite
    /// what this one has stored.
    ///
    /// # Errors
    ///
    /// `E_ALREADY_RUNNING` if another tunnel holds the lock, `E_PATH` if something else is in the
    /// lock's place. A disk that cannot be written gives no lock but does not stop the tunnel, as
    /// nothing can be overwritten there.
    pub(crate) fn open(path: &Path) -> Result<(Arc<Self>, Option<Lock>), Fault> {
        let folder = Self {
            path: path.to_owned(),
            replacing: Mutex::default(),
            problem: Mutex::default(),
        };
        let made = create(path).map_err(|error| failed(path, &error));
        match made.and_then(|()| Lock::take(&path.join("lock"))) {
            Ok(lock) => Ok((Arc::new(folder), Some(lock))),
            Err(fault) if fault.code == Code::Io => {
                tracing::warn!(%fault, "state_dir cannot be written: nothing of this run is kept");
                *folder.problem_lock() = Some(fault);
                Ok((Arc::new(folder), None))
            }
            Err(fault) => {
                let detail = format!("state_dir {}: {}", path.display(), fault.detail);
                Err(Fault { detail, ..fault })
            }
        }
    }

    /// Returns why files cannot be written, if the last write failed.
    pub(crate) fn problem(&self) -> Option<Fault> {
        let problem = self.problem_lock().clone();
        problem.map(|fault| {
            let shown = self.path.display();
            let remedy = format!(
                "see that {shown} can be written and its disk has room; changes are kept again from then on"
            );
            fault.remedy(remedy)
        })
    }

    /// Reads a file, if it exists and is readable: at most `bytes_max` bytes and one more, which
    /// shows that it is too long. An unreadable file is set aside, because the next write would
    /// replace what somebody may still recover.
    pub(crate) fn read(&self, name: &Path, bytes_max: usize) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let path = self.path.join(name);
        let read = File::open(&path).and_then(|file| {
            file.take(bytes_max as u64 + 1)
                .read_to_end(&mut bytes)
                .map(drop)
        });
        match read {
            Ok(()) => Some(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                self.set_aside(name, Aside::Damaged, &failed(&path, &error));
                None
            }
        }
    }

    /// Replaces a file, or creates it, atomically: after a crash, either the old or the new file is
    /// there, complete.
    ///
    /// # Errors
    ///
    /// `E_IO`; the old file is then unchanged.
    pub(crate) fn replace(&self, name: &Path, bytes: &[u8]) -> Result<(), Fault> {
        let path = self.path.join(name);
        let written = {
            let _alone = self.replacing.lock();
            write_new(&path, bytes).map_err(|error| failed(&path, &error))
        };
        *self.problem_lock() = written.clone().err();
        written
    }

    /// Renames a file so that the next write does not replace it and somebody can examine it.
    pub(crate) fn set_aside(&self, name: &Path, how: Aside, why: &Fault) {
        let path = self.path.join(name);
        let aside = (0..ASIDE_COUNT_MAX)
            .map(|number| aside_of(&path, how, number))
            .find(|aside| fs::symlink_metadata(aside).is_err())
            .unwrap_or_else(|| aside_of(&path, how, ASIDE_COUNT_MAX - 1));
        let moved = fs::rename(&path, &aside);
        tracing::error!(
            target: "audit",
            path = %path.display(),
            aside = %aside.display(),
            fault = %why,
            ?moved,
            "a file of the state folder cannot be used, and is set aside"
        );
    }

    fn problem_lock(&self) -> MutexGuard<'_, Option<Fault>> {
        self.problem.lock()
    }
}

/// Returns the name for a file that is set aside; the first has no number.
fn aside_of(path: &Path, how: Aside, number: u32) -> PathBuf {
    let word = how.as_str();
    match number {
        0 => path.with_extension(word),
        number => path.with_extension(format!("{word}.{number}")),
    }
}

fn create(folder: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(folder)
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
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
        let (_first, lock) = Folder::open(&state).unwrap();
        assert!(lock.is_some());
        let refused = Folder::open(&state).unwrap_err();
        assert_eq!(refused.code, Code::AlreadyRunning);
        // Nothing can be created below a plain file.
        let (below, lock) = Folder::open(&state.join("lock/state")).unwrap();
        assert!(lock.is_none() && below.problem().is_some());
    }

    #[test]
    fn a_write_that_succeeds_ends_the_problem() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        fs::write(&state, b"no folder").unwrap();
        let (kept, _) = Folder::open(&state).unwrap();
        let name = Path::new("channels.json");
        assert!(kept.replace(name, b"first").is_err());
        assert!(kept.problem().is_some());
        fs::remove_file(&state).unwrap();
        kept.replace(name, b"second").unwrap();
        assert_eq!(kept.problem(), None);
        assert_eq!(kept.read(name, 100).unwrap(), b"second");
    }

    #[test]
    fn what_is_set_aside_first_stays_and_so_many_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let (kept, _) = Folder::open(folder.path()).unwrap();
        let (name, why) = (Path::new("channels.json"), Fault::new(Code::Meta, "wrong"));
        let texts = (0..ASIDE_COUNT_MAX + 2).map(|number| number.to_string());
        for text in texts {
            kept.replace(name, text.as_bytes()).unwrap();
            kept.set_aside(name, Aside::Damaged, &why);
        }
        kept.replace(name, b"of a newer release").unwrap();
        kept.set_aside(name, Aside::Newer, &why);
        let read = |file: &str| fs::read_to_string(folder.path().join(file)).unwrap();
        assert_eq!(read("channels.damaged"), "0");
        assert_eq!(read("channels.damaged.1"), "1");
        assert_eq!(read("channels.damaged.7"), "9");
        assert!(!folder.path().join("channels.damaged.8").exists());
        assert_eq!(read("channels.newer"), "of a newer release");
    }
}
