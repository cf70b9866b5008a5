//! The profile of the week: the rate of each hour relative to the level, and how far hours deviate
//! from it.

use super::{SPREAD_MIN, WEEK_HOURS};

pub(super) const DAY_HOURS: usize = 24;

/// Working days, Saturday, Sunday.
pub(super) const KIND_COUNT: usize = 3;

/// Weight of the wider group's mean beside the narrower one's own, in hours.
const PRIOR_COUNT: f64 = 2.0;

/// Most hours that a mean remembers; for an hour of the week that is so many weeks.
pub(super) const WEEK_COUNT_MAX: f64 = 6.0;
pub(super) const KIND_COUNT_MAX: f64 = 20.0;
pub(super) const DAY_COUNT_MAX: f64 = 30.0;

/// The spread before anything is known: a third of the level.
const SPREAD_UNKNOWN: f64 = 0.33;

/// Weight, in hours, of the unknown spread beside the mean spread, and of the mean spread beside
/// that of one kind of hour.
const PRIOR_COUNT_SPREAD: f64 = 4.0;
const PRIOR_COUNT_SPREAD_KIND: f64 = 6.0;

/// The largest spread. Beyond twice the level nothing is known anyway.
const SPREAD_MAX: f64 = 2.0;

/// A mean that fades.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Mean {
    value: f64,
    count: f64,
}

impl Mean {
    pub(super) fn observe(&mut self, value: f64, count_max: f64) {
        self.count = (self.count + 1.0).min(count_max);
        // The newer value counts half as much again, because the first ones were measured against a
        // level that was still being found.
        self.value += (value - self.value) * 1.5 / (self.count + 0.5);
    }

    /// The mean combined with `prior`, which counts as `weight` values.
    pub(super) fn beside(self, prior: f64, weight: f64) -> f64 {
        (self.value * self.count + prior * weight) / (self.count + weight)
    }
}

/// The profile: means of the rate as a share of the level, and spreads.
#[derive(Debug, Clone)]
pub(super) struct Profile {
    week: Vec<Mean>,
    kind: Vec<Mean>,
    day: Vec<Mean>,
    spread_kind: Vec<Mean>,
    spread: Mean,
}

impl Default for Profile {
    fn default() -> Self {
        let means = |count| vec![Mean::default(); count];
        Self {
            week: means(WEEK_HOURS),
            kind: means(KIND_COUNT * DAY_HOURS),
            day: means(DAY_HOURS),
            spread_kind: means(KIND_COUNT * DAY_HOURS),
            spread: Mean::default(),
        }
    }
}

impl Profile {
    /// The expected rate of the hour, as a share of the level.
    pub(super) fn mean(&self, hour: usize) -> f64 {
        let day = self.day[hour % DAY_HOURS].beside(1.0, PRIOR_COUNT);
        let kind = self.kind[kind_of(hour)].beside(day, PRIOR_COUNT);
        self.week[hour].beside(kind, PRIOR_COUNT).max(0.0)
    }

    /// How far that hour deviates from its mean, as a share of the level.
    pub(super) fn spread(&self, hour: usize) -> f64 {
        let all = self.spread_mean();
        let kind = self.spread_kind[kind_of(hour)].beside(all, PRIOR_COUNT_SPREAD_KIND);
        kind.clamp(SPREAD_MIN, SPREAD_MAX)
    }

    /// How far hours deviate on average.
    pub(super) fn spread_mean(&self) -> f64 {
        let mean = self.spread.beside(SPREAD_UNKNOWN, PRIOR_COUNT_SPREAD);
        mean.clamp(SPREAD_MIN, SPREAD_MAX)
    }

    /// Makes everything remembered count less, because the link has changed.
    pub(super) fn loosen(&mut self) {
        let means = self.week.iter_mut().map(|mean| (mean, 1.0));
        let means = means.chain(self.kind.iter_mut().map(|mean| (mean, 2.0)));
        let means = means.chain(self.day.iter_mut().map(|mean| (mean, 2.0)));
        let means = means.chain(self.spread_kind.iter_mut().map(|mean| (mean, 3.0)));
        for (mean, count_max) in means {
            mean.count = mean.count.min(count_max);
        }
        self.spread.count = self.spread.count.min(48.0);
    }

    /// Takes an hour. `strayed` is its deviation from the mean and `pulled` the same after
    /// limiting; both as shares of the level.
    pub(super) fn observe(&mut self, hour: usize, pulled: f64, strayed: f64) {
        let value = self.mean(hour) + pulled;
        self.week[hour].observe(value, WEEK_COUNT_MAX);
        self.kind[kind_of(hour)].observe(value, KIND_COUNT_MAX);
        self.day[hour % DAY_HOURS].observe(value, DAY_COUNT_MAX);
        let most = 4.0 * self.spread(hour).max(self.spread_mean());
        let strayed = strayed.abs().min(most);
        self.spread.observe(strayed, 500.0);
        self.spread_kind[kind_of(hour)].observe(strayed.max(SPREAD_MIN), 40.0);
    }
}

/// The index of an hour of the week by kind of day: working day, Saturday or Sunday.
pub(super) const fn kind_of(hour: usize) -> usize {
    let kind = match hour / DAY_HOURS {
        5 => 1,
        6 => 2,
        _ => 0,
    };
    kind * DAY_HOURS + hour % DAY_HOURS
}
