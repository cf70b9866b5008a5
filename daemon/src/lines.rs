//! Lines of the log that others cause: some at once, then one a second, and the rest are counted.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};

use governor::{DefaultDirectRateLimiter, Quota};

/// Lines of one kind per second, beside a first few: whoever asks without end, from one address or from many that it
/// has made up, fills no disk with them (T02).
const LINES_PER_SECOND: NonZeroU32 = NonZeroU32::new(1).expect("not zero");

/// Lines of one kind at once: one for each of a host's attempts until somebody looks why.
const LINES_BURST: NonZeroU32 = NonZeroU32::new(32).expect("not zero");

/// Which events of one kind have a line of the log.
#[derive(Debug)]
pub struct Lines {
    budget: DefaultDirectRateLimiter,
    untold: AtomicU64,
}

impl Default for Lines {
    fn default() -> Self {
        let quota = Quota::per_second(LINES_PER_SECOND).allow_burst(LINES_BURST);
        Self {
            budget: DefaultDirectRateLimiter::direct(quota),
            untold: AtomicU64::new(0),
        }
    }
}

impl Lines {
    /// How many were not told since the last that was, if this one is to be told.
    pub fn next(&self) -> Option<u64> {
        if self.budget.check().is_err() {
            self.untold.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(self.untold.swap(0, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t02_a_few_have_a_line_each_and_the_next_line_says_how_many_had_none() {
        let (lines, began) = (Lines::default(), std::time::Instant::now());
        let (mut told, mut untold) = (0, 0);
        // However slow the machine: in the end one comes too soon.
        while lines.next().is_some() {
            told += 1;
            assert!(told < 1_000_000, "each has its line");
        }
        assert!(told >= LINES_BURST.get(), "{told}");
        let most = f64::from(LINES_BURST.get()) + began.elapsed().as_secs_f64() + 1.0;
        assert!(f64::from(told) <= most, "{told} of {most}");
        let said = loop {
            untold += 1;
            if let Some(said) = lines.next() {
                break said;
            }
            std::thread::yield_now();
        };
        assert_eq!(said, untold);
    }
}
