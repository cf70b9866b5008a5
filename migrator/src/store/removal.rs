//! Removes a guest's folder so that a crash leaves either the whole guest or nothing.

use std::ffi::CString;
use std::os::fd::OwnedFd;

use rustix::fs::AtFlags;
use towpath_protocol::fault::Fault;

use super::{DESCRIPTION, JOURNAL, fault, sync_folder};

/// Empties a guest's folder. At any moment, even after a power loss, what remains is either a guest
/// with its journal and description, or no guest: a description without a journal, or less.
///
/// `before` is called with each name before it is removed.
pub(super) fn empty(
    folder: &OwnedFd,
    shown: &str,
    mut before: impl FnMut(&str) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let mut remove = |name: &CString| {
        before(&name.to_string_lossy())?;
        rustix::fs::unlinkat(folder, name.as_c_str(), AtFlags::empty())
            .map_err(|errno| fault(shown, "cannot be emptied", errno))
    };
    let names = names(folder, shown)?;
    let is = |name: &CString, known: &str| name.as_bytes() == known.as_bytes();
    let is_last = |name: &&CString| is(name, JOURNAL) || is(name, DESCRIPTION);
    names
        .iter()
        .filter(|name| !is_last(name))
        .try_for_each(&mut remove)?;
    for last in [JOURNAL, DESCRIPTION] {
        sync_folder(folder, shown)?;
        names
            .iter()
            .filter(|name| is(name, last))
            .try_for_each(&mut remove)?;
    }
    Ok(())
}

fn names(folder: &OwnedFd, shown: &str) -> Result<Vec<CString>, Fault> {
    let unreadable = |errno| fault(shown, "cannot be read", errno);
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(folder).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use towpath_protocol::fault::Code;
    use towpath_protocol::identity::Name;

    use super::super::{GuestFolder, Store};
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    /// A guest with every file that may be in its folder.
    fn guest(store: &Store, guest: &Name) -> GuestFolder {
        let folder = store.create_guest(guest).unwrap();
        folder.write(&name(DESCRIPTION), b"{}").unwrap();
        folder.create_journal(b"owned").unwrap();
        let others = ["config.json", "guest.pid", "guest.log", "console.log"];
        for file in others.into_iter().chain(["arrival.json", "move.json"]) {
            folder.write(&name(file), b"x").unwrap();
        }
        folder
    }

    #[test]
    fn a_removal_that_is_cut_leaves_a_whole_guest_or_none() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(&root.path().join("state")).unwrap();
        let (mut whole_count, mut unborn_count) = (0, 0);
        for cut in 0.. {
            let name_of_guest = name(&format!("guest-{cut}"));
            let folder = guest(&store, &name_of_guest);
            let mut step = 0;
            let emptied = empty(&folder.folder, name_of_guest.as_str(), |_| {
                step += 1;
                if step > cut {
                    return Err(Fault::new(Code::Io, "the power is gone"));
                }
                Ok(())
            });
            let is_unborn = folder.holds_only(&name(DESCRIPTION)).unwrap();
            if is_unborn {
                unborn_count += 1;
            } else {
                whole_count += 1;
                assert_eq!(folder.open_journal().unwrap().record(), b"owned");
                assert!(folder.read(&name(DESCRIPTION)).unwrap().is_some());
            }
            drop(folder);
            // In either state it can be removed.
            store.remove_guest(&name_of_guest).unwrap();
            if emptied.is_ok() {
                break;
            }
        }
        assert_eq!((whole_count, unborn_count), (7, 2));
    }
}
