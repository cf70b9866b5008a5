//! The configuration, read again while the tunnel runs: what can change takes effect, a file with a mistake
//! changes nothing.
//!
//! Caps, timetables, shares and channels change at once, and so does which files hold certificates, key and lists.
//! The rest waits for the next start, and the log says what that is. What was changed by hand meanwhile is as in the file again; channels that were pushed
//! are not the file's to change.

use std::collections::BTreeSet;
use std::sync::Arc;

use towpath_protocol::fault::{Code, Fault};

use crate::config::Config;
use crate::core::Core;

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
        Err(fault) => tracing::error!(%fault, "the changed configuration is not used"),
    }
}

async fn apply(core: &Arc<Core>, config: &Config) {
    for peer in &config.peers {
        if let Some(known) = core.peers.get(&peer.site) {
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
