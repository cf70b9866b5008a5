//! What all parts of a running tunnel share.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use towpath_certs::{Rejections, tls};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::Name;
use towpath_protocol::preamble::{LinkId, RunId, StreamId};

use crate::channels::Channels;
use crate::config::{Config, Limits};
use crate::links::network::Network;
use crate::links::peer::Peer;
use crate::links::peers::Peers;
use crate::measuring::outlook::Outlook;
use crate::path::windows::Memory;
use crate::quic::threads::Legs;
use crate::reload::Reloads;
use crate::state_files::Folder;
use crate::streams::pool::Pool;
use crate::streams::services::{Service, Services};
use crate::trust::Trust;
use crate::trust::dropped::Dropped;
use crate::trust::failures::LastRefused;

/// What all parts of a running tunnel share.
#[derive(Debug)]
pub(crate) struct Core {
    /// The configuration as read at the start.
    pub config: Config,
    pub site: Name,
    pub trust: Trust,
    /// The state folder, if one is configured.
    pub state: Option<Arc<Folder>>,
    pub limits: Limits,
    pub peers: Peers,
    pub services: Services,
    pub channels: Channels,
    pub pool: Arc<Pool>,
    pub window_memory: Arc<Memory>,
    pub rejections: Arc<Rejections>,
    pub dropped: Dropped,
    pub refused: LastRefused,
    pub reloads: Reloads,
    pub began: Instant,
    pub outlook: Outlook,
    pub network: Network,
    /// Identifies this run of the tunnel; streams do not outlive it.
    pub run: RunId,
    pub legs: Legs,
}

impl Core {
    pub(crate) fn new(config: &Config, state: Option<Arc<Folder>>) -> Result<Self, Fault> {
        let us = (&config.site, &config.host);
        let trust = Trust::load(&config.certificates, us, state.as_ref())?;
        let identity = trust.current();
        let rejections = Arc::new(Rejections::default());
        let mut peers = BTreeMap::new();
        for peer in &config.peers {
            let (limits, zone) = (&config.limits, &config.time_zone);
            let made = Peer::new(peer, &config.site, &identity, &rejections, limits, zone)?;
            peers.insert(peer.site.clone(), Arc::new(made));
        }
        Ok(Self {
            config: config.clone(),
            site: config.site.clone(),
            services: Services::new(&config.services),
            limits: config.limits.clone(),
            channels: Channels::new(state.clone()),
            pool: Arc::default(),
            window_memory: Memory::new(config.limits.window_memory.bytes()),
            dropped: Dropped::default(),
            refused: LastRefused::default(),
            reloads: Reloads::default(),
            began: Instant::now(),
            outlook: Outlook::new(config, state.clone()),
            network: Network::default(),
            run: RunId(random()?),
            legs: Legs::start()?,
            state,
            trust,
            peers: Peers::new(peers),
            rejections,
        })
    }

    /// Why the state folder cannot be written, if the last write there failed.
    pub(crate) fn state_problem(&self) -> Option<Fault> {
        self.state.as_ref().and_then(|folder| folder.problem())
    }

    /// Returns the peer of a site.
    pub(crate) fn peer(&self, site: &Name) -> Result<Arc<Peer>, Fault> {
        self.peers.get(site).ok_or_else(|| {
            let detail = format!("{site} is no peer of this tunnel");
            Fault::new(Code::NotFound, detail).remedy(self.known_peers())
        })
    }

    /// Remedy for an unknown peer: names the known ones.
    pub(crate) fn known_peers(&self) -> String {
        one_of("peers", self.peers.all().keys())
    }

    /// Returns a local service.
    pub(crate) fn service(&self, name: &Name) -> Result<Arc<Service>, Fault> {
        self.services.get(name).ok_or_else(|| {
            let detail = format!("no service of this tunnel is called {name}");
            Fault::new(Code::NotFound, detail)
                .remedy(one_of("services", self.services.all().keys()))
        })
    }

    /// The sites of the peers without a link that can be used now.
    pub(crate) fn unlinked(&self) -> Vec<String> {
        let peers = self.peers.all();
        let unlinked = peers.values().filter(|peer| !peer.state().is_usable());
        unlinked.map(|peer| peer.site.to_string()).collect()
    }

    /// How long a stream may make no progress.
    pub(crate) const fn stall(&self) -> Duration {
        self.limits.stall_wait.duration()
    }

    /// How long to wait for a preamble.
    pub(crate) const fn preamble_wait(&self) -> Duration {
        self.limits.preamble_wait.duration()
    }
}

/// Most names that a remedy lists; enough for every configuration written by hand.
const NAMED_COUNT_MAX: usize = 16;

/// Makes a tunnel use what was added to its file.
const RELOAD: &str = "have it read again with `systemctl reload towpath-tunnel`";

/// Remedy for an unknown name: lists the valid ones.
fn one_of<'a>(what: &str, names: impl ExactSizeIterator<Item = &'a Name>) -> String {
    if names.len() == 0 {
        return format!(
            "add it to `{what}` in the tunnel's configuration, which has none; {RELOAD}"
        );
    }
    let more = names.len().saturating_sub(NAMED_COUNT_MAX);
    let named: Vec<_> = names.take(NAMED_COUNT_MAX).map(Name::as_str).collect();
    let named = named.join(", ");
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    format!("{what} in use: {named}{more}; if another was added to the file, {RELOAD}")
}

/// Returns an unguessable link number.
///
/// # Errors
///
/// `E_IO` if the system has no random numbers.
pub(crate) fn random_link() -> Result<LinkId, Fault> {
    random().map(LinkId)
}

/// Returns an unguessable stream number.
///
/// # Errors
///
/// `E_IO` if the system has no random numbers.
pub(crate) fn random_stream() -> Result<StreamId, Fault> {
    random().map(StreamId)
}

fn random() -> Result<u128, Fault> {
    let mut bytes = [0; 16];
    tls::provider()
        .secure_random
        .fill(&mut bytes)
        .map_err(|_| Fault::new(Code::Io, "no random numbers to be had"))?;
    Ok(u128::from_le_bytes(bytes))
}
