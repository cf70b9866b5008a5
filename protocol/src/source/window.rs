//! The window of blocks and chunks that are not acknowledged yet, with the transcript hash after
//! each chunk.
//!
//! The codec splits and joins orders, and numbers the resulting chunks. So an order only promises
//! blocks, and a chunk exists once it was packed.

use std::collections::VecDeque;

use crate::fault::{Code, Fault};
use crate::image::CHAIN_START;
use crate::message::{ChunkHeader, Received, SpaceInfo, chain_after};
use crate::space::{BlockRun, BlockSet, SpaceId, block_count_of};

use super::serving::empty_sets;

#[derive(Debug)]
struct InFlight {
    space: SpaceId,
    runs: Vec<BlockRun>,
    bytes: Settled,
    position: Received,
}

/// Bytes of chunks that an acknowledgement settles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Settled {
    /// Raw bytes of blocks.
    pub(super) raw_bytes: u64,
    /// Bytes of the frames that carried them.
    pub(super) wire_bytes: u64,
}

#[derive(Debug)]
pub(super) struct Window {
    block_bytes: Vec<u64>,
    ordered: Vec<BlockSet>,
    chunks: VecDeque<InFlight>,
    /// Raw bytes ordered that are not in a chunk yet.
    unpacked_bytes: u64,
    /// Bytes that an acknowledgement of all chunks would settle.
    under_way: Settled,
    block_count: u64,
    acked: Received,
    packed: Received,
}

impl Window {
    pub(super) fn new(spaces: &[SpaceInfo]) -> Self {
        let start = Received {
            through_sequence: 0,
            chain: CHAIN_START,
        };
        Self {
            block_bytes: spaces
                .iter()
                .map(|space| u64::from(space.block_bytes))
                .collect(),
            ordered: empty_sets(spaces),
            chunks: VecDeque::new(),
            unpacked_bytes: 0,
            under_way: Settled::default(),
            block_count: 0,
            acked: start,
            packed: start,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.is_packed()
    }

    /// Whether every ordered block has become part of a chunk.
    pub(super) fn is_packed(&self) -> bool {
        self.ordered.iter().all(BlockSet::is_empty)
    }

    /// Raw bytes ordered and not acknowledged yet.
    pub(super) const fn raw_bytes(&self) -> u64 {
        self.unpacked_bytes + self.under_way.raw_bytes
    }

    /// Raw bytes ordered that are not in a chunk yet.
    pub(super) const fn unpacked_bytes(&self) -> u64 {
        self.unpacked_bytes
    }

    /// Bytes of frames packed and not acknowledged yet.
    pub(super) const fn wire_bytes(&self) -> u64 {
        self.under_way.wire_bytes
    }

    /// Blocks ordered and not acknowledged yet.
    pub(super) const fn block_count(&self) -> u64 {
        self.block_count
    }

    /// The last packed chunk, and the transcript hash after it.
    pub(super) const fn packed(&self) -> &Received {
        &self.packed
    }

    /// The last acknowledged chunk, and the transcript hash after it.
    pub(super) const fn acked(&self) -> &Received {
        &self.acked
    }

    /// Takes an order.
    pub(super) fn push(&mut self, space: SpaceId, runs: &[BlockRun]) {
        let position = usize::from(space.0);
        let block_count = block_count_of(runs);
        self.unpacked_bytes += block_count * self.block_bytes[position];
        self.block_count += block_count;
        runs.iter()
            .for_each(|run| self.ordered[position].insert_run(*run));
    }

    /// Takes a packed chunk, with the bytes of its frame, and extends the transcript.
    pub(super) fn packed_chunk(
        &mut self,
        header: &ChunkHeader,
        wire_bytes: u64,
    ) -> Result<Settled, Fault> {
        let position = usize::from(header.space.0);
        let expected = self.packed.through_sequence + 1;
        let is_ordered = header.sequence == expected
            && self.ordered.get(position).is_some_and(|set| {
                header
                    .runs
                    .iter()
                    .all(|run| set.count_in(*run) == u64::from(run.count))
            });
        if !is_ordered {
            let sequence = header.sequence;
            let detail = format!("chunk {sequence} was packed out of turn, not {expected}");
            return Err(Fault::new(Code::State, detail));
        }
        for run in &header.runs {
            self.ordered[position].remove_run(*run);
        }
        self.packed = Received {
            through_sequence: header.sequence,
            chain: chain_after(&self.packed.chain, header),
        };
        let bytes = Settled {
            raw_bytes: block_count_of(&header.runs) * self.block_bytes[position],
            wire_bytes,
        };
        self.unpacked_bytes -= bytes.raw_bytes;
        self.under_way.raw_bytes += bytes.raw_bytes;
        self.under_way.wire_bytes += bytes.wire_bytes;
        self.chunks.push_back(InFlight {
            space: header.space,
            runs: header.runs.clone(),
            bytes,
            position: self.packed,
        });
        Ok(bytes)
    }

    /// Drops ordered blocks that will be in no chunk. Returns their raw bytes.
    pub(super) fn drop_ordered(&mut self, space: SpaceId, runs: &[BlockRun]) -> u64 {
        let position = usize::from(space.0);
        let set = &mut self.ordered[position];
        let block_count: u64 = runs.iter().map(|run| set.count_in(*run)).sum();
        runs.iter().for_each(|run| set.remove_run(*run));
        let bytes = block_count * self.block_bytes[position];
        self.unpacked_bytes -= bytes;
        self.block_count -= block_count;
        bytes
    }

    /// The blocks of each unacknowledged chunk up to a number.
    pub(super) fn up_to(&self, number: u64) -> impl Iterator<Item = (SpaceId, &[BlockRun])> {
        let chunks = self.chunks.iter();
        let chunks = chunks.take_while(move |chunk| chunk.position.through_sequence <= number);
        chunks.map(|chunk| (chunk.space, &*chunk.runs))
    }

    /// Takes an acknowledgement: the target has installed everything up to a number.
    pub(super) fn acknowledge(&mut self, received: &Received) -> Result<Settled, Fault> {
        let number = received.through_sequence;
        if number < self.acked.through_sequence {
            let old = self.acked.through_sequence;
            let detail = format!("the target acknowledged chunk {old} and now only {number}");
            return Err(Fault::new(Code::Conflict, detail));
        }
        if number > self.packed.through_sequence {
            let sent = self.packed.through_sequence;
            let detail = format!("the target acknowledged chunk {number} of {sent} sent");
            return Err(Fault::new(Code::Unexpected, detail));
        }
        let mut settled = Settled::default();
        while let Some(chunk) = self.chunks.front()
            && chunk.position.through_sequence <= number
        {
            settled.raw_bytes += chunk.bytes.raw_bytes;
            settled.wire_bytes += chunk.bytes.wire_bytes;
            self.block_count -= block_count_of(&chunk.runs);
            self.acked = chunk.position;
            self.chunks.pop_front();
        }
        self.under_way.raw_bytes -= settled.raw_bytes;
        self.under_way.wire_bytes -= settled.wire_bytes;
        if self.acked != *received {
            let detail = format!("the two sides disagree about the chunks up to {number}");
            return Err(Fault::new(Code::Conflict, detail));
        }
        Ok(settled)
    }

    /// Takes back every block that was not acknowledged. They are ordered anew, in chunks numbered
    /// from the target's position.
    pub(super) fn take_back(&mut self) -> Vec<BlockSet> {
        self.unpacked_bytes = 0;
        self.under_way = Settled::default();
        self.block_count = 0;
        self.packed = self.acked;
        let mut sets: Vec<BlockSet> = self
            .ordered
            .iter_mut()
            .map(|set| {
                let count = set.block_count();
                std::mem::replace(set, BlockSet::empty(count))
            })
            .collect();
        for chunk in self.chunks.drain(..) {
            let set = &mut sets[usize::from(chunk.space.0)];
            chunk.runs.iter().for_each(|run| set.insert_run(*run));
        }
        sets
    }

    /// Starts over from the target's position in the stream of chunks.
    pub(super) fn restart_from(&mut self, received: &Received) {
        self.take_back();
        self.acked = *received;
        self.packed = *received;
    }
}
