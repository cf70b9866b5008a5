//! The watchdog of one connection: notices that a peer no longer answers, long before QUIC gives up.
//!
//! Pure. After an outage QUIC's own probes come ever more rarely (each waits twice as long as the one
//! before), so a path that is back after ten seconds is tried again only seconds later. Whoever dials
//! does not wait for that: once something sent has stayed unanswered for longer than any healthy path
//! takes, a second connection is dialled beside the first, and the first asks again and again.

use std::time::Duration;

use towpath_protocol::time::Instant;

/// Least time without an answer that counts as a stall: a busy host may sleep this long.
const STALL_MIN: Duration = Duration::from_millis(300);

/// Longest time an acknowledgement may be put off by the peer (RFC 9000's `max_ack_delay`).
const ACK_DELAY_MAX: Duration = Duration::from_millis(25);

/// A look that comes this much later than the one before says that *we* slept, not the peer.
const OVERSLEPT: Duration = Duration::from_millis(150);

/// How long a peer that has stopped answering passes for one that is there: then its link is down for all who ask, and
/// kept for the streams on it.
const LOST_AFTER: Duration = Duration::from_secs(3);

/// Whether a peer is heard over its link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Hearing {
    /// It answers.
    #[default]
    Heard,
    /// It has stopped answering just now.
    Stalled,
    /// It has not answered for long.
    Lost,
}

impl Hearing {
    /// What is made of a peer that has not answered for so long, if it has not.
    pub(crate) fn after(silence: Option<Duration>) -> Self {
        match silence {
            None => Self::Heard,
            Some(silence) if silence < LOST_AFTER => Self::Stalled,
            Some(_) => Self::Lost,
        }
    }
}

/// What a connection's counters say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counted {
    /// Packets of ours that have arrived, as the peer says. What else comes from it tells nothing of that: where one
    /// direction is lost, it asks on and on, and says again what it had before.
    pub arrived: u64,
    /// Frames sent that the peer has to answer.
    pub asked: u64,
    /// The smoothed round trip.
    pub rtt: Duration,
}

/// Watches one connection.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    arrived: u64,
    asked: u64,
    /// When something was first sent that nothing has answered since.
    unanswered_since: Option<Instant>,
    looked: Instant,
}

impl Watch {
    /// Looks at the counters; says whether the peer has stopped answering.
    pub(crate) fn look(&mut self, seen: Counted, now: Instant) -> bool {
        let slept = now.since(self.looked);
        self.looked = now;
        if seen.arrived != self.arrived {
            self.arrived = seen.arrived;
            self.asked = seen.asked;
            self.unanswered_since = None;
            return false;
        }
        if self.unanswered_since.is_none() && seen.asked > self.asked {
            self.unanswered_since = Some(now);
        }
        if let Some(since) = &mut self.unanswered_since
            && slept > OVERSLEPT
        {
            *since = *since + slept;
        }
        self.unanswered_since
            .is_some_and(|since| now.since(since) > stall_after(seen.rtt))
    }
}

/// Three probe timeouts: a smoothed round trip and as much again for its variation, and the peer's
/// delay of an acknowledgement.
fn stall_after(rtt: Duration) -> Duration {
    (3 * (2 * rtt + ACK_DELAY_MAX)).max(STALL_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(40);
    const TICK: u64 = 50;
    const TICK_STEP: usize = 50;

    fn seen(arrived: u64, asked: u64) -> Counted {
        Counted {
            arrived,
            asked,
            rtt: RTT,
        }
    }

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    /// Looks every tick while nothing is acknowledged; gives when the stall showed.
    fn stalled_at(watch: &mut Watch, from: u64, until: u64, asked: u64) -> Option<u64> {
        (from..until)
            .step_by(TICK_STEP)
            .find(|now| watch.look(seen(1, asked), at(*now)))
    }

    #[test]
    fn an_unanswered_question_shows_after_three_probe_timeouts() {
        let mut watch = Watch::default();
        assert!(!watch.look(seen(1, 1), at(0)));
        let stalled = stalled_at(&mut watch, 50, 5000, 2).expect("it shows");
        assert!((315..=450).contains(&stalled), "{stalled} ms");
        assert!(
            !watch.look(seen(2, 3), at(stalled + TICK)),
            "an answer ends it"
        );
    }

    #[test]
    fn silence_is_no_stall_while_nothing_was_asked() {
        let mut watch = Watch::default();
        assert!(!watch.look(seen(1, 1), at(0)));
        assert_eq!(stalled_at(&mut watch, 50, 60_000, 1), None);
    }

    #[test]
    fn our_own_sleep_is_not_the_peers_silence() {
        let mut watch = Watch::default();
        assert!(!watch.look(seen(1, 1), at(0)));
        assert!(!watch.look(seen(1, 2), at(50)));
        assert!(!watch.look(seen(1, 2), at(3000)));
        assert!(!watch.look(seen(1, 2), at(3050)));
    }

    #[test]
    fn a_long_path_gets_longer() {
        let mut watch = Watch::default();
        let seen = |asked| Counted {
            arrived: 1,
            asked,
            rtt: Duration::from_millis(600),
        };
        assert!(!watch.look(seen(1), at(0)));
        assert!((1..70).all(|tick| !watch.look(seen(2), at(tick * TICK))));
        assert!((70..80).any(|tick| watch.look(seen(2), at(tick * TICK))));
    }
}
