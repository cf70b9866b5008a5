//! Counts a peer's streams without a complete preamble: several within a minute end the link. Pure.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Streams without a complete preamble within [`COUNTED_TIME`] that cost a peer its link (T16).
const COUNT_MAX: usize = 3;

/// How long each of these streams counts. A link lives for months, and one of the peer's programs
/// may fail now and then.
const COUNTED_TIME: Duration = Duration::from_secs(60);

/// Times of the latest such streams on a link, newest first.
#[derive(Debug, Default)]
pub(super) struct Strikes(Mutex<[Option<Instant>; COUNT_MAX]>);

impl Strikes {
    /// Adds a strike; returns whether the link must end.
    pub(super) fn add(&self, now: Instant) -> bool {
        let mut strikes = self.0.lock();
        strikes.rotate_right(1);
        strikes[0] = Some(now);
        let is_fresh = |at: &Option<Instant>| {
            at.is_some_and(|at| now.saturating_duration_since(at) < COUNTED_TIME)
        };
        strikes.iter().all(is_fresh)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_those_of_the_last_minute_end_a_link() {
        let (strikes, began) = (Strikes::default(), Instant::now());
        let at = |seconds| began + Duration::from_secs(seconds);
        for hour in 0..100 {
            assert!(!strikes.add(at(3600 * hour)), "in hour {hour}");
            assert!(!strikes.add(at(3600 * hour + 1)), "in hour {hour}");
        }
        let last = 3600 * 99 + 60;
        assert!(!strikes.add(at(last)), "the first is a minute old");
        assert!(strikes.add(at(last)));
        assert!(strikes.add(at(last + 1)), "and so is each that follows");
    }
}
