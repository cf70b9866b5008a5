//! The rates of the same hour in the last weeks, unmodified.

use super::WEEK_HOURS;

/// Weeks that are kept.
const WEEK_COUNT: usize = 5;

/// The last weeks, by hour of the week.
#[derive(Debug, Clone)]
pub(super) struct Weeks {
    /// Rates of each hour of the week in bytes per second, newest first, without hours that had no
    /// link.
    rates: Vec<Vec<f64>>,
}

impl Default for Weeks {
    fn default() -> Self {
        Self {
            rates: vec![Vec::new(); WEEK_HOURS],
        }
    }
}

impl Weeks {
    /// The usual rate of an hour of the week: the median of the last weeks, in bytes per second.
    pub(super) fn middle(&self, hour: usize) -> Option<f64> {
        let mut sorted = self.rates[hour].clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().checked_sub(1)?;
        Some(f64::midpoint(sorted[last / 2], sorted[last.div_ceil(2)]))
    }

    /// Takes the rate of an hour of the week.
    pub(super) fn observe(&mut self, hour: usize, rate: f64) {
        if rate > 0.0 {
            let rates = &mut self.rates[hour];
            rates.truncate(WEEK_COUNT - 1);
            rates.insert(0, rate);
        }
    }
}
