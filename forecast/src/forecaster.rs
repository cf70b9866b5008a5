//! One direction of the link to one peer: samples in, forecasts out, scored against what happened.

mod soon;

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use self::soon::Soon;
use crate::band::Band;
use crate::count::{precise, whole};
use crate::history::{CLOCK_SET, HOUR_SECONDS, History, SEEN_SECONDS_MIN, Sample};
use crate::moment::Moment;
use crate::recent::Recent;
use crate::score::Score;
use crate::season::{Hour, Season, WEEK_HOURS};
use crate::zone::Zone;

/// The furthest that is forecast: a week.
pub const HORIZON_SECONDS_MAX: u64 = WEEK_HOURS as u64 * HOUR_SECONDS;

/// Up to here the last seconds alone answer.
const RECENT_SECONDS: u64 = 60;

/// From here on the last weeks alone answer.
const SEASON_SECONDS: u64 = HOUR_SECONDS;

/// Most hours without a look that are noted one by one; after more the weeks are learnt anew.
const GAP_HOURS_MAX: u64 = 4368;

/// Most hours by which the clock may jump and be believed at once: hosts are off for a while, and clocks are
/// set by a little.
const JUMP_HOURS_MAX: u64 = 24;

/// Most hours by which it may jump ahead and be believed at once where there is a link, whose certificates it was held
/// against: sixty days, for hosts are off over weekends and holidays.
const AHEAD_HOURS_MAX: u64 = 60 * 24;

/// Most seconds by which a clock may be put back behind the beginning of the open hour for that one to stay open: more
/// than clocks that run too fast are set by.
const BACK_SECONDS_MAX: u64 = 900;

/// How long a clock that has jumped further has to keep to it, in seconds: a host that boots with a wrong time
/// mostly has the right one within minutes.
const DOUBT_SECONDS: u32 = 3600;

/// Outcomes a score remembers.
const SCORE_COUNT: u64 = 1000;

/// Hours before the end of a history that are scored again at a start: as many outcomes as a score remembers, and the week
/// that its forecasts are made ahead.
const SCORED_HOURS_MAX: u64 = SCORE_COUNT + WEEK_HOURS as u64;

/// How much of a cap the path must have been seen to carry for the cap to be what a transfer gets: caps are
/// kept within a hundredth.
const REACHED_SHARE: f64 = 0.99;

/// What the path was seen to carry of what it is believed to, for that to be a word of it.
const TOLD_SHARE: f64 = 0.98;

/// Seconds looked at, since the start, below which a forecast of the next minute has low confidence, and from
/// which it has high: those it is about, and as many as its errors are learnt from.
const LOW_SAMPLES: u64 = 60;
const HIGH_SAMPLES: u64 = 300;

/// Known hours below which a forecast of hours has low confidence, and from which it has high.
const LOW_HOURS: u64 = 48;
const HIGH_HOURS: u64 = 336;

/// Age of the newest capacity above which confidence is low, and above which it is not high.
const LOW_AGE_SECONDS: u64 = 7 * 86_400;
const HIGH_AGE_SECONDS: u64 = 86_400;

/// Horizons that are scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Horizon {
    /// The next second.
    Second,
    /// The mean of the next ten seconds.
    TenSeconds,
    /// The mean of the next minute.
    Minute,
    /// The hour that begins next.
    Hour,
    /// The hour a day ahead.
    Day,
    /// The hour a week ahead.
    Week,
}

impl Horizon {
    /// Every horizon.
    pub const ALL: [Self; 6] = [
        Self::Second,
        Self::TenSeconds,
        Self::Minute,
        Self::Hour,
        Self::Day,
        Self::Week,
    ];

    /// The horizon's name in metrics and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Second => "1s",
            Self::TenSeconds => "10s",
            Self::Minute => "1m",
            Self::Hour => "1h",
            Self::Day => "24h",
            Self::Week => "7d",
        }
    }

    /// How far ahead it is.
    #[must_use]
    pub const fn seconds(self) -> u64 {
        match self {
            Self::Second => 1,
            Self::TenSeconds => 10,
            Self::Minute => 60,
            Self::Hour => HOUR_SECONDS,
            Self::Day => 24 * HOUR_SECONDS,
            Self::Week => HORIZON_SECONDS_MAX,
        }
    }
}

/// How much a forecast is to be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Confidence {
    /// Little or old history: the band is a guess from what little there is.
    Low,
    /// Days of history.
    Medium,
    /// Weeks of history, and fresh.
    High,
}

impl Confidence {
    /// The word in tables and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}

/// What is expected of a moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prediction {
    /// The rate, in bytes per second.
    pub band: Band,
    /// How much it is to be relied on.
    pub confidence: Confidence,
    /// Seconds since the link's capacity was last seen, or the cap reached.
    pub age_seconds: u64,
}

/// When so many bytes would be through; `None` if not within [`HORIZON_SECONDS_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Through {
    /// As likely before as after.
    pub p50: Option<Moment>,
    /// If every hour is as slow as one in ten is; so it is a little later than nine chances in ten.
    pub p90: Option<Moment>,
}

/// The rates of the last seconds, as many as speak for a whole slot.
#[derive(Debug, Clone, Default)]
struct LastSeconds(VecDeque<f64>);

impl LastSeconds {
    const COUNT: usize = SEEN_SECONDS_MIN as usize;

    fn push(&mut self, rate: f64, seconds: u32) {
        for _ in 0..seconds.min(SEEN_SECONDS_MIN) {
            self.0.truncate(Self::COUNT - 1);
            self.0.push_front(rate);
        }
    }

    /// All of them, once they are enough.
    fn all(&self) -> Option<&VecDeque<f64>> {
        (self.0.len() == Self::COUNT).then_some(&self.0)
    }
}

/// A forecast whose hour has not come.
#[derive(Debug, Clone, Copy)]
struct Open {
    due: u64,
    band: Band,
}

/// One direction of a link.
#[derive(Debug, Clone)]
pub struct Forecaster {
    zone: Zone,
    history: History,
    season: Season,
    /// The hour that is not over, by its number since 1970; everything before is in the season.
    hour: Option<u64>,
    /// The season has learnt hours that are still to come.
    is_astray: bool,
    /// Seconds looked at since the clock jumped.
    doubted_seconds: u32,
    recent: Recent,
    newest_capacity: Option<Moment>,
    /// What went through while there was a link.
    passed: LastSeconds,
    /// The caps that were reached while the cap was the limit.
    caps: LastSeconds,
    /// Samples since the start in which the cap was the limit.
    capped_count: u64,
    open: [VecDeque<Open>; 3],
    soon: [Soon; 3],
    scores: [Score; Horizon::ALL.len()],
}

impl Forecaster {
    /// A forecaster that goes on where a history ends; times of day are those of the zone.
    #[must_use]
    pub fn new(zone: Zone, history: History) -> Self {
        let mut forecaster = Self {
            zone,
            season: Season::new(0),
            hour: None,
            is_astray: false,
            doubted_seconds: 0,
            recent: Recent::default(),
            newest_capacity: None,
            passed: LastSeconds::default(),
            caps: LastSeconds::default(),
            capped_count: 0,
            open: Default::default(),
            soon: [Horizon::Second, Horizon::TenSeconds, Horizon::Minute].map(Soon::new),
            scores: Default::default(),
            history: History::default(),
        };
        let hours: Vec<(u64, Hour)> = history.hours().collect();
        // The last one may not be over: it is taken when the next one begins.
        if let Some((last, earlier)) = hours.split_last() {
            for (number, hour) in earlier {
                forecaster.begin(*number);
                let is_scored = number + SCORED_HOURS_MAX >= last.0;
                forecaster.close_hour(*number, *hour, is_scored);
                if matches!(hour, Hour::Rate(rate) if *rate > 0.0) {
                    forecaster.newest_capacity = Some(begin_of(number + 1));
                }
            }
            forecaster.begin(last.0);
        }
        // Of the last week it is known to five minutes, those of the hour that is not over among them.
        forecaster.newest_capacity = history.newest_capacity().or(forecaster.newest_capacity);
        forecaster.history = history;
        forecaster
    }

    /// What is kept.
    #[must_use]
    pub const fn history(&self) -> &History {
        &self.history
    }

    /// Hours of the past weeks whose capacity is known.
    #[must_use]
    pub const fn known_hours(&self) -> u64 {
        self.season.known_count()
    }

    /// How good the forecasts of a horizon were.
    #[must_use]
    pub const fn score(&self, horizon: Horizon) -> &Score {
        &self.scores[horizon as usize]
    }

    /// Takes a sample of so many seconds that ends now.
    pub fn observe(&mut self, now: Moment, sample: Sample, seconds: u32) {
        // A clock that was put back: what was seen then was not seen later than now.
        self.newest_capacity = self.newest_capacity.map(|at| at.min(now));
        // A link was made with certificates whose time the clock was held against; without one nothing was.
        let checked = if matches!(sample, Sample::Down) {
            0
        } else {
            seconds
        };
        if self.believes(now, checked) {
            let filed = self.filed_at(now);
            self.turn_hour(filed);
            self.history.observe(filed, sample, seconds);
            self.note(filed, sample, seconds);
        }
        match sample {
            Sample::Capacity(rate) => {
                self.newest_capacity = Some(now);
                self.recent.observe(rate);
                self.soon.iter_mut().for_each(|soon| soon.add(rate));
            }
            Sample::CapLimited(rate) => self.reach(now, rate),
            Sample::ApplicationLimited(_) | Sample::Down => {}
        }
        for soon in &mut self.soon {
            let score = &mut self.scores[soon.horizon() as usize];
            soon.turn(now, &self.recent, score);
        }
    }

    /// Notes what the last seconds have in common: what went through, and the highest cap that each of them had reached.
    fn note(&mut self, filed: Moment, sample: Sample, seconds: u32) {
        match sample {
            Sample::Capacity(rate)
            | Sample::ApplicationLimited(rate)
            | Sample::CapLimited(rate) => self.passed.push(rate, seconds),
            Sample::Down => self.passed = LastSeconds::default(),
        }
        if let Some(rates) = self.passed.all() {
            let mean = rates.iter().sum::<f64>() / f64::from(SEEN_SECONDS_MIN);
            self.history.peak(filed, mean);
        }
        if let Sample::CapLimited(cap) = sample {
            self.caps.push(cap, seconds);
            if let Some(caps) = self.caps.all() {
                let held = caps.iter().copied().fold(f64::INFINITY, f64::min);
                self.history.hold(filed, held);
            }
        }
    }

    /// The path carries the cap, or more: of a path that is known this is news only if that is as much as it
    /// is believed to carry.
    fn reach(&mut self, now: Moment, cap: f64) {
        self.capped_count += 1;
        let believed = self.forecast(now, now).map(|made| made.band.p50);
        if let Some(believed) = believed.filter(|believed| cap >= believed * TOLD_SHARE) {
            self.newest_capacity = Some(now);
            self.recent.observe(believed.max(cap));
        }
    }

    /// What a transfer is expected to get at a moment under a cap, in bytes per second: the path's rate, or
    /// the cap where that is lower. Of a path that was never the limit only what it was seen to carry is
    /// known; if that is the cap or more, the cap is what a transfer gets.
    #[must_use]
    pub fn forecast_under(&self, now: Moment, at: Moment, cap: Option<f64>) -> Option<Prediction> {
        let path = self.forecast(now, at);
        let Some(cap) = cap else { return path };
        let capped = |mut made: Prediction| {
            made.band = made.band.map(|rate| rate.min(cap));
            made
        };
        path.map(capped).or_else(|| self.reached(now, at, cap))
    }

    /// The forecast of a cap that the path is known to carry, and nothing else.
    fn reached(&self, now: Moment, at: Moment, cap: f64) -> Option<Prediction> {
        let is_reached = |rate: f64| rate >= cap * REACHED_SHARE;
        let newest = self.carried(now).filter(|(_, rate)| is_reached(*rate));
        let end = newest.map(|(end, _)| end).last()?;
        let age_seconds = now.since(end).as_secs();
        let current = hour_of(now);
        let hours = self
            .history
            .hours_carried()
            .filter(|(number, rate)| *number < current && is_reached(*rate));
        let ahead = at.since(now).as_secs().min(HORIZON_SECONDS_MAX);
        Some(Prediction {
            band: Band::new(cap, cap, cap),
            confidence: confidence(
                self.capped_count,
                hours.count() as u64,
                ahead.saturating_add(age_seconds),
                age_seconds,
            ),
            age_seconds,
        })
    }

    /// What was seen to go through for long enough in the five minutes that ended at each moment of the last week, oldest
    /// first.
    fn carried(&self, now: Moment) -> impl Iterator<Item = (Moment, f64)> + '_ {
        let week_ago = now.unix_seconds().saturating_sub(HORIZON_SECONDS_MAX);
        self.history
            .carried_since(Moment::from_unix_seconds(week_ago))
    }

    /// What the path is expected to carry at a moment; `None` while that is not known. What lies in the
    /// past is taken as now, what lies beyond a week as a week ahead.
    #[must_use]
    pub fn forecast(&self, now: Moment, at: Moment) -> Option<Prediction> {
        let newest = self.newest_capacity?;
        let ahead = at.since(now).as_secs().min(HORIZON_SECONDS_MAX);
        let age_seconds = now.since(newest).as_secs();
        let stale = ahead.saturating_add(age_seconds);
        let recent = self
            .recent
            .forecast(stale)
            .filter(|_| stale < SEASON_SECONDS);
        let season = self.season_at(now, now.plus_seconds(ahead));
        let band = match (recent, season) {
            (Some(recent), Some(season)) => between(&recent, &season, stale),
            (one, other) => one.or(other)?,
        };
        Some(Prediction {
            band,
            confidence: confidence(
                self.recent.count(),
                self.season.known_count(),
                stale,
                age_seconds,
            ),
            age_seconds,
        })
    }

    /// When `bytes` would be through if sending began at a moment, under a cap that changes with time; `None` while what
    /// the link carries then is not known. What lies in the past is taken as now.
    #[must_use]
    pub fn through(
        &self,
        now: Moment,
        from: Moment,
        bytes: u64,
        cap: impl Fn(Moment) -> Option<f64>,
    ) -> Option<Through> {
        /// Steps the rate is held for: a timetable changes on the minute.
        const STEP_SECONDS: u64 = 60;
        let from = from.max(now);
        self.forecast_under(now, from, cap(from))?;
        let mut through = Through::default();
        // Where nothing else is known, what went through once goes through.
        let carried = self.carried(now).map(|(_, rate)| rate).fold(0.0, f64::max);
        let wanted = precise(bytes);
        let (mut sent_p50, mut sent_p10) = (0.0, 0.0);
        let mut held: Option<(u64, Band)> = None;
        let left = HORIZON_SECONDS_MAX.saturating_sub(from.since(now).as_secs());
        for step in 0..left / STEP_SECONDS {
            let begin = from.plus_seconds(step * STEP_SECONDS);
            let hour = hour_of(begin);
            // The first hour changes from minute to minute, later ones are one number.
            let is_held = begin.since(now).as_secs() > SEASON_SECONDS;
            let band = match held {
                Some((held_hour, band)) if is_held && held_hour == hour => band,
                _ => self
                    .forecast(now, begin)
                    .map_or_else(|| Band::new(carried, carried, carried), |p| p.band),
            };
            held = Some((hour, band));
            let most = cap(begin).unwrap_or(f64::INFINITY);
            for (sent, rate, done) in [
                (&mut sent_p50, band.p50, &mut through.p50),
                (&mut sent_p10, band.p10, &mut through.p90),
            ] {
                let rate = rate.min(most);
                let missing = wanted - *sent;
                *sent += rate * precise(STEP_SECONDS);
                if done.is_none() && *sent >= wanted {
                    *done = Some(begin.plus_seconds(whole((missing / rate.max(1e-9)).ceil())));
                }
            }
            if through.p90.is_some() && through.p50.is_some() {
                break;
            }
        }
        Some(through)
    }

    /// The most that was seen to go through in five seconds of the last day, whatever was the limit then: what fits into
    /// less may have gone into a queue.
    #[must_use]
    pub fn at_least(&self, now: Moment) -> Option<f64> {
        let day_ago = Moment::from_unix_seconds(now.unix_seconds().saturating_sub(86_400));
        self.history.peak_since(day_ago)
    }

    fn season_at(&self, now: Moment, at: Moment) -> Option<Band> {
        // Between the last sample and now hours may have passed that nobody has noted yet.
        let open = self.hour?.min(hour_of(now));
        let lead = hour_of(at).saturating_sub(open) + 1;
        let lead = usize::try_from(lead).unwrap_or(WEEK_HOURS);
        self.season.forecast(lead, self.week_hour(hour_of(at)))
    }

    /// Whether the clock is right, as far as one can tell after so many more seconds with a link: one look under a
    /// wrong one must cost neither the years that are kept nor those to come, and no hours without a link do. If it
    /// keeps to an earlier time, what lies ahead of that never was.
    fn believes(&mut self, now: Moment, seconds: u32) -> bool {
        if now < CLOCK_SET {
            return false;
        }
        let current = hour_of(now);
        let Some(open) = self.hour else { return true };
        let is_ahead = current > open && seconds > 0;
        let most = if is_ahead {
            AHEAD_HOURS_MAX
        } else {
            JUMP_HOURS_MAX
        };
        if current.abs_diff(open) <= most {
            self.doubted_seconds = 0;
            return true;
        }
        self.doubted_seconds = self.doubted_seconds.saturating_add(seconds);
        if self.doubted_seconds < DOUBT_SECONDS {
            return false;
        }
        self.doubted_seconds = 0;
        true
    }

    /// The moment that what is seen now is kept under: a clock that was put back by a little goes on with the open hour,
    /// for the one before is learnt.
    fn filed_at(&self, now: Moment) -> Moment {
        let begin = self.hour.map_or(now, begin_of);
        if begin.since(now).as_secs() <= BACK_SECONDS_MAX {
            now.max(begin)
        } else {
            now
        }
    }

    /// The clock was put back: what lies ahead of it never was, and its hours are still to come.
    fn go_back(&mut self, current: u64, now: Moment) {
        self.history.forget_after(now);
        self.hour = Some(current);
        self.open = Default::default();
        self.is_astray = true;
    }

    /// Whether the season has learnt hours that are still to come, for the clock was put back: until [`Self::follow`]
    /// it learns no more.
    #[must_use]
    pub const fn is_astray(&self) -> bool {
        self.is_astray
    }

    /// Goes on with what another forecaster has learnt of this one's history.
    pub fn follow(&mut self, again: Self) {
        self.season = again.season;
        self.hour = again.hour;
        self.open = again.open;
        self.is_astray = false;
    }

    /// Hands the hours that are over to the season.
    fn turn_hour(&mut self, now: Moment) {
        let current = hour_of(now);
        let Some(open) = self.hour else {
            self.begin(current);
            self.hour = Some(current);
            return;
        };
        if current < open {
            self.go_back(current, now);
            return;
        }
        if current.saturating_sub(open) > GAP_HOURS_MAX {
            let history = std::mem::take(&mut self.history);
            *self = Self::new(self.zone.clone(), History::default());
            self.history = history;
            self.begin(current);
            return;
        }
        if self.is_astray {
            self.hour = Some(current);
            return;
        }
        for number in open..current {
            let told = self.history.hour(number);
            self.close_hour(number, told, true);
        }
    }

    /// Hands an hour that is over to the season; if it is scored, with what was forecast of it and is of the next ones.
    fn close_hour(&mut self, number: u64, told: Hour, is_scored: bool) {
        self.settle(number, told);
        self.season.observe(told, self.week_hour(number + 1));
        self.hour = Some(number + 1);
        if is_scored {
            self.open_forecasts(number + 1);
        }
    }

    /// The season begins with the first hour there is.
    fn begin(&mut self, number: u64) {
        if self.hour.is_none() {
            self.season = Season::new(self.week_hour(number));
            self.hour = Some(number);
        }
    }

    /// Scores the forecasts of an hour that is over.
    fn settle(&mut self, number: u64, told: Hour) {
        let horizons = [Horizon::Hour, Horizon::Day, Horizon::Week];
        for (open, horizon) in self.open.iter_mut().zip(horizons) {
            while open.front().is_some_and(|first| first.due <= number) {
                let first = open.pop_front();
                if let (Some(first), Hour::Rate(rate)) = (first, told)
                    && first.due == number
                {
                    self.scores[horizon as usize].observe_within(&first.band, rate, SCORE_COUNT);
                }
            }
        }
    }

    /// Notes what is forecast at the beginning of an hour, for the scores.
    fn open_forecasts(&mut self, number: u64) {
        for (index, lead) in [1, 24, WEEK_HOURS].into_iter().enumerate() {
            let due = number + lead as u64 - 1;
            if let Some(band) = self.season.forecast(lead, self.week_hour(due)) {
                self.open[index].push_back(Open { due, band });
            }
        }
    }

    /// Which hour of the week an hour is, by the zone's clocks.
    fn week_hour(&self, number: u64) -> usize {
        // 1970 began on a Thursday.
        const THURSDAY_HOURS: i64 = 3 * 24;
        let begin = begin_of(number);
        let offset = self.zone.offset_seconds(begin);
        let seconds = i64::try_from(begin.unix_seconds()).unwrap_or(i64::MAX);
        let hours = (seconds + offset).div_euclid(3600) + THURSDAY_HOURS;
        usize::try_from(hours.rem_euclid(168)).expect("an hour of the week")
    }
}

/// How much a forecast is to be relied on that rests on so many samples and hours and is so many seconds away
/// from the newest, which is so old.
const fn confidence(samples: u64, hours: u64, stale: u64, age_seconds: u64) -> Confidence {
    if stale <= 2 * RECENT_SECONDS {
        return match samples {
            0..LOW_SAMPLES => Confidence::Low,
            LOW_SAMPLES..HIGH_SAMPLES => Confidence::Medium,
            _ => Confidence::High,
        };
    }
    if hours < LOW_HOURS || age_seconds > LOW_AGE_SECONDS {
        Confidence::Low
    } else if hours < HIGH_HOURS || age_seconds > HIGH_AGE_SECONDS {
        Confidence::Medium
    } else {
        Confidence::High
    }
}

/// From the last seconds' word to the last weeks', by the logarithm of the time.
fn between(recent: &Band, season: &Band, seconds: u64) -> Band {
    let from = precise(RECENT_SECONDS).ln();
    let to = precise(SEASON_SECONDS).ln();
    let share = (precise(seconds.max(1)).ln() - from) / (to - from);
    let share = share.clamp(0.0, 1.0);
    let mix = |recent: f64, season: f64| recent + (season - recent) * share;
    Band::new(
        mix(recent.p10, season.p10),
        mix(recent.p50, season.p50),
        mix(recent.p90, season.p90),
    )
}

const fn hour_of(at: Moment) -> u64 {
    at.unix_seconds() / HOUR_SECONDS
}

const fn begin_of(number: u64) -> Moment {
    Moment::from_unix_seconds(number.saturating_mul(HOUR_SECONDS))
}

#[cfg(test)]
mod tests;
