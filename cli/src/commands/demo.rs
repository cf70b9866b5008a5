//! `towpath demo`: two sites on this machine, and a guest that moves there and back.
//!
//! ```text
//!      edge                                                  region
//!  migrator ── tunnel ──UDP──► relay (rate, delay) ──UDP──► tunnel ── migrator
//!     │                                                                   │
//!   guest  ────────────────────── moves there, and back ─────────────► guest
//! ```
//!
//! Only the link is emulated. The four daemons are real, and so are mutual TLS, with certificates
//! made for the demo, and the guest, which keeps changing its memory. The guest shows the result:
//! its heartbeats tell how long it stood still and whether it ever ran twice, and every byte of its
//! memory can be checked.

mod cut;
mod heartbeat;
mod process;
mod report;
mod scene;
mod site;

use std::path::{Path, PathBuf};

use clap::Args;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use towpath_daemon::problem::Problem;
use towpath_daemon::socket::SOCKET_PATH_BYTES_MAX;
use towpath_daemon::units::Span;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::rate::Rate;
use towpath_protocol::size::Size;

use super::guest::{DirtyRate, Kind, memory};
use super::migrate::pause;
use super::relay::loss_percent;
use crate::args::OutputOption;
use crate::connection::runtime;
use crate::daemon::end_descendants;
use crate::failure::{Exit, Failure};
use crate::show::{self, note};
use report::Report;

const EXAMPLES: &str = "\
Examples:
  towpath demo                                     100 Mbit/s, 40 ms, 256 MiB
  towpath demo --rate 20Mbit --rtt 120ms           a thin, long link
  towpath demo --dirty-rate 20MiB/s --incompressible 100
                                                   a guest that needs post-copy
  towpath demo --cut 10s --loss 0.5                a link with packet loss, cut once per move
  towpath demo --guest process                     a guest without KVM
  towpath demo -o json --keep ./demo > report.json keep logs, certificates and configurations

The demo needs no other machine, no configuration and no network. It stops all it starts.
It exits with 0 only if every page of the guest's memory was right after every move.";

/// The longest file name of a site's sockets.
const LONGEST_SOCKET_NAME: &str = "migrator-service.sock";

/// The arguments of `towpath demo`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// Rate of the link between the sites
    #[arg(long, value_name = "RATE", default_value = "100Mbit")]
    rate: Rate,
    /// Round-trip time between the sites
    #[arg(long, value_name = "TIME", default_value = "40ms")]
    rtt: Span,
    /// Share of packets that the link loses in each direction, 0 to 50
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0, value_parser = loss_percent)]
    loss: f64,
    /// Cut the link for this long in each move, once half of the guest's memory has been sent
    #[arg(long, value_name = "TIME")]
    cut: Option<Span>,
    /// Emulate no link: the sites talk over loopback as fast as they can
    #[arg(long, conflicts_with_all = ["rate", "rtt", "loss", "cut"])]
    direct: bool,
    /// Memory of the guest, 8MiB to 256GiB in steps of 2MiB
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = memory)]
    memory: Size,
    /// Rate at which the guest rewrites its memory: pages per second, up to 10000000, or a rate
    /// such as 2MiB/s
    #[arg(long, value_name = "RATE", default_value = "500")]
    dirty_rate: DirtyRate,
    /// Share of the guest's pages that do not compress, 0 to 100
    #[arg(long, value_name = "PERCENT", default_value_t = 25, value_parser = clap::value_parser!(u8).range(0..=100))]
    incompressible: u8,
    /// Kind of machine; auto uses KVM where it is available
    #[arg(long, value_name = "KIND", default_value = "auto")]
    guest: Kind,
    /// Longest pause of the guest to accept, 1ms to 1m
    #[arg(long, value_name = "TIME", default_value = "200ms", value_parser = pause)]
    max_pause: Span,
    /// Folder in which to keep logs, certificates and configurations; it must not exist yet
    #[arg(long, value_name = "FOLDER")]
    keep: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) output: OutputOption,
}

/// Where the demo's files are.
#[derive(Debug)]
struct Folders {
    /// Logs, certificates, configurations, journals.
    files: PathBuf,
    /// Sockets, whose paths must be short.
    run: PathBuf,
    /// Whether the operator named the folder for the files.
    is_kept: bool,
    temporary: tempfile::TempDir,
}

/// Runs the demo; everything it started has ended when this returns.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let folders = Folders::make(options.keep.as_deref())?;
    become_subreaper()?;
    let runtime = runtime(Builder::new_current_thread())?;
    let ended = runtime.block_on(async {
        tokio::select! {
            ended = scene::play(options, &folders) => ended,
            ended = interrupted() => ended.and(Err(Failure::Interrupted)),
        }
    });
    drop(runtime);
    // Guests begin sessions of their own and would outlive their migrators.
    end_descendants();
    match ended {
        Ok(report) => finish(options, folders, &report),
        Err(Failure::Interrupted) => {
            note("interrupted; everything the demo started has ended");
            Err(Failure::Interrupted)
        }
        Err(failure) => {
            note(&format!("the logs are in {}", folders.keep().display()));
            Err(failure)
        }
    }
}

fn finish(options: &Options, folders: Folders, report: &Report) -> Result<(), Failure> {
    show::show(options.output.format, "demo", report, || report.table())?;
    if report.verified {
        if folders.is_kept {
            note(&format!("everything is in {}", folders.keep().display()));
        }
        return Ok(());
    }
    note(&format!("the logs are in {}", folders.keep().display()));
    let problem = Problem::new(Code::RootMismatch, report.first_wrong())
        .message("the guest is not what it was before it moved")
        .remedy("keep the logs and report it; this must never happen");
    Err(Failure::with(problem, Exit::Failed))
}

/// Waits for a signal that ends the demo: SIGINT from its terminal, SIGHUP from a terminal that is
/// closed, or SIGTERM from a service manager.
async fn interrupted() -> Result<(), Failure> {
    let listen = |kind| {
        let io = |error| Fault::new(Code::Io, format!("listening for signals: {error}"));
        signal(kind).map_err(io)
    };
    let mut hangup = listen(SignalKind::hangup())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    tokio::select! {
        _ = hangup.recv() => {}
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

fn become_subreaper() -> Result<(), Fault> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|error| Fault::new(Code::Io, format!("becoming a subreaper: {error}")))
}

impl Folders {
    fn make(keep: Option<&Path>) -> Result<Self, Failure> {
        let io = |error| Fault::new(Code::Io, format!("a folder for the demo: {error}"));
        let temporary = tempfile::Builder::new()
            .prefix("towpath-demo-")
            .tempdir()
            .map_err(io)?;
        let files = match keep {
            None => temporary.path().join("files"),
            Some(path) => std::path::absolute(path).map_err(io)?,
        };
        std::fs::create_dir(&files).map_err(|error| {
            Fault::new(
                Code::Path,
                format!("new folder {}: {error}", files.display()),
            )
        })?;
        let run = temporary.path().join("run");
        let longest = run.join("region").join(LONGEST_SOCKET_NAME);
        if longest.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            let why = format!("{} is too long for a socket's path", longest.display());
            let problem = Problem::new(Code::Path, why);
            return Err(problem.remedy("set TMPDIR to a shorter path").into());
        }
        Ok(Self {
            files,
            run,
            is_kept: keep.is_some(),
            temporary,
        })
    }

    /// Keeps the files, and returns the path of their folder.
    fn keep(self) -> PathBuf {
        if !self.is_kept {
            // The returned folder is inside it, so its own path is not needed.
            let _ = self.temporary.keep();
        }
        self.files
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::report::tests::report;
    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    #[test]
    fn a_demo_ends_well_only_if_every_page_was_right() {
        let folder = tempfile::tempdir().unwrap();
        for format in ["table", "json"] {
            let Line { options } = Line::try_parse_from(["demo", "-o", format]).unwrap();
            let ended = |verified: bool| {
                let keep = folder.path().join(format!("{format}-{verified}"));
                let folders = Folders::make(Some(&keep)).unwrap();
                finish(&options, folders, &report(verified))
            };
            assert!(ended(true).is_ok());
            let Err(Failure::Problem { problem, exit }) = ended(false) else {
                panic!("{format}: a page was wrong");
            };
            assert_eq!(exit, Exit::Failed);
            assert_eq!(problem.known_code(), Some(Code::RootMismatch));
            assert!(problem.cause.contains("page 7 is wrong"), "{problem:?}");
        }
    }
}
