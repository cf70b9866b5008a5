//! What the forecast is compared with: last value, EWMA, seasonal naives and Holt-Winters.
//!
//! Each rival gives a point for every hour and lead; its quantiles are those of the errors it made at
//! that lead in the twelve weeks before, as ours are, so that all are compared by the same loss.

use std::collections::VecDeque;

use towpath_bench::weeks::{DAY_HOURS, WEEK_HOURS};
use towpath_forecast::band::Band;
use u_analytics::smoothing::{HoltWinters, HoltWintersResult, Seasonality};

/// Errors a rival's quantiles are taken from.
const ERROR_COUNT: usize = 12 * WEEK_HOURS;

/// Share of the newest value in the EWMA.
const EWMA_SHARE: f64 = 0.2;

/// A rival.
pub(crate) enum Rival {
    Last,
    Ewma(Vec<f64>),
    /// What was so many hours before, or a multiple of it.
    Naive(usize),
    HoltWinters(Box<HoltWintersResult>),
}

impl Rival {
    /// Every rival by its name, for one series of which the first `warm_up` hours are not scored.
    pub(crate) fn all(series: &[f64], warm_up: usize) -> Vec<(&'static str, Self)> {
        let mut rivals = vec![
            ("last value", Self::Last),
            ("ewma", Self::Ewma(ewma(series))),
            ("seasonal naive 24 h", Self::Naive(DAY_HOURS)),
            ("seasonal naive 168 h", Self::Naive(WEEK_HOURS)),
        ];
        for (name, period) in [
            ("holt-winters 24 h", DAY_HOURS),
            ("holt-winters 168 h", WEEK_HOURS),
        ] {
            // Its constants are estimated on hours that are not scored, as ours are never tuned on them.
            let kind = Seasonality::Additive;
            let fitted = HoltWinters::fit(&series[..warm_up], None, None, None, period, kind);
            let smoothed = fitted.and_then(|fitted| fitted.smooth(series));
            rivals.extend(smoothed.map(|result| (name, Self::HoltWinters(Box::new(result)))));
        }
        rivals
    }

    /// What it says at `origin`, having seen all hours before it, about the hour `lead` later
    /// (1 is the hour that begins).
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
                // A recursive filter: what it held at an hour is made of the hours before alone.
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

/// Turns a rival's points at one lead into bands.
#[derive(Default)]
pub(crate) struct Quantiles {
    newest: VecDeque<f64>,
    sorted: Vec<f64>,
}

impl Quantiles {
    pub(crate) fn observe(&mut self, error: f64) {
        if self.newest.len() == ERROR_COUNT
            && let Some(oldest) = self.newest.pop_back()
        {
            let at = self.sorted.partition_point(|other| *other < oldest);
            self.sorted.remove(at);
        }
        self.newest.push_front(error);
        let at = self.sorted.partition_point(|other| *other < error);
        self.sorted.insert(at, error);
    }

    pub(crate) fn band(&self, point: f64) -> Band {
        let count = self.sorted.len();
        let at = |percent: usize| self.sorted[(count * percent / 100).min(count - 1)];
        if count == 0 {
            return Band::new(point, point, point);
        }
        Band::new(point + at(10), point + at(50), point + at(90))
    }
}
