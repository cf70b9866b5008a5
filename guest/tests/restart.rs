//! Kills the client that drives a guest, in every state. The next client finds the guest and
//! continues.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "all of it is test code"
)]

mod harness;

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use harness::{EPOCH, Guest, assert_unbroken, command, config, copy_memory, touched};
use towpath_migrator::guest::GuestProcess;
use towpath_protocol::guest_api::{GuestKind, GuestState};
use towpath_protocol::space::BlockSet;

const ENV_FOLDER: &str = "TOWPATH_TEST_FOLDER";
const ENV_STATE: &str = "TOWPATH_TEST_STATE";
const ENV_KIND: &str = "TOWPATH_TEST_KIND";

for_both_kinds! {
    kill_9_while_created;
    kill_9_while_running;
    kill_9_while_tracking;
    kill_9_while_paused;
    kill_9_while_verifying;
    kill_9_while_state_is_half_read;
    kill_9_while_state_is_half_written;
    kill_9_while_a_page_is_waited_for;
    a_new_connection_replaces_the_old;
}

/// Not a test of its own: [`Driver`] runs it as a separate process, to be killed.
#[test]
fn driver_to_be_killed() {
    let Ok(folder) = std::env::var(ENV_FOLDER) else {
        return;
    };
    let kind = match std::env::var(ENV_KIND).unwrap().as_str() {
        "kvm" => GuestKind::Kvm,
        _ => GuestKind::Process,
    };
    let state = std::env::var(ENV_STATE).unwrap();
    let _held = drive(&PathBuf::from(folder), kind, &state);
    println!("\nat {state}");
    // Blocks until the process is killed: the other side keeps its standard input open.
    let _ = std::io::stdin().read(&mut [0]);
}

/// Brings a guest into a state and keeps everything that belongs to it.
fn drive(folder: &Path, kind: GuestKind, state: &str) -> Vec<GuestProcess> {
    let mut guest = GuestProcess::spawn(&command(), &folder.join("source"), &config(kind)).unwrap();
    if state == "created" {
        return vec![guest];
    }
    guest.run(EPOCH).unwrap();
    if state == "running" {
        return vec![guest];
    }
    if state == "verifying" {
        // Verify in a loop, so that the guest is most likely paused for it when this process is
        // killed.
        std::thread::spawn(move || while guest.verify().is_ok() {});
        return Vec::new();
    }
    guest.start_tracking().unwrap();
    let block_count = guest.config().block_count();
    guest.harvest(&mut BlockSet::empty(block_count)).unwrap();
    if state == "tracking" {
        return vec![guest];
    }
    guest.pause().unwrap();
    if state == "paused" {
        return vec![guest];
    }
    let saved = guest.save_state().unwrap();
    if state == "half-read" {
        return vec![guest];
    }
    let folder = folder.join("target");
    let mut target = GuestProcess::spawn_incoming(&command(), &folder, &config(kind)).unwrap();
    if state == "half-written" {
        let _ = target.load_state(&saved[..saved.len() / 2]);
        return vec![guest, target];
    }
    target.load_state(&saved).unwrap();
    let missing = target.arm_missing().unwrap();
    target.run(EPOCH.next()).unwrap();
    // Only the process about to be killed learns of the wait for this page.
    assert!(missing.next_fault(harness::WAIT).unwrap().is_some());
    vec![guest, target]
}

/// A process that drives a guest into a state and is killed there.
struct Driver {
    child: Child,
    root: tempfile::TempDir,
}

impl Driver {
    fn kill_at(state: &str, kind: GuestKind) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "driver_to_be_killed", "--nocapture"])
            .env(ENV_FOLDER, root.path())
            .env(ENV_STATE, state)
            .env(ENV_KIND, kind.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut driver = Self { child, root };
        let output = BufReader::new(driver.child.stdout.take().unwrap());
        let arrived = output
            .lines()
            .map_while(Result::ok)
            .any(|line| line == format!("at {state}"));
        if !arrived {
            // Guests outlive the client that drives them, so they would outlive this test.
            for name in ["source", "target"] {
                if let Ok(mut guest) = GuestProcess::adopt(&driver.root.path().join(name)) {
                    let _ = guest.quit();
                }
            }
            panic!("the driver does not get to {state}");
        }
        driver.child.kill().unwrap();
        driver.child.wait().unwrap();
        driver.root
    }
}

fn kill_9_while_created(kind: GuestKind) {
    let root = Driver::kill_at("created", kind);
    let mut guest = Guest::adopt(&root.path().join("source"));
    assert_eq!(guest.state(), GuestState::Created);
    guest.process.run(EPOCH).unwrap();
    guest.wait_for_heartbeats(10);
    guest.pause_and_verify();
}

fn kill_9_while_running(kind: GuestKind) {
    let root = Driver::kill_at("running", kind);
    let mut guest = Guest::adopt(&root.path().join("source"));
    let description = guest.process.describe().unwrap();
    assert_eq!(description.state, GuestState::Running);
    assert_eq!(description.epoch, Some(EPOCH));
    let since = guest.process.run(EPOCH).unwrap();
    assert_eq!(guest.process.run(EPOCH), Ok(since));
    guest.wait_for_heartbeats(10);
    guest.pause_and_verify();
    assert_unbroken(&guest.heartbeats());
}

fn kill_9_while_tracking(kind: GuestKind) {
    let root = Driver::kill_at("tracking", kind);
    let mut guest = Guest::adopt(&root.path().join("source"));
    let block_count = guest.process.config().block_count();
    let mut dirty = BlockSet::empty(block_count);
    // What the killed client had harvested is unknown. Tracking must be started again, which makes
    // every block dirty.
    assert!(guest.process.harvest(&mut dirty).is_err());
    assert!(!guest.process.describe().unwrap().is_tracking);
    guest.process.start_tracking().unwrap();
    let memory = guest.process.memory().unwrap();
    let mut copy = harness::image(&memory);
    guest.wait_for_heartbeats(10);
    guest.process.pause().unwrap();
    guest.process.harvest(&mut dirty).unwrap();
    harness::copy_into_image(&memory, &dirty, &mut copy);
    assert!(harness::differing(&copy, &harness::image(&memory)).is_empty());
}

fn kill_9_while_paused(kind: GuestKind) {
    let root = Driver::kill_at("paused", kind);
    let mut guest = Guest::adopt(&root.path().join("source"));
    assert_eq!(guest.state(), GuestState::Paused, "nobody let it go on");
    guest.process.resume().unwrap();
    guest.wait_for_heartbeats(10);
    guest.pause_and_verify();
    assert_unbroken(&guest.heartbeats());
}

fn kill_9_while_verifying(kind: GuestKind) {
    let root = Driver::kill_at("verifying", kind);
    let folder = root.path().join("source");
    let beats = || harness::heartbeats(&folder.join("console.log")).len();
    let before = beats();
    // The guest continues although nobody drives it.
    let began = std::time::Instant::now();
    while beats() < before + 10 {
        assert!(began.elapsed() < harness::WAIT, "it stands");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let mut guest = Guest::adopt(&folder);
    guest.pause_and_verify();
    assert_unbroken(&guest.heartbeats());
}

fn kill_9_while_state_is_half_read(kind: GuestKind) {
    let root = Driver::kill_at("half-read", kind);
    let mut guest = Guest::adopt(&root.path().join("source"));
    let state = guest.process.save_state().unwrap();
    let mut target = Guest::spawn_incoming(guest.process.config());
    let memory = guest.process.memory().unwrap();
    copy_memory(
        &memory,
        &target.process.memory().unwrap(),
        &touched(&memory),
    );
    target.process.load_state(&state).unwrap();
    target.process.run(EPOCH.next()).unwrap();
    target.wait_for_heartbeats(10);
    target.pause_and_verify();
}

fn kill_9_while_state_is_half_written(kind: GuestKind) {
    let root = Driver::kill_at("half-written", kind);
    let mut source = Guest::adopt(&root.path().join("source"));
    let mut target = Guest::adopt(&root.path().join("target"));
    assert_eq!(target.state(), GuestState::Incoming);
    assert!(target.process.run(EPOCH.next()).is_err());
    let memory = source.process.memory().unwrap();
    copy_memory(
        &memory,
        &target.process.memory().unwrap(),
        &touched(&memory),
    );
    target
        .process
        .load_state(&source.process.save_state().unwrap())
        .unwrap();
    target.process.run(EPOCH.next()).unwrap();
    target.wait_for_heartbeats(10);
    target.pause_and_verify();
}

fn kill_9_while_a_page_is_waited_for(kind: GuestKind) {
    let root = Driver::kill_at("waiting", kind);
    let mut source = Guest::adopt(&root.path().join("source"));
    let mut target = Guest::adopt(&root.path().join("target"));
    let description = target.process.describe().unwrap();
    assert!(description.is_armed);
    assert_eq!(description.state, GuestState::Running);
    assert_eq!(source.state(), GuestState::Paused);
    let missing = target.process.arm_missing().unwrap();
    missing.wake_all().unwrap();
    let memory = source.process.memory().unwrap();
    let mut bytes = vec![0; 4096];
    let mut left = touched(&memory);
    while let Some(run) = left.run_from(0, 1) {
        let asked = missing.next_fault(std::time::Duration::ZERO).unwrap();
        let start = asked.unwrap_or(run.start);
        let run = towpath_protocol::space::BlockRun { start, count: 1 };
        memory.read_runs(&[run], &mut bytes).unwrap();
        missing.install(run, &bytes).unwrap();
        left.remove(start);
    }
    target.process.disarm_missing().unwrap();
    target.wait_for_heartbeats(10);
    target.pause_and_verify();
    let mut heartbeats = source.heartbeats();
    heartbeats.extend(target.heartbeats());
    assert_unbroken(&heartbeats);
}

fn a_new_connection_replaces_the_old(kind: GuestKind) {
    let mut guest = Guest::running(&config(kind));
    let mut newcomer = GuestProcess::adopt(&guest.folder).unwrap();
    assert!(guest.process.describe().is_err());
    assert!(guest.process.is_alive());
    newcomer.pause().unwrap();
    newcomer.resume().unwrap();
    guest.process = newcomer;
    guest.wait_for_heartbeats(5);
    guest.pause_and_verify();
}
