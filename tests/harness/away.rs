//! Cases in which daemons are down in the middle of a move, for any kind of guest.

use std::time::{Duration, Instant};

use towpath_migrator::api::{MigrationMode, Phase};

use crate::console::{Silence, monotonic_ns};
use crate::lab::{Guest, Link};
use crate::scene::{SILENCE_EXTRA, SOURCE, Scene};
use crate::site::Place;

/// A link slow enough to catch a move in the middle.
pub const SLOW: Link = Link {
    megabits_per_second: 80,
    round_trip: Duration::from_millis(10),
};

/// Modes and phases of the moves that are disturbed in the middle.
pub const MIDDLES: [(MigrationMode, Phase); 2] = [
    (MigrationMode::Auto, Phase::Copying),
    (MigrationMode::Post, Phase::Serving),
];

/// A link long enough to catch phases that last one round trip.
pub const LONG: Link = Link {
    megabits_per_second: 60,
    round_trip: Duration::from_millis(200),
};

/// The start of a move, and the middle of a switch on either side of its commit; for [`LONG`].
pub const BRIEF: [(MigrationMode, Phase); 3] = [
    (MigrationMode::Auto, Phase::Preparing),
    (MigrationMode::Auto, Phase::Switching),
    (MigrationMode::Auto, Phase::Committed),
];

/// How long the link may take to come back.
const LINK_WAIT: Duration = Duration::from_secs(20);

/// Does something to a lab in the middle of a phase. The guest must arrive, and be silent for
/// little longer than the disturbance lasted. Returns a summary.
///
/// # Errors
///
/// The expectation that failed.
pub fn disturb(
    scene: &mut Scene,
    (mode, phase): (MigrationMode, Phase),
    make: impl Fn(&str, u64) -> Guest,
    act: impl Fn(&mut Scene),
) -> Result<String, String> {
    // For the brief phases it does not matter how much is copied.
    let memory_mib = if is_brief(phase) { 16 } else { 32 };
    let guest = make(&format!("in-{}", phase.as_str()), memory_mib);
    let mut away = Duration::ZERO;
    let silence = scene.play(|scene| {
        let silence;
        (silence, away) = disturb_once(scene, (mode, phase), &guest, &act)?;
        Ok(silence)
    })?;
    Ok(format!(
        "while {phase:?}: away for {away:?}, silent for {silence:?}"
    ))
}

/// Additional silence on a long link: a killed tunnel sends nothing, so it takes three round trips
/// to be missed, two for a new link and two for the lanes; the commit and its answer take one.
fn round_trips(phase: Phase) -> Duration {
    if is_brief(phase) {
        LONG.round_trip * 8
    } else {
        Duration::ZERO
    }
}

const fn is_brief(phase: Phase) -> bool {
    matches!(
        phase,
        Phase::Preparing | Phase::Switching | Phase::Committed
    )
}

fn disturb_once(
    scene: &mut Scene,
    (mode, phase): (MigrationMode, Phase),
    guest: &Guest,
    act: impl Fn(&mut Scene),
) -> Result<(Silence, Duration), String> {
    let mut console = scene.guest(guest);
    let begun_ns = monotonic_ns();
    scene.begin(guest, mode)?;
    scene.reaches(guest, phase)?;
    let begun = Instant::now();
    act(scene);
    let (away, back_ns) = (begun.elapsed(), monotonic_ns());
    scene.arrives(guest, &mut console)?;
    let silence_max = away + SILENCE_EXTRA + round_trips(phase);
    let silence = console.check_silence((begun_ns, monotonic_ns(), back_ns), silence_max)?;
    scene.lab.forget_guest(&guest.name);
    Ok((silence, away))
}

/// Kills a tunnel with `kill -9` and restarts it at once.
pub fn kill_tunnel(scene: &mut Scene, place: Place) {
    let site = scene.lab.site_mut(place);
    site.kill_tunnel();
    site.start_tunnel();
    scene.lab.site(SOURCE).wait_for_link(LINK_WAIT);
}

/// Stops all daemons of both sites as a package upgrade does, and starts them again.
pub fn upgrade(scene: &mut Scene) {
    for place in Place::ALL {
        scene.lab.site_mut(place).stop_daemons();
    }
    for place in Place::ALL {
        scene.lab.site_mut(place).start_tunnel();
        scene.lab.site_mut(place).start_migrator();
    }
    scene.lab.site(SOURCE).wait_for_link(LINK_WAIT);
}
