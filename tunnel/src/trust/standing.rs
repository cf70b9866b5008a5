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
//! | ours is of another authority than the one in use, or is about to end while that is not | another link takes its place |
//!
//! The side that dialled makes the other link; what is on the first one moves over and sees nothing of it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant as Clock, SystemTime};

use rustls_pki_types::CertificateDer;
use towpath_certs::{Identity, view};
use towpath_protocol::channel::Leg;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::HostIdentity;

use crate::core::Core;
use crate::link::Link;
use crate::peer::Peer;
use crate::trust::chain_of;

/// How long a link may live whose peer's authority is trusted no longer: time for another one to take its
/// place, and well below the five seconds within which a revoked peer has to be out.
const REPLACEMENT_WAIT: Duration = Duration::from_secs(3);

/// How long before the end of the certificate that we have shown a link is made anew, if there is one that
/// lasts longer.
const AHEAD: Duration = Duration::from_hours(1);

/// A certificate with what leads from it to its authority.
pub(crate) type Chain = Arc<[CertificateDer<'static>]>;

/// What a link remembers of the certificates it was made with.
#[derive(Debug, Default)]
pub(crate) struct Papers {
    /// What we have shown, if we dialled.
    ours: Option<Chain>,
    /// When that ends, in seconds since 1970.
    ours_until: Option<u64>,
    judged: Mutex<Judged>,
}

/// What was found last.
#[derive(Debug, Default, Clone, Copy)]
struct Judged {
    standing: Standing,
    /// Under what was in use then.
    generation: Option<u64>,
    foreign_since: Option<Clock>,
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
                foreign_since: is_foreign.then(|| judged.foreign_since.unwrap_or_else(Clock::now)),
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
        let now = now.duration_since(SystemTime::UNIX_EPOCH);
        let soon = now.unwrap_or_default() + AHEAD;
        self.ours_until.is_some_and(|until| {
            until <= soon.as_secs() && identity.view().not_after_unix_seconds > until
        })
    }
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
    let is_outdated =
        judged.standing != Standing::Good || link.papers.is_ending(&identity, SystemTime::now());
    if is_outdated && link.dialler == core.site {
        peer.replace(link);
    }
}
