//! Scores of the next seconds: what was forecast of a span of the clock as it began, beside what came in it.

use super::{Horizon, SCORE_COUNT};
use crate::band::Band;
use crate::moment::Moment;
use crate::recent::Recent;
use crate::score::Score;

/// The part of a span that has to be seen for its mean to be an outcome: one second of so many.
const SEEN_SECONDS: u64 = 6;

/// One horizon's forecast whose span is not over.
#[derive(Debug, Clone)]
pub(super) struct Soon {
    horizon: Horizon,
    /// The number of the span since 1970.
    number: u64,
    /// What was forecast of it as it began.
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

    /// Takes the capacity of a second of the span.
    pub(super) fn add(&mut self, rate: f64) {
        self.sum += rate;
        self.count = self.count.saturating_add(1);
    }

    /// Scores the forecast if its span is over, and forecasts the next.
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
