//! A rate of bytes, written as operators write it: `100Mbit`, `1Gbit`, `50MB`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::amounts;
use crate::fault::{Code, Fault, shown};

/// Smallest rate. Below 64 kbit/s the certificates of a handshake alone take seconds.
pub const RATE_MIN: Rate = Rate(8_000);

/// Largest rate: 1 Tbit/s. A rate times an hour in nanoseconds stays far within `u128`.
pub const RATE_MAX: Rate = Rate(125_000_000_000);

/// Bytes per second; never zero.
///
/// Written with a unit: `bit`, `kbit`, `Mbit` and `Gbit` count bits, `B`, `kB`, `MB` and `GB` count
/// bytes. All are decimal and per second; `/s` or `ps` may follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rate(u64);

impl Rate {
    /// A rate in bytes per second.
    ///
    /// # Errors
    ///
    /// `E_CONFIG` outside [`RATE_MIN`] to [`RATE_MAX`].
    pub fn from_bytes_per_second(bytes: u64) -> Result<Self, Fault> {
        if !(RATE_MIN.0..=RATE_MAX.0).contains(&bytes) {
            return Err(Fault::new(
                Code::Config,
                format!("a rate of {bytes} B/s lies outside {RATE_MIN} to {RATE_MAX}"),
            ));
        }
        Ok(Self(bytes))
    }

    /// A rate in bytes per second, clamped to [`RATE_MIN`] to [`RATE_MAX`].
    #[must_use]
    pub fn clamped(bytes_per_second: u64) -> Self {
        Self(bytes_per_second.clamp(RATE_MIN.0, RATE_MAX.0))
    }

    /// Bytes per second.
    #[must_use]
    pub const fn bytes_per_second(self) -> u64 {
        self.0
    }

    /// Bits per second.
    #[must_use]
    pub const fn bits_per_second(self) -> u64 {
        self.0 * 8
    }

    /// Whole bytes that are carried at this rate in a time.
    #[must_use]
    pub fn bytes_in(self, time: Duration) -> u64 {
        amounts::bytes_in(self.0, time)
    }
}

impl FromStr for Rate {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let wrong = || {
            let shown = shown(text);
            Fault::new(
                Code::Config,
                format!(
                    "{shown:?} is not a rate: a number and one of bit kbit Mbit Gbit B kB MB GB"
                ),
            )
        };
        let trimmed = text.trim();
        let unit_at = trimmed
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(wrong)?;
        let (number, unit) = trimmed.split_at(unit_at);
        let unit = unit.trim_start();
        let unit = unit
            .strip_suffix("/s")
            .or_else(|| unit.strip_suffix("ps"))
            .unwrap_or(unit);
        let (scale, bits_per_unit) = match unit {
            "bit" => (1, 1),
            "kbit" | "Kbit" => (1_000, 1),
            "Mbit" | "mbit" => (1_000_000, 1),
            "Gbit" | "gbit" => (1_000_000_000, 1),
            "B" => (1, 8),
            "kB" | "KB" => (1_000, 8),
            "MB" => (1_000_000, 8),
            "GB" => (1_000_000_000, 8),
            _ => return Err(wrong()),
        };
        let millis = thousandths(number).ok_or_else(wrong)?;
        let bits = u128::from(millis) * scale * bits_per_unit / 1000;
        let bytes = u64::try_from(bits / 8).map_err(|_| wrong())?;
        Self::from_bytes_per_second(bytes)
    }
}

/// Parses a plain decimal number in thousandths. More than three decimals are refused, not rounded.
fn thousandths(number: &str) -> Option<u64> {
    let (whole, decimals) = number.split_once('.').unwrap_or((number, "0"));
    if decimals.is_empty() || decimals.len() > 3 {
        return None;
    }
    let whole: u64 = whole.parse().ok()?;
    let fraction: u64 = format!("{decimals:0<3}").parse().ok()?;
    whole.checked_mul(1000)?.checked_add(fraction)
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.bits_per_second();
        let (scale, unit) = match bits {
            0..1_000_000 => (1_000, "kbit"),
            1_000_000..1_000_000_000 => (1_000_000, "Mbit"),
            _ => (1_000_000_000, "Gbit"),
        };
        let (whole, millis) = (bits / scale, bits % scale * 1000 / scale);
        if millis == 0 {
            return f.pad(&format!("{whole}{unit}"));
        }
        let decimals = format!("{millis:03}");
        f.pad(&format!("{whole}.{}{unit}", decimals.trim_end_matches('0')))
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_as_operators_write_them() {
        for (text, bytes) in [
            ("100Mbit", 12_500_000),
            ("1Gbit", 125_000_000),
            ("1Gbit/s", 125_000_000),
            ("100 Mbps", 0),
            ("50MB", 50_000_000),
            ("50MB/s", 50_000_000),
            ("1.5Mbit", 187_500),
            ("64kbit", 8_000),
            ("800000bit", 100_000),
        ] {
            match text.parse::<Rate>() {
                Ok(rate) => assert_eq!(rate.bytes_per_second(), bytes, "{text}"),
                Err(fault) => assert_eq!((fault.code, bytes), (Code::Config, 0), "{text}"),
            }
        }
    }

    #[test]
    fn f28_rates_that_are_no_number_or_out_of_range_are_refused() {
        for bad in [
            "",
            "Mbit",
            "-1Mbit",
            "NaNMbit",
            "1e3Mbit",
            "100",
            "0Mbit",
            "1kbit",
            "2000Gbit",
            "1..5Mbit",
            "1.Mbit",
            "1.2345Mbit",
            "99999999999999999999Mbit",
            "100MiB",
        ] {
            assert_eq!(bad.parse::<Rate>().unwrap_err().code, Code::Config, "{bad}");
        }
    }

    #[test]
    fn rates_round_trip_as_text() {
        for text in ["100Mbit", "1Gbit", "1.5Mbit", "64kbit", "12.345Mbit"] {
            assert_eq!(text.parse::<Rate>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn bytes_in_a_time_are_exact() {
        let rate = Rate::from_bytes_per_second(12_500_000).unwrap();
        assert_eq!(rate.bytes_in(Duration::from_millis(4)), 50_000);
        assert_eq!(
            RATE_MAX.bytes_in(Duration::from_secs(3600)),
            RATE_MAX.0 * 3600
        );
    }
}
