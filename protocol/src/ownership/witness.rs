//! Mode B: a register at a witness, changed by compare-and-swap, is the commit point.
//!
//! The register shows the source at epoch `e`. The target swaps itself in at `e'` before it owns
//! the guest. If the target stays silent, the source swaps itself in at `e'` before it resumes the
//! guest. One of the two swaps fails. A target that won and refuses after all, because its image is
//! lost, never ran the guest: it hands it back.

use crate::fault::{Code, Fault};
use crate::identity::{AttemptId, Epoch, HostIdentity};

use super::{Action, Decider, Holder, Ownership, Progress, State};

impl Ownership {
    /// Source: tries to win the guest back.
    pub(super) fn reclaim(&mut self) -> Result<(), Fault> {
        let State::Offered { owned, epoch, .. } = self.record.state else {
            return Err(self.unfit("it cannot be reclaimed"));
        };
        self.act(Action::Swap {
            expected: self.holder(owned),
            new: self.holder(epoch),
        });
        Ok(())
    }

    /// Target: tries to win the guest.
    pub(super) fn swap_to_take(&mut self, source: HostIdentity, owned: Epoch, epoch: Epoch) {
        let expected = Holder {
            host: source,
            epoch: owned,
        };
        let new = self.holder(epoch);
        self.act(Action::Swap { expected, new });
    }

    /// Target: gives a refused guest back at the witness, in case this host had won it. Done after
    /// the refusal is durable and again with every repetition of it, because a swap may have been
    /// under way for long.
    pub(super) fn hand_back(&mut self, attempt: AttemptId) {
        if self.record.decider != Decider::Witness {
            return;
        }
        let Some(verdict) = self.record.verdict(attempt) else {
            return;
        };
        assert!(!verdict.is_taken, "only what is refused is handed back");
        let epoch = verdict.epoch;
        let new = Holder {
            host: verdict.origin.source.clone(),
            epoch,
        };
        let expected = self.holder(epoch);
        self.act(Action::Swap { expected, new });
    }

    /// Either side: takes the content of the register.
    pub(super) fn read_register(&mut self, holder: &Holder) -> Result<(), Fault> {
        if self.record.decider != Decider::Witness {
            return Err(self.unfit("no witness decides"));
        }
        match self.record.state.clone() {
            State::Offered { owned, epoch, .. } => {
                if *holder == self.holder(epoch) {
                    self.return_to_owned(false);
                } else if holder.epoch < epoch && *holder != self.holder(owned) {
                    let detail = format!("the witness names {} at {}", holder.host, holder.epoch);
                    return Err(Fault::new(Code::Conflict, detail));
                }
                // Otherwise undecided, or the target's: it is served until it says so.
            }
            State::Prepared { epoch, .. } => self.read_while_prepared(holder, epoch),
            // A late answer: the question is settled.
            _ => {}
        }
        Ok(())
    }

    fn read_while_prepared(&mut self, holder: &Holder, epoch: Epoch) {
        let Progress::Taking { is_whole, .. } = self.progress else {
            return;
        };
        let Some(origin) = self.prepared_origin() else {
            return;
        };
        if *holder == self.holder(epoch) {
            self.take(origin, epoch, is_whole);
        } else if holder.epoch >= epoch {
            // The source won: this attempt can never be taken any more.
            self.refuse(origin, epoch, true);
        }
    }

    fn holder(&self, epoch: Epoch) -> Holder {
        Holder {
            host: self.host.clone(),
            epoch,
        }
    }
}
