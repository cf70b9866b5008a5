//! Conversions between bytes, rates and times, in whole numbers. What does not fit is the largest
//! number.

use std::time::Duration;

/// `bytes / elapsed`, in bytes per second. No time counts as a nanosecond.
#[must_use]
pub fn per_second(bytes: u64, elapsed: Duration) -> u64 {
    let nanos = elapsed.as_nanos().max(1);
    fitting(u128::from(bytes) * 1_000_000_000 / nanos)
}

/// `rate × time`, with the rate in bytes per second.
#[must_use]
pub fn bytes_in(rate: u64, time: Duration) -> u64 {
    fitting(u128::from(rate).saturating_mul(time.as_nanos()) / 1_000_000_000)
}

/// `bytes × part / whole`.
#[must_use]
pub fn scaled(bytes: u64, part: Duration, whole: Duration) -> u64 {
    fitting(u128::from(bytes).saturating_mul(part.as_nanos()) / whole.as_nanos().max(1))
}

/// `time × part / whole`.
#[must_use]
pub fn scaled_time(time: Duration, part: u64, whole: u64) -> Duration {
    let nanos = time.as_nanos().saturating_mul(u128::from(part)) / u128::from(whole.max(1));
    Duration::from_nanos(fitting(nanos))
}

/// Whole milliseconds.
#[must_use]
pub fn millis(time: Duration) -> u64 {
    fitting(time.as_millis())
}

/// Whole microseconds.
#[must_use]
pub fn micros(time: Duration) -> u64 {
    fitting(time.as_micros())
}

/// Whole nanoseconds.
#[must_use]
pub fn nanos(time: Duration) -> u64 {
    fitting(time.as_nanos())
}

fn fitting(number: u128) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_exact_and_what_does_not_fit_is_the_largest_number() {
        let half = Duration::from_millis(500);
        assert_eq!(per_second(100, half), 200);
        assert_eq!(bytes_in(200, half), 100);
        assert_eq!(scaled(100, half, 4 * half), 25);
        assert_eq!(scaled_time(half, 1, 4), Duration::from_millis(125));
        assert_eq!((millis(half), micros(half)), (500, 500_000));
        assert_eq!(nanos(half), 500_000_000);
        for most in [
            per_second(u64::MAX, Duration::ZERO),
            bytes_in(u64::MAX, Duration::MAX),
            scaled(u64::MAX, Duration::MAX, Duration::ZERO),
            nanos(scaled_time(Duration::MAX, u64::MAX, 0)),
            micros(Duration::MAX),
        ] {
            assert_eq!(most, u64::MAX);
        }
    }
}
