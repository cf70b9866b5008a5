//! How good forecasts were: pinball loss and coverage.

use serde::{Deserialize, Serialize};

use crate::band::Band;

/// The running score of a series of forecasts.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Score {
    /// Forecasts that were compared with what happened.
    pub count: u64,
    /// Mean pinball loss of the three quantiles, in bytes per second.
    pub pinball: f64,
    /// Mean outcome, in bytes per second.
    pub outcome: f64,
    /// Mean distance of p50 from the outcome, in bytes per second.
    pub error: f64,
    /// Share of outcomes above p10; 0.9 is right.
    pub above_p10: f64,
    /// Share of outcomes from p10 to p90; 0.8 is right.
    pub within: f64,
}

/// Outcomes that a score remembers; older ones fade.
pub const COUNT_MAX: u64 = 100_000;

impl Score {
    /// The mean distance of p50 as a share of the mean outcome; `None` without outcomes above zero.
    #[must_use]
    pub fn error_ratio(&self) -> Option<f64> {
        (self.outcome > 0.0).then(|| self.error / self.outcome)
    }

    /// The mean pinball loss as a share of the mean outcome; `None` without outcomes above zero.
    #[must_use]
    pub fn pinball_ratio(&self) -> Option<f64> {
        (self.outcome > 0.0).then(|| self.pinball / self.outcome)
    }

    /// Takes one outcome of a forecast.
    pub fn observe(&mut self, band: &Band, outcome: f64) {
        self.observe_within(band, outcome, COUNT_MAX);
    }

    /// Takes one outcome, with a memory of `count_max` outcomes.
    pub fn observe_within(&mut self, band: &Band, outcome: f64, count_max: u64) {
        self.count = self.count.saturating_add(1);
        let count = self.count.min(count_max).max(1);
        let step = 1.0 / f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        let follow = |mean: &mut f64, value: f64| *mean += (value - *mean) * step;
        let share = |is_so: bool| f64::from(u8::from(is_so));
        follow(&mut self.outcome, outcome);
        follow(&mut self.pinball, pinball(band, outcome));
        follow(&mut self.error, (outcome - band.p50).abs());
        follow(&mut self.above_p10, share(outcome >= band.p10));
        let is_within = outcome >= band.p10 && outcome <= band.p90;
        follow(&mut self.within, share(is_within));
    }
}

/// The mean pinball loss of a band's quantiles. A quantile for share `q` costs `q` per unit that
/// the outcome is above it, and `1 - q` per unit that it is below.
#[must_use]
pub fn pinball(band: &Band, outcome: f64) -> f64 {
    band.quantiles()
        .map(|(share, quantile)| loss(share, quantile, outcome))
        .iter()
        .sum::<f64>()
        / 3.0
}

/// The pinball loss of one quantile that this share of outcomes should lie below.
pub(crate) fn loss(share: f64, quantile: f64, outcome: f64) -> f64 {
    let over = outcome - quantile;
    if over >= 0.0 {
        share * over
    } else {
        (share - 1.0) * over
    }
}
