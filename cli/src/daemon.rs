//! What `tunnel run` and `migrator run` do alike.

use std::fs;
use std::io::Read;
use std::path::PathBuf;

use clap::Args;
use rustix::process::{Pid, Signal, getpid, kill_process, set_child_subreaper};
use towpath_daemon::{activation, crash, log};
use towpath_protocol::fault::{Code, Fault};

use crate::args::LogOptions;
use crate::failure::Failure;

/// How a daemon is run.
#[derive(Debug, Args)]
pub(crate) struct DaemonOptions {
    /// Its configuration file
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    #[command(flatten)]
    pub(crate) log: LogOptions,
    /// Stop, with every process begun here, when standard input is closed: for a daemon whose starter
    /// must not outlive it
    #[arg(long, hide = true)]
    pub(crate) until_stdin_closes: bool,
}

/// Runs a daemon to its end, with logs; a panic of any thread ends all of it.
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

/// Asks for a stop when standard input is at its end: whoever started us is gone or has let go.
fn stop_when_stdin_closes() -> Result<(), Fault> {
    let io = |what: &str, error: &dyn std::fmt::Display| {
        Fault::new(Code::Io, format!("{what}: {error}"))
    };
    // Processes that our children leave behind become our children, so that they can be found.
    set_child_subreaper(Some(getpid())).map_err(|error| io("becoming a subreaper", &error))?;
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(|| {
            let mut ignored = [0; 256];
            // Whatever ends the reading, nobody can tell us anything any more.
            while std::io::stdin()
                .read(&mut ignored)
                .is_ok_and(|count| count > 0)
            {}
            tracing::info!("stopping: standard input was closed");
            // The daemon stops as a service manager would have it. There is always this process.
            let _ = kill_process(getpid(), Signal::TERM);
        })
        .map_err(|error| io("a thread for standard input", &error))?;
    Ok(())
}

/// Kills every process that descends from this one.
pub(crate) fn end_descendants() {
    // Orphans of a killed process become our children: a few generations are looked at.
    for _ in 0..8 {
        let children = children();
        if children.is_empty() {
            return;
        }
        for child in children {
            // It may have ended by itself in between.
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
