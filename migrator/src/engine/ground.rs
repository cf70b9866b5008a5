//! The belongings of a guest on this host, used by both sides of a move: its folder, journal,
//! process, memory and lanes.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::{ClockId, clock_gettime};
use towpath_protocol::amounts::millis;
use towpath_protocol::fault::{Blame, Code, Fault};
use towpath_protocol::guest_api::GuestConfig;
use towpath_protocol::identity::{GuestId, Name};
use towpath_protocol::message::{Lane, Message};
use towpath_protocol::ownership::Record;
use towpath_protocol::time::Instant;
use tracing::{error, warn};

use super::input::Input;
use super::lanes::{Link, spawn};
use super::mailbox::Mailbox;
use super::shared::Shared;
use crate::guest::{GuestMemory, GuestProcess};
use crate::journal::Journal;
use crate::store::{DESCRIPTION, GuestFolder};

/// How long a record must have been the last one before it is written to the journal's other slot
/// too. Most records are followed by another at once.
const SETTLE_AFTER: Duration = Duration::from_secs(1);

/// Reads the monotonic clock in the type that the protocol's machines use.
pub(super) fn now() -> Instant {
    let time = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(time.tv_sec).expect("the monotonic clock begins at the boot");
    let nanos = u64::try_from(time.tv_nsec).expect("nanoseconds are not negative");
    Instant::from_nanos(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}

/// A link number that was never used before, not even by a previous migrator since the host booted.
pub(super) fn new_link_number() -> u64 {
    now().as_nanos()
}

/// Converts an instant to the standard library's clock, for waits.
pub(super) fn to_wait_until(deadline: Instant) -> std::time::Instant {
    std::time::Instant::now() + deadline.since(now())
}

/// A guest's belongings on this host.
#[derive(Debug)]
pub(super) struct Ground {
    pub(super) shared: Arc<Shared>,
    pub(super) mailbox: Arc<Mailbox<Input>>,
    pub(super) id: GuestId,
    pub(super) config: Option<GuestConfig>,
    pub(super) folder: Option<GuestFolder>,
    pub(super) journal: Option<Journal<File>>,
    pub(super) process: Option<GuestProcess>,
    pub(super) memory: Option<GuestMemory>,
    /// A process whose guest is no longer ours, while it frees its memory.
    ending: Option<GuestProcess>,
    pub(super) link: Option<Link>,
    /// Why the guest has no process although it should.
    pub(super) crash: Option<Fault>,
    /// The number of the last record if it stands in only one slot, and since when that is known.
    unsettled: Option<(u64, Instant)>,
    /// Why the guest's process, which lives, is not driven yet.
    pub(super) awaited: Option<Fault>,
    /// Cleared to make the thread that waits for the process give up.
    pub(super) adopting: Option<Arc<AtomicBool>>,
}

impl Ground {
    pub(super) fn new(shared: Arc<Shared>, mailbox: Arc<Mailbox<Input>>, id: GuestId) -> Self {
        Self {
            shared,
            mailbox,
            id,
            config: None,
            folder: None,
            journal: None,
            process: None,
            memory: None,
            ending: None,
            link: None,
            crash: None,
            unsettled: None,
            awaited: None,
            adopting: None,
        }
    }

    pub(super) fn name(&self) -> Result<&Name, Fault> {
        let config = self.config.as_ref();
        config
            .map(|config| &config.name)
            .ok_or_else(|| Fault::new(Code::State, "the guest has no name here yet"))
    }

    /// Makes the record durable. The first record also creates the guest's folder. The guest's
    /// description is written there before its journal, so that a folder without a journal holds
    /// nothing that anyone owns.
    pub(super) fn persist(&mut self, record: &Record) -> Result<(), Fault> {
        let begun = now();
        let metrics = &Arc::clone(&self.shared).metrics;
        self.write(&record.encode()).inspect_err(|fault| {
            // A name that is taken, or one guest too many, is not a disk error.
            if fault.blame() != Blame::Incompatible {
                metrics.journal_failed();
            }
        })?;
        metrics.journal_write(now().since(begun));
        Ok(())
    }

    fn write(&mut self, record: &[u8]) -> Result<(), Fault> {
        if let Some(journal) = &mut self.journal {
            journal.write(record)
        } else if self.config.is_some() {
            self.create_folder(record)
        } else {
            // A refusal of a guest that was never offered: the source resumes the guest because of
            // it.
            self.shared.store.keep_stranger(self.id, record)
        }
    }

    /// Creates the guest's folder and its journal, both or neither.
    fn create_folder(&mut self, record: &[u8]) -> Result<(), Fault> {
        let name = self.name()?;
        let folder = self.shared.store.create_guest(name)?;
        let journal = write_config(&folder, self.config.as_ref())
            .and_then(|()| folder.create_journal(record));
        match journal {
            Ok(journal) => {
                self.folder = Some(folder);
                self.journal = Some(journal);
                // From here on the journal is what counts, and it says everything the kept record
                // did.
                if let Err(fault) = self.shared.store.forget_ended(self.id) {
                    warn!(guest = %self.id, %fault, "an old record stays");
                }
                Ok(())
            }
            Err(fault) => {
                if let Err(left) = self.shared.store.remove_guest(name) {
                    warn!(guest = %name, fault = %left, "half a folder stays until the next start");
                }
                Err(fault)
            }
        }
    }

    /// Removes everything of a guest except the record that still answers questions about it.
    /// Guests that a peer only offered are put away too, because each would otherwise leave a
    /// folder, a name and a thread; the records kept of those are limited in number.
    pub(super) fn put_away(
        &mut self,
        remainder: Option<&Record>,
        has_lived: bool,
    ) -> Result<(), Fault> {
        self.check_journal()?;
        self.end_process()?;
        let name = self.name()?.clone();
        let store = &self.shared.store;
        match remainder {
            Some(record) if has_lived => store.keep_ended(self.id, &record.encode())?,
            Some(record) => store.keep_refused(self.id, &record.encode())?,
            None => {}
        }
        if let Err(fault) = store.remove_guest(&name) {
            let is_gone = self.folder.as_ref().is_some_and(|it| !it.has_journal());
            if let Some(journal) = self.journal.as_mut().filter(|_| is_gone) {
                // No restart would find the journal that is still open here.
                journal.poison();
            }
            return Err(fault);
        }
        self.journal = None;
        self.folder = None;
        Ok(())
    }

    /// Fails once a write to the journal has failed: nothing may rely on it any more.
    pub(super) fn check_journal(&self) -> Result<(), Fault> {
        if self.journal.as_ref().is_some_and(Journal::is_poisoned) {
            let detail = "the guest's journal could not be written, and what it says now shows only the next \
                          start: mend the disk, then restart the migrator";
            return Err(Fault::new(Code::Journal, detail));
        }
        Ok(())
    }

    /// Writes the last record to both slots of the journal once it has been the last for
    /// [`SETTLE_AFTER`]. Call this when nobody waits.
    pub(super) fn settle_journal(&mut self) {
        let Some(journal) = self.journal.as_mut().filter(|it| it.is_unsettled()) else {
            return;
        };
        let sequence = journal.sequence();
        let (_, since) = self
            .unsettled
            .take_if(|(known, _)| *known == sequence)
            .unwrap_or_else(|| (sequence, now()));
        if now().since(since) < SETTLE_AFTER {
            self.unsettled = Some((sequence, since));
        } else if let Err(fault) = journal.settle() {
            self.shared.metrics.journal_failed();
            error!(guest = %self.id, %fault, "the journal cannot be written any more");
        }
    }

    /// Writes the guest's description to its folder.
    pub(super) fn save_config(&self) -> Result<(), Fault> {
        let folder = self.folder.as_ref();
        let folder =
            folder.ok_or_else(|| Fault::new(Code::State, "the guest has no folder yet"))?;
        write_config(folder, self.config.as_ref())
    }

    pub(super) fn load_config(folder: &GuestFolder) -> Result<GuestConfig, Fault> {
        folder
            .read_document(&file_name(DESCRIPTION))?
            .ok_or_else(|| Fault::new(Code::Quarantine, "the guest's description is gone"))
    }

    /// The folder path that is passed to the guest process.
    pub(super) fn path(&self) -> Result<PathBuf, Fault> {
        Ok(self
            .shared
            .config
            .state_dir
            .join("guests")
            .join(self.name()?.as_str()))
    }

    /// Starts the guest's process, either to boot or empty to receive a guest.
    pub(super) fn make_process(&mut self, is_incoming: bool) -> Result<(), Fault> {
        if self.journal.is_none() {
            let detail = "nothing runs that no journal speaks of";
            return Err(Fault::new(Code::State, detail));
        }
        self.end_process()?;
        let path = self.path()?;
        let config = self
            .config
            .clone()
            .ok_or_else(|| Fault::new(Code::State, "the guest is not described"))?;
        let command = self.shared.guest_command()?;
        let process = if is_incoming {
            GuestProcess::spawn_incoming(&command, &path, &config)?
        } else {
            GuestProcess::spawn(&command, &path, &config)?
        };
        self.take_process(process)
    }

    /// Reconnects to a process that a previous migrator started.
    pub(super) fn adopt_process(&mut self, wait: Duration) -> Result<(), Fault> {
        let process = GuestProcess::adopt_within(&self.path()?, wait)?;
        self.take_found(process)
    }

    /// Takes a process that was found, if its configuration is this guest's.
    pub(super) fn take_found(&mut self, process: GuestProcess) -> Result<(), Fault> {
        if Some(process.config()) != self.config.as_ref() {
            let detail = "the guest's process is not what its description says";
            return Err(Fault::new(Code::Layout, detail));
        }
        self.take_process(process)
    }

    fn take_process(&mut self, mut process: GuestProcess) -> Result<(), Fault> {
        self.memory = Some(process.memory()?);
        self.watch(&process)?;
        self.process = Some(process);
        self.crash = None;
        Ok(())
    }

    /// Starts a thread that tells the worker when the process ends.
    fn watch(&self, process: &GuestProcess) -> Result<(), Fault> {
        let process_id = process.process_id();
        let end = process
            .end_signal()
            .try_clone_to_owned()
            .map_err(|error| Fault::new(Code::Io, format!("the guest's pidfd: {error}")))?;
        let mailbox = Arc::clone(&self.mailbox);
        spawn("towpath-watch", move || {
            let mut polled = [PollFd::new(&end, PollFlags::IN)];
            while poll(&mut polled, None) == Err(rustix::io::Errno::INTR) {}
            mailbox.send(Input::GuestGone { process_id });
        })
    }

    /// Ends the guest's process, if there is one, and waits until it is gone. This includes a
    /// process that answers nobody, which would otherwise run on unnoticed.
    pub(super) fn end_process(&mut self) -> Result<(), Fault> {
        self.free_image()?;
        if let Some(process) = &self.ending {
            process.expect_end()?;
        }
        self.ending = None;
        // Without its own folder the guest has no process there: a folder of that name belongs to
        // another guest, for example one that is quarantined or just starting.
        if self.folder.is_some() {
            GuestProcess::end_unadopted(&self.path()?)?;
        }
        self.wait_no_more();
        Ok(())
    }

    /// Stops waiting for the guest's process. The waiting thread will not adopt the process of
    /// another guest either.
    pub(super) fn wait_no_more(&mut self) {
        self.awaited = None;
        if let Some(is_wanted) = self.adopting.take() {
            is_wanted.store(false, Ordering::Release);
        }
    }

    /// Tells the guest's process, if there is one, to end, without waiting. A large memory takes
    /// seconds to be freed, and a move should be over before that.
    pub(super) fn free_image(&mut self) -> Result<(), Fault> {
        self.memory = None;
        if let Some(process) = &mut self.process
            && process.is_alive()
        {
            process.begin_end()?;
        }
        if let Some(process) = self.process.take() {
            self.ending = Some(process);
        }
        Ok(())
    }

    /// Releases a process that was told to end and has ended.
    pub(super) fn let_go_of_ended(&mut self) {
        self.ending.take_if(|process| !process.is_alive());
    }

    pub(super) fn process(&mut self) -> Result<&mut GuestProcess, Fault> {
        self.process
            .as_mut()
            .ok_or_else(|| Fault::new(Code::Guest, "the guest has no process here"))
    }

    pub(super) fn memory(&self) -> Result<&GuestMemory, Fault> {
        self.memory
            .as_ref()
            .ok_or_else(|| Fault::new(Code::Guest, "the guest has no memory here"))
    }

    /// Sends a message. A lane that breaks is reported through the mailbox, like any other loss.
    pub(super) fn send(&mut self, lane: Lane, message: &Message) {
        let Some(link) = &mut self.link else { return };
        if let Err(fault) = link.send(lane, message) {
            let link = link.number;
            self.mailbox.send(Input::LaneLost { link, lane, fault });
        }
    }

    /// Whether a report concerns the lanes that are open now.
    pub(super) fn is_current(&self, number: u64) -> bool {
        self.link.as_ref().is_some_and(|link| link.number == number)
    }

    pub(super) fn close_link(&mut self) {
        self.link = None;
    }
}

fn write_config(folder: &GuestFolder, config: Option<&GuestConfig>) -> Result<(), Fault> {
    let config = config.ok_or_else(|| Fault::new(Code::State, "the guest is not described"))?;
    folder.write_document(&file_name(DESCRIPTION), config)
}

/// Whether a folder was left by a start that ended before the guest's journal was made.
pub(super) fn is_unborn(folder: &GuestFolder) -> Result<bool, Fault> {
    folder.holds_only(&file_name(DESCRIPTION))
}

/// The [`Name`] of one of our own files.
pub(super) fn file_name(name: &str) -> Name {
    name.parse().expect("our own file names are names")
}

/// The time of day in Unix milliseconds. For display only: no decision depends on it.
pub(super) fn unix_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, millis)
}
