//! Packs jobs on many threads and returns the chunks in the order of the jobs.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::message::Codec;
use towpath_protocol::space::{BlockRun, SpaceId};

use super::pack::{Encoder, write_zeros};
use super::policy::{Chooser, CodecPolicy, Level};
use super::{BlockReader, EncodedChunk, Job, Runs};

/// Jobs queued per thread, before and after packing. Enough that no thread waits for the lane's
/// next write, and few enough that the bytes are not stale by the time they are sent (1 MiB for two
/// threads).
const JOBS_PER_THREAD: usize = 8;

/// Most threads: beyond this the lock would dominate.
const THREAD_COUNT_MAX: usize = 64;

/// Most zero blocks joined into one chunk: 64 MiB of memory, so that the target acknowledges
/// regularly and one message never occupies it for long.
const JOINED_ZEROS_MAX: u32 = 1 << 14;

/// A job that takes at least this long justifies waking another thread for the waiting jobs; waking
/// costs some microseconds on both sides. Raw chunks take a few microseconds each, and one thread
/// alone packs them faster.
const WORTH_WAKING: Duration = Duration::from_micros(40);

/// Statistics of an encoder pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CodecStats {
    /// Block bytes of all finished chunks, including zeros.
    pub raw_bytes: u64,
    /// Bytes of their frames.
    pub wire_bytes: u64,
    /// Zero blocks.
    pub zero_blocks: u64,
    /// Finished chunks by [`Codec`]: zero, raw, lz4, zstd.
    pub chunk_counts: [u64; 4],
    /// Number of buffers, fixed when the pool is made.
    pub buffer_count: usize,
    /// How often a buffer was used.
    pub buffer_uses: u64,
}

/// The threads `towpath-codec-0` and so on, with their bounded queue.
#[derive(Debug)]
pub struct EncoderPool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    /// Signalled when there is a job or the pool closes.
    work: Condvar,
    /// Signalled when a caller counted in [`State::waiting`] may have what it waits for.
    moved: Condvar,
    reader: Arc<dyn BlockReader>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

struct State {
    /// Jobs in order of arrival. Those before `started` are being packed or done.
    slots: VecDeque<Slot>,
    started: usize,
    slot_count_max: usize,
    /// Sequence number of the first slot. Threads identify their slot by such a number.
    first_slot: u64,
    /// Threads that are packing.
    busy: usize,
    /// Threads that wait for a job. Notifying nobody would still cost a system call.
    idle: usize,
    /// Callers that wait for a chunk, for room, or for all threads to stop packing.
    waiting: usize,
    free: Vec<EncodedChunk>,
    /// Zero blocks of jobs already taken out that are not in a chunk yet.
    joined: Option<(Job, Runs)>,
    next_sequence: u64,
    policy: CodecPolicy,
    chooser: Chooser,
    stats: CodecStats,
    is_closed: bool,
}

struct Slot {
    job: Job,
    /// Once packed: the job's zero blocks that are not in `joined` yet.
    zeros: Runs,
    progress: Progress,
}

impl Slot {
    const fn new(job: Job) -> Self {
        Self {
            job,
            zeros: Runs::EMPTY,
            progress: Progress::Waiting,
        }
    }
}

enum Progress {
    Waiting,
    Packing,
    Done(EncodedChunk),
    Failed(Fault),
}

impl EncoderPool {
    /// Starts `thread_count` threads that read blocks through `reader`. The first chunk is numbered
    /// `first_sequence`.
    ///
    /// # Errors
    ///
    /// `E_IO` if a thread cannot be started or its memory allocated.
    pub fn new(
        reader: Arc<dyn BlockReader>,
        thread_count: usize,
        policy: CodecPolicy,
        first_sequence: u64,
    ) -> Result<Self, Fault> {
        let thread_count = thread_count.clamp(1, THREAD_COUNT_MAX);
        let slot_count_max = thread_count * JOBS_PER_THREAD;
        let state = State {
            slots: VecDeque::with_capacity(slot_count_max),
            started: 0,
            slot_count_max,
            first_slot: 0,
            busy: 0,
            idle: 0,
            waiting: 0,
            free: (0..slot_count_max).map(|_| EncodedChunk::new()).collect(),
            joined: None,
            next_sequence: first_sequence,
            policy,
            chooser: Chooser::new(thread_count),
            stats: CodecStats {
                buffer_count: slot_count_max,
                ..CodecStats::default()
            },
            is_closed: false,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            work: Condvar::new(),
            moved: Condvar::new(),
            reader,
        });
        let mut pool = Self {
            shared,
            threads: Vec::with_capacity(thread_count),
        };
        for number in 0..thread_count {
            let encoder = Encoder::new()?;
            let shared = Arc::clone(&pool.shared);
            let thread = std::thread::Builder::new()
                .name(format!("towpath-codec-{number}"))
                .spawn(move || shared.work_until_closed(encoder))
                .map_err(|error| Fault::new(Code::Io, format!("no codec thread: {error}")))?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Queues as many jobs as there is room for and returns their number. Sleeping threads are
    /// woken once for all of them.
    #[must_use]
    pub fn submit_all(&self, jobs: impl IntoIterator<Item = Job>) -> usize {
        let mut state = self.shared.lock();
        let room = state.slot_count_max - state.slots.len();
        let before = state.slots.len();
        state
            .slots
            .extend(jobs.into_iter().take(room).map(Slot::new));
        let count = state.slots.len() - before;
        self.shared.wake_thread(state);
        count
    }

    /// Queues a job, waiting for room for at most `wait_max`. Returns `false` if there was none.
    #[must_use]
    pub fn submit(&self, job: Job, wait_max: Duration) -> bool {
        let has_room = |state: &mut State| state.slots.len() < state.slot_count_max;
        let Some(mut state) = self.shared.wait_for(wait_max, has_room) else {
            return false;
        };
        state.slots.push_back(Slot::new(job));
        self.shared.wake_thread(state);
        true
    }

    /// How many jobs fit in without waiting.
    #[must_use]
    pub fn room(&self) -> usize {
        let state = self.shared.lock();
        state.slot_count_max - state.slots.len()
    }

    /// Whether every queued job has come out.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let state = self.shared.lock();
        state.slots.is_empty() && state.joined.is_none()
    }

    /// Moves the next chunk, in the order of the jobs, into `chunk`. Waits at most `wait_max` and
    /// returns `false` if none came.
    ///
    /// # Errors
    ///
    /// The reader's fault for the job whose turn it is. Every call returns it until
    /// [`EncoderPool::skip_unread`] or [`EncoderPool::cancel`].
    pub fn next_chunk(&self, chunk: &mut EncodedChunk, wait_max: Duration) -> Result<bool, Fault> {
        let mut result = Ok(());
        let state = self.shared.wait_for(wait_max, |state| {
            result = Ok(());
            state.take(chunk).unwrap_or_else(|fault| {
                result = Err(fault);
                true
            })
        });
        let Some(mut state) = state else {
            return Ok(false);
        };
        result?;
        state.account(chunk);
        let sequence = state.next_sequence;
        state.next_sequence += 1;
        self.shared.wake_waiting(state);
        chunk.seal(sequence);
        Ok(true)
    }

    /// Drops the job whose turn it is if its blocks could not be read, and returns it. Those behind
    /// it go on.
    #[must_use]
    pub fn skip_unread(&self) -> Option<Job> {
        let mut state = self.shared.lock();
        let slot = state.slots.front()?;
        let job = matches!(slot.progress, Progress::Failed(_)).then_some(slot.job)?;
        state.pop();
        self.shared.wake_waiting(state);
        Some(job)
    }

    /// Drops everything that has not come out and returns its blocks, so that they can be marked
    /// again. On return no thread reads blocks any more, and the pool can be used again.
    #[must_use]
    pub fn cancel(&self) -> Vec<(SpaceId, BlockRun)> {
        let mut state = self.shared.lock();
        let mut unsent = Vec::new();
        if let Some((job, zeros)) = state.joined.take() {
            unsent.extend(zeros.iter().map(|run| (job.space, *run)));
        }
        let slots = std::mem::take(&mut state.slots);
        state.first_slot += slots.len() as u64;
        state.started = 0;
        for slot in slots {
            let space = slot.job.space;
            match slot.progress {
                Progress::Done(chunk) => {
                    unsent.extend(slot.zeros.iter().map(|run| (space, *run)));
                    unsent.extend(chunk.header.runs.iter().map(|run| (space, *run)));
                    state.free.push(chunk);
                }
                Progress::Waiting | Progress::Packing | Progress::Failed(_) => {
                    unsent.extend(slot.job.runs.iter().map(|run| (space, *run)));
                }
            }
        }
        while state.busy > 0 {
            state.waiting += 1;
            state = wait(&self.shared.moved, state);
            state.waiting -= 1;
        }
        self.shared.wake_waiting(state);
        unsent
    }

    /// The number of the next chunk to come out.
    #[must_use]
    pub fn next_sequence(&self) -> u64 {
        self.shared.lock().next_sequence
    }

    /// Continues numbering from here, after the target said how far it has taken in the stream.
    ///
    /// # Errors
    ///
    /// `E_STATE` unless the pool is idle.
    pub fn continue_from(&self, next_sequence: u64) -> Result<(), Fault> {
        let mut state = self.shared.lock();
        if !state.slots.is_empty() || state.joined.is_some() {
            return Err(Fault::new(
                Code::State,
                "the numbers of chunks cannot change while some are on their way",
            ));
        }
        state.next_sequence = next_sequence;
        Ok(())
    }

    /// Changes how levels are chosen, from the next job on.
    pub fn set_policy(&self, policy: CodecPolicy) {
        self.shared.lock().policy = policy;
    }

    /// The level in use.
    #[must_use]
    pub fn level(&self) -> Level {
        self.shared.lock().chooser.level()
    }

    /// The statistics so far.
    #[must_use]
    pub fn stats(&self) -> CodecStats {
        self.shared.lock().stats
    }
}

impl Drop for EncoderPool {
    fn drop(&mut self) {
        self.shared.lock().is_closed = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A panic has already been reported by the thread itself.
            drop(thread.join());
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        let locked = self.state.lock();
        locked.expect("nothing panics while it holds the pool's lock")
    }

    /// Waits until `is_there` is true, for at most `wait_max`.
    fn wait_for(
        &self,
        wait_max: Duration,
        mut is_there: impl FnMut(&mut State) -> bool,
    ) -> Option<MutexGuard<'_, State>> {
        let begun = Instant::now();
        let mut state = self.lock();
        while !is_there(&mut state) {
            let left = wait_max.checked_sub(begun.elapsed())?;
            state.waiting += 1;
            let waited = self.moved.wait_timeout(state, left);
            state = waited
                .expect("nothing panics while it holds the pool's lock")
                .0;
            state.waiting -= 1;
        }
        Some(state)
    }

    fn work_until_closed(&self, mut encoder: Encoder) {
        let mut state = self.lock();
        while !state.is_closed {
            let Some((number, job, level, mut chunk)) = state.start_next() else {
                state.idle += 1;
                state = wait(&self.work, state);
                state.idle -= 1;
                continue;
            };
            drop(state);
            let begun = Instant::now();
            // A panicking reader must not leave its slot in the packing state for ever: anyone who
            // waits for it, or cancels, would hang.
            let encode = || encoder.encode(self.reader.as_ref(), &job, level, &mut chunk);
            let result = std::panic::catch_unwind(AssertUnwindSafe(encode))
                .unwrap_or_else(|_| Err(Fault::new(Code::Guest, "reading blocks panicked")));
            let spent = begun.elapsed();
            state = self.lock();
            state.finish(number, level, result, chunk, spent);
            if spent >= WORTH_WAKING && state.idle > 0 && state.has_job() {
                self.work.notify_one();
            }
            if state.is_next_ready() && state.waiting > 0 {
                self.wake_waiting(state);
                state = self.lock();
            }
        }
    }

    /// Wakes a sleeping thread if a job waits for it. The lock is released first.
    fn wake_thread(&self, state: MutexGuard<'_, State>) {
        let is_awaited = state.idle > 0 && state.has_job();
        drop(state);
        if is_awaited {
            self.work.notify_one();
        }
    }

    /// Wakes waiting callers. The lock is released first, or they would wake only to wait for it.
    fn wake_waiting(&self, state: MutexGuard<'_, State>) {
        let is_awaited = state.waiting > 0;
        drop(state);
        if is_awaited {
            self.moved.notify_all();
        }
    }
}

fn wait<'a>(condvar: &Condvar, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
    let waited = condvar.wait(state);
    waited.expect("nothing panics while it holds the pool's lock")
}

impl State {
    /// The next job for a thread. A free buffer always exists: there is one per slot.
    fn start_next(&mut self) -> Option<(u64, Job, Level, EncodedChunk)> {
        let slot = self.slots.get_mut(self.started)?;
        let chunk = self.free.pop()?;
        slot.progress = Progress::Packing;
        let number = self.first_slot + self.started as u64;
        let job = slot.job;
        self.started += 1;
        self.busy += 1;
        self.stats.buffer_uses += 1;
        let level = self.chooser.choose(self.policy);
        Some((number, job, level, chunk))
    }

    /// Whether a job waits for a thread.
    fn has_job(&self) -> bool {
        self.started < self.slots.len()
    }

    /// Whether a waiting caller can use what has finished: the next job in order is packed, or no
    /// thread is packing.
    fn is_next_ready(&self) -> bool {
        let next = self.slots.front().map(|slot| &slot.progress);
        self.busy == 0 || !matches!(next, Some(Progress::Waiting | Progress::Packing))
    }

    fn finish(
        &mut self,
        number: u64,
        level: Level,
        result: Result<Runs, Fault>,
        chunk: EncodedChunk,
        spent: Duration,
    ) {
        self.busy -= 1;
        let position = number.checked_sub(self.first_slot);
        let slot = position
            .and_then(|position| usize::try_from(position).ok())
            .and_then(|position| self.slots.get_mut(position));
        // Cancelled meanwhile: nobody waits for the result.
        let Some(slot) = slot else {
            self.free.push(chunk);
            return;
        };
        match result {
            Ok(zeros) => {
                let (raw, wire) = (chunk.raw_bytes, chunk.frame_bytes as u64);
                self.chooser.learn(level, raw, wire, spent);
                slot.zeros = zeros;
                slot.progress = Progress::Done(chunk);
            }
            Err(fault) => {
                slot.progress = Progress::Failed(fault);
                self.free.push(chunk);
            }
        }
    }

    /// Moves the next chunk in order into `out`, not yet numbered, if there is one.
    fn take(&mut self, out: &mut EncodedChunk) -> Result<bool, Fault> {
        loop {
            let Some(slot) = self.slots.front_mut() else {
                // No queued job could still add to the joined zeros.
                return Ok(self.take_joined(out));
            };
            let chunk = match &mut slot.progress {
                Progress::Waiting | Progress::Packing => return Ok(false),
                Progress::Failed(fault) => return Err(fault.clone()),
                Progress::Done(chunk) => chunk,
            };
            if !slot.zeros.is_empty() {
                if !join(&mut self.joined, &slot.job, &slot.zeros) {
                    return Ok(self.take_joined(out));
                }
                slot.zeros = Runs::EMPTY;
            }
            let has_bytes = chunk.frame_bytes > 0;
            if has_bytes && self.joined.is_some() {
                return Ok(self.take_joined(out));
            }
            if has_bytes {
                std::mem::swap(out, chunk);
            }
            self.pop();
            if has_bytes {
                return Ok(true);
            }
        }
    }

    fn take_joined(&mut self, out: &mut EncodedChunk) -> bool {
        let Some((job, zeros)) = self.joined.take() else {
            return false;
        };
        write_zeros(&job, &zeros, out);
        true
    }

    fn pop(&mut self) {
        if let Some(Slot {
            progress: Progress::Done(chunk),
            ..
        }) = self.slots.pop_front()
        {
            self.free.push(chunk);
        }
        self.first_slot += 1;
        self.started -= 1;
    }

    fn account(&mut self, chunk: &EncodedChunk) {
        let stats = &mut self.stats;
        stats.raw_bytes += chunk.raw_bytes;
        stats.wire_bytes += chunk.frame_bytes as u64;
        let index = match chunk.header.codec {
            Codec::Zero => {
                stats.zero_blocks += towpath_protocol::space::block_count_of(&chunk.header.runs);
                0
            }
            Codec::Raw => 1,
            Codec::Lz4 => 2,
            Codec::Zstd => 3,
        };
        stats.chunk_counts[index] += 1;
    }
}

/// Adds a job's zeros to the joined ones, all or none. Only in rising order, within one space and
/// generation, and up to the cap.
fn join(joined: &mut Option<(Job, Runs)>, job: &Job, zeros: &Runs) -> bool {
    let Some((before, runs)) = joined else {
        *joined = Some((*job, *zeros));
        return true;
    };
    let of_one_kind = before.space == job.space && before.generation == job.generation;
    let blocks: u64 = runs
        .iter()
        .chain(zeros.iter())
        .map(|r| u64::from(r.count))
        .sum();
    let mut both = *runs;
    let fits = of_one_kind
        && blocks <= u64::from(JOINED_ZEROS_MAX)
        && zeros.iter().all(|run| both.push(*run, JOINED_ZEROS_MAX));
    if fits {
        *runs = both;
    }
    fits
}
