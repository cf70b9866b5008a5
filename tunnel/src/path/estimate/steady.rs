//! The steady state: after each round the window moves towards the formula's.

use std::time::Duration;

use towpath_protocol::amounts::scaled;

use super::finished::Finished;
use super::growth::{Filling, Growth};
use super::startup::Startup;
use super::{Estimator, Phase, WINDOW_BYTES_MAX, WINDOW_PACKETS_MIN};

/// The part by which a window may exceed what is delivered on a lossy path. A path without buffer
/// loses it; with less, a path that always loses as much would shrink the window for ever.
const LOSSY_PART: u64 = 20;

impl Estimator {
    /// Learns from a round of the steady state.
    pub(super) fn follow(&mut self, finished: &Finished) {
        let (round, base, rate) = (&finished.round, finished.base, finished.peak_rate);
        // A sender without data says nothing about the path, unless it delivered more than the
        // rate; but while a queue stands, too large a window is cut. While cruising even more
        // delivered says nothing: a round of two packets on a thin link may have seen three arrive.
        let is_more = rate > self.rate_bytes_per_second && !round.is_cruising;
        if round.is_app_limited && !is_more {
            if self.is_congested() {
                let fitting = self.window_for(self.rate_bytes_per_second, base);
                self.window_bytes = self.window_bytes.min(fitting);
            }
            return;
        }
        let allowed = base + self.allowance_at(rate);
        if round.rtt_min > allowed {
            self.suspect(self.suspicion(finished, allowed));
        }
        self.rate_bytes_per_second = self.rate_bytes_per_second.midpoint(rate);
        let allowance = self.allowance.time();
        let has_no_queue = self.queue_delay < allowance / 4 && !finished.is_lossy;
        let growth = self.empty_rounds.note(Filling {
            rate,
            is_empty: has_no_queue && !round.is_app_limited,
            is_queueing: self.queue_delay >= allowance / 2,
            is_lossy: finished.is_lossy,
        });
        match growth {
            Growth::Open => self.move_window(finished, allowed),
            Growth::InVain => {
                self.window_bytes = self.window_bytes.min(self.window_for(rate, base));
            }
            // The startup grows faster, and looks for a queue at every packet.
            Growth::TooSmall => {
                self.startup_bytes_max = WINDOW_BYTES_MAX;
                self.phase = Phase::Startup(Startup {
                    best_rate: rate,
                    plateau_rounds: 0,
                });
            }
        }
    }

    /// Moves half way to the formula's window, against odd rounds; all the way if the queue is
    /// long. `allowed` is the round trip with the allowed queue.
    fn move_window(&mut self, finished: &Finished, allowed: Duration) {
        let wanted = match self.empty_rounds.growth_bytes(self.window_bytes) {
            Some(growth) => self.window_bytes + 2 * growth,
            None => scaled(self.window_bytes, allowed, finished.round.rtt_min),
        };
        // If something other than the window is the limit, no queue forms however large it is.
        let fitting = self.window_for(finished.peak_rate, finished.base);
        let more = if finished.is_lossy {
            fitting / LOSSY_PART
        } else {
            fitting
        };
        let most = fitting.saturating_add(more);
        self.window_bytes = if self.is_congested() {
            wanted.clamp(self.window_bytes / 2, self.window_bytes)
        } else {
            let grown_most = self.window_bytes + self.window_bytes / 4;
            self.window_bytes.midpoint(wanted).min(grown_most)
        }
        .clamp(WINDOW_PACKETS_MIN * self.packet_bytes, most);
    }

    /// Whether the queue is much longer than allowed.
    fn is_congested(&self) -> bool {
        self.queue_delay > 2 * self.allowance.time()
    }
}
