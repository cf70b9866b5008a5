//! The guest's heartbeats, read from its consoles at both sites.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use towpath_protocol::identity::Name;

use crate::contention;
use crate::lab::Lab;
use crate::site::{LOOK_PAUSE, Place};

/// A heartbeat line of a console: `<monotonic nanoseconds> HB <sequence> <epoch>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    /// When it was printed, on the clock that all processes share.
    pub at_ns: u64,
    /// Its sequence number. No number may ever be printed twice.
    pub sequence: u64,
    /// The epoch under which the guest ran.
    pub epoch: u64,
    /// Where it was printed.
    pub place: Place,
}

/// How long a guest was silent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Silence {
    /// The longest silence.
    pub longest: Duration,
    /// The part of it above the limit, excused because the machine was busy.
    pub excused: Duration,
}

impl Silence {
    /// Whether too much had to be excused. Only a repetition with the machine to itself can settle
    /// it then.
    #[must_use]
    pub fn is_doubtful(&self) -> bool {
        self.excused > contention::DOUBT
    }
}

/// Follows one console file, even when it is truncated or replaced.
#[derive(Debug)]
struct Tail {
    place: Place,
    path: PathBuf,
    file: Option<File>,
    line: Vec<u8>,
}

/// Everything that a guest has printed.
#[derive(Debug)]
pub struct Console {
    tails: [Tail; 2],
    beats: BTreeMap<u64, Beat>,
    twice: Option<(Beat, Beat)>,
}

impl Tail {
    /// Reads the complete lines that were added.
    fn read(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            if self.file.is_none() {
                self.file = File::open(&self.path).ok();
            }
            let Some(file) = &mut self.file else {
                return lines;
            };
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).expect("a console is readable");
            let is_cut = inode(file) != std::fs::metadata(&self.path).ok().map(|found| found.ino());
            for byte in bytes {
                if byte == b'\n' {
                    lines.push(String::from_utf8_lossy(&self.line).into_owned());
                    self.line.clear();
                } else {
                    self.line.push(byte);
                }
            }
            if !is_cut {
                return lines;
            }
            // The file is read to its end: its name now belongs to a newer file, or to none.
            self.file = None;
            if !self.path.exists() {
                return lines;
            }
        }
    }
}

fn inode(file: &File) -> Option<u64> {
    file.metadata().ok().map(|found| found.ino())
}

fn parse(line: &str, place: Place) -> Option<Beat> {
    let mut words = line.split_ascii_whitespace();
    let at_ns = words.next()?.parse().ok()?;
    if words.next()? != "HB" {
        return None;
    }
    Some(Beat {
        at_ns,
        sequence: words.next()?.parse().ok()?,
        epoch: words.next()?.parse().ok()?,
        place,
    })
}

impl Console {
    /// Follows a guest's consoles at both sites.
    #[must_use]
    pub fn of(lab: &Lab, guest: &Name) -> Self {
        let tail = |place| Tail {
            place,
            path: lab.site(place).guest_folder(guest).join("console.log"),
            file: None,
            line: Vec::new(),
        };
        Self {
            tails: Place::ALL.map(tail),
            beats: BTreeMap::new(),
            twice: None,
        }
    }

    /// Reads what was added.
    ///
    /// # Errors
    ///
    /// The two heartbeats with the same number, if there are any: the guest ran twice.
    pub fn read(&mut self) -> Result<(), String> {
        for tail in &mut self.tails {
            for line in tail.read() {
                let Some(beat) = parse(&line, tail.place) else {
                    continue;
                };
                if let Some(before) = self.beats.insert(beat.sequence, beat) {
                    self.twice.get_or_insert((before, beat));
                }
            }
        }
        match self.twice {
            Some((one, other)) => Err(format!("printed twice: {one:?} and {other:?}")),
            None => Ok(()),
        }
    }

    /// The newest heartbeat.
    #[must_use]
    pub fn last(&self) -> Option<Beat> {
        self.beats.last_key_value().map(|(_, beat)| *beat)
    }

    /// Number of heartbeats.
    #[must_use]
    pub fn count(&self) -> usize {
        self.beats.len()
    }

    /// Forgets everything, for a guest that is booted anew and counts from one again.
    pub fn forget(&mut self) {
        self.beats.clear();
    }

    /// Checks that no number is missing: the guest continued exactly from where it was stopped.
    ///
    /// # Errors
    ///
    /// The first gap.
    pub fn is_whole(&self) -> Result<(), String> {
        let beats: Vec<&Beat> = self.beats.values().collect();
        for pair in beats.windows(2) {
            if pair[1].sequence != pair[0].sequence + 1 {
                return Err(format!(
                    "lost: nothing between {:?} and {:?}",
                    pair[0], pair[1]
                ));
            }
            if pair[1].at_ns < pair[0].at_ns {
                return Err(format!("went back: {:?} and {:?}", pair[0], pair[1]));
            }
            if pair[1].epoch < pair[0].epoch {
                return Err(format!("epoch went back: {:?} and {:?}", pair[0], pair[1]));
            }
        }
        Ok(())
    }

    /// Checks that the guest was never silent for longer than `silence_max` between two moments.
    /// Time that threads waited for a processor after `excused_from_ns` excuses silence, within
    /// limits.
    ///
    /// # Errors
    ///
    /// The longest silence, if nothing excuses it.
    pub fn check_silence(
        &self,
        (since_ns, now_ns, excused_from_ns): (u64, u64, u64),
        silence_max: Duration,
    ) -> Result<Silence, String> {
        let beats = self.beats.values().map(|beat| beat.at_ns);
        let ends: Vec<u64> = beats.filter(|at_ns| *at_ns >= since_ns).collect();
        let begins = std::iter::once(since_ns).chain(ends.iter().copied());
        let ends = ends.iter().copied().chain(std::iter::once(now_ns));
        let mut silence = Silence::default();
        for (begin_ns, end_ns) in begins.zip(ends) {
            let lasted = Duration::from_nanos(end_ns.saturating_sub(begin_ns));
            let needed = lasted.saturating_sub(silence_max);
            let excuse = contention::excuse(begin_ns.max(excused_from_ns), end_ns);
            if needed > excuse {
                return Err(format!(
                    "silent for {lasted:?}, at most {silence_max:?}, of which a busy machine excuses {excuse:?}"
                ));
            }
            silence.longest = silence.longest.max(lasted);
            silence.excused = silence.excused.max(needed);
        }
        Ok(silence)
    }

    /// Waits for this many more heartbeats; returns where the last of them was printed.
    ///
    /// # Errors
    ///
    /// If they do not arrive in time, or a number was printed twice.
    pub fn wait_for_more(&mut self, count: u64, wait: Duration) -> Result<Place, String> {
        self.read()?;
        let begin = self.last().map_or(0, |beat| beat.sequence);
        let deadline = Instant::now() + wait;
        loop {
            self.read()?;
            if let Some(last) = self.last().filter(|last| last.sequence >= begin + count) {
                return Ok(last.place);
            }
            if Instant::now() > deadline {
                let last = self.last();
                return Err(format!(
                    "no {count} heartbeats within {wait:?}, the last is {last:?}"
                ));
            }
            std::thread::sleep(LOOK_PAUSE);
        }
    }
}

/// The time on the clock that the consoles use.
///
/// # Panics
///
/// Never: the monotonic clock starts at boot.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(time.tv_sec).expect("after the boot");
    let nanos = u64::try_from(time.tv_nsec).expect("not negative");
    seconds * 1_000_000_000 + nanos
}
