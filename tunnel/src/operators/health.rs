//! How the way to a peer is, why, and what to do about it. Pure.

use std::borrow::Cow;
use std::time::Duration;

use crate::links::peer::rivals;
use crate::operators::status::LinkState;
use crate::trust::OWN_REVOKED_REMEDY;
use crate::trust::failures::OURS_REVOKED;

/// Packets lost of a million that are trouble: the estimator takes less for a path's noise.
pub(crate) const LOSS_PER_MILLION: u64 = 20_000;

/// A queue at the bottleneck that is trouble: ours is a few milliseconds, so others fill the path.
pub(crate) const QUEUE: Duration = Duration::from_millis(50);

/// Packets of a second below which a loss says nothing, for one of ten is no tenth.
pub(crate) const PACKETS_MIN: u64 = 100;

/// Packets of a second below which a queue says little: a host that is slow to run us makes an idle link look as
/// if it had one. Thin links send few, and the queue that is told leaves out rounds of a packet or two already.
const QUEUE_PACKETS_MIN: u64 = 10;

/// How long trouble is shown after it was last seen, so that it can be read.
pub(crate) const SHOWN: Duration = Duration::from_secs(5);

/// Losses of the link within [`RECENT`] that make it degraded although it is up.
pub(crate) const FLAPS: usize = 3;

/// How long the loss of a link is remembered.
pub(crate) const RECENT: Duration = Duration::from_mins(10);

/// Whether a second's packets show a queue that is trouble.
pub(crate) fn is_queued(queue: Duration, packets: u64) -> bool {
    packets >= QUEUE_PACKETS_MIN && queue >= QUEUE
}

/// Whose something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    Ours,
    Peers,
}

/// What was seen of the way to a peer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Signs {
    /// Whether there is a link.
    pub is_linked: bool,
    /// Whether the peer has stopped answering over it.
    pub is_stalled: bool,
    /// Whether we dial; else the peer does.
    pub is_dialled: bool,
    /// Why there is no link, or why the last attempt failed.
    pub why_down: String,
    /// What to do about that, where whoever met it knows.
    pub remedy_down: Option<String>,
    /// Whose certificate is revoked, if that is why.
    pub revoked: Option<Whose>,
    /// Whether the peer has no version in common with us.
    pub is_unspoken: bool,
    /// The worst loss of late, per million; 0 without trouble.
    pub lost_per_million: u64,
    /// The longest queue of late; zero without trouble.
    pub queue: Duration,
    /// Times the link was lost within [`RECENT`].
    pub lost_count: usize,
    /// The words for two tunnels that show the peer's identity, if there are two.
    pub rivals: Option<String>,
}

/// What is made of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub state: LinkState,
    pub reason: String,
    /// What an operator can do; none is needed for a healthy link.
    pub remedy: Option<Cow<'static, str>>,
}

impl Verdict {
    fn new(state: LinkState, reason: impl Into<String>, remedy: &'static str) -> Self {
        Self {
            state,
            reason: reason.into(),
            remedy: Some(Cow::Borrowed(remedy)),
        }
    }
}

/// Judges what was seen; of several troubles the one that explains the others is named.
pub(crate) fn judge(signs: &Signs) -> Verdict {
    if !signs.is_linked {
        return judge_down(signs);
    }
    let degraded = |reason: String, remedy| Verdict::new(LinkState::Degraded, reason, remedy);
    if let Some(rivals) = &signs.rivals {
        return degraded(rivals.clone(), rivals::REMEDY);
    }
    if signs.is_stalled {
        return degraded(
            "the peer has stopped answering; another link is being dialled".to_owned(),
            "nothing if it passes: streams wait and go on; else check the path to the peer",
        );
    }
    if signs.lost_count >= FLAPS {
        let (count, minutes) = (signs.lost_count, RECENT.as_secs() / 60);
        return degraded(
            format!("up, and lost {count} times in {minutes} minutes"),
            "look for the pattern in the tunnel's log: a line that drops, a NAT that forgets, a peer \
             that restarts",
        );
    }
    if signs.lost_per_million >= LOSS_PER_MILLION {
        let (percent, tenths) = (
            signs.lost_per_million / 10_000,
            signs.lost_per_million / 1000 % 10,
        );
        return degraded(
            format!("{percent}.{tenths} % of packets are lost"),
            "check the line; if it is a policer at the provider, set send_rate below its rate",
        );
    }
    if signs.queue >= QUEUE {
        let millis = signs.queue.as_millis();
        return degraded(
            format!("a queue of {millis} ms at the bottleneck that is not ours"),
            "find what else fills the line, or give it less with the router's queue management",
        );
    }
    Verdict {
        state: LinkState::Healthy,
        reason: "up".to_owned(),
        remedy: None,
    }
}

fn judge_down(signs: &Signs) -> Verdict {
    let why = &signs.why_down;
    match signs.revoked {
        Some(Whose::Peers) => {
            return Verdict::new(
                LinkState::Down,
                format!("its certificate is revoked: {why}"),
                "if it should be let in, issue a new certificate to that host with `towpath certs issue`; \
                 else remove the peer from the configuration",
            );
        }
        Some(Whose::Ours) => {
            // A handshake's end says it itself; that of a link that was up does not.
            let reason = match why.as_str() {
                OURS_REVOKED => why.clone(),
                other => format!("this host's certificate is revoked: {other}"),
            };
            return Verdict::new(LinkState::Down, reason, OWN_REVOKED_REMEDY);
        }
        None => {}
    }
    if signs.is_unspoken {
        return Verdict::new(
            LinkState::Down,
            format!("no version in common: {why}"),
            "upgrade the older side; the link comes up by itself then",
        );
    }
    if let Some(remedy) = &signs.remedy_down {
        return Verdict {
            state: LinkState::Down,
            reason: why.clone(),
            remedy: Some(Cow::Owned(remedy.clone())),
        };
    }
    if signs.is_dialled {
        return Verdict::new(
            LinkState::Down,
            why,
            "dialling goes on by itself; check that the peer's tunnel runs, that its address is right, \
             and that UDP passes both ways",
        );
    }
    Verdict::new(
        LinkState::Down,
        format!("{why}; waiting for the peer to dial"),
        "check the peer's tunnel and that its datagrams reach the address this one listens at",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn up() -> Signs {
        Signs {
            is_linked: true,
            is_dialled: true,
            ..Signs::default()
        }
    }

    #[test]
    fn each_state_has_its_reason_and_all_but_health_a_remedy() {
        let healthy = judge(&up());
        assert_eq!(healthy.state, LinkState::Healthy);
        assert_eq!(healthy.remedy, None);
        for (change, word) in [
            (
                (|signs| signs.is_stalled = true) as fn(&mut Signs),
                "answering",
            ),
            (|signs| signs.lost_per_million = 31_400, "3.1 %"),
            (|signs| signs.queue = Duration::from_millis(80), "80 ms"),
            (|signs| signs.lost_count = 4, "4 times in 10 minutes"),
        ] {
            let mut signs = up();
            change(&mut signs);
            let verdict = judge(&signs);
            assert_eq!(verdict.state, LinkState::Degraded, "{verdict:?}");
            assert!(verdict.reason.contains(word), "{verdict:?}");
            assert!(verdict.remedy.is_some());
        }
    }

    #[test]
    fn what_is_normal_is_no_trouble() {
        let signs = Signs {
            lost_per_million: LOSS_PER_MILLION - 1,
            queue: QUEUE / 2,
            lost_count: FLAPS - 1,
            ..up()
        };
        assert_eq!(judge(&signs).state, LinkState::Healthy);
    }

    #[test]
    fn an_idle_link_has_no_queue() {
        let long = QUEUE * 3;
        assert!(is_queued(long, QUEUE_PACKETS_MIN) && !is_queued(long, QUEUE_PACKETS_MIN - 1));
        assert!(!is_queued(QUEUE / 2, PACKETS_MIN));
    }

    #[test]
    fn without_a_link_it_is_said_who_dials() {
        let mut signs = Signs {
            why_down: "timed out".to_owned(),
            is_dialled: true,
            ..Signs::default()
        };
        let ours = judge(&signs);
        assert_eq!((ours.state, &*ours.reason), (LinkState::Down, "timed out"));
        signs.is_dialled = false;
        assert!(judge(&signs).reason.contains("waiting for the peer"));
        // No look at the network mends a certificate.
        for (whose, word) in [
            (Whose::Peers, "its cert"),
            (Whose::Ours, "this host's cert"),
        ] {
            let verdict = judge(&Signs {
                revoked: Some(whose),
                ..signs.clone()
            });
            assert!(verdict.reason.starts_with(word), "{verdict:?}");
            assert!(
                verdict
                    .remedy
                    .is_some_and(|remedy| remedy.contains("certs issue"))
            );
        }
        // Neither does one mend what else is wrong with one.
        let known = judge(&Signs {
            why_down: "its certificate has expired".to_owned(),
            remedy_down: Some("renew it there".to_owned()),
            ..signs.clone()
        });
        let told = (&*known.reason, known.remedy.as_deref());
        let expected = ("its certificate has expired", Some("renew it there"));
        assert_eq!(told, expected);
        // A peer that is gone is not also lossy.
        signs.lost_per_million = 500_000;
        assert_eq!(judge(&signs).state, LinkState::Down);
    }
}
