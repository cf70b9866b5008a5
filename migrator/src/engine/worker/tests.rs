//! What a guest's worker goes on with, whoever else wants something of it.

use std::os::unix::net::UnixStream;

use towpath_protocol::identity::Epoch;
use towpath_protocol::message::{Hello, Lane};
use towpath_protocol::version;

use super::*;
use crate::engine::lanes::{IDLE_WAIT, OpenLane};
use crate::engine::tests::{ground, host, order};
use crate::lane::LaneReader;

/// A lane of a peer that says nothing on it.
fn greeted(worker: &mut Worker, lane: Lane) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let reader = LaneReader::for_socket(ours.try_clone().unwrap(), IDLE_WAIT).unwrap();
    let hello = Hello {
        versions: version::OURS,
        migration: MigrationId(9),
        attempt: AttemptId(9),
        guest: worker.ground.id,
        lane,
        link: 1,
    };
    worker.take_in(Input::Lane {
        from: order(9).target,
        hello,
        lane: OpenLane {
            lane,
            socket: ours,
            reader,
        },
    });
    theirs
}

#[test]
fn lanes_without_an_offer_keep_a_guest_from_nothing() {
    let (_folder, shared) = host("");
    let mut ground = ground(&shared);
    let (ownership, record) = Ownership::owner(shared.host.clone(), ground.id, Epoch(1));
    ground.persist(&record).unwrap();
    let mut worker = Worker::new(ground, ownership);
    let _theirs = Lane::ALL.map(|lane| greeted(&mut worker, lane));
    // What its process is told when that is found again is told to an idle guest's.
    assert!(matches!(worker.role, Some(Role::Idle(_))));
    worker.retry = Some((now(), Box::new(order(1))));
    worker.tick();
    let board = shared.board();
    let error = board.moves[&MigrationId(1)].error.as_ref().unwrap();
    // It came as far as to look for the guest's memory, which no test has.
    assert_eq!(error.code, Code::Guest.as_str(), "{error:?}");
}
