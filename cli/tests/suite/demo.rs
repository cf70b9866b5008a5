//! The whole demo: real daemons, a real guest, an emulated link, and nothing left behind.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::{DEADLINE, Ran, run, towpath, word};

/// How long a demo over a fast link may take on a busy machine.
const DEMO_WAIT: Duration = Duration::from_secs(120);

/// A demo small enough for a test.
fn demo(keep: &Path, more: &[&str]) -> Command {
    demo_of("process", keep, more)
}

fn demo_of(guest: &str, keep: &Path, more: &[&str]) -> Command {
    let words = ["demo", "--guest", guest, "--memory=16MiB", "--rtt=4ms"];
    let mut command = towpath(&[&words, more].concat());
    command
        .args(["--keep", word(keep)])
        // A demo that is killed cannot remove its folder of sockets. It is removed with the test's
        // folder.
        .env("TMPDIR", keep.parent().unwrap())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// The command lines that name a path inside `folder`. The demo's own names only the folder.
fn processes_of(folder: &Path) -> Vec<String> {
    let folder = format!("{}/", word(folder));
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|process| fs::read(process.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(&folder))
        .collect()
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn end_of(mut child: Child) -> Ran {
    let deadline = Instant::now() + DEMO_WAIT;
    while child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "the demo did not end");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ran::of(&child.wait_with_output().unwrap())
}

#[test]
fn the_demo_moves_a_guest_there_and_back_and_verifies_every_page() {
    moves_there_and_back("process");
}

#[test]
fn the_demo_moves_a_virtual_machine_there_and_back() {
    let probed = run(&["guest-process", "--probe"]);
    let of_kvm = probed.stdout.lines().find(|line| line.starts_with("kvm "));
    let of_kvm = of_kvm.expect("the probe tells of kvm");
    if of_kvm != "kvm ready" {
        println!("skipped: {of_kvm}");
        return;
    }
    moves_there_and_back("kvm");
}

fn moves_there_and_back(guest: &str) {
    let folder = tempfile::tempdir().unwrap();
    let keep = folder.path().join("kept");
    let words = ["-o", "json", "--rate=1Gbit"];
    let ran = end_of(demo_of(guest, &keep, &words).spawn().unwrap());
    assert_eq!(ran.status, 0, "{ran:?}");
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["schema"], "towpath.v1.demo");
    assert_eq!(report["verified"], true);
    assert_eq!(report["guest"]["kind"], guest);
    let moves = report["moves"].as_array().unwrap();
    let ends: Vec<_> = moves.iter().map(|one| (&one["from"], &one["to"])).collect();
    assert_eq!(ends.len(), 2);
    assert_eq!((ends[0].0, ends[0].1), (ends[1].1, ends[1].0));
    for one in moves {
        assert_eq!(one["verified"], true, "{one}");
        assert!(one["verified_pages"].as_u64().unwrap() > 0, "{one}");
        assert!(one["pause_heartbeat_ms"].as_f64().unwrap() > 0.0, "{one}");
        assert!(one["wire_bytes"].as_u64().unwrap() > 0, "{one}");
        assert!(one["switch_reason"].is_string(), "{one}");
    }
    assert!(keep.join("edge/tunnel.toml").is_file());
    assert_eq!(processes_of(&keep), Vec::<String>::new());
}

/// The id of the user `nobody` on every distribution.
const NOBODY: u32 = 65534;

#[test]
fn an_ordinary_user_needs_no_rights_for_the_demo() {
    if !rustix::process::geteuid().is_root() {
        println!(
            "skipped: only root can become an ordinary user; as one, all of these tests are its"
        );
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (keep, program) = (folder.path().join("kept"), folder.path().join("towpath"));
    fs::copy(env!("CARGO_BIN_EXE_towpath"), &program).unwrap();
    std::os::unix::fs::chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    // The guest changes too fast for pre-copy, so pages are fetched on demand as well.
    let words = [
        "--memory=32MiB",
        "--dirty-rate=200000",
        "--max-pause=20ms",
        "--rate=200Mbit",
        "--rtt=4ms",
        "--output=json",
    ];
    let mut command = Command::new(&program);
    command.arg("demo").args(words).arg("--keep").arg(&keep);
    command.env("TMPDIR", folder.path()).uid(NOBODY).gid(NOBODY);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let ran = end_of(command.spawn().unwrap());
    assert_eq!(ran.status, 0, "{ran:?}");
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["verified"], true, "{report}");
    // No kind of guest was asked for. If it is no virtual machine, stderr tells the reason before
    // the wait for the guest.
    match report["guest"]["kvm_missing_reason"].as_str() {
        Some(reason) => {
            let told = format!("no KVM here: {reason}; the guest is a process\n");
            assert!(ran.stderr.contains(&told), "{ran:?}");
        }
        None => println!("skipped: an ordinary user may use /dev/kvm here"),
    }
    let moves = report["moves"].as_array().unwrap();
    let fetched = |one: &Value| one["demand_fetches"].as_u64().unwrap() > 0;
    assert!(moves.iter().any(fetched), "{report}");
}

#[test]
fn a_demo_whose_link_loses_packets_and_is_cut_verifies_every_page() {
    let folder = tempfile::tempdir().unwrap();
    let keep = folder.path().join("kept");
    let words = [
        "-o",
        "json",
        "--rate=50Mbit",
        "--incompressible=100",
        "--loss=0.5",
        "--cut=1s",
    ];
    let ran = end_of(demo(&keep, &words).spawn().unwrap());
    assert_eq!(ran.status, 0, "{ran:?}");
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["verified"], true);
    assert_eq!(report["link"]["loss_percent"], 0.5);
    for one in report["moves"].as_array().unwrap() {
        assert_eq!(one["outage_ms"], 1000, "{one}");
        assert!(one["total_ms"].as_u64().unwrap() > 1000, "{one}");
    }
    // The demo receives what its daemons tell a service manager, so they log no warnings about one.
    for log in ["tunnel-edge.log", "migrator-region.log"] {
        let log = fs::read_to_string(keep.join(log)).unwrap();
        assert!(!log.contains("service manager"), "{log}");
    }
}

/// Starts a demo, waits until its guest runs, ends it by `signal`, and waits until no process is
/// left. Returns how it ended, and whether its folder of sockets is left.
fn end_early_by(signal: Signal) -> (Ran, bool) {
    let folder = tempfile::tempdir().unwrap();
    let keep = folder.path().join("kept");
    // A slow link, so that the demo still runs when it is ended. A process group of its own, so
    // that the signal of a terminal does not end its children.
    let mut command = demo(&keep, &["--rate=1Mbit"]);
    command.process_group(0);
    let child = command.spawn().unwrap();
    let has_guest = || {
        processes_of(&keep)
            .iter()
            .any(|line| line.contains("guest-process"))
    };
    wait_until("the demo starts no guest", has_guest);
    kill_process(Pid::from_child(&child), signal).unwrap();
    let ran = Ran::of(&child.wait_with_output().unwrap());
    wait_until("processes are left", || processes_of(&keep).is_empty());
    let mut entries = fs::read_dir(folder.path()).unwrap().flatten();
    let is_left = entries.any(|entry| entry.path() != keep);
    (ran, is_left)
}

#[test]
fn an_interrupted_demo_ends_all_it_started() {
    // SIGINT from a terminal, SIGTERM from `timeout` or a service manager, SIGHUP from a terminal
    // that is closed.
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let (ran, is_left) = end_early_by(signal);
        assert_eq!(ran.status, 130, "{ran:?}");
        assert!(!is_left, "the demo cleans up after itself");
        assert!(ran.stderr.contains("has ended"), "{ran:?}");
    }
}

#[test]
fn a_killed_demo_leaves_no_process_behind() {
    let (ran, _) = end_early_by(Signal::KILL);
    assert_eq!(ran.status, -1, "{ran:?}");
}
