//! Reads the guest's heartbeats from the consoles at both sites. They show whether the guest ever
//! ran twice or skipped a beat, and how long it stood still.

use std::path::{Path, PathBuf};

use serde::Serialize;
use towpath_protocol::fault::{Code, Fault};

/// One heartbeat. Its line on a console is `<monotonic nanoseconds> HB <sequence> <epoch>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Heartbeat {
    pub(super) at_ns: u64,
    pub(super) sequence: u64,
    /// Index of the console, and so the site at which it was printed. The epoch does not tell the
    /// site: a guest that is moved between asking for its epoch and finishing the line prints the
    /// old epoch at the new site.
    pub(super) console: usize,
}

impl Heartbeat {
    /// Parses a line of a console; `None` if it is no heartbeat.
    fn parse(line: &str, console: usize) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let at_ns = words.next()?.parse().ok()?;
        if words.next()? != "HB" {
            return None;
        }
        let sequence = words.next()?.parse().ok()?;
        let _epoch: u64 = words.next()?.parse().ok()?;
        words.next().is_none().then_some(Self {
            at_ns,
            sequence,
            console,
        })
    }
}

/// A summary of the heartbeats on some consoles, and of what is wrong with them.
#[derive(Debug, Default, PartialEq, Serialize)]
pub(super) struct Record {
    /// Number of different sequence numbers.
    pub(super) count: u64,
    /// First sequence number that was printed twice: the guest ran twice.
    pub(super) twice: Option<u64>,
    /// First sequence number that is missing: the guest went back, or lost time.
    pub(super) missing: Option<u64>,
    /// Longest time between two beats at one site. A check of every page holds the guest as well.
    pub(super) longest_gap_ms: f64,
    /// Time between the last beat at one site and the first at the other, move by move.
    #[serde(skip)]
    pub(super) pauses_ms: Vec<f64>,
    #[serde(skip)]
    pub(super) last: Option<u64>,
}

impl Record {
    /// Reads consoles, each with the older half (`.1`) that was split off.
    pub(super) fn read(consoles: &[PathBuf]) -> Result<Self, Fault> {
        let mut beats = Vec::new();
        for (number, console) in consoles.iter().enumerate() {
            let mut older = console.as_os_str().to_owned();
            older.push(".1");
            for path in [Path::new(&older), console] {
                beats.extend(read(path, number)?);
            }
        }
        Ok(Self::of(beats))
    }

    /// Summarises heartbeats, in any order.
    pub(super) fn of(mut beats: Vec<Heartbeat>) -> Self {
        beats.sort_unstable_by_key(|beat| (beat.sequence, beat.at_ns));
        let mut record = Self {
            last: beats.last().map(|beat| beat.sequence),
            ..Self::default()
        };
        record.count = u64::from(!beats.is_empty());
        for pair in beats.windows(2) {
            let [before, after] = pair else { continue };
            match after.sequence - before.sequence {
                0 => {
                    record.twice.get_or_insert(after.sequence);
                    continue;
                }
                1 => {}
                _ => {
                    record.missing.get_or_insert(before.sequence + 1);
                }
            }
            record.count += 1;
            let gap_ms = gap_ms(*before, *after);
            if before.console == after.console {
                record.longest_gap_ms = record.longest_gap_ms.max(gap_ms);
            } else {
                record.pauses_ms.push(gap_ms);
            }
        }
        record
    }

    /// Whether there are heartbeats, none is missing and none was printed twice.
    pub(super) const fn is_whole(&self) -> bool {
        self.count > 0 && self.twice.is_none() && self.missing.is_none()
    }
}

#[allow(
    clippy::cast_precision_loss,
    reason = "microseconds of an hour fit a float exactly"
)]
fn gap_ms(before: Heartbeat, after: Heartbeat) -> f64 {
    (after.at_ns.saturating_sub(before.at_ns) / 1000) as f64 / 1000.0
}

/// The heartbeats of one file; a missing file has none.
fn read(path: &Path, console: usize) -> Result<Vec<Heartbeat>, Fault> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes)
            .lines()
            .filter_map(|line| Heartbeat::parse(line, console))
            .collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => {
            let detail = format!("console {}: {error}", path.display());
            Err(Fault::new(Code::Io, detail))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beats(entries: &[(u64, u64, usize)]) -> Vec<Heartbeat> {
        let beat = |&(at_ms, sequence, console)| Heartbeat {
            at_ns: at_ms * 1_000_000,
            sequence,
            console,
        };
        entries.iter().map(beat).collect()
    }

    #[test]
    fn only_whole_heartbeat_lines_count() {
        let beat = Heartbeat {
            at_ns: 123,
            sequence: 4,
            console: 1,
        };
        assert_eq!(Heartbeat::parse("123 HB 4 1", 1), Some(beat));
        for other in [
            "",
            "123 hello",
            "123 HB 4",
            "123 HB x 1",
            "HB 4 1",
            "1 HB 2 3 4",
        ] {
            assert_eq!(Heartbeat::parse(other, 0), None, "{other}");
        }
    }

    #[test]
    fn the_pause_is_the_gap_between_two_sites() {
        let there = [(10, 1, 0), (12, 2, 0), (90, 3, 1), (93, 4, 1)];
        let record = Record::of(beats(&there));
        assert!(record.is_whole());
        assert_eq!(record.pauses_ms, [78.0]);
        assert_eq!((record.count, record.longest_gap_ms), (4, 3.0));
        assert_eq!(record.last, Some(4));
        let back = [there.as_slice(), &[(120, 5, 0), (121, 6, 0)]].concat();
        assert_eq!(Record::of(beats(&back)).pauses_ms, [78.0, 27.0]);
    }

    #[test]
    fn a_guest_that_ran_twice_or_went_back_is_found() {
        let twice = Record::of(beats(&[(10, 1, 0), (12, 2, 0), (13, 2, 1), (14, 3, 1)]));
        assert_eq!((twice.twice, twice.missing), (Some(2), None));
        let missing = Record::of(beats(&[(10, 1, 0), (12, 2, 0), (13, 4, 1)]));
        assert_eq!((missing.twice, missing.missing), (None, Some(3)));
        assert!(!twice.is_whole() && !missing.is_whole());
        assert!(!Record::of(Vec::new()).is_whole());
    }

    #[test]
    fn consoles_are_read_with_their_older_halves() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("a.log.1"), "1000000 HB 1 1\n").unwrap();
        std::fs::write(path("a.log"), "2000000 HB 2 1\nnoise\n").unwrap();
        std::fs::write(path("b.log"), "9000000 HB 3 1\n9500000 HB 4 2\n").unwrap();
        let record = Record::read(&[path("a.log"), path("b.log"), path("none.log")]).unwrap();
        assert_eq!((record.count, record.pauses_ms), (4, vec![7.0]));
    }
}
