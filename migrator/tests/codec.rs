//! Tests of the codec: false chunks, true chunks, and their order with many threads.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test that fails there has found something"
)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use towpath_migrator::codec::{
    BlockReader, CodecPolicy, Decoder, EncodedChunk, Encoder, EncoderPool, Job, Level,
};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::frame::HEADER_BYTES;
use towpath_protocol::message::{ChunkHeader, Codec, ZERO_CHUNK_DIGEST, digest_of};
use towpath_protocol::space::{BlockRun, Geometry, SpaceId};

const PAGE: usize = 4096;
const MEMORY: SpaceId = SpaceId(0);

/// Longest that any wait in these tests may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A memory of pages that are zero, text-like or random, depending on their number.
struct Pages {
    bytes: Vec<u8>,
    is_broken: AtomicBool,
}

fn random(seed: u64, out: &mut [u8]) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for chunk in out.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
}

/// Bytes like those of program code: repetitive, but not all the same.
fn plain(seed: u64, out: &mut [u8]) {
    let mut noise = vec![0; out.len()];
    random(seed, &mut noise);
    for (index, (byte, noise)) in out.iter_mut().zip(noise).enumerate() {
        *byte = if noise < 40 {
            noise
        } else {
            (index % 61) as u8
        };
    }
}

impl Pages {
    fn new(kinds: &[u8]) -> Self {
        let mut bytes = vec![0; kinds.len() * PAGE];
        for (seed, (page, kind)) in (1..).zip(bytes.chunks_mut(PAGE).zip(kinds)) {
            match kind {
                0 => {}
                1 => plain(seed, page),
                _ => random(seed, page),
            }
        }
        Self {
            bytes,
            is_broken: AtomicBool::new(false),
        }
    }

    fn page_count(&self) -> u64 {
        (self.bytes.len() / PAGE) as u64
    }

    fn geometry(&self) -> Geometry {
        Geometry::new(PAGE as u32, self.page_count()).unwrap()
    }

    /// Jobs for all pages in order, sixteen at a time.
    fn jobs(&self) -> Vec<Job> {
        let starts = (0..self.page_count()).step_by(16);
        starts
            .map(|start| {
                let count = (self.page_count() - start).min(16) as u32;
                job(&[BlockRun { start, count }])
            })
            .collect()
    }
}

impl BlockReader for Pages {
    fn read_runs(&self, space: SpaceId, runs: &[BlockRun], out: &mut [u8]) -> Result<(), Fault> {
        assert_eq!(space, MEMORY);
        if self.is_broken.load(Ordering::SeqCst) {
            return Err(Fault::new(Code::Guest, "the guest is gone"));
        }
        let mut rest = out;
        for run in runs {
            let (from, bytes) = (run.start as usize * PAGE, run.count as usize * PAGE);
            let (now, later) = rest.split_at_mut(bytes);
            now.copy_from_slice(&self.bytes[from..from + bytes]);
            rest = later;
        }
        assert!(rest.is_empty());
        Ok(())
    }
}

fn job(runs: &[BlockRun]) -> Job {
    Job::new(MEMORY, PAGE as u32, 1, runs).unwrap()
}

fn run(start: u64, count: u32) -> BlockRun {
    BlockRun { start, count }
}

/// Installs the chunk in a frame into a memory, as a target would.
fn install(frame: &[u8], decoder: &mut Decoder, geometry: Geometry, memory: &mut [u8]) -> u64 {
    let chunk = decoder
        .decode(&frame[HEADER_BYTES..], &[geometry])
        .expect("our own chunk");
    let mut raw = chunk.raw;
    for run in &chunk.header.runs {
        let (from, bytes) = (run.start as usize * PAGE, run.count as usize * PAGE);
        let target = &mut memory[from..from + bytes];
        if chunk.header.codec == Codec::Zero {
            target.fill(0);
        } else {
            let (now, later) = raw.split_at(bytes);
            target.copy_from_slice(now);
            raw = later;
        }
    }
    assert!(raw.is_empty());
    chunk.header.sequence
}

/// Sends all pages through a pool and checks that they arrive, in order and without gaps.
fn check_transfer(pages: Pages, thread_count: usize, policy: CodecPolicy) -> EncoderPool {
    let pages = Arc::new(pages);
    let geometry = pages.geometry();
    let pool = EncoderPool::new(pages.clone(), thread_count, policy, 7).unwrap();
    let mut jobs = pages.jobs().into_iter().peekable();
    let mut memory = vec![0xcc; pages.bytes.len()];
    let (mut decoder, mut chunk) = (Decoder::new().unwrap(), EncodedChunk::new());
    let mut sequence = 7;
    while jobs.peek().is_some() || !pool.is_idle() {
        while pool.room() > 0
            && let Some(job) = jobs.next()
        {
            assert!(pool.submit(job, PATIENCE));
        }
        assert!(pool.next_chunk(&mut chunk, PATIENCE).unwrap());
        assert_eq!(
            install(chunk.frame(), &mut decoder, geometry, &mut memory),
            sequence
        );
        assert_eq!(chunk.header().sequence, sequence);
        sequence += 1;
    }
    assert_eq!(pool.next_sequence(), sequence);
    assert!(memory == pages.bytes, "every page as it was");
    pool
}

fn mixed(count: usize) -> Vec<u8> {
    let mut noise = vec![0; count];
    random(42, &mut noise);
    noise.iter().map(|n| n % 3).collect()
}

#[test]
fn every_page_arrives_whatever_the_level_and_the_threads() {
    for thread_count in [1, 3] {
        for level in Level::ALL {
            check_transfer(
                Pages::new(&mixed(700)),
                thread_count,
                CodecPolicy::Fixed(level),
            );
        }
        let policy = CodecPolicy::Auto {
            link_bytes_per_s: 10_000_000,
        };
        check_transfer(Pages::new(&mixed(2000)), thread_count, policy);
    }
}

#[test]
fn each_kind_of_page_is_packed_as_it_deserves() {
    let level = |level| CodecPolicy::Fixed(level);
    for (kind, level, expected) in [
        (0, level(Level::Zstd3), [1, 0, 0, 0]),
        (1, level(Level::Zstd3), [0, 0, 0, 4]),
        (1, level(Level::Lz4), [0, 0, 4, 0]),
        (1, level(Level::Raw), [0, 4, 0, 0]),
        (2, level(Level::Zstd9), [0, 4, 0, 0]),
        (2, level(Level::Lz4), [0, 4, 0, 0]),
    ] {
        let stats = check_transfer(Pages::new(&[kind; 64]), 2, level).stats();
        assert_eq!(
            stats.chunk_counts, expected,
            "pages of kind {kind} by {level:?}"
        );
        assert_eq!(stats.raw_bytes, 64 * PAGE as u64);
    }
}

#[test]
fn copies_of_one_random_page_are_packed_all_the_same() {
    let mut pages = Pages::new(&[2; 16]);
    let (first, others) = pages.bytes.split_at_mut(PAGE);
    others
        .chunks_mut(PAGE)
        .for_each(|page| page.copy_from_slice(first));
    let stats = check_transfer(pages, 1, CodecPolicy::Fixed(Level::Zstd3)).stats();
    assert_eq!(stats.chunk_counts, [0, 0, 0, 1]);
    assert!(stats.wire_bytes < 6000, "{stats:?}");
}

#[test]
fn pc12_an_empty_gigabyte_costs_64_kilobytes() {
    struct Empty;
    impl BlockReader for Empty {
        fn read_runs(&self, _: SpaceId, _: &[BlockRun], out: &mut [u8]) -> Result<(), Fault> {
            out.fill(0);
            Ok(())
        }
    }
    let policy = CodecPolicy::Fixed(Level::Zstd1);
    let pool = EncoderPool::new(Arc::new(Empty), 2, policy, 1).unwrap();
    let mut chunk = EncodedChunk::new();
    for start in (0..1 << 18).step_by(16) {
        while !pool.submit(job(&[run(start, 16)]), Duration::ZERO) {
            assert!(pool.next_chunk(&mut chunk, PATIENCE).is_ok());
        }
    }
    while !pool.is_idle() {
        assert!(pool.next_chunk(&mut chunk, PATIENCE).unwrap());
    }
    let stats = pool.stats();
    assert_eq!(stats.zero_blocks, 1 << 18);
    assert!(stats.wire_bytes <= 64 * 1024, "{stats:?}");
}

#[test]
fn zeros_among_other_pages_cost_only_their_names() {
    let kinds: Vec<u8> = (0..160)
        .map(|page| if page % 2 == 0 { 0 } else { 2 })
        .collect();
    let stats = check_transfer(Pages::new(&kinds), 2, CodecPolicy::Fixed(Level::Raw)).stats();
    assert_eq!(stats.zero_blocks, 80);
    let carried = 80 * PAGE as u64;
    let names = stats.wire_bytes - carried;
    assert!(names < 160 * 32, "{names} bytes beside the pages");
}

#[test]
fn buffers_go_round_and_none_is_made_later() {
    let pool = check_transfer(Pages::new(&mixed(3000)), 2, CodecPolicy::Fixed(Level::Lz4));
    let stats = pool.stats();
    assert_eq!(stats.buffer_count, 16);
    assert!(
        stats.buffer_uses > 10 * stats.buffer_count as u64,
        "{stats:?}"
    );
}

#[test]
fn nothing_is_allocated_for_a_chunk_in_steady_state() {
    let pages = Pages::new(&mixed(256));
    let (mut encoder, mut decoder) = (Encoder::new().unwrap(), Decoder::new().unwrap());
    let mut chunk = EncodedChunk::new();
    let jobs = pages.jobs();
    let mut round = |level| {
        for job in &jobs {
            let unpack = |chunk: &EncodedChunk| {
                let body = &chunk.frame()[HEADER_BYTES..];
                decoder.decode(body, &[pages.geometry()]).map(drop)
            };
            let packed = encoder.encode_urgent(&pages, job, level, &mut chunk, unpack);
            packed.unwrap();
        }
    };
    for level in Level::ALL {
        round(level);
        let used = allocation_counter::measure(|| round(level));
        assert_eq!(used.count_total, 0, "{level}: {used:?}");
    }
}

#[test]
fn submitting_and_taking_allocates_nothing_either() {
    let pages = Arc::new(Pages::new(&mixed(512)));
    let policy = CodecPolicy::Fixed(Level::Zstd1);
    let pool = EncoderPool::new(pages.clone(), 2, policy, 1).unwrap();
    let mut chunk = EncodedChunk::new();
    let jobs = pages.jobs();
    let mut round = || {
        for job in &jobs {
            assert!(pool.submit(*job, PATIENCE));
            while pool.room() == 0 {
                pool.next_chunk(&mut chunk, PATIENCE).unwrap();
            }
        }
        while !pool.is_idle() {
            pool.next_chunk(&mut chunk, PATIENCE).unwrap();
        }
    };
    round();
    let used = allocation_counter::measure(round);
    assert_eq!(used.count_total, 0, "{used:?}");
}

/// A reader that blocks until it is opened, and counts the readers inside.
#[derive(Default)]
struct Gate {
    is_open: Mutex<bool>,
    opened: Condvar,
    inside: AtomicU64,
}

impl BlockReader for Gate {
    fn read_runs(&self, _: SpaceId, runs: &[BlockRun], out: &mut [u8]) -> Result<(), Fault> {
        self.inside.fetch_add(1, Ordering::SeqCst);
        let mut is_open = self.is_open.lock().unwrap();
        while !*is_open {
            is_open = self.opened.wait(is_open).unwrap();
        }
        out.fill(u8::try_from(runs[0].start % 251).unwrap() + 1);
        self.inside.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }
}

impl Gate {
    fn set(&self, is_open: bool) {
        *self.is_open.lock().unwrap() = is_open;
        self.opened.notify_all();
    }
}

#[test]
fn cancel_gives_every_unsent_block_back_and_leaves_no_reader_inside() {
    let gate = Arc::new(Gate::default());
    let policy = CodecPolicy::Fixed(Level::Lz4);
    let pool = EncoderPool::new(gate.clone(), 2, policy, 1).unwrap();
    let mut submitted = 0;
    while pool.submit(job(&[run(submitted * 16, 16)]), Duration::ZERO) {
        submitted += 1;
    }
    assert_eq!(submitted, 16, "a bounded queue");
    let mut chunk = EncodedChunk::new();
    assert!(!pool.next_chunk(&mut chunk, Duration::ZERO).unwrap());
    let begun = Instant::now();
    while gate.inside.load(Ordering::SeqCst) < 2 {
        assert!(begun.elapsed() < PATIENCE, "two threads read");
        std::thread::yield_now();
    }
    std::thread::scope(|scope| {
        let canceller = scope.spawn(|| pool.cancel());
        gate.set(true);
        let mut unsent = canceller.join().unwrap();
        assert_eq!(gate.inside.load(Ordering::SeqCst), 0);
        unsent.sort_by_key(|(_, run)| run.start);
        let expected: Vec<_> = (0..submitted).map(|n| (MEMORY, run(n * 16, 16))).collect();
        assert_eq!(unsent, expected);
    });
    assert!(pool.is_idle());
    // The pool continues from the target's position.
    pool.continue_from(100).unwrap();
    assert!(pool.submit(job(&[run(3, 1)]), PATIENCE));
    assert!(pool.next_chunk(&mut chunk, PATIENCE).unwrap());
    assert_eq!(
        (chunk.header().sequence, chunk.header().runs[0]),
        (100, run(3, 1))
    );
    assert!(!pool.next_chunk(&mut chunk, Duration::ZERO).unwrap());
}

#[test]
fn cancel_gives_back_what_is_done_but_not_taken() {
    let pages = Arc::new(Pages::new(&[0, 0, 1, 1, 0, 2]));
    let pool = EncoderPool::new(pages.clone(), 1, CodecPolicy::Fixed(Level::Zstd1), 1).unwrap();
    assert!(pool.submit(job(&[run(0, 4)]), PATIENCE));
    assert!(pool.submit(job(&[run(4, 2)]), PATIENCE));
    let mut chunk = EncodedChunk::new();
    assert!(pool.next_chunk(&mut chunk, PATIENCE).unwrap());
    assert_eq!(chunk.header().runs, [run(0, 2)]);
    let mut unsent = pool.cancel();
    unsent.sort_by_key(|(_, run)| run.start);
    let blocks: Vec<u64> = unsent
        .iter()
        .flat_map(|(_, run)| run.start..run.end())
        .collect();
    assert_eq!(blocks, [2, 3, 4, 5]);
}

#[test]
fn a_failed_read_stops_the_order_until_it_is_cancelled() {
    let pages = Arc::new(Pages::new(&[1; 64]));
    let pool = EncoderPool::new(pages.clone(), 2, CodecPolicy::Fixed(Level::Lz4), 1).unwrap();
    let mut chunk = EncodedChunk::new();
    assert!(pool.submit(job(&[run(0, 16)]), PATIENCE));
    assert!(pool.next_chunk(&mut chunk, PATIENCE).unwrap());
    pages.is_broken.store(true, Ordering::SeqCst);
    assert!(pool.submit(job(&[run(16, 16)]), PATIENCE));
    for _ in 0..2 {
        let fault = pool.next_chunk(&mut chunk, PATIENCE).expect_err("broken");
        assert_eq!(fault.code, Code::Guest);
    }
    pages.is_broken.store(false, Ordering::SeqCst);
    assert_eq!(pool.cancel(), [(MEMORY, run(16, 16))]);
    assert!(pool.submit(job(&[run(16, 16)]), PATIENCE));
    assert!(pool.next_chunk(&mut chunk, PATIENCE).unwrap());
    assert_eq!(chunk.header().sequence, 2);
}

#[test]
fn a_reader_that_panics_is_a_fault_and_hangs_nobody() {
    struct Panics;
    impl BlockReader for Panics {
        fn read_runs(&self, _: SpaceId, _: &[BlockRun], _: &mut [u8]) -> Result<(), Fault> {
            panic!("a planted mistake");
        }
    }
    let policy = CodecPolicy::Fixed(Level::Lz4);
    let pool = EncoderPool::new(Arc::new(Panics), 1, policy, 1).unwrap();
    assert!(pool.submit(job(&[run(0, 16)]), PATIENCE));
    let fault = pool.next_chunk(&mut EncodedChunk::new(), PATIENCE);
    assert_eq!(fault.expect_err("panicked").code, Code::Guest);
    assert_eq!(pool.cancel(), [(MEMORY, run(0, 16))]);
}

#[test]
fn zeros_are_joined_only_in_order_and_never_across_generations() {
    let pages = Arc::new(Pages::new(&[0; 64]));
    let pool = EncoderPool::new(pages, 2, CodecPolicy::Fixed(Level::Lz4), 1).unwrap();
    let of = |generation, start| Job::new(MEMORY, PAGE as u32, generation, &[run(start, 16)]);
    for (generation, start) in [(1, 16), (1, 32), (1, 0), (2, 16), (2, 48)] {
        assert!(pool.submit(of(generation, start).unwrap(), PATIENCE));
    }
    let mut chunk = EncodedChunk::new();
    let mut seen = Vec::new();
    while !pool.is_idle() {
        assert!(pool.next_chunk(&mut chunk, PATIENCE).unwrap());
        seen.push((chunk.header().generation, chunk.header().runs.clone()));
    }
    let expected = [
        (1, vec![run(16, 32)]),
        (1, vec![run(0, 16)]),
        (2, vec![run(16, 16), run(48, 16)]),
    ];
    assert_eq!(seen, expected);
}

#[test]
fn jobs_that_are_no_chunk_are_refused() {
    for runs in [
        &[][..],
        &[run(0, 0)],
        &[run(0, 17)],
        &[run(0, 16), run(20, 1)],
        &[run(5, 1), run(4, 1)],
        &[run(5, 2), run(6, 1)],
    ] {
        let fault = Job::new(MEMORY, PAGE as u32, 1, runs).expect_err("no chunk");
        assert_eq!(fault.code, Code::State, "{runs:?}");
    }
    assert!(Job::new(SpaceId(1), 65536, 1, &[run(9, 1)]).is_ok());
}

/// The decoder's result for a payload that claims to be these pages.
fn verdict(codec: Codec, payload: &[u8], raw: &[u8]) -> Result<Vec<u8>, Code> {
    let digest = digest_of(raw);
    let count = u32::try_from(raw.len() / PAGE).unwrap();
    let header = ChunkHeader {
        codec,
        runs: vec![run(0, count)],
        digest: if codec == Codec::Zero {
            ZERO_CHUNK_DIGEST
        } else {
            digest
        },
        ..ChunkHeader::default()
    };
    let mut frame = Vec::new();
    header.encode(payload, &mut frame);
    let mut decoder = Decoder::new().unwrap();
    let geometry = Geometry::new(PAGE as u32, 100).unwrap();
    decoder
        .decode(&frame[HEADER_BYTES..], &[geometry])
        .map(|chunk| chunk.raw.to_vec())
        .map_err(|fault| fault.code)
}

fn two_pages() -> Vec<u8> {
    let mut raw = vec![0; 2 * PAGE];
    plain(3, &mut raw);
    raw
}

fn zstd_of(raw: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(raw, 3).unwrap()
}

#[test]
fn what_is_true_is_accepted() {
    let raw = two_pages();
    assert_eq!(verdict(Codec::Raw, &raw, &raw), Ok(raw.clone()));
    assert_eq!(verdict(Codec::Zstd, &zstd_of(&raw), &raw), Ok(raw.clone()));
    assert_eq!(
        verdict(Codec::Lz4, &lz4_flex::block::compress(&raw), &raw),
        Ok(raw)
    );
    assert_eq!(verdict(Codec::Zero, &[], &[0; PAGE]), Ok(vec![]));
}

#[test]
fn f08_a_chunk_outside_its_space_or_of_no_space_is_refused() {
    let geometry = Geometry::new(PAGE as u32, 100).unwrap();
    let mut decoder = Decoder::new().unwrap();
    for (space, runs, codec) in [
        (1, vec![run(0, 1)], Codec::Zero),
        (u16::MAX, vec![run(0, 1)], Codec::Raw),
        (0, vec![run(100, 1)], Codec::Zero),
        (0, vec![run(99, 2)], Codec::Raw),
        (0, vec![run(0, 101)], Codec::Zero),
        (0, vec![run(0, 1), run(1 << 33, 1)], Codec::Zero),
    ] {
        let space = SpaceId(space);
        let header = ChunkHeader {
            space,
            runs,
            codec,
            ..ChunkHeader::default()
        };
        let mut frame = Vec::new();
        header.encode(
            if codec == Codec::Zero {
                &[]
            } else {
                &[1; PAGE]
            },
            &mut frame,
        );
        let fault = decoder
            .decode(&frame[HEADER_BYTES..], &[geometry])
            .expect_err("outside");
        assert_eq!(fault.code, Code::Range, "{header:?}");
    }
    // Sixteen blocks fit in one chunk of memory, but not in one of a volume, whose blocks are
    // larger.
    let volume = Geometry::new(65536, 100).unwrap();
    let header = ChunkHeader {
        runs: vec![run(0, 2)],
        codec: Codec::Raw,
        ..ChunkHeader::default()
    };
    let mut frame = Vec::new();
    header.encode(&[1; 65536], &mut frame);
    let fault = decoder
        .decode(&frame[HEADER_BYTES..], &[volume])
        .expect_err("too much");
    assert_eq!(fault.code, Code::Range);
}

#[test]
fn f12_a_size_other_than_declared_is_refused() {
    let raw = two_pages();
    let mut longer = vec![0; 3 * PAGE];
    plain(3, &mut longer);
    for other in [&raw[..PAGE], &raw[..2 * PAGE - 1], &longer] {
        assert_eq!(verdict(Codec::Raw, other, &raw), Err(Code::Codec));
        assert_eq!(
            verdict(Codec::Zstd, &zstd_of(other), &raw),
            Err(Code::Codec)
        );
        let lz4 = lz4_flex::block::compress(other);
        assert_eq!(verdict(Codec::Lz4, &lz4, &raw), Err(Code::Codec));
    }
}

#[test]
fn f12_other_bytes_of_the_right_size_are_refused() {
    let raw = two_pages();
    let mut other = raw.clone();
    other[5000] ^= 1;
    assert_eq!(verdict(Codec::Raw, &other, &raw), Err(Code::Codec));
    assert_eq!(
        verdict(Codec::Zstd, &zstd_of(&other), &raw),
        Err(Code::Codec)
    );
    let lz4 = lz4_flex::block::compress(&other);
    assert_eq!(verdict(Codec::Lz4, &lz4, &raw), Err(Code::Codec));
}

#[test]
fn f13_a_zstd_bomb_is_refused_before_it_is_unpacked() {
    let quarter_of_a_gigabyte = {
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
        encoder.set_pledged_src_size(Some(1 << 28)).unwrap();
        encoder.window_log(27).unwrap();
        std::io::copy(
            &mut std::io::Read::take(std::io::repeat(0), 1 << 28),
            &mut encoder,
        )
        .unwrap();
        encoder.finish().unwrap()
    };
    assert!(
        quarter_of_a_gigabyte.len() < 65536,
        "small enough for a chunk"
    );
    let raw = vec![0; 16 * PAGE];
    let mut result = Ok(Vec::new());
    let begun = processor_time();
    let used = allocation_counter::measure(|| {
        result = verdict(Codec::Zstd, &quarter_of_a_gigabyte, &raw);
    });
    assert_eq!(result, Err(Code::Codec));
    assert!(used.bytes_max < 8 << 20, "{used:?}");
    let took = processor_time() - begun;
    assert!(took <= Duration::from_millis(50), "{took:?}");
}

/// Processor time used by this thread, which other load on the machine does not affect.
fn processor_time() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(used).unwrap()
}

#[test]
fn f13_a_bomb_that_lies_about_its_size_stops_at_the_buffer() {
    // The blocks of a whole large frame behind a header that declares 64 KiB.
    let bomb = zstd_of(&vec![7; 1 << 20]);
    let honest = zstd_of(&vec![7; 16 * PAGE]);
    let header_bytes = |frame: &[u8]| {
        let descriptor = frame[4];
        let size_bytes = [1, 2, 4, 8][usize::from(descriptor >> 6)];
        5 + usize::from(descriptor & 0x20 == 0) + size_bytes
    };
    let mut lying = honest[..header_bytes(&honest)].to_vec();
    lying.extend_from_slice(&bomb[header_bytes(&bomb)..]);
    assert_eq!(
        verdict(Codec::Zstd, &lying, &vec![7; 16 * PAGE]),
        Err(Code::Codec)
    );
}

#[test]
fn f13_a_window_above_the_cap_is_refused() {
    let raw = two_pages();
    let framed = |window_log: u8| {
        // Not a single segment: a descriptor with an 8-byte size, a window byte, the size, one raw
        // block.
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0b1100_0000, (window_log - 10) << 3];
        frame.extend_from_slice(&(raw.len() as u64).to_le_bytes());
        let block = u32::try_from(raw.len()).unwrap() << 3 | 1;
        frame.extend_from_slice(&block.to_le_bytes()[..3]);
        frame.extend_from_slice(&raw);
        frame
    };
    assert_eq!(
        verdict(Codec::Zstd, &framed(20), &raw),
        Ok(raw.clone()),
        "the test's frame is one"
    );
    for window_log in [22, 27, 31] {
        assert_eq!(
            verdict(Codec::Zstd, &framed(window_log), &raw),
            Err(Code::Codec)
        );
    }
}

#[test]
fn f14_skippable_concatenated_dictionary_and_sizeless_frames_are_refused() {
    let raw = two_pages();
    let good = zstd_of(&raw);
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4][..], &good].concat();
    let halves = [zstd_of(&raw[..PAGE]), zstd_of(&raw[PAGE..])].concat();
    let followed = [&good[..], &zstd_of(&[])].concat();
    let trailed = [&good[..], &[0]].concat();
    let sizeless = {
        let mut compressor = zstd::bulk::Compressor::new(3).unwrap();
        compressor.include_contentsize(false).unwrap();
        compressor.compress(&raw).unwrap()
    };
    let mut with_dictionary_id = good.clone();
    with_dictionary_id[4] |= 1;
    with_dictionary_id.insert(5, 9);
    let mut reserved = good.clone();
    reserved[4] |= 8;
    let cut = good[..good.len() - 1].to_vec();
    for (name, payload) in [
        ("skippable", skippable),
        ("two halves", halves),
        ("an empty frame behind", followed),
        ("a byte behind", trailed),
        ("no size", sizeless),
        ("a dictionary", with_dictionary_id),
        ("reserved bit", reserved),
        ("cut", cut),
        ("only a magic", good[..4].to_vec()),
    ] {
        assert_eq!(
            verdict(Codec::Zstd, &payload, &raw),
            Err(Code::Codec),
            "{name}"
        );
    }
}

#[test]
fn f15_lz4_offsets_outside_the_output_are_refused_and_never_show_old_bytes() {
    let raw = two_pages();
    // One literal, then a match that begins 1000 bytes before the start of the output.
    let before_the_start = [0x1f, b'x', 0xe8, 0x03, 0xff, 0xff, 0x00];
    // A match with offset zero, which leaked old memory in RUSTSEC-2026-0041.
    let offset_zero = [0x1f, b'x', 0x00, 0x00, 0xff, 0xff, 0x00];
    let endless_literals = [0xf0, 0xff, 0xff, 0xff];
    for payload in [&before_the_start[..], &offset_zero, &endless_literals, &[0]] {
        assert_eq!(
            verdict(Codec::Lz4, payload, &raw),
            Err(Code::Codec),
            "{payload:02x?}"
        );
    }
}

#[test]
fn f15_a_short_lz4_block_does_not_show_what_the_last_chunk_left() {
    let raw = two_pages();
    let geometry = Geometry::new(PAGE as u32, 100).unwrap();
    let mut decoder = Decoder::new().unwrap();
    let mut frame = Vec::new();
    let header = |raw: &[u8]| ChunkHeader {
        codec: Codec::Lz4,
        runs: vec![run(0, 2)],
        digest: digest_of(raw),
        ..ChunkHeader::default()
    };
    header(&raw).encode(&lz4_flex::block::compress(&raw), &mut frame);
    assert!(decoder.decode(&frame[HEADER_BYTES..], &[geometry]).is_ok());
    // Only the first half, with the digest that the whole would have if the buffer still held the
    // rest.
    frame.clear();
    header(&raw).encode(&lz4_flex::block::compress(&raw[..PAGE]), &mut frame);
    let fault = decoder
        .decode(&frame[HEADER_BYTES..], &[geometry])
        .expect_err("half");
    assert_eq!(fault.code, Code::Codec);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_pages_arrive(
        kinds in prop::collection::vec(0_u8..3, 1..200), level in 0..Level::ALL.len()
    ) {
        check_transfer(Pages::new(&kinds), 2, CodecPolicy::Fixed(Level::ALL[level]));
    }

    #[test]
    fn f04_a_damaged_payload_is_refused_or_unpacks_to_the_very_bytes(
        codec in prop::sample::select(&[Codec::Lz4, Codec::Zstd][..]),
        at in any::<prop::sample::Index>(), flip in 1_u8..
    ) {
        let raw = two_pages();
        let mut payload = match codec {
            Codec::Lz4 => lz4_flex::block::compress(&raw),
            _ => zstd_of(&raw),
        };
        let at = at.index(payload.len());
        payload[at] ^= flip;
        if let Ok(unpacked) = verdict(codec, &payload, &raw) {
            prop_assert_eq!(unpacked, raw);
        }
    }

    #[test]
    fn any_bytes_as_a_chunk_never_panic(body in prop::collection::vec(any::<u8>(), 0..300)) {
        let geometry = Geometry::new(PAGE as u32, 100).unwrap();
        drop(Decoder::new().unwrap().decode(&body, &[geometry]));
    }
}
