//! How a source uses the answers to its pings.

use std::time::Duration;

use towpath_protocol::fault::Code;
use towpath_protocol::identity::{AttemptId, Epoch, GuestId, HostIdentity, MigrationId};
use towpath_protocol::image::CHAIN_START;
use towpath_protocol::message::{Lane, Message, Received, SpaceInfo};
use towpath_protocol::ownership::Ownership;
use towpath_protocol::plan::{Decision, Mode, Policy, Reason};
use towpath_protocol::source::{Action, Event, Outcome, PING_INTERVAL, Setup, Source, Stage};
use towpath_protocol::space::{BlockSet, MEMORY};
use towpath_protocol::time::Instant;

const BLOCK_COUNT: u64 = 64;

/// The round trip of the path.
const ROUND_TRIP: Duration = Duration::from_millis(40);

fn host(name: &str) -> HostIdentity {
    HostIdentity {
        trust_domain: "shop.example".parse().expect("a name"),
        site: "site".parse().expect("a name"),
        host: name.parse().expect("a name"),
    }
}

/// A source a minute after the start of its clock.
struct Scene {
    source: Source,
    now: Instant,
}

impl Scene {
    /// A source whose lanes were just opened, and the number of its first ping.
    fn new(policy: Policy) -> (Self, u64) {
        let now = Instant::ZERO + Duration::from_secs(60);
        let guest = GuestId(7);
        let setup = Setup {
            host: host("a"),
            target: host("b"),
            migration: MigrationId(1),
            attempt: AttemptId(1),
            guest,
            name: "till".parse().expect("a name"),
            spaces: vec![SpaceInfo {
                id: MEMORY,
                block_bytes: 4096,
                block_count: BLOCK_COUNT,
            }],
            config: Vec::new(),
            policy,
        };
        let (law, _) = Ownership::owner(host("a"), guest, Epoch(1));
        let source = Source::begin(setup, law, now).expect("owned");
        let mut scene = Self { source, now };
        let nonce = ping_in(&scene.feed(Event::LinkUp)).expect("a ping");
        (scene, nonce)
    }

    fn feed(&mut self, event: Event) -> Vec<Action> {
        self.source.handle(event, self.now).expect("it fits");
        std::iter::from_fn(|| self.source.poll()).collect()
    }

    fn pong(&mut self, nonce: u64) -> Vec<Action> {
        self.feed(Event::Heard(Lane::Control, Message::Pong(nonce)))
    }

    fn copies(&mut self) {
        let nothing = Received {
            through_sequence: 0,
            chain: CHAIN_START,
        };
        self.feed(Event::Heard(Lane::Control, Message::Prepared(nothing)));
        let mut all = BlockSet::empty(BLOCK_COUNT);
        (0..BLOCK_COUNT).for_each(|block| {
            all.insert(block);
        });
        self.feed(Event::Tracking {
            allocated: vec![all],
        });
        assert_eq!(self.source.stage(), Stage::Copying);
    }
}

fn ping_in(actions: &[Action]) -> Option<u64> {
    actions.iter().find_map(|action| match action {
        Action::Send(Lane::Control, Message::Ping(nonce)) => Some(*nonce),
        _ => None,
    })
}

#[test]
fn a_target_sets_no_round_trip_with_answers_that_it_makes_up() {
    let (mut scene, nonce) = Scene::new(Policy::default());
    scene.now = scene.now + ROUND_TRIP;
    for made_up in [0, nonce - 1, nonce + 1, 0, u64::MAX] {
        scene.pong(made_up);
        assert_eq!(scene.source.progress().round_trip, None, "{made_up}");
    }
    scene.pong(nonce);
    assert_eq!(scene.source.progress().round_trip, Some(ROUND_TRIP));
    scene.now = scene.now + ROUND_TRIP * 9;
    for _ in 0..5 {
        scene.pong(nonce);
    }
    assert_eq!(scene.source.progress().round_trip, Some(ROUND_TRIP));
}

/// Copies in mode `pre` with this longest pause. Returns the outcome, and after how many pings it
/// came.
fn copied_within(pause_max: Duration) -> (Scene, Option<(usize, Outcome)>) {
    let policy = Policy {
        mode: Mode::Pre,
        pause_max,
        ..Policy::default()
    };
    let (mut scene, mut nonce) = Scene::new(policy);
    scene.copies();
    for count in 1..=9 {
        scene.now = scene.now + ROUND_TRIP;
        let ended = scene
            .pong(nonce)
            .into_iter()
            .find_map(|action| match action {
                Action::Finished(outcome) => Some(outcome),
                _ => None,
            });
        if let Some(outcome) = ended {
            return (scene, Some((count, outcome)));
        }
        scene.now = scene.now + PING_INTERVAL;
        nonce = ping_in(&scene.feed(Event::Tick)).expect("the next one");
    }
    (scene, None)
}

#[test]
fn pre_copy_alone_is_given_up_at_once_where_the_path_is_longer_than_the_pause() {
    let (scene, ended) = copied_within(Duration::from_millis(1));
    let (count, outcome) = ended.expect("it needs no round to know");
    assert_eq!(count, 3, "one that was held up is no path");
    let Outcome::Stayed(fault) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(fault.code, Code::NotConverging);
    assert_eq!(
        fault.detail,
        "the guest cannot be moved by pre-copy alone within 1 ms: the path is longer than the pause; none on it is \
         shorter than 68 ms"
    );
    let [record] = scene.source.decisions() else {
        panic!("{:?}", scene.source.decisions());
    };
    let given_up = Decision::GiveUp(Reason::LongPath);
    assert_eq!(record.judgement.decision, given_up);
    assert_eq!(record.facts.round_trip, ROUND_TRIP);
}

#[test]
fn a_path_that_fits_the_pause_ends_no_copy() {
    let (scene, ended) = copied_within(Duration::from_millis(70));
    assert_eq!(ended, None);
    assert_eq!(scene.source.stage(), Stage::Copying);
}
