//! Tests of the forecaster with samples of links whose days are known.

use super::*;

/// Monday, 1 June 2026, 00:00 UTC.
const MONDAY: u64 = 1_780_272_000;

fn at(seconds: u64) -> Moment {
    Moment::from_unix_seconds(MONDAY + seconds)
}

/// A link that carries less by day than at night.
fn usual(seconds: u64) -> f64 {
    if (9..17).contains(&(seconds / 3600 % 24)) {
        2e6
    } else {
        8e6
    }
}

fn rough(seconds: u64) -> f64 {
    let mixed = (seconds + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 44;
    usual(seconds) * (0.95 + (mixed % 101) as f64 / 1000.0)
}

/// A forecaster that saw one sample per minute for so many days.
fn taught(days: u64) -> Forecaster {
    let mut forecaster = Forecaster::new(Zone::utc(), History::default());
    for minute in 0..days * 1440 {
        let rate = rough(minute * 60);
        forecaster.observe(at(minute * 60), Sample::Capacity(rate), 60);
    }
    forecaster
}

/// Takes a sample as the daemon does: if the clock was put back, everything is learnt anew.
fn look(forecaster: &mut Forecaster, now: u64, sample: Sample, seconds: u32) {
    forecaster.observe(at(now), sample, seconds);
    if forecaster.needs_retraining() {
        let again = Forecaster::new(Zone::utc(), forecaster.history().clone());
        forecaster.adopt_model(again);
    }
}

#[test]
fn a_clock_that_is_put_back_makes_nothing_fresh() {
    let mut forecaster = taught(7);
    let (before, back, later) = (7 * 86_400, 7 * 86_400 - 7200, 7 * 86_400 - 3600);
    assert_eq!(
        forecaster
            .forecast(at(before), at(before))
            .unwrap()
            .age_seconds,
        60
    );
    // From here on nothing fills the link.
    forecaster.observe(at(back), Sample::ApplicationLimited(1e5), 1);
    let made = forecaster.forecast(at(later), at(later)).unwrap();
    assert_eq!(made.age_seconds, 3600);
}

fn p50(forecaster: &Forecaster, now: u64, ahead: u64) -> f64 {
    let prediction = forecaster.forecast(at(now), at(now + ahead));
    prediction.unwrap().band.p50
}

#[test]
fn sch_9_without_capacity_there_is_no_forecast_and_with_little_it_says_so() {
    let mut forecaster = Forecaster::new(Zone::utc(), History::default());
    assert_eq!(forecaster.forecast(at(0), at(60)), None);
    for second in 0..500 {
        let sample = Sample::ApplicationLimited(5e5);
        forecaster.observe(at(second), sample, 1);
    }
    assert_eq!(
        forecaster.forecast(at(500), at(560)),
        None,
        "nobody filled the link"
    );
    assert_eq!(forecaster.through(at(500), at(500), 1000, |_| None), None);
    assert_eq!(forecaster.lower_bound(at(500)), Some(5e5));
    // A probe's rate counts as carried, although five seconds are too few for a forecast.
    let mut probed = forecaster.clone();
    probed.observe(at(500), Sample::Capacity(4e6), 5);
    assert_eq!(probed.lower_bound(at(500)), Some(4e6));
    for second in 500..600 {
        forecaster.observe(at(second), Sample::Capacity(1e6), 1);
    }
    let soon = forecaster.forecast(at(600), at(610)).unwrap();
    assert!((soon.band.p50 / 1e6 - 1.0).abs() < 0.05);
    assert_eq!(
        forecaster.forecast(at(600), at(600 + 86_400)),
        None,
        "no hour is over"
    );
    let young = taught(1);
    let day = young.forecast(at(86_400), at(2 * 86_400)).unwrap();
    assert_eq!(day.confidence, Confidence::Low);
}

#[test]
fn sch_4_the_coming_day_is_forecast_hour_by_hour() {
    let forecaster = taught(28);
    let now = 28 * 86_400 + 30;
    for hour in 2..150 {
        let ahead = hour * 3600;
        let expected = usual(now + ahead);
        let share = p50(&forecaster, now, ahead) / expected;
        assert!((share - 1.0).abs() < 0.12, "{hour} h: {share}");
    }
    let prediction = forecaster.forecast(at(now), at(now + 86_400)).unwrap();
    assert_eq!(prediction.confidence, Confidence::High);
    assert!(prediction.age_seconds < 120);
}

#[test]
fn the_next_minute_is_relied_on_after_a_minute_and_fully_after_five() {
    let mut forecaster = Forecaster::new(Zone::utc(), History::default());
    for (seconds, expected) in [
        (59, Confidence::Low),
        (60, Confidence::Medium),
        (299, Confidence::Medium),
        (300, Confidence::High),
    ] {
        while forecaster.recent.count() < seconds {
            let now = at(forecaster.recent.count());
            forecaster.observe(now, Sample::Capacity(1e6), 1);
        }
        let soon = forecaster.forecast(at(seconds), at(seconds + 60)).unwrap();
        assert_eq!(soon.confidence, expected, "{seconds} s");
    }
}

#[test]
fn old_history_has_low_confidence() {
    let forecaster = taught(28);
    let later = (28 + 9) * 86_400;
    let prediction = forecaster.forecast(at(later), at(later + 3600)).unwrap();
    assert_eq!(prediction.confidence, Confidence::Low);
    assert_eq!(prediction.age_seconds / 86_400, 9);
}

#[test]
fn weeks_without_a_link_make_history_old_also_for_who_reads_it() {
    let mut seen = taught(40);
    for minute in 40 * 1440..54 * 1440 {
        seen.observe(at(minute * 60), Sample::Down, 60);
    }
    let now = at(54 * 86_400);
    let read = Forecaster::new(Zone::utc(), seen.history().clone());
    assert_eq!(read.known_hours(), seen.known_hours());
    for forecaster in [&seen, &read] {
        let prediction = forecaster.forecast(now, now).unwrap();
        assert_eq!(prediction.confidence, Confidence::Low, "{prediction:?}");
        assert!((1e6..1e7).contains(&prediction.band.p50), "{prediction:?}");
    }
}

#[test]
fn the_next_seconds_follow_the_last_ones_and_the_hours_do_not() {
    let mut forecaster = taught(28);
    let now = 28 * 86_400;
    for second in 0..30 {
        forecaster.observe(at(now + second), Sample::Capacity(1e6), 1);
    }
    assert!((p50(&forecaster, now + 30, 5) / 1e6 - 1.0).abs() < 0.3);
    assert!(p50(&forecaster, now + 30, 20 * 3600) > 6e6);
}

#[test]
fn sch_10_bytes_are_through_when_the_rates_have_carried_them() {
    let forecaster = taught(28);
    // Midnight: nine hours at 8 MB/s, then eight at 2 MB/s.
    let now = 28 * 86_400;
    let night = 8_000_000 * 9 * 3600;
    let through = |bytes, cap: Option<f64>| {
        forecaster
            .through(at(now), at(now), bytes, |_| cap)
            .unwrap()
    };
    let capped = through(3_600_000_000, Some(1e6));
    let never = through(u64::MAX, None);
    let nothing = through(0, None);
    let through = through(night + 2_000_000 * 3600, None);
    let p50 = through.p50.unwrap().since(at(now)).as_secs();
    assert!((9 * 3600..11 * 3600).contains(&p50), "{p50}");
    assert!(through.p90 >= through.p50);
    let p50 = capped.p50.unwrap().since(at(now)).as_secs();
    assert!((3600..3700).contains(&p50), "{p50}");
    assert_eq!(never, CompletionTimes::default());
    assert_eq!(nothing.p50, Some(at(now)));
}

#[test]
fn bytes_wait_for_the_morning_where_the_peer_is_off_at_night() {
    // The peer is there from 09:00 to 18:00, and from 06:00 to 22:00.
    for (opens, closes) in [(9, 18), (6, 22)] {
        let mut forecaster = Forecaster::new(Zone::utc(), History::default());
        let (days, now) = (56, 56 * 86_400 + 23 * 3600);
        for minute in 0..now / 60 {
            let sample = if (opens..closes).contains(&(minute / 60 % 24)) {
                Sample::Capacity(8e6)
            } else {
                Sample::Down
            };
            forecaster.observe(at(minute * 60), sample, 60);
        }
        let morning = at((days + 1) * 86_400 + opens * 3600);
        let through = forecaster.through(at(now), at(now), 8_000_000 * 1800, |_| None);
        let through = through.unwrap();
        for done in [through.p50, through.p90] {
            let seconds = done.unwrap().since(morning).as_secs();
            assert!((1700..3600).contains(&seconds), "{opens}: {seconds}");
        }
        for hour in 2..HORIZON_SECONDS_MAX / 3600 {
            let then = now + hour * 3600;
            let band = forecaster.forecast(at(now), at(then)).unwrap().band;
            if (opens..closes).contains(&(then / 3600 % 24)) {
                let share = band.p50 / 8e6;
                assert!((share - 1.0).abs() < 0.1, "{opens} {hour} {band:?}");
                assert!(band.p10 > 0.0, "{opens} {hour} {band:?}");
            } else {
                assert_eq!(band.p90, 0.0, "{opens} {hour}");
            }
        }
    }
}

#[test]
fn bytes_whose_sending_begins_later_are_through_later() {
    let forecaster = taught(28);
    // Midnight. By day 2 MB/s are carried, else 8.
    let now = 28 * 86_400;
    let through = |from: u64, bytes| forecaster.through(at(now), at(from), bytes, |_| None);
    for (hour, rate) in [(0, 8), (10, 2), (20, 8)] {
        let from = now + hour * 3600;
        let done = through(from, rate * 1_000_000 * 1800).unwrap().p50.unwrap();
        let seconds = done.since(at(from)).as_secs();
        assert!((1600..2000).contains(&seconds), "{hour}: {seconds}");
    }
    assert_eq!(through(now - 86_400, 8_000_000), through(now, 8_000_000));
    // The forecast week begins now.
    let end = now + HORIZON_SECONDS_MAX;
    let hour = 8_000_000 * 3600;
    assert!(through(end - 2 * 3600, hour).unwrap().p50.is_some());
    assert_eq!(through(end - 1800, hour), Some(CompletionTimes::default()));
    // Only the cap at the moment when sending begins decides whether the rate is known.
    let kept = kept_to(1e6, 30);
    let caps = |moment| Some(if moment < at(3600) { 2e6 } else { 1e6 });
    assert_eq!(kept.through(at(30), at(30), 1_000_000, caps), None);
    let later = kept.through(at(30), at(3600), 1_000_000, caps).unwrap();
    assert_eq!(later.p50, Some(at(3601)));
}

#[test]
fn a_cap_that_opens_later_is_waited_for() {
    let forecaster = taught(28);
    let now = 28 * 86_400;
    let opens = at(now + 7200);
    let cap = |moment: Moment| Some(if moment < opens { 0.0 } else { 1e6 });
    let through = forecaster
        .through(at(now), at(now), 60_000_000, cap)
        .unwrap();
    assert_eq!(through.p50, Some(opens.plus_seconds(60)));
}

#[test]
fn what_was_kept_forecasts_as_what_was_seen() {
    let seen = taught(28);
    let bytes = seen.history().encode();
    let kept = Forecaster::new(Zone::utc(), History::decode(&bytes).unwrap());
    let now = 28 * 86_400;
    for hour in 2..160 {
        let share = p50(&kept, now, hour * 3600) / p50(&seen, now, hour * 3600);
        assert!((share - 1.0).abs() < 1e-3, "{hour}: {share}");
    }
    assert_eq!(kept.known_hours(), seen.known_hours());
}

#[test]
fn forecasts_are_scored_against_what_came() {
    let forecaster = taught(28);
    for horizon in [Horizon::Hour, Horizon::Day, Horizon::Week] {
        let score = forecaster.score(horizon);
        assert!(score.count > 400, "{}: {score:?}", horizon.as_str());
        assert!(score.within > 0.6 && score.above_p10 > 0.75, "{score:?}");
        assert!(score.pinball > 0.0 && score.pinball < 8e5, "{score:?}");
    }
}

#[test]
fn the_next_seconds_are_scored_as_they_pass() {
    let mut forecaster = Forecaster::new(Zone::utc(), History::default());
    let begin = 400 * 86_400;
    let observe = |forecaster: &mut Forecaster, seconds: std::ops::Range<u64>, rate: f64| {
        for second in seconds {
            forecaster.observe(at(begin + second), Sample::Capacity(rate), 1);
        }
    };
    let counts = |forecaster: &Forecaster| {
        [Horizon::Second, Horizon::TenSeconds, Horizon::Minute]
            .map(|horizon| forecaster.score(horizon).count)
    };
    observe(&mut forecaster, 0..601, 1e6);
    // Each second is forecast after ten samples, and so is each longer span that begins later.
    assert_eq!(counts(&forecaster), [591, 59, 9]);
    let score = |forecaster: &Forecaster, horizon| *forecaster.score(horizon);
    let still = score(&forecaster, Horizon::Second);
    assert!(still.error_ratio().unwrap() < 1e-3, "{still:?}");
    // The forecast did not foresee this second.
    observe(&mut forecaster, 601..602, 5e5);
    let fallen = score(&forecaster, Horizon::Second);
    assert!(fallen.pinball > still.pinball, "{fallen:?}");
    // Forecasts from before a pause are not scored, nor are spans with too few samples.
    let before = counts(&forecaster);
    observe(&mut forecaster, 1000..1001, 1e6);
    assert_eq!(counts(&forecaster), before);
    observe(&mut forecaster, 1060..1061, 1e6);
    assert_eq!(counts(&forecaster), before);
}

#[test]
fn scores_outlive_a_restart_but_for_those_of_the_next_seconds() {
    let seen = taught(28);
    let bytes = seen.history().encode();
    let kept = Forecaster::new(Zone::utc(), History::decode(&bytes).unwrap());
    for horizon in [Horizon::Hour, Horizon::Day, Horizon::Week] {
        let [kept, seen] = [&kept, &seen].map(|forecaster| forecaster.score(horizon));
        assert_eq!(kept, seen, "{}", horizon.as_str());
    }
    for horizon in [Horizon::Second, Horizon::TenSeconds, Horizon::Minute] {
        assert_eq!(kept.score(horizon).count, 0);
    }
    // Forecasts from before the restart are compared with outcomes after it.
    let [kept, seen] = [kept, seen].map(|mut forecaster| {
        for hour in 28 * 24..29 * 24 {
            let sample = Sample::Capacity(usual(hour * 3600));
            forecaster.observe(at(hour * 3600), sample, 3600);
        }
        *forecaster.score(Horizon::Week)
    });
    assert_eq!(kept, seen);
}

#[test]
fn a_start_with_years_of_history_scores_what_a_score_remembers() {
    let mut history = History::default();
    for hour in 0..3 * 8766 {
        let rate = rough(hour * 3600);
        history.observe(at(hour * 3600), Sample::Capacity(rate), 3600);
    }
    let forecaster = Forecaster::new(Zone::utc(), history);
    for horizon in [Horizon::Hour, Horizon::Day, Horizon::Week] {
        let count = forecaster.score(horizon).count;
        let wanted = SCORE_COUNT..=SCORED_HOURS_MAX;
        assert!(wanted.contains(&count), "{}: {count}", horizon.as_str());
    }
}

#[test]
fn the_days_are_those_of_the_zone() {
    let zone: Zone = "Asia/Kolkata".parse().unwrap();
    let forecaster = Forecaster::new(zone, History::default());
    // Monday 00:00 UTC is Monday 05:30 there.
    assert_eq!(forecaster.week_hour(MONDAY / 3600), 5);
    let utc = Forecaster::new(Zone::utc(), History::default());
    assert_eq!(utc.week_hour(MONDAY / 3600), 0);
    assert_eq!(utc.week_hour(MONDAY / 3600 - 1), WEEK_HOURS - 1);
}

#[test]
fn years_of_silence_are_passed_over() {
    let mut forecaster = taught(3);
    for minute in 0..60 {
        let now = at(400 * 86_400 + minute * 60);
        forecaster.observe(now, Sample::Capacity(1e6), 60);
    }
    assert_eq!(forecaster.known_hours(), 0);
    assert_eq!(
        forecaster.history().day_count(),
        4,
        "days are kept for years"
    );
    forecaster.observe(Moment::from_unix_seconds(u64::MAX), Sample::Down, 1);
    forecaster.observe(at(0), Sample::Capacity(1e6), 1);
}

#[test]
fn a_look_under_a_wrong_clock_costs_nothing() {
    let week = 7 * 86_400;
    let mut forecaster = taught(7);
    let kept = forecaster.history().clone();
    let known = forecaster.known_hours();
    for ahead in [30 * 86_400, 2 * 365 * 86_400, 8000 * 365 * 86_400] {
        forecaster.observe(at(week + ahead), Sample::Down, 1);
        forecaster.observe(
            Moment::from_unix_seconds(MONDAY.saturating_sub(ahead / 2)),
            Sample::Down,
            1,
        );
        forecaster.observe(Moment::from_unix_seconds(5), Sample::Down, 3600);
    }
    assert_eq!(*forecaster.history(), kept);
    for minute in 0..2 * 1440 {
        let second = week + minute * 60;
        forecaster.observe(at(second), Sample::Capacity(rough(second)), 60);
    }
    assert_eq!(forecaster.known_hours(), known + 48);
}

#[test]
fn the_first_hour_after_a_weekend_without_this_host_counts() {
    let mut forecaster = taught(5);
    // From Friday 24:00 to Monday 08:00. At first there is no link, then it is full.
    let monday = 7 * 86_400 + 8 * 3600;
    let known = forecaster.known_hours();
    for second in 0..3660 {
        let sample = if second < 20 {
            Sample::Down
        } else {
            Sample::Capacity(8e6)
        };
        forecaster.observe(at(monday + second), sample, 1);
    }
    // Friday's last hour and Monday's first.
    assert_eq!(forecaster.known_hours(), known + 2);
    let hour = forecaster.history().hour((MONDAY + monday) / 3600);
    assert!(matches!(hour, Hour::Rate(rate) if rate > 7.9e6), "{hour:?}");
}

#[test]
fn a_host_that_is_up_for_half_an_hour_every_three_days_learns() {
    let mut forecaster = Forecaster::new(Zone::utc(), History::default());
    for day in (0..30).step_by(3) {
        for second in 0..1800 {
            let now = at(day * 86_400 + second);
            forecaster.observe(now, Sample::Capacity(8e6), 1);
        }
        let bytes = forecaster.history().encode();
        forecaster = Forecaster::new(Zone::utc(), History::decode(&bytes).unwrap());
    }
    // The last hour is not over.
    assert_eq!(forecaster.known_hours(), 9);
}

#[test]
fn a_clock_that_was_wrong_for_long_costs_what_was_seen_under_it() {
    let week = 7 * 86_400;
    let mut forecaster = taught(7);
    let days = forecaster.history().day_count();
    for minute in 0..3 * 1440 {
        let wrong = week + 300 * 86_400 + minute * 60;
        forecaster.observe(at(wrong), Sample::Capacity(1e6), 60);
    }
    let taught = |mut forecaster: Forecaster| {
        for minute in 0..3 * 1440 {
            let second = week + minute * 60;
            let sample = Sample::Capacity(rough(second));
            look(&mut forecaster, second, sample, 60);
        }
        // Up to an hour passed while the clock was doubted, and the last hour is not over.
        let known = forecaster.known_hours();
        assert!((70..=72).contains(&known), "{known} hours");
        assert_eq!(forecaster.history().day_count(), days + 3);
    };
    taught(forecaster.clone());
    // Samples kept under the wrong clock do no harm after a restart either.
    taught(Forecaster::new(Zone::utc(), forecaster.history().clone()));
}

#[test]
fn a_clock_that_is_wrong_while_there_is_no_link_costs_nothing() {
    let week = 7 * 86_400;
    let taught = taught(7);
    let kept: Vec<_> = taught.history().hours().collect();
    let mut right = taught.clone();
    right.observe(at(week), Sample::Down, 1);
    for wrong in [week - 5 * 86_400, week + 400 * 86_400] {
        let mut forecaster = taught.clone();
        for second in 0..7200 {
            look(&mut forecaster, wrong + second, Sample::Down, 1);
        }
        look(&mut forecaster, week, Sample::Down, 1);
        let hours: Vec<_> = forecaster.history().hours().take(kept.len()).collect();
        assert_eq!(hours, kept, "{wrong}");
        assert_eq!(forecaster.known_hours(), right.known_hours());
    }
}

#[test]
fn hours_that_a_clock_ran_through_too_early_are_learnt_when_they_come() {
    let week = 7 * 86_400;
    let mut forecaster = taught(7);
    let known = forecaster.known_hours();
    forecaster.observe(at(week + 20 * 3600), Sample::Capacity(1e6), 1);
    for minute in 0..1440 {
        let second = week + minute * 60;
        let sample = Sample::Capacity(rough(second));
        look(&mut forecaster, second, sample, 60);
    }
    let learnt = forecaster.known_hours() - known;
    assert!((23..=24).contains(&learnt), "{learnt} hours");
}

#[test]
fn an_hour_that_a_restart_fell_into_is_known_once_it_is_over() {
    let mut seen = Forecaster::new(Zone::utc(), History::default());
    for second in 0..2400 {
        seen.observe(at(second), Sample::Capacity(1e6), 1);
    }
    let mut read = Forecaster::new(Zone::utc(), seen.history().clone());
    let now = 3700;
    for forecaster in [&mut seen, &mut read] {
        for second in 2400..now {
            forecaster.observe(at(second), Sample::ApplicationLimited(1e3), 1);
        }
        let day = forecaster.forecast(at(now), at(now + 86_400)).unwrap();
        assert!((day.band.p50 / 1e6 - 1.0).abs() < 0.1, "{day:?}");
        // The age is known to five minutes.
        assert!((1000..=1301).contains(&day.age_seconds), "{day:?}");
    }
}

#[test]
fn a_clock_that_is_put_back_costs_no_more_than_a_look_until_all_is_learnt_anew() {
    let week = 7 * 86_400;
    let mut forecaster = taught(7);
    let known = forecaster.known_hours();
    // Samples are kept meanwhile, whichever way the clock goes, and no hour is learnt twice.
    for now in [week - 7200, week - 3000, week - 20_000, week - 10_000] {
        forecaster.observe(at(now), Sample::Capacity(1e6), 60);
        assert!(forecaster.needs_retraining());
        assert_eq!(forecaster.known_hours(), known);
        assert!(forecaster.forecast(at(now), at(now + 86_400)).is_some());
    }
    let again = Forecaster::new(Zone::utc(), forecaster.history().clone());
    // An hour that ends while the other forecaster learns is learnt afterwards.
    forecaster.observe(at(week - 6000), Sample::Capacity(1e6), 60);
    forecaster.adopt_model(again);
    forecaster.observe(at(week - 5900), Sample::Capacity(1e6), 60);
    assert!(!forecaster.needs_retraining());
    let read = Forecaster::new(Zone::utc(), forecaster.history().clone());
    assert_eq!(forecaster.known_hours(), read.known_hours());
    assert_eq!(forecaster.hour, read.hour);
}

#[test]
fn a_clock_that_is_put_back_by_a_little_goes_on_with_the_open_hour() {
    let week = 7 * 86_400;
    let mut forecaster = taught(7);
    forecaster.observe(at(week + 60), Sample::Capacity(8e6), 60);
    let (known, score) = (forecaster.known_hours(), *forecaster.score(Horizon::Hour));
    let before = forecaster.history().hour((MONDAY + week) / 3600 - 1);
    for second in 0..900 {
        let now = at(week - 800 + second);
        forecaster.observe(now, Sample::Capacity(1e6), 1);
        assert_eq!(forecaster.hour, Some((MONDAY + week) / 3600));
    }
    assert_eq!(forecaster.known_hours(), known);
    assert_eq!(*forecaster.score(Horizon::Hour), score);
    let hour = |number| forecaster.history().hour(number);
    assert_eq!(hour((MONDAY + week) / 3600 - 1), before);
    let open = hour((MONDAY + week) / 3600);
    assert!(matches!(open, Hour::Rate(rate) if rate < 2e6), "{open:?}");
}

/// A forecaster whose link was at its cap for so many seconds, and whose path was never the limit.
fn kept_to(cap: f64, seconds: u64) -> Forecaster {
    let mut forecaster = Forecaster::new(Zone::utc(), History::default());
    for second in 0..seconds {
        forecaster.observe(at(second), Sample::CapLimited(cap), 1);
    }
    forecaster
}

#[test]
fn a_cap_that_was_reached_is_what_a_transfer_gets() {
    let (cap, now) = (2_250_000.0, 30);
    let forecaster = kept_to(cap, now);
    for ahead in [1, 60, 3600, 86_400, HORIZON_SECONDS_MAX] {
        let made = forecaster.forecast_under(at(now), at(now + ahead), Some(cap));
        let made = made.unwrap_or_else(|| panic!("in {ahead} s"));
        assert_eq!(made.band, Band::new(cap, cap, cap));
        assert!(made.age_seconds <= now);
        let is_later = made.confidence == Confidence::Low;
        assert!(ahead <= 60 || is_later, "{ahead}: {made:?}");
    }
    // Lower caps are known to be carried too. Nothing is known of higher ones or of the path
    // itself.
    let under = |cap| forecaster.forecast_under(at(now), at(now + 60), cap);
    assert!(under(Some(cap / 2.0)).is_some_and(|made| made.band.p90 == cap / 2.0));
    assert_eq!(under(Some(cap * 1.1)), None);
    assert_eq!(under(None), None);
    // A transfer goes on beyond the next hour. Where the cap ends, it goes on at the highest rate
    // seen.
    let bytes = 2_250_000 * 7200;
    let caps = |moment| (moment < at(now + 3600)).then_some(cap);
    let through = forecaster.through(at(now), at(now), bytes, caps).unwrap();
    assert_eq!(through.p50, Some(at(now + 7200)));
    assert_eq!(through.p90, through.p50);
    let unknown = forecaster.through(at(now), at(now), bytes, |_| None);
    assert_eq!(unknown, None);
}

#[test]
fn a_second_above_the_cap_is_not_what_the_path_carries() {
    let cap = 1e6;
    let mut forecaster = Forecaster::new(Zone::utc(), History::default());
    let mut sent = |seconds: std::ops::Range<u64>| {
        for second in seconds {
            forecaster.observe(at(second), Sample::ApplicationLimited(2e6), 1);
        }
        forecaster.forecast_under(at(5), at(60), Some(cap))
    };
    // Four seconds may have gone into a queue.
    assert_eq!(sent(0..4), None);
    assert_eq!(sent(4..5).map(|made| made.band.p50), Some(cap));
}

#[test]
fn a_lower_cap_before_or_after_does_not_hide_that_a_higher_one_was_reached() {
    let (low, high) = (250_000.0, 2_500_000.0);
    let mut forecaster = kept_to(low, 60);
    let mut second = 60;
    let mut reach = |cap: f64, seconds: u64| {
        for _ in 0..seconds {
            forecaster.observe(at(second), Sample::CapLimited(cap), 1);
            second += 1;
        }
        let made = forecaster.forecast_under(at(second), at(second + 60), Some(high));
        made.map(|made| made.band.p50)
    };
    assert_eq!(reach(high, 4), None, "not for long enough");
    assert_eq!(reach(high, 1), Some(high));
    assert_eq!(reach(low, 60), Some(high));
    // A restart does not hide it either.
    let bytes = forecaster.history().encode();
    let kept = Forecaster::new(Zone::utc(), History::decode(&bytes).unwrap());
    let made = kept.forecast_under(at(200), at(260), Some(high));
    assert_eq!(made.map(|made| made.band.p50), Some(high));
}

#[test]
fn the_most_that_went_through_is_told_and_not_what_did_on_the_average() {
    let mut forecaster = Forecaster::new(Zone::utc(), History::default());
    assert_eq!(forecaster.lower_bound(at(0)), None);
    for second in 0..200 {
        forecaster.observe(at(second), Sample::ApplicationLimited(0.0), 1);
    }
    assert_eq!(forecaster.lower_bound(at(200)), None, "nothing has");
    // A burst of one second, which a queue may have taken.
    forecaster.observe(at(200), Sample::ApplicationLimited(1e7), 1);
    assert_eq!(forecaster.lower_bound(at(201)), Some(2e6));
    // A probe counts for five seconds.
    forecaster.observe(at(201), Sample::Capacity(1e7), 5);
    forecaster.observe(at(202), Sample::ApplicationLimited(1e3), 1);
    assert_eq!(forecaster.lower_bound(at(203)), Some(1e7));
    // Rates before and after an outage are not averaged together.
    let mut cut = Forecaster::new(Zone::utc(), History::default());
    for second in 0..9 {
        let sample = if second == 4 {
            Sample::Down
        } else {
            Sample::ApplicationLimited(1e7)
        };
        cut.observe(at(second), sample, 1);
    }
    assert_eq!(cut.lower_bound(at(9)), None);
    assert_eq!(forecaster.lower_bound(at(90_000)), None, "a day ago");
}

#[test]
fn a_few_slow_seconds_do_not_hide_that_the_cap_was_reached() {
    let cap = 1e6;
    let mut forecaster = Forecaster::new(Zone::utc(), History::default());
    for second in 0..24 {
        let sample = if second % 4 == 0 {
            Sample::Capacity(cap / 2.0)
        } else {
            Sample::CapLimited(cap)
        };
        forecaster.observe(at(second), sample, 1);
    }
    let day = forecaster.forecast_under(at(24), at(86_400), Some(cap));
    assert_eq!(day.map(|made| made.band.p50), Some(cap));
}

#[test]
fn a_cap_that_was_reached_for_weeks_is_relied_on_and_survives_a_restart() {
    let cap = 1e6;
    let mut forecaster = Forecaster::new(Zone::utc(), History::default());
    for minute in 0..20 * 1440 {
        forecaster.observe(at(minute * 60), Sample::CapLimited(cap), 60);
    }
    let now = 20 * 86_400;
    let bytes = forecaster.history().encode();
    let kept = Forecaster::new(Zone::utc(), History::decode(&bytes).unwrap());
    for forecaster in [forecaster, kept] {
        let day = forecaster.forecast_under(at(now), at(now + 86_400), Some(cap));
        assert_eq!(day.unwrap().confidence, Confidence::High);
        let later = now + 9 * 86_400;
        let old = forecaster.forecast_under(at(later), at(later + 60), Some(cap));
        assert_eq!(old, None, "nobody has seen it for a week");
    }
}

#[test]
fn a_path_that_is_slower_than_the_cap_at_times_is_forecast_as_both() {
    let (cap, slow) = (4e6, 2e6);
    let mut forecaster = Forecaster::new(Zone::utc(), History::default());
    for minute in 0..28 * 1440 {
        // The path is the limit only while it is slower than the cap.
        let rate = rough(minute * 60) * slow / 2e6;
        let sample = if rate < cap {
            Sample::Capacity(rate)
        } else {
            Sample::CapLimited(cap)
        };
        forecaster.observe(at(minute * 60), sample, 60);
    }
    let now = 28 * 86_400;
    let p50 = |ahead: u64| {
        let made = forecaster.forecast_under(at(now), at(now + ahead), Some(cap));
        made.unwrap().band.p50
    };
    assert!(
        (p50(12 * 3600) / slow - 1.0).abs() < 0.12,
        "{}",
        p50(12 * 3600)
    );
    for hour in [2, 4, 20, 26] {
        let night = p50(hour * 3600);
        assert!((night / cap - 1.0).abs() < 0.05, "{hour} h: {night}");
    }
}

#[test]
fn the_last_seconds_at_the_cap_outdo_an_older_word_of_the_path() {
    let mut forecaster = taught(1);
    let now = 86_400;
    for second in 0..60 {
        forecaster.observe(at(now + second), Sample::Capacity(1e6), 1);
    }
    for second in 60..120 {
        forecaster.observe(at(now + second), Sample::CapLimited(3e6), 1);
    }
    let now = now + 120;
    let made = forecaster.forecast_under(at(now), at(now + 10), Some(3e6));
    let made = made.unwrap();
    assert!(made.band.p50 > 2.7e6, "{made:?}");
    assert!(made.age_seconds < 5, "{made:?}");
}
