//! Guests whose folder here cannot be used: nothing is done with them, and nothing said of them.
//!
//! Such a guest may run, and a word that it does not would let its source run it too. So lanes of a guest that
//! is quarantined are not taken, and while a folder does not even say whose it is, no lanes of any guest that
//! has no worker: what is remembered of one that has ended may be from before it came into that folder.

use std::collections::BTreeSet;

use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::{GuestId, Name};

/// What is known of the folders that are left alone.
#[derive(Debug, Default)]
pub(super) struct Quarantine {
    guests: BTreeSet<GuestId>,
    folders: BTreeSet<Name>,
    /// A folder that says nothing: it may be any guest's.
    nameless: Option<Name>,
}

impl Quarantine {
    /// Leaves a folder alone; `claims` are the guests that its files speak of.
    pub(super) fn add(&mut self, folder: &Name, claims: &[GuestId]) {
        if claims.is_empty() {
            self.nameless = Some(folder.clone());
        }
        self.guests.extend(claims);
        self.folders.insert(folder.clone());
    }

    /// Whether a folder of this name is left alone.
    pub(super) fn has(&self, folder: &Name) -> bool {
        self.folders.contains(folder)
    }

    /// Whether something may be said of a guest that has no worker.
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
