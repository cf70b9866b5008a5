//! Guests without a folder: what is still to be answered about them.
//!
//! What a guest leaves that lived here is kept without a limit: an operator has ended each. Of others a peer may
//! name as many as it likes, so they stand in a folder of their own, and each peer fills its share and no other's.
//! None of them is ever dropped to make room: an attempt that was refused must not be taken later.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{MutexGuard, PoisonError};

use rustix::fs::OFlags;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::{GuestId, HostIdentity};
use towpath_protocol::ownership::{Record, State};

use super::{Store, create_journal, fault, have_folder, open_file, remove_file};
use crate::journal::Journal;

const ENDED: &str = "ended";
const STRANGERS: &str = "strangers";

/// Most guests of all peers that never lived here and are remembered: 64 MiB.
const STRANGER_COUNT_MAX: usize = 8 * STRANGERS_PER_PEER_MAX;

/// The same of one peer: far more than it ever sends at once, and one that fills its share is only itself not
/// answered for good any more.
const STRANGERS_PER_PEER_MAX: usize = 1024;

/// The folders, and who is remembered because of whom.
#[derive(Debug)]
pub(super) struct Kept {
    ended: OwnedFd,
    strangers: OwnedFd,
    /// Who named each stranger, where its record says so; read when it is first needed.
    named_by: Option<BTreeMap<GuestId, Option<HostIdentity>>>,
}

impl Kept {
    pub(super) fn open(root: &OwnedFd) -> Result<Self, Fault> {
        Ok(Self {
            ended: have_folder(root, ENDED)?,
            strangers: have_folder(root, STRANGERS)?,
            named_by: None,
        })
    }

    fn named_by(
        &mut self,
        incarnation: u64,
    ) -> Result<&mut BTreeMap<GuestId, Option<HostIdentity>>, Fault> {
        let named_by = match self.named_by.take() {
            Some(known) => known,
            None => self.read_strangers(incarnation)?,
        };
        Ok(self.named_by.insert(named_by))
    }

    fn read_strangers(
        &self,
        incarnation: u64,
    ) -> Result<BTreeMap<GuestId, Option<HostIdentity>>, Fault> {
        let unreadable = |errno| fault(STRANGERS, "cannot be read", errno);
        let mut named_by = BTreeMap::new();
        for entry in rustix::fs::Dir::read_from(&self.strangers).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let name = entry.file_name().to_str().ok();
            let Some(guest) = name.and_then(|name| name.parse::<GuestId>().ok()) else {
                continue;
            };
            // One that cannot be read is remembered all the same, and answers nobody. It is only counted here, with
            // all others: none of them is written, as one is that is opened.
            let file = open_file(&self.strangers, &guest.to_string(), OFlags::RDONLY);
            let record = file.and_then(|file| Journal::peek(file, incarnation));
            let peer = record.ok().and_then(|record| named_in(&record));
            named_by.insert(guest, peer);
        }
        Ok(named_by)
    }
}

impl Store {
    /// The record of a guest that was ended here, or refused and never seen.
    ///
    /// # Errors
    ///
    /// As [`super::GuestFolder::open_journal`], but that none is no error.
    pub fn ended(&self, guest: GuestId) -> Result<Option<Vec<u8>>, Fault> {
        let kept = self.lock_kept();
        // What it left when it was ended is newer than what was said of it before it came.
        let journal = match read(&kept.ended, guest, self.incarnation)? {
            Some(journal) => Some(journal),
            None => read(&kept.strangers, guest, self.incarnation)?,
        };
        Ok(journal.map(|journal| journal.record().to_vec()))
    }

    /// Keeps the record of a guest that had a folder here and is ended, durably and in both slots: nobody waits
    /// for it, and what it said before must not come back.
    ///
    /// # Errors
    ///
    /// As [`Journal::write`], and `E_IO`.
    pub fn keep_ended(&self, guest: GuestId, record: &[u8]) -> Result<(), Fault> {
        let mut kept = self.lock_kept();
        self.keep(&kept.ended, guest, record)?;
        forget_stranger(&mut kept, guest)
    }

    /// The same of a guest that only a peer has named: of so many of each peer and no more.
    ///
    /// # Errors
    ///
    /// `E_BUSY` beyond the limit, else as [`Store::keep_ended`].
    pub fn keep_stranger(&self, guest: GuestId, record: &[u8]) -> Result<(), Fault> {
        self.keep_within(1, guest, record)
    }

    /// The same of a guest that was offered and did not come: of half as many, so that offers leave room for
    /// those.
    ///
    /// # Errors
    ///
    /// As [`Store::keep_stranger`].
    pub fn keep_refused(&self, guest: GuestId, record: &[u8]) -> Result<(), Fault> {
        self.keep_within(2, guest, record)
    }

    fn keep_within(&self, part: usize, guest: GuestId, record: &[u8]) -> Result<(), Fault> {
        let mut kept = self.lock_kept();
        if read(&kept.ended, guest, self.incarnation)?.is_some() {
            return self.keep(&kept.ended, guest, record);
        }
        let peer = named_in(record);
        let named_by = kept.named_by(self.incarnation)?;
        if !named_by.contains_key(&guest) {
            let of_peer = named_by.values().filter(|named| **named == peer).count();
            if of_peer >= STRANGERS_PER_PEER_MAX / part
                || named_by.len() >= STRANGER_COUNT_MAX / part
            {
                let detail = "too many guests are remembered that never were here";
                return Err(Fault::new(Code::Busy, detail));
            }
        }
        self.keep(&kept.strangers, guest, record)?;
        kept.named_by(self.incarnation)?.insert(guest, peer);
        Ok(())
    }

    /// Removes the record of a guest that has a folder again, and with it a journal.
    ///
    /// # Errors
    ///
    /// `E_IO`.
    pub fn forget_ended(&self, guest: GuestId) -> Result<(), Fault> {
        let mut kept = self.lock_kept();
        // First the older one: alone it would count.
        forget_stranger(&mut kept, guest)?;
        remove_file(&kept.ended, &guest.to_string())
    }

    fn keep(&self, folder: &OwnedFd, guest: GuestId, record: &[u8]) -> Result<(), Fault> {
        let mut journal = match read(folder, guest, self.incarnation)? {
            Some(mut journal) => {
                journal.write(record)?;
                journal
            }
            None => create_journal(folder, &guest.to_string(), self.incarnation, record)?,
        };
        journal.settle()
    }

    /// Has all wait who want something of what is kept, as for a slow disk.
    #[cfg(test)]
    pub(crate) fn hold_kept(&self) -> impl Drop + '_ {
        self.lock_kept()
    }

    fn lock_kept(&self) -> MutexGuard<'_, Kept> {
        // A handle is whole whatever became of who held it.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn forget_stranger(kept: &mut Kept, guest: GuestId) -> Result<(), Fault> {
    remove_file(&kept.strangers, &guest.to_string())?;
    if let Some(named_by) = &mut kept.named_by {
        named_by.remove(&guest);
    }
    Ok(())
}

fn read(
    folder: &OwnedFd,
    guest: GuestId,
    incarnation: u64,
) -> Result<Option<Journal<File>>, Fault> {
    match open_file(folder, &guest.to_string(), OFlags::RDWR) {
        Ok(file) => Journal::open(file, incarnation).map(Some),
        Err(fault) if fault.code == Code::NotFound => Ok(None),
        Err(fault) => Err(fault),
    }
}

/// The peer that a record speaks of, if it is of a guest that was refused.
fn named_in(record: &[u8]) -> Option<HostIdentity> {
    match Record::decode(record).ok()?.state {
        State::Refused { source, .. } => Some(source),
        _ => None,
    }
}
