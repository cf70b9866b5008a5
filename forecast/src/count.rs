//! Counts as numbers with a fraction, and back.

/// A count as a number with a fraction; beyond 2^53 the last digits are lost, and no matter.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "said above")]
pub const fn precise(count: u64) -> f64 {
    count as f64
}

/// A number as a count.
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the cast ends at the bounds of the type"
)]
pub const fn whole(number: f64) -> u64 {
    number as u64
}
