//! A certificate as operators see it.

use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{KeyPair, PublicKeyData};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::HostIdentity;
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

use crate::{files, identity};

/// The contents of a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateView {
    /// Its URI, if it has exactly one.
    pub uri: Option<String>,
    /// The host, if the URI names one.
    pub identity: Option<HostIdentity>,
    /// Whether it may sign other certificates.
    pub is_authority: bool,
    /// Who signed it.
    pub issuer: String,
    /// Its serial number, in hexadecimal.
    pub serial: String,
    /// First moment, RFC 3339.
    pub not_before: String,
    /// First moment in seconds since 1970.
    pub not_before_unix_seconds: u64,
    /// Last moment, RFC 3339.
    pub not_after: String,
    /// Last moment in seconds since 1970.
    pub not_after_unix_seconds: u64,
    /// What it may be used for.
    pub usages: Vec<String>,
}

/// Reads the first certificate of a PEM file.
///
/// # Errors
///
/// `E_CERTIFICATE` if there is none.
pub fn show(path: &Path) -> Result<CertificateView, Fault> {
    let pem = files::read_public(path)?;
    let der = CertificateDer::from_pem_slice(&pem).map_err(|error| {
        let detail = format!("{} holds no certificate: {error}", path.display());
        Fault::new(Code::Certificate, detail)
    })?;
    of_der(&der)
}

/// Reads every certificate of a PEM file, in order: a host's own comes before its intermediates.
///
/// # Errors
///
/// `E_CERTIFICATE` if there is none, if there are more than a host's file may hold, or if one does not parse.
pub fn show_chain(path: &Path) -> Result<Vec<CertificateView>, Fault> {
    identity::read_chain(path)?.iter().map(of_der).collect()
}

/// Reads a certificate.
///
/// # Errors
///
/// `E_CERTIFICATE` if it does not parse.
pub fn of_der(der: &CertificateDer<'_>) -> Result<CertificateView, Fault> {
    let certificate = parse(der)?;
    let uri = only_uri(&certificate);
    let identity = uri.and_then(|uri| HostIdentity::from_uri(uri).ok());
    let validity = certificate.validity();
    let not_before = unix_seconds(validity.not_before.timestamp());
    let not_after = unix_seconds(validity.not_after.timestamp());
    Ok(CertificateView {
        uri: uri.map(str::to_owned),
        identity,
        is_authority: certificate.is_ca(),
        issuer: printable(&certificate.issuer().to_string()),
        serial: hex(certificate.raw_serial()),
        not_before: rfc3339(not_before),
        not_before_unix_seconds: not_before,
        not_after: rfc3339(not_after),
        not_after_unix_seconds: not_after,
        usages: usages(&certificate),
    })
}

/// The host that a certificate names.
///
/// # Errors
///
/// `E_CERTIFICATE` if it names none, or more than one.
pub fn identity_of(der: &CertificateDer<'_>) -> Result<HostIdentity, Fault> {
    let certificate = parse(der)?;
    let uri = only_uri(&certificate).ok_or_else(|| {
        let detail = "a certificate names a host by exactly one URI, and this one does not";
        Fault::new(Code::Certificate, detail)
    })?;
    HostIdentity::from_uri(uri)
}

/// Whether a certificate is for this key.
pub(crate) fn public_key_is(certificate_pem: &str, key: &KeyPair) -> Result<bool, Fault> {
    let der = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
        .map_err(|error| Fault::new(Code::Certificate, format!("no certificate: {error}")))?;
    is_key_of(&der, key)
}

/// The same of a certificate that was read.
pub(crate) fn is_key_of(der: &CertificateDer<'_>, key: &KeyPair) -> Result<bool, Fault> {
    let certificate = parse(der)?;
    Ok(certificate.public_key().subject_public_key.data == key.der_bytes())
}

/// The URI in the first certificate of a PEM text.
pub(crate) fn uri_in(pem: &str) -> Result<Option<String>, Fault> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| Fault::new(Code::Certificate, format!("no certificate: {error}")))?;
    Ok(of_der(&der)?.uri)
}

/// The public key of a certificate and its algorithm, in DER.
pub(crate) fn public_key_info(der: &CertificateDer<'_>) -> Result<Vec<u8>, Fault> {
    Ok(parse(der)?.public_key().raw.to_vec())
}

/// Issuer and serial number as encoded in a certificate; `None` if it does not parse.
pub(crate) fn issuer_and_serial(der: &CertificateDer<'_>) -> Option<(Vec<u8>, Vec<u8>)> {
    let certificate = parse(der).ok()?;
    let (issuer, serial) = (certificate.issuer().as_raw(), certificate.raw_serial());
    Some((issuer.to_vec(), serial.to_vec()))
}

/// An authority's name as encoded in its certificate, and its public key; `None` if it does not
/// parse.
pub(crate) fn subject_and_key(der: &CertificateDer<'static>) -> Option<(Vec<u8>, Vec<u8>)> {
    let certificate = parse(der).ok()?;
    let key = certificate.public_key().subject_public_key.data.to_vec();
    Some((certificate.subject().as_raw().to_vec(), key))
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Fault> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => {
            let detail = "a certificate has bytes after its end";
            Err(Fault::new(Code::Certificate, detail))
        }
        Err(error) => {
            let detail = format!("a certificate does not parse: {error}");
            Err(Fault::new(Code::Certificate, detail))
        }
    }
}

fn only_uri<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a str> {
    let names = certificate.subject_alternative_name().ok()??;
    let mut uris = names
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
    let first = uris.next()?;
    uris.next().is_none().then_some(first)
}

fn usages(certificate: &X509Certificate<'_>) -> Vec<String> {
    let mut usages = Vec::new();
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::KeyUsage(usage) => {
                let named = [
                    (usage.digital_signature(), "digital-signature"),
                    (usage.key_cert_sign(), "sign-certificates"),
                    (usage.crl_sign(), "sign-revocations"),
                ];
                usages.extend(named.iter().filter(|(is, _)| *is).map(|(_, n)| *n));
            }
            ParsedExtension::ExtendedKeyUsage(usage) => {
                let named = [(usage.client_auth, "client"), (usage.server_auth, "server")];
                usages.extend(named.iter().filter(|(is, _)| *is).map(|(_, n)| *n));
            }
            _ => {}
        }
    }
    usages.into_iter().map(str::to_owned).collect()
}

/// Seconds since 1970; 0 for times before then, which are just as expired.
pub(crate) fn unix_seconds(timestamp: i64) -> u64 {
    u64::try_from(timestamp).unwrap_or(0)
}

/// The last second of the year 9999, the latest that RFC 3339 can express.
pub(crate) const LAST_SECOND_OF_9999: u64 = 253_402_300_799;

/// A time as RFC 3339. Certificates may claim any time, but the formatter stops at the year 9999.
pub(crate) fn rfc3339(seconds: u64) -> String {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.min(LAST_SECOND_OF_9999));
    humantime::format_rfc3339_seconds(time).to_string()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Decodes hexadecimal digits; `None` if they are not.
pub(crate) fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    let pairs = (0..text.len()).step_by(2);
    pairs
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok())
        .collect()
}

/// Text from a certificate, without characters that could control a terminal.
pub(crate) fn printable(text: &str) -> String {
    let plain = |c: char| if c.is_control() { '?' } else { c };
    text.chars().take(200).map(plain).collect()
}
