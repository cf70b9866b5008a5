//! Creating the authority of a trust domain, and issuing certificates to its hosts.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::{HostIdentity, Name};

use crate::files::{self, KeyFolder, Readers};
use crate::identity::IdentityPaths;
use crate::register::{Entry, IssuedView, Register, unix_seconds_of};
use crate::tls;
use crate::view;

/// Default validity of a host's certificate. A quarter is short enough that renewal is practised,
/// and long enough that a box that was in a cupboard for a month can still join.
pub const LEAF_VALIDITY: Duration = Duration::from_hours(90 * 24);

/// Validity of the authority itself: longer than the life of the boxes that trust it.
pub const AUTHORITY_VALIDITY: Duration = Duration::from_hours(3650 * 24);

/// How far before the moment of issue a certificate's validity begins: edge boxes have no good
/// clock just after they start.
pub const BACKDATED: Duration = Duration::from_mins(5);

/// Longest validity of a host's certificate: after that nobody remembers the box.
pub const LEAF_VALIDITY_MAX: Duration = Duration::from_hours(825 * 24);

pub(crate) const AUTHORITY_CERTIFICATE: &str = "ca.pem";
pub(crate) const AUTHORITY_KEY: &str = "ca.key";
pub(crate) const LEAF_CERTIFICATE: &str = "cert.pem";
pub(crate) const LEAF_KEY: &str = "key.pem";
pub(crate) const REVOCATION_LIST: &str = "crl.pem";

/// The time span in which a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// First moment.
    pub not_before: SystemTime,
    /// Last moment.
    pub not_after: SystemTime,
}

impl Validity {
    /// From a little before `now` ([`BACKDATED`]) until `duration` after `now`.
    #[must_use]
    pub fn lasting(duration: Duration, now: SystemTime) -> Self {
        Self {
            not_before: now - BACKDATED,
            not_after: now + duration,
        }
    }
}

/// Where a host's files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFiles {
    /// The host's certificate.
    pub cert: PathBuf,
    /// The host's private key, mode 0600.
    pub key: PathBuf,
    /// The authority's certificate; during an overlap of two authorities, both certificates.
    pub ca: PathBuf,
    /// The lists of revoked certificates, if the authority has signed any.
    pub crl: Option<PathBuf>,
}

impl IdentityFiles {
    /// The files that an identity is loaded from.
    #[must_use]
    pub fn paths(&self) -> IdentityPaths<'_> {
        IdentityPaths {
            certificate: &self.cert,
            key: &self.key,
            authorities: &self.ca,
        }
    }
}

/// A trust domain's authority with its private key.
pub struct Authority {
    folder: PathBuf,
    trust_domain: Name,
    pub(crate) certificate_pem: String,
    not_after: SystemTime,
    pub(crate) issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "authority of {}", self.trust_domain)
    }
}

impl Authority {
    /// Creates the authority of a trust domain in a folder that does not hold one yet.
    ///
    /// # Errors
    ///
    /// `E_STATE` if the folder already holds one, `E_PATH` or `E_IO` if it cannot be used.
    pub fn init(folder: &Path, trust_domain: &Name) -> Result<Self, Fault> {
        let keys = KeyFolder::open_or_create(folder)?;
        if keys.contains(AUTHORITY_CERTIFICATE) || keys.contains(AUTHORITY_KEY) {
            let shown = folder.display();
            return Err(Fault::new(
                Code::State,
                format!("{shown} already holds an authority; use it, or name another folder"),
            ));
        }
        let validity = Validity::lasting(AUTHORITY_VALIDITY, SystemTime::now());
        let mut params = params(&format!("spiffe://{trust_domain}"), validity)?;
        // Two authorities of one domain must not share a name: a revocation list identifies
        // certificates by the name of their issuer.
        let mark = random_serial()?.to_bytes()[..4].to_vec();
        params.distinguished_name.push(
            DnType::CommonName,
            format!("Towpath authority {trust_domain} {}", view::hex(&mark)),
        );
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = new_key()?;
        let certificate = params.self_signed(&key).map_err(|error| failed(&error))?;
        // The key is written first: a certificate without its key would look like an authority but
        // could not sign.
        keys.write_new(AUTHORITY_KEY, &key.serialize_pem(), Readers::Owner)?;
        keys.write_new(AUTHORITY_CERTIFICATE, &certificate.pem(), Readers::All)?;
        Self::open(folder)
    }

    /// Opens the authority of a folder.
    ///
    /// # Errors
    ///
    /// `E_CERTIFICATE` if its files are missing, do not belong together, or are readable by others.
    pub fn open(folder: &Path) -> Result<Self, Fault> {
        let certificate_path = folder.join(AUTHORITY_CERTIFICATE);
        let key_pem = text(files::read_private(&folder.join(AUTHORITY_KEY))?)?;
        let certificate_pem = text(files::read_public(&certificate_path)?)?;
        let key = KeyPair::from_pem(&key_pem).map_err(|error| failed(&error))?;
        let seen = view::show(&certificate_path)?;
        if !seen.is_authority || !view::public_key_is(&certificate_pem, &key)? {
            let shown = folder.display();
            return Err(Fault::new(
                Code::Certificate,
                format!("{AUTHORITY_CERTIFICATE} and {AUTHORITY_KEY} of {shown} are no pair"),
            ));
        }
        let trust_domain = seen
            .uri
            .as_deref()
            .and_then(|uri| uri.strip_prefix("spiffe://"))
            .and_then(|domain| domain.parse().ok())
            .ok_or_else(|| {
                let shown = certificate_path.display();
                let detail = format!("{shown} names no trust domain");
                Fault::new(Code::Certificate, detail)
            })?;
        let not_after = SystemTime::UNIX_EPOCH + Duration::from_secs(seen.not_after_unix_seconds);
        let issuer =
            Issuer::from_ca_cert_pem(&certificate_pem, key).map_err(|error| failed(&error))?;
        Ok(Self {
            folder: folder.to_owned(),
            trust_domain,
            certificate_pem,
            not_after,
            issuer,
        })
    }

    /// The trust domain in which this authority names hosts.
    #[must_use]
    pub const fn trust_domain(&self) -> &Name {
        &self.trust_domain
    }

    /// Issues a certificate and a new key for a host into a folder that belongs to that host:
    /// `cert.pem`, `key.pem`, `ca.pem`, and `crl.pem` if the authority has signed a list of revoked
    /// certificates. If that list has ended or is about to end, the next one is signed first.
    ///
    /// # Errors
    ///
    /// `E_USAGE` for a host of another domain or a validity the authority cannot give, `E_STATE` if
    /// the folder already holds such files, `E_PATH` or `E_IO` if it cannot be used.
    pub fn issue(
        &self,
        identity: &HostIdentity,
        validity: Validity,
        into: &Path,
    ) -> Result<IdentityFiles, Fault> {
        self.check(identity, validity)?;
        let folder = KeyFolder::open_or_create(into)?;
        for name in [
            LEAF_KEY,
            LEAF_CERTIFICATE,
            AUTHORITY_CERTIFICATE,
            REVOCATION_LIST,
        ] {
            if folder.contains(name) {
                let shown = into.join(name).display().to_string();
                return Err(Fault::new(
                    Code::State,
                    format!("{shown} is already there; move it away or name another folder"),
                ));
            }
        }
        let key = new_key()?;
        let mut register = self.register()?;
        let list = self.list_in_time(&mut register, SystemTime::now())?;
        let certificate = self.sign(&mut register, identity, validity, &key)?;
        let write = |name, pem: &str| folder.write_new(name, pem, Readers::All);
        Ok(IdentityFiles {
            key: folder.write_new(LEAF_KEY, &key.serialize_pem(), Readers::Owner)?,
            cert: write(LEAF_CERTIFICATE, &certificate)?,
            ca: write(AUTHORITY_CERTIFICATE, &self.certificate_pem)?,
            crl: list.map(|list| write(REVOCATION_LIST, &list)).transpose()?,
        })
    }

    /// Every certificate that the authority has issued, in order of issue, with its state at `now`.
    ///
    /// # Errors
    ///
    /// `E_IO` if the register cannot be read.
    pub fn issued(&self, now: SystemTime) -> Result<Vec<IssuedView>, Fault> {
        Ok(self.register()?.issued(now))
    }

    /// Signs a host's certificate for a key, after it has been entered in the register.
    pub(crate) fn sign(
        &self,
        register: &mut Register,
        identity: &HostIdentity,
        validity: Validity,
        key: &impl PublicKeyData,
    ) -> Result<String, Fault> {
        let mut params = params(&identity.uri(), validity)?;
        params
            .distinguished_name
            .push(DnType::CommonName, identity.to_string());
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        let serial = params.serial_number.as_ref().map(SerialNumber::to_bytes);
        let certificate = params
            .signed_by(key, &self.issuer)
            .map_err(|error| failed(&error))?;
        register.add(&Entry::Issued {
            serial: view::hex(&serial.unwrap_or_default()),
            identity: identity.uri(),
            at_unix_seconds: unix_seconds_of(SystemTime::now()),
            not_after_unix_seconds: unix_seconds_of(validity.not_after),
        })?;
        Ok(certificate.pem())
    }

    /// The authority's own folder.
    pub(crate) fn folder(&self) -> Result<KeyFolder, Fault> {
        KeyFolder::open_or_create(&self.folder)
    }

    /// Opens the register and locks it: no other process writes to it until it is dropped.
    pub(crate) fn register(&self) -> Result<Register, Fault> {
        Register::open(&self.folder()?)
    }

    /// The most recently signed list of revoked certificates, if there is one.
    pub(crate) fn list_pem(&self) -> Result<Option<String>, Fault> {
        list_in(&self.folder)
    }

    /// Checks that the authority may name this host, with this validity.
    pub(crate) fn check(&self, identity: &HostIdentity, validity: Validity) -> Result<(), Fault> {
        if identity.trust_domain != self.trust_domain {
            let (theirs, ours) = (&identity.trust_domain, &self.trust_domain);
            return Err(Fault::new(
                Code::Usage,
                format!("the authority of {ours} names no hosts of {theirs}"),
            ));
        }
        let lasts = validity.not_after.duration_since(validity.not_before);
        let refused = match lasts {
            Err(_) => "it would end before it begins".to_owned(),
            Ok(lasts) if lasts > LEAF_VALIDITY_MAX + BACKDATED => {
                let days = LEAF_VALIDITY_MAX.as_secs() / 86_400;
                format!("a host's certificate lasts at most {days} days")
            }
            Ok(_) if validity.not_after > self.not_after => {
                "it would outlive the authority's own certificate".to_owned()
            }
            Ok(_) => return Ok(()),
        };
        Err(Fault::new(Code::Usage, refused))
    }
}

fn params(uri: &str, validity: Validity) -> Result<CertificateParams, Fault> {
    let mut params = CertificateParams::default();
    params.not_before = validity.not_before.into();
    params.not_after = validity.not_after.into();
    params.serial_number = Some(random_serial()?);
    params.distinguished_name = DistinguishedName::new();
    let uri = uri.try_into().map_err(|error| failed(&error))?;
    params.subject_alt_names = vec![SanType::URI(uri)];
    Ok(params)
}

/// 126 random bits: positive, and always 16 bytes long, as CAs must draw them.
fn random_serial() -> Result<SerialNumber, Fault> {
    let mut serial = [0; 16];
    tls::provider()
        .secure_random
        .fill(&mut serial)
        .map_err(|_| Fault::new(Code::Io, "no random numbers to be had"))?;
    serial[0] = serial[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&serial))
}

/// The list of revoked certificates in an authority's folder, if there is one.
pub(crate) fn list_in(folder: &Path) -> Result<Option<String>, Fault> {
    let path = folder.join(REVOCATION_LIST);
    match rustix::fs::lstat(&path) {
        Err(rustix::io::Errno::NOENT) => Ok(None),
        _ => text(files::read_list(&path)?).map(Some),
    }
}

pub(crate) fn new_key() -> Result<KeyPair, Fault> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| failed(&error))
}

pub(crate) fn text(bytes: Vec<u8>) -> Result<String, Fault> {
    String::from_utf8(bytes).map_err(|_| Fault::new(Code::Certificate, "a PEM file is not text"))
}

pub(crate) fn failed(error: &rcgen::Error) -> Fault {
    Fault::new(Code::Certificate, format!("the authority: {error}"))
}
