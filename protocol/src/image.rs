//! The image of a guest: what both sides hash to be sure that they have the same one.

use serde::{Deserialize, Serialize};

use crate::identity::{AttemptId, Epoch, GuestId};
use crate::message::{MISSING_PART_WORDS_MAX, MissingPart, Received, SpaceInfo};
use crate::ownership::Root;
use crate::space::{BlockSet, SpaceId};

/// The chain before the first chunk.
pub const CHAIN_START: [u8; 32] = [0; 32];

/// Bytes of a block set that are hashed at once. Hashing pieces of this size is several times as
/// fast as hashing word by word.
const HASHED_TOGETHER_BYTES: usize = 16 * 1024;

/// Cuts a set of blocks into messages. Slices without members are left out.
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

/// Everything that a root covers.
#[derive(Debug, Clone, Copy)]
pub struct Image<'a> {
    /// The guest.
    pub guest: GuestId,
    /// The attempt.
    pub attempt: AttemptId,
    /// The epoch that the target gets.
    pub epoch: Epoch,
    /// Its spaces as announced.
    pub spaces: &'a [SpaceInfo],
    /// Its description as announced.
    pub config: &'a [u8],
    /// The transcript of all chunks up to the switch.
    pub position: Received,
    /// The missing blocks of each space.
    pub missing: &'a [BlockSet],
    /// vCPU and machine state.
    pub state: &'a [u8],
}

impl Image<'_> {
    /// The root hash, equal at both sides only if every part is.
    #[must_use]
    pub fn root(&self) -> Root {
        let mut hasher = blake3::Hasher::new_derive_key("towpath 2026 handover root v1");
        hasher.update(&self.guest.0.to_le_bytes());
        hasher.update(&self.attempt.0.to_le_bytes());
        hasher.update(&self.epoch.0.to_le_bytes());
        update_spaces(&mut hasher, self.spaces);
        update_sized(&mut hasher, self.config);
        hasher.update(&self.position.chain);
        update_sets(&mut hasher, self.missing);
        update_sized(&mut hasher, self.state);
        Root(*hasher.finalize().as_bytes())
    }

    /// The hashes of the parts.
    #[must_use]
    pub fn manifest(&self) -> Manifest {
        let mut spaces = blake3::Hasher::new();
        update_spaces(&mut spaces, self.spaces);
        let mut missing = blake3::Hasher::new();
        update_sets(&mut missing, self.missing);
        Manifest {
            position: self.position,
            missing_count: self.missing.iter().map(BlockSet::len).sum(),
            missing_digest: *missing.finalize().as_bytes(),
            state_bytes: self.state.len() as u64,
            state_digest: *blake3::hash(self.state).as_bytes(),
            config_digest: *blake3::hash(self.config).as_bytes(),
            spaces_digest: *spaces.finalize().as_bytes(),
        }
    }
}

/// The parts of an image. Two roots that differ do not tell where; two manifests do. Used only for
/// diagnosis, never for a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Manifest {
    /// The last chunk before the switch, and the transcript of all chunks.
    pub position: Received,
    /// Number of missing blocks over all spaces.
    pub missing_count: u64,
    /// BLAKE3 of the missing sets.
    pub missing_digest: [u8; 32],
    /// Bytes of vCPU and machine state.
    pub state_bytes: u64,
    /// BLAKE3 of that state.
    pub state_digest: [u8; 32],
    /// BLAKE3 of the guest's description.
    pub config_digest: [u8; 32],
    /// BLAKE3 of the spaces as announced.
    pub spaces_digest: [u8; 32],
}

impl Manifest {
    /// The names of the parts that differ from another manifest, for an operator.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<&'static str> {
        let missing = |it: &Self| (it.missing_count, it.missing_digest);
        let state = |it: &Self| (it.state_bytes, it.state_digest);
        let parts = [
            ("chunks", self.position == other.position),
            (MISSING_BLOCKS, missing(self) == missing(other)),
            (STATE, state(self) == state(other)),
            ("description", self.config_digest == other.config_digest),
            ("geometry", self.spaces_digest == other.spaces_digest),
        ];
        let differs = parts.into_iter().filter(|(_, is_same)| !is_same);
        differs.map(|(part, _)| part).collect()
    }
}

/// Name of an image's part: the blocks to be fetched after the switch.
pub(crate) const MISSING_BLOCKS: &str = "missing blocks";

/// Name of an image's part: the vCPU and machine state.
pub(crate) const STATE: &str = "state";

fn update_spaces(hasher: &mut blake3::Hasher, spaces: &[SpaceInfo]) {
    for space in spaces {
        hasher.update(&space.id.0.to_le_bytes());
        hasher.update(&space.block_bytes.to_le_bytes());
        hasher.update(&space.block_count.to_le_bytes());
    }
}

fn update_sets(hasher: &mut blake3::Hasher, sets: &[BlockSet]) {
    let mut bytes = Vec::with_capacity(HASHED_TOGETHER_BYTES);
    for set in sets {
        for word in 0..set.word_count() {
            bytes.extend_from_slice(&set.word(word).to_le_bytes());
            if bytes.len() == HASHED_TOGETHER_BYTES {
                hasher.update(&bytes);
                bytes.clear();
            }
        }
    }
    hasher.update(&bytes);
}

fn update_sized(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::BlockRun;

    const START: Received = Received {
        through_sequence: 0,
        chain: CHAIN_START,
    };

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
            position: START,
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
                position: Received {
                    chain: [1; 32],
                    ..START
                },
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

    #[test]
    fn f27_a_manifest_names_the_parts_that_differ() {
        let of = |missing: &[u64], state: &[u8], config: &[u8], block_count, number| {
            let mut set = BlockSet::empty(64);
            missing.iter().for_each(|&block| {
                set.insert(block);
            });
            Image {
                guest: GuestId(1),
                attempt: AttemptId(2),
                epoch: Epoch(3),
                spaces: &[SpaceInfo {
                    id: SpaceId(0),
                    block_bytes: 4096,
                    block_count,
                }],
                config,
                position: Received {
                    through_sequence: number,
                    ..START
                },
                missing: &[set],
                state,
            }
            .manifest()
        };
        let manifest = of(&[3], b"state", b"config", 64, 0);
        for (other, differs) in [
            (manifest, vec![]),
            (of(&[3], b"state", b"config", 64, 1), vec!["chunks"]),
            (of(&[4], b"state", b"config", 64, 0), vec!["missing blocks"]),
            (of(&[3], b"State", b"config", 64, 0), vec!["state"]),
            (of(&[3], b"state", b"konfig", 64, 0), vec!["description"]),
            (of(&[3], b"state", b"config", 65, 0), vec!["geometry"]),
            (
                of(&[], b"", b"", 1, 9),
                vec![
                    "chunks",
                    "missing blocks",
                    "state",
                    "description",
                    "geometry",
                ],
            ),
        ] {
            assert_eq!(manifest.differences(&other), differs);
        }
    }

    #[test]
    fn f27_large_sets_are_hashed_as_their_words_are() {
        let block_count = (HASHED_TOGETHER_BYTES as u64) * 8 * 2 + 192;
        let mut set = BlockSet::empty(block_count);
        (0..block_count).step_by(7).for_each(|block| {
            set.insert(block);
        });
        let mut words = blake3::Hasher::new();
        for word in 0..set.word_count() {
            words.update(&set.word(word).to_le_bytes());
        }
        let mut together = blake3::Hasher::new();
        update_sets(&mut together, &[set]);
        assert_eq!(together.finalize(), words.finalize());
    }
}
