//! What is known of images that were refused: for an operator, and read by nothing here.

use std::os::fd::OwnedFd;

use towpath_protocol::fault::Fault;

use super::{Store, fault, remove_file, write_file};

/// Their folder.
pub(crate) const INCIDENTS: &str = "incidents";

/// Most files of that kind, of a few KiB each: what a peer causes must not fill the disk.
const INCIDENT_COUNT_MAX: usize = 16;

/// What the name of each ends with.
const ENDING: &str = ".json";

impl Store {
    /// Keeps a file about an incident, durably. The oldest by name make room for it, so names begin with when
    /// it was.
    ///
    /// # Errors
    ///
    /// `E_IO`.
    ///
    /// # Panics
    ///
    /// If the name does not end with `.json`: the file would never make room.
    pub fn keep_incident(&self, name: &str, content: &[u8]) -> Result<(), Fault> {
        assert!(name.ends_with(ENDING), "{name} is no incident's name");
        let folder = self
            .incidents
            .lock()
            .expect("nothing panics while it holds the incidents");
        let kept = kept(&folder)?;
        let count = (kept.len() + 1).saturating_sub(INCIDENT_COUNT_MAX);
        kept.iter()
            .take(count)
            .try_for_each(|oldest| remove_file(&folder, oldest))?;
        write_file(&folder, name, content)
    }
}

/// The files that are kept, the oldest first.
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
