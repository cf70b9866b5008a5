//! Does the work of firmware and boot loader: tables, segments, the payload, the first registers.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

use super::payload;
use crate::layout::{
    CODE, DEVICE_DIRECTORY, GDT, PAGE_DIRECTORIES, PARAMETERS, PDPT, PML4, POOL, TSS, WorkingSet,
};
use crate::memory::Memory;
use crate::pattern::Pattern;

const GIB: u64 = 1 << 30;
/// Bytes mapped by one entry of a page directory.
const LARGE_PAGE_BYTES: u64 = 2 << 20;
/// Guest memory from this offset on is mapped above 4 GiB. The hole below holds the interrupt
/// controllers.
const HOLE_START: u64 = 3 * GIB;
const HOLE_BYTES: u64 = GIB;

/// Present, writable, user, accessed, dirty. The last two are set in advance so that the processor
/// does not write to the tables while it runs.
const TABLE_ENTRY: u64 = 0x67;
const WRITABLE: u64 = 0x2;
/// The same for a large page.
const PAGE_ENTRY: u64 = TABLE_ENTRY | 0x80;

/// Privilege level of the payload. Hosts that emulate a guest's kernel mode run user mode at full
/// speed; on other hosts it makes no difference.
const LEVEL: u8 = 3;

const CODE_SELECTOR: u16 = 0x10 | LEVEL as u16;
const DATA_SELECTOR: u16 = 0x18 | LEVEL as u16;
const TASK_SELECTOR: u16 = 0x20;

const CR0_PE: u64 = 1;
const CR0_MP: u64 = 1 << 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_WP: u64 = 1 << 16;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const CR4_OSFXSR: u64 = 1 << 9;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const RFLAGS_FIXED: u64 = 1 << 1;

/// The guest-physical address of an offset in the memory file.
pub(super) const fn physical(offset: u64) -> u64 {
    if offset < HOLE_START {
        offset
    } else {
        offset + HOLE_BYTES
    }
}

/// Writes everything except the working set to memory.
pub(super) fn load_memory(
    memory: &Memory,
    set: &WorkingSet,
    key: u64,
    incompressible_percent: u8,
    pattern: &Pattern,
) {
    write_page_tables(memory);
    let descriptors = [
        0,
        0,
        descriptor(&code_segment()),
        descriptor(&data_segment()),
        descriptor(&task_segment()),
        TSS >> 32,
    ];
    memory.write_words(GDT, &descriptors);
    let parameters = payload::parameters(set, key, incompressible_percent);
    memory.write_words(PARAMETERS, &parameters);
    memory.write(CODE, payload::code());
    memory.write_words(POOL, pattern.pool());
}

fn write_page_tables(memory: &Memory) {
    memory.write_words(PML4, &[PDPT | TABLE_ENTRY]);
    for gib in 0..memory.bytes().div_ceil(GIB) {
        let directory = PAGE_DIRECTORIES + gib * 4096;
        memory.write_words(PDPT + gib * 8, &[directory | TABLE_ENTRY]);
        let left = memory.bytes() - gib * GIB;
        let entry_count = left.min(GIB) / LARGE_PAGE_BYTES;
        let entries: Vec<u64> = (0..entry_count)
            .map(|entry| page_entry(gib * GIB + entry * LARGE_PAGE_BYTES))
            .collect();
        memory.write_words(directory, &entries);
    }
    let window = payload::DEVICES_VIRTUAL / GIB;
    memory.write_words(PDPT + window * 8, &[DEVICE_DIRECTORY | TABLE_ENTRY]);
    let devices = payload::DEVICES_PHYSICAL | PAGE_ENTRY;
    memory.write_words(DEVICE_DIRECTORY, &[devices]);
}

/// The noise is only read. It is mapped read-only, so that a KVM that shadows the tables does not
/// report it as written.
const fn page_entry(offset: u64) -> u64 {
    let entry = physical(offset) | PAGE_ENTRY;
    if offset == POOL {
        entry & !WRITABLE
    } else {
        entry
    }
}

/// The payload's initial general registers. The initial fill counts as one write per page.
pub(super) fn first_registers(set: &WorkingSet) -> kvm_regs {
    kvm_regs {
        rip: CODE,
        rflags: RFLAGS_FIXED,
        r12: set.page_count * 2,
        ..kvm_regs::default()
    }
}

/// Puts the processor into long mode with our tables.
pub(super) fn enter_long_mode(registers: &mut kvm_sregs) {
    registers.cs = code_segment();
    let data = data_segment();
    registers.ds = data;
    registers.es = data;
    registers.fs = data;
    registers.gs = data;
    registers.ss = data;
    registers.tr = task_segment();
    registers.gdt = kvm_dtable {
        base: GDT,
        limit: 6 * 8 - 1,
        ..kvm_dtable::default()
    };
    // No interrupt descriptors: any exception in the payload ends the machine at once.
    registers.idt = kvm_dtable::default();
    registers.cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
    registers.cr3 = PML4;
    registers.cr4 = CR4_PAE | CR4_OSFXSR;
    registers.efer = EFER_LME | EFER_LMA;
}

fn code_segment() -> kvm_segment {
    kvm_segment {
        selector: CODE_SELECTOR,
        type_: 0xb,
        l: 1,
        ..flat_segment()
    }
}

fn data_segment() -> kvm_segment {
    kvm_segment {
        selector: DATA_SELECTOR,
        type_: 0x3,
        db: 1,
        ..flat_segment()
    }
}

fn flat_segment() -> kvm_segment {
    kvm_segment {
        limit: u32::MAX,
        present: 1,
        dpl: LEVEL,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    }
}

fn task_segment() -> kvm_segment {
    kvm_segment {
        selector: TASK_SELECTOR,
        base: TSS,
        limit: 0x67,
        // Busy, because a processor that starts in long mode must already be in a task.
        type_: 0xb,
        present: 1,
        ..kvm_segment::default()
    }
}

/// Encodes a segment as an eight-byte descriptor.
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = if segment.g == 1 {
        u64::from(segment.limit >> 12)
    } else {
        u64::from(segment.limit)
    };
    let bits = |value: u8, shift: u32| u64::from(value) << shift;
    (limit & 0xffff)
        | (segment.base & 0xff_ffff) << 16
        | bits(segment.type_, 40)
        | bits(segment.s, 44)
        | bits(segment.dpl, 45)
        | bits(segment.present, 47)
        | (limit >> 16 & 0xf) << 48
        | bits(segment.l, 53)
        | bits(segment.db, 54)
        | bits(segment.g, 55)
        | (segment.base >> 24 & 0xff) << 56
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_those_of_the_manual() {
        assert_eq!(descriptor(&code_segment()), 0x00af_fb00_0000_ffff);
        assert_eq!(descriptor(&data_segment()), 0x00cf_f300_0000_ffff);
    }

    #[test]
    fn memory_goes_around_the_hole_below_four_gib() {
        assert_eq!(physical(HOLE_START - 4096), HOLE_START - 4096);
        assert_eq!(physical(HOLE_START), 4 * GIB);
        assert_eq!(physical(5 * GIB), 6 * GIB);
    }
}
