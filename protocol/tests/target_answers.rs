//! The answers of a target that is asked again, asked too late, or asked for something it cannot
//! do.

use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::{AttemptId, Epoch, GuestId, HostIdentity, MigrationId};
use towpath_protocol::image::{CHAIN_START, Image};
use towpath_protocol::message::{
    ChunkHeader, Codec, FinalEnd, Lane, Message, Prepare, Reason, Received, SpaceInfo,
    ZERO_CHUNK_DIGEST, chain_after,
};
use towpath_protocol::ownership::{self, Ownership, Root, State};
use towpath_protocol::space::{BlockRun, BlockSet, MEMORY};
use towpath_protocol::target::{Action, Event, Outcome, Remains, Setup, Target};
use towpath_protocol::time::Instant;

const GUEST: GuestId = GuestId(7);
const ATTEMPT: AttemptId = AttemptId(1);
const BLOCK_COUNT: u64 = 64;

fn host(name: &str) -> HostIdentity {
    HostIdentity {
        trust_domain: "shop.example".parse().expect("a name"),
        site: "site".parse().expect("a name"),
        host: name.parse().expect("a name"),
    }
}

fn setup() -> Setup {
    Setup {
        host: host("b"),
        source: host("a"),
        migration: MigrationId(1),
        attempt: ATTEMPT,
        guest: GUEST,
    }
}

fn spaces() -> Vec<SpaceInfo> {
    vec![SpaceInfo {
        id: MEMORY,
        block_bytes: 4096,
        block_count: BLOCK_COUNT,
    }]
}

fn prepare() -> Message {
    Message::Prepare(Prepare {
        name: "till".parse().expect("a name"),
        epoch: Epoch(2),
        spaces: spaces(),
        config: Vec::new(),
    })
}

/// Handles an event and returns the actions.
fn feed(target: &mut Target, event: Event) -> (Result<(), Fault>, Vec<Action>) {
    let result = target.handle(event, Instant::ZERO);
    (result, std::iter::from_fn(|| target.poll()).collect())
}

fn hear(target: &mut Target, message: Message) -> (Result<(), Fault>, Vec<Action>) {
    feed(target, Event::Heard(Lane::Control, message))
}

fn says(actions: &[Action], wanted: impl Fn(&Message) -> bool) -> bool {
    let is_it = |action: &Action| matches!(action, Action::Send(_, message) if wanted(message));
    actions.iter().any(is_it)
}

#[test]
fn h02_a_stale_offer_is_refused_with_the_mark_that_it_has_to_pass() {
    let mut law = Ownership::vacant(host("b"), GUEST);
    for word in [
        ownership::Word::Prepare { epoch: Epoch(9) },
        ownership::Word::Abort,
    ] {
        let (from, attempt) = (host("c"), AttemptId(9));
        law.handle(ownership::Event::Heard {
            from,
            attempt,
            word,
        })
        .expect("it fits");
    }
    while law.poll().is_some() {}
    let mut target = Target::begin(setup(), law);
    feed(&mut target, Event::LinkUp).0.expect("lanes open");
    let (result, actions) = hear(&mut target, prepare());
    assert_eq!(result.expect_err("stale").code, Code::StaleEpoch);
    let [
        Action::Send(Lane::Control, Message::Mark(Epoch(9))),
        Action::Send(Lane::Control, Message::Refused(reason)),
        Action::Finished(Outcome::Refused(_)),
    ] = &actions[..]
    else {
        panic!("{actions:?}");
    };
    assert_eq!(reason.code, Code::StaleEpoch.as_str());
}

fn vacant() -> Target {
    let mut target = Target::begin(setup(), Ownership::vacant(host("b"), GUEST));
    feed(&mut target, Event::LinkUp).0.expect("lanes open");
    target
}

/// The chunk of this number: all blocks, as zeros.
fn zeros(sequence: u64) -> ChunkHeader {
    ChunkHeader {
        sequence,
        generation: 1,
        space: MEMORY,
        codec: Codec::Zero,
        runs: vec![BlockRun {
            start: 0,
            count: u32::try_from(BLOCK_COUNT).expect("small"),
        }],
        digest: ZERO_CHUNK_DIGEST,
    }
}

/// A target that has received this many chunks of zeros.
fn receiving(chunk_count: u64) -> Target {
    let mut target = vacant();
    hear(&mut target, prepare()).0.expect("admitted");
    feed(&mut target, Event::GuestBuilt).0.expect("built");
    for token in 1..=chunk_count {
        let (lane, header) = (Lane::Bulk, zeros(token));
        let chunk = Event::Chunk {
            lane,
            header,
            token,
        };
        feed(&mut target, chunk).0.expect("a chunk");
    }
    target
}

/// The messages of a stage that paused after this many chunks, and the root of its image.
fn paused(chunk_count: u64, missing: BlockSet) -> (Vec<Message>, Root) {
    let headers = (1..=chunk_count).map(zeros);
    let chain = headers.fold(CHAIN_START, |chain, header| chain_after(&chain, &header));
    let parts: Vec<Message> = towpath_protocol::image::missing_parts(MEMORY, &missing)
        .map(Message::MissingPart)
        .collect();
    let missing = [missing];
    let root = Image {
        guest: GUEST,
        attempt: ATTEMPT,
        epoch: Epoch(2),
        spaces: &spaces(),
        config: &[],
        position: Received {
            through_sequence: chunk_count,
            chain,
        },
        missing: &missing,
        state: &[5],
    }
    .root();
    let end = FinalEnd {
        through_sequence: chunk_count,
        state_bytes: 1,
        missing_count: missing[0].len(),
        root,
    };
    let words = [Message::FinalBegin]
        .into_iter()
        .chain(parts)
        .chain([Message::StatePart(vec![5]), Message::FinalEnd(end)]);
    (words.collect(), root)
}

fn hear_paused(target: &mut Target, words: Vec<Message>) {
    for message in words {
        let event = Event::Heard(Lane::Switch, message);
        feed(target, event).0.expect("the paused stage");
    }
}

/// A target that has the whole image, with its root. All blocks are zeros, except the `missing`
/// ones.
fn ready(missing: BlockSet) -> (Target, Root) {
    let mut target = receiving(1);
    let (words, root) = paused(1, missing);
    hear_paused(&mut target, words);
    let (result, actions) = feed(&mut target, Event::StateLoaded);
    result.expect("loaded");
    assert!(says(&actions, |message| *message == Message::Ready(root)));
    (target, root)
}

#[test]
fn what_is_said_late_of_a_freeze_that_was_given_up_ends_nothing() {
    let mut target = receiving(2);
    let whole = || BlockSet::empty(BLOCK_COUNT);
    // The switch lane was slow: the guest runs again, and more chunks have arrived.
    hear_paused(&mut target, paused(1, whole()).0);
    assert!(feed(&mut target, Event::StateLoaded).1.is_empty());
    let (words, root) = paused(2, whole());
    hear_paused(&mut target, words);
    let (result, actions) = feed(&mut target, Event::StateLoaded);
    result.expect("loaded");
    assert!(says(&actions, |message| *message == Message::Ready(root)));
}

/// As [`ready`], and committed. The guest was ordered to run and does not run yet.
fn committed() -> Target {
    let (mut target, root) = ready(BlockSet::empty(BLOCK_COUNT));
    let (result, actions) = hear(&mut target, Message::Commit(Epoch(2), root));
    result.expect("taken");
    assert!(actions.contains(&Action::Run(Epoch(2))));
    assert!(!says(&actions, |message| matches!(
        message,
        Message::Ack(_)
    )));
    target
}

#[test]
fn a_refused_attempt_that_is_offered_again_is_refused_again_and_nothing_is_built() {
    let mut target = vacant();
    hear(&mut target, prepare()).0.expect("admitted");
    let mut law = target.into_ownership();
    law.handle(ownership::Event::GiveUp).expect("prepared");
    // The daemon restarts, and the source's lanes come back.
    let law = Ownership::recover(host("b"), law.record().clone());
    let mut target = Target::begin(setup(), law);
    feed(&mut target, Event::LinkUp).0.expect("lanes open");
    let (_, actions) = hear(&mut target, prepare());
    assert!(says(&actions, |message| matches!(
        message,
        Message::Nack(_)
    )));
    assert!(
        !actions
            .iter()
            .any(|action| matches!(action, Action::BuildGuest(_)))
    );
    assert!(matches!(
        actions.last(),
        Some(Action::Finished(Outcome::Refused(_)))
    ));
}

#[test]
fn a_target_that_is_through_answers_an_offer_and_a_commit_that_come_again() {
    let mut target = vacant();
    hear(&mut target, prepare()).0.expect("admitted");
    let out_of_room = Fault::new(Code::Io, "no room");
    let (_, actions) = feed(&mut target, Event::Failed(out_of_room));
    assert!(says(&actions, |message| matches!(
        message,
        Message::Nack(_)
    )));
    // The refusal was lost with the lanes.
    feed(&mut target, Event::LinkDown).0.expect("lanes gone");
    feed(&mut target, Event::LinkUp).0.expect("lanes back");
    for message in [prepare(), Message::Commit(Epoch(2), Root([1; 32]))] {
        let (_, actions) = hear(&mut target, message);
        assert!(says(&actions, |message| matches!(
            message,
            Message::Nack(_)
        )));
    }
}

#[test]
fn a_target_that_refused_before_it_prepared_does_not_begin_to_prepare_later() {
    let (owner, _) = Ownership::owner(host("b"), GUEST, Epoch(1));
    let mut target = Target::begin(setup(), owner);
    feed(&mut target, Event::LinkUp).0.expect("lanes open");
    for _ in 0..2 {
        let (_, actions) = hear(&mut target, prepare());
        let is_right = |message: &Message| matches!(message, Message::Refused(reason) if reason.code == "E_GUEST_EXISTS");
        assert!(says(&actions, is_right));
        assert!(
            !actions
                .iter()
                .any(|action| matches!(action, Action::Persist(_)))
        );
    }
}

#[test]
fn fault_08_a_guest_that_dies_between_commit_and_first_instruction_is_lost_and_not_refused() {
    let mut target = committed();
    let (_, actions) = feed(&mut target, Event::GuestGone);
    assert!(!says(&actions, |message| matches!(
        message,
        Message::Ack(_) | Message::Nack(_)
    )));
    assert!(matches!(
        actions.last(),
        Some(Action::Finished(Outcome::Lost(_)))
    ));
    assert!(matches!(
        target.ownership().record().state,
        State::Owned { .. }
    ));
}

#[test]
fn fault_26_nothing_is_said_of_a_commit_that_could_not_be_written_down() {
    let mut target = committed();
    let poisoned = Fault::new(Code::Journal, "fsync failed");
    let (_, mut actions) = feed(&mut target, Event::NotRecorded(poisoned.clone()));
    assert!(actions.contains(&Action::DropLink));
    assert_eq!(
        actions.last(),
        Some(&Action::Finished(Outcome::Lost(poisoned)))
    );
    // The source asks again, over these lanes or others. Only a restart shows what is on disk.
    for event in [
        Event::Heard(Lane::Control, Message::Commit(Epoch(2), Root([1; 32]))),
        Event::LinkDown,
        Event::LinkUp,
        Event::Heard(Lane::Control, prepare()),
        Event::Heard(Lane::Control, Message::Commit(Epoch(2), Root([1; 32]))),
    ] {
        actions.extend(feed(&mut target, event).1);
    }
    assert!(!says(&actions, |_| true), "{actions:?}");
}

#[test]
fn fault_26_an_offer_that_could_not_be_written_down_is_not_refused_for_ever() {
    let mut target = vacant();
    hear(&mut target, prepare()).0.expect("admitted");
    let full = Fault::new(Code::Io, "the disk is full");
    let (_, actions) = feed(&mut target, Event::NotRecorded(full.clone()));
    let is_soft =
        |message: &Message| matches!(message, Message::Refused(reason) if reason.code == "E_IO");
    assert!(says(&actions, is_soft));
    assert!(!says(&actions, |message| matches!(
        message,
        Message::Nack(_)
    )));
    assert!(actions.contains(&Action::DiscardImage));
    assert_eq!(actions.last(), Some(&Action::Finished(Outcome::Lost(full))));
}

#[test]
fn fault_08_what_was_to_be_done_with_a_dead_image_does_not_keep_the_refusal_back() {
    let mut target = vacant();
    hear(&mut target, prepare()).0.expect("admitted");
    feed(&mut target, Event::GuestBuilt).0.expect("built");
    // The process dies, and this is reported while chunks still wait to be written into it.
    assert!(target.handle(Event::GuestGone, Instant::ZERO).is_err());
    let failed = Fault::new(Code::Guest, "the guest has no memory here");
    let (_, actions) = feed(&mut target, Event::Failed(failed));
    assert!(matches!(actions[0], Action::Persist(_)), "{actions:?}");
    assert!(says(&actions, |message| matches!(
        message,
        Message::Nack(_)
    )));
    assert!(matches!(
        actions.last(),
        Some(Action::Finished(Outcome::Refused(_)))
    ));
}

#[test]
fn fault_08_a_receiving_process_that_died_is_worth_another_attempt_however_that_is_noticed() {
    let reset = Fault::new(Code::Guest, "the guest process: connection reset");
    for noticed in [Event::GuestGone, Event::Failed(reset)] {
        let mut target = vacant();
        hear(&mut target, prepare()).0.expect("admitted");
        let (_, actions) = feed(&mut target, noticed.clone());
        let is_lost = |message: &Message| matches!(message, Message::Nack(reason) if reason.code == "E_IMAGE_LOST");
        assert!(says(&actions, is_lost), "{noticed:?}: {actions:?}");
    }
}

/// A guest that runs here and misses block 3.
fn running() -> Target {
    let mut missing = BlockSet::empty(BLOCK_COUNT);
    missing.insert(3);
    let (mut running, root) = ready(missing);
    hear(&mut running, Message::Commit(Epoch(2), root))
        .0
        .expect("taken");
    feed(&mut running, Event::GuestRuns { at: Instant::ZERO })
        .0
        .expect("runs");
    running
}

#[test]
fn the_last_block_that_could_not_be_installed_is_still_missing() {
    let mut target = running();
    let last = Event::Chunk {
        lane: Lane::Demand,
        header: ChunkHeader {
            sequence: 0,
            generation: 1,
            space: MEMORY,
            codec: Codec::Raw,
            runs: vec![BlockRun { start: 3, count: 1 }],
            digest: [7; 16],
        },
        token: 9,
    };
    target.handle(last, Instant::ZERO).expect("the last block");
    assert!(matches!(target.poll(), Some(Action::Install { .. })));
    // Untouched memory would read as zeros, and the source has freed the only copy.
    let (_, actions) = feed(
        &mut target,
        Event::Failed(Fault::new(Code::Io, "no memory")),
    );
    assert!(!actions.contains(&Action::DisarmMissing), "{actions:?}");
    assert!(!says(&actions, |message| *message == Message::Complete));
    let is_record = |action: &Action| matches!(action, Action::Persist(_));
    assert!(!actions.iter().any(is_record), "{actions:?}");
    assert!(matches!(
        actions.last(),
        Some(Action::Finished(Outcome::Lost(_)))
    ));
}

#[test]
fn an_action_that_fails_behind_the_commit_is_this_hosts_fault_whatever_its_code() {
    for code in [
        Code::CpuState,
        Code::Layout,
        Code::Range,
        Code::Guest,
        Code::State,
    ] {
        // The guest does not run as ordered, or a missing block could not be installed.
        for mut target in [committed(), running()] {
            let failed = Fault::new(code, "the guest process refuses it");
            let (_, actions) = feed(&mut target, Event::Failed(failed.clone()));
            // New lanes would not help.
            assert!(!actions.contains(&Action::DropLink), "{actions:?}");
            assert_eq!(
                actions.last(),
                Some(&Action::Finished(Outcome::Lost(failed)))
            );
            assert!(!says(&actions, |message| matches!(
                message,
                Message::Nack(_)
            )));
            let record = target.ownership().record();
            assert!(matches!(record.state, State::Owned { .. }), "{record:?}");
        }
    }
}

#[test]
fn a_guest_that_was_not_started_is_acknowledged_once_it_is() {
    let mut missing = BlockSet::empty(BLOCK_COUNT);
    missing.insert(3);
    let of_an_answer = |message: &Message| {
        matches!(
            message,
            Message::Ack(_) | Message::MissingEnd(_) | Message::Complete
        )
    };
    for missing in [BlockSet::empty(BLOCK_COUNT), missing] {
        let (mut target, root) = ready(missing.clone());
        let commit = || Message::Commit(Epoch(2), root);
        hear(&mut target, commit()).0.expect("taken");
        let not_run = Fault::new(Code::Guest, "the vcpus do not start");
        let (_, mut actions) = feed(&mut target, Event::Failed(not_run));
        // On these messages the source would free its image, also if it has to ask again.
        actions.extend(hear(&mut target, commit()).1);
        assert!(!says(&actions, of_an_answer), "{actions:?}");
        // The guest is taken up again from disk.
        let law = Ownership::recover(host("b"), target.ownership().record().clone());
        let Message::Prepare(prepare) = prepare() else {
            unreachable!("it is an offer");
        };
        let remains = Remains {
            prepare,
            present: vec![missing.complement()],
            position: Received {
                through_sequence: 1,
                chain: CHAIN_START,
            },
        };
        let mut target = Target::recover(setup(), law, remains).expect("it goes on");
        assert_eq!(target.poll(), Some(Action::Run(Epoch(2))));
        feed(&mut target, Event::GuestRuns { at: Instant::ZERO })
            .0
            .expect("runs");
        feed(&mut target, Event::LinkUp).0.expect("lanes back");
        let (_, actions) = hear(&mut target, commit());
        let is_ack = |message: &Message| matches!(message, Message::Ack(_));
        assert!(says(&actions, is_ack), "{actions:?}");
    }
}

#[test]
fn a_lane_that_was_judged_ends_itself_and_no_guest_that_is_owned_here() {
    let judged = Event::Judged(Fault::new(Code::Range, "a block beyond its memory"));
    for mut target in [committed(), running()] {
        let (_, actions) = feed(&mut target, judged.clone());
        assert_eq!(actions, [Action::DropLink]);
    }
    let mut target = vacant();
    hear(&mut target, prepare()).0.expect("admitted");
    let (_, actions) = feed(&mut target, judged);
    let is_told =
        |message: &Message| matches!(message, Message::Nack(reason) if reason.code == "E_RANGE");
    assert!(says(&actions, is_told), "{actions:?}");
}

#[test]
fn f26_a_source_that_lets_go_of_missing_blocks_leaves_no_guest_that_counts_as_whole() {
    let mut target = running();
    let (result, actions) = hear(&mut target, Message::Released);
    let lost = result.expect_err("a block is missing");
    assert_eq!(lost.code, Code::ImageLost);
    // Untouched memory would read as zeros, so vCPUs that wait for the block go on waiting.
    assert_eq!(actions, [Action::Finished(Outcome::Lost(lost))]);
    let record = target.ownership().record();
    let is_missing = |state: &State| {
        let State::Owned { missing_from, .. } = state else {
            return false;
        };
        missing_from.is_some()
    };
    assert!(is_missing(&record.state), "{record:?}");
}

#[test]
fn nothing_a_source_says_ends_a_guest_that_is_owned_here() {
    let running = running();
    let nonsense = || {
        let (epoch, root) = (Epoch(9), Root([9; 32]));
        [
            prepare(),
            Message::FinalBegin,
            Message::Commit(epoch, root),
            Message::Ack(1),
            Message::Complete,
            Message::Pong(1),
            Message::Abort(Reason::from(&Fault::new(
                Code::Cancelled,
                "changed my mind",
            ))),
        ]
    };
    for mut target in [committed(), running] {
        for message in nonsense() {
            let (_, actions) = hear(&mut target, message);
            let is_over = |action: &Action| matches!(action, Action::Finished(_));
            assert!(!actions.iter().any(is_over), "{actions:?}");
            feed(&mut target, Event::LinkUp).0.expect("lanes back");
        }
        assert!(matches!(
            target.ownership().record().state,
            State::Owned { .. }
        ));
    }
}
