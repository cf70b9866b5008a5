//! Checks whether the certificates that a link was made with are still acceptable.
//!
//! A link outlives its certificates, so that a renewal costs nothing. It must not outlive the trust
//! in them: a host whose certificate nobody knows any more could not be revoked.
//!
//! | certificate | consequence |
//! |---|---|
//! | the peer's has been revoked | the link is closed, and its streams are cut (T10), also those that wait for the next link |
//! | the peer's is from an authority that is no longer trusted | another link replaces it; if none does soon, it is closed, and its streams wait for the next |
//! | ours has been revoked, according to the authenticated peer | streams carried with it are cut, also those that wait for the next link |
//! | ours is from another authority than the one in use, or ends within 15 days and before the one in use | another link replaces it |
//! | the peer's ends within 15 days | another link replaces it once a day: the peer may have a newer one, which it shows only on a new link |
//!
//! The side that dialled makes the new link. Streams move over to it without noticing.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;
use towpath_certs::{Identity, view};
use towpath_protocol::class::Leg;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::HostIdentity;

use crate::core::Core;
use crate::links::link::Link;
use crate::links::peer::Peer;
use crate::trust::{chain_of, peer_not_after};

/// How long a link may live after its peer's authority is no longer trusted. Enough for another
/// link to replace it, and well below the five seconds within which a revoked peer has to be out.
const REPLACEMENT_WAIT: Duration = Duration::from_secs(3);

/// How long before a certificate ends its link is replaced, if there may be a certificate that
/// lasts longer. This is a day before operators are warned, because the warning depends on the
/// link's certificate.
const AHEAD: Duration = Duration::from_hours(15 * 24);

/// Minimum age of a link before it is replaced because the peer's certificate ends. Only a new link
/// shows whether the peer has a newer certificate.
const LOOK_AGAIN: Duration = Duration::from_hours(24);

/// A certificate with its chain to the authority.
pub(crate) type Chain = Arc<[CertificateDer<'static>]>;

/// The certificates that a link was made with.
#[derive(Debug, Default)]
pub(crate) struct Papers {
    /// The chain that we have shown, if we dialled.
    ours: Option<Chain>,
    /// When `ours` ends, in seconds since 1970.
    ours_until: Option<u64>,
    /// When the peer's certificate ends, in seconds since 1970; set on first use.
    theirs_until: OnceLock<Option<u64>>,
    judged: Mutex<Judged>,
}

/// The last judgement of a link's certificates.
#[derive(Debug, Default, Clone, Copy)]
struct Judged {
    standing: Standing,
    /// The generation of the identity that was in use.
    generation: Option<u64>,
    foreign_since: Option<Instant>,
}

/// How a link's certificates relate to the identity in use.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Standing {
    #[default]
    Good,
    /// Ours is from another authority than the one in use.
    Old,
    /// The peer's is from an authority that is not trusted.
    Foreign,
}

impl Papers {
    /// The papers of a link that we dial with this chain.
    pub(crate) fn shown(chain: Chain) -> Self {
        let until = chain.first().and_then(|leaf| view::of_der(leaf).ok());
        Self {
            ours: Some(chain),
            ours_until: until.map(|view| view.not_after_unix_seconds),
            theirs_until: OnceLock::new(),
            judged: Mutex::default(),
        }
    }

    /// Whether we may have shown this chain. The side that was dialled does not remember, so the
    /// answer is yes there.
    fn may_have_shown(&self, chain: &Chain) -> bool {
        let ours = self.ours.as_ref();
        ours.is_none_or(|ours| ours.first() == chain.first())
    }

    /// Judges the certificates again if the identity in use has changed.
    fn judge(&self, link: &Link, (identity, generation): (&Identity, u64)) -> Judged {
        let mut judged = self.judged.lock();
        if judged.generation != Some(generation) {
            let standing = self.standing(link, identity);
            let is_foreign = standing == Standing::Foreign;
            *judged = Judged {
                standing,
                generation: Some(generation),
                foreign_since: is_foreign
                    .then(|| judged.foreign_since.unwrap_or_else(Instant::now)),
            };
        }
        *judged
    }

    fn standing(&self, link: &Link, identity: &Identity) -> Standing {
        let is_trusted = |leg| {
            let chain = chain_of(link.connection(leg));
            chain.is_none_or(|chain| identity.signer_of(&chain).is_some())
        };
        if !is_trusted(Leg::Urgent) || !is_trusted(Leg::Bulk) {
            return Standing::Foreign;
        }
        let signer = identity.signer_of(identity.chain());
        match &self.ours {
            Some(ours) if identity.signer_of(ours) != signer => Standing::Old,
            _ => Standing::Good,
        }
    }

    /// Whether our certificate on the link is about to end, and the one in use lasts longer.
    fn is_ending(&self, identity: &Identity, now: SystemTime) -> bool {
        self.ours_until.is_some_and(|until| {
            is_soon(until, now) && identity.view().not_after_unix_seconds > until
        })
    }

    /// When the peer's certificate ends, in seconds since 1970.
    fn theirs_until(&self, link: &Link) -> Option<u64> {
        *self.theirs_until.get_or_init(|| peer_not_after(link))
    }
}

/// Whether to ask the peer for a newer certificate: the link is at least [`LOOK_AGAIN`] old, and
/// the peer's certificate is about to end but has not ended.
fn may_be_renewed(age: Duration, until: impl FnOnce() -> Option<u64>, now: SystemTime) -> bool {
    // Once it has ended, a peer without a newer certificate would be dialled in vain again and
    // again.
    let is_ending = |until| is_soon(until, now) && !is_soon(until, now - AHEAD);
    age >= LOOK_AGAIN && until().is_some_and(is_ending)
}

/// Whether a certificate with this end is about to end or has ended.
fn is_soon(until_unix_seconds: u64, now: SystemTime) -> bool {
    let now = now.duration_since(SystemTime::UNIX_EPOCH);
    let soon = now.unwrap_or_default().saturating_add(AHEAD);
    until_unix_seconds <= soon.as_secs()
}

/// Closes links that must not live, and replaces links that should not.
pub(crate) fn attend(core: &Core) {
    for peer in core.peers.all().values() {
        for link in peer.links() {
            if !link.is_over() {
                look(core, peer, &link);
            }
        }
        // Streams that wait for a link are cut too, if the certificate of their last link is
        // revoked.
        for link in peer.lost_links() {
            let _ = check(core, peer, &link);
        }
    }
}

/// Closes a link whose peer was revoked, and cuts all streams with that host.
///
/// # Errors
///
/// `E_DENIED` if the peer is revoked.
fn check(core: &Core, peer: &Peer, link: &Arc<Link>) -> Result<(), Fault> {
    core.trust.check_link(link).inspect_err(|fault| {
        let host = &link.peer;
        tracing::warn!(target: "audit", peer = %host, "revoked: link closed, streams cut");
        peer.note_revoked();
        // Before the link is closed, so that the streams do not see its end first.
        peer.streams.cut_host(host, fault);
        link.close(fault.code, &fault.detail);
        peer.forget(link);
    })
}

/// Cuts the streams that wait for a host which has just refused our certificate as revoked, if they
/// were carried with the same certificate: the host has cut its ends of them. Streams carried with
/// another certificate of ours go on waiting on both sides.
pub(crate) fn note_refused(peer: &Peer, host: &HostIdentity, shown: &Chain) {
    if peer.links().iter().any(|link| !link.is_ill()) {
        return;
    }
    for link in peer.lost_links() {
        if link.peer == *host && link.papers.may_have_shown(shown) {
            note_denied(peer, host);
            peer.forget(&link);
        }
    }
}

/// Cuts all streams with a host that has ended or refused a link because our certificate is
/// revoked.
pub(crate) fn note_denied(peer: &Peer, host: &HostIdentity) {
    tracing::warn!(target: "audit", peer = %host, "this host's certificate is revoked: streams cut");
    let detail = format!("{host} refuses this host's certificate: it is revoked");
    peer.streams
        .cut_host(host, &Fault::new(Code::Denied, detail));
}

fn look(core: &Core, peer: &Peer, link: &Arc<Link>) {
    let host = &link.peer;
    if check(core, peer, link).is_err() {
        return;
    }
    let (identity, generation) = core.trust.now();
    let judged = link.papers.judge(link, (&identity, generation));
    let waited = judged.foreign_since.map(|since| since.elapsed());
    if waited.is_some_and(|waited| waited > REPLACEMENT_WAIT) {
        let why = "the authority of its certificate is trusted no longer";
        tracing::warn!(target: "audit", peer = %host, why, "link closed");
        // The streams wait: the host may come back with a renewed certificate.
        link.close(Code::State, why);
        return;
    }
    let now = SystemTime::now();
    let is_outdated = judged.standing != Standing::Good
        || link.papers.is_ending(&identity, now)
        || may_be_renewed(link.age(), || link.papers.theirs_until(link), now);
    if is_outdated && link.dialler == core.site {
        peer.replace(link);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_whose_certificate_ends_is_asked_for_another_once_a_day() {
        let day = Duration::from_hours(24);
        let now = SystemTime::UNIX_EPOCH + 20_000 * day;
        let asks = |age, days_left: u64| {
            let until = (20_000 + days_left) * day.as_secs();
            may_be_renewed(age, || Some(until), now)
        };
        assert!(asks(day, 14) && asks(3 * day, 1));
        assert!(
            !asks(day - Duration::from_secs(1), 14),
            "it was asked today"
        );
        assert!(!asks(day, 16), "it lasts");
        assert!(!asks(day, 0), "no link comes of it");
        assert!(!may_be_renewed(day, || None, now));
    }
}
