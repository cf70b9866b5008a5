//! How long threads waited for a processor: a guest that is silent for that time is silent because this
//! machine is busy, with other tests for example, and not because of what is tested.

use std::sync::{Mutex, Once};
use std::thread::available_parallelism;
use std::time::Duration;

use crate::console::monotonic_ns;

/// Time between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// What the kernel says: microseconds in which some thread waited, `Documentation/accounting/psi.rst`.
const PRESSURE_FILE: &str = "/proc/pressure/cpu";

static WATCH: Once = Once::new();

/// When it was looked, and the time waited until then, by when.
static LOOKS: Mutex<Vec<(u64, Duration)>> = Mutex::new(Vec::new());

/// Begins to watch, for the rest of the process. Where the kernel does not tell, nobody waits.
///
/// # Panics
///
/// If no thread can be had.
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

/// The longest that anything can have waited for a processor between two moments of the monotonic clock.
///
/// # Panics
///
/// If the watching thread has.
#[must_use]
pub fn between(from_ns: u64, until_ns: u64) -> Duration {
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
    // The kernel's is the mean of all processors, and a thread waits for one.
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
