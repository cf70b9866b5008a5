//! Guests whose folder here cannot be used: nothing is done with them, and nothing is said about
//! them.
//!
//! Such a guest may be running, and an answer that it is not would let its source run it too. So
//! lanes of a quarantined guest are refused. While a folder does not even say which guest it holds,
//! lanes of every guest without a worker are refused: a kept record of an ended guest may be older
//! than that folder.

use std::collections::BTreeSet;

use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::{GuestId, Name};

/// The quarantined folders and the guests they name.
#[derive(Debug, Default)]
pub(super) struct Quarantine {
    guests: BTreeSet<GuestId>,
    folders: BTreeSet<Name>,
    /// A folder that names no guest, so it may hold any.
    nameless: Option<Name>,
}

impl Quarantine {
    /// Quarantines a folder; `claims` are the guests that its files name.
    pub(super) fn add(&mut self, folder: &Name, claims: &[GuestId]) {
        if claims.is_empty() {
            self.nameless = Some(folder.clone());
        }
        self.guests.extend(claims);
        self.folders.insert(folder.clone());
    }

    /// Whether the folder of this name is quarantined.
    pub(super) fn has(&self, folder: &Name) -> bool {
        self.folders.contains(folder)
    }

    /// Checks that this host may answer about a guest that has no worker.
    ///
    /// # Errors
    ///
    /// `E_QUARANTINE`.
    pub(super) fn check(&self, guest: GuestId) -> Result<(), Fault> {
        if self.guests.contains(&guest) {
            let detail = format!("guest {guest} is quarantined: nothing is said of it");
            return Err(Fault::new(Code::Quarantine, detail));
        }
        match &self.nameless {
            Some(folder) => {
                let detail = format!(
                    "nothing says whose folder {folder} is: until it is mended or taken away, nothing is said of \
                     guests that have none here, {guest} among them"
                );
                Err(Fault::new(Code::Quarantine, detail))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_said_of_a_guest_that_may_run_here() {
        let known = GuestId(1);
        let name = |text: &str| text.parse::<Name>().unwrap();
        let mut quarantine = Quarantine::default();
        assert!(quarantine.check(known).is_ok());
        quarantine.add(&name("till"), &[known]);
        assert!(quarantine.has(&name("till")) && !quarantine.has(&name("scale")));
        assert!(quarantine.check(known).is_err());
        assert!(quarantine.check(GuestId(2)).is_ok());
        quarantine.add(&name("rotten"), &[]);
        let fault = quarantine.check(GuestId(2)).unwrap_err();
        assert_eq!(fault.code, Code::Quarantine);
        assert!(fault.detail.contains("rotten"), "{fault}");
    }
}
