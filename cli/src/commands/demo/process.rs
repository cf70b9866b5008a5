//! The demo's processes: this same program, started with its standard input as a leash.
//!
//! Each child ends, with all it started, when its leash is closed. So nothing is left behind even
//! if the demo itself is killed.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::UnixDatagram;
use tokio::process::{Child, ChildStdin, Command};
use tokio::task::JoinSet;
use tokio::time::timeout;
use towpath_daemon::problem::Problem;
use towpath_protocol::fault::{Code, Fault};

use super::report::DaemonReport;
use crate::failure::Failure;

/// How long a child may take to start. Certificates exist by then, so a daemon only reads files and
/// binds sockets.
const READY_WAIT: Duration = Duration::from_secs(20);

/// How long a child may take to end once its leash is closed. After that it is killed.
const END_WAIT: Duration = Duration::from_secs(5);

/// How many last bytes of a log are searched for the lines to show when its process failed.
const LOG_TAIL_BYTES: usize = 600;

/// A running child.
#[derive(Debug)]
pub(super) struct Process {
    name: String,
    child: Child,
    leash: Option<ChildStdin>,
    log: PathBuf,
    /// Receives what a daemon tells its service manager. Without it the daemon would log warnings.
    hearing: JoinSet<()>,
}

impl Process {
    /// Starts a daemon and waits until it reports, as to a service manager, that it is ready.
    pub(super) async fn start_daemon(
        name: &str,
        arguments: &[&str],
        config: &Path,
        folder: &Path,
        run: &Path,
    ) -> Result<Self, Failure> {
        let socket = run.join(format!("{name}.notify"));
        let io = |error| Fault::new(Code::Io, format!("{}: {error}", socket.display()));
        let notify = UnixDatagram::bind(&socket).map_err(io)?;
        let mut command = own_program()?;
        command.args(arguments).arg("--config").arg(config);
        command
            .arg("--until-stdin-closes")
            .env("NOTIFY_SOCKET", &socket);
        let mut process = Self::spawn(name, command, folder, None)?;
        let mut message = [0; 256];
        let heard = async {
            loop {
                let count = notify.recv(&mut message).await?;
                if message[..count].starts_with(b"READY=1") {
                    return Ok::<(), std::io::Error>(());
                }
            }
        };
        tokio::select! {
            ready = timeout(READY_WAIT, heard) => match ready {
                Ok(Ok(())) => {
                    process.hearing.spawn(async move {
                        while notify.recv(&mut message).await.is_ok() {}
                    });
                    return Ok(process);
                }
                Ok(Err(error)) => return Err(io(error).into()),
                Err(_) => {}
            },
            ended = process.child.wait() => return Err(process.failed("did not start", ended.ok())),
        }
        Err(process.failed("did not start in time", None))
    }

    /// Starts a child that prints one line on its standard output when it is ready. Returns the
    /// child and that line.
    pub(super) async fn start_and_hear(
        name: &str,
        arguments: &[String],
        folder: &Path,
    ) -> Result<(Self, String), Failure> {
        let mut command = own_program()?;
        command.args(arguments);
        let mut process = Self::spawn(name, command, folder, Some(Stdio::piped()))?;
        let stdout = process.child.stdout.take().expect("it was piped");
        let mut line = String::new();
        let mut reader = BufReader::new(stdout);
        match timeout(READY_WAIT, reader.read_line(&mut line)).await {
            Ok(Ok(count)) if count > 0 => Ok((process, line)),
            _ => Err(process.failed("did not start", None)),
        }
    }

    fn spawn(
        name: &str,
        mut command: Command,
        folder: &Path,
        stdout: Option<Stdio>,
    ) -> Result<Self, Failure> {
        let log = folder.join(format!("{name}.log"));
        let io = |error: std::io::Error| Fault::new(Code::Io, format!("{name}: {error}"));
        let file = File::create(&log).map_err(io)?;
        let copy = file.try_clone().map_err(io)?;
        command
            .stdin(Stdio::piped())
            .stdout(stdout.unwrap_or_else(|| copy.into()))
            .stderr(file)
            .env_remove("TOWPATH_LOG")
            .env_remove("TOWPATH_SOCKET")
            // A group of its own: Ctrl-C is for the demo, which then ends its children in order.
            .process_group(0);
        let mut child = command.spawn().map_err(io)?;
        Ok(Self {
            name: name.to_owned(),
            leash: child.stdin.take(),
            child,
            log,
            hearing: JoinSet::new(),
        })
    }

    /// Takes the child's standard input. The child ends once that is closed.
    pub(super) fn take_leash(&mut self) -> Option<ChildStdin> {
        self.leash.take()
    }

    /// Waits until the child ends by itself, which is a failure.
    pub(super) async fn ended_early(&mut self) -> Failure {
        let ended = self.child.wait().await;
        self.failed("ended early", ended.ok())
    }

    /// Closes the leash and waits until the child has ended.
    pub(super) async fn end(mut self) {
        drop(self.leash.take());
        if timeout(END_WAIT, self.child.wait()).await.is_err() {
            // An error means that the child has just ended by itself.
            let _ = self.child.kill().await;
        }
    }

    /// What the child has used so far: peak memory and processor time. `None` if it has ended.
    pub(super) fn taken(&self) -> Option<DaemonReport> {
        let process = self.child.id()?;
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))?;
        let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
        Some(DaemonReport {
            name: self.name.clone(),
            peak_memory_bytes: kibibytes * 1024,
            processor_ms: processor_ms(process)?,
        })
    }

    fn failed(&self, what: &str, status: Option<ExitStatus>) -> Failure {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let tail = String::from_utf8_lossy(&log[log.len().saturating_sub(LOG_TAIL_BYTES)..]);
        // The remedies in the log are not for the user of a demo.
        let lines = tail.lines().map(str::trim);
        let lines: Vec<&str> = lines.filter(|line| !line.starts_with("remedy:")).collect();
        let last = match lines.as_slice() {
            [] => "it logged nothing".to_owned(),
            lines => format!(
                "its log ends with: {}",
                lines[lines.len().saturating_sub(2)..].join(", ")
            ),
        };
        let status = status.map_or_else(String::new, |status| format!("{status}; "));
        Problem::new(Code::Guest, format!("{status}{last}"))
            .message(format!("{} {what}", self.name))
            .remedy(format!("the whole log is {}", self.log.display()))
            .into()
    }
}

fn own_program() -> Result<Command, Failure> {
    let path = std::env::current_exe()
        .map_err(|error| Fault::new(Code::Io, format!("own program's path: {error}")))?;
    Ok(Command::new(path))
}

/// Processor time of a process, user and system (proc(5): fields 14 and 15 of `stat`).
fn processor_ms(process: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name in brackets may contain blanks. The first field after it is field 3.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let ticks = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some(ticks * 1000 / rustix::param::clock_ticks_per_second())
}
