//! The hidden command that runs a guest, driven as a migrator drives it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use towpath_migrator::guest::{GuestCommand, GuestProcess};
use towpath_protocol::guest_api::{GuestConfig, GuestKind, Workload};
use towpath_protocol::identity::{Epoch, GuestId};

use crate::support::{DEADLINE, Ran, run, towpath, word};

#[test]
fn the_command_is_a_guest_process_for_the_migrator() {
    let folder = tempfile::tempdir().unwrap();
    let command = GuestCommand {
        program: PathBuf::from(env!("CARGO_BIN_EXE_towpath")),
        arguments: vec!["guest-process".into()],
    };
    let config = GuestConfig {
        id: GuestId(1),
        name: "test".parse().unwrap(),
        kind: GuestKind::Process,
        memory_bytes: 8 << 20,
        vcpu_count: 1,
        workload: Workload {
            dirty_pages_per_second: 100,
            working_set_bytes: 1 << 20,
            incompressible_percent: 0,
            key: 7,
            heartbeat_interval_us: 2000,
        },
    };
    let mut guest = GuestProcess::spawn(&command, &folder.path().join("guest"), &config).unwrap();
    guest.run(Epoch(1)).unwrap();
    let deadline = Instant::now() + DEADLINE;
    while guest.describe().unwrap().heartbeat_sequence < 5 {
        assert!(Instant::now() < deadline, "the guest does not run");
        std::thread::sleep(Duration::from_millis(2));
    }
    let console = fs::read_to_string(guest.console_path()).unwrap();
    assert!(console.contains(" HB 1 1\n"), "{console}");
    guest.quit().unwrap();
}

/// A migrator with a guest program that reports given capabilities of the host.
struct Migrator {
    folder: tempfile::TempDir,
    child: Child,
}

impl Migrator {
    fn start(said: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("guest");
        let towpath_program = env!("CARGO_BIN_EXE_towpath");
        let script = format!(
            "#!/bin/sh\n[ \"$1\" = --probe ] && {{ echo '{said}'; exit; }}\n\
             exec {towpath_program} guest-process \"$@\"\n"
        );
        write(&program, &script, 0o700);
        let shown = folder.path().display();
        let config = folder.path().join("migrator.toml");
        let text = format!(
            "trust_domain = \"d\"\nsite = \"edge\"\nhost = \"box\"\nstate_dir = \"{shown}/state\"\n\
             run_dir = \"{shown}/run\"\nguest_command = [\"{shown}/guest\"]\n"
        );
        write(&config, &text, 0o600);
        let path = folder.path().join("notify");
        let notify = UnixDatagram::bind(&path).unwrap();
        notify.set_read_timeout(Some(DEADLINE)).unwrap();
        let child = towpath(&["migrator", "run", "--config", word(&config)])
            .env("NOTIFY_SOCKET", &path)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut heard = [0; 512];
        while notify.recv(&mut heard).unwrap() < 7 || !heard.starts_with(b"READY=1") {}
        Self { folder, child }
    }

    fn run(&self, words: &[&str]) -> Ran {
        let socket = self.folder.path().join("run/migrator.sock");
        run(&[words, &["--socket", word(&socket)]].concat())
    }
}

impl Drop for Migrator {
    fn drop(&mut self) {
        self.run(&["guest", "stop", "till"]);
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn write(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn l06_a_hangup_ends_no_migrator() {
    let migrator = Migrator::start("kvm fault E_KVM there is none");
    let id = Pid::from_child(&migrator.child);
    for _ in 0..2 {
        kill_process(id, Signal::HUP).unwrap();
        // An answer after the signal shows that the migrator survived it.
        let status = migrator.run(&["guest", "ls"]);
        assert_eq!(status.status, 0, "{status:?}");
    }
}

#[test]
fn a_kvm_that_makes_no_machine_is_said_and_not_taken() {
    let migrator = Migrator::start("kvm fault E_KVM create a machine: it opens, and that is all");
    let refused = migrator.run(&["guest", "start", "till", "--kind", "kvm"]);
    refused.failed(1, "E_KVM");
    assert!(refused.stderr.contains("it opens, and that is all"));
    let small = ["guest", "start", "till", "--memory", "16MiB"];
    let ran = migrator.run(&small);
    assert_eq!(ran.status, 0, "{ran:?}");
    let shown = migrator.run(&["guest", "show", "till", "-o", "json"]);
    assert_eq!(shown.document("guest")["kind"], "process");
    let status = migrator.run(&["status", "-o", "json", "--tunnel-socket", "/none"]);
    assert!(status.stdout.contains("it opens, and that is all"));
}

#[test]
fn a_file_that_the_migrator_inherited_does_not_reach_its_guests() {
    let file = tempfile::NamedTempFile::new().unwrap();
    // Without the flag every program started from here has the file open, as from a careless shell.
    rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
    let migrator = Migrator::start("process ready");
    let ran = migrator.run(&["guest", "start", "till", "--memory", "16MiB"]);
    assert_eq!(ran.status, 0, "{ran:?}");
    let has_it = |process: &str| {
        fs::read_dir(format!("/proc/{process}/fd"))
            .unwrap()
            .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
            .any(|open| open == file.path())
    };
    assert!(has_it(&migrator.child.id().to_string()), "it is inherited");
    let id = migrator.folder.path().join("state/guests/till/guest.pid");
    let id = fs::read_to_string(id).unwrap();
    assert!(!has_it(id.trim()), "the guest has it too");
}

#[test]
fn a_guest_process_that_says_nothing_of_the_host_is_no_hindrance() {
    let migrator = Migrator::start("no such option");
    let ran = migrator.run(&[
        "guest",
        "start",
        "till",
        "--kind",
        "process",
        "--memory=16MiB",
    ]);
    assert_eq!(ran.status, 0, "{ran:?}");
}

#[test]
fn a_guest_that_crashed_is_shown_as_running_by_the_command_that_boots_it() {
    let migrator = Migrator::start("kvm fault E_KVM there is none");
    let start = ["guest", "start", "till", "-o", "json"];
    let first = migrator.run(&[&start[..], &["--memory=16MiB"]].concat());
    let process = |guest: &Value| guest["process_id"].as_i64();
    let first = process(&first.document("guest")).unwrap();
    let id = Pid::from_raw(i32::try_from(first).unwrap()).unwrap();
    kill_process(id, Signal::KILL).unwrap();
    let show = || {
        migrator
            .run(&["guest", "show", "till", "-o", "json"])
            .document("guest")
    };
    let deadline = Instant::now() + DEADLINE;
    while show()["state"] != "crashed" {
        assert!(Instant::now() < deadline, "{:?}", show());
    }
    // The last lines of its console are shown.
    let shown = migrator.run(&["guest", "show", "till"]).stdout;
    let (fields, last) = shown.split_once("\nlast on its console:\n").unwrap();
    assert!(fields.contains("console.log"), "{shown}");
    assert!(
        last.lines().count() <= 8 && last.contains(" HB "),
        "{shown}"
    );
    let booted = migrator.run(&start).document("guest");
    assert_eq!(
        (&booted["state"], &booted["error"]),
        (&"running".into(), &Value::Null)
    );
    assert!(process(&booted).is_some_and(|id| id != first), "{booted}");
}

#[test]
fn the_command_says_what_the_host_offers() {
    let ran = run(&["guest-process", "--probe"]);
    assert_eq!(ran.status, 0, "{ran:?}");
    let names: Vec<&str> = ran
        .stdout
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert_eq!(names, ["kvm", "missing-pages", "write-tracking"]);
}
