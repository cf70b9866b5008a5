//! Tests one encoder at different levels in turn.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use towpath_migrator::codec::{BlockReader, EncodedChunk, Encoder, Job, Level};
use towpath_protocol::fault::Fault;
use towpath_protocol::message::Codec;
use towpath_protocol::space::{BlockRun, MEMORY, SpaceId};

/// Bytes with 200 different values. They shrink by a twentieth, too little to be worth unpacking,
/// and the probe does not consider them random.
struct HardlyShrinks;

impl BlockReader for HardlyShrinks {
    fn read_runs(&self, _: SpaceId, _: &[BlockRun], out: &mut [u8]) -> Result<(), Fault> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for byte in out {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = state.to_le_bytes()[4] % 200 + 1;
        }
        Ok(())
    }
}

#[test]
fn a_chunk_that_hardly_shrinks_goes_raw_and_the_next_takes_another_level() {
    let run = BlockRun {
        start: 0,
        count: 16,
    };
    let job = Job::new(MEMORY, 4096, 1, &[run]).unwrap();
    let mut encoder = Encoder::new().unwrap();
    let mut chunk = EncodedChunk::new();
    let levels = [Level::Zstd1, Level::Zstd3, Level::Zstd6, Level::Zstd9];
    for level in levels.into_iter().chain(levels) {
        let look = |chunk: &EncodedChunk| {
            assert_eq!(chunk.header().codec, Codec::Raw, "{level}");
            Ok(())
        };
        let packed = encoder.encode_urgent(&HardlyShrinks, &job, level, &mut chunk, look);
        packed.unwrap();
    }
}
