//! Tests of lanes beside the worker's current role: which of them end together.

use super::*;
use crate::api::Phase;
use crate::engine::target_move::tests::receiving;
use crate::engine::tests::{ground, host, order};
use crate::engine::worker::tests::{greeted, owning, work_until};
use towpath_protocol::identity::{AttemptId, Epoch};
use towpath_protocol::message::Prepare;
use towpath_protocol::ownership::Ownership;
use towpath_protocol::source::FREEZE_DEADLINE;

#[test]
fn newer_lanes_of_a_visitor_outlive_its_older_ones() {
    let (_folder, shared) = host("");
    let mut worker = owning(&shared);
    let open = |worker: &mut Worker, number, lanes: &[Lane]| {
        let greeted = lanes.iter().map(|lane| {
            let (mut hello, lane, theirs) = greeted(&worker.ground, *lane);
            hello.link = number;
            worker.lane(order(9).target, &hello, lane);
            theirs
        });
        greeted.collect::<Vec<_>>()
    };
    let first = |worker: &Worker| {
        let link = worker.visitors.first()?.link.as_ref()?;
        Some(link.number)
    };
    let older = open(&mut worker, 1, &Lane::ALL);
    let older_number = first(&worker).expect("all of its lanes are open");
    let [early, late @ ..] = Lane::ALL;
    let _early = open(&mut worker, 2, &[early]);
    // The end of the older lanes is noticed while the newer ones are being opened.
    drop(older);
    work_until(&mut worker, |worker| first(worker).is_none());
    let _late = open(&mut worker, 2, &late);
    assert!(first(&worker).is_some_and(|newer| newer != older_number));
    assert_eq!(worker.visitors.len(), 1);
}

#[test]
fn a_visitor_that_reads_nothing_holds_nobody_up_and_goes() {
    let (_folder, shared) = host("");
    let mut worker = owning(&shared);
    let _theirs = Lane::ALL.map(|lane| {
        let (hello, lane, theirs) = greeted(&worker.ground, lane);
        worker.lane(order(9).target, &hello, lane);
        theirs
    });
    let link = worker.visitors[0].link.as_ref().expect("they are all open");
    let (number, begun) = (link.number, now());
    // More than a socket buffer holds.
    for nonce in 0..100_000 {
        worker.heard(number, Lane::Control, Message::Ping(nonce));
    }
    assert!(
        worker.visitors.is_empty(),
        "it stays, and what it asks is answered for ever"
    );
    assert!(
        now().since(begun) < FREEZE_DEADLINE,
        "a frozen guest waits for it"
    );
}

#[test]
fn an_offer_of_a_guest_that_lives_here_writes_nothing_to_its_folder() {
    let (folder, shared) = host("");
    let mut worker = owning(&shared);
    let _theirs = Lane::ALL.map(|lane| {
        let (hello, lane, theirs) = greeted(&worker.ground, lane);
        worker.lane(order(9).target, &hello, lane);
        theirs
    });
    let number = worker.visitors[0].link.as_ref().unwrap().number;
    let offer = Message::Prepare(Prepare {
        name: "till".parse().unwrap(),
        epoch: Epoch(3),
        spaces: Vec::new(),
        config: Vec::new(),
    });
    worker.heard(number, Lane::Control, offer);
    worker.end_if_over();
    assert!(matches!(worker.role, Some(Role::Idle(_))), "it is refused");
    let file = folder.path().join("state/guests/till/arrival.json");
    assert!(!file.exists());
}

#[test]
fn an_attempt_whose_place_a_newer_one_takes_was_cancelled_by_nobody() {
    let (_folder, shared) = host("");
    let ground = ground(&shared);
    let open = receiving(&ground, 3);
    let newer = Setup {
        attempt: AttemptId(10),
        ..open.setup().clone()
    };
    let vacant = Ownership::vacant(shared.host.clone(), ground.id);
    let mut worker = Worker::new(ground, vacant);
    worker.role = Some(Role::Target(Box::new(open)));
    let offer = Message::Prepare(Prepare {
        name: "till".parse().unwrap(),
        epoch: Epoch(3),
        spaces: Vec::new(),
        config: Vec::new(),
    });
    worker.make_way(&newer, &offer).expect("it makes way");
    let view = shared.board().moves[&newer.migration].clone();
    let error = view.error.expect("why it ended");
    assert_eq!((view.phase, error.host), (Phase::Failed, None));
    assert_eq!(error.code, Code::StaleEpoch.as_str());
}
