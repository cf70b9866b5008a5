//! The next certificate of a host, and the end of one before its time.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateRevocationListParams, KeyIdMethod, RevocationReason, RevokedCertParams,
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
use crate::revocation::{Freshness, LIST_BYTES_MAX, Revocations};
use crate::view;

/// How long a list of revoked certificates is good for unless the operator says otherwise: a month,
/// so that a box that hears of nobody for some weeks still takes part.
pub const LIST_VALIDITY: Duration = Duration::from_hours(30 * 24);

/// Longest validity of a list: beyond it a host could miss every revocation for a season.
pub const LIST_VALIDITY_MAX: Duration = Duration::from_hours(90 * 24);

/// Fewest digits of a certificate's number that stand for all of it: what is revoked is not called back, and a slip
/// of a finger must not name another.
pub const SERIAL_DIGITS_MIN: usize = 8;

/// Whether a host keeps its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyChoice {
    /// The key it has; only its certificate is needed here.
    Same,
    /// A new one, made here.
    New,
}

/// An authority that hosts trust besides the one that signs for them: the one before, or the next.
#[derive(Debug, Clone)]
pub struct Overlap {
    certificate_pem: String,
    list_pem: Option<String>,
}

impl Overlap {
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
        if Revocations::recall(list.as_bytes(), &authorities)?.is_revoked(leaf) {
            return Err(was_revoked(&view::view(leaf)?.serial));
        }
        Ok(())
    }
}

/// Which certificates are to be revoked.
#[derive(Debug, Clone)]
pub enum Which {
    /// The one of this number, in hexadecimal, or of as much of it as tells it from others.
    Serial(String),
    /// All of a host that were not revoked before: those whose time is over too, for a link that was made
    /// with one may live.
    Host(HostIdentity),
    /// None: only a new list is wanted, before the last one ends.
    None,
}

/// A host's folder with its next certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewed {
    /// Where its files are.
    pub files: IdentityFiles,
    /// The names of those that are not what they were, and have to be carried to the host.
    pub changed: Vec<&'static str>,
}

/// A list that was signed.
#[derive(Debug, Clone)]
pub struct Signed {
    /// Where it is.
    pub file: PathBuf,
    /// Its number.
    pub number: u64,
    /// When the next one is due.
    pub next_update: SystemTime,
    /// What was revoked with it.
    pub revoked: Vec<IssuedView>,
    /// How many certificates it revokes in all.
    pub revoked_count: usize,
}

impl Authority {
    /// Issues the next certificate of a host into its folder, in place of the one there, and hands
    /// it what it is to trust: this authority, and in an overlap of two the `overlap` as well.
    ///
    /// A tunnel that reads the folder takes the new files up without dropping a stream. A folder that has a
    /// list of revoked certificates gets one that the new authorities have signed, if need be an empty one
    /// that is signed for it: with a list of others alone a tunnel would not start. Where this authority's own list has
    /// ended or is about to, the next one is signed.
    ///
    /// # Errors
    ///
    /// `E_CERTIFICATE` if the folder's certificate is not from here, `E_STATE` if it was revoked,
    /// and as [`Authority::issue`]. The folder's files are then those of before.
    pub fn renew(
        &self,
        host: &Path,
        key: KeyChoice,
        validity: Validity,
        overlap: Option<&Overlap>,
    ) -> Result<Renewed, Fault> {
        let certificate = host.join(LEAF_CERTIFICATE);
        // Before anything is made of a name that was mistyped.
        identity::read_chain(&certificate)?;
        let folder = KeyFolder::open_or_create(host)?;
        // Two renewals of one folder at once would mix their pairs: what is there counts once it is ours.
        let _alone = folder.lock()?;
        let ca = self.trusted_pem(overlap)?;
        let leaf = signed_leaf(&certificate, &ca)?;
        let identity = view::identity_of(&leaf)?;
        self.check(&identity, validity)?;
        // Held to the end: a certificate that is revoked meanwhile must not come back.
        let mut register = self.register()?;
        check_not_revoked(&register, &view::view(&leaf)?.serial)?;
        if let Some(overlap) = overlap {
            overlap.check_not_revoked(&leaf)?;
        }
        let list = self.list_for(&folder, &mut register, overlap)?;
        let (certificate, new_key_pem) =
            self.sign_next(&mut register, (&leaf, &identity), validity, key)?;
        // What is trusted comes first: a certificate whose authority is not known yet is no use. A reader
        // that finds the new key beside the old certificate sees no pair, keeps what it has, and looks again.
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

    /// The lists that a host is given: an empty one is signed where it has one and there is none.
    fn list_for(
        &self,
        folder: &KeyFolder,
        register: &mut Register,
        overlap: Option<&Overlap>,
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

    /// The list that was signed last, or the next one, signed now, if that has ended or is about to: with a list that
    /// has ended a host begins no move. None if none was ever signed.
    pub(crate) fn list_in_time(
        &self,
        register: &mut Register,
        now: SystemTime,
    ) -> Result<Option<String>, Fault> {
        let Some(pem) = self.list_pem()? else {
            return Ok(None);
        };
        let authorities = certificates(&self.certificate_pem)?;
        let lists = Revocations::recall(pem.as_bytes(), &authorities).ok();
        let freshness = lists.and_then(|lists| lists.freshness(now));
        if freshness == Some(Freshness::Fresh) {
            return Ok(Some(pem));
        }
        let (_, next) = self.sign_list(register, LIST_VALIDITY, now)?;
        Ok(Some(next))
    }

    /// Signs the certificate that follows a leaf, and makes its key where there is to be a new one; both as PEM.
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

    /// Revokes certificates and signs the next list, good for `lasting`. What was revoked before and stands in
    /// no list yet, for the one who revoked it was stopped, is revoked again.
    ///
    /// # Errors
    ///
    /// `E_NOT_FOUND` if there is nothing of the sort to revoke, `E_STATE` if that was done before, `E_USAGE`
    /// for a list that would last too long, `E_IO` if the register or the list cannot be written.
    pub fn revoke(
        &self,
        which: &Which,
        reason: Reason,
        lasting: Duration,
        now: SystemTime,
    ) -> Result<Signed, Fault> {
        if lasting > LIST_VALIDITY_MAX || lasting.is_zero() {
            let days = LIST_VALIDITY_MAX.as_secs() / 86_400;
            let detail = format!("a list of revoked certificates lasts at most {days} days");
            return Err(Fault::new(Code::Usage, detail));
        }
        // Held to the end: two lists of one number must never leave.
        let mut register = self.register()?;
        let is_public = self.is_public(&register);
        let chosen = choose(&register.issued(now), which, is_public)?;
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

    /// Signs the next list of all that is revoked, and puts it into the authority's folder; gives it as PEM too.
    fn sign_list(
        &self,
        register: &mut Register,
        lasting: Duration,
        now: SystemTime,
    ) -> Result<(Signed, String), Fault> {
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
        let signed = Signed {
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

    /// Whether all that is revoked stands in the list that hosts are given.
    fn is_public(&self, register: &Register) -> bool {
        let read = || {
            let authorities = certificates(&self.certificate_pem).ok()?;
            let pem = self.list_pem().ok()??;
            let lists = Revocations::recall(pem.as_bytes(), &authorities).ok()?;
            let view = lists.views().next()?;
            Some(view.number)
        };
        register.is_listed() && read() == Some(register.list_number())
    }

    /// What a host is to trust.
    fn trusted_pem(&self, overlap: Option<&Overlap>) -> Result<String, Fault> {
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

/// The certificate of a file, if one of these authorities has signed it.
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

/// A certificate whose key is in other hands must not come back as a good one.
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

fn joined(one: &str, other: &str) -> String {
    format!("{}\n{}", one.trim_end(), other)
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, Fault> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| Fault::new(Code::Certificate, error.to_string()))
}

/// What is to be revoked: of what was revoked before only what does not stand in the list, if `is_public` says
/// that anything may not.
fn choose(issued: &[IssuedView], which: &Which, is_public: bool) -> Result<Vec<IssuedView>, Fault> {
    let is_done = |view: &IssuedView| view.state == IssuedState::Revoked && is_public;
    match which {
        Which::None => Ok(Vec::new()),
        Which::Serial(serial) => {
            let view = of_number(issued, serial)?;
            if is_done(view) {
                let detail = format!("certificate {} was revoked before", view.serial);
                return Err(Fault::new(Code::State, detail));
            }
            Ok(vec![view.clone()])
        }
        Which::Host(host) => {
            let of_host = |view: &&IssuedView| view.identity == *host && !is_done(view);
            let chosen: Vec<_> = issued.iter().filter(of_host).cloned().collect();
            if chosen.is_empty() {
                let detail = format!("{host} has no certificate from here to revoke");
                return Err(Fault::new(Code::NotFound, detail));
            }
            Ok(chosen)
        }
    }
}

/// The certificate of a number, or the only one whose number begins so.
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

/// Whether a list names a certificate that is revoked. One that ended longer ago than any lasts is of no use to
/// anybody, on a link of that time either.
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
            // RFC 5280, 5.3.1: left out rather than said.
            Reason::Unspecified => None,
            Reason::KeyCompromise => Some(RevocationReason::KeyCompromise),
            Reason::Superseded => Some(RevocationReason::Superseded),
            Reason::CessationOfOperation => Some(RevocationReason::CessationOfOperation),
            Reason::PrivilegeWithdrawn => Some(RevocationReason::PrivilegeWithdrawn),
        },
        invalidity_date: None,
    })
}
