//! Targets for certificates, keys and revocation lists, from files and from peers' handshakes.

use std::path::Path;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use towpath_certs::files::FILE_BYTES_MAX;
use towpath_certs::identity::NamedPem;
use towpath_certs::revocation::{LIST_BYTES_MAX, Revocations, views_in};
use towpath_certs::{Authorities, Identity, view};

use crate::AS_IT_IS;

/// A host's certificate, that of its authority, and the host's key.
pub(crate) const HOST_PEM: &str = include_str!("../seeds/host.pem");

/// A list signed by that authority.
pub(crate) const LIST_PEM: &str = include_str!("../seeds/crl.pem");

/// Letters in a line of base64, as all programs write it.
const LINE_LETTERS: usize = 64;

/// The letters of base64, by value.
const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Certificates and a key: a file with all of them, or the bytes of one certificate, as in a
/// handshake.
pub fn certificates(bytes: &[u8]) -> bool {
    let Some((how, bytes)) = bytes.split_first() else {
        return false;
    };
    // A longer file is refused when it is read, and so is a longer handshake.
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return false;
    }
    if *how != AS_IT_IS {
        let der = CertificateDer::from(bytes);
        let named = view::identity_of(&der);
        let seen = view::of_der(&der);
        assert!(named.is_err() || seen.is_ok(), "named and not seen");
        return seen.is_ok();
    }
    let file = NamedPem {
        path: Path::new("host.pem"),
        pem: bytes,
    };
    Identity::from_pem(file, file, file).is_ok()
}

/// A file of revocation lists, or the bytes of one list.
pub fn revocations(bytes: &[u8]) -> bool {
    let Some((how, bytes)) = bytes.split_first() else {
        return false;
    };
    let pem = if *how == AS_IT_IS {
        bytes.to_vec()
    } else {
        pem("X509 CRL", bytes)
    };
    if pem.len() as u64 > LIST_BYTES_MAX {
        return false;
    }
    let shown = views_in(&pem);
    let host = host();
    let trusted = Authorities {
        valid: host[1..].to_vec(),
        ended: Vec::new(),
    };
    let none = Revocations::default();
    if let Ok(lists) = Revocations::from_pem(&pem, &trusted, &none) {
        assert!(
            matches!(shown, Ok(Some(_))),
            "used and not shown: {shown:?}"
        );
        assert!(!lists.is_revoked(&host[0]), "its number is not in the list");
        let again = Revocations::from_kept(lists.text(), &host[1..]).expect("what was read once");
        assert!(again.is_same(&lists));
        Revocations::from_pem(&pem, &trusted, &lists).expect("no list is older than itself");
    }
    matches!(shown, Ok(Some(_)))
}

/// The certificates of [`HOST_PEM`].
fn host() -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(HOST_PEM.as_bytes())
        .collect::<Result<_, _>>()
        .expect("the seed is good")
}

/// The DER bytes of every certificate, list and key among the seeds.
pub(crate) fn ders() -> (Vec<Vec<u8>>, Vec<u8>, Vec<u8>) {
    let certificates = host().iter().map(|der| der.to_vec()).collect();
    let list = CertificateRevocationListDer::from_pem_slice(LIST_PEM.as_bytes());
    let key = PrivateKeyDer::from_pem_slice(HOST_PEM.as_bytes()).expect("the seed is good");
    let list = list.expect("the seed is good").to_vec();
    (certificates, list, key.secret_der().to_vec())
}

/// DER as PEM.
pub(crate) fn pem(label: &str, der: &[u8]) -> Vec<u8> {
    let letters: Vec<u8> = der.chunks(3).flat_map(letters).collect();
    let mut pem = format!("-----BEGIN {label}-----\n").into_bytes();
    for line in letters.chunks(LINE_LETTERS) {
        pem.extend_from_slice(line);
        pem.push(b'\n');
    }
    pem.extend(format!("-----END {label}-----\n").into_bytes());
    pem
}

/// Encodes one to three bytes in base64.
fn letters(bytes: &[u8]) -> [u8; 4] {
    let byte = |at: usize| u32::from(bytes.get(at).copied().unwrap_or_default());
    let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
    [18, 12, 6, 0].map(|shift| {
        let is_there = shift >= 18 - 6 * bytes.len();
        let place = (bits >> shift & 63) as usize;
        if is_there { LETTERS[place] } else { b'=' }
    })
}
