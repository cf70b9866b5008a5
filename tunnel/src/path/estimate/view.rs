//! The estimator's view of the path at one moment, as the rest of the tunnel reads it.

use std::time::Duration;

use towpath_protocol::time::Instant;

use super::Marked;

/// Extra round trips of data to keep under loss, because a packet may be lost twice.
const HOLE_ROUNDS: u64 = 2;

/// The estimator's current view of the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Estimate {
    /// Bytes per second delivered while the path, not the sender, was the limit.
    pub rate_bytes_per_second: u64,
    /// Round trip without a queue.
    pub base_rtt: Duration,
    /// By how much the last round's shortest round trip exceeded the base.
    pub queue_delay: Duration,
    /// `base_rtt` as shown to operators: it skips rounds with too few packets to know.
    pub told_base_rtt: Duration,
    /// `queue_delay` as shown to operators; see [`Self::told_base_rtt`].
    pub told_queue: Duration,
    /// When the last round began; all its packets were sent later.
    pub round_began: Instant,
    /// Bytes that may be in flight.
    pub window_bytes: u64,
    /// Total bytes delivered while the path was the limit and the window had settled.
    pub filled_bytes: u64,
    /// Total time in which [`Self::filled_bytes`] were delivered.
    pub filled_time: Duration,
    /// Whether the path's rate has been found.
    pub is_settled: bool,
    /// Whether the rate was ever found, here or by an earlier connection; else it is what was sent.
    pub is_known: bool,
    /// Whether it is open if the path has become longer; less is in flight meanwhile.
    pub is_doubtful: bool,
    /// Whether packets were lost recently, for whatever reason.
    pub is_losing: bool,
    /// Bytes of a full packet.
    pub packet_bytes: u64,
    /// What the packets of each marked period showed; see [`Estimator::mark`](super::Estimator::mark).
    pub marked: [Marked; 2],
}

impl Estimate {
    /// Extra round trips of data to keep while packets are being lost; 0 on a path without loss.
    #[must_use]
    pub const fn hole_rounds(&self) -> u64 {
        if self.is_losing { HOLE_ROUNDS } else { 0 }
    }
}
