//! Wall-clock times, less the time that threads waited for a processor.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// The most that is excused: over a long time, the summed waits of many threads can be arbitrarily
/// large.
const STOLEN_MAX: Duration = Duration::from_secs(2);

/// A time that is being measured, with its excused waits.
#[derive(Debug)]
pub struct Watch {
    /// The network namespaces of the threads whose waits count.
    spaces: Vec<u64>,
    processes: Vec<u32>,
    /// The total wait at each reading.
    looks: Vec<(Instant, Duration)>,
}

impl Watch {
    /// Starts now. Counts the waits of these processes' threads in these network namespaces, which
    /// are given by inode.
    #[must_use]
    pub fn start(processes: Vec<u32>, spaces: Vec<u64>) -> Self {
        let mut watch = Self {
            spaces,
            processes,
            looks: Vec::new(),
        };
        watch.look();
        watch
    }

    /// Records the total wait so far. Between two readings it is unknown when the waits were.
    pub fn look(&mut self) {
        let waited = self.waited();
        self.looks.push((Instant::now(), waited));
    }

    /// Checks that the time since the start is at most `most`.
    ///
    /// # Panics
    ///
    /// If it is longer, and the waits do not explain it.
    pub fn at_most(&mut self, most: Duration, what: &str) {
        let began = self.looks[0].0;
        self.check((began, Instant::now()), most, what);
    }

    /// Checks that the time between two moments since the start is at most `most`.
    ///
    /// # Panics
    ///
    /// If it is longer, and the waits do not explain it.
    #[allow(clippy::print_stdout, reason = "a test says what it measured")]
    pub fn check(&mut self, (from, to): (Instant, Instant), most: Duration, what: &str) {
        self.look();
        let (took, stolen) = (to - from, self.stolen(from, to));
        let told = format!("{what}: {took:.3?} of {most:?}, {stolen:.3?} without a processor");
        println!("{told}");
        assert!(took <= most + stolen, "{told}");
    }

    /// The wait from the start until now.
    #[must_use]
    pub fn stolen_so_far(&self) -> Duration {
        self.waited()
            .saturating_sub(self.looks[0].1)
            .min(STOLEN_MAX)
    }

    /// The wait from the last reading before `from` to the first one after `to`.
    fn stolen(&self, from: Instant, to: Instant) -> Duration {
        let before = self.looks.iter().rfind(|(at, _)| *at <= from);
        let after = self.looks.iter().find(|(at, _)| *at >= to);
        let waited = |look: Option<&(Instant, Duration)>, other: usize| {
            look.map_or(self.looks[other].1, |(_, waited)| *waited)
        };
        let stolen = waited(after, self.looks.len() - 1).saturating_sub(waited(before, 0));
        stolen.min(STOLEN_MAX)
    }

    /// The total wait; zero if the kernel does not report it.
    fn waited(&self) -> Duration {
        let tasks = |id| fs::read_dir(format!("/proc/{id}/task")).ok();
        let tasks = self.processes.iter().filter_map(tasks).flatten();
        let told = tasks.filter_map(|task| self.task_waited(&task.ok()?.path()));
        Duration::from_nanos(told.sum())
    }

    fn task_waited(&self, task: &Path) -> Option<u64> {
        let space = fs::metadata(task.join("ns/net")).ok()?.ino();
        if !self.spaces.contains(&space) {
            return None;
        }
        let text = fs::read_to_string(task.join("schedstat")).ok()?;
        text.split(' ').nth(1)?.parse().ok()
    }
}
