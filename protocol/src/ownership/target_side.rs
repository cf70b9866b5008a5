//! The target's side of the ownership: taking a guest.

use crate::fault::{Code, Fault};
use crate::identity::Epoch;

use super::{
    Action, Decider, EPOCH_FIRST_MAX, EPOCH_MAX, EPOCH_STEP_MAX, Origin, Ownership, Progress, Root,
    State, Word,
};

impl Ownership {
    pub(super) fn heard_prepare(&mut self, origin: Origin, epoch: Epoch) -> Result<(), Fault> {
        let Origin { attempt, source } = &origin;
        if self.lives_here() {
            let detail = format!("{source} offers a guest that lives here");
            return Err(Fault::new(Code::GuestExists, detail));
        }
        if let State::Prepared {
            epoch: ours,
            attempt: open,
            source: from,
        } = &self.record.state
        {
            if from != source {
                let detail = format!("{source} offers a guest that {from} is sending");
                return Err(Fault::new(Code::DoubleOffer, detail));
            }
            if open == attempt && *ours == epoch {
                self.say(origin.source, origin.attempt, Word::Prepared);
                return Ok(());
            }
        }
        if let Some(verdict) = self.record.verdict(*attempt) {
            if verdict.origin != origin {
                return Err(denied(&origin, &verdict.origin));
            }
            if !verdict.is_taken {
                self.answer(origin, false);
                return Ok(());
            }
        }
        self.check_epoch(epoch)?;
        if self.prepared_origin().as_ref() == Some(&origin) {
            let detail = format!("{source} uses {attempt} for a second epoch, {epoch}");
            return Err(Fault::new(Code::Conflict, detail));
        }
        self.prepare(origin, epoch);
        Ok(())
    }

    /// Opens the target's half of an attempt. An older one of the same source is refused.
    fn prepare(&mut self, origin: Origin, epoch: Epoch) {
        self.record.high_water = epoch;
        let is_replacing = self.refuse_prepared();
        let Origin { attempt, source } = origin;
        let state = State::Prepared {
            epoch,
            attempt,
            source: source.clone(),
        };
        self.persist(state, Progress::Receiving);
        if is_replacing {
            self.act(Action::DiscardImage);
        }
        self.say(source, attempt, Word::Prepared);
    }

    /// Handles `Commit`, or in mode B `Offer`, which also names the epoch that the register shows
    /// for the source.
    pub(super) fn heard_commit(
        &mut self,
        origin: Origin,
        epoch: Epoch,
        root: Root,
        owned: Option<Epoch>,
    ) -> Result<(), Fault> {
        if let Some(verdict) = self.record.verdict(origin.attempt) {
            if verdict.origin != origin {
                return Err(denied(&origin, &verdict.origin));
            }
            let is_taken = verdict.is_taken;
            self.answer(origin, is_taken);
            return Ok(());
        }
        match &self.record.state {
            State::Prepared {
                epoch: ours,
                attempt,
                source,
            } => {
                let open = Origin {
                    attempt: *attempt,
                    source: source.clone(),
                };
                if open == origin && *ours == epoch {
                    return self.commit(origin, epoch, root, owned);
                }
                if open.source != origin.source {
                    return Err(denied(&origin, &open));
                }
            }
            State::Refused {
                attempt, source, ..
            } if *attempt == origin.attempt => {
                if *source != origin.source {
                    let known = Origin {
                        attempt: *attempt,
                        source: source.clone(),
                    };
                    return Err(denied(&origin, &known));
                }
                self.answer(origin, false);
                return Ok(());
            }
            _ if self.lives_here() => {
                self.check_epoch(epoch)?;
                // Two hosts own the guest, or one of them lies. A refusal would not resolve that,
                // and it could not be remembered once the guest has left here.
                let source = &origin.source;
                let detail = format!("{source} commits a guest that lives here, epoch {epoch}");
                return Err(Fault::new(Code::GuestExists, detail));
            }
            _ => {}
        }
        self.check_epoch(epoch)?;
        self.refuse(origin, epoch, true);
        Ok(())
    }

    /// Handles the commit of the open attempt: takes the guest if its image is complete.
    fn commit(
        &mut self,
        origin: Origin,
        epoch: Epoch,
        root: Root,
        owned: Option<Epoch>,
    ) -> Result<(), Fault> {
        match self.progress {
            Progress::ImageReady { root: ours, .. } | Progress::Taking { root: ours, .. }
                if ours != root =>
            {
                let detail = format!("committed is {root:?}, the image is {ours:?}");
                return Err(Fault::new(Code::RootMismatch, detail));
            }
            Progress::ImageReady { is_whole, .. } | Progress::Taking { is_whole, .. } => {
                match (self.record.decider, owned) {
                    (Decider::SourceJournal, None) => self.take(origin, epoch, is_whole),
                    (Decider::Witness, Some(owned)) => {
                        self.progress = Progress::Taking { root, is_whole };
                        self.swap_to_take(origin.source, owned, epoch);
                    }
                    // The hosts disagree on the decider: neither message is enough for the other's
                    // mode.
                    _ => self.refuse(origin, epoch, true),
                }
            }
            // The shell still looks for the image. The source repeats its message, and does so at
            // once when it receives `Ready`.
            Progress::ImageUnknown => {}
            _ => self.refuse(origin, epoch, true),
        }
        Ok(())
    }

    /// Takes the guest. The ownership is durable before the guest runs, and the guest runs before
    /// the answer is sent.
    pub(super) fn take(&mut self, origin: Origin, epoch: Epoch, is_whole: bool) {
        self.record.decide(origin.clone(), epoch, true);
        let state = State::Owned {
            epoch,
            missing_from: (!is_whole).then(|| origin.clone()),
        };
        self.persist(state, Progress::None);
        self.act(Action::Run { epoch });
        self.answer(origin, true);
    }

    /// Refuses an attempt for ever, durably before it says so. The mark rises with it, so that the
    /// attempt stays dead even when its verdict is forgotten.
    pub(super) fn refuse(&mut self, origin: Origin, epoch: Epoch, says_nack: bool) {
        self.record.high_water = self.record.high_water.max(epoch);
        let had_image = self.refuse_prepared();
        let Origin { attempt, source } = origin;
        let state = State::Refused {
            epoch,
            attempt,
            source: source.clone(),
        };
        self.persist(state, Progress::None);
        self.hand_back(attempt);
        if says_nack {
            self.say(source, attempt, Word::Nack);
        }
        if had_image {
            self.act(Action::DiscardImage);
        }
    }

    /// Records a refusal of the open attempt, if there is one. Returns whether there was one.
    fn refuse_prepared(&mut self) -> bool {
        let State::Prepared {
            epoch,
            attempt,
            source,
        } = self.record.state.clone()
        else {
            return false;
        };
        self.record.decide(Origin { attempt, source }, epoch, false);
        true
    }

    /// Sends the answer for a verdict, for the first time or again.
    fn answer(&mut self, origin: Origin, is_taken: bool) {
        let is_missing = matches!(
            &self.record.state,
            State::Owned { missing_from: Some(from), .. } if *from == origin
        );
        let Origin { attempt, source } = origin;
        if !is_taken {
            self.hand_back(attempt);
            return self.say(source, attempt, Word::Nack);
        }
        self.say(source.clone(), attempt, Word::Ack);
        if !is_missing {
            self.say(source, attempt, Word::Complete);
        }
    }

    pub(super) fn heard_abort(&mut self, origin: &Origin) -> Result<(), Fault> {
        let open = match self.prepared_origin() {
            Some(open) if open.attempt == origin.attempt => open,
            // The attempt is over, or its `Prepare` never arrived.
            _ => return Ok(()),
        };
        if open != *origin {
            return Err(denied(origin, &open));
        }
        self.end_prepared(false)
    }

    /// The source keeps no blocks of this attempt any more.
    pub(super) fn heard_released(&self, origin: &Origin) -> Result<(), Fault> {
        match &self.record.state {
            State::Owned {
                missing_from: Some(from),
                ..
            } if from == origin => {
                let source = &origin.source;
                let detail = format!("{source} let go of blocks that are missing here");
                Err(Fault::new(Code::ImageLost, detail))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn image_ready(&mut self, root: Root) -> Result<(), Fault> {
        let Some(Origin { attempt, source }) = self.prepared_origin() else {
            return Err(self.unfit("an image is ready"));
        };
        match self.progress {
            Progress::Taking { root: ours, .. } if ours == root => {}
            Progress::Taking { .. } => return Err(self.unfit("its image changed")),
            _ => {
                let is_whole = false;
                self.progress = Progress::ImageReady { root, is_whole };
            }
        }
        self.say(source, attempt, Word::Ready { root });
        Ok(())
    }

    pub(super) fn image_complete(&mut self) -> Result<(), Fault> {
        match (self.record.state.clone(), &mut self.progress) {
            (
                State::Prepared { .. },
                Progress::ImageReady { is_whole, .. } | Progress::Taking { is_whole, .. },
            ) => *is_whole = true,
            (
                State::Owned {
                    epoch,
                    missing_from: Some(Origin { attempt, source }),
                },
                _,
            ) => {
                let state = State::Owned {
                    epoch,
                    missing_from: None,
                };
                self.persist(state, Progress::None);
                self.say(source, attempt, Word::Complete);
            }
            (State::Owned { .. }, _) => {}
            _ => return Err(self.unfit("an image is complete")),
        }
        Ok(())
    }

    pub(super) fn give_up(&mut self) -> Result<(), Fault> {
        self.end_prepared(true)
    }

    fn end_prepared(&mut self, says_nack: bool) -> Result<(), Fault> {
        let State::Prepared {
            epoch,
            attempt,
            source,
        } = self.record.state.clone()
        else {
            return Err(self.unfit("no attempt to give up"));
        };
        self.refuse(Origin { attempt, source }, epoch, says_nack);
        Ok(())
    }

    pub(super) fn prepared_origin(&self) -> Option<Origin> {
        match &self.record.state {
            State::Prepared {
                attempt, source, ..
            } => Some(Origin {
                attempt: *attempt,
                source: source.clone(),
            }),
            _ => None,
        }
    }

    /// Only an epoch above the mark can be new (H02).
    fn check_epoch(&self, epoch: Epoch) -> Result<(), Fault> {
        let high_water = self.record.high_water;
        if epoch <= high_water {
            let detail = format!("epoch {epoch} is not above {high_water}");
            return Err(Fault::new(Code::StaleEpoch, detail));
        }
        let epoch_max = match high_water {
            Epoch(0) => EPOCH_FIRST_MAX,
            Epoch(seen) => EPOCH_MAX.min(Epoch(seen.saturating_add(EPOCH_STEP_MAX))),
        };
        if epoch > epoch_max {
            let detail = format!("epoch {epoch} is too far above {high_water}");
            return Err(Fault::new(Code::Meta, detail));
        }
        Ok(())
    }
}

fn denied(said: &Origin, known: &Origin) -> Fault {
    let detail = format!(
        "{} speaks of {}, which is an attempt of {}",
        said.source, said.attempt, known.source
    );
    Fault::new(Code::Denied, detail)
}
