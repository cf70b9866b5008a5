//! Before the switch: admission, chunks in order, the paused stage, and its verification.

use super::{Action, Final, Incident, Outcome, Phase, Piece, REMEMBERED_CHUNK_COUNT, Target};
use crate::fault::{Code, Fault};
use crate::identity::Epoch;
use crate::image::{Image, Manifest};
use crate::message::{
    CHUNK_RAW_BYTES_MAX, ChunkHeader, Codec, FinalEnd, Lane, Message, MissingPart, Prepare,
    Received, STATE_BYTES_MAX, chain_after,
};
use crate::ownership::{self, Root, State, Word};
use crate::space::BlockSet;
use crate::time::Instant;

impl Target {
    /// Takes the source's offer, for the first time or because lanes are back.
    pub(super) fn offered(&mut self, prepare: Prepare) -> Result<(), Fault> {
        let epoch = prepare.epoch;
        match (&self.prepare, &self.phase) {
            (None, Phase::Admitting) => {
                self.take_layout(&prepare)?;
                self.prepare = Some(prepare.clone());
                self.hear(Word::Prepare { epoch })?;
                if !self.is_prepared() {
                    // The ownership machine repeated that this attempt is over.
                    let detail = "this attempt was refused before".to_owned();
                    self.finish(Outcome::Refused(Fault::new(Code::Refused, detail)));
                    return Ok(());
                }
                // `Prepared` promises that there is room for the guest, so it is sent once the
                // guest is built.
                self.actions.push_back(Action::BuildGuest(prepare));
                Ok(())
            }
            (Some(known), _) if *known != prepare => {
                let detail = "the guest was offered again with another layout".to_owned();
                Err(Fault::new(Code::Layout, detail))
            }
            (Some(_), Phase::Admitting) => Ok(()),
            (Some(_), Phase::Receiving | Phase::Ready) => {
                // The source thawed: what was ready is void, and the paused stage begins anew.
                self.phase = Phase::Receiving;
                self.paused = Final::default();
                self.hear(Word::Prepare { epoch })
            }
            _ => self.hear(Word::Prepare { epoch }),
        }
    }

    pub(super) fn guest_built(&mut self) -> Result<(), Fault> {
        if !matches!(self.phase, Phase::Admitting) || self.prepare.is_none() {
            return Err(Fault::new(
                Code::State,
                "a guest was built that nobody offered".to_owned(),
            ));
        }
        self.phase = Phase::Receiving;
        self.send(Lane::Control, Message::Prepared(self.position));
        Ok(())
    }

    /// Whether the ownership's record lets this attempt go on.
    fn is_prepared(&self) -> bool {
        matches!(
            &self.ownership.record().state,
            State::Prepared { attempt, .. } if *attempt == self.setup.attempt
        )
    }

    /// Takes the commit of the guest to this host. If the image is not complete, it is refused,
    /// durably.
    pub(super) fn committed(
        &mut self,
        epoch: Epoch,
        root: Root,
        now: Instant,
    ) -> Result<(), Fault> {
        self.commit_heard_at = now;
        if self.is_prepared() && !matches!(self.phase, Phase::Ready) {
            let detail = "the image was not whole when it was committed".to_owned();
            return Err(Fault::new(Code::ImageLost, detail));
        }
        self.hear(Word::Commit { epoch, root })
    }

    /// Takes a chunk whose bytes match its digest: decides whether it is wanted and where it goes.
    pub(super) fn chunk(
        &mut self,
        lane: Lane,
        header: &ChunkHeader,
        token: u64,
    ) -> Result<(), Fault> {
        self.check_ranges(header)?;
        match (&self.phase, lane) {
            (Phase::Running, Lane::Demand) if header.sequence == 0 => {
                self.install(header, token);
                Ok(())
            }
            (Phase::Running, Lane::Bulk) => {
                if self.is_next(header)? {
                    self.step_position(header);
                    self.install(header, token);
                } else {
                    self.actions.push_back(Action::Forget { token });
                }
                Ok(())
            }
            (Phase::Receiving | Phase::Ready, Lane::Bulk) => self.receive(header, token),
            _ => {
                let stage = self.stage().as_str();
                let detail = format!("a chunk on the {lane:?} lane while {stage}");
                Err(Fault::new(Code::Unexpected, detail))
            }
        }
    }

    fn check_ranges(&self, header: &ChunkHeader) -> Result<(), Fault> {
        let geometry = self.geometry(header.space)?;
        header
            .runs
            .iter()
            .try_for_each(|run| geometry.check(*run))?;
        let raw_bytes = header.raw_bytes(geometry.block_bytes());
        if header.codec != Codec::Zero && raw_bytes > u64::from(CHUNK_RAW_BYTES_MAX) {
            let detail = format!("a chunk of {raw_bytes} bytes, above {CHUNK_RAW_BYTES_MAX}");
            return Err(Fault::new(Code::Range, detail));
        }
        Ok(())
    }

    /// Whether this is the next chunk. A repeated one is not, and must be unchanged.
    fn is_next(&mut self, header: &ChunkHeader) -> Result<bool, Fault> {
        let last = self.position.through_sequence;
        if header.sequence == last.saturating_add(1) {
            return Ok(true);
        }
        let sequence = header.sequence;
        if sequence == 0 || sequence > last {
            let detail = format!("chunk {sequence} follows chunk {last}");
            return Err(Fault::new(Code::Unexpected, detail));
        }
        let of = |number: u64| {
            self.remembered
                .iter()
                .find(|(n, _)| *n == number)
                .map(|(_, c)| *c)
        };
        if let (Some(before), Some(after)) = (of(sequence - 1), of(sequence))
            && chain_after(&before, header) != after
        {
            let detail = format!("chunk {sequence} came again with different content");
            return Err(Fault::new(Code::Conflict, detail));
        }
        self.progress.repeated_chunk_count += 1;
        Ok(false)
    }

    fn step_position(&mut self, header: &ChunkHeader) {
        if self.remembered.is_empty() {
            let Received {
                through_sequence,
                chain,
            } = self.position;
            self.remembered.push_back((through_sequence, chain));
        }
        let chain = chain_after(&self.position.chain, header);
        self.position = Received {
            through_sequence: header.sequence,
            chain,
        };
        if self.remembered.len() == REMEMBERED_CHUNK_COUNT {
            self.remembered.pop_front();
        }
        self.remembered.push_back((header.sequence, chain));
        self.is_position_due = true;
    }

    fn receive(&mut self, header: &ChunkHeader, token: u64) -> Result<(), Fault> {
        if !self.is_next(header)? {
            self.actions.push_back(Action::Forget { token });
            return Ok(());
        }
        if matches!(self.phase, Phase::Ready) {
            // A chunk after the end of a paused stage means that the source thawed and continues to
            // copy.
            self.phase = Phase::Receiving;
            self.paused = Final::default();
        }
        self.step_position(header);
        if header.generation < self.generation {
            // A block of an older round never replaces one of a newer.
            self.progress.stale_chunk_count += 1;
            self.actions.push_back(Action::Forget { token });
            return Ok(());
        }
        self.generation = header.generation;
        let block_bytes = u64::from(self.geometry(header.space)?.block_bytes());
        let mut offset_bytes = 0;
        let mut pieces = Vec::with_capacity(header.runs.len());
        let present = &mut self.present[usize::from(header.space.0)];
        for run in &header.runs {
            present.insert_run(*run);
            pieces.push(Piece {
                run: *run,
                offset_bytes,
            });
            offset_bytes += u64::from(run.count) * block_bytes;
        }
        self.progress.chunk_count += 1;
        self.act_on_chunk(header, token, |token| Action::Write {
            token,
            space: header.space,
            pieces,
        });
        Ok(())
    }

    /// Orders an action on a chunk's bytes. Zeros need no bytes.
    pub(super) fn act_on_chunk(
        &mut self,
        header: &ChunkHeader,
        token: u64,
        action: impl FnOnce(Option<u64>) -> Action,
    ) {
        if header.codec == Codec::Zero {
            self.actions.push_back(action(None));
            self.actions.push_back(Action::Forget { token });
        } else {
            self.actions.push_back(action(Some(token)));
        }
    }

    pub(super) fn final_begins(&mut self) -> Result<(), Fault> {
        self.expect_receiving("the paused stage")?;
        self.phase = Phase::Receiving;
        let missing = self
            .geometries
            .iter()
            .map(|g| BlockSet::empty(g.block_count()))
            .collect();
        self.paused = Final {
            has_begun: true,
            missing,
            ..Final::default()
        };
        Ok(())
    }

    fn expect_receiving(&self, what: &str) -> Result<(), Fault> {
        if matches!(self.phase, Phase::Receiving | Phase::Ready) {
            return Ok(());
        }
        let stage = self.stage().as_str();
        Err(Fault::new(
            Code::Unexpected,
            format!("{what} while {stage}"),
        ))
    }

    fn expect_final(&self, what: &str) -> Result<(), Fault> {
        if self.paused.has_begun && self.paused.end.is_none() {
            return self.expect_receiving(what);
        }
        Err(Fault::new(
            Code::Unexpected,
            format!("{what} outside of the paused stage"),
        ))
    }

    pub(super) fn state_part(&mut self, part: &[u8]) -> Result<(), Fault> {
        self.expect_final("state")?;
        if self.paused.state.len() + part.len() > STATE_BYTES_MAX {
            let detail = format!("state above {STATE_BYTES_MAX} bytes");
            return Err(Fault::new(Code::TooLarge, detail));
        }
        self.paused.state.extend_from_slice(part);
        Ok(())
    }

    pub(super) fn missing_part(&mut self, part: &MissingPart) -> Result<(), Fault> {
        self.expect_final("a missing set")?;
        self.geometry(part.space)?;
        let set = &mut self.paused.missing[usize::from(part.space.0)];
        for (word, bits) in (part.first_word..).zip(&part.words) {
            set.insert_word(word, *bits)?;
        }
        Ok(())
    }

    pub(super) fn manifest(&mut self, manifest: Manifest) -> Result<(), Fault> {
        self.expect_final("a manifest")?;
        if self.paused.manifest.replace(manifest).is_some() {
            let detail = "a second manifest of one paused stage".to_owned();
            return Err(Fault::new(Code::Unexpected, detail));
        }
        Ok(())
    }

    pub(super) fn final_ends(&mut self, end: FinalEnd) -> Result<(), Fault> {
        self.expect_final("the end of the paused stage")?;
        self.paused.end = Some(end);
        self.verify_if_whole()
    }

    /// Once the last chunk of the paused stage is here, checks that every block is covered and that
    /// the roots agree. Only then the state is loaded.
    pub(super) fn verify_if_whole(&mut self) -> Result<(), Fault> {
        let (Phase::Receiving, Some(end), Some(prepare)) =
            (&self.phase, self.paused.end, &self.prepare)
        else {
            return Ok(());
        };
        let last = self.position.through_sequence;
        if last < end.through_sequence {
            return Ok(());
        }
        if last > end.through_sequence {
            // From a freeze that was undone before its messages arrived: the source has sent more
            // since.
            self.paused = Final::default();
            return Ok(());
        }
        let image = Image {
            guest: self.setup.guest,
            attempt: self.setup.attempt,
            epoch: prepare.epoch,
            spaces: &prepare.spaces,
            config: &prepare.config,
            position: self.position,
            missing: &self.paused.missing,
            state: &self.paused.state,
        };
        if let Some(what) = self.disagreement(&image, &end) {
            let incident = Incident::new(what, &image, self.paused.manifest, end);
            let fault = incident.fault.clone();
            self.incident = Some(Box::new(incident));
            return Err(fault);
        }
        self.phase = Phase::Ready;
        if end.missing_count > 0 {
            for (present, missing) in self.present.iter_mut().zip(&self.paused.missing) {
                present.difference_with(missing);
            }
            self.actions.push_back(Action::Expect {
                missing: self.paused.missing.clone(),
            });
            self.actions.push_back(Action::ArmMissing);
        }
        self.actions
            .push_back(Action::LoadState(self.paused.state.clone()));
        Ok(())
    }

    /// What the two sides disagree about, if anything.
    fn disagreement(&self, image: &Image<'_>, end: &FinalEnd) -> Option<String> {
        let missing_count: u64 = image.missing.iter().map(BlockSet::len).sum();
        if missing_count != end.missing_count || image.state.len() != end.state_bytes as usize {
            return Some(format!(
                "announced {} missing blocks and {} bytes of state, got {missing_count} and {}",
                end.missing_count,
                end.state_bytes,
                image.state.len()
            ));
        }
        for (present, missing) in self.present.iter().zip(image.missing) {
            let mut covered = present.clone();
            covered.union_with(missing);
            let uncovered = covered.block_count() - covered.len();
            if uncovered > 0 {
                return Some(format!(
                    "{uncovered} blocks were neither sent nor named as missing"
                ));
            }
        }
        let root = image.root();
        (root != end.root).then(|| format!("this image has {root:?}, the source's {:?}", end.root))
    }

    pub(super) fn state_loaded(&mut self) -> Result<(), Fault> {
        // If the source thawed meanwhile, the image is void and nothing is sent about it.
        let (Phase::Ready, Some(end)) = (&self.phase, self.paused.end) else {
            return Ok(());
        };
        self.own(ownership::Event::ImageReady { root: end.root })
    }

    pub(super) fn guest_runs(&mut self, at: Instant) -> Result<(), Fault> {
        if matches!(self.phase, Phase::Running) {
            return Ok(());
        }
        if !self.awaits_run || !matches!(self.ownership.record().state, State::Owned { .. }) {
            let detail = "the guest runs without being owned".to_owned();
            return Err(Fault::new(Code::State, detail));
        }
        self.missing = std::mem::take(&mut self.paused).missing;
        self.present = Vec::new();
        self.phase = Phase::Running;
        let delay = at.since(self.commit_heard_at).as_micros();
        self.run_delay_us = u64::try_from(delay).unwrap_or(u64::MAX);
        self.awaits_run = false;
        self.follow_the_law();
        self.complete_if_nothing_is_missing()
    }
}
