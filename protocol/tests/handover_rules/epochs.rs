//! How a guest can be moved to a host that has seen higher epochs of it than its owner.

use towpath_protocol::fault::Code;
use towpath_protocol::identity::Epoch;
use towpath_protocol::ownership::{
    Action, EPOCH_FIRST_MAX, EPOCH_FOLLOW_MAX, EPOCH_MAX, Event, Ownership, State, Word,
};

use super::{
    GUEST, attempt, check_ignored, feed, hear, host, offering, owner, prepare, relinquished, taken,
    words,
};

/// Offers the guest, and returns the offered epoch.
fn offers(machine: &mut Ownership, number: u128) -> u64 {
    let (attempt, target) = (attempt(number), host("b"));
    match words(&feed(machine, Event::Offer { attempt, target }))[..] {
        [Word::Prepare { epoch }] => epoch.0,
        ref said => panic!("{said:?}"),
    }
}

#[test]
fn h02_offers_of_another_do_not_bar_a_guest_from_a_host() {
    let mut target = taken();
    feed(&mut target, Event::ImageComplete);
    // The guest went back to its source. Host "c" now makes false offers with ever higher epochs.
    let mut target = Ownership::recover(host("b"), target.remainder().unwrap().unwrap());
    let mut source = owner();
    // A third host that once had the guest.
    let remembered = Ownership::recover(host("e"), target.record().clone());
    for number in (10..40).step_by(2) {
        let far = target.record().high_water.0 + EPOCH_FOLLOW_MAX;
        feed(&mut target, hear("c", number, prepare(far)));
        feed(&mut target, hear("c", number, Word::Abort));
        let offered = offers(&mut source, number + 1);
        let stale = hear("a", number + 1, prepare(offered));
        check_ignored(&target, &stale, Code::StaleEpoch);
        feed(&mut source, Event::Withdraw);
        let mark = target.record().high_water;
        let actions = feed(&mut source, Event::Outrun { mark });
        assert!(matches!(&actions[..], [Action::Persist(record)] if record.high_water == mark));
        let offered = offers(&mut source, number + 1);
        assert_eq!(offered, mark.0 + 1);
        let actions = feed(&mut target, hear("a", number + 1, prepare(offered)));
        assert_eq!(words(&actions), [Word::Prepared]);
        feed(&mut target, hear("a", number + 1, Word::Abort));
        // A host that has never heard of the guest accepts the offer too.
        let mut other = Ownership::vacant(host("d"), GUEST);
        let actions = feed(&mut other, hear("a", number + 1, prepare(offered)));
        assert_eq!(words(&actions), [Word::Prepared]);
        // After many such steps, so does a host that remembers the guest's old epoch.
        let mut other = remembered.clone();
        let actions = feed(&mut other, hear("a", number + 1, prepare(offered)));
        assert_eq!(words(&actions), [Word::Prepared]);
        feed(&mut source, Event::Withdraw);
    }
}

#[test]
fn h02_only_an_owner_outruns_a_mark_and_none_that_takes_all_numbers() {
    let far = Epoch(1 + EPOCH_FOLLOW_MAX + 1);
    for mark in [far, EPOCH_MAX, Epoch(u64::MAX)] {
        check_ignored(&owner(), &Event::Outrun { mark }, Code::Meta);
    }
    for machine in [offering(), relinquished(true)] {
        let mark = Epoch(5);
        check_ignored(&machine, &Event::Outrun { mark }, Code::State);
    }
    let mut machine = owner();
    let mark = Epoch(1);
    assert_eq!(feed(&mut machine, Event::Outrun { mark }), []);
    assert!(matches!(machine.record().state, State::Owned { .. }));
}

#[test]
fn a_forced_epoch_is_taken_by_a_host_that_has_seen_the_guest_and_by_one_that_has_not() {
    let forced = 1_u64 << 32;
    let mut known = Ownership::vacant(host("b"), GUEST);
    feed(&mut known, hear("a", 1, prepare(2)));
    feed(&mut known, hear("a", 1, Word::Abort));
    for mut machine in [known, Ownership::vacant(host("b"), GUEST)] {
        let actions = feed(&mut machine, hear("a", 2, prepare(2 + 2 * forced)));
        assert_eq!(words(&actions), [Word::Prepared]);
    }
    let machine = Ownership::vacant(host("b"), GUEST);
    let beyond = prepare(EPOCH_FIRST_MAX.0 + 1);
    check_ignored(&machine, &hear("a", 1, beyond), Code::Meta);
}
