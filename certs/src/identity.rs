//! Loads a host's own certificate, key and authority, and checks them so that problems show at
//! start.

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

/// Name of a certificate that is no file's, in complaints.
const KEPT: &str = "the last good certificate";

/// What mends a link that waits for this host's own certificate.
const KEYLESS_REMEDY: &str =
    "`towpath status` says why; put the right files in place, the link is made by itself then";

/// Said of a file of authorities that holds something else.
pub(crate) const NO_AUTHORITY: &str = "holds a certificate that is no authority's";

/// Most certificates in one file: a leaf and an intermediate, with room for a cross-signed pair.
const CHAIN_LENGTH_MAX: usize = 4;

/// A host's chain and its authorities as PEM text. There is no key in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityPem {
    /// The host's own certificate, with what leads from it to its authority.
    pub certificate: String,
    /// The authorities that the host trusts.
    pub authorities: String,
}

/// Where an identity is loaded from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdentityPaths<'a> {
    /// The host's own certificate, followed by its intermediates.
    pub certificate: &'a Path,
    /// The private key of that certificate.
    pub key: &'a Path,
    /// The authorities that the host trusts.
    pub authorities: &'a Path,
}

/// The text of a PEM file, with the path that error messages name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamedPem<'a> {
    /// The file's path.
    pub path: &'a Path,
    /// The file's content.
    pub pem: &'a [u8],
}

/// The authorities in a file of a host. TLS verification ignores the end of a root certificate, so
/// without this division an old key could name hosts for ever.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Authorities {
    /// Those that have not ended: the ones that are trusted.
    pub valid: Vec<CertificateDer<'static>>,
    /// Those that have ended. Anything they signed is ignored.
    pub ended: Vec<CertificateDer<'static>>,
}

impl Authorities {
    /// Divides authorities by whether they have ended at `now`.
    pub(crate) fn at(now: SystemTime, all: Vec<CertificateDer<'static>>) -> Self {
        let now = unix_seconds_of(now);
        let (valid, ended) = all
            .into_iter()
            .partition(|der| end_of(der).is_some_and(|end| end > now));
        Self { valid, ended }
    }
}

/// This host's identity: its certificate, the private key for it, and the authorities it trusts.
#[derive(Clone)]
pub struct Identity {
    host: HostIdentity,
    view: CertificateView,
    chain: Vec<CertificateDer<'static>>,
    /// The key with its chain; none where only the certificate is known.
    key: Option<Arc<CertifiedKey>>,
    /// The certificates of both files as text, for the next start.
    texts: Arc<IdentityPem>,
    pub(crate) roots: Arc<RootCertStore>,
    /// The authorities in the file; the valid ones are the certificates behind `roots`.
    authorities: Authorities,
    /// When the first of the valid authorities ends.
    first_end_unix_seconds: u64,
    /// When the last of the ended authorities ended.
    last_end_unix_seconds: u64,
    pub(crate) revocations: Arc<Revocations>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "identity of {} until {}", self.host, self.view.not_after)
    }
}

impl Identity {
    /// Loads a host's files and checks that they belong together and are valid now.
    ///
    /// # Errors
    ///
    /// `E_CERTIFICATE`, with what to do, if a file cannot be read, if others may read the key, if
    /// the key does not match the certificate, if the certificate has expired, is from another
    /// authority or names no host, or if all authorities have ended. An authority that has ended is
    /// ignored if another is still valid.
    pub fn load(paths: &IdentityPaths<'_>) -> Result<Self, Fault> {
        let certificate = files::read_public(paths.certificate)?;
        let key = files::read_private(paths.key)?;
        let authorities = files::read_public(paths.authorities)?;
        let named = |path, pem| NamedPem { path, pem };
        Self::from_pem(
            named(paths.certificate, &certificate),
            named(paths.key, &key),
            named(paths.authorities, &authorities),
        )
    }

    /// Like [`Identity::load`], from the texts of the files.
    ///
    /// # Errors
    ///
    /// As [`Identity::load`].
    pub fn from_pem(
        certificate: NamedPem<'_>,
        key: NamedPem<'_>,
        authorities: NamedPem<'_>,
    ) -> Result<Self, Fault> {
        let (cert, ca) = (certificate.path, authorities.path);
        let texts = texts_of(certificate.pem, authorities.pem);
        let chain = chain_in(certificate)?;
        let leaf = chain.first().expect("a chain that was read is not empty");
        let host = view::identity_of(leaf).map_err(|fault| in_file(cert, &fault.detail))?;
        let view = view::of_der(leaf)?;
        let key_der = PrivateKeyDer::from_pem_slice(key.pem)
            .map_err(|error| in_file(key.path, &format!("holds no private key: {error}")))?;
        let authorities = Authorities::at(SystemTime::now(), chain_in(authorities)?);
        if authorities.valid.is_empty() {
            let clock = humantime::format_rfc3339_seconds(SystemTime::now());
            let why = format!(
                "every authority in it has ended; begin the next one, or set the clock, which says {clock}"
            );
            return Err(in_file(ca, &why));
        }
        let ends = authorities.valid.iter().filter_map(end_of);
        let first_end_unix_seconds = ends.min().unwrap_or(0);
        let ends = authorities.ended.iter().filter_map(end_of);
        let last_end_unix_seconds = ends.max().unwrap_or(0);
        let roots = roots(&authorities.valid).map_err(|why| in_file(ca, &why))?;
        check_chain(&chain, &roots, SystemTime::now()).map_err(|why| {
            let is_authority = |der| view::of_der(der).is_ok_and(|one| one.is_authority);
            if !authorities.valid.iter().any(is_authority) {
                return in_file(ca, NO_AUTHORITY);
            }
            let (shown, until) = (cert.display(), &view.not_after);
            Fault::new(Code::Certificate, format!("{shown} (until {until}): {why}"))
        })?;
        let paired = CertifiedKey::from_der(chain.clone(), key_der, &tls::provider());
        let paired = paired.map_err(|error| {
            let why = match error {
                Error::InconsistentKeys(_) => {
                    format!("is not the key of {}; issue the pair anew", cert.display())
                }
                other => other.to_string(),
            };
            in_file(key.path, &why)
        })?;
        Ok(Self {
            host,
            view,
            chain,
            key: Some(Arc::new(paired)),
            texts: Arc::new(texts),
            roots: Arc::new(roots),
            authorities,
            first_end_unix_seconds,
            last_end_unix_seconds,
            revocations: Arc::default(),
        })
    }

    /// The identity of a certificate that was kept as text, with the key of a file.
    ///
    /// # Errors
    ///
    /// As [`Identity::load`].
    pub fn load_with_kept_certificate(texts: &IdentityPem, key: &Path) -> Result<Self, Fault> {
        let key_pem = files::read_private(key)?;
        let key = NamedPem {
            path: key,
            pem: &key_pem,
        };
        Self::from_pem(kept(&texts.certificate), key, kept(&texts.authorities))
    }

    /// Who a host was by its certificate, without the key: it can be shown to operators and proves nothing to peers.
    /// Its time may be over.
    ///
    /// # Errors
    ///
    /// `E_CERTIFICATE` if a text holds no certificates, or the certificate names no host.
    pub fn without_key(texts: &IdentityPem) -> Result<Self, Fault> {
        let chain = chain_in(kept(&texts.certificate))?;
        let authorities = Authorities {
            valid: chain_in(kept(&texts.authorities))?,
            ended: Vec::new(),
        };
        let leaf = chain.first().expect("a chain that was read is not empty");
        let ends = authorities.valid.iter().filter_map(end_of);
        Ok(Self {
            host: view::identity_of(leaf)?,
            view: view::of_der(leaf)?,
            key: None,
            texts: Arc::new(texts.clone()),
            roots: Arc::new(RootCertStore::empty()),
            first_end_unix_seconds: ends.min().unwrap_or(0),
            last_end_unix_seconds: 0,
            revocations: Arc::default(),
            chain,
            authorities,
        })
    }

    /// Whether this host can prove who it is: without its key no link can be made.
    #[must_use]
    pub const fn has_key(&self) -> bool {
        self.key.is_some()
    }

    /// The key with its chain, for a handshake.
    ///
    /// # Errors
    ///
    /// `E_CERTIFICATE` if only the certificate is known.
    pub(crate) fn key(&self) -> Result<&Arc<CertifiedKey>, Fault> {
        self.key.as_ref().ok_or_else(Self::no_key)
    }

    /// Why a host that has no key makes no link.
    #[must_use]
    pub fn no_key() -> Fault {
        let detail = "this host's certificate and key cannot be used";
        Fault::new(Code::Certificate, detail).remedy(KEYLESS_REMEDY)
    }

    /// The certificates as text, for the next start.
    #[must_use]
    pub fn texts(&self) -> &IdentityPem {
        &self.texts
    }

    /// Reads a file of revocation lists and checks it against the authorities of this identity. No
    /// list may be older than the list of the same authority in `current`.
    ///
    /// # Errors
    ///
    /// As [`Revocations::load`].
    pub fn load_revocations(
        &self,
        crl: &Path,
        current: &Revocations,
    ) -> Result<Revocations, Fault> {
        Revocations::load(crl, &self.authorities, current)
    }

    /// Reads back the lists that were in use before a restart.
    ///
    /// # Errors
    ///
    /// As [`Revocations::from_kept`].
    pub fn recall_revocations(&self, text: &[u8]) -> Result<Revocations, Fault> {
        Revocations::from_kept(text, &self.authorities.valid)
    }

    /// The same identity, refusing the certificates that these lists revoke.
    #[must_use]
    pub fn refusing(mut self, revocations: Arc<Revocations>) -> Self {
        self.revocations = revocations;
        self
    }

    /// Whether both have the same certificate, authorities and lists.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.chain == other.chain
            && self.has_key() == other.has_key()
            && self.authorities.valid == other.authorities.valid
            && self.revocations.is_same(&other.revocations)
    }

    /// The revoked certificates that are known.
    #[must_use]
    pub const fn revocations(&self) -> &Arc<Revocations> {
        &self.revocations
    }

    /// Whether this host's own lists revoke the certificate that it shows to peers, or an
    /// intermediate of its chain. Every peer that has the same lists refuses it.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        let mut chain = self.chain().iter();
        chain.any(|one| self.revocations.is_revoked(one))
    }

    /// The certificate that is shown to peers, followed by its intermediates.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The trusted authority that signed a chain, at whatever time; `None` if none of them did.
    #[must_use]
    pub fn signer_of(&self, chain: &[CertificateDer<'static>]) -> Option<&CertificateDer<'static>> {
        self.authorities.valid.iter().find(|authority| {
            let alone = roots(std::slice::from_ref(authority));
            alone.is_ok_and(|root| check_signed(chain, &root).is_ok())
        })
    }

    /// The trusted authorities, as operators see them.
    pub fn authorities(&self) -> impl Iterator<Item = CertificateView> {
        self.authorities
            .valid
            .iter()
            .filter_map(|der| view::of_der(der).ok())
    }

    /// Whether loading this identity again at `now` would give other authorities. Either one of
    /// them has ended by now, or one that was left out has not: the clock was ahead then and has
    /// been set back.
    #[must_use]
    pub fn has_other_authorities(&self, now: SystemTime) -> bool {
        let now = unix_seconds_of(now);
        self.first_end_unix_seconds <= now || self.last_end_unix_seconds > now
    }

    /// The host that the certificate names.
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

/// When a certificate ends, in seconds since 1970; `None` if it does not parse.
fn end_of(der: &CertificateDer<'_>) -> Option<u64> {
    view::of_der(der).ok().map(|one| one.not_after_unix_seconds)
}

/// Makes a root store of certificates.
pub(crate) fn roots(authorities: &[CertificateDer<'static>]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for root in authorities {
        roots.add(root.clone()).map_err(|error| error.to_string())?;
    }
    Ok(roots)
}

/// Reads a file of one or more certificates.
pub(crate) fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let pem = files::read_public(path)?;
    chain_in(NamedPem { path, pem: &pem })
}

/// The text of a kept certificate, which is in no file that an operator knows.
fn kept(text: &str) -> NamedPem<'_> {
    NamedPem {
        path: Path::new(KEPT),
        pem: text.as_bytes(),
    }
}

/// The certificates in a file.
fn chain_in(NamedPem { path, pem }: NamedPem<'_>) -> Result<Vec<CertificateDer<'static>>, Fault> {
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

/// The certificates of both files, and nothing else that may stand in them: not a key above all.
fn texts_of(cert_pem: &[u8], ca_pem: &[u8]) -> IdentityPem {
    let of = |pem: &[u8]| {
        let (text, mut is_inside, mut kept) = (String::from_utf8_lossy(pem), false, String::new());
        for line in text.lines().map(str::trim_end) {
            is_inside |= line == "-----BEGIN CERTIFICATE-----";
            if is_inside {
                kept.push_str(line);
                kept.push('\n');
            }
            is_inside &= line != "-----END CERTIFICATE-----";
        }
        kept
    };
    IdentityPem {
        certificate: of(cert_pem),
        authorities: of(ca_pem),
    }
}

/// Checks that a chain leads to a root, at whatever time: the certificate of a box that was in a
/// cupboard for too long is renewed, not issued anew.
pub(crate) fn check_signed(
    chain: &[CertificateDer<'static>],
    roots: &RootCertStore,
) -> Result<(), String> {
    let leaf = chain.first().ok_or("there is no certificate")?;
    let until = view::of_der(leaf).map_err(|fault| fault.detail)?;
    let last = Duration::from_secs(until.not_after_unix_seconds.saturating_sub(1));
    check_chain(chain, roots, SystemTime::UNIX_EPOCH + last)
}

/// Checks that a peer with the same authority would accept this chain now; otherwise says what to
/// do.
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
