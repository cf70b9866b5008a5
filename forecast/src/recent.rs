//! The short view: what the next seconds and minutes will carry, from the last ones.
//!
//! Means that forget at different speeds run side by side. Which of them does best depends on the link
//! and on how far ahead is asked, so each is scored at each horizon and the best so far answers; the
//! band is made of the errors it made. When the rate changes for good, all means jump to the new one.

use std::collections::VecDeque;

use crate::band::Band;
use crate::season::errors::Errors;
use crate::season::hazard::Tails;

/// Shares of the newest sample in the means, from the last value to about a minute.
const SHARES: [f64; 4] = [1.0, 0.3, 0.1, 0.03];

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

/// Share by which losses and the spread follow.
const LOSS_SHARE: f64 = 0.02;

/// A change is believed after so much evidence beyond the slack, in spreads (Page's test).
const SLACK: f64 = 1.5;
const EVIDENCE_MAX: f64 = 4.0;
const ENOUGH: f64 = 9.0;

type Means = [f64; SHARES.len()];

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

/// How well each mean did at one horizon.
#[derive(Debug, Clone, Default)]
struct Horizon {
    losses: Means,
    errors: Errors,
}

impl Horizon {
    fn best(&self) -> usize {
        let all = 0..SHARES.len();
        all.min_by(|a, b| self.losses[*a].total_cmp(&self.losses[*b]))
            .unwrap_or(WATCHED)
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
            self.means = [sample; SHARES.len()];
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
            self.means = [mean; SHARES.len()];
        }
        self.spread += (strayed - self.spread) * LOSS_SHARE;
        self.spread = self.spread.max(SPREAD_MIN);
        for (mean, share) in self.means.iter_mut().zip(SHARES) {
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
            let best = horizon.best();
            let error = (outcome - means[best]) / self.spread;
            horizon.errors.adapt(error, length, &Tails::default());
            horizon.errors.observe(error);
            for (loss, mean) in horizon.losses.iter_mut().zip(means) {
                *loss += ((outcome - mean).abs() - *loss) * LOSS_SHARE;
            }
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
        let mean = self.means[horizon.best()];
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
        assert!(steady.horizons[1].best() > wandering.horizons[1].best());
    }
}
