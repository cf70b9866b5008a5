//! A window of the last values, kept both in arrival order and sorted.

use std::collections::VecDeque;

use crate::count::to_f64;

/// A window of values with quantiles.
///
/// Adding a value costs one search and moving the values above it, which suits windows of
/// thousands.
#[derive(Debug, Clone)]
pub struct Window {
    count_max: usize,
    newest: VecDeque<f64>,
    sorted: Vec<f64>,
}

impl Window {
    /// A window of this many values, at least one.
    #[must_use]
    pub fn new(count_max: usize) -> Self {
        Self {
            count_max: count_max.max(1),
            newest: VecDeque::new(),
            sorted: Vec::new(),
        }
    }

    /// Takes a value and drops the oldest one if the window is full. NaN cannot be sorted and is
    /// ignored.
    pub fn observe(&mut self, value: f64) {
        if value.is_nan() {
            return;
        }
        if self.newest.len() == self.count_max
            && let Some(oldest) = self.newest.pop_back()
        {
            self.sorted.remove(self.place(oldest));
        }
        self.newest.push_front(value);
        self.sorted.insert(self.place(value), value);
    }

    /// Number of values in the window.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.sorted.len()
    }

    /// The value below which this share of the window lies, interpolated between the two nearest;
    /// `None` if the window is empty.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let last = self.sorted.len().checked_sub(1)?;
        let place = share.clamp(0.0, 1.0) * to_f64(last as u64);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between nothing and the window's length"
        )]
        let below = (place as usize).min(last);
        let above = (below + 1).min(last);
        let part = place - to_f64(below as u64);
        Some(self.sorted[below] + (self.sorted[above] - self.sorted[below]) * part)
    }

    /// Share of the values below this one.
    #[must_use]
    pub fn below(&self, value: f64) -> f64 {
        let n = self.sorted.len();
        to_f64(self.place(value) as u64) / to_f64(n.max(1) as u64)
    }

    /// The position of a value in the sorted order.
    fn place(&self, value: f64) -> usize {
        self.sorted.partition_point(|other| *other < value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quantiles_lie_between_the_nearest_values() {
        let mut window = Window::new(10);
        assert_eq!(window.quantile(0.5), None);
        for value in [3.0, 1.0, 2.0, f64::NAN, 5.0] {
            window.observe(value);
        }
        assert_eq!(window.count(), 4);
        let quantiles = [-1.0, 0.0, 0.5, 1.0, 7.0].map(|share| window.quantile(share).unwrap());
        assert_eq!(quantiles, [1.0, 1.0, 2.5, 5.0, 5.0]);
    }

    proptest! {
        /// The window holds the newest values, whatever came before.
        #[test]
        fn only_the_newest_values_count(
            values in proptest::collection::vec(-5_i8..5, 1..60),
            count_max in 1_usize..20,
        ) {
            let mut window = Window::new(count_max);
            values.iter().for_each(|value| window.observe(f64::from(*value)));
            let mut newest: Vec<i8> = values.iter().rev().take(count_max).copied().collect();
            newest.sort_unstable();
            prop_assert_eq!(window.count(), newest.len());
            for (index, value) in newest.iter().enumerate() {
                let share = index as f64 / (newest.len() - 1).max(1) as f64;
                let quantile = window.quantile(share).unwrap();
                prop_assert!((quantile - f64::from(*value)).abs() < 1e-9);
            }
        }
    }
}
