//! One lead: how residuals now go on in so many hours, and how wrong forecasts at this lead were.

use std::collections::VecDeque;

use super::errors::Errors;
use super::hazard::Tails;
use super::{Residuals, WEEK_HOURS};

/// What a residual to come is made from.
const FEATURE_COUNT: usize = 6;

type Vector = [f64; FEATURE_COUNT];

/// How much the past still counts an hour later: four weeks.
const MEMORY: f64 = 1.0 - 1.0 / 672.0;

/// Hours that the weights assumed at first are worth.
const PRIOR_HOURS: f64 = 60.0;

/// Features and targets are believed up to so many spreads.
const BELIEVED_MAX: f64 = 3.5;

/// What was expected of an hour to come.
#[derive(Debug, Clone, Copy)]
struct Expected {
    point: f64,
    scale: f64,
    /// The level has shifted since.
    is_crossed: bool,
}

/// One lead.
#[derive(Debug, Clone)]
pub(super) struct Lead {
    hours: usize,
    /// Forecasts whose hours have not come, oldest first.
    open: VecDeque<Expected>,
    products: [Vector; FEATURE_COUNT],
    targets: Vector,
    weights: Vector,
    errors: Errors,
}

/// What is known for one lead, or between two.
#[derive(Debug, Clone, Copy)]
pub(super) struct Learnt {
    weights: Vector,
    /// The errors that the shares asked for lie below, in spreads.
    pub(super) errors: [f64; 3],
}

impl Learnt {
    pub(super) fn between(low: &Self, high: &Self, share: f64) -> Self {
        let mix = |low: f64, high: f64| low + (high - low) * share;
        let mut mixed = *low;
        for (value, high) in mixed.weights.iter_mut().zip(high.weights) {
            *value = mix(*value, high);
        }
        for (value, high) in mixed.errors.iter_mut().zip(high.errors) {
            *value = mix(*value, high);
        }
        mixed
    }

    /// The residual to expect in so many hours.
    pub(super) fn residual(&self, residuals: &Residuals, hours: usize) -> f64 {
        weigh(&self.weights, residuals, hours)
    }
}

impl Lead {
    pub(super) fn new(hours: usize) -> Self {
        Self {
            hours,
            open: VecDeque::with_capacity(hours + 1),
            products: [[0.0; FEATURE_COUNT]; FEATURE_COUNT],
            targets: [0.0; FEATURE_COUNT],
            weights: assumed(hours),
            errors: Errors::default(),
        }
    }

    /// Notes what is expected of the hour that comes in so many hours.
    pub(super) fn expect(&mut self, point: f64, scale: f64) {
        self.open.push_back(Expected {
            point,
            scale,
            is_crossed: false,
        });
    }

    /// Compares the forecast for the hour that has just ended with what it carried.
    pub(super) fn score(&mut self, rate: f64, tails: &Tails) {
        if let Some(expected) = self.due() {
            let error = (rate - expected.point) / expected.scale;
            self.errors.adapt(error, self.hours, tails);
            if !expected.is_crossed {
                self.errors.observe(error);
            }
        }
    }

    /// The level has shifted: what was expected until now says nothing of other errors.
    pub(super) fn cross(&mut self) {
        for expected in &mut self.open {
            expected.is_crossed = true;
        }
    }

    /// Nothing is known of the hour that has just ended.
    pub(super) fn miss(&mut self) {
        self.due();
    }

    fn due(&mut self) -> Option<Expected> {
        if self.open.len() < self.hours {
            return None;
        }
        // A forecast without a scale was made before anything was known.
        self.open
            .pop_front()
            .filter(|expected| expected.scale > 0.0)
    }

    /// Learns from the newest residual what those of so many hours before it led to.
    pub(super) fn learn(&mut self, residuals: &Residuals) {
        let Some(target) = residuals.get(0) else {
            return;
        };
        let target = target.clamp(-BELIEVED_MAX, BELIEVED_MAX);
        let features = features(residuals, self.hours, self.hours);
        for (row, x) in self.products.iter_mut().zip(features) {
            for (sum, y) in row.iter_mut().zip(features) {
                *sum = *sum * MEMORY + x * y;
            }
        }
        for (sum, x) in self.targets.iter_mut().zip(features) {
            *sum = *sum * MEMORY + x * target;
        }
        self.weights = self.solve();
    }

    /// Least squares, with the assumed weights as so many hours of evidence.
    fn solve(&self) -> Vector {
        let prior = assumed(self.hours);
        let mut matrix = self.products;
        let mut right = self.targets;
        for index in 0..FEATURE_COUNT {
            matrix[index][index] += PRIOR_HOURS;
            right[index] += PRIOR_HOURS * prior[index];
        }
        solve(matrix, right)
    }

    /// What is known of this lead, with the errors that such shares lie below.
    pub(super) fn learnt(&self, shares: [f64; 3], tails: &Tails) -> Learnt {
        Learnt {
            weights: self.weights,
            errors: self.errors.quantiles(shares, self.hours, tails),
        }
    }

    /// The residual to expect in so many hours.
    pub(super) fn residual(&self, residuals: &Residuals, hours: usize) -> f64 {
        weigh(&self.weights, residuals, hours)
    }
}

fn weigh(weights: &Vector, residuals: &Residuals, hours: usize) -> f64 {
    let features = features(residuals, hours, 0);
    features.iter().zip(weights).map(|(x, w)| x * w).sum()
}

/// What is known of residuals at an origin `ago` hours back about the hour `lead` after it.
fn features(residuals: &Residuals, lead: usize, ago: usize) -> Vector {
    let at = |hours_ago| residuals.get(hours_ago).unwrap_or(0.0);
    // The same hour of the last day that has passed, and of the last week.
    let day = lead.div_ceil(24) * 24 - lead;
    let week = WEEK_HOURS - lead;
    let raw = [
        at(ago),
        residuals.mean(ago, 6),
        residuals.mean(ago, 24),
        residuals.mean(ago, WEEK_HOURS),
        at(ago + day),
        at(ago + week),
    ];
    raw.map(|x| x.clamp(-BELIEVED_MAX, BELIEVED_MAX))
}

/// Weights before anything is learnt: what is now lasts a few hours, what lasted a day lasts longer.
fn assumed(lead: usize) -> Vector {
    let lead = super::hours(lead);
    let now = 0.6 * (-lead / 4.0).exp();
    [
        now,
        0.2 * (-lead / 12.0).exp(),
        0.3 * (-lead / 48.0).exp(),
        0.1,
        0.05,
        0.0,
    ]
}

/// Solves a positive definite system by Cholesky's decomposition.
fn solve(mut matrix: [Vector; FEATURE_COUNT], mut right: Vector) -> Vector {
    for i in 0..FEATURE_COUNT {
        for j in 0..=i {
            let mut sum = matrix[i][j];
            for (a, b) in matrix[i].iter().zip(matrix[j]).take(j) {
                sum -= a * b;
            }
            matrix[i][j] = if i == j {
                // Positive, for the prior is on the diagonal; rounding shall not make a root of less.
                sum.max(1e-9).sqrt()
            } else {
                sum / matrix[j][j]
            };
        }
    }
    for i in 0..FEATURE_COUNT {
        for k in 0..i {
            right[i] -= matrix[i][k] * right[k];
        }
        right[i] /= matrix[i][i];
    }
    for i in (0..FEATURE_COUNT).rev() {
        for k in i + 1..FEATURE_COUNT {
            right[i] -= matrix[k][i] * right[k];
        }
        right[i] /= matrix[i][i];
    }
    right
}
