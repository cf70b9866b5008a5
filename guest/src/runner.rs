//! Starts, stops and watches the thread that is the guest.
//!
//! The controlling side sets the wanted state. The thread checks it between two steps and reports
//! its own state. Both are under one lock, so that a requested stop and a completed stop cannot
//! miss each other.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::guest_api::PageInProgress;

use crate::clock::monotonic_ns;

/// How a guest ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It ended by itself.
    Stopped,
    /// It crashed for this reason.
    Crashed(String),
}

/// The progress of the workload.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) heartbeat_sequence: u64,
    pub(crate) write_count: u64,
    pub(crate) page_in_progress: Option<PageInProgress>,
}

/// Why a wait for the next tick ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Woken {
    /// The tick is due.
    Due,
    /// The thread has to stop.
    Interrupted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Parked,
    Running,
    Gone,
}

#[derive(Debug)]
enum Standing {
    Parked { since_ns: u64 },
    Running { since_ns: u64 },
    Ended(Outcome),
}

#[derive(Debug)]
struct Control {
    wanted: Wanted,
    standing: Standing,
    progress: Progress,
}

/// State shared by the controlling side and the guest's thread.
#[derive(Debug)]
pub(crate) struct Runner {
    control: Mutex<Control>,
    changed: Condvar,
    is_stop_wanted: AtomicBool,
    epoch: AtomicU64,
}

impl Runner {
    pub(crate) fn new() -> Self {
        Self {
            control: Mutex::new(Control {
                wanted: Wanted::Parked,
                standing: Standing::Parked { since_ns: 0 },
                progress: Progress::default(),
            }),
            changed: Condvar::new(),
            is_stop_wanted: AtomicBool::new(true),
            epoch: AtomicU64::new(0),
        }
    }

    /// The epoch under which the guest runs, as the guest is told it.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    pub(crate) fn set_epoch(&self, epoch: u64) {
        self.epoch.store(epoch, Ordering::Release);
    }

    pub(crate) fn progress(&self) -> Progress {
        self.lock().progress
    }

    pub(crate) fn set_progress(&self, progress: Progress) {
        self.lock().progress = progress;
    }

    /// How the guest ended, if it has.
    pub(crate) fn outcome(&self) -> Option<Outcome> {
        match &self.lock().standing {
            Standing::Ended(outcome) => Some(outcome.clone()),
            _ => None,
        }
    }

    /// Starts the thread and returns since when it runs.
    pub(crate) fn start(&self, wait: Duration) -> Result<u64, Fault> {
        let mut control = self.lock();
        control.wanted = Wanted::Running;
        self.is_stop_wanted.store(false, Ordering::Release);
        self.changed.notify_all();
        let control = self.wait_while(control, wait, |control| {
            matches!(control.standing, Standing::Parked { .. })
        });
        match &control.standing {
            Standing::Running { since_ns } => Ok(*since_ns),
            Standing::Ended(outcome) => Err(ended(outcome)),
            Standing::Parked { .. } => Err(Fault::new(
                Code::Guest,
                format!("the guest's thread did not start within {wait:?}"),
            )),
        }
    }

    /// Stops the thread and returns since when it is stopped. `kick` interrupts whatever it is
    /// doing.
    ///
    /// If the thread does not stop within `wait`, it is left running: a guest that waits for a
    /// missing page cannot be stopped between two instructions, and must not be reported as
    /// stopped.
    pub(crate) fn stop(&self, kick: impl Fn(), wait: Duration) -> Result<u64, Fault> {
        let mut control = self.lock();
        control.wanted = Wanted::Parked;
        self.is_stop_wanted.store(true, Ordering::Release);
        self.changed.notify_all();
        if matches!(control.standing, Standing::Running { .. }) {
            kick();
        }
        let mut control = self.wait_while(control, wait, |control| {
            matches!(control.standing, Standing::Running { .. })
        });
        match &control.standing {
            Standing::Parked { since_ns } => Ok(*since_ns),
            Standing::Ended(outcome) => Err(ended(outcome)),
            Standing::Running { .. } => {
                control.wanted = Wanted::Running;
                self.is_stop_wanted.store(false, Ordering::Release);
                Err(Fault::new(
                    Code::Guest,
                    format!("the vcpu did not stop within {wait:?}: it waits for a missing page"),
                ))
            }
        }
    }

    /// Ends the thread as soon as it checks the wanted state.
    pub(crate) fn end(&self, kick: impl Fn()) {
        let mut control = self.lock();
        control.wanted = Wanted::Gone;
        self.is_stop_wanted.store(true, Ordering::Release);
        self.changed.notify_all();
        if matches!(control.standing, Standing::Running { .. }) {
            kick();
        }
    }

    /// For the thread: waits until it may run. `false` if it has to end.
    pub(crate) fn wait_for_start(&self) -> bool {
        let mut control = self.lock();
        // An unbounded wait is right: a guest waits for as long as nobody runs it, and the process
        // can still end.
        while control.wanted == Wanted::Parked {
            self.changed.wait(&mut control);
        }
        if control.wanted == Wanted::Gone {
            return false;
        }
        control.standing = Standing::Running {
            since_ns: monotonic_ns(),
        };
        self.changed.notify_all();
        true
    }

    /// For the thread: whether it has to stop.
    pub(crate) fn is_stop_wanted(&self) -> bool {
        self.is_stop_wanted.load(Ordering::Acquire)
    }

    /// For the thread: sleeps until `due_ns` on the monotonic clock, or until it has to stop.
    pub(crate) fn sleep_until(&self, due_ns: u64) -> Woken {
        let mut control = self.lock();
        loop {
            if control.wanted != Wanted::Running {
                return Woken::Interrupted;
            }
            let left_ns = due_ns.saturating_sub(monotonic_ns());
            if left_ns == 0 {
                return Woken::Due;
            }
            let left = Duration::from_nanos(left_ns);
            self.changed.wait_for(&mut control, left);
        }
    }

    /// For the thread: reports that it is stopped, with its exact progress.
    pub(crate) fn report_parked(&self, progress: Progress) {
        let mut control = self.lock();
        control.progress = progress;
        control.standing = Standing::Parked {
            since_ns: monotonic_ns(),
        };
        self.changed.notify_all();
    }

    /// For the thread: reports that the guest has ended.
    pub(crate) fn report_end(&self, outcome: Outcome) {
        match &outcome {
            Outcome::Stopped => tracing::info!("guest ended"),
            Outcome::Crashed(reason) => tracing::error!(%reason, "guest crashed"),
        }
        self.lock().standing = Standing::Ended(outcome);
        self.changed.notify_all();
    }

    /// Runs the thread's work. If it panics, that is reported as a crash of the guest, so that
    /// nobody waits for a thread that is gone.
    pub(crate) fn guard(&self, work: impl FnOnce(&Self)) {
        // The thread's shared state is behind locks, which a panic lets go of.
        let ended = catch_unwind(AssertUnwindSafe(|| work(self)));
        if let Err(panic) = ended {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let why = text.or_else(|| panic.downcast_ref::<&str>().copied());
            let why = why.unwrap_or("no reason");
            self.report_end(Outcome::Crashed(format!(
                "its thread gave up, which is a mistake of the machine: {why}"
            )));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Control> {
        // Every change under the lock is a single assignment, so a panic leaves nothing half done.
        self.control.lock()
    }

    fn wait_while<'a>(
        &'a self,
        mut control: MutexGuard<'a, Control>,
        wait: Duration,
        condition: impl Fn(&Control) -> bool,
    ) -> MutexGuard<'a, Control> {
        let deadline = Instant::now() + wait;
        while condition(&control) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            self.changed.wait_for(&mut control, left);
        }
        control
    }
}

/// The fault for requests to a guest that has ended.
pub(crate) fn ended(outcome: &Outcome) -> Fault {
    let detail = match outcome {
        Outcome::Stopped => "the guest has ended".to_owned(),
        Outcome::Crashed(reason) => format!("the guest crashed: {reason}"),
    };
    Fault::new(Code::Guest, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    const WAIT: Duration = Duration::from_secs(10);

    #[test]
    fn a_sleeping_thread_stops_at_once_and_goes_on() {
        let runner = Arc::new(Runner::new());
        let worker = Arc::clone(&runner);
        let thread = std::thread::spawn(move || {
            let mut rounds = 0;
            while worker.wait_for_start() {
                assert_eq!(worker.sleep_until(u64::MAX), Woken::Interrupted);
                rounds += 1;
                worker.report_parked(Progress {
                    heartbeat_sequence: rounds,
                    ..Progress::default()
                });
            }
            rounds
        });
        for round in 1..=3 {
            let started = runner.start(WAIT).unwrap();
            let stopped = runner.stop(|| (), WAIT).unwrap();
            assert!(stopped >= started);
            assert_eq!(runner.progress().heartbeat_sequence, round);
        }
        runner.end(|| ());
        assert_eq!(thread.join().unwrap(), 3);
    }

    #[test]
    fn a_thread_that_panics_is_a_guest_that_crashed() {
        let runner = Arc::new(Runner::new());
        let worker = Arc::clone(&runner);
        let thread = std::thread::spawn(move || {
            worker.guard(|worker| {
                assert!(worker.wait_for_start());
                panic!("by design");
            });
        });
        // Whether it is still seen running does not matter.
        drop(runner.start(WAIT));
        thread.join().unwrap();
        let Some(Outcome::Crashed(why)) = runner.outcome() else {
            panic!("nobody knows");
        };
        assert!(why.contains("by design"), "{why}");
        assert_eq!(runner.stop(|| (), WAIT).unwrap_err().code, Code::Guest);
    }

    #[test]
    fn a_thread_that_cannot_stop_is_reported_and_left_running() {
        let runner = Arc::new(Runner::new());
        let worker = Arc::clone(&runner);
        let (release, released) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            assert!(worker.wait_for_start());
            released.recv().unwrap();
            let stop_wanted = worker.is_stop_wanted();
            worker.report_end(Outcome::Crashed("x".to_owned()));
            stop_wanted
        });
        runner.start(WAIT).unwrap();
        let fault = runner.stop(|| (), Duration::from_millis(20)).unwrap_err();
        assert_eq!(fault.code, Code::Guest);
        release.send(()).unwrap();
        assert!(!thread.join().unwrap());
        assert_eq!(runner.outcome(), Some(Outcome::Crashed("x".to_owned())));
        assert!(runner.stop(|| (), WAIT).is_err());
    }
}
