//! The files that histories are kept in: replaced whole, set aside when damaged.

use std::path::{Path, PathBuf};

use towpath_forecast::history::{ENCODED_BYTES_MAX, History};
use towpath_protocol::fault::Fault;
use towpath_protocol::identity::Name;

use super::Direction;
use crate::kept;

/// What is kept of one direction to a peer; nothing, with a word in the log, if it cannot be read: then the file is set
/// aside.
pub(super) fn load(folder: &Path, site: &Name, direction: Direction) -> History {
    let path = path_of(folder, site, direction);
    let bytes = match kept::read(&path, ENCODED_BYTES_MAX) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return History::default(),
        Err(fault) => {
            // The next save would write over years that somebody may still be able to read.
            kept::set_aside(&path, &fault);
            return History::default();
        }
    };
    History::decode(&bytes).unwrap_or_else(|fault| {
        // The forecast begins anew.
        kept::set_aside(&path, &fault);
        History::default()
    })
}

/// Replaces what is kept.
pub(super) fn save(
    folder: &Path,
    site: &Name,
    direction: Direction,
    bytes: &[u8],
) -> Result<(), Fault> {
    kept::replace(&path_of(folder, site, direction), bytes)
}

fn path_of(folder: &Path, site: &Name, direction: Direction) -> PathBuf {
    // Names are letters, digits, `.`, `_` and `-`, and begin with neither a dot nor a dash.
    folder.join(format!("{site}.{}.history", direction.as_str()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use towpath_forecast::history::Sample;
    use towpath_forecast::moment::Moment;

    #[test]
    fn a_damaged_history_is_set_aside_and_the_forecast_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("forecast");
        let site: Name = "region".parse().unwrap();
        let mut history = History::default();
        let now = Moment::from_unix_seconds(1_780_000_000);
        history.observe(now, Sample::Capacity(1e6), 60);
        assert_eq!(load(&folder, &site, Direction::Send), History::default());
        save(&folder, &site, Direction::Send, &history.encode()).unwrap();
        assert_eq!(load(&folder, &site, Direction::Send), history);
        assert_eq!(load(&folder, &site, Direction::Receive), History::default());
        let path = path_of(&folder, &site, Direction::Send);
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
        let folder = tempfile::tempdir().unwrap();
        let site: Name = "region".parse().unwrap();
        let path = path_of(folder.path(), &site, Direction::Send);
        // No file, as one on a disk that fails is none.
        fs::create_dir(&path).unwrap();
        let nothing = load(folder.path(), &site, Direction::Send);
        assert_eq!(nothing, History::default());
        assert!(path.with_extension("damaged").exists());
        save(folder.path(), &site, Direction::Send, &nothing.encode()).unwrap();
    }
}
