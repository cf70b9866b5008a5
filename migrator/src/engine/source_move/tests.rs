//! Tests of when a move is tried again and when it ends.

use std::os::unix::net::UnixStream;

use tempfile::TempDir;
use towpath_protocol::identity::Epoch;
use towpath_protocol::image::CHAIN_START;
use towpath_protocol::message::Received;
use towpath_protocol::source::Progress;

use super::*;
use crate::api::Phase;
use crate::engine::fake::{Fake, Standing};
use crate::engine::order::ATTEMPT_COUNT_MAX;
use crate::engine::tests::{PATIENCE, ground, host, order as ordered};
use crate::lane::WRITE_WAIT_MAX;

/// A move that begins, with its folder, its ground, and a fake process in the given standing.
fn begun(standing: Standing) -> (TempDir, Ground, Fake, SourceMove) {
    let (folder, shared) = host("");
    let mut ground = ground(&shared);
    let (ownership, record) = Ownership::owner(shared.host.clone(), ground.id, Epoch(1));
    ground.persist(&record).unwrap();
    let process = Fake::start(&ground, standing);
    ground.adopt_process(PATIENCE).unwrap();
    let going = SourceMove::begin(&mut ground, ownership, ordered(1)).unwrap();
    (folder, ground, process, going)
}

#[test]
fn what_another_attempt_may_mend_is_tried_again_a_few_times() {
    let order = |attempts: u32| Order {
        attempts,
        ..ordered(1)
    };
    for code in [
        Code::TrackingLost,
        Code::ImageLost,
        Code::Stalled,
        Code::Busy,
    ] {
        let fault = Fault::new(code, "it was so");
        assert!(
            order(ATTEMPT_COUNT_MAX - 1).is_worth_another(&fault),
            "{code}"
        );
        assert!(!order(ATTEMPT_COUNT_MAX).is_worth_another(&fault), "{code}");
    }
    for code in [
        Code::Guest,
        Code::Cancelled,
        Code::Quota,
        Code::NotConverging,
    ] {
        let fault = Fault::new(code, "it is so");
        assert!(!order(1).is_worth_another(&fault), "{code}");
    }
}

#[test]
fn a_guest_that_goes_back_before_its_old_source_knows_that_it_has_come_is_offered_again() {
    let (_folder, shared) = host("");
    let mut ground = ground(&shared);
    let (ownership, record) = Ownership::owner(shared.host.clone(), ground.id, Epoch(1));
    ground.persist(&record).unwrap();
    let begun = SourceMove::make(&mut ground, ownership, ordered(1), Source::begin);
    let mut going = begun.unwrap();
    going.carry_out(&mut ground);
    going.handle(&mut ground, Event::LinkUp).unwrap();
    let busy = Fault::new(Code::Busy, "the guest is busy with another move here");
    let refused = Event::Heard(Lane::Control, Message::Refused((&busy).into()));
    going.handle(&mut ground, refused).unwrap();
    assert_eq!(going.view(&ground).phase, Phase::Preparing);
    let Ended::Stayed(_, Rest::Again(_, wait)) = going.end(&mut ground) else {
        panic!("it is not tried again");
    };
    // Four more attempts cover more time than the target's other work takes over any path.
    assert!(wait * 4 >= Duration::from_secs(4), "{wait:?}");
}

#[test]
fn a_target_without_a_version_in_common_ends_the_move() {
    for (code, ends) in [
        (Code::Version, true),
        (Code::Denied, true),
        (Code::Unreachable, false),
        (Code::Stalled, false),
    ] {
        let (_folder, shared) = host("");
        let mut ground = ground(&shared);
        let (ownership, record) = Ownership::owner(shared.host.clone(), ground.id, Epoch(1));
        ground.persist(&record).unwrap();
        let begun = SourceMove::make(&mut ground, ownership, ordered(1), Source::begin);
        let mut going = begun.unwrap();
        going.carry_out(&mut ground);
        let refused = Fault::new(code, "no lanes");
        going.opened(&mut ground, going.link, Err(refused));
        assert_eq!(going.is_over(), ends, "{code}");
    }
}

#[test]
fn a_guest_that_does_not_stop_in_time_is_no_failure_and_one_that_crashed_is() {
    for has_crashed in [false, true] {
        let (_folder, mut ground, _process, mut going) = begun(Standing {
            stops_never: true,
            has_crashed,
            ..Standing::default()
        });
        let frozen = going.act(&mut ground, Action::Freeze);
        let code = frozen.err().map(|fault| fault.code);
        assert_eq!(code, has_crashed.then_some(Code::Guest));
    }
}

#[test]
fn fault_26_a_move_whose_journal_fails_before_its_commit_is_over() {
    let (_folder, mut ground, _process, mut going) = begun(Standing::default());
    ground.journal.as_mut().unwrap().poison();
    going.carry_out(&mut ground);
    assert!(matches!(going.outcome, Some(Outcome::Stuck(_))));
    assert_eq!(going.view(&ground).phase, Phase::Failed);
    assert!(going.stuck(&ground).is_none());
}

#[test]
fn a_demanded_block_that_cannot_be_read_holds_back_only_itself() {
    let (_folder, mut ground, _process, mut going) = begun(Standing {
        is_unreadable: true,
        ..Standing::default()
    });
    let demanded = ChunkOrder {
        is_urgent: true,
        generation: 1,
        space: towpath_protocol::space::MEMORY,
        runs: vec![BlockRun { start: 3, count: 1 }],
        is_zero: false,
    };
    let sent = going.act(&mut ground, Action::SendChunk(demanded));
    sent.expect("the lanes are not dropped for it");
    let due = going.deadline().expect("it is read again");
    for turn in 0..2 {
        let due = going.deadline().expect("it is read again");
        going.read_again(&mut ground, due);
        assert!(!going.unread.is_empty(), "turn {turn}");
    }
    assert!(going.deadline() >= Some(due));
    // The view says why the guest waits.
    let view = going.view(&ground);
    assert_eq!(
        view.error.map(|error| error.code),
        Some(Code::Io.as_str().to_owned())
    );
    // On new lanes the target asks for the block again.
    going.act(&mut ground, Action::CancelChunks).unwrap();
    assert!(going.unread.is_empty() && going.unread.deadline().is_none());
    assert_eq!(going.view(&ground).error, None);
}

/// Opens the lanes of a move, of which only the bulk lane is written to, and begins to copy.
fn copies(ground: &mut Ground, going: &mut SourceMove, bulk: UnixStream) {
    going.carry_out(ground);
    going.handle(ground, Event::LinkUp).unwrap();
    let bulk = LaneWriter::for_socket(bulk, WRITE_WAIT_MAX).unwrap();
    going.outbox.attach(1, bulk);
    let prepared = Message::Prepared(Received {
        through_sequence: 0,
        chain: CHAIN_START,
    });
    let heard = Event::Heard(Lane::Control, prepared);
    going.handle(ground, heard).unwrap();
    assert_eq!(going.stage(), Stage::Copying);
}

#[test]
fn a_block_that_cannot_be_read_before_the_commit_ends_the_move() {
    let (_folder, mut ground, _process, mut going) = begun(Standing {
        is_unreadable: true,
        ..Standing::default()
    });
    let (bulk, _theirs) = UnixStream::pair().unwrap();
    copies(&mut ground, &mut going, bulk);
    let until = std::time::Instant::now() + PATIENCE;
    while !going.is_over() {
        match ground.mailbox.receive(Some(until)) {
            Some(Input::Packed { header, wire_bytes }) => {
                let packed = Event::Packed { header, wire_bytes };
                going.handle(&mut ground, packed).unwrap();
            }
            Some(Input::Unread { space, runs, fault }) => {
                going.not_read(&mut ground, (space, runs), &fault);
            }
            Some(Input::LaneLost { fault, .. }) => going.lane_ended(&mut ground, &fault),
            Some(_) => {}
            None => panic!("the move goes on"),
        }
    }
    let view = going.view(&ground);
    assert_eq!(view.phase, Phase::Failed);
    let error = view.error.expect("why it ended");
    assert_eq!(error.code, Code::Io.as_str());
    assert!(error.message.contains("read blocks 3"), "{error:?}");
    let Ended::Stayed(_, Rest::Nothing | Rest::Farewell { .. }) = going.end(&mut ground) else {
        panic!("the guest does not stay, or the move is tried again");
    };
}

#[test]
fn a_round_that_is_under_way_is_not_shown_as_finished() {
    let (_folder, mut ground, _process, mut going) = begun(Standing::default());
    let (bulk, _theirs) = UnixStream::pair().unwrap();
    copies(&mut ground, &mut going, bulk);
    let view = going.view(&ground);
    assert_eq!((view.round, view.rounds), (Some(1), Some(0)));
}

#[test]
fn what_a_move_came_to_is_that_of_all_its_attempts() {
    let (_folder, shared) = host("");
    let mut ground = ground(&shared);
    let (ownership, record) = Ownership::owner(shared.host.clone(), ground.id, Epoch(1));
    ground.persist(&record).unwrap();
    let mut order = ordered(1);
    let former = Progress {
        raw_bytes: 4096,
        wire_bytes: 1000,
        demand_count: 2,
        round_count: 4,
        finished_round_count: 3,
        ..Progress::default()
    };
    order.spent = order.spent.with(&former).with(&former);
    order.save(&ground).unwrap();
    assert_eq!(
        Order::load(&ground),
        Ok(Some(order.clone())),
        "a start knows it"
    );
    let sums = |view: MigrationView| {
        let link = (view.raw_bytes, view.wire_bytes, view.demand_fetches);
        (link, view.rounds)
    };
    let spent = ((8192, Some(2000), 4), Some(6));
    let begun = SourceMove::make(&mut ground, ownership, order, Source::begin);
    let mut going = begun.unwrap();
    assert_eq!(sums(going.view(&ground)), spent);
    going.carry_out(&mut ground);
    let stalled = Fault::new(Code::Stalled, "no word");
    going.tell(Event::Failed(stalled));
    going.carry_out(&mut ground);
    assert_eq!(sums(going.view(&ground)), spent);
    let Ended::Stayed(_, Rest::Again(order, _)) = going.end(&mut ground) else {
        panic!("it is not tried again");
    };
    assert_eq!(sums(order.view(&ground, Phase::Preparing)), spent);
}
