//! The guest's console: complete lines with the time they were completed, in a bounded log.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use towpath_protocol::fault::Fault;

use crate::clock::monotonic_ns;
use crate::{plain, rotation};

/// Longest line. Longer ones are split.
pub(crate) const LINE_BYTES_MAX: usize = 256;

/// Collects the bytes a guest prints into lines and appends the lines to its log.
///
/// The unfinished line is part of the guest's state: it is completed, and logged, where the guest
/// runs.
#[derive(Debug)]
pub(crate) struct Console {
    path: PathBuf,
    file: File,
    file_bytes: u64,
    bytes_max: u64,
    line: Vec<u8>,
    has_failed: bool,
    /// Whether the file ends in the middle of a line.
    is_torn: bool,
}

impl Console {
    /// Opens the log of a guest and appends to it.
    pub(crate) fn open(path: &Path) -> Result<Self, Fault> {
        Self::open_with(path, rotation::BYTES_MAX)
    }

    fn open_with(path: &Path, bytes_max: u64) -> Result<Self, Fault> {
        let file = rotation::open(path).map_err(|error| {
            let what = format!("console {} cannot be opened", path.display());
            plain::fault(&what, &error)
        })?;
        let file_bytes = file.metadata().map_or(0, |metadata| metadata.len());
        Ok(Self {
            path: path.to_owned(),
            file,
            file_bytes,
            bytes_max,
            line: Vec::with_capacity(LINE_BYTES_MAX),
            has_failed: false,
            is_torn: false,
        })
    }

    /// The line that is not finished yet.
    pub(crate) fn unfinished(&self) -> &[u8] {
        &self.line
    }

    /// Takes over an unfinished line from another host.
    pub(crate) fn restore_unfinished(&mut self, line: &[u8]) {
        self.line.clear();
        let length = line.len().min(LINE_BYTES_MAX - 1);
        self.line.extend(line[..length].iter().copied().map(plain));
    }

    /// Takes bytes that the guest printed.
    pub(crate) fn print(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            match byte {
                b'\n' => self.finish_line(),
                b'\r' => {}
                _ => self.line.push(plain(byte)),
            }
            if self.line.len() >= LINE_BYTES_MAX {
                self.finish_line();
            }
        }
    }

    fn finish_line(&mut self) {
        let begin = if self.is_torn { "\n" } else { "" };
        let mut entry = format!("{begin}{} ", monotonic_ns()).into_bytes();
        entry.append(&mut self.line);
        entry.push(b'\n');
        // One write per line, so that readers never see half a line. A full disk must not stop the
        // guest: the lines are lost, the guest continues, and the log of the process says so once.
        let written = self.rotate_if_full().and_then(|()| {
            self.file.write_all(&entry)?;
            self.file_bytes += entry.len() as u64;
            self.is_torn = false;
            Ok(())
        });
        if written.is_err()
            && let Ok(metadata) = self.file.metadata()
        {
            // A full disk may have taken part of the line.
            self.is_torn |= metadata.len() > self.file_bytes;
            self.file_bytes = metadata.len();
        }
        match written {
            Ok(()) => self.has_failed = false,
            Err(error) if !self.has_failed => {
                self.has_failed = true;
                tracing::error!(%error, path = %self.path.display(), "console lines are lost");
            }
            Err(_) => {}
        }
    }

    fn rotate_if_full(&mut self) -> std::io::Result<()> {
        if self.file_bytes < self.bytes_max {
            return Ok(());
        }
        self.file = rotation::begin_anew(&self.path)?;
        self.file_bytes = 0;
        self.is_torn = false;
        Ok(())
    }
}

/// The log holds plain text only, although a guest may print any bytes and a peer may send any as
/// printed.
const fn plain(byte: u8) -> u8 {
    match byte {
        0x20..=0x7e => byte,
        _ => b'?',
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use super::*;

    fn text(path: &Path) -> Vec<String> {
        let log = std::fs::read_to_string(path).unwrap_or_default();
        let line = |line: &str| line.split_once(' ').unwrap().1.to_owned();
        log.lines().map(line).collect()
    }

    #[test]
    fn only_finished_lines_are_logged_and_the_rest_moves() {
        let folder = tempfile::tempdir().unwrap();
        let (here, there) = (folder.path().join("here"), folder.path().join("there"));
        let mut source = Console::open(&here).unwrap();
        source.print(b"HB 1 1\nHB ");
        assert_eq!(text(&here), ["HB 1 1"]);
        let mut target = Console::open(&there).unwrap();
        target.restore_unfinished(source.unfinished());
        target.print(b"2 1\n");
        assert_eq!(text(&there), ["HB 2 1"]);
        assert_eq!(text(&here), ["HB 1 1"]);
    }

    #[test]
    fn the_log_is_bounded_and_hostile_bytes_are_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console.log");
        let mut console = Console::open_with(&path, 1000).unwrap();
        for _ in 0..200 {
            console.print(b"\x1b[2Jhello\n");
        }
        console.print(&[b'x'; 10_000]);
        let old = folder.path().join("console.log.1");
        for path in [&path, &old] {
            assert!(std::fs::metadata(path).unwrap().len() < 1000 + 300);
        }
        assert!(text(&old).iter().all(|line| line.len() <= LINE_BYTES_MAX));
        assert!(!std::fs::read(&path).unwrap().contains(&0x1b));
        assert!(console.unfinished().len() < LINE_BYTES_MAX);
    }

    #[test]
    fn l07_an_unfinished_line_of_a_peer_is_plain_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console.log");
        let mut console = Console::open(&path).unwrap();
        console.restore_unfinished(b"\x1b[2J\n1 HB 9 9");
        console.print(b"\n");
        assert_eq!(text(&path), ["?[2J?1 HB 9 9"]);
    }

    #[test]
    fn a_log_that_somebody_moved_away_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console.log");
        let mut console = Console::open_with(&path, 1000).unwrap();
        for _ in 0..200 {
            console.print(b"hello\n");
            if path.exists() {
                std::fs::remove_file(&path).unwrap();
            }
        }
        console.print(b"HB 1 1\n");
        let old = folder.path().join("console.log.1");
        let kept: Vec<String> = [&old, &path].iter().flat_map(|path| text(path)).collect();
        assert!(kept.len() <= 2, "{kept:?}");
        for _ in 0..100 {
            console.print(b"HB 2 1\n");
        }
        assert_eq!(text(&path).last().map(String::as_str), Some("HB 2 1"));
    }

    #[test]
    fn a_line_that_a_full_disk_cut_does_not_take_the_next_one_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console.log");
        let mut console = Console::open(&path).unwrap();
        console.print(b"HB 1 1\n");
        // Simulates that part of the next line was still written.
        OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(b"7 HB 2")
            .unwrap();
        console.file = File::open(&path).unwrap();
        console.print(b"lost\n");
        assert!(console.has_failed, "it is open for reading alone");
        console.file = rotation::open(&path).unwrap();
        console.print(b"HB 3 1\n");
        assert_eq!(text(&path), ["HB 1 1", "HB 2", "HB 3 1"]);
    }
}
