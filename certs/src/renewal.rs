//! Renews a host's certificate, and revokes certificates before their end.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateRevocationListParams, KeyIdMethod, KeyPair, RevocationReason, RevokedCertParams,
    SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::HostIdentity;

use crate::authority::{
    AUTHORITY_CERTIFICATE, Authority, IdentityFiles, LEAF_CERTIFICATE, LEAF_KEY, LEAF_VALIDITY_MAX,
    REVOCATION_LIST, Validity, failed, list_in, new_key, text,
};
use crate::files::{self, KeyFolder, Readers};
use crate::identity;
use crate::register::{Entry, IssuedState, IssuedView, Reason, Register, unix_seconds_of};
use crate::revocation::{Freshness, LIST_BYTES_MAX, ListView, Revocations};
use crate::view;

/// Default validity of a list of revoked certificates: a month, so that a box that is offline for
/// some weeks still takes part.
pub const LIST_VALIDITY: Duration = Duration::from_hours(30 * 24);

/// Longest validity of a list: beyond it a host could miss every revocation for a season.
pub const LIST_VALIDITY_MAX: Duration = Duration::from_hours(90 * 24);

/// Fewest leading digits that may stand for a whole serial number. A revocation cannot be undone,
/// so a typing error must not name another certificate.
pub const SERIAL_DIGITS_MIN: usize = 8;

/// Whether a host keeps its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyChoice {
    /// The key it has. Its private half is not needed here, only the certificate.
    Same,
    /// A new key, which is generated here.
    New,
}

/// Another authority that hosts trust besides the one that signs for them: the previous or the next
/// one.
#[derive(Debug, Clone)]
pub struct OtherAuthority {
    certificate_pem: String,
    list_pem: Option<String>,
}

impl OtherAuthority {
    /// Reads the public half of an authority's folder.
    ///
    /// # Errors
    ///
    /// `E_CERTIFICATE` if it holds no authority.
    pub fn open(folder: &Path) -> Result<Self, Fault> {
        let path = folder.join(AUTHORITY_CERTIFICATE);
        if !view::show(&path)?.is_authority {
            let detail = format!("{} is no authority's certificate", path.display());
            return Err(Fault::new(Code::Certificate, detail));
        }
        Ok(Self {
            certificate_pem: text(files::read_public(&path)?)?,
            list_pem: list_in(folder)?,
        })
    }

    fn check_not_revoked(&self, leaf: &CertificateDer<'_>) -> Result<(), Fault> {
        let Some(list) = &self.list_pem else {
            return Ok(());
        };
        let authorities = certificates(&self.certificate_pem)?;
        if Revocations::from_kept(list.as_bytes(), &authorities)?.is_revoked(leaf) {
            return Err(was_revoked(&view::of_der(leaf)?.serial));
        }
        Ok(())
    }
}

/// The certificates that are to be revoked.
#[derive(Debug, Clone)]
pub enum RevocationTarget {
    /// The one with this serial number in hexadecimal, or with a unique prefix of it.
    Serial(String),
    /// All of a host's certificates that have not been revoked. Expired ones are included, because
    /// a link that was made with one may still live.
    Host(HostIdentity),
}

/// A host's folder with its next certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewed {
    /// Where its files are.
    pub files: IdentityFiles,
    /// The names of the files that changed and have to be copied to the host.
    pub changed: Vec<&'static str>,
}

/// A list of revoked certificates at the authority.
#[derive(Debug, Clone)]
pub struct SignedList {
    /// Whether it was signed by this call. `false` if the last list already had everything.
    pub is_new: bool,
    /// The list's file.
    pub file: PathBuf,
    /// Its number.
    pub number: u64,
    /// When the next one is due.
    pub next_update: SystemTime,
    /// The certificates that were to be revoked.
    pub revoked: Vec<IssuedView>,
    /// Number of certificates it revokes in total.
    pub revoked_count: usize,
}

impl Authority {
    /// Replaces the certificate in a host's folder by the next one, and updates what the host
    /// trusts: this authority, and in an overlap of two also that of `overlap`.
    ///
    /// A tunnel that reads the folder takes up the new files without dropping a stream. If the
    /// folder has a list of revoked certificates, the new one is signed by the new authorities; if
    /// this authority has signed no list yet, it signs an empty one, because a tunnel does not
    /// start with lists of other authorities alone. If this authority's own list has ended or is
    /// about to end, the next one is signed.
    ///
    /// # Errors
    ///
    /// `E_CERTIFICATE` if the folder's certificate is not from this authority, or its key, which
    /// stays in use, does not belong to the certificate; `E_STATE` if it has been revoked; and as
    /// [`Authority::issue`]. On an error the folder's files are unchanged.
    pub fn renew(
        &self,
        host: &Path,
        key: KeyChoice,
        validity: Validity,
        overlap: Option<&OtherAuthority>,
    ) -> Result<Renewed, Fault> {
        let certificate = host.join(LEAF_CERTIFICATE);
        // Checked before `open_or_create`, which would create the folder of a mistyped name.
        identity::read_chain(&certificate)?;
        let folder = KeyFolder::open_or_create(host)?;
        // Two concurrent renewals of one folder would mix their pairs. The certificate that counts
        // is the one found under the lock.
        let _alone = folder.lock()?;
        let ca = self.trusted_pem(overlap)?;
        let leaf = signed_leaf(&certificate, &ca)?;
        let identity = view::identity_of(&leaf)?;
        self.check(&identity, validity)?;
        // Held until the end: a certificate that is revoked in the meantime must not be renewed.
        let mut register = self.register()?;
        check_not_revoked(&register, &view::of_der(&leaf)?.serial)?;
        if let Some(overlap) = overlap {
            overlap.check_not_revoked(&leaf)?;
        }
        if key == KeyChoice::Same {
            check_pair(host, &leaf)?;
        }
        let list = self.list_for(&folder, &mut register, overlap)?;
        let (certificate, new_key_pem) =
            self.sign_next(&mut register, (&leaf, &identity), validity, key)?;
        // The authorities come first: a certificate whose authority is not trusted yet is of no
        // use. A reader that finds the new key beside the old certificate sees that they do not
        // match, keeps its current pair, and retries.
        let files = [
            (AUTHORITY_CERTIFICATE, Some(&ca), Readers::All),
            (REVOCATION_LIST, list.as_ref(), Readers::All),
            (LEAF_KEY, new_key_pem.as_ref(), Readers::Owner),
            (LEAF_CERTIFICATE, Some(&certificate), Readers::All),
        ];
        let present = files
            .iter()
            .filter_map(|(name, pem, readers)| Some((*name, (*pem)?.as_str(), *readers)));
        let present = present.collect::<Vec<_>>();
        let is_new = |(name, pem, _): &&(&'static str, &str, Readers)| {
            let before = std::fs::read(host.join(name));
            !before.is_ok_and(|before| before == pem.as_bytes())
        };
        let changed = present.iter().filter(is_new).map(|(name, ..)| *name);
        let changed = changed.collect();
        folder.replace_all(&present)?;
        let files = IdentityFiles {
            ca: host.join(AUTHORITY_CERTIFICATE),
            crl: list.map(|_| host.join(REVOCATION_LIST)),
            cert: host.join(LEAF_CERTIFICATE),
            key: host.join(LEAF_KEY),
        };
        Ok(Renewed { files, changed })
    }

    /// The lists for a host. If the host has a list and this authority has signed none, it signs an
    /// empty one.
    fn list_for(
        &self,
        folder: &KeyFolder,
        register: &mut Register,
        overlap: Option<&OtherAuthority>,
    ) -> Result<Option<String>, Fault> {
        let now = SystemTime::now();
        let theirs = overlap.and_then(|overlap| overlap.list_pem.clone());
        Ok(match (self.list_in_time(register, now)?, theirs) {
            (Some(ours), Some(theirs)) => Some(joined(&ours, &theirs)),
            (None, None) if folder.contains(REVOCATION_LIST) => {
                let (_, pem) = self.sign_list(register, LIST_VALIDITY, now)?;
                Some(pem)
            }
            (ours, theirs) => ours.or(theirs),
        })
    }

    /// The last signed list. If it has ended or is about to end, the next one is signed now, because
    /// a host with an ended list begins no move. `None` if no list was ever signed.
    pub(crate) fn list_in_time(
        &self,
        register: &mut Register,
        now: SystemTime,
    ) -> Result<Option<String>, Fault> {
        let Some(pem) = self.list_pem()? else {
            return Ok(None);
        };
        let authorities = certificates(&self.certificate_pem)?;
        let lists = Revocations::from_kept(pem.as_bytes(), &authorities).ok();
        let freshness = lists.and_then(|lists| lists.freshness(now));
        if freshness == Some(Freshness::Fresh) {
            return Ok(Some(pem));
        }
        let (_, next) = self.sign_list(register, LIST_VALIDITY, now)?;
        Ok(Some(next))
    }

    /// Signs a leaf's successor, and generates its key if there is to be a new one; returns both as
    /// PEM.
    fn sign_next(
        &self,
        register: &mut Register,
        (leaf, identity): (&CertificateDer<'_>, &HostIdentity),
        validity: Validity,
        key: KeyChoice,
    ) -> Result<(String, Option<String>), Fault> {
        match key {
            KeyChoice::Same => {
                let public = view::public_key_info(leaf)?;
                let public = SubjectPublicKeyInfo::from_der(&public).map_err(|e| failed(&e))?;
                let signed = self.sign(register, identity, validity, &public)?;
                Ok((signed, None))
            }
            KeyChoice::New => {
                let key = new_key()?;
                let signed = self.sign(register, identity, validity, &key)?;
                Ok((signed, Some(key.serialize_pem())))
            }
        }
    }

    /// Revokes certificates and signs the next list, valid for `lasting`. If an earlier revocation
    /// was interrupted before its list was published, certificates already revoked may be revoked
    /// again. If the last list already has all of them, nothing is signed.
    ///
    /// # Errors
    ///
    /// `E_NOT_FOUND` if there is no such certificate, `E_USAGE` if the list would last too long,
    /// `E_STATE` if hosts would not read it, `E_IO` if the register or the list cannot be written.
    pub fn revoke(
        &self,
        target: &RevocationTarget,
        reason: Reason,
        lasting: Duration,
        now: SystemTime,
    ) -> Result<SignedList, Fault> {
        check_lasting(lasting)?;
        // Held until the end: two lists with the same number must never be handed out.
        let mut register = self.register()?;
        let public = self.public_list(&register);
        let named = choose(&register.issued(now), target)?;
        let is_done = |view: &&IssuedView| view.state == IssuedState::Revoked && public.is_some();
        let chosen: Vec<_> = named.iter().filter(|view| !is_done(view)).collect();
        if let Some(last) = &public
            && chosen.is_empty()
        {
            return self.signed_before(last, named);
        }
        for view in &chosen {
            if view.state != IssuedState::Revoked {
                register.add(&Entry::Revoked {
                    serial: view.serial.clone(),
                    reason,
                    at_unix_seconds: unix_seconds_of(now),
                })?;
            }
        }
        let (mut signed, _) = self.sign_list(&mut register, lasting, now)?;
        let is_chosen = |view: &IssuedView| chosen.iter().any(|one| one.serial == view.serial);
        signed.revoked = register.issued(now);
        signed.revoked.retain(is_chosen);
        Ok(signed)
    }

    /// Signs the next list, valid for `lasting`, without revoking anything: to be done before the
    /// last one ends.
    ///
    /// # Errors
    ///
    /// `E_USAGE` if the list would last too long, `E_STATE` if hosts would not read it, `E_IO` if the
    /// register or the list cannot be written.
    pub fn sign_next_list(&self, lasting: Duration, now: SystemTime) -> Result<SignedList, Fault> {
        check_lasting(lasting)?;
        let mut register = self.register()?;
        let (signed, _) = self.sign_list(&mut register, lasting, now)?;
        Ok(signed)
    }

    /// Signs the next list of all revoked certificates, and writes it to the authority's folder;
    /// returns it as PEM too.
    fn sign_list(
        &self,
        register: &mut Register,
        lasting: Duration,
        now: SystemTime,
    ) -> Result<(SignedList, String), Fault> {
        let number = register.list_number() + 1;
        let next_update = now + lasting;
        let issued = register.issued(now);
        let revoked: Vec<_> = issued
            .iter()
            .filter(|view| is_listed(view, now))
            .filter_map(revoked_entry)
            .collect();
        let revoked_count = revoked.len();
        let list = CertificateRevocationListParams {
            this_update: now.into(),
            next_update: next_update.into(),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: revoked,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let signed = list.signed_by(&self.issuer).map_err(|e| failed(&e))?;
        let pem = signed.pem().map_err(|error| failed(&error))?;
        if pem.len() as u64 > LIST_BYTES_MAX {
            let detail = format!(
                "a list of {revoked_count} revoked certificates is larger than the {LIST_BYTES_MAX} bytes \
                 that hosts read; the next authority is due"
            );
            return Err(Fault::new(Code::State, detail));
        }
        register.add(&Entry::List {
            number,
            at_unix_seconds: unix_seconds_of(now),
            next_update_unix_seconds: unix_seconds_of(next_update),
        })?;
        let signed = SignedList {
            is_new: true,
            file: self
                .folder()?
                .replace(REVOCATION_LIST, &pem, Readers::All)?,
            number,
            next_update,
            revoked: Vec::new(),
            revoked_count,
        };
        Ok((signed, pem))
    }

    /// The list that hosts are given, if every revoked certificate is in it.
    fn public_list(&self, register: &Register) -> Option<ListView> {
        let authorities = certificates(&self.certificate_pem).ok()?;
        let pem = self.list_pem().ok()??;
        let lists = Revocations::from_kept(pem.as_bytes(), &authorities).ok()?;
        let view = lists.views().next()?.clone();
        let is_whole = register.is_listed() && view.number == register.list_number();
        is_whole.then_some(view)
    }

    /// The last list, which already has all of these.
    fn signed_before(
        &self,
        last: &ListView,
        revoked: Vec<IssuedView>,
    ) -> Result<SignedList, Fault> {
        let next_update = Duration::from_secs(last.next_update_unix_seconds);
        Ok(SignedList {
            is_new: false,
            file: self.folder()?.path().join(REVOCATION_LIST),
            number: last.number,
            next_update: SystemTime::UNIX_EPOCH + next_update,
            revoked,
            revoked_count: usize::try_from(last.revoked_count).unwrap_or(usize::MAX),
        })
    }

    /// The authorities that a host is to trust, as PEM.
    fn trusted_pem(&self, overlap: Option<&OtherAuthority>) -> Result<String, Fault> {
        let Some(overlap) = overlap else {
            return Ok(self.certificate_pem.clone());
        };
        let ours = view::uri_in(&self.certificate_pem)?;
        let theirs = view::uri_in(&overlap.certificate_pem)?;
        if ours != theirs {
            let detail =
                "an overlap is of two authorities of one trust domain, and these are of two";
            return Err(Fault::new(Code::Usage, detail));
        }
        let [one, other] = [&self.certificate_pem, &overlap.certificate_pem]
            .map(|pem| certificates(pem).and_then(|all| view::public_key_info(&all[0])));
        if one? == other? {
            let detail = "an overlap is of two authorities, and these are one";
            return Err(Fault::new(Code::Usage, detail));
        }
        Ok(joined(&self.certificate_pem, &overlap.certificate_pem))
    }
}

/// The certificate in a file, if one of these authorities has signed it.
fn signed_leaf(certificate: &Path, ca: &str) -> Result<CertificateDer<'static>, Fault> {
    let mut chain = identity::read_chain(certificate)?;
    let roots = identity::roots(&certificates(ca)?).map_err(|why| {
        let detail = format!("the authority's certificate: {why}");
        Fault::new(Code::Certificate, detail)
    })?;
    identity::check_signed(&chain, &roots).map_err(|why| {
        let shown = certificate.display();
        Fault::new(Code::Certificate, format!("{shown}: {why}"))
    })?;
    Ok(chain.swap_remove(0))
}

/// Refuses a revoked certificate: its key may be in other hands.
fn check_not_revoked(register: &Register, serial: &str) -> Result<(), Fault> {
    let issued = register.issued(SystemTime::now());
    let is_revoked =
        |view: &IssuedView| view.serial == serial && view.state == IssuedState::Revoked;
    if issued.iter().any(is_revoked) {
        return Err(was_revoked(serial));
    }
    Ok(())
}

fn was_revoked(serial: &str) -> Fault {
    let detail = format!("certificate {serial} was revoked; issue one into a new folder");
    Fault::new(Code::State, detail)
}

/// Refuses a folder whose key is not the one of its certificate: a renewal with a new key was interrupted between the
/// two. A folder may have no key, or one that only its host can read.
fn check_pair(host: &Path, leaf: &CertificateDer<'_>) -> Result<(), Fault> {
    let path = host.join(LEAF_KEY);
    let Ok(pem) = std::fs::read_to_string(&path) else {
        return Ok(());
    };
    if let Ok(key) = KeyPair::from_pem(&pem)
        && view::is_key_of(leaf, &key)?
    {
        return Ok(());
    }
    let shown = path.display();
    let detail = format!(
        "{shown} is not the key of the certificate beside it, as a renewal that was interrupted leaves it"
    );
    let remedy = "renew with `--new-key`: that makes a pair again";
    Err(Fault::new(Code::Certificate, detail).remedy(remedy))
}

fn joined(one: &str, other: &str) -> String {
    format!("{}\n{}", one.trim_end(), other)
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, Fault> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| Fault::new(Code::Certificate, error.to_string()))
}

fn check_lasting(lasting: Duration) -> Result<(), Fault> {
    if lasting > LIST_VALIDITY_MAX || lasting.is_zero() {
        let days = LIST_VALIDITY_MAX.as_secs() / 86_400;
        let detail = format!("a list of revoked certificates lasts at most {days} days");
        return Err(Fault::new(Code::Usage, detail));
    }
    Ok(())
}

/// The certificates that are to be revoked, whether they were before or not.
fn choose(issued: &[IssuedView], target: &RevocationTarget) -> Result<Vec<IssuedView>, Fault> {
    match target {
        RevocationTarget::Serial(serial) => Ok(vec![of_number(issued, serial)?.clone()]),
        RevocationTarget::Host(host) => {
            let of_host = |view: &&IssuedView| view.identity == *host;
            let chosen: Vec<_> = issued.iter().filter(of_host).cloned().collect();
            if chosen.is_empty() {
                let detail = format!("{host} has no certificate from here to revoke");
                return Err(Fault::new(Code::NotFound, detail));
            }
            Ok(chosen)
        }
    }
}

/// The certificate with this serial number, or the only one whose serial number has this prefix.
fn of_number<'a>(issued: &'a [IssuedView], number: &str) -> Result<&'a IssuedView, Fault> {
    let plain = number.replace(':', "").to_ascii_lowercase();
    if let Some(view) = issued.iter().find(|view| view.serial == plain) {
        return Ok(view);
    }
    let begins_so = |view: &&IssuedView| view.serial.starts_with(&plain);
    let found: Vec<_> = issued.iter().filter(begins_so).collect();
    match &*found {
        [] => {
            let detail = format!("no certificate {plain} was issued here");
            Err(Fault::new(Code::NotFound, detail))
        }
        _ if plain.len() < SERIAL_DIGITS_MIN => {
            let detail = format!("{plain:?} is less than {SERIAL_DIGITS_MIN} digits of a number");
            Err(Fault::new(Code::Usage, detail))
        }
        [view] => Ok(view),
        _ => {
            let count = found.len();
            let detail = format!("the numbers of {count} certificates begin with {plain}");
            Err(Fault::new(Code::Usage, detail))
        }
    }
}

/// Whether a list includes a revoked certificate. One that ended longer ago than the longest
/// validity is left out: no link made with it can still live.
fn is_listed(view: &IssuedView, now: SystemTime) -> bool {
    let ended = Duration::from_secs(view.not_after_unix_seconds);
    SystemTime::UNIX_EPOCH + ended + LEAF_VALIDITY_MAX > now
}

fn revoked_entry(view: &IssuedView) -> Option<RevokedCertParams> {
    let revoked = Duration::from_secs(view.revoked_unix_seconds?);
    Some(RevokedCertParams {
        serial_number: SerialNumber::from(view::unhex(&view.serial)?),
        revocation_time: (SystemTime::UNIX_EPOCH + revoked).into(),
        reason_code: match view.reason? {
            // RFC 5280, 5.3.1: this reason is omitted instead of encoded.
            Reason::Unspecified => None,
            Reason::KeyCompromise => Some(RevocationReason::KeyCompromise),
            Reason::Superseded => Some(RevocationReason::Superseded),
            Reason::CessationOfOperation => Some(RevocationReason::CessationOfOperation),
            Reason::PrivilegeWithdrawn => Some(RevocationReason::PrivilegeWithdrawn),
        },
        invalidity_date: None,
    })
}
