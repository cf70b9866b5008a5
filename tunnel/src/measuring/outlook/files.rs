//! Files of the histories: replaced atomically, set aside when damaged.

use std::path::{Path, PathBuf};

use towpath_forecast::history::{ENCODED_BYTES_MAX, History};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::Name;

use super::Direction;
use crate::state_files::{Aside, Folder};

/// Reads the history of one direction to a peer. A file that cannot be read is set aside, with a
/// line in the log, and the history is empty.
pub(super) fn load(folder: &Folder, site: &Name, direction: Direction) -> History {
    let name = name_of(site, direction);
    let Some(bytes) = folder.read(&name, ENCODED_BYTES_MAX) else {
        return History::default();
    };
    History::decode(&bytes).unwrap_or_else(|fault| {
        let how = match fault.code {
            Code::Version => Aside::Newer,
            _ => Aside::Damaged,
        };
        // The forecast starts from nothing.
        folder.set_aside(&name, how, &fault);
        History::default()
    })
}

/// Replaces the history's file.
pub(super) fn save(
    folder: &Folder,
    site: &Name,
    direction: Direction,
    bytes: &[u8],
) -> Result<(), Fault> {
    folder.replace(&name_of(site, direction), bytes)
}

/// Path of a history's file within the state folder.
fn name_of(site: &Name, direction: Direction) -> PathBuf {
    // Names consist of letters, digits, `.`, `_` and `-`, and begin with neither a dot nor a dash.
    Path::new("forecast").join(format!("{site}.{}.history", direction.as_str()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use towpath_forecast::history::Sample;
    use towpath_forecast::moment::Moment;

    #[test]
    fn a_damaged_history_is_set_aside_and_the_forecast_begins_anew() {
        let state = tempfile::tempdir().unwrap();
        let (folder, _) = Folder::open(state.path()).unwrap();
        let site: Name = "region".parse().unwrap();
        let mut history = History::default();
        let now = Moment::from_unix_seconds(1_780_000_000);
        history.observe(now, Sample::Capacity(1e6), 60);
        assert_eq!(load(&folder, &site, Direction::Send), History::default());
        save(&folder, &site, Direction::Send, &history.encode()).unwrap();
        assert_eq!(load(&folder, &site, Direction::Send), history);
        assert_eq!(load(&folder, &site, Direction::Receive), History::default());
        let path = state.path().join(name_of(&site, Direction::Send));
        let mut bytes = fs::read(&path).unwrap();
        bytes[30] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert_eq!(load(&folder, &site, Direction::Send), History::default());
        assert!(!path.exists() && path.with_extension("damaged").exists());
        save(&folder, &site, Direction::Send, &history.encode()).unwrap();
        assert_eq!(load(&folder, &site, Direction::Send), history);
    }

    #[test]
    fn a_history_that_cannot_be_read_is_not_written_over() {
        let state = tempfile::tempdir().unwrap();
        let (folder, _) = Folder::open(state.path()).unwrap();
        let site: Name = "region".parse().unwrap();
        let path = state.path().join(name_of(&site, Direction::Send));
        // A folder in the file's place stands for a file on a failing disk: reading it fails.
        fs::create_dir_all(&path).unwrap();
        let nothing = load(&folder, &site, Direction::Send);
        assert_eq!(nothing, History::default());
        assert!(path.with_extension("damaged").exists());
        save(&folder, &site, Direction::Send, &nothing.encode()).unwrap();
    }

    /// The checksum at the end of a history.
    fn crc32c(bytes: &[u8]) -> u32 {
        let shifted = |crc: u32, _| (crc >> 1) ^ (0x82f6_3b78 * (crc & 1));
        let next = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), shifted);
        !bytes.iter().fold(u32::MAX, next)
    }

    #[test]
    fn a_history_of_a_newer_release_is_kept_for_it() {
        let state = tempfile::tempdir().unwrap();
        let (folder, _) = Folder::open(state.path()).unwrap();
        let site: Name = "region".parse().unwrap();
        let path = state.path().join(name_of(&site, Direction::Send));
        let mut bytes = History::default().encode();
        bytes.truncate(bytes.len() - 4);
        bytes[8] = 200;
        bytes.extend(crc32c(&bytes).to_le_bytes());
        save(&folder, &site, Direction::Send, &bytes).unwrap();
        assert_eq!(load(&folder, &site, Direction::Send), History::default());
        assert_eq!(fs::read(path.with_extension("newer")).unwrap(), bytes);
        assert!(!path.with_extension("damaged").exists());
    }
}
