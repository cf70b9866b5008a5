//! A daemon of a lab: starting it, waiting for it, killing it.

use std::fs::File;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::program::towpath;

/// How long a daemon may take to become ready: it binds sockets and reads files, on a busy machine.
const READY_WAIT: Duration = Duration::from_secs(30);

/// How long a daemon may take to exit when asked to.
const END_WAIT: Duration = Duration::from_secs(10);

/// Bytes of a log that are printed when a test fails.
const LOG_BYTES_SHOWN: usize = 6_000;

/// The environment variable that makes a migrator kill itself after a named step.
const FAILPOINT_VARIABLE: &str = "TOWPATH_FAILPOINT";

/// How to start a daemon.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// `tunnel` or `migrator`.
    pub(crate) kind: &'static str,
    pub(crate) config: PathBuf,
    /// The folder of its sockets.
    pub(crate) run: PathBuf,
    /// Its log is appended to this file.
    pub(crate) log: PathBuf,
}

/// A running daemon; it is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
}

impl Plan {
    /// Starts the daemon and waits until it reports that it is ready.
    pub(crate) fn start(&self, failpoint: Option<&str>) -> Result<Daemon, String> {
        let socket = self.run.join(format!("{}.notify", self.kind));
        // Left by an earlier start.
        let _ = std::fs::remove_file(&socket);
        let notify = UnixDatagram::bind(&socket).map_err(|error| error.to_string())?;
        let mut daemon = self.spawn(failpoint, Some(&socket))?;
        let deadline = Instant::now() + READY_WAIT;
        let mut message = [0; 256];
        notify
            .set_read_timeout(Some(Duration::from_millis(50)))
            .map_err(|error| error.to_string())?;
        while Instant::now() < deadline {
            if let Ok(count) = notify.recv(&mut message)
                && message[..count].starts_with(b"READY=1")
            {
                return Ok(daemon);
            }
            if let Some(status) = daemon.ended() {
                let log = tail(&self.log, 800);
                return Err(format!("{} ended at its start: {status}\n{log}", self.kind));
            }
        }
        Err(format!("{} is not ready after {READY_WAIT:?}", self.kind))
    }

    /// Starts the daemon without waiting: it may exit before it is ready.
    pub(crate) fn spawn(
        &self,
        failpoint: Option<&str>,
        notify: Option<&Path>,
    ) -> Result<Daemon, String> {
        let mut command = self.command();
        if let Some(socket) = notify {
            command.env("NOTIFY_SOCKET", socket);
        }
        if let Some(failpoint) = failpoint {
            command.env(FAILPOINT_VARIABLE, failpoint);
        }
        let child = command.spawn().map_err(|error| error.to_string())?;
        Ok(Daemon { child })
    }

    /// Starts a second instance beside the first and waits for its exit.
    pub(crate) fn start_second(&self) -> Option<ExitStatus> {
        let child = self.command().spawn().expect("the program starts");
        Daemon { child }.wait_for_end(END_WAIT)
    }

    fn command(&self) -> Command {
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .expect("a log can be written");
        let copy = log.try_clone().expect("a log can be written");
        let mut command = Command::new(towpath());
        command
            .args([self.kind, "run", "--config"])
            .arg(&self.config)
            .stdin(Stdio::null())
            .stdout(copy)
            .stderr(log)
            .env_remove("TOWPATH_LOG")
            .env_remove("TOWPATH_SOCKET")
            .env_remove("NOTIFY_SOCKET")
            .env_remove(FAILPOINT_VARIABLE)
            .process_group(0);
        command
    }
}

impl Daemon {
    /// Ends it like a power failure, except that the kernel keeps its state.
    pub(crate) fn kill(mut self) {
        self.end();
    }

    /// The peak of its resident memory.
    pub(crate) fn peak_kib(&self) -> u64 {
        let path = format!("/proc/{}/status", self.id().as_raw_nonzero());
        let status = std::fs::read_to_string(path).expect("a daemon that runs");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.expect("the kernel says it").trim();
        let kib = peak.trim_end_matches(" kB").parse();
        kib.expect("a number of KiB")
    }

    /// Asks it to exit, as a package upgrade does.
    pub(crate) fn stop(mut self) -> Option<ExitStatus> {
        let _ = kill_process(self.id(), Signal::TERM);
        self.wait_for_end(END_WAIT)
    }

    /// Waits for it to exit by itself.
    pub(crate) fn wait_for_end(&mut self, wait: Duration) -> Option<ExitStatus> {
        let end = pidfd_open(self.id(), PidfdFlags::empty()).ok();
        let timeout = Timespec::try_from(wait).expect("a wait is short");
        if let Some(end) = &end {
            // The result does not matter; `ended` checks again.
            let _ = poll(&mut [PollFd::new(end, PollFlags::IN)], Some(&timeout));
        }
        self.ended()
    }

    /// Its exit status, if it has exited.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    pub(crate) fn id(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn end(&mut self) {
        // It may have exited by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
    }
}

/// Prints the end of a log, beside the failure of its test.
pub(crate) fn show_log(log: &Path) {
    eprintln!("--- {}\n{}", log.display(), tail(log, LOG_BYTES_SHOWN));
}

/// The end of a text file.
fn tail(path: &Path, bytes_max: usize) -> String {
    let all = std::fs::read(path).unwrap_or_default();
    let end = &all[all.len().saturating_sub(bytes_max)..];
    String::from_utf8_lossy(end).into_owned()
}
