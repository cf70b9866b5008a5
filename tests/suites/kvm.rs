//! A sample of the fault cases with virtual machines in place of process guests.
#![allow(clippy::print_stdout, reason = "a test says how long each case took")]
#![forbid(unsafe_code)]

use std::fs::File;
use std::time::Instant;

use towpath_migrator::api::{MigrationMode, Phase};
use towpath_tests::cut::{self, Cut};
use towpath_tests::lab::Guest;
use towpath_tests::scene::{LINK, Scene};
use towpath_tests::trial::{Side, Trial};

/// Trials with virtual machines.
const TRIALS: std::ops::Range<u64> = 100_000..100_024;

/// Whether virtual machines can be had here; says why not.
fn has_kvm() -> bool {
    let opened = File::options().read(true).write(true).open("/dev/kvm");
    opened
        .inspect_err(|error| println!("skipped: /dev/kvm: {error}"))
        .is_ok()
}

fn machine(name: &str) -> Guest {
    Guest::new(name, 32).virtual_machine()
}

#[test]
fn a_virtual_machine_moves_there_undisturbed() {
    if !has_kvm() {
        return;
    }
    let scene = Scene::new(LINK);
    for mode in [MigrationMode::Auto, MigrationMode::Post] {
        let guest = machine("calm");
        let mut console = scene.guest(&guest);
        scene.begin(&guest, mode).unwrap();
        let rest = scene.arrives(&guest, &mut console).unwrap();
        println!("{mode:?}: {} ms", rest.moves[0].total_ms);
        scene.lab.forget_guest(&guest.name);
    }
}

#[test]
fn fault_01_to_06_a_virtual_machine_survives_the_end_of_either_migrator() {
    if !has_kvm() {
        return;
    }
    let cases = [
        (Side::Source, "send-chunk", MigrationMode::Auto),
        (Side::Source, "freeze", MigrationMode::Auto),
        (Side::Source, "save-state", MigrationMode::Post),
        (Side::Source, "relinquished", MigrationMode::Auto),
        (Side::Source, "say-commit", MigrationMode::Post),
        (Side::Source, "number-from", MigrationMode::Post),
        (Side::Target, "write", MigrationMode::Auto),
        (Side::Target, "load-state", MigrationMode::Auto),
        (Side::Target, "arm-missing", MigrationMode::Post),
        (Side::Target, "say-ready", MigrationMode::Auto),
        (Side::Target, "owned", MigrationMode::Auto),
        (Side::Target, "owned", MigrationMode::Post),
        (Side::Target, "run", MigrationMode::Post),
        (Side::Target, "install", MigrationMode::Post),
        (Side::Target, "disarm-missing", MigrationMode::Post),
    ];
    let mut scene = Scene::new(LINK);
    for (side, step, mode) in cases {
        let guest = machine(&format!("at-{step}"));
        let begun = Instant::now();
        let silence = scene.kill_at(side, step, (mode, &guest));
        let silence = silence.unwrap_or_else(|why| panic!("{side:?} {mode:?} {step}: {why}"));
        let took = begun.elapsed();
        println!("{side:?} {mode:?} {step}: {took:?}, silent for {silence:?}");
    }
}

#[test]
fn fault_18_a_virtual_machine_waits_for_the_link_and_little_longer() {
    if !has_kvm() {
        return;
    }
    let cut = Cut::new(Phase::Serving, None, 5).of_virtual_machine();
    let told = cut::check(&[cut]).unwrap_or_else(|failures| panic!("{failures}"));
    println!("{}", told.join("\n"));
}

#[test]
fn a_virtual_machine_survives_whatever_happens_to_its_move() {
    if !has_kvm() {
        return;
    }
    let Scene { watch, mut lab } = Scene::new(LINK);
    let begun = Instant::now();
    for seed in TRIALS {
        let mut trial = Trial::draw(seed);
        trial.guest = trial.guest.virtual_machine();
        if let Err(why) = trial.run(&mut lab, &watch) {
            panic!("{trial:?}\n{why}");
        }
    }
    println!("{TRIALS:?} in {:?}", begun.elapsed());
}
