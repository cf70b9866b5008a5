//! The startup: the window doubles every round trip, until a queue or much loss shows, the rate no
//! longer grows, or the window is what the path is known to hold.

use std::time::Duration;

use towpath_protocol::time::Instant;

use super::finished::Finished;
use super::round::Round;
use super::{Estimator, Phase, WINDOW_BYTES_MAX};

/// Rounds in a row whose rate grew by no more than a quarter that end the startup.
const PLATEAU_ROUNDS: u32 = 3;

/// Number of recent acknowledgements whose least round trip shows the startup a queue.
const RECENT_COUNT: usize = 8;

/// The progress of a startup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Startup {
    /// The highest rate so far, in bytes per second.
    pub(super) best_rate: u64,
    /// Rounds in a row whose rate hardly grew.
    pub(super) plateau_rounds: u32,
}

/// The round trips of the most recent acknowledgements.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RecentRtts {
    rtts: [Duration; RECENT_COUNT],
    ack_count: usize,
}

impl RecentRtts {
    /// Records the round trip of one more acknowledgement.
    pub(super) const fn note(&mut self, rtt: Duration) {
        self.rtts[self.ack_count % RECENT_COUNT] = rtt;
        self.ack_count = self.ack_count.wrapping_add(1);
    }

    /// Returns the least of them; zero until there are enough.
    pub(super) fn least(&self) -> Duration {
        self.rtts.iter().min().copied().unwrap_or_default()
    }
}

impl Estimator {
    /// Whether the estimator is in its startup.
    pub(super) const fn is_starting(&self) -> bool {
        matches!(self.phase, Phase::Startup { .. })
    }

    /// Lets the window grow by acknowledged bytes, unless a queue already stands.
    pub(super) fn grow_in_startup(&mut self, acked_bytes: u64, base: Duration) {
        let has_queue = self.recent.least().saturating_sub(base) > self.allowance.time() / 2;
        if !has_queue {
            self.window_bytes = (self.window_bytes + acked_bytes).min(self.startup_bytes_max);
        }
    }

    /// Begins the startup with this window.
    pub(super) fn start_from(&mut self, now: Instant, window_bytes: u64) {
        self.phase = Phase::Startup(Startup::default());
        self.belief = None;
        self.window_bytes = window_bytes;
        self.round = Round::beginning(now, window_bytes);
    }

    /// Starts again after an interruption. The old rate is believed until another is seen.
    pub(super) fn begin_again(&mut self, now: Instant) {
        let is_known = !self.is_starting();
        if let Some(base) = self.base.known().filter(|_| is_known) {
            self.startup_bytes_max = self.window_for(self.rate_bytes_per_second, base);
        }
        // The losses of an interruption are noticed piece by piece, and each piece comes here.
        let known = Some(self.startup_bytes_max).filter(|bytes| *bytes < WINDOW_BYTES_MAX);
        let window_bytes = self.window_bytes.max(known.unwrap_or(0)) / 4;
        self.start_from(now, window_bytes.min(self.startup_bytes_max));
        self.allowance.reset();
    }

    /// Goes on with the startup after a round, or ends it.
    pub(super) fn step_startup(&mut self, startup: Startup, finished: &Finished) {
        let is_app_limited = finished.round.is_app_limited;
        let (rate, best_rate) = (finished.peak_rate, startup.best_rate);
        // The queue and the losses seen by a sender with nothing to send are not its own:
        // one lost packet of three says nothing about what the path carries.
        let is_full = (finished.is_lossy || finished.has_queue) && !is_app_limited;
        self.rate_bytes_per_second = self.rate_bytes_per_second.max(rate);
        let has_grown = rate > best_rate + best_rate / 4;
        let plateau_rounds = match (has_grown, is_app_limited) {
            (true, _) => 0,
            (false, true) => startup.plateau_rounds,
            (false, false) => startup.plateau_rounds + 1,
        };
        if is_full || plateau_rounds >= PLATEAU_ROUNDS {
            self.rate_bytes_per_second = rate.max(best_rate);
            let fitting = self.window_for(self.rate_bytes_per_second, finished.base);
            // Without a queue, the rate may only seem to have stopped growing.
            let most = if is_full { fitting } else { 2 * fitting };
            self.window_bytes = self.window_bytes.min(most);
            self.phase = Phase::Steady;
        } else if self.window_bytes >= self.startup_bytes_max {
            self.phase = Phase::Steady;
        } else {
            self.phase = Phase::Startup(Startup {
                best_rate: best_rate.max(rate),
                plateau_rounds,
            });
        }
    }
}
