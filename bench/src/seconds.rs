//! Seeded series of a link's capacity by the second: steps, fading like radio, and cross traffic.

use crate::weeks::Random;

/// A kind of series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecondsSet {
    /// The capacity changes every one to ten minutes, by a factor of up to four.
    Steps,
    /// The capacity wanders and fades like that of a radio link: within seconds, and slowly as
    /// well.
    Fading,
    /// Transfers of others come and go; each takes its share while it lasts.
    CrossTraffic,
}

/// The properties of one link, drawn from its seed; each set uses those it needs.
#[derive(Debug)]
struct Link {
    rate: f64,
    rough: f64,
    keep_fast: f64,
    keep_slow: f64,
    spread: f64,
    arrivals_a_second: f64,
}

/// The state that changes from second to second.
#[derive(Debug, Default)]
struct State {
    level: f64,
    fast: f64,
    slow: f64,
    fade_seconds: f64,
    next_step_second: f64,
    /// Remaining seconds of each transfer of others.
    others: Vec<f64>,
}

/// Most concurrent transfers of others; beyond that, new ones are refused.
const OTHERS_MAX: usize = 50;

impl SecondsSet {
    /// Every set.
    pub const ALL: [Self; 3] = [Self::Steps, Self::Fading, Self::CrossTraffic];

    /// The set's name in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Steps => "capacity steps",
            Self::Fading => "fading",
            Self::CrossTraffic => "cross traffic",
        }
    }

    /// The capacity of each second, in bytes per second.
    #[must_use]
    pub fn seconds(self, seed: u64, count: usize) -> Vec<f64> {
        let mut random = Random::new(seed);
        let keep = |seconds: f64| (-1.0 / seconds).exp();
        let link = Link {
            rate: random.log_between(1.25e6, 125e6),
            rough: random.between(0.02, 0.1),
            keep_fast: keep(random.log_between(2.0, 10.0)),
            keep_slow: keep(random.log_between(60.0, 300.0)),
            spread: random.between(0.1, 0.35),
            arrivals_a_second: random.log_between(0.005, 0.1),
        };
        let mut state = State::default();
        let mut second = |index: usize| {
            let share = match self {
                Self::Steps => state.step(index, &mut random),
                Self::Fading => state.fade(&link, &mut random),
                Self::CrossTraffic => state.share(&link, &mut random),
            };
            link.rate * share * (link.rough * random.normal()).exp()
        };
        (0..count).map(&mut second).collect()
    }
}

impl State {
    fn step(&mut self, second: usize, random: &mut Random) -> f64 {
        let second = f64::from(u32::try_from(second).unwrap_or(u32::MAX));
        if second >= self.next_step_second {
            self.next_step_second = second + random.log_between(60.0, 600.0);
            self.level = random.between(-1.4, 1.4);
        }
        self.level.exp()
    }

    fn fade(&mut self, link: &Link, random: &mut Random) -> f64 {
        for (state, keep) in [
            (&mut self.fast, link.keep_fast),
            (&mut self.slow, link.keep_slow),
        ] {
            let kick = link.spread * (1.0 - keep * keep).sqrt();
            *state = *state * keep + kick * random.normal();
        }
        self.fade_seconds -= 1.0;
        // Every few minutes something blocks the path.
        if self.fade_seconds <= 0.0 && random.chance(1.0 / 200.0) {
            self.fade_seconds = random.pareto(2.0, 30.0);
        }
        let left = if self.fade_seconds > 0.0 { 0.3 } else { 1.0 };
        left * (self.fast + self.slow).exp()
    }

    fn share(&mut self, link: &Link, random: &mut Random) -> f64 {
        self.others.iter_mut().for_each(|left| *left -= 1.0);
        self.others.retain(|left| *left > 0.0);
        if random.chance(link.arrivals_a_second) && self.others.len() < OTHERS_MAX {
            self.others.push(random.pareto(3.0, 600.0));
        }
        let count = f64::from(u32::try_from(self.others.len()).unwrap_or(u32::MAX));
        1.0 / (1.0 + count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_seconds_and_no_set_stands_still() {
        for set in SecondsSet::ALL {
            let seconds = set.seconds(7, 1800);
            assert_eq!(seconds, set.seconds(7, 1800));
            assert_ne!(seconds, set.seconds(8, 1800));
            assert!(seconds.iter().all(|rate| rate.is_finite() && *rate > 0.0));
            let (low, high) = seconds.iter().fold((f64::MAX, 0.0), |(low, high), rate| {
                (f64::min(low, *rate), f64::max(high, *rate))
            });
            assert!(high > 1.5 * low, "{}: {low} to {high}", set.as_str());
        }
    }
}
