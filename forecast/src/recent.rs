//! The short view: forecasts the next seconds and minutes from the last ones.
//!
//! Several exponential means with different memories run side by side. The jumping means are of
//! logarithms of the rate: they jump when the rate seems to have changed for good, and their errors
//! are measured in the current spread. The staying means are of the rate itself: they never jump,
//! because on some links changes do not last, and their errors are in bytes per second. At each
//! horizon, every mean has a band made of its own past errors there. Which mean is best depends on
//! the link and on the horizon, so the bands are combined per quantile, weighted by how little each
//! mean lost there so far. A horizon that has passed only a few times borrows the errors of the
//! next shorter one. A mixture of well-calibrated bands is not well calibrated itself, so the
//! mixture's own errors correct it.

mod correction;
mod expert;

use std::collections::VecDeque;

use self::correction::Correction;
use self::expert::{Expert, Quantiles, together};
use crate::band::Band;
use crate::count::to_f64;

/// Shares of the newest sample in the jumping means, which are of logarithms.
const JUMPING: [f64; 4] = [1.0, 0.3, 0.1, 0.03];

/// Shares of the newest sample in the staying means, which are of rates: from the last value alone
/// to the last three minutes.
const STAYING: [f64; 7] = [1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.005];

const EXPERT_COUNT: usize = JUMPING.len() + STAYING.len();

/// Index of the jumping mean whose residuals are tested for changes.
const WATCHED: usize = 2;

/// Horizons that are scored, in samples. While the link is full there is one sample per second.
pub const HORIZONS: [usize; 4] = [1, 10, 60, 300];

/// Samples kept: those of the longest horizon.
const SAMPLE_COUNT_MAX: usize = HORIZONS[3];

/// Forecasts that are recorded for scoring while a horizon passes, but at most one per sample.
/// Those between would be much the same.
const NOTES_A_HORIZON: usize = 10;

/// Samples needed before a forecast is made.
pub const SAMPLE_COUNT_MIN: u64 = 10;

/// Lowest rate, in bytes per second; slower samples are raised to it, as logarithms need one above
/// zero.
const RATE_MIN: f64 = 1.0;

/// Highest rate, in bytes per second.
const RATE_MAX: f64 = 1e14;

/// The spread before any sample.
const SPREAD_FIRST: f64 = 0.1;

/// Lowest spread: no link is steadier from second to second.
const SPREAD_MIN: f64 = 0.01;

/// Share of the newest sample in the spread.
const SPREAD_SHARE: f64 = 0.02;

/// Quantiles 10, 50 and 90 of the errors before any is seen, in spreads: those of a normal
/// distribution with a mean absolute value of one.
const ERRORS_FIRST: Quantiles = [-1.6, 0.0, 1.6];

/// How many times a horizon must pass before its own errors weigh as much as those of the next
/// shorter one.
const PASSES: f64 = 7.0;

/// Share of the newest sample in the usual rate, which covers about the last eight minutes.
const USUAL_SHARE: f64 = 0.002;

/// Share by which the highest rate fades towards the usual one: half of the way in twenty minutes.
const HIGHEST_SHARE: f64 = 0.0005;

/// Largest fall below the usual rate, in logarithms: a second that carries next to nothing counts
/// as a fiftieth of the usual.
const FALL_MAX: f64 = 3.9;

/// Page's test for changes, in spreads: a residual beyond `SLACK` adds at most `EVIDENCE_MAX` of
/// evidence, and a change is believed at `ENOUGH`.
const SLACK: f64 = 1.5;
const EVIDENCE_MAX: f64 = 4.0;
const ENOUGH: f64 = 9.0;

/// Number of newest samples whose mean is the new level after a change. One sample alone may be
/// odd.
const CHANGE_COUNT: usize = 3;

/// Weight of the staying means relative to jumping ones with the same losses while no change has
/// been seen. It is small because such a link does not show which kind is better, and its first
/// change must be followed at once.
const STAYING_SHARE: f64 = 0.003;

/// Samples over which changes are remembered; older ones fade.
const CHANGE_MEMORY: f64 = 1000.0;

/// Share by which each error moves a horizon's count of changes. One error after a change does not
/// show how well a mean follows.
const CHANGE_SHARE: f64 = 0.03;

/// Three quantiles for each mean: of its errors, each in its own unit, or of rates.
type OfEach = [Quantiles; EXPERT_COUNT];

/// The last samples of capacity, and the state that forecasts are made from.
#[derive(Debug, Clone)]
pub struct Recent {
    /// The rates, newest first.
    samples: VecDeque<f64>,
    now: Means,
    /// Logarithm of the link's usual rate.
    usual: f64,
    count: u64,
    evidence: [f64; 2],
    horizons: [Horizon; HORIZONS.len()],
}

/// The state of the means at one time. Errors are computed with the state at the time of the
/// forecast, not with a later one: above all, the spread is larger after a change than before it.
#[derive(Debug, Clone, Copy)]
struct Means {
    /// Means of logarithms of the rate.
    jumping: [f64; JUMPING.len()],
    /// Means of the rate, in bytes per second.
    staying: [f64; STAYING.len()],
    /// The current spread: mean absolute residual of the rate's logarithm.
    spread: f64,
    /// Logarithm of the highest rate seen, which fades towards the usual one.
    highest: f64,
    /// Number of changes seen; old ones fade.
    changes: f64,
}

impl Means {
    /// The errors to expect before any is seen.
    fn first_errors(&self) -> OfEach {
        std::array::from_fn(|index| match index.checked_sub(JUMPING.len()) {
            None => ERRORS_FIRST,
            Some(index) => ERRORS_FIRST.map(|error| error * self.spread * self.staying[index]),
        })
    }

    /// The highest rate that is forecast, in bytes per second.
    fn most(&self) -> f64 {
        let highest = self.jumping.iter().copied().fold(self.highest, f64::max);
        highest.exp()
    }

    /// Turns quantiles of errors into quantiles of rates. A rate that the link has never carried is
    /// not forecast, whatever the errors and the spread are.
    fn rates(&self, errors: &OfEach) -> OfEach {
        let most = self.most();
        let highest = most.ln();
        std::array::from_fn(|index| match index.checked_sub(JUMPING.len()) {
            None => errors[index].map(|error| {
                (self.jumping[index] + error * self.spread)
                    .min(highest)
                    .exp()
            }),
            Some(staying) => {
                errors[index].map(|error| (self.staying[staying] + error).clamp(0.0, most))
            }
        })
    }

    /// The error of each mean, given the outcome and its logarithm: in spreads for the jumping
    /// means, in bytes per second for the staying ones.
    fn errors(&self, rate: f64, logarithm: f64) -> [f64; EXPERT_COUNT] {
        std::array::from_fn(|index| match index.checked_sub(JUMPING.len()) {
            None => (logarithm - self.jumping[index]) / self.spread,
            Some(staying) => rate - self.staying[staying],
        })
    }
}

/// How well each mean did at one horizon.
#[derive(Debug, Clone)]
struct Horizon {
    /// The horizon in samples.
    length: usize,
    /// The states that forecasts were made from and whose outcomes are not known yet, oldest first.
    open: VecDeque<Means>,
    experts: [Expert; EXPERT_COUNT],
    /// Moves the ends of the combined band.
    correction: Correction,
    /// Number of errors seen.
    count: u64,
    /// Number of changes that the errors seen so far reflect.
    changes: f64,
}

impl Horizon {
    fn new(length: usize) -> Self {
        Self {
            length,
            open: VecDeque::new(),
            experts: [Expert::default(); EXPERT_COUNT],
            correction: Correction::default(),
            count: 0,
            changes: 0.0,
        }
    }

    /// Samples between two recorded forecasts.
    fn stride(&self) -> usize {
        (self.length / NOTES_A_HORIZON).max(1)
    }

    /// The part of the horizon that passes between two recorded forecasts.
    fn passed(&self) -> f64 {
        to_f64(self.stride() as u64) / to_f64(self.length as u64)
    }

    /// The errors to expect, given those of the next shorter horizon.
    fn errors(&self, shorter: &OfEach) -> OfEach {
        let passed = to_f64(self.count) * self.passed();
        let believed = passed / (passed + PASSES);
        std::array::from_fn(|index| self.experts[index].errors(&shorter[index], believed))
    }

    /// Compares the forecast made one horizon ago with the outcome, if there is one. Losses are
    /// counted with the errors as they are expected now, as if the link had been known then.
    fn score(&mut self, errors: &OfEach, samples: &VecDeque<f64>, lowest: f64) {
        if self.open.len() < self.length / self.stride() {
            return;
        }
        let Some(means) = self.open.pop_front() else {
            return;
        };
        let sum: f64 = samples.iter().take(self.length).sum();
        let rate = sum / to_f64(self.length as u64);
        let rates = means.rates(errors);
        let together = self.together(&rates);
        self.correction.observe(&together, rate, self.passed());
        let errors = means.errors(rate, rate.ln().max(lowest));
        for ((expert, rates), error) in self.experts.iter_mut().zip(&rates).zip(errors) {
            expert.observe(self.count, error, rates, rate);
        }
        self.count += 1;
        self.changes += (means.changes - self.changes) * CHANGE_SHARE;
    }

    /// Combines the bands of all means into one.
    fn together(&self, rates: &OfEach) -> Quantiles {
        let staying = (self.changes + STAYING_SHARE) / (self.changes + 1.0);
        let shares = std::array::from_fn(|index| if index < JUMPING.len() { 1.0 } else { staying });
        together(&self.experts, &shares, rates)
    }
}

impl Default for Recent {
    fn default() -> Self {
        Self {
            samples: VecDeque::new(),
            now: Means {
                jumping: [0.0; JUMPING.len()],
                staying: [0.0; STAYING.len()],
                spread: SPREAD_FIRST,
                highest: 0.0,
                changes: 0.0,
            },
            usual: 0.0,
            count: 0,
            evidence: [0.0; 2],
            horizons: HORIZONS.map(Horizon::new),
        }
    }
}

impl Recent {
    /// Takes the capacity of the last second, in bytes per second.
    pub fn observe(&mut self, rate: f64) {
        let rate = rate.clamp(RATE_MIN, RATE_MAX);
        let mut sample = rate.ln();
        if self.count == 0 {
            self.now.jumping.fill(sample);
            self.now.staying.fill(rate);
            self.now.highest = sample;
            self.usual = sample;
        }
        let lowest = self.usual - FALL_MAX;
        sample = sample.max(lowest);
        self.count += 1;
        self.samples.truncate(SAMPLE_COUNT_MAX - 1);
        self.samples.push_front(rate);
        let count = self.count;
        let is_noted = |horizon: &Horizon| count.is_multiple_of(horizon.stride() as u64);
        let mut errors = self.now.first_errors();
        for horizon in &mut self.horizons {
            errors = horizon.errors(&errors);
            if is_noted(horizon) {
                horizon.score(&errors, &self.samples, lowest);
            }
        }
        self.follow(sample, rate);
        for horizon in &mut self.horizons {
            if is_noted(horizon) {
                horizon.open.push_back(self.now);
            }
        }
    }

    /// Updates the means, the spread and the usual rate with a sample.
    fn follow(&mut self, sample: f64, rate: f64) {
        let residual = sample - self.now.jumping[WATCHED];
        let strayed = residual.abs().min(4.0 * self.now.spread);
        self.now.changes -= self.now.changes / CHANGE_MEMORY;
        if self.has_changed(residual / self.now.spread) {
            self.now.changes += 1.0;
            let newest = self.samples.iter().take(CHANGE_COUNT);
            let count = to_f64(newest.len() as u64);
            let mean = newest.map(|rate| rate.ln()).sum::<f64>() / count;
            self.now.jumping.fill(mean);
        }
        // At first a slow mean is the plain mean of all samples.
        let least = 1.0 / to_f64(self.count);
        let now = &mut self.now;
        now.spread += (strayed - now.spread) * SPREAD_SHARE;
        now.spread = now.spread.max(SPREAD_MIN);
        for (mean, share) in now.jumping.iter_mut().zip(JUMPING) {
            *mean += (sample - *mean) * share;
        }
        for (mean, share) in now.staying.iter_mut().zip(STAYING) {
            *mean += (rate - *mean) * share.max(least);
        }
        self.usual += (sample - self.usual) * USUAL_SHARE.max(least);
        now.highest += (self.usual - now.highest) * HIGHEST_SHARE;
        now.highest = now.highest.max(sample);
    }

    /// Samples taken since the start.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    fn has_changed(&mut self, residual: f64) -> bool {
        for (evidence, sign) in self.evidence.iter_mut().zip([1.0, -1.0]) {
            let more = (sign * residual - SLACK).min(EVIDENCE_MAX);
            *evidence = (*evidence + more).max(0.0);
        }
        let has_changed = self.evidence.iter().any(|evidence| *evidence >= ENOUGH);
        if has_changed {
            self.evidence = [0.0; 2];
        }
        has_changed
    }

    /// The mean rate over the next `seconds`; `None` while too little is known.
    #[must_use]
    pub fn forecast(&self, seconds: u64) -> Option<Band> {
        if self.count < SAMPLE_COUNT_MIN {
            return None;
        }
        let index = HORIZONS.partition_point(|length| (*length as u64) < seconds);
        let index = index.min(HORIZONS.len() - 1);
        let first = self.now.first_errors();
        let known = self.horizons[..=index].iter();
        let errors = known.fold(first, |shorter, horizon| horizon.errors(&shorter));
        let rates = self.now.rates(&errors);
        let horizon = &self.horizons[index];
        let together = horizon.together(&rates);
        let [p10, p50, p90] = horizon.correction.apply(&together, self.now.most());
        Some(Band::new(p10, p50, p90))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pseudo-random numbers, evenly distributed from -1 to 1.
    pub(super) fn noise(index: u64) -> f64 {
        // Without the second step they would be more evenly spread than random numbers are.
        let mixed = (index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40;
        (mixed % 2001) as f64 / 1000.0 - 1.0
    }

    fn rough(index: u64, rate: f64) -> f64 {
        rate * (0.1 * noise(index)).exp()
    }

    #[test]
    fn too_little_says_nothing() {
        let mut recent = Recent::default();
        for _ in 0..9 {
            recent.observe(1e6);
        }
        assert_eq!(recent.forecast(1), None);
        recent.observe(1e6);
        assert!(recent.forecast(1).is_some());
    }

    #[test]
    fn the_band_holds_four_of_five_of_the_next_means() {
        let mut recent = Recent::default();
        let rates: Vec<f64> = (0..4000).map(|index| rough(index, 1e6)).collect();
        for (length, least) in [(1, 0.7), (10, 0.65), (60, 0.6)] {
            let (mut within, mut count) = (0.0, 0.0);
            for (index, rate) in rates.iter().enumerate().take(3900) {
                recent.observe(*rate);
                if index > 600 {
                    let next = &rates[index + 1..=index + length];
                    let outcome = next.iter().sum::<f64>() / length as f64;
                    let band = recent.forecast(length as u64).unwrap();
                    within += f64::from(u8::from(outcome >= band.p10 && outcome <= band.p90));
                    count += 1.0;
                }
            }
            let share = within / count;
            assert!((least..0.95).contains(&share), "{length}: {share}");
        }
    }

    #[test]
    fn a_change_for_good_is_followed_within_seconds() {
        let mut recent = Recent::default();
        for index in 0..600 {
            recent.observe(rough(index, 25e6));
        }
        for index in 600..605 {
            recent.observe(rough(index, 6e6));
        }
        for seconds in [1, 10, 60] {
            let band = recent.forecast(seconds).unwrap();
            assert!((4e6..9e6).contains(&band.p50), "{seconds}: {band:?}");
        }
    }

    /// A link that for a quarter of the time, in runs of half a minute, carries half as much.
    fn with_drops(index: u64) -> f64 {
        let is_low = noise(index / 30) > 0.5;
        rough(index, if is_low { 0.5e6 } else { 1e6 }) * (1.0 + 0.01 * noise(index / 30 + 7))
    }

    #[test]
    fn nine_of_ten_minutes_lie_above_p10_where_others_come_and_go() {
        let mut recent = Recent::default();
        let rates: Vec<f64> = (0..12_000).map(with_drops).collect();
        let (mut above, mut count) = (0.0, 0.0);
        for (index, rate) in rates.iter().enumerate().take(rates.len() - 60) {
            recent.observe(*rate);
            if index > 1000 {
                let outcome = rates[index + 1..=index + 60].iter().sum::<f64>() / 60.0;
                let band = recent.forecast(60).unwrap();
                above += f64::from(u8::from(outcome >= band.p10));
                count += 1.0;
            }
        }
        let share = above / count;
        assert!((0.88..0.92).contains(&share), "{share}");
    }

    #[test]
    fn what_was_never_carried_is_not_promised() {
        let mut recent = Recent::default();
        let mut most = 0.0_f64;
        for index in 0..3000 {
            // First quiet, with steps of many spreads, then rough, so that large spreads meet large
            // errors.
            let level = 1e6 * (1.5 * noise(index / 100)).exp();
            let rough = if index < 2000 { 0.01 } else { 1.0 };
            let rate = level * (rough * noise(index)).exp();
            recent.observe(rate);
            most = most.max(rate);
            for seconds in [1, 10, 60, 300] {
                let p90 = recent.forecast(seconds).map_or(0.0, |band| band.p90);
                assert!(p90 <= most * 1.000_001, "{index}, {seconds}: {p90}");
            }
        }
    }

    #[test]
    fn what_always_came_back_is_expected_back() {
        let mut recent = Recent::default();
        let mut lowest = None;
        for index in 0..6000 {
            // Every two minutes the rate falls to a third and recovers within a minute.
            let since = (index % 120) as f64;
            let down = 1.0 - 0.67 * (-since / 20.0).exp();
            recent.observe(rough(index, 1e6) * down);
            if index > 5000 && index % 120 == 3 {
                lowest = recent.forecast(60);
            }
        }
        // At that time it carries some 450 kB/s, and 770 kB/s on average in the minute that
        // follows.
        let band = lowest.unwrap();
        assert!(band.p50 > 0.6e6, "{band:?}");
    }

    #[test]
    fn what_stays_for_good_is_not_expected_back() {
        let mut recent = Recent::default();
        for index in 0..6000 {
            // Another rate every five minutes.
            let level = 1e6 * noise(index / 300).exp();
            recent.observe(level * (0.02 * noise(index)).exp());
            if index > 3000 && index % 300 == 100 {
                let band = recent.forecast(60).unwrap();
                let part = band.p50 / level;
                assert!((0.9..1.1).contains(&part), "{index}: {part} of {level}");
            }
        }
    }

    #[test]
    fn errors_count_in_the_spread_they_were_forecast_with() {
        let mut said = Recent::default().now;
        said.jumping.fill(10.0);
        said.staying.fill(1e4);
        said.spread = 0.1;
        let mut horizon = Horizon::new(1);
        let known = said.first_errors();
        // A fall by 0.2 after each quiet second, forecast with a spread of 0.1.
        for _ in 0..500 {
            horizon.open.push_back(said);
            horizon.score(&known, &VecDeque::from([9.8_f64.exp()]), 6.0);
        }
        let [_, p50, _] = horizon.errors(&known)[WATCHED];
        assert!((p50 + 2.0).abs() < 0.2, "{p50}");
    }

    #[test]
    fn noise_makes_slow_means_best_and_steps_make_fast_ones_best() {
        let mut steady = Recent::default();
        let mut wandering = Recent::default();
        let mut level = 0.0;
        for index in 0..2000 {
            steady.observe(rough(index, 1e6));
            level += 0.1 * noise(index);
            wandering.observe(1e6 * f64::exp(level));
        }
        // Each mean forecasts its own share, so the result shows which means have the weight.
        let shares: Vec<f64> = JUMPING.iter().chain(&STAYING).copied().collect();
        let said: OfEach = std::array::from_fn(|index| [shares[index]; 3]);
        let follows = |recent: &Recent| recent.horizons[1].together(&said)[1];
        let (slow, fast) = (follows(&steady), follows(&wandering));
        assert!(slow < 0.5 * fast, "{slow} and {fast}");
    }

    #[test]
    fn a_line_of_a_few_minutes_has_a_band_for_the_next_one() {
        let mut recent = Recent::default();
        for index in 0..120 {
            recent.observe(rough(index, 1e6));
        }
        for seconds in [1, 10, 60, 300] {
            let band = recent.forecast(seconds).unwrap();
            assert!(band.p10 > 0.85e6 && band.p10 < band.p50, "{band:?}");
            assert!(band.p90 < 1.15e6 && band.p90 > band.p50, "{band:?}");
        }
    }

    #[test]
    fn what_is_kept_does_not_grow() {
        let mut recent = Recent::default();
        let kept = |recent: &Recent| {
            let open = recent.horizons.iter().map(|horizon| horizon.open.len());
            open.max().unwrap().max(recent.samples.len() / 30)
        };
        for index in 0..5000 {
            recent.observe(rough(index, 1e6));
            assert!(kept(&recent) <= NOTES_A_HORIZON, "{index}");
        }
    }
}
