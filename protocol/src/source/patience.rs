//! How long a target is waited for that hangs, or talks and does not do what it owes.

use std::time::Duration;

use super::{Phase, Source};
use crate::message::{Lane, Message};
use crate::time::Instant;

/// Interval of pings on the control lane: one small message a second measures the round trip and
/// shows a peer that hangs.
pub const PING_INTERVAL: Duration = Duration::from_secs(1);

/// Without a word from the target for so long its lanes are dropped and opened again.
pub const SILENCE_MAX: Duration = Duration::from_secs(10);

/// Without what it owes, as an acknowledgement of chunks, for so long the lanes of a target are dropped and opened
/// again, although it talks. It acknowledges each few chunks as they come, so a line that is only slow, and ten times
/// slower than any that a guest is moved over, does not come near it.
pub const ARREARS_MAX: Duration = Duration::from_secs(120);

impl Source {
    /// Whether lanes are open of which nothing can be hoped for any more.
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

    /// Whether it is the target's turn, on lanes that are open.
    fn is_owed(&self) -> bool {
        let is_awaited = match &self.phase {
            Phase::Offering | Phase::Copying(_) => !self.resumed,
            Phase::Committed { .. } => true,
            // What it misses, or where all of that was ordered, that it is complete.
            Phase::Serving(push) => !push.is_ready() || push.is_ordered(),
            // It has a deadline of its own.
            Phase::Switching(_) | Phase::Over => return false,
        };
        self.link_up && (is_awaited || self.window.wire_bytes() > 0)
    }

    /// Asks for an answer, unless one is still to come: those of an outage would all come back behind it,
    /// each with a part of it as its round trip.
    pub(super) fn ping(&mut self, now: Instant) {
        self.ping_at = now + PING_INTERVAL;
        if self.awaited_pong.is_none() {
            let nonce = now.as_nanos();
            self.awaited_pong = Some(nonce);
            self.send(Lane::Control, Message::Ping(nonce));
        }
    }

    /// Takes in an answer to a ping: to the one that was asked and not to another, which the target has made up.
    pub(super) fn ping_came_back(&mut self, nonce: u64, now: Instant) {
        if self.awaited_pong.take_if(|asked| *asked == nonce).is_some() {
            self.meter.round_trip_sample(nonce, now);
            self.give_up_on_a_long_path(now);
        }
    }
}
