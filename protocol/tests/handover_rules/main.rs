//! The rules of `docs/handover.md`, one by one, on the real machine.

mod ended;
mod epochs;
mod verdicts;

use towpath_protocol::fault::Code;
use towpath_protocol::identity::{AttemptId, Epoch, GuestId, HostIdentity};
use towpath_protocol::ownership::{
    Action, Decider, Delivery, EPOCH_MAX, EPOCH_STEP_MAX, Event, Holder, Origin, Ownership,
    RECORD_BYTES_MAX, Record, Root, State, VERDICT_COUNT_MAX, Verdict, Word,
};

const GUEST: GuestId = GuestId(7);
const ROOT: Root = Root([7; 32]);
const OTHER_ROOT: Root = Root([8; 32]);

fn host(name: &str) -> HostIdentity {
    HostIdentity {
        trust_domain: "shop.example".parse().expect("a name"),
        site: "site".parse().expect("a name"),
        host: name.parse().expect("a name"),
    }
}

fn attempt(number: u128) -> AttemptId {
    AttemptId(number)
}

fn drain(machine: &mut Ownership) -> Vec<Action> {
    std::iter::from_fn(|| machine.poll()).collect()
}

/// Handles an event and returns the actions.
fn feed(machine: &mut Ownership, event: Event) -> Vec<Action> {
    machine.handle(event).expect("the event fits");
    drain(machine)
}

fn hear(from: &str, number: u128, word: Word) -> Event {
    Event::Heard {
        from: host(from),
        attempt: attempt(number),
        word,
    }
}

/// Asserts that an event is ignored: a fault with this code, and no change.
fn check_ignored(machine: &Ownership, event: &Event, code: Code) {
    let mut after = machine.clone();
    let fault = after.handle(event.clone()).expect_err("to be ignored");
    assert_eq!(fault.code, code, "{event:?}: {fault}");
    assert_eq!(&after, machine, "{event:?} changed the machine");
}

fn words(actions: &[Action]) -> Vec<Word> {
    let word = |action: &Action| match action {
        Action::Say { word, .. } => Some(word.clone()),
        _ => None,
    };
    actions.iter().filter_map(word).collect()
}

fn commit(epoch: u64) -> Word {
    Word::Commit {
        epoch: Epoch(epoch),
        root: ROOT,
    }
}

fn prepare(epoch: u64) -> Word {
    Word::Prepare {
        epoch: Epoch(epoch),
    }
}

/// Host "a" owns the guest with epoch 1.
fn owner() -> Ownership {
    Ownership::owner(host("a"), GUEST, Epoch(1)).0
}

/// Host "a" offers it to "b" as attempt 1, epoch 2.
fn offering() -> Ownership {
    let mut machine = owner();
    let target = host("b");
    let attempt = attempt(1);
    feed(&mut machine, Event::Offer { attempt, target });
    machine
}

fn relinquished(is_whole: bool) -> Ownership {
    let mut machine = offering();
    feed(
        &mut machine,
        Event::Sealed {
            root: ROOT,
            is_whole,
        },
    );
    feed(&mut machine, hear("b", 1, Word::Ready { root: ROOT }));
    assert!(matches!(machine.record().state, State::Relinquished { .. }));
    machine
}

/// Host "b" prepared attempt 1 of "a", epoch 2.
fn prepared() -> Ownership {
    let mut machine = Ownership::vacant(host("b"), GUEST);
    feed(&mut machine, hear("a", 1, prepare(2)));
    machine
}

fn ready() -> Ownership {
    let mut machine = prepared();
    feed(&mut machine, Event::ImageReady { root: ROOT });
    machine
}

/// Host "b" runs the guest; blocks are missing.
fn taken() -> Ownership {
    let mut machine = ready();
    feed(&mut machine, hear("a", 1, commit(2)));
    machine
}

fn restarted(machine: &Ownership, name: &str) -> (Ownership, Vec<Action>) {
    let mut after = Ownership::recover(host(name), machine.record().clone());
    let actions = drain(&mut after);
    (after, actions)
}

#[test]
fn a_guest_moves_and_each_step_is_durable_before_the_next() {
    let (mut a, _) = Ownership::owner(host("a"), GUEST, Epoch(1));
    let mut b = Ownership::vacant(host("b"), GUEST);
    let (attempt, target) = (attempt(1), host("b"));

    let actions = feed(&mut a, Event::Offer { attempt, target });
    assert!(matches!(
        actions[..],
        [Action::Persist(_), Action::Say { .. }]
    ));
    let actions = feed(&mut b, hear("a", 1, prepare(2)));
    assert!(matches!(
        actions[..],
        [Action::Persist(_), Action::Say { .. }]
    ));
    feed(&mut a, hear("b", 1, Word::Prepared));
    feed(
        &mut a,
        Event::Sealed {
            root: ROOT,
            is_whole: true,
        },
    );
    assert_eq!(
        words(&feed(&mut b, Event::ImageReady { root: ROOT })),
        [Word::Ready { root: ROOT }]
    );
    feed(&mut b, Event::ImageComplete);

    let actions = feed(&mut a, hear("b", 1, Word::Ready { root: ROOT }));
    let [Action::Persist(record), Action::Say { word, .. }] = &actions[..] else {
        panic!("{actions:?}");
    };
    assert!(matches!(record.state, State::Relinquished { .. }));
    assert_eq!(*word, commit(2));
    assert!(!a.may_run());

    let actions = feed(&mut b, hear("a", 1, commit(2)));
    let [
        Action::Persist(record),
        Action::Run { epoch },
        Action::Say { word, .. },
        ..,
    ] = &actions[..]
    else {
        panic!("{actions:?}");
    };
    assert!(matches!(record.state, State::Owned { .. }));
    assert_eq!((*epoch, word), (Epoch(2), &Word::Ack));
    assert!(b.may_run() && b.is_idle());

    let actions = feed(&mut a, hear("b", 1, Word::Ack));
    let [
        Action::Persist(record),
        Action::Say { .. },
        Action::FreeImage,
    ] = &actions[..]
    else {
        panic!("{actions:?}");
    };
    assert!(matches!(record.state, State::Released { .. }));
    assert!(a.is_idle());
}

#[test]
fn a_guest_comes_back_with_higher_epochs() {
    let mut b = taken();
    feed(&mut b, Event::ImageComplete);
    let (attempt, target) = (attempt(2), host("a"));
    assert_eq!(
        words(&feed(&mut b, Event::Offer { attempt, target })),
        [prepare(3)]
    );

    let mut a = relinquished(true);
    // While it waits for the answer it cannot take the guest back; after the answer it can.
    check_ignored(&a, &hear("b", 2, prepare(3)), Code::GuestExists);
    feed(&mut a, hear("b", 1, Word::Ack));
    feed(&mut a, hear("b", 2, prepare(3)));
    feed(&mut a, Event::ImageReady { root: ROOT });
    let actions = feed(&mut a, hear("b", 2, commit(3)));
    assert!(actions.contains(&Action::Run { epoch: Epoch(3) }));
    // Messages about the first move have no effect any more.
    check_ignored(&a, &hear("b", 1, Word::Ack), Code::Unexpected);
    check_ignored(&a, &hear("b", 1, Word::Nack), Code::Unexpected);
}

#[test]
fn h01_a_commit_said_again_is_answered_again_and_never_starts_twice() {
    let mut machine = taken();
    let again = |machine: &mut Ownership| {
        let actions = feed(machine, hear("a", 1, commit(2)));
        assert!(
            !actions
                .iter()
                .any(|action| matches!(action, Action::Run { .. }))
        );
        words(&actions)
    };
    assert_eq!(again(&mut machine), [Word::Ack]);
    feed(&mut machine, Event::ImageComplete);
    assert_eq!(again(&mut machine), [Word::Ack, Word::Complete]);

    let (mut machine, actions) = restarted(&machine, "b");
    assert_eq!(actions, [Action::Run { epoch: Epoch(2) }]);
    assert_eq!(again(&mut machine), [Word::Ack, Word::Complete]);

    // It leaves again, for a third host. The first source still gets its answer.
    let (second, target) = (attempt(2), host("c"));
    let attempt = second;
    feed(&mut machine, Event::Offer { attempt, target });
    assert_eq!(again(&mut machine), [Word::Ack, Word::Complete]);
    feed(
        &mut machine,
        Event::Sealed {
            root: ROOT,
            is_whole: true,
        },
    );
    feed(&mut machine, hear("c", 2, Word::Ready { root: ROOT }));
    assert_eq!(again(&mut machine), [Word::Ack, Word::Complete]);
    feed(&mut machine, hear("c", 2, Word::Ack));
    assert!(!machine.may_run());
    assert_eq!(again(&mut machine), [Word::Ack, Word::Complete]);
}

#[test]
fn h02_an_epoch_at_or_below_the_mark_is_stale() {
    let mut machine = Ownership::vacant(host("b"), GUEST);
    feed(&mut machine, hear("a", 1, prepare(5)));
    feed(&mut machine, hear("a", 1, Word::Abort));
    for epoch in [0, 1, 4, 5] {
        check_ignored(&machine, &hear("a", 2, prepare(epoch)), Code::StaleEpoch);
        check_ignored(&machine, &hear("a", 2, commit(epoch)), Code::StaleEpoch);
    }
    for epoch in [0, 1, 2] {
        check_ignored(&taken(), &hear("a", 3, commit(epoch)), Code::StaleEpoch);
    }
    let above = EPOCH_MAX.0 + 1;
    for word in [prepare(above), commit(above), prepare(u64::MAX)] {
        check_ignored(&machine, &hear("a", 2, word), Code::Meta);
    }
    // A single offer cannot use up all epochs of a guest.
    let far = 5 + EPOCH_STEP_MAX;
    check_ignored(&machine, &hear("a", 2, prepare(far + 1)), Code::Meta);
    feed(&mut machine, hear("a", 2, prepare(far)));
}

#[test]
fn h03_a_commit_never_prepared_is_refused_durably_and_for_ever() {
    let mut machine = Ownership::vacant(host("b"), GUEST);
    let actions = feed(&mut machine, hear("a", 1, commit(2)));
    let [Action::Persist(record), Action::Say { word, .. }] = &actions[..] else {
        panic!("{actions:?}");
    };
    assert!(matches!(record.state, State::Refused { .. }));
    assert_eq!((*word).clone(), Word::Nack);
    let (mut machine, actions) = restarted(&machine, "b");
    assert_eq!(actions, [Action::DiscardImage]);
    assert_eq!(
        words(&feed(&mut machine, hear("a", 1, commit(2)))),
        [Word::Nack]
    );
    check_ignored(&machine, &hear("a", 1, prepare(2)), Code::StaleEpoch);
}

#[test]
fn h03_a_commit_without_an_image_is_refused_durably() {
    let mut machine = prepared();
    let actions = feed(&mut machine, hear("a", 1, commit(2)));
    assert!(matches!(actions[0], Action::Persist(_)));
    assert_eq!(words(&actions), [Word::Nack]);
    assert!(!machine.may_run());
    // The image comes too late, and so does a replayed offer.
    assert!(machine.handle(Event::ImageReady { root: ROOT }).is_err());
    assert_eq!(
        words(&feed(&mut machine, hear("a", 1, prepare(2)))),
        [Word::Nack]
    );
    // Another attempt of the same source is possible; the first one stays refused meanwhile.
    feed(&mut machine, hear("a", 2, prepare(3)));
    feed(&mut machine, Event::ImageReady { root: ROOT });
    assert_eq!(
        words(&feed(&mut machine, hear("a", 1, commit(2)))),
        [Word::Nack]
    );
    assert!(!machine.may_run());
}

#[test]
fn h04_a_commit_of_another_host_or_with_another_root_is_not_obeyed() {
    check_ignored(&ready(), &hear("c", 1, commit(2)), Code::Denied);
    check_ignored(&ready(), &hear("c", 9, commit(9)), Code::Denied);
    check_ignored(&taken(), &hear("c", 1, commit(2)), Code::Denied);
    let other = Word::Commit {
        epoch: Epoch(2),
        root: OTHER_ROOT,
    };
    check_ignored(&ready(), &hear("a", 1, other), Code::RootMismatch);
    check_ignored(&ready(), &hear("c", 1, Word::Abort), Code::Denied);
    // Refused attempts belong to their source, too.
    let mut refused = ready();
    feed(&mut refused, Event::GiveUp);
    check_ignored(&refused, &hear("c", 1, commit(2)), Code::Denied);
    check_ignored(&refused, &hear("c", 1, prepare(9)), Code::Denied);
}

#[test]
fn h05_forged_and_replayed_answers_are_ignored() {
    for machine in [relinquished(true), relinquished(false), offering()] {
        for word in [
            Word::Ack,
            Word::Nack,
            Word::Complete,
            Word::Ready { root: ROOT },
        ] {
            check_ignored(&machine, &hear("c", 1, word.clone()), Code::Denied);
            check_ignored(&machine, &hear("b", 9, word.clone()), Code::Unexpected);
            check_ignored(&owner(), &hear("b", 1, word), Code::Unexpected);
        }
    }
    // The target cannot run the guest before the commit, and cannot refuse it once it runs.
    check_ignored(&offering(), &hear("b", 1, Word::Ack), Code::Unexpected);
    check_ignored(&offering(), &hear("b", 1, Word::Complete), Code::Unexpected);
    let mut machine = relinquished(false);
    feed(&mut machine, hear("b", 1, Word::Ack));
    check_ignored(&machine, &hear("b", 1, Word::Nack), Code::Conflict);
    feed(&mut machine, hear("b", 1, Word::Complete));
    check_ignored(&machine, &hear("b", 1, Word::Nack), Code::Conflict);
}

#[test]
fn h06_two_sources_cannot_offer_the_same_guest() {
    for machine in [prepared(), ready(), restarted(&ready(), "b").0] {
        for epoch in [1, 2, 3, 100] {
            check_ignored(&machine, &hear("c", 2, prepare(epoch)), Code::DoubleOffer);
        }
    }
}

#[test]
fn h07_a_guest_that_lives_here_is_not_received() {
    for machine in [owner(), offering(), relinquished(true), taken()] {
        for epoch in [1, 2, 3, 100] {
            check_ignored(&machine, &hear("c", 2, prepare(epoch)), Code::GuestExists);
        }
        check_ignored(&machine, &hear("c", 2, commit(100)), Code::GuestExists);
    }
}

#[test]
fn a_newer_attempt_of_the_same_source_replaces_the_older() {
    let mut machine = ready();
    check_ignored(&machine, &hear("a", 1, prepare(3)), Code::Conflict);
    let actions = feed(&mut machine, hear("a", 2, prepare(4)));
    let [
        Action::Persist(record),
        Action::DiscardImage,
        Action::Say { .. },
    ] = &actions[..]
    else {
        panic!("{actions:?}");
    };
    assert_eq!(record.high_water, Epoch(4));
    assert_eq!(
        words(&feed(&mut machine, hear("a", 1, commit(2)))),
        [Word::Nack]
    );
    // The new attempt has no image yet.
    assert_eq!(
        words(&feed(&mut machine, hear("a", 2, commit(4)))),
        [Word::Nack]
    );
}

#[test]
fn post_copy_releases_only_what_is_complete() {
    let mut machine = relinquished(false);
    feed(&mut machine, hear("b", 1, Word::Ack));
    let (mut machine, _) = restarted(&machine, "a");
    assert!(!machine.may_run());
    let actions = feed(&mut machine, hear("b", 1, Word::Complete));
    assert!(actions.contains(&Action::FreeImage));

    // A target cannot offer a guest that it does not have whole, even after a restart.
    let event = Event::Offer {
        attempt: attempt(2),
        target: host("c"),
    };
    check_ignored(&taken(), &event, Code::State);
    let (mut machine, _) = restarted(&taken(), "b");
    check_ignored(&machine, &event, Code::State);
    check_ignored(&machine, &hear("a", 1, Word::Released), Code::ImageLost);
    let actions = feed(&mut machine, Event::ImageComplete);
    assert!(matches!(actions[0], Action::Persist(_)));
    assert_eq!(words(&actions), [Word::Complete]);
    feed(&mut machine, event);
}

#[test]
fn a_refusal_lets_the_source_run_on_under_fresh_epochs() {
    for mut machine in [relinquished(true), restarted(&relinquished(false), "a").0] {
        let actions = feed(&mut machine, hear("b", 1, Word::Nack));
        let [Action::Persist(record), Action::Thaw] = &actions[..] else {
            panic!("{actions:?}");
        };
        let missing_from = None;
        let epoch = Epoch(1);
        assert_eq!(
            record.state,
            State::Owned {
                epoch,
                missing_from
            }
        );
        let (attempt, target) = (attempt(2), host("b"));
        assert_eq!(
            words(&feed(&mut machine, Event::Offer { attempt, target })),
            [prepare(3)]
        );
    }
    // Before the commit a refusal ends the attempt as well.
    let mut machine = offering();
    feed(&mut machine, hear("b", 1, Word::Nack));
    assert!(matches!(machine.record().state, State::Owned { .. }));
}

#[test]
fn nothing_but_the_target_undoes_a_commit() {
    let machine = relinquished(true);
    check_ignored(&machine, &Event::Withdraw, Code::State);
    check_ignored(&machine, &Event::Unsealed, Code::State);
    check_ignored(&machine, &Event::GiveUp, Code::State);
    let (mut after, actions) = restarted(&machine, "a");
    assert_eq!(actions, []);
    assert!(!after.may_run());
    assert_eq!(words(&feed(&mut after, Event::Repeat)), [commit(2)]);
    // A target that finds its image again gets the commit at once.
    assert_eq!(
        words(&feed(&mut after, hear("b", 1, Word::Ready { root: ROOT }))),
        [commit(2)]
    );
}

#[test]
fn a_restart_before_the_commit_takes_the_guest_back() {
    let (machine, actions) = restarted(&offering(), "a");
    let [
        Action::Persist(record),
        Action::Say { word, .. },
        Action::Thaw,
    ] = &actions[..]
    else {
        panic!("{actions:?}");
    };
    assert!(matches!(
        record.state,
        State::Owned {
            epoch: Epoch(1),
            ..
        }
    ));
    assert_eq!((word, record.high_water), (&Word::Abort, Epoch(2)));
    assert!(machine.may_run());
}

#[test]
fn a_restarted_target_waits_for_its_shell_to_look_for_the_image() {
    let (mut machine, actions) = restarted(&ready(), "b");
    assert_eq!(actions, []);
    assert_eq!(feed(&mut machine, hear("a", 1, commit(2))), []);
    let mut lost = machine.clone();
    feed(&mut machine, Event::ImageReady { root: ROOT });
    let actions = feed(&mut machine, hear("a", 1, commit(2)));
    assert!(actions.contains(&Action::Run { epoch: Epoch(2) }));

    let actions = feed(&mut lost, Event::GiveUp);
    assert!(matches!(
        actions[..],
        [
            Action::Persist(_),
            Action::Say {
                word: Word::Nack,
                ..
            },
            Action::DiscardImage
        ]
    ));
}

#[test]
fn an_unsealed_guest_is_not_given_away() {
    let mut machine = offering();
    feed(
        &mut machine,
        Event::Sealed {
            root: ROOT,
            is_whole: true,
        },
    );
    check_ignored(
        &machine,
        &hear("b", 1, Word::Ready { root: OTHER_ROOT }),
        Code::RootMismatch,
    );
    feed(&mut machine, Event::Unsealed);
    assert_eq!(
        feed(&mut machine, hear("b", 1, Word::Ready { root: ROOT })),
        []
    );
    assert!(machine.may_run());
    let actions = feed(&mut machine, Event::Withdraw);
    assert!(matches!(
        actions[..],
        [
            Action::Persist(_),
            Action::Say {
                word: Word::Abort,
                ..
            },
            Action::Thaw
        ]
    ));
}

#[test]
fn a_forgotten_attempt_gets_no_answer() {
    let mut machine = Ownership::vacant(host("b"), GUEST);
    let count = u64::try_from(VERDICT_COUNT_MAX).unwrap() + 1;
    let source = |number: u64| format!("source-{number}");
    for number in 1..=count {
        let (from, attempt) = (source(number), u128::from(number));
        feed(&mut machine, hear(&from, attempt, prepare(number)));
        feed(&mut machine, hear(&from, attempt, Word::Abort));
    }
    assert_eq!(machine.record().verdicts.len(), VERDICT_COUNT_MAX);
    check_ignored(&machine, &hear(&source(1), 1, commit(1)), Code::StaleEpoch);
    assert_eq!(
        words(&feed(&mut machine, hear(&source(2), 2, commit(2)))),
        [Word::Nack]
    );
}

#[test]
fn a_shell_that_never_polls_is_told_so() {
    let mut machine = ready();
    let fault = (0..1_000).find_map(|_| machine.handle(Event::Repeat).err());
    assert_eq!(fault.expect("a limit").code, Code::Busy);
}

#[test]
fn a_record_round_trips_and_anything_else_is_quarantined() {
    let mut machines = vec![
        Ownership::vacant(host("b"), GUEST),
        owner(),
        offering(),
        relinquished(true),
        relinquished(false),
        prepared(),
        taken(),
    ];
    let mut refused = ready();
    feed(&mut refused, Event::GiveUp);
    let mut released = relinquished(true);
    feed(&mut released, hear("b", 1, Word::Ack));
    machines.extend([refused, released]);
    for machine in machines {
        let bytes = machine.record().encode();
        assert_eq!(Record::decode(&bytes), Ok(machine.record().clone()));
        let check = |bytes: &[u8]| {
            let fault = Record::decode(bytes).expect_err("not a record");
            assert_eq!(fault.code, Code::Quarantine);
        };
        for end in 0..bytes.len() {
            check(&bytes[..end]);
        }
        check(&[&bytes[..], &[0]].concat());
        check(&[&[0], &bytes[..]].concat());
        for position in 0..5 {
            let mut flipped = bytes.clone();
            flipped[position] ^= 1;
            check(&flipped);
        }
        let mut impossible = machine.record().clone();
        if impossible.state != State::Vacant {
            impossible.high_water = Epoch(0);
            check(&impossible.encode());
        }
    }
}

#[test]
fn the_largest_record_fits() {
    let longest = HostIdentity {
        trust_domain: "d".repeat(63).parse().unwrap(),
        site: "s".repeat(63).parse().unwrap(),
        host: "h".repeat(63).parse().unwrap(),
    };
    let attempt = AttemptId(u128::MAX);
    let verdict = Verdict {
        origin: Origin {
            attempt,
            source: longest.clone(),
        },
        epoch: Epoch(u64::MAX),
        is_taken: true,
    };
    let record = Record {
        guest: GuestId(u128::MAX),
        high_water: Epoch(u64::MAX),
        decider: Decider::Witness,
        state: State::Offered {
            owned: Epoch(u64::MAX - 1),
            epoch: Epoch(u64::MAX),
            attempt,
            target: longest,
            root: Root([255; 32]),
            delivery: Delivery::Acknowledged,
        },
        verdicts: vec![verdict; VERDICT_COUNT_MAX],
    };
    let bytes = record.encode();
    assert!(bytes.len() <= RECORD_BYTES_MAX);
    assert_eq!(Record::decode(&bytes), Ok(record));
}

fn holder(name: &str, epoch: u64) -> Holder {
    let (host, epoch) = (host(name), Epoch(epoch));
    Holder { host, epoch }
}

fn shows(name: &str, epoch: u64) -> Event {
    let holder = holder(name, epoch);
    Event::Register { holder }
}

fn swap(expected: Holder, new: Holder) -> Action {
    Action::Swap { expected, new }
}

fn offer_word() -> Word {
    Word::Offer {
        owned: Epoch(1),
        epoch: Epoch(2),
        root: ROOT,
    }
}

/// Host "a" in mode B, after telling "b" that it may take the guest.
fn offered() -> Ownership {
    let (machine, _) = Ownership::owner(host("a"), GUEST, Epoch(1));
    let mut machine = machine.decided_by(Decider::Witness);
    let (attempt, target) = (attempt(1), host("b"));
    feed(&mut machine, Event::Offer { attempt, target });
    let is_whole = true;
    feed(
        &mut machine,
        Event::Sealed {
            root: ROOT,
            is_whole,
        },
    );
    let actions = feed(&mut machine, hear("b", 1, Word::Ready { root: ROOT }));
    assert!(matches!(actions[0], Action::Persist(_)));
    assert_eq!(words(&actions), [offer_word()]);
    machine
}

/// Host "b" in mode B, with the image, after it was told that it may take the guest.
fn taking() -> Ownership {
    let mut machine = Ownership::vacant(host("b"), GUEST).decided_by(Decider::Witness);
    feed(&mut machine, hear("a", 1, prepare(2)));
    feed(&mut machine, Event::ImageReady { root: ROOT });
    let actions = feed(&mut machine, hear("a", 1, offer_word()));
    assert_eq!(actions, [swap(holder("a", 1), holder("b", 2))]);
    assert!(!machine.may_run());
    machine
}

#[test]
fn mode_b_the_register_decides_for_the_target() {
    let mut machine = taking();
    let actions = feed(&mut machine, shows("b", 2));
    assert!(matches!(
        actions[..],
        [
            Action::Persist(_),
            Action::Run { .. },
            Action::Say {
                word: Word::Ack,
                ..
            },
            ..
        ]
    ));
    let mut machine = taking();
    let actions = feed(&mut machine, shows("a", 2));
    assert!(matches!(actions[0], Action::Persist(_)));
    assert_eq!(words(&actions), [Word::Nack]);
    assert!(!machine.may_run());
}

#[test]
fn mode_b_the_register_decides_for_the_source() {
    let mut machine = offered();
    let actions = feed(&mut machine, Event::Reclaim);
    assert_eq!(actions, [swap(holder("a", 1), holder("a", 2))]);
    assert!(!machine.may_run());
    for undecided_or_lost in [shows("a", 1), shows("b", 2), shows("c", 3)] {
        assert_eq!(feed(&mut machine, undecided_or_lost), []);
        assert!(!machine.may_run());
    }
    check_ignored(&machine, &Event::Withdraw, Code::State);
    let actions = feed(&mut machine, shows("a", 2));
    assert!(matches!(actions[..], [Action::Persist(_), Action::Thaw]));
    // The next attempt expects what the register shows now.
    assert!(matches!(
        machine.record().state,
        State::Owned {
            epoch: Epoch(2),
            ..
        }
    ));

    let (mut machine, actions) = restarted(&offered(), "a");
    assert_eq!(actions, [Action::ReadRegister]);
    feed(&mut machine, hear("b", 1, Word::Ack));
    assert!(matches!(machine.record().state, State::Released { .. }));
}

#[test]
fn mode_b_a_target_that_won_and_lost_its_image_hands_the_guest_back() {
    let (mut machine, actions) = restarted(&taking(), "b");
    assert_eq!(actions, []);
    let actions = feed(&mut machine, Event::GiveUp);
    assert!(matches!(actions[0], Action::Persist(_)));
    assert_eq!(actions[1], swap(holder("b", 2), holder("a", 2)));
    // And again, in case the first swap came late.
    let actions = feed(&mut machine, hear("a", 1, offer_word()));
    assert_eq!(actions[0], swap(holder("b", 2), holder("a", 2)));

    let mut source = offered();
    let actions = feed(&mut source, hear("b", 1, Word::Nack));
    assert_eq!(actions, [swap(holder("a", 1), holder("a", 2))]);
    feed(&mut source, shows("a", 2));
    assert!(source.may_run());
}

#[test]
fn hosts_that_disagree_on_the_decider_refuse_each_other() {
    let mut machine = ready();
    let actions = feed(&mut machine, hear("a", 1, offer_word()));
    assert!(matches!(actions[0], Action::Persist(_)));
    assert_eq!(words(&actions), [Word::Nack]);
    check_ignored(&ready(), &shows("b", 2), Code::State);

    let mut machine = Ownership::vacant(host("b"), GUEST).decided_by(Decider::Witness);
    feed(&mut machine, hear("a", 1, prepare(2)));
    feed(&mut machine, Event::ImageReady { root: ROOT });
    assert_eq!(
        words(&feed(&mut machine, hear("a", 1, commit(2)))),
        [Word::Nack]
    );
    assert!(!machine.may_run());
}
