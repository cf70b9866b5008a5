//! Reads the configuration again while the tunnel runs: settings that can change take effect; a
//! file with a mistake changes nothing.
//!
//! Peers, services and channels change at once with all their settings, and so do the paths of
//! certificates, key and lists. Everything else waits for the next start; the log and `/status`
//! name those keys, and say why a file is not used. Settings changed by hand meanwhile return to
//! the file's values; channels that were pushed are not affected by the file.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Mutex as AsyncMutex;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::Name;

use crate::config::Config;
use crate::core::Core;
use crate::links::peer::Peer;
use crate::links::peers::PeerChanges;
use crate::operators::status::ConfigurationView;
use crate::trust::with_remedy;

/// Results of reading the configuration again: the last one, and counts of all.
#[derive(Debug, Default)]
pub(crate) struct Reloads {
    /// Held during a reload, so that two never mix.
    turn: AsyncMutex<()>,
    last: Mutex<ConfigurationView>,
    taken: AtomicU64,
    partly: AtomicU64,
    refused: AtomicU64,
}

impl Reloads {
    /// The last result.
    pub(crate) fn view(&self) -> ConfigurationView {
        self.last().clone()
    }

    /// Counts by result label.
    pub(crate) fn counts(&self) -> [(&'static str, u64); 3] {
        [
            ("taken", &self.taken),
            ("partly", &self.partly),
            ("refused", &self.refused),
        ]
        .map(|(result, count)| (result, count.load(Ordering::Relaxed)))
    }

    /// Records that the file is in use, except for these keys, which wait for the next start.
    fn note_taken(&self, waiting_keys: Vec<String>) {
        let count = if waiting_keys.is_empty() {
            &self.taken
        } else {
            &self.partly
        };
        count.fetch_add(1, Ordering::Relaxed);
        *self.last() = ConfigurationView {
            problem: None,
            waiting_keys,
        };
    }

    /// Records that the file was refused; keys that waited before still wait.
    fn note_refused(&self, fault: &Fault) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        self.last().problem = Some(with_remedy(fault));
    }

    fn last(&self) -> MutexGuard<'_, ConfigurationView> {
        self.last.lock()
    }
}

/// Reads configuration, certificates, key and lists again, after any reload under way.
pub(crate) async fn all(core: &Arc<Core>) {
    let _turn = core.reloads.turn.lock().await;
    tokio::join!(core.trust.look_now(), configuration(core));
}

/// Reads the configuration file again, if there is one, and applies the settings that can change.
async fn configuration(core: &Arc<Core>) {
    let Some(file) = core.config.file.clone() else {
        return;
    };
    // Blocking: the disk may be slow.
    let read = tokio::task::spawn_blocking(move || Config::load(&file)).await;
    let read = read.unwrap_or_else(|error| Err(Fault::new(Code::State, error.to_string())));
    let applied = match read {
        Ok(config) => apply(core, &config).await,
        Err(fault) => Err(fault),
    };
    if let Err(fault) = applied {
        tracing::error!(%fault, "the changed configuration is not used");
        core.reloads.note_refused(&fault);
    }
}

/// Takes a configuration into use.
///
/// # Errors
///
/// That of the first peer that cannot be added; then nothing has changed.
async fn apply(core: &Arc<Core>, config: &Config) -> Result<(), Fault> {
    // A different time zone waits for the next start, but the rules of the same zone may have
    // changed.
    let is_same_zone = config.time_zone.name() == core.config.time_zone.name();
    let zone = if is_same_zone {
        &config.time_zone
    } else {
        &core.config.time_zone
    };
    // Another site of our own waits for the next start, so our own may be among the peers until
    // then.
    let peers = config.peers.iter().filter(|peer| peer.site != core.site);
    let changes = core.peers.replace(peers, |peer| {
        let identity = core.trust.current();
        let (limits, rejections) = (&core.limits, &core.rejections);
        Peer::new(peer, &core.site, &identity, rejections, limits, zone)
    })?;
    for peer in &config.peers {
        if let Some(known) = core.peers.get(&peer.site) {
            known.set_zone(zone);
            known.set_shaping(peer.shaping());
            known.set_address(peer.address.as_ref());
            known.set_probe(peer.probe);
        }
    }
    follow(core, changes).await;
    core.services.replace(&config.services);
    core.services.cut_denied(&core.peers.all(), &core.site);
    core.channels.configure(core, &config.channels).await;
    if core.trust.follow(&config.certificates) {
        core.trust.look_now().await;
    }
    let waiting = waiting(&core.config, config);
    if !waiting.is_empty() {
        let keys = waiting.join(", ");
        tracing::warn!(
            keys,
            "changed in the configuration, and used from the next start on"
        );
    }
    core.reloads.note_taken(waiting);
    tracing::info!("configuration read again");
    Ok(())
}

/// Ends everything with removed peers, and reads the histories of added ones.
async fn follow(core: &Arc<Core>, changes: PeerChanges) {
    for peer in &changes.removed {
        tracing::warn!(target: "audit", peer = %peer.site, "peer removed: links closed, streams cut");
        peer.remove(&core.site);
    }
    for peer in &changes.added {
        tracing::warn!(target: "audit", peer = %peer.site, "peer added");
    }
    let sites = |peers: &[Arc<Peer>]| peers.iter().map(|peer| peer.site.clone()).collect();
    let [removed, added]: [Vec<Name>; 2] = [sites(&changes.removed), sites(&changes.added)];
    let outlook = Arc::clone(core);
    // Blocking: the disk may be slow. Waited for, because a later reload may add the peer again.
    let saving = tokio::task::spawn_blocking(move || {
        removed.iter().for_each(|site| outlook.outlook.remove(site));
    });
    if let Err(error) = saving.await {
        tracing::error!(%error, "the histories of removed peers are lost");
    }
    added.iter().for_each(|site| core.outlook.add(site));
    let outlook = Arc::clone(core);
    // Not waited for: learning from a long history takes a while.
    tokio::task::spawn_blocking(move || {
        added.iter().for_each(|site| outlook.outlook.load(site));
    });
}

/// Returns the top-level configuration keys that have changed but cannot change while the tunnel
/// runs.
fn waiting(old: &Config, new: &Config) -> Vec<String> {
    let lasting = |config: &Config| {
        let mut config = config.clone();
        config.channels.clear();
        config.services.clear();
        config.peers.clear();
        // Serializing cannot fail: the configuration was read from such text.
        match serde_json::to_value(config) {
            Ok(serde_json::Value::Object(mut keys)) => {
                keys.remove("certificates");
                keys
            }
            _ => serde_json::Map::new(),
        }
    };
    let (old, new) = (lasting(old), lasting(new));
    let keys: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    let is_changed = |key: &&&String| old.get(**key) != new.get(**key);
    keys.iter()
        .filter(is_changed)
        .map(ToString::to_string)
        .collect()
}
