//! One mean at one horizon: the quantiles of its errors, and how much it lost by them.

use crate::count::to_f64;
use crate::score::loss;

/// Quantiles 10, 50 and 90.
pub(super) type Quantiles = [f64; 3];

/// The share of outcomes that should lie below each quantile, used for scoring.
pub(super) const SHARES: Quantiles = [0.1, 0.5, 0.9];

/// The share of one mean's errors below each of its quantiles. The combined band of several means
/// is a little too wide, so each is a little narrower.
const SHARES_OF_ONE: Quantiles = [0.11, 0.5, 0.89];

/// How far an error moves a quantile at first, in mean errors. About one over the density there,
/// for errors with and without heavy tails.
const STEPS: Quantiles = [10.0, 3.0, 10.0];

/// Errors that are assumed to have been seen already when the step size is computed. Without them
/// the first errors would throw the quantiles far off.
const CALM: f64 = 5.0;

/// Errors that are remembered; older ones fade.
const MEMORY: f64 = 1000.0;

/// Loss that counts as none, in bytes per second.
const LOSS_MIN: f64 = 1e-3;

/// Exponent of the weights, per quantile: a mean whose losses are a tenth larger weighs a third.
const FAVOUR: i32 = 12;

/// Statistics of one mean's errors at one horizon. The errors themselves are not kept.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Expert {
    /// Quantiles of the errors, in the mean's own unit.
    errors: Quantiles,
    /// Mean distance of the errors from the median, in the same unit.
    size: f64,
    /// Mean pinball loss at each quantile, in bytes per second.
    losses: Quantiles,
}

impl Expert {
    /// The quantiles of its errors with a weight of `believed`, from 0 to 1, and `elsewhere` for
    /// the rest.
    pub(super) fn errors(&self, elsewhere: &Quantiles, believed: f64) -> Quantiles {
        std::array::from_fn(|quantile| {
            let other = elsewhere[quantile];
            other + (self.errors[quantile] - other) * believed
        })
    }

    /// Takes an error, after `count` earlier ones, with the quantiles that would have been forecast
    /// and the rate that came.
    ///
    /// Each quantile takes steps along the gradient of its pinball loss. The steps get smaller as
    /// errors come in (Robbins and Monro, 1951), down to a size that still follows changes. Over
    /// time the share below comes out right whatever the errors do (Angelopoulos, Candes and
    /// Tibshirani, 2023).
    pub(super) fn observe(&mut self, count: u64, error: f64, said: &Quantiles, rate: f64) {
        let count = to_f64(count);
        let share = (1.0 / (count + 1.0)).max(1.0 / MEMORY);
        for ((mean, share_below), said) in self.losses.iter_mut().zip(SHARES).zip(said) {
            *mean += (loss(share_below, *said, rate) - *mean) * share;
        }
        if count == 0.0 {
            self.errors = [error; 3];
            return;
        }
        self.size += ((error - self.errors[1]).abs() - self.size) * share;
        let unit = self.size / (count.min(MEMORY) + CALM);
        for ((quantile, share_below), step) in self.errors.iter_mut().zip(SHARES_OF_ONE).zip(STEPS)
        {
            let is_below = f64::from(u8::from(error < *quantile));
            *quantile += step * unit * (share_below - is_below);
        }
        let [low, middle, high] = &mut self.errors;
        (*low, *high) = (low.min(*middle), high.max(*middle));
    }
}

/// Combines several forecasts: at each quantile a mean, weighted by each one's share and by a power
/// of how little it lost there (Stock and Watson, 2004; per quantile Berrisch and Ziel, 2023).
pub(super) fn together<const COUNT: usize>(
    experts: &[Expert; COUNT],
    shares: &[f64; COUNT],
    said: &[Quantiles; COUNT],
) -> Quantiles {
    std::array::from_fn(|quantile| {
        let losses = experts.each_ref().map(|expert| expert.losses[quantile]);
        let least = losses.iter().copied().fold(f64::INFINITY, f64::min) + LOSS_MIN;
        let (mut sum, mut weights) = (0.0, 0.0);
        for ((loss, share), said) in losses.iter().zip(shares).zip(said) {
            let weight = share * (least / (loss + LOSS_MIN)).powi(FAVOUR);
            sum += weight * said[quantile];
            weights += weight;
        }
        sum / weights
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recent::tests::noise;

    fn seen(errors: impl Iterator<Item = f64>) -> Expert {
        let mut expert = Expert::default();
        for (count, error) in (0..).zip(errors) {
            expert.observe(count, error, &[0.0; 3], 0.0);
        }
        expert
    }

    #[test]
    fn quantiles_are_found_and_followed() {
        let close = |expert: &Expert, scale: f64| {
            let wanted = [-0.78, 0.0, 0.78].map(|quantile| quantile * scale);
            let pairs = expert.errors.iter().zip(wanted);
            pairs.fold(0.0_f64, |worst, (own, wanted)| {
                worst.max((own - wanted).abs() / scale)
            })
        };
        let hundred = seen((0..100).map(noise));
        assert!(close(&hundred, 1.0) < 0.3, "{hundred:?}");
        let thousands = seen((0..5000).map(noise));
        assert!(close(&thousands, 1.0) < 0.1, "{thousands:?}");
        let changed = seen((0..10_000).map(|i| noise(i) * if i < 5000 { 1.0 } else { 5.0 }));
        assert!(close(&changed, 5.0) < 0.2, "{changed:?}");
    }

    #[test]
    fn errors_that_are_all_the_same_are_the_quantiles() {
        assert_eq!(seen((0..50).map(|_| 2.0)).errors, [2.0; 3]);
        let expert = seen((0..50).map(|_| 2.0));
        assert_eq!(expert.errors(&[-1.0, 0.0, 1.0], 0.0), [-1.0, 0.0, 1.0]);
        assert_eq!(expert.errors(&[-1.0, 0.0, 1.0], 0.5), [0.5, 1.0, 1.5]);
    }

    #[test]
    fn who_lost_less_counts_more() {
        let mut experts = [Expert::default(); 2];
        for count in 0..100 {
            experts[0].observe(count, 0.0, &[1e6; 3], 1.1e6);
            experts[1].observe(count, 0.0, &[1e6; 3], 1.3e6);
        }
        let said = together(&experts, &[1.0; 2], &[[1e6; 3], [2e6; 3]]);
        assert!(
            said.iter().all(|rate| (1e6..1.01e6).contains(rate)),
            "{said:?}"
        );
        let new = together(&[Expert::default(); 2], &[1.0, 3.0], &[[1e6; 3], [2e6; 3]]);
        assert!(
            new.iter().all(|rate| (rate - 1.75e6).abs() < 1.0),
            "{new:?}"
        );
    }
}
