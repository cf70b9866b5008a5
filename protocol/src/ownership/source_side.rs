//! The source's side of the ownership: giving a guest away.

use crate::fault::{Code, Fault};
use crate::identity::{AttemptId, Epoch, HostIdentity};

use super::{
    Action, Decider, Delivery, EPOCH_FOLLOW_MAX, EPOCH_MAX, Ownership, Progress, Root, State, Word,
};

impl Ownership {
    /// Opens an attempt. Its epoch is durable before any peer hears of it, so no later attempt can
    /// have the same one, whatever crashes.
    pub(super) fn offer(&mut self, attempt: AttemptId, target: HostIdentity) -> Result<(), Fault> {
        let State::Owned {
            epoch,
            missing_from,
        } = &self.record.state
        else {
            return Err(self.unfit("it cannot be offered"));
        };
        if let Some(origin) = missing_from {
            let detail = format!(
                "blocks of it are still missing, they are at {}",
                origin.source
            );
            return Err(Fault::new(Code::State, detail));
        }
        if target == self.host {
            return Err(Fault::new(Code::Usage, "the guest is already here"));
        }
        let epoch = *epoch;
        let offered = self.record.high_water.next();
        if offered > EPOCH_MAX {
            return Err(Fault::new(
                Code::State,
                format!("epoch {offered} is above the limit"),
            ));
        }
        self.record.high_water = offered;
        let state = State::Offering {
            epoch,
            attempt,
            target: target.clone(),
        };
        self.persist(state, Progress::None);
        self.say(target, attempt, Word::Prepare { epoch: offered });
        Ok(())
    }

    pub(super) fn seal(&mut self, root: Root, is_whole: bool) -> Result<(), Fault> {
        if !matches!(self.record.state, State::Offering { .. }) {
            return Err(self.unfit("it cannot be sealed"));
        }
        self.progress = Progress::Sealed { root, is_whole };
        Ok(())
    }

    pub(super) fn unseal(&mut self) -> Result<(), Fault> {
        if !matches!(self.record.state, State::Offering { .. }) {
            return Err(self.unfit("it cannot be unsealed"));
        }
        self.progress = Progress::None;
        Ok(())
    }

    pub(super) fn withdraw(&mut self) -> Result<(), Fault> {
        match self.record.state {
            State::Offering { .. } => {
                self.return_to_owned(true);
                Ok(())
            }
            State::Relinquished { .. } | State::Offered { .. } => {
                Err(self.unfit("only the target can refuse it now"))
            }
            _ => Err(self.unfit("no attempt to withdraw")),
        }
    }

    /// Raises the mark to the highest epoch that a target has seen. An owner may do so at any time,
    /// as if it had made attempts that failed. There is a bound, because the target may lie.
    pub(super) fn outrun(&mut self, mark: Epoch) -> Result<(), Fault> {
        let state = self.record.state.clone();
        if !matches!(state, State::Owned { .. }) {
            return Err(self.unfit("its mark stays"));
        }
        let high_water = self.record.high_water;
        if mark >= EPOCH_MAX || mark.0.saturating_sub(high_water.0) > EPOCH_FOLLOW_MAX {
            let detail = format!("epoch {mark} is too far above {high_water} to be outrun");
            return Err(Fault::new(Code::Meta, detail));
        }
        if mark > high_water {
            self.record.high_water = mark;
            self.persist(state, Progress::None);
        }
        Ok(())
    }

    /// Handles a message that only the target of the open or last attempt may send (H05).
    pub(super) fn heard_from_target(
        &mut self,
        from: &HostIdentity,
        attempt: AttemptId,
        word: &Word,
    ) -> Result<(), Fault> {
        let (State::Offering {
            attempt: ours,
            target,
            ..
        }
        | State::Relinquished {
            attempt: ours,
            target,
            ..
        }
        | State::Offered {
            attempt: ours,
            target,
            ..
        }
        | State::Released {
            attempt: ours,
            target,
            ..
        }) = &self.record.state
        else {
            let detail = format!("{from} says {word:?} about {attempt}, which is not open here");
            return Err(Fault::new(Code::Unexpected, detail));
        };
        if attempt != *ours {
            let detail = format!("{from} says {word:?} about {attempt}, open is {ours}");
            return Err(Fault::new(Code::Unexpected, detail));
        }
        if from != target {
            let detail = format!("{from} says {word:?} about an attempt with {target}");
            return Err(Fault::new(Code::Denied, detail));
        }
        match self.record.state {
            State::Offering { .. } => self.heard_while_offering(word),
            State::Relinquished { root, delivery, .. } | State::Offered { root, delivery, .. } => {
                self.heard_while_relinquished(word, root, delivery)
            }
            _ => self.heard_while_released(word),
        }
    }

    fn heard_while_offering(&mut self, word: &Word) -> Result<(), Fault> {
        match word {
            Word::Ready { root } => match self.progress {
                Progress::Sealed {
                    root: ours,
                    is_whole,
                } if ours == *root => {
                    self.relinquish(ours, is_whole);
                    Ok(())
                }
                Progress::Sealed { root: ours, .. } => {
                    let detail = format!("the target has {root:?}, the guest is {ours:?}");
                    Err(Fault::new(Code::RootMismatch, detail))
                }
                // The answer to a seal that has been undone.
                _ => Ok(()),
            },
            Word::Nack => {
                self.return_to_owned(false);
                Ok(())
            }
            Word::Prepared => Ok(()),
            _ => {
                let detail = format!("{word:?} before the commit");
                Err(Fault::new(Code::Unexpected, detail))
            }
        }
    }

    fn heard_while_relinquished(
        &mut self,
        word: &Word,
        root: Root,
        delivery: Delivery,
    ) -> Result<(), Fault> {
        match (word, delivery) {
            (Word::Ack, Delivery::Partial) => {
                self.acknowledge();
                Ok(())
            }
            (Word::Ack, Delivery::Acknowledged) => Ok(()),
            (Word::Ack, Delivery::Whole) | (Word::Complete, _) => {
                self.release();
                Ok(())
            }
            // A target that acknowledged the guest and then refuses it lied in one of the two, or
            // has lost its record. The guest must not run twice because of that.
            (Word::Nack, Delivery::Acknowledged) => {
                let detail = "the target refuses what it has acknowledged".to_owned();
                Err(Fault::new(Code::Conflict, detail))
            }
            // A commit would start the guest anew from the image of the switch.
            (Word::Ready { .. }, Delivery::Acknowledged) => {
                let detail = "the target waits for a guest that it has acknowledged".to_owned();
                Err(Fault::new(Code::Conflict, detail))
            }
            (Word::Nack, _) => match self.record.decider {
                Decider::SourceJournal => {
                    self.return_to_owned(false);
                    Ok(())
                }
                Decider::Witness => self.reclaim(),
            },
            // The target found its image again after a restart and waits for the commit.
            (Word::Ready { root: theirs }, _) if *theirs == root => {
                self.repeat();
                Ok(())
            }
            (Word::Ready { root: theirs }, _) => {
                let detail = format!("the target has {theirs:?}, the guest is {root:?}");
                Err(Fault::new(Code::RootMismatch, detail))
            }
            _ => Ok(()),
        }
    }

    fn heard_while_released(&mut self, word: &Word) -> Result<(), Fault> {
        match word {
            // The target has not heard that the guest was released.
            Word::Ack | Word::Complete => {
                self.repeat();
                Ok(())
            }
            Word::Nack => {
                let detail = "the target refuses what it has acknowledged".to_owned();
                Err(Fault::new(Code::Conflict, detail))
            }
            _ => Ok(()),
        }
    }

    /// The commit point. Durable before the target hears of it.
    fn relinquish(&mut self, root: Root, is_whole: bool) {
        let State::Offering {
            epoch: owned,
            attempt,
            target,
        } = self.record.state.clone()
        else {
            unreachable!("the caller looked");
        };
        let epoch = self.record.high_water;
        let delivery = if is_whole {
            Delivery::Whole
        } else {
            Delivery::Partial
        };
        let state = match self.record.decider {
            Decider::SourceJournal => State::Relinquished {
                owned,
                epoch,
                attempt,
                target,
                root,
                delivery,
            },
            Decider::Witness => State::Offered {
                owned,
                epoch,
                attempt,
                target,
                root,
                delivery,
            },
        };
        self.persist(state, Progress::None);
        self.repeat();
    }

    /// Records that the guest runs at its target, which still needs blocks of it. Nobody waits for
    /// this write: the guest runs already.
    fn acknowledge(&mut self) {
        let mut state = self.record.state.clone();
        let (State::Relinquished { delivery, .. } | State::Offered { delivery, .. }) = &mut state
        else {
            unreachable!("the caller looked");
        };
        *delivery = Delivery::Acknowledged;
        self.persist(state, Progress::None);
    }

    fn release(&mut self) {
        let (State::Relinquished {
            epoch,
            attempt,
            target,
            ..
        }
        | State::Offered {
            epoch,
            attempt,
            target,
            ..
        }) = self.record.state.clone()
        else {
            unreachable!("the caller looked");
        };
        let state = State::Released {
            epoch,
            attempt,
            target: target.clone(),
        };
        self.persist(state, Progress::None);
        self.say(target, attempt, Word::Released);
        self.act(Action::FreeImage);
    }

    /// Ends an attempt without a handover. The mark stays: the next attempt gets an epoch above it,
    /// so all messages of this one are stale.
    pub(super) fn return_to_owned(&mut self, says_abort: bool) {
        let (State::Offering {
            epoch,
            attempt,
            target,
        }
        | State::Relinquished {
            owned: epoch,
            attempt,
            target,
            ..
        }
        // Won back at the witness, under the epoch that the register shows now.
        | State::Offered {
            epoch,
            attempt,
            target,
            ..
        }) = self.record.state.clone()
        else {
            unreachable!("only an open attempt ends");
        };
        let state = State::Owned {
            epoch,
            missing_from: None,
        };
        self.persist(state, Progress::None);
        if says_abort {
            self.say(target, attempt, Word::Abort);
        }
        self.act(Action::Thaw);
    }
}
