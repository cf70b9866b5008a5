//! The rivals of the forecast: last value, EWMA, seasonal naives and Holt-Winters.
//!
//! Each rival predicts a point for every hour and lead. Its quantiles are those of its errors at
//! that lead in the twelve weeks before, as ours are, so that all can be scored by the same loss.

use towpath_bench::weeks::{DAY_HOURS, WEEK_HOURS};
use towpath_forecast::band::Band;
use towpath_forecast::window::Window;
use u_analytics::smoothing::{HoltWinters, HoltWintersResult, Seasonality};

/// Number of errors that a rival's quantiles are taken from.
const ERROR_COUNT: usize = 12 * WEEK_HOURS;

/// Weight of the newest value in the EWMA.
const EWMA_SHARE: f64 = 0.2;

/// Names of the seasonal naives: of a day and of a week.
pub(crate) const NAIVES: [&str; 2] = ["seasonal naive 24 h", "seasonal naive 168 h"];

/// A rival.
pub(crate) enum Rival {
    Last,
    Ewma(Vec<f64>),
    /// The value this many hours before, or a multiple of it.
    Naive(usize),
    HoltWinters(Box<HoltWintersResult>),
}

impl Rival {
    /// Every rival with its name, for one series whose first `warm_up` hours are not scored.
    pub(crate) fn all(series: &[f64], warm_up: usize) -> Vec<(&'static str, Self)> {
        let mut rivals = vec![
            ("last value", Self::Last),
            ("ewma", Self::Ewma(ewma(series))),
            (NAIVES[0], Self::Naive(DAY_HOURS)),
            (NAIVES[1], Self::Naive(WEEK_HOURS)),
        ];
        for (name, period) in [
            ("holt-winters 24 h", DAY_HOURS),
            ("holt-winters 168 h", WEEK_HOURS),
        ] {
            // Its constants are fitted on hours that are not scored, just as ours are never tuned
            // on scored hours.
            let kind = Seasonality::Additive;
            let fitted = HoltWinters::fit(&series[..warm_up], None, None, None, period, kind);
            let smoothed = fitted.and_then(|fitted| fitted.smooth(series));
            rivals.extend(smoothed.map(|result| (name, Self::HoltWinters(Box::new(result)))));
        }
        rivals
    }

    /// Its prediction at `origin`, after seeing all hours before it, for the hour at lead `lead` (1
    /// is the hour that begins at `origin`).
    pub(crate) fn point(&self, series: &[f64], origin: usize, lead: usize) -> f64 {
        let target = origin + lead - 1;
        match self {
            Self::Last => series[origin - 1],
            Self::Ewma(means) => means[origin - 1],
            Self::Naive(period) => {
                let back = lead.div_ceil(*period) * period;
                series[target - back]
            }
            Self::HoltWinters(result) => {
                let last = origin - 1;
                let period = result.period;
                // A recursive filter: its state at an hour depends only on the hours before.
                let season = result.seasonal[last + 1 - period + (lead - 1) % period];
                let steps = f64::from(u32::try_from(lead).unwrap_or(u32::MAX));
                (result.level[last] + steps * result.trend[last] + season).max(0.0)
            }
        }
    }
}

fn ewma(series: &[f64]) -> Vec<f64> {
    let mut mean = series[0];
    let follow = |value: &f64| {
        mean += EWMA_SHARE * (value - mean);
        mean
    };
    series.iter().map(follow).collect()
}

/// Turns a rival's predictions at one lead into bands.
pub(crate) struct Quantiles(Window);

impl Default for Quantiles {
    fn default() -> Self {
        Self(Window::new(ERROR_COUNT))
    }
}

impl Quantiles {
    pub(crate) fn observe(&mut self, error: f64) {
        self.0.observe(error);
    }

    pub(crate) fn band(&self, point: f64) -> Band {
        let [p10, p50, p90] =
            [0.1, 0.5, 0.9].map(|share| point + self.0.quantile(share).unwrap_or(0.0));
        Band::new(p10, p50, p90)
    }
}
