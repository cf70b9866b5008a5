//! Tests that a guest's worker keeps working whatever else is asked of it.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use towpath_protocol::identity::Epoch;
use towpath_protocol::message::{Hello, Lane};
use towpath_protocol::ownership::{Decider, Delivery, Root};
use towpath_protocol::version;

use super::*;
use crate::engine::lanes::{IDLE_WAIT, OpenLane};
use crate::engine::shared::Shared;
use crate::engine::tests::{PATIENCE, ground, host, order};
use crate::lane::LaneReader;

/// A greeted lane whose peer sends nothing.
pub(in crate::engine) fn greeted(ground: &Ground, lane: Lane) -> (Hello, OpenLane, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let hello = Hello {
        versions: version::OURS,
        migration: MigrationId(9),
        attempt: AttemptId(9),
        guest: ground.id,
        lane,
        link: 1,
    };
    let reader = LaneReader::for_socket(ours.try_clone().unwrap(), IDLE_WAIT).unwrap();
    let socket = ours;
    let open = OpenLane {
        lane,
        socket,
        reader,
    };
    (hello, open, theirs)
}

/// All four lanes of a link, greeted, and the peer's ends.
pub(in crate::engine) fn all_greeted(ground: &Ground) -> (Vec<OpenLane>, Vec<UnixStream>) {
    let all = Lane::ALL.map(|lane| greeted(ground, lane));
    all.into_iter()
        .map(|(_, lane, theirs)| (lane, theirs))
        .unzip()
}

/// The worker of a guest that this host owns.
pub(in crate::engine) fn owning(shared: &Arc<Shared>) -> Worker {
    let mut ground = ground(shared);
    let (ownership, record) = Ownership::owner(shared.host.clone(), ground.id, Epoch(1));
    ground.persist(&record).unwrap();
    Worker::new(ground, ownership)
}

#[test]
fn lanes_without_an_offer_keep_a_guest_from_nothing() {
    let (_folder, shared) = host("");
    let mut worker = owning(&shared);
    let _theirs = Lane::ALL.map(|lane| {
        let (hello, lane, theirs) = greeted(&worker.ground, lane);
        let from = order(9).target;
        worker.take_in(Input::Lane { from, hello, lane });
        theirs
    });
    // When its process is found again, the worker treats the guest as idle.
    assert!(matches!(worker.role, Some(Role::Idle(_))));
    worker.retry = Some((now(), Box::new(order(1))));
    worker.tick();
    let board = shared.board();
    let error = board.moves[&MigrationId(1)].error.as_ref().unwrap();
    // The move got as far as looking for the guest's memory, which tests do not have.
    assert_eq!(error.code, Code::Guest.as_str(), "{error:?}");
}

#[test]
fn who_moves_a_guest_that_moves_hears_how_to_follow_that() {
    let (_folder, shared) = host("");
    let mut worker = owning(&shared);
    worker.retry = Some((now() + PATIENCE, Box::new(order(1))));
    let refused = worker.begin_move(order(2)).unwrap_err();
    assert_eq!(refused.code, Code::State, "{refused}");
    let watch = format!("`towpath migration watch {}`", MigrationId(1));
    let remedy = refused.remedy.unwrap_or_default();
    assert!(remedy.contains(&watch), "{remedy}");
}

/// Runs the worker's loop until `holds` is true.
pub(super) fn work_until(worker: &mut Worker, holds: impl Fn(&Worker) -> bool) {
    let begun = now();
    while !holds(worker) {
        let until = to_wait_until(worker.deadline());
        match worker.ground.mailbox.receive(Some(until)) {
            Some(input) => worker.take_in(input),
            None => worker.tick(),
        }
        assert!(now().since(begun) < PATIENCE, "it does not come to that");
    }
}

#[test]
fn a_relinquished_guests_move_that_cannot_be_taken_up_yet_is_tried_again() {
    let (folder, shared) = host("");
    let mut ground = ground(&shared);
    let record = Record {
        guest: ground.id,
        high_water: Epoch(2),
        decider: Decider::SourceJournal,
        state: State::Relinquished {
            owned: Epoch(1),
            epoch: Epoch(2),
            attempt: order(1).attempt,
            target: order(1).target,
            root: Root([1; 32]),
            delivery: Delivery::Whole,
        },
        verdicts: Vec::new(),
    };
    ground.persist(&record).unwrap();
    let file = folder.path().join("state/guests/till/move.json");
    std::fs::write(file, vec![b' '; 2 << 20]).unwrap();
    let mut worker = Worker::recover(ground, record);
    assert!(matches!(&worker.role, Some(Role::Broken(_, fault)) if fault.code == Code::Io));
    order(1).save(&worker.ground).unwrap();
    work_until(
        &mut worker,
        |worker| matches!(&worker.role, Some(Role::Source(source)) if source.is_committed()),
    );
}
