//! How likely the level is to shift before an hour comes, and by how much.
//!
//! Shifts are rare and spoil many errors at once: one shift spoils 168 errors at a lead of a week,
//! and it is luck whether twelve weeks of errors show that in their outer tenths. So errors of
//! forecasts that a shift came between are left out. Instead, the band takes into account what all
//! shifts have in common: how often they come and how large they are, up and down alike.

use std::collections::VecDeque;

use crate::count::to_f64;

/// Number of shifts whose sizes are remembered.
const SIZE_COUNT: usize = 8;

/// Shifts within this time are parts of one shift.
const APART_HOURS: u64 = 24;

/// Factor by which the past fades per hour: a memory of half a year.
const MEMORY: f64 = 1.0 - 1.0 / 4368.0;

/// Known hours after which the level counts as one that the link has had.
const SETTLING_HOURS: f64 = 48.0;

/// The prior rate of shifts: one in eighteen weeks, with the weight of `ASSUMED_HOURS` hours.
const ASSUMED_HOURS: f64 = 150.0;
const ASSUMED_COUNT: f64 = 0.05;

/// Share of shifts that are detected. Smaller ones pass for ordinary variation.
const FOUND_SHARE: f64 = 0.8;

/// Sizes assumed before any is seen, as logarithms of the factor, and the weight of each beside one
/// that was seen.
const ASSUMED_SIZES: [f64; 4] = [0.3, 0.5, 0.7, 0.9];
const ASSUMED_WORTH: f64 = 0.25;

/// The largest size, a factor of twenty. More is an outage, or the end of one.
const SIZE_MAX: f64 = 3.0;

/// Likelihood of a shift to a level that the link has never had, relative to one that it has had.
const NEW_SHARE: f64 = 0.75;

/// Factor beyond the lowest and the highest level so far within which a level still counts as
/// known.
const KNOWN_MARGIN: f64 = 1.1;

/// Statistics of the shifts of the level.
#[derive(Debug, Clone, Default)]
pub(super) struct Hazard {
    /// Number of shifts, and of hours in which there could have been one. Both fade.
    count: f64,
    hours: f64,
    quiet_hours: u64,
    /// The size of the newest shift, as a logarithm with its sign.
    newest: f64,
    /// Sizes without sign, newest first.
    sizes: VecDeque<f64>,
    low: f64,
    high: f64,
}

impl Hazard {
    /// Takes a known hour at this level.
    pub(super) fn pass(&mut self, level: f64) {
        self.count *= MEMORY;
        self.hours = self.hours * MEMORY + 1.0;
        self.quiet_hours = self.quiet_hours.saturating_add(1);
        if self.hours < SETTLING_HOURS {
            (self.low, self.high) = (level, level);
        }
        self.low = self.low.min(level);
        self.high = self.high.max(level);
    }

    /// Takes a shift of the level by a factor.
    pub(super) fn observe(&mut self, factor: f64) {
        let size = factor.ln();
        if self.quiet_hours < APART_HOURS && !self.sizes.is_empty() {
            self.newest += size;
            self.sizes.pop_front();
        } else {
            self.newest = size;
            self.count += 1.0;
        }
        self.quiet_hours = 0;
        self.newest = self.newest.clamp(-SIZE_MAX, SIZE_MAX);
        self.sizes.truncate(SIZE_COUNT - 1);
        self.sizes.push_front(self.newest.abs());
    }

    /// Drops the newest shift, which was none: the level is back where it was.
    pub(super) fn forget_newest(&mut self) {
        self.count = (self.count - 1.0).max(0.0);
        self.newest = 0.0;
        self.sizes.pop_front();
    }

    /// The errors that shifts from this level would cause, for an hour that is expected to carry
    /// this many spreads.
    pub(super) fn tails(&self, level: f64, expected: f64) -> Tails {
        let seen = self.sizes.iter().map(|size| (*size, 1.0));
        let sizes = seen.chain(ASSUMED_SIZES.map(|size| (size, ASSUMED_WORTH)));
        let outcome = |(size, worth): (f64, f64)| {
            let factor = size.exp();
            let then = level * factor;
            let is_known = then < self.high * KNOWN_MARGIN && then * KNOWN_MARGIN > self.low;
            let share = if is_known { worth } else { worth * NEW_SHARE };
            (expected * (factor - 1.0), share)
        };
        let both_ways = sizes.flat_map(|(size, worth)| [(size, worth), (-size, worth)]);
        let mut outcomes: Vec<(f64, f64)> = both_ways.map(outcome).collect();
        let all: f64 = outcomes.iter().map(|(_, share)| share).sum();
        for (_, share) in &mut outcomes {
            *share /= all;
        }
        Tails {
            hourly: (self.count / FOUND_SHARE + ASSUMED_COUNT) / (self.hours + ASSUMED_HOURS),
            outcomes,
        }
    }
}

/// The forecast errors that a shift before the hour would cause.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tails {
    /// Expected shifts per hour.
    hourly: f64,
    /// Errors in spreads, each with its share.
    outcomes: Vec<(f64, f64)>,
}

impl Tails {
    /// The probability of a shift within this many hours.
    pub(super) fn chance(&self, lead_hours: usize) -> f64 {
        -(-self.hourly * to_f64(lead_hours as u64)).exp_m1()
    }

    /// Share of errors below this one, given a shift. Hours deviate from their outcome by up to a
    /// spread.
    pub(super) fn below(&self, error: f64) -> f64 {
        let below = |(outcome, share): &(f64, f64)| {
            let beyond = (error - outcome).clamp(-1.0, 1.0);
            share * (beyond + 1.0) / 2.0
        };
        self.outcomes.iter().map(below).sum()
    }

    /// Bounds between which all errors lie.
    pub(super) fn bounds(&self) -> (f64, f64) {
        let errors = self.outcomes.iter().map(|(error, _)| *error);
        errors.fold((0.0, 0.0), |(low, high), error| {
            (f64::min(low, error - 1.0), f64::max(high, error + 1.0))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(shifts: &[(u64, f64)], hour_count: u64) -> Hazard {
        let mut hazard = Hazard::default();
        let mut level = 1e6;
        for hour in 0..hour_count {
            hazard.pass(level);
            for (_, factor) in shifts.iter().filter(|(at, _)| *at == hour) {
                level *= factor;
                hazard.observe(*factor);
            }
        }
        hazard
    }

    #[test]
    fn shifts_are_as_likely_as_they_were_often() {
        let chance = |hazard: &Hazard| hazard.tails(1e6, 5.0).chance(168);
        let never = chance(&seen(&[], 1344));
        assert!((0.005..0.03).contains(&never), "{never}");
        let often = chance(&seen(&[(300, 0.5), (700, 2.0), (1100, 0.5)], 1344));
        assert!((0.2..0.35).contains(&often), "{often}");
        assert_eq!(Tails::default().chance(168), 0.0);
    }

    #[test]
    fn a_shift_found_in_parts_is_one() {
        let parts = seen(&[(300, 0.7), (304, 0.5)], 600);
        assert_eq!(parts.sizes.len(), 1);
        assert!((parts.sizes[0] + 0.35_f64.ln()).abs() < 1e-9);
        assert_eq!(seen(&[(300, 0.7), (340, 0.5)], 600).sizes.len(), 2);
    }

    #[test]
    fn a_shift_that_was_none_is_not_counted() {
        let mut hazard = seen(&[(300, 0.5)], 310);
        hazard.forget_newest();
        assert_eq!(hazard.sizes.len(), 0);
        let never = seen(&[], 310).tails(1e6, 5.0).chance(168);
        let forgotten = hazard.tails(1e6, 5.0).chance(168);
        assert!((forgotten - never).abs() < 1e-3, "{forgotten} and {never}");
    }

    #[test]
    fn ways_back_are_likelier_than_ways_to_where_the_link_never_was() {
        let hazard = seen(&[(300, 0.5)], 600);
        let tails = hazard.tails(0.5e6, 10.0);
        let (low, high) = (tails.below(-0.01), 1.0 - tails.below(0.01));
        assert!(high > 1.05 * low, "{high} up, {low} down");
        let (lowest, highest) = tails.bounds();
        assert_eq!((tails.below(lowest), tails.below(highest)), (0.0, 1.0));
    }
}
