//! What a timetable's text means, minute by minute, also when the clocks change.

use proptest::prelude::*;

use super::*;

const OFFICE: &str = "50Mbit 09:00-17:00 mon-fri, 200Mbit otherwise";

fn timetable(text: &str, zone: &str) -> Timetable {
    Timetable::new(text.parse().unwrap(), zone.parse().unwrap())
}

/// The moment of an RFC 3339 time.
fn at(text: &str) -> Moment {
    moment(text.parse().unwrap())
}

fn shown(cap: Cap) -> String {
    cap.map_or_else(|| "unlimited".to_owned(), |rate| rate.to_string())
}

fn holds(table: &Timetable, expected: &[(&str, &str)]) {
    for (time, cap) in expected {
        assert_eq!(shown(table.rate_at(at(time))), *cap, "at {time}");
    }
}

#[test]
fn the_cap_is_the_one_of_the_zones_wall_clock() {
    let table = timetable(OFFICE, "Europe/Berlin");
    holds(
        &table,
        &[
            // A Friday in summer, two hours ahead of UTC.
            ("2026-07-10T06:59:59Z", "200Mbit"),
            ("2026-07-10T07:00:00Z", "50Mbit"),
            ("2026-07-10T14:59:59Z", "50Mbit"),
            ("2026-07-10T15:00:00Z", "200Mbit"),
            ("2026-07-11T09:00:00Z", "200Mbit"),
            // A Friday in winter, one hour ahead.
            ("2026-12-11T07:59:59Z", "200Mbit"),
            ("2026-12-11T08:00:00Z", "50Mbit"),
        ],
    );
    let next = |from| table.next_change_after(at(from)).unwrap();
    assert_eq!(next("2026-07-10T07:00:00Z"), at("2026-07-10T15:00:00Z"));
    assert_eq!(next("2026-07-10T15:00:00Z"), at("2026-07-13T07:00:00Z"));
    assert_eq!(next("2026-10-23T15:00:00Z"), at("2026-10-26T08:00:00Z"));
}

#[test]
fn a_night_goes_over_midnight_and_over_the_weeks_end() {
    let table = timetable("10Mbit 22:00-06:00 sun, unlimited otherwise", "UTC");
    holds(
        &table,
        &[
            ("2026-07-12T21:59:00Z", "unlimited"),
            ("2026-07-12T22:00:00Z", "10Mbit"),
            ("2026-07-13T05:59:59Z", "10Mbit"),
            ("2026-07-13T06:00:00Z", "unlimited"),
        ],
    );
    let days = timetable("10Mbit sat-mon, 20Mbit wed, 30Mbit otherwise", "UTC");
    holds(
        &days,
        &[
            ("2026-07-11T00:00:00Z", "10Mbit"),
            ("2026-07-13T23:59:59Z", "10Mbit"),
            ("2026-07-14T00:00:00Z", "30Mbit"),
            ("2026-07-15T12:00:00Z", "20Mbit"),
        ],
    );
}

#[test]
fn an_hour_that_the_clocks_skip_never_comes() {
    let table = timetable("10Mbit 02:15-02:45 sun, 20Mbit otherwise", "Europe/Berlin");
    // On 29 March 2026 the clocks go from 02:00 to 03:00.
    let before = at("2026-03-29T00:00:00Z");
    assert_eq!(
        table.next_change_after(before),
        Some(at("2026-04-05T00:15:00Z"))
    );
    let across = timetable("10Mbit 02:30-04:00 sun, 20Mbit otherwise", "Europe/Berlin");
    assert_eq!(
        across.next_change_after(before),
        Some(at("2026-03-29T01:00:00Z")),
        "it begins where the clocks jump into it"
    );
}

#[test]
fn an_hour_that_the_clocks_repeat_holds_twice() {
    // On 25 October 2026 the clocks go from 03:00 back to 02:00.
    let table = timetable("10Mbit 02:15-02:45 sun, 20Mbit otherwise", "Europe/Berlin");
    let mut changes = Vec::new();
    let mut now = at("2026-10-25T00:00:00Z");
    while changes.len() < 4 {
        now = table.next_change_after(now).unwrap();
        changes.push(now);
    }
    let expected = ["00:15", "00:45", "01:15", "01:45"];
    assert_eq!(
        changes,
        expected.map(|time| at(&format!("2026-10-25T{time}:00Z")))
    );
}

#[test]
fn a_cap_that_never_changes_has_no_next_change() {
    for text in [
        "5Mbit otherwise",
        "5Mbit daily",
        "5Mbit 00:00-24:00, 5Mbit otherwise",
    ] {
        let table = timetable(text, "Europe/Berlin");
        assert_eq!(table.next_change_after(at("2026-10-25T00:00:00Z")), None);
        assert_eq!(shown(table.rate_at(Moment::default())), "5Mbit");
    }
}

#[test]
fn l06_wrong_timetables_are_refused_with_their_column() {
    for (text, column, word) in [
        ("", 1, "empty"),
        ("50Mbit 09:00-17:00 mon-fri", 27, "otherwise"),
        ("50Mbit, 200Mbit otherwise", 1, "say when"),
        ("50Mbt 09:00-17:00, 1Mbit otherwise", 1, "not a rate"),
        ("50Mbit 9:00-17:00, 1Mbit otherwise", 8, "no time"),
        ("50Mbit 09:00-17:60, 1Mbit otherwise", 14, "no time"),
        ("50Mbit 09:00-24:01, 1Mbit otherwise", 14, "no time"),
        ("50Mbit 24:00-09:00, 1Mbit otherwise", 8, "23:59"),
        ("50Mbit 09:00, 1Mbit otherwise", 8, "span"),
        ("50Mbit 09:00-09:00, 1Mbit otherwise", 8, "no time"),
        ("50Mbit 09:00-17:00 mon-fry, 1Mbit otherwise", 20, "no day"),
        ("50Mbit 09:00-17:00 otherwise", 20, "alone"),
        ("50Mbit otherwise, 1Mbit mon", 19, "follow"),
        (
            "50Mbit mon, 1Mbit 10:00-11:00 sun-mon, 2Mbit otherwise",
            13,
            "mon 10:00",
        ),
        ("50Mbit mon,, 2Mbit otherwise", 29, "empty"),
        ("\u{e9}\u{e9} otherwise, 1Mbit mon", 1, "not a rate"),
        (
            "50Mbit \u{e9}\u{e9} \u{e9}\u{e9}, 1Mbit otherwise",
            8,
            "no day",
        ),
    ] {
        let fault = text.parse::<Week>().unwrap_err();
        assert_eq!(fault.code, Code::Config);
        let place = format!("column {column}: ");
        assert!(fault.detail.starts_with(&place), "{text}: {}", fault.detail);
        assert!(fault.detail.contains(word), "{text}: {}", fault.detail);
    }
    let many = "1Mbit mon,".repeat(65);
    assert!(many.parse::<Week>().is_err());
    assert!(" ".repeat(TEXT_BYTES_MAX + 1).parse::<Week>().is_err());
}

#[test]
fn a_week_is_written_as_it_was_read() {
    let week: Week = OFFICE.parse().unwrap();
    assert_eq!(week.to_string(), OFFICE);
    assert_eq!(week.text().parse::<Week>().unwrap(), week);
}

/// Zones whose clocks change in different ways: by an hour, by half an hour, at midnight, never.
const ZONES: [&str; 5] = [
    "Europe/Berlin",
    "Australia/Lord_Howe",
    "America/Havana",
    "Asia/Kolkata",
    "UTC",
];

proptest! {
    /// The cap stays the same from a moment to the next change, and is another from there on.
    #[test]
    fn the_next_change_is_the_first_one(
        zone in 0..ZONES.len(),
        from in 0_u64..40_000_000,
        begin in 0_u16..1440,
        minutes in 1_u16..1440,
        day in 0..7_usize,
    ) {
        let end = (begin + minutes) % 1440;
        prop_assume!(begin != end);
        let clock = |minute: u16| format!("{:02}:{:02}", minute / 60, minute % 60);
        let (begin, end, day) = (clock(begin), clock(end), DAYS[day]);
        let text = format!("10Mbit {begin}-{end} {day}, 20Mbit otherwise");
        let table = timetable(&text, ZONES[zone]);
        let from = Moment::from_unix_seconds(1_760_000_000 + from);
        let next = table.next_change_after(from).unwrap();
        let cap = table.rate_at(from);
        prop_assert_ne!(table.rate_at(next), cap);
        let mut now = from;
        while now < next {
            prop_assert_eq!(table.rate_at(now), cap, "{} {} at {}", text, ZONES[zone], now);
            now = now.plus_seconds(60);
        }
        let before = Moment::from_unix_seconds(next.unix_seconds() - 1);
        prop_assert_eq!(table.rate_at(before.max(from)), cap);
    }

    #[test]
    fn no_text_makes_the_parser_fall(text in "[0-9MbitmonfrsaeuhwdlyUGk:, -]{0,60}") {
        if let Ok(week) = text.parse::<Week>() {
            let table = Timetable::new(week, Zone::utc());
            let _ = table.rate_at(Moment::default());
        }
    }
}
