//! The errors made so far at one lead, and quantiles of them that are adapted to their coverage.

use super::hazard::Tails;
use crate::count::to_f64;
use crate::window::Window;

/// Errors kept: twelve weeks of hours.
const COUNT_MAX: usize = 2016;

/// Number of errors below which the quantiles lean on a normal distribution.
const PRIOR_COUNT: usize = 24;

/// Quantiles 10, 50 and 90 of a normal distribution with a mean absolute value of one.
const PRIOR: [f64; 3] = [-1.6, 0.0, 1.6];

/// The values at shares 0 and 1, where the lines between the prior quantiles end.
const PRIOR_ENDS: [f64; 2] = [-2.0, 2.0];

/// The share of errors that should lie below each quantile.
pub(crate) const SHARES: [f64; 3] = [0.1, 0.5, 0.9];

/// How far one miss moves the share that is asked of the window (adaptive conformal inference), at
/// a lead of one hour. At longer leads misses come in runs as long as the lead, and following them
/// would widen the band when the run is over.
const STEP: f64 = 0.002;

/// How much the tails are widened because few errors are independent. It is small because the
/// rarest errors, those of level shifts, are modelled apart.
const FEW: f64 = 0.25;

/// Halvings in the search for a quantile: precise to a hundredth of a spread for any error that
/// occurs.
const HALVINGS: u32 = 24;

/// A window of errors, in spreads.
#[derive(Debug, Clone)]
pub(crate) struct Errors {
    window: Window,
    /// The shares asked of the window so that the coverage comes out right.
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
    /// Takes an error that was not caused by a shift of the level.
    pub(crate) fn observe(&mut self, error: f64) {
        self.window.observe(error);
    }

    /// Adapts the asked shares to an error.
    pub(crate) fn adapt(&mut self, error: f64, lead_hours: usize, tails: &Tails) {
        let step = STEP / to_f64(lead_hours as u64);
        let below = self.below(error, tails.chance(lead_hours), tails);
        let asked = self.asked_of_few(lead_hours);
        for ((asked, share), few) in self.asked.iter_mut().zip(SHARES).zip(asked) {
            let is_below = f64::from(u8::from(below < few));
            *asked = (*asked + step * (share - is_below)).clamp(0.01, 0.99);
        }
    }

    /// The errors below which these shares lie.
    pub(crate) fn quantiles(&self, shares: [f64; 3], lead_hours: usize, tails: &Tails) -> [f64; 3] {
        let count = self.window.count();
        let weight = to_f64(count as u64) / to_f64((count + PRIOR_COUNT) as u64);
        let chance = tails.chance(lead_hours);
        let asked = self.asked_of_few(lead_hours);
        shares.map(|share| {
            let normal = at(share, PRIOR_ENDS, PRIOR);
            let own = self.quantile(at(share, [0.0, 1.0], asked), chance, tails);
            own.map_or(normal, |own| normal + (own - normal) * weight)
        })
    }

    /// The shares to ask of the window.
    ///
    /// Errors at a long lead come in runs, so few in the window are independent. The tails are
    /// widened as conformal prediction does for so few.
    fn asked_of_few(&self, lead_hours: usize) -> [f64; 3] {
        let apart = to_f64(self.window.count() as u64) / to_f64(lead_hours as u64);
        let shrink = apart / (apart + FEW);
        let [low, middle, high] = self.asked;
        [low * shrink, middle, 1.0 - (1.0 - high) * shrink]
    }

    /// Share of errors below this one, given the probability of a shift.
    fn below(&self, error: f64, chance: f64, tails: &Tails) -> f64 {
        (1.0 - chance) * self.window.below(error) + chance * tails.below(error)
    }

    /// The error below which this share lies.
    fn quantile(&self, share: f64, chance: f64, tails: &Tails) -> Option<f64> {
        if chance <= 0.0 {
            return self.window.quantile(share);
        }
        let (low, high) = tails.bounds();
        let mut low = low.min(self.window.quantile(0.0)?);
        let mut high = high.max(self.window.quantile(1.0)?);
        for _ in 0..HALVINGS {
            let middle = f64::midpoint(low, high);
            if self.below(middle, chance, tails) < share {
                low = middle;
            } else {
                high = middle;
            }
        }
        Some(f64::midpoint(low, high))
    }
}

/// Interpolates linearly between the values at [`SHARES`] and those at shares 0 and 1.
fn at(share: f64, [first, last]: [f64; 2], [low, middle, high]: [f64; 3]) -> f64 {
    let [low_share, middle_share, high_share] = SHARES;
    let ends = [
        ((0.0, first), (low_share, low)),
        ((low_share, low), (middle_share, middle)),
        ((middle_share, middle), (high_share, high)),
        ((high_share, high), (1.0, last)),
    ];
    let line = ends.into_iter().find(|(_, (end, _))| share <= *end);
    let ((from, value), (to, next)) = line.unwrap_or(ends[3]);
    value + (next - value) * (share.clamp(from, to) - from) / (to - from)
}
