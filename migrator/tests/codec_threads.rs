//! Tests how many of the codec's threads take part.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    reason = "a test that fails there has found something"
)]

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use towpath_migrator::codec::{BlockReader, CodecPolicy, EncodedChunk, EncoderPool, Job, Level};
use towpath_protocol::fault::Fault;
use towpath_protocol::space::{BlockRun, SpaceId};

const MEMORY: SpaceId = SpaceId(0);

/// Longest that any wait in these tests may take.
const PATIENCE: Duration = Duration::from_secs(20);

fn job(start: u64) -> Job {
    Job::new(MEMORY, 4096, 1, &[BlockRun { start, count: 1 }]).unwrap()
}

/// A slow reader that, from the second job on, waits until another thread reads too.
#[derive(Default)]
struct Pair {
    inside: Mutex<u64>,
    came: Condvar,
}

impl BlockReader for Pair {
    fn read_runs(&self, _: SpaceId, runs: &[BlockRun], out: &mut [u8]) -> Result<(), Fault> {
        out.fill(1);
        if runs[0].start == 0 {
            std::thread::sleep(Duration::from_millis(1));
            return Ok(());
        }
        let mut inside = self.inside.lock().unwrap();
        *inside += 1;
        self.came.notify_all();
        let (inside, waited) = self
            .came
            .wait_timeout_while(inside, PATIENCE, |inside| *inside < 2)
            .unwrap();
        drop(inside);
        assert!(!waited.timed_out(), "one thread does the work of two");
        Ok(())
    }
}

#[test]
fn jobs_put_in_together_are_as_many_as_fit_and_wake_as_many_threads_as_they_are_worth() {
    let policy = CodecPolicy::Fixed(Level::Raw);
    let pool = EncoderPool::new(Arc::new(Pair::default()), 2, policy, 1).unwrap();
    // By now both threads sleep, or take a job as soon as they check.
    std::thread::sleep(Duration::from_millis(20));
    let mut jobs = (0..40).map(job);
    assert_eq!(pool.submit_all(&mut jobs), 16, "a bounded queue");
    let mut chunk = EncodedChunk::new();
    for n in 0..16 {
        assert!(pool.next_chunk(&mut chunk, PATIENCE).unwrap());
        assert_eq!(chunk.header().runs[0].start, n);
    }
    assert!(pool.is_idle());
    assert_eq!(pool.submit_all([]), 0);
}
