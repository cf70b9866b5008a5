//! The peers of a running tunnel.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;
use towpath_protocol::identity::Name;

use crate::links::peer::Peer;

/// Peers by site, as they are at one moment.
pub(crate) type PeersBySite = BTreeMap<Name, Arc<Peer>>;

/// The peers of a running tunnel. Links and streams hold their peer themselves and do not look it
/// up here.
#[derive(Debug)]
pub(crate) struct Peers(watch::Sender<Arc<PeersBySite>>);

impl Peers {
    pub(crate) fn new(peers: PeersBySite) -> Self {
        Self(watch::channel(Arc::new(peers)).0)
    }

    /// The peers of this moment.
    pub(crate) fn all(&self) -> Arc<PeersBySite> {
        Arc::clone(&self.0.borrow())
    }

    /// The peer of a site.
    pub(crate) fn get(&self, site: &Name) -> Option<Arc<Peer>> {
        self.0.borrow().get(site).cloned()
    }

    /// Number of peers.
    pub(crate) fn count(&self) -> usize {
        self.0.borrow().len()
    }
}
