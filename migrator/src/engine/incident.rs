//! Writes the incident file about an image that was refused because the two sides disagree about
//! it.

use serde::Serialize;
use towpath_protocol::identity::{AttemptId, GuestId, HostIdentity, MigrationId, Name};
use towpath_protocol::image::Manifest;
use towpath_protocol::target::{Incident, Setup};
use tracing::warn;

use super::ground::{Ground, unix_ms};
use crate::store::INCIDENTS;

const SCHEMA: &str = "towpath.v1.incident";

/// The document `towpath.v1.incident`.
#[derive(Debug, Serialize)]
struct Document<'a> {
    schema: &'static str,
    at_unix_ms: u64,
    guest: GuestId,
    name: Option<&'a Name>,
    migration: MigrationId,
    attempt: AttemptId,
    source: &'a HostIdentity,
    target: &'a HostIdentity,
    code: &'static str,
    detail: &'a str,
    differs: &'a [&'static str],
    ours: Side,
    announced: Announced,
    theirs: Option<Side>,
}

/// An image as one side has it. Digests are BLAKE3.
#[derive(Debug, Serialize)]
struct Side {
    #[serde(skip_serializing_if = "Option::is_none")]
    root: Option<String>,
    through_sequence: u64,
    chain: String,
    missing_blocks: u64,
    missing_blocks_digest: String,
    state_bytes: u64,
    state_digest: String,
    description_digest: String,
    geometry_digest: String,
}

/// The image as the source last announced it.
#[derive(Debug, Serialize)]
struct Announced {
    root: String,
    through_sequence: u64,
    missing_blocks: u64,
    state_bytes: u32,
}

impl Side {
    fn new(manifest: &Manifest) -> Self {
        Self {
            root: None,
            through_sequence: manifest.position.through_sequence,
            chain: hex(manifest.position.chain),
            missing_blocks: manifest.missing_count,
            missing_blocks_digest: hex(manifest.missing_digest),
            state_bytes: manifest.state_bytes,
            state_digest: hex(manifest.state_digest),
            description_digest: hex(manifest.config_digest),
            geometry_digest: hex(manifest.spaces_digest),
        }
    }
}

/// Writes the incident file of a refused image. The refusal stands even if the write fails.
pub(super) fn keep(ground: &Ground, setup: &Setup, incident: &Incident) {
    let at_unix_ms = unix_ms();
    let (migration, attempt, guest) = (setup.migration, setup.attempt, setup.guest);
    let document = Document {
        schema: SCHEMA,
        at_unix_ms,
        guest,
        name: ground.config.as_ref().map(|config| &config.name),
        migration,
        attempt,
        source: &setup.source,
        target: &setup.host,
        code: incident.fault.code.as_str(),
        detail: &incident.fault.detail,
        differs: &incident.differs,
        ours: Side {
            root: Some(hex(incident.root.0)),
            ..Side::new(&incident.ours)
        },
        announced: Announced {
            root: hex(incident.end.root.0),
            through_sequence: incident.end.through_sequence,
            missing_blocks: incident.end.missing_count,
            state_bytes: incident.end.state_bytes,
        },
        theirs: incident.theirs.as_ref().map(Side::new),
    };
    let text = serde_json::to_vec_pretty(&document).expect("plain structs always serialise");
    let name = format!("{at_unix_ms:013}-{guest}-{attempt}.json");
    let path = ground.shared.config.state_dir.join(INCIDENTS).join(&name);
    let path = path.display();
    match ground.shared.store.keep_incident(&name, &text) {
        Ok(()) => warn!(%migration, %path, "what is known of an image that was refused is kept"),
        Err(fault) => {
            warn!(%migration, %path, %fault, "an image that was refused leaves no record");
        }
    }
}

fn hex(digest: [u8; 32]) -> String {
    blake3::Hash::from_bytes(digest).to_hex().to_string()
}
