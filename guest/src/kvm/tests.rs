//! Tests that move the machine at every point where it can be stopped, without a process around it.

use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use towpath_protocol::guest_api::{GuestKind, Workload};
use towpath_protocol::identity::GuestId;

use super::*;
use crate::pattern::PAGE_BYTES;

const EPOCH: u64 = (7 << 32) + 3;

fn config() -> GuestConfig {
    GuestConfig {
        id: GuestId(1),
        name: "hopper".parse().unwrap(),
        kind: GuestKind::Kvm,
        memory_bytes: 8 << 20,
        vcpu_count: 1,
        workload: Workload {
            dirty_pages_per_second: 8_000,
            working_set_bytes: 1 << 20,
            incompressible_percent: 50,
            key: 99,
            heartbeat_interval_us: 500,
        },
    }
}

fn guest(console: &Path) -> KvmGuest {
    let memory = Memory::create(config().memory_bytes, true).unwrap();
    KvmGuest::create(&config(), memory, Console::open(console).unwrap()).unwrap()
}

/// A runner for tests in which the test's own thread runs the guest.
fn running() -> Runner {
    let runner = Runner::new();
    runner.set_epoch(EPOCH);
    // No thread starts; only the wanted state matters.
    assert!(runner.start(Duration::ZERO).is_err());
    runner
}

/// Runs the vCPU to its next device access and stops it there.
fn run_to_next_access(guest: &KvmGuest) {
    let runner = running();
    let mut vcpu = guest.vcpu.lock();
    assert!(vcpu.step_once(&runner), "the payload failed");
    // From here on, behave as if a stop was requested.
    runner.end(|| ());
    vcpu.finish_device_access(&runner).unwrap();
}

fn moved(source: &mut KvmGuest, console: &Path) -> KvmGuest {
    let bytes = source.save().unwrap().to_bytes().unwrap();
    let mut target = guest(console);
    let mut page = [0; PAGE_BYTES / 8];
    for offset in (0..source.memory.bytes()).step_by(PAGE_BYTES) {
        source.memory.read_words(offset, &mut page);
        target.memory.write_words(offset, &page);
    }
    target.load(Sections::from_bytes(&bytes).unwrap()).unwrap();
    target
}

#[test]
fn moved_at_every_device_access_nothing_is_lost_or_done_twice() {
    if let Err(fault) = probe() {
        return println!("skipped: {fault}");
    }
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("console.log");
    let mut here = guest(&path);
    here.boot().unwrap();
    for _ in 0..90 {
        run_to_next_access(&here);
        here = moved(&mut here, &path);
    }
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.lines().map(|l| l.split_once(' ').unwrap().1).collect();
    assert!(lines.len() > 8, "{text}");
    for (sequence, line) in (1..).zip(lines) {
        assert_eq!(line, format!("HB {sequence} {EPOCH}"));
    }
    assert_all_pages_right(&here);
}

fn assert_all_pages_right(guest: &KvmGuest) {
    let progress = guest.vcpu.lock().progress();
    assert_eq!(progress.page_in_progress, None, "it stands at a device");
    let workload = config().workload;
    let pattern = Pattern::new(workload.key, workload.incompressible_percent);
    let mut versions = 0;
    let set = WorkingSet::of(&config());
    for page in set.pages() {
        let mut words = [0; PAGE_BYTES / 8];
        guest
            .memory
            .read_words(page * PAGE_BYTES as u64, &mut words);
        let bytes = zerocopy::IntoBytes::as_bytes(&words);
        versions += pattern.check(page, bytes.try_into().unwrap()).unwrap();
    }
    assert_eq!(versions, progress.write_count);
    assert!(versions > set.page_count, "nothing was written");
}

#[test]
fn state_with_a_section_missing_or_too_many_is_refused() {
    if let Err(fault) = probe() {
        return println!("skipped: {fault}");
    }
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("console.log");
    let mut source = guest(&path);
    source.boot().unwrap();
    run_to_next_access(&source);
    for kind in [Kind::Msrs, Kind::Registers, Kind::Serial, Kind::Console] {
        let mut sections = source.save().unwrap();
        sections.take(kind, 1).unwrap();
        let fault = guest(&path).load(sections).unwrap_err();
        assert_eq!(fault.code, Code::CpuState, "{kind:?}");
        assert!(fault.detail.contains(&format!("{kind:?}")), "{fault}");
    }
    for kind in [Kind::Registers, Kind::Msrs, Kind::Cpuid, Kind::LocalApic] {
        let mut sections = source.save().unwrap();
        let mut payload = sections.take(kind, 1).unwrap();
        payload.pop();
        sections.put(kind, 1, payload);
        let fault = guest(&path).load(sections).unwrap_err();
        assert_eq!(fault.code, Code::CpuState, "{kind:?}");
    }
}

#[test]
fn f21_state_this_processor_cannot_take_is_refused_by_name() {
    if let Err(fault) = probe() {
        return println!("skipped: {fault}");
    }
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("console.log");
    let mut source = guest(&path);
    source.boot().unwrap();
    run_to_next_access(&source);
    // A register that no processor has.
    let mut sections = source.save().unwrap();
    let mut msrs = sections.take(Kind::Msrs, 1).unwrap();
    msrs.extend_from_slice(&0x1234_5678_u64.to_le_bytes());
    msrs.extend_from_slice(&1_u64.to_le_bytes());
    sections.put(Kind::Msrs, 1, msrs);
    let fault = guest(&path).load(sections).unwrap_err();
    assert_eq!(fault.code, Code::CpuState);
    assert!(fault.detail.contains("0x12345678"), "{fault}");
    // Features that no processor has: every bit of leaf 7.
    let mut sections = source.save().unwrap();
    let mut cpuid = sections.take(Kind::Cpuid, 1).unwrap();
    for entry in cpuid.chunks_exact_mut(40) {
        if entry[..8] == [7, 0, 0, 0, 0, 0, 0, 0] {
            entry[16..24].fill(0xff);
        }
    }
    sections.put(Kind::Cpuid, 1, cpuid);
    let fault = guest(&path).load(sections).unwrap_err();
    assert_eq!(fault.code, Code::CpuState);
    assert!(fault.detail.matches(',').count() > 5, "{fault}");
}
