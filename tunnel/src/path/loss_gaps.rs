//! The limit on bytes in flight where packets are lost.
//!
//! Data behind lost packets waits at the receiver in pieces. If a stream has more pieces than the
//! library keeps, the library closes the connection.
//!
//! Pure. It matters only on paths that are fast, long and lossy at once: 64 MiB in packets of 1452
//! bytes, with one in fifty lost, leave 924 gaps.

/// The most gaps that one window may leave. The library keeps 1024 pieces of a stream (`MAX_CHUNKS`
/// of quinn-proto 0.11). Until lost packets are retransmitted, a second window's gaps add to the
/// first one's.
const GAPS_MAX: u64 = 400;

/// The least limit, whatever the losses. It leaves too many gaps only if more than one packet in
/// six is lost; then losses follow upon each other, and adjacent losses make one gap.
const LEAST_BYTES: u64 = 8 << 20;

/// Bytes over which losses are counted; at this many the counts are halved.
const MEMORY_BYTES: u64 = 64 << 20;
/// Bytes that must have been counted before there is a limit.
const TOLD_BYTES: u64 = 1 << 20;

/// Bytes that arrived and bytes that were lost, recently.
#[derive(Debug, Clone, Copy, Default)]
pub struct Gaps {
    arrived_bytes: u64,
    lost_bytes: u64,
}

impl Gaps {
    /// Counts bytes that arrived.
    pub const fn arrived(&mut self, bytes: u64) {
        self.arrived_bytes += bytes;
        self.fade();
    }

    /// Counts bytes that were lost.
    pub const fn lost(&mut self, bytes: u64) {
        self.lost_bytes += bytes;
        self.fade();
    }

    const fn fade(&mut self) {
        if self.arrived_bytes + self.lost_bytes > MEMORY_BYTES {
            self.arrived_bytes /= 2;
            self.lost_bytes /= 2;
        }
    }

    /// The most bytes that may be in flight, in packets of `packet_bytes`.
    #[must_use]
    pub fn window_bytes_max(&self, packet_bytes: u64) -> u64 {
        let seen_bytes = self.arrived_bytes + self.lost_bytes;
        if self.lost_bytes == 0 || seen_bytes < TOLD_BYTES {
            return u64::MAX;
        }
        let most = u128::from(GAPS_MAX * packet_bytes) * u128::from(seen_bytes);
        let most = u64::try_from(most / u128::from(self.lost_bytes)).unwrap_or(u64::MAX);
        most.max(LEAST_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(arrived_bytes: u64, lost_bytes: u64) -> Gaps {
        let mut gaps = Gaps::default();
        gaps.arrived(arrived_bytes);
        gaps.lost(lost_bytes);
        gaps
    }

    #[test]
    fn a_window_leaves_no_more_gaps_than_may_be() {
        // One in fifty, one in two hundred, one in a thousand.
        for (lost, most) in [(20, 29_040_000), (5, 116_160_000), (1, 580_800_000)] {
            let gaps = seen((1000 - lost) * 20_000, lost * 20_000);
            assert_eq!(gaps.window_bytes_max(1452), most);
        }
        assert_eq!(seen(40_000_000, 0).window_bytes_max(1452), u64::MAX);
    }

    #[test]
    fn ordinary_paths_and_few_packets_are_left_alone() {
        assert_eq!(
            seen(1_000_000, 1_000_000).window_bytes_max(1452),
            LEAST_BYTES
        );
        assert_eq!(seen(500_000, 100_000).window_bytes_max(1452), u64::MAX);
    }

    #[test]
    fn losses_of_long_ago_fade() {
        let mut gaps = seen(10_000_000, 1_000_000);
        let before = gaps.window_bytes_max(1452);
        (0..400).for_each(|_| gaps.arrived(1_000_000));
        assert!(gaps.window_bytes_max(1452) > 20 * before);
    }
}
