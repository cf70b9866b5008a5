//! Reads the monotonic clock, in one place.

/// Nanoseconds on `CLOCK_MONOTONIC`: the same clock in every process of this machine.
pub(crate) fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).expect("the monotonic clock starts at zero");
    let nanoseconds = u64::try_from(now.tv_nsec).expect("a part of a second is not negative");
    seconds * 1_000_000_000 + nanoseconds
}
