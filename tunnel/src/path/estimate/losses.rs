//! What a path loses: whether it is more than noise, and whether it still goes on.

/// Losses per thousand that count as noise of the path.
const LOSS_TOLERATED_PER_MILLE: u64 = 30;
/// Lost packets below which there are too few to tell.
const LOSS_PACKETS_MIN: u64 = 3;

/// Losses per thousand in one round that end the startup. A window half as large again as what the
/// path holds loses a third where there is no buffer; noise loses less.
const LOSS_OF_STARTUP_PER_MILLE: u64 = 150;
/// Lost packets that it takes at least: one or two may be noise.
const LOSS_OF_STARTUP_PACKETS_MIN: u64 = 4;

/// Rounds over which losses fade to about a third: each takes off an eighth.
const LOSS_ROUNDS: u64 = 8;

/// The part of a packet to which the lost bytes must fade before losses count as over. That is
/// about ten rounds after the last loss.
const LOSING_PART: u64 = 4;

/// Recent losses; older rounds count less and less.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Losses {
    seen_bytes: u64,
    lost_bytes: u64,
}

impl Losses {
    /// Records a round that lost `lost_bytes` of `seen_bytes`.
    pub(super) const fn note(&mut self, seen_bytes: u64, lost_bytes: u64) {
        self.seen_bytes = faded(self.seen_bytes) + seen_bytes;
        self.lost_bytes = faded(self.lost_bytes) + lost_bytes;
    }

    /// Whether more was lost than noise of the path explains.
    pub(super) const fn are_beyond_noise(&self, packet_bytes: u64) -> bool {
        self.are_beyond(LOSS_TOLERATED_PER_MILLE, LOSS_PACKETS_MIN * packet_bytes)
    }

    /// Whether packets are still being lost.
    pub(super) const fn go_on(&self, packet_bytes: u64) -> bool {
        self.lost_bytes >= packet_bytes / LOSING_PART
    }

    const fn are_beyond(&self, per_mille: u64, least_bytes: u64) -> bool {
        self.lost_bytes * 1000 > self.seen_bytes * per_mille && self.lost_bytes >= least_bytes
    }
}

/// Whether a round of the startup lost so much that the window exceeds what the path holds.
pub(super) const fn is_overrun(seen_bytes: u64, lost_bytes: u64, packet_bytes: u64) -> bool {
    let round = Losses {
        seen_bytes,
        lost_bytes,
    };
    let least_bytes = LOSS_OF_STARTUP_PACKETS_MIN * packet_bytes;
    round.are_beyond(LOSS_OF_STARTUP_PER_MILLE, least_bytes)
}

const fn faded(bytes: u64) -> u64 {
    bytes - bytes / LOSS_ROUNDS
}
