//! The memory that a guest left at its source is lost for good.

use std::time::Duration;

use towpath_migrator::api::{GuestState, MigrationMode, Ownership, Phase};
use towpath_protocol::fault::Code;
use towpath_tests::killed::{SLOW, boots};
use towpath_tests::lab::Guest;
use towpath_tests::scene::{SOURCE, Scene, TARGET};
use towpath_tests::verdict::wait_until;

/// How long a source that is back may take to report what it has lost.
const SAID_WAIT: Duration = Duration::from_secs(20);

/// Consecutive polls of a silent guest after which it counts as stopped; two heartbeats or more are
/// due between two polls.
const SILENT_LOOKS: u32 = 100;

#[test]
fn fault_11_a_guest_whose_source_comes_back_without_its_memory_is_lost_and_booted() {
    let mut scene = Scene::new(SLOW);
    let guest = Guest::new("lost", 64);
    let mut console = scene.guest(&guest);
    scene.begin(&guest, MigrationMode::Post).unwrap();
    scene.reaches(&guest, Phase::Serving).unwrap();
    // Like a power loss: the process and the migrator are gone, and only the journal is left.
    scene.lab.site_mut(SOURCE).kill_migrator();
    assert_eq!(scene.lab.kill_guest(SOURCE, &guest.name), 1);
    let refused = scene.lab.site(TARGET).boot(&guest.name).unwrap_err();
    assert_eq!(refused.known_code(), Some(Code::State), "it may come back");
    scene.lab.site_mut(SOURCE).start_migrator();
    let lost = wait_until(SAID_WAIT, || {
        let view = scene.lab.site(TARGET).guest(&guest.name).ok()??;
        (view.state == GuestState::Crashed).then_some(view)
    });
    let error = lost.expect("it is shown as lost").error.expect("and why");
    assert_eq!(error.code, Code::ImageLost.as_str(), "{error:?}");
    // Heartbeats printed before the boot do not count for the booted guest.
    console.read().expect("it ran once");
    boots(&scene, &guest, &mut console, TARGET);
}

/// A source that is believed lost comes back after all; by then its copy belongs to no guest.
#[test]
fn fault_11_what_a_source_that_stays_away_kept_is_given_up_by_the_operator() {
    let mut scene = Scene::new(SLOW);
    let guest = Guest::new("given-up", 64);
    let mut console = scene.guest(&guest);
    let at_target = |scene: &Scene| scene.lab.site(TARGET).give_up_missing(&guest.name);
    scene.begin(&guest, MigrationMode::Post).unwrap();
    scene.reaches(&guest, Phase::Serving).unwrap();
    let refused = at_target(&scene).unwrap_err();
    assert_eq!(refused.known_code(), Some(Code::State), "it is on its way");
    scene.lab.site_mut(SOURCE).kill_migrator();
    // The guest stops as soon as it needs a page that is still at its source.
    let mut silent = 0;
    let stands = wait_until(SAID_WAIT, || {
        let before = console.last();
        console.read().expect("it runs once");
        silent = if console.last() == before {
            silent + 1
        } else {
            0
        };
        (silent == SILENT_LOOKS).then_some(())
    });
    stands.expect("it waits for its source");
    console.forget();
    // Not at once: it could be only a restart of the source's tunnel.
    let refused = at_target(&scene).unwrap_err();
    assert_eq!(refused.known_code(), Some(Code::State), "it was just here");
    let booted = wait_until(SAID_WAIT, || at_target(&scene).ok());
    let booted = booted.expect("it is booted without its source");
    assert_eq!(booted.ownership, Ownership::Owned);
    let refused = at_target(&scene).unwrap_err();
    assert_eq!(refused.known_code(), Some(Code::State), "it is whole");
    scene.lab.site_mut(SOURCE).start_migrator();
    assert_eq!(scene.rest(&guest, &mut console).unwrap().place, TARGET);
    assert!(
        scene.lab.guest_processes(SOURCE, &guest.name).is_empty(),
        "its source lets go of what it kept"
    );
}
