//! The tunnel daemon: links between sites over QUIC and TLS 1.3.
//!
//! A local program connects to the tunnel's Unix socket, names a peer, a service and a class, and
//! gets a byte stream to that service. Each peer has one *link*: two QUIC connections, one for
//! urgent traffic and one for bulk, each with its own socket on the side that dials.
//!
//! ```text
//!  program ─► local ─► peer ─► link ─┬─ urgent ═══ QUIC ═══╗          ╔═► serve ─► service
//!                                    └─ bulk ═════ QUIC ═══╩═ listen ═╝
//!                        ▲ dial keeps it        pump copies, pace and congestion hold it back
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | [`config`], `reload` | the configuration file, and reading it again |
//! | `core` | what all parts of a running tunnel share |
//! | `links` | links to peers: dialled, accepted, watched, replaced |
//! | `trust` | our identity, and whom we trust; certificates replaced while links live |
//! | `quic` | the QUIC library's settings, sockets, threads and timers |
//! | `path` | estimates of what a path carries, and how much may be in flight; pure |
//! | `shaping` | caps on the wire, and the order in which streams send |
//! | `streams` | streams: opened, accepted, copied, resumed over the next link |
//! | [`channels`] | listeners that are joined to a peer's services |
//! | `measuring` | forecasts, probes, the bench service |
//! | `operators` | the HTTP API, status, the status page, metrics, the service manager |
//! | `state_files` | files of the state folder |
//! | `places` | counts of concurrent uses per key; pure |
//! | [`foreign`] | parsers of foreign bytes, for fuzzers |
#![forbid(unsafe_code)]

pub mod channels;
pub mod config;
mod core;
pub mod foreign;
mod links;
mod measuring;
mod operators;
mod path;
mod places;
mod quic;
mod reload;
mod shaping;
mod state_files;
mod streams;
mod trust;

use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::Endpoint;
use tokio::net::TcpListener;
use tokio::task::{JoinError, JoinSet};
use towpath_certs::tls;
use towpath_daemon::config::Check;
use towpath_daemon::http;
use towpath_daemon::lock::Lock;
use towpath_daemon::shutdown::{self, Shutdown, Trigger};
use towpath_daemon::socket::Socket;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::Name;

pub use measuring::{bench_service, probe};
pub use operators::status;
pub use path::{estimate, loss_gaps};
pub use quic::transport;
pub use shaping::{shaper, shares};

use crate::config::Config;
use crate::core::Core;
use crate::links::peer::State;
use crate::links::{listen, peers};
use crate::measuring::outlook;
use crate::operators::status::StatusView;
use crate::operators::{admin, last_hour, service_manager};
use crate::quic::malformed::Counting;
use crate::quic::wire;
use crate::shaping::timetable;
use crate::state_files::Folder;
use crate::streams::local;

/// How long the farewell to peers may take; then how long the tunnel's tasks may take to end.
const FAREWELL: Duration = Duration::from_millis(500);

/// A running tunnel. Dropping it stops it without a farewell to its peers.
#[derive(Debug)]
pub struct Tunnel {
    core: Arc<Core>,
    endpoint: Option<Endpoint>,
    listen_address: Option<SocketAddr>,
    http_address: Option<SocketAddr>,
    trigger: Trigger,
    tasks: JoinSet<Result<(), Fault>>,
    /// Keeps other tunnels out of the state folder while this one runs.
    _state_lock: Option<Lock>,
}

impl Tunnel {
    /// Starts a tunnel inside the current tokio runtime. Its sockets are bound when this returns.
    ///
    /// # Errors
    ///
    /// `E_CONFIG`, `E_CERTIFICATE`, `E_ALREADY_RUNNING`, `E_PATH` or `E_IO`, with a remedy.
    pub async fn start(config: &Config) -> Result<Self, Fault> {
        let hangups = service_manager::hangups()?;
        config.check().map_err(|wrong| {
            let detail = format!("{}: {}", wrong.key, wrong.why);
            Fault::new(Code::Config, detail)
        })?;
        let state = config.state_dir.as_deref().map(Folder::open).transpose()?;
        let (state, state_lock) = state.unzip();
        let core = Arc::new(Core::new(config, state)?);
        let (trigger, stop) = shutdown::channel();
        // Bound first because of their locks: a second tunnel should report that one is running,
        // not that the address is in use.
        let admin = Socket::bind(&config.admin.socket)?;
        let socket = Socket::bind(&config.socket)?;
        let endpoint = config.listen.map(|at| listen(&core, at)).transpose()?;
        let http = match config.admin.http {
            Some(address) => Some(http::bind_loopback(address).await?),
            None => None,
        };
        core.channels.begin(&core, &config.channels).await;
        let mut tunnel = Self {
            listen_address: endpoint.as_ref().and_then(|end| end.local_addr().ok()),
            http_address: http.as_ref().and_then(|http| http.local_addr().ok()),
            core,
            endpoint,
            trigger,
            tasks: JoinSet::new(),
            _state_lock: state_lock.flatten(),
        };
        tunnel.spawn(socket, admin, http, &stop);
        let telling = service_manager::tell(Arc::clone(&tunnel.core), hangups, stop);
        tunnel.tasks.spawn(telling);
        let host = tunnel.core.trust.host();
        let listen = tunnel.listen_address.map(tracing::field::display);
        let identity = tunnel.core.trust.current();
        let until = &identity.view().not_after;
        tracing::info!(%host, listen, certificate_until = until, "tunnel started");
        Ok(tunnel)
    }

    fn spawn(&mut self, socket: Socket, admin: Socket, http: Option<TcpListener>, stop: &Shutdown) {
        let (core, tasks) = (&self.core, &mut self.tasks);
        tasks.spawn(peers::keep(Arc::clone(core), stop.clone()));
        if let Some(endpoint) = self.endpoint.clone() {
            keep(
                tasks,
                listen::accept(Arc::clone(core), endpoint, stop.clone()),
            );
        }
        let endpoint = self.endpoint.clone();
        let (listening, until) = (Arc::clone(core), stop.clone());
        keep(tasks, async move { listening.network.keep(until).await });
        keep(tasks, trust::keep(Arc::clone(core), endpoint, stop.clone()));
        keep(tasks, trust::remember(Arc::clone(core), stop.clone()));
        keep(tasks, timetable::keep(Arc::clone(core), stop.clone()));
        keep(tasks, last_hour::keep(Arc::clone(core), stop.clone()));
        keep(tasks, outlook::keep(Arc::clone(core), stop.clone()));
        tasks.spawn(local::serve(Arc::clone(core), socket, stop.clone()));
        let (channels, until) = (Arc::clone(core), stop.clone());
        keep(tasks, async move {
            channels.channels.attend(&channels, until).await;
        });
        let router = admin::router(Arc::clone(core));
        tasks.spawn(http::serve_unix(admin, router.clone(), stop.clone()));
        if let Some(http) = http {
            keep(tasks, http::serve_loopback(http, router, stop.clone()));
        }
    }

    /// The UDP address where links are accepted.
    #[must_use]
    pub const fn listen_address(&self) -> Option<SocketAddr> {
        self.listen_address
    }

    /// The loopback address of the admin API.
    #[must_use]
    pub const fn http_address(&self) -> Option<SocketAddr> {
        self.http_address
    }

    /// Waits until the link to a site is up.
    ///
    /// # Errors
    ///
    /// `E_NOT_FOUND` for a site that is not a peer, `E_UNREACHABLE` with the latest reason if the
    /// link is not up within `wait`.
    pub async fn linked(&self, site: &Name, wait: Duration) -> Result<(), Fault> {
        let peer = self.core.peer(site)?;
        let mut changes = peer.subscribe();
        let is_up = changes.wait_for(State::is_usable);
        match tokio::time::timeout(wait, is_up).await {
            Ok(_) => Ok(()),
            Err(_) => peer.link().and_then(|link| {
                let detail = format!("{} does not answer", link.peer);
                Err(Fault::new(Code::Unreachable, detail))
            }),
        }
    }

    /// Reads certificates, key and lists again now, whether or not they changed, and the
    /// configuration if it came from a file.
    pub async fn reload(&self) {
        reload::all(&self.core).await;
    }

    /// Asks for a new link to a site. Its streams move to the new link; the old one works until
    /// then. Has an effect only on the side that dials.
    ///
    /// # Errors
    ///
    /// `E_NOT_FOUND` for a site that is not a peer.
    pub fn dial_anew(&self, site: &Name) -> Result<(), Fault> {
        self.core.peer(site)?.renew();
        Ok(())
    }

    /// Returns what `/status` would return.
    #[must_use]
    pub fn status(&self) -> StatusView {
        status::status(&self.core)
    }

    /// Runs until `stop` is requested or a part of the tunnel ends, then says farewell to the
    /// peers.
    ///
    /// # Errors
    ///
    /// The fault of the part that failed, or `E_STATE` if it ended without one.
    pub async fn run_until(mut self, mut stop: Shutdown) -> Result<(), Fault> {
        let ended = tokio::select! {
            () = stop.requested() => Ok(()),
            Some(ended) = self.tasks.join_next() => Err(early(ended)),
        };
        self.stop().await;
        ended
    }

    /// Stops the tunnel: tells the peers, ends local streams, closes sockets, and saves state.
    pub async fn stop(mut self) {
        self.trigger.stop();
        let why = Fault::new(Code::Gone, "the tunnel stops");
        for peer in self.core.peers.all().values() {
            peer.streams.cut_all(&why);
            // Replaced links too: a stream that has not moved yet would wait for its next link.
            for link in peer.links() {
                link.close(why.code, &why.detail);
            }
        }
        if let Some(endpoint) = &self.endpoint {
            endpoint.close(wire::code(why.code), why.detail.as_bytes());
            // An absent peer never acknowledges, so this may time out.
            let _ = tokio::time::timeout(FAREWELL, endpoint.wait_idle()).await;
        }
        let all = async { while self.tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(FAREWELL, all).await;
        // After the farewell, so that peers need not wait for the disk.
        trust::remember_now(&self.core).await;
        outlook::save_all(&self.core).await;
    }
}

/// Runs a tunnel until `stop` is requested; SIGHUP makes it read its certificates and its
/// configuration again.
///
/// # Errors
///
/// Those of [`Tunnel::start`] and [`Tunnel::run_until`].
pub async fn run(config: &Config, stop: Shutdown) -> Result<(), Fault> {
    let tunnel = Tunnel::start(config).await?;
    tunnel.run_until(stop).await
}

/// Spawns a part of the tunnel that cannot fail.
fn keep(tasks: &mut JoinSet<Result<(), Fault>>, part: impl Future<Output = ()> + Send + 'static) {
    tasks.spawn(async move {
        part.await;
        Ok(())
    });
}

/// Turns the early end of a part into a fault. The tunnel cannot run without any of its parts, and
/// a service manager restarts only what has failed.
fn early(ended: Result<Result<(), Fault>, JoinError>) -> Fault {
    let wrong = |why: &dyn Display| Fault::new(Code::State, format!("a part of the tunnel: {why}"));
    match ended {
        Ok(Ok(())) => wrong(&"ended early"),
        Ok(Err(fault)) => fault,
        Err(error) => wrong(&error),
    }
}

fn listen(core: &Arc<Core>, address: SocketAddr) -> Result<Endpoint, Fault> {
    let identity = core.trust.current();
    // Without a key no connection is accepted until the files can be used.
    let server = identity.has_key().then(|| {
        tls::server_config(&identity, &core.rejections)
            .and_then(|tls| transport::server(tls, &core.limits))
    });
    let server = server.transpose()?;
    let socket = transport::listening_socket(address)?;
    let settings = transport::endpoint(&core.limits);
    let counting = Counting {
        driver: core.legs.drivers().listening(),
        core: Arc::clone(core),
    };
    Endpoint::new(settings, server, socket, Arc::new(counting))
        .map_err(|error| Fault::new(Code::Io, format!("UDP endpoint at {address}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_part_that_ends_by_itself_is_a_fault() {
        let quiet = early(Ok(Ok(())));
        assert_eq!(quiet.code, Code::State, "{quiet}");
        let told = early(Ok(Err(Fault::new(Code::Io, "a socket is gone"))));
        assert_eq!(told.code, Code::Io, "{told}");
        let panicked = tokio::spawn(async { panic!("on purpose") }).await;
        assert_eq!(early(panicked).code, Code::State);
    }
}
