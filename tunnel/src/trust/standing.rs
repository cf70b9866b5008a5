//! Whether the certificates that a link was made with still count.
//!
//! A link outlives them, so that a renewal costs nothing. It must not outlive the trust in them: a host
//! whose certificate is known to nobody any more could not be revoked.
//!
//! | what has become of it | what is done |
//! |---|---|
//! | the peer's has been revoked | the link is closed, and its streams are cut (T10), also those that wait for the next |
//! | the peer's is of an authority that is trusted no longer | another link takes its place; if none does soon, it is closed, and its streams wait for the next |
//! | ours has been revoked, as the peer says where nobody else can | streams with it are cut, also those that wait for the next link |
//! | ours is of another authority than the one in use, or ends within 15 days and before that one | another link takes its place |
//! | the peer's ends within 15 days | another link takes its place once a day: the peer may have a newer one, and shows that only with a new link |
//!
//! The side that dialled makes the other link; what is on the first one moves over and sees nothing of it.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant as StdInstant, SystemTime};

use rustls_pki_types::CertificateDer;
use towpath_certs::{Identity, view};
use towpath_protocol::channel::Leg;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::HostIdentity;

use crate::core::Core;
use crate::links::link::Link;
use crate::links::peer::Peer;
use crate::trust::{chain_of, peer_not_after};

/// How long a link may live whose peer's authority is trusted no longer: time for another one to take its
/// place, and well below the five seconds within which a revoked peer has to be out.
const REPLACEMENT_WAIT: Duration = Duration::from_secs(3);

/// How long before the end of a certificate its link is made anew, if there may be one that lasts longer: a day before
/// operators are warned, who see only what the link was made with.
const AHEAD: Duration = Duration::from_hours(15 * 24);

/// How old a link is before another one is made because the peer's certificate ends: whether the peer has a newer one is not
/// known before.
const LOOK_AGAIN: Duration = Duration::from_hours(24);

/// A certificate with what leads from it to its authority.
pub(crate) type Chain = Arc<[CertificateDer<'static>]>;

/// What a link remembers of the certificates it was made with.
#[derive(Debug, Default)]
pub(crate) struct Papers {
    /// What we have shown, if we dialled.
    ours: Option<Chain>,
    /// When that ends, in seconds since 1970.
    ours_until: Option<u64>,
    /// The end of the certificate that the peer has shown, once somebody has asked.
    theirs_until: OnceLock<Option<u64>>,
    judged: Mutex<Judged>,
}

/// What was found last.
#[derive(Debug, Default, Clone, Copy)]
struct Judged {
    standing: Standing,
    /// Under what was in use then.
    generation: Option<u64>,
    foreign_since: Option<StdInstant>,
}

/// How what a link was made with stands to what is in use now.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Standing {
    #[default]
    Good,
    /// Ours is of another authority than the one in use.
    Old,
    /// The peer's is of an authority that is not trusted.
    Foreign,
}

impl Papers {
    /// Papers of a link that we dial, showing this.
    pub(crate) fn shown(chain: Chain) -> Self {
        let until = chain.first().and_then(|leaf| view::view(leaf).ok());
        Self {
            ours: Some(chain),
            ours_until: until.map(|view| view.not_after_unix_seconds),
            theirs_until: OnceLock::new(),
            judged: Mutex::default(),
        }
    }

    /// Whether this may be what we have shown: who was dialled does not remember.
    fn may_have_shown(&self, chain: &Chain) -> bool {
        let ours = self.ours.as_ref();
        ours.is_none_or(|ours| ours.first() == chain.first())
    }

    /// Judges them anew if what is in use has changed since.
    fn judge(&self, link: &Link, (identity, generation): (&Identity, u64)) -> Judged {
        let mut judged = self.judged.lock().unwrap_or_else(PoisonError::into_inner);
        if judged.generation != Some(generation) {
            let standing = self.standing(link, identity);
            let is_foreign = standing == Standing::Foreign;
            *judged = Judged {
                standing,
                generation: Some(generation),
                foreign_since: is_foreign
                    .then(|| judged.foreign_since.unwrap_or_else(StdInstant::now)),
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

    /// Whether what we have shown is about to end, and what is in use lasts longer.
    fn is_ending(&self, identity: &Identity, now: SystemTime) -> bool {
        self.ours_until.is_some_and(|until| {
            is_soon(until, now) && identity.view().not_after_unix_seconds > until
        })
    }

    /// The end of the certificate that the peer has shown, in seconds since 1970.
    fn theirs_until(&self, link: &Link) -> Option<u64> {
        *self.theirs_until.get_or_init(|| peer_not_after(link))
    }
}

/// Whether a peer may have another certificate than one that is about to end, by how old the link is over which it has
/// shown that.
fn may_be_renewed(age: Duration, until: impl FnOnce() -> Option<u64>, now: SystemTime) -> bool {
    // Once it has ended, a peer without another one would be dialled in vain again and again.
    let is_ending = |until| is_soon(until, now) && !is_soon(until, now - AHEAD);
    age >= LOOK_AGAIN && until().is_some_and(is_ending)
}

/// Whether a certificate with this end is about to end, or has ended.
fn is_soon(until_unix_seconds: u64, now: SystemTime) -> bool {
    let now = now.duration_since(SystemTime::UNIX_EPOCH);
    let soon = now.unwrap_or_default().saturating_add(AHEAD);
    until_unix_seconds <= soon.as_secs()
}

/// Ends links that must not live, and has those made anew that should not.
pub(crate) fn attend(core: &Core) {
    for peer in core.peers.values() {
        for link in peer.links() {
            if !link.is_over() {
                look(core, peer, &link);
            }
        }
        // Streams that wait for a link remember with which certificate they were carried last.
        for link in peer.lost_links() {
            let _ = check(core, peer, &link);
        }
    }
}

/// Ends a link whose peer was revoked, if it is not over, and all streams with that host.
///
/// # Errors
///
/// `E_DENIED` if the peer is revoked.
fn check(core: &Core, peer: &Peer, link: &Arc<Link>) -> Result<(), Fault> {
    core.trust.check_link(link).inspect_err(|fault| {
        let host = &link.peer;
        tracing::warn!(target: "audit", peer = %host, "revoked: link closed, streams cut");
        peer.note_revoked();
        // First, so that they do not see a link that is over.
        peer.streams.cut_host(host, fault);
        link.close(fault.code, &fault.detail);
        peer.forget(link);
    })
}

/// Ends the streams that wait for a host which has just refused what we show as revoked, if they were carried under
/// the same: it has ended its ends of them. With another certificate of ours it goes on waiting, and so do we.
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

/// Ends all streams with a host that has ended a link, or refused one, because our certificate is revoked.
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
        // Streams wait: a host that was renewed meanwhile comes back.
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
