//! What the same hour of the last weeks carried, as it was.

use super::WEEK_HOURS;

/// Weeks that are kept.
const WEEK_COUNT: usize = 5;

/// The last weeks, hour by hour.
#[derive(Debug, Clone)]
pub(super) struct Weeks {
    /// Rates of each hour of the week in bytes per second, newest first; hours without a link are left out.
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
    /// What an hour of the week mostly carried: the median of the last weeks, in bytes per second.
    pub(super) fn middle(&self, hour: usize) -> Option<f64> {
        let mut sorted = self.rates[hour].clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().checked_sub(1)?;
        Some(f64::midpoint(sorted[last / 2], sorted[last.div_ceil(2)]))
    }

    /// Takes what an hour of the week carried.
    pub(super) fn observe(&mut self, hour: usize, rate: f64) {
        if rate > 0.0 {
            let rates = &mut self.rates[hour];
            rates.truncate(WEEK_COUNT - 1);
            rates.insert(0, rate);
        }
    }
}
