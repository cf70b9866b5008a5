//! The errors made so far at one lead, and quantiles of them that keep to their coverage.

use std::collections::VecDeque;

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
    newest: VecDeque<f64>,
    sorted: Vec<f64>,
    /// What is asked of the window so that the shares come out right.
    asked: [f64; 3],
}

impl Default for Errors {
    fn default() -> Self {
        Self {
            newest: VecDeque::new(),
            sorted: Vec::new(),
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
        if self.newest.len() == COUNT_MAX
            && let Some(oldest) = self.newest.pop_back()
        {
            let at = self.sorted.partition_point(|other| *other < oldest);
            self.sorted.remove(at);
        }
        self.newest.push_front(error);
        let at = self.sorted.partition_point(|other| *other < error);
        self.sorted.insert(at, error);
    }

    /// Quantiles 10, 50 and 90.
    ///
    /// Errors at a long lead come in runs, so that a window holds few that tell of each other; the
    /// tails are widened as conformal prediction does for so few.
    pub(crate) fn quantiles(&self, lead_hours: usize) -> [f64; 3] {
        let count = self.sorted.len();
        let apart = super::hours(count) / super::hours(lead_hours);
        let shrink = apart / (apart + 1.0);
        let weight = super::hours(count) / super::hours(count + PRIOR_COUNT);
        let mut quantiles = PRIOR;
        let [low, middle, high] = self.asked;
        let asked = [low * shrink, middle, 1.0 - (1.0 - high) * shrink];
        for (quantile, asked) in quantiles.iter_mut().zip(asked) {
            if let Some(own) = quantile_of(&self.sorted, asked) {
                *quantile += (own - *quantile) * weight;
            }
        }
        quantiles
    }
}

/// A quantile of sorted values, between the two nearest.
fn quantile_of(sorted: &[f64], share: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let place = share.clamp(0.0, 1.0) * super::hours(last);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between nothing and the window's length"
    )]
    let below = (place as usize).min(last);
    let above = (below + 1).min(last);
    let part = place - super::hours(below);
    Some(sorted[below] + (sorted[above] - sorted[below]) * part)
}
