//! Lists of revoked certificates: loads them, checks them against their authorities, and looks up
//! certificates.
//!
//! A list counts only if a trusted authority has signed it, and never if it is older than the
//! current one: otherwise, restoring last month's list could readmit a stolen box.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use serde::{Deserialize, Serialize};
use towpath_protocol::fault::{Code, Fault};
use x509_parser::prelude::ParsedExtension;

use crate::identity::Authorities;
use crate::list::Parsed;
use crate::renewal::LIST_VALIDITY_MAX;
use crate::{files, tls, view};

/// Most lists in one file: one for each authority of an overlap, with room to spare.
pub const LIST_COUNT_MAX: usize = 4;

/// Most bytes of a file of lists: some 20,000 revoked certificates.
pub const LIST_BYTES_MAX: u64 = 1024 * 1024;

/// How long before its end a list is reported: a week of working days to sign a new one.
pub const AGING_TIME: Duration = Duration::from_hours(7 * 24);

/// The header of a list of revoked certificates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListView {
    /// The authority that signed it.
    pub issuer: String,
    /// Its number; each list has a higher one than its predecessor.
    pub number: u64,
    /// When it was signed, RFC 3339.
    pub this_update: String,
    /// When the next list is due and this one ends, RFC 3339.
    pub next_update: String,
    /// When the next list is due, in seconds since 1970.
    pub next_update_unix_seconds: u64,
    /// Number of certificates it revokes.
    pub revoked_count: u64,
}

/// A list of revoked certificates with its entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WholeListView {
    /// Its header.
    #[serde(flatten)]
    pub list: ListView,
    /// The serial numbers of the certificates it revokes, in hexadecimal.
    pub revoked: Vec<String>,
}

/// Reads the lists of a PEM file without checking their signatures; `None` if the file holds no
/// list.
///
/// # Errors
///
/// `E_CERTIFICATE` if the file cannot be read, holds too many lists, or one that does not parse.
pub fn show(path: &Path) -> Result<Option<Vec<WholeListView>>, Fault> {
    let pem = files::read_list(path)?;
    let shown = path.display();
    views_in(&pem).map_err(|why| Fault::new(Code::Certificate, format!("{shown}: {why}")))
}

/// Like [`show`], for the text of a file.
///
/// # Errors
///
/// A message if it holds too many lists, or one that does not parse.
pub fn views_in(pem: &[u8]) -> Result<Option<Vec<WholeListView>>, String> {
    if CertificateRevocationListDer::pem_slice_iter(pem)
        .next()
        .is_none()
    {
        return Ok(None);
    }
    let lists = lists_in(pem)?;
    lists
        .iter()
        .map(whole_view)
        .collect::<Result<_, _>>()
        .map(Some)
}

/// How far ahead the next list may be due: the longest validity, and a day for differing clocks.
const DUE_MAX: Duration = LIST_VALIDITY_MAX.saturating_add(Duration::from_hours(24));

/// The age of our knowledge of revoked certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Freshness {
    /// The next list is not due yet.
    Fresh,
    /// The next list is due within [`AGING_TIME`], or implausibly late: then the signer's clock was
    /// ahead, and the date says nothing about the age of our knowledge.
    Aging,
    /// The next list is overdue: later revocations are not known here.
    Stale,
}

impl Freshness {
    /// The freshness of a list whose successor is due at this time, in seconds since 1970.
    #[must_use]
    pub fn until(due_unix_seconds: u64, now: SystemTime) -> Self {
        // A clock before 1970 counts as 1970, and no list is stale by it.
        let now = now.duration_since(SystemTime::UNIX_EPOCH);
        let due = Duration::from_secs(due_unix_seconds);
        match due.checked_sub(now.unwrap_or_default()) {
            None | Some(Duration::ZERO) => Self::Stale,
            Some(left) if left <= AGING_TIME || left > DUE_MAX => Self::Aging,
            Some(_) => Self::Fresh,
        }
    }

    /// The word for tables and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Aging => "aging",
            Self::Stale => "stale",
        }
    }
}

/// One authority's list.
#[derive(Debug, Clone)]
struct List {
    view: ListView,
    /// The public key that signed it: two authorities may have the same name.
    signer: Vec<u8>,
    /// The whole list, to distinguish it from another one with the same number.
    der: CertificateRevocationListDer<'static>,
}

/// The lists of all trusted authorities; without any, nothing is revoked.
#[derive(Debug, Clone, Default)]
pub struct Revocations {
    lists: Vec<List>,
    /// Issuer and serial number, both as encoded in the certificate.
    revoked: HashSet<(Vec<u8>, Vec<u8>)>,
    /// The text of the file they were read from.
    text: Arc<[u8]>,
}

impl Revocations {
    /// Loads a PEM file of lists, each signed by one of the valid authorities. Lists of authorities
    /// that have ended are ignored.
    ///
    /// # Errors
    ///
    /// `E_CERTIFICATE` if the file cannot be read, holds no list or too many, or if one of them does
    /// not parse or is not signed by an authority; `E_CRL_ROLLBACK` if a list in `current` would be
    /// replaced by an older one, by another one with the same number, or by none.
    pub fn load(path: &Path, authorities: &Authorities, current: &Self) -> Result<Self, Fault> {
        let pem = files::read_list(path)?;
        Self::from_pem(&pem, authorities, current).map_err(|mut fault| {
            fault.detail = format!("{}: {}", path.display(), fault.detail);
            fault
        })
    }

    /// Like [`Revocations::load`], from the text of a file.
    ///
    /// # Errors
    ///
    /// As [`Revocations::load`].
    pub fn from_pem(pem: &[u8], authorities: &Authorities, current: &Self) -> Result<Self, Fault> {
        let made =
            Self::parse(pem, authorities).map_err(|why| Fault::new(Code::Certificate, why))?;
        made.check_newer_than(current, &authorities.valid)
            .map_err(|why| Fault::new(Code::CrlRollback, why))?;
        Ok(made)
    }

    /// Reads back the lists that were in use before a restart, as [`Revocations::text`] returned
    /// them. Lists of authorities that are no longer trusted are left out.
    ///
    /// # Errors
    ///
    /// `E_CERTIFICATE` if the text does not parse.
    pub fn from_kept(text: &[u8], authorities: &[CertificateDer<'static>]) -> Result<Self, Fault> {
        let wrong = |why| Fault::new(Code::Certificate, format!("the lists of before: {why}"));
        let mut made = Self {
            text: text.into(),
            ..Self::default()
        };
        for der in lists_in(text).map_err(wrong)? {
            let list = Parsed::from_der(&der).map_err(wrong)?;
            if signer(&list, authorities).is_ok() {
                made.add(der.clone(), authorities).map_err(wrong)?;
            }
        }
        Ok(made)
    }

    /// The text of the file they were read from, for [`Revocations::from_kept`] after a restart.
    #[must_use]
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    fn parse(pem: &[u8], authorities: &Authorities) -> Result<Self, String> {
        let mut made = Self {
            text: pem.into(),
            ..Self::default()
        };
        for der in lists_in(pem)? {
            made.add(der.clone(), &authorities.valid).or_else(|why| {
                let list = Parsed::from_der(&der);
                let of_ended = list.is_ok_and(|list| signer(&list, &authorities.ended).is_ok());
                if of_ended { Ok(()) } else { Err(why) }
            })?;
        }
        Ok(made)
    }

    fn add(
        &mut self,
        der: CertificateRevocationListDer<'static>,
        authorities: &[CertificateDer<'static>],
    ) -> Result<(), String> {
        let list = Parsed::from_der(&der)?;
        refuse_partial(&list)?;
        let signer = signer(&list, authorities)?;
        if self.lists.iter().any(|known| known.signer == signer) {
            return Err("holds two lists of one authority".to_owned());
        }
        let view = list_view(&list)?;
        let issuer = list.issuer.as_raw();
        let revoked = list.serials();
        self.revoked
            .extend(revoked.map(|serial| (issuer.to_vec(), serial.to_vec())));
        self.lists.push(List { view, signer, der });
        Ok(())
    }

    /// Refuses a rollback: each authority that is still trusted must have its current list or a
    /// newer one.
    fn check_newer_than(
        &self,
        current: &Self,
        authorities: &[CertificateDer<'static>],
    ) -> Result<(), String> {
        for ours in &current.lists {
            let (number, issuer) = (ours.view.number, &ours.view.issuer);
            let theirs = self.lists.iter().find(|list| list.signer == ours.signer);
            let Some(theirs) = theirs else {
                if trusts(authorities, &ours.signer) {
                    return Err(format!(
                        "lacks the list of {issuer}, whose {number} we have"
                    ));
                }
                continue;
            };
            if theirs.view.number < number {
                let older = theirs.view.number;
                return Err(format!(
                    "holds list {older} of {issuer}, and we have {number}"
                ));
            }
            if theirs.view.number == number && theirs.der != ours.der {
                return Err(format!("holds another list {number} of {issuer} than ours"));
            }
        }
        Ok(())
    }

    /// Whether a certificate has been revoked. One that does not parse counts as revoked.
    #[must_use]
    pub fn is_revoked(&self, certificate: &CertificateDer<'_>) -> bool {
        if self.revoked.is_empty() {
            return false;
        }
        view::issuer_and_serial(certificate).is_none_or(|pair| self.revoked.contains(&pair))
    }

    /// Whether both have the same lists.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        fn bytes(list: &List) -> &[u8] {
            list.der.as_ref()
        }
        self.lists
            .iter()
            .map(bytes)
            .eq(other.lists.iter().map(bytes))
    }

    /// Whether there is no list, so that nothing is revoked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }

    /// The headers of the lists.
    pub fn views(&self) -> impl Iterator<Item = &ListView> {
        self.lists.iter().map(|list| &list.view)
    }

    /// The list that ends first; `None` if there is no list.
    #[must_use]
    pub fn first_to_expire(&self) -> Option<&ListView> {
        self.views()
            .min_by_key(|view| view.next_update_unix_seconds)
    }

    /// When the first list ends, in seconds since 1970; `None` if there is no list.
    #[must_use]
    pub fn next_update_unix_seconds(&self) -> Option<u64> {
        self.first_to_expire()
            .map(|view| view.next_update_unix_seconds)
    }

    /// The freshness of the oldest list; `None` if there is no list.
    #[must_use]
    pub fn freshness(&self, now: SystemTime) -> Option<Freshness> {
        Some(Freshness::until(self.next_update_unix_seconds()?, now))
    }
}

/// The lists in a PEM text.
fn lists_in(pem: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
    let lists = CertificateRevocationListDer::pem_slice_iter(pem)
        .take(LIST_COUNT_MAX + 1)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| error.to_string())?;
    if lists.is_empty() || lists.len() > LIST_COUNT_MAX {
        return Err(format!("must hold 1 to {LIST_COUNT_MAX} revocation lists"));
    }
    Ok(lists)
}

/// Refuses a list that covers only some certificates: it would pass for one that covers all.
fn refuse_partial(list: &Parsed<'_>) -> Result<(), String> {
    let partial = list.extensions.iter().find(|extension| {
        let parsed = extension.parsed_extension();
        // A critical extension that is unknown, such as that of a delta list, changes the list's
        // meaning.
        extension.critical || matches!(parsed, ParsedExtension::IssuingDistributionPoint(_))
    });
    match partial {
        Some(extension) => Err(format!(
            "a revocation list of some certificates only (extension {}); the whole one is needed",
            extension.oid
        )),
        None => Ok(()),
    }
}

/// The public key of the authority that signed a list.
fn signer(list: &Parsed<'_>, authorities: &[CertificateDer<'static>]) -> Result<Vec<u8>, String> {
    let issuer = list.issuer.as_raw();
    let algorithm = list.algorithm.algorithm.as_bytes();
    // The DER encoding of an algorithm identifier begins with its object identifier.
    let length = u8::try_from(algorithm.len()).map_err(|_| "an impossible algorithm".to_owned())?;
    let wanted = [&[6, length], algorithm].concat();
    let provider = tls::provider();
    let all = provider.signature_verification_algorithms.all;
    for authority in authorities {
        let Some((name, key)) = view::subject_and_key(authority) else {
            continue;
        };
        if name != issuer {
            continue;
        }
        let is_signed = all
            .iter()
            .filter(|one| one.signature_alg_id().as_ref().starts_with(&wanted))
            .any(|one| {
                one.verify_signature(&key, list.signed, list.signature)
                    .is_ok()
            });
        if is_signed {
            return Ok(key);
        }
    }
    let shown = view::printable(&list.issuer.to_string());
    Err(format!(
        "the list of {shown} was not signed by an authority in the CA file"
    ))
}

fn trusts(authorities: &[CertificateDer<'static>], signer: &[u8]) -> bool {
    let mut keys = authorities.iter().filter_map(view::subject_and_key);
    keys.any(|(_, key)| key == signer)
}

fn whole_view(der: &CertificateRevocationListDer<'_>) -> Result<WholeListView, String> {
    let list = Parsed::from_der(der)?;
    Ok(WholeListView {
        list: list_view(&list)?,
        revoked: list.serials().map(view::hex).collect(),
    })
}

fn list_view(list: &Parsed<'_>) -> Result<ListView, String> {
    let next = list
        .next_update
        .ok_or("a revocation list does not say when the next one is due")?;
    let next = view::unix_seconds(next.timestamp());
    Ok(ListView {
        issuer: view::printable(&list.issuer.to_string()),
        number: list.number()?,
        this_update: view::rfc3339(view::unix_seconds(list.this_update.timestamp())),
        next_update: view::rfc3339(next),
        next_update_unix_seconds: next,
        revoked_count: list.serials().count() as u64,
    })
}
