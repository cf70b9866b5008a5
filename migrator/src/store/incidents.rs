//! Incident files about refused images. They are for operators; nothing here reads them.

use std::os::fd::OwnedFd;

use towpath_protocol::fault::Fault;

use super::{Store, fault, remove_file, write_file};

/// The folder of the incident files.
pub(crate) const INCIDENTS: &str = "incidents";

/// Most incident files, of a few KiB each, so that a peer cannot fill the disk by causing them.
const INCIDENT_COUNT_MAX: usize = 16;

/// The ending of every incident file's name.
const ENDING: &str = ".json";

impl Store {
    /// Stores an incident file, durably. The first ones in order of name are removed to make room,
    /// so names should begin with the time.
    ///
    /// # Errors
    ///
    /// `E_IO`.
    ///
    /// # Panics
    ///
    /// If the name does not end with `.json`: such a file would never be removed.
    pub fn keep_incident(&self, name: &str, content: &[u8]) -> Result<(), Fault> {
        assert!(name.ends_with(ENDING), "{name} is no incident's name");
        let folder = self.incidents.lock();
        let kept = kept(&folder)?;
        let count = (kept.len() + 1).saturating_sub(INCIDENT_COUNT_MAX);
        kept.iter()
            .take(count)
            .try_for_each(|oldest| remove_file(&folder, oldest))?;
        write_file(&folder, name, content)
    }
}

/// The names of the stored files, oldest first.
fn kept(folder: &OwnedFd) -> Result<Vec<String>, Fault> {
    let unreadable = |errno| fault(INCIDENTS, "cannot be read", errno);
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(folder).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let name = entry.file_name().to_string_lossy();
        if name.ends_with(ENDING) {
            names.push(name.into_owned());
        }
    }
    names.sort();
    Ok(names)
}
