//! The local services that peers may reach.

use std::collections::BTreeMap;
use std::fmt::{Display, Formatter};
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::RwLock;
use towpath_protocol::endpoint::Endpoint;
use towpath_protocol::identity::Name;

use crate::config::ServiceConfig;
use crate::links::peers::PeersBySite;
use crate::streams::table::Meter;

/// Services by name, as they are at one moment.
pub(crate) type ServicesByName = BTreeMap<Name, Arc<Service>>;

/// A local service that peers may reach.
#[derive(Debug)]
pub(crate) struct Service {
    pub reach: Reach,
    pub allow: Vec<Name>,
    pub meter: Arc<Meter>,
}

impl Service {
    fn new(config: &ServiceConfig, meter: Arc<Meter>) -> Self {
        Self {
            reach: match &config.target {
                Some(target) => Reach::Plain(target.clone()),
                None => Reach::Told(config.socket.clone()),
            },
            allow: config.allow.clone(),
            meter,
        }
    }
}

/// How connections to a service are made.
#[derive(Debug)]
pub(crate) enum Reach {
    /// At a Unix socket; it is first told who opened the stream.
    Told(PathBuf),
    /// At its own listening address; it is not told who connects.
    Plain(Endpoint),
}

impl Display for Reach {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Told(socket) => write!(f, "{}", socket.display()),
            Self::Plain(endpoint) => write!(f, "{endpoint}"),
        }
    }
}

/// The local services of a running tunnel. Streams hold what they need of their service themselves.
#[derive(Debug)]
pub(crate) struct Services(RwLock<Arc<ServicesByName>>);

impl Services {
    pub(crate) fn new(configs: &[ServiceConfig]) -> Self {
        let services = configs.iter().map(|config| {
            let meter = Arc::new(Meter::capped(config.cap));
            (config.name.clone(), Arc::new(Service::new(config, meter)))
        });
        Self(RwLock::new(Arc::new(services.collect())))
    }

    /// Replaces the services. A service that stays keeps its meter, so its counts go on and its
    /// streams obey the new cap.
    pub(crate) fn replace(&self, configs: &[ServiceConfig]) {
        let mut all = self.0.write();
        let services = configs.iter().map(|config| {
            let known = all.get(&config.name).map(|known| Arc::clone(&known.meter));
            let meter = known.unwrap_or_default();
            meter.quota.set(config.cap);
            (config.name.clone(), Arc::new(Service::new(config, meter)))
        });
        *all = Arc::new(services.collect());
    }

    /// Cuts the streams that peers have begun and may not have any more: those to a service that is
    /// gone, or whose list of sites no longer names theirs.
    pub(crate) fn cut_denied(&self, peers: &PeersBySite, ours: &Name) {
        let services = self.all();
        for (site, peer) in peers {
            let may_have = |name: &Name| {
                let service = services.get(name);
                service.is_some_and(|service| service.allow.contains(site))
            };
            for (service, count) in peer.streams.cut_denied(ours, may_have) {
                tracing::warn!(target: "audit", peer = %site, %service, count, "service withdrawn: streams cut");
            }
        }
    }

    /// The services of this moment.
    pub(crate) fn all(&self) -> Arc<ServicesByName> {
        Arc::clone(&self.0.read())
    }

    /// The service of this name.
    pub(crate) fn get(&self, name: &Name) -> Option<Arc<Service>> {
        self.0.read().get(name).cloned()
    }
}
