//! The process guest: a native thread that writes the same pattern and prints the same heartbeat.
//!
//! Used where /dev/kvm is not available, and in benchmarks, since it dirties memory as fast as the
//! host can copy. It stops only between two pages, so it never has a page in progress.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::guest_api::{GuestConfig, TrackingMethod};

use crate::clock::monotonic_ns;
use crate::console::Console;
use crate::engine::{Engine, STOP_WAIT};
use crate::layout::WorkingSet;
use crate::memory::Memory;
use crate::pacer::Pacer;
use crate::pattern::{HEADER_WORDS, MAGIC, PAGE_BYTES, PAGE_WORDS, Pattern, mix};
use crate::runner::{Outcome, Progress, Runner, Woken};
use crate::sections::Sections;
use crate::userfault::WriteTracker;
use crate::workload::{Counters, fill_memory};

/// The controlling side of a process guest.
#[derive(Debug)]
pub(crate) struct ProcessGuest {
    memory: Memory,
    runner: Arc<Runner>,
    worker: Arc<Mutex<Worker>>,
    tracker: Option<WriteTracker>,
    tracking_method: TrackingMethod,
}

/// Everything the guest's thread works with. The lock is free only while the thread is parked.
#[derive(Debug)]
struct Worker {
    memory: Memory,
    console: Console,
    set: WorkingSet,
    pattern: Pattern,
    key: u64,
    pacer: Pacer,
    counters: Counters,
}

impl ProcessGuest {
    /// Creates the guest, stopped.
    pub(crate) fn create(
        config: &GuestConfig,
        memory: Memory,
        console: Console,
    ) -> Result<Self, Fault> {
        let workload = &config.workload;
        let worker = Arc::new(Mutex::new(Worker {
            memory: memory.clone(),
            console,
            set: WorkingSet::of(config),
            pattern: Pattern::new(workload.key, workload.incompressible_percent),
            key: workload.key,
            pacer: Pacer::new(
                workload.dirty_pages_per_second,
                workload.heartbeat_interval_us,
            ),
            counters: Counters::default(),
        }));
        let runner = Arc::new(Runner::new());
        let tracking_method = match crate::userfault::probe_writes() {
            Ok(()) => TrackingMethod::AsyncWriteProtect,
            Err(fault) => {
                tracing::warn!(%fault, "writes cannot be tracked here");
                TrackingMethod::Unavailable
            }
        };
        let (thread_runner, thread_worker) = (Arc::clone(&runner), Arc::clone(&worker));
        std::thread::Builder::new()
            .name("guest-0".to_owned())
            .spawn(move || thread_runner.guard(|runner| run(runner, &thread_worker)))
            .map_err(|error| Fault::new(Code::Guest, format!("the guest's thread: {error}")))?;
        Ok(Self {
            memory,
            runner,
            worker,
            tracker: None,
            tracking_method,
        })
    }

    fn publish_progress(&self, counters: &Counters) {
        self.runner.set_progress(progress_of(counters));
    }
}

impl Engine for ProcessGuest {
    fn boot(&mut self) -> Result<(), Fault> {
        let mut worker = self.worker.lock();
        fill_memory(&worker.memory, &worker.set, &worker.pattern);
        worker.counters = Counters {
            write_count: worker.set.page_count,
            ..Counters::default()
        };
        self.publish_progress(&worker.counters);
        Ok(())
    }

    fn start(&mut self, epoch: u64) -> Result<u64, Fault> {
        self.runner.set_epoch(epoch);
        self.runner.start(STOP_WAIT)
    }

    fn stop(&mut self) -> Result<u64, Fault> {
        self.runner.stop(|| (), STOP_WAIT)
    }

    fn save(&mut self) -> Result<Sections, Fault> {
        let worker = self.worker.lock();
        let mut sections = Sections::default();
        let counters = Counters {
            credit_micropages: worker.pacer.credit_micropages(),
            ..worker.counters
        };
        counters.put(&worker.console, &mut sections);
        Ok(sections)
    }

    fn load(&mut self, mut sections: Sections) -> Result<(), Fault> {
        let mut worker = self.worker.lock();
        let set = worker.set;
        let counters = Counters::take(&set, &mut worker.console, &mut sections)?;
        sections.finish()?;
        worker.pacer.restore_credit(counters.credit_micropages);
        worker.counters = counters;
        self.publish_progress(&counters);
        Ok(())
    }

    fn progress(&self) -> Progress {
        self.runner.progress()
    }

    fn outcome(&self) -> Option<Outcome> {
        self.runner.outcome()
    }

    fn tracking_method(&self) -> TrackingMethod {
        self.tracking_method
    }

    fn start_tracking(&mut self) -> Result<(), Fault> {
        self.tracker = None;
        let tracker = WriteTracker::start(self.memory.range())?;
        self.tracker = Some(tracker);
        Ok(())
    }

    fn harvest(&mut self, first_block: u64, block_count: u32) -> Result<Vec<u64>, Fault> {
        let Some(tracker) = &mut self.tracker else {
            return Err(Fault::new(Code::State, "writes are not being tracked"));
        };
        let mut words = vec![0_u64; block_count.div_ceil(64) as usize];
        tracker.harvest(first_block, u64::from(block_count), |pages| {
            for page in pages {
                let bit = page - first_block;
                let word = usize::try_from(bit / 64).expect("a harvest is below 2^18 blocks");
                words[word] |= 1 << (bit % 64);
            }
        })?;
        Ok(words)
    }

    fn stop_tracking(&mut self) -> Result<(), Fault> {
        self.tracker = None;
        Ok(())
    }

    fn end(&mut self) {
        self.runner.end(|| ());
    }
}

const fn progress_of(counters: &Counters) -> Progress {
    Progress {
        heartbeat_sequence: counters.tick_count,
        write_count: counters.write_count,
        page_in_progress: None,
    }
}

/// The guest's thread.
fn run(runner: &Runner, worker: &Mutex<Worker>) {
    while runner.wait_for_start() {
        let mut worker = worker.lock();
        let outcome = worker.run_until_stopped(runner);
        let progress = progress_of(&worker.counters);
        // Release the lock before the report: whoever learns that the guest is parked may take the
        // lock at once.
        drop(worker);
        match outcome {
            Ok(()) => runner.report_parked(progress),
            Err(reason) => return runner.report_end(Outcome::Crashed(reason)),
        }
    }
}

impl Worker {
    fn run_until_stopped(&mut self, runner: &Runner) -> Result<(), String> {
        let mut due_ns = monotonic_ns();
        while runner.sleep_until(due_ns) == Woken::Due {
            due_ns = (due_ns + self.pacer.interval_ns()).max(monotonic_ns());
            self.counters.tick_count += 1;
            let (sequence, epoch) = (self.counters.tick_count, runner.epoch());
            let line = format!("HB {sequence} {epoch}\n");
            self.console.print(line.as_bytes());
            let page_count = if self.set.page_count == 0 {
                0
            } else {
                self.pacer.deal()
            };
            let begun = Instant::now();
            for _ in 0..page_count {
                if runner.is_stop_wanted() {
                    break;
                }
                self.rewrite_next()?;
            }
            self.pacer.learn(page_count, begun.elapsed());
            runner.set_progress(progress_of(&self.counters));
        }
        Ok(())
    }

    fn rewrite_next(&mut self) -> Result<(), String> {
        let page = self.set.first_page + self.counters.position;
        let offset = page * PAGE_BYTES as u64;
        let mut header = [0; HEADER_WORDS];
        self.memory.read_words(offset, &mut header);
        let version = header[2];
        let expected = mix(page, version, self.key);
        if header[0] != MAGIC || header[1] != page || header[3] != expected {
            return Err(format!("page {page} holds {header:x?}"));
        }
        let mut words = [0; PAGE_WORDS];
        self.pattern.words(page, version + 1, &mut words);
        self.memory.write_words(offset, &words);
        self.counters.write_count += 1;
        self.counters.position = self.set.next(self.counters.position);
        Ok(())
    }
}
