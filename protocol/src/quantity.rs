//! Exact decimal numbers with a unit: what sizes and rates are written with.

/// Most digits of a number an operator writes; more cannot be meant and might overflow.
const DIGITS_MAX: usize = 20;

/// Digits behind the point that are shown before a smaller unit is taken instead.
const FRACTION_DIGITS_MAX: u32 = 3;

/// A unit's name and how many base units it stands for.
pub(crate) type Unit = (&'static str, u64);

/// Why a text is not a quantity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// It does not begin with a decimal number.
    Number,
    /// The unit is none of ours, or is missing.
    Unit,
    /// It is not a whole number of base units.
    Fraction,
    /// It is too large for 64 bits.
    Overflow,
}

/// The number of base units that `text` names. Units are matched exactly, as `m` is not `M`.
pub(crate) fn parse(text: &str, units: &[Unit]) -> Result<u64, Wrong> {
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

/// The shortest exact text: the largest unit that needs at most three digits behind the point.
///
/// `units` go from large to small and end with the base unit.
pub(crate) fn format(value: u64, units: &[Unit]) -> String {
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
