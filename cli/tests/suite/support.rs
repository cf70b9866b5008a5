//! A simulated host: guests and moves that exist only as records, served on a socket for the
//! commands.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use towpath_daemon::{http, shutdown, socket::Socket};
use towpath_migrator::api::{
    ErrorView, GuestRequest, GuestState, GuestView, Host, HostView, LinkState, MigrationRequest,
    MigrationView, Ownership, Phase, Role, VerifyView, router,
};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::{Epoch, GuestId, MigrationId, Name};

/// How long anything in these tests may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// The state of the host, and how it behaves.
#[derive(Default)]
pub(crate) struct Notes {
    pub(crate) guests: Vec<GuestView>,
    pub(crate) migrations: Vec<MigrationView>,
    /// The views of a move, one for each time it is looked at. The last one stays.
    pub(crate) course: Vec<MigrationView>,
    pub(crate) looks: usize,
    pub(crate) cancels: usize,
    pub(crate) refusal: Option<Fault>,
}

#[derive(Default)]
pub(crate) struct Notebook {
    pub(crate) notes: Mutex<Notes>,
    changed: Condvar,
}

impl Notebook {
    /// Waits until `is_so` holds for the notes.
    pub(crate) fn wait_until(&self, is_so: impl Fn(&Notes) -> bool) {
        let notes = self.notes.lock().unwrap();
        let (_notes, timeout) = self
            .changed
            .wait_timeout_while(notes, DEADLINE, |notes| !is_so(notes))
            .unwrap();
        assert!(!timeout.timed_out(), "the host was not asked in time");
    }
}

fn not_found(what: &dyn std::fmt::Display) -> Fault {
    Fault::new(Code::NotFound, format!("{what} is not here"))
}

/// A running guest.
pub(crate) fn guest(name: &str) -> GuestView {
    GuestView {
        name: name.parse().unwrap(),
        id: GuestId(7),
        kind: towpath_migrator::api::GuestKind::Process,
        state: GuestState::Running,
        ownership: Ownership::Owned,
        epoch: Epoch(1),
        memory_bytes: 256 << 20,
        dirty_pages_per_second: 500,
        working_set_bytes: 256 << 20,
        incompressible_percent: 25,
        heartbeat_interval_us: 2000,
        heartbeat_sequence: Some(42),
        process_id: Some(4711),
        moved_to: None,
        migration: None,
        console: None,
        error: None,
    }
}

/// A move in a phase.
pub(crate) fn migration(phase: Phase) -> MigrationView {
    let ids = (MigrationId(5), "a".parse().unwrap());
    let sites = ("edge".parse().unwrap(), "region".parse().unwrap());
    MigrationView {
        mode: Some(towpath_migrator::api::MigrationMode::Auto),
        max_pause_ms: Some(200),
        link: LinkState::Up,
        attempts: Some(1),
        round: Some(2),
        rounds: Some(1),
        blocks_left: 1024,
        wire_bytes: Some(90 << 20),
        goodput_bytes_per_second: Some(11_500_000),
        dirty_bytes_per_second: Some(2 << 20),
        eta_ms: Some(3100),
        predicted_pause_ms: Some(80),
        ..received(ids, Role::Source, sites, phase)
    }
}

/// The same move as its target shows it.
pub(crate) fn migration_at_target(phase: Phase) -> MigrationView {
    let ids = (MigrationId(5), "a".parse().unwrap());
    let sites = ("edge".parse().unwrap(), "region".parse().unwrap());
    received(ids, Role::Target, sites, phase)
}

/// The part of a move's view that both sides know.
fn received(
    ids: (MigrationId, Name),
    role: Role,
    sites: (Name, Name),
    phase: Phase,
) -> MigrationView {
    MigrationView {
        link: LinkState::Up,
        blocks_total: 65_536,
        blocks_left: 1024,
        raw_bytes: 300 << 20,
        total_ms: 24_000,
        started_unix_ms: 1_700_000_000_000,
        ..MigrationView::begun(ids, role, sites, phase)
    }
}

/// A move that failed.
pub(crate) fn failed(code: &str, message: &str) -> MigrationView {
    MigrationView {
        error: Some(ErrorView {
            code: code.into(),
            message: message.into(),
            host: None,
        }),
        ..migration(Phase::Failed)
    }
}

impl Host for Notebook {
    fn status(&self) -> HostView {
        HostView {
            version: "1.2.3".into(),
            site: "edge".parse().unwrap(),
            host: "box".parse().unwrap(),
            ready: true,
            not_ready_reason: None,
            tunnel: LinkState::Up,
            kvm_missing_reason: Some("no /dev/kvm".into()),
            guest_count: 1,
            guest_count_max: 64,
            memory_used_bytes: 256 << 20,
            memory_quota_bytes: 16 << 30,
            migration_count: 0,
            started_unix_ms: 1_700_000_000_000,
        }
    }

    fn guests(&self) -> Vec<GuestView> {
        self.notes.lock().unwrap().guests.clone()
    }

    fn guest(&self, name: &Name) -> Result<GuestView, Fault> {
        let notes = self.notes.lock().unwrap();
        let found = notes.guests.iter().find(|guest| guest.name == *name);
        found.cloned().ok_or_else(|| not_found(name))
    }

    fn start_guest(&self, request: GuestRequest) -> Result<GuestView, Fault> {
        let mut notes = self.notes.lock().unwrap();
        if let Some(refusal) = &notes.refusal {
            return Err(refusal.clone());
        }
        let view = GuestView {
            memory_bytes: request.memory_bytes,
            dirty_pages_per_second: request.dirty_pages_per_second,
            ..guest(request.name.as_str())
        };
        notes.guests.push(view.clone());
        Ok(view)
    }

    fn boot_guest(&self, name: &Name) -> Result<GuestView, Fault> {
        let mut notes = self.notes.lock().unwrap();
        let found = notes.guests.iter_mut().find(|guest| guest.name == *name);
        let found = found.ok_or_else(|| not_found(name))?;
        found.state = GuestState::Running;
        Ok(found.clone())
    }

    fn give_up_missing(&self, name: &Name) -> Result<GuestView, Fault> {
        self.boot_guest(name)
    }

    fn stop_guest(&self, name: &Name) -> Result<(), Fault> {
        self.guest(name)?;
        let mut notes = self.notes.lock().unwrap();
        notes.guests.retain(|guest| guest.name != *name);
        Ok(())
    }

    fn verify_guest(&self, name: &Name) -> Result<VerifyView, Fault> {
        Err(not_found(name))
    }

    fn migrate(&self, request: MigrationRequest) -> Result<MigrationView, Fault> {
        let mut notes = self.notes.lock().unwrap();
        if let Some(refusal) = &notes.refusal {
            return Err(refusal.clone());
        }
        let view = MigrationView {
            guest: request.guest,
            to: request.site,
            mode: Some(request.mode),
            max_pause_ms: Some(request.max_pause_ms),
            rate_bits_per_second: request.rate_bits_per_second,
            ..migration(Phase::Preparing)
        };
        notes.migrations.push(view.clone());
        Ok(view)
    }

    fn cancel(&self, id: MigrationId) -> Result<MigrationView, Fault> {
        self.notes.lock().unwrap().cancels += 1;
        self.migration(id)
    }

    fn migrations(&self) -> Vec<MigrationView> {
        self.notes.lock().unwrap().migrations.clone()
    }

    fn migration(&self, id: MigrationId) -> Result<MigrationView, Fault> {
        let mut notes = self.notes.lock().unwrap();
        let look = notes.looks.min(notes.course.len().saturating_sub(1));
        notes.looks += 1;
        self.changed.notify_all();
        let on_course = notes.course.get(look).filter(|view| view.id == id);
        let found = notes.migrations.iter().find(|view| view.id == id);
        on_course.or(found).cloned().ok_or_else(|| not_found(&id))
    }

    fn metrics(&self) -> String {
        String::new()
    }
}

/// A host served on a socket, and a folder for other files of a test.
pub(crate) struct Daemon {
    pub(crate) folder: TempDir,
    pub(crate) host: Arc<Notebook>,
    trigger: shutdown::Trigger,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Daemon {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let host = Arc::new(Notebook::default());
        let (trigger, shutdown) = shutdown::channel();
        let socket = Socket::bind(&folder.path().join("run/m.sock")).unwrap();
        let routes = router(Arc::clone(&host) as Arc<dyn Host>);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime
                .block_on(http::serve_unix(socket, routes, shutdown))
                .unwrap();
        });
        Self {
            folder,
            host,
            trigger,
            thread: Some(thread),
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("run/m.sock")
    }

    /// A command that talks to this daemon.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = towpath(words);
        command.env("TOWPATH_SOCKET", self.socket()).env(
            "TOWPATH_TUNNEL_SOCKET",
            self.folder.path().join("none.sock"),
        );
        command
    }

    /// Runs a command that talks to this daemon.
    pub(crate) fn run(&self, words: &[&str]) -> Ran {
        Ran::of(&self.command(words).output().unwrap())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.trigger.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The exit status and the output of a command.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    pub(crate) fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        Self {
            status: output.status.code().unwrap_or(-1),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    /// The document on stdout. The command must have succeeded, and the kind must be this one.
    #[track_caller]
    pub(crate) fn document(&self, kind: &str) -> Value {
        assert_eq!((self.status, self.stderr.as_str()), (0, ""), "{self:?}");
        let value: Value = serde_json::from_str(&self.stdout).unwrap();
        assert_eq!(value["schema"], format!("towpath.v1.{kind}"));
        value
    }

    /// Checks that the command failed with this status and code, and printed a cause and a remedy
    /// to stderr.
    #[track_caller]
    pub(crate) fn failed(&self, status: i32, code: &str) {
        assert_eq!(self.status, status, "{self:?}");
        let first = format!("error {code}: ");
        assert!(self.stderr.starts_with(&first), "{self:?}");
        assert!(self.stderr.contains("\n  cause: "), "{self:?}");
        assert!(self.stderr.contains("\n  remedy: "), "{self:?}");
    }
}

/// A command that is told of no daemon.
pub(crate) fn towpath(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_towpath"));
    command.args(words).env_remove("TOWPATH_LOG");
    command
}

/// Runs a command that is told of no daemon.
pub(crate) fn run(words: &[&str]) -> Ran {
    Ran::of(&towpath(words).output().unwrap())
}

/// Height of the terminals in these tests, in rows.
const TERMINAL_ROWS: usize = 24;

/// Starts a command on a terminal of its own of this width, made by `script` of util-linux. Without
/// `script` it prints that the test is skipped.
pub(crate) fn on_a_terminal(command: &Command, columns: usize) -> Option<Child> {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line: Vec<&str> = words.map(|word| word.to_str().unwrap()).collect();
    let line = format!(
        "stty cols {columns} rows {TERMINAL_ROWS}; {}",
        line.join(" ")
    );
    let mut script = Command::new("script");
    script.args(["-q", "-e", "-f", "-c", &line, "/dev/null"]);
    let told = command.get_envs();
    script.envs(told.filter_map(|(name, value)| Some((name, value?))));
    script.env("TERM", "xterm");
    let spawned = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    if spawned.is_err() {
        println!("skipped: no script(1)");
    }
    spawned.ok()
}

/// Everything a command shows on a terminal of this width until it ends.
pub(crate) fn screen(command: &Command, columns: usize) -> Option<String> {
    let child = on_a_terminal(command, columns)?;
    let output = child.wait_with_output().unwrap();
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A path as an argument of a command.
pub(crate) fn word(path: &Path) -> &str {
    path.to_str().unwrap()
}
