//! Scores of the next seconds: compares the forecast made at the beginning of a span with the
//! span's mean rate.

use super::{Horizon, SCORE_COUNT};
use crate::band::Band;
use crate::moment::Moment;
use crate::recent::Recent;
use crate::score::Score;

/// A span's mean counts if at least one in this many seconds was measured.
const SEEN_SECONDS: u64 = 6;

/// One horizon's forecast for the current span.
#[derive(Debug, Clone)]
pub(super) struct Soon {
    horizon: Horizon,
    /// The number of the span since 1970.
    number: u64,
    /// The forecast made when the span began.
    band: Option<Band>,
    sum: f64,
    count: u32,
}

impl Soon {
    pub(super) const fn new(horizon: Horizon) -> Self {
        Self {
            horizon,
            number: 0,
            band: None,
            sum: 0.0,
            count: 0,
        }
    }

    pub(super) const fn horizon(&self) -> Horizon {
        self.horizon
    }

    /// Takes the capacity measured in one second of the span.
    pub(super) fn add(&mut self, rate: f64) {
        self.sum += rate;
        self.count = self.count.saturating_add(1);
    }

    /// If the span is over, scores its forecast and makes the next one.
    pub(super) fn turn(&mut self, now: Moment, recent: &Recent, score: &mut Score) {
        let seconds = self.horizon.seconds();
        let number = now.unix_seconds() / seconds;
        if number == self.number {
            return;
        }
        if let Some(band) = self.band
            && number == self.number + 1
            && u64::from(self.count) * SEEN_SECONDS >= seconds
        {
            let outcome = self.sum / f64::from(self.count);
            score.observe_within(&band, outcome, SCORE_COUNT);
        }
        (self.sum, self.count) = (0.0, 0);
        self.number = number;
        self.band = recent.forecast(seconds);
    }
}
