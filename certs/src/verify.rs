//! What a peer's certificate must prove: chain, time, use, and a host's name in our trust domain.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::CryptoProvider;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
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
    /// Its certificate's time is over.
    Expired,
    /// Its certificate's time has not begun: often a clock.
    NotYetValid,
    /// Its certificate is not meant for this side of a connection.
    WrongUsage,
    /// Its certificate names no host, one of another domain, or another site than was dialled.
    WrongName,
    /// Its certificate has been revoked.
    Revoked,
    /// Its certificate or signature does not parse or verify.
    Malformed,
    /// It speaks another protocol, another version of TLS, or no algorithm of ours.
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

    /// The reason as the metric's label.
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

    /// The reason behind a TLS alert we sent before any certificate was looked at; the others are
    /// counted by the verifier itself, which knows more than an alert can say.
    #[must_use]
    pub const fn from_alert(alert: u8) -> Option<Self> {
        match alert {
            116 => Some(Self::NoCertificate),
            // handshake_failure, protocol_version, insufficient_security, missing_extension,
            // no_application_protocol
            40 | 70 | 71 | 109 | 120 => Some(Self::WrongProtocol),
            _ => None,
        }
    }

    /// Whether an alert is one of those that stand for a certificate, or for what was signed with it: the verifier
    /// has counted that.
    #[must_use]
    pub const fn is_by_verifier(alert: u8) -> bool {
        // bad_certificate to certificate_unknown, unknown_ca, access_denied, decrypt_error
        matches!(alert, 42..=46 | 48 | 49 | 51)
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
            // A stranger's authority may carry our authority's name: then the signature fails.
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

/// How often each reason occurred; shared by all handshakes of a daemon.
#[derive(Debug, Default)]
pub struct Rejections([AtomicU64; Rejection::ALL.len()]);

impl Rejections {
    /// Counts one.
    pub fn count(&self, reason: Rejection) {
        self.0[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How often it occurred.
    #[must_use]
    pub fn of(&self, reason: Rejection) -> u64 {
        self.0[reason as usize].load(Ordering::Relaxed)
    }
}

/// Checks peers on both sides of a connection.
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

    fn check_name(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let refuse = |detail: String| {
            let fault = Fault::new(Code::Certificate, detail);
            Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(fault))))
        };
        let peer = view::identity_of(certificate).map_err(|fault| refuse(fault.detail))?;
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

    /// Whether a chain that holds may still be used: what leads from its certificate to an authority, too.
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

    /// Counts what ended a check, and says it in the error.
    fn counted<T>(&self, named: Result<(), Error>, chain: Result<T, Error>) -> Result<T, Error> {
        let checked = chain
            .map_err(|error| (Rejection::from_error(&error), error))
            .and_then(|value| {
                named.map_err(|error| (Rejection::WrongName, error))?;
                Ok(value)
            });
        checked.map_err(|(reason, error)| {
            self.rejections.count(reason);
            error
        })
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
