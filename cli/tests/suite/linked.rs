//! Two linked tunnels, and helpers for tests of the operator's commands on them.

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{DEADLINE, Ran, run, screen, towpath, word};

/// Pause between two checks of a condition.
pub(crate) const LOOK_PAUSE: Duration = Duration::from_millis(10);

/// Ticks in which the kernel counts processor time.
pub(crate) const TICKS_PER_SECOND: f64 = 100.0;

/// The tunnel of one site.
pub(crate) struct Tunnel {
    pub(crate) run: PathBuf,
    pub(crate) child: Child,
}

impl Tunnel {
    pub(crate) fn start(folder: &Path, site: &str, more: &str) -> Self {
        let (authority, here) = (folder.join("authority"), folder.join(site));
        fs::create_dir(&here).unwrap();
        let [identity, run_dir] = ["identity", "run"].map(|name| here.join(name));
        let issued = run(&[
            "certs",
            "issue",
            "--authority",
            word(&authority),
            "--host=box",
            &format!("--site={site}"),
            "--out",
            word(&identity),
        ]);
        assert_eq!(issued.status, 0, "{issued:?}");
        let (files, sockets) = (identity.display(), run_dir.display());
        let text = format!(
            "site = \"{site}\"\nhost = \"box\"\nsocket = \"{sockets}/tunnel.sock\"\n{more}\n\
             [admin]\nsocket = \"{sockets}/admin.sock\"\n\
             [certificates]\ncert = \"{files}/cert.pem\"\nkey = \"{files}/key.pem\"\n\
             ca = \"{files}/ca.pem\"\n"
        );
        let config = here.join("tunnel.toml");
        fs::write(&config, text).unwrap();
        fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).unwrap();
        let path = here.join("notify");
        let notify = UnixDatagram::bind(&path).unwrap();
        notify.set_read_timeout(Some(DEADLINE)).unwrap();
        let child = towpath(&["tunnel", "run", "--config", word(&config)])
            .env("NOTIFY_SOCKET", &path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let tunnel = Self {
            run: run_dir,
            child,
        };
        let mut heard = [0; 512];
        loop {
            let count = notify.recv(&mut heard).unwrap();
            if heard[..count].starts_with(b"READY=1") {
                return tunnel;
            }
        }
    }

    /// An operator's command at this site.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = towpath(words);
        command
            .env("TOWPATH_TUNNEL_SOCKET", self.run.join("admin.sock"))
            .env("TOWPATH_STREAM_SOCKET", self.run.join("tunnel.sock"))
            .env("TOWPATH_SOCKET", self.run.join("none.sock"));
        command
    }

    /// Runs an operator's command at this site.
    pub(crate) fn run(&self, words: &[&str]) -> Ran {
        Ran::of(&self.command(words).output().unwrap())
    }

    /// What a command shows on a terminal of this width; `None` if there can be no terminal.
    pub(crate) fn screen(&self, words: &[&str], columns: usize) -> Option<String> {
        screen(&self.command(words), columns)
    }

    /// Runs a command that must succeed and print a table: no JSON, and nothing on stderr.
    #[track_caller]
    pub(crate) fn table(&self, words: &[&str]) -> String {
        let ran = self.run(words);
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""), "{ran:?}");
        assert!(!ran.stdout.starts_with('{'), "{ran:?}");
        ran.stdout
    }

    /// Runs a command that must succeed and print a document of this kind.
    #[track_caller]
    pub(crate) fn document(&self, words: &[&str], kind: &str) -> Value {
        self.run(&[words, &["-o", "json"]].concat()).document(kind)
    }

    /// Checks that a command fails with this status, code and cause, as text and as JSON.
    #[track_caller]
    pub(crate) fn refuses(&self, words: &[&str], (status, code): (i32, &str), cause: &str) {
        let ran = self.run(words);
        ran.failed(status, code);
        assert!(ran.stderr.contains(cause), "{ran:?}");
        assert_eq!(ran.stdout, "", "{ran:?}");
        let ran = self.run(&[words, &["-o", "json"]].concat());
        assert_eq!(
            (ran.status, ran.stdout.as_str()),
            (status, ""),
            "{words:?} {ran:?}"
        );
        let problem: Value = serde_json::from_str(&ran.stderr).unwrap_or_default();
        assert_eq!(
            problem["schema"], "towpath.v1.error",
            "{words:?}: {}",
            ran.stderr
        );
        assert_eq!(problem["code"], code, "{problem}");
        let said = problem["cause"].as_str().unwrap();
        assert!(said.contains(cause), "{problem}");
        for field in ["message", "remedy"] {
            let text = problem[field].as_str();
            assert!(text.is_some_and(|text| !text.is_empty()), "{problem}");
        }
    }

    /// Processor time of the tunnel's process, in seconds.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let (_, behind_name) = stat.rsplit_once(") ").unwrap();
        let ticks = behind_name.split(' ').skip(11).take(2);
        ticks
            .map(|ticks| ticks.parse::<f64>().unwrap())
            .sum::<f64>()
            / TICKS_PER_SECOND
    }

    /// The link to the other site in the document of `towpath status`.
    pub(crate) fn link(&self) -> Value {
        self.document(&["status"], "overview")["tunnel"]["status"]["links"][0].clone()
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Two linked tunnels: the edge dials the region, which offers an echo and a bench service.
pub(crate) struct Pair {
    pub(crate) edge: Tunnel,
    pub(crate) region: Tunnel,
    pub(crate) folder: TempDir,
}

impl Pair {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let authority = path.join("authority");
        let made = run(&[
            "certs",
            "init",
            "--trust-domain=shop.example",
            "--dir",
            word(&authority),
        ]);
        assert_eq!(made.status, 0, "{made:?}");
        echo(&path.join("echo.sock"));
        let free = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let services = format!(
            "listen = \"{address}\"\n[[peers]]\nsite = \"edge\"\n\
             [[services]]\nname = \"till\"\ntarget = \"unix:{}\"\nallow = [\"edge\"]\n\
             [[services]]\nname = \"bench\"\nsocket = \"builtin:bench\"\nallow = [\"edge\"]",
            path.join("echo.sock").display()
        );
        let region = Tunnel::start(path, "region", &services);
        let peer = format!("[[peers]]\nsite = \"region\"\naddress = \"{address}\"");
        let edge = Tunnel::start(path, "edge", &peer);
        let pair = Self {
            edge,
            region,
            folder,
        };
        for tunnel in [&pair.edge, &pair.region] {
            wait_until("there is no link", || tunnel.link()["state"] == "healthy");
        }
        pair
    }
}

#[track_caller]
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(LOOK_PAUSE);
    }
}

/// Serves an echo on a socket.
pub(crate) fn echo(socket: &Path) {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut read) = stream else { return };
            let mut write = read.try_clone().unwrap();
            std::thread::spawn(move || std::io::copy(&mut read, &mut write));
        }
    });
}

/// The value of a field in a table of fields.
#[track_caller]
pub(crate) fn field<'a>(table: &'a str, title: &str) -> &'a str {
    let spaced = format!("{title}  ");
    let mut lines = table.lines();
    let found = lines.find_map(|line| line.strip_prefix(&spaced));
    found
        .unwrap_or_else(|| panic!("no {title} in {table}"))
        .trim()
}

/// The words of a command with more words appended.
pub(crate) fn line<'a>(begin: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [begin, more].concat()
}

pub(crate) fn now_unix() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    since.as_secs()
}
