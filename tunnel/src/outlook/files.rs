//! The files that histories are kept in: replaced whole, set aside when damaged.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use towpath_forecast::history::{ENCODED_BYTES_MAX, History};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::Name;

use super::Direction;

/// What is kept of one direction to a peer; nothing, with a word in the log, if it cannot be read.
pub(super) fn load(folder: &Path, site: &Name, direction: Direction) -> History {
    let path = path_of(folder, site, direction);
    let bytes = match read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return History::default(),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "a history cannot be read");
            return History::default();
        }
    };
    History::decode(&bytes).unwrap_or_else(|fault| {
        // It is kept for whoever wants to look at it, and the forecast begins anew.
        let aside = path.with_extension("damaged");
        let moved = fs::rename(&path, &aside);
        tracing::warn!(path = %aside.display(), %fault, ?moved, "a history is set aside");
        History::default()
    })
}

/// Replaces what is kept: after a crash the old file or the new one is there, and whole.
pub(super) fn save(
    folder: &Path,
    site: &Name,
    direction: Direction,
    bytes: &[u8],
) -> Result<(), Fault> {
    let path = path_of(folder, site, direction);
    write(folder, &path, bytes).map_err(|error| {
        let shown = path.display();
        Fault::new(Code::Io, format!("{shown}: {error}"))
    })
}

fn path_of(folder: &Path, site: &Name, direction: Direction) -> PathBuf {
    // Names are letters, digits, `.`, `_` and `-`, and begin with neither a dot nor a dash.
    folder.join(format!("{site}.{}.history", direction.as_str()))
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let most = ENCODED_BYTES_MAX as u64 + 1;
    File::open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn write(folder: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    let new = path.with_extension("new");
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
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
}
