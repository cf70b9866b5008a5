//! The probability that an hour of the week has no link at all.
//!
//! ```text
//!  three fading rates   of all hours | of the hour of the kind of day | of the hour of the week
//!  the probability      their mean, weighted by how well each predicted the outages (Bayes)
//! ```
//!
//! A peer that is off at night shows within days that the hour matters. A line that fails at random
//! shows that it does not: then one outage is no reason to expect another a week later.

use super::profile::{
    DAY_COUNT_MAX, DAY_HOURS, KIND_COUNT, KIND_COUNT_MAX, Mean, WEEK_COUNT_MAX, kind_of,
};
use super::{OUTAGE_HOURS_MAX, WEEK_HOURS};

/// Hours that the rate of all hours remembers: twelve weeks.
const ALL_COUNT_MAX: f64 = 2016.0;

/// Hours with a link that are assumed before anything is known.
const ASSUMED_HOURS: f64 = 24.0;

/// Weight of the wider group's rate beside the narrower one's own, in hours.
const PRIOR_COUNT: f64 = 0.5;

/// Factor by which the evidence fades per hour: a memory of twelve weeks.
const MEMORY: f64 = 1.0 - 1.0 / 2016.0;

/// Hours of one outage that count as evidence. Later ones repeat and say nothing about the time of
/// day.
const TELLING_HOURS_MAX: u32 = 24;

/// Lowest probability that a prediction counts with: one surprise must not undo weeks of evidence.
const CHANCE_MIN: f64 = 0.002;

/// Number of rates that are combined.
const RATE_COUNT: usize = 3;

/// Statistics of hours without a link.
#[derive(Debug, Clone)]
pub(super) struct Downtime {
    all: Mean,
    day: Vec<Mean>,
    kind: Vec<Mean>,
    week: Vec<Mean>,
    /// The logarithm of how well each rate predicted, the widest group first.
    evidence: [f64; RATE_COUNT],
}

impl Default for Downtime {
    fn default() -> Self {
        Self {
            all: Mean::default(),
            day: vec![Mean::default(); DAY_HOURS],
            kind: vec![Mean::default(); KIND_COUNT * DAY_HOURS],
            week: vec![Mean::default(); WEEK_HOURS],
            evidence: [0.0; RATE_COUNT],
        }
    }
}

impl Downtime {
    /// Takes an hour of the week. `away_hours` is the number of hours in a row without a link that
    /// end with it; 0 if there was one.
    pub(super) fn observe(&mut self, hour: usize, away_hours: u32) {
        let is_down = away_hours > 0;
        if away_hours <= TELLING_HOURS_MAX {
            let rates = self.rates(hour);
            for (evidence, rate) in self.evidence.iter_mut().zip(rates) {
                let rate = rate.clamp(CHANCE_MIN, 1.0 - CHANCE_MIN);
                let foretold = if is_down { rate } else { 1.0 - rate };
                *evidence = *evidence * MEMORY + foretold.ln();
            }
        }
        let value = f64::from(u8::from(is_down));
        // A link that is away for days says no more about the days when it is there. Weekends do
        // come again.
        if away_hours <= OUTAGE_HOURS_MAX {
            self.all.observe(value, ALL_COUNT_MAX);
            self.day[hour % DAY_HOURS].observe(value, DAY_COUNT_MAX);
            self.kind[kind_of(hour)].observe(value, KIND_COUNT_MAX);
        }
        if usize::try_from(away_hours).is_ok_and(|hours| hours <= WEEK_HOURS) {
            self.week[hour].observe(value, WEEK_COUNT_MAX);
        }
    }

    /// The probability that an hour of the week has no link.
    pub(super) fn chance(&self, hour: usize) -> f64 {
        let best = self.evidence.into_iter().fold(f64::NEG_INFINITY, f64::max);
        let mut sums = (0.0, 0.0);
        for (evidence, rate) in self.evidence.into_iter().zip(self.rates(hour)) {
            let weight = (evidence - best).exp();
            sums = (sums.0 + weight * rate, sums.1 + weight);
        }
        sums.0 / sums.1
    }

    /// The rates for an hour of the week, the widest group first.
    fn rates(&self, hour: usize) -> [f64; RATE_COUNT] {
        let all = self.all.beside(0.0, ASSUMED_HOURS);
        let day = self.day[hour % DAY_HOURS].beside(all, PRIOR_COUNT);
        let kind = self.kind[kind_of(hour)].beside(day, PRIOR_COUNT);
        let week = self.week[hour].beside(kind, PRIOR_COUNT);
        [all, kind, week]
    }
}
