//! The short view: what the next seconds and minutes will carry, from the last ones.
//!
//! Means that forget at different speeds run side by side, each twice: one jumps when the rate seems to
//! have changed for good, the other never does, for on some links such changes do not last. Which of them
//! does best depends on the link and on how far ahead is asked, so each is scored at each horizon and
//! the better it did the more it counts; the band is made of the errors all of them made together.

use std::collections::VecDeque;

use crate::band::Band;
use crate::season::errors::Errors;
use crate::season::hazard::Tails;

/// Shares of the newest sample in the means, from the last value to minutes.
const SHARES: [f64; 5] = [1.0, 0.3, 0.1, 0.03, 0.01];

/// Each of them with jumps and without.
const MEAN_COUNT: usize = 2 * SHARES.len();

/// The mean that changes are told from.
const WATCHED: usize = 2;

/// How far ahead is scored, in samples, which come each second while the link is full.
pub const HORIZONS: [usize; 4] = [1, 10, 60, 300];

/// Samples kept: the longest horizon and the one before it.
const SAMPLE_COUNT_MAX: usize = HORIZONS[3] + 1;

/// Samples before anything is said.
pub const SAMPLE_COUNT_MIN: u64 = 10;

/// Least rate that is looked at, in bytes per second: logarithms need one.
const RATE_MIN: f64 = 1.0;

/// Least spread: no link is steadier within a second.
const SPREAD_MIN: f64 = 0.01;

/// Share by which the spread follows.
const SPREAD_SHARE: f64 = 0.02;

/// Samples that losses remember, and horizons beside them: samples within one are much alike.
const LOSS_COUNT_MIN: usize = 600;
const LOSS_HORIZONS: usize = 10;

/// How much more the better means count: one whose errors are a tenth larger counts a third.
const FAVOUR: i32 = 6;

/// How much the means that never jump count beside those that do, as long as they are as good: a link that
/// has never changed says nothing of either, and a change is to be followed at once.
const STAYING_SHARE: f64 = 0.3;

/// Mean squares of errors that are as good as none.
const LOSS_MIN: f64 = 1e-6;

/// A change is believed after so much evidence beyond the slack, in spreads (Page's test).
const SLACK: f64 = 1.5;
const EVIDENCE_MAX: f64 = 4.0;
const ENOUGH: f64 = 9.0;

type Means = [f64; MEAN_COUNT];

/// The last samples of capacity, and what they say of the next.
#[derive(Debug, Clone)]
pub struct Recent {
    /// The rates, newest first.
    samples: VecDeque<f64>,
    /// What the means were after each of them.
    past: VecDeque<Means>,
    means: Means,
    spread: f64,
    count: u64,
    evidence: [f64; 2],
    horizons: Vec<Horizon>,
}

/// How well the means did at one horizon.
#[derive(Debug, Clone, Default)]
struct Horizon {
    /// Mean squares of the errors: medians would follow each step of what comes and goes.
    losses: Means,
    count: usize,
    errors: Errors,
}

impl Horizon {
    /// What the means say together.
    fn blend(&self, means: &Means) -> f64 {
        let least = self.losses.iter().copied().fold(f64::INFINITY, f64::min);
        let (mut sum, mut weights) = (0.0, 0.0);
        for (index, (loss, mean)) in self.losses.iter().zip(means).enumerate() {
            let is_jumping = index < SHARES.len();
            let share = if is_jumping { 1.0 } else { STAYING_SHARE };
            let weight = share * ((least + LOSS_MIN) / (loss + LOSS_MIN)).powi(FAVOUR);
            sum += weight * mean;
            weights += weight;
        }
        sum / weights
    }

    /// Compares what the means said a horizon ago with what came.
    fn score(&mut self, means: &Means, outcome: f64, spread: f64, length: usize) {
        let error = (outcome - self.blend(means)) / spread;
        self.errors.adapt(error, length, &Tails::default());
        self.errors.observe(error);
        self.count = (self.count + 1).min(LOSS_COUNT_MIN + LOSS_HORIZONS * length);
        for (loss, mean) in self.losses.iter_mut().zip(means) {
            *loss += ((outcome - mean).powi(2) - *loss) / count_of(self.count);
        }
    }
}

impl Default for Recent {
    fn default() -> Self {
        Self {
            samples: VecDeque::new(),
            past: VecDeque::new(),
            means: Means::default(),
            spread: 0.1,
            count: 0,
            evidence: [0.0; 2],
            horizons: vec![Horizon::default(); HORIZONS.len()],
        }
    }
}

impl Recent {
    /// Takes the capacity of the last second, in bytes per second.
    pub fn observe(&mut self, rate: f64) {
        let rate = rate.clamp(RATE_MIN, 1e14);
        let sample = rate.ln();
        if self.count == 0 {
            self.means = [sample; MEAN_COUNT];
        }
        self.count += 1;
        self.samples.truncate(SAMPLE_COUNT_MAX - 1);
        self.samples.push_front(rate);
        self.score();
        let residual = sample - self.means[WATCHED];
        let strayed = residual.abs().min(4.0 * self.spread);
        if self.has_changed(residual / self.spread) {
            // The last three samples are the change; one of them alone may be odd.
            let newest: Vec<f64> = self.samples.iter().take(3).map(|rate| rate.ln()).collect();
            let mean = newest.iter().sum::<f64>() / count_of(newest.len());
            self.means[..SHARES.len()].fill(mean);
        }
        self.spread += (strayed - self.spread) * SPREAD_SHARE;
        self.spread = self.spread.max(SPREAD_MIN);
        for (mean, share) in self.means.iter_mut().zip(SHARES.iter().cycle()) {
            *mean += (sample - *mean) * share;
        }
        self.past.truncate(SAMPLE_COUNT_MAX - 1);
        self.past.push_front(self.means);
    }

    /// Samples taken since the start.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Compares what was said of the last samples with them.
    fn score(&mut self) {
        for (horizon, length) in self.horizons.iter_mut().zip(HORIZONS) {
            let Some(means) = self.past.get(length - 1) else {
                continue;
            };
            let sum: f64 = self.samples.iter().take(length).sum();
            let outcome = (sum / count_of(length)).ln();
            horizon.score(means, outcome, self.spread, length);
        }
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

    /// The mean rate over so many seconds to come; `None` while too little is known.
    #[must_use]
    pub fn forecast(&self, seconds: u64) -> Option<Band> {
        if self.count < SAMPLE_COUNT_MIN {
            return None;
        }
        let index = HORIZONS.partition_point(|length| (*length as u64) < seconds);
        let index = index.min(HORIZONS.len() - 1);
        let (horizon, length) = (&self.horizons[index], HORIZONS[index]);
        let mean = horizon.blend(&self.means);
        let [p10, p50, p90] = horizon
            .errors
            .quantiles(length, &Tails::default())
            .map(|error| (mean + error * self.spread).exp());
        Some(Band::new(p10, p50, p90))
    }
}

fn count_of(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that look random, from -1 to 1.
    fn noise(index: u64) -> f64 {
        let mixed = (index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 44;
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
        // The slow ones far from the fast ones: whom does the blend follow?
        let means: Means = std::array::from_fn(|index| SHARES[index % SHARES.len()]);
        let follows = |recent: &Recent| recent.horizons[1].blend(&means);
        let (slow, fast) = (follows(&steady), follows(&wandering));
        assert!(slow < 0.5 * fast, "{slow} and {fast}");
    }
}
