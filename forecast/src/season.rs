//! The long view: forecasts the hours of the coming week from the hours of past weeks.
//!
//! ```text
//!  hour's rate / level  =  profile of the hour of the week  +  spread x residual
//!  residual in h hours  =  linear regression on recent residuals, learnt per lead
//!  band                 =  quantiles of the errors made so far at that lead, adapted to their
//!                          coverage, mixed with the errors that a shift of the level would cause
//! ```
//!
//! Hours without a link are left out of all this. How likely they are in each hour of the week is
//! learnt apart, and the band combines both: zero with that probability, else the quantiles above.
//!
//! The model is recursive: every hour is taken once, so years replay in milliseconds, and the same
//! history always gives the same forecast. An exceptional hour, such as an outage, pulls by at most
//! `PULL_MAX` spreads. If the residuals stay on one side for long enough, the level has shifted: it
//! jumps to where they are, and the profile, which is relative to it, stays. If the first day after
//! a jump is nearer to the level before, as after events and holidays, the jump is taken back, and
//! the next one needs more evidence.

mod downtime;
pub(crate) mod errors;
pub(crate) mod hazard;
mod lead;
mod profile;
mod weeks;

use std::collections::VecDeque;

use crate::band::Band;
use crate::count::to_f64;
use downtime::Downtime;
use errors::SHARES;
use hazard::Hazard;
use lead::{Lead, Learnt};
use profile::Profile;
use weeks::Weeks;

/// Hours of a week, which begins on Monday at 00:00.
pub const WEEK_HOURS: usize = 168;

/// Leads, in hours, that have regressions and errors of their own. Those between are interpolated.
const LEADS: [usize; 16] = [
    1, 2, 3, 4, 6, 8, 12, 18, 24, 36, 48, 72, 96, 120, 144, WEEK_HOURS,
];

/// Most spreads by which one hour moves the model.
const PULL_MAX: f64 = 3.0;

/// Largest residual that is kept, in spreads.
const STRAYED_MAX: f64 = 8.0;

/// Share of a residual by which the level follows it: a memory of about four days.
const LEVEL_STEP: f64 = 0.01;

/// Range of the level, in bytes per second.
const LEVEL_MIN: f64 = 1.0;
const LEVEL_MAX: f64 = 1e13;

/// Lowest spread, as a share of the level. No link is steadier, and it avoids division by zero.
const SPREAD_MIN: f64 = 0.005;

/// Hours that the level counts as settled for right after a jump: about those that caused the jump.
const SETTLED_AT_JUMP: u64 = 6;

/// An hour that carried less than this share of both the expected and the usual rate is an outage.
const OUTAGE_SHARE: f64 = 0.1;

/// Longest outage, in hours. A link that carries next to nothing for longer is taken to carry just
/// that now. After so many hours without any link the outage has been counted, and further hours
/// say nothing about the hours with a link.
const OUTAGE_HOURS_MAX: u32 = 36;

/// Residuals kept: a week, plus a lead of a week, plus the hours that their means look back.
const RESIDUAL_COUNT: usize = 2 * WEEK_HOURS + 24;

/// What is known of an hour.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Hour {
    /// It carried this rate, in bytes per second.
    Rate(f64),
    /// It would have carried this rate or more: programs sent no more.
    AtLeast(f64),
    /// There were no samples.
    Unknown,
}

/// The model of one direction of a link, fed hour by hour.
#[derive(Debug, Clone)]
pub struct Season {
    level: f64,
    known_count: u64,
    /// Hours in a row that carried next to nothing.
    outage_hours: u32,
    /// Hours in a row without a link.
    away_hours: u32,
    /// Hours that the level has settled for; set back when it jumps.
    settled_count: u64,
    /// The hour of the week that comes next.
    next: usize,
    profile: Profile,
    residuals: Residuals,
    shift: Shift,
    hazard: Hazard,
    leads: Vec<Lead>,
    weeks: Weeks,
    downtime: Downtime,
}

/// The last standardised residuals, newest first; `None` for unknown hours.
#[derive(Debug, Clone, Default)]
pub(crate) struct Residuals(VecDeque<Option<f64>>);

impl Residuals {
    fn push(&mut self, residual: Option<f64>) {
        self.0.truncate(RESIDUAL_COUNT - 1);
        self.0.push_front(residual);
    }

    fn get(&self, hours_ago: usize) -> Option<f64> {
        self.0.get(hours_ago).copied().flatten()
    }

    /// The mean of the `count` hours that end `hours_ago`; zero if none is known.
    fn mean(&self, hours_ago: usize, count: usize) -> f64 {
        let known = (hours_ago..hours_ago + count).filter_map(|ago| self.get(ago));
        let (sum, count) = known.fold((0.0, 0.0), |(sum, count), r| (sum + r, count + 1.0));
        if count > 0.0 { sum / count } else { 0.0 }
    }
}

impl Season {
    /// An empty model. `first` is the hour of the week of the first hour it will take.
    ///
    /// # Panics
    ///
    /// If `first` is not below [`WEEK_HOURS`].
    #[must_use]
    pub fn new(first: usize) -> Self {
        assert!(first < WEEK_HOURS, "a week has no hour {first}");
        Self {
            level: 0.0,
            known_count: 0,
            outage_hours: 0,
            away_hours: 0,
            settled_count: 0,
            next: first,
            profile: Profile::default(),
            residuals: Residuals::default(),
            shift: Shift::default(),
            hazard: Hazard::default(),
            leads: LEADS.map(Lead::new).into(),
            weeks: Weeks::default(),
            downtime: Downtime::default(),
        }
    }

    /// Hours whose rate is known, without those that had no link.
    #[must_use]
    pub const fn known_count(&self) -> u64 {
        self.known_count
    }

    /// Takes the next hour. `then` is the hour of the week that follows it, which is not always the
    /// next one because clocks change.
    pub fn observe(&mut self, hour: Hour, then: usize) {
        let here = self.next;
        let rate = self.told(hour, here);
        self.next = then % WEEK_HOURS;
        if self.known_count > 0 && hour != Hour::Unknown {
            self.downtime.observe(here, self.away_hours);
        }
        // Outages are learnt apart: an hour without a link is not an error of the forecast for
        // hours with one.
        if rate == Some(0.0) {
            self.hazard.pass(self.level);
        }
        let Some(rate) = rate.filter(|rate| *rate > 0.0) else {
            self.residuals.push(None);
            self.leads.iter_mut().for_each(Lead::miss);
            self.predict_all();
            return;
        };
        if self.known_count == 0 {
            self.level = rate.clamp(LEVEL_MIN, LEVEL_MAX);
        }
        self.known_count += 1;
        let expected = self.profile.mean(here);
        let spread = self.profile.spread(here);
        self.hazard.pass(self.level);
        let tails = self.hazard.tails(self.level, expected / spread);
        for lead in &mut self.leads {
            lead.score(rate, &tails);
        }
        // The mean of few weeks leans on other days. An hour that is always nearly empty is not an
        // outage.
        let usual = self
            .weeks
            .middle(here)
            .map_or(expected, |middle| middle / self.level);
        self.weeks.observe(here, rate);
        if self.is_outage(rate / self.level, expected.min(usual)) {
            self.residuals.push(None);
            self.predict_all();
            return;
        }
        let residual = (rate / self.level - expected) / spread;
        self.residuals
            .push(Some(residual.clamp(-STRAYED_MAX, STRAYED_MAX)));
        let residuals = &self.residuals;
        for lead in &mut self.leads {
            lead.learn(residuals);
        }
        self.follow(residual, spread, here, rate / self.level);
        self.predict_all();
    }

    /// The rate that an hour tells, if any. A lower bound counts only if it is above the expected
    /// rate.
    fn told(&mut self, hour: Hour, here: usize) -> Option<f64> {
        let expected = self.level * self.profile.mean(here);
        match hour {
            Hour::Rate(rate) if rate <= 0.0 => self.away_hours = self.away_hours.saturating_add(1),
            Hour::Rate(_) | Hour::AtLeast(_) => self.away_hours = 0,
            Hour::Unknown => {}
        }
        match hour {
            Hour::Rate(_) if self.away_hours > OUTAGE_HOURS_MAX => None,
            // A link that has never carried anything has no level to compare with.
            Hour::Rate(rate) if self.known_count == 0 => (rate >= 1.0).then_some(rate),
            Hour::Rate(rate) => Some(rate.max(0.0)),
            Hour::AtLeast(rate) if self.known_count > 0 && rate > expected => Some(rate),
            Hour::AtLeast(_) | Hour::Unknown => None,
        }
    }

    /// Whether an hour that carried next to nothing is an outage, which tells nothing about other
    /// hours. After days of it, it no longer is.
    fn is_outage(&mut self, share: f64, expected: f64) -> bool {
        let is_outage = share < OUTAGE_SHARE * expected && self.outage_hours < OUTAGE_HOURS_MAX;
        self.outage_hours = if share < OUTAGE_SHARE * expected {
            self.outage_hours + 1
        } else {
            0
        };
        is_outage
    }

    /// Updates level, profile and spread with an hour.
    fn follow(&mut self, residual: f64, spread: f64, here: usize, share: f64) {
        let expected = self.profile.mean(here);
        let pulled = residual.clamp(-PULL_MAX, PULL_MAX);
        self.profile
            .observe(here, pulled * spread, residual * spread);
        // At first the level is the mean of what was seen, later it follows slowly.
        self.settled_count += 1;
        let step = LEVEL_STEP.max(1.0 / (to_f64(self.settled_count) + 1.0));
        self.level = (self.level * (1.0 + step * pulled * spread)).clamp(LEVEL_MIN, LEVEL_MAX);
        if let Some(jump) = self.shift.observe(residual, share, expected) {
            self.jump(jump);
        }
    }

    /// Shifts the level, and restates the last residuals relative to the new one.
    fn jump(&mut self, jump: Jump) {
        self.settled_count = SETTLED_AT_JUMP;
        if jump.is_undoing {
            self.hazard.forget_newest();
        } else {
            self.hazard.observe(jump.factor);
        }
        self.leads.iter_mut().for_each(Lead::cross);
        self.profile.loosen();
        self.level = (self.level * jump.factor).clamp(LEVEL_MIN, LEVEL_MAX);
        for residual in self.residuals.0.iter_mut().take(jump.hours).flatten() {
            *residual -= jump.residual;
        }
    }

    fn predict_all(&mut self) {
        for (lead, hours) in self.leads.iter_mut().zip(LEADS) {
            // Ignores clock changes in between, which are not known here and happen only twice a
            // year.
            let target = (self.next + hours - 1) % WEEK_HOURS;
            let scale = self.level * self.profile.spread(target);
            let point = self.level * self.profile.mean(target);
            let residual = lead.residual(&self.residuals, hours);
            lead.expect(point + scale * residual, scale);
        }
    }

    /// The forecast for the hour that is `lead` hours ahead (1 is the one that has begun); `target`
    /// is its hour of the week. `None` while nothing is known.
    #[must_use]
    pub fn forecast(&self, lead: usize, target: usize) -> Option<Band> {
        if self.known_count == 0 {
            return None;
        }
        let lead = lead.clamp(1, WEEK_HOURS);
        let target = target % WEEK_HOURS;
        let after = LEADS.partition_point(|hours| *hours < lead);
        let mean = self.profile.mean(target) / self.profile.spread(target);
        let tails = self.hazard.tails(self.level, mean);
        // The share `down` of all hours has no link. The shares are restated for the hours with
        // one.
        let down = self.downtime.chance(target);
        let shares = SHARES.map(|share| (share - down) / (1.0 - down).max(f64::EPSILON));
        let learnt = |index: usize| self.leads[index].learnt(shares, &tails);
        let high = learnt(after);
        let learnt = if LEADS[after] == lead {
            high
        } else {
            let low = LEADS[after - 1];
            let share = to_f64((lead - low) as u64) / to_f64((LEADS[after] - low) as u64);
            Learnt::between(&learnt(after - 1), &high, share)
        };
        let scale = self.level * self.profile.spread(target);
        let point =
            self.level * self.profile.mean(target) + scale * learnt.residual(&self.residuals, lead);
        let rate = |index: usize| {
            if shares[index] > 0.0 {
                point + scale * learnt.errors[index]
            } else {
                0.0
            }
        };
        Some(Band::new(rate(0), rate(1), rate(2)))
    }
}

/// Detects shifts of the level: residuals that stay on one side (Page's test).
#[derive(Debug, Clone, Copy, Default)]
struct Shift {
    sides: [Side; 2],
    newest: Option<Newest>,
    /// Number of jumps that were taken back within days; they fade.
    undone: f64,
}

/// The newest jump: the logarithm of its factor, its age, and the sums of the actual and the
/// expected rates since, as shares of the level.
#[derive(Debug, Clone, Copy)]
struct Newest {
    size: f64,
    hours_ago: u32,
    shares: f64,
    expected: f64,
}

impl Newest {
    const fn new(size: f64) -> Self {
        Self {
            size,
            hours_ago: 0,
            shares: 0.0,
            expected: 0.0,
        }
    }

    /// Whether changing the level by `size` takes most of this jump back.
    fn is_undone_by(&self, size: f64) -> bool {
        (self.size + size).abs() < self.size.abs() / 2.0
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Side {
    evidence: f64,
    residuals: f64,
    shares: f64,
    expected: f64,
    hours: usize,
}

/// A shift of the level by `factor`. `residual` is the mean residual of the last `hours` hours, in
/// spreads.
#[derive(Debug, Clone, Copy)]
struct Jump {
    factor: f64,
    residual: f64,
    hours: usize,
    /// Whether it takes back the jump before: then neither was a shift.
    is_undoing: bool,
}

impl Shift {
    /// Residuals up to this many spreads are no evidence.
    const SLACK: f64 = 2.5;
    /// Most evidence of one hour, so that a shift takes at least two hours.
    const HOUR_MAX: f64 = 8.0;
    /// Evidence needed for a shift while no jump has been undone, and how much more each undone
    /// jump demands, as a multiple: after one, ten hours of the most evidence.
    const ENOUGH: f64 = 16.0;
    const MORE_EACH: f64 = 4.0;
    /// A jump is on trial for a day. If that day is nearer to the level before, the jump is taken
    /// back.
    const TRIAL_HOURS: u32 = 24;
    /// A jump back within this time undoes the one before, too.
    const UNDONE_HOURS_MAX: u32 = 72;
    /// Factor by which undone jumps fade per hour: a memory of half a year.
    const MEMORY: f64 = 1.0 - 1.0 / 4368.0;

    /// Takes an hour's residual, and its actual and expected rate as shares of the level.
    fn observe(&mut self, residual: f64, share: f64, expected: f64) -> Option<Jump> {
        self.undone *= Self::MEMORY;
        if let Some(newest) = &mut self.newest {
            newest.hours_ago = newest.hours_ago.saturating_add(1);
            newest.shares += share;
            newest.expected += expected;
            let size = (newest.shares / newest.expected.max(0.1)).max(0.05).ln();
            if newest.hours_ago == Self::TRIAL_HOURS && newest.is_undone_by(size) {
                let back = -newest.size;
                return Some(Jump {
                    factor: back.exp(),
                    residual: 0.0,
                    hours: 0,
                    is_undoing: self.note(back),
                });
            }
        }
        let enough = Self::ENOUGH * (1.0 + Self::MORE_EACH * self.undone);
        let mut jump = None;
        for (side, sign) in self.sides.iter_mut().zip([1.0, -1.0]) {
            let evidence = (sign * residual - Self::SLACK).min(Self::HOUR_MAX);
            side.evidence += evidence;
            side.residuals += residual;
            side.shares += share;
            side.expected += expected;
            side.hours += 1;
            if side.evidence <= 0.0 {
                *side = Side::default();
            } else if side.evidence >= enough {
                jump = Some(Jump {
                    factor: (side.shares / side.expected.max(0.1)).max(0.05),
                    residual: side.residuals / to_f64(side.hours as u64),
                    hours: side.hours,
                    is_undoing: false,
                });
            }
        }
        if let Some(jump) = &mut jump {
            jump.is_undoing = self.note(jump.factor.ln());
        }
        jump
    }

    /// Records a jump, restarts the test, and returns whether this takes most of the previous jump
    /// back.
    fn note(&mut self, size: f64) -> bool {
        let is_undone = |newest: Newest| {
            newest.hours_ago <= Self::UNDONE_HOURS_MAX && newest.is_undone_by(size)
        };
        let is_undoing = self.newest.is_some_and(is_undone);
        self.undone += f64::from(u8::from(is_undoing));
        self.newest = Some(Newest::new(size));
        self.sides = [Side::default(); 2];
        is_undoing
    }
}

#[cfg(test)]
mod tests;
