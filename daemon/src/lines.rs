//! A rate limit on log lines that others cause: a burst, then one per second; the rest are counted.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};

use governor::{DefaultDirectRateLimiter, Quota};

/// Lines of one kind per second, after the burst. So a flood of requests, from one address or from
/// many spoofed ones, does not fill the disk (T02).
const LINES_PER_SECOND: NonZeroU32 = NonZeroU32::new(1).expect("not zero");

/// Burst of lines of one kind: one for each attempt of a host until an operator looks.
const LINES_BURST: NonZeroU32 = NonZeroU32::new(32).expect("not zero");

/// Decides which events of one kind are logged.
#[derive(Debug)]
pub struct RateLimit {
    budget: DefaultDirectRateLimiter,
    untold: AtomicU64,
}

impl Default for RateLimit {
    fn default() -> Self {
        let quota = Quota::per_second(LINES_PER_SECOND).allow_burst(LINES_BURST);
        Self {
            budget: DefaultDirectRateLimiter::direct(quota),
            untold: AtomicU64::new(0),
        }
    }
}

impl RateLimit {
    /// `None` if this event is not to be logged; else the number of events left out since the last
    /// logged one.
    pub fn admit(&self) -> Option<u64> {
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
        let (lines, began) = (RateLimit::default(), std::time::Instant::now());
        let (mut told, mut untold) = (0, 0);
        // However slow the machine is, the limit is reached in the end.
        while lines.admit().is_some() {
            told += 1;
            assert!(told < 1_000_000, "each has its line");
        }
        assert!(told >= LINES_BURST.get(), "{told}");
        let most = f64::from(LINES_BURST.get()) + began.elapsed().as_secs_f64() + 1.0;
        assert!(f64::from(told) <= most, "{told} of {most}");
        let said = loop {
            untold += 1;
            if let Some(said) = lines.admit() {
                break said;
            }
            std::thread::yield_now();
        };
        assert_eq!(said, untold);
    }
}
