//! The short view: what the next seconds and minutes will carry, from the last ones.
//!
//! Means that forget at different speeds run side by side, each twice: one jumps when the rate seems to
//! have changed for good, the other never does, for on some links such changes do not last. Which of them
//! does best depends on the link and on how far ahead is asked, so each is scored at each horizon and
//! the better it did the more it counts. What they say together is seen in four ways: as what stays or as
//! what will in part have returned to what the link is used to, and as rough as just now or as always. Each
//! has a band made of the errors it made, and counts at each quantile by how well it did there.

use std::collections::VecDeque;

use crate::band::Band;
use crate::score::loss;
use crate::season::errors::{Errors, SHARES as SHARES_BELOW};
use crate::season::hazard::Tails;

/// Shares of the newest sample in the means, from the last value to minutes.
const SHARES: [f64; 5] = [1.0, 0.3, 0.1, 0.03, 0.01];

/// Each of them with jumps and without.
const MEAN_COUNT: usize = 2 * SHARES.len();

/// The mean that changes are told from.
const WATCHED: usize = 2;

/// How far ahead is scored, in samples, which come each second while the link is full.
pub const HORIZONS: [usize; 4] = [1, 10, 60, 300];

/// Samples kept: the longest horizon.
const SAMPLE_COUNT_MAX: usize = HORIZONS[3];

/// Samples before anything is said.
pub const SAMPLE_COUNT_MIN: u64 = 10;

/// Least rate that is looked at, in bytes per second: logarithms need one.
const RATE_MIN: f64 = 1.0;

/// Most that is looked at, in bytes per second.
const RATE_MAX: f64 = 1e14;

/// The spread before any is seen.
const SPREAD_FIRST: f64 = 0.1;

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

/// Share of the newest sample in what the link is used to: of the last eight minutes, more or less.
const USUAL_SHARE: f64 = 0.002;

/// Share by which the highest rate seen fades into the usual one: half of it in twenty minutes.
const HIGHEST_SHARE: f64 = 0.0005;

/// A second that carries next to nothing counts as a fiftieth of the usual, in logarithms.
const FALL_MAX: f64 = 3.9;

/// Ways to see what the means say: it stays or returns in part; as rough as now or as always.
const VIEWS: [(Way, Roughness); 4] = [
    (Way::Stays, Roughness::Now),
    (Way::Returns, Roughness::Now),
    (Way::Stays, Roughness::Always),
    (Way::Returns, Roughness::Always),
];
const VIEW_COUNT: usize = VIEWS.len();

#[derive(Debug, Clone, Copy)]
enum Way {
    Stays,
    Returns,
}

#[derive(Debug, Clone, Copy)]
enum Roughness {
    Now,
    Always,
}

/// Samples that the return, and the losses of the views, are learnt from.
const VIEW_SAMPLES: f64 = 2000.0;

/// Horizons that have to pass before half of the return that was seen is believed.
const RETURN_HORIZONS: usize = 10;

/// How many times as far away as it mostly was a rate may be for its return to be known.
const AWAY_MAX: f64 = 2.0;

/// How much more the better view counts, at each quantile: one whose losses are a tenth larger counts
/// a seventh.
const VIEW_FAVOUR: i32 = 20;

/// Losses that are as good as none, in bytes per second.
const VIEW_LOSS_MIN: f64 = 1e-3;

/// A change is believed after so much evidence beyond the slack, in spreads (Page's test).
const SLACK: f64 = 1.5;
const EVIDENCE_MAX: f64 = 4.0;
const ENOUGH: f64 = 9.0;

type Means = [f64; MEAN_COUNT];

/// Quantiles 10, 50 and 90, as logarithms of rates.
type Quantiles = [f64; 3];

/// The last samples of capacity, and what they say of the next.
#[derive(Debug, Clone)]
pub struct Recent {
    /// The rates, newest first.
    samples: VecDeque<f64>,
    means: Means,
    usual: Usual,
    spread: f64,
    count: u64,
    evidence: [f64; 2],
    horizons: Vec<Horizon>,
}

/// What the link is used to: rate, highest rate and spread.
#[derive(Debug, Clone, Copy)]
struct Usual {
    mean: f64,
    highest: f64,
    spread: f64,
}

impl Default for Usual {
    fn default() -> Self {
        Self {
            mean: 0.0,
            highest: 0.0,
            spread: SPREAD_FIRST,
        }
    }
}

impl Usual {
    fn observe(&mut self, sample: f64, spread: f64, count: u64) {
        // At first it is the mean of all that was seen.
        let share = USUAL_SHARE.max(1.0 / count as f64);
        self.mean += (sample - self.mean) * share;
        self.spread += (spread - self.spread) * share;
        self.highest += (self.mean - self.highest) * HIGHEST_SHARE;
        self.highest = self.highest.max(sample);
    }
}

/// How well the means and the views did at one horizon.
#[derive(Debug, Clone)]
struct Horizon {
    length: usize,
    /// What was said and has not come, oldest first.
    open: VecDeque<Said>,
    /// Mean squares of the errors: medians would follow each step of what comes and goes.
    losses: Means,
    count: usize,
    returns: Returns,
    views: [View; VIEW_COUNT],
}

/// How far rates went back to what was usual, by least squares.
#[derive(Debug, Clone, Copy, Default)]
struct Returns {
    squares: f64,
    products: f64,
    count: f64,
}

/// One way to see what the means say.
#[derive(Debug, Clone, Default)]
struct View {
    errors: Errors,
    /// Mean loss of each quantile, in bytes per second.
    losses: Quantiles,
}

/// What was said of a horizon. Errors are taken from this and nothing that was learnt later: the spread,
/// above all, is larger after a change than it was before.
#[derive(Debug, Clone, Copy)]
struct Said {
    means: Means,
    /// The means together, and how far that is from what is usual.
    mean: f64,
    away: f64,
    views: [SaidView; VIEW_COUNT],
}

/// What one view said: errors are in units of its scale.
#[derive(Debug, Clone, Copy)]
struct SaidView {
    point: f64,
    scale: f64,
    quantiles: Quantiles,
}

impl Returns {
    fn observe(&mut self, away: f64, moved: f64) {
        let keep = 1.0 - 1.0 / VIEW_SAMPLES;
        self.squares = self.squares * keep + away * away;
        self.products = self.products * keep + away * moved;
        self.count = self.count * keep + 1.0;
    }

    /// The share of the way back that is expected: the less, the fewer horizons were seen.
    fn share(&self, length: usize) -> f64 {
        let believed = self.count / (self.count + count_of(RETURN_HORIZONS * length));
        (-believed * self.products / (self.squares + LOSS_MIN)).clamp(0.0, 1.0)
    }

    /// How far it will go back from so far away. That noise comes back says nothing of a change that is
    /// many times as large.
    fn expected(&self, away: f64, length: usize) -> f64 {
        let known = AWAY_MAX * (self.squares / self.count.max(1.0)).sqrt();
        self.share(length) * away.clamp(-known, known)
    }
}

impl Horizon {
    fn new(length: usize) -> Self {
        Self {
            length,
            open: VecDeque::new(),
            losses: Means::default(),
            count: 0,
            returns: Returns::default(),
            views: Default::default(),
        }
    }

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

    /// What is to be said, given the means, what is usual, and the spread now.
    fn say(&self, means: &Means, usual: &Usual, spread: f64) -> Said {
        let mean = self.blend(means);
        let away = mean - usual.mean;
        // What the link has never carried is not forecast, whatever errors and spread would say.
        let highest = usual.highest.max(mean);
        let views = std::array::from_fn(|index| {
            let (way, roughness) = VIEWS[index];
            let point = match way {
                Way::Stays => mean,
                Way::Returns => mean - self.returns.expected(away, self.length),
            };
            let scale = match roughness {
                Roughness::Now => spread,
                Roughness::Always => usual.spread,
            };
            let errors = &self.views[index].errors;
            let quantiles = errors
                .quantiles(self.length, &Tails::default())
                .map(|error| (point + error * scale).min(highest));
            SaidView {
                point,
                scale,
                quantiles,
            }
        });
        Said {
            means: *means,
            mean,
            away,
            views,
        }
    }

    /// The views together, at each quantile the more the better they did there.
    fn quantiles(&self, said: &Said) -> Quantiles {
        std::array::from_fn(|quantile| {
            let losses = self.views.each_ref().map(|view| view.losses[quantile]);
            let least = losses.iter().copied().fold(f64::INFINITY, f64::min) + VIEW_LOSS_MIN;
            let (mut sum, mut weights) = (0.0, 0.0);
            for (loss, view) in losses.iter().zip(&said.views) {
                let weight = (least / (loss + VIEW_LOSS_MIN)).powi(VIEW_FAVOUR);
                sum += weight * view.quantiles[quantile];
                weights += weight;
            }
            sum / weights
        })
    }

    /// Compares what was said a horizon ago with what came, if anything was.
    fn score(&mut self, samples: &VecDeque<f64>, lowest: f64) {
        if self.open.len() < self.length {
            return;
        }
        let Some(said) = self.open.pop_front() else {
            return;
        };
        let sum: f64 = samples.iter().take(self.length).sum();
        let rate = sum / count_of(self.length);
        let outcome = rate.ln().max(lowest);
        let step = 1.0 / (self.returns.count + 1.0);
        for (view, said) in self.views.iter_mut().zip(&said.views) {
            let error = (outcome - said.point) / said.scale;
            view.errors.adapt(error, self.length, &Tails::default());
            view.errors.observe(error);
            let quantiles = SHARES_BELOW.iter().zip(said.quantiles);
            for (mean, (share, quantile)) in view.losses.iter_mut().zip(quantiles) {
                // In rates, as it is felt: too high a p90 costs more than its logarithm tells.
                let loss = loss(*share, quantile.exp(), rate);
                *mean += (loss - *mean) * step;
            }
        }
        self.returns.observe(said.away, outcome - said.mean);
        self.count = (self.count + 1).min(LOSS_COUNT_MIN + LOSS_HORIZONS * self.length);
        for (loss, mean) in self.losses.iter_mut().zip(said.means) {
            *loss += ((outcome - mean).powi(2) - *loss) / count_of(self.count);
        }
    }
}

impl Default for Recent {
    fn default() -> Self {
        Self {
            samples: VecDeque::new(),
            means: Means::default(),
            usual: Usual::default(),
            spread: SPREAD_FIRST,
            count: 0,
            evidence: [0.0; 2],
            horizons: HORIZONS.map(Horizon::new).into(),
        }
    }
}

impl Recent {
    /// Takes the capacity of the last second, in bytes per second.
    pub fn observe(&mut self, rate: f64) {
        let rate = rate.clamp(RATE_MIN, RATE_MAX);
        let mut sample = rate.ln();
        if self.count == 0 {
            self.means = [sample; MEAN_COUNT];
            self.usual.mean = sample;
            self.usual.highest = sample;
        }
        let lowest = self.usual.mean - FALL_MAX;
        sample = sample.max(lowest);
        self.count += 1;
        self.samples.truncate(SAMPLE_COUNT_MAX - 1);
        self.samples.push_front(rate);
        for horizon in &mut self.horizons {
            horizon.score(&self.samples, lowest);
        }
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
        self.usual.observe(sample, self.spread, self.count);
        for horizon in &mut self.horizons {
            let said = horizon.say(&self.means, &self.usual, self.spread);
            horizon.open.push_back(said);
        }
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

    /// The mean rate over so many seconds to come; `None` while too little is known.
    #[must_use]
    pub fn forecast(&self, seconds: u64) -> Option<Band> {
        if self.count < SAMPLE_COUNT_MIN {
            return None;
        }
        let index = HORIZONS.partition_point(|length| (*length as u64) < seconds);
        let index = index.min(HORIZONS.len() - 1);
        let horizon = &self.horizons[index];
        let said = horizon.open.back()?;
        let [p10, p50, p90] = horizon.quantiles(said).map(f64::exp);
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

    /// A link that for a quarter of the time, now and then, carries half as much for half a minute.
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
            // Quiet, with steps that are many spreads wide, and then rough: spreads times spreads.
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
            // Every two minutes it falls to a third and comes back within a minute.
            let since = (index % 120) as f64;
            let down = 1.0 - 0.67 * (-since / 20.0).exp();
            recent.observe(rough(index, 1e6) * down);
            if index > 5000 && index % 120 == 3 {
                lowest = recent.forecast(60);
            }
        }
        // It carries some 450 kB/s then, and 770 kB/s on average in the minute that follows.
        let band = lowest.unwrap();
        assert!(band.p50 > 0.6e6, "{band:?}");
        assert!(recent.horizons[2].returns.share(60) > 0.3);
    }

    #[test]
    fn a_view_returns_as_far_as_rates_did_and_no_farther_than_is_known() {
        let mut horizon = Horizon::new(1);
        for index in 0..1000 {
            let away = 0.1 * noise(index);
            horizon.returns.observe(away, -0.5 * away);
        }
        let usual = Usual {
            mean: 10.0,
            highest: 12.0,
            spread: 0.1,
        };
        let returned = |mean: f64| {
            let said = horizon.say(&[mean; MEAN_COUNT], &usual, 0.1);
            assert!((said.views[0].point - mean).abs() < 1e-9, "one view stays");
            mean - said.views[1].point
        };
        assert!((returned(10.1) - 0.05).abs() < 0.005);
        // Ten times as far away as ever, it is not known to come back.
        assert!(returned(11.0) < 0.1);
    }

    #[test]
    fn errors_count_in_the_spread_they_were_forecast_with() {
        let mut horizon = Horizon::new(1);
        let usual = Usual {
            mean: 10.0,
            highest: 12.0,
            spread: 0.4,
        };
        // A fall by 0.2 after each quiet second, which was said with a spread of 0.1.
        for _ in 0..500 {
            let said = horizon.say(&[10.0; MEAN_COUNT], &usual, 0.1);
            horizon.open.push_back(said);
            horizon.score(&VecDeque::from([9.8_f64.exp()]), 6.0);
        }
        for (view, error) in horizon.views.iter().zip([-2.0, -2.0, -0.5, -0.5]) {
            let [_, p50, _] = view.errors.quantiles(1, &Tails::default());
            assert!((p50 - error).abs() < 0.2, "{p50} and {error}");
        }
    }

    #[test]
    fn what_stays_for_good_is_not_expected_back() {
        let mut recent = Recent::default();
        for index in 0..6000 {
            // Another rate every five minutes, anywhere between.
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
