//! One site of the demo: a host with a tunnel and a migrator.

use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use std::io::Write;

use serde::Serialize;
use tokio::time::{Instant, sleep};
use towpath_certs::authority::IdentityFiles;
use towpath_certs::{Authority, Validity};
use towpath_daemon::client::Client;
use towpath_daemon::log;
use towpath_daemon::problem::Problem;
use towpath_migrator::config as migrator;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::{HostIdentity, Name};
use towpath_protocol::rate::Rate;
use towpath_protocol::size::Size;
use towpath_tunnel::config as tunnel;
use towpath_tunnel::status::{LinkState, StatusView};

use super::Folders;
use super::process::Process;
use super::report::DaemonReport;
use crate::failure::Failure;

/// The service at which a migrator receives guests.
const SERVICE: &str = "migrator";

/// How long the demo's certificates are valid.
const CERTIFICATE_VALIDITY: Duration = Duration::from_hours(24);

/// How long a link may take to come up. A handshake takes three round trips, and a lost datagram
/// costs a second.
const LINK_WAIT: Duration = Duration::from_secs(20);

/// Pause between two checks of a link that is not up yet.
const LINK_PAUSE: Duration = Duration::from_millis(20);

/// What is needed to start a site.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    /// Name of the site.
    pub(super) site: &'a Name,
    /// The other site.
    pub(super) peer: &'a Name,
    /// Address at which the site accepts links, if it does.
    pub(super) listen: Option<SocketAddr>,
    /// Address at which the site reaches the other site, if it dials.
    pub(super) peer_address: Option<SocketAddr>,
    /// The rate of the link, if it is known.
    pub(super) rate: Option<Rate>,
    /// Memory that guests of the site may use.
    pub(super) quota: Size,
}

/// A site that runs: its name, and clients of its daemons.
#[derive(Debug, Clone)]
pub(super) struct Site {
    pub(super) name: Name,
    pub(super) migrator: Client,
    tunnel: Client,
}

/// The processes of a site.
#[derive(Debug)]
pub(super) struct Daemons {
    tunnel: Process,
    migrator: Process,
}

impl Plan<'_> {
    /// Makes the site's files and starts its two daemons.
    pub(super) async fn start(
        &self,
        authority: &Authority,
        folders: &Folders,
    ) -> Result<(Site, Daemons), Failure> {
        let files = folders.files.join(self.site.as_str());
        let run = folders.run.join(self.site.as_str());
        for folder in [&files, &run] {
            let mut builder = std::fs::DirBuilder::new();
            let made = builder.recursive(true).mode(0o700).create(folder);
            made.map_err(|error| Fault::new(Code::Io, format!("{}: {error}", folder.display())))?;
        }
        let host: Name = "host-1".parse()?;
        let identity = HostIdentity {
            trust_domain: authority.trust_domain().clone(),
            site: self.site.clone(),
            host,
        };
        let validity = Validity::lasting(CERTIFICATE_VALIDITY, SystemTime::now());
        let certificates = authority.issue(&identity, validity, &files.join("certificates"))?;
        let migrator = self.migrator_config(identity, &files, &run);
        let tunnel = self.tunnel_config(&migrator, certificates, &run)?;
        let tunnel_file = write_config(&files.join("tunnel.toml"), &tunnel)?;
        let migrator_file = write_config(&files.join("migrator.toml"), &migrator)?;
        let site = self.site;
        let start = async |name: &str, config: &Path| {
            let process = format!("{name}-{site}");
            Process::start_daemon(&process, &[name, "run"], config, &folders.files, &run).await
        };
        let daemons = Daemons {
            tunnel: start("tunnel", &tunnel_file).await?,
            migrator: start("migrator", &migrator_file).await?,
        };
        let site = Site {
            name: self.site.clone(),
            migrator: Client::new(migrator.socket()),
            tunnel: Client::new(tunnel.admin.socket),
        };
        Ok((site, daemons))
    }

    fn tunnel_config(
        &self,
        migrator: &migrator::Config,
        certificates: IdentityFiles,
        run: &Path,
    ) -> Result<tunnel::Config, Fault> {
        let mut config = tunnel::Config::new(
            (self.site.clone(), migrator.host.clone()),
            migrator.tunnel_socket(),
            run.join("admin.sock"),
            certificates.into(),
        );
        config.listen = self.listen;
        let mut peer = tunnel::PeerConfig::new(self.peer.clone());
        peer.address = self.peer_address.map(|address| address.to_string());
        peer.send_rate = self.rate;
        peer.receive_rate = self.rate;
        config.peers.push(peer);
        config.services.push(tunnel::ServiceConfig::told(
            SERVICE.parse()?,
            migrator.service_socket(),
            vec![self.peer.clone()],
        ));
        Ok(config)
    }

    fn migrator_config(
        &self,
        identity: HostIdentity,
        files: &Path,
        run: &Path,
    ) -> migrator::Config {
        migrator::Config {
            trust_domain: identity.trust_domain,
            site: identity.site,
            host: identity.host,
            state_dir: files.join("state"),
            run_dir: run.to_owned(),
            socket: None,
            tunnel_socket: None,
            service_socket: None,
            listen: None,
            guest_command: None,
            quota: migrator::Quota {
                memory: self.quota,
                ..migrator::Quota::default()
            },
            limits: migrator::Limits::default(),
            metrics: migrator::MetricsOptions::default(),
            log: log::Options::default(),
        }
    }
}

impl Site {
    /// Waits until the link to the other site is up.
    pub(super) async fn wait_for_link(&self) -> Result<(), Failure> {
        let deadline = Instant::now() + LINK_WAIT;
        loop {
            let status: StatusView = self.tunnel.get("/status").await?;
            if status
                .links
                .iter()
                .all(|link| link.state != LinkState::Down)
            {
                return Ok(());
            }
            if Instant::now() > deadline {
                let reasons = status.links.iter().map(|link| link.reason.clone());
                let reasons: Vec<String> = reasons.collect();
                let problem = Problem::new(Code::Unreachable, reasons.join("; "));
                return Err(problem
                    .message("the link between the sites did not come up")
                    .into());
            }
            sleep(LINK_PAUSE).await;
        }
    }
}

impl Daemons {
    /// What each daemon has used so far.
    pub(super) fn taken(&self) -> Vec<DaemonReport> {
        [&self.tunnel, &self.migrator]
            .into_iter()
            .filter_map(Process::taken)
            .collect()
    }

    /// Waits until either daemon ends by itself, which is a failure.
    pub(super) async fn ended_early(&mut self) -> Failure {
        tokio::select! {
            failure = self.tunnel.ended_early() => failure,
            failure = self.migrator.ended_early() => failure,
        }
    }

    /// Ends both daemons, and the guests with them.
    pub(super) async fn end(self) {
        self.migrator.end().await;
        self.tunnel.end().await;
    }
}

fn write_config<T: Serialize>(path: &Path, config: &T) -> Result<PathBuf, Fault> {
    let io = |error: &dyn std::fmt::Display| {
        Fault::new(Code::Io, format!("{}: {error}", path.display()))
    };
    let text = toml::to_string(config).map_err(|error| io(&error))?;
    let file = std::fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| io(&error))?;
    Ok(path.to_owned())
}
