//! A number of bytes as operators write it: `256MiB`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::fault::{Code, Fault, shown};

/// Most digits of a number. More are certainly a mistake and might overflow.
const DIGITS_MAX: usize = 20;

/// Most digits after the point; beyond that a smaller unit is used.
const FRACTION_DIGITS_MAX: u32 = 3;

/// A unit's name and how many base units it stands for.
type Unit = (&'static str, u64);

/// Why a text is not a quantity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    /// It does not begin with a decimal number.
    Number,
    /// The unit is unknown or missing.
    Unit,
    /// It is not a whole number of base units.
    Fraction,
    /// It is too large for 64 bits.
    Overflow,
}

/// The units that are read. A bare number is bytes.
const READ: &[Unit] = &[
    ("", 1),
    ("B", 1),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// The units that are written.
const WRITTEN: &[Unit] = &[
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

/// A number of bytes.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(try_from = "Written", into = "String")]
pub struct Size(u64);

impl Size {
    /// The size of `bytes` bytes.
    #[must_use]
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

/// A size in a file: a text with a unit, or a number of bytes.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "a size such as \"256MiB\", or a number of bytes"
)]
enum Written {
    Bytes(u64),
    Text(String),
}

impl TryFrom<Written> for Size {
    type Error = Fault;

    fn try_from(written: Written) -> Result<Self, Fault> {
        match written {
            Written::Bytes(bytes) => Ok(Self(bytes)),
            Written::Text(text) => text.parse(),
        }
    }
}

impl From<Size> for String {
    fn from(size: Size) -> Self {
        size.to_string()
    }
}

impl FromStr for Size {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        parse_units(text, READ).map(Self).map_err(|wrong| {
            let shown = shown(text);
            let why = match wrong {
                Wrong::Number => "it begins with no number",
                Wrong::Unit => "the unit is none of B kB MB GB TB KiB MiB GiB TiB",
                Wrong::Fraction => "it is not a whole number of bytes",
                Wrong::Overflow => "it is too large",
            };
            Fault::new(
                Code::Usage,
                format!("{shown:?} is not a size such as 256MiB: {why}"),
            )
        })
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format_units(self.0, WRITTEN))
    }
}

/// Parses `text` to a number of base units. Units are matched exactly, because `m` is not `M`.
fn parse_units(text: &str, units: &[Unit]) -> Result<u64, Wrong> {
    let text = text.trim();
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = unit.trim_start();
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let fraction_is_plain = fraction.bytes().all(|b| b.is_ascii_digit());
    let point_is_bare = number.contains('.') && fraction.is_empty();
    if whole.is_empty()
        || whole.len() + fraction.len() > DIGITS_MAX
        || !fraction_is_plain
        || point_is_bare
    {
        return Err(Wrong::Number);
    }
    let (_, scale) = units
        .iter()
        .find(|(name, _)| *name == unit)
        .ok_or(Wrong::Unit)?;
    let digits: u128 = format!("{whole}{fraction}")
        .parse()
        .map_err(|_| Wrong::Number)?;
    let divisor = 10u128.pow(u32::try_from(fraction.len()).map_err(|_| Wrong::Number)?);
    let product = digits
        .checked_mul(u128::from(*scale))
        .ok_or(Wrong::Overflow)?;
    if !product.is_multiple_of(divisor) {
        return Err(Wrong::Fraction);
    }
    u64::try_from(product / divisor).map_err(|_| Wrong::Overflow)
}

/// The shortest exact text, in the largest unit that needs at most three digits after the point.
///
/// `units` are ordered from large to small and end with the base unit.
fn format_units(value: u64, units: &[Unit]) -> String {
    for (name, scale) in units {
        if value < *scale && *scale > 1 {
            continue;
        }
        let whole = value / scale;
        let mut rest = u128::from(value % scale);
        let mut fraction = String::new();
        for _ in 0..FRACTION_DIGITS_MAX {
            if rest == 0 {
                break;
            }
            rest *= 10;
            let digit = rest / u128::from(*scale);
            rest %= u128::from(*scale);
            fraction.push(char::from(
                b'0' + u8::try_from(digit).expect("one decimal digit"),
            ));
        }
        if rest == 0 {
            let point = if fraction.is_empty() { "" } else { "." };
            return format!("{whole}{point}{fraction}{name}");
        }
    }
    value.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_read_with_their_unit() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("256MiB", 256 << 20),
            ("256 MiB", 256 << 20),
            ("1.5GiB", 3 << 29),
            ("2MB", 2_000_000),
            ("1kB", 1000),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for bad in [
            "",
            "MiB",
            "-1MiB",
            "1.MiB",
            ".5MiB",
            "1mib",
            "1 M",
            "0.3B",
            "1e9",
            "NaN",
            "999999999999999999999",
            "18446744073709551616",
            "99999999TiB",
            "1..5MiB",
        ] {
            assert_eq!(
                bad.parse::<Size>().expect_err(bad).code,
                Code::Usage,
                "{bad}"
            );
        }
    }

    #[test]
    fn sizes_are_written_in_the_largest_exact_unit() {
        for (bytes, text) in [
            (0, "0B"),
            (1023, "1023B"),
            (1536, "1.5KiB"),
            (256 << 20, "256MiB"),
            ((1 << 30) + 1, "1073741825B"),
        ] {
            assert_eq!(Size(bytes).to_string(), text);
        }
    }

    proptest! {
        #[test]
        fn sizes_round_trip(bytes in any::<u64>(), shift in 0u32..64) {
            let size = Size(bytes >> shift << (shift / 2));
            prop_assert_eq!(size.to_string().parse(), Ok(size));
        }
    }
}
