//! Tests of what happens to a guest after its migrator, process or source was away.

use rustix::fs::FlockOperation;
use towpath_protocol::message::{Lane, Message};
use towpath_protocol::ownership::{Decider, Delivery, Origin, Root};
use towpath_protocol::source::Event as SourceEvent;

use super::*;
use crate::api::GuestState;
use crate::engine::adopt::ANEW_PAUSE;
use crate::engine::fake::{Fake, Standing};
use crate::engine::ground::{Ground, to_wait_until};
use crate::engine::input::Input;
use crate::engine::order::START_COUNT_MAX;
use crate::engine::tests::{ground, host, order};
use crate::engine::worker::tests::work_until;
use crate::guest::GuestProcess;

fn record(ground: &Ground, state: State) -> Record {
    Record {
        guest: ground.id,
        high_water: Epoch(2),
        decider: Decider::SourceJournal,
        state,
        verdicts: Vec::new(),
    }
}

fn relinquished() -> State {
    State::Relinquished {
        owned: Epoch(1),
        epoch: Epoch(2),
        attempt: order(1).attempt,
        target: order(1).target,
        root: Root([1; 32]),
        delivery: Delivery::Partial,
    }
}

fn owned(is_whole: bool) -> State {
    let (source, attempt) = (order(1).target, order(1).attempt);
    State::Owned {
        epoch: Epoch(2),
        missing_from: (!is_whole).then_some(Origin { attempt, source }),
    }
}

/// A worker that has done nothing yet, for a guest whose record is durable.
fn worker_of(mut ground: Ground, state: State) -> Worker {
    let record = record(&ground, state);
    ground.persist(&record).unwrap();
    let ownership = Ownership::recover(ground.shared.host.clone(), record);
    Worker::new(ground, ownership)
}

fn take_up(worker: &mut Worker) {
    let Some(Role::Idle(ownership)) = worker.role.take() else {
        panic!("it has begun");
    };
    let role = worker.take_up(ownership);
    worker.role = Some(role);
}

/// A guest that runs here after a move and misses its first `missing_count` blocks.
fn running(ground: Ground, missing_count: u64) -> Worker {
    let mut worker = worker_of(ground, owned(false));
    let Some(Role::Idle(ownership)) = worker.role.take() else {
        panic!("it has begun");
    };
    let target = TargetMove::running(&worker.ground, ownership, missing_count);
    worker.role = Some(Role::Target(Box::new(target)));
    worker
}

#[test]
fn a_guest_whose_host_lost_its_power_in_the_middle_of_a_copy_is_no_guest_that_runs() {
    let (_folder, shared) = host("");
    let mut ground = ground(&shared);
    let state = State::Offering {
        epoch: Epoch(1),
        attempt: order(1).attempt,
        target: order(1).target,
    };
    let record = record(&ground, state);
    ground.persist(&record).unwrap();
    let mut worker = Worker::recover(ground, record);
    worker.publish();
    let view = shared.board().guests[&worker.ground.id].clone();
    assert_eq!(view.state, GuestState::Crashed);
    assert!(view.error.is_some());
}

#[test]
fn a_commit_is_said_whatever_became_of_the_moves_file() {
    for content in [None, Some("{}")] {
        let (folder, shared) = host("");
        let mut ground = ground(&shared);
        let record = record(&ground, relinquished());
        ground.persist(&record).unwrap();
        if let Some(content) = content {
            let file = folder.path().join("state/guests/till/move.json");
            std::fs::write(file, content).unwrap();
        }
        let worker = Worker::recover(ground, record);
        let Some(Role::Source(source)) = &worker.role else {
            panic!("nobody says the commit");
        };
        assert!(source.is_committed());
        assert_eq!(source.order().attempt, order(1).attempt);
        assert_eq!(source.order().target, order(1).target);
    }
}

#[test]
fn fault_26_a_move_whose_journal_fails_behind_its_commit_is_blocked_and_not_over() {
    let (_folder, shared) = host("");
    let mut worker = worker_of(ground(&shared), relinquished());
    take_up(&mut worker);
    let Some(Role::Source(source)) = &mut worker.role else {
        panic!("nobody says the commit");
    };
    let ground = &mut worker.ground;
    source.handle(ground, SourceEvent::LinkUp).unwrap();
    ground.journal.as_mut().unwrap().poison();
    for word in [Message::Ack(1), Message::Complete] {
        drop(source.handle(ground, SourceEvent::Heard(Lane::Control, word)));
    }
    worker.end_if_over();
    assert!(matches!(worker.role, Some(Role::Broken(..))));
    // The move is shown for as long as it is stuck.
    shared.board().moves.clear();
    worker.publish();
    let view = shared.board().moves[&MigrationId(1)].clone();
    assert_eq!(
        (view.phase, view.finished_unix_ms),
        (Phase::Committed, None)
    );
    assert!(view.blocked_ms.is_some());
    let error = view.error.map(|error| error.code);
    assert_eq!(error.as_deref(), Some(Code::Journal.as_str()));
    let guest = shared.board().guests[&worker.ground.id].clone();
    assert_eq!(guest.migration, Some(MigrationId(1)));
    let refused = worker.cancel(MigrationId(1)).unwrap_err();
    assert!(refused.detail.contains("handed over"), "{refused}");
}

#[test]
fn a_guest_of_which_nothing_is_left_here_takes_no_memory() {
    let (folder, shared) = host("");
    let memory_bytes = || shared.memory_used_bytes();
    let mut worker = worker_of(ground(&shared), relinquished());
    let _fake = Fake::start(&worker.ground, Standing::default());
    worker.ground.adopt_process(Duration::from_secs(5)).unwrap();
    take_up(&mut worker);
    worker.publish();
    assert_eq!(memory_bytes(), 16 << 20);
    // The process ends, but its memory is still held.
    let process_id = worker.ground.process.as_ref().unwrap().process_id();
    worker.take_in(Input::GuestGone { process_id });
    worker.publish();
    assert_eq!(memory_bytes(), 16 << 20);
    // After a restart that memory is gone.
    drop(worker);
    std::fs::remove_dir_all(folder.path().join("state/guests/till")).unwrap();
    let mut worker = worker_of(ground(&shared), relinquished());
    take_up(&mut worker);
    worker.publish();
    assert_eq!(
        shared.board().guests[&worker.ground.id].state,
        GuestState::Frozen
    );
    assert_eq!(memory_bytes(), 0, "no room for others");
}

#[test]
fn what_is_wrong_with_a_guest_stands_where_giving_it_up_is_refused() {
    let (_folder, shared) = host("");
    let mut worker = worker_of(ground(&shared), owned(false));
    let busy = Fault::new(Code::Guest, "it has not answered yet");
    worker.ground.awaited = Some(busy.clone());
    let path = worker.ground.path().unwrap();
    let lock = std::fs::File::create(path.join("guest.pid")).unwrap();
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    let Some(Role::Idle(ownership)) = worker.role.take() else {
        panic!("it has begun");
    };
    worker.role = Some(Role::Broken(ownership, busy.clone()));
    let refused = worker.give_up_missing().unwrap_err();
    assert_eq!(refused.code, Code::AlreadyRunning, "{refused}");
    let Some(Role::Broken(_, fault)) = &worker.role else {
        panic!("it was booted");
    };
    assert_eq!(*fault, busy);
}

#[test]
fn a_move_that_ends_each_migrator_is_not_begun_for_ever() {
    let (folder, shared) = host("");
    let mut starting = ground(&shared);
    let (_, record) = Ownership::owner(shared.host.clone(), starting.id, Epoch(1));
    starting.persist(&record).unwrap();
    order(1).save(&starting).unwrap();
    drop(starting);
    let file = folder.path().join("state/guests/till/move.json");
    let start = || {
        let mut ground = ground(&shared);
        ground.folder = Some(shared.store.guest(ground.name().unwrap()).unwrap());
        let worker = Worker::recover(ground, record.clone());
        worker.retry.is_some()
    };
    for number in 1..=START_COUNT_MAX {
        assert!(start() && file.exists(), "start {number}");
    }
    assert!(!start(), "it is begun for ever");
    assert!(!file.exists());
    let farewells = folder.path().join("state/guests/till/farewells.json");
    assert!(farewells.exists(), "its target keeps what it has");
    let view = shared.board().moves[&MigrationId(1)].clone();
    assert_eq!(view.phase, Phase::Failed);
    let error = view.error.map(|error| error.code);
    assert_eq!(error.as_deref(), Some(Code::State.as_str()));
}

#[test]
fn starts_that_are_far_apart_have_nothing_to_do_with_each_other() {
    let mut order = order(1);
    let mut starts = |at_minutes: u64| {
        order.note_start(at_minutes * 60_000 + 1);
        order.starts
    };
    let minutes = [100_000, 100_001, 100_030, 100_091, 100_092];
    assert_eq!(minutes.map(&mut starts), [1, 2, 3, 1, 2]);
}

#[test]
fn a_move_that_was_ended_with_its_migrator_waits_ever_longer() {
    let waits = (1..=START_COUNT_MAX).map(|starts| wait_at_start(starts).as_secs());
    assert_eq!(waits.collect::<Vec<_>>(), [0, 2, 4, 8, 16, 32, 60, 60]);
    assert_eq!(wait_at_start(u32::MAX), RECOVER_DELAY_MAX);
}

#[test]
fn a_process_that_has_ended_while_it_was_waited_for_keeps_no_guest_from_booting() {
    let (folder, shared) = host("");
    let mut ground = ground(&shared);
    let (_, record) = Ownership::owner(shared.host.clone(), ground.id, Epoch(1));
    ground.persist(&record).unwrap();
    ground.awaited = Some(Fault::new(Code::Guest, "connect: connection refused"));
    // A killed process keeps its lock until it is gone.
    let lock = std::fs::File::create(folder.path().join("state/guests/till/guest.pid")).unwrap();
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    let fault = ground.expect_ended().unwrap_err();
    assert_eq!(fault.code, Code::AlreadyRunning);
    assert!(ground.awaited.is_some());
    drop(lock);
    ground.expect_ended().unwrap();
    assert_eq!(ground.awaited, None);
}

#[test]
fn a_process_that_is_not_waited_for_any_more_takes_no_newer_ones_place() {
    let (folder, shared) = host("");
    let mut ground = ground(&shared);
    let (_, record) = Ownership::owner(shared.host.clone(), ground.id, Epoch(1));
    ground.persist(&record).unwrap();
    let lock = std::fs::File::create(folder.path().join("state/guests/till/guest.pid")).unwrap();
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    let busy = Fault::new(Code::Guest, "it has not answered yet");
    assert!(ground.await_process(&busy));
    // The process is ended and replaced by another.
    ground.wait_no_more();
    let _newer = Fake::start(&ground, Standing::default());
    let until = now() + ANEW_PAUSE * 2;
    let found = ground.mailbox.receive(Some(to_wait_until(until)));
    assert!(found.is_none(), "somebody else drives it: {found:?}");
}

#[test]
fn a_frozen_guest_whose_process_answers_late_is_not_lost() {
    let (_folder, shared) = host("");
    let mut worker = worker_of(ground(&shared), relinquished());
    worker.ground.awaited = Some(Fault::new(Code::Guest, "it has not answered yet"));
    take_up(&mut worker);
    let error = |worker: &Worker| {
        let Some(Role::Source(source)) = &worker.role else {
            panic!("nobody says the commit");
        };
        source.view(&worker.ground).error
    };
    assert_eq!(error(&worker), None, "its memory is not lost");
    let _fake = Fake::start(&worker.ground, Standing::default());
    let found = GuestProcess::adopt(&worker.ground.path().unwrap());
    worker.found(found);
    assert!(worker.ground.memory.is_some() && worker.ground.awaited.is_none());
    assert_eq!(error(&worker), None);
    let Some(Role::Source(source)) = &mut worker.role else {
        panic!("nobody says the commit");
    };
    assert!(source.has_memory(), "what its target misses can be read");
    drop(source.handle(&mut worker.ground, SourceEvent::GuestGone));
    assert!(error(&worker).is_some(), "that is lost");
}

#[test]
fn a_process_that_lives_and_says_nothing_for_long_is_waited_for_again() {
    let (_folder, shared) = host("");
    let mut worker = worker_of(ground(&shared), owned(true));
    let path = worker.ground.path().unwrap();
    let lock = std::fs::File::create(path.join("guest.pid")).unwrap();
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    let silent = Standing {
        is_silent: true,
        ..Standing::default()
    };
    let fake = Fake::start(&worker.ground, silent);
    worker.ground.awaited = Some(Fault::new(Code::Guest, "it has not answered yet"));
    worker.found(Err(Fault::new(Code::Guest, "it still has not")));
    assert!(worker.ground.awaited.is_some() && worker.ground.crash.is_none());
    fake.standing(|standing| standing.is_silent = false);
    work_until(&mut worker, |worker| worker.ground.process.is_some());
    assert!(worker.ground.crash.is_none());
}

#[test]
fn fault_27_a_guest_that_misses_blocks_is_owned_by_both_slots_of_its_journal() {
    let (_folder, shared) = host("");
    let mut worker = running(ground(&shared), 3);
    let _fake = Fake::start(&worker.ground, Standing::default());
    worker.ground.adopt_process(Duration::from_secs(5)).unwrap();
    let is_unsettled = |worker: &Worker| worker.ground.journal.as_ref().unwrap().is_unsettled();
    assert!(is_unsettled(&worker));
    work_until(&mut worker, |worker| !is_unsettled(worker));
    assert!(matches!(worker.role, Some(Role::Target(_))));
}

#[test]
fn fault_27_a_guest_that_runs_without_the_record_of_that_is_neither_refused_nor_ended() {
    let (_folder, shared) = host("");
    let prepared = State::Prepared {
        epoch: Epoch(2),
        attempt: order(1).attempt,
        source: order(1).target,
    };
    let mut worker = worker_of(ground(&shared), prepared.clone());
    let _fake = Fake::start(&worker.ground, Standing::default());
    worker.ground.adopt_process(Duration::from_secs(5)).unwrap();
    take_up(&mut worker);
    let Some(Role::Broken(ownership, fault)) = &worker.role else {
        panic!("its move goes on, or is refused");
    };
    assert_eq!(fault.code, Code::Quarantine, "{fault}");
    assert_eq!(ownership.record().state, prepared);
    let durable = Record::decode(worker.ground.journal.as_ref().unwrap().record()).unwrap();
    assert_eq!(durable.state, prepared);
    assert!(worker.ground.process.as_ref().unwrap().is_alive());
    worker.publish();
    let view = shared.board().guests[&worker.ground.id].clone();
    assert_eq!(view.state, GuestState::Quarantined);
}

#[test]
fn a_guest_that_is_owned_here_outlives_a_fault_of_its_hosts() {
    let (_folder, shared) = host("");
    let mut worker = running(ground(&shared), 0);
    let fake = Fake::start(&worker.ground, Standing::default());
    worker.ground.adopt_process(Duration::from_secs(5)).unwrap();
    // As if the last block could not be installed for lack of memory, or the process refused a
    // request.
    for code in [Code::Io, Code::CpuState, Code::Layout, Code::State] {
        if let Some(Role::Target(target)) = &mut worker.role {
            target.lose(Fault::new(code, "it cannot be done"));
        }
        worker.end_if_over();
        assert!(matches!(worker.role, Some(Role::Broken(..))));
        assert!(worker.ground.crash.is_none(), "{code}: nothing is lost");
        assert!(worker.recover_at.is_some(), "{code}");
        worker = running(worker.ground, 0);
    }
    drop(fake);
    // A permanent loss is a different case.
    let mut worker = running(worker.ground, 3);
    if let Some(Role::Target(target)) = &mut worker.role {
        target.lose(Fault::new(Code::ImageLost, "its source has let go of it"));
    }
    worker.end_if_over();
    assert!(worker.ground.crash.is_some() && worker.recover_at.is_none());
}

#[test]
fn a_process_that_is_too_slow_to_be_disarmed_is_disarmed_later() {
    let (_folder, shared) = host("");
    let mut worker = running(ground(&shared), 0);
    let path = worker.ground.path().unwrap();
    let lock = std::fs::File::create(path.join("guest.pid")).unwrap();
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    let standing = Standing {
        is_armed: true,
        is_silent_once_run: true,
        ..Standing::default()
    };
    let fake = Fake::start(&worker.ground, standing);
    worker.ground.adopt_process(Duration::from_secs(5)).unwrap();
    if let Some(Role::Target(target)) = &mut worker.role {
        target.carry_out(&mut worker.ground);
    }
    worker.end_if_over();
    assert!(matches!(worker.role, Some(Role::Idle(_))));
    fake.standing(|standing| {
        assert_eq!(standing.run_count, 1);
        standing.is_silent = false;
    });
    work_until(&mut worker, |_| {
        !fake.standing(|standing| standing.is_armed)
    });
    assert!(worker.ground.crash.is_none());
}

#[test]
fn nothing_stands_on_a_journal_that_has_lost_its_name() {
    let (folder, shared) = host("");
    let mut worker = worker_of(ground(&shared), owned(true));
    // The description is removed after the journal, and here that fails.
    let description = folder.path().join("state/guests/till/guest.json");
    std::fs::remove_file(&description).unwrap();
    std::fs::create_dir(&description).unwrap();
    assert!(worker.ground.put_away(None, true).is_err());
    let refused = worker.ground.check_journal().unwrap_err();
    assert_eq!(refused.code, Code::Journal);
    let record = record(&worker.ground, owned(true));
    assert!(worker.ground.persist(&record).is_err());
}

#[test]
fn a_move_whose_process_was_too_slow_is_tried_again() {
    let (_folder, shared) = host("");
    let mut ground = ground(&shared);
    let slow = Fault::new(Code::Guest, "it did not answer within 30s");
    for (is_awaited, attempts, again) in [(true, 1, true), (false, 1, false), (true, 5, false)] {
        ground.awaited = is_awaited.then(|| slow.clone());
        let mut order = order(1);
        order.attempts = attempts;
        assert_eq!(order.is_tried_again(&ground, &slow), again);
    }
}

#[test]
fn a_guest_whose_touches_nobody_reports_is_taken_up_again() {
    let (_folder, shared) = host("");
    let mut worker = running(ground(&shared), 3);
    let _fake = Fake::start(&worker.ground, Standing::default());
    worker.ground.adopt_process(Duration::from_secs(5)).unwrap();
    let lost = Fault::new(Code::Guest, "userfaultfd: not usable");
    worker.take_in(Input::FaultsLost(lost));
    worker.end_if_over();
    assert!(matches!(worker.role, Some(Role::Broken(..))));
    assert!(worker.recover_at.is_some());
}

#[test]
fn a_move_is_written_down_as_the_one_a_guest_comes_with_once() {
    let (folder, shared) = host("");
    let mut worker = running(ground(&shared), 3);
    let file = folder.path().join("state/guests/till/arrival.json");
    worker.remember_arrival();
    assert_eq!(worker.arrival(), Some(MigrationId(9)));
    // A failed write, as on a full disk, is not retried: that would happen after every message.
    std::fs::remove_file(&file).unwrap();
    worker.remember_arrival();
    assert!(!file.exists());
}
