//! A tunnel or the guest's own process is killed together with a migrator, right after a step of a
//! move.
//!
//! Every step on the normal way of a move is tested twice: with a tunnel that dies with the
//! migrator, and with a process of the guest that does. The side of that victim alternates from
//! step to step, so that each migrator dies with each of the four before the freeze, during it, and
//! after the commit.

use towpath_migrator::api::{MigrationMode, Phase};
use towpath_tests::away;
use towpath_tests::console::Console;
use towpath_tests::crash;
use towpath_tests::lab::Guest;
use towpath_tests::scene::{LINK, REST_WAIT, SOURCE, Scene, TARGET, play_each};
use towpath_tests::site::Place;
use towpath_tests::steps::failpoint;
use towpath_tests::trial::Side;
use towpath_tests::verdict::check_no_alarm;

use crate::steps;

/// What dies together with the migrator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Tunnel,
    Process,
}

/// The expected fate of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Arrives,
    CrashesAt(Place),
    /// It is not determined whether the commit arrived first.
    ArrivesOrCrashesThere,
}

/// Steps at which the source alone has the guest.
fn is_before_the_commit((side, step): (Side, &str)) -> bool {
    let steps = match side {
        Side::Source => steps::BEFORE_THE_COMMIT.as_slice(),
        Side::Target => steps::BEFORE_IT_IS_READY.as_slice(),
    };
    let mut all = steps.iter().flat_map(|group| group.names());
    all.any(|name| name == step)
}

/// The expected fate of a guest whose process on one side dies after a step.
fn ending(stop: (Side, &str), victim: Side) -> Ending {
    match (victim, stop) {
        (Side::Source, _) if is_before_the_commit(stop) => Ending::CrashesAt(SOURCE),
        (Side::Source, _) => Ending::Arrives,
        (Side::Target, _) if is_before_the_commit(stop) => Ending::Arrives,
        (Side::Target, (Side::Source, "relinquished") | (Side::Target, "say-ready")) => {
            Ending::Arrives
        }
        (Side::Target, (Side::Source, "say-commit") | (Side::Target, "owned")) => {
            Ending::ArrivesOrCrashesThere
        }
        (Side::Target, _) => Ending::CrashesAt(TARGET),
    }
}

fn comes_to(
    scene: &Scene,
    guest: &Guest,
    console: &mut Console,
    expected: Ending,
) -> Result<(), String> {
    let found = crash::ended(&scene.lab, guest, TARGET, REST_WAIT)?;
    let is_expected = match expected {
        Ending::Arrives => found.is_none(),
        Ending::CrashesAt(place) => found == Some(place),
        Ending::ArrivesOrCrashesThere => found != Some(SOURCE),
    };
    if !is_expected {
        return Err(format!("{expected:?} was expected, crashed at {found:?}"));
    }
    let Some(place) = found else {
        return scene.arrives(guest, console).map(drop);
    };
    let seen = (&scene.lab, &scene.watch);
    crash::boot_again(seen, guest, console, place, REST_WAIT).map(drop)
}

/// Kills a migrator after its step, together with a victim.
fn kill_both(
    scene: &mut Scene,
    (side, step): (Side, &str),
    (victim, of): (Victim, Side),
) -> Result<(), String> {
    let guest = Guest::new(&format!("at-{step}"), 16);
    scene.restart_to_die(side, &failpoint(side, step));
    let mut console = scene.guest(&guest);
    // A migrator that dies at once does not answer.
    let asked = scene.begin(&guest, MigrationMode::Auto);
    let died = scene.died(side);
    died.map_err(|why| format!("{why}; the move: {asked:?}"))?;
    if (side, step) == (Side::Target, "say-ready") {
        scene.reaches(&guest, Phase::Committed)?;
    }
    let expected = match victim {
        Victim::Tunnel => {
            away::kill_tunnel(scene, of.place(SOURCE));
            Ending::Arrives
        }
        Victim::Process => {
            let count = scene.lab.kill_guest(of.place(SOURCE), &guest.name);
            match count {
                0 => Ending::Arrives,
                _ => ending((side, step), of),
            }
        }
    };
    scene.lab.site_mut(side.place(SOURCE)).start_migrator();
    comes_to(scene, &guest, &mut console, expected)?;
    check_no_alarm(&scene.lab)?;
    scene.lab.forget_guest(&guest.name);
    Ok(())
}

/// Whether the outcome at this step depends on whether the source has heard that the process is
/// ready. `killed::in_its_commit` controls that and tests it.
fn is_open(stop: (Side, &str)) -> bool {
    stop == (Side::Target, "say-ready")
}

/// Plays one kind of victim at every step.
fn play(victim: Victim) -> Vec<String> {
    let sides = [Side::Source, Side::Target].into_iter().cycle();
    let stops = steps::onward().into_iter().zip(sides);
    let cases = stops
        .filter(|(stop, of)| !(is_open(*stop) && (victim, *of) == (Victim::Process, Side::Target)))
        .map(|(stop, of)| (format!("{stop:?} with the {of:?}'s {victim:?}"), (stop, of)));
    play_each(LINK, cases, |scene, (stop, of)| {
        kill_both(scene, stop, (victim, of)).map(|()| String::new())
    })
}

#[test]
fn fault_01_to_06_a_tunnel_killed_with_a_migrator_at_every_step() {
    let failures = play(Victim::Tunnel);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn fault_07_and_08_a_guest_killed_with_a_migrator_at_every_step() {
    let failures = play(Victim::Process);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
