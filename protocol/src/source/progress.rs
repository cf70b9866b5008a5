//! The progress of an attempt at its source, for operators.

use std::time::Duration;

use super::{Phase, Source};
use crate::plan;
use crate::space::BlockSet;
use crate::time::Instant;

/// The stage of an attempt, for operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Waiting for the target's admission.
    Preparing,
    /// Pre-copy rounds, while the guest runs here.
    Copying,
    /// The guest is frozen.
    Switching,
    /// The guest is the target's; its answer is awaited.
    Committed,
    /// The guest runs at the target; the rest follows.
    Serving,
    /// Over.
    Over,
}

impl Stage {
    /// All stages, in order.
    pub const ALL: [Self; 6] = [
        Self::Preparing,
        Self::Copying,
        Self::Switching,
        Self::Committed,
        Self::Serving,
        Self::Over,
    ];

    /// The stage's name in records, metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Preparing => "preparing",
            Self::Copying => "copying",
            Self::Switching => "switching",
            Self::Committed => "committed",
            Self::Serving => "serving",
            Self::Over => "over",
        }
    }
}

/// A decision with the numbers it is based on.
#[derive(Debug, Clone, PartialEq)]
pub struct DecisionRecord {
    /// When it was made.
    pub at: Instant,
    /// The numbers.
    pub facts: plan::Facts,
    /// The decision and its prediction.
    pub judgement: plan::Judgement,
}

/// Counters of an attempt.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Progress {
    /// Rounds finished or under way.
    pub round_count: u32,
    /// Rounds finished.
    pub finished_round_count: u32,
    /// Number of blocks in all spaces.
    pub block_count: u64,
    /// Blocks left to send in this stage, including those in flight.
    pub blocks_left: u64,
    /// Raw bytes of blocks sent.
    pub raw_bytes: u64,
    /// Bytes of the frames of these blocks.
    pub wire_bytes: u64,
    /// Raw bytes per second that were acknowledged.
    pub goodput_bytes_per_second: u64,
    /// Raw bytes per second that the guest dirtied in the last round.
    pub dirty_bytes_per_second: u64,
    /// Time until this stage is finished at the present goodput, if there is any.
    pub eta: Option<Duration>,
    /// The pause predicted by the last decision.
    pub pause_predicted: Option<Duration>,
    /// The pause as computed from both sides' clocks.
    pub pause_reported: Option<Duration>,
    /// Blocks that the target demanded.
    pub demand_count: u64,
    /// Times the lanes were lost and opened again.
    pub reconnect_count: u32,
    /// Round trip of the control lane.
    pub round_trip: Option<Duration>,
}

impl Source {
    /// Updates the blocks left and the time they take.
    pub(super) fn estimate(&mut self) {
        let (blocks_left, bytes_left) = match &self.phase {
            Phase::Offering => (self.progress.block_count, None),
            Phase::Copying(round) => self.left(round.pending()),
            Phase::Switching(pause) => self.left(pause.carry()),
            Phase::Committed { .. } => (self.progress.blocks_left, None),
            Phase::Serving(push) => {
                let (blocks_left, bytes_left) = self.left(push.missing());
                (blocks_left + push.unread_count(), bytes_left)
            }
            Phase::Over => (0, None),
        };
        self.progress.blocks_left = blocks_left;
        let goodput = Some(self.goodput()).filter(|rate| *rate > 0);
        self.progress.eta = bytes_left
            .zip(goodput)
            .map(|(bytes, goodput)| plan::seconds_for(bytes, goodput));
    }

    /// Raw bytes per second that the move makes: as measured, within its cap.
    pub(super) fn goodput(&self) -> u64 {
        let measured = self.meter.bytes_per_second();
        match self.pace.raw_bytes_per_second_max() {
            Some(most) if measured == 0 => most,
            Some(most) => measured.min(most),
            None => measured,
        }
    }

    fn left(&self, pending: &[BlockSet]) -> (u64, Option<u64>) {
        let blocks: u64 = pending.iter().map(BlockSet::len).sum();
        let bytes = self.raw_bytes(pending) + self.window.raw_bytes();
        (blocks + self.window.block_count(), Some(bytes))
    }
}
