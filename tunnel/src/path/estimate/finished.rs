//! A round that is over, and what it says: whether the path or the sender was its limit, whether a
//! queue stood, and whether more was lost than noise explains.

use std::time::Duration;

use towpath_protocol::amounts::{bytes_in, per_second};
use towpath_protocol::time::Instant;

use super::losses::{self, Losses};
use super::round::Round;
use super::{ALLOWANCE, Estimator, Phase};

/// The least part of the window (a sixteenth) that a full round brings. It would be all of it, but
/// rounds on paths within a host may be shorter than their queues.
const FULL_PART: u64 = 16;
/// The same in a startup.
const FULL_PART_STARTUP: u64 = 4;

/// A round that is over.
#[derive(Debug, Clone, Copy)]
pub(super) struct Finished {
    /// What arrived in it. `is_app_limited` means here that the round teaches nothing about the
    /// path's rate, for whatever reason.
    pub(super) round: Round,
    /// When it ended, and how long it took.
    pub(super) now: Instant,
    pub(super) elapsed: Duration,
    /// The least round trip of the current spans of time.
    pub(super) base: Duration,
    /// Bytes per second delivered in it.
    pub(super) rate: u64,
    /// The highest rate of this and the rounds shortly before.
    pub(super) peak_rate: u64,
    /// Whether a queue stood throughout.
    pub(super) has_queue: bool,
    /// Whether more packets were lost than noise explains.
    pub(super) is_lossy: bool,
    /// Whether it shows the path's rate directly: all of it arrived behind a long queue.
    pub(super) is_told: bool,
}

impl Estimator {
    /// Ends the current round and begins the next. Updates what is known of queue, losses and
    /// buffer, but neither window nor rate.
    pub(super) fn finish_round(&mut self, now: Instant, base: Duration) -> Finished {
        let next = Round::beginning(now, self.window_bytes);
        let mut round = std::mem::replace(&mut self.round, next);
        let elapsed = now.since(round.began);
        let rate = per_second(round.delivered_bytes, elapsed);
        self.queue_delay = round.rtt_min.saturating_sub(base);
        self.round_began = round.began;
        let has_queue = self.queue_delay > self.allowance.time() / 2;
        let is_telling = self.is_telling(&round);
        let was_app_limited = std::mem::replace(&mut self.was_app_limited, round.is_app_limited);
        round.is_app_limited |= !is_telling || was_app_limited && self.phase == Phase::Steady;
        round.is_app_limited &= !is_full(&round, rate, has_queue);
        round.is_app_limited |= self.is_interrupted(&round, elapsed, base);
        self.told
            .note(round.rtt_min, round.packet_count, !round.is_app_limited);
        let peak_rate = self.peak.with(rate, now);
        // Losses below the path's rate are noise, however many they are.
        let is_lossy = self.note_losses(&round) && !round.is_cruising;
        if is_lossy && is_telling && self.phase == Phase::Steady {
            self.allowance.shrink();
        } else {
            self.allowance.grow(base, peak_rate);
        }
        let is_told = self.is_told(&round, elapsed, rate);
        Finished {
            round,
            now,
            elapsed,
            base,
            rate,
            peak_rate,
            has_queue,
            is_lossy,
            is_told,
        }
    }

    /// Whether so much was acknowledged that the sender's pauses are known: whether it had data is
    /// known for the time of the acknowledgement, not of the packet, and a few bytes acknowledged
    /// late, with the window full at last, would set the rate.
    fn is_telling(&self, round: &Round) -> bool {
        let seen_bytes = round.delivered_bytes + round.lost_bytes;
        let least_part = if self.is_starting() {
            FULL_PART_STARTUP
        } else {
            FULL_PART
        };
        seen_bytes >= round.window_bytes / least_part
    }

    /// Whether the path was interrupted for most of a round. A path that may have become longer
    /// explains a longer gap.
    fn is_interrupted(&self, round: &Round, elapsed: Duration, base: Duration) -> bool {
        let longer = self.belief.map_or(base, |belief| belief.rtt_before);
        round.is_interrupted(elapsed, longer.max(base))
    }

    /// Records the losses of a round. Returns whether a path loses that much only when it is full.
    fn note_losses(&mut self, round: &Round) -> bool {
        let lost_bytes = round.lost_bytes - round.overrun_bytes;
        let seen_bytes = round.delivered_bytes + lost_bytes;
        if self.is_starting() {
            self.losses = Losses::default();
            losses::is_overrun(seen_bytes, lost_bytes, self.packet_bytes)
        } else {
            self.losses.note(seen_bytes, lost_bytes);
            self.losses.are_beyond_noise(self.packet_bytes)
        }
    }

    fn is_told(&self, round: &Round, elapsed: Duration, rate: u64) -> bool {
        let is_open = matches!(self.phase, Phase::Steady | Phase::Filling { .. });
        let has_long_queue = self.queue_delay > 2 * self.allowance_at(rate).max(ALLOWANCE);
        is_open && has_long_queue && !round.is_app_limited && round.is_steady(elapsed)
    }
}

/// Whether the whole window was in flight, so that a sender's pause does not count. If there is a
/// queue, half of the window is already more than the path holds.
fn is_full(round: &Round, rate: u64, has_queue: bool) -> bool {
    let in_flight_min = bytes_in(rate, round.rtt_min);
    let in_flight = bytes_in(rate, round.rtt_sum / round.packet_count.max(1));
    !round.is_cruising && in_flight_min >= round.window_bytes / 8 * 7
        || has_queue && in_flight >= round.window_bytes / 2
}
