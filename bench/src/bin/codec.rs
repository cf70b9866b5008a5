//! Speed of packing and unpacking chunks, compared with plain zstd and lz4 on the same 64 KiB
//! pieces.
//!
//! Our codec copies the blocks out of the guest, looks for zeros, hashes, packs, and writes and
//! checks a frame; the plain library only packs. Both use one thread and alternate, so that other
//! load on the machine affects both; the medians of the rounds are compared.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::io::Read;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lz4_flex::block::CompressTable;
use serde::Serialize;
use towpath_bench::goals::Goals;
use towpath_bench::program::finish;
use towpath_migrator::codec::{
    BlockReader, CodecPolicy, Decoder, EncodedChunk, Encoder, EncoderPool, Job, Level,
};
use towpath_protocol::fault::{Code, Fault, shown};
use towpath_protocol::frame::HEADER_BYTES;
use towpath_protocol::message::digest_of;
use towpath_protocol::space::{BlockRun, Geometry, MEMORY, MEMORY_BLOCK_BYTES, SpaceId};

const CHUNK_BYTES: usize = 64 * 1024;
const CHUNK_BLOCKS: u32 = 16;

/// The least acceptable speed, as a share of the plain library's.
const GOAL: f64 = 0.9;

/// Chunks packed by one side before the other takes its turn: 1 MiB.
const TURN_CHUNKS: usize = 16;

/// Longest time for one chunk: a stuck pipeline ends the bench instead of hanging it.
const CHUNK_WAIT_MAX: Duration = Duration::from_secs(10);

/// Where to find real machine code; if there is none, the bench's own program is used.
const ELF_FOLDERS: [&str; 2] = ["/usr/bin", "/usr/lib/x86_64-linux-gnu"];

struct Size {
    corpus_bytes: usize,
    round_count: usize,
}

#[derive(Serialize)]
struct Report {
    schema: &'static str,
    chunk_bytes: usize,
    round_count: usize,
    corpora: Vec<Corpus>,
}

#[derive(Serialize)]
struct Corpus {
    corpus: &'static str,
    corpus_bytes: usize,
    levels: Vec<LevelReport>,
}

/// Speeds are in raw megabytes (10^6 bytes) per second, medians of the rounds.
#[derive(Serialize)]
struct LevelReport {
    level: &'static str,
    wire_per_raw: f64,
    hash_mb_s: f64,
    encode_mb_s: f64,
    plain_encode_mb_s: f64,
    encode_ratio: f64,
    /// Relative to the plain library followed by hashing the same bytes.
    encode_ratio_hashed: f64,
    decode_mb_s: f64,
    plain_decode_mb_s: f64,
    decode_ratio: f64,
    /// Relative to the plain library followed by hashing the same bytes.
    decode_ratio_hashed: f64,
    /// The pool, with two threads.
    pool_mb_s: f64,
}

fn main() -> ExitCode {
    let is_smoke = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("--smoke") => true,
        Some(other) => {
            let shown = shown(other);
            let why = format!("{shown:?} is not an option; there is only --smoke");
            return finish(Err(why.into()));
        }
    };
    let size = if is_smoke {
        Size {
            corpus_bytes: 1 << 20,
            round_count: 1,
        }
    } else {
        Size {
            corpus_bytes: 24 << 20,
            round_count: 7,
        }
    };
    let judge = |report: Report| Goals::judge(&report, (!is_smoke).then(|| report.goals()));
    finish(report(&size).map_err(Into::into).and_then(judge))
}

impl Report {
    fn goals(&self) -> Goals {
        let mut goals = Goals::default();
        for corpus in &self.corpora {
            // Raw blocks are only copied: there is no library to compare with.
            let packed = corpus.levels.iter().filter(|one| one.level != "raw");
            for one in packed {
                let what = format!("{}, {}", corpus.corpus, one.level);
                let (packed, unpacked) = (one.encode_ratio, one.decode_ratio);
                goals.at_least(format!("{what}, packing"), packed, GOAL);
                goals.at_least(format!("{what}, unpacking"), unpacked, GOAL);
            }
        }
        goals
    }
}

fn report(size: &Size) -> Result<Report, Fault> {
    let corpora = [("elf", elf_bytes(size)?), ("random", random_bytes(size))];
    let mut report = Report {
        schema: "towpath.v1.bench.codec",
        chunk_bytes: CHUNK_BYTES,
        round_count: size.round_count,
        corpora: Vec::new(),
    };
    for (corpus, bytes) in corpora {
        let corpus_bytes = bytes.len();
        let memory = Arc::new(Memory(bytes));
        let levels = Level::ALL.map(|level| measure(&memory, level, size.round_count));
        report.corpora.push(Corpus {
            corpus,
            corpus_bytes,
            levels: levels.into_iter().collect::<Result<_, _>>()?,
        });
    }
    Ok(report)
}

fn measure(memory: &Arc<Memory>, level: Level, round_count: usize) -> Result<LevelReport, Fault> {
    let mut ours = Ours::new(Arc::clone(memory), level)?;
    let mut plain = Plain::new(level)?;
    let mut samples = Samples::default();
    let mut wire_bytes = 0;
    // One more round than is counted: the first warms up caches, contexts and the processor's
    // clock.
    for round in 0..=round_count {
        let jobs = memory.jobs()?;
        let mut turn = Turn {
            ours: &mut ours,
            plain: &mut plain,
            samples: &mut samples,
            // The first side reads the bytes from memory, the second from the cache.
            is_ours_first: round % 2 == 0,
            is_counted: round > 0,
        };
        wire_bytes = 0;
        let pieces = memory.0.chunks(TURN_CHUNKS * CHUNK_BYTES);
        for (jobs, bytes) in jobs.chunks(TURN_CHUNKS).zip(pieces) {
            wire_bytes += turn.run(jobs, bytes)?;
            turn.is_ours_first ^= true;
        }
    }
    let pool_mb_s = measure_pool(memory, level)?;
    Ok(samples.report(level, wire_bytes, memory.0.len(), pool_mb_s))
}

/// A few milliseconds for each side, so that other load on the machine affects both equally.
struct Turn<'a> {
    ours: &'a mut Ours,
    plain: &'a mut Plain,
    samples: &'a mut Samples,
    is_ours_first: bool,
    is_counted: bool,
}

impl Turn<'_> {
    /// Packs and unpacks a piece of the corpus with both; returns our bytes on the wire.
    fn run(&mut self, jobs: &[Job], bytes: &[u8]) -> Result<usize, Fault> {
        let (is_counted, raw_bytes) = (self.is_counted, bytes.len());
        let mut note = |what, begun: Duration| {
            let spent = thread_time().saturating_sub(begun).as_secs_f64();
            if is_counted && spent > 0.0 {
                self.samples.add(what, megabytes(raw_bytes) / spent);
            }
        };
        for is_ours in [self.is_ours_first, !self.is_ours_first] {
            let begun = thread_time();
            if is_ours {
                self.ours.encode_all(jobs, |_| {})?;
                note("encode", begun);
            } else {
                self.plain.encode_all(bytes, |_| {})?;
                note("plain encode", begun);
            }
        }
        let begun = thread_time();
        for chunk in bytes.chunks(CHUNK_BYTES) {
            black_box(digest_of(chunk));
        }
        note("hash", begun);
        let (mut frames, mut packed) = (Vec::new(), Vec::new());
        self.ours
            .encode_all(jobs, |frame| frames.push(frame.to_vec()))?;
        let keep = |bytes: &[u8]| packed.push(bytes.to_vec());
        self.plain.encode_all(bytes, keep)?;
        for is_ours in [self.is_ours_first, !self.is_ours_first] {
            let begun = thread_time();
            if is_ours {
                frames
                    .iter()
                    .try_for_each(|frame| self.ours.decode(frame))?;
                note("decode", begun);
            } else {
                packed
                    .iter()
                    .try_for_each(|bytes| self.plain.decode(bytes))?;
                note("plain decode", begun);
            }
        }
        Ok(frames.iter().map(Vec::len).sum())
    }
}

/// Processor time of this thread, which excludes time taken by other programs.
fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// Speeds, keyed by the operation.
#[derive(Default)]
struct Samples(BTreeMap<&'static str, Vec<f64>>);

impl Samples {
    fn add(&mut self, what: &'static str, megabytes_per_s: f64) {
        self.0.entry(what).or_default().push(megabytes_per_s);
    }

    fn median(&mut self, what: &str) -> f64 {
        let Some(speeds) = self.0.get_mut(what) else {
            return f64::NAN;
        };
        speeds.sort_by(f64::total_cmp);
        speeds[speeds.len() / 2]
    }

    fn report(
        &mut self,
        level: Level,
        wire_bytes: usize,
        raw_bytes: usize,
        pool_mb_s: f64,
    ) -> LevelReport {
        let mut speed = |what| self.median(what);
        let (encode_mb_s, plain_encode_mb_s) = (speed("encode"), speed("plain encode"));
        let (decode_mb_s, plain_decode_mb_s) = (speed("decode"), speed("plain decode"));
        let hash_mb_s = speed("hash");
        let hashed = |plain: f64| 1.0 / (1.0 / plain + 1.0 / hash_mb_s);
        LevelReport {
            level: level.as_str(),
            wire_per_raw: megabytes(wire_bytes) / megabytes(raw_bytes),
            hash_mb_s,
            encode_mb_s,
            plain_encode_mb_s,
            encode_ratio: encode_mb_s / plain_encode_mb_s,
            encode_ratio_hashed: encode_mb_s / hashed(plain_encode_mb_s),
            decode_mb_s,
            plain_decode_mb_s,
            decode_ratio: decode_mb_s / plain_decode_mb_s,
            decode_ratio_hashed: decode_mb_s / hashed(plain_decode_mb_s),
            pool_mb_s,
        }
    }
}

/// Our encoder and decoder, running on this thread.
struct Ours {
    memory: Arc<Memory>,
    geometry: Geometry,
    level: Level,
    encoder: Encoder,
    decoder: Decoder,
    chunk: EncodedChunk,
}

impl Ours {
    fn new(memory: Arc<Memory>, level: Level) -> Result<Self, Fault> {
        Ok(Self {
            geometry: memory.geometry()?,
            memory,
            level,
            encoder: Encoder::new()?,
            decoder: Decoder::new()?,
            chunk: EncodedChunk::new(),
        })
    }

    fn encode_all(&mut self, jobs: &[Job], mut take: impl FnMut(&[u8])) -> Result<(), Fault> {
        for job in jobs {
            let reader = self.memory.as_ref();
            let chunk = &mut self.chunk;
            self.encoder
                .encode_urgent(reader, job, self.level, chunk, |chunk| {
                    take(black_box(chunk.frame()));
                    Ok(())
                })?;
        }
        Ok(())
    }

    fn decode(&mut self, frame: &[u8]) -> Result<(), Fault> {
        let chunk = self
            .decoder
            .decode(&frame[HEADER_BYTES..], &[self.geometry])?;
        black_box(chunk.raw);
        Ok(())
    }
}

/// Packs the whole corpus as a migration does, with two threads of the pool.
fn measure_pool(memory: &Arc<Memory>, level: Level) -> Result<f64, Fault> {
    let policy = CodecPolicy::Fixed(level);
    let pool = EncoderPool::new(Arc::clone(memory) as Arc<dyn BlockReader>, 2, policy, 1)?;
    let mut chunk = EncodedChunk::new();
    let mut jobs = memory.jobs()?.into_iter().peekable();
    let begun = Instant::now();
    while jobs.peek().is_some() || !pool.is_idle() {
        while let Some(job) = jobs.next_if(|_| pool.room() > 0) {
            if !pool.submit(job, CHUNK_WAIT_MAX) {
                return Err(Fault::new(Code::Stalled, "the pool takes no more jobs"));
            }
        }
        if !pool.next_chunk(&mut chunk, CHUNK_WAIT_MAX)? {
            return Err(Fault::new(Code::Stalled, "the pool brings no more chunks"));
        }
        black_box(chunk.frame());
    }
    Ok(megabytes(memory.0.len()) / begun.elapsed().as_secs_f64())
}

/// The libraries alone, with their contexts reused as a well-written program would.
struct Plain {
    level: Level,
    packed: Vec<u8>,
    raw: Vec<u8>,
    compressor: zstd::bulk::Compressor<'static>,
    decompressor: zstd::bulk::Decompressor<'static>,
    table: CompressTable,
}

impl Plain {
    fn new(level: Level) -> Result<Self, Fault> {
        let setup = |error| Fault::new(Code::Io, format!("zstd: {error}"));
        let number = level.zstd_level().unwrap_or(1);
        Ok(Self {
            level,
            packed: vec![0; lz4_flex::block::get_maximum_output_size(CHUNK_BYTES)],
            raw: vec![0; CHUNK_BYTES],
            compressor: zstd::bulk::Compressor::new(number).map_err(setup)?,
            decompressor: zstd::bulk::Decompressor::new().map_err(setup)?,
            table: CompressTable::large(),
        })
    }

    fn encode_all(&mut self, bytes: &[u8], mut take: impl FnMut(&[u8])) -> Result<(), Fault> {
        for chunk in bytes.chunks(CHUNK_BYTES) {
            let count = match self.level {
                Level::Raw => {
                    self.packed[..chunk.len()].copy_from_slice(chunk);
                    chunk.len()
                }
                Level::Lz4 => lz4_flex::block::compress_into_with_table(
                    chunk,
                    &mut self.packed,
                    &mut self.table,
                )
                .map_err(|error| wrong(&error))?,
                _ => self
                    .compressor
                    .compress_to_buffer(chunk, &mut self.packed[..])
                    .map_err(|error| wrong(&error))?,
            };
            take(black_box(&self.packed[..count]));
        }
        Ok(())
    }

    fn decode(&mut self, packed: &[u8]) -> Result<(), Fault> {
        match self.level {
            Level::Raw => self.raw[..packed.len()].copy_from_slice(packed),
            Level::Lz4 => {
                lz4_flex::block::decompress_into(packed, &mut self.raw)
                    .map_err(|error| wrong(&error))?;
            }
            _ => {
                self.decompressor
                    .decompress_to_buffer(packed, &mut self.raw[..])
                    .map_err(|error| wrong(&error))?;
            }
        }
        black_box(&mut self.raw);
        Ok(())
    }
}

fn wrong(error: &dyn std::fmt::Display) -> Fault {
    Fault::new(Code::Codec, format!("the plain codec: {error}"))
}

/// A guest's memory that is fully present.
struct Memory(Vec<u8>);

impl Memory {
    fn geometry(&self) -> Result<Geometry, Fault> {
        Geometry::memory(self.0.len() as u64)
    }

    fn jobs(&self) -> Result<Vec<Job>, Fault> {
        let starts = (0..self.geometry()?.block_count()).step_by(CHUNK_BLOCKS as usize);
        let job = |start| {
            let count = CHUNK_BLOCKS;
            Job::new(MEMORY, MEMORY_BLOCK_BYTES, 1, &[BlockRun { start, count }])
        };
        starts.map(job).collect()
    }
}

impl BlockReader for Memory {
    fn read_runs(&self, _: SpaceId, runs: &[BlockRun], out: &mut [u8]) -> Result<(), Fault> {
        let block_bytes = MEMORY_BLOCK_BYTES as usize;
        let mut rest = out;
        for run in runs {
            let start = usize::try_from(run.start).unwrap_or(usize::MAX) * block_bytes;
            let (now, later) = rest.split_at_mut(run.count as usize * block_bytes);
            now.copy_from_slice(&self.0[start..start + now.len()]);
            rest = later;
        }
        Ok(())
    }
}

/// The beginnings of programs and libraries, in order of their paths.
fn elf_bytes(size: &Size) -> Result<Vec<u8>, Fault> {
    let mut paths = Vec::new();
    for folder in ELF_FOLDERS {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        paths.extend(entries.map(|entry| entry.path()));
    }
    paths.sort();
    paths.extend(std::env::current_exe());
    let file_bytes_max = (size.corpus_bytes / 8) as u64;
    let mut bytes = Vec::with_capacity(size.corpus_bytes);
    for path in paths {
        let begin = bytes.len();
        // Files that cannot be read are skipped.
        if let Ok(file) = std::fs::File::open(path) {
            drop(file.take(file_bytes_max).read_to_end(&mut bytes));
        }
        if !bytes[begin..].starts_with(b"\x7fELF") {
            bytes.truncate(begin);
        }
        if bytes.len() >= size.corpus_bytes {
            bytes.truncate(size.corpus_bytes);
            return Ok(bytes);
        }
    }
    bytes.truncate(bytes.len() / CHUNK_BYTES * CHUNK_BYTES);
    if bytes.is_empty() {
        return Err(Fault::new(
            Code::Io,
            "no program can be read, not even this one",
        ));
    }
    Ok(bytes)
}

fn random_bytes(size: &Size) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(size.corpus_bytes / 8).flatten().collect()
}

#[allow(
    clippy::cast_precision_loss,
    reason = "sizes of a corpus are far below 2^52"
)]
fn megabytes(bytes: usize) -> f64 {
    bytes as f64 / 1e6
}
