//! A data rate as operators write it: `100Mbit`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fault::{Code, Fault};
use crate::quantity::{self, Unit, Wrong};

/// What is accepted. A bare number is refused: bits and bytes are too easily confused.
const READ: &[Unit] = &[
    ("bit", 1),
    ("kbit", 1_000),
    ("Mbit", 1_000_000),
    ("Gbit", 1_000_000_000),
    ("bit/s", 1),
    ("kbit/s", 1_000),
    ("Mbit/s", 1_000_000),
    ("Gbit/s", 1_000_000_000),
    ("B/s", 8),
    ("kB/s", 8_000),
    ("MB/s", 8_000_000),
    ("GB/s", 8_000_000_000),
    ("KiB/s", 8 << 10),
    ("MiB/s", 8 << 20),
    ("GiB/s", 8 << 30),
];

/// What is written.
const WRITTEN: &[Unit] = &[
    ("Gbit", 1_000_000_000),
    ("Mbit", 1_000_000),
    ("kbit", 1_000),
    ("bit", 1),
];

/// A data rate, in bits a second, never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rate(u64);

impl Rate {
    /// The rate of so many bits a second; none for zero, which would mean "never".
    #[must_use]
    pub const fn from_bits_per_second(bits: u64) -> Option<Self> {
        if bits == 0 { None } else { Some(Self(bits)) }
    }

    /// Bits a second.
    #[must_use]
    pub const fn bits_per_second(self) -> u64 {
        self.0
    }

    /// Whole bytes a second, at least one.
    #[must_use]
    pub const fn bytes_per_second(self) -> u64 {
        if self.0 < 8 { 1 } else { self.0 / 8 }
    }

    /// How long `bytes` take on the wire at this rate, rounded up to a nanosecond.
    #[must_use]
    pub fn time_for(self, bytes: u64) -> Duration {
        let nanos = (u128::from(bytes) * 8_000_000_000).div_ceil(u128::from(self.0));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// How many whole bytes go over the wire in `time` at this rate.
    #[must_use]
    pub fn bytes_in(self, time: Duration) -> u64 {
        let bytes = time.as_nanos().saturating_mul(u128::from(self.0)) / 8_000_000_000;
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }
}

impl TryFrom<String> for Rate {
    type Error = Fault;

    fn try_from(text: String) -> Result<Self, Fault> {
        text.parse()
    }
}

impl From<Rate> for String {
    fn from(rate: Rate) -> Self {
        rate.to_string()
    }
}

impl FromStr for Rate {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let wrong = |why: &str| {
            let shown: String = text.chars().take(40).collect();
            Fault::new(
                Code::Usage,
                format!("{shown:?} is not a rate such as 100Mbit: {why}"),
            )
        };
        let bits = quantity::parse(text, READ).map_err(|kind| {
            wrong(match kind {
                Wrong::Number => "it begins with no number",
                Wrong::Unit => "the unit is none of bit kbit Mbit Gbit B/s kB/s MB/s KiB/s MiB/s",
                Wrong::Fraction => "it is not a whole number of bits",
                Wrong::Overflow => "it is too large",
            })
        })?;
        Self::from_bits_per_second(bits).ok_or_else(|| wrong("it is zero"))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&quantity::format(self.0, WRITTEN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rates_are_read_with_their_unit_and_never_without() {
        for (text, bits) in [
            ("100Mbit", 100_000_000),
            ("100 Mbit/s", 100_000_000),
            ("1.5Gbit", 1_500_000_000),
            ("64kbit", 64_000),
            ("1bit", 1),
            ("2MiB/s", 16 << 20),
            ("10MB/s", 80_000_000),
        ] {
            assert_eq!(text.parse(), Ok(Rate(bits)), "{text}");
        }
        for bad in [
            "",
            "100",
            "0Mbit",
            "-1Mbit",
            "100mbit",
            "100MBit",
            "100MB",
            "inf",
            "NaN",
            "0.1bit",
            "99999999999Gbit",
        ] {
            assert_eq!(
                bad.parse::<Rate>().expect_err(bad).code,
                Code::Usage,
                "{bad}"
            );
        }
    }

    #[test]
    fn time_and_bytes_agree_with_the_rate() {
        let rate: Rate = "100Mbit".parse().unwrap();
        assert_eq!(rate.bytes_per_second(), 12_500_000);
        assert_eq!(rate.time_for(12_500_000), Duration::from_secs(1));
        assert_eq!(rate.time_for(1), Duration::from_nanos(80));
        assert_eq!(rate.bytes_in(Duration::from_millis(40)), 500_000);
        assert_eq!(Rate(1).time_for(u64::MAX), Duration::from_nanos(u64::MAX));
        assert_eq!(Rate(u64::MAX).bytes_in(Duration::MAX), u64::MAX);
    }

    proptest! {
        #[test]
        fn rates_round_trip(bits in 1u64.., shift in 0u32..60, thousands in 0u32..4) {
            let bits = ((bits >> shift).max(1)).saturating_mul(1000u64.pow(thousands));
            let rate = Rate(bits);
            prop_assert_eq!(rate.to_string().parse(), Ok(rate));
        }
    }
}
