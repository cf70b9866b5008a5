//! Checks the files of a tunnel's identity before the daemon reads them.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;
use towpath_certs::files::{read_private, read_public};
use towpath_certs::revocation::Revocations;
use towpath_protocol::fault::{Code, Fault};
use towpath_tunnel::config::Config;

use crate::commands::certs::ISSUE_ANEW;

/// Where systemd puts the credentials of services (`LoadCredential=`), in one folder per service
/// (`systemd.exec(5)`).
const CREDENTIALS: &str = "/run/credentials";

/// A fault, and the key of the configuration to which it belongs.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) key: &'static str,
    pub(super) fault: Fault,
}

fn of(key: &'static str) -> impl Fn(Fault) -> Found {
    move |fault| Found { key, fault }
}

/// Opens certificate, key, authority and revocation lists as the daemon does, and checks that they
/// belong together and to this host.
///
/// If this user cannot open some of them although the daemon may, nothing is checked and those
/// files are returned.
pub(super) fn check(config: &Config) -> Result<Vec<PathBuf>, Found> {
    let files = &config.certificates;
    let all = [&files.cert, &files.key, &files.ca];
    // The next key is optional: its file may be missing.
    let next_key = files.next_key.iter().filter(|path| path.exists());
    let all = all.into_iter().chain(next_key.clone()).chain(&files.crl);
    let shut = |path: &&PathBuf| is_denied(path) || is_not_handed_over(path);
    let not_opened: Vec<_> = all.filter(shut).cloned().collect();
    if !not_opened.is_empty() {
        return Ok(not_opened);
    }
    read_public(&files.cert).map_err(of("certificates.cert"))?;
    read_private(&files.key).map_err(of("certificates.key"))?;
    for next_key in next_key {
        read_private(next_key).map_err(of("certificates.next_key"))?;
    }
    read_public(&files.ca).map_err(of("certificates.ca"))?;
    let identity = files.identity().map_err(|fault| {
        // The detail begins with the path of the file at fault, except for the certificate.
        let names = |path: &Path| fault.detail.starts_with(&format!("{}: ", path.display()));
        let key = if names(&files.key) {
            "certificates.key"
        } else if names(&files.ca) {
            "certificates.ca"
        } else {
            "certificates.cert"
        };
        Found { key, fault }
    })?;
    let host = identity.host();
    if host.site != config.site || host.host != config.host {
        let key = if host.site == config.site {
            "host"
        } else {
            "site"
        };
        let detail = format!("the certificate names {host}");
        return Err(of(key)(Fault::new(Code::Certificate, detail)));
    }
    if let Some(crl) = &files.crl {
        let lists = identity.load_revocations(crl, &Revocations::default());
        let lists = lists.map_err(of("certificates.crl"))?;
        if identity.refusing(Arc::new(lists)).is_revoked() {
            let detail = format!("is revoked by {}: peers refuse it", crl.display());
            let fault = Fault::new(Code::Certificate, detail).remedy(ISSUE_ANEW);
            return Err(of("certificates.cert")(fault));
        }
    }
    Ok(not_opened)
}

/// Whether the file is a credential that systemd passes to a service, and the service does not run.
/// The file does not exist then, and that is no mistake.
pub(crate) fn is_not_handed_over(path: &Path) -> bool {
    let is_missing = |error: std::io::Error| error.kind() == ErrorKind::NotFound;
    path.starts_with(CREDENTIALS) && path.metadata().is_err_and(is_missing)
}

/// Whether this user has no permission to open the file. The daemon runs as another user and may
/// have it.
fn is_denied(path: &Path) -> bool {
    // Without `O_NONBLOCK`, opening a named pipe waits for its other end.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path);
    opened.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
}
