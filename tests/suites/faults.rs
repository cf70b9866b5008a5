//! What must hold when a process dies or the link is cut, with real processes and real guests.
//!
//! The numbers are those of the fault catalogue. Each case ends with the same look at everything:
//! [`towpath_tests::verdict`].
#![allow(clippy::print_stdout, reason = "a test says how long each case took")]
#![forbid(unsafe_code)]

#[path = "faults/trials.rs"]
mod trials;

use std::time::{Duration, Instant};

use towpath_migrator::api::{MigrationMode, Phase};
use towpath_tests::console::Console;
use towpath_tests::lab::{Guest, Lab, Link};
use towpath_tests::site::Place;
use towpath_tests::verdict::{Rest, come_to_rest};
use towpath_tests::watch::Watch;

/// A link that carries a small guest in a second.
const LINK: Link = Link {
    megabits_per_second: 300,
    round_trip: Duration::from_millis(4),
};

/// How long a disturbed move may take until all is at rest, on a busy machine.
const REST_WAIT: Duration = Duration::from_secs(30);

/// How long a migrator may live until it comes by the step at which it is to die.
const STEP_WAIT: Duration = Duration::from_secs(20);

/// Where guests come from.
const SOURCE: Place = Place::Edge;

/// Which of the two migrators is killed.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Source,
    Target,
}

impl Victim {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Target => "target",
        }
    }

    const fn place(self) -> Place {
        match self {
            Self::Source => SOURCE,
            Self::Target => SOURCE.other(),
        }
    }
}

/// A lab, the watch over it, and the guest that moves.
struct Scene {
    watch: Watch,
    lab: Lab,
}

impl Scene {
    fn new(link: Link) -> Self {
        let lab = Lab::start(link);
        let watch = Watch::start(&lab);
        Self { watch, lab }
    }

    /// Starts a guest and waits until it is seen to run.
    fn guest(&self, guest: &Guest) -> Console {
        self.lab.start_guest(SOURCE, guest);
        let mut console = Console::of(&self.lab, &guest.name);
        console
            .wait_for_more(5, REST_WAIT)
            .expect("a new guest runs");
        console
    }

    fn rest(&self, guest: &Guest, console: &mut Console) -> Result<Rest, String> {
        come_to_rest(&self.lab, &guest.name, console, &self.watch, REST_WAIT)
    }

    /// As [`Scene::rest`], and the guest must have moved.
    fn arrives(&self, guest: &Guest, console: &mut Console) -> Result<Rest, String> {
        let rest = self.rest(guest, console)?;
        if rest.place == SOURCE {
            return Err(format!("it stayed: {:?}", rest.moves.first()));
        }
        match rest.moves.first() {
            Some(view) if view.phase != Phase::Done => Err(format!("not done: {view:?}")),
            _ => Ok(rest),
        }
    }
}

/// Moves a guest while one of the migrators dies right behind a step, and is started again.
fn kill_at(
    scene: &mut Scene,
    victim: Victim,
    step: &str,
    (mode, guest): (MigrationMode, &Guest),
) -> Result<(), String> {
    let place = victim.place();
    let failpoint = format!("{}:{step}", victim.as_str());
    scene.lab.site_mut(place).kill_migrator();
    scene
        .lab
        .site_mut(place)
        .start_migrator_with(Some(&failpoint));
    let mut console = scene.guest(guest);
    let request = Lab::request(guest, SOURCE, mode);
    // A migrator that dies at once does not answer.
    let asked = scene.lab.site(SOURCE).migrate(&request);
    if !scene.lab.site_mut(place).migrator_ends(STEP_WAIT) {
        return Err(format!("the step was not reached; the move: {asked:?}"));
    }
    scene.lab.site_mut(place).start_migrator();
    scene.arrives(guest, &mut console)?;
    scene.lab.forget_guest(&guest.name);
    Ok(())
}

/// Kills a migrator at each of some steps, in a move of each kind; both kinds side by side.
fn kill_at_each(victim: Victim, steps: &[(&str, &[MigrationMode])], make: fn(&str) -> Guest) {
    let modes = [MigrationMode::Auto, MigrationMode::Post];
    let failures: Vec<String> = std::thread::scope(|scope| {
        let of_mode = |mode| {
            let steps = steps.iter().filter(move |(_, modes)| modes.contains(&mode));
            scope.spawn(move || kill_in_mode(victim, mode, steps.map(|(step, _)| *step), make))
        };
        let workers = modes.map(of_mode);
        let joined = workers.into_iter().map(|worker| worker.join());
        joined
            .flat_map(|failures| failures.expect("reported"))
            .collect()
    });
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn kill_in_mode<'a>(
    victim: Victim,
    mode: MigrationMode,
    steps: impl Iterator<Item = &'a str>,
    make: fn(&str) -> Guest,
) -> Vec<String> {
    let mut failures = Vec::new();
    let mut scene = None;
    for step in steps {
        let mut now = scene.take().unwrap_or_else(|| Scene::new(LINK));
        let begun = Instant::now();
        let guest = make(&format!("at-{step}"));
        let case = format!("{} {mode:?} {step}", victim.as_str());
        match kill_at(&mut now, victim, step, (mode, &guest)) {
            Ok(()) => {
                println!("{case}: {} ms", begun.elapsed().as_millis());
                scene = Some(now);
            }
            // The lab is not to be trusted any more.
            Err(why) => {
                now.lab.show_logs();
                failures.push(format!("{case}: {why}"));
            }
        }
    }
    failures
}

const BOTH: &[MigrationMode] = &[MigrationMode::Auto, MigrationMode::Post];

const FETCHED: &[MigrationMode] = &[MigrationMode::Post];

fn small(name: &str) -> Guest {
    Guest::new(name, 32)
}

#[test]
fn an_undisturbed_move_arrives() {
    let scene = Scene::new(LINK);
    for mode in [MigrationMode::Auto, MigrationMode::Post] {
        let guest = small("calm");
        let mut console = scene.guest(&guest);
        let request = Lab::request(&guest, SOURCE, mode);
        scene.lab.site(SOURCE).migrate(&request).unwrap();
        let rest = scene.arrives(&guest, &mut console).unwrap();
        println!("{mode:?}: {} ms", rest.moves[0].total_ms);
        scene.lab.forget_guest(&guest.name);
    }
}

#[test]
fn fault_01_source_killed_before_the_freeze() {
    let steps = [
        ("offering", BOTH),
        ("connect", BOTH),
        ("send", BOTH),
        ("say-prepare", BOTH),
        ("start-tracking", BOTH),
        ("send-chunk", BOTH),
        ("harvest", BOTH),
    ];
    kill_at_each(Victim::Source, &steps, small);
}

#[test]
fn fault_02_source_killed_while_its_guest_is_frozen() {
    let steps = [
        ("freeze", BOTH),
        ("save-state", BOTH),
        ("say-final-begin", BOTH),
        ("say-final-end", BOTH),
    ];
    kill_at_each(Victim::Source, &steps, small);
}

#[test]
fn fault_03_source_killed_behind_the_commit() {
    let steps = [
        ("relinquished", BOTH),
        ("say-commit", BOTH),
        ("number-from", FETCHED),
        ("released", BOTH),
        ("say-released", BOTH),
        ("free-image", BOTH),
        ("finished", BOTH),
    ];
    kill_at_each(Victim::Source, &steps, small);
}

#[test]
fn fault_04_target_killed_while_it_receives() {
    let steps = [
        ("prepared", BOTH),
        ("build-guest", BOTH),
        ("say-prepared", BOTH),
        ("send", BOTH),
        ("write", BOTH),
        ("save-position", BOTH),
        ("expect", FETCHED),
        ("arm-missing", FETCHED),
        ("load-state", BOTH),
    ];
    kill_at_each(Victim::Target, &steps, small);
}

#[test]
fn fault_05_target_killed_before_it_owns_the_guest() {
    kill_at_each(Victim::Target, &[("say-ready", BOTH)], small);
}

#[test]
fn fault_06_target_killed_when_it_owns_the_guest() {
    let steps = [
        ("owned", BOTH),
        ("run", BOTH),
        ("say-ack", BOTH),
        ("install", FETCHED),
        ("disarm-missing", BOTH),
        ("say-complete", BOTH),
        ("finished", BOTH),
    ];
    kill_at_each(Victim::Target, &steps, small);
}
