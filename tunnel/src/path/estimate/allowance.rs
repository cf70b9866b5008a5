//! The queue that we allow ourselves at the bottleneck, fitted to the buffer that is there.

use std::time::Duration;

/// The queue we allow ourselves at the bottleneck.
pub const ALLOWANCE: Duration = Duration::from_millis(4);

/// The allowance on a path within this host. There the queue is for the processors, which no pacing
/// of ours shortens, and a pipeline of four processes on busy processors runs dry with less.
const ALLOWANCE_LOCAL: Duration = Duration::from_millis(25);

/// Limits of a path within this host; a link emulator on the host is slower or longer.
const LOCAL_RTT_MAX: Duration = Duration::from_millis(1);
const LOCAL_BYTES_PER_SECOND_MIN: u64 = 125_000_000;

/// The least allowance, for buffers of a few packets.
const ALLOWANCE_MIN: Duration = Duration::from_micros(500);

/// The least allowance in packets. On a thin link 4 ms are less than one packet.
const ALLOWANCE_PACKETS_MIN: u64 = 4;

/// The allowance of one path.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowance {
    time: Duration,
    /// Whether the other end is an address of this host.
    is_local: bool,
}

impl Default for Allowance {
    fn default() -> Self {
        Self {
            time: ALLOWANCE,
            is_local: false,
        }
    }
}

impl Allowance {
    /// How long the allowed queue is.
    pub(super) const fn time(&self) -> Duration {
        self.time
    }

    /// The same at a rate in bytes per second, where it is not less than a few packets.
    pub(super) fn at(&self, rate: u64, packet_bytes: u64) -> Duration {
        let packets = ALLOWANCE_PACKETS_MIN * packet_bytes;
        let nanos = packets * 1_000_000_000 / rate.max(1);
        self.time.max(Duration::from_nanos(nanos))
    }

    /// States that the other end is an address of this host.
    pub(super) const fn set_local(&mut self) {
        self.is_local = true;
    }

    /// Forgets what the path's buffer has shown.
    pub(super) const fn reset(&mut self) {
        self.time = ALLOWANCE;
    }

    /// Halves the allowance, because the buffer is too short for it.
    pub(super) fn shrink(&mut self) {
        self.time = (self.time / 2).max(ALLOWANCE_MIN);
    }

    /// Lets the allowance grow back slowly, on a path of this base and rate in bytes per second.
    pub(super) fn grow(&mut self, base: Duration, rate: u64) {
        let is_within = base <= LOCAL_RTT_MAX && rate >= LOCAL_BYTES_PER_SECOND_MIN;
        let most = if self.is_local && is_within {
            ALLOWANCE_LOCAL
        } else {
            ALLOWANCE
        };
        self.time = (self.time + self.time / 64).min(most);
    }
}
