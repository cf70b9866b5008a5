//! Tests of a guest's life in its process: it runs, stops and continues, and only when it may.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "all of it is test code"
)]

mod harness;

use std::time::{Duration, Instant};

use harness::{EPOCH, Guest, WAIT, assert_unbroken, config, differing, image, is_usable};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, connect, socket};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use towpath_guest::layout::{LINE_END, MAILBOX, WORKING_SET, WorkingSet};
use towpath_protocol::fault::Code;
use towpath_protocol::guest_api::{GuestKind, GuestState};
use towpath_protocol::identity::Epoch;
use towpath_protocol::space::BlockSet;

for_both_kinds! {
    the_heartbeat_goes_on_and_every_page_is_right;
    an_idle_guest_takes_no_memory;
    only_run_starts_a_guest_and_only_under_its_epoch;
    a_paused_guest_stands_still_and_goes_on_where_it_stood;
    a_harvest_names_exactly_the_pages_that_changed;
    repeated_harvest_and_copy_until_the_pause_gives_the_whole_memory;
    state_is_read_whole_and_only_while_paused;
    quit_ends_the_process;
    a_second_process_cannot_take_the_same_folder;
}

fn the_heartbeat_goes_on_and_every_page_is_right(kind: GuestKind) {
    let mut guest = Guest::running(&config(kind));
    guest.wait_until(|now| now.write_count > 3072 + 2000);
    let (description, verified) = guest.pause_and_verify();
    assert_eq!(verified.page_count, 3072);
    assert!(verified.write_count > 3072 + 2000);
    let heartbeats = guest.heartbeats();
    assert_unbroken(&heartbeats);
    let last = heartbeats.last().unwrap();
    // The last heartbeat may be counted but not printed yet.
    assert!(description.heartbeat_sequence - last.sequence <= 1);
    assert!(
        heartbeats
            .iter()
            .all(|heartbeat| heartbeat.epoch == EPOCH.0)
    );
}

fn an_idle_guest_takes_no_memory(kind: GuestKind) {
    let mut idle = config(kind);
    idle.memory_bytes = 1 << 30;
    idle.workload.working_set_bytes = 0;
    idle.workload.dirty_pages_per_second = 0;
    let mut guest = Guest::running(&idle);
    guest.process.start_tracking().unwrap();
    guest.wait_for_heartbeats(20);
    let touched = harness::touched(&guest.process.memory().unwrap());
    let room_for_the_machine = 2 << 20;
    assert!(touched.len() * 4096 <= room_for_the_machine, "{touched:?}");
    let (_, verified) = guest.pause_and_verify();
    assert_eq!(verified.page_count, 0);
}

fn only_run_starts_a_guest_and_only_under_its_epoch(kind: GuestKind) {
    let code = |result: Result<_, towpath_protocol::fault::Fault>| -> Code {
        result
            .map(|_: towpath_protocol::time::Instant| ())
            .unwrap_err()
            .code
    };
    let mut guest = Guest::spawn(&config(kind));
    let process = &mut guest.process;
    assert_eq!(process.describe().unwrap().state, GuestState::Created);
    assert_eq!(code(process.resume()), Code::State);
    assert_eq!(code(process.pause()), Code::State);
    assert_eq!(process.load_state(&[1]).unwrap_err().code, Code::State);
    let since = process.run(EPOCH).unwrap();
    assert_eq!(
        process.run(EPOCH),
        Ok(since),
        "the same again changes nothing"
    );
    assert_eq!(process.resume(), Ok(since));
    assert_eq!(code(process.run(EPOCH.next())), Code::State);
    assert_eq!(code(process.run(Epoch(1))), Code::State);
    process.pause().unwrap();
    let refused = process.run(Epoch(1)).unwrap_err();
    assert_eq!(refused.code, Code::Guest, "no peer is to blame");
    assert!(
        refused.detail.contains(Code::StaleEpoch.as_str()),
        "{refused}"
    );
    assert_eq!(process.describe().unwrap().state, GuestState::Paused);
    // A higher epoch comes from a new owner: an operator took the guest back.
    assert!(process.run(EPOCH.next()).unwrap() > since);
    assert_eq!(process.describe().unwrap().epoch, Some(EPOCH.next()));

    let mut incoming = Guest::spawn_incoming(&config(kind));
    assert_eq!(code(incoming.process.run(EPOCH)), Code::State);
    assert_eq!(incoming.state(), GuestState::Incoming);
    let memory = incoming.process.memory().unwrap();
    assert_eq!(memory.next_data_from(0), Ok(None), "made with empty memory");
}

fn a_paused_guest_stands_still_and_goes_on_where_it_stood(kind: GuestKind) {
    let mut guest = Guest::running(&config(kind));
    for _ in 0..20 {
        let stopped = guest.process.pause().unwrap();
        let again = guest.process.pause().unwrap();
        assert_eq!(stopped, again);
        let before = guest.process.describe().unwrap();
        let first = image(&guest.process.memory().unwrap());
        let (after, _) = guest.pause_and_verify();
        assert_eq!(before, after);
        let second = image(&guest.process.memory().unwrap());
        assert!(differing(&first, &second).is_empty());
        let running = guest.process.resume().unwrap();
        assert!(running >= stopped);
        guest.wait_for_heartbeats(3);
    }
    assert_unbroken(&guest.heartbeats());
}

/// Pages outside the working set that are written at each tick, by the machine or by the payload.
fn machine_pages(kind: GuestKind) -> Vec<u64> {
    match kind {
        GuestKind::Kvm => vec![MAILBOX / 4096, (LINE_END - 1) / 4096],
        GuestKind::Process => vec![],
    }
}

fn a_harvest_names_exactly_the_pages_that_changed(kind: GuestKind) {
    let mut slow = config(kind);
    slow.workload.dirty_pages_per_second = 1_000;
    let mut guest = Guest::running(&slow);
    let memory = guest.process.memory().unwrap();
    let block_count = memory.geometry().block_count();
    guest.process.start_tracking().unwrap();
    for round in 0..5 {
        guest.process.pause().unwrap();
        guest
            .process
            .harvest(&mut BlockSet::empty(block_count))
            .unwrap();
        let first = image(&memory);
        guest.process.resume().unwrap();
        guest.wait_for_heartbeats(10);
        guest.process.pause().unwrap();
        let mut found = BlockSet::empty(block_count);
        guest.process.harvest(&mut found).unwrap();
        let changed = differing(&first, &image(&memory));
        let mut missed = changed.clone();
        missed.difference_with(&found);
        assert!(missed.is_empty(), "{:?}", missed.iter().collect::<Vec<_>>());
        // The processor may mark its page tables as written when it walks them, and KVM a page of
        // the machine when it is first read. The working set is exact, except for the page in
        // progress.
        found.difference_with(&changed);
        let extra: Vec<u64> = found
            .iter()
            .filter(|page| page * 4096 >= WORKING_SET)
            .collect();
        assert!(extra.len() <= 1, "round {round}: {extra:?}");
        found.union_with(&changed);
        assert!(machine_pages(kind).iter().all(|&page| found.contains(page)));
        let set = WorkingSet::of(&slow);
        assert!(
            found
                .iter()
                .filter(|page| set.pages().contains(page))
                .count()
                >= 10
        );
        assert_eq!(
            guest.process.harvest(&mut BlockSet::empty(block_count)),
            Ok(0)
        );
        guest.process.resume().unwrap();
    }
    guest.process.stop_tracking().unwrap();
    let fault = guest
        .process
        .harvest(&mut found_set(block_count))
        .unwrap_err();
    assert_eq!(fault.code, Code::State);
}

fn found_set(block_count: u64) -> BlockSet {
    BlockSet::empty(block_count)
}

fn repeated_harvest_and_copy_until_the_pause_gives_the_whole_memory(kind: GuestKind) {
    let mut busy = config(kind);
    busy.workload.dirty_pages_per_second = 50_000;
    let mut guest = Guest::running(&busy);
    let memory = guest.process.memory().unwrap();
    let block_count = memory.geometry().block_count();
    guest.process.start_tracking().unwrap();
    let mut copy = vec![0; usize::try_from(memory.geometry().bytes()).unwrap()];
    let mut dirty = BlockSet::full(block_count);
    for _ in 0..8 {
        harness::copy_into_image(&memory, &dirty, &mut copy);
        dirty.clear();
        guest.wait_for_heartbeats(2);
        assert!(guest.process.harvest(&mut dirty).unwrap() > 0);
    }
    guest.process.pause().unwrap();
    guest.process.harvest(&mut dirty).unwrap();
    harness::copy_into_image(&memory, &dirty, &mut copy);
    let differing = differing(&copy, &image(&memory));
    assert!(
        differing.is_empty(),
        "{:?}",
        differing.iter().collect::<Vec<_>>()
    );
    guest.pause_and_verify();
}

fn state_is_read_whole_and_only_while_paused(kind: GuestKind) {
    let mut guest = Guest::running(&config(kind));
    assert_eq!(guest.process.save_state().unwrap_err().code, Code::State);
    guest.process.pause().unwrap();
    let state = guest.process.save_state().unwrap();
    // Clocks advance; everything else is unchanged.
    assert_eq!(guest.process.save_state().unwrap().len(), state.len());
    let mut incoming = Guest::spawn_incoming(&config(kind));
    for cut in [1, state.len() / 2, state.len() - 1] {
        let fault = incoming.process.load_state(&state[..cut]).unwrap_err();
        assert_eq!(fault.code, Code::CpuState);
        assert_eq!(incoming.state(), GuestState::Incoming);
    }
    incoming.process.load_state(&state).unwrap();
    assert_eq!(incoming.state(), GuestState::Loaded);
    // State of the other guest kind is complete but wrong.
    let other = match kind {
        GuestKind::Kvm => GuestKind::Process,
        GuestKind::Process => GuestKind::Kvm,
    };
    if is_usable(other) {
        let mut incoming = Guest::spawn_incoming(&config(other));
        let fault = incoming.process.load_state(&state).unwrap_err();
        assert_eq!(fault.code, Code::CpuState);
    }
}

fn quit_ends_the_process(kind: GuestKind) {
    let mut guest = Guest::running(&config(kind));
    assert!(guest.process.is_alive());
    guest.process.quit().unwrap();
    assert!(!guest.process.is_alive());
    assert!(guest.process.wait_for_end(Duration::ZERO));
    assert!(!guest.folder.join("guest.sock").exists());
    assert_eq!(guest.process.describe().unwrap_err().code, Code::Guest);
    let fault = towpath_migrator::guest::GuestProcess::adopt(&guest.folder).unwrap_err();
    assert_eq!(fault.code, Code::Guest);
}

fn a_second_process_cannot_take_the_same_folder(kind: GuestKind) {
    use towpath_migrator::guest::GuestProcess;
    let mut guest = Guest::running(&config(kind));
    let mut other = config(kind);
    other.workload.key = 1;
    let fault = GuestProcess::spawn(&harness::command(), &guest.folder, &other).unwrap_err();
    assert_eq!(fault.code, Code::AlreadyRunning);
    guest.wait_for_heartbeats(3);
    let text = std::fs::read_to_string(guest.folder.join("config.json")).unwrap();
    assert!(text.contains("81985529216486895"), "{text}");
}

#[test]
fn a_process_without_free_descriptors_is_driven_on_and_does_not_fill_its_log() {
    if !is_usable(GuestKind::Process) {
        return;
    }
    let mut guest = Guest::running(&config(GuestKind::Process));
    let process = Pid::from_raw(guest.process.process_id()).unwrap();
    let nothing_more = Rlimit {
        current: Some(3),
        maximum: getrlimit(Resource::Nofile).maximum,
    };
    prlimit(Some(process), Resource::Nofile, nothing_more).unwrap();
    let newcomer = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    let address = SocketAddrUnix::new(guest.folder.join("guest.sock")).unwrap();
    let begun = Instant::now();
    connect(&newcomer, &address).unwrap();
    let log = guest.folder.join("guest.log");
    loop {
        // The connected client is still served.
        guest.process.describe().unwrap();
        let text = std::fs::read_to_string(&log).unwrap();
        let count = text.lines().filter(|line| line.contains("accept")).count();
        let turns = begun.elapsed().as_millis() / 100 + 2;
        assert!(
            u128::try_from(count).is_ok_and(|count| count <= turns),
            "{count} tries in {:?}",
            begun.elapsed()
        );
        if count >= 3 {
            return;
        }
        assert!(begun.elapsed() < WAIT, "the newcomer is forgotten");
    }
}
