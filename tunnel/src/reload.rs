//! The configuration, read again while the tunnel runs: what can change takes effect, a file with a mistake
//! changes nothing.
//!
//! Caps, timetables, shares and channels change at once, and so does which files hold certificates, key and lists.
//! The rest waits for the next start; the log and `/status` say what that is, and why a file is not in use. What was
//! changed by hand meanwhile is as in the file again; channels that were pushed are not the file's to change.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use towpath_protocol::fault::{Code, Fault};

use crate::config::Config;
use crate::core::Core;
use crate::operators::status::ConfigurationView;
use crate::trust::with_remedy;

/// How reading the configuration again went, the last time and in all.
#[derive(Debug, Default)]
pub(crate) struct Reloads {
    last: Mutex<ConfigurationView>,
    taken: AtomicU64,
    partly: AtomicU64,
    refused: AtomicU64,
}

impl Reloads {
    /// How it went the last time.
    pub(crate) fn view(&self) -> ConfigurationView {
        self.last().clone()
    }

    /// How often it went how, by the word for it.
    pub(crate) fn counts(&self) -> [(&'static str, u64); 3] {
        [
            ("taken", &self.taken),
            ("partly", &self.partly),
            ("refused", &self.refused),
        ]
        .map(|(result, count)| (result, count.load(Ordering::Relaxed)))
    }

    /// All of the file is in use but these keys, which wait for the next start.
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

    /// Nothing of the file is in use; what waited before waits still.
    fn note_refused(&self, fault: &Fault) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        self.last().problem = Some(with_remedy(fault));
    }

    fn last(&self) -> MutexGuard<'_, ConfigurationView> {
        // Nothing panics while it is held.
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Has configuration, certificates, key and lists read again; links and streams stay as they are.
pub(crate) async fn all(core: &Arc<Core>) {
    tokio::join!(core.trust.look_now(), configuration(core));
}

/// Reads the configuration's file again, if it came from one, and brings what can change into use.
async fn configuration(core: &Arc<Core>) {
    let Some(file) = core.config.file.clone() else {
        return;
    };
    // The file may lie on a disk that is slow to answer.
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
            // Another zone waits for the next start; the same one may have other rules by now.
            if config.time_zone.name() == core.config.time_zone.name() {
                known.set_zone(&config.time_zone);
            }
            known.set_shaping(peer.shaping());
        }
    }
    for service in &config.services {
        if let Some(known) = core.services.get(&service.name) {
            known.meter.quota.set(service.cap);
        }
    }
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

/// Keys of the configuration that have changed and cannot while the tunnel runs.
fn waiting(old: &Config, new: &Config) -> Vec<String> {
    let lasting = |config: &Config| {
        let mut config = config.clone();
        config.channels.clear();
        for peer in &mut config.peers {
            peer.send_rate = None;
            peer.send_timetable = None;
            peer.receive_rate = None;
            peer.receive_timetable = None;
            peer.shares.0.clear();
        }
        for service in &mut config.services {
            service.cap = None;
        }
        // A configuration came from text, and can be text again.
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
