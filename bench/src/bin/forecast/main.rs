//! How good the forecast of the coming hours and days is, beside last value, EWMA, seasonal naives and
//! a library's Holt-Winters, on weeks made from seeds.
//!
//! All see the same hours and are scored by the same pinball loss of p10, p50 and p90, at every hour of
//! the scored weeks. The model's constants were chosen on the seeds of `--tune`; the report is of
//! others.
#![forbid(unsafe_code)]

mod rivals;

use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;

use rivals::{Quantiles, Rival};
use serde::Serialize;
use towpath_bench::weeks::{Set, WEEK_HOURS, hours};
use towpath_forecast::band::Band;
use towpath_forecast::score::{Score, pinball};
use towpath_forecast::season::{Hour, Season};

/// Leads that are scored, in hours: 24 is the one the goals are about.
const LEADS: [usize; 5] = [1, 6, 24, 72, WEEK_HOURS];

/// Weeks that only teach, and weeks that are scored.
const TAUGHT_WEEKS: usize = 8;
const SCORED_WEEKS: usize = 8;

/// The first seed of the reported weeks; those of `--tune` are below.
const SCORED_SEED: u64 = 11_000_001;
const TUNING_SEED: u64 = 1;

#[derive(Serialize)]
struct Report {
    schema: &'static str,
    seeds: Vec<u64>,
    taught_weeks: usize,
    scored_weeks: usize,
    sets: Vec<SetReport>,
}

#[derive(Serialize)]
struct SetReport {
    set: &'static str,
    leads: Vec<LeadReport>,
}

#[derive(Serialize)]
struct LeadReport {
    lead_hours: usize,
    /// Share of outcomes within p10 and p90; 0.8 is right.
    coverage: f64,
    /// Share of outcomes above p10; 0.9 is right.
    p10_coverage: f64,
    /// Our pinball loss over that of each rival, both summed over seeds after division by the mean
    /// capacity of their series, so that a fast link counts no more than a slow one.
    pinball_ratio: BTreeMap<&'static str, f64>,
}

fn main() -> ExitCode {
    let (first, count, weeks) = match std::env::args().nth(1).as_deref() {
        None => (SCORED_SEED, 48, SCORED_WEEKS),
        Some("--tune") => (TUNING_SEED, 48, SCORED_WEEKS),
        Some("--smoke") => (SCORED_SEED, 1, 1),
        Some(other) => {
            let shown: String = other.chars().take(40).collect();
            let known = "there are only --smoke and --tune";
            return complain(&format!("{shown:?} is not an option; {known}"));
        }
    };
    let report = report(first, count, weeks);
    let written = serde_json::to_string_pretty(&report)
        .map_err(|error| error.to_string())
        .and_then(|text| writeln!(std::io::stdout(), "{text}").map_err(|error| error.to_string()));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&error),
    }
}

fn complain(what: &str) -> ExitCode {
    // Nothing is left to be done if even that cannot be said.
    drop(writeln!(std::io::stderr(), "bench forecast: {what}"));
    ExitCode::FAILURE
}

fn report(first: u64, count: u64, scored_weeks: usize) -> Report {
    let seeds: Vec<u64> = (first..first + count).collect();
    let sets = Set::ALL.map(|set| {
        let mut tallies: Vec<Tally> = LEADS.map(|_| Tally::default()).into();
        for seed in &seeds {
            let series = hours(set, *seed, TAUGHT_WEEKS + scored_weeks + 1);
            score(&series, scored_weeks, &mut tallies);
        }
        let leads = LEADS.into_iter().zip(&tallies);
        SetReport {
            set: set.as_str(),
            leads: leads.map(|(lead, tally)| tally.report(lead)).collect(),
        }
    });
    Report {
        schema: "towpath.v1.bench.forecast",
        seeds,
        taught_weeks: TAUGHT_WEEKS,
        scored_weeks,
        sets: sets.into(),
    }
}

/// What one lead cost, over all seeds of a set.
#[derive(Default)]
struct Tally {
    ours: f64,
    theirs: BTreeMap<&'static str, f64>,
    score: Score,
}

impl Tally {
    fn report(&self, lead_hours: usize) -> LeadReport {
        let ratio = |(name, loss): (&&'static str, &f64)| (*name, self.ours / loss);
        LeadReport {
            lead_hours,
            coverage: self.score.within,
            p10_coverage: self.score.above_p10,
            pinball_ratio: self.theirs.iter().map(ratio).collect(),
        }
    }
}

/// Scores ours and all rivals on one series.
fn score(series: &[f64], scored_weeks: usize, tallies: &mut [Tally]) {
    let (from, to) = (
        TAUGHT_WEEKS * WEEK_HOURS,
        (TAUGHT_WEEKS + scored_weeks) * WEEK_HOURS,
    );
    let scale = series.iter().sum::<f64>() / f64::from(u32::try_from(series.len()).unwrap_or(1));
    let mut season = Season::new(0);
    for (origin, rate) in series.iter().enumerate().take(to) {
        if origin >= from {
            for (lead, tally) in LEADS.into_iter().zip(tallies.iter_mut()) {
                let target = origin + lead - 1;
                let band = season
                    .forecast(lead, target % WEEK_HOURS)
                    .expect("it has seen weeks");
                tally.ours += pinball(&band, series[target]) / scale;
                tally.score.observe_within(&band, series[target], u64::MAX);
            }
        }
        season.observe(Hour::Rate(*rate), (origin + 1) % WEEK_HOURS);
    }
    for (name, rival) in Rival::all(series, from) {
        for (lead, tally) in LEADS.into_iter().zip(tallies.iter_mut()) {
            let loss = rival_loss(&rival, series, lead, from..to);
            *tally.theirs.entry(name).or_default() += loss / scale;
        }
    }
}

/// A rival's loss at one lead.
fn rival_loss(rival: &Rival, series: &[f64], lead: usize, scored: std::ops::Range<usize>) -> f64 {
    let mut quantiles = Quantiles::default();
    let mut sum = 0.0;
    for origin in 2 * WEEK_HOURS..scored.end {
        // What was said `lead` hours ago about the hour that has just ended.
        let past = origin - lead;
        if past >= WEEK_HOURS {
            quantiles.observe(series[origin - 1] - rival.point(series, past, lead));
        }
        if scored.contains(&origin) {
            let band: Band = quantiles.band(rival.point(series, origin, lead));
            sum += pinball(&band, series[origin + lead - 1]);
        }
    }
    sum
}
