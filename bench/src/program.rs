//! What all benches share as programs: starting tunnels, printing the report, exiting.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use towpath_daemon::shutdown;
use towpath_tunnel::config::Config;

use crate::sites::Failure;

/// How long processes may take to start and to carry their first byte.
pub const READY_WAIT: Duration = Duration::from_secs(20);

/// Interval between checks for readiness.
const READY_LOOK: Duration = Duration::from_millis(20);

/// Ends a bench: prints a failure, and returns the exit code.
#[must_use]
pub fn finish(done: Result<(), Failure>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Prints a report as one JSON document.
///
/// # Errors
///
/// If it cannot be written.
pub fn print(report: &impl Serialize) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, report)?;
    writeln!(out)?;
    Ok(())
}

/// The median; of an even number of figures, the larger of the two in the middle.
///
/// # Panics
///
/// If there are no figures.
#[must_use]
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Retries until it succeeds, for at most [`READY_WAIT`].
///
/// # Errors
///
/// The error of the last attempt.
pub fn until_ready<T>(mut attempt: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
    let until = Instant::now() + READY_WAIT;
    loop {
        match attempt() {
            Err(_) if Instant::now() < until => thread::sleep(READY_LOOK),
            done => return done,
        }
    }
}

/// Writes a tunnel's configuration into a folder, in a file named after its site.
///
/// # Errors
///
/// The system's error.
pub fn write_config(folder: &Path, config: &Config) -> Result<PathBuf, Failure> {
    let path = folder.join(format!("{}.toml", config.site));
    std::fs::write(&path, toml::to_string(config)?)?;
    Ok(path)
}

/// Runs a tunnel in this process until the process is killed.
///
/// # Errors
///
/// The tunnel's error.
pub fn run_tunnel(config: &Path) -> Result<(), Failure> {
    let config: Config = towpath_daemon::config::load_checked(config)?;
    let (_trigger, stop) = shutdown::channel();
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(towpath_tunnel::run(&config, stop))?;
    Ok(())
}

/// A process that is killed when this is dropped.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    /// Starts a process.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn start(command: &mut Command) -> Result<Self, Failure> {
        Ok(Self(command.spawn()?))
    }

    /// Its process ID.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Waits for it to exit; returns its standard output, if that was piped.
    ///
    /// # Errors
    ///
    /// If the output is not text.
    pub fn output(mut self) -> Result<String, Failure> {
        let mut text = String::new();
        if let Some(mut stdout) = self.0.stdout.take() {
            stdout.read_to_string(&mut text)?;
        }
        self.0.wait()?;
        Ok(text)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // If the process has already exited, this only reaps it.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
