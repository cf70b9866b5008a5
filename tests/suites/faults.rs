//! What must hold when a process dies or the link is cut, with real processes and real guests.

use std::time::Duration;

use towpath_migrator::api::{MigrationMode, Phase};
use towpath_tests::console::Console;
use towpath_tests::lab::{Guest, Lab, Link};
use towpath_tests::site::Place;
use towpath_tests::verdict::come_to_rest;
use towpath_tests::watch::Watch;

/// A link that carries a small guest in a second.
const LINK: Link = Link {
    megabits_per_second: 300,
    round_trip: Duration::from_millis(4),
};

const REST_WAIT: Duration = Duration::from_secs(30);

#[test]
fn an_undisturbed_move_arrives() {
    let lab = Lab::start(LINK);
    let watch = Watch::start(&lab);
    for mode in [MigrationMode::Auto, MigrationMode::Post] {
        let guest = Guest::new("calm", 32);
        lab.start_guest(Place::Edge, &guest);
        let mut console = Console::of(&lab, &guest.name);
        console.wait_for_more(10, REST_WAIT).unwrap();
        lab.site(Place::Edge)
            .migrate(&Lab::request(&guest, Place::Edge, mode))
            .unwrap();
        let rest = come_to_rest(&lab, &guest.name, &mut console, &watch, REST_WAIT).unwrap();
        assert_eq!(rest.place, Place::Region);
        assert_eq!(rest.moves[0].phase, Phase::Done);
        println!("{mode:?}: {} ms", rest.moves[0].total_ms);
        lab.forget_guest(&guest.name);
    }
}
