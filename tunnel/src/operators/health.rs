//! Judges the link to a peer: its state, the reason, and what an operator can do. Pure.

use std::borrow::Cow;
use std::time::Duration;

use crate::links::peer::rivals;
use crate::operators::status::LinkState;
use crate::trust::OWN_REVOKED_REMEDY;
use crate::trust::failures::OURS_REVOKED;

/// Loss, in packets per million, from which a link is degraded. The estimator takes less for noise
/// of the path.
pub(crate) const LOSS_PER_MILLION: u64 = 20_000;

/// Queue at the bottleneck from which a link is degraded. Our own is a few milliseconds, so a
/// longer one means that others fill the path.
pub(crate) const QUEUE: Duration = Duration::from_millis(50);

/// Fewest packets per second for which a loss ratio means anything: one lost of ten is not a loss
/// of a tenth.
pub(crate) const PACKETS_MIN: u64 = 100;

/// Fewest packets per second for which a queue means anything. On an idle link a host that
/// schedules this process late looks like a queue. The limit is low because slow links send few
/// packets, and the estimate already leaves out round trips with a packet or two.
const QUEUE_PACKETS_MIN: u64 = 10;

/// How long trouble is shown after it was last seen, so that operators can read it.
pub(crate) const SHOWN: Duration = Duration::from_secs(5);

/// Number of losses of the link within [`RECENT`] from which it is degraded although it is up.
pub(crate) const FLAPS: usize = 3;

/// How long the loss of a link is remembered.
pub(crate) const RECENT: Duration = Duration::from_mins(10);

/// Whether a second with so many packets shows a queue long enough to be trouble.
pub(crate) fn is_queued(queue: Duration, packets: u64) -> bool {
    packets >= QUEUE_PACKETS_MIN && queue >= QUEUE
}

/// Which side something belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    Ours,
    Peers,
}

/// Observations of the link to a peer: the input of [`judge`].
#[derive(Debug, Clone, Default)]
pub(crate) struct Signs {
    /// Whether there is a link.
    pub is_linked: bool,
    /// Whether the peer has stopped answering over it.
    pub is_stalled: bool,
    /// Whether this side dials. If not, the peer does.
    pub is_dialled: bool,
    /// Why there is no link, or why the last attempt failed.
    pub why_down: String,
    /// What to do about `why_down`, if the code that found the cause knows it.
    pub remedy_down: Option<String>,
    /// Whose certificate is revoked, if that is why there is no link.
    pub revoked: Option<Whose>,
    /// Whether the two sides have no protocol version in common.
    pub is_unspoken: bool,
    /// Highest recent loss, per million; 0 without trouble.
    pub lost_per_million: u64,
    /// Longest recent queue; zero without trouble.
    pub queue: Duration,
    /// Times the link was lost within [`RECENT`].
    pub lost_count: usize,
    /// The message about two tunnels that show the peer's identity, if there are two.
    pub rivals: Option<String>,
}

/// The judgement of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub state: LinkState,
    pub reason: String,
    /// What an operator can do; `None` for a healthy link.
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

/// Judges the observations. Of several troubles it reports the one that explains the others.
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
            // The reason of a failed handshake already says this; that of a lost link does not.
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
        // The remedy for a revoked certificate is not to check the network.
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
        // The same holds for other faults of a certificate: the known remedy is shown.
        let known = judge(&Signs {
            why_down: "its certificate has expired".to_owned(),
            remedy_down: Some("renew it there".to_owned()),
            ..signs.clone()
        });
        let told = (&*known.reason, known.remedy.as_deref());
        let expected = ("its certificate has expired", Some("renew it there"));
        assert_eq!(told, expected);
        // Without a link, loss is not reported.
        signs.lost_per_million = 500_000;
        assert_eq!(judge(&signs).state, LinkState::Down);
    }
}
