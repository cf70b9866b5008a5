//! Durations as operators write them, and sizes and rates as they read them. The protocol crate
//! parses sizes and rates.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use towpath_protocol::amounts::millis;
use towpath_protocol::fault::{Code, Fault, shown};

/// A duration with its unit, as in `200ms` or `1m30s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(Duration);

impl Span {
    /// The span of a duration.
    #[must_use]
    pub const fn new(duration: Duration) -> Self {
        Self(duration)
    }

    /// The duration.
    #[must_use]
    pub const fn duration(self) -> Duration {
        self.0
    }

    /// The span in whole milliseconds.
    #[must_use]
    pub fn milliseconds(self) -> u64 {
        millis(self.0)
    }
}

impl FromStr for Span {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        humantime::parse_duration(text).map(Self).map_err(|error| {
            let shown = shown(text);
            Fault::new(
                Code::Usage,
                format!("{shown:?} is not a duration such as 200ms or 1m30s: {error}"),
            )
        })
    }
}

impl TryFrom<String> for Span {
    type Error = Fault;

    fn try_from(text: String) -> Result<Self, Fault> {
        text.parse()
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        span.to_string()
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&humantime::format_duration(self.0), f)
    }
}

/// Formats bytes with a binary unit.
#[must_use]
pub fn bytes(bytes: u64) -> String {
    scaled(bytes, 1024, &["B", "KiB", "MiB", "GiB", "TiB"])
}

/// Formats bytes per second as bits per second.
#[must_use]
pub fn bits_per_second(bytes_per_second: u64) -> String {
    let units = ["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"];
    scaled(bytes_per_second.saturating_mul(8), 1000, &units)
}

fn scaled(value: u64, step: u64, units: &[&str]) -> String {
    let mut unit = 0;
    let mut divisor = 1;
    while unit + 1 < units.len() && value / divisor >= step {
        divisor *= step;
        unit += 1;
    }
    let name = units[unit];
    if unit == 0 {
        return format!("{value} {name}");
    }
    let tenths = u128::from(value) * 10 / u128::from(divisor);
    if tenths >= 1000 {
        return format!("{} {name}", tenths / 10);
    }
    format!("{}.{} {name}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_with_their_unit_and_round_trip() {
        for (text, milliseconds) in [
            ("200ms", 200),
            ("1m30s", 90_000),
            ("40ms", 40),
            ("2s", 2000),
        ] {
            let span: Span = text.parse().unwrap();
            assert_eq!(span.milliseconds(), milliseconds);
            assert_eq!(span.to_string().parse(), Ok(span));
        }
        for bad in ["", "200", "-1s", "ms", "1e9s", "99999999999999999999s"] {
            assert_eq!(
                bad.parse::<Span>().expect_err(bad).code,
                Code::Usage,
                "{bad}"
            );
        }
    }

    #[test]
    fn numbers_have_at_most_one_decimal_and_the_fitting_unit() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(256 << 20), "256 MiB");
        assert_eq!(bytes(u64::MAX), "16777215 TiB");
        assert_eq!(bits_per_second(12_500_000), "100 Mbit/s");
        assert_eq!(bits_per_second(1_234_567), "9.8 Mbit/s");
    }
}
