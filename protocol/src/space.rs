//! Geometry of a space, block runs, and block sets.
//!
//! Everything that moves is a space: a guest's memory in 4 KiB blocks, a volume in 64 KiB blocks. A
//! space has a fixed geometry, a dirty set at the source and a missing set at the target.

use std::fmt;

use fixedbitset::FixedBitSet;
use serde::{Deserialize, Serialize};

use crate::fault::{Code, Fault};

/// Bytes of a block of guest memory: the processor's page.
pub const MEMORY_BLOCK_BYTES: u32 = 4096;

/// The space that is the guest's memory.
pub const MEMORY: SpaceId = SpaceId(0);

/// Most spaces a guest may have: its memory and a handful of volumes.
pub const SPACE_COUNT_MAX: usize = 16;

/// Most blocks in one space: 64 TiB of memory. Far above any quota, and small enough that a block
/// number times its size never overflows 64 bits.
pub const BLOCK_COUNT_MAX: u64 = 1 << 34;

/// Number of a space within its guest; memory is 0.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct SpaceId(pub u16);

/// The size of a space, which never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Geometry {
    block_bytes: u32,
    block_count: u64,
}

impl Geometry {
    /// A geometry of `block_count` blocks of `block_bytes` each.
    ///
    /// # Errors
    ///
    /// `E_LAYOUT` unless blocks are a power of two from 4 KiB to 64 KiB and there are 1 to
    /// [`BLOCK_COUNT_MAX`] of them.
    pub fn new(block_bytes: u32, block_count: u64) -> Result<Self, Fault> {
        let size_is_plain = block_bytes.is_power_of_two() && (4096..=65536).contains(&block_bytes);
        if !size_is_plain || block_count == 0 || block_count > BLOCK_COUNT_MAX {
            return Err(Fault::new(
                Code::Layout,
                format!("{block_count} blocks of {block_bytes} bytes is no geometry of a space"),
            ));
        }
        Ok(Self {
            block_bytes,
            block_count,
        })
    }

    /// The geometry of guest memory of this many bytes.
    ///
    /// # Errors
    ///
    /// `E_LAYOUT` if `bytes` is not a positive multiple of the page.
    pub fn memory(bytes: u64) -> Result<Self, Fault> {
        if !bytes.is_multiple_of(u64::from(MEMORY_BLOCK_BYTES)) {
            let page = MEMORY_BLOCK_BYTES;
            return Err(Fault::new(
                Code::Layout,
                format!("memory of {bytes} bytes is not a multiple of {page}"),
            ));
        }
        Self::new(MEMORY_BLOCK_BYTES, bytes / u64::from(MEMORY_BLOCK_BYTES))
    }

    /// Bytes of one block.
    #[must_use]
    pub const fn block_bytes(self) -> u32 {
        self.block_bytes
    }

    /// Number of blocks.
    #[must_use]
    pub const fn block_count(self) -> u64 {
        self.block_count
    }

    /// Bytes of the whole space.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.block_bytes as u64 * self.block_count
    }

    /// Bytes that this many blocks take.
    #[must_use]
    pub const fn bytes_of(self, block_count: u64) -> u64 {
        self.block_bytes as u64 * block_count
    }

    /// Checks that a run is not empty and lies inside the space.
    ///
    /// # Errors
    ///
    /// `E_RANGE` if not.
    pub fn check(self, run: BlockRun) -> Result<(), Fault> {
        let end = run.start.checked_add(u64::from(run.count));
        if run.count == 0 || end.is_none_or(|end| end > self.block_count) {
            let count = self.block_count;
            return Err(Fault::new(
                Code::Range,
                format!("blocks {run} lie outside a space of {count} blocks"),
            ));
        }
        Ok(())
    }
}

/// Consecutive blocks of one space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BlockRun {
    /// First block.
    pub start: u64,
    /// Number of blocks, at least 1 once checked.
    pub count: u32,
}

impl BlockRun {
    /// The block after the last.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.start.saturating_add(self.count as u64)
    }
}

impl fmt::Display for BlockRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.start, self.count)
    }
}

/// Number of blocks in a list of runs.
#[must_use]
pub fn block_count_of(runs: &[BlockRun]) -> u64 {
    runs.iter().map(|run| u64::from(run.count)).sum()
}

/// A set of blocks of one space, with one bit per block.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct BlockSet {
    bits: FixedBitSet,
    block_count: u64,
    member_count: u64,
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "usize is 64 bits; BLOCK_COUNT_MAX fits"
)]
const fn index(block: u64) -> usize {
    block as usize
}

impl BlockSet {
    /// The empty set over a space of `block_count` blocks.
    #[must_use]
    pub fn empty(block_count: u64) -> Self {
        Self {
            bits: FixedBitSet::with_capacity(index(block_count)),
            block_count,
            member_count: 0,
        }
    }

    /// The set of all blocks of a space of `block_count` blocks.
    #[must_use]
    pub fn full(block_count: u64) -> Self {
        let mut set = Self::empty(block_count);
        set.bits.insert_range(..);
        set.member_count = block_count;
        set
    }

    /// Number of blocks in the space, members or not.
    #[must_use]
    pub const fn block_count(&self) -> u64 {
        self.block_count
    }

    /// Number of members.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.member_count
    }

    /// Whether there are no members.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.member_count == 0
    }

    /// Whether `block` is a member.
    #[must_use]
    pub fn contains(&self, block: u64) -> bool {
        block < self.block_count && self.bits.contains(index(block))
    }

    /// Adds a block of the space. Returns whether it was new.
    ///
    /// # Panics
    ///
    /// If the block lies outside the space, which the caller must have checked.
    pub fn insert(&mut self, block: u64) -> bool {
        assert!(
            block < self.block_count,
            "block {block} outside {}",
            self.block_count
        );
        let is_new = !self.bits.put(index(block));
        self.member_count += u64::from(is_new);
        is_new
    }

    /// Removes a block. Returns whether it was a member.
    pub fn remove(&mut self, block: u64) -> bool {
        let was_member = self.contains(block);
        if was_member {
            self.bits.remove(index(block));
            self.member_count -= 1;
        }
        was_member
    }

    /// Adds a checked run.
    pub fn insert_run(&mut self, run: BlockRun) {
        assert!(
            run.end() <= self.block_count,
            "run {run} outside {}",
            self.block_count
        );
        let range = index(run.start)..index(run.end());
        let present = self.bits.count_ones(range.clone());
        self.bits.insert_range(range);
        self.member_count += u64::from(run.count) - present as u64;
    }

    /// Removes a run.
    pub fn remove_run(&mut self, run: BlockRun) {
        let range = index(run.start)..index(run.end().min(self.block_count));
        let present = self.bits.count_ones(range.clone());
        self.bits.remove_range(range);
        self.member_count -= present as u64;
    }

    /// How many blocks of a run are members.
    #[must_use]
    pub fn count_in(&self, run: BlockRun) -> u64 {
        self.bits
            .count_ones(index(run.start)..index(run.end().min(self.block_count))) as u64
    }

    /// Adds every member of another set of the same space.
    pub fn union_with(&mut self, other: &Self) {
        assert_eq!(self.block_count, other.block_count, "sets of two spaces");
        self.bits.union_with(&other.bits);
        self.recount();
    }

    /// Removes every member of another set of the same space.
    pub fn difference_with(&mut self, other: &Self) {
        assert_eq!(self.block_count, other.block_count, "sets of two spaces");
        self.bits.difference_with(&other.bits);
        self.recount();
    }

    /// Keeps only the members of another set of the same space.
    pub fn intersect_with(&mut self, other: &Self) {
        assert_eq!(self.block_count, other.block_count, "sets of two spaces");
        self.bits.intersect_with(&other.bits);
        self.recount();
    }

    /// The blocks of the space that are not members.
    #[must_use]
    pub fn complement(&self) -> Self {
        let mut set = self.clone();
        set.bits.toggle_range(..);
        set.member_count = self.block_count - self.member_count;
        set
    }

    /// Empties the set.
    pub fn clear(&mut self) {
        self.bits.clear();
        self.member_count = 0;
    }

    /// The first member at or after `from`.
    #[must_use]
    pub fn next_from(&self, from: u64) -> Option<u64> {
        if from >= self.block_count {
            return None;
        }
        let mut word = from / 64;
        let mut bits = self.word(word) & (u64::MAX << (from % 64));
        while bits == 0 {
            word += 1;
            if word >= self.word_count() {
                return None;
            }
            bits = self.word(word);
        }
        Some(word * 64 + u64::from(bits.trailing_zeros()))
    }

    /// The run of members that begins with the first one at or after `from`, at most `count_max`
    /// long.
    #[must_use]
    pub fn run_from(&self, from: u64, count_max: u32) -> Option<BlockRun> {
        let start = self.next_from(from)?;
        let mut count = 1;
        while count < count_max && self.contains(start + u64::from(count)) {
            count += 1;
        }
        Some(BlockRun { start, count })
    }

    /// All members as runs in ascending order.
    pub fn runs(&self) -> impl Iterator<Item = BlockRun> + '_ {
        let mut from = 0;
        std::iter::from_fn(move || {
            let run = self.run_from(from, u32::MAX)?;
            from = run.end();
            Some(run)
        })
    }

    /// All members in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.bits.ones().map(|block| block as u64)
    }

    /// The 64 blocks from `64 * word` on as bits, the lowest block in the lowest bit.
    #[must_use]
    pub fn word(&self, word: u64) -> u64 {
        self.bits.as_slice().get(index(word)).copied().unwrap_or(0) as u64
    }

    /// Adds the members in a word of 64 bits that begins at block `64 * word`.
    ///
    /// # Errors
    ///
    /// `E_RANGE` if a set bit lies outside the space.
    pub fn insert_word(&mut self, word: u64, bits: u64) -> Result<(), Fault> {
        if bits == 0 {
            return Ok(());
        }
        let last = word
            .checked_mul(64)
            .and_then(|first| first.checked_add(u64::from(bits.ilog2())));
        if last.is_none_or(|last| last >= self.block_count) {
            let count = self.block_count;
            return Err(Fault::new(
                Code::Range,
                format!("word {word} has members outside a space of {count} blocks"),
            ));
        }
        let mut rest = bits;
        while rest != 0 {
            self.insert(word * 64 + u64::from(rest.trailing_zeros()));
            rest &= rest - 1;
        }
        Ok(())
    }

    /// Number of 64-bit words that cover the space.
    #[must_use]
    pub const fn word_count(&self) -> u64 {
        self.block_count.div_ceil(64)
    }

    fn recount(&mut self) {
        self.member_count = self.bits.count_ones(..) as u64;
    }
}

impl fmt::Debug for BlockSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} blocks", self.member_count, self.block_count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn f08_ranges_that_wrap_or_leave_the_space_are_refused() {
        let geometry = Geometry::new(4096, 100).unwrap();
        for (start, count) in [
            (100, 1),
            (99, 2),
            (0, 101),
            (u64::MAX, 1),
            (u64::MAX, 2),
            (5, 0),
        ] {
            let fault = geometry
                .check(BlockRun { start, count })
                .expect_err("outside");
            assert_eq!(fault.code, Code::Range);
        }
        assert!(
            geometry
                .check(BlockRun {
                    start: 99,
                    count: 1
                })
                .is_ok()
        );
    }

    #[test]
    fn f11_absurd_geometries_are_refused() {
        for (bytes, count) in [(4096, 0), (4096, 1 << 40), (0, 1), (4095, 1), (1 << 30, 1)] {
            assert_eq!(Geometry::new(bytes, count).unwrap_err().code, Code::Layout);
        }
        assert!(Geometry::memory(4097).is_err());
        assert!(Geometry::memory(0).is_err());
    }

    proptest! {
        #[test]
        fn a_block_set_agrees_with_a_plain_set(
            operations in prop::collection::vec((0u8..5, 0u64..200, 1u32..40), 1..60)
        ) {
            let mut set = BlockSet::empty(200);
            let mut model = BTreeSet::new();
            for (kind, start, count) in operations {
                let count = count.min(u32::try_from(200 - start).unwrap());
                let run = BlockRun { start, count };
                match kind {
                    0 => prop_assert_eq!(set.insert(start), model.insert(start)),
                    1 => prop_assert_eq!(set.remove(start), model.remove(&start)),
                    2 => { set.insert_run(run); model.extend(start..run.end()); }
                    3 => { set.remove_run(run); model.retain(|b| !(start..run.end()).contains(b)); }
                    _ => {
                        let mut copy = BlockSet::empty(200);
                        for word in 0..set.word_count() {
                            copy.insert_word(word, set.word(word)).unwrap();
                        }
                        prop_assert_eq!(&copy, &set);
                    }
                }
                prop_assert_eq!(set.len(), model.len() as u64);
                prop_assert_eq!(set.iter().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
                prop_assert_eq!(set.runs().map(|r| u64::from(r.count)).sum::<u64>(), set.len());
                prop_assert_eq!(set.complement().len(), 200 - set.len());
                prop_assert_eq!(set.next_from(start), model.range(start..).next().copied());
            }
        }
    }
}
