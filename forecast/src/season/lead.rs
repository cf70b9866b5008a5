//! The model of one lead: the residual to expect in so many hours, and the errors of forecasts made
//! that far ahead.

use std::collections::VecDeque;

use super::errors::Errors;
use super::hazard::Tails;
use super::{Residuals, WEEK_HOURS};
use crate::count::to_f64;

/// Number of inputs from which a future residual is predicted.
const FEATURE_COUNT: usize = 6;

type Vector = [f64; FEATURE_COUNT];

/// Factor by which the past fades per hour: a memory of four weeks.
const MEMORY: f64 = 1.0 - 1.0 / 672.0;

/// Hours of evidence that the initial weights count for.
const PRIOR_HOURS: f64 = 60.0;

/// Features and targets are limited to this many spreads.
const BELIEVED_MAX: f64 = 3.5;

/// The forecast of a future hour.
#[derive(Debug, Clone, Copy)]
struct Expected {
    point: f64,
    scale: f64,
    /// Whether the level has shifted since.
    is_crossed: bool,
}

/// The regression and the errors of one lead.
#[derive(Debug, Clone)]
pub(super) struct Lead {
    hours: usize,
    /// Forecasts whose hours have not passed yet, oldest first.
    open: VecDeque<Expected>,
    products: [Vector; FEATURE_COUNT],
    targets: Vector,
    weights: Vector,
    errors: Errors,
}

/// What was learnt for one lead, or interpolated between two.
#[derive(Debug, Clone, Copy)]
pub(super) struct Learnt {
    weights: Vector,
    /// The errors below which the requested shares lie, in spreads.
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

    /// Records the forecast for the hour that is this lead ahead.
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

    /// Marks the open forecasts: the level has shifted, so their errors say nothing about other
    /// errors.
    pub(super) fn cross(&mut self) {
        for expected in &mut self.open {
            expected.is_crossed = true;
        }
    }

    /// Drops the forecast for the hour that has just ended, of which nothing is known.
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

    /// Updates the regression: the newest residual is the outcome of those this lead before it.
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

    /// Least squares, with the initial weights counted as `PRIOR_HOURS` of evidence.
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

    /// What was learnt at this lead, with the errors below which these shares lie.
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

/// The features known at an origin `ago` hours back, for predicting the hour `lead` hours after it.
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

/// The initial weights: the current residual lasts a few hours, one that lasted a day lasts longer.
fn assumed(lead: usize) -> Vector {
    let lead = to_f64(lead as u64);
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

/// Solves a positive definite system by Cholesky decomposition.
fn solve(mut matrix: [Vector; FEATURE_COUNT], mut right: Vector) -> Vector {
    for i in 0..FEATURE_COUNT {
        for j in 0..=i {
            let mut sum = matrix[i][j];
            for (a, b) in matrix[i].iter().zip(matrix[j]).take(j) {
                sum -= a * b;
            }
            matrix[i][j] = if i == j {
                // Positive, because the prior is on the diagonal. The lower bound guards against
                // rounding.
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
