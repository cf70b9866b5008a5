//! A tunnel under a service manager: sockets passed, notifications sent, a watchdog kept alive.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::daemons::{end_of, tunnel_config};
use crate::support::{DEADLINE, run, word};

/// The timeout of the watchdog. The daemon notifies it four times as often.
const WATCHDOG: Duration = Duration::from_millis(800);

/// Longest notification, in bytes.
const WORD_BYTES: usize = 1024;

/// A shell script that passes its standard input and output as sockets and becomes the daemon.
const PASS: &str = "exec 3<&0 4<&1 </dev/null >/dev/null
LISTEN_PID=$$ LISTEN_FDS=2 exec \"$@\"";

struct Manager {
    notify: UnixDatagram,
    sockets: [UnixListener; 2],
    folder: tempfile::TempDir,
}

impl Manager {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let notify = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        notify.set_read_timeout(Some(DEADLINE)).unwrap();
        let run_dir = folder.path().join("run");
        fs::create_dir(&run_dir).unwrap();
        fs::set_permissions(&run_dir, fs::Permissions::from_mode(0o755)).unwrap();
        let sockets = ["t.sock", "admin.sock"].map(|name| {
            let path = run_dir.join(name);
            let listener = UnixListener::bind(&path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o660)).unwrap();
            listener
        });
        Self {
            notify,
            sockets,
            folder,
        }
    }

    fn start(&self, config: &Path) -> Child {
        let pass = |index: usize| OwnedFd::from(self.sockets[index].try_clone().unwrap());
        Command::new("sh")
            .args(["-c", PASS, "sh", env!("CARGO_BIN_EXE_towpath")])
            .args(["tunnel", "run", "--config", word(config)])
            .env("NOTIFY_SOCKET", self.folder.path().join("notify"))
            .env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string())
            .stdin(pass(0))
            .stdout(pass(1))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn hear(&self) -> std::io::Result<String> {
        let mut heard = [0; WORD_BYTES];
        let count = self.notify.recv(&mut heard)?;
        Ok(String::from_utf8(heard[..count].to_vec()).unwrap())
    }

    /// Waits for a notification that begins with `start`.
    #[track_caller]
    fn hear_until(&self, start: &str) -> String {
        loop {
            let word = self
                .hear()
                .unwrap_or_else(|error| panic!("{start}: {error}"));
            if word.starts_with(start) {
                return word;
            }
        }
    }

    /// Whether no notification comes for the whole timeout of the watchdog.
    fn is_silent(&self) -> bool {
        self.notify.set_nonblocking(true).unwrap();
        while self.hear().is_ok() {}
        self.notify.set_nonblocking(false).unwrap();
        self.notify.set_read_timeout(Some(WATCHDOG)).unwrap();
        let heard = self.hear();
        self.notify.set_read_timeout(Some(DEADLINE)).unwrap();
        heard.is_err()
    }
}

#[test]
fn a_tunnel_serves_at_passed_sockets_and_tells_how_it_is() {
    let manager = Manager::new();
    let config = tunnel_config(manager.folder.path());
    let daemon = manager.start(&config);
    let id = Pid::from_child(&daemon);
    let first = [manager.hear().unwrap(), manager.hear().unwrap()];
    assert!(first.contains(&"READY=1\n".to_owned()), "{first:?}");
    assert!(
        first.contains(&"STATUS=0 of 0 links up\n".to_owned()),
        "{first:?}"
    );
    let admin = manager.folder.path().join("run/admin.sock");
    let status = [
        "status",
        "-o",
        "json",
        "--socket",
        "/none",
        "--tunnel-socket",
    ];
    let document = run(&[&status[..], &[word(&admin)]].concat()).document("overview");
    assert_eq!(document["tunnel"]["status"]["site"], "edge");

    manager.hear_until("WATCHDOG=1");
    kill_process(id, Signal::HUP).unwrap();
    let said = manager.hear_until("RELOADING=1\n");
    assert!(said.contains("MONOTONIC_USEC="), "{said}");
    manager.hear_until("READY=1");

    kill_process(id, Signal::STOP).unwrap();
    assert!(
        manager.is_silent(),
        "a stopped daemon gives no sign of life"
    );
    kill_process(id, Signal::CONT).unwrap();
    manager.hear_until("WATCHDOG=1");

    kill_process(id, Signal::TERM).unwrap();
    manager.hear_until("STOPPING=1");
    let ran = end_of(daemon);
    assert_eq!(ran.status, 0, "{ran:?}");
    assert!(admin.exists(), "the manager's socket is the manager's");
}

#[test]
fn a_passed_socket_that_everybody_may_use_is_refused() {
    let manager = Manager::new();
    let config = tunnel_config(manager.folder.path());
    let admin = manager.folder.path().join("run/admin.sock");
    fs::set_permissions(&admin, fs::Permissions::from_mode(0o666)).unwrap();
    let ran = end_of(manager.start(&config));
    assert_eq!(ran.status, 1, "{ran:?}");
    assert!(
        ran.stderr.contains("E_PATH") && ran.stderr.contains("SocketMode=0660"),
        "{ran:?}"
    );
}
