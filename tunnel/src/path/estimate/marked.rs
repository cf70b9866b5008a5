//! What packets say that were sent at certain times.

use std::time::Duration;

use towpath_protocol::time::Instant;

/// Packets that were sent between two moments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Marked {
    /// The first moment.
    pub from: Instant,
    /// The second; without one after the first there are none.
    pub until: Instant,
    /// How many have arrived.
    pub packet_count: u32,
    /// The least round trip of them; zero if there are none.
    pub rtt_min: Duration,
    /// Whether one has arrived that was sent later, so that no more are to be expected.
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
