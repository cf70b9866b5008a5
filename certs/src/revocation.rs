//! Lists of revoked certificates: read, checked against the authorities that signed them, asked.
//!
//! A list counts only if an authority that we trust has signed it, and never if it is older than the
//! one we have: whoever can put back last month's list could otherwise put back a stolen box.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use serde::{Deserialize, Serialize};
use towpath_protocol::fault::{Code, Fault};
use x509_parser::prelude::ParsedExtension;

use crate::list::Parsed;
use crate::renewal::LIST_VALIDITY_MAX;
use crate::{files, tls, view};

/// Most lists in one file: one for each authority of an overlap.
pub const LIST_COUNT_MAX: usize = 4;

/// Most bytes of a file of lists: some 20,000 revoked certificates.
pub const LIST_BYTES_MAX: u64 = 1024 * 1024;

/// How long before a list ends it is called out: a week of working days to sign a new one.
pub const AGING_TIME: Duration = Duration::from_hours(7 * 24);

/// What a list of revoked certificates says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListView {
    /// The authority that signed it.
    pub issuer: String,
    /// Its number; each is above the one before.
    pub number: u64,
    /// When it was signed, RFC 3339.
    pub this_update: String,
    /// When the next one is due and this one ends, RFC 3339.
    pub next_update: String,
    /// When the next one is due, in seconds since 1970.
    pub next_update_unix_seconds: u64,
    /// Certificates it revokes.
    pub revoked_count: u64,
}

/// A list of revoked certificates, and which those are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WholeListView {
    /// What it says of itself.
    #[serde(flatten)]
    pub list: ListView,
    /// The numbers of the certificates it revokes, in hexadecimal.
    pub revoked: Vec<String>,
}

/// Reads the lists of a PEM file as they stand there; none if it holds no list. Whether an authority has signed them
/// is not looked at.
///
/// # Errors
///
/// `E_CERTIFICATE` if the file cannot be read, holds too many lists, or one that does not parse.
pub fn show(path: &Path) -> Result<Option<Vec<WholeListView>>, Fault> {
    let pem = files::read_list(path)?;
    let shown = path.display();
    views_in(&pem).map_err(|why| Fault::new(Code::Certificate, format!("{shown}: {why}")))
}

/// The same of a file's text.
///
/// # Errors
///
/// Why it holds too many lists, or one that does not parse.
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

/// How far ahead the next list may be due: clocks differ by a day at most.
const DUE_MAX: Duration = LIST_VALIDITY_MAX.saturating_add(Duration::from_hours(24));

/// How old our knowledge of revoked certificates is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Freshness {
    /// The next list is not due yet.
    Fresh,
    /// The next list is due within [`AGING_TIME`]; or later than any list lasts, for who signed this one had a clock
    /// that was ahead, and it says nothing of how old our knowledge is.
    Aging,
    /// The next list is overdue: what was revoked since is not known here.
    Stale,
}

impl Freshness {
    /// That of a list whose next one is due at a moment, in seconds since 1970.
    #[must_use]
    pub fn until(due_unix_seconds: u64, now: SystemTime) -> Self {
        // A clock before 1970 knows nothing of due dates, and no list is stale by it.
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
    /// The public key that signed it: two authorities may carry one name.
    signer: Vec<u8>,
    /// The whole list, to tell one from another of the same number.
    der: CertificateRevocationListDer<'static>,
}

/// The lists of all authorities we trust; without any, nothing is revoked.
#[derive(Debug, Clone, Default)]
pub struct Revocations {
    lists: Vec<List>,
    /// Issuer and serial number, both as they stand in the certificate.
    revoked: HashSet<(Vec<u8>, Vec<u8>)>,
    /// The file they were read from.
    text: Arc<[u8]>,
}

impl Revocations {
    /// Reads a file of lists, in PEM, each signed by one of the `authorities`.
    ///
    /// # Errors
    ///
    /// `E_CERTIFICATE` if the file cannot be read, holds no list or too many, or if one of them does
    /// not parse or was signed by nobody we trust; `E_CRL_ROLLBACK` if it goes back behind `current`.
    pub fn load(
        path: &Path,
        authorities: &[CertificateDer<'static>],
        current: &Self,
    ) -> Result<Self, Fault> {
        Self::load_beside(path, (authorities, &[]), current)
    }

    /// The same, where lists of authorities that have ended are passed over.
    ///
    /// # Errors
    ///
    /// As [`Revocations::load`].
    pub(crate) fn load_beside(
        path: &Path,
        (authorities, ended): (&[CertificateDer<'static>], &[CertificateDer<'static>]),
        current: &Self,
    ) -> Result<Self, Fault> {
        let pem = files::read_list(path)?;
        Self::from_pem(&pem, (authorities, ended), current).map_err(|mut fault| {
            fault.detail = format!("{}: {}", path.display(), fault.detail);
            fault
        })
    }

    /// The same of a file's text: lists of authorities, and of those that have ended.
    ///
    /// # Errors
    ///
    /// As [`Revocations::load`].
    pub fn from_pem(
        pem: &[u8],
        (authorities, ended): (&[CertificateDer<'static>], &[CertificateDer<'static>]),
        current: &Self,
    ) -> Result<Self, Fault> {
        let made = Self::parse(pem, authorities, ended)
            .map_err(|why| Fault::new(Code::Certificate, why))?;
        made.check_newer_than(current, authorities)
            .map_err(|why| Fault::new(Code::CrlRollback, why))?;
        Ok(made)
    }

    /// Reads what was in use before a restart, as [`Revocations::text`] gave it. Lists of authorities that
    /// are trusted no longer are left out.
    ///
    /// # Errors
    ///
    /// `E_CERTIFICATE` if that does not parse.
    pub fn recall(text: &[u8], authorities: &[CertificateDer<'static>]) -> Result<Self, Fault> {
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

    /// The file they were read from, to be recalled after a restart.
    #[must_use]
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    fn parse(
        pem: &[u8],
        authorities: &[CertificateDer<'static>],
        ended: &[CertificateDer<'static>],
    ) -> Result<Self, String> {
        let mut made = Self {
            text: pem.into(),
            ..Self::default()
        };
        for der in lists_in(pem)? {
            made.add(der.clone(), authorities).or_else(|why| {
                let list = Parsed::from_der(&der);
                let of_ended = list.is_ok_and(|list| signer(&list, ended).is_ok());
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

    /// Refuses to go back: for each authority still trusted, the list we have or a newer one is there.
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

    /// Whether both are the same lists.
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

    /// Whether there is no list at all, and so nothing that is revoked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }

    /// What the lists say of themselves.
    pub fn views(&self) -> impl Iterator<Item = &ListView> {
        self.lists.iter().map(|list| &list.view)
    }

    /// The list that ends first; none if there is no list.
    #[must_use]
    pub fn first_to_end(&self) -> Option<&ListView> {
        self.views()
            .min_by_key(|view| view.next_update_unix_seconds)
    }

    /// When the first list ends, in seconds since 1970; none if there is no list.
    #[must_use]
    pub fn next_update_unix_seconds(&self) -> Option<u64> {
        self.first_to_end()
            .map(|view| view.next_update_unix_seconds)
    }

    /// How old the oldest list is; none if there is no list.
    #[must_use]
    pub fn freshness(&self, now: SystemTime) -> Option<Freshness> {
        Some(Freshness::until(self.next_update_unix_seconds()?, now))
    }
}

/// The lists of a file in PEM.
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

/// A list about some certificates only would pass for one about all of them.
fn refuse_partial(list: &Parsed<'_>) -> Result<(), String> {
    let partial = list.extensions.iter().find(|extension| {
        let parsed = extension.parsed_extension();
        // What is critical and unknown, such as a delta's mark, changes what the list means.
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
    // The encoding of an algorithm's identifier begins with its object identifier.
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
