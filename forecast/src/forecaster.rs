//! One direction of the link to one peer: takes samples, makes forecasts, and scores them against
//! what happened.

mod soon;

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use self::soon::Soon;
use crate::band::Band;
use crate::count::{to_f64, whole};
use crate::history::{CLOCK_SET, HOUR_SECONDS, History, SEEN_SECONDS_MIN, Sample};
use crate::moment::Moment;
use crate::recent::Recent;
use crate::score::Score;
use crate::season::{Hour, Season, WEEK_HOURS};
use crate::zone::Zone;

/// The furthest horizon of a forecast: one week.
pub const HORIZON_SECONDS_MAX: u64 = WEEK_HOURS as u64 * HOUR_SECONDS;

/// Up to this horizon a forecast uses the short view alone.
const RECENT_SECONDS: u64 = 60;

/// From this horizon on a forecast uses the long view alone.
const SEASON_SECONDS: u64 = HOUR_SECONDS;

/// Most hours without samples that are handed to the season one by one: half a year. After a longer
/// gap the season is learnt anew.
const GAP_HOURS_MAX: u64 = 4368;

/// Most hours by which the clock may jump and be believed at once. Hosts are switched off for a
/// while, and clocks are adjusted by a little.
const JUMP_HOURS_MAX: u64 = 24;

/// The same limit for a jump ahead while there is a link, because the clock was checked against the
/// link's certificates. Sixty days: hosts are switched off over weekends and holidays.
const AHEAD_HOURS_MAX: u64 = 60 * 24;

/// Most seconds before the beginning of the open hour to which a clock may be put back while that
/// hour stays open. Clocks that run fast are corrected by less.
const BACK_SECONDS_MAX: u64 = 900;

/// How many seconds a clock must keep to a larger jump before it is believed. A host that boots
/// with a wrong time mostly has the right one within minutes.
const DOUBT_SECONDS: u32 = 3600;

/// Outcomes that a score remembers.
const SCORE_COUNT: u64 = 1000;

/// Hours at the end of a history that are scored again at a start: the outcomes that a score
/// remembers, plus the week by which its longest forecasts are made ahead.
const SCORED_HOURS_MAX: u64 = SCORE_COUNT + WEEK_HOURS as u64;

/// Share of a cap that the path must have been seen to carry for the cap to be what a transfer
/// gets. Caps are kept to within one percent.
const REACHED_SHARE: f64 = 0.99;

/// Share of the path's believed rate that a reached cap must have to be news about the path.
const TOLD_SHARE: f64 = 0.98;

/// Samples, one per second, since the start: below `LOW_SAMPLES` a forecast of the next minute has
/// low confidence, from `HIGH_SAMPLES` on high. The first is the minute that is forecast, the
/// second the number of errors that are learnt from.
const LOW_SAMPLES: u64 = 60;
const HIGH_SAMPLES: u64 = 300;

/// Known hours: below `LOW_HOURS` a forecast of hours has low confidence, from `HIGH_HOURS` on
/// high.
const LOW_HOURS: u64 = 48;
const HIGH_HOURS: u64 = 336;

/// Age of the newest capacity sample: above `LOW_AGE_SECONDS` confidence is low, above
/// `HIGH_AGE_SECONDS` it is not high.
const LOW_AGE_SECONDS: u64 = 7 * 86_400;
const HIGH_AGE_SECONDS: u64 = 86_400;

/// A horizon that is scored.
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

    /// The horizon in seconds.
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

/// How reliable a forecast is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Confidence {
    /// Little or old history: the band is a rough guess.
    Low,
    /// Days of history.
    Medium,
    /// Weeks of history, and recent.
    High,
}

impl Confidence {
    /// The name in tables and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}

/// The forecast for one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prediction {
    /// The rate, in bytes per second.
    pub band: Band,
    /// How reliable it is.
    pub confidence: Confidence,
    /// Seconds since the path's capacity was last seen, or the cap was last reached.
    pub age_seconds: u64,
}

/// When a number of bytes will have been sent. `None` means not within [`HORIZON_SECONDS_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CompletionTimes {
    /// The bytes are through by this moment with a probability of one half.
    pub p50: Option<Moment>,
    /// The same if every hour is as slow as the slowest tenth of hours. This is a little later
    /// than the 90 % quantile.
    pub p90: Option<Moment>,
}

/// The rates of the last seconds: as many as count for a whole slot.
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

    /// The rates, once there are enough.
    fn all(&self) -> Option<&VecDeque<f64>> {
        (self.0.len() == Self::COUNT).then_some(&self.0)
    }
}

/// A forecast whose hour has not passed yet.
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
    /// The hour that is not over, by its number since 1970. All hours before it are in the season.
    hour: Option<u64>,
    /// Whether the season has learnt hours that are now in the future again.
    needs_retraining: bool,
    /// Seconds with a link since the clock jumped.
    doubted_seconds: u32,
    recent: Recent,
    newest_capacity: Option<Moment>,
    /// The rates while there was a link.
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
    /// A forecaster that continues a history. Times of day are in the zone.
    #[must_use]
    pub fn new(zone: Zone, history: History) -> Self {
        let mut forecaster = Self {
            zone,
            season: Season::new(0),
            hour: None,
            needs_retraining: false,
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
        // The last hour may not be over. It is handed over when the next one begins.
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
        // The last week is kept at five minutes, which also covers the hour that is not over.
        forecaster.newest_capacity = history.newest_capacity().or(forecaster.newest_capacity);
        forecaster.history = history;
        forecaster
    }

    /// The history, as it should be saved.
    #[must_use]
    pub const fn history(&self) -> &History {
        &self.history
    }

    /// Hours of the past weeks whose capacity is known.
    #[must_use]
    pub const fn known_hours(&self) -> u64 {
        self.season.known_count()
    }

    /// The score of a horizon's forecasts.
    #[must_use]
    pub const fn score(&self, horizon: Horizon) -> &Score {
        &self.scores[horizon as usize]
    }

    /// Takes a sample that ends now and covers this many seconds.
    pub fn observe(&mut self, now: Moment, sample: Sample, seconds: u32) {
        // If the clock was put back, samples from then must not lie in the future.
        self.newest_capacity = self.newest_capacity.map(|at| at.min(now));
        // With a link, its certificates prove the time roughly right. Without one nothing does.
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

    /// Notes the mean rate of the last seconds, and the highest cap that all of the last capped
    /// seconds reached.
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

    /// Takes a reached cap: the path carries the cap or more. If the path's rate is known, this is
    /// news only where the cap is nearly that rate.
    fn reach(&mut self, now: Moment, cap: f64) {
        self.capped_count += 1;
        let believed = self.forecast(now, now).map(|made| made.band.p50);
        if let Some(believed) = believed.filter(|believed| cap >= believed * TOLD_SHARE) {
            self.newest_capacity = Some(now);
            self.recent.observe(believed.max(cap));
        }
    }

    /// What a transfer is expected to get at a moment under a cap, in bytes per second: the path's
    /// rate, or the cap where that is lower. If the path was never the limit, only the rates it was
    /// seen to carry are known; if they reach the cap, the cap is what a transfer gets.
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

    /// The forecast from a cap alone, if the path is known to carry it.
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

    /// The rates carried for long enough in each slot of five minutes of the last week, with the
    /// end of the slot, oldest first.
    fn carried(&self, now: Moment) -> impl Iterator<Item = (Moment, f64)> + '_ {
        let week_ago = now.unix_seconds().saturating_sub(HORIZON_SECONDS_MAX);
        self.history
            .carried_since(Moment::from_unix_seconds(week_ago))
    }

    /// What the path is expected to carry at a moment; `None` while that is not known. A moment in
    /// the past counts as now, one beyond a week as a week ahead.
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

    /// When `bytes` will have been sent if sending begins at `from`, under a cap that changes with
    /// time; `None` while the link's rate at `from` is not known. A moment in the past counts as
    /// now.
    #[must_use]
    pub fn through(
        &self,
        now: Moment,
        from: Moment,
        bytes: u64,
        cap: impl Fn(Moment) -> Option<f64>,
    ) -> Option<CompletionTimes> {
        /// Seconds per step, in which the rate is constant. A timetable changes on the minute.
        const STEP_SECONDS: u64 = 60;
        let from = from.max(now);
        self.forecast_under(now, from, cap(from))?;
        let mut through = CompletionTimes::default();
        // Where no forecast exists, the highest rate carried so far is assumed.
        let carried = self.carried(now).map(|(_, rate)| rate).fold(0.0, f64::max);
        let wanted = to_f64(bytes);
        let (mut sent_p50, mut sent_p10) = (0.0, 0.0);
        let mut held: Option<(u64, Band)> = None;
        let left = HORIZON_SECONDS_MAX.saturating_sub(from.since(now).as_secs());
        for step in 0..left / STEP_SECONDS {
            let begin = from.plus_seconds(step * STEP_SECONDS);
            let hour = hour_of(begin);
            // In the first hour the forecast changes from minute to minute, later it is constant
            // per hour.
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
                *sent += rate * to_f64(STEP_SECONDS);
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

    /// The highest mean rate over five seconds that was seen in the last day, whatever was the
    /// limit. Shorter bursts may have gone into a queue.
    #[must_use]
    pub fn lower_bound(&self, now: Moment) -> Option<f64> {
        let day_ago = Moment::from_unix_seconds(now.unix_seconds().saturating_sub(86_400));
        self.history.peak_since(day_ago)
    }

    fn season_at(&self, now: Moment, at: Moment) -> Option<Band> {
        // Hours may have passed since the last sample that the season has not taken yet.
        let open = self.hour?.min(hour_of(now));
        let lead = hour_of(at).saturating_sub(open) + 1;
        let lead = usize::try_from(lead).unwrap_or(WEEK_HOURS);
        self.season.forecast(lead, self.week_hour(hour_of(at)))
    }

    /// Whether to believe the clock, after `seconds` more with a link. One sample under a wrong
    /// clock must not cost the history or block the years to come, and time without a link proves
    /// nothing. If the clock stays at an earlier time, samples stamped later are dropped as wrong.
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

    /// The moment under which samples of `now` are filed. If the clock was put back by a little,
    /// the open hour goes on, because the season has learnt the hour before.
    fn filed_at(&self, now: Moment) -> Moment {
        let begin = self.hour.map_or(now, begin_of);
        if begin.since(now).as_secs() <= BACK_SECONDS_MAX {
            now.max(begin)
        } else {
            now
        }
    }

    /// Handles a clock that was put back: drops samples stamped later, and lets their hours come
    /// again.
    fn go_back(&mut self, current: u64, now: Moment) {
        self.history.forget_after(now);
        self.hour = Some(current);
        self.open = Default::default();
        self.needs_retraining = true;
    }

    /// Whether the season has learnt hours that are now in the future, because the clock was put
    /// back. It learns nothing more until [`Self::adopt_model`].
    #[must_use]
    pub const fn needs_retraining(&self) -> bool {
        self.needs_retraining
    }

    /// Takes over what another forecaster has learnt from this one's history.
    pub fn adopt_model(&mut self, again: Self) {
        self.season = again.season;
        self.hour = again.hour;
        self.open = again.open;
        self.needs_retraining = false;
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
        if self.needs_retraining {
            self.hour = Some(current);
            return;
        }
        for number in open..current {
            let told = self.history.hour(number);
            self.close_hour(number, told, true);
        }
    }

    /// Closes an hour: scores the forecasts made for it and hands it to the season. If `is_scored`,
    /// also records new forecasts to be scored later.
    fn close_hour(&mut self, number: u64, told: Hour, is_scored: bool) {
        self.settle(number, told);
        self.season.observe(told, self.week_hour(number + 1));
        self.hour = Some(number + 1);
        if is_scored {
            self.open_forecasts(number + 1);
        }
    }

    /// Starts the season with its first hour, unless it has started.
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

    /// Records the forecasts made at the beginning of an hour, to be scored later.
    fn open_forecasts(&mut self, number: u64) {
        for (index, lead) in [1, 24, WEEK_HOURS].into_iter().enumerate() {
            let due = number + lead as u64 - 1;
            if let Some(band) = self.season.forecast(lead, self.week_hour(due)) {
                self.open[index].push_back(Open { due, band });
            }
        }
    }

    /// The hour of the week, from Monday 00:00, of an hour by its number, in the zone's local time.
    fn week_hour(&self, number: u64) -> usize {
        // 1970 began on a Thursday.
        const THURSDAY_HOURS: i64 = 3 * 24;
        const HOUR: i64 = HOUR_SECONDS.cast_signed();
        const WEEK: i64 = (WEEK_HOURS as u64).cast_signed();
        let begin = begin_of(number);
        let offset = self.zone.offset_seconds(begin);
        let seconds = i64::try_from(begin.unix_seconds()).unwrap_or(i64::MAX);
        let hours = (seconds + offset).div_euclid(HOUR) + THURSDAY_HOURS;
        usize::try_from(hours.rem_euclid(WEEK)).expect("an hour of the week")
    }
}

/// The confidence of a forecast that rests on so many samples and known hours. `stale` is the time
/// in seconds from the newest capacity sample to the moment that is forecast, `age_seconds` the age
/// of that sample.
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

/// Mixes the short view and the long view, by the logarithm of the time ahead.
fn between(recent: &Band, season: &Band, seconds: u64) -> Band {
    let from = to_f64(RECENT_SECONDS).ln();
    let to = to_f64(SEASON_SECONDS).ln();
    let share = (to_f64(seconds.max(1)).ln() - from) / (to - from);
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
