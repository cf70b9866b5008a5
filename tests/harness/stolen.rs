//! Times by the clock, less what threads waited for a processor that others had.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Most that is excused: the sum of what many threads waited can be any number where a time is long.
const STOLEN_MAX: Duration = Duration::from_secs(2);

/// A time that is being measured, and whose waits are excused.
#[derive(Debug)]
pub struct Watch {
    /// The network namespaces of those whose waits count.
    spaces: Vec<u64>,
    processes: Vec<u32>,
    /// What they had waited at each look.
    looks: Vec<(Instant, Duration)>,
}

impl Watch {
    /// Begins now, and looks at what these processes do in these network namespaces, each named by its inode.
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

    /// Remembers what has been waited so far: between two looks it is not known when that was.
    pub fn look(&mut self) {
        let waited = self.waited();
        self.looks.push((Instant::now(), waited));
    }

    /// Holds what has passed since the beginning against the most it may be.
    ///
    /// # Panics
    ///
    /// If it is longer, and the machine is not to blame.
    pub fn at_most(&mut self, most: Duration, what: &str) {
        let began = self.looks[0].0;
        self.check((began, Instant::now()), most, what);
    }

    /// Holds a time since the beginning, from one moment to another, against the most it may be.
    ///
    /// # Panics
    ///
    /// If it is longer, and the machine is not to blame.
    #[allow(clippy::print_stdout, reason = "a test says what it measured")]
    pub fn check(&mut self, (from, to): (Instant, Instant), most: Duration, what: &str) {
        self.look();
        let (took, stolen) = (to - from, self.stolen(from, to));
        let told = format!("{what}: {took:.3?} of {most:?}, {stolen:.3?} without a processor");
        println!("{told}");
        assert!(took <= most + stolen, "{told}");
    }

    /// What was waited from the beginning until now.
    #[must_use]
    pub fn stolen_so_far(&self) -> Duration {
        self.waited()
            .saturating_sub(self.looks[0].1)
            .min(STOLEN_MAX)
    }

    /// What was waited from the last look before one moment to the first one behind another.
    fn stolen(&self, from: Instant, to: Instant) -> Duration {
        let before = self.looks.iter().rfind(|(at, _)| *at <= from);
        let after = self.looks.iter().find(|(at, _)| *at >= to);
        let waited = |look: Option<&(Instant, Duration)>, other: usize| {
            look.map_or(self.looks[other].1, |(_, waited)| *waited)
        };
        let stolen = waited(after, self.looks.len() - 1).saturating_sub(waited(before, 0));
        stolen.min(STOLEN_MAX)
    }

    /// Nothing where the kernel does not tell.
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
