//! What a source does once the guest is the target's: it says so for ever, whatever else is lost.

use std::time::Duration;

use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::{AttemptId, Epoch, GuestId, HostIdentity, MigrationId};
use towpath_protocol::image::CHAIN_START;
use towpath_protocol::message::{Lane, Message, MissingPart, Received, SpaceInfo};
use towpath_protocol::ownership::{Decider, Ownership, Record, Root, State};
use towpath_protocol::plan::Policy;
use towpath_protocol::source::{Action, Event, Outcome, Setup, Source};
use towpath_protocol::space::MEMORY;
use towpath_protocol::time::Instant;

const GUEST: GuestId = GuestId(7);
const ATTEMPT: AttemptId = AttemptId(1);
const ROOT: Root = Root([7; 32]);

fn host(name: &str) -> HostIdentity {
    HostIdentity {
        trust_domain: "shop.example".parse().expect("a name"),
        site: "site".parse().expect("a name"),
        host: name.parse().expect("a name"),
    }
}

/// A source whose daemon restarts behind the commit.
fn recovered(is_whole: bool) -> Source {
    let record = Record {
        guest: GUEST,
        high_water: Epoch(2),
        decider: Decider::SourceJournal,
        state: State::Relinquished {
            owned: Epoch(1),
            epoch: Epoch(2),
            attempt: ATTEMPT,
            target: host("b"),
            root: ROOT,
            is_whole,
        },
        verdicts: Vec::new(),
    };
    let setup = Setup {
        host: host("a"),
        target: host("b"),
        migration: MigrationId(1),
        attempt: ATTEMPT,
        guest: GUEST,
        name: "till".parse().expect("a name"),
        spaces: vec![SpaceInfo {
            id: MEMORY,
            block_bytes: 4096,
            block_count: 64,
        }],
        config: Vec::new(),
        policy: Policy::default(),
    };
    let law = Ownership::recover(host("a"), record);
    Source::recover(setup, law, Instant::ZERO).expect("relinquished")
}

fn feed(source: &mut Source, event: Event) -> Vec<Action> {
    let now = Instant::ZERO + Duration::from_millis(1);
    // What the machine makes of a fault shows in its actions.
    drop(source.handle(event, now));
    std::iter::from_fn(|| source.poll()).collect()
}

fn hear(source: &mut Source, message: Message) -> Vec<Action> {
    feed(source, Event::Heard(Lane::Control, message))
}

fn commits(actions: &[Action]) -> bool {
    let commit = Action::Send(Lane::Control, Message::Commit(Epoch(2), ROOT));
    actions.contains(&commit)
}

fn outcome(actions: &[Action]) -> Option<&Outcome> {
    actions.iter().find_map(|action| match action {
        Action::Finished(outcome) => Some(outcome),
        _ => None,
    })
}

#[test]
fn fault_10_a_lost_image_does_not_keep_the_commit_from_being_said() {
    let mut source = recovered(true);
    assert_eq!(outcome(&feed(&mut source, Event::GuestGone)), None);
    for _ in 0..3 {
        assert!(commits(&feed(&mut source, Event::LinkUp)));
        feed(&mut source, Event::LinkDown);
    }
    feed(&mut source, Event::LinkUp);
    let actions = hear(&mut source, Message::Ack(1));
    assert_eq!(outcome(&actions), Some(&Outcome::Moved));
}

#[test]
fn fault_11_blocks_that_are_lost_are_not_sent_and_the_target_is_waited_for() {
    let mut source = recovered(false);
    feed(&mut source, Event::LinkUp);
    feed(&mut source, Event::GuestGone);
    hear(&mut source, Message::Ack(1));
    let part = MissingPart {
        space: MEMORY,
        first_word: 0,
        words: vec![u64::MAX],
    };
    let position = Received {
        through_sequence: 0,
        chain: CHAIN_START,
    };
    let mut actions = hear(&mut source, Message::MissingPart(part));
    actions.extend(hear(&mut source, Message::MissingEnd(position)));
    let demand = Event::Heard(Lane::Demand, Message::Demand(MEMORY, 3));
    actions.extend(feed(&mut source, demand));
    assert!(
        !actions
            .iter()
            .any(|action| matches!(action, Action::SendChunk(_)))
    );
    assert_eq!(outcome(&actions), None);
    assert!(source.is_image_lost());
    // The operator boots the guest there.
    let actions = hear(&mut source, Message::Complete);
    assert_eq!(outcome(&actions), Some(&Outcome::Moved));
}

#[test]
fn f26_a_target_that_counts_without_end_is_not_believed() {
    for sequence in [u64::MAX, u64::MAX - 1, 1 << 62] {
        let mut source = recovered(false);
        feed(&mut source, Event::LinkUp);
        hear(&mut source, Message::Ack(0));
        let part = MissingPart {
            space: MEMORY,
            first_word: 0,
            words: vec![1],
        };
        feed(
            &mut source,
            Event::Heard(Lane::Control, Message::MissingPart(part)),
        );
        let end = Message::MissingEnd(Received {
            through_sequence: sequence,
            chain: CHAIN_START,
        });
        let actions = hear(&mut source, end);
        assert!(actions.contains(&Action::DropLink), "{actions:?}");
        assert!(outcome(&actions).is_none(), "the guest is the target's");
    }
}

#[test]
fn fault_26_a_poisoned_journal_stops_a_committed_move() {
    let mut source = recovered(true);
    let poisoned = Fault::new(Code::Journal, "fsync failed");
    let actions = feed(&mut source, Event::NotRecorded(poisoned.clone()));
    assert_eq!(outcome(&actions), Some(&Outcome::Stuck(poisoned)));
    assert!(!source.ownership().may_run());
}

#[test]
fn fault_26_a_refusal_that_could_not_be_written_down_starts_nothing() {
    let mut source = recovered(true);
    feed(&mut source, Event::LinkUp);
    let refused = Fault::new(Code::Refused, "no image");
    let nack = Event::Heard(Lane::Control, Message::Nack((&refused).into()));
    source.handle(nack, Instant::ZERO).expect("refused");
    let poisoned = Fault::new(Code::Journal, "fsync failed");
    let actions = feed(&mut source, Event::NotRecorded(poisoned.clone()));
    assert!(!actions.contains(&Action::Thaw));
    assert_eq!(outcome(&actions), Some(&Outcome::Stuck(poisoned)));
}

#[test]
fn fault_03_a_refusal_is_the_only_way_back() {
    let mut source = recovered(true);
    feed(&mut source, Event::LinkUp);
    assert!(source.handle(Event::Cancel, Instant::ZERO).is_err());
    let fault = Fault::new(Code::Refused, "no image");
    let actions = hear(&mut source, Message::Nack((&fault).into()));
    assert!(matches!(actions[0], Action::Persist(_)));
    assert!(actions.contains(&Action::Thaw));
    assert!(matches!(outcome(&actions), Some(Outcome::Stayed(_))));
}
