//! The goals for forecasts relative to their rivals, on seeded weeks and seconds.

use std::ops::RangeInclusive;

use towpath_bench::goals::Goals;

use super::rivals::NAIVES;
use super::{LeadReport, Report};

/// The largest ratio of our loss to that of each rival.
const RATIO_MAX: f64 = 1.0;

/// At this lead, in hours, the ratio to the seasonal naives must be smaller still.
const NAIVE_LEAD_HOURS: usize = 24;
const NAIVE_RATIO_MAX: f64 = 0.90;

/// Accepted shares of outcomes between p10 and p90, and above p10.
const COVERAGE: RangeInclusive<f64> = 0.75..=0.85;
const P10_COVERAGE: RangeInclusive<f64> = 0.88..=0.92;

/// Tolerance for chance: of a ratio, and of a share.
#[derive(Clone, Copy)]
pub(crate) struct Room {
    pub(crate) ratio: f64,
    pub(crate) share: f64,
}

/// The goals of every set and lead.
pub(crate) fn goals(report: &Report, room: Room) -> Goals {
    let mut goals = Goals::default();
    for set in report.sets.iter().chain(&report.short_sets) {
        for lead in &set.leads {
            let what = format!("{}, {}", set.set, lead.ahead());
            judge(&mut goals, &what, lead, room);
        }
    }
    goals
}

fn judge(goals: &mut Goals, what: &str, lead: &LeadReport, room: Room) {
    for (rival, ratio) in &lead.pinball_ratio {
        let is_far = lead.lead_hours == Some(NAIVE_LEAD_HOURS) && NAIVES.contains(rival);
        let most = if is_far { NAIVE_RATIO_MAX } else { RATIO_MAX };
        let what = format!("{what}: the loss beside {rival}");
        goals.below(what, *ratio, most + room.ratio);
    }
    for (share, range, name) in [
        (lead.coverage, COVERAGE, "within p10 and p90"),
        (lead.p10_coverage, P10_COVERAGE, "above p10"),
    ] {
        let what = format!("{what}: the share {name}");
        goals.at_least(&what, share, range.start() - room.share);
        goals.at_most(&what, share, range.end() + room.share);
    }
}
