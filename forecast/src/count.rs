//! Conversions between counts and floating point numbers.

/// Converts a count to floating point. Beyond 2^53 the last digits are lost, which does not matter
/// here.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "said above")]
pub const fn to_f64(count: u64) -> f64 {
    count as f64
}

/// Converts a number to a count, rounding down and saturating.
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the cast ends at the bounds of the type"
)]
pub const fn whole(number: f64) -> u64 {
    number as u64
}
