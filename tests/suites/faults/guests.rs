//! The guest's own process killed, before and behind the commit.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Signal, kill_process};
use towpath_migrator::api::{GuestState, MigrationMode, Ownership, Phase};
use towpath_protocol::fault::Code;
use towpath_protocol::guest_api::WORKING_SET_START_BYTES;
use towpath_tests::console::Console;
use towpath_tests::lab::{Guest, Link};
use towpath_tests::scene::{SOURCE, Scene, TARGET};
use towpath_tests::verdict::wait_until;

/// Slow enough to be met in the middle of a move.
const SLOW: Link = Link {
    megabits_per_second: 60,
    round_trip: Duration::from_millis(10),
};

/// How long it may take until the end of a process shows everywhere.
const SHOWN_WAIT: Duration = Duration::from_secs(5);

/// How long a migrator that is started waits at most until it says that a guest's process is busy.
const BUSY_SHOWN_WAIT: Duration = Duration::from_secs(30);

/// How long nothing must begin to run by itself.
const QUIET: Duration = Duration::from_secs(2);

/// Checks that the guest is silent, wherever it might run.
fn stays_silent(console: &mut Console) {
    console.read().unwrap();
    let before = console.last();
    // Not waiting for anything: nothing is to happen.
    std::thread::sleep(QUIET);
    console.read().unwrap();
    assert_eq!(console.last(), before, "it ran by itself");
}

/// Boots a guest and waits until it is seen to run there, counting from one again.
fn boots(scene: &Scene, guest: &Guest, console: &mut Console, at: towpath_tests::site::Place) {
    console.forget();
    scene.lab.site(at).boot(&guest.name).unwrap();
    let rest = scene.rest(guest, console).unwrap();
    assert_eq!(rest.place, at);
}

#[test]
fn fault_07_guest_killed_at_its_source_is_a_crash_there() {
    let scene = Scene::new(SLOW);
    let guest = Guest::new("victim", 32);
    let mut console = scene.guest(&guest);
    scene.begin(&guest, MigrationMode::Auto).unwrap();
    scene.reaches(&guest, Phase::Copying).unwrap();
    assert_eq!(scene.lab.kill_guest(SOURCE, &guest.name), 1);
    let view = scene.reaches(&guest, Phase::Failed).unwrap();
    let error = view.error.expect("a failed move says why");
    assert_eq!(error.code, Code::Guest.as_str(), "{error:?}");
    let crashed = wait_until(SHOWN_WAIT, || {
        let view = scene.lab.site(SOURCE).guest(&guest.name).ok()??;
        (view.state == GuestState::Crashed).then_some(view)
    });
    let crashed = crashed.expect("a crashed guest is shown as one");
    assert_eq!(crashed.ownership, Ownership::Owned);
    assert_eq!(crashed.process_id, None);
    let gone = wait_until(SHOWN_WAIT, || {
        let left = scene.lab.guest_processes(TARGET, &guest.name);
        left.is_empty().then_some(())
    });
    assert!(gone.is_some(), "the target keeps what it received");
    stays_silent(&mut console);
    boots(&scene, &guest, &mut console, SOURCE);
    scene.begin(&guest, MigrationMode::Auto).unwrap();
    scene.arrives(&guest, &mut console).unwrap();
}

#[test]
fn fault_08_receiving_process_killed_is_received_again() {
    let scene = Scene::new(SLOW);
    let guest = Guest::new("victim", 32);
    let mut console = scene.guest(&guest);
    scene.begin(&guest, MigrationMode::Auto).unwrap();
    scene.reaches(&guest, Phase::Copying).unwrap();
    assert_eq!(scene.lab.kill_guest(TARGET, &guest.name), 1);
    let rest = scene.arrives(&guest, &mut console).unwrap();
    assert_eq!(rest.moves[0].attempts, 2);
}

#[test]
fn fault_08_guest_killed_at_its_target_never_runs_at_its_source() {
    let scene = Scene::new(SLOW);
    let guest = Guest::new("victim", 32);
    let mut console = scene.guest(&guest);
    scene.begin(&guest, MigrationMode::Post).unwrap();
    scene.reaches(&guest, Phase::Serving).unwrap();
    console.wait_for_more(1, SHOWN_WAIT).unwrap();
    assert_eq!(scene.lab.kill_guest(TARGET, &guest.name), 1);
    let crashed = wait_until(SHOWN_WAIT, || {
        let view = scene.lab.site(TARGET).guest(&guest.name).ok()??;
        (view.state == GuestState::Crashed).then_some(view)
    });
    let crashed = crashed.expect("a crashed guest is shown as one");
    assert_eq!(crashed.ownership, Ownership::Owned);
    stays_silent(&mut console);
    let left = scene.lab.site(SOURCE).guest(&guest.name).unwrap();
    assert_ne!(left.expect("known").state, GuestState::Running);
    boots(&scene, &guest, &mut console, TARGET);
}

#[test]
fn fault_07_frozen_process_killed_at_its_source_costs_its_target_nothing() {
    let scene = Scene::new(SLOW);
    let guest = Guest::new("victim", 32);
    let mut console = scene.guest(&guest);
    scene.begin(&guest, MigrationMode::Post).unwrap();
    scene.reaches(&guest, Phase::Serving).unwrap();
    assert_eq!(scene.lab.kill_guest(SOURCE, &guest.name), 1);
    // The memory that was left there is fetched to the last page.
    scene.arrives(&guest, &mut console).unwrap();
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

/// Signals a guest's process where it runs.
fn signal(scene: &Scene, guest: &Guest, signal: Signal) {
    let processes = scene.lab.guest_processes(SOURCE, &guest.name);
    assert_eq!(processes.len(), 1);
    kill_process(processes[0], signal).unwrap();
}

/// Restarts a migrator whose guest's process answers nobody, and waits until it says so.
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
fn fault_44_a_guest_whose_process_answers_nobody_is_stopped_with_its_process() {
    let mut scene = Scene::new(SLOW);
    let guest = Guest::new("busy", 16);
    let _console = scene.guest(&guest);
    restart_beside_a_busy_process(&mut scene, &guest);
    scene.lab.site(SOURCE).stop_guest(&guest.name).unwrap();
    let left = scene.lab.guest_processes(SOURCE, &guest.name);
    assert!(left.is_empty(), "{left:?} runs on and nobody knows it");
}

/// Overwrites a guest's memory behind its back, so that it finds it wrong and crashes.
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
