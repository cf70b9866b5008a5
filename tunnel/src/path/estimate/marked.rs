//! Observation of the packets that were sent in a given period.

use std::time::Duration;

use towpath_protocol::time::Instant;

/// Packets sent from `from` until `until`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Marked {
    /// Start of the period.
    pub from: Instant,
    /// End of the period, exclusive. If it is not after `from`, the period is empty.
    pub until: Instant,
    /// Number of these packets that were acknowledged.
    pub packet_count: u32,
    /// Their least round trip; zero if there are none.
    pub rtt_min: Duration,
    /// Whether a packet sent after the period was acknowledged, so that no more are expected.
    pub is_over: bool,
}

impl Marked {
    pub(super) fn note(&mut self, sent: Instant, rtt: Duration) {
        if (self.from..self.until).contains(&sent) {
            let is_first = self.packet_count == 0;
            self.rtt_min = if is_first { rtt } else { self.rtt_min.min(rtt) };
            self.packet_count += 1;
        }
        self.is_over |= sent >= self.until;
    }
}
