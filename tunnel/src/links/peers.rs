//! The peers of a running tunnel, and the tasks that each has for as long as it is one.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;
use tokio::task::JoinSet;
use towpath_daemon::shutdown::Shutdown;
use towpath_protocol::fault::Fault;
use towpath_protocol::identity::Name;

use crate::config::PeerConfig;
use crate::core::Core;
use crate::early;
use crate::links::dial;
use crate::links::peer::Peer;
use crate::measuring::probe;

/// Peers by site, as they are at one moment.
pub(crate) type PeersBySite = BTreeMap<Name, Arc<Peer>>;

/// The peers of a running tunnel. Links and streams hold their peer themselves and do not look it
/// up here.
#[derive(Debug)]
pub(crate) struct Peers {
    all: watch::Sender<Arc<PeersBySite>>,
    /// Held while the peers change, and while something must reach all of them.
    changing: Mutex<()>,
}

/// The difference between the peers before and after a reload.
#[derive(Debug, Default)]
pub(crate) struct PeerChanges {
    pub added: Vec<Arc<Peer>>,
    pub removed: Vec<Arc<Peer>>,
}

impl Peers {
    pub(crate) fn new(peers: PeersBySite) -> Self {
        Self {
            all: watch::channel(Arc::new(peers)).0,
            changing: Mutex::default(),
        }
    }

    /// The peers of this moment.
    pub(crate) fn all(&self) -> Arc<PeersBySite> {
        Arc::clone(&self.all.borrow())
    }

    /// The peer of a site.
    pub(crate) fn get(&self, site: &Name) -> Option<Arc<Peer>> {
        self.all.borrow().get(site).cloned()
    }

    /// Number of peers.
    pub(crate) fn count(&self) -> usize {
        self.all.borrow().len()
    }

    /// Keeps the set of peers as it is until the result is dropped.
    pub(crate) fn hold(&self) -> MutexGuard<'_, ()> {
        self.changing.lock()
    }

    /// Replaces the peers by those of a configuration. Those that stay are kept, those that come
    /// are made by `make`. Those that go are returned, and still have to be removed.
    ///
    /// # Errors
    ///
    /// The first error of `make`; then nothing has changed.
    pub(crate) fn replace<'a>(
        &self,
        configs: impl Iterator<Item = &'a PeerConfig>,
        make: impl Fn(&PeerConfig) -> Result<Peer, Fault>,
    ) -> Result<PeerChanges, Fault> {
        // An identity taken into use meanwhile would miss the peers that are being made.
        let _changing = self.hold();
        let (before, mut after) = (self.all(), PeersBySite::new());
        let mut changes = PeerChanges::default();
        for config in configs {
            let peer = match before.get(&config.site) {
                Some(known) => Arc::clone(known),
                None => {
                    let made = Arc::new(make(config)?);
                    changes.added.push(Arc::clone(&made));
                    made
                }
            };
            after.insert(config.site.clone(), peer);
        }
        let gone = before
            .values()
            .filter(|peer| !after.contains_key(&peer.site));
        changes.removed.extend(gone.cloned());
        self.all.send_replace(Arc::new(after));
        Ok(changes)
    }
}

/// Runs the tasks of every peer for as long as it is one, until the tunnel stops.
///
/// # Errors
///
/// `E_STATE` if a task ends early: the tunnel cannot run without it.
pub(crate) async fn keep(core: Arc<Core>, mut stop: Shutdown) -> Result<(), Fault> {
    let mut changes = core.peers.all.subscribe();
    let mut kept = Arc::new(PeersBySite::new());
    let mut tasks = JoinSet::new();
    loop {
        let all = Arc::clone(&changes.borrow_and_update());
        for peer in all.values() {
            let known = kept.get(&peer.site);
            if !known.is_some_and(|known| Arc::ptr_eq(known, peer)) {
                begin(&core, peer, &stop, &mut tasks);
            }
        }
        kept = all;
        let ended = tokio::select! {
            () = stop.requested() => break,
            _ = changes.changed() => continue,
            Some(ended) = tasks.join_next() => ended,
        };
        match ended {
            Ok(Ended::Removed) => {}
            Ok(Ended::Itself) if stop.is_requested() => break,
            Ok(Ended::Itself) => return Err(early(Ok(Ok(())))),
            Err(error) => return Err(early(Err(error))),
        }
    }
    while tasks.join_next().await.is_some() {}
    Ok(())
}

/// Why a task of a peer has ended.
enum Ended {
    /// The peer was removed.
    Removed,
    Itself,
}

/// Begins the tasks of a peer.
fn begin(core: &Arc<Core>, peer: &Arc<Peer>, stop: &Shutdown, tasks: &mut JoinSet<Ended>) {
    let owned = || (Arc::clone(core), Arc::clone(peer), stop.clone());
    let (core, dialled, until) = owned();
    until_removed(tasks, peer, dial::keep(core, dialled, until));
    let (core, probed, until) = owned();
    until_removed(tasks, peer, probe::keep(core, probed, until));
}

/// Spawns a task that ends when its peer is removed.
fn until_removed(
    tasks: &mut JoinSet<Ended>,
    peer: &Arc<Peer>,
    task: impl Future<Output = ()> + Send + 'static,
) {
    let peer = Arc::clone(peer);
    tasks.spawn(async move {
        tokio::select! {
            () = peer.removed() => Ended::Removed,
            () = task => Ended::Itself,
        }
    });
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Weak;
    use std::time::{Duration, SystemTime};

    use tempfile::TempDir;
    use towpath_certs::authority::LEAF_VALIDITY;
    use towpath_certs::{Authority, Validity};
    use towpath_protocol::identity::HostIdentity;

    use super::*;
    use crate::Tunnel;
    use crate::config::Config;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn config(folder: &Path, authority: &Authority, site: &str) -> Config {
        let host = HostIdentity {
            trust_domain: name("shop.example"),
            site: name(site),
            host: name("box-1"),
        };
        let validity = Validity::lasting(LEAF_VALIDITY, SystemTime::now());
        let files = authority.issue(&host, validity, &folder.join(site));
        let run = folder.join(format!("{site}-run"));
        let sockets = (run.join("tunnel.sock"), run.join("admin.sock"));
        let us = (name(site), name("box-1"));
        let mut config = Config::new(us, sockets.0, sockets.1, files.unwrap().into());
        config.listen = Some("127.0.0.1:0".parse().unwrap());
        config
    }

    async fn until(what: &str, is_so: impl Fn() -> bool) {
        let waiting = async {
            while !is_so() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(20), waiting).await;
        assert!(waited.is_ok(), "never: {what}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nothing_of_a_removed_peer_is_left_however_often_it_comes_and_goes() {
        let folder = TempDir::new().unwrap();
        let authority = Authority::init(&folder.path().join("ca"), &name("shop.example")).unwrap();
        let mut with = config(folder.path(), &authority, "region");
        let file = folder.path().join("tunnel.toml");
        with.read_from(file.clone());
        let without = with.clone();
        with.peers = vec![PeerConfig::new(name("edge"))];
        let write = |config: &Config| {
            std::fs::write(&file, toml::to_string(config).unwrap()).unwrap();
        };
        let region = Tunnel::start(&with).await.unwrap();
        let mut edge_config = config(folder.path(), &authority, "edge");
        let mut peer = PeerConfig::new(name("region"));
        peer.address = region.listen_address().map(|at| at.to_string());
        edge_config.peers = vec![peer];
        let edge = Tunnel::start(&edge_config).await.unwrap();
        let soon = Duration::from_secs(20);
        edge.linked(&name("region"), soon).await.unwrap();
        let mut gone: Vec<Weak<Peer>> = Vec::new();
        for _ in 0..10 {
            gone.push(Arc::downgrade(&region.core.peer(&name("edge")).unwrap()));
            write(&without);
            region.reload().await;
            assert_eq!(region.core.peers.count(), 0);
            write(&with);
            region.reload().await;
        }
        region.linked(&name("edge"), soon).await.unwrap();
        edge.linked(&name("region"), soon).await.unwrap();
        until("the removed peers are let go of", || {
            gone.iter().all(|peer| peer.strong_count() == 0)
        })
        .await;
    }
}
