//! One site of a lab: a host with a tunnel and a migrator, and calls to their APIs.

use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Runtime;
use towpath_certs::{Authority, Validity};
use towpath_daemon::client::Client;
use towpath_daemon::log;
use towpath_daemon::problem::Problem;
use towpath_migrator::api::{
    GuestList, GuestRequest, GuestView, MigrationList, MigrationRequest, MigrationView,
    StoppedView, VerifyView,
};
use towpath_migrator::config as migrator;
use towpath_protocol::identity::{HostIdentity, Name};
use towpath_protocol::rate::Rate;
use towpath_tunnel::channels::ChannelSpec;
use towpath_tunnel::config::{self as tunnel, CertificatesConfig};
use towpath_tunnel::status::{LinkState, StatusView};

use crate::process::{Daemon, Plan};

/// How long an answer may take: starting a guest fills its memory, on a busy machine.
const ANSWER_WAIT: Duration = Duration::from_secs(20);

/// The list of revoked certificates, in a site's folder.
const LIST_FILE: &str = "crl.pem";

/// Folder of its host's certificate and key.
const CERTIFICATES: &str = "certificates";

/// Interval between checks of a condition.
pub(crate) const LOOK_PAUSE: Duration = Duration::from_millis(5);

/// One of the two sites.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The one that dials.
    Edge,
    /// The one that is dialled.
    Region,
}

impl Place {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Edge, Self::Region];

    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Edge => Self::Region,
            Self::Region => Self::Edge,
        }
    }

    /// The site's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Edge => "edge",
            Self::Region => "region",
        }
    }

    /// The site's name as a [`Name`].
    ///
    /// # Panics
    ///
    /// Never: both names are valid.
    #[must_use]
    pub fn name(self) -> Name {
        self.as_str().parse().expect("a name")
    }
}

/// The address on which the site's tunnel listens, or which it dials.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Reach {
    Listen(SocketAddr),
    Dial(SocketAddr),
}

/// A site and its daemons.
#[derive(Debug)]
pub struct Site {
    place: Place,
    identity: HostIdentity,
    folder: PathBuf,
    client: Client,
    admin: Client,
    runtime: Arc<Runtime>,
    tunnel_plan: Plan,
    migrator_plan: Plan,
    tunnel: Option<Daemon>,
    migrator: Option<Daemon>,
}

impl Site {
    /// Creates the site's files below `root`; nothing runs yet.
    pub(crate) fn new(
        place: Place,
        root: &Path,
        authority: &Authority,
        (reach, rate): (Reach, Rate),
        runtime: Arc<Runtime>,
    ) -> Self {
        let folder = root.join(place.as_str());
        let run = folder.join("run");
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(&run).expect("a folder for a site");
        let identity = HostIdentity {
            trust_domain: authority.trust_domain().clone(),
            site: place.name(),
            host: "host-1".parse().expect("a name"),
        };
        let mut certificates = certified(authority, &identity, &folder);
        certificates.crl = Some(folder.join(LIST_FILE));
        let migrator = migrator::Config {
            trust_domain: identity.trust_domain.clone(),
            site: identity.site.clone(),
            host: identity.host.clone(),
            state_dir: folder.join("state"),
            run_dir: run.clone(),
            socket: None,
            tunnel_socket: None,
            service_socket: None,
            listen: None,
            guest_command: None,
            quota: migrator::Quota::default(),
            limits: migrator::Limits::default(),
            metrics: migrator::MetricsOptions::default(),
            log: log::Options::default(),
        };
        let tunnel = tunnel_config(place, &migrator, (reach, rate), certificates, &run);
        let plan = |kind: &'static str, config| Plan {
            kind,
            config,
            run: run.clone(),
            log: folder.join(format!("{kind}.log")),
        };
        Self {
            place,
            identity,
            client: Client::new(migrator.socket()).timeout(ANSWER_WAIT),
            admin: Client::new(tunnel.admin.socket.clone()).timeout(ANSWER_WAIT),
            runtime,
            tunnel_plan: plan("tunnel", write(&folder.join("tunnel.toml"), &tunnel)),
            migrator_plan: plan("migrator", write(&folder.join("migrator.toml"), &migrator)),
            tunnel: None,
            migrator: None,
            folder,
        }
    }

    /// Gives its host a new key and certificate, and starts its tunnel with them.
    pub(crate) fn certify(&mut self, authority: &Authority) {
        self.kill_tunnel();
        let old = std::fs::remove_dir_all(self.folder.join(CERTIFICATES));
        old.expect("the old certificate can be removed");
        certified(authority, &self.identity, &self.folder);
        self.start_tunnel();
    }

    /// Which site it is.
    #[must_use]
    pub const fn place(&self) -> Place {
        self.place
    }

    /// The folder of all its files.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The identity of its host.
    #[must_use]
    pub const fn identity(&self) -> &HostIdentity {
        &self.identity
    }

    /// Where its tunnel looks for the list of revoked certificates.
    pub(crate) fn list(&self) -> PathBuf {
        self.folder.join(LIST_FILE)
    }

    /// The folder of a guest.
    #[must_use]
    pub fn guest_folder(&self, guest: &Name) -> PathBuf {
        self.folder.join("state/guests").join(guest.as_str())
    }

    /// The socket at which the tunnel hands over streams for the migrator.
    #[must_use]
    pub fn service_socket(&self) -> PathBuf {
        self.folder.join("run/migrator-service.sock")
    }

    /// The migrator's log.
    #[must_use]
    pub fn migrator_log(&self) -> &Path {
        &self.migrator_plan.log
    }

    /// The tunnel's log.
    #[must_use]
    pub fn tunnel_log(&self) -> &Path {
        &self.tunnel_plan.log
    }

    /// A client of the migrator's API, for another thread.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Starts the tunnel if it does not run.
    ///
    /// # Panics
    ///
    /// If it does not start.
    pub fn start_tunnel(&mut self) {
        if self.tunnel.is_none() {
            let started = self.tunnel_plan.start(None);
            self.tunnel =
                Some(started.unwrap_or_else(|why| panic!("{}: {why}", self.place.as_str())));
        }
    }

    /// Starts the migrator if it does not run.
    ///
    /// # Panics
    ///
    /// If it does not start.
    pub fn start_migrator(&mut self) {
        self.start_migrator_with(None);
    }

    /// Starts a migrator that kills itself right after it has carried out a step, such as
    /// `source:freeze`.
    ///
    /// # Panics
    ///
    /// If it does not start.
    pub fn start_migrator_with(&mut self, failpoint: Option<&str>) {
        if self.migrator.is_none() {
            let started = self.migrator_plan.start(failpoint);
            self.migrator =
                Some(started.unwrap_or_else(|why| panic!("{}: {why}", self.place.as_str())));
        }
    }

    /// Starts a migrator that may kill itself before it is ready, without waiting for it.
    ///
    /// # Panics
    ///
    /// If the program cannot be started.
    pub fn spawn_migrator(&mut self, failpoint: Option<&str>) {
        if self.migrator.is_none() {
            let started = self.migrator_plan.spawn(failpoint, None);
            self.migrator =
                Some(started.unwrap_or_else(|why| panic!("{}: {why}", self.place.as_str())));
        }
    }

    /// `kill -9` of the tunnel.
    pub fn kill_tunnel(&mut self) {
        if let Some(tunnel) = self.tunnel.take() {
            tunnel.kill();
        }
    }

    /// `kill -9` of the migrator.
    pub fn kill_migrator(&mut self) {
        if let Some(migrator) = self.migrator.take() {
            migrator.kill();
        }
    }

    /// Changes the migrator's configuration and starts it with that; kills a running one first.
    ///
    /// # Panics
    ///
    /// If it does not start.
    pub fn reconfigure_migrator(&mut self, change: impl FnOnce(&mut migrator::Config)) {
        self.kill_migrator();
        let file = &self.migrator_plan.config;
        let mut config = migrator::Config::load(file).expect("the migrator's configuration");
        change(&mut config);
        write(file, &config);
        self.start_migrator();
    }

    /// The migrator's process ID.
    ///
    /// # Panics
    ///
    /// If it does not run.
    #[must_use]
    pub fn migrator_process(&self) -> Pid {
        let migrator = self.migrator.as_ref().expect("a migrator");
        migrator.id()
    }

    /// The peak resident memory of its migrator and its tunnel, in KiB.
    ///
    /// # Panics
    ///
    /// If one of them does not run.
    #[must_use]
    pub fn peaks_kib(&self) -> [u64; 2] {
        let daemons = [&self.migrator, &self.tunnel];
        daemons.map(|daemon| daemon.as_ref().expect("a daemon").peak_kib())
    }

    /// Stops both daemons as a package upgrade does.
    ///
    /// # Panics
    ///
    /// If one of them does not exit.
    pub fn stop_daemons(&mut self) {
        for daemon in [self.migrator.take(), self.tunnel.take()]
            .into_iter()
            .flatten()
        {
            daemon.stop().expect("a daemon ends when it is asked to");
        }
    }

    /// Waits until the migrator has killed itself after the step it was started with; false on a
    /// timeout.
    ///
    /// # Errors
    ///
    /// If it ended in any other way.
    ///
    /// # Panics
    ///
    /// If it does not run.
    pub fn migrator_dies(&mut self, wait: Duration) -> Result<bool, String> {
        let migrator = self.migrator.as_mut().expect("a migrator that may die");
        let Some(status) = migrator.wait_for_end(wait) else {
            return Ok(false);
        };
        self.migrator = None;
        if status.signal() == Some(Signal::KILL.as_raw()) {
            return Ok(true);
        }
        Err(format!("the migrator ended by itself: {status}"))
    }

    /// Sends a signal to the migrator.
    ///
    /// # Panics
    ///
    /// If it does not run.
    pub fn signal_migrator(&self, signal: Signal) {
        let migrator = self.migrator.as_ref().expect("a migrator to signal");
        kill_process(migrator.id(), signal).expect("a migrator can be signalled");
    }

    /// Whether the migrator runs.
    pub fn has_migrator(&mut self) -> bool {
        let ended = self
            .migrator
            .as_mut()
            .is_none_or(|migrator| migrator.ended().is_some());
        !ended
    }

    /// Starts a second migrator on the same state folder and returns its exit status.
    #[must_use]
    pub fn second_migrator(&self) -> Option<ExitStatus> {
        self.migrator_plan.start_second()
    }

    /// The tunnel's status.
    ///
    /// # Errors
    ///
    /// The tunnel's answer.
    pub fn tunnel_status(&self) -> Result<StatusView, Problem> {
        self.runtime.block_on(self.admin.get("/status"))
    }

    /// Whether the link to the other site is up.
    #[must_use]
    pub fn has_link(&self) -> bool {
        self.tunnel_status().is_ok_and(|status| {
            status
                .links
                .iter()
                .all(|link| link.state != LinkState::Down)
        })
    }

    /// The metrics of the tunnel and of the migrator, as a scraper gets them.
    ///
    /// # Errors
    ///
    /// The daemon's answer.
    pub fn metrics(&self) -> Result<[String; 2], Problem> {
        let of = |client: &Client| self.runtime.block_on(client.text("/metrics"));
        Ok([of(&self.admin)?, of(&self.client)?])
    }

    /// Opens a channel at the site's tunnel.
    ///
    /// # Errors
    ///
    /// The tunnel's answer.
    pub fn open_channel(&self, spec: &ChannelSpec) -> Result<(), Problem> {
        let opened = self.admin.post("/v1/channels", spec);
        let opened: Result<serde_json::Value, _> = self.runtime.block_on(opened);
        opened.map(drop)
    }

    /// Waits until the link is up.
    ///
    /// # Panics
    ///
    /// If it does not come up in time.
    pub fn wait_for_link(&self, wait: Duration) {
        let deadline = Instant::now() + wait;
        while !self.has_link() {
            assert!(Instant::now() < deadline, "no link after {wait:?}");
            std::thread::sleep(LOOK_PAUSE);
        }
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Problem> {
        self.runtime.block_on(self.client.get(path))
    }

    fn post<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, Problem> {
        self.runtime.block_on(self.client.post(path, body))
    }

    /// Creates and runs a guest.
    ///
    /// # Errors
    ///
    /// The migrator's answer.
    pub fn start_guest(&self, request: &GuestRequest) -> Result<GuestView, Problem> {
        self.post("/v1/guests", request)
    }

    /// A guest as this site sees it; `None` if it was never here.
    ///
    /// # Errors
    ///
    /// The migrator's answer.
    pub fn guest(&self, guest: &Name) -> Result<Option<GuestView>, Problem> {
        // A name may be listed twice while a guest that never arrived is being forgotten.
        let list: GuestList = self.get("/v1/guests")?;
        Ok(list.guests.into_iter().find(|view| view.name == *guest))
    }

    /// Starts a move to the other site.
    ///
    /// # Errors
    ///
    /// The migrator's answer.
    pub fn migrate(&self, request: &MigrationRequest) -> Result<MigrationView, Problem> {
        self.post("/v1/migrations", request)
    }

    /// All moves of a guest.
    ///
    /// # Errors
    ///
    /// The migrator's answer.
    pub fn moves(&self, guest: &Name) -> Result<Vec<MigrationView>, Problem> {
        let list: MigrationList = self.get("/v1/migrations")?;
        let moves = list.migrations.into_iter();
        Ok(moves.filter(|view| view.guest == *guest).collect())
    }

    /// Cancels a move.
    ///
    /// # Errors
    ///
    /// The migrator's answer.
    pub fn cancel(&self, view: &MigrationView) -> Result<MigrationView, Problem> {
        self.post(&format!("/v1/migrations/{}/cancel", view.id), &())
    }

    /// Verifies every page of a guest.
    ///
    /// # Errors
    ///
    /// The migrator's answer.
    pub fn verify(&self, guest: &Name) -> Result<VerifyView, Problem> {
        self.post(&format!("/v1/guests/{guest}/verify"), &())
    }

    /// Boots a guest whose process ended.
    ///
    /// # Errors
    ///
    /// The migrator's answer.
    pub fn boot(&self, guest: &Name) -> Result<GuestView, Problem> {
        self.post(&format!("/v1/guests/{guest}/start"), &())
    }

    /// Gives up the memory that is missing at a guest's source, which is believed lost, and boots
    /// the guest.
    ///
    /// # Errors
    ///
    /// The migrator's answer.
    pub fn give_up_missing(&self, guest: &Name) -> Result<GuestView, Problem> {
        self.post(&format!("/v1/guests/{guest}/give-up"), &())
    }

    /// Ends a guest and forgets it.
    ///
    /// # Errors
    ///
    /// The migrator's answer.
    pub fn stop_guest(&self, guest: &Name) -> Result<StoppedView, Problem> {
        let path = format!("/v1/guests/{guest}");
        self.runtime.block_on(self.client.delete(&path))
    }
}

fn certified(authority: &Authority, identity: &HostIdentity, folder: &Path) -> CertificatesConfig {
    let validity = Validity::lasting(Duration::from_hours(24), SystemTime::now());
    let issued = authority.issue(identity, validity, &folder.join(CERTIFICATES));
    issued.expect("a certificate").into()
}

fn tunnel_config(
    place: Place,
    migrator: &migrator::Config,
    (reach, rate): (Reach, Rate),
    certificates: CertificatesConfig,
    run: &Path,
) -> tunnel::Config {
    let peer = place.other().name();
    let mut config = tunnel::Config::new(
        (place.name(), migrator.host.clone()),
        migrator.tunnel_socket(),
        run.join("admin.sock"),
        certificates,
    );
    let mut way = tunnel::PeerConfig::new(peer.clone());
    way.send_rate = Some(rate);
    way.receive_rate = Some(rate);
    match reach {
        Reach::Listen(address) => config.listen = Some(address),
        Reach::Dial(address) => way.address = Some(address.to_string()),
    }
    config.peers.push(way);
    config.services.push(tunnel::ServiceConfig::told(
        "migrator".parse().expect("a name"),
        migrator.service_socket(),
        vec![peer],
    ));
    config
}

fn write<T: Serialize>(path: &Path, config: &T) -> PathBuf {
    let text = toml::to_string(config).expect("a configuration can be written");
    std::fs::write(path, text).expect("a configuration can be written");
    path.to_owned()
}
