//! Talking to the daemons of this host.

use std::path::PathBuf;

use clap::Args;
use tokio::runtime::{Builder, Runtime};
use towpath_daemon::client::Client;
use towpath_protocol::fault::{Code, Fault};

use crate::failure::Failure;

/// Where a packaged tunnel answers operators.
const TUNNEL_SOCKET_DEFAULT: &str = "/run/towpath/tunnel-admin.sock";

/// Where the migrator answers.
#[derive(Debug, Clone, Args)]
pub(crate) struct MigratorSocket {
    /// The migrator's socket
    #[arg(
        long,
        value_name = "PATH",
        env = "TOWPATH_SOCKET",
        default_value = "/run/towpath/migrator.sock",
        hide_env_values = true
    )]
    pub(crate) socket: PathBuf,
}

impl MigratorSocket {
    /// The migrator's API.
    pub(crate) fn client(&self) -> Client {
        Client::new(&self.socket)
    }
}

/// Where the tunnel answers operators.
#[derive(Debug, Clone, Args)]
pub(crate) struct TunnelSocket {
    /// The tunnel's socket for operators
    #[arg(
        id = "tunnel_socket",
        long = "tunnel-socket",
        value_name = "PATH",
        env = "TOWPATH_TUNNEL_SOCKET",
        default_value = TUNNEL_SOCKET_DEFAULT,
        hide_env_values = true
    )]
    path: PathBuf,
}

impl TunnelSocket {
    /// The tunnel's API.
    pub(crate) fn client(&self) -> Client {
        Client::new(&self.path).named_by("--tunnel-socket or TOWPATH_TUNNEL_SOCKET")
    }
}

/// Runs a client's work to its end, on this thread.
pub(crate) fn block_on<F: Future>(work: F) -> Result<F::Output, Failure> {
    Ok(runtime(Builder::new_current_thread())?.block_on(work))
}

/// A runtime with sockets, timers and signals.
pub(crate) fn runtime(mut builder: Builder) -> Result<Runtime, Failure> {
    builder.enable_all().build().map_err(|error| {
        Fault::new(Code::Io, format!("the runtime cannot be started: {error}")).into()
    })
}
