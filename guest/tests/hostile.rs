//! Tests of hostile clients of a guest's socket: another user, noise, invalid requests.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "all of it is test code"
)]

mod harness;

use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use harness::{Guest, config};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketType, sockopt};
use towpath_protocol::fault::Code;
use towpath_protocol::guest_api::{
    GuestKind, PACKET_BYTES_MAX, Request, Response, VERSIONS, decode_response,
};
use towpath_protocol::version::VersionRange;

const ENV_FOLDER: &str = "TOWPATH_TEST_STRANGER_FOLDER";
const NOBODY: u32 = 65_534;

/// Not a test of its own: [`l01_another_user_is_refused`] runs it as another user.
#[test]
fn stranger_to_be_refused() {
    let Ok(folder) = std::env::var(ENV_FOLDER) else {
        return;
    };
    let connection = connect(&PathBuf::from(folder));
    println!("\nconnected");
    let answer = ask(&connection, &Request::Hello { versions: VERSIONS });
    println!("\nanswer: {}", answer.is_some());
}

#[test]
fn l01_another_user_is_refused() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can become another user");
        return;
    }
    let mut guest = Guest::running(&config(GuestKind::Process));
    // All folders and the socket are open to everyone; only the last check is left.
    let open = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    open(guest.folder.parent().unwrap(), 0o755);
    open(&guest.folder, 0o755);
    open(&guest.folder.join("guest.sock"), 0o666);
    // A copy, because other users may not be able to enter the build folder.
    let program = guest.folder.parent().unwrap().join("stranger");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let output = Command::new(&program)
        .args(["--exact", "stranger_to_be_refused", "--nocapture"])
        .env(ENV_FOLDER, &guest.folder)
        .current_dir("/")
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("\nconnected"), "{said}");
    assert!(said.contains("\nanswer: false"), "{said}");
    // The rightful client was not cut off, and the attempt was logged.
    guest.wait_for_heartbeats(3);
    let log = std::fs::read_to_string(guest.folder.join("guest.log")).unwrap();
    let line = log.lines().find(|line| line.contains("refused")).unwrap();
    assert!(line.contains(&format!("user={NOBODY}")), "{line}");
}

fn connect(folder: &Path) -> OwnedFd {
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    let address = SocketAddrUnix::new(folder.join("guest.sock")).unwrap();
    rustix::net::connect(&socket, &address).unwrap();
    let wait = Some(Duration::from_secs(30));
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, wait).unwrap();
    socket
}

fn ask(connection: &OwnedFd, request: &Request) -> Option<(u32, Response)> {
    let mut packet = Vec::new();
    request.encode(7, &mut packet);
    ask_bytes(connection, &packet)
}

/// The answer to a packet; `None` if the connection is closed instead.
fn ask_bytes(connection: &OwnedFd, packet: &[u8]) -> Option<(u32, Response)> {
    rustix::net::send(connection, packet, SendFlags::NOSIGNAL).ok()?;
    let mut answer = vec![0; PACKET_BYTES_MAX];
    let (_, length) = rustix::net::recv(connection, &mut answer[..], RecvFlags::empty()).ok()?;
    (length > 0).then(|| decode_response(&answer[..length]).unwrap())
}

fn code_of(answer: Option<(u32, Response)>) -> Option<Code> {
    match answer {
        Some((_, Response::Failed(reason))) => Code::parse(&reason.code),
        other => panic!("no fault: {other:?}"),
    }
}

fn guest() -> Guest {
    let mut guest = Guest::running(&config(GuestKind::Process));
    guest.wait_for_heartbeats(1);
    guest
}

#[test]
fn nothing_is_answered_before_a_hello_in_a_common_version() {
    let guest = guest();
    let connection = connect(&guest.folder);
    for request in [Request::Describe, Request::TakeMemory, Request::Quit] {
        assert_eq!(code_of(ask(&connection, &request)), Some(Code::State));
    }
    let versions = VersionRange { min: 900, max: 901 };
    let answer = ask(&connection, &Request::Hello { versions });
    assert_eq!(code_of(answer), Some(Code::Version));
    assert_eq!(
        code_of(ask(&connection, &Request::Describe)),
        Some(Code::State)
    );
    let answer = ask(&connection, &Request::Hello { versions: VERSIONS });
    assert!(matches!(answer, Some((7, Response::Welcome { .. }))));
    assert!(guest.process.is_alive());
}

#[test]
fn packets_that_do_not_parse_end_the_connection_and_never_the_guest() {
    let guest = guest();
    let mut cut = Vec::new();
    Request::Pause.encode(1, &mut cut);
    cut.pop();
    let mut flipped = Vec::new();
    Request::Quit.encode(1, &mut flipped);
    flipped[17] ^= 1;
    for (packet, code) in [
        (vec![0], Code::Truncated),
        (cut, Code::Truncated),
        (flipped, Code::Framing),
        (vec![0xff; 100], Code::Framing),
        (vec![0; PACKET_BYTES_MAX + 1], Code::TooLarge),
    ] {
        let connection = connect(&guest.folder);
        assert_eq!(code_of(ask_bytes(&connection, &packet)), Some(code));
        assert!(ask(&connection, &Request::Hello { versions: VERSIONS }).is_none());
    }
    assert!(guest.process.is_alive());
    let mut guest = Guest::adopt(&guest.folder);
    guest.wait_for_heartbeats(3);
}

#[test]
fn questions_outside_the_guest_are_refused() {
    let guest = guest();
    let connection = connect(&guest.folder);
    ask(&connection, &Request::Hello { versions: VERSIONS }).unwrap();
    ask(&connection, &Request::StartTracking).unwrap();
    let beyond = Request::Harvest {
        first_block: 8192,
        block_count: 64,
    };
    assert_eq!(code_of(ask(&connection, &beyond)), Some(Code::Range));
    let unsaved = Request::ReadState { offset: 0 };
    assert_eq!(code_of(ask(&connection, &unsaved)), Some(Code::Range));
    let running = Request::WriteState {
        offset: 0,
        bytes: vec![1],
    };
    assert_eq!(code_of(ask(&connection, &running)), Some(Code::State));
    assert_eq!(
        code_of(ask(&connection, &Request::LoadState)),
        Some(Code::State)
    );
    assert_eq!(
        code_of(ask(&connection, &Request::ArmMissing)),
        Some(Code::State)
    );
}

#[test]
fn state_written_with_gaps_is_refused() {
    let incoming = Guest::spawn_incoming(&config(GuestKind::Process));
    let connection = connect(&incoming.folder);
    ask(&connection, &Request::Hello { versions: VERSIONS }).unwrap();
    let write = |offset, length| {
        let bytes = vec![0; length];
        ask(&connection, &Request::WriteState { offset, bytes })
    };
    assert_eq!(code_of(write(10, 10)), Some(Code::Range));
    assert!(matches!(write(0, 10), Some((_, Response::Done))));
    assert_eq!(code_of(write(11, 10)), Some(Code::Range));
    assert_eq!(code_of(write(5, 10)), Some(Code::Range));
    assert!(matches!(write(10, 10), Some((_, Response::Done))));
    assert_eq!(
        code_of(ask(&connection, &Request::LoadState)),
        Some(Code::CpuState)
    );
}

#[test]
fn a_description_that_is_wrong_makes_no_guest() {
    use towpath_migrator::guest::GuestProcess;
    let root = tempfile::tempdir().unwrap();
    let mut wrong = config(GuestKind::Process);
    wrong.memory_bytes = 4096;
    let folder = root.path().join("guest");
    let fault = GuestProcess::spawn(&harness::command(), &folder, &wrong).unwrap_err();
    assert_eq!(fault.code, Code::Layout);
    assert!(fault.detail.contains("4096"), "{fault}");
    let mut command = harness::command();
    command.program = "/nonexistent/guest".into();
    let right = config(GuestKind::Process);
    let fault = GuestProcess::spawn(&command, &folder, &right).unwrap_err();
    assert_eq!(fault.code, Code::Io);
    // A program that is not a guest process.
    command.program = "/bin/true".into();
    let fault = GuestProcess::spawn(&command, &folder, &right).unwrap_err();
    assert_eq!(fault.code, Code::Guest);
}

/// Replaces a file with something else.
fn plant(kind: &str, at: &Path, outside: &Path) {
    use rustix::fs::{CWD, FileType, Mode};
    match kind {
        "symlink" => std::os::unix::fs::symlink(outside, at).unwrap(),
        "dangling symlink" => std::os::unix::fs::symlink("/nonexistent/x", at).unwrap(),
        "hard link" => std::fs::hard_link(outside, at).unwrap(),
        "folder" => std::fs::create_dir(at).unwrap(),
        "fifo" => rustix::fs::mknodat(CWD, at, FileType::Fifo, Mode::RWXU, 0).unwrap(),
        _ => unreachable!("no such kind"),
    }
}

#[test]
fn d02_what_is_planted_in_the_place_of_a_file_of_a_guests_process_is_never_used() {
    use towpath_migrator::guest::GuestProcess;
    let files = ["config.json", "console.log", "guest.log", "guest.pid"];
    for kind in ["symlink", "dangling symlink", "hard link", "folder", "fifo"] {
        for file in files {
            let root = tempfile::tempdir().unwrap();
            let outside = root.path().join("outside");
            std::fs::write(&outside, "precious").unwrap();
            let folder = root.path().join("guest");
            std::fs::create_dir(&folder).unwrap();
            let ours_alone = std::fs::Permissions::from_mode(0o700);
            std::fs::set_permissions(&folder, ours_alone).unwrap();
            plant(kind, &folder.join(file), &outside);
            let config = config(GuestKind::Process);
            let begun = std::time::Instant::now();
            let made = GuestProcess::spawn(&harness::command(), &folder, &config);
            let code = made
                .map(|mut process| process.quit())
                .map_err(|fault| fault.code);
            assert_eq!(code, Err(Code::Path), "{kind} in the place of {file}");
            assert!(
                begun.elapsed() < Duration::from_secs(10),
                "{kind}, {file}: it hung"
            );
            let text = std::fs::read_to_string(&outside).unwrap();
            assert_eq!(text, "precious", "{kind} in the place of {file}");
        }
    }
}

#[test]
fn d02_a_process_is_not_led_astray_behind_its_migrators_back() {
    for kind in ["symlink", "hard link", "fifo"] {
        let root = tempfile::tempdir().unwrap();
        let outside = root.path().join("outside");
        std::fs::write(&outside, "precious").unwrap();
        for file in ["config.json", "guest.pid"] {
            let folder = root.path().join(format!("guest of {file}"));
            std::fs::create_dir(&folder).unwrap();
            plant(kind, &folder.join(file), &outside);
            let output = Command::new(harness::command().program)
                .arg("--dir")
                .arg(&folder)
                .output()
                .unwrap();
            let said = String::from_utf8(output.stdout).unwrap();
            assert!(said.starts_with("fault E_PATH "), "{kind}, {file}: {said}");
            assert_eq!(std::fs::read_to_string(&outside).unwrap(), "precious");
            // The next kind of file has the same content to link to.
            std::fs::remove_dir_all(&folder).unwrap();
        }
    }
}
