//! Records of guests without a folder, from which questions about those guests are still answered.
//!
//! Records of guests that lived here are kept without a limit, because an operator ended each of
//! them. A peer may name any number of other guests ("strangers"), so their records are in a
//! separate folder where each peer fills its own share only. No record is ever dropped to make
//! room: an attempt that was refused must not be accepted later.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;

use parking_lot::MutexGuard;
use rustix::fs::OFlags;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::{GuestId, HostIdentity};
use towpath_protocol::ownership::{Record, State};

use super::{Store, create_journal, fault, have_folder, open_file, remove_file};
use crate::journal::Journal;

const ENDED: &str = "ended";
const STRANGERS: &str = "strangers";

/// Most strangers remembered per peer, 8 MiB: far more than a peer ever sends at once. A peer that
/// fills its share only harms itself, because its further guests get no final answer.
const STRANGERS_PER_PEER_MAX: usize = 1024;

/// Most strangers remembered per peer before its offers are refused: half as many, so that offers
/// leave room for guests that were never offered.
const OFFERED_PER_PEER_MAX: usize = STRANGERS_PER_PEER_MAX / 2;

/// The folders of the records, and which peer named each stranger.
#[derive(Debug)]
pub(super) struct Kept {
    ended: OwnedFd,
    strangers: OwnedFd,
    /// The peer that named each stranger, where its record says so. Read on first use.
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

    /// Whether the guest is remembered already and so needs no further place.
    fn is_known(&mut self, guest: GuestId, incarnation: u64) -> Result<bool, Fault> {
        Ok(self.has_ended(guest)? || self.named_by(incarnation)?.contains_key(&guest))
    }

    /// Whether there is a record of the guest's end.
    fn has_ended(&self, guest: GuestId) -> Result<bool, Fault> {
        match open_file(&self.ended, &guest.to_string(), OFlags::RDONLY) {
            Ok(_) => Ok(true),
            Err(fault) if fault.code == Code::NotFound => Ok(false),
            Err(fault) => Err(fault),
        }
    }

    /// Checks that one more guest of a peer can be remembered, in addition to `others` that are not
    /// remembered yet.
    fn check_room(
        &mut self,
        guest: GuestId,
        peer: Option<&HostIdentity>,
        (others, count_max): (usize, usize),
        incarnation: u64,
    ) -> Result<(), Fault> {
        if !self.is_known(guest, incarnation)?
            && self.count_of(peer, incarnation)? + others >= count_max
        {
            return Err(too_many());
        }
        Ok(())
    }

    /// How many guests are remembered because of this peer.
    fn count_of(&mut self, peer: Option<&HostIdentity>, incarnation: u64) -> Result<usize, Fault> {
        let named_by = self.named_by(incarnation)?.values();
        Ok(named_by.filter(|named| named.as_ref() == peer).count())
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
            // A record that cannot be read still takes a place, though it answers nobody. It is
            // only peeked at here, because opening a journal writes to it, and all of them are
            // read.
            let file = open_file(&self.strangers, &guest.to_string(), OFlags::RDONLY);
            let record = file.and_then(|file| Journal::peek(file, incarnation));
            let peer = record.ok().and_then(|record| named_in(&record));
            named_by.insert(guest, peer);
        }
        Ok(named_by)
    }
}

impl Store {
    /// The record of a guest that was ended here, or was refused and never arrived.
    ///
    /// # Errors
    ///
    /// As [`super::GuestFolder::open_journal`], except that a missing record is no error.
    pub fn ended(&self, guest: GuestId) -> Result<Option<Vec<u8>>, Fault> {
        let kept = self.lock_kept();
        // The record of the guest's end is newer than one from before it arrived.
        let journal = match read(&kept.ended, guest, self.incarnation)? {
            Some(journal) => Some(journal),
            None => read(&kept.strangers, guest, self.incarnation)?,
        };
        Ok(journal.map(|journal| journal.record().to_vec()))
    }

    /// Keeps the record of a guest that had a folder here and has ended. Written durably to both
    /// slots at once: nobody waits for it, and no earlier record may come back.
    ///
    /// # Errors
    ///
    /// As [`Journal::write`], and `E_IO`.
    pub fn keep_ended(&self, guest: GuestId, record: &[u8]) -> Result<(), Fault> {
        let mut kept = self.lock_kept();
        self.keep(&kept.ended, guest, record)?;
        forget_stranger(&mut kept, guest)
    }

    /// Keeps the record of a guest that only a peer has named, within that peer's share.
    ///
    /// # Errors
    ///
    /// `E_BUSY` beyond the limit, else as [`Store::keep_ended`].
    pub fn keep_stranger(&self, guest: GuestId, record: &[u8]) -> Result<(), Fault> {
        let mut kept = self.lock_kept();
        let limits = (0, STRANGERS_PER_PEER_MAX);
        let peer = named_in(record);
        kept.check_room(guest, peer.as_ref(), limits, self.incarnation)?;
        self.keep_unless_ended(&mut kept, guest, record)
    }

    /// Checks that a guest offered by `peer` can be remembered if it does not arrive.
    /// `offered_count` counts the peer's other guests that were offered and are neither here nor
    /// put away.
    ///
    /// # Errors
    ///
    /// `E_BUSY` if it cannot, else as [`Store::ended`].
    pub fn check_share(
        &self,
        guest: GuestId,
        peer: &HostIdentity,
        offered_count: usize,
    ) -> Result<(), Fault> {
        let limits = (offered_count, OFFERED_PER_PEER_MAX);
        let mut kept = self.lock_kept();
        kept.check_room(guest, Some(peer), limits, self.incarnation)
    }

    /// As [`Store::keep_stranger`], for a guest that was offered and did not arrive. There is no
    /// limit here: [`Store::check_share`] found room before anything was made, and the guest's
    /// folder must not have to stay for lack of room.
    ///
    /// # Errors
    ///
    /// As [`Store::keep_ended`].
    pub fn keep_refused(&self, guest: GuestId, record: &[u8]) -> Result<(), Fault> {
        self.keep_unless_ended(&mut self.lock_kept(), guest, record)
    }

    fn keep_unless_ended(
        &self,
        kept: &mut Kept,
        guest: GuestId,
        record: &[u8],
    ) -> Result<(), Fault> {
        if kept.has_ended(guest)? {
            return self.keep(&kept.ended, guest, record);
        }
        self.keep(&kept.strangers, guest, record)?;
        // If the map was not read yet, it will find this record on disk.
        if let Some(named_by) = &mut kept.named_by {
            named_by.insert(guest, named_in(record));
        }
        Ok(())
    }

    /// Removes the records of a guest that has a folder, and so a journal, again.
    ///
    /// # Errors
    ///
    /// `E_IO`.
    pub fn forget_ended(&self, guest: GuestId) -> Result<(), Fault> {
        let mut kept = self.lock_kept();
        // The older record first: it must never be left alone, because it would then count.
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

    /// Makes everyone who needs the records wait, as if the disk were slow.
    #[cfg(test)]
    pub(crate) fn hold_kept(&self) -> impl Drop + '_ {
        self.lock_kept()
    }

    fn lock_kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock()
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

fn too_many() -> Fault {
    let detail = "too many guests are remembered that never were here";
    Fault::new(Code::Busy, detail)
}

/// The peer named by the record of a refused guest.
fn named_in(record: &[u8]) -> Option<HostIdentity> {
    match Record::decode(record).ok()?.state {
        State::Refused { source, .. } => Some(source),
        _ => None,
    }
}
