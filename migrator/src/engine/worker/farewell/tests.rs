//! Tests of which targets are told that a move is over: every one that may still keep part of it.

use std::os::unix::net::UnixListener;
use std::sync::mpsc::channel;

use tempfile::TempDir;
use towpath_protocol::identity::Epoch;
use towpath_protocol::image::CHAIN_START;
use towpath_protocol::message::Received;
use towpath_protocol::ownership::Ownership;

use super::*;
use crate::engine::fake::{Fake, Standing};
use crate::engine::tests::{PATIENCE, ground, host, order};
use crate::engine::worker::Role;
use crate::engine::worker::tests::{all_greeted, owning, work_until};

/// The worker of a running guest that is owned here, on a host without a tunnel.
fn owner() -> (TempDir, Worker, Fake) {
    let (folder, shared) = host("");
    let mut ground = ground(&shared);
    let (ownership, record) = Ownership::owner(shared.host.clone(), ground.id, Epoch(1));
    ground.persist(&record).unwrap();
    let fake = Fake::start(&ground, Standing::default());
    ground.adopt_process(PATIENCE).unwrap();
    (folder, Worker::new(ground, ownership), fake)
}

/// Begins the next attempt of a move whose target may have heard of the last one.
fn begin_next(worker: &mut Worker, number: u128) -> AttemptId {
    worker.retry = Some((now(), Box::new(order(number))));
    worker.tick();
    attempt(worker)
}

fn attempt(worker: &Worker) -> AttemptId {
    let Some(Role::Source(source)) = &worker.role else {
        panic!("no attempt is under way");
    };
    source.order().attempt
}

/// The attempts whose farewells a restart would find.
fn kept(worker: &Worker) -> Vec<AttemptId> {
    let all = Farewells::load(&worker.ground).unwrap();
    all.iter().map(|over| over.attempt).collect()
}

fn cancel(worker: &mut Worker, number: u128) {
    worker.cancel(MigrationId(number)).unwrap();
    worker.end_if_over();
}

/// Brings up the lanes that the current attempt is opening.
fn open_lanes(worker: &mut Worker) -> u64 {
    loop {
        let until = std::time::Instant::now() + PATIENCE;
        match worker.ground.mailbox.receive(Some(until)) {
            Some(Input::Opened { link, .. }) => {
                let (lanes, theirs) = all_greeted(&worker.ground);
                // Kept open for the whole test; what is sent on them is not read.
                std::mem::forget(theirs);
                let result = Ok(lanes);
                worker.take_in(Input::Opened { link, result });
                return link;
            }
            Some(input) => worker.take_in(input),
            None => panic!("no lanes are opened"),
        }
    }
}

/// Whether every farewell was tried and will be tried again.
fn are_all_tried(worker: &Worker) -> bool {
    let all = &worker.farewells.0;
    let is_tried = |one: &Farewell| matches!(one.due, Due::At(at) if at > now());
    !all.is_empty() && all.iter().all(is_tried)
}

/// An ended attempt with its target.
fn over(attempt: u128, target: &HostIdentity) -> Over {
    Over {
        migration: MigrationId(1),
        attempt: AttemptId(attempt),
        target: target.clone(),
    }
}

#[test]
fn a_farewell_that_is_being_said_is_not_said_a_second_time_beside_that() {
    let mut farewells = Farewells::default();
    let target = order(1).target;
    let at = now();
    farewells.note(over(1, &target), Due::At(at));
    assert_eq!(farewells.take_due(at), [over(1, &target)]);
    // This happens whenever a move ends meanwhile.
    farewells.release(at);
    assert_eq!(farewells.take_due(at), []);
    let mut other = target.clone();
    other.host = "other".parse().unwrap();
    farewells.note(over(2, &other), Due::Held);
    assert_eq!(farewells.take_due(at), []);
    farewells.release(at);
    assert_eq!(farewells.take_due(at).len(), 1, "one that was held");
}

#[test]
fn a_target_is_told_one_farewell_at_a_time_the_newest_first() {
    let mut farewells = Farewells::default();
    let (target, mut other) = (order(1).target, order(1).target);
    other.host = "other".parse().unwrap();
    let at = now();
    farewells.note(over(1, &target), Due::At(at));
    farewells.note(over(2, &other), Due::At(at));
    farewells.note(over(3, &target), Due::At(at));
    let said = farewells.take_due(at);
    assert_eq!(said, [over(3, &target), over(2, &other)]);
    // A farewell that waits for another sets no timer.
    assert_eq!(farewells.next_due(), None);
    farewells.0.retain(|one| one.over.attempt != AttemptId(3));
    assert_eq!(farewells.next_due(), Some(at));
    assert_eq!(farewells.take_due(at), [over(1, &target)]);
}

#[test]
fn a_target_hears_of_a_cancelled_move_that_began_anew_in_an_outage() {
    let (_folder, mut worker, _fake) = owner();
    let newer = begin_next(&mut worker, 1);
    assert_ne!(newer, AttemptId(1));
    cancel(&mut worker, 1);
    // The newer attempt never had lanes, so the target only knows the one before.
    assert_eq!(kept(&worker), [AttemptId(1)]);
    work_until(&mut worker, are_all_tried);
}

#[test]
fn a_target_hears_of_a_cancelled_move_whatever_was_ordered_and_cancelled_since() {
    let (_folder, mut worker, _fake) = owner();
    worker.bid_farewell(&order(1), false);
    let mut second = order(2);
    second.attempts = 0;
    second.may_be_heard = false;
    worker.begin_move(second).unwrap();
    cancel(&mut worker, 2);
    assert_eq!(kept(&worker), [AttemptId(1)]);
    work_until(&mut worker, are_all_tried);
}

#[test]
fn a_target_hears_of_both_attempts_where_the_newer_one_may_not_have_reached_it() {
    let (_folder, mut worker, _fake) = owner();
    let newer = begin_next(&mut worker, 1);
    open_lanes(&mut worker);
    cancel(&mut worker, 1);
    assert_eq!(kept(&worker), [AttemptId(1), newer]);
    work_until(&mut worker, are_all_tried);
}

#[test]
fn a_target_that_took_the_newer_attempt_need_not_hear_of_the_older_one() {
    let (_folder, mut worker, _fake) = owner();
    begin_next(&mut worker, 1);
    let link = open_lanes(&mut worker);
    assert_eq!(kept(&worker), [AttemptId(1)]);
    let message = Message::Prepared(Received {
        through_sequence: 0,
        chain: CHAIN_START,
    });
    let lane = Lane::Control;
    worker.take_in(Input::Heard {
        link,
        lane,
        message,
    });
    assert_eq!(kept(&worker), []);
}

#[test]
fn a_move_that_goes_on_is_not_ended_by_the_farewell_to_its_older_attempt() {
    let (_folder, mut worker, _fake) = owner();
    let newer = begin_next(&mut worker, 1);
    // Simulates a restart at this point.
    worker.recover_farewells();
    let order = Order::load(&worker.ground).unwrap().expect("the move");
    assert_eq!(order.attempt, newer);
    // If the current attempt itself is over, so is the move.
    worker
        .farewells
        .note_order(&worker.ground, &order, Due::Held);
    order.save(&worker.ground).unwrap();
    worker.recover_farewells();
    assert_eq!(Order::load(&worker.ground).unwrap(), None);
}

#[test]
fn a_target_that_is_away_while_the_guest_is_stopped_hears_of_that_later() {
    let (_folder, shared) = host("");
    let mut worker = owning(&shared);
    worker.retry = Some((now() + PATIENCE, Box::new(order(1))));
    worker.stop().unwrap();
    let until = std::time::Instant::now() + PATIENCE;
    let tried = worker.ground.mailbox.receive(Some(until));
    let is_in_vain = matches!(tried, Some(Input::FarewellSaid { result: Err(_), .. }));
    assert!(is_in_vain, "{tried:?}");
    drop(worker);
    // The tunnel is there again.
    let socket = shared.config.tunnel_socket();
    std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
    let tunnel = UnixListener::bind(socket).unwrap();
    let (heard, hears) = channel();
    std::thread::spawn(move || heard.send(tunnel.accept().map(drop)));
    hears.recv_timeout(PATIENCE).expect("it is told").unwrap();
}

#[test]
fn a_target_that_refuses_the_lanes_has_not_heard_what_was_said_on_them() {
    let refused = |code| Message::Refused((&Fault::new(code, "not now")).into());
    for (word, heard) in [
        (Message::Ping(1), None),
        (refused(Code::Busy), Some(Code::Busy)),
        (refused(Code::Quarantine), Some(Code::Quarantine)),
    ] {
        let (_folder, shared) = host("");
        let ground = ground(&shared);
        let (lanes, mut theirs) = all_greeted(&ground);
        let mut control = theirs.swap_remove(0);
        let mut said = Vec::new();
        word.encode(&mut said);
        std::io::Write::write_all(&mut control, &said).unwrap();
        control.shutdown(std::net::Shutdown::Write).unwrap();
        let result = say_on(1, lanes);
        assert_eq!(result.err().map(|fault| fault.code), heard);
        let again = heard.is_some_and(|code| may_pass(&Fault::new(code, "")));
        assert_eq!(again, heard == Some(Code::Busy));
    }
}
