//! Tests moving a guest to another process: with all memory first, or page by page on demand.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "all of it is test code"
)]

mod harness;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use harness::{EPOCH, Guest, WAIT, assert_unbroken, config, copy_memory, touched};
use towpath_guest::kvm::payload::report_text;
use towpath_guest::layout::{MAILBOX, WORKING_SET};
use towpath_migrator::guest::{GuestMemory, MissingMemory};
use towpath_protocol::fault::Code;
use towpath_protocol::guest_api::{GuestKind, GuestState};
use towpath_protocol::space::{BlockRun, BlockSet};

for_both_kinds! {
    with_all_memory_copied_the_guest_goes_on_without_gap_or_repeat;
    many_moves_under_heavy_writing_lose_nothing;
    with_no_memory_copied_every_page_comes_when_it_is_asked_for;
    stale_pages_are_punched_and_come_again;
    f25_a_page_that_is_there_is_never_overwritten;
    a_guest_that_waits_for_a_page_is_not_reported_as_stopped;
    whoever_waits_says_so_again_when_woken;
    a_page_that_came_past_the_userfaultfd_still_wakes_who_waits;
    a_single_stale_page_is_found;
}

fn moved(source: &mut Guest) -> Guest {
    source.process.pause().unwrap();
    let state = source.process.save_state().unwrap();
    let mut target = Guest::spawn_incoming(source.process.config());
    target.process.load_state(&state).unwrap();
    target
}

fn assert_moved_well(source: &mut Guest, target: &mut Guest) {
    target.wait_for_heartbeats(30);
    let (description, verified) = target.pause_and_verify();
    assert_eq!(description.epoch, Some(EPOCH.next()));
    assert_eq!(source.state(), GuestState::Paused);
    let (_, left) = source.pause_and_verify();
    assert!(verified.write_count > left.write_count);
    let mut heartbeats = source.heartbeats();
    assert!(heartbeats.iter().all(|beat| beat.epoch == EPOCH.0));
    let here = target.heartbeats();
    // At most one line was begun under the old epoch and completed here.
    assert!(here[1..].iter().all(|beat| beat.epoch == EPOCH.next().0));
    heartbeats.extend(here);
    assert_unbroken(&heartbeats);
}

fn with_all_memory_copied_the_guest_goes_on_without_gap_or_repeat(kind: GuestKind) {
    let mut source = Guest::running(&config(kind));
    let mut target = moved(&mut source);
    let memory = source.process.memory().unwrap();
    copy_memory(
        &memory,
        &target.process.memory().unwrap(),
        &touched(&memory),
    );
    target.process.run(EPOCH.next()).unwrap();
    assert_moved_well(&mut source, &mut target);
    // Move again, to a third process: a guest that has moved can move again.
    let state = target.process.save_state().unwrap();
    let mut third = Guest::spawn_incoming(target.process.config());
    third.process.load_state(&state).unwrap();
    let memory = target.process.memory().unwrap();
    copy_memory(&memory, &third.process.memory().unwrap(), &touched(&memory));
    third.process.run(EPOCH.next().next()).unwrap();
    third.wait_for_heartbeats(20);
    third.pause_and_verify();
}

fn many_moves_under_heavy_writing_lose_nothing(kind: GuestKind) {
    let mut busy = config(kind);
    busy.workload.dirty_pages_per_second = 10_000_000;
    let mut here = Guest::running(&busy);
    let mut heartbeats = Vec::new();
    let mut epoch = EPOCH;
    let mut torn_count = 0;
    for hop in 0..16 {
        here.wait_for_heartbeats(25);
        // Stop at a different point of the tick each time, so that some stops fall into a page.
        let until = Instant::now() + Duration::from_micros(130 * hop);
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        let (description, _) = here.pause_and_verify();
        torn_count += u32::from(description.page_in_progress.is_some());
        let mut next = moved(&mut here);
        let memory = here.process.memory().unwrap();
        copy_memory(&memory, &next.process.memory().unwrap(), &touched(&memory));
        heartbeats.extend(here.heartbeats());
        epoch = epoch.next();
        next.process.run(epoch).unwrap();
        here = next;
    }
    here.wait_for_heartbeats(4);
    here.pause_and_verify();
    heartbeats.extend(here.heartbeats());
    assert_unbroken(&heartbeats);
    println!("{kind}: stopped in the middle of a page {torn_count} times of 16");
}

/// The source's side of a post-copy: answers faults, and pushes the rest when asked to.
struct Server<'a> {
    source: &'a GuestMemory,
    missing: &'a MissingMemory,
    absent: BlockSet,
    asked: BTreeSet<u64>,
}

impl<'a> Server<'a> {
    fn new(source: &'a GuestMemory, missing: &'a MissingMemory, absent: BlockSet) -> Self {
        Self {
            source,
            missing,
            absent,
            asked: BTreeSet::new(),
        }
    }

    fn send(&mut self, run: BlockRun) {
        let mut bytes = vec![0; run.count as usize * 4096];
        self.source.read_runs(&[run], &mut bytes).unwrap();
        let installed = self.missing.install(run, &bytes).unwrap();
        assert_eq!(
            installed.installed_count + installed.present_count,
            run.count
        );
        self.absent.remove_run(run);
    }

    fn answer(&mut self, wait: Duration) -> Option<u64> {
        let block = self.missing.next_fault(wait).unwrap()?;
        self.asked.insert(block);
        self.send(BlockRun {
            start: block,
            count: 1,
        });
        Some(block)
    }

    /// Answers until `count` pages of the working set were asked for.
    fn answer_many(&mut self, count: usize) {
        let deadline = Instant::now() + WAIT;
        let in_set = |block: &&u64| **block * 4096 >= WORKING_SET;
        while self.asked.iter().filter(in_set).count() < count {
            self.answer(deadline.saturating_duration_since(Instant::now()))
                .expect("the guest asks for more pages");
        }
    }

    fn push_rest(&mut self) {
        while let Some(run) = self.absent.run_from(0, harness::RUN_BLOCKS) {
            self.send(run);
            while self.answer(Duration::ZERO).is_some() {}
        }
    }
}

fn with_no_memory_copied_every_page_comes_when_it_is_asked_for(kind: GuestKind) {
    let mut source = Guest::running(&config(kind));
    let mut target = moved(&mut source);
    let missing = target.process.arm_missing().unwrap();
    assert_eq!(
        target.process.start_tracking().unwrap_err().code,
        Code::State
    );
    target.process.run(EPOCH.next()).unwrap();
    let memory = source.process.memory().unwrap();
    let mut server = Server::new(&memory, &missing, touched(&memory));
    server.answer_many(100);
    server.push_rest();
    if kind == GuestKind::Kvm {
        // A page that only the machine's device touches is requested like any other.
        assert!(
            server.asked.contains(&(MAILBOX / 4096)),
            "{:?}",
            server.asked
        );
    }
    target.process.disarm_missing().unwrap();
    assert_moved_well(&mut source, &mut target);
    // The guest is complete, so it can be the source of the next move.
    target.process.start_tracking().unwrap();
}

fn stale_pages_are_punched_and_come_again(kind: GuestKind) {
    let mut source = Guest::running(&config(kind));
    let memory = source.process.memory().unwrap();
    source.process.start_tracking().unwrap();
    let mut target = Guest::spawn_incoming(source.process.config());
    let received = target.process.memory().unwrap();
    // Copied once while the guest ran, so pages written since are stale at the target.
    copy_memory(&memory, &received, &touched(&memory));
    source.wait_for_heartbeats(20);
    source.process.pause().unwrap();
    let mut stale = BlockSet::empty(memory.geometry().block_count());
    source.process.harvest(&mut stale).unwrap();
    assert!(stale.len() > 10);
    stale.runs().for_each(|run| received.punch(run).unwrap());
    target
        .process
        .load_state(&source.process.save_state().unwrap())
        .unwrap();
    let missing = target.process.arm_missing().unwrap();
    target.process.run(EPOCH.next()).unwrap();
    let mut server = Server::new(&memory, &missing, stale.clone());
    server.answer_many(1);
    server.push_rest();
    assert!(server.asked.iter().all(|&block| stale.contains(block)));
    target.process.disarm_missing().unwrap();
    assert_moved_well(&mut source, &mut target);
}

fn f25_a_page_that_is_there_is_never_overwritten(kind: GuestKind) {
    let mut source = Guest::running(&config(kind));
    let mut target = moved(&mut source);
    let missing = target.process.arm_missing().unwrap();
    target.process.run(EPOCH.next()).unwrap();
    let memory = source.process.memory().unwrap();
    let mut server = Server::new(&memory, &missing, touched(&memory));
    server.answer_many(100);
    server.push_rest();
    // Install everything once more, as after a restart that lost the record: all contents are old
    // by now.
    target.wait_for_heartbeats(10);
    let mut present = 0;
    for run in touched(&memory).runs() {
        let mut bytes = vec![0; run.count as usize * 4096];
        memory.read_runs(&[run], &mut bytes).unwrap();
        let again = missing.install(run, &bytes).unwrap();
        assert_eq!(again.installed_count, 0);
        present += u64::from(again.present_count);
    }
    assert_eq!(present, touched(&memory).len());
    // A block that was never touched is installed as zeros, once.
    let last = BlockRun {
        start: memory.geometry().block_count() - 2,
        count: 2,
    };
    assert_eq!(missing.install_zero(last).unwrap().installed_count, 2);
    assert_eq!(missing.install_zero(last).unwrap().present_count, 2);
    let outside = BlockRun {
        start: memory.geometry().block_count(),
        count: 1,
    };
    assert_eq!(missing.install_zero(outside).unwrap_err().code, Code::Range);
    target.process.disarm_missing().unwrap();
    let gone = missing.install(last, &[0; 8192]).unwrap_err();
    assert_eq!(gone.code, Code::State);
    assert_moved_well(&mut source, &mut target);
}

fn a_guest_that_waits_for_a_page_is_not_reported_as_stopped(kind: GuestKind) {
    let mut source = Guest::running(&config(kind));
    let mut target = moved(&mut source);
    let missing = target.process.arm_missing().unwrap();
    target.process.run(EPOCH.next()).unwrap();
    let memory = source.process.memory().unwrap();
    let block = missing.next_fault(WAIT).unwrap().expect("the first touch");
    // The guest waits within an instruction. Either it cannot stop, or it stops before that
    // instruction.
    match target.process.pause() {
        Err(fault) => {
            assert_eq!(fault.code, Code::Guest);
            assert_eq!(target.state(), GuestState::Running);
        }
        Ok(_) => {
            assert_eq!(target.state(), GuestState::Paused);
            target.process.resume().unwrap();
        }
    }
    let mut server = Server::new(&memory, &missing, touched(&memory));
    server.send(BlockRun {
        start: block,
        count: 1,
    });
    server.push_rest();
    target.process.disarm_missing().unwrap();
    assert_moved_well(&mut source, &mut target);
}

fn whoever_waits_says_so_again_when_woken(kind: GuestKind) {
    let mut source = Guest::running(&config(kind));
    let mut target = moved(&mut source);
    let first = target.process.arm_missing().unwrap();
    target.process.run(EPOCH.next()).unwrap();
    let block = first.next_fault(WAIT).unwrap();
    assert!(block.is_some());
    // The first reader dies without answering; the next one gets the same descriptor.
    drop(first);
    let second = target.process.arm_missing().unwrap();
    assert_eq!(second.next_fault(Duration::from_millis(50)).unwrap(), None);
    second.wake_all().unwrap();
    assert_eq!(second.next_fault(WAIT).unwrap(), block);
    let memory = source.process.memory().unwrap();
    let mut server = Server::new(&memory, &second, touched(&memory));
    server.push_rest();
    target.process.disarm_missing().unwrap();
    assert_moved_well(&mut source, &mut target);
}

fn a_page_that_came_past_the_userfaultfd_still_wakes_who_waits(kind: GuestKind) {
    let mut source = Guest::running(&config(kind));
    let mut target = moved(&mut source);
    let missing = target.process.arm_missing().unwrap();
    target.process.run(EPOCH.next()).unwrap();
    let memory = source.process.memory().unwrap();
    let start = missing.next_fault(WAIT).unwrap().expect("the first touch");
    let run = BlockRun { start, count: 1 };
    let mut bytes = vec![0; 4096];
    memory.read_runs(&[run], &mut bytes).unwrap();
    target
        .process
        .memory()
        .unwrap()
        .write_runs(&[run], &bytes)
        .unwrap();
    assert_eq!(missing.install(run, &bytes).unwrap().present_count, 1);
    // The guest continues to the next missing page.
    let next = missing.next_fault(WAIT).unwrap();
    assert!(next.is_some_and(|next| next != start), "{next:?}");
    let mut server = Server::new(&memory, &missing, touched(&memory));
    server.push_rest();
    missing.wake_all().unwrap();
    target.process.disarm_missing().unwrap();
    assert_moved_well(&mut source, &mut target);
}

/// Checks that the checks can fail: one stale page among thousands is found from outside.
fn a_single_stale_page_is_found(kind: GuestKind) {
    let mut source = Guest::running(&config(kind));
    let memory = source.process.memory().unwrap();
    let early = harness::image(&memory);
    source.wait_for_heartbeats(10);
    let (description, _) = source.pause_and_verify();
    let in_progress = description.page_in_progress.map(|page| page.block);
    let victim = harness::differing(&early, &harness::image(&memory))
        .iter()
        .find(|&block| block * 4096 >= WORKING_SET && Some(block) != in_progress)
        .expect("some page was written");
    harness::put_back(&early, &memory, victim);
    let fault = towpath_guest::verify::verify(&memory, &description).unwrap_err();
    assert_eq!(fault.code, Code::RootMismatch);
}

/// If a page that only the machine's device wrote is lost, the guest itself notices.
#[test]
fn a_lost_write_of_a_device_is_found() {
    if !harness::is_usable(GuestKind::Kvm) {
        return;
    }
    let mut source = Guest::running(&config(GuestKind::Kvm));
    let memory = source.process.memory().unwrap();
    let early = harness::image(&memory);
    source.wait_for_heartbeats(10);
    let mut target = moved(&mut source);
    let received = target.process.memory().unwrap();
    copy_memory(&memory, &received, &touched(&memory));
    harness::put_back(&early, &received, MAILBOX / 4096);
    // The guest may have crashed before the answer arrives.
    let _ = target.process.run(EPOCH.next());
    let deadline = Instant::now() + WAIT;
    let reason = loop {
        if let GuestState::Crashed { reason } = target.state() {
            break reason;
        }
        assert!(Instant::now() < deadline, "the guest does not notice");
        std::thread::yield_now();
    };
    assert!(reason.contains(report_text(1)), "{reason}");
    assert_eq!(target.process.pause().unwrap_err().code, Code::Guest);
    assert_eq!(target.process.resume().unwrap_err().code, Code::Guest);
}
