//! Corrects the band that several means made together at one horizon: moves its ends until the
//! right share of outcomes lies below each.

use super::expert::{Quantiles, SHARES};

/// How far one outcome moves an end, in mean errors, if a whole horizon has passed since the last
/// outcome. Overlapping outcomes are much the same and move it less.
const GAIN: f64 = 0.02;

/// Errors over which their mean size is remembered; older ones fade.
const MEMORY: f64 = 1000.0;

/// How far the ends of a band are moved.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Correction {
    low: f64,
    high: f64,
    /// Mean distance of the outcomes from the median, in bytes per second.
    size: f64,
    count: f64,
}

impl Correction {
    /// Takes an uncorrected band and the rate that came. `passed` is the part of the horizon that
    /// has passed since the last outcome.
    ///
    /// The ends take steps along the gradient of their pinball loss, all of the same size. Over
    /// time the share of outcomes below comes out right, however the band was made (Gibbs and
    /// Candes, 2021). The median stays, because moving it cost more on most links than it gained.
    pub(super) fn observe(&mut self, said: &Quantiles, rate: f64, passed: f64) {
        let [low, middle, high] = *said;
        self.count += 1.0;
        let share = (1.0 / self.count).max(1.0 / MEMORY);
        self.size += ((rate - middle).abs() - self.size) * share;
        let step = GAIN * passed * self.size;
        let [low_share, _, high_share] = SHARES;
        self.low += step * (low_share - is_below(rate, low + self.low));
        self.high += step * (high_share - is_below(rate, high + self.high));
    }

    /// Moves the ends of a band, but not beyond `most`, the highest rate that is forecast.
    pub(super) fn apply(&self, said: &Quantiles, most: f64) -> Quantiles {
        let [low, middle, high] = *said;
        [low + self.low, middle, (high + self.high).min(most)]
    }
}

fn is_below(rate: f64, quantile: f64) -> f64 {
    f64::from(u8::from(rate < quantile))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recent::tests::noise;

    #[test]
    fn a_band_that_is_always_wrong_is_put_right() {
        // Outcomes are uniform from 900 to 1100, so four of five lie between 920 and 1080.
        for said in [[990.0, 1000.0, 1010.0], [500.0, 1000.0, 1500.0]] {
            let mut correction = Correction::default();
            for index in 0..20_000 {
                correction.observe(&said, 1000.0 + 100.0 * noise(index), 1.0);
            }
            let [low, middle, high] = correction.apply(&said, f64::INFINITY);
            assert!((low - 920.0).abs() < 10.0, "{said:?}: {low}");
            assert!((high - 1080.0).abs() < 10.0, "{said:?}: {high}");
            assert!((middle - 1000.0).abs() < f64::EPSILON);
        }
    }

    #[test]
    fn outcomes_that_overlap_move_it_less() {
        let said = [990.0, 1000.0, 1010.0];
        let moved = |passed| {
            let mut correction = Correction::default();
            correction.observe(&said, 800.0, passed);
            said[0] - correction.apply(&said, f64::INFINITY)[0]
        };
        assert!(moved(0.1) > 0.0);
        assert!((moved(1.0) / moved(0.1) - 10.0).abs() < 1e-6);
    }

    #[test]
    fn what_a_link_never_carried_is_not_promised() {
        let mut correction = Correction::default();
        (0..1000).for_each(|_| correction.observe(&[0.0, 1000.0, 1100.0], 5000.0, 1.0));
        let [.., high] = correction.apply(&[0.0, 1000.0, 1100.0], 1200.0);
        assert!((high - 1200.0).abs() < f64::EPSILON);
    }
}
