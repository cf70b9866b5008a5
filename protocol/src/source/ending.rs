//! The end of an attempt: the guest stays, has moved, or is stuck because of its journal.

use crate::fault::{Blame, Code, Fault};
use crate::ownership::{self, Word};
use crate::time::Instant;

use super::{Action, BUSY_DELAY_MAX, FAULT_DELAY_MAX, Outcome, Phase, Source};

impl Source {
    pub(super) fn fail(&mut self, fault: Fault, now: Instant) {
        if matches!(self.phase, Phase::Over) {
            return;
        }
        let is_lost = matches!(fault.code, Code::Guest | Code::ImageLost);
        if !self.is_committed() {
            self.stay(fault, now);
        } else if is_lost && fault.blame() != Blame::Peer {
            // The guest is the target's or will be, and the commit is repeated for ever. A target
            // that has every block needs nothing else from here. It reports over fresh lanes what
            // it still misses.
            self.is_image_lost = true;
            if self.link_up {
                self.drop_link(now);
            } else {
                self.actions.push_back(Action::CancelChunks);
            }
        } else {
            // Neither a peer's error nor a temporary failure here changes who owns the guest: try
            // again on fresh lanes. Unlike after an outage, the waits grow.
            self.talk_anew(fault.code, now);
        }
    }

    /// Drops the lanes because of a fault, and opens new ones. The waits grow as long as nothing
    /// arrives at the target.
    pub(super) fn talk_anew(&mut self, code: Code, now: Instant) {
        let delay_max = match code {
            Code::Busy => BUSY_DELAY_MAX,
            _ => FAULT_DELAY_MAX,
        };
        let delay = self.fault_delay.min(delay_max);
        self.drop_link(now);
        self.reconnect_at = Some(now + delay);
        self.fault_delay = (delay * 2).min(delay_max);
    }

    /// Ends the attempt before its commit. The guest continues here.
    pub(super) fn stay(&mut self, fault: Fault, now: Instant) {
        self.fault = Some(fault.clone());
        if self.own(ownership::Event::Withdraw, now).is_err() {
            // Nothing was offered yet, so there is nothing to take back; the guest may run.
            self.actions.push_back(Action::Thaw);
        }
        if fault.code == Code::StaleEpoch
            && let Some(mark) = self.mark
        {
            // A mark that is too far away is not followed; the target then does not get the guest.
            drop(self.own(ownership::Event::Outrun { mark }, now));
        }
        // After the message that ends the attempt, because this closes the lanes.
        self.actions.push_back(Action::CancelChunks);
        self.finish(Outcome::Stayed(fault));
    }

    pub(super) fn finish(&mut self, outcome: Outcome) {
        self.phase = Phase::Over;
        if matches!(outcome, Outcome::Stayed(_)) {
            self.actions.push_back(Action::StopTracking);
        }
        self.actions.push_back(Action::Finished(outcome));
    }

    /// Ends the attempt because the ownership's record may not be on disk, so nothing may depend on
    /// it any more. Before the commit the guest may run under either record; after it only a
    /// restart shows which one is there.
    pub(super) fn not_recorded(&mut self, fault: Fault, now: Instant) -> Fault {
        self.actions.clear();
        self.fault = Some(fault.clone());
        if !self.was_committed {
            self.say(&Word::Abort, now);
            self.actions.push_back(Action::Thaw);
            self.actions.push_back(Action::StopTracking);
        }
        self.actions.push_back(Action::CancelChunks);
        self.finish(Outcome::Stuck(fault.clone()));
        fault
    }
}
