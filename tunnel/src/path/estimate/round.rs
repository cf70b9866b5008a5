//! What arrived in one round, about a round trip.

use std::time::Duration;

use towpath_protocol::time::Instant;

use super::Ack;
use super::spans::PEAK_TIME;

/// The longest time without any acknowledgement, beyond two round trips, that is not an
/// interruption. Twice the longest time a peer may hold an acknowledgement back.
const GAP_MIN: Duration = Duration::from_millis(50);

#[derive(Debug, Clone, Copy)]
pub(super) struct Round {
    pub(super) began: Instant,
    pub(super) delivered_bytes: u64,
    pub(super) lost_bytes: u64,
    /// The part of `lost_bytes` that was sent, or caused, by a startup.
    pub(super) overrun_bytes: u64,
    pub(super) rtt_min: Duration,
    /// Sum of the round trips of all its packets.
    pub(super) rtt_sum: Duration,
    pub(super) packet_count: u32,
    /// When the last packet arrived, and the longest time without any.
    pub(super) arrived: Instant,
    pub(super) gap_max: Duration,
    pub(super) is_app_limited: bool,
    pub(super) is_cruising: bool,
    /// The window at the start of the round.
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

    /// Adds an acknowledged packet; returns the time since the one before.
    pub(super) fn note(&mut self, ack: &Ack) -> Duration {
        let rtt = ack.rtt();
        self.rtt_min = self.rtt_min.min(rtt);
        self.rtt_sum += rtt;
        self.packet_count = self.packet_count.saturating_add(1);
        let gap = ack.now.since(self.arrived);
        self.gap_max = self.gap_max.max(gap);
        self.arrived = ack.now;
        self.delivered_bytes += ack.bytes;
        self.is_app_limited |= ack.is_app_limited || ack.is_cruising;
        self.is_cruising |= ack.is_cruising;
        gap
    }

    /// Whether it was long and packets arrived all the time. An unscheduled process never looks
    /// like this.
    pub(super) fn is_steady(&self, elapsed: Duration) -> bool {
        elapsed >= PEAK_TIME && self.gap_max <= elapsed / 4
    }

    /// Whether nothing arrived for most of it, and for longer than the path explains. Then the path
    /// was interrupted, in one direction at least, and the round says nothing about its rate.
    pub(super) fn is_interrupted(&self, elapsed: Duration, base: Duration) -> bool {
        self.gap_max > elapsed / 2 && is_long(self.gap_max, base)
    }
}

/// Whether a gap between acknowledgements is longer than a path with this base explains.
pub(super) fn is_long(gap: Duration, base: Duration) -> bool {
    gap > 2 * base + GAP_MIN
}
