//! Chunks ordered and not yet acknowledged, with the transcript hash after each.

use std::collections::VecDeque;

use super::ChunkOrder;
use crate::fault::{Code, Fault};
use crate::image::CHAIN_START;
use crate::message::{ChunkHeader, Codec, Received, chain_after};
use crate::space::block_count_of;

#[derive(Debug)]
struct InFlight {
    order: ChunkOrder,
    raw_bytes: u64,
    chain: Option<[u8; 32]>,
}

#[derive(Debug)]
pub(super) struct Window {
    chunks: VecDeque<InFlight>,
    raw_bytes: u64,
    block_count: u64,
    acked: Received,
    encoded: Received,
    next_sequence: u64,
}

impl Default for Window {
    fn default() -> Self {
        let start = Received {
            through_sequence: 0,
            chain: CHAIN_START,
        };
        Self {
            chunks: VecDeque::new(),
            raw_bytes: 0,
            block_count: 0,
            acked: start,
            encoded: start,
            next_sequence: 1,
        }
    }
}

impl Window {
    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    pub(super) const fn raw_bytes(&self) -> u64 {
        self.raw_bytes
    }

    pub(super) const fn block_count(&self) -> u64 {
        self.block_count
    }

    /// Number of the last chunk ordered.
    pub(super) const fn last_sequence(&self) -> u64 {
        self.next_sequence - 1
    }

    /// The transcript hash once every ordered chunk was packed.
    pub(super) fn chain_when_encoded(&self) -> Option<[u8; 32]> {
        (self.encoded.through_sequence == self.last_sequence()).then_some(self.encoded.chain)
    }

    /// Takes an order in and gives it its number.
    pub(super) fn push(&mut self, mut order: ChunkOrder, raw_bytes: u64) -> ChunkOrder {
        order.sequence = self.next_sequence;
        self.next_sequence += 1;
        self.raw_bytes += raw_bytes;
        self.block_count += block_count_of(&order.runs);
        self.chunks.push_back(InFlight {
            order: order.clone(),
            raw_bytes,
            chain: None,
        });
        order
    }

    /// A chunk was packed: its digest extends the transcript.
    pub(super) fn encoded(&mut self, sequence: u64, digest: &[u8; 16]) -> Result<(), Fault> {
        let expected = self.encoded.through_sequence + 1;
        let position = self
            .chunks
            .iter()
            .position(|chunk| chunk.order.sequence == sequence);
        let Some(chunk) = position
            .filter(|_| sequence == expected)
            .map(|at| &mut self.chunks[at])
        else {
            let detail = format!("chunk {sequence} was packed out of turn, after {expected}");
            return Err(Fault::new(Code::State, detail));
        };
        let header = ChunkHeader {
            sequence,
            generation: chunk.order.generation,
            space: chunk.order.space,
            codec: Codec::Raw,
            runs: chunk.order.runs.clone(),
            digest: *digest,
        };
        let chain = chain_after(&self.encoded.chain, &header);
        chunk.chain = Some(chain);
        self.encoded = Received {
            through_sequence: sequence,
            chain,
        };
        Ok(())
    }

    /// The target installed everything up to a number; returns the raw bytes that settles.
    pub(super) fn acknowledge(&mut self, received: &Received) -> Result<u64, Fault> {
        if received.through_sequence < self.acked.through_sequence {
            let (old, new) = (self.acked.through_sequence, received.through_sequence);
            let detail = format!("the target acknowledged chunk {old} and now only {new}");
            return Err(Fault::new(Code::Conflict, detail));
        }
        if received.through_sequence > self.encoded.through_sequence {
            let (acked, sent) = (received.through_sequence, self.encoded.through_sequence);
            let detail = format!("the target acknowledged chunk {acked} of {sent} sent");
            return Err(Fault::new(Code::Unexpected, detail));
        }
        let mut chain = self.acked.chain;
        let mut settled = 0;
        while let Some(chunk) = self.chunks.front()
            && chunk.order.sequence <= received.through_sequence
        {
            settled += chunk.raw_bytes;
            self.block_count -= block_count_of(&chunk.order.runs);
            chain = chunk.chain.unwrap_or(chain);
            self.chunks.pop_front();
        }
        self.raw_bytes -= settled;
        if chain != received.chain {
            let detail = format!(
                "the two sides disagree about the chunks up to {}",
                received.through_sequence
            );
            return Err(Fault::new(Code::Conflict, detail));
        }
        self.acked = *received;
        Ok(settled)
    }

    /// Takes every unacknowledged chunk back: they are ordered again under new numbers.
    pub(super) fn take_back(&mut self) -> Vec<ChunkOrder> {
        self.raw_bytes = 0;
        self.block_count = 0;
        self.encoded = self.acked;
        self.next_sequence = self.acked.through_sequence + 1;
        self.chunks.drain(..).map(|chunk| chunk.order).collect()
    }

    /// Starts over from where the target says its stream of chunks stands.
    pub(super) fn restart_from(&mut self, received: &Received) {
        self.take_back();
        self.acked = *received;
        self.encoded = *received;
        self.next_sequence = received.through_sequence.saturating_add(1);
    }
}
