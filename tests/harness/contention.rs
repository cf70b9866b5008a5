//! Measures how long threads waited for a processor. A guest that is silent for that time is silent
//! because this machine is busy, for example with other tests, and not because of what is tested.
//!
//! The excuse is limited to [`EXCUSE_MAX`], and a case that needs more than [`DOUBT`] of it is
//! repeated while no other lab of this process is active, see [`Share::alone`].

use std::sync::{Condvar, Mutex, MutexGuard, Once};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use crate::console::monotonic_ns;

/// Interval between readings.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// The kernel's counter, in microseconds in which some thread waited
/// (`Documentation/accounting/psi.rst`).
const PRESSURE_FILE: &str = "/proc/pressure/cpu";

/// The most that a busy machine excuses: a guest that waited longer for a processor could hide any
/// bug.
pub const EXCUSE_MAX: Duration = Duration::from_secs(2);

/// A case that needs a larger excuse is played again, alone.
pub const DOUBT: Duration = Duration::from_secs(1);

/// How long a case may wait until it is alone: as long as the longest of the others lasts.
const ALONE_WAIT: Duration = Duration::from_mins(3);

static WATCH: Once = Once::new();

/// Readings: the time, and the total wait until then.
static LOOKS: Mutex<Vec<(u64, Duration)>> = Mutex::new(Vec::new());

/// Starts watching, for the rest of the process. If the kernel has no such counter, the wait is
/// zero.
///
/// # Panics
///
/// If no thread can be started.
pub fn watch() {
    WATCH.call_once(|| {
        let thread = std::thread::Builder::new().name("contention".to_owned());
        let watching = thread.spawn(|| {
            while let Some(waited) = waited() {
                let mut looks = LOOKS.lock().expect("nobody panics with it");
                looks.push((monotonic_ns(), waited));
                drop(looks);
                std::thread::sleep(LOOK_INTERVAL);
            }
        });
        drop(watching.expect("a thread"));
    });
}

/// The wait between two moments of the monotonic clock that a busy machine excuses.
///
/// # Panics
///
/// If the watching thread has panicked.
#[must_use]
pub fn excuse(from_ns: u64, until_ns: u64) -> Duration {
    between(from_ns, until_ns).min(EXCUSE_MAX)
}

/// The longest that any thread can have waited for a processor between two moments of the monotonic
/// clock.
fn between(from_ns: u64, until_ns: u64) -> Duration {
    let looks = LOOKS.lock().expect("nobody panics with it");
    let before = looks.partition_point(|(at_ns, _)| *at_ns <= from_ns);
    let after = looks.partition_point(|(at_ns, _)| *at_ns < until_ns);
    let waited = |index: usize| {
        looks
            .get(index)
            .or_else(|| looks.last())
            .map(|(_, waited)| *waited)
    };
    let waited = waited(after).zip(waited(before.saturating_sub(1)));
    // The kernel's figure is the mean over all processors, but a thread waits for one.
    let processors =
        available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(1));
    let most = waited.map_or(Duration::ZERO, |(after, before)| {
        after.saturating_sub(before) * processors
    });
    most.min(Duration::from_nanos(until_ns.saturating_sub(from_ns)))
}

fn waited() -> Option<Duration> {
    let text = std::fs::read_to_string(PRESSURE_FILE).ok()?;
    let some = text.lines().find(|line| line.starts_with("some "))?;
    let total = some
        .split_ascii_whitespace()
        .find_map(|word| word.strip_prefix("total="))?;
    Some(Duration::from_micros(total.parse().ok()?))
}

/// The labs that are active in this process.
#[derive(Debug)]
struct AtWork {
    labs: usize,
    /// Cases that wait until they are alone.
    waiting: usize,
    is_alone: bool,
}

static AT_WORK: Mutex<AtWork> = Mutex::new(AtWork {
    labs: 0,
    waiting: 0,
    is_alone: false,
});

static CHANGED: Condvar = Condvar::new();

fn at_work() -> MutexGuard<'static, AtWork> {
    AT_WORK.lock().expect("nobody panics with it")
}

/// A lab's permit to be active; returned when this is dropped.
#[derive(Debug)]
pub struct Share(());

impl Share {
    /// Waits while another case is alone.
    #[must_use]
    pub fn take() -> Self {
        // It does not wait for cases that want to be alone: a thread with a second share would
        // deadlock with itself.
        let while_alone = |now: &mut AtWork| now.is_alone;
        let mut now = CHANGED
            .wait_while(at_work(), while_alone)
            .expect("nobody panics with it");
        now.labs += 1;
        Self(())
    }

    /// Lets cases that wait to be alone go first; called between two cases.
    pub fn give_way(&self) {
        let mut now = at_work();
        if now.waiting == 0 {
            return;
        }
        now.labs -= 1;
        CHANGED.notify_all();
        let is_wanted = |now: &mut AtWork| now.waiting > 0 || now.is_alone;
        CHANGED
            .wait_while(now, is_wanted)
            .expect("nobody panics with it")
            .labs += 1;
    }

    /// Waits until no other lab of this process is active, and keeps them out until the result is
    /// dropped.
    ///
    /// # Panics
    ///
    /// If the others do not finish.
    #[must_use]
    pub fn alone(&self) -> Alone {
        let deadline = Instant::now() + ALONE_WAIT;
        let mut now = at_work();
        now.labs -= 1;
        now.waiting += 1;
        CHANGED.notify_all();
        while now.labs > 0 || now.is_alone {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let why = format!("not alone after {ALONE_WAIT:?}: {now:?}");
                now.waiting -= 1;
                now.labs += 1;
                drop(now);
                CHANGED.notify_all();
                panic!("{why}");
            }
            (now, _) = CHANGED
                .wait_timeout(now, left)
                .expect("nobody panics with it");
        }
        now.waiting -= 1;
        now.is_alone = true;
        Alone(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        at_work().labs -= 1;
        CHANGED.notify_all();
    }
}

/// Keeps the other labs out; they continue when it is dropped.
#[derive(Debug)]
pub struct Alone(());

impl Drop for Alone {
    fn drop(&mut self) {
        let mut now = at_work();
        now.is_alone = false;
        now.labs += 1;
        CHANGED.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    /// Timeout for everything here.
    const WAIT: Duration = Duration::from_secs(20);

    #[test]
    fn a_busy_machine_excuses_what_was_waited_and_never_more_than_the_most() {
        let seconds = |count: u64| count * 1_000_000_000;
        let looks = [(0, 0), (10, 1), (20, 1), (30, 11)]
            .map(|(at, waited)| (seconds(at), Duration::from_millis(waited * 100)));
        LOOKS.lock().unwrap().extend(looks);
        let processors = u32::try_from(available_parallelism().unwrap().get()).unwrap();
        let expected = (Duration::from_millis(100) * processors).min(EXCUSE_MAX);
        assert_eq!(excuse(seconds(0), seconds(10)), expected);
        assert_eq!(excuse(seconds(10), seconds(20)), Duration::ZERO);
        LOOKS
            .lock()
            .unwrap()
            .push((seconds(40), Duration::from_secs(60)));
        assert_eq!(excuse(seconds(30), seconds(40)), EXCUSE_MAX);
    }

    #[test]
    fn who_is_alone_begins_when_others_give_way_and_they_go_on_behind_it() {
        let (said, heard) = channel();
        let other = Share::take();
        std::thread::scope(|scope| {
            let alone = said.clone();
            scope.spawn(move || {
                let share = Share::take();
                let mine = share.alone();
                assert_eq!(at_work().labs, 0);
                alone.send("alone").unwrap();
                drop(mine);
            });
            let deadline = Instant::now() + WAIT;
            while at_work().waiting == 0 {
                assert!(Instant::now() < deadline, "nobody wants to be alone");
                std::thread::yield_now();
            }
            assert!(heard.try_recv().is_err(), "it is not alone");
            other.give_way();
            said.send("behind").unwrap();
        });
        assert_eq!(
            heard.iter().take(2).collect::<Vec<_>>(),
            ["alone", "behind"]
        );
        // No case is waiting, so this returns at once.
        other.give_way();
        drop(other);
        assert_eq!(at_work().labs, 0);
    }
}
