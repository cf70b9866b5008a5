//! An authority in a folder of its own, and the hosts it issues certificates to.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, SerialNumber};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tempfile::TempDir;
use towpath_certs::authority::{IdentityFiles, LEAF_VALIDITY};
use towpath_certs::register::Reason;
use towpath_certs::renewal::{LIST_VALIDITY, RevocationTarget, SignedList};
use towpath_certs::{Authorities, Authority, Identity, Revocations, Validity};
use towpath_protocol::fault::Fault;
use towpath_protocol::identity::HostIdentity;

pub(crate) const DAY: Duration = Duration::from_hours(24);

pub(crate) struct World {
    pub(crate) folder: TempDir,
    pub(crate) authority: Authority,
}

pub(crate) fn host(site: &str) -> HostIdentity {
    HostIdentity::from_uri(&format!("spiffe://shop.example/site/{site}/host/box-1")).unwrap()
}

pub(crate) fn now() -> Validity {
    Validity::lasting(LEAF_VALIDITY, SystemTime::now())
}

pub(crate) fn load(files: &IdentityFiles) -> Result<Identity, Fault> {
    Identity::load(&files.paths())
}

pub(crate) fn leaf(files: &IdentityFiles) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(&files.cert).unwrap()
}

/// Authorities that have not ended.
pub(crate) fn trusted(authorities: &[CertificateDer<'static>]) -> Authorities {
    Authorities {
        valid: authorities.to_vec(),
        ended: Vec::new(),
    }
}

impl World {
    pub(crate) fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let domain = "shop.example".parse().unwrap();
        let authority = Authority::init(&folder.path().join("ca"), &domain).unwrap();
        Self { folder, authority }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn issue(&self, site: &str, folder: &str) -> IdentityFiles {
        self.authority
            .issue(&host(site), now(), &self.path(folder))
            .unwrap()
    }

    pub(crate) fn sign_next_list(&self) -> Result<SignedList, Fault> {
        let now = SystemTime::now();
        self.authority.sign_next_list(LIST_VALIDITY, now)
    }

    pub(crate) fn revoke(&self, target: &RevocationTarget) -> Result<SignedList, Fault> {
        let now = SystemTime::now();
        self.authority
            .revoke(target, Reason::KeyCompromise, LIST_VALIDITY, now)
    }

    /// Reads the authority's list as a host with the lists in `current` would.
    pub(crate) fn read(&self, file: &Path, current: &Revocations) -> Result<Revocations, Fault> {
        let ca = CertificateDer::from_pem_file(self.path("ca/ca.pem")).unwrap();
        Revocations::load(file, &trusted(&[ca]), current)
    }

    /// A handmade list, signed with the authority's key.
    pub(crate) fn forge(
        &self,
        change: impl FnOnce(&mut CertificateRevocationListParams),
    ) -> PathBuf {
        let key = KeyPair::from_pem(&fs::read_to_string(self.path("ca/ca.key")).unwrap()).unwrap();
        let pem = fs::read_to_string(self.path("ca/ca.pem")).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&pem, key).unwrap();
        let now = SystemTime::now();
        let mut list = CertificateRevocationListParams {
            this_update: now.into(),
            next_update: (now + DAY).into(),
            crl_number: SerialNumber::from(7_u64),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        change(&mut list);
        let path = self.path("forged.pem");
        fs::write(&path, list.signed_by(&issuer).unwrap().pem().unwrap()).unwrap();
        path
    }
}
