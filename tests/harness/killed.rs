//! Cases in which the guest's own process is killed, before and after the commit, for any kind of
//! guest.

use std::time::Duration;

use towpath_migrator::api::{GuestState, MigrationMode, Ownership, Phase};
use towpath_protocol::fault::Code;

use crate::console::Console;
use crate::lab::{Guest, Link};
use crate::scene::{SOURCE, Scene, TARGET};
use crate::site::Place;
use crate::steps::failpoint;
use crate::trial::Side;
use crate::verdict::wait_until;

/// A link slow enough to catch a move in the middle.
pub const SLOW: Link = Link {
    megabits_per_second: 60,
    round_trip: Duration::from_millis(10),
};

/// How long it may take until the end of a process is visible everywhere.
pub const SHOWN_WAIT: Duration = Duration::from_secs(5);

/// How long to check that nothing starts to run by itself.
const QUIET: Duration = Duration::from_secs(2);

/// Checks that the guest is silent at both sites.
///
/// # Panics
///
/// If it is not.
pub fn stays_silent(console: &mut Console) {
    console.read().expect("it ran twice");
    let before = console.last();
    // Not a wait for an event: nothing should happen.
    std::thread::sleep(QUIET);
    console.read().expect("it ran twice");
    assert_eq!(console.last(), before, "it ran by itself");
}

/// Boots a guest and waits until it runs at this site, counting from one again.
///
/// # Panics
///
/// If it does not run there.
pub fn boots(scene: &Scene, guest: &Guest, console: &mut Console, at: Place) {
    console.forget();
    let booted = scene.lab.site(at).boot(&guest.name);
    booted.unwrap_or_else(|problem| panic!("not booted: {problem:?}"));
    let rest = scene.rest(guest, console);
    assert_eq!(rest.expect("it comes to rest").place, at);
}

/// Waits until a guest is shown as crashed, without a process, at a site that owns it.
///
/// # Panics
///
/// If it is not.
pub fn is_crashed(scene: &Scene, guest: &Guest, at: Place) {
    let crashed = wait_until(SHOWN_WAIT, || {
        let view = scene.lab.site(at).guest(&guest.name).ok()??;
        let is_crashed = view.state == GuestState::Crashed && view.process_id.is_none();
        is_crashed.then_some(view)
    });
    let crashed = crashed.expect("a crashed guest is shown as one");
    assert_eq!(crashed.ownership, Ownership::Owned);
}

/// Starts to move a guest, and kills its process at one site once the move is in a phase.
///
/// # Panics
///
/// If it cannot be killed there.
#[must_use]
pub fn killed_in(
    scene: &Scene,
    guest: &Guest,
    (mode, phase): (MigrationMode, Phase),
    at: Place,
) -> Console {
    let mut console = scene.guest(guest);
    scene.begin(guest, mode).expect("it begins");
    scene.reaches(guest, phase).expect("it gets there");
    if at == TARGET && phase == Phase::Serving {
        console.wait_for_more(1, SHOWN_WAIT).expect("it runs");
    }
    assert_eq!(scene.lab.kill_guest(at, &guest.name), 1);
    console
}

/// A guest that is killed at its source before the commit has crashed there; once booted, it can be
/// moved.
///
/// # Panics
///
/// If that does not hold.
pub fn at_its_source(scene: &Scene, guest: &Guest, phase: Phase) {
    let mut console = killed_in(scene, guest, (MigrationMode::Auto, phase), SOURCE);
    let view = scene.reaches(guest, Phase::Failed).expect("it fails");
    let error = view.error.expect("a failed move says why");
    assert_eq!(error.code, Code::Guest.as_str(), "{error:?}");
    is_crashed(scene, guest, SOURCE);
    let gone = wait_until(SHOWN_WAIT, || {
        let left = scene.lab.guest_processes(TARGET, &guest.name);
        left.is_empty().then_some(())
    });
    assert!(gone.is_some(), "the target keeps what it received");
    stays_silent(&mut console);
    boots(scene, guest, &mut console, SOURCE);
    scene.begin(guest, MigrationMode::Auto).expect("it begins");
    scene.arrives(guest, &mut console).expect("it arrives");
}

/// A guest that has been handed over loses nothing when the process it left dies.
///
/// # Panics
///
/// If that does not hold.
pub fn at_its_source_behind_the_commit(scene: &Scene, guest: &Guest) {
    let middle = (MigrationMode::Post, Phase::Serving);
    let mut console = killed_in(scene, guest, middle, SOURCE);
    // The memory that was left in it is fetched to the last page.
    scene.arrives(guest, &mut console).expect("it arrives");
}

/// A receiving process that is killed is started again.
///
/// # Panics
///
/// If that does not hold.
pub fn while_it_receives(scene: &Scene, guest: &Guest) {
    let middle = (MigrationMode::Auto, Phase::Copying);
    let mut console = killed_in(scene, guest, middle, TARGET);
    let rest = scene.arrives(guest, &mut console).expect("it arrives");
    assert_eq!(rest.moves[0].attempts, Some(2));
}

/// After this step the source commits, but cannot tell the target before the target is back.
const SAY_READY: &str = "say-ready";

/// A process that is killed before the commit reaches it has not begun to run: the source still has
/// all of its memory, and serves it again. The target's migrator is kept dead until then, so that
/// the commit cannot arrive first.
/// # Panics
///
/// If that does not hold.
pub fn in_its_commit(scene: &mut Scene, guest: &Guest) {
    scene.restart_to_die(Side::Target, &failpoint(Side::Target, SAY_READY));
    let mut console = scene.guest(guest);
    let begun = scene.begin(guest, MigrationMode::Auto).expect("it begins");
    scene.died(Side::Target).expect("it says that it is ready");
    let committed = scene.reaches(guest, Phase::Committed);
    committed.expect("it is committed");
    assert_eq!(scene.lab.kill_guest(TARGET, &guest.name), 1);
    scene.lab.site_mut(TARGET).start_migrator();
    let rest = scene.arrives(guest, &mut console).expect("it arrives");
    assert_eq!(rest.moves[0].id, begun.id, "{:?}", rest.moves);
    assert_eq!(rest.moves[0].attempts, Some(2), "{:?}", rest.moves);
}

/// A guest that is killed at its target never runs at its source.
///
/// # Panics
///
/// If that does not hold.
pub fn at_its_target(scene: &Scene, guest: &Guest) {
    let middle = (MigrationMode::Post, Phase::Serving);
    let mut console = killed_in(scene, guest, middle, TARGET);
    is_crashed(scene, guest, TARGET);
    stays_silent(&mut console);
    let left = scene.lab.site(SOURCE).guest(&guest.name);
    let left = left.expect("it answers").expect("known");
    assert_ne!(left.state, GuestState::Running);
    boots(scene, guest, &mut console, TARGET);
}
