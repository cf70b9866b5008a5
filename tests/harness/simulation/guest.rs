//! A simulated guest, in which each block holds the number of the last write to it.

use std::collections::BTreeSet;

use towpath_protocol::space::{BlockRun, BlockSet, SpaceId};

/// Content of a block: the number of the last write to it, or 0 if there never was one.
pub(super) type Content = u64;

/// What the guest's memory must hold, wherever it runs: the latest write to each block.
#[derive(Debug, Clone)]
pub(super) struct Truth {
    /// Block contents, space by space.
    pub(super) blocks: Vec<Vec<Content>>,
    /// Number of the last write.
    pub(super) clock: u64,
}

impl Truth {
    /// A guest that has just been booted.
    #[must_use]
    pub(super) fn new(block_counts: &[u64]) -> Self {
        let blocks = block_counts.iter().map(|count| vec![0; size(*count)]);
        Self {
            blocks: blocks.collect(),
            clock: 0,
        }
    }

    /// The guest is booted anew: its memory is lost.
    pub(super) fn reset(&mut self) {
        self.clock += 1;
        self.blocks.iter_mut().for_each(|space| space.fill(0));
    }
}

/// The state of a guest process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doing {
    /// Receiving an image; it has never run here.
    Nothing,
    /// Running.
    Running,
    /// Stopped where it ran.
    Frozen,
}

/// One guest process. It outlives its host's daemon, but not a power loss of its host.
#[derive(Debug, Clone)]
pub(super) struct Guest {
    /// Distinguishes reports from this process from those of an earlier one.
    pub(super) number: u64,
    /// The attempt it was started for; `None` if it was booted.
    pub(super) attempt: Option<u128>,
    /// Its state.
    pub(super) doing: Doing,
    /// Its memory, space by space.
    pub(super) blocks: Vec<Vec<Content>>,
    /// Blocks that are present; absent ones read as zero, or fault if the process is armed.
    pub(super) present: Vec<BlockSet>,
    /// Whether touching an absent block is reported as a fault.
    pub(super) is_armed: bool,
    /// Whether writes are recorded as dirty.
    pub(super) is_tracking: bool,
    /// Writes since the last harvest.
    pub(super) dirty: Vec<BlockSet>,
    /// The saved state it was loaded with.
    pub(super) state: Vec<u8>,
    /// Blocks that its vCPUs wait for.
    pub(super) waiting: BTreeSet<(u16, u64)>,
}

impl Guest {
    /// An empty process.
    #[must_use]
    pub(super) fn new(number: u64, attempt: Option<u128>, block_counts: &[u64]) -> Self {
        let sets = || block_counts.iter().map(|count| BlockSet::empty(*count));
        Self {
            number,
            attempt,
            doing: Doing::Nothing,
            blocks: block_counts
                .iter()
                .map(|count| vec![0; size(*count)])
                .collect(),
            present: sets().collect(),
            is_armed: false,
            is_tracking: false,
            dirty: sets().collect(),
            state: Vec::new(),
            waiting: BTreeSet::new(),
        }
    }

    /// Whether touching a block would stop a vCPU.
    #[must_use]
    pub(super) fn faults(&self, space: usize, block: u64) -> bool {
        self.is_armed && !self.present[space].contains(block)
    }

    /// The content of a block as the guest reads it.
    #[must_use]
    pub(super) fn read(&self, space: usize, block: u64) -> Content {
        if self.present[space].contains(block) {
            self.blocks[space][size(block)]
        } else {
            0
        }
    }

    /// The guest writes a block.
    pub(super) fn write(&mut self, space: usize, block: u64, content: Content) {
        self.put(space, block, content);
        if self.is_tracking {
            self.dirty[space].insert(block);
        }
    }

    /// Puts content into memory on behalf of the host.
    pub(super) fn put(&mut self, space: usize, block: u64, content: Content) {
        self.blocks[space][size(block)] = content;
        self.present[space].insert(block);
    }

    /// Removes blocks from memory.
    pub(super) fn take_out(&mut self, missing: &[BlockSet]) {
        for (present, missing) in self.present.iter_mut().zip(missing) {
            present.difference_with(missing);
        }
    }

    /// Reads and resets the dirty log.
    pub(super) fn harvest(&mut self) -> Vec<BlockSet> {
        let empty: Vec<BlockSet> = self
            .dirty
            .iter()
            .map(|set| BlockSet::empty(set.block_count()))
            .collect();
        std::mem::replace(&mut self.dirty, empty)
    }

    /// The contents of some blocks, in order.
    #[must_use]
    pub(super) fn contents(&self, space: SpaceId, runs: &[BlockRun]) -> Vec<Content> {
        let space = usize::from(space.0);
        let blocks = runs.iter().flat_map(|run| run.start..run.end());
        blocks.map(|block| self.read(space, block)).collect()
    }

    /// The first block that reads without a fault but holds the wrong content.
    #[must_use]
    pub(super) fn first_wrong(&self, truth: &Truth) -> Option<(usize, u64)> {
        for (space, blocks) in truth.blocks.iter().enumerate() {
            for (block, truth) in (0_u64..).zip(blocks) {
                if !self.faults(space, block) && self.read(space, block) != *truth {
                    return Some((space, block));
                }
            }
        }
        None
    }
}

/// A block count as `usize`.
#[must_use]
pub(super) fn size(count: u64) -> usize {
    usize::try_from(count).expect("simulated guests are small")
}
