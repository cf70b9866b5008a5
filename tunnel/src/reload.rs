//! Reads the configuration again while the tunnel runs: settings that can change take effect; a
//! file with a mistake changes nothing.
//!
//! Services, caps, timetables, shares and channels change at once, and so do the paths of
//! certificates, key and lists. Everything else waits for the next start; the log and `/status` name those keys, and
//! say why a file is not used. Settings changed by hand meanwhile return to the file's values;
//! channels that were pushed are not affected by the file.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Mutex as AsyncMutex;
use towpath_protocol::fault::{Code, Fault};

use crate::config::Config;
use crate::core::Core;
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
    match read {
        Ok(config) => apply(core, &config).await,
        Err(fault) => {
            tracing::error!(%fault, "the changed configuration is not used");
            core.reloads.note_refused(&fault);
        }
    }
}

async fn apply(core: &Arc<Core>, config: &Config) {
    for peer in &config.peers {
        if let Some(known) = core.peers.get(&peer.site) {
            // A different time zone waits for the next start, but the rules of the same zone may
            // have changed.
            if config.time_zone.name() == core.config.time_zone.name() {
                known.set_zone(&config.time_zone);
            }
            known.set_shaping(peer.shaping());
        }
    }
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
}

/// Returns the top-level configuration keys that have changed but cannot change while the tunnel
/// runs.
fn waiting(old: &Config, new: &Config) -> Vec<String> {
    let lasting = |config: &Config| {
        let mut config = config.clone();
        config.channels.clear();
        config.services.clear();
        for peer in &mut config.peers {
            peer.send_rate = None;
            peer.send_timetable = None;
            peer.receive_rate = None;
            peer.receive_timetable = None;
            peer.shares.0.clear();
        }
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
