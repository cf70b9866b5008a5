//! Conversions between bytes, rates and times.

use std::time::Duration;

/// `bytes / elapsed`, in bytes per second.
pub(super) fn per_second(bytes: u64, elapsed: Duration) -> u64 {
    let nanos = elapsed.as_nanos().max(1);
    u64::try_from(u128::from(bytes) * 1_000_000_000 / nanos).unwrap_or(u64::MAX)
}

/// `bytes × part / whole`.
pub(crate) fn scaled(bytes: u64, part: Duration, whole: Duration) -> u64 {
    let scaled = u128::from(bytes) * part.as_nanos() / whole.as_nanos().max(1);
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

/// `rate × time`, with the rate in bytes per second.
pub(super) fn bytes_in(rate: u64, time: Duration) -> u64 {
    let bytes = u128::from(rate) * time.as_nanos() / 1_000_000_000;
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// `time × part / whole`.
pub(super) fn scaled_time(time: Duration, part: u64, whole: u64) -> Duration {
    let nanos = time.as_nanos() * u128::from(part) / u128::from(whole.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}
