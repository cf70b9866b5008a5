//! KVM's dirty log over the machine's memory slots.

use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_MEM_LOG_DIRTY_PAGES, kvm_clear_dirty_log,
    kvm_enable_cap, kvm_userspace_memory_region,
};
use kvm_ioctls::VmFd;
use rustix::ioctl::{Opcode, Updater, opcode};
use std::os::fd::{AsRawFd, BorrowedFd};
use towpath_protocol::fault::Fault;
use towpath_protocol::guest_api::TrackingMethod;

use super::boot::physical;
use super::kvm_fault;
use crate::memory::Memory;
use crate::pattern::PAGE_BYTES;

/// Pages per slot: 1 GiB, as much as one harvest covers, so that reading the log of a large guest
/// does not copy all of it for each harvest. Also keeps the hole below 4 GiB between two slots.
const SLOT_PAGES: u64 = 1 << 18;

const KVM_CLEAR_DIRTY_LOG: Opcode = opcode::read_write::<kvm_clear_dirty_log>(0xae, 0xc0);

/// The memory slots of a machine and the log of writes to them.
#[derive(Debug)]
pub(super) struct DirtyLog {
    memory: Memory,
    method: TrackingMethod,
    /// Writes taken from the kernel's log or from our marks but not harvested yet. The kernel's are
    /// only kept here if reading its log clears it.
    unasked: Vec<u64>,
}

impl DirtyLog {
    /// Registers the memory with the machine.
    pub(super) fn create(vm: &VmFd, memory: Memory) -> Result<Self, Fault> {
        let protect = kvm_enable_cap {
            cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
            args: [1, 0, 0, 0],
            ..kvm_enable_cap::default()
        };
        let method = match vm.enable_cap(&protect) {
            Ok(()) => TrackingMethod::KvmManualProtect,
            Err(error) => {
                tracing::info!(%error, "dirty log without manual protection");
                TrackingMethod::KvmDirtyLog
            }
        };
        let word_count = usize::try_from(memory.block_count().div_ceil(64)).expect("mapped");
        let log = Self {
            memory,
            method,
            unasked: vec![0; word_count],
        };
        log.set_slots(vm, 0)?;
        Ok(log)
    }

    pub(super) const fn method(&self) -> TrackingMethod {
        self.method
    }

    /// Starts tracking writes.
    pub(super) fn start(&mut self, vm: &VmFd) -> Result<(), Fault> {
        self.set_slots(vm, 0)?;
        self.unasked.fill(0);
        for word in 0..self.unasked.len() {
            self.memory.marks().take_word(word);
        }
        self.set_slots(vm, KVM_MEM_LOG_DIRTY_PAGES)
    }

    /// Stops tracking writes.
    pub(super) fn stop(&self, vm: &VmFd) -> Result<(), Fault> {
        self.set_slots(vm, 0)
    }

    /// Harvests the writes to a range that begins at a multiple of 64: the guest's from KVM's log,
    /// the machine's from our marks.
    pub(super) fn harvest(&mut self, vm: &VmFd, first: u64, count: u32) -> Result<Vec<u64>, Fault> {
        let mut words = vec![0_u64; count.div_ceil(64) as usize];
        let first_word = index(first / 64);
        let end = first + u64::from(count);
        for slot in first / SLOT_PAGES..end.div_ceil(SLOT_PAGES) {
            let slot_first = slot * SLOT_PAGES;
            let log = self.read_slot(vm, slot)?;
            let slot_word = index(slot_first / 64);
            if self.method == TrackingMethod::KvmDirtyLog {
                for (kept, found) in self.unasked[slot_word..].iter_mut().zip(&log) {
                    *kept |= found;
                }
                continue;
            }
            let from = first.max(slot_first);
            let to = end.min(slot_first + SLOT_PAGES);
            let mut bits: Vec<u64> = (index(from / 64)..index(to.div_ceil(64)))
                .map(|word| log[word - slot_word] & mask(word, to))
                .collect();
            // KVM clears the named bits and write-protects those pages again, so later writes are
            // logged anew.
            clear_slot(vm, slot, from - slot_first, &mut bits)?;
            let at = index(from / 64) - first_word;
            words[at..at + bits.len()].copy_from_slice(&bits);
        }
        for (position, word) in words.iter_mut().enumerate() {
            let number = first_word + position;
            let asked = mask(number, end);
            let unasked = &mut self.unasked[number];
            *unasked |= self.memory.marks().take_word(number);
            *word |= *unasked & asked;
            *unasked &= !asked;
        }
        Ok(words)
    }

    fn slot_pages(&self, slot: u64) -> u64 {
        SLOT_PAGES.min(self.memory.block_count() - slot * SLOT_PAGES)
    }

    fn read_slot(&self, vm: &VmFd, slot: u64) -> Result<Vec<u64>, Fault> {
        let bytes = index(self.slot_pages(slot)) * PAGE_BYTES;
        vm.get_dirty_log(number(slot), bytes)
            .map_err(|error| kvm_fault("dirty log", error))
    }

    fn set_slots(&self, vm: &VmFd, flags: u32) -> Result<(), Fault> {
        for slot in 0..self.memory.block_count().div_ceil(SLOT_PAGES) {
            let offset = slot * SLOT_PAGES * PAGE_BYTES as u64;
            let region = kvm_userspace_memory_region {
                slot: number(slot),
                flags,
                guest_phys_addr: physical(offset),
                memory_size: self.slot_pages(slot) * PAGE_BYTES as u64,
                userspace_addr: self.memory.address() + offset,
            };
            // SAFETY: the range is part of the mapping of guest memory, which stays mapped as long as
            // this log holds it, and no two slots overlap.
            unsafe { vm.set_user_memory_region(region) }
                .map_err(|error| kvm_fault("memory slot", error))?;
        }
        Ok(())
    }
}

/// The bits of a word that are before page `end`.
fn mask(word: usize, end: u64) -> u64 {
    match end.saturating_sub(word as u64 * 64) {
        count @ 0..64 => (1 << count) - 1,
        _ => u64::MAX,
    }
}

fn clear_slot(vm: &VmFd, slot: u64, first_page: u64, bits: &mut [u64]) -> Result<(), Fault> {
    if bits.iter().all(|&word| word == 0) {
        return Ok(());
    }
    let mut clear = kvm_clear_dirty_log {
        slot: number(slot),
        num_pages: u32::try_from(bits.len() * 64).expect("a slot has 2^18 pages"),
        first_page,
        ..kvm_clear_dirty_log::default()
    };
    clear.__bindgen_anon_1.dirty_bitmap = bits.as_mut_ptr().cast();
    // SAFETY: the VM's file is open as long as `vm` is borrowed.
    let fd = unsafe { BorrowedFd::borrow_raw(vm.as_raw_fd()) };
    // SAFETY: the opcode's argument is this structure, which comes from the kernel's own header.
    let update = unsafe { Updater::<KVM_CLEAR_DIRTY_LOG, _>::new(&mut clear) };
    // SAFETY: the bitmap is a live slice with one bit for each of the pages named.
    unsafe { rustix::ioctl::ioctl(fd, update) }.map_err(|error| kvm_fault("clear dirty log", error))
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("page numbers of memory that is mapped")
}

fn number(slot: u64) -> u32 {
    u32::try_from(slot).expect("memory has at most 256 slots")
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_ioctls::Kvm;

    #[test]
    fn the_mask_cuts_the_last_word() {
        assert_eq!(mask(0, 64), u64::MAX);
        assert_eq!(mask(0, 3), 0b111);
        assert_eq!(mask(1, 64), 0);
        assert_eq!(mask(1, 65), 1);
    }

    fn check_marks(force: Option<TrackingMethod>) {
        let vm = match Kvm::new().and_then(|kvm| kvm.create_vm()) {
            Ok(vm) => vm,
            Err(error) => return println!("skipped: /dev/kvm: {error}"),
        };
        let memory = Memory::create(8 << 20, true).unwrap();
        let mut log = DirtyLog::create(&vm, memory.clone()).unwrap();
        log.method = force.unwrap_or(log.method);
        memory.write(4096, &[1]);
        log.start(&vm).unwrap();
        memory.write(70 * 4096, &[1]);
        memory.write(130 * 4096, &[1]);
        let none: u64 = log.harvest(&vm, 0, 64).unwrap().iter().sum();
        assert_eq!(none, 0, "marks from before tracking");
        // Harvesting part of a word leaves the rest for the next harvest.
        assert_eq!(log.harvest(&vm, 64, 6).unwrap(), [0]);
        assert_eq!(log.harvest(&vm, 64, 128).unwrap(), [1 << 6, 1 << 2]);
        assert_eq!(log.harvest(&vm, 0, 2048).unwrap(), [0; 32]);
    }

    #[test]
    fn writes_of_the_machine_are_harvested_beside_kvms_log() {
        check_marks(None);
        check_marks(Some(TrackingMethod::KvmDirtyLog));
    }
}
