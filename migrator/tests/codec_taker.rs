//! The encoder's queue, where whoever takes the chunks out packs as well.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    reason = "a test that fails there has found something"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use towpath_migrator::codec::{
    BlockReader, CodecPolicy, Decoder, EncodedChunk, Encoder, EncoderPool, Job, Level,
};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::frame::HEADER_BYTES;
use towpath_protocol::message::Codec;
use towpath_protocol::space::{BlockRun, Geometry, SpaceId};

const PAGE: usize = 4096;
const MEMORY: SpaceId = SpaceId(0);
const PAGES: u64 = 1 << 20;

/// Longest any wait of these tests may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A memory whose pages are zero, text-like or noise, by their number.
#[derive(Default)]
struct Pages {
    is_broken: AtomicBool,
}

/// The jobs before this one have pages of all kinds, the others noise alone.
const NOISE_FROM: u64 = 1000;

fn byte_of(page: u64, index: usize) -> u8 {
    let mixed = (page << 12 | index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    match page % 3 {
        _ if page >= NOISE_FROM * 16 => (mixed >> 40) as u8,
        0 => 0,
        1 => (index % 61) as u8,
        _ => (mixed >> 40) as u8,
    }
}

impl BlockReader for Pages {
    fn read_runs(&self, _: SpaceId, runs: &[BlockRun], out: &mut [u8]) -> Result<(), Fault> {
        if self.is_broken.load(Ordering::SeqCst) {
            return Err(Fault::new(Code::Guest, "the guest is gone"));
        }
        let pages = runs.iter().flat_map(|run| run.start..run.end());
        for (page, bytes) in pages.zip(out.chunks_mut(PAGE)) {
            for (index, byte) in bytes.iter_mut().enumerate() {
                *byte = byte_of(page, index);
            }
        }
        Ok(())
    }
}

fn job(start: u64) -> Job {
    Job::new(MEMORY, PAGE as u32, 1, &[BlockRun { start, count: 16 }]).unwrap()
}

/// Checks a chunk's bytes; gives how many blocks it stands for.
fn check(chunk: &EncodedChunk, decoder: &mut Decoder) -> u64 {
    let geometry = Geometry::new(PAGE as u32, PAGES).unwrap();
    let body = &chunk.frame()[HEADER_BYTES..];
    let decoded = decoder.decode(body, &[geometry]).expect("our own chunk");
    let blocks = decoded
        .header
        .runs
        .iter()
        .flat_map(|run| run.start..run.end());
    let count = blocks.clone().count() as u64;
    if decoded.header.codec != Codec::Zero {
        for (page, bytes) in blocks.zip(decoded.raw.chunks(PAGE)) {
            let is_right = bytes
                .iter()
                .enumerate()
                .all(|(index, byte)| *byte == byte_of(page, index));
            assert!(is_right, "page {page}");
        }
    }
    count
}

#[test]
fn a_taker_and_the_threads_share_the_work_and_keep_the_order() {
    for level in Level::ALL {
        let policy = CodecPolicy::Fixed(level);
        let pool = EncoderPool::new(Arc::new(Pages::default()), 2, policy, 1).unwrap();
        let (mut encoder, mut decoder) = (Encoder::new().unwrap(), Decoder::new().unwrap());
        let mut chunk = EncodedChunk::new();
        let mut jobs = (0..60).map(|number| job(number * 16)).peekable();
        let (mut sequence, mut block_count) = (0, 0);
        while jobs.peek().is_some() || !pool.is_idle() {
            while pool.room() > 0
                && let Some(job) = jobs.next()
            {
                assert!(pool.submit(job, PATIENCE));
            }
            assert!(pool.pack_next(&mut encoder, &mut chunk, PATIENCE).unwrap());
            sequence += 1;
            assert_eq!(chunk.header().sequence, sequence);
            block_count += check(&chunk, &mut decoder);
        }
        assert_eq!(block_count, 60 * 16, "{level:?}");
        let is_there = pool.pack_next(&mut encoder, &mut chunk, Duration::ZERO);
        assert_eq!(is_there, Ok(false));
    }
}

#[test]
fn a_taker_that_waits_hears_of_a_job_that_no_thread_is_woken_for() {
    let policy = CodecPolicy::Fixed(Level::Raw);
    let pool = EncoderPool::new(Arc::new(Pages::default()), 2, policy, 1).unwrap();
    let (teller, taken) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let pool = &pool;
        scope.spawn(move || {
            let (mut encoder, mut chunk) = (Encoder::new().unwrap(), EncodedChunk::new());
            for _ in 0..100 {
                assert!(pool.pack_next(&mut encoder, &mut chunk, PATIENCE).unwrap());
                teller.send(chunk.header().sequence).unwrap();
            }
        });
        for number in 1..=100 {
            assert!(pool.submit(job((NOISE_FROM + number) * 16), PATIENCE));
            // One at a time, so that it waits for each of them.
            assert_eq!(taken.recv_timeout(PATIENCE), Ok(number));
        }
    });
}

#[test]
fn a_takers_failed_read_stops_the_order_until_it_is_cancelled() {
    let pages = Arc::new(Pages::default());
    let policy = CodecPolicy::Fixed(Level::Lz4);
    let pool = EncoderPool::new(pages.clone(), 1, policy, 1).unwrap();
    let (mut encoder, mut chunk) = (Encoder::new().unwrap(), EncodedChunk::new());
    pages.is_broken.store(true, Ordering::SeqCst);
    assert!(pool.submit(job(0), PATIENCE));
    for _ in 0..2 {
        let fault = pool.pack_next(&mut encoder, &mut chunk, PATIENCE);
        assert_eq!(fault.expect_err("broken").code, Code::Guest);
    }
    let run = BlockRun {
        start: 0,
        count: 16,
    };
    assert_eq!(pool.cancel(), [(MEMORY, run)]);
    pages.is_broken.store(false, Ordering::SeqCst);
    assert!(pool.submit(job(0), PATIENCE));
    assert!(pool.pack_next(&mut encoder, &mut chunk, PATIENCE).unwrap());
}
