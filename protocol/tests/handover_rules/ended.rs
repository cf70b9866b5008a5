//! The answers of a host about a guest that was ended there.

use towpath_protocol::fault::Code;
use towpath_protocol::identity::Epoch;
use towpath_protocol::ownership::{Event, Ownership, Record, State, Word};

use super::{
    GUEST, check_ignored, commit, drain, feed, hear, host, offering, owner, prepare, prepared,
    ready, relinquished, taken, words,
};

/// Restarts a machine from the record that remains after its guest was ended.
fn ended(machine: &Ownership, name: &str) -> Ownership {
    let kept = machine.remainder().expect("at rest").expect("handed over");
    let kept = Record::decode(&kept.encode()).expect("our own record");
    let mut machine = Ownership::recover(host(name), kept);
    drain(&mut machine);
    machine
}

#[test]
fn h03_a_guest_that_was_taken_and_ended_is_neither_refused_nor_taken_again() {
    let mut taken = taken();
    feed(&mut taken, Event::ImageComplete);
    let mut machine = ended(&taken, "b");
    assert!(!machine.may_run());
    // Its source has not heard of it. It lets go, and does not resume the guest, which the target
    // has changed since.
    assert_eq!(
        words(&feed(&mut machine, hear("a", 1, commit(2)))),
        [Word::Ack, Word::Complete]
    );
    check_ignored(&machine, &hear("a", 2, prepare(2)), Code::StaleEpoch);
    check_ignored(&machine, &hear("c", 2, commit(2)), Code::StaleEpoch);
    // It may come back under a newer epoch.
    let actions = feed(&mut machine, hear("a", 3, prepare(3)));
    assert_eq!(words(&actions), [Word::Prepared]);
}

#[test]
fn h03_a_refusal_outlives_whatever_is_ended() {
    let mut machine = Ownership::vacant(host("b"), GUEST);
    assert_eq!(
        words(&feed(&mut machine, hear("a", 1, commit(2)))),
        [Word::Nack]
    );
    let mut machine = ended(&machine, "b");
    assert_eq!(
        words(&feed(&mut machine, hear("a", 1, commit(2)))),
        [Word::Nack]
    );
}

#[test]
fn a_guest_between_two_hosts_is_not_ended_and_one_that_never_moved_leaves_nothing() {
    for machine in [offering(), relinquished(true), prepared(), ready()] {
        let refused = machine.remainder().expect_err("between two hosts");
        assert_eq!(refused.code, Code::State);
    }
    assert_eq!(owner().remainder(), Ok(None));
    // A guest that was offered keeps its mark, because the attempt's number is used.
    let mut stayed = offering();
    feed(&mut stayed, Event::Withdraw);
    let kept = stayed.remainder().expect("at rest").expect("handed over");
    assert_eq!((kept.state, kept.high_water), (State::Vacant, Epoch(2)));
}
