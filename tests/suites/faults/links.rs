//! The link is cut in every phase of a move, in both directions or one; the move continues by
//! itself.

use std::time::{Duration, Instant};

use towpath_migrator::api::{MigrationMode, Phase};
use towpath_tests::cut::{self, Cut};
use towpath_tests::lab::Guest;
use towpath_tests::scene::{LINK, SOURCE, Scene};
use towpath_tests::trial::Side;
use towpath_tests::verdict::wait_until;

/// A guest's memory.
const MEMORY_MIB: u64 = 32;

/// How long a migrator may live until it dies at its step, and how long until a metric is right.
const STEP_WAIT: Duration = Duration::from_secs(20);

/// Plays cuts concurrently.
fn check(cuts: &[Cut]) {
    let told = cut::check(cuts).unwrap_or_else(|failures| panic!("{failures}"));
    println!("{}", told.join("\n"));
}

#[test]
fn fault_15_link_cut_before_the_freeze() {
    check(&[
        Cut::new(Phase::Preparing, None, 1),
        Cut::new(Phase::Preparing, None, 10),
        Cut::new(Phase::Copying, None, 1),
        Cut::new(Phase::Copying, None, 10),
    ]);
}

#[test]
fn fault_16_link_cut_while_the_guest_is_frozen() {
    check(&[
        Cut::new(Phase::Switching, None, 1),
        Cut::new(Phase::Switching, None, 10),
    ]);
}

#[test]
fn fault_17_link_cut_behind_the_commit() {
    check(&[
        Cut::new(Phase::Committed, None, 1),
        Cut::new(Phase::Committed, None, 10),
    ]);
}

/// The longest time that a guest is held, from the metrics.
fn blocked_seconds(scene: &Scene) -> Option<u64> {
    let [_, metrics] = scene.lab.site(SOURCE).metrics().ok()?;
    let line = metrics
        .lines()
        .find_map(|line| line.strip_prefix("towpath_handover_blocked_seconds "));
    line?.parse().ok()
}

#[test]
fn fault_17_a_restarted_source_says_since_when_its_guest_is_held() {
    let mut scene = Scene::new(LINK);
    let site = scene.lab.site_mut(SOURCE);
    site.kill_migrator();
    site.start_migrator_with(Some("source:relinquished"));
    let guest = Guest::new("held", MEMORY_MIB);
    let mut console = scene.guest(&guest);
    // A migrator that dies at once does not answer.
    let asked = scene.begin(&guest, MigrationMode::Auto);
    let died = scene.lab.site_mut(SOURCE).migrator_dies(STEP_WAIT);
    assert_eq!(died, Ok(true), "{asked:?}");
    let died = Instant::now();
    scene.lab.cut();
    // Not a wait for an event: the guest is held for this long before anything can report it.
    std::thread::sleep(Duration::from_secs(1));
    let away_ms = died.elapsed().as_millis();
    scene.lab.site_mut(SOURCE).start_migrator();
    let held = scene.reaches(&guest, Phase::Committed).unwrap();
    let is_said = |blocked_ms| u128::from(blocked_ms) >= away_ms;
    assert!(
        held.blocked_ms.is_some_and(is_said),
        "{away_ms} ms: {held:?}"
    );
    let scraped = wait_until(STEP_WAIT, || {
        blocked_seconds(&scene).filter(|seconds| *seconds > 0)
    });
    assert!(scraped.is_some(), "no scraper hears of it");
    scene.lab.heal();
    scene.arrives(&guest, &mut console).unwrap();
}

#[test]
fn fault_18_link_cut_while_blocks_are_fetched() {
    check(&[
        Cut::new(Phase::Serving, None, 1),
        Cut::new(Phase::Serving, None, 10),
    ]);
}

#[test]
fn fault_19_one_direction_lost() {
    let phases = [
        Phase::Preparing,
        Phase::Copying,
        Phase::Switching,
        Phase::Committed,
        Phase::Serving,
    ];
    for side in [Side::Source, Side::Target] {
        for seconds in [1, 10] {
            check(&phases.map(|phase| Cut::new(phase, Some(side), seconds)));
        }
    }
}
