//! Guest memory: a memory file, mapped once, and marks of the pages that the machine itself wrote.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, SealFlags};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::guest_api::Region;
use vm_memory::bitmap::{Bitmap, NewBitmap, RefSlice, WithBitmapSlice};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};
use zerocopy::IntoBytes;

use crate::pattern::PAGE_BYTES;
use crate::userfault::Range;

/// One bit per page that the machine itself wrote: its devices and its loader.
///
/// KVM's dirty log only knows the guest's writes. Every write through vm-memory is marked here, so
/// that no device can forget to report its own.
#[derive(Debug, Default)]
pub(crate) struct DirtyMarks(Vec<AtomicU64>);

impl DirtyMarks {
    /// Returns the marks of 64 pages and clears them.
    pub(crate) fn take_word(&self, word: usize) -> u64 {
        self.0
            .get(word)
            .map_or(0, |word| word.swap(0, Ordering::AcqRel))
    }
}

impl<'a> WithBitmapSlice<'a> for DirtyMarks {
    type S = RefSlice<'a, Self>;
}

impl Bitmap for DirtyMarks {
    fn mark_dirty(&self, offset: usize, length: usize) {
        if length == 0 {
            return;
        }
        let pages = offset / PAGE_BYTES..=(offset + length - 1) / PAGE_BYTES;
        for page in pages {
            if let Some(word) = self.0.get(page / 64) {
                word.fetch_or(1 << (page % 64), Ordering::AcqRel);
            }
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let page = offset / PAGE_BYTES;
        self.0
            .get(page / 64)
            .is_some_and(|word| word.load(Ordering::Acquire) & 1 << (page % 64) != 0)
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}

impl NewBitmap for DirtyMarks {
    fn with_len(bytes: usize) -> Self {
        let word_count = bytes.div_ceil(PAGE_BYTES).div_ceil(64);
        Self((0..word_count).map(|_| AtomicU64::new(0)).collect())
    }
}

/// The memory of one guest.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    file: Arc<File>,
    region: Arc<MmapRegion<DirtyMarks>>,
}

impl Memory {
    /// Creates empty memory. It takes no space until it is written to.
    pub(crate) fn create(bytes: u64, marks_writes: bool) -> Result<Self, Fault> {
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            Fault::new(
                Code::Guest,
                format!("guest memory of {bytes} bytes: {what}: {error}"),
            )
        };
        let size = usize::try_from(bytes).map_err(|error| failed("size", &error))?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create("towpath-guest", flags)
            .map_err(|error| failed("memfd_create", &error))?;
        rustix::fs::ftruncate(&fd, bytes).map_err(|error| failed("ftruncate", &error))?;
        // Others write to this file too; the seals keep its length from being changed under the
        // guest.
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&fd, seals).map_err(|error| failed("seal", &error))?;
        let file = Arc::new(File::from(fd));
        let marks = if marks_writes {
            DirtyMarks::with_len(size)
        } else {
            DirtyMarks::default()
        };
        let region = MmapRegionBuilder::new_with_bitmap(size, marks)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .with_file_offset(FileOffset::from_arc(Arc::clone(&file), 0))
            .build()
            .map_err(|error| failed("mmap", &error))?;
        Ok(Self {
            file,
            region: Arc::new(region),
        })
    }

    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.region.size() as u64
    }

    pub(crate) fn block_count(&self) -> u64 {
        self.bytes() / PAGE_BYTES as u64
    }

    /// The address of the mapping. Valid while this value or a clone of it lives.
    pub(crate) fn address(&self) -> u64 {
        self.region.as_ptr() as u64
    }

    /// The addresses of the mapping. Valid while this value or a clone of it lives.
    pub(crate) fn range(&self) -> Range {
        Range {
            start: self.address(),
            bytes: self.bytes(),
        }
    }

    /// The regions of memory, as a migrator needs them.
    pub(crate) fn regions(&self) -> Vec<Region> {
        vec![Region {
            address: self.address(),
            bytes: self.bytes(),
            memory_offset: 0,
        }]
    }

    pub(crate) fn marks(&self) -> &DirtyMarks {
        self.region.bitmap()
    }

    /// Writes to guest memory. The offset must be our own and inside it.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) {
        let offset = usize::try_from(offset).expect("an offset in memory that is mapped");
        self.region
            .as_volatile_slice()
            .write_slice(bytes, offset)
            .expect("the machine writes inside its memory");
    }

    /// Writes words to guest memory.
    pub(crate) fn write_words(&self, offset: u64, words: &[u64]) {
        // As bytes, because vm-memory is several times slower word by word.
        self.write(offset, words.as_bytes());
    }

    /// Reads words of guest memory.
    pub(crate) fn read_words(&self, offset: u64, words: &mut [u64]) {
        let offset = usize::try_from(offset).expect("an offset in memory that is mapped");
        self.region
            .as_volatile_slice()
            .read_slice(words.as_mut_bytes(), offset)
            .expect("the machine reads inside its memory");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_write_of_the_machine_is_marked_once() {
        let memory = Memory::create(8 << 20, true).unwrap();
        memory.write(3 * 4096 + 4090, &[1; 10]);
        memory.write_words(64 * 4096, &[7]);
        assert_eq!(memory.marks().take_word(0), 0b11000);
        assert_eq!(memory.marks().take_word(0), 0);
        assert_eq!(memory.marks().take_word(1), 1);
        memory.read_words(64 * 4096, &mut [0]);
        assert_eq!(memory.marks().take_word(1), 0);
        assert_eq!(memory.marks().take_word(1 << 30), 0);
    }

    #[test]
    fn nobody_can_change_the_length_of_guest_memory() {
        let memory = Memory::create(8 << 20, false).unwrap();
        assert!(rustix::fs::ftruncate(memory.file(), 4096).is_err());
        assert!(rustix::fs::ftruncate(memory.file(), 1 << 30).is_err());
        assert_eq!(memory.block_count(), 2048);
    }
}
