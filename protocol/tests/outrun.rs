//! A source whose target has seen higher epochs of the guest than the source has.

use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::{AttemptId, Epoch, GuestId, HostIdentity, MigrationId};
use towpath_protocol::message::{Lane, Message, Reason, SpaceInfo};
use towpath_protocol::ownership::{Ownership, State};
use towpath_protocol::plan::Policy;
use towpath_protocol::source::{Action, Event, Outcome, Setup, Source};
use towpath_protocol::space::MEMORY;
use towpath_protocol::time::Instant;

const GUEST: GuestId = GuestId(7);

fn host(name: &str) -> HostIdentity {
    HostIdentity {
        trust_domain: "shop.example".parse().expect("a name"),
        site: "site".parse().expect("a name"),
        host: name.parse().expect("a name"),
    }
}

/// The next attempt of a guest's owner, on open lanes, and the epoch that it offers.
fn attempt(law: Ownership, number: u128) -> (Source, Epoch) {
    let setup = Setup {
        host: host("a"),
        target: host("b"),
        migration: MigrationId(1),
        attempt: AttemptId(number),
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
    let mut source = Source::begin(setup, law, Instant::ZERO).expect("owned");
    let actions = feed(&mut source, Event::LinkUp);
    let offered = actions.iter().find_map(|action| match action {
        Action::Send(_, Message::Prepare(prepare)) => Some(prepare.epoch),
        _ => None,
    });
    (source, offered.expect("an offer"))
}

fn feed(source: &mut Source, event: Event) -> Vec<Action> {
    source.handle(event, Instant::ZERO).expect("it fits");
    std::iter::from_fn(|| source.poll()).collect()
}

#[test]
fn h02_a_source_offers_above_the_mark_that_its_target_says() {
    let (law, _) = Ownership::owner(host("a"), GUEST, Epoch(1));
    let (mut source, offered) = attempt(law, 1);
    assert_eq!(offered, Epoch(2));
    // A mark alone has no effect.
    let mark = Event::Heard(Lane::Control, Message::Mark(Epoch(900)));
    assert_eq!(feed(&mut source, mark), []);
    let stale = Fault::new(Code::StaleEpoch, "epoch 2 is not above 900");
    let refused = Message::Refused(Reason::from(&stale));
    assert!(!source.is_refused());
    let actions = feed(&mut source, Event::Heard(Lane::Control, refused));
    assert!(source.is_refused(), "it is the target's word");
    let mut records = actions.iter().filter_map(|action| match action {
        Action::Persist(record) => Some(record),
        _ => None,
    });
    let last = records
        .next_back()
        .expect("it is durable before it is used");
    assert_eq!(last.high_water, Epoch(900));
    assert!(matches!(last.state, State::Owned { .. }));
    assert!(actions.contains(&Action::Finished(Outcome::Stayed(stale))));
    let (_, offered) = attempt(source.into_ownership(), 2);
    assert_eq!(offered, Epoch(901));
}
