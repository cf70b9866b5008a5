//! Verifies a peer's certificate: its chain, validity, usage, and a host name in our trust domain.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::CryptoProvider;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    AlertDescription, CertificateError, DigitallySignedStruct, DistinguishedName, Error,
    OtherError, RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::Name;

use crate::revocation::Revocations;
use crate::view;

/// Why a handshake was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rejection {
    /// The peer showed no certificate.
    NoCertificate,
    /// Its certificate was not signed by our authority.
    UnknownAuthority,
    /// Its certificate has expired.
    Expired,
    /// Its certificate is not valid yet: often a wrong clock.
    NotYetValid,
    /// Its certificate is not meant for this side of a connection.
    WrongUsage,
    /// Its certificate names no host, a host of another domain, or another site than was dialled.
    WrongName,
    /// Its certificate has been revoked.
    Revoked,
    /// Its certificate or signature does not parse or verify.
    Malformed,
    /// It speaks another protocol, another version of TLS, or none of our algorithms.
    WrongProtocol,
}

impl Rejection {
    /// Every reason, in the order of the counters.
    pub const ALL: [Self; 9] = [
        Self::NoCertificate,
        Self::UnknownAuthority,
        Self::Expired,
        Self::NotYetValid,
        Self::WrongUsage,
        Self::WrongName,
        Self::Revoked,
        Self::Malformed,
        Self::WrongProtocol,
    ];

    /// The reason as a metric label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::UnknownAuthority => "unknown_authority",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::WrongUsage => "wrong_usage",
            Self::WrongName => "wrong_name",
            Self::Revoked => "revoked",
            Self::Malformed => "malformed",
            Self::WrongProtocol => "wrong_protocol",
        }
    }

    /// The reason for a TLS alert that we sent before any certificate was checked; `None` for the
    /// others, which the verifier counts itself because it knows more than an alert can say.
    #[must_use]
    pub const fn from_alert(alert: AlertDescription) -> Option<Self> {
        match alert {
            AlertDescription::CertificateRequired => Some(Self::NoCertificate),
            AlertDescription::HandshakeFailure
            | AlertDescription::ProtocolVersion
            | AlertDescription::InsufficientSecurity
            | AlertDescription::MissingExtension
            | AlertDescription::NoApplicationProtocol => Some(Self::WrongProtocol),
            _ => None,
        }
    }

    /// Whether an alert reports a certificate, or a signature made with one. The verifier has
    /// already counted those.
    #[must_use]
    pub const fn is_by_verifier(alert: AlertDescription) -> bool {
        matches!(
            alert,
            AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateUnknown
                | AlertDescription::UnknownCA
                | AlertDescription::AccessDenied
                | AlertDescription::DecryptError
        )
    }

    /// The reason that an alert stands for, whether we sent it or the peer did. The alert is the
    /// same for a certificate that has expired and one that is not valid yet.
    #[must_use]
    pub const fn from_any_alert(alert: AlertDescription) -> Option<Self> {
        Some(match alert {
            AlertDescription::BadCertificate => Self::Malformed,
            AlertDescription::UnsupportedCertificate => Self::WrongUsage,
            AlertDescription::CertificateRevoked => Self::Revoked,
            AlertDescription::CertificateExpired => Self::Expired,
            AlertDescription::CertificateUnknown | AlertDescription::AccessDenied => {
                Self::WrongName
            }
            // A stranger's authority may carry the name of our authority; then a signature check
            // fails.
            AlertDescription::UnknownCA | AlertDescription::DecryptError => Self::UnknownAuthority,
            _ => return Self::from_alert(alert),
        })
    }

    fn from_error(error: &Error) -> Self {
        let Error::InvalidCertificate(error) = error else {
            return Self::Malformed;
        };
        match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Self::NotYetValid
            }
            // A stranger's authority may carry the name of our authority; then the signature check
            // fails.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                Self::UnknownAuthority
            }
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                Self::WrongUsage
            }
            CertificateError::Revoked => Self::Revoked,
            CertificateError::ApplicationVerificationFailure => Self::WrongName,
            _ => Self::Malformed,
        }
    }
}

/// A refused certificate, with a text. The TLS library would keep only the alert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub reason: Rejection,
    /// What was found, with the actual values.
    pub detail: String,
}

/// Counts each reason, and keeps the last refusal of each site; shared by all handshakes of a
/// daemon.
#[derive(Debug, Default)]
pub struct Rejections {
    counts: [AtomicU64; Rejection::ALL.len()],
    /// Keyed by the site that was dialled; `None` for peers that dial us.
    last: Mutex<BTreeMap<Option<Name>, Refusal>>,
}

impl Rejections {
    /// Counts one refusal.
    pub fn count(&self, reason: Rejection) {
        self.counts[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How often a reason occurred.
    #[must_use]
    pub fn of(&self, reason: Rejection) -> u64 {
        self.counts[reason as usize].load(Ordering::Relaxed)
    }

    /// The last refusal of a certificate shown by a server when this site was dialled; for `None`,
    /// by a peer that dialled us.
    #[must_use]
    pub fn last(&self, site: Option<&Name>) -> Option<Refusal> {
        self.lasts().get(&site.cloned()).cloned()
    }

    fn note(&self, site: Option<&Name>, refusal: Refusal) {
        self.count(refusal.reason);
        // At most one entry for each site that we dial, and one for peers that dial us.
        self.lasts().insert(site.cloned(), refusal);
    }

    fn lasts(&self) -> MutexGuard<'_, BTreeMap<Option<Name>, Refusal>> {
        self.last.lock()
    }
}

/// Verifies peers, as server and as client.
#[derive(Debug)]
pub(crate) struct PeerVerifier {
    roots: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
    provider: Arc<CryptoProvider>,
    trust_domain: Name,
    site: Option<Name>,
    revocations: Arc<Revocations>,
    rejections: Arc<Rejections>,
}

impl PeerVerifier {
    pub(crate) fn new(
        (roots, revocations): (Arc<RootCertStore>, Arc<Revocations>),
        provider: Arc<CryptoProvider>,
        trust_domain: Name,
        site: Option<Name>,
        rejections: Arc<Rejections>,
    ) -> Result<Self, Fault> {
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .build()
                .map_err(|error| {
                    let detail = format!("the authority's certificate: {error}");
                    Fault::new(Code::Certificate, detail)
                })?;
        Ok(Self {
            roots,
            clients,
            provider,
            trust_domain,
            site,
            revocations,
            rejections,
        })
    }

    fn check_name(&self, certificate: &CertificateDer<'_>) -> Result<(), Fault> {
        let refuse = |detail: String| Fault::new(Code::Certificate, detail);
        let peer = view::identity_of(certificate)?;
        if peer.trust_domain != self.trust_domain {
            let (theirs, ours) = (&peer.trust_domain, &self.trust_domain);
            return Err(refuse(format!("a host of {theirs}, and this is {ours}")));
        }
        match &self.site {
            Some(site) if *site != peer.site => {
                let answered = &peer.site;
                Err(refuse(format!(
                    "{answered} answered where {site} was dialled"
                )))
            }
            _ => Ok(()),
        }
    }

    /// Checks that no certificate of a valid chain has been revoked, intermediates included.
    fn check_revocation(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Result<(), Error> {
        let mut shown = std::iter::once(end_entity).chain(intermediates);
        if shown.any(|certificate| self.revocations.is_revoked(certificate)) {
            return Err(Error::InvalidCertificate(CertificateError::Revoked));
        }
        Ok(())
    }

    /// Counts the reason a check failed, and puts it into the error.
    fn counted<T>(&self, named: Result<(), Fault>, chain: Result<T, Error>) -> Result<T, Error> {
        let (reason, detail, error) = match (chain, named) {
            (Err(error), _) => (Rejection::from_error(&error), error.to_string(), error),
            (Ok(_), Err(fault)) => {
                let detail = fault.detail.clone();
                let error = CertificateError::Other(OtherError(Arc::new(fault)));
                let error = Error::InvalidCertificate(error);
                (Rejection::WrongName, detail, error)
            }
            (Ok(value), Ok(())) => return Ok(value),
        };
        let refusal = Refusal { reason, detail };
        self.rejections.note(self.site.as_ref(), refusal);
        Err(error)
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let algorithms = self.provider.signature_verification_algorithms.all;
        let chain = ParsedCertificate::try_from(end_entity).and_then(|certificate| {
            verify_server_cert_signed_by_trust_anchor(
                &certificate,
                &self.roots,
                intermediates,
                now,
                algorithms,
            )
        });
        let chain = chain.and_then(|()| self.check_revocation(end_entity, intermediates));
        self.counted(self.check_name(end_entity), chain)
            .map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.clients
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.clients.supported_verify_schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.clients.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let chain = self
            .clients
            .verify_client_cert(end_entity, intermediates, now)
            .and_then(|good| {
                self.check_revocation(end_entity, intermediates)?;
                Ok(good)
            });
        self.counted(self.check_name(end_entity), chain)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.clients
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.clients.supported_verify_schemes()
    }
}
