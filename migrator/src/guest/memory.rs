//! Guest memory as a file.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, SealFlags, SeekFrom};
use rustix::io::Errno;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::space::{BlockRun, Geometry, MEMORY_BLOCK_BYTES};

const BLOCK_BYTES: usize = MEMORY_BLOCK_BYTES as usize;

/// The memory file of a guest. Clones share the file.
#[derive(Debug, Clone)]
pub struct GuestMemory {
    file: Arc<OwnedFd>,
    geometry: Geometry,
}

impl AsFd for GuestMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl GuestMemory {
    /// Takes a file that was handed over as the memory of a guest with `memory_bytes`.
    ///
    /// # Errors
    ///
    /// `E_LAYOUT` if it is not a memory file of exactly that length, sealed against resizing.
    /// Otherwise block numbers would address something else.
    pub(super) fn new(file: OwnedFd, memory_bytes: u64) -> Result<Self, Fault> {
        let wrong = |what: String| Fault::new(Code::Layout, format!("guest memory: {what}"));
        let status = rustix::fs::fstat(&file).map_err(|error| wrong(error.to_string()))?;
        let length = u64::try_from(status.st_size).unwrap_or(0);
        if length != memory_bytes {
            return Err(wrong(format!(
                "a file of {length} bytes for a guest of {memory_bytes}"
            )));
        }
        let seals = rustix::fs::fcntl_get_seals(&file)
            .map_err(|error| wrong(format!("not a memory file: {error}")))?;
        if !seals.contains(SealFlags::SHRINK | SealFlags::GROW) {
            return Err(wrong("its length can change".to_owned()));
        }
        Ok(Self {
            file: Arc::new(file),
            geometry: Geometry::memory(memory_bytes)?,
        })
    }

    /// The geometry of the space.
    #[must_use]
    pub const fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Reads the blocks of all runs, concatenated.
    ///
    /// # Errors
    ///
    /// `E_RANGE` for a run outside memory, `E_USAGE` if `bytes` is not exactly as long as the runs,
    /// `E_IO` if the file cannot be read.
    pub fn read_runs(&self, runs: &[BlockRun], bytes: &mut [u8]) -> Result<(), Fault> {
        self.check(runs, bytes.len())?;
        let mut rest = bytes;
        for run in runs {
            let (mut part, behind) = rest.split_at_mut(run.count as usize * BLOCK_BYTES);
            rest = behind;
            let mut offset = self.geometry.bytes_of(run.start);
            while !part.is_empty() {
                let count = match rustix::io::pread(&self.file, &mut *part, offset) {
                    Ok(0) => return Err(failed("read", *run, Errno::IO)),
                    Ok(count) => count,
                    Err(Errno::INTR) => continue,
                    Err(error) => return Err(failed("read", *run, error)),
                };
                part = &mut part[count..];
                offset += count as u64;
            }
        }
        Ok(())
    }

    /// Writes the blocks of all runs, concatenated.
    ///
    /// Does not wake vCPUs that wait for one of them; for a guest that may be waiting, use
    /// [`super::MissingMemory::install`].
    ///
    /// # Errors
    ///
    /// `E_RANGE` for a run outside memory, before any byte is written; `E_USAGE` if `bytes` is not
    /// exactly as long as the runs; `E_IO` if the file cannot be written.
    pub fn write_runs(&self, runs: &[BlockRun], bytes: &[u8]) -> Result<(), Fault> {
        self.check(runs, bytes.len())?;
        let mut rest = bytes;
        for run in runs {
            let (mut part, behind) = rest.split_at(run.count as usize * BLOCK_BYTES);
            rest = behind;
            let mut offset = self.geometry.bytes_of(run.start);
            while !part.is_empty() {
                let count = match rustix::io::pwrite(&self.file, part, offset) {
                    Ok(0) => return Err(failed("write", *run, Errno::IO)),
                    Ok(count) => count,
                    Err(Errno::INTR) => continue,
                    Err(error) => return Err(failed("write", *run, error)),
                };
                part = &part[count..];
                offset += count as u64;
            }
        }
        Ok(())
    }

    /// Removes blocks from memory: they read as zeros, and once the guest is armed a touch of them
    /// waits. For blocks that were sent early and are stale at the switch.
    ///
    /// # Errors
    ///
    /// `E_RANGE` for a run outside memory, `E_IO` if the file cannot be changed.
    pub fn punch(&self, run: BlockRun) -> Result<(), Fault> {
        self.geometry.check(run)?;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let (offset, length) = (
            self.geometry.bytes_of(run.start),
            self.geometry.bytes_of(u64::from(run.count)),
        );
        rustix::fs::fallocate(&self.file, flags, offset, length)
            .map_err(|error| failed("punch", run, error))
    }

    /// The first block at or after `from` that was ever touched. Every block before it is zero and
    /// takes no memory.
    ///
    /// # Errors
    ///
    /// `E_IO` if the file cannot be searched.
    pub fn next_data_from(&self, from: u64) -> Result<Option<u64>, Fault> {
        self.seek(from, SeekFrom::Data)
    }

    /// The first run of ever-touched blocks that begins at or after `from`, cut to `count_max`.
    ///
    /// # Errors
    ///
    /// `E_IO` if the file cannot be searched.
    pub fn data_run_from(&self, from: u64, count_max: u32) -> Result<Option<BlockRun>, Fault> {
        let Some(start) = self.next_data_from(from)? else {
            return Ok(None);
        };
        let end = self
            .seek(start, SeekFrom::Hole)?
            .unwrap_or_else(|| self.geometry.block_count());
        let count = u32::try_from(end - start)
            .unwrap_or(u32::MAX)
            .min(count_max);
        Ok(Some(BlockRun { start, count }))
    }

    fn seek(&self, from: u64, to: impl Fn(u64) -> SeekFrom) -> Result<Option<u64>, Fault> {
        if from >= self.geometry.block_count() {
            return Ok(None);
        }
        match rustix::fs::seek(&self.file, to(self.geometry.bytes_of(from))) {
            Ok(offset) => {
                let block = offset / u64::from(MEMORY_BLOCK_BYTES);
                Ok((block < self.geometry.block_count()).then_some(block))
            }
            Err(Errno::NXIO) => Ok(None),
            Err(error) => Err(Fault::new(
                Code::Io,
                format!("seek in guest memory from block {from}: {error}"),
            )),
        }
    }

    fn check(&self, runs: &[BlockRun], bytes: usize) -> Result<(), Fault> {
        let mut block_count = 0_u64;
        for run in runs {
            self.geometry.check(*run)?;
            block_count += u64::from(run.count);
        }
        if self.geometry.bytes_of(block_count) != bytes as u64 {
            return Err(Fault::new(
                Code::Usage,
                format!("{bytes} bytes for {block_count} blocks"),
            ));
        }
        Ok(())
    }
}

fn failed(what: &str, run: BlockRun, error: Errno) -> Fault {
    Fault::new(
        Code::Io,
        format!("{what} blocks {run} of guest memory: {error}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::MemfdFlags;

    const BYTES: u64 = 64 * 4096;

    fn file(bytes: u64) -> OwnedFd {
        let file = rustix::fs::memfd_create("test", MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&file, bytes).unwrap();
        file
    }

    fn memory() -> GuestMemory {
        let file = file(BYTES);
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW).unwrap();
        GuestMemory::new(file, BYTES).unwrap()
    }

    fn run(start: u64, count: u32) -> BlockRun {
        BlockRun { start, count }
    }

    #[test]
    fn runs_are_read_back_as_written_and_punched_ones_are_zero() {
        let memory = memory();
        let runs = [run(3, 2), run(60, 1)];
        let bytes: Vec<u8> = (0..3 * 4096)
            .map(|i| u8::try_from(i % 251).unwrap())
            .collect();
        memory.write_runs(&runs, &bytes).unwrap();
        let mut read = vec![0; bytes.len()];
        memory.read_runs(&runs, &mut read).unwrap();
        assert_eq!(read, bytes);
        memory.punch(run(4, 1)).unwrap();
        let mut block = vec![1; 4096];
        memory.read_runs(&[run(4, 1)], &mut block).unwrap();
        assert_eq!(block, vec![0; 4096]);
    }

    #[test]
    fn only_touched_blocks_are_data() {
        let memory = memory();
        assert_eq!(memory.next_data_from(0), Ok(None));
        for start in [5, 6, 63] {
            memory.write_runs(&[run(start, 1)], &[1; 4096]).unwrap();
        }
        assert_eq!(memory.next_data_from(0), Ok(Some(5)));
        assert_eq!(memory.data_run_from(0, 9), Ok(Some(run(5, 2))));
        assert_eq!(memory.data_run_from(0, 1), Ok(Some(run(5, 1))));
        assert_eq!(memory.data_run_from(7, 9), Ok(Some(run(63, 1))));
        assert_eq!(memory.next_data_from(64), Ok(None));
        memory.punch(run(5, 1)).unwrap();
        assert_eq!(memory.next_data_from(0), Ok(Some(6)));
    }

    #[test]
    fn f08_runs_outside_memory_write_nothing() {
        let memory = memory();
        for bad in [run(64, 1), run(63, 2), run(u64::MAX, 1), run(0, 0)] {
            let bytes = vec![1; 4096 * (1 + bad.count as usize)];
            let fault = memory.write_runs(&[run(0, 1), bad], &bytes).unwrap_err();
            assert_eq!(fault.code, Code::Range);
            assert!(memory.punch(bad).is_err());
        }
        assert_eq!(memory.next_data_from(0), Ok(None));
        let fault = memory.write_runs(&[run(0, 1)], &[0; 4095]).unwrap_err();
        assert_eq!(fault.code, Code::Usage);
    }

    #[test]
    fn l03_a_file_that_is_not_the_guests_memory_is_refused() {
        let seals = SealFlags::SHRINK | SealFlags::GROW;
        let unsealed = file(BYTES);
        assert_eq!(
            GuestMemory::new(unsealed, BYTES).unwrap_err().code,
            Code::Layout
        );
        let short = file(BYTES - 4096);
        rustix::fs::fcntl_add_seals(&short, seals).unwrap();
        assert_eq!(
            GuestMemory::new(short, BYTES).unwrap_err().code,
            Code::Layout
        );
        let foreign = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(
            GuestMemory::new(foreign.into(), 0).unwrap_err().code,
            Code::Layout
        );
    }
}
