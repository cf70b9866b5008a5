//! Checks a host's folder the way its tunnel will. Every check runs on its own, so that all
//! problems show at once.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use towpath_protocol::fault::Fault;

use crate::authority::{AUTHORITY_CERTIFICATE, LEAF_CERTIFICATE, LEAF_KEY, REVOCATION_LIST};
use crate::identity::{self, Authorities, NO_AUTHORITY, check_signed, read_chain};
use crate::revocation::{Freshness, Revocations};
use crate::view::{self, CertificateView, rfc3339};
use crate::{files, tls};

/// How long before its end a certificate is reported: enough time for a renewal that was forgotten.
pub const EXPIRY_WARNING: Duration = Duration::from_hours(14 * 24);

/// How long before its end an authority is reported: all of its hosts have to be moved to the next
/// one.
pub const AUTHORITY_WARNING: Duration = Duration::from_hours(180 * 24);

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As it must be.
    Good,
    /// A tunnel starts with it, but not for long, or not under every user, or it begins no move.
    Warning,
    /// A tunnel will not start with it, or peers will refuse it.
    Wrong,
    /// There is nothing to check.
    Absent,
}

impl Outcome {
    /// The word for tables and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Warning => "warning",
            Self::Wrong => "wrong",
            Self::Absent => "absent",
        }
    }
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckView {
    /// What was checked.
    pub check: String,
    /// The result.
    pub outcome: Outcome,
    /// What was found, or what to do.
    pub detail: String,
}

/// The results of all checks of a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FolderView {
    /// The folder.
    pub folder: String,
    /// The host its certificate names.
    pub identity: Option<String>,
    /// Whether nothing is wrong.
    pub is_good: bool,
    /// Whether its certificate has been revoked. A revoked certificate cannot be renewed; a new one
    /// has to be issued.
    #[serde(default)]
    pub is_revoked: bool,
    /// One entry for each check.
    pub checks: Vec<CheckView>,
}

/// Checks a host's `cert.pem`, `key.pem`, `ca.pem` and, if present, `crl.pem`, as of `now`.
#[must_use]
pub fn folder(folder: &Path, now: SystemTime) -> FolderView {
    let chain = read_chain(&folder.join(LEAF_CERTIFICATE));
    let authorities = read_chain(&folder.join(AUTHORITY_CERTIFICATE));
    let leaf = chain.as_ref().ok().and_then(|chain| chain.first());
    let seen = leaf.and_then(|leaf| view::of_der(leaf).ok());
    // The authorities that a tunnel trusts, and those it ignores because they have ended.
    let divided = authorities.clone().map(|all| Authorities::at(now, all));
    let divided = divided.as_ref().ok();
    let lists = lists(&folder.join(REVOCATION_LIST), divided);
    let revoked = |lists: &Revocations| leaf.is_some_and(|leaf| lists.is_revoked(leaf));
    let is_revoked = lists.as_ref().is_ok_and(revoked);
    let checks = vec![
        named("certificate", certificate(chain.as_deref())),
        named("key", key(&folder.join(LEAF_KEY), chain.as_deref().ok())),
        named("authority", authority(authorities.as_deref(), now)),
        named("chain", signed(chain.as_deref().ok(), divided)),
        named("time", time(seen.as_ref(), now)),
        named(
            "revocation",
            match lists {
                Err(seen) => seen,
                Ok(_) if is_revoked => wrong("this certificate has been revoked"),
                Ok(lists) => age(&lists, now),
            },
        ),
        named("readers", readers(folder)),
    ];
    FolderView {
        folder: folder.display().to_string(),
        identity: seen.and_then(|view| view.uri),
        is_revoked,
        is_good: checks.iter().all(|check| check.outcome != Outcome::Wrong),
        checks,
    }
}

/// The result of a check and its detail.
type Seen = (Outcome, String);

fn named(check: &str, (outcome, detail): Seen) -> CheckView {
    CheckView {
        check: check.to_owned(),
        outcome,
        detail,
    }
}

fn wrong(why: impl Into<String>) -> Seen {
    (Outcome::Wrong, why.into())
}

/// A fault's text, with its remedy if it has one.
fn told(fault: &Fault) -> String {
    match &fault.remedy {
        Some(remedy) => format!("{}; {remedy}", fault.detail),
        None => fault.detail.clone(),
    }
}

fn certificate(chain: Result<&[CertificateDer<'static>], &Fault>) -> Seen {
    let named = chain
        .map_err(Clone::clone)
        .and_then(|chain| view::identity_of(&chain[0]));
    match named {
        Ok(host) => (Outcome::Good, format!("names {host}")),
        Err(fault) => wrong(told(&fault)),
    }
}

fn key(path: &Path, chain: Option<&[CertificateDer<'static>]>) -> Seen {
    let pem = match files::read_private(path) {
        Ok(pem) => pem,
        Err(fault) => return wrong(told(&fault)),
    };
    let der = match PrivateKeyDer::from_pem_slice(&pem) {
        Ok(der) => der,
        Err(error) => return wrong(format!("holds no private key: {error}")),
    };
    let Some(chain) = chain else {
        return wrong("there is no certificate it could belong to");
    };
    match rustls::sign::CertifiedKey::from_der(chain.to_vec(), der, &tls::provider()) {
        Ok(_) => (
            Outcome::Good,
            "is the certificate's, and its owner's alone".to_owned(),
        ),
        Err(rustls::Error::InconsistentKeys(_)) => {
            wrong("is not the certificate's; run: towpath certs renew --new-key")
        }
        Err(error) => wrong(error.to_string()),
    }
}

fn authority(authorities: Result<&[CertificateDer<'static>], &Fault>, now: SystemTime) -> Seen {
    let views = |all: &[CertificateDer<'static>]| all.iter().map(view::of_der).collect();
    let read = authorities.map_err(Clone::clone).and_then(views);
    let all: Vec<CertificateView> = match read {
        Ok(all) => all,
        Err(fault) => return wrong(told(&fault)),
    };
    if all.iter().any(|one| !one.is_authority) {
        return wrong(NO_AUTHORITY);
    }
    let clock = crate::register::unix_seconds_of(now);
    let (trusted, ended): (Vec<_>, Vec<_>) = all
        .iter()
        .partition(|one| one.not_after_unix_seconds > clock);
    if let Some(one) = ended.first() {
        let seen = format!("{} ended {}; leave it out", one.issuer, one.not_after);
        return if trusted.is_empty() {
            wrong(seen)
        } else {
            (Outcome::Warning, seen)
        };
    }
    let first = trusted.iter().min_by_key(|one| one.not_after_unix_seconds);
    let Some(first) = first else {
        return wrong("holds no certificate");
    };
    if first.not_after_unix_seconds - clock <= AUTHORITY_WARNING.as_secs() {
        let (who, until) = (&first.issuer, &first.not_after);
        let seen = format!("{who} ends {until}; begin the next authority");
        return (Outcome::Warning, seen);
    }
    let names: Vec<_> = trusted.iter().map(|one| one.issuer.as_str()).collect();
    (Outcome::Good, format!("trusts {}", names.join(" and ")))
}

fn signed(chain: Option<&[CertificateDer<'static>]>, authorities: Option<&Authorities>) -> Seen {
    let (Some(chain), Some(authorities)) = (chain, authorities) else {
        return wrong("cannot be checked without both files");
    };
    let checked = identity::roots(&authorities.valid).and_then(|roots| check_signed(chain, &roots));
    match checked {
        Ok(()) => (
            Outcome::Good,
            "leads to an authority that is trusted".to_owned(),
        ),
        Err(why) => wrong(why),
    }
}

fn time(seen: Option<&CertificateView>, now: SystemTime) -> Seen {
    let Some(seen) = seen else {
        return wrong("cannot be checked without the certificate");
    };
    let clock = crate::register::unix_seconds_of(now);
    let (from, until) = (&seen.not_before, &seen.not_after);
    let shown = rfc3339(clock);
    if clock < seen.not_before_unix_seconds {
        return wrong(format!(
            "begins {from}, and the clock says {shown}; is it right?"
        ));
    }
    match seen.not_after_unix_seconds.checked_sub(clock) {
        None | Some(0) => wrong(format!("ended {until}, and the clock says {shown}")),
        Some(left) if left <= EXPIRY_WARNING.as_secs() => {
            (Outcome::Warning, format!("ends {until}; renew it"))
        }
        Some(_) => (Outcome::Good, format!("good until {until}")),
    }
}

/// The folder's lists of revoked certificates, or the reason they could not be checked.
fn lists(path: &Path, authorities: Option<&Authorities>) -> Result<Revocations, Seen> {
    if matches!(rustix::fs::lstat(path), Err(rustix::io::Errno::NOENT)) {
        return Err((
            Outcome::Absent,
            "there is no list of revoked certificates".to_owned(),
        ));
    }
    let Some(authorities) = authorities else {
        return Err(wrong("cannot be checked without the authority"));
    };
    Revocations::load(path, authorities, &Revocations::default())
        .map_err(|fault| wrong(told(&fault)))
}

/// Reports the age of lists that do not revoke this host's certificate.
fn age(lists: &Revocations, now: SystemTime) -> Seen {
    let due = lists
        .next_update_unix_seconds()
        .map_or_else(String::new, rfc3339);
    let numbers: Vec<_> = lists.views().map(|view| view.number.to_string()).collect();
    let numbers = numbers.join(" and ");
    let next = "sign the next one with `towpath certs revoke --refresh` where the authority is, and carry its crl.pem here";
    match lists.freshness(now) {
        Some(Freshness::Stale) => (
            Outcome::Warning,
            format!("list {numbers} ended {due}, and no move begins with it; {next}"),
        ),
        Some(Freshness::Aging) => (
            Outcome::Warning,
            format!("list {numbers} ends {due}; {next}"),
        ),
        _ => (
            Outcome::Good,
            format!("list {numbers}, the next one due {due}"),
        ),
    }
}

/// Checks that any user who runs the tunnel can read the public files.
fn readers(folder: &Path) -> Seen {
    let names = [LEAF_CERTIFICATE, AUTHORITY_CERTIFICATE, REVOCATION_LIST];
    if let Err(error) = std::fs::metadata(folder) {
        return wrong(format!("{}: {error}", folder.display()));
    }
    let is_closed = |name: &&str| {
        let seen = std::fs::metadata(folder.join(name));
        seen.is_ok_and(|seen| is_for_root((seen.uid(), seen.gid()), seen.mode()))
    };
    let closed: Vec<_> = names.into_iter().filter(is_closed).collect();
    if closed.is_empty() {
        let seen = "what is public can be read by others than root".to_owned();
        return (Outcome::Good, seen);
    }
    let (all, shown) = (closed.join(", "), folder.display());
    let seen = format!(
        "only root can read {all}, and a tunnel runs as another user; in {shown} run: chmod 644 {}",
        closed.join(" ")
    );
    (Outcome::Warning, seen)
}

/// Whether only root can read a file.
const fn is_for_root((owner, group): (u32, u32), mode: u32) -> bool {
    owner == 0 && mode & 0o004 == 0 && (group == 0 || mode & 0o040 == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_for_root_if_root_has_it_and_lets_nobody_else_in() {
        for (ids, mode, expected) in [
            ((0, 0), 0o100_600, true),
            ((0, 0), 0o100_640, true),
            ((0, 990), 0o100_600, true),
            ((0, 990), 0o100_640, false),
            ((0, 0), 0o100_644, false),
            ((990, 990), 0o100_600, false),
        ] {
            assert_eq!(is_for_root(ids, mode), expected, "{ids:?} {mode:o}");
        }
    }
}
