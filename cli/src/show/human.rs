//! Formats numbers and texts for people.

use std::time::{Duration, UNIX_EPOCH};

use towpath_daemon::log::is_plain;

/// Escapes all characters of an untrusted text that could move the cursor or hide or reorder text.
pub(crate) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        if is_plain(character) {
            safe.push(character);
        } else {
            safe.extend(character.escape_default());
        }
    }
    safe
}

/// Formats a number of milliseconds in at most two units.
pub(crate) fn milliseconds(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..60_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        60_000..3_600_000 => format!("{} min {} s", ms / 60_000, ms % 60_000 / 1000),
        3_600_000..172_800_000 => format!("{} h {} min", ms / 3_600_000, ms % 3_600_000 / 60_000),
        _ => format!("{} d {} h", ms / 86_400_000, ms % 86_400_000 / 3_600_000),
    }
}

/// Last second of the year 9999, the latest that RFC 3339 can express.
const LAST_SECOND: u64 = 253_402_300_799;

/// Formats a Unix time in milliseconds as RFC 3339 in UTC, or as `-` after the year 9999.
pub(crate) fn time_of_day(unix_ms: u64) -> String {
    if unix_ms / 1000 > LAST_SECOND {
        return "-".to_owned();
    }
    let moment = UNIX_EPOCH + Duration::from_millis(unix_ms);
    humantime::format_rfc3339_seconds(moment).to_string()
}

/// Fewest digits of an id in a table. Fewer would soon match several ids, and commands take no
/// fewer of a certificate's serial number.
const ID_CHARS_MIN: usize = towpath_certs::renewal::SERIAL_DIGITS_MIN;

/// How many leading digits tell all of these ids apart, so that commands accept ids of that length.
pub(crate) fn telling_digits<'a>(ids: impl IntoIterator<Item = &'a str>) -> usize {
    let mut sorted: Vec<&str> = ids.into_iter().collect();
    sorted.sort_unstable();
    sorted.dedup();
    let alike = |pair: &[&str]| {
        let pairs = pair[0].chars().zip(pair[1].chars());
        pairs.take_while(|(one, other)| one == other).count()
    };
    let longest = sorted.windows(2).map(alike).max();
    longest.map_or(ID_CHARS_MIN, |alike| ID_CHARS_MIN.max(alike + 1))
}

/// The value, or a dash if there is none.
pub(crate) fn or_dash(value: Option<String>) -> String {
    value.unwrap_or_else(|| "-".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn l07_texts_from_outside_cannot_move_the_cursor_or_the_reading_direction() {
        for (text, safe) in [
            ("plain caf\u{e9}", "plain caf\u{e9}"),
            ("\u{1b}[31mred", "\\u{1b}[31mred"),
            ("a\nb\r\tc", "a\\nb\\r\\tc"),
            ("\u{202e}gpj.exe", "\\u{202e}gpj.exe"),
            ("\u{9b}2J\0", "\\u{9b}2J\\u{0}"),
        ] {
            assert_eq!(escape(text), safe);
        }
    }

    #[test]
    fn ids_are_as_short_as_tells_them_apart() {
        assert_eq!(telling_digits([]), 8);
        assert_eq!(telling_digits(["0123456789abcdef"]), 8);
        assert_eq!(telling_digits(["0123456789", "0123456789"]), 8, "one twice");
        let three = ["01234567ab00", "f1234567ab00", "01234567ab10"];
        assert_eq!(telling_digits(three), 11);
    }

    #[test]
    fn times_are_in_two_units_at_most() {
        assert_eq!(milliseconds(999), "999 ms");
        assert_eq!(milliseconds(3210), "3.2 s");
        assert_eq!(milliseconds(125_000), "2 min 5 s");
        assert_eq!(milliseconds(7_260_000), "2 h 1 min");
        assert_eq!(milliseconds(183_600_000), "2 d 3 h");
        assert_eq!(time_of_day(0), "1970-01-01T00:00:00Z");
        assert_eq!(time_of_day(u64::MAX), "-");
    }
}
