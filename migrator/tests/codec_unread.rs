//! Blocks that cannot be read are skipped, and the jobs behind them go on.

use std::sync::Arc;
use std::time::Duration;

use towpath_migrator::codec::{BlockReader, CodecPolicy, EncodedChunk, EncoderPool, Job, Level};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::space::{BlockRun, MEMORY, SpaceId};

const PATIENCE: Duration = Duration::from_secs(20);
const BLOCK_BYTES: u32 = 4096;

/// Memory of which one block cannot be read.
struct Broken(u64);

impl BlockReader for Broken {
    fn read_runs(&self, _: SpaceId, runs: &[BlockRun], out: &mut [u8]) -> Result<(), Fault> {
        if runs
            .iter()
            .any(|run| (run.start..run.end()).contains(&self.0))
        {
            return Err(Fault::new(Code::Io, "a page cannot be read"));
        }
        out.fill(7);
        Ok(())
    }
}

#[test]
fn a_job_that_cannot_be_read_holds_up_none_behind_it() {
    let policy = CodecPolicy::Fixed(Level::Raw);
    let pool = EncoderPool::new(Arc::new(Broken(2)), 2, policy, 1).unwrap();
    for start in 0..5 {
        let runs = [BlockRun { start, count: 1 }];
        let job = Job::new(MEMORY, BLOCK_BYTES, 1, &runs).unwrap();
        assert!(pool.submit(job, PATIENCE));
    }
    let mut chunk = EncodedChunk::new();
    let mut packed = Vec::new();
    let mut skipped = Vec::new();
    while !pool.is_idle() {
        match pool.next_chunk(&mut chunk, PATIENCE) {
            Ok(true) => packed.push((chunk.header().sequence, chunk.header().runs[0].start)),
            Ok(false) => panic!("the codec stands still"),
            Err(fault) => {
                assert_eq!(fault.code, Code::Io);
                skipped.push(pool.skip_unread().expect("it is its turn").runs()[0].start);
            }
        }
    }
    assert_eq!(packed, [(1, 0), (2, 1), (3, 3), (4, 4)]);
    assert_eq!(skipped, [2]);
    assert!(pool.skip_unread().is_none());
}
