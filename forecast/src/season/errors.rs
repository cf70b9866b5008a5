//! The errors made so far at one lead, and quantiles of them that keep to their coverage.

use crate::window::Window;

/// Errors kept: twelve weeks of hours.
const COUNT_MAX: usize = 2016;

/// Errors below which the quantiles lean on a normal spread.
const PRIOR_COUNT: usize = 24;

/// Quantiles 10, 50 and 90 of a normal spread of mean absolute value one.
const PRIOR: [f64; 3] = [-1.6, 0.0, 1.6];

/// The shares of errors that shall lie below each quantile.
const SHARES: [f64; 3] = [0.1, 0.5, 0.9];

/// How far one miss moves the share that is asked of the window (adaptive conformal inference), at a lead
/// of one hour. At longer leads misses come in runs as long as the lead: to follow them would be to
/// widen the band when the run is over.
const STEP: f64 = 0.002;

/// A window of errors, in spreads.
#[derive(Debug, Clone)]
pub(crate) struct Errors {
    window: Window,
    /// What is asked of the window so that the shares come out right.
    asked: [f64; 3],
}

impl Default for Errors {
    fn default() -> Self {
        Self {
            window: Window::new(COUNT_MAX),
            asked: SHARES,
        }
    }
}

impl Errors {
    pub(crate) fn observe(&mut self, error: f64, lead_hours: usize) {
        let step = STEP / super::hours(lead_hours);
        let quantiles = self.quantiles(lead_hours);
        for ((asked, share), quantile) in self.asked.iter_mut().zip(SHARES).zip(quantiles) {
            let is_below = f64::from(u8::from(error < quantile));
            *asked = (*asked + step * (share - is_below)).clamp(0.01, 0.99);
        }
        self.window.observe(error);
    }

    /// Quantiles 10, 50 and 90.
    ///
    /// Errors at a long lead come in runs, so that a window holds few that tell of each other; the
    /// tails are widened as conformal prediction does for so few.
    pub(crate) fn quantiles(&self, lead_hours: usize) -> [f64; 3] {
        let count = self.window.count();
        let apart = super::hours(count) / super::hours(lead_hours);
        let shrink = apart / (apart + 1.0);
        let weight = super::hours(count) / super::hours(count + PRIOR_COUNT);
        let mut quantiles = PRIOR;
        let [low, middle, high] = self.asked;
        let asked = [low * shrink, middle, 1.0 - (1.0 - high) * shrink];
        for (quantile, asked) in quantiles.iter_mut().zip(asked) {
            if let Some(own) = self.window.quantile(asked) {
                *quantile += (own - *quantile) * weight;
            }
        }
        quantiles
    }
}
