//! Scores the long view against its rivals, on seeded weeks or on those of a trace.

use std::ops::Range;

use towpath_bench::weeks::{Set, WEEK_HOURS, hours};
use towpath_forecast::score::pinball;
use towpath_forecast::season::{Hour, Season};

use super::rivals::{Quantiles, Rival};
use super::{Lead, SetReport, Tally, Unit};

/// Leads that are scored, in hours; the goals concern 24.
const LEADS: [usize; 5] = [1, 6, 24, 72, WEEK_HOURS];

/// Hours of a link, each with its mean rate in bytes per second, if known.
pub(crate) struct Series {
    pub(crate) hours: Vec<Option<f64>>,
    /// The hour of the week of the first one.
    pub(crate) first: usize,
}

impl Series {
    /// The hours as the rivals see them. They do not handle gaps, so the last rate fills a gap.
    fn filled(&self) -> Vec<f64> {
        let mut last = self.hours.iter().find_map(|hour| *hour).unwrap_or(0.0);
        let fill = |hour: &Option<f64>| {
            last = hour.unwrap_or(last);
            last
        };
        self.hours.iter().map(fill).collect()
    }

    const fn week_hour(&self, index: usize) -> usize {
        (self.first + index) % WEEK_HOURS
    }
}

/// Scores every set of weeks, on each of the seeds.
pub(crate) fn report(seeds: &[u64], taught_weeks: usize, scored_weeks: usize) -> Vec<SetReport> {
    let report = |set: Set| {
        let mut tallies = tallies();
        for seed in seeds {
            let rates = hours(set, *seed, taught_weeks + scored_weeks + 1);
            let series = Series {
                hours: rates.into_iter().map(Some).collect(),
                first: 0,
            };
            score(&series, taught_weeks, scored_weeks, &mut tallies);
        }
        reported(set.as_str(), &tallies)
    };
    Set::ALL.map(report).into()
}

/// Scores the weeks of a trace, after those used for training.
pub(crate) fn report_trace(series: &Series, taught_weeks: usize, scored_weeks: usize) -> SetReport {
    let mut tallies = tallies();
    score(series, taught_weeks, scored_weeks, &mut tallies);
    reported("trace", &tallies)
}

fn tallies() -> Vec<Tally> {
    LEADS.map(|_| Tally::default()).into()
}

fn reported(set: &'static str, tallies: &[Tally]) -> SetReport {
    let leads = LEADS.into_iter().zip(tallies);
    SetReport {
        set,
        leads: leads
            .map(|(lead, tally)| tally.report(Lead(lead, Unit::Hours)))
            .collect(),
    }
}

/// Scores our forecast and all rivals on one series.
fn score(series: &Series, taught_weeks: usize, scored_weeks: usize, tallies: &mut [Tally]) {
    let from = taught_weeks * WEEK_HOURS;
    let scored = from..from + scored_weeks * WEEK_HOURS;
    let filled = series.filled();
    let scale = super::mean(&filled);
    let mut season = Season::new(series.first);
    for (origin, hour) in series.hours.iter().enumerate().take(scored.end) {
        if scored.contains(&origin) {
            for (lead, tally) in LEADS.into_iter().zip(tallies.iter_mut()) {
                let target = origin + lead - 1;
                // There is no forecast for a link that carried nothing in all the weeks before.
                let band = season.forecast(lead, series.week_hour(target));
                if let Some(rate) = series.hours[target] {
                    tally.observe(&band.unwrap_or_default(), rate, scale);
                }
            }
        }
        let hour = hour.map_or(Hour::Unknown, Hour::Rate);
        season.observe(hour, series.week_hour(origin + 1));
    }
    for (name, rival) in Rival::all(&filled, from) {
        for (lead, tally) in LEADS.into_iter().zip(tallies.iter_mut()) {
            let loss = rival_loss(&rival, series, &filled, lead, scored.clone());
            *tally.theirs.entry(name).or_default() += loss / scale;
        }
    }
}

/// A rival's loss at one lead.
fn rival_loss(
    rival: &Rival,
    series: &Series,
    filled: &[f64],
    lead: usize,
    scored: Range<usize>,
) -> f64 {
    let mut quantiles = Quantiles::default();
    let mut sum = 0.0;
    for origin in 2 * WEEK_HOURS..scored.end {
        // The prediction made `lead` hours ago for the hour that has just ended.
        let past = origin - lead;
        if past >= WEEK_HOURS
            && let Some(rate) = series.hours[origin - 1]
        {
            quantiles.observe(rate - rival.point(filled, past, lead));
        }
        if scored.contains(&origin)
            && let Some(rate) = series.hours[origin + lead - 1]
        {
            sum += pinball(&quantiles.band(rival.point(filled, origin, lead)), rate);
        }
    }
    sum
}
