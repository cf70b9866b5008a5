//! The guest's own process is killed, before and after the commit.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Signal, kill_process};
use towpath_migrator::api::{GuestState, MigrationMode, Phase};
use towpath_protocol::fault::Code;
use towpath_protocol::guest_api::WORKING_SET_START_BYTES;
use towpath_tests::away::LONG;
use towpath_tests::killed::{self, SHOWN_WAIT, SLOW, boots, stays_silent};
use towpath_tests::lab::{Guest, Link};
use towpath_tests::scene::{SOURCE, Scene, TARGET};
use towpath_tests::site::Place;
use towpath_tests::verdict::wait_until;

/// A link so slow that copying a guest takes longer than the wait for a process that does not
/// answer.
const SLOWEST: Link = Link {
    megabits_per_second: 2,
    round_trip: Duration::from_millis(10),
};

/// How long it may take until a receiving process that does not answer is given up and replaced.
const GIVEN_UP_WAIT: Duration = Duration::from_secs(60);

/// How long a restarted migrator may take until it reports that a guest's process is busy.
const BUSY_SHOWN_WAIT: Duration = Duration::from_secs(30);

/// How long a cancelled move may last if the guest's process does not answer: it is retried a few
/// times.
const BUSY_END_WAIT: Duration = Duration::from_secs(60);

#[test]
fn fault_07_guest_killed_at_its_source_is_a_crash_there() {
    killed::at_its_source(&Scene::new(SLOW), &Guest::new("victim", 32), Phase::Copying);
}

#[test]
fn fault_07_guest_killed_at_its_source_while_it_is_frozen_is_a_crash_there() {
    killed::at_its_source(
        &Scene::new(LONG),
        &Guest::new("victim", 16),
        Phase::Switching,
    );
}

#[test]
fn fault_08_receiving_process_killed_is_received_again() {
    killed::while_it_receives(&Scene::new(SLOW), &Guest::new("victim", 32));
}

#[test]
fn fault_08_guest_killed_at_its_target_never_runs_at_its_source() {
    killed::at_its_target(&Scene::new(SLOW), &Guest::new("victim", 32));
}

#[test]
fn fault_08_guest_killed_at_its_target_in_its_commit_is_served_again() {
    killed::in_its_commit(&mut Scene::new(LONG), &Guest::new("victim", 16));
}

#[test]
fn fault_07_frozen_process_killed_at_its_source_costs_its_target_nothing() {
    killed::at_its_source_behind_the_commit(&Scene::new(SLOW), &Guest::new("victim", 32));
}

#[test]
fn fault_08_guest_killed_after_its_move_is_a_crash_there() {
    let scene = Scene::new(SLOW);
    let guest = Guest::new("victim", 16);
    let mut console = scene.guest(&guest);
    scene.begin(&guest, MigrationMode::Auto).unwrap();
    scene.arrives(&guest, &mut console).unwrap();
    assert_eq!(scene.lab.kill_guest(TARGET, &guest.name), 1);
    stays_silent(&mut console);
    boots(&scene, &guest, &mut console, TARGET);
}

#[test]
fn fault_08_receiving_process_killed_while_it_is_asked_is_received_again() {
    let scene = Scene::new(LONG);
    let guest = Guest::new("victim", 16);
    let mut console = scene.guest(&guest);
    scene.begin(&guest, MigrationMode::Auto).unwrap();
    scene.reaches(&guest, Phase::Switching).unwrap();
    // The process does not answer while the guest's state, which it should load, is in flight.
    signal_at(TARGET, &scene, &guest, Signal::STOP);
    // Not a wait for an event: this is in the middle of the switch, not at its start.
    std::thread::sleep(LONG.round_trip * 3);
    assert_eq!(scene.lab.kill_guest(TARGET, &guest.name), 1);
    let rest = scene.arrives(&guest, &mut console).unwrap();
    assert_eq!(rest.moves[0].attempts, Some(2));
}

#[test]
fn fault_42_a_receiving_process_that_answers_nobody_for_a_while_holds_nothing() {
    let scene = Scene::new(SLOW);
    let guest = Guest::new("victim", 96);
    let mut console = scene.guest(&guest);
    scene.begin(&guest, MigrationMode::Auto).unwrap();
    let begun = scene.reaches(&guest, Phase::Copying).unwrap();
    signal_at(TARGET, &scene, &guest, Signal::STOP);
    let goes_on = wait_until(SHOWN_WAIT * 2, || {
        let moves = scene.lab.site(SOURCE).moves(&guest.name).ok()?;
        let left = moves.first()?.blocks_left;
        (left < begun.blocks_total * 3 / 4).then_some(())
    });
    assert!(goes_on.is_some(), "the move is held");
    signal_at(TARGET, &scene, &guest, Signal::CONT);
    let rest = scene.arrives(&guest, &mut console).unwrap();
    assert_eq!(rest.moves[0].attempts, Some(1));
}

#[test]
fn fault_42_a_receiving_process_that_answers_nobody_is_given_up() {
    let scene = Scene::new(SLOWEST);
    let guest = Guest::new("victim", 32);
    let mut console = scene.guest(&guest);
    let view = scene.begin(&guest, MigrationMode::Auto).unwrap();
    scene.reaches(&guest, Phase::Copying).unwrap();
    let stopped = scene.lab.guest_processes(TARGET, &guest.name);
    signal_at(TARGET, &scene, &guest, Signal::STOP);
    let given_up = wait_until(GIVEN_UP_WAIT, || {
        let moves = scene.lab.site(SOURCE).moves(&guest.name).ok()?;
        let view = moves.into_iter().next()?;
        (view.attempts == Some(2) && view.phase == Phase::Copying).then_some(view)
    });
    let given_up = given_up.expect("it is begun anew with another process");
    println!("given up and begun anew after {} ms", given_up.total_ms);
    assert_ne!(scene.lab.guest_processes(TARGET, &guest.name), stopped);
    let log = std::fs::read_to_string(scene.lab.site(TARGET).migrator_log()).unwrap();
    assert!(log.contains("says nothing for 30s"), "it is not said why");
    scene.lab.site(SOURCE).cancel(&view).unwrap();
    assert_eq!(console.wait_for_more(20, SHOWN_WAIT), Ok(SOURCE));
    console.is_whole().unwrap();
    assert!(scene.lab.site(SOURCE).verify(&guest.name).unwrap().verified);
}

/// Signals a guest's process at its source.
fn signal(scene: &Scene, guest: &Guest, signal: Signal) {
    signal_at(SOURCE, scene, guest, signal);
}

fn signal_at(place: Place, scene: &Scene, guest: &Guest, signal: Signal) {
    let processes = scene.lab.guest_processes(place, &guest.name);
    assert_eq!(processes.len(), 1);
    kill_process(processes[0], signal).unwrap();
}

/// Restarts a migrator whose guest's process does not answer, and waits until it reports that.
fn restart_beside_a_busy_process(scene: &mut Scene, guest: &Guest) {
    signal(scene, guest, Signal::STOP);
    let site = scene.lab.site_mut(SOURCE);
    site.kill_migrator();
    site.start_migrator();
    let held = wait_until(BUSY_SHOWN_WAIT, || {
        let view = scene.lab.site(SOURCE).guest(&guest.name).ok()??;
        view.error.is_some().then_some(view)
    });
    let held = held.expect("a guest whose process is busy is shown");
    assert_eq!(held.state, GuestState::Frozen, "{held:?}");
    let refused = scene.lab.site(SOURCE).boot(&guest.name).unwrap_err();
    assert_eq!(refused.known_code(), Some(Code::AlreadyRunning));
}

#[test]
fn fault_44_a_guest_whose_process_was_busy_at_the_start_is_taken_up_later() {
    let mut scene = Scene::new(SLOW);
    let guest = Guest::new("busy", 16);
    let mut console = scene.guest(&guest);
    restart_beside_a_busy_process(&mut scene, &guest);
    signal(&scene, &guest, Signal::CONT);
    let rest = scene.rest(&guest, &mut console).unwrap();
    assert_eq!(rest.place, SOURCE);
    scene.begin(&guest, MigrationMode::Auto).unwrap();
    scene.arrives(&guest, &mut console).unwrap();
}

#[test]
fn fault_44_a_guest_whose_process_was_busy_when_its_move_ended_goes_on_and_moves() {
    let scene = Scene::new(SLOW);
    let guest = Guest::new("busy", 16);
    let mut console = scene.guest(&guest);
    let begun = scene.begin(&guest, MigrationMode::Auto).unwrap();
    scene.reaches(&guest, Phase::Copying).unwrap();
    signal(&scene, &guest, Signal::STOP);
    // The client need not wait as long as the migrator waits for the process.
    drop(scene.lab.site(SOURCE).cancel(&begun));
    let ended = wait_until(BUSY_END_WAIT, || {
        let moves = scene.lab.site(SOURCE).moves(&guest.name).ok()?;
        moves.first()?.phase.is_finished().then_some(())
    });
    ended.expect("a process that does not answer ends the move");
    signal(&scene, &guest, Signal::CONT);
    let shown = wait_until(SHOWN_WAIT, || {
        let view = scene.lab.site(SOURCE).guest(&guest.name).ok()??;
        let is_well = view.state == GuestState::Running && view.error.is_none();
        is_well.then_some(())
    });
    shown.expect("it is no crash");
    scene.begin(&guest, MigrationMode::Auto).unwrap();
    scene.arrives(&guest, &mut console).unwrap();
}

#[test]
fn fault_44_a_guest_whose_process_answers_nobody_is_stopped_with_its_process() {
    let mut scene = Scene::new(SLOW);
    let guest = Guest::new("busy", 16);
    let _console = scene.guest(&guest);
    restart_beside_a_busy_process(&mut scene, &guest);
    scene.lab.site(SOURCE).stop_guest(&guest.name).unwrap();
    let left = scene.lab.guest_processes(SOURCE, &guest.name);
    assert!(left.is_empty(), "{left:?} runs on and nobody knows it");
}

/// Overwrites a guest's memory from outside, so that the guest finds it corrupted and crashes.
fn spoil(scene: &Scene, guest: &Guest) {
    let process = scene.lab.guest_processes(SOURCE, &guest.name)[0].as_raw_nonzero();
    let files = std::fs::read_dir(format!("/proc/{process}/fd")).unwrap();
    let is_memory = |path: &PathBuf| {
        let target = std::fs::read_link(path).unwrap_or_default();
        target.to_string_lossy().starts_with("/memfd:")
    };
    let memory = files
        .map(|file| file.unwrap().path())
        .find(is_memory)
        .expect("a guest's process holds its memory");
    let memory = File::options().write(true).open(memory).unwrap();
    let start = WORKING_SET_START_BYTES;
    let garbage = vec![0xA5; usize::try_from((guest.memory_mib << 20) - start).unwrap()];
    memory.write_all_at(&garbage, start).unwrap();
}

#[test]
fn fault_07_guest_that_crashed_in_a_living_process_says_why_and_is_booted() {
    let scene = Scene::new(SLOW);
    let guest = Guest::new("spoilt", 16);
    let mut console = scene.guest(&guest);
    let refused = scene.lab.site(SOURCE).boot(&guest.name).unwrap_err();
    assert_eq!(refused.known_code(), Some(Code::State), "it runs");
    spoil(&scene, &guest);
    let crashed = wait_until(SHOWN_WAIT, || {
        let view = scene.lab.site(SOURCE).guest(&guest.name).ok()??;
        (view.state == GuestState::Crashed).then_some(view)
    });
    let crashed = crashed.expect("a crashed guest is shown as one");
    assert!(crashed.process_id.is_some(), "{crashed:?}");
    let error = crashed.error.expect("a crashed guest says why");
    assert_eq!(error.code, Code::Guest.as_str());
    assert!(error.message.contains("page"), "{error:?}");
    stays_silent(&mut console);
    boots(&scene, &guest, &mut console, SOURCE);
    let shown = scene.lab.site(SOURCE).guest(&guest.name).unwrap();
    assert!(shown.expect("known").error.is_none());
}
