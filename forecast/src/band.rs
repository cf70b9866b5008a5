//! The forecast of one rate, as three quantiles.

use serde::{Deserialize, Serialize};

/// Quantiles of a rate, in bytes per second. They never cross and are never negative.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Band {
    /// The rate is above this with a probability of 90 %.
    pub p10: f64,
    /// The median: the rate is as likely above as below.
    pub p50: f64,
    /// The rate is below this with a probability of 90 %.
    pub p90: f64,
}

impl Band {
    /// A band of three quantiles. Crossing ones are put in order around p50; NaN and negative
    /// values become zero.
    #[must_use]
    pub fn new(p10: f64, p50: f64, p90: f64) -> Self {
        let p50 = p50.max(0.0);
        Self {
            p10: p10.max(0.0).min(p50),
            p50,
            p90: p90.max(p50),
        }
    }

    /// The quantiles, each with the share of outcomes that should lie below it.
    #[must_use]
    pub const fn quantiles(&self) -> [(f64, f64); 3] {
        [(0.1, self.p10), (0.5, self.p50), (0.9, self.p90)]
    }

    /// Applies a function to each quantile.
    #[must_use]
    pub fn map(self, change: impl Fn(f64) -> f64) -> Self {
        Self::new(change(self.p10), change(self.p50), change(self.p90))
    }
}
