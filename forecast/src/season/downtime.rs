//! How likely there is no link at all in an hour of the week.
//!
//! ```text
//!  three rates that forget   of all hours | of an hour of the kind of day | of an hour of the week
//!  the chance                 their mean, by how well each foretold the outages so far (Bayes)
//! ```
//!
//! A peer that is off at night teaches within days that the hour tells; a line that fails at random, that no hour does:
//! then one outage is no reason to expect the next a week later.

use super::profile::{
    DAY_COUNT_MAX, DAY_HOURS, KIND_COUNT, KIND_COUNT_MAX, Mean, WEEK_COUNT_MAX, kind_of,
};
use super::{OUTAGE_HOURS_MAX, WEEK_HOURS};

/// Hours that the rate of all hours remembers at most: twelve weeks.
const ALL_COUNT_MAX: f64 = 2016.0;

/// Hours with a link that are assumed before anything is known.
const ASSUMED_HOURS: f64 = 24.0;

/// Hours that what the wider group says is worth beside the narrower one's own.
const PRIOR_COUNT: f64 = 0.5;

/// How much what was foretold still counts an hour later: twelve weeks.
const MEMORY: f64 = 1.0 - 1.0 / 2016.0;

/// Hours of one outage that tell which rate foretells: what repeats within it says nothing of the time of day.
const TELLING_HOURS_MAX: u32 = 24;

/// The smallest chance that a rate is held to have given: one surprise shall not undo weeks.
const CHANCE_MIN: f64 = 0.002;

/// Rates that are asked.
const RATE_COUNT: usize = 3;

/// What is known of hours without a link.
#[derive(Debug, Clone)]
pub(super) struct Downtime {
    all: Mean,
    day: Vec<Mean>,
    kind: Vec<Mean>,
    week: Vec<Mean>,
    /// The logarithm of how well each rate foretold, the widest group first.
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
    /// Takes an hour: the last of so many in a row without a link, or of none.
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
        // A link that is away for days says no more of the days in which it is there; weekends come again.
        if away_hours <= OUTAGE_HOURS_MAX {
            self.all.observe(value, ALL_COUNT_MAX);
            self.day[hour % DAY_HOURS].observe(value, DAY_COUNT_MAX);
            self.kind[kind_of(hour)].observe(value, KIND_COUNT_MAX);
        }
        if usize::try_from(away_hours).is_ok_and(|hours| hours <= WEEK_HOURS) {
            self.week[hour].observe(value, WEEK_COUNT_MAX);
        }
    }

    /// The chance that there is no link in an hour of the week.
    pub(super) fn chance(&self, hour: usize) -> f64 {
        let best = self.evidence.into_iter().fold(f64::NEG_INFINITY, f64::max);
        let mut sums = (0.0, 0.0);
        for (evidence, rate) in self.evidence.into_iter().zip(self.rates(hour)) {
            let weight = (evidence - best).exp();
            sums = (sums.0 + weight * rate, sums.1 + weight);
        }
        sums.0 / sums.1
    }

    /// What each rate gives for an hour of the week, the widest group first.
    fn rates(&self, hour: usize) -> [f64; RATE_COUNT] {
        let all = self.all.beside(0.0, ASSUMED_HOURS);
        let day = self.day[hour % DAY_HOURS].beside(all, PRIOR_COUNT);
        let kind = self.kind[kind_of(hour)].beside(day, PRIOR_COUNT);
        let week = self.week[hour].beside(kind, PRIOR_COUNT);
        [all, kind, week]
    }
}
