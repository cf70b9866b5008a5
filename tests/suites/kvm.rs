//! The fault cases with virtual machines instead of process guests; half of the trials use them
//! too.
#![allow(clippy::print_stdout, reason = "a test says how long each case took")]
#![forbid(unsafe_code)]

use std::time::Instant;

use towpath_migrator::api::{MigrationMode, Phase};
use towpath_tests::away::{self, MIDDLES};
use towpath_tests::cut::{self, Cut};
use towpath_tests::killed;
use towpath_tests::lab::{Guest, check_kvm};
use towpath_tests::scene::{LINK, Scene};
use towpath_tests::site::Place;
use towpath_tests::steps::Stop;
use towpath_tests::trial::Side;

/// Whether virtual machines can run here; prints the reason if not.
fn has_kvm() -> bool {
    check_kvm()
        .inspect_err(|why| println!("skipped: {why}"))
        .is_ok()
}

fn machine(name: &str) -> Guest {
    machine_of(name, 32)
}

fn machine_of(name: &str, memory_mib: u64) -> Guest {
    Guest::new(name, memory_mib).virtual_machine()
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
        let silence = scene.kill_at(Stop::onward(side, step), (mode, &guest));
        let silence = silence.unwrap_or_else(|why| panic!("{side:?} {mode:?} {step}: {why}"));
        let took = begun.elapsed();
        println!("{side:?} {mode:?} {step}: {took:?}, silent for {silence:?}");
    }
}

#[test]
fn fault_07_a_virtual_machine_killed_at_its_source() {
    if !has_kvm() {
        return;
    }
    let scene = Scene::new(killed::SLOW);
    killed::at_its_source(&scene, &machine("copied"), Phase::Copying);
    killed::at_its_source_behind_the_commit(&scene, &machine("handed-over"));
}

#[test]
fn fault_07_a_virtual_machine_killed_while_it_is_frozen() {
    if !has_kvm() {
        return;
    }
    let scene = Scene::new(away::LONG);
    killed::at_its_source(&scene, &machine_of("frozen", 16), Phase::Switching);
}

#[test]
fn fault_08_a_virtual_machine_killed_at_its_target() {
    if !has_kvm() {
        return;
    }
    let scene = Scene::new(killed::SLOW);
    killed::while_it_receives(&scene, &machine("received"));
    killed::at_its_target(&scene, &machine("arriving"));
}

#[test]
fn fault_15_to_19_a_virtual_machine_survives_a_cut_link() {
    if !has_kvm() {
        return;
    }
    let phases = [
        Phase::Preparing,
        Phase::Copying,
        Phase::Switching,
        Phase::Committed,
        Phase::Serving,
    ];
    let (source, target) = (Some(Side::Source), Some(Side::Target));
    for (side, seconds) in [
        (None, 1),
        (None, 10),
        (source, 1),
        (source, 10),
        (target, 1),
    ] {
        let cuts = phases.map(|phase| Cut::new(phase, side, seconds).of_virtual_machine());
        let told = cut::check(&cuts).unwrap_or_else(|failures| panic!("{failures}"));
        println!("{}", told.join("\n"));
    }
}

/// Kills each tunnel in the middle of some phases.
fn tunnels_end(scene: &mut Scene, middles: &[(MigrationMode, Phase)]) {
    for &middle in middles {
        for place in Place::ALL {
            let told = away::disturb(scene, middle, machine_of, |scene| {
                away::kill_tunnel(scene, place);
            });
            let told = told.unwrap_or_else(|why| panic!("{place:?}'s tunnel {middle:?}: {why}"));
            println!("{place:?}'s tunnel {told}");
        }
    }
}

#[test]
fn a_virtual_machine_survives_the_end_of_either_tunnel() {
    if has_kvm() {
        tunnels_end(&mut Scene::new(away::SLOW), &MIDDLES);
    }
}

#[test]
fn a_virtual_machine_survives_the_end_of_either_tunnel_at_its_begin_and_switch() {
    if has_kvm() {
        tunnels_end(&mut Scene::new(away::LONG), &away::BRIEF);
    }
}

#[test]
fn fault_44_a_virtual_machine_survives_an_upgrade() {
    if !has_kvm() {
        return;
    }
    let mut scene = Scene::new(away::SLOW);
    for middle in MIDDLES {
        let told = away::disturb(&mut scene, middle, machine_of, away::upgrade);
        let told = told.unwrap_or_else(|why| panic!("both sites' daemons {middle:?}: {why}"));
        println!("both sites' daemons {told}");
    }
}
