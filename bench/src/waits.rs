//! Quantiles of round trips that were requested on a schedule, with those that a slow one held
//! back.

use std::time::Duration;

/// Round trips in milliseconds, each with the time it was requested.
#[derive(Debug, Default)]
pub struct Waits(Vec<(Duration, f64)>);

impl Waits {
    /// Adds a round trip, and the ones that could not be requested while it lasted, with the waits
    /// they would have had. So a long wait counts for all of its time, rather than as one sample in
    /// a hundred (coordinated omission).
    pub fn add(&mut self, asked: Duration, wait_ms: f64, pause: Duration) {
        let pause_ms = pause.as_secs_f64() * 1e3;
        let (mut asked, mut wait_ms) = (asked, wait_ms);
        loop {
            self.0.push((asked, wait_ms));
            asked += pause;
            wait_ms -= pause_ms;
            if wait_ms <= pause_ms {
                return;
            }
        }
    }

    /// Adds all the round trips of another series.
    pub fn join(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// The quantile `part` of the round trips.
    #[must_use]
    pub fn part(&self, part: f64) -> f64 {
        self.part_from(Duration::ZERO, part)
    }

    /// The quantile `part` of the round trips requested at or after `from`.
    #[must_use]
    pub fn part_from(&self, from: Duration, part: f64) -> f64 {
        let late = self.0.iter().filter(|(asked, _)| *asked >= from);
        let mut waits: Vec<f64> = late.map(|(_, wait)| *wait).collect();
        waits.sort_by(f64::total_cmp);
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_precision_loss,
            clippy::cast_sign_loss,
            reason = "an index among thousands"
        )]
        let index = (waits.len() as f64 * part) as usize;
        let index = index.min(waits.len().saturating_sub(1));
        waits.get(index).copied().unwrap_or(f64::NAN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_millis(10);

    #[test]
    fn one_that_waits_long_stands_for_all_that_were_not_asked_for() {
        let mut waits = Waits::default();
        for asked in 0..90 {
            waits.add(PAUSE * asked, 1.0, PAUSE);
        }
        // The link stands still for a tenth of the time, so a tenth of the requests would have
        // waited.
        waits.add(PAUSE * 90, 100.0, PAUSE);
        assert!(waits.part(0.5) < 2.0, "{waits:?}");
        assert!(waits.part(0.95) > 30.0, "{waits:?}");
        assert!(waits.part(1.0) > 99.0, "{waits:?}");
    }

    #[test]
    fn those_asked_for_later_are_told_apart() {
        let mut waits = Waits::default();
        waits.add(Duration::ZERO, 9.0, PAUSE);
        waits.add(PAUSE, 1.0, PAUSE);
        let mut beside = Waits::default();
        beside.add(PAUSE * 2, 2.0, PAUSE);
        waits.join(beside);
        assert!((waits.part(1.0) - 9.0).abs() < 0.1, "{waits:?}");
        assert!((waits.part_from(PAUSE, 1.0) - 2.0).abs() < 0.1, "{waits:?}");
        assert!(Waits::default().part(0.5).is_nan());
    }
}
