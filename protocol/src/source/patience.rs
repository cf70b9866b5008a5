//! How long the source waits for a target that hangs, or that talks without doing what it owes.

use std::time::Duration;

use super::{Phase, Source};
use crate::message::{Lane, Message};
use crate::time::Instant;

/// Interval of pings on the control lane. One small message per second measures the round trip and
/// detects a peer that hangs.
pub const PING_INTERVAL: Duration = Duration::from_secs(1);

/// If nothing arrives from the target for this long, its lanes are dropped and opened again.
pub const SILENCE_MAX: Duration = Duration::from_secs(10);

/// If the target delivers nothing of what it owes, such as an acknowledgement of chunks, for this
/// long, its lanes are dropped and opened again although it talks. It acknowledges every few chunks
/// as they come, so even a line ten times slower than any that a guest is moved over stays well
/// within this.
pub const ARREARS_MAX: Duration = Duration::from_secs(120);

impl Source {
    /// Whether open lanes have become useless: the target is silent, or has owed something for too
    /// long.
    pub(super) fn is_of_no_use(&self, now: Instant) -> bool {
        let is_silent = now.since(self.heard_at) >= SILENCE_MAX;
        let arrears = self.owes_since.map(|at| now.since(at));
        self.link_up && (is_silent || arrears.is_some_and(|span| span >= ARREARS_MAX))
    }

    /// Notes since when the target owes something.
    pub(super) fn note_arrears(&mut self, now: Instant) {
        if self.is_owed() {
            self.owes_since.get_or_insert(now);
        } else {
            self.owes_since = None;
        }
    }

    /// Whether the target owes something, on open lanes.
    fn is_owed(&self) -> bool {
        let is_awaited = match &self.phase {
            Phase::Offering | Phase::Copying(_) => !self.resumed,
            Phase::Committed { .. } => true,
            // It owes the list of missing blocks, or, once all of them were ordered, `Complete`.
            Phase::Serving(push) => !push.is_ready() || push.is_ordered(),
            // The switch has a deadline of its own.
            Phase::Switching(_) | Phase::Over => return false,
        };
        self.link_up && (is_awaited || self.window.wire_bytes() > 0)
    }

    /// Sends a ping, unless an answer is still awaited. Otherwise all pings sent during an outage
    /// would be answered after it, each with a part of the outage as its round trip.
    pub(super) fn ping(&mut self, now: Instant) {
        self.ping_at = now + PING_INTERVAL;
        if self.awaited_pong.is_none() {
            let nonce = now.as_nanos();
            self.awaited_pong = Some(nonce);
            self.send(Lane::Control, Message::Ping(nonce));
        }
    }

    /// Takes an answer to a ping. Only the awaited number counts; a target may have made up any
    /// other.
    pub(super) fn ping_came_back(&mut self, nonce: u64, now: Instant) {
        if self.awaited_pong.take_if(|asked| *asked == nonce).is_some() {
            self.meter.round_trip_sample(nonce, now);
            self.give_up_on_a_long_path(now);
        }
    }
}
