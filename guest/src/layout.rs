//! The layout of guest memory, as byte offsets from the start of the memory file.
//!
//! The machine's virtual addresses equal these offsets: its page tables hide the hole below 4 GiB,
//! so the payload sees one contiguous memory, and `address / 4096` is the block number everywhere.

use towpath_protocol::guest_api::{GuestConfig, WORKING_SET_START_BYTES};

use crate::pattern::{PAGE_BYTES, POOL_WORDS};

/// Global descriptor table, and the task state segment behind it.
pub const GDT: u64 = 0x1000;
/// Task state segment: never used, but a processor in long mode must have one.
pub const TSS: u64 = 0x1800;
/// Top of the page tables.
pub const PML4: u64 = 0x2000;
/// One entry for each GiB of memory.
pub const PDPT: u64 = 0x3000;
/// The payload's parameters, see [`crate::kvm`].
pub const PARAMETERS: u64 = 0x4000;
/// The mailbox: at each tick the machine writes the tick's number to the next word, as a ring.
/// Stands for a device that writes guest memory.
pub const MAILBOX: u64 = 0x5000;
/// Words of the mailbox: one page.
pub const MAILBOX_WORDS: u64 = 512;
/// End of the buffer in which the payload builds a line for the console.
pub const LINE_END: u64 = 0x7000;
/// The payload.
pub const CODE: u64 = 0x8000;
/// Most bytes of the payload.
pub const CODE_BYTES_MAX: u64 = 0x1000;
/// The 2 MiB entries of the device window.
pub const DEVICE_DIRECTORY: u64 = 0x9000;
/// One page of 2 MiB entries per GiB of memory, 256 pages at most.
pub const PAGE_DIRECTORIES: u64 = 0x10_0000;
/// The pool of noise, alone in its 2 MiB. The payload only reads it.
pub const POOL: u64 = 0x20_0000;
/// The working set.
pub const WORKING_SET: u64 = WORKING_SET_START_BYTES;

const _: () = assert!(POOL.is_multiple_of(2 << 20));
const _: () = assert!(POOL + POOL_WORDS as u64 * 8 <= WORKING_SET);

/// The pages a workload writes to, and the order of the writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkingSet {
    /// First page.
    pub first_page: u64,
    /// Number of pages.
    pub page_count: u64,
    /// Distance between consecutive writes, in pages, modulo the number of pages. The two are
    /// coprime, so every page gets its turn.
    pub stride: u64,
}

impl WorkingSet {
    /// The working set of a guest.
    #[must_use]
    pub fn of(config: &GuestConfig) -> Self {
        let page_count = config.workload.working_set_bytes / PAGE_BYTES as u64;
        Self {
            first_page: WORKING_SET / PAGE_BYTES as u64,
            page_count,
            stride: stride(page_count),
        }
    }

    /// The position of the next write.
    #[must_use]
    pub const fn next(&self, position: u64) -> u64 {
        let next = position + self.stride;
        if next >= self.page_count {
            next - self.page_count
        } else {
            next
        }
    }

    /// All pages of the set.
    #[must_use]
    pub const fn pages(&self) -> std::ops::Range<u64> {
        self.first_page..self.first_page + self.page_count
    }
}

/// The largest number at or below 0.618 times the count that is coprime to it. Writes then jump
/// about like those of a real program instead of sweeping through memory.
const fn stride(page_count: u64) -> u64 {
    let mut stride = page_count / 1000 * 618 + page_count % 1000 * 618 / 1000;
    while stride > 1 && greatest_common_divisor(stride, page_count) != 1 {
        stride -= 1;
    }
    if stride == 0 && page_count > 1 {
        1
    } else {
        stride
    }
}

const fn greatest_common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_gets_its_turn_before_any_gets_a_second() {
        for page_count in (1..300).chain([1000, 4096, 4097]) {
            let set = WorkingSet {
                first_page: 1024,
                page_count,
                stride: stride(page_count),
            };
            let mut seen = vec![false; usize::try_from(page_count).unwrap()];
            let mut position = 0;
            for _ in 0..page_count {
                let seen = &mut seen[usize::try_from(position).unwrap()];
                assert!(!std::mem::replace(seen, true), "{set:?}");
                position = set.next(position);
            }
            assert_eq!(position, 0);
        }
    }
}
