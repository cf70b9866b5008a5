//! Scores the short view against last value, EWMAs and moving means, on seeded seconds.

use std::collections::BTreeMap;

use towpath_bench::seconds::SecondsSet;
use towpath_forecast::recent::Recent;
use towpath_forecast::score::pinball;

use super::rivals::Quantiles;
use super::{Lead, SetReport, Tally, Unit, mean};

/// Leads in seconds: the mean over this many seconds is forecast.
const LEADS: [usize; 3] = [1, 10, 60];

/// Seconds for training only, and seconds in total.
const TAUGHT_COUNT: usize = 900;
const COUNT: usize = 5400;

/// Each rival's prediction at every second; it is the same for every lead.
fn rivals(series: &[f64]) -> BTreeMap<&'static str, Vec<f64>> {
    let ewma = |share: f64| {
        let mut mean = series[0];
        let follow = |rate: &f64| {
            mean += share * (rate - mean);
            mean
        };
        series.iter().map(follow).collect()
    };
    let moving = |count: usize| {
        let last = |end: usize| mean(&series[end.saturating_sub(count)..end]);
        (1..=series.len()).map(last).collect()
    };
    BTreeMap::from([
        ("last value", series.to_vec()),
        ("ewma 0.2", ewma(0.2)),
        ("ewma 0.05", ewma(0.05)),
        ("mean of 10 s", moving(10)),
        ("mean of 60 s", moving(60)),
    ])
}

/// Scores every set, on each of the seeds.
pub(crate) fn report(seeds: &[u64]) -> Vec<SetReport> {
    let report = |set: SecondsSet| {
        let mut tallies = tallies();
        for seed in seeds {
            score(&set.seconds(*seed, COUNT), TAUGHT_COUNT, &mut tallies);
        }
        reported(set.as_str(), &tallies, Unit::Seconds)
    };
    SecondsSet::ALL.map(report).into()
}

/// Scores links from traces: the first third of each, but at most a quarter of an hour, is for
/// training only.
pub(crate) fn report_traces(links: &[Vec<f64>]) -> SetReport {
    let mut tallies = tallies();
    for series in links {
        score(series, (series.len() / 3).min(TAUGHT_COUNT), &mut tallies);
    }
    reported("traces", &tallies, Unit::Samples)
}

fn tallies() -> Vec<Tally> {
    LEADS.map(|_| Tally::default()).into()
}

fn reported(set: &'static str, tallies: &[Tally], unit: Unit) -> SetReport {
    let leads = LEADS.into_iter().zip(tallies);
    SetReport {
        set,
        leads: leads
            .map(|(lead, tally)| tally.report(Lead(lead, unit)))
            .collect(),
    }
}

/// Scores our forecast and all rivals on one series, whose first `taught` seconds are for training.
fn score(series: &[f64], taught: usize, tallies: &mut [Tally]) {
    let scale = mean(series);
    let scored = taught..series.len().saturating_sub(LEADS[LEADS.len() - 1]);
    let mut recent = Recent::default();
    for (index, rate) in series.iter().enumerate().take(scored.end) {
        if scored.contains(&index) {
            for (lead, tally) in LEADS.into_iter().zip(tallies.iter_mut()) {
                let band = recent.forecast(lead as u64).expect("it was taught");
                let outcome = mean(&series[index..index + lead]);
                tally.observe(&band, outcome, scale);
            }
        }
        recent.observe(*rate);
    }
    for (name, points) in rivals(series) {
        for (lead, tally) in LEADS.into_iter().zip(tallies.iter_mut()) {
            let loss = rival_loss(&points, series, lead, scored.clone());
            *tally.theirs.entry(name).or_default() += loss / scale;
        }
    }
}

/// A rival's loss at one lead; its band is derived from its errors, as ours is.
fn rival_loss(points: &[f64], series: &[f64], lead: usize, scored: std::ops::Range<usize>) -> f64 {
    let mut quantiles = Quantiles::default();
    let mut sum = 0.0;
    for index in lead + 1..scored.end {
        // The prediction made `lead` seconds ago for the seconds that have just ended.
        let begin = index - lead;
        quantiles.observe(mean(&series[begin..index]) - points[begin - 1]);
        if scored.contains(&index) {
            let band = quantiles.band(points[index - 1]);
            sum += pinball(&band, mean(&series[index..index + lead]));
        }
    }
    sum
}
