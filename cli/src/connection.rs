//! Connections to the daemons of this host.

use std::path::PathBuf;

use clap::Args;
use tokio::runtime::{Builder, Runtime};
use towpath_daemon::client::Client;
use towpath_protocol::fault::{Code, Fault};

use crate::failure::Failure;

/// The admin socket of a packaged tunnel.
const TUNNEL_SOCKET_DEFAULT: &str = "/run/towpath/tunnel-admin.sock";

/// The option for the migrator's socket.
#[derive(Debug, Clone, Args)]
pub(crate) struct MigratorSocket {
    /// Socket of the migrator
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
    /// A client of the migrator's API.
    pub(crate) fn client(&self) -> Client {
        Client::new(&self.socket)
    }
}

/// The option for the tunnel's admin socket.
#[derive(Debug, Clone, Args)]
pub(crate) struct TunnelSocket {
    /// Admin socket of the tunnel
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
    /// A client of the tunnel's admin API.
    pub(crate) fn client(&self) -> Client {
        Client::new(&self.path).named_by("--tunnel-socket or TOWPATH_TUNNEL_SOCKET")
    }
}

/// Runs `work` to its end on this thread, in a runtime of its own.
pub(crate) fn block_on<F: Future>(work: F) -> Result<F::Output, Failure> {
    Ok(runtime(Builder::new_current_thread())?.block_on(work))
}

/// Builds a runtime with sockets, timers and signals.
pub(crate) fn runtime(mut builder: Builder) -> Result<Runtime, Failure> {
    builder.enable_all().build().map_err(|error| {
        Fault::new(Code::Io, format!("the runtime cannot be started: {error}")).into()
    })
}
