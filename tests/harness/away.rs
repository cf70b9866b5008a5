//! Daemons that are away in the middle of a move, whatever kind of guest it is.

use std::time::{Duration, Instant};

use towpath_migrator::api::{MigrationMode, Phase};

use crate::console::{Silence, monotonic_ns};
use crate::lab::{Guest, Link};
use crate::scene::{SILENCE_EXTRA, SOURCE, Scene};
use crate::site::Place;

/// Slow enough to be met in the middle of a move.
pub const SLOW: Link = Link {
    megabits_per_second: 80,
    round_trip: Duration::from_millis(10),
};

/// In the middle of which phase, and so in a move of which kind.
pub const MIDDLES: [(MigrationMode, Phase); 2] = [
    (MigrationMode::Auto, Phase::Copying),
    (MigrationMode::Post, Phase::Serving),
];

/// So long that the phases which last a round trip can be met.
pub const LONG: Link = Link {
    megabits_per_second: 60,
    round_trip: Duration::from_millis(200),
};

/// At the begin of a move, and in the middle of a switch on either side of its commit; for [`LONG`].
pub const BRIEF: [(MigrationMode, Phase); 3] = [
    (MigrationMode::Auto, Phase::Preparing),
    (MigrationMode::Auto, Phase::Switching),
    (MigrationMode::Auto, Phase::Committed),
];

/// How long the link may take to be back.
const LINK_WAIT: Duration = Duration::from_secs(20);

/// Does something to a lab in the middle of a phase; the guest must arrive, and be silent for no longer
/// than that took and a little more. Says how it went.
///
/// # Errors
///
/// What does not hold.
pub fn disturb(
    scene: &mut Scene,
    (mode, phase): (MigrationMode, Phase),
    make: impl Fn(&str, u64) -> Guest,
    act: impl Fn(&mut Scene),
) -> Result<String, String> {
    // What is copied beside is no matter to those.
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

/// What a long link adds: a tunnel that is killed says nothing, so it takes three round trips to be missed, two to
/// be linked again and two for the lanes, and the commit and its answer are one.
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

/// `kill -9` of a tunnel, which is started again at once.
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
