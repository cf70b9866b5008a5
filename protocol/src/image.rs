//! What both sides hash to be sure that they speak of the same image.

use crate::identity::{AttemptId, Epoch, GuestId};
use crate::message::{MISSING_PART_WORDS_MAX, MissingPart, SpaceInfo};
use crate::ownership::Root;
use crate::space::{BlockSet, SpaceId};

/// The chain before the first chunk.
pub const CHAIN_START: [u8; 32] = [0; 32];

/// Cuts a set of blocks into messages, leaving out slices without members.
pub fn missing_parts(space: SpaceId, set: &BlockSet) -> impl Iterator<Item = MissingPart> + '_ {
    let step = MISSING_PART_WORDS_MAX as u64;
    (0..set.word_count().div_ceil(step)).filter_map(move |slice| {
        let first = slice * step;
        let end = (first + step).min(set.word_count());
        let begin = (first..end).find(|&word| set.word(word) != 0)?;
        let last = (begin..end).rev().find(|&word| set.word(word) != 0)?;
        let words = (begin..=last).map(|word| set.word(word)).collect();
        Some(MissingPart {
            space,
            first_word: begin,
            words,
        })
    })
}

/// Everything a root covers.
#[derive(Debug, Clone, Copy)]
pub struct Image<'a> {
    /// The guest.
    pub guest: GuestId,
    /// The attempt.
    pub attempt: AttemptId,
    /// The epoch the target gets.
    pub epoch: Epoch,
    /// Its spaces as announced.
    pub spaces: &'a [SpaceInfo],
    /// Its description as announced.
    pub config: &'a [u8],
    /// The transcript of all chunks up to the switch.
    pub chain: &'a [u8; 32],
    /// What is not there yet, space by space.
    pub missing: &'a [BlockSet],
    /// vCPU and machine state.
    pub state: &'a [u8],
}

impl Image<'_> {
    /// The root: equal at both sides only if every part is.
    #[must_use]
    pub fn root(&self) -> Root {
        let mut hasher = blake3::Hasher::new_derive_key("towpath 2026 handover root v1");
        hasher.update(&self.guest.0.to_le_bytes());
        hasher.update(&self.attempt.0.to_le_bytes());
        hasher.update(&self.epoch.0.to_le_bytes());
        for space in self.spaces {
            hasher.update(&space.id.0.to_le_bytes());
            hasher.update(&space.block_bytes.to_le_bytes());
            hasher.update(&space.block_count.to_le_bytes());
        }
        update_sized(&mut hasher, self.config);
        hasher.update(self.chain);
        for set in self.missing {
            for word in 0..set.word_count() {
                hasher.update(&set.word(word).to_le_bytes());
            }
        }
        update_sized(&mut hasher, self.state);
        Root(*hasher.finalize().as_bytes())
    }
}

fn update_sized(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::BlockRun;

    #[test]
    fn missing_parts_rebuild_the_set_and_skip_empty_slices() {
        let mut set = BlockSet::empty(3 << 20);
        set.insert(5);
        set.insert_run(BlockRun {
            start: 262_140,
            count: 9,
        });
        set.insert((3 << 20) - 1);
        let parts: Vec<MissingPart> = missing_parts(SpaceId(0), &set).collect();
        assert_eq!(parts.len(), 3, "slices without members are left out");
        let mut copy = BlockSet::empty(3 << 20);
        for part in &parts {
            for (offset, bits) in part.words.iter().enumerate() {
                copy.insert_word(part.first_word + offset as u64, *bits)
                    .unwrap();
            }
        }
        assert_eq!(copy, set);
    }

    #[test]
    fn f27_the_root_changes_with_every_part_of_the_image() {
        let spaces = [SpaceInfo {
            id: SpaceId(0),
            block_bytes: 4096,
            block_count: 64,
        }];
        let missing = [BlockSet::empty(64)];
        let image = Image {
            guest: GuestId(1),
            attempt: AttemptId(2),
            epoch: Epoch(3),
            spaces: &spaces,
            config: b"config",
            chain: &CHAIN_START,
            missing: &missing,
            state: b"state",
        };
        let root = image.root();
        let other_missing = [BlockSet::full(64)];
        for other in [
            Image {
                guest: GuestId(9),
                ..image
            },
            Image {
                attempt: AttemptId(9),
                ..image
            },
            Image {
                epoch: Epoch(9),
                ..image
            },
            Image {
                config: b"konfig",
                ..image
            },
            Image {
                chain: &[1; 32],
                ..image
            },
            Image {
                missing: &other_missing,
                ..image
            },
            Image {
                state: b"State",
                ..image
            },
        ] {
            assert_ne!(other.root(), root, "{other:?}");
        }
    }
}
