//! Real guest processes for tests: started, watched through their consoles, and ended with the
//! test.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each suite includes it and uses a part of it"
)]

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use tempfile::TempDir;
use towpath_guest::verify::{Verified, verify};
use towpath_migrator::guest::{GuestCommand, GuestMemory, GuestProcess};
use towpath_protocol::guest_api::{Description, GuestConfig, GuestKind, GuestState, Workload};
use towpath_protocol::identity::{Epoch, GuestId};
use towpath_protocol::space::{BlockRun, BlockSet};

/// Longest wait in any test; the machine may be busy.
pub const WAIT: Duration = Duration::from_secs(60);

pub const EPOCH: Epoch = Epoch(5);

/// Blocks per run: 64 KiB, as the migrator reads them.
pub const RUN_BLOCKS: u32 = 16;

pub fn command() -> GuestCommand {
    GuestCommand {
        program: PathBuf::from(env!("CARGO_BIN_EXE_towpath-guest-process")),
        arguments: Vec::<OsString>::new(),
    }
}

/// Whether guests of this kind work here. If not, prints why the test is skipped.
pub fn is_usable(kind: GuestKind) -> bool {
    let needed = match kind {
        GuestKind::Kvm => "kvm",
        GuestKind::Process => "write-tracking",
    };
    for capability in towpath_guest::probe() {
        let is_needed = capability.name == needed || capability.name == "missing-pages";
        if let Some(fault) = capability.fault.filter(|_| is_needed) {
            println!("skipped: {}: {fault}", capability.name);
            return false;
        }
    }
    true
}

pub fn config(kind: GuestKind) -> GuestConfig {
    GuestConfig {
        id: GuestId(0x1234),
        name: "test".parse().unwrap(),
        kind,
        memory_bytes: 32 << 20,
        vcpu_count: 1,
        workload: Workload {
            dirty_pages_per_second: 5_000,
            working_set_bytes: 12 << 20,
            incompressible_percent: 40,
            key: 0x0123_4567_89ab_cdef,
            heartbeat_interval_us: 2_000,
        },
    }
}

/// A guest in its own temporary folder. Both end when this is dropped.
pub struct Guest {
    pub process: GuestProcess,
    pub folder: PathBuf,
    root: Option<TempDir>,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.process.quit();
        if std::thread::panicking()
            && let Ok(log) = std::fs::read_to_string(self.folder.join("guest.log"))
        {
            println!("--- {}\n{log}---", self.folder.display());
        }
    }
}

impl Guest {
    pub fn spawn(config: &GuestConfig) -> Self {
        Self::with(|folder| GuestProcess::spawn(&command(), folder, config))
    }

    pub fn spawn_incoming(config: &GuestConfig) -> Self {
        Self::with(|folder| GuestProcess::spawn_incoming(&command(), folder, config))
    }

    fn with(
        make: impl FnOnce(&Path) -> Result<GuestProcess, towpath_protocol::fault::Fault>,
    ) -> Self {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("guest");
        let process = make(&folder).unwrap();
        Self {
            process,
            folder,
            root: Some(root),
        }
    }

    pub fn adopt(folder: &Path) -> Self {
        Self {
            process: GuestProcess::adopt(folder).unwrap(),
            folder: folder.to_owned(),
            root: None,
        }
    }

    /// A running guest that has written some pages.
    pub fn running(config: &GuestConfig) -> Self {
        let mut guest = Self::spawn(config);
        guest.process.run(EPOCH).unwrap();
        guest.wait_for_heartbeats(20);
        guest
    }

    pub fn wait_for_heartbeats(&mut self, count: u64) -> Description {
        let until = self.process.describe().unwrap().heartbeat_sequence + count;
        self.wait_until(|now| now.heartbeat_sequence >= until)
    }

    /// Waits until a description fits, checking whenever the guest prints.
    pub fn wait_until(&mut self, fits: impl Fn(&Description) -> bool) -> Description {
        let watch = ConsoleWatch::new(&self.process.console_path());
        let deadline = Instant::now() + WAIT;
        loop {
            let description = self.process.describe().unwrap();
            if fits(&description) {
                return description;
            }
            if let GuestState::Crashed { reason } = &description.state {
                panic!("guest crashed: {reason}");
            }
            watch.wait(deadline);
        }
    }

    pub fn state(&mut self) -> GuestState {
        self.process.describe().unwrap().state
    }

    /// Every heartbeat that the guest printed here.
    pub fn heartbeats(&self) -> Vec<Heartbeat> {
        heartbeats(&self.process.console_path())
    }

    /// Pauses the guest and checks every byte of its working set.
    pub fn pause_and_verify(&mut self) -> (Description, Verified) {
        self.process.pause().unwrap();
        let description = self.process.describe().unwrap();
        assert_eq!(description.state, GuestState::Paused);
        let memory = self.process.memory().unwrap();
        let verified = verify(&memory, &description).unwrap();
        (description, verified)
    }
}

/// One heartbeat line of a console.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heartbeat {
    pub at_ns: u64,
    pub sequence: u64,
    pub epoch: u64,
}

pub fn heartbeats(path: &Path) -> Vec<Heartbeat> {
    let mut old = path.as_os_str().to_owned();
    old.push(".1");
    let mut found = Vec::new();
    for path in [PathBuf::from(old), path.to_owned()] {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        found.extend(text.lines().map(parse_heartbeat));
    }
    found
}

fn parse_heartbeat(line: &str) -> Heartbeat {
    let parts: Vec<&str> = line.split(' ').collect();
    let [at_ns, "HB", sequence, epoch] = parts.as_slice() else {
        panic!("no heartbeat: {line:?}");
    };
    Heartbeat {
        at_ns: at_ns.parse().unwrap(),
        sequence: sequence.parse().unwrap(),
        epoch: epoch.parse().unwrap(),
    }
}

/// Checks that the sequence rises by one from 1, across all consoles, and that time never goes
/// back.
pub fn assert_unbroken(heartbeats: &[Heartbeat]) {
    assert!(!heartbeats.is_empty());
    for (expected, heartbeat) in (1..).zip(heartbeats) {
        assert_eq!(heartbeat.sequence, expected, "{heartbeat:?}");
    }
    assert!(heartbeats.is_sorted_by_key(|heartbeat| heartbeat.at_ns));
    assert!(heartbeats.is_sorted_by_key(|heartbeat| heartbeat.epoch));
}

/// Notices when a console grows.
struct ConsoleWatch(OwnedFd);

impl ConsoleWatch {
    fn new(path: &Path) -> Self {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let watch = inotify::init(flags).unwrap();
        inotify::add_watch(&watch, path, inotify::WatchFlags::MODIFY).unwrap();
        Self(watch)
    }

    fn wait(&self, deadline: Instant) {
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "nothing happened within {WAIT:?}");
        let mut polled = [PollFd::new(&self.0, PollFlags::IN)];
        poll(&mut polled, Some(&Timespec::try_from(left).unwrap())).unwrap();
        let mut events = [0; 4096];
        while rustix::io::read(&self.0, &mut events).is_ok() {}
    }
}

/// A copy of all of a guest's memory.
pub fn image(memory: &GuestMemory) -> Vec<u8> {
    let block_count = memory.geometry().block_count();
    let mut bytes = vec![0; usize::try_from(memory.geometry().bytes()).unwrap()];
    let run = BlockRun {
        start: 0,
        count: u32::try_from(block_count).unwrap(),
    };
    memory.read_runs(&[run], &mut bytes).unwrap();
    bytes
}

/// The blocks in which two images differ.
pub fn differing(a: &[u8], b: &[u8]) -> BlockSet {
    let mut set = BlockSet::empty(a.len() as u64 / 4096);
    let blocks = a.chunks(4096).zip(b.chunks(4096));
    for (block, (a, b)) in (0..).zip(blocks) {
        if a != b {
            set.insert(block);
        }
    }
    set
}

/// Copies blocks of one guest's memory into an image.
pub fn copy_into_image(memory: &GuestMemory, set: &BlockSet, image: &mut [u8]) {
    for run in set.runs() {
        let start = usize::try_from(run.start).unwrap() * 4096;
        let bytes = &mut image[start..start + run.count as usize * 4096];
        memory.read_runs(&[run], bytes).unwrap();
    }
}

/// Copies the blocks of `set` from one guest's memory to another's.
pub fn copy_memory(source: &GuestMemory, target: &GuestMemory, set: &BlockSet) {
    let mut bytes = vec![0; RUN_BLOCKS as usize * 4096];
    let mut from = 0;
    while let Some(run) = set.run_from(from, RUN_BLOCKS) {
        from = run.end();
        let length = run.count as usize * 4096;
        source.read_runs(&[run], &mut bytes[..length]).unwrap();
        target.write_runs(&[run], &bytes[..length]).unwrap();
    }
}

/// Restores one block from an earlier image.
pub fn put_back(early: &[u8], memory: &GuestMemory, block: u64) {
    let start = usize::try_from(block).unwrap() * 4096;
    let run = BlockRun {
        start: block,
        count: 1,
    };
    memory
        .write_runs(&[run], &early[start..start + 4096])
        .unwrap();
}

/// Every block that a guest ever touched.
pub fn touched(memory: &GuestMemory) -> BlockSet {
    let mut set = BlockSet::empty(memory.geometry().block_count());
    let mut from = 0;
    while let Some(run) = memory.data_run_from(from, u32::MAX).unwrap() {
        set.insert_run(run);
        from = run.end();
    }
    set
}

/// Defines a test for each kind of guest.
#[macro_export]
macro_rules! for_both_kinds {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        mod $name {
            use towpath_protocol::guest_api::GuestKind;

            #[test]
            fn kvm() {
                if $crate::harness::is_usable(GuestKind::Kvm) {
                    super::$name(GuestKind::Kvm);
                }
            }

            #[test]
            fn process() {
                if $crate::harness::is_usable(GuestKind::Process) {
                    super::$name(GuestKind::Process);
                }
            }
        }
    )*};
}
