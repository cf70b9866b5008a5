//! Seeded series of a link's capacity over weeks: days and nights, drift, noise, bursts, and what
//! each set adds (a trend, holidays, level shifts, outages).
//!
//! A link's capacity is that of its line less what others use. The seed decides whether the others
//! use a share of the line or an amount of their own, in which hours they are busy, how strongly
//! their use varies, and how long such variations last.

use std::f64::consts::TAU;

use crate::random::split_mix;

/// Hours of a day.
pub const DAY_HOURS: usize = 24;
/// Hours of a week; series begin on a Monday at 00:00.
pub const WEEK_HOURS: usize = 168;

/// Steps of five minutes in an hour.
const HOUR_STEPS: usize = 12;

/// A kind of series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Set {
    /// Days, nights, weekends, drift, noise and bursts.
    Plain,
    /// The capacity grows or shrinks by a few percent per week.
    Trend,
    /// Some working days are like Sundays, and once there is a week of holidays.
    Holidays,
    /// The line becomes faster or slower by a factor of up to three, every two to four weeks.
    Shifts,
    /// The line fails about twice a week, for minutes up to a day.
    Outages,
}

impl Set {
    /// Every set.
    pub const ALL: [Self; 5] = [
        Self::Plain,
        Self::Trend,
        Self::Holidays,
        Self::Shifts,
        Self::Outages,
    ];

    /// The set's name in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Trend => "trend",
            Self::Holidays => "holidays",
            Self::Shifts => "level shifts",
            Self::Outages => "outages",
        }
    }
}

/// A seeded random number generator.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Starts from a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    const fn next(&mut self) -> u64 {
        split_mix(&mut self.0)
    }

    /// From 0 to less than 1.
    pub fn unit(&mut self) -> f64 {
        let bits = u32::try_from(self.next() >> 32).expect("half of the bits");
        f64::from(bits) / 4_294_967_296.0
    }

    /// From `low` to less than `high`.
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Log-uniform between `low` and `high`.
    pub fn log_between(&mut self, low: f64, high: f64) -> f64 {
        self.between(low.ln(), high.ln()).exp()
    }

    /// True with this probability.
    pub fn chance(&mut self, chance: f64) -> bool {
        self.unit() < chance
    }

    /// Normal, mean 0 and standard deviation 1 (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (TAU * self.unit()).cos()
    }

    /// Long-tailed: at least `low`, at most `high`, with tail index 1.5 (Pareto).
    pub fn pareto(&mut self, low: f64, high: f64) -> f64 {
        (low / (1.0 - self.unit()).powf(1.0 / 1.5)).min(high)
    }
}

/// The share of the line that others use, by hour of the day; one row each for working days,
/// Saturdays and Sundays.
type Use = [[f64; DAY_HOURS]; 3];

/// The properties of one link, drawn from its seed.
#[derive(Debug)]
struct Link {
    line: f64,
    usage: Use,
    /// Whether the others use a share of the line as it is now, or an amount that does not depend
    /// on it.
    is_share: bool,
    mood_spread: f64,
    mood_hours: f64,
    step_spread: f64,
    bursts_a_day: f64,
    drift_a_week: f64,
}

impl Link {
    fn new(random: &mut Random) -> Self {
        let mut usage = [[0.0; DAY_HOURS]; 3];
        let base = random.between(0.05, 0.2);
        let shift = random.between(-2.0, 2.0);
        for (row, (day, evening)) in usage.iter_mut().zip([(1.0, 0.7), (0.35, 0.9), (0.25, 1.0)]) {
            let day = day * random.between(0.2, 0.5);
            let evening = evening * random.between(0.1, 0.45);
            let width = random.between(2.0, 3.5);
            for (hour, share) in row.iter_mut().enumerate() {
                let bump = |middle: f64, width: f64| {
                    let hour = f64::from(u8::try_from(hour).expect("an hour of a day"));
                    let far = (hour - middle - shift + 36.0).rem_euclid(24.0) - 12.0;
                    (-far * far / (2.0 * width * width)).exp()
                };
                let share_here = base + day * bump(13.0, width) + evening * bump(20.5, 1.8);
                *share = share_here.min(0.9);
            }
        }
        Self {
            line: random.log_between(1.25e6, 125e6),
            usage,
            is_share: random.chance(0.5),
            mood_spread: random.between(0.05, 0.25),
            mood_hours: random.log_between(1.0, 18.0),
            step_spread: random.between(0.02, 0.1),
            bursts_a_day: random.between(0.5, 4.0),
            drift_a_week: random.between(0.005, 0.03),
        }
    }
}

/// Mean capacity of each hour, in bytes per second; the first hour is Monday 00:00.
#[must_use]
pub fn hours(set: Set, seed: u64, weeks: usize) -> Vec<f64> {
    let steps = steps(set, seed, weeks);
    let mean = |hour: &[f64]| hour.iter().sum::<f64>() / 12.0;
    steps.chunks_exact(HOUR_STEPS).map(mean).collect()
}

/// Capacity in steps of five minutes, in bytes per second.
#[must_use]
pub fn steps(set: Set, seed: u64, weeks: usize) -> Vec<f64> {
    let mut random = Random::new(seed);
    let link = Link::new(&mut random);
    let mut scene = Scene::new(set, weeks, &mut random);
    let mut weather = Weather::default();
    let mut steps = Vec::with_capacity(weeks * WEEK_HOURS * HOUR_STEPS);
    for hour in 0..weeks * WEEK_HOURS {
        let row = scene.kind_of_day(hour / DAY_HOURS);
        let now = link.usage[row][hour % DAY_HOURS];
        let then = link.usage[scene.kind_of_day((hour + 1) / DAY_HOURS)][(hour + 1) % DAY_HOURS];
        for step in 0..HOUR_STEPS {
            let part = f64::from(u8::try_from(step).expect("of twelve")) / 12.0;
            let busy = now + (then - now) * part;
            weather.step(&link, &mut random);
            let line = scene.line(hour, &mut random) * weather.drift.exp();
            let taken = (busy * weather.mood.exp() + weather.burst).min(0.97);
            let free = if link.is_share {
                line * (1.0 - taken)
            } else {
                (line - taken * 0.8).max(0.03 * line)
            };
            let rough = (link.step_spread * random.normal()).exp();
            steps.push(link.line * (free * rough).max(0.0));
        }
    }
    steps
}

/// The state that evolves from step to step.
#[derive(Debug, Default)]
struct Weather {
    /// Log of the others' use relative to usual; it reverts to zero.
    mood: f64,
    /// Log of the line's drift.
    drift: f64,
    /// What a burst takes, and the steps it still lasts.
    burst: f64,
    burst_steps: f64,
}

impl Weather {
    fn step(&mut self, link: &Link, random: &mut Random) {
        let keep = (-1.0 / (12.0 * link.mood_hours)).exp();
        let kick = link.mood_spread * (1.0 - keep * keep).sqrt();
        self.mood = self.mood * keep + kick * random.normal();
        let step = link.drift_a_week / 2016_f64.sqrt();
        self.drift += step * random.normal();
        self.burst_steps -= 1.0;
        if self.burst_steps <= 0.0 {
            self.burst = 0.0;
        }
        if random.chance(link.bursts_a_day / 288.0) {
            self.burst = random.between(0.1, 0.5);
            self.burst_steps = random.pareto(2.0, 72.0);
        }
    }
}

/// The state of what a set adds.
#[derive(Debug)]
struct Scene {
    set: Set,
    growth_a_week: f64,
    /// Days that are like Sundays.
    holidays: Vec<bool>,
    /// The line's rate relative to its first rate.
    level: f64,
    next_shift_hour: f64,
    outage_steps: f64,
}

impl Scene {
    fn new(set: Set, weeks: usize, random: &mut Random) -> Self {
        let size = random.between(0.01, 0.04);
        let is_growing = random.chance(0.5);
        let mut holidays: Vec<bool> = (0..=weeks * 7).map(|_| random.chance(0.07)).collect();
        let block = random.unit();
        if set == Set::Holidays && weeks > 3 {
            // Nine days, from a Saturday to the Sunday of the following week, in the last third.
            let last = f64::from(u32::try_from(weeks).unwrap_or(u32::MAX));
            let week = (last * (0.67 + 0.2 * block)).floor();
            let from = (0..weeks).take_while(|w| f64::from(u32::try_from(*w).unwrap_or(0)) < week);
            let from = from.count() * 7 + 5;
            for day in holidays.iter_mut().skip(from).take(9) {
                *day = true;
            }
        } else if set != Set::Holidays {
            holidays.fill(false);
        }
        Self {
            set,
            growth_a_week: if is_growing { size } else { -size },
            holidays,
            level: 1.0,
            next_shift_hour: random.between(200.0, 600.0),
            outage_steps: 0.0,
        }
    }

    fn kind_of_day(&self, day: usize) -> usize {
        match day % 7 {
            5 => 1,
            6 => 2,
            _ if self.holidays.get(day).copied().unwrap_or(false) => 2,
            _ => 0,
        }
    }

    /// The line's rate relative to its first rate.
    fn line(&mut self, hour: usize, random: &mut Random) -> f64 {
        let hour = f64::from(u32::try_from(hour).unwrap_or(u32::MAX));
        match self.set {
            Set::Plain | Set::Holidays => 1.0,
            Set::Trend => (self.growth_a_week * hour / 168.0).exp(),
            Set::Shifts => {
                if hour >= self.next_shift_hour {
                    self.next_shift_hour = hour + random.between(336.0, 672.0);
                    let factor = random.log_between(1.3, 3.0);
                    let is_up = random.chance(0.5);
                    let level = if is_up {
                        self.level * factor
                    } else {
                        self.level / factor
                    };
                    self.level = level.clamp(0.3, 4.0);
                }
                self.level
            }
            Set::Outages => {
                self.outage_steps -= 1.0;
                if self.outage_steps <= 0.0 && random.chance(2.0 / 2016.0) {
                    self.outage_steps = random.pareto(2.0, 288.0);
                }
                if self.outage_steps > 0.0 { 0.0 } else { 1.0 }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_weeks_and_another_gives_others() {
        for set in Set::ALL {
            let weeks = hours(set, 7, 6);
            assert_eq!(weeks.len(), 6 * WEEK_HOURS);
            assert!(weeks.iter().all(|rate| rate.is_finite() && *rate >= 0.0));
            assert_eq!(weeks, hours(set, 7, 6));
            assert_ne!(weeks, hours(set, 8, 6));
        }
    }

    #[test]
    fn each_set_shows_what_it_is_made_to_show() {
        let quiet = |set| {
            let count = |seed| {
                hours(set, seed, 12)
                    .iter()
                    .filter(|rate| **rate < 1.0)
                    .count()
            };
            (1..6).map(count).sum::<usize>()
        };
        assert_eq!(quiet(Set::Plain), 0);
        assert!(quiet(Set::Outages) > 5);
        let mean = |hours: &[f64]| hours.iter().sum::<f64>();
        let change = |set, seed| {
            let all = hours(set, seed, 12);
            let (first, last) = (mean(&all[..336]), mean(&all[10 * WEEK_HOURS..]));
            (last / first).ln().abs()
        };
        let changes = |set| (1..6).map(|seed| change(set, seed)).sum::<f64>();
        assert!(changes(Set::Trend) > 2.0 * changes(Set::Plain));
        assert!(changes(Set::Shifts) > 2.0 * changes(Set::Plain));
    }
}
