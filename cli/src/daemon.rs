//! What `tunnel run` and `migrator run` have in common.

use std::fs;
use std::io::Read;
use std::path::PathBuf;

use clap::Args;
use rustix::process::{Pid, Signal, getpid, kill_process, set_child_subreaper};
use towpath_daemon::{activation, crash, log};
use towpath_protocol::fault::{Code, Fault};

use crate::args::LogOptions;
use crate::failure::Failure;

/// The options of a daemon.
#[derive(Debug, Args)]
pub(crate) struct DaemonOptions {
    /// Configuration file of the daemon
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    #[command(flatten)]
    pub(crate) log: LogOptions,
    /// Stop, with every process started here, when standard input is closed: for a daemon that must
    /// not outlive its parent
    #[arg(long, hide = true)]
    pub(crate) until_stdin_closes: bool,
}

/// Runs a daemon to its end, with logging. A panic in any thread aborts the process.
pub(crate) fn run(
    options: &DaemonOptions,
    log: log::Options,
    serve: impl FnOnce() -> Result<(), Fault>,
) -> Result<(), Failure> {
    log::start(&options.log.over(log))?;
    crash::abort_on_panic();
    activation::receive()?;
    if options.until_stdin_closes {
        stop_when_stdin_closes()?;
    }
    let ended = serve();
    if let Err(fault) = &ended {
        tracing::error!(code = %fault.code, "{}", fault.detail);
    }
    if options.until_stdin_closes {
        end_descendants();
    }
    Ok(ended?)
}

/// Stops the daemon when standard input ends: its parent has ended, or has closed the pipe.
fn stop_when_stdin_closes() -> Result<(), Fault> {
    let io = |what: &str, error: &dyn std::fmt::Display| {
        Fault::new(Code::Io, format!("{what}: {error}"))
    };
    // As a subreaper this process inherits orphaned descendants, so that it can find them.
    set_child_subreaper(Some(getpid())).map_err(|error| io("becoming a subreaper", &error))?;
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(|| {
            let mut ignored = [0; 256];
            // A read error counts as the end, too: nothing more can come.
            while std::io::stdin()
                .read(&mut ignored)
                .is_ok_and(|count| count > 0)
            {}
            tracing::info!("stopping: standard input was closed");
            // A stop as by a service manager. Sending a signal to ourselves cannot fail.
            let _ = kill_process(getpid(), Signal::TERM);
        })
        .map_err(|error| io("a thread for standard input", &error))?;
    Ok(())
}

/// Kills every process that descends from this one.
pub(crate) fn end_descendants() {
    // Orphans of a killed child become children of a subreaper, so look again: 8 generations at
    // most.
    for _ in 0..8 {
        let children = children();
        if children.is_empty() {
            return;
        }
        for child in children {
            // The child may have ended by itself in between.
            let _ = kill_process(child, Signal::KILL);
            let _ = rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty());
        }
    }
}

/// The children of all threads of this process.
fn children() -> Vec<Pid> {
    let Ok(threads) = fs::read_dir("/proc/self/task") else {
        return Vec::new();
    };
    let lists = threads
        .flatten()
        .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let mut children = Vec::new();
    for list in lists {
        let ids = list
            .split_ascii_whitespace()
            .filter_map(|id| id.parse().ok());
        children.extend(ids.filter_map(Pid::from_raw));
    }
    children
}
