//! Quality of forecasts compared with simple ones and a library's: of hours and days, on seeded
//! weeks or a trace, and of the next seconds.
//!
//! All see the same data and are scored by the same pinball loss of p10, p50 and p90, at every hour
//! or second after the training period. The model's constants were chosen on the seeds of `--tune`;
//! the report uses other seeds, and a full run that misses a goal fails. `--few` scores a third of
//! its seeds and judges them with some tolerance. `--trace FILE.csv` reads rows of a time and the
//! bits per second at that time; `--seconds-trace FILE...` reads such files as one link each and
//! scores the next samples of all of them together. Traces are reported but not judged.
#![forbid(unsafe_code)]

mod goals;
mod long;
mod rivals;
mod short;
mod trace;

use std::collections::BTreeMap;
use std::process::ExitCode;

use serde::Serialize;
use towpath_bench::goals::Goals;
use towpath_bench::program::finish;
use towpath_forecast::band::Band;
use towpath_forecast::score::{Score, pinball};

use goals::{Room, goals};

/// Weeks for training only, and weeks that are scored.
const TAUGHT_WEEKS: usize = 8;
const SCORED_WEEKS: usize = 8;

/// The first seed of the report; the seeds of `--tune` are below it.
const SCORED_SEED: u64 = 11_000_001;
const TUNING_SEED: u64 = 1;
const SEED_COUNT: u64 = 48;

/// Number of seeds of `--few`, and the tolerance for chance with so few.
const FEW_COUNT: u64 = 16;
const FEW_ROOM: Room = Room {
    ratio: 0.05,
    share: 0.02,
};
const NO_ROOM: Room = Room {
    ratio: 0.0,
    share: 0.0,
};

/// Most traces of seconds that are scored together.
const FILES_MAX: usize = 4096;

const SCHEMA: &str = "towpath.v1.bench.forecast";

#[derive(Serialize)]
struct Report {
    schema: &'static str,
    seeds: Vec<u64>,
    taught_weeks: usize,
    scored_weeks: usize,
    /// Forecasts of hours and days.
    sets: Vec<SetReport>,
    /// Forecasts of the next seconds.
    short_sets: Vec<SetReport>,
}

#[derive(Serialize)]
struct SetReport {
    set: &'static str,
    leads: Vec<LeadReport>,
}

#[derive(Serialize)]
struct LeadReport {
    #[serde(skip_serializing_if = "Option::is_none")]
    lead_hours: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lead_seconds: Option<usize>,
    /// For traces whose rows are seconds apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    lead_samples: Option<usize>,
    /// Share of outcomes between p10 and p90; ideally 0.8.
    coverage: f64,
    /// Share of outcomes above p10; ideally 0.9.
    p10_coverage: f64,
    /// Our pinball loss divided by that of each rival. Both are summed over the seeds after
    /// division by the mean capacity of their series, so that a fast link counts no more than a
    /// slow one.
    pinball_ratio: BTreeMap<&'static str, f64>,
}

impl LeadReport {
    /// The lead, for people.
    fn ahead(&self) -> String {
        let leads = [
            (self.lead_hours, "h"),
            (self.lead_seconds, "s"),
            (self.lead_samples, "samples"),
        ];
        let said = |(lead, unit): (Option<usize>, _)| lead.map(|lead| format!("{lead} {unit}"));
        leads.into_iter().find_map(said).unwrap_or_default()
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).take(FILES_MAX + 2).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let report = match arguments[..] {
        [] => Ok(judged(SEED_COUNT, NO_ROOM)),
        ["--few"] => Ok(judged(FEW_COUNT, FEW_ROOM)),
        ["--tune"] => Ok((report(TUNING_SEED, SEED_COUNT, SCORED_WEEKS), None)),
        ["--smoke"] => Ok((report(SCORED_SEED, 1, 1), None)),
        ["--trace", path] => report_trace(path).map(|report| (report, None)),
        ["--seconds-trace", ref paths @ ..] if (1..=FILES_MAX).contains(&paths.len()) => {
            report_seconds(paths).map(|report| (report, None))
        }
        _ => Err(format!(
            "there are only --few, --smoke, --tune, --trace FILE.csv and --seconds-trace with up to {FILES_MAX} files"
        )),
    };
    let report = report.map_err(|error| format!("bench forecast: {error}").into());
    finish(report.and_then(|(report, goals)| Goals::judge(&report, goals)))
}

/// A report over this many seeds, with its goals.
fn judged(count: u64, room: Room) -> (Report, Option<Goals>) {
    let report = report(SCORED_SEED, count, SCORED_WEEKS);
    let goals = goals(&report, room);
    (report, Some(goals))
}

fn report(first: u64, count: u64, scored_weeks: usize) -> Report {
    let seeds: Vec<u64> = (first..first + count).collect();
    Report {
        schema: SCHEMA,
        taught_weeks: TAUGHT_WEEKS,
        scored_weeks,
        sets: long::report(&seeds, TAUGHT_WEEKS, scored_weeks),
        short_sets: short::report(&seeds),
        seeds,
    }
}

fn report_trace(path: &str) -> Result<Report, String> {
    let series = trace::hours(&read(path)?).map_err(|error| format!("{path}: {error}"))?;
    let (taught_weeks, scored_weeks) = trace::weeks(&series);
    Ok(Report {
        schema: SCHEMA,
        seeds: Vec::new(),
        taught_weeks,
        scored_weeks,
        sets: vec![long::report_trace(&series, taught_weeks, scored_weeks)],
        short_sets: Vec::new(),
    })
}

fn report_seconds(paths: &[&str]) -> Result<Report, String> {
    let link =
        |path: &&str| trace::samples(&read(path)?).map_err(|error| format!("{path}: {error}"));
    let links = paths.iter().map(link).collect::<Result<Vec<_>, _>>()?;
    Ok(Report {
        schema: SCHEMA,
        seeds: Vec::new(),
        taught_weeks: 0,
        scored_weeks: 0,
        sets: Vec::new(),
        short_sets: vec![short::report_traces(&links)],
    })
}

/// Reads the text of a trace.
fn read(path: &str) -> Result<String, String> {
    let shown = |error: std::io::Error| format!("{path}: {error}");
    if std::fs::metadata(path).map_err(shown)?.len() > trace::FILE_BYTES_MAX {
        return Err(format!(
            "{path}: larger than {} bytes",
            trace::FILE_BYTES_MAX
        ));
    }
    std::fs::read_to_string(path).map_err(shown)
}

/// How far ahead a forecast is.
#[derive(Clone, Copy)]
struct Lead(usize, Unit);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    Hours,
    Seconds,
    Samples,
}

impl Lead {
    fn of(self, unit: Unit) -> Option<usize> {
        (self.1 == unit).then_some(self.0)
    }
}

/// The losses at one lead, over all seeds of a set.
#[derive(Default)]
struct Tally {
    ours: f64,
    theirs: BTreeMap<&'static str, f64>,
    score: Score,
}

impl Tally {
    /// Scores a forecast against its outcome, in a series with a mean of `scale`.
    fn observe(&mut self, band: &Band, outcome: f64, scale: f64) {
        self.ours += pinball(band, outcome) / scale;
        self.score.observe_within(band, outcome, u64::MAX);
    }

    fn report(&self, lead: Lead) -> LeadReport {
        let ratio = |(name, loss): (&&'static str, &f64)| (*name, self.ours / loss);
        LeadReport {
            lead_hours: lead.of(Unit::Hours),
            lead_seconds: lead.of(Unit::Seconds),
            lead_samples: lead.of(Unit::Samples),
            coverage: self.score.within,
            p10_coverage: self.score.above_p10,
            pinball_ratio: self.theirs.iter().map(ratio).collect(),
        }
    }
}

fn mean(rates: &[f64]) -> f64 {
    rates.iter().sum::<f64>() / f64::from(u32::try_from(rates.len()).unwrap_or(u32::MAX))
}
