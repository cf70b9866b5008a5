//! What a path loses: how much of it is noise, and whether some is still going on.

/// Loss that counts as noise of the path, and packets below which there is too little of it to say.
const LOSS_TOLERATED_PER_MILLE: u64 = 30;
const LOSS_PACKETS_MIN: u64 = 3;

/// Loss in one round of the startup that ends it, and the packets of it at least: a window that is half as
/// large again as what the path holds loses a third where there is no buffer, and noise of a few
/// packets is not that.
const LOSS_OF_STARTUP_PER_MILLE: u64 = 150;
const LOSS_OF_STARTUP_PACKETS_MIN: u64 = 4;

/// Rounds over which loss is counted: a fall to a third.
const LOSS_ROUNDS: u64 = 8;

/// The part of a packet to which what was lost must have faded before nothing is being lost any more: some ten
/// rounds behind the last one.
const LOSING_PART: u64 = 4;

/// What was lost of late; rounds count less and less.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Losses {
    seen_bytes: u64,
    lost_bytes: u64,
}

impl Losses {
    /// Takes note of a round that lost `lost_bytes` of `seen_bytes`.
    pub(super) const fn note(&mut self, seen_bytes: u64, lost_bytes: u64) {
        self.seen_bytes = faded(self.seen_bytes) + seen_bytes;
        self.lost_bytes = faded(self.lost_bytes) + lost_bytes;
    }

    /// Whether more was lost than a path loses by itself.
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

/// Whether a round of the startup lost what the path does not hold.
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
