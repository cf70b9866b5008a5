//! The bounded log of the process.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::rotation;

/// The log file. When it is full it is renamed, replacing the older one, and a new file begins.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    file: File,
    file_bytes: u64,
    bytes_max: u64,
    /// Redirects output that bypasses the log's writer to the file.
    redirect: fn(&File),
}

impl Log {
    /// Opens a log and appends to it.
    pub(crate) fn open(path: &Path, redirect: fn(&File)) -> io::Result<Self> {
        let file = rotation::open(path)?;
        redirect(&file);
        Ok(Self {
            path: path.to_owned(),
            file_bytes: file.metadata()?.len(),
            file,
            bytes_max: rotation::BYTES_MAX,
            redirect,
        })
    }

    fn begin_anew(&mut self) -> io::Result<()> {
        // If that fails, the caller empties the present file, and rotation is tried again after as
        // many bytes.
        self.file_bytes = 0;
        self.file = rotation::begin_anew(&self.path)?;
        (self.redirect)(&self.file);
        Ok(())
    }
}

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let bytes = line.len() as u64;
        if self.file_bytes + bytes > self.bytes_max
            && let Err(error) = self.begin_anew()
        {
            // Better an empty log than a disk filled by it.
            self.file.set_len(0)?;
            writeln!(self.file, "the log does not begin anew: {error}")?;
        }
        self.file_bytes += bytes;
        self.file.write_all(line)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_of_a_process_that_says_something_for_ever_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("guest.log");
        std::fs::write(&path, "from before\n").unwrap();
        let mut log = Log::open(&path, |_| {}).unwrap();
        log.bytes_max = 1000;
        for number in 0..1000 {
            writeln!(log, "line {number}").unwrap();
        }
        let text = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        let (new, old) = (text("guest.log"), text("guest.log.1"));
        assert!(new.len() <= 1000 && old.len() <= 1000);
        assert!(new.ends_with("line 999\n"), "{new}");
        let (Some(last), Some(first)) = (old.lines().last(), new.lines().next()) else {
            panic!("one is empty");
        };
        let number = |line: &str| line["line ".len()..].parse::<u32>().unwrap();
        assert_eq!(number(last) + 1, number(first), "no line is lost");
    }

    /// The log of a process that writes a thousand lines after `trouble` has happened to its
    /// folder.
    fn said_after(trouble: impl FnOnce(&Path)) -> (u64, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("guest.log");
        let mut log = Log::open(&path, |_| {}).unwrap();
        log.bytes_max = 1000;
        trouble(&path);
        for number in 0..1000 {
            writeln!(log, "line {number}").unwrap();
        }
        (log.file.metadata().unwrap().len(), folder)
    }

    #[test]
    fn a_log_that_has_lost_its_name_begins_anew_under_it() {
        let old = |path: &Path| path.with_extension("log.1");
        let (bytes, folder) = said_after(|path| std::fs::rename(path, old(path)).unwrap());
        assert!(bytes <= 1000, "{bytes}");
        let text = std::fs::read_to_string(folder.path().join("guest.log")).unwrap();
        assert!(text.ends_with("line 999\n"), "{text}");
    }

    #[test]
    fn a_log_that_cannot_begin_anew_is_bounded_too() {
        let (bytes, folder) = said_after(|path| {
            std::fs::create_dir(path.with_extension("log.1")).unwrap();
        });
        assert!(bytes <= 2000, "{bytes}");
        let text = std::fs::read_to_string(folder.path().join("guest.log")).unwrap();
        assert!(text.starts_with("the log does not begin anew: "), "{text}");
        assert!(text.ends_with("line 999\n"), "{text}");
    }
}
