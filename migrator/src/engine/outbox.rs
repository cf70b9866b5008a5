//! Carries orders to the bulk lane: feeds the codec threads and writes the packed chunks in order.
//!
//! ```text
//!  worker ── push ──► [orders] ──► codec threads ──► writer ──► bulk lane
//!     ▲                                                 │
//!     └────────── Packed, before the frame is written ──┘
//! ```
//!
//! Whoever makes room feeds the codec: the worker when it pushes an order, the writer when it takes
//! a chunk out. No thread is woken only to hand a job on.

use std::collections::VecDeque;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use towpath_protocol::fault::Fault;
use towpath_protocol::message::Lane;

use super::input::Input;
use super::lanes::spawn;
use super::mailbox::Mailbox;
use crate::codec::{BlockReader, CodecPolicy, EncodedChunk, EncoderPool, Job};
use crate::lane::LaneWriter;

/// How long the writer waits for a chunk before it checks whether it was told to stop.
const TURN: Duration = Duration::from_millis(20);

/// Most chunks taken together when several are ready, so that they share one write and one wake-up.
const BATCH_COUNT_MAX: usize = 4;

/// The orders, codec threads and bulk lane of one move.
#[derive(Debug)]
pub(super) struct Outbox {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    moved: Condvar,
    pool: EncoderPool,
    mailbox: Arc<Mailbox<Input>>,
}

#[derive(Debug, Default)]
struct State {
    orders: VecDeque<Job>,
    lane: Option<(u64, LaneWriter<UnixStream>)>,
    is_writing: bool,
    /// Whether a thread sleeps on `moved`. Notifying nobody would still cost a system call.
    is_awaited: bool,
    /// Number of cancellations so far. A writer that works for an older turn stops.
    turn: u64,
    is_closed: bool,
}

impl Outbox {
    pub(super) fn new(
        reader: Arc<dyn BlockReader>,
        thread_count: usize,
        mailbox: Arc<Mailbox<Input>>,
    ) -> Result<Self, Fault> {
        let policy = CodecPolicy::Auto {
            link_bytes_per_s: u64::MAX,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(State::default()),
            moved: Condvar::new(),
            pool: EncoderPool::new(reader, thread_count, policy, 1)?,
            mailbox,
        });
        let writer = Arc::clone(&shared);
        let outbox = Self { shared };
        spawn("towpath-writer", move || writer.write())?;
        Ok(outbox)
    }

    #[cfg(test)]
    pub(super) fn buffer_count(&self) -> usize {
        self.shared.pool.stats().buffer_count
    }

    /// Sets the bulk lane that packed chunks are written to.
    pub(super) fn attach(&self, link: u64, lane: LaneWriter<UnixStream>) {
        self.shared.lock().lane = Some((link, lane));
        self.shared.moved.notify_all();
    }

    pub(super) fn push(&self, job: Job) {
        let mut state = self.shared.lock();
        state.orders.push_back(job);
        self.shared.feed(&mut state);
    }

    /// Drops everything that was not written. On return, every chunk that was packed is in the
    /// mailbox and no more will follow. The lane must be closed first, so that no write hangs.
    pub(super) fn cancel(&self) {
        let mut state = self.shared.lock();
        state.orders.clear();
        state.lane = None;
        state.turn += 1;
        self.shared.moved.notify_all();
        while state.is_writing {
            state = self.shared.wait(state);
        }
        drop(state);
        // The machine still counts their blocks as ordered.
        drop(self.shared.pool.cancel());
    }

    /// Sets the next chunk's sequence number. No chunk may be in progress.
    pub(super) fn number_from(&self, sequence: u64) -> Result<(), Fault> {
        self.shared.pool.continue_from(sequence)
    }

    /// Tells the codec the link's rate, from which it chooses levels.
    pub(super) fn link_carries(&self, link_bytes_per_s: u64) {
        self.shared
            .pool
            .set_policy(CodecPolicy::Auto { link_bytes_per_s });
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.is_closed = true;
        state.turn += 1;
        state.orders.clear();
        state.lane = None;
        self.shared.moved.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("nothing panics while it holds the outbox")
    }

    fn wait<'a>(&self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state.is_awaited = true;
        self.moved
            .wait(state)
            .expect("nothing panics while it holds the outbox")
    }

    /// Hands the codec as many orders as it has room for.
    fn feed(&self, state: &mut State) {
        if !state.orders.is_empty() {
            let count = self.pool.submit_all(state.orders.iter().copied());
            state.orders.drain(..count);
        }
    }

    fn write(&self) {
        let mut chunks: [EncodedChunk; BATCH_COUNT_MAX] =
            std::array::from_fn(|_| EncodedChunk::new());
        let mut state = self.lock();
        while !state.is_closed {
            let Some((link, mut lane)) = state.lane.take() else {
                state = self.wait(state);
                continue;
            };
            let turn = state.turn;
            state.is_writing = true;
            drop(state);
            let result = self.write_next(&mut chunks, &mut lane);
            state = self.lock();
            state.is_writing = false;
            match result {
                Ok(()) if state.turn == turn => state.lane = Some((link, lane)),
                Ok(()) => {}
                Err(fault) => {
                    let lane = Lane::Bulk;
                    self.mailbox.send(Input::LaneLost { link, lane, fault });
                }
            }
            if std::mem::take(&mut state.is_awaited) {
                self.moved.notify_all();
            }
        }
    }

    /// Moves the next chunk into `chunk` if it comes soon. Reports blocks that cannot be read, and
    /// goes on behind them.
    fn next_chunk(&self, chunk: &mut EncodedChunk, wait_max: Duration) -> bool {
        loop {
            match self.pool.next_chunk(chunk, wait_max) {
                Ok(is_there) => return is_there,
                Err(fault) => {
                    let Some(job) = self.pool.skip_unread() else {
                        return false;
                    };
                    self.feed(&mut self.lock());
                    let (space, runs) = (job.space(), job.runs().to_vec());
                    self.mailbox.send(Input::Unread { space, runs, fault });
                }
            }
        }
    }

    /// Writes the next chunks if any come soon. Flushes when none is ready.
    fn write_next(
        &self,
        chunks: &mut [EncodedChunk; BATCH_COUNT_MAX],
        lane: &mut LaneWriter<UnixStream>,
    ) -> Result<(), Fault> {
        let mut count = 0;
        while count < BATCH_COUNT_MAX && self.next_chunk(&mut chunks[count], Duration::ZERO) {
            count += 1;
        }
        if count == 0 {
            lane.flush()?;
            if !self.next_chunk(&mut chunks[0], TURN) {
                return Ok(());
            }
            count = 1;
        }
        self.feed(&mut self.lock());
        let chunks = &chunks[..count];
        self.mailbox
            .send_all(chunks.iter().map(|chunk| Input::Packed {
                header: chunk.header().clone(),
                wire_bytes: chunk.frame().len() as u64,
            }));
        let mut frames: [&[u8]; BATCH_COUNT_MAX] = [&[]; BATCH_COUNT_MAX];
        for (frame, chunk) in frames.iter_mut().zip(chunks) {
            *frame = chunk.frame();
        }
        lane.write_chunk_frames(&frames[..count])
    }
}
