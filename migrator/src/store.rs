//! The state folder. Every path below it is opened so that nothing planted there leads outside.
//!
//! ```text
//!  /var/lib/towpath/          0700, ours
//!    lock                     held while a migrator runs
//!    incarnation              number of starts so far, in a journal
//!    guests/<name>/           0700
//!      journal                who may run the guest
//!      received               which blocks arrived, while it is being received
//!      <name>                 small files, replaced as a whole
//!    ended/<id>               a journal: the last record of a guest that lived here
//!    strangers/<id>           the same for a guest that did not; limited per peer
//!    incidents/<when>-...json reports about refused images, the newest few
//! ```
//!
//! Names are [`Name`]s, so they cannot be paths. Folders and files are opened with `openat2`
//! beneath the root, without following links or crossing file systems. A file must be a regular one
//! of our own with one name, so a planted link, FIFO or device is refused and never written
//! through.

mod incidents;
mod kept;
mod received;
mod removal;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, FallocateFlags, FileType, FlockOperation, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::{AttemptId, Name};
use towpath_protocol::space::Geometry;

use crate::journal::{JOURNAL_BYTES, Journal};

pub(crate) use incidents::INCIDENTS;
pub use received::{Position, ReceivedFile};

use kept::Kept;

/// Most guests that one host knows: far more than fit in its memory. Applies to new guests only.
/// Guests that were here before are always recovered, so that none is left without its owner.
pub const GUEST_COUNT_MAX: u32 = 4096;

/// Most bytes of a small file.
pub const SMALL_FILE_BYTES_MAX: u64 = 1024 * 1024;

const LOCK: &str = "lock";
const INCARNATION: &str = "incarnation";
const GUESTS: &str = "guests";
const JOURNAL: &str = "journal";
/// The small file with a guest's description. A folder that holds only this file has no owner.
pub(crate) const DESCRIPTION: &str = "guest.json";

const RECEIVED: &str = "received";

/// The name of a file until it is complete: no [`Name`] begins with a dot.
const UNFINISHED: &str = ".unfinished";

/// The state folder of this host's migrator, locked for this process.
#[derive(Debug)]
pub struct Store {
    guests: OwnedFd,
    /// Shared by all workers' threads, so one of them at a time.
    kept: Mutex<Kept>,
    /// Locked while a file is written, because every unfinished file has the same name.
    incidents: Mutex<OwnedFd>,
    incarnation: u64,
    /// Closing it would let another migrator in.
    _lock: File,
}

impl Store {
    /// Opens the state folder, creating it if needed, and holds its lock for as long as the store
    /// lives.
    ///
    /// The lock is an `flock`, which like an OFD lock belongs to the open file and not to the
    /// process: closing another descriptor does not release it.
    ///
    /// # Errors
    ///
    /// `E_ALREADY_RUNNING` if another process has the lock, `E_PATH` if the folder is not ours
    /// alone or holds something unexpected, `E_QUARANTINE` if the start count is unreadable,
    /// `E_IO`.
    pub fn open(path: &Path) -> Result<Self, Fault> {
        let shown = path.display().to_string();
        match rustix::fs::mkdir(path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(fault(&shown, "cannot be made", errno)),
        }
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|errno| fault(&shown, "cannot be opened", errno))?;
        check_folder(&root, &shown)?;
        let lock = take_lock(&root, &shown)?;
        let guests = have_folder(&root, GUESTS)?;
        let kept = Mutex::new(Kept::open(&root)?);
        let incidents = Mutex::new(have_folder(&root, INCIDENTS)?);
        let incarnation = count_start(&root)?;
        Ok(Self {
            guests,
            kept,
            incidents,
            incarnation,
            _lock: lock,
        })
    }

    /// How many migrators have started with this folder, including this one.
    #[must_use]
    pub const fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// The guests that have a folder, sorted by name. Entries that are no valid [`Name`] are
    /// ignored.
    ///
    /// # Errors
    ///
    /// `E_IO` if the folder cannot be read.
    pub fn guests(&self) -> Result<Vec<Name>, Fault> {
        let unreadable = |errno| fault(GUESTS, "cannot be read", errno);
        let entries = rustix::fs::Dir::read_from(&self.guests).map_err(unreadable)?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(unreadable)?;
            let name = entry.file_name().to_str().ok();
            let Some(name) = name.and_then(|name| name.parse::<Name>().ok()) else {
                continue;
            };
            names.push(name);
        }
        names.sort();
        Ok(names)
    }

    /// The folder of a guest.
    ///
    /// # Errors
    ///
    /// `E_NOT_FOUND` if there is none, `E_PATH` if it is not a folder of ours.
    pub fn guest(&self, name: &Name) -> Result<GuestFolder, Fault> {
        let folder = open_folder(&self.guests, name.as_str())?;
        Ok(GuestFolder {
            folder,
            incarnation: self.incarnation,
        })
    }

    /// Creates the folder of a new guest.
    ///
    /// # Errors
    ///
    /// `E_GUEST_EXISTS` if anything of that name is there, `E_IO`.
    pub fn create_guest(&self, name: &Name) -> Result<GuestFolder, Fault> {
        let folder = make_folder(&self.guests, name.as_str())?;
        Ok(GuestFolder {
            folder,
            incarnation: self.incarnation,
        })
    }

    /// Removes a guest's folder with all files in it. A crash in the middle leaves either a
    /// complete guest or one that the next start treats as never born.
    ///
    /// # Errors
    ///
    /// `E_NOT_FOUND` if there is none, `E_PATH` if it contains a folder, `E_IO`.
    pub fn remove_guest(&self, name: &Name) -> Result<(), Fault> {
        let shown = name.as_str();
        let folder = open_folder(&self.guests, shown)?;
        removal::empty(&folder, shown, |_| Ok(()))?;
        rustix::fs::unlinkat(&self.guests, shown, AtFlags::REMOVEDIR)
            .map_err(|errno| fault(shown, "cannot be removed", errno))?;
        sync_folder(&self.guests, GUESTS)
    }
}

/// The folder of one guest.
#[derive(Debug)]
pub struct GuestFolder {
    folder: OwnedFd,
    incarnation: u64,
}

impl GuestFolder {
    /// Creates the guest's journal with its first record. After a power loss it exists either
    /// completely or not at all.
    ///
    /// # Errors
    ///
    /// `E_GUEST_EXISTS` if there is one, `E_JOURNAL` if it cannot be made durable, `E_IO`.
    pub fn create_journal(&self, record: &[u8]) -> Result<Journal<File>, Fault> {
        create_journal(&self.folder, JOURNAL, self.incarnation, record)
    }

    /// Opens the guest's journal.
    ///
    /// # Errors
    ///
    /// `E_NOT_FOUND` if there is none, `E_PATH` if it is no plain file of ours, else as
    /// [`Journal::open`].
    pub fn open_journal(&self) -> Result<Journal<File>, Fault> {
        let file = open_file(&self.folder, JOURNAL, OFlags::RDWR)?;
        Journal::open(file, self.incarnation)
    }

    /// Whether the guest's journal has its name here. An unclear answer counts as yes.
    #[must_use]
    pub fn has_journal(&self) -> bool {
        let found = rustix::fs::statat(&self.folder, JOURNAL, AtFlags::SYMLINK_NOFOLLOW);
        found.err() != Some(Errno::NOENT)
    }

    /// Whether the folder holds nothing except, possibly, a small file of this name.
    ///
    /// # Errors
    ///
    /// `E_IO`.
    pub fn holds_only(&self, name: &Name) -> Result<bool, Fault> {
        let unreadable = |errno| fault(name.as_str(), "has a folder that cannot be read", errno);
        for entry in rustix::fs::Dir::read_from(&self.folder).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let known = [".", "..", UNFINISHED, name.as_str()];
            if !known
                .iter()
                .any(|known| entry.file_name().to_bytes() == known.as_bytes())
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Creates the file of received blocks for a new attempt, replacing an older one.
    ///
    /// # Errors
    ///
    /// `E_IO`, also if the disk is full: all space is allocated now.
    pub fn create_received(
        &self,
        attempt: AttemptId,
        spaces: &[Geometry],
    ) -> Result<ReceivedFile, Fault> {
        self.remove_received()?;
        let bytes = ReceivedFile::file_bytes(spaces)?;
        let file = create_file(&self.folder, UNFINISHED, bytes)?;
        let received = ReceivedFile::create(file, attempt, spaces)?;
        finish_file(&self.folder, RECEIVED)?;
        Ok(received)
    }

    /// Opens the file of received blocks.
    ///
    /// # Errors
    ///
    /// `E_NOT_FOUND` if there is none, `E_IMAGE_LOST` if it is damaged, `E_PATH` if it is no plain
    /// file of ours, `E_IO`.
    pub fn open_received(&self) -> Result<ReceivedFile, Fault> {
        ReceivedFile::open(open_file(&self.folder, RECEIVED, OFlags::RDWR)?)
    }

    /// Removes the file of received blocks, if there is one.
    ///
    /// # Errors
    ///
    /// `E_IO`.
    pub fn remove_received(&self) -> Result<(), Fault> {
        remove_file(&self.folder, RECEIVED)
    }

    /// Replaces a small file as a whole, durably.
    ///
    /// # Errors
    ///
    /// `E_IO`; the old file is still there then.
    pub fn write(&self, name: &Name, content: &[u8]) -> Result<(), Fault> {
        write_file(&self.folder, name.as_str(), content)
    }

    /// Writes a document to a small file, durably.
    ///
    /// # Errors
    ///
    /// As [`GuestFolder::write`].
    pub fn write_document(&self, name: &Name, document: &impl Serialize) -> Result<(), Fault> {
        let text = serde_json::to_vec_pretty(document).expect("plain structs always serialise");
        self.write(name, &text)
    }

    /// Reads a document from a small file. `None` if there is no file.
    ///
    /// # Errors
    ///
    /// As [`GuestFolder::read`], and `E_QUARANTINE` if it is not such a document.
    pub fn read_document<T: DeserializeOwned>(&self, name: &Name) -> Result<Option<T>, Fault> {
        let Some(bytes) = self.read(name)? else {
            return Ok(None);
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| Fault::new(Code::Quarantine, format!("{name}: {error}")))
    }

    /// Reads a small file. `None` if there is none.
    ///
    /// # Errors
    ///
    /// `E_PATH` if it is no plain file of ours, `E_IO`, also if it is larger than
    /// [`SMALL_FILE_BYTES_MAX`].
    pub fn read(&self, name: &Name) -> Result<Option<Vec<u8>>, Fault> {
        let file = match open_file(&self.folder, name.as_str(), OFlags::RDONLY) {
            Ok(file) => file,
            Err(fault) if fault.code == Code::NotFound => return Ok(None),
            Err(fault) => return Err(fault),
        };
        let mut content = Vec::new();
        let unreadable = |error| Fault::new(Code::Io, format!("{name} cannot be read: {error}"));
        file.take(SMALL_FILE_BYTES_MAX + 1)
            .read_to_end(&mut content)
            .map_err(unreadable)?;
        if content.len() as u64 > SMALL_FILE_BYTES_MAX {
            let detail = format!("{name} is larger than {SMALL_FILE_BYTES_MAX} bytes");
            return Err(Fault::new(Code::Io, detail));
        }
        Ok(Some(content))
    }

    /// Removes a small file durably, if it is there.
    ///
    /// # Errors
    ///
    /// `E_IO`.
    pub fn remove(&self, name: &Name) -> Result<(), Fault> {
        remove_file(&self.folder, name.as_str())?;
        sync_folder(&self.folder, name.as_str())
    }
}

fn take_lock(root: &OwnedFd, shown: &str) -> Result<File, Fault> {
    let mut lock = open_file(root, LOCK, OFlags::RDWR | OFlags::CREATE)?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            // Only used in the message, which is clear enough without it.
            drop((&lock).take(20).read_to_string(&mut holder));
            return Err(Fault::new(
                Code::AlreadyRunning,
                format!("process {} uses {shown}", holder.trim()),
            ));
        }
        Err(errno) => return Err(fault(LOCK, "cannot be locked", errno)),
    }
    let process = std::process::id();
    // Informational: the disk may be full, but the lock is held all the same.
    let told = lock.set_len(0);
    drop(told.and_then(|()| lock.write_all(format!("{process}\n").as_bytes())));
    Ok(lock)
}

/// Counts this start, durably.
fn count_start(root: &OwnedFd) -> Result<u64, Fault> {
    let file = match open_file(root, INCARNATION, OFlags::RDWR) {
        Ok(file) => file,
        Err(fault) if fault.code == Code::NotFound => {
            create_journal(root, INCARNATION, 0, &1_u64.to_le_bytes())?;
            return Ok(1);
        }
        Err(fault) => return Err(fault),
    };
    let mut journal = Journal::open(file, 0)?;
    let count: [u8; 8] = journal
        .record()
        .try_into()
        .map_err(|_| Fault::new(Code::Quarantine, "the count of starts is no number"))?;
    let count = u64::from_le_bytes(count).saturating_add(1);
    journal.write(&count.to_le_bytes())?;
    Ok(count)
}

fn create_journal(
    folder: &OwnedFd,
    name: &str,
    incarnation: u64,
    record: &[u8],
) -> Result<Journal<File>, Fault> {
    let file = create_file(folder, UNFINISHED, JOURNAL_BYTES)?;
    // Data and metadata, so that no later write depends on the file's size or blocks becoming
    // durable.
    file.sync_all()
        .map_err(|error| Fault::new(Code::Journal, format!("{name} is not durable: {error}")))?;
    let journal = Journal::create(file, incarnation, record)?;
    finish_file(folder, name)?;
    Ok(journal)
}

/// How every path below the root is resolved.
fn beneath() -> ResolveFlags {
    ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV
}

fn open_beneath(folder: &OwnedFd, name: &str, flags: OFlags) -> Result<OwnedFd, Fault> {
    let mode = if flags.contains(OFlags::CREATE) {
        Mode::RUSR | Mode::WUSR
    } else {
        Mode::empty()
    };
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat2(folder, name, flags, mode, beneath())
        .map_err(|errno| fault(name, "cannot be opened", errno))
}

/// Opens a regular file of ours.
fn open_file(folder: &OwnedFd, name: &str, flags: OFlags) -> Result<File, Fault> {
    // Avoids hanging on a FIFO without a writer; has no effect on a regular file.
    let file = open_beneath(folder, name, flags | OFlags::NONBLOCK)?;
    let stat =
        rustix::fs::fstat(&file).map_err(|errno| fault(name, "cannot be looked at", errno))?;
    let is_regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    let is_ours = stat.st_uid == rustix::process::geteuid().as_raw();
    if !is_regular || stat.st_nlink != 1 || !is_ours {
        return Err(Fault::new(
            Code::Path,
            format!("{name} is not a plain file of ours with one name"),
        ));
    }
    Ok(File::from(file))
}

/// Creates a new file with its space allocated. Removes what an earlier try left.
fn create_file(folder: &OwnedFd, name: &str, bytes: u64) -> Result<File, Fault> {
    remove_file(folder, name)?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
    let file = open_file(folder, name, flags)?;
    if bytes > 0 {
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes)
            .map_err(|errno| fault(name, "cannot have its space", errno))?;
    }
    Ok(file)
}

/// Replaces a small file as a whole, durably.
fn write_file(folder: &OwnedFd, name: &str, content: &[u8]) -> Result<(), Fault> {
    let mut file = create_file(folder, UNFINISHED, 0)?;
    file.write_all(content)
        .and_then(|()| file.sync_all())
        .map_err(|error| Fault::new(Code::Io, format!("{name} cannot be written: {error}")))?;
    rustix::fs::renameat(folder, UNFINISHED, folder, name)
        .map_err(|errno| fault(name, "cannot be put in place", errno))?;
    sync_folder(folder, name)
}

/// Renames the unfinished file to `name`, which must be free, durably.
fn finish_file(folder: &OwnedFd, name: &str) -> Result<(), Fault> {
    let flags = rustix::fs::RenameFlags::NOREPLACE;
    rustix::fs::renameat_with(folder, UNFINISHED, folder, name, flags)
        .map_err(|errno| fault(name, "cannot be put in place", errno))?;
    sync_folder(folder, name)
}

fn remove_file(folder: &OwnedFd, name: &str) -> Result<(), Fault> {
    match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(fault(name, "cannot be removed", errno)),
    }
}

fn make_folder(parent: &OwnedFd, name: &str) -> Result<OwnedFd, Fault> {
    rustix::fs::mkdirat(parent, name, Mode::RWXU)
        .map_err(|errno| fault(name, "cannot be made", errno))?;
    sync_folder(parent, name)?;
    open_folder(parent, name)
}

fn have_folder(parent: &OwnedFd, name: &str) -> Result<OwnedFd, Fault> {
    make_folder(parent, name).or_else(|fault| match fault.code {
        Code::GuestExists => open_folder(parent, name),
        _ => Err(fault),
    })
}

fn open_folder(parent: &OwnedFd, name: &str) -> Result<OwnedFd, Fault> {
    let folder = open_beneath(parent, name, OFlags::DIRECTORY)?;
    check_folder(&folder, name)?;
    Ok(folder)
}

fn check_folder(folder: &OwnedFd, name: &str) -> Result<(), Fault> {
    let stat =
        rustix::fs::fstat(folder).map_err(|errno| fault(name, "cannot be looked at", errno))?;
    let is_ours = stat.st_uid == rustix::process::geteuid().as_raw();
    let is_private = stat.st_mode & 0o077 == 0;
    if !is_ours || !is_private {
        return Err(Fault::new(
            Code::Path,
            format!("{name} must belong to us with mode 0700 and nobody else may enter it"),
        ));
    }
    Ok(())
}

/// Makes the names in a folder durable.
fn sync_folder(folder: impl AsFd, name: &str) -> Result<(), Fault> {
    rustix::fs::fsync(folder).map_err(|errno| fault(name, "cannot be made durable", errno))
}

/// Converts a system error to a fault: something else is in our file's place, or the file has a
/// problem.
fn fault(name: &str, what: &str, errno: Errno) -> Fault {
    let code = match errno {
        Errno::LOOP | Errno::XDEV | Errno::NOTDIR | Errno::ISDIR | Errno::NXIO | Errno::PERM => {
            Code::Path
        }
        Errno::NOENT => Code::NotFound,
        Errno::EXIST => Code::GuestExists,
        _ => Code::Io,
    };
    Fault::new(code, format!("{name} {what}: {errno}"))
}
