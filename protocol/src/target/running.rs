//! After the switch: page faults, demanded and pushed blocks, until nothing is missing.

use super::{Action, Phase, Piece, Target};
use crate::fault::Fault;
use crate::image::missing_parts;
use crate::message::{ChunkHeader, Lane, Message};
use crate::ownership;
use crate::space::{BlockRun, BlockSet, SpaceId};

impl Target {
    /// Installs the blocks of a chunk that are still missing and drops the others.
    pub(super) fn install(&mut self, header: &ChunkHeader, token: u64) {
        let space = usize::from(header.space.0);
        let block_bytes = u64::from(self.geometries[space].block_bytes());
        let missing = &mut self.missing[space];
        let mut pieces = Vec::new();
        let mut offset_bytes = 0;
        for run in &header.runs {
            let mut from = run.start;
            while let Some(wanted) = missing.run_from(from, run.count)
                && wanted.start < run.end()
            {
                let end = wanted.end().min(run.end());
                let count = u32::try_from(end - wanted.start).expect("within the run");
                let piece = BlockRun {
                    start: wanted.start,
                    count,
                };
                let skipped = (piece.start - run.start) * block_bytes;
                pieces.push(Piece {
                    run: piece,
                    offset_bytes: offset_bytes + skipped,
                });
                missing.remove_run(piece);
                self.demanded[space].remove_run(piece);
                from = end;
            }
            offset_bytes += u64::from(run.count) * block_bytes;
        }
        if pieces.is_empty() {
            self.progress.repeated_chunk_count += 1;
            self.actions.push_back(Action::Forget { token });
            return;
        }
        self.progress.chunk_count += 1;
        let space = header.space;
        self.act_on_chunk(header, token, |token| Action::Install {
            token,
            space,
            pieces,
        });
    }

    /// Takes a page fault: a vCPU touched a block that is not in memory.
    pub(super) fn fault(&mut self, space: SpaceId, block: u64) -> Result<(), Fault> {
        let run = BlockRun {
            start: block,
            count: 1,
        };
        self.geometry(space)?.check(run)?;
        let position = usize::from(space.0);
        let is_missing = match self.phase {
            Phase::Running => self.missing[position].contains(block),
            _ => self
                .paused
                .missing
                .get(position)
                .is_some_and(|set| set.contains(block)),
        };
        if !is_missing {
            // Received as zero and never written, so it holds zeros.
            let pieces = vec![Piece {
                run,
                offset_bytes: 0,
            }];
            self.actions.push_back(Action::Install {
                token: None,
                space,
                pieces,
            });
            return Ok(());
        }
        if self.demanded[position].insert(block) {
            self.progress.demand_count += 1;
            self.send(Lane::Demand, Message::Demand(space, block));
        }
        Ok(())
    }

    /// Repeats the demands for blocks that vCPUs wait for, when the lanes are back.
    pub(super) fn ask_again(&mut self) {
        let waiting: Vec<Message> = self
            .demanded
            .iter()
            .zip(0_u16..)
            .flat_map(|(set, space)| set.iter().map(move |block| (SpaceId(space), block)))
            .map(|(space, block)| Message::Demand(space, block))
            .collect();
        waiting
            .into_iter()
            .for_each(|demand| self.send(Lane::Demand, demand));
    }

    /// Reports the missing blocks after every `Ack`, so that the source pushes only those.
    pub(super) fn tell_what_is_missing(&mut self) {
        let parts: Vec<Message> = self
            .missing
            .iter()
            .zip(0_u16..)
            .flat_map(|(set, space)| missing_parts(SpaceId(space), set))
            .map(Message::MissingPart)
            .collect();
        parts
            .into_iter()
            .for_each(|part| self.send(Lane::Control, part));
        self.send(Lane::Control, Message::MissingEnd(self.position));
    }

    pub(super) fn complete_if_nothing_is_missing(&mut self) -> Result<(), Fault> {
        let is_complete = matches!(self.phase, Phase::Running)
            && !self.is_completed
            && self.missing.iter().all(BlockSet::is_empty);
        if !is_complete {
            return Ok(());
        }
        self.is_completed = true;
        self.actions.push_back(Action::DisarmMissing);
        self.own(ownership::Event::ImageComplete)?;
        self.finish(super::Outcome::Arrived);
        Ok(())
    }
}
