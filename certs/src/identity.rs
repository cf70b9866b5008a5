//! Loading a host's own certificate, key and authority, checked so that trouble shows at the start.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, Error, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::HostIdentity;

use crate::register::unix_seconds_of;
use crate::revocation::Revocations;
use crate::view::{self, CertificateView};
use crate::{files, tls};

/// Most certificates in one file: a leaf and an intermediate, with room for a cross-signed pair.
const CHAIN_LENGTH_MAX: usize = 4;

/// Who this host is, with the key that proves it and the authority it trusts.
#[derive(Clone)]
pub struct Identity {
    host: HostIdentity,
    view: CertificateView,
    pub(crate) key: Arc<CertifiedKey>,
    pub(crate) roots: Arc<RootCertStore>,
    /// The certificates behind `roots`.
    authorities: Vec<CertificateDer<'static>>,
    /// When the first of them ends.
    first_end_unix_seconds: u64,
    /// Those of the file whose time is over: what they have signed is passed over.
    ended: Vec<CertificateDer<'static>>,
    /// When the last of them has ended.
    last_end_unix_seconds: u64,
    pub(crate) revocations: Arc<Revocations>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "identity of {} until {}", self.host, self.view.not_after)
    }
}

impl Identity {
    /// Loads a host's files and checks that they belong together and are good now.
    ///
    /// # Errors
    ///
    /// `E_CERTIFICATE`, with what to do, if a file cannot be read, if others may read the key, if
    /// the key is not the certificate's, if the certificate is expired, from another authority,
    /// or names no host, or if no authority's time is left. One that has ended beside another is left out.
    pub fn load(cert: &Path, key: &Path, ca: &Path) -> Result<Self, Fault> {
        let cert_pem = files::read_public(cert)?;
        let key_pem = files::read_private(key)?;
        let ca_pem = files::read_public(ca)?;
        Self::from_pem([(cert, &cert_pem), (key, &key_pem), (ca, &ca_pem)])
    }

    /// The same of the texts of its certificate, its key and its authority, each with the name it is complained about
    /// by.
    ///
    /// # Errors
    ///
    /// As [`Identity::load`].
    pub fn from_pem(
        [(cert, cert_pem), (key, key_pem), (ca, ca_pem)]: [(&Path, &[u8]); 3],
    ) -> Result<Self, Fault> {
        let chain = chain_in(cert, cert_pem)?;
        let leaf = chain.first().expect("a chain that was read is not empty");
        let host = view::identity_of(leaf).map_err(|fault| in_file(cert, &fault.detail))?;
        let view = view::view(leaf)?;
        let key_der = PrivateKeyDer::from_pem_slice(key_pem)
            .map_err(|error| in_file(key, &format!("holds no private key: {error}")))?;
        let (authorities, ended) = by_time(chain_in(ca, ca_pem)?, SystemTime::now());
        if authorities.is_empty() {
            let clock = humantime::format_rfc3339_seconds(SystemTime::now());
            let why = format!(
                "every authority in it has ended; begin the next one, or set the clock, which says {clock}"
            );
            return Err(in_file(ca, &why));
        }
        let ends = authorities.iter().filter_map(end_of);
        let first_end_unix_seconds = ends.min().unwrap_or(0);
        let last_end_unix_seconds = ended.iter().filter_map(end_of).max().unwrap_or(0);
        let roots = roots(&authorities).map_err(|why| in_file(ca, &why))?;
        check_chain(&chain, &roots, SystemTime::now()).map_err(|why| {
            let (shown, until) = (cert.display(), &view.not_after);
            Fault::new(Code::Certificate, format!("{shown} (until {until}): {why}"))
        })?;
        let key = CertifiedKey::from_der(chain, key_der, &tls::provider()).map_err(|error| {
            let why = match error {
                Error::InconsistentKeys(_) => {
                    format!("is not the key of {}; issue the pair anew", cert.display())
                }
                other => other.to_string(),
            };
            in_file(key, &why)
        })?;
        Ok(Self {
            host,
            view,
            key: Arc::new(key),
            roots: Arc::new(roots),
            authorities,
            first_end_unix_seconds,
            ended,
            last_end_unix_seconds,
            revocations: Arc::default(),
        })
    }

    /// Reads a file of lists of revoked certificates and checks it against the authorities of this
    /// identity; no list may be older than its predecessor in `current`.
    ///
    /// # Errors
    ///
    /// As [`Revocations::load`].
    pub fn load_revocations(
        &self,
        crl: &Path,
        current: &Revocations,
    ) -> Result<Revocations, Fault> {
        Revocations::load_beside(crl, (&self.authorities, &self.ended), current)
    }

    /// Reads the lists that were in use before a restart.
    ///
    /// # Errors
    ///
    /// As [`Revocations::recall`].
    pub fn recall_revocations(&self, text: &[u8]) -> Result<Revocations, Fault> {
        Revocations::recall(text, &self.authorities)
    }

    /// The same identity, that refuses what these lists revoke.
    #[must_use]
    pub fn refusing(mut self, revocations: Arc<Revocations>) -> Self {
        self.revocations = revocations;
        self
    }

    /// Whether both are the same certificate, authorities and lists.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.key.cert == other.key.cert
            && self.authorities == other.authorities
            && self.revocations.is_same(&other.revocations)
    }

    /// What is known to be revoked.
    #[must_use]
    pub const fn revocations(&self) -> &Arc<Revocations> {
        &self.revocations
    }

    /// Whether the certificate that is shown to peers, or what leads from it to its authority, is revoked by the lists
    /// that this host has itself: whoever has them too refuses it.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        let mut chain = self.chain().iter();
        chain.any(|one| self.revocations.is_revoked(one))
    }

    /// The certificate that is shown to peers, with what leads from it to its authority.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.key.cert
    }

    /// The authority that has signed a chain, of those that are trusted and whatever the time is now; none
    /// if it was none of them.
    #[must_use]
    pub fn signer_of(&self, chain: &[CertificateDer<'static>]) -> Option<&CertificateDer<'static>> {
        self.authorities.iter().find(|authority| {
            let alone = roots(std::slice::from_ref(authority));
            alone.is_ok_and(|root| check_signed(chain, &root).is_ok())
        })
    }

    /// The authorities that are trusted, as operators see them.
    pub fn authorities(&self) -> impl Iterator<Item = CertificateView> {
        self.authorities
            .iter()
            .filter_map(|der| view::view(der).ok())
    }

    /// Whether this identity, loaded again now, would trust other authorities: the time of one is over by now, or that
    /// of one that was left out is not, for the clock was ahead.
    #[must_use]
    pub fn has_other_authorities(&self, now: SystemTime) -> bool {
        let now = unix_seconds_of(now);
        self.first_end_unix_seconds <= now || self.last_end_unix_seconds > now
    }

    /// The host the certificate names.
    #[must_use]
    pub const fn host(&self) -> &HostIdentity {
        &self.host
    }

    /// The certificate as operators see it.
    #[must_use]
    pub const fn view(&self) -> &CertificateView {
        &self.view
    }
}

/// Those authorities whose time is not over, and those whose is. As a root of trust a certificate has no end, and
/// its key would name hosts for ever.
pub(crate) fn by_time(
    authorities: Vec<CertificateDer<'static>>,
    now: SystemTime,
) -> (Vec<CertificateDer<'static>>, Vec<CertificateDer<'static>>) {
    let now = unix_seconds_of(now);
    authorities
        .into_iter()
        .partition(|der| end_of(der).is_some_and(|end| end > now))
}

/// When a certificate's time is over, in seconds since 1970. One that does not parse has none.
fn end_of(der: &CertificateDer<'_>) -> Option<u64> {
    view::view(der).ok().map(|one| one.not_after_unix_seconds)
}

/// Certificates as roots of trust.
pub(crate) fn roots(authorities: &[CertificateDer<'static>]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for root in authorities {
        roots.add(root.clone()).map_err(|error| error.to_string())?;
    }
    Ok(roots)
}

/// Reads a file of certificates; there is at least one.
pub(crate) fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, Fault> {
    chain_in(path, &files::read_public(path)?)
}

/// The certificates of the file called `path`, of which this is the text.
fn chain_in(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let chain = CertificateDer::pem_slice_iter(pem)
        .take(CHAIN_LENGTH_MAX + 1)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| in_file(path, &error.to_string()))?;
    if chain.is_empty() || chain.len() > CHAIN_LENGTH_MAX {
        let why = format!("must hold 1 to {CHAIN_LENGTH_MAX} certificates");
        return Err(in_file(path, &why));
    }
    Ok(chain)
}

/// Whether a chain leads to a root, whatever the time is now: a box that was in a cupboard too long
/// is renewed, not made anew.
pub(crate) fn check_signed(
    chain: &[CertificateDer<'static>],
    roots: &RootCertStore,
) -> Result<(), String> {
    let leaf = chain.first().ok_or("there is no certificate")?;
    let until = view::view(leaf).map_err(|fault| fault.detail)?;
    let last = Duration::from_secs(until.not_after_unix_seconds.saturating_sub(1));
    check_chain(chain, roots, SystemTime::UNIX_EPOCH + last)
}

/// Whether a peer with the same authority would accept this chain now; else what to do.
pub(crate) fn check_chain(
    chain: &[CertificateDer<'static>],
    roots: &RootCertStore,
    now: SystemTime,
) -> Result<(), String> {
    let (leaf, intermediates) = chain.split_first().expect("the caller read at least one");
    let since_1970 = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_err(|_| "this host's clock is before 1970".to_owned())?;
    let checked = ParsedCertificate::try_from(leaf).and_then(|parsed| {
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            roots,
            intermediates,
            UnixTime::since_unix_epoch(since_1970),
            tls::provider().signature_verification_algorithms.all,
        )
    });
    checked.map_err(|error| {
        let clock = humantime::format_rfc3339_seconds(now);
        match error {
            Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. },
            ) => format!("expired; issue a new one, or set the clock, which says {clock}"),
            Error::InvalidCertificate(
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
            ) => format!("not valid yet; is the clock right? it says {clock}"),
            Error::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::BadSignature,
            ) => "not signed by the authority in the CA file; issue it there, or exchange the file"
                .to_owned(),
            other => other.to_string(),
        }
    })
}

fn in_file(path: &Path, why: &str) -> Fault {
    Fault::new(Code::Certificate, format!("{}: {why}", path.display()))
}
