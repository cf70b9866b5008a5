//! Packs blocks into chunks and unpacks them: zero, raw, lz4 or zstd, with an AEGIS digest.
//!
//! ```text
//!            submit                 one of N threads                        next_chunk
//!  planner ─────────► [job] ──► read → split off zeros → hash → pack ──► [slot] ──► number, seal ──► lane
//!                      queue                                              in order
//! ```
//!
//! A job names up to 64 KiB of blocks. The encoder splits off its zero blocks, because only the
//! encoder has the bytes at hand. Zero blocks become runs of a chunk of zeros, and neighbouring
//! jobs of zeros share one such chunk, so that an empty gigabyte costs 64 KiB or less. The other
//! blocks become one chunk. Sequence numbers are assigned last, when it is known how many chunks
//! there are.
//!
//! Nothing is allocated per chunk: every thread keeps its contexts, and the buffers are recycled.

mod pack;
mod policy;
mod pool;
mod unpack;

use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::message::{
    CHUNK_HEAD_BYTES_MAX, CHUNK_RAW_BYTES_MAX, CHUNK_RUN_COUNT_MAX, ChunkHeader,
    ZERO_RUN_BLOCKS_MAX,
};
use towpath_protocol::space::{BlockRun, SpaceId};

pub use pack::Encoder;
pub use policy::{Chooser, CodecPolicy, Level};
pub use pool::{CodecStats, EncoderPool};
pub use unpack::{DecodedChunk, Decoder};

/// Most raw bytes in a job and in a chunk.
const RAW_BYTES_MAX: usize = CHUNK_RAW_BYTES_MAX as usize;

/// Where a chunk's payload begins in its buffer. The head, whose length is known last, ends there.
const PAYLOAD_AT: usize = CHUNK_HEAD_BYTES_MAX;

/// Bytes of a buffer for one frame: the longest head, and the space that lz4 requires.
const FRAME_BUFFER_BYTES: usize =
    PAYLOAD_AT + lz4_flex::block::get_maximum_output_size(RAW_BYTES_MAX);

/// The source of block contents for an encoder. Called on the codec's threads.
pub trait BlockReader: Send + Sync {
    /// Copies the blocks of `runs`, concatenated, into `out`, which has exactly their size.
    ///
    /// # Errors
    ///
    /// If the blocks cannot be read. The pipeline then stops until the job is skipped or all are
    /// cancelled.
    fn read_runs(&self, space: SpaceId, runs: &[BlockRun], out: &mut [u8]) -> Result<(), Fault>;
}

/// Up to [`CHUNK_RUN_COUNT_MAX`] rising, disjoint runs, stored without heap memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Runs {
    runs: [BlockRun; CHUNK_RUN_COUNT_MAX],
    count: usize,
}

impl Runs {
    /// No runs.
    pub const EMPTY: Self = Self {
        runs: [BlockRun { start: 0, count: 0 }; CHUNK_RUN_COUNT_MAX],
        count: 0,
    };

    /// Appends a run, merging it with the last one if the two touch. Returns `false` and changes
    /// nothing if the run is empty, is not behind the others, would exceed the number of runs, or
    /// would make a run of more than `run_blocks_max` blocks.
    pub fn push(&mut self, run: BlockRun, run_blocks_max: u32) -> bool {
        if run.count == 0 || run.count > run_blocks_max {
            return false;
        }
        if let Some(last) = self.runs[..self.count].last_mut() {
            let joined = last.count.saturating_add(run.count);
            if last.end() == run.start && joined <= run_blocks_max {
                last.count = joined;
                return true;
            }
            if run.start < last.end() {
                return false;
            }
        }
        let Some(free) = self.runs.get_mut(self.count) else {
            return false;
        };
        *free = run;
        self.count += 1;
        true
    }
}

impl std::ops::Deref for Runs {
    type Target = [BlockRun];

    fn deref(&self) -> &[BlockRun] {
        &self.runs[..self.count]
    }
}

/// Blocks to pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Job {
    space: SpaceId,
    block_bytes: u32,
    generation: u32,
    runs: Runs,
    is_zero: bool,
}

impl Job {
    /// A job for the blocks of `runs`.
    ///
    /// # Errors
    ///
    /// `E_STATE` if there are no blocks, more than 64 KiB of them, or runs that are not rising and
    /// disjoint: a bug in the planner.
    pub fn new(
        space: SpaceId,
        block_bytes: u32,
        generation: u32,
        runs: &[BlockRun],
    ) -> Result<Self, Fault> {
        let mut job = Self {
            space,
            block_bytes,
            generation,
            runs: Runs::EMPTY,
            is_zero: false,
        };
        let is_plain = runs.iter().all(|run| job.runs.push(*run, u32::MAX));
        let block_count = towpath_protocol::space::block_count_of(runs);
        let bytes = block_count.saturating_mul(u64::from(block_bytes));
        if !is_plain || bytes == 0 || bytes > u64::from(CHUNK_RAW_BYTES_MAX) {
            let count = runs.len();
            return Err(Fault::new(
                Code::State,
                format!("{count} runs of {bytes} bytes cannot be one chunk"),
            ));
        }
        Ok(job)
    }

    /// A job for blocks known to be zero because they were never touched. Nothing is read, and runs
    /// may be as long as a chunk of zeros allows.
    ///
    /// # Errors
    ///
    /// `E_STATE` if there are no blocks, or runs that are not rising and disjoint, or too long.
    pub fn zeros(
        space: SpaceId,
        block_bytes: u32,
        generation: u32,
        runs: &[BlockRun],
    ) -> Result<Self, Fault> {
        let mut job = Self {
            space,
            block_bytes,
            generation,
            runs: Runs::EMPTY,
            is_zero: true,
        };
        let is_plain = runs
            .iter()
            .all(|run| job.runs.push(*run, ZERO_RUN_BLOCKS_MAX));
        if !is_plain || runs.is_empty() {
            let count = runs.len();
            let detail = format!("{count} runs cannot be one chunk of zeros");
            return Err(Fault::new(Code::State, detail));
        }
        Ok(job)
    }

    /// The space.
    #[must_use]
    pub const fn space(&self) -> SpaceId {
        self.space
    }

    /// The blocks.
    #[must_use]
    pub fn runs(&self) -> &[BlockRun] {
        &self.runs
    }

    fn block_count(&self) -> usize {
        self.runs.iter().map(|run| run.count as usize).sum()
    }
}

/// A chunk as a frame, in a reusable buffer.
#[derive(Debug)]
pub struct EncodedChunk {
    header: ChunkHeader,
    buffer: Box<[u8]>,
    frame_bytes: usize,
    raw_bytes: u64,
}

impl EncodedChunk {
    /// An empty buffer.
    #[must_use]
    pub fn new() -> Self {
        let mut header = ChunkHeader::default();
        header.runs.reserve_exact(CHUNK_RUN_COUNT_MAX);
        Self {
            header,
            buffer: vec![0; FRAME_BUFFER_BYTES].into_boxed_slice(),
            frame_bytes: 0,
            raw_bytes: 0,
        }
    }

    /// The chunk's header, for the transcript and the statistics.
    #[must_use]
    pub const fn header(&self) -> &ChunkHeader {
        &self.header
    }

    /// The whole frame, ready for the lane.
    #[must_use]
    pub fn frame(&self) -> &[u8] {
        &self.buffer[self.frame_range()]
    }

    const fn frame_range(&self) -> std::ops::Range<usize> {
        // The payload is preceded by the head only.
        let start = PAYLOAD_AT - ChunkHeader::head_bytes(self.header.runs.len());
        start..start + self.frame_bytes
    }

    /// Bytes of the blocks that the chunk stands for.
    #[must_use]
    pub const fn raw_bytes(&self) -> u64 {
        self.raw_bytes
    }

    fn begin(&mut self, job: &Job, runs: &[BlockRun]) {
        self.header.space = job.space;
        self.header.generation = job.generation;
        self.header.runs.clear();
        self.header.runs.extend_from_slice(runs);
        self.raw_bytes = self.header.raw_bytes(job.block_bytes);
    }

    /// Writes the head in front of a payload that is already in place.
    fn finish(&mut self, payload_bytes: usize) {
        self.frame_bytes = ChunkHeader::head_bytes(self.header.runs.len()) + payload_bytes;
        let range = self.frame_range();
        self.header.write_head(&mut self.buffer[range]);
    }

    fn seal(&mut self, sequence: u64) {
        self.header.sequence = sequence;
        let range = self.frame_range();
        let frame = &mut self.buffer[range];
        towpath_protocol::message::seal_chunk(sequence, frame);
    }
}

impl Default for EncodedChunk {
    fn default() -> Self {
        Self::new()
    }
}
