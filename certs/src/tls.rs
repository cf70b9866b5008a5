//! The only TLS settings that Towpath uses: 1.3, mutual authentication, one suite, one key
//! exchange, no resumption.
//!
//! Both ends of a link are ours, so nothing has to be negotiated. [`ALPN`] stands for exactly one
//! cipher suite and one key exchange; a weaker pair is not offered and so cannot be agreed on. A
//! later release that wants another pair offers another ALPN beside this one.

use std::sync::{Arc, OnceLock};

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, NamedGroup, ServerConfig};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::Name;

use crate::identity::Identity;
use crate::verify::{PeerVerifier, Rejections};

/// The application protocol of version 1 of the link.
pub const ALPN: &[u8] = b"towpath/1";

/// The key exchange of [`ALPN`]: hybrid, so that traffic recorded today cannot be decrypted by the
/// quantum computers of tomorrow.
pub const KEY_EXCHANGE: &str = "X25519MLKEM768";

/// The cipher suite of [`ALPN`]: every 64-bit processor of the last decade supports it in hardware,
/// and it was the fastest measured.
pub const CIPHER_SUITE: &str = "TLS13_AES_128_GCM_SHA256";

/// Like [`provider`], with a key exchange that a quantum computer would break. No daemon uses it; a
/// bench compares it with the hybrid one to show what that costs.
#[doc(hidden)]
pub fn classical_provider() -> Arc<CryptoProvider> {
    let mut classical = CryptoProvider::clone(&provider());
    classical.kx_groups = vec![aws_lc_rs::kx_group::X25519];
    Arc::new(classical)
}

/// The algorithms of [`ALPN`].
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| {
        Arc::new(CryptoProvider {
            cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256],
            kx_groups: vec![aws_lc_rs::kx_group::X25519MLKEM768],
            ..aws_lc_rs::default_provider()
        })
    }))
}

/// Whether a key exchange is a hybrid of an elliptic curve and a lattice, as strong as the better
/// of the two.
#[must_use]
pub const fn is_hybrid(group: NamedGroup) -> bool {
    matches!(
        group,
        NamedGroup::X25519MLKEM768 | NamedGroup::secp256r1MLKEM768
    )
}

/// TLS settings of the side that is dialled.
///
/// # Errors
///
/// `E_CERTIFICATE` if the authority's certificate cannot be used, or the identity has no key.
pub fn server_config(
    identity: &Identity,
    rejections: &Arc<Rejections>,
) -> Result<ServerConfig, Fault> {
    server_config_with(provider(), identity, rejections)
}

/// Like [`server_config`], with other algorithms: for the bench that compares them.
///
/// # Errors
///
/// As [`server_config`].
#[doc(hidden)]
pub fn server_config_with(
    provider: Arc<CryptoProvider>,
    identity: &Identity,
    rejections: &Arc<Rejections>,
) -> Result<ServerConfig, Fault> {
    let verifier = verifier(Arc::clone(&provider), identity, None, rejections)?;
    let resolver: Arc<dyn ResolvesServerCert> =
        Arc::new(SingleCertAndKey::from(Arc::clone(identity.key()?)));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| unusable(&error))?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed session would skip the verifier, and early data can be replayed: both are disabled.
    config.max_early_data_size = 0;
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

/// TLS settings of the side that dials `site`; the server must prove that it belongs to that site.
///
/// # Errors
///
/// `E_CERTIFICATE` if the authority's certificate cannot be used, or the identity has no key.
pub fn client_config(
    identity: &Identity,
    site: &Name,
    rejections: &Arc<Rejections>,
) -> Result<ClientConfig, Fault> {
    client_config_with(provider(), identity, site, rejections)
}

/// Like [`client_config`], with other algorithms: for the bench that compares them.
///
/// # Errors
///
/// As [`client_config`].
#[doc(hidden)]
pub fn client_config_with(
    provider: Arc<CryptoProvider>,
    identity: &Identity,
    site: &Name,
    rejections: &Arc<Rejections>,
) -> Result<ClientConfig, Fault> {
    let verifier = verifier(
        Arc::clone(&provider),
        identity,
        Some(site.clone()),
        rejections,
    )?;
    let resolver = Arc::new(SingleCertAndKey::from(Arc::clone(identity.key()?)));
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| unusable(&error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(resolver);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_early_data = false;
    config.resumption = Resumption::disabled();
    // A server name in the clear would tell an eavesdropper whom we dial, and the verifier does not
    // use it.
    config.enable_sni = false;
    Ok(config)
}

fn verifier(
    provider: Arc<CryptoProvider>,
    identity: &Identity,
    site: Option<Name>,
    rejections: &Arc<Rejections>,
) -> Result<PeerVerifier, Fault> {
    PeerVerifier::new(
        (
            Arc::clone(&identity.roots),
            Arc::clone(&identity.revocations),
        ),
        provider,
        identity.host().trust_domain.clone(),
        site,
        Arc::clone(rejections),
    )
}

fn unusable(error: &rustls::Error) -> Fault {
    Fault::new(Code::Certificate, format!("the TLS settings: {error}"))
}
