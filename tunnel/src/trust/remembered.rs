//! Certificates and revocation lists that are kept in the state folder across restarts.
//!
//! The newest lists are kept so that an older list is still recognised as older after a restart.
//! The last good certificate is kept with its authorities. A file cut short by a power failure, or
//! half of a renewal, must not prevent the tunnel from starting: often its link is the only way to
//! the host. The key is not copied. If the key in the files fits the kept certificate, links are
//! made with both. Otherwise the tunnel waits for usable files.
//!
//! A separate task writes both and retries until the disk accepts them. Nothing else waits for that
//! disk.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use towpath_certs::files::FILE_BYTES_MAX;
use towpath_certs::identity::IdentityPem;
use towpath_certs::revocation::LIST_BYTES_MAX;
use towpath_certs::{Identity, Revocations};
use towpath_daemon::shutdown::Shutdown;
use towpath_protocol::fault::{Code, Fault};

use crate::config::CertificatesConfig;
use crate::core::Core;
use crate::state_files::{Aside, Folder};

/// File of the newest lists in the state folder.
const LISTS_FILE: &str = "revocations.pem";

/// File of the last good certificate.
const IDENTITY_FILE: &str = "identity.json";

/// Maximum size of that file: the text of two certificate files as JSON, in which each line break
/// takes two bytes.
const IDENTITY_BYTES_MAX: usize = 256 * 1024;

const _: () = assert!(IDENTITY_BYTES_MAX as u64 >= 4 * FILE_BYTES_MAX);

/// Schema name of the certificate file.
const SCHEMA: &str = "towpath.v1.identity";

/// Pause before a failed write is repeated. It doubles each time, up to [`RETRY_LONGEST`].
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LONGEST: Duration = Duration::from_mins(1);

/// Maximum time for the last write while the tunnel stops.
const STOP_WAIT: Duration = Duration::from_secs(2);

/// Content of the certificate file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    schema: String,
    certificate: String,
    authorities: String,
}

/// Content of a file, and whether it is on disk.
#[derive(Debug, Clone)]
struct Noted {
    bytes: Arc<[u8]>,
    is_written: bool,
}

/// Files to keep in the state folder; without a folder nothing is kept.
#[derive(Debug)]
pub(super) struct Remembered {
    folder: Option<Arc<Folder>>,
    files: Mutex<BTreeMap<&'static str, Noted>>,
    news: Notify,
}

impl Remembered {
    pub(super) fn new(folder: Option<&Arc<Folder>>) -> Self {
        Self {
            folder: folder.map(Arc::clone),
            files: Mutex::default(),
            news: Notify::new(),
        }
    }

    /// The newest lists from before the restart; none if they cannot be read.
    pub(super) fn lists(&self, identity: &Identity) -> Revocations {
        let bytes_max = usize::try_from(LIST_BYTES_MAX).unwrap_or(usize::MAX);
        let recall = |text: &[u8]| identity.recall_revocations(text);
        self.recall(LISTS_FILE, bytes_max, recall)
            .unwrap_or_default()
    }

    /// The last good certificate of this host from before the restart, with the key if the files
    /// contain the one that fits.
    pub(super) fn identity(
        &self,
        files: &CertificatesConfig,
        is_ours: impl Fn(&Identity) -> bool,
    ) -> Option<Identity> {
        let parse = |text: &[u8]| {
            let texts = parse(text)?;
            let known = Identity::without_key(&texts)?;
            Ok((texts, known))
        };
        let (texts, known) = self.recall(IDENTITY_FILE, IDENTITY_BYTES_MAX, parse)?;
        let whole = files.with_key(|key| Identity::load_with_kept_certificate(&texts, key));
        Some(whole.unwrap_or(known)).filter(is_ours)
    }

    /// Records the newest lists.
    pub(super) fn note_lists(&self, lists: &Revocations) {
        self.note(LISTS_FILE, lists.text().into());
    }

    /// Records a good certificate.
    pub(super) fn note_identity(&self, identity: &Identity) {
        let IdentityPem {
            certificate,
            authorities,
        } = identity.texts().clone();
        let kept = Kept {
            schema: SCHEMA.to_owned(),
            certificate,
            authorities,
        };
        match serde_json::to_vec_pretty(&kept) {
            Ok(bytes) => self.note(IDENTITY_FILE, bytes.into()),
            Err(error) => tracing::error!(%error, "the certificate is not remembered"),
        }
    }

    /// Has a file written unless the same content is already recorded.
    fn note(&self, file: &'static str, bytes: Arc<[u8]>) {
        let mut files = self.files();
        if files.get(file).is_none_or(|known| known.bytes != bytes) {
            let is_written = false;
            files.insert(file, Noted { bytes, is_written });
            self.news.notify_one();
        }
    }

    fn recall<T>(
        &self,
        file: &'static str,
        bytes_max: usize,
        parse: impl FnOnce(&[u8]) -> Result<T, Fault>,
    ) -> Option<T> {
        let folder = self.folder.as_ref()?;
        let bytes = folder.read(Path::new(file), bytes_max)?;
        match parse(&bytes) {
            Ok(parsed) => {
                let (bytes, is_written) = (bytes.into(), true);
                self.files().insert(file, Noted { bytes, is_written });
                Some(parsed)
            }
            Err(fault) => {
                folder.set_aside(Path::new(file), Aside::Damaged, &fault);
                None
            }
        }
    }

    /// Whether something is not on disk yet, or the last write to the folder failed.
    fn is_due(&self) -> bool {
        self.folder.as_ref().is_some_and(|folder| {
            folder.problem().is_some() || self.files().values().any(|noted| !noted.is_written)
        })
    }

    /// Writes what is not on disk yet. If the last write to the folder failed, whatever the file,
    /// writes everything: this shows whether the disk works again.
    fn write(&self) {
        let Some(folder) = &self.folder else { return };
        let is_trial = folder.problem().is_some();
        let files = self.files().clone();
        for (file, noted) in files {
            if noted.is_written && !is_trial {
                continue;
            }
            match folder.replace(Path::new(file), &noted.bytes) {
                Ok(()) => {
                    let mut files = self.files();
                    let current = files.get_mut(file);
                    if let Some(current) =
                        current.filter(|now| Arc::ptr_eq(&now.bytes, &noted.bytes))
                    {
                        current.is_written = true;
                    }
                }
                // The problem of the folder is logged once, and shown as long as it lasts.
                Err(_) if is_trial => {}
                Err(fault) => {
                    tracing::error!(target: "audit", %fault, "not remembered over a restart yet");
                }
            }
        }
    }

    fn files(&self) -> MutexGuard<'_, BTreeMap<&'static str, Noted>> {
        self.files.lock()
    }
}

/// Parses the content of the certificate file.
fn parse(text: &[u8]) -> Result<IdentityPem, Fault> {
    let wrong = |why: String| Fault::new(Code::Meta, format!("the certificate that is kept {why}"));
    let kept: Kept =
        serde_json::from_slice(text).map_err(|error| wrong(format!("does not parse: {error}")))?;
    if kept.schema != SCHEMA {
        return Err(wrong(format!("is none but `{}`", kept.schema)));
    }
    Ok(IdentityPem {
        certificate: kept.certificate,
        authorities: kept.authorities,
    })
}

/// Writes the files to disk until the tunnel stops.
pub(crate) async fn keep(core: Arc<Core>, mut stop: Shutdown) {
    let mut wait = RETRY_FIRST;
    loop {
        let remembered = &core.trust.remembered;
        tokio::select! {
            () = stop.requested() => return,
            () = remembered.news.notified() => {}
            () = sleep(wait) => {}
        }
        if remembered.is_due() {
            let writing = Arc::clone(&core);
            let written = spawn_blocking(move || writing.trust.remembered.write());
            tokio::select! {
                () = stop.requested() => return,
                _ = written => {}
            }
        }
        wait = match remembered.is_due() {
            true => (2 * wait).min(RETRY_LONGEST),
            false => RETRY_FIRST,
        };
    }
}

/// Writes what is not on disk yet, when the tunnel stops.
pub(crate) async fn keep_now(core: &Arc<Core>) {
    let writing = Arc::clone(core);
    let write = move || {
        if writing.trust.remembered.is_due() {
            writing.trust.remembered.write();
        }
    };
    if timeout(STOP_WAIT, spawn_blocking(write)).await.is_err() {
        tracing::warn!("the newest certificates are not remembered: the disk is too slow");
    }
}
