//! Tests of how long a target waits for a source, which lanes it uses and which offers it takes.

use towpath_protocol::guest_api::VCPU_COUNT_MAX;
use towpath_protocol::identity::{AttemptId, Epoch, GuestId, HostIdentity, MigrationId};
use towpath_protocol::message::Received;
use towpath_protocol::ownership::{Event as LawEvent, Word};

use super::*;
use crate::api::{Phase, Role};
use crate::engine::shared::Handle;
use crate::engine::tests::{ground, host, order};
use crate::engine::worker::tests::greeted;

/// The state a previous migrator left of an attempt for which `present` blocks had arrived.
fn recovered(ground: &Ground, present: u64) -> Target {
    let config = ground.config.as_ref().unwrap();
    let (source, attempt) = (order(9).target, AttemptId(9));
    let mut law = Ownership::vacant(ground.shared.host.clone(), ground.id);
    let epoch = Epoch(2);
    let from = source.clone();
    let word = Word::Prepare { epoch };
    law.handle(LawEvent::Heard {
        from,
        attempt,
        word,
    })
    .unwrap();
    let law = Ownership::recover(ground.shared.host.clone(), law.record().clone());
    let setup = Setup {
        host: ground.shared.host.clone(),
        source,
        migration: MigrationId(9),
        attempt,
        guest: ground.id,
    };
    let mut blocks = BlockSet::empty(config.block_count());
    for block in 0..present {
        blocks.insert(block);
    }
    let remains = Remains {
        prepare: Prepare {
            name: config.name.clone(),
            epoch,
            spaces: spaces_of(config),
            config: config.to_bytes(),
        },
        present: vec![blocks],
        position: Received {
            through_sequence: present,
            chain: [1; 32],
        },
    };
    Target::recover(setup, law, remains).unwrap()
}

/// An arriving guest of which `present` blocks are here.
pub(in crate::engine) fn receiving(ground: &Ground, present: u64) -> TargetMove {
    TargetMove::with(recovered(ground, present), ground)
}

/// See [`TargetMove::running`].
pub(super) fn running(ground: &Ground, ownership: Ownership, missing_count: u64) -> TargetMove {
    let config = ground.config.as_ref().unwrap();
    let State::Owned {
        epoch,
        missing_from: Some(origin),
    } = ownership.record().state.clone()
    else {
        panic!("nothing of it is missing");
    };
    let setup = Setup {
        host: ground.shared.host.clone(),
        source: origin.source,
        migration: MigrationId(9),
        attempt: origin.attempt,
        guest: ground.id,
    };
    let mut present = BlockSet::full(config.block_count());
    for block in 0..missing_count {
        present.remove(block);
    }
    let remains = Remains {
        prepare: Prepare {
            name: config.name.clone(),
            epoch,
            spaces: spaces_of(config),
            config: config.to_bytes(),
        },
        present: vec![present],
        position: Received {
            through_sequence: 0,
            chain: [1; 32],
        },
    };
    let machine = Target::recover(setup, ownership, remains).unwrap();
    TargetMove::with(machine, ground)
}

#[test]
fn h10_an_outage_of_minutes_ends_an_offer_without_data_and_no_other() {
    let (_folder, shared) = host("");
    for present in [0, 3] {
        let mut ground = ground(&shared);
        let mut target = receiving(&ground, present);
        target.begun_at = Instant::ZERO;
        assert_eq!(target.patience() <= Some(now()), present == 0);
        let theirs = Lane::ALL.map(|lane| {
            let (hello, lane, theirs) = greeted(&ground, lane);
            target.lane(&mut ground, &hello, lane);
            theirs
        });
        // New lanes do not extend its stay either, or anyone able to open them could hold its place
        // for ever.
        target.tick(&mut ground);
        assert_eq!(target.stage() == Stage::Over, present == 0);
        assert_eq!(target.patience(), None);
        drop(theirs);
    }
}

/// Opens these lanes of a link. The returned sockets keep them open.
fn open_lanes(
    target: &mut TargetMove,
    ground: &mut Ground,
    number: u64,
    lanes: &[Lane],
) -> Vec<std::os::unix::net::UnixStream> {
    let mut theirs = Vec::new();
    for lane in lanes {
        let (mut hello, lane, socket) = greeted(ground, *lane);
        hello.link = number;
        target.lane(ground, &hello, lane);
        theirs.push(socket);
    }
    theirs
}

#[test]
fn a_late_lane_of_lanes_that_were_given_up_ends_none_that_are_good() {
    let (_folder, shared) = host("");
    let mut ground = ground(&shared);
    let mut target = TargetMove::with(recovered(&ground, 3), &ground);
    let [late, others @ ..] = Lane::ALL;
    let mut theirs = open_lanes(&mut target, &mut ground, 1, &others);
    theirs.extend(open_lanes(&mut target, &mut ground, 2, &Lane::ALL));
    let good = ground.link.as_ref().map(|link| link.number);
    assert!(good.is_some());
    // A late lane: the last of the abandoned set, or one of another set.
    for number in [1, 3] {
        theirs.extend(open_lanes(&mut target, &mut ground, number, &[late]));
        assert_eq!(ground.link.as_ref().map(|link| link.number), good);
    }
    // A late lane does not stop a set that is being opened either.
    theirs.extend(open_lanes(&mut target, &mut ground, 4, &others));
    theirs.extend(open_lanes(&mut target, &mut ground, 5, &[late]));
    theirs.extend(open_lanes(&mut target, &mut ground, 4, &[late]));
    let newer = ground.link.as_ref().map(|link| link.number);
    assert!(newer.is_some() && newer != good);
    assert!(target.machine.is_link_up());
}

#[test]
fn lanes_that_the_target_drops_itself_have_their_source_away_from_then_on() {
    let (_folder, shared) = host("");
    let mut ground = ground(&shared);
    let mut target = TargetMove::with(recovered(&ground, 3), &ground);
    let _theirs = open_lanes(&mut target, &mut ground, 1, &Lane::ALL);
    assert_eq!(target.source_away_for(&ground), None);
    target.link_lost_at = Instant::ZERO;
    let dropped_at = now();
    target.act(&mut ground, Action::DropLink).unwrap();
    let away = target.source_away_for(&ground).expect("no lanes");
    assert!(
        away <= now().since(dropped_at),
        "{away:?} would let a guest be given up whose source is there"
    );
}

#[test]
fn touches_that_are_not_reported_any_more_are_no_secret() {
    let (_folder, shared) = host("");
    let ground = ground(&shared);
    let lost = Fault::new(Code::Guest, "userfaultfd: not usable");
    let mut said = [Some(Ok(Some(3))), Some(Ok(None)), Some(Err(lost.clone()))].into_iter();
    report_faults(|| said.next().flatten(), &ground.mailbox);
    assert!(matches!(
        ground.mailbox.try_receive(),
        Some(Input::Fault { block: 3 })
    ));
    assert!(
        matches!(ground.mailbox.try_receive(), Some(Input::FaultsLost(fault)) if fault == lost)
    );
}

/// The code with which an offer changed by `change` is refused, if it is.
fn offered(
    shared: &Arc<Shared>,
    change: impl FnOnce(&mut GuestConfig, &mut Vec<SpaceInfo>),
) -> Option<Code> {
    let mut ground = ground(shared);
    let mut config = ground.config.take().unwrap();
    let mut spaces = spaces_of(&config);
    change(&mut config, &mut spaces);
    let setup = Setup {
        host: shared.host.clone(),
        source: order(9).target,
        migration: MigrationId(9),
        attempt: AttemptId(9),
        guest: ground.id,
    };
    let law = Ownership::vacant(shared.host.clone(), ground.id);
    let target = TargetMove::begin(&ground, law, setup);
    let prepare = Prepare {
        name: config.name.clone(),
        epoch: Epoch(2),
        spaces,
        config: config.to_bytes(),
    };
    let admitted = target.admit(&mut ground, &prepare);
    // A refused offer changes nothing.
    assert_eq!(ground.config.is_some(), admitted.is_ok());
    shared.released(ground.id, AttemptId(9));
    admitted.err().map(|fault| fault.code)
}

#[test]
fn a_peer_that_offers_guests_without_end_is_told_to_wait_before_anything_is_made() {
    let (_folder, shared) = host("");
    let made_for = |number: u128, of: Option<&HostIdentity>, name: Option<&str>| {
        let handle = Handle {
            name: name.map(|name| name.parse().unwrap()),
            made_for: of.cloned(),
            mailbox: Arc::new(Mailbox::new()),
        };
        shared.workers().insert(GuestId(1000 + number), handle);
    };
    let (peer, other) = (order(9).target, shared.host.clone());
    // Not counted: offers of other peers, guests not offered yet, and guests that have arrived.
    for number in 0..1024 {
        let (of, name) = match number % 3 {
            0 => (Some(&other), Some("scale")),
            1 => (Some(&peer), None),
            _ => (None, Some("scale")),
        };
        made_for(number, of, name);
    }
    assert_eq!(offered(&shared, |_, _| {}), None);
    let first_too_many = (0..1024).find(|number| {
        made_for(*number, Some(&peer), Some("scale"));
        offered(&shared, |_, _| {}).is_some()
    });
    assert!(first_too_many.is_some_and(|count| count > 100));
    assert_eq!(offered(&shared, |_, _| {}), Some(Code::Busy));
    // A guest that arrives makes room.
    shared.made_for(GuestId(1000), None);
    assert_eq!(offered(&shared, |_, _| {}), None);
}

#[test]
fn h05_a_peer_takes_no_move_of_ours_from_view_by_its_number() {
    let (_folder, shared) = host("");
    let mut view = order(9).view(&ground(&shared), Phase::Copying);
    shared.board().show_move(view.clone());
    assert_eq!(offered(&shared, |_, _| {}), Some(Code::Meta));
    // Nor a move of another peer. The same peer's next attempt is the same move.
    view.role = Role::Target;
    view.guest = "scale".parse().unwrap();
    shared.board().show_move(view.clone());
    assert_eq!(offered(&shared, |_, _| {}), Some(Code::Meta));
    view.guest = "till".parse().unwrap();
    shared.board().show_move(view);
    assert_eq!(offered(&shared, |_, _| {}), None);
}

#[test]
fn f11_a_guest_that_cannot_be_is_refused_before_anything_is_built_for_it() {
    let (_folder, shared) = host("[quota]\nmemory = \"16MiB\"");
    assert_eq!(offered(&shared, |_, _| {}), None);
    let too_large = |config: &mut GuestConfig, spaces: &mut Vec<SpaceInfo>| {
        config.memory_bytes *= 2;
        *spaces = spaces_of(config);
    };
    assert_eq!(offered(&shared, too_large), Some(Code::Quota));
    let cpus = VCPU_COUNT_MAX + 1;
    assert!(offered(&shared, |config, _| config.vcpu_count = cpus).is_some());
    let beyond = 1 << 40;
    assert!(
        offered(&shared, |config, _| config.workload.working_set_bytes =
            beyond)
        .is_some()
    );
}

#[test]
fn f10_what_is_announced_is_what_the_guest_is_described_as_or_nothing_is_begun() {
    let (_folder, shared) = host("");
    assert_eq!(offered(&shared, |_, _| {}), None);
    let changes: [fn(&mut Vec<SpaceInfo>); 4] = [
        |spaces| spaces[0].block_count += 1,
        |spaces| spaces[0].block_bytes *= 2,
        |spaces| spaces.push(spaces[0]),
        Vec::clear,
    ];
    for change in changes {
        let refused = offered(&shared, |_, spaces| change(spaces));
        assert_eq!(refused, Some(Code::Layout));
    }
}
