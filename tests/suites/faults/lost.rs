//! What was left behind of a guest and is gone for good.

use std::time::Duration;

use towpath_migrator::api::{GuestState, MigrationMode, Phase};
use towpath_protocol::fault::Code;
use towpath_tests::killed::{SLOW, boots};
use towpath_tests::lab::Guest;
use towpath_tests::scene::{SOURCE, Scene, TARGET};
use towpath_tests::verdict::wait_until;

/// How long it may take until a source that is back has said what it has lost.
const SAID_WAIT: Duration = Duration::from_secs(20);

#[test]
fn fault_11_a_guest_whose_source_comes_back_without_its_memory_is_lost_and_booted() {
    let mut scene = Scene::new(SLOW);
    let guest = Guest::new("lost", 64);
    let mut console = scene.guest(&guest);
    scene.begin(&guest, MigrationMode::Post).unwrap();
    scene.reaches(&guest, Phase::Serving).unwrap();
    // As a host that loses its power: both are gone, and only the journal is there.
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
    // What both have printed is no part of what is booted.
    console.read().expect("it ran once");
    boots(&scene, &guest, &mut console, TARGET);
}
