//! Rounds without a queue: whether the window is far too small, and by how much it grows to find
//! out.

/// Rounds without a queue after which the window counts as too small, not the queue as too short.
const EMPTY_ROUNDS: u32 = 3;
/// Rounds after [`EMPTY_ROUNDS`] in which the window grows by half.
const GROWTH_ROUNDS: u32 = 4;
/// The most empty rounds to wait before the next attempt, when growing brought no higher rate.
const EMPTY_ROUNDS_MAX: u32 = 96;

/// A round as seen by [`EmptyRounds`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Filling {
    /// Bytes per second that the path delivers.
    pub(super) rate: u64,
    /// Whether it filled the window and left no queue.
    pub(super) is_empty: bool,
    /// Whether the path is full and shows a queue.
    pub(super) is_queueing: bool,
    /// Whether more packets were lost than noise explains.
    pub(super) is_lossy: bool,
}

/// What rounds without a queue say about the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Growth {
    /// Nothing yet.
    Open,
    /// It grew in vain: something else is the limit, or the excess is lost.
    InVain,
    /// It is far too small.
    TooSmall,
}

/// Rounds in a row that filled the window and left no queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct EmptyRounds {
    count: u32,
    /// The rate in the first of them, in bytes per second.
    first_rate: u64,
    /// Number of such rounds after which the window grows.
    patience: u32,
}

impl Default for EmptyRounds {
    fn default() -> Self {
        Self {
            count: 0,
            first_rate: 0,
            patience: EMPTY_ROUNDS,
        }
    }
}

impl EmptyRounds {
    /// Forgets the rounds, and that growing may have been in vain.
    pub(super) const fn reset(&mut self) {
        self.count = 0;
        self.patience = EMPTY_ROUNDS;
    }

    /// Records a round.
    pub(super) fn note(&mut self, round: Filling) -> Growth {
        let count = if round.is_empty { self.count + 1 } else { 0 };
        if count == 1 {
            self.first_rate = round.rate;
        }
        if round.is_queueing {
            self.patience = EMPTY_ROUNDS;
        }
        let is_lost = round.is_lossy && self.count > self.patience;
        self.count = count;
        if !is_lost && count <= self.patience + GROWTH_ROUNDS {
            return Growth::Open;
        }
        self.count = 0;
        if is_lost || round.rate < self.first_rate + self.first_rate / 4 {
            self.patience = (self.patience * 2).min(EMPTY_ROUNDS_MAX);
            Growth::InVain
        } else {
            self.patience = EMPTY_ROUNDS;
            Growth::TooSmall
        }
    }

    /// How much a window grows after too many empty rounds: every other round, because the effect
    /// shows one round later, and little the first time, because jitter may hide a queue.
    pub(super) fn growth_bytes(&self, window_bytes: u64) -> Option<u64> {
        let rounds = self.count.checked_sub(self.patience + 1)?;
        match rounds {
            0 => Some(window_bytes / 8),
            _ if rounds.is_multiple_of(2) => Some(window_bytes / 4),
            _ => None,
        }
    }

    /// As after many attempts in vain: the longest wait before the next.
    #[cfg(test)]
    pub(super) const fn set_patience_max(&mut self) {
        self.patience = EMPTY_ROUNDS_MAX;
    }
}
