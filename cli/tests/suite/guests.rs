//! The hidden command that is a guest's process, driven as a migrator drives it.

use std::path::PathBuf;
use std::time::Duration;

use towpath_migrator::guest::{GuestCommand, GuestProcess};
use towpath_protocol::guest_api::{GuestConfig, GuestKind, Workload};
use towpath_protocol::identity::{Epoch, GuestId};

use crate::support::DEADLINE;

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
    let deadline = std::time::Instant::now() + DEADLINE;
    while guest.describe().unwrap().heartbeat_sequence < 5 {
        assert!(
            std::time::Instant::now() < deadline,
            "the guest does not run"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    let console = std::fs::read_to_string(guest.console_path()).unwrap();
    assert!(console.contains(" HB 1 1\n"), "{console}");
    guest.quit().unwrap();
}
