//! What arrived in one round trip.

use std::time::Duration;

use towpath_protocol::time::Instant;

use super::is_long;
use super::spans::PEAK_TIME;

#[derive(Debug, Clone, Copy)]
pub(super) struct Round {
    pub(super) began: Instant,
    pub(super) delivered_bytes: u64,
    pub(super) lost_bytes: u64,
    /// Bytes of these that a startup sent or led to.
    pub(super) overrun_bytes: u64,
    pub(super) rtt_min: Duration,
    /// Of all its packets.
    pub(super) rtt_sum: Duration,
    pub(super) packet_count: u32,
    /// When something arrived last, and the longest time in which nothing did.
    pub(super) arrived: Instant,
    pub(super) gap_max: Duration,
    pub(super) is_app_limited: bool,
    pub(super) is_cruising: bool,
    /// The window when it began.
    pub(super) window_bytes: u64,
}

impl Round {
    pub(super) const fn beginning(now: Instant, window_bytes: u64) -> Self {
        Self {
            began: now,
            window_bytes,
            delivered_bytes: 0,
            lost_bytes: 0,
            overrun_bytes: 0,
            rtt_min: Duration::MAX,
            rtt_sum: Duration::ZERO,
            packet_count: 0,
            arrived: now,
            gap_max: Duration::ZERO,
            is_app_limited: false,
            is_cruising: false,
        }
    }

    /// Whether it was long, and something arrived all the time: no process that was not scheduled looks like this.
    pub(super) fn is_steady(&self, elapsed: Duration) -> bool {
        elapsed >= PEAK_TIME && self.gap_max <= elapsed / 4
    }

    /// Whether nothing arrived for most of it, and longer than the path explains: it was interrupted, in one
    /// direction at least, and says nothing of what it carries.
    pub(super) fn is_interrupted(&self, elapsed: Duration, base: Duration) -> bool {
        self.gap_max > elapsed / 2 && is_long(self.gap_max, base)
    }
}
