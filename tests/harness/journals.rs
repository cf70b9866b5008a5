//! The journals of a guest at both sites, which decide who may run it.

use std::io;
use std::path::Path;

use towpath_migrator::journal::{Journal, SLOT_BYTES, Storage};
use towpath_protocol::identity::Name;
use towpath_protocol::ownership::{Record, State};

use crate::lab::Lab;
use crate::site::Place;

/// A copy of a journal's file, so that reading it changes nothing on disk.
struct Copy(Vec<u8>);

impl Storage for Copy {
    fn read_at(&mut self, offset: u64, slot: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(offset).expect("a journal is small");
        let have = self.0.get(from..).unwrap_or_default();
        let count = have.len().min(slot.len());
        slot[..count].copy_from_slice(&have[..count]);
        slot[count..].fill(0);
        Ok(())
    }

    fn write_at(&mut self, offset: u64, slot: &[u8]) -> io::Result<()> {
        let from = usize::try_from(offset).expect("a journal is small");
        self.0.resize(self.0.len().max(from + SLOT_BYTES), 0);
        self.0[from..from + slot.len()].copy_from_slice(slot);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn read(path: &Path) -> Result<Option<Record>, String> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{}: {error}", path.display())),
    };
    let wrong = |fault| format!("{}: {fault}", path.display());
    let journal = Journal::open(Copy(bytes), u64::MAX).map_err(wrong)?;
    Record::decode(journal.record()).map(Some).map_err(wrong)
}

/// The record of a guest at each site.
///
/// # Errors
///
/// If a journal exists but holds no record.
pub fn records(lab: &Lab, guest: &Name) -> Result<[Option<Record>; 2], String> {
    let of = |place| read(&lab.site(place).guest_folder(guest).join("journal"));
    Ok([of(Place::Edge)?, of(Place::Region)?])
}

/// Checks that exactly one site owns a guest that is at rest between two moves, that the other site
/// is in the middle of no move, and that an epoch it has released is the owner's.
///
/// # Errors
///
/// The inconsistency.
pub fn check_one_owner(lab: &Lab, guest: &Name) -> Result<Place, String> {
    let records = records(lab, guest)?;
    let mut owner = None;
    for (place, record) in Place::ALL.into_iter().zip(&records) {
        let Some(record) = record else { continue };
        match &record.state {
            State::Owned {
                epoch,
                missing_from: None,
            } => {
                if let Some((other, _)) = owner.replace((place, *epoch)) {
                    return Err(format!("both own it: {other:?} and {place:?}: {records:?}"));
                }
            }
            State::Vacant | State::Released { .. } | State::Refused { .. } => {}
            _ => return Err(format!("{place:?} is in the middle of a move: {record:?}")),
        }
    }
    let Some((place, epoch)) = owner else {
        return Err(format!("nobody owns it: {records:?}"));
    };
    if let Some(Some(other)) = records.get(place.other() as usize)
        && let State::Released { epoch: given, .. } = &other.state
        && *given != epoch
    {
        return Err(format!(
            "released was {given}, owned is {epoch}: {records:?}"
        ));
    }
    Ok(place)
}
