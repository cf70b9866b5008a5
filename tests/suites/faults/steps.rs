//! Both migrators killed right behind every step of a move.

use std::time::Instant;

use towpath_migrator::api::MigrationMode;
use towpath_tests::lab::{Guest, check_kvm};
use towpath_tests::scene::{LINK, Scene};
use towpath_tests::trial::Side;

/// Kills a migrator at each of some steps, in a move of each kind; both kinds side by side.
fn kill_at_each(
    side: Side,
    steps: &[(&str, &[MigrationMode])],
    make: fn(&str, MigrationMode) -> Guest,
) {
    let modes = [MigrationMode::Auto, MigrationMode::Post];
    let failures: Vec<String> = std::thread::scope(|scope| {
        let of_mode = |mode| {
            let steps = steps.iter().filter(move |(_, modes)| modes.contains(&mode));
            scope.spawn(move || kill_in_mode(side, mode, steps.map(|(step, _)| *step), make))
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
    side: Side,
    mode: MigrationMode,
    steps: impl Iterator<Item = &'a str>,
    make: fn(&str, MigrationMode) -> Guest,
) -> Vec<String> {
    let mut failures = Vec::new();
    let mut scene = None;
    for step in steps {
        let mut now = scene.take().unwrap_or_else(|| Scene::new(LINK));
        let begun = Instant::now();
        let guest = make(&format!("at-{step}"), mode);
        let case = format!("{} {mode:?} {step}", side.as_str());
        match now.kill_at(side, step, (mode, &guest)) {
            Ok(silence) => {
                let (took_ms, silence_ms) = (begun.elapsed().as_millis(), silence.as_millis());
                println!("{case}: {took_ms} ms, silent for {silence_ms} ms");
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

/// One kind of move is of virtual machines where they can be had, the other of process guests.
fn small(name: &str, mode: MigrationMode) -> Guest {
    let guest = Guest::new(name, 16);
    if mode == MigrationMode::Post && check_kvm().is_ok() {
        guest.virtual_machine()
    } else {
        guest
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
    kill_at_each(Side::Source, &steps, small);
}

#[test]
fn fault_02_source_killed_while_its_guest_is_frozen() {
    let steps = [
        ("freeze", BOTH),
        ("save-state", BOTH),
        ("say-final-begin", BOTH),
        ("say-final-end", BOTH),
    ];
    kill_at_each(Side::Source, &steps, small);
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
    kill_at_each(Side::Source, &steps, small);
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
    kill_at_each(Side::Target, &steps, small);
}

#[test]
fn fault_05_target_killed_before_it_owns_the_guest() {
    kill_at_each(Side::Target, &[("say-ready", BOTH)], small);
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
    kill_at_each(Side::Target, &steps, small);
}
