//! Tests of the long view with weeks simple enough to know the answer.

use proptest::prelude::*;

use super::*;

/// A link that carries less in office hours on working days.
fn usual(hour: usize) -> f64 {
    let is_busy = (9..17).contains(&(hour % 24)) && hour % WEEK_HOURS < 120;
    if is_busy { 4e6 } else { 10e6 }
}

/// Pseudo-random variation that is the same in every run.
fn rough(hour: usize) -> f64 {
    let mixed = (hour as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    0.95 + 0.1 * (mixed % 1000) as f64 / 1000.0
}

fn season(hour_count: usize, rate: impl Fn(usize) -> Hour) -> Season {
    let mut season = Season::new(0);
    for hour in 0..hour_count {
        season.observe(rate(hour), (hour + 1) % WEEK_HOURS);
    }
    season
}

fn near(value: f64, wanted: f64, share: f64) {
    assert!((value / wanted - 1.0).abs() < share, "{value} for {wanted}");
}

#[test]
fn a_model_that_has_seen_nothing_says_nothing() {
    assert_eq!(Season::new(0).forecast(1, 0), None);
    let idle = season(500, |_| Hour::AtLeast(5e6));
    assert_eq!(idle.forecast(24, 0), None, "nobody has filled the link yet");
    let down = season(5, |_| Hour::Rate(0.0));
    assert_eq!(down.forecast(24, 0), None);
}

#[test]
fn little_history_gives_a_wide_band_around_what_was_seen() {
    let season = season(3, |_| Hour::Rate(8e6));
    let band = season.forecast(24, 2).unwrap();
    near(band.p50, 8e6, 0.3);
    assert!(
        band.p10 < 0.75 * band.p50 && band.p90 > 1.25 * band.p50,
        "{band:?}"
    );
}

#[test]
fn sch_2_the_same_hour_of_earlier_days_is_what_is_expected() {
    let from = 6 * WEEK_HOURS;
    let season = season(from, |hour| Hour::Rate(usual(hour) * rough(hour)));
    for lead in [1, 5, 11, 24, 30, 100, WEEK_HOURS] {
        let target = (from + lead - 1) % WEEK_HOURS;
        let band = season.forecast(lead, target).unwrap();
        near(band.p50, usual(target), 0.1);
        assert!(band.p90 < 1.3 * usual(target) && band.p10 > 0.7 * usual(target));
    }
}

#[test]
fn a_level_shift_is_followed_within_hours_and_keeps_the_shape_of_the_day() {
    let shift_at = 6 * WEEK_HOURS + 30;
    let now = shift_at + 6;
    let season = season(now, |hour| {
        let level = if hour < shift_at { 1.0 } else { 0.4 };
        Hour::Rate(level * usual(hour) * rough(hour))
    });
    for lead in [1, 12, 24, 48] {
        let target = (now + lead - 1) % WEEK_HOURS;
        let band = season.forecast(lead, target).unwrap();
        near(band.p50, 0.4 * usual(target), 0.2);
    }
}

#[test]
fn a_week_ahead_is_less_certain_if_the_level_has_shifted_before() {
    let now = 12 * WEEK_HOURS;
    let width = |levels: [f64; 4]| {
        let season = season(now, |hour| {
            Hour::Rate(levels[hour / (3 * WEEK_HOURS)] * usual(hour) * rough(hour))
        });
        let band = season.forecast(WEEK_HOURS, now % WEEK_HOURS).unwrap();
        near(band.p50, levels[3] * usual(now), 0.1);
        (band.p90 - band.p10) / band.p50
    };
    let (steady, shifting) = (width([1.0; 4]), width([1.0, 0.4, 1.0, 0.5]));
    assert!(steady < 0.3, "{steady}");
    assert!(shifting > 0.4, "{shifting}");
}

#[test]
fn an_outage_of_a_day_leaves_the_forecast_as_it_was() {
    let now = 6 * WEEK_HOURS;
    let outage = now - 26..now - 2;
    let season = season(now, |hour| {
        let rate = if outage.contains(&hour) {
            0.0
        } else {
            usual(hour) * rough(hour)
        };
        Hour::Rate(rate)
    });
    for lead in [3, 24, 36] {
        let target = (now + lead - 1) % WEEK_HOURS;
        near(
            season.forecast(lead, target).unwrap().p50,
            usual(target),
            0.1,
        );
    }
}

#[test]
fn a_link_that_stays_all_but_dead_is_believed_in_the_end() {
    let now = 6 * WEEK_HOURS;
    let season = season(now, |hour| {
        let rate = if hour + 120 < now {
            usual(hour) * rough(hour)
        } else {
            1e5
        };
        Hour::Rate(rate)
    });
    let band = season.forecast(2, (now + 1) % WEEK_HOURS).unwrap();
    assert!(band.p50 < 1e6, "{band:?}");
}

#[test]
fn hours_that_are_always_nearly_empty_are_no_outages() {
    // Like a railway station: a thousand times as much by day on working days.
    let empty = |hour: usize| hour % WEEK_HOURS >= 120 || !(7..19).contains(&(hour % 24));
    let now = 8 * WEEK_HOURS;
    let season = season(now, |hour| {
        let rate = if empty(hour) { 4e3 } else { 4e6 };
        Hour::Rate(rate * rough(hour))
    });
    for target in 0..WEEK_HOURS {
        let band = season.forecast(target + 1, target).unwrap();
        if empty(target) {
            assert!(band.p50 < 0.05 * 4e6, "{target}: {band:?}");
        } else {
            near(band.p50, 4e6, 0.2);
        }
    }
}

#[test]
fn after_jumps_that_did_not_last_the_next_takes_more() {
    let mut shift = Shift::default();
    let mut jumps = |residual: f64, hour_count: usize| {
        let share = if residual > 0.0 { 3.0 } else { 0.3 };
        let mut jump = |_: usize| shift.observe(residual, share, 1.0).is_some();
        (0..hour_count).filter(|hour| jump(*hour)).count()
    };
    assert_eq!(jumps(9.0, 3), 1, "three hours like nothing before");
    assert_eq!(jumps(0.0, 10), 0);
    assert_eq!(jumps(-9.0, 3), 1, "and back");
    assert_eq!(jumps(9.0, 10), 0);
    assert_eq!(jumps(9.0, 10), 1, "it stays all the same");
}

#[test]
fn a_jump_whose_first_day_is_like_the_days_before_is_taken_back() {
    let mut shift = Shift::default();
    let up = (0..3).find_map(|_| shift.observe(9.0, 4.0, 1.0)).unwrap();
    assert!(!up.is_undoing);
    // Relative to the level after the jump, a quarter is too little deviation to make a shift.
    let back = (0..24).find_map(|_| shift.observe(-2.0, 0.25, 1.0));
    let back = back.unwrap();
    assert!(back.is_undoing);
    near(back.factor, 1.0 / up.factor, 1e-9);
    assert!((0..100).all(|_| shift.observe(0.0, 1.0, 1.0).is_none()));
}

/// Weeks of a peer that is there only in these hours of the day.
fn away_outside(there: std::ops::Range<usize>, hour_count: usize) -> Season {
    season(hour_count, |hour| {
        if there.contains(&(hour % 24)) {
            Hour::Rate(8e6 * rough(hour))
        } else {
            Hour::Rate(0.0)
        }
    })
}

#[test]
fn a_peer_that_is_off_at_night_is_forecast_to_be_and_its_working_hours_are_left_alone() {
    // Nights of fifteen hours and of eight, for eight weeks and for nine days, asked at noon, in
    // the night and at its end.
    for there in [9..18, 6..22] {
        for days in [9, 8 * 7] {
            for asked in [12, 23, 5] {
                let now = days * 24 + asked;
                let season = away_outside(there.clone(), now);
                for lead in 1..=72 {
                    let target = (now + lead - 1) % WEEK_HOURS;
                    let band = season.forecast(lead, target).unwrap();
                    if there.contains(&(target % 24)) {
                        near(band.p50, 8e6, 0.1);
                        assert!(band.p10 > 0.5 * 8e6, "{days} {now} {lead} {band:?}");
                    } else {
                        assert_eq!(band, Band::default(), "{days} {now} {lead}");
                    }
                }
            }
        }
    }
}

#[test]
fn weekends_without_a_link_are_expected_to_come_again() {
    // Away from Friday 18:00 to Monday 09:00, and at night.
    let there = |hour: usize| hour % WEEK_HOURS < 120 && (9..18).contains(&(hour % 24));
    let now = 6 * WEEK_HOURS + 100;
    let season = season(now, |hour| {
        Hour::Rate(if there(hour) { 8e6 * rough(hour) } else { 0.0 })
    });
    for lead in 1..=WEEK_HOURS {
        let target = (now + lead - 1) % WEEK_HOURS;
        let band = season.forecast(lead, target).unwrap();
        if there(target) {
            near(band.p50, 8e6, 0.1);
            assert!(band.p10 > 0.5 * 8e6, "{lead} {band:?}");
        } else {
            assert_eq!(band.p50, 0.0, "{lead} {band:?}");
        }
    }
}

#[test]
fn one_outage_is_no_reason_to_expect_the_next_at_its_time_of_the_week() {
    let now = 7 * WEEK_HOURS + 30;
    let outage = now - WEEK_HOURS - 4..now - WEEK_HOURS + 4;
    let season = season(now, |hour| {
        Hour::Rate(if outage.contains(&hour) {
            0.0
        } else {
            8e6 * rough(hour)
        })
    });
    for lead in 1..=WEEK_HOURS {
        let band = season
            .forecast(lead, (now + lead - 1) % WEEK_HOURS)
            .unwrap();
        assert!(band.p10 > 0.8 * 8e6, "{lead} {band:?}");
    }
}

#[test]
fn days_without_a_link_say_nothing_of_the_days_behind_them() {
    for (away, back) in [(62, 3), (120, 1), (120, 3), (120, 48), (14 * 24, 1)] {
        let now = 6 * WEEK_HOURS + away + back;
        let cut = now - back - away..now - back;
        let season = season(now, |hour| {
            if cut.contains(&hour) {
                Hour::Rate(0.0)
            } else {
                Hour::Rate(usual(hour) * rough(hour))
            }
        });
        assert_eq!(season.known_count(), (now - away) as u64);
        for lead in [1, 2, 6, 24] {
            let target = (now + lead - 1) % WEEK_HOURS;
            let band = season.forecast(lead, target).unwrap();
            near(band.p50, usual(target), 0.15);
            assert!(
                band.p10 > 0.6 * usual(target),
                "{away} {back} {lead} {band:?}"
            );
        }
    }
}

#[test]
fn hours_nobody_filled_the_link_in_never_lower_the_forecast() {
    let now = 6 * WEEK_HOURS;
    let seen = |idle: fn(usize) -> Hour| {
        season(now, move |hour| {
            if hour % 7 == 3 {
                idle(hour)
            } else {
                Hour::Rate(usual(hour) * rough(hour))
            }
        })
    };
    let (bounds, unknown) = (seen(|_| Hour::AtLeast(1e5)), seen(|_| Hour::Unknown));
    for lead in [1, 24, 100] {
        let target = (now + lead - 1) % WEEK_HOURS;
        assert_eq!(
            bounds.forecast(lead, target),
            unknown.forecast(lead, target)
        );
    }
}

#[test]
fn a_bound_above_what_was_expected_raises_it() {
    let season = season(400, |hour| {
        if hour < 300 {
            Hour::Rate(1e6)
        } else {
            Hour::AtLeast(3e6)
        }
    });
    let band = season.forecast(1, 400 % WEEK_HOURS).unwrap();
    assert!(band.p50 > 2e6, "{band:?}");
}

proptest! {
    /// Whatever was seen, the quantiles are numbers, in order, and not below zero.
    #[test]
    fn quantiles_never_cross(
        hours in proptest::collection::vec((0_u8..6, 0.0..1e12_f64), 1..400),
        lead in 0_usize..400,
        target in 0_usize..400,
    ) {
        let season = season(hours.len(), |hour| match hours[hour] {
            (0, rate) => Hour::AtLeast(rate),
            (1, _) => Hour::Unknown,
            (2, _) => Hour::Rate(0.0),
            (_, rate) => Hour::Rate(rate),
        });
        if let Some(band) = season.forecast(lead, target) {
            prop_assert!(band.p10 >= 0.0 && band.p10 <= band.p50 && band.p50 <= band.p90);
            prop_assert!(band.p90.is_finite());
        }
    }
}
