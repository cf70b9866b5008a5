//! Tests of blocks known to be zero: never read, never hashed, named by the gigabyte.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    reason = "a test that fails there has found something"
)]

use std::sync::Arc;
use std::time::Duration;

use towpath_migrator::codec::{
    BlockReader, CodecPolicy, Decoder, EncodedChunk, EncoderPool, Job, Level,
};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::frame::HEADER_BYTES;
use towpath_protocol::message::{Codec, ZERO_RUN_BLOCKS_MAX};
use towpath_protocol::space::{BlockRun, Geometry, MEMORY, MEMORY_BLOCK_BYTES, SpaceId};

/// Longest that any wait in these tests may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A memory that must not be read.
struct Untouched;

impl BlockReader for Untouched {
    fn read_runs(&self, _: SpaceId, _: &[BlockRun], _: &mut [u8]) -> Result<(), Fault> {
        Err(Fault::new(Code::State, "a block known to be zero was read"))
    }
}

fn run(start: u64, count: u32) -> BlockRun {
    BlockRun { start, count }
}

fn zeros(runs: &[BlockRun]) -> Result<Job, Fault> {
    Job::zeros(MEMORY, MEMORY_BLOCK_BYTES, 1, runs)
}

fn pool() -> EncoderPool {
    let policy = CodecPolicy::Fixed(Level::Zstd1);
    EncoderPool::new(Arc::new(Untouched), 2, policy, 1).unwrap()
}

#[test]
fn sixty_four_gibibytes_of_zeros_are_one_small_chunk_that_decodes() {
    let full: Vec<_> = (0..16)
        .map(|number| run(number * (1 << 21), ZERO_RUN_BLOCKS_MAX))
        .collect();
    let pool = pool();
    let mut chunk = EncodedChunk::new();
    assert!(pool.submit(zeros(&full).unwrap(), PATIENCE));
    assert!(pool.next_chunk(&mut chunk, PATIENCE).unwrap());
    assert!(pool.is_idle());
    assert_eq!(chunk.raw_bytes(), 64 << 30);
    assert!(chunk.frame().len() < 256);
    let mut decoder = Decoder::new().unwrap();
    let geometry = Geometry::memory(1 << 40).unwrap();
    let decoded = decoder.decode(&chunk.frame()[HEADER_BYTES..], &[geometry]);
    let decoded = decoded.unwrap();
    assert_eq!((decoded.header.codec, decoded.raw.len()), (Codec::Zero, 0));
    assert_eq!(decoded.header.runs, full);
}

#[test]
fn zeros_of_many_jobs_come_out_in_order_and_complete() {
    let pool = pool();
    let jobs = [(0, 5000), (5000, 12_000), (17_000, 4), (1 << 20, 1 << 20)];
    for (start, count) in jobs {
        assert!(pool.submit(zeros(&[run(start, count)]).unwrap(), PATIENCE));
    }
    let (mut chunk, mut seen) = (EncodedChunk::new(), Vec::new());
    while !pool.is_idle() {
        assert!(pool.next_chunk(&mut chunk, PATIENCE).unwrap());
        seen.extend(chunk.header().runs.clone());
    }
    let blocks = |runs: &[BlockRun]| -> Vec<u64> {
        runs.iter().flat_map(|run| run.start..run.end()).collect()
    };
    let expected: Vec<_> = jobs.map(|(start, count)| run(start, count)).to_vec();
    assert_eq!(blocks(&seen), blocks(&expected));
}

#[test]
fn cancel_gives_zeros_back_as_they_were_put_in() {
    let pool = pool();
    for start in [0, 1 << 20] {
        assert!(pool.submit(zeros(&[run(start, 1 << 20)]).unwrap(), PATIENCE));
    }
    let mut unsent = pool.cancel();
    unsent.sort_by_key(|(_, run)| run.start);
    let expected = [0, 1 << 20].map(|start| (MEMORY, run(start, 1 << 20)));
    assert_eq!(unsent, expected);
}

#[test]
fn jobs_that_are_no_chunk_of_zeros_are_refused() {
    let many: Vec<_> = (0..17).map(|number| run(number * 2, 1)).collect();
    for runs in [
        &[][..],
        &[run(0, 0)],
        &[run(0, ZERO_RUN_BLOCKS_MAX + 1)],
        &[run(5, 1), run(4, 1)],
        &many,
    ] {
        assert_eq!(zeros(runs).expect_err("no chunk").code, Code::State);
    }
}
