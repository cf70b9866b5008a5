//! The weekly timetable of a cap: `50Mbit 09:00-17:00 mon-fri, 200Mbit otherwise`.
//!
//! A [`Week`] is the parsed text; a [`Timetable`] is that week in a time zone. Times are on the
//! zone's wall clock. So when the clocks change, times that are skipped in spring do not occur, and
//! times that are repeated in autumn occur twice.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::civil::{Date, Time};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::rate::Rate;

use crate::moment::Moment;
use crate::zone::{Zone, moment, timestamp};

/// Longest text of a timetable, in bytes: sixty-four entries with their spaces.
pub const TEXT_BYTES_MAX: usize = 4096;

/// Most entries. More than one for each hour of two days is a program, not a timetable.
pub const ENTRY_COUNT_MAX: usize = 64;

const DAY_MINUTES: u16 = 24 * 60;
const WEEK_MINUTES: u16 = 7 * DAY_MINUTES;

/// Days ahead in which the next change is searched for. A change that falls into a skipped hour
/// comes again a week later.
const SEARCH_DAYS: i64 = 15;

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// A cap: a rate, or none.
type Cap = Option<Rate>;

/// A parsed timetable, without a zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Week {
    text: String,
    /// Minutes of the week, from Monday 00:00, at which the cap changes. The first is 0.
    spans: Vec<(u16, Cap)>,
}

/// A week's caps in a time zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timetable {
    week: Week,
    zone: Zone,
}

impl Timetable {
    /// A week on the wall clock of a zone.
    #[must_use]
    pub const fn new(week: Week, zone: Zone) -> Self {
        Self { week, zone }
    }

    /// The cap at a moment; `None` if there is none.
    #[must_use]
    pub fn rate_at(&self, at: Moment) -> Cap {
        self.rate_at_time(timestamp(at))
    }

    /// The first moment after `at` with another cap; `None` if the cap never changes.
    #[must_use]
    pub fn next_change_after(&self, at: Moment) -> Option<Moment> {
        if self.week.spans.len() == 1 {
            return None;
        }
        let now = timestamp(at);
        let current = self.rate_at_time(now);
        let mut candidates = self.candidates(now);
        candidates.retain(|time| *time > now);
        candidates.sort_unstable();
        let next = candidates
            .into_iter()
            .find(|time| self.rate_at_time(*time) != current);
        next.map(moment)
    }

    fn rate_at_time(&self, time: Timestamp) -> Cap {
        let local = self.zone.rules().to_datetime(time);
        let day = u16::from(local.weekday().to_monday_zero_offset().unsigned_abs());
        let hour = u16::from(local.hour().unsigned_abs());
        let minute = u16::from(local.minute().unsigned_abs());
        self.week.cap_at(day * DAY_MINUTES + hour * 60 + minute)
    }

    /// Every time at which the cap may change: where a span begins on the wall clock, and where the
    /// wall clock itself jumps.
    fn candidates(&self, now: Timestamp) -> Vec<Timestamp> {
        let rules = self.zone.rules();
        let today = rules.to_datetime(now).date();
        let mut times = Vec::new();
        for ahead in -1..=SEARCH_DAYS {
            let Ok(date) = today.checked_add(jiff::Span::new().days(ahead)) else {
                continue;
            };
            for (minute, _) in &self.week.spans {
                times.extend(self.times_of(date, *minute));
            }
        }
        let last = times.iter().max().copied();
        let jumps = rules.following(now).map(|jump| jump.timestamp());
        times.extend(jumps.take_while(|jump| Some(*jump) <= last));
        times
    }

    /// When a minute of the week occurs on a date: never on another weekday, twice where the clock
    /// is set back over it.
    fn times_of(&self, date: Date, minute: u16) -> Vec<Timestamp> {
        let day = u16::from(date.weekday().to_monday_zero_offset().unsigned_abs());
        if minute / DAY_MINUTES != day {
            return Vec::new();
        }
        let of_day = minute % DAY_MINUTES;
        let part = |value: u16| i8::try_from(value).expect("an hour or a minute of a day");
        let time = Time::constant(part(of_day / 60), part(of_day % 60), 0, 0);
        let local = self
            .zone
            .rules()
            .to_ambiguous_timestamp(date.to_datetime(time));
        let both = [local.earlier(), local.later()];
        both.into_iter().filter_map(Result::ok).collect()
    }
}

impl Week {
    fn cap_at(&self, minute: u16) -> Cap {
        let after = self.spans.partition_point(|(begin, _)| *begin <= minute);
        self.spans[after - 1].1
    }

    /// The text it was parsed from.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl FromStr for Week {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        parse(text).map_err(|wrong| {
            let (column, why) = (wrong.column, wrong.why);
            Fault::new(Code::Config, format!("column {column}: {why}"))
        })
    }
}

impl fmt::Display for Week {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl Serialize for Week {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Week {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let parsed: Result<Self, Fault> = text.parse();
        parsed.map_err(serde::de::Error::custom)
    }
}

/// What is wrong with a text, and where: in characters, from 1.
struct Wrong {
    column: usize,
    why: String,
}

fn wrong<T>(column: usize, why: impl Into<String>) -> Result<T, Wrong> {
    let why = why.into();
    Err(Wrong { column, why })
}

/// A word and its column.
#[derive(Clone, Copy)]
struct Word<'a> {
    text: &'a str,
    column: usize,
}

impl Word<'_> {
    fn shown(&self) -> String {
        let text: String = self.text.chars().take(24).collect();
        format!("{text:?}")
    }
}

/// The words of each entry. Entries are separated by commas.
fn entries(text: &str) -> Vec<Vec<Word<'_>>> {
    let mut entries = vec![Vec::new()];
    let mut begin: Option<(usize, usize)> = None;
    for (column, (at, c)) in (1..).zip(text.char_indices().chain([(text.len(), ',')])) {
        let is_end = c == ',' || c.is_whitespace();
        if is_end && let Some((from, column)) = begin.take() {
            let text = &text[from..at];
            entries
                .last_mut()
                .expect("one is there from the start")
                .push(Word { text, column });
        }
        if c == ',' && at < text.len() {
            entries.push(Vec::new());
        } else if !is_end && begin.is_none() {
            begin = Some((at, column));
        }
    }
    entries
}

fn parse(text: &str) -> Result<Week, Wrong> {
    if text.len() > TEXT_BYTES_MAX {
        return wrong(1, format!("longer than {TEXT_BYTES_MAX} bytes"));
    }
    let entries = entries(text);
    if entries.len() > ENTRY_COUNT_MAX {
        return wrong(1, format!("more than {ENTRY_COUNT_MAX} entries"));
    }
    let end = text.chars().count() + 1;
    let mut minutes: Vec<Option<Cap>> = vec![None; usize::from(WEEK_MINUTES)];
    let mut otherwise: Option<Cap> = None;
    for words in &entries {
        let Some((first, rest)) = words.split_first() else {
            return wrong(end, "an entry is empty: RATE HH:MM-HH:MM DAYS");
        };
        if otherwise.is_some() {
            return wrong(first.column, "nothing may follow after `otherwise`");
        }
        let cap = parse_cap(first)?;
        if let [word] = rest
            && word.text == "otherwise"
        {
            otherwise = Some(cap);
            continue;
        }
        for minute in parse_when(first, rest)? {
            let held = &mut minutes[usize::from(minute % WEEK_MINUTES)];
            if held.is_some() {
                let when = minute_words(minute % WEEK_MINUTES);
                return wrong(first.column, format!("two entries hold on {when}"));
            }
            *held = Some(cap);
        }
    }
    if otherwise.is_none() && minutes.contains(&None) {
        let example = "end with `200Mbit otherwise` or `unlimited otherwise`";
        return wrong(
            end,
            format!("it does not say what holds otherwise: {example}"),
        );
    }
    let caps = minutes.iter().map(|held| held.or(otherwise).flatten());
    let mut spans: Vec<(u16, Cap)> = (0..).zip(caps).collect();
    spans.dedup_by_key(|(_, cap)| *cap);
    let text = text.trim().to_owned();
    Ok(Week { text, spans })
}

fn parse_cap(word: &Word<'_>) -> Result<Cap, Wrong> {
    if word.text == "unlimited" {
        return Ok(None);
    }
    match word.text.parse::<Rate>() {
        Ok(rate) => Ok(Some(rate)),
        Err(fault) => wrong(word.column, format!("{}; or `unlimited`", fault.detail)),
    }
}

/// The minutes of the week that an entry covers. Minutes beyond Sunday wrap to Monday, which the
/// caller does.
fn parse_when(rate: &Word<'_>, words: &[Word<'_>]) -> Result<Vec<u16>, Wrong> {
    let (time, days) = match words {
        [] => return wrong(rate.column, "say when: HH:MM-HH:MM, days, or `otherwise`"),
        [first, days @ ..] if first.text.contains(':') => (Some(first), days),
        days => (None, days),
    };
    let (from, to) = time.map_or(Ok((0, DAY_MINUTES)), parse_times)?;
    let mut is_on = [days.is_empty(); DAYS.len()];
    for word in days {
        for day in parse_days(word)? {
            is_on[day] = true;
        }
    }
    let length = if to > from {
        to - from
    } else {
        to + DAY_MINUTES - from
    };
    let begins = (0_u16..).zip(is_on).filter(|(_, is_on)| *is_on);
    let begins = begins.map(|(day, _)| day * DAY_MINUTES + from);
    Ok(begins.flat_map(|begin| begin..begin + length).collect())
}

/// Parses `HH:MM-HH:MM`. An end before the begin is on the next day.
fn parse_times(word: &Word<'_>) -> Result<(u16, u16), Wrong> {
    let Some((from, to)) = word.text.split_once('-') else {
        let shown = word.shown();
        return wrong(
            word.column,
            format!("{shown} is no span such as 09:00-17:00"),
        );
    };
    let to_column = word.column + from.chars().count() + 1;
    let from = parse_time(Word {
        text: from,
        ..*word
    })?;
    let to = parse_time(Word {
        text: to,
        column: to_column,
    })?;
    if from == DAY_MINUTES {
        return wrong(word.column, "a span begins at 23:59 at the latest");
    }
    if from == to {
        return wrong(
            word.column,
            "a span of no time; for whole days leave the times out",
        );
    }
    Ok((from, to))
}

/// Parses `HH:MM`; 24:00 is the end of a day.
fn parse_time(word: Word<'_>) -> Result<u16, Wrong> {
    let parts = word.text.split_once(':');
    let number = |text: &str| {
        let is_pair = text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
        is_pair.then(|| text.parse::<u16>().ok()).flatten()
    };
    let time = parts.and_then(|(hour, minute)| Some(number(hour)? * 60 + number(minute)?));
    let is_minute = parts.is_some_and(|(_, minute)| number(minute).is_some_and(|m| m < 60));
    match time {
        Some(minutes) if minutes <= DAY_MINUTES && is_minute => Ok(minutes),
        _ => {
            let shown = word.shown();
            wrong(
                word.column,
                format!("{shown} is no time from 00:00 to 24:00"),
            )
        }
    }
}

/// Parses `mon`, `mon-fri`, `sat-mon` or `daily`.
fn parse_days(word: &Word<'_>) -> Result<Vec<usize>, Wrong> {
    if word.text == "daily" {
        return Ok((0..DAYS.len()).collect());
    }
    if word.text == "otherwise" {
        return wrong(word.column, "`otherwise` follows a rate and stands alone");
    }
    let (from, to) = word.text.split_once('-').unwrap_or((word.text, word.text));
    let day = |text: &str| DAYS.iter().position(|day| *day == text);
    let (Some(from), Some(to)) = (day(from), day(to)) else {
        let (shown, days) = (word.shown(), DAYS.join(" "));
        let why = format!("{shown} is no day: {days}, a span such as mon-fri, or daily");
        return wrong(word.column, why);
    };
    let count = (to + DAYS.len() - from) % DAYS.len() + 1;
    Ok((from..from + count).map(|day| day % DAYS.len()).collect())
}

fn minute_words(minute: u16) -> String {
    let day = DAYS[usize::from(minute / DAY_MINUTES)];
    let (hour, minute) = (minute % DAY_MINUTES / 60, minute % 60);
    format!("{day} {hour:02}:{minute:02}")
}

#[cfg(test)]
mod tests;
