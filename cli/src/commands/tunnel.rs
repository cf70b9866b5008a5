//! `towpath tunnel`: runs the daemon that keeps this host's links to other sites, and measures and
//! shapes them.

mod identity;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand;
use tokio::runtime::{Builder, Runtime};
use towpath_daemon::config::{self, InvalidValue};
use towpath_daemon::{log, shutdown};
use towpath_protocol::fault::{Code, Fault};
use towpath_tunnel::config::Config;

use crate::commands::config::{Daemon, of_started};
use crate::commands::{bench, probe, shape};
use crate::daemon::{self, DaemonOptions};
use crate::failure::Failure;
use crate::show::Format;

pub(crate) use self::identity::is_not_handed_over;

/// Longest wait for blocking calls after the tunnel has stopped. A lookup at a name server that
/// does not answer takes 10 s and more; without this limit the service manager would kill the
/// process although it has stopped already.
const LEFTOVER_WAIT: Duration = Duration::from_millis(500);

pub(crate) const EXAMPLES: &str = "\
Examples:
  towpath tunnel run --config /etc/towpath/tunnel.toml
  towpath tunnel bench region                       measure rate, latency, loss and cost
  towpath tunnel shape region --send-rate 50Mbit    change the cap at once";

const RUN_EXAMPLES: &str = "\
Examples:
  towpath tunnel run --config /etc/towpath/tunnel.toml
  towpath tunnel run --config ./edge.toml --log info,towpath_tunnel=debug

SIGHUP reloads the configuration and the certificates; only streams of removed peers and
services are dropped.";

/// The subcommands of `towpath tunnel`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the tunnel daemon until SIGTERM or SIGINT.
    #[command(after_help = RUN_EXAMPLES)]
    Run(DaemonOptions),
    /// Measure what the link to a peer carries, and its cost in processor time.
    Bench(bench::Options),
    /// Measure what the path to a peer carries, within a budget of bytes.
    Probe(probe::Options),
    /// Show or change the caps for a peer and the shares of classes.
    Shape(shape::Options),
    /// List the services that peers may reach, show one, or change its cap.
    #[command(visible_alias = "services")]
    Service(shape::ServiceOptions),
}

impl Command {
    pub(crate) fn format(&self) -> Format {
        match self {
            Self::Run(options) => options.log.format(),
            Self::Bench(options) => options.output.format,
            Self::Probe(options) => options.output.format,
            Self::Shape(options) => options.output.format,
            Self::Service(options) => options.output.format,
        }
    }
}

/// Runs a subcommand.
pub(crate) fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Run(options) => run_daemon(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Probe(options) => probe::run(&options),
        Command::Shape(options) => shape::run(&options),
        Command::Service(options) => shape::run_service(&options),
    }
}

/// Runs the daemon until it is asked to stop, such as by SIGTERM.
pub(crate) fn run_daemon(options: &DaemonOptions) -> Result<(), Failure> {
    let file = &options.config;
    let config = Config::load(file).map_err(|fault| of_started(fault, Daemon::Tunnel, file))?;
    daemon::run(options, log::Options::default(), || {
        serve(&config).map_err(|fault| placed(&options.config, fault))
    })
}

fn serve(config: &Config) -> Result<(), Fault> {
    let runtime = Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Fault::new(Code::Io, format!("the runtime: {error}")))?;
    run_in(runtime, async {
        // Kept because a shutdown counts as requested once all its triggers are gone.
        let (_trigger, stop) = shutdown::on_signals()?;
        towpath_tunnel::run(config, stop).await
    })
}

/// Replaces the fault of a start by that of a check of the configuration if both have the same
/// code, because the latter has the line and column.
fn placed(file: &Path, fault: Fault) -> Fault {
    let found = config::read(file).and_then(|text| check(file, &text));
    match found {
        Err(found) if found.code == fault.code => found,
        _ => fault,
    }
}

/// Runs a future to its end. Waits at most [`LEFTOVER_WAIT`] for blocking calls that it has left
/// behind.
fn run_in<T>(runtime: Runtime, work: impl Future<Output = T>) -> T {
    let done = runtime.block_on(work);
    runtime.shutdown_timeout(LEFTOVER_WAIT);
    done
}

/// Checks the text of a tunnel's configuration file and the files it names, as the daemon's start
/// does. Returns the files that the present user may not open.
pub(crate) fn check(file: &Path, text: &str) -> Result<Vec<PathBuf>, Fault> {
    let config = config::check::<Config>(file, text)?;
    identity::check(&config).map_err(|found| {
        let wrong = InvalidValue::new(found.key, found.fault.detail);
        Fault {
            detail: config::place(file, text, &wrong),
            ..found.fault
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Instant;

    #[test]
    fn a_name_server_that_does_not_answer_holds_no_end_up() {
        let runtime = Builder::new_multi_thread().enable_all().build().unwrap();
        let (answer, answered) = mpsc::channel::<()>();
        let (asking, asked) = tokio::sync::oneshot::channel();
        let began = Instant::now();
        run_in(runtime, async {
            tokio::task::spawn_blocking(move || {
                let _ = asking.send(());
                let _ = answered.recv_timeout(Duration::from_secs(20));
            });
            asked.await.unwrap();
        });
        assert!(began.elapsed() < Duration::from_secs(5));
        drop(answer);
    }
}
