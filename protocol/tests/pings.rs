//! What a source makes of the answers to its pings.

use std::time::Duration;

use towpath_protocol::identity::{AttemptId, Epoch, GuestId, HostIdentity, MigrationId};
use towpath_protocol::message::{Lane, Message, SpaceInfo};
use towpath_protocol::ownership::Ownership;
use towpath_protocol::plan::Policy;
use towpath_protocol::source::{Action, Event, Setup, Source};
use towpath_protocol::space::MEMORY;
use towpath_protocol::time::Instant;

const BLOCK_COUNT: u64 = 64;

/// A path's round trip.
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
