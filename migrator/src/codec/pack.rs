//! The encoder of one thread: reads blocks, splits off zeros, hashes and packs the rest.

use lz4_flex::block::{CompressTable, compress_into_with_table};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::message::{Codec, ZERO_CHUNK_DIGEST, ZERO_RUN_BLOCKS_MAX, digest_of};
use towpath_protocol::space::BlockRun;

use super::policy::Level;
use super::{BlockReader, EncodedChunk, FRAME_BUFFER_BYTES, Job, PAYLOAD_AT, RAW_BYTES_MAX, Runs};

/// Comparing with this array compiles to `memcmp`, the fastest check for zeros without unsafe code.
static ZEROS: [u8; RAW_BYTES_MAX] = [0; RAW_BYTES_MAX];

/// Number of windows that the entropy probe samples, spread over the chunk.
const PROBE_WINDOWS: usize = 16;

/// Bytes per window. 1 KiB in all distinguishes 7.7 bits per byte from 8 by 14 standard deviations,
/// and costs a hundredth of packing the chunk.
const PROBE_WINDOW_BYTES: usize = 64;

/// A packed chunk must be smaller than the raw one by one part in this many, else it is sent raw:
/// unpacking would cost the target more than the saved bytes are worth.
const SAVING_MIN_DIVISOR: usize = 16;

/// The contexts and the buffer of one thread.
pub struct Encoder {
    /// Blocks are read to the position of a raw chunk's payload. If they do not shrink, this buffer
    /// is swapped with the chunk's, so that they are never copied.
    buffer: Box<[u8]>,
    zstd: zstd::bulk::Compressor<'static>,
    zstd_level: i32,
    lz4: CompressTable,
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder").finish_non_exhaustive()
    }
}

impl Encoder {
    /// An encoder.
    ///
    /// # Errors
    ///
    /// `E_IO` if zstd cannot allocate its memory.
    pub fn new() -> Result<Self, Fault> {
        let zstd_level = 1;
        let zstd =
            zstd::bulk::Compressor::new(zstd_level).map_err(|error| out_of_memory(&error))?;
        Ok(Self {
            buffer: vec![0; FRAME_BUFFER_BYTES].into_boxed_slice(),
            zstd,
            zstd_level,
            lz4: CompressTable::large(),
        })
    }

    /// Packs a job at once and passes the one or two resulting chunks to `take`, numbered 0. For
    /// the demand lane, whose chunks are outside the bulk lane's sequence.
    ///
    /// # Errors
    ///
    /// The faults of `reader` and `take`.
    pub fn encode_urgent(
        &mut self,
        reader: &dyn BlockReader,
        job: &Job,
        level: Level,
        chunk: &mut EncodedChunk,
        mut take: impl FnMut(&EncodedChunk) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let zeros = self.encode(reader, job, level, chunk)?;
        if chunk.frame_bytes > 0 {
            chunk.seal(0);
            take(chunk)?;
        }
        if !zeros.is_empty() {
            write_zeros(job, &zeros, chunk);
            chunk.seal(0);
            take(chunk)?;
        }
        Ok(())
    }

    /// Packs a job. Returns its zero blocks and leaves the chunk of the others in `chunk`, not yet
    /// numbered; `chunk` is empty if all blocks are zero.
    pub(super) fn encode(
        &mut self,
        reader: &dyn BlockReader,
        job: &Job,
        level: Level,
        chunk: &mut EncodedChunk,
    ) -> Result<Runs, Fault> {
        if job.is_zero {
            chunk.frame_bytes = 0;
            chunk.begin(job, &[]);
            return Ok(job.runs);
        }
        let block_bytes = job.block_bytes as usize;
        let raw_bytes = job.block_count() * block_bytes;
        reader.read_runs(job.space, &job.runs, &mut self.raw()[..raw_bytes])?;
        let (zeros, kept) = self.split(job);
        chunk.frame_bytes = 0;
        chunk.begin(job, &kept);
        if !kept.is_empty() {
            let raw_bytes = raw_bytes - block_count(&zeros) * block_bytes;
            self.pack(raw_bytes, level, chunk);
        }
        Ok(zeros)
    }

    /// The part of the buffer that blocks are read to.
    fn raw(&mut self) -> &mut [u8] {
        &mut self.buffer[PAYLOAD_AT..]
    }

    /// Separates zero blocks from the others and closes the gaps between the others.
    fn split(&mut self, job: &Job) -> (Runs, Runs) {
        let block_bytes = job.block_bytes as usize;
        let raw = self.raw();
        let (mut zeros, mut kept) = (Runs::EMPTY, Runs::EMPTY);
        let (mut from, mut to) = (0, 0);
        for run in job.runs.iter() {
            for block in run.start..run.end() {
                let single = BlockRun {
                    start: block,
                    count: 1,
                };
                let bytes = &raw[from..from + block_bytes];
                let is_zero = bytes[0] == 0 && bytes == &ZEROS[..block_bytes];
                let runs = if is_zero { &mut zeros } else { &mut kept };
                let fits = runs.push(single, u32::MAX);
                assert!(fits, "a job has no more blocks than a chunk has runs");
                if !is_zero {
                    if from != to {
                        raw.copy_within(from..from + block_bytes, to);
                    }
                    to += block_bytes;
                }
                from += block_bytes;
            }
        }
        (zeros, kept)
    }

    fn pack(&mut self, raw_bytes: usize, level: Level, chunk: &mut EncodedChunk) {
        let raw = &self.buffer[PAYLOAD_AT..PAYLOAD_AT + raw_bytes];
        chunk.header.digest = digest_of(raw);
        let payload = &mut chunk.buffer[PAYLOAD_AT..];
        let payload_bytes_max = raw_bytes - raw_bytes / SAVING_MIN_DIVISOR;
        let packed = match level.zstd_level() {
            _ if level == Level::Raw || looks_random(raw) => None,
            None => compress_into_with_table(raw, payload, &mut self.lz4)
                .ok()
                .filter(|bytes| *bytes <= payload_bytes_max)
                .map(|bytes| (Codec::Lz4, bytes)),
            Some(level) => {
                if self.zstd_level != level {
                    let set = self.zstd.set_compression_level(level);
                    set.expect("every level of the ladder is one of zstd's");
                    self.zstd_level = level;
                }
                // The buffer has room for the worst case: a zstd context that runs out of space is
                // left mid-frame and accepts no other level before it is reset.
                self.zstd
                    .compress_to_buffer(raw, payload)
                    .ok()
                    .filter(|bytes| *bytes <= payload_bytes_max)
                    .map(|bytes| (Codec::Zstd, bytes))
            }
        };
        let (codec, payload_bytes) = packed.unwrap_or_else(|| {
            std::mem::swap(&mut self.buffer, &mut chunk.buffer);
            (Codec::Raw, raw_bytes)
        });
        chunk.header.codec = codec;
        chunk.finish(payload_bytes);
    }
}

/// Makes `chunk` the chunk of a job's zero blocks.
pub(super) fn write_zeros(job: &Job, zeros: &Runs, chunk: &mut EncodedChunk) {
    assert!(
        zeros.iter().all(|run| run.count <= ZERO_RUN_BLOCKS_MAX),
        "whoever joined the runs kept them below the cap"
    );
    chunk.begin(job, zeros);
    chunk.header.codec = Codec::Zero;
    chunk.header.digest = ZERO_CHUNK_DIGEST;
    chunk.finish(0);
}

/// Whether packing is useless: the sampled bytes are distributed as evenly as random ones, and no
/// two windows begin alike (as copies of one page would).
fn looks_random(raw: &[u8]) -> bool {
    let stride = raw.len() / PROBE_WINDOWS;
    let mut counts = [0_u32; 256];
    let mut beginnings = [[0_u8; 16]; PROBE_WINDOWS];
    for (index, beginning) in beginnings.iter_mut().enumerate() {
        let window = &raw[index * stride..][..PROBE_WINDOW_BYTES];
        beginning.copy_from_slice(&window[..16]);
        for byte in window {
            counts[usize::from(*byte)] += 1;
        }
    }
    let squares: u32 = counts.iter().map(|count| count * count).sum();
    // For n uniformly random bytes, the squares of the counts sum to n + n(n-1)/256 on average.
    const N: u32 = 1024;
    const _: () = assert!(N as usize == PROBE_WINDOWS * PROBE_WINDOW_BYTES);
    let by_chance = N + N * (N - 1) / 256;
    beginnings.sort_unstable();
    squares < by_chance + by_chance / 4 && beginnings.windows(2).all(|pair| pair[0] != pair[1])
}

fn block_count(runs: &Runs) -> usize {
    runs.iter().map(|run| run.count as usize).sum()
}

fn out_of_memory(error: &std::io::Error) -> Fault {
    Fault::new(Code::Io, format!("zstd could not be set up: {error}"))
}
