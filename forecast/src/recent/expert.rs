//! One mean's errors at one horizon: their quantiles, and how much it lost by them.

use crate::score::loss;

/// Quantiles 10, 50 and 90.
pub(super) type Quantiles = [f64; 3];

/// The shares of outcomes that shall lie below each quantile, by which it is scored.
pub(super) const SHARES: Quantiles = [0.1, 0.5, 0.9];

/// The shares of one mean's errors below each. Several means together, each with its own band, are a little
/// wider than they need be, so each is a little narrower.
const SHARES_OF_ONE: Quantiles = [0.11, 0.5, 0.89];

/// How far an error moves a quantile at first, in mean errors: about what one over the density is there,
/// for errors that have no tails and for such as have.
const STEPS: Quantiles = [10.0, 3.0, 10.0];

/// Errors over which the steps are as if there had been more: without them the first ones would throw
/// quantiles far off.
const CALM: f64 = 5.0;

/// Errors that are remembered; older ones fade.
const MEMORY: f64 = 1000.0;

/// Losses that are as good as none, in bytes per second.
const LOSS_MIN: f64 = 1e-3;

/// How much more the better mean counts, at each quantile: one whose losses are a tenth larger counts
/// a third.
const FAVOUR: i32 = 12;

/// What one mean's errors at one horizon were like. Nothing is kept of any one of them.
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
    /// The quantiles of its errors where they are believed by so much, from 0 to 1, and for the rest what is
    /// known from elsewhere.
    pub(super) fn errors(&self, elsewhere: &Quantiles, believed: f64) -> Quantiles {
        std::array::from_fn(|quantile| {
            let other = elsewhere[quantile];
            other + (self.errors[quantile] - other) * believed
        })
    }

    /// Takes an error after so many, and the rate that came where these quantiles would have been said.
    ///
    /// Each quantile takes steps along the gradient of its pinball loss, which get smaller as errors come in
    /// (Robbins and Monro, 1951), down to a size by which it goes on following: over time the share below
    /// comes out right whatever the errors do (Angelopoulos, Candes and Tibshirani, 2023).
    pub(super) fn observe(&mut self, count: u64, error: f64, said: &Quantiles, rate: f64) {
        let count = count as f64;
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

/// What several say together: at each quantile a mean that counts each by its share, and by a power of how
/// little it lost there (Stock and Watson, 2004; for quantiles one by one Berrisch and Ziel, 2023).
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
